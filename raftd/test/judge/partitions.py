"""
Parts of a history that can be judged one by one.

Linearizability is local (Herlihy and Wing, 1990, theorem 1): a history is
linearizable if it is for each object.  An object here is a set of keys that no
operation connects with others: a key, if operations are of one key each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from raftd.test.judge.calls import Call, Delete, Range, Result, Transaction, is_inside
from raftd.test.judge.history import Operation

#: A key, or the range from it up to an end.
Span = tuple[str, str]


def partition(operations: Sequence[Operation]) -> list[tuple[list[str], list[Operation]]]:
    """
    The operations by the keys that they connect, which come sorted.

    A range has every key of the history that is inside it.
    """
    spans = [list(_spans(operation.call)) for operation in operations]
    keys = {key for each in spans for key, end in each if not end}
    keys |= {key for operation in operations for key in _answered(operation.result)}
    # A range without a key is an object of its own, by its first key.
    keys |= {key for each in spans for key, end in each if not _has_any(keys, key, end)}
    groups = _Groups(keys)
    ordered = sorted(keys)
    firsts: list[str] = []
    for each in spans:
        touched = [key for span in each for key in _inside(ordered, span)]
        # One that touches nothing (an empty transaction) may be with any key.
        touched = touched or ordered[:1]
        firsts.append(touched[0] if touched else "")
        for key in touched[1:]:
            groups.join(touched[0], key)
    found: dict[str, list[Operation]] = {}
    for operation, first in zip(operations, firsts, strict=True):
        found.setdefault(groups.root(first), []).append(operation)
    members: dict[str, list[str]] = {}
    for key in ordered:
        members.setdefault(groups.root(key), []).append(key)
    return [(members.get(root, []), found[root]) for root in sorted(found)]


class _Groups:
    """Sets of keys that are joined (union-find)."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._parent = {key: key for key in keys}

    def root(self, key: str) -> str:
        parent = self._parent.setdefault(key, key)
        while parent != key:
            # Halve the way, for those who come next.
            self._parent[key] = key = self._parent[parent]
            parent = self._parent[key]
        return key

    def join(self, one: str, other: str) -> None:
        self._parent[self.root(other)] = self.root(one)


def _spans(call: Call) -> Iterator[Span]:
    if isinstance(call, Transaction):
        yield from ((compare.key, compare.end) for compare in call.compares)
        for step in (*call.success, *call.failure):
            yield from _spans(step)
    elif isinstance(call, Delete | Range):
        yield call.key, call.end
    else:
        yield call.key, ""


def _answered(result: Result | None) -> Iterator[str]:
    """Keys that an answer shows, whoever may have put them there."""
    if result is not None:
        yield from (record.key for record in result.kvs or ())
        for part in result.results or ():
            yield from _answered(part)


def _inside(ordered: Sequence[str], span: Span) -> Iterator[str]:
    key, end = span
    return iter((key,)) if not end else (k for k in ordered if is_inside(k, key, end))


def _has_any(keys: Iterable[str], key: str, end: str) -> bool:
    return not end or any(is_inside(k, key, end) for k in keys)
