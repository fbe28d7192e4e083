"""
The claims of the thesis (Ongaro, 2014) about what the paper only sketches:
handing over, membership changes, log compaction, leases.  One test for each;
the number in its name is the section's.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import AddLearner, Demote, Promote, Remove, encode_configuration
from raftd.core.messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshotResponse,
    PreVote,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TimeoutNowResponse,
)
from raftd.core.raft import Role
from raftd.core.settings import Settings
from raftd.errors import ChangeInProgress, ChangeRefused, NotLeader
from raftd.test.core_clusters import Cluster, of_voters
from raftd.test.cores import (
    ELECTION_S,
    HEARTBEAT_S,
    LEASES,
    NO_TAIL,
    THREE,
    Disk,
    Node,
    appends_in,
    configuration,
    heartbeats_in,
    leader_of,
    log_of,
    member,
    messages_to,
    node_with,
    pieces_of,
    round_in,
    snapshot_of,
    terms_of,
)


def settled_leader(count: int = 3) -> Node:
    """A leader all of whose members hold its whole log, the no-op."""
    leader = leader_of(count)
    for member_id in range(2, count + 1):
        leader.acknowledge(member_id, 1)
    leader.take()
    return leader


class Section310(SynchronousTestCase):
    """Leadership transfer extension."""

    def test_t3_10_the_prior_leader_stops_accepting_requests(self) -> None:
        leader = settled_leader()
        self.assertFalse(leader.raft.is_handing_over)
        leader.transfer(2)
        self.assertTrue(leader.raft.is_handing_over)
        with self.assertRaises(NotLeader):
            leader.propose(b"x")
        self.assertEqual(leader.raft.log.last_index, 1)

    def test_t3_10_it_brings_the_log_of_its_successor_up_to_date_first(self) -> None:
        leader = settled_leader()
        leader.propose(b"x")
        leader.flush()
        leader.transfer(2)
        sent = leader.take()
        self.assertEqual(len(appends_in(sent, 2)), 1)
        self.assertFalse(any(isinstance(m, TimeoutNow) for m in messages_to(sent, 2)))
        # Others have it all; that says nothing.
        leader.acknowledge(3, 2)
        self.assertFalse(any(isinstance(o.message, TimeoutNow) for o in leader.take()))
        leader.acknowledge(2, 2)
        self.assertEqual(messages_to(leader.take(), 2), [TimeoutNow(1)])
        # Once: it may take its time.
        leader.acknowledge(2, 2)
        self.assertEqual(messages_to(leader.take(), 2), [])

    def test_t3_10_the_successor_stands_at_once_whomever_it_hears_from(self) -> None:
        node = node_with((1,), term=1)
        node.answer(1, Heartbeat(1, 0, 0))
        node.receive(1, TimeoutNow(1), 9)
        sent = node.take_flushed()
        self.assertEqual(node.disk.hard_state, HardState(2, 2))
        self.assertEqual(
            [o.message for o in sent if o.request_id is None], [RequestVote(2, 1, 1, True)] * 2
        )
        # Its answer tells the leader of the new term.
        answers = [o.message for o in sent if o.request_id == 9]
        self.assertEqual(answers, [TimeoutNowResponse(2)])
        leader = settled_leader()
        leader.respond(2, TimeoutNowResponse(2))
        self.assertEqual((leader.raft.role, leader.raft.term), (Role.FOLLOWER, 2))

    def test_t3_10_nobody_else_is_obeyed(self) -> None:
        for sender, learner in ((3, False), (1, True)):
            base = configuration([1, 3], learners=[2]) if learner else THREE
            node = Node(2, base, disk=Disk((), HardState(1)))
            node.answer(1, Heartbeat(1, 0, 0))
            self.assertEqual(node.answer(sender, TimeoutNow(1)), TimeoutNowResponse(1))
            self.assertEqual((node.raft.role, node.raft.leader_id), (Role.FOLLOWER, 1))

    def test_t3_10_leadership_changes_without_a_timeout(self) -> None:
        cluster = of_voters(5)
        leader = cluster.elect(1)
        leader.propose(b"before")
        cluster.run(2 * ELECTION_S)
        leader.transfer(4)
        cluster.settle()
        self.assertEqual((cluster.leader().id, cluster[4].raft.term), (4, 2))
        self.assertTrue(all(n.raft.leader_id == 4 for n in cluster.running()))
        cluster[4].propose(b"after")
        cluster.run(HEARTBEAT_S)
        for node in cluster.running():
            self.assertEqual([e.data for e in node.applied if e.data], [b"before", b"after"])

    def test_t3_10_a_transfer_that_takes_an_election_timeout_is_given_up(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.run(HEARTBEAT_S)
        cluster.crash(3)
        leader.propose(b"lacking at 3")
        leader.transfer(3)
        cluster.run(ELECTION_S - 0.01)
        self.assertTrue(leader.raft.is_handing_over)
        cluster.run(0.02)
        self.assertFalse(leader.raft.is_handing_over)
        leader.propose(b"x")
        cluster.run(HEARTBEAT_S)
        self.assertEqual((cluster.leader().id, leader.applied[-1].data), (1, b"x"))

    def test_t3_10_a_target_that_crashes_when_told_costs_no_leader(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.run(HEARTBEAT_S)
        cluster.crash(3)
        leader.transfer(3)
        cluster.run(2 * ELECTION_S)
        self.assertEqual((cluster.leader().id, leader.raft.term), (1, 1))
        self.assertEqual(leader.propose(b"x"), (1, 2))

    def test_t3_10_only_another_voter_can_be_asked(self) -> None:
        leader = leader_of(configuration([1, 2, 3], learners=[4]))
        for wrong in (1, 4, 9, NOBODY):
            with self.assertRaises(ChangeRefused):
                leader.transfer(wrong)
        alone = leader_of(1)
        with self.assertRaises(ChangeRefused):
            alone.transfer()
        with self.assertRaises(NotLeader):
            node_with().transfer(1)

    def test_t3_10_the_best_prepared_is_chosen_where_nobody_is_named(self) -> None:
        leader = settled_leader(5)
        leader.propose(b"x")
        leader.flush()
        leader.acknowledge(3, 2)
        leader.time.now += HEARTBEAT_S
        leader.respond(5, HeartbeatResponse(1, 0))
        leader.take()
        leader.transfer()
        self.assertEqual(messages_to(leader.take(), 3), [TimeoutNow(1)])
        # Of those that have as much, whoever was heard from last.
        leader = settled_leader(5)
        leader.time.now += HEARTBEAT_S
        leader.respond(4, HeartbeatResponse(1, 0))
        leader.take()
        leader.transfer()
        self.assertEqual(messages_to(leader.take(), 4), [TimeoutNow(1)])

    def test_t3_10_a_later_wish_replaces_an_earlier_one(self) -> None:
        leader = settled_leader()
        leader.propose(b"x")
        leader.flush()
        leader.acknowledge(3, 2)
        leader.take()
        leader.transfer(2)
        leader.collect()
        leader.transfer(3)
        self.assertEqual(messages_to(leader.take(), 3), [TimeoutNow(1)])


class Chapter4(SynchronousTestCase):
    """Cluster membership changes."""

    def test_t4_1_one_vote_at_a_time_needs_no_joint_configuration(self) -> None:
        for voters, change in ((3, Remove(3)), (3, Demote(2)), (2, Remove(2))):
            leader = settled_leader(voters)
            leader.change(change)
            self.assertFalse(leader.raft.configuration.is_joint)

    def test_t4_2_2_a_leader_that_is_not_part_of_it_manages_the_cluster_for_a_while(
        self,
    ) -> None:
        leader = settled_leader(4)
        index = leader.change(Remove(1))
        leader.flush()
        # It replicates, and does not count itself: two of 2, 3 and 4 are needed.
        self.assertEqual(len(appends_in(leader.take())), 3)
        leader.acknowledge(2, index)
        leader.collect()
        self.assertEqual((leader.raft.commit_index, leader.raft.role), (1, Role.LEADER))
        leader.acknowledge(3, index)
        self.assertEqual(leader.raft.commit_index, index)
        leader.collect()
        self.assertIs(leader.raft.role, Role.FOLLOWER)

    def test_t4_2_2_a_server_that_is_not_in_its_own_configuration_stands_for_election(
        self,
    ) -> None:
        # Figure 4.6: until the change is committed, it may be needed.
        node = node_with((1,), term=1)
        without = configuration([1, 3], removed=[2])
        leader = leader_of(3, (1,), term=1)
        leader.acknowledge(3, 2)
        leader.change(Remove(2), force=True)
        entry = leader.raft.log.entries(3, 3)[0]
        self.assertEqual(leader.raft.configuration, without)
        node.answer(1, AppendEntries(2, 1, 1, 0, tuple(leader.raft.log.entries(2, 3))))
        self.assertEqual(entry.kind, EntryKind.CONFIGURATION)
        self.assertEqual(node.raft.configuration, without)
        node.time_out()
        asked = [(o.to, o.message) for o in node.take()]
        self.assertEqual(asked, [(1, PreVote(3, 3, 2)), (3, PreVote(3, 3, 2))])

    def test_t4_2_2_it_does_not_vote_for_itself_in_it(self) -> None:
        # Its configuration is 1 and 3: both are needed, and it is neither.
        base, removed = configuration([1, 2, 3]), configuration([1, 3], removed=[2])
        node = Node(2, base, disk=Disk(log_of([1]), HardState(1)))
        data = encode_configuration(removed)
        entry = Entry(2, 1, EntryKind.CONFIGURATION, 0, data)
        node.answer(1, AppendEntries(1, 1, 1, 1, (entry,)))
        node.become_candidate()
        node.respond(1, RequestVoteResponse(2, True))
        self.assertIs(node.raft.role, Role.CANDIDATE)
        node.respond(3, RequestVoteResponse(2, True))
        self.assertIs(node.raft.role, Role.LEADER)

    def test_t4_2_3_servers_that_were_removed_disturb_nobody(self) -> None:
        cluster = of_voters(5)
        leader = cluster.elect(1)
        cluster.run(HEARTBEAT_S)
        cluster.isolate(5)
        leader.change(Remove(5))
        cluster.settle()
        cluster.heal()
        cluster.run(20 * ELECTION_S)
        self.assertEqual((cluster.leader().id, leader.raft.term), (1, 1))
        self.assertEqual(cluster[5].raft.term, 1)

    def test_t4_3_several_changes_go_through_a_joint_configuration(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        leader.change(*(AddLearner(member(m)) for m in (4, 5)))
        for new in (4, 5):
            cluster.add(new)
        cluster.run(HEARTBEAT_S)
        index = leader.change(Promote(4), Promote(5), Remove(2), Demote(3))
        self.assertEqual(
            leader.raft.configuration,
            configuration([1, 4, 5], outgoing=[1, 2, 3], learners=[3]),
        )
        cluster.run(HEARTBEAT_S)
        final = configuration([1, 4, 5], learners=[3], removed=[2])
        for node in cluster.running():
            if node.id != 2:
                self.assertEqual(node.raft.configuration, final)
                self.assertEqual(node.raft.configuration_index, index + 1)
                self.assertGreater(node.raft.commit_index, index)
        leader.propose(b"x")
        cluster.run(HEARTBEAT_S)
        self.assertEqual(cluster[4].applied[-1].data, b"x")
        self.assertEqual(cluster.leader().raft.term, 1)

    def test_t4_3_entries_are_replicated_to_all_servers_of_both(self) -> None:
        leader = Node(1, configuration([1, 2, 3], outgoing=[1, 4, 5], learners=[6]))
        leader.become_leader()
        sent = leader.take()
        for member_id in (2, 3, 4, 5, 6):
            self.assertEqual(len(appends_in(sent, member_id)), 1, member_id)

    def test_t4_3_any_server_of_either_may_lead(self) -> None:
        for member_id in (2, 3, 4, 5):
            base = configuration([1, 2, 3], outgoing=[1, 4, 5])
            cluster = Cluster(base)
            cluster.time.now += 2 * ELECTION_S
            cluster[member_id].tick()
            cluster.run(HEARTBEAT_S)
            self.assertEqual(cluster.safety.leaders_of_terms[1], member_id)
            # If it is not to stay, it hands over as soon as it has left it.
            leader = cluster.leader()
            self.assertIn(leader.id, (1, 2, 3))
            if member_id in (2, 3):
                self.assertEqual(leader.id, member_id)
            found = leader.raft.configuration
            self.assertEqual(found, configuration([1, 2, 3], removed=[4, 5]))

    def test_t4_3_the_last_configuration_is_not_created_before_the_joint_is_committed(
        self,
    ) -> None:
        leader = leader_of(configuration([1, 2, 3, 4, 5]))
        for member_id in (2, 3, 4, 5):
            leader.acknowledge(member_id, 1)
        joint = leader.change(Remove(4), Remove(5))
        leader.flush()
        for member_id, committed in ((2, False), (3, True)):
            leader.acknowledge(member_id, joint)
            # Three of 1 to 5 are 1, 2 and 3; two of 1 to 3 are 1 and 2.
            self.assertIs(leader.raft.commit_index == joint, committed, member_id)
            leader.collect()
            self.assertIs(leader.raft.configuration.is_joint, not committed)
        self.assertEqual(leader.raft.configuration_index, joint + 1)
        # It is in force, and not committed by those who leave.
        leader.flush()
        for member_id in (4, 5):
            leader.acknowledge(member_id, joint + 1)
        self.assertEqual(leader.raft.commit_index, joint)
        leader.acknowledge(2, joint + 1)
        self.assertEqual(leader.raft.commit_index, joint + 1)

    def test_t4_3_a_leader_leaves_the_joint_configuration_of_an_earlier_one(self) -> None:
        leader = leader_of(configuration([1, 2, 3], outgoing=[1, 4, 5]))
        leader.acknowledge(2, 1)
        leader.collect()
        # Before it has committed in its own term it does not know that it may.
        self.assertTrue(leader.raft.configuration.is_joint)
        with self.assertRaises(ChangeInProgress):
            leader.change(Remove(3))
        leader.acknowledge(4, 1)
        leader.collect()
        self.assertEqual(leader.raft.configuration, configuration([1, 2, 3], removed=[4, 5]))


class Chapter5(SynchronousTestCase):
    """Log compaction; section 7 of the paper."""

    def test_t5_1_a_snapshot_replaces_a_prefix_of_the_log(self) -> None:
        leader = settled_leader()
        leader.propose(b"a", b"b", b"c")
        leader.flush()
        leader.acknowledge(2, 4)
        leader.flush()
        leader.apply(3)
        leader.raft.settings = NO_TAIL
        leader.take_snapshot()
        latest = leader.disk.latest
        assert latest is not None
        metadata = latest.metadata
        self.assertEqual((metadata.last_included_index, metadata.last_included_term), (3, 1))
        self.assertEqual(metadata.configuration, THREE)
        self.assertEqual([e.index for e in leader.disk.entries], [4])
        # The consistency check of the entry behind it goes on as before.
        self.assertEqual(leader.raft.log.term_at(3), 1)
        leader.crash()
        leader.start()
        self.assertEqual([e.data for e in leader.applied], [b"", b"a", b"b"])

    def test_t5_1_some_entries_are_kept_for_slow_followers(self) -> None:
        leader = settled_leader()
        leader.propose(*[b"x"] * 9)
        leader.flush()
        leader.acknowledge(2, 10)
        leader.flush()
        leader.apply()
        for tail, base_index in ((20, 0), (7, 3), (2, 8), (5, 8), (0, 10)):
            leader.raft.settings = Settings(snapshot_tail_entries=tail)
            self.assertEqual(leader.raft.compact(10), base_index)
            self.assertEqual(leader.raft.log.base_index, base_index)

    def test_t5_1_a_snapshot_holds_the_configuration_as_of_its_last_entry(self) -> None:
        leader = settled_leader()
        leader.change(AddLearner(member(4)))
        leader.flush()
        leader.acknowledge(2, 2)
        leader.flush()
        leader.change(AddLearner(member(5)))
        leader.apply()
        self.assertEqual(len(leader.applied), 2)
        leader.take_snapshot()
        latest = leader.disk.latest
        assert latest is not None
        self.assertEqual(latest.metadata.configuration, configuration([1, 2, 3], learners=[4]))

    def test_t5_1_a_leader_sends_its_snapshot_when_it_has_discarded_the_next_entry(
        self,
    ) -> None:
        cluster = of_voters(3, settings=NO_TAIL)
        leader = cluster.elect(1)
        cluster.crash(3)
        leader.propose(b"a", b"b")
        cluster.settle()
        leader.take_snapshot()
        leader.propose(b"behind it")
        cluster.settle()
        cluster.restart(3)
        cluster.run(2 * HEARTBEAT_S)
        self.assertEqual(cluster.installed, 1)
        self.assertEqual(cluster[3].applied, leader.applied)
        self.assertEqual(cluster.leader().raft.term, 1)

    def test_t5_1_a_new_member_of_a_compacted_cluster_gets_it_too(self) -> None:
        cluster = of_voters(3, settings=NO_TAIL)
        leader = cluster.elect(1)
        leader.propose(b"a", b"b")
        cluster.settle()
        leader.take_snapshot()
        cluster.add(4)
        leader.add_learner(4)
        cluster.settle()
        self.assertEqual((cluster.installed, cluster[4].applied), (1, leader.applied))
        leader.promote(4)
        cluster.run(HEARTBEAT_S)
        self.assertTrue(cluster[4].raft.configuration.is_voter(4))

    def test_t5_1_a_follower_hears_its_leader_in_every_piece(self) -> None:
        node = node_with((1,), term=1)
        snapshot = snapshot_of(log_of([1] * 9), THREE)
        for piece in pieces_of(snapshot, 1):
            node.time.now += 0.9 * ELECTION_S
            node.answer(1, piece)
            node.tick()
            self.assertEqual((node.raft.role, node.raft.leader_id), (Role.FOLLOWER, 1))

    def test_t5_1_a_snapshot_that_covers_new_information_replaces_the_whole_log(self) -> None:
        for terms in ((), (1,), (1, 1, 1, 1, 1, 1), (1, 2, 2, 2)):
            node = node_with(terms, term=2)
            snapshot = snapshot_of(log_of([1, 2, 2, 2, 2]), THREE)
            for piece in pieces_of(snapshot, 3):
                answer = node.answer(1, piece)
            self.assertEqual(answer, InstallSnapshotResponse(3, 0, True))
            log = node.raft.log
            self.assertEqual((log.base_index, log.last_index, log.last_term), (5, 5, 2), terms)
            self.assertEqual(node.applied, list(snapshot.state))
            self.assertEqual((node.disk.base_index, node.disk.entries), (5, []))
            # The entries behind it follow.
            entry = Entry(6, 3, EntryKind.NOOP, 0, b"")
            answer = node.answer(1, AppendEntries(3, 5, 2, 6, (entry,)))
            self.assertEqual(answer, AppendEntriesResponse(3, True, 6))

    def test_t5_1_entries_behind_a_snapshot_of_a_prefix_are_retained(self) -> None:
        node = node_with((1, 1, 2, 2), term=2)
        for piece in pieces_of(snapshot_of(log_of([1, 1, 2]), THREE), 2):
            answer = node.answer(1, piece)
        self.assertEqual(answer, InstallSnapshotResponse(2, 0, True))
        self.assertEqual(terms_of(node.raft.log), [1, 1, 2, 2])
        self.assertEqual((node.raft.commit_index, node.restores), (3, 0))

    def test_t5_1_a_follower_that_has_a_snapshot_counts_for_the_commit(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        leader.snapshot_installed(2, 2, 3)
        self.assertEqual(leader.raft.commit_index, 3)
        leader.propose(b"x")
        (request,) = appends_in(leader.take(), 2)
        self.assertEqual(request.prev_log_index, 3)

    def test_t5_1_a_vote_goes_by_the_last_entry_of_the_snapshot(self) -> None:
        snapshot = snapshot_of(log_of([1, 2, 2]), THREE)
        for last, granted in (((3, 2), True), ((2, 2), False), ((9, 1), False), ((1, 3), True)):
            disk = Disk((), HardState(2), base=(3, 2), snapshots=[snapshot])
            node = Node(2, THREE, disk=disk)
            answer = node.answer(1, RequestVote(3, *last))
            self.assertEqual(answer, RequestVoteResponse(3, granted), last)

    def test_t5_1_time_in_the_log_goes_on_from_a_snapshot(self) -> None:
        entries = [Entry(1, 1, EntryKind.COMMAND, 5_000, b"x")]
        disk = Disk((), HardState(1), base=(1, 1), snapshots=[snapshot_of(entries, THREE)])
        leader = Node(1, THREE, disk=disk)
        leader.become_leader()
        leader.time.now += 1.25
        leader.propose(b"y")
        self.assertEqual([e.time_ms for e in leader.raft.log.entries(2, 3)], [5_000, 6_250])


class Section641(SynchronousTestCase):
    """Using clocks to reduce messaging for read-only queries."""

    def lease_holder(self) -> Node:
        leader = leader_of(3, settings=LEASES)
        leader.acknowledge(2, 1)
        assert leader.raft.leadership is not None
        leader.time.now = leader.raft.leadership.heartbeat_due
        leader.take()
        leader.tick()
        leader.respond(2, HeartbeatResponse(1, round_in(leader.take())))
        leader.collect()
        return leader

    def test_t6_4_1_a_leader_with_a_lease_answers_without_a_round(self) -> None:
        leader = self.lease_holder()
        leader.read(7)
        self.assertEqual((leader.take(), leader.reads), ([], [(7, 1)]))

    def test_t6_4_1_its_heartbeats_extend_the_lease(self) -> None:
        cluster = of_voters(3, settings=LEASES)
        leader = cluster.elect(1)
        for context in range(20):
            cluster.run(0.37 * ELECTION_S)
            leader.read(context)
            leader.collect()
            self.assertEqual([c for c, _ in leader.reads], list(range(context + 1)))

    def test_t6_4_1_without_a_lease_it_asks_as_ever(self) -> None:
        leader = self.lease_holder()
        leader.time.now += 0.9 * ELECTION_S
        leader.read(7)
        self.assertEqual(len(heartbeats_in(leader.take())), 2)
        self.assertEqual(leader.reads, [])

    def test_t6_4_1_a_read_sees_what_was_committed_when_it_arrived(self) -> None:
        leader = self.lease_holder()
        leader.propose(b"x")
        leader.flush()
        leader.read(7)
        leader.acknowledge(2, 2)
        leader.read(8)
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1), (8, 2)])

    def test_t6_4_1_no_other_leader_is_elected_before_it_is_over(self) -> None:
        for seed in range(10):
            cluster = of_voters(3, seed=seed, settings=LEASES)
            leader = cluster.elect(1)
            cluster.run(2 * ELECTION_S)
            assert leader.raft.leadership is not None
            over = leader.raft.leadership.reads.confirmed_at + LEASES.lease_s
            cluster.isolate(1)
            for _ in range(1000):
                if any(n.id != 1 for n in cluster.leaders()):
                    break
                cluster.run(0.01)
            self.assertIn(cluster.leaders()[-1].id, (2, 3))
            self.assertGreater(cluster.time.now, over)
