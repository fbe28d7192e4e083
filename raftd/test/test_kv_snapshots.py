"""Snapshots of the store: `raftd.kv.snapshots`, in the format of docs/store-snapshot.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Command
from raftd.errors import Compacted
from raftd.kv import walks
from raftd.kv.keys import SortedKeys
from raftd.kv.operations import (
    Compact,
    DeleteRange,
    GrantLease,
    Operation,
    Put,
    PutWith,
    Range,
    RevokeLease,
    SetQuota,
    Transaction,
    encode_operation,
)
from raftd.kv.results import KeyValue, PutResult, RevokeResult
from raftd.kv.snapshots import MAX_BEGINNING
from raftd.kv.store import Store
from raftd.slices import frame
from raftd.test.kvrig import (
    apply,
    apply_bytes,
    check_invariants,
    cut,
    drained,
    make_small,
    restored,
)

encode = msgspec.msgpack.encode


def _draw(snapshot: Iterator[bytes], slices: list[bytes]) -> None:
    """The next slice, if there is one."""
    slices += islice(snapshot, 1)


class SnapshotCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()

    def fill(self, keys: int, value: bytes = b"v") -> None:
        for n in range(keys):
            apply(self.store, Put(b"%06d" % n, value))


class TheFormat(SnapshotCase):
    def test_the_example(self) -> None:
        operations: list[Operation] = [
            GrantLease(7, 60_000),
            SetQuota(1 << 20),
            Put(b"k", b"v"),
            Put(b"k", b"w", 7),
            Compact(3),
            Transaction((), (PutWith(b"l", b""), PutWith(b"j", b""))),
            DeleteRange(b"k"),
        ]
        for operation in operations:
            apply(self.store, operation)
        frames = [
            "15000000 96 aa 72616674642e6b762f33 05 03 ce00100000 02 02",
            "08000000 91 94 05 07 cdea60 01",
            "00000000",
            "0c000000 91 96 c4016b c40177 02 03 02 07",
            "00000000",
            "1f000000 93 96 c4016c c400 04 04 01 00 96 c4016a c400 04 04 01 00"
            "96 c4016b c400 00 05 00 00",
            "00000000",
        ]
        data = b"".join(self.store.snapshot())
        self.assertEqual(data.hex(), "".join(frames).replace(" ", ""))
        copy = restored(data)
        check_invariants(copy)
        self.assertEqual(copy.digest(), self.store.digest())
        self.assertEqual(list(copy.changed_keys(4)), [b"l", b"j"])
        self.assertEqual(copy.event(b"k", 5, True), self.store.event(b"k", 5, True))
        self.assertEqual(copy.get(b"k", 3), KeyValue(b"k", b"w", 2, 3, 2, 7))

    def test_an_empty_store(self) -> None:
        data = b"".join(self.store.snapshot())
        self.assertEqual(data, frame(encode(["raftd.kv/3", 1, 0, 0, 0, 1])) + 3 * frame(b""))
        self.assertEqual(restored(data).digest(), self.store.digest())

    def test_all_of_the_past_that_is_left_comes_along(self) -> None:
        """So that any member can serve it, and watches of it, after a restart."""
        for n in range(40):
            apply(self.store, Put(b"%d" % (n % 7), b"%d" % n))
            if n % 9 == 8:
                apply(self.store, DeleteRange(b"2", b"4"))
        apply(self.store, Compact(20))
        copy = restored(b"".join(self.store.snapshot()), [11])
        for revision in range(20, self.store.revision + 1):
            for key in (b"%d" % n for n in range(7)):
                self.assertEqual(copy.get(key, revision), self.store.get(key, revision))
            if revision > 20:
                keys = list(self.store.changed_keys(revision))
                self.assertEqual(list(copy.changed_keys(revision)), keys)

    def test_the_digest_and_the_bytes_depend_on_the_state_alone(self) -> None:
        """How it came about, in what order: no matter."""
        self.fill(2000)
        for n in range(0, 2000, 2):
            apply(self.store, DeleteRange(b"%06d" % n))
        apply(self.store, Compact(2500))
        data = b"".join(self.store.snapshot())
        copy = restored(data, [1000, 7])
        self.assertEqual(copy.digest(), self.store.digest())
        self.assertEqual(copy.size_bytes, self.store.size_bytes)
        self.assertEqual(b"".join(copy.snapshot()), data)


KEYS = st.sampled_from([b"a", b"b", b"b\0", b"c", b"\xff"])
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=3), st.sampled_from([0, 0, 1])),
    st.builds(DeleteRange, KEYS, st.sampled_from([b"", b"\0", b"b", b"d"])),
    st.builds(Compact, st.integers(2, 25)),
    st.builds(GrantLease, st.just(1), st.integers(1, 9)),
    st.builds(RevokeLease, st.just(1)),
)


class WhileCommandsAreApplied(SnapshotCase):
    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(
        st.lists(OPERATIONS, max_size=25),
        st.lists(OPERATIONS, max_size=30),
        st.lists(st.booleans(), max_size=80),
        st.lists(st.integers(1, 30), min_size=1, max_size=4),
        st.sampled_from([(1, 1), (1, 1000), (2, 60), (3, 30), (1000, 1000)]),
    )
    def test_31_a_snapshot_is_of_the_moment_of_its_call(
        self,
        before: list[Operation],
        after: list[Operation],
        draws: list[bool],
        sizes: list[int],
        slice_size: tuple[int, int],
    ) -> None:
        """Whatever is applied while it is drawn; and drawing changes nothing."""
        make_small(self.patch)
        self.patch(walks, "SLICE_KEYS", slice_size[0])
        self.patch(walks, "SLICE_BYTES", slice_size[1])
        store, twin = Store(), Store()
        for operation in before:
            apply(store, operation)
            apply(twin, operation)
        then, keys = twin.digest(), len(twin)
        snapshot, slices, choice = store.snapshot(), list[bytes](), iter(draws)

        def draw() -> None:
            if next(choice, False):
                slices.extend(islice(snapshot, 1))

        for operation in after:
            draw()
            apply(store, operation, draw)
            apply(twin, operation)
        slices += snapshot
        copy = restored(b"".join(slices), sizes)
        check_invariants(copy)
        self.assertEqual((copy.digest(), len(copy)), (then, keys))
        self.assertEqual(store.digest(), twin.digest())
        # It is a store like any other: what was not drawn from it works as well.
        for operation in after:
            apply(copy, operation)
        self.assertEqual(copy.digest(), twin.digest())

    def test_31_whatever_is_compacted_meanwhile(self) -> None:
        """The same at random, with a compaction as every fifth change."""
        make_small(self.patch)
        for seed in range(60):
            store, rng = Store(), Random(seed)
            for _ in range(30):
                self.change(store, rng)
            then = store.digest()
            slices = []
            for data in store.snapshot():
                slices.append(data)
                for _ in range(rng.randrange(4)):
                    self.change(store, rng)
            self.assertEqual(restored(b"".join(slices)).digest(), then, f"seed {seed}")

    def change(self, store: Store, rng: Random) -> None:
        key = b"%d" % rng.randrange(8)
        kind = rng.randrange(5)
        if kind < 3:
            apply(store, Put(key, b"%d" % rng.randrange(100)))
        elif kind == 3:
            apply(store, DeleteRange(key))
        else:
            apply(store, Compact(max(1, store.revision - rng.randrange(3))))

    def test_42_several_at_once(self) -> None:
        """A snapshot, a backup and a digest, of three moments, drawn in turns."""
        self.patch(walks, "SLICE_BYTES", 60)
        self.patch(walks, "SLICE_KEYS", 5)
        self.fill(30)
        apply(self.store, Compact(31))
        walked: list[tuple[Iterator[bytes], list[bytes], bytes]] = []
        for n in range(3):
            apply(self.store, Put(b"%06d" % (25 + n), b"w"))
            walked.append((self.store.snapshot(), [], self.store.digest()))
            apply(self.store, Put(b"%06d" % (10 - n), b"w"))
            apply(self.store, Compact(self.store.revision))
            for snapshot, slices, _ in walked:
                slices.append(next(snapshot))
        digest, now = self.store.digest_walk(), self.store.digest()
        apply(self.store, DeleteRange(b"\0", b"\0"))
        apply(self.store, Compact(self.store.revision))
        self.assertEqual(drained(digest)[0], now)
        for snapshot, slices, then in walked:
            self.assertEqual(restored(b"".join([*slices, *snapshot])).digest(), then)

    def test_a_snapshot_beside_the_compaction_of_a_large_revision(self) -> None:
        """What it has not come past is kept for it before it is gone."""
        make_small(self.patch)
        self.fill(20)
        apply(self.store, Compact(21))
        apply(self.store, DeleteRange(b"\0", b"\0"))
        for ahead in range(6):
            store = restored(b"".join(self.store.snapshot()))
            snapshot, digest = store.snapshot(), store.digest()
            slices = list(islice(snapshot, ahead))
            draw = partial(_draw, snapshot, slices)
            _, steps = apply_bytes(store, encode_operation(Compact(22)), draw)
            self.assertGreater(steps, 10)
            self.assertEqual(restored(b"".join([*slices, *snapshot])).digest(), digest)
            self.assertEqual(store.size_bytes, 0)

    def test_one_that_begins_while_a_change_is_under_way(self) -> None:
        """It is of the last complete revision."""
        make_small(self.patch)
        self.fill(20)
        self.fill(20, b"w")
        begun: list[tuple[Iterator[bytes], bytes]] = []

        def begin() -> None:
            begun.append((self.store.snapshot(), self.store.digest()))

        for operation in (DeleteRange(b"\0", b"000015"), Compact(40), Compact(42)):
            apply(self.store, operation, begin)
        self.assertGreater(len(begun), 10)
        digests = []
        for snapshot, digest in begun:
            copy = restored(b"".join(snapshot))
            self.assertEqual(copy.digest(), digest)
            digests.append(digest)
        self.assertEqual(len(set(digests)), 3)

    def test_a_snapshot_goes_on_over_a_restore(self) -> None:
        self.fill(10)
        apply(self.store, Compact(11))
        digest = self.store.digest()
        snapshot = self.store.snapshot()
        restored(b"".join(Store().snapshot()), into=self.store)
        apply(self.store, Put(b"000005", b"w"))
        self.assertEqual(restored(b"".join(snapshot)).digest(), digest)


class WhatItCosts(SnapshotCase):
    def test_45_slices_are_bounded(self) -> None:
        self.fill(3000, b"v" * 100)
        for compacted in (0, 2000, 3001):
            if compacted:
                apply(self.store, Compact(compacted))
            slices = list(self.store.snapshot())
            self.assertGreater(len(slices), 5)
            self.assertLess(max(map(len, slices)), 80_000)
        apply(self.store, Put(b"large", b"v" * 500_000))
        self.assertLess(max(map(len, self.store.snapshot())), 500_000 + 80_000)

    def test_45_a_slice_walks_past_a_bounded_number_of_keys(self) -> None:
        """Also if none of them belongs into it."""
        apply(self.store, Put(b"z", b""))
        apply(self.store, Compact(2))
        snapshot = self.store.snapshot()
        self.fill(3 * walks.SLICE_KEYS)
        slices = list(snapshot)
        empty = frame(encode([]))
        self.assertEqual(slices[2:5], [empty, empty, empty])
        self.assertEqual(len(slices), 3 + 5)

    def test_45_beginning_looks_at_no_key(self) -> None:
        """The call takes as long for many keys as for few: it touches neither."""
        self.fill(10)
        apply(self.store, Compact(11))

        class Untouchable(SortedKeys):
            __slots__ = ()

            def range(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
                raise AssertionError("looked at the keys")

        self.store._versions.live.__class__ = Untouchable
        snapshot = self.store.snapshot()
        self.assertEqual([len(next(snapshot)) > 0, next(snapshot)], [True, frame(b"")])
        self.assertRaises(AssertionError, next, snapshot)

    def test_45_only_what_a_compaction_removes_is_kept(self) -> None:
        """And of that only what was there, and is still to be given."""
        self.patch(walks, "SLICE_KEYS", 100)
        self.fill(1000)
        apply(self.store, Compact(1001))
        snapshot = self.store.snapshot()
        for _ in range(4):
            next(snapshot)
        for n in range(0, 1000, 10):
            for _ in range(3):
                apply(self.store, Put(b"%06d" % n, b"w"))
            apply(self.store, Put(b"x%06d" % n, b"new"))
        self.assertEqual(len(snapshot._walk._kept), 0)
        apply(self.store, Compact(self.store.revision))
        self.assertEqual(len(snapshot._walk._kept), 80)
        self.assertEqual(sum(map(len, snapshot)) > 0, True)
        self.assertEqual((snapshot._walk._kept, snapshot._walk._gone), ({}, []))

    def test_an_iterator_given_up_costs_nothing_afterwards(self) -> None:
        """Closed or dropped, begun or not."""
        self.fill(10)
        for begun in (False, True):
            for close in (False, True):
                snapshot = self.store.snapshot()
                if begun:
                    next(snapshot)
                if close:
                    snapshot.close()
                    self.assertEqual(list(snapshot), [])
                    self.assertTrue(snapshot._walk.done)
                del snapshot
                self.assertEqual(len(self.store._walks), 0)
        walk = self.store.digest_walk()
        next(walk)
        self.assertEqual(len(self.store._walks), 1)
        del walk
        self.assertEqual(len(self.store._walks), 0)

    def test_45_figures(self) -> None:
        """A hundred thousand keys: bounds with room for a busy machine."""
        for n in range(100_000):
            self.store.apply(1, 0, Command(encode_operation(Put(b"%020d" % n, b"v" * 64))))
        apply(self.store, Compact(self.store.revision))
        clock = time.perf_counter
        begin = clock()
        snapshot = self.store.snapshot()
        call_s = clock() - begin
        slices_s = []
        for n in count():
            # Some change meanwhile, all over the place.
            for i in range(50):
                key = b"%020d" % ((n * 7919 + i * 2003) % 100_000)
                self.store.apply(1, 0, Command(encode_operation(Put(key, b"w"))))
            begin = clock()
            if next(snapshot, None) is None:
                break
            slices_s.append(clock() - begin)
        self.assertGreater(len(slices_s), 100)
        self.assertLess(call_s, 0.005)
        # The median, for a slice may meet with a collection of garbage.
        self.assertLess(sorted(slices_s)[len(slices_s) // 2], 0.005)


class Restoring(SnapshotCase):
    def test_nothing_is_visible_until_the_restore_is_finished(self) -> None:
        self.fill(10)
        apply(self.store, Compact(5))
        data = b"".join(self.store.snapshot())
        other = Store()
        apply(other, Put(b"k", b"v"))
        digest, told = other.digest(), list[tuple[int, int]]()
        other.on_change = lambda: told.append((other.revision, other.compacted_revision))
        restore = other.restore()
        restore.write(data)
        self.assertEqual((other.digest(), told), (digest, []))
        restore.finish()
        self.assertEqual(other.digest(), self.store.digest())
        self.assertEqual((len(other), other.revision, told), (10, 11, [(11, 5)]))
        self.assertRaises(ValueError, restore.finish)

    def test_a_state_can_be_moved_on(self) -> None:
        """For a cluster that begins with a backup: nobody sees a revision 5 that is another."""
        apply(self.store, GrantLease(1, 1000))
        for n in range(9):
            apply(self.store, Put(b"%d" % (n % 4), b"", n % 2))
        apply(self.store, DeleteRange(b"2"))
        for compacted in (0, 4, 11):
            if compacted:
                apply(self.store, Compact(compacted))
            data = b"".join(self.store.snapshot())
            copy = Store()
            restore = copy.restore(1000)
            restore.write(data)
            restore.finish()
            check_invariants(copy)
            self.assertEqual((copy.revision, copy.compacted_revision), (1011, 1011))
            everything = self.store.range(Range(b"\0", b"\0")).kvs
            self.assertEqual(copy.range(Range(b"\0", b"\0")).kvs, everything)
            self.assertRaises(Compacted, copy.get, b"0", 1010)
            self.assertEqual(apply(copy, Put(b"0", b"")), PutResult(1012, False))
            self.assertEqual(list(copy.changed_keys(1012)), [b"0"])
            self.assertEqual(apply(copy, RevokeLease(1)), RevokeResult(1013, 2))
            again = restored(b"".join(copy.snapshot()))
            self.assertEqual(again.digest(), copy.digest())

    def test_none_begins_where_its_own_snapshots_would_be_refused(self) -> None:
        """The numbers of the format end somewhere, and a store that comes there with them."""
        for behind in (0, 1000):
            for most, is_refused in ((MAX_BEGINNING, False), (MAX_BEGINNING + 1, True)):
                head = ["raftd.kv/3", most - behind, most - behind, 0, 0, 1]
                state = frame(encode(head)) + 3 * frame(b"")
                copy = Store()
                restore = copy.restore(behind)
                if is_refused:
                    self.assertRaises(ValueError, restore.write, state)
                    continue
                restore.write(state)
                restore.finish()
                apply(copy, Put(b"k", b""))
                self.assertEqual(restored(b"".join(copy.snapshot())).revision, most + 1)

    def test_none_begins_where_no_lease_could_be_granted(self) -> None:
        for most, is_refused in ((MAX_BEGINNING, False), (MAX_BEGINNING + 1, True)):
            restore = Store().restore(0)
            head = frame(encode(["raftd.kv/3", 1, 0, 0, 0, most]))
            if is_refused:
                self.assertRaises(ValueError, restore.write, head)
            else:
                restore.write(head)

    def test_versions_of_a_key_share_the_key(self) -> None:
        """And equal numbers are one object: a restart must not take more memory."""
        for n in range(3):
            apply(self.store, Put(b"key", b"%d" % n))
        apply(self.store, Put(b"once", b""))
        apply(self.store, Compact(1))
        for compacted in (1, 5):
            if compacted > 1:
                apply(self.store, Compact(compacted))
            copy = restored(b"".join(self.store.snapshot()))
            records = [copy.event(b"key", r, False).record for r in (4, 3, 2)[: 5 - compacted]]
            self.assertEqual(len({id(record.key) for record in records}), bool(records))
            once = copy.get(b"once")
            assert once is not None
            self.assertIs(once.create_revision, once.mod_revision)

    def test_43_what_is_cut_short_is_refused(self) -> None:
        make_small(self.patch)
        apply(self.store, GrantLease(1, 1000))
        self.fill(6)
        apply(self.store, Compact(4))
        data = b"".join(self.store.snapshot())
        for end in range(len(data)):
            store = Store()
            restore = store.restore()
            restore.write(data[:end])
            self.assertRaises(ValueError, restore.finish)
            self.assertEqual(store.digest(), Store().digest())

    def refused(self, data: bytes) -> None:
        """Sooner or later, and nothing changes."""
        store = Store()
        apply(store, Put(b"k", b"v"))
        digest = store.digest()
        restore = store.restore()

        def whole() -> None:
            for piece in cut(data, [50]):
                restore.write(piece)
            restore.finish()

        self.assertRaises(ValueError, whole)
        self.assertRaises(ValueError, restore.finish)
        self.assertRaises(ValueError, restore.write, b"")
        self.assertEqual(store.digest(), digest)

    def test_what_is_too_long_is_refused(self) -> None:
        self.fill(3)
        data = b"".join(self.store.snapshot())
        for more in (b"\0", frame(b""), frame(b"\x90"), data):
            self.refused(data + more)

    def state(
        self,
        head: object = ("raftd.kv/3", 5, 3, 0, 2, 9),
        leases: object = ((5, 7, 1000, 8),),
        keys: object = ((b"k", b"v", 2, 3, 2, 7),),
        changes: object = ((b"l", b"", 4, 4, 1, 0), (b"k", b"w", 2, 5, 3, 7)),
    ) -> bytes:
        sections = (frame(encode(rows)) + frame(b"") for rows in (leases, keys, changes))
        return frame(encode(head)) + b"".join(sections)

    def test_what_is_no_store_is_refused(self) -> None:
        self.assertEqual(len(restored(self.state())), 2)
        self.refused(b"\xff" * 100)
        for head in (
            ["raftd.kv/1", 5, 3],
            ["raftd.kv/3", 5, 3, 0, 2],
            ["raftd.kv/3", 5, 3, 0, 2, 0],
            ["raftd.kv/3", 5, 3, 0, 2, -1],
            ["raftd.kv/3", 5, 3, 0, 2, 2**63],
            ["raftd.kv/3", 5, 3, 0, 2, 8],
            ["raftd.kv/2", 5, 3, 0, 2],
            ["raftd.kv/2", 5, 3, 0, 2, 9],
            ["raftd.kv/4", 5, 3, 0, 2, 9],
            ["raftd.kv/3", 5, 3, 0],
            ["raftd.kv/3", 0, 0, 0, 2, 9],
            ["raftd.kv/3", 2, 3, 0, 2, 9],
            ["raftd.kv/3", 5, -1, 0, 2, 9],
            ["raftd.kv/3", 5, 3, -1, 2, 9],
            ["raftd.kv/3", 5, 3, 0, -1, 9],
            ["raftd.kv/3", 5, 3, 0, 1, 9],
            ["raftd.kv/3", 5, 3, 0, 3, 9],
            ["raftd.kv/3", 4, 3, 0, 2, 9],
            ["raftd.kv/3", 6, 3, 0, 2, 9],
            ["raftd.kv/3", 5, 2, 0, 2, 9],
            ["raftd.kv/3", 2**63, 3, 0, 2, 9],
            [],
        ):
            self.refused(self.state(head))

    def test_leases_that_make_no_sense_are_refused(self) -> None:
        good = [5, 7, 1000, 8]
        for leases in (
            [[5, 0, 1000, 1], good],
            [good, good],
            [[5, 7, 0, 1]],
            [[5, -1, 5, 1], good],
            [[5, 2**63, 5, 1], good],
            [[6, 7, 1000, 1]],
            [[5, 7]],
            [[5, 7, 1000]],
            # Its keys are there, and it is not.
            [],
            [[5, 8, 1000, 1]],
        ):
            self.refused(self.state(leases=leases))
        self.patch(walks, "SLICE_KEYS", 1)
        self.assertEqual(len(restored(self.state(leases=[[5, 9, 1, 1], good])).leases()), 2)

    def test_numbers_of_leases_that_make_no_sense_are_refused(self) -> None:
        def state(*numbers: int) -> bytes:
            leases = [[5, 7 + n, 1000, number] for n, number in enumerate(numbers)]
            return self.state(("raftd.kv/3", 5, 3, 0, 2, 5), leases)

        good: list[tuple[int, ...]] = [(1,), (4,), (1, 2, 4)]
        for numbers in good:
            store = restored(state(*numbers))
            found = tuple(store.lease_number(7 + n) for n in range(len(numbers)))
            self.assertEqual(found, numbers)
        bad: list[tuple[int, ...]] = [(5,), (0,), (-1,), (2**63 - 1,), (1, 1), (2, 1), (0, 3)]
        for numbers in bad:
            self.refused(state(*numbers))

    def test_keys_that_make_no_sense_are_refused(self) -> None:
        good = [b"k", b"v", 2, 3, 2, 7]
        for keys in (
            [[b"k"]],
            [good, good],
            [[b"l", b"", 3, 3, 1, 0], good],
            [[b"", b"v", 2, 3, 2, 7], good],
            [[b"k", b"v", 1, 3, 2, 7]],
            [[b"k", b"v", 3, 2, 2, 7]],
            [[b"k", b"v", 2, 4, 2, 7]],
            [[b"k", b"v", 2, 3, 0, 7]],
            [[b"k", b"v", 2, 3, 3, 7]],
            [[b"k", b"v", 2, 3, 2, -1]],
            [[b"k", b"v", 2, 3, 2, 2**63]],
            [],
        ):
            self.refused(self.state(keys=keys))

    def test_changes_that_make_no_sense_are_refused(self) -> None:
        first, second = [b"l", b"", 4, 4, 1, 0], [b"k", b"w", 2, 5, 3, 7]
        gone = [b"k", b"", 0, 4, 0, 0]
        for changes in (
            [first],
            [second],
            [second, first],
            [first, first, second],
            [first, second, second],
            [first, second, [b"m", b"", 6, 6, 1, 0]],
            [first, [b"k", b"w", 2, 5, 2, 7]],
            [first, [b"k", b"w", 3, 5, 3, 7]],
            [first, [b"k", b"w", 2, 5, 3, 8]],
            [first, [b"k", b"w", 2, 5, 3, -1]],
            [[b"l", b"", 3, 4, 1, 0], second],
            [[b"l", b"", 4, 4, 2, 0], second],
            [[b"", b"", 4, 4, 1, 0], second],
            # A delete of what is not there, a tombstone with a value, a key twice.
            [[b"m", b"", 0, 4, 0, 0], first, second],
            [first, [b"k", b"w", 0, 5, 0, 0]],
            [first, [b"k", b"", 2, 5, 0, 0]],
            [first, gone, [b"k", b"w", 4, 4, 1, 7], [b"j", b"", 5, 5, 1, 0]],
            [[b"k"]],
            [],
        ):
            self.refused(self.state(changes=changes))
        # A lease that is gone may have been that of an older version.
        data = self.state(leases=(), changes=[first, [b"k", b"w", 2, 5, 3, 0]])
        self.assertEqual(
            restored(data).event(b"k", 5, True).previous, restored(data).get(b"k", 4)
        )

    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(st.integers(0, 10_000), st.binary(min_size=1, max_size=6))
    def test_damage_is_refused_or_is_another_state(self, position: int, put: bytes) -> None:
        """Never an exception that nobody expects, and never the same state."""
        store = Store()
        apply(store, GrantLease(1, 1000))
        for n in range(6):
            apply(store, Put(b"%06d" % (n % 4), b"v", n % 2))
        apply(store, DeleteRange(b"000003"))
        apply(store, Compact(4))
        data = b"".join(store.snapshot())
        position %= len(data)
        damaged = data[:position] + put + data[position + len(put) :]
        try:
            other = restored(damaged)
        except ValueError:
            return
        check_invariants(other)
        self.assertEqual(other.digest() == store.digest(), damaged == data)
