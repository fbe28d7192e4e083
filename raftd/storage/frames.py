"""
Frames: how one flush of the log lies on the disk (`docs/log-format.md`).

A disk writes whole sectors of 512 bytes.  A crash during a flush leaves any
combination of the sectors of that flush, or, if the process alone died, a
part of its bytes from the beginning on; where nothing arrived, the zeros of
the prepared segment are left.  A frame is made so that this can be told from
damage:

* It starts on a sector boundary, so that writing it touches nothing older.
* The last byte of each of its sectors is a stamp that is never zero.  A
  sector of it was therefore either not written (all zeros), or written (it
  has its stamp), or is the one sector in which the bytes stop.  Data that
  would lie under a stamp is moved to the end of the frame, as NTFS does with
  its update sequence arrays.
* Its checksums are seeded with the salt of the log, so that what a client
  stores can never look like a frame.

So a frame that has all its stamps and a wrong checksum was written in full
and changed afterwards: it is damaged, never torn.

Nothing here does I/O.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from raftd.errors import RaftdError

#: What a disk writes as a whole.  Larger physical sectors are multiples of it.
SECTOR = 512

#: The last byte of every sector of a frame.  Five of its bits must change to make it zero.
STAMP = 0xB5
_STAMP = bytes([STAMP])

#: Payload bytes of one frame at most: a bound on how much one flush merges.
#: It is part of the format: no frame is longer.
FRAME_PAYLOAD_LIMIT = 8 << 20

#: Magic, sequence number, payload length, checksum of the body, checksum of these 20 bytes.
_HEADER = struct.Struct("<4sQIII")
_CHECKED = struct.Struct("<4sQII")
HEADER_LENGTH = _HEADER.size
MAGIC = b"rfrm"

#: What of a header is known before it is read: magic and sequence number.
_KNOWN = struct.Struct("<4sQ")


class Damage(RaftdError):
    """Bytes at `offset` in the segment that no crash explains; `reason` says which."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason


class FrameHeader(NamedTuple):
    """A frame's first bytes, their checksum verified."""

    sequence: int
    length: int
    body_checksum: int

    @property
    def extent(self) -> int:
        """Bytes of the whole frame, in whole sectors."""
        return extent_of(self.length)


def checksum_seed(salt: int) -> int:
    """What every checksum of a log begins with."""
    return zlib.crc32(salt.to_bytes(8, "little"))


