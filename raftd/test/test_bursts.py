"""Connections in bursts, over sockets of which nobody else knows."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from raftd.bursts import (
    Burst,
    BurstClient,
    BurstServer,
)

global_reactor: Any = _reactor


class Reactor(Clock):
    """What a connection asks of a reactor, written down."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[object] = set()

    def addReader(self, reader: object) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: object) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: object) -> None:
        self.writers.discard(writer)


class Talker(Protocol):
    lost = ""
    received = b""
    on_data: Callable[[], None] | None = None
    fails_at_the_end = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.on_data is not None:
            self.on_data()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = reason.value.__class__.__name__
        if self.fails_at_the_end:
            raise ZeroDivisionError("at the end")


def fail() -> None:
    raise ValueError("no")


class Producer:
    """Is told when there is room or none, and may not like it."""

    def __init__(self, fails: bool = False, fails_to_pause: bool = False) -> None:
        self.resumed = 0
        self._fails = fails
        self._fails_to_pause = fails_to_pause

    def pauseProducing(self) -> None:
        if self._fails_to_pause:
            raise ValueError("no")

    def stopProducing(self) -> None: ...

    def resumeProducing(self) -> None:
        self.resumed += 1
        if self._fails:
            raise ValueError("no")


class Connected(SynchronousTestCase):
    """Connections that were accepted, as the port of a server makes them."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.burst = Burst(self.reactor, select.epoll)

    def connect(self) -> tuple[Any, socket.socket]:
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)
        here.setblocking(False)
        there.setblocking(False)
        address = ("127.0.0.1", 4001)
        protocol = Talker()
        server: Any = BurstServer(self.burst, here, protocol, address, None, 1, self.reactor)
        protocol.makeConnection(server)
        return server, there

    def turn(self) -> None:
        self.reactor.advance(0)

    def received(self, there: socket.socket) -> bytes:
        try:
            return there.recv(1 << 20)
        except BlockingIOError:
            return b""

    def poll(self) -> None:
        """As the reactor does with what can be read."""
        for reader in list(self.reactor.readers):
            if select.select([reader], [], [], 0)[0]:
                reader.doRead()


class ReadingTests(Connected):
    def test_the_reactor_sees_one_reader(self) -> None:
        connections = [self.connect() for _ in range(3)]
        self.assertEqual(self.reactor.readers, {self.burst})
        for number, (_, there) in enumerate(connections):
            there.send(b"%d" % number)
        self.poll()
        received = [server.protocol.received for server, _ in connections]
        self.assertEqual(received, [b"0", b"1", b"2"])

    def test_nothing_is_left_when_the_last_has_stopped(self) -> None:
        first, _ = self.connect()
        second, there = self.connect()
        first.stopReading()
        first.stopReading()
        self.assertEqual(self.reactor.readers, {self.burst})
        second.stopReading()
        self.assertEqual(self.reactor.readers, set())
        self.assertEqual(self.burst.fileno(), -1)
        there.send(b"later")
        second.startReading()
        second.startReading()
        self.poll()
        self.assertEqual(second.protocol.received, b"later")

    def test_one_that_does_not_want_to_read_is_left_alone(self) -> None:
        paused, there = self.connect()
        self.connect()
        paused.pauseProducing()
        there.send(b"not yet")
        self.poll()
        self.assertEqual(paused.protocol.received, b"")
        paused.resumeProducing()
        self.poll()
        self.assertEqual(paused.protocol.received, b"not yet")

    def test_the_reactor_sees_to_the_end(self) -> None:
        """It finds what the burst has found, once more, and tells the protocol."""
        server, there = self.connect()
        self.connect()
        there.send(b"all")
        there.close()
        for _ in range(3):
            self.poll()
        self.assertEqual(server.protocol.received, b"all")
        self.assertEqual(self.reactor.readers, {self.burst, server})
        self.assertIsInstance(server.doRead(), Exception)
        server.stopReading()
        self.assertEqual(self.reactor.readers, {self.burst})

    def test_one_that_raises_is_lost_alone(self) -> None:
        bad, to_bad = self.connect()
        good, to_good = self.connect()
        protocol = bad.protocol
        protocol.on_data = fail
        to_bad.send(b"x")
        to_good.send(b"arrives")
        self.poll()
        self.assertEqual(protocol.lost, "ValueError")
        self.assertEqual(good.protocol.received, b"arrives")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_what_a_protocol_raises_is_not_taken_for_what_its_socket_says(self) -> None:
        """A socket that has nothing more, or is broken, raises the same."""
        for kind in (BlockingIOError, ConnectionResetError):
            server, there = self.connect()
            protocol = server.protocol

            def refuse(kind: type[OSError] = kind) -> None:
                raise kind("what the protocol was at has failed")

            protocol.on_data = refuse
            there.send(b"x")
            self.poll()
            self.assertEqual(protocol.lost, kind.__name__)
            self.assertEqual(len(self.flushLoggedErrors(kind)), 1)

    def test_one_may_close_another_that_has_sent_something(self) -> None:
        """Whichever comes first, the other is not read any more."""
        connections = [self.connect() for _ in range(2)]
        protocols = [server.protocol for server, _ in connections]
        for position, protocol in enumerate(protocols):
            other, _ = connections[1 - position]
            protocol.on_data = partial(other.connectionLost, Failure(ConnectionError()))
        for _, there in connections:
            there.send(b"x")
        self.poll()
        self.assertEqual(sorted(p.received for p in protocols), [b"", b"x"])
        self.assertEqual(sorted(p.lost for p in protocols), ["", "ConnectionError"])

    def test_all_end_with_the_reactor(self) -> None:
        connections = [self.connect() for _ in range(2)]
        protocols = [server.protocol for server, _ in connections]
        self.burst.connectionLost(Failure(ConnectionError()))
        self.assertEqual([p.lost for p in protocols], ["ConnectionError"] * 2)
        self.assertEqual(self.reactor.readers, set())

    def test_all_end_with_the_reactor_though_one_raises(self) -> None:
        connections = [self.connect() for _ in range(3)]
        protocols = [server.protocol for server, _ in connections]
        for protocol in protocols:
            protocol.fails_at_the_end = True
        self.burst.connectionLost(Failure(ConnectionError()))
        self.assertEqual([p.lost for p in protocols], ["ConnectionError"] * 3)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)


class RaisingTests(Connected):
    """Whoever raises, what others have asked for is done, and what they wrote is sent."""

    def assert_goes_on(self) -> None:
        """Neither a turn nor what is written is forgotten, though nobody sends any more."""
        server, there = self.connect()
        self.burst.soon(partial(server.write, b"acted "))
        self.turn()
        self.assertEqual(self.received(there), b"acted ")
        server.write(b"written")
        self.turn()
        self.assertEqual(self.received(there), b"written")

    def test_one_that_raises_to_the_end_while_it_reads(self) -> None:
        bad, to_bad = self.connect()
        good, to_good = self.connect()
        bad.protocol.on_data = fail
        bad.protocol.fails_at_the_end = True
        good.protocol.on_data = partial(self.burst.soon, partial(good.write, b"acted"))
        for there in (to_bad, to_good):
            there.send(b"x")
        self.poll()
        self.assertEqual(self.received(to_good), b"acted")
        self.assert_goes_on()
        self.assertEqual(len(self.flushLoggedErrors(ValueError, ZeroDivisionError)), 2)

    def test_one_that_raises_to_the_end_while_it_sends(self) -> None:
        bad, _ = self.connect()
        good, there = self.connect()
        bad.protocol.fails_at_the_end = True
        bad.registerProducer(Producer(fails=True), True)
        bad.write(b"x" * (bad.bufferSize + 1))
        good.write(b"arrives")
        self.turn()
        self.assertEqual(self.received(there), b"arrives")
        self.assert_goes_on()
        self.assertEqual(len(self.flushLoggedErrors(ValueError, ZeroDivisionError)), 2)

    def test_one_that_the_reactor_does_not_take(self) -> None:
        """It is lost; it can neither be read nor be left where it comes again and again."""
        server, there = self.connect()
        good, to_good = self.connect()
        protocol = server.protocol
        self.patch(self.reactor, "addReader", lambda reader: fail())
        there.close()
        to_good.send(b"arrives")
        self.poll()
        self.assertEqual(protocol.lost, "ValueError")
        self.assertEqual(good.protocol.received, b"arrives")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_an_act_that_raises(self) -> None:
        server, there = self.connect()

        def ask() -> None:
            self.burst.soon(fail)
            self.burst.soon(partial(server.write, b"acted"))

        server.protocol.on_data = ask
        there.send(b"x")
        self.poll()
        self.assertEqual(self.received(there), b"acted")
        self.burst.soon(fail)
        self.turn()
        self.assert_goes_on()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_a_poll_that_raises(self) -> None:
        self.connect()
        epoll, self.burst._epoll = self.burst._epoll, select.epoll()
        self.burst._epoll.close()
        self.assertRaises(ValueError, self.burst.doRead)
        self.burst._epoll = epoll
        self.assert_goes_on()

    def test_what_is_sent_at_once_by_one_that_raises(self) -> None:
        """A producer that does not like to pause: what was written goes its way."""
        server, there = self.connect()
        server.sends_at_once = True
        server.registerProducer(Producer(fails_to_pause=True), True)
        data = b"x" * (server.bufferSize + 1)
        self.assertRaises(ValueError, server.write, data)
        self.turn()
        self.assertEqual(self.received(there), data)
        server.write(b"and on")
        self.assertEqual(self.received(there), b"and on")


class OrderTests(Connected):
    """First all are read, then comes what was asked for, then what was written is sent."""

    def test_what_is_asked_for_while_reading_comes_behind_all_of_it(self) -> None:
        connections = [self.connect() for _ in range(2)]
        protocols = [server.protocol for server, _ in connections]
        seen: list[list[bytes]] = []

        def act() -> None:
            seen.append([protocol.received for protocol in protocols])
            for server, there in connections:
                server.write(b"answer")
                seen.append([self.received(there)])

        for protocol, (_, there) in zip(protocols, connections, strict=True):
            protocol.on_data = partial(self.burst.soon, act)
            there.send(b"x")
        self.poll()
        # Asked for by each of them.
        self.assertEqual(seen[:3], [[b"x", b"x"], [b""], [b""]])
        answers = [self.received(there) for _, there in connections]
        self.assertEqual(answers, [b"answeranswer"] * 2)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_what_is_asked_for_otherwise_comes_with_the_next_turn(self) -> None:
        server, there = self.connect()
        self.burst.soon(lambda: server.write(b"answer"))
        self.assertEqual(self.received(there), b"")
        self.turn()
        self.assertEqual(self.received(there), b"answer")

    def test_who_asks_again_and_again_lets_others_read_between(self) -> None:
        server, there = self.connect()
        acted: list[int] = []

        def act() -> None:
            acted.append(1)
            if len(acted) < 3:
                self.burst.soon(act)

        server.protocol.on_data = partial(self.burst.soon, act)
        there.send(b"x")
        self.poll()
        self.assertEqual(len(acted), 1)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.turn()
        self.assertEqual(len(acted), 3)


class WritingTests(Connected):
    def test_sends_at_the_end_of_the_turn(self) -> None:
        """In one piece, without the reactor's help; nothing is due afterwards."""
        server, there = self.connect()
        server.write(b"one ")
        server.write(b"two")
        self.assertEqual(self.received(there), b"")
        self.turn()
        self.assertEqual(self.received(there), b"one two")
        self.assertEqual(self.reactor.writers, set())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_one_call_for_all_connections(self) -> None:
        connections = [self.connect() for _ in range(3)]
        for server, _ in connections:
            server.write(b"answer")
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.turn()
        self.assertEqual([self.received(there) for _, there in connections], [b"answer"] * 3)

    def test_the_reactor_sees_to_the_rest(self) -> None:
        """What the kernel does not take waits for the reactor, and keeps its order."""
        server, there = self.connect()
        data = bytes(range(256)) * 16_384
        server.write(data)
        self.turn()
        self.assertEqual(self.reactor.writers, {server})
        server.write(b"end")
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        got = b""
        while self.reactor.writers:
            got += self.received(there)
            server.doWrite()
        got += self.received(there)
        self.assertEqual(got, data + b"end")
        server.write(b"again")
        self.turn()
        self.assertEqual(self.received(there), b"again")

    def test_a_producer_is_resumed(self) -> None:
        server, there = self.connect()
        producer = Producer()
        server.registerProducer(producer, True)
        server.write(b"x" * (server.bufferSize + 1))
        self.assertTrue(server.producerPaused)
        self.turn()
        self.assertEqual(len(self.received(there)), server.bufferSize + 1)
        self.assertEqual(producer.resumed, 1)

    def test_a_connection_that_raises_is_lost_alone(self) -> None:
        bad, _ = self.connect()
        good, there = self.connect()
        protocol = bad.protocol
        bad.registerProducer(Producer(fails=True), True)
        bad.write(b"x" * (bad.bufferSize + 1))
        good.write(b"arrives")
        self.turn()
        self.assertEqual(protocol.lost, "ValueError")
        self.assertEqual(self.received(there), b"arrives")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_closing_sends_first(self) -> None:
        server, there = self.connect()
        server.write(b"last words")
        server.loseConnection()
        self.turn()
        self.assertEqual(self.received(there), b"last words")
        # The reactor is asked to carry out the end.
        self.assertEqual(self.reactor.writers, {server})
        why = server.doWrite()
        self.assertIsInstance(why, Exception)

    def test_a_lost_connection_sends_nothing(self) -> None:
        server, there = self.connect()
        protocol = server.protocol
        server.write(b"too late")
        server.connectionLost(Failure(ConnectionError()))
        self.turn()
        self.assertEqual(protocol.lost, "ConnectionError")
        self.assertEqual(self.received(there), b"")
        self.assertEqual(self.reactor.writers, set())

    def test_the_other_end_is_gone(self) -> None:
        """The reactor is left to find out, as for any other connection."""
        server, there = self.connect()
        there.close()
        server.write(b"hello?")
        self.turn()
        self.assertEqual(self.reactor.writers, {server})
        self.assertIsInstance(server.doWrite(), Exception)

    def test_at_once(self) -> None:
        """Each piece goes its way, and nothing is due."""
        server, there = self.connect()
        server.sends_at_once = True
        for piece in (b"one", b"two"):
            server.write(piece)
            self.assertEqual(self.received(there), piece)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.reactor.writers, set())

    def test_at_once_in_order(self) -> None:
        """What is written while the kernel takes no more waits behind what it has not taken."""
        server, there = self.connect()
        server.sends_at_once = True
        data = bytes(range(256)) * 16_384
        # More than a buffer of Twisted's goes the usual way, in its turn.
        server.write(data)
        self.turn()
        self.assertEqual(len(self.reactor.writers), 1)
        server.write(b"end")
        got = b""
        while self.reactor.writers:
            got += self.received(there)
            server.doWrite()
        self.assertEqual(got + self.received(there), data + b"end")

    def test_a_kernel_that_takes_a_part(self) -> None:
        """Of a small piece, past Twisted's buffer; the rest waits, in order."""
        server, there = self.connect()
        filler = bytes(1 << 16)
        with contextlib.suppress(BlockingIOError):
            while server.socket.send(filler) == len(filler):
                pass  # until the kernel has taken what it takes
        server.write(b"one ")
        self.turn()
        self.assertEqual(len(self.reactor.writers), 1)
        server.write(b"two")
        got = b""
        while self.reactor.writers:
            got += self.received(there)
            server.doWrite()
        got += self.received(there)
        self.assertEqual(got.lstrip(b"\0"), b"one two")

    def test_at_once_and_then_the_end(self) -> None:
        server, there = self.connect()
        server.sends_at_once = True
        server.write(b"last words")
        server.loseConnection()
        self.assertEqual(self.received(there), b"last words")
        self.turn()
        self.assertEqual(self.reactor.writers, {server})
        self.assertIsInstance(server.doWrite(), Exception)
        server.connectionLost(Failure(ConnectionError()))
        server.write(b"too late")
        self.assertEqual(self.reactor.writers, set())


