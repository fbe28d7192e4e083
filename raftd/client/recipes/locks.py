"""
Locks: one holder, many readers or one writer, a number of holders.

    async with Lock(client, "locks/backup") as held:
        store(data, token=held.token)

A lock is as good as the lease beneath it.  `held.lost()` fires when the lease
may be over, which is before anybody else can have the lock; what the holder
does after that, having been paused for instance, only the protected resource
can refuse, by the token (Burrows, "The Chubby lock service", 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.client.client import Client, deferred
from raftd.client.leases import Lease
from raftd.client.recipes.contenders import Contender, under
from raftd.client.transactions import Compare
from raftd.client.values import KeyValue, Text
from raftd.errors import RaftdError

#: The time to live of a lease that a lock takes out itself, in seconds.
TTL_S = 10.0

_WRITER = "w-"
_READER = "r-"

_log = Logger()


class Held:
    """
    A lock that is held; as a context manager (`async with`), until its end.

    `token` grows with every holder: the fencing token.
    """

    def __init__(self, contender: Contender, owns_lease: bool) -> None:
        self.token = contender.token
        self._contender = contender
        self._owns_lease = owns_lease
        self._is_released = False

    @property
    def key(self) -> bytes:
        """The key that stands for the holder."""
        return self._contender.key

    @property
    def is_mine(self) -> Compare:
        """A compare for transactions that only the holder may carry out."""
        return self._contender.is_mine

    @property
    def is_held(self) -> bool:
        """Whether it was not released, and the lease certainly is not over yet."""
        return not self._is_released and self._contender.lease.is_held

    def lost(self) -> Deferred[None]:
        """
        Fires when the lease may be over: also at a release, unless the lease
        was given to the lock, and goes on.
        """
        return self._contender.lease.lost()

    @deferred
    async def release(self) -> None:
        """
        Let the next one have it.

        If that fails, it is let go when its lease is over.
        """
        self._is_released = True
        await _leave(self._contender, self._owns_lease)

    async def __aenter__(self) -> Held:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.release()
        except RaftdError as e:
            _log.info("{key} goes with its lease: {reason!s}", key=self.key, reason=e)


async def _leave(contender: Contender, owns_lease: bool) -> None:
    """Out of line; with it goes a lease that was taken out for it."""
    if owns_lease:
        # It is kept alive no longer, whatever comes of this.
        await contender.lease.revoke()
    else:
        await contender.leave()


class _Lock:
    """
    What the locks have in common: to get in line, to wait, to leave.

    As a context manager (`async with`) an object is for one holder at a time;
    `acquire` may be called as often as one likes.
    """

    _kind = ""
    #: Whether any of those in front may make room, not only the last.
    _any_of_them = False

    def __init__(
        self,
        client: Client,
        name: Text,
        *,
        ttl_s: float = TTL_S,
        delay_s: float = 0.0,
        lease: Lease | None = None,
    ) -> None:
        """
        Of a `lease` that is given, many locks may hold; else each holder takes
        one out, with `ttl_s` and `delay_s` as of `Client.lease`.
        """
        if lease is not None and delay_s:
            raise ValueError("A delay belongs to the lease: Client.lease(ttl_s, delay_s=...).")
        self._client = client
        self._prefix = under(name)
        self._ttl_s = ttl_s
        self._delay_s = delay_s
        self._lease = lease
        self._is_entered = False
        self._held: Held | None = None

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        """Which of those that came before must be gone."""
        raise NotImplementedError

    @deferred
    async def acquire(self, *, wait: bool = True, value: Text = b"") -> Held | None:
        """
        Wait in line until it is held.

        Without `wait`, None if it is not free.  Cancelled, it leaves the line.
        `value` is kept with the key, for people.  `LeaseNotFound` if the lease
        was over before; ask again.
        """
        return await self._acquire(wait, value)

    async def _acquire(self, wait: bool, value: Text) -> Held | None:
        lease = self._lease
        if lease is None:
            lease = await self._client.lease(self._ttl_s, delay_s=self._delay_s)
        contender = Contender(self._client, self._prefix, self._kind, lease)
        try:
            await contender.join(value)
            if not wait:
                _, before = await contender.before()
                if self._blockers(before):
                    # Or the next one to ask would find this one in its way.
                    await self._give_up(contender)
                    return None
            await contender.wait(self._blockers, any_of_them=self._any_of_them)
        except Exception:
            self._give_up(contender)
            raise
        return Held(contender, self._lease is None)

    def _give_up(self, contender: Contender) -> Deferred[None]:
        """Leave the line; what fails goes with the lease."""
        leaving = Deferred.fromCoroutine(_leave(contender, self._lease is None))
        return leaving.addErrback(_goes_by_itself)

    async def __aenter__(self) -> Held:
        if self._is_entered:
            raise RuntimeError("This object is in use; make another for another holder.")
        self._is_entered = True
        try:
            held = await self._acquire(True, b"")
        except Exception:
            self._is_entered = False
            raise
        assert held is not None
        self._held = held
        return held

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        assert held is not None
        try:
            await held.__aexit__(kind, error, traceback)
        finally:
            self._is_entered = False


class Lock(_Lock):
    """
    One holder at a time, in the order in which they asked.

    With `delay_s`, a lock whose holder died, instead of letting it go, stays
    locked for so long after the holder had to stop: time for what it had under
    way to end (Chubby's lock-delay).
    """

    _kind = _WRITER

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        return before


class WriteLock(Lock):
    """Held alone: by none of the readers and writers that came before."""


class ReadLock(_Lock):
    """Held together with other readers, but with no writer that came before."""

    _kind = _READER

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        writer = self._prefix + _WRITER.encode("ascii")
        return [kv for kv in before if kv.key.startswith(writer)]


class ReadWriteLock:
    """A name with its two locks; nobody starves, for all are in one line."""

    def __init__(
        self,
        client: Client,
        name: Text,
        *,
        ttl_s: float = TTL_S,
        delay_s: float = 0.0,
        lease: Lease | None = None,
    ) -> None:
        self.read = ReadLock(client, name, ttl_s=ttl_s, delay_s=delay_s, lease=lease)
        self.write = WriteLock(client, name, ttl_s=ttl_s, delay_s=delay_s, lease=lease)


class Semaphore(_Lock):
    """At most `permits` holders; all users of one name must give the same number."""

    _kind = _WRITER
    _any_of_them = True

    def __init__(
        self,
        client: Client,
        name: Text,
        permits: int,
        *,
        ttl_s: float = TTL_S,
        delay_s: float = 0.0,
        lease: Lease | None = None,
    ) -> None:
        if permits < 1:
            raise ValueError("A semaphore has at least one permit.")
        super().__init__(client, name, ttl_s=ttl_s, delay_s=delay_s, lease=lease)
        self._permits = permits

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        return before if len(before) >= self._permits else ()


def _goes_by_itself(failure: Failure) -> None:
    """What was not taken back goes with the lease."""
    failure.trap(RaftdError, CancelledError)
