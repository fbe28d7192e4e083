"""The judge of operations, on small histories written for it: good ones and bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.test.judge import BadHistory, Judgement, Recorder, Verdict, history_of, judge
from raftd.test.judge.__main__ import main
from raftd.test.judge.brute import has_order
from raftd.test.judge.calibrate import LIMIT_S, calibrate, find_folder
from raftd.test.judge.calibrate import main as calibrate_main
from raftd.test.judge.calls import (
    Append,
    Call,
    Compare,
    CompareAndSet,
    Delete,
    Get,
    Put,
    Range,
    Record,
    Result,
    Scalar,
    Transaction,
)
from raftd.test.judge.files import read_history
from raftd.test.judge.history import (
    Fail,
    History,
    Invoke,
    Line,
    Ok,
    Unknown,
    decode_lines,
    encode_line,
    to_file,
)
from raftd.test.judge.model import StoreModel
from raftd.test.judge.search import Search

Step = tuple[int, Call | Result | str]


def lines_of(*steps: Step) -> list[Line]:
    """A call begins, a result ends, "unknown" and "fail" end otherwise."""
    lines: list[Line] = []
    for process, what in steps:
        if isinstance(what, Result):
            lines.append(Ok(process, what))
        elif isinstance(what, str):
            lines.append(Unknown(process) if what == "unknown" else Fail(process))
        else:
            lines.append(Invoke(process, what))
    return lines


def one(process: int, call: Call, result: Result | None = None) -> list[Step]:
    """An operation with nothing else at the same time."""
    return [(process, call), (process, result or Result())]


def read(process: int, value: Scalar | None, key: str = "a") -> list[Step]:
    return one(process, Get(key), Result(value=value))


def put(process: int, value: Scalar, key: str = "a", revision: int = 0) -> list[Step]:
    return one(process, Put(key, value), Result(revision=revision) if revision else None)


class Judging(SynchronousTestCase):
    def judged(self, steps: Sequence[Step], is_small: bool = True) -> Judgement:
        """A verdict, and that of every order if there are few."""
        history = history_of(lines_of(*steps))
        judgement = judge(history)
        if is_small:
            self.assertEqual(has_order(history.operations), judgement.is_good)
        return judgement

    def good(self, *steps: Step, is_small: bool = True) -> None:
        judgement = self.judged(steps, is_small)
        self.assertIs(judgement.verdict, Verdict.GOOD, judgement.reasons)
        self.assertEqual(judgement.reasons, [])

    def bad(self, *steps: Step, is_small: bool = True) -> str:
        judgement = self.judged(steps, is_small)
        self.assertIs(judgement.verdict, Verdict.BAD)
        return "\n".join(judgement.reasons)


class Registers(Judging):
    def test_one_after_the_other(self) -> None:
        self.good(*read(0, None), *put(0, 1), *read(1, 1))

    def test_a_stale_read(self) -> None:
        text = self.bad(*put(0, 1), *put(0, 2), *read(1, 1))
        self.assertIn("key 'a'", text)
        self.assertIn("before line 6 can be put in order (2 operations)", text)
        self.assertIn("lines 5 to 6, process 1: get 'a': 1", text)
        self.assertIn("there could have been: 'a' = 2.", text)

    def test_a_read_during_a_write_may_see_either(self) -> None:
        for value in (1, 2):
            self.good(*put(0, 1), (0, Put("a", 2)), *read(1, value), (0, Result()))

    def test_two_reads_during_a_write_do_not_go_back(self) -> None:
        self.bad(*put(0, 1), (0, Put("a", 2)), *read(1, 2), *read(2, 1), (0, Result()))

    def test_a_value_that_nobody_put(self) -> None:
        self.bad(*put(0, 1), *read(1, 7))

    def test_a_lost_update(self) -> None:
        """Two sets from the same value, and both succeed."""
        swap = Result(succeeded=True)
        self.bad(
            *put(0, 1),
            (0, CompareAndSet("a", 1, 2)),
            (1, CompareAndSet("a", 1, 3)),
            (0, swap),
            (1, swap),
        )

    def test_a_set_that_failed_though_nothing_was_in_its_way(self) -> None:
        self.bad(*put(0, 1), *one(0, CompareAndSet("a", 1, 2), Result(succeeded=False)))

    def test_the_same_value_again_is_a_change_all_the_same(self) -> None:
        """A put of what is there must not be taken for one that may go at once."""
        self.good(*put(0, 1), (1, Put("a", 1)), *put(0, 2), (1, Result()), *read(0, 1))

    def test_a_missing_key(self) -> None:
        self.good(*put(0, 1), *one(0, Delete("a"), Result(count=1)), *read(1, None), *put(1, 3))
        self.bad(*put(0, 1), *one(0, Delete("a"), Result(count=0)))
        self.bad(*put(0, 1), *one(0, Put("a", 2), Result(created=True)))

    def test_appends_keep_their_order(self) -> None:
        self.good(
            (0, Append("a", "x")),
            (1, Append("a", "y")),
            (0, Result()),
            (1, Result()),
            *read(0, "yx"),
        )
        self.bad(*one(0, Append("a", "x")), *one(1, Append("a", "y")), *read(0, "yx"))

    def test_29_an_append_that_was_applied_twice(self) -> None:
        self.bad((0, Append("a", "x")), (0, "unknown"), *read(1, "xx"))

    def test_versions(self) -> None:
        seen = Result(value=2, version=2)
        self.good(*put(0, 1), *put(0, 2), *one(0, Get("a"), seen))
        self.bad(
            *put(0, 1),
            (1, Put("a", 2)),
            (1, "unknown"),
            *one(0, Get("a"), Result(value=1, version=2)),
        )


class Unknowns(Judging):
    def test_it_may_have_happened_or_not(self) -> None:
        for value in (1, 2):
            self.good(*put(0, 1), (1, Put("a", 2)), (1, "unknown"), *read(0, value))

    def test_it_may_happen_at_any_later_time(self) -> None:
        self.good((1, Put("a", 2)), (1, "unknown"), *put(0, 1), *read(0, 1), *read(0, 2))

    def test_seen_and_then_not(self) -> None:
        """A dirty write: what was seen once is there, until something else is."""
        self.bad(*put(0, 1), (1, Put("a", 2)), (1, "unknown"), *read(0, 2), *read(0, 1))

    def test_its_process_may_go_on(self) -> None:
        self.good((1, Put("a", 2)), (1, "unknown"), *put(1, 3), *read(1, 3), *read(1, 2))

    def test_it_does_not_happen_before_it_was_asked_for(self) -> None:
        self.bad(*read(0, 2), (1, Put("a", 2)), (1, "unknown"))

    def test_it_happens_once(self) -> None:
        steps = [*put(0, 1), (1, Put("a", 2)), (1, "unknown"), *read(0, 2), *put(0, 3)]
        self.good(*steps, *read(0, 3))
        self.bad(*steps, *read(0, 2))

    def test_two_that_ask_the_same_happen_once_each(self) -> None:
        steps: list[Step] = [(1, Put("a", 2)), (1, "unknown"), (2, Put("a", 2)), (2, "unknown")]
        twice = [*put(0, 1), *read(0, 2), *put(0, 3), *read(0, 2)]
        self.good(*steps, *twice)
        self.bad(*steps, *twice, *put(0, 4), *read(0, 2))

    def test_an_end_that_is_missing_is_unknown(self) -> None:
        self.good((1, Put("a", 2)), *read(0, 2))

    def test_what_failed_did_not_happen(self) -> None:
        """A "failed" write that later turns out to have been committed (pitfall 30)."""
        self.good(*put(0, 1), (1, Put("a", 2)), (1, "fail"), *read(0, 1))
        self.bad(*put(0, 1), (1, Put("a", 2)), (1, "fail"), *read(0, 2))

    def test_one_that_enables_another(self) -> None:
        """Two unknown sets, each needed for what was seen."""
        steps: list[Step] = [*put(0, 1)]
        for process, (old, new) in enumerate([(1, 2), (2, 3)], 1):
            steps += [(process, CompareAndSet("a", old, new)), (process, "unknown")]
        self.good(*steps, *read(0, 3))
        self.bad(*steps, *read(0, 3), *read(0, 2))

    def test_the_right_one_is_kept_for_later(self) -> None:
        """Either explains what is seen first, and only the put what is seen last."""
        both: list[list[Step]] = [
            [(1, Put("a", 2)), (1, "unknown")],
            [(2, CompareAndSet("a", 1, 2)), (2, "unknown")],
        ]
        for one, other in (both, both[::-1]):
            steps = [*put(0, 1), *one, *other, *read(0, 2), *put(0, 3)]
            self.good(*steps, *read(0, 2))
            self.bad(*steps, *read(0, 2), *put(0, 4), *read(0, 2))


class ManyKeys(Judging):
    def test_keys_are_judged_apart(self) -> None:
        judgement = self.judged([*put(0, 1), *put(0, 2, "b"), *read(1, 1), *read(1, 2, "b")])
        self.assertEqual(judgement.parts, 2)
        text = self.bad(*put(0, 1), *put(0, 2, "b"), *read(1, None, "b"), *read(1, 1))
        self.assertIn("key 'b'", text)

    def test_a_range_shows_one_moment(self) -> None:
        """The second write is seen, the first, which was before it, is not."""
        both = (Record("a", 1), Record("b", 2))
        writes = [*put(0, 1), *put(0, 2, "b"), (1, Result(kvs=both))]
        self.good((1, Range("a", "c")), *writes)
        torn = [*put(0, 1), *put(0, 2, "b"), (1, Result(kvs=both[1:]))]
        text = self.bad((1, Range("a", "c")), *torn)
        self.assertIn("keys 'a', 'b'", text)

    def test_the_limit_of_a_range(self) -> None:
        steps = [*put(0, 1), *put(0, 2, "b")]
        call = Range("a", "\0", limit=1)
        self.good(*steps, *one(1, call, Result(kvs=(Record("a", 1),), count=2)))
        self.bad(*steps, *one(1, call, Result(kvs=(Record("a", 1),), count=1)))

    def test_a_range_of_nothing(self) -> None:
        self.good(*put(0, 1), *one(1, Range("x", "z"), Result(kvs=(), count=0)))
        self.bad(*put(0, 1), *one(1, Range("x", "z"), Result(kvs=(Record("y", 1),))))

    def test_a_delete_of_a_range(self) -> None:
        steps = [*put(0, 1), *put(0, 2, "b"), *one(0, Delete("a", "\0"), Result(count=2))]
        self.good(*steps, *read(1, None), *read(1, None, "b"))
        self.bad(*steps, *read(1, None), *read(1, 2, "b"))

    def test_a_transaction_is_one_change(self) -> None:
        both = Transaction((), (Put("a", 1), Put("b", 1)))
        during: list[Step] = [(0, both)]
        self.good(*during, *read(1, 1), *read(1, 1, "b"), (0, Result(succeeded=True)))
        self.bad(*during, *read(1, 1), *read(1, None, "b"), (0, Result(succeeded=True)))

    def test_what_a_transaction_sees(self) -> None:
        """Compares see what was before it, reads what it wrote; nested ones too."""
        inner = Transaction((Compare("a", 0, "version"),), (Get("a"),), (Put("b", 9),))
        outer = Transaction((), (Put("a", 1), inner))
        seen = Result(succeeded=True, results=(Result(value=1),))
        self.good(*one(0, outer, Result(succeeded=True, results=(Result(), seen))))
        self.bad(*put(1, 5), *one(0, outer, Result(succeeded=True, results=(Result(), seen))))

    def test_compares(self) -> None:
        for target, relation, operand, expected in (
            ("value", "=", "x", True),
            ("value", "!=", "x", False),
            ("value", "<", "y", True),
            ("value", ">", "y", False),
            ("version", "=", 1, True),
            ("version", ">", 1, False),
            ("create_revision", "=", 0, False),
            ("mod_revision", "!=", 0, True),
        ):
            call = Transaction((Compare("a", operand, target, relation),))  # type: ignore[arg-type]
            for succeeded in (True, False):
                history = history_of(
                    lines_of(*put(0, "x"), *one(0, call, Result(succeeded=succeeded)))
                )
                self.assertEqual(judge(history).is_good, succeeded is expected, call)

    def test_a_missing_key_has_no_value(self) -> None:
        for relation in ("=", "!=", "<", ">"):
            call = Transaction((Compare("a", "x", relation=relation),))
            self.good(*one(0, call, Result(succeeded=False)))
            self.bad(*one(0, call, Result(succeeded=True)))

    def test_a_transaction_of_unknown_outcome(self) -> None:
        call = Transaction((Compare("a", 1),), (Put("b", 1),), (Put("b", 2),))
        steps: list[Step] = [(1, call), (1, "unknown")]
        self.good(*steps, *read(0, 2, "b"))
        self.good(*steps, *put(0, 1), *read(0, 1, "b"))
        self.bad(*steps, *read(0, 1, "b"))


class Revisions(Judging):
    def test_what_was_put_is_what_is_found(self) -> None:
        self.good(
            *put(0, 1, revision=2),
            *one(1, Get("a"), Result(value=1, mod_revision=2)),
            is_small=False,
        )
        self.bad(
            *put(0, 1, revision=2),
            *one(1, Get("a"), Result(value=1, mod_revision=3)),
            is_small=False,
        )

    def test_one_that_nobody_was_told_is_settled_by_a_read(self) -> None:
        steps = [*put(0, 1, revision=4), (1, Put("a", 2)), (1, "unknown")]
        for mod_revision, is_good in ((4, False), (5, True), (9, True)):
            seen = one(0, Get("a"), Result(value=2, mod_revision=mod_revision))
            again = one(0, Get("a"), Result(value=2, mod_revision=9))
            judge_it = self.good if is_good and mod_revision == 9 else self.bad
            judge_it(*steps, *seen, *again, is_small=False)
        self.good(*steps, *one(0, Get("a"), Result(value=2, mod_revision=5)), is_small=False)

    def test_a_lost_update_by_revision(self) -> None:
        """Both conditions on the same revision hold, though one of them is a change."""
        call = Transaction((Compare("a", 2, "mod_revision"),), (Put("a", 2),))
        done = Result(succeeded=True)
        steps: list[Step] = [*put(0, 1, revision=2), (0, call), (1, call), (0, done)]
        self.good(*steps, (1, Result(succeeded=False)), is_small=False)
        self.bad(*steps, (1, done), is_small=False)

    def test_two_changes_with_one_revision(self) -> None:
        text = self.bad(*put(0, 1, revision=2), *put(0, 1, "b", revision=2), is_small=False)
        self.assertIn("revision 2 is that of two changes", text)

    def test_14_the_revision_goes_back(self) -> None:
        """Of keys that have nothing to do with one another."""
        text = self.bad(*put(0, 1, revision=5), *put(1, 1, "b", revision=4), is_small=False)
        self.assertIn("the revision went back", text)
        self.good(
            (0, Put("a", 1)),
            *put(1, 1, "b", revision=4),
            (0, Result(revision=3)),
            is_small=False,
        )

    def test_14_the_revision_goes_back_behind_what_was_shown(self) -> None:
        """Nobody was told of the put; but a read has shown its revision."""
        steps: list[Step] = [(0, Put("a", 1)), (0, "unknown")]
        steps += one(1, Get("a"), Result(value=1, mod_revision=9))
        text = self.bad(*steps, *put(1, 1, "b", revision=5), is_small=False)
        self.assertIn("the revision went back", text)
        self.good(*steps, *put(1, 1, "b", revision=10), is_small=False)

    def test_a_key_has_the_revision_of_another_change(self) -> None:
        steps: list[Step] = [(0, Put("a", 1)), (0, "unknown"), (1, Get("a")), (2, Put("b", 1))]
        shown: Step = (1, Result(value=1, mod_revision=9))
        text = self.bad(*steps, shown, (2, Result(revision=9)), is_small=False)
        self.assertIn("'a' has revision 9", text)
        self.good(*steps, shown, (2, Result(revision=10)), is_small=False)
        both = Transaction((), (Put("b", 1), Put("a", 1)))
        done = Result(succeeded=True, revision=9)
        self.good((1, Get("a")), (2, both), shown, (2, done), is_small=False)

    def test_a_range_shows_nothing_newer_than_itself(self) -> None:
        steps: list[Step] = [(0, Put("a", 1)), (0, "unknown")]
        for revision, judge_it in ((5, self.bad), (9, self.good)):
            kvs = (Record("a", 1, mod_revision=9),)
            shown = Result(kvs=kvs, count=1, revision=revision)
            judge_it(*steps, *one(1, Range("a", "b"), shown), is_small=False)

    def test_a_range_of_the_past(self) -> None:
        empty = Result(kvs=(), count=0, revision=1)
        self.bad(*put(0, 1, revision=2), *one(1, Range("b", "c"), empty), is_small=False)


class Work(SynchronousTestCase):
    def test_undecided_is_no_success(self) -> None:
        """With many writes at once and a bound that is too low for them."""
        steps: list[Step] = [(n, Put("a", n)) for n in range(12)]
        steps += [(n, Result()) for n in range(12)]
        history = history_of(lines_of(*steps, *read(0, 3)))
        judgement = judge(history, max_configurations=5)
        self.assertIs(judgement.verdict, Verdict.UNDECIDED)
        self.assertFalse(judgement.is_good)
        self.assertIn("the bound is 5 configurations", judgement.reasons[0])
        self.assertTrue(judge(history).is_good)

    def test_a_long_history_needs_no_stack(self) -> None:
        steps: list[Step] = []
        for n in range(5_000):
            steps += [*put(0, n), *read(1, n)]
        judgement = judge(history_of(lines_of(*steps)))
        self.assertTrue(judgement.is_good)
        self.assertEqual(judgement.operations, 10_000)
        self.assertLess(judgement.configurations, 12_000)

    def test_many_unknown_writes(self) -> None:
        """Each of a value of its own, none of them seen: nothing to try out."""
        steps: list[Step] = []
        for n in range(300):
            steps += [(1, Put("a", -n - 1)), (1, "unknown"), *put(0, n + 1), *read(0, n + 1)]
        judgement = judge(history_of(lines_of(*steps)))
        self.assertTrue(judgement.is_good)
        self.assertLess(judgement.configurations, 1_000)
        worse = judge(history_of(lines_of(*steps, *read(0, 7))))
        self.assertIs(worse.verdict, Verdict.BAD)

    def test_the_order_that_was_found_is_one(self) -> None:
        history = history_of(
            lines_of(
                (0, Put("a", 1)), (1, Put("a", 2)), (0, Result()), (1, Result()), *read(0, 1)
            )
        )
        search = Search(StoreModel(history.operations), history.operations)
        self.assertIs(search.run(), Verdict.GOOD)
        calls = [operation.call for operation in search.order]
        self.assertEqual(calls, [Put("a", 2), Put("a", 1), Get("a")])


class Files(SynchronousTestCase):
    def record(self) -> list[Line]:
        clock, lines = Clock(), list[Line]()
        recorder = Recorder(clock.seconds, lines.append)
        recorder.invoke(1, Put("a", "x"))
        clock.advance(0.25)
        recorder.ok(1, Result(revision=2))
        recorder.invoke(1, Delete("a"))
        recorder.unknown(1, "timed out")
        recorder.invoke(1, Get("a"))
        recorder.fail(1)
        recorder.watch(9, "a", revision=2)
        recorder.progress(9, 1)
        return lines

    def test_what_is_recorded_is_read_again(self) -> None:
        lines = self.record()
        self.assertEqual(getattr(lines[1], "time_us"), 250_000)  # noqa: B009
        path = self.mktemp()
        with open(path, "wb") as file:
            sink = to_file(file)
            for line in lines:
                sink(line)
        self.assertEqual(decode_lines(Path(path).read_bytes()), lines)
        history = read_history(Path(path))
        self.assertEqual([o.call for o in history.operations], [Put("a", "x"), Delete("a")])
        self.assertEqual(history.unknown, 1)
        self.assertEqual(len(history.watched), 2)

    def test_the_format(self) -> None:
        """What is on disk already must be read for ever."""
        lines: dict[bytes, Line] = {
            b'{"type":"invoke","process":1,"call":{"op":"get","key":"a"},"time_us":7}\n': (
                Invoke(1, Get("a"), 7)
            ),
            b'{"type":"ok","process":1,"result":{"value":null,"revision":3},"time_us":9}\n': (
                Ok(1, Result(value=None, revision=3), 9)
            ),
            b'{"type":"unknown","process":2,"error":"timeout"}\n': Unknown(2, error="timeout"),
        }
        for data, line in lines.items():
            self.assertEqual(encode_line(line), data)
            self.assertEqual(decode_lines(data), [line])

    def test_a_process_does_one_thing_at_a_time(self) -> None:
        recorder = Recorder(Clock().seconds, lambda line: None)
        recorder.invoke(1, Get("a"))
        self.assertRaises(AssertionError, recorder.invoke, 1, Get("a"))
        self.assertRaises(AssertionError, recorder.ok, 2, Result())

    def test_what_is_no_history(self) -> None:
        cases: list[tuple[list[Line], str]] = [
            ([Ok(1)], "line 1: process 1 has nothing to end"),
            ([Invoke(1, Get("a")), Invoke(1, Get("a"))], "line 2: process 1 is not done yet"),
            ([Invoke(1, Get("a"), 5), Ok(1, time_us=4)], "line 2: earlier than"),
        ]
        for lines, message in cases:
            with self.assertRaises(BadHistory) as caught:
                history_of(lines)
            self.assertIn(message, str(caught.exception))
        with self.assertRaises(BadHistory):
            decode_lines(b'{"type":"invoke","process":1,"call":{"op":"frob"}}')


class Jepsen(SynchronousTestCase):
    def history(self, *rows: str) -> History:
        path = Path(self.mktemp())
        path.write_text("".join(f"INFO  jepsen.util - {row}\n" for row in rows))
        return read_history(path)

    def test_outcomes(self) -> None:
        history = self.history(
            "0\t:invoke\t:cas\t[1 2]",
            "0\t:fail\t:cas\t[1 2]",
            "1\t:invoke\t:write\t3",
            "1\t:fail\t:write\t:timed-out",
            "1   :invoke :read   nil",
            "1   :ok     :read   3",
            "2\t:invoke\t:read\tnil",
            "2\t:fail\t:read\t:timed-out",
        )
        calls = {o.call: o.result for o in history.operations}
        self.assertEqual(
            calls,
            {
                CompareAndSet("register", 1, 2): Result(succeeded=False),
                Put("register", 3): None,
                Get("register"): Result(value=3),
            },
        )
        self.assertTrue(judge(history).is_good)

    def test_another_line(self) -> None:
        self.assertRaises(BadHistory, self.history, "0 :invoke :frob 1")


class Commands(SynchronousTestCase):
    def setUp(self) -> None:
        self.printed: list[str] = []
        self.patch(
            __import__("builtins"),
            "print",
            lambda *args, **kwargs: self.printed.append(" ".join(map(str, args))),
        )

    def write(self, *steps: Step) -> str:
        path: str = self.mktemp()
        Path(path).write_bytes(b"".join(map(encode_line, lines_of(*steps))))
        return path

    def test_a_verdict_for_each_file(self) -> None:
        good = self.write(*put(0, 1), *read(0, 1))
        bad = self.write(*put(0, 1), *read(0, 2))
        self.assertEqual(main([good]), 0)
        self.assertIn(f"{good}: linearizable (2 operations", self.printed[0])
        self.assertEqual(main([good, bad]), 1)
        self.assertIn("linearizable 1/2", self.printed)
        self.assertTrue(any("NOT LINEARIZABLE" in line for line in self.printed))

    def test_nothing_to_judge_is_a_failure(self) -> None:
        for path in (self.write(), self.write((0, Get("a")), (0, "fail")), "missing"):
            self.assertEqual(main([path]), 1)
        self.assertTrue(all("not judged" in line for line in self.printed))
        self.assertEqual(main([]), 2)

    def folder(self, verdict: str) -> str:
        path = Path(self.mktemp())
        path.mkdir()
        (path / "verdicts.tsv").write_text(f"history\tlinearizable\none\t{verdict}\n")
        (path / "one.log").write_text("INFO  jepsen.util - 0\t:invoke\t:write\t1\n")
        return str(path)

    def test_calibration_compares(self) -> None:
        self.assertEqual(calibrate_main([self.folder("true")]), 0)
        self.assertIn("verdicts 1/1", self.printed)
        self.assertEqual(calibrate_main([self.folder("false")]), 1)
        self.assertIn("verdicts 0/1", self.printed)

    def test_calibration_says_that_there_is_nothing_to_compare_with(self) -> None:
        self.patch(__import__("raftd"), "__file__", "/nowhere/raftd/__init__.py")
        self.patch(__import__("os"), "environ", {})
        self.assertEqual(calibrate_main([]), 0)
        self.assertIn("no folder of recorded histories", self.printed[0])


class Calibration(SynchronousTestCase):
    def test_recorded_histories_of_known_verdict(self) -> None:
        folder = find_folder()
        if folder is None:
            self.skipTest("no folder of recorded histories beside the checkout")
        found = calibrate(folder)
        self.assertGreater(len(found), 0)
        self.assertEqual([each.name for each in found if not each.is_right], [])
        self.assertLess(max(each.taken_s for each in found), LIMIT_S)
