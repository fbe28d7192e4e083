"""
The Raft algorithm of one node, as a value machine.

Inputs are method calls with plain values and the time; outputs are gathered
in one `Ready` value per turn.  There is no clock, no disk, no network and no
source of randomness here, and no method blocks or does I/O.

    inputs                                       outputs (`Ready`)
    tick(now)                                    what to make durable
    receive_request / receive_response           messages to send
    unreachable(member)                          entries to apply
    propose / read_index                         reads to answer
    membership changes, transfer                 who needs a snapshot
    persisted(write number), applied(index)      pieces of one to keep
    compact, piece_kept, install_snapshot        one to restore from

The caller promises: after each turn of inputs it takes `ready()`; it hands
the writes to storage in order and reports each with `persisted`; it sends the
messages in order; every request it sends ends in `receive_response` or in
`unreachable`; it applies the entries in order.  Snapshot files are the
caller's: the core decides who needs one, which pieces are welcome and what a
whole one replaces.

What comes in is one section of `Raft`, and what is done about it is in those
behind: elections, following a leader, snapshots, leading.  They are one class
because they are one state: role, leader, term, log and what is committed of it
change together, and most of the invariants bind two of them.  What has a state
of its own has a module of its own: `Leadership`, `Campaign`, `Log`,
`ConfigurationHistory`, `Outbox`, `Space`.

Durability rules, which the whole of Raft's safety rests on:

1. No message leaves before the term and vote it was made under are durable,
   and a candidate does not count its own vote before.
2. An AppendEntries answer leaves when every entry it acknowledges is durable.
3. A leader counts its own copy when it is durable.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Protocol

from raftd.core.election import Campaign
from raftd.core.leader import Leadership
from raftd.core.log import Log
from raftd.core.membership import (
    Change,
    Configuration,
    ConfigurationHistory,
    configurations_in,
    encode_configuration,
)
from raftd.core.messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    MemberId,
    PreVote,
    PreVoteResponse,
    Request,
    RequestVote,
    RequestVoteResponse,
    Response,
    TimeoutNow,
    TimeoutNowResponse,
)
from raftd.core.outbox import Outbox
from raftd.core.ready import Outgoing, Piece, Ready, Write
from raftd.core.settings import Settings
from raftd.core.snapshot import SnapshotMetadata
from raftd.core.space import NO_SPACE_TIMEOUTS, Space
from raftd.errors import (
    ChangeInProgress,
    InvariantViolated,
    NotLeader,
    ProtocolViolation,
)

#: A leader whose oldest write takes longer than this many election timeouts
#: lets another one lead.
MAX_DISK_STALL_TIMEOUTS = 3
#: Data of the entries that stay in the log behind a snapshot: a follower that
#: lacks more gets on sooner with the snapshot.
MAX_TAIL_BYTES = 16 << 20


class Random(Protocol):
    """A source of randomness, such as a seeded `random.Random`."""

    def random(self) -> float:
        """A number in [0, 1)."""


class Role(enum.Enum):
    """What a node does in its term.  A learner is a follower without a vote."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Raft:
    """
    One node.

    Invariants, checked by `raftd.core.invariants`:

    - `term` never decreases; `voted_for` changes only with it or from nobody
    - `commit_index` never decreases, and nothing at or below it is truncated
    - `applied_index <= min(commit_index, persisted_index) <= last_index`
    - `leadership` exists exactly while the role is LEADER, `campaign` exactly
      while it is PRE_CANDIDATE or CANDIDATE
    """

    def __init__(
        self,
        member_id: MemberId,
        settings: Settings,
        random: Random,
        now: float,
        *,
        hard_state: HardState | None = None,
        log: Log | None = None,
        snapshot: SnapshotMetadata | None = None,
        commit_index: int = 0,
    ) -> None:
        """
        A node with what storage has recovered, all of it durable.

        `snapshot` is what the state machine was restored from; the log leads
        up to it at least.  `commit_index` is the greatest that a durable
        `Write` carried.  `InvariantViolated` if something is missing.
        """
        self.member_id = member_id
        self.settings = settings
        self._random = random
        self._outbox = Outbox(hard_state or HardState())
        self.log = log or Log()
        if self.log.last_term > self.term:
            raise InvariantViolated(
                f"the log has an entry of term {self.log.last_term}, and the last term that "
                f"this node took note of is {self.term}: it was lost"
            )
        snapshot = snapshot or SnapshotMetadata(0, 0, Configuration(), 0)
        restored = snapshot.last_included_index
        self.log.fit(snapshot, commit_index)
        if snapshot.last_included_term > self.term:
            # It became durable before the term in which it was received, and
            # nobody was told anything in that term.
            self._set_hard_state(snapshot.last_included_term, NOBODY)
        self._configurations = ConfigurationHistory(snapshot.configuration, restored)
        behind = self.log.entries(restored + 1, self.log.last_index)
        self._configurations.append(configurations_in(behind))

        self.role = Role.FOLLOWER
        self.leader_id = NOBODY
        self.applied_index = restored
        # Safe without asking anybody: what was committed once stays so, and no
        # entry of it is ever truncated; and a write is durable only with all
        # that it says is committed, so that these very entries are in this log.
        self.commit_index = max(restored, commit_index)
        #: The last entry that was handed out to be applied.
        self._committed_out = restored
        #: The commit index of the last `ready`.
        self._commit_seen = self.commit_index
        #: The last configuration that was found to be neither joint nor without
        #: this node, when it was committed.
        self._settled: Configuration | None = None
        self.leadership: Leadership | None = None
        self.campaign: Campaign | None = None

        self._space = Space()
        #: When a leader without room may try next to hand over.
        self._relief_due = now

        self._reads_out: list[tuple[int, int]] = []
        self._lost_reads: list[int] = []
        self._pieces: list[Piece] = []
        self._restore: SnapshotMetadata | None = None
        #: The last write with which the log begins anew.
        self._reset_write = 0

        #: With leases, a node that has forgotten whom it follows must not vote
        #: before the lease that it may have given is over.
        self._leader_contact = now if settings.lease_reads else -math.inf
        self._quorum_check_due = math.inf
        self._reset_election_timer(now)
        if self.configuration.voter_ids() == {member_id} and not settings.lease_reads:
            # There is nobody to wait for, and nobody to disturb.
            self._election_due = now

    # -- what others may look at ---------------------------------------------

    @property
    def hard_state(self) -> HardState:
        return self._outbox.hard_state

    @property
    def term(self) -> int:
        return self._outbox.hard_state.term

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the last one in the log, committed or not."""
        return self._configurations.latest

    @property
    def configuration_index(self) -> int:
        """The index of its entry; it is committed if that is."""
        return self._configurations.latest_index

    def configuration_at(self, index: int) -> Configuration:
        """The configuration in force when `index` was the last entry."""
        return self._configurations.at(index)

    @property
    def wants_turn(self) -> bool:
        """
        Whether `ready` is to be asked for, now that an answer has come or a
        write is durable; it is not where that has changed nothing, as when the
        last of the members acknowledges what is committed already.
        """
        leadership = self.leadership
        return (
            leadership is None
            or self.commit_index != self._commit_seen
            or self._committed_out < min(self.commit_index, self.log.persisted_index)
            or self._outbox.has_messages
            or not self.log.is_written
            or leadership.has_more_to_send(self.commit_index)
        )

    @property
    def next_deadline(self) -> float:
        """When `tick` wants to be called; infinity if never."""
        if self.leadership is not None:
            return min(self.leadership.next_deadline, self._quorum_check_due)
        return self._election_due

    @property
    def is_handing_over(self) -> bool:
        """Whether this node leads and proposes nothing any more, for another to lead."""
        return self.leadership is not None and not self.leadership.may_propose

    # -- what comes in -------------------------------------------------------

    def tick(self, now: float) -> None:
        """The time is `now`; do what has become due.  To be called at `next_deadline`."""
        if self.leadership is not None:
            self._check_quorum(self.leadership, now)
            self._check_disk(now)
            self._check_space(now)
        elif now >= self._election_due:
            if not (self._outbox.is_hard_state_durable and self._may_lead):
                # The last vote is not on disk yet: a slow disk must not make
                # term after term, none of which it ever reaches.  Or it was
                # learned meanwhile that this node has no vote any more.
                self._reset_election_timer(now)
            else:
                self._pre_campaign(now)
        if self.leadership is not None:
            self.leadership.tick(self.commit_index, now)

    def receive_request(
        self, sender: MemberId, request: Request, request_id: int, now: float
    ) -> None:
        """
        A request of a peer; its answer comes in a `Ready` with this `request_id`.

        `ProtocolViolation` if no correct peer sends it; nothing has changed then.
        `NoSpace` if the disk is full: nothing of it was carried out, and no
        answer comes; but whoever sent it has been heard.
        """
        match request:
            case AppendEntries():
                self._append_entries(sender, request, request_id, now)
            case Heartbeat():
                self._heartbeat(sender, request, request_id, now)
            case PreVote():
                self._pre_vote(sender, request, request_id, now)
            case RequestVote():
                self._request_vote(sender, request, request_id, now)
            case InstallSnapshot():
                self._install_snapshot_piece(sender, request, request_id, now)
            case TimeoutNow():
                self._timeout_now(sender, request, request_id, now)

    def receive_response(self, sender: MemberId, response: Response, now: float) -> None:
        """The answer of a peer to a request that this node sent it."""
        if isinstance(response, PreVoteResponse) and response.granted:
            if self.role is Role.PRE_CANDIDATE and response.term == self.term + 1:
                self._vote(sender, True, now)
            return
        if response.term > self.term:
            self._become_follower(response.term, NOBODY, now)
        elif isinstance(response, PreVoteResponse):
            if self.role is Role.PRE_CANDIDATE:
                self._vote(sender, False, now)
        elif response.term < self.term:
            # Of an earlier term: it says nothing about this one.
            return
        elif isinstance(response, RequestVoteResponse):
            if self.role is Role.CANDIDATE:
                self._vote(sender, response.granted, now)
        elif self.leadership is not None:
            if isinstance(response, AppendEntriesResponse):
                self.leadership.appended(sender, response, now)
                if response.success and response.match_index > self.commit_index:
                    self._advance_commit(self.leadership)
            elif isinstance(response, HeartbeatResponse):
                self.leadership.heartbeat_answered(sender, response, now)

    def unreachable(self, member_id: MemberId) -> None:
        """A request to this member has ended without an answer."""
        if self.leadership is not None:
            self.leadership.unreachable(member_id)

    def lacks_space(self, member_id: MemberId, now: float) -> None:
        """This member has refused a request, for its disk is full."""
        if self.leadership is not None:
            self.leadership.lacks_space(member_id, now)
            # If it was to lead, another one may be asked at once.
            self._relief_due = now

    def space_changed(self, is_left: bool, now: float) -> None:
        """Storage has room, or none, for more than what is set aside."""
        self._space.changed(is_left)
        self._check_space(now)

    def persisted(self, number: int, now: float) -> None:
        """Every write up to `number` is durable."""
        if not self._outbox.persisted(number):
            return
        self.log.persisted(number)
        if self.role is Role.CANDIDATE and self._outbox.is_hard_state_durable:
            # Only now do the others hear of it: their time begins here.
            self._reset_election_timer(now)
            self._vote(self.member_id, True, now)
        if self.leadership is not None:
            self._advance_commit(self.leadership)

    def applied(self, index: int) -> None:
        """Everything up to `index` has been applied."""
        self.applied_index = index

    # -- elections (paper 5.2, 5.4.1; thesis 4.2.3, 9.6) ---------------------

    @property
    def _may_lead(self) -> bool:
        """
        Whether this node stands for election when it hears of no leader.

        It does until its removal is committed: it may hold what nobody else
        can be elected without (thesis 4.2.2, figure 4.6).
        """
        return self._configurations.gives_vote(self.member_id, self.commit_index)

    def _reset_election_timer(self, now: float) -> None:
        if self._may_lead:
            spread = 1 + self._random.random()
            self._election_due = now + spread * self.settings.election_timeout_s
        else:
            self._election_due = math.inf

    def _pre_campaign(self, now: float) -> None:
        """Ask whether an election could be won, before disturbing anyone with one."""
        self.role = Role.PRE_CANDIDATE
        self.leader_id = NOBODY
        self.campaign = Campaign(self.term + 1)
        self._reset_election_timer(now)
        self._ask_voters(PreVote(self.campaign.term, self.log.last_index, self.log.last_term))
        # Nothing is promised by it, so it need not be durable.
        self.campaign.record(self.member_id, granted=True)
        self._count_votes(now)

    def _campaign(self, now: float, *, transfer: bool = False) -> None:
        self._set_hard_state(self.term + 1, self.member_id)
        self.role = Role.CANDIDATE
        self.leader_id = NOBODY
        self.campaign = Campaign(self.term)
        self._reset_election_timer(now)
        # The node's own vote is counted by `persisted`.
        last_index, last_term = self.log.last_index, self.log.last_term
        self._ask_voters(RequestVote(self.term, last_index, last_term, transfer))

    def _ask_voters(self, request: PreVote | RequestVote) -> None:
        for voter in sorted(self.configuration.voter_ids()):
            if voter != self.member_id:
                self._send(voter, request)

    def _vote(self, voter: MemberId, granted: bool, now: float) -> None:
        assert self.campaign is not None
        self.campaign.record(voter, granted)
        self._count_votes(now)

    def _count_votes(self, now: float) -> None:
        campaign = self.campaign
        if campaign is None:
            return
        majorities = self.configuration.majorities()
        if campaign.won(majorities):
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(now)
            else:
                self._become_leader(now)
        elif campaign.lost(majorities):
            self._become_follower(self.term, NOBODY, now)

    def _become_leader(self, now: float) -> None:
        self.role = Role.LEADER
        self.leader_id = self.member_id
        self.campaign = None
        self.leadership = Leadership(
            self.member_id,
            self.term,
            self.log,
            self.configuration,
            self.settings,
            now,
            self._send,
        )
        self._quorum_check_due = now + self.settings.election_timeout_s
        self.leadership.tick(self.commit_index, now)

    def _become_follower(self, term: int, leader_id: MemberId, now: float) -> None:
        if term > self.term:
            self._set_hard_state(term, NOBODY)
        if self.leadership is not None:
            self._lost_reads.extend(self.leadership.reads.contexts())
        if self.role is not Role.FOLLOWER:
            self._reset_election_timer(now)
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.leadership = None
        self.campaign = None

    def _hears_leader(self, candidate: MemberId, now: float) -> bool:
        """
        Whether there is a leader that `candidate` should not disturb (thesis 4.2.3).

        A leader that a quorum no longer answers steps down by itself; one that
        stands for election is no leader any more.
        """
        if self.role is Role.LEADER:
            return True
        if self.leader_id == candidate or (
            self.leader_id == NOBODY and not self.settings.lease_reads
        ):
            return False
        return now - self._leader_contact < self.settings.election_timeout_s

    def _pre_vote(
        self, sender: MemberId, request: PreVote, request_id: int, now: float
    ) -> None:
        # A grant refreshes no timer: it says nothing about a leader.  A node
        # that is no voter in its own configuration answers like any other:
        # that configuration may be older than the candidate's.
        granted = (
            request.term > self.term
            and self.log.is_up_to_date(request.last_log_index, request.last_log_term)
            and not self._hears_leader(sender, now)
        )
        term = request.term if granted else self.term
        self._answer(sender, PreVoteResponse(term, granted), request_id)

    def _request_vote(
        self, sender: MemberId, request: RequestVote, request_id: int, now: float
    ) -> None:
        disturbing = not request.transfer and self._hears_leader(sender, now)
        if request.term > self.term and not disturbing:
            self._become_follower(request.term, NOBODY, now)
        voted_for = self.hard_state.voted_for
        # The term may be known already, from elsewhere than a candidate's request.
        is_free = voted_for == self.leader_id == NOBODY and not disturbing
        granted = (
            request.term == self.term
            and (voted_for == sender or is_free)
            and self.log.is_up_to_date(request.last_log_index, request.last_log_term)
        )
        if granted:
            self._set_hard_state(self.term, sender)
            self._reset_election_timer(now)
        self._answer(sender, RequestVoteResponse(self.term, granted), request_id)

    def _timeout_now(
        self, sender: MemberId, request: TimeoutNow, request_id: int, now: float
    ) -> None:
        """Stand for election at once, whoever is heard from (thesis 3.10)."""
        may = request.term == self.term and self.leader_id == sender
        if may and self.configuration.is_voter(self.member_id):
            self._space.check("it does not lead")
            self._campaign(now, transfer=True)
        self._answer(sender, TimeoutNowResponse(self.term), request_id)

    # -- following a leader (paper 5.3) --------------------------------------

    def _follow(self, leader: MemberId, term: int, now: float) -> None:
        """A message of the leader of `term`, which is not behind ours."""
        if term == self.term and self.role is Role.LEADER:
            raise InvariantViolated(
                f"{leader:016x} is a second leader in term {term} (Election Safety)"
            )
        self._become_follower(term, leader, now)
        self._leader_contact = now
        self._reset_election_timer(now)

    def _heartbeat(
        self, sender: MemberId, request: Heartbeat, request_id: int, now: float
    ) -> None:
        # An answer carries our term: it must not confirm a round of an earlier one.
        confirmed_round = 0
        if request.term >= self.term:
            confirmed_round = request.round
            self._follow(sender, request.term, now)
            # The leader knows from an answer of ours in this term that our log
            # agrees with its own up to here.
            if request.leader_commit > self.log.last_index:
                raise InvariantViolated(
                    f"the leader knows entries up to {request.leader_commit} to be durable "
                    f"here, and the log ends with entry {self.log.last_index}: it was lost"
                )
            self._commit(request.leader_commit)
        self._answer(sender, HeartbeatResponse(self.term, confirmed_round), request_id)

    def _append_entries(
        self, sender: MemberId, request: AppendEntries, request_id: int, now: float
    ) -> None:
        """Paper 5.3.  A conflicting suffix is replaced; a merely longer log is left alone."""
        _check_entries(request)
        if request.term < self.term:
            self._answer(sender, self._refusal(request), request_id)
            return
        changes = configurations_in(request.entries)
        self._follow(sender, request.term, now)
        # What lies at or below the base is committed, hence the same here.
        if request.prev_log_index >= self.log.base_index and (
            self.log.term_at(request.prev_log_index) != request.prev_log_term
        ):
            self._answer(sender, self._refusal(request), request_id)
            return
        new = self._without_known(request.entries)
        if new:
            self._space.take(new)
            self._replace_suffix(new, [c for c in changes if c[0] >= new[0].index], now)
        verified = request.prev_log_index + len(request.entries)
        self._commit(min(request.leader_commit, verified))
        answer = AppendEntriesResponse(self.term, True, verified)
        self._answer(sender, answer, request_id, self._write_holding(verified))

    def _refusal(self, request: AppendEntries) -> AppendEntriesResponse:
        hint_index, hint_term = self.log.matching_hint(
            request.prev_log_index, request.prev_log_term
        )
        return AppendEntriesResponse(
            self.term, False, request.prev_log_index, hint_index, hint_term
        )

    def _without_known(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """`entries` from the first on that this log does not hold."""
        last = self.log.last_index
        for position, entry in enumerate(entries):
            if entry.index > last or (
                entry.index > self.log.base_index
                and self.log.term_at(entry.index) != entry.term
            ):
                return entries[position:] if position else entries
        return ()

    def _replace_suffix(
        self, entries: Sequence[Entry], changes: list[tuple[int, Configuration]], now: float
    ) -> None:
        before = self.configuration
        first = entries[0].index
        if first <= self.log.last_index:
            if first <= self.commit_index:
                raise InvariantViolated(
                    f"the leader of term {self.term} replaces entry {first}, and "
                    f"everything up to {self.commit_index} is committed"
                )
            self.log.truncate(first)
            self._configurations.truncate(first)
        self.log.append(entries)
        self._configurations.append(changes)
        if self.configuration is not before:
            # It may have gained or lost its vote.
            self._reset_election_timer(now)

    # -- snapshots (thesis 5) ------------------------------------------------

    def _install_snapshot_piece(
        self, sender: MemberId, request: InstallSnapshot, request_id: int, now: float
    ) -> None:
        if request.term < self.term:
            self._answer(sender, InstallSnapshotResponse(self.term, 0, False), request_id)
            return
        self._follow(sender, request.term, now)
        if request.last_included_index <= self.commit_index:
            # Late or repeated: all of it is here already.
            self._answer_installed(sender, request.last_included_index, request_id)
        else:
            self._pieces.append(Piece(sender, request, request_id))

    def piece_kept(self, piece: Piece, next_offset: int) -> None:
        """The caller has kept a piece, or wants the sender to go on elsewhere."""
        response = InstallSnapshotResponse(self.term, next_offset, False)
        self._answer(piece.sender, response, piece.request_id)

    def install_snapshot(self, piece: Piece, metadata: SnapshotMetadata) -> None:
        """
        The caller has the whole snapshot, of which `piece` was the last, durably.

        If the log leads up to it, the log remains.  Otherwise the log begins
        anew behind it, and the state is to be restored from it.
        """
        index, term = metadata.last_included_index, metadata.last_included_term
        if index > self.commit_index and piece.request.term == self.term:
            if self.log.term_at(index) == term:
                self._commit(index)
            else:
                self.log.reset(metadata)
                self._reset_write = self._outbox.last_write + 1
                self._configurations = ConfigurationHistory(metadata.configuration, index)
                self.commit_index = self._committed_out = index
                self._restore = metadata
                # It may have gained or lost its vote.
                self._reset_election_timer(self._leader_contact)
        if index <= self.commit_index:
            self._answer_installed(piece.sender, index, piece.request_id)
        else:
            self.piece_kept(piece, 0)

    def _answer_installed(self, to: MemberId, index: int, request_id: int) -> None:
        # A log that begins anew must do so durably first: until then, this node
        # stands on the snapshot's file alone.
        needs_write = max(self._write_holding(index), self._reset_write)
        response = InstallSnapshotResponse(self.term, 0, True)
        self._answer(to, response, request_id, needs_write)

    def compact(self, snapshot_index: int) -> int:
        """
        There is a durable snapshot at `snapshot_index`: drop what it replaces,
        but for a tail that lets slow followers catch up without it.

        The index up to which storage need not keep anything.
        """
        tail_entries = self.settings.snapshot_tail_entries
        self.log.compact(self.log.tail_begin(snapshot_index, tail_entries, MAX_TAIL_BYTES))
        self._configurations.compact(self.log.base_index)
        # Storage does not know yet of a log that is about to begin anew.
        return self.log.base_index if self.log.base_to_write() is None else 0

    def free(self, max_entries: int) -> bool:
        """Let go of some of what was dropped (`Log.free`); whether there is more."""
        return self.log.free(max_entries)

    def snapshot_installed(self, member_id: MemberId, term: int, index: int) -> None:
        """A member to which a snapshot was sent in `term` holds everything up to `index`."""
        if self.leadership is not None and term == self.term:
            self.leadership.snapshot_installed(member_id, index)
            self._advance_commit(self.leadership)

    def snapshot_refused(self, member_id: MemberId, now: float) -> None:
        """A member could not keep a snapshot, however often it was sent."""
        if self.leadership is not None:
            self.leadership.snapshot_refused(member_id, now)

    # -- when a leader had better not lead -----------------------------------

    def _check_quorum(self, leadership: Leadership, now: float) -> None:
        """CheckQuorum: a leader that a quorum no longer answers steps down (thesis 6.2)."""
        self._quorum_check_due = (
            leadership.quorum_contact(now) + self.settings.election_timeout_s
        )
        if now >= self._quorum_check_due:
            self._become_follower(self.term, NOBODY, now)

    def _check_disk(self, now: float) -> None:
        """A leader whose disk hangs leads nobody: it hands over (hashicorp/raft #503)."""
        bound_s = MAX_DISK_STALL_TIMEOUTS * self.settings.election_timeout_s
        leadership = self.leadership
        if leadership is None or self._outbox.write_takes(now) < bound_s:
            return
        successor = leadership.best_successor()
        if successor != NOBODY and leadership.successor == NOBODY:
            leadership.transfer(successor, now)

    def _check_space(self, now: float) -> None:
        """A leader whose disk is full lets a voter lead that may have room, if there is one."""
        leadership = self.leadership
        if leadership is None or self._space.is_left or now < self._relief_due:
            return
        successor = leadership.successor_with_space(self.commit_index, now)
        if successor != NOBODY:
            self._relief_due = now + NO_SPACE_TIMEOUTS * self.settings.election_timeout_s
            leadership.transfer(successor, now)

    # -- committing ----------------------------------------------------------

    def _commit(self, index: int) -> None:
        self.commit_index = max(self.commit_index, index)

    def _advance_commit(self, leadership: Leadership) -> None:
        """Only an entry of this very term is committed by counting (paper 5.4.2)."""
        index = leadership.commit_candidate()
        if index > self.commit_index and self.log.term_at(index) == self.term:
            self._commit(index)

    def _after_commit(self, leadership: Leadership, now: float) -> None:
        """
        A joint configuration is left as soon as it is committed (thesis 4.3); a
        leader that is no voter any more steps down (thesis 4.2.2).
        """
        configuration = self.configuration
        if configuration is self._settled:
            return
        if not leadership.term_start_index <= self.commit_index >= self.configuration_index:
            return
        if configuration.is_joint:
            self._append_configuration(leadership, configuration.left(), now)
        elif configuration.is_voter(self.member_id):
            self._settled = configuration
        else:
            # All that it has taken on is committed: see `Leadership.may_propose`.
            successor = leadership.best_successor()
            if successor != NOBODY:
                self._send(successor, TimeoutNow(self.term))
            self._become_follower(self.term, NOBODY, now)

    # -- the caller's requests, to a leader ----------------------------------

    def propose(self, batch: Sequence[bytes], now: float) -> tuple[int, int]:
        """
        Append encoded commands; (term, index of the first).

        They have happened when entries of that term are applied at those
        indexes.  `NotLeader`, `NoSpace` or `Overloaded`: nothing was appended.
        """
        leadership = self._leader()
        if leadership.may_propose:
            self._space.check("the leader takes no writes")
        return self.term, leadership.propose(batch, now)

    def read_index(self, context: int, now: float) -> None:
        """
        Ask for a read index; it comes in a `Ready`, in `reads` or `lost_reads`.

        `NotLeader` or `Overloaded` when it cannot be asked for here.
        """
        leadership = self._leader()
        if leadership.has_lease(self.commit_index, now):
            self._reads_out.append((context, self.commit_index))
        else:
            leadership.read(context, self.commit_index)

    def change_membership(
        self, changes: Sequence[Change], now: float, *, force: bool = False
    ) -> int:
        """
        Change the configuration; the index of the entry to wait for.

        All of `changes` come about together; nothing new: the index that
        makes it so.  One change at a time, and none before this term has
        committed (Ongaro, 2015): `ChangeInProgress`.  `NotCaughtUp` for a
        learner that is behind.  `ChangeRefused`, or a subclass, if it cannot
        be carried out, or, unless `force` is given, if the voters that answer
        at the moment would be too few afterwards.  `NotLeader`.
        """
        leadership = self._leader()
        changed = self.configuration.changed(changes)
        if changed == self.configuration:
            return self.configuration_index
        if self.configuration_index > self.commit_index:
            raise ChangeInProgress("Another membership change is under way. Try again.")
        leadership.check_change(
            changed, self.configuration_index, self.commit_index, now, force=force
        )
        return self._append_configuration(leadership, changed, now)

    def _append_configuration(
        self, leadership: Leadership, changed: Configuration, now: float
    ) -> int:
        data = encode_configuration(changed)
        # First, so that this entry is what a new member is sent: without one to
        # send, the leader would not ask it what it has until the next came.
        leadership.configure(changed, now)
        index = leadership.append(EntryKind.CONFIGURATION, (data,), now)
        self._configurations.append([(index, changed)])
        # With fewer voters, what was held up by those who left may be committed.
        self._advance_commit(leadership)
        return index

    def transfer(self, successor: MemberId | None, now: float) -> None:
        """
        Hand leadership over (thesis 3.10); None: to whoever is best prepared.

        It has happened when somebody else leads; it is given up after an
        election timeout.  `ChangeRefused` if it cannot be; `NotLeader`.
        """
        leadership = self._leader()
        leadership.transfer(
            leadership.best_successor() if successor is None else successor, now
        )

    def _leader(self) -> Leadership:
        if self.leadership is None:
            raise NotLeader("This node is not the leader.")
        return self.leadership

    # -- output --------------------------------------------------------------

    def ready(self, now: float) -> Ready:
        """What is to be done now; each thing is handed out once."""
        lack_snapshot: list[MemberId] = []
        if self.leadership is not None:
            self._after_commit(self.leadership, now)
        leadership = self.leadership
        if leadership is not None:
            self._reads_out += leadership.advance_reads(self.commit_index, now)
            leadership.replicate(self.commit_index, now)
            lack_snapshot, leadership.lack_snapshot = leadership.lack_snapshot, []
        ready = Ready(
            self._next_write(now),
            self._outbox.take(),
            self._next_committed(),
            self._reads_out,
            self._lost_reads,
            lack_snapshot,
            self._pieces,
            self._restore,
        )
        self._reads_out, self._lost_reads = [], []
        self._pieces, self._restore = [], None
        self._commit_seen = self.commit_index
        return ready

    def _next_write(self, now: float) -> Write | None:
        outbox = self._outbox
        hard_state = outbox.hard_state if outbox.has_new_hard_state else None
        if hard_state is None and self.log.is_written:
            return None
        number = outbox.begin_write(now)
        base = self.log.base_to_write()
        entries = self.log.begin_write(number)
        return Write(number, hard_state, entries, base, self.commit_index)

    def _next_committed(self) -> list[Entry]:
        safe = min(self.commit_index, self.log.persisted_index)
        if safe <= self._committed_out:
            return []
        committed = self.log.entries(self._committed_out + 1, safe)
        self._committed_out = safe
        if self.leadership is not None:
            self.leadership.safe_up_to(safe)
        return committed

    def _set_hard_state(self, term: int, voted_for: MemberId) -> None:
        self._outbox.set_hard_state(HardState(term, voted_for))

    def _write_holding(self, index: int) -> int:
        """A write after which the entry at `index` is durable; 0 if it is already."""
        if index <= self.log.persisted_index:
            return 0
        return self._outbox.last_write + (index > self.log.written_index)

    def _send(self, to: MemberId, request: Request) -> None:
        self._outbox.add(Outgoing(to, request), 0)

    def _answer(
        self, to: MemberId, response: Response, request_id: int, needs_write: int = 0
    ) -> None:
        self._outbox.add(Outgoing(to, response, request_id), needs_write)


def _check_entries(request: AppendEntries) -> None:
    """Entries must follow `prev_log_index` one by one, in terms that do not go back."""
    index, term = request.prev_log_index, request.prev_log_term
    for entry in request.entries:
        index += 1
        if entry.index != index or not term <= entry.term <= request.term:
            raise ProtocolViolation(
                f"entry {entry.index} of term {entry.term} in the place of entry {index} "
                f"after one of term {term}, in a request of term {request.term}"
            )
        term = entry.term
