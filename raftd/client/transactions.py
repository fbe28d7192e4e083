"""
Transactions, written down in Python.

    await client.transact(
        [value("a") == b"1", version("b") == 0],
        [put("a", b"2")],
        [get("a")],
    )
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from raftd.client.values import Text, as_bytes, named

#: How the absence of a lease is written.
_NO_LEASE = "0" * 16


class Compare(msgspec.Struct, frozen=True):
    """One condition, as `value(key) == b"..."` and the like make it."""

    fields: dict[str, Any]


class Operation(msgspec.Struct, frozen=True):
    """One operation, as `put`, `get`, `delete` and `transaction` make it."""

    fields: dict[str, Any]


class _Target:
    """Something of a key that can be compared."""

    def __init__(self, key: Text, name: str) -> None:
        self._key = as_bytes(key)
        self._name = name

    def _compare(self, relation: str, operand: Any) -> Compare:
        fields: dict[str, Any] = {**named("key", self._key), "op": relation}
        if self._name == "value":
            fields.update(named("value", as_bytes(operand)))
        elif self._name == "lease":
            fields["lease"] = operand or _NO_LEASE
        else:
            fields[self._name] = operand
        return Compare(fields)

    def __eq__(self, operand: Any) -> Any:
        return self._compare("=", operand)

    def __ne__(self, operand: Any) -> Any:
        return self._compare("!=", operand)

    def __lt__(self, operand: Any) -> Compare:
        return self._compare("<", operand)

    def __gt__(self, operand: Any) -> Compare:
        return self._compare(">", operand)

    __hash__ = None  # type: ignore[assignment]


def value(key: Text) -> _Target:
    """The value of `key`; a missing key has none, and a compare of it is false."""
    return _Target(key, "value")


def version(key: Text) -> _Target:
    """How often `key` was put since it came into being; 0 if it is not there."""
    return _Target(key, "version")


def create_revision(key: Text) -> _Target:
    """The revision that brought `key` into being; 0 if it is not there."""
    return _Target(key, "create_revision")


def mod_revision(key: Text) -> _Target:
    """The revision of the last change of `key`; 0 if it is not there."""
    return _Target(key, "mod_revision")


def lease(key: Text) -> _Target:
    """The id of the lease of `key`; empty if it has none, or is not there."""
    return _Target(key, "lease")


def exists(key: Text) -> Compare:
    """Whether `key` is there."""
    return version(key) > 0


def missing(key: Text) -> Compare:
    """Whether `key` is not there."""
    compare: Compare = version(key) == 0
    return compare


def put(
    key: Text,
    value: Text = b"",
    *,
    lease: str = "",
    previous: bool = False,
    keep_value: bool = False,
    keep_lease: bool = False,
) -> Operation:
    """Set `key`; `keep_value` and `keep_lease` leave that as it is, and need the key."""
    fields: dict[str, Any] = named("key", as_bytes(key))
    if keep_value:
        fields["keep_value"] = True
    else:
        fields.update(named("value", as_bytes(value)))
    if lease:
        fields["lease"] = lease
    if previous:
        fields["prev"] = True
    if keep_lease:
        fields["keep_lease"] = True
    return Operation({"put": fields})


def _keys(
    key: Text | None, prefix: Text | None, start: Text | None, end: Text | None
) -> dict[str, Any]:
    """Which keys are meant: one, those with a prefix, or those from a start to an end."""
    given = {"key": key, "prefix": prefix, "start": start, "end": end}
    fields: dict[str, Any] = {}
    for name, text in given.items():
        if text is not None:
            fields.update(named(name, as_bytes(text)))
    kinds = (key is not None, prefix is not None, start is not None or end is not None)
    if sum(kinds) != 1:
        raise ValueError("Either a key, or a prefix, or a start or an end must be given.")
    return fields


def get(
    key: Text | None = None,
    *,
    prefix: Text | None = None,
    start: Text | None = None,
    end: Text | None = None,
    limit: int = 0,
    keys_only: bool = False,
    count_only: bool = False,
    descending: bool = False,
    sort: str = "",
    revision: int = 0,
) -> Operation:
    """Read a key, or a range; as of `Client.page`."""
    fields = _keys(key, prefix, start, end)
    if limit:
        fields["limit"] = limit
    if keys_only:
        fields["keys_only"] = True
    if count_only:
        fields["count_only"] = True
    if descending:
        fields["order"] = "desc"
    if sort:
        fields["sort"] = sort
    if revision:
        fields["revision"] = revision
    return Operation({"get": fields})


def delete(
    key: Text | None = None,
    *,
    prefix: Text | None = None,
    start: Text | None = None,
    end: Text | None = None,
    previous: bool = False,
) -> Operation:
    """Delete a key, or a range."""
    fields = _keys(key, prefix, start, end)
    if previous:
        fields["prev"] = True
    return Operation({"delete": fields})


def transaction(
    compares: Sequence[Compare],
    then: Sequence[Operation],
    otherwise: Sequence[Operation] = (),
) -> Operation:
    """One inside another: its compares, too, see the state before the whole."""
    return Operation({"txn": as_fields(compares, then, otherwise)})


def as_fields(
    compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]
) -> dict[str, Any]:
    """The body of `POST /txn`."""
    return {
        "compare": [compare.fields for compare in compares],
        "then": [operation.fields for operation in then],
        "else": [operation.fields for operation in otherwise],
    }
