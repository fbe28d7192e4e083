"""
Connections that are read together, and written to without asking first.

Twisted's own ask the kernel whether something can be sent, which it nearly
always can: two calls of `epoll_ctl` and one more event of the reactor for each
answer.  And for each event of a connection the reactor makes a context for
lines of the log, and looks up their prefix.  Both together are a quarter of
what an answer takes of the processor (`docs/performance.md`).

So these connections have an epoll of their own, which the reactor sees as one
thing to read from.  A burst is: to read from all that have sent something; then
to do what was asked for (`Burst.soon`), which is the node's turn; then to send
for all of them what was written meanwhile.  Sent one by one as they come, each
answer would wake up the client at the other end, which costs more than is
gained.  Connections to peers send at once (`sends_at_once`), for a peer has work
to do meanwhile.  Whatever is not data, such as the end of a connection, and what
the kernel does not take, is left to the reactor.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from twisted.internet.interfaces import (
    IListeningPort,
    IReactorPluggableNameResolver,
    IReactorTime,
    IReadDescriptor,
)
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.tcp import Client, Connection, Connector, Port, Server
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

#: Connections that are read before anything else has its turn.
MAX_READ_AT_ONCE = 1024

_log = Logger()


@implementer(IReadDescriptor)
class Burst:
    """
    The connections of a reactor that are read and sent from together.

    Invariants: those in `_readers`, by descriptor, are those in `_epoll`, and
    the reactor watches that if, and only if, there is one.  Those in `_writers`
    have something to send and have not tried to yet; if there is one, a burst
    is under way, or `_end` is due.  A burst ends whoever raises in it: nobody
    else has to suffer for it, and what waits for the end would wait for ever.
    """

    def __init__(
        self, reactor: Any, make_epoll: Callable[[], select.epoll] | None = None
    ) -> None:
        """
        `reactor` is an `IReactorTime`; where it has no sockets as Twisted's
        have them, or the kernel no epoll, its connections stay as they are.
        """
        self._reactor = reactor
        if make_epoll is None and isinstance(reactor, PosixReactorBase):
            make_epoll = getattr(select, "epoll", None)
        self._make_epoll = make_epoll
        self._epoll: select.epoll | None = None
        self._readers: dict[int, BurstConnection] = {}
        self._writers: list[BurstConnection] = []
        #: What is to be done when all have been read.
        self._acts: list[Callable[[], None]] = []
        self._is_reading = False
        self._is_under_way = False

    # -- who takes part --------------------------------------------------------

    def accept(self, port: IListeningPort) -> None:
        """Have `port` make such connections, if they can be."""
        if self._make_epoll is not None and isinstance(port, Port):
            make: Any = partial(BurstServer, self)
            port.transport = make

    @property
    def connecting(self) -> Any:
        """The reactor for an endpoint, so that its connections are such, if they can be."""
        if self._make_epoll is None:
            return self._reactor
        return BurstReactor(self._reactor, partial(BurstClient, self))

    def soon(self, act: Callable[[], None]) -> None:
        """
        Call `act` when all that there is has been read: within the burst that
        is being read, or in the next turn of the reactor.
        """
        if self._is_reading:
            self._acts.append(act)
        else:
            self._reactor.callLater(0, self._act, act)

    # -- reading ---------------------------------------------------------------

    def add_reader(self, connection: BurstConnection) -> None:
        """Nothing happens if it is there."""
        fd = connection.fileno()
        if fd in self._readers:
            return
        if self._epoll is None:
            assert self._make_epoll is not None
            self._epoll = self._make_epoll()
            self._reactor.addReader(self)
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = connection

    def remove_reader(self, connection: BurstConnection) -> bool:
        """Whether it was there."""
        fd = connection.fileno()
        if self._epoll is None or self._readers.get(fd) is not connection:
            return False
        del self._readers[fd]
        self._epoll.unregister(fd)
        if not self._readers:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None
        return True

    def fileno(self) -> int:
        """That of the epoll, which can be read when one of the connections can."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """A burst; called when somebody has sent something."""
        if self._epoll is None:
            return
        ready = self._epoll.poll(0, MAX_READ_AT_ONCE)
        self._is_under_way = self._is_reading = True
        for fd, events in ready:
            connection = self._readers.get(fd)
            # None if one that was read before it has closed it.
            if connection is not None:
                connection.read(events)
        self._is_reading = False
        acts, self._acts = self._acts, []
        self._carry_out(acts)

    def _act(self, act: Callable[[], None]) -> None:
        """A burst in which nothing is read."""
        self._is_under_way = True
        self._carry_out((act,))

    def _carry_out(self, acts: Iterable[Callable[[], None]]) -> None:
        for act in acts:
            try:
                act()
            except BaseException:  # as the reactor does, of what is called later
                _log.failure("What was to be done in a burst failed")
        self._end()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has ended."""
        for connection in list(self._readers.values()):
            connection.lose(reason)

    def logPrefix(self) -> str:
        """For what is logged by nobody else."""
        return "connections"

    # -- writing ---------------------------------------------------------------

    def add_writer(self, connection: BurstConnection) -> None:
        if not self._writers and not self._is_under_way:
            self._reactor.callLater(0, self._end)
        self._writers.append(connection)

    def _end(self) -> None:
        """Send what was written."""
        self._is_under_way = False
        connections, self._writers = self._writers, []
        for connection in connections:
            connection.send()


