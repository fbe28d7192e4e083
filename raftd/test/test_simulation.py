"""
The simulation: a bounded number of seeds, and that it can be relied upon.

`python -m raftd.test.simulation 1 500` runs more of them.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any
from unittest import mock

from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Command, HardState
from raftd.disk import SPACE_RETRY_S
from raftd.errors import Compacted, InvariantViolated
from raftd.kv.database import Database
from raftd.kv.results import KeyValue
from raftd.storage import recovery
from raftd.test.defects.planting import Garden
from raftd.test.defects.table import ALL
from raftd.test.simulation import plan as plans
from raftd.test.simulation.__main__ import Figures, command_of, report
from raftd.test.simulation.disk import JOB_S, LOG, DiskWorker, Durable, HostDisk, Write
from raftd.test.simulation.faults import LASTING_S
from raftd.test.simulation.hosts import Machine
from raftd.test.simulation.invariants import DIGEST_EVERY, Invariants
from raftd.test.simulation.plan import FLIP, KINDS, Plan
from raftd.test.simulation.run import STEP_S, Outcome, Simulation, run_seed
from raftd.test.simulation.shrink import shrink
from raftd.test.simulation.world import ProcessClock, World

#: The seeds of every run of the tests.
SEEDS = range(1, 81)
#: Seeds that have much in them: crashes, snapshots, changes of members.
RICH = (14, 25)
#: One in which a bit flips, and a host that it has damaged is replaced.
FLIPPED = 24

#: What faults must come to; to have asked for them is not enough.
EFFECTS = (
    "crashed at operation",
    "crashed at message",
    "flush refused",
    "create refused",
    "write refused",
    "damage refused",
    "damage restored",
    "damage replaced",
)

#: Defects that the simulation finds, each within so many seeds.
CAUGHT = {
    "nothing-waits-for-the-vote": 60,
    "acknowledged-before-it-is-durable": 60,
    "log-is-not-flushed": 60,
    "linearizable-reads-are-local": 60,
    "retry-with-a-key-is-applied-again": 60,
}


class SeedTests(SynchronousTestCase):
    def test_seeds(self) -> None:
        figures = Figures()
        bad: list[str] = []
        for seed in SEEDS:
            outcome = run_seed(seed)
            figures.add(outcome)
            if outcome.violation:
                bad.append(report(outcome))
        self.assertEqual(bad, [], "\n\n".join(bad))
        self.assertEqual(self.flushLoggedErrors(), [])
        # It was neither all quiet nor all broken.
        self.assertGreater(figures.judged, 100 * len(SEEDS))
        self.assertGreater(figures.elections, 2 * len(SEEDS))
        for kind in (*KINDS, FLIP, *EFFECTS):
            self.assertGreater(figures.faults[kind], 0, f"there was no {kind}")
        for what in ("snapshot installed", "message lost", "message twice", "retry"):
            self.assertGreater(figures.faults[what], len(SEEDS) / 4, what)


class DeterminismTests(SynchronousTestCase):
    def test_a_seed_is_the_same_again(self) -> None:
        for seed in (*RICH, FLIPPED):
            first, second = run_seed(seed), run_seed(seed)
            self.assertEqual(first, second)
        self.assertNotEqual(run_seed(RICH[0]).trace, run_seed(RICH[1]).trace)

    def test_a_seed_is_the_same_in_another_process(self) -> None:
        """Where strings have other hashes, and so sets another order."""
        expected = f"trace {run_seed(RICH[0]).trace:08x}"
        for hash_seed in ("1", "2"):
            output = _run(str(RICH[0]), environment={"PYTHONHASHSEED": hash_seed})
            self.assertEqual(output.splitlines()[0], expected)

    def test_a_fault_left_out_leaves_the_others(self) -> None:
        plan = Plan(RICH[0])
        numbers = [fault.number for fault in plan.faults]
        self.assertGreater(len(numbers), 2)
        fewer = Plan(RICH[0], numbers[1:])
        self.assertEqual(fewer.faults, plan.faults[1:])
        self.assertEqual(fewer.options, plan.options)


class RuleTests(SynchronousTestCase):
    """That what must hold is looked at."""

    def test_match_index_goes_back_for_a_moment(self) -> None:
        """Between two changes of anything else: it is looked at after every event."""
        simulation = Simulation(Plan(RICH[0], []))

        def tamper() -> None:
            for process in simulation.processes():
                leadership = process.node._raft.leadership
                for progress in () if leadership is None else leadership.progress.values():
                    if progress.match_index:
                        progress.match_index -= 1
                        process.clock.enter(lambda: None)
                        progress.match_index += 1

        simulation.world.callLater(2.0, tamper)
        with self.assertRaisesRegex(InvariantViolated, "match_index never decreases"):
            simulation.run()

    def test_what_does_not_come_about_in_time(self) -> None:
        """Within so many timeouts; behind a disk that was full, from when that is known."""
        for was_full in (False, True):
            simulation = Simulation(Plan(RICH[0], []))
            simulation.world.run(10.0)
            if was_full:
                simulation.space_since_s = 10.0
            with self.assertRaisesRegex(AssertionError, "not within 3 timeouts: never"):
                simulation._within(3, lambda: False, "never")
            rate = simulation.plan.slowest_rate
            bound_s = (3 * 0.6 + was_full * SPACE_RETRY_S) / rate
            late_s = simulation.world.now - 10.0 - bound_s
            self.assertLess(abs(late_s), 2 * STEP_S)

    def test_a_full_disk_is_an_excuse_for_who_runs(self) -> None:
        """A node that was down, or has gone for good, waits for no room."""
        for is_running in (True, False):
            for is_well in (True, False):
                simulation = Simulation(Plan(RICH[0], []))
                simulation._begin()
                simulation.world.run(1.0)
                simulation.faults._fill(Random(1))
                (host,) = (host for host in simulation.hosts if host.disk.room is not None)
                if not is_running:
                    host.die()
                if is_well:
                    simulation._make_well()
                else:
                    simulation.world.run(1.0 + max(LASTING_S))
                self.assertIsNone(host.disk.room)
                self.assertEqual(simulation.space_since_s >= 1.0, is_running)

    def test_a_snapshot_that_a_full_disk_has_refused_comes_later(self) -> None:
        """A leader waits ten timeouts before it sends it again: no rule is broken by that."""
        for seed in (3210, 3266):
            self.assertEqual(run_seed(seed).violation, "")

    def test_a_vote_that_takes_the_place_of_another(self) -> None:
        durable = Durable(HardState(4, 1), ())
        for number, (hard_state, is_good) in enumerate(
            [
                (HardState(4, 1), True),
                (HardState(4, 2), False),
                (HardState(3, 1), False),
                (HardState(5, 0), True),
                (HardState(5, 2), True),
            ]
        ):
            durable.pending.clear()
            durable.write(Write(number, hard_state, (), None))
            if is_good:
                durable.persisted(number)
                self.assertEqual(durable.hard_state, hard_state)
            else:
                with self.assertRaisesRegex(AssertionError, "takes the place of"):
                    durable.persisted(number)

    def test_a_state_that_differs_at_one_index(self) -> None:
        """Whatever it is, and though it is gone when the next entry is applied."""
        for harm in (
            _other_quota,
            _other_value,
            _other_older,
            _other_lease,
            _other_record,
            _other_order,
            _other_result,
        ):
            simulation = Simulation(Plan(RICH[0], []))
            with (
                mock.patch.object(Invariants, "_check_state"),
                mock.patch.object(Machine, "apply", _harmed_once(harm)),
                self.assertRaisesRegex(
                    AssertionError, "the states at index .* differ"
                ) as found,
            ):
                simulation.run()
            index = re.search(r"index (\d+)", str(found.exception))
            assert index is not None
            self.assertNotEqual(int(index[1]) % DIGEST_EVERY, 0, harm.__name__)
            self.flushLoggedErrors(AssertionError)

    def test_what_nobody_has_compacted(self) -> None:
        """A watch that is told so has lost what it was to show."""
        begin = Database.watch

        def watch(database: Database, selection: Any, revision: int, on_ready: Any) -> Any:
            if revision > 20:
                raise Compacted("It is gone.", revision + 5)
            return begin(database, selection, revision, on_ready)

        self.patch(Database, "watch", watch)
        found = (run_seed(seed).violation for seed in range(1, 20))
        self.assertRegex(next(filter(None, found)), "^compacted to .* was asked for")

    def test_a_disk_is_quick_again_for_what_is_under_way(self) -> None:
        """Else a flush that has begun lasts for seconds when nothing goes wrong any more."""
        world = World(1)
        disk, done = HostDisk(world), []
        worker = DiskWorker(ProcessClock(world, 1.0, 0.0, lambda: None), disk)
        disk.slowness = 1000.0
        worker.do(lambda: done.append(world.now))
        disk.slowness = 1.0
        worker.hurry()
        world.run(JOB_S[1])
        self.assertEqual(len(done), 1)
        worker.hurry()
        world.run(10.0)
        self.assertEqual(len(done), 1)

    def test_a_disk_gets_full_within_a_write(self) -> None:
        disk = HostDisk(World(1))
        fd = disk.create("/file")
        disk.write(fd, b"abc", 0)
        disk.room = 2
        disk.write(fd, b"ABCd", 0)
        with self.assertRaises(OSError) as caught:
            disk.write(fd, b"efg", 4)
        self.assertEqual(caught.exception.errno, errno.ENOSPC)
        self.assertEqual(disk.contents(), {"/file": b"ABCde"})
        disk.write(fd, b"abcde", 0)
        with self.assertRaises(OSError):
            disk.create("/other")
        self.assertEqual(disk.after_kill().room, 0)


class FlipTests(SynchronousTestCase):
    """Bits that flip in files that a node has finished with."""

    def test_other_faults_are_what_they_were(self) -> None:
        for seed in range(1, 40):
            plan = Plan(seed)
            with mock.patch.object(plans, "FLIP_SHARE", 0.0):
                quiet = Plan(seed)
            self.assertEqual([f for f in plan.faults if f.kind != FLIP], quiet.faults)
            self.assertEqual(plan.options, quiet.options)

    def test_read_wrong_until_written_or_restored(self) -> None:
        disk = HostDisk(World(1))
        disk.make_directory(LOG)
        path = f"{LOG}/1.segment"
        fd = disk.create(path)
        disk.write(fd, b"abc", 0)
        disk.flush(fd)
        disk.flush_directory(LOG)
        disk.flush_directory("/")
        self.assertIn(path, disk.flip(Random(1)))
        flipped = disk.read(fd, 3, 0)
        self.assertNotEqual(flipped, b"abc")
        self.assertTrue(disk.is_damaged(f"{path} is damaged at offset 1: no."))
        self.assertFalse(disk.is_damaged(f"{LOG}/2.segment is damaged at offset 1: no."))
        # On the disk, whatever happens to the process or the host.
        self.assertEqual(disk.after_kill().contents()[path], flipped)
        left = disk.after_power_loss(Random(1))
        self.assertEqual(left.contents()[path], flipped)
        disk = left.after_kill()
        disk.write(disk.open(path), b"abc", 0)
        self.assertEqual(disk.contents()[path], b"abc")
        self.assertIn(path, disk.flip(Random(2)))
        self.assertNotEqual(disk.contents()[path], b"abc")
        disk.restore()
        self.assertEqual(disk.contents()[path], b"abc")
        self.assertFalse(disk.is_damaged(f"{path} is damaged at offset 1: no."))

    def test_a_loss_is_found(self) -> None:
        """If all that is not whole passes for torn, what was acknowledged is lost."""

        def torn(data: bytes, offset: int, sequence: int, seed: int) -> int:
            return len(data) - offset if any(data[offset:]) else 0

        found = ""
        with mock.patch.object(recovery, "torn_extent", torn):
            for seed in range(1, 400):
                flips = [fault.number for fault in Plan(seed).faults if fault.kind == FLIP]
                if flips and not found:
                    found = run_seed(seed, flips).violation
        self.assertRegex(found, "was durable and is lost|the disk has lost")


class CommandTests(SynchronousTestCase):
    def test_the_last_line_has_the_figures(self) -> None:
        last = _run("1", "2", "--workers", "2").splitlines()[-1]
        self.assertRegex(
            last,
            r"^seeds 2, simulated time \d+ s, events \d+, faults \(.*\), elections \d+, "
            r"operations judged \d+, violations 0$",
        )

    def test_only_some_faults(self) -> None:
        quiet = _run(str(RICH[0]), "--only", "none").splitlines()[-1]
        self.assertNotRegex(quiet, "power loss|kill|cut")

    def test_a_bad_seed_can_be_repeated(self) -> None:
        outcome = Outcome(7, "two leaders", notes=["a note"], only=[1, 2])
        self.assertEqual(command_of(outcome), "python -m raftd.test.simulation 7 --only 1,2")
        text = report(outcome)
        self.assertIn("two leaders", text)
        self.assertTrue(text.endswith(f"a note\nagain: {command_of(outcome)}"), text)


class ShrinkTests(SynchronousTestCase):
    def test_what_is_not_needed_is_left_out(self) -> None:
        """A disk that keeps nothing when the power goes, and says that it does."""
        self.patch(HostDisk, "flush", lambda disk, fd: None)
        self.patch(HostDisk, "check_flushed", lambda disk: None)
        seed = next(seed for seed in range(1, 50) if run_seed(seed).violation)
        smallest = shrink(seed, say=lambda text: None)
        assert smallest is not None
        assert smallest.only is not None
        self.assertLess(len(smallest.only), len(Plan(seed).faults))
        kinds = {fault.kind for fault in Plan(seed, smallest.only).faults}
        # A bit that flips takes the power with it, now and then.
        self.assertRegex(" ".join(kinds), f"crash|power|{FLIP}")
        again = run_seed(seed, smallest.only)
        self.assertEqual(again.violation, smallest.violation)
        self.assertEqual(again.trace, smallest.trace)

    def test_a_good_seed_is_left_alone(self) -> None:
        self.assertIsNone(shrink(RICH[0], say=lambda text: None))


class DefectTests(SynchronousTestCase):
    def test_defects_are_found(self) -> None:
        chosen = {defect.name: defect for defect in ALL if defect.name in CAUGHT}
        self.assertEqual(chosen.keys(), CAUGHT.keys())
        with Garden() as garden:
            for name, seeds in CAUGHT.items():
                with garden.planted(chosen[name]):
                    verdict = garden.run_simulation(seeds)
                self.assertTrue(verdict.failed, f"{name} was not found by {verdict.ran} seeds")
                self.assertFalse(verdict.slip, f"{name} is badly written: {verdict.why}")


def _harmed_once(harm: Callable[[Machine], Callable[[], None] | None]) -> Any:
    """
    `Machine.apply`, after which one node's state is not what it should be, once
    and until the next entry is applied.  `harm` returns what makes it good again.
    """
    apply = Machine.apply
    mends: list[Callable[[], None]] = []

    def harmed(machine: Machine, index: int, time_ms: int, command: Command) -> Any:
        if len(mends) == 1:
            mends.append(mends[0])
            mends[0]()
        result = apply(machine, index, time_ms, command)
        is_there = machine._process.host.id == 2 and index % DIGEST_EVERY
        if is_there and not mends and isinstance(result, bytes):
            mend = harm(machine)
            if mend is not None:
                mends.append(mend)
        return result

    return harmed


def _replaced(container: Any, key: Any, value: Any) -> Callable[[], None]:
    old, container[key] = container[key], value
    return partial(container.__setitem__, key, old)


def _other_quota(machine: Machine) -> Callable[[], None]:
    store = machine._process.store
    store.quota_bytes += 1

    def mend() -> None:
        store.quota_bytes -= 1

    return mend


def _other_value(machine: Machine) -> Callable[[], None] | None:
    """What a key has is not what the history says."""
    for shard in machine._process.store._versions._newest:
        for key, record in shard.items():
            return _replaced(shard, key, replace(record, value=b"another"))
    return None


def _other_older(machine: Machine) -> Callable[[], None] | None:
    """What a key had is not what the history says."""
    store = machine._process.store
    replaced = store._versions.history._open_replaced
    for i, older in enumerate(replaced):
        if isinstance(older, KeyValue) and older.mod_revision > store.compacted_revision:
            return _replaced(replaced, i, replace(older, value=b"another"))
    return None


def _other_lease(machine: Machine) -> Callable[[], None] | None:
    leases = machine._process.store._versions.leases._granted
    for id, lease in leases.items():
        return _replaced(leases, id, replace(lease, ttl_ms=lease.ttl_ms + 1))
    return None


def _other_record(machine: Machine) -> Callable[[], None] | None:
    """An idempotency key was used for something else."""
    table: Any = machine._process.service.machine._table
    for shard in table.records._shards:
        for name, record in shard.items():
            return _replaced(shard, name, b"else" + record[4:])
    return None


def _other_order(machine: Machine) -> Callable[[], None] | None:
    """Two idempotency keys that came one after the other have changed places."""
    table: Any = machine._process.service.machine._table
    if len(table.records) < 2:
        return None
    blocks = table.order._blocks
    names = bytes(blocks[0])
    first, second, others = names[:16], names[16:32], names[32:]
    return _replaced(blocks, 0, bytearray(second + first + others))


def _other_result(machine: Machine) -> Callable[[], None] | None:
    for session in machine._table.values():
        for sequence in session.results:
            return _replaced(session.results, sequence, b"another")
    return None


def _run(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What the command prints; it must find nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "raftd.test.simulation", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
