"""The key-value state machine and the database over it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from raftd.core.membership import Change, Configuration
from raftd.core.messages import Command, Member, MemberId, decode_command
from raftd.errors import (
    BadRequest,
    NoLeader,
    OutcomeUnknown,
    ProtocolViolation,
    RaftdError,
    TooLarge,
)
from raftd.interfaces import (
    DeleteResult,
    Done,
    IDatabase,
    INode,
    IStateMachine,
    NodeStatus,
    PutResult,
    Value,
)
from raftd.kv import keys as keys_module
from raftd.kv import snapshots
from raftd.kv import store as store_module
from raftd.kv.database import MAX_KEY_BYTES, MAX_VALUE_BYTES, Database
from raftd.kv.keys import SortedKeys
from raftd.kv.operations import (
    DeleteRange,
    Operation,
    Put,
    Refusal,
    decode_delete_result,
    decode_operation,
    decode_put_result,
    encode_operation,
)
from raftd.kv.records import Record
from raftd.kv.store import Store
from raftd.slices import frame


def apply_bytes(store: Store, operation: bytes) -> tuple[bytes, int]:
    """The encoded result, and in how many steps it came."""
    result = store.apply(1, 0, Command(operation))
    if isinstance(result, bytes):
        return result, 0
    steps = 0
    while True:
        try:
            next(result)
        except StopIteration as done:
            value: bytes = done.value
            return value, steps
        steps += 1


def apply(store: Store, operation: Operation) -> Any:
    """What the operation came to: a list when it was carried out, a map when refused."""
    return msgspec.msgpack.decode(apply_bytes(store, encode_operation(operation))[0])


class Formats(SynchronousTestCase):
    """Operations are in the log: these bytes must never change."""

    def test_put(self) -> None:
        self.assertEqual(
            encode_operation(Put(b"k", b"v")), bytes.fromhex("94 01 c4016b c40176 00")
        )
        self.assertEqual(
            encode_operation(Put(b"k", b"", 7)), bytes.fromhex("94 01 c4016b c400 07")
        )

    def test_delete(self) -> None:
        self.assertEqual(
            encode_operation(DeleteRange(b"k")), bytes.fromhex("93 02 c4016b c400")
        )
        self.assertEqual(
            encode_operation(DeleteRange(b"k", b"l")), bytes.fromhex("93 02 c4016b c4016c")
        )

    def test_decoding_reverses_encoding(self) -> None:
        for operation in (Put(b"\0\xff", b"v" * 70_000, 2**63 - 1), DeleteRange(b"a", b"\0")):
            self.assertEqual(decode_operation(encode_operation(operation)), operation)

    def test_results(self) -> None:
        """A result is an array when carried out and a map when refused."""
        store = Store()
        self.assertEqual(apply(store, Put(b"k", b"v")), [2, True])
        self.assertEqual(apply(store, DeleteRange(b"k")), [3, 1])
        self.assertEqual(
            apply(store, Put(b"", b"v")),
            {"code": "bad_request", "message": "A key must have at least one byte."},
        )


class Semantics(SynchronousTestCase):
    """The store semantics of etcd v3, as far as they are offered."""

    def setUp(self) -> None:
        self.store = Store()

    def test_an_empty_store_is_at_revision_1(self) -> None:
        self.assertEqual(self.store.revision, 1)

    def test_the_first_write_makes_revision_2(self) -> None:
        self.assertEqual(apply(self.store, Put(b"k", b"v")), [2, True])
        self.assertEqual(self.store.revision, 2)
        self.assertEqual(self.store.get(b"k"), Record(b"v", 2, 2, 1))

    def test_replacing_keeps_the_create_revision_and_counts_the_version(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        apply(self.store, Put(b"other", b""))
        self.assertEqual(apply(self.store, Put(b"k", b"2")), [4, False])
        self.assertEqual(self.store.get(b"k"), Record(b"2", 2, 4, 2))

    def test_a_key_put_after_its_delete_begins_anew(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        apply(self.store, Put(b"k", b"2"))
        self.assertEqual(apply(self.store, DeleteRange(b"k")), [4, 1])
        self.assertIsNone(self.store.get(b"k"))
        self.assertEqual(apply(self.store, Put(b"k", b"3")), [5, True])
        self.assertEqual(self.store.get(b"k"), Record(b"3", 5, 5, 1))

    def test_deleting_a_missing_key_keeps_the_revision(self) -> None:
        apply(self.store, Put(b"k", b"1"))
        before = self.store.digest()
        self.assertEqual(apply(self.store, DeleteRange(b"missing")), [2, 0])
        self.assertEqual(self.store.digest(), before)

    def test_an_empty_key_is_refused(self) -> None:
        before = self.store.digest()
        for operation in (Put(b"", b"v"), DeleteRange(b""), DeleteRange(b"", b"\0")):
            self.assertEqual(apply(self.store, operation)["code"], "bad_request")
        self.assertEqual(self.store.digest(), before)

    def test_a_lease_that_was_never_granted_is_refused(self) -> None:
        self.assertEqual(apply(self.store, Put(b"k", b"v", 5))["code"], "lease_not_found")
        self.assertEqual(self.store.revision, 1)

    def test_a_range_delete_is_one_revision(self) -> None:
        for key in (b"a", b"b", b"b\0", b"c", b"d"):
            apply(self.store, Put(key, b""))
        self.assertEqual(apply(self.store, DeleteRange(b"b", b"d")), [7, 3])
        self.assertEqual(
            [k for k in (b"a", b"b", b"b\0", b"c", b"d") if self.store.get(k)], [b"a", b"d"]
        )

    def test_a_range_without_an_end_is_every_key_from_its_start(self) -> None:
        for key in (b"a", b"b", b"\xff\xff"):
            apply(self.store, Put(key, b""))
        self.assertEqual(apply(self.store, DeleteRange(b"b", b"\0")), [5, 2])
        self.assertEqual(apply(self.store, DeleteRange(b"\0", b"\0")), [6, 1])

    def test_a_range_that_ends_before_it_starts_is_empty(self) -> None:
        apply(self.store, Put(b"b", b""))
        self.assertEqual(apply(self.store, DeleteRange(b"c", b"a")), [2, 0])
        self.assertEqual(apply(self.store, DeleteRange(b"b", b"b")), [2, 0])

    def test_53_a_range_delete_is_applied_in_steps_and_seen_as_a_whole(self) -> None:
        """Between two steps a read sees the state before or the state after."""
        self.patch(store_module, "STEP_KEYS", 10)
        after = Store()
        for n in range(35):
            apply(self.store, Put(b"%02d" % n, b""))
            apply(after, Put(b"%02d" % n, b""))
        apply(after, DeleteRange(b"05", b"30"))

        def seen(store: Store) -> tuple[object, ...]:
            present = [n for n in range(35) if store.get(b"%02d" % n)]
            return (store.digest(), store.revision, len(store), present)

        expected = [seen(self.store), seen(after)]
        steps = self.store.apply(1, 0, Command(encode_operation(DeleteRange(b"05", b"30"))))
        assert not isinstance(steps, bytes)
        sights = [seen(self.store) for _ in steps]
        self.assertEqual([expected.index(s) for s in sights], [0, 0, 0, 1, 1, 1])
        self.assertEqual(seen(self.store), seen(after))

    def test_53_no_step_of_a_large_range_delete_takes_long(self) -> None:
        """A hundred thousand keys, while a snapshot is drawn; the median, with room."""
        for n in range(100_000):
            self.store.apply(1, 0, Command(encode_operation(Put(b"%020d" % n, b"v" * 64))))
        snapshot = self.store.snapshot()
        steps = self.store.apply(1, 0, Command(encode_operation(DeleteRange(b"0", b"\0"))))
        assert not isinstance(steps, bytes)
        taken_s = []
        while True:
            begin = time.perf_counter()
            if next(steps, True):
                break
            taken_s.append(time.perf_counter() - begin)
        self.assertGreater(len(taken_s), 20)
        self.assertLess(sorted(taken_s)[len(taken_s) // 2], 0.02)
        self.assertEqual((len(self.store), len(restored(b"".join(snapshot)))), (0, 100_000))


class UnknownOperations(SynchronousTestCase):
    """A committed command that this version cannot decode changes nothing, anywhere."""

    def refused(self, operation: bytes) -> None:
        store = Store()
        apply(store, Put(b"k", b"v"))
        before = store.digest()
        result, _ = apply_bytes(store, operation)
        self.assertEqual(msgspec.msgpack.decode(result)["code"], "unknown_operation")
        self.assertEqual(store.digest(), before)

    def test_a_kind_of_a_later_version(self) -> None:
        self.refused(msgspec.msgpack.encode([3, b"k"]))

    def test_a_field_of_a_later_version(self) -> None:
        """What it would mean is not known, so the rest is not carried out either."""
        self.refused(msgspec.msgpack.encode([1, b"k", b"v", 0, True]))

    def test_garbage(self) -> None:
        for operation in (b"", b"\xc1", b"\x94\x01", b"\x91" * 100_000, b"\x93\x01\x91\x91"):
            self.refused(operation)

    @settings(derandomize=True, max_examples=200, deadline=None)
    @given(st.binary(max_size=40))
    def test_any_bytes_have_a_result(self, operation: bytes) -> None:
        store = Store()
        result, _ = apply_bytes(store, operation)
        other, _ = apply_bytes(Store(), operation)
        self.assertEqual(result, other)
        self.assertIn(type(msgspec.msgpack.decode(result)), (list, dict))


KEYS = st.sampled_from([b"a", b"b", b"b\0", b"c", b"\xff"])
OPERATIONS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=3)),
    st.builds(DeleteRange, KEYS),
    st.builds(DeleteRange, KEYS, st.sampled_from([b"", b"\0", b"b", b"d"])),
)


class Determinism(SynchronousTestCase):
    @settings(derandomize=True, max_examples=100, deadline=None)
    @given(st.lists(OPERATIONS, max_size=30))
    def test_against_a_model(self, operations: list[Operation]) -> None:
        """A dictionary and a counter say the same, and equal logs give equal digests."""
        store, twin = Store(), Store()
        model: dict[bytes, tuple[bytes, int]] = {}
        revision = 1
        for operation in operations:
            result = apply(store, operation)
            self.assertEqual(result, apply(twin, operation))
            if isinstance(operation, Put):
                revision += 1
                self.assertEqual(result, [revision, operation.key not in model])
                model[operation.key] = (operation.value, revision)
            else:
                start, end = operation.key, operation.range_end
                if not end:
                    gone = [k for k in model if k == start]
                else:
                    gone = [k for k in model if k >= start and (end == b"\0" or k < end)]
                revision += bool(gone)
                self.assertEqual(result, [revision, len(gone)])
                for key in gone:
                    del model[key]
            self.assertEqual(store.digest(), twin.digest())
        self.assertEqual(len(store), len(model))
        for key, (value, mod_revision) in model.items():
            record = store.get(key)
            assert record is not None
            self.assertEqual((record.value, record.mod_revision), (value, mod_revision))

    def test_digests_tell_states_apart(self) -> None:
        """Also those that differ in a counter only."""
        logs: list[list[Operation]] = [
            [],
            [Put(b"k", b"v")],
            [Put(b"k", b"w")],
            [Put(b"k", b"v"), DeleteRange(b"k")],
            [Put(b"k", b"v"), Put(b"k", b"v")],
            [Put(b"k", b"v"), DeleteRange(b"k"), Put(b"k", b"v")],
            [Put(b"j", b""), Put(b"k", b"v")],
            [Put(b"k", b"v"), Put(b"j", b"")],
        ]
        digests = set()
        for log in logs:
            store = Store()
            for operation in log:
                apply(store, operation)
            digests.add(store.digest())
        self.assertEqual(len(digests), len(logs))

    def test_the_digest_does_not_depend_on_the_order_of_loading(self) -> None:
        store, twin = Store(), Store()
        for target in (store, twin):
            for key in (b"b", b"c", b"a"):
                apply(target, Put(key, b""))
        twin._records = dict(sorted(twin._records.items()))
        self.assertEqual(store.digest(), twin.digest())

    def test_the_digest_is_the_same_in_another_process(self) -> None:
        """No order that depends on the seed of string hashes gets into it."""
        program = (
            "from raftd.kv.store import Store\n"
            "from raftd.kv.operations import Put, encode_operation\n"
            "from raftd.core.messages import Command\n"
            "s = Store()\n"
            "for key in (b'b', b'a', b'c'):\n"
            "    s.apply(1, 0, Command(encode_operation(Put(key, b''))))\n"
            "print(s.digest().hex())\n"
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


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, again and again."""
    position = 0
    while position < len(data):
        for size in sizes:
            yield data[position : position + size]
            position += size


