"""
One request, to whichever server answers it: endpoints, retries, outcomes.

A request is sent to one server after the other until there is an answer that
settles it, or its time is up.  Reads may be sent as often as it takes.  A write
carries an idempotency key, so that it may be, too: however often it was sent,
it is carried out at most once, and every answer is that of the first time.
Only if the cluster has no room for the key is it sent without, and then not
again after an attempt that may have been carried out.

What an attempt leaves behind, if it was a write:

- Nothing was sent, or a server has said that nothing was changed: it is as if
  there had been no attempt.
- The connection broke, or the server took too long, or it does not know
  itself: the write may have happened, or may happen yet.  From then on only an
  answer that comes out of the log settles it.  Without one it is "unknown".
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol
from urllib.parse import quote
from uuid import uuid4

import msgspec
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    DNSLookupError,
)
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import (  # type: ignore[attr-defined]
    RequestGenerationFailed,
    RequestNotSent,
    RequestTransmissionFailed,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from raftd.client.bodies import Bytes, TooLong, collect
from raftd.client.errors import Unreachable, error_of
from raftd.clock import elapsed_seconds
from raftd.errors import (
    DidNotHappen,
    IdempotencyTableFull,
    OutcomeUnknown,
    Overloaded,
    RaftdError,
    Stopped,
)

#: The longest pause before all servers are asked once more, in seconds; the
#: first is the shortest, and each is up to twice as long as the one before.
MAX_PAUSE_S = 1.0
MIN_PAUSE_S = 0.02
#: How long a server may be silent over an answer: longer than it waits itself
#: for a leader and a quorum, by default, before it says that there is none.
ATTEMPT_TIMEOUT_S = 6.0
#: The longest that a request may be tried in all.  A server may let the last
#: attempt wait for as long again, at most, and that is well within the ten minutes
#: for which idempotency keys are kept.
MAX_TIMEOUT_S = 240.0
#: Requests that are under way at once, each with a connection; further ones
#: wait, up to so many.  Keep-alives and watches are not among them.
MAX_AT_ONCE = 128
MAX_QUEUED = 100_000
#: The longest answer that is read, in bytes: a page of a listing is the longest.
MAX_ANSWER_BYTES = 64 << 20

_IDEMPOTENCY_KEY = "Idempotency-Key"

#: How it ends if nothing was sent.
_NOT_SENT = (ConnectError, ConnectingCancelledError, DNSLookupError, RequestNotSent)
#: How it ends, otherwise, before there is a whole answer.
_BROKEN_OFF = (
    CancelledError,
    ConnectionClosed,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    TooLong,
)

_is_server = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}").fullmatch

#: `name=value` pairs of a query; None: the name alone.
Parameters = Sequence[tuple[str, str | bytes | None]]


class Closable(Protocol):
    """What ends with its client."""

    def close(self) -> None: ...


class Answer(msgspec.Struct, frozen=True):
    """
    What a server has answered: nothing that is to be tried again.

    `sent_at` is when it was asked, by `Requester.seconds`.
    """

    server: str
    status: int
    headers: Headers
    body: bytes
    sent_at: float

    def header(self, name: str) -> str:
        """A header's first value; empty if there is none."""
        values = self.headers.getRawHeaders(name)
        return values[0] if values else ""

    def error(self) -> RaftdError:
        """It, as an exception."""
        return error_of(self.server, self.status, self.body)


