"""The store on whole clusters in memory: changes, reads, retries and leases at any node."""

from __future__ import annotations

from io import BytesIO
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from raftd.core.messages import Command, decode_command
from raftd.errors import (
    BadRequest,
    Compacted,
    DidNotHappen,
    FutureRevision,
    IdempotencyKeyReused,
    LeaseExists,
    LeaseNotFound,
    NoQuorum,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    QuotaReached,
    RaftdError,
    Stopped,
    TooLarge,
)
from raftd.idempotency import Idempotency, retry_of
from raftd.interfaces import Done, INode
from raftd.kv import scans
from raftd.kv.backup import MAGIC, restore_backup
from raftd.kv.database import Database
from raftd.kv.interfaces import LOCAL, MAX_BACKUPS, IDatabase, LeaseStatus, Selection
from raftd.kv.lease_keeper import MAX_TTL_MS
from raftd.kv.limits import MAX_KEY_BYTES, MAX_NESTING, MAX_VALUE_BYTES
from raftd.kv.operations import (
    EQUAL,
    EVERY_KEY,
    VALUE,
    VERSION,
    Compact,
    Compare,
    DeleteRange,
    DeleteRangeWith,
    GrantLease,
    Operation,
    Put,
    PutWith,
    Range,
    RevokeLease,
    Step,
    Transaction,
    encode_operation,
)
from raftd.kv.refusals import REFUSALS
from raftd.kv.results import (
    CompactResult,
    DeleteResult,
    LeaseResult,
    PutResult,
    RangeResult,
    RevokeResult,
    TransactionResult,
    encode_result,
)
from raftd.kv.store import Store
from raftd.kv.watches import WatchHub
from raftd.store_service import StoreService
from raftd.test.drivers import Answer
from raftd.test.stores import StoreCluster


def retry(name: bytes, body: bytes = b"") -> bytes:
    return retry_of(name, "PUT", b"/db/a", body)


class StoreTestCase(SynchronousTestCase):
    def lead(self, size: int = 3, **options: Any) -> tuple[StoreCluster, str, list[str]]:
        """A cluster at work: itself, its leader, the others."""
        cluster = StoreCluster(size, **options)
        leader = cluster.await_leader()
        cluster.advance(0.1)
        return cluster, leader, [name for name in cluster.nodes if name != leader]

    def refused(
        self, cluster: StoreCluster, name: str, operation: Operation, kind: type[RaftdError]
    ) -> None:
        """Refused at once, and nothing of it is in the log."""
        last = cluster.nodes[name].status().last_index
        answer = cluster.ask(lambda done: cluster.database(name).change(operation, done))
        self.assertTrue(answer.given, operation)
        self.assertIsInstance(answer.outcome, kind)
        self.assertIsInstance(answer.outcome, DidNotHappen)
        self.assertTrue(str(answer.outcome).endswith("."), answer.outcome)
        cluster.advance(0.05)
        self.assertEqual(cluster.nodes[name].status().last_index, last)


