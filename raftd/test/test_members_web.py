"""What HTTP offers for the cluster itself: `/members` and `/leader`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import treq
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTCP, IReactorTime
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from twisted.web.client import HTTPConnectionPool
from zope.interface.verify import verifyObject

from raftd.core.membership import (
    MAX_CHANGES,
    Change,
    Configuration,
    Demote,
    Promote,
    Remove,
    Rename,
)
from raftd.core.messages import Member, MemberId
from raftd.errors import (
    BadRequest,
    ChangeInProgress,
    ChangeRefused,
    NameTaken,
    NoLeader,
    NoQuorum,
    NotCaughtUp,
    NotLeader,
    OutcomeUnknown,
    PeerUnreachable,
    RaftdError,
    Stopped,
    TransferFailed,
)
from raftd.interfaces import Done, INode, MemberStatus, NodeStatus
from raftd.net.http1 import HTTPFactory
from raftd.test.drivers import IdleNode
from raftd.test.webs import Answer, FakeDatabase, FakeRequest, WebCase
from raftd.web.bodies import MAX_JSON_BYTES
from raftd.web.routes import Routes, Site

A = Member(0xA, "localhost:4001")
B = Member(0xB, "localhost:4002")
C = Member(0xC, "[::1]:4003")

#: What the node answers to every change, unless a test wants something else.
RESULT = Configuration(voters=(B, C), learners=(A,), removed=(0xD,))
RESULT_JSON = {
    "members": [
        {"name": "[::1]:4003", "id": "000000000000000c", "role": "voter"},
        {"name": "localhost:4001", "id": "000000000000000a", "role": "learner"},
        {"name": "localhost:4002", "id": "000000000000000b", "role": "voter"},
    ]
}


def status(role: str, leader: Member | None, *members: MemberStatus) -> NodeStatus:
    return NodeStatus(A, 0xABC, role, 7, leader, 3, 20, 19, 18, 2, 12.3, members)


class FakeNode(IdleNode):
    """Remembers what it was asked, and answers what the test wants."""

    def __init__(self) -> None:
        self.now = status(
            "leader",
            A,
            MemberStatus(C, "learner", 5, 6, 30),
            MemberStatus(A, "voter", 20, 21, 0),
            MemberStatus(B, "voter", 19, 21, 7),
        )
        #: What it learns of members by a read.
        self.learned: NodeStatus | None = None
        self.read_outcome: RaftdError | None = None
        self.reads: list[Done[None]] | None = None
        self.asked: list[tuple[object, ...]] = []
        self.answer: Deferred[Any] | None = None

    def read(self, done: Done[None]) -> None:
        if self.reads is not None:
            self.reads.append(done)
            return
        if self.learned is not None:
            self.now = self.learned
        done(self.read_outcome)

    def change_membership(
        self, changes: Sequence[Change], force: bool
    ) -> Deferred[Configuration]:
        self.asked.append((*changes, force))
        return succeed(RESULT) if self.answer is None else self.answer

    def transfer(self, successor: MemberId | None) -> Deferred[None]:
        self.asked.append(("transfer", successor))
        return succeed(None) if self.answer is None else self.answer

    def status(self) -> NodeStatus:
        return self.now


class MembersCase(WebCase):
    def setUp(self) -> None:
        self.database = FakeDatabase()
        self.cluster = FakeNode()
        self.routes = Routes("26.11.0", Clock())
        self.routes.site = Site(self.cluster, self.database)

    def send(self, method: str, target: bytes, value: object = None) -> Answer:
        """With `value` as JSON, or as it is if it is bytes, or no body if it is None."""
        body = b"" if value is None else value
        return self.ask(
            method, target, body if isinstance(body, bytes) else json.dumps(body).encode()
        )

    def changed(self, method: str, target: bytes, value: object = None) -> tuple[object, ...]:
        """What the node was asked for by a request that succeeds."""
        answer = self.send(method, target, value)
        self.assertEqual((answer.status, answer.json()), (200, RESULT_JSON))
        (asked,) = self.cluster.asked
        self.cluster.asked = []
        return asked

    def assert_nothing_asked(self, method: str, target: bytes, value: object = None) -> None:
        """The request is refused with 400 before anybody hears of it."""
        answer = self.send(method, target, value)
        self.assertError(answer, 400, "bad_request")
        self.assertEqual(self.cluster.asked, [], value)


class Looking(MembersCase):
    def test_the_fake_is_what_it_stands_for(self) -> None:
        self.assertTrue(verifyObject(INode, self.cluster))

    def test_members(self) -> None:
        """As in /status, on a leader with what only it knows."""
        for method in ("GET", "HEAD"):
            answer = self.send(method, b"/members")
            self.assertEqual(
                (answer.status, answer.headers["Cache-Control"]), (200, "no-cache")
            )
            in_status = self.send("GET", b"/status").json()["members"]
            self.assertEqual(answer.json(), {"members": in_status})
            self.assertEqual(answer.json()["members"][0]["match_index"], 5)

    def test_members_elsewhere(self) -> None:
        """Without a leader too: that is when one wants to look."""
        self.cluster.now = status("follower", None, MemberStatus(A, "voter"))
        self.cluster.reads = []
        self.assertEqual(
            self.send("GET", b"/members").json(),
            {"members": [{"name": A.name, "id": "000000000000000a", "role": "voter"}]},
        )
        self.assertEqual(self.cluster.reads, [])

    def test_one_member(self) -> None:
        answer = self.send("GET", b"/members/localhost:4002")
        self.assertEqual(answer.status, 200)
        self.assertEqual(
            answer.json(),
            {
                "name": "localhost:4002",
                "id": "000000000000000b",
                "role": "voter",
                "match_index": 19,
                "next_index": 21,
                "last_contact_ms": 7,
            },
        )
        self.assertError(self.send("GET", b"/members/localhost:4009"), 404, "not_found")

    def test_methods(self) -> None:
        for target, allow, others in (
            (b"/members", "GET, HEAD, POST, OPTIONS", ("PUT", "PATCH", "DELETE", "TRACE")),
            (
                b"/members/localhost:4002",
                "GET, HEAD, PATCH, DELETE, OPTIONS",
                ("PUT", "POST", "TRACE"),
            ),
            (b"/leader", "POST, OPTIONS", ("GET", "HEAD", "PUT", "PATCH", "DELETE")),
        ):
            options = self.send("OPTIONS", target)
            self.assertEqual((options.status, options.headers), (204, {"Allow": allow}))
            for method in others:
                answer = self.send(method, target)
                self.assertError(answer, 405, "method_not_allowed")
                self.assertEqual(answer.headers["Allow"], allow)
        self.assertEqual(self.cluster.asked, [])

    def test_elsewhere(self) -> None:
        for path in (b"/member", b"/membersx", b"/leader/", b"/leaders", b"/Members"):
            self.assertError(self.send("GET", path), 404, "not_found")

    def test_before_there_is_a_cluster(self) -> None:
        self.routes.site = None
        for target in (b"/members", b"/members/a:1", b"/leader"):
            self.assertError(self.send("POST", target), 503, "not_ready")


class Changing(MembersCase):
    def test_several_changes_together(self) -> None:
        changes = [
            {"promote": C.name},
            {"demote": A.name},
            {"remove": B.name},
            {"rename": C.name, "to": "new.example:5003"},
        ]
        asked = self.changed("POST", b"/members", {"changes": changes, "force": True})
        expected = (
            Promote(C.id),
            Demote(A.id),
            Remove(B.id),
            Rename(C.id, "new.example:5003"),
            True,
        )
        self.assertEqual(asked, expected)
        for body in ({"changes": changes[:1]}, {"changes": changes[:1], "force": False}):
            self.assertEqual(self.changed("POST", b"/members", body), (Promote(C.id), False))

    def test_patch(self) -> None:
        for value, changes in (
            ({"role": "voter"}, (Promote(B.id),)),
            ({"role": "learner"}, (Demote(B.id),)),
            ({"name": "b.example:4002"}, (Rename(B.id, "b.example:4002"),)),
            (
                {"role": "voter", "name": "[::1]:9"},
                (Rename(B.id, "[::1]:9"), Promote(B.id)),
            ),
        ):
            for query, force in (
                (b"", False),
                (b"?force=true", True),
                (b"?force=false", False),
            ):
                asked = self.changed("PATCH", b"/members/localhost:4002" + query, value)
                self.assertEqual(asked, (*changes, force))

    def test_delete(self) -> None:
        target = b"/members/localhost:4002"
        self.assertEqual(self.changed("DELETE", target), (Remove(B.id), False))
        self.assertEqual(self.changed("DELETE", target + b"?force=true"), (Remove(B.id), True))
        # The very node that is asked may be the one.
        target = b"/members/localhost:4001"
        self.assertEqual(self.changed("DELETE", target), (Remove(A.id), False))

    def test_names_are_percent_decoded(self) -> None:
        for path in (b"[::1]:4003", b"%5B::1%5D:4003", b"%5b%3a%3a1%5d%3A%34003"):
            self.assertEqual(self.changed("DELETE", b"/members/" + path), (Remove(C.id), False))

    def test_somebody_unknown(self) -> None:
        """Nothing is done, also not for those who are known."""
        known = {"promote": C.name}
        for method, target, value in (
            ("DELETE", b"/members/localhost:4009", None),
            ("PATCH", b"/members/localhost:4009", {"role": "voter"}),
            ("DELETE", b"/members/a%2Fb", None),
            ("DELETE", b"/members/a/b", None),
            ("DELETE", b"/members/LOCALHOST:4001", None),
            ("POST", b"/members", {"changes": [known, {"remove": "localhost:4009"}]}),
            ("POST", b"/members", {"changes": [{"rename": "x", "to": "a:1"}]}),
            ("POST", b"/members", {"changes": [{"promote": "\ud800"}]}),
            ("POST", b"/leader", {"to": "localhost:4009"}),
        ):
            answer = self.send(method, target, value)
            self.assertError(answer, 404, "not_found")
            self.assertEqual(self.cluster.asked, [])

    def test_names_are_looked_up_as_of_now(self) -> None:
        """
        The node that is asked may be behind: B is gone there, its name has
        passed to somebody else, and a newcomer is not known yet.
        """
        heir, newcomer = Member(0xE, B.name), Member(0xF, "localhost:4005")
        self.cluster.learned = status(
            "follower",
            A,
            MemberStatus(A, "voter"),
            MemberStatus(heir, "learner"),
            MemberStatus(newcomer, "learner"),
        )
        behind = self.cluster.now
        self.assertEqual(
            self.changed("DELETE", b"/members/localhost:4002"), (Remove(heir.id), False)
        )
        self.cluster.now = behind
        asked = self.changed("PATCH", b"/members/localhost:4005", {"role": "voter"})
        self.assertEqual(asked, (Promote(newcomer.id), False))
        self.cluster.now = behind
        self.send("POST", b"/leader", {"to": B.name})
        self.assertEqual(self.cluster.asked, [("transfer", heir.id)])

    def test_answered_when_it_is_committed(self) -> None:
        answer: Deferred[Any] = Deferred()
        self.cluster.answer = answer
        self.cluster.reads = []
        request = FakeRequest("DELETE", b"/members/localhost:4002")
        self.routes.handle(request)
        self.assertEqual(self.cluster.asked, [])
        self.cluster.reads.pop()(None)
        self.assertEqual(self.cluster.asked, [(Remove(B.id), False)])
        self.assertEqual(request.answers, [])
        answer.callback(RESULT)
        self.assertEqual(request.answers[0].json(), RESULT_JSON)

    def test_the_members_of_a_joint_configuration_are_those_to_be(self) -> None:
        self.cluster.answer = succeed(
            Configuration(voters=(B,), outgoing_voters=(A, B), learners=(C,))
        )
        answer = self.send("DELETE", b"/members/localhost:4001").json()
        roles = [(member["name"], member["role"]) for member in answer["members"]]
        self.assertEqual(roles, [(C.name, "learner"), (B.name, "voter")])


class Leading(MembersCase):
    def test_transfer(self) -> None:
        for body, successor in (
            (None, None),
            ({}, None),
            (b" {} ", None),
            ({"to": B.name}, B.id),
            ({"to": C.name}, C.id),
        ):
            self.cluster.now = status("leader", A, *self.cluster.now.members)
            self.cluster.answer = Deferred()
            request = FakeRequest(
                "POST",
                b"/leader",
                body if isinstance(body, bytes) else json.dumps(body).encode() if body else b"",
            )
            self.routes.handle(request)
            self.assertEqual(self.cluster.asked.pop(), ("transfer", successor))
            self.assertEqual(request.answers, [])
            self.cluster.now = status("follower", B, *self.cluster.now.members)
            self.cluster.answer.callback(None)
            self.assertEqual(
                (request.answers[0].status, request.answers[0].json()),
                (200, {"leader": B.name}),
            )

    def test_a_leader_that_is_not_known_yet(self) -> None:
        self.cluster.now = status("follower", None)
        self.assertEqual(self.send("POST", b"/leader").json(), {"leader": None})

    def test_mistakes(self) -> None:
        mistakes: list[Any] = [
            b"localhost:4002",
            b'"localhost:4002"',
            b"{",
            b"null",
            [],
            {"to": None},
            {"to": ""},
            {"to": 4002},
            {"To": B.name},
            {"to": B.name, "force": True},
            b'{"to": "localhost:4002", "to": "localhost:4001"}',
        ]
        for value in mistakes:
            self.assert_nothing_asked("POST", b"/leader", value)
        self.assert_nothing_asked("POST", b"/leader?to=localhost:4002")


class Mistakes(MembersCase):
    """Whatever somebody mistypes is told, and nothing is done."""

    def test_bodies(self) -> None:
        mistakes: list[Any] = [
            None,
            b"promote=localhost:4002",
            b"{",
            b"\xff",
            b"\xef\xbb\xbf{}",
            b"[" * 60_000,
            b"1" * 5_000,
            b"null",
            [],
            [{"promote": C.name}],
            {},
            {"changes": None},
            {"changes": []},
            {"changes": {"promote": C.name}},
            {"changes": C.name},
            {"changes": [C.name]},
            {"changes": [None]},
            {"change": [{"promote": C.name}]},
            {"changes": [{"promote": C.name}], "Force": True},
        ]
        for value in mistakes:
            self.assert_nothing_asked("POST", b"/members", value)

    def test_changes(self) -> None:
        mistakes: list[Any] = [
            {},
            {"promote": None},
            {"promote": ""},
            {"promote": 1},
            {"promote": [C.name]},
            {"Promote": C.name},
            {"crown": C.name},
            {"promote": C.name, "demote": A.name},
            {"promote": C.name, "to": "a:1"},
            {"promote": C.name, "force": True},
            {"rename": C.name},
            {"rename": C.name, "to": ""},
            {"rename": C.name, "to": 5},
            {"rename": C.name, "to": "a:1", "role": "voter"},
            {"to": "a:1"},
        ]
        for change in mistakes:
            self.assert_nothing_asked("POST", b"/members", {"changes": [change]})
            # Nor is the one before it carried out.
            both = {"changes": [{"promote": C.name}, change]}
            self.assert_nothing_asked("POST", b"/members", both)

    def test_the_same_key_twice(self) -> None:
        """One of the two would be lost without a word."""
        for body in (
            b'{"changes": [{"remove": "localhost:4001", "remove": "localhost:4002"}]}',
            b'{"changes": [{"remove": "localhost:4001"}], "changes": []}',
            b'{"changes": [{"remove": "localhost:4001"}], "force": true, "force": false}',
        ):
            answer = self.send("POST", b"/members", body)
            self.assertError(answer, 400, "bad_request")
            self.assertIn("twice", answer.json()["message"])
        self.assertEqual(self.cluster.asked, [])

    def test_force(self) -> None:
        mistakes: list[Any] = ["true", 1, 0, None, [], "yes"]
        for force in mistakes:
            value = {"changes": [{"remove": B.name}], "force": force}
            self.assert_nothing_asked("POST", b"/members", value)
        for query in (b"force", b"force=1", b"force=True", b"Force=true", b"force=true&x=1"):
            self.assert_nothing_asked("DELETE", b"/members/localhost:4002?" + query)
            self.assert_nothing_asked(
                "PATCH", b"/members/localhost:4002?" + query, {"role": "voter"}
            )
        body = {"changes": [{"remove": B.name}]}
        self.assert_nothing_asked("POST", b"/members?force=true", body)

    def test_patches(self) -> None:
        mistakes: list[Any] = [
            None,
            b"role=voter",
            {},
            [],
            {"role": "Voter"},
            {"role": "leader"},
            {"role": None},
            {"role": ["voter"]},
            {"role": True},
            {"role": "voter", "id": 1},
            {"roles": "voter"},
            {"name": None},
            {"name": ""},
            {"role": "voter", "name": "nowhere"},
            b'{"role": "voter", "role": "learner"}',
        ]
        for value in mistakes:
            self.assert_nothing_asked("PATCH", b"/members/localhost:4002", value)

    def test_new_names(self) -> None:
        """Those that no node could be reached at."""
        for name in (
            "b",
            "b:",
            ":1",
            "b:0",
            "b:65536",
            "a b:1",
            "::1:4001",
            "b:1\n",
            "\ud800:1",
        ):
            self.assert_nothing_asked("PATCH", b"/members/localhost:4002", {"name": name})
            change = {"rename": B.name, "to": name}
            self.assert_nothing_asked("POST", b"/members", {"changes": [change]})

    def test_paths(self) -> None:
        for path in (b"", b"%", b"%zz", b"localhost%3", b"%ff"):
            for method in ("GET", "DELETE"):
                self.assert_nothing_asked(method, b"/members/" + path)
        self.assert_nothing_asked("GET", b"/members?x=1")
        self.assert_nothing_asked("GET", b"/members/localhost:4002?x=1")

    def test_a_delete_with_a_body(self) -> None:
        """Perhaps somebody meant to force it."""
        self.assert_nothing_asked("DELETE", b"/members/localhost:4002", {"force": True})

    def test_adding_a_node(self) -> None:
        for change in ({"add": "localhost:4009"}, {"join": "localhost:4009"}):
            answer = self.send("POST", b"/members", {"changes": [change]})
            self.assertError(answer, 400, "bad_request")
            self.assertIn("joins by itself", answer.json()["message"])

    def test_too_much(self) -> None:
        body = b'{"changes": []}' + b" " * MAX_JSON_BYTES
        for method, target in (
            ("POST", b"/members"),
            ("PATCH", b"/members/localhost:4002"),
            ("POST", b"/leader"),
        ):
            self.assertError(self.send(method, target, body), 413, "too_large")
        many = {"changes": [{"promote": C.name}] * (MAX_CHANGES + 1)}
        self.assertError(self.send("POST", b"/members", many), 413, "too_large")
        self.assertEqual(self.cluster.asked, [])
        many["changes"].pop()
        self.assertEqual(len(self.changed("POST", b"/members", many)), MAX_CHANGES + 1)

    json_values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=8)
        | st.sampled_from([A.name]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "changes",
                        "force",
                        "promote",
                        "demote",
                        "remove",
                        "rename",
                        "to",
                        "role",
                        "name",
                    ]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )

    @settings(derandomize=True, max_examples=300, deadline=None, database=None)
    @given(
        st.sampled_from(
            [("POST", b"/members"), ("PATCH", b"/members/localhost:4001"), ("POST", b"/leader")]
        ),
        json_values,
    )
    def test_anything(self, where: tuple[str, bytes], value: object) -> None:
        """Whatever is sent is answered, once, as what it is."""
        answer = self.send(*where, json.dumps(value).encode())
        if answer.status == 200:
            self.assertEqual(len(self.cluster.asked), 1)
        else:
            self.assertIn(answer.status, (400, 404))
            self.assertTrue(answer.json()["message"].endswith("."))
            self.assertEqual(self.cluster.asked, [])
        self.cluster.asked = []


CHANGES: list[tuple[str, bytes, object]] = [
    ("POST", b"/members", {"changes": [{"promote": C.name}]}),
    ("PATCH", b"/members/localhost:4002", {"role": "learner"}),
    ("DELETE", b"/members/localhost:4002", None),
]
EVERYTHING = [
    *CHANGES,
    ("POST", b"/leader", {"to": B.name}),
    ("POST", b"/leader", None),
]


class Failures(MembersCase):
    def failed(self, error: Exception, *what: Any) -> Answer:
        self.cluster.answer = fail(error)
        return self.send(*what)

    def test_34_a_change_that_is_refused(self) -> None:
        """Whatever does not fit the present configuration, two at once among it."""
        for error, code in (
            (ChangeRefused("a."), "change_refused"),
            (ChangeInProgress("b."), "change_in_progress"),
            (NotCaughtUp("c."), "not_caught_up"),
            (NameTaken("d."), "name_taken"),
        ):
            for what in EVERYTHING:
                answer = self.failed(error, *what)
                self.assertError(answer, 409, code)
                self.assertEqual(answer.json()["message"], str(error))
                self.assertNotIn("Retry-After", answer.headers)

    def test_36_a_removal_that_would_leave_too_few_is_refused_unless_forced(self) -> None:
        error = ChangeRefused("Too few of them answer.")
        for what in CHANGES:
            self.assertError(self.failed(error, *what), 409, "change_refused")
            self.assertIs(self.cluster.asked.pop()[-1], False)
        self.cluster.answer = None
        target = b"/members/localhost:4002?force=true"
        self.assertEqual(self.changed("DELETE", target), (Remove(B.id), True))

    def test_what_did_not_happen_may_be_tried_again(self) -> None:
        for error, code in (
            (NoLeader("a."), "no_leader"),
            (NotLeader("b."), "no_leader"),
            (NoQuorum("c."), "no_quorum"),
            (TransferFailed("d."), "transfer_failed"),
            (Stopped("e."), "stopped"),
        ):
            for what in EVERYTHING:
                answer = self.failed(error, *what)
                self.assertError(answer, 503, code)
                self.assertEqual(answer.headers["Retry-After"], "1")

    def test_30_an_unknown_outcome_is_its_own_answer(self) -> None:
        for error in (OutcomeUnknown("a."), PeerUnreachable("b."), RaftdError("c.")):
            for what in EVERYTHING:
                answer = self.failed(error, *what)
                self.assertError(answer, 504, "outcome_unknown")
                self.assertNotIn("Retry-After", answer.headers)

    def test_what_can_never_happen(self) -> None:
        for what in EVERYTHING:
            self.assertError(self.failed(BadRequest("a."), *what), 400, "bad_request")

    def test_a_look_up_that_fails(self) -> None:
        """Nothing was asked for then: never an unknown outcome."""
        for error, code in (
            (NoLeader("a."), "no_leader"),
            (NoQuorum("b."), "no_quorum"),
            (PeerUnreachable("c."), "unavailable"),
        ):
            self.cluster.read_outcome = error
            for what in EVERYTHING[:-1]:
                answer = self.send(*what)
                self.assertError(answer, 503, code)
                self.assertEqual(answer.headers["Retry-After"], "1")
        self.assertEqual(self.cluster.asked, [])

    def test_a_defect(self) -> None:
        """Logged, and answered without a word about its inside."""
        for what in EVERYTHING:
            answer = self.failed(ZeroDivisionError("secret"), *what)
            self.assertError(answer, 500, "internal_error")
            self.assertNotIn(b"secret", answer.body)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class OverTCP(TestCase):
    """The same through the HTTP protocol, as a client of today sends it."""

    timeout = 20

    def setUp(self) -> None:
        self.cluster = FakeNode()
        routes = Routes("1", Clock())
        routes.site = Site(self.cluster, FakeDatabase())
        http = HTTPFactory(routes.handle, IReactorTime(reactor))
        listening = IReactorTCP(reactor).listenTCP(
            0,
            http,  # type: ignore[arg-type]
            interface="127.0.0.1",
        )
        address = cast(IPv4Address, listening.getHost())
        self.url = f"http://127.0.0.1:{address.port}"
        self.pool = HTTPConnectionPool(reactor)
        self.addCleanup(listening.stopListening)
        self.addCleanup(http.stop)
        self.addCleanup(self.pool.closeCachedConnections)

    async def test_every_way(self) -> None:
        for method, target, body, asked in (
            ("POST", "/members", b'{"changes": [{"promote": "[::1]:4003"}]}', Promote(C.id)),
            ("PATCH", "/members/localhost:4002", b'{"role": "learner"}', Demote(B.id)),
            ("PATCH", "/members/[::1]:4003", b'{"name": "c:1"}', Rename(C.id, "c:1")),
            ("DELETE", "/members/%5B::1%5D:4003?force=true", b"", Remove(C.id)),
            ("POST", "/leader", b'{"to": "localhost:4002"}', "transfer"),
            ("POST", "/leader", b"", "transfer"),
        ):
            response = await treq.request(
                method, self.url + target, data=body, pool=self.pool, persistent=True
            )
            self.assertEqual((response.code, await treq.content(response) != b""), (200, True))
            self.assertEqual(self.cluster.asked.pop()[0], asked)
