"""
The client of a cluster.

    client = Client(reactor, ["localhost:4001", "localhost:4002"])
    await client.put("greeting", "hello")
    record = await client.get("greeting")

Every method that asks the cluster gives a Deferred, which can be awaited.  It
fails with a `DidNotHappen` if nothing was changed, or, for what changes
something, with `OutcomeUnknown` if nobody could say in time; the rest of
`raftd.errors` says why.  Cancelled, it asks no more; what was asked may happen.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.web.client import Agent, HTTPConnectionPool

from raftd.client.errors import NotFound, strange
from raftd.client.leases import KEEP_ALIVES_PER_TTL, Lease, lasting_s, read_ttl
from raftd.client.requester import (
    ATTEMPT_TIMEOUT_S,
    MAX_AT_ONCE,
    Answer,
    Requester,
    key_path,
)
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
from raftd.clock import warn_unless_monotonic

P = ParamSpec("P")
T = TypeVar("T")

#: How long a connection may take to be made, in seconds.
CONNECT_TIMEOUT_S = 2.0
#: How long it is kept while nothing is asked: for less than servers do, so that
#: no request meets one that is just being closed.
IDLE_S = 60.0
#: How long a request may take in all, unless the client is told otherwise, in
#: seconds: two servers may be silent, one after the other.
TIMEOUT_S = 2 * ATTEMPT_TIMEOUT_S

#: Parameters of a query.
Query = list[tuple[str, str | bytes | None]]

_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode


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

    `endpoints` makes the connections (`twisted.web.iweb.IAgentEndpointFactory`),
    or `agent` is what treq sends with (`IAgent`); `draw` gives numbers from 0
    to 1, by which pauses differ.  All three have defaults.

    `requester` is for requests that this class has no method for; see also
    `raftd.client.admin`.
    """

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[str],
        *,
        timeout_s: float = TIMEOUT_S,
        endpoints: Any = None,
        agent: Any = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.reactor = reactor
        self._pool: HTTPConnectionPool | None = None
        if agent is None:
            self._pool = pool = HTTPConnectionPool(reactor)
            pool.maxPersistentPerHost = MAX_AT_ONCE
            pool.cachedConnectionTimeout = IDLE_S  # type: ignore[assignment]
            # What it would try again by itself, a DELETE for one, may have happened.
            pool.retryAutomatically = False
            if endpoints is None:
                agent = Agent(reactor, connectTimeout=CONNECT_TIMEOUT_S, pool=pool)
            else:
                agent = Agent.usingEndpointFactory(reactor, endpoints, pool)
        #: What sends all requests.
        self.agent = agent
        self.requester = Requester(reactor, servers, agent, timeout_s, draw)

    @deferred
    async def close(self) -> None:
        """
        End everything: requests under way, watches, the keeping of leases,
        which then end by themselves, and the connections.
        """
        self.requester.close()
        if self._pool is not None:
            await self._pool.closeCachedConnections()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

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
        if answer.status != 200:
            _check_not_found(answer)
            return None
        try:
            return KeyValue(
                key,
                answer.body,
                int(answer.header("Raftd-Create-Revision")),
                int(answer.header("ETag").strip('"')),
                int(answer.header("Raftd-Version")),
                answer.header("Raftd-Lease"),
            )
        except ValueError:
            raise strange(answer.server, answer.status) from None

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
            parameters.append(("ttl", f"{math.ceil(ttl_s * 1000) / 1000:.3f}"))
        answer = await self.requester.write(
            "PUT",
            key_path(as_bytes(key)),
            parameters,
            _condition(if_revision),
            as_bytes(value),
            idempotency_key=idempotency_key,
        )
        return _written(answer)

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
        if answer.status == 404:
            _check_not_found(answer)
            return None
        return _written(answer)

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

        They are in the order of the keys, unless `sort` names another field:
        `version`, `create_revision`, `mod_revision` or `value`.
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
        fields = _fields(await self.requester.read("/db/", parameters), "revision", "count")
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
        fields = _fields(answer, "revision", "deleted")
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
        fields = _fields(answer, "revision", "succeeded", "results")
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
            path, parameters = key_path(as_bytes(key)), Query()
        else:
            path, parameters = "/db/", _range(prefix, start, end)
        parameters += [("watch", None), *_flags(prev=previous)]
        if events:
            parameters.append(("events", events))
        return Watch(self.reactor, self.requester, path, parameters, revision)

    @deferred
    async def lease(
        self, ttl_s: float, *, delay_s: float = 0.0, idempotency_key: str | None = None
    ) -> Lease:
        """
        A new lease, which is kept alive until it is closed.

        Servers may make the TTL longer.  They keep the lease for `delay_s`
        longer than its holder may rely on it: time for what was under way
        when it was lost.
        """
        warn_unless_monotonic(self.reactor, "Leases would be taken for held when they are not.")
        sent_at = self.requester.seconds()
        body = _encode({"ttl": math.ceil((ttl_s + delay_s) * 1000) / 1000})
        answer = await self.requester.write(
            "POST", "/lease", body=body, idempotency_key=idempotency_key
        )
        lease_id = str(_fields(answer, "id")["id"])
        granted_s = read_ttl(answer)
        late_s = lasting_s(granted_s, delay_s) / KEEP_ALIVES_PER_TTL
        if self.requester.seconds() - sent_at > late_s:
            # It was granted at one of the attempts, nobody knows which.
            answer = await self.requester.ask("POST", f"/lease/{lease_id}/keepalive")
            if answer.status != 200:
                raise answer.error()
            granted_s, sent_at = read_ttl(answer), answer.sent_at
        return Lease(self.reactor, self.requester, lease_id, granted_s, sent_at, delay_s)

    # -- the cluster -------------------------------------------------------------------

    @deferred
    async def compact(self, revision: int = 0, *, keep: int | None = None) -> int:
        """
        Forget the history below `revision`, or but for the last `keep`
        revisions; what is the oldest then.
        """
        body = {"revision": revision} if keep is None else {"keep": keep}
        answer = await self.requester.write("POST", "/compact", body=_encode(body))
        return int(_fields(answer, "compacted_revision")["compacted_revision"])

    @deferred
    async def status(self) -> dict[str, Any]:
        """What the server that is asked says of itself, as `GET /status`."""
        return _fields(await self.requester.read("/status"))


