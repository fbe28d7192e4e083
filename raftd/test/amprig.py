"""For tests of what peers say: examples of all of it, and a server for raw bytes."""

from __future__ import annotations

import struct

import msgspec
from twisted.internet.testing import StringTransport
from twisted.protocols import amp

from raftd.core.membership import AddLearner, Change, Demote, Promote, Remove, Rename
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
from raftd.net import commands
from raftd.net.amp import PeerServer
from raftd.net.commands import HelloRequest, HelloResponse
from raftd.test.peernet import ALICE, BOB, CLUSTER, CONFIGURATION, Pair, entries

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
