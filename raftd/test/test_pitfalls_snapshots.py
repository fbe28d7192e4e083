"""
Defects of snapshots and compaction that other Raft implementations have shipped.

The number in a test's name is the defect's in the project's list of pitfalls.
"""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.log import Log
from raftd.core.membership import Configuration, encode_configuration
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
    RequestVote,
    RequestVoteResponse,
    Response,
)
from raftd.core.raft import Raft, Role
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import InvariantViolated
from raftd.test.core_clusters import of_voters
from raftd.test.cores import (
    ELECTION_S,
    HEARTBEAT_S,
    NO_TAIL,
    SETTINGS,
    THREE,
    Disk,
    Node,
    Snapshot,
    appends_in,
    configuration,
    leader_of,
    log_of,
    pieces_of,
    snapshot_of,
    terms_of,
)


def follower(
    terms: tuple[int, ...] = (),
    term: int = 1,
    *,
    snapshot: Snapshot | None = None,
    base: tuple[int, int] = (0, 0),
) -> Node:
    """Node 2 of three, with a log of these terms behind its base."""
    entries = [
        Entry(base[0] + e.index, e.term, e.kind, e.time_ms, e.data) for e in log_of(terms)
    ]
    disk = Disk(
        entries, HardState(term), base=base, snapshots=() if snapshot is None else (snapshot,)
    )
    return Node(2, THREE, disk=disk, settings=NO_TAIL)


def send(node: Node, snapshot: Snapshot, term: int, sender: int = 1) -> Response:
    """Send a whole snapshot, piece by piece; the last answer."""
    for piece in pieces_of(snapshot, term):
        answer = node.answer(sender, piece)
    node.apply()
    return answer


def command(index: int, term: int) -> Entry:
    return Entry(index, term, EntryKind.COMMAND, 0, b"%d.%d" % (index, term))


class Terms(SynchronousTestCase):
    def test_03_a_restart_does_not_go_back_behind_the_term_of_a_snapshot(self) -> None:
        # The snapshot was durable, and the term in which it came was not.
        snapshot = snapshot_of(log_of([1, 4]), THREE)
        node = Node(2, THREE, disk=Disk((), HardState(1, 3), snapshots=[snapshot]))
        self.assertEqual(node.raft.hard_state, HardState(4, NOBODY))
        node.receive(1, Heartbeat(4, 0, 1))
        self.assertEqual(node.take(), [])
        node.flush()
        self.assertEqual(node.disk.hard_state, HardState(4, NOBODY))
        self.assertEqual([o.message for o in node.take()], [HeartbeatResponse(4, 1)])
        answer = node.answer(3, RequestVote(3, 9, 9, True))
        self.assertEqual(answer, RequestVoteResponse(4, False))

    def test_03_a_restart_does_not_forget_its_vote_for_a_snapshot(self) -> None:
        snapshot = snapshot_of(log_of([1, 4]), THREE)
        node = Node(2, THREE, disk=Disk((), HardState(4, 3), snapshots=[snapshot]))
        self.assertEqual(node.raft.hard_state, HardState(4, 3))

    def test_03_a_snapshot_of_an_earlier_leader_is_refused(self) -> None:
        node = follower((1,), term=5)
        (piece,) = pieces_of(snapshot_of(log_of([1, 2]), THREE), 4, 1)
        self.assertEqual(node.answer(1, piece), InstallSnapshotResponse(5, 0, False))
        self.assertEqual((node.raft.term, node.raft.commit_index), (5, 0))
        self.assertEqual((node.raft.leader_id, node.disk.snapshots), (NOBODY, []))

    def test_03_a_snapshot_that_is_whole_after_its_term_is_not_installed(self) -> None:
        node = follower((1,), term=4)
        (piece,) = pieces_of(snapshot_of(log_of([1, 2]), THREE), 4, 1)
        node.receive(1, piece, 7)
        node.flush()
        node.keep_piece()
        node.receive(3, Heartbeat(5, 0, 0), 8)
        node.take_flushed()
        node.install()
        self.assertEqual((node.raft.commit_index, terms_of(node.raft.log)), (0, [1]))
        answers = [o.message for o in node.take_flushed()]
        self.assertEqual(answers, [InstallSnapshotResponse(5, 0, False)])

    def test_03_a_piece_tells_the_term_and_who_leads(self) -> None:
        node = follower((1,), term=1)
        (piece,) = pieces_of(snapshot_of(log_of([1, 2]), THREE), 2, 1)
        node.answer(3, piece)
        self.assertEqual((node.raft.term, node.raft.leader_id), (2, 3))
        self.assertGreaterEqual(node.raft.next_deadline, node.time.now + ELECTION_S)
        self.assertEqual(node.disk.hard_state.term, 2)


