"""
The files of snapshots, as the thread of a store works on them: all of it blocks.

A snapshot is made under a temporary name, flushed, renamed, and its directory
flushed: a file that has its name is whole.  Nothing else is ever changed in it.
"""

from __future__ import annotations

import contextlib
import os
import re

from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import DirectoryDamaged, RaftdError, Stopped, StorageFailed
from raftd.storage.files import Files
from raftd.storage.frames import Damage
from raftd.storage.segments import damaged
from raftd.storage.snapshot_format import SnapshotDecoder, VersionUnknown

#: A file is flushed whenever it has grown by this much, so that flushes of
#: the log never wait behind the whole of it.
FLUSH_BYTES = 4 << 20

#: What is read at once to be checked.
READ_BYTES = 256 << 10

_NAME = re.compile(r"([0-9]{20})-([0-9]{20})\.snapshot")
_UNFINISHED = re.compile(r"[0-9]{20}-[0-9]{20}\.(again\.)*(tmp|part)")

#: (last included index, last included term): which snapshot it is.
Key = tuple[int, int]

#: What is being written here, and what is being received.
WRITTEN = "tmp"
RECEIVED = "part"


def snapshot_name(key: Key, suffix: str = "snapshot") -> str:
    index, term = key
    return f"{index:020}-{term:020}.{suffix}"


