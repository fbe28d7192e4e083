"""
How a snapshot lies on the disk and travels to a peer (`docs/snapshot-format.md`).

A head with what it is a snapshot of, the state in blocks, and an end.  Every
block has a checksum, so that damage is found, and named, where it is, before
the state machine sees it; the end has a digest of everything, so that pieces
of two files never pass for one.

Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

import msgspec

from raftd.core.snapshot import SnapshotMetadata
from raftd.storage.frames import Damage

FORMAT_VERSION = 1
MAGIC = b"raftsnap"

#: State bytes of a block as it is written: small enough to be taken over by a
#: state machine in a moment.
BLOCK_BYTES = 64 << 10

#: State bytes of a block, and bytes of the metadata, at most: bounds on what a
#: reader must hold.  They are part of the format.
MAX_BLOCK_BYTES = 1 << 20
MAX_METADATA_BYTES = 1 << 20

#: Magic, format version, length of the metadata.
_HEAD = struct.Struct("<8sII")
_CHECKSUM = struct.Struct("<I")
#: Length of the data; checksum of the length and the data.
_BLOCK = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
#: A block of length 0; length of the whole file; then comes the digest.
_END = struct.Struct("<IQ")
_DIGEST_BYTES = 32

_encode_metadata = msgspec.msgpack.Encoder().encode
_decode_metadata = msgspec.msgpack.Decoder(SnapshotMetadata).decode


class VersionUnknown(Damage):
    """A snapshot file of a format that this raftd does not know."""


class SnapshotEncoder:
    """The bytes of one snapshot file: those of `head`, `block`s and `end`, in this order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        #: The length of the file so far.
        self.length = 0

    def head(self, metadata: SnapshotMetadata) -> bytes:
        """`ValueError` if it is too large for any reader."""
        encoded = _encode_metadata(metadata)
        if len(encoded) > MAX_METADATA_BYTES:
            raise ValueError(f"the metadata of a snapshot takes {len(encoded)} bytes")
        head = _HEAD.pack(MAGIC, FORMAT_VERSION, len(encoded)) + encoded
        return self._counted(head + _CHECKSUM.pack(zlib.crc32(head)))

    def block(self, data: bytes | memoryview) -> bytes:
        """One block of state, of 1 to `MAX_BLOCK_BYTES` bytes."""
        length = len(data)
        if not 0 < length <= MAX_BLOCK_BYTES:
            raise ValueError(f"a block of a snapshot cannot have {length} bytes")
        checksum = zlib.crc32(data, zlib.crc32(_LENGTH.pack(length)))
        return self._counted(b"".join((_BLOCK.pack(length, checksum), data)))

    def end(self) -> bytes:
        end = self._counted(_END.pack(0, self.length + _END.size + _DIGEST_BYTES))
        self.length += _DIGEST_BYTES
        return end + self._digest.digest()

    def _counted(self, data: bytes) -> bytes:
        self._digest.update(data)
        self.length += len(data)
        return data


class SnapshotDecoder:
    """
    Checks a file that is fed to it piece by piece, from the beginning on.

    Invariant: everything handed out has the checksum that it was written with;
    but that all of it belongs together is only known when `is_complete`.
    """

    def __init__(self) -> None:
        #: Known once the head has been fed.
        self.metadata: SnapshotMetadata | None = None
        self.is_complete = False
        #: Where the first byte that is not decoded yet lies in the file.
        self.offset = 0
        self._buffer = b""
        self._digest = hashlib.sha256()

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that are complete with `data`; `Damage` if they cannot be right."""
        buffer = self._buffer + data
        blocks: list[bytes] = []
        at = 0
        while length := self._decode(buffer, at, blocks):
            at += length
            self.offset += length
        self._buffer = buffer[at:]
        return blocks

    def finish(self) -> SnapshotMetadata:
        """That was the whole file; `Damage` if something is missing."""
        if not self.is_complete or self.metadata is None:
            raise Damage(self.offset, "the file ends too early")
        return self.metadata

    def _decode(self, buffer: bytes, at: int, blocks: list[bytes]) -> int:
        """Decode the part at `at`; its length, 0 if more bytes are needed."""
        if self.is_complete:
            if len(buffer) > at:
                raise Damage(self.offset, "data follows the end of the snapshot")
            return 0
        if self.metadata is None:
            return self._head(buffer)
        if len(buffer) - at < _BLOCK.size:
            return 0
        length: int
        length, checksum = _BLOCK.unpack_from(buffer, at)
        if not length:
            return self._end(buffer, at)
        if length > MAX_BLOCK_BYTES:
            raise Damage(self.offset, "a block is longer than any can be")
        start, end = at + _BLOCK.size, at + _BLOCK.size + length
        if len(buffer) < end:
            return 0
        block = buffer[start:end]
        if zlib.crc32(block, zlib.crc32(_LENGTH.pack(length))) != checksum:
            raise Damage(self.offset, "a block has a wrong checksum")
        self._digest.update(buffer[at:start])
        self._digest.update(block)
        blocks.append(block)
        return end - at

    def _head(self, buffer: bytes) -> int:
        if len(buffer) < _HEAD.size:
            return 0
        magic: bytes
        version: int
        length: int
        magic, version, length = _HEAD.unpack_from(buffer)
        if magic != MAGIC:
            raise Damage(0, "it is not a snapshot of raftd")
        if length > MAX_METADATA_BYTES:
            raise Damage(0, "its head is longer than any can be")
        end = _HEAD.size + length
        if len(buffer) < end + _CHECKSUM.size:
            return 0
        if _CHECKSUM.unpack_from(buffer, end)[0] != zlib.crc32(buffer[:end]):
            raise Damage(0, "its head has a wrong checksum")
        if version != FORMAT_VERSION:
            raise VersionUnknown(
                0,
                f"it has snapshot format version {version}, and this raftd reads only "
                f"version {FORMAT_VERSION}",
            )
        try:
            self.metadata = _decode_metadata(buffer[_HEAD.size : end])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise Damage(0, f"its head does not decode ({e})") from None
        self._digest.update(buffer[: end + _CHECKSUM.size])
        return end + _CHECKSUM.size

    def _end(self, buffer: bytes, at: int) -> int:
        size = _END.size + _DIGEST_BYTES
        if len(buffer) - at < size:
            return 0
        _, length = _END.unpack_from(buffer, at)
        if length != self.offset + size:
            raise Damage(self.offset, "its end stands in the wrong place")
        self._digest.update(buffer[at : at + _END.size])
        if self._digest.digest() != buffer[at + _END.size : at + size]:
            raise Damage(self.offset, "its parts do not belong together: wrong digest")
        self.is_complete = True
        return size
