"""
Fuzzing of everything that reads bytes: what the tests share, and a longer run.

    python -m raftd.test.fuzz MINUTES [WORD...]

The tests are those of `test_fuzz_*.py`.  As tests they try the same few
examples each time; the command runs them again and again with others, for so
many minutes, those with one of the words in their names or all, and prints
`examples, targets, failures`.  A failure is printed as Hypothesis has
shrunk it, ready to become a test of its own.
"""

from __future__ import annotations

import collections
import functools
import importlib
import sys
import time
import traceback
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: Examples of each target in one round of the command.
EXAMPLES_PER_ROUND: Final = 300

Target = Callable[..., None]
#: Makes what a strategy can make.
Draw = Callable[[st.SearchStrategy[Any]], Any]

#: How many examples each target has been given.
tried: collections.Counter[str] = collections.Counter()


class Profile:
    """How the targets are made: as tests, or for a long run."""

    is_long = False


def fuzz(examples: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Target], Target]:
    """Give a test method `examples` of what the strategies make, always the same."""

    def wrap(target: Target) -> Target:
        @functools.wraps(target)
        def counted(*args: Any, **named: Any) -> None:
            tried[target.__qualname__] += 1
            target(*args, **named)

        wrapped = settings(
            max_examples=EXAMPLES_PER_ROUND if Profile.is_long else examples,
            derandomize=not Profile.is_long,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(given(*strategies)(counted))
        return wrapped

    return wrap


# -- what goes in --------------------------------------------------------------


def words(text: str) -> st.SearchStrategy[str]:
    """One of the words of `text`."""
    return st.sampled_from(text.split())


#: Numbers at which something changes.
INTEGERS: Final = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
)

#: Whatever MessagePack can say.
VALUES: Final = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        INTEGERS,
        st.floats(),
        st.binary(max_size=20),
        st.text(max_size=9),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Something that may happen to bytes."""
    where, length = draw(st.integers(0, 10**6)), draw(st.integers(0, 40))
    what, kind = (
        draw(st.binary(max_size=12)),
        draw(words("flip put cut drop twice")),
    )

    def damage(data: bytes) -> bytes:
        at = where % (len(data) + 1)
        match kind:
            case "flip" if at < len(data):
                return data[:at] + bytes([data[at] ^ 1 << length % 8]) + data[at + 1 :]
            case "put":
                return data[:at] + what + data[at + len(what) :]
            case "cut":
                return data[:at]
            case "drop":
                return data[:at] + data[at + length :]
            case _:
                return data[: at + length] + data[at:]

    return damage


def changed(value: Any, draw: Draw, likelihood: int = 6) -> Any:
    """A value of MessagePack with some of it replaced, lost, doubled or moved."""
    if not draw(st.integers(0, likelihood)):
        return draw(VALUES)
    if isinstance(value, list):
        items = [changed(item, draw, likelihood) for item in value]
        fate = draw(st.integers(0, 12))
        if items and fate < 4:
            at = draw(st.integers(0, len(items) - 1))
            match fate:
                case 0:
                    del items[at]
                case 1:
                    items.insert(at, items[at])
                case 2:
                    items.append(items.pop(at))
                case _:
                    items.insert(at, draw(VALUES))
        return items
    if isinstance(value, int) and not isinstance(value, bool) and not draw(st.integers(0, 5)):
        return draw(st.sampled_from([value - 1, value + 1, -value, 2 * value]))
    return value


def packed(value: Any) -> bytes:
    """As MessagePack; what is too large for it is none."""
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return b"\xc0"


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut into pieces of these sizes, and the rest."""
    result = []
    for size in sizes:
        result.append(data[:size])
        data = data[size:]
    return [piece for piece in [*result, data] if piece]


SIZES: Final = st.lists(st.integers(1, 300), max_size=8)

# -- the long run --------------------------------------------------------------


def _cases(words: list[str]) -> list[unittest.TestCase]:
    """Every test of `test_fuzz_*.py` that is made by `fuzz`."""
    cases = []
    for path in sorted(Path(__file__).parent.glob("test_fuzz_*.py")):
        module = importlib.import_module(f"raftd.test.{path.stem}")
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, unittest.TestCase)):
                continue
            for name, method in vars(kind).items():
                if hasattr(method, "hypothesis") and (
                    not words or any(word in f"{kind.__name__}.{name}" for word in words)
                ):
                    cases.append(kind(name))
    return cases


def _run(case: unittest.TestCase) -> None:
    """A round of one target; in a long run, with other examples than before."""
    case.setUp()
    try:
        getattr(case, case._testMethodName)()
    finally:
        case.tearDown()
        case.doCleanups()


def main(minutes: float, words: list[str]) -> int:
    give_up_at = time.monotonic() + 60 * minutes
    Profile.is_long = True
    cases = _cases(words)
    failures: set[str] = set()
    while time.monotonic() < give_up_at and len(failures) < len(cases):
        for case in cases:
            if time.monotonic() >= give_up_at:
                break
            if case.id() in failures:
                continue
            try:
                _run(case)
            except Exception:
                failures.add(case.id())
                print(f"{case.id()}:")
                traceback.print_exc(file=sys.stdout)
    print(
        f"examples {sum(tried.values())}, targets {len(cases)}, failures {len(failures)}",
        flush=True,
    )
    return int(bool(failures))


if __name__ == "__main__":
    # The tests import this module under its own name, and so must this.
    module = importlib.import_module("raftd.test.fuzz")
    sys.exit(module.main(float(sys.argv[1]), sys.argv[2:]))
