"""
A cluster in memory, for tests: the nodes that ship, under a clock of the test's own.

    cluster = Cluster(3, Store, seed=1)
    cluster.await_leader()
    cluster.partition(["n1"], ["n2", "n3"])
    cluster.advance(2.0)

Nothing happens but in `advance` and the methods built on it.  The network
delays messages by a seeded draw and keeps their order within a connection, as
TCP does; a connection that lost a message carries nothing more.  A disk
flushes after a delay, and a crash loses what it had not flushed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.core.membership import Configuration, encode_configuration
from raftd.core.messages import (
    AppendEntries,
    Entry,
    EntryKind,
    HardState,
    Member,
    MemberId,
    Request,
    Response,
)
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
#: When a connection that failed is tried again, at the earliest.
RECONNECT_S = 0.05
#: How long AppendEntries may take, the other's disk included.
APPEND_TIMEOUT_S = 5.0
#: How much longer a call is waited for than the other end was given for it.
GRACE_S = 1.0


class Network:
    """
    Who can reach whom, and how long it takes; delays in seconds.

    A process that dies resets its connections, and whoever sends to it later
    is told as well.  A host that loses its power tells nobody anything.
    """

    def __init__(self, clock: Clock, random: Random) -> None:
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
        self._channels: list[Channel] = []
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

    def add(self, channel: Channel) -> None:
        """A connection that is told of the death of either end."""
        self._channels.append(channel)

    def remove(self, channel: Channel) -> None:
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
            arrive()


class Channel:
    """
    A connection from one process to another, made anew whenever it has broken.

    Invariant: calls are open only while there is a connection, and then
    `there` is the process at its other end.
    """

    def __init__(self, network: Network, me: MemberId, target: MemberId) -> None:
        self.me = me
        self.target = target
        self.there: Node | None = None
        self._network = network
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
        timer = self._network.clock.callLater(timeout_s, self._break, "no answer in time")
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
        """The process at the other end has died; its host says so, if it can."""
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
        self._retry = self._network.clock.callLater(patience_s, self._connect)

        def connected(there: Node) -> None:
            if line is self._line and not self._closed:
                self._cancel_retry()
                self.there = there

        def hello() -> None:
            there = self._network.nodes.get(self.target)
            if there is not None:
                line.carry(self.target, self.me, partial(connected, there))

        line.carry(self.me, self.target, hello)

    def _reset(self, line: Line) -> None:
        if line is self._line and self.there is not None:
            self._break("the connection was lost")

    def _break(self, reason: str) -> None:
        self.there = None
        self._line = Line(self._network)
        self._cancel_retry()
        if not self._closed:
            self._retry = self._network.clock.callLater(RECONNECT_S, self._connect)
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

    refusal = ""

    def __init__(
        self, network: Network, me: MemberId, member: Member, timeout_s: float
    ) -> None:
        self._me = me
        self._timeout_s = timeout_s
        self.raft = Channel(network, me, member.id)
        self.bulk = Channel(network, me, member.id)

    @property
    def connected(self) -> bool:
        return self.raft.there is not None

    def send(self, request: Request) -> Deferred[Response]:
        is_append = isinstance(request, AppendEntries)
        timeout_s = APPEND_TIMEOUT_S if is_append else self._timeout_s
        return self.raft.call(lambda node: node.receive(self._me, request), timeout_s)

    def read_index(self, timeout_ms: int) -> Deferred[int]:
        return self.raft.call(lambda n: n.forwarded_read(timeout_ms), _with_grace(timeout_ms))

    def forward(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        if self.bulk.there is None:
            return fail(NoLeader("The leader cannot be reached."))
        return self.bulk.call(
            lambda node: node.forwarded(commands, timeout_ms), _with_grace(timeout_ms)
        )

    def join(self, member: Member, timeout_ms: int) -> Deferred[Configuration]:
        return self.bulk.call(
            lambda node: node.join(member, timeout_ms, forwarded=True), _with_grace(timeout_ms)
        )

    def promote(self, member_id: MemberId, timeout_ms: int) -> Deferred[None]:
        return self.bulk.call(
            lambda node: node.promote(member_id, timeout_ms, forwarded=True),
            _with_grace(timeout_ms),
        )

    def close(self) -> Deferred[None]:
        self.raft.close()
        self.bulk.close()
        return succeed(None)


def _with_grace(timeout_ms: int) -> float:
    return timeout_ms / 1000 + GRACE_S


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
        self.network.began(member.id, node)
        node.start()
        return node

    def _stopped(self, name: str, reason: Fatal) -> None:
        """A node has stopped by itself: its process ends."""
        if self.nodes.pop(name, None) is not None:
            self.fatal[name] = reason
            self.network.ended(self.members[name].id)
            self.logs[name] = self.logs[name].crash()

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
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        value: T = outcome[0]
        return value

    # -- the nodes -----------------------------------------------------------

    def leaders(self) -> list[str]:
        """Who takes itself for the leader: two for a while, after a partition."""
        return [n for n, node in self.nodes.items() if node.status().role == Role.LEADER.value]

    def await_leader(self, among: Iterable[str] | None = None) -> str:
        """Let time pass until one of `among` leads and all of them follow it; its name."""
        names = list(self.nodes if among is None else among)
        found: list[str] = []

        def agreed() -> bool:
            statuses = [self.nodes[name].status() for name in names]
            found[:] = [s.member.name for s in statuses if s.role == Role.LEADER.value]
            followed = {None if s.leader is None else s.leader.name for s in statuses}
            return followed == set(found)

        self.advance_until(agreed)
        return found[0]

    def await_agreement(self) -> None:
        """Let time pass until all nodes have applied everything that any has in its log."""

        def agreed() -> bool:
            statuses = [node.status() for node in self.nodes.values()]
            return len({(s.last_index, s.applied_index) for s in statuses}) == 1 and all(
                s.last_index == s.applied_index for s in statuses
            )

        self.advance_until(agreed)

    def crash(self, name: str, *, kept: int = 0, power_lost: bool = False) -> None:
        """
        The process is gone, and with it what its disk had not flushed but the
        first `kept` writes of it.

        The others see their connections reset; with `power_lost` they see
        nothing, as when a whole host is gone.
        """
        node = self.nodes.pop(name)
        self.network.ended(self.members[name].id, power_lost=power_lost)
        self.logs[name] = self.logs[name].crash(kept)
        # Its own clients learn what the process knew; nobody else does.
        node.fail(Fatal("It was told to crash."))

    def stop(self, name: str) -> None:
        """Stop a node in order."""
        node = self.nodes.pop(name)
        log = self.logs[name]
        self.result(node.stop())
        self.network.ended(self.members[name].id)
        self.logs[name] = log.crash()

    def restart(self, name: str) -> Node:
        """Start a node that is down from what its disk holds."""
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
