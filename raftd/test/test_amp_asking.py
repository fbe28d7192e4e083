"""The asking side of peers, against whatever bytes come back."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Heartbeat, HeartbeatResponse
from raftd.errors import PeerUnreachable, RaftdError
from raftd.net import arguments, boxes, commands
from raftd.net.boxes import BoxConnection, NotSent
from raftd.test.amprig import box, request
from raftd.test.peernet import Pair, failure_of, reactor_time


class AskTests(SynchronousTestCase):
    """The asking end, against whatever bytes come back."""

    def setUp(self) -> None:
        self.pair = Pair(connect=False)
        self.clock = self.pair.clock
        self.reports: list[str] = []
        self.closed: list[BoxConnection] = []
        self.connection = BoxConnection(
            reactor_time(self.clock), "bob:4002", self.reports.append, self.closed.append
        )
        self.transport = StringTransport()
        self.connection.makeConnection(self.transport)

    def ask(self, number: int = 1, timeout_s: float = 1.0) -> Deferred[object]:
        return self.connection.ask(Heartbeat(1, 1, number), timeout_s)

    def answer(self, tag: bytes) -> bytes:
        rpc = commands.RPC_OF_REQUEST[Heartbeat]
        return rpc.response_box(tag, HeartbeatResponse(1, 1))

    def test_a_call_that_times_out_closes_its_connection(self) -> None:
        """And takes all other calls with it, before anyone can make another."""
        patient = self.ask(1, 5.0)
        late = self.ask(2, 1.0)
        during: list[BaseException] = []
        late.addErrback(lambda _: during.append(failure_of(self.ask(3))))
        self.clock.advance(0.99)
        self.assertEqual(self.closed, [])
        self.clock.advance(0.01)
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.reports, ["no answer to Heartbeat within 1000 ms"])
        self.assertEqual(self.closed, [self.connection])
        error = failure_of(patient)
        self.assertIsInstance(error, PeerUnreachable)
        self.assertNotIsInstance(error, NotSent)
        self.assertIn("bob:4002", str(error))
        self.assertIsInstance(during[0], NotSent)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_answer_in_time_is_the_end_of_it(self) -> None:
        for number in range(1, 20):
            asked = self.ask(number)
            self.clock.advance(0.9)
            self.connection.dataReceived(self.answer(b"%x" % number))
            self.assertEqual(self.successResultOf(asked), HeartbeatResponse(1, 1))
        self.clock.advance(5)
        self.assertEqual((self.reports, self.clock.getDelayedCalls()), ([], []))

    def test_a_shorter_timeout_after_a_longer_one(self) -> None:
        self.ask(1, 5.0).addErrback(lambda _: None)
        self.clock.advance(1)
        self.ask(2, 0.5).addErrback(lambda _: None)
        self.clock.advance(0.5)
        self.assertIn("500 ms", self.reports[0])

    def test_garbage_in_an_answer(self) -> None:
        for bad in (
            box((b"_answer", b"1"), (b"term", b"x"), (b"round", b"1")),
            box((b"_answer", b"1")),
            box((b"_answer", b"2")),
            box((b"_error", b"2")),
        ):
            self.setUp()
            asked = self.ask()
            self.connection.dataReceived(bad)
            self.assertIsInstance(failure_of(asked), PeerUnreachable)
            self.assertEqual(len(self.reports), 1)

    def test_the_same_answer_twice(self) -> None:
        asked = self.ask()
        self.connection.dataReceived(self.answer(b"1") * 2)
        self.successResultOf(asked)
        self.assertIn("not asked", self.reports[0])

    def test_errors_arrive_as_themselves(self) -> None:
        for code, kind in arguments.WIRE_ERRORS.items():
            self.setUp()
            asked = self.ask()
            self.connection.dataReceived(commands.error_box(b"1", code.encode(), "Why."))
            error = failure_of(asked)
            self.assertIs(type(error), kind)
            self.assertEqual(str(error), "Why.")
            self.assertEqual(self.closed, [])

    def test_errors_without_code_or_sentence(self) -> None:
        asked = self.ask()
        self.connection.dataReceived(box((b"_error", b"1")))
        self.assertIsInstance(failure_of(asked), RaftdError)
        asked = self.ask()
        self.connection.dataReceived(box((b"_error", b"2"), (b"_error_code", b"UNKNOWN")))
        self.assertIsInstance(failure_of(asked), PeerUnreachable)
        self.assertEqual(self.reports, [])

    def test_requests_from_the_end_that_answers(self) -> None:
        self.connection.dataReceived(request(Heartbeat(1, 1, 1)))
        self.assertIn("Heartbeat is not for this connection", self.reports[0])

    def test_calls_are_bounded(self) -> None:
        asked = [self.ask(n) for n in range(boxes.MAX_CALLS)]
        self.transport.clear()
        self.assertIsInstance(failure_of(self.ask()), NotSent)
        self.assertEqual(self.transport.value(), b"")
        self.connection.dataReceived(self.answer(b"1"))
        self.successResultOf(asked[0])
        asked.append(self.ask())
        self.connection.drop("done")
        for deferred in asked[1:]:
            self.assertIsInstance(failure_of(deferred), PeerUnreachable)

    def big(self) -> Deferred[object]:
        return self.connection.ask(commands.ForwardRequest([b"x" * 4_000_000], 1), 1.0)

    def test_bytes_of_calls_are_bounded(self) -> None:
        for _ in range(boxes.MAX_CALLS_BYTES // 4_000_100):
            self.assertNoResult(self.big())
        self.assertIsInstance(failure_of(self.big()), NotSent)
        self.assertNoResult(self.ask())

    def test_unsent_bytes_are_bounded(self) -> None:
        self.connection.pauseProducing()
        for _ in range(boxes.MAX_UNSENT_BYTES // 4_000_100):
            self.assertNoResult(self.big())
        self.assertIsInstance(failure_of(self.big()), NotSent)
        self.connection.resumeProducing()
        self.assertNoResult(self.big())

    def test_a_request_that_breaks_the_format_is_not_sent(self) -> None:
        self.failureResultOf(self.connection.ask(Heartbeat(-1, 1, 1), 1.0), ValueError)
        self.assertEqual(self.transport.value(), b"")
        self.assertNoResult(self.ask())

    def test_lost(self) -> None:
        asked = self.ask()
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.assertIsInstance(failure_of(asked), PeerUnreachable)
        self.assertEqual((self.reports, self.closed), ([], [self.connection]))
        self.successResultOf(self.connection.disconnected)
        self.assertIsInstance(failure_of(self.ask()), NotSent)
