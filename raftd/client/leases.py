"""
A lease that is kept alive, and that knows when it may be over.

The TTL is counted from when a keep-alive was *sent*: the cluster counts from
when it arrived, so that the lease is over here no later than there.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from raftd.client.errors import error_of
from raftd.client.requester import Requester
from raftd.errors import LeaseNotFound, RaftdError

#: How often it is kept alive: this many times within its TTL.
KEEP_ALIVES_PER_TTL = 3


class Lease:
    """
    A lease; `lost` fires, once, when it may be over: before anybody else can
    be given what it held.

    As a context manager (`async with`) it is revoked at the end.
    """

    _log = Logger()

    def __init__(
        self, clock: Any, requester: Requester, lease_id: str, ttl_s: float, begun: float
    ) -> None:
        """`begun` is when the request that granted it was made, by `clock`."""
        self.id = lease_id
        self.ttl_s = ttl_s
        self._clock = clock
        self._requester = requester
        self._ends = begun + ttl_s
        self._lost: list[Deferred[None]] = []
        self._is_over = False
        self._asking: Deferred[None] | None = None
        self._next: IDelayedCall | None = None
        self._end: IDelayedCall | None = None
        self._go_on()

    @property
    def is_held(self) -> bool:
        """Whether it certainly is not over yet."""
        return not self._is_over and self._clock.seconds() < self._ends

    @property
    def remaining_s(self) -> float:
        """How long it certainly lasts."""
        return max(0.0, self._ends - self._clock.seconds()) if self.is_held else 0.0

    def lost(self) -> Deferred[None]:
        """Fires when it may be over, however that comes; at once if it is."""
        waiting: Deferred[None] = Deferred(self._lost.remove)
        if self._is_over:
            waiting.callback(None)
        else:
            self._lost.append(waiting)
        return waiting

    def close(self) -> None:
        """Keep it alive no longer; it then ends by itself."""
        self._over()

    def revoke(self) -> Deferred[None]:
        """End it now, and delete its keys; nothing happens if it is over already."""
        return Deferred.fromCoroutine(self._revoke())

    async def _revoke(self) -> None:
        self._over()
        answer = await self._requester.write("DELETE", f"/lease/{self.id}")
        if answer.status not in (200, 404):
            raise error_of(self._requester.server, answer.status, answer.body)

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.revoke()
        except RaftdError as e:
            # It ends by itself, a little later.
            self._log.info(
                "The lease {id} was not revoked: {reason}", id=self.id, reason=str(e)
            )

    # -- keeping it alive ------------------------------------------------------------

    def _go_on(self) -> None:
        now = self._clock.seconds()
        if self._end is not None:
            self._end.cancel()
        self._end = self._clock.callLater(max(0.0, self._ends - now), self._expired)
        # From when the last one was sent, so that a slow answer does not add up.
        sent = self._ends - self.ttl_s
        due = max(now, sent + self.ttl_s / KEEP_ALIVES_PER_TTL)
        self._next = self._clock.callLater(due - now, self._keep_alive)

    def _keep_alive(self) -> None:
        self._next = None
        self._asking = Deferred.fromCoroutine(self._ask())
        self._asking.addErrback(lambda failure: failure.trap(CancelledError))

    async def _ask(self) -> None:
        begun = self._clock.seconds()
        try:
            answer = await self._requester.ask("POST", f"/lease/{self.id}/keepalive")
            if answer.status >= 400:
                raise error_of(self._requester.server, answer.status, answer.body)
        except LeaseNotFound:
            self._over()
        except RaftdError as e:
            self._log.info("No keep-alive for {id}: {reason}", id=self.id, reason=str(e))
            if not self._is_over:
                self._next = self._clock.callLater(0, self._keep_alive)
        else:
            if not self._is_over:
                self.ttl_s = msgspec.json.decode(answer.body)["ttl"]
                self._ends = begun + self.ttl_s
                self._go_on()

    def _expired(self) -> None:
        self._end = None
        self._over()

    def _over(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        for call in (self._next, self._end):
            if call is not None and call.active():
                call.cancel()
        if self._asking is not None:
            self._asking.cancel()
        waiting, self._lost = self._lost, []
        for each in waiting:
            each.callback(None)
