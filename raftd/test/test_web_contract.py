"""
`/openapi.json` against the handlers, in both directions.

Every answer in any test of the web face is looked up in the document
(`raftd.test.contract`).  Here, every status that is documented is produced,
and every parameter that is documented is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from twisted.internet.defer import fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import Configuration
from raftd.errors import (
    ChangeRefused,
    Compacted,
    IdempotencyKeyReused,
    IdempotencyTableFull,
    LeaseExists,
    LeaseNotFound,
    OutcomeUnknown,
    QuotaReached,
    RaftdError,
)
from raftd.kv.interfaces import LeaseStatus
from raftd.kv.results import (
    CompactResult,
    DeleteResult,
    KeyValue,
    LeaseResult,
    PutResult,
    RangeResult,
    RevokeResult,
    TransactionResult,
)
from raftd.test.contract import DOCUMENT, PATHS, resolved, template, violations
from raftd.test.webs import ME, OTHER, WebCase
from raftd.web import db, lease, ranges, spans, watch
from raftd.web.openapi import EVERYWHERE

LEASE = b"/lease/00000000000000ff"
RECORD = KeyValue(b"k", b"v", 2, 5, 3)
NO_PREVIOUS = TransactionResult(9, False, [RangeResult(9, 0, False, [])])

GONE = Compacted("Gone.", 7)
NO_LEASE = LeaseNotFound("None.")
#: What any write may come to.
WRITES: list[tuple[int, RaftdError]] = [
    (422, IdempotencyKeyReused("Reused.")),
    (429, IdempotencyTableFull("Full.")),
    (504, OutcomeUnknown("Perhaps.")),
]


class Case(NamedTuple):
    """A request, what the database or the node answers, and the status."""

    method: str
    target: bytes
    status: int
    outcome: Any = None
    body: object = b""
    headers: Mapping[str, str] = MappingProxyType({})


def of_write(method: str, target: bytes, body: object, *good: tuple[int, object]) -> list[Case]:
    return [
        *(Case(method, target, s, outcome, body) for s, outcome in (*good, *WRITES)),
        Case(method, target, 415, None, body, {"content_encoding": "gzip"}),
    ]


def of_key(method: str) -> list[Case]:
    condition = {"if_match": '"5"'}
    return [
        *of_write(
            method,
            b"/db/k",
            b"v",
            (200, PutResult(9, False)),
            (201, PutResult(9, True)),
            (404, NO_LEASE),
            (507, QuotaReached("Full.")),
        ),
        Case(method, b"/db/k", 412, NO_PREVIOUS, b"v", condition),
    ]


STORE = [
    *(
        case
        for method in ("GET", "HEAD")
        for case in (
            Case(method, b"/db/k", 200, RECORD),
            Case(method, b"/db/k", 304, RECORD, b"", {"if_none_match": '"5"'}),
            Case(method, b"/db/k", 404),
            Case(method, b"/db/k?revision=3", 410, GONE),
            Case(method, b"/db/k", 412, RECORD, b"", {"if_match": '"4"'}),
            Case(method, b"/db/", 200, RangeResult(9, 1, False, [RECORD])),
            Case(method, b"/db/?revision=3", 410, GONE),
            Case(method, b"/lease", 200, [LeaseResult(9, 1000)]),
            Case(method, LEASE, 200, LeaseStatus(255, 1000, 500, [b"k"], False)),
            Case(method, LEASE, 404, NO_LEASE),
            Case(method, b"/snapshot", 200, (9, iter([b"a"]))),
            Case(method, b"/status", 200),
            Case(method, b"/metrics", 200),
            Case(method, b"/openapi.json", 200),
        )
    ),
    *of_key("PUT"),
    *of_key("POST"),
    *of_write("DELETE", b"/db/k", b"", (200, DeleteResult(9, 1)), (404, DeleteResult(9, 0))),
    Case("DELETE", b"/db/k", 412, NO_PREVIOUS, b"", {"if_match": '"5"'}),
    *of_write("DELETE", b"/db/?prefix=a", b"", (200, DeleteResult(9, 2))),
    *of_write(
        "POST",
        b"/txn",
        {},
        (200, TransactionResult(9, True, [])),
        (404, NO_LEASE),
        (410, GONE),
        (507, QuotaReached("Full.")),
    ),
    *of_write(
        "POST",
        b"/lease",
        {"ttl": 5},
        (201, LeaseResult(9, 5000)),
        (409, LeaseExists("There is one.")),
        (507, QuotaReached("Full.")),
    ),
    Case("POST", LEASE + b"/keepalive", 200, LeaseResult(255, 5000)),
    Case("POST", LEASE + b"/keepalive", 404, NO_LEASE),
    *of_write("DELETE", LEASE, b"", (200, RevokeResult(9, 1)), (404, NO_LEASE)),
    *of_write("POST", b"/compact", {"revision": 9}, (200, CompactResult(9)), (410, GONE)),
]

CHANGE = {"changes": [{"promote": OTHER.name}]}
MEMBER = b"/members/" + OTHER.name.encode()
CLUSTER = [
    *(Case(method, b"/members", 200) for method in ("GET", "HEAD")),
    *(Case(method, MEMBER, 200) for method in ("GET", "HEAD")),
    *(Case(method, b"/members/localhost:9", 404) for method in ("GET", "HEAD")),
    *(
        case
        for method, target, unknown, body in (
            ("POST", b"/members", b"/members", CHANGE),
            ("PATCH", MEMBER, b"/members/localhost:9", {"role": "voter"}),
            ("DELETE", MEMBER, b"/members/localhost:9", b""),
            ("POST", b"/leader", b"/leader", {"to": OTHER.name}),
        )
        for case in (
            Case(method, target, 200, None, body),
            Case(method, target, 409, ChangeRefused("No."), body),
            Case(method, target, 504, OutcomeUnknown("Perhaps."), body),
            Case(method, unknown, 404, None, "unknown" if unknown == target else body),
        )
    ),
]
#: With a name in the body that is nobody's.
UNKNOWN = {
    b"/members": {"changes": [{"promote": "localhost:9"}]},
    b"/leader": {"to": "localhost:9"},
}


class Statuses(WebCase):
    def produced(self) -> dict[tuple[str, str], set[str]]:
        """By path and method; each is checked against the document by `ask`."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for case in (*STORE, *CLUSTER):
            self.in_cluster(case.outcome)
            body = UNKNOWN[case.target] if case.body == "unknown" else case.body
            outcome = case.outcome
            answer = self.ask(case.method, case.target, body, outcome, **case.headers)
            self.assertEqual(answer.status, case.status, (case, answer.body))
            path = template(case.target.partition(b"?")[0].decode())
            assert path is not None
            found[path, case.method.lower()].add(str(case.status))
        for path in PATHS:
            target = path.replace("{key}", "k").replace("{name}", ME.name)
            target = target.replace("{id}", "00000000000000ff")
            self.assertEqual(self.ask("OPTIONS", target.encode()).status, 204)
            found[path, "options"].add("204")
        return found

    def in_cluster(self, outcome: object) -> None:
        """What the node says to changes of the cluster."""
        configuration = Configuration(voters=(ME, OTHER))

        def change_membership(*_: object) -> Any:
            return fail(outcome) if isinstance(outcome, RaftdError) else succeed(configuration)

        self.node.change_membership = change_membership
        self.node.transfer = change_membership
        self.node.read = lambda done: done(None)

    def test_every_status_that_is_documented_comes(self) -> None:
        found = self.produced()
        # Long polls that are over are in test_watches, errors that anything
        # may meet in test_web and test_http1.
        elsewhere = {*EVERYWHERE.split()}
        for path, item in PATHS.items():
            for method, operation in item.items():
                if method == "parameters":
                    continue
                missing = set(operation["responses"]) - found[path, method] - elsewhere
                if path in ("/db/", "/db/{key}") and method in ("get", "head"):
                    missing -= {"204"}
                self.assertEqual(missing, set(), f"{method} {path}")


