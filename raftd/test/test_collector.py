"""Pauses of the garbage collector: that they are short, and that nothing is left for it."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
from collections import Counter
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from raftd import collector
from raftd.collector import COLLECTION_S, INTERVAL_S, LATE_S, NEVER, WORTH_WHILE, Collector
from raftd.joining import pause
from raftd.server import Server
from raftd.test.processes import PATIENCE_S, PYTHON, environment
from raftd.test.servers import ServerTestCase, name_of

reactor: Any = _reactor


class FakeGC:
    """The module `gc`, for a test."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.threshold = (700, 10, 10)
        self.count = (0, 0, 0)

    def get_threshold(self) -> tuple[int, int, int]:
        return self.threshold

    def set_threshold(self, *threshold: int) -> None:
        self.threshold = threshold  # type: ignore[assignment]

    def get_count(self) -> tuple[int, int, int]:
        return self.count

    def freeze(self) -> None:
        self.seen.append("freeze")

    def unfreeze(self) -> None:
        self.seen.append("unfreeze")

    def collect(self) -> None:
        self.seen.append("collect")


class CollectorTests(SynchronousTestCase):
    """What it does about the collector, and when."""

    def setUp(self) -> None:
        self.gc = FakeGC()
        self.patch(collector, "gc", self.gc)
        self.clock = Clock()
        self.took_s = 0.0
        self.measured = 0.0
        self.collector = Collector(self.clock, self.measure)
        self.collector.start()

    def measure(self) -> float:
        """Each measurement is one collection later than the one before."""
        self.measured += self.took_s
        return self.measured

    def seen(self) -> list[str]:
        seen, self.gc.seen = self.gc.seen, []
        return seen

    def look(self, allocated: int = WORTH_WHILE, late_s: float = 0.0) -> list[str]:
        """What the next look does, after so much was allocated."""
        self.gc.count = (self.gc.count[0] + allocated, 0, 0)
        self.clock.advance(INTERVAL_S + late_s)
        return self.seen()

    def test_what_is_there_is_frozen(self) -> None:
        self.assertEqual(self.seen(), ["freeze"])
        self.assertEqual(self.gc.threshold, (700, 10, NEVER))

    def test_what_is_quick_stays_to_be_collected(self) -> None:
        self.seen()
        self.took_s = COLLECTION_S * 0.9
        self.assertEqual([self.look(), self.look()], [["collect"], ["collect"]])

    def test_what_takes_long_is_frozen(self) -> None:
        self.seen()
        self.took_s = COLLECTION_S * 1.1
        self.assertEqual(self.look(), ["collect", "freeze"])

    def test_nobody_looks_where_nothing_happens(self) -> None:
        self.seen()
        self.assertEqual(self.look(WORTH_WHILE - 1), [])
        # What has gone since counts as well, for something else may have come.
        self.assertEqual(self.look(-WORTH_WHILE), ["collect"])

    def test_young_collections_count(self) -> None:
        self.seen()
        self.gc.count = (0, 1, 0)
        self.clock.advance(INTERVAL_S)
        self.assertEqual(self.seen(), ["collect"])

    def test_after_a_recovery_nothing_is_looked_at(self) -> None:
        """A reactor that was kept for long may have been kept by what fills the memory."""
        self.seen()
        self.assertEqual(self.look(late_s=LATE_S * 1.1), ["freeze"])
        self.assertEqual(self.look(late_s=LATE_S * 0.9), ["collect"])

    def test_stop(self) -> None:
        self.seen()
        self.collector.stop()
        self.collector.stop()
        self.assertEqual(self.seen(), ["unfreeze"])
        self.assertEqual(self.gc.threshold, (700, 10, 10))
        self.assertEqual(self.clock.getDelayedCalls(), [])


