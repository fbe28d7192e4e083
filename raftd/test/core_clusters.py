"""
Several real cores with a network between them, and what must hold for all of
them at every moment.

Everything is checked after every step: each core by itself, and by `Safety`
what binds the cores to one another.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from raftd.core.membership import Configuration
from raftd.core.messages import (
    Entry,
    Heartbeat,
    InstallSnapshot,
    InstallSnapshotResponse,
    MemberId,
    Message,
)
from raftd.core.raft import Role
from raftd.core.settings import Settings
from raftd.test.cores import (
    SETTINGS,
    Disk,
    Node,
    Snapshot,
    Time,
    check,
    configuration,
    piece_of,
)

#: Rounds of delivering and flushing after which a cluster must have come to rest.
MAX_SETTLE_ROUNDS = 10_000
#: How often a snapshot is sent again from an earlier offset before it is given up.
MAX_RESTARTS = 3
#: A deadline this close has come: sums of floats are not exact.
EPSILON_S = 1e-9


class LogView:
    """The log of a node at one moment."""

    def __init__(self, node: Node) -> None:
        log = node.raft.log
        self.base_index, self.base_term = log.base_index, log.base_term
        self.entries = log.entries(log.first_index, log.last_index)

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    def at(self, index: int) -> Entry:
        return self.entries[index - self.base_index - 1]

    def holds(self, entry: Entry) -> bool:
        """Whether it holds this entry; what lies below the base is committed."""
        if entry.index <= self.base_index:
            return True
        return entry.index <= self.last_index and self.at(entry.index) == entry

    def agrees_with(self, other: LogView) -> int:
        """The last index at which both have one and the same entry, or the higher base."""
        index = min(self.last_index, other.last_index)
        lowest = max(self.base_index, other.base_index)
        while index > lowest and self.at(index) is not other.at(index):
            index -= 1
        return max(index, lowest)


class Safety:
    """What must hold across all nodes, at every moment (Raft paper, figure 3)."""

    def __init__(self, nodes: dict[MemberId, Node], committed: Iterable[Entry] = ()) -> None:
        self._nodes = nodes
        self.leaders_of_terms: dict[int, MemberId] = {}
        #: The log of each term's leader as it was elected.
        self._elected_with: dict[int, LogView] = {}
        #: (index, term) -> (the entry, the term before it).
        self._entries: dict[tuple[int, int], tuple[Entry, int]] = {}
        #: What is committed, from index 1.
        self.committed = list(committed)
        #: The term of the leader that committed each.
        self._committed_in = [entry.term for entry in self.committed]
        self._logs: dict[MemberId, LogView] = {}
        self._commits: dict[tuple[MemberId, int], int] = {}
        self._applied: dict[tuple[MemberId, int, int], int] = {}
        #: (leader, term, member) -> the last round in which the member has heard it.
        self._heard: dict[tuple[MemberId, int, MemberId], int] = {}

    def check(self, node: Node) -> None:
        """After a step of `node`."""
        raft = node.raft
        log = LogView(node)
        self._check_log_matching(node.id, log)
        if raft.role is Role.LEADER:
            if raft.term not in self.leaders_of_terms:
                self._check_leader_completeness(raft.term, log)
            leader = self.leaders_of_terms.setdefault(raft.term, node.id)
            check(leader == node.id, f"Election Safety: two leaders in term {raft.term}")
        self._check_commit(node, log)
        key = node.id, node.incarnation, node.restores
        for entry in node.applied[self._applied.get(key, 0) :]:
            check(self._is_committed(entry), f"State Machine Safety: {entry.index} at {key[0]}")
        self._applied[key] = len(node.applied)
        self._check_reads(node)

    def heard(self, node: Node, leader: MemberId, heartbeat: Heartbeat) -> None:
        """`node` has received a heartbeat; it counts if it is of the node's own term."""
        if node.raft.term == heartbeat.term:
            key = leader, heartbeat.term, node.id
            self._heard[key] = max(self._heard.get(key, 0), heartbeat.round)

    def _check_reads(self, node: Node) -> None:
        """
        A read is released when a quorum has heard its leader in a round that
        was begun after the read had arrived (thesis 6.4).
        """
        for context, _ in node.reads:
            if context not in node.waiting_reads:
                continue
            term, before = node.waiting_reads.pop(context)
            for voters in node.raft.configuration.majorities():
                heard = {v for v in voters if self._heard.get((node.id, term, v), 0) > before}
                quorum = len((heard | {node.id}) & voters)
                check(2 * quorum > len(voters), f"read {context} is confirmed by a quorum")

    def _is_committed(self, entry: Entry) -> bool:
        return entry.index <= len(self.committed) and self.committed[entry.index - 1] == entry

    def _check_log_matching(self, member_id: MemberId, log: LogView) -> None:
        """
        (index, term) determines the entry and the term before it, in every
        log; by induction it determines the whole log up to there.
        """
        before = self._logs.get(member_id)
        same = log.base_index if before is None else before.agrees_with(log)
        for index in range(max(same, log.base_index) + 1, log.last_index + 1):
            entry = log.at(index)
            term = log.at(index - 1).term if index > log.base_index + 1 else log.base_term
            known = self._entries.setdefault((index, entry.term), (entry, term))
            check(known == (entry, term), f"Log Matching: {entry} after {term} and {known}")
        if before is None or (before.base_index, before.base_term) != (
            log.base_index,
            log.base_term,
        ):
            self._check_base(member_id, log)
        self._logs[member_id] = log

    def _check_base(self, member_id: MemberId, log: LogView) -> None:
        """What a log no longer holds is committed, and ends with the term that it says."""
        if log.base_index:
            check(log.base_index <= len(self.committed), f"{member_id} dropped what it may not")
            term = self.committed[log.base_index - 1].term
            check(log.base_term == term, f"the log of {member_id} begins in the wrong term")

    def _check_leader_completeness(self, term: int, log: LogView) -> None:
        self._elected_with[term] = log
        for entry, committed_in in zip(self.committed, self._committed_in, strict=True):
            check(
                committed_in >= term or log.holds(entry),
                f"Leader Completeness: the leader of {term} lacks {entry}",
            )

    def _check_commit(self, node: Node, log: LogView) -> None:
        raft = node.raft
        key = node.id, node.incarnation
        before = self._commits.get(key, 0)
        if raft.commit_index == before:
            return
        self._commits[key] = raft.commit_index
        if raft.role is Role.LEADER:
            entry = log.at(raft.commit_index)
            check(entry.term == raft.term, "a leader commits by an entry of its own term")
            self._check_quorum_holds(node, entry)
        check(log.base_index <= raft.commit_index, "what was dropped is committed")
        for index in range(max(before, log.base_index) + 1, raft.commit_index + 1):
            entry = log.at(index)
            if index > len(self.committed):
                check(raft.role is Role.LEADER, "a leader commits first")
                self._commit(entry, raft.term)
            check(
                self._is_committed(entry), f"State Machine Safety: {index} is committed twice"
            )

    def _commit(self, entry: Entry, term: int) -> None:
        self.committed.append(entry)
        self._committed_in.append(term)
        for later, log in self._elected_with.items():
            check(
                later <= term or log.holds(entry),
                f"Leader Completeness: the leader of {later} lacks {entry}",
            )

    def _check_quorum_holds(self, node: Node, entry: Entry) -> None:
        for voters in node.raft.configuration.majorities():
            holding = sum(v in self._nodes and self._nodes[v].disk.holds(entry) for v in voters)
            check(
                2 * holding > len(voters),
                f"{node.id} committed {entry.index}, which {holding} of {len(voters)} hold",
            )


