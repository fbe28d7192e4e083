"""
The node's driver in a cluster in memory: leaders, disks, reads, and what clients are told.

Numbers in names are those of the list of defects that other systems have shipped.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from raftd import node as node_module
from raftd.core.messages import (
    RequestVote,
)
from raftd.core.settings import Settings
from raftd.errors import (
    DidNotHappen,
    NoLeader,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Stopped,
    StorageFailed,
    TooStale,
)
from raftd.kv.interfaces import LOCAL
from raftd.kv.operations import Put
from raftd.test.drivers import Alone, Answer, ClusterTestCase, Journal, SlowJournal, command
from raftd.test.stores import StoreCluster
from raftd.testing import Cluster

#: Slow enough that nothing happens just because a heartbeat comes by.
SLOW = {"heartbeat_interval_ms": 1000, "election_timeout_ms": 6000}
HEARTBEAT_S = 0.1
ELECTION_S = 0.6
REQUEST_S = 5.0


class LeaderTests(ClusterTestCase):
    def test_12_leader_without_quorum_steps_down_and_says_so(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        cluster.partition([leader], others)
        pending = self.propose(cluster, leader, b"pending")
        cluster.advance(ELECTION_S + HEARTBEAT_S)
        self.assertNotEqual(cluster.nodes[leader].status().role, "leader")
        cluster.advance_until(
            lambda: cluster.nodes[leader].status().role == "pre-candidate", ELECTION_S * 3
        )
        self.assertFalse(pending.given, "it is still possible that it happens")

        late = self.propose(cluster, leader, b"late")
        read = self.read(cluster, leader)
        cluster.advance(REQUEST_S + 0.01)
        self.assertOutcome(pending, OutcomeUnknown)
        self.assertOutcome(late, NoQuorum)
        self.assertOutcome(read, NoQuorum)
        self.assertIn("1 of 3 voters", str(late.outcome))

    def test_20_replication_starts_at_once(self) -> None:
        cluster, leader, (follower, _) = self.led(3, Journal, **SLOW)
        for name in (leader, follower):
            began = cluster.clock.seconds()
            answer = self.propose(cluster, name, b"now")
            cluster.advance(0.02)
            self.assertTrue(answer.given, f"not within 20 ms of {began}, through {name}")
            self.assertIsInstance(answer.outcome, bytes)
        cluster.advance(0.02)
        for name, machine in cluster.machines.items():
            self.assertEqual(machine.operations, [b"now", b"now"], name)

    def test_21_single_node_waits_for_its_own_flush(self) -> None:
        cluster, leader, _ = self.led(1, Journal)
        log = cluster.logs[leader]
        log.delay_seconds = None
        write = self.propose(cluster, leader, b"w")
        cluster.advance(2.0)
        self.assertEqual(log.unflushed, 1)
        self.assertFalse(write.given)
        self.assertEqual(cluster.machines[leader].operations, [])

        log.flush()
        cluster.advance(0.001)
        self.assertEqual(write.outcome, b"1")

    def test_large_application_is_cut_into_slices(self) -> None:
        """The pieces of 53: heartbeats go on, and reads wait for the whole of it."""
        self._apply_slowly(steps=500, leaders=1)

    def test_53_without_slices_the_leader_would_be_lost(self) -> None:
        """The same work in one piece, to show that the test before can fail."""
        self.patch(SlowJournal, "step_s", 1.0)
        self._apply_slowly(steps=1, leaders=2)

    def _apply_slowly(self, steps: int, leaders: int) -> None:
        cluster, leader, (follower, _) = self.led(3, SlowJournal, request_timeout_ms=30_000)
        for machine in cluster.machines.values():
            machine.clock = cluster.clock
            machine.steps = steps
        term = cluster.nodes[leader].status().term
        slow = self.propose(cluster, follower, b"slow")
        cluster.advance(0.01)
        read = self.read(cluster, follower)
        cluster.advance_until(lambda: slow.given and read.given)
        self.assertIsInstance(slow.outcome, bytes)
        cluster.await_agreement()
        cluster.await_leader()
        terms = {node.status().term for node in cluster.nodes.values()}
        self.assertEqual(terms == {term}, leaders == 1, "whether leadership was kept")

    def test_nothing_spins(self) -> None:
        """A node that can do nothing does nothing, and waits for what is due."""

        def calls_a_second(cluster: Cluster[Any]) -> float:
            count = 0
            call_later = cluster.clock.callLater

            def counting(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                return call_later(*args, **kwargs)

            cluster.clock.callLater = counting  # type: ignore[method-assign]
            cluster.advance(4.0)
            cluster.clock.callLater = call_later  # type: ignore[method-assign]
            return count / 4.0

        cluster, leader, (one, other) = self.led(3, Journal, request_timeout_ms=10_000)
        self.assertLess(calls_a_second(cluster), 400, "idle")
        cluster.partition([leader], [one, other])
        for name in cluster.nodes:
            self.propose(cluster, name, b"w")
            self.read(cluster, name)
        self.assertLess(calls_a_second(cluster), 800, "the leader is cut off")
        cluster.partition([one], [other])
        for name in cluster.nodes:
            self.propose(cluster, name, b"w")
            self.read(cluster, name)
        self.assertLess(calls_a_second(cluster), 800, "everybody is alone")


class DiskTests(ClusterTestCase):
    def test_47_failed_flush_stops_the_node(self) -> None:
        alone = Alone(1)
        alone.advance(0.01)
        self.assertEqual(alone.node.status().role, "leader")
        again: list[object] = []
        pending: Answer[bytes] = Answer(
            lambda _: alone.node.propose(command(b"again"), again.append)
        )
        alone.log.fail()
        alone.node.propose(command(b"w"), pending)
        read = alone.read()
        alone.turn()
        writes = len(alone.log.writes)
        self.assertOutcome(pending, OutcomeUnknown)
        self.assertIsInstance(again[0], Stopped)
        self.assertEqual(len(alone.fatal), 1)
        self.assertIsInstance(alone.fatal[0], StorageFailed)
        self.assertIs(alone.read().outcome.__class__, Stopped)
        alone.propose(b"more")
        alone.advance(10.0)
        self.assertEqual(len(alone.log.writes), writes, "something was written afterwards")
        self.assertEqual(len(alone.fatal), 1)
        self.assertEqual(len(read.outcomes), 1)
        self.assertEqual(alone.clock.getDelayedCalls(), [])

    def test_disk_that_hangs_costs_bounded_memory(self) -> None:
        """Nothing is answered in a term that is not durable, and all of it asked again."""
        self.patch(node_module, "MAX_ANSWERS_OWED", 50)
        cluster, leader, (slow, other) = self.led(3, Journal)
        normal_s = cluster.logs[slow].delay_seconds
        cluster.logs[slow].delay_seconds = 300.0
        transfer = cluster[leader].transfer(cluster.members[other].id)
        cluster.advance(60.0)
        self.successResultOf(transfer)
        hanging = cluster.nodes[slow]
        self.assertEqual(len(hanging._answers), 50)
        self.assertLessEqual(len(hanging._raft._outbox._held), 50)
        self.assertEqual(cluster.await_leader(), other)
        self.written(cluster, leader, b"meanwhile")
        cluster.logs[slow].delay_seconds = normal_s
        cluster.advance(300.0)
        self.assertEqual(hanging._answers, {})
        cluster.await_agreement()
        self.assertEqual(cluster.await_leader(), other)
        self.assertEqual(cluster.fatal, {})

    def test_47_the_others_go_on(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        cluster.logs[leader].fail()
        pending = self.propose(cluster, leader, b"w")
        cluster.advance(0.01)
        self.assertOutcome(pending, OutcomeUnknown)
        self.assertIsInstance(cluster.fatal[leader], StorageFailed)
        cluster.await_leader(others)
        self.written(cluster, others[0], b"next")

    def test_50_no_acknowledged_write_is_lost_when_all_crash(self) -> None:
        for seed in range(40):
            self._crash_all(seed)

    def _crash_all(self, seed: int) -> None:
        cluster, _, _ = self.led(3, Journal, seed=seed)
        writes: dict[bytes, Answer[bytes]] = {}
        number = 0
        for _ in range(3):
            for _ in range(cluster.random.randrange(1, 40)):
                name = cluster.random.choice(sorted(cluster.nodes))
                operation = b"%d" % number
                number += 1
                writes[operation] = self.propose(cluster, name, operation)
                cluster.advance(cluster.random.random() * 0.002)
            for name in list(cluster.nodes):
                kept = cluster.random.randrange(cluster.logs[name].unflushed + 1)
                cluster.crash(name, kept=kept)
            for name in cluster.members:
                cluster.restart(name)
            cluster.await_leader()
            cluster.await_agreement()
            self._check(seed, cluster, writes)

    def _check(
        self, seed: int, cluster: Cluster[Journal], writes: dict[bytes, Answer[bytes]]
    ) -> None:
        journals = [machine.operations for machine in cluster.machines.values()]
        self.assertTrue(all(journal == journals[0] for journal in journals))
        self.assertEqual(len(set(journals[0])), len(journals[0]), f"twice, seed {seed}")
        for operation, answer in writes.items():
            if isinstance(answer.outcome, bytes):
                self.assertIn(operation, journals[0], f"lost, seed {seed}")
                self.assertEqual(journals[0][int(answer.outcome) - 1], operation)
            elif isinstance(answer.outcome, DidNotHappen):
                self.assertNotIn(operation, journals[0], f"it happened, seed {seed}")


class ReadTests(ClusterTestCase):
    def test_24_27_read_waits_for_the_replay_after_a_restart_of_all(self) -> None:
        cluster, leader, _ = self.led(3, SlowJournal)
        for machine in cluster.machines.values():
            machine.clock = cluster.clock
        for operation in (b"a", b"slow", b"last"):
            self.written(cluster, leader, operation)
        cluster.await_agreement()
        for name in list(cluster.nodes):
            cluster.crash(name)
        seen: dict[str, tuple[object, list[bytes]]] = {}

        def answered(name: str, outcome: object) -> None:
            seen[name] = outcome, list(cluster.machines[name].operations)

        for name in cluster.members:
            cluster.restart(name)
            cluster.machines[name].clock = cluster.clock
            # They know what was committed, and are at it for longer than the
            # election takes that the reads wait for.
            cluster.machines[name].steps = 500
            cluster.nodes[name].read(partial(answered, name))
        cluster.advance_until(lambda: len(seen) == 3)
        for name in cluster.members:
            self.assertEqual(seen[name], (None, [b"a", b"slow", b"last"]), name)

    def test_24_read_sees_what_another_node_has_acknowledged(self) -> None:
        cluster = StoreCluster(3)
        leader = cluster.await_leader()
        one, other = (name for name in cluster.nodes if name != leader)
        # The follower that is read from hears of commits late.
        cluster.logs[other].delay_seconds = 0.05
        for i in range(10):
            cluster.put(one, b"k", b"%d" % i)
            self.assertEqual(cluster.get(other, b"k"), b"%d" % i)

    def test_24_deposed_leader_confirms_no_read(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        cluster.partition([leader], others)
        new = cluster.await_leader(others)
        self.written(cluster, new, b"newer")
        # It may not know yet that it has been deposed.
        read = self.read(cluster, leader)
        cluster.advance(1.0)
        self.assertFalse(read.given)
        cluster.heal()
        cluster.advance_until(lambda: read.given)
        self.assertIsNone(read.outcome)
        self.assertEqual(cluster.machines[leader].operations, [b"newer"])

    def _read_recent(
        self, cluster: Cluster[Any], name: str, staleness_s: float
    ) -> Answer[None]:
        answer: Answer[None] = Answer()
        self.answers.append(answer)
        cluster.nodes[name].read_recent(staleness_s, answer)
        return answer

    def test_recent_read_asks_only_when_it_must(self) -> None:
        cluster, leader, (one, _) = self.led(3, Journal)
        for name in (leader, one):
            first = self._read_recent(cluster, name, 0.5)
            self.assertFalse(first.given, "it knows of nothing recent yet")
            cluster.advance(0.01)
            self.assertIsNone(first.outcome)
            cluster.advance(0.4)
            self.assertTrue(self._read_recent(cluster, name, 0.5).given)
            cluster.advance(0.1)
            self.assertFalse(self._read_recent(cluster, name, 0.5).given)
            cluster.advance(0.01)

    def test_recent_read_is_as_old_as_the_question_not_as_the_answer(self) -> None:
        """What was acknowledged after the leader was asked may be missing."""
        alone = Alone(3)
        alone.heartbeat(2)
        read = alone.read()
        alone.turn()
        asked_at = alone.clock.seconds()
        for _ in range(10):
            alone.advance(0.1)
            alone.heartbeat(2)
        alone.transport.peers[2].asked[0].callback(0)
        self.assertIsNone(read.outcome)
        recent: list[Answer[None]] = [Answer(), Answer()]
        alone.node.read_recent(alone.clock.seconds() - asked_at + 0.001, recent[0])
        alone.node.read_recent(alone.clock.seconds() - asked_at - 0.001, recent[1])
        self.assertTrue(recent[0].given)
        self.assertFalse(recent[1].given)

    def test_recent_read_that_cannot_be_had_says_how_old_the_state_is(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        self._read_recent(cluster, one, 0.5)
        cluster.advance(0.1)
        cluster.partition([one], [leader, other])
        self.assertTrue(self._read_recent(cluster, one, 0.5).given)
        cluster.advance(2.0)
        late = self._read_recent(cluster, one, 0.5)
        cluster.advance_until(lambda: late.given)
        self.assertOutcome(late, TooStale)
        said = str(late.outcome)
        (age,) = re.findall(r"up to date (\d+\.\d{3}) s ago", said)
        self.assertGreater(float(age), 2.1)
        self.assertIn("at most 0.500 s was asked for", said)
        self.assertIn("reaches 1 of 3 voters", said)
        # What is old enough for one is not too old for another.
        self.assertTrue(self._read_recent(cluster, one, float(age) + 0.1).given)

    def test_recent_read_at_a_node_that_never_confirmed_any(self) -> None:
        alone = Alone(3)
        recent: Answer[None] = Answer()
        alone.node.read_recent(60.0, recent)
        alone.advance(10.0)
        self.assertOutcome(recent, TooStale)
        self.assertIn("not since it started", str(recent.outcome))

    def test_recent_read_at_a_node_that_has_stopped_is_no_matter_of_age(self) -> None:
        cluster, leader, _ = self.led(1, Journal)
        node = cluster.nodes[leader]
        cluster.stop(leader)
        recent: Answer[None] = Answer()
        node.read_recent(0.001, recent)
        self.assertOutcome(recent, Stopped)

    def test_recent_read_at_a_deposed_leader_is_never_older_than_asked(self) -> None:
        for seed in range(5):
            cluster, leader, others = self.led(3, Journal, seed=seed)
            self.written(cluster, leader, b"old")
            self._read_recent(cluster, leader, 1.0)
            cluster.advance(0.05)
            cluster.partition([leader], others)
            acknowledged: list[float] = []
            end = cluster.clock.seconds() + 3.0
            cluster.await_leader(others)
            while cluster.clock.seconds() < end:
                self.written(cluster, others[0], b"%d" % len(acknowledged))
                acknowledged.append(cluster.clock.seconds())
                now = cluster.clock.seconds()
                if self._read_recent(cluster, leader, 1.0).given:
                    # None of these has got there.
                    self.assertGreaterEqual(acknowledged[0], now - 1.0)
            late = self._read_recent(cluster, leader, 1.0)
            self.assertFalse(late.given)
            cluster.heal()
            cluster.advance_until(lambda: late.given)  # noqa: B023
            seen = len(cluster.machines[leader].operations)
            self.assertGreaterEqual(seen, len(acknowledged))

    def test_reads_of_a_lost_leader_are_asked_of_the_next(self) -> None:
        """A host that is gone says nothing, and nobody waits until that times out."""
        cluster, leader, (one, other) = self.led(3, Journal)
        cluster.crash(leader, power_lost=True)
        reads = []
        for _ in range(10):
            reads.append(self.read(cluster, one))
            cluster.advance(0.01)
        cluster.await_leader([one, other])
        cluster.advance(0.2)
        for read in reads:
            self.assertTrue(read.given)
            self.assertIsNone(read.outcome)

    def test_lost_reads_are_asked_again(self) -> None:
        """A leader that is deposed with reads in hand brings them to its successor."""
        settings = Settings(heartbeat_interval_ms=1000, election_timeout_ms=6000)
        alone = Alone(3, settings=settings, request_timeout_s=30.0)
        alone.advance(12.0)  # it stands for election, and nobody answers
        vote = alone.transport.peers[2].sent[-1]
        self.assertEqual(type(vote[0]).__name__, "PreVote")
        read = alone.read()
        alone.heartbeat(3, term=5)
        self.assertEqual(len(alone.transport.peers[3].asked), 1)
        alone.heartbeat(2, term=6)
        self.assertEqual(len(alone.transport.peers[2].asked), 1)
        # The answer of the former leader counts for nothing now.
        alone.transport.peers[3].asked[0].callback(0)
        self.assertFalse(read.given)
        alone.transport.peers[2].asked[0].callback(0)
        self.assertIsNone(read.outcome)


class OutcomeTests(ClusterTestCase):
    """What is told to whom: it happened, it did not, or that is unknown."""

    def test_30_unknown_is_an_answer_of_its_own(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        cluster.partition([leader], others)
        write = self.propose(cluster, leader, b"w")
        read = self.read(cluster, leader)
        cluster.advance(REQUEST_S - 0.01)
        self.assertFalse(write.given)
        cluster.advance(0.02)
        self.assertOutcome(write, OutcomeUnknown)
        self.assertOutcome(read, DidNotHappen)

    def test_30_write_whose_place_another_has_taken_did_not_happen_there(self) -> None:
        cluster, leader, others = self.led(3, Journal)
        cluster.partition([leader], others)
        lost = [self.propose(cluster, leader, b"lost %d" % i) for i in range(3)]
        new = cluster.await_leader(others)
        for i in range(6):
            self.written(cluster, new, b"new %d" % i)
        cluster.heal()
        cluster.advance_until(lambda: all(answer.given for answer in lost))
        operations = cluster.machines[leader].operations
        for i, answer in enumerate(lost):
            # It was tried again, for that was safe, and this is the second try's result.
            assert isinstance(answer.outcome, bytes)
            self.assertEqual(operations[int(answer.outcome) - 1], b"lost %d" % i)

    def test_30_forwarded_write_whose_leader_is_gone(self) -> None:
        for power_lost, patience_s in ((False, 0.01), (True, REQUEST_S + 0.01)):
            cluster, leader, (follower, _) = self.led(3, Journal)
            cluster.network.min_delay_s = cluster.network.max_delay_s = 0.001
            write = self.propose(cluster, follower, b"w")
            read = self.read(cluster, follower)
            # It has arrived there, and nobody else has it.
            cluster.advance(0.0015)
            cluster.crash(leader, power_lost=power_lost)
            cluster.advance(patience_s)
            self.assertOutcome(write, OutcomeUnknown)
            cluster.advance(REQUEST_S)
            self.assertIsNone(read.outcome)

    def test_30_nothing_is_unknown_that_was_only_queued(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        cluster.crash(leader)
        cluster.crash(other)
        cluster.advance(0.02)
        began = cluster.clock.seconds()
        write = self.propose(cluster, one, b"w")
        read = self.read(cluster, one)
        cluster.advance(REQUEST_S - 0.01)
        self.assertFalse(write.given or read.given, "it waits for a leader")
        cluster.advance_until(lambda: write.given and read.given)
        self.assertLess(cluster.clock.seconds() - began, REQUEST_S + 0.02)
        self.assertOutcome(write, NoQuorum)
        self.assertOutcome(read, NoQuorum)
        cluster.restart(leader)
        cluster.restart(other)
        cluster.await_leader()
        self.written(cluster, one, b"later")
        cluster.await_agreement()
        self.assertEqual(cluster.machines[one].operations, [b"later"])

    def test_without_a_leader_although_all_are_there(self) -> None:
        cluster = Cluster(3, Journal)
        for log in cluster.logs.values():
            log.delay_seconds = None  # nobody's vote is ever durable
        write = self.propose(cluster, "n1", b"w")
        cluster.advance(REQUEST_S + 0.01)
        self.assertOutcome(write, NoLeader)
        self.assertNotIsInstance(write.outcome, NoQuorum)

    def test_two_members_with_one_down(self) -> None:
        for leader_survives in (True, False):
            cluster = StoreCluster(2)
            leader = cluster.await_leader()
            (follower,) = (name for name in cluster.nodes if name != leader)
            survivor, lost = (leader, follower) if leader_survives else (follower, leader)
            database = cluster.database(survivor)
            cluster.put(survivor, b"k", b"v")
            cluster.await_agreement()
            cluster.crash(lost, power_lost=True)
            at_once: Answer[Any] = Answer()
            database.change(Put(b"k", b"at once"), at_once)
            cluster.advance(3.0)
            later: Answer[Any] = Answer()
            database.change(Put(b"k", b"later"), later)
            self.assertEqual(cluster.get(survivor, b"k", LOCAL), b"v")
            cluster.advance(REQUEST_S - 3.0 + 0.01)
            self.assertOutcome(at_once, OutcomeUnknown)
            cluster.advance(3.0)
            self.assertOutcome(later, NoQuorum)

    def test_superseded_writes_are_queued_again_and_happen_once(self) -> None:
        cluster, leader, others = self.led(3, Journal, request_timeout_ms=60_000, **SLOW)
        cluster.partition([leader], others)
        pending = [self.propose(cluster, leader, b"p%d" % i) for i in range(3)]
        new = cluster.await_leader(others)
        for i in range(3):
            self.written(cluster, new, b"n%d" % i)
        self.assertFalse(any(answer.given for answer in pending))
        cluster.heal()
        journal = cluster.machines[leader].operations
        cluster.advance_until(lambda: len(journal) >= 3)
        # Not a heartbeat later: at once.
        cluster.advance(0.05)
        for answer in pending:
            self.assertIsInstance(answer.outcome, bytes)
        cluster.await_agreement()
        for machine in cluster.machines.values():
            self.assertEqual(machine.operations[:3], [b"n0", b"n1", b"n2"])
            self.assertEqual(sorted(machine.operations[3:]), [b"p0", b"p1", b"p2"])

    def test_superseded_by_the_same_node_in_a_later_term(self) -> None:
        """
        A deposed leader is elected again before its old proposals are
        superseded, and proposes others at their indexes.
        """
        elected_again = 0
        for seed in range(20):
            cluster, leader, others = self.led(3, Journal, seed=seed, request_timeout_ms=60_000)
            base = cluster.nodes[leader].status().last_index
            cluster.partition([leader], others)
            pending = [self.propose(cluster, leader, b"p%d" % i) for i in range(6)]
            new = cluster.await_leader(others)
            cluster.heal()
            # Its entries are cut off, and the new leader's no-op is in their place.
            old = cluster.nodes[leader]
            while old.status().last_index != base + 1:
                cluster.advance(0.0005)
            self.assertFalse(any(answer.given for answer in pending))
            # As long as that one leads: what is sent there now would be unknown.
            old._router.retry_at = cluster.clock.seconds() + 60
            cluster.crash(new)
            next_leader = cluster.await_leader()
            elected_again += next_leader == leader
            cluster.advance(0.3)
            for answer in pending:
                self.assertTrue(answer.given, f"lost, seed {seed}, leader {next_leader}")
                self.assertIsInstance(answer.outcome, bytes)
            operations = sorted(cluster.machines[leader].operations)
            self.assertEqual(operations, [b"p%d" % i for i in range(6)])
        self.assertGreater(elected_again, 3, "the case that this is about never came")

    def test_elected_again_with_its_log_intact(self) -> None:
        """What it had proposed in the earlier term happens, and happens once."""
        for seed in range(10):
            cluster, leader, others = self.led(3, Journal, seed=seed, request_timeout_ms=60_000)
            for name in others:
                cluster.crash(name)
            pending = [self.propose(cluster, leader, b"p%d" % i) for i in range(6)]
            term = cluster.nodes[leader].status().term
            cluster.advance_until(lambda c=cluster: not c.leaders())  # type: ignore[misc]
            cluster.restart(others[0])
            self.assertEqual(cluster.await_leader(), leader, "the other is not up to date")
            cluster.restart(others[1])
            self.assertGreater(cluster.nodes[leader].status().term, term)
            # Proposed in the new term, behind what it has kept.
            more = [self.propose(cluster, leader, b"m%d" % i) for i in range(3)]
            cluster.await_agreement()
            self.assertEqual([a.outcome for a in pending], [b"%d" % i for i in range(1, 7)])
            self.assertEqual([a.outcome for a in more], [b"7", b"8", b"9"])
            for machine in cluster.machines.values():
                self.assertEqual(len(machine.operations), 9)

    def test_forwarded_request_is_never_forwarded_again(self) -> None:
        cluster, leader, (one, other) = self.led(3, Journal)
        failed = self.failureResultOf(
            cluster.nodes[one].forwarded([command(b"w")], 1000), NotLeader
        )
        self.assertIsInstance(failed.value, NotLeader)
        # Taken on by a leader, which is deposed before it has proposed it.
        term = cluster.nodes[leader].status().term
        outcomes = cluster.nodes[leader].forwarded([command(b"w"), command(b"x")], 1000)
        last = cluster.nodes[leader].status().last_index
        other_id = cluster.members[other].id
        cluster.nodes[leader].receive(other_id, RequestVote(term + 1, last, term, True))
        cluster.advance(0.02)
        for outcome in self.successResultOf(outcomes):
            self.assertIsInstance(outcome, NotLeader)
        cluster.await_leader()
        cluster.await_agreement()
        self.assertEqual(cluster.machines[one].operations, [])
