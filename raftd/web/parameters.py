"""
What is behind the question mark, read strictly.

A parameter that is unknown, given twice or malformed is refused, with a
sentence that lists what there is: a misspelt wish must not be taken for
another, least of all in a DELETE.

Names and values are percent-decoded bytes.  A `+` is refused: to some clients
it is a plus and to others a space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes

from raftd.errors import BadRequest
from raftd.web.bodies import quote

#: Revisions, and whatever else is counted, fit into 63 bits.
MAX_NUMBER = 2**63 - 1

_malformed_percent = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_is_decimal = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{1,12})?").fullmatch
_is_number = re.compile(rb"[0-9]{1,19}").fullmatch


def percent_decoded(encoded: bytes, what: str) -> bytes:
    """The bytes that `encoded` stands for; `BadRequest` names `what` it is a part of."""
    if b"%" not in encoded:
        return encoded
    if _malformed_percent(encoded):
        raise BadRequest(f"In {what}, a % must be followed by two hexadecimal digits.")
    return unquote_to_bytes(encoded)


def no_parameters(query: bytes, what: str) -> None:
    """`BadRequest` if there are any."""
    if query:
        raise BadRequest(f"{what} has no parameters.")


class Parameters:
    """
    The parameters of one query.

    `known` are the names that there may be, and `what` is what has them, as
    the beginning of a sentence.  Methods take the name of a parameter and
    raise `BadRequest` if its value is none of the kind.
    """

    def __init__(self, query: bytes, known: Sequence[str], what: str) -> None:
        self._values: dict[str, bytes | None] = {}
        if query:
            self._read(query, known, what)

    def _read(self, query: bytes, known: Sequence[str], what: str) -> None:
        if b"+" in query:
            raise BadRequest("A + in a query is a plus to some and a space to others: "
                             "write %2B or %20.")  # fmt: skip
        values = self._values
        for part in query.split(b"&"):
            encoded, has_value, value = part.partition(b"=")
            name = percent_decoded(encoded, "the query").decode("utf-8", "backslashreplace")
            if name not in known:
                there_is = ", ".join(known) or "none"
                raise BadRequest(f"{what} has no parameter {quote(name)}; there is {there_is}.")
            if name in values:
                raise BadRequest(f"The parameter {quote(name)} is given twice.")
            values[name] = (
                percent_decoded(value, f"the parameter {name}") if has_value else None
            )

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def as_given(self, name: str) -> bytes | None:
        """The value of one that is given; None if it came without."""
        return self._values[name]

    def octets(self, name: str) -> bytes | None:
        """Any bytes, perhaps none; None if the parameter is not given."""
        if name not in self._values:
            return None
        value = self._values[name]
        if value is None:
            raise BadRequest(f"The parameter {name!r} needs a value: {name}=...")
        return value

    def number(self, name: str, low: int, high: int = MAX_NUMBER) -> int | None:
        """A whole number from `low` to `high`; None if the parameter is not given."""
        value = self.octets(name)
        if value is None:
            return None
        if not _is_number(value) or not low <= (number := int(value)) <= high:
            raise BadRequest(f"The parameter {name!r} is a whole number from {low} to {high}.")
        return number

    def milliseconds(self, name: str, high_s: int) -> int | None:
        """
        Seconds, perhaps with a fraction, above 0 and up to `high_s`, as whole
        milliseconds, rounded up; None if the parameter is not given.
        """
        value = self.octets(name)
        if value is None:
            return None
        if _is_decimal(value):
            time_ms = math.ceil(float(value) * 1000)
            if 0 < time_ms <= high_s * 1000:
                return time_ms
        raise BadRequest(
            f"The parameter {name!r} is a number of seconds, above 0 and up to {high_s}."
        )

    def flag(self, name: str) -> bool:
        """Whether it is given: without a value, or with `true` or `false`."""
        value = self._values.get(name, b"false")
        if value not in (None, b"", b"true", b"false"):
            raise BadRequest(f"The parameter {name!r} has no value, or it is true or false.")
        return value != b"false"

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of `choices`, of which the first is meant if the parameter is not given."""
        value = self.octets(name)
        if value is None:
            return choices[0]
        for choice in choices:
            if value == choice.encode("ascii"):
                return choice
        raise BadRequest(f"The parameter {name!r} is {' or '.join(choices)}.")
