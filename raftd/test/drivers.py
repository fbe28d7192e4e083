"""
For tests of the node's driver: answers that may come once, state machines
that tell what they were given, and a node among peers that do as they are told.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from random import Random
from typing import Any, Generic, TypeVar

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from raftd.core.membership import Change, Configuration, encode_configuration
from raftd.core.messages import (
    AppendEntries,
    Command,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    Member,
    MemberId,
    Request,
    Response,
    encode_command,
)
from raftd.core.settings import Settings
from raftd.errors import Fatal, RaftdError
from raftd.events import Observer
from raftd.interfaces import Done, INode, IPeer, IStateMachine, ITransport, NodeStatus
from raftd.node import Node
from raftd.replica import ReplicaOptions
from raftd.snapshotting import DEFAULT_THRESHOLD_BYTES
from raftd.statemachine import SimpleStateMachine
from raftd.storage.memory import MemoryLog, MemorySnapshotStore
from raftd.testing import Cluster, Machine

T = TypeVar("T")


def command(operation: bytes) -> bytes:
    """What `INode.propose` takes."""
    return encode_command(Command(operation))


class Answer(Generic[T]):
    """A `done` for one request, which minds being called twice."""

    def __init__(self, then: Callable[[T | RaftdError], None] | None = None) -> None:
        self.outcomes: list[T | RaftdError] = []
        self._then = then

    def __call__(self, outcome: T | RaftdError) -> None:
        self.outcomes.append(outcome)
        if len(self.outcomes) > 1:
            raise AssertionError(f"answered again: {self.outcomes}")
        if self._then is not None:
            self._then(outcome)

    @property
    def given(self) -> bool:
        return bool(self.outcomes)

    @property
    def outcome(self) -> T | RaftdError:
        (outcome,) = self.outcomes
        return outcome


class Journal(SimpleStateMachine):
    """Keeps every operation that was applied, in order; its result is its place there."""

    def __init__(self) -> None:
        self.operations: list[bytes] = []

    def apply_command(self, operation: bytes) -> bytes:
        self.operations.append(operation)
        return b"%d" % len(self.operations)

    def get_state(self) -> bytes:
        return msgspec.msgpack.encode(self.operations)

    def set_state(self, state: bytes) -> None:
        self.operations = msgspec.msgpack.decode(state, type=list[bytes])


class SlowJournal(Journal):
    """A journal that takes its time for operations that begin with `slow`."""

    #: Set by the test: what the steps take is added to its time.
    clock: Clock
    step_s = 0.002
    steps = 0

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        if command.operation.startswith(b"slow"):
            return self._slowly(command.operation)
        return super().apply(index, time_ms, command)

    def _slowly(self, operation: bytes) -> Generator[None, None, bytes]:
        for _ in range(self.steps):
            self.clock.rightNow += self.step_s
            yield
        self.operations.append(operation)
        return b"%d" % len(self.operations)


class ClusterTestCase(SynchronousTestCase):
    """Requests to a cluster in memory; none may be answered twice."""

    def setUp(self) -> None:
        self.answers: list[Answer[Any]] = []

    def tearDown(self) -> None:
        twice = [a.outcomes for a in self.answers if len(a.outcomes) > 1]
        self.assertEqual(twice, [], "a request was answered twice")

    def propose(self, cluster: Cluster[Any], name: str, operation: bytes) -> Answer[bytes]:
        answer: Answer[bytes] = Answer()
        self.answers.append(answer)
        cluster.nodes[name].propose(command(operation), answer)
        return answer

    def read(self, cluster: Cluster[Any], name: str) -> Answer[None]:
        answer: Answer[None] = Answer()
        self.answers.append(answer)
        cluster.nodes[name].read(answer)
        return answer

    def written(self, cluster: Cluster[Any], name: str, operation: bytes) -> None:
        """Write, and let time pass until that is done."""
        answer = self.propose(cluster, name, operation)
        cluster.advance_until(lambda: answer.given)
        self.assertIsInstance(answer.outcome, bytes)

    def led(
        self, size: int, machine: Callable[[], Machine], seed: int = 0, **options: Any
    ) -> tuple[Cluster[Machine], str, list[str]]:
        """A cluster at work: itself, its leader, the others; `options` as of a replica."""
        cluster = Cluster(size, machine, seed=seed, options=ReplicaOptions(**options))
        leader = cluster.await_leader()
        cluster.await_agreement()
        return cluster, leader, [name for name in cluster.nodes if name != leader]

    def assertOutcome(self, answer: Answer[Any], error: type[RaftdError]) -> None:
        self.assertTrue(answer.given, "there is no answer yet")
        self.assertIsInstance(answer.outcome, error)


# -- one node among stubs ------------------------------------------------------


@implementer(INode)
class IdleNode:
    """What each test's own stand-in for a node begins with: one that is asked nothing."""

    def propose(self, data: bytes, done: Done[bytes]) -> None:
        raise NotImplementedError

    def read(self, done: Done[None]) -> None:
        raise NotImplementedError

    def read_recent(self, max_staleness_s: float, done: Done[None]) -> None:
        raise NotImplementedError

    def ask_leader(self, question: bytes, done: Done[bytes]) -> None:
        raise NotImplementedError

    def change_membership(
        self, changes: Sequence[Change], force: bool
    ) -> Deferred[Configuration]:
        raise NotImplementedError

    def transfer(self, successor: MemberId | None) -> Deferred[None]:
        raise NotImplementedError

    def status(self) -> NodeStatus:
        raise NotImplementedError


