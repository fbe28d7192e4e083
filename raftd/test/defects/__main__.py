"""Puts each defect in and says whether it was caught; see the package."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

from raftd.test.defects.defect import Defect
from raftd.test.defects.planting import PATIENCE_WITH_ALL_S, Catchers, Garden
from raftd.test.defects.table import ALL, NOT_BUILT

#: Defects that are tried at once.
WORKERS = 2


class Outcome(NamedTuple):
    """What became of one defect."""

    defect: Defect
    caught: bool
    #: By which test and which seed, or why not.
    how: str
    seconds: float

    def __str__(self) -> str:
        verdict = "caught" if self.caught else "MISSED"
        return f"{verdict}  {self.defect.label}: {self.how} ({self.seconds:.1f} s)"


def try_one(garden: Garden, catchers: Catchers, defect: Defect) -> Outcome:
    """Put a defect in, run what must catch it, and take it out again."""
    began = time.monotonic()
    tests = catchers.of(defect)
    with garden.planted(defect):
        verdict = garden.run_tests(tests)
        caught = bool(verdict.failed) and not verdict.slip
        if verdict.slip:
            how = f"the defect is badly written: {verdict.failed} {verdict.why}"
        elif caught:
            how = verdict.failed.removeprefix("raftd.test.")
        else:
            how = verdict.why or f"all of {verdict.ran} tests pass"
        if caught and defect.seeds:
            verdict = garden.run_seeds(defect.seeds)
            caught = bool(verdict.failed) and not verdict.slip
            found = f"seed {verdict.failed}" if caught else verdict.why
            how += f", {found or f'and not by {verdict.ran} seeds'}"
    return Outcome(defect, caught, how, time.monotonic() - began)


def try_all(defects: Sequence[Defect]) -> list[Outcome]:
    """Try them, `WORKERS` at a time, and print a line for each."""
    catchers = Catchers()
    gardens: SimpleQueue[Garden] = SimpleQueue()

    def attempt(defect: Defect) -> Outcome:
        garden = gardens.get()
        try:
            outcome = try_one(garden, catchers, defect)
        finally:
            gardens.put(garden)
        print(outcome, flush=True)
        return outcome

    made = [Garden() for _ in range(min(WORKERS, len(defects)))]
    try:
        check_healthy(made[0], catchers, defects)
        for garden in made:
            gardens.put(garden)
        with ThreadPoolExecutor(len(made)) as pool:
            return list(pool.map(attempt, defects))
    finally:
        for garden in made:
            garden.__exit__(None, None, None)


def check_healthy(garden: Garden, catchers: Catchers, defects: Sequence[Defect]) -> None:
    """A test that fails without any defect catches nothing."""
    tests = dict.fromkeys(test for defect in defects for test in catchers.of(defect))
    verdict = garden.run_tests(list(tests), PATIENCE_WITH_ALL_S)
    if verdict.failed or not verdict.ran:
        sys.exit(f"Without any defect: {verdict.failed} {verdict.why}")
    print(f"{verdict.ran} tests pass without any defect", flush=True)


def main(numbers: Sequence[int]) -> int:
    began = time.monotonic()
    for number in numbers:
        if number in NOT_BUILT:
            print(f"{number:02} is not built yet: {NOT_BUILT[number]}")
    chosen = [d for d in ALL if not numbers or d.number in numbers]
    if not chosen:
        return 1
    outcomes = try_all(chosen)
    caught = sum(outcome.caught for outcome in outcomes)
    for outcome in outcomes:
        if not outcome.caught:
            print(outcome)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"caught {caught}/{len(outcomes)} in {minutes} min {seconds} s")
    return int(caught < len(outcomes))


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]]))
