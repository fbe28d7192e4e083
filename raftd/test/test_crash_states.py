"""A part of the states that a crash or a flipped bit can leave (`raftd.test.crash_states`)."""

from __future__ import annotations

from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import DirectoryDamaged
from raftd.storage import recovery
from raftd.test import crash_states
from raftd.test.crash_states import CRASHES, FLIPS, LOST, RECOVERED, REFUSED, UNUSED, ZEROS
from raftd.test.logrig import PATH

#: Of first bytes and of bits, one in so many; the command tries all of them.
STEP = 37


class CrashStates(SynchronousTestCase):
    def test_46_49_50_nothing_is_lost(self) -> None:
        tally, crashes = crash_states.run(STEP)
        for kind in CRASHES:
            self.assertEqual(tally.outcomes[kind, REFUSED], 0, tally.lost)
            self.assertEqual(tally.outcomes[kind, LOST], 0, tally.lost)
        self.assertGreater(sum(tally.outcomes[kind, RECOVERED] for kind in CRASHES), 3000)
        self.assertGreater(crashes.operations, 80)
        # A single bit is never taken for what a crash leaves.
        self.assertEqual(tally.outcomes[FLIPS, LOST], 0, tally.lost)
        self.assertGreater(tally.outcomes[FLIPS, REFUSED], 1000)
        self.assertEqual(tally.outcomes[UNUSED, LOST], 0, tally.lost)
        # A sector of zeros in the last frame is, for a crash leaves the same.
        self.assertEqual(tally.outcomes[ZEROS, LOST], len(tally.lost))
        (path,) = {place.split(", ")[0].removeprefix(f"{ZEROS}: ") for place in tally.lost}
        self.assertRegex(path, r"^/data/log/\d{20}\.segment$")

    def test_a_sentence_must_name_the_place(self) -> None:
        def vague(path: str, offset: int, reason: str) -> DirectoryDamaged:
            return DirectoryDamaged(f"The log in {PATH} cannot be used: {reason}.")

        with mock.patch.object(recovery, "damaged", vague):
            tally, _ = crash_states.run(STEP)
        self.assertGreater(tally.outcomes[FLIPS, LOST], 100)

    def test_46_the_judge_can_tell(self) -> None:
        """If all that is not whole passes for torn, bits of the last frame are lost."""

        def torn(data: bytes, offset: int, sequence: int, seed: int) -> int:
            return len(data) - offset if any(data[offset:]) else 0

        with mock.patch.object(recovery, "torn_extent", torn):
            tally, _ = crash_states.run(STEP)
        self.assertGreater(tally.outcomes[FLIPS, LOST], 100)
