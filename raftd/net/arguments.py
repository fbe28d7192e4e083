"""
The types of AMP arguments that peers use, and how errors cross.

Everything that comes from the network is checked here, once: what leaves
these functions has the type and the bounds that it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import msgspec
from twisted.protocols import amp

from raftd.core.membership import (
    MAX_CHANGES,
    Change,
    Configuration,
    decode_configuration,
    encode_configuration,
)
from raftd.core.messages import (
    MAX_SNAPSHOT_PIECE_BYTES,
    Entry,
    decode_entries,
    encode_entries,
)
from raftd.errors import (
    BadAnswer,
    Fatal,
    JoinFailed,
    OutcomeUnknown,
    ProtocolViolation,
    RaftdError,
)
from raftd.interfaces import MAX_QUESTION_BYTES

#: AMP's own bound on one value, in bytes.
MAX_VALUE_BYTES = 0xFFFF

#: The longest text, in bytes of UTF-8.
MAX_TEXT_BYTES = 1024

#: The longest sentence of an error, in bytes of UTF-8; what is longer is cut.
MAX_SENTENCE_BYTES = 512

#: The longest data that one argument carries, in several values of one box.
#: A request is at most 1.5 MiB, and an AppendEntries or a Forward holds less
#: than one such request more than its own bound.
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024 - 64 * 1024

#: Commands in one Forward.
MAX_FORWARDED_COMMANDS = 4096

#: Keys in a box: the values of the longest payload, and the other arguments.
MAX_BOX_KEYS = -(-MAX_PAYLOAD_BYTES // MAX_VALUE_BYTES) + 32

#: Bytes in a box, with keys and lengths.
MAX_BOX_BYTES = 4 * 1024 * 1024

_UINT64_DIGITS = 20

#: What an outcome takes in an answer beside its result; more than an error needs.
_OUTCOME_BYTES = MAX_SENTENCE_BYTES + 64


# -- errors ----------------------------------------------------------------------


def _families(root: type[RaftdError]) -> list[type[RaftdError]]:
    """Every class under `root`, each before the ones that it inherits from."""
    below = [found for child in root.__subclasses__() for found in _families(child)]
    return [*below, root]


#: What may cross, by code.  What stops a node stops that node alone, a
#: violation closes the connection instead, and the last two are for people.
WIRE_ERRORS: dict[str, type[RaftdError]] = {
    kind.code: kind
    for kind in _families(RaftdError)
    if kind not in (RaftdError, ProtocolViolation, BadAnswer, JoinFailed)
    and kind.__module__ == RaftdError.__module__
    and not issubclass(kind, Fatal)
}


def crosses(error: BaseException | None) -> bool:
    """Whether `error` is one that the caller at the other end is to see."""
    return isinstance(error, RaftdError) and error.code in WIRE_ERRORS


def error_to_wire(error: RaftdError) -> tuple[str, str]:
    """Code and sentence; the sentence is cut to `MAX_SENTENCE_BYTES`."""
    sentence = str(error).encode("utf-8", "replace")[:MAX_SENTENCE_BYTES]
    return error.code, sentence.decode("utf-8", "ignore")


def error_from_wire(code: str, sentence: str) -> RaftdError:
    """
    The same error at this end.

    A code of a later version says nothing that can be relied on: not even
    that the request did not happen.
    """
    kind = WIRE_ERRORS.get(code, OutcomeUnknown)
    return kind(sentence[:MAX_SENTENCE_BYTES])


# -- argument types ------------------------------------------------------------
#
# `fromString` raises `ProtocolViolation` for whatever a correct peer does not
# send; `toString` raises `ValueError` for what this program must not send.


class Uint64(amp.Argument):
    """A number from 0 to 2**64 - 1, as decimal digits."""

    def toString(self, inObject: int) -> bytes:
        if not 0 <= inObject < 1 << 64:
            raise ValueError(f"{inObject} is not a 64-bit number")
        return b"%d" % inObject

    def fromString(self, inString: bytes) -> int:
        # int() would also take signs, spaces, underscores and any length.
        if inString.isdigit() and len(inString) <= _UINT64_DIGITS:
            number = int(inString)
            if number < 1 << 64:
                return number
        raise ProtocolViolation(f"not a 64-bit number: {inString[:40]!r}")


class Boolean(amp.Boolean):
    """True or False, as these words."""

    def fromString(self, inString: bytes) -> bool:
        if inString == b"True":
            return True
        if inString == b"False":
            return False
        raise ProtocolViolation(f"not a boolean: {inString[:40]!r}")


class Text(amp.Argument):
    """Text of at most `MAX_TEXT_BYTES`, as UTF-8."""

    def toString(self, inObject: str) -> bytes:
        data = inObject.encode("utf-8")
        if len(data) > MAX_TEXT_BYTES:
            raise ValueError(f"a text of {len(data)} bytes is too long")
        return data

    def fromString(self, inString: bytes) -> str:
        if len(inString) > MAX_TEXT_BYTES:
            raise ProtocolViolation(f"a text of {len(inString)} bytes")
        try:
            return inString.decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolViolation(f"not UTF-8: {inString[:40]!r}") from None


class Payload(amp.Argument):
    """
    Bytes, up to `MAX_PAYLOAD_BYTES`, as several values where they must be.

    The values are `name`, `name.1`, `name.2`, …; all but the last are full.
    """

    def toBox(
        self,
        name: bytes,
        strings: dict[bytes, bytes],
        objects: dict[str, Any],
        proto: object,
    ) -> None:
        data = self.toString(objects[name.decode("ascii")])
        for number, start in enumerate(range(0, len(data) or 1, MAX_VALUE_BYTES)):
            key = b"%s.%d" % (name, number) if number else name
            strings[key] = data[start : start + MAX_VALUE_BYTES]

    def fromBox(
        self,
        name: bytes,
        strings: dict[bytes, bytes],
        objects: dict[str, Any],
        proto: object,
    ) -> None:
        data = joined(name, strings[name], strings)
        objects[name.decode("ascii")] = self.fromString(data)

    def toString(self, inObject: Any) -> bytes:
        return cast(bytes, inObject)

    def fromString(self, inString: bytes) -> Any:
        return inString


def joined(name: bytes, value: bytes, strings: Mapping[bytes, bytes]) -> bytes:
    """All of the payload `name`, of which `value` is the first value."""
    if len(value) < MAX_VALUE_BYTES:
        return value
    values = [value]
    while len(value) == MAX_VALUE_BYTES:
        following = strings.get(b"%s.%d" % (name, len(values)))
        if following is None:
            break
        values.append(following)
        value = following
    return b"".join(values)


class Entries(Payload):
    """
    Log entries, in the encoding that the log has too.

    A leader sends the same tuple to several peers in one turn; the last one
    encoded is kept (at most one AppendEntries), so that it is encoded once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._last: tuple[Entry, ...] = ()
        self._last_encoded = encode_entries(())

    def toString(self, inObject: tuple[Entry, ...]) -> bytes:
        if inObject is not self._last:
            self._last_encoded = encode_entries(inObject)
            self._last = inObject
        return self._last_encoded

    def fromString(self, inString: bytes) -> tuple[Entry, ...]:
        return decode_entries(inString)


