"""`POST /txn`: transactions as JSON."""

from __future__ import annotations

import json
from typing import Any

from raftd.errors import BadRequest, Compacted, LeaseNotFound, QuotaReached
from raftd.idempotency import retry_of
from raftd.kv.operations import (
    CREATE_REVISION,
    EQUAL,
    EVERY_KEY,
    GREATER,
    LEASE,
    LESS,
    MAX_DECODED_NESTING,
    MOD_REVISION,
    NOT_EQUAL,
    VALUE,
    VERSION,
    Compare,
    DeleteRangeWith,
    PutWith,
    Range,
    Step,
    Transaction,
)
from raftd.kv.results import (
    DeleteResult,
    KeyValue,
    PutResult,
    RangeResult,
    StepResult,
    TransactionResult,
)
from raftd.test.webs import WebCase
from raftd.web.spans import FIRST_KEY
from raftd.web.txn import MAX_BODY_BYTES, MAX_LIST

RECORD = KeyValue(b"a", b"1", 2, 5, 3)
RECORD_JSON = {
    "key": "a",
    "value": "1",
    "create_revision": 2,
    "mod_revision": 5,
    "version": 3,
}


class TransactionCase(WebCase):
    def transaction(self, body: Any) -> Transaction:
        """What the store is asked for."""
        self.ask("POST", b"/txn", body, BadRequest("Not this time."))
        (_, operation) = self.asked()
        assert isinstance(operation, Transaction)
        return operation


