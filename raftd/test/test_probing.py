"""What a probe makes of what it finds at an address."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from raftd import joining, probing
from raftd.core.membership import Change, Configuration, Promote
from raftd.core.messages import Member
from raftd.errors import (
    ChangeInProgress,
    JoinFailed,
    NameTaken,
    NoLeaderYet,
    NotCaughtUp,
    PeerUnreachable,
    RaftdError,
)
from raftd.interfaces import NodeStatus
from raftd.joining import become_member
from raftd.names import split_name
from raftd.node import Node
from raftd.probing import probe
from raftd.test.servers import ServerTestCase, free_name, http

STATUS = {"name": "n:1", "member_id": "1", "cluster_id": "2", "leader": "n:1", "more": 3}
JSON = b"Content-Type: application/json\r\n"


async def ask(name: str) -> probing.ServerStatus:
    host, port = split_name(name)
    return await probe(reactor, name, HostnameEndpoint(reactor, host, port))


class ProbeTests(ServerTestCase):
    async def _probe(self, words: bytes | None, close: bool = True) -> probing.ServerStatus:
        return await ask(self.listen(words, close))

    async def _says(self, error: type[RaftdError], part: str, words: bytes | None) -> None:
        name = self.listen(words, close=words is not None)
        await self.refused(Deferred.fromCoroutine(ask(name)), error, name, part)

    async def test_status(self) -> None:
        status = await self._probe(http(b"200 OK", msgspec.json.encode(STATUS), JSON))
        self.assertEqual((status.name, status.leader), ("n:1", "n:1"))

    async def test_it_leaves_the_log_alone(self) -> None:
        name = self.listen(http(b"200 OK", msgspec.json.encode(STATUS), JSON))
        with capturedLogs() as events:
            await ask(name)
        self.assertEqual(list(map(formatEvent, events)), [])

    async def test_no_leader(self) -> None:
        body = msgspec.json.encode({**STATUS, "leader": None})
        await self._says(NoLeaderYet, "no leader", http(b"200 OK", body, JSON))

    async def test_unavailable(self) -> None:
        for code, error, part in (
            ("not_ready", NoLeaderYet, "cluster yet"),
            ("overloaded", JoinFailed, "busy"),
        ):
            body = msgspec.json.encode({"error": code, "message": "x"})
            words = http(b"503 Service Unavailable", body, JSON)
            await self._says(error, part, words)

    async def test_not_raftd(self) -> None:
        for words in (
            b"",
            b"220 mail.example ESMTP\r\n",
            b"\x15\x03\x01\x00\x02\x02\x46",
            http(b"200 OK", b"It works!"),
            http(b"404 Not Found", b""),
            http(b"200 OK", b"{}", JSON),
            http(b"200 OK", b'{"name": 1}', JSON),
            http(b"200 OK", b'{"name": "\xeb"}', JSON),
            http(b"503 Service Unavailable", b'{"error": "x", "message": "x"}', JSON),
            http(b"200 OK", b"[" * 100_000, JSON),
            http(b"301 Moved Permanently", b"", b"Location: http://127.0.0.1:1/status\r\n"),
        ):
            await self._says(JoinFailed, "is not a raftd server", words)

    async def test_body_without_end(self) -> None:
        self.patch(probing, "MAX_STATUS_BYTES", 1000)
        words = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b" " * 5000
        name = self.listen(words, close=False)
        await self.refused(Deferred.fromCoroutine(ask(name)), JoinFailed, name, "not a raftd")

    async def test_silence(self) -> None:
        self.patch(probing, "PROBE_TIMEOUT_S", 0.2)
        await self._says(JoinFailed, "does not answer", None)
        name = self.listen(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", close=False)
        await self.refused(
            Deferred.fromCoroutine(ask(name)), JoinFailed, name, "does not answer"
        )

    async def test_nobody(self) -> None:
        name = free_name()
        await self.refused(
            Deferred.fromCoroutine(ask(name)), JoinFailed, "nothing is listening"
        )

    async def test_given_up(self) -> None:
        """It ends at once, and nothing is left of it; trial sees to that."""
        for words in (None, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"):
            asked = Deferred.fromCoroutine(ask(self.listen(words, close=False)))
            asked.cancel()
            self.failureResultOf(asked, CancelledError, JoinFailed)


class LearnerStub:
    """A node as `become_member` sees it."""

    member = Member(7, "n7:1")

    def __init__(self, outcomes: list[RaftdError | None]) -> None:
        self.is_settled_voter = self.is_settled_learner = False
        self.outcomes = outcomes
        self.asked = 0
        self.last = self.applied = self.commit = 5
        self.leader: Member | None = Member(1, "n1:1")

    def status(self) -> NodeStatus:
        leader, last = self.leader, self.last
        return NodeStatus(
            self.member, 1, "learner", 1, leader, 1, last, self.commit, self.applied, 0, 1.0, ()
        )

    async def change_membership(
        self, changes: list[Change], *, timeout_ms: int
    ) -> Configuration:
        assert changes == [Promote(self.member.id)]
        self.asked += 1
        outcome = self.outcomes.pop(0) if self.outcomes else PeerUnreachable("x")
        if outcome is not None:
            raise outcome
        self.is_settled_voter = True
        return Configuration()


class BecomeMemberTests(SynchronousTestCase):
    def _begin(
        self, *outcomes: RaftdError | None, learner: bool = False, unapplied: int = 4
    ) -> tuple[Clock, LearnerStub, list[Any]]:
        clock, node = Clock(), LearnerStub([*outcomes])
        node.commit = node.applied + unapplied
        ended: list[Any] = []
        member: Deferred[Any]
        member = Deferred.fromCoroutine(become_member(clock, cast(Node, node), learner=learner))
        member.addBoth(ended.append)
        return clock, node, ended

    def _let(self, clock: Clock, seconds: float) -> None:
        clock.pump([joining.POLL_INTERVAL_S] * int(seconds / joining.POLL_INTERVAL_S))

    def test_asks_although_it_has_not_applied_all_it_knows_of(self) -> None:
        clock, learner, ended = self._begin(NotCaughtUp("x"), ChangeInProgress("x"), None)
        self._let(clock, 1.0)
        self.assertEqual((learner.asked, ended), (3, [None]))

    def test_does_not_ask_while_it_has_much_to_apply(self) -> None:
        clock, learner, ended = self._begin(None, unapplied=joining.MAX_UNAPPLIED + 1)
        self._let(clock, 1.0)
        self.assertEqual((learner.asked, ended), (0, []))
        learner.applied += 1
        self._let(clock, 0.1)
        self.assertEqual((learner.asked, ended), (1, [None]))

    def test_asks_again_when_no_answer_came(self) -> None:
        clock, learner, ended = self._begin(PeerUnreachable("x"), PeerUnreachable("x"), None)
        self._let(clock, 1.0)
        self.assertEqual((learner.asked, ended), (3, [None]))

    def test_learner_asks_for_no_vote_and_waits_until_it_has_caught_up(self) -> None:
        clock, learner, ended = self._begin(learner=True)
        self._let(clock, 1.0)
        self.assertEqual(ended, [])
        learner.is_settled_learner = True
        self._let(clock, 0.1)
        self.assertEqual((learner.asked, ended), (0, [None]))

    def test_refusal_ends_it(self) -> None:
        _, learner, (failure,) = self._begin(NameTaken("It is taken."))
        failure.trap(JoinFailed)
        self.assertEqual((str(failure.value), learner.asked), ("It is taken.", 1))

    def test_stall(self) -> None:
        for leader, part in ((None, "Can the other members connect"), ("n1:1", "sent nothing")):
            clock, learner, ended = self._begin()
            learner.leader = None if leader is None else Member(1, leader)
            for _ in range(5):
                self._let(clock, joining.STALL_TIMEOUT_S - 1)
                self.assertEqual(ended, [], "entries still come")
                learner.last += 1
            self._let(clock, joining.STALL_TIMEOUT_S + 1)
            (failure,) = ended
            failure.trap(JoinFailed)
            self.assertIn(part, str(failure.value))
