"""
`GET /db/KEY?watch` and `GET /db/?watch`: what changes, as it changes.

A watch is a stream of server-sent events (the HTML standard, 9.2), one for
each revision that changes something in the range.  Its id is the revision, so
that a client that reconnects with `Last-Event-ID` misses nothing and gets
nothing twice.  `?wait=N` is the long poll: one event, as JSON.

A stream draws from its watch only while its client takes what is there, and
what it has not drawn is kept by nobody.  One timer serves all streams.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from raftd.errors import BadRequest, Compacted, RaftdError
from raftd.interfaces import IBodySink, IBodySource, IRequest
from raftd.kv.interfaces import LINEARIZABLE, Changes, IDatabase, IWatch, Selection
from raftd.kv.results import KeyValue
from raftd.web import spans
from raftd.web.answers import JSON, NO_CACHE, NOSNIFF, failed_read
from raftd.web.events import Encoder
from raftd.web.parameters import MAX_NUMBER, Parameters
from raftd.web.spans import Span

PARAMETERS = ("watch", "wait", "timeout_ms", "revision", "prev", "events")

#: Of a long poll, in milliseconds.
POLL_TIMEOUT_MS: Final = 30_000
MAX_POLL_TIMEOUT_MS: Final = 300_000

#: Something is written to each stream so often, in seconds, so that whatever
#: is between here and the client knows it is alive, and we know of the client.
KEEP_ALIVE_S: Final = 15
#: How often streams are looked at, in seconds, and for how long at once.
TICK_S: Final = 1
TICK_SLICE_S: Final = 0.003

#: A client that has taken nothing for so long, in seconds, is cut off: before
#: the connection gives it up (`raftd.net.http1`), so that it can be told.
STALL_S: Final = 30

#: Events gathered for one write, in bytes; a larger one goes out alone.
MAX_GATHERED_BYTES: Final = 16 * 1024

_EVENT_STREAM = b"text/event-stream"
_HEADERS = (
    NO_CACHE,
    NOSNIFF,
    # Known to nginx, which would otherwise gather what should arrive at once.
    (b"X-Accel-Buffering", b"no"),
)

_log = Logger()


def is_wanted(query: bytes) -> bool:
    """Whether a GET with this query is a watch or a long poll."""
    return b"wa" in query and any(
        part.partition(b"=")[0] in (b"watch", b"wait") for part in query.split(b"&")
    )


class Watching:
    """All watches of the web face; `clock` is the reactor's."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.encoder = Encoder()
        #: When each was written to last; the longest ago first.
        self._streams: OrderedDict[_EventStream, float] = OrderedDict()
        self._polls: set[_Poll] = set()
        self._tick: IDelayedCall | None = None

    def handle(self, request: IRequest, database: IDatabase, span: Span | None = None) -> None:
        """
        Answer a GET or HEAD for which `is_wanted`.

        `span` is what the path names; None: the query does.  `BadRequest`
        raised if it makes no sense.
        """
        known = PARAMETERS if span is not None else (*spans.PARAMETERS, *PARAMETERS)
        parameters = Parameters(request.query, known, "A watch")
        if span is None:
            span = spans.named(parameters, "A watch") or spans.with_prefix(b"")
        kind = parameters.choice("events", ("", "put", "delete"))
        selection = Selection(
            *span, parameters.flag("prev"), puts=kind != "delete", deletes=kind != "put"
        )
        wait = parameters.number("wait", 0, MAX_NUMBER - 1)
        timeout_ms = parameters.number("timeout_ms", 0, MAX_POLL_TIMEOUT_MS)
        if wait is None:
            self._open(request, database, selection, parameters)
        elif "watch" in parameters or "revision" in parameters:
            raise BadRequest("A wait is a watch from the revision behind it: it stands alone.")
        else:
            if timeout_ms is None:
                timeout_ms = POLL_TIMEOUT_MS
            _Poll(self, request).begin(database, selection, wait + 1, timeout_ms / 1000)

    def _open(
        self,
        request: IRequest,
        database: IDatabase,
        selection: Selection,
        parameters: Parameters,
    ) -> None:
        if not parameters.flag("watch"):
            raise BadRequest("What is not to be a watch leaves the parameter out.")
        if "timeout_ms" in parameters:
            raise BadRequest("A watch has no end; timeout_ms is for a wait.")
        revision = parameters.number("revision", 1) or 0
        revision = max(revision, _last_event_id(request.headers) + 1)
        stream = _EventStream(self, request)
        if revision:
            stream.begin(database, selection, revision)
            return

        def done(outcome: KeyValue | RaftdError | None) -> None:
            if isinstance(outcome, RaftdError):
                failed_read(request, outcome)
            else:
                stream.begin(database, selection, 0)

        # From now on: what was acknowledged before now must have come here.
        database.get(selection.key or spans.FIRST_KEY, LINEARIZABLE, done)

    def stop(self) -> None:
        """The server is about to stop: end the long polls; streams are told by their sinks."""
        for poll in list(self._polls):
            poll.give_up()

    # -- for streams and polls -------------------------------------------------------

    def opened(self, stream: _EventStream) -> None:
        """It has been written to for the first time."""
        self._streams[stream] = self.clock.seconds()
        if self._tick is None:
            self._tick = self.clock.callLater(TICK_S, self._on_tick)

    def written(self, stream: _EventStream) -> None:
        """It has been written to."""
        self._streams[stream] = self.clock.seconds()
        self._streams.move_to_end(stream)

    def closed(self, stream: _EventStream) -> None:
        """It is over."""
        self._streams.pop(stream, None)
        if not self._streams and self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def waits(self, poll: _Poll) -> None:
        """It has to be told when the server stops."""
        self._polls.add(poll)

    def answered(self, poll: _Poll) -> None:
        """It has not any more."""
        self._polls.discard(poll)

    def _on_tick(self) -> None:
        """Look at the streams that have been silent for long, for a slice of time."""
        self._tick = None
        now = self.clock.seconds()
        delay: float = TICK_S
        streams = self._streams
        while streams:
            stream = next(iter(streams))
            if now - streams[stream] < KEEP_ALIVE_S:
                break
            self.written(stream)
            stream.keep_alive(now)
            if self.clock.seconds() - now >= TICK_SLICE_S:
                delay = 0
                break
        if streams:
            self._tick = self.clock.callLater(delay, self._on_tick)


