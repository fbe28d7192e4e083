"""One request in the hands of whoever answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Shape

import msgspec
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
class Request(msgspec.Struct, eq=False):
    """A complete request (`IRequest`)."""

    _connection: Connection | None
    #: Its Connection field for the answer, empty for HTTP/1.1 and only for that.
    _connection_field: bytes
    method: str
    path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    #: The whole response, while it waits for those before it; or a body under way.
    answer: bytes | BodySink | None = None

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
