"""What tests of the store have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

from raftd.core.messages import Command
from raftd.errors import RaftdError
from raftd.kv import execution, history, keys, ranges, transactions, versions, walks
from raftd.kv.operations import Operation, encode_operation
from raftd.kv.records import FIRST_REVISION, size_of
from raftd.kv.results import KeyValue, Result, decode_result
from raftd.kv.store import Store

Between = Callable[[], None]


def apply_bytes(
    store: Store, operation: bytes, between: Between | None = None, index: int = 1
) -> tuple[bytes, int]:
    """The encoded result, and in how many steps it came; `between` is called between them."""
    result = store.apply(index, 0, Command(operation))
    if isinstance(result, bytes):
        return result, 0
    steps = 0
    while True:
        try:
            next(result)
        except StopIteration as done:
            value: bytes = done.value
            return value, steps
        steps += 1
        if between is not None:
            between()


def apply(
    store: Store, operation: Operation, between: Between | None = None
) -> Result | RaftdError:
    """What the operation came to."""
    return decode_result(apply_bytes(store, encode_operation(operation), between)[0])


def code_of(outcome: object) -> str:
    """The code of a refusal."""
    assert isinstance(outcome, RaftdError), outcome
    return outcome.code


def drained(steps: Generator[None, None, Any]) -> tuple[Any, int]:
    """What came in the end, and after how many steps."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value, count
        count += 1


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, again and again."""
    position = 0
    while position < len(data):
        for size in sizes:
            yield data[position : position + size]
            position += size


def restored(
    data: bytes, sizes: Sequence[int] = (1 << 30,), into: Store | None = None
) -> Store:
    """A store from a snapshot."""
    store = Store() if into is None else into
    restore = store.restore()
    for piece in cut(data, sizes):
        restore.write(piece)
    restore.finish()
    return store


def make_small(patch: Callable[[Any, str, Any], object], step: int = 2) -> None:
    """Let every bound be met with a handful of keys."""
    for module in (execution, ranges, transactions, versions):
        patch(module, "STEP_KEYS", step)
    patch(keys, "MAX_CHUNK_KEYS", 3)
    patch(keys, "_TOGETHER", 2)
    patch(history, "PART_RECORDS", 2)
    patch(history, "_CHUNK_BITS", 2)
    patch(history, "CHUNK_REVISIONS", 4)
    patch(history, "_WITHIN", 3)
    patch(history, "_REPLACED_SHARDS", 2)
    patch(versions, "_MARK", 1)
    patch(walks, "SLICE_KEYS", 3)
    patch(walks, "SLICE_BYTES", 60)


def _order_of_changes(inside: versions.Versions) -> Callable[[KeyValue], int]:
    """Where a record is among all changes."""
    history = inside.history
    walk = history.walk(history.forgotten, history.last)
    order = {id(record): n for n, record in enumerate(chain.from_iterable(walk))}
    return lambda record: order[id(record)]


def _check_portions(store: Store) -> None:
    """Portions of compactions have as many keys as they may, and no more."""
    begin = max(store.compacted_revision, FIRST_REVISION)
    keys_of = [len(store.changed_keys(r)) for r in range(begin + 1, store.revision + 1)]
    assert all(keys_of)
    for most in (1, 2, 5, 9):
        for after in range(begin, min(begin + 9, store.revision)):
            end = store.portion_end(most, after)
            changed = sum(keys_of[after - begin : end - begin])
            assert changed <= most or end == after + 1
            assert end == store.revision or changed + keys_of[end - begin] > most


def check_invariants(store: Store) -> None:
    """What the classes say of themselves, between two operations."""
    inside = store._versions
    live, deleted = list(inside.live), list(inside.deleted)
    newest = {key: r for shard in inside._newest for key, r in shard.items()}
    forgotten = inside.history.forgotten
    assert forgotten == max(store.compacted_revision, FIRST_REVISION)
    assert live == sorted(key for key, record in newest.items() if record.version)
    assert len(live) == inside.count == len(store)
    assert deleted == sorted(key for key, record in newest.items() if not record.version)
    attached: dict[int, list[bytes]] = {}
    size = 0
    tombstones: list[KeyValue] = []
    marks: dict[bytes, list[int]] = {}
    for key, record in newest.items():
        assert record.mod_revision > forgotten or record.version
        if record.lease:
            attached.setdefault(record.lease, []).append(key)
        all_of: list[KeyValue] = []
        before: KeyValue | None = record
        while before is not None:
            all_of.insert(0, before)
            before = inside.replaced_of(key, before.mod_revision)
        assert all(record.key == key for record in all_of)
        revisions = [record.mod_revision for record in all_of]
        assert revisions == sorted(set(revisions))
        assert all(revision > forgotten for revision in revisions[1:])
        size += sum(size_of(record) for record in all_of if record.version)
        tombstones += [r for r in all_of if not r.version and r.mod_revision > forgotten]
        marked = [r.mod_revision for b, r in pairwise(all_of) if not b.version & versions._MARK]
        if marked:
            marks[key] = marked
    assert list(inside._tombstones) == sorted(tombstones, key=_order_of_changes(inside))
    size += sum(map(size_of, tombstones))
    there = {key: m for shard in inside._marks for key, m in shard.items()}
    assert marks == {key: [m for m in there[key] if m > forgotten] for key in there}
    assert all(m[len(m) // 2] > forgotten for m in there.values())
    assert not inside._draft
    assert size == inside.size_bytes == store.size_bytes
    assert inside.newest <= store.revision == inside.history.last
    for id in inside.leases._keys:
        assert inside.leases.keys(id, b"", 1 << 30) == sorted(attached.pop(id))
    assert not attached
    _check_portions(store)
