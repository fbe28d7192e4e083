"""
What the store takes: time for each operation, memory for each key, and the
longest that it keeps the reactor at a time.

    python bench/store.py [KEYS]

KEYS is 100,000 unless given; keys have 31 bytes and values 64.  Needs raftd
installed, or PYTHONPATH=.  A million keys take a minute or two, and 2 GB.

Times are those of the processor, so that the longest step is not that in which
something else was run.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Callable, Generator, Iterator

from raftd.core.messages import Command
from raftd.kv.operations import (
    GREATER,
    VERSION,
    Compact,
    Compare,
    DeleteRange,
    GrantLease,
    Operation,
    Put,
    PutWith,
    Range,
    RevokeLease,
    Transaction,
    encode_operation,
)
from raftd.kv.store import Store

VALUE = b"v" * 64
ROUND = 1000
ROUNDS = 20

clock = time.thread_time


def key(n: int) -> bytes:
    return b"%031d" % n


def command(operation: Operation) -> Command:
    return Command(encode_operation(operation))


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Steps:
    """The steps of something long: how many, how long in all, and the worst ones."""

    def __init__(self) -> None:
        self.taken_s: list[float] = []
        self.result: object = None

    def run(self, begin: Callable[[], object]) -> Steps:
        self._step(lambda: setattr(self, "result", begin()))
        result = self.result
        if isinstance(result, Generator | Iterator):
            while self._step(lambda: self._next(result)):
                pass
        return self

    def _next(self, steps: Iterator[object]) -> None:
        try:
            self.last = next(steps)
        except StopIteration as end:
            self.result = end.value
            raise

    def _step(self, act: Callable[[], None]) -> bool:
        began = clock()
        try:
            act()
        except StopIteration:
            return False
        finally:
            self.taken_s.append(clock() - began)
        return True

    def __str__(self) -> str:
        worst = sorted(self.taken_s)
        return (
            f"{sum(worst):8.3f} s in {len(worst):6,} steps; "
            f"the longest {worst[-1] * 1e3:6.2f} ms, 99 % below "
            f"{worst[int(len(worst) * 0.99)] * 1e3:5.2f} ms"
        )


def microseconds(act: Callable[[int], object]) -> float:
    """The best of many rounds, for one call."""
    best = 1e9
    for n in range(ROUNDS):
        began = clock()
        for i in range(n * ROUND, (n + 1) * ROUND):
            act(i)
        best = min(best, clock() - began)
    return best / ROUND * 1e6


def row(name: str, figure: object) -> None:
    print(f"{name:42} {figure}", flush=True)


def compare_and_set(n: int) -> Transaction:
    """Put if it is there, else read it."""
    compare = Compare(key(n), b"", VERSION, GREATER, 0)
    return Transaction((compare,), (PutWith(key(n), VALUE),), (Range(key(n)),))


def fill(store: Store, keys: int) -> None:
    """New keys in random order; the worst put, which may make a table grow."""
    order = random.Random(0).sample(range(keys), keys)
    worst = total = 0.0
    for n in order:
        put = command(Put(key(n), VALUE))
        began = clock()
        store.apply(1, 0, put)
        took = clock() - began
        total += took
        worst = max(worst, took)
    row("put, new key", f"{total / keys * 1e6:8.2f} us; the longest {worst * 1e3:6.2f} ms")


def measure_operations(store: Store, keys: int) -> None:
    some = [random.Random(1).randrange(keys) for _ in range(ROUND * ROUNDS)]
    puts = [command(Put(key(n), VALUE)) for n in some]
    names = [key(n) for n in some]
    row("put, existing key", f"{microseconds(lambda i: store.apply(1, 0, puts[i])):8.2f} us")
    revision = store.revision - ROUND
    sets = [command(compare_and_set(n)) for n in some]
    row("compare and set", f"{microseconds(lambda i: store.apply(1, 0, sets[i])):8.2f} us")
    row("get", f"{microseconds(lambda i: store.get(names[i])):8.2f} us")
    row(
        "get, 1,000 revisions ago",
        f"{microseconds(lambda i: store.get(names[i], revision)):8.2f} us",
    )
    for limit in (10, 1000):
        for text, past in (("", 0), (", 1,000 revisions ago", revision)):
            query = Range(key(keys // 2), b"\0", past, limit)
            row(f"range, {limit} of half of all{text}", f"{timed(store, query) * 1e6:8.1f} us")
    everything = Range(b"\0", b"\0", 0, 10, sort_by=VERSION, descending=True)
    row("range, all, sorted by version", Steps().run(lambda: store.range_walk(everything)))


def timed(store: Store, query: Range) -> float:
    best = 1e9
    for _ in range(10):
        began = clock()
        store.range(query)
        best = min(best, clock() - began)
    return best


def apply(store: Store, operation: Operation) -> Steps:
    return Steps().run(lambda: store.apply(1, 0, command(operation)))


def main() -> None:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"{keys:,} keys of {len(key(0))} bytes, values of {len(VALUE)}")
    store = Store()
    gc.collect()
    before = resident_bytes()
    fill(store, keys)
    gc.collect()
    row("memory for each key", f"{(resident_bytes() - before) / keys:8.0f} bytes")
    row("counted for each key", f"{store.size_bytes / keys:8.0f} bytes")
    began = clock()
    gc.collect()
    row("garbage collection, full", f"{(clock() - began) * 1e3:8.2f} ms")
    gc.freeze()
    began = clock()
    gc.collect()
    row("  after gc.freeze()", f"{(clock() - began) * 1e3:8.2f} ms")
    measure_operations(store, keys)
    row("compaction of all revisions", apply(store, Compact(store.revision)))
    row("digest", Steps().run(store.digest_walk))
    slices: list[bytes] = []
    snapshot = Steps()
    steps = snapshot.run(lambda: iter_into(store.snapshot(), slices))
    row("snapshot", f"{steps}; {sum(map(len, slices)) / 1e6:.1f} MB")
    measure_restore(store, slices)
    for n in range(keys // 10):
        store.apply(1, 0, command(Put(key(n), VALUE)))
    row("compaction, a tenth overwritten", apply(store, Compact(store.revision)))
    apply(store, GrantLease(1, 1000))
    for n in range(min(keys, 100_000)):
        store.apply(1, 0, command(Put(b"lease" + key(n), VALUE, 1)))
    row("revoke of a lease with 100,000", apply(store, RevokeLease(1)))
    row("range delete of 100,000", apply(store, DeleteRange(b"\0", key(100_000))))
    row("compaction of both", apply(store, Compact(store.revision)))


def iter_into(slices: Iterator[bytes], into: list[bytes]) -> Iterator[None]:
    for data in slices:
        into.append(data)
        yield


def measure_restore(store: Store, slices: list[bytes]) -> None:
    gc.collect()
    before = resident_bytes()
    other = Store()
    restore = other.restore()
    row("restore", Steps().run(lambda: map(restore.write, slices)))
    began = clock()
    restore.finish()
    row("  finish", f"{(clock() - began) * 1e3:8.2f} ms")
    gc.collect()
    row("  memory for each key", f"{(resident_bytes() - before) / len(other):8.0f} bytes")
    assert other.digest() == store.digest(), "it is another state"


if __name__ == "__main__":
    main()
