"""
A cluster in memory, for tests: the nodes that ship, under a clock of the test's own.

    cluster = Cluster(3, seed=1)
    cluster.await_leader()
    cluster.partition(["n1"], ["n2", "n3"])
    cluster.advance(2.0)

Nothing happens but in `advance` and the methods built on it.  The network
delays messages by a seeded draw and keeps their order, as TCP does; a disk
flushes after a delay, and a crash loses what it had not flushed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from raftd.core.membership import Configuration, encode_configuration
from raftd.core.messages import Entry, EntryKind, HardState, Member, MemberId, Request, Response
from raftd.core.raft import Role
from raftd.core.settings import Settings
from raftd.errors import Fatal, NoLeader, PeerUnreachable, RaftdError
from raftd.interfaces import IPeer, IStateMachine, ITransport
from raftd.node import Node
from raftd.storage.memory import MemoryLog

T = TypeVar("T")
Machine = TypeVar("Machine", bound=IStateMachine)

CLUSTER_ID = 1
#: One `advance` runs at most this many timed calls: more is a loop that never ends.
MAX_CALLS_PER_ADVANCE = 5_000_000


class Network:
    """Who can reach whom, and how long it takes; delays in seconds."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.random = random
        #: The delay of each message is drawn from between these.
        self.min_delay_s = 0.0005
        self.max_delay_s = 0.002
        #: The share of messages that are lost, each together with its connection.
        self.loss = 0.0
        self.nodes: dict[MemberId, Node] = {}
        self._cut: set[tuple[MemberId, MemberId]] = set()
        #: No message arrives before the one that was sent before it.
        self._last_arrival: dict[tuple[MemberId, MemberId], float] = {}

    def cut(self, source: MemberId, target: MemberId) -> None:
        """Nothing gets from `source` to `target` any more."""
        self._cut.add((source, target))

    def heal(self) -> None:
        self._cut.clear()

    def reaches(self, source: MemberId, target: MemberId) -> bool:
        return (source, target) not in self._cut and target in self.nodes

    def carry(self, source: MemberId, target: MemberId, arrive: Callable[[], None]) -> None:
        """Call `arrive` after a while, unless the message is lost."""
        link = (source, target)
        spread = self.max_delay_s - self.min_delay_s
        delay = self.min_delay_s + spread * self.random.random()
        at = max(self.clock.seconds() + delay, self._last_arrival.get(link, 0.0))
        self._last_arrival[link] = at
        if self.random.random() >= self.loss:
            self.clock.callLater(at - self.clock.seconds(), self._arrive, link, arrive)

    def _arrive(self, link: tuple[MemberId, MemberId], arrive: Callable[[], None]) -> None:
        if self.reaches(*link):
            arrive()


