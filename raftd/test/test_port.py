"""The one port: which protocol a connection is given, by its first bytes."""

from __future__ import annotations

from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocol,
    IReactorTCP,
    IReactorTime,
)
from twisted.internet.protocol import ClientCreator, Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from raftd.net import port as port_module
from raftd.net.port import PortConnection, PortFactory
from raftd.test.test_http1 import answers


class Inner(Protocol):
    """A protocol that keeps what it gets."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Inner):
    read_closed = False
    write_closed = False

    def readConnectionLost(self) -> None:
        self.read_closed = True

    def writeConnectionLost(self) -> None:
        self.write_closed = True


class Inners(Factory):
    """Makes protocols and keeps them."""

    noisy = False

    def __init__(self, kind: type[Inner]) -> None:
        self.kind = kind
        self.made: list[Inner] = []
        self.refuses = False

    def buildProtocol(self, addr: IAddress | None) -> Inner | None:
        if self.refuses:
            return None
        self.made.append(self.kind())
        return self.made[-1]


class Transport(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class PortCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.amp = Inners(Inner)
        self.http = Inners(HalfCloseable)
        self.port = PortFactory(
            self.amp, self.http, self.clock, max_connections=10, peer_reserve=3
        )

    def connect(self) -> tuple[PortConnection, Transport]:
        connection = self.port.buildProtocol(None)
        assert connection is not None
        transport = Transport()
        connection.makeConnection(transport)
        return connection, transport

    def lose(self, connection: PortConnection) -> None:
        connection.connectionLost(Failure(ConnectionDone()))


class Choosing(PortCase):
    def test_amp(self) -> None:
        connection, transport = self.connect()
        connection.dataReceived(b"\0\x04_ask")
        (inner,) = self.amp.made
        self.assertEqual((inner.received, self.http.made), (b"\0\x04_ask", []))
        self.assertIs(inner.transport, transport)

    def test_http(self) -> None:
        for pieces in (
            [b"GET / HTTP/1.1\r\n"],
            [b"P", b"OST /"],
            [b"PR", b"OPFIND /"],
            [b"PRI", b"NT /"],
            [b"PROPFIND / HTTP/1.1\r\n"],
            [b"Z"],
        ):
            connection, _ = self.connect()
            for piece in pieces:
                connection.dataReceived(piece)
            self.assertEqual(self.http.made[-1].received, b"".join(pieces))
            self.lose(connection)
        self.assertEqual((len(self.http.made), self.amp.made), (6, []))

    def test_http_2_is_told_and_closed(self) -> None:
        """In any pieces."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for pieces in ([preface], [preface[i : i + 1] for i in range(len(preface))]):
            connection, transport = self.connect()
            for piece in pieces:
                connection.dataReceived(piece)
            (answer,) = answers(transport.value())
            self.assertEqual(answer.status, 505)
            self.assertTrue(transport.disconnecting)
        self.assertEqual(self.http.made, [])

    def test_anything_else_is_closed(self) -> None:
        for first in range(1, 256):
            if first in range(0x41, 0x5B):
                continue
            connection, transport = self.connect()
            connection.dataReceived(bytes([first]) + b"ET / HTTP/1.1\r\n")
            self.assertTrue(transport.disconnecting)
            self.assertEqual(transport.value(), b"")
            connection.dataReceived(b"GET / HTTP/1.1\r\n")
            self.lose(connection)
        self.assertEqual((self.amp.made, self.http.made), ([], []))

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(st.sampled_from([b"\0\x04", b"GET ", b"PRO", b"PUT ", b"P"]), st.binary(), st.data())
    def test_no_byte_is_lost(self, start: bytes, rest: bytes, data: st.DataObject) -> None:
        """However they are cut, and each goes where the first ones did."""
        self.setUp()
        stream = start + b"U" + rest
        connection, _ = self.connect()
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            connection.dataReceived(stream[:size])
            stream = stream[size:]
        (inner,) = self.amp.made + self.http.made
        self.assertEqual(inner.received, start + b"U" + rest)

    def test_after_the_choice_nothing_stands_between(self) -> None:
        """The transport calls the chosen protocol itself."""
        connection, _ = self.connect()
        connection.dataReceived(b"GET ")
        inner = self.http.made[0]
        self.assertEqual(connection.dataReceived, inner.dataReceived)

    def test_a_factory_that_declines(self) -> None:
        self.amp.refuses = True
        connection, transport = self.connect()
        connection.dataReceived(b"\0")
        self.assertTrue(transport.disconnecting)
        connection.dataReceived(b"\0")
        self.lose(connection)
        self.assertEqual(self.port.connections, set())

    def test_inside_of_a_wrapper(self) -> None:
        """As TLS will be one: the choice is made on what comes out of it."""
        wrapping = WrappingFactory(self.port)
        wrapper = wrapping.buildProtocol(None)
        transport = Transport()
        wrapper.makeConnection(transport)
        wrapper.dataReceived(b"GE")
        wrapper.dataReceived(b"T /")
        (inner,) = self.http.made
        self.assertEqual(inner.received, b"GET /")
        self.assertIs(inner.transport, wrapper)
        wrapper.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((len(inner.lost), self.port.connections), (1, set()))


