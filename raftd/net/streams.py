"""The body of an answer that is sent while it is being made (`IRequest.stream`)."""

from __future__ import annotations

from typing import Protocol as Shape

from twisted.logger import Logger
from zope.interface import implementer

from raftd.interfaces import IBodySink, IBodySource

#: The end of a chunked body, without trailers (RFC 9112, 7.1).
_LAST_CHUNK = b"0\r\n\r\n"

_log = Logger()


class Way(Shape):
    """The connection, as its bodies see it."""

    @property
    def has_room(self) -> bool:
        """Whether the transport takes more."""

    def send_piece(self, data: bytes) -> None:
        """Send a part of the body whose turn it is."""

    def body_over(self, body: BodySink) -> None:
        """The body whose turn it is has been sent."""

    def give_up(self) -> None:
        """Close at once, with everything that is under way."""


@implementer(IBodySink)
class BodySink:
    """
    A body on its way: `begin` is called when those before it have been sent.

    `chunked` is false for HTTP/1.0, where the end of the connection is the end
    of the body.  Invariant: `_source` is None once nothing more comes from it
    and nothing more may be said to it.
    """

    __slots__ = ("_aborted", "_finished", "_kept", "_source", "_way", "chunked")

    def __init__(self, way: Way, source: IBodySource, head: bytes, chunked: bool) -> None:
        self.chunked = chunked
        self._way = way
        self._source: IBodySource | None = source
        #: What waits for its turn; None from then on.
        self._kept: list[bytes] | None = [head]
        self._finished = False
        self._aborted = False

    # -- for the source ----------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return self._source is not None and self._kept is None and self._way.has_room

    def write(self, data: bytes) -> None:
        self._check_open()
        if not data:
            # In chunks it would be the end.
            raise ValueError("a piece of a body is not empty")
        if self._source is not None:
            self._send(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def finish(self) -> None:
        self._check_open()
        self._finished = True
        if self._source is None:
            return
        self._source = None
        if self.chunked:
            self._send(_LAST_CHUNK)
        if self._kept is None:
            self._way.body_over(self)

    def abort(self) -> None:
        self._check_open()
        self._aborted = True
        if self._source is None:
            return
        self._source = None
        if self._kept is None:
            self._way.give_up()

    def _check_open(self) -> None:
        if self._finished or self._aborted:
            raise RuntimeError("this body is over already")

    def _send(self, data: bytes) -> None:
        if self._kept is None:
            self._way.send_piece(data)
        else:
            self._kept.append(data)

    # -- for the connection --------------------------------------------------------

    def begin(self) -> bool:
        """Its turn has come: send what was kept.  Whether it is over already."""
        kept, self._kept = self._kept, None
        if self._aborted:
            self._way.give_up()
            return False
        self._way.send_piece(b"".join(kept or ()))
        return self._finished

    def resume(self) -> None:
        """There is room; whoever has something to say may say it."""
        source = self._source
        if source is None:
            return
        try:
            source.resume()
        except Exception:
            self.fail()

    def stop(self, patient: bool) -> None:
        """
        Tell the source that nobody wants more, unless it is over anyway.

        If a patient stop does not finish the body, the client shall see that.
        """
        source = self._source
        if source is None:
            return
        if not patient:
            self._source = None
        try:
            source.stop(patient)
        except Exception:
            _log.failure("the source of a body failed to stop")
        if self._source is not None:
            self._source = None
            self._aborted = True
            if self._kept is None:
                self._way.give_up()

    def fail(self) -> None:
        """Whoever makes the body raised; logs the present exception."""
        _log.failure("a body could not be made to its end")
        self.stop(patient=False)
        if self._kept is None:
            self._way.give_up()
        else:
            self._aborted = True
