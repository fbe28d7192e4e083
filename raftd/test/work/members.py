"""
The members of a cluster in one process, put together as `raftd.replica` and
`raftd.server` do it, from what they are made of.

What ships: the port, HTTP, the node, the store with all that runs beside it,
the log, snapshots, peers and their AMP; connections in bursts, and Twisted's
reactor.  What does not: the sockets, epolls, disk and clock below them.
Threads of the log do their jobs when they are told to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.tcp import Port

from raftd import __version__
from raftd.bursts import Burst, BurstClient, BurstReactor
from raftd.core.membership import Configuration, encode_configuration
from raftd.core.messages import Entry, EntryKind, HardState, Member
from raftd.errors import Fatal
from raftd.net.amp import PeerServerFactory
from raftd.net.handshake import LocalIdentity
from raftd.net.http1 import HTTPFactory
from raftd.net.peers import PeerTransport
from raftd.net.port import PortFactory
from raftd.node import Node
from raftd.replica import ReplicaOptions
from raftd.sessions import Sessions
from raftd.storage.snapshots import SnapshotStore
from raftd.storage.wal import Wal
from raftd.storage.workers import Job
from raftd.store_service import StoreService
from raftd.test.simdisk import SimulatedDisk
from raftd.test.work.counting import Calls, Tally
from raftd.test.work.wires import Address, Epoll, Socket, Wire
from raftd.web.routes import MAX_BODY_BYTES_AT, Routes, Site

CLUSTER_ID = 1
PORT = 4001
#: None is ever full.
SEGMENT_BYTES = 1 << 20
#: Rounds in which something must be over.
MAX_ROUNDS = 10_000
#: While the cluster is waited for: steps of time, in seconds, and how many.
STEP_S = 0.005
MAX_STEPS = 2_000

#: Whoever connects.
_ADDRESS = ("127.0.0.1", 50_000)


class Outgoing(BurstClient):
    """A connection that this end makes, with a socket in memory."""

    def __init__(self, make_socket: Callable[[], Socket], *arguments: Any) -> None:
        self._make_socket = make_socket
        super().__init__(*arguments)

    def createInternetSocket(self) -> Any:
        return self._make_socket()


class ReactorEpoll(Epoll):
    """That of a reactor."""

    def poll(self, timeout: float = -1, maxevents: int = -1) -> list[tuple[int, int]]:
        events = super().poll(timeout, maxevents)
        self._tally.events += len(events)
        return events


class Reactor(EPollReactor):
    """Twisted's, but that its epoll is in memory, and that time is told."""

    def __init__(self, epoll: Epoll) -> None:
        super().__init__()
        self._poller.close()
        self._poller: Any = epoll
        self.now = 0.0

    def seconds(self) -> float:
        return self.now

    def installWaker(self) -> None:
        """Nobody sleeps."""

    @property
    def is_idle(self) -> bool:
        """Whether a turn would find nothing to do."""
        return not (self.threadCallQueue or self.timeout() == 0 or self._poller.ready)


