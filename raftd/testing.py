"""
A cluster in memory, for tests: the nodes that ship, under a clock of the test's own.

    cluster = Cluster(3, Counter, seed=1)
    leader = cluster.await_leader()
    assert cluster.result(cluster["n2"].propose(b"5")) == b"5"
    cluster.crash(leader)
    cluster.await_leader()

Nothing happens but in `advance` and the methods built on it, and the same seed
makes the same things happen.  The network delays messages by a seeded draw and
keeps their order within a connection, as TCP does; a connection that lost a
message carries nothing more.  A disk flushes after a delay, and a crash loses
what it had not flushed.

It knows no test framework: what is not as it should be is an `AssertionError`.
`docs/testing.md` says more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from raftd.core.membership import AddLearner, Configuration, encode_configuration
from raftd.core.messages import Entry, EntryKind, HardState, Member, MemberId
from raftd.core.raft import Role
from raftd.errors import Fatal, Removed
from raftd.events import Event, MembershipChanged
from raftd.handle import Handle
from raftd.interfaces import IStateMachine, NodeStatus
from raftd.joining import become_member
from raftd.memory_network import MemoryTransport, Network
from raftd.node import FAREWELL_S, Node
from raftd.replica import ReplicaOptions
from raftd.session_client import Session
from raftd.sessions import Sessions
from raftd.storage.memory import MemoryLog, MemorySnapshotStore

T = TypeVar("T")
Machine = TypeVar("Machine", bound=IStateMachine)

CLUSTER_ID = 1
#: How long a flush takes, unless the test says otherwise.
DISK_DELAY_S = 0.001
#: One `advance` runs at most this many timed calls: more is a loop that never ends.
MAX_CALLS_PER_ADVANCE = 5_000_000
#: How often `advance_until` looks.
STEP_S = 0.005
#: How long `advance_until`, and what is built on it, waits by default.
PATIENCE_S = 30.0


class ClusterNode(Handle):
    """
    What a program may ask of the node under one name, as of a `Replica`.

    It stays the same object when the node crashes, upon which it answers
    `Stopped`, and when it is restarted; but observers go with the node.
    """

    def __init__(self, cluster: Cluster[Any]) -> None:
        super().__init__()
        self._cluster = cluster

    def runs(self, node: Node) -> None:
        """A node was started under the name."""
        self._node = node
        node.on_question = self.on_question

    def open_session(self) -> Deferred[Session]:
        """A session, for operations that must be applied exactly once (thesis 6.3)."""
        cluster = self._cluster
        return Session.open(self.node, cluster.clock, jitter=cluster.random.random)


class Cluster(Generic[Machine]):
    """
    Nodes `n1`, `n2`, ... that form one cluster from the start, each a voter.

    Names stand for nodes in all methods, and `cluster[name]` is what a program
    would have in hand; see `ClusterNode`.

    - `machines`: the state machine of each node, made anew for each start
    - `members`: who the nodes are to one another: an id and a name
    - `nodes`: those that run
    - `fatal`: why a node stopped by itself, `Removed` for instance
    - `network`: `min_delay_s`, `max_delay_s` and `loss` may be set at any time
    - `logs`, `snapshots`: the disks; `delay_seconds` of each may be set at any time
    - `clock`, `random`: what all of it runs on; tests may use them, too
    """

    def __init__(
        self,
        size: int,
        make_state_machine: Callable[[], Machine],
        *,
        seed: int = 0,
        options: ReplicaOptions | None = None,
    ) -> None:
        """
        `make_state_machine` is called for each node, and again when it is
        restarted.  With a small `snapshot_threshold_bytes` and few
        `snapshot_tail_entries` in `options`, snapshots come early.
        """
        self.clock = Clock()
        self.random = Random(seed)
        self.network = Network(self.clock, self.random)
        self.options = options or ReplicaOptions()
        self.nodes: dict[str, Node] = {}
        self.machines: dict[str, Machine] = {}
        self.logs: dict[str, MemoryLog] = {}
        self.snapshots: dict[str, MemorySnapshotStore] = {}
        self.fatal: dict[str, Fatal] = {}
        self._handles: dict[str, ClusterNode] = {}
        self._make_state_machine = make_state_machine
        self.members = {f"n{i}": Member(i, f"n{i}") for i in range(1, size + 1)}
        configuration = Configuration(voters=tuple(self.members.values()))
        first = Entry(1, 1, EntryKind.CONFIGURATION, 0, encode_configuration(configuration))
        for name in self.members:
            self._install(name, HardState(1), (first,))

    def __getitem__(self, name: str) -> ClusterNode:
        """What a program may ask of this node; `KeyError` if there was never one."""
        return self._handles[name]

    def _install(
        self, name: str, hard_state: HardState | None = None, entries: tuple[Entry, ...] = ()
    ) -> Node:
        """A node with an empty disk, or with a log that it begins with."""
        self._handles[name] = ClusterNode(self)
        self.logs[name] = MemoryLog(
            hard_state, entries, clock=self.clock, delay_seconds=DISK_DELAY_S
        )
        self.snapshots[name] = MemorySnapshotStore(self.clock, delay_seconds=DISK_DELAY_S)
        return self._start(name)

    def _start(self, name: str) -> Node:
        member, options, log = self.members[name], self.options, self.logs[name]
        settings = options.settings()
        machine = self.machines[name] = self._make_state_machine()
        sessions = machine if isinstance(machine, Sessions) else Sessions(machine)
        self.snapshots[name].recover(sessions, log.base_index, log.entries)
        transport = MemoryTransport(self.network, member.id, settings.election_timeout_s)
        node = self.nodes[name] = Node(
            self.clock,
            member=member,
            cluster_id=CLUSTER_ID,
            storage=log,
            snapshots=self.snapshots[name],
            transport=transport,
            state_machine=sessions,
            random=Random(self.random.random()),
            settings=settings,
            request_timeout_s=options.request_timeout_ms / 1000,
            snapshot_threshold_bytes=options.snapshot_threshold_bytes,
            on_fatal=lambda reason: self._stopped(name, reason),
        )
        transport.on_removed = lambda reason: node.fail(Removed(reason))
        node.observe(partial(self._follow_membership, name))
        self.fatal.pop(name, None)
        self.network.began(member.id, node)
        node.start()
        self._handles[name].runs(node)
        return node

    def _follow_membership(self, name: str, event: Event) -> None:
        """As a `Replica` does: turn removed members away, and note an own new name."""
        if isinstance(event, MembershipChanged):
            configuration, me = event.configuration, self.members[name]
            removed = configuration.removed
            if removed:
                self.clock.callLater(FAREWELL_S, self.network.turn_away, me.id, removed)
            self.members[name] = configuration.members().get(me.id, me)

    def _stopped(self, name: str, reason: Fatal) -> None:
        """A node has stopped by itself: its process ends."""
        if name in self.nodes:
            self.fatal[name] = reason
            self._dies(name, self.nodes.pop(name))

    def _dies(self, name: str, node: Node, *, kept: int = 0, power_lost: bool = False) -> None:
        """A process is gone: what its disk holds is all that is left."""
        self.network.ended(self.members[name].id, power_lost=power_lost)
        self.logs[name] = self.logs[name].crash(kept)
        self.snapshots[name] = self.snapshots[name].crash()
        # Its own clients learn what the process knew; nobody else does.
        node.fail(Fatal("It was told to crash."))
        # So that it leaves no timed calls behind; its disk does nothing any more.
        node.stop()

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

    def advance_until(
        self, condition: Callable[[], object], timeout_s: float = PATIENCE_S
    ) -> None:
        """Let time pass until `condition` is true; `AssertionError` if it is not in time."""
        end = self.clock.seconds() + timeout_s
        while not condition():
            if self.clock.seconds() >= end:
                raise AssertionError(f"not within {timeout_s} s; {self._describe()}")
            self.advance(STEP_S)

    def result(self, deferred: Deferred[T], timeout_s: float = PATIENCE_S) -> T:
        """What `deferred` fires with, letting time pass until it does; its error is raised."""
        outcome: list[Any] = []
        deferred.addBoth(outcome.append)
        self.advance_until(lambda: outcome, timeout_s)
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        value: T = outcome[0]
        return value

    # -- what the nodes agree on ---------------------------------------------

    def leaders(self) -> list[str]:
        """Who takes itself for the leader: two for a while, after a partition."""
        return [n for n, node in self.nodes.items() if _leads(node.status())]

    def await_leader(self, among: Iterable[str] | None = None) -> str:
        """
        Let time pass until one of `among` leads and all of them follow it; its name.

        By default among all that run.
        """
        names = list(self.nodes if among is None else among)
        found: list[str] = []

        def agreed() -> bool:
            statuses = {name: self.nodes[name].status() for name in names}
            found[:] = [name for name, status in statuses.items() if _leads(status)]
            followed = {None if s.leader is None else s.leader.id for s in statuses.values()}
            return followed == {self.members[name].id for name in found}

        self.advance_until(agreed)
        return found[0]

    def await_agreement(self) -> None:
        """
        Let time pass until all that run have applied everything that any has in its log.

        `AssertionError` if their state machines then differ by their digests:
        applying is not deterministic, or a snapshot is not the whole state.
        """

        def agreed() -> bool:
            statuses = [node.status() for node in self.nodes.values()]
            return len({(s.last_index, s.applied_index) for s in statuses}) == 1 and all(
                s.last_index == s.applied_index for s in statuses
            )

        self.advance_until(agreed)
        digests = {name: self.machines[name].digest() for name in self.nodes}
        if len(set(digests.values())) > 1:
            states = ", ".join(f"{name} {digest.hex()}" for name, digest in digests.items())
            raise AssertionError(f"the same was applied, and the states differ: {states}")

    def _describe(self) -> str:
        """All nodes in a line, for who wonders what they are waiting for."""
        words = []
        for name in self.members:
            node = self.nodes.get(name)
            if node is None:
                words.append(f"{name} is down")
            else:
                s = node.status()
                words.append(
                    f"{name} is {s.role} in term {s.term}, "
                    f"applied {s.applied_index} of {s.last_index}"
                )
        return "; ".join(words)

    # -- the nodes -----------------------------------------------------------

    def crash(self, name: str, *, kept: int = 0, power_lost: bool = False) -> None:
        """
        The process is gone, and with it what its disk had not flushed but the
        first `kept` writes of it.

        The others see their connections reset; with `power_lost` they see
        nothing, as when a whole host is gone.
        """
        self._dies(name, self.nodes.pop(name), kept=kept, power_lost=power_lost)

    def stop(self, name: str) -> None:
        """Stop a node in order: a leader hands over, and everything is flushed."""
        node = self.nodes.pop(name)
        self.result(node.stop())
        self.network.ended(self.members[name].id)
        self.logs[name] = self.logs[name].crash()
        self.snapshots[name] = self.snapshots[name].crash()

    def restart(self, name: str) -> ClusterNode:
        """Start a node that is down from what its disk holds."""
        if name in self.nodes:
            raise AssertionError(f"{name} runs already")
        self._start(name)
        return self[name]

    def add(self, name: str | None = None, *, learner: bool = False) -> ClusterNode:
        """
        Start a new node and make it a member: a voter, or a `learner`.

        Returns when it has caught up, and has its vote.
        """
        name = name or f"n{len(self.members) + 1}"
        statuses = {name: node.status() for name, node in self.nodes.items()}
        through = max(statuses, key=lambda n: (_leads(statuses[n]), statuses[n].term))
        node = self.start_joiner(name)
        self.result(self[through].change_membership([AddLearner(self.members[name])]))
        joined = become_member(self.clock, node, learner=learner)
        self.result(Deferred.fromCoroutine(joined))
        return self[name]

    def start_joiner(self, name: str) -> Node:
        """Start a new node with an empty disk, which is no member yet and waits to be one."""
        if name in self.members:
            raise AssertionError(f"{name} is there already")
        self.members[name] = Member(len(self.members) + 1, name)
        return self._install(name)

    # -- the network ---------------------------------------------------------

    def partition(self, *groups: Iterable[str]) -> None:
        """Nodes in different groups no longer reach one another."""
        sides = [[self._address(name) for name in group] for group in groups]
        for side in sides:
            for other in sides:
                if side is not other:
                    for source in side:
                        for target in other:
                            self.network.cut(source, target)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.network.heal()

    def _address(self, name: str) -> MemberId:
        """Who is meant by a name, to the network."""
        return self.members[name].id


def _leads(status: NodeStatus) -> bool:
    return status.role == Role.LEADER.value
