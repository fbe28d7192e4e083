"""
The Raft algorithm of one node, as a value machine.

Inputs are method calls with plain values and the time; outputs are gathered
in one `Ready` value per turn.  There is no clock, no disk, no network and no
source of randomness here, and no method blocks or does I/O.

    inputs                                       outputs (`Ready`)
    tick(now)                                    what to make durable
    receive_request / receive_response           messages to send
    unreachable(member)                          entries to apply
    propose / read_index / membership changes    reads to answer
    persisted(write number), applied(index)

The caller promises: after each turn of inputs it takes `ready()`; it hands
the writes to storage in order and reports each with `persisted`; it sends the
messages in order; every request it sends ends in `receive_response` or in
`unreachable`; it applies the entries in order.

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

import msgspec

from raftd.core.election import Campaign
from raftd.core.leader import Leadership
from raftd.core.log import Log
from raftd.core.membership import (
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
from raftd.core.settings import Settings
from raftd.errors import (
    ChangeInProgress,
    InvariantViolated,
    NotCaughtUp,
    NotLeader,
    ProtocolViolation,
)

#: A learner this close to the leader's commit index has caught up: few enough
#: entries that it is level again within a heartbeat.
MAX_PROMOTION_LAG_ENTRIES = 1024


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


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to send: a request, or the answer to the request `request_id`."""

    to: MemberId
    message: Message
    request_id: int | None = None


class Write(msgspec.Struct, frozen=True):
    """What storage must make durable next; `hard_state` is None if it did not change."""

    number: int
    hard_state: HardState | None
    entries: list[Entry]


