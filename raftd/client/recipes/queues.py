"""A queue: what was put in first comes out first, each once."""

from __future__ import annotations

from uuid import uuid4

from raftd.client.client import Client, deferred
from raftd.client.recipes.contenders import changed, under
from raftd.client.transactions import create_revision, delete
from raftd.client.values import KeyValue, Text


class Queue:
    """
    Values under one prefix, in the order of the revisions that put them there.

    A value that was taken is gone, whether or not its taker survives, or hears
    of it: `take` fails with `OutcomeUnknown` if it may have taken one.
    """

    def __init__(self, client: Client, name: Text) -> None:
        self._client = client
        #: Not only the name: there may be a queue whose name begins with this one's.
        self._prefix = under(name) + b"item-"

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
                await changed(self._client, None, self._prefix, page.revision, "put")

    async def _taken(self, first: KeyValue) -> bool:
        """Whether it was this client that took it."""
        unchanged = create_revision(first.key) == first.create_revision
        outcome = await self._client.transact([unchanged], [delete(first.key)])
        return outcome.succeeded
