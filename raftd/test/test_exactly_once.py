"""Exactly once, on whole clusters: sessions over the nodes that ship."""

from __future__ import annotations

from collections.abc import Generator

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Command
from raftd.session_client import Session
from raftd.sessions import Sessions
from raftd.test.test_session_client import Log
from raftd.testing import Cluster


class Counted(Sessions):
    """Counts the entries that ask for `b"a"`, whether it is applied for them or not."""

    def __init__(self) -> None:
        self.log = Log()
        self.attempts = 0
        super().__init__(self.log)

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        self.attempts += command.operation == b"a"
        return super().apply(index, time_ms, command)


class LeaderCrashes(SynchronousTestCase):
    def test_29_an_answer_lost_with_the_leader_is_asked_for_again_and_applies_once(
        self,
    ) -> None:
        """At whatever moment the leader crashes, and whoever leads afterwards."""
        attempts = [self.applied_with_a_crash_after(n * 0.0005, n) for n in range(1, 24)]
        # Else no answer was lost behind its commit, and nothing was shown.
        self.assertGreater(attempts.count(2), 2)
        self.assertGreater(attempts.count(1), 2)

    def applied_with_a_crash_after(self, delay_s: float, seed: int) -> int:
        """How many entries it took to apply one command once."""
        cluster = Cluster(3, Counted, seed=seed)
        leader = cluster.await_leader()
        own = next(name for name in cluster.nodes if name != leader)
        session = cluster.result(Session.open(cluster.nodes[own], cluster.clock))
        result = session.propose(b"a")
        cluster.advance(delay_s)
        cluster.crash(leader)
        self.assertEqual(cluster.result(result), b"1")
        self.assertEqual(cluster.result(session.propose(b"b")), b"2")
        cluster.restart(leader)
        cluster.await_agreement()
        machines = list(cluster.machines.values())
        for machine in machines:
            self.assertEqual(machine.log.operations, [b"a", b"b"])
            self.assertEqual(machine.digest(), machines[0].digest())
        cluster.result(session.close())
        cluster.await_agreement()
        self.assertEqual([len(machine) for machine in machines], [0, 0, 0])
        return machines[0].attempts