class Documented(SynchronousTestCase):
    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            (path, method, operation)
            for path, item in PATHS.items()
            for method, operation in item.items()
            if method != "parameters"
        ]

    def names(self, path: str, method: str, place: str = "query") -> list[str]:
        wanted = PATHS[path][method].get("parameters", [])
        return [p["name"] for p in map(resolved, wanted) if p["in"] == place]

    def test_the_parameters_are_those_that_are_taken(self) -> None:
        reads = {*db.READ_PARAMETERS, *watch.PARAMETERS}
        lists = {*ranges.LIST_PARAMETERS, *watch.PARAMETERS}
        for path, method, expected in (
            ("/db/{key}", "get", reads),
            ("/db/{key}", "put", set(db.PUT_PARAMETERS)),
            ("/db/{key}", "post", set(db.PUT_PARAMETERS)),
            ("/db/{key}", "delete", set(db.DELETE_PARAMETERS)),
            ("/db/", "get", lists),
            ("/db/", "delete", set(spans.PARAMETERS)),
            ("/lease", "get", set(lease.LIST_PARAMETERS)),
            ("/members/{name}", "patch", {"force"}),
            ("/members/{name}", "delete", {"force"}),
        ):
            names = self.names(path, method)
            self.assertEqual(len(names), len(set(names)))
            self.assertEqual(set(names), expected, f"{method} {path}")
        others = {
            (path, method)
            for path, method, _ in self.operations()
            if self.names(path, method) and method != "head"
        }
        self.assertEqual(len(others), 9)

    def test_writes_of_the_store_take_idempotency_keys(self) -> None:
        found = {
            (path, method)
            for path, method, _ in self.operations()
            if "Idempotency-Key" in self.names(path, method, "header")
        }
        expected = {("/db/{key}", "put"), ("/db/{key}", "post"), ("/db/{key}", "delete"),
                    ("/db/", "delete"), ("/txn", "post"), ("/lease", "post"),
                    ("/lease/{id}", "delete"), ("/compact", "post")}  # fmt: skip
        self.assertEqual(found, expected)

    def test_every_operation_has_a_name_and_a_sentence(self) -> None:
        names = [operation["operationId"] for _, _, operation in self.operations()]
        self.assertEqual(len(names), len(set(names)))
        for path, method, operation in self.operations():
            self.assertTrue(operation["summary"].endswith("."), f"{method} {path}")

    def test_every_part_is_used(self) -> None:
        used = set(references(DOCUMENT))
        there = {
            f"#/components/{kind}/{name}"
            for kind, parts in DOCUMENT["components"].items()
            for name in parts
        }
        self.assertEqual(used - there, set(), "they lead nowhere")
        self.assertEqual(there - used, set(), "nobody leads there")

    def test_examples_are_right(self) -> None:
        for schema, example in examples(DOCUMENT):
            self.assertEqual(list(violations(example, schema, "the example")), [])

    def test_the_judge_bites(self) -> None:
        schemas = DOCUMENT["components"]["schemas"]
        good = {"key": "a", "create_revision": 2, "mod_revision": 2, "version": 1}
        self.assertEqual(list(violations(good, schemas["Record"], "it")), [])
        wrong: list[object] = [
            {**good, "key_base64": "YQ=="},
            {**good, "version": 0},
            {**good, "version": True},
            {**good, "version": "1"},
            {**good, "lease": "ff"},
            {**good, "more": 1},
            {"key": "a"},
            [],
        ]
        for bad in wrong:
            self.assertNotEqual(list(violations(bad, schemas["Record"], "it")), [], bad)


def references(value: Any) -> list[str]:
    """Every `$ref` inside."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for inside in value.values() for ref in references(inside)]
    if isinstance(value, list):
        return [ref for inside in value for ref in references(inside)]
    return []


def examples(value: Any) -> list[tuple[Any, Any]]:
    """Every schema with an example of it."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        found += [(value, example) for example in value.get("examples", ())]
        for inside in value.values():
            found += examples(inside)
    elif isinstance(value, list):
        for inside in value:
            found += examples(inside)
    return found