@implementer(IPeer)
class MemoryPeer:
    """
    Calls to another node's `INodeRPC`, through the network.

    A connection over which a call has got no answer counts as broken until
    the other end can be reached again.
    """

    refusal = ""

    def __init__(
        self, network: Network, me: MemberId, member: Member, timeout_s: float
    ) -> None:
        self._network = network
        self._me = me
        self._id = member.id
        self._timeout_s = timeout_s
        self._broken = False
        self._closed = False

    @property
    def connected(self) -> bool:
        network = self._network
        both_ways = network.reaches(self._me, self._id) and network.reaches(self._id, self._me)
        self._broken = self._broken and not both_ways
        return not self._broken and not self._closed

    def send(self, request: Request) -> Deferred[Response]:
        return self._call(lambda node: node.receive(self._me, request), self._timeout_s)

    def forward(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        if not self.connected:
            return fail(NoLeader("not connected"))
        timeout_s = timeout_ms / 1000 + self._timeout_s
        return self._call(lambda node: node.forwarded(commands, timeout_ms), timeout_s)

    def read_index(self, timeout_ms: int) -> Deferred[int]:
        return self._call(
            lambda node: node.forwarded_read(timeout_ms), timeout_ms / 1000 + self._timeout_s
        )

    def join(self, member: Member, timeout_ms: int) -> Deferred[Configuration]:
        timeout_s = timeout_ms / 1000 + self._timeout_s
        return self._call(lambda node: node.join(member, timeout_ms, forwarded=True), timeout_s)

    def promote(self, member_id: MemberId, timeout_ms: int) -> Deferred[None]:
        timeout_s = timeout_ms / 1000 + self._timeout_s
        return self._call(
            lambda node: node.promote(member_id, timeout_ms, forwarded=True), timeout_s
        )

    def close(self) -> Deferred[None]:
        self._closed = True
        return succeed(None)

    def _call(self, ask: Callable[[Node], Deferred[T]], timeout_s: float) -> Deferred[T]:
        if not self.connected:
            return fail(PeerUnreachable("not connected"))
        network, here, there = self._network, self._me, self._id
        answer: Deferred[T] = Deferred()

        def give_up() -> None:
            self._broken = True
            answer.errback(PeerUnreachable("no answer in time"))

        timer = network.clock.callLater(timeout_s, give_up)

        def arrived() -> None:
            ask(network.nodes[there]).addBoth(go_back)

        def go_back(result: Any) -> None:
            network.carry(there, here, lambda: deliver(result))

        def deliver(result: Any) -> None:
            if timer.active():
                timer.cancel()
                answer.callback(result)

        network.carry(here, there, arrived)
        return answer


@implementer(ITransport)
class MemoryTransport:
    """How one node of a `Cluster` reaches the others."""

    def __init__(self, network: Network, me: MemberId, timeout_s: float) -> None:
        self._network = network
        self._me = me
        self._timeout_s = timeout_s

    def peer(self, member: Member) -> IPeer:
        return MemoryPeer(self._network, self._me, member, self._timeout_s)


class Cluster(Generic[Machine]):
    """
    Nodes `n1`, `n2`, ... that form one cluster from the start, each a voter.

    Names stand for nodes in all methods; `nodes` has those that run, and
    `machines` their state machines.
    """

    def __init__(
        self,
        size: int,
        make_state_machine: Callable[[], Machine],
        *,
        seed: int = 0,
        settings: Settings | None = None,
        request_timeout_s: float = 5.0,
    ) -> None:
        self.clock = Clock()
        self.random = Random(seed)
        self.network = Network(self.clock, self.random)
        self.settings = settings or Settings()
        self.nodes: dict[str, Node] = {}
        self.machines: dict[str, Machine] = {}
        self.logs: dict[str, MemoryLog] = {}
        #: Why a node has stopped by itself.
        self.fatal: dict[str, Fatal] = {}
        self._make_state_machine = make_state_machine
        self._request_timeout_s = request_timeout_s
        self.members = {f"n{i}": Member(i, f"n{i}") for i in range(1, size + 1)}
        configuration = Configuration(voters=tuple(self.members.values()))
        first = Entry(1, 1, EntryKind.CONFIGURATION, 0, encode_configuration(configuration))
        for name in self.members:
            self._start(name, MemoryLog(HardState(1), (first,), clock=self.clock))

    def _start(self, name: str, log: MemoryLog) -> Node:
        member = self.members[name]
        self.logs[name] = log
        if log.delay_seconds == 0.0:
            log.delay_seconds = 0.001
        self.machines[name] = self._make_state_machine()
        node = self.nodes[name] = Node(
            self.clock,
            member=member,
            cluster_id=CLUSTER_ID,
            storage=log,
            transport=MemoryTransport(
                self.network, member.id, self.settings.election_timeout_s
            ),
            state_machine=self.machines[name],
            random=Random(self.random.random()),
            settings=self.settings,
            request_timeout_s=self._request_timeout_s,
            on_fatal=lambda reason: self._stopped(name, reason),
        )
        self.network.nodes[member.id] = node
        node.start()
        return node

    def _stopped(self, name: str, reason: Fatal) -> None:
        self.fatal[name] = reason
        self.nodes.pop(name, None)
        self.network.nodes.pop(self.members[name].id, None)

    # -- time ----------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, step by step, with all that happens in it."""
        end = self.clock.seconds() + seconds
        for _ in range(MAX_CALLS_PER_ADVANCE):
            calls = self.clock.getDelayedCalls()
            at = min((call.getTime() for call in calls), default=end)
            if at > end:
                break
            self.clock.advance(max(0.0, at - self.clock.seconds()))
            if not calls:
                break
        else:
            raise AssertionError(f"more than {MAX_CALLS_PER_ADVANCE} calls in {seconds} s")
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def advance_until(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Let time pass until `condition` is true; `AssertionError` if it never is."""
        end = self.clock.seconds() + timeout_s
        while not condition():
            if self.clock.seconds() >= end:
                raise AssertionError(f"not within {timeout_s} s")
            self.advance(0.005)

    def result(self, deferred: Deferred[T], timeout_s: float = 30.0) -> T:
        """What `deferred` fires with, letting time pass until it does; its error is raised."""
        outcome: list[Any] = []
        deferred.addBoth(outcome.append)
        self.advance_until(lambda: outcome, timeout_s)
        if hasattr(outcome[0], "raiseException"):
            outcome[0].raiseException()
        value: T = outcome[0]
        return value

    # -- the nodes -----------------------------------------------------------

    def leaders(self) -> list[str]:
        """Who takes itself for the leader: two for a while, after a partition."""
        return [n for n, node in self.nodes.items() if node.status().role == Role.LEADER.value]

    def await_leader(self, among: Iterable[str] | None = None) -> str:
        """Let time pass until one leader is followed by all of `among`; its name."""
        names = list(self.nodes if among is None else among)

        def agreed() -> bool:
            followed = {self.nodes[name].status().leader for name in names}
            return len(followed) == 1 and None not in followed

        self.advance_until(agreed)
        leader = self.nodes[names[0]].status().leader
        assert leader is not None
        return leader.name

    def await_agreement(self) -> None:
        """Let time pass until all nodes have applied everything that any has in its log."""

        def agreed() -> bool:
            statuses = [node.status() for node in self.nodes.values()]
            return len({(s.last_index, s.applied_index) for s in statuses}) == 1 and all(
                s.last_index == s.applied_index for s in statuses
            )

        self.advance_until(agreed)

    def crash(self, name: str) -> None:
        """The node is gone, and with it what its disk had not flushed."""
        node = self.nodes.pop(name)
        del self.network.nodes[self.members[name].id]
        self.logs[name] = self.logs[name].crash()
        node.fail(Fatal("It was told to crash."))
        self.fatal.pop(name, None)

    def restart(self, name: str) -> Node:
        """Start a crashed node from what its disk holds."""
        return self._start(name, self.logs[name])

    def start_joiner(self, name: str) -> Node:
        """A new node with an empty log, which is not a member yet."""
        self.members[name] = Member(len(self.members) + 1, name)
        return self._start(name, MemoryLog(clock=self.clock))

    # -- the network ---------------------------------------------------------

    def partition(self, *groups: Iterable[str]) -> None:
        """Nodes in different groups no longer reach one another."""
        sides = [[self.members[name].id for name in group] for group in groups]
        for side in sides:
            for other in sides:
                if side is not other:
                    for source in side:
                        for target in other:
                            self.network.cut(source, target)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.network.heal()
