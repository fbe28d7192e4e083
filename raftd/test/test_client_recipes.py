"""
Coordination, on clusters in memory that crash and part.

What holds is judged by the clock of the cluster, as somebody would who sees
all clients at once: the clients do not.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from raftd.client import Client
from raftd.client.recipes import (
    Barrier,
    Counter,
    DoubleBarrier,
    Election,
    Held,
    Lock,
    Queue,
    ReadWriteLock,
    Semaphore,
    TooManyContenders,
    contenders,
)
from raftd.errors import LeaseNotFound, OutcomeUnknown, RaftdError
from raftd.test.test_client_cluster import StoreCase
from raftd.testing_store import StoreCluster

TTL_S = 3.0


class RecipeCase(StoreCase):
    def begin(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def held(self, cluster: StoreCluster, acquiring: Deferred[Held | None]) -> Held:
        """A lock that one gets."""
        held = cluster.result(acquiring)
        assert held is not None
        return held

    def keys(self, cluster: StoreCluster, client: Client) -> list[bytes]:
        return [kv.key for kv in cluster.result(client.page(keys_only=True)).kvs]


class Referee:
    """
    Who holds what, at every moment, and with which tokens.

    `may_hold` says whether those whose leases are not over may hold together.
    """

    def __init__(
        self, cluster: StoreCluster, may_hold: Callable[[list[tuple[str, Held]]], bool]
    ) -> None:
        self._cluster = cluster
        self._may_hold = may_hold
        self._holding: list[tuple[str, Held]] = []
        self.tokens: list[int] = []
        self.violations: list[str] = []
        self.waited = 0

    async def contend(
        self, client: Client, kind: str, acquire: Callable[[], Any], rounds: int
    ) -> None:
        """Acquire, hold for a while, or until it is lost, and release; again and again."""
        cluster = self._cluster
        while rounds:
            begun = cluster.clock.seconds()
            try:
                held = await acquire()
            except RaftdError:
                await deferLater(cluster.clock, 0.1)
                continue
            rounds -= 1
            self.waited += cluster.clock.seconds() - begun > 0.1
            self.tokens.append(held.token)
            entry = (kind, held)
            self._holding.append(entry)
            self.look()
            end = cluster.clock.seconds() + cluster.random.uniform(0.0, 0.4)
            while held.is_held and cluster.clock.seconds() < end:
                await deferLater(cluster.clock, 0.01)
            self._holding.remove(entry)
            try:
                await held.release()
            except RaftdError:
                continue  # it goes with its lease

    def look(self) -> None:
        """Who holds now."""
        valid = [(kind, held) for kind, held in self._holding if held.is_held]
        if valid and not self._may_hold(valid):
            at = self._cluster.clock.seconds()
            self.violations.append(f"at {at:.3f}: {[(k, h.token) for k, h in valid]}")


class ChaosCase(RecipeCase):
    def chaos(
        self,
        seed: int,
        may_hold: Callable[[list[tuple[str, Held]]], bool],
        contender: Callable[[Client, int], tuple[str, Callable[[], Any]]],
        *,
        clients: int = 4,
        rounds: int = 6,
    ) -> Referee:
        """Clients that contend while nodes die and clients and nodes are cut off."""
        cluster, _, _ = self.lead(seed=seed)
        referee = Referee(cluster, may_hold)
        random = cluster.random
        working = []
        for number in range(clients):
            client = cluster.client(timeout_s=4.0)
            kind, acquire = contender(client, number)
            working.append(self.begin(referee.contend(client, kind, acquire, rounds)))
        while not all(each.called for each in working):
            for _ in range(random.randrange(20, 200)):
                cluster.advance(0.005)
                referee.look()
            draw = random.random()
            up = sorted(cluster.nodes)
            if draw < 0.25 and len(up) == 3:
                cluster.crash(random.choice(up), power_lost=random.random() < 0.5)
            elif draw < 0.5 and len(up) < 3:
                (down,) = cluster.members.keys() - up
                cluster.restart(down)
            elif draw < 0.75:
                everybody = [*cluster.members, *cluster.clients]
                alone = random.choice(everybody)
                cluster.partition([alone], [name for name in everybody if name != alone])
            else:
                cluster.heal()
            self.assertLess(
                cluster.clock.seconds(), 3600, f"seed {seed} does not come to an end"
            )
        for each in working:
            self.successResultOf(each)
        self.assertEqual(referee.violations, [], f"seed {seed}")
        self.assertEqual(len(referee.tokens), clients * rounds)
        self.assertGreater(referee.waited, 0)
        return referee


class LockTests(ChaosCase):
    def test_one_holder_at_a_time_and_tokens_that_grow(self) -> None:
        for seed in range(4):

            def contender(client: Client, number: int) -> tuple[str, Callable[[], Any]]:
                return "w", Lock(client, "lock", ttl_s=TTL_S).acquire

            referee = self.chaos(seed, lambda valid: len(valid) == 1, contender)
            self.assertEqual(referee.tokens, sorted(set(referee.tokens)), f"seed {seed}")

    def test_in_the_order_in_which_they_came(self) -> None:
        cluster, _, _ = self.lead()
        lock = Lock(cluster.client(), "lock")
        first = self.held(cluster, lock.acquire())
        order: list[int] = []
        waiting = []
        for number in range(5):
            acquiring = Lock(cluster.client(), "lock").acquire()

            def acquired(held: Held | None, number: int = number) -> Held | None:
                order.append(number)
                return held

            acquiring.addCallback(acquired)
            waiting.append(acquiring)
            cluster.advance(0.2)
        self.assertEqual(order, [])
        cluster.result(first.release())
        tokens = [first.token]
        for number, acquiring in enumerate(waiting):
            held = self.held(cluster, acquiring)
            self.assertEqual(order, list(range(number + 1)))
            tokens.append(held.token)
            cluster.result(held.release())
        self.assertEqual(tokens, sorted(set(tokens)))
        self.assertEqual(self.keys(cluster, cluster.client()), [])

    def test_try(self) -> None:
        cluster, _, _ = self.lead()
        one, two = cluster.client(), cluster.client()
        held = self.held(cluster, Lock(one, "lock").acquire(wait=False))
        for _ in range(3):
            self.assertIsNone(cluster.result(Lock(two, "lock").acquire(wait=False)))
        self.assertEqual(self.keys(cluster, two), [held.key])
        cluster.result(held.release())
        self.assertIsNotNone(cluster.result(Lock(two, "lock").acquire(wait=False)))

    def test_a_holder_that_is_gone(self) -> None:
        cluster, _, _ = self.lead()
        one, two = cluster.client(), cluster.client()
        held = self.held(cluster, Lock(one, "lock", ttl_s=TTL_S).acquire())
        lost_at: list[float] = []
        held.lost().addCallback(lambda _: lost_at.append(cluster.clock.seconds()))
        acquiring = Lock(two, "lock").acquire()
        cluster.advance(20.0)
        self.assertNoResult(acquiring)
        cluster.partition(["c1"], list(cluster.nodes))
        after = self.held(cluster, acquiring)
        self.assertLess(lost_at[0], cluster.clock.seconds())
        self.assertFalse(held.is_held)
        self.assertGreater(after.token, held.token)
        cluster.heal()
        cluster.result(held.release())
        self.assertTrue(after.is_held)
        # A transaction that only the holder may carry out.
        for lock, expected in ((held, False), (after, True)):
            outcome = cluster.result(two.transact([lock.is_mine], []))
            self.assertEqual(outcome.succeeded, expected)

    def test_a_delay_after_its_death_and_none_after_a_release(self) -> None:
        cluster, _, _ = self.lead()
        one, two = cluster.client(), cluster.client()

        def lock(client: Client) -> Lock:
            return Lock(client, "lock", ttl_s=TTL_S, delay_s=7.0)

        cluster.result(self.held(cluster, lock(one).acquire()).release())
        held = self.held(cluster, lock(one).acquire(wait=False))
        lost_at: list[float] = []
        held.lost().addCallback(lambda _: lost_at.append(cluster.clock.seconds()))
        acquiring = lock(two).acquire()
        cluster.advance(30.0)
        self.assertTrue(held.is_held)
        cluster.partition(["c1"], list(cluster.nodes))
        cluster.advance_until(lambda: lost_at)
        cut = cluster.clock.seconds()
        self.assertIsNone(cluster.result(lock(cluster.client()).acquire(wait=False)))
        self.held(cluster, acquiring)
        self.assertTrue(7.0 <= cluster.clock.seconds() - lost_at[0] < 9.0)
        self.assertGreater(cluster.clock.seconds(), cut)

    def test_one_that_gives_up_waiting_leaves_the_line(self) -> None:
        cluster, _, _ = self.lead()
        clients = [cluster.client() for _ in range(3)]
        first = self.held(cluster, Lock(clients[0], "lock").acquire())
        second = Lock(clients[1], "lock").acquire()
        cluster.advance(0.5)
        third = Lock(clients[2], "lock").acquire()
        cluster.advance(0.5)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        cluster.advance(0.5)
        self.assertEqual(len(self.keys(cluster, clients[0])), 2)
        cluster.result(first.release())
        self.held(cluster, third)

    def test_whoever_gives_up_at_any_moment_leaves_nothing_behind(self) -> None:
        for seed in range(30):
            for shared in (False, True):
                cluster, _, _ = self.lead(seed=seed)
                client = cluster.client()
                lease = cluster.result(client.lease(60.0)) if shared else None
                cluster.network.max_delay_s = 0.05
                acquiring = Lock(client, "lock", ttl_s=TTL_S, lease=lease).acquire()
                cluster.advance(cluster.random.uniform(0.0, 0.15 if shared else 0.3))
                if acquiring.called:
                    continue
                acquiring.cancel()
                self.failureResultOf(acquiring, CancelledError)
                cluster.advance(2.0 if shared else 2 * TTL_S)
                self.assertEqual(self.keys(cluster, client), [], (seed, shared))

    def test_getting_in_line_is_overtaken_by_getting_out(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        lease = cluster.result(client.lease(60.0))
        network = cluster.network
        network.min_delay_s = network.max_delay_s = 0.05
        acquiring = Lock(client, "lock", lease=lease).acquire()
        cluster.advance(0.001)
        network.min_delay_s = network.max_delay_s = 0.0005
        acquiring.cancel()
        self.failureResultOf(acquiring, CancelledError)
        cluster.advance(0.04)
        self.assertEqual(cluster.services["n1"].database.revision, 3, "in, and out again")
        cluster.advance(0.1)
        self.assertEqual(self.keys(cluster, client), [])

    def test_whoever_gives_up_with_something_to_say_leaves_nothing_behind(self) -> None:
        """What gets out of line must be the very request that got in."""
        cluster, _, _ = self.lead()
        client = cluster.client()
        lease = cluster.result(client.lease(60.0))
        cluster.network.min_delay_s = cluster.network.max_delay_s = 0.05
        acquiring = Lock(client, "lock", lease=lease).acquire(value="me")
        # In line, but nobody here has heard of it.
        database = next(iter(cluster.services.values())).database
        cluster.advance_until(lambda: database.revision == 2)
        acquiring.cancel()
        cluster.advance(0.01)
        self.assertEqual(database.revision, 2)
        self.failureResultOf(acquiring, CancelledError)
        cluster.advance(2.0)
        self.assertEqual(self.keys(cluster, client), [])
        self.held(cluster, Lock(cluster.client(), "lock").acquire(wait=False))

    def test_locks_that_share_a_lease(self) -> None:
        """Also two of one name: who holds a lease does not hold what it has not got."""
        cluster, _, _ = self.lead()
        client = cluster.client()
        lease = cluster.result(client.lease(TTL_S))
        one = self.held(cluster, Lock(client, "one", lease=lease).acquire())
        self.held(cluster, Lock(client, "two", lease=lease).acquire())
        again = Lock(client, "one", lease=lease).acquire()
        cluster.advance(5.0)
        self.assertNoResult(again)
        cluster.result(one.release())
        third = self.held(cluster, again)
        self.assertTrue(lease.is_held)
        self.assertFalse(one.is_held)
        self.assertTrue(third.is_held)
        cluster.result(lease.revoke())
        self.assertFalse(third.is_held)
        self.assertEqual(self.keys(cluster, client), [])
        self.assertIsInstance(
            self.failed(cluster, Lock(client, "one", lease=lease).acquire()), LeaseNotFound
        )
        self.assertRaises(ValueError, Lock, client, "one", lease=lease, delay_s=1.0)

    def test_waiting_ends_with_the_lease(self) -> None:
        cluster, _, _ = self.lead()
        one, two = cluster.client(), cluster.client()
        self.held(cluster, Lock(one, "lock").acquire())
        lease = cluster.result(two.lease(TTL_S))
        waiting = Lock(two, "lock", lease=lease).acquire()
        cluster.advance(1.0)
        lease.close()
        self.assertIsInstance(self.failed(cluster, waiting), LeaseNotFound)

    def test_a_release_that_nobody_hears(self) -> None:
        cluster, _, _ = self.lead()
        one, two = cluster.client(timeout_s=2.0), cluster.client()
        held = self.held(cluster, Lock(one, "lock", ttl_s=TTL_S).acquire())
        cluster.partition(["c1"], list(cluster.nodes))
        self.assertIsInstance(self.failed(cluster, held.release()), OutcomeUnknown)
        self.assertFalse(held.is_held)
        self.held(cluster, Lock(two, "lock").acquire())

        async def use() -> None:
            async with Lock(two, "other", ttl_s=TTL_S):
                cluster.partition(["c2"], list(cluster.nodes))
                raise KeyError("its own")

        self.assertIsInstance(self.failed(cluster, self.begin(use())), KeyError)

    def test_as_context_managers(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        lock = Lock(client, "lock")

        async def use() -> list[bool]:
            async with lock as held:
                inside = [held.is_held]
                try:
                    await lock.__aenter__()
                except RuntimeError:
                    inside.append(True)
            async with lock:
                pass
            again = await lock.acquire(value="somebody")
            assert again is not None
            async with again:
                record = await client.get(again.key)
                assert record is not None
                inside.append(record.text == "somebody")
            return [*inside, not held.is_held]

        self.assertEqual(cluster.run(use()), [True] * 4)
        self.assertEqual(self.keys(cluster, client), [])

    def test_a_name_that_begins_with_another(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        self.held(cluster, Lock(client, "a/b").acquire())
        self.held(cluster, Lock(client, "a").acquire(wait=False))
        self.held(cluster, Lock(client, b"\xff").acquire(wait=False))

    def test_there_may_be_too_many(self) -> None:
        self.patch(contenders, "MAX_CONTENDERS", 3)
        cluster, _, _ = self.lead(1)
        client = cluster.client()
        for _ in range(3):
            Lock(client, "lock").acquire().addErrback(lambda _: None)
            cluster.advance(0.2)
        error = self.failed(cluster, Lock(client, "lock").acquire())
        self.assertIsInstance(error, TooManyContenders)
        cluster.advance(0.2)
        self.assertEqual(len(self.keys(cluster, client)), 3)


class SharedTests(ChaosCase):
    def test_so_many_permits_and_no_more(self) -> None:
        most = [0]

        def may_hold(valid: list[tuple[str, Held]]) -> bool:
            most[0] = max(most[0], len(valid))
            return len(valid) <= 2

        def contender(client: Client, number: int) -> tuple[str, Callable[[], Any]]:
            return "", Semaphore(client, "s", 2, ttl_s=TTL_S).acquire

        for seed in range(3):
            self.chaos(seed, may_hold, contender, clients=5, rounds=4)
        self.assertEqual(most, [2])

    def test_any_holder_makes_room(self) -> None:
        cluster, _, _ = self.lead()
        client = cluster.client()
        holders = [
            self.held(cluster, Semaphore(client, "s", 3).acquire(wait=False)) for _ in range(3)
        ]
        self.assertIsNone(cluster.result(Semaphore(client, "s", 3).acquire(wait=False)))
        waiting = Semaphore(client, "s", 3).acquire()
        cluster.advance(1.0)
        self.assertNoResult(waiting)
        cluster.result(holders[0].release())
        self.held(cluster, waiting)
        self.assertRaises(ValueError, Semaphore, client, "s", 0)

    def test_readers_together_and_writers_alone(self) -> None:
        together = [0]

        def may_hold(valid: list[tuple[str, Held]]) -> bool:
            kinds = [kind for kind, _ in valid]
            together[0] = max(together[0], kinds.count("r"))
            return "w" not in kinds or len(kinds) == 1

        def contender(client: Client, number: int) -> tuple[str, Callable[[], Any]]:
            lock = ReadWriteLock(client, "rw", ttl_s=TTL_S)
            return ("w", lock.write.acquire) if number % 3 == 0 else ("r", lock.read.acquire)

        for seed in range(3):
            self.chaos(seed, may_hold, contender, clients=6, rounds=3)
        self.assertGreater(together[0], 1)

    def test_no_reader_overtakes_a_writer(self) -> None:
        cluster, _, _ = self.lead()
        locks = [ReadWriteLock(cluster.client(), "rw") for _ in range(4)]
        reader = self.held(cluster, locks[0].read.acquire())
        other = self.held(cluster, locks[1].read.acquire(wait=False))
        writing = locks[2].write.acquire()
        cluster.advance(0.5)
        late = locks[3].read.acquire()
        cluster.advance(0.5)
        self.assertNoResult(writing)
        self.assertNoResult(late)
        cluster.result(other.release())
        cluster.advance(0.5)
        self.assertNoResult(writing)
        cluster.result(reader.release())
        writer = self.held(cluster, writing)
        self.assertNoResult(late)
        cluster.result(writer.release())
        self.held(cluster, late)


class ElectionTests(RecipeCase):
    def test_one_leads_and_everybody_sees_who(self) -> None:
        cluster, _, _ = self.lead(seed=3)
        one, two, watcher = (cluster.client() for _ in range(3))
        seen: list[bytes | None] = []

        async def observe() -> None:
            async with Election(watcher, "e").observe() as observation:
                async for leader in observation:
                    seen.append(None if leader is None else leader.value)

        observing = self.begin(observe())
        cluster.advance(0.2)
        first = self.held(cluster, Election(one, "e", ttl_s=TTL_S).campaign("one").acquire())
        cluster.advance(0.5)
        campaign = Election(two, "e", ttl_s=TTL_S).campaign("two")
        second = campaign.acquire()
        cluster.advance(0.5)
        self.assertNoResult(second)
        now: Any = cluster.result(Election(watcher, "e").leader())
        self.assertEqual((now.value, now.token), (b"one", first.token))

        name = cluster.await_leader()
        cluster.crash(name)
        cluster.await_leader()
        cluster.advance(5.0)
        self.assertTrue(first.is_held)
        cluster.partition(["c1"], list(cluster.members))
        led = self.held(cluster, second)
        self.assertGreater(led.token, first.token)
        self.assertFalse(first.is_held)
        cluster.advance_until(lambda: len(seen) == 3)
        cluster.result(led.release())
        cluster.advance_until(lambda: len(seen) == 4)
        self.assertIsNone(cluster.result(Election(watcher, "e").leader()))
        self.assertEqual(seen, [None, b"one", b"two", None])
        cluster.result(watcher.close())
        cluster.advance(0.1)
        self.assertTrue(observing.called)

    def test_the_history_is_compacted_while_one_looks_away(self) -> None:
        cluster, _, _ = self.lead()
        one, watcher = cluster.client(), cluster.client()
        observation = Election(watcher, "e").observe()
        self.assertIsNone(cluster.run(observation.__anext__()))
        cluster.partition(["c2"], list(cluster.nodes))
        campaign = Election(one, "e").campaign("one")
        self.held(cluster, campaign.acquire())
        for i in range(10):
            cluster.result(one.put("k", str(i)))
        cluster.result(one.compact(keep=1))
        cluster.advance(60.0)
        cluster.heal()
        leader: Any = cluster.run(observation.__anext__(), 120)
        self.assertEqual(leader.value, b"one")
        observation.close()
        self.assertIsInstance(
            self.failed(cluster, self.begin(observation.__anext__())), StopAsyncIteration
        )


class BarrierTests(RecipeCase):
    def test_who_waits_goes_on_when_it_is_opened(self) -> None:
        cluster, _, _ = self.lead()
        clients = [cluster.client() for _ in range(3)]
        barrier = Barrier(clients[0], "b")
        cluster.result(barrier.wait())
        cluster.result(barrier.close())
        cluster.result(barrier.close())
        waiting = [Barrier(client, "b").wait() for client in clients]
        cluster.advance(5.0)
        self.assertFalse(any(each.called for each in waiting))
        cluster.result(barrier.open())
        for each in waiting:
            cluster.result(each)
        cluster.result(barrier.open())

    def test_it_opens_when_its_holder_is_gone(self) -> None:
        cluster, _, _ = self.lead()
        one, two = cluster.client(), cluster.client()
        lease = cluster.result(one.lease(TTL_S))
        cluster.result(Barrier(one, "b").close(lease=lease))
        waiting = Barrier(two, "b").wait()
        cluster.advance(10.0)
        self.assertNoResult(waiting)
        cluster.result(one.close())
        cluster.result(waiting)


class DoubleBarrierTests(RecipeCase):
    def member(self, cluster: StoreCluster, count: int = 3) -> DoubleBarrier:
        return DoubleBarrier(cluster.client(), "d", count, ttl_s=TTL_S)

    def test_all_enter_together_and_leave_together(self) -> None:
        cluster, _, _ = self.lead()
        inside: set[int] = set()
        together: list[int] = []

        async def work(number: int) -> None:
            for _ in range(4):
                member = self.member(cluster)
                await deferLater(cluster.clock, cluster.random.random())
                async with member:
                    inside.add(number)
                    await deferLater(cluster.clock, cluster.random.random())
                    together.append(len(inside))
                # Nobody has left before all had finished.
                self.assertEqual(len(together) % 3, 0)
                inside.discard(number)

        working = [self.begin(work(number)) for number in range(3)]
        for each in working:
            cluster.result(each, 120)
        self.assertEqual(len(together), 12)
        cluster.advance(1.0)
        self.assertEqual(self.keys(cluster, cluster.client()), [])

    def test_rounds_while_servers_die(self) -> None:
        for seed in range(3):
            cluster, _, _ = self.lead(seed=seed)
            rounds = [0, 0, 0]

            async def work(
                number: int, rounds: list[int] = rounds, cluster: StoreCluster = cluster
            ) -> None:
                while rounds[number] < 5:
                    member = self.member(cluster)
                    await member.enter()
                    rounds[number] += 1
                    self.assertLessEqual(max(rounds) - min(rounds), 1)
                    await member.leave()

            working = [self.begin(work(number)) for number in range(3)]
            while not all(each.called for each in working):
                name = cluster.await_leader()
                cluster.crash(name)
                cluster.await_leader()
                cluster.advance(0.3)
                cluster.restart(name)
                cluster.advance(0.3)
                self.assertLess(cluster.clock.seconds(), 600)
            for each in working:
                self.successResultOf(each)

    def test_one_that_dies_while_it_waits_is_not_counted(self) -> None:
        cluster, _, _ = self.lead()
        members = [self.member(cluster) for _ in range(4)]
        dying = members[0].enter()
        dying.addErrback(lambda _: None)
        second = members[1].enter()
        cluster.advance(0.5)
        cluster.result(cluster.clients["c1"].close())
        cluster.advance(2 * TTL_S)
        third = members[2].enter()
        cluster.advance(5.0)
        self.assertNoResult(second)
        self.assertNoResult(third)
        fourth = members[3].enter()
        for each in (second, third, fourth):
            cluster.result(each)

    def test_one_that_dies_inside_has_left(self) -> None:
        cluster, _, _ = self.lead()
        members = [self.member(cluster) for _ in range(3)]
        for each in [member.enter() for member in members]:
            cluster.result(each)
        leaving = [member.leave() for member in members[1:]]
        cluster.advance(10.0)
        self.assertFalse(any(each.called for each in leaving))
        cluster.result(cluster.clients["c1"].close())
        for each in leaving:
            cluster.result(each)

    def test_all_die_inside_and_others_come(self) -> None:
        """What is left of that round keeps nobody from waiting, and lets nobody in."""
        cluster, _, _ = self.lead()
        members = [self.member(cluster) for _ in range(3)]
        for each in [member.enter() for member in members]:
            cluster.result(each)
        early = self.member(cluster).enter()
        cluster.advance(1.0)
        self.assertNoResult(early)
        for name in ("c1", "c2", "c3"):
            cluster.result(cluster.clients[name].close())
        cluster.advance(3 * TTL_S)
        self.assertNoResult(early)
        later = [self.member(cluster).enter() for _ in range(2)]
        for each in (early, *later):
            cluster.result(each)

    def test_more_than_are_needed_wait_for_the_next_round(self) -> None:
        cluster, _, _ = self.lead()
        members = [self.member(cluster, 2) for _ in range(4)]
        entering = [member.enter() for member in members]
        cluster.advance(3.0)
        self.assertEqual(sum(each.called for each in entering), 2)
        for member, each in zip(members, entering, strict=True):
            if each.called:
                member.leave().addErrback(self.fail)
        cluster.advance(3.0)
        self.assertTrue(all(each.called for each in entering))

    def test_what_it_is_not_for(self) -> None:
        cluster, _, _ = self.lead(1)
        member = self.member(cluster, 1)
        self.failureResultOf(member.leave(), RuntimeError)
        cluster.result(member.enter())
        self.failureResultOf(member.enter(), RuntimeError)
        cluster.result(member.leave())
        self.assertRaises(ValueError, self.member, cluster, 0)

    def test_cancelled_it_is_out(self) -> None:
        cluster, _, _ = self.lead()
        member = self.member(cluster)
        entering = member.enter()
        cluster.advance(0.5)
        entering.cancel()
        self.failureResultOf(entering, CancelledError)
        cluster.advance(0.5)
        self.assertEqual(self.keys(cluster, cluster.client()), [])


class QueueTests(RecipeCase):
    def test_first_in_first_out(self) -> None:
        cluster, _, _ = self.lead()
        queue, other = Queue(cluster.client(), "q"), Queue(cluster.client(), "q/x")
        self.assertIsNone(cluster.result(queue.take(wait=False)))
        values = [b"%d" % i for i in range(20)]
        for value in values:
            cluster.result(queue.put(value))
            cluster.result(other.put(b"other"))
        taken = [cluster.result(queue.take()) for _ in values]
        self.assertEqual(taken, values)
        waiting = queue.take()
        cluster.advance(5.0)
        self.assertNoResult(waiting)
        cluster.result(queue.put(b""))
        self.assertEqual(cluster.result(waiting), b"")

    def test_each_item_once_through_crashes(self) -> None:
        for seed in range(3):
            cluster, _, _ = self.lead(seed=seed)
            put: list[bytes] = []
            taken: list[list[bytes]] = [[], [], []]

            async def produce(
                number: int, put: list[bytes] = put, cluster: StoreCluster = cluster
            ) -> None:
                queue = Queue(cluster.client(timeout_s=120), "q")
                for i in range(20):
                    await queue.put(b"%d-%02d" % (number, i))
                    put.append(b"%d-%02d" % (number, i))

            async def consume(into: list[bytes], cluster: StoreCluster = cluster) -> None:
                queue = Queue(cluster.client(timeout_s=120), "q")
                while True:
                    item = await queue.take()
                    assert item is not None
                    into.append(item)

            for into in taken:
                self.begin(consume(into)).addErrback(lambda f: f.trap(CancelledError))
            working = [self.begin(produce(number)) for number in range(2)]
            while sum(map(len, taken)) < 40:
                cluster.advance(0.2)
                name = cluster.await_leader()
                cluster.crash(name)
                cluster.await_leader()
                cluster.advance(0.2)
                cluster.restart(name)
                self.assertLess(cluster.clock.seconds(), 600)
            for each in working:
                cluster.result(each)
            cluster.advance(2.0)
            self.assertEqual(sorted(item for into in taken for item in into), sorted(put))
            for into in taken:
                for number in (b"0", b"1"):
                    own = [item for item in into if item.startswith(number)]
                    self.assertEqual(own, sorted(own), "out of order")


class CounterTests(RecipeCase):
    def test_nothing_is_lost_and_nothing_counted_twice(self) -> None:
        cluster, _, _ = self.lead(seed=1)
        results: list[int] = []

        async def count(client: Client) -> None:
            for _ in range(20):
                results.append(await Counter(client, "n").add(1))

        working = [self.begin(count(cluster.client(timeout_s=120))) for _ in range(3)]
        while not all(each.called for each in working):
            cluster.advance(0.3)
            name = cluster.await_leader()
            cluster.crash(name)
            cluster.await_leader()
            cluster.restart(name)
        for each in working:
            self.successResultOf(each)
        self.assertEqual(sorted(results), list(range(1, 61)))
        counter = Counter(cluster.client(), "n")
        self.assertEqual(cluster.result(counter.add(-100)), -40)
        self.assertEqual(cluster.result(counter.value()), -40)
        self.assertEqual(cluster.result(Counter(cluster.client(), "none").value()), 0)

    def test_something_else(self) -> None:
        cluster, _, _ = self.lead(1)
        client = cluster.client()
        cluster.result(client.put("n", "many"))
        self.assertIsInstance(self.failed(cluster, Counter(client, "n").value()), ValueError)
        self.assertIsInstance(self.failed(cluster, Counter(client, "n").add(1)), ValueError)
