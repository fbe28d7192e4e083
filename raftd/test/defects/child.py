"""
Runs tests in a process of its own, against whatever copy of raftd it finds.

    python -m raftd.test.defects.child tests NAME...    # modules, or single tests
    python -m raftd.test.defects.child seeds COUNT
    python -m raftd.test.defects.child simulation COUNT

The last line of its output is a `Verdict` as JSON.
"""

from __future__ import annotations

import importlib
import io
import re
import signal
import sys
import unittest
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from twisted.trial.reporter import Reporter
from twisted.trial.runner import TestLoader, TrialRunner

#: What a slip in the text of a defect looks like; it is not what was meant to be caught.
_SLIP = re.compile(
    r"\b(NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError)\b"
    r"|object has no attribute"
)


class Verdict(msgspec.Struct):
    """How it went."""

    #: Tests, or seeds, that were run to their end.
    ran: int
    #: The first test, or the seed, that failed; empty if none did.
    failed: str = ""
    #: Its last words.
    why: str = ""
    #: It failed because the defect itself is badly written.
    slip: bool = False


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


def main(what: str, *arguments: str) -> None:
    # A shell that starts something in the background has it ignored, and so
    # would every process that a test starts and means to interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if what == "tests":
        verdict = run_tests(arguments)
    elif what == "seeds":
        verdict = run_seeds(int(arguments[0]))
    else:
        verdict = run_simulation(int(arguments[0]))
    print()
    print(msgspec.json.encode(verdict).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