@implementer(IPeer)
class StubPeer:
    """A peer whose every answer is the test's to give."""

    refusal = ""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.connected = True
        self.closed = False
        self.sent: list[tuple[Request, Deferred[Response]]] = []
        self.forwards: list[tuple[list[bytes], Deferred[list[bytes | RaftdError]]]] = []
        self.asked: list[Deferred[int]] = []
        #: What each of those two was given.
        self.timeouts_ms: list[int] = []
        self.questions: list[tuple[bytes, Deferred[bytes]]] = []
        self.changes: list[tuple[list[Change], bool, Deferred[Configuration]]] = []
        self.transfers: list[tuple[MemberId | None, Deferred[None]]] = []
        #: What to answer a Forward with at once, if anything.
        self.forward_failure: Exception | None = None

    def send(self, request: Request) -> Deferred[Response]:
        answer: Deferred[Response] = Deferred()
        self.sent.append((request, answer))
        return answer

    def forward(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        answer: Deferred[list[bytes | RaftdError]] = Deferred()
        self.forwards.append(([*commands], answer))
        self.timeouts_ms.append(timeout_ms)
        if len(self.forwards) > 10_000:
            raise AssertionError("this goes on for ever")
        if self.forward_failure is not None:
            answer.errback(self.forward_failure)
        return answer

    def read_index(self, timeout_ms: int) -> Deferred[int]:
        answer: Deferred[int] = Deferred()
        self.asked.append(answer)
        self.timeouts_ms.append(timeout_ms)
        return answer

    def ask(self, question: bytes, timeout_ms: int) -> Deferred[bytes]:
        answer: Deferred[bytes] = Deferred()
        self.questions.append((question, answer))
        return answer

    def change_membership(
        self, changes: Sequence[Change], force: bool, timeout_ms: int
    ) -> Deferred[Configuration]:
        answer: Deferred[Configuration] = Deferred()
        self.changes.append(([*changes], force, answer))
        return answer

    def transfer(self, successor: MemberId | None, timeout_ms: int) -> Deferred[None]:
        answer: Deferred[None] = Deferred()
        self.transfers.append((successor, answer))
        return answer

    def close(self) -> Deferred[None]:
        self.connected = False
        self.closed = True
        return succeed(None)


@implementer(ITransport)
class StubTransport:
    def __init__(self) -> None:
        self.peers: dict[MemberId, StubPeer] = {}

    def peer(self, member: Member) -> IPeer:
        self.peers[member.id] = StubPeer(member)
        return self.peers[member.id]


class RecordingLog(MemoryLog):
    """Keeps what it is given, and minds being given anything after its end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writes: list[list[Entry]] = []
        self.closed = False

    def close(self) -> Deferred[None]:
        self.closed = True
        return super().close()

    def write(
        self,
        number: int,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: tuple[int, int] | None = None,
        commit_index: int = 0,
    ) -> None:
        if self.closed:
            raise AssertionError("a write after the log was closed")
        self.writes.append([*entries])
        super().write(number, hard_state, entries, base, commit_index)


class Alone:
    """A node, `n1`, whose peers (2, 3, ...) are stubs and whose disk is the test's."""

    def __init__(
        self,
        size: int,
        state_machine: IStateMachine | None = None,
        *,
        delay_seconds: float | None = 0.0,
        request_timeout_s: float = 5.0,
        settings: Settings | None = None,
        snapshot_threshold_bytes: int = DEFAULT_THRESHOLD_BYTES,
        observer: Observer | None = None,
    ) -> None:
        self.clock = Clock()
        members = tuple(Member(i, f"n{i}") for i in range(1, size + 1))
        data = encode_configuration(Configuration(voters=members))
        first = Entry(1, 1, EntryKind.CONFIGURATION, 0, data)
        self.log = RecordingLog(
            HardState(1), (first,), clock=self.clock, delay_seconds=delay_seconds
        )
        self.snapshots = MemorySnapshotStore(self.clock)
        self.transport = StubTransport()
        self.fatal: list[Fatal] = []
        self.machine = state_machine or Journal()
        self.snapshots.recover(self.machine, self.log.base_index, self.log.entries)
        self.node = Node(
            self.clock,
            member=members[0],
            cluster_id=1,
            storage=self.log,
            snapshots=self.snapshots,
            transport=self.transport,
            state_machine=self.machine,
            random=Random(1),
            settings=settings or Settings(),
            request_timeout_s=request_timeout_s,
            snapshot_threshold_bytes=snapshot_threshold_bytes,
            on_fatal=self.fatal.append,
        )
        if observer is not None:
            self.node.observe(observer)
        self.node.start()
        self.turn()

    def turn(self) -> None:
        """Let everything happen that can happen now."""
        for _ in range(100):
            self.clock.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass, call by call."""
        end = self.clock.seconds() + seconds
        while True:
            due = [c.getTime() for c in self.clock.getDelayedCalls() if c.getTime() <= end]
            if not due:
                break
            self.clock.advance(max(0.0, min(due) - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def heartbeat(self, leader: MemberId, term: int = 1, commit: int = 1) -> None:
        """Hear from `leader`, which is then the leader for this node."""
        self.node.receive(leader, Heartbeat(term, commit, 0))
        self.turn()

    def append(self, leader: MemberId, request: AppendEntries) -> Deferred[Response]:
        answer = self.node.receive(leader, request)
        self.turn()
        return answer

    def propose(self, operation: bytes) -> Answer[bytes]:
        answer: Answer[bytes] = Answer()
        self.node.propose(command(operation), answer)
        return answer

    def read(self) -> Answer[None]:
        answer: Answer[None] = Answer()
        self.node.read(answer)
        return answer