class ChangeTests(StoreTestCase):
    def test_every_kind_at_every_node(self) -> None:
        cluster, leader, (other, _) = self.lead()
        verifyObject(IDatabase, cluster.database(leader))
        verifyObject(INode, cluster.nodes[leader])
        for name in (leader, other):
            put = cluster.put(name, b"a", b"1")
            self.assertIsInstance(put, PutResult)
            ttl_ms = cluster.database(name).lease_ttl_ms(1)
            lease = cluster.database(name).draw_lease_id()
            steps: tuple[Step, ...] = (
                GrantLease(lease, ttl_ms),
                PutWith(b"b", b"2", lease, True),
                Range(b"a"),
                DeleteRangeWith(b"c"),
            )
            compare = Compare(b"a", b"", VALUE, EQUAL, b"1")
            result = cluster.change(name, Transaction((compare,), steps))
            assert isinstance(result, TransactionResult)
            self.assertTrue(result.succeeded)
            self.assertEqual(result.results[0], LeaseResult(lease, ttl_ms))
            self.assertIsInstance(
                cluster.change(name, DeleteRange(b"a", EVERY_KEY)), DeleteResult
            )
            self.assertIsInstance(cluster.change(name, RevokeLease(lease)), RevokeResult)
            compacted = cluster.change(name, Compact(put.revision))
            self.assertEqual(compacted, CompactResult(put.revision))
            self.assertRaises(Compacted, cluster.change, name, Compact(put.revision))
            self.assertRaises(FutureRevision, cluster.change, name, Compact(1000))
            self.assertRaises(LeaseNotFound, cluster.put, name, b"k", b"v", 99)

    def test_what_can_never_be_is_refused_at_once(self) -> None:
        cluster, leader, _ = self.lead(1)
        long = b"k" * (MAX_KEY_BYTES + 1)
        large = b"v" * (MAX_VALUE_BYTES + 1)
        nested = Transaction((), (PutWith(b"a", b"1"),))
        for _ in range(MAX_NESTING):
            nested = Transaction((), (nested,))
        endless = nested
        for _ in range(5000):
            endless = Transaction((), (), (endless,))
        put = PutWith(b"a", b"1")
        some = tuple(PutWith(b"%d" % i, b"") for i in range(129))
        wrong: list[tuple[Operation, type[RaftdError]]] = [
            (Put(b"", b"v"), BadRequest),
            (Put(long, b"v"), BadRequest),
            (Put(b"k", large), TooLarge),
            (Put(b"k", b"v", -1), BadRequest),
            (Put(b"k", b"v", 2**63), BadRequest),
            (PutWith(b"", b"v"), BadRequest),
            (PutWith(b"k", large), TooLarge),
            (DeleteRange(b""), BadRequest),
            (DeleteRange(long), BadRequest),
            (DeleteRange(b"", EVERY_KEY), BadRequest),
            (DeleteRange(b"a", long + b"x"), BadRequest),
            (Compact(0), BadRequest),
            (GrantLease(0, 1000), BadRequest),
            (GrantLease(2**63, 1000), BadRequest),
            (GrantLease(1, 999), BadRequest),
            (GrantLease(1, 1500), BadRequest),
            (GrantLease(1, MAX_TTL_MS + 1000), BadRequest),
            (RevokeLease(0), BadRequest),
            (Transaction((), (put, put)), BadRequest),
            (Transaction((), (), (put, DeleteRangeWith(b"", EVERY_KEY))), BadRequest),
            (Transaction((), (put, DeleteRangeWith(b"0", EVERY_KEY))), BadRequest),
            (Transaction((), some), BadRequest),
            (Transaction((), (PutWith(long, b""),)), BadRequest),
            (Transaction((), (), (Transaction((), (PutWith(b"k", large),)),)), TooLarge),
            (Transaction((), (GrantLease(7, 1),)), BadRequest),
            (Transaction((), (Range(b"a", limit=-1),)), BadRequest),
            (Transaction((), (Range(b"a", sort_by=77),)), BadRequest),
            (Transaction((Compare(b"", b"", VALUE, EQUAL, b""),), ()), BadRequest),
            (Transaction((Compare(long, b"", VALUE, EQUAL, b""),), ()), BadRequest),
            (Transaction((Compare(b"a", b"", 0, EQUAL, 1),), ()), BadRequest),
            (Transaction((Compare(b"a", b"", 9, EQUAL, 1),), ()), BadRequest),
            (Transaction((Compare(b"a", b"", VERSION, 9, 1),), ()), BadRequest),
            (Transaction((Compare(b"a", b"", VERSION, EQUAL, b"1"),), ()), BadRequest),
            (Transaction((Compare(b"a", b"", VALUE, EQUAL, 1),), ()), BadRequest),
            (nested, BadRequest),
            (endless, BadRequest),
        ]
        for operation, kind in wrong:
            self.refused(cluster, leader, operation, kind)
        # The longest and largest that may be.
        cluster.put(leader, b"k" * MAX_KEY_BYTES, b"v" * MAX_VALUE_BYTES)
        cluster.change(leader, DeleteRange(b"k" * MAX_KEY_BYTES + b"\0", EVERY_KEY))

    def test_a_request_that_is_too_large_as_a_whole(self) -> None:
        cluster, leader, _ = self.lead(1)
        steps = tuple(PutWith(b"%d" % i, b"v" * 900_000) for i in range(2))
        self.refused(cluster, leader, Transaction((), steps), TooLarge)

    def test_a_quota(self) -> None:
        """Set by the leader, the same everywhere; reads and deletes go on."""
        cluster, leader, (other, _) = self.lead(store={"quota_bytes": 20_000})
        cluster.advance(0.1)
        for i in range(100):
            try:
                cluster.put(other, b"%d" % i, b"v" * 1000)
            except QuotaReached:
                break
        else:
            self.fail("there is no quota")
        self.assertRaises(QuotaReached, cluster.put, leader, b"more", b"v" * 5000)
        self.assertEqual(cluster.get(other, b"0"), b"v" * 1000)
        deleted = cluster.change(other, DeleteRange(b"0", EVERY_KEY))
        cluster.change(other, Compact(deleted.revision))
        cluster.put(leader, b"more", b"v" * 5000)
        cluster.await_agreement()
        for service in cluster.services.values():
            self.assertEqual(service.store.quota_bytes, 20_000)
            self.assertEqual(service.database.status().quota_bytes, 20_000)