class Pair(Protocol):
    """Answers everything in upper case."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data.upper())


class EndpointTests(TestCase):
    """Both ends, on the reactor that there is."""

    def test_connects(self) -> Deferred[None]:
        """What an endpoint connects is of this kind, where it can be, and says the same."""
        factory = Factory.forProtocol(Pair)
        port = global_reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        burst = Burst(global_reactor)
        burst.accept(port)
        endpoint = HostnameEndpoint(burst.connecting, "127.0.0.1", port.getHost().port)
        got: Deferred[bytes] = Deferred()
        lost: Deferred[None] = Deferred()

        class Asker(Protocol):
            def connectionMade(self) -> None:
                self.transport.write(b"hello")  # type: ignore[union-attr]

            def dataReceived(self, data: bytes) -> None:
                got.callback(data)

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                lost.callback(None)

        def answered(data: bytes) -> Deferred[None]:
            self.assertEqual(data, b"HELLO")
            transport: Any = asker.transport
            is_possible = burst.connecting is not global_reactor
            self.assertIs(isinstance(transport, BurstClient), is_possible)
            transport.loseConnection()
            return lost

        asker = Asker()
        connected: Deferred[Any] = connectProtocol(endpoint, asker)
        connected.addCallback(lambda _: got).addCallback(answered)
        return connected

    def test_nobody_listens(self) -> Deferred[Failure]:
        port = global_reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = port.getHost().port
        endpoint = HostnameEndpoint(Burst(global_reactor).connecting, "127.0.0.1", number)
        stopped = maybeDeferred(port.stopListening)
        refused = stopped.addCallback(lambda _: connectProtocol(endpoint, Protocol()))
        return self.assertFailure(refused, ConnectionRefusedError)
