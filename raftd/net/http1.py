"""
A server for HTTP/1.1 (RFC 9110, RFC 9112), for many small requests.

A request goes through these places: the `Reader` makes it of bytes; it waits
in `_queue`; it is in the hands of the handler, `_in_hand`; it is answered.
Answers leave in the order of the requests.  Requests that may change
something, or have a body, are handed over one at a time; others together, as
RFC 9112, 9.3.2, permits.

An answer may be a `BodySink`, whose body comes piece by piece for as long as
its source likes; its request stays in hand until the body is over, and no
other is handed over meanwhile.

The path of a request has no Deferred, no closure and no timer: deadlines are
numbers, compared once a second for all connections.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol as Shape
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.interfaces import IRequest
from raftd.net.heads import CLOSE, CONTINUE, STOPPED, Refused, Responses
from raftd.net.known_heads import KnownHeads
from raftd.net.reader import BODY, DEAF, HEAD, IDLE, Reader
from raftd.net.request import Request
from raftd.net.streams import BodySink

# -- bounds ------------------------------------------------------------------

#: The largest body, in bytes, unless the factory is told otherwise.
MAX_BODY_BYTES = 1024 * 1024

#: Requests of one connection in the handler's hands at once.
MAX_IN_HAND = 16

#: Answers gathered for one write, in bytes; a larger one goes out alone.
MAX_GATHERED_BYTES = 64 * 1024

#: Read and dropped after the last answer, so that the client sees that answer
#: instead of a reset (RFC 9112, 9.6).
MAX_LINGER_BYTES = 64 * 1024 * 1024

# Deadlines, in seconds, kept to within `TICK_S`.

#: How often deadlines are looked at.
TICK_S = 1
#: From the first byte of a request to the end of its head.
HEADER_TIMEOUT_S = 10
#: From the first byte of a request to its last.
REQUEST_TIMEOUT_S = 60
#: Between two requests.
KEEP_ALIVE_S = 75
#: For a client to take what lies ready for it.
SEND_TIMEOUT_S = 60
#: For a client to see the last answer and close.
LINGER_S = 10
#: For the last bytes to leave after the connection was closed from here.
CLOSE_TIMEOUT_S = 10
#: For requests in hand to be answered once the server stops.
STOP_TIMEOUT_S = 10

NEVER = sys.maxsize

_log = Logger()

_METHODS = {
    name.encode("ascii"): name
    for name in ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE")
}

Handler = Callable[[IRequest], None]


class _Transport(Shape):
    """What a connection needs of its transport."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def loseWriteConnection(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...