#: A store that is written to and another that is restored from it, on a
#: reactor; prints the longest that the collector took of the thread, in
#: milliseconds, for both.
CHILD = """
import gc, json, sys, time
from twisted.internet import reactor
from raftd.clock import use_monotonic
from raftd.collector import keep_pauses_short
from raftd.core.messages import Command
from raftd.kv.operations import Put, encode_operation
from raftd.kv.store import Store

keys = int(sys.argv[1])
worst = began = 0.0

def collecting(phase, info):
    global worst, began
    if phase == "start":
        began = time.thread_time()
    else:
        worst = max(worst, time.thread_time() - began)

def take():
    global worst
    taken, worst = worst, 0.0
    return taken * 1e3

def work():
    store = Store()
    for n in range(keys):
        key = b"%031d" % (n * 2654435761 % (1 << 32))
        store.apply(n, 0, Command(encode_operation(Put(key, b"v" * 64))))
        if n % 500 == 0:
            yield
    # What Python does of its own accord, sooner or later.
    if sys.argv[2] == "plain":
        gc.collect()
    yield take()
    other = Store()
    restore = other.restore()
    for data in store.snapshot():
        restore.write(data)
        yield
    restore.finish()
    for _ in range(20):
        yield
    if sys.argv[2] == "plain":
        gc.collect()
    yield take()

def turn(steps, taken):
    for step in steps:
        if step is not None:
            taken.append(step)
        reactor.callLater(0, turn, steps, taken)
        return
    print(json.dumps(taken))
    reactor.stop()

use_monotonic(reactor)
gc.callbacks.append(collecting)
if sys.argv[2] != "plain":
    keep_pauses_short(reactor)
reactor.callLater(0, turn, work(), [])
reactor.run()
"""
KEYS = 200_000


class PauseTests(SynchronousTestCase):
    """The bound, in a process of its own: by the time of its thread, whoever else runs."""

    def longest_ms(self, mode: str) -> list[float]:
        child = subprocess.run(
            [PYTHON, "-c", CHILD, str(KEYS), mode],
            env=environment(),
            stdout=subprocess.PIPE,
            check=True,
            timeout=PATIENCE_S,
        )
        taken: list[float] = json.loads(child.stdout)
        return taken

    def test_a_store_that_grows_and_one_that_is_restored(self) -> None:
        plain, kept_short = self.longest_ms("plain"), self.longest_ms("short")
        for without, with_it in zip(plain, kept_short, strict=True):
            self.assertLess(with_it, 10.0)
            self.assertLess(with_it, without / 2)


class GarbageTests(ServerTestCase):
    """
    What is frozen is not collected: so requests and connections must leave
    nothing behind that only the collector could find.
    """

    timeout = 60
    REQUESTS = 40

    async def garbage_of(self, server: Server, requests: bytes, answers: int) -> Counter[str]:
        """
        The types of what only the collector finds after these requests, on one
        connection each, and `REQUESTS` times.
        """
        host, port = name_of(server).split(":")

        def work() -> None:
            for _ in range(self.REQUESTS):
                with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
                    connection.sendall(requests)
                    received = b""
                    while received.count(b"HTTP/1.1 2") < answers:
                        data = connection.recv(1 << 16)
                        received += data
                        assert data, received
                        assert b"HTTP/1.1 4" not in received, received

        await deferToThread(work)
        # A watch learns that its reader is gone when it has something for it.
        while server._http_factory.connections:
            await self.put(server, b"a", b"2")
            await pause(reactor)
        gc.collect()
        found = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage)
        gc.garbage.clear()
        return found

    async def test_requests_leave_no_cycles(self) -> None:
        server = await self.initialized()
        gc.collect()
        self.addCleanup(gc.enable)
        self.addCleanup(gc.garbage.clear)
        self.addCleanup(gc.set_debug, gc.get_debug())
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        head = b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        txn = b'{"compare": [{"key": "a", "version": 0}], "else": [{"get": {"key": "a"}}]}'
        for requests, answers in (
            (b"PUT /db/a" + head % 1 + b"1", 1),
            (b"GET /db/a" + head % 0, 1),
            (b"GET /db/?prefix=a" + head % 0, 1),
            (b"POST /txn" + head % len(txn) + txn, 1),
            (b"PUT /db/a" + head % 1 + b"1DELETE /db/a" + head % 0, 2),
            (b"POST /lease" + head % 11 + b'{"ttl": 60}', 1),
            (b"GET /status" + head % 0, 1),
            (b"GET /db/a?watch" + head % 0, 1),
            ((b"PUT /db/a" + head % 1 + b"1") * 5 + (b"GET /db/a" + head % 0) * 5, 10),
        ):
            found = await self.garbage_of(server, requests, answers)
            # A few things happen by the clock, whatever the requests.
            often = {name: count for name, count in found.items() if count >= self.REQUESTS}
            self.assertEqual(often, {}, requests)
