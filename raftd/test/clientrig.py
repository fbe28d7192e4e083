"""For tests of the client: an agent that answers what the test says, under a clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from raftd.client import Client

SERVERS = ["a:1", "b:2", "c:3"]


class FakeTransport:
    """What a body sees of its connection."""

    def __init__(self, response: FakeResponse) -> None:
        self._response = response
        self.is_paused = False
        self.is_lost = False

    def loseConnection(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._response.end(ResponseFailed([Failure(ConnectionDone())]))

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False


@implementer(IResponse)
class FakeResponse:
    """A response whose body comes when the test says so, also before it is asked for."""

    version = (b"HTTP", 1, 1)
    phrase = b""
    length = 0
    previousResponse = None

    def __init__(self, request: Asked, code: int, headers: dict[str, str]) -> None:
        self.request = request
        self.code = code
        self.headers = Headers({name: [value] for name, value in headers.items()})
        self.transport = FakeTransport(self)
        self._protocol: Any = None
        self._early: list[bytes] = []
        self._end: Exception | None = None

    def setPreviousResponse(self, response: object) -> None:
        """There is none."""

    def deliverBody(self, protocol: IProtocol) -> None:
        self._protocol = protocol
        protocol.makeConnection(self.transport)  # type: ignore[arg-type]
        for data in self._early:
            protocol.dataReceived(data)
        if self._end is not None:
            self._finish()

    def data(self, data: bytes) -> None:
        if self._protocol is None:
            self._early.append(data)
        elif self._end is None:
            self._protocol.dataReceived(data)

    def end(self, reason: Exception | None = None) -> None:
        if self._end is None:
            self._end = reason or ResponseDone()
            if self._protocol is not None:
                self._finish()

    def _finish(self) -> None:
        assert self._end is not None
        self._protocol.connectionLost(Failure(self._end))


class Asked:
    """One request, in the hands of the test."""

    def __init__(
        self, method: bytes, uri: bytes, headers: Headers, body: IBodyProducer | None
    ) -> None:
        self.method = method.decode()
        self.absoluteURI = uri
        self.server, _, target = uri.decode().removeprefix("http://").partition("/")
        self.target = "/" + target
        self.headers = headers
        self._written: list[bytes] = []
        if body is not None:
            body.startProducing(self)
        self.body = b"".join(self._written)
        #: What cancelling it makes of it; None: what a Deferred does by itself.
        self.when_cancelled: Exception | None = None
        self.response: Deferred[IResponse] = Deferred(self._cancelled)
        self.was_cancelled = False

    def write(self, data: bytes) -> None:
        self._written.append(data)

    def header(self, name: str) -> str:
        (value,) = self.headers.getRawHeaders(name) or [""]
        return value

    def _cancelled(self, response: Deferred[IResponse]) -> None:
        self.was_cancelled = True
        if self.when_cancelled is not None:
            response.errback(self.when_cancelled)

    def begin(self, status: int, **headers: str) -> FakeResponse:
        """Answer; the body is for the test to send."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        response = FakeResponse(self, status, fields)
        self.response.callback(response)
        return response

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        """Answer with bytes, or with JSON."""
        response = self.begin(status, **headers)
        response.data(body if isinstance(body, bytes) else json.dumps(body).encode())
        response.end()

    def refuse(self, status: int, code: str, **more: object) -> None:
        """Answer as raftd does when it will not."""
        self.answer(status, {"error": code, "message": f"Said {self.server}.", **more})

    def fail(self, reason: Exception) -> None:
        self.response.errback(reason)


@implementer(IAgent)
class FakeAgent:
    """Keeps the requests; `asked` are all of them, in order."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        asked = Asked(method, uri, headers or Headers(), bodyProducer)
        self.asked.append(asked)
        return asked.response


class ClientCase(SynchronousTestCase):
    """A client of three servers that are played by the test."""

    timeout_s = 10.0

    def setUp(self) -> None:
        self.clock = Clock()
        self.agent = FakeAgent()
        self.client = Client(
            self.clock, SERVERS, timeout_s=self.timeout_s, agent=self.agent, draw=lambda: 1.0
        )

    def last(self, count: int) -> Asked:
        """The request that was sent last, which must be the one of this number."""
        self.assertEqual(len(self.agent.asked), count)
        return self.agent.asked[-1]

    def advance(self, seconds: float) -> None:
        """In small steps, as a reactor does."""
        end = self.clock.seconds() + seconds
        while True:
            calls = self.clock.getDelayedCalls()
            at = min((call.getTime() for call in calls), default=end)
            if at > end:
                break
            self.clock.advance(max(0.0, at - self.clock.seconds()))
            if not calls:
                break
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def play(self, until: Deferred[Any], react: Callable[[Asked], None]) -> None:
        """React to each request that was not answered yet, until `until` has fired."""
        while not until.called:
            for asked in list(self.agent.asked):
                if not asked.response.called:
                    react(asked)
            self.clock.advance(0.01)
            self.assertLess(self.clock.seconds(), 2 * self.timeout_s)

    def assertQuiet(self) -> None:
        """Nothing is left behind."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
