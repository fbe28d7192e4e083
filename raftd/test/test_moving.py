"""A member under two names: asked where it answers, and given up nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from raftd.core.membership import Change, Configuration
from raftd.core.messages import Heartbeat, Member, MemberId, Request, Response
from raftd.errors import PeerUnreachable, RaftdError
from raftd.interfaces import IPeer
from raftd.moving import MovingPeer

PATIENCE_S = 5.0


@implementer(IPeer)
class Place:
    """Where the member may be; it counts what it is asked."""

    def __init__(self, name: str, connected: bool) -> None:
        self.member = Member(7, name)
        self.connected = connected
        self.refusal = f"not at {name}"
        self.asked = 0
        self.is_closed = False

    def _ask(self) -> Deferred[None]:
        self.asked += 1
        return fail(PeerUnreachable("It is a stub."))

    def send(self, request: Request) -> Deferred[Response]:
        return self._ask()  # type: ignore[return-value]

    def forward(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        return self._ask()  # type: ignore[return-value]

    def read_index(self, timeout_ms: int) -> Deferred[int]:
        return self._ask()  # type: ignore[return-value]

    def ask(self, question: bytes, timeout_ms: int) -> Deferred[bytes]:
        return self._ask()  # type: ignore[return-value]

    def change_membership(
        self, changes: Sequence[Change], force: bool, timeout_ms: int
    ) -> Deferred[Configuration]:
        return self._ask()  # type: ignore[return-value]

    def transfer(self, successor: MemberId | None, timeout_ms: int) -> Deferred[None]:
        return self._ask()

    def close(self) -> Deferred[None]:
        self.is_closed = True
        return succeed(None)


class MovingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.old, self.new = Place("a:1", True), Place("b:1", False)
        self.clock = Clock()
        self.peer = MovingPeer(self.old, self.new, self.clock, PATIENCE_S)

    def ask_everything(self) -> None:
        for answer in (
            self.peer.send(Heartbeat(1, 0, 0)),
            self.peer.forward([b"w"], 1000),
            self.peer.read_index(1000),
            self.peer.ask(b"?", 1000),
            self.peer.change_membership([], False, 1000),
            self.peer.transfer(None, 1000),
        ):
            self.failureResultOf(answer, PeerUnreachable)

    def test_it_is_asked_at_its_former_place_until_it_is_at_the_new_one(self) -> None:
        self.assertEqual(self.peer.member, self.new.member)
        self.ask_everything()
        self.assertEqual((self.old.asked, self.new.asked), (6, 0))
        self.assertTrue(self.peer.connected)
        self.assertEqual(self.peer.refusal, "not at a:1")
        self.new.connected = True
        self.ask_everything()
        self.assertEqual((self.old.asked, self.new.asked), (6, 6))
        self.clock.advance(PATIENCE_S)
        self.assertTrue(self.old.is_closed)
        self.assertFalse(self.new.is_closed)

    def test_once_there_it_is_not_looked_for_at_the_former_place_again(self) -> None:
        self.new.connected = True
        self.assertTrue(self.peer.connected)
        self.new.connected = False
        self.ask_everything()
        self.assertEqual((self.old.asked, self.new.asked), (0, 6))
        self.assertFalse(self.peer.connected)

    def test_moved_again_before_it_has_arrived(self) -> None:
        third = Place("c:1", False)
        peer = MovingPeer(self.peer, third, self.clock, PATIENCE_S)
        self.failureResultOf(peer.send(Heartbeat(1, 0, 0)), PeerUnreachable)
        self.assertEqual((self.old.asked, self.new.asked), (1, 0))
        third.connected = True
        self.failureResultOf(peer.send(Heartbeat(1, 0, 0)), PeerUnreachable)
        self.assertEqual(third.asked, 1)
        self.clock.advance(PATIENCE_S)
        self.assertTrue(self.old.is_closed and self.new.is_closed)

    def test_30_what_it_was_asked_before_has_its_time(self) -> None:
        """It may answer at both places for a while."""
        self.new.connected = True
        self.ask_everything()
        self.clock.advance(PATIENCE_S - 0.1)
        self.ask_everything()
        self.assertEqual((self.old.asked, self.new.asked), (0, 12))
        self.assertFalse(self.old.is_closed)
        self.clock.advance(0.1)
        self.assertTrue(self.old.is_closed)
        self.assertFalse(self.new.is_closed)

    def test_closed_while_that_time_runs(self) -> None:
        self.new.connected = True
        self.assertTrue(self.peer.connected)
        self.successResultOf(self.peer.close())
        self.assertTrue(self.old.is_closed and self.new.is_closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closed_at_both_places(self) -> None:
        self.successResultOf(self.peer.close())
        self.assertTrue(self.old.is_closed and self.new.is_closed)
