"""
A second opinion for tiny histories: every order of every choice, one after the other.

It shares nothing with the search but the shapes of calls and results: no
partitions, no memory, no model but a dictionary that is written to.  It knows
no revisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Final

from msgspec import UNSET

from raftd.test.judge.calls import (
    Append,
    Call,
    Compare,
    CompareAndSet,
    Delete,
    Get,
    Put,
    Range,
    Record,
    Result,
    Scalar,
    Transaction,
    is_inside,
)
from raftd.test.judge.history import Operation

#: Operations that it takes on: nine have 362,880 orders.
MAX_OPERATIONS: Final = 9

_Row = tuple[Scalar, int]


def has_order(operations: Sequence[Operation]) -> bool:
    """Whether there is one, all answers being as they were."""
    assert len(operations) <= MAX_OPERATIONS
    answered = [o for o in operations if o.returned is not None]
    opened = [o for o in operations if o.returned is None]
    return any(
        _can_be_ordered([*answered, *some], {})
        for number in range(len(opened) + 1)
        for some in combinations(opened, number)
    )


def _can_be_ordered(left: list[Operation], rows: dict[str, _Row]) -> bool:
    """Whether all that are left can go, one after the other; tries each as the next."""
    for operation in left:
        ends = [other.returned for other in left if other.returned is not None]
        if any(end < operation.invoked for end in ends):
            continue
        store = NaiveStore(dict(rows))
        if _agrees(operation.result, store.carry_out(operation.call)):
            others = [other for other in left if other is not operation]
            if _can_be_ordered(others, store.rows):
                return True
    return not left


def _agrees(seen: Any, real: Any) -> bool:
    """Whether all that was seen is so; revisions aside."""
    if seen is None:
        return True
    for name in ("value", "version", "count", "created", "succeeded"):
        looked_at = getattr(seen, name, UNSET)
        if looked_at is not UNSET and looked_at != getattr(real, name):
            return False
    for name in ("kvs", "results"):
        parts = getattr(seen, name, UNSET)
        if parts is UNSET:
            continue
        real_parts = getattr(real, name)
        if len(parts) != len(real_parts):
            return False
        if not all(map(_agrees, parts, real_parts)):
            return False
        if name == "kvs" and [kv.key for kv in parts] != [kv.key for kv in real_parts]:
            return False
    return True


class NaiveStore:
    """A dictionary of values and versions; whatever can be told is told."""

    def __init__(self, rows: dict[str, _Row]) -> None:
        self.rows = rows

    def carry_out(self, call: Call) -> Result:
        """Do it, and say everything about it."""
        return self._do(call, dict(self.rows))

    def _do(self, call: Call, before: dict[str, _Row]) -> Result:
        rows = self.rows
        if isinstance(call, Get):
            value, version = rows.get(call.key, (None, 0))
            return Result(value=value, version=version)
        if isinstance(call, Put):
            return self._put(call.key, call.value)
        if isinstance(call, Append):
            old = rows[call.key][0] if call.key in rows else ""
            return self._put(call.key, f"{old}{call.value}")
        if isinstance(call, CompareAndSet):
            present = rows[call.key][0] if call.key in rows else None
            if present != call.expected:
                return Result(succeeded=False)
            self._put(call.key, call.value)
            return Result(succeeded=True)
        if isinstance(call, Delete):
            keys = list(_inside(rows, call.key, call.end))
            for key in keys:
                del rows[key]
            return Result(count=len(keys))
        if isinstance(call, Range):
            keys = sorted(_inside(rows, call.key, call.end))
            shown = keys[: call.limit] if call.limit else keys
            kvs = tuple(Record(key, rows[key][0], version=rows[key][1]) for key in shown)
            return Result(kvs=kvs, count=len(keys))
        return self._transaction(call, before)

    def _put(self, key: str, value: Scalar) -> Result:
        version = self.rows[key][1] if key in self.rows else 0
        self.rows[key] = (value, version + 1)
        return Result(created=not version)

    def _transaction(self, call: Transaction, before: dict[str, _Row]) -> Result:
        succeeded = all(_holds(compare, before) for compare in call.compares)
        steps = call.success if succeeded else call.failure
        return Result(
            succeeded=succeeded, results=tuple(self._do(step, before) for step in steps)
        )


def _inside(rows: dict[str, _Row], key: str, end: str) -> Iterator[str]:
    return (k for k in rows if is_inside(k, key, end))


def _holds(compare: Compare, before: dict[str, _Row]) -> bool:
    rows: list[tuple[Scalar | None, int]] = [
        before[key] for key in _inside(before, compare.key, compare.end)
    ]
    for value, version in rows or [(None, 0)]:
        if compare.target == "value" and value is None:
            return False
        actual: Any = value if compare.target == "value" else version
        operand: Any = compare.operand
        if compare.relation == "=":
            holds = actual == operand
        elif compare.relation == "!=":
            holds = actual != operand
        elif compare.relation == "<":
            holds = actual < operand
        else:
            holds = actual > operand
        if not holds:
            return False
    return True
