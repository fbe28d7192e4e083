"""
A network in memory, for `raftd.testing`: connections between nodes under a virtual clock.

Messages are delayed by a seeded draw and keep their order within a connection,
as with TCP; a connection that lost a message carries nothing more.  Who was
removed from the cluster is turned away, as `raftd.net` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from random import Random
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from raftd.core.membership import Change, Configuration
from raftd.core.messages import (
    AppendEntries,
    InstallSnapshot,
    Member,
    MemberId,
    Request,
    Response,
)
from raftd.errors import NoLeader, PeerUnreachable, RaftdError
from raftd.interfaces import IPeer, ITransport
from raftd.node import Node

T = TypeVar("T")

#: When a connection that failed is tried again, at the earliest.
RECONNECT_S = 0.05
#: How long AppendEntries may take, and a piece of a snapshot, the other's disk included.
APPEND_TIMEOUT_S = 5.0
SNAPSHOT_TIMEOUT_S = 60.0
#: How much longer a call is waited for than the other end was given for it.
GRACE_S = 1.0


class Connection(Protocol):
    """A connection of `me` with the process of `target`."""

    me: MemberId
    target: MemberId

    def close(self) -> None:
        """The process of `me` is gone."""

    def reset_by_target(self) -> None:
        """The process of `target` is gone, or has closed it."""


class Network:
    """
    Who can reach whom, and how long it takes; delays in seconds.

    A process that dies resets its connections, and whoever sends to it later
    is told as well.  A host that loses its power tells nobody anything.
    """

    def __init__(self, clock: IReactorTime, random: Random) -> None:
        self.clock = clock
        self.random = random
        #: The delay of each message is drawn from between these.
        self.min_delay_s = 0.0005
        self.max_delay_s = 0.002
        #: The share of messages that are lost, each together with its connection.
        self.loss = 0.0
        #: The processes that run.
        self.nodes: dict[MemberId, Node] = {}
        self._without_power: set[MemberId] = set()
        self._channels: list[Connection] = []
        self._cut: set[tuple[MemberId, MemberId]] = set()

    def cut(self, source: MemberId, target: MemberId) -> None:
        """Nothing gets from `source` to `target` any more."""
        self._cut.add((source, target))

    def heal(self) -> None:
        """Everything gets through again; broken connections are made anew."""
        self._cut.clear()

    def loses(self, source: MemberId, target: MemberId) -> bool:
        """Whether the message that arrives now is lost instead."""
        return (source, target) in self._cut or self.random.random() < self.loss

    def delay_s(self) -> float:
        """How long the next message takes."""
        return self.random.uniform(self.min_delay_s, self.max_delay_s)

    def add(self, channel: Connection) -> None:
        """A connection that is told of the death of either end."""
        self._channels.append(channel)

    def remove(self, channel: Connection) -> None:
        """It is over; nothing happens if it was removed before."""
        if channel in self._channels:
            self._channels.remove(channel)

    def began(self, member_id: MemberId, node: Node) -> None:
        """A process runs, and can be connected to."""
        self._without_power.discard(member_id)
        self.nodes[member_id] = node

    def ended(self, member_id: MemberId, *, power_lost: bool = False) -> None:
        """A process is gone, and with it everything that it had not sent yet."""
        self.nodes.pop(member_id, None)
        if power_lost:
            self._without_power.add(member_id)
        for channel in list(self._channels):
            if channel.me == member_id:
                channel.close()
            elif channel.target == member_id:
                channel.reset_by_target()

    def turn_away(self, member_id: MemberId, removed: Collection[MemberId]) -> None:
        """A process has learned who was removed, and closes their connections to it."""
        for channel in list(self._channels):
            if channel.target == member_id and channel.me in removed:
                channel.reset_by_target()

    def clock_of(self, member_id: MemberId) -> IReactorTime:
        """What the timers of a process run on."""
        return self.clock

    def deliver(self, source: MemberId, target: MemberId, arrive: Callable[[], None]) -> None:
        """A message of `source` has arrived at the host of `target`."""
        arrive()

    def resets(self, member_id: MemberId) -> bool:
        """Whether the host of a process that is gone says so to who sends to it."""
        return member_id not in self._without_power


class Line:
    """
    The way of the messages of one connection: in order, each way for itself.

    Behind a lost message nothing more gets through.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._last_arrival: dict[MemberId, float] = {}
        self._lost: set[MemberId] = set()

    def carry(self, source: MemberId, target: MemberId, arrive: Callable[[], None]) -> None:
        """Call `arrive` after a while, unless the message is lost."""
        now = self._network.clock.seconds()
        at = max(now + self._network.delay_s(), self._last_arrival.get(source, 0.0))
        self._last_arrival[source] = at
        self._network.clock.callLater(at - now, self._arrive, source, target, arrive)

    def _arrive(self, source: MemberId, target: MemberId, arrive: Callable[[], None]) -> None:
        if source in self._lost or self._network.loses(source, target):
            self._lost.add(source)
        else:
            self._network.deliver(source, target, arrive)


