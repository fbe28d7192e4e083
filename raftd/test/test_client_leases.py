"""Leases of the client: kept alive, and known to be over in time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python import log as twisted_log
from twisted.trial.unittest import SynchronousTestCase

from raftd.client import Client, Lease
from raftd.client.leases import ATTEMPTS_PER_TTL, KEEP_ALIVES_PER_TTL, MAX_DRIFT
from raftd.errors import DidNotHappen, LeaseNotFound, OutcomeUnknown
from raftd.test.clientrig import SERVERS, Asked, ClientCase, FakeAgent

ID = "00000000000000ff"
#: How long a lease of ten seconds may be relied on.
LASTING_S = 10.0 * (1 - MAX_DRIFT)


class LeaseCase(ClientCase):
    def granted(self, ttl_s: float = 10.0, **arguments: Any) -> Lease:
        """A lease, just granted."""
        lease = self.client.lease(ttl_s, **arguments)
        asked = self.agent.asked[-1]
        self.assertEqual((asked.method, asked.target), ("POST", "/lease"))
        asked.answer(201, {"id": ID, "ttl": ttl_s + arguments.get("delay_s", 0)})
        return self.successResultOf(lease)

    def keep_alive(self, asked: Asked, ttl_s: float = 10.0) -> None:
        self.assertEqual((asked.method, asked.target), ("POST", f"/lease/{ID}/keepalive"))
        self.assertEqual((asked.body, asked.header("Idempotency-Key")), (b"", ""))
        asked.answer(200, {"id": ID, "ttl": ttl_s})


class KeepAliveTests(LeaseCase):
    def test_it_is_kept_for_as_long_as_it_is_wanted(self) -> None:
        lease = self.granted()
        lost = lease.lost()
        for count in range(2, 302):
            self.advance(LASTING_S / KEEP_ALIVES_PER_TTL)
            self.keep_alive(self.last(count))
            self.assertAlmostEqual(lease.remaining_s, LASTING_S)
        self.assertNoResult(lost)
        self.assertTrue(lease.is_held)
        lease.close()
        self.successResultOf(lost)
        self.assertFalse(lease.is_held)
        self.advance(20.0)
        self.last(301)
        self.assertQuiet()

    def test_time_is_counted_from_when_it_was_sent(self) -> None:
        lease = self.granted()
        self.advance(LASTING_S / KEEP_ALIVES_PER_TTL)
        sent = self.clock.seconds()
        self.advance(1.5)
        self.keep_alive(self.last(2))
        self.assertAlmostEqual(lease.remaining_s, LASTING_S - 1.5)
        lost = lease.lost()
        self.agent.asked.clear()
        while not lost.called:
            self.clock.advance(0.01)
        self.assertAlmostEqual(self.clock.seconds() - sent, LASTING_S, 1)

    def test_of_several_attempts_the_one_that_was_answered_counts(self) -> None:
        lease = self.granted()
        self.advance(LASTING_S / KEEP_ALIVES_PER_TTL)
        self.advance(LASTING_S / ATTEMPTS_PER_TTL)
        self.assertTrue(self.agent.asked[1].was_cancelled)
        self.assertEqual(self.last(3).server, "b:2")
        self.keep_alive(self.last(3))
        self.assertAlmostEqual(lease.remaining_s, LASTING_S)
        lease.close()

    def test_the_ttl_may_be_another_than_was_asked_for(self) -> None:
        lease = self.client.lease(0.5)
        self.last(1).answer(201, {"id": ID, "ttl": 2})
        kept = self.successResultOf(lease)
        self.assertEqual(kept.ttl_s, 2)
        self.advance(2 * (1 - MAX_DRIFT) / KEEP_ALIVES_PER_TTL)
        self.keep_alive(self.last(2), 20)
        self.assertAlmostEqual(kept.remaining_s, 20 * (1 - MAX_DRIFT))
        kept.close()


class LostTests(LeaseCase):
    def test_a_machine_that_was_suspended(self) -> None:
        """Timers have not counted that time; the servers have."""
        seconds = self.clock.seconds
        lease = self.granted()
        lost = lease.lost()
        self.advance(1.0)
        self.client.requester.seconds = lambda: seconds() + 3600.0
        self.assertFalse(lease.is_held)
        self.advance(LASTING_S / KEEP_ALIVES_PER_TTL - 1.0)
        self.successResultOf(lost)
        self.last(1)
        self.assertQuiet()

    def lost_at(self, lease: Lease, react: Any) -> float:
        """When it is over, if servers react so."""
        lost = lease.lost()
        self.play(lost, react)
        self.assertFalse(lease.is_held)
        self.assertEqual(lease.remaining_s, 0.0)
        self.successResultOf(lease.lost())
        self.advance(20.0)
        self.assertQuiet()
        return self.clock.seconds() - 20.0

    def test_when_nobody_answers(self) -> None:
        reactions = (
            lambda asked: None,
            lambda asked: asked.fail(ConnectionRefusedError()),
            lambda asked: asked.refuse(503, "no_leader"),
            lambda asked: asked.refuse(400, "bad_request"),
            lambda asked: asked.answer(200, b"<html>"),
            lambda asked: asked.answer(200, {"ttl": "long"}),
            lambda asked: asked.answer(302, b""),
        )
        for react in reactions:
            self.setUp()
            at = self.lost_at(self.granted(), react)
            self.assertTrue(LASTING_S - 0.001 <= at <= LASTING_S + 0.02, at)
            # It went on asking, and did not spin.
            self.assertTrue(4 <= len(self.agent.asked) < 100, len(self.agent.asked))

    def test_as_soon_as_a_server_says_so(self) -> None:
        """From within its own keep-alive."""
        at = self.lost_at(self.granted(), lambda asked: asked.refuse(404, "lease_not_found"))
        self.assertAlmostEqual(at, LASTING_S / KEEP_ALIVES_PER_TTL, 1)
        self.last(2)

    def test_a_delay_is_left_at_the_end(self) -> None:
        lease = self.granted(10.0, delay_s=5.0)
        self.assertEqual(self.agent.asked[0].body, b'{"ttl":15.0}')
        at = self.lost_at(lease, lambda asked: None)
        self.assertAlmostEqual(at, 15.0 * (1 - MAX_DRIFT) - 5.0, 1)

    def test_all_who_wait_are_told_whatever_one_of_them_does(self) -> None:
        lease = self.granted()
        told: list[int] = []
        first, second, third = lease.lost(), lease.lost(), lease.lost()

        def meddle(_: None) -> None:
            told.append(1)
            second.cancel()
            lease.close()

        first.addCallback(meddle)
        second.addBoth(lambda _: told.append(2))
        third.addCallback(lambda _: told.append(3))
        lease.close()
        self.assertEqual(sorted(told), [1, 2, 3])

    def test_who_does_not_care_any_more(self) -> None:
        lease = self.granted()
        lost = lease.lost()
        lost.cancel()
        self.failureResultOf(lost, CancelledError)
        lease.close()

    def test_with_the_client(self) -> None:
        lease = self.granted()
        lost = lease.lost()
        self.successResultOf(self.client.close())
        self.successResultOf(lost)
        self.assertQuiet()

    def test_closed_while_it_asks(self) -> None:
        lease = self.granted()
        self.advance(4.0)
        lease.close()
        self.assertTrue(self.last(2).was_cancelled)
        self.assertQuiet()


class GrantTests(LeaseCase):
    def test_a_late_answer_is_not_relied_on(self) -> None:
        """It was granted at the first attempt, or the second: nobody knows."""
        lease = self.client.lease(5.0)
        self.advance(6.0)
        self.last(2).answer(201, {"id": ID, "ttl": 5})
        self.assertNoResult(lease)
        self.keep_alive(self.last(3), 5.0)
        kept = self.successResultOf(lease)
        self.assertAlmostEqual(kept.remaining_s, 5.0 * (1 - MAX_DRIFT))
        kept.close()
        lease = self.client.lease(5.0)
        self.advance(6.0)
        self.last(5).answer(201, {"id": ID, "ttl": 5})
        self.last(6).refuse(404, "lease_not_found")
        self.failureResultOf(lease, LeaseNotFound)
        self.assertQuiet()

    def test_what_is_no_lease(self) -> None:
        for fields in ({"id": ID}, {"ttl": 5}, {"id": ID, "ttl": None}):
            self.setUp()
            lease = self.client.lease(5.0)
            self.last(1).answer(201, fields)
            self.failureResultOf(lease, OutcomeUnknown)

    def test_a_clock_that_can_be_set_is_warned_of(self) -> None:
        from twisted.internet.selectreactor import SelectReactor

        messages: list[str] = []

        def observe(event: dict[str, Any]) -> None:
            messages.append(twisted_log.textFromEventDict(event) or "")

        twisted_log.addObserver(observe)
        self.addCleanup(twisted_log.removeObserver, observe)
        Client(Clock(), SERVERS, agent=FakeAgent()).lease(5.0)
        self.assertEqual(messages, [])
        reactor = SelectReactor()
        self.addCleanup(reactor.disconnectAll)
        client = Client(reactor, SERVERS, agent=FakeAgent())
        client.lease(5.0).addErrback(lambda _: None)
        self.assertIn("runs on the wall clock", messages[0])
        self.successResultOf(client.close())


class RevokeTests(LeaseCase):
    def test_it_is_over_at_once(self) -> None:
        for status, code in ((200, ""), (404, "lease_not_found")):
            self.setUp()
            lease = self.granted()
            lost = lease.lost()
            revoked = lease.revoke()
            self.successResultOf(lost)
            asked = self.last(2)
            self.assertEqual((asked.method, asked.target), ("DELETE", f"/lease/{ID}"))
            if code:
                asked.refuse(status, code)
            else:
                asked.answer(200, {"id": ID, "revision": 3, "deleted": 1})
            self.successResultOf(revoked)
            self.assertQuiet()

    def test_it_fails_and_is_kept_no_longer(self) -> None:
        lease = self.granted()
        revoked = lease.revoke()
        self.play(revoked, lambda asked: asked.refuse(503, "no_quorum"))
        self.failureResultOf(revoked, DidNotHappen)
        self.assertFalse(lease.is_held)
        self.assertQuiet()

    def test_as_a_context_manager(self) -> None:
        async def use(lease: Lease) -> None:
            async with lease as held:
                self.assertTrue(held.is_held)
                raise KeyError("its own")

        from twisted.internet.defer import Deferred

        for status in (200, 503):
            self.setUp()
            used = Deferred.fromCoroutine(use(self.granted()))
            self.play(used, lambda asked: asked.refuse(status, "said"))  # noqa: B023
            self.failureResultOf(used, KeyError)
            self.assertQuiet()


class MonotonicTests(SynchronousTestCase):
    def test_52_a_step_of_the_wall_clock_makes_no_lease_longer(self) -> None:
        from twisted.internet.selectreactor import SelectReactor

        from raftd.client.requester import Requester

        reactor = SelectReactor()
        self.addCleanup(reactor.disconnectAll)
        requester = Requester(reactor, SERVERS, FakeAgent(), 10.0)
        now = [100.0]
        requester.seconds = lambda: now[0]
        lease = Lease(reactor, requester, ID, 10.0, 100.0)
        reactor.seconds = lambda: -1e6
        now[0] = 109.8
        self.assertTrue(lease.is_held)
        now[0] = 109.95
        self.assertFalse(lease.is_held)
        self.successResultOf(lease.lost())
        lease.close()
