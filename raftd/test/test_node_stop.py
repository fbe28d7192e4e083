"""
How a node ends: when it is told to, when its state machine breaks, and when it
is broken itself.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from raftd import routing
from raftd.core import leader as leader_module
from raftd.core.membership import AddLearner
from raftd.core.messages import (
    Command,
    Heartbeat,
    Member,
    RequestVote,
    Response,
)
from raftd.errors import (
    DidNotHappen,
    InvariantViolated,
    NotLeader,
    OutcomeUnknown,
    PeerUnreachable,
    RaftdError,
    Stopped,
)
from raftd.test.drivers import Alone, Answer, ClusterTestCase, Journal, command


class StopTests(ClusterTestCase):
    def test_stop_answers_everything_once(self) -> None:
        """In order, which takes a while with nobody to hand over to; or at once."""
        for in_order in (True, False):
            self._ends_with_much_in_hand(in_order)

    def _ends_with_much_in_hand(self, in_order: bool) -> None:
        cluster, leader, (follower, other) = self.led(3, Journal)
        cluster.partition([leader], [follower], [other])
        sent = self.propose(cluster, leader, b"sent")
        forwarded = self.propose(cluster, follower, b"forwarded")
        reads = [self.read(cluster, leader), self.read(cluster, follower)]
        cluster.advance(0.002)
        cluster.start_joiner("n4")
        changes: list[Deferred[Any]] = [
            cluster[name].change_membership([AddLearner(cluster.members["n4"])])
            for name in (leader, follower)
        ]
        changes += [cluster[name].transfer() for name in (leader, follower)]
        ends: list[Any] = []
        for change in changes:
            change.addBoth(ends.append)
        cluster.advance(0.01)
        self.assertEqual(ends, [])
        queued = self.propose(cluster, leader, b"queued")
        asked = cluster.nodes[leader].forwarded([command(b"of a peer")], 5000)
        index = cluster.nodes[leader].forwarded_read(5000)
        for name in (leader, follower):
            if in_order:
                cluster.stop(name)
            else:
                cluster.crash(name)
        self.assertOutcome(sent, OutcomeUnknown)
        self.assertOutcome(forwarded, OutcomeUnknown)
        self.assertOutcome(queued, Stopped)
        for read in reads:
            self.assertOutcome(read, DidNotHappen)
        self.assertEqual(len(ends), 4)
        for end in ends:
            end.trap(RaftdError)
        # In order, it has stepped down before it stops: its sender may go on at once.
        refusal = NotLeader if in_order else Stopped
        self.assertIsInstance(self.successResultOf(asked)[0], refusal)
        self.failureResultOf(index, NotLeader, Stopped)

    def test_stopped_node_takes_nothing_on(self) -> None:
        alone = Alone(1)
        alone.advance(0.01)
        self.assertEqual(alone.node.status().role, "leader")
        self.successResultOf(alone.node.stop())
        self.assertOutcome(alone.propose(b"w"), Stopped)
        self.assertOutcome(alone.read(), Stopped)
        self.failureResultOf(alone.node.receive(2, Heartbeat(1, 0, 0)), Stopped)
        self.failureResultOf(alone.node.forwarded([command(b"w")], 1000), NotLeader, Stopped)
        self.failureResultOf(alone.node.forwarded_read(1000), NotLeader, Stopped)
        change = [AddLearner(Member(9, "n9"))]
        self.failureResultOf(alone.node.change_membership(change), Stopped)
        self.failureResultOf(alone.node.transfer(), Stopped)
        self.assertEqual(alone.clock.getDelayedCalls(), [])

    def test_stop_from_within_an_answer(self) -> None:
        """Whoever is answered may stop the node in the middle of its turn."""
        self.patch(routing, "MAX_BATCH_COMMANDS", 1)
        self.patch(leader_module, "MAX_UNCOMMITTED_BYTES", 10)
        for kind in ("write", "read", "refused"):
            alone = Alone(1)
            alone.advance(0.01)
            stopped: list[Deferred[Any]] = []
            answer: Answer[Any] = Answer(partial(self._stop, alone, stopped))
            others: list[Answer[Any]] = []
            if kind == "write":
                alone.node.propose(command(b"w"), answer)
                others = [alone.propose(b"x"), alone.read()]
            elif kind == "read":
                alone.node.read(answer)
                others = [alone.read(), alone.propose(b"x")]
            else:
                # The first is proposed, the second is not, and neither is written.
                others = [alone.propose(b"x" * 20), alone.read()]
                alone.node.propose(command(b"w"), answer)
            alone.turn()
            alone.log.flush()
            alone.turn()
            self.assertTrue(answer.given, kind)
            self.successResultOf(stopped[0])
            for other in others:
                self.assertTrue(other.given, kind)
            self.assertEqual(alone.fatal, [], kind)
            self.assertEqual(alone.clock.getDelayedCalls(), [], kind)
            self.assertEqual(self.flushLoggedErrors(), [], kind)

    def _stop(self, alone: Alone, stopped: list[Deferred[Any]], _: object) -> None:
        stopped.append(alone.node.stop())

    def test_state_machine_that_raises_stops_the_node(self) -> None:
        class Broken(Journal):
            def apply(self, index: int, time_ms: int, command: Command) -> bytes:
                raise ZeroDivisionError("it cannot")

        alone = Alone(1, Broken())
        alone.advance(0.01)
        write, read = alone.propose(b"w"), alone.read()
        alone.advance(0.01)
        self.assertOutcome(write, OutcomeUnknown)
        self.assertEqual(len(read.outcomes), 1)
        self.assertEqual(len(alone.fatal), 1)
        self.assertIsInstance(alone.fatal[0], InvariantViolated)
        self.assertIn("it cannot", str(alone.fatal[0]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_state_machine_without_a_result_stops_the_node(self) -> None:
        """Rather than being given the same command again and again."""

        class Forgetful(Journal):
            def apply(
                self, index: int, time_ms: int, command: Command
            ) -> Generator[None, None, bytes]:
                self.operations.append(command.operation)
                if len(self.operations) > 100:
                    raise AssertionError("applied over and over")
                yield
                return None  # type: ignore[return-value]

        machine = Forgetful()
        alone = Alone(1, machine)
        alone.advance(0.01)
        write = alone.propose(b"w")
        alone.advance(0.01)
        self.assertOutcome(write, OutcomeUnknown)
        self.assertEqual(machine.operations, [b"w"])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_defect_in_any_input_stops_the_node(self) -> None:
        """An input that was half taken leaves a core that nobody can trust."""
        for name in ("persisted", "receive_request", "receive_response"):
            alone = Alone(2)

            def broken(*_: object) -> None:
                raise ZeroDivisionError("a defect")

            alone.advance(1.3)  # it asks for a pre-vote
            (_, answer) = alone.transport.peers[2].sent[-1]
            self.patch(alone.node._raft, name, broken)
            if name == "receive_response":
                answer.errback(PeerUnreachable("gone"))
                self.patch(alone.node._raft, "unreachable", broken)
                alone.advance(1.3)
                alone.transport.peers[2].sent[-1][1].errback(PeerUnreachable("gone"))
            elif name == "receive_request":
                response: Deferred[Response] = alone.node.receive(2, Heartbeat(9, 0, 0))
                self.failureResultOf(response, RaftdError)
            else:
                # A vote asked for in a new term has to be made durable.
                alone.node.receive(2, RequestVote(9, 1, 1, True)).addErrback(lambda _: None)
                alone.advance(0.01)
            self.assertEqual(len(alone.fatal), 1, name)
            self.assertIsInstance(alone.fatal[0], InvariantViolated, name)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, name)
