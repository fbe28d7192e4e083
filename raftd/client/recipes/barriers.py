"""Barriers: many wait until something is done, or until all are there."""

from __future__ import annotations

from types import TracebackType
from uuid import uuid4

from twisted.internet.defer import CancelledError

from raftd.client.client import Client, deferred
from raftd.client.errors import PreconditionFailed
from raftd.client.leases import Lease
from raftd.client.recipes.contenders import (
    MAX_CONTENDERS,
    changed,
    gone,
    in_line,
    under,
    while_held,
)
from raftd.client.recipes.locks import TTL_S
from raftd.client.transactions import missing, put
from raftd.client.values import KeyValue, Text, as_bytes
from raftd.errors import RaftdError


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
    `count` members begin together and end together; then it can be used again.

    Each has a key under its lease: one that dies is taken to have left.  When
    there are enough, one of them writes down who they are.  That is a round:
    whoever is in it has entered, whoever is not waits for the next one, and it
    is over when the keys of all of them are gone.
    """

    def __init__(self, client: Client, name: Text, count: int, *, ttl_s: float = TTL_S) -> None:
        if not 1 <= count <= MAX_CONTENDERS // 2:
            raise ValueError(f"A barrier waits for 1 to {MAX_CONTENDERS // 2} members.")
        self._client = client
        self._prefix = under(name)
        #: The names of the members of the round, one a line.
        self._round_key = self._prefix + b"round"
        self._count = count
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        #: Who is in the round that was entered.
        self._members: frozenset[bytes] = frozenset()

    @deferred
    async def enter(self) -> None:
        """Return when `count` members have called this; `LeaseNotFound` if this one died."""
        if self._lease is not None:
            raise RuntimeError("Each member enters once, with an object of its own.")
        lease = await self._client.lease(self._ttl_s)
        self._lease = lease
        try:
            me = b"m-" + f"{lease.id}-{uuid4().hex}".encode("ascii")
            await self._client.put(self._prefix + me, b"", lease=lease)
            await while_held(lease, self._enter(me))
        except Exception:
            self._lease = None
            lease.revoke().addErrback(lambda f: f.trap(RaftdError, CancelledError))
            raise

    async def _enter(self, me: bytes) -> None:
        while True:
            revision, members, present = await self._look()
            if me in members:
                self._members = members
                return
            first = present[: self._count]
            if members:
                if members.isdisjoint(present):
                    await self._end_round(members)
                    continue
            elif len(first) == self._count and me in first:
                # Nobody in it leaves before it has seen that it is in.
                await self._client.transact(
                    [missing(self._round_key)], [put(self._round_key, b"\n".join(first))]
                )
                continue
            await changed(self._client, None, self._prefix, revision)

    async def _look(self) -> tuple[int, frozenset[bytes], list[bytes]]:
        """Who is in the present round, nobody if there is none, and who is there, in order."""
        revision, line = await in_line(self._client, self._prefix)
        members: frozenset[bytes] = frozenset()
        present: list[bytes] = []
        for kv in line:
            if kv.key == self._round_key:
                members = frozenset(kv.value.split(b"\n"))
            else:
                present.append(kv.key[len(self._prefix) :])
        return revision, members, present

    async def _end_round(self, members: frozenset[bytes]) -> None:
        """All of them are gone, for ever; the next round may begin."""
        record: KeyValue | None = await self._client.get(self._round_key)
        if record is not None and frozenset(record.value.split(b"\n")) == members:
            try:
                await self._client.delete(self._round_key, if_revision=record.mod_revision)
            except PreconditionFailed:
                return  # somebody else has ended it

    @deferred
    async def leave(self) -> None:
        """Return when all that had entered have called this, or died."""
        if self._lease is None:
            raise RuntimeError("Who has not entered cannot leave.")
        lease, self._lease = self._lease, None
        await lease.revoke()
        while True:
            revision, members, present = await self._look()
            if self._members.isdisjoint(present):
                if members == self._members:
                    await self._end_round(members)
                return
            await gone(self._client, None, self._prefix, revision)

    async def __aenter__(self) -> DoubleBarrier:
        await self.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.leave()
