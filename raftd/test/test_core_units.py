"""
The small parts of the core, each by itself.

Its log and its configurations have modules of their own.
"""

from __future__ import annotations

import itertools
import math
import random
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from raftd.core import leader as leader_module
from raftd.core.election import Campaign
from raftd.core.invariants import Checker
from raftd.core.log import Log
from raftd.core.membership import Configuration
from raftd.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    PreVote,
    Request,
    RequestVote,
    RequestVoteResponse,
)
from raftd.core.quorum import has_quorum, quorum_value
from raftd.core.raft import Role
from raftd.core.reads import MAX_ROUNDS_REMEMBERED, ReadQueue
from raftd.errors import InvariantViolated, Overloaded
from raftd.test.core_clusters import Safety, of_voters
from raftd.test.cores import (
    ELECTION_S,
    HEARTBEAT_S,
    THREE,
    Disk,
    Node,
    appends_in,
    configuration,
    heartbeats_in,
    leader_of,
    log_of,
    terms_of,
)


class Quorums(SynchronousTestCase):
    def test_a_quorum_is_more_than_half_of_each_set(self) -> None:
        one, two = frozenset([1]), frozenset([1, 2])
        three, other = frozenset([1, 2, 3]), frozenset([3, 4, 5])
        for majorities, members, expected in (
            ([one], {1}, True),
            ([one], {2}, False),
            ([two], {1}, False),
            ([two], {1, 2}, True),
            ([three], {1, 3}, True),
            ([three], {1, 4, 5}, False),
            ([three, other], {1, 2, 4}, False),
            ([three, other], {1, 3, 4}, True),
            ([three, other], {1, 2, 4, 5}, True),
            ([frozenset[int]()], {1}, False),
            ([three, frozenset[int]()], {1, 2, 3}, False),
        ):
            self.assertIs(has_quorum(majorities, members), expected, (majorities, members))

    def test_the_value_of_a_quorum(self) -> None:
        for majorities, values, expected in (
            ([{1}], {1: 5}, 5),
            ([{1, 2}], {1: 5, 2: 3}, 3),
            ([{1, 2, 3}], {1: 5, 2: 3, 3: 4}, 4),
            ([{1, 2, 3, 4}], {1: 5, 2: 3, 3: 4, 4: 9}, 4),
            ([{1, 2, 3, 4, 5}], {1: 5, 2: 3, 3: 4, 4: 9, 5: 9}, 5),
            ([{1, 2, 3}], {1: 5, 2: 3, 3: 4, 4: 99}, 4),
            ([{1, 2, 3}, {3, 4, 5}], {1: 9, 2: 9, 3: 1, 4: 2, 5: 3}, 2),
            ([set()], {}, -1),
            ([{1}, set()], {1: 5}, -1),
        ):
            sets = [frozenset[int](s) for s in majorities]
            self.assertEqual(quorum_value(sets, values, -1), expected, (majorities, values))

    def test_it_is_the_greatest_value_that_a_quorum_has_reached(self) -> None:
        rng = random.Random(1)
        for _ in range(300):
            members = range(1, rng.randint(2, 8))
            sets = [
                frozenset(rng.sample(members, rng.randint(1, len(members))))
                for _ in range(rng.randint(1, 2))
            ]
            values = {m: rng.randint(0, 5) for m in members}
            reached = [
                v
                for v in range(6)
                if has_quorum(sets, {m for m, value in values.items() if value >= v})
            ]
            self.assertEqual(quorum_value(sets, values, 0), max(reached))

    def test_any_two_quorums_share_a_voter(self) -> None:
        majorities = THREE.majorities()
        sets = [
            set(s)
            for n in range(4)
            for s in itertools.combinations([1, 2, 3], n)
            if has_quorum(majorities, s)
        ]
        self.assertEqual(len(sets), 4)
        for a, b in itertools.product(sets, sets):
            self.assertTrue(a & b)


class Campaigns(SynchronousTestCase):
    def test_answers(self) -> None:
        majorities = THREE.majorities()
        for answers, won, lost in (
            ([], False, False),
            ([(1, True)], False, False),
            ([(1, True), (1, True)], False, False),
            ([(1, True), (2, True)], True, False),
            ([(1, True), (9, True)], False, False),
            ([(2, False)], False, False),
            ([(2, False), (2, False)], False, False),
            ([(2, False), (3, False)], False, True),
            ([(8, False), (9, False)], False, False),
            # A refusal may have been the answer to an earlier request ...
            ([(1, True), (2, False), (2, True)], True, False),
            # ... and what is granted stays granted.
            ([(1, True), (2, True), (2, False)], True, False),
        ):
            campaign = Campaign(1)
            for voter, granted in answers:
                campaign.record(voter, granted)
            result = campaign.won(majorities), campaign.lost(majorities)
            self.assertEqual(result, (won, lost), answers)

    def test_a_joint_campaign_is_lost_when_either_half_cannot_grant_it(self) -> None:
        majorities = configuration([1, 2, 3], outgoing=[1, 4, 5]).majorities()
        campaign = Campaign(1)
        for voter in (1, 2, 3):
            campaign.record(voter, True)
        self.assertEqual((campaign.won(majorities), campaign.lost(majorities)), (False, False))
        campaign.record(4, False)
        campaign.record(5, False)
        self.assertTrue(campaign.lost(majorities))


