"""
Runs tests in a process of its own, against whatever copy of raftd it finds.

    python -m raftd.test.defects.child PATCH tests NAME...    # modules, or single tests
    python -m raftd.test.defects.child PATCH seeds COUNT
    python -m raftd.test.defects.child PATCH simulation COUNT

`PATCH` is a `Patch` as JSON: where this copy differs from what ships.  The last
line of the output is a `Verdict` as JSON.
"""

from __future__ import annotations

import importlib
import io
import re
import signal
import sys
import traceback
import unittest
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from twisted.python.failure import Failure
from twisted.trial.reporter import Reporter
from twisted.trial.runner import TestLoader, TrialRunner

#: What a slip in the text of a defect looks like; it is not what was meant to be caught.
_SLIP = re.compile(
    r"\b(NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError)\b"
    r"|object has no attribute"
)

#: The same as classes; see `Slips` for where they must be raised.
_SLIPS = (NameError, AttributeError, TypeError, ImportError)


class Verdict(msgspec.Struct):
    """How it went."""

    #: Tests, or seeds, that were run to their end.
    ran: int
    #: The first test, or the seed, that failed; empty if none did.
    failed: str = ""
    #: Its last words.
    why: str = ""
    #: The defect itself is badly written: that is why it failed, if it did.
    slip: bool = False


class Patch(msgspec.Struct, frozen=True):
    """The file that a defect is in, and its first and last line there."""

    path: str
    first: int
    last: int


#: There is no defect.
NO_PATCH = Patch("", 0, 0)


class Slips:
    """
    Sees each error of which Twisted makes a `Failure`, whoever swallows it: what
    a node stops for may reach a test as a request that was never answered.

    `seen` is the first that comes of the text of the defect itself: an unknown
    name anywhere in its module, for what gave the name may be what it took away;
    or an error of types, attributes and imports raised in its own lines.  `None`
    there where something was is likely meant, but no rule can tell that: such a
    defect has to be written so that it does harm without an error.
    """

    def __init__(self, patch: Patch) -> None:
        self._patch = patch
        self.seen = ""

    def watch(self) -> None:
        """From now on."""
        # As any class: its signature is of no interest here.
        failures: Any = Failure
        begin = failures.__init__

        def begun(failure: Failure, *args: Any, **kw: Any) -> None:
            begin(failure, *args, **kw)
            if isinstance(failure.value, _SLIPS) and not self.seen:
                self._look(failure.value)

        failures.__init__ = begun

    def _look(self, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or frames[-1].filename != self._patch.path:
            return
        line = frames[-1].lineno or 0
        if isinstance(error, NameError) or self._patch.first <= line <= self._patch.last:
            self.seen = f"{error!r} in line {line}"


class _FirstFailure(Reporter):
    """Stops the run at the first failure."""

    def addFailure(self, test: unittest.TestCase, failure: Any) -> None:
        super().addFailure(test, failure)
        self.stop()

    def addError(self, test: unittest.TestCase, failure: Any) -> None:
        super().addError(test, failure)
        self.stop()


def _tests(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[unittest.TestCase]:
    if isinstance(suite, unittest.TestCase):
        yield suite
    else:
        for inner in suite:
            yield from _tests(inner)


def run_tests(names: Sequence[str]) -> Verdict:
    """Run `MODULE:TEST` for each name, wherever in the module; to the first failure."""
    loader = TestLoader()
    chosen = []
    for name in names:
        module, _, test = name.partition(":")
        found = _tests(loader.loadModule(importlib.import_module(module)))
        chosen += [t for t in found if t.id().rpartition(".")[2] == test]
    runner = TrialRunner(_FirstFailure, stream=io.StringIO())
    result: Any = runner.run(unittest.TestSuite(chosen))
    for test, failure in [*result.failures, *result.errors]:
        text = str(failure.getTraceback())
        words = failure.getErrorMessage().strip().splitlines()
        why = f"{failure.type.__name__}: {words[0] if words else ''}"
        return Verdict(result.testsRun, test.id(), why, bool(_SLIP.search(text)))
    return Verdict(result.successes)


def run_seeds(count: int) -> Verdict:
    """Run the core's random faults with the first seeds, to the first failure."""
    from raftd.test.test_core_random import run_seed

    for seed in range(1, count + 1):
        try:
            run_seed(seed)
        except Exception as e:
            Failure()  # for `Slips`: there is no Twisted here that makes one
            why = f"{type(e).__name__}: {e}"
            return Verdict(seed, str(seed), why, bool(_SLIP.search(why)))
    return Verdict(count)


def run_simulation(count: int) -> Verdict:
    """Simulate whole clusters with the first seeds, to the first violation."""
    from raftd.test.simulation.run import run_seed

    for seed in range(1, count + 1):
        why = run_seed(seed).violation
        if why:
            return Verdict(seed, str(seed), why, bool(_SLIP.search(why)))
    return Verdict(count)


def main(patch: str, what: str, *arguments: str) -> None:
    # A shell that starts something in the background has it ignored, and so
    # would every process that a test starts and means to interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    slips = Slips(msgspec.json.decode(patch, type=Patch))
    slips.watch()
    if what == "tests":
        verdict = run_tests(arguments)
    elif what == "seeds":
        verdict = run_seeds(int(arguments[0]))
    else:
        verdict = run_simulation(int(arguments[0]))
    if slips.seen:
        verdict.slip, verdict.why = True, f"{slips.seen} {verdict.why}".rstrip()
    print()
    print(msgspec.json.encode(verdict).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