def _last_event_id(headers: Sequence[tuple[bytes, bytes]]) -> int:
    """The revision that the client has come to, -1 if it does not say."""
    for name, value in headers:
        # EventSource sends none rather than an empty one; others may not.
        if name == b"last-event-id" and value:
            if not value.isdigit() or len(value) > 19 or (last := int(value)) >= MAX_NUMBER:
                raise BadRequest("A Last-Event-ID is a revision, as a watch has given it.")
            return last
    return -1


@implementer(IBodySource)
class _Body:
    """
    An answer that is drawn from a watch, while its client takes it.

    Invariant: `_is_open` says that a part of a revision was written, which
    nothing but the rest of it can follow.
    """

    def __init__(self, watching: Watching, request: IRequest) -> None:
        self._watching = watching
        self._request = request
        self._watch: IWatch | None = None
        self._sink: IBodySink | None = None
        self._is_open = False

    def resume(self) -> None:
        """See `IBodySource`."""
        self._draw()

    def stop(self, patient: bool) -> None:
        """See `IBodySource`."""
        if patient and not self._is_open:
            self._cut_off()
        else:
            self._close()

    def _draw(self) -> None:
        """Write what there is, while there is room for it."""

    def _cut_off(self) -> None:
        """Say where to go on, and end."""

    def _close(self) -> None:
        self._sink = None
        if self._watch is not None:
            self._watch.close()

    def _abort(self) -> None:
        """The client must see that it was given a part only."""
        sink = self._sink
        self._close()
        if sink is not None:
            sink.abort()


