"""Whatever comes in on the port, from peers, and as answers to what a node has asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import encode_configuration
from raftd.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    PreVote,
    PreVoteResponse,
    Request,
    RequestVote,
    RequestVoteResponse,
    Response,
    TimeoutNow,
    TimeoutNowResponse,
)
from raftd.errors import InvariantViolated, ProtocolViolation, RaftdError
from raftd.interfaces import IRequest
from raftd.net import arguments, boxes, commands
from raftd.net.boxes import BoxConnection
from raftd.net.http1 import HTTPFactory
from raftd.net.port import SNIFF_TIMEOUT_S, PortFactory
from raftd.test.amprig import (
    BULK_HELLO,
    BULK_QUESTIONS,
    EXAMPLES,
    HELLO,
    JOINER_HELLO,
    Served,
    box,
    parsed,
    request,
)
from raftd.test.cores import THREE, Disk, Node, log_of
from raftd.test.fuzz import INTEGERS, SIZES, VALUES, damages, fuzz, packed, pieces
from raftd.test.peernet import CONFIGURATION, Pair, reactor_time

Damage = Callable[[bytes], bytes]

#: The longest key and the longest value of a box, with their lengths.
MAX_PENDING_BYTES = 65_537

# -- the first bytes ---------------------------------------------------------------

#: How connections begin.
BEGINNINGS = st.sampled_from(
    [
        b"",
        b"\0",
        b"\0\x04",
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"P",
        b"PRO",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G",
        b"get",
        b"\xff",
        request(HELLO),
        b"SSH-2.0-x\r\n",
    ]
)


class PortFuzz(SynchronousTestCase):
    """The port as a server has it, with both protocols behind it."""

    @fuzz(200, BEGINNINGS, st.binary(max_size=300), damages(), SIZES)
    def test_first_bytes(
        self, beginning: bytes, rest: bytes, damage: Damage, sizes: list[int]
    ) -> None:
        pair, handled = Pair(connect=False), list[IRequest]()
        pair.node.oblige()

        def handle(request: IRequest) -> None:
            handled.append(request)
            request.respond(200, b"{}")

        http = HTTPFactory(handle, pair.clock, pair.clock.seconds)
        port = PortFactory(pair.factory, http, reactor_time(pair.clock))
        connection = port.buildProtocol(None)
        assert connection is not None
        transport = StringTransport()
        connection.makeConnection(transport)
        for piece in pieces(beginning + damage(beginning + rest), [1, *sizes]):
            if transport.disconnecting or transport.disconnected:
                break
            connection.dataReceived(piece)
            # Not yet told apart: no more than the longest beginning of two.
            undecided = getattr(connection, "_inner", None) is None
            if undecided and not transport.disconnecting:
                self.assertLess(len(connection._received), 4)
        for _ in range(SNIFF_TIMEOUT_S + 200):
            pair.clock.advance(1)
        # Whoever it is has been silent for longer than any may, but a peer.
        is_peer = b"_answer" in transport.value()
        self.assertTrue(transport.disconnecting or transport.disconnected or is_peer)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((port.connections, http.connections), (set(), set()))


# -- arguments -----------------------------------------------------------------------

#: What may stand where a field should.
FIELDS = st.one_of(
    INTEGERS.map(lambda number: b"%d" % number),
    st.sampled_from(
        [
            b"",
            b"+1",
            b" 1",
            b"1 ",
            b"1_0",
            b"0x1",
            b"01",
            b"1.0",
            b"1e3",
            b"\xd9\xa1",
            b"9" * 400,
            b"True",
            b"False",
            b"true",
            b"raft",
            b"bulk",
            b"x" * 65_535,
            b"\xff\xfe",
            b"\0",
        ]
    ),
    VALUES.map(packed),
    st.binary(max_size=20),
)


@st.composite
def mistaken(
    draw: st.DrawFn, requests: bool = True
) -> tuple[msgspec.Struct, dict[bytes, bytes]]:
    """An example, and its box with some of the fields replaced, lost or damaged."""
    asked, answered = draw(st.sampled_from(EXAMPLES))
    rpc = commands.RPC_OF_REQUEST[type(asked)]
    if requests:
        (fields,) = parsed(rpc.request_box(b"1", asked))
    else:
        (fields,) = parsed(rpc.response_box(b"1", answered))
    # Mostly those of the command itself, and not of every box.
    names = sorted(name for name in fields if name[:1] != b"_" or draw(st.booleans()))
    for name in draw(st.lists(st.sampled_from(names or [b"_command"]), max_size=3)):
        match draw(st.integers(0, 4)):
            case 0:
                fields.pop(name, None)
            case 1 | 2:
                fields[name] = draw(FIELDS)[:65_535]
            case 3:
                fields[name] = draw(damages())(fields.get(name, b""))[:65_535]
            case _:
                fields[name + draw(st.sampled_from([b".1", b".2", b".01", b"x"]))] = draw(
                    FIELDS
                )
    return asked, fields


def boxed(fields: Mapping[bytes, bytes]) -> bytes:
    return box(*((name, value) for name, value in fields.items() if name))


class ArgumentFuzz(SynchronousTestCase):
    @fuzz(400, mistaken(), SIZES)
    def test_requests(
        self, mistake: tuple[msgspec.Struct, dict[bytes, bytes]], sizes: list[int]
    ) -> None:
        """One answer, or it is closed without any; never more is kept than a box."""
        asked, fields = mistake
        bulk = isinstance(asked, BULK_QUESTIONS)
        if isinstance(asked, commands.JoinRequest):
            hello: Any = JOINER_HELLO
        elif isinstance(asked, commands.HelloRequest):
            hello = None
        else:
            hello = BULK_HELLO if bulk else HELLO
        served = Served(hello)
        served.node.oblige()
        for piece in pieces(boxed(fields), sizes):
            served.send(piece)
            kept = sum(len(k) + len(v) for k, v in served.server._box.items())
            self.assertLessEqual(kept, arguments.MAX_BOX_BYTES)
            self.assertLessEqual(len(served.server._pending), MAX_PENDING_BYTES + len(piece))
        served.clock.advance(boxes.BOX_TIMEOUT_S)
        self.assertEqual(len(served.sent()) + served.is_aborted, 1)
        self.assertEqual(served.server._calls, {})

    @fuzz(300, mistaken(requests=False), SIZES)
    def test_answers(
        self, mistake: tuple[msgspec.Struct, dict[bytes, bytes]], sizes: list[int]
    ) -> None:
        """Whoever asked hears of one thing: an answer of the right kind, or an error."""
        asked, fields = mistake
        self.hear(asked, pieces(boxed(fields), sizes))

    @fuzz(
        150, st.sampled_from(EXAMPLES), st.lists(st.binary(max_size=40), max_size=4), damages()
    )
    def test_bytes_for_an_answer(
        self,
        example: tuple[msgspec.Struct, msgspec.Struct],
        stream: list[bytes],
        damage: Damage,
    ) -> None:
        asked, answered = example
        rpc = commands.RPC_OF_REQUEST[type(asked)]
        self.hear(asked, stream)
        self.hear(asked, [damage(rpc.response_box(b"1", answered)), *stream])

    def hear(self, asked: msgspec.Struct, stream: list[bytes]) -> None:
        clock, reports = Clock(), list[str]()
        connection = BoxConnection(
            reactor_time(clock), "bob:4002", reports.append, lambda connection: None
        )
        transport = StringTransport()
        connection.makeConnection(transport)
        outcomes: list[Any] = []
        answer: Deferred[Any] = connection.ask(asked, 5.0)
        answer.addBoth(outcomes.append)
        for piece in stream:
            if piece and not transport.disconnected:
                connection.dataReceived(piece)
                self.assertLessEqual(len(connection._pending), MAX_PENDING_BYTES + len(piece))
        clock.advance(max(5.0, boxes.BOX_TIMEOUT_S))
        (outcome,) = outcomes
        if isinstance(outcome, Failure):
            self.assertIsInstance(outcome.value, RaftdError)
        else:
            rpc = commands.RPC_OF_REQUEST[type(asked)]
            self.assertIsInstance(outcome, rpc.response)
        self.assertEqual(clock.getDelayedCalls(), [])


# -- what is well formed, and makes no sense -------------------------------------------

#: Mostly that in which a candidate stands and a leader leads.
TERMS = st.one_of(st.just(4), st.integers(0, 6), st.just(2**64 - 1))
INDEXES = st.one_of(st.integers(0, 9), st.just(2**64 - 1))
DATA = st.one_of(
    st.binary(max_size=5), st.just(encode_configuration(CONFIGURATION)), VALUES.map(packed)
)
ENTRIES = st.one_of(
    st.lists(st.builds(Entry, INDEXES, TERMS, st.integers(0, 4), st.just(0), DATA), max_size=3),
    st.builds(
        lambda first, term, count: [
            Entry(first + i, term, EntryKind.COMMAND, 0, b"x") for i in range(count)
        ],
        st.integers(1, 7),
        st.integers(1, 5),
        st.integers(0, 3),
    ),
)
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(PreVote, TERMS, INDEXES, TERMS),
    st.builds(RequestVote, TERMS, INDEXES, TERMS, st.booleans()),
    st.builds(AppendEntries, TERMS, INDEXES, TERMS, INDEXES, ENTRIES.map(tuple)),
    st.builds(AppendEntries, TERMS, st.integers(0, 6), TERMS, INDEXES, ENTRIES.map(tuple)),
    st.builds(Heartbeat, TERMS, INDEXES, INDEXES),
    st.builds(InstallSnapshot, TERMS, INDEXES, TERMS, INDEXES, DATA, st.just(False)),
    st.builds(TimeoutNow, TERMS),
)
RESPONSES: st.SearchStrategy[Response] = st.one_of(
    st.builds(PreVoteResponse, TERMS, st.booleans()),
    st.builds(RequestVoteResponse, TERMS, st.booleans()),
    st.builds(AppendEntriesResponse, TERMS, st.booleans(), INDEXES, INDEXES, TERMS),
    st.builds(HeartbeatResponse, TERMS, INDEXES),
    st.builds(InstallSnapshotResponse, TERMS, INDEXES, st.booleans()),
    st.builds(TimeoutNowResponse, TERMS),
)


class CoreFuzz(SynchronousTestCase):
    """
    A core takes whatever is well formed: it refuses the message, or stops with
    a sentence that says why.  Every rule for a single node goes on to hold.
    """

    @fuzz(
        300,
        st.lists(
            st.tuples(st.sampled_from([1, 3, 9]), st.one_of(REQUESTS, RESPONSES)), max_size=8
        ),
        st.sampled_from(["follower", "candidate", "leader"]),
    )
    def test_messages(self, stream: list[tuple[int, Request | Response]], role: str) -> None:
        disk = Disk(log_of([1, 1, 2, 3]), HardState(3))
        node = Node(2, THREE, disk=disk, rng=random.Random(1))
        if role == "leader":
            node.become_leader()
        elif role == "candidate":
            node.become_candidate()
        for sender, message in stream:
            try:
                if isinstance(message, Request):
                    node.raft.receive_request(sender, message, 1, node.time.now)
                else:
                    node.raft.receive_response(sender, message, node.time.now)
            except ProtocolViolation as e:
                self.assertTrue(str(e))
            except InvariantViolated as e:
                # It stops: that peer is not what a member can be.
                self.assertIn(" ", str(e))
                return
            # What binds the node itself holds, whatever others say.
            node._step()
            node.flush()
            node.apply()