class BurstConnection(Connection):
    """
    What both ends have in common.

    Invariants: once it is connected, what waits to be sent waits for the
    burst, or the reactor has been asked when it can be sent (`_has_asked`);
    `_waits` says that there is something: `_piece`, which is sent past
    Twisted's buffer, or what is in that, but never both.  It is read by the
    burst up to the first event that is not data, and from then on by the
    reactor.
    """

    #: Each piece that is written by itself, but for large ones, and not all of a burst.
    sends_at_once = False

    _burst: Burst
    _waits = False
    _piece = b""
    _has_asked = False
    _is_plain = True

    # -- reading ---------------------------------------------------------------

    def startReading(self) -> None:
        if self._is_plain and self.connected:
            self._burst.add_reader(self)
        else:
            super().startReading()  # type: ignore[no-untyped-call]

    def stopReading(self) -> None:
        if not self._burst.remove_reader(self):
            super().stopReading()  # type: ignore[no-untyped-call]

    def read(self, events: int) -> None:
        """
        Take what has come; everything but data comes again, and the reactor
        sees to it.  Raises nothing.
        """
        try:
            try:
                data = self.socket.recv(self.bufferSize) if events == select.EPOLLIN else b""
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self.protocol.dataReceived(data)
            else:
                self.stopReading()
                self._is_plain = False
                self.startReading()
        except BaseException:
            self._failed("read")

    # -- writing ---------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._waits or len(data) > self.bufferSize or not self._is_open:
            self._write_behind(data)
            return
        self._piece, self._waits = data, True
        if self.sends_at_once:
            self.send()
        else:
            self._burst.add_writer(self)

    @property
    def _is_open(self) -> bool:
        """Whether all that matters of what is written is that it is sent."""
        return bool(self.connected) and not (
            self.disconnecting or self._writeDisconnecting or self.TLS
        )

    def _write_behind(self, data: bytes) -> None:
        """Through Twisted's buffer, and so in order."""
        piece, self._piece = self._piece, b""
        try:
            if piece:
                super().write(piece)  # type: ignore[no-untyped-call]
            super().write(data)  # type: ignore[no-untyped-call]
        finally:
            if self.connected:  # though a producer that is paused may raise
                self.startWriting()

    def startWriting(self) -> None:
        if not self.connected:
            # It is about to be, and the reactor will know when.
            self._ask()
        elif not self._waits:
            self._waits = True
            self._burst.add_writer(self)

    def stopWriting(self) -> None:
        self._waits = False
        if self._has_asked:
            self._has_asked = False
            super().stopWriting()  # type: ignore[no-untyped-call]

    def send(self) -> None:
        """
        Send what the kernel takes; the reactor sees to the rest, or to the
        end.  Raises nothing.
        """
        if not (self._waits and self.connected):
            return
        try:
            if self._piece and self._send_piece():
                return
            if self.doWrite() is not None or self._waits:  # type: ignore[no-untyped-call]
                self._waits = True
                self._ask()
        except BaseException:
            self._failed("sent")

    def _send_piece(self) -> bool:
        """Whether nothing waits any more; what was not sent is in Twisted's buffer."""
        piece, self._piece = self._piece, b""
        try:
            sent = self.socket.send(piece)
        except OSError:
            sent = 0  # the reactor will find what is wrong, if something is
        if sent == len(piece) and self._is_open:
            self._waits = False
            return True
        super().write(piece[sent:])  # type: ignore[no-untyped-call]
        return False

    def _ask(self) -> None:
        self._has_asked = True
        super().startWriting()  # type: ignore[no-untyped-call]

    def _failed(self, what: str) -> None:
        """As the reactor does with a connection that raises."""
        failure = Failure()
        _log.failure("A connection failed while it {what}", failure, what=what)
        self.lose(failure)

    def lose(self, reason: Failure) -> None:
        """It has ended; raises nothing, whatever its protocol makes of it."""
        try:
            self.stopReading()
            self.stopWriting()
            self.connectionLost(reason)
        except BaseException:
            _log.failure("A connection failed while it ended")


class BurstServer(BurstConnection, Server):
    """A connection that was accepted."""

    def __init__(self, burst: Burst, *arguments: Any) -> None:
        """`arguments` are those of a `Server`."""
        self._burst = burst
        self.connected = 1  # as it will be when it starts to read
        super().__init__(*arguments)


class BurstClient(BurstConnection, Client):
    """A connection that was made here."""

    def __init__(self, burst: Burst, *arguments: Any) -> None:
        """`arguments` are those of a `Client`."""
        self._burst = burst
        super().__init__(*arguments)  # type: ignore[no-untyped-call]


class _BurstConnector(Connector):
    def __init__(self, make_client: Callable[..., BurstClient], *arguments: Any) -> None:
        self._make_client = make_client
        super().__init__(*arguments)

    def _makeTransport(self) -> BurstClient:
        return self._make_client(self.host, self.port, self.bindAddress, self, self.reactor)


@implementer(IReactorPluggableNameResolver, IReactorTime)
class BurstReactor:
    """A reactor whose connections are such: what an endpoint needs of it."""

    def __init__(self, reactor: Any, make_client: Callable[..., BurstClient]) -> None:
        """`make_client` is given the arguments of a `Client`."""
        self._reactor = reactor
        self._make_client = make_client

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,
    ) -> Connector:
        """As `IReactorTCP` has it."""
        arguments = (host, port, factory, timeout, bindAddress, self._reactor)
        connector = _BurstConnector(self._make_client, *arguments)
        connector.connect()
        return connector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
