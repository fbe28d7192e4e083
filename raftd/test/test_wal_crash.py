"""
Crashes of the write-ahead log: everything that a crash can leave behind, at
every step, recovers; nothing acknowledged is lost, nothing is invented.
"""

from __future__ import annotations

import errno
import posixpath
import random
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Entry, HardState
from raftd.errors import DirectoryDamaged, RaftdError, StorageFailed
from raftd.storage.frames import SECTOR
from raftd.storage.recovery import look
from raftd.test.logrig import (
    MEMBER,
    PATH,
    Rig,
    create_rig,
    entries,
    new_disk,
    open_rig,
    recovered,
)
from raftd.test.simdisk import Operation, SimulatedDisk, fail_on

State = tuple[HardState, list[Entry]]
Write = tuple["HardState | None", list[Entry]]


def scenario() -> list[list[Write]]:
    """
    Groups of writes, each flushed as one frame: appends of one to five
    sectors, several truncations, terms and votes, several segments.
    """
    big = entries(4, 6, term=1, size=400)
    return [
        [(HardState(1, 7), entries(2, 3))],
        [(None, big)],
        [(HardState(2, 0), []), (None, entries(7, 7, term=2)), (None, entries(8, 8, term=2))],
        # Cuts off 6 to 8, and in the same frame 7 again.
        [(None, entries(6, 9, term=2)), (HardState(3, 9), entries(7, 7, term=3, size=600))],
        [(None, entries(8, 9, term=3, size=1200))],
        # All zeros, as a client may store them.
        [(None, [Entry(10, 3, 1, 0, bytes(1500))])],
        [(HardState(4, 9), entries(3, 3, term=4))],
        [(None, entries(4, 30, term=4))],
        [(None, entries(31, 31, term=4, size=2500))],
        [(HardState(5, 9), [])],
    ]


FIRST = (HardState(1, 0), entries(1, 1))


class Run:
    """Runs the scenario and asks a judge about the disk ahead of every operation."""

    def __init__(self, judge: Callable[[Run, Operation], None]) -> None:
        self.disk = new_disk()
        #: What may be recovered: the state after the creation, and after each frame.
        self.states: list[State] = [FIRST]
        self.rig: Rig | None = None
        self.acknowledged = -1
        self.disk.before = lambda operation: judge(self, operation)

    def go(self, groups: list[list[Write]]) -> Run:
        self.rig = create_rig(self.disk, *FIRST)
        self.acknowledged = 0
        self.rig.start()
        self.rig.run()
        for group in groups:
            hard_state, log = self.states[-1][0], list(self.states[-1][1])
            for new_hard_state, new in group:
                self.rig.write(new_hard_state, new)
                hard_state = new_hard_state or hard_state
                if new:
                    log = log[: new[0].index - 1] + new
            self.states.append((hard_state, log))
            self.rig.run_log()
            assert self.rig.acknowledged == self.rig.number, self.rig.failures
            self.acknowledged = len(self.states) - 1
            self.rig.run()
        return self

    def check(self, test: SynchronousTestCase, disk: SimulatedDisk) -> State | None:
        """Recover from `disk` what must and may be there."""
        if self.acknowledged < 0 and not disk.exists(PATH):
            return None
        operations = disk.operations
        seen = look(disk, PATH, MEMBER)
        test.assertEqual((disk.operations, disk.open_count), (operations, 0))
        state = recovered(disk)
        test.assertEqual((seen.hard_state, seen.entries), state)
        test.assertIn(state, self.states[max(0, self.acknowledged) :])
        return state


def go_on(test: SynchronousTestCase, disk: SimulatedDisk, state: State) -> None:
    """A log that was recovered lasts, takes writes, and recovers these."""
    log = state[1]
    test.assertEqual(recovered(disk.power_failure()), state)
    rig = open_rig(disk).start()
    # The second most often takes the next segment, which may be one that was found.
    for size in (300, 3000):
        new = entries(len(log) + 1, len(log) + 1, term=9, size=size)
        rig.write(HardState(9, 0), new)
        rig.run_log()
        log = log + new
        test.assertEqual(rig.acknowledged, rig.number)
        test.assertEqual(recovered(disk.power_failure()), (HardState(9, 0), log))