class Reads(SynchronousTestCase):
    def test_reads_share_the_next_round(self) -> None:
        reads = ReadQueue()
        self.assertFalse(reads.wants_round)
        reads.add(1, 10)
        reads.add(2, 11)
        self.assertTrue(reads.wants_round)
        reads.begin_round(0.0)
        reads.add(3, 12)
        self.assertFalse(reads.wants_round, "one round at a time")
        self.assertEqual(reads.confirm(0), [])
        self.assertEqual(reads.contexts(), [1, 2, 3])
        self.assertEqual(reads.confirm(1), [(1, 10), (2, 11)])
        self.assertEqual(reads.confirm(1), [])
        self.assertEqual(len(reads), 1)
        self.assertTrue(reads.wants_round)
        reads.begin_round(0.0)
        self.assertEqual((reads.round, reads.confirm(2), len(reads)), (2, [(3, 12)], 0))

    def test_a_round_begun_for_heartbeats_serves_what_waits(self) -> None:
        reads = ReadQueue()
        reads.add(1, 10)
        reads.begin_round(0.0)
        reads.add(2, 10)
        reads.begin_round(0.1)
        self.assertEqual(reads.confirm(2), [(1, 10), (2, 10)])

    def test_when_the_last_confirmed_round_began(self) -> None:
        reads = ReadQueue()
        self.assertEqual(reads.confirmed_at, -math.inf)
        for at in (1.0, 2.0, 3.0):
            reads.begin_round(at)
        reads.confirm(0)
        self.assertEqual(reads.confirmed_at, -math.inf)
        reads.confirm(2)
        self.assertEqual(reads.confirmed_at, 2.0)
        reads.confirm(1)
        self.assertEqual(reads.confirmed_at, 2.0)
        for at in range(10, 10 + 2 * MAX_ROUNDS_REMEMBERED):
            reads.begin_round(float(at))
        # Of rounds that were forgotten nothing is claimed.
        reads.confirm(10)
        self.assertEqual(reads.confirmed_at, 2.0)
        reads.confirm(reads.round)
        self.assertEqual(reads.confirmed_at, 9.0 + 2 * MAX_ROUNDS_REMEMBERED)

    def test_reads_are_bounded(self) -> None:
        with mock.patch.object(leader_module, "MAX_READS_WAITING", 3):
            leader = leader_of(3)
            for context in range(3):
                leader.read(context)
            with self.assertRaises(Overloaded):
                leader.read(3)
            (number,) = {h.round for h in heartbeats_in(leader.take())}
            leader.acknowledge(2, leader.raft.log.last_index)
            leader.respond(2, HeartbeatResponse(1, number))
            leader.collect()
            self.assertEqual([c for c, _ in leader.reads], [0, 1, 2])
            leader.read(3)