class Bodies(TransactionCase):
    def test_the_example(self) -> None:
        """Of `docs/http.md`."""
        body = {
            "compare": [
                {"key": "a", "value": "1"},
                {"key": "b", "version": 0},
                {"key": "c", "mod_revision": 7, "op": "<"},
            ],
            "then": [{"put": {"key": "a", "value": "2"}}],
            "else": [{"get": {"key": "a"}}],
        }
        self.assertEqual(
            self.transaction(body),
            Transaction(
                (
                    Compare(b"a", b"", VALUE, EQUAL, b"1"),
                    Compare(b"b", b"", VERSION, EQUAL, 0),
                    Compare(b"c", b"", MOD_REVISION, LESS, 7),
                ),
                (PutWith(b"a", b"2"),),
                (Range(b"a", limit=10_000),),
            ),
        )
        self.assertEqual(self.transaction({}), Transaction((), ()))

    def test_compares(self) -> None:
        for compare, expected in (
            (
                {"key_base64": "/w==", "value_base64": "AA==", "op": "!="},
                Compare(b"\xff", b"", VALUE, NOT_EQUAL, b"\0"),
            ),
            (
                {"key": "a", "create_revision": 3, "op": ">"},
                Compare(b"a", b"", CREATE_REVISION, GREATER, 3),
            ),
            (
                {"prefix": "a/", "lease": "00000000000000ff", "op": "="},
                Compare(b"a/", b"a0", LEASE, EQUAL, 255),
            ),
            (
                {"prefix": "", "lease": "0" * 16},
                Compare(FIRST_KEY, EVERY_KEY, LEASE, EQUAL, 0),
            ),
            (
                {"key": "a", "end": "c", "version": 2**63 - 1},
                Compare(b"a", b"c", VERSION, EQUAL, 2**63 - 1),
            ),
            (
                {"key": "a", "end_base64": "/w==", "value": ""},
                Compare(b"a", b"\xff", VALUE, EQUAL, b""),
            ),
        ):
            (found,) = self.transaction({"compare": [compare]}).compares
            self.assertEqual(found, expected)

    def test_operations(self) -> None:
        for operation, expected in (
            ({"put": {"key": "a", "value": ""}}, PutWith(b"a", b"")),
            (
                {
                    "put": {
                        "key": "a",
                        "value_base64": "/w==",
                        "lease": "00000000000000ff",
                        "prev": True,
                    }
                },
                PutWith(b"a", b"\xff", 255, True),
            ),
            (
                {"put": {"key": "a", "keep_value": True, "keep_lease": True}},
                PutWith(b"a", b"", 0, False, True, True),
            ),
            ({"get": {"prefix_base64": "/w=="}}, Range(b"\xff", EVERY_KEY, limit=10_000)),
            (
                {
                    "get": {
                        "start": "a",
                        "end": "c",
                        "limit": 5,
                        "keys_only": True,
                        "count_only": True,
                        "order": "desc",
                        "sort": "mod_revision",
                        "revision": 7,
                    }
                },
                Range(b"a", b"c", 7, 5, True, True, MOD_REVISION, True),
            ),
            ({"delete": {"key": "a"}}, DeleteRangeWith(b"a")),
            ({"delete": {"prefix": "", "prev": True}},
             DeleteRangeWith(FIRST_KEY, EVERY_KEY, True)),
            ({"delete": {"end": "c"}}, DeleteRangeWith(FIRST_KEY, b"c")),
            (
                {"txn": {"compare": [{"key": "a", "version": 0}], "else": [{"txn": {}}]}},
                Transaction(
                    (Compare(b"a", b"", VERSION, EQUAL, 0),), (), (Transaction((), ()),)
                ),
            ),
        ):  # fmt: skip
            (found,) = self.transaction({"then": [operation]}).success
            self.assertEqual(found, expected)

    def test_what_is_wrong_and_where(self) -> None:
        put = {"put": {"key": "a", "value": "1"}}
        for body, words in (
            (b"", ["not JSON"]),
            (b"{", ["not JSON"]),
            (b"{x", ["not JSON: object keys must be strings"]),
            (b"\xff", ["not JSON"]),
            (b'{"then":[{"put":{"key":"\\ud800","value":""}}]}', ["not JSON"]),
            (b'{"then":[{"put":{"key":"\xff","value":""}}]}', ["not JSON"]),
            ([], ["the body", "object"]),
            ({"than": []}, ["the body", "`than`"]),
            ({"then": {}}, ["then", "array"]),
            ({"then": [{}]}, ["then[0]", "exactly one"]),
            ({"then": [{**put, "get": {"key": "a"}}]}, ["then[0]", "exactly one"]),
            ({"then": [put, {"put": {"value": ""}}]}, ["then[1].put", "'key'"]),
            ({"then": [{"put": {"key": "a"}}]}, ["then[0].put", "'value'"]),
            ({"then": [{"put": {"key": "", "value": "", "keep_value": True}}]}, ["keep_value"]),
            ({"then": [{"put": {"key": 5, "value": ""}}]}, ["then[0].put.key", "`str`"]),
            ({"then": [{"put": {"key": "a", "vlaue": ""}}]}, ["then[0].put", "`vlaue`"]),
            (
                {"else": [{"put": {"key": "a", "key_base64": "", "value": ""}}]},
                ["else[0].put", "'key_base64'"],
            ),
            (
                {"then": [{"put": {"key": "a", "value_base64": "?"}}]},
                ["then[0].put.value_base64", "base64"],
            ),
            ({"then": [{"put": {"key": "a", "value": "", "lease": "1"}}]}, ["16 hexadecimal"]),
            (
                {"then": [{"put": {"key": "a", "value": "", "lease": "1" * 16,
                                   "keep_lease": True}}]},
                ["then[0].put", "keep_lease"],
            ),
            ({"then": [{"get": {}}]}, ["then[0].get", "'key'"]),
            ({"then": [{"get": {"key": "a", "prefix": "b"}}]}, ["then[0].get"]),
            ({"then": [{"get": {"prefix": "a", "end": "b"}}]}, ["then[0].get"]),
            ({"then": [{"delete": {"start": "a", "end": ""}}]}, ["end is empty"]),
            ({"then": [{"get": {"key": "a", "limit": 0}}]}, ["then[0].get.limit", ">= 1"]),
            ({"then": [{"get": {"key": "a", "limit": 10_001}}]}, ["then[0].get.limit"]),
            ({"then": [{"get": {"key": "a", "order": "up"}}]}, ["then[0].get.order", "up"]),
            ({"then": [{"txn": {"then": [{"txn": {"then": [{}]}}]}}]},
             ["then[0].txn.then[0].txn.then[0] must"]),
            ({"compare": [{"key": "a"}]}, ["compare[0]", "exactly one"]),
            ({"compare": [{"key": "a", "value": "", "version": 0}]}, ["compare[0]"]),
            ({"compare": [{"value": "", "op": "="}]}, ["compare[0]", "'key'"]),
            ({"compare": [{"key": "a", "prefix": "", "version": 0}]}, ["compare[0]"]),
            ({"compare": [{"key": "a", "version": -1}]}, ["compare[0].version", ">= 0"]),
            ({"compare": [{"key": "a", "version": 2**63}]}, ["compare[0].version"]),
            ({"compare": [{"key": "a", "version": 1.5}]}, ["compare[0].version", "`int`"]),
            ({"compare": [{"key": "a", "version": 0, "op": "=="}]}, ["compare[0].op", "=="]),
            ({"then": [put] * (MAX_LIST + 1)}, ["then", "128"]),
        ):  # fmt: skip
            self.assertRefused(self.ask("POST", b"/txn", body), *words)

    def test_nothing_is_lost_that_occurs_twice(self) -> None:
        for body in (
            b'{"then":[{"delete":{"key":"a"}}],"then":[{"delete":{"key":"b"}}]}',
            b'{"then":[{"put":{"key":"a","value":"1"},"put":{"key":"b","value":"1"}}]}',
            b'{"then":[{"put":{"key":"a","value":"1","value":"2"}}]}',
        ):
            self.assertRefused(self.ask("POST", b"/txn", body), "occurs twice")

    def test_nesting(self) -> None:
        def nested(depth: int) -> bytes:
            return b'{"then":[{"txn":' * depth + b"{}" + b"}]}" * depth

        for depth in (MAX_DECODED_NESTING + 1, 128, 300, 5000, 60_000):
            answer = self.ask("POST", b"/txn", nested(depth))
            self.assertRefused(answer, "nested too deeply")
        transaction = self.transaction(nested(MAX_DECODED_NESTING))
        depth = 0
        while transaction.success:
            (step,) = transaction.success
            assert isinstance(step, Transaction)
            transaction = step
            depth += 1
        self.assertEqual(depth, MAX_DECODED_NESTING)

    def test_size(self) -> None:
        body = json.dumps({"then": [{"put": {"key": "a", "value": "v" * 2**20}}]}).encode()
        (put,) = self.transaction(body).success
        self.assertEqual(put, PutWith(b"a", b"v" * 2**20))
        answer = self.ask("POST", b"/txn", body.ljust(MAX_BODY_BYTES + 1))
        self.assertError(answer, 413, "too_large")
        self.assertEqual(self.database.calls, [])

    def test_retries_and_conditions(self) -> None:
        body = b'{"then":[]}'
        outcome = TransactionResult(5, True, [])
        self.ask("POST", b"/txn", body, outcome, idempotency_key="x")
        self.assertEqual(self.asked()[2], retry_of(b"x", "POST", b"/txn", body))
        self.assertRefused(self.ask("POST", b"/txn", body, if_match="*"), "compares")
        self.assertRefused(self.ask("POST", b"/txn?x", body))
        answer = self.ask("POST", b"/txn", body, content_encoding="br")
        self.assertError(answer, 415, "unsupported_media_type")


