"""
Histories of a compare-and-set register as Jepsen logs them.

    INFO  jepsen.util - PROCESS  :TYPE  :OP  VALUE

`:read`, `:write` and `:cas [from to]`, each begun by `:invoke` and ended by
`:ok`, `:fail` or `:info`.  A `:fail` of `:cas` is an answer: the value was not
`from`.  A `:fail` of `:write` says nothing of the sort: it may take effect
yet, as with `:info`.  A read that timed out saw nothing.
"""

from __future__ import annotations

import re

from raftd.test.judge.calls import Call, CompareAndSet, Get, Put, Result
from raftd.test.judge.history import (
    BadHistory,
    Fail,
    History,
    Invoke,
    Line,
    Ok,
    Unknown,
    history_of,
)

#: The name that the register is given.
REGISTER = "register"

_LINE = re.compile(
    r"INFO\s+jepsen\.util - (\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.*)"
)
_PAIR = re.compile(r"\[(\d+) (\d+)\]")


def read_register(data: bytes) -> History:
    """The whole of a log; `BadHistory` raised for a line that is none of it."""
    lines: list[Line] = []
    for number, text in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        match = _LINE.fullmatch(text.rstrip())
        if match is None:
            raise BadHistory(f"line {number}: {text[:80]!r}")
        process, kind, name, value = match.groups()
        try:
            lines.append(_line(int(process), kind, name, value))
        except ValueError as e:
            raise BadHistory(f"line {number}: {e}") from None
    return history_of(lines)


def _line(process: int, kind: str, name: str, value: str) -> Line:
    if kind == "invoke":
        return Invoke(process, _call(name, value))
    if name == "read":
        if kind != "ok" or value == ":timed-out":
            return Fail(process)
        return Ok(process, Result(value=None if value == "nil" else int(value)))
    if value == ":timed-out":
        return Unknown(process)
    if name == "cas" and kind in ("ok", "fail"):
        return Ok(process, Result(succeeded=kind == "ok"))
    return Ok(process, Result()) if kind == "ok" else Unknown(process)


def _call(name: str, value: str) -> Call:
    if name == "read":
        return Get(REGISTER)
    if name == "write":
        return Put(REGISTER, int(value))
    match = _PAIR.fullmatch(value)
    if match is None:
        raise ValueError(f"no pair of numbers: {value!r}")
    return CompareAndSet(REGISTER, int(match[1]), int(match[2]))
