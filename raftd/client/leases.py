"""
A lease that is kept alive, and that knows when it may be over.

The time is counted from when a keep-alive was *sent*: the cluster counts from
when it arrived, so that the lease is over here no later than there.  It is
counted by a clock that nobody can set, and that goes on while the machine is
suspended; and a little faster than that clock says, for no two clocks run alike.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.client.errors import strange
from raftd.client.requester import MAX_PAUSE_S, Answer, Requester
from raftd.errors import LeaseNotFound, RaftdError

#: How often it is kept alive: this many times within the time that it has.
KEEP_ALIVES_PER_TTL = 3
#: How many servers may be silent, one after the other, within that time.
ATTEMPTS_PER_TTL = 6
#: By how much the clock here may run slower than a server's: a hundred times
#: what the crystals in computers do.
MAX_DRIFT = 0.01


def lasting_s(ttl_s: float, delay_s: float) -> float:
    """How long a holder may rely on a lease of this TTL, of which the end is a delay."""
    return ttl_s * (1 - MAX_DRIFT) - delay_s


def read_ttl(answer: Answer) -> float:
    """The TTL in an answer about a lease."""
    try:
        return float(msgspec.json.decode(answer.body)["ttl"])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        raise strange(answer.server, answer.status) from None


class Lease:
    """
    A lease; `lost` fires, once, when it may be over: before anybody else can
    be given what it held, and by `delay_s` before.

    `id` names it to servers, `ttl_s` is how long they keep it after the last
    keep-alive.  As a context manager (`async with`) it is revoked at the end.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        requester: Requester,
        lease_id: str,
        ttl_s: float,
        sent_at: float,
        delay_s: float = 0.0,
    ) -> None:
        """`sent_at` is when what gave it its TTL was asked, by `requester.seconds`."""
        self.id = lease_id
        self.ttl_s = ttl_s
        self.delay_s = delay_s
        self._clock = clock
        self._requester = requester
        self._sent_at = sent_at
        self._lost: dict[Deferred[None], None] = {}
        self._is_over = False
        requester.users[self] = None
        self._end: IDelayedCall = clock.callLater(self.remaining_s, self._check_end)
        self._keeping = Deferred.fromCoroutine(self._keep_alive())
        self._keeping.addErrback(self._failed).addBoth(lambda _: self._over())

    @property
    def is_held(self) -> bool:
        """Whether it certainly is not over yet."""
        return self.remaining_s > 0

    @property
    def remaining_s(self) -> float:
        """How long it certainly lasts."""
        if self._is_over:
            return 0.0
        ends = self._sent_at + lasting_s(self.ttl_s, self.delay_s)
        return max(0.0, ends - self._requester.seconds())

    def lost(self) -> Deferred[None]:
        """Fires when it may be over, however that comes; at once if it is."""
        waiting: Deferred[None] = Deferred(lambda d: self._lost.pop(d, None))
        if self.is_held:
            self._lost[waiting] = None
        else:
            waiting.callback(None)
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
        if answer.status != 200:
            error = answer.error()
            if not isinstance(error, LeaseNotFound):
                raise error

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
            self._log.info("The lease {id} was not revoked: {reason!s}", id=self.id, reason=e)

    # -- keeping it alive ------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Until there is no such lease, or it may be over, or this is cancelled."""
        failures = 0
        while True:
            await deferLater(self._clock, self._pause_s(failures))
            if not self.is_held:
                return  # the machine was suspended, which timers do not count
            try:
                answer = await self._requester.ask(
                    "POST",
                    f"/lease/{self.id}/keepalive",
                    timeout_s=self.remaining_s,
                    attempt_s=self._lasting_s() / ATTEMPTS_PER_TTL,
                )
                if answer.status != 200:
                    raise answer.error()
                ttl_s = read_ttl(answer)
            except LeaseNotFound:
                return
            except RaftdError as e:
                failures += 1
                self._log.info("No keep-alive for {id}: {reason!s}", id=self.id, reason=e)
            else:
                failures = 0
                self.ttl_s, self._sent_at = ttl_s, answer.sent_at
                self._end.reset(self.remaining_s)

    def _pause_s(self, failures: int) -> float:
        if failures:
            return min(MAX_PAUSE_S, self._lasting_s() / ATTEMPTS_PER_TTL)
        # From when the last one was sent, so that a slow answer does not add up.
        due = self._sent_at + self._lasting_s() / KEEP_ALIVES_PER_TTL
        return max(0.0, due - self._requester.seconds())

    def _lasting_s(self) -> float:
        return lasting_s(self.ttl_s, self.delay_s)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("A lease is not kept alive any more", failure)

    def _check_end(self) -> None:
        remaining_s = self.remaining_s
        if remaining_s > 0:
            # The reactor's clock was set, or its timers are not exact.
            self._end = self._clock.callLater(remaining_s, self._check_end)
        else:
            self._over()

    def _over(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._requester.users.pop(self, None)
        if self._end.active():
            self._end.cancel()
        self._keeping.cancel()
        waiting, self._lost = self._lost, {}
        for each in waiting:
            if not each.called:
                each.callback(None)
