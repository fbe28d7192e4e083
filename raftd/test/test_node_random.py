"""
Whole nodes under random faults, with clients that remember what they were told.

Each key has one writer, which writes 1, 2, 3, ... and waits for each answer,
so that whoever reads can tell new from old.  When the outcome of a write is
unknown, its writer leaves that key and begins another.  A failure names its
seed, and the seed is the whole of it.
"""

from __future__ import annotations

from random import Random

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.invariants import Checker
from raftd.core.membership import AddLearner, Change, Demote, Promote
from raftd.core.messages import MemberId
from raftd.errors import DidNotHappen, OutcomeUnknown, RaftdError
from raftd.events import Event, SnapshotRestored
from raftd.memory_network import MemoryPeer
from raftd.node import Node
from raftd.replica import ReplicaOptions
from raftd.test.drivers import Answer, Journal, command
from raftd.testing import Cluster

#: How many histories there are, and how long each is.
SEEDS = 25
FAULTY_S = 15.0
STEP_S = 0.02
WRITERS = 3
READERS = 3
#: Snapshots come all the time, and leave little of the log.
OPTIONS = ReplicaOptions(
    request_timeout_ms=3_000, snapshot_threshold_bytes=1_000, snapshot_tail_entries=10
)

#: What befalls a cluster, and how often in comparison.
FAULTS = {
    "crash": 2,
    "crash all": 1,
    "stop": 1,
    "restart": 3,
    "cut": 2,
    "cut one way": 1,
    "heal": 3,
    "disk": 2,
    "disk fails": 1,
    "slow snapshots": 1,
    "transfer": 2,
    "promote": 2,
    "demote": 1,
    "join": 1,
}
#: There are never more members than these.
MAX_SIZE = 6
#: How old what a `read_recent` sees may be.
STALENESS_S = 0.25
#: How often a change is asked for when all is well again.
INSIST_TIMES = 5


