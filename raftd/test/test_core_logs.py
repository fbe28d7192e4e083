"""The core's log, and how far the log of a member matches it."""

from __future__ import annotations

import random
from collections import deque

from twisted.trial.unittest import SynchronousTestCase

from raftd.core import progress as progress_module
from raftd.core.log import Log
from raftd.core.messages import Entry
from raftd.core.progress import MAX_APPENDS_IN_FLIGHT, Progress, ProgressState
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import InvariantViolated
from raftd.test.cores import THREE, log_of, terms_of


class Logs(SynchronousTestCase):
    def test_indexes_and_terms(self) -> None:
        log = Log(log_of([1, 1, 2]))
        self.assertEqual((log.first_index, log.last_index, log.last_term), (1, 3, 2))
        self.assertEqual([log.term_at(i) for i in range(5)], [0, 1, 1, 2, None])
        empty = Log()
        self.assertEqual((empty.first_index, empty.last_index, empty.last_term), (1, 0, 0))

    def test_a_log_that_begins_behind_a_base(self) -> None:
        log = Log([Entry(i, 4, 1, 0, b"") for i in (11, 12)], base_index=10, base_term=3)
        self.assertEqual((log.first_index, log.last_index, log.persisted_index), (11, 12, 12))
        self.assertEqual([log.term_at(i) for i in (9, 10, 11, 12, 13)], [None, 3, 4, 4, None])
        self.assertEqual([e.index for e in log.entries(12, 12)], [12])
        with self.assertRaises(InvariantViolated):
            log.entries(10, 12)
        self.assertEqual(log.matching_hint(12, 3), (10, 3))
        log.truncate(11)
        self.assertEqual((log.last_index, log.last_term), (10, 3))

    def test_batches_are_bounded_by_count_and_size(self) -> None:
        log = Log([Entry(i, 1, 1, 0, bytes(10)) for i in range(1, 6)])
        for first, entries, size, expected in (
            (1, 9, 999, [1, 2, 3, 4, 5]),
            (1, 2, 999, [1, 2]),
            (4, 9, 999, [4, 5]),
            (1, 9, 20, [1, 2]),
            (1, 9, 29, [1, 2]),
            (1, 9, 5, [1]),
            (6, 9, 999, []),
        ):
            batch, taken = log.batch(first, entries, size)
            self.assertEqual([e.index for e in batch], expected, (first, entries, size))
            self.assertEqual(taken, 10 * len(expected))

    def test_which_log_is_more_up_to_date(self) -> None:
        log = Log(log_of([1, 2, 2]))
        for index, term, expected in ((3, 2, True), (2, 2, False), (1, 3, True), (9, 1, False)):
            self.assertIs(log.is_up_to_date(index, term), expected, (index, term))

    def test_where_two_logs_may_agree(self) -> None:
        log = Log(log_of([1, 1, 4, 4, 6]))
        for index, term, expected in (
            (5, 6, (5, 6)),
            (9, 6, (5, 6)),
            (5, 5, (4, 4)),
            (3, 3, (2, 1)),
            (2, 9, (2, 1)),
            (5, 0, (0, 0)),
            (0, 9, (0, 0)),
        ):
            self.assertEqual(log.matching_hint(index, term), expected, (index, term))

    def test_what_a_write_makes_durable(self) -> None:
        log = Log(log_of([1]))
        log.append(log_of([1, 1, 1])[1:])
        self.assertEqual([e.index for e in log.begin_write(1)], [2, 3])
        log.append(log_of([1, 1, 1, 1])[3:])
        self.assertEqual([e.index for e in log.begin_write(2)], [4])
        self.assertEqual(log.begin_write(3), [])
        self.assertEqual((log.persisted_index, log.written_index), (1, 4))
        log.persisted(1)
        self.assertEqual(log.persisted_index, 3)
        log.persisted(1)
        log.persisted(3)
        self.assertEqual(log.persisted_index, 4)

    def test_compaction(self) -> None:
        log = Log([Entry(i, 1 + i // 3, 1, 10 * i, b"") for i in range(1, 6)])
        log.compact(2)
        self.assertEqual((log.first_index, log.base_term, log.last_index), (3, 1, 5))
        log.compact(1)
        self.assertEqual(log.first_index, 3)
        log.append([Entry(6, 3, 1, 60, b"")])
        with self.assertRaises(InvariantViolated):
            log.compact(6)
        self.assertEqual([e.index for e in log.begin_write(1)], [6])
        with self.assertRaises(InvariantViolated):
            log.compact(6)
        log.persisted(1)
        log.compact(6)
        self.assertEqual((log.first_index, log.last_index, log.last_term), (7, 6, 3))
        self.assertEqual((log.last_time_ms, log.is_written), (60, True))
        self.assertEqual(log.batch(7, 9, 99), ((), 0))

    def test_tail(self) -> None:
        log = Log([Entry(i, 1, 1, 0, b"x" * (10 * i)) for i in range(1, 8)])
        log.compact(1)
        for index, max_entries, max_bytes, begin in (
            (6, 10, 1000, 1),
            (6, 2, 1000, 4),
            (6, 0, 1000, 6),
            (6, 10, 150, 3),
            (6, 10, 149, 4),
            (6, 10, 59, 6),
            (2, 10, 1000, 1),
            (1, 10, 0, 1),
        ):
            self.assertEqual(log.tail_begin(index, max_entries, max_bytes), begin)

    def test_53_what_was_dropped_is_let_go_of_bit_by_bit(self) -> None:
        """Freeing a million entries takes its time: `free` does so, and nothing else."""
        log = Log([Entry(i, 1, 1, 0, b"") for i in range(1, 21)])
        log.compact(12)
        self.assertEqual([log.free(9) for _ in range(4)], [True, True, False, False])
        self.assertEqual([entry.index for entry in log.entries(13, 20)], list(range(13, 21)))
        log.reset(SnapshotMetadata(30, 4, THREE, 70))
        self.assertEqual([log.free(5) for _ in range(3)], [True, False, False])
        self.assertEqual((log.first_index, log.last_index), (31, 30))

    def test_beginning_anew(self) -> None:
        log = Log(log_of([1]))
        log.append(log_of([1, 1, 1])[1:])
        log.begin_write(1)
        log.reset(SnapshotMetadata(7, 4, THREE, 70))
        self.assertEqual((log.base_index, log.last_index, log.last_term), (7, 7, 4))
        self.assertEqual((log.last_time_ms, log.persisted_index), (70, 7))
        self.assertFalse(log.is_written)
        log.append([Entry(8, 4, 1, 80, b"")])
        # What was being written acknowledges nothing of this.
        log.persisted(1)
        self.assertEqual(log.persisted_index, 7)
        self.assertEqual(log.base_to_write(), (7, 4))
        self.assertEqual([e.index for e in log.begin_write(2)], [8])
        self.assertEqual((log.base_to_write(), log.is_written), (None, True))
        log.persisted(2)
        self.assertEqual(log.persisted_index, 8)

    def test_a_truncation_takes_back_what_was_durable_or_on_its_way(self) -> None:
        log = Log(log_of([1]))
        log.append(log_of([1, 1, 1])[1:])
        log.begin_write(1)
        log.truncate(3)
        self.assertEqual((log.last_index, log.written_index, log.persisted_index), (2, 2, 1))
        log.append(log_of([1, 1, 2])[2:])
        self.assertEqual(terms_of(log.begin_write(2)), [2])
        log.persisted(1)
        self.assertEqual(log.persisted_index, 2)
        log.truncate(1)
        self.assertEqual((log.persisted_index, log.written_index), (0, 0))
        log.persisted(2)
        self.assertEqual(log.persisted_index, 0)

    def test_the_account_of_durability_agrees_with_a_disk(self) -> None:
        # Appends, truncations, writes and flushes at random, beside a real disk.
        for seed in range(50):
            rng = random.Random(seed)
            log, number, term = Log(), 0, 1
            durable: list[Entry] = []
            queue: deque[tuple[int, list[Entry]]] = deque()
            for _ in range(100):
                action = rng.randrange(4)
                if action == 0:
                    first = log.last_index + 1
                    log.append([Entry(first + i, term, 1, 0, b"") for i in range(2)])
                elif action == 1 and log.last_index:
                    term += 1
                    first = rng.randint(1, log.last_index)
                    log.truncate(first)
                    log.append([Entry(first, term, 1, 0, b"")])
                elif action == 2:
                    number += 1
                    queue.append((number, log.begin_write(number)))
                elif queue:
                    done, entries = queue.popleft()
                    if entries:
                        durable[entries[0].index - 1 :] = entries
                    log.persisted(done)
                persisted = log.persisted_index
                self.assertEqual(durable[:persisted], log.entries(1, persisted))
                self.assertLessEqual(persisted, log.written_index)
            while queue:
                done, entries = queue.popleft()
                if entries:
                    durable[entries[0].index - 1 :] = entries
                log.persisted(done)
            self.assertEqual(log.persisted_index, log.written_index)


class ProgressOfAMember(SynchronousTestCase):
    def test_a_probe_is_alone(self) -> None:
        progress = Progress(5, 0.0)
        self.assertTrue(progress.may_send())
        progress.sent(9, 100)
        self.assertEqual((progress.may_send(), progress.next_index), (False, 5))
        progress.matched(9)
        self.assertEqual(
            (progress.state, progress.match_index, progress.next_index),
            (ProgressState.REPLICATE, 9, 10),
        )

    def test_appends_in_flight_are_bounded_by_number(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(0)
        for last in range(1, MAX_APPENDS_IN_FLIGHT + 1):
            self.assertTrue(progress.may_send())
            progress.sent(last, 1)
        self.assertFalse(progress.may_send())
        progress.matched(2)
        self.assertEqual(progress.bytes_in_flight, MAX_APPENDS_IN_FLIGHT - 2)
        self.assertTrue(progress.may_send())

    def test_appends_in_flight_are_bounded_by_size(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(0)
        progress.sent(1, progress_module.MAX_BYTES_IN_FLIGHT)
        self.assertFalse(progress.may_send())
        progress.matched(1)
        self.assertEqual((progress.may_send(), progress.bytes_in_flight), (True, 0))

    def test_going_back_never_goes_below_what_matches(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(4)
        progress.sent(9, 50)
        progress.commit_sent = 3
        progress.probe(2, lost=True)
        self.assertEqual((progress.match_index, progress.next_index), (4, 5))
        self.assertEqual((progress.bytes_in_flight, len(progress.in_flight)), (0, 0))
        self.assertEqual((progress.commit_sent, progress.may_send()), (0, False))
        progress.lost = False
        self.assertTrue(progress.may_send())

    def test_a_member_that_awaits_a_snapshot_is_sent_nothing(self) -> None:
        progress = Progress(5, 0.0)
        progress.matched(2)
        progress.sent(9, 100)
        progress.await_snapshot()
        self.assertEqual((progress.state, progress.may_send()), (ProgressState.SNAPSHOT, False))
        self.assertEqual((progress.bytes_in_flight, len(progress.in_flight)), (0, 0))
        progress.matched(7)
        self.assertEqual(
            (progress.state, progress.match_index, progress.may_send()),
            (ProgressState.REPLICATE, 7, True),
        )
        progress.await_snapshot()
        progress.probe(8, lost=True)
        self.assertEqual((progress.state, progress.may_send()), (ProgressState.PROBE, False))

    def test_a_late_match_takes_nothing_back(self) -> None:
        progress = Progress(1, 0.0)
        progress.matched(9)
        progress.sent(12, 1)
        progress.matched(3)
        self.assertEqual((progress.match_index, progress.next_index), (9, 13))
