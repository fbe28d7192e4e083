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

Whatever is chosen (ids, times to live, a quota) is chosen by the proposer and
carried here: applying an operation uses nothing but it and the state.

A result is a MessagePack array when the operation was carried out and a map,
a `Refusal`, when it was not.  Results are made anew by each node and are not
in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from raftd.kv.refusals import REFUSALS, Refusal

# -- parts of operations -------------------------------------------------------

#: As the end of a range: there is no end.
EVERY_KEY = b"\0"

#: What a compare looks at.
VALUE, VERSION, CREATE_REVISION, MOD_REVISION, LEASE = range(1, 6)
#: How it compares: equal, not equal, less, greater.
EQUAL, NOT_EQUAL, LESS, GREATER = range(1, 5)
#: By what a range is sorted: the key, or one of the targets of compares above.
KEY = 0

#: How deep transactions are decoded; `raftd.kv.limits` says how deep a client may nest them.
MAX_DECODED_NESTING = 32

# Bounds that decoding checks: whatever is beyond is no operation.
LeaseId = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class Compare(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """
    One condition of a transaction, on `key` or, with a `range_end`, on every key there.

    `operand` is bytes if `target` is `VALUE`, else an integer.  A missing key
    has no value, so that a compare of its value is false, and is 0 in
    everything else; an empty range is compared once, as a missing key.
    """

    key: bytes
    range_end: bytes
    target: Annotated[int, msgspec.Meta(ge=VALUE, le=LEASE)]
    relation: Annotated[int, msgspec.Meta(ge=EQUAL, le=GREATER)]
    operand: bytes | int


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


class Transaction(
    msgspec.Struct, tag=3, array_like=True, frozen=True, forbid_unknown_fields=True
):
    """
    If all of `compares` hold, carry out `success`, else `failure`, as one change.

    All compares, those of nested transactions too, see the state before the
    whole; a range sees the writes before it.
    """

    compares: tuple[Compare, ...]
    success: tuple[Step, ...]
    failure: tuple[Step, ...] = ()


class Compact(
    msgspec.Struct, tag=4, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """Forget what only revisions below `revision` show; `revision` itself stays readable."""

    revision: int


class GrantLease(
    msgspec.Struct, tag=5, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """A new lease; `id` is not 0 and below 2**63, `ttl_ms` at least 1."""

    id: LeaseId
    ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class RevokeLease(
    msgspec.Struct, tag=6, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """End a lease and remove its keys, sorted, as one change."""

    id: int


class PutWith(
    msgspec.Struct, tag=7, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """
    A put with more to say: answer the record before, keep the value or the
    lease that is there (the key must exist then).
    """

    key: bytes
    value: bytes
    lease: int = 0
    previous: bool = False
    keep_value: bool = False
    keep_lease: bool = False


class DeleteRangeWith(
    msgspec.Struct, tag=8, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """A `DeleteRange` that answers what it removed, if `previous`."""

    key: bytes
    range_end: bytes = b""
    previous: bool = False


class Range(
    msgspec.Struct, tag=9, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """
    The records from `key` up to but not including `range_end` (as in
    `DeleteRange`), as of `revision`, 0 for now.

    Fetched, then filtered by the revisions (0: no bound), then sorted by
    `sort_by` (`KEY`, `VERSION`, ...), then cut to `limit` (0: as many as one
    answer may have, `raftd.kv.ranges.MAX_RANGE_KEYS`).  The count is that of
    all keys in the range, before filter and limit.
    """

    key: bytes
    range_end: bytes = b""
    revision: int = 0
    limit: int = 0
    keys_only: bool = False
    count_only: bool = False
    sort_by: Annotated[int, msgspec.Meta(ge=KEY, le=LEASE)] = KEY
    descending: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


class SetQuota(
    msgspec.Struct, tag=10, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """What the store may grow to, in bytes as `Store.size_bytes` counts; 0: no bound."""

    quota_bytes: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Checkpoint(
    msgspec.Struct, tag=11, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """
    Without a `digest`: every member takes the digest of its state as of this
    very entry.  With one: it is what the leader's was as of the checkpoint at
    `index`, for every member to compare its own with.
    """

    index: int = 0
    digest: bytes = b""


class ExpireLease(
    msgspec.Struct, tag=12, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """
    As `RevokeLease`, but only the lease with this `number` (`Leases`): what the
    leader proposes when it has expired.

    By the time at which this is applied that one may be gone, and its id
    granted again.  The lease that has it then has not expired.
    """

    id: int
    number: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


#: What a transaction is made of.
Step = PutWith | DeleteRangeWith | Range | GrantLease | Transaction

Operation = (
    Put
    | DeleteRange
    | Transaction
    | Compact
    | GrantLease
    | RevokeLease
    | PutWith
    | DeleteRangeWith
    | SetQuota
    | Checkpoint
    | ExpireLease
)

#: What `Command.operation` holds.
encode_operation: Callable[[Operation], bytes] = msgspec.msgpack.Encoder().encode

_decode_operation = msgspec.msgpack.Decoder(Operation).decode


def decode_operation(data: bytes) -> Operation | Refusal:
    """The reverse of `encode_operation`; a refusal for anything else, never an exception."""
    try:
        operation: Operation = _decode_operation(data)
    except (msgspec.MsgspecError, RecursionError):
        return REFUSALS["unknown_operation"]
    if type(operation) is Transaction and _is_too_deep(operation):
        return REFUSALS["unknown_operation"]
    return operation


def _is_too_deep(transaction: Transaction) -> bool:
    """
    Whether it is nested deeper than `MAX_DECODED_NESTING`.

    How deep the decoder may go depends on how deep the stack is already, and
    must not decide anything: whatever might be too deep for it is refused alike.
    """
    level: list[Step] = [transaction]
    for _ in range(MAX_DECODED_NESTING + 1):
        level = [
            step
            for outer in level
            if isinstance(outer, Transaction)
            for step in (*outer.success, *outer.failure)
        ]
        if not level:
            return False
    return any(isinstance(step, Transaction) for step in level)
