"""
What is measured by more than a load: failover, growth, snapshots, restarts,
members that join, watches.

Each function starts the clusters that it needs and answers one sample.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from statistics import median

from load import Load, Sample, fill, run
from processes import Child, Failed
from systems import HERE, HTTPCluster, Raftd, python_path

MANY_KEYS = 1_000_000

#: The size of a value where memory and restarts are measured.
SMALL_VALUE_BYTES = 64

#: Kills of the leader, one after the other.
KILLS = 50

#: Changes that each watcher must see.
WATCHED_WRITES = 50

#: How long writes are counted in `growth`: so long that snapshots and compactions
#: come in it, and weigh about what they do in the long run.
GROWTH_S = 60.0

#: So large that it never takes one.
NEVER_SNAPSHOT_BYTES = 1 << 40

#: When a client asks again whose request has failed.
AGAIN_S = 0.01

#: How long such a client waits for one node before it asks another.
PATIENCE_S = 0.3


class NoSnapshots(Raftd):
    options = (f"--snapshot-threshold-bytes={NEVER_SNAPSHOT_BYTES}",)


class ProbedRaftd(Raftd):
    """Its nodes take snapshots when they are told to, and at no other time."""

    def launch(self, node: int) -> Child:
        directory = self.node_directory(node)
        command = [self.python, os.path.join(HERE, "probed_server.py"), directory]
        command.append(f"localhost:{self.ports[node]}")
        if self.children:
            command.append(f"localhost:{self.ports[0]}")
        return Child(command, directory, python_path(), answers=True)


class Repeated:
    """A thread that asks a node for the same thing, again and again."""

    def __init__(self, child: Child, command: str) -> None:
        self.done = 0
        self.over = False
        self._thread = threading.Thread(target=self._run, args=(child, command))
        self._thread.start()

    def _run(self, child: Child, command: str) -> None:
        while not self.over:
            child.ask(command)
            self.done += 1

    def stop(self) -> None:
        self.over = True
        self._thread.join()


# -- failover ---------------------------------------------------------------------


def failover(make: Callable[[], HTTPCluster], kills: int = KILLS) -> Sample:
    """`kill -9` of the leader, again and again: seconds to the next acknowledged write."""
    took: list[float] = []
    with make() as cluster:
        for _ in range(kills):
            leader = cluster.leader()
            took.append(_time_without_leader(cluster, leader))
            cluster.restart(leader)
            cluster.await_leader()
            time.sleep(1.0)
    more = {"failover_s": median(took), "worst_failover_s": max(took), "kills": len(took)}
    return Sample(0, 0, 0, more=more, each=took)


def _time_without_leader(cluster: HTTPCluster, leader: int) -> float:
    others = [port for node, port in enumerate(cluster.ports[: cluster.size]) if node != leader]
    cluster.kill(leader)
    began = time.perf_counter()
    n = 0
    while time.perf_counter() - began < 60:
        # A client that is refused goes on with another node.
        port = others[n % len(others)]
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        n += 1
        try:
            cluster.put(connection, "failover", str(n))
        except (OSError, HTTPException, Failed):
            time.sleep(AGAIN_S)
        else:
            return time.perf_counter() - began
        finally:
            connection.close()
    raise Failed("There was no leader for a minute.")


# -- elections ----------------------------------------------------------------------


def elections(make: Callable[[], HTTPCluster], seconds: float) -> Sample:
    """How often the term changes at full load."""
    with make() as cluster:
        before = cluster.term()
        sample = run(cluster, cluster.leader(), Load(256), seconds)
        return replace(sample, more={"elections": cluster.term() - before})


# -- many keys ------------------------------------------------------------------------


def growth(make: Callable[[], HTTPCluster], keys: int = MANY_KEYS) -> Sample:
    """Writes with a few keys against writes with many, in one cluster."""
    with make() as cluster:
        fill(cluster, 1000, SMALL_VALUE_BYTES)
        leader = cluster.leader()
        load = Load(64, keys=1000, value_bytes=SMALL_VALUE_BYTES)
        few = run(cluster, leader, load, GROWTH_S)
        fill(cluster, keys, SMALL_VALUE_BYTES)
        many = run(cluster, cluster.leader(), replace(load, keys=keys), GROWTH_S)
        ratio = many.rate / few.rate
        per_key = cluster.children[leader].rss_bytes() / keys
        return replace(many, more={"against_few_keys": ratio, "rss_bytes_a_key": per_key})


def restart(make: Callable[[], HTTPCluster]) -> Sample:
    """From the start of a node's process to its first linearizable read."""
    with make() as cluster:
        filled_s = fill(cluster, MANY_KEYS, SMALL_VALUE_BYTES)
        node = cluster.follower()
        cluster.kill(node)
        return Sample(0, 0, 0, more={"restart_s": cluster.restart(node), "filled_s": filled_s})


