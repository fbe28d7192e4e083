"""Watches of the store: everything once, in order, or a clear word that it is gone."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from raftd.errors import Compacted, Overloaded
from raftd.kv import watches
from raftd.kv.interfaces import IWatch, Selection
from raftd.kv.operations import EVERY_KEY
from raftd.kv.watches import WatchHub
from raftd.test.watchrig import Past, Reader, Real, Write

EVERYTHING = Selection(b"\0", EVERY_KEY)


class SlowClock(Clock):
    """Each look at it takes a while, so that slices come to their end."""

    look_s = 0.0

    def seconds(self) -> float:
        now = float(super().seconds())
        self.rightNow = now + self.look_s
        return now

    def turn(self) -> None:
        """As a reactor has it: what is to be called at once while it turns has the next one."""
        due, self.calls = self.calls, []
        for call in due:
            call.called = 1
            call.func(*call.args, **call.kw)


class WatchCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = SlowClock()
        self.store = self.make()
        #: Of what `write` wrote.
        self.past = Past()
        self.hub = WatchHub(self.store.watched, self.clock)

    def make(self) -> Any:
        """A new store."""
        return Past()

    def watch(self, selection: Selection = EVERYTHING, revision: int = 0) -> Reader:
        """A reader that has drawn all that there is."""
        reader = Reader()
        reader.watch = self.hub.watch(selection, revision, reader.ready)
        reader.draw()
        return reader

    def turn(self) -> None:
        self.clock.turn()

    def turns(self) -> int:
        """Until nothing is to be done; how many it took."""
        count = 0
        while self.clock.getDelayedCalls():
            self.turn()
            count += 1
            assert count < 100_000
        return count

    def write(self, *writes: Write) -> int:
        revision: int = self.store.write(*writes)
        self.past.write(*writes)
        self.turns()
        return revision

    def keys(self, reader: Reader) -> list[tuple[int, list[bytes]]]:
        return [(r, [e.record.key for e in events]) for r, events in reader.seen().items()]

    def progress(self, reader: Reader) -> int:
        assert reader.watch is not None
        progress: int = reader.watch.progress
        return progress

    def close(self, reader: Reader) -> None:
        assert reader.watch is not None
        reader.watch.close()


class Ranges(WatchCase):
    """Which changes a watch sees."""

    def test_a_key(self) -> None:
        reader = self.watch(Selection(b"a"))
        self.assertTrue(verifyObject(IWatch, reader.watch))
        self.write((b"a", b"1"))
        self.write((b"b", b"1"))
        self.write((b"a\0", b"1"), (b"a", b"2"))
        self.write((b"a", None))
        self.assertEqual(self.keys(reader), [(2, [b"a"]), (4, [b"a"]), (5, [b"a"])])
        put, again, gone = (e for events in reader.seen().values() for e in events)
        self.assertEqual((put.record.value, put.record.version), (b"1", 1))
        self.assertEqual((again.record.value, again.record.version), (b"2", 2))
        self.assertTrue(gone.is_delete)
        self.assertEqual(gone.record.mod_revision, 5)

    def test_each_kind_of_range(self) -> None:
        """Keys, prefixes, and what is neither, take different ways."""
        keys = [b"", b"a", b"a\0", b"aa", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"]
        written = keys[1:]
        for start in [*keys, b"\0"]:
            for end in [*keys, b"\0", b"a\xff\xff\xff", b"c"]:
                self.setUp()
                selection = Selection(start, end)
                reader = self.watch(selection)
                for key in written:
                    self.write((key, b"x"))
                self.assertEqual(
                    reader.seen(), self.store.expected(selection, 2, 9), (start, end)
                )

    def test_54_in_the_order_of_the_transaction(self) -> None:
        reader = self.watch()
        self.write((b"b", b"1"), (b"c", b"1"), (b"a", b"1"))
        self.assertEqual(self.keys(reader), [(2, [b"b", b"c", b"a"])])

    def test_what_was_before(self) -> None:
        before = self.watch(Selection(b"a", previous=True))
        self.write((b"a", b"1"))
        self.write((b"a", b"2"))
        first, second = (events[0] for events in before.seen().values())
        self.assertIsNone(first.previous)
        self.assertEqual(second.previous, first.record)

    def test_filters(self) -> None:
        """What is left out altogether moves only the progress."""
        puts = self.watch(Selection(b"\0", b"\0", deletes=False))
        deletes = self.watch(Selection(b"\0", b"\0", puts=False))
        self.write((b"a", b"1"), (b"b", b"1"))
        self.write((b"a", None), (b"c", b"1"))
        self.write((b"b", None))
        self.assertEqual(self.keys(puts), [(2, [b"a", b"b"]), (3, [b"c"])])
        self.assertEqual(self.keys(deletes), [(3, [b"a"]), (4, [b"b"])])
        self.assertEqual((self.progress(puts), self.progress(deletes)), (4, 4))


class Places(WatchCase):
    """From which revision on."""

    def test_54_from_now_on(self) -> None:
        self.write((b"a", b"1"))
        reader = self.watch()
        self.assertEqual(self.progress(reader), 2)
        self.write((b"a", b"2"))
        self.assertEqual(self.keys(reader), [(3, [b"a"])])

    def test_54_from_each_revision(self) -> None:
        for n in range(20):
            self.write((b"a" if n % 3 else b"b", b"%d" % n))
        for revision in range(1, 22):
            reader = self.watch(Selection(b"a"), revision)
            self.assertEqual(
                reader.seen(),
                self.past.expected(Selection(b"a"), max(revision, 2), 21),
            )

    def test_54_from_a_revision_to_come(self) -> None:
        reader = self.watch(EVERYTHING, 5)
        for n in range(6):
            self.write((b"a", b"%d" % n))
        self.assertEqual([r for r, _ in self.keys(reader)], [5, 6, 7])

    def test_one_in_the_future_is_not_called_for_nothing(self) -> None:
        reader = self.watch(EVERYTHING, 50)
        for n in range(40):
            self.write((b"a", b"%d" % n))
        self.assertEqual(reader.calls, 0)
        self.assertEqual(self.progress(reader), 49)

    def test_the_first_revision_is_that_of_the_empty_store(self) -> None:
        reader = self.watch(EVERYTHING, 1)
        self.assertIsNone(reader.compacted)
        self.write((b"a", b"1"))
        self.assertEqual(self.keys(reader), [(2, [b"a"])])

    def test_54_compacted_at_the_start(self) -> None:
        for _ in range(9):
            self.write((b"a", b"x"))
        self.store.compact(6)
        for revision in (1, 5, 6):
            e = self.assertRaises(Compacted, self.hub.watch, EVERYTHING, revision, list)
            self.assertEqual(e.revision, 6)
        self.assertEqual(len(self.hub), 0)
        self.assertEqual([r for r, _ in self.keys(self.watch(EVERYTHING, 7))], [7, 8, 9, 10])

    def test_54_compacted_on_the_way(self) -> None:
        """A reader that is behind is told, and one that is not goes on."""
        slow, fast = self.watch(), self.watch()
        slow.appetite = 1
        for _ in range(9):
            self.write((b"a", b"x"))
        self.store.compact(6)
        self.turns()
        self.write((b"a", b"y"))
        self.assertEqual([r for r, _ in self.keys(fast)], list(range(2, 12)))
        self.assertIsNone(fast.compacted)
        self.assertEqual([r for r, _ in self.keys(slow)], [2])
        slow.draw()
        self.assertEqual(slow.compacted, 6)
        assert slow.watch is not None
        self.assertRaises(Compacted, slow.watch.take)

    def test_54_an_idle_watch_is_not_behind_what_it_was_not_concerned_by(self) -> None:
        reader = self.watch(Selection(b"z"))
        for _ in range(9):
            self.write((b"a", b"x"))
        self.store.compact(10)
        self.turns()
        assert reader.watch is not None
        self.assertEqual((reader.calls, reader.watch.take()), (0, None))
        self.write((b"z", b"x"))
        self.assertEqual(self.keys(reader), [(11, [b"z"])])

    def test_54_progress(self) -> None:
        """It moves for what does not concern the range, and not beyond what was given."""
        idle, slow = self.watch(Selection(b"z")), self.watch()
        slow.appetite = 1
        for _ in range(5):
            self.write((b"a", b"x"))
        self.assertEqual((self.progress(idle), self.progress(slow)), (6, 2))
        slow.draw()
        self.assertEqual(self.progress(slow), 3)

    def test_54_progress_does_not_pass_what_is_under_way(self) -> None:
        """The store has it, and the watch was not called yet."""
        reader = self.watch(Selection(b"a"))
        self.store.write((b"a", b"x"))
        self.assertEqual(self.progress(reader), 1)
        self.turns()
        self.assertEqual(self.progress(reader), 2)


class Pieces(WatchCase):
    """A revision that changes much."""

    def test_54_all_events_of_a_revision_together(self) -> None:
        reader = self.watch()
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(500)))
        self.assertGreater(len(reader.pieces), 5)
        self.assertEqual(
            [p.last for p in reader.pieces[:-1]], [False] * (len(reader.pieces) - 1)
        )
        for piece in reader.pieces:
            self.assertLess(
                sum(len(e.record.value) for e in piece.events), watches.PIECE_BYTES + 1000
            )
        self.assertEqual(reader.seen(), self.store.expected(EVERYTHING, 2, 2))

    def test_an_event_larger_than_a_piece(self) -> None:
        reader = self.watch()
        self.write((b"a", b"x" * 10**6), (b"b", b"y"))
        self.assertEqual(reader.seen(), self.store.expected(EVERYTHING, 2, 2))

    def test_54_progress_stays_before_a_revision_that_was_given_in_part(self) -> None:
        reader = self.watch()
        reader.appetite = 1
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(500)))
        self.assertEqual((len(reader.pieces), self.progress(reader)), (1, 1))

    def test_54_a_part_of_it_and_then_nothing_more_in_the_range(self) -> None:
        """The last piece may be empty; what is half given is never left open."""
        self.patch(watches, "MAX_SCANNED", 50)
        reader = self.watch(Selection(b"a", b"b"))
        revision = self.write(
            *((b"a%d" % n, b"x") for n in range(10)), *((b"b%d" % n, b"x") for n in range(500))
        )
        self.write((b"a", b"x"))
        self.assertEqual(reader.seen(), self.store.expected(Selection(b"a", b"b"), 2, 3))
        closing = [p for p in reader.pieces if p.revision == revision][-1]
        self.assertEqual((closing.events, closing.last), ((), True))

    def test_filtered_in_the_middle(self) -> None:
        self.write(*((b"%d" % n, b"x") for n in range(0, 400, 2)))
        selection = Selection(b"\0", b"\0", puts=False)
        reader = self.watch(selection)
        self.write(*((b"%d" % n, None if n % 2 == 0 else b"x" * 999) for n in range(400)))
        self.assertEqual(reader.seen(), self.store.expected(selection, 3, 3))


class Calls(WatchCase):
    """When readers are called, and what it costs."""

    def test_not_from_within_the_change(self) -> None:
        reader = self.watch()
        self.store.write((b"a", b"x"))
        self.assertEqual(reader.calls, 0)
        self.turn()
        self.assertEqual(reader.calls, 1)

    def test_once_for_all_changes_of_a_turn(self) -> None:
        reader = self.watch()
        for _ in range(100):
            self.store.write((b"a", b"x"))
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.turns()
        self.assertEqual((reader.calls, len(reader.pieces)), (1, 100))

    def test_only_those_that_are_concerned(self) -> None:
        readers = [self.watch(Selection(b"%d" % n)) for n in range(100)]
        prefix = self.watch(Selection(b"4", b"5"))
        self.write((b"42", b"x"))
        self.assertEqual([n for n, r in enumerate(readers) if r.calls], [42])
        self.assertEqual(prefix.calls, 1)

    def test_not_again_before_it_has_drawn(self) -> None:
        reader = self.watch()
        reader.appetite = 1
        for _ in range(5):
            self.write((b"a", b"x"))
        self.assertEqual(reader.calls, 1)

    def test_no_timer_and_no_walk_without_watches(self) -> None:
        self.close(self.watch())
        self.store.write((b"a", b"x"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        reader = self.watch()
        self.write((b"b", b"x"))
        self.assertEqual(self.keys(reader), [(3, [b"b"])])

    def test_no_walk_along_what_nobody_watched(self) -> None:
        self.close(self.watch())
        for _ in range(100):
            self.store.write((b"a", b"x"))
        looks = self.store.looks
        reader = self.watch(Selection(b"b"))
        self.write((b"b", b"x"))
        self.assertEqual(self.keys(reader), [(102, [b"b"])])
        self.assertLess(self.store.looks - looks, 5)
        self.store.write((b"b", b"x"))
        self.close(reader)
        looks = self.store.looks
        self.turns()
        self.assertEqual(self.store.looks, looks)

    def test_a_reader_that_fails_harms_no_other(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        bad = self.hub.watch(EVERYTHING, 0, fail)
        self.assertIsNone(bad.take())
        good = self.watch()
        self.write((b"a", b"x"))
        self.assertEqual(len(good.pieces), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_55_closed(self) -> None:
        """Idle, to be called, or at it: it is never called again."""
        idle, due, drawn = self.watch(), self.watch(), self.watch()
        self.assertEqual(len(self.hub), 3)
        self.close(idle)
        self.store.write((b"a", b"x"))
        drawn.ready = lambda: None  # type: ignore[method-assign]
        other = self.watch(Selection(b"b"))

        def close_due() -> None:
            self.close(due)

        first = self.hub.watch(EVERYTHING, 0, close_due)
        self.close(drawn)
        self.close(drawn)
        self.turns()
        self.assertEqual((idle.calls, drawn.calls, other.calls), (0, 0, 0))
        assert drawn.watch is not None
        self.assertIsNone(drawn.watch.take())
        self.assertEqual(len(self.hub), 3)
        for reader in (due, other):
            self.close(reader)
        first.close()
        self.assertEqual(len(self.hub), 0)

    def test_one_that_is_closed_by_another_in_the_same_turn(self) -> None:
        readers: list[Reader] = []

        def close_all() -> None:
            for reader in readers:
                self.close(reader)

        first = self.hub.watch(EVERYTHING, 0, close_all)
        self.assertIsNone(first.take())
        readers += [self.watch() for _ in range(5)]
        self.write((b"a", b"x"))
        self.assertEqual([r.calls for r in readers], [0] * 5)

    def test_55_bounded(self) -> None:
        self.patch(watches, "MAX_WATCHES", 3)
        readers = [self.watch() for _ in range(3)]
        self.assertRaises(Overloaded, self.watch)
        self.close(readers[0])
        self.watch()

    def test_the_hub_is_closed(self) -> None:
        reader = self.watch()
        self.store.write((b"a", b"x"))
        self.hub.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.store.write((b"a", b"x"))
        self.assertEqual(reader.calls, 0)
        # The last one ends, and another comes too late.
        self.close(reader)
        self.watch()
        self.store.write((b"a", b"x"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_store_tells_of_its_changes_while_there_are_watches(self) -> None:
        self.assertIsNone(self.store.on_change)
        for _ in range(2):
            readers = [self.watch() for _ in range(2)]
            self.close(readers[0])
            self.store.write((b"a", b"x"))
            self.turns()
            self.assertEqual(len(readers[1].pieces), 1)
            self.close(readers[1])
            self.assertIsNone(self.store.on_change)

    def test_a_thousand_watches_of_a_key_cost_one_walk(self) -> None:
        """And are given the same object, so that it is encoded once."""
        readers = [self.watch(Selection(b"a")) for _ in range(1000)]
        looks = self.store.looks
        for _ in range(5):
            self.store.write((b"a", b"x"))
        self.turns()
        self.assertLess(self.store.looks - looks, 20)
        for n in range(5):
            self.assertEqual(len({id(r.pieces[n]) for r in readers}), 1)

    def test_55_what_is_kept_for_others_is_bounded(self) -> None:
        self.patch(watches, "MAX_KEPT_STEPS", 10)
        readers = [self.watch(Selection(b"a")) for _ in range(2)]
        for _ in range(100):
            self.store.write((b"a", b"x"))
        self.turns()
        self.assertLessEqual(len(self.hub._kept), 10)
        self.patch(watches, "MAX_KEPT_BYTES", 5000)
        for _ in range(100):
            self.store.write((b"a", b"x" * 1000))
        self.turns()
        self.assertLessEqual(self.hub._kept_bytes, 5000)
        self.assertEqual(
            self.hub._kept_bytes, sum(step.size for step in self.hub._kept.values())
        )
        for reader in readers:
            self.assertEqual(len(reader.seen()), 200)

    def test_53_ten_thousand_are_called_in_slices(self) -> None:
        """Each turn ends within its slice; a call is a look at the clock here."""
        readers = [self.watch(Selection(b"a")) for _ in range(10_000)]
        self.clock.look_s = 0.000_1
        self.store.write((b"a", b"x"))
        began = self.clock.rightNow
        longest = 0.0
        while self.clock.getDelayedCalls():
            before = self.clock.rightNow
            self.turn()
            longest = max(longest, self.clock.rightNow - before)
        self.assertLess(longest, watches.WALK_SLICE_S + watches.WAKE_SLICE_S + 0.001)
        self.assertGreater(self.clock.rightNow - began, 0.9)
        self.assertEqual({len(r.pieces) for r in readers}, {1})

    def test_53_a_long_walk_is_cut_in_slices(self) -> None:
        """Of many revisions, and of one that changes many keys."""
        reader = self.watch(Selection(b"z"))
        self.clock.look_s = 0.001
        for n in range(500):
            self.store.write((b"a%d" % n, b"x"))
        self.store.write(*((b"a%d" % n, b"y") for n in range(500)), (b"z", b"1"))
        turns = self.turns()
        self.assertGreater(turns, 1000 // watches.CLOCK_EVERY // 3)
        self.assertEqual(self.keys(reader), [(502, [b"z"])])

    def test_53_looking_far_back_is_cut_in_slices(self) -> None:
        """Nothing of it is in the range: its reader is called so that it goes on."""
        self.patch(watches, "MAX_SCANNED", 50)
        for n in range(1000):
            self.store.write((b"a%d" % n, b"x"))
        looks = self.store.looks
        reader = self.watch(Selection(b"z"), 2)
        self.assertLessEqual(self.store.looks - looks, 50)
        self.assertGreater(self.turns(), 15)
        self.assertEqual((reader.pieces, self.progress(reader)), ([], 1001))
        self.write((b"z", b"x"))
        self.assertEqual(self.keys(reader), [(1002, [b"z"])])


class Restored(WatchCase):
    """A snapshot takes the place of the store's state."""

    def other(self, revisions: int, compacted: int) -> Past:
        """The same past, further on."""
        other = Past()
        other.restore(self.store)
        for n in range(revisions):
            other.write((b"a" if n % 2 else b"b", b"%d" % n))
        if compacted:
            other.compact(compacted)
        return other

    def test_54_history_goes_on(self) -> None:
        reader = self.watch(Selection(b"a"))
        self.write((b"a", b"x"))
        other = self.other(10, 0)
        expected = other.expected(Selection(b"a"), 2, other.revision)
        self.store.restore(other)
        self.turns()
        self.assertEqual(reader.seen(), expected)
        self.assertIsNone(reader.compacted)

    def test_54_history_begins_later(self) -> None:
        """Nobody knows what was missed: all that wait are told."""
        idle = self.watch(Selection(b"z"))
        future = self.watch(EVERYTHING, 10)
        self.write((b"a", b"x"))
        self.store.restore(self.other(10, 8))
        self.turns()
        self.assertEqual(idle.compacted, 8)
        self.assertIsNone(future.compacted)
        self.assertEqual([r for r, _ in self.keys(future)], [10, 11, 12])

    def test_history_begins_where_the_watch_is(self) -> None:
        reader = self.watch()
        self.write((b"a", b"x"))
        self.store.restore(self.other(10, 2))
        self.turns()
        self.assertIsNone(reader.compacted)
        self.assertEqual(list(reader.seen()), list(range(2, 13)))

    def test_54_in_the_middle_of_a_revision(self) -> None:
        reader = self.watch()
        reader.appetite = 1
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(500)))
        self.store.restore(self.other(3, 3))
        self.turns()
        reader.draw()
        self.assertEqual((reader.seen(), reader.compacted), ({}, 3))


