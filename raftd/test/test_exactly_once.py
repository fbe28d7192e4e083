"""Exactly once, on whole clusters: sessions over the nodes that ship."""

from __future__ import annotations

from collections.abc import Generator

from twisted.trial.unittest import SynchronousTestCase

from raftd import sessions, snapshotting
from raftd.core.messages import Command, encode_command
from raftd.errors import RaftdError, SessionExpired
from raftd.events import Event, SnapshotTaken
from raftd.replica import ReplicaOptions
from raftd.session_client import Session
from raftd.sessions import OPEN_SESSION, Sessions, decode_result
from raftd.test.drivers import Journal
from raftd.testing import Cluster


class Counted(Sessions):
    """Counts the entries that ask for `b"a"`, whether it is applied for them or not."""

    def __init__(self) -> None:
        self.log = Journal()
        self.attempts = 0
        super().__init__(self.log)

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        self.attempts += command.operation == b"a"
        return super().apply(index, time_ms, command)


class LeaderCrashes(SynchronousTestCase):
    def test_29_an_answer_lost_with_the_leader_is_asked_for_again_and_applies_once(
        self,
    ) -> None:
        """At whatever moment the leader crashes, and whoever leads afterwards."""
        attempts = [self.applied_with_a_crash_after(n * 0.0005, n) for n in range(1, 24)]
        # Else no answer was lost behind its commit, and nothing was shown.
        self.assertGreater(attempts.count(2), 2)
        self.assertGreater(attempts.count(1), 2)

    def applied_with_a_crash_after(self, delay_s: float, seed: int) -> int:
        """How many entries it took to apply one command once."""
        cluster = Cluster(3, Counted, seed=seed)
        leader = cluster.await_leader()
        own = next(name for name in cluster.nodes if name != leader)
        session = cluster.result(Session.open(cluster.nodes[own], cluster.clock))
        result = session.propose(b"a")
        cluster.advance(delay_s)
        cluster.crash(leader)
        self.assertEqual(cluster.result(result), b"1")
        self.assertEqual(cluster.result(session.propose(b"b")), b"2")
        cluster.restart(leader)
        cluster.await_agreement()
        machines = list(cluster.machines.values())
        for machine in machines:
            self.assertEqual(machine.log.operations, [b"a", b"b"])
            self.assertEqual(machine.digest(), machines[0].digest())
        cluster.result(session.close())
        cluster.await_agreement()
        self.assertEqual([len(machine) for machine in machines], [0, 0, 0])
        return machines[0].attempts


