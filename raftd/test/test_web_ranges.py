"""`/db/`: listings, page by page, and ranges that are deleted."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import BadRequest, Compacted, FutureRevision, TooLarge
from raftd.idempotency import retry_of
from raftd.kv.interfaces import LINEARIZABLE, LOCAL
from raftd.kv.operations import EVERY_KEY, DeleteRange, Range
from raftd.kv.results import DeleteResult, KeyValue, RangeResult
from raftd.net.heads import MAX_TARGET_BYTES
from raftd.test.webs import FakeRequest, WebCase
from raftd.web.ranges import LIMIT
from raftd.web.records import SLICE_RECORDS
from raftd.web.spans import FIRST_KEY, NOTHING, behind, span, up_to, with_prefix

EMPTY = RangeResult(41, 0, False, [])


def kv(key: bytes, revision: int = 5, value: bytes = b"v") -> KeyValue:
    return KeyValue(key, value, 2, revision, 3)


def covered(whole: tuple[bytes, bytes], key: bytes) -> bool:
    """Whether a range of the store's has `key` (`raftd.kv.operations`)."""
    start, end = whole
    return key == start if not end else key >= start and (end == EVERY_KEY or key < end)


class Spans(SynchronousTestCase):
    some_bytes = st.binary(max_size=3) | st.lists(
        st.sampled_from([b"\0", b"\1", b"a", b"\xfe", b"\xff"]), max_size=4
    ).map(b"".join)

    @settings(derandomize=True, max_examples=400, deadline=None)
    @given(some_bytes, some_bytes)
    def test_a_prefix(self, prefix: bytes, key: bytes) -> None:
        if key:
            self.assertEqual(covered(with_prefix(prefix), key), key.startswith(prefix))

    @settings(derandomize=True, max_examples=400, deadline=None)
    @given(st.none() | some_bytes, st.none() | some_bytes.filter(bool), some_bytes)
    def test_a_start_and_an_end(
        self, start: bytes | None, end: bytes | None, key: bytes
    ) -> None:
        whole = span(None, start, end, "This")
        if whole is None:
            self.assertEqual((start, end), (None, None))
        elif key:
            wanted = (start is None or key >= start) and (end is None or key < end)
            self.assertEqual(covered(whole, key), wanted)

    @settings(derandomize=True, max_examples=400, deadline=None)
    @given(some_bytes, some_bytes, st.booleans(), some_bytes)
    def test_what_comes_behind(
        self, prefix: bytes, after: bytes, descending: bool, key: bytes
    ) -> None:
        if key:
            rest = behind(with_prefix(prefix), after, descending)
            wanted = key.startswith(prefix) and (key < after if descending else key > after)
            self.assertEqual(covered(rest, key), wanted)

    def test_ends_that_mean_something_else_to_the_store(self) -> None:
        """A zero byte is no end there; nobody who names it as an end wants everything."""
        self.assertEqual(span(None, None, EVERY_KEY, "This"), NOTHING)
        self.assertEqual(span(None, b"", EVERY_KEY, "This"), NOTHING)
        self.assertEqual(up_to(b"b", b"a"), NOTHING)
        self.assertEqual(span(None, b"", None, "This"), (FIRST_KEY, EVERY_KEY))
        with self.assertRaises(BadRequest):
            span(None, b"a", b"", "This")


