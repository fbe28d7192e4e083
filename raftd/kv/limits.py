"""
What an operation may be, so that its client is told at once and in a clear sentence.

The store has the last word when it applies: what it refuses there it refuses on
every node.  What is refused here never gets into the log; the bounds on keys
and values are only here, so that they may change.
"""

from __future__ import annotations

from collections.abc import Iterator

from raftd.errors import BadRequest, RaftdError, TooLarge
from raftd.kv.operations import (
    Compact,
    Compare,
    DeleteRange,
    DeleteRangeWith,
    GrantLease,
    Operation,
    Put,
    PutWith,
    Range,
    RevokeLease,
    Step,
    Transaction,
)
from raftd.kv.ranges import FIELDS
from raftd.kv.refusals import error_of
from raftd.kv.transactions import RELATIONS, refusal_of

#: The longest key, in bytes.  A key is held in memory several times over and
#: fits into a URL.
MAX_KEY_BYTES = 4096
#: The longest end of a range, in bytes: just behind the longest key.
MAX_END_BYTES = MAX_KEY_BYTES + 1
#: The largest value, in bytes.
MAX_VALUE_BYTES = 1024 * 1024
#: The greatest id of a lease; 0 is none.
MAX_LEASE_ID = 2**63 - 1
#: Transactions within one another: each costs a call within a call.
MAX_NESTING = 16


def key_refusal(key: bytes) -> RaftdError | None:
    """Why `key` cannot be one; None if it can."""
    if not key:
        return BadRequest("A key must have at least one byte.")
    if len(key) > MAX_KEY_BYTES:
        return BadRequest(f"The key is longer than {MAX_KEY_BYTES} bytes.")
    return None


def put_refusal(key: bytes, value: bytes) -> RaftdError | None:
    """Why this cannot be put; None if it can, as far as this tells."""
    if len(value) > MAX_VALUE_BYTES:
        return TooLarge(f"The value is larger than {MAX_VALUE_BYTES} bytes.")
    return key_refusal(key)


def range_refusal(query: Range) -> RaftdError | None:
    """Why a range cannot be read; None if it can."""
    if query.limit < 0:
        return BadRequest("A limit must not be negative.")
    if query.sort_by not in FIELDS:
        return BadRequest("A range cannot be sorted by that.")
    return _span_refusal(query.key, query.range_end)


def operation_refusal(
    operation: Operation, ttl_floor_ms: int, ttl_max_ms: int
) -> RaftdError | None:
    """
    Why `operation` can never be carried out; None if it may be.

    The TTL of a lease that it grants is a whole second between the two.
    """
    if isinstance(operation, Transaction):
        refusal = _transaction_refusal(operation)
        if refusal is not None:
            return refusal
        for step in _steps(operation):
            refusal = _step_refusal(step, ttl_floor_ms, ttl_max_ms)
            if refusal is not None:
                return refusal
        return None
    return _step_refusal(operation, ttl_floor_ms, ttl_max_ms)


def _step_refusal(
    step: Operation | Range, ttl_floor_ms: int, ttl_max_ms: int
) -> RaftdError | None:
    if isinstance(step, Put | PutWith):
        if not 0 <= step.lease <= MAX_LEASE_ID:
            return BadRequest("An id of a lease is a number from 1 to 2**63 - 1.")
        return put_refusal(step.key, step.value)
    if isinstance(step, DeleteRange | DeleteRangeWith):
        return _span_refusal(step.key, step.range_end)
    if isinstance(step, Range):
        return range_refusal(step)
    if isinstance(step, GrantLease):
        return _grant_refusal(step, ttl_floor_ms, ttl_max_ms)
    if isinstance(step, RevokeLease) and not 0 < step.id <= MAX_LEASE_ID:
        return BadRequest("An id of a lease is a number from 1 to 2**63 - 1.")
    if isinstance(step, Compact) and step.revision < 1:
        return BadRequest("A revision to compact to is at least 1.")
    return None


def _grant_refusal(grant: GrantLease, floor_ms: int, max_ms: int) -> RaftdError | None:
    if not 0 < grant.id <= MAX_LEASE_ID:
        return BadRequest("An id of a lease is a number from 1 to 2**63 - 1.")
    if not floor_ms <= grant.ttl_ms <= max_ms or grant.ttl_ms % 1000:
        return BadRequest(
            f"The TTL of a lease is a whole number of seconds from {floor_ms // 1000} to "
            f"{max_ms // 1000}."
        )
    return None


def _span_refusal(key: bytes, range_end: bytes) -> RaftdError | None:
    if not range_end:
        return key_refusal(key)
    if not key:
        return BadRequest("A range must begin with a key of at least one byte.")
    if len(key) > MAX_END_BYTES or len(range_end) > MAX_END_BYTES:
        return BadRequest(f"An end of a range is longer than {MAX_END_BYTES} bytes.")
    return None


# -- transactions ------------------------------------------------------------------


def _transaction_refusal(transaction: Transaction) -> RaftdError | None:
    # Its depth first: all the rest calls itself that often.
    if _is_deeper(transaction, MAX_NESTING):
        return BadRequest(f"Transactions may be nested {MAX_NESTING} deep.")
    refusal = refusal_of(transaction)
    if refusal is not None:
        return error_of(refusal)
    for compare in _compares(transaction):
        if compare.target not in FIELDS or not compare.target:
            return BadRequest("A compare does not say what it looks at.")
        if compare.relation not in RELATIONS:
            return BadRequest("A compare does not say how it compares.")
        found = _span_refusal(compare.key, compare.range_end)
        if found is not None:
            return found
    return None


def _is_deeper(transaction: Transaction, depth: int) -> bool:
    steps = (*transaction.success, *transaction.failure)
    nested = [step for step in steps if isinstance(step, Transaction)]
    return bool(nested) and (depth <= 1 or any(_is_deeper(t, depth - 1) for t in nested))


def _steps(transaction: Transaction) -> Iterator[Step]:
    """Every step that is no transaction, of both sides."""
    for step in (*transaction.success, *transaction.failure):
        if isinstance(step, Transaction):
            yield from _steps(step)
        else:
            yield step


def _compares(transaction: Transaction) -> Iterator[Compare]:
    yield from transaction.compares
    for step in (*transaction.success, *transaction.failure):
        if isinstance(step, Transaction):
            yield from _compares(step)
