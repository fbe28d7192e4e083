"""
The order of changes: for each revision above the compacted one, what it changed
and what that replaced.

So the versions of a key are a chain: what the `mod_revision` of one of them
replaced is the one before.  To forget revisions is to let go of the ends of
chains, and no key has to be looked up for it.

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

#: Dictionaries for what a revision replaced that replaced more than a part has: one
#: that grows moves all that it has at once.
_REPLACED_SHARDS = 256

#: What one revision changed, in order: one version, or parts with many.
Change = KeyValue | tuple[tuple[KeyValue, ...], ...]

#: The versions before those, tombstones too: that of the only key, or those of
#: several, by their keys, in dictionaries by the hashes of these; None: there were none.
Replaced = KeyValue | tuple[dict[bytes, KeyValue], ...] | None

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
    """What the revision that is being made has changed so far, and what that replaced."""

    __slots__ = ("_part", "_parts", "_replaced")

    def __init__(self) -> None:
        self._parts: list[tuple[KeyValue, ...]] = []
        self._part: list[KeyValue] = []
        self._replaced: tuple[dict[bytes, KeyValue], ...] = ({},)

    def add(self, record: KeyValue, replaced: KeyValue | None) -> None:
        """The next change; a key comes once."""
        self._part.append(record)
        if len(self._part) == PART_RECORDS:
            self._parts.append(tuple(self._part))
            self._part.clear()
        if replaced is not None:
            shard = _shard_of(record.key, self._replaced)
            shard[record.key] = replaced
            if len(shard) > PART_RECORDS and len(self._replaced) == 1:
                self._spread(shard)

    def _spread(self, only: dict[bytes, KeyValue]) -> None:
        """What was one dictionary is many."""
        self._replaced = tuple({} for _ in range(_REPLACED_SHARDS))
        for key, record in only.items():
            _shard_of(key, self._replaced)[key] = record

    def __bool__(self) -> bool:
        return bool(self._part or self._parts)

    def change(self) -> Change:
        """All that was changed."""
        if not self._parts and len(self._part) == 1:
            return self._part[0]
        return (*self._parts, tuple(self._part)) if self._part else tuple(self._parts)

    def replaced(self) -> Replaced:
        """All that was replaced."""
        if not self._parts and len(self._part) == 1:
            # No dictionary for the one key of a revision, as most have.
            return self.replaced_of(self._part[0].key)
        return self._replaced if any(self._replaced) else None

    def replaced_of(self, key: bytes) -> KeyValue | None:
        """What `key` was before; None if it was not there, or was not changed."""
        return _replaced_of(key, self._replaced)


class History:
    """
    What each revision changed and replaced, up to `last`; those up to `forgotten`
    are not there any more.

    Invariant: revision `r` is at `r % CHUNK_REVISIONS` of the chunk
    `r // CHUNK_REVISIONS - _base`; the last chunk, `_open`, is the only one
    that is not full.  A list or tuple that was forgotten in part is replaced,
    never changed in place; `_open` grows.  All this holds for what was
    changed and for what was replaced alike.
    """

    __slots__ = (
        "_base",
        "_full",
        "_full_replaced",
        "_full_singly",
        "_open",
        "_open_replaced",
        "forgotten",
        "last",
    )

    def __init__(self, forgotten: int = FIRST_REVISION) -> None:
        self.forgotten = self.last = forgotten
        self._base = (forgotten + 1) >> _CHUNK_BITS
        self._full: list[tuple[Change, ...]] = []
        self._full_replaced: list[tuple[Replaced, ...]] = []
        #: Whether each revision of a full chunk changed a single key.
        self._full_singly: list[bool] = []
        self._open: list[Change] = [_NOTHING] * ((forgotten + 1) & _WITHIN)
        self._open_replaced: list[Replaced] = [None] * len(self._open)

    def append(self, change: Change, replaced: Replaced) -> None:
        """What the next revision changed, and what that replaced."""
        self.last += 1
        self._open_replaced.append(replaced)
        self._open.append(change)
        if len(self._open) == CHUNK_REVISIONS:
            self._full.append(tuple(self._open))
            self._full_replaced.append(tuple(self._open_replaced))
            self._full_singly.append(set(map(type, self._open)) == {KeyValue})
            # New lists: a walk may hold the old one.
            self._open, self._open_replaced = [], []

    def at(self, revision: int) -> Change:
        """What `revision` changed; above `forgotten`, up to `last`."""
        chunk = (revision >> _CHUNK_BITS) - self._base
        if chunk < len(self._full):
            return self._full[chunk][revision & _WITHIN]
        return self._open[revision & _WITHIN]

    def portion_end(self, after: int, max_changes: int) -> int:
        """
        The last revision up to which those behind `after` changed `max_changes` keys
        at most, or the next one, however many it changed; from `forgotten` on.

        Chunks of single keys are not looked into: what is old is far away in memory.
        """
        end, left = after, max_changes
        while end < self.last and left > 0:
            chunk, within = divmod(end + 1, CHUNK_REVISIONS)
            chunk -= self._base
            if chunk < len(self._full) and self._full_singly[chunk]:
                changes = revisions = min(left, CHUNK_REVISIONS - within)
            else:
                changes, revisions = _changes_of(self.at(end + 1)), 1
            left -= changes
            if left >= 0:
                end += revisions
        return max(end, after + 1)

    def replaced_of(self, key: bytes, revision: int) -> KeyValue | None:
        """
        What `key`, which `revision` has changed, was before, perhaps a tombstone;
        None if it was nothing, or if the revision is forgotten.
        """
        if revision <= self.forgotten:
            return None
        chunk = (revision >> _CHUNK_BITS) - self._base
        if chunk < len(self._full_replaced):
            return _replaced_of(key, self._full_replaced[chunk][revision & _WITHIN])
        return _replaced_of(key, self._open_replaced[revision & _WITHIN])

    def oldest_replaced(self, revision: int) -> Sequence[Replaced]:
        """What the revisions replaced that `take` would let go of, in order."""
        begin, end = self._oldest(revision)
        return (self._full_replaced[0] if self._full else self._open_replaced)[begin:end]

    def take(self, revision: int) -> tuple[list[Change], list[Replaced]]:
        """
        Let go of some revisions from the oldest on, up to `revision` at most:
        those of one chunk.  What they changed and what that replaced, the latest
        first.
        """
        begin, end = self._oldest(revision)
        self.forgotten += end - begin
        if self._full:
            changes, replaced = self._full[0], self._full_replaced[0]
            if end == CHUNK_REVISIONS:
                del self._full[0], self._full_replaced[0], self._full_singly[0]
                self._base += 1
            else:
                self._full[0] = (_NOTHING,) * end + changes[end:]
                self._full_replaced[0] = (None,) * end + replaced[end:]
            return list(reversed(changes[begin:end])), list(reversed(replaced[begin:end]))
        opened, replacing = self._open, self._open_replaced
        self._open = [_NOTHING] * end + opened[end:]
        self._open_replaced = [None] * end + replacing[end:]
        return opened[begin:end][::-1], replacing[begin:end][::-1]

    def _oldest(self, revision: int) -> tuple[int, int]:
        """Where in the first chunk those begin that are there, and end up to `revision`."""
        begin = self.forgotten + 1
        return begin & _WITHIN, (min(revision, begin | _WITHIN) & _WITHIN) + 1

    def chunks(self) -> Sequence[Sequence[Change] | Sequence[Replaced]]:
        """All that there is, some hundred together; not to be changed."""
        return [*self._full, self._open, *self._full_replaced, self._open_replaced]

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


def _changes_of(change: Change) -> int:
    """How many keys a revision changed."""
    return 1 if isinstance(change, KeyValue) else sum(map(len, change))


def _shard_of(key: bytes, shards: tuple[dict[bytes, KeyValue], ...]) -> dict[bytes, KeyValue]:
    return shards[hash(key) % len(shards)]


def _replaced_of(key: bytes, replaced: Replaced) -> KeyValue | None:
    return _shard_of(key, replaced).get(key) if isinstance(replaced, tuple) else replaced
