"""The leader's clock for leases: against a clock, and a node that does as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import decode_command
from raftd.errors import (
    BadRequest,
    LeaseNotFound,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftdError,
    Stopped,
)
from raftd.interfaces import Done
from raftd.kv import lease_keeper, lease_questions
from raftd.kv.lease_keeper import (
    MAX_REVOKES_AT_ONCE,
    MAX_TTL_MS,
    RETRY_S,
    LeaseKeeper,
    raised_ttl_ms,
    ttl_floor_ms,
)
from raftd.kv.lease_questions import KeepAlive, LeaseAsker, Left, TimeLeft
from raftd.kv.operations import ExpireLease, decode_operation
from raftd.kv.results import LeaseResult, RevokeResult, encode_result
from raftd.test.drivers import Answer

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode
REVOKED = encode_result(RevokeResult(2, 0))


class FakeStore:
    """A store's leases."""

    def __init__(self) -> None:
        self.granted: dict[int, LeaseResult] = {}
        self.on_lease: Callable[[int, int], None] | None = None
        self.numbers: dict[int, int] = {}
        self.next_number = 1

    def granted_before(self, id: int, ttl_s: float = 10) -> None:
        """Before anybody was told of it."""
        self.granted[id] = LeaseResult(id, int(ttl_s * 1000))
        self.numbers[id] = self.next_number
        self.next_number += 1

    def grant(self, id: int, ttl_s: float = 10) -> None:
        self.granted_before(id, ttl_s)
        assert self.on_lease is not None
        self.on_lease(id, int(ttl_s * 1000))

    def revoke(self, id: int) -> None:
        del self.granted[id]
        assert self.on_lease is not None
        self.on_lease(id, 0)

    def lease(self, id: int) -> LeaseResult | None:
        return self.granted.get(id)

    def lease_number(self, id: int) -> int:
        return self.numbers.get(id, 0)

    def granted_leases(self) -> list[LeaseResult]:
        return list(self.granted.values())


