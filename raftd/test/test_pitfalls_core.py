"""
Defects that other Raft implementations have shipped, one test for each.

The number in a test's name is the defect's in the project's list of pitfalls.
"""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Message,
    PreVote,
    PreVoteResponse,
    RequestVote,
    RequestVoteResponse,
)
from raftd.core.raft import Role
from raftd.core.reads import ReadQueue
from raftd.errors import InvariantViolated
from raftd.test.core_clusters import Cluster, Packet, of_voters
from raftd.test.cores import (
    ELECTION_S,
    FIVE,
    HEARTBEAT_S,
    THREE,
    Disk,
    Node,
    appends_in,
    configuration,
    heartbeats_in,
    leader_of,
    log_of,
    node_with,
    round_in,
    terms_of,
)


class SmallClock(random.Random):
    """Draws the shortest election timeout, always."""

    def random(self) -> float:
        return 0.0


def pass_only(cluster: Cluster, *directions: tuple[int, int]) -> None:
    """Deliver and flush until nothing is left in these directions; the rest waits."""
    busy = True
    while busy:
        busy = False
        for node in cluster.running():
            node.flush()
            cluster.collect(node)
        for direction in directions:
            queue = cluster.queues.get(direction)
            if queue:
                busy = True
                cluster.deliver(queue.popleft())


