"""Exactly once: the replicated table of sessions."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from raftd import sessions as sessions_module
from raftd.core.messages import Command
from raftd.errors import (
    DidNotHappen,
    OutcomeUnknown,
    ProtocolViolation,
    RaftdError,
    SessionExpired,
    SessionResultsFull,
    SessionTableFull,
    SessionWindowFull,
    StaleSequence,
)
from raftd.interfaces import IRestore, IStateMachine
from raftd.sessions import (
    CLOSE_SESSION,
    MAX_EXPIRED_AT_ONCE,
    MAX_SESSION_RESULT_BYTES,
    MAX_SESSIONS,
    OPEN_SESSION,
    SESSION_TTL_MS,
    WINDOW,
    Sessions,
    decode_opened,
    decode_result,
)
from raftd.slices import frame
from raftd.test.drivers import Journal


class Slow(Journal):
    """Takes three steps for each operation."""

    def apply(self, index: int, time_ms: int, command: Command) -> Generator[None, None, bytes]:
        yield
        yield
        return self.apply_command(command.operation)


class Large(Journal):
    """The result has as many bytes as the operation says."""

    def apply_command(self, operation: bytes) -> bytes:
        super().apply_command(operation)
        return b"r" * int(operation)


class Replica:
    """A state machine with sessions, and the end of its log."""

    def __init__(self, machine: Journal | None = None) -> None:
        self.machine = machine or Journal()
        self.sessions = Sessions(self.machine)
        self.index = 0
        self.time_ms = 0

    def apply(self, command: Command) -> bytes:
        self.index += 1
        result = self.sessions.apply(self.index, self.time_ms, command)
        if isinstance(result, bytes):
            return result
        while True:
            try:
                next(result)
            except StopIteration as done:
                value: bytes = done.value
                return value

    def open(self) -> int:
        session_id = decode_opened(self.apply(Command(b"", OPEN_SESSION)))
        assert isinstance(session_id, int), session_id
        return session_id

    def close(self, session_id: int) -> bytes | RaftdError:
        return decode_result(self.apply(Command(b"", CLOSE_SESSION, session_id)))

    def send(
        self, session_id: int, sequence: int, operation: bytes, first_unacknowledged: int = 1
    ) -> bytes | RaftdError:
        command = Command(operation, session_id, sequence, first_unacknowledged)
        return decode_result(self.apply(command))

    def snapshot(self) -> bytes:
        return b"".join(self.sessions.snapshot())

    def restored(self, data: bytes, sizes: Sequence[int] = (1 << 30,)) -> Replica:
        """Another replica, at the same place in the log, with this state."""
        other = Replica(type(self.machine)())
        other.index, other.time_ms = self.index, self.time_ms
        write(other.sessions.restore(), data, sizes)
        return other


def write(restore: IRestore, data: bytes, sizes: Sequence[int] = (1 << 30,)) -> None:
    """Restore from `data` in pieces of these sizes, again and again."""
    position = 0
    while position < len(data):
        for size in sizes:
            restore.write(data[position : position + size])
            position += size
    restore.finish()


class ExactlyOnce(SynchronousTestCase):
    def setUp(self) -> None:
        self.replica = Replica()
        self.operations = self.replica.machine.operations

    def test_interfaces(self) -> None:
        self.assertTrue(verifyObject(IStateMachine, self.replica.sessions))
        self.assertTrue(verifyObject(IStateMachine, self.replica.machine))
        self.assertTrue(verifyObject(IRestore, self.replica.sessions.restore()))
        self.assertTrue(verifyObject(IRestore, self.replica.machine.restore()))

    def test_without_a_session_nothing_changes(self) -> None:
        """The very object that the inner machine returns; and each time anew."""
        result = b"the result"
        self.patch(self.replica.machine, "apply_command", lambda operation: result)
        command = Command(b"x", 0, 7, 3, b"key")
        self.assertIs(self.replica.sessions.apply(1, 0, command), result)
        self.assertIs(self.replica.sessions.apply(2, 0, command), result)
        self.assertEqual(len(self.replica.sessions), 0)

    def test_a_session_is_named_by_the_index_of_its_entry(self) -> None:
        self.assertEqual(self.replica.open(), 1)
        self.replica.apply(Command(b"x"))
        self.assertEqual(self.replica.open(), 3)
        self.assertEqual(len(self.replica.sessions), 2)

    def test_29_a_retry_is_applied_once_and_has_the_first_result(self) -> None:
        session = self.replica.open()
        self.assertEqual(self.replica.send(session, 1, b"a"), b"1")
        self.assertEqual(self.replica.send(session, 2, b"b"), b"2")
        for _ in range(3):
            self.assertEqual(self.replica.send(session, 1, b"a"), b"1")
            self.assertEqual(self.replica.send(session, 2, b"b"), b"2")
        self.assertEqual(self.operations, [b"a", b"b"])

    def test_29_sessions_do_not_know_one_another(self) -> None:
        one, two = self.replica.open(), self.replica.open()
        self.assertEqual(self.replica.send(one, 1, b"a"), b"1")
        self.assertEqual(self.replica.send(two, 1, b"a"), b"2")
        self.assertEqual(self.operations, [b"a", b"a"])

    def test_29_commands_may_come_in_any_order_within_the_window(self) -> None:
        session = self.replica.open()
        for sequence in (3, 1, WINDOW, 2):
            self.replica.send(session, sequence, b"%d" % sequence)
        self.assertEqual(self.replica.send(session, 1, b"1"), b"2")
        self.assertEqual(self.operations, [b"3", b"1", b"%d" % WINDOW, b"2"])

    def test_29_an_application_in_steps_is_applied_once(self) -> None:
        replica = Replica(Slow())
        session = replica.open()
        self.assertEqual(replica.send(session, 1, b"a"), b"1")
        self.assertEqual(replica.send(session, 1, b"a"), b"1")
        self.assertEqual(replica.machine.operations, [b"a"])

    def test_29_what_was_acknowledged_is_never_applied_anew(self) -> None:
        session = self.replica.open()
        self.replica.send(session, 1, b"a")
        self.replica.send(session, 2, b"b", 2)
        self.assertIsInstance(self.replica.send(session, 1, b"a"), StaleSequence)
        self.assertIsInstance(self.replica.send(session, 1, b"a", 3), StaleSequence)
        # Not even what the same command acknowledges, and what was 3 is 3.
        self.assertIsInstance(self.replica.send(session, 2, b"b"), StaleSequence)
        self.assertEqual(self.operations, [b"a", b"b"])

    def test_numbers_begin_at_1(self) -> None:
        session = self.replica.open()
        for sequence in (0, -1):
            self.assertIsInstance(self.replica.send(session, sequence, b"a"), StaleSequence)
        self.assertEqual(self.operations, [])

    def test_what_is_acknowledged_is_forgotten(self) -> None:
        session = self.replica.open()
        empty = self.replica.sessions.digest()
        for sequence in range(1, WINDOW + 1):
            self.replica.send(session, sequence, b"a")
        self.replica.machine.operations.clear()
        self.replica.send(session, 0, b"", 10**6)
        other = self.replica.restored(self.replica.snapshot())
        self.assertEqual(other.sessions._size, 0)
        self.assertEqual(self.replica.sessions._size, 0)
        self.assertNotEqual(other.sessions.digest(), empty)

    def test_beyond_the_window_nothing_is_applied(self) -> None:
        session = self.replica.open()
        for first in (1, 5):
            far = first + WINDOW
            outcome = self.replica.send(session, far, b"far", first)
            self.assertIsInstance(outcome, SessionWindowFull)
            self.assertIsInstance(outcome, DidNotHappen)
        self.assertEqual(self.operations, [])
        # The window moves with what is acknowledged, and never back.
        self.assertEqual(self.replica.send(session, 5 + WINDOW, b"far", 6), b"1")
        self.assertIsInstance(self.replica.send(session, 6 + WINDOW, b"far", 1), DidNotHappen)

    def test_29_an_unknown_session_applies_nothing(self) -> None:
        for session in (1, 7, -1, 2**63):
            outcome = self.replica.send(session, 1, b"a")
            self.assertIsInstance(outcome, SessionExpired)
        self.assertEqual(self.operations, [])

    def test_30_what_may_have_happened_does_not_pass_for_what_did_not(self) -> None:
        """An earlier attempt may have been applied before the session was forgotten."""
        session = self.replica.open()
        self.replica.send(session, 1, b"a")
        stale = self.replica.send(session, 1, b"a", 2)
        self.replica.close(session)
        expired = self.replica.send(session, 1, b"a")
        for outcome in (stale, expired):
            self.assertIsInstance(outcome, OutcomeUnknown)
            self.assertNotIsInstance(outcome, DidNotHappen)

    def test_a_closed_session_is_gone(self) -> None:
        session = self.replica.open()
        self.replica.send(session, 1, b"a")
        for _ in range(2):
            self.assertEqual(self.replica.close(session), b"")
        self.assertIsInstance(self.replica.send(session, 1, b"a"), SessionExpired)
        self.assertIsInstance(self.replica.send(session, 2, b"a"), SessionExpired)
        self.assertEqual((self.operations, len(self.replica.sessions)), ([b"a"], 0))
        self.assertEqual(self.replica.sessions._size, 0)

    def test_results_cannot_be_confused_with_errors(self) -> None:
        self.assertEqual(decode_result(b"\0"), b"")
        self.assertEqual(decode_result(b"\0\1"), b"\1")
        kinds = [type(decode_result(bytes([n]))) for n in range(1, 6)]
        self.assertEqual(
            kinds,
            [
                SessionExpired,
                SessionTableFull,
                StaleSequence,
                SessionWindowFull,
                SessionResultsFull,
            ],
        )
        for data in (b"", b"\6", b"\1\0", b"\xff"):
            self.assertRaises(ProtocolViolation, decode_result, data)
        self.assertEqual(decode_opened(b"\0\5" + bytes(7)), 5)
        self.assertIsInstance(decode_opened(b"\2"), SessionTableFull)
        for data in (b"\0", b"\0" + bytes(9), b"", b"12"):
            self.assertRaises(ProtocolViolation, decode_opened, data)


class Expiry(SynchronousTestCase):
    def setUp(self) -> None:
        self.replica = Replica()

    def test_31_a_session_expires_by_the_time_in_the_log(self) -> None:
        session = self.replica.open()
        self.replica.time_ms += SESSION_TTL_MS - 1
        self.assertEqual(self.replica.send(session, 1, b"a"), b"1")
        # That has renewed it.
        self.replica.time_ms += SESSION_TTL_MS - 1
        self.assertEqual(self.replica.send(session, 1, b"a"), b"1")
        self.replica.time_ms += SESSION_TTL_MS
        self.assertIsInstance(self.replica.send(session, 1, b"a"), SessionExpired)
        self.assertIsInstance(self.replica.send(session, 2, b"b"), SessionExpired)
        self.assertEqual(self.replica.machine.operations, [b"a"])

    def test_31_no_clock_of_the_node_has_a_say(self) -> None:
        """A year passes here while the log's clock stands still."""
        session = self.replica.open()
        self.replica.send(session, 1, b"a")
        for clock in ("time", "monotonic", "time_ns", "monotonic_ns", "perf_counter"):
            real = getattr(time, clock)
            self.patch(time, clock, lambda real=real: real() + 366 * 86_400 * 10**9)
        self.assertEqual(self.replica.send(session, 1, b"a"), b"1")
        other = self.replica.restored(self.replica.snapshot())
        self.assertEqual(other.send(session, 1, b"a"), b"1")
        self.assertEqual(other.machine.operations, [b"a"])

    def test_the_clock_is_the_greatest_time_seen(self) -> None:
        session, other = self.replica.open(), self.replica.open()
        self.replica.time_ms = SESSION_TTL_MS - 1
        self.replica.send(other, 1, b"a")
        self.replica.time_ms = 0
        self.assertEqual(self.replica.send(session, 1, b"b"), b"2")
        self.replica.time_ms = 2 * SESSION_TTL_MS - 2
        self.assertEqual(self.replica.send(session, 1, b"b"), b"2")

    def test_the_least_active_are_cleared_away_first_and_a_few_at_once(self) -> None:
        sessions = [self.replica.open() for _ in range(4 * MAX_EXPIRED_AT_ONCE)]
        self.replica.time_ms = 1
        self.replica.send(sessions[0], 1, b"a")
        self.replica.time_ms = SESSION_TTL_MS
        for n in range(1, 4):
            self.assertEqual(self.replica.send(sessions[0], 1, b"a"), b"1")
            self.assertEqual(len(self.replica.sessions), (4 - n) * MAX_EXPIRED_AT_ONCE)
        self.replica.send(sessions[0], 1, b"a")
        self.assertEqual(len(self.replica.sessions), 1)

    def test_31_an_expired_session_is_over_even_if_it_is_not_cleared_away_yet(self) -> None:
        sessions = [self.replica.open() for _ in range(3 * MAX_EXPIRED_AT_ONCE)]
        self.replica.time_ms = SESSION_TTL_MS
        self.assertIsInstance(self.replica.send(sessions[-1], 1, b"a"), SessionExpired)
        self.assertEqual(len(self.replica.sessions), 2 * MAX_EXPIRED_AT_ONCE - 1)
        self.assertEqual(self.replica.machine.operations, [])


