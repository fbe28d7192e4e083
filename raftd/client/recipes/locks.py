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
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from raftd.client.client import Client, deferred
from raftd.client.leases import Lease
from raftd.client.recipes.contenders import Contender, under
from raftd.client.transactions import delete, mod_revision, put
from raftd.client.values import KeyValue, Text
from raftd.errors import RaftdError

#: The time to live of a lease that a lock takes out itself, in seconds.
TTL_S = 10.0

_WRITER = "w-"
_READER = "r-"


class Held:
    """
    A lock that is held.

    `token` grows with every holder: the fencing token.
    """

    def __init__(self, lock: _Lock, contender: Contender, owns_lease: bool) -> None:
        self.token = contender.token
        self._lock = lock
        self._contender = contender
        self._owns_lease = owns_lease

    @property
    def key(self) -> bytes:
        """The key that stands for the holder: compare its `create_revision` with
        `token` in a transaction that must only be carried out by the holder."""
        return self._contender.key

    @property
    def is_held(self) -> bool:
        """Whether the lease certainly is not over yet."""
        return self._contender.lease.is_held

    def lost(self) -> Deferred[None]:
        """Fires when it may be lost."""
        return self._contender.lease.lost()

    @deferred
    async def release(self) -> None:
        """Let the next one have it."""
        await self._lock.let_go(self._contender)
        if self._owns_lease:
            await self._contender.lease.revoke()


class _Lock:
    """What the locks have in common: to get in line, to wait, to leave."""

    _kind = ""
    #: Whether any of those in front may make room, not only the last.
    _any_of_them = False

    def __init__(
        self, client: Client, name: Text, *, ttl_s: float = TTL_S, lease: Lease | None = None
    ) -> None:
        self._client = client
        self._prefix = under(name)
        self._ttl_s = ttl_s
        self._lease = lease
        self._held: Held | None = None

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        """Which of those that came before must be gone."""
        raise NotImplementedError

    @deferred
    async def acquire(self, *, wait: bool = True, value: Text = b"") -> Held | None:
        """
        Wait in line until it is held.

        Without `wait`, None if it is not free.  Cancelled, it leaves the line.
        `value` is kept with the key, for people.
        """
        lease = self._lease or await self._client.lease(self._ttl_s)
        contender = Contender(self._client, self._prefix, self._kind, lease)
        try:
            await contender.join(value)
            if not wait:
                _, before = await contender.before()
                if self._blockers(before) or not await self._is_free(contender):
                    await self._give_up(contender)
                    return None
            await contender.wait(self._blockers, any_of_them=self._any_of_them)
            await self._settle(contender)
        except (RaftdError, CancelledError):
            await self._give_up(contender)
            raise
        return Held(self, contender, self._lease is None)

    async def _is_free(self, contender: Contender) -> bool:
        """Whether whoever is first need not wait for anything else."""
        return True

    async def _settle(self, contender: Contender) -> None:
        """First in line: whatever else there is to wait for."""

    async def let_go(self, contender: Contender) -> None:
        """Leave the line; for `Held`."""
        await contender.leave()

    async def _give_up(self, contender: Contender) -> None:
        if self._lease is None:
            contender.lease.revoke().addErrback(_ends_by_itself)
        else:
            Deferred.fromCoroutine(contender.leave()).addErrback(_ends_by_itself)

    async def __aenter__(self) -> Held:
        held = await self.acquire()
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
        await held.release()


class Lock(_Lock):
    """
    One holder at a time, in the order in which they asked.

    With `delay_s`, a lock whose holder died, instead of letting it go, stays
    locked for so long: time for what the holder had under way to end
    (Chubby's lock-delay).  All users of one name must give the same.
    """

    _kind = _WRITER

    def __init__(
        self,
        client: Client,
        name: Text,
        *,
        ttl_s: float = TTL_S,
        lease: Lease | None = None,
        delay_s: float = 0.0,
    ) -> None:
        super().__init__(client, name, ttl_s=ttl_s, lease=lease)
        self._delay_s = delay_s
        #: Names the holder, and outlives its lease: still there when the next
        #: one comes, it says that the holder did not let go.
        self._owner_key = self._prefix.rstrip(b"/") + b".owner"

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        return before

    async def _is_free(self, contender: Contender) -> bool:
        if not self._delay_s:
            return True
        return await self._client.get(self._owner_key) is None

    async def _settle(self, contender: Contender) -> None:
        if not self._delay_s:
            return
        owner = await self._client.get(self._owner_key)
        if owner is not None:
            # Counted from now, which is later than the holder's death.
            await deferLater(self._client.reactor, self._delay_s)
        # The line has let nobody else come this far, so that nothing can have
        # changed but by hand; then this fails, and nobody has the lock.
        seen = 0 if owner is None else owner.mod_revision
        outcome = await self._client.transact(
            [mod_revision(self._owner_key) == seen, contender.is_mine],
            [put(self._owner_key, contender.key)],
        )
        if not outcome.succeeded:
            await contender.before()
            raise LockDisturbed("The lock's own keys were changed by somebody else.")

    async def let_go(self, contender: Contender) -> None:
        if not self._delay_s:
            await contender.leave()
            return
        await self._client.transact(
            [contender.is_mine], [delete(contender.key), delete(self._owner_key)]
        )


class LockDisturbed(RaftdError):
    """Somebody has changed the keys that a lock is made of."""

    code = "lock_disturbed"


class ReadLock(_Lock):
    """Held together with other readers, but with no writer that came before."""

    _kind = _READER

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        writer = self._prefix + _WRITER.encode("ascii")
        return [kv for kv in before if kv.key.startswith(writer)]


class WriteLock(_Lock):
    """Held alone: by none of the readers and writers that came before."""

    _kind = _WRITER

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        return before


class ReadWriteLock:
    """A name with its two locks; nobody starves, for all are in one line."""

    def __init__(
        self, client: Client, name: Text, *, ttl_s: float = TTL_S, lease: Lease | None = None
    ) -> None:
        self.read = ReadLock(client, name, ttl_s=ttl_s, lease=lease)
        self.write = WriteLock(client, name, ttl_s=ttl_s, lease=lease)


class Semaphore(_Lock):
    """At most `permits` holders; all users of one name must give the same number."""

    _any_of_them = True

    def __init__(
        self,
        client: Client,
        name: Text,
        permits: int,
        *,
        ttl_s: float = TTL_S,
        lease: Lease | None = None,
    ) -> None:
        if permits < 1:
            raise ValueError("A semaphore has at least one permit.")
        super().__init__(client, name, ttl_s=ttl_s, lease=lease)
        self._permits = permits

    def _blockers(self, before: Sequence[KeyValue]) -> Sequence[KeyValue]:
        return before if len(before) >= self._permits else ()


def _ends_by_itself(failure: Any) -> None:
    """What was not taken back goes with the lease."""
    failure.trap(RaftdError, CancelledError)
