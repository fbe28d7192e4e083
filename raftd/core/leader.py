"""
What only a leader does: replication, commitment, quorum rounds.

A `Leadership` lives for one term and ends with it, and with it everything
that is true only in that term: what is known of the others' logs, the reads
that wait for a quorum, the right to append.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from raftd.core.log import Log
from raftd.core.membership import Configuration
from raftd.core.messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    Member,
    MemberId,
    Request,
    TimeoutNow,
)
from raftd.core.progress import Progress, ProgressState
from raftd.core.quorum import Majorities, has_quorum, quorum_value
from raftd.core.reads import MAX_READS_WAITING, ReadQueue
from raftd.core.settings import Settings
from raftd.core.space import NO_SPACE_TIMEOUTS
from raftd.errors import (
    ChangeInProgress,
    ChangeRefused,
    NoSpace,
    NotCaughtUp,
    NotLeader,
    Overloaded,
)

#: Entries and bytes of data in one AppendEntries; one entry is always sent whole.
MAX_ENTRIES_PER_APPEND = 4096
MAX_BYTES_PER_APPEND = 512 << 10
#: Bytes of data that a leader has appended and not yet committed and flushed
#: itself.  Beyond it, proposals are refused: a stalled disk or a lost quorum
#: costs bounded memory.
MAX_UNCOMMITTED_BYTES = 32 << 20
#: What an entry takes in memory besides its data, in that account (measured).
ENTRY_OVERHEAD_BYTES = 160
#: A learner this close to the leader's commit index has caught up: few enough
#: entries that it is level again within a heartbeat.
MAX_PROMOTION_LAG_ENTRIES = 1024
#: For so many election timeouts no snapshot is sent to a member that could not
#: keep one: each attempt may write all of it, up to where its disk is full.
SNAPSHOT_RETRY_TIMEOUTS = 10
#: How long a new commit index may wait for an AppendEntries to carry it to the
#: others before a heartbeat does: long enough that under load it costs nothing.
COMMIT_NOTICE_DELAY_S = 0.001


class Leadership:
    """
    The leader of `term`, from its election to its stepping down.

    Invariant: the log is only appended to while it lives (Leader Append-Only,
    paper figure 3).
    """

    def __init__(
        self,
        member_id: MemberId,
        term: int,
        log: Log,
        configuration: Configuration,
        settings: Settings,
        now: float,
        send: Callable[[MemberId, Request], None],
    ) -> None:
        self._member_id = member_id
        self._term = term
        self._log = log
        self._settings = settings
        self._send = send
        #: The cluster's clock goes on from where the log left it.
        self._elected_at = now
        self._time_base_ms = log.last_time_ms
        #: (last index, bytes) of each proposal that is not yet safe.
        self._uncommitted: deque[tuple[int, int]] = deque()
        self._uncommitted_bytes = 0
        #: Who is to lead next, until when, and whether it has been told.
        self._successor = NOBODY
        self._transfer_due = math.inf
        self._told = False
        #: A successor was told to campaign, at a time of its own choosing, and
        #: no follower will make it wait.
        self._lease_broken = False
        #: Members whose disks are full, as they said, and until when that is believed.
        self._full: dict[MemberId, float] = {}
        self.reads = ReadQueue()
        #: (first index, last index of the log) of the batch that was sent last.
        self._batch_key = (0, 0)
        self._last_batch: tuple[Entry, ...] = ()
        self._batch_bytes = 0
        #: The other members.
        self.progress: dict[MemberId, Progress] = {}
        self.configure(configuration, now)
        self.heartbeat_due = now
        self._notice_due = math.inf
        #: Members that need a snapshot, until the driver is told.
        self.lack_snapshot: list[MemberId] = []
        #: The no-op of this term: nothing earlier may be counted, and no read or
        #: membership change may be answered, before it is committed (paper 5.4.2, 8).
        self.term_start_index = self.append(EntryKind.NOOP, (b"",), now)

    def configure(self, configuration: Configuration, now: float) -> None:
        """Follow a configuration that has just taken effect."""
        self._majorities = configuration.majorities()
        #: Without a vote it leads until that is committed, and then steps down.
        self._is_voter = configuration.is_voter(self._member_id)
        #: Who may lead next: who is on the way out would have to hand over again.
        self._incoming = frozenset(m.id for m in configuration.voters)
        others = configuration.members().keys() - {self._member_id}
        for member_id in self.progress.keys() - others:
            del self.progress[member_id]
        if self._successor not in self._incoming:
            self.end_transfer()
        for member_id in sorted(others - self.progress.keys()):
            self.progress[member_id] = Progress(self._log.last_index + 1, now)

    def check_change(
        self,
        changed: Configuration,
        configuration_index: int,
        commit_index: int,
        now: float,
        *,
        force: bool,
    ) -> None:
        """Whether a membership change may be made now; see `Raft.change_membership`."""
        if not self.may_propose:
            raise NotLeader("The leader is handing over to another one.")
        if commit_index < self.term_start_index:
            raise ChangeInProgress("The leader has only just been elected. Try again.")
        voters = frozenset[MemberId]().union(*self._majorities)
        members = changed.members()
        for member_id in sorted(changed.voter_ids() - voters):
            self._check_caught_up(members[member_id], configuration_index, commit_index)
        if not force:
            self._check_live(changed.majorities(), now)

    def _check_caught_up(
        self, member: Member, configuration_index: int, commit_index: int
    ) -> None:
        progress = self.progress.get(member.id)
        match_index = 0 if progress is None else progress.match_index
        behind = commit_index - match_index
        # A short log is no sign of life: it must have answered as a learner.
        silent = match_index < max(configuration_index, 1)
        if behind <= MAX_PROMOTION_LAG_ENTRIES and not silent:
            return
        if progress is None:
            why = "is not a learner yet; it is given a vote when it is one and has caught up"
        elif not match_index and not progress.answered:
            why = "has not answered this leader yet"
        elif behind > MAX_PROMOTION_LAG_ENTRIES:
            why = f"is {behind} entries behind the leader"
        else:
            why = "has not confirmed the last change of membership yet"
        raise NotCaughtUp(f"{member.name} {why}.")

    def _check_live(self, majorities: Majorities, now: float) -> None:
        """Whether a quorum has answered within an election timeout."""
        since = now - self._settings.election_timeout_s
        recent = {m: p for m, p in self.progress.items() if p.last_contact > since}
        live = {m for m, p in recent.items() if p.answered} | {self._member_id}
        if has_quorum(majorities, live):
            return
        if has_quorum(majorities, live | recent.keys()):
            raise ChangeInProgress("The leader has only just been elected. Try again.")
        raise ChangeRefused(
            "Of the voters that there would be, too few answer at the moment to decide "
            "anything."
        )

    # -- appending -----------------------------------------------------------

    def append(self, kind: EntryKind, batch: Sequence[bytes], now: float) -> int:
        """Append one entry for each item; the index of the first."""
        first = self._log.last_index + 1
        time_ms = self._time_base_ms + int((now - self._elected_at) * 1000)
        term = self._term
        self._log.append(
            [Entry(first + i, term, kind, time_ms, data) for i, data in enumerate(batch)]
        )
        return first

    @property
    def may_propose(self) -> bool:
        """
        Whether it goes on leading, as far as it depends on itself.

        It does not from the entry on that takes its vote.  What came behind
        that could not be committed any sooner, and would outlast its time: so
        all that it has taken on is committed when it steps down, and whoever
        comes later waits for the next leader.
        """
        return self._successor == NOBODY and self._is_voter

    def propose(self, batch: Sequence[bytes], now: float) -> int:
        """
        Append commands.

        `Overloaded` when too much is waiting to be committed; `NoSpace` when
        so many disks are full that nothing can be; `NotLeader` while
        leadership is handed over.
        """
        if not self.may_propose:
            raise NotLeader("The leader is handing over to another one.")
        if self._full:
            self._check_space(now)
        if self._uncommitted_bytes > MAX_UNCOMMITTED_BYTES:
            raise Overloaded(
                "The leader has more waiting to be committed than it may hold. Try again."
            )
        first = self.append(EntryKind.COMMAND, batch, now)
        size = sum(map(len, batch)) + ENTRY_OVERHEAD_BYTES * len(batch)
        self._uncommitted.append((self._log.last_index, size))
        self._uncommitted_bytes += size
        return first

    def _check_space(self, now: float) -> None:
        self._full = {m: until for m, until in self._full.items() if now < until}
        # One that lacks nothing has refused no entry: it did not want to lead.
        level = {m for m, p in self.progress.items() if p.match_index == self._log.last_index}
        able = {self._member_id} | level | (self.progress.keys() - self._full.keys())
        if not has_quorum(self._majorities, able):
            raise NoSpace(
                "The disks of so many members are full that nothing can be decided. "
                "Nothing was changed."
            )

    def safe_up_to(self, index: int) -> None:
        """Everything up to `index` is committed, and durable here as well."""
        while self._uncommitted and self._uncommitted[0][0] <= index:
            self._uncommitted_bytes -= self._uncommitted.popleft()[1]

    # -- replication ---------------------------------------------------------

    def replicate(self, commit_index: int, now: float) -> None:
        """Send each member what it lacks, as far as its window allows."""
        last_index = self._log.last_index
        for member_id, progress in self.progress.items():
            while progress.next_index <= last_index and progress.may_send():
                self._append_entries(member_id, progress, commit_index)
            self._notice(progress, commit_index, now)
        self._tell_successor()
        if now >= self._notice_due:
            self._notice_due = math.inf
            for member_id, progress in self.progress.items():
                if self._lacks_notice(progress, commit_index):
                    self._heartbeat(member_id, progress, commit_index)

    def has_more_to_send(self, commit_index: int) -> bool:
        """Whether `replicate` or `advance_reads` would send something, or see to it."""
        if self._successor != NOBODY or len(self.reads):
            return True
        last_index, no_notice = self._log.last_index, self._notice_due == math.inf
        for progress in self.progress.values():
            if progress.next_index <= last_index and progress.may_send():
                return True
            if no_notice and self._lacks_notice(progress, commit_index):
                return True
        return False

    def _append_entries(
        self, member_id: MemberId, progress: Progress, commit_index: int
    ) -> None:
        previous = progress.next_index - 1
        previous_term = self._log.term_at(previous)
        if previous_term is None:
            # The log has been compacted beyond what it lacks.
            progress.await_snapshot()
            self.lack_snapshot.append(member_id)
            return
        entries = self._batch(progress.next_index)
        self._send(
            member_id,
            AppendEntries(self._term, previous, previous_term, commit_index, entries),
        )
        last = previous + len(entries)
        progress.sent(last, self._batch_bytes)
        progress.commit_sent = max(progress.commit_sent, min(commit_index, last))

    def _batch(self, first: int) -> tuple[Entry, ...]:
        """
        What to send from `first` on.

        Members that are level get one and the same tuple, which the network
        then encodes once.
        """
        key = (first, self._log.last_index)
        if key != self._batch_key:
            self._batch_key = key
            self._last_batch, self._batch_bytes = self._log.batch(
                first, MAX_ENTRIES_PER_APPEND, MAX_BYTES_PER_APPEND
            )
        return self._last_batch

    def _lacks_notice(self, progress: Progress, commit_index: int) -> bool:
        # One that cannot be reached would lack it again at once.
        return not progress.lost and (
            progress.commit_sent < min(commit_index, progress.match_index)
        )

    def _notice(self, progress: Progress, commit_index: int, now: float) -> None:
        if self._notice_due == math.inf and self._lacks_notice(progress, commit_index):
            self._notice_due = now + COMMIT_NOTICE_DELAY_S

    def appended(self, member_id: MemberId, answer: AppendEntriesResponse, now: float) -> None:
        """A member of this term has answered AppendEntries."""
        progress = self.progress.get(member_id)
        if progress is None or answer.match_index > self._log.last_index:
            return
        progress.heard_from(now)
        if answer.success:
            if answer.match_index > progress.match_index:
                self._full.pop(member_id, None)
            progress.matched(answer.match_index)
            return
        refused = answer.match_index
        if progress.state is ProgressState.REPLICATE:
            stale = refused <= progress.match_index
        else:
            stale = refused != progress.next_index - 1
        if not stale:
            hint, _ = self._log.matching_hint(answer.hint_index, answer.hint_term)
            progress.probe(min(refused, hint + 1), lost=False)

    def unreachable(self, member_id: MemberId) -> None:
        """An AppendEntries got no answer; it may or may not have arrived."""
        progress = self.progress.get(member_id)
        if progress is not None:
            # A probe is repeated; what went out beyond `match_index` is sent again.
            probing = progress.state is ProgressState.PROBE
            again = progress.next_index if probing else progress.match_index + 1
            # The next answered heartbeat lets it go on.
            progress.probe(again, lost=True)

    def lacks_space(self, member_id: MemberId, now: float) -> None:
        """A member has refused a request, for its disk is full: it may be asked again later."""
        self.unreachable(member_id)
        progress = self.progress.get(member_id)
        if progress is not None:
            timeout_s = self._settings.election_timeout_s
            progress.retry_at = now + timeout_s
            self._full[member_id] = now + NO_SPACE_TIMEOUTS * timeout_s
        if member_id == self._successor:
            self.end_transfer()

    def snapshot_refused(self, member_id: MemberId, now: float) -> None:
        """A member could not keep a snapshot, however often it was sent: it has to wait."""
        self.unreachable(member_id)
        progress = self.progress.get(member_id)
        if progress is not None:
            timeout_s = self._settings.election_timeout_s
            progress.retry_at = now + SNAPSHOT_RETRY_TIMEOUTS * timeout_s

    def snapshot_installed(self, member_id: MemberId, index: int) -> None:
        """A member holds, durably, everything up to `index`."""
        progress = self.progress.get(member_id)
        if progress is not None and index <= self._log.last_index:
            progress.matched(index)

    def commit_candidate(self) -> int:
        """
        The index that a quorum holds durably.

        The leader counts its own copy when it is durable, and not before.
        """
        matches = {m: p.match_index for m, p in self.progress.items()}
        matches[self._member_id] = self._log.persisted_index
        return quorum_value(self._majorities, matches, 0)

    # -- authority -----------------------------------------------------------

    def tick(self, commit_index: int, now: float) -> None:
        """Send the heartbeats that are due."""
        if now >= self.heartbeat_due:
            self.heartbeat_due = now + self._settings.heartbeat_interval_s
            self._heartbeats(commit_index, now)
        if now >= self._transfer_due:
            self.end_transfer()

    def _heartbeats(self, commit_index: int, now: float) -> None:
        self.reads.begin_round(now)
        for member_id, progress in self.progress.items():
            self._heartbeat(member_id, progress, commit_index)

    def _heartbeat(self, member_id: MemberId, progress: Progress, commit_index: int) -> None:
        commit = min(commit_index, progress.match_index)
        progress.commit_sent = max(progress.commit_sent, commit)
        self._send(member_id, Heartbeat(self._term, commit, self.reads.round))

    def heartbeat_answered(
        self, member_id: MemberId, answer: HeartbeatResponse, now: float
    ) -> None:
        progress = self.progress.get(member_id)
        if progress is None:
            return
        progress.heard_from(now)
        progress.round = max(progress.round, min(answer.round, self.reads.round))
        # It can be reached (again): what was lost is sent anew; but not at each
        # heartbeat what a full disk has refused.
        if now >= progress.retry_at:
            progress.lost = False

    def quorum_contact(self, now: float) -> float:
        """The latest time at which a quorum, this node included, had answered."""
        contacts = {m: p.last_contact for m, p in self.progress.items()}
        contacts[self._member_id] = now
        return quorum_value(self._majorities, contacts, now)

    # -- reads ---------------------------------------------------------------

    def read(self, context: int, commit_index: int) -> None:
        """
        A read that arrives now.

        It must see the no-op of this term at least: before that is committed,
        the leader does not know how far its predecessors had committed.
        """
        if len(self.reads) >= MAX_READS_WAITING:
            raise Overloaded("The leader has too many reads waiting. Try again.")
        self.reads.add(context, max(commit_index, self.term_start_index))

    def advance_reads(self, commit_index: int, now: float) -> list[tuple[int, int]]:
        """Release the reads that a quorum has confirmed; begin a round for the rest."""
        released = self._confirmed(commit_index)
        if self.reads.wants_round:
            self._heartbeats(commit_index, now)
            # With a quorum of one, the round is over as soon as it has begun.
            released += self._confirmed(commit_index)
        return released

    def _confirmed(self, commit_index: int) -> list[tuple[int, int]]:
        if not len(self.reads) and not self._settings.lease_reads:
            return []
        # What is released must be sure to be applied some day: an entry of
        # this term that is not committed yet may never be.
        if commit_index < self.term_start_index:
            return []
        rounds = {m: p.round for m, p in self.progress.items()}
        rounds[self._member_id] = self.reads.round
        return self.reads.confirm(quorum_value(self._majorities, rounds, 0))

    def has_lease(self, commit_index: int, now: float) -> bool:
        """
        Whether nobody else can have committed anything yet, by the clock (thesis 6.4.1).
        """
        return (
            self._settings.lease_reads
            and not self._lease_broken
            and commit_index >= self.term_start_index
            and now < self.reads.confirmed_at + self._settings.lease_s
        )

    # -- handing over (thesis 3.10) ------------------------------------------

    def transfer(self, successor: MemberId, now: float) -> None:
        """
        Let `successor` lead: once it has the whole log, it is told to campaign.

        Meanwhile nothing is proposed.  It is given up after an election timeout.
        """
        if successor not in self.progress or successor not in self._incoming:
            raise ChangeRefused("Only another voter can be the next leader.")
        self._successor, self._told = successor, False
        self._transfer_due = now + self._settings.election_timeout_s

    def end_transfer(self) -> None:
        """Go on leading."""
        self._successor, self._told = NOBODY, False
        self._transfer_due = math.inf

    @property
    def successor(self) -> MemberId:
        """Who is to lead next, or nobody."""
        return self._successor

    def best_successor(self) -> MemberId:
        """The voter that has most of the log, of those heard from last; or nobody."""
        voters = self._incoming & self.progress.keys()
        return max(
            sorted(voters),
            key=lambda m: (
                m not in self._full,
                self.progress[m].match_index,
                self.progress[m].last_contact,
            ),
            default=NOBODY,
        )

    def successor_with_space(self, commit_index: int, now: float) -> MemberId:
        """
        The best successor of those that may have room and answer; or nobody.

        And nobody while another is on the way to lead, or before this term has
        committed anything: who is elected meanwhile may have no room either.
        """
        if not self.may_propose or commit_index < self.term_start_index:
            return NOBODY
        since = now - self._settings.election_timeout_s
        able = [
            m
            for m in sorted(self._incoming & self.progress.keys())
            if self._full.get(m, now) <= now and self.progress[m].last_contact > since
        ]
        return max(able, key=lambda m: self.progress[m].match_index, default=NOBODY)

    def _tell_successor(self) -> None:
        progress = self.progress.get(self._successor)
        if progress is None or self._told:
            return
        if progress.match_index == self._log.last_index:
            self._told = self._lease_broken = True
            self._send(self._successor, TimeoutNow(self._term))

    @property
    def next_deadline(self) -> float:
        return min(self.heartbeat_due, self._notice_due, self._transfer_due)
