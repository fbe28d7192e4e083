"""An answer that is an error, as the exception that says the same (`raftd.errors`)."""

from __future__ import annotations

import msgspec

from raftd import errors
from raftd.errors import BadRequest, DidNotHappen, OutcomeUnknown, RaftdError


class Unreachable(DidNotHappen):
    """No server could be reached, so that nothing was changed."""

    code = "unreachable"


class PreconditionFailed(DidNotHappen):
    """
    The key is not as the request requires; nothing was changed.

    `mod_revision` is what it has, 0 if there is no such key.
    """

    code = "precondition_failed"

    def __init__(self, message: str, mod_revision: int) -> None:
        super().__init__(message)
        self.mod_revision = mod_revision


class _Body(msgspec.Struct):
    """The fields of an error's body."""

    error: str
    message: str
    compacted_revision: int = 0
    revision: int = 0
    mod_revision: int = 0


_KINDS: dict[str, type[RaftdError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, RaftdError)
    and not issubclass(kind, errors.Fatal)
}

_decode = msgspec.json.Decoder(_Body).decode


def error_of(server: str, status: int, body: bytes) -> RaftdError:
    """The exception for an answer of `server` with this status, 400 or above."""
    try:
        said = _decode(body)
    except msgspec.MsgspecError:
        # A proxy between, or something else that listens there.
        if status >= 500:
            return OutcomeUnknown(f"{server} answered {status}, and not as raftd does.")
        return BadRequest(f"{server} answered {status}, and not as raftd does.")
    if said.error == errors.Compacted.code:
        return errors.Compacted(said.message, said.compacted_revision)
    if said.error == errors.FutureRevision.code:
        return errors.FutureRevision(said.message, said.revision)
    if said.error == PreconditionFailed.code:
        return PreconditionFailed(said.message, said.mod_revision)
    kind = _KINDS.get(said.error)
    if kind is None:
        kind = (
            OutcomeUnknown if status == 504 else DidNotHappen if status >= 500 else BadRequest
        )
    error = kind(said.message)
    error.code = said.error
    return error
