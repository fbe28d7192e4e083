"""
A server without a cluster: it takes every step that the dialogue asks for, and
remembers them.  `python -m raftd.test.fake_setup raftd ...` runs the real
command, in a process of its own, on top of it.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from raftd.clock import is_monotonic
from raftd.errors import BadAnswer, DirectoryInUse, Fatal, JoinFailed, RaftdError
from raftd.interfaces import IServer, Recovered, Stage
from raftd.names import split_name
from raftd.replica import ReplicaOptions
from raftd.store_service import StoreOptions


@implementer(IServer)
class FakeServer:
    """
    Good names are bound; joining works but through a server on port 1, which
    is down, or on port 2, which never answers.
    """

    def __init__(self, stage: Stage = Stage.NEW, recorded_name: str = "") -> None:
        self.stage = stage
        self.recorded_name = recorded_name
        #: What was asked of it, in order.
        self.steps: list[str] = []
        #: What the next `open`, or the next step, fails with.
        self.failure: RaftdError | None = None
        self.on_fatal: Callable[[Fatal], None] = lambda reason: None
        #: Called when it serves.
        self.serving: Callable[[], object] = lambda: None
        self.stopped: Deferred[None] = succeed(None)

    def open(self) -> None:
        self.steps.append("open")
        if self.failure is not None:
            raise self.failure

    def take_name(self, name: str) -> Deferred[None]:
        self.steps.append(f"take_name {name}")
        try:
            split_name(name)
        except BadAnswer:
            return fail(BadAnswer(f"{name!r} is no host:port."))
        if self.recorded_name not in ("", name):
            return fail(BadAnswer(f"This directory belongs to {self.recorded_name}."))
        self.recorded_name = name
        return succeed(None)

    def initialize(self) -> Deferred[None]:
        self.steps.append("initialize")
        return self._step()

    def join(self, servers: Sequence[str]) -> Deferred[None]:
        self.steps.append(f"join {','.join(servers)}")
        self.stage = Stage.JOINING
        for server in servers:
            if server.endswith(":1"):
                return fail(JoinFailed(f"nothing listens at {server}."))
            if server.endswith(":2"):
                return Deferred()
        return self._step()

    def recover(self) -> Deferred[Recovered]:
        self.steps.append("recover")
        return self._step().addCallback(lambda _: Recovered(self.recorded_name, 3, 7))

    def stop(self) -> Deferred[None]:
        self.steps.append("stop")
        return self.stopped

    def _step(self) -> Deferred[None]:
        if self.failure is not None:
            return fail(self.failure)
        self.stage = Stage.MEMBER
        self.serving()
        return succeed(None)


class FakeServerOptions(msgspec.Struct):
    """The fields of the real one."""

    data_dir: str
    listen: str | None
    insecure: bool
    learner: bool
    restore: str | None
    restore_ahead: int
    store: StoreOptions
    replica: ReplicaOptions


def make_fake_server(
    reactor: Any, options: FakeServerOptions, on_fatal: Callable[[Fatal], None]
) -> FakeServer:
    """
    As the real constructor.

    The environment says what the directory holds: `FAKE_STAGE` a stage, for
    the name localhost:4001; `FAKE_LOCKED` that it is in use.  `FAKE_FATAL`
    lets it break while it serves, with that sentence, in which `{options}` stands
    for what it was given; `FAKE_STOP_HANGS` lets it never stop.
    """
    # What every server may rely on (pitfall 52, and the disk's thread).
    assert is_monotonic(reactor)
    assert sys.getswitchinterval() < 0.001
    stage = Stage(os.environ.get("FAKE_STAGE", "new"))
    server = FakeServer(stage, "" if stage is Stage.NEW else "localhost:4001")
    server.on_fatal = on_fatal
    if os.environ.get("FAKE_LOCKED"):
        server.failure = DirectoryInUse(f"{options.data_dir} is in use.")
    if os.environ.get("FAKE_FATAL"):
        reason = Fatal(os.environ["FAKE_FATAL"].format(options=options))
        server.serving = lambda: reactor.callLater(0, on_fatal, reason)
    if os.environ.get("FAKE_STOP_HANGS"):
        server.stopped = Deferred()
    return server


def main() -> None:
    """Run `raftd` or `twist`, as the first argument says, with the fake in place."""
    module: Any = types.ModuleType("raftd.server")
    module.Server = make_fake_server
    module.ServerOptions = FakeServerOptions
    sys.modules["raftd.server"] = module
    command = sys.argv.pop(1)
    sys.argv[0] = command
    if command == "raftd":
        from raftd.tap import main

        main()
    else:
        import runpy

        runpy.run_module("twisted", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
