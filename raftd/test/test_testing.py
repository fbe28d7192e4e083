"""The cluster in memory that users test with: that it does what it says, and nothing kinder."""

from __future__ import annotations

import itertools
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import Remove, Rename
from raftd.core.messages import Command
from raftd.errors import (
    Fatal,
    NoQuorum,
    OutcomeUnknown,
    Removed,
    Stopped,
    StorageFailed,
)
from raftd.events import Event, LeaderChanged, MembershipChanged, SnapshotRestored
from raftd.replica import ReplicaOptions
from raftd.test.drivers import Journal
from raftd.testing import Cluster

#: Snapshots come early and often, and little of the log stays behind them.
EARLY_SNAPSHOTS = ReplicaOptions(snapshot_threshold_bytes=500, snapshot_tail_entries=5)


class ClusterTests(SynchronousTestCase):
    def led(self, size: int = 3, **arguments: Any) -> tuple[Cluster[Journal], str, list[str]]:
        """A cluster that has elected: itself, its leader, the others."""
        cluster = Cluster(size, Journal, **arguments)
        leader = cluster.await_leader()
        return cluster, leader, [name for name in cluster.nodes if name != leader]

    def written(self, cluster: Cluster[Journal], name: str, count: int) -> None:
        """That many writes, one after the other, through one node."""
        for _ in range(count):
            cluster.result(cluster[name].propose(b"w"))

    def failed(self, cluster: Cluster[Journal], deferred: Deferred[Any]) -> object:
        """How it fails, letting time pass until it does."""
        failures: list[Any] = []
        deferred.addErrback(failures.append)
        cluster.advance_until(lambda: failures)
        return failures[0].value


class TimeTests(ClusterTests):
    def test_nothing_happens_by_itself(self) -> None:
        cluster = Cluster(3, Journal)
        self.assertEqual((cluster.leaders(), cluster.clock.seconds()), ([], 0.0))
        cluster.advance(0.1)
        self.assertAlmostEqual(cluster.clock.seconds(), 0.1)
        self.assertEqual(cluster.leaders(), [])

    def test_a_seed_is_a_history(self) -> None:
        def history(seed: int) -> list[object]:
            cluster = Cluster(3, Journal, seed=seed, options=EARLY_SNAPSHOTS)
            cluster.network.loss = 0.02
            told: list[object] = []
            for name in cluster.nodes:
                cluster[name].observe(
                    lambda event, name=name: told.append(  # type: ignore[misc]
                        (cluster.clock.seconds(), name, event)
                    )
                )
            for i in range(60):
                cluster[f"n{i % 3 + 1}"].propose(b"%d" % i).addBoth(told.append)
                cluster.advance(cluster.random.random() * 0.1)
            # Failures are told apart by what they are, not by which object.
            return [repr(getattr(t, "value", t)) for t in told]

        self.assertEqual(history(1), history(1))
        self.assertNotEqual(history(1), history(2))

    def test_what_is_awaited_in_vain_says_how_things_stand(self) -> None:
        cluster, leader, others = self.led()
        cluster.crash(others[0])
        began = cluster.clock.seconds()
        error = self.assertRaises(
            AssertionError, cluster.advance_until, lambda: False, timeout_s=2.0
        )
        self.assertTrue(0.0 <= cluster.clock.seconds() - began - 2.0 < 0.02)
        self.assertIn(f"{leader} is leader in term", str(error))
        self.assertIn(f"{others[0]} is down", str(error))

    def test_result_raises_what_went_wrong(self) -> None:
        cluster, leader, others = self.led()
        cluster.partition([leader], others)
        cluster.advance(1.0)
        self.assertRaises(NoQuorum, cluster.result, cluster[leader].propose(b"w"))