def restored(data: bytes, sizes: Sequence[int] = (1 << 30,)) -> Store:
    """A store that had other keys before."""
    store = Store()
    apply(store, Put(b"before", b"this"))
    restore = store.restore()
    for piece in cut(data, sizes):
        restore.write(piece)
    restore.finish()
    return store


class Interleaved:
    """Applies operations, and draws a snapshot's slices at any time, also between two steps."""

    def __init__(self, store: Store, draws: Iterator[bool]) -> None:
        self.store = store
        self.draws = draws
        self.snapshot: Iterator[bytes] | None = None
        self.slices: list[bytes] = []

    def maybe_draw(self) -> None:
        if self.snapshot is not None and next(self.draws, False):
            self.slices += islice(self.snapshot, 1)

    def apply(self, operation: Operation) -> None:
        result = self.store.apply(1, 0, Command(encode_operation(operation)))
        self.maybe_draw()
        if not isinstance(result, bytes):
            for _ in result:
                self.maybe_draw()
        self.maybe_draw()


class Snapshots(SynchronousTestCase):
    """`raftd.kv.snapshots`; the format is that of docs/store-snapshot.md."""

    def setUp(self) -> None:
        self.store = Store()

    def fill(self, keys: int, value: bytes = b"v") -> None:
        for n in range(keys):
            apply(self.store, Put(b"%06d" % n, value))

    def test_the_format(self) -> None:
        apply(self.store, Put(b"k", b"v"))
        apply(self.store, Put(b"k", b"w"))
        apply(self.store, Put(b"j", b""))
        slices = [
            "0e000000 93 aa 72616674642e6b762f31 04 02",
            "18000000 92 92 c4016a 95 c400 04 04 01 00 92 c4016b 95 c40177 02 03 02 00",
        ]
        data = b"".join(self.store.snapshot())
        self.assertEqual(data, b"".join(map(bytes.fromhex, slices)))
        self.assertEqual(restored(data).digest(), self.store.digest())

    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(
        st.lists(OPERATIONS, max_size=20),
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
        self.patch(snapshots, "SLICE_KEYS", slice_size[0])
        self.patch(snapshots, "SLICE_BYTES", slice_size[1])
        self.patch(store_module, "STEP_KEYS", 2)
        driver = Interleaved(Store(), iter(draws))
        twin = Store()
        for operation in before:
            driver.apply(operation)
            apply(twin, operation)
        then, keys = twin.digest(), len(twin)
        driver.snapshot = driver.store.snapshot()
        for operation in after:
            driver.apply(operation)
            apply(twin, operation)
        driver.slices += driver.snapshot
        copy = restored(b"".join(driver.slices), sizes)
        self.assertEqual((copy.digest(), len(copy)), (then, keys))
        self.assertEqual(driver.store.digest(), twin.digest())
        # It is a store like any other: what was not drawn from it works as well.
        for operation in after:
            apply(copy, operation)
        self.assertEqual(copy.digest(), twin.digest())

    def test_45_slices_are_bounded(self) -> None:
        self.fill(3000, b"v" * 100)
        slices = list(self.store.snapshot())
        self.assertGreater(len(slices), 5)
        self.assertLess(max(map(len, slices)), 80_000)
        apply(self.store, Put(b"large", b"v" * 500_000))
        self.assertLess(max(map(len, self.store.snapshot())), 500_000 + 80_000)

    def test_45_a_slice_walks_past_a_bounded_number_of_keys(self) -> None:
        """Also if none of them belongs into it."""
        apply(self.store, Put(b"z", b""))
        snapshot = self.store.snapshot()
        next(snapshot)
        self.fill(3 * snapshots.SLICE_KEYS)
        slices = list(snapshot)
        self.assertEqual(len(slices), 4)
        self.assertEqual(sum(map(len, slices[:3])), 3 * len(slices[0]))

    def test_45_beginning_looks_at_no_key(self) -> None:
        """The call takes as long for many keys as for few: it touches neither."""
        self.fill(10)

        class Untouchable(SortedKeys):
            def range(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
                raise AssertionError("looked at the keys")

        self.store._keys.__class__ = Untouchable
        snapshot = self.store.snapshot()
        next(snapshot)
        self.assertRaises(AssertionError, next, snapshot)

    def test_45_only_what_changes_is_kept(self) -> None:
        self.fill(1000)
        snapshot = self.store.snapshot()
        for n in range(3):
            for _ in range(5):
                apply(self.store, Put(b"%06d" % n, b"w"))
        self.assertEqual((len(snapshot._kept), len(snapshot._removed)), (3, 3))

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
                else:
                    del snapshot
                apply(self.store, Put(b"000000", b"w"))
                self.assertIsNone(self.store._snapshot)
        snapshot = self.store.snapshot()
        self.assertEqual(len(list(snapshot)), 2)
        apply(self.store, Put(b"000000", b"w"))
        self.assertIsNone(self.store._snapshot)

    def test_42_another_snapshot_ends_the_one_before(self) -> None:
        """What was half drawn can never pass for a whole one."""
        self.fill(10)
        first = self.store.snapshot()
        next(first)
        second = self.store.snapshot()
        digest = self.store.digest()
        apply(self.store, Put(b"000005", b"w"))
        self.assertRaises(RuntimeError, next, first)
        self.assertRaises(RuntimeError, list, first)
        self.assertEqual(restored(b"".join(second)).digest(), digest)

    def test_nothing_is_visible_until_the_restore_is_finished(self) -> None:
        self.fill(10)
        data = b"".join(self.store.snapshot())
        other = Store()
        apply(other, Put(b"k", b"v"))
        digest = other.digest()
        restore = other.restore()
        restore.write(data)
        self.assertEqual(other.digest(), digest)
        restore.finish()
        self.assertEqual(other.digest(), self.store.digest())
        self.assertEqual((len(other), other.revision), (10, 11))
        self.assertRaises(ValueError, restore.finish)

    def test_a_snapshot_goes_on_over_a_restore(self) -> None:
        self.fill(10)
        digest = self.store.digest()
        snapshot = self.store.snapshot()
        other = b"".join(Store().snapshot())
        restore = self.store.restore()
        restore.write(other)
        restore.finish()
        apply(self.store, Put(b"000005", b"w"))
        self.assertEqual(restored(b"".join(snapshot)).digest(), digest)

    def test_43_what_is_cut_short_is_refused(self) -> None:
        self.patch(snapshots, "SLICE_BYTES", 30)
        self.fill(3)
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
            restore.write(data)
            restore.finish()

        self.assertRaises(ValueError, whole)
        self.assertRaises(ValueError, restore.finish)
        self.assertEqual(store.digest(), digest)

    def test_what_is_too_long_is_refused(self) -> None:
        self.fill(3)
        data = b"".join(self.store.snapshot())
        for more in (b"\0", frame(b""), frame(b"\x90"), data):
            self.refused(data + more)

    def test_what_is_no_store_is_refused(self) -> None:
        encode = msgspec.msgpack.encode
        head, good = ["raftd.kv/1", 5, 1], [b"k", [b"v", 2, 3, 2, 0]]
        self.assertEqual(len(restored(frame(encode(head)) + frame(encode([good])))), 1)
        self.refused(b"\xff" * 100)
        for bad in (["raftd.kv/2", 5, 1], ["raftd.kv/1", 0, 1], ["raftd.kv/1", 5, -1], []):
            self.refused(frame(encode(bad)) + frame(encode([good])))
        for rows in (
            [[b"k"]],
            [good, good],
            [[b"", [b"v", 2, 3, 2, 0]]],
            [[b"k", [b"v", 1, 3, 2, 0]]],
            [[b"k", [b"v", 4, 3, 2, 0]]],
            [[b"k", [b"v", 2, 6, 2, 0]]],
            [[b"k", [b"v", 2, 3, 0, 0]]],
            [[b"k", [b"v", 2, 3, 3, 0]]],
            [[b"k", [b"v", 2, 3, 2, -1]]],
            [good, [b"l", [b"v", 2, 3, 2, 0]]],
        ):
            self.refused(frame(encode(head)) + frame(encode(rows)))

    @settings(derandomize=True, max_examples=200, deadline=None)
    @given(st.integers(0, 10_000), st.binary(min_size=1, max_size=6))
    def test_damage_is_refused_or_is_another_state(self, position: int, put: bytes) -> None:
        """Never an exception that nobody expects, and never the same state."""
        store = Store()
        for n in range(4):
            apply(store, Put(b"%06d" % n, b"v"))
        data = b"".join(store.snapshot())
        position %= len(data)
        damaged = data[:position] + put + data[position + len(put) :]
        try:
            other = restored(damaged)
        except ValueError:
            return
        self.assertEqual(other.digest() == store.digest(), damaged == data)

    def test_the_digest_does_not_depend_on_history(self) -> None:
        """How the state came about, in what order: no matter."""
        self.fill(2000)
        for n in range(0, 2000, 2):
            apply(self.store, DeleteRange(b"%06d" % n))
        data = b"".join(self.store.snapshot())
        copy = restored(data, [1000, 7])
        self.assertEqual(copy.digest(), self.store.digest())
        self.assertEqual(b"".join(copy.snapshot()), data)

    def test_45_figures(self) -> None:
        """A hundred thousand keys: bounds with room for a busy machine."""
        for n in range(100_000):
            self.store.apply(1, 0, Command(encode_operation(Put(b"%020d" % n, b"v" * 64))))
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


class Keys(SynchronousTestCase):
    @settings(derandomize=True, max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["add", "remove", "range", "extend"]),
                st.binary(min_size=1, max_size=2),
                st.binary(max_size=2),
            ),
            max_size=80,
        ),
        st.sampled_from([2, 3, 8]),
    )
    def test_against_a_model(self, steps: list[tuple[str, bytes, bytes]], size: int) -> None:
        self.patch(keys_module, "MAX_CHUNK_KEYS", size)
        keys, model = SortedKeys(), list[bytes]()
        for what, key, other in steps:
            if what == "add" and key not in model:
                keys.add(key)
                model = sorted([*model, key])
            elif what == "remove" and model:
                present = model[int.from_bytes(key, "big") % len(model)]
                keys.remove(present)
                model.remove(present)
            elif what == "range":
                end = other or None
                inside = [k for k in model if k >= key and (end is None or k < end)]
                for limit in (1, 3, 100):
                    self.assertEqual(keys.range(key, end, limit), inside[:limit])
                keys.remove_range(key, end)
                model = [k for k in model if k not in inside]
            elif what == "extend":
                more = sorted({(model or [b""])[-1] + bytes([n]) for n in key + other})
                keys.extend(more)
                model += more
            self.assertEqual(list(keys), model)
            self.assertTrue(all(0 < len(chunk) <= size for chunk in keys._chunks))
            self.assertEqual([chunk[-1] for chunk in keys._chunks], keys._lasts)


