"""For tests of the server: servers in this process, on loopback ports that are free."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from raftd.errors import Fatal, RaftdError
from raftd.interfaces import NodeStatus
from raftd.kv.database import Database
from raftd.kv.interfaces import LINEARIZABLE, LOCAL
from raftd.kv.operations import DeleteRange, Operation, Put
from raftd.kv.results import DeleteResult, KeyValue, PutResult, Result
from raftd.node import Node
from raftd.replica import ReplicaOptions
from raftd.server import Server, ServerOptions
from raftd.test.processes import free_ports

#: What a server is told for itself; everything else is for its replica.
SERVER_OPTIONS = ("listen", "insecure", "learner", "restore", "restore_ahead")
#: How long a condition may take to come true.
PATIENCE_S = 8.0
#: How often it is looked at.
LOOK_S = 0.005

_reactor: Any = reactor


def free_name() -> str:
    """A name of this machine, on a port that nothing listens on at the moment."""
    (port,) = free_ports(1)
    return f"127.0.0.1:{port}"


async def until(condition: Callable[[], object], what: str = "it") -> None:
    """Until `condition` holds, for a bounded time."""
    give_up_at = _reactor.seconds() + PATIENCE_S
    while not condition():
        if _reactor.seconds() >= give_up_at:
            raise AssertionError(f"{what} did not come about within {PATIENCE_S} s")
        await deferLater(_reactor, LOOK_S, lambda: None)


class Talker(Protocol):
    """Says what it was told to as soon as it hears something; nothing, if that is None."""

    def __init__(self, words: bytes | None, close: bool) -> None:
        self._words = words
        self._close = close

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        if self._words is not None:
            self.transport.write(self._words)
            self._words = None
        if self._close:
            self.transport.loseConnection()


def http(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    """A whole HTTP answer."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 " + status + b"\r\n" + length + headers + b"\r\n" + body


class ServerTestCase(TestCase):
    """Each test has at most `timeout` seconds, and leaves nothing running."""

    timeout = 20

    def setUp(self) -> None:
        self.fatal: list[Fatal] = []

    # -- servers ---------------------------------------------------------------

    def server(self, directory: str | None = None, **options: Any) -> Server:
        """A server with its directory open."""
        server = self.closed_server(directory, **options)
        server.open()
        self.addCleanup(self.stop, server)
        return server

    def closed_server(self, directory: str | None = None, **options: Any) -> Server:
        if directory is None:
            directory = self.mktemp()
            os.makedirs(directory)
        defaults = {
            "heartbeat_interval_ms": 25,
            "election_timeout_ms": 200,
            "request_timeout_ms": 1500,
        }
        own = {name: options.pop(name) for name in SERVER_OPTIONS if name in options}
        replica = ReplicaOptions(**{**defaults, **options})
        return Server(
            _reactor, ServerOptions(directory, **own, replica=replica), self.fatal.append
        )

    async def stop(self, server: Server) -> None:
        """Stop `server`, unless that was done before."""
        if not getattr(server, "stopped_by_test", False):
            server.stopped_by_test = True  # type: ignore[attr-defined]
            await server.stop()

    async def initialized(self, **options: Any) -> Server:
        server = self.server(**options)
        await server.take_name(free_name())
        await server.initialize()
        return server

    async def joined(self, *servers: Server, **options: Any) -> Server:
        """A new member, through the first of `servers` that lets it."""
        server = self.server(**options)
        await server.take_name(free_name())
        await server.join([name_of(s) for s in servers])
        return server

    async def restarted(self, server: Server) -> Server:
        """A server in the directory of one that was stopped."""
        again = self.server(server._options.data_dir)
        await again.take_name(again.recorded_name)
        await again.recover()
        return again

    def listen(self, words: bytes | None, close: bool = True) -> str:
        """A program that is not raftd; its name."""
        factory = Factory.forProtocol(lambda: Talker(words, close))
        factory.noisy = False
        port: IListeningPort = _reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return f"127.0.0.1:{port.getHost().port}"  # type: ignore[attr-defined]

    # -- requests ----------------------------------------------------------------

    async def put(self, server: Server, key: bytes, value: bytes) -> PutResult:
        result = await self.change(server, Put(key, value))
        assert isinstance(result, PutResult)
        return result

    async def get(self, server: Server, key: bytes, linearizable: bool = True) -> bytes | None:
        done: Deferred[KeyValue | RaftdError | None] = Deferred()
        staleness = LINEARIZABLE if linearizable else LOCAL
        database_of(server).get(key, staleness, done.callback)
        outcome = await done
        if isinstance(outcome, RaftdError):
            raise outcome
        return None if outcome is None else outcome.value

    async def delete(self, server: Server, key: bytes) -> DeleteResult:
        result = await self.change(server, DeleteRange(key))
        assert isinstance(result, DeleteResult)
        return result

    async def change(self, server: Server, operation: Operation) -> Result:
        done: Deferred[Result | RaftdError] = Deferred()
        database_of(server).change(operation, done.callback)
        outcome = await done
        if isinstance(outcome, RaftdError):
            raise outcome
        return outcome

    async def http_get(self, server: Server, path: str) -> tuple[int, bytes]:
        response = await treq.get(
            f"http://{server._name}{path}", agent=Agent(_reactor), timeout=PATIENCE_S
        )
        return response.code, await response.content()

    async def refused(self, step: Deferred[Any], error: type[RaftdError], *parts: str) -> None:
        """That `step` fails with a sentence that has these parts."""
        try:
            await step
        except error as e:
            for part in parts:
                self.assertIn(part, str(e))
            self.assertTrue(str(e).endswith((".", "?")), str(e))
        else:
            raise AssertionError("it was not refused")

    async def broken_off(self, step: Deferred[Any]) -> None:
        """That `step` ends because it was told to, now."""
        step.cancel()
        try:
            await step
        except CancelledError:
            return
        raise AssertionError("it was not broken off")


def node_of(server: Server) -> Node:
    return server._replica.node


def status_of(server: Server) -> NodeStatus:
    return node_of(server).status()


def name_of(server: Server) -> str:
    return server._name


def database_of(server: Server) -> Database:
    site = server._routes.site
    assert site is not None
    assert isinstance(site.database, Database)
    return site.database


def roles_of(server: Server) -> dict[str, str]:
    """The members as `server` sees them: name to role."""
    return {m.member.name: m.role for m in status_of(server).members}
