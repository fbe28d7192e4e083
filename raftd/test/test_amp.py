"""
The answering side of peers: boxes, bounds, the handshake, the routing.
"""

from __future__ import annotations

import struct

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.trial.unittest import SynchronousTestCase

from raftd import errors
from raftd.core.membership import (
    MAX_CHANGES,
    AddLearner,
    Change,
    Demote,
    Promote,
    Remove,
    Rename,
)
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
    PreVoteResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TimeoutNowResponse,
)
from raftd.errors import (
    IncompatibleVersion,
    NoLeader,
    NotLeader,
    NotReady,
    OutcomeUnknown,
    PeerUnreachable,
    ProtocolViolation,
    RaftdError,
    RemovedFromCluster,
    WrongCluster,
    WrongMember,
)
from raftd.interfaces import MAX_QUESTION_BYTES
from raftd.net import amp as net_amp
from raftd.net import arguments, boxes, commands
from raftd.net.amp import PeerServer
from raftd.net.boxes import BoxConnection, NotSent
from raftd.net.commands import HelloRequest, HelloResponse
from raftd.net.handshake import LocalIdentity, answer_hello, check_answer
from raftd.test.peernet import (
    ALICE,
    BOB,
    CLUSTER,
    CONFIGURATION,
    Pair,
    entries,
    failure_of,
    reactor_time,
)

HELLO = HelloRequest(1, 1, CLUSTER, ALICE.id, ALICE.name, BOB.id, BOB.name, "raft")
BULK_HELLO = msgspec.structs.replace(HELLO, channel="bulk")
JOINER_HELLO = msgspec.structs.replace(BULK_HELLO, cluster_id=0, to_member_id=0)

BIG = 2**64 - 1

#: One change of each kind.
CHANGES: list[Change] = [
    AddLearner(Member(BIG, "d:4")),
    Promote(BIG),
    Demote(1),
    Remove(2),
    Rename(3, "e:5"),
]

