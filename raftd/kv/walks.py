"""
The whole logical state of the store as of one moment, row by row, in an order
that depends on nothing else.

A walk goes along while commands are applied.  Versions never change, and what
was written since is told by its revision; so writes cost a walk nothing.  Only
what a compaction removes has to be kept for it, and only if the walk has not
come past it yet.  Nothing but references is copied when it begins, and nothing
is left to pay for when it ends or is given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import msgspec

from raftd.kv.records import FIRST_REVISION
from raftd.kv.results import KeyValue
from raftd.kv.versions import Versions
from raftd.slices import SLICE_BYTES

#: Keys that are walked past at a time, at most: about two milliseconds.
SLICE_KEYS = 4096

#: What a row takes beside its key and its value, about.
_ROW_BYTES = 24


class Head(msgspec.Struct, tag="raftd.kv/3", array_like=True, frozen=True, gc=False):
    """
    What the store is besides its rows; `keys` is how many keys are there, and
    `next_number` that of the next lease that is granted.
    """

    revision: int
    compacted_revision: int
    quota_bytes: int
    keys: int
    next_number: int


class LeaseRow(msgspec.Struct, tag=5, array_like=True, frozen=True, gc=False):
    """A lease, and which grant it was (`Leases`)."""

    id: int
    ttl_ms: int
    number: int


#: Rows: leases in the order in which they were granted; or what keys were as of
#: the compacted revision, in the order of the keys; or what was changed since,
#: in order, deletes as tombstones.
Rows = Sequence[LeaseRow] | Sequence[KeyValue]


class Walk:
    """
    The state of `versions` as of this call.

    Before a compaction removes a version it calls `keep`.

    Invariants: every key up to and including `_passed` that was there as of
    the compacted revision has been given.  Of each key behind it the version
    as of then is still in `_versions`, or in `_kept`; `_gone` is a heap of the
    keys in `_kept`.
    """

    def __init__(self, versions: Versions, head: Head) -> None:
        self.head = head
        self._versions = versions
        self._leases = versions.leases.pinned()
        self._numbers = versions.leases.pinned_numbers()
        since = max(head.compacted_revision, FIRST_REVISION)
        self._changes = versions.history.walk(since, head.revision)
        self._passed = b""
        self._kept: dict[bytes, KeyValue] = {}
        self._gone: list[bytes] = []
        #: Nothing has to be kept any more.
        self.done = False

    def close(self) -> None:
        """Give it up; nothing happens if it is over."""
        self.done = True
        self._kept.clear()
        self._gone.clear()

    def keep(self, record: KeyValue) -> None:
        """`record` is about to be removed."""
        if (
            record.mod_revision <= self.head.compacted_revision
            and record.key > self._passed
            and not self.done
        ):
            self._kept[record.key] = record
            heappush(self._gone, record.key)

    def sections(self) -> Iterator[Iterator[Rows]]:
        """
        The sections, to be drawn one after the other; each is some rows at a
        time, perhaps none, with no more than a slice should have.
        """
        yield self._some_leases()
        yield self._some_keys()
        self.close()
        yield self._some_changes()

    def _some_leases(self) -> Iterator[Rows]:
        for begin in range(0, len(self._leases), SLICE_KEYS):
            leases = self._leases[begin : begin + SLICE_KEYS]
            yield [LeaseRow(x.id, x.ttl_ms, self._numbers[x.id]) for x in leases]
        self._leases.clear()
        self._numbers.clear()

    def _some_keys(self) -> Iterator[Rows]:
        """What keys were as of the compacted revision."""
        compacted, kept, gone = self.head.compacted_revision, self._kept, self._gone
        if compacted <= FIRST_REVISION:
            return
        slice_ = _Slice()
        while not self.done:
            # What is compacted from here on is kept, so that this list is good
            # until it is through.
            keys = self._versions.keys(self._passed + b"\0", None, SLICE_KEYS)
            for key in keys:
                while gone and gone[0] < key:
                    if slice_.add(kept.pop(self._pass(heappop(gone)))):
                        yield slice_.take()
                if gone and gone[0] == key:
                    record: KeyValue | None = kept.pop(heappop(gone))
                else:
                    record = self._versions.at(key, compacted)
                self._pass(key)
                if record is not None and slice_.add(record):
                    yield slice_.take()
            if len(keys) < SLICE_KEYS:
                break
            yield slice_.take()
        while gone:
            if slice_.add(kept.pop(self._pass(heappop(gone)))):
                yield slice_.take()
        if slice_.rows:
            yield slice_.take()

    def _pass(self, key: bytes) -> bytes:
        self._passed = key
        return key

    def _some_changes(self) -> Iterator[Rows]:
        slice_ = _Slice()
        for records in self._changes:
            for record in records:
                if slice_.add(record):
                    yield slice_.take()
        if slice_.rows:
            yield slice_.take()


class _Slice:
    """Rows until there are enough of them."""

    __slots__ = ("rows", "size")

    def __init__(self) -> None:
        self.rows: list[KeyValue] = []
        self.size = 0

    def add(self, record: KeyValue) -> bool:
        """Add a row; whether that is enough."""
        self.rows.append(record)
        self.size += len(record.key) + len(record.value) + _ROW_BYTES
        return self.size >= SLICE_BYTES

    def take(self) -> list[KeyValue]:
        rows, self.rows, self.size = self.rows, [], 0
        return rows