@implementer(IPushProducer, IHalfCloseableProtocol)
class HTTPConnection(Protocol):
    """
    One connection.

    Invariants: what is in `_in_hand` was handed over and is unanswered, or
    waits for one before it; whatever is in `_queue` came after it;
    `_last_words` come after both, and then the reader is DEAF.  `_bodies` is how
    many of those in hand have a body under way.
    """

    def __init__(self, server: HTTPFactory) -> None:
        self._server = server
        self.responses = server.responses
        #: The tick at which `expired` is called.
        self.deadline = NEVER
        self.lost = False
        #: Answers go nowhere any more, for the connection is lost, or about to be.
        self.mute = False
        self._bodies = 0
        self._reader = Reader(
            self._received, server.max_body_bytes, server.max_body_bytes_at, server.known_heads
        )
        self._queue: deque[Request] = deque()
        self._in_hand: deque[Request] = deque()
        #: The answer to what could not be a request, after which comes the end.
        self._last_words: bytes | None = None
        # The way out.
        self._corked = False
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        #: The transport's buffer is full: the client does not read.
        self._blocked = False
        self._reading = True
        self._lingering = False
        self._closed = False
        self._client_done = False
        self._dropped_bytes = 0

    def connectionMade(self) -> None:
        self._transport = cast(_Transport, self.transport)
        self._transport.registerProducer(self, True)
        self.deadline = self._server.opened(self) + KEEP_ALIVE_S
        if self._server.stopping:
            self._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self.deadline = NEVER
        self._let_go()
        self._reader.close()
        self._server.closed(self)

    # -- reading ---------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        reader = self._reader
        if reader.phase == DEAF:
            self._drop(len(data))
            return
        refused = reader.feed(data, self._server.tick)
        if refused is not None:
            self._refuse(refused)
        self._advance()

    def _received(
        self,
        connection_field: bytes,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
    ) -> None:
        name = _METHODS.get(method) or method.decode("ascii")
        path, _, query = target.partition(b"?")
        self._queue.append(Request(self, connection_field, name, path, query, headers, body))

    def _refuse(self, refused: Refused) -> None:
        """Parse nothing more; tell the client why when its turn comes."""
        self._reader.phase = DEAF
        self._last_words = self.responses.build(
            refused.status, refused.body(), b"application/json", (), CLOSE, False
        )

    def _drop(self, size: int) -> None:
        """Something came that nobody will look at."""
        self._dropped_bytes += size
        if self._dropped_bytes > MAX_LINGER_BYTES:
            if self._lingering:
                self._close()
            else:
                self._throttle()

    # -- answering -------------------------------------------------------------

    def ends_with(self, request: Request) -> bool:
        """Whether nothing comes after the answer to `request`."""
        return (
            self._reader.phase == DEAF
            and self._last_words is None
            and not self._queue
            and self._in_hand[-1] is request
        )

    def answered(self, request: Request, answer: bytes) -> None:
        """Send what can be sent, now that `request` has its answer."""
        in_hand = self._in_hand
        if in_hand[0] is not request:
            request.answer = answer
            return
        in_hand.popleft()
        self._send(answer)
        if in_hand:
            self._send_waiting()
        if not self._corked:
            self._go_on()

    def _send_waiting(self) -> None:
        """Send the answers that have waited for the one before them."""
        in_hand = self._in_hand
        while in_hand and (waiting := in_hand[0].answer) is not None:
            if isinstance(waiting, bytes):
                in_hand.popleft()
                self._send(waiting)
            elif waiting.begin():
                self._pop_body(waiting)
            else:
                if not self._blocked:
                    waiting.resume()
                break

    def _go_on(self) -> None:
        """An answer is over, and so is the wait of whatever came behind it."""
        self._flush()
        # A client that was made to wait has all its time again.
        self._reader.begun = self._server.tick
        self._advance()

    def _send(self, answer: bytes) -> None:
        self._gathered.append(answer)
        self._gathered_bytes += len(answer)
        if self._gathered_bytes > MAX_GATHERED_BYTES:
            self._flush()

    def _flush(self) -> None:
        gathered = self._gathered
        if gathered:
            self._gathered = []
            self._gathered_bytes = 0
            self._transport.write(gathered[0] if len(gathered) == 1 else b"".join(gathered))

    def _hand_over(self) -> None:
        """Give the handler what it may have, in order; send what it answers at once."""
        queue = self._queue
        in_hand = self._in_hand
        self._corked = True
        while queue and not self._blocked:
            request = queue[0]
            if in_hand and not (
                len(in_hand) < MAX_IN_HAND
                and not self._bodies
                and _is_harmless(request)
                and _is_harmless(in_hand[0])
            ):
                break
            in_hand.append(queue.popleft())
            try:
                self._server.handler(request)
            except Exception:
                self._failed(request)
        self._corked = False
        if self._gathered:
            self._flush()

    def _failed(self, request: Request) -> None:
        """The handler raised; if it has not answered, it will not any more."""
        _log.failure(
            "a request failed: {method} {path}", method=request.method, path=request.path
        )
        if request not in self._in_hand:
            return
        if isinstance(request.answer, BodySink):
            request.answer.fail()
        elif request.answer is None:
            refused = Refused(500, "internal_error", "The server failed; its log says how.")
            request.respond(500, refused.body())

    def _advance(self) -> None:
        """Do whatever can be done now, and set the deadline for what cannot."""
        if self._queue:
            self._hand_over()
        if self._blocked or self._lingering or self._closed or self.lost:
            pass
        elif self._in_hand:
            self.deadline = NEVER
        elif self._reader.phase == IDLE:
            self.deadline = self._server.tick + KEEP_ALIVE_S
        elif self._reader.phase == DEAF:
            self._end()
        else:
            self._await_rest()
        if self._reading == bool(self._queue or self._blocked):
            self._throttle()

    def _await_rest(self) -> None:
        """A request has begun, and there is nothing before it."""
        if self._reader.phase == HEAD:
            self.deadline = self._reader.begun + HEADER_TIMEOUT_S
            return
        self.deadline = self._reader.begun + REQUEST_TIMEOUT_S
        if self._reader.continue_due:
            self._reader.continue_due = False
            self._transport.write(CONTINUE)

    def _throttle(self) -> None:
        """Read if, and only if, what comes can be used or is to be dropped."""
        if self._closed or self.lost:
            return
        reading = not (
            self._queue
            or self._blocked
            or (self._dropped_bytes > MAX_LINGER_BYTES and not self._lingering)
        )
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._transport.resumeProducing()
            else:
                self._transport.pauseProducing()

    # -- bodies under way ------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether nothing that takes long may begin."""
        return self._server.stopping

    @property
    def has_room(self) -> bool:
        return not self._blocked

    def streams(self, request: Request, body: BodySink) -> None:
        """`request` is being answered with `body`."""
        request.answer = body
        self._bodies += 1
        if self._in_hand[0] is request:
            body.begin()

    def send_piece(self, data: bytes) -> None:
        self._send(data)
        if not self._corked:
            self._flush()

    def body_over(self, body: BodySink) -> None:
        self._pop_body(body)
        self._send_waiting()
        if not self._corked:
            self._go_on()

    def _pop_body(self, body: BodySink) -> None:
        """The first in hand has been answered with `body`."""
        self._in_hand.popleft()
        self._bodies -= 1
        if not body.chunked:
            # The end of the connection is the end of the body.
            self._let_go()

    def give_up(self) -> None:
        self._gathered.clear()
        self._closed = True
        self.deadline = NEVER
        self._transport.abortConnection()
        self._let_go()

    def _let_go(self) -> None:
        """Answer nothing more, and tell those who are at it."""
        self.mute = True
        self._reader.phase = DEAF
        self._last_words = None
        self._queue.clear()
        answers = [request.answer for request in self._in_hand] if self._bodies else ()
        self._in_hand.clear()
        self._bodies = 0
        for answer in answers:
            if isinstance(answer, BodySink):
                answer.stop(patient=False)

    # -- the client's pace -----------------------------------------------------

    def pauseProducing(self) -> None:
        """The transport's buffer is full: take nothing more on."""
        self._blocked = True
        self.deadline = self._server.tick + SEND_TIMEOUT_S
        self._throttle()

    def resumeProducing(self) -> None:
        """The client has taken everything."""
        self._blocked = False
        self._reader.begun = self._server.tick
        if self._bodies:
            body = self._in_hand[0].answer
            if isinstance(body, BodySink):
                body.resume()
        self._advance()

    def stopProducing(self) -> None:
        """The connection is lost, and `connectionLost` follows."""

    # -- ending ----------------------------------------------------------------

    def expired(self) -> None:
        """The deadline has passed."""
        if self._closed or self._blocked:
            self.give_up()
        elif self._lingering or self._reader.phase == IDLE:
            self._close()
        else:
            self._refuse(
                Refused(408, "request_timeout", "The request took too long to arrive.")
            )
            self._advance()

    def finish(self) -> None:
        """Answer what is in hand, take nothing more, and close."""
        self._queue.clear()
        if self._reader.phase == HEAD or self._reader.phase == BODY:
            self._refuse(STOPPED)
        self._reader.phase = DEAF
        for request in list(self._in_hand):
            if isinstance(request.answer, BodySink):
                request.answer.stop(patient=True)
        self._advance()

    def abort(self) -> None:
        """Close at once, whatever is unfinished."""
        if not self.lost:
            self._transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The client sends nothing more; it may still be waiting for answers."""
        self._client_done = True
        if self._lingering:
            self._close()
        else:
            self._reader.phase = DEAF
            self._advance()

    def writeConnectionLost(self) -> None:
        """The last words are on their way."""

    def _end(self) -> None:
        """Everything is answered and nothing more is read."""
        words = self._last_words
        if words is None:
            self._close()
            return
        self._last_words = None
        transport = self._transport
        transport.write(words)
        if self._client_done:
            self._close()
            return
        self._lingering = True
        self._blocked = False
        self.deadline = self._server.tick + LINGER_S
        transport.unregisterProducer()
        # Asked of the class, for wrappers such as that of TLS pass on what
        # they lack to the transport beneath them, which must not close alone.
        if hasattr(type(transport), "loseWriteConnection"):
            transport.loseWriteConnection()
        self._throttle()

    def _close(self) -> None:
        if self._closed or self.lost:
            return
        self._closed = True
        self._reader.phase = DEAF
        self.deadline = self._server.tick + CLOSE_TIMEOUT_S
        if not self._lingering:
            # A transport with a paused producer never closes.
            self._transport.unregisterProducer()
        if not self._reading:
            # TLS ends when the other end has said so as well.
            self._reading = True
            self._transport.resumeProducing()
        self._transport.loseConnection()


def _is_harmless(request: Request) -> bool:
    """Whether the request may be handled beside others of its connection."""
    return not request.body and request.method in ("GET", "HEAD")


class HTTPFactory(Factory):
    """
    Makes connections and keeps them to their deadlines.

    `handler` is called with each `IRequest`; what it raises is logged and
    answered 500.  `clock` keeps the deadlines; `wall_clock`, seconds since
    1970, gives the Date field.  `max_body_bytes_at` has the targets whose
    bodies have another bound than `max_body_bytes`.
    """

    noisy = False

    def __init__(
        self,
        handler: Handler,
        clock: IReactorTime,
        wall_clock: Callable[[], float] = time.time,
        max_body_bytes: int = MAX_BODY_BYTES,
        server: bytes = b"raftd",
        max_body_bytes_at: Mapping[bytes, int] = MappingProxyType({}),
    ) -> None:
        self.handler = handler
        self.responses = Responses(server, wall_clock)
        self.max_body_bytes = max_body_bytes
        self.max_body_bytes_at = max_body_bytes_at
        self.known_heads = KnownHeads()
        self.connections: set[HTTPConnection] = set()
        self.stopping = False
        #: Seconds, as far as deadlines are concerned; stands still while there
        #: are no connections, and while the reactor does.
        self.tick = 0
        self._clock = clock
        self._ticking: IDelayedCall | None = None
        self._stop_deadline = NEVER
        self._stopped: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> HTTPConnection:
        return HTTPConnection(self)

    def stop(self) -> Deferred[None]:
        """
        Finish the requests in hand, close every connection, take no new one.

        Fires when all are closed, `STOP_TIMEOUT_S` from now at the latest.
        """
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        if not self.stopping:
            self.stopping = True
            self._stop_deadline = self.tick + STOP_TIMEOUT_S
            for connection in list(self.connections):
                connection.finish()
        self._tell_if_stopped()
        return stopped

    def opened(self, connection: HTTPConnection) -> int:
        """Keep `connection` to its deadlines from now on; the present tick."""
        self.connections.add(connection)
        if self._ticking is None:
            self.responses.refresh()
            self._ticking = self._clock.callLater(TICK_S, self._on_tick)
        return self.tick

    def closed(self, connection: HTTPConnection) -> None:
        """`connection` is gone."""
        self.connections.discard(connection)
        if not self.connections and self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        self._tell_if_stopped()

    def _tell_if_stopped(self) -> None:
        if self.stopping and not self.connections:
            waiting, self._stopped = self._stopped, []
            for stopped in waiting:
                stopped.callback(None)

    def _on_tick(self) -> None:
        self._ticking = self._clock.callLater(TICK_S, self._on_tick)
        self.tick = tick = self.tick + TICK_S
        self.responses.refresh()
        for connection in [c for c in self.connections if c.deadline <= tick]:
            connection.expired()
        if tick >= self._stop_deadline:
            for connection in list(self.connections):
                connection.abort()
