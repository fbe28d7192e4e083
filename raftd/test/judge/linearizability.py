"""The judge of operations: a verdict on a history, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from raftd.test.judge.calls import describe, is_read
from raftd.test.judge.history import History, Operation
from raftd.test.judge.model import State, StoreModel
from raftd.test.judge.partitions import partition
from raftd.test.judge.revisions import judge_revisions
from raftd.test.judge.search import MAX_CONFIGURATIONS, Search, Verdict
from raftd.test.judge.watches import judge_watches

#: What finding the shortest beginning may cost, in configurations, and what
#: each of the rest of an explanation; to begin a search costs one for so many
#: operations.
SHORTEST_WORK: Final = 200_000
FEWEST_WORK: Final = 5_000
OPERATIONS_PER_WORK: Final = 10

#: So many of each are listed in an explanation.
MAX_LISTED: Final = 12


class Judgement(msgspec.Struct, frozen=True):
    """
    A verdict.  `reasons` are sentences, empty if it is good.

    `operations` were judged, in `parts` independent ones; `unknown` of all had
    no known outcome; `watched` are lines of watches.  `configurations` is the
    work that it took.
    """

    verdict: Verdict
    operations: int
    unknown: int
    parts: int
    watched: int
    configurations: int
    reasons: list[str]

    @property
    def is_good(self) -> bool:
        """Undecided is not good."""
        return self.verdict is Verdict.GOOD


def judge(
    history: History,
    max_configurations: int = MAX_CONFIGURATIONS,
    has_all_writes: bool = True,
    explains: bool = True,
) -> Judgement:
    """
    Whether a history is linearizable, its revisions are in order, its watches true.

    `max_configurations` bounds the work for each part.  `has_all_writes`: what
    a watch shows must have been written by an operation of the history.
    `explains`: find out why not, which costs more than the verdict.
    """
    parts = partition(history.operations)
    work, reasons, verdicts = 0, list[str](), {Verdict.GOOD}
    for keys, operations in parts:
        model = StoreModel(operations)
        search = Search(model, operations, max_configurations)
        verdict = search.run()
        work += search.configurations
        verdicts.add(verdict)
        if verdict is Verdict.BAD:
            reasons += explain(keys, operations) if explains else [f"{_keys(keys)}: no order"]
        elif verdict is Verdict.UNDECIDED:
            reasons.append(
                f"{_keys(keys)}: no order of the {len(operations)} operations was found, but "
                f"not all were tried: the bound is {max_configurations} configurations"
            )
    wrong = judge_revisions(history.operations)
    wrong += judge_watches(history, has_all_writes)
    if wrong:
        verdicts.add(Verdict.BAD)
        reasons += wrong[:MAX_LISTED]
        if len(wrong) > MAX_LISTED:
            reasons.append(f"and {len(wrong) - MAX_LISTED} more of revisions and watches")
    return Judgement(
        verdict=_worst(verdicts),
        operations=len(history.operations),
        unknown=history.unknown,
        parts=len(parts),
        watched=len(history.watched),
        configurations=work,
        reasons=reasons,
    )


def _worst(verdicts: set[Verdict]) -> Verdict:
    for verdict in (Verdict.BAD, Verdict.UNDECIDED):
        if verdict in verdicts:
            return verdict
    return Verdict.GOOD


# -- why not ---------------------------------------------------------------------


def explain(keys: Sequence[str], operations: Sequence[Operation]) -> list[str]:
    """
    Why a part is not linearizable.

    First the shortest beginning of it that is not, so that its last answer is
    the one that does not fit; then as few of the operations as are enough for
    it not to.  Both as far as their bounds go.
    """
    wrong, is_shortest = _shortest(operations, _Budget(SHORTEST_WORK))
    answered = _answered(wrong)
    last = max(answered, key=_end)
    if not is_shortest:
        return [
            f"{_keys(keys)}: there is no order of the {len(answered)} operations that were "
            f"answered up to line {last.returned}; where it begins to go wrong would take "
            "too long to find"
        ]
    search = Search(StoreModel(wrong), wrong, FEWEST_WORK, finds_stuck=True)
    is_all = search.run() is Verdict.BAD
    lines = [
        f"{_keys(keys)}: whatever was answered before line {last.returned} can be put in order "
        f"({len(answered) - 1} operations).  Then nothing fits this answer:",
        f"    {_told(last)}",
    ]
    states = list(dict.fromkeys(_shown(state) for state in search.stuck))
    if states and is_all:
        lines.append(f"  All the others in order, there could have been: {_or(states)}.")
    others = [o for o in _fewest(wrong, last, _Budget(FEWEST_WORK)) if o is not last]
    if others:
        is_short = len(others) <= MAX_LISTED
        what = "These are enough for it not to fit" if is_short else "The last before it are"
        lines.append(f"  {what}:")
        lines += _listed(others)
    unknown = len(wrong) - len(answered)
    if unknown:
        lines.append(f"  Nor is it explained by any of {unknown} that had no outcome yet.")
    return lines


class _Budget:
    """What a part of an explanation may still cost."""

    def __init__(self, work: int) -> None:
        self._left = work

    def judge(self, operations: Sequence[Operation]) -> Verdict:
        """Whether they have an order; undecided when too much was spent."""
        self._left -= len(operations) // OPERATIONS_PER_WORK
        if self._left <= 0:
            return Verdict.UNDECIDED
        search = Search(StoreModel(operations), operations, self._left)
        verdict = search.run()
        self._left -= search.configurations
        return verdict


def _shortest(operations: Sequence[Operation], budget: _Budget) -> tuple[list[Operation], bool]:
    """
    Those that had begun when the first answer came that cannot be; later ends cut off.

    And whether it certainly is the first.
    """
    ends = sorted(_end(operation) for operation in _answered(operations))
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        verdict = budget.judge(_until(operations, ends[middle]))
        if verdict is Verdict.UNDECIDED:
            return _until(operations, ends[high]), False
        if verdict is Verdict.BAD:
            high = middle
        else:
            low = middle + 1
    return _until(operations, ends[low]), True


def _until(operations: Sequence[Operation], line: int) -> list[Operation]:
    """The history as it was at a line."""
    begun = [o for o in operations if o.invoked < line]
    cut = [
        Operation(o.process, o.call, None, o.invoked, None)
        if o.returned is not None and o.returned > line
        else o
        for o in begun
    ]
    return [o for o in cut if o.returned is not None or not is_read(o.call)]


def _fewest(operations: list[Operation], last: Operation, budget: _Budget) -> list[Operation]:
    """
    As few answered ones as are enough to have no order.

    A read is left out if it can be.  A change is not, for what others saw came
    from it; but it need not be listed if it may just as well have taken effect
    at any later time, or not at all.  Many at once are tried first.
    """
    kept = list(operations)
    size = len(operations) // 2
    while size:
        answered = [o for o in _answered(kept) if o is not last]
        for start in range(0, len(answered), size):
            freed = _freed(kept, answered[start : start + size])
            if budget.judge(freed) is Verdict.BAD:
                kept = freed
        size //= 2
    return _answered(kept)


def _freed(operations: Sequence[Operation], some: Sequence[Operation]) -> list[Operation]:
    """Without those of `some` that are reads; the others of them open."""
    free = set(map(id, some))
    return [
        msgspec.structs.replace(o, returned=None) if id(o) in free else o
        for o in operations
        if id(o) not in free or not is_read(o.call)
    ]


def _answered(operations: Sequence[Operation]) -> list[Operation]:
    return [operation for operation in operations if operation.returned is not None]


def _end(operation: Operation) -> int:
    assert operation.returned is not None
    return operation.returned


# -- words -----------------------------------------------------------------------


def _keys(keys: Sequence[str]) -> str:
    if len(keys) == 1:
        return f"key {keys[0]!r}"
    shown = ", ".join(repr(key) for key in keys[:MAX_LISTED])
    return f"keys {shown}" + (" and more" if len(keys) > MAX_LISTED else "")


def _told(operation: Operation) -> str:
    until = "" if operation.returned is None else f" to {operation.returned}"
    what = describe(operation.call, operation.result)
    return f"lines {operation.invoked}{until}, process {operation.process}: {what}"


def _listed(operations: Sequence[Operation]) -> list[str]:
    lines = [f"    {_told(o)}" for o in operations[-MAX_LISTED:]]
    if len(operations) > MAX_LISTED:
        lines.insert(0, f"    ({len(operations) - MAX_LISTED} earlier ones)")
    return lines


def _shown(state: State) -> str:
    if not state.rows:
        return "nothing"
    if len(state.rows) > MAX_LISTED:
        return f"{len(state.rows)} keys"
    parts = []
    for key, row in state.rows:
        number = row.mod_revision
        at = f" (revision {number})" if number > 0 else ""
        parts.append(f"{key!r} = {row.value!r}{at}")
    return "{" + ", ".join(parts) + "}" if len(parts) > 1 else parts[0]


def _or(texts: Sequence[str]) -> str:
    if len(texts) > MAX_LISTED:
        return f"{', or '.join(texts[:MAX_LISTED])}, or others"
    return ", or ".join(texts)
