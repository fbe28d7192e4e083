"""
Segments: the files of the log, prepared before they are needed.

A segment is made under a temporary name, filled with zeros, flushed, and only
then given its name: a segment that has its name has its length and its
header, and writing to it changes nothing but data.  That is what makes a
flush cheap.  Making one costs tens of milliseconds, so the next is made while
the present one is written, on a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import zlib
from typing import NamedTuple

import msgspec

from raftd.errors import DirectoryDamaged, StorageFailed
from raftd.storage.files import FULL, Files
from raftd.storage.frames import SECTOR

#: Length of a segment, unless asked otherwise.
SEGMENT_BYTES = 16 << 20

#: The shortest and the longest length that makes sense: a header and a frame
#: of one sector; what recovery is willing to read at once.
MIN_SEGMENT_BYTES = 2 * SECTOR
MAX_SEGMENT_BYTES = 1 << 30

#: A segment is filled in pieces of this length, each flushed by itself, so
#: that flushes of the log do not wait behind the whole of it.
PREPARE_BYTES = 1 << 20

#: After a failed preparation the next attempt comes when the log has grown by
#: this part of a segment, or when the segment is needed.
RETRIES_PER_SEGMENT = 16

#: Since version 2 a segment begins with a checkpoint.  Those of version 1 are
#: read, and never written again.
FORMAT_VERSION = 2
OLDEST_FORMAT_VERSION = 1
MAGIC = b"raftdlog"

#: Magic, format version, length, number, member id, salt; zeros; checksum of all before.
_FIELDS = struct.Struct("<8sIIQQQ")
_CHECKED = SECTOR - 4

_NAME = re.compile(r"([0-9]{20})\.segment")
_TEMPORARY = re.compile(r"[0-9]{20}\.tmp")

#: What a person can do about a damaged log.
ADVICE = (
    "The node does not start with what is left. Look at the disk; then remove this "
    "member from the cluster, empty the directory and join again as a new member. Do not "
    "restore an older copy of the directory: it has forgotten what this node has promised "
    "since."
)


class NoRoom(Exception):
    """The next segment cannot be made, for the disk is full; the log is as it was."""


class SegmentHeader(NamedTuple):
    """What a segment says of itself; member and salt are the same in all of a log."""

    length: int
    number: int
    member_id: int
    salt: int
    version: int = FORMAT_VERSION

    @property
    def has_checkpoint(self) -> bool:
        """Whether its first record holds a hard state and a base."""
        return self.version >= 2


class Segment(msgspec.Struct):
    """A segment, open for writing."""

    fd: int
    number: int
    length: int
    path: str
    version: int = FORMAT_VERSION


def segment_name(number: int) -> str:
    return f"{number:020}.segment"


def temporary_name(number: int) -> str:
    return f"{number:020}.tmp"


def segment_number(name: str) -> int | None:
    """The number in a segment's name; None for any other name."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def is_temporary(name: str) -> bool:
    """Whether a crash while a segment was prepared left this behind."""
    return _TEMPORARY.fullmatch(name) is not None


