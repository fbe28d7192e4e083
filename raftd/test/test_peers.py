"""
The asking side of peers: connections that are kept up, calls, and joining.
"""

from __future__ import annotations

import itertools
import socket
from random import Random
from typing import Any

import msgspec
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from raftd.core.membership import MAX_CHANGES, AddLearner, Change, Demote, Promote, Remove
from raftd.core.messages import (
    MAX_SNAPSHOT_PIECE_BYTES,
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Member,
    PreVote,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TimeoutNowResponse,
)
from raftd.errors import (
    ChangeInProgress,
    JoinFailed,
    NameTaken,
    NoLeader,
    NotLeader,
    NotReady,
    PeerUnreachable,
    RaftdError,
    RemovedFromCluster,
    TooLarge,
    TransferFailed,
    WrongCluster,
)
from raftd.interfaces import MAX_QUESTION_BYTES, IPeer
from raftd.moving import MovingPeer
from raftd.net import arguments, boxes, join, peers
from raftd.net.amp import PeerServer, PeerServerFactory
from raftd.net.arguments import MAX_FORWARDED_COMMANDS, MAX_PAYLOAD_BYTES
from raftd.net.boxes import BoxConnection
from raftd.net.handshake import LocalIdentity
from raftd.net.join import JoinAnswer, request_join
from raftd.net.peers import Peer, PeerTransport, explain_connect_failure
from raftd.test.peernet import (
    ALICE,
    BOB,
    CLUSTER,
    CONFIGURATION,
    Link,
    Pair,
    RecordingNode,
    entries,
    failure_of,
    reactor_time,
)

reactor: Any = _reactor


