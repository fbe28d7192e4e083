"""
What peers say to one another: one `amp.Command` for each RPC.

Every command has a pair of structs, its request and its response; the fields
of the structs are the AMP arguments, under the same names.  `Rpc` converts
between structs and bytes without a step for each command, so a field that is
added to a struct is on the wire.  The format is described in
`docs/peer-protocol.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NewType, cast, get_type_hints

import msgspec
from msgspec.structs import astuple
from twisted.protocols import amp

from raftd.core import messages
from raftd.core.membership import Change, Configuration
from raftd.core.messages import Entry, MemberId
from raftd.errors import ProtocolViolation, RaftdError
from raftd.net.arguments import (
    MAX_PAYLOAD_BYTES,
    MAX_VALUE_BYTES,
    WIRE_ERRORS,
    Boolean,
    Changes,
    Commands,
    ConfigurationArgument,
    Entries,
    Outcomes,
    Payload,
    Question,
    SnapshotPiece,
    Text,
    Uint64,
    joined,
)

#: The versions of the protocol that this program speaks, first and last.
VERSION_MIN = 1
VERSION_MAX = 1

#: What a connection is for; a pair of members has one of each, each way.
RAFT: Final = "raft"
BULK: Final = "bulk"

# -- structs that are not messages of Raft ------------------------------------------


class HelloRequest(msgspec.Struct, frozen=True, gc=False):
    """
    The first words on a connection: who calls, and whom it means.

    `cluster_id` 0: the caller is in no cluster yet.  `to_member_id` 0: the
    caller is a joiner and means whoever answers under `to_name`.
    """

    version_min: int
    version_max: int
    cluster_id: int
    member_id: MemberId
    name: str
    to_member_id: MemberId
    to_name: str
    channel: str


class HelloResponse(msgspec.Struct, frozen=True, gc=False):
    """Who answers, and the version that both speak from here on."""

    version: int
    cluster_id: int
    member_id: MemberId
    name: str


class ForwardRequest(msgspec.Struct, frozen=True, gc=False):
    commands: list[bytes]
    timeout_ms: int


class ForwardResponse(msgspec.Struct, frozen=True):
    outcomes: list[bytes | RaftdError]


class ReadIndexRequest(msgspec.Struct, frozen=True, gc=False):
    timeout_ms: int


class ReadIndexResponse(msgspec.Struct, frozen=True, gc=False):
    read_index: int


#: Bytes that mean something to the programs at both ends, and nothing to raftd.
Words = NewType("Words", bytes)


class AskRequest(msgspec.Struct, frozen=True, gc=False):
    question: Words
    timeout_ms: int


class AskResponse(msgspec.Struct, frozen=True, gc=False):
    answer: Words


class JoinRequest(msgspec.Struct, frozen=True, gc=False):
    member_id: MemberId
    name: str
    timeout_ms: int


class JoinResponse(msgspec.Struct, frozen=True):
    cluster_id: int
    configuration: Configuration


class ChangeMembershipRequest(msgspec.Struct, frozen=True):
    changes: list[Change]
    force: bool
    timeout_ms: int


class ChangeMembershipResponse(msgspec.Struct, frozen=True):
    configuration: Configuration


class TransferLeadershipRequest(msgspec.Struct, frozen=True, gc=False):
    """`successor` 0: whoever the leader thinks best."""

    successor: MemberId
    timeout_ms: int


class TransferLeadershipResponse(msgspec.Struct, frozen=True, gc=False):
    pass


# -- commands --------------------------------------------------------------------

#: The argument type of a field, by the field's type.
_ARGUMENT_TYPES: dict[Any, type[amp.Argument]] = {
    int: Uint64,
    bool: Boolean,
    str: Text,
    bytes: SnapshotPiece,
    Words: Question,
    tuple[Entry, ...]: Entries,
    Configuration: ConfigurationArgument,
    list[Change]: Changes,
    list[bytes]: Commands,
    list[bytes | RaftdError]: Outcomes,
}


def _arguments(struct: type[msgspec.Struct]) -> list[tuple[bytes, amp.Argument]]:
    """The fields of `struct` as AMP arguments, in order."""
    types = get_type_hints(struct)
    return [
        (name.encode("ascii"), _ARGUMENT_TYPES[types[name]]())
        for name in struct.__struct_fields__
    ]


class RaftdCommand(amp.Command):
    """A command whose caller sees raftd's own exceptions."""

    errors: ClassVar[dict[type[Exception], bytes]] = {
        kind: code.encode("ascii") for code, kind in WIRE_ERRORS.items()
    }