def replay(parent: str, entries: int = MANY_KEYS) -> Sample:
    """Restart from a log of at least so many single puts, without a snapshot."""
    with NoSnapshots(parent) as cluster:
        node = cluster.follower()
        while cluster.status(node)["last_index"] < entries:
            run(cluster, cluster.leader(), Load(256, value_bytes=SMALL_VALUE_BYTES), 5)
        cluster.kill(node)
        took = cluster.restart(node)
        replayed = cluster.status(node)["last_index"]
        return Sample(0, 0, 0, more={"replay_s": took, "entries": replayed})


# -- writes while something else is going on ----------------------------------------------


def snapshots(parent: str, seconds: float, keys: int = MANY_KEYS) -> Sample:
    """p99 of writes while one snapshot of the leader follows the other, against none."""
    load = Load(64, keys=keys, value_bytes=SMALL_VALUE_BYTES)
    with ProbedRaftd(parent) as cluster:
        fill(cluster, keys, SMALL_VALUE_BYTES)
        leader = cluster.leader()
        without = run(cluster, leader, load, seconds)
        taking = Repeated(cluster.children[leader], "snapshot")
        try:
            during = run(cluster, leader, load, seconds)
        finally:
            taking.stop()
    return replace(during, more={**compared(during, without), "snapshots": taking.done})


def compared(during: Sample, without: Sample) -> dict[str, float]:
    return {
        "p99_of_without": during.p99_ms / without.p99_ms,
        "p99_without_ms": without.p99_ms,
        "rate_of_without": during.rate / without.rate,
    }


def catch_up(parent: str, seconds: float, keys: int = MANY_KEYS) -> Sample:
    """p99 of writes while a fourth member joins, against before."""
    load = Load(64, keys=keys, value_bytes=SMALL_VALUE_BYTES)
    with Raftd(parent) as cluster:
        fill(cluster, keys, SMALL_VALUE_BYTES)
        leader = cluster.leader()
        without = run(cluster, leader, load, seconds)
        began = time.perf_counter()
        fourth = cluster.add()
        during = run(cluster, leader, load, seconds)
        cluster.await_serving(fourth)
        took = time.perf_counter() - began
    return replace(during, more={**compared(during, without), "caught_up_s": took})


# -- watches ----------------------------------------------------------------------------------


class Watchers:
    """Connections that watch, and how many events each has seen."""

    def __init__(self, cluster: HTTPCluster, count: int) -> None:
        self._mark = cluster.event_mark
        self._selector = selectors.DefaultSelector()
        self.seen = 0
        self.over = False
        port = cluster.ports[cluster.leader()]
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(cluster.watch_request())
            self._selector.register(connection, selectors.EVENT_READ, bytearray())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self.over:
            for ready, _ in self._selector.select(0.1):
                connection, buffer = ready.fileobj, ready.data
                assert isinstance(connection, socket.socket)
                data = connection.recv(1 << 16)
                if not data:
                    self.over = True
                buffer += data
                self.seen += buffer.count(self._mark)
                # A mark may be cut in two.
                del buffer[: max(0, len(buffer) - len(self._mark) + 1)]

    def stop(self) -> None:
        self.over = True
        self._thread.join()
        for ready in list(self._selector.get_map().values()):
            assert isinstance(ready.fileobj, socket.socket)
            ready.fileobj.close()
        self._selector.close()


def fan_out(make: Callable[[], HTTPCluster], watchers: int) -> Sample:
    """From the sending of a write until all watchers have its event."""
    took: list[float] = []
    with make() as cluster:
        connection = HTTPConnection("127.0.0.1", cluster.ports[cluster.leader()], timeout=60)
        watching = Watchers(cluster, watchers)
        try:
            time.sleep(1.0)
            for n in range(WATCHED_WRITES):
                due, began = watching.seen + watchers, time.perf_counter()
                cluster.put(connection, f"watched/{n % 10}", "v" * SMALL_VALUE_BYTES)
                _until_seen(watching, due)
                took.append(time.perf_counter() - began)
        finally:
            watching.stop()
            connection.close()
    more = {"all_have_seen_ms": median(took) * 1e3, "worst_ms": max(took) * 1e3}
    return Sample(0, 0, 0, more=more)


def _until_seen(watching: Watchers, due: int) -> None:
    deadline = time.monotonic() + 30
    while watching.seen < due:
        if time.monotonic() > deadline or watching.over:
            raise Failed("A watcher has not seen a change.")
        time.sleep(0.0002)
