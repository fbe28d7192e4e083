"""
Elections: one of many leads, and everybody can see who.

    async with Election(client, "elections/scheduler").campaign("host-1") as led:
        run(until=led.lost())

It is a lock whose holder has something to say; the same words of warning
hold, and the same token helps.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from raftd.client.client import Client, deferred
from raftd.client.leases import Lease
from raftd.client.recipes.contenders import MAX_CONTENDERS, under
from raftd.client.recipes.locks import TTL_S, Held, Lock
from raftd.client.values import KeyValue, Text, as_bytes
from raftd.errors import Compacted


class Leader(msgspec.Struct, frozen=True):
    """Who leads: what it said when it stood, and its token."""

    value: bytes
    token: int


class Campaign(Lock):
    """A lock that says `value` while it is held."""

    def __init__(
        self,
        client: Client,
        name: Text,
        value: Text,
        *,
        ttl_s: float = TTL_S,
        lease: Lease | None = None,
    ) -> None:
        super().__init__(client, name, ttl_s=ttl_s, lease=lease)
        self._value = as_bytes(value)

    async def __aenter__(self) -> Held:
        held = await self.acquire(value=self._value)
        assert held is not None
        self._held = held
        return held


class Election:
    """One election, under one name."""

    def __init__(self, client: Client, name: Text, *, ttl_s: float = TTL_S) -> None:
        self._client = client
        self._name = name
        self._ttl_s = ttl_s
        self._prefix = under(name)

    def campaign(self, value: Text, *, lease: Lease | None = None) -> Campaign:
        """Stand for it: `acquire`, or `async with`, returns when it is won."""
        return Campaign(self._client, self._name, value, ttl_s=self._ttl_s, lease=lease)

    @deferred
    async def leader(self) -> Leader | None:
        """Who leads now; None if nobody does."""
        _, leader = await self._look()
        return leader

    async def _look(self) -> tuple[int, Leader | None]:
        page = await self._client.page(self._prefix, limit=MAX_CONTENDERS)
        first: KeyValue | None = min(page.kvs, key=lambda kv: kv.create_revision, default=None)
        leader = None if first is None else Leader(first.value, first.create_revision)
        return page.revision, leader

    async def observe(self) -> AsyncIterator[Leader | None]:
        """
        Who leads now, and then each time that it changes; None while nobody does.

        Whoever looks too slowly misses some that came and went between.
        """
        last: Leader | object | None = self
        while True:
            revision, leader = await self._look()
            if leader != last:
                last = leader
                yield leader
            async with self._client.watch(prefix=self._prefix, revision=revision + 1) as watch:
                try:
                    async for _ in watch:
                        break
                except Compacted:
                    continue
