"""Sockets and epolls in memory, which count what is asked of them."""

from __future__ import annotations

import select
from collections.abc import Callable

from raftd.test.work.counting import Tally

#: An IPv4 address: host and port.
Address = tuple[str, int]


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
    """
    All connections: what was sent arrives when `deliver` is called, and what a
    socket that is far away has sent when it is called once more.

    Sockets and epolls have descriptors, none of them twice.
    """

    def __init__(self) -> None:
        self.descriptors: dict[int, Socket | Epoll] = {}
        self._made = 0
        self._under_way: list[tuple[Socket, bytes]] = []
        self._far_away: list[tuple[Socket, bytes]] = []

    def add(self, item: Socket | Epoll) -> int:
        """Its descriptor."""
        self._made += 1
        self.descriptors[self._made] = item
        return self._made

    def pair(self, *, is_of_peers: bool = False) -> tuple[Socket, Socket]:
        """The two ends of a new connection."""
        near, far = Socket(self, is_of_peers), Socket(self, is_of_peers)
        near.other, far.other = far, near
        return near, far

    def send(self, sender: Socket, data: bytes) -> None:
        on_its_way = self._far_away if sender.is_far else self._under_way
        on_its_way.append((sender.other, data))

    def deliver(self) -> bool:
        """Whether there was anything to deliver, or is."""
        arrived, self._under_way, self._far_away = self._under_way, self._far_away, []
        for target, data in arrived:
            target.unread += data
        return bool(arrived or self._under_way)


class Socket:
    """As much of a socket as a connection of Twisted uses; it takes whatever is sent."""

    other: Socket
    #: What connects the other end.
    connected_to: Callable[[Address], None]
    is_far = False

    def __init__(self, wire: Wire, is_of_peers: bool) -> None:
        self.unread = b""
        self.tally = Tally()
        self._wire = wire
        self._descriptor = wire.add(self)
        self._boxes = Boxes() if is_of_peers else None

    @property
    def ready_for(self) -> int:
        """Events that an epoll would tell of."""
        return select.EPOLLOUT | (select.EPOLLIN if self.unread else 0)

    def send(self, data: bytes | memoryview) -> int:
        sent, tally, boxes = bytes(data), self.tally, self._boxes
        tally.sends += 1
        if boxes is not None:
            before = boxes.count
            boxes.feed(sent)
            tally.messages += boxes.count - before
            tally.wire_bytes += len(sent)
        self._wire.send(self, sent)
        return len(sent)

    def recv(self, size: int) -> bytes:
        self.tally.receives += 1
        data, self.unread = self.unread[:size], self.unread[size:]
        if not data:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return data

    def connect_ex(self, address: Address) -> int:
        """It always can, at once."""
        self.connected_to(address)
        return 0

    def getsockname(self) -> Address:
        return ("127.0.0.1", self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def getsockopt(self, level: int, name: int) -> int:
        """There has been no error."""
        return 0

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Nothing is different with any of them."""


class Epoll:
    """As `select.epoll`, of what is on a wire; it may watch others of its kind."""

    def __init__(self, wire: Wire, tally: Tally) -> None:
        self._wire = wire
        self._tally = tally
        self._descriptor = wire.add(self)
        self._watched: dict[int, int] = {}

    @property
    def ready(self) -> list[tuple[int, int]]:
        """Descriptors, and what they are ready for."""
        of = self._wire.descriptors
        events = ((fd, of[fd].ready_for & mask) for fd, mask in self._watched.items())
        return [(fd, event) for fd, event in events if event]

    @property
    def ready_for(self) -> int:
        return select.EPOLLIN if self.ready else 0

    def poll(self, timeout: float = -1, maxevents: int = -1) -> list[tuple[int, int]]:
        """It never waits."""
        self._tally.polls += 1
        return self.ready[: maxevents if maxevents > 0 else None]

    def register(self, fd: int, eventmask: int) -> None:
        assert fd not in self._watched
        self._tally.registrations += 1
        self._watched[fd] = eventmask

    def modify(self, fd: int, eventmask: int) -> None:
        assert fd in self._watched
        self._tally.registrations += 1
        self._watched[fd] = eventmask

    def unregister(self, fd: int) -> None:
        self._tally.registrations += 1
        del self._watched[fd]

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        del self._wire.descriptors[self._descriptor]
