"""
Every version of every key that can still be read.

The newest version of a key that is there is in a dictionary, older ones
in another, so that most keys cost no container of their own.  A reader sees the
versions as of a revision: what a later one has written or deleted already, in
steps, is not there for it (`raftd.kv.ranges`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Sequence
from operator import attrgetter

import msgspec

from raftd.kv.history import Draft, History, parts_of
from raftd.kv.keys import SortedKeys
from raftd.kv.leases import Leases
from raftd.kv.records import VERSION_OVERHEAD_BYTES, size_of, tombstone
from raftd.kv.results import KeyValue

#: Keys that one step of a long operation looks at or changes: about a millisecond.
STEP_KEYS = 512

#: Up to so many older versions of a key are a tuple, which the garbage
#: collector soon leaves alone; more are a list, to which another is added
#: without a copy.
MAX_TUPLE_VERSIONS = 16

#: Dictionaries that the keys are spread over, by their hashes.  A dictionary
#: that grows moves all that it has at once, which takes 30 ms for 700,000 keys.
#: Which key is in which differs between processes, and nothing walks along them.
SHARDS = 256
_SHARD = SHARDS - 1

_mod_revision = attrgetter("mod_revision")


class Older(msgspec.Struct, gc=False):
    """
    All but the newest version of a key, ascending: two at least.

    The garbage collector does not see it, and so has nothing to look for in a
    dictionary of these; in one of tuples it would look at each of them.
    """

    records: tuple[KeyValue, ...] | list[KeyValue]

    def add(self, record: KeyValue) -> None:
        """The next one."""
        records = self.records
        if isinstance(records, list):
            records.append(record)
        elif len(records) < MAX_TUPLE_VERSIONS:
            self.records = (*records, record)
        else:
            self.records = [*records, record]


def records_of(older: Older | KeyValue) -> Sequence[KeyValue]:
    """All but the newest version of a key, ascending."""
    return (older,) if isinstance(older, KeyValue) else older.records


class Versions:
    """
    Invariants: a key is in `live` if it has a newest version in `_records`, and
    in `deleted` if that was deleted and older versions are still there; never
    in both.  `count` is how many are in `live`.  `_older` has all but the
    newest version of a key, and, if it was deleted, the tombstone too; the only
    one, as it is with most keys, is there itself.  At most one of them is at or
    below the compacted revision, and then it is no tombstone.  `newest` is the
    greatest revision that has written anything, complete or not.  `size_bytes`
    is the sum of `size_of` over all versions and tombstones.
    """

    __slots__ = (
        "_older",
        "_records",
        "count",
        "deleted",
        "discard",
        "history",
        "leases",
        "live",
        "newest",
        "size_bytes",
    )

    def __init__(self, forgotten: int) -> None:
        """Nothing yet; the first change will be that of the revision behind `forgotten`."""
        self._records: list[dict[bytes, KeyValue]] = [{} for _ in range(SHARDS)]
        self._older: list[dict[bytes, Older | KeyValue]] = [{} for _ in range(SHARDS)]
        self.count = 0
        self.live = SortedKeys()
        self.deleted = SortedKeys()
        self.leases = Leases()
        self.history = History(forgotten)
        self.newest = forgotten
        self.size_bytes = 0
        #: Takes the containers of this when nobody needs it any more, to let go
        #: of them bit by bit; None: they go at once.
        self.discard: Callable[[list[object]], None] | None = None

    def __del__(self) -> None:
        if self.discard is not None:
            chunks = (*self.live.chunks(), *self.deleted.chunks())
            self.discard([*chunks, *self._records, *self._older, *self.history.chunks()])

    # -- reading ---------------------------------------------------------------

    def get(self, key: bytes) -> KeyValue | None:
        """What `key` is by now; None if it is not there."""
        return self._records[hash(key) & _SHARD].get(key)

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """What `key` was as of `revision`; None if it was not there."""
        shard = hash(key) & _SHARD
        record = self._records[shard].get(key)
        if record is not None and record.mod_revision <= revision:
            return record
        older = self._older[shard].get(key)
        if older is None:
            return None
        records = records_of(older)
        i = bisect_right(records, revision, key=_mod_revision)
        if not i:
            return None
        record = records[i - 1]
        return record if record.version else None

    def keys(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """The first `limit` keys of a range that have any version, deleted ones too."""
        live = self.live.range(start, end, limit)
        deleted = self.deleted.range(start, end, limit)
        return sorted(live + deleted)[:limit] if deleted else live

    def last_keys(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """The last `limit` of them, the last one first."""
        live = self.live.last(start, end, limit)
        deleted = self.deleted.last(start, end, limit)
        return sorted(live + deleted, reverse=True)[:limit] if deleted else live

    # -- writing ---------------------------------------------------------------

    def put(self, key: bytes, value: bytes, lease: int, revision: int) -> KeyValue:
        """A new version of `key`, which `revision` has not changed before."""
        self.newest = revision
        shard = hash(key) & _SHARD
        records = self._records[shard]
        old = records.get(key)
        if old is None:
            key = self._revive(key, self._older[shard].get(key))
            record = KeyValue(key, value, revision, revision, 1, lease)
            if lease:
                self.leases.attach(lease, key)
        else:
            key = old.key  # not another object with the same bytes
            record = KeyValue(key, value, old.create_revision, revision, old.version + 1, lease)
            self._retire(shard, key, old)
            if lease != old.lease:
                if old.lease:
                    self.leases.detach(old.lease, key)
                if lease:
                    self.leases.attach(lease, key)
        records[key] = record
        self.size_bytes += len(key) + len(value) + VERSION_OVERHEAD_BYTES
        return record

    def _retire(self, shard: int, key: bytes, record: KeyValue) -> None:
        """`record` is the newest version of `key` no more, or never was: a tombstone."""
        retired = self._older[shard]
        older = retired.get(key)
        if older is None:
            retired[key] = record
        elif isinstance(older, KeyValue):
            retired[key] = Older((older, record))
        else:
            older.add(record)

    def _revive(self, key: bytes, older: Older | KeyValue | None) -> bytes:
        """`key` is not in `_records` and will be; the same key, perhaps as an older object."""
        if older is not None:
            key = records_of(older)[0].key
            self.deleted.remove(key)
        self.live.add(key)
        self.count += 1
        return key

    def load(self, records: list[KeyValue]) -> None:
        """Add the only versions of keys that are in order and behind all that are there."""
        for record in records:
            key = record.key
            self._records[hash(key) & _SHARD][key] = record
            self.size_bytes += len(key) + len(record.value) + VERSION_OVERHEAD_BYTES
            if record.lease:
                self.leases.attach(record.lease, key)
        self.live.extend([record.key for record in records])
        self.count += len(records)

    def delete(self, key: bytes, revision: int) -> KeyValue:
        """Delete `key`, which must be there; its tombstone."""
        self.newest = revision
        gone = self._bury(key, revision)
        self.live.remove(key)
        self.deleted.add(gone.key)
        return gone

    def delete_all(self, keys: Sequence[bytes], revision: int, draft: Draft) -> None:
        """Delete `keys`: all that are there from the first to the last, in order."""
        self.newest = revision
        for key in keys:
            draft.add(self._bury(key, revision))
        self.live.remove_range(keys[0], keys[-1] + b"\0")
        self.deleted.update(keys)

    def _bury(self, key: bytes, revision: int) -> KeyValue:
        """Everything about a delete but `live` and `deleted`; the tombstone."""
        shard = hash(key) & _SHARD
        old = self._records[shard].pop(key)
        self.count -= 1
        key = old.key
        gone = tombstone(key, revision)
        self._retire(shard, key, old)
        self._retire(shard, key, gone)
        self.size_bytes += size_of(gone)
        if old.lease:
            self.leases.detach(old.lease, key)
        return gone

    # -- compacting ------------------------------------------------------------

    def compact(
        self, revision: int, keep: Callable[[KeyValue], None] | None
    ) -> Generator[None, None, None]:
        """
        Remove, in steps, what only revisions below `revision` show.

        `keep` is called with each version, tombstones not, that is removed; it
        is None if nobody wants them.  Nothing must be written meanwhile.  What
        revisions from `revision` on show is the same all the time.
        """
        history, done = self.history, 0
        while history.forgotten < revision:
            changes = history.take(revision)
            # Each part is let go of as soon as it is done: freeing takes its time too.
            while changes:
                parts = list(reversed(parts_of(changes.pop())))
                while parts:
                    for record in parts[-1]:
                        self._supersede(record, revision, keep)
                    done += len(parts.pop())
                    if done >= STEP_KEYS:
                        done = 0
                        yield

    def _supersede(
        self, record: KeyValue, revision: int, keep: Callable[[KeyValue], None] | None
    ) -> None:
        """
        Remove the version before `record`, which made it invisible from
        `revision` on; and `record` itself if it is a tombstone and the last
        that `revision` shows.
        """
        key = record.key
        shard = hash(key) & _SHARD
        older = self._older[shard].get(key)
        if older is None:
            return
        records = records_of(older)
        # It is one of the first two, unless several of this key go at once: a
        # search looks at many records, each of which is far away in memory.
        if records[0] is record:
            i = 0
        elif len(records) > 1 and records[1] is record:
            i = 1
        elif records[-1].mod_revision < record.mod_revision:
            i = len(records)
        else:
            i = bisect_left(records, record.mod_revision, key=_mod_revision)
        if i:
            self._discount(records[i - 1], keep)
        if i + 1 < len(records) and records[i + 1].mod_revision <= revision:
            # It comes about itself, and all of this key goes at once then.
            return
        # A tombstone is among the older ones from its delete on until here.
        if not record.version:
            self._discount(record, keep)
            i += 1
        if i == len(records):
            self._forget(shard, key)
            if not record.version and key not in self._records[shard]:
                self.deleted.remove(key)
        elif isinstance(records, list) and len(records) - i > MAX_TUPLE_VERSIONS:
            # In place: a copy would have to look at every record for its count of references.
            del records[:i]
        elif i:
            self._older[shard][key] = _older_of(records[i:])

    def _discount(self, record: KeyValue, keep: Callable[[KeyValue], None] | None) -> None:
        """`record` is there no more; where it is in a list, it goes with those behind it."""
        self.size_bytes -= size_of(record)
        if keep is not None and record.version:
            keep(record)

    def _forget(self, shard: int, key: bytes) -> None:
        older = self._older[shard]
        del older[key]
        if not older:
            # A dictionary does not give back its room by itself.
            self._older[shard] = {}


def _older_of(few: Sequence[KeyValue]) -> Older | KeyValue:
    return few[0] if len(few) == 1 else Older(tuple(few))