class CrashTests(SynchronousTestCase):
    def test_46_49_50_power_fails_at_every_step(self) -> None:
        """
        Ahead of each operation the power fails, and every combination of what
        was not flushed is left.
        """
        choice = random.Random(1)
        count = 0

        def judge(run: Run, operation: Operation) -> None:
            nonlocal count
            for disk in run.disk.power_failures(choice):
                state = run.check(self, disk)
                count += 1
                if state is not None and choice.random() < 0.2:
                    go_on(self, disk, state)
            # Only the process dies; what a restart finds then outlasts a power failure.
            killed = run.disk.killed()
            state = run.check(self, killed)
            if state is not None:
                go_on(self, killed, state)

        run = Run(judge).go(scenario())
        judge(run, Operation("", ""))
        self.assertGreater(count, 200)
        # The scenario went through several segments.
        self.assertIn(f"{PATH}/00000000000000000004.segment", run.disk.contents())

    def test_46_killed_at_every_byte_of_a_write(self) -> None:
        """A killed process leaves the first bytes of a write; then the power fails too."""
        choice = random.Random(2)
        seen = set()

        def judge(run: Run, operation: Operation) -> None:
            name, path, frame, offset = operation
            if name != "write" or run.rig is None or path.endswith(".tmp"):
                return
            step = 1 if len(frame) <= 2 * SECTOR else 7
            for length in {*range(0, len(frame), step), len(frame)}:
                killed = run.disk.killed()
                killed.inode(path).write(frame[:length], offset)
                failed = list(killed.power_failures(choice, limit=2))
                state = run.check(self, killed)
                assert state is not None
                seen.add(run.states.index(state) - run.acknowledged)
                if choice.random() < 0.1:
                    go_on(self, killed, state)
                if choice.random() < 0.2:
                    for disk in failed:
                        run.check(self, disk)

        Run(judge).go(scenario())
        self.assertEqual(seen, {0, 1})

    def test_46_every_combination_of_a_killed_write(self) -> None:
        """
        The process is killed within a write, and then the power fails: any
        sectors of the first bytes of the frame.
        """
        choice = random.Random(3)
        run = Run(lambda *_: None).go(scenario()[:1])
        state = run.states[-1]
        before = run.disk.killed()
        assert run.rig is not None
        run.rig.write(*scenario()[1][0])
        run.rig.run()
        after = run.disk.inode(f"{PATH}/00000000000000000001.segment").cache
        frame = bytes(after).rstrip(b"\0")[3 * SECTOR :]
        for _ in range(500):
            disk = before.killed()
            inode = disk.inode(f"{PATH}/00000000000000000001.segment")
            inode.write(frame[: choice.randrange(len(frame))], 3 * SECTOR)
            for left in disk.power_failures(choice, limit=2):
                self.assertEqual(recovered(left), state)

    def test_50_what_was_recovered_lasts(self) -> None:
        """
        A flush failed, and the kernel holds the frame as if it were on the
        disk; a restart reads it there and must not lose it to a power failure.
        """
        rig = create_rig(None, *FIRST).start()
        rig.run()

        def fail(operation: Operation) -> None:
            if operation.name == "flush":
                raise OSError(errno.EIO, "Input/output error")

        rig.disk.before = fail
        rig.write(HardState(2, 5), entries(2, 4, size=700))
        rig.run()
        self.assertEqual(rig.persisted, [])
        killed = rig.disk.killed()
        state = recovered(killed)
        self.assertEqual(state, (HardState(2, 5), FIRST[1] + entries(2, 4, size=700)))
        self.assertEqual(recovered(killed.power_failure()), state)

    def test_46_torn_frame_in_a_new_segment(self) -> None:
        """
        The first frame of a segment is torn.  The next may fit into the
        segment before it; what is left of the torn one must be gone by then.
        """
        run = Run(lambda *_: None).go(scenario()[:3])
        assert run.rig is not None
        run.rig.write(None, entries(9, 9, term=2, size=1500))
        run.rig.run()
        path = f"{PATH}/00000000000000000002.segment"
        inode = run.disk.inode(path)
        self.assertTrue(any(inode.cache[SECTOR:]))
        inode.write(bytes(SECTOR), 2 * SECTOR)
        inode.flush()
        rig = open_rig(run.disk).start()
        self.assertEqual(rig.entries, run.states[-1][1])
        self.assertFalse(any(run.disk.power_failure().inode(path).cache[SECTOR:]))
        rig.write(None, entries(9, 9, term=2))
        rig.run_log()
        self.assertEqual(rig.persisted, [1])
        left = run.disk.power_failure()
        self.assertFalse(any(left.inode(path).cache[SECTOR:]))
        self.assertEqual(recovered(left)[1], run.states[-1][1] + entries(9, 9, term=2))

    def test_crash_during_recovery(self) -> None:
        """The power fails at every step of an open that has a torn frame to clear."""
        choice = random.Random(4)
        run = Run(lambda *_: None).go(scenario()[:4])
        state = run.states[-1]
        assert run.rig is not None
        run.disk.before = fail_on("flush")
        run.rig.write(None, entries(8, 12, term=3, size=290))
        run.rig.run()
        torn = run.disk
        count = 0
        # All of the frame but its last sector but one.
        inode = torn.inode(max(p for p, data in torn.contents().items() if any(data[SECTOR:])))
        inode.write(bytes(SECTOR), len(inode.cache.rstrip(b"\0")) - 2 * SECTOR)
        inode.flush()

        def judge(operation: Operation) -> None:
            nonlocal count
            for left in torn.power_failures(choice):
                self.assertEqual(recovered(left), state)
                count += 1

        torn.before = judge
        self.assertEqual(recovered(torn), state)
        self.assertGreater(count, 10)