class PreVote(RaftdCommand):
    arguments = _arguments(messages.PreVote)
    response = _arguments(messages.PreVoteResponse)


class RequestVote(RaftdCommand):
    arguments = _arguments(messages.RequestVote)
    response = _arguments(messages.RequestVoteResponse)


class AppendEntries(RaftdCommand):
    arguments = _arguments(messages.AppendEntries)
    response = _arguments(messages.AppendEntriesResponse)


class Heartbeat(RaftdCommand):
    arguments = _arguments(messages.Heartbeat)
    response = _arguments(messages.HeartbeatResponse)


class InstallSnapshot(RaftdCommand):
    arguments = _arguments(messages.InstallSnapshot)
    response = _arguments(messages.InstallSnapshotResponse)


class TimeoutNow(RaftdCommand):
    arguments = _arguments(messages.TimeoutNow)
    response = _arguments(messages.TimeoutNowResponse)


class Hello(RaftdCommand):
    arguments = _arguments(HelloRequest)
    response = _arguments(HelloResponse)


class Forward(RaftdCommand):
    arguments = _arguments(ForwardRequest)
    response = _arguments(ForwardResponse)


class ReadIndex(RaftdCommand):
    arguments = _arguments(ReadIndexRequest)
    response = _arguments(ReadIndexResponse)


class Ask(RaftdCommand):
    arguments = _arguments(AskRequest)
    response = _arguments(AskResponse)


class Join(RaftdCommand):
    arguments = _arguments(JoinRequest)
    response = _arguments(JoinResponse)


class ChangeMembership(RaftdCommand):
    arguments = _arguments(ChangeMembershipRequest)
    response = _arguments(ChangeMembershipResponse)


class TransferLeadership(RaftdCommand):
    arguments = _arguments(TransferLeadershipRequest)
    response = _arguments(TransferLeadershipResponse)


# -- structs to bytes and back --------------------------------------------------------


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


_ASK = _string(amp.ASK)
_ANSWER = _string(amp.ANSWER)
_END_OF_BOX = b"\0\0"

#: The length prefix of every short value, made once.
_SHORT_LENGTHS = [n.to_bytes(2, "big") for n in range(256)]


class _Fields:
    """
    The fields of one struct as the keys and values of a box.

    Equivalent to `Command.makeArguments` and `parseArguments` (or the same of
    the response), with the keys prepared and no dictionary on the way.
    """

    def __init__(
        self, struct: type[msgspec.Struct], arguments: list[tuple[bytes, amp.Argument]]
    ) -> None:
        self.struct = struct
        self._writers: list[tuple[bytes, Callable[[Any], bytes]]] = [
            (_string(name), argument.toString) for name, argument in arguments
        ]
        self._readers: list[tuple[bytes, Callable[[bytes], Any], bool]] = [
            (name, argument.fromString, isinstance(argument, Payload))
            for name, argument in arguments
        ]

    def write(self, parts: list[bytes], value: msgspec.Struct) -> None:
        """Append the serialized fields of `value` to `parts`."""
        for (key, to_string), item in zip(self._writers, astuple(value), strict=True):
            data = to_string(item)
            size = len(data)
            if size < 256:
                parts += (key, _SHORT_LENGTHS[size], data)
            elif size <= MAX_VALUE_BYTES:
                parts += (key, size.to_bytes(2, "big"), data)
            elif size <= MAX_PAYLOAD_BYTES:
                self._write_long(parts, key[2:], data)
            else:
                raise ValueError(f"{key[2:]!r} has {size} bytes, which is too long")

    def _write_long(self, parts: list[bytes], name: bytes, data: bytes) -> None:
        for number, start in enumerate(range(0, len(data), MAX_VALUE_BYTES)):
            parts.append(_string(b"%b.%d" % (name, number) if number else name))
            parts.append(_string(data[start : start + MAX_VALUE_BYTES]))

    def read(self, box: Mapping[bytes, bytes]) -> Any:
        """The struct that `box` holds; `ProtocolViolation` if it holds none."""
        try:
            return self.struct(
                *[
                    from_string(joined(name, box[name], box) if is_payload else box[name])
                    for name, from_string, is_payload in self._readers
                ]
            )
        except KeyError as e:
            raise ProtocolViolation(f"no argument {e}") from None


