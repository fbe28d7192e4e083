"""Requests of the client: whom they ask, when again, and what is known at the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived

from raftd.client import Client, NotFound, PreconditionFailed, Unreachable, requester
from raftd.client.client import deferred
from raftd.client.errors import error_of
from raftd.client.requester import (
    ATTEMPT_TIMEOUT_S,
    MAX_ANSWER_BYTES,
    MAX_AT_ONCE,
    MAX_PAUSE_S,
    key_path,
    query,
)
from raftd.errors import (
    BadRequest,
    Compacted,
    DidNotHappen,
    FutureRevision,
    IdempotencyKeyReused,
    IdempotencyTableFull,
    LeaseNotFound,
    NoLeader,
    NoQuorum,
    NoSpace,
    OutcomeUnknown,
    Overloaded,
    RaftdError,
    Stopped,
    TooLarge,
)
from raftd.idempotency import KEY_TTL_MS
from raftd.test.clientrig import SERVERS, Asked, ClientCase, FakeAgent
from raftd.web.parameters import Parameters, percent_decoded

LOST = ResponseNeverReceived([Failure(ConnectionLost())])
WRITTEN = {"key": "k", "revision": 7}


class WriteTests(ClientCase):
    def put(self) -> Deferred[Any]:
        return self.client.put("k", b"v")

    def test_an_answer(self) -> None:
        put = self.put()
        asked = self.last(1)
        self.assertEqual((asked.method, asked.server, asked.target), ("PUT", "a:1", "/db/k"))
        self.assertEqual(asked.body, b"v")
        self.assertRegex(asked.header("Idempotency-Key"), "^[0-9a-f]{32}$")
        asked.answer(201, WRITTEN)
        written = self.successResultOf(put)
        self.assertEqual((written.revision, written.created), (7, True))
        self.assertQuiet()

    def test_each_write_has_a_key_of_its_own_and_each_attempt_the_same(self) -> None:
        first, second = self.put(), self.put()
        self.agent.asked[0].fail(LOST)
        self.agent.asked[1].fail(LOST)
        keys = [asked.header("Idempotency-Key") for asked in self.agent.asked]
        self.assertEqual(keys[0], keys[2])
        self.assertEqual(keys[1], keys[3])
        self.assertNotEqual(keys[0], keys[1])
        for asked in self.agent.asked[2:]:
            self.assertEqual((asked.method, asked.target, asked.body), ("PUT", "/db/k", b"v"))
            asked.answer(200, WRITTEN)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_a_key_that_is_given_is_used(self) -> None:
        put = self.client.put("k", b"", idempotency_key="mine")
        self.assertEqual(self.last(1).header("Idempotency-Key"), "mine")
        self.last(1).refuse(422, "idempotency_key_reused")
        self.failureResultOf(put, IdempotencyKeyReused)

    def test_the_next_server_is_asked_at_once_and_kept(self) -> None:
        for i, error in enumerate(
            (ConnectionRefusedError(), DNSLookupError(), TimeoutError(), LOST)
        ):
            self.setUp()
            put = self.put()
            self.last(1).fail(error)
            self.assertEqual(self.last(2).server, "b:2", i)
            self.last(2).answer(200, WRITTEN)
            self.successResultOf(put)
            self.put()
            self.assertEqual(self.last(3).server, "b:2")

    def test_when_all_have_failed_there_is_a_pause_that_grows(self) -> None:
        times: list[float] = []

        def refuse(asked: Asked) -> None:
            times.append(self.clock.seconds())
            asked.fail(ConnectionRefusedError())

        put = self.put()
        self.play(put, refuse)
        self.failureResultOf(put, Unreachable)
        waits = [round(after - before, 3) for before, after in pairwise(times)]
        pauses = waits[2::3]
        self.assertLess(max(w for i, w in enumerate(waits) if i % 3 != 2), 0.011)
        self.assertEqual(pauses[:-1], sorted(pauses[:-1]))
        self.assertEqual(pauses[0], 0.04)
        self.assertAlmostEqual(pauses[-2], MAX_PAUSE_S, 1)

    def test_what_was_never_sent_did_not_happen(self) -> None:
        put = self.put()
        self.play(put, lambda asked: asked.fail(ConnectionRefusedError()))
        error = self.failureResultOf(put, Unreachable).value
        self.assertIsInstance(error, DidNotHappen)
        for server in SERVERS:
            self.assertIn(f"{server} cannot be reached", str(error))
        # No attempt is begun that might be cut short: then nobody would know.
        self.assertTrue(0 <= self.clock.seconds() - self.timeout_s / 2 < MAX_PAUSE_S)
        self.assertQuiet()

    def test_time_is_up_while_it_is_still_connecting(self) -> None:
        put = self.put()
        for _ in range(2):
            self.agent.asked[-1].when_cancelled = ConnectingCancelledError(None)
            self.advance(ATTEMPT_TIMEOUT_S)
        self.failureResultOf(put, Unreachable)

    def test_one_attempt_that_may_have_happened_makes_the_end_unknown(self) -> None:
        for error in (LOST, RequestTransmissionFailed([Failure(ConnectionLost())])):
            self.setUp()
            put = self.put()
            self.last(1).fail(error)
            self.play(put, lambda asked: asked.refuse(503, "no_quorum"))
            found = self.failureResultOf(put, OutcomeUnknown).value
            self.assertIn("Said", str(found))

    def test_time_is_up_while_a_server_is_silent(self) -> None:
        put = self.put()
        self.advance(ATTEMPT_TIMEOUT_S)
        self.assertTrue(self.agent.asked[0].was_cancelled)
        self.assertEqual(self.last(2).server, "b:2")
        self.advance(self.timeout_s - ATTEMPT_TIMEOUT_S)
        self.failureResultOf(put, OutcomeUnknown)
        self.assertEqual(self.clock.seconds(), self.timeout_s)
        self.assertQuiet()

    def test_servers_that_have_nothing_changed_are_believed(self) -> None:
        put = self.put()
        self.play(put, lambda asked: asked.refuse(503, "no_quorum"))
        self.failureResultOf(put, NoQuorum)

    def test_an_answer_of_a_server_says_more_than_the_silence_of_another(self) -> None:
        put = self.put()
        self.last(1).refuse(503, "no_leader")
        self.play(put, lambda asked: asked.fail(ConnectionRefusedError()))
        self.failureResultOf(put, NoLeader)

    def test_what_a_server_does_not_know_another_may(self) -> None:
        put = self.put()
        self.last(1).refuse(504, "outcome_unknown")
        self.last(2).answer(200, WRITTEN)
        self.assertEqual(self.successResultOf(put).revision, 7)

    def test_a_strange_failure_is_not_taken_for_nothing(self) -> None:
        """Of a proxy, or of a handler that has failed half-way."""
        for status, body in (
            (500, {"error": "internal_error", "message": "Oh."}),
            (502, b"<html>"),
            (503, b"<html>"),
            (503, {"error": "no_leader"}),
            (504, b""),
        ):
            self.setUp()
            put = self.put()
            self.last(1).answer(status, body)
            self.play(put, lambda asked: asked.fail(ConnectionRefusedError()))
            self.failureResultOf(put, OutcomeUnknown)

    def test_refusals_settle_it(self) -> None:
        for status, code, kind in (
            (400, "bad_request", BadRequest),
            (404, "lease_not_found", LeaseNotFound),
            (412, "precondition_failed", PreconditionFailed),
            (413, "too_large", TooLarge),
            (422, "idempotency_key_reused", IdempotencyKeyReused),
            (507, "no_space", NoSpace),
        ):
            self.setUp()
            put = self.put()
            self.last(1).refuse(status, code)
            found = self.failureResultOf(put, kind).value
            self.assertIsInstance(found, DidNotHappen)
            self.assertEqual((str(found), found.code), ("Said a:1.", code))
            self.last(1)

    def test_behind_an_uncertain_attempt_no_space_settles_nothing(self) -> None:
        """The first attempt may be carried out yet, when there is space again."""
        put = self.put()
        self.last(1).fail(LOST)
        self.last(2).refuse(507, "no_space")
        self.last(3).answer(201, WRITTEN)
        self.assertTrue(self.successResultOf(put).created)
        put = self.put()
        self.last(4).fail(LOST)
        self.play(put, lambda asked: asked.refuse(507, "no_space"))
        self.failureResultOf(put, OutcomeUnknown)

    def test_behind_an_uncertain_attempt_an_answer_of_the_log_does(self) -> None:
        put = self.client.put("k", b"v", if_revision=3)
        self.last(1).fail(LOST)
        self.assertEqual(self.last(2).header("If-Match"), '"3"')
        self.last(2).refuse(412, "precondition_failed", mod_revision=5)
        self.assertEqual(self.failureResultOf(put, PreconditionFailed).value.mod_revision, 5)

    def test_29_what_there_is_no_key_for_is_sent_without_one_but_not_twice(self) -> None:
        """A full table answers out of the log: that attempt has changed nothing."""

        def refused() -> Deferred[Any]:
            self.setUp()
            put = self.put()
            self.last(1).fail(ConnectionRefusedError())
            self.last(2).refuse(429, "idempotency_table_full")
            asked = self.last(3)
            self.assertIsNone(asked.headers.getRawHeaders("Idempotency-Key"))
            self.assertEqual((asked.method, asked.target, asked.body), ("PUT", "/db/k", b"v"))
            self.assertEqual(asked.server, "b:2")
            return put

        put = refused()
        self.last(3).answer(200, WRITTEN)
        self.successResultOf(put)
        put = refused()
        self.last(3).fail(LOST)
        self.advance(MAX_PAUSE_S)
        self.failureResultOf(put, OutcomeUnknown)
        self.last(3)
        put = refused()
        self.last(3).refuse(503, "no_leader")
        self.advance(MAX_PAUSE_S)
        self.last(4).refuse(504, "outcome_unknown")
        self.failureResultOf(put, OutcomeUnknown)
        self.last(4)
        self.assertQuiet()

    def test_29_behind_an_uncertain_attempt_none_goes_without_its_key(self) -> None:
        """The first one may yet come to a table with room, and be carried out."""
        put = self.put()
        self.last(1).fail(LOST)
        self.play(put, lambda asked: asked.refuse(429, "idempotency_table_full"))
        self.failureResultOf(put, OutcomeUnknown)
        keys = {asked.header("Idempotency-Key") for asked in self.agent.asked}
        self.assertEqual(len(keys), 1)
        self.assertGreater(len(self.agent.asked), 6)

    def test_a_full_table_is_waited_for_with_a_key_of_the_caller(self) -> None:
        put = self.client.put("k", b"v", idempotency_key="mine")
        self.play(put, lambda asked: asked.refuse(429, "idempotency_table_full"))
        self.failureResultOf(put, IdempotencyTableFull)
        self.assertGreater(len(self.agent.asked), 6)

    def test_a_success_that_cannot_be_read_is_unknown(self) -> None:
        for body in (b"<html>", b"[]", {"key": "k"}, b""):
            self.setUp()
            put = self.put()
            self.last(1).answer(200, body)
            self.failureResultOf(put, OutcomeUnknown)

    def test_no_redirect_is_followed(self) -> None:
        put = self.put()
        self.last(1).answer(307, b"", Location="http://elsewhere:1/db/k")
        self.failureResultOf(put, BadRequest)

    def test_what_takes_no_key_is_not_sent_again_when_it_may_have_happened(self) -> None:
        def ask() -> Deferred[Any]:
            return Deferred.fromCoroutine(
                self.client.requester.write("DELETE", "/members/n1", once=True)
            )

        asking = ask()
        self.last(1).fail(ConnectionRefusedError())
        self.last(2).refuse(503, "no_leader")
        self.last(3).fail(LOST)
        self.advance(MAX_PAUSE_S)
        self.failureResultOf(asking, OutcomeUnknown)
        self.last(3)
        asking = ask()
        self.last(4).refuse(504, "outcome_unknown")
        self.failureResultOf(asking, OutcomeUnknown)
        self.assertQuiet()


class BoundTests(ClientCase):
    def test_so_many_at_once_and_the_rest_in_turn(self) -> None:
        done: list[bytes] = []
        keys = [b"%d" % i for i in range(MAX_AT_ONCE + 3)]
        for key in keys:
            asking: Deferred[Any] = self.client.put(key, b"")
            asking.addCallback(lambda _, key: done.append(key), key)
        self.assertEqual(len(self.agent.asked), MAX_AT_ONCE)
        asked = 0
        while asked < len(self.agent.asked):
            self.agent.asked[asked].answer(200, WRITTEN)
            asked += 1
        self.assertEqual(done, keys)
        self.assertQuiet()

    def busy(self) -> None:
        for _ in range(MAX_AT_ONCE):
            self.client.put("busy", b"").addErrback(lambda _: None)

    def test_waiting_for_a_turn_takes_no_longer_than_a_request(self) -> None:
        self.busy()
        self.advance(5.0)
        waiting, cancelled = self.client.put("k", b""), self.client.put("k", b"")
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.advance(5.0)
        # Its turn came, and what was left of its time is not enough to be sure.
        self.assertEqual(len([a for a in self.agent.asked if a.target == "/db/k"]), 1)
        self.advance(5.0)
        self.failureResultOf(waiting, OutcomeUnknown)
        self.assertEqual(self.clock.seconds(), 15.0)
        self.assertQuiet()

    def test_one_whose_turn_never_comes(self) -> None:
        self.patch(requester, "MAX_QUEUED", 1)
        self.busy()
        first, second = self.client.get("k"), self.client.get("k")
        self.clock.advance(0)
        self.failureResultOf(second, Overloaded)
        self.successResultOf(self.client.close())
        self.failureResultOf(first, Stopped)
        self.assertQuiet()

    def test_leases_need_not_wait(self) -> None:
        lease = self.client.lease(3.0)
        self.last(1).answer(201, {"id": "00000000000000ff", "ttl": 3})
        kept = self.successResultOf(lease)
        self.busy()
        self.advance(1.0)
        self.assertTrue(self.agent.asked[-1].target.endswith("/keepalive"))
        kept.close()


class BodyTests(ClientCase):
    def test_a_body_that_never_ends_is_given_up(self) -> None:
        get = self.client.get("k")
        response = self.last(1).begin(200)
        response.data(b"a")
        self.advance(ATTEMPT_TIMEOUT_S)
        self.assertTrue(response.transport.is_lost)
        self.last(2).refuse(404, "not_found")
        self.assertIsNone(self.successResultOf(get))
        self.assertQuiet()

    def test_one_that_drips_has_until_the_time_of_the_request_is_up(self) -> None:
        get = self.client.get("k")
        response = self.last(1).begin(200)
        for _ in range(11):
            response.data(b"a")
            self.advance(1.0)
        self.assertTrue(response.transport.is_lost)
        self.failureResultOf(get, Unreachable)
        self.last(1)
        self.assertQuiet()

    def test_one_that_is_too_long_is_not_kept(self) -> None:
        get = self.client.get("k")
        piece = b"x" * (1 << 20)
        response = self.last(1).begin(200)
        for _ in range((MAX_ANSWER_BYTES >> 20) + 1):
            response.data(piece)
        self.assertTrue(response.transport.is_lost)
        self.assertEqual(self.last(2).server, "b:2")
        self.last(2).refuse(404, "not_found")
        self.assertIsNone(self.successResultOf(get))

    def test_one_that_breaks_off_is_no_value(self) -> None:
        get = self.client.get("k")
        response = self.last(1).begin(200)
        response.data(b"half a va")
        response.end(ResponseFailed([Failure(ConnectionLost())]))
        self.last(2).answer(
            200, b"value", ETag='"5"', Raftd_Create_Revision="4", Raftd_Version="2"
        )
        record: Any = self.successResultOf(get)
        self.assertEqual(
            (record.value, record.create_revision, record.mod_revision, record.version),
            (b"value", 4, 5, 2),
        )

    def test_one_that_had_come_before_it_was_asked_for(self) -> None:
        put = self.client.put("k", b"")
        self.last(1).answer(200, WRITTEN)
        self.assertEqual(self.successResultOf(put).revision, 7)


class CancelTests(ClientCase):
    def test_it_is_not_tried_again(self) -> None:
        """Whatever the agent says when it is cancelled, and even if it says nothing."""
        for error in (None, LOST, ResponseNeverReceived([Failure(CancelledError())])):
            self.setUp()
            put = self.client.put("k", b"v")
            self.last(1).when_cancelled = error
            put.cancel()
            self.failureResultOf(put, CancelledError)
            self.assertTrue(self.last(1).was_cancelled)
            self.assertQuiet()

    def test_while_a_body_comes(self) -> None:
        get = self.client.get("k")
        response = self.last(1).begin(200)
        response.data(b"a")
        get.cancel()
        self.failureResultOf(get, CancelledError)
        self.assertTrue(response.transport.is_lost)
        self.last(1)
        self.assertQuiet()

    def test_while_it_pauses(self) -> None:
        put = self.client.put("k", b"v")
        for asked in range(3):
            self.last(asked + 1).fail(ConnectionRefusedError())
        put.cancel()
        self.failureResultOf(put, CancelledError)
        self.advance(5.0)
        self.last(3)
        self.assertQuiet()


class CloseTests(ClientCase):
    def test_what_was_not_sent_is_stopped_and_what_was_is_unknown(self) -> None:
        put, get = self.client.put("k", b"v"), self.client.get("k")
        pausing = self.client.put("k", b"v")
        for count in (3, 4, 5):
            self.last(count).fail(ConnectionRefusedError())
        self.successResultOf(self.client.close())
        self.failureResultOf(put, OutcomeUnknown)
        self.failureResultOf(get, Stopped)
        self.failureResultOf(pausing, Stopped)
        self.failureResultOf(self.client.get("k"), Stopped)
        self.last(5)
        self.assertQuiet()

    def test_it_ends_at_once_whichever_server_was_asked(self) -> None:
        for asked_before in range(len(SERVERS)):
            self.setUp()
            put = self.client.put("k", b"v")
            for count in range(1, asked_before + 1):
                self.last(count).fail(ConnectionRefusedError())
            self.successResultOf(self.client.close())
            self.failureResultOf(put, OutcomeUnknown)
            self.assertQuiet()

    def test_as_a_context_manager(self) -> None:
        @deferred
        async def use() -> None:
            async with self.client as client:
                self.assertIs(client, self.client)

        self.successResultOf(use())
        self.failureResultOf(self.client.get("k"), Stopped)


class ReadTests(ClientCase):
    def test_it_is_asked_again_and_never_unknown(self) -> None:
        get = self.client.get("k")
        self.assertEqual(self.last(1).header("Idempotency-Key"), "")
        self.play(get, lambda asked: asked.fail(LOST))
        self.failureResultOf(get, Unreachable)

    def test_what_there_is_not(self) -> None:
        get = self.client.get("k")
        self.last(1).refuse(404, "not_found")
        self.assertIsNone(self.successResultOf(get))
        get = self.client.get("k")
        self.last(2).answer(404, b"<html>a proxy knows no such page</html>")
        self.failureResultOf(get, BadRequest)
        delete = self.client.delete("k")
        self.last(3).refuse(404, "not_found")
        self.assertIsNone(self.successResultOf(delete))

    def test_errors_carry_their_revisions(self) -> None:
        get = self.client.get("k", revision=3)
        self.assertEqual(self.last(1).target, "/db/k?revision=3")
        self.last(1).refuse(410, "compacted", compacted_revision=9)
        self.assertEqual(self.failureResultOf(get, Compacted).value.revision, 9)
        get = self.client.get("k", revision=30)
        self.last(2).refuse(400, "future_revision", revision=12)
        self.assertEqual(self.failureResultOf(get, FutureRevision).value.revision, 12)

    def test_an_answer_without_its_fields_is_no_record(self) -> None:
        get = self.client.get("k")
        self.last(1).answer(200, b"hello", ETag='"5"')
        self.failureResultOf(get, OutcomeUnknown)

    def test_freshness(self) -> None:
        for staleness_s, expected in (
            (0.0, ""),
            (float("inf"), "?consistency=local"),
            (0.25, "?max_staleness_ms=250"),
        ):
            self.setUp()
            self.client.get("k", max_staleness_s=staleness_s)
            self.assertEqual(self.last(1).target, f"/db/k{expected}")


class ErrorTests(SynchronousTestCase):
    def test_the_status_has_the_last_word(self) -> None:
        """What is said to have changed nothing must be of a status that says so."""
        for status, code, kind in (
            (503, "no_leader", NoLeader),
            (503, "not_ready", DidNotHappen),
            (503, "new", DidNotHappen),
            (503, "outcome_unknown", DidNotHappen),
            (504, "no_leader", OutcomeUnknown),
            (504, "session_expired", OutcomeUnknown),
            (500, "no_leader", OutcomeUnknown),
            (404, "not_found", NotFound),
            (400, "outcome_unknown", BadRequest),
            (405, "method_not_allowed", BadRequest),
        ):
            body = b'{"error": "%s", "message": "So."}' % code.encode()
            error = error_of("a:1", status, body)
            self.assertIsInstance(error, kind, (status, code))
            self.assertEqual((error.code, str(error)), (code, "So."))
            is_unknown = status in (500, 504)
            self.assertEqual(isinstance(error, DidNotHappen), not is_unknown)

    def test_whatever_comes_is_an_error(self) -> None:
        for body in (b"", b"null", b"[]", b'{"error": 5, "message": ""}', b"\xff", b"{" * 9999):
            for status in (302, 400, 404, 500, 503):
                error = error_of("a:1", status, body)
                self.assertIsInstance(error, RaftdError)
                self.assertIn(f"a:1 answered {status}", str(error))


class SpellingTests(SynchronousTestCase):
    """What the client writes, the server reads."""

    @settings(derandomize=True, max_examples=500, deadline=None)
    @given(
        st.binary(min_size=1, max_size=8)
        | st.lists(st.sampled_from([b".", b"..", b"/", b"a", b"%", b"%2F"]), min_size=1).map(
            b"".join
        )
    )
    def test_keys(self, key: bytes) -> None:
        agent = FakeAgent()
        Client(Clock(), SERVERS, agent=agent).get(key).addErrback(lambda _: None)
        target = agent.asked[0].target
        self.assertEqual(target, key_path(key))
        self.assertEqual(percent_decoded(target[len("/db/") :].encode("ascii"), "it"), key)
        self.assertTrue({"", ".", ".."}.isdisjoint(target.split("/")[2:]), target)

    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(st.binary(max_size=8), st.text(max_size=4))
    def test_parameters(self, value: bytes, text: str) -> None:
        agent = FakeAgent()
        client = Client(Clock(), SERVERS, agent=agent)
        client.page(start=value, after=text, keys_only=True).addErrback(lambda _: None)
        sent = agent.asked[0].target.partition("?")[2].encode("ascii")
        read = Parameters(sent, ("start", "after", "keys_only"), "It")
        self.assertEqual(read.octets("start"), value)
        self.assertEqual(read.octets("after"), text.encode("utf-8"))
        self.assertTrue(read.flag("keys_only"))

    def test_no_parameters(self) -> None:
        self.assertEqual(query(()), "")

    def test_times_to_live_are_decimals(self) -> None:
        for ttl_s, expected in ((10, "10.000"), (1e9, "1000000000.000"), (0.00001, "0.001")):
            agent = FakeAgent()
            client = Client(Clock(), SERVERS, agent=agent)
            client.put("k", b"", ttl_s=ttl_s).addErrback(lambda _: None)
            self.assertEqual(agent.asked[0].target, f"/db/k?ttl={expected}")

    def test_an_empty_key_is_none(self) -> None:
        client = Client(Clock(), SERVERS, agent=FakeAgent())
        for asked in (client.get(""), client.put(b"", b""), client.delete("")):
            self.failureResultOf(asked, ValueError)
        self.assertRaises(ValueError, client.watch, "")

    def test_servers_are_hosts_with_ports(self) -> None:
        for servers in ([], ["a"], ["a:b"], ["http://a:1"], ["a:1/x"], ["a b:1"], "a:1"):
            self.assertRaises(ValueError, Client, Clock(), servers, agent=FakeAgent())
        Client(Clock(), ["[::1]:4001", "127.0.0.1:1", "a.b-c:65535"], agent=FakeAgent())

    def test_a_request_has_less_time_than_its_idempotency_key(self) -> None:
        for timeout_s in (0.0, -1.0, KEY_TTL_MS / 2000, float("nan")):
            self.assertRaises(
                ValueError, Client, Clock(), SERVERS, agent=FakeAgent(), timeout_s=timeout_s
            )
