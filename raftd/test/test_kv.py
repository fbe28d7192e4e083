"""The key-value state machine and the database over it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
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
from raftd.errors import BadRequest, NoLeader, OutcomeUnknown, RaftdError, TooLarge
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
from raftd.kv import store as store_module
from raftd.kv.database import MAX_KEY_BYTES, MAX_VALUE_BYTES, Database
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
        """Between two steps a read sees the last complete revision."""
        self.patch(store_module, "SCAN_KEYS", 10)
        for n in range(35):
            apply(self.store, Put(b"%02d" % n, b""))
        before = self.store.digest()
        steps = self.store.apply(1, 0, Command(encode_operation(DeleteRange(b"0", b"\0"))))
        assert not isinstance(steps, bytes)
        for _ in range(4):
            next(steps)
            self.assertEqual(self.store.digest(), before)
        self.assertRaises(StopIteration, next, steps)
        self.assertEqual((len(self.store), self.store.revision), (0, 37))


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
