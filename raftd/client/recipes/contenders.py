"""
Those who want the same thing, in the order in which they came.

Each has a key of its own under one prefix, attached to its lease, so that it
goes with its holder; the revision that created it is its place, and its
fencing token.  Whoever has to wait watches only the key that it waits for, so
that one that leaves wakes one, and not all.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from raftd.client.client import Client
from raftd.client.leases import Lease
from raftd.client.transactions import Compare, create_revision, delete, get, missing, put
from raftd.client.values import KeyValue, Page, Text, as_bytes
from raftd.errors import Compacted, LeaseNotFound

#: How many may contend for one thing: each looks at all that came before it.
MAX_CONTENDERS = 10_000

#: Of those that came before, in order, the ones that a contender waits for.
Blockers = Callable[[Sequence[KeyValue]], Sequence[KeyValue]]


class TooManyContenders(Exception):
    """There are `MAX_CONTENDERS` already."""


class Contender:
    """
    One key under `prefix`, in line.

    `token`, once it has joined, is greater than that of everybody who was
    there before, for ever: what is protected can refuse a smaller one than
    the greatest it has seen, from a holder that does not know yet that it is
    none any more.
    """

    def __init__(self, client: Client, prefix: bytes, kind: str, lease: Lease) -> None:
        self._client = client
        self.prefix = prefix
        self.key = prefix + f"{kind}{lease.id}".encode("ascii")
        self.lease = lease
        self.token = 0

    @property
    def is_mine(self) -> Compare:
        """For transactions: whether this very place in line is still held."""
        compare: Compare = create_revision(self.key) == self.token
        return compare

    async def join(self, value: Text = b"") -> None:
        """Get in line, or find out where one stands if one is."""
        outcome = await self._client.transact(
            [missing(self.key)],
            [put(self.key, value, lease=self.lease.id), get(self.key)],
            [get(self.key)],
        )
        page = outcome.results[-1]
        assert isinstance(page, Page)
        self.token = page.kvs[0].create_revision

    async def before(self) -> tuple[int, list[KeyValue]]:
        """
        Those who came before, in order, and the revision as of which that is so.

        `LeaseNotFound` if this one is not in line any more.
        """
        page = await self._client.page(self.prefix, limit=MAX_CONTENDERS)
        if page.more:
            raise TooManyContenders(f"More than {MAX_CONTENDERS} wait for the same thing.")
        if not any(kv.key == self.key and kv.create_revision == self.token for kv in page.kvs):
            raise LeaseNotFound("The lease is over, and the place in line with it.")
        earlier = [kv for kv in page.kvs if kv.create_revision < self.token]
        return page.revision, sorted(earlier, key=lambda kv: kv.create_revision)

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
                await self._while_held(gone(self._client, None, self.prefix, revision))
            else:
                await self._while_held(gone(self._client, blocking[-1].key, None, revision))

    async def _while_held(self, step: Coroutine[Deferred[Any], Any, None]) -> None:
        """`LeaseNotFound` if the lease may be over before `step` has come to its end."""
        waiting = Deferred.fromCoroutine(step)
        lost = self.lease.lost()
        lost.addCallbacks(
            lambda _: waiting.cancel(), lambda failure: failure.trap(CancelledError)
        )
        try:
            await waiting
        except CancelledError:
            if self.lease.is_held:
                raise
            raise LeaseNotFound("The lease is over, and the place in line with it.") from None
        finally:
            lost.cancel()

    async def leave(self) -> None:
        """Get out of line, if it is still this very place."""
        await self._client.transact([self.is_mine], [delete(self.key)])


async def gone(client: Client, key: Text | None, prefix: Text | None, revision: int) -> None:
    """Return when `key`, or one under `prefix`, has been deleted since `revision`."""
    async with client.watch(
        key, prefix=prefix, revision=revision + 1, events="delete"
    ) as watch:
        try:
            async for _ in watch:
                return
        except Compacted:
            # Whatever happened is forgotten: the caller looks again.
            return


def under(prefix: Text) -> bytes:
    """A prefix under which nothing else is."""
    return as_bytes(prefix).rstrip(b"/") + b"/"
