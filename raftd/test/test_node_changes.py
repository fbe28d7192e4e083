"""
Changes of membership on whole nodes at work: what whoever writes meanwhile is
told, and when whoever has asked for the change is told that it is made.

Numbers in names are those of the list of defects that other systems have shipped.
"""

from __future__ import annotations

from typing import Any

from raftd.core.membership import (
    AddLearner,
    Change,
    Configuration,
    Demote,
    Promote,
    Remove,
    Rename,
)
from raftd.errors import Removed
from raftd.test.drivers import ClusterTestCase, Journal
from raftd.test.test_node_leadership import Load
from raftd.testing import Cluster

HEARTBEAT_S = 0.1
#: Longer than a removed member goes on.
SLOW_DISK_S = 1.0
#: Long, so that disks like these cost no election.
PATIENT = {"election_timeout_ms": 4_000, "request_timeout_ms": 20_000}
WRITERS = 20


class LoadCase(ClusterTestCase):
    def change(self, cluster: Cluster[Any], through: str, *changes: Change) -> Configuration:
        return cluster.result(cluster[through].change_membership(changes))

    def ended(self, cluster: Cluster[Any], load: Load) -> None:
        """Nothing that was written under `load` failed."""
        load.stop()
        cluster.advance(cluster.options.request_timeout_ms / 1000 + 0.1)
        self.assertEqual(load.failed, [])


class OutcomeTests(LoadCase):
    """When it is told that it is so, it is so for good."""

    def test_37_who_is_let_go_is_needed_until_it_is_told(self) -> None:
        """All voters are replaced, and switched off as soon as that is said to be done."""
        for seed in range(6):
            cluster, leader, _ = self.led(3, Journal, seed=seed)
            former, new = ["n1", "n2", "n3"], ["n4", "n5", "n6"]
            for _ in new:
                cluster.add(learner=True)
            promoted: list[Change] = [Promote(cluster.members[name].id) for name in new]
            removed = [Remove(cluster.members[name].id) for name in former]
            told: list[Any] = []
            through = leader if seed % 2 else "n4"
            change = cluster[through].change_membership([*promoted, *removed])
            change.addBoth(told.append)
            while not told:
                cluster.advance(0.0001)
            self.assertEqual({m.name for m in told[0].voters}, set(new))
            known = cluster.nodes[leader].committed_configuration
            self.assertFalse(known.is_joint, f"seed {seed}: it may need the former voters yet")
            for name in former:
                cluster.crash(name, power_lost=True)
            self.assertIn(cluster.await_leader(new), new)
            self.written(cluster, "n4", b"w")


class RemovedLeaderTests(LoadCase):
    def test_36_it_leaves_no_write_unknown_when_disks_are_slow(self) -> None:
        """Not even one that came after its removal was appended, with a second to go."""
        for seed in range(2):
            cluster, leader, others = self.led(3, Journal, seed=seed, **PATIENT)
            load = Load(cluster, others, WRITERS)
            cluster.advance(0.2)
            for name in others:
                cluster.logs[name].delay_seconds = SLOW_DISK_S
            self.change(cluster, others[0], Remove(cluster.members[leader].id))
            cluster.advance_until(lambda: leader in cluster.fatal)  # noqa: B023
            self.assertIsInstance(cluster.fatal[leader], Removed)
            cluster.advance(5 * SLOW_DISK_S)
            self.ended(cluster, load)
            # The flushes before the removal, of it, of the vote, and of the next leader.
            self.assertLess(load.longest_gap_s, 5 * SLOW_DISK_S)

    def test_37_it_goes_and_learners_come_under_load(self) -> None:
        """Through a joint configuration, and with one election."""
        for seed in range(3):
            cluster, leader, others = self.led(3, Journal, seed=seed)
            for _ in range(2):
                cluster.add(learner=True)
            load = Load(cluster, others, WRITERS)
            cluster.advance(0.2)
            term = cluster.nodes[leader].status().term
            found = self.change(
                cluster,
                others[0],
                Promote(cluster.members["n4"].id),
                Promote(cluster.members["n5"].id),
                Remove(cluster.members[leader].id),
            )
            self.assertEqual(len(found.voters), 4)
            cluster.advance_until(lambda: leader in cluster.fatal)  # noqa: B023
            self.assertIn(cluster.await_leader(), (*others, "n4", "n5"))
            cluster.advance(1.0)
            self.ended(cluster, load)
            self.assertLess(load.longest_gap_s, 2 * HEARTBEAT_S)
            for node in cluster.nodes.values():
                self.assertEqual(node.status().term, term + 1)
            cluster.await_agreement()

    def test_36_it_is_made_a_learner_and_then_removed(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        load = Load(cluster, others, WRITERS)
        member = cluster.members[leader]
        self.change(cluster, others[0], Demote(member.id))
        self.change(cluster, others[1], Remove(member.id))
        cluster.advance_until(lambda: leader in cluster.fatal)
        self.assertIsInstance(cluster.fatal[leader], Removed)
        cluster.advance(1.0)
        self.ended(cluster, load)

    def test_36_of_two_under_load(self) -> None:
        """The other is alone at once, and needs nobody's vote."""
        for seed in range(3):
            cluster, leader, (other,) = self.led(2, Journal, seed=seed)
            load = Load(cluster, [other], WRITERS)
            cluster.advance(0.2)
            self.change(cluster, other, Remove(cluster.members[leader].id))
            cluster.advance(2.0)
            self.assertIsInstance(cluster.fatal[leader], Removed)
            self.ended(cluster, load)
            self.assertLess(load.longest_gap_s, 2 * HEARTBEAT_S)


class MoveTests(LoadCase):
    def test_30_members_that_are_found_under_both_names_leave_no_write_unknown(self) -> None:
        for seed in range(3):
            cluster, leader, others = self.led(3, Journal, seed=seed)
            load = Load(cluster, others, WRITERS)
            cluster.advance(0.1)
            term = cluster.nodes[leader].status().term
            for name in (leader, *others):
                member = cluster.members[name]
                found = self.change(cluster, others[0], Rename(member.id, f"moved-{name}"))
                self.assertIn(f"moved-{name}", [m.name for m in found.voters])
                cluster.advance(0.3)
            self.assertEqual(cluster.nodes[leader].status().term, term)
            self.ended(cluster, load)

    def test_moved_while_it_is_given_its_vote(self) -> None:
        """Both in one change: it has the new name in each half of the configuration."""
        cluster, leader, others = self.led(3, Journal)
        joiner = cluster.start_joiner("n4").member
        self.change(cluster, leader, AddLearner(joiner))
        cluster.advance(0.5)
        load = Load(cluster, [*others, "n4"], WRITERS)
        removed = cluster.members[others[1]]
        found = self.change(
            cluster, "n4", Promote(joiner.id), Rename(joiner.id, "moved"), Demote(removed.id)
        )
        self.assertEqual([m.name for m in found.voters if m.id == joiner.id], ["moved"])
        self.assertEqual(found.learners, (removed,))
        cluster.advance(1.0)
        self.ended(cluster, load)
