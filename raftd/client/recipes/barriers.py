"""Barriers: many wait until something is done, or until all are there."""

from __future__ import annotations

from raftd.client.client import Client, deferred
from raftd.client.leases import Lease
from raftd.client.recipes.contenders import MAX_CONTENDERS, gone, under
from raftd.client.recipes.locks import TTL_S
from raftd.client.transactions import missing, put
from raftd.client.values import Text, as_bytes
from raftd.errors import Compacted


class Barrier:
    """It is closed while its key is there; whoever waits goes on when it is opened."""

    def __init__(self, client: Client, name: Text) -> None:
        self._client = client
        self._key = as_bytes(name)

    @deferred
    async def close(self, *, lease: Lease | None = None) -> None:
        """Let everybody wait; with a lease, at the latest until that is over."""
        lease_id = "" if lease is None else lease.id
        await self._client.transact([missing(self._key)], [put(self._key, b"", lease=lease_id)])

    @deferred
    async def open(self) -> None:
        """Let everybody go on."""
        await self._client.delete(self._key)

    @deferred
    async def wait(self) -> None:
        """Return when it is open, at once if it is."""
        while True:
            page = await self._client.page(
                start=self._key, end=self._key + b"\0", keys_only=True
            )
            if not page.kvs:
                return
            await gone(self._client, self._key, None, page.revision)


class DoubleBarrier:
    """
    `count` members begin together and end together.

    Each has a key under its lease: one that dies is taken to have left.
    """

    def __init__(self, client: Client, name: Text, count: int, *, ttl_s: float = TTL_S) -> None:
        if count < 1:
            raise ValueError("A barrier waits for one at least.")
        self._client = client
        self._prefix = under(name)
        #: Put by whoever sees that all are there: from then on nobody waits to enter.
        self._ready = self._prefix.rstrip(b"/") + b".ready"
        self._count = count
        self._ttl_s = ttl_s
        self._lease: Lease | None = None

    @deferred
    async def enter(self) -> None:
        """Return when `count` members have called this."""
        self._lease = await self._client.lease(self._ttl_s)
        key = self._prefix + self._lease.id.encode("ascii")
        await self._client.put(key, b"", lease=self._lease)
        while True:
            page = await self._client.page(self._prefix, keys_only=True, limit=MAX_CONTENDERS)
            if len(page.kvs) >= self._count:
                await self._client.put(self._ready, b"")
                return
            if await self._client.get(self._ready) is not None:
                return
            await self._changed(page.revision)

    async def _changed(self, revision: int) -> None:
        """Return when a member has come, or all are there."""
        # The members' keys, and `_ready`, which sorts just before them.
        async with self._client.watch(
            start=self._ready, end=self._prefix + b"\xff", revision=revision + 1, events="put"
        ) as watch:
            try:
                async for _ in watch:
                    return
            except Compacted:
                return

    @deferred
    async def leave(self) -> None:
        """Return when all that had entered have called this, or died."""
        if self._lease is None:
            raise ValueError("Who has not entered cannot leave.")
        lease, self._lease = self._lease, None
        await lease.revoke()
        while True:
            page = await self._client.page(self._prefix, keys_only=True, limit=MAX_CONTENDERS)
            if not page.kvs:
                # For the next time; all that are still waiting have seen it.
                await self._client.delete(self._ready)
                return
            await gone(self._client, None, self._prefix, page.revision)
