"""
What a sequence of writes makes of a log: the one place that knows.

The write-ahead log checks each write with it before it is queued, recovery
replays the records of the disk through it, and the log in memory is made of
it.  So what is replayed equals what was live.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from raftd.core.messages import NOBODY, Entry, HardState
from raftd.errors import InvariantViolated

#: Where a log begins or ends: the (index, term) of an entry, whether it is there or gone.
Position = tuple[int, int]


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    One write as the log keeps it; a format (`docs/log-format.md`).

    `hard_state` None keeps the one before.  `base` is the position behind
    which the entries go on: if it is the end of the log, nothing changes;
    otherwise the log begins anew behind it.  `entries` are consecutive, and
    whatever the log holds at or behind the first of them is cut off.
    `commit_index` says up to where the log was known to be committed when the
    record was written; it may have been more since.
    """

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    base: Position | None = None
    commit_index: int = 0


class Outline:
    """
    The hard state and the terms of a log's entries, without the entries.

    Invariants: indexes run from `base_index + 1` to `last_index` without a
    gap; terms never go down along them, from `base_term` on; `_runs` has
    (first index, term) of each stretch of equal terms, both growing.
    """

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.base_index = self.base_term = 0
        self.last_index = 0
        #: The greatest that a write carried: what is committed stays so.
        self.commit_index = 0
        self._runs: list[Position] = []
        #: What a snapshot is known to hold; not before it may the log begin anew.
        self._floor: Position = (0, 0)

    def begin(self, base: Position) -> None:
        """
        A log that is read from a checkpoint on: `base` is where it ended there.

        That entry need not be committed; the log may yet begin anew before it.
        """
        self.base_index, self.base_term = base
        self.last_index = self.base_index

    @property
    def last(self) -> Position:
        """Where the log ends."""
        return self.last_index, self.term_at(self.last_index)

    def term_at(self, index: int) -> int:
        """The term of the entry at `index`, which is not before the base."""
        for first, term in reversed(self._runs):
            if first <= index:
                return term
        return self.base_term

    def write(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: Position | None = None,
        commit_index: int = 0,
    ) -> bool:
        """
        Take a write over; whether the log begins anew with it.

        `InvariantViolated`, and nothing changed, if it may not follow.
        """
        anew = base if base is not None and base != self.last else None
        if hard_state is not None:
            self._check_hard_state(hard_state)
        if anew is not None:
            self._check_base(anew)
        runs = self._new_runs(entries, anew) if entries else []
        if hard_state is not None:
            self.hard_state = hard_state
        if anew is not None:
            self._floor = anew
            self._runs.clear()
            self.begin(anew)
        if entries:
            self._append(entries[0].index, len(entries), runs)
        self.commit_index = max(self.commit_index, commit_index)
        return anew is not None

    def _check_hard_state(self, new: HardState) -> None:
        old = self.hard_state
        if new.term < old.term:
            raise InvariantViolated(f"the term goes down from {old.term} to {new.term}")
        if new.term == old.term and old.voted_for not in (NOBODY, new.voted_for):
            raise InvariantViolated(
                f"the vote of term {new.term} changes from "
                f"{old.voted_for:016x} to {new.voted_for:016x}"
            )

    def _check_base(self, base: Position) -> None:
        """A snapshot is never followed by an older one, or one of another history."""
        (index, term), (floor, floor_term) = base, self._floor
        if index < floor or term < floor_term or (index == floor and term != floor_term):
            raise InvariantViolated(
                f"the log cannot begin anew behind entry {index} of term {term}: a snapshot "
                f"holds entry {floor} of term {floor_term}"
            )

    def _new_runs(self, entries: Sequence[Entry], anew: Position | None) -> list[Position]:
        """The stretches of equal terms that `entries` begin."""
        first = entries[0].index
        lowest, highest = self.base_index + 1, self.last_index + 1
        if anew is not None:
            lowest = highest = anew[0] + 1
        if not lowest <= first <= highest:
            raise InvariantViolated(f"entry {first} does not follow entry {highest - 1}")
        term = self.term_at(first - 1) if anew is None else anew[1]
        added = []
        for index, entry in enumerate(entries, first):
            if entry.index != index:
                raise InvariantViolated(f"entry {entry.index} stands where {index} belongs")
            if entry.term != term:
                if entry.term < term:
                    raise InvariantViolated(
                        f"entry {index} has term {entry.term}, the one before it {term}"
                    )
                term = entry.term
                added.append((index, term))
        return added

    def _append(self, first: int, count: int, runs: list[Position]) -> None:
        while self._runs and self._runs[-1][0] >= first:
            self._runs.pop()
        self._runs += runs
        self.last_index = first + count - 1

    def compact(self, base_index: int) -> bool:
        """
        Entries up to `base_index` will never be cut off again; whether that is news.

        `InvariantViolated` if the log does not reach so far.
        """
        if base_index <= self.base_index:
            return False
        if base_index > self.last_index:
            raise InvariantViolated(
                f"entries up to {base_index} are to go, and the log ends with {self.last_index}"
            )
        self.base_term = self.term_at(base_index)
        self.base_index = base_index
        self._floor = base_index, self.base_term
        self._runs = [(first, term) for first, term in self._runs if first > base_index]
        return True


class Replay:
    """A log as its writes have made it: hard state, base, and the entries behind it."""

    def __init__(self) -> None:
        self._outline = Outline()
        self.entries: list[Entry] = []

    @property
    def outline(self) -> Outline:
        """What the next write must follow."""
        return self._outline

    def begin(self, base: Position) -> None:
        """Begin with a checkpoint: see `Outline.begin`."""
        self._outline.begin(base)

    @property
    def hard_state(self) -> HardState:
        return self._outline.hard_state

    @property
    def base_index(self) -> int:
        return self._outline.base_index

    @property
    def base_term(self) -> int:
        return self._outline.base_term

    @property
    def commit_index(self) -> int:
        return self._outline.commit_index

    def write(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: Position | None = None,
        commit_index: int = 0,
    ) -> bool:
        """
        Take a write over; whether the log begins anew with it.

        `InvariantViolated`, and nothing changed, if it may not follow.
        """
        anew = self._outline.write(hard_state, entries, base, commit_index)
        if anew:
            self.entries.clear()
        if entries:
            del self.entries[entries[0].index - self.base_index - 1 :]
            self.entries += entries
        return anew

    def compact(self, base_index: int) -> None:
        """Drop the entries up to `base_index`; errors as of `Outline.compact`."""
        gone = base_index - self.base_index
        if self._outline.compact(base_index):
            del self.entries[:gone]