class Ready(msgspec.Struct):
    """What there is to do after a turn of inputs; all parts may begin at once."""

    write: Write | None
    messages: list[Outgoing]
    #: Committed and durable here; to be applied in order.
    committed: list[Entry]
    #: (context, read index): to be answered once that index is applied.
    reads: list[tuple[int, int]]
    #: Contexts of reads that this node can no longer confirm.
    lost_reads: list[int]


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
        configuration: Configuration | None = None,
    ) -> None:
        """
        A node with what storage has recovered, all of it durable.

        `configuration` is the one as of the log's `base_index`.
        """
        self.member_id = member_id
        self.settings = settings
        self._random = random
        self.hard_state = hard_state or HardState()
        self.log = log or Log()
        if self.log.last_term > self.hard_state.term:
            raise InvariantViolated(
                f"the log has an entry of term {self.log.last_term}, and the last term that "
                f"this node took note of is {self.hard_state.term}: it was lost"
            )
        self._configurations = ConfigurationHistory(
            configuration or Configuration(), self.log.base_index
        )
        if self.log.last_index > self.log.base_index:
            entries = self.log.entries(self.log.first_index, self.log.last_index)
            self._configurations.append(configurations_in(entries))

        self.role = Role.FOLLOWER
        self.leader_id = NOBODY
        self.commit_index = self.applied_index = self.log.base_index
        #: The last entry that was handed out to be applied.
        self._committed_out = self.log.base_index
        self.leadership: Leadership | None = None
        self.campaign: Campaign | None = None

        self._last_write = 0
        self._persisted_write = 0
        #: The write that makes the present hard state durable.
        self._hard_state_write = 0

        self._outbox: list[Outgoing] = []
        #: (write that must be durable first, message).
        self._held: list[tuple[int, Outgoing]] = []
        self._reads_out: list[tuple[int, int]] = []
        self._lost_reads: list[int] = []

        self._leader_contact = -math.inf
        self._quorum_check_due = math.inf
        self._reset_election_timer(now)
        if self.configuration.voter_ids() == {member_id}:
            # There is nobody to wait for, and nobody to disturb.
            self._election_due = now

    # -- what others may look at ---------------------------------------------

    @property
    def term(self) -> int:
        return self.hard_state.term

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the last one in the log, committed or not."""
        return self._configurations.latest

    @property
    def configuration_index(self) -> int:
        """The index of its entry; it is committed if that is."""
        return self._configurations.latest_index

    @property
    def next_deadline(self) -> float:
        """When `tick` wants to be called; infinity if never."""
        if self.leadership is not None:
            return min(self.leadership.next_deadline, self._quorum_check_due)
        return self._election_due

    # -- time ----------------------------------------------------------------

    def tick(self, now: float) -> None:
        """The time is `now`; do what has become due.  To be called at `next_deadline`."""
        if self.leadership is not None:
            self._check_quorum(self.leadership, now)
        elif now >= self._election_due:
            if self._hard_state_write > self._persisted_write:
                # The last vote is not on disk yet.  A slow disk must not make
                # term after term, none of which it ever reaches.
                self._reset_election_timer(now)
            else:
                self._pre_campaign(now)
        if self.leadership is not None:
            self.leadership.tick(self.commit_index, now)

    def _check_quorum(self, leadership: Leadership, now: float) -> None:
        """CheckQuorum: a leader that a quorum no longer answers steps down (thesis 6.2)."""
        self._quorum_check_due = (
            leadership.quorum_contact(now) + self.settings.election_timeout_s
        )
        if now >= self._quorum_check_due:
            self._become_follower(self.term, NOBODY, now)

    def _reset_election_timer(self, now: float) -> None:
        if self.configuration.is_voter(self.member_id):
            spread = 1 + self._random.random()
            self._election_due = now + spread * self.settings.election_timeout_s
        else:
            self._election_due = math.inf

    # -- elections (paper 5.2, 5.4.1; thesis 4.2.3, 9.6) ----------------------

    def _pre_campaign(self, now: float) -> None:
        """Ask whether an election could be won, before disturbing anyone with one."""
        self.role = Role.PRE_CANDIDATE
        self.leader_id = NOBODY
        self.campaign = Campaign(self.term + 1)
        self._reset_election_timer(now)
        self._ask_voters(
            PreVote(self.campaign.term, self.log.last_index, self.log.last_term), now
        )
        # Nothing is promised by it, so it need not be durable.
        self.campaign.record(self.member_id, granted=True)
        self._count_votes(now)

    def _campaign(self, now: float) -> None:
        self._set_hard_state(self.term + 1, self.member_id)
        self.role = Role.CANDIDATE
        self.leader_id = NOBODY
        self.campaign = Campaign(self.term)
        self._reset_election_timer(now)
        # The node's own vote is counted by `persisted`.
        self._ask_voters(RequestVote(self.term, self.log.last_index, self.log.last_term), now)

    def _ask_voters(self, request: PreVote | RequestVote, now: float) -> None:
        for voter in sorted(self.configuration.voter_ids()):
            if voter != self.member_id:
                self._send(voter, request)

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
        return (
            self.leader_id not in (NOBODY, candidate)
            and now - self._leader_contact < self.settings.election_timeout_s
        )

    # -- requests ------------------------------------------------------------

    def receive_request(
        self, sender: MemberId, request: Request, request_id: int, now: float
    ) -> None:
        """
        A request of a peer; its answer comes in a `Ready` with this `request_id`.

        `ProtocolViolation` if no correct peer sends it; nothing has changed then.
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
        granted = (
            request.term == self.term
            and (voted_for == sender or voted_for == self.leader_id == NOBODY)
            and self.log.is_up_to_date(request.last_log_index, request.last_log_term)
        )
        if granted:
            self._set_hard_state(self.term, sender)
            self._reset_election_timer(now)
        self._answer(sender, RequestVoteResponse(self.term, granted), request_id)

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

    def _follow(self, leader: MemberId, term: int, now: float) -> None:
        """A message of the leader of `term`, which is not behind ours."""
        if term == self.term and self.role is Role.LEADER:
            raise InvariantViolated(
                f"{leader:016x} is a second leader in term {term} (Election Safety)"
            )
        self._become_follower(term, leader, now)
        self._leader_contact = now
        self._reset_election_timer(now)

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

    # -- answers -------------------------------------------------------------

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
            else:
                self.leadership.heartbeat_answered(sender, response, now)

    def _vote(self, voter: MemberId, granted: bool, now: float) -> None:
        assert self.campaign is not None
        self.campaign.record(voter, granted)
        self._count_votes(now)

    def unreachable(self, member_id: MemberId) -> None:
        """A request to this member has ended without an answer."""
        if self.leadership is not None:
            self.leadership.unreachable(member_id)

    # -- committing ----------------------------------------------------------

    def _commit(self, index: int) -> None:
        self.commit_index = max(self.commit_index, index)

    def _advance_commit(self, leadership: Leadership) -> None:
        """Only an entry of this very term is committed by counting (paper 5.4.2)."""
        index = leadership.commit_candidate()
        if index > self.commit_index and self.log.term_at(index) == self.term:
            self._commit(index)

    # -- the caller's requests -----------------------------------------------

    def propose(self, batch: Sequence[bytes], now: float) -> tuple[int, int]:
        """
        Append encoded commands; (term, index of the first).

        They have happened when entries of that term are applied at those
        indexes.  `NotLeader` or `Overloaded`: nothing was appended.
        """
        return self.term, self._leader().propose(batch, now)

    def read_index(self, context: int) -> None:
        """
        Ask for a read index; it comes in a `Ready`, in `reads` or `lost_reads`.

        `NotLeader` or `Overloaded` when it cannot be asked for here.
        """
        self._leader().read(context, self.commit_index)

    def add_learner(self, member: Member, now: float) -> int:
        """
        Add a member without a vote; the index of the entry to wait for.

        A member already: the index that makes it so.  `NameTaken`,
        `ChangeRefused`, `ChangeInProgress`, `NotLeader`.
        """
        self._leader()
        return self._change(self.configuration.with_learner(member), now)

    def promote(self, member_id: MemberId, now: float) -> int:
        """
        Give a learner that has caught up a vote; the index of the entry to wait for.

        `NotCaughtUp` besides the errors of `add_learner`.
        """
        leadership = self._leader()
        changed = self.configuration.with_promoted(member_id)
        if changed != self.configuration:
            self._check_no_change(leadership)
            match_index = leadership.progress[member_id].match_index
            behind = self.commit_index - match_index
            # A short log is no sign of life: it must have answered as a learner.
            if behind > MAX_PROMOTION_LAG_ENTRIES or match_index < self.configuration_index:
                raise NotCaughtUp(f"It is {behind} entries behind the leader.")
        return self._change(changed, now)

    def _check_no_change(self, leadership: Leadership) -> None:
        """One change at a time, none before this term has committed (Ongaro, 2015)."""
        if self.commit_index < leadership.term_start_index:
            raise ChangeInProgress("The leader has only just been elected. Try again.")
        if self.configuration_index > self.commit_index:
            raise ChangeInProgress("Another membership change is under way. Try again.")

    def _change(self, changed: Configuration, now: float) -> int:
        leadership = self._leader()
        if changed == self.configuration:
            return self.configuration_index
        self._check_no_change(leadership)
        # Before its entry is appended, so that it is sent to new members too.
        leadership.configure(changed, now)
        data = encode_configuration(changed)
        index = leadership.append(EntryKind.CONFIGURATION, (data,), now)
        self._configurations.append([(index, changed)])
        return index

    def _leader(self) -> Leadership:
        if self.leadership is None:
            raise NotLeader("This node is not the leader.")
        return self.leadership

    # -- durability ----------------------------------------------------------

    def persisted(self, number: int, now: float) -> None:
        """Every write up to `number` is durable."""
        if number <= self._persisted_write:
            return
        self._persisted_write = number
        self.log.persisted(number)
        if self._held:
            self._outbox.extend(out for needs, out in self._held if needs <= number)
            self._held = [held for held in self._held if held[0] > number]
        if self.role is Role.CANDIDATE and self._hard_state_write <= number:
            self._vote(self.member_id, True, now)
        if self.leadership is not None:
            self._advance_commit(self.leadership)

    def applied(self, index: int) -> None:
        """Everything up to `index` has been applied."""
        self.applied_index = index

    def _set_hard_state(self, term: int, voted_for: MemberId) -> None:
        if term > self.term:
            self._withdraw_held(term)
        if (term, voted_for) != (self.hard_state.term, self.hard_state.voted_for):
            self.hard_state = HardState(term, voted_for)
            self._hard_state_write = self._last_write + 1

    def _withdraw_held(self, term: int) -> None:
        """
        A later term begins while promises of an earlier one wait for the disk.

        They must not leave any more: what they acknowledge may be cut off
        before it is durable.  Whoever waits for them is told of the new term.
        """
        withdrawn = []
        for _, out in self._held:
            if out.request_id is not None:
                message = _withdrawn(out.message, term)
                withdrawn.append(
                    (self._last_write + 1, Outgoing(out.to, message, out.request_id))
                )
        self._held = withdrawn

    def _write_holding(self, index: int) -> int:
        """A write after which the entry at `index` is durable; 0 if it is already."""
        if index <= self.log.persisted_index:
            return 0
        return self._last_write + (index > self.log.written_index)

    def _send(self, to: MemberId, request: Request) -> None:
        self._hold(Outgoing(to, request), 0)

    def _answer(
        self, to: MemberId, response: Response, request_id: int, needs_write: int = 0
    ) -> None:
        self._hold(Outgoing(to, response, request_id), needs_write)

    def _hold(self, outgoing: Outgoing, needs_write: int) -> None:
        """Keep a message until what it promises, its term included, is durable."""
        needs_write = max(needs_write, self._hard_state_write)
        if needs_write <= self._persisted_write:
            self._outbox.append(outgoing)
        else:
            self._held.append((needs_write, outgoing))

    # -- output --------------------------------------------------------------

    def ready(self, now: float) -> Ready:
        """What is to be done now; each thing is handed out once."""
        leadership = self.leadership
        if leadership is not None:
            self._reads_out += leadership.advance_reads(self.commit_index)
            leadership.replicate(self.commit_index, now)
        ready = Ready(
            self._next_write(),
            self._outbox,
            self._next_committed(),
            self._reads_out,
            self._lost_reads,
        )
        self._outbox, self._reads_out, self._lost_reads = [], [], []
        return ready

    def _next_write(self) -> Write | None:
        hard_state_changed = self._hard_state_write > self._last_write
        if not hard_state_changed and self.log.written_index == self.log.last_index:
            return None
        self._last_write += 1
        return Write(
            self._last_write,
            self.hard_state if hard_state_changed else None,
            self.log.begin_write(self._last_write),
        )

    def _next_committed(self) -> list[Entry]:
        safe = min(self.commit_index, self.log.persisted_index)
        if safe <= self._committed_out:
            return []
        committed = self.log.entries(self._committed_out + 1, safe)
        self._committed_out = safe
        if self.leadership is not None:
            self.leadership.safe_up_to(safe)
        return committed


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


def _withdrawn(message: Message, term: int) -> Response:
    """The refusal, in a later term, that takes the place of an answer."""
    match message:
        case AppendEntriesResponse(match_index=last):
            # Nothing is wrong with the log: a leader of `term` need not go far back.
            return AppendEntriesResponse(term, False, last, last, term)
        case HeartbeatResponse():
            return HeartbeatResponse(term, 0)
        case RequestVoteResponse():
            return RequestVoteResponse(term, False)
        case _:
            return PreVoteResponse(term, False)
