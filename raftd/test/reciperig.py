"""For tests of coordination: who holds what, while nodes die and clients are cut off."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from raftd.client import Client
from raftd.client.recipes import Held
from raftd.errors import RaftdError
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
