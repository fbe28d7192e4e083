"""`raftctl snapshot` and `restore`: a file is a whole backup, or not there."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from raftd.client.admin import Admin
from raftd.client.errors import Unreachable
from raftd.ctl import backups
from raftd.ctl.backups import MAGIC, Checker
from raftd.errors import SnapshotDamaged
from raftd.kv.backup import MAGIC as STORES_MAGIC
from raftd.test.ctlrig import CtlCase


def checked(data: bytes, step: int = 7) -> int:
    """The revision of a backup that comes in pieces."""
    checker = Checker()
    for begin in range(0, len(data), step):
        checker.feed(data[begin : begin + step])
    return checker.finish()


class Checks(SynchronousTestCase):
    def backup(self, state: bytes) -> bytes:
        return MAGIC + state + hashlib.sha256(MAGIC + state).digest()

    HEAD = b"\x05\x00\x00\x00\x93\xa1x\x07\x00"

    def test_a_whole_one(self) -> None:
        self.assertEqual(MAGIC, STORES_MAGIC)
        for state in (self.HEAD, self.HEAD + bytes(100_000)):
            for step in (1, 31, 32, 33, 1000, 1 << 20):
                if step > 1 or len(state) < 100:
                    self.assertEqual(checked(self.backup(state), step), 7)

    def test_anything_else(self) -> None:
        whole = self.backup(self.HEAD + bytes(100))
        for i in range(len(whole)):
            with self.assertRaises(SnapshotDamaged):
                checked(whole[:i])
            flipped = bytearray(whole)
            flipped[i] ^= 1
            with self.assertRaises(SnapshotDamaged):
                checked(bytes(flipped))
        states = (b"", b"\0" * 4, b"\x01\0\0\0\x90", b"\x03\0\0\0\x92\xa1x")
        for other in (whole + b"\0", b"", whole[1:], *map(self.backup, states)):
            with self.assertRaises(SnapshotDamaged):
                checked(other)


class Snapshots(CtlCase):
    size = 2

    def setUp(self) -> None:
        super().setUp()
        for i in range(5):
            self.ok("put", f"k{i}", "-", stdin=os.urandom(300_000))
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "backup")

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def test_saved_and_checked(self) -> None:
        saved = self.ok("snapshot", "save", self.path, "-o", "json").json
        data = Path(self.path).read_bytes()
        self.assertEqual(saved["revision"], 6)
        self.assertEqual(saved["size_bytes"], len(data))
        self.assertEqual(checked(data, 1 << 16), 6)
        self.assertEqual(self.files(), ["backup"])
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.assertEqual(self.ok("snapshot", "status", self.path, "-o", "json").json, saved)
        # Another one in its place.
        self.ok("put", "k", "v")
        self.assertEqual(self.ok("snapshot", "save", self.path, "-o", "raw").text, "7\n")
        self.assertEqual(self.files(), ["backup"])
        self.assertEqual(self.ok("snapshot", "save", "-").out, Path(self.path).read_bytes())

    def test_a_server_that_dies_in_the_middle(self) -> None:
        """Another one begins anew, and nothing of the first is left."""
        running = self.begin("snapshot", "save", self.path)

        def is_under_way() -> bool:
            parts = [n for n in self.files() if n.endswith(".part")]
            return any(os.stat(os.path.join(self.directory, n)).st_size > 0 for n in parts)

        self.cluster.advance_until(is_under_way)
        self.assertFalse(os.path.exists(self.path))
        self.cluster.crash("n1")
        self.cluster.restart("n1")
        self.assertEqual(self.cluster.result(running.done, 60), 0, running.err.text())
        self.assertEqual(checked(Path(self.path).read_bytes(), 1 << 16), 6)
        self.assertEqual(self.files(), ["backup"])

    def test_given_up(self) -> None:
        Path(self.path).write_bytes(b"the one before")
        running = self.begin("snapshot", "save", self.path)
        self.cluster.advance_until(lambda: len(self.files()) == 2)
        running.done.cancel()
        self.cluster.advance(1)
        self.failureResultOf(running.done, CancelledError)
        self.assertEqual(self.files(), ["backup"])
        self.assertEqual(Path(self.path).read_bytes(), b"the one before")

    def replace_snapshot(
        self, send: Callable[[Callable[[int], None], Callable[[bytes], None]], None]
    ) -> None:
        def snapshot(
            _: Admin, begin: Callable[[int], None], write: Callable[[bytes], None]
        ) -> Deferred[None]:
            done: Deferred[None] = Deferred()
            try:
                send(begin, write)
            except Exception as e:
                done.errback(e)
            else:
                done.callback(None)
            return done

        self.patch(Admin, "snapshot", snapshot)

    def test_what_is_not_whole_is_not_kept(self) -> None:
        whole = self.ok("snapshot", "save", "-").out
        damaged = bytearray(whole)
        damaged[700_000] ^= 4
        Path(self.path).write_bytes(b"the one before")
        for data in (whole[:-1], bytes(damaged), b""):

            def send(
                begin: Callable[[int], None], write: Callable[[bytes], None], data: bytes = data
            ) -> None:
                begin(6)
                write(data)

            self.replace_snapshot(send)
            self.fails(1, "no backup to rely on", "snapshot", "save", self.path)
            self.assertEqual(self.files(), ["backup"])
            self.assertEqual(Path(self.path).read_bytes(), b"the one before")
            self.assertNotEqual(self.run_command("snapshot", "save", "-").status, 0)

    def test_a_second_try_begins_anew(self) -> None:
        whole = self.ok("snapshot", "save", "-").out

        def send(begin: Callable[[int], None], write: Callable[[bytes], None]) -> None:
            begin(6)
            write(whole[:1000])
            begin(6)
            write(whole)

        self.replace_snapshot(send)
        self.ok("snapshot", "save", self.path)
        self.assertEqual(Path(self.path).read_bytes(), whole)
        # What went down a pipe cannot be taken back.
        self.fails(3, "no whole backup", "snapshot", "save", "-")

    def test_the_disk_fails(self) -> None:
        def fsync(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        self.patch(os, "fsync", fsync)
        self.fails(3, "could not be written: Input/output error", "snapshot", "save", self.path)
        self.assertEqual(self.files(), [])

    def test_it_is_on_the_disk_before_it_has_its_name(self) -> None:
        steps: list[Any] = []
        fsync, rename = os.fsync, os.rename

        def noted_fsync(fd: int) -> None:
            steps.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
            fsync(fd)

        def noted_rename(old: str, new: str) -> None:
            steps.append("rename")
            rename(old, new)

        self.patch(os, "fsync", noted_fsync)
        self.patch(os, "rename", noted_rename)
        self.ok("snapshot", "save", self.path)
        self.assertEqual(steps, ["file", "rename", "directory"])

    def test_nobody_answers(self) -> None:
        def send(begin: Callable[[int], None], write: Callable[[bytes], None]) -> None:
            raise Unreachable("Nobody.")

        self.replace_snapshot(send)
        self.fails(3, "Nobody", "snapshot", "save", self.path)
        self.assertEqual(self.files(), [])

    def test_wrong_names(self) -> None:
        self.fails(2, "is a directory", "snapshot", "save", self.directory)
        self.fails(
            2, "Nothing can be written", "snapshot", "save", f"{self.directory}/no/backup"
        )
        self.fails(2, "cannot be read", "snapshot", "status", self.path)
        self.fails(2, "nothing for a terminal", "snapshot", "save", "-",
                   terminal=True, environ={"NO_COLOR": "1"})  # fmt: skip
        Path(self.path).write_bytes(b"something else")
        self.fails(1, "no backup to rely on", "snapshot", "status", self.path)

    def test_restore_says_how(self) -> None:
        self.ok("snapshot", "save", self.path)
        new = os.path.join(self.directory, "a new one")
        typed = ("restore", self.path, "--name", "db:4001", "--to", new)
        expected = ["raftd", "--data-dir", os.path.abspath(new), "--name", "db:4001",
                    "--init", "--restore", os.path.abspath(self.path)]  # fmt: skip
        said = self.ok(*typed, "-o", "json").json
        self.assertEqual(said, {"revision": 6, "command": expected})
        text = self.ok(*typed).text
        self.assertTrue(
            text.startswith(f"mkdir -p '{os.path.abspath(new)}' && raftd --data-dir '")
        )
        self.assertTrue(
            self.ok(*typed, "--ahead", "1000").text.endswith(" --restore-ahead 1000\n")
        )
        self.assertFalse(os.path.exists(new))
        shown = self.run_command(*typed, terminal=True)
        self.assertIn("whole, as of revision 6", shown.said)

        running = self.begin(*typed, "--start")
        self.assertEqual(self.cluster.result(running.done), 0)
        become = running.context.become
        assert become is not None
        self.assertEqual(become[-7:], expected[1:])
        self.assertTrue(os.path.isdir(new))

    def test_restore_refuses(self) -> None:
        self.ok("snapshot", "save", self.path)
        Path(self.directory, "identity.json").touch()
        self.fails(1, "a member's already", "restore", self.path, "--to", self.directory)
        self.fails(2, "host:port", "restore", self.path, "--name", "x")
        Path(self.path).write_bytes(Path(self.path).read_bytes()[:-1])
        self.fails(1, "no backup to rely on", "restore", self.path)

    def test_compact(self) -> None:
        self.assertEqual(self.ok("compact", "--keep", "2").text, "5\n")
        self.assertEqual(self.ok("compact", "6", "-o", "json").json, {"compacted_revision": 6})
        self.fails(1, "compacted", "compact", "3")
        self.fails(2, "", "compact", "99")

    def test_the_server_is_that_of_this_installation(self) -> None:
        found = backups._executable(["raftd", "--init"])
        self.assertEqual(found[-1], "--init")
        self.assertTrue(os.access(found[0], os.X_OK))