class Disk(SimulatedDisk):
    """Of one member."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def write(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        self._tally.disk_bytes += len(data)
        super().write(fd, data, offset)

    def write_and_flush(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        self._tally.flushes += 1
        super().write_and_flush(fd, data, offset)

    def flush(self, fd: int) -> None:
        self._tally.flushes += 1
        super().flush(fd)


class Thread:
    """A `Worker` whose jobs wait for `Process.run_threads`."""

    def __init__(self, jobs: deque[Job]) -> None:
        self._jobs = jobs

    def do(self, job: Job) -> None:
        self._jobs.append(job)

    def quit(self) -> None:
        """Nothing runs that would have to end."""


class Process:
    """One member: its node, and everything around it."""

    def __init__(self, cluster: Cluster, member: Member, configuration: Configuration) -> None:
        self.member = member
        self.tally = Tally()
        self.reactor = Reactor(ReactorEpoll(cluster.wire, self.tally))
        self._cluster = cluster
        self._calls = cluster.calls
        self._jobs: deque[Job] = deque()
        self._sessions = 0
        self.sockets: list[Socket] = []
        # As `Server`.
        self.service = StoreService(self.reactor)
        self._routes = Routes(__version__, self.reactor)
        http = HTTPFactory(
            self._routes.handle,
            self.reactor,
            self.reactor.seconds,
            max_body_bytes_at=MAX_BODY_BYTES_AT,
        )
        self._identity = LocalIdentity(member, CLUSTER_ID)
        self._peers = PeerServerFactory(self.reactor, self._identity)
        self._factory = PortFactory(self._peers, http, self.reactor)
        self._port = Port(PORT, self._factory, reactor=self.reactor)
        # As `Replica`.
        make_epoll: Any = partial(Epoll, self._cluster.wire, self.tally)
        self._burst = Burst(self.reactor, make_epoll)
        self._burst.accept(self._port)
        make_client = partial(Outgoing, self._make_socket, self._burst)
        self._connecting = BurstReactor(self.reactor, make_client)
        self.node = self._make_node(configuration)

    def _make_socket(self) -> Socket:
        """That of a connection to a peer."""
        near, far = self._cluster.wire.pair(is_of_peers=True)
        self._own(near)
        near.connected_to = lambda address: self._cluster.at(address).accept(far)
        return near

    def _own(self, socket: Socket) -> None:
        socket.tally = self.tally
        self.sockets.append(socket)

    def _make_node(self, configuration: Configuration) -> Node:
        data = encode_configuration(configuration)
        disk = Disk(self.tally)
        disk.make_directory("/data")
        files: dict[str, Any] = {"files": disk, "start_worker": lambda _: Thread(self._jobs)}
        log = Wal.create(
            "/data/log",
            self.member.id,
            HardState(1),
            (Entry(1, 1, EntryKind.CONFIGURATION, 0, data),),
            reactor=self.reactor,
            segment_bytes=SEGMENT_BYTES,
            random_source=Random(self.member.id).randbytes,
            **files,
        )
        machine = Sessions(self.service.machine)
        snapshots = SnapshotStore("/data/snapshots", self.reactor, **files)
        snapshots.recover(machine, log.base_index, log.entries)
        options, random = ReplicaOptions(), Random(self.member.id)
        transport = PeerTransport(
            self.reactor,
            self._identity,
            lambda name: TCP4ClientEndpoint(self._connecting, *self._cluster.address_of(name)),
            random,
            options.election_timeout_ms,
        )
        return Node(
            self.reactor,
            member=self.member,
            cluster_id=CLUSTER_ID,
            storage=log,
            snapshots=snapshots,
            transport=transport,
            state_machine=machine,
            random=random,
            settings=options.settings(),
            request_timeout_s=options.request_timeout_ms / 1000,
            snapshot_threshold_bytes=options.snapshot_threshold_bytes,
            on_fatal=self._fatal,
            soon=self._burst.soon,
        )

    def start(self) -> None:
        self._peers.rpc = self.node
        self.node.start()
        self.service.run(self.node)
        self._routes.site = Site(self.node, self.service.database)

    def _fatal(self, reason: Fatal) -> None:
        raise AssertionError(f"{self.member.name} has stopped: {reason}")

    @property
    def leads(self) -> bool:
        return self.node.status().role == "leader"

    def accept(self, socket: Socket) -> None:
        """Somebody has connected: what `Port.doRead` does."""
        port, self._sessions = self._port, self._sessions + 1
        self._own(socket)
        protocol = self._factory.buildProtocol(IPv4Address("TCP", *_ADDRESS))
        assert protocol is not None
        make: Any = port.transport
        protocol.makeConnection(
            make(socket, protocol, _ADDRESS, port, self._sessions, self.reactor)
        )

    def turn(self) -> bool:
        """A turn of the reactor, unless there is nothing to do."""
        if self.reactor.is_idle:
            return False
        self.tally.turns += 1
        with self._calls.counted(self.tally):
            self.reactor.iterate(0)
        return True

    def run_threads(self) -> bool:
        """What the threads have to do; whether there was anything."""
        had_any = bool(self._jobs)
        with self._calls.counted(self.tally):
            while self._jobs:
                self._jobs.popleft()()
        return had_any


class Cluster:
    """
    Members `n1`, `n2`, ..., each a voter; nothing happens but in the methods.

    One of the followers is farther away: nobody waits for what it says, which
    comes by itself, when it changes nothing any more.
    """

    def __init__(self, size: int) -> None:
        """There is a leader when it returns, and all are connected."""
        self.wire = Wire()
        self.calls = Calls()
        members = [Member(i, f"n{i}") for i in range(1, size + 1)]
        configuration = Configuration(voters=tuple(members))
        self.processes = [Process(self, member, configuration) for member in members]
        for process in self.processes:
            process.start()
        for _ in range(MAX_STEPS):
            self.advance(STEP_S)
            found = [process for process in self.processes if process.leads]
            if found and all(process.node.status().leader for process in self.processes):
                break
        (self.leader,) = found
        self.followers = [p for p in self.processes if p is not self.leader]
        for socket in self.followers[-1].sockets:
            socket.is_far = True

    def address_of(self, name: str) -> Address:
        """Where the member called `name` listens."""
        return (f"10.0.0.{name[1:]}", PORT)

    def at(self, address: Address) -> Process:
        """The member that listens there."""
        (process,) = (p for p in self.processes if self.address_of(p.member.name) == address)
        return process

    def connect(self, process: Process) -> Socket:
        """A client's end of a new connection."""
        near, far = self.wire.pair()
        process.accept(far)
        return near

    def round(self) -> bool:
        """
        A turn of every member, then what its threads have been given to do, then
        everything that was sent arrives, a round later if it comes from far away.
        Whether there was anything.
        """
        steps = [process.turn() for process in self.processes]
        steps += [process.run_threads() for process in self.processes]
        return self.wire.deliver() or any(steps)

    def settle(self) -> None:
        """Let everything happen that does not need time."""
        for _ in range(MAX_ROUNDS):
            if not self.round():
                return
        raise AssertionError("it does not come to an end")

    def advance(self, seconds: float) -> None:
        """So much later; what was due meanwhile happens now."""
        for process in self.processes:
            process.reactor.now += seconds
        self.settle()

    def await_heartbeat(self) -> None:
        """
        Let time pass until the leader has just sent heartbeats.

        With nothing else to do, none are sent before another interval is over.
        """
        tally = self.leader.tally
        before = tally.messages
        for _ in range(MAX_STEPS):
            self.advance(STEP_S)
            if tally.messages != before:
                return
        raise AssertionError("the leader sends no heartbeats")

    def reset(self) -> None:
        """Count from nothing."""
        for process in self.processes:
            process.tally.reset()