class ScriptedNode:
    """What is proposed, read and asked waits for the test."""

    def __init__(self) -> None:
        self.proposed: list[tuple[bytes, Done[bytes]]] = []
        self.reads: list[tuple[float, Done[None]]] = []

    def propose(self, data: bytes, done: Done[bytes]) -> None:
        self.proposed.append((data, done))

    def read(self, done: Done[None]) -> None:
        self.reads.append((0.0, done))

    def read_recent(self, max_staleness_s: float, done: Done[None]) -> None:
        self.reads.append((max_staleness_s, done))


class OutcomeTests(SynchronousTestCase):
    """What the node says, and what of that the caller hears."""

    def setUp(self) -> None:
        self.node = ScriptedNode()
        clock, store = Clock(), Store()
        self.database = Database(
            clock,
            cast(INode, self.node),
            Idempotency(store),
            store,
            WatchHub(store, clock),
            600,
        )

    def change(self, retry: bytes = b"") -> Answer[Any]:
        answer: Answer[Any] = Answer()
        self.database.change(Put(b"k", b"v"), answer, retry)
        return answer

    def test_what_is_proposed_is_a_command(self) -> None:
        for key in (b"", retry(b"k")):
            self.change(key)
            command = decode_command(self.node.proposed.pop()[0])
            operation = encode_operation(Put(b"k", b"v"))
            self.assertEqual(command, Command(operation, idempotency_key=key))

    def test_errors_of_the_node_are_passed_on(self) -> None:
        for error in (NoQuorum("Too few."), OutcomeUnknown("Who knows?")):
            for key in (b"", retry(b"k")):
                answer = self.change(key)
                self.node.proposed.pop()[1](error)
                self.assertIs(answer.outcome, error)

    def test_a_refusal_is_an_error_with_its_own_code(self) -> None:
        refused = encode_result(REFUSALS["key_not_found"])
        for key, prefix in ((b"", b""), (retry(b"k"), b"\0")):
            answer = self.change(key)
            self.node.proposed.pop()[1](prefix + refused)
            assert isinstance(answer.outcome, BadRequest)
            self.assertEqual(answer.outcome.code, "key_not_found")

    def test_30_a_result_that_cannot_be_read_is_unknown(self) -> None:
        """The write was carried out, by whatever version the leader is of."""
        for key, data in (
            (b"", b""),
            (b"", b"\xc1"),
            (retry(b"k"), b""),
            (retry(b"k"), b"\x09"),
        ):
            answer = self.change(key)
            self.node.proposed.pop()[1](data)
            self.assertIsInstance(answer.outcome, OutcomeUnknown)

    def test_reads_wait_for_the_node_as_long_as_they_must(self) -> None:
        query = Range(b"a", b"z")
        for ask in (
            lambda s, done: self.database.get(b"k", s, done),
            lambda s, done: self.database.range(query, s, done),
            self.database.leases,
        ):
            for staleness in (0.0, 2.5):
                answer: Answer[Any] = Answer()
                ask(staleness, answer)
                self.assertFalse(answer.given)
                asked_s, done = self.node.reads.pop()
                self.assertEqual(asked_s, staleness)
                error = NoQuorum("Too few.")
                done(error)
                self.assertIs(answer.outcome, error)
            local: Answer[Any] = Answer()
            ask(LOCAL, local)
            self.assertTrue(local.given)
            self.assertNotIsInstance(local.outcome, RaftdError)
        self.assertEqual(self.node.reads, [])