class FakeNode:
    """A leader whose reads and proposals are answered by the test."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.reads: list[Done[None]] = []
        self.proposed: list[tuple[list[int], Deferred[list[bytes | RaftdError]]]] = []
        #: Whether reads are confirmed, and revocations committed, at once.
        self.obliges = True
        self.is_leader = True

    def read(self, done: Done[None]) -> None:
        if self.obliges:
            done(None)
        else:
            self.reads.append(done)

    def forwarded(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        if not self.is_leader:
            return fail(NotLeader("Not any more."))
        operations = [decode_operation(decode_command(c).operation) for c in commands]
        expiries = [o for o in operations if isinstance(o, ExpireLease)]
        assert len(expiries) == len(commands)
        ids = [o.id for o in expiries]
        assert [o.number for o in expiries] == [self.store.lease_number(id) for id in ids]
        self.proposed.append((ids, Deferred()))
        if self.obliges:
            self.commit()
        return self.proposed[-1][1]

    def commit(self) -> None:
        """The last proposal is applied."""
        ids, outcome = self.proposed[-1]
        for id in ids:
            self.store.revoke(id)
        outcome.callback([REVOKED] * len(ids))

    @property
    def revoked(self) -> list[int]:
        return [id for ids, _ in self.proposed for id in ids]


class KeeperTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = FakeStore()
        self.node = FakeNode(self.store)
        self.keeper = LeaseKeeper(self.clock, self.node, self.store)

    def tearDown(self) -> None:
        self.keeper.end()
        self.assertEqual(self.clock.getDelayedCalls(), [], "a timer outlives its tenure")

    def advance(self, seconds: float) -> None:
        """Let time pass, call by call."""
        end = self.clock.seconds() + seconds
        while True:
            due = [c.getTime() for c in self.clock.getDelayedCalls() if c.getTime() <= end]
            if not due:
                break
            self.clock.advance(max(0.0, min(due) - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def asked(self, question: KeepAlive | TimeLeft) -> Answer[bytes]:
        answer: Answer[bytes] = Answer()
        self.keeper.answer(encode(question), answer)
        return answer

    def keep_alive(self, *ids: int) -> list[int]:
        outcome = self.asked(KeepAlive([*ids])).outcome
        assert isinstance(outcome, bytes), outcome
        ttls: list[int] = decode(outcome, type=list[int])
        return ttls

    def time_left(self, id: int) -> Left:
        outcome = self.asked(TimeLeft(id)).outcome
        assert isinstance(outcome, bytes), outcome
        return decode(outcome, type=Left)


class ExpiryTests(KeeperTestCase):
    def test_a_lease_that_nobody_keeps_alive_is_revoked_when_its_time_is_up(self) -> None:
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(9.99)
        self.assertEqual(self.node.revoked, [])
        self.advance(0.02)
        self.assertEqual(self.node.revoked, [7])
        self.assertEqual(len(self.keeper), 0)
        self.advance(100)
        self.assertEqual(self.node.revoked, [7])

    def test_a_new_leader_starts_every_lease_anew(self) -> None:
        """From when it begins, whenever they were granted."""
        for id in range(1, 6):
            self.store.granted_before(id, id * 10)
        self.advance(1000)
        self.keeper.begin()
        self.assertEqual(len(self.keeper), 5)
        for id in range(1, 6):
            self.advance(9.9)
            self.assertEqual(self.node.revoked, list(range(1, id)))
            self.advance(0.1)
            self.assertEqual(self.node.revoked, list(range(1, id + 1)))

    def test_a_leader_that_lost_its_office_keeps_no_time(self) -> None:
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(9)
        self.keeper.end()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.store.grant(8, 1)
        self.advance(100)
        self.assertEqual((self.node.revoked, len(self.keeper)), ([], 0))
        self.keeper.begin()
        self.advance(0.9)
        self.assertEqual(self.node.revoked, [])
        self.advance(10)
        self.assertEqual(self.node.revoked, [8, 7])

    def test_there_is_one_timer_however_many_leases_there_are(self) -> None:
        self.keeper.begin()
        for id in range(1, 500):
            self.store.grant(id, 5 + id % 50)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.advance(56)
        self.assertEqual(sorted(self.node.revoked), list(range(1, 500)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_52_only_the_clock_that_it_was_given_counts(self) -> None:
        """Which is monotonic: a wall clock that steps moves nothing."""
        self.keeper.begin()
        self.store.grant(1, 100)
        wall = time.time()
        for step_s in (3600.0, -7200.0, 1e9):
            self.patch(time, "time", lambda step_s=step_s: wall + step_s)
            self.advance(10)
            self.assertEqual(self.node.revoked, [])
        self.assertEqual(self.time_left(1).left_ms, 70_000)

    def test_revocations_are_proposed_in_bounded_numbers(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        for id in range(1, 1001):
            self.store.grant(id, 10)
        self.advance(11)
        batches = 0
        while self.node.proposed:
            ids, _ = self.node.proposed[-1]
            self.assertLessEqual(len(ids), MAX_REVOKES_AT_ONCE)
            self.assertEqual(len(self.node.proposed), 1, "the next before the outcome")
            batches += 1
            self.node.commit()
            self.node.proposed.clear()
            self.advance(0.01)
        self.assertEqual(self.store.granted, {})
        self.assertEqual(batches, 8)

    def test_a_revocation_that_came_to_nothing_is_proposed_again(self) -> None:
        for error in (Overloaded("Not now."), OutcomeUnknown("Who knows?")):
            keeper = self.keeper
            self.node.obliges = False
            self.node.proposed.clear()
            keeper.begin()
            self.store.grant(7, 10)
            self.advance(10)
            self.node.proposed[-1][1].callback([error])
            self.assertEqual(len(self.node.proposed), 1)
            self.advance(RETRY_S - 0.01)
            self.assertEqual(len(self.node.proposed), 1)
            self.advance(0.02)
            self.assertEqual(self.node.revoked, [7, 7])
            self.node.commit()
            self.advance(100)
            self.assertEqual(self.node.revoked, [7, 7])
            keeper.end()

    def test_one_that_leads_no_longer_gives_up(self) -> None:
        """It may propose before it has heard of it; nothing is handed on to the next leader."""
        self.keeper.begin()
        self.store.grant(7, 10)
        self.node.is_leader = False
        self.advance(10)
        self.keeper.end()
        self.advance(100)
        self.assertEqual(self.node.revoked, [])

    def test_an_outcome_from_an_earlier_tenure_means_nothing(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(10)
        ((_, outcome),) = self.node.proposed
        self.keeper.end()
        self.keeper.begin()
        outcome.callback([NotLeader("Superseded.")])
        self.advance(9.9)
        self.assertEqual(self.node.revoked, [7])
        self.advance(0.1)
        self.assertEqual(self.node.revoked, [7, 7])

    def test_a_lease_that_its_owner_has_revoked(self) -> None:
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(5)
        self.store.revoke(7)
        self.assertEqual(len(self.keeper), 0)
        self.advance(100)
        self.assertEqual(self.node.revoked, [])

    def test_an_id_that_is_granted_again_is_another_lease(self) -> None:
        self.keeper.begin()
        self.store.grant(7, 100)
        self.store.revoke(7)
        self.store.grant(7, 5)
        self.advance(5)
        self.assertEqual(self.node.revoked, [7])
        self.store.grant(7, 5)
        self.store.revoke(7)
        self.store.grant(7, 200)
        self.advance(199)
        self.assertEqual(self.node.revoked, [7])
        self.advance(1)
        self.assertEqual(self.node.revoked, [7, 7])

    def test_leases_that_come_and_go_leave_nothing_behind(self) -> None:
        self.keeper.begin()
        for id in range(1, 20_000):
            self.store.grant(id, 3600)
            self.store.revoke(id)
        self.assertLess(len(self.keeper._heap), 5_000)

    def test_a_ttl_of_years(self) -> None:
        self.keeper.begin()
        self.store.grant(7, MAX_TTL_MS // 1000)
        (timer,) = self.clock.getDelayedCalls()
        self.assertLessEqual(timer.getTime(), lease_keeper.MAX_SLEEP_S)
        self.advance(3 * lease_keeper.MAX_SLEEP_S)
        self.assertEqual(self.node.revoked, [])
        self.assertEqual(self.keep_alive(7), [MAX_TTL_MS])

    def test_many_leases_are_begun_in_slices(self) -> None:
        self.patch(lease_keeper, "SLICE_LEASES", 10)
        for id in range(1, 96):
            self.store.granted_before(id)
        self.keeper.begin()
        (turn,) = self.clock.getDelayedCalls()
        turn.cancel()
        self.keeper._look()  # one turn of a reactor; this clock runs all at once
        self.assertEqual(len(self.keeper._kept), 10)
        self.assertEqual(len(self.keeper), 95)
        # Asked for before their turn: one kept alive, one gone, one gone and back.
        self.assertEqual(self.keep_alive(1), [10_000])
        self.store.revoke(2)
        self.store.revoke(3)
        self.store.grant(3, 20)
        self.assertEqual(self.time_left(4).left_ms, 10_000)
        self.advance(10)
        self.assertEqual(len(self.node.revoked), 95 - 2)
        self.assertNotIn(2, self.node.revoked)
        self.assertNotIn(3, self.node.revoked)
        self.advance(10)
        self.assertEqual(self.node.revoked[-1], 3)
        self.assertEqual(len(set(self.node.revoked)), 94)


class KeepAliveTests(KeeperTestCase):
    def test_its_ttl_begins_anew(self) -> None:
        self.keeper.begin()
        self.store.grant(7, 10)
        for _ in range(20):
            self.advance(9.5)
            self.assertEqual(self.keep_alive(7), [10_000])
            self.assertEqual(self.time_left(7), Left(10_000, 10_000))
        self.advance(9.99)
        self.assertEqual(self.node.revoked, [])
        self.advance(0.02)
        self.assertEqual(self.node.revoked, [7])

    def test_several_at_once_share_a_round(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        for id in (1, 2, 3):
            self.store.grant(id, id)
        answer = self.asked(KeepAlive([3, 1, 9, 2]))
        (confirm,) = self.node.reads
        confirm(None)
        self.assertEqual(answer.outcome, encode([3000, 1000, 0, 2000]))

    def test_24_no_answer_before_the_round_and_the_ttl_counts_from_there(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(8)
        answer = self.asked(KeepAlive([7]))
        self.advance(1)
        self.assertFalse(answer.given)
        self.node.reads.pop()(None)
        self.assertEqual(answer.outcome, encode([10_000]))
        self.advance(9.9)
        self.assertEqual(self.node.proposed, [])

    def test_26_one_that_leads_no_longer_answers_nothing(self) -> None:
        """Neither yes nor no: whoever is asked next knows."""
        self.node.obliges = False
        self.assertIsInstance(self.asked(KeepAlive([7])).outcome, NotLeader)
        self.keeper.begin()
        self.store.grant(7, 10)
        for question in (KeepAlive([7]), KeepAlive([8]), TimeLeft(7)):
            answer = self.asked(question)
            self.keeper.end()
            self.node.reads.pop()(None)
            self.assertIsInstance(answer.outcome, NotLeader)
            self.keeper.begin()

    def test_26_led_again_in_the_meantime(self) -> None:
        """The round may have been the next leader's; who leads now has begun anew."""
        self.node.obliges = False
        self.keeper.begin()
        self.store.grant(7, 10)
        answer = self.asked(KeepAlive([7]))
        self.keeper.end()
        self.keeper.begin()
        self.node.reads.pop()(None)
        self.assertIsInstance(answer.outcome, NotLeader)

    def test_a_round_that_fails(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        self.store.grant(7, 10)
        answer = self.asked(KeepAlive([7]))
        self.node.reads.pop()(NoQuorum("Too few."))
        self.assertIsInstance(answer.outcome, NoQuorum)
        self.advance(10)
        self.assertEqual(self.node.revoked, [7], "it was not kept alive")

    def test_too_late_once_the_revocation_is_proposed(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(9.9)
        answer = self.asked(KeepAlive([7]))
        self.advance(0.2)
        self.assertEqual(self.node.revoked, [7])
        # It was asked in time; but the round says so only now.
        self.node.reads.pop()(None)
        self.assertEqual(answer.outcome, encode([0]))

    def test_30_too_late_for_as_long_as_the_outcome_is_unknown(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(10)
        self.node.proposed[-1][1].callback([OutcomeUnknown("Who knows?")])
        answer = self.asked(KeepAlive([7]))
        self.node.reads.pop()(None)
        self.assertEqual(answer.outcome, encode([0]))

    def test_not_too_late_if_it_certainly_was_not_revoked(self) -> None:
        self.node.obliges = False
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(10)
        self.node.proposed[-1][1].callback([Overloaded("Not now.")])
        answer = self.asked(KeepAlive([7]))
        self.node.reads.pop()(None)
        self.assertEqual(answer.outcome, encode([10_000]))
        self.advance(9.9)
        self.assertEqual(len(self.node.proposed), 1)
        self.advance(0.2)
        self.assertEqual(len(self.node.proposed), 2)

    def test_saved_while_others_are_being_revoked(self) -> None:
        """An expired lease that waits for its turn is not lost yet."""
        self.node.obliges = False
        self.keeper.begin()
        for id in range(1, MAX_REVOKES_AT_ONCE + 3):
            self.store.grant(id, 10)
        self.advance(10)
        last = MAX_REVOKES_AT_ONCE + 2
        answer = self.asked(KeepAlive([last, 1]))
        self.node.reads.pop()(None)
        self.assertEqual(answer.outcome, encode([10_000, 0]))
        self.node.commit()
        self.advance(0.01)
        self.assertEqual(self.node.proposed[-1][0], [last - 1])
        self.node.commit()
        self.advance(9.9)
        self.assertEqual(list(self.store.granted), [last])

    def test_time_left(self) -> None:
        self.keeper.begin()
        self.store.grant(7, 10)
        self.advance(2.5)
        self.assertEqual(self.time_left(7), Left(10_000, 7_500))
        self.assertIsInstance(self.asked(TimeLeft(8)).outcome, LeaseNotFound)
        self.node.obliges = False
        self.advance(8)
        answer = self.asked(TimeLeft(7))
        self.node.reads.pop()(None)
        self.assertEqual(answer.outcome, encode([10_000, 0]))

    def test_questions_that_it_does_not_know(self) -> None:
        self.keeper.begin()
        for bad in (b"", b"\xc1", encode([3, 1]), encode([1]), encode([1, "x"]), encode({})):
            answer: Answer[bytes] = Answer()
            self.keeper.answer(bad, answer)
            self.assertIsInstance(answer.outcome, BadRequest)
        many = KeepAlive([1] * (lease_questions.MAX_LEASES_ASKED + 1))
        self.assertIsInstance(self.asked(many).outcome, BadRequest)

    def test_at_random(self) -> None:
        """No lease ends before its time, and each does soon after."""
        for seed in range(10):
            random = Random(seed)
            self.setUp()
            self.keeper.begin()
            deadlines: dict[int, float] = {}
            for step in range(400):
                self.advance(random.random())
                now = self.clock.seconds()
                gone = deadlines.keys() - self.store.granted.keys()
                for id in gone:
                    self.assertLessEqual(deadlines.pop(id), now)
                for id, deadline in deadlines.items():
                    self.assertGreater(deadline, now - 0.01, id)
                choice = random.randrange(3)
                if choice == 0:
                    ttl_s = random.randrange(1, 20)
                    self.store.grant(step + 1, ttl_s)
                    deadlines[step + 1] = now + ttl_s
                elif deadlines and choice == 1:
                    id = random.choice(sorted(deadlines))
                    (ttl_ms,) = self.keep_alive(id)
                    deadlines[id] = now + ttl_ms / 1000
                elif deadlines:
                    id = random.choice(sorted(deadlines))
                    self.store.revoke(id)
                    del deadlines[id]
            self.keeper.end()


class TtlTests(SynchronousTestCase):
    def test_the_floor(self) -> None:
        for election_timeout_ms, floor_ms in (
            (600, 1000),
            (667, 2000),
            (1000, 2000),
            (3, 1000),
        ):
            self.assertEqual(ttl_floor_ms(election_timeout_ms), floor_ms)

    def test_rounded_up(self) -> None:
        for asked_ms, ttl_ms in (
            (0, 2000),
            (1, 2000),
            (2000, 2000),
            (2001, 3000),
            (59_999, 60_000),
        ):
            self.assertEqual(raised_ttl_ms(asked_ms, 2000), ttl_ms)


class AskingNode:
    """Questions, answered by the test."""

    def __init__(self) -> None:
        self.questions: list[tuple[bytes, Done[bytes]]] = []

    def ask_leader(self, question: bytes, done: Done[bytes]) -> None:
        self.questions.append((question, done))


class AskerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.node = AskingNode()
        self.asker = LeaseAsker(self.clock, self.node)  # type: ignore[arg-type]

    def keep_alive(self, id: int) -> Answer[LeaseResult]:
        answer: Answer[LeaseResult] = Answer()
        self.asker.keep_alive(id, answer)
        return answer

    def test_those_of_a_turn_share_a_question(self) -> None:
        answers = [self.keep_alive(id) for id in (5, 6, 5)]
        self.assertEqual(self.node.questions, [])
        self.clock.advance(0)
        ((question, done),) = self.node.questions
        self.assertEqual(decode(question), [1, [5, 6, 5]])
        done(encode([1000, 0, 1000]))
        self.assertEqual(answers[0].outcome, LeaseResult(5, 1000))
        self.assertIsInstance(answers[1].outcome, LeaseNotFound)
        self.assertEqual(answers[2].outcome, LeaseResult(5, 1000))
        later = self.keep_alive(7)
        self.clock.advance(0)
        self.assertEqual(decode(self.node.questions[1][0]), [1, [7]])
        self.node.questions[1][1](NoQuorum("Too few."))
        self.assertIsInstance(later.outcome, NoQuorum)

    def test_a_question_is_bounded(self) -> None:
        self.patch(lease_questions, "MAX_LEASES_ASKED", 3)
        self.patch(lease_questions, "MAX_KEEP_ALIVES_WAITING", 7)
        answers = [self.keep_alive(id) for id in range(1, 8)]
        self.assertIsInstance(self.keep_alive(8).outcome, Overloaded)
        self.clock.advance(0)
        self.assertEqual(
            [decode(q)[1] for q, _ in self.node.questions], [[1, 2, 3], [4, 5, 6], [7]]
        )
        for question, done in self.node.questions:
            done(encode([id * 1000 for id in decode(question)[1]]))
        self.assertEqual(
            [a.outcome for a in answers], [LeaseResult(i, i * 1000) for i in range(1, 8)]
        )

    def test_answers_that_make_no_sense(self) -> None:
        for bad in (b"", encode([1, 2]), encode("x"), encode([-1, "x"])):
            answer = self.keep_alive(1)
            self.clock.advance(0)
            self.node.questions.pop()[1](bad)
            self.assertIsInstance(answer.outcome, BadRequest)
        left: Answer[Left] = Answer()
        self.asker.time_left(7, left)
        question, done = self.node.questions.pop()
        self.assertEqual(decode(question), [2, 7])
        done(b"\xc1")
        self.assertIsInstance(left.outcome, BadRequest)

    def test_stopped(self) -> None:
        waiting = self.keep_alive(1)
        self.asker.stop()
        self.assertIsInstance(waiting.outcome, Stopped)
        self.assertIsInstance(self.keep_alive(1).outcome, Stopped)
        self.assertEqual((self.clock.getDelayedCalls(), self.node.questions), ([], []))