class Channel:
    """
    A connection from one process to another, made anew whenever it has broken.

    `refused` is called with a sentence whenever the other end says that this
    member was removed.

    Invariant: calls are open only while there is a connection, and then
    `there` is the process at its other end.
    """

    def __init__(
        self,
        network: Network,
        me: MemberId,
        target: MemberId,
        refused: Callable[[str], None],
    ) -> None:
        self.me = me
        self.target = target
        self._refused = refused
        self.there: Node | None = None
        self._network = network
        self._clock = network.clock_of(me)
        self._line = Line(network)
        self._retry: IDelayedCall | None = None
        #: The answers that are waited for, and when they are given up.
        self._calls: dict[int, tuple[Deferred[Any], IDelayedCall]] = {}
        self._last_call = 0
        self._closed = False
        network.add(self)
        self._connect()

    def call(self, ask: Callable[[Node], Deferred[T]], timeout_s: float) -> Deferred[T]:
        """What `ask` gets from the process at the other end; else `PeerUnreachable`."""
        there, line = self.there, self._line
        if there is None:
            return fail(PeerUnreachable("It is not connected."))
        self._last_call = number = self._last_call + 1
        answer: Deferred[T] = Deferred()
        timer = self._clock.callLater(timeout_s, self._break, "no answer in time")
        self._calls[number] = (answer, timer)

        def arrived() -> None:
            if self._runs(there):
                ask(there).addBoth(go_back)
            elif self._network.resets(self.target):
                line.carry(self.target, self.me, partial(self._reset, line))

        def go_back(result: Any) -> None:
            if self._runs(there):
                line.carry(self.target, self.me, partial(self._answered, number, result))

        line.carry(self.me, self.target, arrived)
        return answer

    def close(self) -> None:
        """Disconnect for good; whoever waits for an answer is told."""
        if not self._closed:
            self._closed = True
            self._network.remove(self)
            self._break("closed")
            self._cancel_retry()

    def reset_by_target(self) -> None:
        """The process at the other end has closed it; its host says so, if it can."""
        if self.there is not None and self._network.resets(self.target):
            self._line.carry(self.target, self.me, partial(self._reset, self._line))

    def _runs(self, node: Node) -> bool:
        return self._network.nodes.get(self.target) is node

    def _answered(self, number: int, result: Any) -> None:
        answer, timer = self._calls.pop(number, (None, None))
        if answer is not None and timer is not None:
            timer.cancel()
            answer.callback(result)

    def _connect(self) -> None:
        line = self._line = Line(self._network)
        patience_s = max(RECONNECT_S, 4 * self._network.max_delay_s)
        self._retry = self._clock.callLater(patience_s, self._connect)

        def connected(there: Node) -> None:
            if line is self._line and not self._closed:
                self._cancel_retry()
                self.there = there

        def refused(there: Node) -> None:
            if line is self._line and not self._closed:
                name = there.member.name
                self._refused(f"This member was removed from the cluster, says {name}.")

        def hello() -> None:
            there = self._network.nodes.get(self.target)
            if there is not None:
                # Only what is committed: who hears it stops for good.
                removed = there.committed_configuration.removed
                answer = refused if self.me in removed else connected
                line.carry(self.target, self.me, partial(answer, there))

        line.carry(self.me, self.target, hello)

    def _reset(self, line: Line) -> None:
        if line is self._line and self.there is not None:
            self._break("the connection was lost")

    def _break(self, reason: str) -> None:
        self.there = None
        self._line = Line(self._network)
        self._cancel_retry()
        if not self._closed:
            self._retry = self._clock.callLater(RECONNECT_S, self._connect)
        calls, self._calls = self._calls, {}
        for answer, timer in calls.values():
            if timer.active():
                timer.cancel()
            answer.errback(PeerUnreachable(f"No answer: {reason}."))

    def _cancel_retry(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._retry = None


@implementer(IPeer)
class MemoryPeer:
    """Calls to another node's `INodeRPC`: Raft's on one connection, the rest on a second."""

    def __init__(self, transport: MemoryTransport, member: Member) -> None:
        self.member = member
        self.refusal = ""
        self._transport = transport
        network, me = transport.network, transport.me
        self.raft = Channel(network, me, member.id, self._refused)
        self.bulk = Channel(network, me, member.id, self._refused)

    @property
    def connected(self) -> bool:
        return self.raft.there is not None

    def send(self, request: Request) -> Deferred[Response]:
        channel, timeout_s = self.raft, self._transport.timeout_s
        if isinstance(request, AppendEntries):
            timeout_s = APPEND_TIMEOUT_S
        elif isinstance(request, InstallSnapshot):
            channel, timeout_s = self.bulk, SNAPSHOT_TIMEOUT_S
        me = self._transport.me
        return channel.call(lambda node: node.receive(me, request), timeout_s)

    def read_index(self, timeout_ms: int) -> Deferred[int]:
        return self.raft.call(lambda n: n.forwarded_read(timeout_ms), _with_grace(timeout_ms))

    def forward(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        return self._ask_leader(lambda node: node.forwarded(commands, timeout_ms), timeout_ms)

    def ask(self, question: bytes, timeout_ms: int) -> Deferred[bytes]:
        return self._ask_leader(
            lambda node: node.forwarded_question(question, timeout_ms), timeout_ms
        )

    def change_membership(
        self, changes: Sequence[Change], force: bool, timeout_ms: int
    ) -> Deferred[Configuration]:
        return self._ask_leader(
            lambda node: node.change_membership(changes, force, timeout_ms, forwarded=True),
            timeout_ms,
        )

    def transfer(self, successor: MemberId | None, timeout_ms: int) -> Deferred[None]:
        return self._ask_leader(
            lambda node: node.transfer(successor, timeout_ms, forwarded=True), timeout_ms
        )

    def close(self) -> Deferred[None]:
        self.raft.close()
        self.bulk.close()
        return succeed(None)

    def _ask_leader(self, ask: Callable[[Node], Deferred[T]], timeout_ms: int) -> Deferred[T]:
        if self.bulk.there is None:
            return fail(NoLeader("The leader cannot be reached."))
        return self.bulk.call(ask, _with_grace(timeout_ms))

    def _refused(self, reason: str) -> None:
        self.refusal = reason
        self._transport.on_removed(reason)


def _with_grace(timeout_ms: int) -> float:
    return timeout_ms / 1000 + GRACE_S


@implementer(ITransport)
class MemoryTransport:
    """
    How one node reaches the others.

    `timeout_s` is how long votes and heartbeats may take.  `on_removed` is
    called, perhaps more than once, when a member says that this one was removed.
    """

    def __init__(self, network: Network, me: MemberId, timeout_s: float) -> None:
        self.network = network
        self.me = me
        self.timeout_s = timeout_s
        self.on_removed: Callable[[str], None] = lambda reason: None

    def peer(self, member: Member) -> IPeer:
        """See `ITransport.peer`."""
        return MemoryPeer(self, member)
