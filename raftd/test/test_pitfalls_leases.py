"""
Defects of leases and of handing over that other Raft implementations have shipped.

The number in a test's name is the defect's in the project's list of pitfalls.
"""

from __future__ import annotations

import math

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import Rename, encode_configuration
from raftd.core.messages import (
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
    TimeoutNow,
    TimeoutNowResponse,
)
from raftd.core.raft import MAX_DISK_STALL_TIMEOUTS, Role
from raftd.core.settings import LEASE_SHARE
from raftd.errors import NotLeader
from raftd.test.core_clusters import of_voters
from raftd.test.cores import (
    ELECTION_S,
    HEARTBEAT_S,
    LEASES,
    SETTINGS,
    THREE,
    Disk,
    Node,
    appends_in,
    configuration,
    heartbeats_in,
    leader_of,
    messages_to,
    round_in,
)

LEASE_S = LEASE_SHARE * ELECTION_S


def follower(term: int = 1) -> Node:
    """Node 2 of three, that was started long ago and has followed nobody."""
    node = Node(2, THREE, disk=Disk((), HardState(term)), settings=LEASES)
    node.time.now += 1.5 * ELECTION_S
    return node


def holder(voters: int = 3) -> Node:
    """A leader whose lease begins now."""
    leader = leader_of(voters, settings=LEASES)
    for member_id in range(2, voters + 1):
        leader.acknowledge(member_id, 1)
    renew(leader)
    return leader


def renew(leader: Node, *member_ids: int) -> None:
    """Let the next heartbeats be due, and all, or some, acknowledge them at once."""
    leadership = leader.raft.leadership
    assert leadership is not None
    leader.take()
    leader.time.now = leadership.heartbeat_due
    leader.tick()
    number = round_in(leader.take())
    for member_id in member_ids or leadership.progress:
        leader.respond(member_id, HeartbeatResponse(leader.raft.term, number))
    leader.take()


def reads_at_once(leader: Node) -> bool:
    """Whether a read is answered without asking anybody."""
    leader.collect()
    before = len(leader.reads)
    leader.read(1000 + before)
    sent = leader.take()
    released = len(leader.reads) > before
    if released:
        assert not heartbeats_in(sent)
    return released


