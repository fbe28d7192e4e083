"""Answers that all of the web face has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from raftd.errors import (
    BadRequest,
    ChangeRefused,
    DidNotHappen,
    NotLeader,
    RaftdError,
    TooLarge,
)
from raftd.interfaces import IRequest

#: When to try again, in seconds: about the time that an election takes.
RETRY_AFTER = (b"Retry-After", b"1")

#: What is read must not be answered from somebody's cache, which knows nothing
#: of later writes.
NO_CACHE = (b"Cache-Control", b"no-cache")

_encode = msgspec.json.Encoder().encode


def json(
    request: IRequest,
    status: int,
    value: Mapping[str, object],
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with `value` and a line break, so that a terminal shows it well."""
    request.respond(status, _encode(value) + b"\n", b"application/json", headers)


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


def failed_write(request: IRequest, reason: RaftdError) -> None:
    """
    400 or 413 if the write is wrong, 503 if it certainly did not happen.

    Whatever else went wrong, it may have happened: 504.
    """
    if not isinstance(reason, DidNotHappen):
        error(request, 504, "outcome_unknown", _sentence(reason))
    else:
        _did_not_happen(request, reason)


def failed_change(request: IRequest, reason: RaftdError) -> None:
    """As a write, but one that does not fit the present configuration is 409."""
    if isinstance(reason, ChangeRefused):
        error(request, 409, reason.code, _sentence(reason))
    else:
        failed_write(request, reason)


def failed_read(request: IRequest, reason: RaftdError) -> None:
    """As a write, but a read that failed has no unknown outcome: 503."""
    _did_not_happen(request, reason)


def _did_not_happen(request: IRequest, reason: RaftdError) -> None:
    if isinstance(reason, TooLarge):
        error(request, 413, "too_large", _sentence(reason))
    elif isinstance(reason, BadRequest):
        error(request, 400, reason.code, _sentence(reason))
    else:
        # To a client it is all the same which node was not the leader.
        code = "no_leader" if isinstance(reason, NotLeader) else reason.code
        if not isinstance(reason, DidNotHappen):
            code = "unavailable"
        error(request, 503, code, _sentence(reason), (RETRY_AFTER,))


def _sentence(reason: RaftdError) -> str:
    return str(reason) or "The node gave no reason."
