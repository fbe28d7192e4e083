"""
`/lease`: leases, which take their keys along when they end.

    POST /lease               a new one: `{"ttl": SECONDS}`, and perhaps an `"id"`
    GET, HEAD /lease          all of them
    GET, HEAD /lease/ID       one: its time left and its first keys
    POST /lease/ID/keepalive  begin its time anew
    DELETE /lease/ID          end it now

An ID is 16 hexadecimal digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from raftd.errors import BadRequest, LeaseNotFound, RaftdError
from raftd.interfaces import IRequest
from raftd.kv.interfaces import IDatabase, LeaseStatus
from raftd.kv.operations import RevokeLease
from raftd.kv.results import LeaseResult, Result, RevokeResult
from raftd.web import bodies, freshness, streams
from raftd.web.answers import (
    JSON,
    NO_CACHE,
    failed_read,
    failed_result,
    failed_write,
    json,
    not_allowed,
    options,
)
from raftd.web.fields import read_unconditional_retry
from raftd.web.parameters import Parameters, no_parameters
from raftd.web.records import MAX_TTL_S, lease_id, named, parse_lease_id, seconds

PATH = b"/lease"
PREFIX = b"/lease/"

ALLOW_ALL = b"GET, HEAD, POST, OPTIONS"
ALLOW_ONE = b"GET, HEAD, DELETE, OPTIONS"
ALLOW_KEEP_ALIVE = b"POST, OPTIONS"

LIST_PARAMETERS = freshness.NAMES

#: How many keys of a lease are told.
MAX_KEYS = 1000
#: Leases are encoded so many at a time.
SLICE_LEASES = 1000

_KEEP_ALIVE = "/keepalive"
_EXAMPLE = '{"ttl": 10}'

_encode = msgspec.json.Encoder().encode


def handle(request: IRequest, database: IDatabase) -> None:
    """Answer a request whose path is `PATH`, or begins with `PREFIX`."""
    try:
        if request.path == PATH:
            _all(request, database)
            return
        name = request.path[len(PREFIX) :].decode("ascii", "backslashreplace")
        if name.endswith(_KEEP_ALIVE):
            _kept_alive(request, database, name[: -len(_KEEP_ALIVE)])
        else:
            _one(request, database, name)
    except RaftdError as e:
        # Nothing was asked of the database yet.
        failed_read(request, e)


def _all(request: IRequest, database: IDatabase) -> None:
    method = request.method
    if method == "GET" or method == "HEAD":
        _list(request, database)
    elif method == "POST":
        _grant(request, database)
    elif method == "OPTIONS":
        options(request, ALLOW_ALL)
    else:
        not_allowed(request, ALLOW_ALL)


def _one(request: IRequest, database: IDatabase, name: str) -> None:
    method = request.method
    if method == "GET" or method == "HEAD":
        _get(request, database, parse_lease_id(name))
    elif method == "DELETE":
        _revoke(request, database, parse_lease_id(name))
    elif method == "OPTIONS":
        options(request, ALLOW_ONE)
    else:
        not_allowed(request, ALLOW_ONE)


# -- reads -----------------------------------------------------------------------


def _list(request: IRequest, database: IDatabase) -> None:
    parameters = Parameters(request.query, LIST_PARAMETERS, "A list of leases")

    def done(outcome: list[LeaseResult] | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_read(request, outcome)
        else:
            streams.respond(request, 200, _listed(outcome), JSON, (NO_CACHE,))

    database.leases(freshness.max_staleness_s(parameters), done)


def _listed(leases: Sequence[LeaseResult]) -> Iterator[bytes]:
    yield b'{"leases":['
    for begin in range(0, len(leases), SLICE_LEASES):
        part = [_as_json(lease) for lease in leases[begin : begin + SLICE_LEASES]]
        yield (b"," if begin else b"") + _encode(part)[1:-1]
    yield b"]}\n"


def _as_json(lease: LeaseResult) -> dict[str, object]:
    return {"id": lease_id(lease.id), "ttl": seconds(lease.ttl_ms)}


def _get(request: IRequest, database: IDatabase, number: int) -> None:
    no_parameters(request.query, "A lease")

    def done(outcome: LeaseStatus | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_read(request, outcome)
            return
        value = {
            "id": lease_id(outcome.id),
            "ttl": seconds(outcome.ttl_ms),
            "ttl_left": seconds(outcome.ttl_left_ms),
            "keys": [named("key", key) for key in outcome.keys],
            "more": outcome.more,
        }
        json(request, 200, value, (NO_CACHE,))

    database.lease(number, MAX_KEYS, done)


# -- writes ----------------------------------------------------------------------


def _grant(request: IRequest, database: IDatabase) -> None:
    no_parameters(request.query, "/lease")
    retry = read_unconditional_retry(request)
    value = bodies.parse(request.body, _EXAMPLE)
    bodies.check_keys(value, ("ttl", "id"), "The body")
    ttl_ms = _ttl_ms(value.get("ttl"))
    number = _wanted_id(value["id"]) if "id" in value else 0

    def done(outcome: LeaseResult | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_write(request, outcome)
        else:
            location = (b"Location", b"/lease/%016x" % outcome.id)
            json(request, 201, _as_json(outcome), (location,))

    database.grant(ttl_ms, done, number, retry)


def _ttl_ms(value: object) -> int:
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 < value <= MAX_TTL_S
    ):
        return math.ceil(value * 1000)
    raise BadRequest(
        f"'ttl' must be a number of seconds, above 0 and up to {MAX_TTL_S}, as in {_EXAMPLE}."
    )


def _wanted_id(value: object) -> int:
    try:
        return parse_lease_id(bodies.text(value, "id"))
    except LeaseNotFound:
        raise BadRequest("The id of a lease is neither zero, nor 2**63 or above.") from None


def _kept_alive(request: IRequest, database: IDatabase, name: str) -> None:
    if request.method == "OPTIONS":
        options(request, ALLOW_KEEP_ALIVE)
        return
    if request.method != "POST":
        not_allowed(request, ALLOW_KEEP_ALIVE)
        return
    number = parse_lease_id(name)
    no_parameters(request.query, "A keep-alive")
    if request.body:
        raise BadRequest("A keep-alive has no body: the lease keeps its TTL.")

    def done(outcome: LeaseResult | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            # If it was carried out after all, the lease lives longer, and that is all.
            failed_read(request, outcome)
        else:
            json(request, 200, _as_json(outcome))

    database.keep_alive(number, done)


def _revoke(request: IRequest, database: IDatabase, number: int) -> None:
    no_parameters(request.query, "A delete of a lease")

    def done(outcome: Result | RaftdError) -> None:
        if isinstance(outcome, RevokeResult):
            value = {"id": lease_id(number), "revision": outcome.revision}
            json(request, 200, {**value, "deleted": outcome.deleted})
        else:
            failed_result(request, outcome)

    database.change(RevokeLease(number), done, read_unconditional_retry(request))