class Leases(SynchronousTestCase):
    def test_28_there_is_no_lease_unless_asked_for(self) -> None:
        self.assertFalse(SETTINGS.lease_reads)
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.take()
        leader.read(7)
        leader.respond(2, HeartbeatResponse(1, round_in(leader.take())))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1)])
        self.assertFalse(reads_at_once(leader))

    def test_28_a_lease_lasts_from_the_beginning_of_its_round(self) -> None:
        leader = holder()
        began = leader.time.now
        self.assertTrue(reads_at_once(leader))
        self.assertEqual(leader.reads[-1][1], leader.raft.commit_index)
        # The next round begins now, and is answered late.
        leader.time.now = began + HEARTBEAT_S
        leader.tick()
        number = round_in(leader.take())
        leader.time.now = began + LEASE_S - 0.001
        self.assertTrue(reads_at_once(leader))
        leader.respond(2, HeartbeatResponse(1, number))
        leader.collect()
        leader.time.now = began + HEARTBEAT_S + LEASE_S - 0.001
        self.assertTrue(reads_at_once(leader))
        leader.time.now += 0.002
        self.assertFalse(reads_at_once(leader))

    def test_28_a_lease_is_shorter_than_any_followers_promise(self) -> None:
        self.assertLessEqual(LEASES.lease_s * 1.2, LEASES.election_timeout_s)

    def test_28_there_is_no_lease_before_the_first_commit_of_the_term(self) -> None:
        leader = leader_of(3, settings=LEASES)
        renew(leader)
        self.assertFalse(reads_at_once(leader))
        leader.acknowledge(2, 1)
        renew(leader)
        self.assertTrue(reads_at_once(leader))

    def test_28_a_lease_is_given_by_a_quorum(self) -> None:
        leader = leader_of(5, settings=LEASES)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        renew(leader, 2)
        self.assertFalse(reads_at_once(leader))
        renew(leader, 2, 3)
        self.assertTrue(reads_at_once(leader))

    def test_28_a_lease_is_given_by_both_halves_of_a_joint_configuration(self) -> None:
        base = configuration([1, 2, 3], outgoing=[1, 4, 5])
        leader = leader_of(base, settings=LEASES)
        for member_id in (2, 4):
            leader.acknowledge(member_id, 1)
        leadership = leader.raft.leadership
        assert leadership is not None
        for answering, lasts in (((2, 3), False), ((4, 5), False), ((2, 4), True)):
            leadership.reads.begin_round(leader.time.now)
            for member_id in answering:
                answer = HeartbeatResponse(1, leadership.reads.round)
                leader.respond(member_id, answer)
            # Not a `Ready`: the joint configuration would be left in it.
            leadership.advance_reads(1, leader.time.now)
            self.assertIs(leadership.has_lease(1, leader.time.now), lasts, answering)
            for progress in leadership.progress.values():
                progress.round = 0

    def test_28_who_acknowledges_a_round_votes_for_nobody_else_for_its_time(self) -> None:
        for request in (PreVote(2, 9, 9), RequestVote(2, 9, 9)):
            node = follower()
            node.answer(1, Heartbeat(1, 0, 1))
            node.time.now += ELECTION_S - 0.001
            self.assertFalse(granted(node, 3, request))
            node.time.now += 0.002
            self.assertTrue(granted(node, 3, request))

    def test_28_a_promise_outlives_the_term_that_it_was_made_in(self) -> None:
        """
        2 learns of term 2 from a late answer, not from who stands for election
        in it: when that one asks, the term is no news, and the lease of the
        leader of term 1 is not over.
        """
        for request in (PreVote(3, 9, 9), RequestVote(2, 9, 9), RequestVote(3, 9, 9)):
            node = follower()
            node.answer(1, Heartbeat(1, 0, 1))
            node.respond(3, PreVoteResponse(2, False))
            self.assertEqual((node.raft.term, node.raft.leader_id), (2, 0))
            node.time.now += ELECTION_S - 0.001
            self.assertFalse(granted(node, 3, request), request)
            node.time.now += 0.002
            self.assertTrue(granted(node, 3, request), request)

    def test_28_a_vote_that_was_given_is_given_again(self) -> None:
        node = follower()
        self.assertTrue(granted(node, 3, RequestVote(2, 9, 9)))
        node.crash()
        node.start()
        self.assertTrue(granted(node, 3, RequestVote(2, 9, 9)))

    def test_28_a_restarted_node_has_forgotten_whom_it_has_promised(self) -> None:
        node = follower()
        node.answer(1, Heartbeat(1, 0, 1))
        node.crash()
        node.start()
        node.time.now += ELECTION_S - 0.001
        for request in (PreVote(2, 9, 9), RequestVote(2, 9, 9)):
            self.assertFalse(granted(node, 3, request))
        node.time.now += 0.002
        self.assertTrue(granted(node, 3, PreVote(2, 9, 9)))
        # Without leases there is nothing to wait for.
        other = Node(2, THREE, disk=Disk((), HardState(1)))
        self.assertTrue(granted(other, 3, RequestVote(2, 9, 9)))

    def test_28_nor_does_it_elect_itself_before(self) -> None:
        # 1, the leader, has let itself go; 2 alone is left, and has promised.
        alone = Entry(
            1, 1, EntryKind.CONFIGURATION, 0, encode_configuration(configuration([2]))
        )
        node = Node(2, configuration([1, 2]), disk=Disk([alone], HardState(1)), settings=LEASES)
        self.assertGreaterEqual(node.raft.next_deadline, node.time.now + ELECTION_S)
        node.time.now += ELECTION_S - 0.001
        node.tick()
        node.flush()
        self.assertIs(node.raft.role, Role.FOLLOWER)

    def test_28_clocks_within_their_bounds_make_no_stale_read(self) -> None:
        """
        1 is cut off with its lease; the clocks of the others run faster by as
        much as is allowed.  Whatever they commit, 1 answers nothing without it.
        """
        cluster = of_voters(3, settings=LEASES)
        one = cluster.elect(1)
        cluster.run(2 * ELECTION_S)
        cluster.isolate(1)
        committed, answered_until = math.inf, 0.0
        began = cluster.time.now
        times = {node.id: type(cluster.time)(cluster.time.now) for node in cluster.running()}
        for node in cluster.running():
            node.time = times[node.id]
        while cluster.time.now < began + 4 * ELECTION_S:
            cluster.time.now += 0.002
            for node in cluster.running():
                node.time.now += 0.002 * (1 if node is one else 1.2)
                if node is not one and node.raft.next_deadline <= node.time.now:
                    node.tick()
            cluster.settle()
            for leader in cluster.leaders():
                if leader is not one and committed == math.inf:
                    leader.propose(b"new")
                    cluster.settle()
                    committed = cluster.time.now
            # 1 is slow to notice: it does not even look at the time itself.
            if one.raft.role is Role.LEADER and reads_at_once(one):
                answered_until = cluster.time.now
        self.assertLess(committed, math.inf)
        self.assertGreater(answered_until, began)
        self.assertLess(answered_until, committed)

    # -- a lease belongs to a term, and to who is not to be followed -----------

    def test_26_a_lease_ends_with_its_term(self) -> None:
        leader = holder()
        self.assertTrue(reads_at_once(leader))
        leader.respond(3, HeartbeatResponse(2, 0))
        with self.assertRaises(NotLeader):
            leader.read(7)
        # Elected again in no time, it has none, whatever is late.
        leader.raft._campaign(leader.time.now)
        leader.flush()
        leader.respond(2, RequestVoteResponse(3, True))
        self.assertIs(leader.raft.role, Role.LEADER)
        leader.flush()
        leader.acknowledge(2, leader.raft.log.last_index)
        for member_id in (2, 3):
            leader.respond(member_id, HeartbeatResponse(1, 99))
        self.assertFalse(reads_at_once(leader))

    def test_26_a_lease_is_over_when_a_successor_is_told(self) -> None:
        leader = holder()
        leader.propose(b"x")
        leader.flush()
        leader.transfer(2)
        leader.take()
        # 2 lacks an entry still, and was told nothing.
        self.assertTrue(reads_at_once(leader))
        leader.acknowledge(2, 2)
        told = messages_to(leader.take(), 2)
        self.assertIn(TimeoutNow(1), told)
        self.assertFalse(reads_at_once(leader))
        # It is given up; but 2 may stand as late as it likes, and its voters
        # will not wait for this leader.
        for _ in range(20):
            renew(leader)
        self.assertEqual((leader.raft.role, leader.raft.is_handing_over), (Role.LEADER, False))
        self.assertFalse(reads_at_once(leader))
        self.assertEqual(leader.propose(b"y"), (1, 3))

    def test_26_reads_go_on_with_rounds_while_leadership_is_handed_over(self) -> None:
        leader = holder()
        leader.transfer(2)
        leader.take()
        leader.read(7)
        leader.respond(3, HeartbeatResponse(1, round_in(leader.take())))
        leader.collect()
        self.assertEqual(leader.reads, [(7, 1)])
        # And what waits when it ends is lost, not forgotten.
        leader.read(8)
        leader.respond(2, TimeoutNowResponse(2))
        leader.collect()
        self.assertEqual((leader.raft.role, leader.lost_reads), (Role.FOLLOWER, [8]))

    def test_26_a_late_timeout_now_is_not_obeyed(self) -> None:
        for term, leader_id in ((1, 1), (2, 3), (3, 1)):
            node = follower(term=2)
            node.answer(1, Heartbeat(2, 0, 0))
            answer = node.answer(leader_id, TimeoutNow(term))
            self.assertEqual(answer, TimeoutNowResponse(2))
            self.assertEqual((node.raft.role, node.raft.term), (Role.FOLLOWER, 2))

    def test_08_the_leader_that_handed_over_is_elected_if_its_successor_fails(self) -> None:
        for settings in (SETTINGS, LEASES):
            cluster = of_voters(3, settings=settings)
            leader = cluster.elect(1)
            cluster.run(2 * ELECTION_S)
            leader.transfer(3)
            cluster.collect(leader)
            cluster.deliver(cluster.queues[1, 3].popleft())
            cluster[3].flush()
            cluster.collect(cluster[3])
            # 1 hears that 3 stands, and follows; then 3 is gone.
            cluster.deliver(cluster.queues[3, 1].popleft())
            cluster.crash(3)
            for queue in cluster.waiting():
                queue.clear()
            self.assertIs(leader.raft.role, Role.FOLLOWER)
            # Its own follower has heard from it a moment ago, and grants it all.
            pre_vote = PreVote(leader.raft.term + 1, 1, 1)
            self.assertTrue(granted(cluster[2], 1, pre_vote))

    def test_09_with_leases_too_granting_a_pre_vote_refreshes_nothing(self) -> None:
        node = follower()
        self.assertTrue(granted(node, 3, PreVote(2, 0, 0)))
        self.assertTrue(granted(node, 1, PreVote(2, 0, 0)))
        self.assertTrue(granted(node, 1, RequestVote(2, 0, 0)))

    # -- a leader whose disk hangs ---------------------------------------------

    def test_53_a_leader_whose_disk_hangs_hands_over(self) -> None:
        leader = leader_of(5)
        for member_id in (2, 3, 4, 5):
            leader.acknowledge(member_id, 1)
        leader.propose(b"x")
        leader.collect()
        since = leader.time.now
        # 4 is gone for long; 3 and 5 have all of it, and 5 answers.
        for member_id in (3, 4, 5):
            leader.acknowledge(member_id, 2)
        bound_s = MAX_DISK_STALL_TIMEOUTS * ELECTION_S
        told: list[tuple[float, int]] = []
        while leader.raft.role is Role.LEADER and leader.time.now < since + 2 * bound_s:
            leader.time.now = leader.raft.next_deadline
            for member_id in (2, 5) if leader.time.now < since + 1.0 else (2, 3, 5):
                leader.respond(member_id, HeartbeatResponse(1, 0))
            if not leader.raft.is_handing_over:
                # Later writes, too, wait behind the one that hangs.
                _, last = leader.propose(b"y")
                leader.collect()
                leader.acknowledge(3, last)
            leader.tick()
            for out in leader.take():
                if isinstance(out.message, TimeoutNow):
                    told.append((leader.time.now, out.to))
                    leader.respond(out.to, TimeoutNowResponse(2))
        self.assertEqual([to for _, to in told], [3])
        self.assertGreaterEqual(told[0][0], since + bound_s)
        self.assertLess(told[0][0], since + bound_s + 2 * HEARTBEAT_S)
        self.assertIs(leader.raft.role, Role.FOLLOWER)

    def test_53_a_disk_that_answers_now_and_then_does_not_hang(self) -> None:
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        for _ in range(60):
            leader.propose(b"x")
            leader.collect()
            leader.time.now += HEARTBEAT_S
            if len(leader.disk.queue) > 15:
                leader.persisted(leader.disk.flush_one())
            for member_id in (2, 3):
                leader.acknowledge(member_id, leader.raft.log.last_index)
            leader.tick()
            self.assertFalse(leader.raft.is_handing_over)

    def test_53_it_tries_again_and_lets_writes_through_in_between(self) -> None:
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        leader.propose(b"x")
        leader.collect()
        begun = 0
        for _ in range(60):
            leader.time.now += HEARTBEAT_S
            was = leader.raft.is_handing_over
            for member_id in (2, 3):
                leader.respond(member_id, HeartbeatResponse(1, 0))
            leader.tick()
            leader.take()
            begun += leader.raft.is_handing_over and not was
        # Neither has the entry, so neither was told.
        self.assertGreaterEqual(begun, 3)
        self.assertIs(leader.raft.role, Role.LEADER)

    def test_53_without_another_voter_nothing_is_handed_over(self) -> None:
        leader = leader_of(configuration([1], learners=[2]))
        leader.propose(b"x")
        leader.collect()
        for _ in range(60):
            leader.time.now += HEARTBEAT_S
            leader.tick()
        self.assertEqual((leader.raft.role, leader.raft.is_handing_over), (Role.LEADER, False))

    # -- what is proposed meanwhile --------------------------------------------

    def test_36_a_leader_that_is_renamed_goes_on(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.run(HEARTBEAT_S)
        leader.change(Rename(1, "elsewhere:1"))
        cluster.run(2 * ELECTION_S)
        self.assertEqual((cluster.leader().id, leader.raft.term), (1, 1))
        for node in cluster.running():
            self.assertEqual(node.raft.configuration.members()[1].name, "elsewhere:1")

    def test_19_what_was_refused_during_a_transfer_goes_on_after_it(self) -> None:
        leader = leader_of(3)
        for member_id in (2, 3):
            leader.acknowledge(member_id, 1)
        leader.propose(b"x")
        leader.flush()
        leader.acknowledge(3, 2)
        leader.tick()
        leader.time.now += 0.4 * HEARTBEAT_S
        leader.transfer(2)
        with self.assertRaises(NotLeader):
            leader.propose(b"y")
        self.assertEqual(leader.raft.log.last_index, 2)
        since = leader.time.now
        for _ in range(20):
            if not leader.raft.is_handing_over:
                break
            leader.time.now = leader.raft.next_deadline
            leader.respond(3, HeartbeatResponse(1, 0))
            leader.tick()
        self.assertAlmostEqual(leader.time.now, since + ELECTION_S)
        leader.take()
        leader.propose(b"y")
        (request,) = appends_in(leader.take(), 3)
        self.assertEqual([e.data for e in request.entries], [b"y"])


def granted(node: Node, candidate: int, request: Request) -> bool:
    answer = node.answer(candidate, request)
    assert isinstance(answer, PreVoteResponse | RequestVoteResponse)
    return answer.granted
