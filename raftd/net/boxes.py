"""
An AMP connection that stays within bounds, whatever the other end does.

`BoxConnection` speaks the protocol of `twisted.protocols.amp`, from its
`Command`s and `Argument`s, and any AMP program can talk to it; the tests let
Twisted's do so.  It does not inherit from `amp.AMP`, because what differs is
everything that AMP leaves open: a box that never ends is given up, calls have
timeouts and a bound, an answer that was not asked for ends the connection
instead of raising into the reactor, and nothing is answered but what is in a
table (`amp.AMP` also offers StartTLS and methods by name).  It takes half the
CPU, too.

A connection ends in one of two ways, and never by an exception: `abort`, at
once and with a reason, or by the network.  Either way every call that was
waiting fails with `PeerUnreachable` before anyone can make another.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.bursts import BurstConnection
from raftd.errors import (
    IncompatibleVersion,
    PeerUnreachable,
    ProtocolViolation,
    RaftdError,
)
from raftd.net.arguments import (
    MAX_BOX_BYTES,
    MAX_BOX_KEYS,
    crosses,
    error_from_wire,
    error_to_wire,
)
from raftd.net.commands import RPC_OF_NAME, RPC_OF_REQUEST, Rpc, error_box

#: How long a box may take from its first byte to its last.
BOX_TIMEOUT_S = 30.0

#: Calls of one end that wait for an answer of the other.  The end that asks
#: stops here; one that goes on is cut off.
MAX_CALLS = 1024

#: The bytes of these calls; each end keeps them in memory until the answer.
MAX_CALLS_BYTES = 32 * 1024 * 1024

#: Bytes written but not taken by the network; more means that the other end
#: has stopped reading.
MAX_UNSENT_BYTES = 16 * 1024 * 1024

#: How long a connection that is to be closed may take for its last answer.
CLOSE_TIMEOUT_S = 2.0

#: The longest `_ask` tag.  Ours have at most 16 bytes.
MAX_TAG_BYTES = 64

#: When a silent connection is probed, how often, and how many times, before
#: the kernel gives it up.  Calls have timeouts of their own; this is for the
#: end that only listens.
KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3

#: The clock's rounding, which must not make a timer fire for nothing.
_TIMER_SLACK_S = 0.0005

_MAX_KEY_BYTES = 255

#: A request, and how it is answered.
Handler = Callable[[Any], Deferred[Any]]


class NotSent(PeerUnreachable):
    """The call did not leave this node; the peer knows nothing of it."""


class _Call:
    """A call that waits for its answer."""

    __slots__ = ("answer", "deadline", "rpc", "size", "timeout_s")

    def __init__(self, rpc: Rpc, size: int, timeout_s: float, deadline: float) -> None:
        self.rpc = rpc
        self.size = size
        self.timeout_s = timeout_s
        self.deadline = deadline
        self.answer: Deferred[Any] = Deferred()


@implementer(IPushProducer)
class BoxConnection(Protocol):
    """
    One connection: calls out, calls in, both bounded.

    `handlers` says what is answered; a request that is not in it ends the
    connection.  `report` gets one sentence when the connection is aborted,
    `on_closed` is called once, when no more calls can be made.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        peer_name: str,
        report: Callable[[str], None],
        on_closed: Callable[[BoxConnection], None],
    ) -> None:
        #: Whom the sentences name.
        self.peer_name = peer_name
        #: Why no more calls can be made; empty as long as they can.
        self.closed_because = ""
        #: Fires when the transport is gone.
        self.disconnected: Deferred[None] = Deferred()
        self.handlers: dict[type[msgspec.Struct], Handler] = {}
        #: Whether the handshake is over.
        self.greeted = False
        self._clock = clock
        self._report = report
        self._on_closed = on_closed
        # Calls out: invariant: `_calls_bytes` is the sum of their sizes.
        self._calls: dict[bytes, _Call] = {}
        self._calls_bytes = 0
        self._last_tag = 0
        self._call_timer: IDelayedCall | None = None
        self._call_timer_at = 0.0
        # Calls in.
        self._unanswered = 0
        self._unanswered_bytes = 0
        # The box that is arriving: what it holds, and the bytes of its next
        # string, of which `_missing` are still to come.
        self._box: dict[bytes, bytes] = {}
        self._box_bytes = 0
        self._key: bytes | None = None
        self._pending = bytearray()
        self._missing = 0
        self._box_began: float | None = None
        self._box_timer: IDelayedCall | None = None
        # What is on its way out.
        self._transport_is_full = False
        self._unsent_bytes = 0
        self._close_timer: IDelayedCall | None = None

    # -- the connection --------------------------------------------------------

    def connectionMade(self) -> None:
        transport = self._transport()
        tune(transport)
        # As a producer it is told when the transport's buffer is full.
        transport.registerProducer(self, True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # Twisted's sentences end in a full stop, ours go on.
        self._close(f"the connection was lost: {reason.getErrorMessage().rstrip('.')}")
        self._cancel(self._close_timer)
        self.disconnected.callback(None)

    def abort(self, reason: str) -> None:
        """Report `reason`, drop the connection; all calls fail before this returns."""
        if not self.closed_because:
            self._report(reason)
            self._drop(reason)

    def drop(self, reason: str) -> None:
        """The same without a report: nothing is wrong."""
        if not self.closed_because:
            self._drop(reason)

    def finish(self, reason: str) -> None:
        """Close when what has been written is sent; nothing more is read."""
        if self.closed_because:
            return
        self._close(reason)
        transport = self._transport()
        self._close_timer = self._clock.callLater(CLOSE_TIMEOUT_S, transport.abortConnection)
        transport.unregisterProducer()
        transport.loseConnection()

    def _drop(self, reason: str) -> None:
        transport = self._transport()
        self._close(reason)
        transport.unregisterProducer()
        transport.abortConnection()

    def _close(self, reason: str) -> None:
        """End everything but the transport; only the first time does anything."""
        if self.closed_because:
            return
        self.closed_because = reason
        self._cancel(self._box_timer)
        self._cancel(self._call_timer)
        self._box_timer = self._call_timer = None
        self._box = {}
        self._pending = bytearray()
        calls, self._calls = self._calls, {}
        self._calls_bytes = 0
        self._on_closed(self)
        for call in calls.values():
            call.answer.errback(PeerUnreachable(f"No answer from {self.peer_name}: {reason}."))

    def _transport(self) -> Any:
        assert self.transport is not None
        return self.transport

    @staticmethod
    def _cancel(timer: IDelayedCall | None) -> None:
        if timer is not None and timer.active():
            timer.cancel()

    # -- calls out -------------------------------------------------------------------

    def ask(self, request: msgspec.Struct, timeout_s: float) -> Deferred[Any]:
        """
        Send `request`; its response.

        Fails with `NotSent` if a bound is reached or the connection is closed,
        with the peer's own error if it answers so, otherwise with
        `PeerUnreachable`.  Without an answer within `timeout_s` the connection
        is aborted.  `ValueError` is for a request that breaks the format: a
        defect of the caller.
        """
        if self.closed_because:
            return fail(NotSent(f"{self.peer_name} cannot be reached: {self.closed_because}."))
        rpc = RPC_OF_REQUEST[type(request)]
        self._last_tag += 1
        tag = b"%x" % self._last_tag
        try:
            data = rpc.request_box(tag, request)
        except ValueError:
            return fail()
        size = len(data)
        if (
            len(self._calls) >= MAX_CALLS
            or self._calls_bytes + size > MAX_CALLS_BYTES
            or self._unsent_bytes + size > MAX_UNSENT_BYTES
        ):
            return fail(NotSent(f"{self.peer_name} has too many requests to answer yet."))
        deadline = self._clock.seconds() + timeout_s
        call = _Call(rpc, size, timeout_s, deadline)
        self._calls[tag] = call
        self._calls_bytes += size
        if self._call_timer is None or deadline < self._call_timer_at:
            self._watch_calls(deadline)
        self._write(data)
        return call.answer

    def _watch_calls(self, deadline: float) -> None:
        # One timer for all calls.  It is not touched when an answer comes, so
        # that it costs a connection in use a few calls a second.
        self._cancel(self._call_timer)
        self._call_timer_at = deadline
        delay_s = max(0.0, deadline - self._clock.seconds())
        self._call_timer = self._clock.callLater(delay_s, self._check_calls)

    def _check_calls(self) -> None:
        self._call_timer = None
        if not self._calls:
            return
        oldest = min(self._calls.values(), key=lambda call: call.deadline)
        if oldest.deadline <= self._clock.seconds() + _TIMER_SLACK_S:
            self.abort(
                f"no answer to {oldest.rpc.name} within {oldest.timeout_s * 1000:.0f} ms"
            )
        else:
            self._watch_calls(oldest.deadline)

    def _answered(self, box: dict[bytes, bytes]) -> None:
        call = self._calls.get(box[amp.ANSWER])
        if call is None:
            raise ProtocolViolation("an answer to a question that was not asked")
        response = call.rpc.read_response(box)
        self._forget(box[amp.ANSWER], call)
        call.answer.callback(response)

    def _failed(self, box: dict[bytes, bytes]) -> None:
        call = self._calls.get(box[amp.ERROR])
        if call is None:
            raise ProtocolViolation("an error in answer to a question that was not asked")
        code = box.get(amp.ERROR_CODE, b"").decode("ascii", "replace")
        sentence = box.get(amp.ERROR_DESCRIPTION, b"").decode("utf-8", "replace")
        error: RaftdError
        if code == amp.UNHANDLED_ERROR_CODE.decode("ascii"):
            error = IncompatibleVersion(f"{self.peer_name} does not know {call.rpc.name}.")
        elif code == amp.UNKNOWN_ERROR_CODE.decode("ascii"):
            error = PeerUnreachable(
                f"{self.peer_name} failed at {call.rpc.name}; its log says why."
            )
        else:
            error = error_from_wire(code, sentence)
        self._forget(box[amp.ERROR], call)
        call.answer.errback(error)

    def _forget(self, tag: bytes, call: _Call) -> None:
        del self._calls[tag]
        self._calls_bytes -= call.size

    # -- calls in ------------------------------------------------------------------

    def _asked(self, box: dict[bytes, bytes], size: int) -> None:
        tag = box.get(amp.ASK, b"")
        if not 0 < len(tag) <= MAX_TAG_BYTES:
            raise ProtocolViolation("a request that wants no answer")
        rpc = RPC_OF_NAME.get(box[amp.COMMAND])
        if rpc is None:
            self._asked_for_unknown(box[amp.COMMAND], tag)
            return
        handler = self.handlers.get(rpc.request)
        if handler is None:
            raise ProtocolViolation(f"{rpc.name} is not for this connection, or not yet")
        request = rpc.read_request(box)
        if self._unanswered >= MAX_CALLS or self._unanswered_bytes + size > MAX_CALLS_BYTES:
            raise ProtocolViolation("too many requests without waiting for their answers")
        self._unanswered += 1
        self._unanswered_bytes += size
        try:
            answer = handler(request)
        except Exception:
            answer = fail()
        context = (tag, rpc, size)
        answer.addCallbacks(self._answer, self._answer_error, context, {}, context, {})
        # Nothing is left to fail: both of them catch what is to be caught.

    def _asked_for_unknown(self, name: bytes, tag: bytes) -> None:
        # A later version may try what this one does not know, after Hello.
        if not self.greeted:
            raise ProtocolViolation(f"{name[:40]!r} instead of Hello")
        sentence = f"Unhandled Command: {name[:40]!r}"
        self._write(error_box(tag, amp.UNHANDLED_ERROR_CODE, sentence))

    def _answer(self, response: msgspec.Struct, tag: bytes, rpc: Rpc, size: int) -> None:
        self._unanswered -= 1
        self._unanswered_bytes -= size
        if self.closed_because:
            return
        try:
            data = rpc.response_box(tag, response)
        except Exception:
            self._answer_unexpected(Failure(), tag, rpc)
            return
        self._write(data)

    def _answer_error(self, failure: Failure, tag: bytes, rpc: Rpc, size: int) -> None:
        self._unanswered -= 1
        self._unanswered_bytes -= size
        error = failure.value
        if isinstance(error, ProtocolViolation):
            self.abort(str(error))
        elif not crosses(error):
            self._answer_unexpected(failure, tag, rpc)
        elif not self.closed_because:
            assert isinstance(error, RaftdError)
            code, sentence = error_to_wire(error)
            self._write(error_box(tag, code.encode("ascii"), sentence))

    def _answer_unexpected(self, failure: Failure, tag: bytes, rpc: Rpc) -> None:
        """A defect of ours: log it, say nothing about it, end the connection."""
        self._log.failure(
            "{rpc} of {peer} failed unexpectedly", failure, rpc=rpc.name, peer=self.peer_name
        )
        if not self.closed_because:
            self._write(error_box(tag, amp.UNKNOWN_ERROR_CODE, "Unknown Error"))
            self.finish(f"{rpc.name} failed unexpectedly")

    # -- boxes out -------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._transport_is_full:
            self._unsent_bytes += len(data)
            if self._unsent_bytes > MAX_UNSENT_BYTES:
                self.abort("it does not read its answers")
                return
        self._transport().write(data)

    def pauseProducing(self) -> None:
        """The transport's buffer is full; what is written from now on is counted."""
        self._transport_is_full = True

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        self._transport_is_full = False
        self._unsent_bytes = 0

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` does the rest."""

    # -- boxes in ---------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self.closed_because:
            return
        if self._missing > len(data):
            # In the middle of a long value: nothing to look at, and nothing
            # is copied twice, however small the pieces.
            self._pending += data
            self._missing -= len(data)
            return
        if self._pending:
            self._pending += data
            data = bytes(self._pending)
            self._pending.clear()
        try:
            self._parse(data)
        except ProtocolViolation as e:
            self.abort(str(e))
        if not self.closed_because:
            self._watch_box()

    def _parse(self, data: bytes) -> None:
        """Take every whole string from `data`; the rest becomes `_pending`."""
        offset, end = 0, len(data)
        while True:
            start = offset + 2
            if start > end:
                # Between two strings nothing is missing.
                self._missing = start - end if offset < end else 0
                break
            length = data[offset] << 8 | data[offset + 1]
            key = self._key
            if key is None and length == 0:
                self._end_of_box()
                offset = start
                if self.closed_because:
                    return
                continue
            stop = start + length
            # Before anything is kept: would it still be within bounds?
            if key is None and length > _MAX_KEY_BYTES:
                raise ProtocolViolation("it does not speak AMP")
            if self._box_bytes + stop - offset > MAX_BOX_BYTES:
                raise ProtocolViolation(f"a box of more than {MAX_BOX_BYTES} bytes")
            if stop > end:
                self._missing = stop - end
                break
            if key is None:
                key = data[start:stop]
                if key in self._box:
                    raise ProtocolViolation("a box with the same key twice")
                if len(self._box) >= MAX_BOX_KEYS:
                    raise ProtocolViolation(f"a box of more than {MAX_BOX_KEYS} keys")
                self._key = key
            else:
                self._box[key] = data[start:stop]
                self._key = None
            self._box_bytes += stop - offset
            offset = stop
        if offset < end:
            self._pending += data[offset:] if offset else data

    def _end_of_box(self) -> None:
        box, size = self._box, self._box_bytes + 2
        self._box = {}
        self._box_bytes = 0
        self._box_began = None
        if amp.ANSWER in box:
            self._answered(box)
        elif amp.COMMAND in box:
            self._asked(box, size)
        elif amp.ERROR in box:
            self._failed(box)
        else:
            raise ProtocolViolation("a box that neither asks nor answers")

    def _watch_box(self) -> None:
        """Whole boxes need no timer, and a stream of broken ones only one at a time."""
        if self._box_began is None and (self._box_bytes or self._pending):
            self._box_began = self._clock.seconds()
            if self._box_timer is None:
                self._box_timer = self._clock.callLater(BOX_TIMEOUT_S, self._check_box)

    def _check_box(self) -> None:
        self._box_timer = None
        if self._box_began is None:
            return
        left_s = self._box_began + BOX_TIMEOUT_S - self._clock.seconds()
        if left_s <= _TIMER_SLACK_S:
            self.abort(f"a box was not complete within {BOX_TIMEOUT_S:.0f} s")
        else:
            self._box_timer = self._clock.callLater(left_s, self._check_box)


def tune(transport: ITransport) -> None:
    """Send small boxes at once, and notice a peer that is gone."""
    if not ITCPTransport.providedBy(transport):
        return
    if isinstance(transport, BurstConnection):
        transport.sends_at_once = True
    transport.setTcpNoDelay(True)
    transport.setTcpKeepAlive(True)
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, socket.socket):
        return
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        # Not every system has every one of them.
        if hasattr(socket, option):
            handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