class LeaderBounds(SynchronousTestCase):
    def test_what_is_not_committed_is_bounded(self) -> None:
        with mock.patch.object(leader_module, "MAX_UNCOMMITTED_BYTES", 1000):
            leader = leader_of(3)
            while True:
                try:
                    leader.propose(bytes(300))
                except Overloaded:
                    break
            last = leader.raft.log.last_index
            self.assertLess(last, 6)
            leader.flush()
            with self.assertRaises(Overloaded):
                leader.propose(b"")
            leader.acknowledge(2, last)
            leader.collect()
            self.assertEqual(leader.propose(b"x"), (1, last + 1))

    def test_an_append_entries_is_bounded(self) -> None:
        with (
            mock.patch.object(leader_module, "MAX_ENTRIES_PER_APPEND", 4),
            mock.patch.object(leader_module, "MAX_BYTES_PER_APPEND", 100),
        ):
            leader = leader_of(3)
            leader.acknowledge(2, 1)
            leader.take()
            leader.propose(*[b"x"] * 6, bytes(90), bytes(20), bytes(500), b"x")
            sizes = [[len(e.data) for e in a.entries] for a in appends_in(leader.take(), 2)]
            self.assertEqual(sizes, [[1, 1, 1, 1], [1, 1, 90], [20], [500], [1]])

    def test_time_in_the_log_never_goes_back(self) -> None:
        first = [Entry(1, 1, 1, 5_000, b"")]
        leader = Node(1, THREE, disk=Disk(first, HardState(1)))
        leader.become_leader()
        leader.time.now += 1.25
        leader.propose(b"x")
        times = [e.time_ms for e in leader.raft.log.entries(1, 3)]
        self.assertEqual(times, [5_000, 5_000, 6_250])

    def test_answers_of_strangers_and_of_the_impossible_change_nothing(self) -> None:
        leader = leader_of(3)
        for sender, answer in (
            (9, AppendEntriesResponse(1, True, 1)),
            (2, AppendEntriesResponse(1, True, 2)),
            (9, HeartbeatResponse(1, 0)),
        ):
            leader.respond(sender, answer)
            self.assertEqual(leader.raft.commit_index, 0)
        leader.unreachable(9)
        assert leader.raft.leadership is not None
        self.assertEqual(sorted(leader.raft.leadership.progress), [2, 3])

    def test_a_round_that_was_never_begun_confirms_nothing_to_come(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.respond(2, HeartbeatResponse(1, 50))
        leader.read(7)
        leader.collect()
        self.assertEqual(leader.reads, [])

    def test_a_commit_notice_goes_to_those_who_lack_it(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.take()
        leader.time.now = leader.raft.next_deadline
        leader.tick()
        self.assertEqual([o.to for o in leader.take()], [2])
        self.assertGreater(leader.raft.next_deadline, leader.time.now + HEARTBEAT_S / 2)

    def test_the_deadline_is_never_in_the_past_after_a_tick(self) -> None:
        leader = leader_of(3)
        for _ in range(20):
            leader.time.now = max(leader.time.now, leader.raft.next_deadline)
            leader.tick()
            leader.collect()
            self.assertGreater(leader.raft.next_deadline, leader.time.now)


class Answers(SynchronousTestCase):
    def test_every_request_is_answered_once_whatever_happens_meanwhile(self) -> None:
        entry = log_of([1])[0]
        requests: list[Request] = [
            AppendEntries(2, 0, 0, 0, (entry,)),
            Heartbeat(2, 0, 1),
            RequestVote(3, 5, 2, True),
            PreVote(4, 5, 2),
            AppendEntries(2, 0, 0, 0, ()),
            AppendEntries(4, 0, 0, 0, ()),
            Heartbeat(1, 0, 1),
            RequestVote(5, 9, 9, True),
        ]
        for order in range(40):
            rng = random.Random(order)
            node = Node(2, THREE, disk=Disk((), HardState(1)))
            shuffled = rng.sample(requests, len(requests))
            sent = []
            for number, request in enumerate(shuffled):
                # Leaders of one term are one node: terms decide who sends.
                node.receive(1 if request.term % 2 else 3, request, number)
                if rng.random() < 0.5:
                    sent += node.take()
                if node.disk.queue and rng.random() < 0.3:
                    node.persisted(node.disk.flush_one())
            sent += node.take_flushed()
            answered = sorted(o.request_id for o in sent if o.request_id is not None)
            self.assertEqual(answered, list(range(len(requests))))

    def test_messages_to_one_peer_keep_their_order(self) -> None:
        node = Node(2, THREE, disk=Disk((), HardState(1)))
        for number in range(5):
            node.receive(1, Heartbeat(2, 0, number), number)
        self.assertEqual([o.request_id for o in node.take_flushed()], [0, 1, 2, 3, 4])

    def test_a_withdrawn_vote_is_a_refusal_and_the_new_one_counts(self) -> None:
        # 2's vote of term 2 is on its way to the disk when 1 asks again, in term 3.
        voter = Node(2, THREE, disk=Disk((), HardState(1)))
        voter.receive(1, RequestVote(2, 0, 0), 1)
        voter.collect()
        voter.receive(1, RequestVote(3, 0, 0), 2)
        answers = [o.message for o in voter.take_flushed()]
        self.assertEqual(answers, [RequestVoteResponse(3, False), RequestVoteResponse(3, True)])
        candidate = Node(1, THREE, disk=Disk((), HardState(2)))
        candidate.become_candidate()
        for answer in answers:
            assert isinstance(answer, RequestVoteResponse)
            candidate.respond(2, answer)
        self.assertIs(candidate.raft.role, Role.LEADER)

    def test_a_log_that_begins_behind_a_base_takes_a_request_from_before_it(self) -> None:
        node = Node(2, THREE, disk=Disk((), HardState(1)))
        node.raft.log = Log([Entry(11, 1, 1, 0, b"")], base_index=10, base_term=1)
        node.raft.commit_index = node.raft.applied_index = 10
        entries = tuple(Entry(i, 1, 1, 0, b"") for i in range(9, 13))
        node.raft.receive_request(1, AppendEntries(1, 8, 1, 12, entries), 1, node.time.now)
        self.assertEqual(terms_of(node.raft.log), [1, 1])
        self.assertEqual((node.raft.log.last_index, node.raft.commit_index), (12, 12))

    def test_a_node_without_a_vote_has_no_deadline(self) -> None:
        for base in (Configuration(), configuration([1], learners=[2])):
            node = Node(2, base)
            self.assertEqual(node.raft.next_deadline, float("inf"))
            node.time.now += 100 * ELECTION_S
            node.tick()
            self.assertEqual((node.raft.role, node.take()), (Role.FOLLOWER, []))

    def test_a_single_voter_campaigns_at_once(self) -> None:
        node = Node(1, configuration([1], learners=[2]))
        self.assertEqual(node.raft.next_deadline, node.time.now)
        node.tick()
        node.flush()
        self.assertIs(node.raft.role, Role.LEADER)


class TheChecker(SynchronousTestCase):
    """What checks everything else must itself be seen to object."""

    def object_to(self, node: Node, rule: str) -> None:
        with self.assertRaises(InvariantViolated) as caught:
            node.tick()
        self.assertIn(rule, str(caught.exception))

    def test_it_objects(self) -> None:
        node = Node(2, THREE, disk=Disk(log_of([1, 1]), HardState(3, 1)))
        node.answer(1, AppendEntries(3, 2, 1, 2, ()))
        raft = node.raft
        for hard_state, rule in (
            (HardState(2, 1), "term never decreases"),
            (HardState(3, 3), "one vote in a term"),
        ):
            with mock.patch.object(raft._outbox, "hard_state", hard_state):
                self.object_to(node, rule)
        for attribute, value, rule in (
            ("commit_index", 1, "commit_index never decreases"),
            ("commit_index", 3, "commit_index <= last_index"),
            ("applied_index", 3, "applied_index"),
            ("role", Role.LEADER, "leadership exactly"),
            ("role", Role.CANDIDATE, "campaign exactly"),
        ):
            with mock.patch.object(raft, attribute, value):
                self.object_to(node, rule)
        for terms, rule in (([2, 1], "terms never decrease"),):
            with mock.patch.object(raft.log, "_entries", log_of(terms)):
                self.object_to(node, rule)
        Checker(raft).check()

    def test_it_objects_to_a_leader(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        assert leader.raft.leadership is not None
        progress = leader.raft.leadership.progress[2]
        for attribute, value, rule in (
            ("match_index", 0, "match_index never decreases"),
            ("next_index", 1, "match_index < next_index"),
            ("next_index", 3, "next_index <= last_index + 1"),
            ("commit_sent", 2, "commit_sent"),
            ("bytes_in_flight", 7, "add up"),
        ):
            before = getattr(progress, attribute)
            setattr(progress, attribute, value)
            self.object_to(leader, rule)
            setattr(progress, attribute, before)
        self.assertEqual(heartbeats_in(leader.take()), [])

    def test_what_binds_the_nodes_is_objected_to(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.run(HEARTBEAT_S)
        follower = cluster[2]
        log, (first,) = follower.raft.log, follower.raft.log.entries(1, 1)
        again = Entry(first.index, first.term, first.kind, first.time_ms, first.data)
        cases: list[tuple[Node, object, str, object, str]] = [
            (leader, leader, "id", 3, "Election Safety"),
            (follower, log, "_entries", log_of([1]), "Log Matching"),
            (follower, follower.raft, "log", Log([again], 0, 7), "Log Matching"),
            (follower, follower.raft, "log", Log((), 1, 7), "begins in the wrong term"),
            (follower, follower.raft, "log", Log((), 5, 1), "dropped what it may not"),
            (leader, leader, "applied", [*log_of([1])], "State Machine Safety"),
        ]
        for node, owner, attribute, value, rule in cases:
            safety = Safety(cluster.nodes)
            for other in cluster.running():
                safety.check(other)
            if attribute == "applied":
                safety._applied.clear()
            with (
                mock.patch.object(owner, attribute, value),
                self.assertRaises(AssertionError) as caught,
            ):
                safety.check(node)
            self.assertIn(rule, str(caught.exception))

    def test_a_commit_without_a_quorum_is_objected_to(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.isolate(1)
        leader.propose(b"x")
        cluster.settle()
        leader.raft.commit_index = 2
        with self.assertRaises(AssertionError) as caught:
            leader.tick()
        self.assertIn("which 1 of 3 hold", str(caught.exception))
        # And one that a later leader would lack.
        safety = Safety(cluster.nodes)
        safety.committed = [Entry(1, 0, 1, 0, b"lacking")]
        safety._committed_in = [0]
        with self.assertRaises(AssertionError) as caught:
            safety.check(leader)
        self.assertIn("Leader Completeness", str(caught.exception))