class Registers(Journal):
    """The last value of each key; an operation is `key=value`."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[bytes, int] = {}

    def apply_command(self, operation: bytes) -> bytes:
        key, _, value = operation.partition(b"=")
        self.operations.append(operation)
        self.values[key] = int(value)
        return value

    def set_state(self, state: bytes) -> None:
        super().set_state(state)
        for operation in self.operations:
            key, _, value = operation.partition(b"=")
            self.values[key] = int(value)


class Write:
    def __init__(self, key: bytes, value: int, began: float) -> None:
        self.key = key
        self.value = value
        self.began = began
        self.ended: float | None = None
        self.answer: Answer[bytes] = Answer(lambda _: None)

    @property
    def operation(self) -> bytes:
        return b"%s=%d" % (self.key, self.value)


class Read:
    """It must see what was acknowledged `staleness_s` before it began."""

    def __init__(self, key: bytes, began: float, staleness_s: float) -> None:
        self.key = key
        self.began = began
        self.staleness_s = staleness_s
        self.ended: float | None = None
        self.seen = 0
        self.answer: Answer[None]


class History:
    """One run: a cluster, what its clients do, and what befalls it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        size = self.random.choice((1, 2, 3, 3, 3, 5))
        self._size = size
        self.cluster = Cluster(size, Registers, seed=seed, options=OPTIONS)
        for name in self.cluster.nodes:
            self._watch(name)
        self.cluster.network.loss = self.random.choice((0.0, 0.0, 0.001, 0.01))
        self.cluster.network.max_delay_s = self.random.choice((0.002, 0.02, 0.1))
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self._writers: list[Write | None] = [None] * WRITERS
        self._readers: list[Read | None] = [None] * READERS
        self._keys = [b"%d.0" % i for i in range(WRITERS)]
        self._checkers: dict[int, tuple[int, Checker]] = {}
        self._leaders: dict[int, MemberId] = {}
        #: Whose disk may fail at its next flush.
        self._failing: set[str] = set()
        self.restored = 0
        self.changed = 0

    def run(self) -> None:
        end = self.cluster.clock.seconds() + FAULTY_S
        while self.cluster.clock.seconds() < end:
            for i in range(WRITERS):
                self._write(i)
            for i in range(READERS):
                self._read(i)
            if self.random.random() < 0.06:
                self._befall()
            self.cluster.advance(STEP_S)
            self._check_nodes()
        self._end()

    def _end(self) -> None:
        cluster = self.cluster
        cluster.network.loss = 0.0
        cluster.heal()
        self._break_connections()
        for name in self._failing & cluster.nodes.keys():
            self._crash(name)
        for name in cluster.members:
            if name not in cluster.nodes:
                self._restart(name)
            self._set_disk(name, 0.001)
            cluster.snapshots[name].delay_seconds = 0.001
        # Of those that were to join, some were never let in.
        voters = [name for name in cluster.members if int(name[1:]) <= self._size]
        everybody: list[Change] = [AddLearner(member) for member in cluster.members.values()]
        self._insist(voters[0], everybody)
        cluster.await_leader()
        # By then everything that waits has run into its time.
        cluster.advance(5.0)
        cluster.await_agreement()

    def _insist(self, name: str, changes: list[Change]) -> None:
        for _ in range(INSIST_TIMES):
            try:
                self.cluster.result(self.cluster[name].change_membership(changes))
                return
            except (DidNotHappen, OutcomeUnknown) as e:
                reason = e
        raise AssertionError(f"there is no changing the members: {reason}")

    def _break_connections(self) -> None:
        """Else whoever has lost an answer waits for it, a minute at worst."""
        for node in self.cluster.nodes.values():
            for peer in node._peers.members.values():
                assert isinstance(peer, MemoryPeer)
                peer.bulk._break("the test has cut the cable")

    # -- clients ---------------------------------------------------------------

    def _write(self, i: int) -> None:
        last = self._writers[i]
        if last is not None and not last.answer.given:
            return
        if not self.cluster.nodes or self.random.random() < 0.3:
            return
        value = 1
        if last is not None:
            outcome = last.answer.outcome
            value = last.value + 1
            if isinstance(outcome, OutcomeUnknown):
                number = int(self._keys[i].partition(b".")[2])
                self._keys[i] = b"%d.%d" % (i, number + 1)
                value = 1
        write = Write(self._keys[i], value, self._now)

        def ended(_: object) -> None:
            write.ended = self._now

        write.answer = Answer(ended)
        self._writers[i] = write
        self.writes.append(write)
        self._node().propose(command(write.operation), write.answer)

    def _read(self, i: int) -> None:
        last = self._readers[i]
        if last is not None and not last.answer.given:
            return
        if not self.cluster.nodes or self.random.random() < 0.3:
            return
        staleness_s = self.random.choice((0.0, 0.0, STALENESS_S))
        read = Read(self.random.choice(self._keys), self._now, staleness_s)
        name = self.random.choice(sorted(self.cluster.nodes))
        machine = self.cluster.machines[name]

        def ended(_: object) -> None:
            read.ended = self._now
            read.seen = machine.values.get(read.key, 0)

        read.answer = Answer(ended)
        self._readers[i] = read
        self.reads.append(read)
        if staleness_s:
            self.cluster.nodes[name].read_recent(staleness_s, read.answer)
        else:
            self.cluster.nodes[name].read(read.answer)

    def _node(self) -> Node:
        return self.cluster.nodes[self.random.choice(sorted(self.cluster.nodes))]

    @property
    def _now(self) -> float:
        return self.cluster.clock.seconds()

    # -- faults ------------------------------------------------------------------

    def _befall(self) -> None:
        cluster, random = self.cluster, self.random
        running = sorted(cluster.nodes)
        down = sorted(cluster.members.keys() - cluster.nodes.keys())
        (what,) = random.choices(list(FAULTS), list(FAULTS.values()))
        if what == "crash" and running:
            self._crash(random.choice(running))
        elif what == "crash all" and random.random() < 0.3:
            for name in running:
                self._crash(name)
        elif what == "stop" and running:
            cluster.stop(random.choice(running))
        elif what == "restart" and down:
            self._restart(random.choice(down))
        elif what == "cut":
            names = sorted(cluster.members)
            random.shuffle(names)
            at = random.randrange(len(names) + 1)
            cluster.partition(names[:at], names[at:])
        elif what == "cut one way" and len(cluster.members) > 1:
            one, other = random.sample(sorted(cluster.members.values()), 2)
            cluster.network.cut(one.id, other.id)
        elif what == "heal":
            cluster.heal()
        elif what == "disk" and running:
            delay_s = random.choice((0.001, 0.001, 0.01, 0.2, None))
            self._set_disk(random.choice(running), delay_s)
        elif what == "disk fails" and running and random.random() < 0.3:
            name = random.choice(running)
            cluster.logs[name].fail()
            self._failing.add(name)
        elif what == "slow snapshots" and running:
            store = cluster.snapshots[random.choice(running)]
            store.delay_seconds = random.choice((0.001, 0.05, 0.5))
        elif what in ("transfer", "promote", "demote", "join") and running:
            self._ask(what)

    def _ask(self, what: str) -> None:
        """Ask any node for a change of leadership or of membership."""
        cluster = self.cluster
        asked = cluster[self.random.choice(sorted(cluster.nodes))]
        member = cluster.members[self.random.choice(sorted(cluster.members))]
        if what == "transfer":
            asked.transfer(self.random.choice((None, member.id))).addErrback(_expected)
            return
        if what == "promote":
            change: Change = Promote(member.id)
        elif what == "demote":
            change = Demote(member.id)
        else:
            if len(cluster.members) >= MAX_SIZE:
                return
            name = f"n{len(cluster.members) + 1}"
            cluster.start_joiner(name)
            self._watch(name)
            change = AddLearner(cluster.members[name])
        force = self.random.random() < 0.2
        changed = asked.change_membership([change], force=force)
        changed.addCallbacks(self._count_change, _expected)

    def _count_change(self, _: object) -> None:
        self.changed += 1

    def _watch(self, name: str) -> None:
        def note(event: Event) -> None:
            self.restored += isinstance(event, SnapshotRestored)

        self.cluster[name].observe(note)

    def _restart(self, name: str) -> None:
        self.cluster.restart(name)
        self._watch(name)

    def _crash(self, name: str) -> None:
        kept = self.random.randrange(self.cluster.logs[name].unflushed + 1)
        self.cluster.crash(name, kept=kept, power_lost=self.random.random() < 0.5)

    def _set_disk(self, name: str, delay_s: float | None) -> None:
        log = self.cluster.logs[name]
        was_hanging = log.delay_seconds is None
        log.delay_seconds = delay_s
        if was_hanging:
            log.flush()

    # -- what must hold ------------------------------------------------------------

    def _check_nodes(self) -> None:
        for node in self.cluster.nodes.values():
            raft = node._raft
            # It keeps its core alive, so no id comes twice.  What it compares
            # with was seen a while ago: it must have been in the same term.
            term, _ = self._checkers.get(id(raft), (-1, None))
            if term != raft.term:
                self._checkers[id(raft)] = (raft.term, Checker(raft))
            if raft.leadership is not None:
                leader = self._leaders.setdefault(raft.term, raft.member_id)
                assert leader == raft.member_id, f"two leaders in term {raft.term}"
        if self.random.random() < 0.1:
            for node in self.cluster.nodes.values():
                self._checkers[id(node._raft)][1].check()

    def check(self) -> None:
        for reason in self.cluster.fatal.values():
            assert reason.code == "storage_failed", f"a node stopped: {reason}"
        journals = [m.operations for m in self.cluster.machines.values()]
        assert all(journal == journals[0] for journal in journals), "the nodes differ"
        happened = set(journals[0])
        assert len(happened) == len(journals[0]), "a write happened twice"
        for write in self.writes:
            self._check_write(write, happened)
        for read in self.reads:
            assert read.ended is not None, "a read was never answered"
            assert not isinstance(read.answer.outcome, OutcomeUnknown), "an unknown read"
        self._check_order()

    def _check_write(self, write: Write, happened: set[bytes]) -> None:
        outcome = write.answer.outcome
        if isinstance(outcome, DidNotHappen):
            assert write.operation not in happened, f"{outcome!r}, and it happened"
        elif isinstance(outcome, RaftdError):
            assert isinstance(outcome, OutcomeUnknown), f"what is {outcome!r}?"
        else:
            assert write.operation in happened, "an acknowledged write is lost"

    def _check_order(self) -> None:
        """A read sees what was acknowledged before it, and what any earlier read saw."""
        for key in {read.key for read in self.reads}:
            writes = [w for w in self.writes if w.key == key]
            reads = [
                r
                for r in self.reads
                if r.key == key and not isinstance(r.answer.outcome, RaftdError)
            ]
            for read in reads:
                assert read.ended is not None
                began = [w.value for w in writes if w.began <= read.ended]
                assert read.seen <= max(began, default=0), "a read from the future"
                known = [
                    w.value
                    for w in writes
                    if w.ended is not None
                    and w.ended < read.began - read.staleness_s
                    and isinstance(w.answer.outcome, bytes)
                ]
                if not read.staleness_s:
                    known += [
                        r.seen for r in reads if r.ended is not None and r.ended < read.began
                    ]
                assert read.seen >= max(known, default=0), "a read went back in time"