class NetworkTests(ClusterTests):
    def test_any_node_takes_any_request(self) -> None:
        cluster, _, _ = self.led()
        for i, name in enumerate(sorted(cluster.nodes), 1):
            self.assertEqual(cluster.result(cluster[name].propose(b"w")), b"%d" % i)
            for reader in cluster.nodes:
                cluster.result(cluster[reader].read())
                self.assertEqual(len(cluster.machines[reader].operations), i)

    def test_a_minority_decides_nothing_until_it_is_healed(self) -> None:
        cluster, leader, others = self.led()
        cluster.partition([leader], others)
        cut_off = cluster[leader].propose(b"cut off")
        new = cluster.await_leader(others)
        self.assertEqual(cluster.result(cluster[new].propose(b"w")), b"1")
        self.assertIsInstance(self.failed(cluster, cut_off), OutcomeUnknown)
        self.assertEqual(cluster.machines[leader].operations, [])
        cluster.heal()
        cluster.await_agreement()
        self.assertEqual(cluster.machines[leader].operations, [b"w"])

    def test_all_goes_on_while_messages_are_lost(self) -> None:
        cluster, _, _ = self.led(seed=3)
        cluster.network.loss = 0.05
        cluster.network.max_delay_s = 0.02
        session = cluster.result(cluster["n1"].open_session())
        for i in range(1, 101):
            self.assertEqual(cluster.result(session.propose(b"w")), b"%d" % i)
        cluster.network.loss = 0.0
        cluster.await_agreement()
        self.assertEqual(len(cluster.machines["n3"].operations), 100)


class CrashTests(ClusterTests):
    def test_50_a_crash_loses_what_was_not_flushed_and_nothing_else(self) -> None:
        for kept in (0, 1):
            cluster, leader, _ = self.led(1)
            self.written(cluster, leader, 3)
            cluster.logs[leader].delay_seconds = None
            lost = cluster[leader].propose(b"on its way")
            cluster.advance(1.0)
            self.assertEqual(cluster.logs[leader].unflushed, 1)
            cluster.crash(leader, kept=kept)
            self.failureResultOf(lost, OutcomeUnknown)
            cluster.logs[leader].delay_seconds = 0.001
            cluster.restart(leader)
            cluster.await_leader()
            cluster.await_agreement()
            self.assertEqual(len(cluster.machines[leader].operations), 3 + kept)

    def test_who_sends_to_a_dead_process_is_told_and_to_a_dead_host_is_not(self) -> None:
        for power_lost in (False, True):
            cluster, leader, others = self.led()
            pending = cluster[others[0]].propose(b"w")
            cluster.advance(0.0001)
            cluster.crash(leader, power_lost=power_lost)
            cluster.advance(0.01)
            self.assertEqual(pending.called, not power_lost)
            pending.addErrback(lambda _: None)

    def test_a_handle_outlives_its_node(self) -> None:
        cluster, leader, _ = self.led()
        handle = cluster[leader]
        cluster.crash(leader)
        self.assertIsInstance(self.failed(cluster, handle.propose(b"w")), Stopped)
        self.assertIs(cluster.restart(leader), handle)
        self.assertEqual(cluster.result(handle.propose(b"w")), b"1")

    def test_crashed_cluster_leaves_nothing_running(self) -> None:
        cluster, leader, _ = self.led(options=EARLY_SNAPSHOTS)
        self.written(cluster, leader, 50)
        for name in list(cluster.nodes):
            cluster.crash(name)
        cluster.advance(120.0)
        self.assertEqual(cluster.clock.getDelayedCalls(), [])

    def test_failed_disk_ends_the_node_and_is_on_record(self) -> None:
        cluster, leader, others = self.led()
        cluster.logs[leader].fail()
        pending = cluster[leader].propose(b"w")
        self.assertIsInstance(self.failed(cluster, pending), OutcomeUnknown)
        self.assertIsInstance(cluster.fatal[leader], StorageFailed)
        self.assertNotIn(leader, cluster.nodes)
        cluster.await_leader(others)
        cluster.restart(leader)
        self.assertEqual(cluster.fatal, {})
        cluster.await_agreement()

    def test_crash_is_no_failure_of_the_node(self) -> None:
        cluster, leader, _ = self.led()
        cluster.crash(leader)
        self.assertEqual(cluster.fatal, {})

    def test_running_node_is_not_restarted(self) -> None:
        cluster = Cluster(1, Journal)
        self.assertRaises(AssertionError, cluster.restart, "n1")

    def test_leader_that_stops_in_order_hands_over(self) -> None:
        cluster, leader, others = self.led()
        self.written(cluster, leader, 1)
        term = cluster[leader].status().term
        began = cluster.clock.seconds()
        cluster.stop(leader)
        cluster.await_leader(others)
        # Far below an election timeout.
        self.assertLess(cluster.clock.seconds() - began, 0.2)
        self.assertEqual(cluster[others[0]].status().term, term + 1)
        cluster.restart(leader)
        cluster.await_agreement()


