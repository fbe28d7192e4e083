"""
Members that come and go, as the driver carries it to the leader; and the status.

Numbers in names are those of the list of defects that other systems have shipped.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from raftd.core.membership import (
    AddLearner,
    Change,
    Configuration,
    Demote,
    Promote,
    Remove,
)
from raftd.core.messages import Member
from raftd.errors import (
    ChangeInProgress,
    ChangeRefused,
    InvariantViolated,
    NameTaken,
    NoQuorum,
    NotCaughtUp,
    OutcomeUnknown,
    RaftdError,
    Removed,
)
from raftd.joining import become_member
from raftd.node import FAREWELL_S, Node
from raftd.storage.memory import MemoryLog
from raftd.test.drivers import ClusterTestCase, Journal
from raftd.test.test_node_leadership import Load
from raftd.testing import Cluster

HEARTBEAT_S = 0.1
ELECTION_S = 0.6
REQUEST_S = 5.0


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


class OutcomeTests(ClusterTestCase):
    """What whoever asks for a change is told: it is so, it is not, or nobody knows."""

    def _names(self, cluster: Cluster[Any], name: str) -> list[str]:
        return [m.member.name for m in cluster.nodes[name].status().members]

    def _ended(self, change: Deferred[Any]) -> list[Any]:
        ended: list[Any] = []
        change.addBoth(ended.append)
        return ended

    def test_it_is_so_at_whoever_answers(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        for through in (one, leader):
            member = cluster.start_joiner(f"n{len(cluster.members) + 1}").member
            found = cluster.result(cluster[through].change_membership([AddLearner(member)]))
            self.assertIn(member, found.learners)
            committed = cluster.nodes[leader].committed_configuration
            self.assertEqual(committed, found)
        cluster.await_agreement()
        self.assertEqual(self._names(cluster, other), ["n1", "n2", "n3", "n4", "n5"])

    def test_leader_that_crashes_with_a_change_in_hand(self) -> None:
        """It is asked for again: whoever leads next has it, or makes it."""
        made_before = 0
        for step in range(12):
            cluster, leader, (one, other) = self.led(3, Journal, seed=step)
            member = cluster.start_joiner("n4").member
            change = cluster[one].change_membership([AddLearner(member)])
            cluster.advance(0.0005 * step)
            cluster.crash(leader)
            made_before += member in cluster.nodes[other].configuration.learners
            found = cluster.result(change)
            self.assertIn(member, found.learners)
            cluster.await_agreement()
            self.assertEqual(self._names(cluster, other), ["n1", "n2", "n3", "n4"])
        self.assertGreater(made_before, 2, "it was never made and its answer lost")
        self.assertLess(made_before, 10, "it was never lost")

    def test_change_that_is_lost_with_its_leader_is_made_by_the_next(self) -> None:
        cluster, leader, others = self.led(3, Journal, request_timeout_ms=30_000)
        member = cluster.start_joiner("n4").member
        cluster.partition([leader], others)
        change = cluster[leader].change_membership([AddLearner(member)])
        cluster.advance(0.01)
        self.assertIn(member, cluster.nodes[leader].configuration.learners)
        new = cluster.await_leader(others)
        self.written(cluster, new, b"in its place")
        self.assertNotIn(member, cluster.nodes[new].configuration.learners)
        self.assertNoResult(change)
        cluster.heal()
        self.assertIn(member, cluster.result(change).learners)
        cluster.await_agreement()
        self.assertIn("n4", self._names(cluster, new))

    def test_30_change_that_may_come_about_later_is_unknown(self) -> None:
        """It was appended, and nobody answers."""
        cluster, leader, others = self.led(3, Journal)
        member = cluster.start_joiner("n4").member
        for name in others:
            cluster.crash(name, power_lost=True)
        here = self._ended(cluster[leader].change_membership([AddLearner(member)]))
        cluster.advance(REQUEST_S + 0.1)
        here[0].trap(OutcomeUnknown)
        # Here it does: of these two only one has a log that may lead.
        cluster.restart(others[0])
        cluster.await_leader([leader, others[0]])
        cluster.restart(others[1])
        cluster.await_leader()
        cluster.await_agreement()
        self.assertIn("n4", self._names(cluster, others[0]))

    def test_30_change_whose_leader_is_gone_is_unknown(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        member = cluster.start_joiner("n4").member
        cluster.crash(other)
        there = self._ended(cluster[one].change_membership([AddLearner(member)]))
        cluster.advance(0.0025)
        cluster.crash(leader, power_lost=True)
        cluster.advance(2 * REQUEST_S)
        there[0].trap(OutcomeUnknown)

    def test_30_change_that_was_only_waiting_did_not_happen(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        member = cluster.start_joiner("n4").member
        cluster.crash(leader)
        cluster.crash(other)
        cluster.advance(0.02)
        waiting = self._ended(cluster[one].change_membership([AddLearner(member)]))
        cluster.advance(REQUEST_S + 0.1)
        waiting[0].trap(NoQuorum)
        self.assertIn("1 of 3 voters", str(waiting[0].value))
        for name in (leader, other):
            cluster.restart(name)
        cluster.await_leader([leader, one, other])
        cluster.advance(1.0)
        self.assertEqual(self._names(cluster, one), ["n1", "n2", "n3"])

    def test_34_two_changes_at_once_are_made_one_after_the_other(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        members = [cluster.start_joiner(f"n{i}").member for i in (4, 5, 6)]
        changes = [
            cluster[through].change_membership([AddLearner(member)])
            for through, member in zip((leader, one, other), members, strict=True)
        ]
        for change, member in zip(changes, members, strict=True):
            self.assertIn(member, cluster.result(change).learners)
        cluster.await_agreement()
        self.assertEqual(len(self._names(cluster, leader)), 6)

    def test_34_second_change_is_refused_when_its_time_is_up(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        members = [cluster.start_joiner(f"n{i}").member for i in (4, 5)]
        for name in others:
            cluster.logs[name].delay_seconds = None
        first = self._ended(cluster[leader].change_membership([AddLearner(members[0])]))
        cluster.advance(1.0)
        second = self._ended(
            cluster.nodes[leader].change_membership([AddLearner(members[1])], timeout_ms=2000)
        )
        cluster.advance(2.1)
        second[0].trap(ChangeInProgress)
        self.assertEqual(first, [])
        for name in others:
            cluster.logs[name].delay_seconds = 0.001
            cluster.logs[name].flush()
        cluster.advance(0.1)
        self.assertIn(members[0], first[0].learners)
        self.assertNotIn(members[1], cluster.nodes[leader].configuration.learners)

    def test_many_changes_together(self) -> None:
        """Through a joint configuration, which is left before anybody is told."""
        cluster, leader, (one, other) = self.led(3, Journal)
        for _ in range(2):
            cluster.add(learner=True)
        changes: list[Change] = [
            Promote(cluster.members["n4"].id),
            Promote(cluster.members["n5"].id),
            Demote(cluster.members[one].id),
            Remove(cluster.members[other].id),
        ]
        found = cluster.result(cluster[one].change_membership(changes))
        self.assertFalse(found.is_joint)
        voters = {member.name for member in found.voters}
        self.assertEqual(voters, {leader, "n4", "n5"})
        self.assertEqual([member.name for member in found.learners], [one])
        self.written(cluster, "n5", b"w")

    def test_37_joint_configuration_whose_leader_crashes_is_left_by_the_next(self) -> None:
        finished = 0
        for step in range(10):
            cluster, leader, (one, _) = self.led(3, Journal, seed=step)
            for _ in range(2):
                cluster.add(learner=True)
            changes = [Promote(cluster.members[name].id) for name in ("n4", "n5")]
            change = self._ended(cluster[one].change_membership(changes))
            while not cluster.nodes[leader].configuration.is_joint:
                cluster.advance(0.0001)
            cluster.advance(0.0003 * step)
            finished += not cluster.nodes[one].configuration.is_joint
            cluster.crash(leader)
            cluster.await_leader()
            cluster.advance_until(lambda: change)  # noqa: B023
            cluster.await_agreement()
            configuration = cluster.nodes[one].committed_configuration
            self.assertFalse(configuration.is_joint)
            if not isinstance(change[0], Failure):
                self.assertEqual(len(configuration.voters), 5)
            self.written(cluster, one, b"w")
        self.assertLess(finished, 8)


class RemovalTests(ClusterTestCase):
    def _remove(
        self, cluster: Cluster[Any], through: str, *names: str, force: bool = False
    ) -> Configuration:
        removals = [Remove(cluster.members[name].id) for name in names]
        return cluster.result(cluster[through].change_membership(removals, force=force))

    def test_36_removed_leader_gives_way(self) -> None:
        """Through itself or another, of few or of many: the rest goes on at once."""
        for size in (2, 3, 5):
            for through_itself in (True, False):
                cluster, leader, others = self.led(size, Journal)
                through = leader if through_itself else others[0]
                found = self._remove(cluster, through, leader)
                self.assertEqual(len(found.voters), size - 1)
                began = cluster.clock.seconds()
                cluster.await_leader(others)
                self.written(cluster, others[0], b"w")
                self.assertLess(cluster.clock.seconds() - began, 2 * HEARTBEAT_S)
                cluster.advance_until(lambda: leader in cluster.fatal)  # noqa: B023
                self.assertIsInstance(cluster.fatal[leader], Removed)
                self.assertLess(cluster.clock.seconds() - began, FAREWELL_S + 0.1)
                term = cluster.nodes[others[0]].status().term
                cluster.advance(5.0)
                self.assertEqual(cluster.nodes[others[0]].status().term, term)

    def test_36_removed_leader_leaves_no_write_unknown(self) -> None:
        """What it has taken on is committed and answered before it steps down."""
        for seed in range(10):
            for make in (Remove, Demote):
                cluster, leader, others = self.led(3, Journal, seed=seed)
                load = Load(cluster, others, writers=20)
                cluster.advance(0.1)
                change = cluster[others[0]].change_membership(
                    [make(cluster.members[leader].id)]
                )
                cluster.advance(1.0)
                self.successResultOf(change)
                load.stop()
                cluster.advance(REQUEST_S + 0.1)
                self.assertEqual(load.failed, [], f"seed {seed}, {make}")
                self.assertLess(load.longest_gap_s, 2 * HEARTBEAT_S)
                self.assertIn(cluster.await_leader(others), others)

    def test_36_one_of_two_is_removed(self) -> None:
        cluster, leader, (follower,) = self.led(2, Journal)
        self._remove(cluster, follower, follower)
        self.written(cluster, leader, b"alone")
        cluster.advance_until(lambda: follower in cluster.fatal)
        self.assertIsInstance(cluster.fatal[follower], Removed)
        cluster.crash(leader)
        cluster.restart(leader)
        self.written(cluster, leader, b"alone again")

    def test_36_one_of_two_that_is_gone_is_removed(self) -> None:
        """As long as the other leads: it is a quorum of those that remain."""
        cluster, leader, (follower,) = self.led(2, Journal)
        cluster.crash(follower, power_lost=True)
        self._remove(cluster, leader, follower)
        self.written(cluster, leader, b"alone")
        cluster.restart(follower)
        cluster.advance_until(lambda: follower in cluster.fatal)
        self.assertIsInstance(cluster.fatal[follower], Removed)

    def test_36_nothing_hangs_when_the_quorum_is_lost(self) -> None:
        cluster, leader, (follower,) = self.led(2, Journal)
        cluster.crash(follower, power_lost=True)
        cluster.advance(2 * ELECTION_S)
        began = cluster.clock.seconds()
        self.assertRaises(NoQuorum, self._remove, cluster, leader, follower, force=True)
        self.assertLess(cluster.clock.seconds() - began, REQUEST_S + 0.1)
        cluster.restart(follower)
        self.written(cluster, cluster.await_leader(), b"w")
        self.assertEqual(len(cluster.nodes[leader].status().members), 2)

    def test_36_removal_that_would_lose_the_quorum_is_refused_unless_forced(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        cluster.crash(other, power_lost=True)
        cluster.advance(1.0)
        self.assertRaises(ChangeRefused, self._remove, cluster, leader, one)
        self.written(cluster, one, b"it goes on")
        # That of the one that is gone is no harm.
        self._remove(cluster, one, other)
        self.assertEqual(len(cluster.nodes[leader].status().members), 2)
        self.written(cluster, one, b"w")

    def test_36_forced_removal(self) -> None:
        """Whoever insists has to bring the other back, and then it is made."""
        cluster, leader, (one, other) = self.led(3, Journal, request_timeout_ms=60_000)
        cluster.crash(other, power_lost=True)
        cluster.advance(1.0)
        removal = cluster[leader].change_membership(
            [Remove(cluster.members[one].id)], force=True
        )
        cluster.advance(2.0)
        cluster.restart(other)
        cluster.result(removal)
        self.assertEqual(len(cluster.nodes[other].status().members), 2)

    def test_removal_twice_is_no_other_removal(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        self._remove(cluster, leader, one)
        last = cluster.nodes[leader].status().last_index
        self._remove(cluster, other, one)
        self.assertEqual(cluster.nodes[leader].status().last_index, last)

    def test_removed_member_disturbs_nobody(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        cluster.partition([one], [leader, other])
        self._remove(cluster, leader, one)
        cluster.advance(3.0)
        term = cluster.nodes[leader].status().term
        cluster.heal()
        for _ in range(50):
            self.written(cluster, other, b"w")
            cluster.advance(0.1)
        self.assertEqual(cluster.nodes[leader].status().term, term)
        self.assertIsInstance(cluster.fatal[one], Removed)

    def test_removed_member_may_not_come_back(self) -> None:
        cluster, leader, (one, _) = self.led(3, Journal)
        member = cluster.members[one]
        self._remove(cluster, leader, one)
        cluster.advance_until(lambda: one in cluster.fatal)
        change = cluster[leader].change_membership([AddLearner(member)])
        self.assertRaises(ChangeRefused, cluster.result, change)

    def test_demoted_leader_gives_way_and_stays_a_learner(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        change = [Demote(cluster.members[leader].id)]
        cluster.result(cluster[leader].change_membership(change))
        cluster.await_leader(others)
        self.written(cluster, leader, b"w")
        self.assertEqual(cluster.nodes[leader].status().role, "learner")
        cluster.advance(5.0)
        self.assertEqual(cluster.nodes[leader].status().role, "learner")


class LostDiskTests(ClusterTestCase):
    def test_38_member_whose_disk_was_wiped_stops(self) -> None:
        """It has forgotten its vote and what it acknowledged, and must not be believed."""
        for had_commits in (True, False):
            cluster, leader, (wiped, other) = self.led(3, Journal)
            if had_commits:
                self.written(cluster, leader, b"w")
                cluster.await_agreement()
            cluster.crash(wiped)
            cluster.logs[wiped] = MemoryLog(clock=cluster.clock, delay_seconds=0.001)
            cluster.restart(wiped)
            cluster.advance_until(lambda: wiped in cluster.fatal)  # noqa: B023
            self.assertIsInstance(cluster.fatal[wiped], InvariantViolated)
            self.assertIn("lost", str(cluster.fatal[wiped]))
            self.written(cluster, other, b"the others go on")

    def test_38_wiped_node_under_an_old_name_is_refused(self) -> None:
        cluster, leader, (wiped, other) = self.led(3, Journal)
        name = cluster.members[wiped].name
        cluster.crash(wiped, power_lost=True)
        change = cluster[other].change_membership([AddLearner(Member(99, name))])
        self.assertRaises(NameTaken, cluster.result, change)
        # Once the former is removed, it may come as a new member.
        removal = [Remove(cluster.members[wiped].id)]
        cluster.result(cluster[leader].change_membership(removal))
        change = cluster[other].change_membership([AddLearner(Member(99, name))])
        self.assertIn(Member(99, name), cluster.result(change).learners)
