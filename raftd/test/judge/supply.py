"""
Dead ends that can be told at once: a value that is gone for good.

A client saw a value; so before a value is overwritten all that saw it must
have had their turn, unless something is left that may put it once more.  Where
every write has a value of its own this leaves the search little to guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raftd.test.judge.calls import (
    Append,
    Call,
    CompareAndSet,
    Get,
    Put,
    Scalar,
    Transaction,
)
from raftd.test.judge.history import Operation
from raftd.test.judge.model import State

_Value = tuple[str, Scalar]


class Supply:
    """Who saw each value of each key, and who may have put it, by their numbers."""

    def __init__(
        self,
        answered: Sequence[Operation],
        opened: Sequence[Operation],
        ignored: int | None = None,
    ) -> None:
        """What the answered one of the number `ignored` saw does not count."""
        self._wanted: dict[_Value, list[int]] = {}
        self._put: dict[_Value, list[int]] = {}
        self._opened: dict[_Value, list[int]] = {}
        for number, operation in enumerate(answered):
            for value in _seen(operation) if number != ignored else ():
                self._wanted.setdefault(value, []).append(number)
            for value in _written(operation.call):
                self._put.setdefault(value, []).append(number)
        for number, operation in enumerate(opened):
            for value in _written(operation.call):
                self._opened.setdefault(value, []).append(number)
        # Of what is appended to, a value may come about in many ways.
        calls = [operation.call for operation in (*answered, *opened)]
        self._exempt = {key for call in calls for key in _appended(call)}

    def is_lost(self, before: State, after: State, low: int, mask: int, used: int) -> bool:
        """
        Whether going from one state to the other loses a value that is wanted yet.

        Done are the answered operations below `low` and in `mask`, counted from
        there, and the open ones in `used`.
        """
        rows = dict(after.rows)
        for key, row in before.rows:
            now = rows.get(key)
            if now is not None and now.value == row.value:
                continue
            value = (key, row.value)
            wanted = self._wanted.get(value)
            if (
                wanted is not None
                and key not in self._exempt
                and _any_left(wanted, low, mask)
                and not _any_left(self._put.get(value, ()), low, mask)
                and all(used >> n & 1 for n in self._opened.get(value, ()))
            ):
                return True
        return False


def _any_left(numbers: Sequence[int], low: int, mask: int) -> bool:
    """Whether one of these, which are sorted, is yet to come."""
    for number in reversed(numbers):
        if number < low:
            return False
        if not mask >> (number - low) & 1:
            return True
    return False


def _seen(operation: Operation) -> Iterator[_Value]:
    """Values that must have been there when it took effect."""
    call, result = operation.call, operation.result
    if result is None:
        return
    if isinstance(call, Get) and isinstance(result.value, str | int):
        yield call.key, result.value
    elif isinstance(call, CompareAndSet) and result.succeeded is True:
        yield from () if call.expected is None else ((call.key, call.expected),)


def _written(call: Call) -> Iterator[_Value]:
    """Values that it may put."""
    if isinstance(call, Put | CompareAndSet):
        yield call.key, call.value
    elif isinstance(call, Transaction):
        for step in (*call.success, *call.failure):
            yield from _written(step)


def _appended(call: Call) -> Iterator[str]:
    if isinstance(call, Append):
        yield call.key
    elif isinstance(call, Transaction):
        for step in (*call.success, *call.failure):
            yield from _appended(step)
