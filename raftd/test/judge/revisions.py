"""
Revisions as one counter of the whole store, whatever the keys.

The search judges each key by itself, and with it the order of that key's
revisions.  What binds all keys is judged here, on those revisions that clients
were told: each change has one of its own, and the counter never goes back in
the order of real time.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from raftd.test.judge.calls import (
    Append,
    Call,
    CompareAndSet,
    Delete,
    Put,
    Result,
    Transaction,
    describe,
)
from raftd.test.judge.history import Operation


def changes(call: Call, result: Result) -> bool | None:
    """Whether it changed something; None if the answer does not say."""
    if isinstance(call, Put | Append):
        return True
    if isinstance(call, CompareAndSet):
        return None if result.succeeded is UNSET else result.succeeded
    if isinstance(call, Delete):
        return None if result.count is UNSET else result.count > 0
    if isinstance(call, Transaction):
        if result.succeeded is UNSET:
            return None
        steps = call.success if result.succeeded else call.failure
        results = result.results if result.results is not UNSET else (Result(),) * len(steps)
        found = [changes(step, part) for step, part in zip(steps, results, strict=False)]
        return True if True in found else None if None in found else False
    return False


def judge_revisions(operations: Sequence[Operation]) -> list[str]:
    """What is wrong with the revisions that were answered, in words; empty if nothing is."""
    told = [
        (operation, operation.result.revision, changes(operation.call, operation.result))
        for operation in operations
        if operation.result is not None and operation.result.revision is not UNSET
    ]
    wrong: list[str] = []
    owners: dict[int, Operation] = {}
    for operation, revision, changed in told:
        if not changed:
            continue
        if revision in owners:
            wrong.append(
                f"revision {revision} is that of two changes: "
                f"{_named(owners[revision])}; and {_named(operation)}"
            )
        owners[revision] = operation
    return wrong + _backwards(told)


def _backwards(told: Sequence[tuple[Operation, int, bool | None]]) -> list[str]:
    """Those that were told less than another one that had ended before they began."""
    begun = sorted(told, key=lambda each: each[0].invoked)
    ended = sorted(
        (each for each in told if each[0].returned is not None),
        key=lambda each: each[0].returned or 0,
    )
    wrong: list[str] = []
    position, greatest, latest = 0, 0, None
    for operation, revision, changed in begun:
        while position < len(ended) and (ended[position][0].returned or 0) < operation.invoked:
            if ended[position][1] > greatest:
                latest, greatest = ended[position][0], ended[position][1]
            position += 1
        if latest is not None and (revision < greatest or (changed and revision == greatest)):
            wrong.append(
                f"the revision went back: {_named(latest)}; and after it {_named(operation)}"
            )
    return wrong


def _named(operation: Operation) -> str:
    what = describe(operation.call, operation.result)
    return f"process {operation.process} (line {operation.invoked}) {what}"
