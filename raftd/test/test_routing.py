"""The way of a request to the leader and back: batches, bounds, and what is kept."""

from __future__ import annotations

import gc
import math
from collections import deque
from typing import Any

from raftd import requests, routing
from raftd.core import leader as leader_module
from raftd.core.ready import Ready
from raftd.errors import (
    BadRequest,
    NoLeader,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerUnreachable,
    RaftdError,
    Superseded,
    TooLarge,
)
from raftd.requests import Request, Requests, State
from raftd.routing import RETRY_DELAY_S, _take_batch
from raftd.test.drivers import Alone, Answer, ClusterTestCase, Journal, command

LEADER = 2
REQUEST_S = 5.0


def open_requests() -> int:
    """How many requests are kept in memory anywhere, answered or not."""
    gc.collect()
    return sum(isinstance(thing, Request) for thing in gc.get_objects())


class ForwardTests(ClusterTestCase):
    """A follower, `n1`, and a leader that does as it is told."""

    def setUp(self) -> None:
        super().setUp()
        self.alone = Alone(3)
        self.alone.heartbeat(LEADER)
        self.leader = self.alone.transport.peers[LEADER]

    def _stay(self) -> None:
        """Time passes, and the leader stays."""
        self.alone.heartbeat(LEADER)
        self.alone.advance(0.1)

    def test_one_turn_is_one_forward(self) -> None:
        answers = [self.alone.propose(b"%d" % i) for i in range(100)]
        self.alone.turn()
        ((commands, forwarded),) = self.leader.forwards
        self.assertEqual(commands, [command(b"%d" % i) for i in range(100)])
        forwarded.callback([b"%d" % i for i in range(100)])
        self.assertEqual([a.outcome for a in answers], [b"%d" % i for i in range(100)])

    def test_forwards_are_bounded(self) -> None:
        self.patch(routing, "MAX_BATCH_COMMANDS", 10)
        self.patch(routing, "MAX_BATCH_BYTES", 1000)
        sizes = [20] * 35 + [400] * 6 + [5000] + [20] * 3
        answers = [self.alone.propose(b"x" * size) for size in sizes]
        self.alone.turn()
        batches = [commands for commands, _ in self.leader.forwards]
        self.assertEqual(sum(map(len, batches)), len(sizes))
        for batch in batches:
            self.assertLessEqual(len(batch), 10)
            if len(batch) > 1:
                self.assertLessEqual(sum(map(len, batch)), 1000)
        self.assertEqual([len(b) for b in batches if len(b[0]) > 4000], [1])
        for commands, forwarded in self.leader.forwards:
            forwarded.callback([b"ok"] * len(commands))
        self.assertEqual([a.outcome for a in answers], [b"ok"] * len(sizes))

    def test_forwards_in_flight_are_bounded(self) -> None:
        for _ in range(routing.MAX_FORWARDS_IN_FLIGHT + 10):
            self.alone.propose(b"w")
            self.alone.turn()
        self.assertEqual(len(self.leader.forwards), routing.MAX_FORWARDS_IN_FLIGHT)
        self.leader.forwards[0][1].callback([b"ok"])
        self.alone.turn()
        # What has gathered meanwhile goes together.
        self.assertEqual(len(self.leader.forwards), routing.MAX_FORWARDS_IN_FLIGHT + 1)
        self.assertEqual(len(self.leader.forwards[-1][0]), 10)

    def test_read_index_is_shared_and_bounded(self) -> None:
        for _ in range(routing.MAX_READ_INDEX_IN_FLIGHT + 10):
            self.alone.read()
            self.alone.turn()
        self.assertEqual(len(self.leader.asked), routing.MAX_READ_INDEX_IN_FLIGHT)
        reads = [self.alone.read() for _ in range(3)]
        self.leader.asked[0].callback(0)
        self.alone.turn()
        self.leader.asked[-1].callback(0)
        self.assertEqual([read.outcome for read in reads], [None] * 3)

    def test_24_a_read_waits_for_a_question_that_was_asked_after_it(self) -> None:
        for _ in range(routing.MAX_READ_INDEX_IN_FLIGHT):
            self.alone.read()
            self.alone.turn()
        late = self.alone.read()
        self.alone.turn()
        for question in list(self.leader.asked):
            self.assertFalse(late.given)
            question.callback(0)
        self.assertFalse(late.given)
        self.alone.turn()
        self.leader.asked[-1].callback(0)
        self.assertIsNone(late.outcome)

    def test_leader_that_cannot_be_asked_at_once(self) -> None:
        """One connection to it stands and the other does not yet: nothing spins."""
        self.leader.forward_failure = NoLeader("not connected")
        answers = [self.alone.propose(b"w") for _ in range(3)]
        self.alone.turn()
        self.assertEqual(len(self.leader.forwards), 1)
        self._stay()
        self.assertLess(len(self.leader.forwards), 10)
        self.assertFalse(any(a.given for a in answers))
        self.leader.forward_failure = None
        self._stay()
        commands, forwarded = self.leader.forwards[-1]
        forwarded.callback([b"ok"] * len(commands))
        self.assertEqual([a.outcome for a in answers], [b"ok"] * 3)

    def test_new_leader_does_not_wait_for_the_old_one(self) -> None:
        for _ in range(routing.MAX_FORWARDS_IN_FLIGHT):
            self.alone.propose(b"old")
            self.alone.turn()
        for _ in range(routing.MAX_READ_INDEX_IN_FLIGHT):
            self.alone.read()
            self.alone.turn()
        self.alone.heartbeat(3, term=2)
        write, read = self.alone.propose(b"new"), self.alone.read()
        self.alone.turn()
        successor = self.alone.transport.peers[3]
        self.assertEqual([c for c, _ in successor.forwards], [[command(b"new")]])
        successor.forwards[0][1].callback([b"1"])
        for asked in successor.asked:
            asked.callback(0)
        self.assertEqual(write.outcome, b"1")
        self.assertIsNone(read.outcome)
        # The bounds hold for it as they did for the other.
        for _, forwarded in self.leader.forwards:
            forwarded.errback(PeerUnreachable("gone"))
        for _ in range(routing.MAX_FORWARDS_IN_FLIGHT + 10):
            self.alone.propose(b"more")
            self.alone.turn()
        self.assertEqual(len(successor.forwards) - 1, routing.MAX_FORWARDS_IN_FLIGHT)

    def test_what_an_answer_of_the_leader_means(self) -> None:
        outcomes: list[bytes | RaftdError] = [
            b"done",
            TooLarge("x"),
            Overloaded("x"),
            NoQuorum("x"),
            OutcomeUnknown("x"),
        ]
        answers = [self.alone.propose(b"%d" % i) for i in range(len(outcomes))]
        self.alone.turn()
        self.leader.forwards[0][1].callback(outcomes)
        self.assertEqual(answers[0].outcome, b"done")
        for answer, outcome in zip(answers[1:], outcomes[1:], strict=True):
            self.assertOutcome(answer, type(outcome))  # type: ignore[arg-type]

    def test_what_did_not_happen_there_waits_for_the_next_leader(self) -> None:
        for reason in (NotLeader("x"), NoLeader("x"), Superseded("x")):
            answer = self.alone.propose(b"w")
            self.alone.turn()
            before = len(self.leader.forwards)
            self.leader.forwards[-1][1].callback([reason])
            self.alone.turn()
            self.assertEqual(len(self.leader.forwards), before, "it is left in peace")
            self.alone.advance(routing.RETRY_DELAY_S)
            self.alone.turn()
            self.assertEqual(len(self.leader.forwards), before + 1)
            self.leader.forwards[-1][1].callback([b"ok"])
            self.assertEqual(answer.outcome, b"ok")

    def test_30_lost_connection_means_unknown_for_writes_only(self) -> None:
        write, read = self.alone.propose(b"w"), self.alone.read()
        self.alone.turn()
        self.leader.forwards[0][1].errback(PeerUnreachable("gone"))
        self.leader.asked[0].errback(PeerUnreachable("gone"))
        self.assertOutcome(write, OutcomeUnknown)
        self.assertFalse(read.given)
        for _ in range(60):
            self._stay()
            if len(self.leader.asked) > 1 and not self.leader.asked[-1].called:
                self.leader.asked[-1].errback(PeerUnreachable("gone"))
        self.assertOutcome(read, NoLeader)

    def test_late_answers_change_nothing(self) -> None:
        write, read = self.alone.propose(b"w"), self.alone.read()
        self.alone.turn()
        for _ in range(51):
            self._stay()
        self.assertOutcome(write, OutcomeUnknown)
        self.assertOutcome(read, NoLeader)
        self.leader.forwards[0][1].callback([b"late"])
        self.leader.asked[0].callback(0)
        self.alone.turn()
        self.assertEqual((len(write.outcomes), len(read.outcomes)), (1, 1))

    def test_30_a_batch_has_the_time_of_the_one_with_most(self) -> None:
        """An old write, queued again behind a new one, does not make that unknown."""
        self.alone.propose(b"old")
        self.alone.turn()
        for _ in range(49):
            self._stay()
        self.alone.propose(b"new")
        self.leader.forwards[0][1].callback([Superseded("Another entry took its place.")])
        self.alone.advance(RETRY_DELAY_S + 0.001)
        self.assertEqual(self.leader.forwards[1][0], [command(b"new"), command(b"old")])
        self.assertGreater(self.leader.timeouts_ms[1], 4900)

    def test_24_a_question_has_the_time_of_the_read_with_most(self) -> None:
        self.alone.read()
        self.alone.turn()
        for _ in range(49):
            self._stay()
        self.alone.read()
        self.leader.asked[0].errback(NotLeader("Another one leads."))
        self.alone.advance(RETRY_DELAY_S + 0.001)
        self.assertEqual(len(self.leader.asked), 2)
        self.assertGreater(self.leader.timeouts_ms[1], 4900)

    def test_unexpected_failure_stops_the_node(self) -> None:
        write = self.alone.propose(b"w")
        self.alone.turn()
        self.leader.forwards[0][1].errback(ZeroDivisionError())
        self.assertEqual(len(self.alone.fatal), 1)
        self.assertOutcome(write, OutcomeUnknown)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class BoundTests(ClusterTestCase):
    def test_requests_are_bounded_in_number(self) -> None:
        self.patch(requests, "MAX_REQUESTS", 10)
        alone = Alone(3)
        answers = [alone.propose(b"w") for _ in range(6)]
        answers += [alone.read() for _ in range(4)]  # type: ignore[misc]
        self.assertOutcome(alone.propose(b"w"), Overloaded)
        self.assertOutcome(alone.read(), Overloaded)
        self.assertFalse(any(a.given for a in answers))
        alone.advance(REQUEST_S + 0.01)
        for answer in answers:
            self.assertTrue(answer.given)
        self.assertFalse(alone.propose(b"w").given, "there is room again")

    def test_requests_are_bounded_in_size(self) -> None:
        self.patch(requests, "MAX_REQUEST_BYTES", 1000)
        alone = Alone(3)
        first = alone.propose(b"x" * 800)
        self.assertOutcome(alone.propose(b"x" * 300), Overloaded)
        self.assertFalse(alone.propose(b"x" * 100).given)
        self.assertFalse(alone.read().given, "a read has no size")
        alone.advance(REQUEST_S + 0.01)
        self.assertTrue(first.given)
        self.assertFalse(alone.propose(b"x" * 800).given, "there is room again")

    def test_command_too_large(self) -> None:
        alone = Alone(1)
        self.assertOutcome(alone.propose(b"x" * routing.MAX_COMMAND_BYTES), TooLarge)
        alone.advance(0.01)
        forwarded = alone.node.forwarded([b"x" * (routing.MAX_COMMAND_BYTES + 1)], 1000)
        (outcome,) = self.successResultOf(forwarded)
        self.assertIsInstance(outcome, TooLarge)
        fits = alone.propose(b"x" * (routing.MAX_COMMAND_BYTES - 100))
        alone.advance(0.01)
        self.assertEqual(fits.outcome, b"1")

    def test_what_is_no_command_is_refused_before_it_is_replicated(self) -> None:
        """In the log it would stop every node, and again after every restart."""
        alone = Alone(1)
        alone.advance(0.01)
        garbage: Answer[bytes] = Answer()
        alone.node.propose(b"garbage", garbage)
        self.assertOutcome(garbage, BadRequest)
        outcomes = alone.node.forwarded([b"\xc1", command(b"fine"), b""], 1000)
        alone.advance(0.01)
        first, second, third = self.successResultOf(outcomes)
        self.assertIsInstance(first, BadRequest)
        self.assertEqual(second, b"1")
        self.assertIsInstance(third, BadRequest)
        self.assertEqual(alone.fatal, [])

    def test_what_a_leader_appends_ahead_of_its_disk_is_bounded(self) -> None:
        """The disk has a bound of its own, and to reach it stops the node."""
        self.patch(leader_module, "MAX_UNCOMMITTED_BYTES", 1000)
        self.patch(leader_module, "ENTRY_OVERHEAD_BYTES", 0)
        self.patch(routing, "MAX_BATCH_BYTES", 200)
        alone = Alone(1, delay_seconds=None)
        answers = [alone.propose(b"x" * 90) for _ in range(40)]
        alone.advance(0.001)
        alone.log.flush()
        alone.turn()
        self.assertEqual(alone.node.status().role, "leader")
        size = sum(len(e.data) for write in alone.log.writes for e in write)
        self.assertLess(size, 1000 + 200 + 100)
        self.assertGreater(size, 500)
        refused = [a for a in answers if a.given]
        self.assertGreater(len(refused), 20)
        for answer in refused:
            self.assertOutcome(answer, Overloaded)
        alone.log.flush()
        alone.turn()
        for answer in answers:
            self.assertTrue(answer.given)
        done = [a for a in answers if isinstance(a.outcome, bytes)]
        self.assertEqual(len(done) + len(refused), 40)
        self.assertIsInstance(self._write(alone), bytes)

    def _write(self, alone: Alone) -> object:
        answer = alone.propose(b"w")
        alone.turn()
        alone.log.flush()
        alone.turn()
        return answer.outcome

    def test_retry_upon_refusal_does_not_stop_the_turn(self) -> None:
        """A client that tries again at once gets its answer in another turn."""
        self.patch(leader_module, "MAX_UNCOMMITTED_BYTES", 10)
        alone = Alone(1, delay_seconds=None)
        alone.advance(0.001)
        alone.log.flush()
        alone.turn()
        alone.propose(b"x" * 100)
        alone.turn()
        turns = 0
        refused_in: list[int] = []
        ready = alone.node._raft.ready

        def counting(now: float) -> Ready:
            nonlocal turns
            turns += 1
            return ready(now)

        def again(_: object) -> None:
            refused_in.append(turns)
            if len(refused_in) < 50:
                alone.node.propose(command(b"again"), again)

        self.patch(alone.node._raft, "ready", counting)
        alone.node.propose(command(b"again"), again)
        alone.turn()
        self.assertEqual(refused_in, list(range(50)))

    def test_whoever_is_refused_may_stop_the_leader_from_leading(self) -> None:
        """With more batches behind the one that was refused: they were proposed, or refused."""
        self.patch(leader_module, "MAX_UNCOMMITTED_BYTES", 20_000)
        self.patch(routing, "MAX_BATCH_COMMANDS", 10)
        cluster, leader, _ = self.led(3, Journal)
        node = cluster.nodes[leader]
        outcomes: list[object] = []
        refused: list[Overloaded] = []
        moved: list[object] = []

        def done(outcome: bytes | RaftdError) -> None:
            outcomes.append(outcome)
            if isinstance(outcome, Overloaded):
                refused.append(outcome)
                if len(refused) == 1:
                    node.transfer().addBoth(moved.append)

        for _ in range(200):
            node.propose(command(b"x" * 1000), done)
        cluster.advance(2)
        self.assertEqual(cluster.fatal, {})
        self.assertEqual(moved, [None])
        self.assertNotEqual(cluster.await_leader(), leader)
        self.assertEqual(len(outcomes), 200)
        done_count = sum(isinstance(outcome, bytes) for outcome in outcomes)
        self.assertEqual(done_count + len(refused), 200)
        self.assertGreater(min(done_count, len(refused)), 10)


