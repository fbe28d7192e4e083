"""`/db/KEY`: one key over HTTP."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import cast
from urllib.parse import quote_from_bytes

from hypothesis import given, settings
from hypothesis import strategies as st

from raftd.idempotency import retry_of
from raftd.kv.interfaces import LINEARIZABLE, LOCAL
from raftd.kv.operations import (
    EQUAL,
    GREATER,
    MOD_REVISION,
    NOT_EQUAL,
    VERSION,
    Compare,
    DeleteRange,
    DeleteRangeWith,
    GrantLease,
    Put,
    PutWith,
    Range,
    Transaction,
)
from raftd.kv.results import (
    DeleteResult,
    KeyValue,
    LeaseResult,
    PutResult,
    RangeResult,
    TransactionResult,
)
from raftd.test.webs import Answer, FakeRequest, WebCase
from raftd.web.bodies import distinct

ALLOW = "GET, HEAD, PUT, POST, DELETE, OPTIONS"
RECORD = KeyValue(b"k", b"\0\xffraw", 2, 5, 3)
WRITES = ("PUT", "POST", "DELETE")


class Writes(WebCase):
    def test_a_new_key(self) -> None:
        for method in ("PUT", "POST"):
            answer = self.ask(method, b"/db/k", b"value", PutResult(5, True))
            self.assertEqual(self.asked(), ("change", Put(b"k", b"value")))
            self.assertEqual((answer.status, answer.body), (201, b'{"key":"k","revision":5}\n'))
            self.assertEqual(answer.content_type, "application/json")
            self.assertEqual(answer.headers, {"ETag": '"5"'})

    def test_a_replaced_key(self) -> None:
        answer = self.ask("PUT", b"/db/k", b"", PutResult(6, False))
        self.assertEqual((answer.status, answer.headers["ETag"]), (200, '"6"'))

    def test_a_delete(self) -> None:
        answer = self.ask("DELETE", b"/db/k", outcome=DeleteResult(7, 1))
        self.assertEqual(self.asked(), ("change", DeleteRange(b"k")))
        self.assertEqual((answer.status, answer.json()), (200, {"key": "k", "revision": 7}))
        self.assertEqual(answer.headers, {"ETag": '"7"'})

    def test_a_delete_that_finds_nothing(self) -> None:
        answer = self.ask("DELETE", b"/db/k", outcome=DeleteResult(7, 0))
        self.assertError(answer, 404, "not_found")

    def test_an_answer_that_comes_later(self) -> None:
        self.database.waiting = []
        request = FakeRequest("PUT", b"/db/k", b"v")
        self.routes.handle(request)
        self.assertEqual(request.answers, [])
        self.database.waiting.pop()(PutResult(5, True))
        self.assertEqual(request.answer().status, 201)

    def test_other_parameters(self) -> None:
        for method in WRITES:
            for query in (b"consistency=local", b"x", b"=", b"prev=1", b"prev&prev", b"&prev"):
                self.assertRefused(self.ask(method, b"/db/k?" + query))
        refused = self.ask("PUT", b"/db/k?tll=5")
        self.assertRefused(refused, "'tll'", "ttl, lease, prev")

    def test_what_was_there_before(self) -> None:
        for flag in (b"prev", b"prev=true", b"prev="):
            answer = self.ask("PUT", b"/db/k?" + flag, b"v", PutResult(6, False, RECORD))
            self.assertEqual(self.asked(), ("change", PutWith(b"k", b"v", previous=True)))
            self.assertEqual(
                answer.json(),
                {
                    "key": "k",
                    "revision": 6,
                    "previous": {
                        "key": "k",
                        "value_base64": "AP9yYXc=",
                        "create_revision": 2,
                        "mod_revision": 5,
                        "version": 3,
                    },
                },
            )
        answer = self.ask("DELETE", b"/db/k?prev", outcome=DeleteResult(7, 1, [RECORD]))
        self.assertEqual(self.asked(), ("change", DeleteRangeWith(b"k", b"", True)))
        self.assertEqual(answer.json()["previous"]["mod_revision"], 5)
        answer = self.ask("PUT", b"/db/k?prev", b"v", PutResult(6, True))
        self.assertNotIn("previous", answer.json())
        self.ask("PUT", b"/db/k?prev=false", b"v", PutResult(6, True))
        self.assertEqual(self.database.calls[-1], ("change", PutWith(b"k", b"v")))

    def test_a_body_that_is_not_what_is_meant(self) -> None:
        for method in WRITES:
            answer = self.ask(method, b"/db/k", b"v", content_encoding="gzip")
            self.assertError(answer, 415, "unsupported_media_type")
            self.assertRefused(self.ask(method, b"/db/k", b"v", content_range="bytes 0-0/9"))
        self.ask("PUT", b"/db/k", b"v", PutResult(5, True), content_encoding="Identity")
        self.assertEqual(self.asked(), ("change", PutWith(b"k", b"v")))


class Leases(WebCase):
    def test_a_lease_that_is_there(self) -> None:
        answer = self.ask("PUT", b"/db/k?lease=00000000000000fF", b"v", PutResult(5, True))
        self.assertEqual(self.asked(), ("change", PutWith(b"k", b"v", 255)))
        self.assertEqual(answer.json(), {"key": "k", "revision": 5})

    def test_a_lease_that_cannot_be(self) -> None:
        for text in (b"0" * 16, b"f" * 16, b"8" + b"0" * 15):
            answer = self.ask("PUT", b"/db/k?lease=" + text)
            self.assertError(answer, 404, "lease_not_found")
        for text in (b"", b"0", b"1" * 15, b"1" * 17, b"g" * 16, b"%ff" * 16, b"-" + b"1" * 15):
            self.assertRefused(self.ask("PUT", b"/db/k?lease=" + text), "16 hexadecimal")
        self.assertRefused(self.ask("PUT", b"/db/k?lease"))
        self.assertEqual(self.database.calls, [])

    def test_a_lease_of_its_own(self) -> None:
        """One transaction; the id that is answered is that of the result."""
        result = TransactionResult(5, True, [LeaseResult(9, 10_000), PutResult(5, False)])
        for text, ttl_ms in (b"10", 10_000), (b"1", 2000), (b"2.5001", 2501), (b"0.001", 2000):
            answer = self.ask("PUT", b"/db/k?ttl=" + text, b"v", result)
            grant, put = GrantLease(0xD1CE, ttl_ms), PutWith(b"k", b"v", 0xD1CE)
            self.assertEqual(self.asked(), ("change", Transaction((), (grant, put))))
        value = {"key": "k", "revision": 5, "lease": "0000000000000009"}
        self.assertEqual((answer.status, answer.json()), (200, value))

    def test_a_ttl_that_cannot_be(self) -> None:
        for text in (b"0", b"-1", b"1e3", b"", b"nan", b".5", b"1000000001", b"9" * 30, b"0.0"):
            self.assertRefused(self.ask("PUT", b"/db/k?ttl=" + text), "'ttl'")

    def test_one_of_both(self) -> None:
        self.assertRefused(self.ask("PUT", b"/db/k?ttl=5&lease=" + b"1" * 16))


class Conditions(WebCase):
    """Compare-and-set (RFC 9110, 13.1)."""

    there = RangeResult(9, 1, False, [KeyValue(b"k", b"", 2, 8, 3)])
    missing = RangeResult(9, 0, False, [])
    read = Range(b"k", keys_only=True)

    def compare(self, method: str = "PUT", **headers: str) -> tuple[Compare, ...]:
        """The compares of a write with these header fields."""
        success = PutResult(9, False) if method != "DELETE" else DeleteResult(9, 1)
        answer = self.ask(
            method, b"/db/k", b"v", TransactionResult(9, True, [success]), **headers
        )
        self.assertEqual((answer.status, answer.headers), (200, {"ETag": '"9"'}))
        (_, operation) = self.asked()
        assert isinstance(operation, Transaction)
        write = DeleteRangeWith(b"k") if method == "DELETE" else PutWith(b"k", b"v")
        self.assertEqual(operation.success, (write,))
        self.assertEqual(operation.failure, (self.read,))
        return operation.compares

    def test_what_they_compare(self) -> None:
        def of(target: int, relation: int, operand: int) -> Compare:
            return Compare(b"k", b"", target, relation, operand)

        for method in WRITES:
            for headers, compares in (
                ({"if_match": '"8"'}, [of(MOD_REVISION, EQUAL, 8)]),
                ({"if_match": "*"}, [of(VERSION, GREATER, 0)]),
                ({"if_none_match": "*"}, [of(VERSION, EQUAL, 0)]),
                ({"if_none_match": '"8"'}, [of(MOD_REVISION, NOT_EQUAL, 8)]),
                ({"if_none_match": 'W/"8"'}, [of(MOD_REVISION, NOT_EQUAL, 8)]),
                (
                    {"if_match": "*", "if_none_match": '"8"'},
                    [of(VERSION, GREATER, 0), of(MOD_REVISION, NOT_EQUAL, 8)],
                ),
            ):
                self.assertEqual(list(self.compare(method, **headers)), compares)

    def test_tags_that_raftd_never_gave_match_nothing(self) -> None:
        """Nor does a weak one, for the comparison is strong."""
        for tag in ('"x"', '""', '"0"', '"08"', 'W/"8"', '"-1"', '"8,9"', f'"{2**63}"',
                    f'"{10**23}"'):  # fmt: skip
            (compare,) = self.compare(if_match=tag)
            self.assertEqual(compare, Compare(b"k", b"", MOD_REVISION, EQUAL, -1))

    def test_they_do_not_hold(self) -> None:
        for method in WRITES:
            answer = self.ask(
                method,
                b"/db/k",
                b"v",
                TransactionResult(9, False, [self.there]),
                if_match='"5"',
            )
            self.assertError(answer, 412, "precondition_failed", "mod_revision")
            self.assertEqual(answer.json()["mod_revision"], 8)
            self.assertEqual(answer.headers, {"ETag": '"8"'})
            answer = self.ask(
                method,
                b"/db/k",
                b"v",
                TransactionResult(9, False, [self.missing]),
                if_match='"5"',
            )
            self.assertError(answer, 412, "precondition_failed", "mod_revision")
            self.assertEqual((answer.json()["mod_revision"], answer.headers), (0, {}))

    def test_a_delete_of_nothing_that_was_to_be_nothing(self) -> None:
        result = TransactionResult(9, True, [DeleteResult(9, 0)])
        answer = self.ask("DELETE", b"/db/k", outcome=result, if_none_match="*")
        self.assertError(answer, 404, "not_found")

    def test_lists_are_for_reads(self) -> None:
        for method in WRITES:
            for name in ("if_match", "if_none_match"):
                for field in ('"5", "6"', '"5","6"', '"5",', ', "5"', '*, "5"'):
                    self.assertRefused(self.ask(method, b"/db/k", **{name: field}))
        request = FakeRequest(
            "PUT", b"/db/k", b"", [(b"if-match", b'"5"'), (b"if-match", b'"6"')]
        )
        self.routes.handle(request)
        self.assertRefused(request.answer(), "not a list")

    def test_malformed(self) -> None:
        for method in (*WRITES, "GET", "HEAD"):
            for name in ("if_match", "if_none_match"):
                for field in (
                    "",
                    "5",
                    '"5',
                    '5"',
                    "**",
                    "'5'",
                    'w/"5"',
                    'W/5"',
                    '"a b"',
                    '"5"x',
                ):
                    answer = self.ask(method, b"/db/k", **{name: field})
                    self.assertRefused(answer, "its quotes")

    def test_a_long_malformed_field_is_refused_at_once(self) -> None:
        """No expression tries all ways to read it."""
        for field in ('"a"' + "," * 30_000 + "x", '"a" ' * 8000 + "x", '"' * 30_001):
            self.assertRefused(self.ask("GET", b"/db/k", if_none_match=field))

    def test_with_a_lease_of_its_own(self) -> None:
        """The grant comes with the write or not at all."""
        result = TransactionResult(9, False, [self.there])
        self.assertError(
            self.ask("PUT", b"/db/k?ttl=5", b"v", result, if_none_match="*"),
            412, "precondition_failed", "mod_revision",
        )  # fmt: skip
        (_, operation) = self.asked()
        self.assertEqual(
            operation,
            Transaction(
                (Compare(b"k", b"", VERSION, EQUAL, 0),),
                (GrantLease(0xD1CE, 5000), PutWith(b"k", b"v", 0xD1CE)),
                (self.read,),
            ),
        )


class ConditionsOfReads(WebCase):
    def status(self, **headers: str) -> int:
        answers = [self.ask(m, b"/db/k", outcome=RECORD, **headers) for m in ("GET", "HEAD")]
        self.assertEqual(answers[0], answers[1])
        answer = answers[0]
        self.assertEqual(answer.headers["ETag"], '"5"')
        if answer.status == 304:
            self.assertEqual((answer.body, answer.headers["Cache-Control"]), (b"", "no-cache"))
        return answer.status

    def test_not_modified(self) -> None:
        for field in ('"5"', "*", 'W/"5"', '"4", "5"', '"4","5",', ' , "5"', '"a,b" , W/"5"'):
            self.assertEqual(self.status(if_none_match=field), 304, field)
        for field in ('"4"', '"05"', '"a"', '"4", "6"', 'W/"4"'):
            self.assertEqual(self.status(if_none_match=field), 200, field)

    def test_if_match(self) -> None:
        for field, status in (('"5"', 200), ("*", 200), ('"4", "5"', 200), ('"4"', 412),
                              ('W/"5"', 412)):  # fmt: skip
            self.assertEqual(self.status(if_match=field), status, field)
        self.assertEqual(self.status(if_match='"4"', if_none_match='"5"'), 412)
        self.assertEqual(self.status(if_match='"5"', if_none_match='"5"'), 304)

    def test_a_missing_key_is_missing(self) -> None:
        for headers in ({"if_match": "*"}, {"if_none_match": '"5"'}):
            self.assertError(self.ask("GET", b"/db/k", **headers), 404, "not_found")


class IdempotencyKeys(WebCase):
    def test_what_the_store_is_told(self) -> None:
        for method, target, body in (
            ("PUT", b"/db/k", b"v"),
            ("POST", b"/db/%6b?prev", b"v"),
            ("DELETE", b"/db/k", b""),
        ):
            outcome = DeleteResult(5, 1) if method == "DELETE" else PutResult(5, False)
            answer = self.ask(method, target, body, outcome, idempotency_key="a-1")
            self.assertEqual(answer.status, 200)
            call = self.asked()
            self.assertEqual(call[2], retry_of(b"a-1", method, target, body))

    def test_with_conditions(self) -> None:
        result = TransactionResult(9, True, [PutResult(9, True)])
        self.ask("PUT", b"/db/k", b"v", result, idempotency_key="a", if_none_match="*")
        (_, operation, retry) = self.asked()
        self.assertIsInstance(operation, Transaction)
        target = b"/db/k\nif-none-match:*"
        self.assertEqual(retry, retry_of(b"a", "PUT", target, b"v"))

    def test_29_another_condition_is_another_request(self) -> None:
        found = []
        for headers in ({}, {"if_match": "*"}, {"if_none_match": "*"}, {"if_match": '"5"'}):
            self.ask("PUT", b"/db/k", b"v", PutResult(9, True), idempotency_key="a", **headers)
            found.append(self.asked()[2])
        self.assertEqual(len(set(found)), 4)

    def test_malformed(self) -> None:
        for key in ("", "a b", "é", "x" * 256, "a\tb"):
            for method in WRITES:
                answer = self.ask(method, b"/db/k", idempotency_key=key)
                self.assertRefused(answer, "Idempotency-Key")
        request = FakeRequest("PUT", b"/db/k", b"", [(b"idempotency-key", b"a")] * 2)
        self.routes.handle(request)
        self.assertRefused(request.answer(), "given once")
        self.ask("PUT", b"/db/k", b"", PutResult(5, True), idempotency_key="x" * 255)
        self.assertEqual(len(self.asked()[2]), 32)

    def test_a_read_has_no_use_for_one(self) -> None:
        answer = self.ask("GET", b"/db/k", outcome=RECORD, idempotency_key="a b")
        self.assertEqual(answer.status, 200)


class Reads(WebCase):
    def test_a_value(self) -> None:
        answer = self.ask("GET", b"/db/k", outcome=RECORD)
        self.assertEqual(self.asked(), ("get", b"k", LINEARIZABLE, 0))
        headers = {
            "ETag": '"5"',
            "Raftd-Create-Revision": "2",
            "Raftd-Version": "3",
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        self.assertEqual(answer, Answer(200, b"\0\xffraw", "application/octet-stream", headers))

    def test_a_key_with_a_lease(self) -> None:
        answer = self.ask("GET", b"/db/k", outcome=KeyValue(b"k", b"", 2, 5, 3, 255))
        self.assertEqual(answer.headers["Raftd-Lease"], "00000000000000ff")

    def test_head_is_answered_alike(self) -> None:
        """The protocol leaves the body out."""
        get, head = (self.ask(m, b"/db/k", outcome=RECORD) for m in ("GET", "HEAD"))
        self.assertEqual(get, head)

    def test_a_missing_key(self) -> None:
        for method in ("GET", "HEAD"):
            answer = self.ask(method, b"/db/k")
            self.assertError(answer, 404, "not_found")
            self.assertEqual(answer.headers, {"Cache-Control": "no-cache"})

    def test_how_fresh_and_as_of_when(self) -> None:
        for query, max_staleness_s, revision in (
            (b"", LINEARIZABLE, 0),
            (b"?", LINEARIZABLE, 0),
            (b"?consistency=linearizable", LINEARIZABLE, 0),
            (b"?consistency=local", LOCAL, 0),
            (b"?c%6Fnsistency=l%6Fcal", LOCAL, 0),
            (b"?max_staleness_ms=0", LINEARIZABLE, 0),
            (b"?max_staleness_ms=1500", 1.5, 0),
            (b"?revision=7", LINEARIZABLE, 7),
            (b"?consistency=local&revision=007", LOCAL, 7),
            (b"?revision=9223372036854775807", LINEARIZABLE, 2**63 - 1),
        ):
            self.ask("GET", b"/db/k" + query, outcome=RECORD)
            self.assertEqual(self.asked(), ("get", b"k", max_staleness_s, revision))

    def test_other_parameters(self) -> None:
        """A misspelt wish for freshness must not be taken for another."""
        for query in (
            b"consistency=Local",
            b"consistency=",
            b"consistency",
            b"consistancy=local",
            b"consistency=local&consistency=local",
            b"consistency=local&x=1",
            b"consistency=local&",
            b"consistency=local&max_staleness_ms=5",
            b"consistency=local+",
            b"max_staleness_ms=-1",
            b"max_staleness_ms=1.5",
            b"revision=0",
            b"revision=-1",
            b"revision=9223372036854775808",
            b"revision=%31%",
            b"revision=\xd9\xa1",
            b"revision",
            b"%ff=1",
            b"x=1",
        ):
            for method in ("GET", "HEAD"):
                self.assertRefused(self.ask(method, b"/db/k?" + query))
        said = self.ask("GET", b"/db/k?consistancy=local")
        self.assertRefused(said, "'consistancy'", "revision, consistency, max_staleness_ms")


class Keys(WebCase):
    def key(self, path: bytes) -> bytes:
        self.ask("GET", b"/db/" + path)
        return cast(bytes, self.asked()[1])

    def test_the_key_is_everything_after_the_prefix(self) -> None:
        for path, key in (
            (b"a", b"a"),
            (b"a/b%2Fc", b"a/b/c"),
            (b"/", b"/"),
            (b"a+b", b"a+b"),
            (b"a%2Bb%20c", b"a+b c"),
            (b"%00%FF%ff", b"\0\xff\xff"),
            (b"..", b".."),
            (b"a/../b", b"a/../b"),
            (b"%25%34%31", b"%41"),
            (b"a;b=c", b"a;b=c"),
            (b"%3F", b"?"),
        ):
            self.assertEqual(self.key(path), key)

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(st.binary(min_size=1, max_size=40))
    def test_any_bytes_can_be_a_key(self, key: bytes) -> None:
        self.assertEqual(self.key(quote_from_bytes(key, safe="").encode()), key)
        everything = "".join(f"%{byte:02x}" for byte in key)
        self.assertEqual(self.key(everything.encode()), key)

    def test_a_key_that_is_not_utf_8(self) -> None:
        for method, outcome in (("PUT", PutResult(5, True)), ("DELETE", DeleteResult(5, 1))):
            value = self.ask(method, b"/db/%ff%00", outcome=outcome).json()
            self.assertEqual(set(value), {"key_base64", "revision"})
            self.assertEqual(b64decode(value["key_base64"]), b"\xff\0")

    def test_a_key_in_utf_8(self) -> None:
        answer = self.ask("PUT", b"/db/%C3%A9%22%0A", outcome=PutResult(5, True))
        self.assertEqual(answer.json()["key"], 'é"\n')

    def test_a_malformed_percent_sign(self) -> None:
        for path in (b"%", b"a%2", b"%zz", b"%%41", b"a%2-"):
            for method in ("GET", "PUT", "DELETE"):
                self.assertRefused(self.ask(method, b"/db/" + path))


class JSONObjects(WebCase):
    def test_a_name_that_occurs_twice_is_found_at_once(self) -> None:
        """Also the last of many."""
        pairs: list[tuple[str, object]] = [(str(i), i) for i in range(200_000)]
        self.assertEqual(distinct(pairs), dict(pairs))
        body = json.dumps({str(i): 0 for i in range(6000)})[:-1] + ',"5999":0}'
        self.assertRefused(self.ask("POST", b"/lease", body.encode()), "'5999' occurs twice")
