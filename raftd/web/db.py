"""
`/db/KEY`: one key, its raw value as the body.

    PUT, POST   set it: 201 if it was new, 200 if it was replaced
    GET, HEAD   its value: 200, or 404 if there is none
    DELETE      remove it: 200, or 404 if there was none

KEY is everything after `/db/`, percent-decoded; it may hold any bytes, slashes
too, and `+` is a plus.  The body is the value, whatever its content type.

Every success has the `ETag` of the revision: for a read the one that last
changed the key, for a write the one that it made.  Writes and deletes answer
JSON: `{"key", "revision"}`, or `key_base64` where the key is not UTF-8.
A DELETE that finds nothing is no success and makes no revision; a client that
repeats one whose answer was lost may take its 404 for "gone", or give it an
idempotency key.

A request without parameters and special fields, as most are, takes a way of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from raftd.errors import BadRequest, RaftdError
from raftd.interfaces import IRequest
from raftd.kv.interfaces import LINEARIZABLE, IDatabase
from raftd.kv.operations import (
    Compare,
    DeleteRange,
    DeleteRangeWith,
    GrantLease,
    Operation,
    Put,
    PutWith,
    Range,
    Step,
    Transaction,
)
from raftd.kv.results import (
    DeleteResult,
    KeyValue,
    LeaseResult,
    PutResult,
    RangeResult,
    Result,
    TransactionResult,
)
from raftd.web import freshness, preconditions, ranges
from raftd.web.answers import (
    NO_CACHE,
    NOSNIFF,
    OCTETS,
    error,
    failed_read,
    failed_result,
    failed_write,
    json,
    not_allowed,
    options,
)
from raftd.web.fields import (
    IF_MATCH,
    IF_NONE_MATCH,
    Fields,
    check_content,
    read_retry,
    refuse_conditions,
    special,
)
from raftd.web.parameters import Parameters, percent_decoded
from raftd.web.records import MAX_TTL_S, lease_id, named, parse_lease_id, record
from raftd.web.spans import Span
from raftd.web.watch import Watching, is_wanted

PREFIX = b"/db/"

ALLOW = b"GET, HEAD, PUT, POST, DELETE, OPTIONS"

READ_PARAMETERS = ("revision", *freshness.NAMES)
PUT_PARAMETERS = ("ttl", "lease", "prev")
DELETE_PARAMETERS = ("prev",)


def handle(request: IRequest, database: IDatabase, watching: Watching) -> None:
    """Answer a request whose path begins with `PREFIX`."""
    encoded_key = request.path[len(PREFIX) :]
    if not encoded_key:
        ranges.handle(request, database, watching)
        return
    method = request.method
    try:
        key = encoded_key
        if b"%" in key:
            key = percent_decoded(key, "the key")
        if method == "GET" or method == "HEAD":
            _get(request, database, watching, key)
        elif method == "PUT" or method == "POST":
            _put(request, database, key)
        elif method == "DELETE":
            _delete(request, database, key)
        elif method == "OPTIONS":
            options(request, ALLOW)
        else:
            not_allowed(request, ALLOW)
    except RaftdError as e:
        # Nothing was asked of the database yet.
        failed_read(request, e)


# -- reads -----------------------------------------------------------------------


def _get(request: IRequest, database: IDatabase, watching: Watching, key: bytes) -> None:
    fields = special(request.headers)
    if fields is not None or request.query:
        _get_with(request, database, watching, key, fields or {})
        return

    def done(outcome: KeyValue | RaftdError | None) -> None:
        if isinstance(outcome, KeyValue):
            _found(request, outcome)
        else:
            _not_found(request, outcome)

    database.get(key, LINEARIZABLE, done)


def _get_with(
    request: IRequest, database: IDatabase, watching: Watching, key: bytes, fields: Fields
) -> None:
    """A read with parameters or conditions; or a watch."""
    if is_wanted(request.query):
        refuse_conditions(fields)
        watching.handle(request, database, Span(key, b""))
        return
    parameters = Parameters(request.query, READ_PARAMETERS, "A read of a key")
    max_staleness_s = freshness.max_staleness_s(parameters)
    revision = parameters.number("revision", 1) or 0
    if_match = fields.get(IF_MATCH)
    if_none_match = fields.get(IF_NONE_MATCH)
    preconditions.check_read(if_match, if_none_match)

    def done(outcome: KeyValue | RaftdError | None) -> None:
        if not isinstance(outcome, KeyValue):
            _not_found(request, outcome)
            return
        status = preconditions.status_of_read(outcome, if_match, if_none_match)
        if status == 412:
            _precondition_failed(request, outcome.mod_revision)
        elif status == 304:
            request.respond(304, headers=(_etag(outcome.mod_revision), NO_CACHE))
        else:
            _found(request, outcome)

    database.get(key, max_staleness_s, done, revision)


def _found(request: IRequest, kv: KeyValue) -> None:
    headers = [
        _etag(kv.mod_revision),
        (b"Raftd-Create-Revision", b"%d" % kv.create_revision),
        (b"Raftd-Version", b"%d" % kv.version),
        NO_CACHE,
        NOSNIFF,
    ]
    if kv.lease:
        headers.append((b"Raftd-Lease", b"%016x" % kv.lease))
    request.respond(200, kv.value, OCTETS, headers)


def _not_found(request: IRequest, outcome: RaftdError | None) -> None:
    if outcome is None:
        error(request, 404, "not_found", "There is no such key.", (NO_CACHE,))
    else:
        failed_read(request, outcome)


# -- writes ----------------------------------------------------------------------


def _put(request: IRequest, database: IDatabase, key: bytes) -> None:
    fields = special(request.headers)
    if fields is not None or request.query:
        _put_with(request, database, key, fields or {})
        return

    def done(outcome: Result | RaftdError) -> None:
        if isinstance(outcome, PutResult):
            _wrote(request, 201 if outcome.created else 200, key, outcome.revision)
        else:
            failed_result(request, outcome)

    database.change(Put(key, request.body), done)


def _put_with(request: IRequest, database: IDatabase, key: bytes, fields: Fields) -> None:
    """A put with parameters, conditions or an idempotency key."""
    check_content(fields)
    parameters = Parameters(request.query, PUT_PARAMETERS, "A write of a key")
    compares = _compares(key, fields)
    retry = read_retry(request, fields)
    lease, grant = _lease(parameters, database)
    put = PutWith(key, request.body, lease, parameters.flag("prev"))

    def written(results: Sequence[Result]) -> None:
        result = results[-1]
        if not isinstance(result, PutResult):
            failed_result(request, result)
            return
        more: dict[str, object] = {}
        if isinstance(results[0], LeaseResult):
            # Of the first attempt, if this was a retry.
            more["lease"] = lease_id(results[0].id)
        if result.previous is not None:
            more["previous"] = record(result.previous)
        _wrote(request, 201 if result.created else 200, key, result.revision, more)

    _change(request, database, compares, grant, put, written, retry)


def _lease(parameters: Parameters, database: IDatabase) -> tuple[int, GrantLease | None]:
    """The lease that a put attaches, 0 for none; and its grant, if it is to have its own."""
    text = parameters.octets("lease")
    ttl_ms = parameters.milliseconds("ttl", MAX_TTL_S)
    if text is not None:
        if ttl_ms is not None:
            raise BadRequest("A write has either a ttl, for a lease of its own, or a lease.")
        return parse_lease_id(text.decode("utf-8", "backslashreplace")), None
    if ttl_ms is None:
        return 0, None
    lease = database.draw_lease_id()
    return lease, GrantLease(lease, database.lease_ttl_ms(ttl_ms))


def _delete(request: IRequest, database: IDatabase, key: bytes) -> None:
    fields = special(request.headers)
    if fields is not None or request.query:
        _delete_with(request, database, key, fields or {})
    else:
        database.change(DeleteRange(key), lambda outcome: _deleted(request, key, outcome))


def _delete_with(request: IRequest, database: IDatabase, key: bytes, fields: Fields) -> None:
    """A delete with parameters, conditions or an idempotency key."""
    check_content(fields)
    parameters = Parameters(request.query, DELETE_PARAMETERS, "A delete of a key")
    compares = _compares(key, fields)
    retry = read_retry(request, fields)
    delete = DeleteRangeWith(key, b"", parameters.flag("prev"))
    _change(
        request,
        database,
        compares,
        None,
        delete,
        lambda results: _deleted(request, key, results[0]),
        retry,
    )


def _deleted(request: IRequest, key: bytes, outcome: Result | RaftdError) -> None:
    if not isinstance(outcome, DeleteResult):
        failed_result(request, outcome)
    elif outcome.deleted:
        more = {"previous": record(outcome.previous[0])} if outcome.previous else None
        _wrote(request, 200, key, outcome.revision, more)
    else:
        error(request, 404, "not_found", "There was no such key; nothing was changed.")


def _compares(key: bytes, fields: Fields) -> list[Compare]:
    return preconditions.compares(key, fields.get(IF_MATCH), fields.get(IF_NONE_MATCH))


def _change(
    request: IRequest,
    database: IDatabase,
    compares: list[Compare],
    grant: GrantLease | None,
    write: PutWith | DeleteRangeWith,
    done: Callable[[Sequence[Result]], None],
    retry: bytes,
) -> None:
    """
    Carry out `write`, behind its `grant`, if `compares` hold; give `done` the results.

    If they do not hold, the answer is 412: what is there is read by the same
    operation, so that it is what the compares have seen.
    """
    operation: Operation = write
    if compares or grant is not None:
        steps: tuple[Step, ...] = (write,) if grant is None else (grant, write)
        read = (Range(write.key, keys_only=True),) if compares else ()
        operation = Transaction(tuple(compares), steps, read)

    def applied(outcome: Result | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_write(request, outcome)
        elif not isinstance(outcome, TransactionResult):
            done((outcome,))
        elif outcome.succeeded:
            done(outcome.results)
        else:
            found = outcome.results[0]
            kvs = found.kvs if isinstance(found, RangeResult) else ()
            _precondition_failed(request, kvs[0].mod_revision if kvs else 0)

    database.change(operation, applied, retry)


# -- answers ---------------------------------------------------------------------


def _etag(revision: int) -> tuple[bytes, bytes]:
    return (b"ETag", b'"%d"' % revision)


def _wrote(
    request: IRequest,
    status: int,
    key: bytes,
    revision: int,
    more: Mapping[str, object] | None = None,
) -> None:
    value = named("key", key)
    value["revision"] = revision
    if more:
        value.update(more)
    json(request, status, value, (_etag(revision),))


def _precondition_failed(request: IRequest, mod_revision: int) -> None:
    """What is there is not what the client wants; its revision, 0 if it is not there."""
    value = {
        "error": "precondition_failed",
        "message": "The key is not as the request demands; nothing was changed.",
        "mod_revision": mod_revision,
    }
    headers = (_etag(mod_revision),) if mod_revision else ()
    json(request, 412, value, headers)
