"""
Streams of bytes in memory, for `raftd.testing_store`: TCP as protocols of
Twisted see it, over the network of `raftd.memory_network`.

Bytes come in order, in the pieces in which they were written, or in smaller
ones.  Who does not read is sent no more than `WINDOW_BYTES`; who writes more
than is taken is told to pause.  What a partition has swallowed never comes,
and nothing behind it: whoever waits for it must have a time limit, as with TCP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.core.messages import MemberId
from raftd.memory_network import Line, Network

#: Bytes that come together, at most.
SEGMENT_BYTES = 16 * 1024
#: Bytes that are on their way, or wait for a reader, at most, but for one segment.
WINDOW_BYTES = 64 * 1024
#: Bytes that wait for the window; with more, the producer is paused.
BUFFER_BYTES = 64 * 1024
#: How long a connection may take to be made, in seconds.
CONNECT_TIMEOUT_S = 2.0

_ADDRESS = IPv4Address("TCP", "127.0.0.1", 4001)


class Stream:
    """
    A connection of `me`, a client, with `target`, a process that may die.

    Invariant: the network knows it while either end is connected.
    """

    def __init__(self, network: Network, me: MemberId, target: MemberId) -> None:
        self.me = me
        self.target = target
        self.network = network
        self.line = Line(network)
        self.client = End(self, me)
        self.server = End(self, target)
        network.add(self)

    def carry(self, source: End, arrive: Callable[[], None]) -> None:
        """Call `arrive` at the other end, a while later, unless that gets lost."""
        self.line.carry(source.owner, self.other(source).owner, arrive)

    def other(self, end: End) -> End:
        return self.server if end is self.client else self.client

    def ended(self) -> None:
        """An end has been closed."""
        if not self.client.connected and not self.server.connected:
            self.network.remove(self)

    def answers_strangers(self, end: End) -> bool:
        """Whether somebody at `end` says so when there is no such connection."""
        return end is self.client or self.network.resets(self.target)

    # -- for the network -----------------------------------------------------------

    def close(self) -> None:
        """The client's process is gone."""
        self.client.vanish()

    def reset_by_target(self) -> None:
        """The process at the other end is gone; its host says so, if it can."""
        self.server.vanish()


