"""Defects of reads: pitfalls 23 to 28."""

from __future__ import annotations

from raftd.test.defects.defect import Defect

RAFT, LEADER, READS = "core/raft.py", "core/leader.py", "core/reads.py"

READING = (
    Defect(
        23,
        "read-index-of-before-the-term",
        "A new leader gives the commit index that it happens to know.",
        LEADER,
        "self.reads.add(context, max(commit_index, self.term_start_index))",
        "self.reads.add(context, commit_index)",
        seeds=60,
    ),
    Defect(
        23,
        "read-is-released-before-the-first-commit",
        "A read is released though the entry that it must see may never be committed.",
        LEADER,
        "        if commit_index < self.term_start_index:\n            return []\n",
        "",
    ),
    Defect(
        24,
        "read-joins-the-round-under-way",
        "A read is confirmed by a round that was begun before it arrived.",
        READS,
        "        self._arrived.append((context, read_index))\n",
        "        if self._confirming:\n"
        "            self._confirming.append((self.round, read_index, context))\n"
        "        else:\n"
        "            self._arrived.append((context, read_index))\n",
        seeds=60,
    ),
    Defect(
        24,
        "any-answer-confirms",
        "An answer to an earlier round counts for the present one.",
        LEADER,
        "progress.round = max(progress.round, min(answer.round, self.reads.round))",
        "progress.round = self.reads.round",
        seeds=60,
    ),
    Defect(
        24,
        "answers-to-entries-confirm",
        "An answer to AppendEntries, sent whenever, counts for the present round.",
        LEADER,
        "        progress.heard_from(now)\n        if answer.success:\n",
        "        progress.heard_from(now)\n        progress.round = self.reads.round\n"
        "        if answer.success:\n",
        seeds=60,
    ),
    Defect(
        24,
        "reads-of-one-question-for-all",
        "A node answers reads with the read index of a question asked before them.",
        "routing.py",
        "        self._requests.answer(request, None)\n"
        "        if self._reads:\n"
        "            self._wake()  # they may have waited for these\n",
        "        self._requests.answer(request, None)\n"
        "        for request in self._reads:\n"
        "            self._requests.answer(request, None)\n",
    ),
    Defect(
        25,
        "leader-reads-by-itself",
        "A leader confirms a read without an answer of anybody.",
        LEADER,
        "        return self.reads.confirm(quorum_value(self._majorities, rounds, 0))",
        "        return self.reads.confirm(self.reads.round)",
        seeds=60,
    ),
    Defect(
        25,
        "one-answer-confirms",
        "A single answer confirms a read, whatever the number of voters.",
        LEADER,
        "rounds[self._member_id] = self.reads.round\n"
        "        return self.reads.confirm(quorum_value(self._majorities, rounds, 0))",
        "return self.reads.confirm(max(rounds.values(), default=self.reads.round))",
        seeds=60,
    ),
    Defect(
        25,
        "linearizable-reads-are-local",
        "A read is answered from the state of whichever node is asked.",
        "node.py",
        "            self._router.read(done, self._request_timeout_s)\n",
        "            done(None)\n",
        also=("test_24_deposed_leader_confirms_no_read",),
    ),
    Defect(
        26,
        "round-of-an-earlier-term-is-acknowledged",
        "A heartbeat of an earlier term is acknowledged in the present one.",
        RAFT,
        "        confirmed_round = 0\n",
        "        confirmed_round = request.round\n",
    ),
    Defect(
        26,
        "old-answers-confirm",
        "An answer of an earlier term confirms a round of the present one.",
        RAFT,
        "        elif response.term < self.term:\n            # Of",
        "        elif response.term < 0:\n            # Of",
        seeds=60,
    ),
    Defect(
        26,
        "lease-outlives-the-transfer",
        "A leader that has told its successor to stand still reads by its lease.",
        LEADER,
        "            self._told = self._lease_broken = True\n",
        "            self._told = True\n",
    ),
    Defect(
        26,
        "lease-comes-back",
        "A lease holds again when a transfer was given up, though the successor may stand.",
        LEADER,
        "        self._successor, self._told = NOBODY, False\n",
        "        self._successor, self._told = NOBODY, False\n"
        "        self._lease_broken = False\n",
    ),
    Defect(
        26,
        "timeout-now-of-any-term",
        "A late TimeoutNow, of a transfer long over, is obeyed.",
        RAFT,
        "may = request.term == self.term and self.leader_id == sender",
        "may = self.leader_id == sender",
    ),
    Defect(
        27,
        "read-does-not-wait-for-the-state",
        "A read is answered when its index is known, applied or not.",
        "applier.py",
        "        if index <= self.applied_index:\n            act()",
        "        if index <= self.applied_index or index:\n            act()",
    ),
    Defect(
        27,
        "read-waits-for-one-entry-less",
        "A read is answered when all but the last entry that it must see are applied.",
        "applier.py",
        "        if index <= self.applied_index:\n            act()",
        "        if index <= self.applied_index + 1:\n            act()",
    ),
    Defect(
        27,
        "restart-forgets-what-was-committed",
        "A restarted node applies nothing that it knew to be committed.",
        RAFT,
        "        self._committed_out = restored\n",
        "        self._committed_out = self.commit_index = restored\n",
    ),
    Defect(
        27,
        "commit-index-is-not-written",
        "Writes do not say what is committed.",
        RAFT,
        "return Write(number, hard_state, entries, base, self.commit_index)",
        "return Write(number, hard_state, entries, base, 0)",
    ),
    Defect(
        27,
        "restart-applies-what-was-only-written",
        "A restarted node applies its whole log, committed or not.",
        RAFT,
        "        self._committed_out = restored\n",
        "        self._committed_out = restored\n"
        "        self.commit_index = self.log.last_index\n",
        seeds=60,
    ),
    Defect(
        28,
        "leases-without-being-asked-for",
        "A lease answers reads though nobody has turned leases on.",
        LEADER,
        "            self._settings.lease_reads\n            and not self._lease_broken\n",
        "            not self._lease_broken\n",
    ),
    Defect(
        28,
        "lease-from-the-answer",
        "A lease counts from the answer to a round, not from its beginning.",
        READS,
        "            _, self.confirmed_at = self._begun.popleft()\n",
        "            self._begun.popleft()\n"
        "            if self._begun:\n"
        "                self.confirmed_at = self._begun[-1][1]\n",
    ),
    Defect(
        28,
        "lease-longer-than-the-promise",
        "A lease lasts longer than those who gave it refuse other candidates.",
        "core/settings.py",
        "return self.election_timeout_s * LEASE_SHARE",
        "return self.election_timeout_s * 1.2",
    ),
    Defect(
        28,
        "lease-of-one-half",
        "A lease is given by the incoming half of a joint configuration.",
        LEADER,
        "return self.reads.confirm(quorum_value(self._majorities, rounds, 0))",
        "return self.reads.confirm(quorum_value(self._majorities[:1], rounds, 0))",
    ),
    Defect(
        28,
        "promise-ends-with-the-term",
        "A node that has given a lease votes in its term when it is free to.",
        RAFT,
        "is_free = voted_for == self.leader_id == NOBODY and not disturbing",
        "is_free = voted_for == self.leader_id == NOBODY",
    ),
    Defect(
        28,
        "promise-forgotten-by-a-restart",
        "A restarted node votes at once, whatever lease it has given.",
        RAFT,
        "self._leader_contact = now if settings.lease_reads else -math.inf",
        "self._leader_contact = -math.inf",
    ),
    Defect(
        28,
        "promise-forgotten-without-a-leader",
        "A node that follows nobody any more forgets the lease that it has given.",
        RAFT,
        "            self.leader_id == NOBODY and not self.settings.lease_reads\n",
        "            self.leader_id == NOBODY\n",
    ),
    Defect(
        28,
        "single-voter-in-haste",
        "A node that believes to be the only voter elects itself before leases are over.",
        RAFT,
        "self.configuration.voter_ids() == {member_id} and not settings.lease_reads:",
        "self.configuration.voter_ids() == {member_id}:",
    ),
)