class _Request(msgspec.Struct, frozen=True):
    """
    What is asked.  `is_change`: it must not be carried out twice; `is_once`:
    servers cannot see to that, so that it is not sent again after an attempt
    that may have been carried out.  `attempt_s`: how long a server may be silent.
    `is_key_drawn`: it has an idempotency key that nobody else knows.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    is_change: bool
    is_once: bool = False
    attempt_s: float = ATTEMPT_TIMEOUT_S
    is_key_drawn: bool = False

    def without_key(self) -> _Request:
        """The same without its key; so it must not be carried out twice."""
        headers = {n: v for n, v in self.headers.items() if n != _IDEMPOTENCY_KEY}
        return msgspec.structs.replace(self, headers=headers, is_once=True, is_key_drawn=False)


class _Tried:
    """What came of the attempts of one request so far."""

    def __init__(self) -> None:
        self.count = 0
        #: Whether an attempt may have been carried out without saying so.
        self.may_have_happened = False
        #: What each server came to last, and what any has answered last.
        self.reasons: dict[str, RaftdError] = {}
        self.answered: DidNotHappen | None = None

    def unanswered(self, server: str, why: str, sent: bool) -> None:
        """There was no answer; `sent`: but the request may have been received."""
        self.may_have_happened |= sent
        self.reasons[server] = Unreachable(f"{server} {why}")

    def refused(self, server: str, error: RaftdError) -> None:
        """There was an answer, and it does not settle the request."""
        self.reasons[server] = error
        if isinstance(error, DidNotHappen):
            self.answered = error
        else:
            self.may_have_happened = True

    def give_up(self, is_change: bool, when: str) -> NoReturn:
        """Raise what is known; `when` is "within ..." or the like."""
        heard = "; ".join(str(reason).rstrip(".") for reason in self.reasons.values())
        if is_change and self.may_have_happened:
            raise OutcomeUnknown(f"Nobody could say {when} whether it happened: {heard}.")
        if self.answered is not None:
            raise self.answered
        raise Unreachable(f"No server has answered {when}: {heard or 'none was asked'}.")


class Requester:
    """
    Asks `servers`, each a `host:port`; it stays with one that answers.

    `clock` is for pauses and time limits, `seconds` tells how much time has
    passed, `agent` is what treq sends with.
    """

    def __init__(
        self,
        clock: Any,
        servers: Sequence[str],
        agent: Any,
        timeout_s: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if isinstance(servers, str) or not servers:
            raise ValueError("There must be a list of servers, with at least one.")
        for server in servers:
            if not _is_server(server):
                raise ValueError(f"A server is a host:port, and not {server!r}.")
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"A timeout is above 0 and up to {MAX_TIMEOUT_S:g} seconds.")
        self.clock = clock
        self.seconds = elapsed_seconds(clock)
        self.timeout_s = timeout_s
        self.draw = draw
        #: What ends with the client: watches, leases.
        self.users: dict[Closable, None] = {}
        self._servers = list(servers)
        self._current = 0
        self._http = HTTPClient(agent, data_to_body_producer=Bytes)
        self._slots = DeferredSemaphore(MAX_AT_ONCE)
        self._is_closed = False
        #: What requests under way are waiting for.
        self._waiting: dict[Deferred[Any], None] = {}

    @property
    def server(self) -> str:
        """The server that is asked next."""
        return self._servers[self._current]

    def avoid(self, server: str) -> None:
        """Ask the next one from now on, if `server` is the one that would be."""
        if server == self.server:
            self._current = (self._current + 1) % len(self._servers)

    def pause_s(self, rounds: int) -> float:
        """How long to wait when all servers have failed so often in a row."""
        longest: float = min(MAX_PAUSE_S, MIN_PAUSE_S * 2 ** min(rounds, 16))
        return longest * (0.5 + self.draw() / 2)

    def close(self) -> None:
        """
        Ask nothing more, and give up what is under way: it fails with
        `Stopped`, or `OutcomeUnknown`.
        """
        self._is_closed = True
        for user in list(self.users):
            user.close()
        for waiting in list(self._waiting):
            waiting.cancel()

    # -- asking --------------------------------------------------------------------

    async def read(self, path: str, parameters: Parameters = ()) -> Answer:
        """A GET; `DidNotHappen` if no server could answer it in time."""
        request = _Request("GET", path + query(parameters), {}, b"", False)
        return await self._in_turn(request)

    async def write(
        self,
        method: str,
        path: str,
        parameters: Parameters = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        idempotency_key: str | None = None,
        once: bool = False,
    ) -> Answer:
        """
        A request that changes something, carried out at most once.

        `DidNotHappen` if it certainly was not, `OutcomeUnknown` if nobody
        could say in time.  `once` is for what takes no idempotency key: then
        nobody can say already when one attempt has broken off.  The same goes
        for a write whose key the cluster has no room for, unless it is the
        caller's own `idempotency_key`, for which there is to be room first.
        """
        is_drawn = idempotency_key is None
        key = uuid4().hex if idempotency_key is None else idempotency_key
        sent = {**(headers or {}), _IDEMPOTENCY_KEY: key}
        request = _Request(
            method,
            path + query(parameters),
            sent,
            body,
            True,
            once,
            is_key_drawn=is_drawn,
        )
        return await self._in_turn(request)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
        attempt_s: float = ATTEMPT_TIMEOUT_S,
    ) -> Answer:
        """
        A request that may safely be carried out several times, like a keep-alive.

        `attempt_s` is how long one server may be silent.
        """
        request = _Request(method, path, {}, body, False, attempt_s=attempt_s)
        return await self._settle(request, self.timeout_s if timeout_s is None else timeout_s)

    async def probe(self, server: str, max_staleness_s: float) -> bool:
        """Whether `server` can answer a read that is no staler than this, asked once."""
        target = f"/db/%00?max_staleness_ms={round(max_staleness_s * 1000)}"
        request = _Request("GET", target, {}, b"", False)
        deadline = self.seconds() + ATTEMPT_TIMEOUT_S
        answer = await self._attempt(server, request, deadline, _Tried())
        return answer is not None and answer.status < 500

    def open(
        self,
        server: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
    ) -> Deferred[IResponse]:
        """Send a request once; the answer without its body, which must be read or dropped."""
        response: Deferred[Any] = self._http.request(
            method,
            f"http://{server}{target}",
            headers=Headers({name: [value] for name, value in headers.items()}),
            data=body or None,
            allow_redirects=False,
            unbuffered=True,
            reactor=self.clock,
        )
        return response

    # -- attempts ------------------------------------------------------------------

    async def _in_turn(self, request: _Request) -> Answer:
        """As `_settle`, when there are not too many others."""
        begun = self.seconds()
        await self._acquire()
        try:
            return await self._settle(request, begun + self.timeout_s - self.seconds())
        finally:
            self._slots.release()

    async def _acquire(self) -> None:
        acquiring: Deferred[Any] = self._slots.acquire()
        if acquiring.called:
            return
        is_too_late = len(self._slots.waiting) > MAX_QUEUED
        timer = self.clock.callLater(0 if is_too_late else self.timeout_s, acquiring.cancel)
        self._waiting[acquiring] = None
        try:
            await acquiring
        except CancelledError:
            if self._is_closed:
                raise Stopped("The client is closed.") from None
            if timer.active():
                raise
            raise Overloaded("This client has too many requests under way.") from None
        finally:
            self._waiting.pop(acquiring, None)
            if timer.active():
                timer.cancel()

    async def _settle(self, request: _Request, timeout_s: float) -> Answer:
        begun = self.seconds()
        deadline = begun + timeout_s
        tried = _Tried()
        while True:
            if self._is_closed:
                tried.answered = Stopped("The client is closed.")
                tried.give_up(request.is_change, "before the client was closed")
            if request.is_once and tried.may_have_happened:
                tried.give_up(True, "without asking for it twice")
            if self.seconds() >= self._last_begin(request, tried, deadline, timeout_s):
                elapsed_s = self.seconds() - begun
                tried.give_up(request.is_change, f"within {elapsed_s:.1f} seconds")
            server = self.server
            answer = await self._attempt(server, request, deadline, tried)
            if answer is not None and _settles(answer, tried):
                return answer
            tried.count += 1
            if (
                request.is_key_drawn
                and not tried.may_have_happened
                and isinstance(tried.reasons.get(server), IdempotencyTableFull)
            ):
                # It certainly did not happen.  An attempt that may have, by now
                # or later, must never be followed by one without a key.
                request = request.without_key()
                continue
            self.avoid(server)
            if not self._is_closed:
                await self._pause(tried.count, deadline)

    @staticmethod
    def _last_begin(
        request: _Request, tried: _Tried, deadline: float, timeout_s: float
    ) -> float:
        """
        When it is too late to begin another attempt.

        As long as a write has certainly not happened, none is begun that may be
        cut short before the server has answered: what is known would be lost.
        """
        if request.is_change and tried.count and not tried.may_have_happened:
            return deadline - min(request.attempt_s, timeout_s / 2)
        return deadline

    async def _attempt(
        self, server: str, request: _Request, deadline: float, tried: _Tried
    ) -> Answer | None:
        """The server's answer, or None, with `tried` brought up to date."""
        sent_at = self.seconds()
        why = "broke off."

        def give_up(reason: str) -> None:
            nonlocal why
            why = reason
            exchange.cancel()
            if not answered.called:
                answered.errback(CancelledError())

        def heard() -> None:
            if timer.active():
                timer.reset(self._limit_s(request, deadline))

        answered: Deferred[tuple[IResponse, bytes]] = Deferred(lambda _: give_up(_CANCELLED))
        timer = self.clock.callLater(
            self._limit_s(request, deadline), give_up, "takes too long."
        )
        exchange = Deferred.fromCoroutine(self._exchange(server, request, heard))
        exchange.addBoth(partial(_pass_on, answered))
        self._waiting[answered] = None
        try:
            response, body = await answered
        except (*_NOT_SENT, *_BROKEN_OFF) as e:
            if why is _CANCELLED and not self._is_closed:
                # Whoever waits for this has given up.
                raise CancelledError() from None
            sent = not isinstance(e, _NOT_SENT)
            tried.unanswered(server, why if sent else f"cannot be reached: {e}", sent)
            return None
        finally:
            self._waiting.pop(answered, None)
            if timer.active():
                timer.cancel()
        return Answer(server, response.code, response.headers, body, sent_at)

    def _limit_s(self, request: _Request, deadline: float) -> float:
        return max(0.0, min(request.attempt_s, deadline - self.seconds()))

    async def _exchange(
        self, server: str, request: _Request, heard: Callable[[], None]
    ) -> tuple[IResponse, bytes]:
        response = await self.open(
            server, request.method, request.target, request.headers, request.body
        )
        heard()
        return response, await collect(response, MAX_ANSWER_BYTES, heard)

    async def _pause(self, attempts: int, deadline: float) -> None:
        """None until every server was asked once; then longer and longer ones."""
        rounds, place = divmod(attempts, len(self._servers))
        if place:
            return
        pause_s = min(self.pause_s(rounds), max(0.0, deadline - self.seconds()))
        pause: Deferred[None] = deferLater(self.clock, pause_s)
        self._waiting[pause] = None
        try:
            await pause
        except CancelledError:
            if not self._is_closed:
                raise
        finally:
            self._waiting.pop(pause, None)


