"""
The rules that hold in every node after every step; tests check them there.

What binds several nodes (Election Safety, Log Matching, Leader Completeness,
State Machine Safety) is checked by whoever sees several nodes.
"""

from __future__ import annotations

from raftd.core.log import Log
from raftd.core.messages import Entry
from raftd.core.progress import MAX_APPENDS_IN_FLIGHT, Progress, ProgressState
from raftd.core.raft import Raft, Role
from raftd.errors import InvariantViolated


class Checker:
    """Checks one node after each of its steps, also against the step before."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._term = raft.term
        self._voted_for = raft.hard_state.voted_for
        self._commit_index = raft.commit_index
        self._leader_last: tuple[int, int, int] | None = None
        self._matches: dict[int, int] = {}
        #: The log that was looked at last, as (base_index, base_term, entries).
        self._log: tuple[int, int, list[Entry]] | None = None

    def check(self) -> None:
        """`InvariantViolated` names the rule that does not hold."""
        raft = self._raft
        self._check_log(raft.log)
        _require(raft.term >= self._term, "term never decreases")
        if raft.term == self._term and self._voted_for:
            _require(raft.hard_state.voted_for == self._voted_for, "one vote in a term")
        _require(raft.commit_index >= self._commit_index, "commit_index never decreases")
        _require(raft.commit_index <= raft.log.last_index, "commit_index <= last_index")
        safe = min(raft.commit_index, raft.log.persisted_index)
        _require(raft.applied_index <= safe, "applied_index <= min(commit, persisted)")
        leads = raft.role is Role.LEADER
        _require((raft.leadership is not None) == leads, "leadership exactly while leader")
        campaigns = raft.role in (Role.PRE_CANDIDATE, Role.CANDIDATE)
        _require((raft.campaign is not None) == campaigns, "campaign exactly while candidate")
        _require(not leads or raft.leader_id == raft.member_id, "a leader knows who leads")
        self._check_leadership()
        self._term, self._voted_for = raft.term, raft.hard_state.voted_for
        self._commit_index = raft.commit_index

    def _check_log(self, log: Log) -> None:
        _require(
            log.base_index <= log.persisted_index <= log.written_index <= log.last_index,
            "base <= persisted <= written <= last",
        )
        # Beyond the last one, if there is more.
        entries = log.entries(log.first_index, log.last_index + 1)
        seen = log.base_index, log.base_term, entries
        if seen != self._log:  # most steps leave the log as it is
            self._log = seen
            _check_entries(*seen)
        _require(
            log.last_index == log.base_index + len(entries),
            "last_index is that of the last entry",
        )

    def _check_leadership(self) -> None:
        raft, leadership = self._raft, self._raft.leadership
        if leadership is None:
            self._leader_last, self._matches = None, {}
            return
        if self._leader_last is not None and self._leader_last[0] == raft.term:
            _, index, term = self._leader_last
            compacted = index < raft.log.base_index
            _require(compacted or raft.log.term_at(index) == term, "a leader only appends")
        self._leader_last = (raft.term, raft.log.last_index, raft.log.last_term)
        matches = {}
        for member_id, progress in leadership.progress.items():
            _check_progress(progress, raft)
            matches[member_id] = progress.match_index
            _require(
                progress.match_index >= self._matches.get(member_id, 0),
                "match_index never decreases",
            )
        _require(raft.member_id not in matches, "a leader counts its own copy by itself")
        self._matches = matches


def _check_entries(base_index: int, base_term: int, entries: list[Entry]) -> None:
    index, term, time_ms = base_index, base_term, 0
    for entry in entries:
        _require(entry.index == index + 1, "entries follow one another")
        _require(entry.term >= term, "terms never decrease along the log")
        _require(entry.time_ms >= time_ms, "time never goes back along the log")
        index, term, time_ms = entry.index, entry.term, entry.time_ms


def _check_progress(progress: Progress, raft: Raft) -> None:
    _require(progress.match_index < progress.next_index, "match_index < next_index")
    _require(progress.match_index <= raft.log.last_index, "match_index <= last_index")
    _require(progress.next_index <= raft.log.last_index + 1, "next_index <= last_index + 1")
    _require(progress.commit_sent <= raft.commit_index, "commit_sent <= commit_index")
    _require(len(progress.in_flight) <= MAX_APPENDS_IN_FLIGHT, "appends in flight are bounded")
    _require(
        progress.bytes_in_flight == sum(size for _, size in progress.in_flight),
        "bytes in flight add up",
    )
    if progress.state is ProgressState.PROBE:
        _require(not progress.in_flight, "a probe is alone")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise InvariantViolated(rule)
