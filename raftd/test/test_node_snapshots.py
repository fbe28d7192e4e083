"""
Snapshots in running nodes: taken beside the work, sent, received, restored.

Numbers in names are those of the list of defects that other systems have shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from raftd import snapshotting
from raftd.applier import ENTRY_OVERHEAD_BYTES
from raftd.core import raft as raft_module
from raftd.core.log import Log
from raftd.core.membership import AddLearner, Configuration
from raftd.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    Heartbeat,
    InstallSnapshot,
    InstallSnapshotResponse,
    Member,
    Response,
)
from raftd.core.messages import Request as RPCRequest
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import OutcomeUnknown, RaftdError
from raftd.events import Event, SnapshotRestored, SnapshotTaken
from raftd.interfaces import IRestore, IStateMachine
from raftd.memory_network import SNAPSHOT_TIMEOUT_S, MemoryPeer
from raftd.slices import Unframer, frame
from raftd.snapshotting import Snapshotter
from raftd.statemachine import SimpleStateMachine
from raftd.storage import snapshots
from raftd.storage.snapshot_files import Scan
from raftd.storage.snapshot_format import SnapshotEncoder
from raftd.storage.snapshot_reader import SnapshotReader
from raftd.storage.snapshots import SnapshotStore, SnapshotWriter
from raftd.test.drivers import (
    Alone,
    Answer,
    ClusterTestCase,
    Journal,
    SlowJournal,
    StubPeer,
    command,
)
from raftd.testing import Cluster

HEARTBEAT_S = 0.1
#: Snapshots come early, and leave little of the log.
EARLY = {"snapshot_threshold_bytes": 2_000, "snapshot_tail_entries": 10}
#: So that small snapshots have many pieces.
PIECE_BYTES = 500
#: An operation that makes a state of some size.
OPERATION = b"%07d" + b"x" * 93
#: What it counts for in the log.
ENTRY_BYTES = len(command(OPERATION % 0)) + ENTRY_OVERHEAD_BYTES


#: (sender, piece) of what has arrived.
Pieces = list[tuple[int, InstallSnapshot]]


class HeavyJournal(Journal):
    """A journal whose snapshots have a slice for each operation, which takes its time."""

    #: Set by the test: what a slice takes is added to its time.
    clock: Any = None
    slice_s = 0.0

    def snapshot(self) -> Iterator[bytes]:
        return self._slices(list(self.operations))

    def _slices(self, operations: list[bytes]) -> Iterator[bytes]:
        for operation in operations:
            self.spend()
            yield frame(operation)

    def restore(self) -> IRestore:
        return HeavyRestore(self)

    def spend(self) -> None:
        if self.slice_s:
            self.clock.rightNow += self.slice_s


class Last(SimpleStateMachine):
    """Keeps the last operation only: a state that does not grow."""

    state = b""

    def apply_command(self, operation: bytes) -> bytes:
        self.state = operation
        return operation

    def get_state(self) -> bytes:
        return self.state

    def set_state(self, state: bytes) -> None:
        self.state = state


@implementer(IRestore)
class HeavyRestore:
    def __init__(self, machine: HeavyJournal) -> None:
        self._machine = machine
        self._frames = Unframer()
        self._operations: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._frames.feed(data)
        while (content := self._frames.take()) is not None:
            self._machine.spend()
            self._operations.append(content)

    def finish(self) -> None:
        if self._frames.take_rest():
            raise ValueError("it is not whole")
        self._machine.operations = self._operations


class SnapshotCase(ClusterTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.number = 0
        # A block for each operation, so that a small state has many.
        self.patch(snapshots, "BLOCK_BYTES", len(frame(OPERATION % 0)))

    def write_many(self, cluster: Cluster[Any], name: str, count: int) -> None:
        """Writes through `name`, all answered."""
        answers = []
        for _ in range(count):
            answers.append(self.propose(cluster, name, OPERATION % self.number))
            self.number += 1
            cluster.advance(0.001)
        cluster.advance_until(lambda: all(answer.given for answer in answers))
        for answer in answers:
            self.assertIsInstance(answer.outcome, bytes)

    def lags(
        self, machine: type[Any] = Journal, count: int = 150, **options: Any
    ) -> tuple[Cluster[Any], str, str, str]:
        """A cluster with a node that is down and needs a snapshot: leader, it, the other."""
        cluster, leader, (behind, other) = self.led(3, machine, **{**EARLY, **options})
        self.write_many(cluster, behind, 5)
        cluster.await_agreement()
        last = cluster.nodes[behind].status().last_index
        cluster.crash(behind)
        self.write_many(cluster, leader, count)
        cluster.advance_until(lambda: cluster.nodes[leader].status().first_index > last + 20)
        return cluster, leader, behind, other

    def watch_pieces(self, cluster: Cluster[Any], name: str) -> Pieces:
        """(sender, piece) of each InstallSnapshot that arrives at `name`, until it restarts."""
        node = cluster.nodes[name]
        pieces: Pieces = []
        receive = node.receive

        def receiving(sender: int, request: RPCRequest) -> Deferred[Response]:
            if isinstance(request, InstallSnapshot):
                pieces.append((sender, request))
            return receive(sender, request)

        self.patch(node, "receive", receiving)
        return pieces

    def cut_cable(self, cluster: Cluster[Any], leader: str, name: str) -> None:
        """The connection for snapshots from `leader` to `name` breaks, and is made anew."""
        peer = cluster.nodes[leader]._peers.members[cluster.members[name].id]
        assert isinstance(peer, MemoryPeer)
        peer.bulk._break("the test has cut the cable")

    def restored(self, cluster: Cluster[Any], name: str) -> list[SnapshotMetadata]:
        """The snapshots that `name` restores from now on, until it restarts."""
        found: list[SnapshotMetadata] = []

        def note(event: Event) -> None:
            if isinstance(event, SnapshotRestored):
                found.append(event.metadata)

        cluster[name].observe(note)
        return found

    def when(
        self, cluster: Cluster[Any], condition: Callable[[], object], act: Callable[[], object]
    ) -> None:
        """
        Act as soon as it is so, to the millisecond.

        What moves the clock by itself runs on within one `advance`, and
        whoever waits for that to return is late.
        """

        def look() -> None:
            if condition():
                act()
            else:
                cluster.clock.callLater(0.001, look)

        look()

    def assert_complete(self, cluster: Cluster[Any]) -> None:
        """Everybody has everything that was written, in order."""
        cluster.await_agreement()
        expected = [OPERATION % i for i in range(self.number)]
        for name in cluster.nodes:
            self.assertEqual(cluster.machines[name].operations, expected, name)
        self.assertEqual(cluster.fatal, {})


class CatchUpTests(SnapshotCase):
    def test_who_was_away_comes_back_while_writes_go_on(self) -> None:
        """No election, no failed write; nobody waits for it."""
        self.patch(snapshotting, "MAX_SNAPSHOT_PIECE_BYTES", PIECE_BYTES)
        cluster, leader, behind, other = self.lags()
        term = cluster.nodes[leader].status().term
        cluster.restart(behind)
        restored = self.restored(cluster, behind)
        answers: list[Answer[bytes]] = []
        slowest_s = 0.0
        for step in range(600):
            name = (leader, other, behind)[step % 3 if step > 300 else step % 2]
            began = cluster.clock.seconds()
            answer = self.propose(cluster, name, OPERATION % self.number)
            self.number += 1
            cluster.advance_until(lambda answer=answer: answer.given)  # type: ignore[misc]
            slowest_s = max(slowest_s, cluster.clock.seconds() - began)
            answers.append(answer)
        self.assertTrue(all(isinstance(a.outcome, bytes) for a in answers))
        self.assertLess(slowest_s, HEARTBEAT_S)
        self.assert_complete(cluster)
        self.assertGreaterEqual(len(restored), 1)
        terms = {node.status().term for node in cluster.nodes.values()}
        self.assertEqual(terms, {term}, "there was an election")
        self.assertGreater(cluster.nodes[behind].status().first_index, 5)

    def test_53_the_old_log_is_let_go_of_in_slices(self) -> None:
        """By who took a snapshot, and by who got one: a few entries in each turn."""
        freed: list[int] = []
        free = Log.free

        def freeing(log: Log, max_entries: int) -> bool:
            if log._dropped:
                freed.append(max_entries)
            return free(log, max_entries)

        self.patch(Log, "free", freeing)
        self.patch(snapshotting, "FREED_ENTRIES", 7)
        cluster, _, behind, _ = self.lags(count=400)
        cluster.restart(behind)
        self.assert_complete(cluster)
        cluster.advance(HEARTBEAT_S)
        for node in cluster.nodes.values():
            self.assertEqual(node._raft.log._dropped, [])
        self.assertGreater(len(freed), 30)
        self.assertEqual(set(freed), {7})

    def test_within_the_tail_no_snapshot_is_sent(self) -> None:
        cluster, leader, (behind, _) = self.led(
            3, Journal, snapshot_threshold_bytes=2_000, snapshot_tail_entries=200
        )
        cluster.await_agreement()
        cluster.crash(behind)
        self.write_many(cluster, leader, 150)
        self.assertGreater(cluster.nodes[leader].status().snapshot_index, 50)
        cluster.restart(behind)
        restored = self.restored(cluster, behind)
        self.assert_complete(cluster)
        self.assertEqual(restored, [])

    def test_log_of_the_leader_stays_short_while_a_snapshot_is_sent(self) -> None:
        """Who is slow, or gone half-way, costs bounded memory and delays nobody."""
        self.patch(snapshotting, "MAX_SNAPSHOT_PIECE_BYTES", PIECE_BYTES)
        cluster, leader, behind, other = self.lags(Last)
        cluster.snapshots[behind].delay_seconds = 5.0
        cluster.restart(behind)
        pieces = self.watch_pieces(cluster, behind)
        cluster.advance_until(lambda: pieces)
        longest = 0
        for _ in range(30):
            self.write_many(cluster, other, 20)
            status = cluster.nodes[leader].status()
            longest = max(longest, status.last_index - status.first_index)
        # Snapshots go on being taken, and what they hold goes.
        self.assertLess(longest, 10 + 2_000 // ENTRY_BYTES + 20)
        self.assertLess(len(pieces), 10, "it is slow: pieces wait for their answers")
        cluster.snapshots[behind].delay_seconds = 0.001
        cluster.await_agreement()
        self.assertEqual(cluster.machines[behind].state, OPERATION % (self.number - 1))

    def test_new_member_comes_by_snapshot(self) -> None:
        cluster, leader, (follower, _) = self.led(3, Journal, **EARLY)
        self.write_many(cluster, leader, 150)
        cluster.start_joiner("n4")
        restored = self.restored(cluster, "n4")
        added = [AddLearner(cluster.members["n4"])]
        cluster.result(cluster[follower].change_membership(added))
        self.assert_complete(cluster)
        self.assertEqual(len(restored), 1)
        # The configuration came with it, and behind it.
        self.assertEqual(
            [m.member.name for m in cluster.nodes["n4"].status().members],
            ["n1", "n2", "n3", "n4"],
        )

    def test_restored_at_once(self) -> None:
        """
        A store may restore within the call, before the turn ends in which the log
        begins anew: storage hears of that before it is told what may go.
        """

        def restore(reader: SnapshotReader, machine: IStateMachine) -> Deferred[None]:
            state = machine.restore()
            scan = Scan(reader._files, reader._descriptor(), reader.key)
            while (blocks := scan.step(1 << 20)) is not None:
                for block in blocks:
                    state.write(block)
            state.finish()
            return succeed(None)

        cluster, leader, behind, _ = self.lags()
        self.patch(SnapshotReader, "restore", restore)
        cluster.restart(behind)
        found = self.restored(cluster, behind)
        cluster.await_agreement()
        self.assertEqual(len(found), 1)
        self.assertEqual(
            cluster.machines[behind].operations, cluster.machines[leader].operations
        )


class WhenTests(SnapshotCase):
    THRESHOLD_BYTES = 200 * ENTRY_BYTES

    def taken(self) -> list[int]:
        """With how many bytes of log each member has taken its first snapshot."""
        cluster, leader, _ = self.led(
            3,
            Journal,
            seed=5,
            snapshot_threshold_bytes=self.THRESHOLD_BYTES,
            snapshot_tail_entries=5,
        )
        first: dict[str, int] = {}
        for name, node in cluster.nodes.items():

            def told(event: Event, name: str = name) -> None:
                if isinstance(event, SnapshotTaken):
                    index = event.metadata.last_included_index
                    first.setdefault(name, index * ENTRY_BYTES)

            node.observe(told)
        self.write_many(cluster, leader, 210)
        cluster.advance_until(lambda: len(first) == 3)
        return sorted(first.values())

    def test_members_take_theirs_at_different_times(self) -> None:
        """Else all of a quorum would be slow at the same time."""
        one, _, last = self.taken()
        self.assertGreaterEqual(one, self.THRESHOLD_BYTES * snapshotting.LEAST_SHARE)
        self.assertGreater(last - one, 15 * ENTRY_BYTES)
        self.assertLessEqual(last, self.THRESHOLD_BYTES + 10 * ENTRY_BYTES)

    def test_a_member_that_starts_knows_how_large_its_last_one_is(self) -> None:
        """Else all that start together would take one each, however large, at once."""
        self.patch(snapshotting, "LEAST_SHARE", 1.0)
        cluster, leader, _ = self.led(
            1, Journal, snapshot_threshold_bytes=300, snapshot_tail_entries=5
        )
        self.write_many(cluster, leader, 100)
        cluster.advance(1.0)
        cluster.crash(leader)
        cluster.restart(leader)
        cluster.await_leader()
        before = cluster.snapshots[leader].latest
        assert before is not None
        self.write_many(cluster, leader, 5)
        self.assertEqual(cluster.snapshots[leader].latest, before)
        self.write_many(cluster, leader, 100)
        self.assertNotEqual(cluster.snapshots[leader].latest, before)

    def test_tail_behind_it_is_bounded_in_bytes_as_well(self) -> None:
        """Ten thousand entries may be gigabytes: no member holds that for others."""
        self.patch(raft_module, "MAX_TAIL_BYTES", 1000)
        cluster, leader, _ = self.led(1, Journal, snapshot_threshold_bytes=5000)
        log = cluster.nodes[leader]._raft.log
        tails: list[int] = []

        def told(event: Event) -> None:
            if isinstance(event, SnapshotTaken):
                index = event.metadata.last_included_index
                entries = log.entries(log.first_index, index)
                tails.append(sum(len(entry.data) for entry in entries))

        cluster.nodes[leader].observe(told)
        self.write_many(cluster, leader, 200)
        cluster.advance(1.0)
        self.assertGreater(len(tails), 1)
        for size in tails:
            self.assertLessEqual(size, 1000)
            self.assertGreater(size, 1000 - ENTRY_BYTES)

    def test_without_shares_they_would_do_so_together(self) -> None:
        self.patch(snapshotting, "LEAST_SHARE", 1.0)
        one, _, last = self.taken()
        self.assertLessEqual(last - one, 5 * ENTRY_BYTES)


class RestTests(SnapshotCase):
    """Between two slices of a snapshot others have the reactor."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(snapshotting, "SLICE_S", -1.0)  # a rest after each slice
        self.patch(snapshotting, "REST_S", 3.0)
        self.cluster, self.leader, _ = self.led(1, Journal, snapshot_threshold_bytes=2_000)
        self.write_many(self.cluster, self.leader, 100)

    def test_53_it_rests(self) -> None:
        self.cluster.advance(2.0)
        self.assertIsNone(self.cluster.snapshots[self.leader].latest)
        self.cluster.advance(60.0)
        self.assertIsNotNone(self.cluster.snapshots[self.leader].latest)

    def test_a_rest_ends_with_the_node(self) -> None:
        resting = self.cluster.nodes[self.leader]._snapshotter._rest
        assert resting is not None
        self.cluster.nodes[self.leader].stop()
        self.assertFalse(resting[0].active())
        self.cluster.advance(60.0)
        self.assertIsNone(self.cluster.snapshots[self.leader].latest)


