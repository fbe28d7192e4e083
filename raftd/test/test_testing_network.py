"""The cluster in memory is no kinder than what it stands for."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from raftd import testing
from raftd.core.messages import Heartbeat, Response
from raftd.errors import NoLeader, PeerUnreachable
from raftd.memory_network import MemoryPeer, MemoryTransport
from raftd.test.drivers import ClusterTestCase, Journal, command
from raftd.testing import Cluster


class ConnectionTests(ClusterTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.cluster, self.leader, (self.follower, self.other) = self.led(3, Journal)
        target = self.cluster.members[self.leader]
        me = self.cluster.members[self.follower].id
        self.peer = MemoryPeer(MemoryTransport(self.cluster.network, me, 0.6), target)
        self.assertFalse(self.peer.connected, "that takes a round trip")
        self.failureResultOf(self.peer.send(Heartbeat(0, 0, 0)), PeerUnreachable)
        self.failureResultOf(self.peer.forward([b"w"], 1000), NoLeader)
        self.cluster.advance(0.01)
        self.assertTrue(self.peer.connected)

    def _call(self) -> list[Any]:
        """A call whose answer is a second away, for the leader has lost its quorum."""
        ended: list[Any] = []
        self.peer.forward([command(b"w")], 1000).addBoth(ended.append)
        self.cluster.advance(0.003)
        self.assertEqual(ended, [])
        return ended

    def _isolate(self) -> None:
        """The leader reaches no quorum: its followers promise nothing more."""
        for name in (self.follower, self.other):
            self.cluster.logs[name].delay_seconds = None

    def test_dead_process_is_noticed_and_answers_nobody(self) -> None:
        self._isolate()
        ended = self._call()
        self.cluster.crash(self.leader)
        self.assertEqual(ended, [], "that takes a while, too")
        self.cluster.advance(0.003)
        ended[0].trap(PeerUnreachable)
        self.assertFalse(self.peer.connected)
        self.cluster.restart(self.leader)
        self.cluster.advance(0.2)
        self.assertTrue(self.peer.connected)

    def test_lost_power_is_not_noticed(self) -> None:
        self._isolate()
        ended = self._call()
        self.cluster.crash(self.leader, power_lost=True)
        self.cluster.advance(0.5)
        self.assertEqual(ended, [])
        self.assertTrue(self.peer.connected)
        # Its successor on that host knows nothing of the connection.
        self.cluster.restart(self.leader)
        beat: Deferred[Any] = self.peer.send(Heartbeat(0, 0, 0))
        self.cluster.advance(0.005)
        self.failureResultOf(beat, PeerUnreachable)

    def test_timeout_ends_the_connection_and_all_calls_on_it(self) -> None:
        one = self.cluster.members[self.leader].id
        self.cluster.network.cut(one, self.cluster.members[self.follower].id)
        ended: list[Failure | None] = []
        self.peer.read_index(60_000).addBoth(ended.append)
        self.peer.send(Heartbeat(0, 0, 0)).addBoth(ended.append)
        self.cluster.advance(0.59)
        self.assertEqual(ended, [])
        self.cluster.advance(0.02)
        self.assertEqual(len(ended), 2)
        self.assertFalse(self.peer.connected)

    def test_nothing_gets_through_behind_a_lost_message(self) -> None:
        self.cluster.network.loss = 1.0
        first = self.peer.send(Heartbeat(0, 0, 0))
        self.cluster.advance(0.01)
        self.cluster.network.loss = 0.0
        second = self.peer.send(Heartbeat(0, 0, 0))
        self.cluster.advance(0.1)
        self.assertNoResult(first)
        self.assertNoResult(second)
        self.cluster.advance(1.0)
        self.failureResultOf(first, PeerUnreachable)
        self.failureResultOf(second, PeerUnreachable)

    def _note(self, order: list[int], number: int, _: Response) -> None:
        order.append(number)

    def test_messages_keep_their_order(self) -> None:
        self.cluster.network.min_delay_s, self.cluster.network.max_delay_s = 0.0, 0.2
        order: list[int] = []
        for i in range(50):
            answered = self.peer.send(Heartbeat(0, 0, 0))
            answered.addCallback(partial(self._note, order, i))
        self.cluster.advance(0.5)
        self.assertEqual(order, list(range(50)))


class CrashTests(ClusterTestCase):
    def test_what_was_not_flushed_is_lost(self) -> None:
        for kept in (0, 1):
            cluster: Cluster[Journal] = Cluster(1, Journal)
            cluster.await_leader()
            cluster.advance(0.01)
            cluster.logs["n1"].delay_seconds = None
            for i in range(3):
                self.propose(cluster, "n1", b"%d" % i)
                cluster.advance(0.001)
            self.assertEqual(cluster.logs["n1"].unflushed, 3)
            cluster.crash("n1", kept=kept)
            cluster.logs["n1"].delay_seconds = 0.001
            cluster.restart("n1")
            cluster.await_leader()
            cluster.await_agreement()
            kept_operations = [b"0"][:kept]
            self.assertEqual(cluster.machines["n1"].operations, kept_operations)

    def test_stop_flushes(self) -> None:
        cluster: Cluster[Journal] = Cluster(1, Journal)
        cluster.await_leader()
        cluster.advance(0.01)
        cluster.logs["n1"].delay_seconds = 10.0
        self.propose(cluster, "n1", b"w")
        cluster.advance(0.001)
        cluster.stop("n1")
        cluster.logs["n1"].delay_seconds = 0.001
        cluster.restart("n1")
        cluster.await_leader()
        cluster.await_agreement()
        self.assertEqual(cluster.machines["n1"].operations, [b"w"])

    def test_loop_that_never_ends_is_found(self) -> None:
        self.patch(testing, "MAX_CALLS_PER_ADVANCE", 1000)
        cluster: Cluster[Journal] = Cluster(1, Journal)

        def again() -> None:
            cluster.clock.callLater(0.0001, again)

        again()
        self.assertRaises(AssertionError, cluster.advance, 10.0)
