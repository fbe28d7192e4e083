"""
A watch that resumes by itself: server-sent events, each revision once.

The id of an event is its revision.  When a connection breaks, the next one,
to another server, says which id was complete last, and the server goes on
behind it; a part of an event that was on its way is dropped, and comes again
as a whole.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from raftd.client.bodies import collect
from raftd.client.errors import Unreachable, error_of
from raftd.client.events import EventParser, ServerSentEvent
from raftd.client.requester import ATTEMPT_TIMEOUT_S, Parameters, Requester, query
from raftd.client.values import Changes, read_changes
from raftd.errors import Compacted, RaftdError, Stopped

T = TypeVar("T")

#: Without a sign of life for so long, a server is taken for gone; it gives one
#: every fifteen seconds.
SILENCE_S = 40.0
#: How often a watch of which nothing comes asks its server whether what that
#: knows is as fresh: one that was cut off from the others has nothing to tell.
CHECK_S = 10.0
#: What is kept for a reader who does not take it: so many revisions, or so
#: many bytes of them; then the connection is paused.
MAX_WAITING = 256
MAX_WAITING_BYTES = 16 << 20
#: The longest body of an answer that is no stream.
MAX_REFUSAL_BYTES = 64 << 10


class _Refused(Exception):
    """Why no server will ever stream; the reason is the only argument."""


class _Stream(Protocol):
    """The body of one connection; tells the watch what comes, and that it ended."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._parser = EventParser()
        self.ended: Deferred[None] = Deferred(lambda _: self.hang_up())

    def dataReceived(self, data: bytes) -> None:
        self._watch.heard(self)
        try:
            for event in self._parser.feed(data):
                self._watch.event(event)
        except (ValueError, LookupError, TypeError, msgspec.MsgspecError) as e:
            self._watch.fail(Unreachable(f"What came is not what raftd sends: {e}."))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
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

    It asks for the first time when it is made.  One reads it at a time.

    Invariants: while `_stream` is set, `_silence` runs unless `_is_paused`.
    `_awaited` is what `_run` waits for, None while it runs.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        requester: Requester,
        path: str,
        parameters: Parameters,
        revision: int,
    ) -> None:
        self._clock = clock
        self._requester = requester
        self._target = path + query(parameters)
        self._revision = revision
        #: The id of the last event that was complete, 0 before there was any.
        self._last_id = 0
        self._waiting: deque[tuple[Changes, int]] = deque()
        self._waiting_bytes = 0
        #: How many changes have come.
        self._seen = 0
        self._reader: Deferred[None] | None = None
        self._starting: dict[Deferred[int], None] = {}
        self._error: RaftdError | None = None
        self._stream: _Stream | None = None
        self._is_paused = False
        self._room: Deferred[None] | None = None
        self._silence: IDelayedCall | None = None
        #: Connections in a row that came to nothing.
        self._failures = 0
        self._awaited: Deferred[Any] | None = None
        self._check: IDelayedCall | None = None
        self._probing: Deferred[Any] | None = None
        requester.users[self] = None
        Deferred.fromCoroutine(self._run()).addErrback(self._broken)

    def started(self) -> Deferred[int]:
        """
        Fires when the first connection stands: with a revision such that
        everything that changes behind it will be seen.
        """
        starting: Deferred[int] = Deferred(lambda d: self._starting.pop(d, None))
        if self._last_id:
            starting.callback(self._last_id)
        elif self._error is not None:
            starting.errback(self._error)
        else:
            self._starting[starting] = None
        return starting

    def close(self) -> None:
        """End it; what has come can still be read, and then it is over."""
        self.fail(Stopped("The watch was closed."))

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Changes:
        if self._reader is not None:
            raise RuntimeError("A watch is read by one at a time.")
        while not self._waiting:
            if isinstance(self._error, Stopped):
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._reader = Deferred()
            try:
                await self._reader
            finally:
                self._reader = None
        changes, size = self._waiting.popleft()
        self._waiting_bytes -= size
        if not self._is_full(2):
            self._make_room()
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
        while not self._is_over():
            server = self._requester.server
            begun, seen = self._requester.seconds(), self._seen
            try:
                await self._connect(server)
                self._log.debug("A watch of {server} has ended.", server=server)
            except _Refused as e:
                self.fail(e.args[0])
            except Exception as e:
                self._log.info("A watch of {server} broke off: {e!s}", server=server, e=e)
            if self._is_over():
                return
            self._requester.avoid(server)
            if self._seen > seen or self._requester.seconds() - begun > SILENCE_S:
                # Else it may be one that lets everybody in, and out at once.
                self._failures = 0
            self._failures += 1
            try:
                await self._wait(
                    deferLater(self._clock, self._requester.pause_s(self._failures))
                )
                await self._until_room()
            except CancelledError:
                return

    def _is_over(self) -> bool:
        return self._error is not None

    async def _connect(self, server: str) -> None:
        """Stream from `server` until that ends."""
        headers = {"Accept": "text/event-stream"}
        target = self._target
        if self._last_id:
            headers["Last-Event-ID"] = str(self._last_id)
        elif self._revision:
            target += f"&revision={self._revision}"
        asked = self._requester.open(server, "GET", target, headers)
        response = await self._in_time(asked)
        if response.code != 200 or not _is_stream(response):
            body = await self._in_time(collect(response, MAX_REFUSAL_BYTES))
            self._refused(error_of(server, response.code, body), response.code)
        self._stream = stream = _Stream(self)
        try:
            self.heard(stream)
            self._check = self._clock.callLater(CHECK_S, self._look_after, server, stream, 0)
            response.deliverBody(stream)
            await self._wait(stream.ended)
        finally:
            self._stream, self._is_paused = None, False
            self._quiet()
            stream.hang_up()

    def _refused(self, error: RaftdError, status: int) -> None:
        if 400 <= status < 500 and status not in (408, 429):
            raise _Refused(error)
        raise error

    async def _wait(self, deferred: Deferred[T]) -> T:
        """What it fires with; `fail` cancels it."""
        self._awaited = deferred
        if self._error is not None:
            deferred.cancel()
        try:
            return await deferred
        finally:
            self._awaited = None

    async def _in_time(self, deferred: Deferred[T]) -> T:
        timer = self._clock.callLater(ATTEMPT_TIMEOUT_S, deferred.cancel)
        try:
            return await self._wait(deferred)
        finally:
            if timer.active():
                timer.cancel()

    async def _until_room(self) -> None:
        if self._is_full():
            self._room = Deferred()
            await self._wait(self._room)

    # -- what comes --------------------------------------------------------------------

    def event(self, event: ServerSentEvent) -> None:
        """One complete event."""
        if self._error is not None:
            return
        if event.kind == "compacted":
            revision = msgspec.json.decode(event.data)["compacted_revision"]
            self.fail(Compacted("What comes next was compacted.", revision))
            return
        if event.kind:
            return  # such as cut_off: the end of the connection follows
        revision = int(event.id) if event.id.isdigit() else 0
        is_new = revision > self._last_id
        if event.data and is_new:
            # Before the id is believed: what cannot be read was not seen.
            self._keep(read_changes(event.data), len(event.data))
        if is_new:
            self._last_id = revision
            starting, self._starting = self._starting, {}
            for each in starting:
                if not each.called:
                    each.callback(revision)

    def _keep(self, changes: Changes, size: int) -> None:
        self._waiting.append((changes, size))
        self._waiting_bytes += size
        self._seen += 1
        if self._is_full() and not self._is_paused and self._stream is not None:
            self._is_paused = True
            self._quiet()
            self._stream.pause()
        self._tell()

    def _is_full(self, part: int = 1) -> bool:
        """Whether what waits for the reader has come to this part of the bounds."""
        return (
            len(self._waiting) * part >= MAX_WAITING
            or self._waiting_bytes * part >= MAX_WAITING_BYTES
        )

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.called:
            room.callback(None)
        if self._is_paused and self._stream is not None:
            self._is_paused = False
            self.heard(self._stream)
            self._stream.resume()

    def fail(self, reason: RaftdError) -> None:
        """It is over, for `reason`, once what has come was read."""
        if self._error is not None:
            return
        self._error = reason
        self._requester.users.pop(self, None)
        if self._stream is not None:
            self._stream.hang_up()
        starting, self._starting = self._starting, {}
        for each in starting:
            if not each.called:
                each.errback(reason)
        self._tell()
        if self._awaited is not None:
            self._awaited.cancel()

    def _tell(self) -> None:
        if self._reader is not None and not self._reader.called:
            self._reader.callback(None)

    def _broken(self, failure: Failure) -> None:
        """A defect: whoever reads must not wait for ever."""
        self._log.failure("A watch has failed", failure)
        self.fail(Unreachable(f"The watch has failed: {failure.getErrorMessage()}"))

    # -- silence -----------------------------------------------------------------------

    def heard(self, stream: _Stream) -> None:
        """The server has given a sign of life."""
        if self._error is not None or self._is_paused:
            return
        if self._silence is not None and self._silence.active():
            self._silence.reset(SILENCE_S)
        else:
            self._silence = self._clock.callLater(SILENCE_S, stream.hang_up)

    def _quiet(self) -> None:
        """Nothing is expected any more, for now or for good."""
        silence, self._silence = self._silence, None
        if silence is not None and silence.active():
            silence.cancel()
        if self._stream is None:
            if self._check is not None and self._check.active():
                self._check.cancel()
            if self._probing is not None:
                self._probing.cancel()
            self._check = self._probing = None

    def _look_after(self, server: str, stream: _Stream, last_id: int) -> None:
        """If nothing has come for a while, ask the server how it is."""
        if self._is_paused or self._last_id > last_id:
            self._checked(server, stream, True)
            return
        self._probing = Deferred.fromCoroutine(self._requester.probe(server, CHECK_S))
        self._probing.addCallback(lambda good: self._checked(server, stream, good))
        self._probing.addErrback(lambda failure: failure.trap(CancelledError))

    def _checked(self, server: str, stream: _Stream, is_good: bool) -> None:
        if stream is not self._stream:
            return
        if is_good:
            self._check = self._clock.callLater(
                CHECK_S, self._look_after, server, stream, self._last_id
            )
        else:
            self._log.info("{server} is cut off from the cluster.", server=server)
            stream.hang_up()


def _is_stream(response: IResponse) -> bool:
    kinds: list[str] = response.headers.getRawHeaders("Content-Type") or [""]
    return kinds[0].partition(";")[0].strip() == "text/event-stream"