class Ending(PortCase):
    def test_a_silent_connection_is_closed(self) -> None:
        _, transport = self.connect()
        self.clock.advance(port_module.SNIFF_TIMEOUT_S - 0.1)
        self.assertFalse(transport.aborted)
        self.clock.advance(0.2)
        self.assertTrue(transport.aborted)

    def test_one_that_begins_and_does_not_go_on_is_closed(self) -> None:
        connection, transport = self.connect()
        self.clock.advance(5)
        connection.dataReceived(b"PRI")
        self.clock.advance(5.1)
        self.assertTrue(transport.aborted)

    def test_the_deadline_ends_with_the_choice(self) -> None:
        for first in (b"\0", b"GET ", b"\x16", b"PRI "):
            connection, transport = self.connect()
            connection.dataReceived(first)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.clock.advance(1000)
            self.assertFalse(transport.aborted)
        connection, _ = self.connect()
        self.lose(connection)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_loss_reaches_the_chosen_protocol(self) -> None:
        for first, factory in ((b"\0", self.amp), (b"GET ", self.http)):
            connection, _ = self.connect()
            connection.dataReceived(first)
            reason = Failure(ConnectionDone())
            connection.connectionLost(reason)
            self.assertEqual(factory.made[0].lost, [reason])
        self.assertEqual(self.port.connections, set())

    def test_half_closing(self) -> None:
        """Passed on to those who know it; the others are closed."""
        connection, transport = self.connect()
        connection.dataReceived(b"GET ")
        connection.readConnectionLost()
        connection.writeConnectionLost()
        inner = cast(HalfCloseable, self.http.made[0])
        self.assertEqual((inner.read_closed, inner.write_closed), (True, True))
        self.assertFalse(transport.disconnecting)
        for first in (b"", b"\0"):
            connection, transport = self.connect()
            if first:
                connection.dataReceived(first)
            connection.readConnectionLost()
            self.assertTrue(transport.disconnecting)
            connection.writeConnectionLost()


class Bounds(PortCase):
    def test_one_connection_too_many(self) -> None:
        connections = [self.connect()[0] for _ in range(10)]
        self.assertIsNone(self.port.buildProtocol(None))
        self.lose(connections[0])
        self.connect()

    def test_53_clients_leave_room_for_peers(self) -> None:
        """A flood of clients is told so, and a heartbeat still gets through."""
        connections = []
        for _ in range(7):
            connections.append(self.connect()[0])
            connections[-1].dataReceived(b"GET ")
        connection, transport = self.connect()
        connection.dataReceived(b"GET ")
        (answer,) = answers(transport.value())
        self.assertEqual((answer.status, answer.headers["Retry-After"]), (503, "1"))
        self.assertIn(b'"overloaded"', answer.body)
        self.assertTrue(transport.disconnecting)
        self.lose(connection)
        for _ in range(3):
            connection, _ = self.connect()
            connection.dataReceived(b"\0")
        self.assertEqual((len(self.http.made), len(self.amp.made)), (7, 3))
        self.lose(connections[0])
        connection, _ = self.connect()
        connection.dataReceived(b"GET ")
        self.assertEqual(len(self.http.made), 8)