class Configurations(SynchronousTestCase):
    def test_33_a_configuration_goes_with_the_log_that_a_snapshot_replaces(self) -> None:
        node = follower((1,), term=1)
        uncommitted = configuration([1, 2, 3, 4])
        data = encode_configuration(uncommitted)
        entry = Entry(2, 1, EntryKind.CONFIGURATION, 0, data)
        node.answer(1, AppendEntries(1, 1, 1, 0, (entry,)))
        self.assertEqual(node.raft.configuration, uncommitted)
        base = configuration([1, 2, 3], learners=[9])
        send(node, snapshot_of(log_of([1, 2, 2]), base), 2, sender=3)
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (base, 3))
        node.crash()
        node.start()
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (base, 3))

    def test_33_a_configuration_behind_the_snapshot_stays_where_the_log_does(self) -> None:
        later = configuration([1, 2, 3], learners=[9])
        entry = Entry(3, 1, EntryKind.CONFIGURATION, 0, encode_configuration(later))
        node = follower((1, 1), term=1)
        node.answer(1, AppendEntries(1, 2, 1, 0, (entry,)))
        send(node, snapshot_of(log_of([1, 1]), THREE), 1)
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (later, 3))
        self.assertEqual(node.raft.configuration_at(2), THREE)
        # With the log compacted, too, and after a restart.
        self.assertEqual(node.raft.compact(2), 2)
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (later, 3))
        node.crash()
        node.start()
        self.assertEqual((node.raft.configuration, node.raft.configuration_index), (later, 3))
        # And it goes back as ever when its entry does.
        node.answer(3, AppendEntries(2, 2, 1, 0, (command(3, 2),)))
        self.assertEqual(node.raft.configuration, THREE)

    def test_33_a_vote_that_a_snapshot_brings_is_used(self) -> None:
        node = Node(2, Configuration(), disk=Disk((), HardState(1)))
        self.assertEqual(node.raft.next_deadline, float("inf"))
        for piece in pieces_of(snapshot_of(log_of([1, 1]), THREE), 1):
            node.answer(1, piece)
        # Its leader is gone, and it hears of nobody again.
        self.assertLess(node.raft.next_deadline, node.time.now + 2 * ELECTION_S + 0.001)
        self.assertGreaterEqual(node.raft.next_deadline, node.time.now + ELECTION_S)
        node.time_out()
        self.assertIs(node.raft.role, Role.PRE_CANDIDATE)

    def test_33_a_vote_that_a_snapshot_takes_is_not_used(self) -> None:
        node = follower((1,), term=1)
        without = configuration([1, 3], learners=[2])
        for piece in pieces_of(snapshot_of(log_of([1, 1]), without), 1):
            node.answer(1, piece)
        self.assertEqual(node.raft.next_deadline, float("inf"))
        node.time_out()
        self.assertEqual((node.raft.role, node.take()), (Role.FOLLOWER, []))


