"""What a node tells its observers: everything, in order, and nothing that is not so yet."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from raftd.core.membership import Demote, Remove, Rename
from raftd.core.messages import Member
from raftd.errors import Removed
from raftd.events import (
    Committed,
    Event,
    LeaderChanged,
    MembershipChanged,
    SnapshotRestored,
    SnapshotTaken,
    TermChanged,
)
from raftd.node import Node
from raftd.test.drivers import Alone, ClusterTestCase, Journal
from raftd.testing import Cluster

EARLY = {"snapshot_threshold_bytes": 1_000, "snapshot_tail_entries": 5}


class EventTests(ClusterTestCase):
    def observe(self, cluster: Cluster[Any], name: str) -> list[Event]:
        told: list[Event] = []
        cluster[name].observe(told.append)
        return told

    def assert_in_order(self, told: list[Event], term: int) -> None:
        """What holds of every history of one node that begins in `term`."""
        applied = taken = membership = 0
        for event in told:
            if isinstance(event, TermChanged):
                self.assertGreater(event.term, term)
                term = event.term
            elif isinstance(event, LeaderChanged):
                self.assertEqual(event.term, term)
            elif isinstance(event, Committed):
                self.assertGreater(event.index, applied)
                applied = event.index
            elif isinstance(event, MembershipChanged):
                # Only what is applied here, as the last `Committed` has said.
                self.assertLess(membership, event.index)
                self.assertLessEqual(event.index, applied)
                membership = event.index
            elif isinstance(event, SnapshotTaken):
                self.assertGreater(event.metadata.last_included_index, taken)
                self.assertLessEqual(event.metadata.last_included_index, applied)
                taken = event.metadata.last_included_index
            else:
                self.assertIsInstance(event, SnapshotRestored)
                self.assertGreater(event.metadata.last_included_index, applied)

    def test_history_of_every_node(self) -> None:
        cluster: Cluster[Journal]
        cluster, leader, (one, other) = self.led(3, Journal, **EARLY)
        terms = {name: node.status().term for name, node in cluster.nodes.items()}
        told = {name: self.observe(cluster, name) for name in cluster.nodes}
        histories = [(told[name], terms[name]) for name in told]
        cluster.crash(one)
        for i in range(100):
            self.written(cluster, leader, b"%d" % i)
        cluster.restart(one)
        told[one] = self.observe(cluster, one)
        histories.append((told[one], cluster.nodes[one].status().term))
        cluster.await_agreement()
        cluster.result(cluster[other].transfer(cluster.members[other].id))
        cluster.result(cluster[other].change_membership([Demote(cluster.members[one].id)]))
        for i in range(100):
            self.written(cluster, leader, b"%d" % i)
        cluster.crash(leader)
        cluster.restart(leader)
        told[leader] = self.observe(cluster, leader)
        histories.append((told[leader], cluster.nodes[leader].status().term))
        cluster.await_agreement()
        cluster.advance(1.0)
        for history, term in histories:
            self.assert_in_order(history, term)
        # Whoever was there at the end has seen how things stand.
        for name in cluster.nodes:
            status = cluster.nodes[name].status()
            last = {type(event): event for event in told[name]}
            self.assertEqual(last[Committed], Committed(status.applied_index))
            self.assertEqual(last[LeaderChanged], LeaderChanged(status.term, status.leader))
        self.assertEqual(len([e for e in told[one] if isinstance(e, SnapshotRestored)]), 1)
        self.assertGreater(len([e for e in told[other] if isinstance(e, SnapshotTaken)]), 1)
        changes = [e for e in told[other] if isinstance(e, MembershipChanged)]
        self.assertEqual([len(e.configuration.learners) for e in changes], [1])

    def test_election(self) -> None:
        """In the order in which it comes about."""
        cluster, leader, others = self.led(3, Journal)
        term = cluster.nodes[leader].status().term
        told = {name: self.observe(cluster, name) for name in others}
        cluster.crash(leader)
        new = cluster.await_leader(others)
        cluster.advance(0.1)
        events = [e for e in told[new] if not isinstance(e, Committed)]
        now = cluster.nodes[new].status().term
        self.assertEqual(events[0], LeaderChanged(term, None))
        self.assertEqual(
            events[-2:], [TermChanged(now), LeaderChanged(now, cluster.members[new])]
        )

    def test_committed_is_told_once_for_all_that_was_applied_at_once(self) -> None:
        cluster, leader, _ = self.led(1, Journal)
        told = self.observe(cluster, leader)
        for i in range(100):
            self.propose(cluster, leader, b"%d" % i)
        cluster.advance(0.01)
        last = cluster.nodes[leader].status().applied_index
        self.assertEqual(told, [Committed(last)])

    def test_state_has_what_is_told_to_be_committed(self) -> None:
        cluster, leader, (one, _) = self.led(3, Journal)
        seen: list[tuple[int, int]] = []
        first = cluster.nodes[one].status().applied_index

        def look(event: Event) -> None:
            if isinstance(event, Committed):
                seen.append((event.index - first, len(cluster.machines[one].operations)))

        cluster[one].observe(look)
        for i in range(20):
            self.written(cluster, leader, b"%d" % i)
        self.assertGreater(len(seen), 10)
        for committed, applied in seen:
            self.assertEqual(committed, applied)

    def test_members(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        told = {name: self.observe(cluster, name) for name in cluster.nodes}
        member = cluster.members[one]
        renamed = Member(member.id, "elsewhere:1")
        cluster.result(cluster[leader].change_membership([Rename(member.id, renamed.name)]))
        cluster.result(cluster[other].change_membership([Remove(member.id)]))
        cluster.advance_until(lambda: one in cluster.fatal)
        for name in told:
            changes = [e for e in told[name] if isinstance(e, MembershipChanged)]
            # Whoever learns of both at once is told of the last.
            self.assertIn(len(changes), (1, 2), name)
            if len(changes) == 2:
                self.assertIn(renamed, changes[0].configuration.voters)
            if name != one:
                self.assertEqual(changes[-1].configuration.removed, (member.id,))
        self.assertIsInstance(cluster.fatal[one], Removed)

    def test_change_that_is_never_committed_is_never_told(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        told = self.observe(cluster, leader)
        cluster.partition([leader], others)
        lost = cluster[leader].change_membership([Demote(cluster.members[others[0]].id)])
        lost.addErrback(lambda _: None)
        cluster.advance(0.05)
        self.assertEqual(len(cluster.nodes[leader].configuration.learners), 1)
        cluster.await_leader(others)
        cluster.crash(leader)
        self.assertFalse(any(isinstance(e, MembershipChanged) for e in told))

    def test_observer_that_ends_itself(self) -> None:
        alone = Alone(1)
        told: list[Event] = []

        def once(event: Event) -> None:
            told.append(event)
            end()

        end = alone.node.observe(once)
        others: list[Event] = []
        alone.node.observe(others.append)
        for _ in range(3):
            alone.propose(b"w")
            alone.advance(0.01)
        self.assertEqual(told, others[:1])
        self.assertEqual(len(others), 3)

    def test_observer_that_asks_for_more(self) -> None:
        """It may propose from within an event."""
        asked = 0
        alone: Alone

        def ask(event: Event) -> None:
            nonlocal asked
            if isinstance(event, Committed) and asked < 5:
                asked += 1
                alone.propose(b"%d" % asked)

        alone = Alone(1)
        journal = alone.machine
        assert isinstance(journal, Journal)
        alone.node.observe(ask)
        alone.propose(b"first")
        alone.advance(0.1)
        self.assertEqual(journal.operations, [b"first", b"1", b"2", b"3", b"4", b"5"])

    def test_observer_that_stops_the_node(self) -> None:
        """At any event, even when a snapshot is due; it is the end of all events."""
        for kind in (TermChanged, LeaderChanged, Committed, SnapshotTaken):
            stopped: list[Deferred[None]] = []
            told: list[Event] = []
            nodes: list[Node] = []
            find = Node.__init__

            def note(node: Node, *args: Any, **kwargs: Any) -> None:
                nodes.append(node)  # noqa: B023
                find(node, *args, **kwargs)  # noqa: B023

            def stop(event: Event) -> None:
                told.append(event)  # noqa: B023
                if isinstance(event, kind) and not stopped:  # noqa: B023
                    stopped.append(nodes[0].stop())  # noqa: B023

            patched = self.patch(Node, "__init__", note)
            alone = Alone(1, snapshot_threshold_bytes=100, observer=stop)
            patched.restore()
            for _ in range(10):
                alone.propose(b"w" * 50)
            alone.advance(0.1)
            self.assertEqual(len(stopped), 1, kind)
            self.successResultOf(stopped[0])
            self.assertEqual(alone.fatal, [])
            self.assertEqual(self.flushLoggedErrors(), [])
            self.assertIsInstance(told[-1], kind)
            self.assertEqual(alone.clock.getDelayedCalls(), [])
