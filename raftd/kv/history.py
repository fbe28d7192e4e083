"""
The order of changes: for each revision above the compacted one, what it changed.

Revisions are kept in chunks.  A full chunk is a tuple, and never changes: so
whoever walks along the changes, as a snapshot does, needs only hold on to the
chunks, and the garbage collector has nothing to look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, overload

from raftd.kv.records import FIRST_REVISION
from raftd.kv.results import KeyValue

_CHUNK_BITS = 8
#: Revisions in a chunk.
CHUNK_REVISIONS: Final = 1 << _CHUNK_BITS
_WITHIN = CHUNK_REVISIONS - 1

#: Versions in a part of a revision that changed many keys; its last part may have fewer.
PART_RECORDS = 512

#: What one revision changed, in order: one version, or parts with many.
Change = KeyValue | tuple[tuple[KeyValue, ...], ...]

_NOTHING: Change = ()


class ChangedKeys(Sequence[bytes]):
    """The keys of a `Change`, in order; nothing is copied."""

    def __init__(self, change: Change) -> None:
        self._parts = parts_of(change)
        self._length = sum(map(len, self._parts))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError("a revision changed fewer keys")
        return self._parts[index // PART_RECORDS][index % PART_RECORDS].key


class Draft:
    """What the revision that is being made has changed so far."""

    __slots__ = ("_part", "_parts")

    def __init__(self) -> None:
        self._parts: list[tuple[KeyValue, ...]] = []
        self._part: list[KeyValue] = []

    def add(self, record: KeyValue) -> None:
        """The next change; a key comes once."""
        self._part.append(record)
        if len(self._part) == PART_RECORDS:
            self._parts.append(tuple(self._part))
            self._part.clear()

    def __bool__(self) -> bool:
        return bool(self._part or self._parts)

    def change(self) -> Change:
        """All of it."""
        if not self._parts and len(self._part) == 1:
            return self._part[0]
        return (*self._parts, tuple(self._part)) if self._part else tuple(self._parts)


class History:
    """
    What each revision changed, up to `last`; those up to `forgotten` are not
    there any more.

    Invariant: revision `r` is at `r % CHUNK_REVISIONS` of the chunk
    `r // CHUNK_REVISIONS - _base`; the last chunk, `_open`, is the only one
    that is not full.  A list or tuple that was forgotten in part is replaced,
    never changed in place; `_open` grows.
    """

    __slots__ = ("_base", "_full", "_open", "forgotten", "last")

    def __init__(self, forgotten: int = FIRST_REVISION) -> None:
        self.forgotten = self.last = forgotten
        self._base = (forgotten + 1) >> _CHUNK_BITS
        self._full: list[tuple[Change, ...]] = []
        self._open: list[Change] = [_NOTHING] * ((forgotten + 1) & _WITHIN)

    def append(self, change: Change) -> None:
        """What the next revision changed."""
        self.last += 1
        self._open.append(change)
        if len(self._open) == CHUNK_REVISIONS:
            self._full.append(tuple(self._open))
            # A new list: a walk may hold the old one.
            self._open = []

    def at(self, revision: int) -> Change:
        """What `revision` changed; above `forgotten`, up to `last`."""
        chunk = (revision >> _CHUNK_BITS) - self._base
        if chunk < len(self._full):
            return self._full[chunk][revision & _WITHIN]
        return self._open[revision & _WITHIN]

    def take(self, revision: int) -> list[Change]:
        """
        Let go of some revisions from the oldest on, up to `revision` at most:
        those of one chunk.  What they changed, the latest first.
        """
        begin = self.forgotten + 1
        end = min(revision + 1, (begin | _WITHIN) + 1)
        chunk = self._full[0] if self._full else self._open
        stop = (end - 1 & _WITHIN) + 1
        taken = list(reversed(chunk[begin & _WITHIN : stop]))
        self.forgotten = end - 1
        if stop == CHUNK_REVISIONS:
            del self._full[0]
            self._base += 1
        elif self._full:
            self._full[0] = (_NOTHING,) * stop + self._full[0][stop:]
        else:
            self._open = [_NOTHING] * stop + self._open[stop:]
        return taken

    def chunks(self) -> Sequence[Sequence[Change]]:
        """All changes, in order, some hundred together; not to be changed."""
        return [*self._full, self._open]

    def walk(self, after: int, last: int) -> Iterator[Sequence[KeyValue]]:
        """
        What the revisions behind `after` up to `last` changed, in order, as
        of this call, whatever is appended or forgotten while it is drawn.

        One sequence has what a chunk changed, or a part.
        """
        return _walk([*self._full, self._open], self._base << _CHUNK_BITS, after + 1, last + 1)


def _walk(
    chunks: list[Sequence[Change]], first: int, begin: int, end: int
) -> Iterator[Sequence[KeyValue]]:
    """Of the revisions from `begin` up to, not including, `end`; `chunks` begin at `first`."""
    for chunk in chunks:
        run: list[KeyValue] = []
        for change in chunk[max(0, begin - first) : max(0, end - first)]:
            if isinstance(change, KeyValue):
                run.append(change)
                continue
            if run:
                yield run
                run = []
            yield from change
        if run:
            yield run
        first += CHUNK_REVISIONS


def parts_of(change: Change) -> tuple[tuple[KeyValue, ...], ...]:
    """The versions of a change, in order, in parts of `PART_RECORDS`."""
    return ((change,),) if isinstance(change, KeyValue) else change
