"""Sockets in memory, which count what goes through them."""

from __future__ import annotations

from raftd.test.work.counting import Tally


class Boxes:
    """Counts the boxes of AMP in a stream: keys and values, each a length and so many bytes."""

    def __init__(self) -> None:
        self.count = 0
        self._rest = b""
        self._is_key = True

    def feed(self, data: bytes) -> None:
        data, at = self._rest + data, 0
        while len(data) - at >= 2:
            length = int.from_bytes(data[at : at + 2], "big")
            if len(data) - at - 2 < length:
                break
            at += 2 + length
            if self._is_key and not length:
                self.count += 1
            else:
                self._is_key = not self._is_key
        self._rest = data[at:]


class Wire:
    """All connections: what was sent arrives when `deliver` is called."""

    def __init__(self) -> None:
        self._under_way: list[tuple[Socket, bytes]] = []

    def pair(self, *, is_of_peers: bool = False) -> tuple[Socket, Socket]:
        """The two ends of a new connection."""
        near, far = Socket(self, is_of_peers), Socket(self, is_of_peers)
        near.other, far.other = far, near
        return near, far

    def send(self, target: Socket, data: bytes) -> None:
        self._under_way.append((target, data))

    def deliver(self) -> bool:
        """Whether there was anything to deliver."""
        under_way, self._under_way = self._under_way, []
        for target, data in under_way:
            target.unread += data
        return bool(under_way)


class Socket:
    """As much of a socket as a connection of Twisted uses; it takes whatever is sent."""

    other: Socket

    def __init__(self, wire: Wire, is_of_peers: bool) -> None:
        self.unread = b""
        self.tally = Tally()
        self._wire = wire
        self._boxes = Boxes() if is_of_peers else None

    def send(self, data: bytes | memoryview) -> int:
        sent, tally, boxes = bytes(data), self.tally, self._boxes
        tally.sends += 1
        if boxes is not None:
            before = boxes.count
            boxes.feed(sent)
            tally.messages += boxes.count - before
            tally.wire_bytes += len(sent)
        self._wire.send(self.other, sent)
        return len(sent)

    def recv(self, size: int) -> bytes:
        self.tally.receives += 1
        data, self.unread = self.unread[:size], self.unread[size:]
        if not data:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return data

    def fileno(self) -> int:
        """There is no descriptor."""
        return -1

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Nothing is different with any of them."""
