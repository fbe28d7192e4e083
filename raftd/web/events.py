"""Changes as JSON, encoded once for all who are given the same."""

from __future__ import annotations

from collections import OrderedDict

import msgspec
from msgspec import UNSET, UnsetType

from raftd.kv.interfaces import Changes, Event
from raftd.web.records import Record, record

#: Encoded changes that are kept for others, in number and in bytes.
MAX_ENCODED = 1_024
MAX_ENCODED_BYTES = 4 * 1024 * 1024

_encode = msgspec.json.Encoder().encode


class _Put(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="put"):
    """A record as it became (`Record`)."""

    key: str | UnsetType
    key_base64: str | UnsetType
    value: str | UnsetType
    value_base64: str | UnsetType
    create_revision: int
    mod_revision: int
    version: int
    lease: str | UnsetType
    previous: Record | UnsetType


class _Delete(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="delete"):
    """A key that is not there any more."""

    key: str | UnsetType
    key_base64: str | UnsetType
    mod_revision: int
    previous: Record | UnsetType


def _event(event: Event) -> _Put | _Delete:
    """`event` as JSON has it."""
    now = record(event.record, keys_only=event.is_delete)
    previous = UNSET if event.previous is None else record(event.previous)
    if event.is_delete:
        return _Delete(now.key, now.key_base64, now.mod_revision, previous)
    return _Put(
        now.key,
        now.key_base64,
        now.value,
        now.value_base64,
        now.create_revision,
        now.mod_revision,
        now.version,
        now.lease,
        previous,
    )


class Encoder:
    """Encodes changes; the last ones are kept for the other watches that they are given to."""

    def __init__(self) -> None:
        #: By identity, of changes that are held here so that it stays theirs.
        self._kept: OrderedDict[int, tuple[Changes, bytes]] = OrderedDict()
        self._kept_bytes = 0

    def events(self, changes: Changes) -> bytes:
        """The elements of the JSON list of events, without its brackets."""
        kept = self._kept.get(id(changes))
        if kept is not None:
            return kept[1]
        encoded = _encode([_event(event) for event in changes.events])[1:-1]
        self._kept[id(changes)] = changes, encoded
        self._kept_bytes += len(encoded)
        while len(self._kept) > MAX_ENCODED or self._kept_bytes > MAX_ENCODED_BYTES:
            _, (_, old) = self._kept.popitem(last=False)
            self._kept_bytes -= len(old)
        return encoded