def _fields(answer: Answer, *required: str) -> dict[str, Any]:
    """The fields of a success, which has those that are required; else it is raised."""
    if not 200 <= answer.status < 300:
        raise answer.error()
    try:
        fields = _decode_fields(answer.body)
    except msgspec.MsgspecError:
        fields = {}
    if not fields or not all(name in fields for name in required):
        raise strange(answer.server, answer.status)
    return fields


def _check_not_found(answer: Answer) -> None:
    """Raise what it is, unless it says that the key is not there."""
    error = answer.error()
    if not isinstance(error, NotFound):
        raise error


def _written(answer: Answer) -> Written:
    fields = _fields(answer, "revision")
    return Written(
        fields["revision"], answer.status == 201, read_previous(fields), fields.get("lease", "")
    )


def _condition(if_revision: int | None) -> dict[str, str]:
    """The precondition of a write (RFC 9110, 13.1)."""
    if if_revision is None:
        return {}
    return {"If-Match": f'"{if_revision}"'} if if_revision else {"If-None-Match": "*"}


def _freshness(max_staleness_s: float) -> Query:
    if max_staleness_s == math.inf:
        return [("consistency", "local")]
    if max_staleness_s:
        return [("max_staleness_ms", str(round(max_staleness_s * 1000)))]
    return []


def _range(prefix: Text | None, start: Text | None, end: Text | None) -> Query:
    given = (("prefix", prefix), ("start", start), ("end", end))
    return [(name, as_bytes(value)) for name, value in given if value is not None]


def _flags(**flags: bool) -> Query:
    return [(name, None) for name, on in flags.items() if on]