def extent_of(length: int) -> int:
    """Bytes that a frame of `length` payload bytes takes: each sector holds 511 and a stamp."""
    return -(-(HEADER_LENGTH + length) // (SECTOR - 1)) * SECTOR


def payload_limit(space: int) -> int:
    """The longest payload of a frame of at most `space` bytes; negative if there is none."""
    return min(space // SECTOR * (SECTOR - 1) - HEADER_LENGTH, FRAME_PAYLOAD_LIMIT)


# -- encoding ----------------------------------------------------------------


def encode_frame(sequence: int, payload: bytes, seed: int) -> bytearray:
    """The frame as it lies on the disk: a whole number of sectors."""
    length = len(payload)
    extent = extent_of(length)
    frame = bytearray(extent)
    frame[HEADER_LENGTH : HEADER_LENGTH + length] = payload
    _stamp(frame)
    with memoryview(frame) as view:
        body_checksum = zlib.crc32(view[HEADER_LENGTH:], seed)
    checked = _CHECKED.pack(MAGIC, sequence, length, body_checksum)
    frame[:HEADER_LENGTH] = checked + zlib.crc32(checked, seed).to_bytes(4, "little")
    return frame


def _stamp(frame: bytearray) -> None:
    """Stamp every sector; what lay under the stamps moves into the frame's last bytes."""
    sectors = len(frame) // SECTOR
    moved = frame[SECTOR - 1 : len(frame) - sectors : SECTOR]
    taken = 0
    for start, stop in _spare(len(frame)):
        frame[start:stop] = moved[taken : taken + stop - start]
        taken += stop - start
    frame[SECTOR - 1 :: SECTOR] = _STAMP * sectors


def _unstamp(frame: bytearray) -> None:
    """The reverse of `_stamp`, but for the frame's last bytes, which no payload reaches."""
    moved = b"".join(frame[start:stop] for start, stop in _spare(len(frame)))
    frame[SECTOR - 1 : len(frame) - len(frame) // SECTOR : SECTOR] = moved


def _spare(extent: int) -> list[tuple[int, int]]:
    """
    Where the moved bytes go: the last bytes of the frame, one for each of its
    sectors, without those that are stamps themselves.

    Header, payload and padding fill the `511 * sectors` bytes before, so there
    are exactly as many places as bytes to move.
    """
    start = extent - extent // SECTOR
    pieces = []
    while start < extent:
        stop = min(start - start % SECTOR + SECTOR - 1, extent)
        if start < stop:
            pieces.append((start, stop))
        start = stop + 1
    return pieces


# -- decoding ----------------------------------------------------------------


def decode_header(data: bytes, offset: int, seed: int) -> FrameHeader | None:
    """The header at `offset`, or None if there is no valid one."""
    if data[offset : offset + len(MAGIC)] != MAGIC or len(data) - offset < HEADER_LENGTH:
        return None
    _, sequence, length, body, check = _HEADER.unpack_from(data, offset)
    if zlib.crc32(data[offset : offset + _CHECKED.size], seed) != check:
        return None
    return FrameHeader(sequence, length, body)


def decode_payload(data: bytes, offset: int, header: FrameHeader, seed: int) -> bytes | None:
    """
    The payload of the frame at `offset`, or None if it is not whole.

    A frame without all its stamps is not whole whatever its checksum says.
    """
    end = offset + header.extent
    if header.length > FRAME_PAYLOAD_LIMIT or end > len(data):
        return None
    if data[offset + SECTOR - 1 : end : SECTOR].count(STAMP) != header.extent // SECTOR:
        return None
    with memoryview(data) as view:
        if zlib.crc32(view[offset + HEADER_LENGTH : end], seed) != header.body_checksum:
            return None
    frame = bytearray(data[offset:end])
    _unstamp(frame)
    return bytes(frame[HEADER_LENGTH : HEADER_LENGTH + header.length])


# -- what follows the last whole frame ---------------------------------------


def torn_extent(data: bytes, offset: int, sequence: int, seed: int) -> int:
    """
    Judge what lies at `offset`, where frame `sequence` is expected and is not whole.

    `data` is the whole segment.  Returns how many bytes, in whole sectors, a
    torn write of that frame left behind, 0 if all is zeros; what is behind
    them is zeros.  Raises `Damage` for anything that a crash during the write
    of this one frame cannot have left.
    """
    written = len(data.rstrip(b"\0")) - offset
    if written <= 0:
        return 0
    header = decode_header(data, offset, seed)
    if header is not None:
        extent = _check_header(data, offset, sequence, header)
    elif not any(data[offset : offset + SECTOR]):
        # Its first sector is missing; how long it was is not known.
        extent = min(extent_of(FRAME_PAYLOAD_LIMIT), len(data) - offset)
        _check_no_header(data, offset, seed)
    else:
        # A whole first sector would have a valid header, so the bytes stop within it.
        known = _KNOWN.pack(MAGIC, sequence)[:written]
        if written >= HEADER_LENGTH or not data.startswith(known, offset):
            raise Damage(offset, "the header of a frame has a wrong checksum")
        return SECTOR
    if written > extent:
        raise Damage(offset, "a frame is damaged, and data follows it")
    stamps = _check_sectors(data, offset, written)
    if header is not None and stamps * SECTOR == extent:
        raise Damage(offset, "a frame is complete, but its checksum is wrong")
    return -(-written // SECTOR) * SECTOR


def _check_header(data: bytes, offset: int, sequence: int, header: FrameHeader) -> int:
    """The extent of an incomplete frame whose header is valid."""
    if header.sequence != sequence:
        raise Damage(offset, f"frame {header.sequence} is where {sequence} belongs")
    if header.length > FRAME_PAYLOAD_LIMIT or offset + header.extent > len(data):
        raise Damage(offset, "a frame is longer than its segment allows")
    return header.extent


def _check_no_header(data: bytes, offset: int, seed: int) -> None:
    """A frame is begun only when the one before is durable: none follows a torn one."""
    at = data.find(MAGIC, offset)
    while at >= 0:
        if at % SECTOR == 0 and decode_header(data, at, seed) is not None:
            raise Damage(offset, f"a frame is missing here, and another follows at offset {at}")
        at = data.find(MAGIC, at + 1)


def _check_sectors(data: bytes, offset: int, written: int) -> int:
    """
    How many of the sectors have their stamp.

    The rest must be zeros, but for the last one that is not: in it the bytes
    may stop.
    """
    stamps = 0
    for start in range(offset, offset + written, SECTOR):
        sector = data[start : start + SECTOR]
        if sector[-1] == STAMP:
            stamps += 1
        elif any(sector) and start + SECTOR < offset + written:
            raise Damage(start, "a sector in the middle of a frame is damaged")
        elif sector[-1] != 0:
            raise Damage(start, "the end of a sector of a frame is damaged")
    return stamps
