"""
Coordination, on clusters in memory that crash and part.

What holds is judged by the clock of the cluster, as somebody would who sees
all clients at once: the clients do not.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from raftd.client import Client
from raftd.client.recipes import Barrier, Counter, DoubleBarrier, Election, Queue
from raftd.test.reciperig import TTL_S, RecipeCase
from raftd.testing_store import StoreCluster


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