class RetryTests(StoreTestCase):
    def test_29_a_retry_gets_the_first_answer_at_any_node(self) -> None:
        cluster, leader, (other, another) = self.lead()
        first = cluster.change(other, Put(b"a", b"1"), retry(b"k"))
        cluster.put(other, b"a", b"2")
        for name in (leader, other, another):
            self.assertEqual(cluster.change(name, Put(b"a", b"1"), retry(b"k")), first)
        self.assertEqual(cluster.get(leader, b"a"), b"2")
        with self.assertRaises(IdempotencyKeyReused):
            cluster.change(leader, Put(b"a", b"3"), retry(b"k", b"3"))
        self.assertEqual(cluster.database(leader).status().idempotency_keys, 1)

    def test_29_a_lease_is_granted_once_though_its_id_is_drawn_again(self) -> None:
        cluster, leader, (other, _) = self.lead()
        granted = [
            cluster.got(
                lambda done, name=name: cluster.database(name).grant(  # type: ignore[misc]
                    5000, done, retry=retry(b"k")
                )
            )
            for name in (leader, other)
        ]
        self.assertEqual(granted[0], granted[1])
        self.assertEqual(cluster.database(leader).status().leases, 1)

    def test_29_refusals_are_answers_but_for_a_lack_of_room(self) -> None:
        cluster, leader, _ = self.lead(store={"quota_bytes": 2_000})
        cluster.advance(0.1)
        with self.assertRaises(LeaseNotFound):
            cluster.change(leader, Put(b"a", b"1", 77), retry(b"lease"))
        cluster.change(leader, GrantLease(77, 5000))
        with self.assertRaises(LeaseNotFound):
            cluster.change(leader, Put(b"a", b"1", 77), retry(b"lease"))
        put = Put(b"a", b"v" * 1500)
        cluster.put(leader, b"b", b"v" * 1000)
        with self.assertRaises(QuotaReached):
            cluster.change(leader, put, retry(b"room"))
        deleted = cluster.change(leader, DeleteRange(b"b"))
        cluster.change(leader, Compact(deleted.revision))
        done = cluster.change(leader, put, retry(b"room"))
        self.assertIsInstance(done, PutResult)
        self.assertEqual(cluster.change(leader, put, retry(b"room")), done)

    def test_29_an_answer_that_was_lost_with_the_leader(self) -> None:
        """Whenever it crashes, the write is there once, and its retry says so."""
        was_there = [self.was_there_before_its_retry(n * 0.0003, n) for n in range(1, 25)]
        # Else nothing was shown.
        self.assertGreater(was_there.count(True), 3)
        self.assertGreater(was_there.count(False), 1)

    def was_there_before_its_retry(self, delay_s: float, seed: int) -> bool:
        cluster, leader, (other, another) = self.lead(seed=seed)
        put = Put(b"a", b"1")
        lost = cluster.database(another)
        cluster.ask(lambda done: lost.change(put, done, retry(b"k")))
        cluster.advance(delay_s)
        cluster.crash(leader)
        cluster.await_leader([other, another])
        cluster.advance(0.1)
        was_there = cluster.get(other, b"a") is not None
        self.assertEqual(cluster.change(other, put, retry(b"k")), PutResult(2, True))
        found = cluster.got(lambda done: cluster.database(other).get(b"a", 0.0, done))
        self.assertEqual(found.version, 1)
        cluster.restart(leader)
        cluster.await_agreement()
        return was_there


