"""
The claims of the Raft paper (Ongaro and Ousterhout, 2014, extended version)
and of the thesis (Ongaro, 2014), one test for each.

The number in a test's name is the section's: `test_5_2_...` is of the paper,
`test_t4_2_3_...` of the thesis.
"""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.leader import MAX_PROMOTION_LAG_ENTRIES
from raftd.core.membership import encode_configuration
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
    Request,
    RequestVote,
    RequestVoteResponse,
    Response,
)
from raftd.core.progress import MAX_APPENDS_IN_FLIGHT
from raftd.core.raft import Role
from raftd.errors import (
    ChangeInProgress,
    InvariantViolated,
    NotCaughtUp,
    NotLeader,
    ProtocolViolation,
)
from raftd.test.core_clusters import Cluster, of_voters
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


def in_role(role: Role) -> Node:
    """Node 1 of three in this role, in term 1 (a pre-candidate in term 0)."""
    node = Node(1, THREE)
    match role:
        case Role.FOLLOWER:
            node.answer(2, Heartbeat(1, 0, 0))
        case Role.PRE_CANDIDATE:
            node.time_out()
        case Role.CANDIDATE:
            node.become_candidate()
        case Role.LEADER:
            node.become_leader()
    assert node.raft.role is role
    node.take_flushed()
    return node


class Section51(SynchronousTestCase):
    """Raft basics: terms."""

    def test_5_1_a_larger_term_is_adopted_by_every_role(self) -> None:
        requests: list[Request] = [
            RequestVote(9, 99, 9, True),
            AppendEntries(9, 0, 0, 0, ()),
            Heartbeat(9, 0, 0),
        ]
        responses: list[Response] = [
            PreVoteResponse(9, False),
            RequestVoteResponse(9, False),
            AppendEntriesResponse(9, False, 0),
            HeartbeatResponse(9, 0),
        ]
        for role in Role:
            for request in requests:
                node = in_role(role)
                node.answer(3, request)
                self.assertEqual((node.raft.term, node.raft.role), (9, Role.FOLLOWER))
                self.assertEqual(node.disk.hard_state.term, 9)
            for response in responses:
                node = in_role(role)
                node.respond(3, response)
                node.flush()
                self.assertEqual((node.raft.term, node.raft.role), (9, Role.FOLLOWER))
                self.assertEqual(node.disk.hard_state, HardState(9, NOBODY))

    def test_5_1_a_request_of_a_stale_term_is_refused(self) -> None:
        entry = log_of([1, 1])[1]
        for request, refusal in (
            (RequestVote(2, 9, 9), RequestVoteResponse(3, False)),
            (PreVote(2, 9, 9), PreVoteResponse(3, False)),
            (AppendEntries(2, 1, 1, 2, (entry,)), AppendEntriesResponse(3, False, 1, 1, 1)),
            (Heartbeat(2, 1, 5), HeartbeatResponse(3, 0)),
        ):
            node = node_with((1,), term=3)
            due = node.raft.next_deadline
            self.assertEqual(node.answer(1, request), refusal)
            self.assertEqual(terms_of(node.raft.log), [1])
            self.assertEqual((node.raft.commit_index, node.raft.leader_id), (0, NOBODY))
            self.assertEqual(node.raft.next_deadline, due, "no timer is refreshed")

    def test_5_1_a_node_that_is_told_of_a_newer_term_by_a_refusal_steps_down(self) -> None:
        cluster = of_voters(3)
        cluster.elect(1)
        cluster[3].receive(2, AppendEntries(5, 0, 0, 0, ()), 0)
        cluster[3].take_flushed()
        cluster.run(HEARTBEAT_S + 0.01)
        self.assertIs(cluster[1].raft.role, Role.FOLLOWER)
        self.assertEqual(cluster[1].raft.term, 5)

    def test_5_1_an_impossible_request_is_refused_whole(self) -> None:
        first, second, third = log_of([1, 1, 2])
        gap = (third,)
        backwards = (Entry(2, 3, 1, 0, b""), Entry(3, 2, 1, 0, b""))
        broken = Entry(2, 2, EntryKind.CONFIGURATION, 0, b"\xff")
        for entries in (gap, (first,), backwards, (broken,), (Entry(2, 9, 1, 0, b""),)):
            node = node_with((1,), term=1)
            with self.assertRaises(ProtocolViolation):
                node.answer(1, AppendEntries(4, 1, 1, 1, entries))
            self.assertEqual(node.raft.hard_state, HardState(1, NOBODY))
            self.assertEqual(terms_of(node.raft.log), [1])
        self.assertEqual(second.term, 1)


