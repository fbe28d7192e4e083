"""A snapshot file that is damaged while its node runs: noticed when sent, and replaced."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from raftd import snapshotting
from raftd.core.membership import AddLearner
from raftd.errors import DirectoryDamaged, InvariantViolated, SnapshotDamaged
from raftd.events import Event, SnapshotTaken
from raftd.storage import snapshot_files, snapshot_reader, snapshots
from raftd.storage.memory import MemorySnapshotStore
from raftd.storage.snapshots import SnapshotStore
from raftd.test.drivers import Journal
from raftd.test.simdisk import Operation
from raftd.test.snapshotrig import StoreRig, file_of, found, fresh_disk, metadata, path_of
from raftd.test.test_node_snapshots import EARLY, PIECE_BYTES, SnapshotCase
from raftd.testing import Cluster

STATE = {b"%03d" % i: b"x" * 50 for i in range(40)}
NEWER = {b"newer": b"state"}


@implementer(ILogObserver)
class Told:
    """What the log says of damage, until the test is over."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.reasons: list[str] = []
        globalLogPublisher.addObserver(self)
        test.addCleanup(globalLogPublisher.removeObserver, self)

    def __call__(self, event: LogEvent) -> None:
        if (
            event["log_level"] is LogLevel.critical
            and "Look at the disk" in event["log_format"]
        ):
            self.reasons.append(event["reason"])


def disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