class Listings(WebCase):
    def test_conditions_are_for_one_key(self) -> None:
        """Of a listing or a watch there is no tag that could match."""
        for target in (b"/db/", b"/db/?watch", b"/db/k?watch", b"/db/k?wait=5"):
            self.assertRefused(self.ask("GET", target, if_match='"5"'), "one key")
            self.assertRefused(self.ask("GET", target, if_none_match='"5"'), "one key")

    def query(self, query: bytes) -> Range:
        """What the store is asked for."""
        self.ask("GET", b"/db/?" + query, outcome=EMPTY)
        (_, found, max_staleness_s) = self.asked()
        self.assertEqual(max_staleness_s, LINEARIZABLE)
        assert isinstance(found, Range)
        return found

    def test_what_is_asked_for(self) -> None:
        for query, key, range_end in (
            (b"", FIRST_KEY, EVERY_KEY),
            (b"prefix=", FIRST_KEY, EVERY_KEY),
            (b"prefix=a%2Fb", b"a/b", b"a/c"),
            (b"prefix=%ff", b"\xff", EVERY_KEY),
            (b"start=a", b"a", EVERY_KEY),
            (b"start=a&end=c", b"a", b"c"),
            (b"end=c", FIRST_KEY, b"c"),
            (b"start=c&end=a", *NOTHING),
            (b"end=%00", *NOTHING),
            (b"prefix=a&after=ab", b"ab\0", b"b"),
            (b"prefix=a&after=ab&order=desc", b"a", b"ab"),
            (b"after=", FIRST_KEY, EVERY_KEY),
        ):
            found = self.query(query)
            self.assertEqual((found.key, found.range_end), (key, range_end), query)
            self.assertEqual(found.limit, LIMIT)
        self.assertEqual(
            self.query(b"limit=10000&order=desc&keys_only&count_only=true&revision=9"),
            Range(FIRST_KEY, EVERY_KEY, 9, 10_000, True, True, descending=True),
        )

    def test_how_fresh(self) -> None:
        for query, expected in ((b"consistency=local", LOCAL), (b"max_staleness_ms=20", 0.02)):
            self.ask("GET", b"/db/?" + query, outcome=EMPTY)
            self.assertEqual(self.asked()[2], expected)

    def test_a_page(self) -> None:
        result = RangeResult(41, 2, False, [kv(b"a"), KeyValue(b"\xff", b"\xfe", 2, 6, 1, 9)])
        for method in ("GET", "HEAD"):
            answer = self.ask(method, b"/db/", outcome=result)
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.headers, {"Cache-Control": "no-cache"})
            self.assertEqual(
                answer.json(),
                {
                    "revision": 41,
                    "count": 2,
                    "more": False,
                    "kvs": [
                        {
                            "key": "a",
                            "value": "v",
                            "create_revision": 2,
                            "mod_revision": 5,
                            "version": 3,
                        },
                        {
                            "key_base64": "/w==",
                            "value_base64": "/g==",
                            "create_revision": 2,
                            "mod_revision": 6,
                            "version": 1,
                            "lease": "0000000000000009",
                        },
                    ],
                },
            )
        self.assertEqual(
            self.ask("GET", b"/db/", outcome=EMPTY).body,
            b'{"revision":41,"count":0,"more":false,"kvs":[]}\n',
        )

    def test_keys_only(self) -> None:
        value = self.ask(
            "GET", b"/db/?keys_only", outcome=RangeResult(41, 1, False, [kv(b"a")])
        )
        self.assertEqual(
            value.json()["kvs"],
            [{"key": "a", "create_revision": 2, "mod_revision": 5, "version": 3}],
        )

    def test_the_past_is_shown_as_such(self) -> None:
        """`revision` is the one that is shown, so that a watch can go on behind it."""
        value = self.ask("GET", b"/db/?revision=7", outcome=RangeResult(41, 0, False, []))
        self.assertEqual(value.json()["revision"], 7)

    def test_pages(self) -> None:
        """The next one is of the same range, in the same order, of the same revision."""
        result = RangeResult(41, 5, True, [kv(b"a"), kv(b"a/\xff>")])
        answer = self.ask(
            "GET", b"/db/?prefix=a&limit=2&keys_only&consistency=local", outcome=result
        )
        following = (
            "/db/?prefix=a&limit=2&keys_only&consistency=local&revision=41&after=a%2F%FF%3E"
        )
        self.assertEqual(answer.json()["next"], following)
        self.assertTrue(answer.json()["more"])
        self.assertEqual(answer.headers["Link"], f'<{following}>; rel="next"')
        self.asked()
        self.database.outcome = RangeResult(45, 3, True, [kv(b"b")])
        answer = self.ask("GET", following.encode(), outcome=self.database.outcome)
        (_, query, max_staleness_s) = self.asked()
        self.assertEqual(max_staleness_s, LOCAL)
        self.assertEqual(query, Range(b"a/\xff>\0", b"b", 41, 2, True))
        # Still the revision of the first.
        self.assertTrue(answer.json()["next"].endswith("&revision=41&after=b"))

    def test_the_next_page_can_be_asked_for(self) -> None:
        """However long the keys are; a key has at most 4 KiB."""
        longest = "%FF" * 4096
        target = f"/db/?start={longest}&end={longest}&limit=10000&order=desc&keys_only=false"
        result = RangeResult(2**63 - 1, 5, True, [kv(b"\xff" * 4096)])
        following = self.ask("GET", target.encode(), outcome=result).json()["next"]
        self.assertLess(len(following), MAX_TARGET_BYTES)

    def test_another_order(self) -> None:
        """Which has no pages."""
        for name, number in (("key", 0), ("value", 1), ("version", 2), ("create_revision", 3),
                             ("mod_revision", 4)):  # fmt: skip
            query = self.query(f"sort={name}&order=desc&limit=1".encode())
            self.assertEqual((query.sort_by, query.descending), (number, True))
        result = RangeResult(41, 5, True, [kv(b"a")])
        answer = self.ask("GET", b"/db/?sort=version&limit=1", outcome=result)
        self.assertTrue(answer.json()["more"])
        self.assertNotIn("next", answer.json())
        self.assertNotIn("Link", answer.headers)
        for query_string in (b"sort=version&after=a", b"sort=lease", b"sort=", b"sort"):
            self.assertRefused(self.ask("GET", b"/db/?" + query_string))

    def test_how_many_and_no_more(self) -> None:
        value = self.ask("GET", b"/db/?count_only", outcome=RangeResult(41, 7, True, [])).json()
        self.assertEqual(value, {"revision": 41, "count": 7, "more": False, "kvs": []})

    def test_other_parameters(self) -> None:
        for query in (
            b"prefix",
            b"prefix=a&start=b",
            b"prefix=a&end=b",
            b"start=a&end=",
            b"prefix=a+b",
            b"limit=0",
            b"limit=10001",
            b"limit=",
            b"order=up",
            b"keys_only=1",
            b"revision=0",
            b"key=a",
            b"prefix=%4",
        ):
            self.assertRefused(self.ask("GET", b"/db/?" + query))
        self.assertRefused(self.ask("GET", b"/db/?prefix=a+b"), "%2B or %20")

    def test_what_cannot_be_read(self) -> None:
        answer = self.ask("GET", b"/db/?revision=3", outcome=Compacted("Gone.", 7))
        self.assertError(answer, 410, "compacted", "compacted_revision")
        self.assertEqual(answer.json()["compacted_revision"], 7)
        answer = self.ask("GET", b"/db/?revision=99", outcome=FutureRevision("Not yet.", 41))
        self.assertError(answer, 400, "future_revision", "revision")
        self.assertEqual(answer.json()["revision"], 41)