class RestoredStore(WatchCase):
    """The same of the store itself."""

    def make(self) -> Real:
        return Real()

    def test_54_what_a_snapshot_has_brought_is_told(self) -> None:
        """Though nothing is written afterwards."""
        reader = self.watch()
        other = self.make()
        other.write((b"a", b"x"))
        other.write((b"b", b"x"))
        self.store.restore(other)
        self.turns()
        self.assertEqual(self.keys(reader), [(2, [b"a"]), (3, [b"b"])])


class Model(WatchCase):
    """Random changes, compactions, restores, readers that come, go, dawdle and resume."""

    SELECTIONS = (
        EVERYTHING,
        Selection(b"k1"),
        Selection(b"k1", previous=True),
        Selection(b"k", b"l"),
        Selection(b"k1", b"k4", deletes=False),
        Selection(b"k2", EVERY_KEY, puts=False),
        Selection(b"\0", EVERY_KEY, True),
    )

    def test_54_each_once_in_order_or_compacted(self) -> None:
        for seed in range(150):
            self.setUp()
            self.patch(watches, "MAX_SCANNED", 1 + seed % 40)
            self.patch(watches, "PIECE_BYTES", 1 + seed * 13 % 2000)
            self.clock.look_s = seed % 3 * 0.001
            try:
                self.converse(random.Random(seed))
            except BaseException:
                print("seed", seed)
                raise

    def converse(self, rng: random.Random) -> None:
        #: Never compacted nor restored: what was ever written.
        model, leader = Past(), self.make()
        readers: list[tuple[Selection, int, Reader]] = []
        told = 0
        for _ in range(120):
            act = rng.randrange(12)
            if act < 5:
                writes = [
                    (b"k%d" % k, None if rng.random() < 0.3 else b"x" * rng.randrange(50))
                    for k in rng.sample(range(6), rng.choice((1, 1, 1, 2, 5)))
                ]
                for store in (model, leader, self.store):
                    store.write(*writes)
            elif act == 5:
                selection = rng.choice(self.SELECTIONS)
                first = rng.choice((0, self.store.revision + rng.randrange(-8, 4)))
                told += self.begin(readers, selection, max(0, first))
            elif act == 6 and readers:
                # Resumes behind what it has seen, as by Last-Event-ID.
                selection, first, reader = readers.pop(rng.randrange(len(readers)))
                self.check(model, selection, first, reader)
                progress = self.progress(reader)
                self.close(reader)
                told += self.begin(readers, selection, progress + 1)
            elif act == 7 and self.store.compacted_revision < self.store.revision:
                low = self.store.compacted_revision + 1
                self.store.compact(rng.randrange(low, self.store.revision + 1))
            elif act == 8 and rng.random() < 0.2:
                for _ in range(rng.randrange(5)):
                    key = b"k%d" % rng.randrange(6)
                    model.write((key, b"r"))
                    leader.write((key, b"r"))
                ahead = self.make()
                ahead.restore(leader)
                low = self.store.compacted_revision
                ahead.compact(rng.randrange(low, ahead.revision + 1))
                self.store.restore(ahead)
            elif act == 9 and readers:
                _, _, reader = rng.choice(readers)
                reader.appetite = rng.choice((0, 1, 2, 10**9))
                reader.draw()
            else:
                for _ in range(rng.randrange(4)):
                    self.turn()
        for _, _, reader in readers:
            reader.appetite = 10**9
            reader.draw()
        self.turns()
        for selection, first, reader in readers:
            self.check(model, selection, first, reader)
            if reader.compacted is None:
                last = max(self.store.revision, first - 1)
                self.assertEqual(self.progress(reader), last)
            self.close(reader)
        self.assertEqual(len(self.hub), 0)
        self.assertEqual((self.hub._groups, self.hub._index._prefixes), ({}, {}))

    def begin(
        self, readers: list[tuple[Selection, int, Reader]], selection: Selection, first: int
    ) -> int:
        try:
            reader = self.watch(selection, first)
        except Compacted as e:
            self.assertEqual(e.revision, self.store.compacted_revision)
            self.assertLessEqual(first, e.revision)
            return 1
        readers.append((selection, max(first or self.store.revision + 1, 2), reader))
        return 0

    def check(self, model: Past, selection: Selection, first: int, reader: Reader) -> None:
        """All of its range up to its progress, and nothing else."""
        progress = self.progress(reader)
        last = min(progress, model.revision)
        self.assertEqual(reader.seen(), model.expected(selection, first, last))


class ModelOfTheStore(Model):
    """The same on the store itself, whose snapshots are taken and restored."""

    def make(self) -> Real:
        return Real()


class PlacesInTheStore(Places):
    """The same of the store itself."""

    def make(self) -> Real:
        return Real()
