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
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import InvariantViolated


class Log:
    """
    Invariants, checked by `raftd.core.invariants`:

    - `base_index <= persisted_index <= written_index <= last_index`
    - `last_index` is `base_index` and the number of entries
    - the entry at list position i has index `base_index + 1 + i`
    - terms and times never decrease along the log
    """

    def __init__(
        self, entries: Sequence[Entry] = (), base_index: int = 0, base_term: int = 0
    ) -> None:
        """A log recovered from storage: all `entries` are durable."""
        self.base_index = base_index
        self.base_term = base_term
        self._base_time_ms = 0
        self._entries = list(entries)
        self.last_index = base_index + len(entries)
        #: Lists that are not part of the log any more, to be let go of by `free`.
        self._dropped: list[list[Entry]] = []
        self.written_index = self.persisted_index = self.last_index
        #: Writes under way: (number, last index that it makes durable).
        self._writes: deque[tuple[int, int]] = deque()
        #: Storage must be told that the log begins anew behind `base_index`.
        self._reset = False

    @property
    def first_index(self) -> int:
        return self.base_index + 1

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def last_time_ms(self) -> int:
        """The leader's time of the last entry that was ever here; 0 where there was none."""
        return self._entries[-1].time_ms if self._entries else self._base_time_ms

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

    def batch(
        self, first: int, max_entries: int, max_bytes: int
    ) -> tuple[tuple[Entry, ...], int]:
        """
        Entries from `first` on, at least one, at most `max_bytes` of data
        otherwise; and how many bytes of data they have.
        """
        start = first - self.base_index - 1
        batch = self._entries[start : start + max_entries]
        size = 0
        for count, entry in enumerate(batch):
            if size + len(entry.data) > max_bytes and count:
                return tuple(batch[:count]), size
            size += len(entry.data)
        return tuple(batch), size

    def tail_begin(self, index: int, max_entries: int, max_bytes: int) -> int:
        """
        What to compact up to so that of the entries up to `index` the last stay,
        with at most so many bytes of data in all.
        """
        begin, size = max(index - max_entries, self.base_index), 0
        for at in range(index, begin, -1):
            size += len(self._entries[at - self.base_index - 1].data)
            if size > max_bytes:
                return at
        return begin

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
        self.last_index += len(entries)

    def truncate(self, first_removed: int) -> None:
        """
        Cut off the entries from `first_removed` on, to be replaced.

        A write under way may hold what is cut off here; when it returns it
        must acknowledge only what is left of it.
        """
        del self._entries[first_removed - self.base_index - 1 :]
        kept = self.last_index = first_removed - 1
        self.written_index = min(self.written_index, kept)
        self.persisted_index = min(self.persisted_index, kept)
        self._writes = deque((number, min(last, kept)) for number, last in self._writes)

    def fit(self, snapshot: SnapshotMetadata, commit_index: int = 0) -> None:
        """
        Fit a log that was recovered to the snapshot that was recovered with it.

        It begins anew behind the snapshot if it does not lead up to it: a
        crash came between the snapshot and the log's beginning anew.

        `commit_index` is how far it was known to be committed when it was
        written.  `InvariantViolated` if there is a gap between the two, or
        if entries that were committed are not there: whoever went on without
        them could elect a leader that lacks them, too.
        """
        index, term = snapshot.last_included_index, snapshot.last_included_term
        if self.base_index > index:
            raise InvariantViolated(
                f"the log begins with entry {self.first_index}, and the last snapshot ends "
                f"with entry {index}: what is between them is missing"
            )
        if self.term_at(index) != term:
            # A base is committed, as is all that a snapshot holds; and a
            # snapshot is installed only beyond what is known to be committed.
            # So these two are not of one history, or the log has lost its end.
            if index == self.base_index or index <= commit_index:
                raise InvariantViolated(
                    f"the log was committed up to entry {max(self.base_index, commit_index)}, "
                    f"and it does not hold entry {index} of term {term}, with which the last "
                    "snapshot ends: one of them is not this member's, or damaged"
                )
            self.reset(snapshot)
        elif self.base_index == index:
            self._base_time_ms = snapshot.time_ms
        if commit_index > self.last_index:
            # It was written with or after all of these entries.
            raise InvariantViolated(
                f"the log was committed up to entry {commit_index}, and it ends with entry "
                f"{self.last_index}: its end was lost"
            )

    def compact(self, index: int) -> None:
        """
        Drop the entries up to `index`, which must be durable, or do nothing if
        they are gone: a snapshot holds their effect.
        """
        if index <= self.base_index:
            return
        if index > self.persisted_index:
            raise InvariantViolated(f"entry {index} is not durable and cannot be dropped")
        base = self._entries[index - self.base_index - 1]
        self._dropped.append(self._entries)
        self._entries = self._entries[index - self.base_index :]
        self.base_index, self.base_term, self._base_time_ms = index, base.term, base.time_ms

    def reset(self, snapshot: SnapshotMetadata) -> None:
        """
        Begin anew behind a snapshot that is durable and that the log does not
        lead up to: nothing of the log remains.
        """
        index = snapshot.last_included_index
        self._dropped.append(self._entries)
        self._entries = []
        self.base_index, self.base_term = index, snapshot.last_included_term
        self._base_time_ms = snapshot.time_ms
        self.last_index = self.written_index = self.persisted_index = index
        self._writes = deque((number, index) for number, _ in self._writes)
        self._reset = True

    def free(self, max_entries: int) -> bool:
        """
        Let go of some entries that `compact` or `reset` has dropped: freeing a
        million of them at once takes a tenth of a second.  Whether there are more.
        """
        if self._dropped:
            del self._dropped[-1][-max_entries:]
            if not self._dropped[-1]:
                self._dropped.pop()
        return bool(self._dropped)

    # -- durability ----------------------------------------------------------

    @property
    def is_written(self) -> bool:
        """Whether storage has been given everything."""
        return self.written_index == self.last_index and not self._reset

    def base_to_write(self) -> tuple[int, int] | None:
        """(index, term) behind which storage must begin anew, if it must."""
        return (self.base_index, self.base_term) if self._reset else None

    def begin_write(self, number: int) -> list[Entry]:
        """What storage does not have yet, which it is now given as write `number`."""
        unwritten = self._entries[self.written_index - self.base_index :]
        self.written_index = self.last_index
        self._reset = False
        self._writes.append((number, self.last_index))
        return unwritten

    def persisted(self, number: int) -> None:
        """All writes up to `number` are durable."""
        while self._writes and self._writes[0][0] <= number:
            _, last = self._writes.popleft()
            self.persisted_index = max(self.persisted_index, last)
