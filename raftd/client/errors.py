"""An answer that is an error, as the exception that says the same (`raftd.errors`)."""

from __future__ import annotations

import msgspec

from raftd import errors
from raftd.errors import BadRequest, DidNotHappen, OutcomeUnknown, RaftdError


class Unreachable(DidNotHappen):
    """No server could be reached, or none has answered; nothing was changed."""

    code = "unreachable"


class PreconditionFailed(DidNotHappen):
    """
    The key is not as the request requires; nothing was changed.

    `mod_revision` is what it has, 0 if there is no such key.
    """

    code = "precondition_failed"

    def __init__(self, message: str, mod_revision: int = 0) -> None:
        super().__init__(message)
        self.mod_revision = mod_revision


class NotFound(DidNotHappen):
    """There is nothing under this name; nothing was changed."""

    code = "not_found"


class _Body(msgspec.Struct):
    """The fields of an error's body."""

    error: str
    message: str
    compacted_revision: int = 0
    revision: int = 0
    mod_revision: int = 0


_KINDS: dict[str, type[RaftdError]] = {
    kind.code: kind
    for kind in (*vars(errors).values(), NotFound)
    if isinstance(kind, type)
    and issubclass(kind, RaftdError)
    and not issubclass(kind, errors.Fatal)
}

_decode = msgspec.json.Decoder(_Body).decode


def error_of(server: str, status: int, body: bytes) -> RaftdError:
    """
    The exception for an answer of `server` that is no success.

    `DidNotHappen` only if raftd has said so, or refused the request as such.
    """
    try:
        said = _decode(body)
    except msgspec.MsgspecError:
        # A proxy between, or something else that listens there.
        return strange(server, status)
    if said.error == errors.Compacted.code:
        return errors.Compacted(said.message, said.compacted_revision)
    if said.error == errors.FutureRevision.code:
        return errors.FutureRevision(said.message, said.revision)
    if said.error == PreconditionFailed.code:
        return PreconditionFailed(said.message, said.mod_revision)
    family, plain = _family(status)
    kind = _KINDS.get(said.error, plain)
    error = (kind if issubclass(kind, family) else plain)(said.message)
    error.code = said.error
    return error


def strange(server: str, status: int) -> RaftdError:
    """The exception for an answer that raftd does not give."""
    kind = OutcomeUnknown if status < 300 or status >= 500 else BadRequest
    return kind(f"{server} answered {status}, and not as raftd does.")


def _family(status: int) -> tuple[type[RaftdError], type[RaftdError]]:
    """What an error of this status is at least, and what it is if nothing else is known."""
    if status in (408, 429, 503, 507):
        return DidNotHappen, DidNotHappen
    if status >= 500:
        return OutcomeUnknown, OutcomeUnknown
    return DidNotHappen, BadRequest