class ClosingAll(PortCase):
    def test_without_connections(self) -> None:
        self.successResultOf(self.port.close_all())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNone(self.port.buildProtocol(None))

    def test_it_waits_for_all(self) -> None:
        pairs = [self.connect() for _ in range(3)]
        pairs[0][0].dataReceived(b"\0")
        pairs[1][0].dataReceived(b"GET ")
        first, second = self.port.close_all(), self.port.close_all()
        self.assertIsNone(self.port.buildProtocol(None))
        for connection, transport in pairs:
            self.assertTrue(transport.disconnecting)
            self.assertNoResult(first)
            self.lose(connection)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_does_not_wait_for_ever(self) -> None:
        _, transport = self.connect()
        self.port.close_all()
        self.clock.advance(port_module.CLOSE_TIMEOUT_S - 0.1)
        self.assertFalse(transport.aborted)
        self.clock.advance(0.2)
        self.assertTrue(transport.aborted)


class Factories(PortCase):
    def test_the_chosen_factories_are_started_and_stopped_with_the_port(self) -> None:
        self.port.doStart()
        self.assertEqual((self.amp.numPorts, self.http.numPorts), (1, 1))
        self.port.doStop()
        self.assertEqual((self.amp.numPorts, self.http.numPorts), (0, 0))


class Greeter(Inner):
    """Answers every piece."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        assert self.transport is not None
        self.transport.write(b"heard " + data)


class Caller(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.heard: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        heard, self.heard = self.heard, None
        if heard is not None:
            heard.callback(None)

    async def say(self, data: bytes) -> bytes:
        assert self.transport is not None
        heard: Deferred[None] = Deferred()
        self.heard = heard
        self.transport.write(data)
        await heard
        received, self.received = self.received, b""
        return received


class OverTCP(TestCase):
    """A real transport calls the chosen protocol directly, and tells it of the end."""

    timeout = 20

    async def test_a_conversation(self) -> None:
        factory = Inners(Greeter)
        port = PortFactory(factory, factory, IReactorTime(reactor))
        listening = IReactorTCP(reactor).listenTCP(
            0,
            port,  # type: ignore[arg-type]
            interface="127.0.0.1",
        )
        address = cast(IPv4Address, listening.getHost())
        for first in (b"\0a", b"GET "):
            creator = ClientCreator(reactor, Caller)
            caller: Caller = await creator.connectTCP("127.0.0.1", address.port)
            self.assertEqual(await caller.say(first), b"heard " + first)
            (connection,) = port.connections
            real = cast(IProtocol, connection.transport.protocol)  # type: ignore[union-attr]
            inner = factory.made[-1]
            self.assertEqual(real.dataReceived, inner.dataReceived)
            self.assertEqual(await caller.say(b"x"), b"heard x")
            self.assertTrue(connection.transport.getTcpNoDelay())  # type: ignore[union-attr]
            if first == b"GET ":
                await port.close_all()
            else:
                await self.hang_up(caller, port)
            self.assertEqual(len(inner.lost), 1)
        stopped = listening.stopListening()
        if stopped is not None:
            await stopped

    async def hang_up(self, caller: Caller, port: PortFactory) -> None:
        assert caller.transport is not None
        caller.transport.loseConnection()
        while port.connections:
            turn: Deferred[None] = Deferred()
            IReactorTime(reactor).callLater(0, turn.callback, None)
            await turn