class _BoundedBytes(Payload):
    """At most `MAX_BYTES` of `WHAT`."""

    MAX_BYTES: ClassVar[int]
    WHAT: ClassVar[str]

    def toString(self, inObject: bytes) -> bytes:
        if len(inObject) > self.MAX_BYTES:
            raise ValueError(f"{self.WHAT} of {len(inObject)} bytes is too long")
        return inObject

    def fromString(self, inString: bytes) -> bytes:
        if len(inString) > self.MAX_BYTES:
            raise ProtocolViolation(f"{self.WHAT} of {len(inString)} bytes")
        return inString


class SnapshotPiece(_BoundedBytes):
    """A part of a snapshot file."""

    MAX_BYTES = MAX_SNAPSHOT_PIECE_BYTES
    WHAT = "a piece of a snapshot"


class Question(_BoundedBytes):
    """What the leader's program is asked, or answers."""

    MAX_BYTES = MAX_QUESTION_BYTES
    WHAT = "a question or answer"


class ConfigurationArgument(Payload):
    """A configuration, in the encoding of its log entry."""

    def toString(self, inObject: Configuration) -> bytes:
        return encode_configuration(inObject)

    def fromString(self, inString: bytes) -> Configuration:
        return decode_configuration(inString)


_encode = msgspec.msgpack.Encoder().encode
_decode_commands = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_changes = msgspec.msgpack.Decoder(list[Change]).decode
_decode_outcomes = msgspec.msgpack.Decoder(list[bytes | tuple[str, str]]).decode


class Commands(Payload):
    """Encoded commands, as one MessagePack array."""

    def toString(self, inObject: Sequence[bytes]) -> bytes:
        return _encode(inObject)

    def fromString(self, inString: bytes) -> list[bytes]:
        try:
            commands = _decode_commands(inString)
        except (msgspec.MsgspecError, RecursionError) as e:
            raise ProtocolViolation(f"not a list of commands: {e}") from None
        if len(commands) > MAX_FORWARDED_COMMANDS:
            raise ProtocolViolation(f"{len(commands)} commands in one Forward")
        return commands


class Changes(Payload):
    """Changes of membership: a MessagePack array of arrays, each with its tag first."""

    def toString(self, inObject: Sequence[Change]) -> bytes:
        if len(inObject) > MAX_CHANGES:
            raise ValueError(f"{len(inObject)} changes are too many at once")
        return _encode(inObject)

    def fromString(self, inString: bytes) -> list[Change]:
        try:
            changes = _decode_changes(inString)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise ProtocolViolation(f"not a list of changes: {e}") from None
        if len(changes) > MAX_CHANGES:
            raise ProtocolViolation(f"{len(changes)} changes at once")
        return changes


class Outcomes(Payload):
    """
    Outcomes of commands: a MessagePack array of results, each bytes, and of
    errors, each an array of code and sentence.
    """

    def toString(self, inObject: Sequence[bytes | RaftdError]) -> bytes:
        # A result that does not fit was still applied: all that may be said
        # instead is that this answer does not tell.
        room = MAX_PAYLOAD_BYTES - _OUTCOME_BYTES * len(inObject)
        outcomes: list[bytes | tuple[str, str]] = []
        for outcome in inObject:
            if not isinstance(outcome, bytes):
                outcomes.append(error_to_wire(outcome))
            elif len(outcome) <= room:
                outcomes.append(outcome)
                room -= len(outcome)
            else:
                unknown = OutcomeUnknown("The result is too large to be sent back.")
                outcomes.append(error_to_wire(unknown))
        return _encode(outcomes)

    def fromString(self, inString: bytes) -> list[bytes | RaftdError]:
        try:
            outcomes = _decode_outcomes(inString)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise ProtocolViolation(f"not a list of outcomes: {e}") from None
        return [
            outcome if isinstance(outcome, bytes) else error_from_wire(*outcome)
            for outcome in outcomes
        ]
