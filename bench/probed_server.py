"""
A member of a cluster as `twist raftd` runs it, with a probe on its reactor:
how long each turn keeps it, and the garbage collector within it.

    python bench/probed_server.py DIRECTORY NAME [MEMBER]

Joins the cluster of MEMBER, or else makes one, or goes on.  Takes commands on
standard input, one a line, and answers each with a line of JSON on standard
output: `report` (what was seen since the last one), `index`, `snapshot`, `digest`.
With RAFTD_STACKS=MS it prints where it is after so long in one turn.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineReceiver

from raftd.clock import use_monotonic
from raftd.collector import keep_pauses_short
from raftd.events import Event, SnapshotTaken
from raftd.interfaces import Stage
from raftd.kv.store import Store
from raftd.node import Node
from raftd.replica import ReplicaOptions
from raftd.server import Server, ServerOptions
from raftd.store_service import StoreOptions
from raftd.tap import SWITCH_INTERVAL_S

reactor: Any = global_reactor

#: Snapshots and comparisons of digests only when they are asked for.
NEVER = 1 << 50

STACKS_AFTER_S = float(os.environ.get("RAFTD_STACKS", "0")) / 1000


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Turns:
    """
    In the place of the reactor's poller: a turn is from one poll to the next.

    `wall` also has what others on the machine took; `cpu` is what the
    reactor's thread itself did, and `collector` what the longest collection
    took of that.
    """

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._began = time.perf_counter()
        self._cpu_began = time.thread_time()
        self._collection_began = 0.0
        self.reset()
        gc.callbacks.append(self._collecting)

    def reset(self) -> None:
        self.wall_s = self.cpu_s = self.collector_s = 0.0
        self.turns = self.late = self.collections = 0

    def poll(self, *arguments: Any) -> Any:
        wall = time.perf_counter() - self._began
        self.cpu_s = max(self.cpu_s, time.thread_time() - self._cpu_began)
        self.wall_s = max(self.wall_s, wall)
        self.late += wall > 0.01
        self.turns += 1
        if STACKS_AFTER_S:
            signal.setitimer(signal.ITIMER_PROF, 0)
        events = self._poller.poll(*arguments)
        if STACKS_AFTER_S:
            signal.setitimer(signal.ITIMER_PROF, STACKS_AFTER_S)
        self._began = time.perf_counter()
        self._cpu_began = time.thread_time()
        return events

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        now = time.thread_time()
        if phase == "start":
            self._collection_began = now
        else:
            self.collections += 1
            self.collector_s = max(self.collector_s, now - self._collection_began)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)


class Probe(LineReceiver):
    delimiter = b"\n"

    def __init__(self, server: Server, turns: Turns) -> None:
        self._server = server
        self._turns = turns

    @property
    def _node(self) -> Node:
        return self._server._replica.node

    @property
    def _store(self) -> Store:
        return self._server._store.store

    def lineReceived(self, line: bytes) -> None:
        getattr(self, "do_" + line.decode())()

    def say(self, **values: Any) -> None:
        assert self.transport is not None
        self.transport.write(json.dumps(values).encode() + b"\n")

    def do_report(self) -> None:
        turns, status = self._turns, self._node.status()
        self.say(
            wall_ms=turns.wall_s * 1e3,
            cpu_ms=turns.cpu_s * 1e3,
            collector_ms=turns.collector_s * 1e3,
            turns=turns.turns,
            late=turns.late,
            collections=turns.collections,
            term=status.term,
            role=status.role,
            applied_index=status.applied_index,
            revision=self._store.revision,
            compacted_revision=self._store.compacted_revision,
            keys=len(self._store),
            rss=resident_bytes(),
        )
        turns.reset()

    def do_index(self) -> None:
        self.say(
            applied_index=self._node.status().applied_index,
            compacted_revision=self._store.compacted_revision,
        )

    def do_snapshot(self) -> None:
        began = time.perf_counter()
        # Due at once; the next one is drawn from the threshold again.
        self._node._snapshotter._due_bytes = 0

        def observe(event: Event) -> None:
            if isinstance(event, SnapshotTaken):
                forget()
                self.say(seconds=time.perf_counter() - began)

        forget = self._node.observe(observe)
        self._node._wake()

    def do_digest(self) -> None:
        """As the checker does it."""
        began, walk = time.perf_counter(), self._store.digest_walk()

        def go_on() -> None:
            until = time.perf_counter() + 0.001
            try:
                while time.perf_counter() < until:
                    next(walk)
            except StopIteration:
                self.say(seconds=time.perf_counter() - began)
            else:
                reactor.callLater(0.001, go_on)

        go_on()

    def connectionLost(self, reason: Any = None) -> None:
        ensureDeferred(self._end())

    async def _end(self) -> None:
        await self._server.stop()
        reactor.stop()


class ProbedServer(Server):
    """Nobody waits for a reactor before there is a node."""

    def _show(self, node: Node) -> None:
        super()._show(node)
        reactor.callLater(0, reactor._poller.reset)


async def serve(directory: str, name: str, member: str, turns: Turns) -> None:
    began = time.perf_counter()
    options = ServerOptions(
        data_dir=directory,
        replica=ReplicaOptions(request_timeout_ms=60_000, snapshot_threshold_bytes=NEVER),
        store=StoreOptions(check_interval_s=float(1 << 20)),
    )
    server = ProbedServer(reactor, options, lambda reason: print(reason, file=sys.stderr))
    server.open()
    await server.take_name(name)
    if server.stage is Stage.MEMBER:
        await server.recover()
    elif member:
        await server.join([member])
    else:
        await server.initialize()
    probe = Probe(server, turns)
    StandardIO(probe)
    probe.say(seconds=time.perf_counter() - began)


def print_stack(number: int, frame: Any) -> None:
    print(f"--- {STACKS_AFTER_S * 1e3:.0f} ms of this turn", file=sys.stderr)
    traceback.print_stack(frame, 8)


def main() -> None:
    use_monotonic(reactor)
    keep_pauses_short(reactor)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if STACKS_AFTER_S:
        signal.signal(signal.SIGPROF, print_stack)
    turns = reactor._poller = Turns(reactor._poller)
    directory, name, *members = sys.argv[1:]
    serving = ensureDeferred(serve(directory, name, members[0] if members else "", turns))
    serving.addErrback(lambda failure: (failure.printTraceback(), reactor.stop()))
    reactor.run()


if __name__ == "__main__":
    main()
