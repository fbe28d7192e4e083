"""Requests of peers: what they come to, how they are answered, and what is refused."""

from __future__ import annotations

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import AddLearner, Change, Promote, Remove, Rename
from raftd.core.messages import (
    AppendEntries,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Member,
    PreVote,
    PreVoteResponse,
    RequestVote,
    TimeoutNow,
    TimeoutNowResponse,
)
from raftd.errors import NoLeader, NotLeader, ProtocolViolation
from raftd.net import amp as net_amp
from raftd.net import arguments, boxes, commands
from raftd.net.commands import HelloRequest
from raftd.test.amprig import BULK_HELLO, CHANGES, HELLO, JOINER_HELLO, Served, box, request
from raftd.test.peernet import ALICE, CLUSTER, CONFIGURATION, Pair, entries


class RoutingTests(SynchronousTestCase):
    """What is answered, and by whom."""

    def test_hello_is_answered(self) -> None:
        served = Served()
        served.send(request(HELLO, b"1"))
        [answer] = served.sent()
        self.assertEqual(answer[b"cluster_id"], b"%d" % CLUSTER)
        self.assertEqual(answer[b"_answer"], b"1")
        self.assertTrue(served.server.greeted)

    def test_requests_arrive_in_order_with_their_sender(self) -> None:
        served = Served(HELLO)
        answers = served.node.open_answers()
        asked: list[msgspec.Struct] = [
            Heartbeat(1, 0, 1),
            AppendEntries(1, 0, 0, 0, entries(2, 8)),
            PreVote(2, 3, 4),
            RequestVote(2, 3, 4),
            Heartbeat(1, 0, 2),
        ]
        served.send(b"".join(request(m, b"%d" % n) for n, m in enumerate(asked)))
        self.assertEqual(served.node.asked, [("receive", ALICE.id, m) for m in asked])
        # The answers leave in the order in which they are ready.
        answers[4].callback(HeartbeatResponse(1, 2))
        answers[0].callback(HeartbeatResponse(1, 1))
        self.assertEqual([b[b"_answer"] for b in served.sent()], [b"4", b"0"])

    def test_bulk(self) -> None:
        served = Served(BULK_HELLO)
        served.node.answer = lambda: succeed([b"done", NotLeader("No.")])
        served.send(request(commands.ForwardRequest([b"a", b"b"], 500)))
        served.node.answer = lambda: succeed(CONFIGURATION)
        served.send(request(commands.ChangeMembershipRequest(CHANGES, True, 10**12)))
        served.node.answer = lambda: succeed(None)
        served.send(request(commands.TransferLeadershipRequest(7, 500)))
        served.send(request(commands.TransferLeadershipRequest(0, 500)))
        piece = InstallSnapshot(5, 100, 4, 0, b"x" * 70_000, False)
        served.node.answer = lambda: succeed(InstallSnapshotResponse(5, 70_000, False))
        served.send(request(piece))
        served.node.answer = lambda: succeed(b"so")
        served.send(request(commands.AskRequest(commands.Words(b"why?"), 500)))
        self.assertEqual(
            served.node.asked,
            [
                ("forwarded", [b"a", b"b"], 500),
                ("change", CHANGES, True, net_amp.MAX_TIMEOUT_MS, True),
                ("transfer", 7, 500, True),
                ("transfer", None, 500, True),
                ("receive", ALICE.id, piece),
                ("question", b"why?", 500),
            ],
        )
        forwarded, changed, _, _, kept, answered = served.sent()
        self.assertEqual(answered[b"answer"], b"so")
        read = commands.RPC_OF_REQUEST[commands.ForwardRequest].read_response(forwarded)
        self.assertEqual(read.outcomes[0], b"done")
        self.assertIsInstance(read.outcomes[1], NotLeader)
        rpc = commands.RPC_OF_REQUEST[commands.ChangeMembershipRequest]
        self.assertEqual(rpc.read_response(changed).configuration, CONFIGURATION)
        self.assertEqual(kept[b"next_offset"], b"70000")

    def test_changes_that_no_correct_node_asks_for(self) -> None:
        for change in (
            Promote(0),
            Remove(-1),
            AddLearner(Member(0, "a:1")),
            AddLearner(Member(1, "")),
            AddLearner(Member(1, "evil\nname:1")),
            Rename(0, "a:1"),
            Rename(1, "x" * 300),
            Rename(1, "\x1b[2J"),
        ):
            served = Served(BULK_HELLO)
            changes: list[Change] = [Promote(1), change]
            served.send(request(commands.ChangeMembershipRequest(changes, False, 1)))
            self.assertTrue(served.is_aborted, change)
            self.assertEqual(served.node.asked, [])

    def test_timeout_now_is_on_the_raft_channel(self) -> None:
        served = Served(HELLO)
        served.node.answer = lambda: succeed(TimeoutNowResponse(7))
        served.send(request(TimeoutNow(7)))
        self.assertEqual(served.node.asked, [("receive", ALICE.id, TimeoutNow(7))])
        self.assertEqual(served.sent()[0][b"term"], b"7")

    def test_read_index_is_on_the_raft_channel(self) -> None:
        served = Served(HELLO)
        served.node.answer = lambda: succeed(41)
        served.send(request(commands.ReadIndexRequest(300)))
        self.assertEqual(served.node.asked, [("read", 300)])
        self.assertEqual(served.sent()[0][b"read_index"], b"41")

    def test_39_a_joiner_may_only_join_and_only_itself(self) -> None:
        served = Served(JOINER_HELLO)
        served.node.answer = lambda: succeed(CONFIGURATION)
        served.send(request(commands.JoinRequest(ALICE.id, ALICE.name, 500)))
        # 39: whoever is asked passes it on, leader or not.
        self.assertEqual(
            served.node.asked, [("change", [AddLearner(ALICE)], False, 500, False)]
        )
        [answer] = served.sent()
        self.assertEqual(
            commands.RPC_OF_REQUEST[commands.JoinRequest].read_response(answer),
            commands.JoinResponse(CLUSTER, CONFIGURATION),
        )
        served.send(request(commands.JoinRequest(7, "c:1", 500)))
        self.assertTrue(served.is_aborted)
        for message in (
            commands.ChangeMembershipRequest([Promote(ALICE.id)], False, 500),
            commands.TransferLeadershipRequest(ALICE.id, 500),
            InstallSnapshot(1, 1, 1, 0, b"", True),
        ):
            served = Served(JOINER_HELLO)
            served.send(request(message))
            self.assertTrue(served.is_aborted)
            self.assertEqual(served.node.asked, [])

    def test_a_joiner_needs_a_name_that_leads_somewhere(self) -> None:
        for name in ("no port", "b:0", "a b:1"):
            served = Served(msgspec.structs.replace(JOINER_HELLO, name=name))
            served.send(request(commands.JoinRequest(ALICE.id, name, 500)))
            self.assertTrue(served.is_aborted, name)
            self.assertEqual(served.node.asked, [])

    def test_joiners_are_bounded(self) -> None:
        self.patch(net_amp, "MAX_JOINERS", 2)
        pair = Pair(connect=False)
        joiners = [Served(JOINER_HELLO, pair) for _ in range(3)]
        self.assertEqual([j.is_aborted for j in joiners], [True, False, False])

    def test_each_channel_carries_its_own(self) -> None:
        for hello, message in (
            (HELLO, commands.ForwardRequest([], 1)),
            (HELLO, commands.AskRequest(commands.Words(b""), 1)),
            (HELLO, commands.ChangeMembershipRequest([], False, 1)),
            (HELLO, commands.TransferLeadershipRequest(7, 1)),
            (HELLO, InstallSnapshot(1, 1, 1, 0, b"", True)),
            (BULK_HELLO, Heartbeat(1, 1, 1)),
            (BULK_HELLO, TimeoutNow(1)),
            # Only who is no member yet joins.
            (HELLO, commands.JoinRequest(7, "c:1", 1)),
            (BULK_HELLO, commands.JoinRequest(7, "c:1", 1)),
            (BULK_HELLO, commands.ReadIndexRequest(1)),
            (HELLO, HELLO),
        ):
            served = Served(hello)
            served.send(request(message))
            self.assertTrue(served.is_aborted, message)
            self.assertEqual(served.node.asked, [])

    def test_nothing_before_hello(self) -> None:
        for data in (
            request(Heartbeat(1, 1, 1)),
            box((b"_command", b"StartTLS"), (b"_ask", b"1")),
            box((b"_command", b"\xff\xfe"), (b"_ask", b"1")),
        ):
            served = Served()
            served.send(data)
            self.assertTrue(served.is_aborted)
            self.assertEqual(served.node.asked, [])

    def test_a_command_of_a_later_version_is_answered(self) -> None:
        served = Served(HELLO)
        served.send(box((b"_command", b"ReadMinds"), (b"_ask", b"7")))
        self.assertEqual(served.sent()[0][b"_error_code"], b"UNHANDLED")
        self.assertFalse(served.is_aborted)

    def test_an_expected_error_keeps_the_connection(self) -> None:
        for code, kind in arguments.WIRE_ERRORS.items():
            served = Served(HELLO)
            served.node.answer = lambda kind=kind: fail(kind("A sentence."))  # type: ignore[misc]
            served.send(request(Heartbeat(1, 1, 1)))
            [answer] = served.sent()
            self.assertEqual(answer[b"_error_code"], code.encode())
            self.assertEqual(answer[b"_error_description"], b"A sentence.")
            self.assertFalse(served.is_aborted)
            self.assertFalse(served.transport.disconnecting)

    def test_an_unexpected_error_is_logged_and_ends_the_connection(self) -> None:
        def raising() -> Deferred[object]:
            raise ZeroDivisionError("secret")

        for answer in (lambda: fail(ZeroDivisionError("secret")), raising):
            served = Served(HELLO)
            served.node.answer = answer
            served.send(request(Heartbeat(1, 1, 1)))
            [error] = served.sent()
            self.assertEqual(error[b"_error_code"], b"UNKNOWN")
            self.assertNotIn(b"secret", error[b"_error_description"])
            self.assertTrue(served.transport.disconnecting)
            # A producer that is paused would keep the transport open.
            self.assertIsNone(served.transport.producer)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_answer_that_cannot_be_sent_is_unexpected(self) -> None:
        for answer in (HeartbeatResponse(-1, 0), PreVoteResponse(1, True), None):
            served = Served(HELLO)
            served.node.answer = lambda answer=answer: succeed(answer)  # type: ignore[misc]
            served.send(request(Heartbeat(1, 1, 1)))
            self.assertEqual(served.sent()[0][b"_error_code"], b"UNKNOWN")
            self.assertTrue(served.transport.disconnecting)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_violation_found_by_the_node_ends_the_connection_without_a_traceback(
        self,
    ) -> None:
        served = Served(HELLO)
        served.node.answer = lambda: fail(ProtocolViolation("entries with a gap"))
        with capturedLogs() as events:
            served.send(request(Heartbeat(1, 1, 1)))
        self.assertTrue(served.is_aborted)
        self.assertEqual([e["reason"] for e in events], ["entries with a gap"])

    def test_lost_while_an_answer_is_pending(self) -> None:
        served = Served(HELLO)
        answers = served.node.open_answers()
        served.send(request(Heartbeat(1, 1, 1), b"1") + request(Heartbeat(1, 1, 2), b"2"))
        served.server.connectionLost(Failure(ConnectionDone()))
        answers[0].callback(HeartbeatResponse(1, 1))
        answers[1].errback(NoLeader("Gone."))
        self.assertEqual(served.sent(), [])

    def test_a_new_connection_replaces_the_old_one(self) -> None:
        pair = Pair(connect=False)
        first, second = Served(HELLO, pair), Served(HELLO, pair)
        bulk = Served(BULK_HELLO, pair)
        self.assertTrue(first.is_aborted)
        self.assertFalse(second.is_aborted or bulk.is_aborted)

    def test_30_one_under_another_name_does_not(self) -> None:
        """The node has been given another name, and is found under both."""
        pair = Pair(connect=False)
        hellos = [
            msgspec.structs.replace(HELLO, to_name=f"bob{i}:4002")
            for i in range(net_amp.MAX_NAMES_OF_NODE + 1)
        ]
        first, second, *others = (Served(hello, pair) for hello in hellos[:-1])
        bulk = Served(BULK_HELLO, pair)
        self.assertFalse(first.is_aborted or second.is_aborted)
        again = Served(hellos[1], pair)
        self.assertEqual((first.is_aborted, second.is_aborted), (False, True))
        Served(hellos[-1], pair)
        self.assertTrue(first.is_aborted, "there is no bound")
        for other in (again, bulk, *others):
            self.assertFalse(other.is_aborted)

    def test_38_two_nodes_with_one_identity_are_found_out(self) -> None:
        """Each in turn takes the place of the other, for as long as both run."""
        pair = Pair(connect=False)
        moved = msgspec.structs.replace(HELLO, name="copy:4009")

        def lines(*hellos: HelloRequest, every_s: float) -> list[str]:
            with capturedLogs() as events:
                for hello in hellos:
                    pair.clock.advance(every_s)
                    Served(hello, pair)
            return [str(formatEvent(event)) for event in events]

        self.assertEqual(lines(*[BULK_HELLO] * 9, every_s=1.0), [], "once is enough")
        self.assertEqual(lines(HELLO, moved, HELLO, moved, every_s=1.0), [])
        (said,) = lines(HELLO, moved, HELLO, moved, every_s=1.0)
        self.assertIn(f"{ALICE.id:016x}", said)
        self.assertIn("copy:4009 from a peer", said)
        self.assertIn(f"{ALICE.name} from a peer", said)
        self.assertIn("Stop the copy", said)
        # Not again and again; and again, if it goes on.
        self.assertEqual(len(lines(*[HELLO, moved] * 25, every_s=1.0)), 0)
        self.assertEqual(len(lines(*[HELLO, moved] * 30, every_s=1.0)), 1)

    def test_one_node_whose_connections_break_is_no_two(self) -> None:
        pair = Pair(connect=False)
        with capturedLogs() as events:
            for _ in range(20):  # half open at this end, now and then
                Served(HELLO, pair)
                Served(BULK_HELLO, pair)
                pair.clock.advance(net_amp.TAKEOVERS_WITHIN_S / 2)
            for _ in range(20):  # closed at this end too, however often
                served = Served(HELLO, pair)
                served.server.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(events, [])

    def test_heard_from(self) -> None:
        pair = Pair(connect=False)
        heard: list[int] = []
        pair.factory.heard_from = heard.append
        Served(HELLO, pair)
        Served(JOINER_HELLO, pair)
        self.assertEqual(heard, [ALICE.id])

    def test_38_who_is_removed_is_dropped_and_then_told(self) -> None:
        pair = Pair(connect=False)
        carol = msgspec.structs.replace(HELLO, member_id=0xC, name="carol:4003")
        raft, bulk, other = (Served(h, pair) for h in (HELLO, BULK_HELLO, carol))
        joiner = Served(msgspec.structs.replace(JOINER_HELLO, member_id=0xD), pair)
        pair.bob.removed = frozenset({0x123})
        self.assertFalse(raft.is_aborted or joiner.is_aborted)
        with capturedLogs() as events:
            pair.bob.removed = frozenset({0x123, ALICE.id, 0xD})
        self.assertTrue(raft.is_aborted and bulk.is_aborted and joiner.is_aborted)
        self.assertFalse(other.is_aborted)
        self.assertEqual(events, [])
        again = Served(None, pair)
        again.send(request(HELLO))
        self.assertEqual(again.sent()[0][b"_error_code"], b"removed")
        # The same again drops nobody: Carol was heard of in between.
        pair.bob.removed = frozenset({0x123, ALICE.id, 0xD})
        self.assertFalse(other.is_aborted)

    def test_close_drops_everything(self) -> None:
        pair = Pair(connect=False)
        all_of_them = [Served(h, pair) for h in (HELLO, BULK_HELLO, JOINER_HELLO, None)]
        pair.factory.close()
        self.assertEqual([s.is_aborted for s in all_of_them], [True] * 4)
        self.assertIsNone(pair.factory.buildProtocol(None))
        self.assertEqual(pair.clock.getDelayedCalls(), [])


