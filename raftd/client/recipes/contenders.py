"""
Those who want the same thing, in the order in which they came.

Each has a key of its own under one prefix, attached to its lease, so that it
goes with its holder; the revision that created it is its place, and its
fencing token.  Whoever has to wait watches only the key that it waits for, so
that one that leaves wakes one, and not all.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from raftd.client.client import Client
from raftd.client.leases import Lease
from raftd.client.transactions import Compare, create_revision
from raftd.client.values import KeyValue, Text, as_bytes
from raftd.errors import Compacted, LeaseNotFound, Overloaded, RaftdError

T = TypeVar("T")

#: How many may contend for one thing: each looks at all that came before it.
MAX_CONTENDERS = 10_000

#: When to try again to get out of line, in seconds.
LEAVE_RETRY_S = 1.0

#: Of those that came before, in order, the ones that a contender waits for.
Blockers = Callable[[Sequence[KeyValue]], Sequence[KeyValue]]

_log = Logger()


class TooManyContenders(Overloaded):
    """`MAX_CONTENDERS` want the same thing already."""

    code = "too_many_contenders"


class Contender:
    """
    One key under `prefix`, in line: `kind`, a lease's id, and what tells it
    from others of that lease.

    `token`, once it has joined, is greater than that of everybody who was
    there before, for ever: what is protected can refuse a smaller one than
    the greatest it has seen, from a holder that does not know yet that it is
    none any more.
    """

    def __init__(self, client: Client, prefix: bytes, kind: str, lease: Lease) -> None:
        self._client = client
        self.prefix = prefix
        self._name = uuid4().hex
        self.key = prefix + f"{kind}{lease.id}-{self._name}".encode("ascii")
        self.lease = lease
        self.token = 0
        self._value: Text = b""

    @property
    def is_mine(self) -> Compare:
        """For transactions: whether this very place in line is still held."""
        compare: Compare = create_revision(self.key) == self.token
        return compare

    async def join(self, value: Text = b"") -> None:
        """Get in line, saying `value`."""
        self._value = value
        await self._join()

    async def _join(self) -> None:
        """Called again, it is the same request, and finds out whether one is in line."""
        written = await self._client.put(
            self.key, self._value, lease=self.lease, idempotency_key=f"join-{self._name}"
        )
        self.token = written.revision

    async def before(self) -> tuple[int, list[KeyValue]]:
        """
        Those who came before, in order, and the revision as of which that is so.

        `LeaseNotFound` if this one is not in line any more.
        """
        revision, line = await in_line(self._client, self.prefix, keys_only=True)
        if not any(kv.key == self.key and kv.create_revision == self.token for kv in line):
            raise LeaseNotFound("The lease is over, and the place in line with it.")
        return revision, [kv for kv in line if kv.create_revision < self.token]

    async def wait(self, blockers: Blockers, *, any_of_them: bool = False) -> None:
        """
        Return when none of those that came before are `blockers`.

        It waits for the last of them to go, or for `any_of_them`, and looks again.
        """
        while True:
            revision, before = await self.before()
            blocking = blockers(before)
            if not blocking:
                return
            if any_of_them:
                step = gone(self._client, None, self.prefix, revision)
            else:
                step = gone(self._client, blocking[-1].key, None, revision)
            await while_held(self.lease, step)

    async def leave(self) -> None:
        """
        Get out of line, and see to it that nothing of this is still on its way.

        Tried for as long as the lease lasts, which takes the place along.
        """
        while self.lease.is_held:
            try:
                if not self.token:
                    # Had it not been carried out yet, it would be now.
                    await self._join()
                await self._client.delete(self.key)
                return
            except LeaseNotFound:
                return
            except RaftdError as e:
                _log.info("{key} is not out of line yet: {reason!s}", key=self.key, reason=e)
            await deferLater(self._client.reactor, LEAVE_RETRY_S)


async def in_line(
    client: Client, prefix: bytes, *, keys_only: bool = False
) -> tuple[int, list[KeyValue]]:
    """All that contend under `prefix`, in order, and the revision as of which that is so."""
    page = await client.page(prefix, limit=MAX_CONTENDERS, keys_only=keys_only)
    if page.more:
        raise TooManyContenders(f"More than {MAX_CONTENDERS} want the same thing.")
    # What is deeper belongs to something whose name begins with this one's.
    line = [kv for kv in page.kvs if b"/" not in kv.key[len(prefix) :]]
    return page.revision, sorted(line, key=lambda kv: kv.create_revision)


async def while_held(lease: Lease, step: Coroutine[Deferred[Any], Any, T]) -> T:
    """What `step` comes to; `LeaseNotFound` if the lease may be over before that."""
    waiting = Deferred.fromCoroutine(step)
    lost = lease.lost()
    lost.addCallbacks(lambda _: waiting.cancel(), lambda failure: failure.trap(CancelledError))
    try:
        return await waiting
    except CancelledError:
        if lease.is_held:
            raise
        raise LeaseNotFound("The lease is over, and the place in line with it.") from None
    finally:
        lost.cancel()


async def gone(client: Client, key: Text | None, prefix: Text | None, revision: int) -> None:
    """Return when `key`, or one under `prefix`, has been deleted since `revision`."""
    await changed(client, key, prefix, revision, "delete")


async def changed(
    client: Client, key: Text | None, prefix: Text | None, revision: int, events: str = ""
) -> None:
    """Return when `key`, or something under `prefix`, has changed since `revision`."""
    async with client.watch(key, prefix=prefix, revision=revision + 1, events=events) as watch:
        try:
            async for _ in watch:
                return
        except Compacted:
            # Whatever happened is forgotten: the caller looks again.
            return


def under(prefix: Text) -> bytes:
    """A prefix for the keys of one thing."""
    return as_bytes(prefix).rstrip(b"/") + b"/"