class LongListings(WebCase):
    """They are made while the client takes them."""

    def result(self, count: int, value: bytes = b"v" * 200) -> RangeResult:
        kvs = [kv(b"%06d" % i, i + 2, value) for i in range(count)]
        return RangeResult(count + 2, count, False, kvs)

    def test_all_of_it(self) -> None:
        for count in (1, SLICE_RECORDS, SLICE_RECORDS + 1, 3000):
            value: Any = self.ask("GET", b"/db/", outcome=self.result(count)).json()
            self.assertEqual([x["mod_revision"] for x in value["kvs"]], [*range(2, count + 2)])

    def test_as_there_is_room(self) -> None:
        self.database.outcome = self.result(5000)
        request = FakeRequest("GET", b"/db/", patient=False)
        self.routes.handle(request)
        sink = request.sink
        self.assertEqual(len(sink.pieces), 1)
        self.assertLess(len(sink.pieces[0]), 300_000)
        assert request.source is not None
        turns = 0
        while not sink.over:
            sink.room = 1
            request.source.resume()
            turns += 1
        self.assertGreater(turns, 5)
        self.assertEqual(sink.over, "finished")
        self.assertEqual(len(json.loads(b"".join(sink.pieces))["kvs"]), 5000)

    def test_a_server_that_stops_finishes_it(self) -> None:
        self.database.outcome = self.result(5000)
        request = FakeRequest("GET", b"/db/", patient=False)
        self.routes.handle(request)
        assert request.source is not None
        request.source.stop(True)
        self.assertEqual(request.sink.over, "finished")
        self.assertEqual(len(json.loads(b"".join(request.sink.pieces))["kvs"]), 5000)

    def test_a_client_that_is_gone(self) -> None:
        self.database.outcome = self.result(5000)
        request = FakeRequest("GET", b"/db/", patient=False)
        self.routes.handle(request)
        assert request.source is not None
        request.source.stop(False)
        self.assertEqual((request.sink.over, len(request.sink.pieces)), ("", 1))

    def test_head(self) -> None:
        request = FakeRequest("HEAD", b"/db/")
        self.database.outcome = self.result(5000)
        self.routes.handle(request)
        self.assertEqual(request.answer().status, 200)
        self.assertEqual(request.sink.pieces, [])

    @settings(derandomize=True, max_examples=30, deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=9), max_size=9), st.binary(max_size=9))
    def test_any_bytes_come_through(self, keys: list[bytes], value: bytes) -> None:
        result = RangeResult(41, len(keys), False, [kv(key, 5, value) for key in keys])
        found = self.ask("GET", b"/db/", outcome=result).json()["kvs"]

        def octets(record: Any, name: str) -> bytes:
            if name in record:
                return str(record[name]).encode()
            return b64decode(record[f"{name}_base64"], validate=True)

        self.assertEqual([octets(record, "key") for record in found], keys)
        self.assertEqual({octets(record, "value") for record in found} - {value}, set())


