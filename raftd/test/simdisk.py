"""
A simulated disk: files in memory that know what is durable and what is not.

It stands in for `raftd.storage.files.Files`.  What was written is in the
kernel's cache until it is flushed; a power failure keeps what is durable and
any part of the rest: any combination of the sectors written, and any of the
names created, renamed and removed.  A killed process loses nothing that
reached the cache, but may stop in the middle of a write.  A bit that was
flipped is read wrong until its byte is written anew.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raftd.storage.files import Files

SECTOR = 512


class Inode:
    """A file: what the cache holds, what is durable, and the writes between the two."""

    def __init__(self) -> None:
        self.path = ""
        self.cache = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []
        #: By offset: which bits of a byte are read wrong.
        self.flipped: dict[int, int] = {}

    def read(self, length: int, offset: int) -> bytes:
        data = self.cache[offset : offset + length]
        for at, bits in self.flipped.items():
            if offset <= at < offset + len(data):
                data[at - offset] ^= bits
        return bytes(data)

    def write(self, data: bytes, offset: int) -> None:
        _put(self.cache, data, offset)
        self.pending.append((offset, data))
        for at in [at for at in self.flipped if offset <= at < offset + len(data)]:
            del self.flipped[at]

    def flush(self) -> None:
        """Only what is pending reaches the disk; what a failed flush lost stays lost."""
        for offset, data in self.pending:
            _put(self.durable, data, offset)
        self.pending.clear()

    def flush_last(self) -> None:
        """The last write reaches the disk, and nothing else does."""
        offset, data = self.pending.pop()
        _put(self.durable, data, offset)

    def pending_sectors(self) -> list[tuple[int, bytes]]:
        """The unflushed writes cut up as a disk may do them, in any order."""
        sectors = []
        for offset, data in self.pending:
            start = 0
            while start < len(data):
                stop = min(len(data), start + SECTOR - (offset + start) % SECTOR)
                sectors.append((offset + start, data[start:stop]))
                start = stop
        return sectors

    def copy(self) -> Inode:
        new = Inode()
        new.path = self.path
        new.cache = bytearray(self.cache)
        new.durable = bytearray(self.durable)
        new.pending = list(self.pending)
        new.flipped = dict(self.flipped)
        return new

    def lost(self, kept: list[tuple[int, bytes]]) -> Inode:
        """After a power failure of which the sectors `kept` were written yet."""
        new = Inode()
        new.durable = bytearray(self.durable)
        for offset, data in kept:
            _put(new.durable, data, offset)
        new.cache = bytearray(new.durable)
        new.flipped = dict(self.flipped)
        return new


def _put(buffer: bytearray, data: bytes, offset: int) -> None:
    if len(buffer) < offset:
        buffer.extend(bytes(offset - len(buffer)))
    buffer[offset : offset + len(data)] = data


class Folder:
    """A directory: its names in the cache, the durable ones, and the changes between."""

    def __init__(self) -> None:
        self.cache: dict[str, Inode | Folder] = {}
        self.durable: dict[str, Inode | Folder] = {}
        self.pending: list[tuple[str, str, str]] = []
        #: The file or directory of each pending change; None for a removal.
        self.nodes: list[Inode | Folder | None] = []

    def change(self, kind: str, old: str, new: str, node: Inode | Folder | None) -> None:
        _apply(self.cache, kind, old, new, node)
        self.pending.append((kind, old, new))
        self.nodes.append(node)

    def flush(self) -> None:
        self.durable = dict(self.cache)
        self.pending.clear()
        self.nodes.clear()


def _apply(
    names: dict[str, Inode | Folder],
    kind: str,
    old: str,
    new: str,
    node: Inode | Folder | None,
) -> None:
    if kind != "create":
        names.pop(old, None)
    if node is not None:
        names[new] = node


class Operation(NamedTuple):
    """What is about to be done to the disk."""

    name: str
    path: str
    data: bytes = b""
    offset: int = 0


def fail_on(*names: str) -> Callable[[Operation], None]:
    """For `SimulatedDisk.before`: operations of these names fail, and do nothing."""

    def before(operation: Operation) -> None:
        if operation.name in names:
            raise OSError(errno.EIO, "Input/output error")

    return before


class SimulatedDisk(Files):
    """
    The root directory `/`, in memory.

    `before(operation)` is called ahead of every operation that changes or
    flushes something; it may look at the disk, or raise `OSError` to make the
    operation fail.  A flush that fails loses the writes that it was for, and
    the cache goes on as if they had been made: that is what Linux does.
    """

    def __init__(self) -> None:
        self.root = Folder()
        self.before: Callable[[Operation], None] = lambda operation: None
        self.operations = 0
        self._open: dict[int, Inode] = {}
        self._locked: dict[int, str] = {}
        self._descriptors = itertools.count(3)

    # -- what tests do -------------------------------------------------------

    def folder(self, path: str) -> Folder:
        node: Inode | Folder = self.root
        for part in path.strip("/").split("/"):
            if part:
                node = self._names(node).get(part) or _missing(path)
        if isinstance(node, Inode):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
        return node

    def inode(self, path: str) -> Inode:
        node = self.folder(os.path.dirname(path)).cache.get(os.path.basename(path))
        if not isinstance(node, Inode):
            _missing(path)
        assert isinstance(node, Inode)
        return node

    @staticmethod
    def _names(node: Inode | Folder) -> dict[str, Inode | Folder]:
        return node.cache if isinstance(node, Folder) else {}

    @property
    def open_count(self) -> int:
        """Descriptors that nobody has closed."""
        return len(self._open) + len(self._locked)

    def contents(self) -> dict[str, bytes]:
        """Every file by path, as a running process sees it."""
        found: dict[str, bytes] = {}

        def walk(folder: Folder, path: str) -> None:
            for name, node in folder.cache.items():
                if isinstance(node, Folder):
                    walk(node, f"{path}/{name}")
                else:
                    found[f"{path}/{name}"] = node.read(len(node.cache), 0)

        walk(self.root, "")
        return found

    def killed(self) -> SimulatedDisk:
        """The process died: all that reached the cache is there, durable or not."""
        new = SimulatedDisk()
        memo: dict[int, Inode | Folder] = {}
        new.root = _as_folder(_copy(self.root, memo))
        return new

    def power_failures(
        self, choice: random.Random, limit: int = 256
    ) -> Iterator[SimulatedDisk]:
        """
        What may be left after a power failure: every combination of unflushed
        sectors and names, or, above `limit` of them, so many chosen ones.
        """
        units = self._units()
        if 2 ** len(units) <= limit:
            for bits in itertools.product((False, True), repeat=len(units)):
                yield self._survivor(dict(zip(units, bits, strict=True)))
        else:
            yield self._survivor(dict.fromkeys(units, False))
            yield self._survivor(dict.fromkeys(units, True))
            for _ in range(limit - 2):
                yield self._survivor({unit: choice.random() < 0.5 for unit in units})

    def power_failure(self) -> SimulatedDisk:
        """Everything that was not flushed is lost."""
        return self._survivor({})

    def _units(self) -> list[tuple[int, int]]:
        """Each thing that a power failure may keep or lose: (node, number in it)."""
        units: list[tuple[int, int]] = []

        def walk(node: Inode | Folder, name: str) -> None:
            unfinished = isinstance(node, Inode) and name.endswith((".tmp", ".part"))
            # What an unfinished file holds does not matter, under that name.
            if id(node) in seen or unfinished:
                return
            seen.add(id(node))
            if isinstance(node, Folder):
                units.extend((id(node), i) for i in range(len(node.pending)))
                for child, below in {**node.durable, **node.cache}.items():
                    walk(below, child)
            else:
                units.extend((id(node), i) for i in range(len(node.pending_sectors())))

        seen: set[int] = set()
        walk(self.root, "")
        return units

    def _survivor(self, kept: dict[tuple[int, int], bool]) -> SimulatedDisk:
        memo: dict[int, Inode | Folder] = {}

        def survive(node: Inode | Folder) -> Inode | Folder:
            if id(node) in memo:
                return memo[id(node)]
            if isinstance(node, Inode):
                sectors = node.pending_sectors()
                chosen = [s for i, s in enumerate(sectors) if kept.get((id(node), i))]
                memo[id(node)] = inode = node.lost(chosen)
                return inode
            memo[id(node)] = folder = Folder()
            names = dict(node.durable)
            for i, (change, target) in enumerate(zip(node.pending, node.nodes, strict=True)):
                if kept.get((id(node), i)):
                    _apply(names, *change, target)
            folder.durable = {name: survive(below) for name, below in names.items()}
            folder.cache = dict(folder.durable)
            return folder

        new = SimulatedDisk()
        new.root = _as_folder(survive(self.root))
        return new

    # -- Files ---------------------------------------------------------------

    def _note(self, name: str, path: str, data: bytes = b"", offset: int = 0) -> None:
        self.before(Operation(name, path, data, offset))
        self.operations += 1

    def _change(
        self, kind: str, old: str, new: str, node: Inode | Folder | None = None
    ) -> None:
        folder = self.folder(os.path.dirname(old))
        assert os.path.dirname(old) == os.path.dirname(new)
        folder.change(kind, os.path.basename(old), os.path.basename(new), node)

    def create(self, path: str) -> int:
        self._note("create", path)
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self._change("create", path, path, Inode())
        return self.open(path)

    def open(self, path: str) -> int:
        fd = next(self._descriptors)
        self._open[fd] = inode = self.inode(path)
        inode.path = path
        return fd

    def close(self, fd: int) -> None:
        if fd in self._locked:
            del self._locked[fd]
        else:
            del self._open[fd]

    def size(self, fd: int) -> int:
        return len(self._open[fd].cache)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return self._open[fd].read(length, offset)

    def write(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        inode = self._open[fd]
        self._note("write", inode.path, bytes(data), offset)
        inode.write(bytes(data), offset)

    def write_and_flush(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        """
        Two steps, as on a system that has no call for both, for more can go wrong
        then; and no other write is durable, as on one that has.
        """
        self.write(fd, data, offset)
        self._flush(fd, Inode.flush_last)

    def reserve(self, fd: int, length: int) -> None:
        """As on a system that cannot tell."""

    def flush(self, fd: int) -> None:
        self._flush(fd, Inode.flush)

    def _flush(self, fd: int, make_durable: Callable[[Inode], None]) -> None:
        inode = self._open[fd]
        try:
            self._note("flush", inode.path)
        except OSError:
            inode.pending.clear()
            raise
        make_durable(inode)

    def names(self, path: str) -> list[str]:
        return sorted(self.folder(path).cache)

    def exists(self, path: str) -> bool:
        try:
            return os.path.basename(path) in self.folder(os.path.dirname(path)).cache
        except OSError:
            return False

    def rename(self, old: str, new: str) -> None:
        self._note("rename", new)
        node = self.folder(os.path.dirname(old)).cache.get(os.path.basename(old))
        if node is None:
            _missing(old)
        self._change("rename", old, new, node)
        if isinstance(node, Inode):
            node.path = new

    def remove(self, path: str) -> None:
        self._note("remove", path)
        self.inode(path)
        self._change("remove", path, path)

    def make_directory(self, path: str) -> None:
        self._note("make_directory", path)
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self._change("create", path, path, Folder())

    def remove_directory(self, path: str) -> None:
        self._note("remove_directory", path)
        if self.folder(path).cache:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        self._change("remove", path, path)

    def flush_directory(self, path: str) -> None:
        self._note("flush_directory", path)
        self.folder(path).flush()

    def lock_directory(self, path: str) -> int:
        self.folder(path)
        if path in self._locked.values():
            raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable", path)
        fd = next(self._descriptors)
        self._locked[fd] = path
        return fd

    def is_directory(self, path: str) -> bool:
        try:
            self.folder(path)
        except OSError:
            return False
        return True

    def is_writable(self, path: str) -> bool:
        return True


def _missing(path: str) -> Inode | Folder:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)


def _as_folder(node: Inode | Folder) -> Folder:
    assert isinstance(node, Folder)
    return node


def _copy(node: Inode | Folder, memo: dict[int, Inode | Folder]) -> Inode | Folder:
    if id(node) in memo:
        return memo[id(node)]
    if isinstance(node, Inode):
        memo[id(node)] = new = node.copy()
        return new
    folder = memo[id(node)] = Folder()
    folder.cache = {name: _copy(below, memo) for name, below in node.cache.items()}
    folder.durable = {name: _copy(below, memo) for name, below in node.durable.items()}
    folder.pending = list(node.pending)
    folder.nodes = [None if n is None else _copy(n, memo) for n in node.nodes]
    return folder
