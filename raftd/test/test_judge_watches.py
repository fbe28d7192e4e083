"""The judge of watches: each thing that a watch may do wrong, done."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from raftd.test.judge import BadHistory, history_of, judge
from raftd.test.judge.calls import (
    Append,
    Compare,
    CompareAndSet,
    Delete,
    Put,
    Result,
    Scalar,
    Transaction,
)
from raftd.test.judge.history import (
    Broken,
    Change,
    Changed,
    Compacted,
    Fail,
    Invoke,
    Line,
    Ok,
    Progress,
    Unknown,
    Watch,
)

#: The process that watches.
W = 9


def put(value: Scalar, revision: int, key: str = "a") -> list[Line]:
    return [Invoke(0, Put(key, value)), Ok(0, Result(revision=revision))]


def seen(
    revision: int, value: Scalar | None, key: str = "a", last: bool = True, process: int = W
) -> Line:
    return Changed(process, revision, (Change(key, value),), last)


class Watching(SynchronousTestCase):
    def good(self, *lines: Line) -> None:
        self.assertEqual(judge(history_of(lines)).reasons, [])

    def bad(self, text: str, *lines: Line) -> None:
        """Rejected, with this among the reasons."""
        judgement = judge(history_of(lines))
        self.assertFalse(judgement.is_good)
        self.assertIn(text, "\n".join(judgement.reasons))

    three = (*put(1, 2), *put(2, 3), *put(3, 4))

    def test_all_is_well(self) -> None:
        self.good(*self.three, Watch(W, "a", revision=2), seen(2, 1), seen(3, 2), seen(4, 3))

    def test_54_out_of_order(self) -> None:
        self.bad(
            "revision 2 is out of order, behind 3",
            *self.three,
            Watch(W, "a", revision=2),
            seen(3, 2),
            seen(2, 1),
        )

    def test_54_twice(self) -> None:
        begin = (*self.three, Watch(W, "a", revision=2), seen(2, 1))
        self.bad("revision 2 comes again", *begin, seen(2, 1), seen(3, 2))
        twice = Changed(W, 3, (Change("a", 2), Change("a", 2)))
        self.bad("'a' comes twice in revision 3", *begin, twice)

    def test_54_lost(self) -> None:
        self.bad(
            "has missed 'a' in revision 3, known from process 0",
            *self.three,
            Watch(W, "a", revision=2),
            seen(2, 1),
            seen(4, 3),
        )

    def test_54_lost_at_the_begin(self) -> None:
        self.bad(
            "has missed 'a' in revision 2",
            *self.three,
            Watch(W, "a", revision=2),
            seen(3, 2),
        )

    def test_54_lost_though_it_is_said_to_be_that_far(self) -> None:
        self.bad(
            "has missed 'a' in revision 4",
            *self.three,
            Watch(W, "a", revision=4),
            Progress(W, 4),
        )

    def test_known_from_another_watch(self) -> None:
        """Of a write of unknown outcome, which one of two watches has shown."""
        self.bad(
            "has missed 'a' in revision 3, known from the watch of process 8",
            *put(1, 2),
            Invoke(1, Put("a", 2)),
            Unknown(1),
            Watch(8, "a", revision=2),
            seen(2, 1, process=8),
            seen(3, 2, process=8),
            Watch(W, "a", revision=2),
            seen(2, 1),
            Progress(W, 3),
        )

    def test_what_comes_later_is_not_missed_yet(self) -> None:
        self.good(*self.three, Watch(W, "a", revision=2), seen(2, 1))

    def test_what_is_not_in_the_range(self) -> None:
        lines = (*put(1, 2), *put(1, 3, "b"), *put(1, 4, "c"), Watch(W, "a", "c", 2))
        self.good(*lines, seen(2, 1), seen(3, 1, "b"), Progress(W, 4))
        self.bad(
            "'c' is not in its range", *lines, seen(2, 1), seen(3, 1, "b"), seen(4, 1, "c")
        )

    def test_54_a_revision_is_whole(self) -> None:
        both = Transaction((), (Put("a", 1), Put("b", 1)))
        result = Result(succeeded=True, revision=2)
        lines = (Invoke(0, both), Ok(0, result), *put(2, 3), Watch(W, "a", "\0", 2))
        first, second = seen(2, 1, last=False), seen(2, 1, "b")
        self.good(*lines, first, second, seen(3, 2))
        self.bad("revision 2 is not complete", *lines, first, seen(3, 2))
        self.bad("revision 2 is not complete", *lines, first, Progress(W, 2))
        self.bad("only a part came: 'b' in revision 2", *lines, seen(2, 1), seen(3, 2))

    def test_54_it_goes_on_behind_what_was_complete(self) -> None:
        begin = (*self.three, Watch(W, "a", revision=2), seen(2, 1), Broken(W))
        self.good(*begin, Watch(W, "a", revision=3, resumes=True), seen(3, 2), seen(4, 3))
        again = Watch(W, "a", revision=3, resumes=True)
        self.bad("revision 2 comes again", *begin, again, seen(2, 1))
        self.bad("has missed 'a' in revision 3", *begin, again, seen(4, 3))
        wrong = Watch(W, "a", revision=4, resumes=True)
        self.bad("goes on at revision 4, but 2 was complete", *begin, wrong)

    def test_a_part_of_a_revision_comes_again_as_a_whole(self) -> None:
        both = Transaction((), (Put("a", 1), Put("b", 1)))
        lines = (
            Invoke(0, both),
            Ok(0, Result(succeeded=True, revision=2)),
            Watch(W, "a", "\0", 2),
            seen(2, 1, last=False),
            Broken(W),
            Watch(W, "a", "\0", 2, resumes=True),
        )
        whole = Changed(W, 2, (Change("a", 1), Change("b", 1)))
        self.good(*lines, whole)
        self.bad("only a part came: 'a' in revision 2", *lines, seen(2, 1, "b"))

    def test_54_from_the_future(self) -> None:
        watch = Watch(W, "a", revision=2)
        self.bad("revision 2 is from the future", watch, seen(2, 1), *put(1, 2))
        self.good(watch, Invoke(0, Put("a", 1)), seen(2, 1), Ok(0, Result(revision=2)))

    def test_from_nowhere(self) -> None:
        watch = Watch(W, "a", revision=2)
        self.bad("nobody had asked for 7", *put(1, 2), watch, seen(2, 1), seen(3, 7))
        self.bad(
            "nobody had asked for its delete", *put(1, 2), watch, seen(2, 1), seen(3, None)
        )
        failed = (Invoke(0, Put("a", 7)), Fail(0))
        self.bad("nobody had asked for 7", *put(1, 2), *failed, watch, seen(2, 1), seen(3, 7))
        lines = (*put(1, 2), watch, seen(2, 1), seen(3, 7))
        self.assertTrue(judge(history_of(lines), has_all_writes=False).is_good)

    def test_what_certainly_did_not_happen(self) -> None:
        """A compare that did not hold, the other half of a transaction, a delete of nothing."""
        begin = (*put(1, 2), Watch(W, "a", "c", 2), seen(2, 1))
        held: list[Line] = [Invoke(0, CompareAndSet("a", 1, 7)), Unknown(0)]
        self.good(*begin, *held, seen(3, 7))
        for result in (Result(succeeded=False), Result(succeeded=False, revision=2)):
            failed = (Invoke(0, CompareAndSet("a", 5, 7)), Ok(0, result))
            self.bad("nobody had asked for 7", *begin, *failed, seen(3, 7))
        either = Transaction((Compare("a", 0, "version"),), (Put("b", 7),), (Put("b", 8),))
        done = (Invoke(0, either), Ok(0, Result(succeeded=False, revision=3)))
        self.good(*begin, *done, seen(3, 8, "b"))
        self.bad("nobody had asked for 7", *begin, *done, seen(3, 8, "b"), seen(4, 7, "b"))
        nothing = (Invoke(0, Delete("b")), Ok(0, Result(count=0)))
        self.bad("nobody had asked for its delete", *begin, *nothing, seen(3, None, "b"))

    def test_54_one_change_in_two_revisions(self) -> None:
        """The answer told its revision; it has no other."""
        begin = (*put(1, 2), Watch(W, "a", revision=2), seen(2, 1))
        self.bad("1 is of another revision", *begin, seen(3, 1))
        # The same may be asked for twice, and of one of them nobody knows.
        self.good(*begin, Invoke(0, Put("a", 1)), Unknown(0), seen(3, 1))

    def test_what_another_change_did_not_do(self) -> None:
        """A revision that was told is that of one operation alone."""
        lines = (Invoke(1, Put("b", 7)), Unknown(1), *put(1, 2), Watch(W, "a", "c", 2))
        both = Changed(W, 2, (Change("a", 1), Change("b", 7)))
        self.bad("7 is of another revision", *lines, both)
        self.good(*lines, seen(2, 1), seen(3, 7, "b"))

    def test_another_value(self) -> None:
        self.bad(
            "'a' in revision 3 is 1, but 2 to process 0",
            *self.three,
            Watch(W, "a", revision=2),
            seen(2, 1),
            seen(3, 1),
        )

    def test_appends_and_deletes(self) -> None:
        self.good(
            Invoke(0, Append("a", "x")),
            Ok(0, Result(revision=2)),
            Invoke(0, Delete("a")),
            Ok(0, Result(revision=3, count=1)),
            Watch(W, "a", revision=2),
            seen(2, "x"),
            seen(3, None),
        )

    def test_from_now_on(self) -> None:
        """Nothing that was acknowledged before; then everything from what comes first."""
        begin = (*put(1, 2), Watch(W, "a"))
        self.good(*begin, *put(2, 3), *put(3, 4), seen(4, 3))
        self.good(*begin, Progress(W, 2), *put(2, 3), seen(3, 2))
        self.bad("revision 2 is out of order", *begin, seen(2, 1))
        behind = (*begin, Progress(W, 2), *put(2, 3), *put(3, 4), seen(4, 3))
        self.bad("has missed 'a' in revision 3", *behind)

    def test_compacted(self) -> None:
        begin = (*self.three, Watch(W, "a", revision=2))
        self.good(*begin, Compacted(W, 3), Watch(W, "a", revision=4), seen(4, 3))
        self.bad("but 2 is the next", *begin, Compacted(W, 1))
        self.bad("after it was told that it is compacted", *begin, Compacted(W, 3), seen(4, 3))

    def test_versions_tell_of_what_was_not_shown(self) -> None:
        """Though no answer does: the writes between are all of unknown outcome."""
        writes: list[Line] = []
        for process in range(3):
            writes += [Invoke(process, Put("a", process)), Unknown(process)]
        begin = (*writes, Watch(W, "a", revision=2))

        def shown(revision: int, value: Scalar, version: int, created: int) -> Line:
            return Changed(W, revision, (Change("a", value, created, version),))

        first = shown(2, 0, 1, 2)
        self.good(*begin, first, shown(5, 1, 2, 2), shown(6, 2, 3, 2))
        self.bad("has version 3 behind 1", *begin, first, shown(6, 2, 3, 2))
        self.bad("was created anew", *begin, first, shown(6, 2, 2, 6))
        self.bad(
            "was 1 before, but shown as 0",
            *begin,
            first,
            Changed(W, 3, (Change("a", 2, previous=1),)),
        )

    def test_the_first_change_tells_of_what_was_not_shown(self) -> None:
        writes: list[Line] = []
        for process in range(2):
            writes += [Invoke(process, Put("a", process)), Unknown(process)]
        changed = Changed(W, 4, (Change("a", 1, 3, 2),))
        text = "was created at 3, which was not shown"
        self.bad(text, *writes, Watch(W, "a", revision=2), changed)
        self.good(*writes, Watch(W, "a", revision=4), changed)
        self.good(*writes, Watch(W, "a"), changed)
        wrong = Changed(W, 4, (Change("a", 1, 3, 1),))
        self.bad("has version 1, and", *writes, Watch(W, "a", revision=4), wrong)

    def test_deleted_twice(self) -> None:
        deletes: list[Line] = []
        for process in range(2):
            deletes += [Invoke(process, Delete("a")), Unknown(process)]
        lines = (*put(1, 2), *deletes, Watch(W, "a", revision=2), seen(2, 1))
        self.good(*lines, seen(3, None))
        self.bad("is deleted once more", *lines, seen(3, None), seen(4, None))

    def test_one_who_does_not_watch(self) -> None:
        with self.assertRaises(BadHistory):
            judge(history_of([*put(1, 2), seen(2, 1)]))