class Elections(SynchronousTestCase):
    def test_01_a_single_voter_with_a_slow_disk_is_elected_all_the_same(self) -> None:
        # It waits for its vote's flush rather than begin term after term.
        node = Node(1, configuration([1]))
        node.tick()
        node.collect()
        for _ in range(5):  # a flush takes longer than two election timeouts
            node.time.now += 2.05 * ELECTION_S
            node.tick()
            node.collect()
        node.flush()
        self.assertEqual((node.raft.role, node.raft.term), (Role.LEADER, 1))

    def test_01_no_vote_leaves_before_it_is_durable(self) -> None:
        node = node_with()
        node.receive(1, RequestVote(2, 0, 0))
        self.assertEqual(node.take(), [])
        node.persisted(node.disk.flush_one())
        (answer,) = node.take()
        self.assertEqual(answer.message, RequestVoteResponse(2, True))
        self.assertEqual(node.disk.hard_state, HardState(2, 1))

    def test_01_an_own_vote_does_not_count_before_it_is_durable(self) -> None:
        for voters in ([1], [1, 2], [1, 2, 3]):
            node = Node(1, configuration(voters))
            node.time_out()
            for voter in voters[1:]:
                node.respond(voter, PreVoteResponse(1, True))
            self.assertIs(node.raft.role, Role.CANDIDATE)
            self.assertEqual(node.disk.hard_state, HardState(0, NOBODY))
            requests = [m for m in node.take() if isinstance(m.message, RequestVote)]
            self.assertEqual(requests, [], "a request of a term that is not durable")
            # Even if an answer came from nowhere, one's own vote is still missing.
            if len(voters) > 1:
                node.respond(2, RequestVoteResponse(1, True))
                self.assertIs(node.raft.role, Role.CANDIDATE)
            node.persisted(node.disk.flush_one())
            self.assertIs(node.raft.role, Role.LEADER, "with its own vote it has a majority")

    def test_01_an_earlier_write_is_no_vote_on_disk(self) -> None:
        # An entry is still being written when the node votes for itself, or for another.
        def writing() -> Node:
            node = node_with((1,), term=1)
            node.receive(1, AppendEntries(1, 1, 1, 0, (log_of([1, 1])[1],)), 1)
            node.collect()
            self.assertEqual(len(node.disk.queue), 1)
            return node

        node = writing()
        node.time_out()
        node.respond(3, PreVoteResponse(2, True))
        node.collect()
        self.assertIs(node.raft.role, Role.CANDIDATE)
        node.persisted(node.disk.flush_one())
        requests = [m.message for m in node.take() if isinstance(m.message, RequestVote)]
        self.assertEqual(requests, [])
        node.respond(3, RequestVoteResponse(2, True))
        self.assertIs(node.raft.role, Role.CANDIDATE)
        node.persisted(node.disk.flush_one())
        self.assertIs(node.raft.role, Role.LEADER)

        node = writing()
        node.time.now += ELECTION_S
        node.receive(3, RequestVote(2, 9, 9), 2)
        node.collect()
        node.persisted(node.disk.flush_one())
        self.assertNotIn(2, [o.request_id for o in node.take()])
        node.persisted(node.disk.flush_one())
        answers = {o.request_id: o.message for o in node.take()}
        self.assertEqual(answers[2], RequestVoteResponse(2, True))

    def test_01_killed_between_any_two_steps_no_two_vote_twice(self) -> None:
        # A voter is killed at every point of answering 1, then 3 asks in the same term.
        for flushed in (False, True):
            for told in (False, True):
                node = node_with()
                node.receive(1, RequestVote(2, 0, 0))
                node.collect()
                answers = []
                if flushed:
                    number = node.disk.flush_one()
                    if told:
                        node.persisted(number)
                        answers = node.take()
                node.crash()
                node.start()
                second = node.answer(3, RequestVote(2, 0, 0))
                granted = sum(a.message == RequestVoteResponse(2, True) for a in answers)
                granted += second == RequestVoteResponse(2, True)
                self.assertLessEqual(granted, 1, (flushed, told))

    def test_02_term_and_vote_survive_a_restart_of_all(self) -> None:
        cluster = of_voters(3)
        cluster.elect(1)
        cluster.elect(2)
        cluster[2].propose(b"committed")
        cluster.settle()
        before = {n.id: n.raft.hard_state for n in cluster.running()}
        for member_id in (1, 2, 3):
            cluster.restart(member_id)
        self.assertEqual({n.id: n.raft.hard_state for n in cluster.running()}, before)
        cluster.run(3 * ELECTION_S)
        self.assertGreater(cluster.leader().raft.term, 2)
        for node in cluster.running():
            self.assertIn(b"committed", [e.data for e in node.applied])

    def test_03_the_term_never_goes_backwards(self) -> None:
        old: list[Message] = [
            RequestVote(3, 9, 3),
            PreVote(3, 9, 3),
            Heartbeat(3, 0, 1),
            AppendEntries(3, 0, 0, 0, ()),
        ]
        for message in old:
            node = node_with((1, 4), term=4)
            answer = node.answer(1, message)  # type: ignore[arg-type]
            self.assertEqual((node.raft.term, answer.term), (4, 4))
            self.assertIs(node.raft.leader_id, NOBODY)
        node = node_with((1, 4), term=4)
        node.respond(1, RequestVoteResponse(3, False))
        node.respond(1, PreVoteResponse(2, False))
        self.assertEqual(node.raft.term, 4)

    def test_04_a_leader_does_not_vote_in_its_own_term(self) -> None:
        leader = leader_of(3)
        for transfer in (False, True):
            answer = leader.answer(2, RequestVote(leader.raft.term, 99, 99, transfer))
            self.assertEqual(answer, RequestVoteResponse(leader.raft.term, False))
        self.assertIs(leader.raft.role, Role.LEADER)
        self.assertEqual(leader.raft.hard_state.voted_for, 1)

    def test_05_a_vote_counts_once(self) -> None:
        node = Node(1, FIVE)
        node.become_candidate()
        for _ in range(5):
            node.respond(2, RequestVoteResponse(1, True))
        self.assertIs(node.raft.role, Role.CANDIDATE)
        node.respond(3, RequestVoteResponse(1, True))
        self.assertIs(node.raft.role, Role.LEADER)

    def test_05_votes_of_an_old_term_do_not_count(self) -> None:
        node = Node(1, THREE)
        node.become_candidate()
        node.become_candidate()
        self.assertEqual(node.raft.term, 2)
        node.respond(2, RequestVoteResponse(1, True))
        node.respond(3, RequestVoteResponse(1, True))
        self.assertIs(node.raft.role, Role.CANDIDATE)

    def test_05_votes_of_strangers_and_learners_do_not_count(self) -> None:
        node = Node(1, configuration([1, 2, 3], learners=[4]))
        node.become_candidate()
        for stranger in (4, 5, 6):
            node.respond(stranger, RequestVoteResponse(1, True))
        self.assertIs(node.raft.role, Role.CANDIDATE)

    def test_05_a_late_pre_vote_does_not_count_as_a_vote(self) -> None:
        node = Node(1, THREE)
        node.become_candidate()
        node.respond(2, PreVoteResponse(1, True))
        node.respond(3, PreVoteResponse(2, True))
        self.assertIs(node.raft.role, Role.CANDIDATE)

    def test_06_a_joint_configuration_needs_both_majorities(self) -> None:
        # The union is 1..6; a majority of it can lack one of either half.
        joint = configuration([1, 2, 3], outgoing=[1, 4, 5, 6])
        for granting, wins in (
            ([2, 3, 4], False),
            ([4, 5, 6], False),
            ([2, 4], False),
            ([2, 4, 5], True),
            ([3, 5, 6], True),
        ):
            node = Node(1, joint)
            node.time_out()
            for voter in (2, 3, 4, 5):
                node.respond(voter, PreVoteResponse(1, True))
            node.flush()
            self.assertIs(node.raft.role, Role.CANDIDATE)
            for voter in granting:
                node.respond(voter, RequestVoteResponse(1, True))
            self.assertIs(node.raft.role is Role.LEADER, wins, granting)

    def test_07_a_new_pre_campaign_forgets_votes_and_leader(self) -> None:
        node = Node(1, FIVE)
        node.answer(5, Heartbeat(1, 0, 0))
        self.assertEqual(node.raft.leader_id, 5)
        node.time_out()
        self.assertIs(node.raft.role, Role.PRE_CANDIDATE)
        self.assertEqual(node.raft.leader_id, NOBODY)
        node.respond(2, PreVoteResponse(2, True))
        node.time_out()
        node.respond(3, PreVoteResponse(2, True))
        self.assertIs(node.raft.role, Role.PRE_CANDIDATE, "2's grant was of the one before")
        node.respond(4, PreVoteResponse(2, True))
        self.assertIs(node.raft.role, Role.CANDIDATE)

    def test_08_a_pre_vote_of_ones_own_leader_is_granted(self) -> None:
        node = node_with()
        node.answer(1, Heartbeat(1, 0, 0))
        self.assertEqual(node.answer(1, PreVote(2, 0, 0)), PreVoteResponse(2, True))
        self.assertEqual(node.answer(3, PreVote(2, 0, 0)), PreVoteResponse(1, False))

    def test_08_a_vote_for_ones_own_leader_is_granted(self) -> None:
        node = node_with()
        node.answer(1, Heartbeat(1, 0, 0))
        self.assertEqual(node.answer(3, RequestVote(2, 0, 0)), RequestVoteResponse(1, False))
        self.assertEqual(node.answer(1, RequestVote(2, 0, 0)), RequestVoteResponse(2, True))

    def test_09_granting_a_pre_vote_refreshes_nothing(self) -> None:
        node = node_with()
        node.answer(1, Heartbeat(1, 0, 0))
        due = node.raft.next_deadline
        node.time.now += ELECTION_S
        self.assertEqual(node.answer(3, PreVote(2, 0, 0)), PreVoteResponse(2, True))
        self.assertEqual(node.raft.next_deadline, due)
        # Nor does it make this node refuse the next.
        for candidate in (1, 3):
            answer = node.answer(candidate, PreVote(2, 0, 0))
            self.assertEqual(answer, PreVoteResponse(2, True), candidate)
        self.assertEqual(node.raft.hard_state, HardState(1, NOBODY))

    def test_10_a_restarted_node_of_a_lower_term_and_the_rest_do_not_block(self) -> None:
        # 1 has the longer log and the lower term; 2 has the higher term; 3 is down.
        cluster = Cluster(
            THREE,
            member_ids=[1, 2],
            disks={
                1: Disk(log_of([1, 1, 2]), HardState(2)),
                2: Disk(log_of([1, 1]), HardState(7)),
            },
        )
        cluster.run(6 * ELECTION_S)
        self.assertEqual(cluster.leader().id, 1)
        self.assertGreater(cluster.leader().raft.term, 7)

    def test_11_a_node_that_reaches_some_of_the_others_only_disturbs_nobody(self) -> None:
        # The outage at Cloudflare: 3 does not reach the leader, 2 reaches both.
        cluster = of_voters(3)
        cluster.elect(1)
        cluster.run(ELECTION_S)
        for cut in ({(1, 3), (3, 1)}, {(1, 3)}, {(3, 1)}):
            cluster.cut = set(cut)
            cluster.run(20 * ELECTION_S)
            self.assertEqual(cluster.leader().id, 1, cut)
            self.assertEqual(cluster[1].raft.term, 1, cut)
            cluster.heal()
            cluster.run(ELECTION_S)

    def test_12_a_leader_without_a_quorum_steps_down_in_an_election_timeout(self) -> None:
        leader = leader_of(5)
        leader.propose(b"x")
        leader.read(7)
        leader.collect()
        since = leader.time.now
        for _ in range(10):
            if leader.raft.role is not Role.LEADER:
                break
            leader.time.now = leader.raft.next_deadline
            # One of four others answers: two of five are no quorum.
            leader.respond(2, HeartbeatResponse(leader.raft.term, 0))
            leader.tick()
        self.assertIs(leader.raft.role, Role.FOLLOWER)
        self.assertLessEqual(leader.time.now - since, ELECTION_S + HEARTBEAT_S)
        self.assertEqual(leader.raft.leader_id, NOBODY)
        leader.collect()
        self.assertEqual((leader.reads, leader.lost_reads), ([], [7]))

    def test_12_a_leader_with_a_quorum_stays(self) -> None:
        leader = leader_of(3)
        for _ in range(50):
            leader.time.now += HEARTBEAT_S
            leader.respond(3, HeartbeatResponse(leader.raft.term, 0))
            leader.tick()
        self.assertIs(leader.raft.role, Role.LEADER)


