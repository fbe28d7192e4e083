"""Frames, segment headers, and what writes make of a log: the parts without a disk."""

from __future__ import annotations

import itertools
import random
import struct
import zlib

from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import DirectoryDamaged, InvariantViolated
from raftd.storage import frames, segments
from raftd.storage.frames import SECTOR, STAMP
from raftd.storage.replay import Outline
from raftd.storage.segments import (
    SegmentHeader,
    decode_segment_header,
    encode_segment_header,
)
from raftd.test.logrig import (
    MEMBER,
    SALT,
    entries,
    entry,
)

SEED = frames.checksum_seed(int.from_bytes(SALT, "little"))


class FrameTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        """Payloads of every length around the sector boundaries, and of large ones."""
        choice = random.Random(1)
        lengths = [*range(1100), *choice.sample(range(1100, 300_000), 20)]
        # From 512 sectors on, stamps lie among the moved bytes.
        lengths += [511 * n - 24 + d for n in (511, 512, 513, 1025) for d in (-1, 0, 1)]
        for length in lengths:
            for payload in (choice.randbytes(length), bytes(length)):
                frame = bytes(frames.encode_frame(9, payload, SEED))
                self.assertEqual(len(frame), frames.extent_of(length))
                self.assertEqual(set(frame[SECTOR - 1 :: SECTOR]), {STAMP})
                header = frames.decode_header(frame, 0, SEED)
                assert header is not None
                self.assertEqual(header[:2], (9, length))
                self.assertEqual(frames.decode_payload(frame, 0, header, SEED), payload)

    def test_limits(self) -> None:
        self.assertEqual(frames.extent_of(511 - 24), SECTOR)
        self.assertEqual(frames.extent_of(511 - 23), 2 * SECTOR)
        for space in range(SECTOR, 20 * SECTOR, SECTOR):
            self.assertEqual(frames.extent_of(frames.payload_limit(space)), space)
            self.assertEqual(frames.extent_of(frames.payload_limit(space) + 1), space + SECTOR)
        self.assertEqual(frames.payload_limit(1 << 30), frames.FRAME_PAYLOAD_LIMIT)

    def test_46_torn_tail_is_never_damage(self) -> None:
        """All combinations of the sectors of a frame, and all beginnings of it, are torn."""
        frame = bytes(frames.encode_frame(5, bytes(range(256)) * 14 + bytes(700), SEED))
        sectors = [frame[i : i + SECTOR] for i in range(0, len(frame), SECTOR)]
        self.assertEqual(len(sectors), 9)
        for kept in itertools.product((False, True), repeat=len(sectors)):
            left = b"".join(
                s if k else bytes(SECTOR) for s, k in zip(sectors, kept, strict=True)
            )
            if all(kept):
                continue
            extent = frames.torn_extent(left + bytes(4096), 0, 5, SEED)
            self.assertEqual(extent, len(left.rstrip(b"\0")) and self._last(kept) * SECTOR)
        for length in range(len(frame)):
            left = frame[:length].ljust(len(frame) + 4096, b"\0")
            self.assertLessEqual(frames.torn_extent(left, 0, 5, SEED), len(frame))

    def _last(self, kept: tuple[bool, ...]) -> int:
        return max(i for i, k in enumerate(kept, 1) if k)

    def test_46_a_forged_frame(self) -> None:
        """
        What a client stores is never taken for a frame: another log's frames,
        at sector boundaries of a torn one.
        """
        other = frames.checksum_seed(1234)
        forged = bytes(frames.encode_frame(6, b"forged", other))
        for missing in (0, 1, 2):
            frame = bytearray(frames.encode_frame(5, bytes(SECTOR - 24) + forged * 4, SEED))
            frame[missing * SECTOR : (missing + 1) * SECTOR] = bytes(SECTOR)
            # Only the last bytes of each sector are not the client's.
            self.assertGreater(bytes(frame).count(forged[:24]), 2)
            self.assertGreater(frames.torn_extent(bytes(frame), 0, 5, SEED), 0)

    def test_46_a_later_frame_shows_damage(self) -> None:
        """The first sector of a frame is lost, and the next frame is there."""
        lost = bytearray(frames.encode_frame(5, bytes(1000), SEED))
        lost[:SECTOR] = bytes(SECTOR)
        for lost_frame in (bytes(lost), bytes(len(lost))):
            data = lost_frame + bytes(frames.encode_frame(6, b"next", SEED)) + bytes(2048)
            with self.assertRaises(frames.Damage) as caught:
                frames.torn_extent(data, 0, 5, SEED)
            self.assertEqual(caught.exception.offset, 0)
            self.assertIn("another follows at offset 1536", str(caught.exception))

    def torn(self, sequence: int = 5) -> bytearray:
        """A frame of four sectors; the third is missing."""
        frame = frames.encode_frame(sequence, b"data" * 400, SEED)
        frame[2 * SECTOR : 3 * SECTOR] = bytes(SECTOR)
        self.assertEqual(len(frame), 4 * SECTOR)
        return frame

    def assertDamage(self, data: bytes, offset: int, reason: str) -> None:
        with self.assertRaises(frames.Damage) as caught:
            frames.torn_extent(data, 0, 5, SEED)
        self.assertEqual(caught.exception.offset, offset)
        self.assertIn(reason, caught.exception.reason)

    def test_46_data_behind_a_torn_frame(self) -> None:
        follows = bytes(frames.encode_frame(6, b"next", SEED))
        self.assertEqual(frames.torn_extent(bytes(self.torn()) + bytes(512), 0, 5, SEED), 2048)
        self.assertDamage(bytes(self.torn()) + follows, 0, "data follows it")
        self.assertDamage(bytes(self.torn()) + bytes(5000) + b"x", 0, "data follows it")

    def test_46_damage_within_a_torn_frame(self) -> None:
        """Each sector was written or not; but for the last, none was written in part."""
        for damage in (b"\0", b"x"):
            frame = self.torn()
            frame[2 * SECTOR - 1 : 2 * SECTOR] = damage
            self.assertDamage(bytes(frame), SECTOR, "a sector in the middle")
        frame = self.torn()
        frame[-1:] = b"x"
        self.assertDamage(bytes(frame), 3 * SECTOR, "the end of a sector")
        frame[-1:] = b"\0"
        self.assertEqual(frames.torn_extent(bytes(frame), 0, 5, SEED), 2048)

    def test_46_wrong_number(self) -> None:
        self.assertDamage(bytes(self.torn(7)), 0, "frame 7 is where 5 belongs")

    def test_46_a_torn_frame_whose_checksum_is_right(self) -> None:
        """One in four thousand million is; the missing stamp shows it."""
        frame = self.torn()
        body = zlib.crc32(frame[24:], SEED)
        checked = struct.pack("<4sQII", b"rfrm", 5, 1600, body)
        frame[:24] = checked + struct.pack("<I", zlib.crc32(checked, SEED))
        header = frames.decode_header(bytes(frame), 0, SEED)
        assert header is not None
        self.assertEqual(header.body_checksum, body)
        self.assertIsNone(frames.decode_payload(bytes(frame), 0, header, SEED))


