"""
Connections that send without asking first.

Twisted's own keep what they are given until the reactor has asked the kernel
whether it may be sent, which it nearly always may: two calls of `epoll_ctl` and
one more event of the reactor for each answer, a tenth of the processor that a
leader takes for a write.  These try it first, and all those together that were
written to in one turn of the reactor: sent one by one as they come, each answer
would wake up the client at the other end, which costs more than is gained.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.internet.tcp import Port, Server
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()


class Burst:
    """
    The connections that have something to send and have not tried to yet.

    Invariant: `_send` is due if, and only if, there is one.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._connections: list[BurstServer] = []

    def add(self, connection: BurstServer) -> None:
        if not self._connections:
            self._clock.callLater(0, self._send)
        self._connections.append(connection)

    def _send(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            try:
                connection.send()
            except Exception:
                # As the reactor does with a connection that raises.
                _log.failure("A connection failed while it sent")
                connection.connectionLost(Failure())


class BurstServer(Server):
    """
    An accepted connection.

    Invariant: what waits to be sent waits for the burst, or the reactor has
    been asked when it can be sent; `_waiting` says that there is something.
    """

    _waiting = False

    def __init__(self, burst: Burst, *arguments: Any) -> None:
        """`arguments` are those of a `Server`."""
        self._burst = burst
        super().__init__(*arguments)

    def startWriting(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._burst.add(self)

    def stopWriting(self) -> None:
        self._waiting = False
        super().stopWriting()  # type: ignore[no-untyped-call]

    def send(self) -> None:
        """Send what the kernel takes; the reactor sees to the rest, or to the end."""
        if not self._waiting:
            return
        why = self.doWrite()  # type: ignore[no-untyped-call]
        if why is not None or self._waiting:
            super().startWriting()  # type: ignore[no-untyped-call]


def send_in_bursts(port: IListeningPort) -> None:
    """Have `port` make such connections, if it is one of TCP as Twisted has them."""
    if isinstance(port, Port):
        reactor: Any = port.reactor
        make: Any = partial(BurstServer, Burst(reactor))
        port.transport = make
