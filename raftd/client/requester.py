"""
One request, to whichever server answers it: endpoints, retries, outcomes.

A request is sent to one server after the other until there is an answer that
settles it or its time is up.  Reads may be sent as often as it takes.  A write
carries an idempotency key, so that it may be, too: however often it was sent,
it is carried out at most once, and every answer is that of the first time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote
from uuid import uuid4

import msgspec
import treq
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.task import deferLater
from twisted.web.client import RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from raftd.client.errors import Unreachable, error_of
from raftd.errors import DidNotHappen, OutcomeUnknown, RaftdError

#: The longest pause before all servers are asked once more, in seconds; the
#: first is the shortest, and each is up to twice as long as the one before.
MAX_PAUSE_S = 1.0
MIN_PAUSE_S = 0.02
#: How long one server may take over an answer: longer than it waits itself for
#: a leader and a quorum, by default, before it says that there is none.
ATTEMPT_TIMEOUT_S = 6.0
#: The longest answer that is read, in bytes: a page of a listing is the longest.
MAX_ANSWER_BYTES = 64 << 20

#: How a connection ends before there is a whole answer.
_BROKEN_OFF = (ConnectionClosed, RequestTransmissionFailed, ResponseFailed)

#: One or several: `name=value` pairs of a query.
Parameters = Sequence[tuple[str, str | bytes]]


class Answer(msgspec.Struct, frozen=True):
    """What a server has answered: nothing that is to be tried again."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        """A header's first value; empty if there is none."""
        values = self.headers.getRawHeaders(name)
        return values[0] if values else ""

    def revision(self) -> int:
        """The one in the ETag; 0 if there is none."""
        etag = self.header("ETag").strip('"')
        return int(etag) if etag.isdigit() else 0


class _Tried:
    """What came of the attempts of one request so far."""

    def __init__(self) -> None:
        #: Whether an attempt may have been carried out without saying so.
        self.may_have_happened = False
        self.last: RaftdError = Unreachable("No server was asked.")
        self.attempts = 0


