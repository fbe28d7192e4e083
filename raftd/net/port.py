"""
The one port of a node: the first bytes say which protocol a connection speaks.

    0x00        AMP: the length of a box's first key, which is below 256
    A to Z      HTTP/1.1: a method
    "PRI "      the preface of HTTP/2 (RFC 9113, 3.4), which is answered and closed
    otherwise   closed, 0x16 (the handshake of TLS) included

The choice is made once.  From then on the chosen protocol is called directly.
"""

from __future__ import annotations

from typing import Protocol as Shape
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

#: Connections at once; one more is closed as soon as it is accepted.
MAX_CONNECTIONS = 20_000

#: Of these, kept for peers: clients, however many, never keep out a heartbeat.
PEER_RESERVE = 1_000

#: For a new connection to send enough to be told apart.
SNIFF_TIMEOUT_S = 10

#: For connections to send what they have before `close_all` cuts them off.
CLOSE_TIMEOUT_S = 5

_HTTP2_PREFACE = b"PRI "

#: The first thing such a client can make sense of, or a person who looks at it.
_HTTP2_ANSWER = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 35\r\nConnection: close\r\n\r\n"
    b"This server speaks HTTP/1.1 only.\r\n"
)

_HTTP_FULL_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Content-Type: application/json\r\nContent-Length: 67\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n"
    b'{"error":"overloaded","message":"There are too many connections."}\n'
)


class _Transport(Shape):
    """What a connection needs of its transport."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...


@implementer(IHalfCloseableProtocol)
class PortConnection(Protocol):
    """
    A connection, at first without a protocol of its own.

    It stays between the transport and the chosen protocol only for what
    happens once; `dataReceived` becomes the chosen protocol's own.
    """

    def __init__(self, port: PortFactory) -> None:
        self._port = port
        self._received = b""
        self._inner: IProtocol | None = None
        self._deadline: IDelayedCall | None = None
        self._lost = False
        self.is_http = False

    def connectionMade(self) -> None:
        self._transport = cast(_Transport, self.transport)
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            # Many small messages both ways, each of which somebody waits for.
            set_no_delay(True)
        self._deadline = self._port.clock.callLater(SNIFF_TIMEOUT_S, self._too_slow)

    def dataReceived(self, data: bytes) -> None:
        """Only until the choice is made."""
        if self._deadline is None:
            # Closed, and something still came.
            return
        received = self._received = self._received + data
        first = received[0]
        if first == 0:
            self._choose(self._port.amp_factory)
        elif not 0x41 <= first <= 0x5A:
            self._close(b"")
        elif received[:4] == _HTTP2_PREFACE:
            self._close(_HTTP2_ANSWER)
        elif _HTTP2_PREFACE.startswith(received):
            # PRI, or PROPFIND: wait for more.
            return
        elif self._port.admits_http():
            self.is_http = True
            self._choose(self._port.http_factory)
        else:
            self._close(_HTTP_FULL_ANSWER)

    def _choose(self, factory: IProtocolFactory) -> None:
        self._stop_waiting()
        transport = cast(ITransport, self.transport)
        inner = factory.buildProtocol(transport.getPeer())
        if inner is None:
            self._transport.loseConnection()
            return
        self._inner = inner
        received, self._received = self._received, b""
        inner.makeConnection(transport)
        if not self._lost:
            self.dataReceived = inner.dataReceived  # type: ignore[method-assign]
            inner.dataReceived(received)

    def _close(self, words: bytes) -> None:
        self._stop_waiting()
        self._received = b""
        if words:
            self._transport.write(words)
        self._transport.loseConnection()

    def _too_slow(self) -> None:
        self._deadline = None
        self._transport.abortConnection()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._stop_waiting()
        # A reference cycle that the garbage collector need not find.
        self.__dict__.pop("dataReceived", None)
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.connectionLost(reason)
        self._port.closed(self)

    def readConnectionLost(self) -> None:
        """The other end sends nothing more; few protocols go on after that."""
        inner = self._half_closeable()
        if inner is not None:
            inner.readConnectionLost()
        else:
            self.lose()

    def writeConnectionLost(self) -> None:
        """Nothing more can be sent, as the chosen protocol wished."""
        inner = self._half_closeable()
        if inner is not None:
            inner.writeConnectionLost()

    def _half_closeable(self) -> IHalfCloseableProtocol | None:
        return cast("IHalfCloseableProtocol | None", IHalfCloseableProtocol(self._inner, None))

    def lose(self) -> None:
        """Close after what is being sent."""
        self._stop_waiting()
        self._transport.loseConnection()

    def abort(self) -> None:
        """Close now."""
        self._transport.abortConnection()


class PortFactory(Factory):
    """
    Listens on behalf of two others.

    It can also be wrapped by `TLSMemoryBIOFactory`; then the choice is made
    inside of TLS.  `clock` times the first bytes and the closing.
    """

    noisy = False

    def __init__(
        self,
        amp_factory: IProtocolFactory,
        http_factory: IProtocolFactory,
        clock: IReactorTime,
        max_connections: int = MAX_CONNECTIONS,
        peer_reserve: int = PEER_RESERVE,
    ) -> None:
        self.amp_factory = amp_factory
        self.http_factory = http_factory
        self.clock = clock
        self.connections: set[PortConnection] = set()
        self._max_connections = max_connections
        self._max_http = max_connections - peer_reserve
        self._http = 0
        self._closing = False
        self._closed: list[Deferred[None]] = []
        self._patience: IDelayedCall | None = None

    def startFactory(self) -> None:
        self.amp_factory.doStart()
        self.http_factory.doStart()

    def stopFactory(self) -> None:
        self.amp_factory.doStop()
        self.http_factory.doStop()

    def buildProtocol(self, addr: IAddress | None) -> PortConnection | None:
        """None, upon which the connection is closed, if there are too many."""
        if self._closing or len(self.connections) >= self._max_connections:
            return None
        connection = PortConnection(self)
        self.connections.add(connection)
        return connection

    def admits_http(self) -> bool:
        """Count one more connection of HTTP, if there may be one."""
        if self._http >= self._max_http:
            return False
        self._http += 1
        return True

    def closed(self, connection: PortConnection) -> None:
        """`connection` is gone."""
        self.connections.discard(connection)
        self._http -= connection.is_http
        self._tell_if_closed()

    def close_all(self) -> Deferred[None]:
        """
        Close every connection and take no new one.

        What has been written is still sent, for `CLOSE_TIMEOUT_S` at most.
        Fires when none is left.  Stop the protocols first, if they have
        anything to finish.
        """
        done: Deferred[None] = Deferred()
        self._closed.append(done)
        if not self._closing:
            self._closing = True
            self._patience = self.clock.callLater(CLOSE_TIMEOUT_S, self._cut_off)
            for connection in list(self.connections):
                connection.lose()
        self._tell_if_closed()
        return done

    def _cut_off(self) -> None:
        self._patience = None
        for connection in list(self.connections):
            connection.abort()

    def _tell_if_closed(self) -> None:
        if self._closing and not self.connections:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            waiting, self._closed = self._closed, []
            for done in waiting:
                done.callback(None)
