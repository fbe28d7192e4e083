"""
Every version of every key that can still be read.

The newest version of a key is in a dictionary, and those before it are what the
history says was replaced (`raftd.kv.history`): a chain from the newest one back.
A reader sees the versions as of a revision: what a later one has written or
deleted already, in steps, is not there for it (`raftd.kv.ranges`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import chain

from raftd.kv.history import Change, Draft, History, Replaced
from raftd.kv.keys import SortedKeys
from raftd.kv.leases import Leases
from raftd.kv.records import VERSION_OVERHEAD_BYTES, size_of, tombstone
from raftd.kv.results import KeyValue

#: Keys that one step of a long operation looks at or changes: about a millisecond.
STEP_KEYS = 512

#: Dictionaries that the keys are spread over, by their hashes.  A dictionary
#: that grows moves all that it has at once, which takes 30 ms for 700,000 keys.
#: Which key is in which differs between processes, and nothing walks along them.
SHARDS = 256
_SHARD = SHARDS - 1

#: How many versions of a key there are between two marks, less one: a power of two, less one.
_MARK = 15


class Versions:
    """
    Invariants: `_newest` has the newest version of each key, or the tombstone
    of one that was deleted, as long as a revision that can be read shows what was
    there before.  The former are in `live`, the latter in `deleted`; `count` is
    how many are in `live`, and `_tombstones` has all tombstones that count, oldest
    first.  `newest` is the greatest revision that has written anything, complete
    or not; `_draft` is what it has written if it is not.  `size_bytes` is the sum
    of `size_of` over all versions and tombstones.

    Whoever looks for an old version goes along the chain from the newest one, or
    from a mark: `_marks` has the revisions that replaced every sixteenth version of a
    key, and tombstones, in order, and some before those that are compacted already.
    So at most seventeen steps are left, however often a key was changed.
    """

    __slots__ = (
        "_draft",
        "_marks",
        "_newest",
        "_tombstones",
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
        self._newest: list[dict[bytes, KeyValue]] = [{} for _ in range(SHARDS)]
        self._marks: list[dict[bytes, list[int]]] = [{} for _ in range(SHARDS)]
        self._tombstones: deque[KeyValue] = deque()
        self._draft = Draft()
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
            chunks = (*self.live.chunks(), *self.deleted.chunks(), *self.history.chunks())
            self.discard([*chunks, *self._newest, *self._marks, self._tombstones])

    # -- reading ---------------------------------------------------------------

    def get(self, key: bytes) -> KeyValue | None:
        """What `key` is by now; None if it is not there."""
        record = self._newest[hash(key) & _SHARD].get(key)
        return record if record is not None and record.version else None

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """What `key` was as of `revision`; None if it was not there."""
        shard = hash(key) & _SHARD
        record = self._newest[shard].get(key)
        if record is not None and record.mod_revision > revision:
            record = self._before(record, revision, self._marks[shard].get(key, ()))
        return record if record is not None and record.version else None

    def _before(self, record: KeyValue, revision: int, marks: Sequence[int]) -> KeyValue | None:
        """What the key of `record` was as of `revision`, before that; perhaps a tombstone."""
        key, changed = record.key, record.mod_revision
        i = bisect_right(marks, revision)
        if i < len(marks):
            changed = marks[i]
        while (before := self.replaced_of(key, changed)) is not None:
            changed = before.mod_revision
            if changed <= revision:
                break
        return before

    def replaced_of(self, key: bytes, revision: int) -> KeyValue | None:
        """
        What `key`, which `revision` has changed, was before, perhaps a tombstone;
        None if it was nothing, or if the revision is compacted.
        """
        if revision > self.history.last:
            return self._draft.replaced_of(key)
        return self.history.replaced_of(key, revision)

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
        """A new version of `key`, all that `revision` changes."""
        record, replaced = self._put(key, value, lease, revision)
        self.history.append(record, replaced)
        return record

    def draft_put(self, key: bytes, value: bytes, lease: int, revision: int) -> KeyValue:
        """A new version of `key`, which `revision` has not changed before, until `complete`."""
        record, replaced = self._put(key, value, lease, revision)
        self._draft.add(record, replaced)
        return record

    def _put(
        self, key: bytes, value: bytes, lease: int, revision: int
    ) -> tuple[KeyValue, KeyValue | None]:
        """Everything about a put but the history; the new version, and the one before."""
        self.newest = revision
        shard = hash(key) & _SHARD
        newest = self._newest[shard]
        old = newest.get(key)
        if old is None or not old.version:
            key = self._revive(key, old)
            record = KeyValue(key, value, revision, revision, 1, lease)
            if lease:
                self.leases.attach(lease, key)
        else:
            key = old.key  # not another object with the same bytes
            record = KeyValue(key, value, old.create_revision, revision, old.version + 1, lease)
            if lease != old.lease:
                if old.lease:
                    self.leases.detach(old.lease, key)
                if lease:
                    self.leases.attach(lease, key)
        if old is not None and not old.version & _MARK:
            self._marks[shard].setdefault(key, []).append(revision)
        newest[key] = record
        self.size_bytes += len(key) + len(value) + VERSION_OVERHEAD_BYTES
        return record, old

    def _revive(self, key: bytes, gone: KeyValue | None) -> bytes:
        """`key` was not there and will be; the same key, perhaps as an older object."""
        if gone is not None:
            key = gone.key
            self.deleted.remove(key)
        self.live.add(key)
        self.count += 1
        return key

    def load(self, records: list[KeyValue]) -> None:
        """Add the only versions of keys that are in order and behind all that are there."""
        for record in records:
            key = record.key
            self._newest[hash(key) & _SHARD][key] = record
            self.size_bytes += len(key) + len(record.value) + VERSION_OVERHEAD_BYTES
            if record.lease:
                self.leases.attach(record.lease, key)
        self.live.extend([record.key for record in records])
        self.count += len(records)

    def draft_delete(self, key: bytes, revision: int) -> KeyValue:
        """Delete `key`, which must be there, until `complete`; its tombstone."""
        self.newest = revision
        gone = self._bury(key, revision)
        self.live.remove(key)
        self.deleted.add(gone.key)
        return gone

    def draft_delete_all(self, keys: Sequence[bytes], revision: int) -> None:
        """Delete `keys`: all that are there from the first to the last, in order."""
        self.newest = revision
        for key in keys:
            self._bury(key, revision)
        self.live.remove_range(keys[0], keys[-1] + b"\0")
        self.deleted.update(keys)

    def _bury(self, key: bytes, revision: int) -> KeyValue:
        """Everything about a delete but `live` and `deleted`; the tombstone."""
        shard = hash(key) & _SHARD
        newest = self._newest[shard]
        old = newest[key]
        key = old.key
        gone = newest[key] = tombstone(key, revision)
        self._draft.add(gone, old)
        self._tombstones.append(gone)
        if not old.version & _MARK:
            self._marks[shard].setdefault(key, []).append(revision)
        if old.lease:
            self.leases.detach(old.lease, key)
        self.count -= 1
        self.size_bytes += size_of(gone)
        return gone

    def complete(self) -> None:
        """What was drafted, if anything was, is all that its revision changes."""
        if self._draft:
            self.history.append(self._draft.change(), self._draft.replaced())
            self._draft = Draft()

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
            # A chain that is cut is not there any more for those who are told to keep
            # what was: so they are told of all that goes first.
            for replaced in history.oldest_replaced(revision):
                done += 1
                if isinstance(replaced, KeyValue):
                    self._discount(replaced, revision, keep)
                elif replaced is not None:
                    for record in chain.from_iterable(map(dict.values, replaced)):
                        self._discount(record, revision, keep)
                        done += 1
                        if done >= STEP_KEYS:
                            done = 0
                            yield
            if done >= STEP_KEYS:
                done = 0
                yield
            yield from _let_go(*history.take(revision))
            yield from self._let_go_of_tombstones(history.forgotten)

    def _discount(
        self, record: KeyValue, revision: int, keep: Callable[[KeyValue], None] | None
    ) -> None:
        """`record` was replaced by a revision up to `revision`."""
        if record.version:
            self.size_bytes -= len(record.key) + len(record.value) + VERSION_OVERHEAD_BYTES
            if keep is not None:
                keep(record)
        if not record.version & _MARK:
            self._unmark(record.key, revision)

    def _unmark(self, key: bytes, revision: int) -> None:
        """The first of the marks of `key` need not be there any more."""
        shard = self._marks[hash(key) & _SHARD]
        marks = shard.get(key)
        # Many at a time, for the others move each time.
        if marks is not None and marks[len(marks) // 2] <= revision:
            del marks[: bisect_right(marks, revision)]
            if not marks:
                del shard[key]

    def _let_go_of_tombstones(self, revision: int) -> Generator[None, None, None]:
        """Of those up to `revision`: nothing that can be read shows what was before them."""
        tombstones, done = self._tombstones, 0
        while tombstones and tombstones[0].mod_revision <= revision:
            gone = tombstones.popleft()
            key = gone.key
            self.size_bytes -= size_of(gone)
            shard = hash(key) & _SHARD
            if self._newest[shard][key] is gone:
                self.deleted.remove(key)
                del self._newest[shard][key]
                if not self._newest[shard]:
                    # A dictionary does not give back its room by itself.
                    self._newest[shard] = {}
            done += 1
            if done % STEP_KEYS == 0:
                yield


def _let_go(changes: list[Change], replaced: list[Replaced]) -> Generator[None, None, None]:
    """Of what those have that are large, in steps: freeing takes its time, too."""
    done = 0
    while changes:
        change = changes.pop()
        if isinstance(change, tuple):
            parts = list(change)
            del change
            while parts:
                done += len(parts.pop())
                if done >= STEP_KEYS:
                    done = 0
                    yield
    while replaced:
        shards = replaced.pop()
        if isinstance(shards, tuple):
            for shard in shards:
                while len(shard) > STEP_KEYS:
                    for _ in range(STEP_KEYS):
                        shard.popitem()
                    yield
                done += len(shard)
                shard.clear()
                if done >= STEP_KEYS:
                    done = 0
                    yield
