"""
The store's state on its way out, as of one moment, and on its way in
(`docs/store-snapshot.md` has the format), and the digest over it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator

import msgspec
from msgspec.structs import force_setattr
from zope.interface import implementer

from raftd.interfaces import IRestore
from raftd.kv.history import History
from raftd.kv.leases import MAX_LEASES
from raftd.kv.records import FIRST_REVISION
from raftd.kv.results import KeyValue, LeaseResult
from raftd.kv.versions import Versions
from raftd.kv.walks import Head, LeaseRow, Walk
from raftd.slices import Unframer, frame

_MAX_INT = (1 << 63) - 1

#: The greatest revision that a new cluster begins with.  As many come behind it
#: before a number is too large for the formats, which no cluster lives to see.
MAX_BEGINNING = 1 << 62

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_leases = msgspec.msgpack.Decoder(list[LeaseRow]).decode
_decode_records = msgspec.msgpack.Decoder(list[KeyValue]).decode


class Snapshot(Iterator[bytes]):
    """The slices of a walk; dropping it, or `close`, gives it up."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        # The walk does not refer to this, so that both go when this is dropped.
        self._slices = _slices(walk)

    def __next__(self) -> bytes:
        return next(self._slices)

    def close(self) -> None:
        """Give it up; nothing happens if it is at its end."""
        self._slices.close()
        self._walk.close()


def _slices(walk: Walk) -> Generator[bytes, None, None]:
    yield frame(_encode(walk.head))
    for section in walk.sections():
        for rows in section:
            yield frame(_encode(rows))
        yield frame(b"")


def digest(walk: Walk) -> Generator[None, None, bytes]:
    """
    A SHA-256 over the whole state, in steps as long as slices: the head, then
    each row, and nil behind each section, all in MessagePack.

    How a snapshot is cut into slices has no part in it.
    """
    sha256 = hashlib.sha256(_encode(walk.head))
    for section in walk.sections():
        for rows in section:
            sha256.update(b"".join(map(_encode, rows)))
            yield
        sha256.update(_encode(None))
    return sha256.digest()


class State(msgspec.Struct):
    """All that a store is."""

    revision: int
    compacted_revision: int
    quota_bytes: int
    versions: Versions


#: Sections of a state: leases, keys, changes.
_LEASES, _KEYS, _CHANGES, _END = range(4)


