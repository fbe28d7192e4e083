"""A queue: what was put in first comes out first, each once."""

from __future__ import annotations

from uuid import uuid4

from raftd.client.client import Client, deferred
from raftd.client.recipes.contenders import under
from raftd.client.transactions import create_revision, delete
from raftd.client.values import KeyValue, Text
from raftd.errors import Compacted


class Queue:
    """
    Values under one prefix, in the order of the revisions that put them there.

    A value that was taken is gone, whether or not its taker survives: what
    must be done at least once is deleted only when it is done.
    """

    def __init__(self, client: Client, name: Text) -> None:
        self._client = client
        self._prefix = under(name)

    @deferred
    async def put(self, value: Text) -> None:
        """Put a value in at the end."""
        await self._client.put(self._prefix + uuid4().hex.encode("ascii"), value)

    @deferred
    async def take(self, *, wait: bool = True) -> bytes | None:
        """Take the first value out; None if there is none and `wait` is false."""
        while True:
            page = await self._client.page(self._prefix, limit=1, sort="create_revision")
            for first in page.kvs:
                if await self._taken(first):
                    return first.value
            if not page.kvs:
                if not wait:
                    return None
                await self._filled(page.revision)

    async def _taken(self, first: KeyValue) -> bool:
        """Whether it was this client that took it."""
        unchanged = create_revision(first.key) == first.create_revision
        outcome = await self._client.transact([unchanged], [delete(first.key)])
        return outcome.succeeded

    async def _filled(self, revision: int) -> None:
        async with self._client.watch(
            prefix=self._prefix, revision=revision + 1, events="put"
        ) as watch:
            try:
                async for _ in watch:
                    return
            except Compacted:
                return
