"""`/lease`: leases over HTTP."""

from __future__ import annotations

from raftd.errors import LeaseExists, LeaseNotFound, NoLeader, OutcomeUnknown, TooManyLeases
from raftd.idempotency import retry_of
from raftd.kv.interfaces import LINEARIZABLE, LOCAL, LeaseStatus
from raftd.kv.operations import RevokeLease
from raftd.kv.results import LeaseResult, RevokeResult
from raftd.test.webs import WebCase

ONE = b"/lease/00000000000000ff"
KEEP_ALIVE = ONE + b"/keepalive"


class Grants(WebCase):
    def test_a_lease(self) -> None:
        for body, asked in (
            ({"ttl": 10}, (10_000, 0, b"")),
            ({"ttl": 2.0001}, (2001, 0, b"")),
            ({"ttl": 0.001, "id": "7fffffffffffffff"}, (1, 2**63 - 1, b"")),
        ):
            answer = self.ask("POST", b"/lease", body, LeaseResult(255, 10_000))
            self.assertEqual(self.asked(), ("grant", *asked))
            self.assertEqual(
                (answer.status, answer.json(), answer.headers),
                (
                    201,
                    {"id": "00000000000000ff", "ttl": 10},
                    {"Location": "/lease/00000000000000ff"},
                ),
            )

    def test_bodies(self) -> None:
        for body in (
            b"",
            b"10",
            {},
            {"ttl": 0},
            {"ttl": -1},
            {"ttl": "10"},
            {"ttl": True},
            {"ttl": None},
            {"ttl": 10**9 + 1},
            b'{"ttl": NaN}',
            b'{"ttl": Infinity}',
            b'{"ttl": 1e400}',
            {"ttl": 10, "id": 255},
            {"ttl": 10, "id": "ff"},
            {"ttl": 10, "id": "0" * 16},
            {"ttl": 10, "id": "f" * 16},
            {"ttl": 10, "name": "a"},
            b'{"ttl": 10, "ttl": 20}',
        ):
            self.assertRefused(self.ask("POST", b"/lease", body))
        self.assertRefused(self.ask("POST", b"/lease?ttl=10", {"ttl": 10}), "no parameters")
        self.assertRefused(self.ask("POST", b"/lease", {"ttl": 1}, if_none_match="*"))

    def test_refusals(self) -> None:
        answer = self.ask("POST", b"/lease", {"ttl": 10}, LeaseExists("There is one."))
        self.assertError(answer, 409, "lease_exists")
        answer = self.ask("POST", b"/lease", {"ttl": 10}, TooManyLeases("Too many."))
        self.assertError(answer, 503, "too_many_leases")
        answer = self.ask("POST", b"/lease", {"ttl": 10}, OutcomeUnknown("Perhaps."))
        self.assertError(answer, 504, "outcome_unknown")

    def test_retries(self) -> None:
        body = b'{"ttl":10}'
        self.ask("POST", b"/lease", body, LeaseResult(9, 10_000), idempotency_key="x")
        self.assertEqual(
            self.asked(), ("grant", 10_000, 0, retry_of(b"x", "POST", b"/lease", body))
        )


class KeepAlives(WebCase):
    def test_a_keep_alive(self) -> None:
        answer = self.ask("POST", KEEP_ALIVE, outcome=LeaseResult(255, 10_000))
        self.assertEqual(self.asked(), ("keep_alive", 255))
        self.assertEqual(answer.body, b'{"id":"00000000000000ff","ttl":10}\n')

    def test_what_is_gone(self) -> None:
        answer = self.ask("POST", KEEP_ALIVE, outcome=LeaseNotFound("Gone."))
        self.assertError(answer, 404, "lease_not_found")

    def test_an_outcome_is_never_unknown(self) -> None:
        """If it was carried out after all, the lease lives longer, and that is all."""
        answer = self.ask("POST", KEEP_ALIVE, outcome=OutcomeUnknown("Perhaps."))
        self.assertError(answer, 503, "unavailable")

    def test_it_says_nothing_else(self) -> None:
        self.assertRefused(self.ask("POST", KEEP_ALIVE, {"ttl": 20}))
        self.assertRefused(self.ask("POST", KEEP_ALIVE + b"?ttl=20"))


