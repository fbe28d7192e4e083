"""Bodies that are made while the client takes them, so that none keeps the reactor for long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twisted.logger import Logger
from zope.interface import implementer

from raftd.interfaces import IBodySink, IBodySource, IRequest

#: A body that has become so long, in bytes, and is not yet complete is streamed.
MAX_WHOLE_BYTES = 64 * 1024

_log = Logger()


def respond(
    request: IRequest,
    status: int,
    pieces: Iterator[bytes],
    content_type: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with all of `pieces`: at once if they are short, else as the client takes them."""
    begun = []
    size = 0
    for piece in pieces:
        begun.append(piece)
        size += len(piece)
        if size > MAX_WHOLE_BYTES:
            break
    else:
        request.respond(status, b"".join(begun), content_type, headers)
        return
    source = _Pieces(b"".join(begun), pieces, bounded=True)
    source.begin(request.stream(status, source, content_type, headers))


def stream(
    request: IRequest,
    status: int,
    pieces: Iterator[bytes],
    content_type: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with `pieces` as the client takes them, however many they are."""
    source = _Pieces(b"", pieces, bounded=False)
    source.begin(request.stream(status, source, content_type, headers))


@implementer(IBodySource)
class _Pieces:
    """
    Draws pieces while there is room.

    A server that stops finishes a `bounded` body; another is broken off, and
    the client sees that it is not complete.
    """

    def __init__(self, first: bytes, pieces: Iterator[bytes], bounded: bool) -> None:
        self._first = first
        self._pieces = pieces
        self._bounded = bounded
        #: None before it has begun and once it is over.
        self._sink: IBodySink | None = None

    def begin(self, sink: IBodySink | None) -> None:
        """Write what there is room for; None: nobody wants any of it."""
        self._sink = sink
        if sink is None:
            self._close()
            return
        if self._first:
            sink.write(self._first)
            self._first = b""
        self._draw(False)

    def resume(self) -> None:
        """See `IBodySource`."""
        self._draw(False)

    def stop(self, patient: bool) -> None:
        """See `IBodySource`."""
        if patient and self._bounded:
            self._draw(True)
        self._sink = None
        self._close()

    def _draw(self, everything: bool) -> None:
        while (sink := self._sink) is not None and (everything or sink.has_room):
            try:
                piece = next(self._pieces, None)
            except Exception:
                _log.failure("The body of an answer could not be made")
                self._sink = None
                sink.abort()
                return
            if piece is None:
                self._sink = None
                sink.finish()
            elif piece:
                sink.write(piece)

    def _close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
