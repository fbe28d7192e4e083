"""A number that many add to."""

from __future__ import annotations

from raftd.client.client import Client, deferred
from raftd.client.transactions import mod_revision, put
from raftd.client.values import Text, as_bytes


class Counter:
    """An integer in one key, as decimal digits; a missing key is 0."""

    def __init__(self, client: Client, key: Text) -> None:
        self._client = client
        self._key = as_bytes(key)

    @deferred
    async def value(self) -> int:
        """What it is; `ValueError` if the key holds something else."""
        record = await self._client.get(self._key)
        return 0 if record is None else int(record.value)

    @deferred
    async def add(self, number: int) -> int:
        """Add `number`; what it is then.  Others that add meanwhile are not lost."""
        while True:
            record = await self._client.get(self._key)
            before = 0 if record is None else int(record.value)
            seen = 0 if record is None else record.mod_revision
            after = before + number
            outcome = await self._client.transact(
                [mod_revision(self._key) == seen], [put(self._key, str(after))]
            )
            if outcome.succeeded:
                return after