class TimeIsUpTests(ClusterTestCase):
    def test_30_what_is_out_of_time_is_not_sent_any_more(self) -> None:
        requests_ = Requests()
        late = requests_.open(b"late", Answer(), 1.0, False)
        early = requests_.open(b"early", Answer(), 2.0, False)
        self.assertEqual(_take_batch(deque([late, early]), 1.0), [early])
        self.assertIs(late.state, State.QUEUED)

    def test_30_forwarded_write_is_answered_in_its_time(self) -> None:
        """Whoever has forwarded it gives the connection up soon after."""
        cluster, leader, followers = self.led(3, Journal)
        for follower in followers:
            cluster.logs[follower].delay_seconds = None
        own = self.propose(cluster, leader, b"own")
        cluster.advance(0.05)
        forwarded = cluster.nodes[leader].forwarded([command(b"forwarded")], 300)
        cluster.advance(0.2)
        self.assertNoResult(forwarded)
        cluster.advance(0.2)
        (outcome,) = self.successResultOf(forwarded)
        self.assertIsInstance(outcome, OutcomeUnknown)
        self.assertFalse(own.given)
        cluster.advance(REQUEST_S)
        self.assertOutcome(own, OutcomeUnknown)

    def test_deadlines_in_any_order(self) -> None:
        requests_ = Requests()
        answers: dict[float, Answer[Any]] = {}
        for deadline in (3.0, 1.0, 5.0, 2.0, 4.0):
            answers[deadline] = Answer()
            requests_.open(b"x", answers[deadline], deadline, deadline != 4.0)
        for now in (1.0, 2.0, 3.0, 4.0, 5.0):
            self.assertEqual(requests_.next_deadline, now)
            requests_.expire(now, NoLeader("None."))
            given = [deadline for deadline, answer in answers.items() if answer.given]
            self.assertEqual(sorted(given), [float(n) for n in range(1, int(now) + 1)])
        self.assertEqual(requests_.next_deadline, math.inf)
        self.assertEqual(len(requests_), 0)

    def test_deadlines_of_what_was_answered_are_bounded(self) -> None:
        """Behind one that is not, and so stays in front."""
        self.patch(requests, "MAX_STALE_DEADLINES", 10)
        requests_ = Requests()
        waiting = Answer[Any]()
        requests_.open(b"waiting", waiting, 1.0, True)
        for n in range(100):
            request = requests_.open(b"x", Answer(), 2.0 + n, True)
            requests_.answer(request, b"")
            self.assertLessEqual(len(requests_._deadlines), 10 + 2 * 2 + 1)
        requests_.expire(1.0, NoLeader("None."))
        self.assertOutcome(waiting, NoLeader)
        self.assertEqual(requests_.next_deadline, math.inf)


