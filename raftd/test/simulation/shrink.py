"""Fewer faults that still break what the whole plan breaks."""

from __future__ import annotations

from collections.abc import Callable, Collection

from raftd.test.simulation.plan import Plan
from raftd.test.simulation.run import Outcome, run_seed


def shrink(seed: int, say: Callable[[str], object] = print) -> Outcome | None:
    """
    Leave out faults, in ever smaller parts, as long as something is violated.

    The outcome of the smallest plan found; None if the seed is good as it is.
    What is violated may become something else on the way, with the same cause
    as a rule.
    """
    kept = [fault.number for fault in Plan(seed).faults]
    best = run_seed(seed)
    if not best.violation:
        return None
    best.only = kept
    part = max(1, len(kept) // 2)
    while kept:
        smaller = _without_a_part(seed, kept, part)
        if smaller is not None:
            best = smaller
            kept = list(smaller.only or ())
            say(f"{len(kept)} faults: {best.violation[:100]}")
        elif part == 1:
            break
        part = max(1, min(part // 2 if smaller is None else part, len(kept) // 2))
    return best


def _without_a_part(seed: int, kept: Collection[int], part: int) -> Outcome | None:
    """The first that is still bad without `part` faults that follow one another."""
    numbers = list(kept)
    for start in range(0, len(numbers), part):
        only = numbers[:start] + numbers[start + part :]
        outcome = run_seed(seed, only)
        if outcome.violation:
            outcome.only = only
            return outcome
    return None
