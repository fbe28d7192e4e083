"""What all of HTTP has in common: routes, methods, and what failures become."""

from __future__ import annotations

from collections.abc import Callable

from zope.interface.verify import verifyObject

from raftd.errors import (
    BadRequest,
    IdempotencyKeyReused,
    IdempotencyTableFull,
    NoLeader,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerUnreachable,
    QuotaReached,
    RaftdError,
    Stopped,
    StorageFailed,
    Superseded,
    TooLarge,
)
from raftd.interfaces import IBodySink, INode, IRequest
from raftd.kv.interfaces import IDatabase
from raftd.kv.results import NoResult
from raftd.test.webs import Answer, FakeRequest, WebCase

ALLOW_DB = "GET, HEAD, PUT, POST, DELETE, OPTIONS"


class Fakes(WebCase):
    def test_they_are_what_they_play(self) -> None:
        request = FakeRequest("GET", b"/")
        self.assertTrue(verifyObject(IRequest, request))
        self.assertTrue(verifyObject(IBodySink, request.sink))
        self.assertTrue(verifyObject(IDatabase, self.database))
        self.assertTrue(verifyObject(INode, self.node))


class Methods(WebCase):
    def test_other_methods(self) -> None:
        for method in ("PATCH", "TRACE", "PROPFIND"):
            answer = self.ask(method, b"/db/k")
            self.assertError(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], ALLOW_DB)
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            answer = self.ask(method, b"/status")
            self.assertError(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], "GET, HEAD, OPTIONS")
        self.assertEqual(self.database.calls, [])

    def test_options(self) -> None:
        for target, allow in (
            (b"/db/k", ALLOW_DB),
            (b"*", "GET, HEAD, PUT, POST, PATCH, DELETE, OPTIONS"),
            (b"/status", "GET, HEAD, OPTIONS"),
        ):
            answer = self.ask("OPTIONS", target)
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertEqual(answer.headers, {"Allow": allow})

    def test_elsewhere(self) -> None:
        for path in (
            b"/",
            b"/db",
            b"/dbx",
            b"/DB/k",
            b"/status/",
            b"/%64b/k",
            b"//db/k",
            b"/txn/",
            b"/leases",
        ):
            self.assertError(self.ask("GET", path), 404, "not_found")


#: Whatever says that a request did not happen, and the code it is given.
DID_NOT_HAPPEN: list[tuple[RaftdError, str]] = [
    (NoLeader("a."), "no_leader"),
    (NotLeader("b."), "no_leader"),
    (NoQuorum("c."), "no_quorum"),
    (Overloaded("d."), "overloaded"),
    (Superseded("e."), "superseded"),
    (Stopped("f."), "stopped"),
]


class Failures(WebCase):
    def everything(self) -> list[tuple[str, Callable[[RaftdError], Answer]]]:
        return [
            (method, lambda error, method=method: self.ask(method, b"/db/k", outcome=error))  # type: ignore[misc]
            for method in ("GET", "HEAD", "PUT", "POST", "DELETE")
        ]

    def test_what_did_not_happen_may_be_tried_again(self) -> None:
        for error, code in DID_NOT_HAPPEN:
            for _, ask in self.everything():
                answer = ask(error)
                self.assertError(answer, 503, code)
                self.assertEqual(answer.json()["message"], str(error))
                self.assertEqual(answer.headers["Retry-After"], "1")

    def test_what_can_never_happen_may_not(self) -> None:
        for _, ask in self.everything():
            self.assertError(ask(TooLarge("a.")), 413, "too_large")
            self.assertError(ask(BadRequest("a.")), 400, "bad_request")
            self.assertNotIn("Retry-After", ask(BadRequest("a.")).headers)

    def test_30_an_unknown_outcome_is_its_own_answer(self) -> None:
        """Also when something broke that nobody thought of."""
        unexpected = (OutcomeUnknown("a."), PeerUnreachable("b."), StorageFailed("c."))
        for error in (*unexpected, RaftdError("d.")):
            for method, ask in self.everything():
                answer = ask(error)
                if method in ("GET", "HEAD"):
                    self.assertEqual(answer.status, 503)
                    self.assertNotEqual(answer.json()["error"], "outcome_unknown")
                else:
                    self.assertError(answer, 504, "outcome_unknown")
                    self.assertNotIn("Retry-After", answer.headers)

    def test_what_the_client_has_to_change(self) -> None:
        for error, status in (
            (IdempotencyKeyReused("a."), 422),
            (IdempotencyTableFull("b."), 429),
            (QuotaReached("c."), 507),
        ):
            answer = self.ask("PUT", b"/db/k", b"v", error)
            self.assertError(answer, status, error.code)
            self.assertEqual("Retry-After" in answer.headers, status == 429)

    def test_a_result_of_another_kind(self) -> None:
        """A defect: the write was carried out, or something was."""
        for method, target, body in (
            ("PUT", b"/db/k", b"v"),
            ("PUT", b"/db/k?prev", b"v"),
            ("DELETE", b"/db/k", b""),
            ("DELETE", b"/db/?prefix=", b""),
            ("POST", b"/txn", b"{}"),
            ("POST", b"/compact", b'{"revision":9}'),
            ("DELETE", b"/lease/0000000000000001", b""),
        ):
            answer = self.ask(method, target, body, NoResult())
            self.assertError(answer, 504, "outcome_unknown")

    def test_before_there_is_a_cluster(self) -> None:
        self.routes.site = None
        for method in ("GET", "PUT", "OPTIONS", "PATCH"):
            for target in (
                b"/db/k",
                b"/db/",
                b"/status",
                b"/txn",
                b"/lease",
                b"/",
                b"/nowhere",
            ):
                answer = self.ask(method, target)
                self.assertError(answer, 503, "not_ready")
                self.assertEqual(answer.headers["Retry-After"], "1")
        self.assertEqual(self.database.calls, [])