class OutlineTests(SynchronousTestCase):
    def test_terms_of_a_truncated_suffix_are_forgotten(self) -> None:
        """A leader of a later term may replace entries of term 2 by some of term 1."""
        outline = Outline()
        outline.write(None, entries(1, 4, term=1) + entries(5, 6, term=2))
        outline.write(None, entries(3, 5, term=1))
        outline.write(None, entries(6, 6, term=1))
        self.assertEqual(outline.last_index, 6)
        self.assertRaises(InvariantViolated, outline.write, None, [entry(7, 0)])


class SegmentHeaderTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        header = SegmentHeader(4096, 7, MEMBER, 99)
        data = encode_segment_header(header)
        self.assertEqual(len(data), SECTOR)
        self.assertEqual(decode_segment_header(data, "f"), header)

    def test_flipped_bits(self) -> None:
        data = encode_segment_header(SegmentHeader(4096, 7, MEMBER, 99))
        for position in range(8 * SECTOR):
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            with self.assertRaises(DirectoryDamaged):
                decode_segment_header(bytes(flipped), "f")

    def test_version_of_the_future(self) -> None:
        """It has its own sentence, and is not called damaged."""
        self.patch(segments, "FORMAT_VERSION", 2)
        data = encode_segment_header(SegmentHeader(4096, 7, MEMBER, 99))
        self.patch(segments, "FORMAT_VERSION", 1)
        with self.assertRaises(DirectoryDamaged) as caught:
            decode_segment_header(data, "/data/log/7")
        self.assertTrue(
            str(caught.exception).startswith("/data/log/7 has log format version 2, and this"),
            str(caught.exception),
        )
