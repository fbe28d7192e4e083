"""Questions to the leader's program: asked again while nobody leads, and never unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from raftd import questions, requests
from raftd.errors import (
    BadRequest,
    IncompatibleVersion,
    LeaseNotFound,
    NoLeader,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerUnreachable,
    RaftdError,
    Stopped,
    TooLarge,
)
from raftd.interfaces import MAX_QUESTION_BYTES, Done
from raftd.test.drivers import Alone, Answer, ClusterTestCase, Journal
from raftd.testing import Cluster

LEADER = 2
REQUEST_S = 5.0


class Program:
    """Answers questions with its name, or as it is told; or leaves them open."""

    def __init__(self, name: bytes = b"me") -> None:
        self.name = name
        self.asked: list[bytes] = []
        self.open: list[Done[bytes]] = []
        self.say: Callable[[Done[bytes]], None] = lambda done: done(self.name)

    def __call__(self, question: bytes, done: Done[bytes]) -> None:
        self.asked.append(question)
        if len(self.asked) > 10_000:
            raise AssertionError("this goes on for ever")
        self.say(done)


def ask(node: Any, question: bytes = b"?") -> Answer[bytes]:
    answer: Answer[bytes] = Answer()
    node.ask_leader(question, answer)
    return answer


class AtTheLeader(ClusterTestCase):
    """A node that leads, alone in its cluster."""

    def setUp(self) -> None:
        super().setUp()
        self.alone = Alone(1)
        self.alone.advance(0.01)
        self.program = self.alone.node.on_question = Program()

    def ask(self, question: bytes = b"?") -> Answer[bytes]:
        answer = ask(self.alone.node, question)
        self.answers.append(answer)
        self.alone.turn()
        return answer

    def test_its_own_program_answers(self) -> None:
        self.assertEqual(self.ask(b"who?").outcome, b"me")
        self.assertEqual(self.program.asked, [b"who?"])

    def test_a_program_that_answers_nothing(self) -> None:
        self.alone.node.on_question = None
        self.assertOutcome(self.ask(), BadRequest)

    def test_an_error_of_the_program_is_the_outcome(self) -> None:
        for error in (LeaseNotFound("No."), Overloaded("No."), BadRequest("What?")):
            self.program.say = lambda done, error=error: done(error)  # type: ignore[misc]
            self.assertIs(self.ask().outcome, error)

    def test_an_answer_may_come_later_but_not_too_late(self) -> None:
        self.program.say = self.program.open.append
        answer, late = self.ask(), self.ask()
        self.assertFalse(answer.given)
        self.program.open[0](b"so")
        self.assertEqual(answer.outcome, b"so")
        self.alone.advance(REQUEST_S + 0.01)
        self.assertOutcome(late, NoQuorum)
        self.program.open[1](b"too late")
        self.assertEqual(len(late.outcomes), 1)

    def test_a_program_that_is_not_ready_yet_is_asked_again_and_not_at_once(self) -> None:
        self.program.say = lambda done: done(NotLeader("I have only just begun."))
        answer = self.ask()
        asked = len(self.program.asked)
        self.assertLess(asked, 5, "it spins")
        self.alone.advance(questions.RETRY_DELAY_S + 0.001)
        self.assertEqual(len(self.program.asked), asked + 1)
        self.program.say = lambda done: done(b"ready")
        self.alone.advance(questions.RETRY_DELAY_S + 0.001)
        self.assertEqual(answer.outcome, b"ready")

    def test_a_question_that_is_too_long(self) -> None:
        self.assertOutcome(self.ask(b"x" * (MAX_QUESTION_BYTES + 1)), TooLarge)
        self.assertEqual(self.ask(b"x" * MAX_QUESTION_BYTES).outcome, b"me")

    def test_a_program_that_raises_stops_the_node(self) -> None:
        def raising(done: Done[bytes]) -> None:
            raise ZeroDivisionError

        self.program.say = raising
        self.assertOutcome(self.ask(), Stopped)
        self.assertEqual(len(self.alone.fatal), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_stopped_node(self) -> None:
        self.program.say = self.program.open.append
        waiting = self.ask()
        self.alone.node.stop()
        self.assertOutcome(waiting, Stopped)
        self.assertOutcome(self.ask(), Stopped)
        self.failureResultOf(self.alone.node.forwarded_question(b"?", 100), NotLeader)
        self.program.open[0](b"nobody listens")

    def test_questions_are_bounded_like_other_requests(self) -> None:
        self.patch(requests, "MAX_REQUESTS", 10)
        self.program.say = self.program.open.append
        waiting = [self.ask() for _ in range(10)]
        self.assertOutcome(self.ask(), Overloaded)
        self.program.open[0](b"so")
        self.assertEqual(waiting[0].outcome, b"so")
        self.assertFalse(self.ask().given, "there is room again")

    def test_questions_under_way_are_bounded(self) -> None:
        self.patch(questions, "MAX_QUESTIONS_UNDER_WAY", 3)
        self.program.say = self.program.open.append
        waiting = [self.ask(b"%d" % i) for i in range(10)]
        for i in range(10):
            self.assertLessEqual(len(self.program.open), 3 + i)
            self.program.open[i](b"%d" % i)
            self.alone.turn()
        self.assertEqual([a.outcome for a in waiting], [b"%d" % i for i in range(10)])

    def test_what_time_has_taken_leaves_no_room_taken(self) -> None:
        self.patch(questions, "MAX_QUESTIONS_UNDER_WAY", 3)
        self.program.say = self.program.open.append
        for _ in range(3):
            self.ask()
        self.alone.advance(REQUEST_S + 0.01)
        self.program.say = lambda done: done(b"so")
        self.assertEqual(self.ask().outcome, b"so")

    def test_a_peer_asks(self) -> None:
        answered = self.alone.node.forwarded_question(b"?", 1000)
        self.alone.turn()
        self.assertEqual(self.successResultOf(answered), b"me")
        self.program.say = lambda done: done(LeaseNotFound("No."))
        refused = self.alone.node.forwarded_question(b"?", 1000)
        self.alone.turn()
        self.failureResultOf(refused, LeaseNotFound)

    def test_a_peer_is_told_at_once_that_its_question_is_for_another(self) -> None:
        """It is not kept here: the peer asks whoever leads itself."""
        self.program.say = lambda done: done(NotLeader("Not any more."))
        refused = self.alone.node.forwarded_question(b"?", 1000)
        self.alone.turn()
        self.failureResultOf(refused, NotLeader)
        self.alone.advance(1.0)
        self.assertEqual(len(self.program.asked), 1)

    def test_a_peer_is_told_that_its_time_is_up_before_it_gives_up(self) -> None:
        self.program.say = self.program.open.append
        asked = self.alone.node.forwarded_question(b"?", 700)
        self.alone.advance(0.71)
        self.failureResultOf(asked, NoQuorum)


class AtAFollower(ClusterTestCase):
    """A follower, `n1`, and a leader that does as it is told."""

    def setUp(self) -> None:
        super().setUp()
        self.alone = Alone(3)
        self.program = self.alone.node.on_question = Program()
        self.alone.heartbeat(LEADER)
        self.leader = self.alone.transport.peers[LEADER]

    def ask(self) -> Answer[bytes]:
        answer = ask(self.alone.node)
        self.answers.append(answer)
        self.alone.turn()
        return answer

    def stay(self, seconds: float = 0.1) -> None:
        """Time passes, and the leader stays."""
        for _ in range(round(seconds / 0.1)):
            self.alone.heartbeat(LEADER)
            self.alone.advance(0.1)

    def test_the_leader_is_asked(self) -> None:
        answer = self.ask()
        ((question, sent),) = self.leader.questions
        self.assertEqual(question, b"?")
        sent.callback(b"so")
        self.assertEqual(answer.outcome, b"so")
        self.assertEqual(self.program.asked, [], "its own program does not lead")

    def test_the_leaders_no_is_the_outcome(self) -> None:
        answer = self.ask()
        self.leader.questions[0][1].errback(LeaseNotFound("No."))
        self.assertOutcome(answer, LeaseNotFound)

    def test_what_says_nothing_is_asked_again_and_is_never_unknown(self) -> None:
        answer = self.ask()
        errors: list[RaftdError] = [
            PeerUnreachable("It is gone."),
            NotLeader("Not me."),
            NoLeader("Nothing was sent."),
            Stopped("I am stopping."),
            OutcomeUnknown("An error of a later version."),
            IncompatibleVersion("Ask? What is that?"),
        ]
        for i, error in enumerate(errors):
            self.assertEqual(len(self.leader.questions), i + 1)
            self.leader.questions[i][1].errback(error)
            self.alone.turn()
            self.assertEqual(len(self.leader.questions), i + 1, "it spins")
            self.assertFalse(answer.given, error)
            self.stay()
        self.leader.questions[-1][1].callback(b"so")
        self.assertEqual(answer.outcome, b"so")

    def test_without_a_leader_it_waits_until_its_time_is_up(self) -> None:
        alone = Alone(3)
        answer = ask(alone.node)
        calls = len(alone.clock.getDelayedCalls())
        alone.advance(REQUEST_S - 0.01)
        self.assertFalse(answer.given)
        self.assertLess(len(alone.clock.getDelayedCalls()), calls + 5)
        alone.advance(0.02)
        self.assertIsInstance(answer.outcome, NoLeader)

    def test_it_waits_for_a_leader(self) -> None:
        alone = Alone(3)
        answer = ask(alone.node)
        alone.advance(0.3)
        alone.heartbeat(LEADER)
        alone.transport.peers[LEADER].questions[0][1].callback(b"so")
        self.assertEqual(answer.outcome, b"so")

    def test_a_new_leader_is_asked_and_the_former_ones_answer_is_dropped(self) -> None:
        answer = self.ask()
        self.alone.heartbeat(3, term=2)
        ((_, sent),) = self.alone.transport.peers[3].questions
        self.leader.questions[0][1].callback(b"of yesterday")
        self.assertFalse(answer.given)
        sent.callback(b"so")
        self.assertEqual(answer.outcome, b"so")

    def test_no_answer_in_time(self) -> None:
        answer = self.ask()
        self.stay(REQUEST_S + 0.1)
        self.assertOutcome(answer, NoLeader)
        self.leader.questions[0][1].callback(b"too late")
        self.assertEqual(len(answer.outcomes), 1)

    def test_a_peers_question_is_never_sent_on(self) -> None:
        refused = self.alone.node.forwarded_question(b"?", 1000)
        self.alone.turn()
        self.failureResultOf(refused, NotLeader)
        self.assertEqual((self.leader.questions, self.program.asked), ([], []))


class OnClusters(SynchronousTestCase):
    """The nodes that ship, over the network in memory."""

    def cluster(self) -> tuple[Cluster[Journal], dict[str, Program], str]:
        cluster = Cluster(3, Journal)
        programs = {name: Program(name.encode()) for name in cluster.nodes}
        for name, program in programs.items():
            cluster[name].on_question = program
        return cluster, programs, cluster.await_leader()

    def test_any_node_asks_the_leader(self) -> None:
        cluster, programs, leader = self.cluster()
        for name in cluster.nodes:
            answer = cluster.result(cluster[name].ask_leader(b"?"))
            self.assertEqual(answer, leader.encode())
        self.assertEqual(len(programs[leader].asked), 3)

    def test_the_program_goes_with_the_name_over_a_restart(self) -> None:
        cluster, _, leader = self.cluster()
        for name in list(cluster.nodes):
            cluster.crash(name)
        for name in cluster.members:
            cluster.restart(name)
        leader = cluster.await_leader()
        answer = cluster.result(cluster["n1"].ask_leader(b"?"))
        self.assertEqual(answer, leader.encode())

    def test_the_leader_crashes_at_any_moment(self) -> None:
        """Whoever leads next is asked, within the request timeout; it is never unknown."""
        for n in range(12):
            cluster, _, leader = self.cluster()
            other = next(name for name in cluster.nodes if name != leader)
            answer = cluster[other].ask_leader(b"?")
            cluster.advance(n * 0.0004)
            cluster.crash(leader, power_lost=n % 2 == 1)
            said = cluster.result(answer)
            self.assertIn(said, [name.encode() for name in cluster.members])
            if said != leader.encode():
                self.assertEqual(said, cluster.await_leader().encode())

    def test_a_former_leader_asks_its_successor(self) -> None:
        """A question that its own program has not answered yet is asked of the next one."""
        cluster, programs, leader = self.cluster()
        programs[leader].say = programs[leader].open.append
        answer = cluster[leader].ask_leader(b"?")
        cluster.advance(0.01)
        cluster.result(cluster[leader].transfer())
        said = cluster.result(answer)
        self.assertNotEqual(said, leader.encode())
        programs[leader].open[0](b"I have led once")  # which nobody minds
