"""
Defects of membership changes that other Raft implementations have shipped.

The number in a test's name is the defect's in the project's list of pitfalls.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.leader import MAX_PROMOTION_LAG_ENTRIES
from raftd.core.membership import (
    AddLearner,
    Change,
    Configuration,
    Demote,
    Promote,
    Remove,
    Rename,
    encode_configuration,
)
from raftd.core.messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    PreVote,
    PreVoteResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raftd.core.raft import Role
from raftd.errors import ChangeInProgress, ChangeRefused, NotCaughtUp, NotLeader
from raftd.test.core_clusters import Cluster, Packet, of_voters
from raftd.test.cores import (
    ELECTION_S,
    HEARTBEAT_S,
    NO_TAIL,
    THREE,
    Disk,
    Node,
    check,
    configuration,
    leader_of,
    log_of,
    member,
    messages_to,
    node_with,
    round_in,
    snapshot_of,
)


def changing(index: int, term: int, to: Configuration) -> Entry:
    """The entry of a configuration."""
    return Entry(index, term, EntryKind.CONFIGURATION, 0, encode_configuration(to))


def grown(voters: int, learners: int = 0) -> Cluster:
    """A cluster of so many voters, led by 1, to which so many learners were added."""
    cluster = of_voters(voters)
    leader = cluster.elect(1)
    for new in range(voters + 1, voters + 1 + learners):
        cluster.add(new)
        leader.add_learner(new)
        cluster.settle()
    cluster.run(HEARTBEAT_S)
    return cluster


def deliver(cluster: Cluster, *directions: tuple[int, int]) -> list[Packet]:
    """Deliver what waits in these directions now, and end the turns that follow."""
    packets = []
    for direction in directions:
        queue = cluster.queues.get(direction)
        while queue:
            packets.append(queue.popleft())
    for packet in packets:
        cluster.deliver(packet)
    for node in cluster.running():
        node.flush()
        cluster.collect(node)
    return packets


def drop(cluster: Cluster) -> None:
    """Lose whatever is on its way."""
    for queue in cluster.waiting():
        while queue:
            cluster.lose(queue.popleft())


class Membership(SynchronousTestCase):
    def test_32_no_change_before_the_first_commit_of_the_term(self) -> None:
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.respond(member_id, HeartbeatResponse(1, 0))
        for force in (False, True):
            with self.assertRaises(ChangeInProgress):
                leader.change(AddLearner(member(4)), force=force)
        self.assertEqual(leader.raft.log.last_index, 1)
        leader.acknowledge(2, 1)
        self.assertEqual(leader.add_learner(4), 2)

    def test_33_a_truncated_configuration_goes_back(self) -> None:
        node = node_with((1,), term=1)
        added = configuration([1, 2, 3], learners=[4])
        data = encode_configuration(added)
        change = Entry(2, 1, EntryKind.CONFIGURATION, 0, data)
        node.answer(1, AppendEntries(1, 1, 1, 0, (change,)))
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (added, 2))
        node.answer(3, AppendEntries(2, 1, 1, 0, (log_of([1, 2])[1],)))
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (THREE, 0))
        node.crash()
        node.start()
        self.assertEqual(node.raft.configuration, THREE)

    def test_33_a_vote_that_is_taken_back_is_not_cast(self) -> None:
        # 4 is promoted by an entry that is cut off again: it must not stand.
        base = configuration([1, 2, 3], learners=[4])
        node = Node(4, base, disk=Disk(log_of([1]), HardState(1)))
        data = encode_configuration(configuration([1, 2, 3, 4]))
        change = Entry(2, 1, EntryKind.CONFIGURATION, 0, data)
        node.answer(1, AppendEntries(1, 1, 1, 0, (change,)))
        self.assertLess(node.raft.next_deadline, node.time.now + 3 * ELECTION_S)
        node.answer(3, AppendEntries(2, 1, 1, 0, (log_of([1, 2])[1],)))
        node.time_out()
        self.assertEqual((node.raft.role, node.take()), (Role.FOLLOWER, []))

    def test_34_a_second_change_at_once_is_refused(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        first = leader.add_learner(4)
        for change in (leader.add_learner, leader.promote):
            with self.assertRaises(ChangeInProgress):
                change(5 if change == leader.add_learner else 4)
        self.assertEqual(leader.raft.log.last_index, first)
        leader.flush()
        leader.acknowledge(3, first)
        leader.acknowledge(4, first)
        self.assertEqual(leader.promote(4), first + 1)

    def test_36_a_learner_that_never_answered_gets_no_vote(self) -> None:
        # With its vote, the cluster of one would be one of two, and dead.
        leader = leader_of(1)
        leader.add_learner(2)
        leader.flush()
        with self.assertRaises(NotCaughtUp) as caught:
            leader.promote(2)
        # Next to no entries, and yet not near: the words must not say so.
        self.assertIn("has not answered", str(caught.exception))

    def test_36_who_gets_no_vote_is_told_what_it_lacks(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)

        def why(*changes: Change) -> str:
            with self.assertRaises(NotCaughtUp) as caught:
                leader.change(*changes)
            return str(caught.exception)

        self.assertIn("is not a learner yet", why(AddLearner(member(4)), Promote(4)))
        leader.add_learner(4)
        leader.flush()
        leader.acknowledge(2, 2)
        self.assertIn(f"{member(4).name} has not answered", why(Promote(4)))
        leader.acknowledge(4, 1)
        self.assertIn("has not confirmed the last change", why(Promote(4)))
        lag = MAX_PROMOTION_LAG_ENTRIES + 1
        leader.propose(*[b"x"] * (lag - 1))
        leader.flush()
        leader.acknowledge(2, leader.raft.log.last_index)
        self.assertIn(f"is {lag} entries behind", why(Promote(4)))
        leader.acknowledge(4, 2)
        leader.promote(4)

    def test_35_a_learner_that_does_not_know_of_its_vote_votes(self) -> None:
        node = Node(4, configuration([1, 2, 3], learners=[4]))
        self.assertEqual(node.answer(1, PreVote(1, 0, 0)), PreVoteResponse(1, True))
        self.assertEqual(node.answer(1, RequestVote(1, 0, 0)), RequestVoteResponse(1, True))

    def test_35_a_cluster_whose_new_voter_is_needed_elects(self) -> None:
        # 2 became a voter by an entry that only 1 has; 1 needs its vote.
        grown = Entry(
            2, 1, EntryKind.CONFIGURATION, 0, encode_configuration(configuration([1, 2]))
        )
        base = configuration([1], learners=[2])
        first = log_of([1])
        cluster = Cluster(
            base,
            disks={1: Disk([*first, grown], HardState(1, 1)), 2: Disk(first, HardState(1))},
        )
        cluster.run(4 * ELECTION_S)
        self.assertEqual(cluster.leader().id, 1)
        self.assertEqual(cluster[2].raft.configuration, configuration([1, 2]))

    # -- joint configurations ------------------------------------------------

    def test_06_a_joint_configuration_commits_with_both_majorities(self) -> None:
        # The union is 1..6; four of it can lack a majority of either half.
        for acknowledging, committed in (
            ([2, 3, 4], False),
            ([4, 5, 6], False),
            ([2, 4], False),
            ([2, 4, 5], True),
            ([3, 5, 6], True),
        ):
            leader = leader_of(configuration([1, 2, 3], outgoing=[1, 4, 5, 6]))
            for member_id in acknowledging:
                leader.acknowledge(member_id, 1)
            self.assertEqual(leader.raft.commit_index, int(committed), acknowledging)

    def test_06_a_joint_configuration_reads_with_both_majorities(self) -> None:
        leader = leader_of(configuration([1, 2, 3], outgoing=[1, 4, 5, 6]))
        leader.read(7)
        number = round_in(leader.take())
        for member_id in (2, 4, 5):
            leader.acknowledge(member_id, 1)
        for member_id in (4, 5, 6):
            leader.respond(member_id, HeartbeatResponse(1, number))
        # Not a `Ready`: the joint configuration would be left in it.
        assert leader.raft.leadership is not None
        self.assertEqual(leader.raft.leadership.advance_reads(1, leader.time.now), [])
        leader.respond(3, HeartbeatResponse(1, number))
        self.assertEqual(leader.raft.leadership.advance_reads(1, leader.time.now), [(7, 1)])

    def test_06_a_leader_needs_answers_of_both_majorities(self) -> None:
        for answering, stays in (([4, 5, 6], False), ([2, 3, 4], False), ([2, 4, 5], True)):
            leader = leader_of(configuration([1, 2, 3], outgoing=[1, 4, 5, 6]))
            for _ in range(8):
                leader.time.now += HEARTBEAT_S
                for member_id in answering:
                    leader.respond(member_id, HeartbeatResponse(1, 0))
                leader.tick()
            self.assertIs(leader.raft.role is Role.LEADER, stays, answering)

    def test_33_a_joint_configuration_that_is_truncated_goes_back(self) -> None:
        node = node_with((1,), term=1)
        joint = configuration([3, 4, 5], outgoing=[1, 2, 3])
        node.answer(1, AppendEntries(1, 1, 1, 0, (changing(2, 1, joint),)))
        node.answer(1, AppendEntries(1, 2, 1, 0, (changing(3, 1, joint.left()),)))
        self.assertEqual(node.raft.configuration, joint.left())
        node.answer(3, AppendEntries(2, 2, 1, 0, (Entry(3, 2, EntryKind.NOOP, 0, b""),)))
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (joint, 2))
        node.answer(3, AppendEntries(3, 1, 1, 0, (Entry(2, 3, EntryKind.NOOP, 0, b""),)))
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (THREE, 0))

    def test_33_a_configuration_goes_back_behind_a_compaction(self) -> None:
        # Its entry is cut off, and that of the one before is in a snapshot.
        node = node_with((1,), term=1)
        before = configuration([1, 2, 3], learners=[4])
        node.answer(1, AppendEntries(1, 1, 1, 2, (changing(2, 1, before),)))
        node.apply()
        node.take_snapshot()
        after = configuration([1, 2, 3, 4])
        node.answer(1, AppendEntries(1, 2, 1, 2, (changing(3, 1, after),)))
        node.raft.settings = NO_TAIL
        node.raft.compact(2)
        self.assertEqual(node.raft.log.base_index, 2)
        self.assertEqual(node.raft.configuration, after)
        node.answer(3, AppendEntries(2, 2, 1, 2, (Entry(3, 2, EntryKind.NOOP, 0, b""),)))
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (before, 2))

    def test_34_a_joint_configuration_that_is_committed_is_left_first(self) -> None:
        leader = leader_of(configuration([1, 2, 3], outgoing=[1, 4, 5]))
        for member_id in (2, 4):
            leader.raft.receive_response(
                member_id, AppendEntriesResponse(1, True, 1), leader.time.now
            )
        # It is committed and a turn has not ended yet.
        self.assertEqual(leader.raft.commit_index, 1)
        self.assertTrue(leader.raft.configuration.is_joint)
        with self.assertRaises(ChangeInProgress):
            leader.change(Rename(2, "other:1"))

    def test_34_no_change_until_a_joint_configuration_was_left(self) -> None:
        cluster = grown(3, learners=1)
        leader = cluster[1]
        leader.change(Promote(4), Remove(3))
        with self.assertRaises(ChangeInProgress):
            leader.change(Rename(2, "other:1"))
        cluster.collect(leader)
        for _ in range(20):
            if not leader.raft.configuration.is_joint:
                break
            with self.assertRaises(ChangeInProgress):
                leader.change(Rename(2, "other:1"))
            for queue in cluster.waiting():
                cluster.deliver(queue.popleft())
            for node in cluster.running():
                node.flush()
                cluster.collect(node)
        # It was left, and that is not committed yet.
        self.assertFalse(leader.raft.configuration.is_joint)
        with self.assertRaises(ChangeInProgress):
            leader.change(Rename(2, "other:1"))
        cluster.settle()
        leader.change(Rename(2, "other:1"))
        cluster.settle()
        self.assertEqual(cluster[2].raft.configuration, leader.raft.configuration)

    def test_34_what_is_so_already_is_no_second_change(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        index = leader.change(Remove(3))
        for same in ((Remove(3),), (), (Promote(2),), (Remove(3), Promote(1))):
            self.assertEqual(leader.change(*same), index)
        self.assertEqual(leader.raft.log.last_index, index)

    def test_34_nothing_is_changed_while_leadership_is_handed_over(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.acknowledge(3, 1)
        leader.transfer(2)
        with self.assertRaises(NotLeader):
            leader.change(Rename(2, "other:1"))
        self.assertEqual(leader.raft.log.last_index, 1)
        # It is given up in the end, and changes may be made again.
        for _ in range(8):
            leader.time.now += HEARTBEAT_S
            leader.respond(2, HeartbeatResponse(1, 0))
            leader.tick()
        self.assertEqual(leader.change(Rename(2, "other:1")), 2)

    # -- who leads, and who may be let go ------------------------------------

    def test_36_a_leader_that_removes_itself_goes_and_the_rest_goes_on(self) -> None:
        for voters, changes in (
            (2, (Remove(1),)),
            (3, (Remove(1),)),
            (3, (Remove(1), Remove(2))),
            (5, (Remove(1), Remove(3))),
            (3, (Demote(1),)),
            (4, (Demote(1), Remove(2))),
        ):
            cluster = grown(voters)
            index = cluster[1].change(*changes)
            # No timeout is waited for: its successor is told.
            cluster.run(HEARTBEAT_S)
            leader = cluster.leader()
            self.assertIn(leader.id, leader.raft.configuration.voter_ids())
            self.assertNotIn(1, leader.raft.configuration.voter_ids())
            leader.propose(b"after")
            cluster.run(HEARTBEAT_S)
            self.assertEqual(leader.applied[-1].data, b"after", changes)
            # And it has learned of it.
            self.assertGreaterEqual(cluster[1].raft.commit_index, index)
            cluster.run(5 * ELECTION_S)
            self.assertEqual(cluster.leader().id, leader.id)
            self.assertEqual(cluster[1].raft.next_deadline, float("inf"))

    def test_36_a_leader_on_its_way_out_does_not_count_itself(self) -> None:
        for change in (Remove(1), Demote(1)):
            leader = leader_of(3)
            for member_id in (2, 3):
                leader.acknowledge(member_id, 1)
            index = leader.change(change)
            leader.flush()
            leader.acknowledge(2, index)
            leader.take()
            self.assertEqual((leader.raft.commit_index, leader.raft.role), (1, Role.LEADER))
            leader.acknowledge(3, index)
            told = [o for o in leader.take() if isinstance(o.message, TimeoutNow)]
            # Committed without it; it goes at once, and asks one to follow.
            self.assertEqual((leader.raft.commit_index, len(told)), (index, 1))
            self.assertEqual((leader.raft.role, leader.raft.leader_id), (Role.FOLLOWER, NOBODY))
            self.assertEqual(leader.raft.next_deadline, float("inf"))

    def test_36_a_leader_on_its_way_out_first_commits_what_it_has_taken_on(self) -> None:
        """And takes on nothing more from its removal on, or there would be no end to it."""
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        _, before = leader.propose(b"x")
        index = leader.change(Remove(1))
        self.assertTrue(leader.raft.is_handing_over)
        with self.assertRaises(NotLeader):
            leader.propose(b"y")
        leader.flush()
        for member_id in (2, 3):
            leader.acknowledge(member_id, before)
        leader.collect()
        self.assertEqual((leader.raft.commit_index, leader.raft.role), (before, Role.LEADER))
        for member_id in (2, 3):
            leader.acknowledge(member_id, index)
        leader.collect()
        self.assertEqual((leader.raft.commit_index, leader.raft.role), (index, Role.FOLLOWER))
        self.assertEqual(leader.raft.log.last_index, index)

    def test_36_a_leader_on_its_way_out_of_a_joint_configuration_takes_on_more(self) -> None:
        """Its vote counts still; it ends with the entry that leaves the configuration."""
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        joint = leader.change(Remove(1), Demote(2))
        leader.propose(b"x")
        leader.flush()
        for member_id in (2, 3):
            leader.acknowledge(member_id, joint + 1)
        leader.collect()
        with self.assertRaises(NotLeader):
            leader.propose(b"y")
        self.assertEqual(leader.raft.configuration_index, joint + 2)

    def test_36_the_next_leader_is_not_one_that_is_let_go(self) -> None:
        """It would have to hand over in its turn, after another election."""
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        leader.change(Demote(3), Remove(1))
        self.assertTrue(leader.raft.configuration.is_joint)
        with self.assertRaises(ChangeRefused):
            leader.transfer(3)
        # It has more of the log, and was heard from last.
        leader.acknowledge(3, leader.raft.log.last_index)
        leader.transfer(None)
        assert leader.raft.leadership is not None
        self.assertEqual(leader.raft.leadership.successor, 2)

    def test_37_a_joint_configuration_is_left_while_leadership_is_handed_over(self) -> None:
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        joint = leader.change(Remove(1), Demote(3))
        leader.transfer(2)
        leader.flush()
        for member_id in (2, 3):
            leader.acknowledge(member_id, joint)
        leader.collect()
        self.assertFalse(leader.raft.configuration.is_joint)
        assert leader.raft.leadership is not None
        self.assertEqual(leader.raft.leadership.successor, 2)

    def test_36_what_waited_for_one_that_goes_is_committed_without_it(self) -> None:
        leader = leader_of(2)
        leader.acknowledge(2, 1)
        leader.propose(b"x")
        leader.flush()
        self.assertEqual(leader.raft.commit_index, 1)
        leader.change(Remove(2), force=True)
        self.assertEqual(leader.raft.commit_index, 2)
        leader.flush()
        self.assertEqual(leader.raft.commit_index, 3)

    def test_36_one_of_two_may_go(self) -> None:
        cluster = grown(2)
        cluster[1].change(Remove(2))
        cluster.settle()
        cluster.crash(2)
        cluster[1].propose(b"alone")
        cluster.run(3 * ELECTION_S)
        self.assertEqual(cluster[1].applied[-1].data, b"alone")
        cluster.restart(1)
        cluster.run(HEARTBEAT_S)
        self.assertEqual(cluster.leader().id, 1)

    def test_36_a_removal_that_nobody_else_knows_of_hangs_nobody(self) -> None:
        """
        1 has appended its own removal, and nobody else has it; then 1 leads no
        more.  Its log is longer than that of 2, so it does not vote for 2: it
        must stand itself, although its own configuration does not name it.
        """
        for voters, changes, dead in (
            (2, (Remove(1),), ()),
            (2, (Demote(1),), ()),
            (4, (Remove(1),), (4,)),
            (4, (Demote(1),), (3,)),
        ):
            cluster = grown(voters)
            for member_id in dead:
                cluster.crash(member_id)
            cluster[1].change(*changes)
            cluster.isolate(1)
            cluster.settle()
            cluster.run(3 * ELECTION_S)
            self.assertEqual(cluster.leaders(), [])
            cluster.heal()
            cluster.run(20 * ELECTION_S)
            leader = cluster.leader()
            leader.propose(b"after")
            cluster.run(HEARTBEAT_S)
            self.assertEqual(leader.applied[-1].data, b"after", (voters, changes))

    def test_36_who_was_removed_stands_no_more_once_that_is_committed(self) -> None:
        for known in (False, True):
            node = node_with((1,), term=1)
            removed = changing(2, 1, configuration([1, 3], removed=[2]))
            node.answer(1, AppendEntries(1, 1, 1, 2 if known else 1, (removed,)))
            node.time_out()
            role = Role.FOLLOWER if known else Role.PRE_CANDIDATE
            self.assertIs(node.raft.role, role)
            self.assertEqual(bool(node.take()), not known)
            self.assertEqual(node.raft.next_deadline == float("inf"), known)
            # Nor does it when it hears of the commit in another way.
            node.answer(1, Heartbeat(1, 2, 0))
            node.time_out()
            self.assertEqual((node.raft.role, node.take()), (Role.FOLLOWER, []))

    def test_36_a_configuration_that_was_followed_by_another_is_committed(self) -> None:
        # 2 has no vote since entry 2, and entry 3 would not be there otherwise.
        node = node_with((1,), term=1)
        demoted = configuration([1, 3], learners=[2])
        renamed = demoted.changed([Rename(3, "other:1")])
        entries = changing(2, 1, demoted), changing(3, 1, renamed)
        node.answer(1, AppendEntries(1, 1, 1, 0, entries))
        node.time_out()
        self.assertEqual((node.raft.role, node.take()), (Role.FOLLOWER, []))

    def test_36_a_change_that_leaves_too_few_who_answer_is_refused(self) -> None:
        for changes, silent, refused in (
            ((Remove(2),), [3], True),
            ((Remove(3),), [3], False),
            ((Demote(2),), [3], True),
            ((Rename(3, "other:1"),), [3], False),
            ((Remove(1),), [3], True),
            ((Remove(2), Remove(3)), [3], False),
            ((Remove(2),), [], False),
        ):
            cluster = grown(3)
            for member_id in silent:
                cluster.crash(member_id)
            cluster.run(2 * ELECTION_S)
            leader = cluster[1]
            last = leader.raft.log.last_index
            if refused:
                with self.assertRaises(ChangeRefused) as caught:
                    leader.change(*changes)
                self.assertNotIsInstance(caught.exception, ChangeInProgress)
                self.assertEqual(leader.raft.log.last_index, last)
                leader.change(*changes, force=True)
            else:
                leader.change(*changes)
            self.assertEqual(leader.raft.log.last_index, last + 1, changes)

    def test_36_who_has_not_answered_yet_is_not_known_to_be_alive(self) -> None:
        # 1 was elected with the vote of 2; 3 is dead, and 2 is to go.
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        with self.assertRaises(ChangeInProgress):
            leader.change(Remove(2))
        self.assertEqual(leader.raft.log.last_index, 1)
        for _ in range(8):
            leader.time.now += HEARTBEAT_S
            leader.respond(2, HeartbeatResponse(1, 0))
            leader.tick()
        with self.assertRaises(ChangeRefused) as caught:
            leader.change(Remove(2))
        self.assertNotIsInstance(caught.exception, ChangeInProgress)
        leader.respond(3, HeartbeatResponse(1, 0))
        self.assertEqual(leader.change(Remove(2)), 2)

    def test_36_a_new_member_gets_no_vote_before_it_has_answered(self) -> None:
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        for force in (False, True):
            with self.assertRaises(NotCaughtUp):
                leader.change(AddLearner(member(4)), Promote(4), force=force)
        self.assertEqual(leader.raft.log.last_index, 1)

    def test_36_a_learner_from_the_beginning_gets_no_vote_before_it_has_answered(self) -> None:
        leader = leader_of(configuration([1, 2, 3], learners=[4]))
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        with self.assertRaises(NotCaughtUp):
            leader.promote(4)
        leader.acknowledge(4, 1)
        leader.promote(4)

    def test_36_a_voter_that_is_behind_hinders_no_other_change(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        self.assertEqual(leader.change(Promote(3), AddLearner(member(4))), 2)

    def test_36_a_successor_that_was_let_go_meanwhile_is_not_told(self) -> None:
        cluster = grown(3)
        leader = cluster[1]
        leader.propose(b"x")
        cluster.crash(3)
        leader.transfer(3)
        self.assertTrue(leader.raft.is_handing_over)
        leadership = leader.raft.leadership
        assert leadership is not None
        leadership.configure(configuration([1, 2], removed=[3]), leader.time.now)
        self.assertFalse(leader.raft.is_handing_over)
        self.assertFalse(any(isinstance(m, TimeoutNow) for m in messages_to(leader.take(), 3)))

    def test_36_who_was_let_go_and_is_told_to_stand_disturbs_nobody_for_long(self) -> None:
        # TimeoutNow is on its way to 3 when 3 is removed.
        cluster = grown(3)
        leader = cluster[1]
        leader.transfer(3)
        cluster.collect(leader)
        told = [p for p in cluster.queues[1, 3] if isinstance(p.message, TimeoutNow)]
        self.assertEqual(len(told), 1)
        cluster.queues[1, 3].clear()
        cluster.run(2 * ELECTION_S)
        leader.change(Remove(3))
        cluster.run(HEARTBEAT_S)
        cluster.deliver(told[0])
        cluster.run(5 * ELECTION_S)
        self.assertEqual(cluster.leader().raft.configuration.voter_ids(), {1, 2})

    # -- joint, without a leader ---------------------------------------------

    def test_37_a_joint_configuration_without_a_leader_is_left_by_the_next(self) -> None:
        joint = configuration([3, 4, 5], outgoing=[1, 2, 3], learners=[2])
        before = log_of([1])
        log = [*before, changing(2, 1, joint)]
        for holding in ([1, 2, 3, 4, 5], [1, 3, 4], [2, 3, 4], [4, 5, 3, 2]):
            base = configuration([1, 2, 3], learners=[4, 5])
            disks = {
                m: Disk(log if m in holding else before, HardState(1)) for m in range(1, 6)
            }
            cluster = Cluster(base, disks=disks)
            cluster.run(10 * ELECTION_S)
            leader = cluster.leader()
            self.assertEqual(leader.raft.configuration, joint.left(), holding)
            self.assertIn(leader.id, (3, 4, 5))
            leader.propose(b"after")
            cluster.run(HEARTBEAT_S)
            self.assertEqual(leader.applied[-1].data, b"after", holding)

    def test_37_a_joint_configuration_in_a_snapshot_is_left_too(self) -> None:
        joint = configuration([3, 4, 5], outgoing=[1, 2, 3])
        log = [*log_of([1]), changing(2, 1, joint)]
        snapshot = snapshot_of(log, joint)
        disks = {
            m: Disk((), HardState(1), base=(2, 1), snapshots=[snapshot]) for m in range(1, 6)
        }
        cluster = Cluster(joint, disks=disks, committed=log)
        self.assertEqual({n.raft.configuration for n in cluster.running()}, {joint})
        cluster.run(10 * ELECTION_S)
        leader = cluster.leader()
        self.assertEqual(leader.raft.configuration, configuration([3, 4, 5], removed=[1, 2]))
        self.assertIn(leader.id, (3, 4, 5))

    def test_37_who_is_on_the_way_out_stands_for_election(self) -> None:
        # It may hold what the others have not, though the joint configuration is committed.
        node = Node(1, configuration([4, 5, 6], outgoing=[1, 2, 3]))
        node.time_out()
        self.assertIs(node.raft.role, Role.PRE_CANDIDATE)

    def test_38_who_was_removed_does_not_join_as_it_was(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.respond(2, HeartbeatResponse(1, 0))
        leader.acknowledge(2, leader.change(Remove(3)))
        with self.assertRaises(ChangeRefused) as caught:
            leader.change(AddLearner(member(3)))
        self.assertIn("was removed from this cluster", str(caught.exception))

    def test_37_who_is_on_the_way_out_can_still_lead(self) -> None:
        """
        Everybody is replaced.  4, 5 and 6 know the joint configuration to be
        committed; 2 and 3 have an entry more, so only they can be elected
        when 1 is gone: they must not be turned away yet.
        """
        cluster = grown(3, learners=3)
        leader = cluster[1]
        new, old = (4, 5, 6), (2, 3)
        joint = leader.change(*map(Promote, new), *map(Remove, (1, 2, 3)))
        cluster.collect(leader)
        deliver(cluster, *((1, m) for m in (*old, *new)))
        leader.propose(b"more")
        leader.flush()
        cluster.collect(leader)
        deliver(cluster, *((1, m) for m in old))
        for m in new:
            cluster.queues[1, m].clear()
        deliver(cluster, *((m, 1) for m in (*old, *new)))
        self.assertGreaterEqual(leader.raft.commit_index, joint)
        self.assertFalse(leader.raft.configuration.is_joint)
        drop(cluster)
        leader.time.now = leader.raft.next_deadline
        leader.tick()
        cluster.collect(leader)
        heard = deliver(cluster, *((1, m) for m in new))
        self.assertTrue(heard)
        check(all(isinstance(p.message, Heartbeat) for p in heard), "and nothing else")
        self.assertEqual({cluster[m].raft.commit_index for m in new}, {joint})
        self.assertEqual({cluster[m].raft.configuration_index for m in new}, {joint})
        cluster.crash(1)
        cluster.run(20 * ELECTION_S)
        elected = cluster.leader()
        self.assertIn(elected.id, new)
        found = elected.raft.configuration
        self.assertEqual((found.voter_ids(), found.removed), ({4, 5, 6}, (1, 2, 3)))
        self.assertIn(b"more", [e.data for e in elected.applied])
