"""What tests of the store have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from raftd.core.messages import Command
from raftd.errors import RaftdError
from raftd.kv import execution, history, keys, ranges, transactions, versions, walks
from raftd.kv.operations import Operation, encode_operation
from raftd.kv.records import size_of
from raftd.kv.results import Result, decode_result
from raftd.kv.store import Store
from raftd.kv.versions import Older, records_of

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
    patch(versions, "MAX_TUPLE_VERSIONS", 2)
    patch(walks, "SLICE_KEYS", 3)
    patch(walks, "SLICE_BYTES", 60)


def check_invariants(store: Store) -> None:
    """What the classes say of themselves, between two operations."""
    inside = store._versions
    live, deleted = list(inside.live), list(inside.deleted)
    newest = {key: r for shard in inside._records for key, r in shard.items()}
    older = {key: records_of(o) for shard in inside._older for key, o in shard.items()}
    assert live == sorted(newest)
    assert len(live) == inside.count == len(store)
    assert deleted == sorted(key for key in older if key not in newest)
    size = sum(map(size_of, newest.values()))
    attached: dict[int, list[bytes]] = {}
    for key, record in newest.items():
        assert record.key == key
        assert record.version
        if record.lease:
            attached.setdefault(record.lease, []).append(key)
    several = [o for shard in inside._older for o in shard.values() if isinstance(o, Older)]
    assert all(len(o.records) > 1 for o in several)
    for key, records in older.items():
        all_of = [*records, *([newest[key]] if key in newest else [])]
        revisions = [record.mod_revision for record in all_of]
        assert revisions == sorted(set(revisions))
        assert all(record.key == key for record in all_of)
        below = [r for r in all_of if r.mod_revision <= store.compacted_revision]
        assert len(below) <= 1
        assert all(record.version for record in below)
        assert key in newest or not records[-1].version
        size += sum(map(size_of, records))
    assert size == inside.size_bytes == store.size_bytes
    assert inside.newest <= store.revision == inside.history.last
    for id in inside.leases._keys:
        assert inside.leases.keys(id, b"", 1 << 30) == sorted(attached.pop(id))
    assert not attached