class SnapshotTests(ClusterTests):
    def test_restart_from_a_snapshot_and_the_log_behind_it(self) -> None:
        cluster, leader, _ = self.led(1, options=EARLY_SNAPSHOTS)
        self.written(cluster, leader, 100)
        first = cluster[leader].status().first_index
        self.assertGreater(first, 50)
        cluster.crash(leader)
        cluster.restart(leader)
        restored = len(cluster.machines[leader].operations)
        self.assertTrue(0 < restored <= 100, "the state begins with the snapshot's")
        cluster.await_leader()
        cluster.await_agreement()
        self.assertEqual(len(cluster.machines[leader].operations), 100)
        self.assertGreaterEqual(cluster[leader].status().first_index, first)

    def test_unfinished_snapshot_is_lost_in_a_crash(self) -> None:
        cluster, leader, _ = self.led(1, options=EARLY_SNAPSHOTS)
        cluster.snapshots[leader].delay_seconds = 60.0
        self.written(cluster, leader, 100)
        cluster.crash(leader)
        self.assertEqual(cluster.logs[leader].base_index, 0)
        cluster.restart(leader)
        self.assertEqual(cluster.machines[leader].operations, [])
        cluster.await_leader()
        cluster.await_agreement()
        self.assertEqual(len(cluster.machines[leader].operations), 100)

    def test_who_was_away_too_long_is_sent_a_snapshot(self) -> None:
        cluster, leader, others = self.led(options=EARLY_SNAPSHOTS)
        away = others[0]
        cluster.crash(away)
        self.written(cluster, leader, 100)
        self.assertGreater(cluster[leader].status().first_index, 50)
        cluster.restart(away)
        told: list[Event] = []
        cluster[away].observe(told.append)
        cluster.await_agreement()
        self.assertEqual(len(cluster.machines[away].operations), 100)
        self.assertEqual(len([e for e in told if isinstance(e, SnapshotRestored)]), 1)

    def test_sessions_are_in_snapshots(self) -> None:
        cluster, leader, others = self.led(options=EARLY_SNAPSHOTS)
        away = others[0]
        cluster.crash(away)
        session = cluster.result(cluster[leader].open_session())
        for _ in range(100):
            cluster.result(session.propose(b"w"))
        cluster.restart(away)
        cluster.await_agreement()
        cluster.result(cluster[leader].transfer(cluster.members[away].id))
        self.assertEqual(cluster.result(session.propose(b"w")), b"101")


class DigestTests(SynchronousTestCase):
    """What a user's own mistake looks like."""

    def test_state_machine_that_is_not_deterministic_is_found(self) -> None:
        count = itertools.count()

        class Different(Journal):
            def apply_command(self, operation: bytes) -> bytes:
                return super().apply_command(b"%d" % next(count))

        cluster = Cluster(3, Different)
        leader = cluster.await_leader()
        cluster.await_agreement()
        cluster.result(cluster[leader].propose(b"w"))
        error = self.assertRaises(AssertionError, cluster.await_agreement)
        self.assertIn("the states differ", str(error))

    def test_snapshot_that_is_not_the_whole_state_is_found(self) -> None:
        class Forgetful(Journal):
            def set_state(self, state: bytes) -> None:
                super().set_state(state)
                del self.operations[:1]

        cluster = Cluster(3, Forgetful, options=EARLY_SNAPSHOTS)
        leader = cluster.await_leader()
        for _ in range(50):
            cluster.result(cluster[leader].propose(b"w"))
        cluster.await_agreement()
        cluster.crash(leader)
        cluster.restart(leader)
        self.assertRaises(AssertionError, cluster.await_agreement)