class ReadTests(StoreTestCase):
    def test_get(self) -> None:
        cluster, leader, (other, _) = self.lead()
        first = cluster.put(leader, b"a", b"1")
        cluster.put(leader, b"a", b"2")
        self.assertEqual(cluster.get(other, b"a"), b"2")
        self.assertIsNone(cluster.get(other, b"b"))
        database = cluster.database(other)
        old = cluster.got(lambda done: database.get(b"a", 0.0, done, first.revision))
        self.assertEqual(old.value, b"1")
        with self.assertRaises(FutureRevision):
            cluster.got(lambda done: database.get(b"a", 0.0, done, 1000))
        cluster.change(leader, Compact(first.revision + 1))
        with self.assertRaises(Compacted) as refused:
            cluster.got(lambda done: database.get(b"a", 0.0, done, first.revision))
        self.assertEqual(refused.exception.revision, first.revision + 1)
        for bad in (b"", b"k" * (MAX_KEY_BYTES + 1)):
            with self.assertRaises(BadRequest):
                cluster.got(lambda done, bad=bad: database.get(bad, 0.0, done))  # type: ignore[misc]

    def test_how_fresh(self) -> None:
        cluster, leader, (other, another) = self.lead()
        cluster.put(leader, b"a", b"1")
        self.assertEqual(cluster.get(other, b"a"), b"1")
        cluster.partition([other], [leader, another])
        cluster.put(leader, b"a", b"2")
        self.assertEqual(cluster.get(other, b"a", LOCAL), b"1")
        self.assertEqual(cluster.get(other, b"a", 10.0), b"1")
        fresh = cluster.ask(lambda done: cluster.database(other).get(b"a", 0.0, done))
        cluster.advance(3.0)
        self.assertFalse(fresh.given)
        cluster.heal()
        cluster.advance_until(lambda: fresh.given)
        self.assertEqual(getattr(fresh.outcome, "value", None), b"2")

    def test_range(self) -> None:
        cluster, leader, (other, _) = self.lead()
        for i in range(10):
            cluster.put(leader, b"k%d" % i, b"%d" % i)
        database = cluster.database(other)
        found = cluster.got(lambda done: database.range(Range(b"k", b"l", limit=3), 0.0, done))
        assert isinstance(found, RangeResult)
        self.assertEqual((found.count, found.more, len(found.kvs)), (10, True, 3))
        for bad in (
            Range(b""),
            Range(b"", b"z"),
            Range(b"a", limit=-1),
            Range(b"a", sort_by=9),
            Range(b"a", b"k" * (MAX_KEY_BYTES + 2)),
        ):
            answer = cluster.ask(lambda done, bad=bad: database.range(bad, LOCAL, done))  # type: ignore[misc]
            self.assertIsInstance(answer.outcome, BadRequest)
        with self.assertRaises(FutureRevision):
            cluster.got(lambda done: database.range(Range(b"a", revision=99), 0.0, done))

    def test_a_long_range_is_read_in_slices_one_for_each_turn(self) -> None:
        cluster, leader, _ = self.lead(1)
        database = cluster.database(leader)
        for start in range(0, 9000, 100):
            steps = tuple(PutWith(b"k%05d" % i, b"") for i in range(start, start + 100))
            cluster.change(leader, Transaction((), steps))
        query = Range(b"k", b"l", sort_by=VERSION, limit=5)
        answers = [
            cluster.ask(lambda done: database.range(query, LOCAL, done)) for _ in range(3)
        ]
        self.assertFalse(any(a.given for a in answers))
        small = cluster.ask(lambda done: database.range(Range(b"k00001"), LOCAL, done))
        self.assertTrue(small.given, "it need not wait for the long ones")
        cluster.advance(0.01)
        for answer in answers:
            self.assertEqual(getattr(answer.outcome, "count", None), 9000)
        # A bound, and an end.
        self.patch(scans, "MAX_SCANS", 2)
        answers = [
            cluster.ask(lambda done: database.range(query, LOCAL, done)) for _ in range(3)
        ]
        self.assertEqual([a.given for a in answers], [False, False, True])
        database.stop()
        self.assertIsInstance(answers[0].outcome, Stopped)

    def test_a_range_whose_revision_is_compacted_while_it_is_read(self) -> None:
        cluster, leader, _ = self.lead(1)
        database = cluster.database(leader)
        for start in range(0, 9000, 100):
            steps = tuple(PutWith(b"k%05d" % i, b"") for i in range(start, start + 100))
            last = cluster.change(leader, Transaction((), steps))
        query = Range(b"k", b"l", revision=last.revision - 1, sort_by=VERSION)
        answer = cluster.ask(lambda done: database.range(query, LOCAL, done))
        self.assertFalse(answer.given)
        store = cluster.services[leader].store
        store.compacted_revision = last.revision
        cluster.advance(0.01)
        self.assertIsInstance(answer.outcome, Compacted)

    def test_watch(self) -> None:
        cluster, leader, (other, _) = self.lead()
        called: list[None] = []
        watch = cluster.database(other).watch(
            Selection(b"a", b"b"), 0, lambda: called.append(None)
        )
        self.assertIsNone(watch.take())
        self.assertEqual(cluster.database(other).status().watches, 1)
        put = cluster.put(leader, b"a", b"1")
        cluster.advance_until(lambda: called)
        changes = watch.take()
        assert changes is not None
        self.assertEqual(changes.revision, put.revision)
        watch.close()
        self.assertEqual(cluster.database(other).status().watches, 0)

    def test_backup(self) -> None:
        cluster, leader, (other, _) = self.lead()
        put = cluster.put(leader, b"a", b"1")
        revision, slices = cluster.got(cluster.database(other).backup)
        self.assertEqual(revision, put.revision)
        cluster.put(leader, b"a", b"2")
        data = b"".join(slices)
        self.assertTrue(data.startswith(MAGIC))
        copy = Store()
        restore_backup(BytesIO(data), "it", copy.restore())
        found = copy.get(b"a")
        assert found is not None
        self.assertEqual((found.value, copy.revision), (b"1", revision))

    def test_so_many_backups_at_once_and_no_more(self) -> None:
        """Also if they are all asked for before the first has begun."""
        cluster, leader, (other, _) = self.lead()
        database = cluster.database(other)
        answers = [cluster.ask(database.backup) for _ in range(MAX_BACKUPS + 3)]
        cluster.advance(0.1)
        backups = [cast(Any, a.outcome)[1] for a in answers[:MAX_BACKUPS]]
        for answer in answers[MAX_BACKUPS:]:
            self.assertIsInstance(answer.outcome, Overloaded)
        del answers, answer
        self.assertRaises(Overloaded, cluster.got, database.backup)
        # Each node counts its own.
        self.assertEqual(cluster.got(cluster.database(leader).backup)[0], 1)
        # One at its end, one given up, and one that somebody drops half-way.
        b"".join(backups[0])
        backups[1].close()
        for _ in range(2):
            backups.append(cluster.got(database.backup)[1])
        self.assertRaises(Overloaded, cluster.got, database.backup)
        next(backups[2])
        del backups[2]
        backups.append(cluster.got(database.backup)[1])
        self.assertRaises(Overloaded, cluster.got, database.backup)

    def test_status(self) -> None:
        cluster, leader, _ = self.lead()
        cluster.put(leader, b"a", b"1")
        cluster.got(lambda done: cluster.database(leader).grant(5000, done))
        status = cluster.database(leader).status()
        self.assertEqual((status.revision, status.keys, status.leases), (2, 1, 1))
        self.assertGreater(status.size_bytes, 2)
        self.assertEqual(cluster.database(leader).revision, 2)
        self.assertEqual(cluster.database(leader).compacted_revision, 0)

    def test_digests_are_compared_in_the_background(self) -> None:
        cluster, leader, _ = self.lead(store={"check_interval_s": 5.0})
        cluster.put(leader, b"a", b"1")
        cluster.advance(6.0)
        for service in cluster.services.values():
            self.assertGreater(service.database.status().digest.agreed_index, 0)
            self.assertEqual(service.database.status().digest.differs_index, 0)

    def test_before_the_node_runs(self) -> None:
        cluster, _, _ = self.lead(1)
        service = StoreService(cluster.clock)
        self.assertRaises(NotRunning, lambda: service.database)
        service.stop()


