"""
Locks and semaphores, on clusters in memory that crash and part.

What holds is judged by the clock of the cluster, as somebody would who sees
all clients at once: the clients do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError

from raftd.client import Client
from raftd.client.recipes import (
    Held,
    Lock,
    ReadWriteLock,
    Semaphore,
    TooManyContenders,
    contenders,
)
from raftd.errors import LeaseNotFound, OutcomeUnknown
from raftd.test.reciperig import TTL_S, ChaosCase


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