class Gaps(SynchronousTestCase):
    def test_41_a_log_is_fitted_to_its_snapshot(self) -> None:
        for base, terms, snapshot, expected in (
            # The log leads up to the snapshot, and stays.
            ((0, 0), (1, 1, 1), (2, 1), [1, 2, 3]),
            ((0, 0), (1, 1, 1), (3, 1), [1, 2, 3]),
            ((3, 1), (2, 2), (3, 1), [4, 5]),
            ((3, 1), (2, 2), (4, 2), [4, 5]),
            # It does not, and begins anew.
            ((0, 0), (1, 1, 1), (4, 1), []),
            ((0, 0), (1, 1, 1), (2, 2), []),
            ((0, 0), (), (4, 1), []),
            ((3, 1), (2, 2), (9, 4), []),
            ((3, 1), (2, 2), (4, 3), []),
        ):
            entries = [command(base[0] + i, t) for i, t in enumerate(terms, 1)]
            log = Log(entries, *base)
            log.fit(SnapshotMetadata(*snapshot, THREE, 77))
            case = (base, terms, snapshot)
            self.assertEqual(
                [e.index for e in log.entries(log.first_index, 99)], expected, case
            )
            if expected:
                self.assertEqual((log.base_index, log.base_term, log.is_written), (*base, True))
            else:
                self.assertEqual((log.base_index, log.base_term), snapshot, case)
                self.assertEqual(log.base_to_write(), snapshot)
                self.assertEqual(log.last_time_ms, 77)
            self.assertGreaterEqual(log.persisted_index, snapshot[0])

    def test_41_a_gap_between_snapshot_and_log_stops_the_node(self) -> None:
        for snapshot in (None, SnapshotMetadata(2, 1, THREE, 0)):
            log = Log([command(4, 1)], 3, 1)
            with self.assertRaises(InvariantViolated) as caught:
                Raft(
                    2,
                    SETTINGS,
                    random.Random(1),
                    0.0,
                    hard_state=HardState(1),
                    log=log,
                    snapshot=snapshot,
                )
            self.assertIn("missing", str(caught.exception))
            self.assertIn("entry 4", str(caught.exception))

    def test_41_a_crash_between_a_snapshot_and_the_log_behind_it(self) -> None:
        # Entries that conflict are being written when the snapshot comes.
        snapshot = snapshot_of(log_of([1, 2, 2, 2]), THREE)
        for flushed in range(4):
            node = follower((1,), term=1)
            node.receive(1, AppendEntries(1, 1, 1, 0, (command(2, 1), command(3, 1))), 1)
            node.collect()
            for number, piece in enumerate(pieces_of(snapshot, 2), 2):
                node.receive(3, piece, number)
                node.collect()
                node.keep_piece()
            node.install()
            node.receive(3, AppendEntries(2, 4, 2, 4, (command(5, 2),)), 9)
            node.collect()
            for _ in range(min(flushed, len(node.disk.queue))):
                node.persisted(node.disk.flush_one())
                node.collect()
            answered = [o.message for o in node.take()]
            node.crash()
            node.start()
            self.assertEqual(node.applied, list(snapshot.state))
            last = node.raft.log.last_index
            self.assertEqual((node.raft.log.base_index, node.raft.commit_index), (4, 4))
            self.assertEqual(last, 5 if AppendEntriesResponse(2, True, 5) in answered else last)
            # And once more, before and after what the start itself writes.
            for _ in range(2):
                node.flush()
                node.crash()
                node.start()
                self.assertEqual((node.raft.log.base_index, node.disk.base_index), (4, 4))
                self.assertEqual(node.raft.log.last_index, last)
            node.answer(3, AppendEntries(2, 4, 2, 4, (command(5, 2),)))
            self.assertEqual(terms_of(node.disk.entries), [2])

    def test_41_what_was_acknowledged_before_a_restart_is_there_after_it(self) -> None:
        # Snapshot, then entries behind it; the log was never compacted on disk.
        node = follower((1, 1, 1), term=1)
        node.disk.is_lazy = True
        node.answer(1, AppendEntries(1, 3, 1, 3, ()))
        node.apply()
        node.take_snapshot()
        node.answer(1, AppendEntries(1, 3, 1, 3, (command(4, 1),)))
        node.crash()
        node.start()
        self.assertEqual((node.raft.log.base_index, node.raft.log.last_index), (0, 4))
        self.assertEqual(node.raft.commit_index, 3)
        node.answer(1, AppendEntries(1, 4, 1, 4, ()))
        node.apply()
        self.assertEqual(terms_of(node.applied), [1, 1, 1, 1])


