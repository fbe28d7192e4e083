"""Defects of membership: pitfalls 32 to 40."""

from __future__ import annotations

from raftd.test.defects.defect import NO_PITFALL, Defect

RAFT, LEADER, MEMBERSHIP = "core/raft.py", "core/leader.py", "core/membership.py"
HANDSHAKE, DIRECTORY = "net/handshake.py", "storage/directory.py"

MEMBERS = (
    Defect(
        32,
        "change-before-the-first-commit",
        "A leader changes the configuration before it has committed in its term.",
        LEADER,
        "        if commit_index < self.term_start_index:\n            raise ChangeInProgress(",
        "        if commit_index < 0:\n            raise ChangeInProgress(",
    ),
    Defect(
        33,
        "truncated-configuration-stays",
        "A configuration whose entry was cut off stays in force.",
        RAFT,
        "            self._configurations.truncate(first)\n",
        "",
    ),
    Defect(
        33,
        "timer-of-the-truncated-configuration",
        "A node whose vote is taken back with a configuration stands for election.",
        RAFT,
        "        if self.configuration is not before:\n",
        "        if self.configuration is None:\n",
    ),
    Defect(
        33,
        "configuration-outlives-the-log",
        "A snapshot that replaces the log does not replace its configurations.",
        RAFT,
        "                self._configurations = "
        "ConfigurationHistory(metadata.configuration, index)\n",
        "",
    ),
    Defect(
        33,
        "compaction-drops-the-configuration-in-force",
        "Compaction forgets the configuration that was in force at the new base.",
        MEMBERSHIP,
        "        while len(self._history) > 1 and self._history[1][0] <= index:\n",
        "        while len(self._history) > 1 and self._history[0][0] <= index:\n",
    ),
    Defect(
        33,
        "configuration-counts-when-committed",
        "A restarted node does not use the configuration at the end of its log.",
        RAFT,
        "        self._configurations.append(configurations_in(behind))\n",
        "        self._configurations.append(\n"
        "            c for c in configurations_in(behind) if c[0] <= commit_index\n"
        "        )\n",
        also=("test_6_a_restarted_node_has_the_last_configuration_of_its_log",),
    ),
    Defect(
        34,
        "two-changes-at-once",
        "A change is made while another one is not committed.",
        RAFT,
        "        if self.configuration_index > self.commit_index:\n",
        "        if self.configuration_index < 0:\n",
    ),
    Defect(
        34,
        "change-of-a-joint-configuration",
        "A change is made while a joint configuration was not left.",
        MEMBERSHIP,
        "        if self.is_joint:\n            raise ChangeInProgress(",
        "        if self.is_joint and not self.voters:\n            raise ChangeInProgress(",
    ),
    Defect(
        34,
        "change-while-handing-over",
        "A change is made while leadership is handed over.",
        LEADER,
        "        if not self.may_propose:\n"
        '            raise NotLeader("The leader is handing over to another one.")\n'
        "        if commit_index",
        "        if commit_index",
    ),
    Defect(
        34,
        "what-is-so-already-is-a-change",
        "Asking again for what is so already is another change.",
        RAFT,
        "        if changed == self.configuration:\n",
        "        if changed is self:\n",
    ),
    Defect(
        35,
        "only-known-voters-vote",
        "A learner refuses a vote because it does not know yet that it has one.",
        RAFT,
        "        granted = (\n            request.term == self.term\n",
        "        granted = (\n"
        "            request.term == self.term\n"
        "            and self.configuration.is_voter(self.member_id)\n",
    ),
    Defect(
        35,
        "only-known-voters-pre-vote",
        "A learner refuses a pre-vote because it does not know yet that it has a vote.",
        RAFT,
        "        granted = (\n            request.term > self.term\n",
        "        granted = (\n"
        "            request.term > self.term\n"
        "            and self.configuration.is_voter(self.member_id)\n",
    ),
    Defect(
        36,
        "removed-leader-leads-on",
        "A leader that has removed itself leads on.",
        RAFT,
        "            self._become_follower(self.term, NOBODY, now)\n\n    # -- the caller",
        "\n    # -- the caller",
    ),
    Defect(
        36,
        "removed-leader-tells-nobody",
        "A leader that steps down on its removal leaves the rest to a timeout.",
        RAFT,
        "                self._send(successor, TimeoutNow(self.term))\n",
        "                pass\n",
    ),
    Defect(
        36,
        "removed-leader-takes-writes",
        "A leader takes writes on behind its own removal, and leaves them to fate.",
        LEADER,
        "return self._successor == NOBODY and self._is_voter",
        "return self._successor == NOBODY",
    ),
    Defect(
        36,
        "removed-leader-counts-itself",
        "A leader on its way out counts its own copy.",
        LEADER,
        "        matches[self._member_id] = self._log.persisted_index\n",
        "        matches[self._member_id] = self._log.persisted_index\n"
        "        if len(self._majorities) == 1 and self._member_id not in "
        "self._majorities[0]:\n"
        "            return quorum_value([self._majorities[0] | {self._member_id}], "
        "matches, 0)\n",
    ),
    Defect(
        36,
        "what-waited-for-one-that-goes-hangs",
        "What is committed without the one that was removed waits for the next answer.",
        RAFT,
        "        # With fewer voters, what was held up by those who left may be committed.\n"
        "        self._advance_commit(leadership)\n",
        "",
    ),
    Defect(
        36,
        "removal-is-obeyed-before-it-is-committed",
        "Whose removal is not committed does not stand, though only it can be elected.",
        MEMBERSHIP,
        "        return pending and self._history[-2][1].is_voter(member_id)\n",
        "        return False\n",
    ),
    Defect(
        36,
        "removed-members-stand-for-ever",
        "Whose removal is committed stands for election all the same.",
        MEMBERSHIP,
        "        pending = index > commit_index and len(self._history) > 1\n",
        "        pending = len(self._history) > 1\n",
    ),
    Defect(
        36,
        "quorum-is-given-away",
        "A change that leaves too few voters who answer is made without force.",
        LEADER,
        "        if not force:\n            self._check_live(changed.majorities(), now)\n",
        "",
    ),
    Defect(
        36,
        "silent-members-pass-for-alive",
        "Whoever has not answered yet in this term counts as alive.",
        LEADER,
        "        live = {m for m, p in recent.items() if p.answered} | {self._member_id}\n",
        "        live = recent.keys() | {self._member_id}\n",
    ),
    Defect(
        36,
        "vote-for-one-that-never-answered",
        "A member is given a vote though nobody has ever heard of it.",
        LEADER,
        "        silent = match_index < max(configuration_index, 1)\n",
        "        silent = False\n",
    ),
    Defect(
        36,
        "removed-successor-is-told",
        "A successor that was removed meanwhile is told to lead.",
        LEADER,
        "        if self._successor not in self._incoming:\n            self.end_transfer()\n",
        "",
    ),
    Defect(
        37,
        "joint-configuration-stays",
        "Nobody leaves a joint configuration.",
        RAFT,
        "            self._append_configuration(leadership, configuration.left(), now)\n",
        "            pass\n",
    ),
    Defect(
        37,
        "joint-configuration-is-left-at-once",
        "A joint configuration is left before it is committed.",
        RAFT,
        "        if not leadership.term_start_index <= self.commit_index >= "
        "self.configuration_index:\n",
        "        if self.configuration.is_joint:\n"
        "            self._append_configuration(leadership, configuration.left(), now)\n"
        "            return\n"
        "        if not leadership.term_start_index <= self.commit_index >= "
        "self.configuration_index:\n",
    ),
    Defect(
        37,
        "two-votes-at-once-without-a-joint-configuration",
        "Two votes are given or taken at once, and old and new majorities need not meet.",
        MEMBERSHIP,
        "        if len(before ^ after) <= 1:\n",
        "        if len(before ^ after) <= 2:\n",
    ),
    Defect(
        37,
        "outgoing-voters-do-not-stand",
        "Who is on the way out of a joint configuration does not stand for election.",
        MEMBERSHIP,
        "        if latest.is_voter(member_id):\n            return True\n",
        "        if any(m.id == member_id for m in latest.voters):\n            return True\n",
    ),
    Defect(
        38,
        "wiped-node-is-let-in",
        "Whoever answers under a member's name passes for that member.",
        HANDSHAKE,
        "    if hello.to_member_id not in (me.id, NOBODY):\n",
        "    if hello.to_member_id == NOBODY == me.id:\n",
    ),
    Defect(
        38,
        "answer-of-another-member-is-taken",
        "A caller does not look who answers.",
        HANDSHAKE,
        "    if to.id not in (answer.member_id, NOBODY):\n",
        "    if answer.member_id == NOBODY:\n",
        also=("test_the_caller_checks_who_answers",),
    ),
    Defect(
        38,
        "removed-member-is-welcome",
        "A member that was removed is talked to like any other.",
        HANDSHAKE,
        "    if hello.member_id in identity.removed:\n",
        "    if hello.member_id == NOBODY:\n",
    ),
    Defect(
        38,
        "missing-log-is-made-anew",
        "A node whose log is gone starts with an empty one, and may vote twice.",
        DIRECTORY,
        "        elif self.identity.log_created and not has_log:\n",
        "        elif self.identity.log_created and not has_log and not self.path:\n",
    ),
    Defect(
        38,
        "name-is-taken-over",
        "Another identity takes a voter's name over.",
        MEMBERSHIP,
        "            if other.name == member.name and other.id != member.id:\n",
        "            if other.name == member.name and other.id == 0:\n",
    ),
    Defect(
        38,
        "removed-identity-joins-again",
        "A member that was removed joins again as it was.",
        MEMBERSHIP,
        "        if member.id in self._removed:\n",
        "        if member.id == 0:\n",
    ),
    Defect(
        39,
        "only-the-leader-takes-joiners",
        "A follower does not ask the leader to let a joiner in.",
        "changes.py",
        "                    if peer is not None:\n",
        "                    if peer is None:\n",
    ),
    Defect(
        40,
        "joining-again-is-refused",
        "Asking to be let in is refused to who is a member already.",
        MEMBERSHIP,
        "        if known is not None:\n            return\n",
        "        if known is not None:\n"
        '            raise ChangeRefused("It is a member already.")\n',
    ),
    Defect(
        40,
        "options-are-obeyed-again",
        "A member that is started with the options of its first start joins again.",
        "console.py",
        "        if stage is Stage.MEMBER:\n            recovered",
        "        if stage is Stage.MEMBER and not self._answers.join:\n            recovered",
    ),
    Defect(
        40,
        "join-is-not-recorded",
        "A member that has joined is restarted as one that has yet to.",
        "replica.py",
        "        self._record(stage=Stage.MEMBER)\n",
        "        pass\n",
    ),
    Defect(
        40,
        "broken-off-join-begins-anew",
        "A join that was broken off begins again under another identity.",
        "replica.py",
        "        if self._directory.identity is None:\n"
        "            self._directory.save(Identity(Stage.JOINING",
        "        if not self._directory.identity or not self._directory.identity.cluster_id:\n"
        "            self._directory.save(Identity(Stage.JOINING",
    ),
    Defect(
        NO_PITFALL,
        "vote-before-it-has-applied",
        "A member asks for its vote with all of the log still to apply.",
        "joining.py",
        " and unapplied <= MAX_UNAPPLIED",
        "",
        also=("test_does_not_ask_while_it_has_much_to_apply",),
    ),
)