class Packet:
    """A request or an answer on its way; `request_id` ties the two together."""

    __slots__ = ("incarnation", "message", "request_id", "requester", "responder", "to")

    def __init__(
        self,
        requester: MemberId,
        incarnation: int,
        responder: MemberId,
        request_id: int,
        to: MemberId,
        message: Message,
    ) -> None:
        self.requester = requester
        self.incarnation = incarnation
        self.responder = responder
        self.request_id = request_id
        self.to = to
        self.message = message

    @property
    def is_request(self) -> bool:
        return self.to == self.responder

    @property
    def sender(self) -> MemberId:
        return self.requester if self.is_request else self.responder


class Sending:
    """A snapshot on its way, one piece at a time, as a driver sends it."""

    def __init__(self, snapshot: Snapshot, term: int, pieces: int) -> None:
        """From the leader of `term`, in so many pieces."""
        self.snapshot = snapshot
        self.term = term
        self._file = snapshot.encode()
        self._size = len(self._file) // pieces + 1
        self.offset = 0
        self.restarts = 0
        self.request_id = 0

    def piece(self) -> InstallSnapshot:
        return piece_of(self.snapshot, self._file, self.term, self.offset, self._size)


class Cluster:
    """
    Several nodes under one virtual time, and the network between them.

    Messages wait in `queues`, one for each direction, until they are
    delivered or lost.  A request that is lost, or whose answer is, ends in
    `unreachable` at its sender, as drivers promise it.  Who was removed is
    turned away, as the handshake does it.
    """

    def __init__(
        self,
        base: Configuration,
        *,
        seed: int = 0,
        member_ids: Iterable[MemberId] | None = None,
        disks: dict[MemberId, Disk] | None = None,
        settings: Settings = SETTINGS,
        committed: Iterable[Entry] = (),
    ) -> None:
        """`committed` is what was before the test begins, in snapshots for example."""
        self.time = Time()
        self.rng = random.Random(seed)
        self.settings = settings
        self.nodes: dict[MemberId, Node] = {}
        self.safety = Safety(self.nodes, committed)
        self.queues: dict[tuple[MemberId, MemberId], deque[Packet]] = {}
        #: Directions in which nothing arrives.
        self.cut: set[tuple[MemberId, MemberId]] = set()
        self._last_request_id = 0
        #: Requests without an answer: id -> (requester, its incarnation, responder).
        self.unanswered: dict[int, tuple[MemberId, int, MemberId]] = {}
        #: Requests at their responder: its request id -> the packet.
        self._received: dict[int, Packet] = {}
        #: Snapshots on their way, by sender and receiver.
        self.sending: dict[tuple[MemberId, MemberId], Sending] = {}
        #: How many have arrived.
        self.installed = 0
        disks = disks or {}
        for member_id in base.members() if member_ids is None else member_ids:
            self.add(member_id, base, disks.get(member_id))

    def add(
        self, member_id: MemberId, base: Configuration | None = None, disk: Disk | None = None
    ) -> Node:
        """Start a node that knows of `base` only, or of nobody."""
        self.nodes[member_id] = node = Node(
            member_id,
            configuration() if base is None else base,
            disk=disk,
            time=self.time,
            rng=random.Random(self.rng.random()),
            settings=self.settings,
            stepped=self.safety.check,
        )
        return node

    def __getitem__(self, member_id: MemberId) -> Node:
        return self.nodes[member_id]

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.up]

    # -- the network ---------------------------------------------------------

    def collect(self, node: Node) -> None:
        """End a turn of `node`: its messages go on their way."""
        for out in node.take():
            if out.request_id is None:
                self._ask(node, out.to, out.message)
                continue
            asked = self._received[out.request_id]
            check(asked.requester == out.to, "an answer goes to who has asked")
            self._post(
                Packet(
                    asked.requester,
                    asked.incarnation,
                    node.id,
                    asked.request_id,
                    out.to,
                    out.message,
                )
            )
        lacking, node.lacking = node.lacking, []
        for member_id in lacking:
            self._begin_sending(node, member_id)

    def _ask(self, node: Node, to: MemberId, message: Message) -> int:
        self._last_request_id += 1
        number = self._last_request_id
        self.unanswered[number] = (node.id, node.incarnation, to)
        self._post(Packet(node.id, node.incarnation, to, number, to, message))
        return number

    def _post(self, packet: Packet) -> None:
        self.queues.setdefault((packet.sender, packet.to), deque()).append(packet)

    def deliver(self, packet: Packet) -> None:
        """`packet` arrives; it must have been taken from its queue, or be a repetition."""
        sender = packet.sender
        node = self.nodes.get(packet.to)
        if node is None or not node.up or (sender, packet.to) in self.cut:
            self.lose(packet)
        elif packet.is_request:
            committed = node.raft.configuration_at(node.raft.commit_index)
            if sender in committed.removed:
                self.lose(packet)
                return
            self._received[packet.request_id] = packet
            node.receive(sender, packet.message, packet.request_id)  # type: ignore[arg-type]
            if isinstance(packet.message, Heartbeat):
                self.safety.heard(node, sender, packet.message)
        elif node.incarnation == packet.incarnation:
            self.unanswered.pop(packet.request_id, None)
            if isinstance(packet.message, InstallSnapshotResponse):
                self._piece_answered(node, packet, packet.message)
            else:
                node.respond(sender, packet.message)  # type: ignore[arg-type]

    def lose(self, packet: Packet) -> None:
        """`packet` does not arrive, and its requester comes to know."""
        self.give_up(packet.request_id)

    def give_up(self, request_id: int) -> None:
        """The requester hears of no answer."""
        asked = self.unanswered.pop(request_id, None)
        if asked is not None:
            requester, incarnation, responder = asked
            sending = self.sending.get((requester, responder))
            if sending is not None and sending.request_id == request_id:
                del self.sending[requester, responder]
            node = self.nodes[requester]
            if node.up and node.incarnation == incarnation:
                node.unreachable(responder)

    def waiting(self) -> list[deque[Packet]]:
        return [queue for queue in self.queues.values() if queue]

    def isolate(self, *member_ids: MemberId) -> None:
        """Cut these off from all others, but not from one another."""
        for inside in member_ids:
            for outside in self.nodes.keys() - set(member_ids):
                self.cut |= {(inside, outside), (outside, inside)}

    def heal(self) -> None:
        self.cut.clear()

    # -- snapshots on their way ----------------------------------------------

    def _begin_sending(self, node: Node, to: MemberId) -> None:
        if (node.id, to) in self.sending:
            return
        snapshot = node.disk.latest
        assert snapshot is not None, "what is compacted is behind a snapshot"
        term = node.raft.term
        sending = Sending(snapshot, term, self.rng.choice((1, 2, 3)))
        self.sending[node.id, to] = sending
        sending.request_id = self._ask(node, to, sending.piece())

    def _piece_answered(
        self, node: Node, packet: Packet, answer: InstallSnapshotResponse
    ) -> None:
        to = packet.responder
        sending = self.sending.get((node.id, to))
        if sending is None or sending.request_id != packet.request_id:
            node.respond(to, answer)
            return
        if self._leads_in(node, sending.term):
            node.respond(to, answer)
        if self._leads_in(node, sending.term) and answer.term == sending.term:
            if answer.installed:
                del self.sending[node.id, to]
                self.installed += 1
                node.snapshot_installed(to, sending.term, sending.snapshot.index)
                return
            sending.restarts += answer.next_offset <= sending.offset
            sending.offset = answer.next_offset
            if sending.restarts <= MAX_RESTARTS:
                sending.request_id = self._ask(node, to, sending.piece())
                return
        del self.sending[node.id, to]
        node.unreachable(to)

    def _leads_in(self, node: Node, term: int) -> bool:
        return node.raft.role is Role.LEADER and node.raft.term == term

    # -- crashes -------------------------------------------------------------

    def crash(self, member_id: MemberId) -> None:
        """What is not durable is lost, and whoever waits for an answer hears of it."""
        self.nodes[member_id].crash()
        for direction in list(self.sending):
            if direction[0] == member_id:
                del self.sending[direction]
        for request_id, (requester, _, responder) in list(self.unanswered.items()):
            if requester == member_id:
                del self.unanswered[request_id]
            elif responder == member_id:
                self.give_up(request_id)

    def restart(self, member_id: MemberId) -> Node:
        node = self.nodes[member_id]
        if node.up:
            self.crash(member_id)
        node.start()
        return node

    # -- everything going well -----------------------------------------------

    def settle(self) -> None:
        """Deliver, flush and apply until nothing more happens; no time passes."""
        for _ in range(MAX_SETTLE_ROUNDS):
            for node in self.running():
                self._finish_turn(node)
            queues = self.waiting()
            for queue in queues:
                self.deliver(queue.popleft())
            if not queues and not any(n.dirty or n.disk.queue for n in self.running()):
                return
        raise AssertionError("the cluster does not come to rest")

    def _finish_turn(self, node: Node) -> None:
        if node.dirty:
            self.collect(node)
        if node.pieces or node.received:
            node.take_in()
            self.collect(node)
        if node.disk.queue:
            node.flush()
            self.collect(node)
        node.apply()

    def run(self, seconds: float) -> None:
        """Let time pass, with everything going well."""
        end = self.time.now + seconds
        self.settle()
        while True:
            left = min((self._time_left(n) for n in self.running()), default=seconds)
            if self.time.now + left >= end:
                break
            self._pass(max(0.0, left))
            due = [n for n in self.running() if self._time_left(n) <= EPSILON_S]
            for node in due:
                node.time.now = max(node.time.now, node.raft.next_deadline)
                node.tick()
            self.settle()
            for node in self.running():
                # A driver would run in circles.
                check(self._time_left(node) > 0, "a deadline is met by a tick")
        self._pass(end - self.time.now)

    def _time_left(self, node: Node) -> float:
        return node.raft.next_deadline - node.time.now

    def _pass(self, seconds: float) -> None:
        """On every clock."""
        for time in {self.time, *(node.time for node in self.nodes.values())}:
            time.now += seconds

    def elect(self, member_id: MemberId) -> Node:
        """Have this node elected: all others have lost their leader, and it is first to act."""
        self.time.now += 2 * self.settings.election_timeout_s
        node = self.nodes[member_id]
        for leader in self.leaders():
            leader.tick()
        node.tick()
        self.settle()
        check(node.raft.role is Role.LEADER, f"{member_id} is elected")
        return node

    def leaders(self) -> list[Node]:
        return [n for n in self.running() if n.raft.role is Role.LEADER]

    def leader(self) -> Node:
        """The only leader."""
        (leader,) = self.leaders()
        return leader


def of_voters(count: int, *, seed: int = 0, settings: Settings = SETTINGS) -> Cluster:
    """A cluster of `count` voters, 1 to `count`, with empty logs."""
    return Cluster(configuration(range(1, count + 1)), seed=seed, settings=settings)
