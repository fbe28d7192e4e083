"""One answer for one key: the replicated table of idempotency keys."""

from __future__ import annotations

import time
from collections.abc import Generator
from hashlib import blake2b
from random import Random
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from raftd import idempotency
from raftd.core.messages import Command, encode_command
from raftd.errors import (
    BadRequest,
    DidNotHappen,
    IdempotencyKeyReused,
    IdempotencyTableFull,
    ProtocolViolation,
    RaftdError,
)
from raftd.idempotency import KEY_TTL_MS, Idempotency, _Table, decode_result, retry_of
from raftd.interfaces import IStateMachine
from raftd.replica import ReplicaOptions
from raftd.slices import frame
from raftd.test.drivers import Answer, Journal
from raftd.test.test_sessions import Large, Slow
from raftd.testing import Cluster

encode = msgspec.msgpack.encode


def key(name: bytes | int, body: bytes = b"", method: str = "PUT") -> bytes:
    data = name if isinstance(name, bytes) else b"%d" % name
    return retry_of(data, method, b"/db/a?ttl=1", body)


class Refusing(Journal):
    """Answers `full`, and changes nothing, until there is room; refuses `never` for good."""

    has_room = False

    def apply_command(self, operation: bytes) -> bytes:
        if operation == b"room":
            self.has_room = True
            return b"ok"
        if operation == b"never":
            return b"refused %d" % len(self.operations)
        return super().apply_command(operation) if self.has_room else b"full"


class Machine:
    """A wrapped machine, its log indexes and its clock."""

    def __init__(self, inner: Journal | None = None, **options: Any) -> None:
        self.inner = inner or Journal()
        self.machine = Idempotency(self.inner, **options)
        self.index = 0
        self.now_ms = 1_000

    def apply(self, retry: bytes, operation: bytes = b"x") -> bytes:
        self.index += 1
        command = Command(operation, idempotency_key=retry)
        result = self.machine.apply(self.index, self.now_ms, command)
        if isinstance(result, bytes):
            return result
        try:
            while True:
                next(result)
        except StopIteration as stop:
            value: bytes = stop.value
            return value

    def result(self, retry: bytes, operation: bytes = b"x") -> bytes | RaftdError:
        return decode_result(self.apply(retry, operation))

    def state(self) -> bytes:
        return b"".join(self.machine.snapshot())

    def restored(self, state: bytes | None = None, cut: int = 1 << 20) -> Machine:
        """Another one, from the state of this one."""
        other = Machine(type(self.inner)())
        restore = other.machine.restore()
        data = self.state() if state is None else state
        for begin in range(0, len(data), cut):
            restore.write(data[begin : begin + cut])
        restore.finish()
        other.index, other.now_ms = self.index, self.now_ms
        return other


class KeyTests(SynchronousTestCase):
    """What makes two requests the same."""

    def test_shape(self) -> None:
        self.assertEqual(len(key(1)), 32)
        self.assertEqual(key(1), key(1))

    def test_the_bytes(self) -> None:
        """They are in the log, and a retry may come through a node of another version."""
        found = retry_of(b"k", "PUT", b"/db/a?ttl=1", b"value")
        self.assertEqual(found[:16].hex(), "7322fc195556dcebf4a3bfd23b0d9c99")
        self.assertEqual(found[16:].hex(), "013b4521fc63d685b3961c4144f1581e")

    def test_everything_of_the_request_counts(self) -> None:
        same = [
            retry_of(b"k", "PUT", b"/db/a", b"body"),
            retry_of(b"k", "POST", b"/db/a", b"body"),
            retry_of(b"k", "PUT", b"/db/b", b"body"),
            retry_of(b"k", "PUT", b"/db/a?lease=1", b"body"),
            retry_of(b"k", "PUT", b"/db/a", b"Body"),
            retry_of(b"k", "PUT", b"/db/abody", b""),
            retry_of(b"k", "PUT/db/a", b"", b"body"),
        ]
        self.assertEqual(len(set(same)), len(same))
        self.assertEqual(len({retry[:16] for retry in same}), 1)
        self.assertNotEqual(key(b"a")[:16], key(b"b")[:16])
        self.assertEqual(key(b"a")[16:], key(b"b")[16:])


class RuleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.it = Machine()

    def test_it_is_a_state_machine(self) -> None:
        verifyObject(IStateMachine, self.it.machine)

    def test_without_a_key_it_is_as_if_it_were_not_there(self) -> None:
        self.assertEqual([self.it.apply(b"") for _ in range(3)], [b"1", b"2", b"3"])
        self.assertEqual(len(self.it.machine), 0)

    def test_29_a_retry_gets_the_first_answer_and_is_not_carried_out(self) -> None:
        self.assertEqual(self.it.result(key(1), b"a"), b"1")
        self.assertEqual(self.it.result(key(2), b"b"), b"2")
        for _ in range(3):
            self.assertEqual(self.it.result(key(1), b"a"), b"1")
        self.assertEqual(self.it.inner.operations, [b"a", b"b"])

    def test_29_the_operation_of_a_retry_may_differ_if_the_request_does_not(self) -> None:
        """The proposer may have drawn another id: what counts is what the client said."""
        self.assertEqual(self.it.result(key(1), b"with id 7"), b"1")
        self.assertEqual(self.it.result(key(1), b"with id 8"), b"1")
        self.assertEqual(self.it.inner.operations, [b"with id 7"])

    def test_29_the_same_key_with_another_request_is_refused(self) -> None:
        self.it.result(key(1, b"a"), b"a")
        for other in (key(1, b"b"), key(1, b"a", "POST")):
            refused = self.it.result(other, b"b")
            self.assertIsInstance(refused, IdempotencyKeyReused)
            self.assertIsInstance(refused, DidNotHappen)
        self.assertEqual(self.it.inner.operations, [b"a"])
        self.assertEqual(self.it.result(key(1, b"a"), b"a"), b"1")

    def test_what_is_no_key_is_refused(self) -> None:
        for bad in (b"x", key(1)[:16], key(1) + b"x"):
            self.assertIsInstance(self.it.result(bad), BadRequest)
        self.assertEqual(self.it.inner.operations, [])

    def test_an_empty_result(self) -> None:
        it = Machine(Large())
        self.assertEqual(it.result(key(1), b"0"), b"")
        self.assertEqual(it.result(key(1), b"0"), b"")
        self.assertEqual(it.inner.operations, [b"0"])

    def test_29_an_application_in_steps(self) -> None:
        it = Machine(Slow())
        under_way = it.machine.apply(1, 5, Command(b"a", idempotency_key=key(1)))
        assert isinstance(under_way, Generator)
        next(under_way)
        self.assertEqual(len(it.machine), 0, "it has no result yet")
        next(under_way)
        with self.assertRaises(StopIteration) as stop:
            next(under_way)
        self.assertEqual(decode_result(stop.exception.value), b"1")
        self.assertEqual(it.result(key(1), b"a"), b"1")
        self.assertEqual(it.inner.operations, [b"a"])

    def test_a_refusal_is_an_answer_too(self) -> None:
        it = Machine(Refusing())
        self.assertEqual(it.result(key(1), b"never"), b"refused 0")
        it.apply(b"", b"room")
        it.apply(b"", b"a")
        self.assertEqual(it.result(key(1), b"never"), b"refused 0")

    def test_29_a_refusal_that_is_to_be_sat_out_is_not_kept(self) -> None:
        it = Machine(Refusing(), is_temporary=lambda result: result == b"full")
        self.assertEqual(it.result(key(1), b"a"), b"full")
        self.assertEqual(len(it.machine), 0)
        self.assertEqual(it.result(key(1), b"a"), b"full")
        it.apply(b"", b"room")
        self.assertEqual(it.result(key(1), b"a"), b"1")
        self.assertEqual(it.result(key(1), b"a"), b"1")

    def test_what_is_no_result(self) -> None:
        for bad in (b"", b"\x04", b"\x01more", b"\xff"):
            self.assertRaises(ProtocolViolation, decode_result, bad)

    def test_a_command_without_a_key_costs_next_to_nothing(self) -> None:
        class Nothing(Journal):
            def apply(self, index: int, time_ms: int, command: Command) -> bytes:
                return b""

        bare = Nothing()
        wrapped = Idempotency(bare)
        command = Command(b"x")

        def cost(machine: Any) -> float:
            began = time.perf_counter()
            for _ in range(20_000):
                machine.apply(1, 1, command)
            return time.perf_counter() - began

        best = min(cost(wrapped) - cost(bare) for _ in range(7))
        self.assertLess(best / 20_000, 1e-6)


class TimeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.it = Machine()

    def test_29_31_a_key_is_kept_for_ten_minutes_of_the_log(self) -> None:
        self.assertEqual(KEY_TTL_MS, 10 * 60 * 1000)
        self.it.result(key(1), b"a")
        self.it.now_ms += KEY_TTL_MS - 1
        self.assertEqual(self.it.result(key(1), b"a"), b"1")
        self.assertIsInstance(self.it.result(key(1, b"b"), b"b"), IdempotencyKeyReused)
        self.it.now_ms += 1
        self.assertEqual(self.it.result(key(1, b"b"), b"b"), b"2")
        self.assertEqual(len(self.it.machine), 1)

    def test_29_a_retry_does_not_keep_it_longer(self) -> None:
        self.it.result(key(1), b"a")
        self.it.now_ms += KEY_TTL_MS - 1
        self.it.result(key(1), b"a")
        self.it.now_ms += 1
        self.assertEqual(self.it.result(key(1), b"a"), b"2")

    def test_31_keys_expire_in_bounded_steps_and_none_counts_longer(self) -> None:
        self.patch(idempotency, "MAX_EXPIRED_AT_ONCE", 3)
        for n in range(100):
            self.it.result(key(n))
        self.it.now_ms += KEY_TTL_MS
        self.it.result(key(b"one"))
        self.assertEqual(len(self.it.machine), 98)
        # One that was not cleared away is as good as gone.
        self.assertEqual(self.it.result(key(99)), b"102")
        self.assertEqual(len(self.it.machine), 95)
        for n in range(60):
            self.it.result(key(1000 + n))
        self.assertEqual(len(self.it.machine), 62)

    def test_31_commands_without_a_key_move_no_clock(self) -> None:
        self.it.result(key(1), b"a")
        digest = self.it.machine.digest()
        self.it.now_ms += KEY_TTL_MS
        self.it.inner.operations.clear()
        self.it.apply(b"", b"a")
        self.assertEqual(self.it.machine.digest(), digest)

    def test_31_a_time_that_goes_back_changes_nothing(self) -> None:
        self.it.now_ms = 10_000_000
        self.it.result(key(1), b"a")
        self.it.now_ms = 5
        self.it.result(key(2), b"b")
        self.it.now_ms = 5 + KEY_TTL_MS
        self.assertEqual(self.it.result(key(2), b"b"), b"2")


class BoundTests(SynchronousTestCase):
    def test_29_31_when_full_new_keys_are_refused_and_none_is_dropped(self) -> None:
        self.patch(idempotency, "MAX_KEYS", 10)
        it = Machine()
        for n in range(10):
            it.result(key(n))
        refused = it.result(key(b"new"))
        self.assertIsInstance(refused, IdempotencyTableFull)
        self.assertIsInstance(refused, DidNotHappen)
        self.assertEqual(len(it.inner.operations), 10, "it was carried out")
        for n in range(10):
            self.assertEqual(it.result(key(n)), b"%d" % (n + 1))
        self.assertEqual(it.apply(b""), b"11", "without a key it goes on")
        it.now_ms += KEY_TTL_MS
        self.assertEqual(it.result(key(b"new")), b"12")

    def test_31_results_are_bounded_in_bytes(self) -> None:
        self.patch(idempotency, "MAX_RESULT_BYTES", 1000)
        it = Machine(Large())
        self.assertEqual(it.result(key(1), b"999"), b"r" * 999)
        self.assertEqual(it.result(key(2), b"500"), b"r" * 500, "less than one result more")
        self.assertIsInstance(it.result(key(3), b"0"), IdempotencyTableFull)
        self.assertEqual(it.result(key(2), b"500"), b"r" * 500)
        self.assertIsInstance(it.restored().result(key(3), b"0"), IdempotencyTableFull)
        it.now_ms += KEY_TTL_MS
        self.assertEqual(it.result(key(3), b"0"), b"")

    def test_31_a_full_table_of_expired_keys_takes_new_ones_at_once(self) -> None:
        self.patch(idempotency, "MAX_KEYS", 100)
        it = Machine()
        for n in range(100):
            it.result(key(n))
        it.now_ms += KEY_TTL_MS
        for n in range(100):
            self.assertIsInstance(it.result(key(1000 + n)), bytes)


