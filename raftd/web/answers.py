"""Answers that all of the web face has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from raftd.errors import (
    BadRequest,
    ChangeRefused,
    Compacted,
    DidNotHappen,
    FutureRevision,
    IdempotencyKeyReused,
    IdempotencyTableFull,
    LeaseExists,
    LeaseNotFound,
    NotLeader,
    OutcomeUnknown,
    QuotaReached,
    RaftdError,
    TooLarge,
)
from raftd.interfaces import IRequest

#: When to try again, in seconds: about the time that an election takes.
RETRY_AFTER = (b"Retry-After", b"1")

#: Idempotency keys go one by one as their ten minutes end.
_RETRY_MUCH_LATER = (b"Retry-After", b"60")

#: What is read must not be answered from somebody's cache, which knows nothing
#: of later writes.
NO_CACHE = (b"Cache-Control", b"no-cache")

JSON = b"application/json"
OCTETS = b"application/octet-stream"
#: A value is whatever somebody stored: no browser may take it for a page.
NOSNIFF = (b"X-Content-Type-Options", b"nosniff")

_encode = msgspec.json.Encoder().encode


class UnsupportedMediaType(BadRequest):
    """The body is in a form that is not taken here."""

    code = "unsupported_media_type"


def json(
    request: IRequest,
    status: int,
    value: Mapping[str, object],
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with `value` and a line break, so that a terminal shows it well."""
    request.respond(status, _encode(value) + b"\n", JSON, headers)


def error(
    request: IRequest,
    status: int,
    code: str,
    message: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with an error: `code` for programs, a sentence for people."""
    json(request, status, {"error": code, "message": message}, headers)


def not_allowed(request: IRequest, allow: bytes) -> None:
    """The method is none of those in `allow` (RFC 9110, 15.5.6)."""
    error(
        request,
        405,
        "method_not_allowed",
        f"{request.method} is not offered here; there is {allow.decode('ascii')}.",
        ((b"Allow", allow),),
    )


def options(request: IRequest, allow: bytes) -> None:
    """Say what is offered (RFC 9110, 9.3.7)."""
    request.respond(204, headers=((b"Allow", allow),))


def is_offered(request: IRequest, allow: bytes) -> bool:
    """Whether the method is in `allow` and is no OPTIONS; if not, it is answered here."""
    if request.method == "OPTIONS":
        options(request, allow)
    elif request.method not in allow.decode("ascii").split(", "):
        not_allowed(request, allow)
    else:
        return True
    return False


def unavailable(request: IRequest, code: str, message: str) -> None:
    """Nothing was changed, and the same request may succeed a moment later."""
    error(request, 503, code, message, (RETRY_AFTER,))


def failed_write(request: IRequest, reason: RaftdError) -> None:
    """
    4xx if the write is wrong, 503 or 507 if it certainly did not happen.

    Whatever else went wrong, it may have happened: 504.
    """
    if isinstance(reason, DidNotHappen):
        _did_not_happen(request, reason)
    else:
        error(request, 504, "outcome_unknown", _sentence(reason))


def failed_result(request: IRequest, outcome: object) -> None:
    """Answer a write of which this came instead of its result: an error, or a defect."""
    if not isinstance(outcome, RaftdError):
        outcome = OutcomeUnknown("The store answered something else than was asked.")
    failed_write(request, outcome)


def failed_change(request: IRequest, reason: RaftdError) -> None:
    """As a write, but one that does not fit the present configuration is 409."""
    if isinstance(reason, ChangeRefused):
        error(request, 409, reason.code, _sentence(reason))
    else:
        failed_write(request, reason)


def failed_read(request: IRequest, reason: RaftdError) -> None:
    """As a write, but a read that failed has no unknown outcome: 503."""
    if isinstance(reason, DidNotHappen):
        _did_not_happen(request, reason)
    else:
        unavailable(request, "unavailable", _sentence(reason))


#: What each family of errors is in HTTP's words; whatever else did not happen is 503.
_STATUSES: tuple[tuple[type[DidNotHappen], int], ...] = (
    (TooLarge, 413),
    (UnsupportedMediaType, 415),
    (BadRequest, 400),
    (LeaseNotFound, 404),
    (LeaseExists, 409),
    (Compacted, 410),
    (IdempotencyKeyReused, 422),
    (IdempotencyTableFull, 429),
    (QuotaReached, 507),
)


def _did_not_happen(request: IRequest, reason: DidNotHappen) -> None:
    status = next((status for kind, status in _STATUSES if isinstance(reason, kind)), 0)
    if not status:
        # To a client it is all the same which node was not the leader.
        code = "no_leader" if isinstance(reason, NotLeader) else reason.code
        unavailable(request, code, _sentence(reason))
        return
    value: dict[str, object] = {"error": reason.code, "message": _sentence(reason)}
    headers: Sequence[tuple[bytes, bytes]] = ()
    if isinstance(reason, Compacted):
        value["compacted_revision"] = reason.revision
    elif isinstance(reason, FutureRevision):
        value["revision"] = reason.revision
    elif isinstance(reason, IdempotencyTableFull):
        headers = (_RETRY_MUCH_LATER,)
    json(request, status, value, headers)


def _sentence(reason: RaftdError) -> str:
    return str(reason) or "The node gave no reason."
