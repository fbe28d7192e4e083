"""For tests of `raftctl`: its commands, on a cluster in memory."""

from __future__ import annotations

import io
import os
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from raftd.client import Client
from raftd.ctl.arguments import parse
from raftd.ctl.context import Context
from raftd.ctl.endpoints import Endpoints
from raftd.ctl.output import Output
from raftd.ctl.running import carry_out
from raftd.testing_store import StoreCluster


class Stream(io.BytesIO):
    """Where output goes: a terminal or not; `encoding` is the reader's matter."""

    def __init__(self, is_terminal: bool = False) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def fileno(self) -> int:
        raise OSError("it is in memory")

    def text(self) -> str:
        return self.getvalue().decode("utf-8")


class Ran(NamedTuple):
    """What came of a command."""

    status: int
    out: bytes
    said: str

    @property
    def text(self) -> str:
        return self.out.decode("utf-8")

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


class Running:
    """A command under way."""

    def __init__(self, context: Context, out: Stream, err: Stream) -> None:
        self.context = context
        self.out = out
        self.err = err
        self.done: Deferred[int] = Deferred.fromCoroutine(carry_out(context))


class CtlCase(SynchronousTestCase):
    """Commands on a cluster in memory, of one node unless `size` says otherwise."""

    size = 1

    def setUp(self) -> None:
        self.cluster = StoreCluster(self.size, seed=7)
        self.leader = self.cluster.await_leader()

    def begin(
        self,
        *typed: str,
        stdin: bytes = b"",
        terminal: bool = False,
        environ: dict[str, str] | None = None,
    ) -> Running:
        """Begin a command, without letting time pass."""
        out, err = Stream(terminal), Stream(terminal)
        arguments = parse(typed)
        environ = {"PATH": os.environ["PATH"], **(environ or {})}
        context = Context(
            self.cluster.clock,
            arguments,
            Output(out, err, format=arguments.output, environ=environ),
            io.BytesIO(stdin),
            environ,
            Endpoints(tuple(f"{name}:4001" for name in self.cluster.members), "in memory"),
            self._client,
        )
        return Running(context, out, err)

    def _client(self, servers: tuple[str, ...], timeout_s: float) -> Client:
        names = [server.partition(":")[0] for server in servers]
        return self.cluster.client(*names, timeout_s=timeout_s)

    def run_command(self, *typed: str, timeout_s: float = 30.0, **settings: Any) -> Ran:
        """A command, to its end."""
        running = self.begin(*typed, **settings)
        status = self.cluster.result(running.done, timeout_s)
        return Ran(status, running.out.getvalue(), running.err.text())

    def ok(self, *typed: str, **settings: Any) -> Ran:
        """A command that succeeds and complains of nothing."""
        ran = self.run_command(*typed, **settings)
        self.assertEqual((ran.status, ran.said), (0, ""), typed)
        return ran

    def fails(self, status: int, said: str, *typed: str, **settings: Any) -> Ran:
        """A command that fails with one sentence, which has `said` in it."""
        ran = self.run_command(*typed, **settings)
        self.assertEqual(ran.status, status, (typed, ran))
        self.assertIn(said, ran.said)
        self.assertTrue(ran.said.startswith("raftctl: "), ran.said)
        self.assertTrue(ran.said.endswith(".\n"), ran.said)
        self.assertEqual(ran.said.count("\n"), 1)
        return ran
