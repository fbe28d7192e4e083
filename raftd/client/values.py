"""What a client is told: values, and how they are read from JSON."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import msgspec

Text = str | bytes


def as_bytes(text: Text) -> bytes:
    """A key or a value as the store has it: text is UTF-8."""
    return text.encode("utf-8") if isinstance(text, str) else bytes(text)


class KeyValue(msgspec.Struct, frozen=True):
    """
    A key and its record as of one revision.

    `lease` is the id of its lease, empty without one.  `value` is empty where
    only keys were asked for.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: str = ""

    @property
    def text(self) -> str:
        """The value as text; `UnicodeDecodeError` if it is none."""
        return self.value.decode("utf-8")


class Page(msgspec.Struct, frozen=True):
    """
    Part of a range: `count` keys are in all of it, `more` says that this is not the end.

    `revision` is the store's.
    """

    revision: int
    count: int
    more: bool
    kvs: tuple[KeyValue, ...]


class Written(msgspec.Struct, frozen=True):
    """
    A put or a delete: the revision that it made, what was there before if that
    was asked for, and, of a put, whether the key was new and the lease that it got.
    """

    revision: int
    created: bool = False
    previous: KeyValue | None = None
    lease: str = ""


class Deleted(msgspec.Struct, frozen=True):
    """How many keys of a range were deleted, and the store's revision then."""

    revision: int
    deleted: int
    previous: tuple[KeyValue, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """
    A transaction: whether its compares held, and a result for each operation
    that was carried out: `Written`, `Deleted`, `Page` or `Outcome`.
    """

    revision: int
    succeeded: bool
    results: tuple[Written | Deleted | Page | Outcome, ...]


class Event(msgspec.Struct, frozen=True):
    """
    One change of one key.  Of a delete, `record` has only the key and
    `mod_revision`; `previous` is there if it was asked for and there was something.
    """

    record: KeyValue
    is_delete: bool
    previous: KeyValue | None = None

    @property
    def key(self) -> bytes:
        return self.record.key

    @property
    def value(self) -> bytes:
        return self.record.value


class Changes(msgspec.Struct, frozen=True):
    """What one revision has changed in a watched range, in order, all of it."""

    revision: int
    events: tuple[Event, ...]


# -- JSON ------------------------------------------------------------------------


def named(name: str, value: bytes) -> dict[str, str]:
    """A key or a value as a field: text if it is UTF-8, else base64."""
    try:
        return {name: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(value).decode("ascii")}


def read_named(fields: dict[str, Any], name: str) -> bytes:
    """The reverse; empty if it is not there."""
    if name in fields:
        return str(fields[name]).encode("utf-8")
    return b64decode(fields.get(f"{name}_base64", ""))


def read_record(fields: dict[str, Any]) -> KeyValue:
    """A record, or as much of it as there is."""
    return KeyValue(
        read_named(fields, "key"),
        read_named(fields, "value"),
        fields.get("create_revision", 0),
        fields.get("mod_revision", 0),
        fields.get("version", 0),
        fields.get("lease", ""),
    )


def read_previous(fields: dict[str, Any]) -> KeyValue | None:
    previous = fields.get("previous")
    return None if previous is None else read_record(previous)


def read_page(fields: dict[str, Any], revision: int) -> Page:
    return Page(
        revision,
        fields["count"],
        fields.get("more", False),
        tuple(map(read_record, fields.get("kvs", ()))),
    )


def read_outcome(fields: dict[str, Any], revision: int) -> Outcome:
    """The answer to a transaction, and to one inside it."""
    results = tuple(_read_result(result, revision) for result in fields["results"])
    return Outcome(revision, fields["succeeded"], results)


def _read_result(result: dict[str, Any], revision: int) -> Written | Deleted | Page | Outcome:
    ((kind, fields),) = result.items()
    if kind == "put":
        return Written(revision, fields["created"], read_previous(fields))
    if kind == "get":
        return read_page(fields, revision)
    if kind == "delete":
        previous = tuple(map(read_record, fields.get("previous", ())))
        return Deleted(revision, fields["deleted"], previous)
    return read_outcome(fields, revision)


def read_changes(data: bytes) -> Changes:
    """The data of one event of a watch."""
    fields = msgspec.json.decode(data)
    return Changes(
        fields["revision"],
        tuple(
            Event(read_record(event), event["type"] == "delete", read_previous(event))
            for event in fields["events"]
        ),
    )
