"""Streams in memory behave as TCP does to the protocols at their ends."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
)
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from raftd.memory_network import Network
from raftd.memory_streams import BUFFER_BYTES, CONNECT_TIMEOUT_S, WINDOW_BYTES, MemoryEndpoint

ME, TARGET = 100, 1


class Peer(Protocol):
    """Keeps what comes, and how it ended."""

    def __init__(self) -> None:
        self.received = b""
        self.reason: Any = None
        self.is_paused = False
        self.pauses = 0
        self.was_stopped = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.reason is None
        self.reason = reason.type

    def pauseProducing(self) -> None:
        self.is_paused = True
        self.pauses += 1

    def resumeProducing(self) -> None:
        self.is_paused = False

    def stopProducing(self) -> None:
        self.was_stopped = True


@implementer(IHalfCloseableProtocol)
class HalfPeer(Peer):
    """One that notices that the other has said its last."""

    has_read_all = False

    def readConnectionLost(self) -> None:
        self.has_read_all = True

    def writeConnectionLost(self) -> None:
        """Never told."""


class StreamCase(SynchronousTestCase):
    server_kind: type[Peer] = Peer

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, Random(1))
        self.network.nodes[TARGET] = object()  # type: ignore[assignment]
        self.listener: Factory | None = Factory.forProtocol(self.server_kind)
        self.served: list[Peer] = []
        build = self.listener.buildProtocol

        def built(addr: Any) -> Any:
            self.served.append(build(addr))  # type: ignore[arg-type]
            return self.served[-1]

        self.patch(self.listener, "buildProtocol", built)

    def connect(self) -> Any:
        """A Deferred of a connection."""
        endpoint = MemoryEndpoint(self.network, ME, TARGET, lambda: self.listener)
        return endpoint.connect(Factory.forProtocol(Peer))

    def pair(self) -> tuple[Any, Any]:
        """Both ends of one that stands."""
        connecting = self.connect()
        self.advance()
        return self.successResultOf(connecting), self.served[-1]

    def advance(self, seconds: float = 0.1) -> None:
        for _ in range(round(seconds * 1000)):
            self.clock.advance(0.001)

    def assertQuiet(self) -> None:
        self.advance()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.network._channels, [])


class ConnectTests(StreamCase):
    def test_bytes_in_order(self) -> None:
        client, server = self.pair()
        for i in range(100):
            client.transport.write(b"%d," % i)
            server.transport.writeSequence([b"%d" % i, b";"])
        self.advance()
        self.assertEqual(server.received, b"".join(b"%d," % i for i in range(100)))
        self.assertEqual(client.received, b"".join(b"%d;" % i for i in range(100)))

    def test_nobody_listens(self) -> None:
        self.listener = None
        connecting = self.connect()
        self.advance()
        self.failureResultOf(connecting, ConnectionRefusedError)
        self.assertQuiet()

    def test_nobody_answers(self) -> None:
        for cut in ((ME, TARGET), (TARGET, ME)):
            self.network.heal()
            self.network.cut(*cut)
            connecting = self.connect()
            self.advance(CONNECT_TIMEOUT_S - 0.1)
            self.assertNoResult(connecting)
            self.advance(0.2)
            self.failureResultOf(connecting, TimeoutError)

    def test_cancelled_at_any_moment(self) -> None:
        for step in range(6):
            connecting = self.connect()
            self.advance(step * 0.001)
            if connecting.called:
                continue
            connecting.cancel()
            self.failureResultOf(connecting, ConnectingCancelledError)
            self.assertQuiet()
        for server in self.served:
            self.assertIn(server.reason, (ConnectionLost, None))


class EndTests(StreamCase):
    server_kind = HalfPeer

    def test_everything_is_sent_before_it_closes(self) -> None:
        client, server = self.pair()
        data = bytes(1000) * 500
        server.transport.write(data)
        server.transport.loseConnection()
        server.transport.loseConnection()
        self.advance()
        self.assertEqual(client.received, data)
        self.assertEqual((client.reason, server.reason), (ConnectionDone, ConnectionDone))
        self.assertQuiet()

    def test_one_that_can_be_half_closed(self) -> None:
        client, server = self.pair()
        client.transport.write(b"last")
        client.transport.loseConnection()
        self.advance()
        self.assertEqual((server.received, server.has_read_all), (b"last", True))
        self.assertEqual((client.reason, server.reason), (ConnectionDone, None))
        # Nobody is there any more to take this.
        server.transport.write(b"late")
        self.advance()
        self.assertEqual(server.reason, ConnectionLost)
        self.assertQuiet()

    def test_aborted(self) -> None:
        client, server = self.pair()
        client.transport.write(b"x" * 10**6)
        client.transport.abortConnection()
        self.assertIsNone(client.reason)
        self.advance()
        self.assertEqual((client.reason, server.reason), (ConnectionAborted, ConnectionLost))
        self.assertLess(len(server.received), 10**6 + 1)
        client.transport.write(b"nothing")
        client.transport.loseConnection()
        self.assertQuiet()

    def test_a_process_that_dies(self) -> None:
        client, server = self.pair()
        self.network.ended(TARGET)
        self.assertEqual(server.reason, ConnectionLost)
        self.advance()
        self.assertEqual(client.reason, ConnectionLost)
        self.assertQuiet()

    def test_a_host_without_power_says_nothing(self) -> None:
        client, server = self.pair()
        self.network.ended(TARGET, power_lost=True)
        client.transport.write(b"hello?")
        self.advance(60.0)
        self.assertEqual((client.reason, server.reason), (None, ConnectionLost))
        self.network.began(TARGET, object())  # type: ignore[arg-type]
        client.transport.write(b"hello?")
        self.advance()
        self.assertEqual(client.reason, ConnectionLost)
        self.assertQuiet()

    def test_behind_what_is_lost_nothing_comes(self) -> None:
        client, server = self.pair()
        self.network.cut(ME, TARGET)
        client.transport.write(b"lost")
        self.advance()
        self.network.heal()
        client.transport.write(b"late")
        server.transport.write(b"the other way")
        self.advance()
        self.assertEqual((server.received, client.received), (b"", b"the other way"))

    def test_a_client_that_dies(self) -> None:
        client, server = self.pair()
        for channel in list(self.network._channels):
            channel.close()
        self.advance()
        self.assertEqual((client.reason, server.reason), (ConnectionLost, ConnectionLost))
        self.assertQuiet()


class PressureTests(StreamCase):
    def test_who_does_not_read_is_sent_no_more_than_a_window(self) -> None:
        client, server = self.pair()
        client.transport.pauseProducing()
        server.transport.registerProducer(server, True)
        piece = b"x" * 1000
        written = 0
        while not server.is_paused:
            server.transport.write(piece)
            written += len(piece)
            self.advance(0.002)
        self.assertEqual(client.received, b"")
        self.assertTrue(0 <= written - WINDOW_BYTES - BUFFER_BYTES <= 3 * len(piece))
        self.advance(10.0)
        self.assertTrue(server.is_paused)
        client.transport.resumeProducing()
        self.advance()
        self.assertFalse(server.is_paused)
        self.assertEqual((len(client.received), server.pauses), (written, 1))

    def test_it_closes_only_when_its_producer_has_done(self) -> None:
        client, server = self.pair()
        client.transport.pauseProducing()
        server.transport.registerProducer(server, True)
        server.transport.write(b"x" * 10**6)
        self.assertTrue(server.is_paused)
        server.transport.loseConnection()
        self.advance()
        self.assertIsNone(server.reason)
        client.transport.resumeProducing()
        self.advance()
        server.transport.unregisterProducer()
        self.advance()
        self.assertEqual((len(client.received), client.reason), (10**6, ConnectionDone))
        self.assertEqual(server.reason, ConnectionDone)
        self.assertQuiet()

    def test_a_producer_is_stopped_with_the_connection(self) -> None:
        client, server = self.pair()
        server.transport.registerProducer(server, True)
        self.assertRaises(RuntimeError, server.transport.registerProducer, server, True)
        self.assertRaises(NotImplementedError, client.transport.registerProducer, client, False)
        client.transport.abortConnection()
        self.advance()
        self.assertTrue(server.was_stopped)
        late = Peer()
        server.transport.registerProducer(late, True)
        self.assertTrue(late.was_stopped)

    def test_who_has_closed_keeps_nobody_waiting(self) -> None:
        client, server = self.pair()
        server.transport.registerProducer(server, True)
        server.transport.write(b"x" * 10**6)
        client.transport.stopProducing()
        self.advance()
        self.assertEqual((client.reason, server.reason), (ConnectionDone, ConnectionDone))
        self.assertQuiet()
