"""The data directory: its lock, its identity, and what must fit together."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import HardState
from raftd.errors import (
    BadAnswer,
    DirectoryDamaged,
    DirectoryInUse,
    InvariantViolated,
    StorageFailed,
)
from raftd.interfaces import Stage
from raftd.storage.directory import (
    DataDirectory,
    Identity,
    decode_identity,
    draw_id,
    encode_identity,
)
from raftd.storage.wal import Wal
from raftd.test.logrig import MEMBER, ManualReactor, entries, new_disk, recovered
from raftd.test.simdisk import Operation, SimulatedDisk

JOINING = Identity(
    Stage.JOINING, "localhost:4002", MEMBER, join_servers=("localhost:4001", "höst:4003")
)
CREATED = msgspec.structs.replace(JOINING, log_created=True, cluster_id=0xC1)
JOINED = msgspec.structs.replace(CREATED, stage=Stage.MEMBER)
FOUNDING = Identity(Stage.INITIALIZING, "localhost:4001", MEMBER, 0xC1)
FOUNDED = msgspec.structs.replace(FOUNDING, stage=Stage.MEMBER, log_created=True)


def opened(disk: SimulatedDisk) -> DataDirectory:
    directory = DataDirectory("/data", files=disk)
    directory.open()
    return directory


def create_log(directory: DataDirectory, disk: SimulatedDisk) -> None:
    wal = Wal.create(
        directory.log_path,
        MEMBER,
        HardState(1, MEMBER),
        entries(1, 1),
        reactor=ManualReactor(),
        segment_bytes=1024,
        files=disk,
    )
    wal.close()


class IdentityTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        for identity in (JOINING, CREATED, JOINED, FOUNDING, FOUNDED):
            self.assertEqual(decode_identity(encode_identity(identity), "f"), identity)

    def test_readable(self) -> None:
        """A person can read it, and lay it out anew without harm."""
        data = encode_identity(CREATED)
        fields = json.loads(data)
        self.assertEqual(fields["member_id"], "1122334455667788")
        self.assertEqual(fields["cluster_id"], "00000000000000c1")
        self.assertIn(b'"stage": "joining",\n', data)
        self.assertIn("höst:4003".encode(), data)
        self.assertEqual(decode_identity(json.dumps(fields).encode(), "f"), CREATED)

    def test_46_flipped_bits(self) -> None:
        """Every bit of it: refused, or the same identity."""
        data = encode_identity(CREATED)
        refused = 0
        for position in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            try:
                self.assertEqual(
                    decode_identity(bytes(flipped), "/data/identity.json"), CREATED
                )
            except DirectoryDamaged as e:
                self.assertIn("/data/identity.json is damaged at offset 0", str(e))
                refused += 1
        self.assertGreater(refused, len(data) * 7)

    def test_anything_else_is_refused(self) -> None:
        for data in (
            b"",
            b"{}",
            b"[]",
            b"null",
            b"[" * 100_000,
            b"\xff\xfe",
            b'{"checksum": 1}',
        ):
            with self.assertRaises(DirectoryDamaged):
                decode_identity(data, "f")

    def test_version_of_the_future(self) -> None:
        """Told from damage by the checksum, with a sentence of its own."""
        future = encode_identity(msgspec.structs.replace(JOINED, format_version=7))
        with self.assertRaises(DirectoryDamaged) as caught:
            decode_identity(future, "/data/identity.json")
        self.assertIn("/data/identity.json has format version 7", str(caught.exception))
        with self.assertRaises(DirectoryDamaged) as caught:
            decode_identity(future.replace(b"7,", b"9,", 1), "f")
        self.assertIn("damaged", str(caught.exception))

    def test_new_is_never_on_disk(self) -> None:
        data = encode_identity(msgspec.structs.replace(JOINING, stage=Stage.NEW))
        self.assertRaises(DirectoryDamaged, decode_identity, data, "f")

    def test_draw_id(self) -> None:
        answers = iter([bytes(8), b"\x01" + bytes(7)])
        self.assertEqual(draw_id(lambda length: next(answers)[:length]), 1)
        drawn = {draw_id() for _ in range(100)}
        self.assertEqual(len(drawn), 100)
        self.assertGreater(max(drawn), 1 << 60)


class StageTests(SynchronousTestCase):
    def test_new(self) -> None:
        """Opening an empty directory changes nothing in it."""
        disk = new_disk()
        before = disk.operations
        directory = opened(disk)
        self.assertIs(directory.stage, Stage.NEW)
        self.assertIsNone(directory.identity)
        directory.close()
        self.assertEqual(disk.operations, before)
        self.assertEqual(disk.open_count, 0)

    def test_save_and_open(self) -> None:
        disk = new_disk()
        directory = opened(disk)
        directory.save(JOINING)
        self.assertEqual(directory.identity, JOINING)
        directory.close()
        again = opened(disk.power_failure())
        self.assertEqual(again.identity, JOINING)
        self.assertIs(again.stage, Stage.JOINING)

    def test_49_directory_as_new_as_its_identity(self) -> None:
        """It was made just before, and nobody flushed its parent."""
        disk = SimulatedDisk()
        disk.make_directory("/data")
        directory = opened(disk)
        directory.save(JOINING)
        self.assertEqual(opened(disk.power_failure()).identity, JOINING)

    def test_log_without_identity(self) -> None:
        disk = new_disk()
        directory = opened(disk)
        directory.save(FOUNDING)
        create_log(directory, disk)
        directory.close()
        disk.remove("/data/identity.json")
        before = disk.contents()
        with self.assertRaises(DirectoryDamaged) as caught:
            opened(disk)
        self.assertIn("/data/log belongs to a node whose identity file", str(caught.exception))
        self.assertEqual(disk.contents(), before)
        self.assertEqual(disk.open_count, 0)

    def test_38_identity_without_log(self) -> None:
        """A node that lost its log has forgotten its vote; it does not start."""
        for identity in (CREATED, JOINED, FOUNDED):
            disk = new_disk()
            directory = opened(disk)
            directory.save(identity)
            directory.close()
            with self.assertRaises(DirectoryDamaged) as caught:
                opened(disk)
            self.assertIn("/data/log, is missing", str(caught.exception))

    def test_a_member_stays_one(self) -> None:
        directory = opened(new_disk())
        directory.save(FOUNDING)
        directory.save(msgspec.structs.replace(FOUNDING, member_id=5))
        directory.save(FOUNDED)
        for change in (
            {"member_id": 5},
            {"stage": Stage.JOINING},
            {"cluster_id": 7},
            {"log_created": False},
            {"name": ""},
            {"format_version": 2},
        ):
            with self.assertRaises(InvariantViolated):
                directory.save(msgspec.structs.replace(FOUNDED, **change))
        with self.assertRaises(InvariantViolated):
            directory.discard_log()
        self.assertEqual(directory.identity, FOUNDED)

    def test_joiner_keeps_its_id(self) -> None:
        directory = opened(new_disk())
        directory.save(CREATED)
        with self.assertRaises(InvariantViolated):
            directory.save(msgspec.structs.replace(CREATED, member_id=5))
        with self.assertRaises(InvariantViolated):
            directory.save(JOINING)
        directory.save(msgspec.structs.replace(CREATED, join_servers=("other:1",)))

    def test_closed(self) -> None:
        directory = DataDirectory("/data", files=new_disk())
        self.assertRaises(InvariantViolated, directory.save, JOINING)
        self.assertRaises(InvariantViolated, directory.discard_log)
        directory.open()
        self.assertRaises(InvariantViolated, directory.open)

    def test_full_disk(self) -> None:
        """Each operation of `save` fails: a sentence, and one identity or the other."""
        count = 0
        for broken in range(1, 6):
            disk = new_disk()
            directory = opened(disk)
            directory.save(JOINING)
            disk.before = _fail_at(broken)
            with self.assertRaises(StorageFailed) as caught:
                directory.save(CREATED)
            self.assertIn("/data/identity.json could not be written", str(caught.exception))
            disk.before = lambda operation: None
            create_log(directory, disk)
            directory.close()
            self.assertEqual(disk.open_count, 0)
            self.assertIn(opened(disk).identity, (JOINING, CREATED))
            count += 1
        self.assertEqual(count, 5)


def _fail_at(broken: int) -> Callable[[Operation], None]:
    calls = 0

    def before(operation: Operation) -> None:
        nonlocal calls
        calls += 1
        if calls == broken:
            raise OSError(errno.ENOSPC, "No space left on device")

    return before


class CrashTests(SynchronousTestCase):
    """From an empty directory to a member, and the power fails at every step."""

    def check(self, founding: Identity, *later: Identity) -> None:
        choice = random.Random(1)
        disk = new_disk()
        identities = [founding, *later]
        saved = 0
        seen: set[Stage] = set()

        def restart(left: SimulatedDisk) -> None:
            """Whatever was left, it goes on from there to the end."""
            directory = opened(left)
            found = directory.identity
            seen.add(directory.stage)
            self.assertIn(found, [None, *identities][saved:])
            if found is None:
                directory.save(founding)
                found = founding
            if found.log_created:
                self.assertEqual(recovered(left), (HardState(1, MEMBER), entries(1, 1)))
            else:
                directory.discard_log()
                create_log(directory, left)
            for identity in identities[identities.index(found) + 1 :]:
                directory.save(identity)
            directory.close()
            after = left.power_failure()
            self.assertEqual(opened(after).identity, identities[-1])
            self.assertEqual(recovered(after), (HardState(1, MEMBER), entries(1, 1)))

        def judge(operation: Operation) -> None:
            for left in disk.power_failures(choice):
                restart(left)
            killed = disk.killed()
            restart(killed)
            # A process that was killed and restarted builds on what it read.
            killed = disk.killed()
            directory = opened(killed)
            found = directory.identity
            directory.close()
            if found is not None:
                self.assertEqual(opened(killed.power_failure()).identity, found)

        disk.before = judge
        directory = opened(disk)
        directory.save(founding)
        saved = 1
        create_log(directory, disk)
        for identity in later:
            directory.save(identity)
            saved += 1
        self.assertEqual(seen, {Stage.NEW, *(i.stage for i in identities)})

    def test_49_new_cluster(self) -> None:
        self.check(FOUNDING, FOUNDED)

    def test_49_joining(self) -> None:
        self.check(JOINING, CREATED, JOINED)

    def test_discarding(self) -> None:
        """The power fails while a log without promises is removed."""
        choice = random.Random(2)
        disk = new_disk()
        directory = opened(disk)
        directory.save(JOINING)
        create_log(directory, disk)
        count = 0

        def judge(operation: Operation) -> None:
            nonlocal count
            for left in disk.power_failures(choice):
                again = opened(left)
                again.discard_log()
                create_log(again, left)
                self.assertEqual(recovered(left)[1], entries(1, 1))
                count += 1

        disk.before = judge
        directory.discard_log()
        self.assertGreater(count, 8)
        self.assertEqual(list(disk.contents()), ["/data/identity.json"])


class RealDirectoryTests(SynchronousTestCase):
    """On the real file system."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        os.mkdir(self.path)

    def test_lock(self) -> None:
        """Held against this process too, by the directory alone, and released."""
        first = DataDirectory(self.path)
        first.open()
        with self.assertRaises(DirectoryInUse) as caught:
            DataDirectory(self.path).open()
        self.assertIn(self.path, str(caught.exception))
        self.assertEqual(os.listdir(self.path), [])
        first.close()
        first.close()
        second = DataDirectory(self.path)
        second.open()
        second.close()

    def test_lock_against_another_process(self) -> None:
        directory = DataDirectory(self.path)
        directory.open()
        program = (
            "import sys; from raftd.storage.directory import DataDirectory\n"
            "from raftd.errors import DirectoryInUse\n"
            "try: DataDirectory(sys.argv[1]).open()\n"
            "except DirectoryInUse: print('in use')\n"
        )

        def other() -> str:
            command = [sys.executable, "-c", program, self.path]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            return done.stdout

        self.assertEqual(other(), "in use\n")
        directory.close()
        self.assertEqual(other(), "")

    def test_unfit_paths(self) -> None:
        missing = os.path.join(self.path, "missing")
        with self.assertRaises(BadAnswer) as caught:
            DataDirectory(missing).open()
        self.assertEqual(str(caught.exception), f"There is no directory {missing}.")
        file = os.path.join(self.path, "file")
        with open(file, "w"):
            pass
        with self.assertRaises(BadAnswer) as caught:
            DataDirectory(file).open()
        self.assertEqual(str(caught.exception), f"{file} is not a directory.")

    def test_not_writable(self) -> None:
        class ReadOnly(SimulatedDisk):
            def is_writable(self, path: str) -> bool:
                return False

        disk = ReadOnly()
        disk.make_directory("/data")
        with self.assertRaises(BadAnswer) as caught:
            DataDirectory("/data", files=disk).open()
        self.assertIn("/data is not writable", str(caught.exception))

    def test_a_life(self) -> None:
        directory = DataDirectory(self.path)
        directory.open()
        directory.save(FOUNDING)
        directory.discard_log()
        wal = Wal.create(
            directory.log_path, MEMBER, HardState(1, 2), entries(1, 3), reactor=ManualReactor()
        )
        wal.close()
        directory.save(FOUNDED)
        directory.close()
        self.assertEqual(sorted(os.listdir(self.path)), ["identity.json", "log"])
        directory.open()
        self.assertEqual(directory.identity, FOUNDED)
        directory.close()