class SnapshotTests(SynchronousTestCase):
    """31, for keys: the table is in every snapshot, as of the same index."""

    def filled(self, size: int = 200) -> Machine:
        it = Machine()
        for n in range(size):
            it.now_ms += 7
            it.result(key(n), b"op %d" % n)
        return it

    def test_31_the_table_is_restored_with_the_state(self) -> None:
        it = self.filled()
        for cut in (1 << 20, 1, 7):
            other = it.restored(cut=cut)
            self.assertEqual(other.machine.digest(), it.machine.digest())
            for n in range(200):
                self.assertEqual(other.result(key(n)), b"%d" % (n + 1))
            self.assertEqual(len(other.inner.operations), 200)

    def test_31_a_snapshot_is_as_of_its_call_whatever_is_applied_meanwhile(self) -> None:
        self.patch(idempotency, "SLICE_BYTES", 300)
        random = Random(1)
        for drawn_first in range(0, 30, 3):
            it = self.filled()
            expected = it.state()
            snapshot = it.machine.snapshot()
            state = [next(snapshot) for _ in range(drawn_first)]
            for _ in range(30):
                it.now_ms += random.choice([0, 0, 10, KEY_TTL_MS // 20])
                it.result(key(random.randrange(1000)), b"later")
                state += [s for s in [next(snapshot, b"")] if s]
            state += list(snapshot)
            self.assertEqual(b"".join(state), expected)

    def test_31_a_key_that_expires_and_is_used_again_while_a_snapshot_is_drawn(self) -> None:
        """Cleared away from the front, or found to be over further behind: both are kept."""
        self.patch(idempotency, "MAX_EXPIRED_AT_ONCE", 2)
        self.patch(idempotency, "_SLICE_PLACES", 5)
        it = self.filled(50)
        expected = it.state()
        snapshot = it.machine.snapshot()
        state = [next(snapshot), next(snapshot)]
        it.now_ms += KEY_TTL_MS
        for n in (30, 49, 3, 7, 40, 41):
            it.result(key(n), b"again")
        self.assertEqual(b"".join([*state, *snapshot]), expected)

    def test_a_snapshot_that_is_given_up_costs_nothing_more(self) -> None:
        it = self.filled()
        snapshot = it.machine.snapshot()
        next(snapshot)
        snapshot.close()  # type: ignore[attr-defined]
        self.assertEqual(list(snapshot), [])
        dropped = it.machine.snapshot()
        next(dropped)
        del dropped
        it.now_ms += KEY_TTL_MS
        for n in range(30):
            it.result(key(1000 + n))
        self.assertIsNone(it.machine._table._drawn)

    def test_31_what_is_not_cleared_away_yet_is_part_of_the_state(self) -> None:
        """A node from a snapshot and one from the log go on alike, to the last refusal."""
        self.patch(idempotency, "MAX_EXPIRED_AT_ONCE", 2)
        self.patch(idempotency, "MAX_KEYS", 40)
        for seed in range(20):
            random = Random(seed)
            it = Machine()
            for _ in range(150):
                it.now_ms += random.choice([0, 1, 1000, KEY_TTL_MS // 3])
                it.result(key(random.randrange(60)), b"a")
            other = it.restored()
            for _ in range(150):
                ms = random.choice([0, 1, 1000, KEY_TTL_MS // 3])
                it.now_ms += ms
                other.now_ms += ms
                retry = key(random.randrange(60), random.choice([b"", b"other"]))
                self.assertEqual(it.apply(retry, b"b"), other.apply(retry, b"b"))
            self.assertEqual(len(it.machine), len(other.machine))
            self.assertEqual(it.machine.digest(), other.machine.digest())

    def test_31_the_digest_covers_the_table(self) -> None:
        machines = [Machine() for _ in range(5)]
        for it in machines:
            it.apply(b"", b"a")
        _, two, three, four, five = machines
        two.result(key(1), b"b")
        three.result(key(2), b"b")
        four.now_ms += 1
        four.result(key(1), b"b")
        five.result(key(1, b"body"), b"b")
        self.assertEqual(len({it.machine.digest() for it in machines}), 5)

    def test_while_a_state_is_on_its_way_in_the_present_one_stays(self) -> None:
        it, other = self.filled(10), self.filled(3)
        restore = other.machine.restore()
        restore.write(it.state())
        self.assertEqual(len(other.machine), 3)
        restore.finish()
        self.assertEqual(len(other.machine), 10)

    def test_what_is_no_table_is_refused(self) -> None:
        def row(name: int = 1, at: int = 5, fingerprint: bytes = b"f" * 16) -> list[object]:
            return [b"%016d" % name, fingerprint, at, b"r"]

        def table(*rows: object, keys: int | None = None, now: int = 9) -> bytes:
            count = len(rows) if keys is None else keys
            head = encode(["raftd.idempotency/1", now, count])
            return frame(head) + frame(encode(rows)) + frame(b"")

        inner = b"".join(Journal().snapshot())
        it = Machine()
        good = table(row(1), row(2)) + inner
        it.restored(good)
        bad = {
            "another kind": frame(encode(["raftd.sessions/1", 1, 0])) + frame(b"") + inner,
            "garbage": frame(b"\xc1") + inner,
            "garbage rows": frame(encode(["raftd.idempotency/1", 9, 1])) + frame(b"x"),
            "twice": table(row(1), row(1)) + inner,
            "times go back": table(row(1, 6), row(2, 5)) + inner,
            "a time to come": table(row(1, 10)) + inner,
            "too few": table(row(1), keys=2) + inner,
            "too many": table(row(1), row(2), keys=1) + inner,
            "a short hash": table([b"x", b"f" * 16, 5, b"r"]) + inner,
            "a short fingerprint": table(row(1, 5, b"f")) + inner,
            "more than there may be": table(keys=idempotency.MAX_KEYS + 1) + inner,
            "cut in the table": good[:60],
            "cut behind it": good[: -len(inner)],
            "cut in the state": good[:-1],
            "nothing": b"",
        }
        for what, state in bad.items():
            with self.assertRaises(ValueError, msg=what):
                it.restored(state)

    def test_a_restore_that_failed_is_over(self) -> None:
        it = Machine()
        restore = it.machine.restore()
        self.assertRaises(ValueError, restore.write, frame(b"\xc1"))
        self.assertRaises(ValueError, restore.write, self.filled(3).state())
        self.assertRaises(ValueError, restore.finish)
        done = it.machine.restore()
        done.write(self.filled(3).state())
        done.finish()
        self.assertRaises(ValueError, done.finish)


class Counted(Idempotency):
    """Counts the entries that ask for `b"a"`, whether it is applied for them or not."""

    def __init__(self) -> None:
        self.log = Journal()
        self.attempts = 0
        super().__init__(self.log)

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        self.attempts += command.operation == b"a"
        return super().apply(index, time_ms, command)


class LeaderCrashes(SynchronousTestCase):
    """On whole clusters: the nodes that ship, over the network in memory."""

    def send(self, cluster: Cluster[Counted], name: str, command: Command) -> Answer[bytes]:
        answer: Answer[bytes] = Answer()
        cluster.nodes[name].propose(encode_command(command), answer)
        return answer

    def insist(self, cluster: Cluster[Counted], name: str, command: Command) -> bytes:
        """Send until there is an answer, as a client with a key may."""
        for _ in range(20):
            outcomes: list[bytes | RaftdError] = self.send(cluster, name, command).outcomes
            cluster.advance_until(outcomes.__len__)
            if isinstance(outcomes[0], bytes):
                result = decode_result(outcomes[0])
                assert isinstance(result, bytes), result
                return result
        raise AssertionError("no answer")

    def test_29_an_answer_lost_with_the_leader_is_asked_for_again_and_applies_once(
        self,
    ) -> None:
        """Asked at the leader itself, so that its answer is lost with it, at any moment."""
        attempts = [self.applied_with_a_crash_after(n * 0.0002, n) for n in range(1, 30)]
        # Else no answer was lost behind its commit, and nothing was shown.
        self.assertGreater(attempts.count(2), 2)
        self.assertGreater(attempts.count(1), 2)

    def applied_with_a_crash_after(self, delay_s: float, seed: int) -> int:
        """How many entries it took to apply one command once."""
        cluster = Cluster(3, Counted, seed=seed)
        leader = cluster.await_leader()
        other = next(name for name in cluster.nodes if name != leader)
        command = Command(b"a", idempotency_key=key(1))
        self.send(cluster, leader, command)
        cluster.advance(delay_s)
        cluster.crash(leader)
        # The client has no answer: it tries the next node.
        self.assertEqual(self.insist(cluster, other, command), b"1")
        self.assertEqual(self.insist(cluster, other, command), b"1")
        cluster.restart(leader)
        cluster.await_agreement()
        machines = list(cluster.machines.values())
        for machine in machines:
            self.assertEqual(machine.log.operations, [b"a"])
            self.assertEqual(len(machine), 1)
        return machines[0].attempts - 1  # the last was only to see that it stays so

    def test_31_a_retry_is_known_to_who_came_by_snapshot(self) -> None:
        """And leads now; the ones that had applied it are gone."""
        options = ReplicaOptions(snapshot_threshold_bytes=2_000, snapshot_tail_entries=5)
        cluster = Cluster(3, Counted, options=options)
        leader = cluster.await_leader()
        away = next(name for name in cluster.nodes if name != leader)
        cluster.crash(away)
        command = Command(b"a", idempotency_key=key(1))
        self.assertEqual(self.insist(cluster, leader, command), b"1")
        last = cluster.nodes[leader].status().last_index
        for i in range(1000):
            if cluster.nodes[leader].status().first_index > last:
                break
            cluster.result(cluster[leader].propose(b"%d" % i + b"x" * 50))
        cluster.restart(away)
        cluster.await_agreement()
        self.assertEqual(cluster.machines[away].attempts, 0, "it came by snapshot")
        cluster.result(cluster[leader].transfer(cluster.members[away].id))
        cluster.crash(leader)
        self.assertEqual(self.insist(cluster, away, command), b"1")
        for name in cluster.nodes:
            self.assertEqual(cluster.machines[name].log.operations.count(b"a"), 1)

    def test_31_a_retry_is_known_after_all_have_restarted_from_snapshots(self) -> None:
        options = ReplicaOptions(snapshot_threshold_bytes=2_000, snapshot_tail_entries=5)
        cluster = Cluster(3, Counted, options=options)
        leader = cluster.await_leader()
        command = Command(b"a", idempotency_key=key(1))
        first = self.insist(cluster, leader, command)
        for i in range(100):
            cluster.result(cluster[leader].propose(b"%d" % i + b"x" * 50))
        cluster.await_agreement()
        for name in list(cluster.nodes):
            cluster.crash(name)
        for name in cluster.members:
            cluster.restart(name)
        cluster.await_leader()
        cluster.await_agreement()
        for name in cluster.nodes:
            self.assertGreater(cluster.nodes[name].status().snapshot_index, 0)
            self.assertEqual(self.insist(cluster, name, command), first)


class GrowthTests(SynchronousTestCase):
    def test_53_no_dictionary_has_all_keys(self) -> None:
        """When one grows it moves all that it has at once, and nothing else goes on."""
        table = _Table()
        table.now_ms = 1
        names = [blake2b(b"%d" % n, digest_size=16).digest() for n in range(20_000)]
        for name in names:
            table.add(name, name, 1, b"")
        self.assertEqual(len(table.records), 20_000)
        self.assertLess(max(map(len, table.records._shards)), 20_000 / 256 * 2)
        self.assertEqual([n for n in names if table.find(n) is None], [])