def damaged(path: str, offset: int, reason: str) -> DirectoryDamaged:
    """What to raise for damage at `offset` in the file `path`."""
    return DirectoryDamaged(f"{path} is damaged at offset {offset}: {reason}. {ADVICE}")


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The first sector of a segment."""
    length, number, member_id, salt, version = header
    fields = _FIELDS.pack(MAGIC, version, length, number, member_id, salt)
    checked = fields.ljust(_CHECKED, b"\0")
    return checked + zlib.crc32(checked).to_bytes(4, "little")


def decode_segment_header(data: bytes, path: str) -> SegmentHeader:
    """
    The header in the first sector of `data`; `DirectoryDamaged` if it is not one.

    Magic, version and checksum have their places in every format version to
    come, so that a newer format is told from a damaged one.
    """
    checked = data[:_CHECKED]
    check = int.from_bytes(data[_CHECKED:SECTOR], "little")
    if len(data) < SECTOR or zlib.crc32(checked) != check:
        raise damaged(path, 0, "the header of the segment has a wrong checksum")
    magic, version, length, number, member_id, salt = _FIELDS.unpack_from(checked)
    if magic != MAGIC:
        raise damaged(path, 0, "it is not a segment of a raftd log")
    if not OLDEST_FORMAT_VERSION <= version <= FORMAT_VERSION:
        raise DirectoryDamaged(
            f"{path} has log format version {version}, and this raftd reads only versions "
            f"{OLDEST_FORMAT_VERSION} to {FORMAT_VERSION}. Start the version of raftd that "
            "wrote it, or a newer one."
        )
    return SegmentHeader(length, number, member_id, salt, version)


def make_segment(files: Files, directory: str, header: SegmentHeader) -> Segment:
    """
    Make a segment and give it its name; durable when it returns.

    An `OSError` means that there is no such segment: what was made of it is
    removed if that can be done.  `StorageFailed` means that it has its name
    and nobody knows whether that is durable.
    """
    temporary = os.path.join(directory, temporary_name(header.number))
    path = os.path.join(directory, segment_name(header.number))
    if files.exists(temporary):
        files.remove(temporary)
    fd = files.create(temporary)
    try:
        _fill(files, fd, header)
        files.rename(temporary, path)
    except BaseException:
        files.close(fd)
        _remove_quietly(files, temporary)
        raise
    try:
        files.flush_directory(directory)
    except OSError as e:
        files.close(fd)
        raise StorageFailed(f"The directory {directory} could not be flushed: {e}.") from e
    return Segment(fd, header.number, header.length, path, header.version)


def _fill(files: Files, fd: int, header: SegmentHeader) -> None:
    """Header and zeros, flushed piece by piece."""
    # A disk that stays full is tried for days: it must not be written to each time.
    files.reserve(fd, header.length)
    files.write(fd, encode_segment_header(header), 0)
    zeros = bytes(min(PREPARE_BYTES, header.length))
    offset = SECTOR
    while offset < header.length:
        piece = min(PREPARE_BYTES, header.length - offset)
        files.write(fd, zeros[:piece], offset)
        files.flush(fd)
        offset += piece


def _remove_quietly(files: Files, path: str) -> None:
    """Give the space of a failed attempt back; the next open removes it otherwise."""
    with contextlib.suppress(OSError):
        files.remove(path)


class Preparer:
    """
    Has the next segment ready when the present one is full.

    `prepare` runs on a thread of its own, `take` on the log's; a lock keeps
    one from the other, so `take` waits only for a segment that is not ready.
    """

    def __init__(
        self,
        files: Files,
        directory: str,
        template: SegmentHeader,
        first_number: int,
        spare: list[Segment],
    ) -> None:
        """`spare` are segments ready already; `first_number` is the next to make."""
        self._files = files
        self._directory = directory
        self._template = template
        self._next_number = first_number
        self._ready = spare
        self._lock = threading.Lock()
        self._closed = False
        #: Why the last preparation failed; empty when the next segment is ready.
        self.trouble = ""
        #: Whether that was because the disk is full.
        self.is_full = False

    def prepare(self) -> None:
        """
        Make the next segment unless there is one.

        That it cannot be made, as on a full disk, is no failure of the log as
        long as it is not needed; `trouble` then says why.
        """
        with self._lock:
            if self._ready or self._closed:
                return
            try:
                self._ready.append(self._make())
            except OSError as e:
                self._troubled(e)
            else:
                self._made()

    def take(self) -> Segment:
        """
        The next segment; it is made here and now if it is not ready.

        `NoRoom` on a full disk: then it may be asked for again, and nothing
        has happened.  `StorageFailed` if it cannot be made for another reason.
        """
        with self._lock:
            if self._ready:
                return self._ready.pop(0)
            try:
                segment = self._make()
            except OSError as e:
                self._troubled(e)
                kind = NoRoom if self.is_full else StorageFailed
                raise kind(
                    f"The next segment of the log, {self._next_path}, could not be made: {e}. "
                    "Nothing more is written; mend the cause and start the node again."
                ) from e
            self._made()
            return segment

    def _troubled(self, e: OSError) -> None:
        self.is_full = e.errno in FULL
        self.trouble = (
            f"The next segment of the log, {self._next_path}, could not be prepared: {e}. "
            + (
                "The node takes no more writes until there is room again."
                if self.is_full
                else "The node stops when the present one is full."
            )
        )

    def _made(self) -> None:
        self.trouble, self.is_full = "", False

    def close(self) -> None:
        """Close what was not used; nothing is made afterwards.  Waits for `prepare`."""
        with self._lock:
            self._closed = True
            for segment in self._ready:
                self._files.close(segment.fd)
            self._ready.clear()

    @property
    def _next_path(self) -> str:
        return os.path.join(self._directory, segment_name(self._next_number))

    def _make(self) -> Segment:
        header = self._template._replace(number=self._next_number)
        segment = make_segment(self._files, self._directory, header)
        self._next_number += 1
        return segment


def check_segment_bytes(length: int) -> None:
    """`ValueError` unless segments can have this length."""
    if length % SECTOR or not MIN_SEGMENT_BYTES <= length <= MAX_SEGMENT_BYTES:
        raise ValueError(f"{length} is no length for a segment of the log")
