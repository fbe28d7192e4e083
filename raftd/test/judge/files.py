"""Histories on disk, in either form."""

from __future__ import annotations

from pathlib import Path

from raftd.test.judge.history import BadHistory, History, decode_lines, history_of
from raftd.test.judge.jepsen import read_register


def read_history(path: Path) -> History:
    """
    A file of JSON lines, or of lines as Jepsen writes them.

    `BadHistory` raised for anything else, and for one without anything to judge.
    """
    data = path.read_bytes()
    if data.lstrip().startswith(b"{"):
        history = history_of(decode_lines(data))
    else:
        history = read_register(data)
    if not history.operations and not history.watched:
        raise BadHistory("there is nothing to judge")
    return history
