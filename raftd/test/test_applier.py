"""Applying what is committed: in order, in slices, and who waits for it."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from raftd.applier import APPLY_SLICE_S, Applier
from raftd.core.messages import (
    Command,
    Entry,
    EntryKind,
    encode_command,
)
from raftd.test.drivers import Alone, SlowJournal


class ApplierTests(SynchronousTestCase):
    """`Applier` by itself: order, slices, and who waits for an index."""

    def setUp(self) -> None:
        self.alone = Alone(1)
        self.machine = SlowJournal()
        self.machine.clock = self.clock = self.alone.clock
        self.events: list[object] = []
        self.applier = Applier(self.clock, self.machine, None, self._applied)

    def _applied(self, entry: Entry, result: bytes) -> None:
        self.assertEqual(self.applier.applied_index, entry.index)
        self.events.append((entry.index, result))

    def _add(self, first: int, *operations: bytes) -> None:
        self.applier.add(
            Entry(i, 1, EntryKind.COMMAND, 0, encode_command(Command(operation)))
            for i, operation in enumerate(operations, first)
        )

    def test_answers_come_in_the_order_of_the_log(self) -> None:
        for index in (2, 1, 3, 2):
            self.applier.when_applied(index, partial(self.events.append, index))
        self._add(1, b"a", b"b")
        self.assertFalse(self.applier.run())
        self.assertEqual(self.events, [(1, b"1"), 1, (2, b"2"), 2, 2])
        self.applier.when_applied(2, lambda: self.events.append("at once"))
        self.assertEqual(self.events[-1], "at once")
        self._add(3, b"c")
        self.applier.run()
        self.assertEqual(self.events[-2:], [(3, b"3"), 3])
        self.assertFalse(self.applier.run())

    def test_53_slices(self) -> None:
        self.machine.steps = 10
        self._add(1, b"slow", b"after")
        slices = 1
        while True:
            began = self.clock.seconds()
            more = self.applier.run()
            spent = self.clock.seconds() - began
            self.assertLessEqual(spent, APPLY_SLICE_S + self.machine.step_s)
            if not more:
                break
            slices += 1
        self.assertGreater(slices, 3)
        self.assertEqual(self.machine.operations, [b"slow", b"after"])

    def test_53_many_applications_are_cut_into_slices(self) -> None:
        apply = self.machine.apply

        def taking_time(*arguments: Any) -> Any:
            self.clock.rightNow += 0.001
            return apply(*arguments)

        self.patch(self.machine, "apply", taking_time)
        self._add(1, *[b"x"] * 50)
        more = True
        while more:
            began = self.clock.seconds()
            more = self.applier.run()
            self.assertLessEqual(self.clock.seconds() - began, APPLY_SLICE_S + 0.002)
        self.assertEqual(len(self.machine.operations), 50)

    def test_27_nobody_is_told_before_all_is_applied(self) -> None:
        for index in (1, 2):
            self.applier.when_applied(index, partial(self.events.append, index))
            self.assertEqual(self.events, [])
        self._add(1, b"a")
        self.applier.run()
        self.assertEqual(self.events, [(1, b"1"), 1])
        self.applier.when_applied(2, partial(self.events.append, "late"))
        self.assertEqual(self.events, [(1, b"1"), 1])

    def test_whoever_waits_may_wait_for_more(self) -> None:
        def again() -> None:
            self.events.append("first")
            self.applier.when_applied(2, lambda: self.events.append("second"))

        self.applier.when_applied(1, again)
        self._add(1, b"a", b"b")
        self.applier.run()
        self.assertEqual(self.events, [(1, b"1"), "first", (2, b"2"), "second"])