class ScanTests(SynchronousTestCase):
    def test_53_a_slice_of_a_long_range_ends_in_time(self) -> None:
        clock, done = Clock(), Answer[RangeResult]()
        steps = 0

        def walk() -> scans.Walk:
            nonlocal steps
            for _ in range(100):
                steps += 1
                clock.rightNow += scans.SLICE_S / 4
                yield
            return RangeResult(1, 0, False, [])

        scans.Scans(clock).run(walk(), done)
        turns = []
        while not done.given:
            # What is called for in this turn has the next one, as in a reactor.
            due, clock.calls = clock.calls, []
            before = steps
            for call in due:
                call.called = 1
                call.func(*call.args, **call.kw)
            turns.append(steps - before)
        self.assertEqual(steps, 100)
        self.assertLess(max(turns), 8)


class LeaseTests(StoreTestCase):
    """What the leases of `docs/leases.md` promise, over crashes and partitions."""

    def grant(self, cluster: StoreCluster, name: str, ttl_s: float = 3, id: int = 0) -> int:
        granted = cluster.got(
            lambda done: cluster.database(name).grant(int(ttl_s * 1000), done, id)
        )
        assert isinstance(granted, LeaseResult)
        return granted.id

    def keep_alive(self, cluster: StoreCluster, name: str, lease: int) -> Answer[Any]:
        return cluster.ask(lambda done: cluster.database(name).keep_alive(lease, done))

    def status(self, cluster: StoreCluster, name: str, lease: int) -> LeaseStatus:
        status = cluster.got(lambda done: cluster.database(name).lease(lease, 2, done))
        assert isinstance(status, LeaseStatus)
        return status

    def test_a_lease_from_its_grant_to_its_end(self) -> None:
        cluster, leader, (other, _) = self.lead()
        granted = cluster.got(lambda done: cluster.database(other).grant(2001, done))
        lease = granted.id
        self.assertEqual(granted.ttl_ms, 3000)
        for key in (b"c", b"a", b"b"):
            cluster.put(other, key, b"", lease)
        for name in (leader, other):
            status = self.status(cluster, name, lease)
            self.assertEqual(
                (status.ttl_ms, status.keys, status.more), (3000, [b"a", b"b"], True)
            )
            self.assertLessEqual(status.ttl_left_ms, 3000)
            self.assertGreater(status.ttl_left_ms, 2500)
        for _ in range(5):
            cluster.advance(2.0)
            kept = self.keep_alive(cluster, other, lease)
            cluster.advance(0.05)
            self.assertEqual(kept.outcome, LeaseResult(lease, 3000))
        all_of_them = cluster.got(lambda done: cluster.database(other).leases(0.0, done))
        self.assertEqual(all_of_them, [LeaseResult(lease, 3000)])
        cluster.advance(2.9)
        self.assertEqual(cluster.get(other, b"a"), b"")
        revision = cluster.database(other).revision
        cluster.advance(0.3)
        self.assertIsNone(cluster.get(other, b"a"))
        self.assertEqual(cluster.database(other).revision, revision + 1, "all in one")
        for question in (
            lambda done: cluster.database(other).lease(lease, 2, done),
            lambda done: cluster.database(other).keep_alive(lease, done),
            lambda done: cluster.database(other).keep_alive(0, done),
            lambda done: cluster.database(other).lease(2**70, 2, done),
        ):
            self.assertRaises(LeaseNotFound, cluster.got, question)

    def test_grants_that_are_refused(self) -> None:
        cluster, leader, _ = self.lead()
        self.grant(cluster, leader, id=7)
        self.assertRaises(LeaseExists, self.grant, cluster, leader, 3, 7)
        self.assertRaises(BadRequest, self.grant, cluster, leader, MAX_TTL_MS)
        self.assertRaises(BadRequest, self.grant, cluster, leader, 3, 2**63)
        floor = cluster.got(lambda done: cluster.database(leader).grant(-5, done))
        self.assertEqual(floor.ttl_ms, 1000)

    def test_a_new_leader_starts_it_anew(self) -> None:
        """Its keys are there for the whole TTL after the crash, and then they go."""
        cluster, leader, (other, _) = self.lead()
        lease = self.grant(cluster, other)
        cluster.put(other, b"a", b"", lease)
        cluster.advance(2.5)
        cluster.crash(leader)
        crashed_at = cluster.clock.seconds()
        while cluster.clock.seconds() < crashed_at + 3.0:
            cluster.advance(0.1)
            self.assertEqual(cluster.get(other, b"a", LOCAL), b"")
        cluster.advance(3.0)
        self.assertIsNone(cluster.get(other, b"a"))
        cluster.restart(leader)
        cluster.await_agreement()

    def test_a_keep_alive_that_was_answered_holds_from_the_call_whoever_crashes(self) -> None:
        """At whatever moment the leader goes, with or without its host; none is broken."""
        answered = 0
        for n in range(24):
            cluster, leader, (other, _) = self.lead(seed=n)
            lease = self.grant(cluster, other, 2)
            cluster.put(other, b"a", b"", lease)
            cluster.advance(1.9 + (n % 6) * 0.02)
            called_at = cluster.clock.seconds()
            kept = self.keep_alive(cluster, other, lease)
            cluster.advance(n * 0.0005)
            cluster.crash(leader, power_lost=n % 2 == 0)
            cluster.advance_until(lambda kept=kept: kept.given)  # type: ignore[misc]
            if isinstance(kept.outcome, LeaseResult):
                answered += 1
                while cluster.clock.seconds() < called_at + 2.0:
                    self.assertEqual(cluster.get(other, b"a", LOCAL), b"")
                    cluster.advance(0.02)
            else:
                self.assertIsInstance(kept.outcome, LeaseNotFound)
        self.assertGreater(answered, 10)

    def test_24_a_leader_that_is_none_any_more_answers_no_keep_alive(self) -> None:
        """Cut off from the rest, it says neither yes nor no, and nothing it revokes holds."""
        cluster, leader, (other, another) = self.lead()
        lease = self.grant(cluster, leader, 2)
        cluster.put(leader, b"a", b"", lease)
        cluster.partition([leader], [other, another])
        # It still takes itself for the leader, for an election timeout.
        kept = self.keep_alive(cluster, leader, lease)
        left = cluster.ask(lambda done: cluster.database(leader).lease(lease, 1, done))
        cluster.advance(0.3)
        self.assertEqual(cluster.nodes[leader].status().role, "leader")
        self.assertFalse(kept.given or left.given)
        successor = cluster.await_leader([other, another])
        # Kept alive where it counts.
        for _ in range(4):
            cluster.advance(1.0)
            renewed = self.keep_alive(cluster, other, lease)
            cluster.advance_until(lambda renewed=renewed: renewed.given)  # type: ignore[misc]
            self.assertIsInstance(renewed.outcome, LeaseResult)
            self.assertFalse(isinstance(kept.outcomes and kept.outcome, LeaseResult))
        cluster.heal()
        cluster.await_agreement()
        self.assertEqual(cluster.get(leader, b"a"), b"")
        self.assertNotEqual(successor, leader)

    def test_26_what_a_cut_off_leader_proposed_to_revoke_is_not_handed_on(self) -> None:
        """Else the next leader would end a lease that was kept alive with it."""
        cluster, leader, (other, another) = self.lead(election_timeout_ms=600)
        lease = self.grant(cluster, leader, 1)
        cluster.put(leader, b"a", b"", lease)
        cluster.advance(0.55)
        # It proposes to revoke while it is cut off and does not know it yet.
        cluster.partition([leader], [other, another])
        proposed = cluster.nodes[leader].status().last_index
        cluster.advance(0.5)
        self.assertGreater(cluster.nodes[leader].status().last_index, proposed)
        cluster.await_leader([other, another])
        end = cluster.clock.seconds() + 6.0
        healed = False
        while cluster.clock.seconds() < end:
            renewed = self.keep_alive(cluster, other, lease)
            cluster.advance(0.2)
            self.assertTrue(renewed.given)
            self.assertIsInstance(renewed.outcome, LeaseResult)
            if not healed and cluster.clock.seconds() > end - 4.0:
                cluster.heal()
                healed = True
        self.assertEqual(cluster.get(leader, b"a"), b"")

    def test_an_id_that_is_granted_again_while_its_expiry_is_in_the_log(self) -> None:
        """What was proposed because the lease before it had expired does not end it."""
        cluster, leader, (other, _) = self.lead()
        self.grant(cluster, leader, 2, id=8)
        running = cluster.services[leader]._running
        assert running is not None
        deadline = running._keeper._kept[8].deadline
        cluster.advance(deadline - cluster.clock.seconds() - 0.0001)
        # 8 has a moment left.  Its owner revokes it and grants it again, all
        # in the log and nothing applied yet; then it expires.
        database = cluster.database(leader)
        before = cluster.nodes[leader].status().last_index
        revoked = cluster.ask(lambda done: database.change(RevokeLease(8), done))
        granted = cluster.ask(lambda done: database.grant(2000, done, 8))
        put = cluster.ask(lambda done: database.change(Put(b"a", b"", 8), done))
        cluster.advance(0.0002)
        self.assertEqual(cluster.nodes[leader].status().last_index, before + 4)
        self.assertFalse(revoked.given or granted.given or put.given)
        cluster.advance_until(lambda: put.given)
        self.assertEqual(revoked.outcome, RevokeResult(1, 0))
        self.assertEqual(granted.outcome, LeaseResult(8, 2000))
        for _ in range(3):
            cluster.advance(1.5)
            kept = self.keep_alive(cluster, other, 8)
            cluster.advance(0.1)
            self.assertEqual(kept.outcome, LeaseResult(8, 2000))
            self.assertEqual(cluster.get(other, b"a"), b"")
        cluster.advance(2.2)
        self.assertIsNone(cluster.get(other, b"a"))
        cluster.await_agreement()

    def test_leadership_that_is_handed_over(self) -> None:
        cluster, leader, (other, _) = self.lead()
        lease = self.grant(cluster, leader, 2)
        cluster.advance(1.5)
        cluster.result(cluster[leader].transfer(cluster.members[other].id))
        kept = self.keep_alive(cluster, leader, lease)
        cluster.advance(0.2)
        self.assertIsInstance(kept.outcome, LeaseResult)
        timers = cluster.services[leader]._running
        assert timers is not None
        self.assertEqual(len(timers._keeper), 0, "the former leader keeps no time")
        cluster.advance(2.5)
        self.assertEqual(
            cluster.got(lambda done: cluster.database(leader).leases(0.0, done)), []
        )

    def test_without_a_quorum_leases_live_on(self) -> None:
        """Nobody can end them; and they are started anew by whoever leads next."""
        cluster, leader, (other, another) = self.lead()
        lease = self.grant(cluster, leader, 2)
        cluster.put(leader, b"a", b"", lease)
        cluster.crash(other)
        cluster.crash(another)
        cluster.advance(20.0)
        self.assertEqual(cluster.get(leader, b"a", LOCAL), b"")
        cluster.restart(other)
        cluster.restart(another)
        cluster.await_leader()
        cluster.advance(1.5)
        self.assertEqual(cluster.get(leader, b"a"), b"")
        cluster.advance(2.0)
        self.assertIsNone(cluster.get(leader, b"a"))

    def test_many_leases_expire_at_once(self) -> None:
        cluster, leader, (other, _) = self.lead()
        for start in range(1, 601, 60):
            steps: tuple[Step, ...] = ()
            for id in range(start, start + 60):
                steps += (GrantLease(id, 2000), PutWith(b"%d" % id, b"", id))
            cluster.change(other, Transaction((), steps))
        self.assertEqual(cluster.database(leader).status().leases, 600)
        cluster.advance(4.0)
        cluster.await_agreement()
        for name in cluster.nodes:
            status = cluster.database(name).status()
            self.assertEqual((status.leases, status.keys), (0, 0))

    def test_a_stopped_service_leaves_no_timer(self) -> None:
        cluster, leader, _ = self.lead(1)
        self.grant(cluster, leader, 60)
        self.keep_alive(cluster, leader, 1)
        cluster.stop(leader)
        cluster.advance(1.0)
        self.assertEqual(cluster.clock.getDelayedCalls(), [])
