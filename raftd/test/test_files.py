"""The real file system, as far as what the storage asks of it is not a plain call."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from raftd.storage import files as files_module
from raftd.storage.files import Files

DATA = b"a frame of the log"
OFFSET = 512


class WriteAndFlushTests(SynchronousTestCase):
    """One call where the system has one for both, and both where it has not."""

    def setUp(self) -> None:
        self.files = Files()
        path = self.mktemp()
        self.fd = self.files.create(path)
        self.addCleanup(lambda: self.files.close(self.fd))
        self.flushes = 0
        flush = files_module._flush

        def counted(fd: int) -> None:
            self.flushes += 1
            flush(fd)

        self.patch(files_module, "_flush", counted)

    def through(self, pwritev: Callable[..., int]) -> None:
        """The system has it, and it does this; the file system is known to honour it."""
        self.patch(files_module, "_WRITE_THROUGH", 2)
        self.patch(files_module, "_file_system", lambda device: b"ext4")
        self.patch(os, "pwritev", pwritev)

    def open_another(self) -> None:
        self.files.close(self.fd)
        self.fd = self.files.create(self.mktemp())

    def written(self) -> bytes:
        return self.files.read(self.fd, 1 << 20, 0)

    def test_writes(self) -> None:
        self.files.write_and_flush(self.fd, DATA, OFFSET)
        self.assertEqual(self.written(), bytes(OFFSET) + DATA)
        self.assertEqual(self.flushes, 0 if self.files._writes_through[self.fd] else 1)

    def test_asks_for_what_makes_it_durable(self) -> None:
        asked: list[tuple[int, tuple[bytes, ...], int, int]] = []

        def pwritev(fd: int, buffers: tuple[bytes, ...], offset: int, flags: int) -> int:
            asked.append((fd, buffers, offset, flags))
            return len(DATA)

        self.through(pwritev)
        self.files.write_and_flush(self.fd, DATA, OFFSET)
        self.assertEqual(asked, [(self.fd, (DATA,), OFFSET, 2)])
        self.assertEqual(self.flushes, 0)

    def test_a_system_that_has_it_not(self) -> None:
        self.patch(files_module, "_WRITE_THROUGH", 0)
        self.files.write_and_flush(self.fd, DATA, OFFSET)
        self.assertEqual(self.written(), bytes(OFFSET) + DATA)
        self.assertEqual(self.flushes, 1)

    def test_a_kernel_or_a_file_system_that_does_not_know_it(self) -> None:
        """It is not asked again for the same file."""
        for number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            asked: list[int] = []

            def unknown(fd: int, *_: object, number: int = number) -> int:
                asked.append(fd)  # noqa: B023, it is called in this very round
                raise OSError(number, "no")

            self.through(unknown)
            self.open_another()
            self.flushes = 0
            self.files.write_and_flush(self.fd, DATA, OFFSET)
            self.files.write_and_flush(self.fd, DATA, OFFSET)
            self.assertEqual(self.written(), bytes(OFFSET) + DATA)
            self.assertEqual((asked, self.flushes), ([self.fd], 2))

    def test_50_a_file_system_that_may_take_it_and_do_nothing(self) -> None:
        """Those of other hosts and processes are flushed, and so are those nobody knows."""
        asked: list[int] = []

        def pwritev(fd: int, buffers: tuple[bytes], offset: int, flags: int) -> int:
            asked.append(fd)
            return os.pwrite(fd, buffers[0], offset)

        self.through(pwritev)
        for name in (b"9p", b"fuse.sshfs", b"nfs4", b"overlay", b""):
            self.patch(files_module, "_file_system", lambda device, name=name: name)
            self.open_another()
            self.flushes = 0
            self.files.write_and_flush(self.fd, DATA, OFFSET)
            self.assertEqual(self.written(), bytes(OFFSET) + DATA)
            self.assertEqual((asked, self.flushes), ([], 1))
        # What was said of a descriptor goes with its file.
        self.patch(files_module, "_file_system", lambda device: b"xfs")
        self.open_another()
        self.files.write_and_flush(self.fd, DATA, OFFSET)
        self.assertEqual((asked, self.flushes), ([self.fd], 1))

    def test_a_part(self) -> None:
        """What was written in part is written as a whole, and flushed."""

        def in_part(fd: int, buffers: tuple[bytes], offset: int, flags: int) -> int:
            return os.pwrite(fd, buffers[0][:5], offset)

        self.through(in_part)
        self.files.write_and_flush(self.fd, DATA, OFFSET)
        self.assertEqual(self.written(), bytes(OFFSET) + DATA)
        self.assertEqual(self.flushes, 1)

    def test_47_what_failed_is_not_tried_again(self) -> None:
        """The second success would say nothing of what the first has lost."""
        calls: list[int] = []

        def failing(*_: object) -> int:
            calls.append(1)
            raise OSError(errno.EIO, "Input/output error")

        self.through(failing)
        with self.assertRaises(OSError) as caught:
            self.files.write_and_flush(self.fd, DATA, OFFSET)
        self.assertEqual(caught.exception.errno, errno.EIO)
        self.assertEqual((len(calls), self.flushes), (1, 0))
        self.assertEqual(self.written(), b"")


class FileSystemTests(SynchronousTestCase):
    def test_its_type(self) -> None:
        if not os.path.exists("/proc/self/mountinfo"):
            raise SkipTest("this system does not say what is mounted")
        self.assertEqual(files_module._file_system(os.stat("/proc").st_dev), b"proc")

    def test_nothing_is_mounted_from_it(self) -> None:
        self.assertEqual(files_module._file_system(os.makedev(4095, 1048575)), b"")