class DiskTests(SynchronousTestCase):
    def test_50_a_frame_makes_nothing_else_durable(self) -> None:
        """
        What writes and flushes in one call may do so with its own bytes alone:
        whoever relies on it for others is found out by all tests on this disk.
        """
        disk = new_disk()
        fd = disk.create(f"{PATH}.file")
        disk.flush_directory(posixpath.dirname(PATH))
        disk.write(fd, b"other", 0)
        disk.write_and_flush(fd, b"frame", SECTOR)
        self.assertEqual(disk.read(fd, 5, 0), b"other")
        left = disk.power_failure()
        fd = left.open(f"{PATH}.file")
        self.assertEqual(left.read(fd, 1 << 10, 0), bytes(SECTOR) + b"frame")


class FailureTests(SynchronousTestCase):
    """Every operation fails, one after the other."""

    def test_47_48_each_operation_fails_once(self) -> None:
        """
        The log stops for good, or goes on as if nothing had been; and what was
        acknowledged is there after a restart, whatever the power does.
        """
        choice = random.Random(5)
        total = Run(lambda *_: None).go(scenario()).disk.operations
        outcomes = {"stopped": 0, "went on": 0, "not created": 0}
        for broken in range(1, total):
            outcome = self._fail_at(broken, choice)
            outcomes[outcome] += 1
        self.assertGreater(min(outcomes.values()), 0, outcomes)

    def _fail_at(self, broken: int, choice: random.Random) -> str:
        calls = 0
        after_failure: list[str] = []

        def judge(run: Run, operation: Operation) -> None:
            nonlocal calls
            calls += 1
            if run.rig is not None and run.rig.failures:
                after_failure.append(operation.name)
            if calls == broken:
                raise OSError(errno.ENOSPC, "No space left on device")

        run = Run(judge)
        try:
            run.go(scenario())
        except StorageFailed:
            outcome = "not created"
        except AssertionError:
            outcome = "stopped"
            assert run.rig is not None
            self._check_stopped(run.rig, after_failure)
        else:
            outcome = "went on"
            assert run.rig is not None
            self.assertEqual(run.rig.failures, [])
        run.disk.before = lambda operation: None
        run.check(self, run.disk.killed())
        for disk in run.disk.power_failures(choice, limit=4):
            state = run.check(self, disk)
            if state is not None:
                go_on(self, disk, state)
        return outcome

    def _check_stopped(self, rig: Rig, after_failure: list[str]) -> None:
        """It said so once, with the file and the reason; it never works again."""
        self.assertEqual(len(rig.failures), 1)
        [failure] = rig.failures
        self.assertIsInstance(failure, StorageFailed)
        self.assertIn("/data/log", str(failure))
        self.assertIn("No space left on device", str(failure))
        acknowledged = list(rig.persisted)
        rig.write(HardState(99, 0), [])
        rig.run()
        self.assertEqual(rig.persisted, acknowledged)
        self.assertEqual(len(rig.failures), 1)
        self.assertEqual(after_failure, [])


class FlippedBitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.run_ = Run(lambda *_: None).go(scenario()[:6])
        self.state = self.run_.states[-1]
        self.contents = self.run_.disk.contents()

    def test_46_a_flipped_bit_is_never_taken_for_a_crash(self) -> None:
        """
        One bit of every byte of the log flips, and all bits of its headers:
        refused with file and offset, or, where nothing is stored, harmless.
        There is no exception.
        """
        choice = random.Random(6)
        refused = harmless = 0
        for path, data in sorted(self.contents.items()):
            used = len(data.rstrip(b"\0"))
            for offset in range(len(data)):
                bits = (
                    range(8)
                    if offset % SECTOR in (0, 8, 12, 20, 511)
                    else [choice.randrange(8)]
                )
                if offset >= used:
                    if offset % 3:
                        continue
                    bits = [choice.randrange(8)]
                for bit in bits:
                    if self._flip(path, offset, bit):
                        refused += 1
                    else:
                        self.assertGreaterEqual(offset, used)
                        harmless += 1
        self.assertGreater(refused, 4 * harmless)

    def _flip(self, path: str, offset: int, bit: int) -> bool:
        """True if the log was refused; else it must be what it was."""
        disk = self.run_.disk.killed()
        inode = disk.inode(path)
        inode.cache[offset] ^= 1 << bit
        before = disk.contents()
        try:
            state = recovered(disk)
        except DirectoryDamaged as e:
            self.assertRegex(str(e), r"^/data/log/\d{20}\.segment is damaged at offset \d+: ")
            self.assertEqual(disk.contents(), before)
            self.assertEqual(disk.open_count, 0)
            return True
        self.assertEqual(state, self.state)
        return False

    def test_46_a_sector_of_zeros(self) -> None:
        """
        A sector that became zeros is damage, but in the last frame, where a
        crash leaves the same: this is what cannot be told apart.
        """
        lost = []
        for path, data in sorted(self.contents.items()):
            used = len(data.rstrip(b"\0"))
            for offset in range(0, used, SECTOR):
                disk = self.run_.disk.killed()
                disk.inode(path).cache[offset : offset + SECTOR] = bytes(SECTOR)
                try:
                    state = recovered(disk)
                except DirectoryDamaged as e:
                    self.assertIn("is damaged at offset", str(e))
                else:
                    self.assertEqual(state, self.run_.states[-2])
                    lost.append((path, offset))
        # The last frame has four sectors, and begins its segment.
        last = f"{PATH}/00000000000000000003.segment"
        self.assertEqual(lost, [(last, SECTOR * i) for i in (1, 2, 3, 4)])

    def test_46_51_other_damage(self) -> None:
        """Each kind is refused with its own sentence."""
        one = f"{PATH}/00000000000000000001.segment"
        two = f"{PATH}/00000000000000000002.segment"
        three = f"{PATH}/00000000000000000003.segment"

        def cut(path: str, length: int) -> Callable[[SimulatedDisk], None]:
            def change(disk: SimulatedDisk) -> None:
                del disk.inode(path).cache[length:]

            return change

        def put(path: str, offset: int, data: bytes) -> Callable[[SimulatedDisk], None]:
            return lambda disk: disk.inode(path).write(data, offset)

        def remove(path: str) -> Callable[[SimulatedDisk], None]:
            return lambda disk: disk.remove(path)

        stranger = create_rig(new_disk(), *FIRST).disk.contents()[one]
        cases: list[tuple[Callable[[SimulatedDisk], None], str]] = [
            (cut(two, 0), f"{two} is damaged at offset 0: the file is empty"),
            (cut(two, 100), f"{two} is damaged at offset 0: the header of the segment has"),
            (cut(two, 3000), f"{two} is damaged at offset 3000: the file has 3000 bytes"),
            (put(two, 4096, b"x"), f"{two} is damaged at offset 4096: the file has 4097"),
            (remove(two), f"{two} is missing: the log has a gap"),
            (put(two, 0, stranger), f"{two} is damaged at offset 0: it is segment 1"),
            (
                put(two, SECTOR, bytes(3584)),
                f"{three} is damaged at offset 512: frame 7 is where 5",
            ),
            (
                put(one, SECTOR, bytes(3584)),
                f"{two} is damaged at offset 512: frame 5 is where 1",
            ),
            (put(three, 2700, b"x"), f"{three} is damaged at offset 2560: the header of a"),
        ]
        for change, sentence in cases:
            disk = self.run_.disk.killed()
            change(disk)
            with self.assertRaises(DirectoryDamaged) as caught:
                recovered(disk)
            self.assertTrue(str(caught.exception).startswith(sentence), str(caught.exception))
            self.assertIn("Do not restore an older copy", str(caught.exception))

    def test_all_errors_are_ours(self) -> None:
        """Random bytes anywhere end in a sentence, never in a traceback."""
        choice = random.Random(7)
        names = sorted(self.contents)
        refused = 0
        for _ in range(300):
            disk = self.run_.disk.killed()
            inode = disk.inode(choice.choice(names))
            at = choice.randrange(len(inode.cache))
            inode.cache[at : at + choice.randrange(600)] = choice.randbytes(
                choice.randrange(600)
            )
            try:
                self.assertEqual(recovered(disk), self.state)
            except RaftdError as e:
                refused += 1
                self.assertIsInstance(e, DirectoryDamaged)
        self.assertGreater(refused, 250)