class CloseTogetherTests(SnapshotCase):
    def is_sent_slowly(
        self, threshold_bytes: int
    ) -> tuple[Cluster[Any], str, Pieces, list[SnapshotMetadata]]:
        """Someone who has its first piece: cluster, leader; what it is sent, and restores."""
        self.patch(snapshotting, "MAX_SNAPSHOT_PIECE_BYTES", PIECE_BYTES)
        cluster, leader, behind, _ = self.lags(snapshot_threshold_bytes=threshold_bytes)
        cluster.snapshots[behind].delay_seconds = 0.02
        cluster.restart(behind)
        pieces = self.watch_pieces(cluster, behind)
        restored = self.restored(cluster, behind)
        cluster.advance_until(lambda: pieces)
        return cluster, leader, pieces, restored

    def test_42_many_snapshots_while_one_is_sent(self) -> None:
        """By the time that it has one, the log behind that is gone again."""
        cluster, leader, pieces, restored = self.is_sent_slowly(300)
        while len({piece.last_included_index for _, piece in pieces}) < 3:
            self.write_many(cluster, leader, 20)
        self.assert_complete(cluster)
        indexes = [metadata.last_included_index for metadata in restored]
        self.assertGreaterEqual(len(indexes), 2)
        self.assertEqual(indexes, sorted(set(indexes)))

    def test_42_what_comes_behind_the_one_that_is_sent_stays_for_one_more(self) -> None:
        """Else under much load, with large values, each would be too old when it has come."""
        cluster, leader, pieces, restored = self.is_sent_slowly(3_000)
        sent = pieces[0][1].last_included_index
        store = cluster.snapshots[leader]
        while store.latest is None or store.latest.last_included_index == sent:
            self.write_many(cluster, leader, 5)
        self.assertEqual(restored, [])
        self.assert_complete(cluster)
        self.assertEqual([metadata.last_included_index for metadata in restored], [sent])

    def test_42_another_arrives_while_one_is_restored(self) -> None:
        cluster, leader, behind, other = self.lags(HeavyJournal)
        cluster.restart(behind)
        heavy: HeavyJournal = cluster.machines[behind]
        # It pauses after each block, and the others have more time than it takes.
        heavy.clock, heavy.slice_s = cluster.clock, 0.004
        self.patch(
            SnapshotReader, "_pause", lambda _: deferLater(cluster.clock, 0.3, lambda: None)
        )
        restored = self.restored(cluster, behind)
        first: list[int] = []
        there, here = cluster.nodes[leader].status, cluster.nodes[behind].status

        def lose_touch() -> None:
            """For a moment, in which two more are taken."""
            first.append(here().last_index)
            cluster.partition([behind], [leader, other])
            write_more()
            self.when(cluster, lambda: there().snapshot_index > first[0], write_more)
            # It stays for the one that is sent, and goes with the next but one.
            self.when(cluster, lambda: there().first_index > first[0], find_it)

        def write_more() -> None:
            for _ in range(400):
                self.propose(cluster, leader, OPERATION % self.number)
                self.number += 1

        def find_it() -> None:
            cluster.heal()
            self.cut_cable(cluster, leader, behind)
            self.when(cluster, lambda: here().first_index > first[0] + 1, hurry)

        def hurry() -> None:
            self.assertEqual(restored, [])
            self.assertLessEqual(len(heavy.operations), 5, "not restored yet")
            heavy.slice_s = 0.0

        self.when(cluster, lambda: here().first_index > 20, lose_touch)
        cluster.advance_until(lambda: restored)
        # The one that came first was never shown to anybody.
        self.assertEqual(len(first), 1, "it takes a while to restore it")
        self.assertGreater(restored[0].last_included_index, first[0])
        self.assertEqual(heavy.slice_s, 0.0)
        self.assert_complete(cluster)
        self.assertEqual(len(restored), 1)

    def test_42_one_arrives_while_one_is_taken(self) -> None:
        """A follower that is taking its own when it is sent a newer one."""
        cluster, leader, (behind, other) = self.led(3, HeavyJournal, **EARLY)
        cluster.snapshots[behind].delay_seconds = 0.05
        self.write_many(cluster, leader, 40)
        cluster.advance(0.05)
        self.assertIsNone(cluster.snapshots[behind].latest, "it is still being written")
        cluster.partition([behind], [leader, other])
        self.write_many(cluster, leader, 100)
        cluster.heal()
        restored = self.restored(cluster, behind)
        cluster.advance_until(lambda: restored)
        self.assert_complete(cluster)
        latest = cluster.snapshots[behind].latest
        assert latest is not None
        self.assertGreaterEqual(latest.last_included_index, restored[-1].last_included_index)


