"""
The network of a simulation: that of `raftd.testing`, with more that goes wrong.

Messages of one connection keep their order, and behind a lost one nothing gets
through; but what an old connection still carries may come after what a newer
one has brought, and a request of Raft's may come twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from raftd.core.messages import (
    AppendEntries,
    InstallSnapshot,
    Member,
    MemberId,
    Request,
    Response,
)
from raftd.interfaces import IPeer
from raftd.memory_network import (
    APPEND_TIMEOUT_S,
    SNAPSHOT_TIMEOUT_S,
    Channel,
    MemoryPeer,
    MemoryTransport,
    Network,
)
from raftd.node import Node
from raftd.test.simulation.world import ProcessClock, World


class SimulatedNetwork(Network):
    """
    `duplication` is the share of Raft's requests that come twice; `loss` and
    the delays are as in `Network`.  `clocks` are those of the processes.
    """

    def __init__(self, world: World) -> None:
        clock: Any = world
        super().__init__(clock, world.random)
        self.world = world
        self.duplication = 0.0
        self.duplicated = 0
        self.lost = 0
        self.clocks: dict[MemberId, ProcessClock] = {}
        #: What is to happen when so many more messages have come to a member.
        self.traps: dict[MemberId, tuple[int, Callable[[], None]]] = {}

    def clock_of(self, member_id: MemberId) -> IReactorTime:
        clock: IReactorTime = self.clocks[member_id]
        return clock

    def deliver(self, source: MemberId, target: MemberId, arrive: Callable[[], None]) -> None:
        clock = self.clocks.get(target)
        if clock is None or clock.is_dead:
            arrive()  # it will find nobody there
            return
        if target in self.traps:
            left, act = self.traps.pop(target)
            if left:
                self.traps[target] = left - 1, act
            else:
                self.world.counts["crashed at message"] += 1
                act()
                arrive()
                return
        clock.enter(arrive, source)

    def loses(self, source: MemberId, target: MemberId) -> bool:
        lost = super().loses(source, target)
        self.lost += lost
        return lost

    def mend(self, source: MemberId, target: MemberId) -> None:
        """What `cut` did is over."""
        self._cut.discard((source, target))

    def reset_broken(self) -> None:
        """
        Connections that have lost something, or whose other end has died, find
        out now, rather than by their timeouts.
        """
        for channel in list(self._channels):
            assert isinstance(channel, Channel)
            there = channel.there
            if channel._line._lost or (there is not None and not channel._runs(there)):
                self._break(channel)

    def _break(self, channel: Channel) -> None:
        clock = self.clocks[channel.me]
        clock.enter(partial(channel._break, "it was reset"))


class SimulatedPeer(MemoryPeer):
    """A peer some of whose requests come twice."""

    def send(self, request: Request) -> Deferred[Response]:
        transport = self._transport
        network = transport.network
        assert isinstance(network, SimulatedNetwork)
        channel, timeout_s = self.raft, transport.timeout_s
        if isinstance(request, AppendEntries):
            timeout_s = APPEND_TIMEOUT_S
        elif isinstance(request, InstallSnapshot):
            channel, timeout_s = self.bulk, SNAPSHOT_TIMEOUT_S
        if not network.duplication or network.random.random() >= network.duplication:
            return super().send(request)
        me, target = transport.me, self.member.id

        def again(node: Node) -> None:
            if network.nodes.get(target) is node:
                network.clocks[target].enter(lambda: _ask_in_vain(node, me, request))

        def ask(node: Node) -> Deferred[Response]:
            network.duplicated += 1
            network.world.callLater(10 * network.delay_s(), again, node)
            return node.receive(me, request)

        return channel.call(ask, timeout_s)


def _ask_in_vain(node: Node, me: MemberId, request: Request) -> None:
    """Nobody waits for this answer."""
    node.receive(me, request).addErrback(lambda failure: None)


class SimulatedTransport(MemoryTransport):
    def peer(self, member: Member) -> IPeer:
        return SimulatedPeer(self, member)
