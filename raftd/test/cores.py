"""
Real cores without a driver: the test decides what is delivered, lost and
flushed, and when.

A `Node` is one core with a disk and a state machine, whose state is the list
of all that it has applied.  It does what a driver promises and no more, in
steps that a crash may come between.  Each core is checked by
`raftd.core.invariants` after every step.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import astuple

from raftd.core.invariants import Checker
from raftd.core.log import Log
from raftd.core.membership import AddLearner, Change, Configuration, Promote
from raftd.core.messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    InstallSnapshot,
    Member,
    MemberId,
    Message,
    PreVote,
    PreVoteResponse,
    Request,
    RequestVote,
    RequestVoteResponse,
    Response,
)
from raftd.core.raft import Raft, Role
from raftd.core.ready import Outgoing, Piece, Write
from raftd.core.settings import Settings
from raftd.core.snapshot import SnapshotMetadata

HEARTBEAT_S = 0.1
ELECTION_S = 0.6
SETTINGS = Settings(heartbeat_interval_ms=100, election_timeout_ms=600)
#: With leases, and no tail of the log kept behind a snapshot.
LEASES = msgspec.structs.replace(SETTINGS, lease_reads=True)
NO_TAIL = msgspec.structs.replace(SETTINGS, snapshot_tail_entries=0)

#: Snapshots that a disk keeps.
SNAPSHOTS_KEPT = 2


def member(member_id: MemberId) -> Member:
    return Member(member_id, f"n{member_id}:1")


def configuration(
    voters: Iterable[MemberId] = (),
    learners: Iterable[MemberId] = (),
    outgoing: Iterable[MemberId] = (),
    removed: Iterable[MemberId] = (),
) -> Configuration:
    return Configuration(
        tuple(map(member, sorted(voters))),
        tuple(map(member, sorted(outgoing))),
        tuple(map(member, sorted(learners))),
        tuple(removed),
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


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """A whole snapshot, whose state is everything that was applied."""

    metadata: SnapshotMetadata
    state: tuple[Entry, ...]

    @property
    def index(self) -> int:
        return self.metadata.last_included_index

    @property
    def key(self) -> tuple[int, int]:
        return self.metadata.last_included_index, self.metadata.last_included_term

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, file: bytes) -> Snapshot:
        return msgspec.msgpack.decode(file, type=cls)


def snapshot_of(
    entries: Sequence[Entry], base: Configuration, index: int | None = None
) -> Snapshot:
    """A snapshot of a log up to `index`, or of all of it."""
    state = tuple(entries[:index])
    metadata = SnapshotMetadata(state[-1].index, state[-1].term, base, state[-1].time_ms)
    return Snapshot(metadata, state)


class Disk:
    """
    What the write-ahead log and the store of snapshots promise.

    Writes become durable in their order, compactions behind the writes that
    were there before them.  A write whose first entry is at or before the last
    replaces the suffix; one with a base drops the whole log.  A snapshot is
    durable, whole, or not there.
    """

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        hard_state: HardState | None = None,
        *,
        base: tuple[int, int] = (0, 0),
        snapshots: Iterable[Snapshot] = (),
    ) -> None:
        self.base_index, self.base_term = base
        self.entries = list(entries)
        self.hard_state = hard_state or HardState()
        #: The greatest commit index that a durable write has carried.
        self.commit_index = 0
        self.queue: deque[Write] = deque()
        self.snapshots = list(snapshots)
        #: (write that comes first, base index).
        self._compactions: deque[tuple[int, int]] = deque()
        #: Whether compaction waits for a more convenient time, which never comes.
        self.is_lazy = False

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    @property
    def latest(self) -> Snapshot | None:
        return self.snapshots[-1] if self.snapshots else None

    def write(self, write: Write) -> None:
        self.queue.append(write)

    def flush_one(self) -> int:
        """Make the oldest write durable; its number."""
        write = self.queue.popleft()
        if write.hard_state is not None:
            check(write.hard_state.term >= self.hard_state.term, "the term on disk grows")
            self.hard_state = write.hard_state
        if write.base is not None:
            check(self._has_snapshot(write.base[0]), "a log begins anew behind a snapshot")
            self.base_index, self.base_term = write.base
            self.entries.clear()
        if write.entries:
            first = write.entries[0].index
            check(self.base_index < first <= self.last_index + 1, "no gap is written")
            self.entries[first - self.base_index - 1 :] = write.entries
        check(write.commit_index <= self.last_index, "a write is durable with what it commits")
        self.commit_index = max(self.commit_index, write.commit_index)
        while self._compactions and self._compactions[0][0] <= write.number:
            self._compact(self._compactions.popleft()[1])
        return write.number

    def compact(self, base_index: int) -> None:
        if self.queue:
            self._compactions.append((self.queue[-1].number, base_index))
        else:
            self._compact(base_index)

    def _compact(self, base_index: int) -> None:
        if self.is_lazy or base_index <= self.base_index:
            return
        check(self._has_snapshot(base_index), "a log is compacted behind a snapshot")
        check(base_index <= self.last_index, "a log is compacted where it is durable")
        self.base_term = self.entries[base_index - self.base_index - 1].term
        del self.entries[: base_index - self.base_index]
        self.base_index = base_index

    def keep(self, snapshot: Snapshot) -> None:
        """A snapshot has become durable."""
        if all(kept.key != snapshot.key for kept in self.snapshots):
            kept = sorted([*self.snapshots, snapshot], key=lambda s: s.key)
            self.snapshots = kept[-SNAPSHOTS_KEPT:]

    def _has_snapshot(self, index: int) -> bool:
        return self.latest is not None and self.latest.index >= index

    def crash(self) -> None:
        self.queue.clear()
        self._compactions.clear()

    def holds(self, entry: Entry) -> bool:
        """Whether the entry, or its effect, is here."""
        position = entry.index - self.base_index - 1
        if 0 <= position < len(self.entries) and self.entries[position] == entry:
            return True
        latest = self.latest
        return latest is not None and latest.state[entry.index - 1 : entry.index] == (entry,)


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
        """`base` is the configuration before the first entry of the log."""
        self.id = member_id
        self.base = base
        self.disk = disk or Disk()
        self.time = time or Time()
        self.rng = rng or random.Random(member_id)
        self.settings = settings
        self._stepped = stepped
        self.incarnation = 0
        #: How often a snapshot has taken the place of the state.
        self.restores = 0
        self.start()

    def start(self) -> None:
        """Start, or start again, from what is durable."""
        self.incarnation += 1
        self.up = True
        self.dirty = False
        #: Since the last `Ready`, nothing came but what wants none.
        self._is_calm = False
        #: When `tick` was to be called, as of the last `Ready`.
        self._due = math.inf
        self.sent: list[Outgoing] = []
        self.to_apply: deque[Entry] = deque()
        latest = self.disk.latest
        #: The state: all that was ever applied, here or where a snapshot is from.
        self.applied: list[Entry] = [] if latest is None else list(latest.state)
        self.reads: list[tuple[int, int]] = []
        self.lost_reads: list[int] = []
        #: Reads that wait for a round, and the (term, round) that was there before.
        self.waiting_reads: dict[int, tuple[int, int]] = {}
        #: Members to which a snapshot is to be sent.
        self.lacking: list[MemberId] = []
        #: The snapshot that is being taken.
        self.taking: Snapshot | None = None
        #: What is to take the place of the state.
        self.restoring: SnapshotMetadata | None = None
        #: Pieces that have arrived; what there is of their snapshot; the last
        #: pieces of snapshots that are durable, of which the core does not know.
        self.pieces: deque[Piece] = deque()
        self._partial: tuple[tuple[int, int], bytearray] = ((0, 0), bytearray())
        self.received: deque[tuple[Piece, Snapshot]] = deque()
        self._request_number = 0
        self.raft = Raft(
            self.id,
            self.settings,
            self.rng,
            self.time.now,
            hard_state=self.disk.hard_state,
            log=Log(self.disk.entries, self.disk.base_index, self.disk.base_term),
            snapshot=SnapshotMetadata(0, 0, self.base, 0)
            if latest is None
            else latest.metadata,
            commit_index=self.disk.commit_index,
        )
        self._checker = Checker(self.raft)
        self._step()

    def crash(self) -> None:
        self.up = False
        self.disk.crash()

    def _step(self, wants_turn: bool = True) -> None:
        self.dirty = True
        self._is_calm = self._is_calm and not wants_turn
        if self._is_calm:  # else the driver would not know
            check(self.raft.next_deadline >= self._due, "what wants no turn is due no earlier")
        self._checker.check()
        check(self.raft.log.last_term <= self.raft.term, "no entry of a term to come")
        if self.raft.role is Role.LEADER:
            elected = HardState(self.raft.term, self.id)
            check(self.disk.hard_state == elected, "a leader's own vote is durable")
        if self._stepped is not None:
            self._stepped(self)

    # -- inputs --------------------------------------------------------------

    def tick(self) -> None:
        self.raft.tick(self.time.now)
        self._step()

    def receive(self, sender: MemberId, request: Request, request_id: int = 1) -> None:
        committed = self.raft.commit_index
        self.raft.receive_request(sender, request, request_id, self.time.now)
        if isinstance(request, AppendEntries):
            verified = request.prev_log_index + len(request.entries)
            check(
                self.raft.commit_index <= max(committed, verified),
                "a follower commits what the request has verified",
            )
        self._step()

    def respond(self, sender: MemberId, response: Response) -> None:
        self.raft.receive_response(sender, response, self.time.now)
        self._step(self.raft.wants_turn)

    def unreachable(self, member_id: MemberId) -> None:
        self.raft.unreachable(member_id)
        self._step()

    def propose(self, *batch: bytes) -> tuple[int, int]:
        term_and_index = self.raft.propose(batch, self.time.now)
        self._step()
        return term_and_index

    def read(self, context: int) -> None:
        raft = self.raft
        at_once = len(raft._reads_out)
        raft.read_index(context, self.time.now)
        assert raft.leadership is not None
        if len(raft._reads_out) == at_once:  # else by a lease
            self.waiting_reads[context] = (raft.term, raft.leadership.reads.round)
        self._step()

    def change(self, *changes: Change, force: bool = False) -> int:
        index = self.raft.change_membership(changes, self.time.now, force=force)
        self._step()
        return index

    def add_learner(self, member_id: MemberId) -> int:
        return self.change(AddLearner(member(member_id)))

    def promote(self, member_id: MemberId) -> int:
        return self.change(Promote(member_id))

    def transfer(self, successor: MemberId | None = None) -> None:
        self.raft.transfer(successor, self.time.now)
        self._step()

    def persisted(self, number: int) -> None:
        self.raft.persisted(number, self.time.now)
        self._step(self.raft.wants_turn)

    def snapshot_installed(self, member_id: MemberId, term: int, index: int) -> None:
        self.raft.snapshot_installed(member_id, term, index)
        self._step()

    # -- outputs -------------------------------------------------------------

    def collect(self) -> None:
        """Take a `Ready`; what it says to write waits on the disk, to apply in `to_apply`."""
        self.dirty = False
        is_due = self.time.now >= self.raft.next_deadline
        ready = self.raft.ready(self.time.now)
        if self._is_calm and not is_due:
            check(not any(astuple(ready)), "what wants no turn has nothing for it")
        if ready.write is not None:
            self.disk.write(ready.write)
        for out in ready.messages:
            self._check_promise(out.message, out.to)
        for entry in ready.committed:
            check(self.disk.holds(entry), "what is applied is durable here")
        self.sent += ready.messages
        if ready.restore is not None:
            self.restoring = ready.restore
            self.to_apply.clear()
        self.to_apply += ready.committed
        self.reads += ready.reads
        self.lost_reads += ready.lost_reads
        self.lacking += ready.lack_snapshot
        self.pieces += ready.pieces
        self._step()
        self.dirty, self._is_calm = False, True
        self._due = self.raft.next_deadline

    def _check_promise(self, message: Message, to: MemberId) -> None:
        """What a message says about its sender is on the sender's disk when it leaves."""
        check(to != self.id, "nothing is sent to oneself")
        durable = self.disk.hard_state
        match message:
            case PreVote() | PreVoteResponse():
                pass
            case RequestVote(term=term):
                check(durable == HardState(term, self.id), "its own vote is durable")
            case RequestVoteResponse(term=term, granted=True):
                check(durable == HardState(term, to), "a vote is durable")
            case AppendEntriesResponse(term=term, success=True, match_index=last):
                self._check_holds(last, term)
        if not isinstance(message, PreVote | PreVoteResponse):
            check(message.term <= durable.term, "the term of a message is durable")

    def _check_holds(self, last: int, term: int) -> None:
        """The entries up to `last`, acknowledged in `term`, are on the disk."""
        log = self.raft.log
        if term == self.raft.term and log.base_index < last:
            check(last <= log.last_index, "what is acknowledged is in the log")
            (entry,) = log.entries(last, last)
            check(self.disk.holds(entry), "what is acknowledged is durable")

    def apply(self, count: int | None = None) -> None:
        """Apply what is committed, or `count` entries of it; restoring comes first."""
        if self.restoring is not None:
            self._restore(self.restoring)
        if not self.to_apply:
            return
        for _ in range(len(self.to_apply) if count is None else count):
            entry = self.to_apply.popleft()
            check(entry.index == len(self.applied) + 1, "applied in order, once")
            self.applied.append(entry)
        self.raft.applied(len(self.applied))
        self._step(wants_turn=False)

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

    # -- snapshots -----------------------------------------------------------

    def begin_snapshot(self) -> bool:
        """Begin to take a snapshot of this moment's state; false if there is nothing new."""
        self.collect()
        self.dirty = True  # the turn is not over
        index, latest = len(self.applied), self.disk.latest
        if self.taking is not None or self.restoring is not None or not index:
            return False
        if latest is not None and index <= latest.index:
            return False
        last = self.applied[-1]
        check(self.raft.log.term_at(index) == last.term, "the log holds what was applied last")
        configuration = self.raft.configuration_at(index)
        metadata = SnapshotMetadata(index, last.term, configuration, last.time_ms)
        self.taking = Snapshot(metadata, tuple(self.applied))
        return True

    def finish_snapshot(self) -> None:
        """What was begun is durable now, and the log is compacted behind it."""
        if self.taking is None:
            return
        snapshot, self.taking = self.taking, None
        self.disk.keep(snapshot)
        self.disk.compact(self.raft.compact(snapshot.index))
        self._step()

    def take_snapshot(self) -> None:
        """All of it at once."""
        check(self.begin_snapshot(), "there is something to take a snapshot of")
        self.finish_snapshot()

    def keep_piece(self) -> None:
        """Keep the oldest piece, durably if it is the last, or say where to go on."""
        piece = self.pieces.popleft()
        request, latest = piece.request, self.disk.latest
        key = request.last_included_index, request.last_included_term
        next_offset = request.offset + len(request.data)
        if latest is not None and latest.key == key:
            kept: Snapshot | None = latest
        else:
            kept = None
            if self._partial[0] != key:
                self._partial = key, bytearray()
            held = self._partial[1]
            if request.offset != len(held):
                next_offset = len(held)
            else:
                held += request.data
                if request.done:
                    kept = Snapshot.decode(bytes(held))
                    check(kept.key == key, "a snapshot says what it is")
                    self.disk.keep(kept)
                    self._partial = ((0, 0), bytearray())
        if request.done and kept is not None:
            self.received.append((piece, kept))
        else:
            self.raft.piece_kept(piece, next_offset)
            self._step()

    def install(self) -> None:
        """Tell the core of a snapshot that has arrived and is durable."""
        piece, snapshot = self.received.popleft()
        self.raft.install_snapshot(piece, snapshot.metadata)
        self._step()

    def take_in(self) -> None:
        """Keep, install and restore whatever has arrived."""
        self.collect()
        while self.pieces or self.received:
            while self.pieces:
                self.keep_piece()
            while self.received:
                self.install()
            self.collect()
        if self.restoring is not None:
            self._restore(self.restoring)

    def _restore(self, metadata: SnapshotMetadata) -> None:
        (snapshot,) = (s for s in self.disk.snapshots if s.metadata == metadata)
        self.restoring = None
        self.restores += 1
        self.applied = list(snapshot.state)
        self.raft.applied(snapshot.index)
        self._step()
        self.disk.compact(self.raft.compact(snapshot.index))

    # -- shorthands for tests of one node ------------------------------------

    def answer(self, sender: MemberId, request: Request) -> Response:
        """The answer to `request`, once everything is durable."""
        self._request_number += 1
        self.take_flushed()
        self.receive(sender, request, self._request_number)
        self.take_in()
        answers = [o for o in self.take_flushed() if o.request_id == self._request_number]
        check(len(answers) == 1 and answers[0].to == sender, "one answer to one request")
        message = answers[0].message
        assert isinstance(message, Response)
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