class Requester:
    """
    Asks `servers`, each a `host:port`; it stays with one that answers.

    `clock` is for pauses and time limits, `agent` what treq sends with.
    """

    def __init__(
        self,
        clock: Any,
        servers: Sequence[str],
        agent: Any,
        timeout_s: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if not servers:
            raise ValueError("There must be at least one server.")
        self.clock = clock
        self.timeout_s = timeout_s
        self._servers = list(servers)
        self._current = 0
        self._http = HTTPClient(agent)
        self._draw = draw

    @property
    def server(self) -> str:
        """The server that is asked next."""
        return self._servers[self._current % len(self._servers)]

    def avoid(self, server: str) -> None:
        """Ask the next one from now on, if `server` is the one that would be."""
        if server == self.server:
            self._current += 1

    async def read(self, path: str, parameters: Parameters = ()) -> Answer:
        """A GET; `DidNotHappen` if no server could answer it in time."""
        return await self._settle("GET", path + query(parameters), {}, b"", False)

    async def write(
        self,
        method: str,
        path: str,
        parameters: Parameters = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        idempotency_key: str | None = None,
    ) -> Answer:
        """
        A request that changes something, carried out at most once.

        `DidNotHappen` if it certainly was not, `OutcomeUnknown` if nobody
        could say in time.
        """
        key = idempotency_key or uuid4().hex
        sent = {**(headers or {}), "Idempotency-Key": key}
        return await self._settle(method, path + query(parameters), sent, body, True)

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """A request that may safely be carried out several times, like a keep-alive."""
        return await self._settle(method, path, {}, body, False)

    # -- attempts ------------------------------------------------------------------

    async def _settle(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, changes: bool
    ) -> Answer:
        deadline = self.clock.seconds() + self.timeout_s
        tried = _Tried()
        while True:
            remaining = deadline - self.clock.seconds()
            if remaining <= 0:
                self._give_up(tried, changes)
            server = self.server
            answer = await self._attempt(
                server, method, target, headers, body, remaining, tried
            )
            if answer is not None:
                return answer
            self.avoid(server)
            tried.attempts += 1
            await self._pause(tried.attempts, deadline)

    def _give_up(self, tried: _Tried, changes: bool) -> NoReturn:
        if changes and tried.may_have_happened:
            raise OutcomeUnknown(
                f"Within {self.timeout_s:g} seconds nobody could say whether it happened; "
                f"the last that was heard: {tried.last}"
            )
        if isinstance(tried.last, DidNotHappen):
            raise tried.last
        raise Unreachable(
            f"None of the servers answered within {self.timeout_s:g} seconds: {tried.last}"
        )

    async def _attempt(
        self,
        server: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        remaining_s: float,
        tried: _Tried,
    ) -> Answer | None:
        """What settles the request, or None, with `tried` brought up to date."""
        timeout_s = min(ATTEMPT_TIMEOUT_S, remaining_s)
        asked = Deferred.fromCoroutine(self._ask(server, method, target, headers, body))
        timed_out = False

        def too_late() -> None:
            nonlocal timed_out
            timed_out = True
            asked.cancel()

        timer = self.clock.callLater(timeout_s, too_late)
        try:
            answer = await asked
        except (ConnectError, DNSLookupError) as e:
            tried.last = Unreachable(f"{server} cannot be reached: {e}")
            return None
        except CancelledError:
            if not timed_out:
                raise  # whoever waits for this has given up
            self._no_answer(server, "takes too long", tried)
            return None
        except (*_BROKEN_OFF, ValueError):
            self._no_answer(server, "takes too long" if timed_out else "broke off", tried)
            return None
        finally:
            if timer.active():
                timer.cancel()
        return self._judge(server, answer, tried)

    def _no_answer(self, server: str, why: str, tried: _Tried) -> None:
        tried.may_have_happened = True
        tried.last = Unreachable(f"{server} {why}.")

    def _judge(self, server: str, answer: Answer, tried: _Tried) -> Answer | None:
        if answer.status in (429, 503, 504):
            tried.last = error_of(server, answer.status, answer.body)
            if answer.status == 504:
                tried.may_have_happened = True
            return None
        return answer

    async def _ask(
        self, server: str, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        response: IResponse = await self._http.request(
            method,
            f"http://{server}{target}",
            headers=Headers({name: [value] for name, value in headers.items()}),
            data=body if body or method in ("PUT", "POST") else None,
            allow_redirects=False,
            unbuffered=True,
            reactor=self.clock,
        )
        pieces: list[bytes] = []
        size = 0

        def collect(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            if size <= MAX_ANSWER_BYTES:
                pieces.append(piece)

        await treq.collect(response, collect)
        if size > MAX_ANSWER_BYTES:
            raise ValueError("The answer is too long.")
        return Answer(response.code, response.headers, b"".join(pieces))

    async def _pause(self, attempts: int, deadline: float) -> None:
        """None until every server was asked once; then longer and longer ones."""
        rounds, place = divmod(attempts, len(self._servers))
        if place or not rounds:
            return
        longest = min(MAX_PAUSE_S, MIN_PAUSE_S * 2**rounds)
        pause_s = longest * (0.5 + self._draw() / 2)
        remaining = max(0.0, deadline - self.clock.seconds())
        await deferLater(self.clock, min(pause_s, remaining))


def query(parameters: Parameters) -> str:
    """A query string with its question mark, or nothing."""
    if not parameters:
        return ""
    return "?" + "&".join(
        f"{name}={quote(value, safe='')}" if value != "" else name for name, value in parameters
    )


def key_path(key: bytes) -> str:
    """Where a key is; no proxy may take a dot in it for a step upwards."""
    path = quote(key, safe="/")
    if "./" in path or path.endswith("."):
        path = path.replace(".", "%2E")
    return "/db/" + path