class Rpc:
    """One command, both its structs, and how they become boxes."""

    def __init__(
        self,
        command: type[amp.Command],
        request: type[msgspec.Struct],
        response: type[msgspec.Struct],
    ) -> None:
        self.command = command
        self.request = request
        self.response = response
        self.name = command.commandName.decode("ascii")
        self._request_fields = _Fields(request, command.arguments)
        self._response_fields = _Fields(response, command.response)
        self._request_head = _string(amp.COMMAND) + _string(command.commandName) + _ASK
        self.read_request = self._request_fields.read
        self.read_response = self._response_fields.read

    def request_box(self, tag: bytes, request: msgspec.Struct) -> bytes:
        """The box that asks; `ValueError` if `request` cannot be sent."""
        parts = [self._request_head, _SHORT_LENGTHS[len(tag)], tag]
        self._request_fields.write(parts, request)
        parts.append(_END_OF_BOX)
        return b"".join(parts)

    def response_box(self, tag: bytes, response: msgspec.Struct) -> bytes:
        """The box that answers; `ValueError` if `response` cannot be sent."""
        if type(response) is not self.response:
            raise ValueError(f"{response!r} is no answer to {self.name}")
        parts = [_ANSWER, _SHORT_LENGTHS[len(tag)], tag]
        self._response_fields.write(parts, response)
        parts.append(_END_OF_BOX)
        return b"".join(parts)


def error_box(tag: bytes, code: bytes, sentence: str) -> bytes:
    """The box that answers with an error, as `twisted.protocols.amp` makes it."""
    box = amp.Box()
    box[amp.ERROR] = tag
    box[amp.ERROR_CODE] = code
    box[amp.ERROR_DESCRIPTION] = sentence.encode("utf-8", "replace")
    return cast(bytes, box.serialize())


RPCS = (
    Rpc(Hello, HelloRequest, HelloResponse),
    Rpc(PreVote, messages.PreVote, messages.PreVoteResponse),
    Rpc(RequestVote, messages.RequestVote, messages.RequestVoteResponse),
    Rpc(AppendEntries, messages.AppendEntries, messages.AppendEntriesResponse),
    Rpc(Heartbeat, messages.Heartbeat, messages.HeartbeatResponse),
    Rpc(TimeoutNow, messages.TimeoutNow, messages.TimeoutNowResponse),
    Rpc(ReadIndex, ReadIndexRequest, ReadIndexResponse),
    Rpc(Forward, ForwardRequest, ForwardResponse),
    Rpc(Ask, AskRequest, AskResponse),
    Rpc(Join, JoinRequest, JoinResponse),
    Rpc(ChangeMembership, ChangeMembershipRequest, ChangeMembershipResponse),
    Rpc(TransferLeadership, TransferLeadershipRequest, TransferLeadershipResponse),
    Rpc(InstallSnapshot, messages.InstallSnapshot, messages.InstallSnapshotResponse),
)

RPC_OF_REQUEST: dict[type[msgspec.Struct], Rpc] = {rpc.request: rpc for rpc in RPCS}
RPC_OF_NAME: dict[bytes, Rpc] = {rpc.command.commandName: rpc for rpc in RPCS}
