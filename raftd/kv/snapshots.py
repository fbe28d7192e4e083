"""
The store's state on its way out, as of one moment, and on its way in.

A snapshot walks along the keys in order while commands are applied.  Records
never change, so only what a command is about to replace or remove has to be
kept, and only if the walk has not come past its key yet.  Nothing is copied
when the snapshot begins, and nothing is left to pay for when it ends or is
given up (`docs/store-snapshot.md` has the format).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush

import msgspec
from zope.interface import implementer

from raftd.interfaces import IRestore
from raftd.kv.keys import SortedKeys
from raftd.kv.records import FIRST_REVISION, Record
from raftd.slices import SLICE_BYTES, Unframer, frame

#: Keys that one slice walks past at most: about two milliseconds.
SLICE_KEYS = 4096

#: What a record takes in a slice beside its key and its value, about.
_RECORD_BYTES = 24


class _Head(msgspec.Struct, tag="raftd.kv/1", array_like=True, frozen=True, gc=False):
    """The first frame; frames of keys and records follow, `keys` keys in all."""

    revision: int
    keys: int


class State(msgspec.Struct):
    """What the store is, all of it: `keys` are those of `records`."""

    revision: int
    records: dict[bytes, Record]
    keys: SortedKeys


_Rows = list[tuple[bytes, Record]]

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_rows = msgspec.msgpack.Decoder(_Rows).decode


class Snapshot(Iterator[bytes]):
    """
    The slices of `state` as it is now.

    Before the store changes a key it calls `keep`.

    Invariants: every key up to and including `_passed` that was there at the
    beginning has been written.  For each key behind it that has changed
    since, `_kept` has the record that it had, None if it had none.  `_removed`
    is a heap of those keys in `_kept` that had one, so that the walk finds
    them even if they are gone.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._revision = state.revision
        self._keys = len(state.records)
        #: Keys still to be written; None before the head.
        self._left: int | None = None
        self._passed = b""
        self._kept: dict[bytes, Record | None] = {}
        self._removed: list[bytes] = []
        self._superseded = False

    @property
    def done(self) -> bool:
        """Whether nothing more will be drawn."""
        return self._left == 0

    def close(self) -> None:
        """Give it up; nothing happens if it is done."""
        self._left = 0
        self._kept.clear()
        self._removed.clear()

    def supersede(self) -> None:
        """Give it up because another one begins; to draw on is a mistake then."""
        if not self.done:
            self._superseded = True
            self.close()

    def keep(self, key: bytes, record: Record | None) -> None:
        """`key`, which has `record`, or none, is about to change."""
        if key > self._passed and key not in self._kept:
            self._kept[key] = record
            if record is not None:
                heappush(self._removed, key)

    def __next__(self) -> bytes:
        if self._superseded:
            raise RuntimeError("Another snapshot was begun; this one is at its end.")
        if self._left is None:
            self._left = self._keys
            return frame(_encode(_Head(self._revision, self._keys)))
        if self._left == 0:
            raise StopIteration
        begin = self._passed
        rows = self._walk()
        assert self._passed > begin, "keys that were there at the beginning are lost"
        self._left -= len(rows)
        if self._left == 0:
            self.close()
        return frame(_encode(rows))

    def _walk(self) -> _Rows:
        """Go on along the keys until a slice is full; the keys and what they had."""
        rows: _Rows = []
        records, kept, removed = self._state.records, self._kept, self._removed
        present = self._state.keys.range(self._passed + b"\0", None, SLICE_KEYS)
        at_end = len(present) < SLICE_KEYS
        position = size = 0
        while size < SLICE_BYTES:
            if position < len(present) and not (removed and removed[0] < present[position]):
                key = present[position]
                position += 1
                if removed and removed[0] == key:
                    heappop(removed)
            elif removed and (at_end or position < len(present)):
                key = heappop(removed)
            else:
                break
            record = kept.pop(key) if key in kept else records[key]
            self._passed = key
            if record is not None:
                rows.append((key, record))
                size += len(key) + len(record.value) + _RECORD_BYTES
        return rows


@implementer(IRestore)
class Restore:
    """A state on its way in; `done` is called with it when it is complete."""

    def __init__(self, done: Callable[[State], None]) -> None:
        self._done = done
        self._frames = Unframer()
        self._head: _Head | None = None
        self._state = State(FIRST_REVISION, {}, SortedKeys())
        self._last_key = b""
        #: Nothing more may be written: it was finished, or it failed.
        self._over = False

    def write(self, data: bytes) -> None:
        """See `IRestore.write`."""
        if self._over:
            raise ValueError("The state of the store is over, or was no such state.")
        self._frames.feed(data)
        try:
            while (content := self._frames.take()) is not None:
                self._take(content)
        except (msgspec.MsgspecError, RecursionError) as e:
            self._over = True
            raise ValueError(f"Not the state of a store: {e}") from None
        except ValueError:
            self._over = True
            raise

    def _take(self, content: bytes) -> None:
        if self._head is None:
            self._head = _decode_head(content)
            self._state.revision = self._head.revision
            if self._head.revision < FIRST_REVISION or self._head.keys < 0:
                raise ValueError("The head of the state of a store makes no sense.")
            return
        if len(self._state.records) == self._head.keys:
            raise ValueError("There is more than the state of the store.")
        rows = _decode_rows(content)
        last_key, revision = self._last_key, self._head.revision
        for key, record in rows:
            if key <= last_key:
                raise ValueError("The keys of a store are not in order.")
            last_key = key
            if not _possible(record, revision):
                raise ValueError(f"The record of key {key!r} makes no sense.")
        self._last_key = last_key
        self._state.records.update(rows)
        self._state.keys.extend([key for key, _ in rows])
        if len(self._state.records) > self._head.keys:
            raise ValueError("There are more keys than the state of the store has.")

    def finish(self) -> None:
        """See `IRestore.finish`."""
        over, self._over = self._over, True
        if (
            over
            or self._head is None
            or len(self._state.records) != self._head.keys
            or self._frames.take_rest()
        ):
            raise ValueError("The state of the store is not complete, or there is more.")
        self._done(self._state)


def _possible(record: Record, revision: int) -> bool:
    return (
        FIRST_REVISION < record.create_revision <= record.mod_revision <= revision
        and 0 < record.version <= record.mod_revision - record.create_revision + 1
        and record.lease >= 0
    )