@implementer(INode)
class FakeNode:
    """A node that applies at once, or answers what the test wants."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.proposed: list[bytes] = []
        self.outcome: bytes | RaftdError | None = None
        self.reads: list[Done[None]] = []

    def propose(self, data: bytes, done: Done[bytes]) -> None:
        self.proposed.append(data)
        if self.outcome is not None:
            done(self.outcome)
            return
        result, _ = apply_bytes(self.store, decode_command(data).operation)
        done(result)

    def read(self, done: Done[None]) -> None:
        self.reads.append(done)

    def read_recent(self, max_staleness_s: float, done: Done[None]) -> None:
        raise NotImplementedError

    def change_membership(
        self, changes: Sequence[Change], force: bool
    ) -> Deferred[Configuration]:
        raise NotImplementedError

    def transfer(self, successor: MemberId | None) -> Deferred[None]:
        raise NotImplementedError

    def status(self) -> NodeStatus:
        me = Member(1, "localhost:1")
        return NodeStatus(me, 1, "leader", 1, me, 1, 1, 1, 1, 0, 0.0, ())


class Databases(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()
        self.node = FakeNode(self.store)
        self.database = Database(self.node, self.store)
        self.outcomes: list[Any] = []

    def outcome(self, call: Callable[[Done[Any]], None]) -> Any:
        call(self.outcomes.append)
        return self.outcomes.pop()

    def put(self, key: bytes, value: bytes) -> Any:
        return self.outcome(lambda done: self.database.put(key, value, done))

    def test_interfaces(self) -> None:
        self.assertTrue(verifyObject(IDatabase, self.database))
        self.assertTrue(verifyObject(IStateMachine, self.store))

    def test_put_and_delete(self) -> None:
        self.assertEqual(self.put(b"k", b"v"), PutResult(2, True))
        self.assertEqual(self.put(b"k", b"w"), PutResult(3, False))
        self.assertEqual(self.database.revision, 3)
        delete = self.outcome(lambda done: self.database.delete(b"k", done))
        self.assertEqual(delete, DeleteResult(4, 1))
        delete = self.outcome(lambda done: self.database.delete(b"k", done))
        self.assertEqual(delete, DeleteResult(4, 0))

    def test_what_is_proposed_is_a_command(self) -> None:
        self.put(b"k", b"v")
        (data,) = self.node.proposed
        self.assertEqual(decode_command(data), Command(encode_operation(Put(b"k", b"v"))))

    def test_a_linearizable_read_waits_for_the_node(self) -> None:
        """And then sees what was applied in the meantime."""
        self.database.get(b"k", True, self.outcomes.append)
        self.assertEqual(self.outcomes, [])
        self.put(b"k", b"v")
        self.node.reads.pop()(None)
        self.assertEqual(self.outcomes, [Value(b"v", 2)])

    def test_a_linearizable_read_may_fail(self) -> None:
        self.database.get(b"k", True, self.outcomes.append)
        error = NoLeader("There is none.")
        self.node.reads.pop()(error)
        self.assertEqual(self.outcomes, [error])

    def test_a_local_read_asks_nobody(self) -> None:
        get = self.outcome(lambda done: self.database.get(b"k", False, done))
        self.assertIsNone(get)
        self.put(b"k", b"v")
        get = self.outcome(lambda done: self.database.get(b"k", False, done))
        self.assertEqual((get, self.node.reads), (Value(b"v", 2), []))

    def test_errors_of_the_node_are_passed_on(self) -> None:
        for error in (NoLeader("a"), OutcomeUnknown("b")):
            self.node.outcome = error
            self.assertIs(self.put(b"k", b"v"), error)

    def test_a_refusal_is_an_error_with_its_own_code(self) -> None:
        self.node.outcome = msgspec.msgpack.encode(Refusal("lease_not_found", "No."))
        error = self.put(b"k", b"v")
        self.assertIsInstance(error, BadRequest)
        self.assertEqual((error.code, str(error)), ("lease_not_found", "No."))

    def test_30_a_result_that_cannot_be_read_is_unknown(self) -> None:
        """The write was applied; it must not pass for one that was not."""
        for result in (b"", b"\xc1", b"\x81", msgspec.msgpack.encode(["1", 2])):
            self.node.outcome = result
            delete = self.outcome(lambda done: self.database.delete(b"k", done))
            self.assertIsInstance(delete, OutcomeUnknown)
            self.assertIsInstance(self.put(b"k", b"v"), OutcomeUnknown)

    def test_results_decode(self) -> None:
        self.assertEqual(decode_put_result(bytes.fromhex("92 05 c3")), PutResult(5, True))
        for garbage in (b"", b"\xc1", b"\x81\xa4code\xa1\xeb"):
            with self.assertRaises(ProtocolViolation):
                decode_put_result(garbage)
        self.assertEqual(decode_delete_result(bytes.fromhex("92 05 02")), DeleteResult(5, 2))

    def test_bounds_are_checked_before_the_log(self) -> None:
        self.assertIsInstance(self.put(b"k", b"v" * (MAX_VALUE_BYTES + 1)), TooLarge)
        for key in (b"", b"k" * (MAX_KEY_BYTES + 1)):
            self.assertIsInstance(self.put(key, b"v"), BadRequest)
            self.database.delete(key, self.outcomes.append)
            self.database.get(key, True, self.outcomes.append)
            self.database.get(key, False, self.outcomes.append)
        self.assertEqual({type(o) for o in self.outcomes}, {BadRequest})
        self.assertEqual((self.node.proposed, self.node.reads), ([], []))
        self.assertEqual(
            self.put(b"k" * MAX_KEY_BYTES, b"v" * MAX_VALUE_BYTES), PutResult(2, True)
        )
