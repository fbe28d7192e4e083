"""
Revisions as one counter of the whole store, whatever the keys.

The search judges each key by itself, and with it the order of that key's
revisions.  What binds all keys is judged here, on those revisions that clients
were told or shown: each change has one of its own, which no key has that it
did not change, and the counter never goes back in the order of real time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET

from raftd.test.judge.calls import (
    Append,
    Call,
    CompareAndSet,
    Delete,
    Get,
    Put,
    Range,
    Record,
    Result,
    Transaction,
    describe,
    is_inside,
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
        found = [changes(step, part) for step, part in taken(call, result)]
        return True if True in found else None if None in found else False
    return False


def taken(call: Transaction, result: Result) -> Iterator[tuple[Call, Result]]:
    """The steps that it may have taken, each with what was told of it."""
    ways = (True, False) if result.succeeded is UNSET else (result.succeeded,)
    for way in ways:
        steps = call.success if way else call.failure
        results = result.results if result.results is not UNSET else (Result(),) * len(steps)
        yield from zip(steps, results, strict=False)


def _may_change(call: Call, result: Result, key: str) -> bool:
    """Whether it may have changed this key."""
    if isinstance(call, Transaction):
        return any(_may_change(step, part, key) for step, part in taken(call, result))
    if changes(call, result) is False:
        return False
    return is_inside(key, call.key, call.end if isinstance(call, Delete) else "")


def _shown(call: Call, result: Result) -> Iterator[tuple[str, int]]:
    """Keys, and revisions that they had: each changed it."""
    if isinstance(call, Transaction):
        for step, part in taken(call, result):
            yield from _shown(step, part)
    records: list[tuple[str, Result | Record]] = []
    if isinstance(call, Get):
        records.append((call.key, result))
    elif isinstance(call, Range):
        records += [(record.key, record) for record in result.kvs or ()]
    for key, record in records:
        for revision in (record.create_revision, record.mod_revision):
            if revision:
                yield key, revision


def judge_revisions(operations: Sequence[Operation]) -> list[str]:
    """What is wrong with the revisions that were answered, in words; empty if nothing is."""
    told = [
        _Told(operation, result) for operation in operations if (result := operation.result)
    ]
    wrong: list[str] = []
    owners: dict[int, _Told] = {}
    for each in told:
        if each.revision is None or not each.changed:
            continue
        if each.revision in owners:
            wrong.append(
                f"revision {each.revision} is that of two changes: "
                f"{_named(owners[each.revision].operation)}; and {_named(each.operation)}"
            )
        owners[each.revision] = each
    return wrong + _strangers(told, owners) + _backwards(told)


class _Told:
    """
    What an answer says of revisions.

    `revision` is the store's after it, None if it does not say; `changed`, whether that
    is its own; `shown` are keys with revisions that they had; `least` is what the store
    had reached when it came.
    """

    def __init__(self, operation: Operation, result: Result) -> None:
        self.operation = operation
        self.revision = None if result.revision is UNSET else result.revision
        self.changed = changes(operation.call, result)
        self.shown = list(_shown(operation.call, result))
        self.least = max([self.revision or 0, *(revision for _, revision in self.shown)])

    def may_have_changed(self, key: str) -> bool:
        call, result = self.operation.call, self.operation.result
        return result is not None and _may_change(call, result, key)


def _strangers(told: Sequence[_Told], owners: dict[int, _Told]) -> list[str]:
    """Keys with the revision of a change that was not theirs."""
    wrong = []
    for each in told:
        for key, revision in each.shown:
            owner = owners.get(revision)
            if owner is not None and not owner.may_have_changed(key):
                wrong.append(
                    f"{key!r} has revision {revision} to {_named(each.operation)}; "
                    f"but that is {_named(owner.operation)}"
                )
    return wrong


def _backwards(told: Sequence[_Told]) -> list[str]:
    """Those that were told less than another one had seen that had ended before they began."""
    begun = sorted(told, key=lambda each: each.operation.invoked)
    ended = sorted(
        (each for each in told if each.operation.returned is not None),
        key=lambda each: each.operation.returned or 0,
    )
    wrong: list[str] = []
    position, greatest, latest = 0, 0, None
    for each in begun:
        operation, revision = each.operation, each.revision
        while (
            position < len(ended)
            and (ended[position].operation.returned or 0) < operation.invoked
        ):
            if ended[position].least > greatest:
                latest, greatest = ended[position].operation, ended[position].least
            position += 1
        if latest is None or revision is None:
            continue
        if revision < greatest or (each.changed and revision == greatest):
            wrong.append(
                f"the revision went back: {_named(latest)}; and after it {_named(operation)}"
            )
    return wrong


def _named(operation: Operation) -> str:
    what = describe(operation.call, operation.result)
    return f"process {operation.process} (line {operation.invoked}) {what}"