class Snapshots(SynchronousTestCase):
    def test_42_two_snapshots_close_together(self) -> None:
        log = log_of([1] * 9)
        first, second = snapshot_of(log, THREE, 4), snapshot_of(log, THREE, 7)
        for turns_between in (False, True):
            for restored_between in (False, True):
                node = follower((), term=1)
                for number, snapshot in enumerate((first, second), 1):
                    (piece,) = pieces_of(snapshot, 1, 1)
                    node.receive(1, piece, number)
                    node.collect()
                    node.keep_piece()
                    node.install()
                    if turns_between:
                        node.flush()
                    if restored_between:
                        node.collect()
                        node.apply()
                node.answer(1, AppendEntries(1, 7, 1, 9, tuple(log[7:])))
                node.apply()
                self.assertEqual(node.applied, log)
                node.crash()
                node.start()
                node.answer(1, AppendEntries(1, 9, 1, 9, ()))
                node.apply()
                self.assertEqual(node.applied, log)

    def test_42_the_same_snapshot_twice_and_an_older_one_after_it(self) -> None:
        log = log_of([1] * 9)
        first, second = snapshot_of(log, THREE, 4), snapshot_of(log, THREE, 7)
        node = follower((), term=1)
        self.assertEqual(send(node, second, 1), InstallSnapshotResponse(1, 0, True))
        node.answer(1, AppendEntries(1, 7, 1, 7, tuple(log[7:])))
        for again in (second, first):
            self.assertEqual(send(node, again, 1), InstallSnapshotResponse(1, 0, True))
            self.assertEqual((node.raft.log.base_index, node.raft.log.last_index), (7, 9))
            self.assertEqual(node.applied, log[:7])

    def test_42_a_snapshot_arrives_while_one_is_taken(self) -> None:
        log = log_of([1] * 9)
        node = follower((1, 1, 1), term=1)
        node.answer(1, AppendEntries(1, 3, 1, 3, ()))
        node.apply()
        self.assertTrue(node.begin_snapshot())
        send(node, snapshot_of(log, THREE, 7), 1)
        node.finish_snapshot()
        self.assertEqual((node.raft.log.base_index, node.applied), (7, log[:7]))
        node.answer(1, AppendEntries(1, 7, 1, 9, tuple(log[7:])))
        node.apply()
        node.take_snapshot()
        node.crash()
        node.start()
        self.assertEqual((node.applied, node.raft.log.first_index), (log, 10))

    def test_42_one_that_was_taken_is_done_when_another_has_just_come(self) -> None:
        # Storage must hear that the log begins anew before it is told to compact it.
        log = log_of([1] * 9)
        node = follower((1, 1, 1), term=1)
        node.answer(1, AppendEntries(1, 3, 1, 3, ()))
        node.apply()
        self.assertTrue(node.begin_snapshot())
        (piece,) = pieces_of(snapshot_of(log, THREE, 7), 1, 1)
        node.receive(1, piece)
        node.collect()
        node.keep_piece()
        node.install()
        self.assertEqual(node.raft.compact(3), 0)
        node.finish_snapshot()
        self.assertEqual((node.disk.base_index, node.disk.last_index), (0, 3))
        node.flush()
        node.apply()
        self.assertEqual((node.disk.base_index, node.disk.last_index), (7, 7))
        self.assertEqual(node.raft.compact(7), 7)

    def test_43_a_receiver_that_dies_half_way_has_nothing_of_it(self) -> None:
        snapshot = snapshot_of(log_of([1] * 9), THREE)
        first, second, third = pieces_of(snapshot, 1)
        node = follower((1,), term=1)
        answer = node.answer(1, first)
        self.assertEqual(answer, InstallSnapshotResponse(1, second.offset, False))
        # Sent again, or out of order: it says where to go on.
        for piece in (first, third):
            answer = node.answer(1, piece)
            self.assertEqual(answer, InstallSnapshotResponse(1, second.offset, False))
        answer = node.answer(1, second)
        self.assertEqual(answer, InstallSnapshotResponse(1, third.offset, False))
        self.assertEqual((node.raft.commit_index, node.applied), (0, []))
        self.assertEqual(terms_of(node.raft.log), [1])
        node.crash()
        node.start()
        self.assertEqual((node.raft.commit_index, node.disk.snapshots), (0, []))
        self.assertEqual(node.answer(1, third), InstallSnapshotResponse(1, 0, False))
        self.assertEqual(send(node, snapshot, 1), InstallSnapshotResponse(1, 0, True))
        self.assertEqual(node.applied, list(snapshot.state))

    def test_43_a_sender_that_loses_leadership_half_way(self) -> None:
        for pieces_sent in (1, 2, 3):
            cluster = of_voters(3, settings=NO_TAIL)
            leader = cluster.elect(1)
            cluster.isolate(3)
            for _ in range(5):
                leader.propose(b"x")
                cluster.settle()
            for member_id in (1, 2):
                cluster[member_id].take_snapshot()
            cluster.heal()
            cluster.rng.choice = lambda pieces: pieces[-1]  # type: ignore[method-assign, assignment]
            assert leader.raft.leadership is not None
            cluster.time.now = leader.raft.leadership.heartbeat_due
            leader.tick()
            sent = 0
            for _ in range(30):
                for node in cluster.running():
                    cluster._finish_turn(node)
                for queue in cluster.waiting():
                    if sent < pieces_sent:
                        packet = queue.popleft()
                        sent += isinstance(packet.message, InstallSnapshot)
                        cluster.deliver(packet)
            self.assertEqual(sent, pieces_sent)
            cluster.crash(1)
            cluster.run(10 * ELECTION_S)
            # With the last piece 3 has all of it, and may be elected itself.
            self.assertIn(cluster.leader().id, (2, 3) if pieces_sent == 3 else (2,))
            self.assertEqual(cluster[3].applied, cluster[2].applied)
            self.assertEqual(len(cluster[3].applied), 7)

    def test_43_an_answer_to_a_snapshot_of_an_earlier_term_counts_for_nothing(self) -> None:
        leader = leader_of(3, (1, 1), term=1)
        leader.snapshot_installed(2, 1, 3)
        leader.snapshot_installed(9, 2, 3)
        self.assertEqual(leader.raft.commit_index, 0)
        leader.snapshot_installed(2, 2, 3)
        self.assertEqual(leader.raft.commit_index, 3)
        leader.snapshot_installed(2, 2, 99)
        assert leader.raft.leadership is not None
        self.assertEqual(leader.raft.leadership.progress[2].match_index, 3)

    def test_43_a_snapshot_that_failed_is_sent_again_after_a_sign_of_life(self) -> None:
        leader = compacted_leader()
        for _ in range(3):
            leader.lacking.clear()
            leader.unreachable(2)
            leader.collect()
            self.assertEqual((leader.lacking, appends_in(leader.take(), 2)), ([], []))
            leader.respond(2, HeartbeatResponse(1, 0))
            leader.collect()
            self.assertEqual(leader.lacking, [2])

    def test_44_a_late_append_entries_meets_a_compacted_log(self) -> None:
        log = log_of([1] * 6)
        node = follower((), term=1)
        node.answer(1, AppendEntries(1, 0, 0, 4, tuple(log[:5])))
        node.apply()
        node.take_snapshot()
        self.assertEqual((node.raft.log.base_index, node.raft.log.last_index), (4, 5))
        for previous, until in ((0, 2), (0, 4), (1, 3), (0, 5), (3, 5), (4, 5), (2, 6)):
            term = 1 if previous else 0
            request = AppendEntries(1, previous, term, 4, tuple(log[previous:until]))
            self.assertEqual(node.answer(1, request), AppendEntriesResponse(1, True, until))
            self.assertEqual(node.raft.log.base_index, 4)
        self.assertEqual(node.raft.log.last_index, 6)
        self.assertEqual(terms_of(node.disk.entries), [1, 1])

    def test_44_a_late_snapshot_meets_what_is_there_already(self) -> None:
        log = log_of([1] * 6)
        for committed in (0, 2, 4, 6):
            node = follower((1,) * 6, term=1)
            node.answer(1, AppendEntries(1, 6, 1, committed, ()))
            first = pieces_of(snapshot_of(log, THREE, 4), 1)[0]
            # Of what is known to be committed not even a second piece is sent.
            answer = node.answer(1, first)
            assert isinstance(answer, InstallSnapshotResponse)
            self.assertIs(answer.installed, committed >= 4)
            answer = send(node, snapshot_of(log, THREE, 4), 1)
            self.assertEqual(answer, InstallSnapshotResponse(1, 0, True))
            self.assertEqual(len(node.disk.snapshots), int(committed < 4))
            # The log leads up to it: it stays, and so does the state.
            self.assertEqual(node.raft.commit_index, max(committed, 4))
            self.assertEqual((node.raft.log.first_index, node.raft.log.last_index), (1, 6))
            self.assertEqual((node.restores, node.applied), (0, log[: max(committed, 4)]))

    def test_44_a_snapshot_that_was_overtaken_on_its_way_takes_nothing_back(self) -> None:
        # It is whole when more than it holds is committed, applied and compacted.
        log = log_of([1] * 6)
        node = follower((), term=1)
        (piece,) = pieces_of(snapshot_of(log, THREE, 2), 1, 1)
        node.receive(1, piece, 1)
        node.collect()
        node.keep_piece()
        node.receive(1, AppendEntries(1, 0, 0, 6, tuple(log)), 2)
        node.flush()
        node.apply()
        node.take_snapshot()
        self.assertEqual((len(node.received), node.raft.log.base_index), (1, 6))
        while node.received:
            node.install()
        node.flush()
        node.apply()
        self.assertEqual((node.raft.commit_index, node.raft.log.base_index), (6, 6))
        self.assertEqual((node.restores, node.applied), (0, log))

    def test_44_what_was_compacted_is_not_compacted_again(self) -> None:
        log = Log(log_of([1, 1, 2, 2, 3, 3]))
        log.compact(4)
        for index in (4, 3, 1, 0):
            log.compact(index)
            self.assertEqual((log.base_index, log.base_term), (4, 2))
            self.assertEqual(terms_of(log), [3, 3])

    def test_44_a_snapshot_is_acknowledged_when_all_of_it_is_durable(self) -> None:
        # The log holds its last entry, but not on disk yet.
        log = log_of([1] * 4)
        for known in (0, 4):
            node = follower((), term=1)
            node.receive(1, AppendEntries(1, 0, 0, known, tuple(log)), 1)
            node.collect()
            (piece,) = pieces_of(snapshot_of(log, THREE), 1, 1)
            node.receive(1, piece, 2)
            node.collect()
            while node.pieces:
                node.keep_piece()
                node.install()
            self.assertEqual(node.take(), [], known)
            node.persisted(node.disk.flush_one())
            answers = {o.request_id: o.message for o in node.take()}
            self.assertEqual(answers[2], InstallSnapshotResponse(1, 0, True))

    def test_44_what_waits_for_the_disk_when_a_snapshot_comes_is_answered(self) -> None:
        log = log_of([1] * 9)
        node = follower((), term=1)
        node.receive(1, AppendEntries(1, 0, 0, 0, tuple(log[:2])), 1)
        node.collect()
        (piece,) = pieces_of(snapshot_of(log, THREE, 7), 1, 1)
        node.receive(1, piece, 2)
        node.collect()
        node.keep_piece()
        node.install()
        node.receive(1, AppendEntries(1, 7, 1, 9, tuple(log[7:])), 3)
        node.collect()
        # The write from before makes nothing durable that came behind it.
        node.persisted(node.disk.flush_one())
        self.assertEqual(node.raft.log.persisted_index, 7)
        answers = {o.request_id: o.message for o in node.take()}
        self.assertEqual(answers, {1: AppendEntriesResponse(1, True, 2)})
        # The snapshot is acknowledged when the log has begun anew, durably.
        answers = {o.request_id: o.message for o in node.take_flushed()}
        self.assertEqual(answers[2], InstallSnapshotResponse(1, 0, True))
        self.assertEqual(answers[3], AppendEntriesResponse(1, True, 9))
        self.assertEqual((node.disk.base_index, terms_of(node.disk.entries)), (7, [1, 1]))
        node.apply()
        self.assertEqual(node.applied, log)

    def test_44_a_write_from_before_acknowledges_nothing_behind_a_snapshot(self) -> None:
        # Entries up to 9 are being written when a snapshot up to 4 replaces them all.
        node = follower((1,), term=1)
        old, log = log_of([1] * 9), log_of([1] + [2] * 8)
        node.receive(1, AppendEntries(1, 1, 1, 0, tuple(old[1:])), 1)
        node.collect()
        (piece,) = pieces_of(snapshot_of(log, THREE, 4), 2, 1)
        node.receive(3, piece, 2)
        node.collect()
        node.keep_piece()
        node.install()
        node.receive(3, AppendEntries(2, 4, 2, 9, tuple(log[4:])), 3)
        node.collect()
        node.apply()
        node.persisted(node.disk.flush_one())
        self.assertEqual(node.raft.log.persisted_index, 4)
        self.assertEqual((node.take(), list(node.to_apply)), ([], []))
        answers = {o.request_id: o.message for o in node.take_flushed()}
        self.assertEqual(answers[3], AppendEntriesResponse(2, True, 9))
        node.apply()
        self.assertEqual(node.applied, log)

    def test_44_a_late_refusal_meets_a_compacted_log(self) -> None:
        leader = compacted_leader()
        leader.acknowledge(2, 4)
        leader.take()
        for refused, hint in ((0, 0), (2, 1), (4, 0)):
            leader.respond(2, AppendEntriesResponse(1, False, refused, hint, 1))
            leader.collect()
            self.assertEqual(leader.lacking, [])

    def test_19_after_a_partition_a_snapshot_is_followed_by_the_log(self) -> None:
        cluster = of_voters(3, settings=NO_TAIL)
        leader = cluster.elect(1)
        cluster.run(ELECTION_S)
        cluster.isolate(3)
        for _ in range(5):
            leader.propose(b"x")
            cluster.run(HEARTBEAT_S)
        leader.take_snapshot()
        leader.propose(b"behind it")
        cluster.run(HEARTBEAT_S)
        self.assertGreater(leader.raft.log.base_index, cluster[3].raft.log.last_index)
        cluster.heal()
        cluster.run(HEARTBEAT_S + 0.01)
        self.assertEqual(cluster.installed, 1)
        self.assertEqual(cluster[3].applied, leader.applied)
        self.assertEqual(cluster[3].applied[-1].data, b"behind it")
        leader.propose(b"on")
        cluster.settle()
        self.assertEqual(cluster[3].raft.log.last_index, leader.raft.log.last_index)
        self.assertEqual((cluster.installed, cluster.leader().raft.term), (1, 1))

    def test_19_a_member_that_was_down_needs_no_snapshot_for_the_tail(self) -> None:
        cluster = of_voters(3)
        leader = cluster.elect(1)
        cluster.crash(3)
        for _ in range(5):
            leader.propose(b"x")
            cluster.settle()
        leader.take_snapshot()
        cluster.restart(3)
        cluster.run(3 * HEARTBEAT_S)
        self.assertEqual((cluster[3].applied, cluster.installed), (leader.applied, 0))

    def test_27_a_read_waits_for_what_a_restart_has_yet_to_apply(self) -> None:
        alone, log = configuration([1]), log_of([1] * 6)
        disk = Disk(log, HardState(1), snapshots=[snapshot_of(log, alone, 3)])
        node = Node(1, alone, disk=disk)
        node.become_leader()
        self.assertEqual(node.applied, log[:3])
        node.read(7)
        node.collect()
        # Everything that may have been acknowledged, and the no-op behind it.
        self.assertEqual(node.reads, [(7, 7)])
        self.assertEqual([e.index for e in node.to_apply], [4, 5, 6, 7])


def compacted_leader() -> Node:
    """The leader of three in term 1, whose log begins behind entry 4, the last."""
    leader = leader_of(3)
    leader.propose(b"a", b"b", b"c")
    leader.flush()
    leader.acknowledge(3, 4)
    leader.collect()
    leader.apply()
    leader.raft.settings = NO_TAIL
    leader.take_snapshot()
    leader.take()
    return leader