#: Why an attempt was given up: whoever waited for the request cancelled it.
_CANCELLED = "was cancelled."


def _pass_on(answered: Deferred[Any], result: Any) -> None:
    """Fire `answered`, unless it was given up."""
    if not answered.called:
        answered.callback(result)
    elif isinstance(result, Failure):
        result.trap(*_NOT_SENT, *_BROKEN_OFF)


def _settles(answer: Answer, tried: _Tried) -> bool:
    """Whether there is nothing more to find out; else `tried` is brought up to date."""
    status = answer.status
    if status < 500 and status not in (408, 429):
        return True
    error = answer.error()
    if status == 507 and isinstance(error, DidNotHappen) and not tried.may_have_happened:
        # It will not be otherwise a moment later.  Behind an attempt that may
        # have happened it says nothing of that one, which keeps no answer.
        return True
    tried.refused(answer.server, error)
    return False


def query(parameters: Parameters) -> str:
    """A query string with its question mark, or nothing."""
    if not parameters:
        return ""
    return "?" + "&".join(
        name if value is None else f"{name}={quote(value, safe='')}"
        for name, value in parameters
    )


def key_path(key: bytes) -> str:
    """
    Where a key is.

    An empty key, or a dot as a name between slashes, could be taken for a
    step in the path; such slashes are escaped as well, and the dots.
    """
    if not key:
        raise ValueError("A key must have at least one byte.")
    if {b"", b".", b".."}.isdisjoint(key.split(b"/")):
        return "/db/" + quote(key, safe="/")
    return "/db/" + quote(key, safe="").replace(".", "%2E")
