"""The client against whole clusters in memory: its own code and the servers', under faults."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.client import Client, Lease, PreconditionFailed, Unreachable, Watch
from raftd.client.transactions import (
    create_revision,
    delete,
    exists,
    get,
    lease,
    missing,
    mod_revision,
    put,
    transaction,
    value,
    version,
)
from raftd.errors import (
    BadRequest,
    Compacted,
    DidNotHappen,
    FutureRevision,
    LeaseNotFound,
    NoLeader,
    NoQuorum,
    OutcomeUnknown,
    Stopped,
)
from raftd.kv.interfaces import LOCAL
from raftd.testing_store import StoreCluster

ODD_KEYS = (
    b".", b"..", b"/", b"//", b"a/../b", b"a//b", b"/a", b"a/", b"a/.", b"%", b"%2F", b"%00",
    b"\0", b"\xff\xfe", b"a b", b"a+b", b"a?b=c&d#e", b'"', "ü/ß".encode(), b"k" * 4096,
    bytes(range(256)), b"watch", b".raftd",
)  # fmt: skip


class StoreCase(SynchronousTestCase):
    def lead(self, size: int = 3, **options: Any) -> tuple[StoreCluster, str, list[str]]:
        """A cluster at work: itself, its leader, the others."""
        cluster = StoreCluster(size, **options)
        leader = cluster.await_leader()
        cluster.advance(0.1)
        return cluster, leader, [name for name in cluster.nodes if name != leader]

    def failed(self, cluster: StoreCluster, deferred: Deferred[Any]) -> BaseException:
        """How it fails, letting time pass until it does."""
        failures: list[Any] = []
        deferred.addErrback(failures.append)
        cluster.advance_until(lambda: failures)
        error: BaseException = failures[0].value
        return error

    def there(self, cluster: StoreCluster, name: str, key: bytes) -> bool:
        """Whether a node has a key, as far as it knows."""
        found: list[Any] = []
        cluster.services[name].database.get(key, LOCAL, found.append)
        return found[0] is not None


class KeyTests(StoreCase):
    def test_any_key_and_any_value(self) -> None:
        cluster, _, _ = self.lead(1)
        client = cluster.client()
        for i, key in enumerate(ODD_KEYS):
            data = (b"", bytes(range(256)), b"text", b"\0" * 70_000)[i % 4]
            written = cluster.result(client.put(key, data))
            self.assertTrue(written.created, key)
            record: Any = cluster.result(client.get(key))
            self.assertEqual((record.key, record.value), (key, data))
            self.assertEqual(record.mod_revision, written.revision)
        page = cluster.result(client.page())
        self.assertEqual([kv.key for kv in page.kvs], sorted(ODD_KEYS))
        self.assertEqual(cluster.result(client.get(page.kvs[0].key)), page.kvs[0])
        for key in ODD_KEYS:
            outcome: Any = cluster.result(
                client.transact([value(key) > b"", exists(key)], [get(key)], [get(key)])
            )
            self.assertEqual(outcome.results[0].kvs[0].key, key)
            self.assertIsNotNone(cluster.result(client.delete(key)), key)
            self.assertIsNone(cluster.result(client.delete(key)))
            self.assertIsNone(cluster.result(client.get(key)))

    def test_a_large_value_at_any_node(self) -> None:
        cluster, leader, others = self.lead()
        data = bytes(range(256)) * 4096
        for name in (leader, *others):
            client = cluster.client(name)
            cluster.result(client.put("k", data))
            record: Any = cluster.result(client.get("k"))
            self.assertEqual(record.value, data)
            self.assertIsInstance(
                self.failed(cluster, client.put("k", data + b"x")), DidNotHappen
            )

    def test_conditions(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        first = cluster.result(client.put("k", "1", if_revision=0))
        error = self.failed(cluster, client.put("k", "2", if_revision=0))
        assert isinstance(error, PreconditionFailed)
        self.assertEqual(error.mod_revision, first.revision)
        second: Any = cluster.result(
            client.put("k", "2", if_revision=first.revision, previous=True)
        )
        self.assertEqual((second.created, second.previous.value), (False, b"1"))
        stale = client.delete("k", if_revision=first.revision)
        self.assertIsInstance(self.failed(cluster, stale), PreconditionFailed)
        gone: Any = cluster.result(
            client.delete("k", if_revision=second.revision, previous=True)
        )
        self.assertEqual(gone.previous.text, "2")

    def test_the_past(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        revisions = [cluster.result(client.put("k", str(i))).revision for i in range(5)]
        old: Any = cluster.result(client.get("k", revision=revisions[1]))
        self.assertEqual(old.text, "1")
        future = client.get("k", revision=revisions[-1] + 1)
        self.assertIsInstance(self.failed(cluster, future), FutureRevision)
        self.assertEqual(cluster.result(client.compact(revisions[2])), revisions[2])
        error = self.failed(cluster, client.get("k", revision=revisions[1]))
        assert isinstance(error, Compacted)
        self.assertEqual(error.revision, revisions[2])
        self.assertEqual(cluster.result(client.compact(keep=1)), revisions[-1])


class RangeTests(StoreCase):
    def test_pages_are_as_of_one_revision(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        expected = [b"k%03d" % i for i in range(50)]
        for key in expected:
            cluster.result(client.put(key, key))

        async def scan(descending: bool) -> list[bytes]:
            found = []
            async for record in client.scan("k", page_keys=7, descending=descending):
                found.append(record.key)
                await client.put(record.key + b"x", b"new")
            return found

        self.assertEqual(cluster.run(scan(False)), expected)
        now = [key for old in expected for key in (old, old + b"x")]
        self.assertEqual(cluster.run(scan(True)), now[::-1])

    def test_parts_of_a_range(self) -> None:
        cluster, _, _ = self.lead(1)
        client = cluster.client()
        for i, key in enumerate("dbca"):
            cluster.result(client.put(key, str(i)))

        def keys(**arguments: Any) -> str:
            page = cluster.result(client.page(**arguments))
            return b"".join(kv.key for kv in page.kvs).decode()

        self.assertEqual(keys(), "abcd")
        self.assertEqual(keys(start="b", end="d"), "bc")
        self.assertEqual(keys(start="b", after="b", limit=1), "c")
        self.assertEqual(keys(descending=True), "dcba")
        self.assertEqual(keys(sort="create_revision"), "dbca")
        self.assertEqual(keys(sort="value", descending=True, limit=3), "acb")
        page = cluster.result(client.page(limit=2, keys_only=True))
        self.assertEqual((page.count, page.more, page.kvs[0].value), (4, True, b""))
        self.assertEqual(cluster.result(client.page(count_only=True)).count, 4)
        deleted = cluster.result(client.delete_range(start="b", end="d"))
        self.assertEqual(deleted.deleted, 2)
        self.assertEqual(keys(), "ad")
        self.failureResultOf(client.delete_range(), ValueError)
        self.assertEqual(cluster.result(client.delete_range("")).deleted, 2)

    def test_transactions(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        outcome: Any = cluster.result(
            client.transact(
                [missing("a"), version("a") == 0, create_revision("a") < 1, lease("a") == ""],
                [
                    put("a", b"\xff"),
                    put(b"\xfe", "1"),
                    get("a"),
                    transaction([exists("a")], [], [put("b", "nested")]),
                    delete(prefix="none"),
                ],
                [put("a", "else")],
            )
        )
        self.assertTrue(outcome.succeeded)
        a, _, page, nested, deleted = outcome.results
        self.assertEqual((a.created, a.revision), (True, outcome.revision))
        self.assertEqual(page.kvs[0].value, b"\xff")
        self.assertFalse(nested.succeeded)
        self.assertEqual(deleted.deleted, 0)
        outcome = cluster.result(
            client.transact(
                [value("a") == b"\xff", mod_revision("a") != outcome.revision],
                [],
                [
                    get(
                        start="a", end="c", sort="mod_revision", descending=True, keys_only=True
                    ),
                    get(prefix="", count_only=True, limit=1),
                    delete("a", previous=True),
                    put("b", keep_value=True, previous=True),
                ],
            )
        )
        self.assertFalse(outcome.succeeded)
        page, count, deleted, kept = outcome.results
        self.assertEqual(len(page.kvs), 2)
        self.assertEqual((count.count, count.kvs), (3, ()))
        self.assertEqual(deleted.previous[0].value, b"\xff")
        self.assertEqual(kept.previous.text, "nested")
        twice = client.transact([], [put("a", "1"), put("a", "2")])
        self.assertIsInstance(self.failed(cluster, twice), BadRequest)
        for wrong in (
            {},
            {"key": "a", "prefix": "b"},
            {"prefix": "a", "end": "b"},
            {"key": "a", "end": "b"},
        ):
            self.assertRaises(ValueError, get, **wrong)


class CrashTests(StoreCase):
    def test_29_a_write_in_the_middle_of_a_crash_is_applied_once(self) -> None:
        """At whatever moment the leader dies, and whomever the client had asked."""
        outcomes = set()
        for step in range(24):
            for through_leader in (True, False):
                cluster, leader, others = self.lead(seed=step)
                names = [leader, *others] if through_leader else [*others, leader]
                client = cluster.client(*names)
                writing = client.put("k", "v")
                cluster.advance(step * 0.0005)
                was_done = writing.called
                cluster.crash(leader)
                written = cluster.result(writing)
                cluster.await_agreement()
                record = cluster.result(client.get("k"))
                assert record is not None
                self.assertEqual((record.version, record.value), (1, b"v"), step)
                self.assertEqual(record.mod_revision, written.revision)
                self.assertTrue(written.created)
                outcomes.add((through_leader, was_done))
        self.assertEqual(len(outcomes), 4, "all four ways were gone")

    def test_29_without_its_key_it_would_be_applied_twice(self) -> None:
        """So that the test above does test something."""
        found = set()
        for step in range(24):
            cluster, leader, others = self.lead(seed=step)
            client = cluster.client(leader, *others)
            self.forget_keys(client)
            writing = client.put("k", "v")
            cluster.advance(step * 0.0005)
            cluster.crash(leader)
            cluster.result(writing)
            record = cluster.result(client.get("k"))
            assert record is not None
            found.add(record.version)
        self.assertEqual(found, {1, 2})

    def forget_keys(self, client: Client) -> None:
        """From now on its requests have no idempotency keys, nor any other fields."""
        send = client.requester.open

        def plain(server: str, method: str, target: str, _: Any, body: bytes = b"") -> Any:
            return send(server, method, target, {}, body)

        self.patch(client.requester, "open", plain)

    def test_many_writes_through_crashes_and_restarts(self) -> None:
        for seed in range(4):
            cluster, _, _ = self.lead(seed=seed)
            clients = [
                cluster.client(timeout_s=60),
                cluster.client("n2", "n3", "n1", timeout_s=60),
            ]
            done: list[tuple[int, int]] = []

            async def write(number: int, client: Client, done: Any = done) -> None:
                for i in range(25):
                    written = await client.put(f"{number}-{i}", "v", previous=True)
                    done.append((written.revision, number))
                    self.assertTrue(written.created)

            writing = [
                Deferred.fromCoroutine(write(number, client))
                for number, client in enumerate(clients)
            ]
            for _ in range(4):
                cluster.advance(0.03)
                name = cluster.await_leader() if cluster.nodes else ""
                cluster.crash(name, power_lost=bool(seed % 2))
                cluster.await_leader()
                cluster.advance(cluster.random.random())
                cluster.restart(name)
                cluster.await_leader()
            for each in writing:
                cluster.result(each, 120)
            page = cluster.result(clients[0].page())
            self.assertEqual({kv.version for kv in page.kvs}, {1})
            self.assertEqual(page.count, 50)
            # Of one client, the later write has the later revision.
            for number in (0, 1):
                own = [revision for revision, n in done if n == number]
                self.assertEqual(own, sorted(set(own)))

    def test_nobody_is_there(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        for name in list(cluster.nodes):
            cluster.crash(name)
        self.assertIsInstance(self.failed(cluster, client.put("k", "v")), Unreachable)
        self.assertIsInstance(self.failed(cluster, client.get("k")), Unreachable)

    def test_all_have_lost_their_power(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        for name in list(cluster.nodes):
            cluster.crash(name, power_lost=True)
        self.assertIsInstance(self.failed(cluster, client.put("k", "v")), Unreachable)

    def test_30_no_quorum_means_that_nothing_happened_and_a_cut_that_nobody_knows(self) -> None:
        cluster, leader, others = self.lead()
        for name in others:
            cluster.crash(name)
        cluster.advance(2.0)
        client = cluster.client(leader)
        error = self.failed(cluster, client.put("k", "v"))
        self.assertIsInstance(error, (NoLeader, NoQuorum), repr(error))
        cluster.restart(others[0])
        cluster.await_agreement()
        self.assertEqual(cluster.result(client.get("k")), None)
        cluster, leader, _ = self.lead()
        client = cluster.client(leader)
        cluster.result(client.get("k"))
        writing = client.put("k", "v")
        cluster.advance(0.001)
        cluster.partition(["c1"], list(cluster.nodes))
        self.assertIsInstance(self.failed(cluster, writing), OutcomeUnknown)

    def test_a_server_that_is_stopped_answers_what_it_has_in_hand(self) -> None:
        cluster, leader, _ = self.lead()
        client = cluster.client(leader, *[n for n in cluster.nodes if n != leader])
        writing = [client.put(f"{i}", "v") for i in range(20)]
        watch = client.watch(prefix="", revision=2)
        cluster.advance(0.002)
        cluster.stop(leader)
        for each in writing:
            self.assertTrue(cluster.result(each).created)
        cluster.result(client.put("last", "v"))
        seen: list[int] = []

        async def read() -> None:
            async for changes in watch:
                seen.append(changes.revision)

        Deferred.fromCoroutine(read())
        cluster.advance_until(lambda: seen and seen[-1] == 22)
        self.assertEqual(seen, list(range(2, 23)))
        cluster.result(client.close())

    def test_nothing_is_left_of_a_client_that_was_closed(self) -> None:
        cluster, leader, others = self.lead()
        channels = len(cluster.network._channels)
        client = cluster.client(leader, *others)
        lease = cluster.result(client.lease(5))
        watches = [client.watch(prefix="", revision=2), client.watch("k")]
        cluster.result(client.put("k", "v", lease=lease))
        cluster.advance(1.0)
        asked = client.put("other", "v")
        cluster.result(client.close())
        self.assertIsInstance(self.failed(cluster, asked), OutcomeUnknown)
        # A server finds out that nobody hears a watch when it next has something to say.
        cluster.advance(20.0)
        self.assertEqual(len(cluster.network._channels), channels)
        for server in cluster.servers.values():
            self.assertEqual(server.http.connections, set())
        for watch in watches:
            self.assertIsInstance(
                self.failed(cluster, Deferred.fromCoroutine(self.drain(watch))), Stopped
            )
        self.assertFalse(self.there(cluster, leader, b"k"))

    async def drain(self, watch: Watch) -> None:
        async for _ in watch:
            pass
        await watch.started()
        raise Stopped("As it should be.")


class WatchTests(StoreCase):
    def seen(self, watch: Watch) -> list[tuple[int, list[bytes]]]:
        """What a watch tells, in a list that grows."""
        seen: list[tuple[int, list[bytes]]] = []

        async def read() -> None:
            async for changes in watch:
                seen.append((changes.revision, [event.value for event in changes.events]))

        Deferred.fromCoroutine(read())
        return seen

    def test_54_many_revisions_across_crashes_of_leaders(self) -> None:
        for seed in range(3):
            cluster, _, _ = self.lead(seed=seed)
            writer, reader = cluster.client(), cluster.client("n3", "n2", "n1")
            watch = reader.watch(prefix="w/")
            from_start = reader.watch(prefix="w/", revision=2)
            base = cluster.result(watch.started())
            seen, again = self.seen(watch), self.seen(from_start)
            written: dict[int, list[bytes]] = {}

            async def write(
                number: int, writer: Client = writer, written: Any = written
            ) -> None:
                for i in range(150):
                    data = b"%d-%d" % (number, i)
                    done = await writer.put(f"w/{number}", data)
                    written[done.revision] = [data]
                    await writer.put("elsewhere", data)

            writing = [Deferred.fromCoroutine(write(number)) for number in range(3)]
            crashes = 0
            while not all(each.called for each in writing):
                cluster.advance(0.15)
                name = cluster.await_leader()
                cluster.crash(name)
                crashes += 1
                cluster.await_leader()
                cluster.advance(0.1)
                cluster.restart(name)
            for each in writing:
                self.successResultOf(each)
            expected = sorted(written.items())
            cluster.advance_until(lambda: len(seen) >= 450 and len(again) >= 450)  # noqa: B023
            cluster.advance(2.0)
            self.assertGreater(expected[0][0], base)
            self.assertEqual(seen, expected)
            self.assertEqual(again, expected)
            self.assertGreater(crashes, 2)

    def test_54_through_partitions_of_the_reader(self) -> None:
        cluster, _, _ = self.lead(seed=5)
        writer, reader = cluster.client(), cluster.client()
        seen = self.seen(reader.watch(prefix="", revision=2))
        revision = 1
        for i in range(60):
            revision = cluster.result(writer.put("k", str(i))).revision
            if i % 20 == 10:
                nodes = sorted(cluster.nodes)
                cluster.partition(["c2"], nodes)
                cluster.advance(cluster.random.random())
            if i % 20 == 15:
                cluster.heal()
        cluster.advance_until(lambda: len(seen) == 60, 120)
        self.assertEqual([r for r, _ in seen], list(range(2, revision + 1)))

    def test_a_node_that_is_cut_off_is_left(self) -> None:
        """It talks to its client still, and knows nothing new."""
        cluster, _, others = self.lead()
        away = others[0]
        rest = [name for name in cluster.nodes if name != away]
        writer, reader = cluster.client(*rest), cluster.client(away, *rest)
        seen = self.seen(reader.watch(prefix="", revision=2))
        cluster.result(writer.put("k", "1"))
        cluster.advance_until(lambda: seen)
        cluster.partition([away], rest)
        cluster.result(writer.put("k", "2"))
        begun = cluster.clock.seconds()
        cluster.advance_until(lambda: len(seen) == 2, 40)
        self.assertLess(cluster.clock.seconds() - begun, 30.0)

    def test_55_who_does_not_read_loses_nothing(self) -> None:
        cluster, _, _ = self.lead()
        writer, reader = cluster.client(), cluster.client()
        watch = reader.watch(prefix="", revision=2)
        data = "v" * 20_000
        for _ in range(600):
            cluster.result(writer.put("k", data))
        cluster.advance(120.0)
        seen = self.seen(watch)
        cluster.advance_until(lambda: len(seen) == 600, 120)
        self.assertEqual([r for r, _ in seen], list(range(2, 602)))

    def test_what_is_gone_is_said(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        for i in range(10):
            cluster.result(client.put("k", str(i)))
        cluster.result(client.compact(8))
        watch = client.watch("k", revision=3)
        error = self.failed(cluster, Deferred.fromCoroutine(watch.__anext__()))
        assert isinstance(error, Compacted)
        self.assertEqual(error.revision, 8)

    def test_kinds_of_events(self) -> None:
        cluster, _, _ = self.lead(1)
        client = cluster.client()
        both = client.watch(start="a", end="b", previous=True)
        puts, deletes = client.watch("a", events="put"), client.watch("a", events="delete")
        for watch in (both, puts, deletes):
            cluster.result(watch.started())
        cluster.result(client.put("a", b"\xff"))
        cluster.result(client.put("b", "1"))
        cluster.result(client.delete("a"))

        async def two(watch: Watch) -> list[Any]:
            return [(await watch.__anext__()).events[0] for _ in range(2)]

        put_event, delete_event = cluster.run(two(both))
        self.assertEqual((put_event.is_delete, put_event.value), (False, b"\xff"))
        self.assertIsNone(put_event.previous)
        self.assertEqual((delete_event.is_delete, delete_event.key), (True, b"a"))
        self.assertEqual(delete_event.previous.value, b"\xff")
        self.assertEqual(cluster.run(puts.__anext__()).revision, put_event.record.mod_revision)
        self.assertEqual(
            cluster.run(deletes.__anext__()).revision, delete_event.record.mod_revision
        )


class LeaseTests(StoreCase):
    def keyed(self, cluster: StoreCluster, client: Client, ttl_s: float = 3.0) -> Lease:
        """A lease with the key `k`."""
        lease = cluster.result(client.lease(ttl_s))
        cluster.result(client.put("k", "v", lease=lease))
        return lease

    def test_kept_alive_across_changes_of_leader(self) -> None:
        cluster, _, _ = self.lead(seed=2)
        client = cluster.client()
        lease = self.keyed(cluster, client)
        lost = lease.lost()
        for _ in range(6):
            name = cluster.await_leader()
            cluster.crash(name)
            cluster.await_leader()
            cluster.advance(4.0)
            self.assertTrue(lease.is_held)
            cluster.restart(name)
            cluster.advance(0.5)
        self.assertNoResult(lost)
        self.assertIsNotNone(cluster.result(client.get("k")))
        cluster.result(lease.revoke())
        self.successResultOf(lost)
        self.assertIsNone(cluster.result(client.get("k")))

    def test_lost_is_known_before_the_servers_act_on_it(self) -> None:
        """The client is cut off at some moment, and perhaps the leader dies, too."""
        for seed in range(12):
            cluster, leader, others = self.lead(seed=seed)
            cluster.network.max_delay_s = 0.05
            client = cluster.client()
            lease = self.keyed(cluster, client)
            cluster.advance(cluster.random.uniform(0.0, 5.0))
            self.assertTrue(lease.is_held)
            told: list[float] = []

            def lost(_: None, told: list[float] = told, clock: Clock = cluster.clock) -> None:
                told.append(clock.seconds())

            lease.lost().addCallback(lost)
            cluster.partition(["c1"], list(cluster.nodes))
            if seed % 3 == 2:
                cluster.crash(leader)
            gone_at = 0.0
            while not gone_at:
                cluster.advance(0.001)
                up = [name for name in (leader, *others) if name in cluster.nodes]
                if not all(self.there(cluster, name, b"k") for name in up):
                    gone_at = cluster.clock.seconds()
            self.assertEqual(len(told), 1, f"seed {seed}")
            self.assertLess(told[0], gone_at, f"seed {seed}")
            self.assertFalse(lease.is_held)

    def test_one_that_is_revoked_by_others(self) -> None:
        cluster, _, _ = self.lead()
        client, other = cluster.client(), cluster.client()
        lease = self.keyed(cluster, client)
        cluster.result(_revoke(other, lease.id))
        cluster.advance(2.0)
        self.assertFalse(lease.is_held)
        lost = client.put("k", "v", lease=lease)
        self.assertIsInstance(self.failed(cluster, lost), LeaseNotFound)

    def test_a_key_with_a_lease_of_its_own(self) -> None:
        cluster, leader, _ = self.lead()
        client = cluster.client()
        written = cluster.result(client.put("k", "v", ttl_s=2.5))
        record: Any = cluster.result(client.get("k"))
        self.assertEqual((record.lease, len(record.lease)), (written.lease, 16))
        cluster.advance(2.8)
        self.assertTrue(self.there(cluster, leader, b"k"))
        cluster.advance(0.5)
        self.assertFalse(self.there(cluster, leader, b"k"))

    def test_a_lease_granted_in_the_middle_of_a_crash(self) -> None:
        for step in range(10):
            cluster, leader, others = self.lead(seed=step)
            client = cluster.client(leader, *others)
            granting = client.lease(3.0)
            cluster.advance(step * 0.0006)
            cluster.crash(leader)
            lease = cluster.result(granting)
            self.assertTrue(lease.is_held)
            cluster.advance(20.0)
            self.assertTrue(lease.is_held)
            self.assertEqual(cluster.services[others[0]].database.status().leases, 1)


def _revoke(client: Client, lease_id: str) -> Deferred[Any]:
    return Deferred.fromCoroutine(client.requester.write("DELETE", f"/lease/{lease_id}"))
