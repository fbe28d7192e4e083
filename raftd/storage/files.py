"""
Every file operation of the storage, in one place.

All of `raftd.storage` goes through a `Files`, so that a test can put a
simulated disk in its place: one that records every operation, fails any of
them, and forgets what was not flushed.

Nothing is caught here: an `OSError` means what the operating system says.
"""

from __future__ import annotations

import errno
import fcntl
import os
from functools import lru_cache

#: `fdatasync` where the system has it: like `fsync`, without the times of the inode.
_flush = getattr(os, "fdatasync", os.fsync)

#: For one call that writes and flushes; 0 where the system has none.
_WRITE_THROUGH: int = getattr(os, "RWF_DSYNC", 0) if hasattr(os, "pwritev") else 0

#: File systems of which it is known that they then flush as `fdatasync` does.  A
#: kernel takes the flag for every file system, and some never look at it: those
#: of other hosts and processes (`9p`, `fuse`), which `fdatasync` alone reaches.
_HONOURED_BY = frozenset({b"ext4", b"xfs"})

#: What a kernel says that does not know it, or a sandbox that does not let it.
_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)

#: What the system says when a disk, or this user's share of it, is full.
FULL = (errno.ENOSPC, errno.EDQUOT)


class Files:
    """
    The real file system.

    Paths are absolute or relative to the working directory; descriptors are
    those of the operating system.  What each method makes durable is said
    there; nothing else is durable when it returns.
    """

    def __init__(self) -> None:
        #: By descriptor: whether one call may write and flush.
        self._writes_through: dict[int, bool] = {}

    # -- files ---------------------------------------------------------------

    def create(self, path: str) -> int:
        """A new, empty file, open for reading and writing; it must not exist yet."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def open(self, path: str) -> int:
        """An existing file, open for reading and writing."""
        return os.open(path, os.O_RDWR)

    def close(self, fd: int) -> None:
        self._writes_through.pop(fd, None)
        os.close(fd)

    def size(self, fd: int) -> int:
        """Length in bytes."""
        return os.fstat(fd).st_size

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """`length` bytes from `offset` on; fewer only at the end of the file."""
        parts = []
        while length > 0:
            part = os.pread(fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        """All of `data` at `offset`; durable only after `flush`."""
        written = os.pwrite(fd, data, offset)
        # A short write is not an error: on a full disk the next call says what is.
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def reserve(self, fd: int, length: int) -> None:
        """
        Fail now if there is no room for `length` bytes, and write none of them.

        Where the system cannot tell, the writes do.
        """
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, 0, length)
            except OSError as e:
                if e.errno in FULL:
                    raise

    def write_and_flush(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        """
        As `write`, and then `flush` if nothing else was written to the file since
        the last one; in one call where the system can, which saves a thread of the
        log from waiting for the interpreter in between.
        """
        if not self._write_through(fd, data, offset):
            self.write(fd, data, offset)
            self.flush(fd)

    def _write_through(self, fd: int, data: bytes | bytearray, offset: int) -> bool:
        """
        Whether the system has written all of `data` and made it durable.

        If it has written a part, all of it is written again: the same bytes.
        """
        honoured = self._writes_through.get(fd)
        if honoured is None:
            device = os.fstat(fd).st_dev
            honoured = _WRITE_THROUGH != 0 and _file_system(device) in _HONOURED_BY
            self._writes_through[fd] = honoured
        if not honoured:
            return False
        try:
            return os.pwritev(fd, (data,), offset, _WRITE_THROUGH) == len(data)
        except OSError as e:
            if e.errno not in _UNKNOWN:
                raise
            self._writes_through[fd] = False
            return False

    def flush(self, fd: int) -> None:
        """Make durable what was written to the file, and its length."""
        _flush(fd)

    # -- names ---------------------------------------------------------------

    def names(self, path: str) -> list[str]:
        """What the directory holds, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def rename(self, old: str, new: str) -> None:
        """Atomic, replacing a file `new`; durable only after `flush_directory`."""
        os.rename(old, new)

    def remove(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def flush_directory(self, path: str) -> None:
        """Make durable what was created, renamed and removed in the directory."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock_directory(self, path: str) -> int:
        """
        Lock the directory itself until the descriptor is closed; creates nothing.

        `BlockingIOError` if anybody else, in this process or another, has it.
        `flock`, not `lockf`: the latter lets one process in twice.
        """
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(path)

    def is_writable(self, path: str) -> bool:
        """Whether files may be created in the directory."""
        return os.access(path, os.R_OK | os.W_OK | os.X_OK)


@lru_cache(maxsize=16)
def _file_system(device: int) -> bytes:
    """The type of what is mounted from `device` (proc(5), mountinfo); empty if unknown."""
    number = b"%d:%d" % (os.major(device), os.minor(device))
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            for mount in mounts:
                fields, _, source = mount.partition(b" - ")
                if fields.split()[2] == number:
                    return source.split()[0]
    except (OSError, IndexError):
        pass
    return b""


def remove_tree(files: Files, path: str) -> None:
    """Remove a directory of plain files if it exists; durable after a flush of its parent."""
    if not files.exists(path):
        return
    for name in files.names(path):
        files.remove(os.path.join(path, name))
    files.remove_directory(path)