class RandomTests(SynchronousTestCase):
    def test_histories(self) -> None:
        acknowledged = failed = unknown = read = restored = changed = 0
        for seed in range(SEEDS):
            history = History(seed)
            try:
                history.run()
                history.check()
            except AssertionError as e:
                raise AssertionError(f"seed {seed}: {e}") from e
            self.assertEqual(self.flushLoggedErrors(), [], f"seed {seed}")
            outcomes = [w.answer.outcome for w in history.writes]
            acknowledged += sum(isinstance(o, bytes) for o in outcomes)
            failed += sum(isinstance(o, DidNotHappen) for o in outcomes)
            unknown += sum(isinstance(o, OutcomeUnknown) for o in outcomes)
            read += sum(r.answer.outcome is None for r in history.reads)
            restored += history.restored
            changed += history.changed
        # It was neither all quiet nor all broken.
        self.assertGreater(acknowledged, 40 * SEEDS)
        self.assertGreater(read, 40 * SEEDS)
        self.assertGreater(failed, SEEDS)
        self.assertGreater(unknown, SEEDS)
        self.assertGreater(restored, SEEDS)
        self.assertGreater(changed, SEEDS)


def _expected(failure: Failure) -> None:
    """A change may fail in any way that is explained."""
    failure.trap(RaftdError)
