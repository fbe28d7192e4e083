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


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    One write as the log keeps it; a format (`docs/log-format.md`).

    `hard_state` None keeps the one before.  `entries` are consecutive, and
    whatever the log holds at or behind the first of them is cut off.
    """

    hard_state: HardState | None
    entries: tuple[Entry, ...]


class Outline:
    """
    The hard state and the terms of a log's entries, without the entries.

    Invariants: indexes run from 1 to `last_index` without a gap; terms never
    go down along them; `_runs` has (first index, term) of each stretch of
    equal terms, both growing.
    """

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.last_index = 0
        self._runs: list[tuple[int, int]] = []

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Take a write over; `InvariantViolated`, and nothing changed, if it may not follow."""
        if hard_state is not None:
            self._check_hard_state(hard_state)
        if entries:
            self._append(entries)
        if hard_state is not None:
            self.hard_state = hard_state

    def _check_hard_state(self, new: HardState) -> None:
        old = self.hard_state
        if new.term < old.term:
            raise InvariantViolated(f"the term goes down from {old.term} to {new.term}")
        if new.term == old.term and old.voted_for not in (NOBODY, new.voted_for):
            raise InvariantViolated(
                f"the vote of term {new.term} changes from "
                f"{old.voted_for:016x} to {new.voted_for:016x}"
            )

    def _append(self, entries: Sequence[Entry]) -> None:
        first = entries[0].index
        if not 1 <= first <= self.last_index + 1:
            raise InvariantViolated(f"entry {first} does not follow entry {self.last_index}")
        term = self._term_before(first)
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
        while self._runs and self._runs[-1][0] >= first:
            self._runs.pop()
        self._runs += added
        self.last_index = first + len(entries) - 1

    def _term_before(self, index: int) -> int:
        """The term of the entry before `index`; 0 if there is none."""
        for first, term in reversed(self._runs):
            if first < index:
                return term
        return 0


class Replay:
    """A log as its writes have made it: the hard state and the entries, from index 1."""

    def __init__(self) -> None:
        self._outline = Outline()
        self.entries: list[Entry] = []

    @property
    def outline(self) -> Outline:
        """What the next write must follow."""
        return self._outline

    @property
    def hard_state(self) -> HardState:
        return self._outline.hard_state

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Take a write over; `InvariantViolated`, and nothing changed, if it may not follow."""
        self._outline.write(hard_state, entries)
        if entries:
            del self.entries[entries[0].index - 1 :]
            self.entries += entries
