"""What peers say to one another, byte by byte."""

from __future__ import annotations

import msgspec
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from raftd import errors
from raftd.core.membership import MAX_CHANGES, Change, Promote
from raftd.core.messages import MAX_SNAPSHOT_PIECE_BYTES, Heartbeat, InstallSnapshot
from raftd.errors import NoLeader, OutcomeUnknown, ProtocolViolation, RaftdError
from raftd.interfaces import MAX_QUESTION_BYTES
from raftd.net import arguments, commands
from raftd.test.amprig import BIG, CHANGES, EXAMPLES, parsed, request
from raftd.test.peernet import entries


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
