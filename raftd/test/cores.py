"""
Real cores without a driver: the test decides what is delivered, lost and
flushed, and when.

A `Node` is one core with a disk; a `Cluster` is several of them with a
network between.  Everything is checked after every step: each core by
`raftd.core.invariants`, and by `Safety` what binds the cores to one another.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from raftd.core.invariants import Checker
from raftd.core.log import Log
from raftd.core.membership import Configuration
from raftd.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Member,
    MemberId,
    Message,
    PreVoteResponse,
    Request,
    RequestVoteResponse,
    Response,
)
from raftd.core.raft import Outgoing, Raft, Role, Write
from raftd.core.settings import Settings

HEARTBEAT_S = 0.1
ELECTION_S = 0.6
SETTINGS = Settings(heartbeat_interval_ms=100, election_timeout_ms=600)

#: Rounds of delivering and flushing after which a cluster must have come to rest.
MAX_SETTLE_ROUNDS = 10_000


def member(member_id: MemberId) -> Member:
    return Member(member_id, f"n{member_id}:1")


def configuration(
    voters: Iterable[MemberId] = (),
    learners: Iterable[MemberId] = (),
    outgoing: Iterable[MemberId] = (),
) -> Configuration:
    return Configuration(
        tuple(map(member, sorted(voters))),
        tuple(map(member, sorted(outgoing))),
        tuple(map(member, sorted(learners))),
    )


def log_of(terms: Sequence[int]) -> list[Entry]:
    """A log with an entry of each of these terms, from index 1."""
    return [
        Entry(index, term, EntryKind.COMMAND, 0, b"%d.%d" % (index, term))
        for index, term in enumerate(terms, 1)
    ]


def terms_of(log: Log | Sequence[Entry]) -> list[int]:
    entries = log.entries(log.first_index, log.last_index) if isinstance(log, Log) else log
    return [entry.term for entry in entries]


def check(holds: bool, rule: str) -> None:
    """As `assert`, but never optimised away."""
    if not holds:
        raise AssertionError(rule)


class Disk:
    """
    What the write-ahead log promises: writes become durable in their order.

    A write whose first entry is at or before the last replaces the suffix.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), hard_state: HardState | None = None
    ) -> None:
        self.entries = list(entries)
        self.hard_state = hard_state or HardState()
        self.queue: deque[Write] = deque()

    def write(self, write: Write) -> None:
        self.queue.append(write)

    def flush_one(self) -> int:
        """Make the oldest write durable; its number."""
        write = self.queue.popleft()
        if write.hard_state is not None:
            check(write.hard_state.term >= self.hard_state.term, "the term on disk grows")
            self.hard_state = write.hard_state
        if write.entries:
            first = write.entries[0].index
            check(first <= len(self.entries) + 1, "no gap is written")
            self.entries[first - 1 :] = write.entries
        return write.number

    def crash(self) -> None:
        self.queue.clear()

    def holds(self, entry: Entry) -> bool:
        index = entry.index
        return index <= len(self.entries) and self.entries[index - 1] == entry


