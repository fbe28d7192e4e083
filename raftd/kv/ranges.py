"""
Ranges, as etcd means them: fetch, filter, sort, cut.

A range is evaluated in steps, against the store as of one revision.  Between
two steps other operations may be applied, and none of them changes what there
was; only a compaction could, and whoever draws the steps looks out for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from operator import attrgetter
from typing import Any

from raftd.kv.operations import (
    CREATE_REVISION,
    EVERY_KEY,
    KEY,
    LEASE,
    MOD_REVISION,
    VALUE,
    VERSION,
    Range,
)
from raftd.kv.results import KeyValue, RangeResult
from raftd.kv.versions import STEP_KEYS, Versions

#: Records in one answer.
MAX_RANGE_KEYS = 10_000
#: Bytes of keys and values in the answer to a range, about: less than one
#: record more.
MAX_RANGE_BYTES = 8 << 20
#: Likewise in the result of an operation that went through the log, which may
#: have to travel between nodes: of all its ranges and records before together.
#: Results are kept for retries, with the state: so these bounds are part of what
#: the state machine is, and are the same on all nodes.
MAX_RESULT_BYTES = 2 << 20

_NO_BOUND = 1 << 64

#: What a record takes in an answer beside its key and its value, about.
_RECORD_BYTES = 24

#: What a range can be sorted by, and a compare look at.
FIELDS: dict[int, Callable[[KeyValue], Any]] = {
    KEY: attrgetter("key"),
    VALUE: attrgetter("value"),
    VERSION: attrgetter("version"),
    CREATE_REVISION: attrgetter("create_revision"),
    MOD_REVISION: attrgetter("mod_revision"),
    LEASE: attrgetter("lease"),
}


def end_of(range_end: bytes) -> bytes | None:
    """The end of a range that has one in an operation; None: there is no end."""
    return None if range_end == EVERY_KEY else range_end


class Budget:
    """How many bytes of records may still go into an answer; one always may, at first."""

    __slots__ = ("_left", "_untouched")

    def __init__(self, left: int) -> None:
        self._left = left
        self._untouched = True

    def takes(self, record: KeyValue) -> bool:
        """Whether there was room for `record`, which is then used."""
        size = len(record.key) + len(record.value) + _RECORD_BYTES
        if size > self._left and not self._untouched:
            return False
        self._left -= size
        self._untouched = False
        return True

    def use(self, record: KeyValue) -> None:
        """`record` goes into the answer in any case."""
        self._left -= len(record.key) + len(record.value) + _RECORD_BYTES
        self._untouched = False


class View:
    """The store as of `revision`, or, if that is being made, as it is by now."""

    __slots__ = ("_versions", "revision")

    def __init__(self, versions: Versions, revision: int) -> None:
        self._versions = versions
        self.revision = revision

    def get(self, key: bytes) -> KeyValue | None:
        """The record of `key`; None if it was not there."""
        return self._versions.at(key, self.revision)

    def _is_newest(self) -> bool:
        """Whether nothing was written since, so that deleted keys are of no interest."""
        return self._versions.newest <= self.revision

    def keys(
        self, start: bytes, end: bytes | None, limit: int, descending: bool
    ) -> list[bytes]:
        """
        The first `limit` keys of a range, or the last, from there on; some may
        not have been there.
        """
        versions = self._versions
        if self._is_newest():
            pick = versions.live.last if descending else versions.live.range
        else:
            pick = versions.last_keys if descending else versions.keys
        return pick(start, end, limit)

    def count(self, start: bytes, end: bytes | None) -> Generator[None, None, int]:
        """How many keys there were in a range."""
        if end is not None and end <= start:
            return 0
        versions, history = self._versions, self._versions.history
        live = versions.live.count(start, end)
        if self._is_newest():
            return live
        # Pages of one listing read one revision, which is soon an old one; so
        # that they need not look at every key of the range each time.
        if versions.newest <= history.last and history.last - self.revision <= live:
            return (yield from self._count_back(start, end, live))
        count = 0
        while keys := versions.keys(start, end, STEP_KEYS):
            count += sum(versions.at(key, self.revision) is not None for key in keys)
            if len(keys) < STEP_KEYS:
                break
            start = keys[-1] + b"\0"
            yield
        return count

    def _count_back(
        self, start: bytes, end: bytes | None, count: int
    ) -> Generator[None, None, int]:
        """The same from `count`, which is that of now, and what was changed since."""
        at, revision, now = self._versions.at, self.revision, self._versions.history.last
        changed: set[bytes] = set()
        done = 0
        for records in self._versions.history.walk(revision, now):
            for record in records:
                key = record.key
                if key in changed or key < start or (end is not None and key >= end):
                    continue
                changed.add(key)
                count += (at(key, revision) is not None) - (at(key, now) is not None)
            done += len(records)
            if done >= STEP_KEYS:
                done = 0
                yield
        return count


def evaluate(
    view: View, query: Range, revision: int, budget: Budget
) -> Generator[None, None, RangeResult]:
    """The answer to `query`, which says `revision` of itself."""
    if not query.range_end:
        return _single(view, query, revision, budget)
    count = yield from view.count(query.key, end_of(query.range_end))
    if query.count_only:
        return RangeResult(revision, count, False, [])
    limit = query.limit if 0 < query.limit < MAX_RANGE_KEYS else MAX_RANGE_KEYS
    draw = _in_order if query.sort_by == KEY else _sorted
    found, more = yield from draw(view, query, limit, budget)
    return RangeResult(revision, count, more, found)


def _single(view: View, query: Range, revision: int, budget: Budget) -> RangeResult:
    record = view.get(query.key)
    if record is None:
        return RangeResult(revision, 0, False, [])
    if query.count_only or not _filter(query)(record):
        return RangeResult(revision, 1, False, [])
    if query.keys_only:
        record = _without_value(record)
    if budget.takes(record):
        return RangeResult(revision, 1, False, [record])
    return RangeResult(revision, 1, True, [])


_Found = tuple[list[KeyValue], bool]


def _in_order(
    view: View, query: Range, limit: int, budget: Budget
) -> Generator[None, None, _Found]:
    """The records in the order of their keys, and whether there are more."""
    start, end = query.key, end_of(query.range_end)
    passes = _filter(query)
    found: list[KeyValue] = []
    # One more than are wanted, to see whether there are more.
    step = min(limit + 1, STEP_KEYS)
    while keys := view.keys(start, end, step, query.descending):
        for key in keys:
            record = view.get(key)
            if record is None or not passes(record):
                continue
            if query.keys_only:
                record = _without_value(record)
            if len(found) == limit or not budget.takes(record):
                return found, True
            found.append(record)
        if len(keys) < step:
            break
        if query.descending:
            end = keys[-1]
        else:
            start = keys[-1] + b"\0"
        step = STEP_KEYS
        yield
    return found, False


def _sorted(
    view: View, query: Range, limit: int, budget: Budget
) -> Generator[None, None, _Found]:
    """
    The first records in another order; those that are equal in it, by their keys.

    Only the best so far are kept, so that each step sorts a bounded number.
    """
    start, end = query.key, end_of(query.range_end)
    passes, field = _filter(query), FIELDS[query.sort_by]
    best: list[KeyValue] = []
    count = 0
    while keys := view.keys(start, end, STEP_KEYS, False):
        records = [
            record for key in keys if (record := view.get(key)) is not None and passes(record)
        ]
        count += len(records)
        best = sorted(best + records, key=field, reverse=query.descending)[:limit]
        if len(keys) < STEP_KEYS:
            break
        start = keys[-1] + b"\0"
        yield
    found: list[KeyValue] = []
    for record in map(_without_value, best) if query.keys_only else best:
        if not budget.takes(record):
            break
        found.append(record)
    return found, count > len(found)


def _without_value(record: KeyValue) -> KeyValue:
    return KeyValue(
        record.key,
        b"",
        record.create_revision,
        record.mod_revision,
        record.version,
        record.lease,
    )


def _filter(query: Range) -> Callable[[KeyValue], bool]:
    """Which records pass; a bound of 0 is none."""
    min_mod, max_mod = query.min_mod_revision, query.max_mod_revision or _NO_BOUND
    min_create, max_create = query.min_create_revision, query.max_create_revision or _NO_BOUND
    if max_mod == max_create == _NO_BOUND and min_mod <= 0 and min_create <= 0:
        return _every
    return lambda record: (
        min_mod <= record.mod_revision <= max_mod
        and min_create <= record.create_revision <= max_create
    )


def _every(record: KeyValue) -> bool:
    return True