@implementer(ITransport, IConsumer, IPushProducer)
class End:
    """One end of a stream: the transport of a protocol."""

    #: `HTTP11ClientProtocol` and others look at it.
    disconnecting = False

    def __init__(self, stream: Stream, owner: MemberId) -> None:
        self.owner = owner
        self.connected = False
        self._stream = stream
        self._clock = stream.network.clock
        self._protocol: IProtocol | None = None
        # Out.
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        #: Sent, and not taken by the other end's protocol yet.
        self._outstanding_bytes = 0
        self._producer: Any = None
        self._producer_paused = False
        self._is_leaving = False
        # In.
        self._unread: deque[bytes] = deque()
        self._at_end = False
        self._reading = True

    def attach(self, protocol: IProtocol) -> None:
        """The connection stands; `protocol` has it."""
        self.connected = True
        self._protocol = protocol
        protocol.makeConnection(self)

    # -- out -------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """See `ITransport`."""
        if not self.connected or self._is_leaving or not data:
            return
        self._out.extend(
            bytes(data[begin : begin + SEGMENT_BYTES])
            for begin in range(0, len(data), SEGMENT_BYTES)
        )
        self._out_bytes += len(data)
        self._push()
        if self._out_bytes > BUFFER_BYTES and not self._producer_paused:
            self._producer_paused = self._producer is not None
            if self._producer is not None:
                self._producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        """See `ITransport`."""
        self.write(b"".join(data))

    def _push(self) -> None:
        while self._out and self._outstanding_bytes < WINDOW_BYTES:
            piece = self._out.popleft()
            self._out_bytes -= len(piece)
            self._outstanding_bytes += len(piece)
            other = self._stream.other(self)
            self._stream.carry(self, partial(other.arrived, piece))
        if not self._out and self.disconnecting and not self._producer_paused:
            self._leave(ConnectionDone())

    def taken(self, size: int) -> None:
        """The other end's protocol has taken so many bytes."""
        self._outstanding_bytes -= size
        if not self.connected:
            return
        self._push()
        if not self._out and self._producer_paused:
            self._producer_paused = False
            self._producer.resumeProducing()
            self._push()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See `IConsumer`; only of producers that push."""
        if not streaming:
            raise NotImplementedError("only for producers that push")
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        self._producer = producer
        if not self.connected:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        """See `IConsumer`."""
        self._producer = None
        self._producer_paused = False
        if self.connected and self.disconnecting:
            self._push()

    # -- in --------------------------------------------------------------------------

    def arrived(self, data: bytes) -> None:
        """Bytes come."""
        if not self.connected:
            self._answer_stranger()
        elif self.disconnecting:
            # Nobody reads it any more, and nobody minds.
            self._stream.other(self).taken(len(data))
        else:
            self._unread.append(data)
            self._deliver()

    def ends(self) -> None:
        """The other end has closed, and nothing comes behind this."""
        self._at_end = True
        self._deliver()

    def reset(self) -> None:
        """The other end knows of no connection."""
        self._lose(ConnectionLost())

    def _answer_stranger(self) -> None:
        if self._stream.answers_strangers(self):
            self._stream.carry(self, self._stream.other(self).reset)

    def _deliver(self) -> None:
        other = self._stream.other(self)
        while self._unread and self._reading and self.connected and not self.disconnecting:
            data = self._unread.popleft()
            assert self._protocol is not None
            self._protocol.dataReceived(data)
            if other._out or other._producer_paused:
                self._stream.carry(self, partial(other.taken, len(data)))
            else:
                other._outstanding_bytes -= len(data)
        if not (self._at_end and self._reading and self.connected) or self._unread:
            return
        self._at_end = False
        half_closeable: Any = IHalfCloseableProtocol(self._protocol, None)
        if half_closeable is None:
            self._lose(ConnectionDone())
        else:
            half_closeable.readConnectionLost()

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self._reading = False

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        if not self._reading:
            self._reading = True
            if self._unread or self._at_end:
                self._clock.callLater(0, self._deliver)

    def stopProducing(self) -> None:
        """See `IPushProducer`."""
        self.loseConnection()

    # -- the end -----------------------------------------------------------------------

    def loseConnection(self) -> None:
        """See `ITransport`."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._unread.clear()
            self._push()

    def abortConnection(self) -> None:
        """Close at once; what was not sent is lost."""
        if self.connected and not self._is_leaving:
            self._out.clear()
            self._out_bytes = 0
            self.disconnecting = self._is_leaving = True
            self._stream.carry(self, self._stream.other(self).reset)
            self._clock.callLater(0, self._lose, ConnectionAborted())

    def vanish(self) -> None:
        """The process that has this end is gone."""
        if self.connected:
            self._lose(ConnectionLost())
            self._answer_stranger()

    def _leave(self, reason: Exception) -> None:
        if not self._is_leaving:
            self._is_leaving = True
            self._stream.carry(self, self._stream.other(self).ends)
            self._clock.callLater(0, self._lose, reason)

    def _lose(self, reason: Exception) -> None:
        if not self.connected:
            return
        self.connected = False
        self.disconnecting = True
        self._out.clear()
        self._unread.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        self._stream.ended()
        assert self._protocol is not None
        self._protocol.connectionLost(Failure(reason))

    def getPeer(self) -> IPv4Address:
        """See `ITransport`."""
        return _ADDRESS

    def getHost(self) -> IPv4Address:
        """See `ITransport`."""
        return _ADDRESS


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """How `me` connects to `target`, where `listening` is who is called there, if anybody."""

    def __init__(
        self,
        network: Network,
        me: MemberId,
        target: MemberId,
        listening: Callable[[], IProtocolFactory | None],
    ) -> None:
        self._network = network
        self._me = me
        self._target = target
        self._listening = listening

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint`."""
        network, stream = self._network, Stream(self._network, self._me, self._target)
        connecting: Deferred[IProtocol] = Deferred(
            lambda d: give_up(ConnectingCancelledError(_ADDRESS))
        )

        def give_up(reason: Exception) -> None:
            if timer.active():
                timer.cancel()
            stream.ended()
            connecting.errback(Failure(reason))

        def arrived() -> None:
            listener = self._listening()
            protocol = None if listener is None else listener.buildProtocol(_ADDRESS)
            if protocol is not None:
                stream.carry(stream.server, accepted)
                stream.server.attach(protocol)
            elif network.resets(self._target):
                stream.carry(stream.server, refused)

        def accepted() -> None:
            protocol = None if connecting.called else protocolFactory.buildProtocol(_ADDRESS)
            if protocol is None:
                stream.carry(stream.client, stream.server.reset)
                return
            timer.cancel()
            stream.client.attach(protocol)
            connecting.callback(protocol)

        def refused() -> None:
            if not connecting.called:
                give_up(ConnectionRefusedError())

        timer = network.clock.callLater(CONNECT_TIMEOUT_S, give_up, TimeoutError())
        stream.carry(stream.client, arrived)
        return connecting
