"""
What is asked of the cluster, and what it takes for each request.

All clients ask at once, and again as soon as all have their answers: so
everything that can share a turn, a flush or a message does.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raftd.test.work.members import Cluster, Process
from raftd.test.work.wires import Socket

MEMBERS = 3
#: Requests that are counted, at least, and rounds.
REQUESTS = 100
ROUNDS = 8
#: Rounds before, in which whatever is made once is made.
ROUNDS_BEFORE = 4
#: How much later each round is than the one before: a quarter of the time that
#: a follower waits at most to hear what is committed, or a little less.
ROUND_S = 2**-12
#: How many keys there are, all there from the start.
KEYS = 512
VALUE = b"v" * 256


class Work(NamedTuple):
    """
    What one request takes, on average, of all members together.

    Only `calls_asked` and `calls_others` tell the member that was asked from
    the others; and `hops` are not shared by requests.
    """

    #: Functions called, in Python and in C, by the member that is asked.
    calls_asked: float
    #: By the others together.
    calls_others: float
    #: Rounds from the request to the answer (`Cluster.round`): in each, every member
    #: has one turn and may flush, and what was sent arrives.
    hops: float
    #: Turns of the reactors, and what their epolls tell them of.
    turns: float
    events: float
    #: Calls of `recv`, `send`, `epoll_wait` and `epoll_ctl`; of the last two on all
    #: epolls, those of the reactors and those of connections in bursts.
    receives: float
    sends: float
    polls: float
    registrations: float
    #: Boxes between members, and their bytes.
    messages: float
    wire_bytes: float
    #: Flushes of the disks, and the bytes written.
    flushes: float
    disk_bytes: float
    #: Python's blocks of memory that are not given back, as of entries and keys.
    blocks_kept: float


#: In words.
MEANINGS = {
    "calls_asked": "functions called on the member that is asked",
    "calls_others": "functions called on the other members",
    "hops": "hops from the request to the answer",
    "turns": "turns of the reactors",
    "events": "events of the reactors",
    "receives": "calls of recv",
    "sends": "calls of send",
    "polls": "calls of epoll_wait",
    "registrations": "calls of epoll_ctl",
    "messages": "messages between the members",
    "wire_bytes": "bytes between the members",
    "flushes": "flushes of the disks",
    "disk_bytes": "bytes written to the disks",
    "blocks_kept": "blocks of memory kept",
}


class Scenario(NamedTuple):
    """So many clients at one member, and what each of them asks for a key."""

    name: str
    connections: int
    request: Callable[[bytes], bytes]
    at_follower: bool = False


def write(key: bytes) -> bytes:
    return b"PUT /db/%s HTTP/1.1\r\nHost: n1:4001\r\nContent-Length: %d\r\n\r\n%s" % (
        key,
        len(VALUE),
        VALUE,
    )


def read(key: bytes) -> bytes:
    return b"GET /db/%s HTTP/1.1\r\nHost: n1:4001\r\n\r\n" % key


def local_read(key: bytes) -> bytes:
    return b"GET /db/%s?consistency=local HTTP/1.1\r\nHost: n1:4001\r\n\r\n" % key


SCENARIOS = (
    Scenario("write, 1 client", 1, write),
    Scenario("write, 16 clients", 16, write),
    Scenario("write, 64 clients", 64, write),
    Scenario("write through a follower, 1 client", 1, write, at_follower=True),
    Scenario("write through a follower, 64 clients", 64, write, at_follower=True),
    Scenario("linearizable read, 1 client", 1, read),
    Scenario("linearizable read, 64 clients", 64, read),
    Scenario("linearizable read at a follower, 64 clients", 64, read, at_follower=True),
    Scenario("local read, 64 clients", 64, local_read),
)


class Clients:
    """Connections to one member that ask in turn for one key after the other."""

    def __init__(self, cluster: Cluster, process: Process, count: int) -> None:
        self._cluster = cluster
        self._sockets: list[Socket] = [cluster.connect(process) for _ in range(count)]
        self._asked = 0
        #: From all requests to the last answer, of all times together.
        self.hops = 0

    def ask(self, request: Callable[[bytes], bytes]) -> None:
        """One request each, until all are answered; they must succeed."""
        for socket in self._sockets:
            # Any order but theirs: 177 has no factor in common with their number.
            key = b"key-%08d" % (self._asked * 177 % KEYS)
            self._asked += 1
            socket.send(request(key))
        while not all(socket.unread for socket in self._sockets):
            if not self._cluster.round():
                raise AssertionError("there is no answer")
            self.hops += 1
        self._cluster.settle()
        for socket in self._sockets:
            answer, socket.unread = socket.unread, b""
            # With a body, whose last byte is of a value or ends a line of JSON.
            if not answer.startswith(b"HTTP/1.1 20") or answer[-1:] not in (b"v", b"\n"):
                raise AssertionError(f"the answer is {answer!r}")
        self._cluster.advance(ROUND_S)


def measure(scenario: Scenario) -> Work:
    """What a request takes; the same each time."""
    cluster = Cluster(MEMBERS)
    asked = cluster.followers[0] if scenario.at_follower else cluster.leader
    loader = Clients(cluster, cluster.leader, 64)
    for _ in range(KEYS // 64):
        loader.ask(write)
    clients = Clients(cluster, asked, scenario.connections)
    cluster.await_heartbeat()
    for _ in range(ROUNDS_BEFORE):
        clients.ask(scenario.request)
    rounds = max(ROUNDS, REQUESTS // scenario.connections)
    with _without_collector():
        cluster.reset()
        clients.hops = 0
        blocks = _blocks()
        for _ in range(rounds):
            clients.ask(scenario.request)
        blocks = _blocks() - blocks
    requests = rounds * scenario.connections
    tallies = [process.tally for process in cluster.processes]
    calls = sum(tally.calls for tally in tallies)
    return Work(
        calls_asked=asked.tally.calls / requests,
        calls_others=(calls - asked.tally.calls) / requests,
        hops=clients.hops / rounds,
        blocks_kept=blocks / requests,
        **{
            name: sum(getattr(tally, name) for tally in tallies) / requests
            for name in Work._fields
            if hasattr(tallies[0], name)
        },
    )


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Its own time is nobody's: what it calls would be counted."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _blocks() -> int:
    """Blocks of memory in use; a collection empties Python's lists of free objects as well."""
    gc.collect()
    return sys.getallocatedblocks()