@implementer(IRestore)
class Restore:
    """A state on its way in; `done` is called with it when it is complete."""

    def __init__(self, done: Callable[[State], None], ahead: int | None = None) -> None:
        """`ahead`: as of `moved_on`, for a new cluster; None: the cluster's own snapshot."""
        self._done = done
        self._ahead = ahead
        self._frames = Unframer()
        self._head: Head | None = None
        self._section = _LEASES
        self._versions = Versions(FIRST_REVISION)
        self._last_key = b""
        self._last_number = 0
        #: The revision that comes in, and which keys it has changed so far.
        self._revision = FIRST_REVISION
        self._changed: set[bytes] = set()
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
            self._take_head(_decode_head(content))
        elif self._section == _END:
            raise ValueError("There is more than the state of the store.")
        elif not content:
            self._section += 1
        elif self._section == _LEASES:
            for row in _decode_leases(content):
                self._take_lease(row)
        elif self._section == _KEYS:
            self._take_keys(_decode_records(content))
        else:
            for record in _decode_records(content):
                self._take_change(record)

    def _take_head(self, head: Head) -> None:
        if (
            not 0 <= head.compacted_revision <= head.revision <= _MAX_INT
            or head.revision < FIRST_REVISION
            or not 0 <= head.quota_bytes <= _MAX_INT
            or head.keys < 0
            or not 0 < head.next_number <= _MAX_INT
        ):
            raise ValueError("The head of the state of a store makes no sense.")
        if self._ahead is not None and (
            max(head.revision + self._ahead, head.next_number) > MAX_BEGINNING
        ):
            raise ValueError(f"The store would begin behind revision or grant {MAX_BEGINNING}.")
        self._head = head
        self._revision = max(head.compacted_revision, FIRST_REVISION)
        self._versions = Versions(self._revision)
        self._versions.leases.next_number = head.next_number

    def _take_lease(self, row: LeaseRow) -> None:
        leases = self._versions.leases
        if (
            row.id in leases
            or len(leases) >= MAX_LEASES
            or not 0 < row.id <= _MAX_INT
            or not 0 < row.ttl_ms <= _MAX_INT
            or not self._last_number < row.number < leases.next_number
        ):
            raise ValueError(f"The lease {row.id} is there twice, or makes no sense.")
        self._last_number = row.number
        leases.load(LeaseResult(row.id, row.ttl_ms), row.number)

    def _take_keys(self, records: list[KeyValue]) -> None:
        assert self._head is not None
        last_key, revision = self._last_key, self._revision
        for record in records:
            key = record.key
            if key <= last_key:
                raise ValueError("The keys of a store are not in order.")
            last_key = key
            if not _possible(record, revision):
                raise ValueError(f"The record of key {key!r} makes no sense.")
            if record.create_revision == record.mod_revision:
                # One number rather than two equal ones, of which there are many.
                force_setattr(record, "create_revision", record.mod_revision)
        self._last_key = last_key
        self._versions.load(records)

    def _take_change(self, record: KeyValue) -> None:
        assert self._head is not None
        versions, key, revision = self._versions, record.key, record.mod_revision
        if revision != self._revision or not self._changed:
            self._complete_revision()
            if revision != self._revision + 1 or revision > self._head.revision:
                raise ValueError("The revisions of a store are not in order.")
            self._revision = revision
        if key in self._changed:
            raise ValueError(f"Revision {revision} changes the key {key!r} twice.")
        self._changed.add(key)
        if record.version:
            made = versions.draft_put(key, record.value, record.lease, revision)
        elif versions.get(key) is not None:
            made = versions.draft_delete(key, revision)
        else:
            raise ValueError(
                f"Revision {revision} deletes the key {key!r}, which is not there."
            )
        if made != record or not key or not 0 <= record.lease <= _MAX_INT:
            raise ValueError(f"What revision {revision} did to the key {key!r} makes no sense.")

    def _complete_revision(self) -> None:
        self._versions.complete()
        self._changed.clear()

    def finish(self) -> None:
        """See `IRestore.finish`."""
        over, self._over = self._over, True
        head, versions = self._head, self._versions
        if over or head is None or self._section != _END or self._frames.take_rest():
            raise ValueError("The state of the store is not complete, or there is more.")
        self._complete_revision()
        if self._revision != head.revision or versions.count != head.keys:
            raise ValueError("The state of the store has other revisions or keys than it says.")
        orphan = versions.leases.orphan()
        if orphan:
            raise ValueError(f"There are keys of the lease {orphan}, which is not there.")
        state = State(head.revision, head.compacted_revision, head.quota_bytes, versions)
        self._done(moved_on(state, self._ahead) if self._ahead else state)


def moved_on(state: State, ahead: int) -> State:
    """
    The same keys in a store that is `ahead` revisions further, and compacted there.

    For a store that begins with an old state: whoever has seen a revision that
    was lost is told that it was compacted, rather than shown another one.
    """
    versions, revision = state.versions, state.revision + ahead
    for _ in versions.compact(state.revision, None):
        pass
    versions.history = History(revision)
    return State(revision, revision, state.quota_bytes, versions)


def _possible(record: KeyValue, revision: int) -> bool:
    return (
        FIRST_REVISION < record.create_revision <= record.mod_revision <= revision
        and 0 < record.version <= record.mod_revision - record.create_revision + 1
        and 0 <= record.lease <= _MAX_INT
    )
