"""JSON that people send, checked so that a slip of the finger gets a clear answer."""

from __future__ import annotations

from collections.abc import Sequence
from json import loads

from raftd.errors import BadAnswer, BadRequest, TooLarge
from raftd.names import split_name

#: The longest body that is read as JSON, in bytes.
MAX_JSON_BYTES = 64 * 1024

_MAX_QUOTED_CHARACTERS = 80


def parse(body: bytes, example: str) -> dict[str, object]:
    """
    The JSON object that `body` holds.

    `BadRequest` if it holds none, with `example` as the way to write one;
    `TooLarge`.  A key that occurs twice is refused: one of the two would be lost.
    """
    if len(body) > MAX_JSON_BYTES:
        raise TooLarge(f"A body of more than {MAX_JSON_BYTES} bytes is not read here.")
    try:
        value = loads(body.decode("utf-8"), object_pairs_hook=distinct)
    except (ValueError, RecursionError):
        raise BadRequest(f"The body is not JSON; it may be {example}.") from None
    return as_object(value, "The body", example)


def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """What `json.loads` is to make of an object (`object_pairs_hook`)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRequest(f"{quote(key)} occurs twice in one JSON object.")
            seen.add(key)
    return found


def as_object(value: object, what: str, example: str) -> dict[str, object]:
    """`value`, which must be an object."""
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object, like {example}.")
    return value


def check_keys(value: dict[str, object], known: Sequence[str], what: str) -> None:
    """`BadRequest` if `value` has any key that is not `known`."""
    for key in value:
        if key not in known:
            raise BadRequest(
                f"{what} has no {quote(key)}; it may have {' and '.join(map(quote, known))}."
            )


def text(value: object, what: str) -> str:
    """`value`, which must be a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{quote(what)} must be a string, and not an empty one.")
    return value


def boolean(value: object, what: str) -> bool:
    """`value`, which must be true or false."""
    if not isinstance(value, bool):
        raise BadRequest(f"{quote(what)} must be true or false.")
    return value


def number(value: object, what: str, low: int, high: int) -> int:
    """`value`, which must be a whole number from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequest(f"{quote(what)} must be a whole number from {low} to {high}.")
    return value


def new_name(value: object, what: str) -> str:
    """`value`, which must be a `host:port` where a member can be reached."""
    name = text(value, what)
    try:
        split_name(name)
    except BadAnswer as e:
        raise BadRequest(str(e)) from None
    return name


def quote(value: str) -> str:
    """`value` in quotes, cut to what fits a sentence."""
    if len(value) > _MAX_QUOTED_CHARACTERS:
        value = value[: _MAX_QUOTED_CHARACTERS - 3] + "..."
    return repr(value)