class RefusalTests(SynchronousTestCase):
    """Refusals on the connection: told, logged once, closed."""

    def test_the_refusal_is_sent_and_then_the_connection_closed(self) -> None:
        served = Served()
        served.send(request(msgspec.structs.replace(HELLO, cluster_id=1)))
        self.assertEqual(served.sent()[0][b"_error_code"], b"wrong_cluster")
        served.send(request(Heartbeat(1, 1, 1)))
        self.assertEqual(served.node.asked, [])
        served = Served()
        served.send(request(msgspec.structs.replace(HELLO, cluster_id=1)))
        served.clock.advance(0)
        self.assertTrue(served.transport.disconnecting)
        # A peer that does not take the answer is not waited for.
        served.clock.advance(boxes.CLOSE_TIMEOUT_S)
        self.assertTrue(served.is_aborted)

    def test_not_ready_without_a_node(self) -> None:
        pair = Pair(connect=False)
        pair.factory.rpc = None
        served = Served(None, pair)
        served.send(request(HELLO))
        self.assertEqual(served.sent()[0][b"_error_code"], b"not_ready")

    def test_logged_once_for_each_change_of_reason(self) -> None:
        pair = Pair(connect=False)

        def lines(hello: HelloRequest) -> int:
            with capturedLogs() as events:
                Served(hello, pair)
            return len(events)

        wrong_cluster = msgspec.structs.replace(HELLO, cluster_id=1)
        wrong_member = msgspec.structs.replace(HELLO, to_member_id=1)
        self.assertEqual([lines(wrong_cluster) for _ in range(3)], [1, 0, 0])
        self.assertEqual([lines(wrong_member) for _ in range(3)], [1, 0, 0])
        self.assertEqual(lines(HELLO), 0)
        self.assertEqual(lines(wrong_member), 1)

    def test_what_is_remembered_of_refusals_is_bounded(self) -> None:
        pair = Pair(connect=False)
        for number in range(net_amp.MAX_REFUSALS_REMEMBERED + 10):
            Served(msgspec.structs.replace(HELLO, cluster_id=1, name=f"n{number}:1"), pair)
            pair.clock.advance(boxes.CLOSE_TIMEOUT_S)
        self.assertEqual(len(pair.factory._refusals), net_amp.MAX_REFUSALS_REMEMBERED)
