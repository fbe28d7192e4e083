"""Bytes of peers in any number and any cut: the bounds of what is kept."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import succeed
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import AppendEntries, Heartbeat, HeartbeatResponse
from raftd.errors import ProtocolViolation
from raftd.net import amp as net_amp
from raftd.net import arguments, boxes, commands
from raftd.net.commands import HelloRequest
from raftd.test.amprig import (
    BULK_HELLO,
    BULK_QUESTIONS,
    CHANGES,
    EXAMPLES,
    HELLO,
    JOINER_HELLO,
    Served,
    box,
    parsed,
    request,
    string,
)
from raftd.test.peernet import ALICE, CONFIGURATION, Pair, entries


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