class Bounds(SynchronousTestCase):
    def test_a_full_table_drops_nobody_early(self) -> None:
        self.patch(sessions_module, "MAX_SESSIONS", 3)
        replica = Replica()
        sessions = [replica.open() for _ in range(3)]
        replica.time_ms = SESSION_TTL_MS - 1
        refused = decode_opened(replica.apply(Command(b"", OPEN_SESSION)))
        self.assertIsInstance(refused, SessionTableFull)
        self.assertIsInstance(refused, DidNotHappen)
        for session in sessions[1:]:
            self.assertIsInstance(replica.send(session, 1, b"a"), bytes)
        replica.time_ms = SESSION_TTL_MS
        replica.open()
        self.assertIsInstance(replica.send(sessions[0], 1, b"a"), SessionExpired)
        self.assertIsInstance(
            decode_opened(replica.apply(Command(b"", OPEN_SESSION))), SessionTableFull
        )
        replica.close(sessions[1])
        replica.open()

    def test_a_session_that_acknowledges_nothing_is_refused(self) -> None:
        """All but its oldest command, with which it can go on."""
        replica = Replica(Large())
        session, other = replica.open(), replica.open()
        half = b"%d" % (MAX_SESSION_RESULT_BYTES // 2)
        for sequence in (3, 2):
            self.assertIsInstance(replica.send(session, sequence, half), bytes)
        for _ in range(2):
            refused = replica.send(session, 4, half)
            self.assertIsInstance(refused, SessionResultsFull)
            self.assertIsInstance(refused, DidNotHappen)
        self.assertEqual(len(replica.machine.operations), 2)
        self.assertIsInstance(replica.send(other, 2, half), bytes)
        self.assertIsInstance(replica.send(session, 1, half), bytes)
        # What was applied is still answered; what was refused is applied later, once.
        for sequence in (1, 2, 3):
            self.assertIsInstance(replica.send(session, sequence, half), bytes)
        for _ in range(2):
            self.assertIsInstance(replica.send(session, 4, half, 3), bytes)
        self.assertEqual(len(replica.machine.operations), 5)

    def test_the_results_of_all_sessions_are_bounded(self) -> None:
        self.patch(sessions_module, "MAX_RESULT_BYTES", 1000)
        replica = Replica(Large())
        one, two = replica.open(), replica.open()
        self.assertIsInstance(replica.send(one, 1, b"2000"), bytes)
        before = replica.sessions.digest()
        self.assertIsInstance(replica.send(two, 1, b"1"), SessionResultsFull)
        self.assertEqual(len(replica.machine.operations), 1)
        self.assertIsInstance(replica.send(one, 1, b"2000"), bytes)
        # Whatever makes room: an acknowledgement, a close, or the time.
        other = replica.restored(replica.snapshot())
        self.assertIsInstance(other.send(two, 1, b"1"), SessionResultsFull)
        self.assertIsInstance(other.send(one, 2, b"1", 2), bytes)
        self.assertIsInstance(other.send(two, 1, b"1"), bytes)
        replica.close(one)
        self.assertIsInstance(replica.send(two, 1, b"1"), bytes)
        self.assertNotEqual(replica.sessions.digest(), before)


class Snapshots(SynchronousTestCase):
    """Pitfall 31: the table is in a snapshot, as of the very index of the state."""

    def setUp(self) -> None:
        self.replica = Replica()
        self.session = self.replica.open()

    def test_the_format(self) -> None:
        """As docs/sessions.md has it."""
        self.replica.time_ms = 5
        self.replica.send(self.session, 2, b"a")
        self.replica.send(self.session, 1, b"b")
        slices = [
            "14000000 93 b0 72616674642e73657373696f6e732f31 05 01",
            "12000000 91 94 01 05 01 92 92 01 c4020032 92 02 c4020031",
            "00000000",
            "11000000 92 ae 72616674642e73696d706c652f31 07",
            "07000000 92 c40161 c40162",
        ]
        self.assertEqual(
            [s.hex() for s in self.replica.sessions.snapshot()],
            [s.replace(" ", "") for s in slices],
        )

    def test_31_a_retry_after_a_restore_is_applied_once(self) -> None:
        self.replica.send(self.session, 1, b"a")
        other = self.replica.restored(self.replica.snapshot())
        self.assertEqual(other.sessions.digest(), self.replica.sessions.digest())
        for replica in (self.replica, other):
            self.assertEqual(replica.send(self.session, 1, b"a"), b"1")
            self.assertEqual(replica.machine.operations, [b"a"])
        self.assertEqual(other.sessions.digest(), self.replica.sessions.digest())

    def test_31_the_table_is_not_newer_than_the_state(self) -> None:
        """Otherwise replaying the log behind the snapshot would skip a write."""
        self.replica.send(self.session, 1, b"a")
        index = self.replica.index
        snapshot = self.replica.sessions.snapshot()
        self.replica.send(self.session, 2, b"b", 2)
        second = self.replica.open()
        self.replica.send(second, 1, b"c")
        other = self.replica.restored(b"".join(snapshot))
        self.assertEqual(other.machine.operations, [b"a"])
        other.index = index
        self.assertEqual(other.send(self.session, 2, b"b", 2), b"2")
        self.assertEqual(other.open(), second)
        self.assertEqual(other.send(second, 1, b"c"), b"3")
        self.assertEqual(other.sessions.digest(), self.replica.sessions.digest())

    def test_31_the_table_is_not_older_than_the_state(self) -> None:
        """Otherwise a retry would be applied to a state that has it already."""
        first = self.replica.sessions.snapshot()
        next(first)
        self.replica.send(self.session, 1, b"a")
        other = self.replica.restored(self.replica.snapshot())
        self.assertEqual(other.send(self.session, 1, b"a"), b"1")
        self.assertEqual(other.machine.operations, [b"a"])

    def test_31_expiry_goes_on_behind_a_snapshot(self) -> None:
        self.replica.time_ms = 10
        self.replica.send(self.session, 1, b"a")
        second = self.replica.open()
        other = self.replica.restored(self.replica.snapshot())
        for replica in (self.replica, other):
            replica.time_ms = 10 + SESSION_TTL_MS - 1
            self.assertEqual(replica.send(second, 1, b"b"), b"2")
            replica.time_ms += 1
            self.assertIsInstance(replica.send(self.session, 1, b"a"), SessionExpired)
        self.assertEqual(other.sessions.digest(), self.replica.sessions.digest())

    def test_a_session_with_many_bytes_takes_several_rows(self) -> None:
        replica = Replica(Large())
        one, two = replica.open(), replica.open()
        for sequence in range(1, 101):
            replica.send(one, sequence, b"5000")
            replica.send(two, sequence, b"1")
        replica.send(one, 101, b"300000")
        slices = list(replica.sessions.snapshot())
        self.assertGreater(len(slices), 8)
        self.assertLess(sorted(map(len, slices))[-2], 100_000)
        for sizes in ([1 << 30], [1000], [1, 70_000]):
            other = replica.restored(b"".join(slices), sizes)
            self.assertEqual(other.sessions.digest(), replica.sessions.digest())
            self.assertEqual(other.sessions._size, replica.sessions._size)

    def test_digests_tell_tables_apart(self) -> None:
        """Also those that differ in what will expire when, and in nothing else."""
        digests = [self.replica.sessions.digest()]
        self.replica.time_ms = 1
        self.replica.send(self.session, 0, b"")
        digests.append(self.replica.sessions.digest())
        self.replica.send(self.session, 0, b"", 2)
        digests.append(self.replica.sessions.digest())
        self.replica.open()
        digests.append(self.replica.sessions.digest())
        self.replica.apply(Command(b"a"))
        digests.append(self.replica.sessions.digest())
        self.assertEqual(len(set(digests)), len(digests))

    def test_closing_a_snapshot_closes_the_one_beneath(self) -> None:
        closed: list[str] = []

        class Slices(Iterator[bytes]):
            def __next__(self) -> bytes:
                return b"slice"

            def close(self) -> None:
                closed.append("closed")

        self.patch(self.replica.machine, "snapshot", Slices)
        for draws in (0, 1, 5):
            snapshot: Any = self.replica.sessions.snapshot()
            for _ in range(draws):
                next(snapshot)
            snapshot.close()
            snapshot.close()
            self.assertEqual(list(snapshot), [])
        self.assertEqual(closed, ["closed"] * 3)

    def test_43_what_is_cut_short_or_too_long_is_refused(self) -> None:
        self.replica.send(self.session, 1, b"a")
        self.replica.open()
        data = self.replica.snapshot()
        other = Replica()
        digest = other.sessions.digest()
        for bad in (*(data[:end] for end in range(len(data))), data + b"\0", data * 2):
            self.assertRaises(ValueError, write, other.sessions.restore(), bad)
            self.assertEqual(other.sessions.digest(), digest)

    def test_nothing_is_visible_until_the_restore_is_finished(self) -> None:
        self.replica.send(self.session, 1, b"a")
        other = Replica()
        digest = other.sessions.digest()
        restore = other.sessions.restore()
        restore.write(self.replica.snapshot())
        self.assertEqual(other.sessions.digest(), digest)
        restore.finish()
        self.assertEqual(other.sessions.digest(), self.replica.sessions.digest())
        self.assertRaises(ValueError, restore.finish)

    def test_what_is_no_table_is_refused(self) -> None:
        inner = b"".join(Journal().snapshot())

        def table(head: Any, *rows: Any) -> bytes:
            encode = msgspec.msgpack.encode
            return frame(encode(head)) + frame(encode(rows)) + frame(b"") + inner

        good = [3, 5, 1, [[1, b"\0"]]]
        write(Replica().sessions.restore(), table(["raftd.sessions/1", 5, 1], good))
        for bad in (
            table(["raftd.sessions/2", 5, 1], good),
            table(["raftd.sessions/1", 5, 2], good),
            table(["raftd.sessions/1", 5, 2], good, [4, 6, 1, []]),
            table(["raftd.sessions/1", 5, 2], good, [4, 4, 1, []]),
            table(["raftd.sessions/1", 5, 1], good, good),
            table(["raftd.sessions/1", 5, 2], good, [4, 5, 1, []], [3, 5, 1, []]),
            table(["raftd.sessions/1", 5, 1], [3, 5, 2, [[1, b"\0"]]]),
            table(["raftd.sessions/1", 5, 1], [3, 5, 2, [[2 + WINDOW, b"\0"]]]),
            table(["raftd.sessions/1", 5, 1], [3]),
            inner,
            b"\xff" * 40,
        ):
            self.assertRaises(ValueError, write, Replica().sessions.restore(), bad)

    def test_45_figures(self) -> None:
        """The largest table: bounds with room for a busy machine."""
        replica = Replica()
        sessions = [replica.open() for _ in range(MAX_SESSIONS)]
        for session in sessions:
            replica.send(session, 1, b"a")
        replica.machine.operations.clear()
        calls_s, slices_s = [], []
        for _ in range(3):
            begin = time.perf_counter()
            snapshot = replica.sessions.snapshot()
            calls_s.append(time.perf_counter() - begin)
        while True:
            begin = time.perf_counter()
            if next(snapshot, None) is None:
                break
            slices_s.append(time.perf_counter() - begin)
        self.assertGreater(len(slices_s), 20)
        self.assertLess(min(calls_s), 0.05)
        self.assertLess(sorted(slices_s)[len(slices_s) // 2], 0.02)


SESSIONS = st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("open")),
    st.tuples(st.just("close"), SESSIONS),
    st.tuples(st.just("send"), SESSIONS, st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.just("pass")),
    st.tuples(st.just("time"), st.sampled_from([1, 50, 100])),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("draw")),
)