THREE = configuration([1, 2, 3])
FIVE = configuration([1, 2, 3, 4, 5])


def node_with(terms: Sequence[int] = (), term: int = 1, voted_for: MemberId = NOBODY) -> Node:
    """Node 2 of three, freshly started with a log of these terms."""
    return Node(2, THREE, disk=Disk(log_of(terms), HardState(term, voted_for)))


def leader_of(
    voters: int | Configuration,
    terms: Sequence[int] = (),
    term: int = 0,
    settings: Settings = SETTINGS,
) -> Node:
    """Node 1 of so many, elected over a log of these terms; the no-op is its last entry."""
    base = configuration(range(1, voters + 1)) if isinstance(voters, int) else voters
    node = Node(1, base, disk=Disk(log_of(terms), HardState(term)), settings=settings)
    node.become_leader()
    node.take()
    return node


def pieces_of(snapshot: Snapshot, term: int, count: int = 3) -> list[InstallSnapshot]:
    """What the leader of `term` sends of a snapshot, in `count` pieces."""
    file = snapshot.encode()
    size = len(file) // count + 1
    return [piece_of(snapshot, file, term, at, size) for at in range(0, len(file), size)]


def piece_of(
    snapshot: Snapshot, file: bytes, term: int, offset: int, size: int
) -> InstallSnapshot:
    data = file[offset : offset + size]
    return InstallSnapshot(term, *snapshot.key, offset, data, offset + size >= len(file))


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


def round_in(sent: Iterable[Outgoing]) -> int:
    """The number of the one round that these heartbeats are of."""
    (number,) = {heartbeat.round for heartbeat in heartbeats_in(sent)}
    return number
