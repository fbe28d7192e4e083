"""
The client of a cluster.

    client = Client(reactor, ["localhost:4001", "localhost:4002"])
    await client.put("greeting", "hello")
    record = await client.get("greeting")

Every method that asks the cluster gives a Deferred, which can be awaited.  It
fails with a `DidNotHappen` if nothing was changed, or, for what changes
something, with `OutcomeUnknown` if nobody could say in time; the rest of
`raftd.errors` says why.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.web.client import Agent, HTTPConnectionPool

from raftd.client.errors import error_of
from raftd.client.leases import Lease
from raftd.client.requester import Answer, Requester, key_path
from raftd.client.transactions import Compare, Operation, as_fields
from raftd.client.values import (
    Deleted,
    KeyValue,
    Outcome,
    Page,
    Text,
    Written,
    as_bytes,
    read_outcome,
    read_page,
    read_previous,
)
from raftd.client.watching import Watch

P = ParamSpec("P")
T = TypeVar("T")

#: Connections to one server that are kept open while nothing is asked.
MAX_IDLE_CONNECTIONS = 16
#: How long a request may take in all, unless the client is told otherwise, in seconds.
TIMEOUT_S = 10.0

_encode = msgspec.json.encode
_decode = msgspec.json.decode


def deferred(
    method: Callable[P, Coroutine[Deferred[Any], Any, T]],
) -> Callable[P, Deferred[T]]:
    """A coroutine method as one that gives a Deferred, and is begun at once."""

    @wraps(method)
    def begun(*args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return Deferred.fromCoroutine(method(*args, **kwargs))

    return begun


class Client:
    """
    A client of the cluster of which `servers`, each a `host:port`, are members.

    Any of them will do: another is asked when one does not answer.  A request
    is tried again for up to `timeout_s` seconds, a write too: it is carried
    out at most once all the same (`docs/client.md`).

    `agent` is what treq sends with (`twisted.web.iweb.IAgent`); by default one
    that keeps connections, which `close` ends.
    """

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[str],
        *,
        timeout_s: float = TIMEOUT_S,
        agent: Any = None,
    ) -> None:
        self.reactor = reactor
        self._pool: HTTPConnectionPool | None = None
        if agent is None:
            self._pool = HTTPConnectionPool(reactor)
            self._pool.maxPersistentPerHost = MAX_IDLE_CONNECTIONS
            # What it would try again by itself, a DELETE for one, may have happened.
            self._pool.retryAutomatically = False
            agent = Agent(reactor, pool=self._pool)
        #: What sends all requests.
        self.agent = agent
        self.requester = Requester(reactor, servers, agent, timeout_s)

    @deferred
    async def close(self) -> None:
        """Close the connections that are kept."""
        if self._pool is not None:
            await self._pool.closeCachedConnections()

    # -- keys --------------------------------------------------------------------

    @deferred
    async def get(
        self,
        key: Text,
        *,
        revision: int = 0,
        max_staleness_s: float = 0.0,
    ) -> KeyValue | None:
        """
        The record of `key`, None if there is none; as of `revision`, 0 for now.

        Linearizable, unless `max_staleness_s` permits that writes acknowledged
        so recently are missing; with infinity, any server answers what it has.
        `Compacted`, `FutureRevision`.
        """
        key = as_bytes(key)
        parameters = _freshness(max_staleness_s)
        if revision:
            parameters = [*parameters, ("revision", str(revision))]
        answer = await self.requester.read(key_path(key), parameters)
        if answer.status == 404:
            return None
        self._check(answer)
        return KeyValue(
            key,
            answer.body,
            int(answer.header("Raftd-Create-Revision")),
            answer.revision(),
            int(answer.header("Raftd-Version")),
            answer.header("Raftd-Lease"),
        )

    @deferred
    async def put(
        self,
        key: Text,
        value: Text,
        *,
        if_revision: int | None = None,
        lease: str | Lease = "",
        ttl_s: float | None = None,
        previous: bool = False,
        idempotency_key: str | None = None,
    ) -> Written:
        """
        Set `key` to `value`.

        With `if_revision`, only if that is what last changed the key; 0: only
        if there is no such key; else `PreconditionFailed`.  `lease` attaches it
        to a lease, `ttl_s` to one of its own.  `idempotency_key` is drawn if it
        is not given; with the same one, at most one put is carried out.
        """
        parameters = _flags(prev=previous)
        if lease:
            parameters.append(("lease", lease if isinstance(lease, str) else lease.id))
        if ttl_s is not None:
            parameters.append(("ttl", f"{ttl_s:g}"))
        answer = await self.requester.write(
            "PUT",
            key_path(as_bytes(key)),
            parameters,
            _condition(if_revision),
            as_bytes(value),
            idempotency_key=idempotency_key,
        )
        return self._written(answer)

    @deferred
    async def delete(
        self,
        key: Text,
        *,
        if_revision: int | None = None,
        previous: bool = False,
        idempotency_key: str | None = None,
    ) -> Written | None:
        """Delete `key`; None if it was not there.  `if_revision` as of `put`."""
        answer = await self.requester.write(
            "DELETE",
            key_path(as_bytes(key)),
            _flags(prev=previous),
            _condition(if_revision),
            idempotency_key=idempotency_key,
        )
        return None if answer.status == 404 else self._written(answer)

    def _written(self, answer: Answer) -> Written:
        fields = self._fields(answer)
        return Written(
            fields["revision"],
            answer.status == 201,
            read_previous(fields),
            fields.get("lease", ""),
        )

    # -- ranges ------------------------------------------------------------------

    @deferred
    async def page(
        self,
        prefix: Text | None = None,
        *,
        start: Text | None = None,
        end: Text | None = None,
        after: Text | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        count_only: bool = False,
        descending: bool = False,
        sort: str = "",
        revision: int = 0,
        max_staleness_s: float = 0.0,
    ) -> Page:
        """
        The keys that begin with `prefix`, or from `start` up to but not
        including `end`, or all: at most `limit` of them, those behind `after`.

        They are in the order of the keys, unless `sort` names another field.
        """
        parameters = _range(prefix, start, end) + _freshness(max_staleness_s)
        if after is not None:
            parameters.append(("after", as_bytes(after)))
        if limit is not None:
            parameters.append(("limit", str(limit)))
        if revision:
            parameters.append(("revision", str(revision)))
        if descending:
            parameters.append(("order", "desc"))
        if sort:
            parameters.append(("sort", sort))
        parameters += _flags(keys_only=keys_only, count_only=count_only)
        fields = self._fields(await self.requester.read("/db/", parameters))
        return read_page(fields, fields["revision"])

    async def scan(
        self,
        prefix: Text | None = None,
        *,
        start: Text | None = None,
        end: Text | None = None,
        keys_only: bool = False,
        descending: bool = False,
        page_keys: int = 1000,
    ) -> AsyncIterator[KeyValue]:
        """
        All records of a range, page by page, all as of one revision.

        `Compacted` if that is compacted meanwhile.
        """
        revision, after = 0, None
        while True:
            page = await self.page(
                prefix,
                start=start,
                end=end,
                after=after,
                limit=page_keys,
                keys_only=keys_only,
                descending=descending,
                revision=revision,
            )
            for record in page.kvs:
                yield record
            if not page.more:
                return
            revision, after = revision or page.revision, page.kvs[-1].key

    @deferred
    async def delete_range(
        self,
        prefix: Text | None = None,
        *,
        start: Text | None = None,
        end: Text | None = None,
        idempotency_key: str | None = None,
    ) -> Deleted:
        """Delete a range in one revision; everything is `prefix=""`."""
        parameters = _range(prefix, start, end)
        if not parameters:
            raise ValueError("A range must be named; everything is prefix=''.")
        answer = await self.requester.write(
            "DELETE", "/db/", parameters, idempotency_key=idempotency_key
        )
        fields = self._fields(answer)
        return Deleted(fields["revision"], fields["deleted"])

    # -- transactions --------------------------------------------------------------

    @deferred
    async def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        idempotency_key: str | None = None,
    ) -> Outcome:
        """
        If all `compares` hold, carry out `then`, else `otherwise`, in one
        revision (`raftd.client.transactions`).
        """
        answer = await self.requester.write(
            "POST",
            "/txn",
            body=_encode(as_fields(compares, then, otherwise)),
            idempotency_key=idempotency_key,
        )
        fields = self._fields(answer)
        return read_outcome(fields, fields["revision"])

    # -- watches and leases ------------------------------------------------------------

    def watch(
        self,
        key: Text | None = None,
        *,
        prefix: Text | None = None,
        start: Text | None = None,
        end: Text | None = None,
        revision: int = 0,
        previous: bool = False,
        events: str = "",
    ) -> Watch:
        """
        What changes, as an async iterator of `Changes`, one for each revision:
        of `key`, or of a range; from `revision` on, or from now on.

        It resumes by itself, at any server, without losing or repeating any;
        `Compacted` if what comes next is gone.  `events` may be `put` or
        `delete`, to leave the others out.  Close it when it is not needed any more.
        """
        if key is not None:
            path, parameters = key_path(as_bytes(key)), list[tuple[str, str | bytes]]()
        else:
            path, parameters = "/db/", _range(prefix, start, end)
        parameters += [("watch", ""), *_flags(prev=previous)]
        if events:
            parameters.append(("events", events))
        return Watch(self.reactor, self.agent, self.requester, path, parameters, revision)

    @deferred
    async def lease(self, ttl_s: float, *, idempotency_key: str | None = None) -> Lease:
        """A new lease, which is kept alive until it is closed."""
        begun = self.reactor.seconds()
        answer = await self.requester.write(
            "POST", "/lease", body=_encode({"ttl": ttl_s}), idempotency_key=idempotency_key
        )
        fields = self._fields(answer)
        return Lease(self.reactor, self.requester, fields["id"], fields["ttl"], begun)

    # -- the cluster -------------------------------------------------------------------

    @deferred
    async def compact(self, revision: int = 0, *, keep: int | None = None) -> int:
        """
        Forget the history below `revision`, or but for the last `keep`
        revisions; what is the oldest then.
        """
        body = {"revision": revision} if keep is None else {"keep": keep}
        answer = await self.requester.write("POST", "/compact", body=_encode(body))
        return int(self._fields(answer)["compacted_revision"])

    @deferred
    async def status(self) -> dict[str, Any]:
        """What the server that is asked says of itself, as `GET /status`."""
        return self._fields(await self.requester.read("/status"))

    def _fields(self, answer: Answer) -> dict[str, Any]:
        self._check(answer)
        fields: dict[str, Any] = _decode(answer.body)
        return fields

    def _check(self, answer: Answer) -> None:
        if answer.status >= 400:
            raise error_of(self.requester.server, answer.status, answer.body)


def _condition(if_revision: int | None) -> dict[str, str]:
    """The precondition of a write (RFC 9110, 13.1)."""
    if if_revision is None:
        return {}
    return {"If-Match": f'"{if_revision}"'} if if_revision else {"If-None-Match": "*"}


def _freshness(max_staleness_s: float) -> list[tuple[str, str | bytes]]:
    if max_staleness_s == math.inf:
        return [("consistency", "local")]
    if max_staleness_s:
        return [("max_staleness_ms", str(round(max_staleness_s * 1000)))]
    return []


def _range(
    prefix: Text | None, start: Text | None, end: Text | None
) -> list[tuple[str, str | bytes]]:
    given = (("prefix", prefix), ("start", start), ("end", end))
    return [(name, as_bytes(value)) for name, value in given if value is not None]


def _flags(**flags: bool) -> list[tuple[str, str | bytes]]:
    return [(name, "") for name, on in flags.items() if on]
