"""
A watch that resumes by itself: server-sent events, each revision once.

The id of an event is its revision.  When a connection breaks, the next one,
to another server, says which id was complete last, and the server goes on
behind it; a part of an event that was on its way is dropped, and comes again
as a whole.
"""

from __future__ import annotations

import random
from collections import deque
from types import TracebackType
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from raftd.client.errors import Unreachable, error_of
from raftd.client.requester import MAX_PAUSE_S, MIN_PAUSE_S, Parameters, Requester, query
from raftd.client.values import Changes, read_changes
from raftd.errors import Compacted, RaftdError, Stopped

#: Without a sign of life for so long, a server is taken for gone; it gives one
#: every fifteen seconds.
SILENCE_S = 40.0
#: How long a server may take to begin to answer.
ANSWER_TIMEOUT_S = 6.0
#: Revisions that are kept for a reader who does not take them; then the
#: connection is paused.
MAX_WAITING = 256
#: The longest event, in bytes: one transaction, or one range delete, with all
#: that was there before.  What is longer cannot be watched.
MAX_EVENT_BYTES = 256 << 20


class EventParser:
    """
    Server-sent events out of bytes that come cut anywhere (HTML Standard, 9.2).

    Only what raftd sends: lines end with a line feed, fields are `id`,
    `event` and `data`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._size = 0
        self._clear()

    def _clear(self) -> None:
        self._id = ""
        self._kind = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[tuple[str, str, bytes]]:
        """The complete events, each an (id, kind, data); `ValueError` if one is too long."""
        found = []
        *lines, self._rest = (
            (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        )
        for line in lines:
            if line:
                self._field(line)
            elif self._id or self._kind or self._data:
                found.append((self._id, self._kind, b"\n".join(self._data)))
                self._clear()
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError("The event is too long.")
        return found

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
        elif name == b"id":
            self._id = value.decode("ascii", "replace")
        elif name == b"event":
            self._kind = value.decode("ascii", "replace")


class _Stream(Protocol):
    """The body of one connection; tells the watch what comes and that it ended."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._parser = EventParser()
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._watch.heard()
        try:
            for event_id, kind, content in self._parser.feed(data):
                self._watch.event(event_id, kind, content)
        except ValueError as e:
            self._watch.fail(Unreachable(f"What came is no stream of events: {e}"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)

    def pause(self) -> None:
        if self.transport is not None:
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def resume(self) -> None:
        if self.transport is not None:
            self.transport.resumeProducing()  # type: ignore[attr-defined]

    def hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


class Watch:
    """
    An async iterator of `Changes`; also an async context manager that closes it.

    It asks for the first time when it is made.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        agent: Any,
        requester: Requester,
        path: str,
        parameters: Parameters,
        revision: int,
    ) -> None:
        self._clock = clock
        self._agent = agent
        self._requester = requester
        self._target = path + query(parameters)
        self._revision = revision
        #: The id of the last event that was complete, 0 before there was any.
        self._last_id = 0
        self._waiting: deque[Changes] = deque()
        self._reader: Deferred[None] | None = None
        self._starting: list[Deferred[int]] = []
        self._error: RaftdError | None = None
        self._stream: _Stream | None = None
        self._is_paused = False
        self._silence: IDelayedCall | None = None
        self._failures = 0
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._ended)

    def started(self) -> Deferred[int]:
        """
        Fires when the first connection stands: with a revision such that
        everything that changes behind it will be seen.
        """
        starting: Deferred[int] = Deferred()
        if self._error is not None:
            starting.errback(self._error)
        elif self._last_id:
            starting.callback(self._last_id)
        else:
            self._starting.append(starting)
        return starting

    def close(self) -> None:
        """End it; whoever waits for changes has seen the last."""
        self.fail(Stopped("The watch was closed."))

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Changes:
        while not self._waiting:
            if isinstance(self._error, Stopped):
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._reader = Deferred()
            await self._reader
        changes = self._waiting.popleft()
        if self._is_paused and len(self._waiting) <= MAX_WAITING // 2:
            self._is_paused = False
            self.heard()
            if self._stream is not None:
                self._stream.resume()
        return changes

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- connections -------------------------------------------------------------------

    async def _run(self) -> None:
        while self._error is None:
            server = self._requester.server
            try:
                await self._connect(server)
            except (Compacted, _Refused) as e:
                self.fail(e.reason if isinstance(e, _Refused) else e)
                return
            except CancelledError:
                if self._error is not None:
                    raise
                self._log.info("A watch gets no answer from {server}.", server=server)
            except Exception as e:
                self._log.info("A watch of {server} broke off: {e!s}", server=server, e=e)
            if self._error is None:
                self._requester.avoid(server)
                await self._pause()

    async def _connect(self, server: str) -> None:
        """Stream from `server` until that ends."""
        headers = Headers({"Accept": ["text/event-stream"]})
        target = self._target
        if self._last_id:
            headers.addRawHeader("Last-Event-ID", str(self._last_id))
        elif self._revision:
            target += f"&revision={self._revision}"
        url = f"http://{server}{target}".encode("ascii")
        asked: Deferred[IResponse] = self._agent.request(b"GET", url, headers, None)
        self._asking(asked)
        try:
            response = await asked
        finally:
            self._quiet()
        if response.code != 200:
            await self._refused(server, response)
        self._stream = stream = _Stream(self)
        response.deliverBody(stream)
        self.heard()
        try:
            await stream.ended
        finally:
            self._stream, self._is_paused = None, False
            self._quiet()

    async def _refused(self, server: str, response: IResponse) -> None:
        body = _Collected()
        response.deliverBody(body)
        await body.ended
        error = error_of(server, response.code, b"".join(body.pieces))
        if response.code >= 500 or response.code == 429:
            raise error
        raise _Refused(error)

    async def _pause(self) -> None:
        self._failures += 1
        longest = min(MAX_PAUSE_S, MIN_PAUSE_S * 2**self._failures)
        await deferLater(self._clock, longest * (0.5 + random.random() / 2))

    # -- what comes --------------------------------------------------------------------

    def event(self, event_id: str, kind: str, data: bytes) -> None:
        """One complete event."""
        if self._error is not None:
            return
        if kind == "compacted":
            fields = msgspec.json.decode(data)
            self.fail(Compacted("What comes next was compacted.", fields["compacted_revision"]))
            return
        if kind:
            return  # such as cut_off: the end of the connection follows
        if event_id.isdigit():
            self._last_id = max(self._last_id, int(event_id))
            self._failures = 0
            starting, self._starting = self._starting, []
            for each in starting:
                each.callback(self._last_id)
        if data:
            self._waiting.append(read_changes(data))
            if len(self._waiting) >= MAX_WAITING and not self._is_paused:
                self._is_paused = True
                self._quiet()
                if self._stream is not None:
                    self._stream.pause()
            self._tell()

    def fail(self, reason: RaftdError) -> None:
        """It is over, for `reason`, once what has come was read."""
        if self._error is not None:
            return
        self._error = reason
        self._quiet()
        if self._stream is not None:
            self._stream.hang_up()
        starting, self._starting = self._starting, []
        for each in starting:
            each.errback(reason)
        self._tell()
        self._running.cancel()

    def _tell(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)

    def _ended(self, failure: Failure) -> None:
        failure.trap(CancelledError)

    # -- silence -----------------------------------------------------------------------

    def heard(self) -> None:
        """The server has given a sign of life."""
        self._quiet()
        if not self._is_paused and self._error is None:
            self._silence = self._clock.callLater(SILENCE_S, self._silent)

    def _asking(self, asked: Deferred[Any]) -> None:
        self._silence = self._clock.callLater(ANSWER_TIMEOUT_S, asked.cancel)

    def _quiet(self) -> None:
        if self._silence is not None and self._silence.active():
            self._silence.cancel()
        self._silence = None

    def _silent(self) -> None:
        if self._stream is not None:
            self._stream.hang_up()


class _Refused(Exception):
    """Why the server will not stream, ever."""

    def __init__(self, reason: RaftdError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Collected(Protocol):
    """A short body."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)