class Model:
    """What the table promises, in the plainest way: everything is remembered for ever."""

    def __init__(self) -> None:
        self.now = 0
        self.active: dict[int, int] = {}
        self.first: dict[int, int] = {}
        self.results: dict[tuple[int, int], bytes] = {}
        self.operations = 0

    def send(self, session: int, sequence: int, first: int) -> bytes | type[RaftdError]:
        if self.now - self.active.get(session, -(10**9)) >= 100:
            return SessionExpired
        self.active[session] = self.now
        self.first[session] = max(self.first[session], first)
        if sequence < self.first[session]:
            return StaleSequence
        if (session, sequence) in self.results:
            return self.results[session, sequence]
        if sequence >= self.first[session] + 4:
            return SessionWindowFull
        self.operations += 1
        result = self.results[session, sequence] = b"%d" % self.operations
        return result


class Random(SynchronousTestCase):
    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(st.lists(STEPS, max_size=80), st.lists(st.integers(1, 40), min_size=1, max_size=3))
    def test_29_31_against_a_model(self, steps: list[Any], sizes: list[int]) -> None:
        """Any log, with snapshots drawn while it is applied, each restored and gone on with."""
        self.patch(sessions_module, "WINDOW", 4)
        self.patch(sessions_module, "SESSION_TTL_MS", 100)
        self.patch(sessions_module, "MAX_EXPIRED_AT_ONCE", 1)
        self.patch(sessions_module, "SLICE_BYTES", 1)
        self.replica, self.model = Replica(), Model()
        #: What was applied since the snapshot that is being drawn was begun.
        since: list[tuple[int, Command]] = []
        snapshot: Iterator[bytes] = iter(())
        slices: list[bytes] = []
        at = (0, 0)
        ids: list[int] = [0]

        def check() -> None:
            """The copy goes the rest of the way, and comes to the same."""
            slices.extend(snapshot)
            if slices:
                other = self.replica.restored(b"".join(slices), sizes)
                other.index = at[0]
                for time_ms, command in since:
                    other.time_ms = time_ms
                    other.apply(command)
                self.assertEqual(other.sessions.digest(), self.replica.sessions.digest())

        for what, *arguments in steps:
            if what == "time":
                self.replica.time_ms += arguments[0]
            elif what == "snapshot":
                check()
                snapshot, slices = self.replica.sessions.snapshot(), []
                since, at = [], (self.replica.index, self.replica.time_ms)
            elif what == "draw":
                slices.extend(islice(snapshot, 1))
            else:
                command = self.command(what, arguments, ids)
                since.append((self.replica.time_ms, command))
                self.apply(what, command, ids)
        check()
        self.assertEqual(len(self.replica.machine.operations), self.model.operations)

    def command(self, what: str, arguments: list[int], ids: list[int]) -> Command:
        if what == "open":
            return Command(b"", OPEN_SESSION)
        if what == "pass":
            return Command(b"pass")
        session = ids[arguments[0] % len(ids)] or 10**6
        if what == "close":
            return Command(b"", CLOSE_SESSION, session)
        return Command(b"send", session, arguments[1], arguments[2])

    def apply(self, what: str, command: Command, ids: list[int]) -> None:
        model, result = self.model, self.replica.apply(command)
        if what == "pass":
            model.operations += 1
            self.assertEqual(result, b"%d" % model.operations)
            return
        model.now = self.replica.time_ms
        if what == "open":
            ids.append(self.replica.index)
            model.active[self.replica.index] = model.now
            model.first[self.replica.index] = 1
        elif what == "close":
            model.active.pop(command.sequence, None)
        else:
            outcome = decode_result(result)
            expected = model.send(
                command.client_id, command.sequence, command.first_unacknowledged
            )
            if isinstance(expected, bytes):
                self.assertEqual(outcome, expected)
            else:
                self.assertIs(type(outcome), expected)
