"""Compaction, quota, and long operations in steps."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import Compacted
from raftd.kv import versions
from raftd.kv.operations import (
    Checkpoint,
    Compact,
    DeleteRange,
    GrantLease,
    Operation,
    Put,
    Range,
    RevokeLease,
    SetQuota,
    encode_operation,
)
from raftd.kv.records import VERSION_OVERHEAD_BYTES
from raftd.kv.results import CompactResult, DeleteResult, KeyValue, NoResult, PutResult
from raftd.kv.store import Store
from raftd.test.kvrig import apply, apply_bytes, check_invariants, code_of, make_small, restored

ALL = Range(b"\0", b"\0")


class Compaction(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()

    def test_it_makes_no_revision(self) -> None:
        apply(self.store, Put(b"k", b"v"))
        self.assertEqual(apply(self.store, Compact(2)), CompactResult(2))
        self.assertEqual((self.store.revision, self.store.compacted_revision), (2, 2))

    def test_at_or_below_the_last_one_is_an_error(self) -> None:
        for _ in range(4):
            apply(self.store, Put(b"k", b"v"))
        for revision in (0, -1, -(2**62)):
            self.assertEqual(code_of(apply(self.store, Compact(revision))), "compacted")
        apply(self.store, Compact(3))
        before = self.store.digest()
        for revision in (3, 2, 0):
            error = apply(self.store, Compact(revision))
            assert isinstance(error, Compacted)
            self.assertEqual(error.revision, 3)
        self.assertEqual(self.store.digest(), before)
        self.assertEqual(apply(self.store, Compact(4)), CompactResult(4))

    def test_above_the_current_revision_is_an_error(self) -> None:
        self.assertEqual(code_of(apply(self.store, Compact(2))), "future_revision")
        self.assertEqual(apply(self.store, Compact(1)), CompactResult(1))

    def test_what_can_still_be_seen_stays(self) -> None:
        """And nothing else: at each revision, and between them."""
        operations: list[Operation] = [
            *(Put(b"%d" % (n % 3), b"%d" % n) for n in range(8)),
            DeleteRange(b"1"),
            Put(b"1", b"again"),
            DeleteRange(b"0", b"2"),
            Put(b"2", b"last"),
        ]
        for compacted in range(1, 14):
            store = Store()
            for operation in operations:
                apply(store, operation)
            seen = [store.range(Range(b"\0", b"\0", r)) for r in range(compacted, 14)]
            changed = [list(store.changed_keys(r)) for r in range(compacted + 1, 14)]
            apply(store, Compact(compacted))
            check_invariants(store)
            self.assertEqual(
                [store.range(Range(b"\0", b"\0", r)) for r in range(compacted, 14)], seen
            )
            self.assertEqual(
                [list(store.changed_keys(r)) for r in range(compacted + 1, 14)], changed
            )
        self.assertEqual((list(store._versions.deleted), store._versions.count), ([], 1))

    def test_what_an_event_was_before_stays_as_long_as_the_event(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        apply(self.store, Put(b"other", b""))
        apply(self.store, Put(b"k", b"2"))
        event = self.store.event(b"k", 4, True)
        apply(self.store, Compact(3))
        self.assertEqual(self.store.event(b"k", 4, True), event)

    def test_what_was_compacted_is_let_go_of(self) -> None:
        """Nothing refers to it any more, wherever in a chunk of revisions it was."""
        make_small(self.patch)
        values = [b"value %d" % n for n in range(11)]
        for n, value in enumerate(values):
            self.store._versions.newest = self.store.revision
            # Not through bytes, which would make another object.
            self.store._versions.put(b"%d" % (n % 2), value, 0, n + 2)
            self.store.revision = n + 2
        (unused,) = {sys.getrefcount(value) for value in [b"value %d" % 11]}
        for compacted in range(2, 13):
            apply(self.store, Compact(compacted))
            # Of the two keys one was changed at `compacted`, the other just before.
            kept = [sys.getrefcount(value) > unused for value in values]
            self.assertEqual(kept, [n + 2 >= compacted - 1 for n in range(11)], compacted)

    def test_old_versions_of_a_key_are_found_by_marks(self) -> None:
        """However often a key was changed, or deleted and put again."""
        looked: list[int] = []
        replaced_of = versions.Versions.replaced_of

        def counted(inside: versions.Versions, key: bytes, revision: int) -> KeyValue | None:
            looked.append(revision)
            return replaced_of(inside, key, revision)

        model: list[bytes | None] = [None, None]
        for n in range(400):
            deletes = n % 100 > 50 and n % 2
            value = None if deletes else b"%d" % n
            apply(self.store, Put(b"k", value) if value else DeleteRange(b"k"))
            model.append(value)
        self.patch(versions.Versions, "replaced_of", counted)
        for compacted in (1, 150, 152, 170, 300, 401):
            if compacted > 1:
                apply(self.store, Compact(compacted))
            for revision in range(compacted, 402):
                looked.clear()
                record = self.store.get(b"k", revision)
                self.assertEqual(record and record.value, model[revision])
                self.assertLessEqual(len(looked), 17)
            check_invariants(self.store)
        self.assertFalse(any(self.store._versions._marks))

    def test_53_it_is_applied_in_steps_and_seen_at_once(self) -> None:
        make_small(self.patch, 4)
        for n in range(60):
            apply(self.store, Put(b"%02d" % (n % 20), b"%d" % n))
        apply(self.store, DeleteRange(b"05", b"15"))
        revision = self.store.revision
        seen = self.store.range(Range(b"\0", b"\0", revision - 1))

        def look() -> None:
            self.assertEqual(self.store.compacted_revision, revision - 1)
            self.assertEqual(self.store.range(Range(b"\0", b"\0", revision - 1)), seen)
            self.assertEqual(len(self.store.range(ALL).kvs), 10)
            digests.add(restored(b"".join(self.store.snapshot())).digest())

        digests: set[bytes] = set()
        _, steps = apply_bytes(self.store, encode_operation(Compact(revision - 1)), look)
        self.assertGreaterEqual(steps, 7)
        self.assertEqual(digests, {self.store.digest()})

    def test_53_one_key_with_many_versions_is_compacted_in_steps(self) -> None:
        make_small(self.patch, 10)
        for n in range(200):
            apply(self.store, Put(b"counter", b"%d" % n))
        _, steps = apply_bytes(self.store, encode_operation(Compact(150)))
        self.assertGreaterEqual(steps, 12)
        check_invariants(self.store)
        self.assertEqual(
            self.store.size_bytes,
            sum(VERSION_OVERHEAD_BYTES + 7 + len(b"%d" % n) for n in range(148, 200)),
        )

    def test_a_large_revision_that_is_gone_is_let_go_of_part_by_part(self) -> None:
        """Freeing a hundred thousand tombstones takes its time as well."""
        make_small(self.patch, 4)
        for n in range(20):
            apply(self.store, Put(b"%02d" % n, b""))
        apply(self.store, Compact(21))
        apply(self.store, DeleteRange(b"\0", b"\0"))
        _, steps = apply_bytes(self.store, encode_operation(Compact(22)))
        self.assertGreaterEqual(steps, 5)
        self.assertEqual(self.store.size_bytes, 0)


class Quota(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()

    def test_the_size_is_that_of_all_versions(self) -> None:
        each = VERSION_OVERHEAD_BYTES
        sizes = [0]
        operations: list[Operation] = [
            Put(b"k", b"12345"),
            Put(b"k", b""),
            DeleteRange(b"k"),
            Compact(3),
            Compact(4),
        ]
        for operation in operations:
            apply(self.store, operation)
            sizes.append(self.store.size_bytes)
        self.assertEqual(sizes, [0, each + 6, 2 * each + 7, 3 * each + 8, 2 * each + 2, 0])

    def test_without_one_there_is_no_bound(self) -> None:
        self.assertEqual(self.store.quota_bytes, 0)
        apply(self.store, SetQuota(1))
        self.assertEqual(code_of(apply(self.store, Put(b"k", b""))), "quota_reached")
        self.assertEqual(apply(self.store, SetQuota(0)), NoResult())
        self.assertEqual(apply(self.store, Put(b"k", b"")), PutResult(2, True))

    def test_it_is_reached_exactly(self) -> None:
        apply(self.store, SetQuota(2 * (VERSION_OVERHEAD_BYTES + 1)))
        apply(self.store, Put(b"a", b""))
        self.assertEqual(code_of(apply(self.store, Put(b"b", b"1"))), "quota_reached")
        self.assertEqual(apply(self.store, Put(b"b", b"")), PutResult(3, True))
        self.assertEqual(code_of(apply(self.store, Put(b"b", b""))), "quota_reached")

    def test_a_full_store_serves_reads_and_deletes_and_opens_again(self) -> None:
        """A delete and a compaction make room."""
        apply(self.store, SetQuota(10 * (VERSION_OVERHEAD_BYTES + 101)))
        n = 0
        while not isinstance(apply(self.store, Put(b"%d" % n, b"v" * 100)), Exception):
            n += 1
        self.assertEqual(n, 10)
        before = self.store.digest()
        self.assertEqual(code_of(apply(self.store, Put(b"0", b"w" * 100))), "quota_reached")
        self.assertEqual(self.store.digest(), before)
        self.assertEqual(len(self.store.range(ALL).kvs), 10)
        self.assertEqual(apply(self.store, DeleteRange(b"0", b"5")), DeleteResult(12, 5))
        self.assertEqual(code_of(apply(self.store, Put(b"0", b"w" * 100))), "quota_reached")
        self.assertEqual(apply(self.store, Compact(12)), CompactResult(12))
        self.assertEqual(apply(self.store, Put(b"0", b"w" * 100)), PutResult(13, True))

    def test_a_smaller_one_than_there_is_takes_nothing_away(self) -> None:
        apply(self.store, Put(b"k", b"v"))
        apply(self.store, SetQuota(1))
        self.assertIsNotNone(self.store.get(b"k"))
        self.assertEqual(
            apply(self.store, GrantLease(1, 1000)).__class__.__name__, "LeaseResult"
        )


class Checkpoints(SynchronousTestCase):
    def test_they_are_told_with_their_index_and_change_nothing(self) -> None:
        store = Store()
        apply(store, Put(b"k", b"v"))
        before = store.digest()
        told: list[tuple[int, Checkpoint, bytes]] = []
        store.on_checkpoint = lambda index, checkpoint: told.append(
            (index, checkpoint, store.digest())
        )
        checkpoint = Checkpoint(5, b"digest")
        result, _ = apply_bytes(store, encode_operation(checkpoint), index=9)
        self.assertEqual(result, apply_bytes(Store(), encode_operation(Checkpoint()))[0])
        self.assertEqual(told, [(9, checkpoint, before)])
        self.assertEqual(store.digest(), before)


class Garbage(SynchronousTestCase):
    def test_the_collector_has_nothing_to_look_at_but_chunks(self) -> None:
        """However many keys and versions there are."""
        store = Store()
        for n in range(3000):
            apply(store, Put(b"%d" % (n % 1000), b"v"))
        apply(store, DeleteRange(b"5", b"6"))
        gc.collect()
        inside = store._versions
        replaced = inside.history._open_replaced[-1]
        assert isinstance(replaced, tuple)
        # From CPython 3.14 on every dictionary is looked at, until it is frozen.
        are_tracked = gc.is_tracked({b"a key": b"a value"})
        for shard in (*inside._newest, *replaced):
            self.assertIs(gc.is_tracked(shard), are_tracked)
            for version in shard.values():
                self.assertFalse(gc.is_tracked(version))
        for chunk in (*inside.history._full, *inside.history._full_replaced):
            self.assertFalse(gc.is_tracked(chunk))
        self.assertEqual(len(inside.history._full_replaced), 3000 // 256)


class Steps(SynchronousTestCase):
    """No step looks at, or changes, more than a bounded number of keys."""

    KEYS = 20_000
    #: A millisecond or two.
    MOST = 2_000

    def setUp(self) -> None:
        self.store = Store()
        apply(self.store, GrantLease(1, 1000))
        for n in range(self.KEYS):
            self.store._put(Put(b"%08d" % n, b"v", 1))
        self.touched = 0
        self.most = 0
        for name in ("_put", "_bury", "_discount"):
            method = getattr(versions.Versions, name)
            self.patch(versions.Versions, name, self.counting(method))

    def counting(self, method: object) -> object:
        def counted(inside: object, *args: object) -> object:
            self.touched += 1
            return method(inside, *args)  # type: ignore[operator]

        return counted

    def between(self) -> None:
        self.most = max(self.most, self.touched)
        self.touched = 0

    def check(self, operation: Operation) -> None:
        before = self.store.digest()
        revision = self.store.revision
        self.touched = self.most = 0
        _, steps = apply_bytes(self.store, encode_operation(operation), self.between)
        self.between()
        self.assertGreaterEqual(steps, self.KEYS // self.MOST)
        self.assertLess(self.most, self.MOST)
        self.assertNotEqual(self.store.digest(), before)
        self.assertLessEqual(self.store.revision, revision + 1)

    def test_53_a_large_range_delete_and_its_compaction(self) -> None:
        self.check(DeleteRange(b"\0", b"\0"))
        self.assertEqual(len(self.store), 0)
        self.check(Compact(self.store.revision))

    def test_53_the_compaction_of_keys_that_were_new(self) -> None:
        """It replaced nothing, and there are as many revisions."""
        self.check(Compact(self.store.revision))

    def test_53_the_compaction_of_one_large_revision(self) -> None:
        """However its keys are spread."""
        apply(self.store, DeleteRange(b"\0", b"\0"))
        apply(self.store, Compact(self.store.revision - 1))
        self.patch(versions, "STEP_KEYS", 16)
        self.MOST = 20
        self.check(Compact(self.store.revision))

    def test_53_large_dictionaries_are_let_go_of_in_steps(self) -> None:
        self.patch(versions, "STEP_KEYS", 16)
        record = KeyValue(b"key", b"value", 2, 2, 1)
        shards = tuple({b"%d" % n: record for n in range(size)} for size in (100, 3, 0, 40))
        left = [143]
        for _ in versions._let_go([], [None, shards, record]):
            left.append(sum(map(len, shards)))
        self.assertLessEqual(max(a - b for a, b in pairwise(left)), 32)
        self.assertEqual(sum(map(len, shards)), 0)

    def test_53_a_large_revoke(self) -> None:
        self.check(RevokeLease(1))
        self.assertEqual(len(self.store), 0)

    def test_53_readers_see_all_or_nothing(self) -> None:
        make_small(self.patch, 1000)
        expected = self.store.range(Range(b"\0", b"\0", count_only=True)).count
        seen = set()

        def look() -> None:
            keys: Sequence[bytes] = (b"%08d" % 0, b"%08d" % (self.KEYS - 1))
            seen.add(
                (
                    self.store.revision,
                    len(self.store),
                    self.store.range(Range(b"\0", b"\0", count_only=True)).count,
                    *(self.store.get(key) is not None for key in keys),
                )
            )

        revision = self.store.revision
        apply(self.store, DeleteRange(b"\0", b"\0"), look)
        self.assertEqual(seen, {(revision, expected, expected, True, True)})
        seen.clear()
        look()
        self.assertEqual(seen, {(revision + 1, 0, 0, False, False)})
