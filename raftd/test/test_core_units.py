"""The small parts of the core, each by itself."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from raftd.core import leader as leader_module
from raftd.core import progress as progress_module
from raftd.core.election import Campaign
from raftd.core.invariants import Checker
from raftd.core.log import Log
from raftd.core.membership import (
    MAX_MEMBERS,
    MAX_REMOVED,
    AddLearner,
    Change,
    Configuration,
    ConfigurationHistory,
    Demote,
    Promote,
    Remove,
    Rename,
    configurations_in,
    decode_configuration,
    encode_configuration,
)
from raftd.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Member,
    PreVote,
    Request,
    RequestVote,
    RequestVoteResponse,
)
from raftd.core.progress import MAX_APPENDS_IN_FLIGHT, Progress, ProgressState
from raftd.core.quorum import has_quorum, quorum_value
from raftd.core.raft import Role
from raftd.core.reads import MAX_ROUNDS_REMEMBERED, ReadQueue
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import (
    ChangeInProgress,
    ChangeRefused,
    InvariantViolated,
    NameTaken,
    Overloaded,
    ProtocolViolation,
)
from raftd.test.core_clusters import Safety, of_voters
from raftd.test.cores import (
    ELECTION_S,
    HEARTBEAT_S,
    THREE,
    Disk,
    Node,
    appends_in,
    configuration,
    heartbeats_in,
    leader_of,
    log_of,
    member,
    terms_of,
)


class Quorums(SynchronousTestCase):
    def test_a_quorum_is_more_than_half_of_each_set(self) -> None:
        one, two = frozenset([1]), frozenset([1, 2])
        three, other = frozenset([1, 2, 3]), frozenset([3, 4, 5])
        for majorities, members, expected in (
            ([one], {1}, True),
            ([one], {2}, False),
            ([two], {1}, False),
            ([two], {1, 2}, True),
            ([three], {1, 3}, True),
            ([three], {1, 4, 5}, False),
            ([three, other], {1, 2, 4}, False),
            ([three, other], {1, 3, 4}, True),
            ([three, other], {1, 2, 4, 5}, True),
            ([frozenset[int]()], {1}, False),
            ([three, frozenset[int]()], {1, 2, 3}, False),
        ):
            self.assertIs(has_quorum(majorities, members), expected, (majorities, members))

    def test_the_value_of_a_quorum(self) -> None:
        for majorities, values, expected in (
            ([{1}], {1: 5}, 5),
            ([{1, 2}], {1: 5, 2: 3}, 3),
            ([{1, 2, 3}], {1: 5, 2: 3, 3: 4}, 4),
            ([{1, 2, 3, 4}], {1: 5, 2: 3, 3: 4, 4: 9}, 4),
            ([{1, 2, 3, 4, 5}], {1: 5, 2: 3, 3: 4, 4: 9, 5: 9}, 5),
            ([{1, 2, 3}], {1: 5, 2: 3, 3: 4, 4: 99}, 4),
            ([{1, 2, 3}, {3, 4, 5}], {1: 9, 2: 9, 3: 1, 4: 2, 5: 3}, 2),
            ([set()], {}, -1),
            ([{1}, set()], {1: 5}, -1),
        ):
            sets = [frozenset[int](s) for s in majorities]
            self.assertEqual(quorum_value(sets, values, -1), expected, (majorities, values))

    def test_it_is_the_greatest_value_that_a_quorum_has_reached(self) -> None:
        rng = random.Random(1)
        for _ in range(300):
            members = range(1, rng.randint(2, 8))
            sets = [
                frozenset(rng.sample(members, rng.randint(1, len(members))))
                for _ in range(rng.randint(1, 2))
            ]
            values = {m: rng.randint(0, 5) for m in members}
            reached = [
                v
                for v in range(6)
                if has_quorum(sets, {m for m, value in values.items() if value >= v})
            ]
            self.assertEqual(quorum_value(sets, values, 0), max(reached))

    def test_any_two_quorums_share_a_voter(self) -> None:
        majorities = THREE.majorities()
        sets = [
            set(s)
            for n in range(4)
            for s in itertools.combinations([1, 2, 3], n)
            if has_quorum(majorities, s)
        ]
        self.assertEqual(len(sets), 4)
        for a, b in itertools.product(sets, sets):
            self.assertTrue(a & b)


class Campaigns(SynchronousTestCase):
    def test_answers(self) -> None:
        majorities = THREE.majorities()
        for answers, won, lost in (
            ([], False, False),
            ([(1, True)], False, False),
            ([(1, True), (1, True)], False, False),
            ([(1, True), (2, True)], True, False),
            ([(1, True), (9, True)], False, False),
            ([(2, False)], False, False),
            ([(2, False), (2, False)], False, False),
            ([(2, False), (3, False)], False, True),
            ([(8, False), (9, False)], False, False),
            # A refusal may have been the answer to an earlier request ...
            ([(1, True), (2, False), (2, True)], True, False),
            # ... and what is granted stays granted.
            ([(1, True), (2, True), (2, False)], True, False),
        ):
            campaign = Campaign(1)
            for voter, granted in answers:
                campaign.record(voter, granted)
            result = campaign.won(majorities), campaign.lost(majorities)
            self.assertEqual(result, (won, lost), answers)

    def test_a_joint_campaign_is_lost_when_either_half_cannot_grant_it(self) -> None:
        majorities = configuration([1, 2, 3], outgoing=[1, 4, 5]).majorities()
        campaign = Campaign(1)
        for voter in (1, 2, 3):
            campaign.record(voter, True)
        self.assertEqual((campaign.won(majorities), campaign.lost(majorities)), (False, False))
        campaign.record(4, False)
        campaign.record(5, False)
        self.assertTrue(campaign.lost(majorities))


class Logs(SynchronousTestCase):
    def test_indexes_and_terms(self) -> None:
        log = Log(log_of([1, 1, 2]))
        self.assertEqual((log.first_index, log.last_index, log.last_term), (1, 3, 2))
        self.assertEqual([log.term_at(i) for i in range(5)], [0, 1, 1, 2, None])
        empty = Log()
        self.assertEqual((empty.first_index, empty.last_index, empty.last_term), (1, 0, 0))

    def test_a_log_that_begins_behind_a_base(self) -> None:
        log = Log([Entry(i, 4, 1, 0, b"") for i in (11, 12)], base_index=10, base_term=3)
        self.assertEqual((log.first_index, log.last_index, log.persisted_index), (11, 12, 12))
        self.assertEqual([log.term_at(i) for i in (9, 10, 11, 12, 13)], [None, 3, 4, 4, None])
        self.assertEqual([e.index for e in log.entries(12, 12)], [12])
        with self.assertRaises(InvariantViolated):
            log.entries(10, 12)
        self.assertEqual(log.matching_hint(12, 3), (10, 3))
        log.truncate(11)
        self.assertEqual((log.last_index, log.last_term), (10, 3))

    def test_batches_are_bounded_by_count_and_size(self) -> None:
        log = Log([Entry(i, 1, 1, 0, bytes(10)) for i in range(1, 6)])
        for first, entries, size, expected in (
            (1, 9, 999, [1, 2, 3, 4, 5]),
            (1, 2, 999, [1, 2]),
            (4, 9, 999, [4, 5]),
            (1, 9, 20, [1, 2]),
            (1, 9, 29, [1, 2]),
            (1, 9, 5, [1]),
            (6, 9, 999, []),
        ):
            batch, taken = log.batch(first, entries, size)
            self.assertEqual([e.index for e in batch], expected, (first, entries, size))
            self.assertEqual(taken, 10 * len(expected))

    def test_which_log_is_more_up_to_date(self) -> None:
        log = Log(log_of([1, 2, 2]))
        for index, term, expected in ((3, 2, True), (2, 2, False), (1, 3, True), (9, 1, False)):
            self.assertIs(log.is_up_to_date(index, term), expected, (index, term))

    def test_where_two_logs_may_agree(self) -> None:
        log = Log(log_of([1, 1, 4, 4, 6]))
        for index, term, expected in (
            (5, 6, (5, 6)),
            (9, 6, (5, 6)),
            (5, 5, (4, 4)),
            (3, 3, (2, 1)),
            (2, 9, (2, 1)),
            (5, 0, (0, 0)),
            (0, 9, (0, 0)),
        ):
            self.assertEqual(log.matching_hint(index, term), expected, (index, term))

    def test_what_a_write_makes_durable(self) -> None:
        log = Log(log_of([1]))
        log.append(log_of([1, 1, 1])[1:])
        self.assertEqual([e.index for e in log.begin_write(1)], [2, 3])
        log.append(log_of([1, 1, 1, 1])[3:])
        self.assertEqual([e.index for e in log.begin_write(2)], [4])
        self.assertEqual(log.begin_write(3), [])
        self.assertEqual((log.persisted_index, log.written_index), (1, 4))
        log.persisted(1)
        self.assertEqual(log.persisted_index, 3)
        log.persisted(1)
        log.persisted(3)
        self.assertEqual(log.persisted_index, 4)

    def test_compaction(self) -> None:
        log = Log([Entry(i, 1 + i // 3, 1, 10 * i, b"") for i in range(1, 6)])
        log.compact(2)
        self.assertEqual((log.first_index, log.base_term, log.last_index), (3, 1, 5))
        log.compact(1)
        self.assertEqual(log.first_index, 3)
        log.append([Entry(6, 3, 1, 60, b"")])
        with self.assertRaises(InvariantViolated):
            log.compact(6)
        self.assertEqual([e.index for e in log.begin_write(1)], [6])
        with self.assertRaises(InvariantViolated):
            log.compact(6)
        log.persisted(1)
        log.compact(6)
        self.assertEqual((log.first_index, log.last_index, log.last_term), (7, 6, 3))
        self.assertEqual((log.last_time_ms, log.is_written), (60, True))
        self.assertEqual(log.batch(7, 9, 99), ((), 0))

    def test_53_what_was_dropped_is_let_go_of_bit_by_bit(self) -> None:
        """Freeing a million entries takes its time: `free` does so, and nothing else."""
        log = Log([Entry(i, 1, 1, 0, b"") for i in range(1, 21)])
        log.compact(12)
        self.assertEqual([log.free(9) for _ in range(4)], [True, True, False, False])
        self.assertEqual([entry.index for entry in log.entries(13, 20)], list(range(13, 21)))
        log.reset(SnapshotMetadata(30, 4, THREE, 70))
        self.assertEqual([log.free(5) for _ in range(3)], [True, False, False])
        self.assertEqual((log.first_index, log.last_index), (31, 30))

    def test_beginning_anew(self) -> None:
        log = Log(log_of([1]))
        log.append(log_of([1, 1, 1])[1:])
        log.begin_write(1)
        log.reset(SnapshotMetadata(7, 4, THREE, 70))
        self.assertEqual((log.base_index, log.last_index, log.last_term), (7, 7, 4))
        self.assertEqual((log.last_time_ms, log.persisted_index), (70, 7))
        self.assertFalse(log.is_written)
        log.append([Entry(8, 4, 1, 80, b"")])
        # What was being written acknowledges nothing of this.
        log.persisted(1)
        self.assertEqual(log.persisted_index, 7)
        self.assertEqual(log.base_to_write(), (7, 4))
        self.assertEqual([e.index for e in log.begin_write(2)], [8])
        self.assertEqual((log.base_to_write(), log.is_written), (None, True))
        log.persisted(2)
        self.assertEqual(log.persisted_index, 8)

    def test_a_truncation_takes_back_what_was_durable_or_on_its_way(self) -> None:
        log = Log(log_of([1]))
        log.append(log_of([1, 1, 1])[1:])
        log.begin_write(1)
        log.truncate(3)
        self.assertEqual((log.last_index, log.written_index, log.persisted_index), (2, 2, 1))
        log.append(log_of([1, 1, 2])[2:])
        self.assertEqual(terms_of(log.begin_write(2)), [2])
        log.persisted(1)
        self.assertEqual(log.persisted_index, 2)
        log.truncate(1)
        self.assertEqual((log.persisted_index, log.written_index), (0, 0))
        log.persisted(2)
        self.assertEqual(log.persisted_index, 0)

    def test_the_account_of_durability_agrees_with_a_disk(self) -> None:
        # Appends, truncations, writes and flushes at random, beside a real disk.
        for seed in range(50):
            rng = random.Random(seed)
            log, number, term = Log(), 0, 1
            durable: list[Entry] = []
            queue: deque[tuple[int, list[Entry]]] = deque()
            for _ in range(100):
                action = rng.randrange(4)
                if action == 0:
                    first = log.last_index + 1
                    log.append([Entry(first + i, term, 1, 0, b"") for i in range(2)])
                elif action == 1 and log.last_index:
                    term += 1
                    first = rng.randint(1, log.last_index)
                    log.truncate(first)
                    log.append([Entry(first, term, 1, 0, b"")])
                elif action == 2:
                    number += 1
                    queue.append((number, log.begin_write(number)))
                elif queue:
                    done, entries = queue.popleft()
                    if entries:
                        durable[entries[0].index - 1 :] = entries
                    log.persisted(done)
                persisted = log.persisted_index
                self.assertEqual(durable[:persisted], log.entries(1, persisted))
                self.assertLessEqual(persisted, log.written_index)
            while queue:
                done, entries = queue.popleft()
                if entries:
                    durable[entries[0].index - 1 :] = entries
                log.persisted(done)
            self.assertEqual(log.persisted_index, log.written_index)


class ProgressOfAMember(SynchronousTestCase):
    def test_a_probe_is_alone(self) -> None:
        progress = Progress(5, 0.0)
        self.assertTrue(progress.may_send())
        progress.sent(9, 100)
        self.assertEqual((progress.may_send(), progress.next_index), (False, 5))
        progress.matched(9)
        self.assertEqual(
            (progress.state, progress.match_index, progress.next_index),
            (ProgressState.REPLICATE, 9, 10),
        )

    def test_appends_in_flight_are_bounded_by_number(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(0)
        for last in range(1, MAX_APPENDS_IN_FLIGHT + 1):
            self.assertTrue(progress.may_send())
            progress.sent(last, 1)
        self.assertFalse(progress.may_send())
        progress.matched(2)
        self.assertEqual(progress.bytes_in_flight, MAX_APPENDS_IN_FLIGHT - 2)
        self.assertTrue(progress.may_send())

    def test_appends_in_flight_are_bounded_by_size(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(0)
        progress.sent(1, progress_module.MAX_BYTES_IN_FLIGHT)
        self.assertFalse(progress.may_send())
        progress.matched(1)
        self.assertEqual((progress.may_send(), progress.bytes_in_flight), (True, 0))

    def test_going_back_never_goes_below_what_matches(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(4)
        progress.sent(9, 50)
        progress.commit_sent = 3
        progress.probe(2, lost=True)
        self.assertEqual((progress.match_index, progress.next_index), (4, 5))
        self.assertEqual((progress.bytes_in_flight, len(progress.in_flight)), (0, 0))
        self.assertEqual((progress.commit_sent, progress.may_send()), (0, False))
        progress.lost = False
        self.assertTrue(progress.may_send())

    def test_a_member_that_awaits_a_snapshot_is_sent_nothing(self) -> None:
        progress = Progress(5, 0.0)
        progress.matched(2)
        progress.sent(9, 100)
        progress.await_snapshot()
        self.assertEqual((progress.state, progress.may_send()), (ProgressState.SNAPSHOT, False))
        self.assertEqual((progress.bytes_in_flight, len(progress.in_flight)), (0, 0))
        progress.matched(7)
        self.assertEqual(
            (progress.state, progress.match_index, progress.may_send()),
            (ProgressState.REPLICATE, 7, True),
        )
        progress.await_snapshot()
        progress.probe(8, lost=True)
        self.assertEqual((progress.state, progress.may_send()), (ProgressState.PROBE, False))

    def test_a_late_match_takes_nothing_back(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(9)
        progress.sent(12, 1)
        progress.matched(3)
        self.assertEqual((progress.match_index, progress.next_index), (9, 13))


class Reads(SynchronousTestCase):
    def test_reads_share_the_next_round(self) -> None:
        reads = ReadQueue()
        self.assertFalse(reads.wants_round)
        reads.add(1, 10)
        reads.add(2, 11)
        self.assertTrue(reads.wants_round)
        reads.begin_round(0.0)
        reads.add(3, 12)
        self.assertFalse(reads.wants_round, "one round at a time")
        self.assertEqual(reads.confirm(0), [])
        self.assertEqual(reads.contexts(), [1, 2, 3])
        self.assertEqual(reads.confirm(1), [(1, 10), (2, 11)])
        self.assertEqual(reads.confirm(1), [])
        self.assertEqual(len(reads), 1)
        self.assertTrue(reads.wants_round)
        reads.begin_round(0.0)
        self.assertEqual((reads.round, reads.confirm(2), len(reads)), (2, [(3, 12)], 0))

    def test_a_round_begun_for_heartbeats_serves_what_waits(self) -> None:
        reads = ReadQueue()
        reads.add(1, 10)
        reads.begin_round(0.0)
        reads.add(2, 10)
        reads.begin_round(0.1)
        self.assertEqual(reads.confirm(2), [(1, 10), (2, 10)])

    def test_when_the_last_confirmed_round_began(self) -> None:
        reads = ReadQueue()
        self.assertEqual(reads.confirmed_at, -math.inf)
        for at in (1.0, 2.0, 3.0):
            reads.begin_round(at)
        reads.confirm(0)
        self.assertEqual(reads.confirmed_at, -math.inf)
        reads.confirm(2)
        self.assertEqual(reads.confirmed_at, 2.0)
        reads.confirm(1)
        self.assertEqual(reads.confirmed_at, 2.0)
        for at in range(10, 10 + 2 * MAX_ROUNDS_REMEMBERED):
            reads.begin_round(float(at))
        # Of rounds that were forgotten nothing is claimed.
        reads.confirm(10)
        self.assertEqual(reads.confirmed_at, 2.0)
        reads.confirm(reads.round)
        self.assertEqual(reads.confirmed_at, 9.0 + 2 * MAX_ROUNDS_REMEMBERED)

    def test_reads_are_bounded(self) -> None:
        with mock.patch.object(leader_module, "MAX_READS_WAITING", 3):
            leader = leader_of(3)
            for context in range(3):
                leader.read(context)
            with self.assertRaises(Overloaded):
                leader.read(3)
            (number,) = {h.round for h in heartbeats_in(leader.take())}
            leader.acknowledge(2, leader.raft.log.last_index)
            leader.respond(2, HeartbeatResponse(1, number))
            leader.collect()
            self.assertEqual([c for c, _ in leader.reads], [0, 1, 2])
            leader.read(3)


class Configurations(SynchronousTestCase):
    def test_roles(self) -> None:
        joint = configuration([1, 2], learners=[3], outgoing=[2, 3, 4])
        self.assertEqual(joint.voter_ids(), {1, 2, 3, 4})
        self.assertEqual(sorted(joint.members()), [1, 2, 3, 4])
        self.assertEqual(joint.majorities(), (frozenset([1, 2]), frozenset([2, 3, 4])))
        self.assertEqual([joint.is_voter(i) for i in range(6)], [False] + [True] * 4 + [False])
        self.assertEqual(Configuration().majorities(), (frozenset(),))

    def test_adding_a_learner(self) -> None:
        self.assertEqual(THREE.changed([AddLearner(member(4))]), configuration([1, 2, 3], [4]))
        for known in (THREE, configuration([1, 2, 3], [4])):
            for member_id in known.members():
                self.assertEqual(known.changed([AddLearner(member(member_id))]), known)

    def test_a_name_belongs_to_one_identity(self) -> None:
        with self.assertRaises(NameTaken) as caught:
            THREE.changed([AddLearner(Member(9, member(2).name))])
        self.assertIn(member(2).name, str(caught.exception))
        with self.assertRaises(ChangeRefused):
            THREE.changed([AddLearner(Member(2, "elsewhere:1"))])
        with self.assertRaises(NameTaken):
            THREE.changed([Rename(3, member(2).name)])

    def test_a_learner_that_gave_up_makes_way_for_its_name(self) -> None:
        before = configuration([1, 2, 3], learners=[4])
        returned = Member(9, member(4).name)
        after = before.changed([AddLearner(returned)])
        self.assertEqual((after.learners, after.removed), ((returned,), (4,)))

    def test_members_are_bounded(self) -> None:
        full = configuration(range(1, 61), learners=range(61, MAX_MEMBERS + 1))
        with self.assertRaises(ChangeRefused):
            full.changed([AddLearner(member(MAX_MEMBERS + 1))])
        self.assertEqual(full.changed([AddLearner(member(1))]), full)

    def test_promoting(self) -> None:
        before = configuration([2, 3], learners=[1, 4])
        self.assertEqual(before.changed([Promote(1)]), configuration([1, 2, 3], learners=[4]))
        self.assertEqual(THREE.changed([Promote(2)]), THREE)
        with self.assertRaises(ChangeRefused):
            THREE.changed([Promote(9)])

    def test_demoting(self) -> None:
        after = THREE.changed([Demote(2)])
        self.assertEqual(after, configuration([1, 3], learners=[2]))
        self.assertEqual(after.changed([Demote(2)]), after)
        with self.assertRaises(ChangeRefused):
            THREE.changed([Demote(9)])

    def test_removing(self) -> None:
        after = configuration([1, 2, 3], learners=[4]).changed([Remove(4), Remove(2)])
        self.assertEqual(after, configuration([1, 3], removed=[4, 2]))
        self.assertEqual(after.changed([Remove(2)]), after)
        for wrong in (Remove(9), AddLearner(member(2)), Promote(2), Rename(2, "x:1")):
            with self.assertRaises(ChangeRefused):
                after.changed([wrong])

    def test_removed_members_that_are_remembered_are_bounded(self) -> None:
        gone = tuple(range(100, 100 + MAX_REMOVED))
        after = configuration([1, 2, 3], removed=gone).changed([Remove(2)])
        self.assertEqual(after.removed, (*gone[1:], 2))
        joint = configuration([1, 2, 3, 4, 5], removed=gone).changed([Remove(2), Remove(3)])
        self.assertEqual(joint.left().removed, (*gone[2:], 2, 3))

    def test_renaming(self) -> None:
        after = configuration([1, 2], learners=[3]).changed(
            [Rename(2, "a:1"), Rename(3, "b:1")]
        )
        self.assertEqual(after.voters, (member(1), Member(2, "a:1")))
        self.assertEqual((after.outgoing_voters, after.learners), ((), (Member(3, "b:1"),)))
        self.assertEqual(after.changed([Rename(2, "a:1")]), after)
        with self.assertRaises(ChangeRefused):
            THREE.changed([Rename(9, "a:1")])

    def test_what_needs_a_joint_configuration(self) -> None:
        base = configuration([1, 2, 3], learners=[4, 5])
        cases: tuple[tuple[list[Change], bool], ...] = (
            ([Promote(4)], False),
            ([Remove(1)], False),
            ([Demote(1), Rename(2, "x:1"), Remove(5), AddLearner(member(6))], False),
            ([Promote(4), Remove(1)], True),
            ([Promote(4), Promote(5)], True),
            ([Demote(1), Demote(2)], True),
            ([Promote(4), Demote(4)], False),
        )
        for changes, is_joint in cases:
            changed = base.changed(changes)
            self.assertIs(changed.is_joint, is_joint, changes)
            if is_joint:
                self.assertEqual(changed.outgoing_voters, base.voters)

    def test_one_change_after_the_other_and_one_voter_at_least(self) -> None:
        with self.assertRaises(ChangeInProgress):
            configuration([1], outgoing=[2]).changed([AddLearner(member(9))])
        for changes in ([Remove(1)], [Demote(1)]):
            with self.assertRaises(ChangeRefused):
                configuration([1], learners=[2]).changed(changes)

    def test_who_leaves_has_a_vote_until_the_joint_configuration_is_left(self) -> None:
        # Were it called removed before, it would be turned away while it is needed.
        joint = configuration([1, 2, 3], learners=[4, 5]).changed(
            [Promote(4), Remove(3), Demote(2), Remove(5)]
        )
        self.assertEqual(
            joint, configuration([1, 4], outgoing=[1, 2, 3], learners=[2], removed=[5])
        )
        self.assertEqual(joint.left(), configuration([1, 4], learners=[2], removed=[5, 3]))
        self.assertFalse(joint.left().is_joint)

    def test_any_majority_before_a_change_meets_any_after(self) -> None:
        """Of two configurations that follow one another in the log (thesis 4.1, 4.3)."""
        everyone = range(1, 7)
        for seed in range(60):
            rng = random.Random(seed)
            size = rng.randint(1, 6)
            before = configuration(everyone[:size], learners=everyone[size:])
            changes = [
                rng.choice((Promote, Demote, Remove))(m)
                for m in rng.sample(everyone, rng.randint(1, 4))
            ]
            try:
                changed = before.changed(changes)
            except ChangeRefused:
                continue
            steps = [before, changed, changed.left()]
            for one, next_one in itertools.pairwise(steps):
                for n in range(len(everyone) + 1):
                    for quorum in itertools.combinations(everyone, n):
                        rest = set(everyone) - set(quorum)
                        if has_quorum(one.majorities(), quorum):
                            self.assertFalse(has_quorum(next_one.majorities(), rest))

    def test_encoding(self) -> None:
        joint = configuration([1, 2], learners=[3], outgoing=[2, 4])
        self.assertEqual(decode_configuration(encode_configuration(joint)), joint)
        no_text = b"\x94\x91\x92\x01\xa1\xeb\x90\x90\x90"
        for garbage in (b"", b"\xc1", b"\x91\x01", b"\x93\x91\x01\x90\x90", no_text):
            with self.assertRaises(ProtocolViolation):
                decode_configuration(garbage)

    def test_history(self) -> None:
        one, two, three = (configuration([i]) for i in (1, 2, 3))
        history = ConfigurationHistory(one, 4)
        self.assertEqual((history.latest, history.latest_index), (one, 4))
        history.append([(7, two), (9, three)])
        self.assertEqual((history.latest, history.latest_index), (three, 9))
        history.truncate(10)
        self.assertEqual(history.latest_index, 9)
        history.truncate(9)
        self.assertEqual((history.latest, history.latest_index), (two, 7))
        history.truncate(1)
        self.assertEqual((history.latest, history.latest_index), (one, 4))

    def test_history_of_a_compacted_log(self) -> None:
        one, two, three = (configuration([i]) for i in (1, 2, 3))
        for compacted, first_known in ((5, 4), (7, 7), (8, 7), (9, 9), (12, 9)):
            history = ConfigurationHistory(one, 4)
            history.append([(7, two), (9, three)])
            history.compact(compacted)
            for index in range(max(compacted, first_known), 14):
                expected = one if index < 7 else two if index < 9 else three
                self.assertIs(history.at(index), expected, (compacted, index))
            self.assertEqual((history.latest, history.latest_index), (three, 9))

    def test_who_may_be_needed_as_a_leader(self) -> None:
        history = ConfigurationHistory(configuration([1]), 0)
        history.append([(3, configuration([2])), (5, configuration([3], learners=[1]))])
        for member_id, commit_index, needed in (
            (1, 0, False),
            (2, 0, True),
            (2, 4, True),
            (2, 5, False),
            (3, 0, True),
            (3, 5, True),
        ):
            found = history.gives_vote(member_id, commit_index)
            self.assertIs(found, needed, (member_id, commit_index))
        self.assertFalse(ConfigurationHistory(Configuration(), 0).gives_vote(1, 0))

    def test_configurations_in_entries(self) -> None:
        change = Entry(2, 1, EntryKind.CONFIGURATION, 0, encode_configuration(THREE))
        self.assertEqual(configurations_in([*log_of([1]), change]), [(2, THREE)])


class LeaderBounds(SynchronousTestCase):
    def test_what_is_not_committed_is_bounded(self) -> None:
        with mock.patch.object(leader_module, "MAX_UNCOMMITTED_BYTES", 1000):
            leader = leader_of(3)
            while True:
                try:
                    leader.propose(bytes(300))
                except Overloaded:
                    break
            last = leader.raft.log.last_index
            self.assertLess(last, 6)
            leader.flush()
            with self.assertRaises(Overloaded):
                leader.propose(b"")
            leader.acknowledge(2, last)
            leader.collect()
            self.assertEqual(leader.propose(b"x"), (1, last + 1))

    def test_an_append_entries_is_bounded(self) -> None:
        with (
            mock.patch.object(leader_module, "MAX_ENTRIES_PER_APPEND", 4),
            mock.patch.object(leader_module, "MAX_BYTES_PER_APPEND", 100),
        ):
            leader = leader_of(3)
            leader.acknowledge(2, 1)
            leader.take()
            leader.propose(*[b"x"] * 6, bytes(90), bytes(20), bytes(500), b"x")
            sizes = [[len(e.data) for e in a.entries] for a in appends_in(leader.take(), 2)]
            self.assertEqual(sizes, [[1, 1, 1, 1], [1, 1, 90], [20], [500], [1]])

    def test_time_in_the_log_never_goes_back(self) -> None:
        first = [Entry(1, 1, 1, 5_000, b"")]
        leader = Node(1, THREE, disk=Disk(first, HardState(1)))
        leader.become_leader()
        leader.time.now += 1.25
        leader.propose(b"x")
        times = [e.time_ms for e in leader.raft.log.entries(1, 3)]
        self.assertEqual(times, [5_000, 5_000, 6_250])

    def test_answers_of_strangers_and_of_the_impossible_change_nothing(self) -> None:
        leader = leader_of(3)
        for sender, answer in (
            (9, AppendEntriesResponse(1, True, 1)),
            (2, AppendEntriesResponse(1, True, 2)),
            (9, HeartbeatResponse(1, 0)),
        ):
            leader.respond(sender, answer)
            self.assertEqual(leader.raft.commit_index, 0)
        leader.unreachable(9)
        assert leader.raft.leadership is not None
        self.assertEqual(sorted(leader.raft.leadership.progress), [2, 3])

    def test_a_round_that_was_never_begun_confirms_nothing_to_come(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.respond(2, HeartbeatResponse(1, 50))
        leader.read(7)
        leader.collect()
        self.assertEqual(leader.reads, [])

    def test_a_commit_notice_goes_to_those_who_lack_it(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        leader.take()
        leader.time.now = leader.raft.next_deadline
        leader.tick()
        self.assertEqual([o.to for o in leader.take()], [2])
        self.assertGreater(leader.raft.next_deadline, leader.time.now + HEARTBEAT_S / 2)

    def test_the_deadline_is_never_in_the_past_after_a_tick(self) -> None:
        leader = leader_of(3)
        for _ in range(20):
            leader.time.now = max(leader.time.now, leader.raft.next_deadline)
            leader.tick()
            leader.collect()
            self.assertGreater(leader.raft.next_deadline, leader.time.now)


class Answers(SynchronousTestCase):
    def test_every_request_is_answered_once_whatever_happens_meanwhile(self) -> None:
        entry = log_of([1])[0]
        requests: list[Request] = [
            AppendEntries(2, 0, 0, 0, (entry,)),
            Heartbeat(2, 0, 1),
            RequestVote(3, 5, 2, True),
            PreVote(4, 5, 2),
            AppendEntries(2, 0, 0, 0, ()),
            AppendEntries(4, 0, 0, 0, ()),
            Heartbeat(1, 0, 1),
            RequestVote(5, 9, 9, True),
        ]
        for order in range(40):
            rng = random.Random(order)
            node = Node(2, THREE, disk=Disk((), HardState(1)))
            shuffled = rng.sample(requests, len(requests))
            sent = []
            for number, request in enumerate(shuffled):
                # Leaders of one term are one node: terms decide who sends.
                node.receive(1 if request.term % 2 else 3, request, number)
                if rng.random() < 0.5:
                    sent += node.take()
                if node.disk.queue and rng.random() < 0.3:
                    node.persisted(node.disk.flush_one())
            sent += node.take_flushed()
            answered = sorted(o.request_id for o in sent if o.request_id is not None)
            self.assertEqual(answered, list(range(len(requests))))

    def test_messages_to_one_peer_keep_their_order(self) -> None:
        node = Node(2, THREE, disk=Disk((), HardState(1)))
        for number in range(5):
            node.receive(1, Heartbeat(2, 0, number), number)
        self.assertEqual([o.request_id for o in node.take_flushed()], [0, 1, 2, 3, 4])

    def test_a_withdrawn_vote_is_a_refusal_and_the_new_one_counts(self) -> None:
        # 2's vote of term 2 is on its way to the disk when 1 asks again, in term 3.
        voter = Node(2, THREE, disk=Disk((), HardState(1)))
        voter.receive(1, RequestVote(2, 0, 0), 1)
        voter.collect()
        voter.receive(1, RequestVote(3, 0, 0), 2)
        answers = [o.message for o in voter.take_flushed()]
        self.assertEqual(answers, [RequestVoteResponse(3, False), RequestVoteResponse(3, True)])
        candidate = Node(1, THREE, disk=Disk((), HardState(2)))
        candidate.become_candidate()
        for answer in answers:
            assert isinstance(answer, RequestVoteResponse)
            candidate.respond(2, answer)
        self.assertIs(candidate.raft.role, Role.LEADER)

    def test_a_log_that_begins_behind_a_base_takes_a_request_from_before_it(self) -> None:
        node = Node(2, THREE, disk=Disk((), HardState(1)))
        node.raft.log = Log([Entry(11, 1, 1, 0, b"")], base_index=10, base_term=1)
        node.raft.commit_index = node.raft.applied_index = 10
        entries = tuple(Entry(i, 1, 1, 0, b"") for i in range(9, 13))
        node.raft.receive_request(1, AppendEntries(1, 8, 1, 12, entries), 1, node.time.now)
        self.assertEqual(terms_of(node.raft.log), [1, 1])
        self.assertEqual((node.raft.log.last_index, node.raft.commit_index), (12, 12))

    def test_a_node_without_a_vote_has_no_deadline(self) -> None:
        for base in (Configuration(), configuration([1], learners=[2])):
            node = Node(2, base)
            self.assertEqual(node.raft.next_deadline, float("inf"))
            node.time.now += 100 * ELECTION_S
            node.tick()
            self.assertEqual((node.raft.role, node.take()), (Role.FOLLOWER, []))

    def test_a_single_voter_campaigns_at_once(self) -> None:
        node = Node(1, configuration([1], learners=[2]))
        self.assertEqual(node.raft.next_deadline, node.time.now)
        node.tick()
        node.flush()
        self.assertIs(node.raft.role, Role.LEADER)


class TheChecker(SynchronousTestCase):
    """What checks everything else must itself be seen to object."""

    def object_to(self, node: Node, rule: str) -> None:
        with self.assertRaises(InvariantViolated) as caught:
            node.tick()
        self.assertIn(rule, str(caught.exception))

    def test_it_objects(self) -> None:
        node = Node(2, THREE, disk=Disk(log_of([1, 1]), HardState(3, 1)))
        node.answer(1, AppendEntries(3, 2, 1, 2, ()))
        raft = node.raft
        for hard_state, rule in (
            (HardState(2, 1), "term never decreases"),
            (HardState(3, 3), "one vote in a term"),
        ):
            with mock.patch.object(raft._outbox, "hard_state", hard_state):
                self.object_to(node, rule)
        for attribute, value, rule in (
            ("commit_index", 1, "commit_index never decreases"),
            ("commit_index", 3, "commit_index <= last_index"),
            ("applied_index", 3, "applied_index"),
            ("role", Role.LEADER, "leadership exactly"),
            ("role", Role.CANDIDATE, "campaign exactly"),
        ):
            with mock.patch.object(raft, attribute, value):
                self.object_to(node, rule)
        for terms, rule in (([2, 1], "terms never decrease"),):
            with mock.patch.object(raft.log, "_entries", log_of(terms)):
                self.object_to(node, rule)
        Checker(raft).check()

    def test_it_objects_to_a_leader(self) -> None:
        leader = leader_of(3)
        leader.acknowledge(2, 1)
        assert leader.raft.leadership is not None
        progress = leader.raft.leadership.progress[2]
        for attribute, value, rule in (
            ("match_index", 0, "match_index never decreases"),
            ("next_index", 1, "match_index < next_index"),
            ("next_index", 3, "next_index <= last_index + 1"),
            ("commit_sent", 2, "commit_sent"),
            ("bytes_in_flight", 7, "add up"),
        ):
            before = getattr(progress, attribute)
            setattr(progress, attribute, value)
            self.object_to(leader, rule)
            setattr(progress, attribute, before)
        self.assertEqual(heartbeats_in(leader.take()), [])

    def test_what_binds_the_nodes_is_objected_to(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.run(HEARTBEAT_S)
        follower = cluster[2]
        log, (first,) = follower.raft.log, follower.raft.log.entries(1, 1)
        again = Entry(first.index, first.term, first.kind, first.time_ms, first.data)
        cases: list[tuple[Node, object, str, object, str]] = [
            (leader, leader, "id", 3, "Election Safety"),
            (follower, log, "_entries", log_of([1]), "Log Matching"),
            (follower, follower.raft, "log", Log([again], 0, 7), "Log Matching"),
            (follower, follower.raft, "log", Log((), 1, 7), "begins in the wrong term"),
            (follower, follower.raft, "log", Log((), 5, 1), "dropped what it may not"),
            (leader, leader, "applied", [*log_of([1])], "State Machine Safety"),
        ]
        for node, owner, attribute, value, rule in cases:
            safety = Safety(cluster.nodes)
            for other in cluster.running():
                safety.check(other)
            if attribute == "applied":
                safety._applied.clear()
            with (
                mock.patch.object(owner, attribute, value),
                self.assertRaises(AssertionError) as caught,
            ):
                safety.check(node)
            self.assertIn(rule, str(caught.exception))

    def test_a_commit_without_a_quorum_is_objected_to(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.isolate(1)
        leader.propose(b"x")
        cluster.settle()
        leader.raft.commit_index = 2
        with self.assertRaises(AssertionError) as caught:
            leader.tick()
        self.assertIn("which 1 of 3 hold", str(caught.exception))
        # And one that a later leader would lack.
        safety = Safety(cluster.nodes)
        safety.committed = [Entry(1, 0, 1, 0, b"lacking")]
        safety._committed_in = [0]
        with self.assertRaises(AssertionError) as caught:
            safety.check(leader)
        self.assertIn("Leader Completeness", str(caught.exception))