class RunningCase(SnapshotCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(snapshotting, "MAX_SNAPSHOT_PIECE_BYTES", PIECE_BYTES)
        self.patch(snapshot_reader, "STEP_BYTES", PIECE_BYTES)
        self.told = Told(self).reasons

    def newest(self, cluster: Cluster[Any], name: str) -> tuple[str, bytearray]:
        """The newest snapshot of a node, as it lies on its disk: its path and what it holds."""
        named = cluster.snapshots[name]._memory._named
        path = max(path for path in named if path.endswith(".snapshot"))
        return path, named[path]

    def flip(self, cluster: Cluster[Any], name: str) -> str:
        """One bit, in the middle of it."""
        path, file = self.newest(cluster, name)
        file[len(file) // 2] ^= 4
        return path

    def taken(self, cluster: Cluster[Any], name: str) -> list[float]:
        """When `name` takes snapshots from now on."""
        times: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, SnapshotTaken):
                times.append(cluster.clock.seconds())

        cluster[name].observe(note)
        return times

    def idle(self, machine: type[Any] = Journal) -> tuple[Cluster[Any], str]:
        """A cluster with nothing to do, and its leader, whose log begins behind a snapshot."""
        cluster, leader, _ = self.led(3, machine, **EARLY)
        self.write_many(cluster, leader, 150)
        cluster.await_agreement()
        self.assertGreater(cluster.nodes[leader].status().first_index, 50)
        return cluster, leader

    def add_learner(self, cluster: Cluster[Any], leader: str) -> None:
        cluster.start_joiner("n4")
        added = [AddLearner(cluster.members["n4"])]
        cluster.result(cluster[leader].change_membership(added))

    def sound(self, cluster: Cluster[Any], name: str) -> None:
        """What is on the disk of `name` does for a start."""
        latest = cluster.snapshots[name].latest
        cluster.crash(name)
        cluster.restart(name)
        self.assertEqual(cluster.snapshots[name].latest, latest)
        self.assert_complete(cluster)


class LeaderTests(RunningCase):
    def test_learner_of_an_idle_cluster_catches_up(self) -> None:
        """The damage is noticed, told with its place, and mended, though nobody writes."""
        cluster, leader = self.idle()
        path = self.flip(cluster, leader)
        taken = self.taken(cluster, leader)
        self.add_learner(cluster, leader)
        self.assert_complete(cluster)
        self.assertEqual(len(taken), 1)
        (said,) = self.told
        self.assertRegex(said, rf"^{path} is damaged at offset \d+: a block")
        # It is gone, now that there is a better one.
        self.assertNotIn(path, cluster.snapshots[leader]._memory._named)
        self.sound(cluster, leader)

    def test_no_damaged_byte_is_sent(self) -> None:
        """Wherever it is; and what came before it is not sent in vain for ever."""
        for share in range(8):
            self.number = 0
            cluster, leader = self.idle()
            path, file = self.newest(cluster, leader)
            at = (len(file) - 1) * share // 7
            file[at] ^= 1
            damaged = bytes(file)
            index = cluster.nodes[leader].status().snapshot_index
            cluster.start_joiner("n4")
            arrived = self.watch_pieces(cluster, "n4")
            added = [AddLearner(cluster.members["n4"])]
            cluster.result(cluster[leader].change_membership(added))
            self.assert_complete(cluster)
            for _, piece in arrived:
                if piece.last_included_index == index:
                    sent = damaged[piece.offset : piece.offset + len(piece.data)]
                    self.assertEqual(sent, piece.data)
                    self.assertLessEqual(piece.offset + len(piece.data), at, path)

    def test_snapshot_of_the_very_same_entry_takes_its_place(self) -> None:
        """Nothing was applied since: it has the same name, and is written all the same."""
        cluster, leader, behind, _ = self.lags(snapshot_threshold_bytes=300)
        status = cluster.nodes[leader].status
        while status().snapshot_index != status().applied_index:
            self.write_many(cluster, leader, 1)
            cluster.advance(0.01)
        index = status().snapshot_index
        path = self.flip(cluster, leader)
        cluster.restart(behind)
        self.assert_complete(cluster)
        self.assertEqual(status().snapshot_index, index)
        self.assertEqual(self.newest(cluster, leader)[0], path)
        self.assertEqual(len(self.told), 1)
        self.sound(cluster, leader)

    def test_changed_after_it_was_checked(self) -> None:
        """The receiver refuses it, and all of it is checked again when it is sent again."""
        cluster, leader, behind, _ = self.lags()
        cluster.advance(0.1)
        _, file = self.newest(cluster, leader)
        cluster.restart(behind)
        arrived = self.watch_pieces(cluster, behind)
        half = len(file) // 2

        def change() -> None:
            # All of it has been checked: it takes but one step.
            for at in range(arrived[-1][1].offset + PIECE_BYTES, len(file)):
                file[at] ^= 1

        self.patch(snapshot_reader, "STEP_BYTES", 1 << 20)
        self.when(cluster, lambda: arrived and arrived[-1][1].offset > half, change)
        self.assert_complete(cluster)
        self.assertEqual(len(self.told), 1)
        # The second time none of it was sent.
        self.assertEqual([p.offset for _, p in arrived].count(0), 2)

    def test_unreadable_is_as_good_as_damaged(self) -> None:
        """A sector that the disk cannot read: the node goes on, and writes another file."""
        cluster, leader = self.idle()
        path, file = self.newest(cluster, leader)
        files = cluster.snapshots[leader]._memory
        read = files.read

        def reading(fd: int, length: int, offset: int) -> bytes:
            if files._open[fd] is file:
                raise OSError(5, "Input/output error")
            return read(fd, length, offset)

        self.patch(files, "read", reading)
        self.add_learner(cluster, leader)
        self.assert_complete(cluster)
        (said,) = self.told
        self.assertIn(f"{path} could not be read: ", said)

    def test_who_leads_no_more_replaces_it_too(self) -> None:
        """It is the newest that this node has, whoever leads."""
        cluster, leader, behind, other = self.lags()
        path = self.flip(cluster, leader)
        store = cluster.snapshots[leader]
        patched = self.patch(store._memory, "write", disk_full)
        cluster.restart(behind)
        cluster.advance_until(lambda: store.is_damaged)
        cluster.result(cluster[leader].transfer(cluster.members[other].id))
        self.assert_complete(cluster)
        self.assertIn(path, store._memory._named)
        patched.restore()
        cluster.advance(snapshotting.TAKE_RETRY_S)
        self.assertFalse(store.is_damaged)
        self.assertNotEqual(cluster.nodes[leader].status().role, "leader")
        self.assertNotIn(path, store._memory._named)
        self.sound(cluster, leader)


class PacingTests(RunningCase):
    def test_fault_of_the_receiver_costs_the_leader_no_snapshot(self) -> None:
        """Its own file is right: it is sent again now and then, as before."""
        cluster, leader, behind, _ = self.lags()
        cluster.advance(0.1)
        taken = self.taken(cluster, leader)
        cluster.restart(behind)
        arrived = self.watch_pieces(cluster, behind)
        files = cluster.snapshots[behind]._memory
        write = files.write

        def spoil(fd: int, data: bytes | bytearray, offset: int) -> None:
            write(fd, bytes(data[:-1]) + bytes([data[-1] ^ 1]), offset)

        patched = self.patch(files, "write", spoil)
        cluster.advance(8.0)
        begun = [piece.offset for _, piece in arrived].count(0)
        self.assertGreater(begun, 3)
        # So often, and again after ten election timeouts of a second.
        self.assertLessEqual(begun, 2 * (snapshotting.MAX_RESTARTS + 1))
        self.assertEqual((taken, self.told), ([], []))
        patched.restore()
        cluster.advance(12.0)
        self.assert_complete(cluster)

    def test_disk_that_damages_all_it_is_given(self) -> None:
        """Half a minute between one snapshot and the next, and nothing damaged is sent."""
        cluster, leader = self.idle()
        taken = self.taken(cluster, leader)
        finished = SnapshotStore.finished
        bad = True

        def finishing(store: SnapshotStore, *args: Any) -> None:
            finished(store, *args)
            if bad and store is cluster.snapshots[leader]:
                self.flip(cluster, leader)

        self.patch(SnapshotStore, "finished", finishing)
        self.flip(cluster, leader)
        self.add_learner(cluster, leader)
        cluster.advance(100.0)
        self.assertEqual(len(taken), 4)
        for before, after in pairwise(taken):
            self.assertGreaterEqual(after - before, snapshotting.REPLACE_RETRY_S)
        bad = False
        cluster.advance(snapshotting.REPLACE_RETRY_S)
        self.assert_complete(cluster)
        self.sound(cluster, leader)

    def test_after_another_one_has_failed(self) -> None:
        """That the log had grown, and the disk was full then, is no reason to wait."""
        cluster, leader = self.idle()
        files = cluster.snapshots[leader]._memory
        patched = self.patch(files, "write", disk_full)
        self.write_many(cluster, leader, 150)
        cluster.advance(0.5)
        patched.restore()
        began = cluster.clock.seconds()
        self.flip(cluster, leader)
        taken = self.taken(cluster, leader)
        self.add_learner(cluster, leader)
        self.assert_complete(cluster)
        self.assertEqual(len(taken), 1)
        self.assertLess(taken[0] - began, snapshotting.TAKE_RETRY_S / 2)

    def test_while_the_disk_is_full(self) -> None:
        """The damaged one is all there is, and stays until another can be written."""
        cluster, leader = self.idle()
        path = self.flip(cluster, leader)
        files = cluster.snapshots[leader]._memory
        patched = self.patch(files, "write", disk_full)
        self.add_learner(cluster, leader)
        cluster.advance(10.0)
        self.assertTrue(cluster.snapshots[leader].is_damaged)
        self.assertIn(path, files._named)
        # A start would say so, and not begin with a gap.
        after = MemorySnapshotStore(cluster.clock)
        after._memory.take_over(files)
        with self.assertRaises(DirectoryDamaged) as caught:
            after.recover(Journal(), 50)
        self.assertIn(f"{path} is damaged at offset ", str(caught.exception))
        patched.restore()
        cluster.advance(snapshotting.TAKE_RETRY_S)
        self.assert_complete(cluster)
        self.assertEqual(cluster.fatal, {})


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(snapshots, "BLOCK_BYTES", 200)
        self.told = Told(self).reasons
        self.rig = StoreRig(fresh_disk()).recover()
        self.store = self.rig.store
        self.rig.take(10, NEWER)
        self.rig.take(20, STATE)
        self.inode = self.rig.disk.inode(path_of(20))

    def restart(self) -> None:
        self.rig = StoreRig(self.rig.disk.killed()).recover()
        self.store = self.rig.store
        self.inode = self.rig.disk.inode(path_of(20))

    def find_damage(self) -> None:
        """Flip a bit, and read it."""
        self.inode.flipped[900] = 4
        reader = self.store.open()
        self.assertIsInstance(self.rig.error(reader.read(0, 4 << 20)), SnapshotDamaged)
        reader.close()
        self.rig.run()
        self.assertTrue(self.store.is_damaged)

    def test_every_flipped_bit_is_found_before_it_is_handed_out(self) -> None:
        data = file_of(20, STATE)
        self.patch(snapshot_reader, "STEP_BYTES", 300)
        for at in range(len(data)):
            self.store.is_damaged = False
            self.store._kept[-1].is_damaged = False
            self.inode.flipped = {at: 1 << at % 8}
            reader = self.store.open()
            offset = 0
            with self.assertRaises(SnapshotDamaged) as caught:
                while offset < len(data):
                    piece = self.rig.result(reader.read(offset, 170))
                    self.assertEqual(piece, data[offset : offset + 170])
                    offset += len(piece)
            self.assertLessEqual(offset, at)
            self.assertIn(f"{path_of(20)} is damaged at offset ", str(caught.exception))
            self.assertTrue(self.store.is_damaged)
            reader.close()

    def test_who_goes_on_further_on_gets_nothing_unchecked(self) -> None:
        """As after a broken connection: what comes before is checked all the same."""
        self.inode.flipped[100] = 1
        reader = self.store.open()
        error = self.rig.error(reader.read(reader.size - 50, 50))
        self.assertIsInstance(error, SnapshotDamaged)

    def test_checked_in_bounded_steps(self) -> None:
        self.patch(snapshot_reader, "STEP_BYTES", 300)
        self.patch(snapshots, "BLOCK_BYTES", 100)
        self.patch(snapshot_files, "READ_BYTES", 100)
        read = self.rig.disk.read
        lengths: list[int] = []

        def reading(fd: int, length: int, offset: int) -> bytes:
            lengths.append(length)
            return read(fd, length, offset)

        self.patch(self.rig.disk, "read", reading)
        reader = self.store.open()
        done = reader.read(reader.size - 10, 10)
        while not done.called:
            before = len(lengths)
            self.rig.step()
            self.assertLessEqual(sum(lengths[before:]), 400)
        self.assertEqual(len(self.successResultOf(done)), 10)
        self.assertGreater(len(lengths), 20)

    def test_remains_until_another_is_durable(self) -> None:
        """At each step: there is a sound one, or the damaged one in its place."""
        for index in (20, 25):
            self.setUp()
            self.restart()
            self.find_damage()
            self.assertEqual(self.rig.names(), [path_of(i)[-50:] for i in (10, 20)])
            seen: list[bool] = []

            def look(operation: Operation, seen: list[bool] = seen) -> None:
                for disk in (self.rig.disk.killed(), self.rig.disk.power_failure()):
                    try:
                        start = found(disk)
                    except DirectoryDamaged as e:
                        self.assertIn(f"{path_of(20)} is damaged", str(e))
                        seen.append(False)
                    else:
                        self.assertIn(start, ((index, NEWER),))  # noqa: B023
                        seen.append(True)

            self.rig.disk.before = look
            self.rig.take(index, NEWER)
            self.assertEqual(self.store.latest, metadata(index))
            self.assertFalse(self.store.is_damaged)
            self.rig.run()
            self.assertEqual(set(seen), {False, True})
            self.rig.disk.before = lambda operation: None
            self.assertEqual(self.rig.names(), [path_of(i)[-50:] for i in (10, index)])
            self.assertEqual(found(self.rig.disk.power_failure()), (index, NEWER))
            self.assertEqual(self.rig.disk.open_count, 0)

    def test_not_opened_to_be_sent_any_more(self) -> None:
        self.find_damage()
        self.assertRaises(InvariantViolated, self.store.open)
        self.rig.take(20, STATE)
        self.assertEqual(self.rig.result(self.store.open().read(0, 4 << 20))[:8], b"raftsnap")

    def test_who_still_reads_it_says_nothing_of_the_new_one(self) -> None:
        second = self.store.open()
        self.rig.result(second.read(0, 100))
        self.find_damage()
        self.rig.take(20, STATE)
        self.inode.flipped[10] = 1
        self.assertIsInstance(self.rig.error(second.read(0, 100)), SnapshotDamaged)
        self.assertFalse(self.store.is_damaged)
        self.assertEqual(len(self.told), 1)
        second.close()
        self.rig.run()
        self.assertEqual(found(self.rig.disk.power_failure()), (20, STATE))

    def test_received_again(self) -> None:
        """The leader's takes its place as well as its own."""
        self.find_damage()
        data = file_of(20, STATE)
        receiver = self.store.receive(20, 1)
        self.rig.result(receiver.write(0, data))
        self.assertEqual(self.rig.result(receiver.finish()), metadata(20))
        self.assertFalse(self.store.is_damaged)
        self.assertEqual(found(self.rig.disk.power_failure()), (20, STATE))

    def test_one_ahead_of_the_state_gives_way_to_an_older(self) -> None:
        """It came in another term, and was never installed: the present state is behind it."""
        before = self.rig.begin(13, NEWER)
        self.find_damage()
        # Begun when nobody knew: the damaged one may have been installed since, and the
        # log begin behind it.
        self.rig.result(before.finish())
        self.rig.run()
        self.assertEqual((self.store.latest, self.store.is_damaged), (metadata(20), True))
        self.assertIn(path_of(20), self.rig.disk.contents())
        self.rig.take(15, NEWER)
        self.assertEqual((self.store.latest, self.store.is_damaged), (metadata(15), False))
        self.rig.run()
        self.assertEqual(found(self.rig.disk.power_failure()), (15, NEWER))
