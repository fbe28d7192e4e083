"""
`/db/`: many keys.

    GET, HEAD   a page of those with a `prefix`, or from `start` up to `end`
    DELETE      remove a range, which must be named, in one revision

A page that is cut by its limit has the URL of the next one, which shows the
same revision: so all pages together are what the store was at one moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import msgspec

from raftd.errors import BadRequest, RaftdError
from raftd.interfaces import IRequest
from raftd.kv.interfaces import IDatabase
from raftd.kv.operations import (
    CREATE_REVISION,
    KEY,
    MOD_REVISION,
    VALUE,
    VERSION,
    DeleteRange,
    Range,
)
from raftd.kv.results import DeleteResult, RangeResult, Result
from raftd.web import freshness, spans, streams
from raftd.web.answers import (
    JSON,
    NO_CACHE,
    failed_read,
    failed_result,
    json,
    not_allowed,
    options,
)
from raftd.web.fields import read_unconditional_retry, refuse_conditions, special
from raftd.web.parameters import Parameters
from raftd.web.records import slices
from raftd.web.watch import Watching, is_wanted

PATH = b"/db/"

ALLOW = b"GET, HEAD, DELETE, OPTIONS"

#: How many keys a page has if nothing is said, and at most.
LIMIT = 1000
MAX_LIMIT = 10_000

#: By what a listing may be sorted.
SORTS = {
    "key": KEY,
    "version": VERSION,
    "create_revision": CREATE_REVISION,
    "mod_revision": MOD_REVISION,
    "value": VALUE,
}

LIST_PARAMETERS = (
    *spans.PARAMETERS,
    "after",
    "limit",
    "order",
    "sort",
    "keys_only",
    "count_only",
    "revision",
    *freshness.NAMES,
)
DELETE_PARAMETERS = spans.PARAMETERS

_encode = msgspec.json.Encoder().encode


def handle(request: IRequest, database: IDatabase, watching: Watching) -> None:
    """Answer a request for `PATH`."""
    method = request.method
    try:
        if method == "GET" or method == "HEAD":
            _list(request, database, watching)
        elif method == "DELETE":
            _delete(request, database)
        elif method == "OPTIONS":
            options(request, ALLOW)
        else:
            not_allowed(request, ALLOW)
    except RaftdError as e:
        # Nothing was asked of the database yet.
        failed_read(request, e)


# -- listing ---------------------------------------------------------------------


def _list(request: IRequest, database: IDatabase, watching: Watching) -> None:
    refuse_conditions(special(request.headers) or {})
    if is_wanted(request.query):
        watching.handle(request, database)
        return
    parameters = Parameters(request.query, LIST_PARAMETERS, "A listing")
    whole = spans.named(parameters, "A listing") or spans.with_prefix(b"")
    descending = parameters.choice("order", ("asc", "desc")) == "desc"
    sort_by = SORTS[parameters.choice("sort", tuple(SORTS))]
    after = parameters.octets("after")
    if after is not None and sort_by != KEY:
        raise BadRequest("Pages are in the order of keys: with a sort there is no after.")
    key, range_end = whole if after is None else spans.behind(whole, after, descending)
    query = Range(
        key,
        range_end,
        parameters.number("revision", 1) or 0,
        parameters.number("limit", 1, MAX_LIMIT) or LIMIT,
        parameters.flag("keys_only"),
        parameters.flag("count_only"),
        sort_by,
        descending=descending,
    )

    def done(outcome: RangeResult | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_read(request, outcome)
        else:
            _page(request, parameters, query, outcome)

    database.range(query, freshness.max_staleness_s(parameters), done)


def _page(request: IRequest, parameters: Parameters, query: Range, result: RangeResult) -> None:
    """Answer with what was found: with all of it at once if it is short."""
    revision = query.revision or result.revision
    headers = [NO_CACHE]
    following = None
    if result.more and result.kvs and query.sort_by == KEY:
        following = _url_behind(parameters, result.kvs[-1].key, revision)
        headers.append((b"Link", b'<%s>; rel="next"' % following.encode("ascii")))
    streams.respond(request, 200, _pieces(query, result, revision, following), JSON, headers)


def _pieces(
    query: Range, result: RangeResult, revision: int, following: str | None
) -> Iterator[bytes]:
    """The page as JSON."""
    more = result.more and bool(result.kvs)
    head = {"revision": revision, "count": result.count, "more": more}
    yield _encode(head)[:-1] + b',"kvs":['
    yield from slices(result.kvs, query.keys_only)
    yield b"]" if following is None else b'],"next":' + _encode(following)
    yield b"}\n"


def _url_behind(parameters: Parameters, last: bytes, revision: int) -> str:
    """The URL of the page that comes behind the key `last`, of the same listing."""
    parts = []
    for name in parameters:
        if name not in ("after", "revision"):
            value = parameters.as_given(name)
            parts.append(name if value is None else f"{name}={quote_from_bytes(value, '')}")
    parts.append(f"revision={revision}")
    parts.append(f"after={quote_from_bytes(last, '')}")
    return f"/db/?{'&'.join(parts)}"


# -- deleting --------------------------------------------------------------------


def _delete(request: IRequest, database: IDatabase) -> None:
    parameters = Parameters(request.query, DELETE_PARAMETERS, "A delete of a range")
    whole = spans.named(parameters, "A delete of a range")
    if whole is None:
        raise BadRequest(
            "A delete needs a key, or a range; everything is ?prefix= and no more."
        )

    def done(outcome: Result | RaftdError) -> None:
        if isinstance(outcome, DeleteResult):
            json(request, 200, {"deleted": outcome.deleted, "revision": outcome.revision})
        else:
            failed_result(request, outcome)

    database.change(DeleteRange(*whole), done, read_unconditional_retry(request))