class CallTests(SynchronousTestCase):
    """Every method of `IPeer`, to the node at the other end and back."""

    def setUp(self) -> None:
        self.pair = Pair()
        self.peer, self.node = self.pair.peer, self.pair.node

    def link(self, channel: str) -> Link:
        """The open connection of one channel."""
        for link in self.pair.network.open_links():
            assert isinstance(link.server, PeerServer)
            if link.server.key[1] == channel:
                return link
        raise AssertionError(f"no {channel} connection")

    def flush(self) -> None:
        self.pair.network.flush()

    def test_connected(self) -> None:
        self.assertTrue(self.peer.connected)
        self.assertEqual(self.peer.refusal, "")
        self.assertEqual(len(self.pair.network.open_links()), 2)

    def test_send(self) -> None:
        self.node.answer = lambda: succeed(RequestVoteResponse(4, True))
        answer = self.peer.send(RequestVote(4, 10, 3))
        self.flush()
        self.assertEqual(self.successResultOf(answer), RequestVoteResponse(4, True))
        self.assertEqual(self.node.asked, [("receive", ALICE.id, RequestVote(4, 10, 3))])

    def test_a_large_append_entries(self) -> None:
        message = AppendEntries(5, 10, 4, 9, entries(12, 131_072))
        self.node.answer = lambda: succeed(AppendEntriesResponse(5, True, 22))
        answer = self.peer.send(message)
        self.flush()
        self.assertEqual(self.successResultOf(answer), AppendEntriesResponse(5, True, 22))
        self.assertEqual(self.node.asked, [("receive", ALICE.id, message)])

    def test_requests_arrive_in_the_order_sent(self) -> None:
        self.node.oblige()
        sent = [
            Heartbeat(1, 0, n) if n % 2 else AppendEntries(1, n, 0, 0, entries(n, 5000))
            for n in range(40)
        ]
        answers = [self.peer.send(message) for message in sent]
        self.flush()
        self.assertEqual([asked[2] for asked in self.node.asked], sent)  # type: ignore[index]
        for answer in answers:
            self.successResultOf(answer)

    def test_forward(self) -> None:
        outcomes: list[bytes | RaftdError] = [b"one", NotLeader("No."), b""]
        self.node.answer = lambda: succeed(outcomes)
        answer = self.peer.forward([b"a", b"b", b"c"], 250)
        self.flush()
        found = self.successResultOf(answer)
        self.assertEqual([found[0], found[2]], [b"one", b""])
        self.assertIs(type(found[1]), NotLeader)
        self.assertEqual(self.node.asked, [("forwarded", [b"a", b"b", b"c"], 250)])

    def test_a_forward_refused_as_a_whole(self) -> None:
        for code, kind in arguments.WIRE_ERRORS.items():
            self.node.answer = lambda kind=kind: fail(kind("Why not."))  # type: ignore[misc]
            answer = self.peer.forward([b"a"], 250)
            self.flush()
            error = failure_of(answer)
            self.assertEqual((type(error), str(error)), (kind, "Why not."), code)
        self.assertEqual(len(self.pair.network.links), 2)

    def test_as_many_outcomes_as_commands(self) -> None:
        """Anything else would give a client another client's answer."""
        self.node.answer = lambda: succeed([b"one"])
        answer = self.peer.forward([b"a", b"b"], 250)
        self.flush()
        self.assertIsInstance(failure_of(answer), PeerUnreachable)
        self.assertEqual(len(self.pair.network.open_links()), 1)

    def test_read_index_change_membership_transfer(self) -> None:
        self.node.oblige()
        changes: list[Change] = [Promote(0xC), Demote(0xD), Remove(0xE)]
        read = self.peer.read_index(100)
        changed = self.peer.change_membership(changes, True, 200)
        transferred = [self.peer.transfer(to, 300) for to in (0xC, None)]
        asked = self.peer.ask(b"why?", 400)
        self.flush()
        self.assertEqual(self.successResultOf(asked), b"answer")
        self.assertEqual(self.successResultOf(read), 1)
        self.assertEqual(self.successResultOf(changed), CONFIGURATION)
        for transfer in transferred:
            self.assertIsNone(self.successResultOf(transfer))
        # What is on one connection arrives in the order sent.
        self.assertEqual(sorted(self.node.asked, key=repr), sorted([
            ("read", 100),
            ("change", changes, True, 200, True),
            ("transfer", 0xC, 300, True),
            ("transfer", None, 300, True),
            ("question", b"why?", 400),
        ], key=repr))  # fmt: skip

    def test_34_a_refused_change_says_why(self) -> None:
        self.node.answer = lambda: fail(ChangeInProgress("Another one is under way."))
        changed = self.peer.change_membership([Promote(0xC)], False, 200)
        self.flush()
        error = failure_of(changed)
        self.assertEqual(
            (type(error), str(error)), (ChangeInProgress, "Another one is under way.")
        )
        self.node.answer = lambda: fail(TransferFailed("Too late."))
        transferred = self.peer.transfer(0xC, 200)
        self.flush()
        self.assertIsInstance(failure_of(transferred), TransferFailed)
        self.assertEqual(len(self.pair.network.links), 2)

    def test_timeout_now(self) -> None:
        self.node.answer = lambda: succeed(TimeoutNowResponse(7))
        answer = self.peer.send(TimeoutNow(7))
        self.flush()
        self.assertEqual(self.successResultOf(answer), TimeoutNowResponse(7))
        self.assertEqual(self.node.asked, [("receive", ALICE.id, TimeoutNow(7))])

    def test_install_snapshot(self) -> None:
        piece = InstallSnapshot(5, 100, 4, 7, b"s" * MAX_SNAPSHOT_PIECE_BYTES, False)
        kept = InstallSnapshotResponse(5, 7 + MAX_SNAPSHOT_PIECE_BYTES, False)
        self.node.answer = lambda: succeed(kept)
        answer = self.peer.send(piece)
        self.flush()
        self.assertEqual(self.successResultOf(answer), kept)
        self.assertEqual(self.node.asked, [("receive", ALICE.id, piece)])

    def test_53_a_snapshot_delays_nothing_of_raft(self) -> None:
        """Neither a piece that is stuck in the network, nor one that waits for the disk."""
        self.node.oblige()
        self.link("bulk").is_cut = True
        piece = self.peer.send(InstallSnapshot(5, 100, 4, 0, b"s" * 250_000, False))
        beat = self.peer.send(Heartbeat(1, 1, 1))
        self.flush()
        self.successResultOf(beat)
        self.assertNoResult(piece)
        self.link("bulk").is_cut = False
        disk = self.node.open_answers()
        self.flush()
        self.assertEqual(len(disk), 1)
        self.node.oblige()
        beat = self.peer.send(Heartbeat(1, 1, 2))
        forwarded = self.peer.forward([b"a"], 100)
        self.flush()
        self.successResultOf(beat)
        self.successResultOf(forwarded)
        self.assertNoResult(piece)
        disk[0].callback(InstallSnapshotResponse(5, 250_000, False))
        self.flush()
        self.successResultOf(piece)

    def test_bulk_and_raft_are_two_connections(self) -> None:
        """What stalls one does not stall the other."""
        self.node.oblige()
        self.link("bulk").is_cut = True
        forwarded = self.peer.forward([b"x" * 1_000_000], 5000)
        beat = self.peer.send(Heartbeat(1, 1, 1))
        read = self.peer.read_index(100)
        self.flush()
        self.successResultOf(beat)
        self.successResultOf(read)
        self.assertNoResult(forwarded)
        self.link("bulk").is_cut = False
        self.flush()
        self.successResultOf(forwarded)

    def test_too_much_to_forward_at_once(self) -> None:
        for commands in ([b""] * (MAX_FORWARDED_COMMANDS + 1), [b"x" * MAX_PAYLOAD_BYTES]):
            self.assertIsInstance(failure_of(self.peer.forward(commands, 100)), TooLarge)
        many: list[Change] = [Promote(1)] * (MAX_CHANGES + 1)
        self.assertIsInstance(
            failure_of(self.peer.change_membership(many, False, 100)), TooLarge
        )
        question = b"x" * (MAX_QUESTION_BYTES + 1)
        self.assertIsInstance(failure_of(self.peer.ask(question, 100)), TooLarge)
        self.assertEqual(self.node.asked, [])

    def test_without_a_connection_everything_fails_at_once(self) -> None:
        pair = Pair(connect=False)
        pair.network.listening.clear()
        peer = pair.connect()
        self.assertFalse(peer.connected)
        for answer in (
            peer.send(Heartbeat(1, 1, 1)),
            peer.send(InstallSnapshot(1, 1, 1, 0, b"", True)),
            peer.read_index(100),
        ):
            self.assertIsInstance(failure_of(answer), PeerUnreachable)
        for nothing_sent in (
            peer.forward([b"a"], 100),
            peer.change_membership([Promote(1)], False, 100),
            peer.transfer(None, 100),
            peer.ask(b"why?", 100),
        ):
            self.assertIsInstance(failure_of(nothing_sent), NoLeader)
        # Nothing was kept for later, either.
        pair.network.listening[BOB.name] = pair.factory
        pair.network.advance(3)
        self.assertTrue(peer.connected)
        self.assertEqual(pair.node.asked, [])

    def test_a_forward_that_went_out_is_not_known_not_to_have_happened(self) -> None:
        """PeerUnreachable when sent, NoLeader when not: a client must know which."""
        self.node.open_answers()
        all_of_them: list[Deferred[Any]] = [
            self.peer.forward([b"a"], 1000),
            self.peer.change_membership([Promote(1)], False, 1000),
            self.peer.transfer(1, 1000),
        ]
        self.flush()
        self.pair.factory.close()
        self.flush()
        for sent in all_of_them:
            error = failure_of(sent)
            self.assertIsInstance(error, PeerUnreachable)
            self.assertNotIsInstance(error, NoLeader)
        self.assertIsInstance(failure_of(self.peer.forward([b"b"], 1000)), NoLeader)

    def test_a_forward_beyond_the_bound_is_known_not_to_have_happened(self) -> None:
        self.node.open_answers()
        waiting = [self.peer.forward([b"a"], 1000) for _ in range(boxes.MAX_CALLS)]
        self.assertIsInstance(failure_of(self.peer.forward([b"b"], 1000)), NoLeader)
        self.flush()
        self.assertEqual(len(self.node.asked), boxes.MAX_CALLS)
        self.peer.close()
        for forward in waiting:
            self.assertIsInstance(failure_of(forward), PeerUnreachable)

    def test_a_peer_that_has_stopped_reading(self) -> None:
        """Its requests fail at once when too much waits to be sent."""
        connection = self.link("raft").client
        assert isinstance(connection, BoxConnection)
        connection.pauseProducing()
        message = AppendEntries(5, 10, 4, 9, entries(8, 131_072))
        sent = 0
        while (answer := self.peer.send(message)).called is False:
            answer.addErrback(lambda _: None)
            sent += 1
            self.assertLess(sent, 100)
        self.assertIsInstance(failure_of(answer), PeerUnreachable)
        self.assertEqual(sent, boxes.MAX_UNSENT_BYTES // (1 << 20) - 1)
        connection.drop("the test is over")


class MovingTests(SynchronousTestCase):
    def test_30_found_under_both_names(self) -> None:
        """As when a host name becomes an address: nothing is lost, and nobody is suspected."""
        pair, patience_s = Pair(), 5.0
        answers = pair.node.open_answers()
        on_its_way = pair.peer.forward([b"x"], 4000)
        pair.network.flush()
        renamed = Member(BOB.id, "bob2:4002")
        pair.network.listening[renamed.name] = pair.factory
        moving = MovingPeer(
            pair.peer, pair.transport.peer(renamed), reactor_time(pair.clock), patience_s
        )
        with capturedLogs() as events:
            for _ in range(30):
                pair.network.advance(0.1)
                self.assertTrue(moving.connected)
            answers[0].callback([b"done"])
            pair.network.advance(patience_s)
        self.assertEqual(self.successResultOf(on_its_way), [b"done"])
        levels = {event["log_level"] for event in events}
        self.assertLessEqual(levels, {LogLevel.info})
        self.assertTrue(moving.connected)
        self.assertEqual(len(pair.network.links), 4)
        self.assertEqual(len(pair.network.open_links()), 2)


class TimeoutTests(SynchronousTestCase):
    """A call that is not answered in time closes its connection."""

    def setUp(self) -> None:
        self.pair = Pair()
        self.pair.node.open_answers()
        self.peer, self.network = self.pair.peer, self.pair.network

    def times_out(self, call: Deferred[Any], after_s: float, channel: str) -> None:
        before = len(self.network.links)
        self.network.advance(after_s - 0.05)
        self.assertNoResult(call)
        self.assertEqual(len(self.network.links), before)
        with capturedLogs() as events:
            self.network.advance(0.06)
        self.assertIsInstance(failure_of(call), PeerUnreachable)
        lines = [e for e in events if "within" in str(e.get("reason"))]
        self.assertEqual(len(lines), 1)
        # That connection is gone, the other is not, and it is made anew.
        open_now = {link.server.key[1] for link in self.network.open_links()}  # type: ignore[attr-defined]
        self.assertNotIn(channel, open_now)
        self.network.advance(1)
        self.assertEqual(len(self.network.open_links()), 2)
        self.assertEqual(len(self.network.links), before + 1)

    def test_heartbeat(self) -> None:
        self.times_out(self.peer.send(Heartbeat(1, 1, 1)), 1.0, "raft")

    def test_pre_vote(self) -> None:
        self.times_out(self.peer.send(PreVote(1, 1, 1)), 1.0, "raft")

    def test_request_vote_may_wait_for_the_disk(self) -> None:
        call = self.peer.send(RequestVote(1, 1, 1))
        self.times_out(call, peers.APPEND_TIMEOUT_S, "raft")

    def test_append_entries_may_wait_for_the_disk(self) -> None:
        call = self.peer.send(AppendEntries(1, 1, 1, 1, ()))
        self.times_out(call, peers.APPEND_TIMEOUT_S, "raft")

    def test_those_with_a_timeout_of_their_own(self) -> None:
        """The peer is given the time that was asked for, and a little to say so."""
        self.times_out(self.peer.read_index(700), 0.7 + peers.GRACE_S, "raft")
        self.times_out(self.peer.forward([b"a"], 700), 0.7 + peers.GRACE_S, "bulk")
        change = self.peer.change_membership([Promote(1)], False, 700)
        self.times_out(change, 0.7 + peers.GRACE_S, "bulk")
        self.times_out(self.peer.transfer(None, 700), 0.7 + peers.GRACE_S, "bulk")
        self.times_out(self.peer.ask(b"why?", 700), 0.7 + peers.GRACE_S, "bulk")

    def test_timeout_now(self) -> None:
        self.times_out(self.peer.send(TimeoutNow(1)), 1.0, "raft")

    def test_a_snapshot_may_wait_for_the_disk(self) -> None:
        """And for longest at its end, when the whole file is checked and flushed."""
        for done, timeout_s in (
            (False, peers.SNAPSHOT_PIECE_TIMEOUT_S),
            (True, peers.SNAPSHOT_DONE_TIMEOUT_S),
        ):
            call = self.peer.send(InstallSnapshot(1, 1, 1, 0, b"s", done))
            self.times_out(call, timeout_s, "bulk")
            self.assertTrue(self.peer.connected)

    def test_all_calls_of_the_connection_fail_with_it(self) -> None:
        patient = self.peer.send(AppendEntries(1, 1, 1, 1, ()))
        late = self.peer.send(Heartbeat(1, 1, 1))
        elsewhere = self.peer.forward([b"a"], 60_000)
        self.network.advance(1.0)
        self.assertIsInstance(failure_of(late), PeerUnreachable)
        self.assertIsInstance(failure_of(patient), PeerUnreachable)
        self.assertNoResult(elsewhere)
        self.assertFalse(self.peer.connected)
        elsewhere.addErrback(lambda _: None)

    def test_an_error_that_was_expected_costs_no_connection(self) -> None:
        self.pair.node.answer = lambda: fail(NotLeader("Ask another."))
        for _ in range(3):
            asked = self.peer.read_index(100)
            self.network.flush()
            self.assertIsInstance(failure_of(asked), NotLeader)
        self.assertEqual(len(self.network.links), 2)
        self.assertTrue(self.peer.connected)

    def test_an_error_that_was_not_expected_does(self) -> None:
        self.pair.node.answer = lambda: fail(ZeroDivisionError())
        asked = self.peer.send(Heartbeat(1, 1, 1))
        self.network.flush()
        self.assertIsInstance(failure_of(asked), PeerUnreachable)
        self.assertFalse(self.peer.connected)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.network.advance(1)
        self.assertTrue(self.peer.connected)


class ReconnectTests(SynchronousTestCase):
    """How a connection comes about, again and again."""

    def setUp(self) -> None:
        self.pair = Pair(connect=False)
        self.network = self.pair.network

    def gaps(self) -> list[float]:
        """Seconds between the attempts of one channel."""
        times = [at for at, _ in self.network.attempts][::2]
        return [later - at for at, later in itertools.pairwise(times)]

    def test_soon_at_first_then_more_slowly(self) -> None:
        self.network.listening.clear()
        self.pair.connect()
        # Both channels draw from one generator; look at one channel alone.
        self.pair.peer._bulk.close()
        self.network.attempts.clear()
        self.network.advance(12)
        times = [at for at, _ in self.network.attempts]
        gaps = [later - at for at, later in itertools.pairwise(times)]
        self.assertLessEqual(times[0], peers.RETRY_FIRST_S + 0.011)
        expected = 2 * peers.RETRY_FIRST_S
        for gap in gaps:
            self.assertGreater(gap, expected * 0.5 - 0.011)
            self.assertLess(gap, expected + 0.011)
            expected = min(2 * expected, peers.RETRY_MAX_S)
        self.assertGreater(len(gaps), 10)
        self.assertGreater(len({round(gap, 3) for gap in gaps[-5:]}), 1)

    def test_a_good_connection_that_is_lost_is_made_again_at_once(self) -> None:
        self.pair.connect()
        self.network.advance(20)
        for link in self.network.open_links():
            link.server.drop("restart")  # type: ignore[attr-defined]
        self.network.flush()
        self.assertFalse(self.pair.peer.connected)
        self.network.advance(peers.RETRY_FIRST_S + 0.01)
        self.assertTrue(self.pair.peer.connected)

    def test_a_connection_that_is_lost_at_once_every_time_is_not(self) -> None:
        self.pair.connect()
        for _ in range(100):
            for link in self.network.open_links():
                link.server.drop("no")  # type: ignore[attr-defined]
            self.network.advance(0.1)
        # Two channels, about twelve retries each in ten seconds.
        self.assertLess(len(self.network.attempts), 50)

    def test_an_attempt_that_hangs_is_given_up(self) -> None:
        self.network.silent.add(BOB.name)
        with capturedLogs() as events:
            self.pair.connect()
            self.network.advance(peers.CONNECT_TIMEOUT_S)
        self.assertIn("bob:4002 does not answer.", [e.get("reason") for e in events])
        self.network.silent.clear()
        self.network.advance(0.2)
        self.assertTrue(self.pair.peer.connected)

    def test_a_hello_that_hangs_is_given_up(self) -> None:
        self.network.listening[BOB.name] = Factory.forProtocol(Protocol)
        self.pair.connect()
        self.network.advance(peers.HELLO_TIMEOUT_S - 0.1)
        self.assertEqual(len(self.network.links), 2)
        self.assertFalse(self.pair.peer.connected)
        self.network.listening[BOB.name] = self.pair.factory
        self.network.advance(0.5)
        self.assertTrue(self.pair.peer.connected)

    def test_an_endpoint_that_cannot_be_made(self) -> None:
        def endpoint_for(name: str) -> IStreamClientEndpoint:
            raise ValueError("not a name")

        self.pair.transport.endpoint_for = endpoint_for
        with capturedLogs() as events:
            self.pair.connect()
            self.network.advance(1)
        self.assertEqual(len(events), 1)
        self.assertIn("not a name", events[0]["reason"])

    def test_a_foreign_program(self) -> None:
        """It is told apart, and logged once, however often it is tried."""

        class Web(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        self.network.listening[BOB.name] = Factory.forProtocol(Web)
        with capturedLogs() as events:
            self.pair.connect()
            self.network.advance(5)
        self.assertEqual([e["reason"] for e in events], ["it does not speak AMP"])

    def refused_for(self, seconds: float) -> list[dict[str, Any]]:
        with capturedLogs() as events:
            self.pair.connect()
            self.network.advance(seconds)
        self.assertFalse(self.pair.peer.connected)
        return [dict(e) for e in events]

    def test_a_refusal_is_told_at_both_ends_once(self) -> None:
        self.pair.bob.cluster_id = 0xBAD
        events = self.refused_for(10)
        self.assertIn("belongs to cluster 0000000000000bad", self.pair.peer.refusal)
        self.assertEqual(
            sorted(e["log_format"] for e in events),
            ["No connection to {name}: {reason}", "Refused a connection of {name}: {reason}"],
        )
        self.assertEqual({e["reason"] for e in events}, {self.pair.peer.refusal})
        # It is tried again at a pace that a person can follow.
        self.assertGreater(min(self.gaps()), peers.RETRY_REFUSED_S / 2 - 0.02)
        # Another reason is told again.
        self.pair.bob.cluster_id, self.pair.bob.member = CLUSTER, Member(0x999, BOB.name)
        with capturedLogs() as more:
            self.network.advance(5)
        self.assertEqual(len(more), 2)
        self.assertIn("was lost or replaced", self.pair.peer.refusal)
        # And then all is well.
        self.pair.bob.member = BOB
        self.network.advance(5)
        self.assertTrue(self.pair.peer.connected)
        self.assertEqual(self.pair.peer.refusal, "")

    def test_38_a_wiped_node_under_its_old_name_is_refused(self) -> None:
        self.pair.bob.member = Member(0x999, BOB.name)
        self.refused_for(3)
        error = failure_of(self.pair.peer.send(Heartbeat(1, 1, 1)))
        self.assertIn("the directory of bob:4002 was lost or replaced", str(error))

    def test_38_a_removed_member_is_told_so(self) -> None:
        """While it is connected, or when it comes back; with what it can do."""
        for connected in (True, False):
            pair = Pair(connect=False)
            told: list[str] = []
            pair.transport.on_removed = told.append
            if connected:
                pair.connect()
                self.assertTrue(pair.peer.connected)
                pair.bob.removed = frozenset({ALICE.id})
                self.assertEqual(told, [])
            else:
                pair.bob.removed = frozenset({ALICE.id})
                pair.connect()
            pair.network.advance(peers.RETRY_MAX_S + 0.02)
            self.assertGreater(len(told), 0)
            self.assertIn("alice:4001 was removed from this cluster", told[0])
            self.assertIn("join anew", told[0])
            self.assertEqual(pair.peer.refusal, told[0])
            self.assertFalse(pair.peer.connected)

    def test_a_removed_member_may_stop_when_it_is_told(self) -> None:
        """At once, from within the call, and nothing goes on behind it."""
        told: list[str] = []

        def stop(reason: str) -> None:
            told.append(reason)
            self.pair.peer.close()

        self.pair.transport.on_removed = stop
        self.pair.connect()
        self.network.advance(1)
        self.pair.bob.removed = frozenset({ALICE.id})
        self.network.advance(5)
        self.assertEqual(len(told), 1)
        self.assertEqual(self.pair.clock.getDelayedCalls(), [])

    def test_no_other_refusal_is_taken_for_removal(self) -> None:
        """A stranger, another cluster and somebody not ready do not stop a node."""
        told: list[str] = []
        self.pair.transport.on_removed = told.append
        self.pair.bob.removed = frozenset({ALICE.id})
        bob = self.pair.bob
        bob.cluster_id = 0xBAD
        self.pair.connect()
        self.network.advance(5)
        self.assertIn("belongs to cluster", self.pair.peer.refusal)
        bob.cluster_id, bob.member = CLUSTER, Member(0x999, BOB.name)
        self.network.advance(5)
        self.assertIn("was lost or replaced", self.pair.peer.refusal)
        bob.member = None
        self.network.advance(5)
        self.assertIn("does not belong to a cluster yet", self.pair.peer.refusal)
        self.assertEqual(told, [])

    def test_a_member_with_a_new_name(self) -> None:
        """A new peer goes to the new address at once, whichever is made or closed first."""
        moved = Member(BOB.id, "bob.example:5002")
        for close_first in (True, False):
            pair = Pair()
            pair.node.oblige()
            old = pair.peer
            pair.network.listening = {moved.name: pair.factory}
            pair.bob.member = moved
            if close_first:
                old.close()
            new = pair.transport.peer(moved)
            if not close_first:
                old.close()
            pair.network.flush()
            self.assertTrue(new.connected)
            self.assertFalse(old.connected)
            answer = new.send(Heartbeat(1, 1, 1))
            pair.network.advance(5)
            self.successResultOf(answer)
            # Nobody asks for the old name again, not even when Bob calls.
            attempts = pair.network.attempts
            self.assertEqual({name for _, name in attempts[2:]}, {moved.name})
            for link in pair.network.open_links():
                link.server.drop("restart")  # type: ignore[attr-defined]
            pair.network.flush()
            pair.transport.connect_now(BOB.id)
            pair.network.flush()
            self.assertTrue(new.connected)
            self.assertEqual({name for _, name in attempts[2:]}, {moved.name})
            new.close()
            pair.network.flush()
            self.assertEqual(pair.transport._peers, {})

    def test_this_node_with_a_new_name(self) -> None:
        """The next handshake says it."""
        self.pair.connect()
        self.pair.alice.member = Member(ALICE.id, "alice.example:5001")
        for link in self.network.open_links():
            link.server.drop("restart")  # type: ignore[attr-defined]
        self.network.advance(1)
        names = {link.server.peer_name for link in self.network.open_links()}  # type: ignore[attr-defined]
        self.assertEqual(names, {"alice.example:5001"})

    def test_a_node_that_is_not_ready_is_tried_again_soon(self) -> None:
        self.pair.factory.rpc = None
        with capturedLogs() as events:
            self.refused_for(2)
        # So it is at every join: no cause for a warning, at either end.
        levels = [event["log_level"] for event in events]
        self.assertEqual(levels, [LogLevel.info, LogLevel.info])
        self.assertLess(max(self.gaps()), peers.RETRY_MAX_S + 0.02)
        self.pair.factory.rpc = self.pair.node
        self.network.advance(1.1)
        self.assertTrue(self.pair.peer.connected)

    def test_an_impostor_is_found_out_by_the_caller(self) -> None:
        """Bob's own checks are not all that stands between Alice and a stranger."""
        stranger = Pair(connect=False)
        stranger.bob.member = Member(0x666, BOB.name)
        self.network.listening[BOB.name] = stranger.factory
        self.pair.alice.cluster_id = CLUSTER
        original = stranger.factory.greet
        stranger.factory.greet = lambda server, hello: original(  # type: ignore[method-assign]
            server, _meant_for(hello, 0x666)
        )
        self.refused_for(1)
        self.assertIn("0000000000000666 answers at bob:4002", self.pair.peer.refusal)

    def test_connect_now(self) -> None:
        """A member that has just connected to us is up: no waiting for the retry."""
        self.network.listening.clear()
        self.pair.connect()
        self.network.advance(5)
        self.network.listening[BOB.name] = self.pair.factory
        self.pair.transport.connect_now(BOB.id)
        self.pair.transport.connect_now(0x123)
        self.network.flush()
        self.assertTrue(self.pair.peer.connected)
        before = len(self.network.attempts)
        self.pair.transport.connect_now(BOB.id)
        self.network.advance(3)
        self.assertEqual(len(self.network.attempts), before)

    def test_close(self) -> None:
        self.pair.connect()
        self.pair.node.open_answers()
        asked = self.pair.peer.send(Heartbeat(1, 1, 1))
        with capturedLogs() as events:
            closed = self.pair.peer.close()
            self.assertIsInstance(failure_of(asked), PeerUnreachable)
            self.assertNoResult(closed)
            self.network.flush()
        self.successResultOf(closed)
        self.assertEqual(events, [])
        self.assertFalse(self.pair.peer.connected)
        self.network.advance(5)
        self.assertEqual(len(self.network.attempts), 2)
        self.assertEqual(self.pair.clock.getDelayedCalls(), [])

    def test_close_in_every_other_state(self) -> None:
        def waiting(pair: Pair) -> None:
            pair.network.listening.clear()

        def connecting(pair: Pair) -> None:
            pair.network.silent.add(BOB.name)

        def greeting(pair: Pair) -> None:
            pair.network.listening[BOB.name] = Factory.forProtocol(Protocol)

        for state in (waiting, connecting, greeting):
            pair = Pair(connect=False)
            state(pair)
            peer = pair.connect()
            closed = peer.close()
            pair.network.flush()
            self.successResultOf(closed)
            attempts = len(pair.network.attempts)
            pair.network.advance(5)
            self.assertEqual(len(pair.network.attempts), attempts, state)
            self.assertEqual(pair.clock.getDelayedCalls(), [], state)

    def test_peers_need_an_identity(self) -> None:
        self.pair.alice.cluster_id = 0
        self.assertRaises(ValueError, self.pair.transport.peer, BOB)

    def test_it_is_a_peer(self) -> None:
        self.assertTrue(IPeer.providedBy(self.pair.connect()))

    def test_sentences(self) -> None:
        for error, words in (
            (DNSLookupError(), "the host of bob:4002 is not known"),
            (OSError(113, "No route to host"), "No route to host"),
        ):
            self.assertIn(words, explain_connect_failure(error, BOB.name))


def _meant_for(hello: Any, member_id: int) -> Any:
    return msgspec.structs.replace(hello, to_member_id=member_id)


class JoinTests(SynchronousTestCase):
    """A node that is not a member yet."""

    carol = Member(0xCA401, "carol:4003")

    def setUp(self) -> None:
        self.pair = Pair(connect=False)
        self.network, self.node = self.pair.network, self.pair.node

    def join(self, cluster_id: int = 0, timeout_s: float = 10.0) -> Deferred[JoinAnswer]:
        joining = request_join(
            reactor_time(self.network.clock),
            self.network.endpoint(BOB.name),
            BOB.name,
            self.carol,
            cluster_id,
            timeout_s,
        )
        self.network.flush()
        return joining

    def assert_fails(
        self, joining: Deferred[JoinAnswer], kind: type[RaftdError], *words: str
    ) -> None:
        error = failure_of(joining)
        self.assertIs(type(error), kind)
        for word in words:
            self.assertIn(word, str(error))
        # Nothing is left behind.
        self.network.flush()
        self.assertEqual(self.network.open_links(), [])
        self.network.advance(boxes.BOX_TIMEOUT_S, 1.0)
        self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_joined(self) -> None:
        for cluster_id in (0, CLUSTER):
            answers = self.node.open_answers()
            joining = self.join(cluster_id)
            self.assertNoResult(joining)
            answers[0].callback(CONFIGURATION)
            self.network.flush()
            self.assertEqual(
                self.successResultOf(joining), JoinAnswer(CLUSTER, CONFIGURATION, BOB)
            )
            self.assertEqual(self.network.open_links(), [])
            self.network.advance(boxes.BOX_TIMEOUT_S, 1.0)
            self.assertEqual(self.network.clock.getDelayedCalls(), [])
        asked = ("change", [AddLearner(self.carol)], False, 10_000, False)
        self.assertEqual(self.node.asked, [asked] * 2)

    def test_nothing_is_listening(self) -> None:
        self.network.listening.clear()
        self.assert_fails(self.join(), JoinFailed, "nothing is listening at bob:4002")

    def test_silence(self) -> None:
        self.network.silent.add(BOB.name)
        joining = self.join()
        self.network.advance(join.FIRST_ANSWER_TIMEOUT_S + 0.02)
        self.assert_fails(joining, JoinFailed, "bob:4002 does not answer")

    def test_not_a_raftd_node(self) -> None:
        class Web(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        class Hangup(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.loseConnection()

        for protocol in (Web, Hangup, Protocol):
            self.network.listening[BOB.name] = Factory.forProtocol(protocol)
            joining = self.join()
            self.network.advance(join.FIRST_ANSWER_TIMEOUT_S + 0.02)
            self.assert_fails(joining, JoinFailed, "bob:4002", "as a raftd node does")

    def test_another_cluster(self) -> None:
        self.assert_fails(self.join(0xBAD), WrongCluster, "cluster")

    def test_38_a_removed_member_does_not_join_as_it_was(self) -> None:
        self.pair.bob.removed = frozenset({self.carol.id})
        self.assert_fails(self.join(CLUSTER), RemovedFromCluster, "empty its data directory")

    def test_not_ready(self) -> None:
        self.pair.factory.rpc = None
        self.assert_fails(self.join(), NotReady, "does not belong to a cluster yet")

    def test_what_the_node_says(self) -> None:
        for kind in (NameTaken, NoLeader):
            self.node.answer = lambda kind=kind: fail(kind("A sentence."))  # type: ignore[misc]
            self.assert_fails(self.join(), kind, "A sentence.")

    def test_no_answer_in_time(self) -> None:
        self.node.open_answers()
        joining = self.join(timeout_s=3)
        self.network.advance(3 + peers.GRACE_S - 0.1)
        self.assertNoResult(joining)
        self.network.advance(0.2)
        self.assert_fails(joining, JoinFailed, "3 s")

    def test_lost_on_the_way(self) -> None:
        self.node.open_answers()
        joining = self.join()
        self.pair.factory.close()
        self.network.flush()
        self.assert_fails(joining, JoinFailed, "bob:4002", "tried again")


class LoopbackTests(TestCase):
    """The same over TCP."""

    async def test_over_tcp(self) -> None:
        node = RecordingNode()
        node.oblige()
        factory = PeerServerFactory(reactor, LocalIdentity(BOB, CLUSTER), node)
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)

        def endpoint_for(name: str) -> IStreamClientEndpoint:
            return TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)

        connected: Deferred[None] = Deferred()
        transport = PeerTransport(
            reactor, LocalIdentity(ALICE, CLUSTER), endpoint_for, Random(1), 1000
        )
        peer = transport.peer(BOB)
        assert isinstance(peer, Peer)
        original = peer._raft_connected

        def note() -> None:
            original()
            connected.callback(None)

        peer._raft._connected = note
        connected.addTimeout(10, reactor)
        await connected

        for end in (peer._raft.connection, factory._members[ALICE.id, "raft", BOB.name]):
            assert end is not None
            assert end.transport is not None
            handle = end.transport.getHandle()  # type: ignore[attr-defined]
            for level, option in (
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            ):
                self.assertNotEqual(handle.getsockopt(level, option), 0)

        message = AppendEntries(5, 10, 4, 9, entries(12, 131_072))
        answers = [peer.send(message) for _ in range(3)]
        answers.append(peer.send(Heartbeat(1, 1, 1)))
        for answer in answers[:3]:
            self.assertEqual(await answer, AppendEntriesResponse(1, True, 1))
        self.assertEqual(await answers[3], HeartbeatResponse(1, 1))
        self.assertEqual([asked[2] for asked in node.asked[:3]], [message] * 3)  # type: ignore[index]

        lost = [s.disconnected for s in factory._members.values()]
        await peer.close()
        for gone in lost:
            await gone
