"""
Full disks, from the core to real servers: writes are refused, everything else
goes on, and nothing has to be done but to make room.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any

import treq
from twisted.internet import reactor
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from twisted.web.client import Agent

from raftd.core.leader import SNAPSHOT_RETRY_TIMEOUTS
from raftd.core.membership import Remove
from raftd.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raftd.core.raft import Role
from raftd.core.space import MAX_SPARE_BYTES, NO_SPACE_TIMEOUTS
from raftd.disk import SPACE_RETRY_S
from raftd.errors import NoSpace
from raftd.net.arguments import error_from_wire, error_to_wire
from raftd.replica import ReplicaOptions
from raftd.snapshotting import MAX_RESTARTS, TAKE_RETRY_S
from raftd.storage import segments
from raftd.storage.files import Files
from raftd.storage.segments import Segment, SegmentHeader
from raftd.test.cores import (
    ELECTION_S,
    Node,
    appends_in,
    configuration,
    leader_of,
    messages_to,
)
from raftd.test.drivers import Answer, ClusterTestCase, Journal, command
from raftd.test.servers import (
    PATIENCE_S,
    ServerTestCase,
    name_of,
    node_of,
    status_of,
    until,
)
from raftd.testing import Cluster


def entry(index: int, size: int = 1, kind: EntryKind = EntryKind.COMMAND) -> Entry:
    data = command(b"x" * size) if kind == EntryKind.COMMAND else b""
    return Entry(index, 1, kind, 0, data)


class FollowerTests(SynchronousTestCase):
    """What a node without room does for a leader, which is 2, and for candidates."""

    def setUp(self) -> None:
        self.node = Node(1, configuration((1, 2, 3)))
        self.node.raft.space_changed(False, self.node.time.now)

    def append(self, *new: Entry, term: int = 1) -> None:
        before = new[0].index - 1
        self.node.receive(2, AppendEntries(term, before, 1 if before else 0, 0, new))

    def test_48_it_acknowledges_no_command_that_it_does_not_take(self) -> None:
        with self.assertRaises(NoSpace) as caught:
            self.append(entry(1, MAX_SPARE_BYTES))
        self.assertIn("The disk of this node is full", str(caught.exception))
        self.assertEqual(self.node.raft.log.last_index, 0)
        self.assertEqual(appends_in(self.node.take_flushed()), [])

    def test_48_what_is_set_aside_is_bounded(self) -> None:
        """As much as was under way when its disk became full, and no more."""
        index, size = 0, MAX_SPARE_BYTES // 10
        with self.assertRaises(NoSpace):
            for index in range(1, 100):
                self.append(entry(index, size))
        self.assertEqual(index, 10)
        self.assertEqual(self.node.raft.log.last_index, 9)
        # What it cannot take part without is taken for ever.
        for index in range(10, 1000):
            self.append(entry(index, kind=EntryKind.NOOP))
        self.assertEqual(self.node.raft.log.last_index, 999)
        self.node.raft.space_changed(True, self.node.time.now)
        for index in range(1000, 1030):
            self.append(entry(index, size))
        answers = messages_to(self.node.take_flushed(), 2)
        self.assertEqual(answers[-1], AppendEntriesResponse(1, True, 1029))

    def test_48_it_follows_and_votes(self) -> None:
        """What costs next to nothing goes on: terms, votes, entries without commands."""
        with self.assertRaises(NoSpace):
            self.append(entry(1, MAX_SPARE_BYTES), term=3)
        self.assertEqual((self.node.raft.term, self.node.raft.leader_id), (3, 2))
        answer = self.node.answer(2, Heartbeat(3, 0, 1))
        self.assertEqual(answer, HeartbeatResponse(3, 1))
        self.append(entry(1, kind=EntryKind.NOOP), term=3)
        answers = messages_to(self.node.take_flushed(), 2)
        self.assertIn(AppendEntriesResponse(3, True, 1), answers)
        self.node.time.now += 2 * ELECTION_S
        answer = self.node.answer(3, RequestVote(4, 9, 3, False))
        self.assertEqual(answer, RequestVoteResponse(4, True))

    def test_48_what_it_has_it_acknowledges(self) -> None:
        """An old request that comes again asks for no room."""
        self.node.raft.space_changed(True, self.node.time.now)
        big = entry(1, MAX_SPARE_BYTES)
        self.append(big)
        self.node.raft.space_changed(False, self.node.time.now)
        self.append(big)
        answers = messages_to(self.node.take_flushed(), 2)
        self.assertEqual(answers[-1], AppendEntriesResponse(1, True, 1))

    def test_48_it_takes_no_leadership_over(self) -> None:
        self.append(entry(1))
        with self.assertRaises(NoSpace):
            self.node.receive(2, TimeoutNow(1))
        self.assertIs(self.node.raft.role, Role.FOLLOWER)
        # But if nobody else leads, it does.
        self.node.become_leader()

    def test_the_refusal_crosses(self) -> None:
        """Between nodes, as what it is."""
        error = error_from_wire(*error_to_wire(NoSpace("Full.")))
        self.assertEqual((type(error), str(error)), (NoSpace, "Full."))


class LeaderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = leader_of(3)
        for other in (2, 3):
            self.node.acknowledge(other, self.node.raft.log.last_index)
        self.node.take_flushed()

    def sent(self, message: type) -> list[tuple[int, Any]]:
        sent = self.node.take_flushed()
        return [(out.to, out.message) for out in sent if isinstance(out.message, message)]

    def test_48_it_refuses_commands_only(self) -> None:
        for other in (2, 3):
            self.node.raft.lacks_space(other, self.node.time.now)
        self.node.raft.space_changed(False, self.node.time.now)
        last = self.node.raft.log.last_index
        with self.assertRaises(NoSpace) as caught:
            self.node.propose(b"w")
        self.assertIn("The disk of this node is full", str(caught.exception))
        self.assertEqual(self.node.raft.log.last_index, last)
        self.node.read(7)
        self.node.add_learner(4)
        self.assertEqual(self.node.raft.log.last_index, last + 1)

    def test_48_it_hands_over_once_in_a_while(self) -> None:
        """And only to one that answers, and has not said that it has no room either."""
        self.node.raft.space_changed(False, self.node.time.now)
        self.node.tick()
        [(first, _)] = self.sent(TimeoutNow)
        self.node.raft.lacks_space(first, self.node.time.now)
        self.assertFalse(self.node.raft.is_handing_over)
        told = []
        for _ in range(3 * NO_SPACE_TIMEOUTS * 6):
            self.node.time.now += 0.1
            for other in (2, 3):
                self.node.respond(other, HeartbeatResponse(self.node.raft.term, 0))
            self.node.tick()
            for to, _ in self.sent(TimeoutNow):
                told.append(to)
                self.node.raft.lacks_space(to, self.node.time.now)
        # Each of them again when what it said is not believed any more.
        self.assertEqual([first, *told[:5]], [2, 3, 2, 3, 2, 3])
        self.assertLess(len(told), 8)
        self.assertIs(self.node.raft.role, Role.LEADER)

    def test_48_it_hands_over_to_nobody_that_is_silent(self) -> None:
        self.node.time.now += ELECTION_S / 2
        self.node.respond(3, HeartbeatResponse(self.node.raft.term, 0))
        self.node.time.now += ELECTION_S * 0.75
        self.node.raft.space_changed(False, self.node.time.now)
        self.node.tick()
        self.assertEqual([to for to, _ in self.sent(TimeoutNow)], [3])

    def test_48_a_majority_without_room_is_as_bad(self) -> None:
        """What could not be committed is refused, not taken on."""
        self.node.propose(b"w")
        self.node.raft.lacks_space(2, self.node.time.now)
        self.node.propose(b"w")
        self.node.raft.lacks_space(3, self.node.time.now)
        with self.assertRaises(NoSpace) as caught:
            self.node.propose(b"w")
        self.assertIn("so many members", str(caught.exception))
        # It is asked again, though not at each heartbeat; and takes it this time.
        asked = 0
        for _ in range(12):
            self.node.time.now += 0.1
            for other in (2, 3):
                self.node.respond(other, HeartbeatResponse(self.node.raft.term, 0))
            self.node.tick()
            for to, _ in self.sent(AppendEntries):
                asked += 1
                self.node.raft.lacks_space(to, self.node.time.now)
        self.assertIn(asked, (2, 4))
        self.assertRaises(NoSpace, self.node.propose, b"w")
        self.node.acknowledge(2, self.node.raft.log.last_index)
        self.node.propose(b"w")
        self.node.propose(b"w")

    def test_48_that_is_not_believed_for_ever(self) -> None:
        """And not at all of one that has taken everything: it did not want to lead."""
        for other in (2, 3):
            self.node.raft.lacks_space(other, self.node.time.now)
        self.node.propose(b"w")
        for other in (2, 3):
            self.node.raft.lacks_space(other, self.node.time.now)
        self.assertRaises(NoSpace, self.node.propose, b"w")
        self.node.time.now += NO_SPACE_TIMEOUTS * ELECTION_S + 0.01
        self.node.propose(b"w")


class ClusterTests(ClusterTestCase):
    """Nodes under a virtual clock, whose disks become full and get room again."""

    def fill(self, cluster: Cluster[Any], *names: str) -> None:
        for name in names:
            cluster.logs[name].has_space = False
            cluster.logs[name].look_for_space()

    def make_room(self, cluster: Cluster[Any], *names: str) -> None:
        """Nobody tells the node: it finds out itself."""
        for name in names:
            cluster.logs[name].has_space = True

    def test_48_leader_without_room_lets_another_lead(self) -> None:
        cluster = Cluster(3, Journal)
        leader = cluster.await_leader()
        self.written(cluster, leader, b"before")
        self.fill(cluster, leader)
        for i in range(20):
            self.written(cluster, leader, b"%d" % i)
        now_leads = cluster.await_leader()
        self.assertNotEqual(now_leads, leader)
        # It is let alone from then on.
        term = cluster.nodes[leader].status().term
        cluster.advance(30.0)
        self.assertEqual(cluster.nodes[leader].status().term, term)
        self.make_room(cluster, leader)
        cluster.advance(SPACE_RETRY_S + 1)
        cluster.await_agreement()
        self.assertEqual(cluster.fatal, {})

    def test_48_follower_without_room_holds_nobody_up_and_catches_up(self) -> None:
        cluster = Cluster(3, Journal)
        leader = cluster.await_leader()
        full = next(n for n in cluster.nodes if n != leader)
        self.fill(cluster, full)
        for _ in range(12):
            self.written(cluster, full, b"x" * (MAX_SPARE_BYTES // 5))
        behind = cluster.logs[full]._durable.outline.last_index
        ahead = cluster.nodes[leader].status().last_index
        self.assertLess(behind, ahead - 5)
        self.assertEqual(cluster.nodes[leader].status().role, "leader")
        # Its own reads are answered up to date only when it is.
        waiting = self.read(cluster, full)
        cluster.advance(1.0)
        self.assertFalse(waiting.given)
        self.make_room(cluster, full)
        cluster.advance(SPACE_RETRY_S + 1)
        cluster.await_agreement()
        self.assertEqual(cluster.nodes[full].status().last_index, ahead)
        self.assertTrue(waiting.given)
        self.assertEqual(cluster.fatal, {})

    def test_48_no_room_anywhere(self) -> None:
        """
        Writes are refused at once, reads go on, and so does the leader; if it
        dies, another is elected; and with room, all is as before.
        """
        cluster = Cluster(3, Journal)
        leader = cluster.await_leader()
        self.written(cluster, leader, b"before")
        term = cluster.nodes[leader].status().term
        self.fill(cluster, *cluster.nodes)
        cluster.advance(15.0)
        self.assertEqual(cluster.nodes[leader].status().term, term)
        self.assertEqual(cluster.await_leader(), leader)
        for name in cluster.nodes:
            refused = self.propose(cluster, name, b"refused")
            read = self.read(cluster, name)
            cluster.advance(0.5)
            self.assertOutcome(refused, NoSpace)
            self.assertIsNone(read.outcome)
        cluster.crash(leader)
        another = cluster.await_leader()
        read = self.read(cluster, another)
        cluster.advance(0.5)
        self.assertIsNone(read.outcome)
        # Its disk is full after the restart as well.
        cluster.restart(leader)
        cluster.advance(2.0)
        self.assertOutcome(self.refused(cluster, leader), NoSpace)
        self.make_room(cluster, *cluster.nodes)
        cluster.advance(SPACE_RETRY_S + 1)
        for name in cluster.nodes:
            self.written(cluster, name, b"after")
        cluster.await_agreement()
        operations = cluster.machines[leader].operations
        self.assertEqual(operations, [b"before", b"after", b"after", b"after"])
        self.assertEqual(cluster.fatal, {})

    def refused(self, cluster: Cluster[Any], name: str) -> Answer[bytes]:
        answer = self.propose(cluster, name, b"refused")
        cluster.advance(0.5)
        return answer

    def test_48_followers_without_room(self) -> None:
        """The leader has room, but what it takes on could not be committed: it refuses."""
        cluster = Cluster(3, Journal)
        leader = cluster.await_leader()
        followers = [name for name in cluster.nodes if name != leader]
        self.fill(cluster, *followers)
        answers = [
            self.propose(cluster, leader, b"x" * (MAX_SPARE_BYTES // 5)) for _ in range(10)
        ]
        cluster.advance(1.0)
        self.assertOutcome(self.refused(cluster, leader), NoSpace)
        self.assertOutcome(self.refused(cluster, followers[0]), NoSpace)
        self.assertEqual(cluster.await_leader(), leader)
        self.make_room(cluster, followers[0])
        cluster.advance(SPACE_RETRY_S + 1)
        self.written(cluster, followers[1], b"after")
        # Of those that it had taken on, none was refused afterwards.
        self.assertEqual([a.outcome for a in answers], [b"%d" % i for i in range(1, 11)])
        self.assertEqual(cluster.fatal, {})

    def test_48_a_leader_that_is_stopped_finds_the_one_with_room(self) -> None:
        cluster = Cluster(3, Journal)
        leader = cluster.await_leader()
        cluster.advance(1.0)
        leadership = cluster.nodes[leader]._raft.leadership
        assert leadership is not None
        best = leadership.best_successor()
        (full,) = (name for name, member in cluster.members.items() if member.id == best)
        self.fill(cluster, full)
        stopped = cluster.nodes[leader].stop()
        cluster.advance(ELECTION_S / 4)
        self.successResultOf(stopped)
        (other,) = cluster.members.keys() - {leader, full}
        self.assertEqual(cluster.nodes[other].status().role, "leader")

    def test_48_nor_waits_for_one_that_there_is_not(self) -> None:
        cluster = Cluster(3, Journal)
        leader = cluster.await_leader()
        cluster.advance(1.0)
        self.fill(cluster, *(name for name in cluster.nodes if name != leader))
        stopped = cluster.nodes[leader].stop()
        cluster.advance(ELECTION_S / 4)
        self.successResultOf(stopped)

    def test_48_full_again_within_a_moment(self) -> None:
        """One timer looks for room, and none when the node has stopped."""
        cluster = Cluster(1, Journal)
        name = cluster.await_leader()
        for _ in range(3):
            self.fill(cluster, name)
            cluster.advance(SPACE_RETRY_S / 8)
            self.make_room(cluster, name)
            cluster.logs[name].look_for_space()
        self.fill(cluster, name)
        looked = 0

        def look() -> None:
            nonlocal looked
            looked += 1

        self.patch(cluster.logs[name], "look_for_space", look)
        cluster.advance(10 * SPACE_RETRY_S)
        self.assertIn(looked, (9, 10))
        stopped = cluster.nodes[name].stop()
        cluster.advance(1.0)
        self.successResultOf(stopped)
        self.assertEqual(cluster.clock.getDelayedCalls(), [])

    def test_48_no_room_to_take_a_snapshot(self) -> None:
        """It does not wait for more writes: it makes room for them."""
        options = ReplicaOptions(snapshot_threshold_bytes=20_000, snapshot_tail_entries=5)
        cluster = Cluster(1, Journal, options=options)
        name = cluster.await_leader()

        def refuse(fd: int, data: bytes | bytearray, offset: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        disk = self.patch(cluster.snapshots[name]._memory, "write", refuse)
        with capturedLogs() as events:
            for _ in range(30):
                self.written(cluster, name, b"x" * 1000)
            cluster.advance(TAKE_RETRY_S / 2)
        self.assertEqual(len([e for e in events if e["log_level"] >= LogLevel.warn]), 1)
        disk.restore()
        self.assertEqual(cluster.nodes[name].status().snapshot_index, 0)
        cluster.advance(TAKE_RETRY_S)
        self.assertGreater(cluster.nodes[name].status().snapshot_index, 20)
        self.assertGreater(cluster.nodes[name].status().first_index, 20)
        self.assertEqual(cluster.fatal, {})

    def test_48_no_room_for_a_snapshot(self) -> None:
        """It is tried now and then, and said once; with room, it is kept."""
        options = ReplicaOptions(snapshot_threshold_bytes=20_000, snapshot_tail_entries=5)
        cluster = Cluster(3, Journal, options=options)
        leader = cluster.await_leader()
        full, through = (name for name in cluster.nodes if name != leader)
        cluster.crash(full)
        for _ in range(60):
            self.written(cluster, through, b"x" * 1000)
        cluster.restart(full)
        self.fill(cluster, full)
        tried = 0

        def refuse(fd: int, data: bytes | bytearray, offset: int) -> None:
            nonlocal tried
            tried += 1
            raise OSError(errno.ENOSPC, "No space left on device")

        disk = self.patch(cluster.snapshots[full]._memory, "write", refuse)
        with capturedLogs() as events:
            cluster.advance(10 * SNAPSHOT_RETRY_TIMEOUTS * ELECTION_S)
        self.assertGreater(tried, 5)
        self.assertLessEqual(tried, 10 * (MAX_RESTARTS + 1) + 4)
        said = [e for e in events if e["log_level"] >= LogLevel.warn]
        self.assertEqual(len(said), 1, said)
        disk.restore()
        self.make_room(cluster, full)
        cluster.advance(SNAPSHOT_RETRY_TIMEOUTS * ELECTION_S + 1)
        cluster.await_agreement()
        self.assertEqual(cluster.fatal, {})

    def test_48_membership_changes_go_on(self) -> None:
        """So that a member can be removed whose disk stays full."""
        cluster = Cluster(3, Journal)
        leader = cluster.await_leader()
        self.fill(cluster, *cluster.nodes)
        cluster.advance(15.0)
        gone = next(n for n in cluster.nodes if n != leader)
        cluster.result(cluster[leader].change_membership([Remove(cluster.members[gone].id)]))
        self.assertEqual(len(cluster[leader].status().members), 2)


class ServerTests(ServerTestCase):
    """Real servers, whose disks have no room for another segment."""

    def fill(self) -> Any:
        make = segments.make_segment

        def full(files: Files, directory: str, header: SegmentHeader) -> Segment:
            if header.number > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return make(files, directory, header)

        self.patch(segments, "SEGMENT_BYTES", 1 << 20)
        return self.patch(segments, "make_segment", full)

    async def test_48_a_restart_on_a_full_disk_and_one_with_room(self) -> None:
        """Over HTTP it is 503, and a sentence."""
        server = await self.initialized()
        await self.put(server, b"k", b"v")
        await self.stop(server)
        full = self.fill()
        server = await self.restarted(server)
        node = node_of(server)
        # The present segment and the one that is ready are used up first.
        for _ in range(64):
            if not node._disk.has_space:
                break
            await self.put(server, b"k", b"w" * (1 << 20))
        await until(lambda: not node._disk.has_space, "a full disk")
        with self.assertRaises(NoSpace):
            await self.put(server, b"k", b"refused")
        url = f"http://{name_of(server)}/db/k"
        answer = await treq.put(url, b"refused", agent=Agent(reactor), timeout=PATIENCE_S)
        self.assertEqual(answer.code, 503)
        self.assertEqual((await answer.json())["error"], "no_space")
        self.assertEqual(await self.get(server, b"k"), b"w" * (1 << 20))
        self.assertEqual(status_of(server).role, "leader")
        # The first restart finds no room, and the node is there for reads.
        await self.stop(server)
        server = await self.restarted(server)
        node = node_of(server)
        await until(lambda: not node._disk.has_space, "a full disk")
        self.assertEqual(await self.get(server, b"k"), b"w" * (1 << 20))
        full.restore()
        await until(lambda: node._disk.has_space, "room")
        await self.put(server, b"k", b"x")
        await self.stop(server)
        server = await self.restarted(server)
        self.assertEqual(await self.get(server, b"k"), b"x")
        await self.put(server, b"k", b"y")
        self.assertEqual(self.fatal, [])


class FileSystemTests(SynchronousTestCase):
    """A real file system of a few megabytes, in a process that may mount one."""

    def test_48_full_file_system(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        script = f'mount -t tmpfs -o size=3500k none {directory} || exit 77; exec "$@"'
        inside = [sys.executable, "-m", "raftd.test.small_disk", directory]
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
        try:
            ended = subprocess.run(
                [*command, *inside],
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        except FileNotFoundError:
            raise SkipTest("there is no command to mount a file system with") from None
        if ended.returncode in (1, 77) and "Traceback" not in ended.stderr:
            raise SkipTest(f"no file system can be mounted here: {ended.stderr.strip()}")
        self.assertEqual((ended.returncode, ended.stdout), (0, "all there\n"), ended.stderr)
