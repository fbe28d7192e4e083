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
repeats one whose answer was lost may take its 404 for "gone".

Reads are linearizable unless `?consistency=local` asks for this node's own
state, which may be behind but needs no leader.
"""

from __future__ import annotations

import re
from base64 import b64encode
from urllib.parse import unquote_to_bytes

from raftd.errors import RaftdError
from raftd.interfaces import DeleteResult, IDatabase, IRequest, PutResult, Value
from raftd.web.answers import (
    NO_CACHE,
    error,
    failed_read,
    failed_write,
    json,
    not_allowed,
    options,
)

PREFIX = b"/db/"

ALLOW = b"GET, HEAD, PUT, POST, DELETE, OPTIONS"

_OCTETS = b"application/octet-stream"
#: A value is whatever somebody stored: no browser may take it for a page.
_NOSNIFF = (b"X-Content-Type-Options", b"nosniff")

_malformed_percent = re.compile(rb"%(?![0-9A-Fa-f]{2})").search


def handle(request: IRequest, database: IDatabase) -> None:
    """Answer a request whose path begins with `PREFIX`."""
    method = request.method
    if method == "OPTIONS":
        options(request, ALLOW)
        return
    encoded_key = request.path[len(PREFIX) :]
    if b"%" in encoded_key:
        if _malformed_percent(encoded_key):
            _bad(request, "In the key, a % must be followed by two hexadecimal digits.")
            return
        key = unquote_to_bytes(encoded_key)
    else:
        key = encoded_key
    if method == "GET" or method == "HEAD":
        _get(request, database, key)
    elif method == "PUT" or method == "POST":
        _put(request, database, key)
    elif method == "DELETE":
        _delete(request, database, key)
    else:
        not_allowed(request, ALLOW)


def _get(request: IRequest, database: IDatabase, key: bytes) -> None:
    linearizable = True
    if request.query:
        if request.query == b"consistency=local":
            linearizable = False
        elif request.query != b"consistency=linearizable":
            _bad(
                request,
                "A read has one parameter, consistency, which is local or linearizable.",
            )
            return
    if not key:
        _no_key(request)
        return

    def done(outcome: Value | RaftdError | None) -> None:
        if outcome is None:
            error(request, 404, "not_found", "There is no such key.", (NO_CACHE,))
        elif isinstance(outcome, RaftdError):
            failed_read(request, outcome)
        else:
            etag = b'"%d"' % outcome.mod_revision
            headers = ((b"ETag", etag), NO_CACHE, _NOSNIFF)
            request.respond(200, outcome.value, _OCTETS, headers)

    database.get(key, linearizable, done)


def _put(request: IRequest, database: IDatabase, key: bytes) -> None:
    if not _may_write(request, key):
        return

    def done(outcome: PutResult | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_write(request, outcome)
        else:
            _wrote(request, 201 if outcome.created else 200, key, outcome.revision)

    database.put(key, request.body, done)


def _delete(request: IRequest, database: IDatabase, key: bytes) -> None:
    if not _may_write(request, key):
        return

    def done(outcome: DeleteResult | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_write(request, outcome)
        elif outcome.deleted:
            _wrote(request, 200, key, outcome.revision)
        else:
            error(request, 404, "not_found", "There was no such key; nothing was changed.")

    database.delete(key, done)


def _may_write(request: IRequest, key: bytes) -> bool:
    if request.query:
        _bad(request, "A write has no parameters; a ? in a key is written %3F.")
        return False
    if not key:
        _no_key(request)
        return False
    return True


def _wrote(request: IRequest, status: int, key: bytes, revision: int) -> None:
    value: dict[str, object]
    try:
        value = {"key": key.decode("utf-8"), "revision": revision}
    except UnicodeDecodeError:
        value = {"key_base64": b64encode(key).decode("ascii"), "revision": revision}
    json(request, status, value, ((b"ETag", b'"%d"' % revision),))


def _no_key(request: IRequest) -> None:
    _bad(request, "The path names no key: what follows /db/ is the key.")


def _bad(request: IRequest, message: str) -> None:
    error(request, 400, "bad_request", message)
