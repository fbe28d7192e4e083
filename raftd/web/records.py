"""
Keys, values and leases in JSON, and back.

Bytes that are UTF-8 are text under their own name; anything else is base64
under another: `key` or `key_base64`.  An id is 16 hexadecimal digits, for it
does not fit into a number of JavaScript's.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import UNSET, UnsetType

from raftd.errors import BadRequest, LeaseNotFound
from raftd.kv.results import KeyValue

#: Records are encoded so many at a time, or so many bytes of them, so that no
#: listing keeps the reactor for long.
SLICE_RECORDS = 512
SLICE_BYTES = 64 * 1024

#: The longest TTL that can be asked for: thirty years, in seconds.
MAX_TTL_S = 10**9

#: Ids of leases are below it (`GrantLease`).
_END_OF_LEASE_IDS = 2**63

_is_lease_id = re.compile("[0-9a-fA-F]{16}").fullmatch
_encode = msgspec.json.Encoder().encode


class Record(msgspec.Struct, frozen=True, gc=False):
    """`KeyValue` as JSON; what is not set is left out."""

    key: str | UnsetType = UNSET
    key_base64: str | UnsetType = UNSET
    value: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: str | UnsetType = UNSET


def record(kv: KeyValue, keys_only: bool = False) -> Record:
    """`kv` as JSON has it; without its value if `keys_only`."""
    key: str | UnsetType = UNSET
    value: str | UnsetType = UNSET
    key_base64: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    try:
        key = kv.key.decode("utf-8")
    except UnicodeDecodeError:
        key_base64 = base64(kv.key)
    if not keys_only:
        try:
            value = kv.value.decode("utf-8")
        except UnicodeDecodeError:
            value_base64 = base64(kv.value)
    return Record(
        key,
        key_base64,
        value,
        value_base64,
        kv.create_revision,
        kv.mod_revision,
        kv.version,
        lease_id(kv.lease) if kv.lease else UNSET,
    )


def slices(kvs: Iterable[KeyValue], keys_only: bool = False) -> Iterator[bytes]:
    """The elements of a JSON list of `kvs`, without its brackets, in slices."""
    gathered: list[Record] = []
    size = 0
    comma = b""
    for kv in kvs:
        gathered.append(record(kv, keys_only))
        size += len(kv.key) + len(kv.value)
        if size >= SLICE_BYTES or len(gathered) == SLICE_RECORDS:
            yield comma + _encode(gathered)[1:-1]
            gathered = []
            size = 0
            comma = b","
    if gathered:
        yield comma + _encode(gathered)[1:-1]


def named(name: str, octets: bytes) -> dict[str, object]:
    """`octets` as a field called `name`, or `name` and `_base64`."""
    try:
        return {name: octets.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64(octets)}


def base64(octets: bytes) -> str:
    return b64encode(octets).decode("ascii")


def either(
    text: str | UnsetType, octets: bytes | UnsetType, name: str, where: str
) -> bytes | None:
    """
    The bytes of a field that may come as text or as base64; None if it did not come.

    `BadRequest` if it came as both.
    """
    if text is UNSET:
        return None if octets is UNSET else octets
    if octets is not UNSET:
        raise BadRequest(f"{where} has both {name!r} and '{name}_base64'; there can be one.")
    return text.encode("utf-8")


def lease_id(number: int) -> str:
    """The id of a lease, or of a member, as it is written."""
    return f"{number:016x}"


def parse_lease_id(text: str) -> int:
    """The reverse; `BadRequest`, or `LeaseNotFound` if no lease can have this id."""
    if not _is_lease_id(text):
        raise BadRequest("The id of a lease is 16 hexadecimal digits.")
    number = int(text, 16)
    if not 0 < number < _END_OF_LEASE_IDS:
        raise LeaseNotFound("There is no lease with this id.")
    return number


def seconds(time_ms: int) -> int | float:
    """Milliseconds in seconds; a whole number if it is one."""
    whole, rest = divmod(time_ms, 1000)
    return time_ms / 1000 if rest else whole