class Deletes(WebCase):
    def test_a_range(self) -> None:
        for query, key, range_end in (
            (b"prefix=a", b"a", b"b"),
            (b"prefix=", FIRST_KEY, EVERY_KEY),
            (b"start=a&end=c", b"a", b"c"),
            (b"end=%00", *NOTHING),
        ):
            answer = self.ask("DELETE", b"/db/?" + query, outcome=DeleteResult(42, 3))
            self.assertEqual(self.asked(), ("change", DeleteRange(key, range_end)))
            self.assertEqual(answer.body, b'{"deleted":3,"revision":42}\n')
        answer = self.ask("DELETE", b"/db/?prefix=a", outcome=DeleteResult(42, 0))
        self.assertEqual((answer.status, answer.json()["deleted"]), (200, 0))

    def test_it_must_be_named(self) -> None:
        for target in (b"/db/", b"/db/?"):
            self.assertRefused(self.ask("DELETE", target), "?prefix=")

    def test_other_parameters(self) -> None:
        """What a listing has may look, to a hasty eye, as if it bounded a delete."""
        for query in (b"prefix=a&limit=1", b"prefix=a&after=b", b"prefix", b"prefx=a",
                      b"prefix=a&prefix=b", b"prefix=a&prev", b"prefix=a+"):  # fmt: skip
            self.assertRefused(self.ask("DELETE", b"/db/?" + query))

    def test_conditions_are_for_one_key(self) -> None:
        for name in ("if_match", "if_none_match"):
            self.assertRefused(self.ask("DELETE", b"/db/?prefix=", **{name: "*"}))

    def test_retries(self) -> None:
        target = b"/db/?prefix=a"
        self.ask("DELETE", target, outcome=DeleteResult(42, 3), idempotency_key="x")
        self.assertEqual(self.asked()[2], retry_of(b"x", "DELETE", target, b""))

    def test_refusals(self) -> None:
        answer = self.ask("DELETE", b"/db/?prefix=a", outcome=TooLarge("Too much."))
        self.assertError(answer, 413, "too_large")

    def test_other_methods(self) -> None:
        for method in ("PUT", "POST", "PATCH"):
            answer = self.ask(method, b"/db/")
            self.assertError(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], "GET, HEAD, DELETE, OPTIONS")
        self.assertEqual(self.ask("OPTIONS", b"/db/").status, 204)