class Results(TransactionCase):
    def results(self, body: Any, *results: StepResult, succeeded: bool = True) -> Any:
        result = TransactionResult(12, succeeded, list(results))
        answer = self.ask("POST", b"/txn", body, result)
        self.assertEqual(answer.status, 200)
        value = answer.json()
        self.assertEqual((value["succeeded"], value["revision"]), (succeeded, 12))
        return value["results"]

    def test_none(self) -> None:
        self.assertEqual(self.results({}), [])

    def test_each_kind(self) -> None:
        put = {"put": {"key": "a", "value": "1", "prev": True}}
        delete = {"delete": {"prefix": "", "prev": True}}
        get = {"get": {"key": "a"}}
        body = {
            "then": [put, put, delete, {"delete": {"key": "a"}}, get, {"txn": {"else": [get]}}]
        }
        found = RangeResult(12, 3, True, [RECORD, RECORD])
        self.assertEqual(
            self.results(
                body,
                PutResult(12, False, RECORD),
                PutResult(12, True),
                DeleteResult(12, 2, [RECORD, RECORD]),
                DeleteResult(12, 0),
                found,
                TransactionResult(12, False, [found]),
            ),
            [
                {"put": {"created": False, "previous": RECORD_JSON}},
                {"put": {"created": True}},
                {"delete": {"deleted": 2, "previous": [RECORD_JSON] * 2}},
                {"delete": {"deleted": 0}},
                {"get": {"count": 3, "more": True, "kvs": [RECORD_JSON] * 2}},
                {
                    "txn": {
                        "succeeded": False,
                        "results": [
                            {"get": {"count": 3, "more": True, "kvs": [RECORD_JSON] * 2}}
                        ],
                    }
                },
            ],
        )

    def test_those_of_else(self) -> None:
        body = {"then": [{"put": {"key": "a", "value": ""}}], "else": [{"get": {"prefix": "",
                "keys_only": True}}]}  # fmt: skip
        found = RangeResult(12, 1, False, [RECORD])
        (value,) = self.results(body, found, succeeded=False)
        self.assertNotIn("value", value["get"]["kvs"][0])

    def test_many(self) -> None:
        """They are made while the client takes them."""
        body = {"then": [{"get": {"prefix": ""}}] * 20}
        found = RangeResult(12, 500, False, [RECORD] * 500)
        results = self.results(body, *[found] * 20)
        self.assertEqual([len(r["get"]["kvs"]) for r in results], [500] * 20)

    def test_refusals(self) -> None:
        for reason, status in (
            (LeaseNotFound("No."), 404),
            (QuotaReached("No."), 507),
            (BadRequest("No."), 400),
        ):
            answer = self.ask("POST", b"/txn", {}, reason)
            self.assertError(answer, status, reason.code)
        answer = self.ask("POST", b"/txn", {}, Compacted("No.", 7))
        self.assertError(answer, 410, "compacted", "compacted_revision")

    def test_other_methods(self) -> None:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            answer = self.ask(method, b"/txn")
            self.assertError(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], "POST, OPTIONS")
        self.assertEqual(self.ask("OPTIONS", b"/txn").headers["Allow"], "POST, OPTIONS")


class Steps(TransactionCase):
    def test_every_step_can_be_asked_for_but_a_grant(self) -> None:
        """So that a new kind is given a thought here."""
        self.assertEqual(
            {kind.__name__ for kind in Step.__args__},
            {"PutWith", "DeleteRangeWith", "Range", "GrantLease", "Transaction"},
        )
