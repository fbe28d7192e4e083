"""The semantics of the store, line by line: revisions, reads, puts, deletes, ranges."""

from __future__ import annotations

import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from raftd.errors import BadRequest, Compacted, FutureRevision
from raftd.interfaces import IStateMachine
from raftd.kv import execution, ranges
from raftd.kv import store as store_module
from raftd.kv.interfaces import Event
from raftd.kv.operations import (
    CREATE_REVISION,
    KEY,
    LEASE,
    MOD_REVISION,
    VALUE,
    VERSION,
    Compact,
    DeleteRange,
    DeleteRangeWith,
    GrantLease,
    Operation,
    Put,
    PutWith,
    Range,
    SetQuota,
    Transaction,
)
from raftd.kv.results import DeleteResult, KeyValue, PutResult, RangeResult
from raftd.kv.store import Store
from raftd.test.kvrig import apply, code_of, drained, make_small

ALL = Range(b"\0", b"\0")


def keys_of(result: RangeResult) -> list[bytes]:
    return [record.key for record in result.kvs]


class Revisions(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(IStateMachine, self.store))

    def test_an_empty_store_is_at_revision_1(self) -> None:
        self.assertEqual((self.store.revision, self.store.compacted_revision), (1, 0))

    def test_the_first_write_makes_revision_2(self) -> None:
        self.assertEqual(apply(self.store, Put(b"k", b"v")), PutResult(2, True))
        self.assertEqual(self.store.revision, 2)
        self.assertEqual(self.store.get(b"k"), KeyValue(b"k", b"v", 2, 2, 1))

    def test_replacing_keeps_the_create_revision_and_counts_the_version(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        apply(self.store, Put(b"other", b""))
        self.assertEqual(apply(self.store, Put(b"k", b"2")), PutResult(4, False))
        self.assertEqual(self.store.get(b"k"), KeyValue(b"k", b"2", 2, 4, 2))

    def test_a_key_put_after_its_delete_begins_anew(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        apply(self.store, Put(b"k", b"2"))
        self.assertEqual(apply(self.store, DeleteRange(b"k")), DeleteResult(4, 1))
        self.assertIsNone(self.store.get(b"k"))
        self.assertEqual(apply(self.store, Put(b"k", b"3")), PutResult(5, True))
        self.assertEqual(self.store.get(b"k"), KeyValue(b"k", b"3", 5, 5, 1))

    def test_a_delete_leaves_a_tombstone_with_only_the_mod_revision(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        apply(self.store, DeleteRange(b"k"))
        event = self.store.event(b"k", 3, True)
        self.assertEqual(
            event, Event(KeyValue(b"k", b"", 0, 3, 0), KeyValue(b"k", b"1", 2, 2, 1))
        )
        self.assertTrue(event.is_delete)

    def test_what_changes_nothing_keeps_the_revision(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        before = self.store.digest()
        nothing: list[Operation] = [
            DeleteRange(b"missing"),
            DeleteRange(b"x", b"\0"),
            Transaction((), (Range(b"k"), DeleteRangeWith(b"missing"))),
            Transaction((), ()),
            Put(b"", b"v"),
        ]
        for operation in nothing:
            apply(self.store, operation)
            self.assertEqual(self.store.digest(), before)
        self.assertEqual(apply(self.store, DeleteRange(b"missing")), DeleteResult(2, 0))

    def test_sub_revisions_are_in_the_order_of_the_operations(self) -> None:
        for key in (b"x", b"y"):
            apply(self.store, Put(key, b""))
        steps = (PutWith(b"b", b""), DeleteRangeWith(b"x", b"z"), PutWith(b"a", b""))
        apply(self.store, Transaction((), steps))
        self.assertEqual(self.store.revision, 4)
        self.assertEqual(list(self.store.changed_keys(4)), [b"b", b"x", b"y", b"a"])

    def test_readers_are_told_of_complete_changes_only(self) -> None:
        make_small(self.patch)
        seen: list[tuple[int, int, int]] = []
        store = self.store
        store.on_change = lambda: seen.append(
            (store.revision, store.compacted_revision, len(store))
        )
        for n in range(5):
            apply(store, Put(b"%d" % n, b""))
        apply(store, DeleteRange(b"0", b"\0"))
        apply(store, DeleteRange(b"0", b"\0"))
        apply(store, GrantLease(1, 1000))
        apply(store, SetQuota(10_000))
        apply(store, Compact(7))
        changes = [(2 + n, 0, 1 + n) for n in range(5)]
        self.assertEqual(seen, [*changes, (7, 0, 0), (7, 7, 0)])


class Puts(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()
        apply(self.store, GrantLease(1, 1000))

    def test_an_empty_key_is_an_error(self) -> None:
        before = self.store.digest()
        operations: list[Operation] = [
            Put(b"", b"v"),
            PutWith(b"", b"v"),
            DeleteRange(b""),
            DeleteRange(b"", b"\0"),
            DeleteRangeWith(b"", b"\0"),
        ]
        for operation in operations:
            self.assertEqual(code_of(apply(self.store, operation)), "empty_key")
        error = self.assertRaises(BadRequest, self.store.range, Range(b"", b"\0"))
        self.assertEqual(error.code, "empty_key")
        self.assertEqual(self.store.digest(), before)

    def test_a_put_without_a_lease_detaches_the_one_that_was_there(self) -> None:
        apply(self.store, Put(b"k", b"1", 1))
        self.assertEqual(self.store.lease_keys(1, 10), [b"k"])
        apply(self.store, Put(b"k", b"2"))
        self.assertEqual(self.store.lease_keys(1, 10), [])
        self.assertEqual(self.store.get(b"k"), KeyValue(b"k", b"2", 2, 3, 2, 0))

    def test_keeping_the_value_or_the_lease(self) -> None:
        apply(self.store, Put(b"k", b"1", 1))
        apply(self.store, PutWith(b"k", b"2", keep_lease=True))
        self.assertEqual(self.store.get(b"k"), KeyValue(b"k", b"2", 2, 3, 2, 1))
        apply(self.store, PutWith(b"k", b"", keep_value=True))
        self.assertEqual(self.store.get(b"k"), KeyValue(b"k", b"2", 2, 4, 3, 0))
        apply(self.store, PutWith(b"k", b"", 1, keep_value=True))
        self.assertEqual(self.store.get(b"k"), KeyValue(b"k", b"2", 2, 5, 4, 1))

    def test_keeping_needs_an_existing_key(self) -> None:
        apply(self.store, Put(b"gone", b""))
        apply(self.store, DeleteRange(b"gone"))
        before = self.store.digest()
        for key in (b"missing", b"gone"):
            for put in (
                PutWith(key, b"", keep_value=True),
                PutWith(key, b"", keep_lease=True),
            ):
                self.assertEqual(code_of(apply(self.store, put)), "key_not_found")
        self.assertEqual(self.store.digest(), before)

    def test_the_previous_record_can_be_asked_for(self) -> None:
        self.assertEqual(
            apply(self.store, PutWith(b"k", b"1", 1, previous=True)), PutResult(2, True, None)
        )
        self.assertEqual(
            apply(self.store, PutWith(b"k", b"2", previous=True)),
            PutResult(3, False, KeyValue(b"k", b"1", 2, 2, 1, 1)),
        )
        self.assertEqual(
            apply(self.store, DeleteRangeWith(b"k", b"", True)),
            DeleteResult(4, 1, [KeyValue(b"k", b"2", 2, 3, 2)]),
        )

    def test_what_a_large_delete_answers_as_before_is_cut(self) -> None:
        self.patch(execution, "MAX_RESULT_BYTES", 100)
        for n in range(5):
            apply(self.store, Put(b"%d" % n, b"v" * 20))
        result = apply(self.store, DeleteRangeWith(b"0", b"\0", True))
        assert isinstance(result, DeleteResult)
        self.assertLess(len(result.previous), 5)
        self.assertEqual((result.deleted, len(self.store)), (5, 0))


class Ranges(SynchronousTestCase):
    """As etcd evaluates them: fetch, filter, sort, cut."""

    def setUp(self) -> None:
        self.store = Store()
        for key, value in (
            (b"b", b"2"),
            (b"a", b"3"),
            (b"d", b"1"),
            (b"c", b"1"),
            (b"a", b"0"),
        ):
            apply(self.store, Put(key, value))

    def keys(self, query: Range) -> list[bytes]:
        return keys_of(self.store.range(query))

    def test_keys_and_values_are_bytes_ordered_bytewise(self) -> None:
        store = Store()
        ordered = [b"\0", b"\0\0", b"\x7f", b"\x80", b"\xff", b"\xff\0", b"\xff\xff"]
        for key in reversed(ordered):
            apply(store, Put(key, key))
        self.assertEqual(keys_of(store.range(ALL)), ordered)

    def test_no_end_is_one_key(self) -> None:
        self.assertEqual(
            self.store.range(Range(b"a")),
            RangeResult(6, 1, False, [KeyValue(b"a", b"0", 3, 6, 2)]),
        )
        self.assertEqual(self.store.range(Range(b"aa")), RangeResult(6, 0, False, []))

    def test_the_end_0_is_all_keys_from_the_start_on(self) -> None:
        self.assertEqual(self.keys(Range(b"b", b"\0")), [b"b", b"c", b"d"])

    def test_start_and_end_both_0_is_all(self) -> None:
        self.assertEqual(self.keys(ALL), [b"a", b"b", b"c", b"d"])

    def test_an_end_before_the_start_is_empty(self) -> None:
        for end in (b"a", b"b", b"\0\0"):
            self.assertEqual(self.store.range(Range(b"b", end)), RangeResult(6, 0, False, []))
            self.assertEqual(apply(self.store, DeleteRange(b"b", end)), DeleteResult(6, 0))

    def test_the_end_is_not_included(self) -> None:
        self.assertEqual(self.keys(Range(b"a", b"c")), [b"a", b"b"])
        self.assertEqual(apply(self.store, DeleteRange(b"a", b"c")), DeleteResult(7, 2))
        self.assertEqual(self.keys(ALL), [b"c", b"d"])

    def test_filters(self) -> None:
        """Revisions: b 2, a 3 and 6, d 4, c 5."""
        span = (b"\0", b"\0")
        self.assertEqual(self.keys(Range(*span, min_mod_revision=5)), [b"a", b"c"])
        self.assertEqual(self.keys(Range(*span, max_mod_revision=4)), [b"b", b"d"])
        self.assertEqual(self.keys(Range(*span, min_create_revision=3)), [b"a", b"c", b"d"])
        self.assertEqual(self.keys(Range(*span, max_create_revision=3)), [b"a", b"b"])
        both = Range(*span, min_create_revision=3, max_mod_revision=5)
        self.assertEqual(self.keys(both), [b"c", b"d"])
        self.assertEqual(self.keys(Range(b"a", b"", max_mod_revision=5)), [])

    def test_sorting(self) -> None:
        """What is equal stays in the order of the keys, descending or not."""
        expected = {
            KEY: [b"a", b"b", b"c", b"d"],
            VALUE: [b"a", b"c", b"d", b"b"],
            VERSION: [b"b", b"c", b"d", b"a"],
            CREATE_REVISION: [b"b", b"a", b"d", b"c"],
            MOD_REVISION: [b"b", b"d", b"c", b"a"],
            LEASE: [b"a", b"b", b"c", b"d"],
        }
        for sort_by, keys in expected.items():
            self.assertEqual(self.keys(Range(b"\0", b"\0", sort_by=sort_by)), keys)
        descending = {
            KEY: [b"d", b"c", b"b", b"a"],
            VALUE: [b"b", b"c", b"d", b"a"],
            VERSION: [b"a", b"b", b"c", b"d"],
            LEASE: [b"a", b"b", b"c", b"d"],
        }
        for sort_by, keys in descending.items():
            query = Range(b"\0", b"\0", sort_by=sort_by, descending=True)
            self.assertEqual(self.keys(query), keys)

    def test_filter_then_sort_then_limit(self) -> None:
        query = Range(b"\0", b"\0", limit=2, sort_by=MOD_REVISION, max_mod_revision=5)
        result = self.store.range(query)
        self.assertEqual((keys_of(result), result.count, result.more), ([b"b", b"d"], 4, True))

    def test_the_count_is_the_total_before_limit_and_filter(self) -> None:
        for query in (
            Range(b"\0", b"\0", limit=1),
            Range(b"\0", b"\0", min_mod_revision=6),
            Range(b"\0", b"\0", count_only=True),
            Range(b"\0", b"\0", sort_by=VALUE, limit=2),
        ):
            self.assertEqual(self.store.range(query).count, 4)
        self.assertEqual(self.store.range(Range(b"\0", b"\0", count_only=True)).kvs, [])
        self.assertEqual(
            self.store.range(Range(b"a", count_only=True)), RangeResult(6, 1, False, [])
        )

    def test_more_says_that_the_limit_cut(self) -> None:
        """Records that the filter keeps out do not count."""
        for limit, more in ((3, True), (4, False), (5, False), (0, False)):
            for sort_by in (KEY, VALUE):
                for descending in (False, True):
                    query = Range(b"\0", b"\0", 0, limit, False, False, sort_by, descending)
                    self.assertEqual(self.store.range(query).more, more)
        query = Range(b"\0", b"\0", limit=2, max_mod_revision=4)
        self.assertFalse(self.store.range(query).more)

    def test_keys_only(self) -> None:
        self.assertEqual(
            self.store.range(Range(b"a", b"b", keys_only=True)).kvs,
            [KeyValue(b"a", b"", 3, 6, 2)],
        )
        by_value = self.store.range(Range(b"\0", b"\0", keys_only=True, sort_by=VALUE))
        self.assertEqual(keys_of(by_value), [b"a", b"c", b"d", b"b"])
        self.assertEqual({record.value for record in by_value.kvs}, {b""})

    def test_a_range_at_a_revision_sees_that_revision(self) -> None:
        apply(self.store, DeleteRange(b"b"))
        self.assertEqual(self.keys(Range(b"\0", b"\0", 3)), [b"a", b"b"])
        self.assertEqual(
            self.store.range(Range(b"a", b"b", 5)),
            RangeResult(7, 1, False, [KeyValue(b"a", b"3", 3, 3, 1)]),
        )
        self.assertEqual(self.keys(Range(b"\0", b"\0", 1)), [])
        self.assertEqual(self.store.get(b"b", 6), KeyValue(b"b", b"2", 2, 2, 1))
        self.assertIsNone(self.store.get(b"b", 7))

    def test_a_revision_not_above_0_is_now(self) -> None:
        for revision in (0, -1, -(2**62)):
            self.assertEqual(self.keys(Range(b"\0", b"\0", revision)), [b"a", b"b", b"c", b"d"])
            self.assertEqual(self.store.get(b"a", revision), KeyValue(b"a", b"0", 3, 6, 2))

    def test_a_revision_above_the_current_is_an_error_of_its_own(self) -> None:
        self.store.get(b"a", 6)
        for read in (
            lambda: self.store.get(b"a", 7),
            lambda: self.store.range(Range(b"a", b"", 7)),
        ):
            error = self.assertRaises(FutureRevision, read)
            self.assertEqual((error.code, error.revision), ("future_revision", 6))

    def test_a_revision_below_the_compacted_is_an_error_of_its_own(self) -> None:
        apply(self.store, Compact(4))
        for read in (
            lambda: self.store.get(b"a", 3),
            lambda: self.store.range(Range(b"a", b"", 3)),
        ):
            error = self.assertRaises(Compacted, read)
            self.assertEqual((error.code, error.revision), ("compacted", 4))

    def test_exactly_the_compacted_revision_is_served(self) -> None:
        before = self.store.range(Range(b"\0", b"\0", 4))
        apply(self.store, Compact(4))
        self.assertEqual(self.store.range(Range(b"\0", b"\0", 4)), before)
        self.assertEqual(self.store.get(b"a", 4), KeyValue(b"a", b"3", 3, 3, 1))

    def test_an_answer_is_bounded(self) -> None:
        """In records and in bytes; one record always comes, and pages get to the end."""
        self.patch(ranges, "MAX_RANGE_KEYS", 3)
        for query in (ALL, Range(b"\0", b"\0", limit=100), Range(b"\0", b"\0", sort_by=VALUE)):
            result = self.store.range(query)
            self.assertEqual((len(result.kvs), result.count, result.more), (3, 4, True))
        self.patch(store_module, "MAX_RANGE_BYTES", 60)
        start, found = b"\0", []
        while True:
            result = self.store.range(Range(start, b"\0"))
            found += keys_of(result)
            if not result.more:
                break
            self.assertEqual(len(result.kvs), 2)
            start = result.kvs[-1].key + b"\0"
        self.assertEqual(found, [b"a", b"b", b"c", b"d"])
        apply(self.store, Put(b"large", b"v" * 100))
        for query in (Range(b"large"), Range(b"e", b"\0"), Range(b"e", b"\0", sort_by=VALUE)):
            self.assertEqual(keys_of(self.store.range(query)), [b"large"])

    def test_pages_of_one_revision_do_not_look_at_all_keys(self) -> None:
        """Not even for the count: what has changed since is looked at instead."""
        for n in range(50):
            apply(self.store, Put(b"n%02d" % n, b""))
        revision = self.store.revision
        apply(self.store, DeleteRange(b"n10"))
        apply(self.store, Put(b"n10", b""))
        apply(self.store, Put(b"n99", b""))
        apply(self.store, DeleteRange(b"n20"))
        looked_at: list[bytes] = []
        versions = self.store._versions

        class Counted(type(versions)):  # type: ignore[misc]
            __slots__ = ()

            def at(self, key: bytes, revision: int) -> KeyValue | None:
                looked_at.append(key)
                found: KeyValue | None = super().at(key, revision)
                return found

        versions.__class__ = Counted
        result = self.store.range(Range(b"n", b"o", revision, 5))
        self.assertEqual((result.count, len(result.kvs), result.more), (50, 5, True))
        self.assertLess(len(looked_at), 15)


class LongRanges(SynchronousTestCase):
    """A range is evaluated in steps, while commands are applied, as of one revision."""

    def setUp(self) -> None:
        make_small(self.patch, 4)
        self.store = Store()
        for n in range(20):
            apply(self.store, Put(b"%02d" % n, b"%d" % (n % 7)))

    QUERIES = (
        ALL,
        Range(b"\0", b"\0", limit=7),
        Range(b"\0", b"\0", descending=True),
        Range(b"05", b"18", sort_by=VALUE, limit=6),
        Range(b"\0", b"\0", min_mod_revision=15),
    )

    def test_53_steps_are_bounded_and_come_to_the_same(self) -> None:
        for query in self.QUERIES:
            _, steps = drained(self.store.range_walk(query))
            self.assertGreater(steps, 0)
            self.assertLessEqual(steps, 11)

    def test_whatever_is_applied_meanwhile(self) -> None:
        for query in self.QUERIES:
            store = Store()
            for n in range(20):
                apply(store, Put(b"%02d" % n, b"%d" % (n % 7)))
            expected = store.range(query)
            walk = store.range_walk(query)
            operations: list[Operation] = [
                Put(b"03", b"0"),
                DeleteRange(b"02", b"19"),
                Put(b"05a", b""),
                Put(b"10", b"new"),
                DeleteRange(b"\0", b"\0"),
            ]
            result = None
            while result is None:
                if operations:
                    apply(store, operations.pop(0))
                try:
                    next(walk)
                except StopIteration as end:
                    result = end.value
            self.assertEqual(result, expected)

    def test_a_compaction_beyond_it_is_told(self) -> None:
        walk = self.store.range_walk(ALL)
        next(walk)
        apply(self.store, Put(b"k", b""))
        apply(self.store, Compact(21))
        next(walk)
        apply(self.store, Compact(22))
        self.assertRaises(Compacted, list, walk)

    def test_a_live_range_does_not_see_tombstones(self) -> None:
        """A queue whose million entries are gone is as quick as an empty one."""
        apply(self.store, DeleteRange(b"\0", b"\0"))
        apply(self.store, Put(b"99", b""))
        result, steps = drained(self.store.range_walk(ALL))
        self.assertEqual((keys_of(result), steps), ([b"99"], 0))


class Determinism(SynchronousTestCase):
    def test_digests_tell_states_apart(self) -> None:
        """Also those that differ in the past, or in a counter, only."""
        logs: list[list[Operation]] = [
            [],
            [Put(b"k", b"v")],
            [Put(b"k", b"w")],
            [Put(b"k", b"v"), DeleteRange(b"k")],
            [Put(b"k", b"v"), Put(b"k", b"v")],
            [Put(b"k", b"w"), Put(b"k", b"v")],
            [Put(b"k", b"v"), DeleteRange(b"k"), Put(b"k", b"v")],
            [Put(b"j", b""), Put(b"k", b"v")],
            [Put(b"k", b"v"), Put(b"j", b"")],
            [Transaction((), (PutWith(b"k", b"v"), PutWith(b"j", b"")))],
            [Transaction((), (PutWith(b"j", b""), PutWith(b"k", b"v")))],
            [Put(b"k", b"v"), Compact(1)],
            [Put(b"k", b"v"), Compact(2)],
            [Put(b"k", b"v"), Put(b"k", b"v"), Compact(3)],
            [Put(b"k", b"w"), Put(b"k", b"v"), Compact(2)],
            [SetQuota(5)],
            [GrantLease(1, 1000)],
            [GrantLease(1, 2000)],
            [GrantLease(2, 1000), GrantLease(1, 1000)],
            [GrantLease(1, 1000), GrantLease(2, 1000)],
            [GrantLease(1, 1000), Put(b"k", b"v", 1)],
        ]
        digests = set()
        for log in logs:
            store = Store()
            for operation in log:
                apply(store, operation)
            digests.add(store.digest())
        self.assertEqual(len(digests), len(logs))

    def test_the_digest_does_not_depend_on_what_was_compacted(self) -> None:
        """Nor on when: only on what can still be seen."""
        store, twin = Store(), Store()
        for target, compactions in ((store, (2, 6, 7, 11)), (twin, (11,))):
            for n in range(15):
                apply(target, Put(b"%d" % (n % 4), b"%d" % n))
                if n % 5 == 4:
                    apply(target, DeleteRange(b"1", b"3"))
                if n in compactions:
                    apply(target, Compact(target.revision))
        self.assertEqual(store.compacted_revision, twin.compacted_revision)
        self.assertLess(store.compacted_revision, store.revision)
        self.assertEqual(store.digest(), twin.digest())
        self.assertEqual(store.size_bytes, twin.size_bytes)

    def test_the_digest_is_the_same_in_another_process(self) -> None:
        """No order that depends on the seed of hashes gets into it."""
        program = (
            "from raftd.kv.store import Store\n"
            "from raftd.kv.operations import *\n"
            "from raftd.test.kvrig import apply\n"
            "s = Store()\n"
            "for id in (5, 3, 9):\n"
            "    apply(s, GrantLease(id, 1000))\n"
            "for n in range(300):\n"
            "    apply(s, Put(b'%d' % (n * 7 % 100), b'v', (5, 3, 9)[n % 3]))\n"
            "apply(s, RevokeLease(3))\n"
            "apply(s, Compact(150))\n"
            "print(s.digest().hex(), s.size_bytes)\n"
        )
        seen = set()
        for seed in ("1", "2"):
            environment = {
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            seen.add(subprocess.check_output([sys.executable, "-c", program], env=environment))
        self.assertEqual(len(seen), 1)
