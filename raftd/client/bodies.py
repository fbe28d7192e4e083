"""Bodies: of a request, which are sent at once, and of an answer, read as a whole."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer


@implementer(IBodyProducer)
class Bytes:
    """A body that is there already; a write knows nothing of any reactor."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything was written."""

    def resumeProducing(self) -> None:
        """Everything was written."""

    def stopProducing(self) -> None:
        """Everything was written."""


class TooLong(Exception):
    """The body of an answer is longer than it may be."""


class _Collector(Protocol):
    """Gathers a body; `whole` fires with it, once, and cancelling that drops the connection."""

    def __init__(self, limit_bytes: int, heard: Callable[[], None]) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._drop())
        self._limit_bytes = limit_bytes
        self._heard = heard
        self._pieces: list[bytes] = []
        self._size = 0

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self.whole.called:
            return
        self._heard()
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._limit_bytes:
            whole = self.whole
            self._drop()
            if not whole.called:
                whole.errback(TooLong(f"An answer has more than {self._limit_bytes} bytes."))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone):
            self.whole.callback(b"".join(self._pieces))
        else:
            # Also where only the end of the connection is the end of the body:
            # that might as well be a part.
            self.whole.errback(ResponseFailed([reason]))


def collect(
    response: IResponse, limit_bytes: int, heard: Callable[[], None] = lambda: None
) -> Deferred[bytes]:
    """
    The body of `response`; `heard` is called whenever something of it has come.

    Fails with `ResponseFailed` if it breaks off, with `TooLong`.
    """
    collector = _Collector(limit_bytes, heard)
    response.deliverBody(collector)
    return collector.whole
