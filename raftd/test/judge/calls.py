"""
What clients ask and are answered, in the terms of the judge.

Keys are text, values text or whole numbers; None is no value, that is, no such
key.  The end of a range is as in the store: empty for one key, a zero
character for every key from the first on.

A result holds what its client looked at, and no more: what is `UNSET` is not
judged.  So one model judges a register of which only values are known, and a
store of which every revision is.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

Scalar = str | int

#: As the end of a range: there is no end.
EVERY_KEY: Final = "\0"


class Get(msgspec.Struct, tag="get", tag_field="op", frozen=True):
    """Answered with `value`, and perhaps the revisions and the version of the key."""

    key: str


class Put(msgspec.Struct, tag="put", tag_field="op", frozen=True):
    """Answered with nothing, or `revision` and `created`."""

    key: str
    value: Scalar


class Append(msgspec.Struct, tag="append", tag_field="op", frozen=True):
    """Adds text behind the value; a missing key has the empty one.  Answered as `Put`."""

    key: str
    value: str


class Delete(msgspec.Struct, tag="delete", tag_field="op", frozen=True, omit_defaults=True):
    """Answered with `count`, how many keys were removed."""

    key: str
    end: str = ""


class CompareAndSet(msgspec.Struct, tag="cas", tag_field="op", frozen=True):
    """Puts `value` if the value is `expected` (None: if there is none); `succeeded`."""

    key: str
    expected: Scalar | None
    value: Scalar


class Range(msgspec.Struct, tag="range", tag_field="op", frozen=True, omit_defaults=True):
    """Answered with `kvs`, sorted by key and cut to `limit` (0: not), and `count`, before."""

    key: str
    end: str
    limit: Annotated[int, msgspec.Meta(ge=0)] = 0


class Compare(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One condition of a transaction, on a key or, with an `end`, on every key there.

    A missing key has no value, so that a compare of it is false, and 0 in
    everything else; an empty range is compared once, as a missing key.
    """

    key: str
    operand: Scalar
    target: Literal["value", "version", "create_revision", "mod_revision"] = "value"
    relation: Literal["=", "!=", "<", ">"] = "="
    end: str = ""


class Transaction(msgspec.Struct, tag="txn", tag_field="op", frozen=True, omit_defaults=True):
    """If all `compares` hold, `success`, else `failure`; `succeeded` and `results`."""

    compares: tuple[Compare, ...] = ()
    success: tuple[Call, ...] = ()
    failure: tuple[Call, ...] = ()


Call = Get | Put | Append | Delete | CompareAndSet | Range | Transaction


class Record(msgspec.Struct, frozen=True):
    """One key of the answer to a `Range`."""

    key: str
    value: Scalar | UnsetType = UNSET
    create_revision: int | UnsetType = UNSET
    mod_revision: int | UnsetType = UNSET
    version: int | UnsetType = UNSET


class Result(msgspec.Struct, frozen=True):
    """An answer; `revision` is the store's, after the operation."""

    value: Scalar | UnsetType | None = UNSET
    create_revision: int | UnsetType = UNSET
    mod_revision: int | UnsetType = UNSET
    version: int | UnsetType = UNSET
    kvs: tuple[Record, ...] | UnsetType = UNSET
    count: int | UnsetType = UNSET
    created: bool | UnsetType = UNSET
    succeeded: bool | UnsetType = UNSET
    results: tuple[Result, ...] | UnsetType = UNSET
    revision: int | UnsetType = UNSET


def is_inside(key: str, start: str, end: str) -> bool:
    """Whether a range has the key."""
    if not end:
        return key == start
    return key >= start and (end == EVERY_KEY or key < end)


def is_read(call: Call) -> bool:
    """Whether it changes nothing, whatever is there."""
    if isinstance(call, Transaction):
        return all(map(is_read, (*call.success, *call.failure)))
    return isinstance(call, Get | Range)


def describe(call: Call, result: Result | None) -> str:
    """In words; a result of None is one that is not known."""
    text = _asked(call)
    if result is None:
        return f"{text}, outcome unknown"
    answer = _answered(call, result)
    return f"{text}: {answer}" if answer else text


def _asked(call: Call) -> str:
    if isinstance(call, Get):
        return f"get {call.key!r}"
    if isinstance(call, Put):
        return f"put {call.key!r} = {call.value!r}"
    if isinstance(call, Append):
        return f"append {call.value!r} to {call.key!r}"
    if isinstance(call, CompareAndSet):
        return f"set {call.key!r} from {call.expected!r} to {call.value!r}"
    if isinstance(call, Delete | Range):
        name = "delete" if isinstance(call, Delete) else "range"
        return f"{name} {call.key!r}" + (f" to {call.end!r}" if call.end else "")
    compares = ", ".join(
        f"{c.target} of {c.key!r} {c.relation} {c.operand!r}" for c in call.compares
    )
    success = "; ".join(map(_asked, call.success)) or "nothing"
    failure = "; ".join(map(_asked, call.failure)) or "nothing"
    return f"if [{compares}] then [{success}] else [{failure}]"


def _answered(call: Call, result: Result) -> str:
    parts = []
    if result.value is not UNSET:
        parts.append("no such key" if result.value is None else repr(result.value))
    if result.kvs is not UNSET:
        parts.append(repr({kv.key: kv.value for kv in result.kvs}))
    if result.succeeded is not UNSET:
        parts.append("succeeded" if result.succeeded else "the compare failed")
    if result.results is not UNSET and isinstance(call, Transaction):
        steps = call.success if result.succeeded else call.failure
        found = [_answered(c, r) for c, r in zip(steps, result.results, strict=False)]
        parts.append(f"[{'; '.join(text or 'done' for text in found)}]")
    for name in ("count", "created", "create_revision", "mod_revision", "version", "revision"):
        value = getattr(result, name)
        if value is not UNSET:
            parts.append(f"{name} {value}")
    return ", ".join(parts)