class BrokenOffTests(SnapshotCase):
    """43: whatever breaks in the middle, nothing half is ever seen, and all goes on."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(snapshotting, "MAX_SNAPSHOT_PIECE_BYTES", PIECE_BYTES)

    def _half_way(self, pieces: int = 12) -> tuple[Cluster[Any], str, str, str, Pieces]:
        """A snapshot is being sent: leader, receiver, the other, what has arrived."""
        cluster, leader, behind, other = self.lags()
        cluster.restart(behind)
        arrived = self.watch_pieces(cluster, behind)
        while len(arrived) < pieces:
            cluster.advance(0.0005)
            self._assert_nothing_half(cluster, behind)
        return cluster, leader, behind, other, arrived

    def _assert_nothing_half(self, cluster: Cluster[Any], name: str) -> None:
        if name not in cluster.nodes:
            return
        operations = cluster.machines[name].operations
        expected = [OPERATION % i for i in range(len(operations))]
        self.assertEqual(operations, expected)
        latest = cluster.snapshots[name].latest
        applied = cluster.nodes[name].status().applied_index
        if len(operations) > 5:
            # Only a whole one, which is durable, was restored.
            assert latest is not None
            self.assertGreaterEqual(applied, latest.last_included_index)
        else:
            # As it was before, once that is replayed.
            self.assertLessEqual(len(operations), 5)

    def _finish(self, cluster: Cluster[Any], name: str) -> None:
        for _ in range(400):
            cluster.advance(0.005)
            self._assert_nothing_half(cluster, name)
        self.assert_complete(cluster)

    def test_43_sender_that_crashes(self) -> None:
        for power_lost in (False, True):
            self.number = 0
            cluster, leader, behind, other, arrived = self._half_way()
            cluster.crash(leader, power_lost=power_lost)
            sender = cluster.members[other].id
            cluster.advance_until(lambda: arrived[-1][0] == sender)  # noqa: B023
            self._finish(cluster, behind)
            cluster.restart(leader)
            self.assert_complete(cluster)

    def test_43_sender_that_hands_over(self) -> None:
        """It sends no more pieces in its old term, and the successor sends its own."""
        cluster, leader, behind, other, arrived = self._half_way()
        term = cluster.nodes[leader].status().term
        cluster.result(cluster[leader].transfer(cluster.members[other].id))
        now = len(arrived)
        self._finish(cluster, behind)
        later = arrived[now:]
        # One may have been on its way.
        self.assertLessEqual(sum(piece.term == term for _, piece in later), 1)
        self.assertIn(cluster.members[other].id, {sender for sender, _ in later})

    def test_43_sender_that_is_deposed_without_knowing(self) -> None:
        cluster, leader, behind, other, arrived = self._half_way()
        cluster.partition([leader], [other, behind])
        self.assertEqual(cluster.await_leader([other, behind]), other)
        for _ in range(200):
            cluster.advance(0.005)
            self._assert_nothing_half(cluster, behind)
        cluster.heal()
        self.assert_complete(cluster)
        terms = [piece.term for _, piece in arrived]
        self.assertEqual(terms, sorted(terms))
        self.assertEqual(len(set(terms)), 2)

    def test_43_sender_that_has_stepped_down_sends_no_more(self) -> None:
        """Not even in its own term, in which nobody else may lead."""
        snapshots, peer = Alone(1).snapshots, StubPeer(Member(2, "n2"))
        reading: Deferred[bytes] = Deferred()
        metadata = SnapshotMetadata(1, 1, Configuration(), 0)
        reader = SimpleNamespace(
            metadata=metadata, size=1, read=lambda offset, size: reading, close=lambda: None
        )
        self.patch(snapshots, "latest", metadata)
        self.patch(snapshots, "open", lambda: reader)
        lost: list[int] = []
        raft = SimpleNamespace(term=1, leadership=object(), unreachable=lost.append)
        never: Any = None
        snapshotter = Snapshotter(
            never,
            raft,  # type: ignore[arg-type]
            never,
            never,
            never,
            snapshots,
            0,
            random=Random(1),
            wake=lambda: None,
            defect=self.fail,
            on_taken=never,
            on_restored=never,
        )
        snapshotter.send(2, peer)
        raft.leadership = None
        reading.callback(b"x")
        self.assertEqual((peer.sent, lost), ([], [2]))

    def test_43_receiver_that_crashes_begins_again(self) -> None:
        cluster, _, behind, _, _ = self._half_way()
        cluster.crash(behind)
        cluster.restart(behind)
        self.assertIsNone(cluster.snapshots[behind].latest)
        self.assertLessEqual(len(cluster.machines[behind].operations), 5)
        arrived = self.watch_pieces(cluster, behind)
        cluster.advance_until(lambda: arrived)
        self._finish(cluster, behind)
        self.assertIn(0, [piece.offset for _, piece in arrived])

    def test_43_receiver_that_crashes_when_it_was_complete(self) -> None:
        """Between the snapshot and the log that begins anew behind it: at every flush."""
        for steps in range(40):
            self.number = 0
            cluster, _, behind, _ = self.lags()
            cluster.restart(behind)
            store = cluster.snapshots[behind]
            cluster.advance_until(lambda: store.latest is not None)  # noqa: B023
            for _ in range(steps):
                cluster.advance(0.0001)
            cluster.crash(behind, kept=steps % 2)
            cluster.restart(behind)
            self._finish(cluster, behind)

    def test_43_resumed_after_the_connection_broke(self) -> None:
        """What has arrived is not sent again."""
        cluster, leader, behind, _, arrived = self._half_way()
        self.cut_cable(cluster, leader, behind)
        cluster.advance(0.005)
        before = max(piece.offset for _, piece in arrived)
        now = len(arrived)
        cluster.advance_until(lambda: len(arrived) > now + 2)
        again = [piece.offset for _, piece in arrived[now:]]
        self.assertEqual(again[0], 0, "it asks where to go on")
        self.assertGreaterEqual(again[1], before)
        self._finish(cluster, behind)
        keys = {(p.last_included_index, p.offset) for _, p in arrived}
        self.assertLessEqual(len(arrived) - len(keys), 3)

    def test_43_goes_on_when_a_partition_heals(self) -> None:
        """What was lost on its way is given up when its time is up."""
        cluster, leader, behind, other, arrived = self._half_way()
        cluster.partition([behind], [leader, other])
        cluster.advance(0.3)
        cluster.heal()
        now = len(arrived)
        cluster.advance_until(lambda: len(arrived) > now, SNAPSHOT_TIMEOUT_S + 5.0)
        self._finish(cluster, behind)

    def test_43_given_up_when_there_is_no_progress(self) -> None:
        """A disk that refuses is left alone but for a try now and then."""
        cluster, leader, behind, _ = self.lags()
        cluster.restart(behind)
        arrived = self.watch_pieces(cluster, behind)
        files = cluster.snapshots[behind]._memory

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patched = self.patch(files, "write", full)
        cluster.advance(2.0)
        self.assertGreater(len(arrived), 3)
        # As often as a heartbeat is answered, not as often as possible.
        self.assertLess(len(arrived), 2.0 / HEARTBEAT_S * (snapshotting.MAX_RESTARTS + 2))
        term = cluster.nodes[leader].status().term
        patched.restore()
        self._finish(cluster, behind)
        self.assertEqual(cluster.nodes[leader].status().term, term)


class LateTests(SnapshotCase):
    """44: what comes late, or twice, meets a log that begins behind it."""

    def setUp(self) -> None:
        super().setUp()
        self.machine = HeavyJournal()
        self.alone = Alone(3, self.machine)
        self.file = self._file(50)

    def _file(self, index: int) -> bytes:
        """A snapshot at `index`: the operations up to there, from 11 on."""
        configuration = Configuration(voters=tuple(Member(i, f"n{i}") for i in (1, 2, 3)))
        encoder = SnapshotEncoder()
        head = encoder.head(SnapshotMetadata(index, 2, configuration, 7))
        state = b"".join(frame(b"%d" % i) for i in range(11, index + 1))
        return head + encoder.block(state) + encoder.end()

    def _send(self, leader: int, term: int, index: int, file: bytes) -> Deferred[Response]:
        request = InstallSnapshot(term, index, 2, 0, file, True)
        return self.alone.node.receive(leader, request)

    def _install(self, index: int = 50) -> Response:
        answer = self._send(2, 2, index, self.file)
        self.alone.advance(0.01)
        return self.successResultOf(answer)

    def _entries(self, first: int, count: int, term: int = 2) -> tuple[Entry, ...]:
        return tuple(
            Entry(i, term, EntryKind.COMMAND, 7, command(b"%d" % i))
            for i in range(first, first + count)
        )

    def test_44_snapshot_twice(self) -> None:
        for _ in range(2):
            self.assertEqual(self._install(), InstallSnapshotResponse(2, 0, True))
            self.assertEqual(len(self.machine.operations), 40)
            status = self.alone.node.status()
            self.assertEqual((status.applied_index, status.last_index), (50, 50))
        self.assertEqual(self.alone.fatal, [])

    def test_44_late_append_meets_a_log_that_begins_behind_it(self) -> None:
        self._install()
        more = self._entries(51, 5)
        answer = self.alone.append(2, AppendEntries(2, 50, 2, 55, more))
        self.alone.advance(0.01)
        self.assertEqual(self.successResultOf(answer), AppendEntriesResponse(2, True, 55))
        for prev, count in ((1, 10), (40, 10), (45, 8), (49, 1), (49, 3)):
            late = AppendEntries(
                2, prev, 1 if prev == 1 else 2, 50, self._entries(prev + 1, count)
            )
            answer = self.alone.append(2, late)
            self.alone.advance(0.01)
            response = self.successResultOf(answer)
            self.assertEqual(response, AppendEntriesResponse(2, True, prev + count))
            self.assertEqual(self.alone.node.status().last_index, 55)
        self.assertEqual(len(self.machine.operations), 45)
        self.assertEqual(self.alone.fatal, [])

    def test_44_late_snapshot_takes_nothing_back(self) -> None:
        self._install()
        answer = self.alone.append(2, AppendEntries(2, 50, 2, 60, self._entries(51, 10)))
        self.alone.advance(0.01)
        self.successResultOf(answer)
        self.assertEqual(self._install(), InstallSnapshotResponse(2, 0, True))
        self.assertEqual(self._install(30), InstallSnapshotResponse(2, 0, True))
        status = self.alone.node.status()
        self.assertEqual((status.applied_index, status.last_index), (60, 60))
        self.assertEqual(len(self.machine.operations), 50)

    def test_44_snapshot_that_the_log_leads_up_to_leaves_the_log(self) -> None:
        """Its own entries are as good, and those behind it may be acknowledged."""
        self.alone.append(2, AppendEntries(2, 1, 1, 1, self._entries(2, 59)))
        self.alone.advance(0.01)
        self.assertEqual(self._install(), InstallSnapshotResponse(2, 0, True))
        status = self.alone.node.status()
        self.assertEqual((status.first_index, status.last_index), (1, 60))
        self.assertEqual(status.applied_index, 50)

    def test_44_newer_snapshot_of_a_former_leader_is_not_taken_for_another(self) -> None:
        """
        It is complete when its sender leads no more, and so is not installed;
        the next leader sends an older one, and goes on from there.
        """
        self.alone.snapshots.delay_seconds = 0.001
        late = self._send(2, 2, 60, self._file(60))
        self.alone.turn()
        self.alone.node.receive(3, Heartbeat(3, 1, 1))
        self.alone.advance(0.01)
        latest = self.alone.snapshots.latest
        assert latest is not None
        self.assertEqual(latest.last_included_index, 60)
        self.assertEqual(self.successResultOf(late), InstallSnapshotResponse(3, 0, False))
        answer = self._send(3, 3, 50, self._file(50))
        self.alone.advance(0.01)
        self.assertEqual(self.successResultOf(answer), InstallSnapshotResponse(3, 0, True))
        self.assertEqual(self.alone.node.status().applied_index, 50)
        self.assertEqual(self.machine.operations, [b"%d" % i for i in range(11, 51)])
        self.alone.append(3, AppendEntries(3, 50, 2, 65, self._entries(51, 15)))
        self.alone.advance(0.01)
        self.assertEqual(self.machine.operations, [b"%d" % i for i in range(11, 66)])
        self.assertEqual(self.alone.fatal, [])

    def test_42_snapshot_is_given_up_for_another_while_a_piece_is_being_kept(self) -> None:
        """At every moment between the first piece and the end."""
        for steps in range(12):
            self.setUp()
            self.alone.snapshots.delay_seconds = 0.001
            half = len(self.file) // 2
            first = InstallSnapshot(2, 50, 2, 0, self.file[:half], False)
            rest = InstallSnapshot(2, 50, 2, half, self.file[half:], True)
            self.alone.node.receive(2, first)
            answers = [self.alone.node.receive(2, rest)]
            for _ in range(steps):
                self.alone.advance(0.0005)
            answers.append(self._send(2, 2, 60, self._file(60)))
            self.alone.advance(0.1)
            self.assertEqual(self.alone.fatal, [], f"{steps} steps")
            superseded, installed = map(self.successResultOf, answers)
            self.assertEqual(installed, InstallSnapshotResponse(2, 0, True))
            self.assertIsInstance(superseded, InstallSnapshotResponse)
            self.assertEqual(self.alone.node.status().applied_index, 60)
            self.assertEqual(self.machine.operations, [b"%d" % i for i in range(11, 61)])

    def test_44_damaged_snapshot_is_asked_for_again(self) -> None:
        whole = self.file
        self.file = whole[:100] + b"?" + whole[101:]
        self.assertEqual(self._install(), InstallSnapshotResponse(2, 0, False))
        self.assertEqual(self.alone.node.status().applied_index, 0)
        self.file = whole
        self.assertEqual(self._install(), InstallSnapshotResponse(2, 0, True))
        self.assertEqual(self.alone.fatal, [])


class BesideTheWorkTests(SnapshotCase):
    """45, 53: heartbeats and writes go on while a large state is written or read."""

    def setUp(self) -> None:
        super().setUp()
        # So that it is known how large it is.
        self.patch(snapshotting, "LEAST_SHARE", 1.0)

    def _term_after(
        self, slices: int, slice_s: float, restoring: bool
    ) -> tuple[int, int, float]:
        """The term before and after, and the longest wait of a write meanwhile."""
        cluster, leader, (one, other) = self.led(
            3,
            HeavyJournal,
            snapshot_threshold_bytes=(slices + 5) * ENTRY_BYTES,
            snapshot_tail_entries=5,
            request_timeout_ms=30_000,
        )
        if restoring:
            cluster.crash(one)
        self.write_many(cluster, leader, slices)
        for machine in cluster.machines.values():
            machine.clock = cluster.clock
        told: list[Event] = []
        term = cluster.nodes[leader].status().term
        if restoring:
            self.write_many(cluster, leader, 40)
            cluster.advance_until(lambda: cluster.nodes[leader].status().first_index > 100)
            cluster.restart(one)
            cluster[one].observe(told.append)
            cluster.machines[one].clock = cluster.clock
            cluster.machines[one].slice_s = slice_s
        else:
            cluster[leader].observe(told.append)
            cluster.machines[leader].slice_s = slice_s
        began = cluster.clock.seconds()
        delays_s: list[float] = []
        over: list[float] = []
        failed: list[RaftdError] = []

        def write() -> None:
            """One write after another, as soon as it can be."""
            asked = cluster.clock.seconds()

            def answered(outcome: object) -> None:
                failed.extend([outcome] if isinstance(outcome, RaftdError) else [])
                delays_s.append(cluster.clock.seconds() - asked)
                cluster.clock.callLater(0.001, write)

            done = [
                e
                for e in told
                if isinstance(e, SnapshotRestored if restoring else SnapshotTaken)
            ]
            if done:
                over.append(cluster.clock.seconds())
            else:
                operation = OPERATION % self.number
                self.number += 1
                cluster.nodes[other].propose(command(operation), Answer(answered))

        write()
        cluster.advance_until(lambda: over)
        self.assertGreater(over[0] - began, 1.8, "it was large")
        for machine in cluster.machines.values():
            machine.slice_s = 0.0
        cluster.await_leader()
        cluster.await_agreement()
        after = cluster.nodes[leader].status().term
        if after == term:
            self.assertEqual(failed, [])
            self.assert_complete(cluster)
        return term, after, max(delays_s)

    def test_45_taking_a_large_snapshot_stops_no_heartbeat(self) -> None:
        before, after, slowest_s = self._term_after(400, 0.005, restoring=False)
        self.assertEqual(before, after, "leadership was lost")
        self.assertLess(slowest_s, HEARTBEAT_S)

    def test_45_without_slices_the_leader_would_be_lost(self) -> None:
        """The same work in few pieces, to show that the test before can fail."""
        before, after, _ = self._term_after(1, 2.0, restoring=False)
        self.assertLess(before, after)

    def test_53_restoring_a_large_snapshot_starts_no_election(self) -> None:
        before, after, slowest_s = self._term_after(400, 0.005, restoring=True)
        self.assertEqual(before, after, "an election")
        self.assertLess(slowest_s, HEARTBEAT_S)

    def test_53_slices_that_wait_for_a_slow_disk_are_bounded(self) -> None:
        self.patch(snapshotting, "MAX_PENDING_BYTES", 3_000)
        pending: list[int] = []
        write = SnapshotWriter.write

        def writing(writer: SnapshotWriter, data: bytes) -> None:
            write(writer, data)
            pending.append(writer.pending_bytes)

        self.patch(SnapshotWriter, "write", writing)
        cluster, leader, _ = self.led(1, HeavyJournal, snapshot_threshold_bytes=30_000)
        cluster.snapshots[leader].delay_seconds = 0.02
        self.write_many(cluster, leader, 230)
        cluster.advance_until(lambda: cluster.snapshots[leader].latest is not None)
        self.assertGreater(len(pending), 200)
        self.assertLessEqual(max(pending), 3_000 + 104 + 4)
        self.assert_complete(cluster)

    def test_one_piece_for_each_member_is_in_memory_at_a_time(self) -> None:
        self.patch(snapshotting, "MAX_SNAPSHOT_PIECE_BYTES", PIECE_BYTES)
        cluster, leader, others = self.led(5, Journal, **EARLY)
        behind = others[:2]
        for name in behind:
            cluster.crash(name)
        self.write_many(cluster, leader, 150)
        for name in behind:
            cluster.snapshots[name].delay_seconds = 0.2
            cluster.restart(name)
        arrived = {name: self.watch_pieces(cluster, name) for name in behind}
        cluster.advance(1.9)
        for name in behind:
            # The disk takes 0.2 s for each, and the next is sent when it has answered.
            self.assertLessEqual(len(arrived[name]), 11, name)
            self.assertGreater(len(arrived[name]), 2, name)
            cluster.snapshots[name].delay_seconds = 0.001
        self.assert_complete(cluster)


class FailedDiskTests(SnapshotCase):
    def test_snapshot_that_cannot_be_written_costs_nothing_but_itself(self) -> None:
        """The log is sound; it grows until there is room again."""
        cluster, leader, _ = self.led(1, Journal, **EARLY)
        files = cluster.snapshots[leader]._memory

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patched = self.patch(files, "write", full)
        self.write_many(cluster, leader, 100)
        status = cluster.nodes[leader].status()
        self.assertEqual((status.snapshot_index, status.first_index), (0, 1))
        patched.restore()
        cluster.advance(snapshotting.TAKE_RETRY_S)
        self.write_many(cluster, leader, 100)
        status = cluster.nodes[leader].status()
        self.assertGreater(status.snapshot_index, 100)
        self.assertGreater(status.first_index, 90)
        cluster.crash(leader)
        cluster.restart(leader)
        cluster.await_leader()
        self.assert_complete(cluster)

    def test_stop_while_one_is_taken_sent_and_received(self) -> None:
        self.patch(snapshotting, "MAX_SNAPSHOT_PIECE_BYTES", PIECE_BYTES)
        cluster, leader, behind, _ = self.lags()
        for name in cluster.members:
            cluster.snapshots[name].delay_seconds = 0.1
        cluster.restart(behind)
        arrived = self.watch_pieces(cluster, behind)
        self.write_many(cluster, leader, 40)
        cluster.advance_until(lambda: len(arrived) > 2)
        for name in (behind, leader):
            cluster.stop(name)
            self.assertEqual(self.flushLoggedErrors(), [])
        for name in (behind, leader):
            cluster.snapshots[name].delay_seconds = 0.001
            cluster.restart(name)
        cluster.await_leader()
        self.assert_complete(cluster)


class RestoreTests(SnapshotCase):
    def test_restored_when_the_application_under_way_has_ended(self) -> None:
        """An entry that is applied in steps is applied to its end, and not twice."""
        cluster, leader, (behind, other) = self.led(3, SlowJournal, **EARLY)
        slow: SlowJournal = cluster.machines[behind]
        slow.clock, slow.steps = cluster.clock, 2_000  # four seconds
        self.write_many(cluster, leader, 5)
        began = self.propose(cluster, leader, b"slow")
        restored = self.restored(cluster, behind)
        there, here = cluster.nodes[leader].status, cluster.nodes[behind].status
        seen: list[tuple[int, int]] = []

        def lose_touch() -> None:
            seen.append((here().applied_index, len(slow.operations)))
            cluster.partition([behind], [leader, other])
            for _ in range(100):
                self.propose(cluster, leader, OPERATION % self.number)
                self.number += 1
            self.when(cluster, lambda: there().first_index > here().last_index, come_back)

        def come_back() -> None:
            cluster.heal()
            self.when(cluster, lambda: here().first_index > 10, look)

        def look() -> None:
            """The snapshot has arrived."""
            seen.append((here().applied_index, len(slow.operations)))
            self.assertEqual(restored, [])

        applying = cluster.nodes[behind]._applier
        self.when(cluster, lambda: not applying.is_between_entries, lose_touch)
        cluster.advance_until(lambda: restored)
        self.assertIsInstance(began.outcome, bytes)
        before, after = seen
        self.assertEqual(before, after, "it is still under way")
        self.assertEqual(after[1], 5)
        cluster.await_agreement()
        expected = [OPERATION % i for i in range(self.number)]
        expected.insert(5, b"slow")
        for name in cluster.nodes:
            self.assertEqual(cluster.machines[name].operations, expected, name)

    def _overtaken(self) -> tuple[Cluster[Any], str, list[str]]:
        """A leader that is cut off, and a log without it that begins anew."""
        cluster, leader, others = self.led(3, Journal, request_timeout_ms=60_000, **EARLY)
        self.write_many(cluster, leader, 5)
        cluster.await_agreement()
        cluster.partition([leader], others)
        return cluster, leader, others

    def _come_back(self, cluster: Cluster[Any], leader: str, others: list[str]) -> None:
        new = cluster.await_leader(others)
        last = cluster.nodes[leader].status().last_index
        while cluster.nodes[new].status().first_index <= last + 10:
            self.write_many(cluster, new, 20)
        restored = self.restored(cluster, leader)
        cluster.heal()
        cluster.advance_until(lambda: restored)

    def test_30_write_that_a_snapshot_has_replaced_is_unknown(self) -> None:
        """It may be part of the snapshot or not, and nobody can tell."""
        cluster, leader, others = self._overtaken()
        pending = [self.propose(cluster, leader, b"p%d" % i) for i in range(3)]
        cluster.advance(0.01)
        self._come_back(cluster, leader, others)
        # Now, and not when their time is up.
        for answer in pending:
            self.assertOutcome(answer, OutcomeUnknown)
        self.assert_complete(cluster)

    def test_30_change_that_a_snapshot_has_replaced_is_unknown(self) -> None:
        cluster, leader, others = self._overtaken()
        cluster.start_joiner("n4")
        change = cluster[leader].change_membership([AddLearner(cluster.members["n4"])])
        cluster.advance(0.01)
        self.assertNoResult(change)
        self._come_back(cluster, leader, others)
        self.failureResultOf(change, OutcomeUnknown)
        cluster.crash("n4")
        cluster.await_agreement()
        self.assertEqual(len(cluster.nodes[leader].status().members), 3)

    def test_reads_that_wait_are_answered_by_the_restored_state(self) -> None:
        cluster, leader, behind, other = self.lags()
        cluster.restart(behind)
        cluster.advance_until(lambda: cluster.nodes[behind].status().leader is not None)
        read = self.read(cluster, behind)
        cluster.advance_until(lambda: read.given)
        self.assertIsNone(read.outcome)
        self.assertGreaterEqual(len(cluster.machines[behind].operations), self.number)
        del leader, other

    def test_snapshot_store_is_the_one_that_ships(self) -> None:
        cluster: Cluster[Any] = Cluster(1, Journal)
        self.assertIsInstance(cluster.snapshots["n1"], SnapshotStore)