class NothingIsKeptTests(ClusterTestCase):
    """Requests whose time is up leave nothing behind, whatever holds them up."""

    def test_without_a_leader(self) -> None:
        before = open_requests()
        alone = Alone(3)
        for _ in range(20):
            for _ in range(10):
                alone.propose(b"w")
                alone.read()
            alone.advance(1.0)
            self.assertLessEqual(open_requests() - before, 20 * 6)
        alone.advance(REQUEST_S + 0.1)
        self.assertEqual(open_requests(), before)

    def test_leader_without_a_quorum(self) -> None:
        before = open_requests()
        cluster, leader, others = self.led(3, Journal)
        for _ in range(3):
            cluster.partition([leader], others)
            for _ in range(30):
                self.propose(cluster, leader, b"w")
                self.read(cluster, leader)
                cluster.advance(0.02)
            cluster.advance(REQUEST_S + 2.0)
            cluster.heal()
            cluster.await_leader()
            cluster.await_agreement()
            cluster.advance(0.1)
            leader = cluster.await_leader()
            others = [name for name in cluster.nodes if name != leader]
        self.answers.clear()
        cluster.advance(REQUEST_S)
        self.assertEqual(open_requests(), before)

    def test_follower_whose_disk_hangs(self) -> None:
        """The leader tells it how far to read, and it never gets that far."""
        self.patch(routing, "MAX_READS_UNDER_WAY", 50)
        before = open_requests()
        cluster, leader, (follower, _) = self.led(3, Journal)
        cluster.logs[follower].delay_seconds = None
        self._read_for_long(cluster, leader, follower, before)

    def test_leader_whose_disk_hangs(self) -> None:
        self.patch(routing, "MAX_READS_UNDER_WAY", 50)
        before = open_requests()
        cluster, leader, (follower, _) = self.led(3, Journal)
        cluster.logs[leader].delay_seconds = None
        self._read_for_long(cluster, follower, leader, before)

    def _read_for_long(self, cluster: Any, writer: str, reader: str, before: int) -> None:
        self.propose(cluster, writer, b"w")
        cluster.advance(0.02)
        for _ in range(20):
            for _ in range(30):
                self.read(cluster, reader)
            cluster.advance(1.0)
            self.answers.clear()
            self.assertLessEqual(open_requests() - before, 50 + 30 * 7 + 10)
        cluster.logs[reader].delay_seconds = 0.001
        cluster.logs[reader].flush()
        read = self.read(cluster, reader)
        cluster.advance(0.1)
        self.assertIsNone(read.outcome)
        self.answers.clear()
        cluster.advance(REQUEST_S + 0.1)
        self.assertEqual(open_requests(), before)


class SentenceTests(ClusterTestCase):
    """What a person is told has to be so."""

    def test_leader_with_a_quorum_does_not_deny_it(self) -> None:
        cluster, leader, _ = self.led(3, Journal, request_timeout_ms=500)
        cluster.logs[leader].delay_seconds = None
        self.propose(cluster, leader, b"w")
        cluster.advance(0.02)
        read = self.read(cluster, leader)
        cluster.advance(0.6)
        self.assertOutcome(read, NoQuorum)
        self.assertNotIn("3 of 3 voters", str(read.outcome))

    def test_follower_does_not_deny_its_leader(self) -> None:
        alone = Alone(3, request_timeout_s=0.5)
        alone.heartbeat(LEADER)
        read = alone.read()
        alone.advance(0.51)
        self.assertOutcome(read, NoLeader)
        self.assertIn("n2", str(read.outcome))
