"""The store as a whole over HTTP: compaction, backups, and figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from raftd.errors import Compacted, FutureRevision, NoLeader, Overloaded
from raftd.idempotency import retry_of
from raftd.interfaces import MemberStatus, NodeStatus
from raftd.kv.interfaces import LINEARIZABLE, DigestStatus
from raftd.kv.operations import Compact, Range
from raftd.kv.results import CompactResult, RangeResult
from raftd.test.webs import ME, OTHER, FakeRequest, WebCase


class Compactions(WebCase):
    def test_to_a_revision(self) -> None:
        answer = self.ask("POST", b"/compact", {"revision": 9}, CompactResult(9))
        self.assertEqual(self.asked(), ("change", Compact(9)))
        self.assertEqual(answer.body, b'{"compacted_revision":9}\n')

    def test_to_the_last_revisions(self) -> None:
        """As of a read of the whole cluster, for this node may be behind."""
        self.database.outcomes["range"] = RangeResult(50, 0, False, [])
        for keep, revision in ((1, 50), (10, 41), (43, 8)):
            answer = self.ask("POST", b"/compact", {"keep": keep}, CompactResult(revision))
            read, change = self.database.calls
            self.database.calls = []
            self.assertEqual(read, ("range", Range(b"\0", keys_only=True), LINEARIZABLE))
            self.assertEqual(change, ("change", Compact(revision)))
            self.assertEqual(answer.json(), {"compacted_revision": revision})

    def test_there_are_no_more_than_are_to_be_kept(self) -> None:
        self.database.outcomes["range"] = RangeResult(50, 0, False, [])
        for keep in (44, 50, 10**9):
            answer = self.ask("POST", b"/compact", {"keep": keep})
            self.assertEqual((answer.status, answer.json()), (200, {"compacted_revision": 7}))
        self.assertEqual({call[0] for call in self.database.calls}, {"range"})

    def test_failures(self) -> None:
        answer = self.ask("POST", b"/compact", {"revision": 3}, Compacted("Gone.", 7))
        self.assertError(answer, 410, "compacted", "compacted_revision")
        answer = self.ask("POST", b"/compact", {"revision": 99}, FutureRevision("No.", 41))
        self.assertError(answer, 400, "future_revision", "revision")
        answer = self.ask("POST", b"/compact", {"keep": 3}, NoLeader("None."))
        self.assertError(answer, 503, "no_leader")

    def test_bodies(self) -> None:
        for body in (b"", {}, {"revision": 0}, {"keep": 0}, {"revision": "9"}, [9],
                     {"revision": 9, "keep": 9}, {"revision": 2**63}, {"keep": True},
                     {"rev": 9}):  # fmt: skip
            self.assertRefused(self.ask("POST", b"/compact", body))
        self.assertRefused(self.ask("POST", b"/compact?revision=9", {"revision": 9}))
        self.assertRefused(self.ask("POST", b"/compact", {"revision": 9}, if_match="*"))

    def test_retries(self) -> None:
        body = b'{"revision":9}'
        self.ask("POST", b"/compact", body, CompactResult(9), idempotency_key="x")
        self.assertEqual(self.asked()[2], retry_of(b"x", "POST", b"/compact", body))

    def test_methods(self) -> None:
        answer = self.ask("GET", b"/compact")
        self.assertError(answer, 405, "method_not_allowed")
        self.assertEqual(self.ask("OPTIONS", b"/compact").headers, {"Allow": "POST, OPTIONS"})


class Slices:
    """Some slices, that know whether they were given up."""

    def __init__(self, slices: list[bytes], error: Exception | None = None) -> None:
        self.slices = slices
        self.error = error
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.slices:
            return self.slices.pop(0)
        raise self.error or StopIteration

    def close(self) -> None:
        self.closed = True


class Backups(WebCase):
    def begun(self, slices: Slices, method: str = "GET") -> FakeRequest:
        request = FakeRequest(method, b"/snapshot", patient=False)
        self.database.outcome = (17, slices)
        self.routes.handle(request)
        return request

    def test_all_of_it(self) -> None:
        answer = self.ask("GET", b"/snapshot", outcome=(17, Slices([b"a", b"", b"bc"])))
        self.assertEqual(self.asked(), ("backup",))
        self.assertEqual(
            (answer.status, answer.body, answer.content_type),
            (200, b"abc", "application/octet-stream"),
        )
        self.assertEqual(
            answer.headers,
            {
                "Raftd-Revision": "17",
                "Content-Disposition": 'attachment; filename="raftd-17.backup"',
                "Cache-Control": "no-cache",
                "X-Content-Type-Options": "nosniff",
            },
        )

    def test_no_more_is_made_than_there_is_room_for(self) -> None:
        slices = Slices([b"a", b"b", b"c"])
        request = self.begun(slices)
        assert request.source is not None
        self.assertEqual((request.sink.pieces, len(slices.slices)), ([b"a"], 2))
        request.sink.room = 5
        request.source.resume()
        self.assertEqual(
            (request.sink.pieces, request.sink.over), ([b"a", b"b", b"c"], "finished")
        )

    def test_whoever_stops_takes_no_more(self) -> None:
        """Also the server: one that was broken off must not look complete."""
        for patient in (True, False):
            slices = Slices([b"a", b"b", b"c"])
            request = self.begun(slices)
            assert request.source is not None
            request.source.stop(patient)
            self.assertEqual((request.sink.over, slices.closed), ("", True))

    def test_head(self) -> None:
        slices = Slices([b"a"])
        request = self.begun(slices, "HEAD")
        self.assertEqual(request.answer().headers["Raftd-Revision"], "17")
        self.assertEqual((request.sink.pieces, slices.closed), ([], True))

    def test_one_that_cannot_be_made(self) -> None:
        slices = Slices([b"a"], ValueError("a defect"))
        request = self.begun(slices)
        assert request.source is not None
        request.sink.room = 1
        request.source.resume()
        self.assertEqual(request.sink.over, "aborted")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_failures(self) -> None:
        answer = self.ask("GET", b"/snapshot", outcome=Overloaded("Later."))
        self.assertError(answer, 503, "overloaded")
        self.database.calls = []
        self.assertRefused(self.ask("GET", b"/snapshot?x"))
        self.assertError(self.ask("POST", b"/snapshot"), 405, "method_not_allowed")
        self.assertEqual(self.ask("OPTIONS", b"/snapshot").status, 204)


class Metrics(WebCase):
    def figures(self) -> dict[str, str]:
        answer = self.ask("GET", b"/metrics")
        self.assertEqual(
            (answer.status, answer.content_type),
            (200, "text/plain; version=0.0.4; charset=utf-8"),
        )
        lines = answer.body.decode().split("\n")
        self.assertEqual(lines.pop(), "")
        found: dict[str, str] = {}
        about = ""
        for line in lines:
            if line.startswith("# HELP "):
                about = line.split()[2]
                self.assertTrue(line.endswith("."), line)
            elif line.startswith("#"):
                self.assertEqual(line, f"# TYPE {about} gauge")
            else:
                name, value = line.rsplit(" ", 1)
                self.assertEqual(name.partition("{")[0], about)
                self.assertNotIn(name, found)
                float(value)
                found[name.removeprefix("raftd_")] = value
        return found

    def test_of_a_leader(self) -> None:
        figures = self.figures()
        for name, value in {
            'info{version="26.11.0",name="localhost:4001",cluster_id="0000000000000abc"}': "1",
            'role{role="leader"}': "1",
            'role{role="follower"}': "0",
            "has_leader": "1",
            "term": "7",
            "log_first_index": "3",
            "log_last_index": "20",
            "commit_index": "19",
            "applied_index": "18",
            "snapshot_index": "2",
            "uptime_seconds": "12.34567",
            'members{role="voter"}': "1",
            'members{role="learner"}': "1",
            'member_match_index{member="localhost:4002"}': "5",
            'member_last_contact_seconds{member="localhost:4002"}': "0.03",
            "store_revision": "41",
            "store_compacted_revision": "7",
            "store_keys": "3",
            "store_size_bytes": "1234",
            "store_quota_bytes": "1000000000",
            "store_leases": "2",
            "watches": "1",
            "idempotency_keys": "5",
            "digest_agreed_index": "30",
            "digest_differs": "0",
        }.items():
            self.assertEqual(figures[name], value, name)
        self.assertNotIn('member_last_contact_seconds{member="localhost:4001"}', figures)

    def test_of_others(self) -> None:
        self.node.now = NodeStatus(
            ME, 1, "pre-candidate", 1, None, 1, 0, 0, 0, 0, 0.0, (MemberStatus(OTHER, "voter"),)
        )
        figures = self.figures()
        self.assertEqual(figures['role{role="pre-candidate"}'], "1")
        self.assertEqual(figures["has_leader"], "0")
        self.assertEqual([name for name in figures if name.startswith("member_")], [])

    def test_a_state_that_differs(self) -> None:
        self.database.now = msgspec.structs.replace(
            self.database.now, digest=DigestStatus(30, 60), revision=2**60
        )
        figures = self.figures()
        self.assertEqual(figures["digest_differs"], "1")
        self.assertEqual(figures["digest_differs_index"], "60")
        self.assertEqual(figures["store_revision"], str(2**60))

    def test_names_are_quoted(self) -> None:
        self.node.now = msgspec.structs.replace(
            self.node.now, member=msgspec.structs.replace(ME, name='a"b\\c\nd')
        )
        (name,) = [name for name in self.figures() if name.startswith("info")]
        self.assertIn(r'name="a\"b\\c\nd"', name)

    def test_the_request(self) -> None:
        self.assertRefused(self.ask("GET", b"/metrics?x"))
        self.assertError(self.ask("PUT", b"/metrics"), 405, "method_not_allowed")
        self.assertEqual(self.ask("OPTIONS", b"/metrics").status, 204)
        self.assertEqual(self.ask("HEAD", b"/metrics").status, 200)


class Documents(WebCase):
    def test_it_is_answered_also_before_there_is_a_cluster(self) -> None:
        for site in (self.routes.site, None):
            self.routes.site = site
            answer = self.ask("GET", b"/openapi.json")
            self.assertEqual((answer.status, answer.content_type), (200, "application/json"))
            document = answer.json()
            self.assertEqual(document["openapi"], "3.1.0")
            self.assertEqual(document["info"]["version"], "26.11.0")
            # For people, too.
            self.assertGreater(answer.body.count(b"\n"), 1000)

    def test_the_request(self) -> None:
        self.assertRefused(self.ask("GET", b"/openapi.json?x"))
        self.assertError(self.ask("PUT", b"/openapi.json"), 405, "method_not_allowed")
        self.assertEqual(self.ask("OPTIONS", b"/openapi.json").status, 204)


class Statuses(WebCase):
    def status(self) -> dict[str, Any]:
        answer = self.ask("GET", b"/status")
        self.assertEqual((answer.status, answer.content_type), (200, "application/json"))
        self.assertEqual(answer.headers, {"Cache-Control": "no-cache"})
        return cast("dict[str, Any]", answer.json())

    def test_of_a_leader(self) -> None:
        self.assertEqual(
            self.status(),
            {
                "name": "localhost:4001",
                "member_id": "0000000000001234",
                "cluster_id": "0000000000000abc",
                "version": "26.11.0",
                "role": "leader",
                "term": 7,
                "leader": "localhost:4001",
                "first_index": 3,
                "last_index": 20,
                "commit_index": 19,
                "applied_index": 18,
                "snapshot_index": 2,
                "revision": 41,
                "compacted_revision": 7,
                "keys": 3,
                "size_bytes": 1234,
                "quota_bytes": 1_000_000_000,
                "leases": 2,
                "watches": 1,
                "idempotency_keys": 5,
                "digest": {"agreed_index": 30, "differs_index": 0},
                "uptime_seconds": 12.346,
                "members": [
                    {
                        "name": "localhost:4001",
                        "id": "0000000000001234",
                        "role": "voter",
                        "match_index": 20,
                        "next_index": 21,
                        "last_contact_ms": None,
                    },
                    {
                        "name": "localhost:4002",
                        "id": "ffffffffffffffff",
                        "role": "learner",
                        "match_index": 5,
                        "next_index": 6,
                        "last_contact_ms": 30,
                    },
                ],
            },
        )

    def test_of_others(self) -> None:
        """Only a leader knows how far the members are."""
        for role, said in (
            ("follower", "follower"),
            ("learner", "learner"),
            ("candidate", "candidate"),
        ):
            self.node.now = NodeStatus(
                ME, 1, role, 1, None, 1, 0, 0, 0, 0, 0.0, (MemberStatus(OTHER, "voter"),)
            )
            status = self.status()
            self.assertEqual((status["role"], status["leader"]), (said, None))
            self.assertEqual(
                status["members"],
                [{"name": "localhost:4002", "id": "ffffffffffffffff", "role": "voter"}],
            )

    def test_parameters(self) -> None:
        self.assertError(self.ask("GET", b"/status?x=1"), 400, "bad_request")