class Section52(SynchronousTestCase):
    """Leader election."""

    def test_5_2_servers_begin_as_followers(self) -> None:
        for node in (Node(1, THREE), node_with((1, 2), term=3, voted_for=1)):
            self.assertIs(node.raft.role, Role.FOLLOWER)
            self.assertEqual(node.raft.leader_id, NOBODY)

    def test_5_2_a_follower_stays_one_while_it_hears_its_leader(self) -> None:
        node = node_with()
        for _ in range(100):
            node.time.now += 5 * HEARTBEAT_S
            node.tick()
            node.answer(1, Heartbeat(1, 0, 0))
            self.assertIs(node.raft.role, Role.FOLLOWER)
        for _ in range(100):
            node.time.now += 5 * HEARTBEAT_S
            node.tick()
            node.answer(1, AppendEntries(1, 0, 0, 0, ()))
            self.assertIs(node.raft.role, Role.FOLLOWER)

    def test_5_2_leaders_send_heartbeats_periodically_to_all(self) -> None:
        leader = leader_of(3)
        for _ in range(4):
            leader.time.now = leader.raft.next_deadline
            leader.tick()
            sent = leader.take()
            self.assertEqual([h.term for h in heartbeats_in(sent, 2)], [1])
            self.assertEqual([h.term for h in heartbeats_in(sent, 3)], [1])
            self.assertAlmostEqual(leader.raft.next_deadline, leader.time.now + HEARTBEAT_S)

    def test_5_2_a_new_leader_establishes_its_authority_at_once(self) -> None:
        node = in_role(Role.CANDIDATE)
        node.respond(2, RequestVoteResponse(1, True))
        sent = node.take()
        self.assertEqual(sorted(h.to for h in sent if isinstance(h.message, Heartbeat)), [2, 3])

    def test_5_2_silence_for_an_election_timeout_begins_an_election(self) -> None:
        node = node_with((1, 3), term=4)
        node.answer(1, Heartbeat(4, 0, 0))
        node.time.now += ELECTION_S - 0.001
        node.tick()
        self.assertIs(node.raft.role, Role.FOLLOWER)
        node.time.now += ELECTION_S + 0.001
        node.tick()
        sent = node.take()
        self.assertEqual(
            [(o.to, o.message) for o in sent], [(v, PreVote(5, 2, 3)) for v in (1, 3)]
        )
        node.respond(3, PreVoteResponse(5, True))
        sent = node.take_flushed()
        # It increments its term and votes for itself, durably, and asks all in parallel.
        self.assertEqual(node.disk.hard_state, HardState(5, 2))
        self.assertIs(node.raft.role, Role.CANDIDATE)
        self.assertEqual(
            [(o.to, o.message) for o in sent], [(v, RequestVote(5, 2, 3)) for v in (1, 3)]
        )

    def test_5_2_a_candidate_wins_with_the_votes_of_a_majority(self) -> None:
        yes, no = True, False
        for count, votes, role in (
            (1, {}, Role.LEADER),
            (2, {2: yes}, Role.LEADER),
            (2, {}, Role.CANDIDATE),
            (2, {2: no}, Role.FOLLOWER),
            (3, {2: yes}, Role.LEADER),
            (3, {3: yes}, Role.LEADER),
            (3, {2: no}, Role.CANDIDATE),
            (3, {2: no, 3: yes}, Role.LEADER),
            (3, {2: no, 3: no}, Role.FOLLOWER),
            (4, {2: yes}, Role.CANDIDATE),
            (4, {2: yes, 3: yes}, Role.LEADER),
            (4, {2: no, 3: no}, Role.FOLLOWER),
            (5, {2: yes}, Role.CANDIDATE),
            (5, {2: yes, 3: yes}, Role.LEADER),
            (5, {2: no, 3: no, 4: yes}, Role.CANDIDATE),
            (5, {2: no, 3: no, 4: yes, 5: yes}, Role.LEADER),
            (5, {2: no, 3: no, 4: no}, Role.FOLLOWER),
        ):
            node = Node(1, configuration(range(1, count + 1)))
            node.become_candidate() if count > 1 else node.become_leader()
            for voter, granted in votes.items():
                node.respond(voter, RequestVoteResponse(1, granted))
            self.assertIs(node.raft.role, role, (count, votes))
            self.assertEqual(node.raft.term, 1)

    def test_5_2_a_server_votes_for_one_candidate_in_a_term_first_come_first_served(
        self,
    ) -> None:
        for voted_for, candidate, granted in (
            (NOBODY, 1, True),
            (NOBODY, 3, True),
            (1, 1, True),
            (3, 3, True),
            (1, 3, False),
            (3, 1, False),
        ):
            node = node_with(term=2, voted_for=voted_for)
            answer = node.answer(candidate, RequestVote(2, 0, 0))
            self.assertEqual(answer, RequestVoteResponse(2, granted), (voted_for, candidate))
            kept = candidate if granted else voted_for
            self.assertEqual(node.disk.hard_state, HardState(2, kept))

    def test_5_2_at_most_one_leader_in_a_term(self) -> None:
        # Two candidates of one term in five, every way to divide the other votes.
        for choices in range(8):
            voters = [Node(v, FIVE, disk=Disk((), HardState(1))) for v in (3, 4, 5)]
            leaders = 0
            candidates = {c: Node(c, FIVE, disk=Disk((), HardState(1))) for c in (1, 2)}
            for candidate in candidates.values():
                candidate.become_candidate()
            for i, voter in enumerate(voters):
                first = 1 + (choices >> i & 1)
                for c in (first, 3 - first):
                    answer = voter.answer(c, RequestVote(2, 0, 0))
                    candidates[c].respond(voter.id, answer)
            leaders = sum(c.raft.role is Role.LEADER for c in candidates.values())
            self.assertEqual(leaders, 1)

    def test_5_2_a_candidate_recognises_the_leader_of_its_term_or_a_later_one(self) -> None:
        for term in (1, 2):
            for request in (Heartbeat(term, 0, 0), AppendEntries(term, 0, 0, 0, ())):
                node = in_role(Role.CANDIDATE)
                node.answer(3, request)
                self.assertIs(node.raft.role, Role.FOLLOWER)
                self.assertEqual((node.raft.term, node.raft.leader_id), (term, 3))

    def test_5_2_a_candidate_stays_one_on_a_message_of_an_earlier_term(self) -> None:
        for request in (Heartbeat(0, 0, 0), AppendEntries(0, 0, 0, 0, ())):
            node = in_role(Role.CANDIDATE)
            self.assertEqual(node.answer(3, request).term, 1)
            self.assertIs(node.raft.role, Role.CANDIDATE)

    def test_5_2_a_split_vote_times_out_and_is_tried_again_in_a_new_term(self) -> None:
        node = in_role(Role.CANDIDATE)
        node.respond(2, RequestVoteResponse(1, False))
        node.become_candidate()
        self.assertEqual(node.disk.hard_state, HardState(2, 1))
        node.respond(2, RequestVoteResponse(2, True))
        self.assertIs(node.raft.role, Role.LEADER)

    def test_5_2_election_timeouts_are_spread_at_random(self) -> None:
        rng = random.Random(1)
        drawn = []
        for _ in range(500):
            node = Node(1, THREE, rng=rng)
            drawn.append(node.raft.next_deadline - node.time.now)
        self.assertTrue(all(ELECTION_S <= d < 2 * ELECTION_S for d in drawn))
        tenths = {int((d / ELECTION_S - 1) * 10) for d in drawn}
        self.assertEqual(tenths, set(range(10)))
        # Each campaign draws anew.
        node.time_out()
        first = node.raft.next_deadline - node.time.now
        node.time_out()
        self.assertNotAlmostEqual(node.raft.next_deadline - node.time.now, first)

    def test_5_2_split_votes_are_rare_and_resolved(self) -> None:
        for seed in range(20):
            cluster = Cluster(FIVE, seed=seed)
            cluster.run(6 * ELECTION_S)
            leader = cluster.leader()
            self.assertTrue(all(n.raft.leader_id == leader.id for n in cluster.running()))

    def test_5_2_two_leaders_of_one_term_stop_the_node(self) -> None:
        leader = leader_of(3)
        for request in (Heartbeat(1, 0, 0), AppendEntries(1, 0, 0, 0, ())):
            with self.assertRaises(InvariantViolated):
                leader.receive(2, request)


