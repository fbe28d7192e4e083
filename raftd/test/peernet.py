"""
A network in memory for tests of peers: names, connections, and a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect
from zope.interface import implementer

from raftd.core import messages
from raftd.core.membership import Change, Configuration
from raftd.core.messages import Member, MemberId, Request, Response
from raftd.errors import RaftdError
from raftd.interfaces import INodeRPC
from raftd.net.amp import PeerServerFactory
from raftd.net.handshake import LocalIdentity
from raftd.net.peers import Peer, PeerTransport

CLUSTER = 0xC0FFEE
ALICE = Member(0xA, "alice:4001")
BOB = Member(0xB, "bob:4002")
CONFIGURATION = Configuration(voters=(ALICE, BOB))


@implementer(INodeRPC)
class RecordingNode:
    """Notes what it is asked; answers what it is told to, or leaves it open."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.answer: Callable[[], Deferred[object]] = lambda: fail(RaftdError("not set"))

    def open_answers(self) -> list[Deferred[object]]:
        """From now on every answer is a Deferred in the list returned."""
        answers: list[Deferred[object]] = []

        def make() -> Deferred[object]:
            answers.append(Deferred())
            return answers[-1]

        self.answer = make
        return answers

    def oblige(self) -> None:
        """From now on every request gets an answer that fits."""
        answers: dict[object, Callable[[], object]] = {
            messages.PreVote: lambda: messages.PreVoteResponse(1, False),
            messages.RequestVote: lambda: messages.RequestVoteResponse(1, False),
            messages.AppendEntries: lambda: messages.AppendEntriesResponse(1, True, 1),
            messages.Heartbeat: lambda: messages.HeartbeatResponse(1, 1),
            "forwarded": lambda: [b"done"],
            "read": lambda: 1,
            "question": lambda: b"answer",
            messages.InstallSnapshot: lambda: messages.InstallSnapshotResponse(1, 1, False),
            messages.TimeoutNow: lambda: messages.TimeoutNowResponse(1),
            "change": lambda: CONFIGURATION,
            "transfer": lambda: None,
        }

        def make() -> Deferred[object]:
            last = self.asked[-1]
            assert isinstance(last, tuple)
            kind = type(last[2]) if last[0] == "receive" else last[0]
            return succeed(answers[kind]())

        self.answer = make

    def _asked(self, *what: object) -> Deferred[object]:
        self.asked.append(what)
        return self.answer()

    def receive(self, sender: MemberId, request: Request) -> Deferred[Response]:
        return self._asked("receive", sender, request)  # type: ignore[return-value]

    def forwarded(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        return self._asked("forwarded", commands, timeout_ms)  # type: ignore[return-value]

    def forwarded_read(self, timeout_ms: int) -> Deferred[int]:
        return self._asked("read", timeout_ms)  # type: ignore[return-value]

    def forwarded_question(self, question: bytes, timeout_ms: int) -> Deferred[bytes]:
        return self._asked("question", question, timeout_ms)  # type: ignore[return-value]

    def change_membership(
        self, changes: Sequence[Change], force: bool, timeout_ms: int, *, forwarded: bool
    ) -> Deferred[Configuration]:
        return self._asked("change", [*changes], force, timeout_ms, forwarded)  # type: ignore[return-value]

    def transfer(
        self, successor: MemberId | None, timeout_ms: int, *, forwarded: bool
    ) -> Deferred[None]:
        return self._asked("transfer", successor, timeout_ms, forwarded)  # type: ignore[return-value]


class Link:
    """One connection that was made."""

    def __init__(
        self, client: IProtocol, server: IProtocol, pump: IOPump, network: Network
    ) -> None:
        self.client = client
        self.server = server
        self.pump = pump
        self.is_cut = False
        network.links.append(self)

    @property
    def is_open(self) -> bool:
        io = (self.pump.clientIO, self.pump.serverIO)
        return not any(t.disconnecting or t.disconnected for t in io)


class Network:
    """Who listens under which name, and every connection ever made."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.listening: dict[str, IProtocolFactory] = {}
        #: Names at which an attempt to connect never ends.
        self.silent: set[str] = set()
        self.attempts: list[tuple[float, str]] = []
        self.links: list[Link] = []

    def endpoint(self, name: str) -> IStreamClientEndpoint:
        return Endpoint(self, name)

    def flush(self) -> None:
        """Deliver everything that is on its way."""
        moved = True
        while moved:
            self.clock.advance(0)
            moved = False
            for link in self._uncut():
                moved = link.pump.flush(advanceClock=False) or moved

    def advance(self, seconds: float, step: float = 0.01) -> None:
        """Let time pass, delivering as it goes."""
        until = self.clock.seconds() + seconds
        while self.clock.seconds() < until - step / 2:
            self.clock.advance(step)
            self.flush()

    def open_links(self) -> list[Link]:
        return [link for link in self.links if link.is_open]

    def _uncut(self) -> list[Link]:
        return [link for link in self.links if not link.is_cut]


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Where a name leads to, at the moment of connecting."""

    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._name = name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        network = self._network
        network.attempts.append((network.clock.seconds(), self._name))
        if self._name in network.silent:
            return Deferred()
        server_factory = network.listening.get(self._name)
        server = server_factory.buildProtocol(None) if server_factory else None  # type: ignore[arg-type]
        client = protocolFactory.buildProtocol(None)  # type: ignore[arg-type]
        if server is None or client is None:
            return fail(ConnectionRefusedError())
        pump = connect(
            server,
            FakeTransport(server, isServer=True),
            client,
            FakeTransport(client, isServer=False),
            greet=False,
            clock=network.clock,
        )
        Link(client, server, pump, network)
        return succeed(client)


class Pair:
    """Alice, who asks, and Bob, who answers."""

    def __init__(self, connect: bool = True) -> None:
        self.network = Network()
        self.clock = self.network.clock
        self.node = RecordingNode()
        self.bob = LocalIdentity(BOB, CLUSTER)
        self.alice = LocalIdentity(ALICE, CLUSTER)
        self.factory = PeerServerFactory(reactor_time(self.clock), self.bob, self.node)
        self.network.listening[BOB.name] = self.factory
        self.transport = PeerTransport(
            reactor_time(self.clock),
            self.alice,
            self.network.endpoint,
            Random(1),
            election_timeout_ms=1000,
        )
        if connect:
            self.connect()

    def connect(self) -> Peer:
        peer = self.transport.peer(BOB)
        assert isinstance(peer, Peer)
        self.peer = peer
        self.network.flush()
        return peer


def reactor_time(clock: Clock) -> IReactorTime:
    """A Clock as what it provides."""
    return clock


def failure_of(deferred: Deferred[Any]) -> BaseException:
    """The exception that `deferred` has failed with, by now."""
    found: list[Failure] = []
    deferred.addErrback(found.append)
    assert found, "it has not failed"
    assert found[0].value is not None
    return found[0].value


def entries(count: int, size: int) -> tuple[messages.Entry, ...]:
    """Entries with distinct data of `size` bytes each."""
    return tuple(
        messages.Entry(i, 3, messages.EntryKind.COMMAND, 1000 + i, b"%08d" % i * (size // 8))
        for i in range(11, 11 + count)
    )