class _EventStream(_Body):
    """A stream of server-sent events."""

    def __init__(self, watching: Watching, request: IRequest) -> None:
        super().__init__(watching, request)
        #: The last id that was written.
        self._told = 0
        #: Since when the client has taken nothing, -1 if it has.
        self._stalled = -1.0

    def begin(self, database: IDatabase, selection: Selection, revision: int) -> None:
        """Answer 200 and go on for ever, or not at all."""
        try:
            self._watch = database.watch(selection, revision, self._draw)
        except RaftdError as e:
            failed_read(self._request, e)
            return
        self._sink = self._request.stream(200, self, _EVENT_STREAM, _HEADERS)
        if self._sink is None:
            self._close()
            return
        self._watching.opened(self)
        # Whoever loses the connection before the first event knows where to go on.
        self._told = self._watch.progress
        self._sink.write(b"id: %d\n\n" % self._told)
        self._draw()

    def resume(self) -> None:
        self._stalled = -1.0
        self._draw()

    def _draw(self) -> None:
        sink, watch = self._sink, self._watch
        if sink is None or watch is None:
            return
        gathered: list[bytes] = []
        size = 0
        changes: Changes | None = None
        compacted: Compacted | None = None
        while sink.has_room:
            try:
                changes = watch.take()
            except Compacted as e:
                compacted = e
                break
            if changes is None:
                break
            framed = self._frame(changes)
            gathered.append(framed)
            size += len(framed)
            if size > MAX_GATHERED_BYTES:
                sink.write(b"".join(gathered))
                gathered.clear()
                size = 0
        if gathered:
            sink.write(b"".join(gathered))
        if compacted is not None:
            self._compacted(compacted)
            return
        if changes is not None or gathered:
            self._watching.written(self)
        if self._stalled < 0 and not sink.has_room:
            self._stalled = self._watching.clock.seconds()

    def _frame(self, changes: Changes) -> bytes:
        """
        As an event, or a part of one.

        The id of one that comes in parts is written last, for it is not to be
        believed before.
        """
        events = self._watching.encoder.events(changes)
        revision = changes.revision
        was_open, self._is_open = self._is_open, not changes.last
        if changes.last:
            self._told = revision
            if not was_open:
                return b'id: %d\ndata: {"revision":%d,"events":[%b]}\n\n' % (
                    revision,
                    revision,
                    events,
                )
        if not was_open:
            return b'data: {"revision":%d,"events":[%b\n' % (revision, events)
        line = b"data: ,%b\n" % events if events else b""
        return line + b"data: ]}\nid: %d\n\n" % revision if changes.last else line

    def _compacted(self, reason: Compacted) -> None:
        """What comes next is gone."""
        sink = self._sink
        if self._is_open or sink is None:
            self._abort()
            return
        sink.write(b'event: compacted\ndata: {"compacted_revision":%d}\n\n' % reason.revision)
        self._close()
        sink.finish()

    def _cut_off(self) -> None:
        sink, watch = self._sink, self._watch
        assert sink is not None
        assert watch is not None
        progress = watch.progress
        sink.write(
            b'id: %d\nevent: cut_off\ndata: {"resume_revision":%d}\n\n'
            % (progress, progress + 1)
        )
        self._close()
        sink.finish()

    def keep_alive(self, now: float) -> None:
        """Nothing was written for a while."""
        sink, watch = self._sink, self._watch
        assert sink is not None
        assert watch is not None
        if not sink.has_room:
            if self._stalled < 0:
                self._stalled = now
            elif now - self._stalled < STALL_S:
                pass
            elif self._is_open:
                self._abort()
            else:
                self._cut_off()
        elif self._is_open or watch.progress == self._told:
            sink.write(b":\n" if self._is_open else b":\n\n")
        else:
            self._told = watch.progress
            sink.write(b"id: %d\n\n" % self._told)

    def _close(self) -> None:
        super()._close()
        self._watching.closed(self)


class _Poll(_Body):
    """A long poll: the next revision that changes something, or nothing in time."""

    _timeout: IDelayedCall | None = None

    def begin(
        self, database: IDatabase, selection: Selection, revision: int, timeout_s: float
    ) -> None:
        """Answer when there is something, or when it is time."""
        try:
            self._watch = database.watch(selection, revision, self._draw)
        except RaftdError as e:
            failed_read(self._request, e)
            return
        self._timeout = self._watching.clock.callLater(timeout_s, self._too_late)
        self._watching.waits(self)
        self._draw()

    def give_up(self) -> None:
        """Answer where to go on."""
        if self._timeout is not None:
            self._timeout.cancel()
            self._too_late()

    def _too_late(self) -> None:
        self._timeout = None
        self._watching.answered(self)
        assert self._watch is not None
        progress = b"%d" % self._watch.progress
        self._close()
        self._request.respond(204, headers=((b"Raftd-Revision", progress), NO_CACHE))

    def _draw(self) -> None:
        watch = self._watch
        while watch is not None and (self._sink is None or self._sink.has_room):
            try:
                changes = watch.take()
            except Compacted as e:
                self._compacted(e)
                return
            if changes is None:
                return
            self._write(changes)
            if changes.last or self._sink is None:
                return

    def _write(self, changes: Changes) -> None:
        events = self._watching.encoder.events(changes)
        sink = self._sink
        if sink is not None:
            piece = b",%b" % events if events else b""
            sink.write(piece + b"]}\n" if changes.last else piece)
            if changes.last:
                self._close()
                sink.finish()
            return
        self._begun()
        head = b'{"revision":%d,"events":[%b' % (changes.revision, events)
        headers = (NO_CACHE, NOSNIFF)
        if changes.last:
            self._close()
            self._request.respond(200, head + b"]}\n", JSON, headers)
            return
        self._is_open = True
        self._sink = self._request.stream(200, self, JSON, headers)
        if self._sink is None:
            self._close()
            return
        self._sink.write(head)

    def _compacted(self, reason: Compacted) -> None:
        if self._sink is not None:
            self._abort()
            return
        self._begun()
        self._close()
        failed_read(self._request, reason)

    def _begun(self) -> None:
        """The answer begins: there is nothing more to wait for."""
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
        self._watching.answered(self)
