"""
Leadership that is handed over: when it is asked for, when the leader stops, and
when its disk hangs.

Numbers in names are those of the list of defects that other systems have shipped.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred

from raftd.core.raft import MAX_DISK_STALL_TIMEOUTS
from raftd.errors import (
    ChangeRefused,
    NoLeader,
    NoQuorum,
    OutcomeUnknown,
    RaftdError,
    TransferFailed,
)
from raftd.events import LeaderChanged
from raftd.test.drivers import Answer, ClusterTestCase, Journal, command
from raftd.testing import Cluster

HEARTBEAT_S = 0.1
ELECTION_S = 0.6
REQUEST_S = 5.0


class Load:
    """Writers that each write again as soon as they are answered, all through other nodes."""

    def __init__(self, cluster: Cluster[Any], names: list[str], writers: int = 4) -> None:
        self._cluster = cluster
        self._stopped = False
        self._number = 0
        self.failed: list[RaftdError] = []
        #: When writes were acknowledged.
        self.acknowledged: list[float] = []
        for i in range(writers):
            self._write(names[i % len(names)])

    def stop(self) -> None:
        self._stopped = True

    @property
    def longest_gap_s(self) -> float:
        """The longest time without an acknowledged write."""
        times = self.acknowledged
        return max(b - a for a, b in pairwise(times))

    def _write(self, name: str) -> None:
        if self._stopped:
            return
        self._number += 1

        def answered(outcome: bytes | RaftdError) -> None:
            if isinstance(outcome, RaftdError):
                self.failed.append(outcome)
            else:
                self.acknowledged.append(self._cluster.clock.seconds())
            self._cluster.clock.callLater(0.001, self._write, name)

        answer: Answer[bytes] = Answer(answered)
        self._cluster.nodes[name].propose(command(b"%d" % self._number), answer)


class LeadershipCase(ClusterTestCase):
    def assert_each_once(self, cluster: Cluster[Any], count: int) -> None:
        """All that was acknowledged is there, and nothing twice."""
        cluster.await_agreement()
        for name in cluster.nodes:
            operations = cluster.machines[name].operations
            self.assertEqual(len(set(operations)), len(operations), f"twice at {name}")
            self.assertGreaterEqual(len(operations), count)


class TransferTests(LeadershipCase):
    def test_to_whom_it_is_asked_through_whomever(self) -> None:
        cluster, _, _ = self.led(3, Journal)
        for through in sorted(cluster.nodes):
            for successor in sorted(cluster.nodes):
                cluster.result(cluster[through].transfer(cluster.members[successor].id))
                self.assertEqual(cluster.await_leader(), successor)

    def test_to_whoever_is_best_prepared(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        cluster.logs[one].delay_seconds = None
        self.written(cluster, leader, b"w")
        cluster.result(cluster[one].transfer())
        cluster.logs[one].delay_seconds = 0.001
        cluster.logs[one].flush()
        self.assertEqual(cluster.await_leader(), other)

    def test_writes_meanwhile_wait_and_happen_once(self) -> None:
        """Also those that come to the leader, or are forwarded to it, in the middle of it."""
        cluster, leader, (one, other) = self.led(3, Journal)
        # It takes a while: the successor must have the whole log first.
        cluster.logs[one].delay_seconds = 0.2
        first = self.propose(cluster, leader, b"first")
        cluster.advance(0.01)
        transferred = cluster[leader].transfer(cluster.members[one].id)
        self.assertNoResult(transferred)
        raft = cluster.nodes[leader]._raft
        meanwhile: list[Answer[bytes]] = []
        for i in range(30):
            self.assertTrue(raft.is_handing_over)
            name = (leader, one, other)[i % 3]
            meanwhile.append(self.propose(cluster, name, b"m%d" % i))
            cluster.advance(0.005)
        self.assertFalse(any(answer.given for answer in meanwhile))
        cluster.result(transferred)
        cluster.logs[one].delay_seconds = 0.001
        cluster.advance_until(lambda: all(answer.given for answer in meanwhile), 1.0)
        for answer in (first, *meanwhile):
            self.assertIsInstance(answer.outcome, bytes)
        self.assert_each_once(cluster, 31)
        self.assertEqual(cluster.await_leader(), one)

    def test_reads_meanwhile_are_answered(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        cluster.logs[one].delay_seconds = 0.2
        self.written(cluster, leader, b"w")
        transferred = cluster[leader].transfer(cluster.members[one].id)
        reads = [self.read(cluster, name) for name in (leader, other)]
        cluster.advance(0.05)
        self.assertNoResult(transferred)
        for read in reads:
            self.assertIsNone(read.outcome)
        cluster.result(transferred)

    def test_successor_that_does_not_answer(self) -> None:
        """The leader leads on, and what has waited is written."""
        cluster, leader, (one, other) = self.led(3, Journal)
        term = cluster.nodes[leader].status().term
        cluster.crash(one, power_lost=True)
        self.written(cluster, leader, b"it lacks this")
        began = cluster.clock.seconds()
        transferred = cluster[other].transfer(cluster.members[one].id)
        failed: list[Any] = []
        transferred.addErrback(failed.append)
        cluster.advance(0.05)
        waiting = self.propose(cluster, other, b"w")
        cluster.advance_until(lambda: failed)
        failed[0].trap(TransferFailed)
        self.assertLess(cluster.clock.seconds() - began, ELECTION_S + 0.1)
        cluster.advance(0.1)
        self.assertIsInstance(waiting.outcome, bytes)
        self.assertEqual(cluster.nodes[leader].status().role, "leader")
        self.assertEqual(cluster.nodes[leader].status().term, term)

    def test_to_who_cannot_lead(self) -> None:
        cluster, leader, (one, _) = self.led(3, Journal)
        learner = cluster.add(learner=True).status().member.id
        for through in (leader, one):
            for nobody in (learner, 99):
                refused = cluster[through].transfer(nobody)
                self.assertRaises(ChangeRefused, cluster.result, refused)
        alone, only, _ = self.led(1, Journal)
        self.assertRaises(ChangeRefused, alone.result, alone[only].transfer())

    def test_to_who_leads_already(self) -> None:
        cluster, leader, (one, _) = self.led(3, Journal)
        term = cluster.nodes[leader].status().term
        for through in (leader, one):
            cluster.result(cluster[through].transfer(cluster.members[leader].id))
        cluster.advance(1.0)
        self.assertEqual(cluster.nodes[leader].status().term, term)

    def test_without_a_leader(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        cluster.crash(leader)
        cluster.crash(other)
        cluster.advance(0.02)
        began = cluster.clock.seconds()
        self.assertRaises(NoQuorum, cluster.result, cluster[one].transfer())
        self.assertLess(cluster.clock.seconds() - began, REQUEST_S + 0.1)

    def test_forwarded_request_is_never_forwarded_again(self) -> None:
        cluster, _, (one, _) = self.led(3, Journal)
        asked = cluster.nodes[one].transfer(None, 1000, forwarded=True)
        self.assertRaises(NoLeader, cluster.result, asked)


class StopTests(LeadershipCase):
    def _stop_under_load(self, size: int, seed: int = 0) -> None:
        cluster, leader, others = self.led(size, Journal, seed=seed)
        load = Load(cluster, others)
        cluster.advance(0.3)
        node = cluster.nodes[leader]
        stopped: Deferred[None] = node.stop()
        cluster.advance_until(lambda: stopped.called)
        self.successResultOf(stopped)
        cluster.nodes.pop(leader)
        cluster.network.ended(cluster.members[leader].id)
        cluster.advance(1.0)
        load.stop()
        cluster.advance(0.1)
        self.assertEqual(load.failed, [], f"seed {seed}")
        self.assertLess(load.longest_gap_s, 2 * HEARTBEAT_S, f"seed {seed}")
        self.assertIn(cluster.await_leader(others), others)
        self.assert_each_once(cluster, len(load.acknowledged))
        self.assertGreater(len(load.acknowledged), 300)

    def test_leader_that_stops_hands_over_and_no_write_fails(self) -> None:
        """Within a heartbeat or two, far below the election timeout."""
        for seed in range(5):
            self._stop_under_load(3, seed)
        self._stop_under_load(5)

    def test_who_is_told_to_stop_meanwhile_takes_nothing_on(self) -> None:
        """What comes to itself until it stops is answered, or certainly did not happen."""
        cluster, leader, others = self.led(3, Journal)
        stopped = cluster.nodes[leader].stop()
        answers: list[Answer[bytes]] = []
        while not stopped.called:
            answers.append(self.propose(cluster, leader, b"%d" % len(answers)))
            cluster.advance(0.001)
        cluster.nodes.pop(leader)
        cluster.network.ended(cluster.members[leader].id)
        cluster.await_leader(others)
        cluster.await_agreement()
        happened = cluster.machines[others[0]].operations
        self.assertTrue(all(answer.given for answer in answers))
        for i, answer in enumerate(answers):
            if isinstance(answer.outcome, bytes):
                self.assertIn(b"%d" % i, happened)
            elif not isinstance(answer.outcome, OutcomeUnknown):
                self.assertNotIn(b"%d" % i, happened)

    def test_all_stopped_at_once_end_in_time(self) -> None:
        cluster, _, _ = self.led(3, Journal)
        self.written(cluster, "n1", b"w")
        began = cluster.clock.seconds()
        stopped = [node.stop() for node in cluster.nodes.values()]
        cluster.advance_until(lambda: all(s.called for s in stopped))
        self.assertLess(cluster.clock.seconds() - began, 2 * ELECTION_S + 0.1)
        for name, ended in zip(list(cluster.nodes), stopped, strict=True):
            self.successResultOf(ended)
            cluster.network.ended(cluster.members[name].id)
        cluster.advance(10.0)
        self.assertEqual(cluster.clock.getDelayedCalls(), [])

    def test_only_voter_stops_at_once(self) -> None:
        cluster, leader, _ = self.led(1, Journal)
        cluster.add(learner=True)
        self.successResultOf(cluster.nodes[leader].stop())


class DiskTests(LeadershipCase):
    def test_53_leader_whose_disk_hangs_hands_over(self) -> None:
        """The others could go on without it, and do."""
        for size in (3, 5):
            cluster, leader, others = self.led(size, Journal)
            load = Load(cluster, others)
            cluster.advance(0.3)
            self.assertEqual(load.failed, [])
            cluster.logs[leader].delay_seconds = None
            bound_s = MAX_DISK_STALL_TIMEOUTS * ELECTION_S + 2 * HEARTBEAT_S
            cluster.advance(bound_s)
            new = cluster.await_leader(others)
            self.assertNotEqual(new, leader)
            now = len(load.acknowledged)
            late: Answer[bytes] = self.propose(cluster, others[0], b"late")
            cluster.advance(0.1)
            self.assertIsInstance(late.outcome, bytes)
            cluster.advance(REQUEST_S + 1.0)
            self.assertGreater(len(load.acknowledged), now + 100)
            load.stop()
            # What the former leader had taken on may have happened: nothing else failed.
            for reason in load.failed:
                self.assertIsInstance(reason, OutcomeUnknown)
            self.assertLessEqual(len(load.failed), 4)
            cluster.logs[leader].delay_seconds = 0.001
            cluster.logs[leader].flush()
            self.assert_each_once(cluster, len(load.acknowledged))

    def test_53_slow_disk_of_a_leader_costs_no_leadership(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        cluster.logs[leader].delay_seconds = 0.3
        load = Load(cluster, others)
        changes: list[LeaderChanged] = []
        cluster[others[0]].observe(
            lambda event: changes.append(event) if isinstance(event, LeaderChanged) else None
        )
        cluster.advance(20.0)
        load.stop()
        self.assertEqual((changes, load.failed), ([], []))
        self.assertGreater(len(load.acknowledged), 100)
        self.assertEqual(cluster.await_leader(), leader)

    def test_53_disk_that_hangs_while_nothing_is_written_is_no_reason(self) -> None:
        cluster, leader, _ = self.led(3, Journal)
        term = cluster.nodes[leader].status().term
        cluster.logs[leader].delay_seconds = None
        cluster.advance(10.0)
        self.assertEqual(cluster.await_leader(), leader)
        self.assertEqual(cluster.nodes[leader].status().term, term)

    def test_53_flood_of_clients_costs_no_leadership(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        term = cluster.nodes[leader].status().term
        load = Load(cluster, [leader, *others], writers=300)
        cluster.advance(1.0)
        load.stop()
        cluster.advance(0.5)
        self.assertEqual(load.failed, [])
        self.assertGreater(len(load.acknowledged), 10_000)
        self.assertEqual(cluster.nodes[leader].status().term, term)