#: One request and one response of every command.
EXAMPLES: list[tuple[msgspec.Struct, msgspec.Struct]] = [
    (HELLO, HelloResponse(1, BIG, BIG, "bücher.example:1")),
    (PreVote(1, 2, BIG), PreVoteResponse(1, True)),
    (RequestVote(1, 2, 3, True), RequestVoteResponse(BIG, False)),
    (AppendEntries(5, 10, 4, 9, entries(3, 80)), AppendEntriesResponse(5, True, 13)),
    (AppendEntries(5, 10, 4, 9, ()), AppendEntriesResponse(5, False, 10, 7, 2)),
    (Heartbeat(0, 0, BIG), HeartbeatResponse(0, BIG)),
    (commands.ReadIndexRequest(500), commands.ReadIndexResponse(77)),
    (
        commands.ForwardRequest([b"", b"x" * 70_000], 500),
        commands.ForwardResponse([b"one", b""]),
    ),
    (
        commands.AskRequest(commands.Words(b"x" * 70_000), 500),
        commands.AskResponse(commands.Words(b"")),
    ),
    (commands.JoinRequest(7, "c:3", 10), commands.JoinResponse(BIG, CONFIGURATION)),
    (
        commands.ChangeMembershipRequest(CHANGES, True, 10),
        commands.ChangeMembershipResponse(CONFIGURATION),
    ),
    (commands.TransferLeadershipRequest(0, 10), commands.TransferLeadershipResponse()),
    (TimeoutNow(7), TimeoutNowResponse(BIG)),
    (
        InstallSnapshot(5, 100, 4, BIG, b"\0\xff" * (MAX_SNAPSHOT_PIECE_BYTES // 2), False),
        InstallSnapshotResponse(5, BIG, False),
    ),
    (InstallSnapshot(5, 100, 4, 0, b"", True), InstallSnapshotResponse(5, 0, True)),
]

#: What is asked on the connection for bulk.
BULK_QUESTIONS = (
    commands.ForwardRequest,
    commands.AskRequest,
    commands.JoinRequest,
    commands.ChangeMembershipRequest,
    commands.TransferLeadershipRequest,
    InstallSnapshot,
)


def string(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def box(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"".join(string(key) + string(value) for key, value in pairs) + b"\0\0"


def request(message: msgspec.Struct, tag: bytes = b"1") -> bytes:
    return commands.RPC_OF_REQUEST[type(message)].request_box(tag, message)


def parsed(data: bytes) -> list[dict[bytes, bytes]]:
    """The boxes in `data`, by Twisted's own parser."""
    return [dict(found) for found in amp.parseString(data)]


class FormatTests(SynchronousTestCase):
    """Bytes and structs."""

    def test_the_bytes_of_a_heartbeat(self) -> None:
        """The format as `docs/peer-protocol.md` shows it; a change is a new version."""
        self.assertEqual(
            request(Heartbeat(7, 41, 300), b"1f"),
            b"\x00\x08_command\x00\x09Heartbeat"
            b"\x00\x04_ask\x00\x021f"
            b"\x00\x04term\x00\x017"
            b"\x00\x0dleader_commit\x00\x0241"
            b"\x00\x05round\x00\x03300"
            b"\x00\x00",
        )

    def test_the_bytes_of_changes(self) -> None:
        """The same for what members ask of the leader: tags, ids and names, in order."""
        encoded = arguments.Changes().toString(CHANGES)
        self.assertEqual(
            msgspec.msgpack.decode(encoded),
            [
                ["add_learner", [BIG, "d:4"]],
                ["promote", BIG],
                ["demote", 1],
                ["remove", 2],
                ["rename", 3, "e:5"],
            ],
        )

    def test_every_rpc_survives_the_wire(self) -> None:
        self.assertEqual({type(q) for q, _ in EXAMPLES}, set(commands.RPC_OF_REQUEST))
        for question, answer in EXAMPLES:
            rpc = commands.RPC_OF_REQUEST[type(question)]
            [asked] = parsed(rpc.request_box(b"1", question))
            self.assertEqual(asked[b"_command"], rpc.name.encode())
            self.assertEqual(rpc.read_request(asked), question)
            [answered] = parsed(rpc.response_box(b"1", answer))
            self.assertEqual(rpc.read_response(answered), answer)

    def test_the_same_bytes_as_twisted_makes(self) -> None:
        """`Rpc` is a faster way to what `amp.Command` does, in both directions."""
        for question, answer in EXAMPLES:
            rpc = commands.RPC_OF_REQUEST[type(question)]
            command = rpc.command
            fields = {f: getattr(question, f) for f in question.__struct_fields__}
            theirs = command.makeArguments(fields, None)
            [ours] = parsed(rpc.request_box(b"1", question))
            self.assertEqual({**theirs, b"_ask": b"1", b"_command": rpc.name.encode()}, ours)
            self.assertEqual(command.parseArguments(amp.Box(ours), None), fields)
            fields = {f: getattr(answer, f) for f in answer.__struct_fields__}
            [ours] = parsed(rpc.response_box(b"1", answer))
            self.assertEqual({**command.makeResponse(fields, None), b"_answer": b"1"}, ours)

    def test_fields_of_a_later_version_are_ignored(self) -> None:
        [fields] = parsed(request(Heartbeat(1, 2, 3)))
        fields[b"new_field"] = b"anything"
        rpc = commands.RPC_OF_REQUEST[Heartbeat]
        self.assertEqual(rpc.read_request(fields), Heartbeat(1, 2, 3))

    def test_a_missing_argument(self) -> None:
        rpc = commands.RPC_OF_REQUEST[Heartbeat]
        with self.assertRaisesRegex(ProtocolViolation, "round"):
            rpc.read_request({b"term": b"1", b"leader_commit": b"1"})

    def test_integers_are_strict(self) -> None:
        number = arguments.Uint64()
        for good in (0, 1, 2**63, BIG):
            self.assertEqual(number.fromString(number.toString(good)), good)
        for bad in (b"", b"-1", b"+1", b" 1", b"1 ", b"1_0", b"0x1", b"\xb2", b"1" * 21):
            with self.assertRaises(ProtocolViolation):
                number.fromString(bad)
        with self.assertRaises(ProtocolViolation):
            number.fromString(b"%d" % (BIG + 1))
        for bad_number in (-1, BIG + 1):
            with self.assertRaises(ValueError):
                number.toString(bad_number)

    def test_booleans_and_texts_are_strict(self) -> None:
        for bad in (b"", b"true", b"1"):
            with self.assertRaises(ProtocolViolation):
                arguments.Boolean().fromString(bad)
        for bad in (b"\xff", b"x" * (arguments.MAX_TEXT_BYTES + 1)):
            with self.assertRaises(ProtocolViolation):
                arguments.Text().fromString(bad)

    def test_long_payloads_take_several_values(self) -> None:
        for size in (65_534, 65_535, 65_536, 131_070, 131_071, 1_572_864):
            message = commands.ForwardRequest([b"v" * size], 1)
            [fields] = parsed(request(message))
            values = [v for k, v in fields.items() if k.startswith(b"commands")]
            self.assertEqual(
                len(values), -(-(size + 1 + (3 if size < 65_536 else 5)) // 65_535)
            )
            self.assertEqual(
                commands.RPC_OF_REQUEST[type(message)].read_request(fields), message
            )

    def test_a_payload_with_a_hole_is_refused(self) -> None:
        [fields] = parsed(request(commands.ForwardRequest([b"v" * 200_000], 1)))
        del fields[b"commands.2"]
        with self.assertRaises(ProtocolViolation):
            commands.RPC_OF_REQUEST[commands.ForwardRequest].read_request(fields)

    def test_the_longest_payload_fits_a_box_and_no_longer_one_is_sent(self) -> None:
        limit = arguments.MAX_PAYLOAD_BYTES - 6
        data = request(commands.ForwardRequest([b"v" * limit], BIG))
        self.assertLess(len(data), arguments.MAX_BOX_BYTES)
        self.assertLess(len(parsed(data)[0]), arguments.MAX_BOX_KEYS)
        with self.assertRaises(ValueError):
            request(commands.ForwardRequest([b"v" * (limit + 1)], BIG))

    def test_a_piece_of_a_snapshot_is_bounded(self) -> None:
        argument = arguments.SnapshotPiece()
        longest = b"x" * MAX_SNAPSHOT_PIECE_BYTES
        self.assertEqual(argument.fromString(argument.toString(longest)), longest)
        with self.assertRaises(ValueError):
            request(InstallSnapshot(1, 1, 1, 0, longest + b"x", False))
        with self.assertRaises(ProtocolViolation):
            argument.fromString(longest + b"x")

    def test_the_bytes_of_a_question(self) -> None:
        """The same for `Ask`, which is on the wire between programs of two versions."""
        self.assertEqual(
            request(commands.AskRequest(commands.Words(b"\0why?"), 500), b"2a"),
            b"\x00\x08_command\x00\x03Ask"
            b"\x00\x04_ask\x00\x022a"
            b"\x00\x08question\x00\x05\x00why?"
            b"\x00\x0atimeout_ms\x00\x03500"
            b"\x00\x00",
        )
        rpc = commands.RPC_OF_REQUEST[commands.AskRequest]
        self.assertEqual(
            rpc.response_box(b"2a", commands.AskResponse(commands.Words(b"so"))),
            b"\x00\x07_answer\x00\x022a\x00\x06answer\x00\x02so\x00\x00",
        )

    def test_a_question_is_bounded(self) -> None:
        argument = arguments.Question()
        longest = b"x" * MAX_QUESTION_BYTES
        self.assertEqual(argument.fromString(argument.toString(longest)), longest)
        with self.assertRaises(ValueError):
            argument.toString(longest + b"x")
        with self.assertRaises(ProtocolViolation):
            argument.fromString(longest + b"x")

    def test_changes_are_strict(self) -> None:
        argument = arguments.Changes()
        most: list[Change] = [Promote(n) for n in range(1, MAX_CHANGES + 1)]
        self.assertEqual(argument.fromString(argument.toString(most)), most)
        with self.assertRaises(ValueError):
            argument.toString([*most, Promote(1)])
        wrong: list[object] = [
            [["promote", n] for n in range(MAX_CHANGES + 1)],
            [["crown", 1]],
            [["promote"]],
            [["promote", "localhost:1"]],
            [["rename", 1]],
            [["add_learner", 1, "a:1"]],
            [[1, "promote"]],
            [{"promote": 1}],
            {},
        ]
        for bad in wrong:
            with self.assertRaises(ProtocolViolation):
                argument.fromString(msgspec.msgpack.encode(bad))
        for garbage in (b"", b"\xc1", b"\x91" * 5000):
            with self.assertRaises(ProtocolViolation):
                argument.fromString(garbage)

    def test_the_same_entries_are_encoded_once(self) -> None:
        argument = arguments.Entries()
        batch = entries(4, 64)
        first = argument.toString(batch)
        self.assertIs(argument.toString(batch), first)
        other = entries(5, 64)
        self.assertEqual(argument.fromString(argument.toString(other)), other)
        self.assertEqual(argument.fromString(argument.toString(batch)), batch)

    def test_outcomes_of_every_class(self) -> None:
        found = [kind(f"About {code}.") for code, kind in arguments.WIRE_ERRORS.items()]
        outcomes: list[bytes | RaftdError] = [b"result", *found, b""]
        argument = arguments.Outcomes()
        back = argument.fromString(argument.toString(outcomes))
        self.assertEqual(
            [o if isinstance(o, bytes) else (type(o), str(o)) for o in back],
            [o if isinstance(o, bytes) else (type(o), str(o)) for o in outcomes],
        )

    def test_an_outcome_that_a_later_version_invented_is_unknown(self) -> None:
        data = msgspec.msgpack.encode([("brand_new", "Who knows.")])
        [outcome] = arguments.Outcomes().fromString(data)
        self.assertIsInstance(outcome, OutcomeUnknown)
        self.assertEqual(str(outcome), "Who knows.")

    def test_results_too_large_to_send_are_unknown_not_refused(self) -> None:
        """They were applied: only this answer cannot tell."""
        size = arguments.MAX_PAYLOAD_BYTES // 2
        message = commands.ForwardResponse([b"a" * size, b"b" * size, b"c"])
        rpc = commands.RPC_OF_REQUEST[commands.ForwardRequest]
        [fields] = parsed(rpc.response_box(b"1", message))
        back = rpc.read_response(fields).outcomes
        self.assertEqual(back[0], b"a" * size)
        self.assertIsInstance(back[1], OutcomeUnknown)
        self.assertEqual(back[2], b"c")

    def test_the_longest_outcomes_fit(self) -> None:
        worst: list[bytes | RaftdError] = [
            NoLeader("é" * 5000) for _ in range(arguments.MAX_FORWARDED_COMMANDS)
        ]
        rpc = commands.RPC_OF_REQUEST[commands.ForwardRequest]
        data = rpc.response_box(b"1", commands.ForwardResponse(worst))
        self.assertLess(len(data), arguments.MAX_BOX_BYTES)

    def test_what_may_cross(self) -> None:
        for kind in (
            errors.NoQuorum,
            errors.NotLeader,
            errors.NameTaken,
            errors.WrongMember,
            errors.OutcomeUnknown,
            errors.Overloaded,
            errors.ChangeInProgress,
            errors.NotCaughtUp,
            errors.TransferFailed,
            errors.RemovedFromCluster,
            errors.SnapshotDamaged,
        ):
            self.assertTrue(arguments.crosses(kind("x")))
        for other in (
            errors.StorageFailed,
            errors.Removed,
            errors.BadAnswer,
            ProtocolViolation,
        ):
            self.assertFalse(arguments.crosses(other("x")))
        self.assertFalse(arguments.crosses(ValueError("x")))


class HandshakeTests(SynchronousTestCase):
    """Who may talk to whom."""

    def setUp(self) -> None:
        self.bob = LocalIdentity(BOB, CLUSTER)

    def hello(self, **changes: object) -> HelloRequest:
        return msgspec.structs.replace(HELLO, **changes)

    def refused(self, kind: type[RaftdError], **changes: object) -> str:
        with self.assertRaises(kind) as caught:
            answer_hello(self.bob, self.hello(**changes))
        return str(caught.exception)

    def test_a_member(self) -> None:
        answer = answer_hello(self.bob, HELLO)
        self.assertEqual(answer, HelloResponse(1, CLUSTER, BOB.id, BOB.name))
        check_answer(LocalIdentity(ALICE, CLUSTER), BOB, answer)

    def test_versions(self) -> None:
        for first, last in ((0, 1), (1, 1), (1, 9)):
            hello = self.hello(version_min=first, version_max=last)
            self.assertEqual(answer_hello(self.bob, hello).version, 1)
        for first, last in ((2, 5), (0, 0)):
            sentence = self.refused(IncompatibleVersion, version_min=first, version_max=last)
            self.assertIn("upgrade", sentence)

    def test_the_version_is_judged_before_what_later_versions_may_change(self) -> None:
        self.refused(IncompatibleVersion, version_min=2, version_max=2, channel="new")

    def test_another_cluster(self) -> None:
        sentence = self.refused(WrongCluster, cluster_id=0xBAD)
        self.assertIn(f"{CLUSTER:016x}", sentence)
        self.assertIn("0000000000000bad", sentence)

    def test_38_a_wiped_node_under_its_old_name(self) -> None:
        """Bob's directory was lost; somebody new answers where Alice looks for Bob."""
        sentence = self.refused(WrongMember, to_member_id=0xB0B)
        self.assertIn("bob:4002 was lost or replaced", sentence)

    def test_a_copied_directory(self) -> None:
        self.assertIn("copy", self.refused(WrongMember, member_id=BOB.id))

    def test_38_a_removed_member(self) -> None:
        """Its old identity is worth nothing any more, under whatever name."""
        self.bob.removed = frozenset({ALICE.id, 0x123})
        for name in (ALICE.name, "new:1"):
            sentence = self.refused(RemovedFromCluster, name=name)
            self.assertIn(f"{name} was removed from this cluster", sentence)
            self.assertIn("empty its data directory and join anew", sentence)
        # Nor may it join with that identity.
        self.refused(RemovedFromCluster, cluster_id=0, to_member_id=0, channel="bulk")
        # The directory emptied, it is somebody else.
        self.assertEqual(answer_hello(self.bob, self.hello(member_id=0xA2)).member_id, BOB.id)

    def test_only_who_is_meant_says_that_somebody_was_removed(self) -> None:
        """Whoever hears it stops for good: nobody says it to a stranger."""
        self.bob.removed = frozenset({ALICE.id})
        self.refused(WrongCluster, cluster_id=0xBAD)
        self.refused(WrongMember, to_member_id=0xB0B)
        self.bob.cluster_id = 0
        self.refused(NotReady)

    def test_not_ready(self) -> None:
        for identity in (LocalIdentity(), LocalIdentity(BOB, 0)):
            self.assertFalse(identity.is_ready)
            with self.assertRaisesRegex(NotReady, "bob:4002 does not belong to a cluster"):
                answer_hello(identity, HELLO)

    def test_a_joiner(self) -> None:
        self.assertEqual(answer_hello(self.bob, JOINER_HELLO).cluster_id, CLUSTER)
        again = msgspec.structs.replace(JOINER_HELLO, cluster_id=CLUSTER)
        self.assertEqual(answer_hello(self.bob, again).member_id, BOB.id)
        self.refused(WrongCluster, channel="bulk", cluster_id=0xBAD, to_member_id=0)

    def test_what_no_correct_node_says(self) -> None:
        for changes in (
            {"member_id": 0},
            {"cluster_id": 0},
            {"channel": "other"},
            {"to_member_id": 0},
            {"name": ""},
            {"name": "x" * 300},
            {"name": "evil\nname:1"},
            {"to_name": "\x1b[2J"},
        ):
            self.refused(ProtocolViolation, **changes)

    def test_the_caller_checks_who_answers(self) -> None:
        alice = LocalIdentity(ALICE, CLUSTER)
        good = HelloResponse(1, CLUSTER, BOB.id, BOB.name)
        for kind, changes in (
            (ProtocolViolation, {"version": 2}),
            (WrongCluster, {"cluster_id": 0xBAD}),
            (WrongMember, {"member_id": 0xB0B}),
        ):
            with self.assertRaises(kind):
                check_answer(alice, BOB, msgspec.structs.replace(good, **changes))


class Served:
    """A `PeerServer` on a StringTransport, for raw bytes."""

    def __init__(self, hello: HelloRequest | None = None, pair: Pair | None = None) -> None:
        self.pair = pair or Pair(connect=False)
        self.node = self.pair.node
        self.clock = self.pair.clock
        server = self.pair.factory.buildProtocol(None)
        assert server is not None
        self.server: PeerServer = server
        self.transport = StringTransport()
        self.server.makeConnection(self.transport)
        if hello is not None:
            self.send(request(hello, b"h"))
            self.clock.advance(0)
            self.transport.clear()

    def send(self, data: bytes) -> None:
        self.server.dataReceived(data)

    def sent(self) -> list[dict[bytes, bytes]]:
        found = parsed(self.transport.value())
        self.transport.clear()
        return found

    @property
    def is_aborted(self) -> bool:
        return bool(self.transport.disconnected)


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


class BoundTests(SynchronousTestCase):
    """Every bound: one line in the log, and the connection is gone."""

    def assert_cut_off(self, served: Served, *data: bytes, reason: str) -> None:
        with capturedLogs() as events:
            for piece in data:
                self.assertFalse(served.is_aborted)
                served.send(piece)
        self.assertTrue(served.is_aborted)
        [event] = events
        self.assertIn(reason, event["reason"])
        # It stays closed, and nothing is kept.
        served.send(request(Heartbeat(1, 1, 1)))
        self.assertEqual(served.node.asked, [])
        self.assertEqual((served.server._box, bytes(served.server._pending)), ({}, b""))

    def test_a_key_that_is_too_long(self) -> None:
        self.assert_cut_off(Served(HELLO), b"GET / HTTP/1.1\r\n", reason="AMP")
        self.assert_cut_off(Served(HELLO), b"\x01", b"\x00", reason="AMP")

    def test_too_many_keys(self) -> None:
        keys = [string(b"k%d" % n) + string(b"") for n in range(arguments.MAX_BOX_KEYS)]
        self.assert_cut_off(Served(HELLO), *keys, string(b"last"), reason="keys")

    def test_the_same_key_twice(self) -> None:
        data = string(b"k") + string(b"1")
        self.assert_cut_off(Served(HELLO), data, string(b"k"), reason="same key twice")

    def test_too_many_bytes(self) -> None:
        """The box is given up when a length is announced, before the bytes come."""
        values = [
            string(b"k%02d" % n) + string(b"v" * 65_535)
            for n in range(arguments.MAX_BOX_BYTES // 65_542)
        ]
        self.assert_cut_off(
            Served(HELLO), *values, string(b"last"), b"\xff\xff", reason="bytes"
        )

    def test_a_box_that_never_ends(self) -> None:
        served = Served(HELLO)
        served.send(string(b"_command"))
        served.clock.advance(boxes.BOX_TIMEOUT_S - 1)
        served.send(string(b"Heartbeat"))
        self.assertFalse(served.is_aborted)
        with capturedLogs() as events:
            served.clock.advance(1)
        self.assertTrue(served.is_aborted)
        self.assertIn("not complete", events[0]["reason"])

    def test_boxes_that_end_are_each_timed_by_themselves(self) -> None:
        """A stream that is never between two boxes when it is looked at is fine."""
        served = Served(HELLO)
        served.node.answer = lambda: succeed(HeartbeatResponse(1, 1))
        stream = request(Heartbeat(1, 1, 1)) * 10
        served.send(stream[:30])
        for start in range(30, len(stream) - 100, 91):
            served.clock.advance(boxes.BOX_TIMEOUT_S * 0.9)
            served.send(stream[start : start + 91])
        self.assertFalse(served.is_aborted)
        self.assertGreater(len(served.node.asked), 5)

    def test_an_idle_connection_has_no_timer_left(self) -> None:
        served = Served(HELLO)
        served.node.answer = lambda: succeed(HeartbeatResponse(1, 1))
        data = request(Heartbeat(1, 1, 1))
        served.send(data[:20])
        served.send(data[20:])
        served.clock.advance(boxes.BOX_TIMEOUT_S)
        self.assertEqual(served.clock.getDelayedCalls(), [])
        self.assertFalse(served.is_aborted)

    def test_too_many_calls_at_once(self) -> None:
        served = Served(HELLO)
        answers = served.node.open_answers()
        for number in range(boxes.MAX_CALLS):
            served.send(request(Heartbeat(1, 1, number), b"%d" % number))
        answers[0].callback(HeartbeatResponse(1, 1))
        served.send(request(Heartbeat(1, 1, 1), b"more"))
        self.assertFalse(served.is_aborted)
        served.node.asked.clear()
        self.assert_cut_off(served, request(Heartbeat(1, 1, 1), b"x"), reason="too many")

    def test_too_many_bytes_of_calls_at_once(self) -> None:
        served = Served(BULK_HELLO)
        served.node.open_answers()
        data = request(commands.ForwardRequest([b"x" * 4_000_000], 1))
        for _ in range(boxes.MAX_CALLS_BYTES // len(data)):
            served.send(data)
        self.assertFalse(served.is_aborted)
        served.node.asked.clear()
        self.assert_cut_off(served, data, reason="too many")

    def test_garbage_arguments(self) -> None:
        ask = ((b"_command", b"Heartbeat"), (b"_ask", b"1"))
        good = ((b"term", b"1"), (b"leader_commit", b"1"))
        for bad in (b"", b"-1", b"x", b"1" * 1000):
            self.assert_cut_off(
                Served(HELLO), box(*ask, *good, (b"round", bad)), reason="64-bit"
            )
        self.assert_cut_off(Served(HELLO), box(*ask, *good), reason="no argument")

    def test_garbage_payloads(self) -> None:
        head = request(AppendEntries(1, 1, 1, 1, ()))
        for bad in (b"", b"\x91", b"\x91\x01", b"\xc1", b"\x91" * 5000, b"\x91\x95\x01"):
            data = head.replace(
                string(b"entries") + string(b"\x90"), string(b"entries") + string(bad)
            )
            self.assertNotEqual(data, head)
            self.assert_cut_off(Served(HELLO), data, reason="log entries")

    def test_a_request_that_wants_no_answer(self) -> None:
        command = (b"_command", b"Heartbeat")
        self.assert_cut_off(Served(HELLO), box(command), reason="no answer")
        self.assert_cut_off(Served(HELLO), box(command, (b"_ask", b"")), reason="no answer")
        tag = b"x" * (boxes.MAX_TAG_BYTES + 1)
        self.assert_cut_off(Served(HELLO), box(command, (b"_ask", tag)), reason="no answer")

    def test_unsolicited_answers(self) -> None:
        for key in (b"_answer", b"_error"):
            for hello in (HELLO, None):
                self.assert_cut_off(Served(hello), box((key, b"1")), reason="not asked")

    def test_boxes_that_say_nothing(self) -> None:
        self.assert_cut_off(Served(HELLO), b"\0\0", reason="neither")
        self.assert_cut_off(Served(HELLO), box((b"a", b"b")), reason="neither")

    def test_hello_has_a_deadline(self) -> None:
        served = Served()
        served.clock.advance(net_amp.HELLO_TIMEOUT_S - 0.1)
        self.assertFalse(served.is_aborted)
        served.clock.advance(0.1)
        self.assertTrue(served.is_aborted)
        served = Served(HELLO)
        served.clock.advance(net_amp.HELLO_TIMEOUT_S)
        self.assertFalse(served.is_aborted)

    def test_strangers_are_bounded(self) -> None:
        pair = Pair(connect=False)
        member = Served(HELLO, pair)
        strangers = [Served(None, pair) for _ in range(net_amp.MAX_STRANGERS + 1)]
        self.assertEqual([s.is_aborted for s in strangers[:2]], [True, False])
        self.assertFalse(member.is_aborted)

    def test_answers_that_nobody_reads(self) -> None:
        served = Served(BULK_HELLO)
        served.node.answer = lambda: succeed([b"r" * 3_000_000])
        data = request(commands.ForwardRequest([b"c"], 1))
        served.server.pauseProducing()
        for _ in range(boxes.MAX_UNSENT_BYTES // 3_000_000):
            served.send(data)
        self.assertFalse(served.is_aborted)
        served.server.resumeProducing()
        served.server.pauseProducing()
        for _ in range(boxes.MAX_UNSENT_BYTES // 3_000_000):
            served.send(data)
        self.assertFalse(served.is_aborted)
        served.node.asked.clear()
        with capturedLogs() as events:
            served.send(data)
        self.assertTrue(served.is_aborted)
        self.assertIn("does not read", events[0]["reason"])


class StreamTests(SynchronousTestCase):
    """However TCP cuts the stream."""

    def setUp(self) -> None:
        self.served = Served(HELLO)
        self.served.node.oblige()

    def received(self) -> list[object]:
        return [what[2] for what in self.served.node.asked]  # type: ignore[index]

    def test_byte_by_byte(self) -> None:
        asked = [AppendEntries(n, 10, 4, 9, entries(n, 80)) for n in range(3)]
        for byte in b"".join(request(m) for m in asked):
            self.served.send(bytes([byte]))
        self.assertEqual(self.received(), asked)

    def test_a_large_append_entries_in_small_pieces(self) -> None:
        """1.5 MiB in several values; nothing is copied once for each piece."""
        message = AppendEntries(5, 10, 4, 9, entries(12, 131_072))
        data = request(message)
        self.assertGreater(len(data), 12 * 131_072)
        self.assertGreater(len(parsed(data)[0]), 24)
        for start in range(0, len(data), 1448):
            self.served.send(data[start : start + 1448])
            self.assertLessEqual(len(self.served.server._pending), 65_537 + 1448)
        self.assertEqual(self.received(), [message])

    @settings(derandomize=True, max_examples=60, deadline=None, database=None)
    @given(st.lists(st.integers(1, 400), max_size=30), st.integers(0, 400))
    def test_any_cut(self, cuts: list[int], size: int) -> None:
        self.setUp()
        asked = [Heartbeat(1, 2, size), AppendEntries(5, 1, 1, 1, entries(3, size))]
        data = b"".join(request(m) for m in asked)
        for cut in cuts:
            self.served.send(data[:cut])
            data = data[cut:]
        self.served.send(data)
        self.assertEqual(self.received(), asked)


class FuzzTests(SynchronousTestCase):
    """Whatever comes in, nothing raises, and what is kept stays within bounds."""

    def feed(self, hello: HelloRequest | None, pieces: list[bytes]) -> Served:
        served = Served(hello)
        served.node.oblige()
        for piece in pieces:
            served.send(piece)
            kept = sum(len(k) + len(v) for k, v in served.server._box.items())
            self.assertLessEqual(kept, arguments.MAX_BOX_BYTES)
            self.assertLessEqual(len(served.server._pending), 65_537 + len(piece))
        # Closed, or still within a box, or answered: in the end all are gone.
        served.clock.advance(boxes.BOX_TIMEOUT_S)
        return served

    @settings(
        derandomize=True,
        max_examples=150,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.sampled_from([None, HELLO, BULK_HELLO, JOINER_HELLO]), st.lists(st.binary()))
    def test_raw_bytes(self, hello: HelloRequest | None, pieces: list[bytes]) -> None:
        served = self.feed(hello, pieces)
        if hello is None or any(pieces):
            # Random bytes never form a whole box that is right.
            self.assertTrue(served.is_aborted)

    keys = st.sampled_from(
        b"_command _ask _answer _error _error_code term round leader_commit entries entries.1 "
        b"prev_log_index prev_log_term commands timeout_ms member_id name \xff".split()
    )
    values = st.one_of(
        st.binary(max_size=30),
        st.sampled_from([rpc.name.encode() for rpc in commands.RPCS]),
        st.integers(0, 2**65).map(lambda n: b"%d" % n),
    )

    @settings(derandomize=True, max_examples=150, deadline=None, database=None)
    @given(
        st.sampled_from([None, HELLO, BULK_HELLO, JOINER_HELLO]),
        st.lists(st.dictionaries(keys, values).map(lambda d: box(*d.items()))),
    )
    def test_boxes_of_nonsense(self, hello: HelloRequest | None, pieces: list[bytes]) -> None:
        served = self.feed(hello, pieces)
        self.assertEqual(served.server._calls, {})

    #: Most of a large box is payload; what is peculiar comes first.
    places = st.one_of(st.integers(0, 250), st.integers(0, 10**6))

    @settings(derandomize=True, max_examples=400, deadline=None, database=None)
    @given(st.integers(0, len(EXAMPLES) - 1), places, st.integers(0, 255))
    def test_one_byte_changed(self, which: int, where: int, byte: int) -> None:
        """
        It gets one answer, or the connection is closed without any; and the node
        is asked nothing but what the bytes say, to which it answers.
        """
        question = EXAMPLES[which][0]
        hello = BULK_HELLO if isinstance(question, BULK_QUESTIONS) else HELLO
        intact = request(question)
        data = bytearray(intact)
        data[where % len(data)] = byte
        served = self.feed(None if type(question) is HelloRequest else hello, [bytes(data)])
        answers, asked = served.sent(), served.node.asked
        self.assertEqual(len(answers) + served.is_aborted, 1)
        self.assertLessEqual(len(asked), sum(b"_answer" in answer for answer in answers))
        if answers:
            # The box is whole: Twisted's own parser finds it, and what it says.
            [fields] = parsed(bytes(data))
            [answer] = answers
            self.assertEqual(answer.get(b"_answer", answer.get(b"_error")), fields[b"_ask"])
            rpc = commands.RPC_OF_NAME.get(fields[b"_command"])
            self.assertEqual(rpc is None, answer.get(b"_error_code") == b"UNHANDLED")
        for what in asked:
            assert rpc is not None
            assert isinstance(what, tuple)
            said = rpc.read_request(fields)
            self.assertEqual(type(said), type(question))
            if what[0] == "receive":
                self.assertEqual(what, ("receive", ALICE.id, said))
        if bytes(data) == intact and type(question) is not commands.JoinRequest:
            self.assertIn(b"_answer", answers[0])
            self.assertEqual(len(asked), type(question) is not HelloRequest)

    def test_text_that_is_none_is_refused(self) -> None:
        """MessagePack does not say what bytes a text has; and nothing here raises for them."""
        for name in (b"d:4", b"add_learner", b"e:5"):
            data = request(commands.ChangeMembershipRequest(CHANGES, True, 10))
            served = self.feed(BULK_HELLO, [data.replace(name, b"\xeb" + name[1:])])
            self.assertEqual((served.is_aborted, served.node.asked), (True, []))
        with self.assertRaises(ProtocolViolation):
            arguments.Outcomes().fromString(b"\x91\x92\xa1\xeb\xa1x")
        encoded = arguments.ConfigurationArgument().toString(CONFIGURATION)
        with self.assertRaises(ProtocolViolation):
            bad = encoded.replace(b"alice", b"\xeblice")
            arguments.ConfigurationArgument().fromString(bad)


class InteropTests(SynchronousTestCase):
    """It is AMP: Twisted's own implementation talks to it, both ways."""

    def link(self, client: object, server: object, pair: Pair) -> IOPump:
        pump: IOPump = connect(
            server,
            FakeTransport(server, isServer=True),
            client,
            FakeTransport(client, isServer=False),
            clock=pair.clock,
        )
        return pump

    def test_a_client_of_twisted(self) -> None:
        pair = Pair(connect=False)
        pair.node.answer = lambda: succeed(AppendEntriesResponse(5, True, 13))
        client = amp.AMP()
        pump = self.link(client, pair.factory.buildProtocol(None), pair)
        greeted = client.callRemote(commands.Hello, **msgspec.structs.asdict(HELLO))
        pump.flush()
        self.assertEqual(self.successResultOf(greeted)["name"], BOB.name)
        message = AppendEntries(5, 10, 4, 9, entries(3, 65_536))
        fields = {f: getattr(message, f) for f in message.__struct_fields__}
        answer = client.callRemote(commands.AppendEntries, **fields)
        pump.flush()
        self.assertEqual(self.successResultOf(answer)["match_index"], 13)
        self.assertEqual(pair.node.asked, [("receive", ALICE.id, message)])
        pair.node.answer = lambda: fail(NotLeader("Ask another."))
        answer = client.callRemote(commands.Heartbeat, term=1, leader_commit=1, round=1)
        # Twisted calls an error unhandled that has no errback when it arrives.
        refused = answer.addErrback(lambda failure: failure.value)
        pump.flush()
        error = self.successResultOf(refused)
        self.assertEqual((type(error), str(error)), (NotLeader, "Ask another."))

    def test_a_server_of_twisted(self) -> None:
        class Server(amp.AMP):
            @commands.Heartbeat.responder
            def heartbeat(self, term: int, leader_commit: int, round: int) -> dict[str, int]:
                if round == 0:
                    raise NotLeader("Not me.")
                return {"term": term, "round": round}

        pair = Pair(connect=False)
        client = BoxConnection(
            reactor_time(pair.clock), "twisted", lambda _: None, lambda _: None
        )
        pump = self.link(client, Server(), pair)
        answer = client.ask(Heartbeat(4, 5, 6), 1.0)
        refused = client.ask(Heartbeat(4, 5, 0), 1.0)
        unknown = client.ask(PreVote(1, 1, 1), 1.0)
        pump.flush()
        self.assertEqual(self.successResultOf(answer), HeartbeatResponse(4, 6))
        self.assertEqual(str(self.failureResultOf(refused, NotLeader).value), "Not me.")
        self.failureResultOf(unknown, IncompatibleVersion)


class AskTests(SynchronousTestCase):
    """The asking end, against whatever bytes come back."""

    def setUp(self) -> None:
        self.pair = Pair(connect=False)
        self.clock = self.pair.clock
        self.reports: list[str] = []
        self.closed: list[BoxConnection] = []
        self.connection = BoxConnection(
            reactor_time(self.clock), "bob:4002", self.reports.append, self.closed.append
        )
        self.transport = StringTransport()
        self.connection.makeConnection(self.transport)

    def ask(self, number: int = 1, timeout_s: float = 1.0) -> Deferred[object]:
        return self.connection.ask(Heartbeat(1, 1, number), timeout_s)

    def answer(self, tag: bytes) -> bytes:
        rpc = commands.RPC_OF_REQUEST[Heartbeat]
        return rpc.response_box(tag, HeartbeatResponse(1, 1))

    def test_a_call_that_times_out_closes_its_connection(self) -> None:
        """And takes all other calls with it, before anyone can make another."""
        patient = self.ask(1, 5.0)
        late = self.ask(2, 1.0)
        during: list[BaseException] = []
        late.addErrback(lambda _: during.append(failure_of(self.ask(3))))
        self.clock.advance(0.99)
        self.assertEqual(self.closed, [])
        self.clock.advance(0.01)
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.reports, ["no answer to Heartbeat within 1000 ms"])
        self.assertEqual(self.closed, [self.connection])
        error = failure_of(patient)
        self.assertIsInstance(error, PeerUnreachable)
        self.assertNotIsInstance(error, NotSent)
        self.assertIn("bob:4002", str(error))
        self.assertIsInstance(during[0], NotSent)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_answer_in_time_is_the_end_of_it(self) -> None:
        for number in range(1, 20):
            asked = self.ask(number)
            self.clock.advance(0.9)
            self.connection.dataReceived(self.answer(b"%x" % number))
            self.assertEqual(self.successResultOf(asked), HeartbeatResponse(1, 1))
        self.clock.advance(5)
        self.assertEqual((self.reports, self.clock.getDelayedCalls()), ([], []))

    def test_a_shorter_timeout_after_a_longer_one(self) -> None:
        self.ask(1, 5.0).addErrback(lambda _: None)
        self.clock.advance(1)
        self.ask(2, 0.5).addErrback(lambda _: None)
        self.clock.advance(0.5)
        self.assertIn("500 ms", self.reports[0])

    def test_garbage_in_an_answer(self) -> None:
        for bad in (
            box((b"_answer", b"1"), (b"term", b"x"), (b"round", b"1")),
            box((b"_answer", b"1")),
            box((b"_answer", b"2")),
            box((b"_error", b"2")),
        ):
            self.setUp()
            asked = self.ask()
            self.connection.dataReceived(bad)
            self.assertIsInstance(failure_of(asked), PeerUnreachable)
            self.assertEqual(len(self.reports), 1)

    def test_the_same_answer_twice(self) -> None:
        asked = self.ask()
        self.connection.dataReceived(self.answer(b"1") * 2)
        self.successResultOf(asked)
        self.assertIn("not asked", self.reports[0])

    def test_errors_arrive_as_themselves(self) -> None:
        for code, kind in arguments.WIRE_ERRORS.items():
            self.setUp()
            asked = self.ask()
            self.connection.dataReceived(commands.error_box(b"1", code.encode(), "Why."))
            error = failure_of(asked)
            self.assertIs(type(error), kind)
            self.assertEqual(str(error), "Why.")
            self.assertEqual(self.closed, [])

    def test_errors_without_code_or_sentence(self) -> None:
        asked = self.ask()
        self.connection.dataReceived(box((b"_error", b"1")))
        self.assertIsInstance(failure_of(asked), RaftdError)
        asked = self.ask()
        self.connection.dataReceived(box((b"_error", b"2"), (b"_error_code", b"UNKNOWN")))
        self.assertIsInstance(failure_of(asked), PeerUnreachable)
        self.assertEqual(self.reports, [])

    def test_requests_from_the_end_that_answers(self) -> None:
        self.connection.dataReceived(request(Heartbeat(1, 1, 1)))
        self.assertIn("Heartbeat is not for this connection", self.reports[0])

    def test_calls_are_bounded(self) -> None:
        asked = [self.ask(n) for n in range(boxes.MAX_CALLS)]
        self.transport.clear()
        self.assertIsInstance(failure_of(self.ask()), NotSent)
        self.assertEqual(self.transport.value(), b"")
        self.connection.dataReceived(self.answer(b"1"))
        self.successResultOf(asked[0])
        asked.append(self.ask())
        self.connection.drop("done")
        for deferred in asked[1:]:
            self.assertIsInstance(failure_of(deferred), PeerUnreachable)

    def big(self) -> Deferred[object]:
        return self.connection.ask(commands.ForwardRequest([b"x" * 4_000_000], 1), 1.0)

    def test_bytes_of_calls_are_bounded(self) -> None:
        for _ in range(boxes.MAX_CALLS_BYTES // 4_000_100):
            self.assertNoResult(self.big())
        self.assertIsInstance(failure_of(self.big()), NotSent)
        self.assertNoResult(self.ask())

    def test_unsent_bytes_are_bounded(self) -> None:
        self.connection.pauseProducing()
        for _ in range(boxes.MAX_UNSENT_BYTES // 4_000_100):
            self.assertNoResult(self.big())
        self.assertIsInstance(failure_of(self.big()), NotSent)
        self.connection.resumeProducing()
        self.assertNoResult(self.big())

    def test_a_request_that_breaks_the_format_is_not_sent(self) -> None:
        self.failureResultOf(self.connection.ask(Heartbeat(-1, 1, 1), 1.0), ValueError)
        self.assertEqual(self.transport.value(), b"")
        self.assertNoResult(self.ask())

    def test_lost(self) -> None:
        asked = self.ask()
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.assertIsInstance(failure_of(asked), PeerUnreachable)
        self.assertEqual((self.reports, self.closed), ([], [self.connection]))
        self.successResultOf(self.connection.disconnected)
        self.assertIsInstance(failure_of(self.ask()), NotSent)
