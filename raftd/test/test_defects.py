"""
The proof that tests can fail is itself in order (`raftd.test.defects`).

All defects are tried by a command of its own; here, a few are.
"""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from raftd.test.defects import planting
from raftd.test.defects.__main__ import try_one
from raftd.test.defects.defect import NO_PITFALL, Defect, DoesNotApply, put_in
from raftd.test.defects.planting import ROOT, Catchers, Garden
from raftd.test.defects.table import ALL, NOT_BUILT, PITFALLS

#: Those that are tried for real: quick ones, of different parts.
SAMPLE = {
    "nothing-waits-for-the-vote",
    "old-entries-are-counted",
    "commit-follows-the-leader",
    "log-is-not-flushed",
}

#: A test that fails with words of its own when a node stops.
SWALLOWING = "raftd.test.test_node:test_20_replication_starts_at_once"

#: Changes nothing at all.
HARMLESS = Defect(
    4,
    "harmless",
    "Nothing.",
    "core/quorum.py",
    "return all(",
    "return True and all(",
)


class TableTests(SynchronousTestCase):
    def test_every_defect_applies_and_compiles(self) -> None:
        sources = {path: (ROOT / path).read_text("utf-8") for path in {d.module for d in ALL}}
        for defect in ALL:
            changed = put_in(defect, sources[defect.module])
            compile(changed, defect.module, "exec")
            self.assertNotEqual(changed, sources[defect.module], defect.label)

    def test_every_pitfall_has_a_defect(self) -> None:
        numbers = {defect.number for defect in ALL} - {NO_PITFALL}
        self.assertEqual(numbers | NOT_BUILT.keys(), set(range(1, PITFALLS + 1)))
        self.assertFalse(numbers & NOT_BUILT.keys(), "it is built: it is not in the table")

    def test_every_defect_has_tests_that_can_catch_it(self) -> None:
        catchers = Catchers()
        for defect in ALL:
            if defect.number != NO_PITFALL:
                self.assertTrue(catchers.of_number(defect.number), defect.label)
            self.assertTrue(catchers.of(defect), defect.label)

    def test_every_defect_has_a_name_of_its_own_and_says_what_it_breaks(self) -> None:
        self.assertEqual(len({defect.name for defect in ALL}), len(ALL))
        for defect in ALL:
            self.assertTrue(defect.breaks.endswith("."), defect.label)

    def test_what_does_not_apply_is_an_error(self) -> None:
        for source in ("", "return all(1); return all(2)"):
            with self.assertRaises(DoesNotApply):
                put_in(HARMLESS, source)


class TrialTests(SynchronousTestCase):
    def test_a_few_are_caught_and_what_is_harmless_is_not(self) -> None:
        catchers = Catchers()
        chosen = [defect for defect in ALL if defect.name in SAMPLE]
        self.assertEqual(len(chosen), len(SAMPLE))
        with Garden() as garden:
            for defect in chosen:
                outcome = try_one(garden, catchers, defect._replace(seeds=0))
                self.assertTrue(outcome.caught, str(outcome))
            outcome = try_one(garden, catchers, HARMLESS)
            self.assertFalse(outcome.caught, str(outcome))
            self.assertIn("tests pass", outcome.how)

    def test_a_slip_in_a_defect_is_no_catch(self) -> None:
        slip = HARMLESS._replace(new="return nowhere.all(")
        with Garden() as garden:
            outcome = try_one(garden, Catchers(), slip)
        self.assertFalse(outcome.caught, str(outcome))
        self.assertIn("badly written", outcome.how)

    def test_a_slip_that_a_node_swallows_is_no_catch(self) -> None:
        """The node stops, and a test that expects something of it fails with other words."""
        by_name, by_type = (
            Defect(
                *(NO_PITFALL, "slip", "Nothing.", "applier.py"),
                "            entries.popleft()\n",
                f"            entries.popleft({new})\n",
            )
            for new in ("nowhere", "1")
        )
        for slip, said in ((by_name, "NameError"), (by_type, "TypeError")):
            with Garden() as garden, garden.planted(slip):
                verdict = garden.run_tests([SWALLOWING])
            self.assertTrue(verdict.failed)
            self.assertTrue(verdict.slip, str(verdict))
            self.assertIn(said, verdict.why)

    def test_a_slip_that_a_seed_meets_is_no_catch(self) -> None:
        slip = HARMLESS._replace(new="return all() and all(")
        with Garden() as garden, garden.planted(slip):
            verdict = garden.run_seeds(1)
        self.assertEqual(verdict.failed, "1")
        self.assertTrue(verdict.slip, str(verdict))
        self.assertIn("TypeError", verdict.why)


class GardenTests(SynchronousTestCase):
    def test_what_another_process_is_compiling_is_not_copied(self) -> None:
        """It is listed, and gone when it is its turn, as what a broken link points to."""
        root = Path(self.mktemp()).resolve() / "raftd"
        cache, plugins = root / "__pycache__", root.parent / "twisted" / "plugins"
        for directory in (cache, plugins):
            directory.mkdir(parents=True)
        (plugins / "raftd_plugin.py").touch()
        (cache / "x.cpython-310.pyc").touch()
        (cache / "x.cpython-310.pyc.140").symlink_to(cache / "gone")
        self.patch(planting, "ROOT", root)
        with Garden() as garden:
            copied = [path.name for path in (garden.tree / "raftd").rglob("*.pyc*")]
        self.assertEqual(copied, ["x.cpython-310.pyc"])
