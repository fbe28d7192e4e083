"""A watch over HTTP of a cluster whose nodes crash."""

from __future__ import annotations

from typing import cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import RaftdError
from raftd.interfaces import IRequest
from raftd.kv.interfaces import IDatabase
from raftd.kv.operations import Put
from raftd.kv.results import PutResult
from raftd.net.http1 import HTTPFactory
from raftd.test.stores import StoreCluster
from raftd.test.test_watch_web import Client
from raftd.web.watch import Watching

REVISIONS = 10_000
BATCH = 100


class WatchCluster(SynchronousTestCase):
    def open(self, name: str, last_id: str) -> Client:
        """A stream of everything at a node, going on behind `last_id`."""
        clock: Clock = self.cluster.clock
        watching = Watching(clock)

        def handle(request: IRequest) -> None:
            watching.handle(request, cast(IDatabase, self.cluster.database(name)))

        factory = HTTPFactory(handle, clock, lambda: 0)
        return Client(factory, "/db/?watch", f"Last-Event-ID: {last_id}", method="GET")

    def test_54_ten_thousand_revisions_across_crashes_of_leaders(self) -> None:
        """
        Each exactly once and in order, though the node that is watched is
        one that crashes, and the next one may be behind.
        """
        self.cluster = cluster = StoreCluster(3, seed=7)
        leader = cluster.await_leader()
        client = self.open(leader, "1")
        seen: list[int] = []
        crashes = 0
        while not seen or seen[-1] <= REVISIONS:
            self.write(leader)
            cluster.advance(0.02)
            # It takes its time, so that it is behind when its node crashes.
            client.read(5_000)
            if len(seen) // 1_500 == crashes:
                client.read()
                seen += self.revisions(client)
                continue
            crashes += 1
            crashed = leader
            # These are lost, or not.
            self.write(leader)
            cluster.advance(0.001)
            cluster.crash(crashed)
            client.lose()
            seen += self.revisions(client)
            leader = cluster.await_leader()
            cluster.restart(crashed)
            # One that has just come back has everything before it yet.
            watched = leader if crashes % 2 else crashed
            client = self.open(watched, client.source.last_id)
        self.assertGreaterEqual(crashes, 6)
        self.assertEqual(seen, list(range(2, len(seen) + 2)))
        client.lose()

    def write(self, name: str) -> None:
        database = self.cluster.database(name)
        for n in range(BATCH):
            database.change(Put(b"%d" % n, b"x"), _ignore)

    def revisions(self, client: Client) -> list[int]:
        """Of what has come since the last call."""
        found = [int(message.id) for message in client.source.messages]
        self.assertEqual(found, [m.json()["revision"] for m in client.source.messages])
        client.source.messages.clear()
        return found


def _ignore(outcome: object) -> None:
    """Which writes fail when a leader crashes does not matter: the revisions tell."""
    assert isinstance(outcome, PutResult | RaftdError)