class SessionsInSnapshots(SynchronousTestCase):
    """31: the table of sessions is in every snapshot, as of its index."""

    OPTIONS = ReplicaOptions(snapshot_threshold_bytes=2_000, snapshot_tail_entries=5)

    def send(self, cluster: Cluster[Counted], name: str, command: Command) -> bytes:
        """What a command of a session comes to, in the end, sent by hand."""
        outcome: list[bytes | RaftdError] = []
        cluster.nodes[name].propose(encode_command(command), outcome.append)
        cluster.advance_until(lambda: outcome)
        assert isinstance(outcome[0], bytes), outcome
        result = decode_result(outcome[0])
        if isinstance(result, RaftdError):
            raise result
        return result

    def opened(self, cluster: Cluster[Counted], name: str) -> int:
        return int.from_bytes(self.send(cluster, name, Command(b"", OPEN_SESSION)), "little")

    def fill(self, cluster: Cluster[Counted], name: str) -> None:
        """Enough that the log begins behind all that there was."""
        last = cluster.nodes[name].status().last_index
        for i in range(1000):
            if cluster.nodes[name].status().first_index > last:
                return
            cluster.result(cluster[name].propose(b"%d" % i + b"x" * 50))
        self.fail("there was no snapshot")

    def test_31_retry_is_known_after_a_restart_from_snapshots(self) -> None:
        cluster = Cluster(3, Counted, options=self.OPTIONS)
        leader = cluster.await_leader()
        session = self.opened(cluster, leader)
        command = Command(b"a", session, 1)
        first = self.send(cluster, leader, command)
        self.fill(cluster, leader)
        cluster.await_agreement()
        for name in list(cluster.nodes):
            cluster.crash(name)
        for name in cluster.members:
            cluster.restart(name)
        cluster.await_leader()
        cluster.await_agreement()
        for name in cluster.nodes:
            self.assertEqual(self.send(cluster, name, command), first)
        cluster.await_agreement()
        for machine in cluster.machines.values():
            self.assertEqual(machine.log.operations.count(b"a"), 1)

    def test_31_retry_is_known_to_who_came_by_snapshot(self) -> None:
        """And leads now; the one that had applied it is gone."""
        cluster = Cluster(3, Counted, options=self.OPTIONS)
        leader = cluster.await_leader()
        away, other = (name for name in cluster.nodes if name != leader)
        cluster.crash(away)
        session = self.opened(cluster, leader)
        command = Command(b"a", session, 1)
        first = self.send(cluster, leader, command)
        self.fill(cluster, leader)
        cluster.restart(away)
        cluster.await_agreement()
        self.assertEqual(cluster.machines[away].attempts, 0, "it came by snapshot")
        cluster.result(cluster[leader].transfer(cluster.members[away].id))
        cluster.crash(leader)
        self.assertEqual(self.send(cluster, away, command), first)
        self.send(cluster, other, Command(b"a", session, 2, 2))
        self.assertEqual(cluster.machines[away].log.operations.count(b"a"), 2)

    def test_31_table_is_no_newer_than_the_state(self) -> None:
        """Commands that are applied while a snapshot is drawn are applied again behind it."""
        self.patch(snapshotting, "SLICE_S", -1.0)  # a pause after each slice
        options = ReplicaOptions(snapshot_threshold_bytes=60_000, snapshot_tail_entries=5)
        cluster = Cluster(1, Counted, options=options)
        leader = cluster.await_leader()
        clients = [self.opened(cluster, leader) for _ in range(4)]
        cluster.snapshots[leader].delay_seconds = 0.02
        sequence = 0
        #: (last included index, what was applied when it was done).
        taken: list[tuple[int, int]] = []

        def note(event: Event) -> None:
            if isinstance(event, SnapshotTaken):
                applied = cluster.nodes[leader].status().applied_index
                taken.append((event.metadata.last_included_index, applied))

        cluster[leader].observe(note)
        expected = []
        while len(taken) < 2:
            sequence += 1
            for session in clients:
                operation = b"%d-%d" % (session, sequence) + b"x" * 1000
                expected.append(operation)
                command = Command(operation, session, sequence, sequence)
                self.send(cluster, leader, command)
        for index, applied in taken:
            self.assertGreater(applied, index + 5, "it was drawn at once")
        cluster.crash(leader)
        cluster.restart(leader)
        cluster.await_leader()
        cluster.await_agreement()
        self.assertEqual(cluster.machines[leader].log.operations, expected)
        # Each of them is known, too.
        command = Command(b"again", clients[0], sequence, sequence)
        self.send(cluster, leader, command)
        self.assertEqual(cluster.machines[leader].log.operations, expected)

    def test_31_sessions_expire_by_the_log_alike_on_all_nodes(self) -> None:
        """Whenever a node was started, and whether it has the log or a snapshot."""
        self.patch(sessions, "SESSION_TTL_MS", 2_000)
        cluster = Cluster(3, Counted, options=self.OPTIONS)
        leader = cluster.await_leader()
        away, other = (name for name in cluster.nodes if name != leader)
        idle, busy = self.opened(cluster, leader), self.opened(cluster, leader)
        for sequence in range(1, 6):
            self.send(cluster, other, Command(b"b", busy, sequence, sequence))
            cluster.advance(0.5)
            if sequence == 2:
                cluster.crash(away)
        cluster.crash(other)
        cluster.restart(other)
        self.fill(cluster, leader)
        cluster.restart(away)
        cluster.await_agreement()
        self.send(cluster, other, Command(b"b", busy, 6, 6))
        late = Command(b"c", idle, 1)
        self.assertRaises(SessionExpired, self.send, cluster, other, late)
        cluster.await_agreement()  # which compares the tables
        for machine in cluster.machines.values():
            self.assertEqual(len(machine), 1)
            self.assertNotIn(b"c", machine.log.operations)

    def test_31_time_in_which_the_cluster_is_down_does_not_count(self) -> None:
        self.patch(sessions, "SESSION_TTL_MS", 2_000)
        cluster = Cluster(3, Counted, options=self.OPTIONS)
        leader = cluster.await_leader()
        session = self.opened(cluster, leader)
        first = self.send(cluster, leader, Command(b"a", session, 1))
        cluster.await_agreement()
        for name in list(cluster.nodes):
            cluster.crash(name)
        cluster.advance(60.0)
        for name in cluster.members:
            cluster.restart(name)
        cluster.await_leader()
        self.assertEqual(self.send(cluster, leader, Command(b"a", session, 1)), first)
