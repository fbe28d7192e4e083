"""
    python -m raftd.test.simulation SEED [COUNT]     # seeds from SEED on, on all cores
    python -m raftd.test.simulation SEED --only 3,7  # of its faults, those
    python -m raftd.test.simulation SEED --shrink    # leave out what is not needed

The last line is `seeds, simulated time, events, faults by kind, elections,
operations judged, violations`; the status is 1 if there were any.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

from raftd.test.simulation.quiet import keep_quiet
from raftd.test.simulation.run import Outcome, run_seed
from raftd.test.simulation.shrink import shrink

#: Seeds that a process is given at once.
CHUNK = 10
#: So many notes of a bad seed are shown, unless more are asked for.
NOTES = 25


def command_of(outcome: Outcome) -> str:
    """What repeats a run, to the event."""
    command = f"python -m raftd.test.simulation {outcome.seed}"
    if outcome.only is not None:
        command += f" --only {','.join(map(str, outcome.only)) or 'none'}"
    return command


def report(outcome: Outcome, notes: int = NOTES) -> str:
    """What went wrong with a seed, and how to see it again."""
    where = f"event {outcome.events} at {outcome.simulated_s:.4f} s"
    lines = [f"seed {outcome.seed}, {where}: {outcome.violation}"]
    lines += outcome.notes[-notes:]
    return "\n".join((*lines, f"again: {command_of(outcome)}"))


class Figures:
    """Sums over many seeds."""

    def __init__(self) -> None:
        self.seeds = self.events = self.elections = self.judged = self.violations = 0
        self.simulated_s = 0.0
        self.faults: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.simulated_s += outcome.simulated_s
        self.events += outcome.events
        self.elections += outcome.elections
        self.judged += outcome.judged
        self.faults.update(outcome.faults)
        self.violations += bool(outcome.violation)

    def __str__(self) -> str:
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        return (
            f"seeds {self.seeds}, simulated time {self.simulated_s:.0f} s, "
            f"events {self.events}, faults ({faults}), elections {self.elections}, "
            f"operations judged {self.judged}, violations {self.violations}"
        )


def run_seeds(
    seeds: Iterable[int], workers: int, say: Callable[[str], object] = print
) -> Figures:
    """Run seeds, several at a time, and tell of each that is bad."""
    figures = Figures()

    def add(outcome: Outcome) -> None:
        figures.add(outcome)
        if outcome.violation:
            say(report(outcome))

    if workers == 1:
        for seed in seeds:
            add(run_seed(seed))
    else:
        with ProcessPoolExecutor(workers, initializer=keep_quiet) as pool:
            for outcome in pool.map(run_seed, seeds, chunksize=CHUNK):
                add(outcome)
    return figures


def _only(text: str) -> list[int]:
    return [] if text == "none" else [int(word) for word in text.split(",")]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m raftd.test.simulation")
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--only", type=_only, help="numbers of faults, or none")
    parser.add_argument("--shrink", action="store_true", help="find fewer faults that do")
    parser.add_argument("--notes", type=int, default=NOTES, help="how many to show")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    keep_quiet()
    if options.shrink:
        smallest = shrink(options.seed)
        print("nothing is violated" if smallest is None else report(smallest, options.notes))
        return int(smallest is not None)
    if options.count == 1:
        outcome = run_seed(options.seed, options.only)
        outcome.only = options.only
        figures = Figures()
        figures.add(outcome)
        print(f"trace {outcome.trace:08x}")
        if outcome.violation:
            print(report(outcome, options.notes))
    else:
        seeds = range(options.seed, options.seed + options.count)
        figures = run_seeds(seeds, options.workers)
    print(figures)
    return int(figures.violations > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
