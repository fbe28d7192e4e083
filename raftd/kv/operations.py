"""
What a client asks of the store, and what it answers, as bytes.

An operation is written into the log, so its bytes are a format.  It is a
MessagePack array that begins with the number of its kind.  The rules:

- A number is never given to another kind, and the fields of a kind never
  change: none is added, moved or dropped.  What needs more fields is a new
  kind with a new number.
- Whoever meets a number or a shape that it does not know refuses the
  operation as a whole.  It never carries out the part that it understands.

So a node either does exactly what the proposer meant or changes nothing and
says so, and every node of one version does the same.  A new kind may be
proposed only once every member knows it; that is the proposer's to ensure.

A result is a MessagePack array when the operation was carried out and a map,
a `Refusal`, when it was not.  Results are made anew by each node and are not
in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from raftd.errors import BadRequest, ProtocolViolation, RaftdError
from raftd.interfaces import DeleteResult, PutResult


class Put(
    msgspec.Struct, tag=1, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """Set `key` to `value`.  `lease` is the id of the lease to attach, 0 for none."""

    key: bytes
    value: bytes
    lease: int = 0


class DeleteRange(
    msgspec.Struct, tag=2, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """
    Remove the keys from `key` up to but not including `range_end`.

    An empty `range_end` means `key` alone; a single zero byte means every key
    from `key` on.
    """

    key: bytes
    range_end: bytes = b""


Operation = Put | DeleteRange


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """An operation that changed nothing: `code` for programs, a sentence for people."""

    code: str
    message: str


#: The bytes are no operation that this version knows.  The text is fixed, for
#: the results of all nodes must be equal.
UNKNOWN_OPERATION = Refusal(
    "unknown_operation",
    "This version of raftd does not know the operation; nothing was changed.",
)
EMPTY_KEY = Refusal("bad_request", "A key must have at least one byte.")
LEASE_NOT_FOUND = Refusal("lease_not_found", "There is no lease with this id.")

R = TypeVar("R")

_encode = msgspec.msgpack.Encoder().encode
_decode_operation = msgspec.msgpack.Decoder(Operation).decode
_decode_refusal = msgspec.msgpack.Decoder(Refusal).decode
_decode_put = msgspec.msgpack.Decoder(PutResult).decode
_decode_delete = msgspec.msgpack.Decoder(DeleteResult).decode


def encode_operation(operation: Operation) -> bytes:
    """What `Command.operation` holds."""
    return _encode(operation)


def decode_operation(data: bytes) -> Operation | Refusal:
    """The reverse of `encode_operation`; a refusal for anything else, never an exception."""
    try:
        operation: Operation = _decode_operation(data)
    except (msgspec.MsgspecError, RecursionError):
        return UNKNOWN_OPERATION
    return operation


def encode_result(result: PutResult | DeleteResult | Refusal) -> bytes:
    """What `Store.apply` returns."""
    return _encode(result)


def decode_put_result(data: bytes) -> PutResult | RaftdError:
    """The outcome of a `Put`; `ProtocolViolation` raised if it is none."""
    return _decode_result(data, _decode_put)


def decode_delete_result(data: bytes) -> DeleteResult | RaftdError:
    """The outcome of a `DeleteRange`; `ProtocolViolation` raised if it is none."""
    return _decode_result(data, _decode_delete)


def _decode_result(data: bytes, decode: Callable[[bytes], R]) -> R | RaftdError:
    try:
        # The high bits of MessagePack's first byte tell a small map.
        if data[:1] and data[0] >> 4 == 0x8:
            return error_of(_decode_refusal(data))
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolViolation(f"not a result of the store: {e}") from None


def error_of(refusal: Refusal) -> BadRequest:
    """A refusal as the error that its proposer is given, with the refusal's own code."""
    error = BadRequest(refusal.message)
    error.code = refusal.code
    return error