class Replication(SynchronousTestCase):
    def test_13_an_entry_of_an_earlier_term_is_not_committed_by_counting(self) -> None:
        leader = leader_of(3, (1, 2), term=3)
        self.assertEqual(terms_of(leader.raft.log), [1, 2, 4])
        leader.acknowledge(2, 2)
        leader.acknowledge(3, 2)
        self.assertEqual(leader.raft.commit_index, 0)
        leader.acknowledge(2, 3)
        self.assertEqual(leader.raft.commit_index, 3)

    def test_14_the_commit_index_never_goes_back(self) -> None:
        node = node_with((1, 1, 1), term=1)
        node.answer(1, AppendEntries(1, 3, 1, 3, ()))
        self.assertEqual(node.raft.commit_index, 3)
        node.answer(1, AppendEntries(1, 3, 1, 1, ()))
        node.answer(1, AppendEntries(1, 1, 1, 3, ()))
        node.answer(1, Heartbeat(1, 2, 0))
        self.assertEqual(node.raft.commit_index, 3)

    def test_15_match_index_never_goes_back(self) -> None:
        leader = leader_of(3, (1, 1, 1), term=1)
        leader.acknowledge(2, 4)
        progress = leader.raft.leadership.progress[2]  # type: ignore[union-attr]
        leader.acknowledge(2, 2)
        leader.respond(2, AppendEntriesResponse(2, False, 3, 1, 1))
        leader.unreachable(2)
        self.assertEqual((progress.match_index, progress.next_index), (4, 5))
        # Nor does it on a hint from before.
        leader.acknowledge(2, 4)
        leader.propose(b"x")
        leader.collect()
        leader.respond(2, AppendEntriesResponse(2, False, 5, 1, 1))
        self.assertEqual((progress.match_index, progress.next_index), (4, 5))

    def test_16_a_refusal_commits_nothing(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        for member_id in (2, 3):
            leader.respond(member_id, AppendEntriesResponse(2, False, 3, 3, 2))
            leader.respond(member_id, AppendEntriesResponse(2, False, 2, 2, 1))
        self.assertEqual(leader.raft.commit_index, 0)
        progress = leader.raft.leadership.progress  # type: ignore[union-attr]
        self.assertEqual([p.match_index for p in progress.values()], [0, 0])

    def test_17_an_answer_acknowledges_what_the_request_carried(self) -> None:
        # The tail of term 1 at 3 and 4 may be no entry of this leader's.
        node = node_with((1, 1, 1, 1), term=1)
        entry = log_of([1, 1])[1]
        for request, last in (
            (AppendEntries(2, 1, 1, 0, (entry,)), 2),
            (AppendEntries(2, 1, 1, 0, ()), 1),
            (AppendEntries(2, 0, 0, 0, ()), 0),
        ):
            answer = node.answer(1, request)
            self.assertEqual(answer, AppendEntriesResponse(2, True, last))

    def test_17_an_answer_waits_for_the_entries_that_it_acknowledges(self) -> None:
        node = node_with((1,), term=1)
        first, second = log_of([1, 1, 1])[1:]
        node.receive(1, AppendEntries(1, 1, 1, 0, (first,)), 1)
        node.collect()
        node.receive(1, AppendEntries(1, 2, 1, 0, (second,)), 2)
        # The heartbeat acknowledges no entries and does not wait.
        node.receive(1, Heartbeat(1, 0, 9), 3)
        self.assertEqual([o.message for o in node.take()], [HeartbeatResponse(1, 9)])
        for last in (2, 3):
            node.persisted(node.disk.flush_one())
            (answer,) = node.take()
            self.assertEqual(answer.message, AppendEntriesResponse(1, True, last))

    def test_17_a_write_from_before_a_truncation_acknowledges_nothing_after(self) -> None:
        # Entry 2 of term 1 is being written when entry 2 of term 2 replaces it.
        node = node_with((1,), term=1)
        old, new = log_of([1, 1])[1], log_of([1, 2])[1]
        node.receive(1, AppendEntries(1, 1, 1, 0, (old,)), 1)
        node.collect()
        node.receive(3, AppendEntries(2, 1, 1, 2, (new,)), 2)
        node.persisted(node.disk.flush_one())
        self.assertEqual(node.raft.log.persisted_index, 1)
        self.assertEqual(node.take(), [])
        self.assertEqual(list(node.to_apply), log_of([1]))
        answers = [o.message for o in node.take_flushed()]
        self.assertIn(AppendEntriesResponse(2, True, 2), answers)
        self.assertFalse(any(m == AppendEntriesResponse(1, True, 2) for m in answers))
        self.assertEqual(terms_of(node.disk.entries), [1, 2])

    def test_17_what_replaces_durable_entries_is_not_durable_for_that(self) -> None:
        node = node_with((1, 1, 1), term=1)
        new = log_of([1, 2, 2])[1:]
        node.receive(3, AppendEntries(2, 1, 1, 3, tuple(new)), 1)
        self.assertEqual(node.take(), [])
        self.assertEqual(list(node.to_apply), log_of([1]))
        node.flush()
        self.assertEqual([o.message for o in node.take()], [AppendEntriesResponse(2, True, 3)])

    def test_17_an_answer_of_an_earlier_term_is_withdrawn(self) -> None:
        node = node_with((1,), term=1)
        node.receive(1, AppendEntries(1, 1, 1, 0, (log_of([1, 1])[1],)), 1)
        node.collect()
        node.time.now += ELECTION_S
        node.receive(3, RequestVote(2, 9, 1), 2)
        answers = {o.request_id: o.message for o in node.take_flushed()}
        refusal = answers[1]
        assert isinstance(refusal, AppendEntriesResponse)
        self.assertEqual((refusal.term, refusal.success), (2, False))
        # Should 1 lead that term, it need not send the log from its beginning.
        self.assertEqual((refusal.match_index, refusal.hint_index), (2, 2))

    def test_18_an_old_request_cuts_nothing_off(self) -> None:
        node = node_with((1, 1, 1, 1), term=1)
        node.answer(1, AppendEntries(1, 4, 1, 0, ()))
        for request in (
            AppendEntries(1, 0, 0, 0, ()),
            AppendEntries(1, 0, 0, 0, tuple(log_of([1, 1]))),
            AppendEntries(1, 1, 1, 0, (log_of([1, 1])[1],)),
        ):
            node.answer(1, request)
            self.assertEqual(terms_of(node.raft.log), [1, 1, 1, 1])
            self.assertEqual(terms_of(node.disk.entries), [1, 1, 1, 1])

    def test_18_nothing_committed_is_ever_cut_off(self) -> None:
        node = node_with((1, 1, 1), term=1)
        node.answer(1, AppendEntries(1, 3, 1, 2, ()))
        with self.assertRaises(InvariantViolated):
            node.answer(3, AppendEntries(2, 1, 1, 0, (log_of([1, 2])[1],)))
        self.assertEqual(terms_of(node.raft.log), [1, 1, 1])

    def test_19_replication_goes_on_within_a_heartbeat_of_healing(self) -> None:
        cluster = of_voters(3)
        cluster.elect(1)
        cluster.run(ELECTION_S)
        cluster.isolate(3)
        for _ in range(5):
            cluster[1].propose(b"x")
            cluster.run(HEARTBEAT_S)
        self.assertLess(cluster[3].raft.log.last_index, cluster[1].raft.log.last_index)
        cluster.heal()
        cluster.run(HEARTBEAT_S + 0.01)
        self.assertEqual(terms_of(cluster[3].raft.log), terms_of(cluster[1].raft.log))
        self.assertEqual(cluster[3].raft.commit_index, cluster[1].raft.commit_index)
        self.assertEqual(cluster.leader().raft.term, 1)

    def test_19_a_member_that_was_down_is_not_sent_the_whole_log(self) -> None:
        cluster = Cluster(
            THREE, disks={i: Disk(log_of([1] * 20), HardState(1)) for i in (1, 2, 3)}
        )
        cluster.crash(3)
        cluster.elect(1)
        cluster.run(ELECTION_S)
        cluster.restart(3)
        received = record(cluster, to=3)
        cluster.run(ELECTION_S)
        self.assertEqual(terms_of(cluster[3].raft.log), [1] * 20 + [2])
        starts = [m.prev_log_index for m in received if isinstance(m, AppendEntries)]
        self.assertEqual(min(starts), 20)

    def test_20_replication_starts_at_once(self) -> None:
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        leader.take()
        leader.propose(b"x")
        sent = leader.take()
        self.assertEqual([a.entries[0].data for a in appends_in(sent, 2)], [b"x"])
        self.assertEqual([a.entries[0].data for a in appends_in(sent, 3)], [b"x"])

    def test_20_a_new_learner_is_sent_the_log_at_once(self) -> None:
        cluster = of_voters(1)
        cluster.elect(1)
        for _ in range(5):
            cluster[1].propose(b"x")
        cluster.settle()
        cluster.add(2)
        cluster[1].add_learner(2)
        cluster.settle()
        self.assertEqual(terms_of(cluster[2].raft.log), terms_of(cluster[1].raft.log))

    def test_20_a_member_that_is_away_costs_heartbeats_only(self) -> None:
        cluster = of_voters(3)
        cluster.elect(1)
        cluster.run(ELECTION_S)
        cluster.crash(3)
        tried = record(cluster, to=3)
        cluster.run(10 * HEARTBEAT_S)
        self.assertLessEqual(len(tried), 11)

    def test_21_a_single_node_waits_for_its_own_flush(self) -> None:
        node = Node(1, configuration([1]))
        node.become_leader()
        node.apply()
        node.propose(b"x")
        node.collect()
        self.assertEqual((node.raft.commit_index, list(node.to_apply)), (1, []))
        node.persisted(node.disk.flush_one())
        node.collect()
        self.assertEqual([e.data for e in node.to_apply], [b"x"])

    def test_21_a_leader_counts_its_copy_when_it_is_durable(self) -> None:
        leader = leader_of(3)
        leader.propose(b"x")
        leader.collect()
        leader.acknowledge(2, 2)
        self.assertEqual(leader.raft.commit_index, 1)
        # Both others are a quorum without it; it applies when it holds it itself.
        leader.acknowledge(3, 2)
        leader.collect()
        self.assertEqual(leader.raft.commit_index, 2)
        self.assertEqual([e.index for e in leader.to_apply], [1])
        leader.flush()
        self.assertEqual([e.index for e in leader.to_apply], [1, 2])

    def test_22_what_is_replayed_equals_what_was_live(self) -> None:
        # Written, cut off while being written, appended again, partly flushed.
        for flushed in range(4):
            node = node_with((1,), term=1)
            a2, a3 = log_of([1, 1, 1])[1:]
            b2 = log_of([1, 2])[1]
            c3 = log_of([1, 2, 3])[2]
            node.receive(1, AppendEntries(1, 1, 1, 0, (a2, a3)), 1)
            node.collect()
            node.receive(3, AppendEntries(2, 1, 1, 0, (b2,)), 2)
            node.collect()
            node.receive(1, AppendEntries(3, 2, 2, 0, (c3,)), 3)
            node.collect()
            for _ in range(flushed):
                node.persisted(node.disk.flush_one())
            node.crash()
            node.start()
            live = [[1], [1, 1, 1], [1, 2], [1, 2, 3]][flushed]
            self.assertEqual(terms_of(node.raft.log), live)
            self.assertEqual(node.raft.term, [1, 1, 2, 3][flushed])

    def test_56_a_follower_commits_what_the_request_verified(self) -> None:
        # Its entries 3 and 4 conflict with those of the leader of term 3.
        node = node_with((1, 1, 2, 2), term=2)
        answer = node.answer(1, AppendEntries(3, 1, 1, 4, (log_of([1, 1])[1],)))
        self.assertEqual(answer, AppendEntriesResponse(3, True, 2))
        self.assertEqual(node.raft.commit_index, 2)
        node.answer(1, AppendEntries(3, 2, 1, 4, ()))
        self.assertEqual(node.raft.commit_index, 2)

    def test_56_a_heartbeat_carries_no_more_than_the_member_has_confirmed(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        leader.acknowledge(2, 3)
        self.assertEqual(leader.raft.commit_index, 3)
        leader.take()
        leader.time.now += HEARTBEAT_S
        leader.tick()
        sent = leader.take()
        self.assertEqual(heartbeats_in(sent, 2)[0].leader_commit, 3)
        self.assertEqual(heartbeats_in(sent, 3)[0].leader_commit, 0)


class Times(SynchronousTestCase):
    def test_31_the_clusters_time_goes_on_under_a_new_leader(self) -> None:
        late = Entry(1, 1, EntryKind.NOOP, 5_000, b"")
        node = Node(1, THREE, disk=Disk([late], HardState(1)))
        node.become_leader()
        node.time.now += 0.25
        _, index = node.propose(b"x")
        times = [e.time_ms for e in node.raft.log.entries(1, index)]
        self.assertEqual(times, [5_000, 5_000, 5_250])


class Reads(SynchronousTestCase):
    def test_23_a_read_index_is_at_least_the_leaders_first_entry(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        self.assertEqual(leader.raft.commit_index, 0)
        leader.read(7)
        leader.respond(2, HeartbeatResponse(2, round_in(leader.take())))
        leader.collect()
        # Confirmed, but the entry that it must see may never be committed.
        self.assertEqual(leader.reads, [])
        leader.acknowledge(2, 3)
        leader.collect()
        self.assertEqual(leader.reads, [(7, 3)])

    def test_23_a_read_that_waits_for_the_first_entry_is_lost_with_the_leadership(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        leader.read(7)
        leader.respond(2, HeartbeatResponse(2, round_in(leader.take())))
        leader.respond(2, HeartbeatResponse(3, 0))
        leader.collect()
        self.assertEqual((leader.reads, leader.lost_reads), ([], [7]))

    def test_24_each_read_is_confirmed_by_a_round_begun_after_it_arrived(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.read(7)
        (round_of_7,) = {h.round for h in heartbeats_in(leader.take())}
        # The process is paused here; then a read arrives, and the old answers.
        leader.read(8)
        leader.collect()
        leader.respond(2, HeartbeatResponse(1, round_of_7))
        (round_of_8,) = {h.round for h in heartbeats_in(leader.take())}
        self.assertEqual(leader.reads, [(7, 1)])
        leader.respond(2, HeartbeatResponse(1, round_of_7))
        leader.respond(3, HeartbeatResponse(1, round_of_7))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1)])
        self.assertGreater(round_of_8, round_of_7)
        leader.respond(3, HeartbeatResponse(1, round_of_8))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1), (8, 1)])

    def test_24_an_answer_to_entries_confirms_no_round(self) -> None:
        # They may have been sent long before the read arrived.
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.propose(b"x")
        leader.collect()
        leader.read(7)
        number = round_in(leader.take())
        leader.acknowledge(2, 2)
        leader.respond(3, AppendEntriesResponse(1, False, 1, 0, 0))
        leader.collect()
        self.assertEqual(leader.reads, [])
        leader.respond(3, HeartbeatResponse(1, number))
        leader.collect()
        self.assertEqual([context for context, _ in leader.reads], [7])

    def test_24_a_paused_leader_that_was_deposed_answers_no_read(self) -> None:
        cluster = of_voters(3)
        cluster.elect(1)
        cluster.run(ELECTION_S)
        cluster.isolate(1)
        cluster.time.now += 2 * ELECTION_S
        cluster[2].tick()  # 1 is paused: it is not ticked
        cluster.settle()
        self.assertIs(cluster[2].raft.role, Role.LEADER)
        cluster[2].propose(b"new")
        cluster.settle()
        cluster[1].read(7)
        cluster.heal()
        cluster.settle()
        self.assertEqual((cluster[1].reads, cluster[1].lost_reads), ([], [7]))

    def test_25_a_leader_does_not_answer_a_read_by_itself(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.read(7)
        sent = leader.take()
        self.assertEqual(len(heartbeats_in(sent)), 2)
        leader.time.now += HEARTBEAT_S
        leader.tick()
        leader.collect()
        self.assertEqual(leader.reads, [])
        leader.respond(3, HeartbeatResponse(1, round_in(sent)))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1)])

    def test_25_a_leader_does_not_answer_a_read_with_less_than_a_majority(self) -> None:
        leader = leader_of(5)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        leader.read(7)
        number = round_in(leader.take())
        leader.respond(2, HeartbeatResponse(1, number))
        leader.collect()
        self.assertEqual(leader.reads, [])
        leader.respond(3, HeartbeatResponse(1, number))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1)])

    def test_26_reads_end_with_the_term(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.read(7)
        leader.take()
        leader.respond(3, HeartbeatResponse(2, 0))
        leader.collect()
        self.assertEqual(leader.lost_reads, [7])
        leader.become_leader()
        leader.take()
        leader.read(8)
        number = round_in(leader.take())
        leader.respond(2, HeartbeatResponse(1, number))
        leader.respond(3, HeartbeatResponse(1, number))
        leader.collect()
        self.assertEqual(leader.reads, [])
        self.assertEqual(leader.raft.term, 3)
        leader.acknowledge(2, leader.raft.log.last_index)
        leader.respond(2, HeartbeatResponse(3, number))
        leader.collect()
        self.assertEqual([context for context, _ in leader.reads], [8])

    def test_26_an_answer_to_a_heartbeat_of_an_earlier_term_confirms_nothing(self) -> None:
        node = node_with(term=5)
        self.assertEqual(node.answer(1, Heartbeat(4, 0, 7)), HeartbeatResponse(5, 0))

    def test_26_a_round_of_an_earlier_term_makes_no_stale_read(self) -> None:
        """
        1 leads term 1, and a heartbeat of its to 2 is slow.  1 leads term 2
        by the vote of 3; 2 learns of term 2 and only then gets the heartbeat.
        Its answer is slow too.  2 leads term 3 and commits; 1 reads.
        """
        cluster = of_voters(3)
        for node in cluster.running():
            node.raft._random = SmallClock()
        one, two, three = cluster[1], cluster[2], cluster[3]
        cluster.elect(1)
        cluster.run(ELECTION_S)
        one.read(0)
        cluster.collect(one)  # the heartbeats of round 1 are on their way
        assert one.raft.leadership is not None
        number = one.raft.leadership.reads.round
        for direction in ((1, 2), (1, 3)):
            self.assertEqual(
                [p.message for p in cluster.queues[direction]], [Heartbeat(1, 1, number)]
            )
        cluster.queues[1, 3].clear()
        cluster.time.now += 1.5 * ELECTION_S
        one.tick()  # CheckQuorum
        cluster.time.now += 1.5 * ELECTION_S
        one.tick()
        pass_only(cluster, (1, 3))  # PreVote at 3
        pass_only(cluster, (3, 1))
        pass_only(cluster, (1, 3))  # RequestVote at 3; its grant is slow
        self.assertEqual(three.raft.hard_state, HardState(2, 1))
        two.tick()
        pass_only(cluster, (2, 3), (3, 2))  # 3 tells 2 of term 2
        self.assertEqual(two.raft.term, 2)
        cluster.deliver(cluster.queues[1, 2].popleft())  # the heartbeat of term 1 at 2
        pass_only(cluster)
        cluster.time.now += 0.9 * ELECTION_S
        pass_only(cluster, (3, 1))
        self.assertEqual((one.raft.role, one.raft.term), (Role.LEADER, 2))
        cluster.time.now += 0.2 * ELECTION_S
        two.tick()
        pass_only(cluster, (2, 3), (3, 2))
        self.assertEqual((two.raft.role, two.raft.term), (Role.LEADER, 3))
        two.propose(b"acknowledged")
        pass_only(cluster, (2, 3), (3, 2))
        two.apply()
        self.assertEqual(two.applied[-1].data, b"acknowledged")
        # Only now does the read arrive, and then the answer of long ago.
        self.assertIs(one.raft.role, Role.LEADER)
        one.read(7)
        cluster.collect(one)
        cluster.deliver(cluster.queues[2, 1].popleft())
        cluster.collect(one)
        self.assertEqual(one.reads, [])

    def test_26_a_queue_of_reads_is_born_with_its_term(self) -> None:
        leader = leader_of(3)
        leader.read(1)
        leader.take()
        before = leader.raft.leadership
        leader.respond(3, HeartbeatResponse(2, 0))
        leader.become_leader()
        after = leader.raft.leadership
        assert before is not None
        assert after is not None
        self.assertIsNot(after.reads, before.reads)
        # Its first heartbeats were its first round.
        self.assertEqual((after.reads.round, len(after.reads)), (ReadQueue().round + 1, 0))


class Disks(SynchronousTestCase):
    def test_51_entries_that_were_acknowledged_and_are_gone_stop_the_node(self) -> None:
        node = node_with((1,), term=1)
        with self.assertRaises(InvariantViolated) as caught:
            node.answer(1, Heartbeat(1, 5, 0))
        self.assertIn("was lost", str(caught.exception))
        self.assertEqual(node.raft.commit_index, 0)

    def test_51_a_term_that_was_lost_stops_the_node(self) -> None:
        disk = Disk(log_of([1, 3]), HardState(1))
        with self.assertRaises(InvariantViolated):
            Node(1, configuration([1, 2, 3]), disk=disk)


def record(cluster: Cluster, to: int) -> list[Message]:
    """From now on, what is delivered to this member, or lost on the way."""
    seen: list[Message] = []
    deliver = cluster.deliver

    def watched(packet: Packet) -> None:
        if packet.to == to:
            seen.append(packet.message)
        deliver(packet)

    cluster.deliver = watched  # type: ignore[method-assign]
    return seen
