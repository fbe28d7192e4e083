"""
Elections: one of many leads, and everybody can see who.

    async with Election(client, "elections/scheduler").campaign("host-1") as led:
        run(until=led.lost())

It is a lock whose holder has something to say; the same words of warning
hold, and the same token helps.
"""

from __future__ import annotations

from types import TracebackType

import msgspec

from raftd.client.client import Client, deferred
from raftd.client.leases import Lease
from raftd.client.recipes.contenders import in_line, under
from raftd.client.recipes.locks import TTL_S, Held, Lock
from raftd.client.values import Text, as_bytes
from raftd.client.watching import Watch
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
        delay_s: float = 0.0,
        lease: Lease | None = None,
    ) -> None:
        super().__init__(client, name, ttl_s=ttl_s, delay_s=delay_s, lease=lease)
        self._value = as_bytes(value)

    async def _acquire(self, wait: bool, value: Text) -> Held | None:
        return await super()._acquire(wait, value or self._value)


class Election:
    """One election, under one name; `ttl_s` and `delay_s` are of the leases of candidates."""

    def __init__(
        self, client: Client, name: Text, *, ttl_s: float = TTL_S, delay_s: float = 0.0
    ) -> None:
        self._client = client
        self._name = name
        self._ttl_s = ttl_s
        self._delay_s = delay_s
        self._prefix = under(name)

    def campaign(self, value: Text, *, lease: Lease | None = None) -> Campaign:
        """Stand for it: `acquire`, or `async with`, returns when it is won."""
        delay_s = self._delay_s if lease is None else 0.0
        return Campaign(
            self._client, self._name, value, ttl_s=self._ttl_s, delay_s=delay_s, lease=lease
        )

    @deferred
    async def leader(self) -> Leader | None:
        """Who leads now; None if nobody does."""
        _, leader = await look(self._client, self._prefix)
        return leader

    def observe(self) -> Observation:
        """Who leads now, and then each time that it changes."""
        return Observation(self._client, self._prefix)


class Observation:
    """
    An async iterator of who leads, None while nobody does; also an async
    context manager that closes it.

    Whoever looks too slowly misses some that came and went between.
    """

    def __init__(self, client: Client, prefix: bytes) -> None:
        self._client = client
        self._prefix = prefix
        self._watch: Watch | None = None
        self._is_closed = False
        #: What was told last, and the revision as of which that was so.
        self._told: Leader | None = None
        self._revision = 0

    def close(self) -> None:
        """Look no more."""
        self._is_closed = True
        if self._watch is not None:
            self._watch.close()

    def __aiter__(self) -> Observation:
        return self

    async def __anext__(self) -> Leader | None:
        while not self._is_closed:
            if self._watch is not None:
                try:
                    changes = await self._watch.__anext__()
                except Compacted:
                    self._watch = None
                else:
                    if changes.revision <= self._revision:
                        continue
            is_first = not self._revision
            self._revision, leader = await look(self._client, self._prefix)
            if self._watch is None and not self._is_closed:
                self._watch = self._client.watch(
                    prefix=self._prefix, revision=self._revision + 1
                )
            if is_first or leader != self._told:
                self._told = leader
                return leader
        raise StopAsyncIteration

    async def __aenter__(self) -> Observation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def look(client: Client, prefix: bytes) -> tuple[int, Leader | None]:
    """Who leads, and the revision as of which that is so."""
    revision, line = await in_line(client, prefix)
    return revision, Leader(line[0].value, line[0].create_revision) if line else None