class Section53(SynchronousTestCase):
    """Log replication."""

    def test_5_3_a_leader_appends_and_sends_to_all_in_parallel(self) -> None:
        leader = leader_of(3)
        for follower in (2, 3):
            leader.acknowledge(follower, 1)
        leader.take()
        self.assertEqual(leader.propose(b"a", b"b"), (1, 2))
        sent = leader.take()
        for follower in (2, 3):
            (request,) = appends_in(sent, follower)
            self.assertEqual((request.prev_log_index, request.prev_log_term), (1, 1))
            self.assertEqual([e.data for e in request.entries], [b"a", b"b"])
            self.assertEqual([(e.index, e.term) for e in request.entries], [(2, 1), (3, 1)])

    def test_5_3_only_a_leader_appends(self) -> None:
        for role in (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE):
            node = in_role(role)
            with self.assertRaises(NotLeader):
                node.propose(b"x")
            self.assertEqual(node.raft.log.last_index, 0)

    def test_5_3_an_entry_is_committed_once_a_majority_holds_it(self) -> None:
        for count, acknowledging, committed in (
            (1, (), True),
            (2, (), False),
            (2, (2,), True),
            (3, (), False),
            (3, (2,), True),
            (3, (3,), True),
            (4, (2,), False),
            (4, (2, 3), True),
            (5, (2,), False),
            (5, (4, 5), True),
        ):
            leader = leader_of(count)
            leader.propose(b"x")
            leader.flush()
            for follower in acknowledging:
                leader.acknowledge(follower, 2)
            commit_index = leader.raft.commit_index
            self.assertEqual(commit_index == 2, committed, (count, acknowledging))

    def test_5_3_learners_hold_entries_and_count_for_nothing(self) -> None:
        base = configuration([1, 2, 3], learners=[4, 5])
        leader = Node(1, base)
        leader.become_leader()
        for learner in (4, 5):
            leader.acknowledge(learner, 1)
        self.assertEqual(leader.raft.commit_index, 0)
        leader.acknowledge(2, 1)
        self.assertEqual(leader.raft.commit_index, 1)

    def test_5_3_committing_an_entry_commits_all_that_precede_it(self) -> None:
        for terms in ((), (1,), (1, 2), (2,), (2, 2, 3)):
            leader = leader_of(3, terms, term=3)
            leader.propose(b"x")
            leader.flush()
            leader.acknowledge(2, len(terms) + 2)
            leader.collect()
            self.assertEqual(terms_of(list(leader.to_apply)), [*terms, 4, 4])
            self.assertEqual([e.index for e in leader.to_apply], list(range(1, len(terms) + 3)))

    def test_5_3_followers_learn_the_commit_index_and_apply_in_order(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        for data in (b"a", b"b", b"c"):
            leader.propose(data)
        cluster.run(HEARTBEAT_S)
        for node in cluster.running():
            self.assertEqual([e.data for e in node.applied], [b"", b"a", b"b", b"c"])

    def test_5_3_the_next_append_entries_carries_the_commit_index(self) -> None:
        leader = leader_of(3)
        for follower in (2, 3):
            leader.acknowledge(follower, 1)
        leader.propose(b"x")
        self.assertEqual([a.leader_commit for a in appends_in(leader.take(), 2)], [1])

    def test_5_3_without_entries_to_send_the_commit_index_follows_at_once(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.acknowledge(3, 1)
        leader.take()
        self.assertLess(leader.raft.next_deadline, leader.time.now + HEARTBEAT_S / 10)
        leader.time.now = leader.raft.next_deadline
        leader.tick()
        sent = leader.take()
        self.assertEqual([h.leader_commit for h in heartbeats_in(sent)], [1, 1])
        self.assertAlmostEqual(leader.raft.next_deadline, leader.time.now + HEARTBEAT_S, 2)

    def test_5_3_the_consistency_check(self) -> None:
        # The follower has the terms (1, 2).
        for previous, success, match in (
            ((0, 0), True, 0),
            ((1, 1), True, 1),
            ((2, 2), True, 2),
            ((2, 3), False, 2),
            ((2, 1), False, 2),
            ((3, 3), False, 3),
        ):
            node = node_with((1, 2), term=2)
            answer = node.answer(1, AppendEntries(3, *previous, 0, ()))
            assert isinstance(answer, AppendEntriesResponse)
            self.assertEqual((answer.success, answer.match_index), (success, match), previous)
            self.assertEqual(terms_of(node.raft.log), [1, 2])

    def test_5_3_a_conflicting_suffix_is_deleted_and_only_that(self) -> None:
        # The follower has (1, 2, 2); entries are terms from prev_log_index + 1 on.
        for previous, entries, result in (
            (0, (1,), (1, 2, 2)),
            (0, (1, 2), (1, 2, 2)),
            (0, (1, 2, 2, 3), (1, 2, 2, 3)),
            (0, (1, 3), (1, 3)),
            (0, (3,), (3,)),
            (1, (2,), (1, 2, 2)),
            (1, (3, 3), (1, 3, 3)),
            (2, (3,), (1, 2, 3)),
            (3, (3, 4), (1, 2, 2, 3, 4)),
            (3, (), (1, 2, 2)),
        ):
            node = node_with((1, 2, 2), term=2)
            log = log_of((1, 2, 2)[:previous] + entries)
            term = (0, 1, 2, 2)[previous]
            request = AppendEntries(4, previous, term, 0, tuple(log[previous:]))
            node.answer(1, request)
            self.assertEqual(terms_of(node.raft.log), list(result), (previous, entries))
            self.assertEqual(terms_of(node.disk.entries), list(result))
            # Written is only what was new.
            self.assertEqual(node.raft.log.persisted_index, len(result))

    #: Figure 7: the leader of term 8, and the followers that there may be.
    LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    FIGURE_7 = (
        ("a", (1, 1, 1, 4, 4, 5, 5, 6, 6)),
        ("b", (1, 1, 1, 4)),
        ("c", (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6)),
        ("d", (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7)),
        ("e", (1, 1, 1, 4, 4, 4, 4)),
        ("f", (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3)),
    )

    def test_5_3_figure_7_the_leader_makes_every_log_its_own(self) -> None:
        for name, terms in self.FIGURE_7:
            cluster = Cluster(
                THREE,
                disks={
                    1: Disk(log_of(self.LEADER), HardState(7)),
                    2: Disk(log_of(self.LEADER), HardState(7)),
                    3: Disk(log_of(terms), HardState(7)),
                },
            )
            # 3 may have the longer log, and must not vote; 2 elects 1.
            leader = cluster.elect(1)
            leader.propose(b"x")
            cluster.run(HEARTBEAT_S)
            self.assertEqual(terms_of(leader.raft.log), [*self.LEADER, 8, 8], name)
            for node in cluster.running():
                self.assertEqual(node.disk.entries, leader.disk.entries, name)
                self.assertEqual(node.applied, leader.disk.entries, name)

    def test_5_3_one_refusal_skips_a_whole_conflicting_term(self) -> None:
        # Without the hint, next_index would go back one by one: 1,000 round trips.
        leader = Node(1, THREE, disk=Disk(log_of([1] + [3] * 1000), HardState(3)))
        follower = Node(2, THREE, disk=Disk(log_of([1] + [2] * 1000), HardState(3)))
        leader.become_leader()
        requests = 0
        while follower.disk.entries != leader.disk.entries:
            (request,) = appends_in(leader.take(), 2)
            requests += 1
            leader.respond(2, follower.answer(1, request))
        self.assertEqual(requests, 2)

    def test_5_3_a_refusal_moves_next_index_back_and_a_match_moves_it_on(self) -> None:
        leader = Node(1, THREE, disk=Disk(log_of([1, 1, 2, 2, 2]), HardState(2)))
        leader.become_leader()
        (probe,) = appends_in(leader.take(), 2)
        self.assertEqual((probe.prev_log_index, probe.prev_log_term), (5, 2))
        # The follower has (1, 1, 1, 1): nothing of term 2.
        leader.respond(2, AppendEntriesResponse(3, False, 5, 4, 1))
        (probe,) = appends_in(leader.take(), 2)
        self.assertEqual((probe.prev_log_index, probe.prev_log_term), (2, 1))
        self.assertEqual([e.index for e in probe.entries], [3, 4, 5, 6])
        leader.acknowledge(2, 6)
        leader.propose(b"x")
        (request,) = appends_in(leader.take(), 2)
        self.assertEqual(request.prev_log_index, 6)

    def test_5_3_a_refusal_of_another_request_changes_nothing(self) -> None:
        leader = Node(1, THREE, disk=Disk(log_of([1, 1, 2, 2, 2]), HardState(2)))
        leader.become_leader()
        leader.respond(2, AppendEntriesResponse(3, False, 5, 4, 1))
        leader.take()
        assert leader.raft.leadership is not None
        progress = leader.raft.leadership.progress[2]
        for refused in (5, 4, 3, 1):
            leader.respond(2, AppendEntriesResponse(3, False, refused, 0, 0))
            self.assertEqual((progress.next_index, appends_in(leader.take(), 2)), (3, []))

    def test_5_3_a_leader_never_overwrites_or_deletes_entries_of_its_own(self) -> None:
        leader = leader_of(3, (1, 2), term=2)
        before = leader.raft.log.entries(1, 3)
        leader.respond(2, AppendEntriesResponse(3, False, 2, 0, 0))
        leader.answer(2, AppendEntries(2, 0, 0, 0, tuple(log_of([2]))))
        leader.propose(b"x")
        self.assertEqual(leader.raft.log.entries(1, 3), before)

    def test_5_3_a_request_without_answer_is_sent_again_indefinitely(self) -> None:
        leader = leader_of(3)
        for follower in (2, 3):
            leader.acknowledge(follower, 1)
        leader.propose(b"x")
        for _ in range(20):
            (request,) = appends_in(leader.take(), 2)
            self.assertEqual(request.entries[-1].data, b"x")
            leader.unreachable(2)
            self.assertEqual(appends_in(leader.take(), 2), [], "it waits for a sign of life")
            leader.time.now += HEARTBEAT_S
            leader.tick()
            self.assertEqual(len(heartbeats_in(leader.take(), 2)), 1)
            leader.respond(2, HeartbeatResponse(1, 0))
            leader.respond(3, HeartbeatResponse(1, 0))

    def test_5_3_a_slow_follower_does_not_hold_up_the_rest(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.isolate(3)
        for _ in range(10):
            leader.propose(b"x")
            cluster.settle()
        self.assertEqual(leader.raft.commit_index, 11)
        self.assertEqual(len(leader.applied), 11)


class Section54(SynchronousTestCase):
    """Safety."""

    def test_5_4_1_a_vote_is_refused_to_a_log_that_is_less_up_to_date(self) -> None:
        # The voter has (1, 2, 2).
        for last_index, last_term, granted in (
            (3, 2, True),
            (4, 2, True),
            (1, 3, True),
            (2, 2, False),
            (9, 1, False),
            (0, 0, False),
        ):
            node = node_with((1, 2, 2), term=2)
            answer = node.answer(1, RequestVote(3, last_index, last_term))
            self.assertEqual(answer, RequestVoteResponse(3, granted), (last_index, last_term))
            self.assertEqual(node.disk.hard_state, HardState(3, 1 if granted else NOBODY))
            node = node_with((1, 2, 2), term=2)
            answer = node.answer(1, PreVote(3, last_index, last_term))
            self.assertEqual(answer, PreVoteResponse(3 if granted else 2, granted))

    def test_5_4_1_a_candidate_tells_how_its_log_ends(self) -> None:
        for terms in ((), (1,), (1, 1, 2), (2, 3)):
            node = node_with(terms, term=3)
            node.become_candidate()
            asked = [o.message for o in node.take() if isinstance(o.message, RequestVote)]
            last_term = terms[-1] if terms else 0
            self.assertEqual(asked, [RequestVote(4, len(terms), last_term)] * 2)

    def test_5_4_2_figure_8_an_old_entry_is_not_committed_by_counting(self) -> None:
        """
        S1 leads term 2 and replicates 2 to S2 only; S5 leads term 3; S1 leads
        term 4, replicates the entry of term 2 to S3 as well: a majority holds
        it, and S5 can still be elected and overwrite it.
        """
        disks = {
            1: Disk(log_of([1, 2]), HardState(3)),
            2: Disk(log_of([1, 2]), HardState(3)),
            3: Disk(log_of([1]), HardState(3)),
            4: Disk(log_of([1]), HardState(3)),
            5: Disk(log_of([1, 3]), HardState(3)),
        }
        cluster = Cluster(FIVE, disks=disks)
        cluster.isolate(5)
        s1 = cluster[1]
        s1.become_leader()
        self.assertEqual(s1.raft.term, 4)
        # (c): only the entry of term 2 has reached S3, the one of term 4 has not.
        s1.respond(2, AppendEntriesResponse(4, True, 2))
        s1.respond(3, AppendEntriesResponse(4, True, 2))
        s1.collect()
        self.assertEqual((s1.raft.commit_index, list(s1.to_apply)), (0, []))
        # (e): with the entry of term 4 on a majority, all of it is committed.
        for member_id in (2, 3):
            entries = tuple(s1.disk.entries[1:])
            cluster[member_id].answer(1, AppendEntries(4, 1, 1, 0, entries))
            s1.respond(member_id, AppendEntriesResponse(4, True, 3))
        self.assertEqual(s1.raft.commit_index, 3)
        # Now S5 cannot be elected any more.
        cluster.crash(1)
        cluster.heal()
        cluster.run(10 * ELECTION_S)
        self.assertIn(cluster.leader().id, (2, 3))

    def test_5_4_2_figure_8_before_that_it_may_be_overwritten(self) -> None:
        disks = {
            1: Disk(log_of([1, 2]), HardState(3)),
            2: Disk(log_of([1, 2]), HardState(3)),
            3: Disk(log_of([1, 2]), HardState(3)),
            4: Disk(log_of([1]), HardState(3)),
            5: Disk(log_of([1, 3]), HardState(3)),
        }
        cluster = Cluster(FIVE, disks=disks)
        cluster.elect(5)
        cluster.run(HEARTBEAT_S)
        for node in cluster.running():
            self.assertEqual(terms_of(node.applied), [1, 3, 4])

    def test_5_4_2_a_new_leader_commits_what_it_inherits_by_an_entry_of_its_own(self) -> None:
        cluster = Cluster(
            THREE, disks={i: Disk(log_of([1, 1]), HardState(1)) for i in (1, 2, 3)}
        )
        leader = cluster.elect(2)
        self.assertEqual(terms_of(leader.raft.log), [1, 1, 2])
        self.assertEqual(leader.raft.commit_index, 3)

    def test_5_4_3_a_committed_entry_is_in_the_log_of_every_later_leader(self) -> None:
        # Every minority may be missing when it is committed; any majority elects.
        for away in ((4, 5), (2, 3), (3, 4), (2, 5)):
            cluster = of_voters(5)
            leader = cluster.elect(1)
            cluster.isolate(*away)
            leader.propose(b"committed")
            cluster.settle()
            self.assertEqual(leader.raft.commit_index, 2)
            cluster.heal()
            cluster.crash(1)
            cluster.run(10 * ELECTION_S)
            self.assertNotIn(cluster.leader().id, away)
            for node in cluster.running():
                self.assertIn(b"committed", [e.data for e in node.applied])

    def test_5_4_3_an_entry_that_was_not_committed_may_be_replaced(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.isolate(1)
        leader.propose(b"alone")
        cluster.settle()
        cluster.elect(2)
        cluster[2].propose(b"together")
        cluster.settle()
        cluster.heal()
        cluster.run(2 * ELECTION_S)
        for node in cluster.running():
            self.assertEqual([e.data for e in node.applied], [b"", b"", b"together"])

    def test_5_5_a_follower_that_has_crashed_goes_on_where_its_disk_ends(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        leader.propose(b"a")
        cluster.settle()
        cluster.crash(3)
        leader.propose(b"b")
        cluster.run(ELECTION_S)
        cluster.restart(3)
        # What its last write knew to be committed, it knows without being told.
        self.assertEqual(cluster[3].raft.commit_index, cluster[3].disk.commit_index)
        self.assertEqual(cluster[3].applied, [])
        cluster.run(ELECTION_S)
        self.assertEqual([e.data for e in cluster[3].applied], [b"", b"a", b"b"])
        self.assertEqual(cluster.leader().raft.term, 1)

    def test_5_5_requests_are_idempotent(self) -> None:
        node = node_with((1,), term=1)
        entries = tuple(log_of([1, 1, 1])[1:])
        for _ in range(3):
            answer = node.answer(1, AppendEntries(1, 1, 1, 2, entries))
            self.assertEqual(answer, AppendEntriesResponse(1, True, 3))
            self.assertEqual(terms_of(node.disk.entries), [1, 1, 1])
            self.assertEqual(node.raft.commit_index, 2)
        for _ in range(3):
            node.time.now += 2 * ELECTION_S
            answer = node.answer(3, RequestVote(2, 3, 1))
            self.assertEqual(answer, RequestVoteResponse(2, True))


class Section6(SynchronousTestCase):
    """Cluster membership changes; chapter 4 of the thesis."""

    def test_6_a_configuration_is_used_as_soon_as_it_is_in_the_log(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.add_learner(4)
        self.assertEqual(leader.raft.configuration, configuration([1, 2, 3], [4]))
        self.assertEqual(leader.raft.commit_index, 1)
        leader.flush()
        leader.acknowledge(2, 2)
        leader.acknowledge(4, 2)
        leader.promote(4)
        # From now on a majority is three of four.
        leader.flush()
        leader.acknowledge(2, 3)
        self.assertEqual(leader.raft.commit_index, 2)
        leader.acknowledge(4, 3)
        self.assertEqual(leader.raft.commit_index, 3)

    def test_6_a_follower_uses_it_too_before_it_is_committed(self) -> None:
        node = Node(2, configuration([1, 2]))
        data = encode_configuration(THREE)
        entry = Entry(1, 1, EntryKind.CONFIGURATION, 0, data)
        node.answer(1, AppendEntries(1, 0, 0, 0, (entry,)))
        self.assertEqual((node.raft.commit_index, node.raft.configuration), (0, THREE))
        node.become_candidate()
        self.assertIn(3, [o.to for o in node.take() if isinstance(o.message, RequestVote)])

    def test_6_a_restarted_node_has_the_last_configuration_of_its_log(self) -> None:
        data = encode_configuration(FIVE)
        entry = Entry(2, 1, EntryKind.CONFIGURATION, 0, data)
        node = Node(1, THREE, disk=Disk([*log_of([1]), entry], HardState(1)))
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (FIVE, 2))

    def test_6_new_servers_join_without_a_vote_and_catch_up(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        leader.propose(*[b"x"] * 100)
        cluster.settle()
        cluster.add(4)
        leader.add_learner(4)
        cluster.run(HEARTBEAT_S)
        self.assertEqual(cluster[4].disk.entries, leader.disk.entries)
        cluster.run(5 * ELECTION_S)
        self.assertIs(cluster[4].raft.role, Role.FOLLOWER)
        self.assertEqual(cluster[4].raft.term, 1)
        leader.promote(4)
        cluster.run(HEARTBEAT_S)
        self.assertTrue(cluster[4].raft.configuration.is_voter(4))
        cluster.crash(1)
        cluster.crash(2)
        cluster.run(5 * ELECTION_S)
        self.assertEqual(cluster.leaders(), [], "two of four are no majority")
        cluster.restart(2)
        cluster.run(5 * ELECTION_S)
        self.assertIn(cluster.leader().id, (2, 3, 4))

    def test_6_servers_disregard_a_vote_request_while_they_hear_a_leader(self) -> None:
        node = node_with(term=1)
        node.answer(1, Heartbeat(1, 0, 0))
        node.time.now += ELECTION_S - 0.001
        self.assertEqual(node.answer(3, RequestVote(9, 9, 9)), RequestVoteResponse(1, False))
        self.assertEqual(node.raft.hard_state, HardState(1, NOBODY))
        node.time.now += 0.002
        self.assertEqual(node.answer(3, RequestVote(9, 9, 9)), RequestVoteResponse(9, True))

    def test_6_a_leader_disregards_a_vote_request(self) -> None:
        leader = leader_of(3)
        self.assertEqual(leader.answer(3, RequestVote(9, 9, 9)), RequestVoteResponse(1, False))
        self.assertEqual((leader.raft.role, leader.raft.term), (Role.LEADER, 1))

    def test_t4_1_changes_are_made_one_server_at_a_time(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.add_learner(4)
        with self.assertRaises(ChangeInProgress):
            leader.add_learner(5)
        leader.flush()
        leader.acknowledge(2, 2)
        leader.add_learner(5)

    def test_t4_1_a_request_for_what_is_already_so_is_answered_by_it(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        index = leader.add_learner(4)
        self.assertEqual(leader.add_learner(4), index)
        self.assertEqual(leader.add_learner(2), index)
        self.assertEqual(leader.promote(2), index)
        self.assertEqual(leader.raft.log.last_index, index)

    def test_t4_2_1_a_learner_far_behind_is_not_given_a_vote(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.add_learner(4)
        leader.propose(*[b"x"] * (MAX_PROMOTION_LAG_ENTRIES + 10))
        leader.flush()
        last = leader.raft.log.last_index
        leader.acknowledge(2, last)
        leader.acknowledge(4, last - MAX_PROMOTION_LAG_ENTRIES - 1)
        with self.assertRaises(NotCaughtUp):
            leader.promote(4)
        self.assertEqual(leader.raft.log.last_index, last)
        leader.acknowledge(4, last - MAX_PROMOTION_LAG_ENTRIES)
        self.assertEqual(leader.promote(4), last + 1)

    def test_t4_2_3_a_transfer_is_no_disturbance(self) -> None:
        node = node_with(term=1)
        node.answer(1, Heartbeat(1, 0, 0))
        answer = node.answer(3, RequestVote(2, 0, 0, transfer=True))
        self.assertEqual(answer, RequestVoteResponse(2, True))

    def test_t4_2_3_a_transfer_lifts_no_other_rule(self) -> None:
        node = node_with((1, 1), term=1, voted_for=1)
        answer = node.answer(3, RequestVote(1, 9, 9, transfer=True))
        self.assertEqual(answer, RequestVoteResponse(1, False))
        answer = node.answer(3, RequestVote(2, 1, 1, transfer=True))
        self.assertEqual(answer, RequestVoteResponse(2, False))


class Section8(SynchronousTestCase):
    """Client interaction; sections 6.2 and 6.4 of the thesis."""

    def test_8_a_leader_commits_a_blank_entry_at_the_start_of_its_term(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        entry = leader.raft.log.entries(3, 3)[0]
        self.assertEqual((entry.kind, entry.term, entry.data), (EntryKind.NOOP, 2, b""))

    def test_8_a_read_waits_for_heartbeats_with_a_majority(self) -> None:
        leader = leader_of(5)
        for follower in (2, 3):
            leader.acknowledge(follower, 1)
        leader.take()
        leader.read(7)
        sent = leader.take()
        self.assertEqual(sorted(o.to for o in sent), [2, 3, 4, 5])
        (number,) = {h.round for h in heartbeats_in(sent)}
        leader.respond(2, HeartbeatResponse(1, number))
        leader.respond(2, HeartbeatResponse(1, number))
        leader.collect()
        self.assertEqual(leader.reads, [])
        leader.respond(5, HeartbeatResponse(1, number))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1)])

    def test_8_only_a_leader_answers_reads(self) -> None:
        for role in (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE):
            with self.assertRaises(NotLeader):
                in_role(role).read(7)

    def test_t6_2_a_leader_steps_down_without_a_majority_for_an_election_timeout(self) -> None:
        leader = leader_of(3)
        leader.time.now += ELECTION_S - 0.001
        leader.tick()
        self.assertIs(leader.raft.role, Role.LEADER)
        leader.time.now += 0.002
        leader.tick()
        self.assertEqual((leader.raft.role, leader.raft.leader_id), (Role.FOLLOWER, NOBODY))
        with self.assertRaises(NotLeader):
            leader.propose(b"x")

    def test_t6_2_learners_are_no_majority(self) -> None:
        leader = Node(1, configuration([1, 2, 3], learners=[4, 5]))
        leader.become_leader()
        for _ in range(7):
            leader.time.now += HEARTBEAT_S
            for learner in (4, 5):
                leader.respond(learner, HeartbeatResponse(1, 0))
            leader.tick()
        self.assertIs(leader.raft.role, Role.FOLLOWER)

    def test_t6_4_a_read_sees_what_was_committed_when_it_arrived(self) -> None:
        leader = leader_of(3)
        leader.propose(b"x")
        leader.flush()
        leader.acknowledge(2, 2)
        leader.take()
        leader.read(7)
        leader.propose(b"y")
        number = round_in(leader.take_flushed())
        leader.acknowledge(2, 3)
        leader.respond(2, HeartbeatResponse(1, number))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 2)])

    def test_t6_4_one_round_serves_all_reads_that_wait(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.take()
        for context in range(100):
            leader.read(context)
        sent = leader.take()
        self.assertEqual(len(sent), 2)
        # Those that come while it is under way share the next.
        for context in range(100, 200):
            leader.read(context)
        self.assertEqual(leader.take(), [])
        leader.respond(2, HeartbeatResponse(1, round_in(sent)))
        sent = leader.take()
        self.assertEqual(len(sent), 2)
        self.assertEqual([c for c, _ in leader.reads], list(range(100)))
        leader.respond(2, HeartbeatResponse(1, round_in(sent)))
        leader.collect()
        self.assertEqual([c for c, _ in leader.reads], list(range(200)))

    def test_t6_4_a_lost_round_is_repeated_by_the_next_heartbeat(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.run(ELECTION_S)
        leader.read(7)
        cluster.collect(leader)
        for queue in cluster.waiting():
            cluster.lose(queue.popleft())
        self.assertEqual(leader.reads, [])
        cluster.run(HEARTBEAT_S + 0.01)
        self.assertEqual([c for c, _ in leader.reads], [7])

    def test_t6_4_a_single_voter_needs_no_round(self) -> None:
        leader = Node(1, configuration([1]))
        leader.become_leader()
        leader.read(7)
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1)])


class Section96(SynchronousTestCase):
    """Thesis 9.6: PreVote."""

    def test_t9_6_a_pre_vote_changes_no_term_and_no_vote(self) -> None:
        voter = node_with(term=1)
        self.assertEqual(voter.answer(1, PreVote(2, 0, 0)), PreVoteResponse(2, True))
        self.assertEqual(voter.answer(3, PreVote(2, 0, 0)), PreVoteResponse(2, True))
        self.assertEqual(voter.raft.hard_state, HardState(1, NOBODY))
        self.assertEqual(list(voter.disk.queue), [])
        node = node_with(term=1)
        for _ in range(10):
            node.time_out()
            self.assertIs(node.raft.role, Role.PRE_CANDIDATE)
        self.assertEqual(node.raft.hard_state, HardState(1, NOBODY))

    def test_t9_6_only_a_majority_of_pre_votes_begins_an_election(self) -> None:
        for count, granted, refused, role in (
            (3, (), (), Role.PRE_CANDIDATE),
            (3, (2,), (), Role.CANDIDATE),
            (3, (), (2,), Role.PRE_CANDIDATE),
            (3, (), (2, 3), Role.FOLLOWER),
            (5, (2,), (), Role.PRE_CANDIDATE),
            (5, (2,), (3, 4), Role.PRE_CANDIDATE),
            (5, (2, 3), (), Role.CANDIDATE),
            (5, (2,), (3, 4, 5), Role.FOLLOWER),
        ):
            node = Node(1, configuration(range(1, count + 1)))
            node.time_out()
            for voter in granted:
                node.respond(voter, PreVoteResponse(1, True))
            for voter in refused:
                node.respond(voter, PreVoteResponse(0, False))
            self.assertIs(node.raft.role, role, (count, granted, refused))
            self.assertEqual(node.raft.term, int(role is Role.CANDIDATE))

    def test_t9_6_a_rejoining_server_disturbs_nobody(self) -> None:
        cluster = of_voters(3)
        cluster.elect(1)
        cluster.run(ELECTION_S)
        cluster.isolate(3)
        cluster.run(30 * ELECTION_S)
        self.assertIs(cluster[3].raft.role, Role.PRE_CANDIDATE)
        cluster.heal()
        cluster.run(3 * ELECTION_S)
        self.assertEqual([n.raft.term for n in cluster.running()], [1, 1, 1])
        self.assertEqual(cluster.leader().id, 1)

    def test_t9_6_a_pre_vote_of_a_stale_term_tells_the_term(self) -> None:
        node = node_with(term=5)
        self.assertEqual(node.answer(1, PreVote(3, 9, 9)), PreVoteResponse(5, False))


class Section1021(SynchronousTestCase):
    """Thesis 10.2.1: writing to disk in parallel, pipelining; 3.8: persisted state."""

    def test_t3_8_no_answer_leaves_before_what_it_promises_is_durable(self) -> None:
        entry = log_of([1])[0]
        for request in (
            RequestVote(2, 0, 0),
            AppendEntries(2, 0, 0, 0, (entry,)),
            AppendEntries(2, 0, 0, 0, ()),
            Heartbeat(2, 0, 0),
        ):
            node = node_with(term=1)
            node.receive(1, request)
            self.assertEqual(node.take(), [], request)
            self.assertEqual(len(node.take_flushed()), 1, request)
            self.assertEqual(node.disk.hard_state.term, 2)

    def test_t10_2_1_the_leader_sends_while_its_own_disk_is_writing(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.take()
        leader.propose(b"x")
        sent = leader.take()
        self.assertEqual(len(appends_in(sent, 2)), 1)
        self.assertEqual(len(leader.disk.queue), 1)

    def test_t10_2_1_an_entry_may_be_committed_before_the_leader_has_written_it(self) -> None:
        leader = leader_of(3)
        leader.propose(b"x")
        leader.collect()
        leader.acknowledge(2, 2)
        self.assertEqual(leader.raft.commit_index, 1)
        leader.acknowledge(3, 2)
        self.assertEqual(leader.raft.commit_index, 2)

    def test_t10_2_1_requests_are_pipelined_up_to_a_bound(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.take()
        for i in range(MAX_APPENDS_IN_FLIGHT + 5):
            leader.propose(b"%d" % i)
            leader.collect()
        requests = appends_in(leader.take(), 2)
        self.assertEqual(len(requests), MAX_APPENDS_IN_FLIGHT)
        self.assertEqual(
            [r.prev_log_index for r in requests], list(range(1, MAX_APPENDS_IN_FLIGHT + 1))
        )
        # One answer makes room, and everything that waits goes at once.
        leader.acknowledge(2, 2)
        (request,) = appends_in(leader.take(), 2)
        self.assertEqual(len(request.entries), 5)

    def test_t10_2_1_a_lost_request_takes_the_pipeline_back_to_the_last_match(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.take()
        for data in (b"a", b"b", b"c"):
            leader.propose(data)
            leader.collect()
        leader.take()
        leader.acknowledge(2, 2)
        # b never arrived; c was refused for the lack of it.
        leader.respond(2, AppendEntriesResponse(1, False, 3, 2, 1))
        (request,) = appends_in(leader.take(), 2)
        self.assertEqual([e.data for e in request.entries], [b"b", b"c"])

    def test_t10_2_1_where_the_logs_agree_is_found_with_one_request_at_a_time(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        for _ in range(3):
            leader.propose(b"x")
            self.assertEqual(appends_in(leader.take(), 2), [], "the probe is unanswered")
        leader.respond(2, AppendEntriesResponse(2, False, 2, 0, 0))
        (request,) = appends_in(leader.take(), 2)
        self.assertEqual((request.prev_log_index, len(request.entries)), (0, 6))
