"""Connections that send without asking first, over sockets of which nobody else knows."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.bursts import Burst, BurstServer


class Reactor(Clock):
    """What a connection asks of a reactor, written down."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[object] = set()

    def addReader(self, reader: object) -> None: ...
    def removeReader(self, reader: object) -> None: ...

    def addWriter(self, writer: object) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: object) -> None:
        self.writers.discard(writer)


class Talker(Protocol):
    lost = ""

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = reason.value.__class__.__name__


class Producer:
    """Is told when there is room again, and may not like it."""

    def __init__(self, fails: bool = False) -> None:
        self.resumed = 0
        self._fails = fails

    def pauseProducing(self) -> None: ...
    def stopProducing(self) -> None: ...

    def resumeProducing(self) -> None:
        self.resumed += 1
        if self._fails:
            raise ValueError("no")


class PromptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.burst = Burst(self.reactor)

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
