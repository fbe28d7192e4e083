"""Defects of replication: pitfalls 13 to 22, and 56."""

from __future__ import annotations

from raftd.test.defects.defect import Defect

RAFT, LEADER, LOG, PROGRESS = (
    "core/raft.py",
    "core/leader.py",
    "core/log.py",
    "core/progress.py",
)

REPLICATION = (
    Defect(
        13,
        "old-entries-are-counted",
        "An entry of an earlier term is committed because a majority has it.",
        RAFT,
        "if index > self.commit_index and self.log.term_at(index) == self.term:",
        "if index > self.commit_index:",
    ),
    Defect(
        13,
        "no-entry-of-its-own",
        "A new leader appends nothing, so that nothing it inherits is ever committed.",
        LEADER,
        'self.term_start_index = self.append(EntryKind.NOOP, (b"",), now)',
        "self.term_start_index = log.last_index",
    ),
    Defect(
        14,
        "commit-index-is-set",
        "The commit index is set to whatever a message says.",
        RAFT,
        "self.commit_index = max(self.commit_index, index)",
        "self.commit_index = index",
    ),
    Defect(
        15,
        "match-index-is-set",
        "A late answer takes match_index back.",
        PROGRESS,
        "self.match_index = max(self.match_index, match_index)",
        "self.match_index = match_index",
    ),
    Defect(
        15,
        "next-index-falls-behind-match-index",
        "A late refusal takes next_index back behind match_index.",
        PROGRESS,
        "self.next_index = max(next_index, self.match_index + 1)",
        "self.next_index = next_index",
    ),
    Defect(
        15,
        "match-index-falls-with-a-probe",
        "A probe forgets what is known to match.",
        PROGRESS,
        "        self.next_index = max(next_index, self.match_index + 1)\n",
        "        self.next_index = next_index\n"
        "        self.match_index = min(self.match_index, next_index - 1)\n",
    ),
    Defect(
        16,
        "refusal-passes-for-success",
        "The match_index of a refusal counts.",
        LEADER,
        "        if answer.success:\n",
        "        if answer.match_index:\n",
    ),
    Defect(
        16,
        "hint-passes-for-a-match",
        "The hint of a refusal counts as verified.",
        LEADER,
        "            progress.probe(min(refused, hint + 1), lost=False)\n",
        "            progress.probe(min(refused, hint + 1), lost=False)\n"
        "            progress.match_index = hint\n",
    ),
    Defect(
        17,
        "whole-log-is-acknowledged",
        "An answer acknowledges entries behind those that the request carried.",
        RAFT,
        "answer = AppendEntriesResponse(self.term, True, verified)",
        "answer = AppendEntriesResponse(self.term, True, self.log.last_index)",
    ),
    Defect(
        17,
        "acknowledged-before-it-is-durable",
        "An answer leaves before the entries that it acknowledges are durable.",
        RAFT,
        "self._answer(sender, answer, request_id, self._write_holding(verified))",
        "self._answer(sender, answer, request_id)",
    ),
    Defect(
        17,
        "the-last-write-has-it-all",
        "An answer waits for the last write that was handed out, not the next.",
        RAFT,
        "return self._outbox.last_write + (index > self.log.written_index)",
        "return self._outbox.last_write",
    ),
    Defect(
        17,
        "write-from-before-a-truncation",
        "A write acknowledges entries that were cut off since, and replaced.",
        LOG,
        "        self._writes = deque((number, min(last, kept)) for number, last in "
        "self._writes)\n",
        "",
    ),
    Defect(
        17,
        "cut-off-stays-persisted",
        "Entries that replace durable ones count as durable.",
        LOG,
        "        self.persisted_index = min(self.persisted_index, kept)\n",
        "",
    ),
    Defect(
        17,
        "answer-of-an-earlier-term-leaves",
        "An answer that waits for the disk leaves though a later term has begun.",
        "core/outbox.py",
        "            self._withdraw(new.term)\n",
        "            pass\n",
    ),
    Defect(
        17,
        "heartbeats-wait-for-the-disk",
        "The answer to a heartbeat waits for the flush of entries.",
        RAFT,
        "self._answer(sender, HeartbeatResponse(self.term, confirmed_round), request_id)",
        "self._answer(\n"
        "            sender,\n"
        "            HeartbeatResponse(self.term, confirmed_round),\n"
        "            request_id,\n"
        "            self._write_holding(self.log.last_index),\n"
        "        )",
    ),
    Defect(
        18,
        "log-is-cut-behind-every-request",
        "Whatever lies behind the entries of a request is cut off.",
        RAFT,
        "        new = self._without_known(request.entries)\n",
        "        new = request.entries\n",
    ),
    Defect(
        18,
        "log-is-cut-at-the-end-of-a-request",
        "A request that ends before the log does cuts the rest off.",
        RAFT,
        "        new = self._without_known(request.entries)\n",
        "        new = self._without_known(request.entries)\n"
        "        end = request.prev_log_index + len(request.entries)\n"
        "        if not new and self.commit_index <= end < self.log.last_index:\n"
        "            self.log.truncate(end + 1)\n",
    ),
    Defect(
        18,
        "committed-entries-are-cut-off",
        "Committed entries are replaced without a word.",
        RAFT,
        "            if first <= self.commit_index:\n",
        "            if first < 0:\n",
    ),
    Defect(
        18,
        "conflicts-are-not-seen",
        "An entry of another term passes for the leader's.",
        RAFT,
        "                and self.log.term_at(entry.index) != entry.term\n            ):",
        "                and self.log.term_at(entry.index) is None\n            ):",
        also=("test_5_3_a_conflicting_suffix_is_deleted_and_only_that",),
    ),
    Defect(
        18,
        "storage-cuts-below-its-snapshot",
        "The log on disk takes a write that replaces what a snapshot holds.",
        "storage/replay.py",
        "        if not lowest <= first <= highest:\n",
        "        if not first <= highest:\n",
        also=("test_refusals_change_nothing",),
    ),
    Defect(
        19,
        "lost-stays-lost",
        "A member that could not be reached is sent nothing when it answers again.",
        LEADER,
        "        progress.lost = False\n",
        "        pass\n",
    ),
    Defect(
        19,
        "whole-log-is-sent-again",
        "A member that was down is sent the log from its beginning.",
        LEADER,
        "again = progress.next_index if probing else progress.match_index + 1",
        "again = progress.match_index + 1",
    ),
    Defect(
        19,
        "probe-without-an-end",
        "A request that got no answer is waited for for ever.",
        PROGRESS,
        "        self.probing = False\n        self.lost = lost\n",
        "        self.lost = lost\n",
    ),
    Defect(
        19,
        "in-flight-for-ever",
        "What got no answer takes room in the window for ever.",
        PROGRESS,
        "        self.commit_sent = 0\n        self.in_flight.clear()\n"
        "        self.bytes_in_flight = 0\n",
        "        self.commit_sent = 0\n",
    ),
    Defect(
        19,
        "silent-after-a-snapshot",
        "A member that has installed a snapshot is sent nothing behind it.",
        LEADER,
        "            progress.matched(index)\n\n    def commit_candidate",
        "            progress.match_index = max(progress.match_index, index)\n\n"
        "    def commit_candidate",
    ),
    Defect(
        20,
        "replication-waits-for-the-heartbeat",
        "Entries are sent when the next heartbeat is due.",
        LEADER,
        "            while progress.next_index <= self._log.last_index and "
        "progress.may_send():",
        "            while (\n"
        "                now >= self.heartbeat_due\n"
        "                and progress.next_index <= self._log.last_index\n"
        "                and progress.may_send()\n"
        "            ):",
    ),
    Defect(
        20,
        "new-member-waits-for-the-next-write",
        "A new member is sent nothing until something else is written.",
        RAFT,
        "        leadership.configure(changed, now)\n"
        "        index = leadership.append(EntryKind.CONFIGURATION, (data,), now)\n",
        "        index = leadership.append(EntryKind.CONFIGURATION, (data,), now)\n"
        "        leadership.configure(changed, now)\n",
    ),
    Defect(
        20,
        "notices-to-who-is-away",
        "A member that cannot be reached is told of each commit index again at once.",
        LEADER,
        "        return not progress.lost and (",
        "        return (",
    ),
    Defect(
        20,
        "turn-waits-for-the-timer",
        "The driver proposes when its timer is due, not at once.",
        "node.py",
        "self._turn_call = self._clock.callLater(0, self._turn)",
        "self._turn_call = self._clock.callLater(0.05, self._turn)",
    ),
    Defect(
        21,
        "own-copy-counts-unflushed",
        "A leader counts entries that it has not flushed.",
        LEADER,
        "matches[self._member_id] = self._log.persisted_index",
        "matches[self._member_id] = self._log.last_index",
    ),
    Defect(
        21,
        "own-copy-counts-when-written",
        "A leader counts entries that it has handed to the disk.",
        LEADER,
        "matches[self._member_id] = self._log.persisted_index",
        "matches[self._member_id] = self._log.written_index",
    ),
    Defect(
        21,
        "applied-before-it-is-durable",
        "An entry is applied that this node has not flushed.",
        RAFT,
        "safe = min(self.commit_index, self.log.persisted_index)",
        "safe = self.commit_index",
    ),
    Defect(
        22,
        "replacement-is-not-written",
        "Entries that replace others that were written are never written.",
        LOG,
        "        self.written_index = min(self.written_index, kept)\n",
        "",
    ),
    Defect(
        22,
        "first-unwritten-entry-is-left-out",
        "A write leaves out the first entry that it should hold.",
        LOG,
        "unwritten = self._entries[self.written_index - self.base_index :]",
        "unwritten = self._entries[self.written_index + 1 - self.base_index :]",
    ),
    Defect(
        22,
        "replay-keeps-the-old-tail",
        "Replay puts entries behind those that they replace.",
        "storage/replay.py",
        "            del self.entries[entries[0].index - self.base_index - 1 :]\n",
        "",
    ),
    Defect(
        22,
        "terms-of-the-old-tail-stay",
        "The log's outline keeps the terms of what was cut off.",
        "storage/replay.py",
        "        while self._runs and self._runs[-1][0] >= first:\n"
        "            self._runs.pop()\n",
        "",
        also=("test_terms_of_a_truncated_suffix_are_forgotten",),
    ),
    Defect(
        22,
        "segment-is-kept-for-a-cut-log",
        "A segment that leans on what was cut off passes for a beginning of the log.",
        "storage/compaction.py",
        "while self._segments and self._segments[-1][1] >= first_removed:",
        "while self._segments and self._segments[-1][1] > first_removed:",
    ),
    Defect(
        56,
        "commit-follows-the-leader",
        "A follower commits up to the leader's commit index, whatever it holds there.",
        RAFT,
        "self._commit(min(request.leader_commit, verified))",
        "self._commit(min(request.leader_commit, self.log.last_index))",
    ),
    Defect(
        56,
        "heartbeat-carries-the-commit-index",
        "A heartbeat, which checks no log, carries the leader's commit index as it is.",
        LEADER,
        "        commit = min(commit_index, progress.match_index)\n",
        "        commit = commit_index\n",
    ),
    Defect(
        56,
        "any-log-matches",
        "A follower takes entries behind a previous entry of another term.",
        RAFT,
        "self.log.term_at(request.prev_log_index) != request.prev_log_term",
        "request.prev_log_index > self.log.last_index",
        also=("test_5_3_the_consistency_check",),
    ),
)
