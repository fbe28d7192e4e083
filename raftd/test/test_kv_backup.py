"""Backups: whole ones, and what is wrong with others."""

from __future__ import annotations

import hashlib
from io import BytesIO

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from raftd.errors import BadAnswer
from raftd.interfaces import IRestore
from raftd.kv import backup
from raftd.kv.backup import MAGIC, Backup, restore_backup

SLICES = [b"first", b"second slice", b"x" * 100]


@implementer(IRestore)
class Taken:
    """An `IRestore` that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""
        self.is_finished = False

    def write(self, data: bytes) -> None:
        if b"#" in data:
            raise ValueError("That is nonsense.")
        self.data += data

    def finish(self) -> None:
        self.is_finished = True


class BackupTests(SynchronousTestCase):
    """A backup restored is what was taken; anything else is told and changes nothing."""

    def setUp(self) -> None:
        self.patch(backup, "READ_BYTES", 7)
        self.whole = b"".join(Backup(iter(SLICES)))

    def test_format(self) -> None:
        content = b"raftd backup 1\r\n" + b"".join(SLICES)
        self.assertEqual(self.whole, content + hashlib.sha256(content).digest())

    def test_it_is_over_at_its_end_when_it_fails_and_when_it_is_given_up(self) -> None:
        whole = Backup(iter(SLICES))
        for _ in range(4):
            next(whole)
            self.assertFalse(whole.is_over)
        next(whole)
        self.assertTrue(whole.is_over)
        self.assertRaises(StopIteration, next, whole)
        broken = Backup(b"x" * (1 // n) for n in (1, 0))
        self.assertEqual([next(broken), next(broken)], [MAGIC, b"x"])
        self.assertRaises(ZeroDivisionError, next, broken)
        self.assertTrue(broken.is_over)
        given_up = Backup(iter(SLICES))
        given_up.close()
        self.assertTrue(given_up.is_over)

    def test_there_and_back(self) -> None:
        taken = Taken()
        restore_backup(BytesIO(self.whole), "it", taken)
        self.assertEqual((taken.data, taken.is_finished), (b"".join(SLICES), True))

    def refused(self, data: bytes) -> str:
        taken = Taken()
        error = self.assertRaises(BadAnswer, restore_backup, BytesIO(data), "it", taken)
        self.assertFalse(taken.is_finished)
        return str(error)

    def test_cut_anywhere(self) -> None:
        for end in range(len(self.whole)):
            self.refused(self.whole[:end])

    def test_one_bit_flipped_anywhere(self) -> None:
        for position in range(len(self.whole)):
            damaged = bytearray(self.whole)
            damaged[position] ^= 1
            self.refused(bytes(damaged))

    def test_more(self) -> None:
        self.assertIn("checksum", self.refused(self.whole + b"x"))

    def test_something_else(self) -> None:
        self.assertIn("no backup", self.refused(b"PK\x03\x04" * 20))
        self.assertIn("nonsense", self.refused(MAGIC + b"#" * 60))

    def test_given_up(self) -> None:
        """The snapshot beneath is given up with it; at its end nothing follows."""

        class Slices:
            closed = 0

            def __iter__(self) -> Slices:
                return self

            def __next__(self) -> bytes:
                return b"slice"

            def close(self) -> None:
                self.closed += 1

        slices = Slices()
        drawn = Backup(slices)
        self.assertEqual([next(drawn), next(drawn)], [MAGIC, b"slice"])
        drawn.close()
        drawn.close()
        self.assertEqual((slices.closed, list(drawn)), (1, []))