class MembershipTests(ClusterTests):
    def test_39_a_node_is_added_though_nothing_is_written(self) -> None:
        cluster, _, _ = self.led()
        cluster.await_agreement()
        added = cluster.add()
        self.assertEqual(added.status().role, "follower")
        self.assertEqual(len(added.status().members), 4)
        self.assertEqual(cluster.result(cluster["n4"].propose(b"w")), b"1")

    def test_a_node_is_added_by_snapshot(self) -> None:
        cluster, leader, _ = self.led(options=EARLY_SNAPSHOTS)
        self.written(cluster, leader, 100)
        cluster.add("late")
        self.assertGreater(cluster["late"].status().first_index, 50)
        cluster.await_agreement()
        self.assertEqual(len(cluster.machines["late"].operations), 100)

    def test_a_learner_stays_one(self) -> None:
        cluster, _, _ = self.led(1)
        learner = cluster.add(learner=True)
        cluster.advance(5.0)
        self.assertEqual(learner.status().role, "learner")
        cluster.crash("n2", power_lost=True)
        self.assertEqual(cluster.result(cluster["n1"].propose(b"alone")), b"1")

    def test_a_name_is_taken_once(self) -> None:
        cluster, _, _ = self.led(1)
        self.assertRaises(AssertionError, cluster.add, "n1")

    def test_removed_leader_is_told_and_the_others_go_on(self) -> None:
        cluster, leader, others = self.led()
        removal = [Remove(cluster.members[leader].id)]
        cluster.result(cluster[others[0]].change_membership(removal))
        cluster.advance_until(lambda: leader in cluster.fatal)
        self.assertIsInstance(cluster.fatal[leader], Removed)
        cluster.await_leader(others)
        self.assertEqual(cluster.result(cluster[others[0]].propose(b"w")), b"1")
        cluster.restart(leader)
        cluster.advance_until(lambda: leader in cluster.fatal)
        self.assertIsInstance(cluster.fatal[leader], Removed)

    def test_who_was_removed_while_away_is_turned_away(self) -> None:
        """It heard of nothing; it is told when it connects."""
        cluster, leader, (away, other) = self.led()
        cluster.partition([away], [leader, other])
        cluster.advance(1.0)
        removal = [Remove(cluster.members[away].id)]
        cluster.result(cluster[leader].change_membership(removal))
        term = cluster[leader].status().term
        cluster.advance(10.0)
        self.assertIn(away, cluster.nodes)
        cluster.heal()
        cluster.advance_until(lambda: away in cluster.fatal)
        self.assertIsInstance(cluster.fatal[away], Removed)
        sentence = str(cluster.fatal[away])
        self.assertIn(sentence.rpartition("says ")[2], (f"{leader}.", f"{other}."))
        cluster.advance(5.0)
        self.assertEqual(cluster[leader].status().term, term, "it has disturbed nobody")

    def test_connections_of_a_removed_member_are_closed(self) -> None:
        """Who is connected still would hear of nothing, for nobody sends it anything."""
        cluster, leader, (away, other) = self.led()
        cluster.partition([away], [leader])
        removal = [Remove(cluster.members[away].id)]
        cluster.result(cluster[leader].change_membership(removal))
        cluster.advance_until(lambda: away in cluster.fatal, timeout_s=3.0)
        self.assertIn(f"says {other}", str(cluster.fatal[away]))

    def test_a_renamed_member_keeps_its_name_in_the_test(self) -> None:
        cluster, leader, (one, _) = self.led()
        me = cluster.members[one]
        told: list[Event] = []
        cluster[leader].observe(told.append)
        cluster.result(cluster[leader].change_membership([Rename(me.id, "elsewhere")]))
        self.assertTrue(any(isinstance(event, MembershipChanged) for event in told))
        cluster.await_agreement()
        self.assertEqual(cluster.members[one].name, "elsewhere")
        cluster.crash(one)
        cluster.restart(one)
        self.assertEqual(cluster[one].status().member.name, "elsewhere")
        cluster.await_agreement()
        cluster.result(cluster[leader].transfer(me.id))
        self.assertEqual(cluster.await_leader(), one)

    def test_transfer_is_seen_by_observers(self) -> None:
        cluster, leader, (one, other) = self.led()
        led_by: list[str] = []

        def watch(event: Event) -> None:
            if isinstance(event, LeaderChanged) and event.leader is not None:
                led_by.append(event.leader.name)

        stop = cluster[other].observe(watch)
        cluster.result(cluster[leader].transfer(cluster.members[one].id))
        cluster.await_leader()
        self.assertEqual(led_by, [one])
        stop()
        cluster.result(cluster[one].transfer())
        cluster.await_leader()
        self.assertEqual(led_by, [one])


class DefectTests(ClusterTests):
    def test_state_machine_that_raises_ends_its_nodes(self) -> None:
        class Broken(Journal):
            def apply(self, index: int, time_ms: int, command: Command) -> bytes:
                raise ZeroDivisionError("it cannot")

        cluster = Cluster(1, Broken)
        cluster.await_leader()
        pending = cluster["n1"].propose(b"w")
        cluster.advance(1.0)
        self.failureResultOf(pending, OutcomeUnknown)
        self.assertIsInstance(cluster.fatal["n1"], Fatal)
        self.assertIn("it cannot", str(cluster.fatal["n1"]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
