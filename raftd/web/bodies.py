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
        value = loads(body.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise BadRequest(f"The body is not JSON; it may be {example}.") from None
    return as_object(value, "The body", example)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRequest(f"{quote(twice)} occurs twice in one JSON object.")
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
