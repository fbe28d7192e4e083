"""
Transactions: what they may consist of, which way they go, and whether they can.

A transaction is looked at in three rounds, and only then carried out:
`refusal_of` looks at it alone, `choose` evaluates its compares, and
`raftd.kv.execution` asks whether what was chosen can be carried out.  So one
that is refused has changed nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterator
from typing import Any

import msgspec

from raftd.kv.operations import (
    EQUAL,
    GREATER,
    LESS,
    NOT_EQUAL,
    VALUE,
    Compare,
    DeleteRangeWith,
    GrantLease,
    PutWith,
    Range,
    Step,
    Transaction,
)
from raftd.kv.ranges import FIELDS, View, end_of
from raftd.kv.refusals import REFUSALS, Refusal
from raftd.kv.results import KeyValue
from raftd.kv.versions import STEP_KEYS

#: Operations in a transaction, those of nested ones and the nested ones
#: themselves included, of whichever side has more; and compares in each.
MAX_OPERATIONS = 128
#: Compares and operations in all, those of both sides and of nested ones: what
#: looking at a transaction takes grows with the square of it.
MAX_PARTS = 4 * MAX_OPERATIONS

#: A step that is no transaction.
SimpleStep = PutWith | DeleteRangeWith | Range | GrantLease


class Chosen(msgspec.Struct, frozen=True):
    """A transaction whose compares were evaluated, and what is to be carried out of it."""

    succeeded: bool
    steps: list[SimpleStep | Chosen]


def simple_steps(chosen: Chosen) -> Iterator[SimpleStep]:
    """All that is to be carried out, in order."""
    for step in chosen.steps:
        if isinstance(step, Chosen):
            yield from simple_steps(step)
        else:
            yield step


# -- by itself -------------------------------------------------------------------


def refusal_of(transaction: Transaction) -> Refusal | None:
    """Why it can never be carried out, whatever the state is; None if it may be."""
    if _operations(transaction) > MAX_OPERATIONS or _parts(transaction) > MAX_PARTS:
        return REFUSALS["too_many_operations"]
    malformed = _malformed(transaction)
    if malformed is not None:
        return malformed
    if _touched(transaction.success) is None or _touched(transaction.failure) is None:
        return REFUSALS["duplicate_key"]
    return None


def _operations(transaction: Transaction) -> int:
    return max(
        len(transaction.compares),
        *(
            len(steps) + sum(_operations(s) for s in steps if isinstance(s, Transaction))
            for steps in (transaction.success, transaction.failure)
        ),
    )


def _parts(transaction: Transaction) -> int:
    steps = (*transaction.success, *transaction.failure)
    nested = sum(_parts(s) for s in steps if isinstance(s, Transaction))
    return len(transaction.compares) + len(steps) + nested


def _malformed(transaction: Transaction) -> Refusal | None:
    for compare in transaction.compares:
        if not compare.key:
            return REFUSALS["empty_key"]
        if isinstance(compare.operand, bytes) is not (compare.target == VALUE):
            return REFUSALS["unknown_operation"]
    for steps in (transaction.success, transaction.failure):
        for step in steps:
            if isinstance(step, Transaction):
                nested = _malformed(step)
                if nested is not None:
                    return nested
            elif not isinstance(step, GrantLease) and not step.key:
                return REFUSALS["empty_key"]
    return None


class _Touched(msgspec.Struct, frozen=True):
    """What a list of steps may put, and what it may delete: starts and ends."""

    puts: set[bytes]
    deletes: list[tuple[bytes, bytes | None]]

    def deletes_one_of(self, keys: set[bytes]) -> bool:
        return any(
            start <= key and (end is None or key < end)
            for start, end in self.deletes
            for key in keys
        )


def _touched(steps: tuple[Step, ...]) -> _Touched | None:
    """
    None if they put a key twice, or put one and delete it.

    Of a nested transaction either list may come about, but not both; so both
    are held against its neighbours and not against one another.
    """
    all_of = _Touched(set(), [])
    for step in steps:
        if isinstance(step, PutWith):
            one = _Touched({step.key}, [])
        elif isinstance(step, DeleteRangeWith):
            end = end_of(step.range_end) if step.range_end else step.key + b"\0"
            one = _Touched(set(), [(step.key, end)])
        elif isinstance(step, Transaction):
            success, failure = _touched(step.success), _touched(step.failure)
            if success is None or failure is None:
                return None
            one = _Touched(success.puts | failure.puts, success.deletes + failure.deletes)
        else:
            continue
        if (
            not all_of.puts.isdisjoint(one.puts)
            or all_of.deletes_one_of(one.puts)
            or one.deletes_one_of(all_of.puts)
        ):
            return None
        all_of.puts.update(one.puts)
        all_of.deletes.extend(one.deletes)
    return all_of


# -- against the state -------------------------------------------------------------


def choose(transaction: Transaction, view: View) -> Generator[None, None, Chosen]:
    """Evaluate the compares, in steps; `view` is the state before the whole."""
    succeeded = True
    for compare in transaction.compares:
        if not (yield from _holds(compare, view)):
            succeeded = False
            break
        if compare.range_end:
            # It may have looked at nearly `STEP_KEYS`, and so may the next.
            yield
    steps: list[SimpleStep | Chosen] = []
    for step in transaction.success if succeeded else transaction.failure:
        if isinstance(step, Transaction):
            steps.append((yield from choose(step, view)))
        else:
            steps.append(step)
    return Chosen(succeeded, steps)


def _holds(compare: Compare, view: View) -> Generator[None, None, bool]:
    if not compare.range_end:
        return _matches(compare, view.get(compare.key))
    start, end = compare.key, end_of(compare.range_end)
    if end is not None and end <= start:
        return _matches(compare, None)
    if not view.keys(start, end, 1, False):
        return _matches(compare, None)
    while keys := view.keys(start, end, STEP_KEYS, False):
        if not all(_matches(compare, view.get(key)) for key in keys):
            return False
        if len(keys) < STEP_KEYS:
            break
        start = keys[-1] + b"\0"
        yield
    return True


def _matches(compare: Compare, record: KeyValue | None) -> bool:
    operand: Any = compare.operand
    if record is not None:
        actual = FIELDS[compare.target](record)
    elif compare.target == VALUE:
        return False
    else:
        actual = 0
    return RELATIONS[compare.relation](actual, operand)


RELATIONS: dict[int, Callable[[Any, Any], bool]] = {
    EQUAL: operator.eq,
    NOT_EQUAL: operator.ne,
    LESS: operator.lt,
    GREATER: operator.gt,
}