def snapshot_key(name: str) -> Key | None:
    """Which snapshot has this name; None for any other file."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]))


class SnapshotDirectory:
    """
    The directory of a store.  It is made when it is first needed.

    After a flush of it has failed nobody knows which names last, and a later
    flush that succeeds says nothing: then no snapshot is kept any more.
    """

    def __init__(self, files: Files, path: str) -> None:
        self.files = files
        self.path = path
        self._failure: StorageFailed | None = None
        self._is_made = False

    def file(self, key: Key, suffix: str = "snapshot") -> str:
        """The path of a snapshot."""
        return os.path.join(self.path, snapshot_name(key, suffix))

    def keys(self) -> list[Key]:
        """Which snapshots there are, oldest first."""
        return sorted(key for name in self._names() if (key := snapshot_key(name)) is not None)

    def settle(self, damaged: list[Key], surplus: list[Key]) -> None:
        """
        At a start: set aside damaged snapshots, for a person to look at, and
        remove those that are too many, and what a crash left unfinished.

        The others are durable when it returns: a process that died may have
        left names that only the kernel's memory has.
        """
        names = self._names()
        if not names:
            return
        self.make()
        try:
            for name in names:
                if _UNFINISHED.fullmatch(name):
                    self.files.remove(os.path.join(self.path, name))
            for key in damaged:
                self.files.rename(self.file(key), self.file(key, "damaged"))
        except OSError as e:
            raise StorageFailed(f"{self.path} could not be changed: {e}.") from e
        self.remove(surplus)

    def _names(self) -> list[str]:
        try:
            return self.files.names(self.path) if self.files.exists(self.path) else []
        except OSError as e:
            raise StorageFailed(f"{self.path} could not be read: {e}.") from e

    def make(self) -> None:
        """Make it if it is not there, and make that durable."""
        if self._is_made:
            return
        try:
            if not self.files.exists(self.path):
                self.files.make_directory(self.path)
        except OSError as e:
            raise StorageFailed(f"{self.path} could not be made: {e}.") from e
        self.flush(os.path.dirname(self.path))
        self._is_made = True

    def flush(self, path: str | None = None) -> None:
        """Make the names in it durable, or those in its parent `path`."""
        self.check()
        try:
            self.files.flush_directory(path or self.path)
        except OSError as e:
            self._failure = StorageFailed(
                f"The directory {path or self.path} could not be flushed: {e}. No snapshot "
                "is kept any more; mend the cause and start the node again."
            )
            raise self._failure from e

    def check(self) -> None:
        """Raise the error after which no snapshot is kept, if there was one."""
        if self._failure is not None:
            raise self._failure

    def remove(self, keys: list[Key]) -> None:
        """Remove snapshots that are not needed any more, durably."""
        for key in keys:
            try:
                self.files.remove(self.file(key))
            except FileNotFoundError:
                pass
            except OSError as e:
                raise StorageFailed(f"{self.file(key)} could not be removed: {e}.") from e
        self.flush()


class Draft:
    """
    A snapshot file that is being made; it has its name when it is kept, and
    is gone after any failure.
    """

    def __init__(
        self,
        directory: SnapshotDirectory,
        key: Key,
        suffix: str,
        *,
        replaces: Key | None = None,
    ) -> None:
        """
        Its name, made of `key` and `suffix`, is no other draft's.  `replaces`
        is the newest snapshot if that was known to be damaged by now.
        """
        self.replaces = replaces
        self._directory = directory
        self._files = directory.files
        self.key = key
        self.path = directory.file(key, suffix)
        self.size = 0
        self._fd: int | None = None
        self._flushed_size = 0
        #: Why it takes nothing any more.
        self._over: RaftdError | None = None

    def check(self) -> None:
        """Raise the error that has ended it, if one has."""
        if self._over is not None:
            raise self._over

    def append(self, data: bytes) -> None:
        self.check()
        try:
            fd = self._descriptor()
            self._files.write(fd, data, self.size)
            self.size += len(data)
            if self.size - self._flushed_size >= FLUSH_BYTES:
                self._files.flush(fd)
                self._flushed_size = self.size
        except BaseException as e:
            raise self._failed(e) from e

    def scan(self) -> Scan:
        """Read it back from the beginning."""
        self.check()
        return Scan(self._files, self._descriptor(), self.key)

    def keep(self) -> int:
        """It is whole: make it durable and give it its name.  Its length in bytes."""
        self.check()
        final = self._directory.file(self.key)
        try:
            self._directory.check()
            self._files.flush(self._descriptor())
            # The same snapshot may have come from elsewhere meanwhile.
            if self._files.exists(final) and self.replaces != self.key:
                self.discard()
                return self._length(final)
            self._files.rename(self.path, final)
            self._directory.flush()
        except BaseException as e:
            raise self._failed(e) from e
        self._close(Stopped("The snapshot is complete."))
        return self.size

    def _length(self, path: str) -> int:
        fd = self._files.open(path)
        try:
            return self._files.size(fd)
        finally:
            self._files.close(fd)

    def discard(self) -> None:
        """Give it up and leave nothing behind; nothing happens if it is over."""
        if self._over is None:
            self._close(Stopped("The snapshot was given up."))
            with contextlib.suppress(OSError):
                # If this fails, the next start removes it.
                if self._files.exists(self.path):
                    self._files.remove(self.path)

    def _descriptor(self) -> int:
        if self._fd is None:
            self._directory.make()
            if self._files.exists(self.path):
                self._files.remove(self.path)
            self._fd = self._files.create(self.path)
        return self._fd

    def _failed(self, e: BaseException) -> RaftdError:
        """What to raise for an error; it is over with that."""
        self.discard()
        if isinstance(e, RaftdError):
            self._over = e
        else:
            self._over = StorageFailed(f"The snapshot {self.path} could not be written: {e}.")
        return self._over

    def _close(self, reason: RaftdError) -> None:
        self._over = reason
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                self._files.close(fd)


class Scan:
    """Reads a snapshot file from beginning to end, and checks all of it."""

    def __init__(self, files: Files, fd: int, key: Key) -> None:
        self._files = files
        self._fd = fd
        self._key = key
        self._decoder = SnapshotDecoder()
        #: Bytes that were read.
        self.size = 0

    def step(self, max_bytes: int) -> list[bytes] | None:
        """
        The blocks of state in the next `max_bytes` of the file, or a little
        more; None at its end, when all of it has been found right.

        `Damage` at the first byte that cannot be right.
        """
        blocks: list[bytes] = []
        until = self.size + max_bytes
        while self.size < until:
            data = self._files.read(self._fd, READ_BYTES, self.size)
            if not data:
                if blocks:
                    return blocks
                self._decoder.finish()
                return None
            self.size += len(data)
            blocks += self._decoder.feed(data)
            self._check_key()
        return blocks

    @property
    def checked(self) -> int:
        """How many bytes, from the beginning on, have been found right."""
        return self._decoder.offset

    @property
    def metadata(self) -> SnapshotMetadata:
        """What it is a snapshot of; known when `step` has returned None."""
        return self._decoder.finish()

    def _check_key(self) -> None:
        metadata = self._decoder.metadata
        if metadata is not None:
            key = metadata.last_included_index, metadata.last_included_term
            if key != self._key:
                raise Damage(
                    0,
                    "it ends with entry {} of term {}, not with entry {} of term {}".format(
                        *key, *self._key
                    ),
                )


def unusable(path: str, damage: Damage) -> DirectoryDamaged:
    """What a person is told about a snapshot of this node that cannot be used."""
    if isinstance(damage, VersionUnknown):
        return DirectoryDamaged(
            f"{path} cannot be read: {damage.reason}. Start the version of raftd that "
            "wrote it, or a newer one."
        )
    return damaged(path, damage.offset, damage.reason)