class Reads(WebCase):
    def test_all(self) -> None:
        for query, max_staleness_s in ((b"", LINEARIZABLE), (b"?consistency=local", LOCAL)):
            answer = self.ask(
                "GET",
                b"/lease" + query,
                outcome=[LeaseResult(9, 10_000), LeaseResult(255, 2500)],
            )
            self.assertEqual(self.asked(), ("leases", max_staleness_s))
            self.assertEqual(
                answer.body,
                b'{"leases":[{"id":"0000000000000009","ttl":10},'
                b'{"id":"00000000000000ff","ttl":2.5}]}\n',
            )
            self.assertEqual(answer.headers, {"Cache-Control": "no-cache"})
        self.assertEqual(self.ask("GET", b"/lease", outcome=[]).body, b'{"leases":[]}\n')

    def test_many(self) -> None:
        leases = [LeaseResult(i, 10_000) for i in range(1, 5001)]
        found = self.ask("GET", b"/lease", outcome=leases).json()["leases"]
        self.assertEqual([int(x["id"], 16) for x in found], [*range(1, 5001)])

    def test_one(self) -> None:
        status = LeaseStatus(255, 10_000, 3250, [b"a", b"\xff"], True)
        for method in ("GET", "HEAD"):
            answer = self.ask(method, ONE, outcome=status)
            self.assertEqual(self.asked(), ("lease", 255, 1000))
            self.assertEqual(
                answer.json(),
                {
                    "id": "00000000000000ff",
                    "ttl": 10,
                    "ttl_left": 3.25,
                    "keys": [{"key": "a"}, {"key_base64": "/w=="}],
                    "more": True,
                },
            )

    def test_failures(self) -> None:
        self.assertError(
            self.ask("GET", ONE, outcome=LeaseNotFound("Gone.")), 404, "lease_not_found"
        )
        for target in (ONE, b"/lease"):
            answer = self.ask("GET", target, outcome=NoLeader("None."))
            self.assertError(answer, 503, "no_leader")
        self.assertRefused(self.ask("GET", b"/lease?x"), "consistency")
        self.assertRefused(self.ask("GET", ONE + b"?consistency=local"))


class Revocations(WebCase):
    def test_a_revocation(self) -> None:
        answer = self.ask("DELETE", ONE, outcome=RevokeResult(9, 2))
        self.assertEqual(self.asked(), ("change", RevokeLease(255)))
        self.assertEqual(answer.body, b'{"id":"00000000000000ff","revision":9,"deleted":2}\n')

    def test_retries(self) -> None:
        self.ask("DELETE", ONE, outcome=RevokeResult(9, 2), idempotency_key="x")
        self.assertEqual(self.asked()[2], retry_of(b"x", "DELETE", ONE, b""))

    def test_failures(self) -> None:
        answer = self.ask("DELETE", ONE, outcome=LeaseNotFound("Gone."))
        self.assertError(answer, 404, "lease_not_found")
        self.assertRefused(self.ask("DELETE", ONE, if_match="*"))
        self.assertRefused(self.ask("DELETE", ONE + b"?prev"))


class Paths(WebCase):
    def test_ids(self) -> None:
        for name in (b"", b"ff", b"g" * 16, b"0" * 17, b"%30" * 16, b"\xff" * 16,
                     b"1" * 16 + b"/", b"1" * 16 + b"/keep"):  # fmt: skip
            for method in ("GET", "DELETE"):
                answer = self.ask(method, b"/lease/" + name)
                self.assertRefused(answer, "16 hexadecimal digits")
            if b"/" not in name:
                answer = self.ask("POST", b"/lease/" + name + b"/keepalive")
                self.assertRefused(answer, "16 hexadecimal digits")
        for number in (b"0" * 16, b"f" * 16):
            for method, target in (("GET", b""), ("DELETE", b""), ("POST", b"/keepalive")):
                answer = self.ask(method, b"/lease/" + number + target)
                self.assertError(answer, 404, "lease_not_found")
                self.assertEqual(self.database.calls, [])

    def test_methods(self) -> None:
        for target, other, allow in (
            (b"/lease", "DELETE", "GET, HEAD, POST, OPTIONS"),
            (ONE, "POST", "GET, HEAD, DELETE, OPTIONS"),
            (KEEP_ALIVE, "GET", "POST, OPTIONS"),
        ):
            answer = self.ask(other, target)
            self.assertError(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], allow)
            self.assertEqual(self.ask("OPTIONS", target).headers, {"Allow": allow})
