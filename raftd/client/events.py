"""Server-sent events, out of bytes that come cut anywhere (HTML Standard, 9.2)."""

from __future__ import annotations

from typing import NamedTuple

#: The longest event, in bytes: one transaction, or one range delete, with all
#: that was there before.  What is longer cannot be watched.
MAX_EVENT_BYTES = 256 << 20


class ServerSentEvent(NamedTuple):
    """One event; what it does not have is empty."""

    id: str
    kind: str
    data: bytes


class EventParser:
    """
    Only what raftd sends: lines end with a line feed, fields are `id`,
    `event` and `data`.
    """

    def __init__(self) -> None:
        #: The line that is not complete yet, in pieces: it may be long.
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._clear()

    def _clear(self) -> None:
        self._id = ""
        self._kind = ""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that are complete now; `ValueError` if one is too long."""
        found: list[ServerSentEvent] = []
        first, *lines = data.split(b"\n")
        self._rest.append(first)
        self._rest_bytes += len(first)
        for line in lines:
            self._line(b"".join(self._rest), found)
            self._rest, self._rest_bytes = [line], len(line)
        if self._data_bytes + self._rest_bytes > MAX_EVENT_BYTES:
            raise ValueError(f"an event has more than {MAX_EVENT_BYTES} bytes")
        return found

    def _line(self, line: bytes, found: list[ServerSentEvent]) -> None:
        if line:
            self._field(line)
        elif self._id or self._kind or self._data:
            found.append(ServerSentEvent(self._id, self._kind, b"\n".join(self._data)))
            self._clear()

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(value)
        elif name == b"id":
            self._id = value.decode("ascii", "replace")
        elif name == b"event":
            self._kind = value.decode("ascii", "replace")
