"""
The log of one node as its core sees it: what is in memory, and how much of it
is durable.

    base_index < first_index ... persisted_index ... written_index ... last_index

Entries up to `base_index` are gone (a snapshot holds their effect); those up
to `written_index` have been handed to storage; those up to `persisted_index`
are durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raftd.core.messages import Entry
from raftd.errors import InvariantViolated


class Log:
    """
    Invariants, checked by `raftd.core.invariants`:

    - `base_index <= persisted_index <= written_index <= last_index`
    - the entry at list position i has index `base_index + 1 + i`
    - terms and times never decrease along the log
    """

    def __init__(
        self, entries: Sequence[Entry] = (), base_index: int = 0, base_term: int = 0
    ) -> None:
        """A log recovered from storage: all `entries` are durable."""
        self.base_index = base_index
        self.base_term = base_term
        self._entries = list(entries)
        self.written_index = self.persisted_index = self.last_index
        #: Writes under way: [number, last index that it makes durable].
        self._writes: deque[tuple[int, int]] = deque()

    @property
    def first_index(self) -> int:
        return self.base_index + 1

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def last_time_ms(self) -> int:
        """The leader's time of the last entry; 0 where there is none."""
        return self._entries[-1].time_ms if self._entries else 0

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None if the log does not hold it."""
        if self.base_index < index <= self.last_index:
            return self._entries[index - self.base_index - 1].term
        return self.base_term if index == self.base_index else None

    def entries(self, first: int, last: int) -> list[Entry]:
        """The entries from `first` to `last`, both included; the log must hold them."""
        if not self.base_index < first:
            raise InvariantViolated(
                f"entry {first} was asked for, and the log begins at {self.first_index}"
            )
        return self._entries[first - self.base_index - 1 : last - self.base_index]

    def batch(self, first: int, max_entries: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries from `first` on, at least one, at most `max_bytes` of data otherwise."""
        start = first - self.base_index - 1
        batch = self._entries[start : start + max_entries]
        size = 0
        for count, entry in enumerate(batch):
            size += len(entry.data)
            if size > max_bytes and count:
                return tuple(batch[:count])
        return tuple(batch)

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Whether a log that ends so is at least as up-to-date as this one (paper 5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def matching_hint(self, index: int, term: int) -> tuple[int, int]:
        """
        The last entry at or before `index` whose term is at most `term`, as
        (index, term): where a log with that (index, term) can begin to agree.
        """
        index = min(index, self.last_index)
        while index > self.base_index:
            entry_term = self._entries[index - self.base_index - 1].term
            if entry_term <= term:
                return index, entry_term
            index -= 1
        return self.base_index, self.base_term

    # -- changing it ---------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Entries that follow the last one."""
        self._entries.extend(entries)

    def truncate(self, first_removed: int) -> None:
        """
        Cut off the entries from `first_removed` on, to be replaced.

        A write under way may hold what is cut off here; when it returns it
        must acknowledge only what is left of it.
        """
        del self._entries[first_removed - self.base_index - 1 :]
        kept = first_removed - 1
        self.written_index = min(self.written_index, kept)
        self.persisted_index = min(self.persisted_index, kept)
        self._writes = deque((number, min(last, kept)) for number, last in self._writes)

    # -- durability ----------------------------------------------------------

    def begin_write(self, number: int) -> list[Entry]:
        """What storage does not have yet, which it is now given as write `number`."""
        unwritten = self._entries[self.written_index - self.base_index :]
        self.written_index = self.last_index
        self._writes.append((number, self.last_index))
        return unwritten

    def persisted(self, number: int) -> None:
        """All writes up to `number` are durable."""
        while self._writes and self._writes[0][0] <= number:
            _, last = self._writes.popleft()
            self.persisted_index = max(self.persisted_index, last)
