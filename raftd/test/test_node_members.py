"""Joining and promotion, as the driver carries them to the leader; and the status."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from raftd.core.membership import AddLearner, Promote
from raftd.core.messages import Member
from raftd.errors import (
    NotCaughtUp,
    RaftdError,
)
from raftd.joining import become_member
from raftd.node import Node
from raftd.test.drivers import ClusterTestCase, Journal
from raftd.testing import Cluster


class MembershipTests(ClusterTestCase):
    def _voter(self, cluster: Cluster[Journal], node: Node) -> Deferred[None]:
        return Deferred.fromCoroutine(become_member(cluster.clock, node, learner=False))

    def _joined(self, cluster: Cluster[Journal], name: str, through: str) -> Member:
        cluster.start_joiner(name)
        member = cluster.members[name]
        found = cluster.result(cluster[through].change_membership([AddLearner(member)]))
        self.assertIn(member, found.learners)
        return member

    def test_39_join_through_a_follower(self) -> None:
        cluster, _, (follower, _) = self.led(3, Journal)
        self.written(cluster, follower, b"before")
        self._joined(cluster, "n4", follower)
        cluster.advance_until(lambda: cluster.nodes["n4"].status().applied_index > 0)
        self.assertEqual(cluster.nodes["n4"].status().role, "learner")
        self.assertFalse(cluster.nodes["n4"].is_settled_voter)
        cluster.result(self._voter(cluster, cluster.nodes["n4"]))
        self.assertTrue(cluster.nodes["n4"].is_settled_voter)
        self.assertEqual(cluster.machines["n4"].operations, [b"before"])
        self.written(cluster, "n4", b"after")

    def test_40_joining_again_changes_nothing(self) -> None:
        cluster, leader, (follower, _) = self.led(3, Journal)
        member = self._joined(cluster, "n4", follower)
        cluster.await_agreement()
        last = cluster.nodes[leader].status().last_index
        for name in (leader, follower):
            found = cluster.result(cluster[name].change_membership([AddLearner(member)]))
            self.assertEqual(found.learners, (member,))
        joiner = cluster.nodes["n4"]
        cluster.result(self._voter(cluster, joiner))
        cluster.result(self._voter(cluster, joiner))
        cluster.await_agreement()
        self.assertEqual(cluster.nodes[leader].status().last_index, last + 1)
        cluster.crash("n4")
        cluster.restart("n4")
        cluster.await_agreement()
        self.assertTrue(cluster.nodes["n4"].is_settled_voter)
        found = cluster.result(cluster[follower].change_membership([AddLearner(member)]))
        self.assertIn(member, found.voters)
        self.assertEqual(cluster.nodes[leader].status().last_index, last + 1)

    def test_joiner_that_gave_up_counts_for_no_quorum(self) -> None:
        cluster, leader, _ = self.led(1, Journal)
        self._joined(cluster, "n2", leader)
        cluster.crash("n2", power_lost=True)
        self.written(cluster, leader, b"alone")
        cluster.restart("n2")
        cluster.result(self._voter(cluster, cluster.nodes["n2"]))
        self.assertEqual(cluster.machines["n2"].operations, [b"alone"])

    def test_joiner_that_lags_a_little_becomes_a_voter_under_load(self) -> None:
        """Its disk is slower than the others', so it never has applied all it knows of."""
        cluster, leader, _ = self.led(3, Journal)
        self._joined(cluster, "n4", leader)
        joiner = cluster.nodes["n4"]
        cluster.advance(1.0)
        cluster.logs["n4"].delay_seconds = 0.03
        voter: Deferred[None] | None = None
        for i in range(2000):
            self.propose(cluster, leader, b"%d" % i)
            cluster.advance(0.001)
            if i == 100:
                voter = self._voter(cluster, joiner)
            if voter is not None and voter.called:
                break
        assert voter is not None
        self.assertTrue(voter.called, "two seconds of load, and no voter")
        self.successResultOf(voter)

    def test_change_without_a_quorum_ends_in_time(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        cluster.start_joiner("n4")
        cluster.partition([leader], others)
        joined = cluster.nodes[leader].change_membership(
            [AddLearner(cluster.members["n4"])], timeout_ms=2000
        )
        failed: list[Any] = []
        joined.addErrback(failed.append)
        cluster.advance(1.9)
        self.assertEqual(failed, [])
        cluster.advance(0.2)
        self.assertEqual(len(failed), 1)
        self.assertIsInstance(failed[0].value, RaftdError)

    def test_promotion_is_refused_to_who_is_far_behind(self) -> None:
        cluster, leader, _ = self.led(1, Journal)
        cluster.start_joiner("n2")
        cluster.partition(["n1"], ["n2"])
        cluster.result(cluster[leader].change_membership([AddLearner(cluster.members["n2"])]))
        for i in range(1100):
            self.propose(cluster, leader, b"%d" % i)
        cluster.advance(0.1)
        refused = cluster[leader].change_membership([Promote(2)])
        self.failureResultOf(refused, NotCaughtUp)

    def test_status_of_leader_follower_and_learner(self) -> None:
        cluster, leader, (follower, _) = self.led(3, Journal)
        self._joined(cluster, "n4", follower)
        cluster.await_agreement()
        cluster.advance(0.2)
        status = cluster.nodes[leader].status()
        self.assertEqual(status.role, "leader")
        self.assertEqual(status.leader, cluster.members[leader])
        self.assertEqual([m.member.name for m in status.members], ["n1", "n2", "n3", "n4"])
        self.assertEqual([m.role for m in status.members], ["voter"] * 3 + ["learner"])
        last = status.last_index
        for seen in status.members:
            self.assertEqual((seen.match_index, seen.next_index), (last, last + 1))
            assert seen.last_contact_ms is not None
            self.assertLess(seen.last_contact_ms, 150)
        learner = cluster.nodes["n4"].status()
        self.assertEqual(learner.role, "learner")
        self.assertEqual(learner.leader, cluster.members[leader])
        self.assertIsNone(learner.members[0].match_index)
        self.assertEqual(learner.applied_index, last)
