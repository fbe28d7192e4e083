"""
The core under every fault at random, with every check after every step.

A run is determined by its seed.  To repeat one, or to try many:

    python -m raftd.test.test_core_random SEED
    python -m raftd.test.test_core_random FIRST COUNT
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from unittest import mock

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from raftd.core import leader, progress
from raftd.core.membership import (
    AddLearner,
    Change,
    Demote,
    Promote,
    Remove,
    Rename,
    decode_configuration,
)
from raftd.core.messages import EntryKind, TimeoutNow
from raftd.core.raft import Role
from raftd.errors import DidNotHappen
from raftd.test.core_clusters import Cluster, Packet
from raftd.test.cores import (
    ELECTION_S,
    HEARTBEAT_S,
    SETTINGS,
    Node,
    Time,
    check,
    configuration,
    member,
)

#: Seeds that each run of the tests tries, always the same.
SEEDS = range(1, 361)
#: Steps with faults, before the cluster is healed.
STEPS = 2500
#: Nodes that a cluster may have seen in the end, and members at once.
MAX_NODES = 9
MAX_MEMBERS = 6
#: With leases, how much faster or slower than another a clock may run.
MAX_CLOCK_RATIO = 1.2
#: Requests that may be on their way at once; beyond it they are delivered first.
MAX_PACKETS = 200
#: What a run must have done on the average.
LEAST: dict[str, float] = {
    "acknowledged": 30,
    "reads": 25,
    "lease_reads": 10,
    "elections": 4,
    "snapshots_sent": 0.4,
    "changes": 0.7,
    "joint": 0.1,
    "leaders_removed": 0.05,
    "transfers": 0.2,
    "stalls": 0.1,
}
#: Election timeouts in which a healed cluster must have a leader, and all of its log.
#: A candidate's chance of being alone in its spread is better than one half.
HEALED_WITHIN = 30


class Account:
    """What a run has done, so that it can be seen to have done something."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.reads = 0
        self.lease_reads = 0
        self.elections = 0
        self.snapshots_sent = 0
        self.changes = 0
        self.joint = 0
        self.leaders_removed = 0
        self.transfers = 0
        self.stalls = 0

    def add(self, other: Account) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Simulation:
    """One cluster, one seed: faults in any order, then peace and a final account."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        voters = range(1, rng.choice((1, 2, 3, 3, 3, 4, 5, 5)) + 1)
        settings = msgspec.structs.replace(
            SETTINGS,
            snapshot_tail_entries=rng.choice((0, 0, 1, 3, 10)),
            lease_reads=rng.random() < 0.35,
        )
        self.cluster = Cluster(
            configuration(voters), seed=rng.getrandbits(32), settings=settings
        )
        self.done = Account()
        #: Writes that a client knows of: (term, index) by data.
        self.acknowledged: dict[bytes, tuple[int, int]] = {}
        #: Proposals that await being applied: node -> (incarnation, index) -> (term, data).
        self.proposed: dict[int, dict[tuple[int, int], tuple[int, bytes]]] = defaultdict(dict)
        #: Reads that await their answer: context -> the index that they must see.
        self.reading: dict[int, int] = {}
        #: The highest index that any client has seen the effect of.
        self.seen = 0
        self.number = 0
        #: How often each thing happens, drawn once for a run, so that runs differ.
        self.weights: dict[Callable[[], None], float] = {
            self.deliver: rng.uniform(10, 40),
            self.flush: rng.uniform(5, 20),
            self.report_flushed: rng.uniform(5, 20),
            self.end_turns: rng.uniform(5, 20),
            self.apply: rng.uniform(3, 10),
            self.pass_time: rng.uniform(1, 8),
            self.propose: rng.uniform(0.5, 8),
            self.read: rng.uniform(0.5, 8),
            self.take_snapshots: rng.choice((0, 1, 3, 6)),
            self.finish_snapshots: rng.choice((0.5, 2, 6)),
            self.keep_pieces: rng.uniform(1, 6),
            self.install_snapshots: rng.uniform(1, 6),
            self.calm: rng.choice((0.02, 0.1, 0.3)),
            self.duplicate: rng.choice((0, 0, 0.2, 2)),
            self.reorder: rng.choice((0, 0, 0.2, 2)),
            self.drop: rng.choice((0, 0, 0.2, 2)),
            self.time_out_request: rng.choice((0, 0, 0.1, 0.5)),
            self.force_election: rng.choice((0, 0, 0.1, 0.3)),
            self.crash: rng.choice((0, 0, 0.1, 0.4)),
            self.restart: 0.6,
            self.pause: rng.choice((0, 0, 0.05, 0.2)),
            self.resume: 0.1,
            self.partition: rng.choice((0, 0, 0.05, 0.2)),
            self.heal: 0.3,
            self.hold_up: rng.choice((0, 0, 0.3, 1)),
            self.let_go: 0.1,
            self.change_members: rng.choice((0, 0.2, 0.5, 1)),
            self.let_removed_go: rng.choice((0.02, 0.2)),
            self.transfer: rng.choice((0, 0, 0.05, 0.3)),
            self.stall_disk: rng.choice((0, 0, 0.1)),
            self.wake_disk: 0.05,
        }
        if rng.random() < 0.4:
            # A storm: no timeout, but election upon election, and leaders
            # who do not know yet that they lead no more.
            self.weights[self.pass_time] = 0.1
            self.weights[self.force_election] = rng.choice((0.5, 1, 3))
            self.weights[self.hold_up] = rng.choice((0.3, 1, 3))
            self.weights[self.let_go] = 0.3
        self.leases = settings.lease_reads
        if self.leases:
            # With leases nobody stands for election but when it is time, or told to.
            self.weights[self.force_election] = 0
            self.weights[self.pass_time] = rng.uniform(1, 8)
            self.weights[self.read] = rng.uniform(4, 16)
            self.weights[self.transfer] = rng.choice((0, 0.1, 0.5))
        #: How much of what could go on does so at once.
        self.pace = rng.choice((0.4, 0.7, 0.9))
        self.burst = rng.choice((3, 6, 12))
        #: How seldom a long time passes at once.
        self.patience = rng.choice((0.9, 0.97, 1.0))
        #: How reluctant each disk is, from 0 to nearly 1.
        self.slowness = {m: rng.choice((0.0, 0.0, 0.0, 0.8)) for m in range(1, MAX_NODES + 1)}
        #: Disks that hang.
        self.stalled: set[int] = set()
        #: How fast each clock runs where leases rest on it.
        fastest = MAX_CLOCK_RATIO**0.5
        self.rates = {m: rng.uniform(1 / fastest, fastest) for m in range(1, MAX_NODES + 1)}
        #: Directions in which everything is late.
        self.held_up: set[tuple[int, int]] = set()
        #: Nodes whose process stands still.
        self.paused: set[int] = set()
        #: Members that know of their removal, and have stopped for good.
        self.gone: set[int] = set()
        #: Writes that are durable, and of which the core does not know.
        self.unreported: dict[int, int] = {}
        for node in self.cluster.running():
            node.disk.is_lazy = rng.random() < 0.3

    # -- faults and everyday life --------------------------------------------

    def run(self) -> None:
        if self.rng.random() < 0.8:
            self.cluster.run(2 * ELECTION_S)
        for node in self.cluster.running():
            node.time = Time(self.cluster.time.now)
        actions, weights = list(self.weights), list(self.weights.values())
        for action in self.rng.choices(actions, weights, k=STEPS):
            action()
            self.account()
            if sum(map(len, self.cluster.queues.values())) > MAX_PACKETS:
                self.deliver()
        self.make_peace()

    def awake(self) -> list[Node]:
        return [node for node in self.cluster.running() if node.id not in self.paused]

    def some_node(self) -> Node | None:
        awake = self.awake()
        return self.rng.choice(awake) if awake else None

    def some_nodes(self) -> list[Node]:
        return [node for node in self.awake() if self.rng.random() < self.pace]

    def some_leader(self) -> Node | None:
        """Whoever believes to lead, as a rule."""
        leaders = [node for node in self.awake() if node.raft.role is Role.LEADER]
        return self.rng.choice(leaders) if leaders else self.some_node()

    def some_packet(self, *, any_place: bool = False) -> Packet | None:
        """Take the next packet of a queue, or one from further back."""
        queues = [
            queue
            for direction, queue in self.cluster.queues.items()
            if queue and direction[1] not in self.paused and direction not in self.held_up
        ]
        if not queues:
            return None
        queue = self.rng.choice(queues)
        if any_place:
            queue.rotate(-self.rng.randrange(len(queue)))
        return queue.popleft()

    def arrive(self, packet: Packet) -> None:
        self.done.transfers += isinstance(packet.message, TimeoutNow)
        self.cluster.deliver(packet)

    def deliver(self) -> None:
        for _ in range(self.rng.randint(1, self.burst)):
            packet = self.some_packet()
            if packet is not None:
                self.arrive(packet)

    def reorder(self) -> None:
        packet = self.some_packet(any_place=True)
        if packet is not None:
            self.arrive(packet)

    def duplicate(self) -> None:
        packet = self.some_packet()
        if packet is not None:
            self.arrive(packet)
            self.cluster.queues[packet.sender, packet.to].append(packet)

    def drop(self) -> None:
        packet = self.some_packet()
        if packet is not None:
            self.cluster.lose(packet)

    def time_out_request(self) -> None:
        """A requester gives up; the request or its answer may arrive all the same."""
        if self.cluster.unanswered:
            self.cluster.give_up(self.rng.choice(list(self.cluster.unanswered)))

    def calm(self) -> None:
        """All goes well for a moment."""
        self.paused.clear()
        self.held_up.clear()
        self.cluster.settle()

    def pause(self) -> None:
        node = self.some_leader()
        if node is not None and not self.paused:
            self.paused.add(node.id)

    def hold_up(self) -> None:
        """What one node sends to another arrives long after."""
        ids = list(self.cluster.nodes)
        one = self.rng.choice(ids)
        if self.rng.random() < 0.5:
            self.held_up |= {(other, one) for other in ids}
        else:
            self.held_up.add((self.rng.choice(ids), one))

    def let_go(self) -> None:
        self.held_up.clear()

    def resume(self) -> None:
        self.paused.clear()

    def end_turns(self) -> None:
        for node in self.some_nodes():
            if node.dirty:
                self.cluster.collect(node)

    def flush(self) -> None:
        for node in self.some_nodes():
            if node.id in self.stalled:
                continue
            if node.disk.queue and self.rng.random() >= self.slowness[node.id]:
                self.unreported[node.id] = node.disk.flush_one()

    def report_flushed(self) -> None:
        for node in self.some_nodes():
            if node.id in self.unreported:
                node.persisted(self.unreported.pop(node.id))

    def apply(self) -> None:
        for node in self.some_nodes():
            if node.to_apply or node.restoring is not None:
                node.apply(self.rng.randint(0, len(node.to_apply)))

    def take_snapshots(self) -> None:
        for node in self.some_nodes():
            node.begin_snapshot()

    def finish_snapshots(self) -> None:
        for node in self.some_nodes():
            node.finish_snapshot()

    def keep_pieces(self) -> None:
        for node in self.some_nodes():
            if node.pieces:
                node.keep_piece()

    def install_snapshots(self) -> None:
        for node in self.some_nodes():
            if node.received:
                node.install()

    def stall_disk(self) -> None:
        node = self.some_leader()
        if node is not None:
            self.stalled.add(node.id)

    def wake_disk(self) -> None:
        self.stalled.clear()

    def pass_time(self) -> None:
        # Turns end before time goes on.  Each node has a clock of its own.
        passed = (
            self.rng.choice((0.001, 0.01, 0.03, 0.05))
            if self.rng.random() < self.patience
            else ELECTION_S
        )
        for node in self.cluster.running():
            if node.id not in self.paused and node.dirty:
                self.cluster.collect(node)
            rate = self.rng.choice((0.5, 0.9, 1, 1, 1.1, 2))
            node.time.now += passed * (self.rates[node.id] if self.leases else rate)
            if node.id not in self.paused and node.raft.next_deadline <= node.time.now:
                was_handing_over = node.raft.is_handing_over
                node.tick()
                # A transfer that is asked for is not begun by a tick.
                self.done.stalls += node.raft.is_handing_over and not was_handing_over

    def force_election(self) -> None:
        """
        Stand for election without a pre-vote, at once, as a leader's successor does.

        Any nodes may do so at any time: it costs availability, and nothing else.
        """
        for node in self.rng.sample(
            self.awake(), min(len(self.awake()), self.rng.choice((1, 2)))
        ):
            raft = node.raft
            if raft.role is not Role.LEADER and raft.configuration.is_voter(node.id):
                raft._campaign(node.time.now, transfer=True)
                node.tick()

    def transfer(self) -> None:
        node = self.some_leader()
        if node is None:
            return
        successors = [None, *node.raft.configuration.members()]
        with contextlib.suppress(DidNotHappen):
            node.transfer(self.rng.choice(successors))

    def propose(self) -> None:
        node = self.some_leader()
        if node is None:
            return
        self.number += 1
        batch = [b"%d.%d" % (self.number, i) for i in range(self.rng.choice((1, 1, 2, 5)))]
        try:
            term, first = node.propose(*batch)
        except DidNotHappen:
            return
        for index, data in enumerate(batch, first):
            self.proposed[node.id][node.incarnation, index] = (term, data)

    def read(self) -> None:
        node = self.some_leader()
        if node is None:
            return
        self.number += 1
        released = len(node.raft._reads_out)
        try:
            node.read(self.number)
        except DidNotHappen:
            return
        self.reading[self.number] = self.seen
        self.done.lease_reads += len(node.raft._reads_out) > released

    def crash(self) -> None:
        """Where it hurts, if that can be: with something durable of which nobody knows yet."""
        awake = self.awake()
        busy = [n for n in awake if n.received or n.restoring is not None or n.taking]
        writing = [n for n in awake if n.disk.queue]
        nodes = busy if busy and self.rng.random() < 0.5 else writing
        node = self.rng.choice(nodes) if nodes else self.some_node()
        if node is None:
            return
        self.crash_node(node)
        if self.rng.random() < 0.5:
            self.cluster.restart(node.id)

    def crash_node(self, node: Node) -> None:
        # Some of what was being written is durable, and nobody has heard of it.
        for _ in range(self.rng.randint(0, len(node.disk.queue))):
            node.disk.flush_one()
        if node.taking is not None and self.rng.random() < 0.5:
            node.disk.keep(node.taking)
        self.unreported.pop(node.id, None)
        for context, _ in node.reads:
            self.reading.pop(context, None)
        self.cluster.crash(node.id)

    def restart(self) -> None:
        down = [n for n in self.cluster.nodes.values() if not n.up and n.id not in self.gone]
        if down:
            self.cluster.restart(self.rng.choice(down).id)

    def partition(self) -> None:
        ids = list(self.cluster.nodes)
        kind = self.rng.random()
        if kind < 0.4:
            self.cluster.isolate(*self.rng.sample(ids, self.rng.randint(1, len(ids))))
        else:
            a, b = self.rng.choice(ids), self.rng.choice(ids)
            self.cluster.cut.add((a, b))
            if kind < 0.7:
                self.cluster.cut.add((b, a))

    def heal(self) -> None:
        self.cluster.heal()

    def change_members(self) -> None:
        leaders = self.cluster.leaders()
        if not leaders:
            return
        changing = self.rng.choice(leaders)
        changes = [self.some_change(changing) for _ in range(self.rng.choice((1, 2, 3)))]
        try:
            changing.change(*changes, force=self.rng.random() < 0.3)
        except DidNotHappen:
            return
        self.done.changes += 1
        self.done.leaders_removed += Remove(changing.id) in changes
        for change in changes:
            if isinstance(change, AddLearner) and change.member.id not in self.cluster.nodes:
                node = self.cluster.add(change.member.id)
                node.time = Time(changing.time.now)
                node.disk.is_lazy = self.rng.random() < 0.3

    def some_change(self, changing: Node) -> Change:
        configuration = changing.raft.configuration
        members = list(configuration.members())
        learners = [m.id for m in configuration.learners]
        last = max(self.cluster.nodes)
        if len(members) < MAX_MEMBERS and last < MAX_NODES and self.rng.random() < 0.3:
            return AddLearner(member(last + 1))
        if learners and self.rng.random() < 0.6:
            return Promote(self.rng.choice(learners))
        some = self.rng.choice(members)
        kind = self.rng.random()
        if kind < 0.5:
            return Remove(some)
        return Demote(some) if kind < 0.9 else Rename(some, f"m{self.number}:1")

    def let_removed_go(self) -> None:
        """A member that has applied its own removal stops."""
        for node in self.some_nodes():
            raft = node.raft
            if (
                node.id in raft.configuration.removed
                and raft.configuration_index <= raft.applied_index
            ):
                self.gone.add(node.id)
                self.crash_node(node)

    # -- what clients see ----------------------------------------------------

    def account(self) -> None:
        """Acknowledge what proposers have applied, and answer reads."""
        done = self.done
        for node in self.cluster.running():
            proposed = self.proposed[node.id]
            for (incarnation, index), (term, data) in list(proposed.items()):
                if incarnation != node.incarnation:
                    del proposed[incarnation, index]
                elif index <= len(node.applied):
                    del proposed[incarnation, index]
                    entry = node.applied[index - 1]
                    if entry.term == term:
                        check(entry.data == data, "what was proposed is what is applied")
                        self.acknowledged[data] = (term, index)
                        self.seen = max(self.seen, index)
                        done.acknowledged += 1
            for context in node.lost_reads:
                self.reading.pop(context)
            node.lost_reads = []
            for context, index in node.reads[:]:
                must_see = self.reading[context]
                check(
                    index >= must_see,
                    f"stale read: {context} sees {index}, and {must_see} was seen before it",
                )
                if index <= len(node.applied):
                    node.reads.remove((context, index))
                    del self.reading[context]
                    done.reads += 1
                    self.seen = max(self.seen, len(node.applied))

    # -- the end -------------------------------------------------------------

    def make_peace(self) -> None:
        """Everything works again: one leader, one log, nothing lost, nothing unanswered."""
        cluster = self.cluster
        self.resume()
        self.wake_disk()
        cluster.heal()
        for node in list(cluster.nodes.values()):
            if not node.up and node.id not in self.gone:
                cluster.restart(node.id)
            elif node.id in self.unreported:
                node.persisted(self.unreported.pop(node.id))
            node.finish_snapshot()
        deadline = cluster.time.now + HEALED_WITHIN * ELECTION_S
        while not self.is_level():
            check(cluster.time.now < deadline, "it heals in time")
            cluster.run(HEARTBEAT_S)
            self.account()
        (elected,) = self.leading()
        _, index = elected.propose(b"after")
        elected.read(0)
        self.reading[0] = self.seen
        cluster.run(2 * HEARTBEAT_S)
        self.account()
        check(0 not in self.reading, "a read is answered")
        for member_id in elected.raft.configuration.members():
            node = cluster[member_id]
            check(node.raft.leader_id == elected.id, "all know the leader")
            check(node.applied == elected.applied, "all have applied the same")
        check(len(elected.applied) >= index, "a write is applied")
        applied = {entry.data: (entry.term, entry.index) for entry in elected.applied}
        for data, where in self.acknowledged.items():
            check(applied.get(data) == where, f"{data!r} was acknowledged and is lost")
        cluster.settle()
        check(not cluster.unanswered, "every request ends")
        self.close_account(elected)

    def leading(self) -> list[Node]:
        """Leaders, but for one that was removed and does not know it yet."""
        return [n for n in self.cluster.leaders() if n.id in n.raft.configuration.members()]

    def is_level(self) -> bool:
        """One leader whom all members know, and whose whole log they have committed."""
        leaders = self.leading()
        if len(leaders) != 1:
            return False
        raft = leaders[0].raft
        if raft.configuration.is_joint or raft.is_handing_over:
            return False
        members = [self.cluster[m].raft for m in raft.configuration.members()]
        return all(
            (m.term, m.leader_id, m.commit_index)
            == (raft.term, raft.member_id, raft.log.last_index)
            for m in members
        )

    def close_account(self, elected: Node) -> None:
        done = self.done
        done.elections = elected.raft.term
        done.snapshots_sent = self.cluster.installed
        for entry in elected.applied:
            if entry.kind == EntryKind.CONFIGURATION:
                done.joint += decode_configuration(entry.data).is_joint


def run_seed(seed: int) -> Simulation:
    """`AssertionError` or `InvariantViolated` with the command that repeats it."""
    rng = random.Random(f"the bounds of {seed}")
    # Small requests and windows make short logs as full of corners as long ones.
    with (
        mock.patch.object(leader, "MAX_ENTRIES_PER_APPEND", rng.choice((1, 2, 5, 4096))),
        mock.patch.object(progress, "MAX_APPENDS_IN_FLIGHT", rng.choice((1, 2, 5, 32))),
        mock.patch("raftd.core.raft.MAX_DISK_STALL_TIMEOUTS", rng.choice((0.2, 0.5, 3))),
    ):
        try:
            simulation = Simulation(seed)
            simulation.run()
        except BaseException as e:
            e.args = (f"{e} [python -m raftd.test.test_core_random {seed}]",)
            raise
    return simulation


class RandomFaults(SynchronousTestCase):
    def test_no_fault_breaks_a_rule(self) -> None:
        total = Account()
        for seed in SEEDS:
            total.add(run_seed(seed).done)
        # The runs must have done something, or they have shown nothing.
        for name, least in LEAST.items():
            self.assertGreater(getattr(total, name), least * len(SEEDS), name)

    def test_a_seed_determines_its_run(self) -> None:
        first, second = run_seed(7), run_seed(7)
        self.assertEqual(first.cluster.safety.committed, second.cluster.safety.committed)
        self.assertEqual(first.acknowledged, second.acknowledged)


def main(first: int, count: int = 1) -> None:
    began = time.monotonic()
    total = Account()
    for seed in range(first, first + count):
        total.add(run_seed(seed).done)
    print(f"{count} seeds in {time.monotonic() - began:.1f} s:")
    for name, value in vars(total).items():
        print(f"{value:10d} {name}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
