"""
What the store answers: values, and their bytes.

Like operations they are MessagePack arrays; but they are made anew by each
node, and go only as far as the node that proposed.  A number is never given
to another kind all the same, for nodes of two versions may run together.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from raftd.errors import ProtocolViolation, RaftdError
from raftd.kv.refusals import Refusal, error_of


class KeyValue(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    A key and its record.  The value is empty where only keys were asked for;
    `lease` is 0 without one.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class PutResult(msgspec.Struct, tag=1, array_like=True, frozen=True, gc=False):
    """The revision that a put made, and whether the key was new."""

    revision: int
    created: bool
    previous: KeyValue | None = None


class DeleteResult(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """
    The store's revision after a delete, and how many keys it removed.

    `previous`, if it was asked for, has the first of them, as many as a result
    may have (`raftd.kv.execution.MAX_PREVIOUS`, `raftd.kv.ranges.MAX_RESULT_BYTES`).
    """

    revision: int
    deleted: int
    previous: list[KeyValue] = []


class TransactionResult(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """
    Whether the compares held, and a result for each operation carried out.

    `revision` is the store's, here and in each of `results`.
    """

    revision: int
    succeeded: bool
    results: list[StepResult]


class CompactResult(msgspec.Struct, tag=4, array_like=True, frozen=True, gc=False):
    """The oldest revision that can still be read."""

    compacted_revision: int


class LeaseResult(msgspec.Struct, tag=5, array_like=True, frozen=True, gc=False):
    """A lease that was granted."""

    id: int
    ttl_ms: int


class RevokeResult(msgspec.Struct, tag=6, array_like=True, frozen=True, gc=False):
    """The store's revision after a lease has ended, and how many keys went with it."""

    revision: int
    deleted: int


class RangeResult(msgspec.Struct, tag=9, array_like=True, frozen=True):
    """
    What a range has: `count` keys in all, of which `kvs`; `more` if the limit,
    or the bound on one answer, has cut off some that pass the filter.

    `revision` is the store's, not the one that was asked for.
    """

    revision: int
    count: int
    more: bool
    kvs: list[KeyValue]


class NoResult(msgspec.Struct, tag=10, array_like=True, frozen=True, gc=False):
    """It was carried out, and there is nothing to say of it."""


#: Of a step of a transaction.
StepResult = PutResult | DeleteResult | TransactionResult | LeaseResult | RangeResult

Result = StepResult | CompactResult | RevokeResult | NoResult

#: What `Store.apply` returns.
encode_result: Callable[[Result | Refusal], bytes] = msgspec.msgpack.Encoder().encode

_decode_result = msgspec.msgpack.Decoder(Result).decode
_decode_refusal = msgspec.msgpack.Decoder(Refusal).decode


#: Refusals that may come to something if the same is asked again later.
_TEMPORARY = frozenset({"quota_reached", "too_many_leases"})


def is_temporary(data: bytes) -> bool:
    """
    Whether the encoded result is a refusal that its client is to sit out.

    It is no answer to keep for a retry (`raftd.idempotency`): nothing was
    changed, and when there is space again the retry is to find it.
    """
    return _is_refusal(data) and _decode_refusal(data).code in _TEMPORARY


def _is_refusal(data: bytes) -> bool:
    # The high bits of MessagePack's first byte tell a small map.
    return bool(data) and data[0] >> 4 == 0x8


def decode_result(data: bytes) -> Result | RaftdError:
    """The reverse; a refusal as its error.  `ProtocolViolation` raised if it is neither."""
    try:
        if _is_refusal(data):
            return error_of(_decode_refusal(data))
        result: Result = _decode_result(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolViolation(f"not a result of the store: {e}") from None
    return result
