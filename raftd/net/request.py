"""One request in the hands of whoever answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Shape

from zope.interface import implementer

from raftd.interfaces import IBodySink, IBodySource, IRequest
from raftd.net.heads import CLOSE, STOPPED, Responses
from raftd.net.streams import BodySink, Way


class Connection(Way, Shape):
    """The connection, as its requests see it."""

    responses: Responses
    #: Answers go nowhere any more.
    mute: bool

    @property
    def stopping(self) -> bool:
        """Whether nothing that takes long may begin."""

    def ends_with(self, request: Request) -> bool:
        """Whether nothing comes after the answer to `request`."""

    def answered(self, request: Request, answer: bytes) -> None:
        """`request` has its answer."""

    def streams(self, request: Request, body: BodySink) -> None:
        """`request` is being answered with `body`."""


@implementer(IRequest)
class Request:
    """A complete request (`IRequest`)."""

    __slots__ = (
        "_connection",
        "_connection_field",
        "answer",
        "body",
        "headers",
        "method",
        "path",
        "query",
    )

    def __init__(
        self,
        connection: Connection,
        connection_field: bytes,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
    ) -> None:
        self._connection: Connection | None = connection
        self._connection_field = connection_field
        #: The whole response, while it waits for those before it; or a body
        #: under way.
        self.answer: bytes | BodySink | None = None
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.body = body

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answer (`IRequest.respond`); a second answer is a RuntimeError."""
        connection = self._connection
        if connection is None:
            raise RuntimeError("this request has been answered already")
        if connection.mute:
            self._connection = None
            return
        answer = connection.responses.build(
            status,
            body,
            content_type,
            headers,
            CLOSE if connection.ends_with(self) else self._connection_field,
            self.method == "HEAD",
        )
        self._connection = None
        connection.answered(self, answer)

    def stream(
        self,
        status: int,
        body: IBodySource,
        content_type: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> IBodySink | None:
        """Answer piece by piece (`IRequest.stream`); a second answer is a RuntimeError."""
        connection = self._connection
        if connection is None:
            raise RuntimeError("this request has been answered already")
        if connection.mute:
            self._connection = None
            return None
        if connection.stopping:
            self.respond(503, STOPPED.body())
            return None
        chunked = not self._connection_field
        without_body = self.method == "HEAD"
        field = self._connection_field if chunked or without_body else CLOSE
        if connection.ends_with(self):
            field = CLOSE
        head = connection.responses.open(status, content_type, headers, field, chunked)
        self._connection = None
        if without_body:
            connection.answered(self, head)
            return None
        sink = BodySink(connection, body, head, chunked)
        connection.streams(self, sink)
        return sink
