"""A client's side of exactly once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from raftd import session_client, sessions
from raftd.core.messages import Command, Member, decode_command
from raftd.errors import (
    DidNotHappen,
    NoLeader,
    OutcomeUnknown,
    Overloaded,
    RaftdError,
    SessionClosed,
    SessionExpired,
    SessionResultsFull,
    SessionTableFull,
    SessionWindowFull,
    Stopped,
    Superseded,
    TooLarge,
)
from raftd.interfaces import Done, INode, NodeStatus
from raftd.session_client import MAX_QUEUED, MAX_RETRY_DELAY_S, RETRY_DELAY_S, Session
from raftd.sessions import SESSION_TTL_MS, WINDOW, Sessions
from raftd.test.drivers import IdleNode, Journal

UNKNOWN = OutcomeUnknown("No answer came.")
NO_LEADER = NoLeader("There is none.")


class ScriptedNode(IdleNode):
    """A cluster of one: what is proposed waits until the test says what becomes of it."""

    def __init__(self, machine: Journal) -> None:
        self.machine = Sessions(machine)
        self.index = 0
        self.time_ms = 0
        self.waiting: list[tuple[Command, Done[bytes]]] = []
        #: What every propose is answered with, before it returns.
        self.at_once: RaftdError | None = None

    def propose(self, data: bytes, done: Done[bytes]) -> None:
        if self.at_once is not None:
            done(self.at_once)
        else:
            self.waiting.append((decode_command(data), done))

    def ask_leader(self, question: bytes, done: Done[bytes]) -> None:
        raise NotImplementedError

    def apply(self, command: Command) -> bytes:
        self.index += 1
        result = self.machine.apply(self.index, self.time_ms, command)
        assert isinstance(result, bytes)
        return result

    def answer(self, position: int = 0) -> None:
        """Apply what was proposed, and say so."""
        command, done = self.waiting.pop(position)
        done(self.apply(command))

    def lose_answer(self, position: int = 0) -> None:
        """Apply it, and say that nobody knows."""
        command, done = self.waiting.pop(position)
        self.apply(command)
        done(UNKNOWN)

    def lose(self, outcome: RaftdError = UNKNOWN, position: int = 0) -> Command:
        """Do not apply it (now)."""
        command, done = self.waiting.pop(position)
        done(outcome)
        return command

    def status(self) -> NodeStatus:
        me = Member(1, "n1")
        return NodeStatus(me, 1, "leader", 1, me, 1, 1, 1, 1, 0, 0.0, ())


class SessionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.log = Journal()
        self.node = ScriptedNode(self.log)
        self.session = self.open()

    def tearDown(self) -> None:
        """Nothing is left behind that would call anybody."""
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def open(self) -> Session:
        opening = Session.open(self.node, self.clock, jitter=lambda: 0.0)
        self.node.answer()
        return self.successResultOf(opening)

    def wait_for_retry(self) -> None:
        self.clock.advance(MAX_RETRY_DELAY_S)


class Opening(SessionCase):
    def test_interfaces(self) -> None:
        self.assertTrue(verifyObject(INode, self.node))

    def test_the_id_is_that_of_the_table(self) -> None:
        self.assertEqual((self.session.id, self.open().id), (1, 2))

    def test_it_is_tried_until_it_is_open(self) -> None:
        opening = Session.open(self.node, self.clock, jitter=lambda: 0.0)
        self.node.lose(NO_LEADER)
        self.wait_for_retry()
        self.node.lose_answer()
        self.wait_for_retry()
        self.node.answer()
        # The one of which the answer was lost stays behind.
        self.assertEqual(self.successResultOf(opening).id, 3)

    def test_it_fails_with_what_stood_in_the_way(self) -> None:
        self.patch(sessions, "MAX_SESSIONS", 1)
        opening = Session.open(self.node, self.clock, timeout_s=3.3, jitter=lambda: 0.0)
        for _ in range(3):
            self.node.answer()
            self.wait_for_retry()
            self.assertNoResult(opening)
        self.node.answer()
        self.clock.advance(0.5)
        self.failureResultOf(opening, SessionTableFull)

    def test_a_machine_without_sessions_is_noticed(self) -> None:
        opening = Session.open(self.node, self.clock)
        _, done = self.node.waiting.pop()
        done(b"1")
        failure = self.failureResultOf(opening, OutcomeUnknown)
        self.assertIn("Is the state machine wrapped in Sessions?", str(failure.value))

    def test_cancelled(self) -> None:
        opening = Session.open(self.node, self.clock)
        opening.cancel()
        self.failureResultOf(opening, CancelledError)
        self.node.answer()


class Proposing(SessionCase):
    def test_the_result_is_the_state_machines(self) -> None:
        self.assertEqual(self.propose_and_answer(b"a"), b"1")
        self.assertEqual(self.propose_and_answer(b"b"), b"2")

    def propose_and_answer(self, operation: bytes) -> bytes:
        result = self.session.propose(operation)
        self.node.answer()
        return self.successResultOf(result)

    def test_29_a_lost_answer_is_asked_for_again_and_applies_once(self) -> None:
        result = self.session.propose(b"a")
        for _ in range(3):
            self.node.lose_answer()
            self.wait_for_retry()
        self.assertNoResult(result)
        self.node.answer()
        self.assertEqual(self.successResultOf(result), b"1")
        self.assertEqual(self.log.operations, [b"a"])

    def test_29_an_attempt_that_is_applied_late_is_applied_once(self) -> None:
        """The first attempt comes through after the second."""
        result = self.session.propose(b"a")
        late = self.node.lose()
        self.wait_for_retry()
        self.node.answer()
        self.assertEqual(self.successResultOf(result), b"1")
        self.node.apply(late)
        self.assertEqual(self.propose_and_answer(b"b"), b"2")
        self.node.apply(late)
        self.assertEqual(self.log.operations, [b"a", b"b"])

    def test_what_did_not_happen_is_tried_again(self) -> None:
        result = self.session.propose(b"a")
        for outcome in (NO_LEADER, Superseded("x"), Overloaded("x"), SessionResultsFull("x")):
            self.node.lose(outcome)
            self.wait_for_retry()
        # A leader that is stopping has a successor.
        self.node.lose(Stopped("The leader stops."))
        self.wait_for_retry()
        self.node.answer()
        self.assertEqual(self.successResultOf(result), b"1")

    def test_the_pause_doubles_up_to_a_bound(self) -> None:
        result = self.session.propose(b"a", timeout_s=100.0)
        delay_s = RETRY_DELAY_S
        for _ in range(10):
            self.node.lose()
            self.clock.advance(delay_s * 0.999)
            self.assertEqual(self.node.waiting, [])
            self.clock.advance(delay_s * 0.002)
            delay_s = min(delay_s * 2, MAX_RETRY_DELAY_S)
        self.assertEqual(delay_s, MAX_RETRY_DELAY_S)
        self.node.answer()
        self.successResultOf(result)

    def test_the_pause_is_shortened_at_random(self) -> None:
        session = Session(self.node, self.clock, self.session.id, Random(1).random)
        result = session.propose(b"a")
        self.node.lose()
        (retry,) = (c for c in self.clock.getDelayedCalls() if c.getTime() < 1)
        self.assertTrue(RETRY_DELAY_S / 2 <= retry.getTime() < RETRY_DELAY_S)
        result.cancel()
        self.failureResultOf(result, CancelledError)

    def test_what_can_never_be_carried_out_is_not_tried_again(self) -> None:
        result = self.session.propose(b"a")
        self.node.lose(TooLarge("It is."))
        self.failureResultOf(result, TooLarge)

    def test_a_node_that_is_stopped_answers_for_itself(self) -> None:
        self.node.at_once = Stopped("This node is not running.")
        result = self.session.propose(b"a")
        self.failureResultOf(result, Stopped)

    def test_30_no_answer_in_time_is_unknown(self) -> None:
        """In flight, or lost before; whatever the last attempt came to."""
        in_flight, lost, refused = (self.session.propose(b"a", 5.0) for _ in range(3))
        self.node.lose(UNKNOWN, 1)
        self.node.lose(UNKNOWN, 1)
        self.wait_for_retry()
        self.node.lose(NO_LEADER, 2)
        self.node.lose(UNKNOWN, 1)
        self.clock.advance(MAX_RETRY_DELAY_S)
        while len(self.node.waiting) > 1:
            self.node.lose(NO_LEADER, 1)
        self.clock.advance(5.0)
        for result in (in_flight, lost, refused):
            self.failureResultOf(result, OutcomeUnknown)

    def test_30_what_did_not_happen_says_so(self) -> None:
        result = self.session.propose(b"a", 1.85)
        for _ in range(4):
            self.assertNoResult(result)
            self.node.lose(NO_LEADER)
            self.clock.advance(0.5)
        self.assertIs(self.failureResultOf(result, NoLeader).value, NO_LEADER)

    def test_30_what_can_never_be_carried_out_may_have_been(self) -> None:
        """A refusal says nothing of an earlier attempt."""
        result = self.session.propose(b"a")
        self.node.lose_answer()
        self.wait_for_retry()
        self.node.lose(TooLarge("It is."))
        self.failureResultOf(result, OutcomeUnknown)

    def test_29_a_machine_without_sessions_is_not_asked_twice(self) -> None:
        """Each attempt would be applied."""
        result = self.session.propose(b"a")
        _, done = self.node.waiting.pop()
        done(b"an answer without a frame")
        self.failureResultOf(result, OutcomeUnknown)
        self.wait_for_retry()
        self.assertEqual(self.node.waiting, [])

    def test_cancelled(self) -> None:
        """It is given up, which the next command acknowledges; then it never happens."""
        result = self.session.propose(b"a")
        result.cancel()
        self.failureResultOf(result, CancelledError)
        late, done = self.node.waiting.pop()
        done(UNKNOWN)
        self.assertEqual(self.propose_and_answer(b"b"), b"1")
        self.node.apply(late)
        self.assertEqual(self.log.operations, [b"b"])


class Windows(SessionCase):
    def first_unacknowledged(self) -> int:
        """What the cluster is told with the next attempt."""
        return self.node.waiting[-1][0].first_unacknowledged

    def test_answers_are_acknowledged_with_the_next_command(self) -> None:
        results = [self.session.propose(b"%d" % n) for n in range(1, 4)]
        self.node.answer(1)
        results.append(self.session.propose(b"4"))
        self.assertEqual(self.first_unacknowledged(), 1)
        self.node.answer(0)
        results.append(self.session.propose(b"5"))
        self.assertEqual(self.first_unacknowledged(), 3)
        # A retry knows of what was answered since the first attempt.
        self.node.answer(0)
        self.node.lose()
        self.wait_for_retry()
        self.assertEqual(self.first_unacknowledged(), 4)
        self.node.answer()
        self.node.answer()
        self.assertEqual(
            [self.successResultOf(r) for r in results], [b"2", b"1", b"3", b"5", b"4"]
        )

    def test_at_most_a_window_is_under_way(self) -> None:
        results = [self.session.propose(b"x") for _ in range(WINDOW + 10)]
        self.assertEqual(len(self.node.waiting), WINDOW)
        # The last first: the oldest holds the others up.
        for _ in range(WINDOW - 1):
            self.node.answer(-1)
        self.assertEqual(len(self.node.waiting), 1)
        self.node.answer()
        self.assertEqual(len(self.node.waiting), 10)
        while self.node.waiting:
            self.node.answer()
        self.assertEqual(len({self.successResultOf(r) for r in results}), WINDOW + 10)

    def test_one_that_is_given_up_does_not_hold_up_the_others(self) -> None:
        first = self.session.propose(b"first", 1.0)
        results = [self.session.propose(b"x") for _ in range(WINDOW)]
        self.assertEqual(len(self.node.waiting), WINDOW)
        self.clock.advance(1.0)
        self.failureResultOf(first, OutcomeUnknown)
        self.assertEqual(len(self.node.waiting), WINDOW + 1)
        self.assertEqual(self.first_unacknowledged(), 2)
        while self.node.waiting:
            self.node.answer()
        self.assertEqual(len({self.successResultOf(r) for r in results}), WINDOW)

    def test_those_that_wait_are_bounded_and_time_out(self) -> None:
        self.patch(session_client, "MAX_QUEUED", 5)
        results = [self.session.propose(b"x") for _ in range(WINDOW)]
        queued = [self.session.propose(b"x", 1.0) for _ in range(5)]
        self.failureResultOf(self.session.propose(b"x"), SessionWindowFull)
        cancelled = queued.pop()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        queued.append(self.session.propose(b"x", 1.0))
        self.clock.advance(1.0)
        for result in queued:
            self.failureResultOf(result, SessionWindowFull)
        while self.node.waiting:
            self.node.answer()
        for result in results:
            self.successResultOf(result)
        self.assertEqual(len(self.log.operations), WINDOW)

    def test_a_long_queue_that_fails_at_once_exhausts_no_stack(self) -> None:
        results = [self.session.propose(b"x") for _ in range(WINDOW + MAX_QUEUED)]
        self.node.at_once = Stopped("This node is not running.")
        for _ in range(WINDOW):
            self.node.lose(TooLarge("x"))
        for result in results[WINDOW:]:
            self.failureResultOf(result, Stopped)
        for result in results[:WINDOW]:
            self.failureResultOf(result, TooLarge)


class Ending(SessionCase):
    def expire(self) -> None:
        self.node.time_ms += SESSION_TTL_MS

    def test_29_an_expired_session_applies_nothing(self) -> None:
        """It was sent once only, so that it certainly did not happen."""
        results = [self.session.propose(b"%d" % n) for n in range(WINDOW + 2)]
        self.expire()
        self.node.answer()
        failure = self.failureResultOf(results[0], SessionClosed)
        self.assertIsInstance(failure.value, DidNotHappen)
        # Those that were queued will never be sent, and nothing more is taken.
        for result in results[WINDOW:]:
            self.failureResultOf(result, SessionClosed)
        self.failureResultOf(self.session.propose(b"x"), SessionClosed)
        while self.node.waiting:
            self.node.answer()
        for result in results[1:WINDOW]:
            self.failureResultOf(result, SessionClosed)
        self.assertEqual(self.log.operations, [])

    def test_30_an_expired_session_may_have_applied_it_before(self) -> None:
        result = self.session.propose(b"a")
        self.node.lose_answer()
        self.wait_for_retry()
        self.expire()
        self.node.answer()
        failure = self.failureResultOf(result, SessionExpired)
        self.assertIsInstance(failure.value, OutcomeUnknown)
        self.assertEqual(self.log.operations, [b"a"])

    def test_closing_tells_the_cluster(self) -> None:
        closed = self.session.close()
        self.node.lose()
        self.wait_for_retry()
        self.node.answer()
        self.successResultOf(closed)
        self.assertEqual(len(self.node.machine), 0)
        self.failureResultOf(self.session.propose(b"x"), SessionClosed)
        self.successResultOf(self.session.close())

    def test_closing_waits_for_what_is_under_way(self) -> None:
        results = [self.session.propose(b"x") for _ in range(WINDOW + 1)]
        closed, again = self.session.close(), self.session.close()
        self.failureResultOf(self.session.propose(b"x"), SessionClosed)
        for _ in range(WINDOW + 1):
            self.assertEqual(len(self.node.machine), 1)
            self.node.answer()
        self.assertNoResult(closed)
        self.node.answer()
        self.successResultOf(closed)
        self.successResultOf(again)
        for result in results:
            self.successResultOf(result)
        self.assertEqual((len(self.node.machine), len(self.log.operations)), (0, WINDOW + 1))

    def test_closing_ends_even_if_nobody_can_be_told(self) -> None:
        closed = self.session.close(2.0)
        self.clock.advance(2.0)
        self.successResultOf(closed)
        self.node.waiting.clear()

    def test_closing_an_expired_session_tells_nobody(self) -> None:
        result = self.session.propose(b"x")
        self.expire()
        closed = self.session.close()
        self.node.answer()
        self.failureResultOf(result, SessionClosed)
        self.successResultOf(closed)
        self.assertEqual(self.node.waiting, [])


class Chances(SessionCase):
    def test_29_whatever_is_lost_each_is_applied_once(self) -> None:
        """A node that loses, delays and repeats: every operation once, in the end."""
        for seed in range(20):
            random = Random(seed)
            self.log.operations.clear()
            late: list[Command] = []
            results = [self.session.propose(b"%d" % n, 10_000.0) for n in range(60)]
            while not all(r.called for r in results):
                self.step(random, late)
            for command in late:
                self.node.apply(command)
            self.assertEqual(sorted(self.log.operations), sorted(b"%d" % n for n in range(60)))
            for result in results:
                self.successResultOf(result)

    def step(self, random: Random, late: list[Command]) -> None:
        fates: list[Callable[[int], object]] = [
            self.node.answer,
            self.node.lose_answer,
            lambda position: late.append(self.node.lose(UNKNOWN, position)),
            lambda position: self.node.lose(NO_LEADER, position),
        ]
        if self.node.waiting:
            random.choice(fates)(random.randrange(len(self.node.waiting)))
        if late and random.random() < 0.3:
            self.node.apply(random.choice(late))
        self.clock.advance(random.random() / 10)