class Time:
    """The time of one core, or of all cores of a test, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now


class Node:
    """
    One core, its disk and its state machine.

    Each input is followed by a check; outputs are taken by `collect`.
    """

    def __init__(
        self,
        member_id: MemberId,
        base: Configuration,
        *,
        disk: Disk | None = None,
        time: Time | None = None,
        rng: random.Random | None = None,
        settings: Settings = SETTINGS,
        stepped: Callable[[Node], None] | None = None,
    ) -> None:
        self.id = member_id
        self.base = base
        self.disk = disk or Disk()
        self.time = time or Time()
        self.rng = rng or random.Random(member_id)
        self.settings = settings
        self._stepped = stepped
        self.incarnation = 0
        self.start()

    def start(self) -> None:
        """Start, or start again, from what is durable."""
        self.incarnation += 1
        self.up = True
        self.dirty = False
        self.sent: list[Outgoing] = []
        self.to_apply: deque[Entry] = deque()
        self.applied: list[Entry] = []
        self.reads: list[tuple[int, int]] = []
        self.lost_reads: list[int] = []
        self._request_number = 0
        self.raft = Raft(
            self.id,
            self.settings,
            self.rng,
            self.time.now,
            hard_state=self.disk.hard_state,
            log=Log(self.disk.entries),
            configuration=self.base,
        )
        self._checker = Checker(self.raft)
        self._step()

    def crash(self) -> None:
        self.up = False
        self.disk.crash()

    def _step(self) -> None:
        self.dirty = True
        self._checker.check()
        check(self.raft.log.last_term <= self.raft.term, "no entry of a term to come")
        if self._stepped is not None:
            self._stepped(self)

    # -- inputs --------------------------------------------------------------

    def tick(self) -> None:
        self.raft.tick(self.time.now)
        self._step()

    def receive(self, sender: MemberId, request: Request, request_id: int = 1) -> None:
        self.raft.receive_request(sender, request, request_id, self.time.now)
        self._step()

    def respond(self, sender: MemberId, response: Response) -> None:
        self.raft.receive_response(sender, response, self.time.now)
        self._step()

    def unreachable(self, member_id: MemberId) -> None:
        self.raft.unreachable(member_id)
        self._step()

    def propose(self, *batch: bytes) -> tuple[int, int]:
        term_and_index = self.raft.propose(batch, self.time.now)
        self._step()
        return term_and_index

    def read(self, context: int) -> None:
        self.raft.read_index(context)
        self._step()

    def add_learner(self, member_id: MemberId) -> int:
        index = self.raft.add_learner(member(member_id), self.time.now)
        self._step()
        return index

    def promote(self, member_id: MemberId) -> int:
        index = self.raft.promote(member_id, self.time.now)
        self._step()
        return index

    def persisted(self, number: int) -> None:
        self.raft.persisted(number, self.time.now)
        self._step()

    # -- outputs -------------------------------------------------------------

    def collect(self) -> None:
        """Take a `Ready`; what it says to write waits on the disk, to apply in `to_apply`."""
        self.dirty = False
        ready = self.raft.ready(self.time.now)
        if ready.write is not None:
            self.disk.write(ready.write)
        check(all(out.to != self.id for out in ready.messages), "nothing is sent to oneself")
        self.sent += ready.messages
        self.to_apply += ready.committed
        self.reads += ready.reads
        self.lost_reads += ready.lost_reads
        self._step()
        self.dirty = False

    def apply(self, count: int | None = None) -> None:
        """Apply what is committed, or `count` entries of it."""
        if not self.to_apply:
            return
        for _ in range(len(self.to_apply) if count is None else count):
            entry = self.to_apply.popleft()
            check(entry.index == len(self.applied) + 1, "applied in order, once")
            self.applied.append(entry)
        self.raft.applied(len(self.applied))
        self._step()

    def flush(self) -> None:
        """Take what is ready, and make everything durable."""
        self.collect()
        while self.disk.queue:
            while self.disk.queue:
                number = self.disk.flush_one()
            self.persisted(number)
            self.collect()

    def take(self) -> list[Outgoing]:
        """The messages sent since the last time, after a turn without a flush."""
        self.collect()
        sent, self.sent = self.sent, []
        return sent

    def take_flushed(self) -> list[Outgoing]:
        """The messages sent since the last time, with everything flushed."""
        self.flush()
        return self.take()

    # -- shorthands for tests of one node ------------------------------------

    def answer(self, sender: MemberId, request: Request) -> Response:
        """The answer to `request`, once everything is durable."""
        self._request_number += 1
        self.take_flushed()
        self.receive(sender, request, self._request_number)
        answers = [o for o in self.take_flushed() if o.request_id == self._request_number]
        check(len(answers) == 1 and answers[0].to == sender, "one answer to one request")
        message = answers[0].message
        assert isinstance(
            message,
            PreVoteResponse | RequestVoteResponse | AppendEntriesResponse | HeartbeatResponse,
        )
        return message

    def time_out(self) -> None:
        """Let the election timeout pass, whatever was drawn for it."""
        self.time.now += 2 * self.settings.election_timeout_s
        self.tick()

    def become_candidate(self) -> None:
        """By a PreVote that everyone grants; what it promised is durable before and after."""
        self.collect()
        self.flush()
        self.time_out()
        for voter in sorted(self.raft.configuration.voter_ids()):
            if self.raft.role is Role.PRE_CANDIDATE and voter != self.id:
                self.take_flushed()
                self.respond(voter, PreVoteResponse(self.raft.term + 1, True))
        check(self.raft.role is Role.CANDIDATE, "it stands for election")
        self.flush()

    def become_leader(self) -> None:
        """By an election that everyone grants; the no-op is durable here, not committed."""
        self.become_candidate()
        for voter in sorted(self.raft.configuration.voter_ids()):
            if self.raft.role is Role.CANDIDATE and voter != self.id:
                self.respond(voter, RequestVoteResponse(self.raft.term, True))
        check(self.raft.role is Role.LEADER, "it leads")
        self.flush()

    def acknowledge(self, sender: MemberId, match_index: int) -> None:
        self.respond(sender, AppendEntriesResponse(self.raft.term, True, match_index))


def messages_to(sent: Iterable[Outgoing], to: MemberId) -> list[Message]:
    return [out.message for out in sent if out.to == to]


def appends_in(sent: Iterable[Outgoing], to: MemberId | None = None) -> list[AppendEntries]:
    return [
        o.message
        for o in sent
        if isinstance(o.message, AppendEntries) and (to is None or o.to == to)
    ]


def heartbeats_in(sent: Iterable[Outgoing], to: MemberId | None = None) -> list[Heartbeat]:
    return [
        o.message
        for o in sent
        if isinstance(o.message, Heartbeat) and (to is None or o.to == to)
    ]


class Safety:
    """What must hold across all nodes, at every moment (Raft paper, figure 3)."""

    def __init__(self, nodes: dict[MemberId, Node]) -> None:
        self._nodes = nodes
        self._leaders: dict[int, MemberId] = {}
        #: The log of each term's leader as it was elected.
        self._elected_with: dict[int, list[Entry]] = {}
        #: (index, term) -> (the entry, the term before it).
        self._entries: dict[tuple[int, int], tuple[Entry, int]] = {}
        #: What is committed, from index 1.
        self.committed: list[Entry] = []
        #: The term of the leader that committed each.
        self._committed_in: list[int] = []
        self._logs: dict[MemberId, list[Entry]] = {}
        self._commits: dict[tuple[MemberId, int], int] = {}
        self._applied: dict[tuple[MemberId, int], int] = {}

    def check(self, node: Node) -> None:
        """After a step of `node`."""
        raft = node.raft
        log = raft.log.entries(raft.log.first_index, raft.log.last_index)
        self._check_log_matching(node.id, log)
        if raft.role is Role.LEADER:
            if raft.term not in self._leaders:
                self._check_leader_completeness(raft.term, log)
            leader = self._leaders.setdefault(raft.term, node.id)
            check(leader == node.id, f"Election Safety: two leaders in term {raft.term}")
        self._check_commit(node, log)
        key = node.id, node.incarnation
        for entry in node.applied[self._applied.get(key, 0) :]:
            check(
                entry.index <= len(self.committed) and self.committed[entry.index - 1] == entry,
                f"State Machine Safety: {entry.index} at {node.id}",
            )
        self._applied[key] = len(node.applied)

    def _check_log_matching(self, member_id: MemberId, log: list[Entry]) -> None:
        """
        (index, term) determines the entry and the term before it, in every
        log; by induction it determines the whole log up to there.
        """
        before = self._logs.get(member_id, [])
        same = min(len(before), len(log))
        while same and before[same - 1] is not log[same - 1]:
            same -= 1
        for i in range(same, len(log)):
            seen = log[i], log[i - 1].term if i else 0
            known = self._entries.setdefault((log[i].index, log[i].term), seen)
            check(known == seen, f"Log Matching: {seen} and {known}")
        if same < len(log) or same < len(before):
            self._logs[member_id] = log

    def _check_leader_completeness(self, term: int, log: list[Entry]) -> None:
        self._elected_with[term] = log
        for entry, committed_in in zip(self.committed, self._committed_in, strict=True):
            if committed_in < term:
                check(
                    len(log) >= entry.index and log[entry.index - 1] == entry,
                    f"Leader Completeness: the leader of {term} lacks {entry}",
                )

    def _check_commit(self, node: Node, log: list[Entry]) -> None:
        raft = node.raft
        key = node.id, node.incarnation
        before = self._commits.get(key, 0)
        if raft.commit_index == before:
            return
        self._commits[key] = raft.commit_index
        if raft.role is Role.LEADER:
            self._check_quorum_holds(node, log[raft.commit_index - 1])
        for entry in log[before : raft.commit_index]:
            if entry.index > len(self.committed):
                check(raft.role is Role.LEADER, "a leader commits first")
                self._commit(entry, raft.term)
            check(
                self.committed[entry.index - 1] == entry,
                f"State Machine Safety: {entry.index} is committed twice",
            )

    def _commit(self, entry: Entry, term: int) -> None:
        self.committed.append(entry)
        self._committed_in.append(term)
        for later, log in self._elected_with.items():
            if later > term:
                check(
                    len(log) >= entry.index and log[entry.index - 1] == entry,
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


class Cluster:
    """
    Several nodes under one virtual time, and the network between them.

    Messages wait in `queues`, one for each direction, until they are
    delivered or lost.  A request that is lost, or whose answer is, ends in
    `unreachable` at its sender, as drivers promise it.
    """

    def __init__(
        self,
        base: Configuration,
        *,
        seed: int = 0,
        member_ids: Iterable[MemberId] | None = None,
        disks: dict[MemberId, Disk] | None = None,
        settings: Settings = SETTINGS,
    ) -> None:
        self.time = Time()
        self.rng = random.Random(seed)
        self.settings = settings
        self.nodes: dict[MemberId, Node] = {}
        self.safety = Safety(self.nodes)
        self.queues: dict[tuple[MemberId, MemberId], deque[Packet]] = {}
        #: Directions in which nothing arrives.
        self.cut: set[tuple[MemberId, MemberId]] = set()
        self._last_request_id = 0
        #: Requests without an answer: id -> (requester, its incarnation, responder).
        self.unanswered: dict[int, tuple[MemberId, int, MemberId]] = {}
        #: Requests at their responder: its request id -> the packet.
        self._received: dict[int, Packet] = {}
        disks = disks or {}
        for member_id in base.members() if member_ids is None else member_ids:
            self.add(member_id, base, disks.get(member_id))

    def add(self, member_id: MemberId, base: Configuration, disk: Disk | None = None) -> Node:
        """Start a node that knows of `base` only."""
        self.nodes[member_id] = node = Node(
            member_id,
            base,
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
                self._last_request_id += 1
                number = self._last_request_id
                self.unanswered[number] = (node.id, node.incarnation, out.to)
                packet = Packet(node.id, node.incarnation, out.to, number, out.to, out.message)
            else:
                asked = self._received[out.request_id]
                check(asked.requester == out.to, "an answer goes to who has asked")
                packet = Packet(
                    asked.requester,
                    asked.incarnation,
                    node.id,
                    asked.request_id,
                    out.to,
                    out.message,
                )
            self.queues.setdefault((node.id, out.to), deque()).append(packet)

    def deliver(self, packet: Packet) -> None:
        """`packet` arrives; it must have been taken from its queue, or be a repetition."""
        sender = packet.sender
        node = self.nodes.get(packet.to)
        if node is None or not node.up or (sender, packet.to) in self.cut:
            self.lose(packet)
        elif packet.is_request:
            self._received[packet.request_id] = packet
            node.receive(sender, packet.message, packet.request_id)  # type: ignore[arg-type]
        elif node.incarnation == packet.incarnation:
            self.unanswered.pop(packet.request_id, None)
            node.respond(sender, packet.message)  # type: ignore[arg-type]

    def lose(self, packet: Packet) -> None:
        """`packet` does not arrive, and its requester comes to know."""
        self.give_up(packet.request_id)

    def give_up(self, request_id: int) -> None:
        """The requester hears of no answer."""
        asked = self.unanswered.pop(request_id, None)
        if asked is not None:
            requester, incarnation, responder = asked
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

    # -- crashes -------------------------------------------------------------

    def crash(self, member_id: MemberId) -> None:
        """What is not durable is lost, and whoever waits for an answer hears of it."""
        self.nodes[member_id].crash()
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
                if node.dirty:
                    self.collect(node)
                if node.disk.queue:
                    node.flush()
                    self.collect(node)
                node.apply()
            queues = self.waiting()
            for queue in queues:
                self.deliver(queue.popleft())
            if not queues and not any(n.dirty or n.disk.queue for n in self.running()):
                return
        raise AssertionError("the cluster does not come to rest")

    def run(self, seconds: float) -> None:
        """Let time pass, with everything going well."""
        end = self.time.now + seconds
        self.settle()
        while True:
            due = min((n.raft.next_deadline for n in self.running()), default=end)
            if due >= end:
                break
            self.time.now = max(self.time.now, due)
            for node in self.running():
                if node.raft.next_deadline <= self.time.now:
                    node.tick()
            self.settle()
            for node in self.running():
                # A driver would run in circles.
                check(node.raft.next_deadline > self.time.now, "a deadline is met by a tick")
        self.time.now = end

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


def of_voters(count: int, *, seed: int = 0) -> Cluster:
    """A cluster of `count` voters, 1 to `count`, with empty logs."""
    return Cluster(configuration(range(1, count + 1)), seed=seed)
