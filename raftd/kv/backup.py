"""
Backups: the state of a store in a file, for people to keep (`docs/backup-format.md`).

A backup is drawn from a running store as a snapshot is, and holds the same
state; it names no cluster and no member, so that a new cluster can begin with
it.  A checksum at its end tells a whole one from one that was cut or damaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from raftd.errors import BadAnswer
from raftd.interfaces import IRestore

#: What a backup begins with; the digit is the version of the format.
MAGIC = b"raftd backup 1\r\n"
#: How many bytes of a file are read at once.
READ_BYTES = 1 << 20

_CHECKSUM_BYTES = hashlib.sha256().digest_size


class Backup(Iterator[bytes]):
    """
    `slices`, a snapshot of a store, as the bytes of a backup, slice by slice.

    Invariant: once it `is_over`, because it has come to its end, has failed or
    was given up, it refers to nothing of the store.
    """

    def __init__(self, slices: Iterator[bytes]) -> None:
        self._slices: Iterator[bytes] | None = slices
        self._checksum = hashlib.sha256(MAGIC)
        self._is_begun = False

    def __next__(self) -> bytes:
        if not self._is_begun:
            self._is_begun = True
            return MAGIC
        if self._slices is None:
            raise StopIteration
        try:
            content = next(self._slices, None)
        except BaseException:
            self.close()
            raise
        if content is not None:
            self._checksum.update(content)
            return content
        self.close()
        return self._checksum.digest()

    @property
    def is_over(self) -> bool:
        return self._slices is None

    def close(self) -> None:
        """Give it up; nothing happens if it is at its end."""
        slices, self._slices = self._slices, None
        close = getattr(slices, "close", None)
        if close is not None:
            close()


def restore_backup(file: BinaryIO, name: str, restore: IRestore) -> None:
    """
    Let `restore` take over the state in `file`, which people call `name`.  Blocks.

    `BadAnswer` if it is no backup, or damaged; then nothing has changed.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise BadAnswer(f"{name} is no backup of raftd, or one of a version that is not known.")
    checksum = hashlib.sha256(MAGIC)
    try:
        rest = b""
        while data := file.read(READ_BYTES):
            # The checksum is what comes last, wherever that turns out to be.
            data = rest + data
            content, rest = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
            checksum.update(content)
            restore.write(content)
        if rest != checksum.digest():
            raise BadAnswer(f"{name} is damaged or not complete: its checksum does not match.")
        restore.finish()
    except ValueError as e:
        why = str(e).rstrip(".")
        raise BadAnswer(f"{name} is damaged or not complete: {why}.") from None
