"""How a command is carried out, and how it ends, whatever comes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import Any, BinaryIO

from twisted.internet.defer import CancelledError, Deferred

from raftd.client import Client
from raftd.client.errors import Unreachable
from raftd.clock import use_monotonic
from raftd.ctl import backups, holding, keys, leases, members, txn, watching
from raftd.ctl.children import CannotRun
from raftd.ctl.context import Command, Context
from raftd.ctl.endpoints import find_endpoints
from raftd.ctl.output import Output
from raftd.ctl.statuses import DID_NOT_HAPPEN, status_of
from raftd.errors import RaftdError

COMMANDS: dict[str, Command] = {
    "keys.get": keys.get,
    "keys.put": keys.put,
    "keys.delete": keys.delete,
    "keys.list_keys": keys.list_keys,
    "watching.watch": watching.watch,
    "txn.txn": txn.txn,
    "leases.grant": leases.grant,
    "leases.revoke": leases.revoke,
    "leases.keep_alive": leases.keep_alive,
    "leases.list_leases": leases.list_leases,
    "leases.show": leases.show,
    "holding.lock": holding.lock,
    "holding.elect": holding.elect,
    "members.list_members": members.list_members,
    "members.add": members.add,
    "members.promote": members.promote,
    "members.demote": members.demote,
    "members.remove": members.remove,
    "members.move": members.move,
    "members.status": members.status,
    "members.leader": members.leader,
    "backups.compact": backups.compact,
    "backups.save": backups.save,
    "backups.file_status": backups.file_status,
    "backups.restore": backups.restore,
}

#: What ends a command, unless whoever called us has it ignored.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Broken(Exception):
    """Whoever reads our output has gone: there is nobody left to tell."""


async def carry_out(context: Context) -> int:
    """Carry out the command of `context`: its exit status, after a sentence if it failed."""
    output = context.output
    try:
        try:
            status = await COMMANDS[context.arguments.run](context)
            output.flush()
            return status
        finally:
            await context.close()
    except BrokenPipeError:
        raise Broken from None
    except CannotRun as e:
        output.complain(str(e))
        return e.status
    except Unreachable as e:
        servers = ",".join(context.endpoints.servers)
        output.complain(f"{str(e).rstrip('.')} (asked: {servers}, {context.endpoints.source}).")
        return status_of(e)
    except RaftdError as e:
        output.complain(str(e))
        return status_of(e)
    except OSError as e:
        output.complain(f"The output could not be written: {e.strerror}.")
        return DID_NOT_HAPPEN


class Signals:
    """Breaks a command off at the first signal, and the process at the second."""

    def __init__(self, context: Context) -> None:
        self.number: int | None = None
        self._context = context
        self._task: Deferred[Any] | None = None

    def install(self, task: Deferred[Any]) -> None:
        """Listen; what is ignored, as by `nohup`, stays so."""
        self._task = task
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._context.reactor.callFromThread(self.came, number)

    def came(self, number: int) -> None:
        """A signal has come."""
        if self._context.on_signal is not None and self._context.on_signal(number):
            return
        if self.number is not None:
            os._exit(128 + number)  # whoever asks twice means it
        self.number = number
        assert self._task is not None
        self._task.cancel()


def make_context(
    reactor: Any,
    arguments: argparse.Namespace,
    stdin: BinaryIO,
    stdout: BinaryIO,
    stderr: BinaryIO,
    environ: Mapping[str, str],
    cwd: str,
    encoding: str = "utf-8",
) -> Context:
    """What a command needs; `Usage` if it cannot be told whom to ask."""
    output = Output(stdout, stderr, format=arguments.output, environ=environ, encoding=encoding)
    endpoints = find_endpoints(arguments.endpoints, arguments.data_dir, environ, cwd)
    make_client = partial(_client, reactor)
    return Context(reactor, arguments, output, stdin, environ, endpoints, make_client)


def _client(reactor: Any, servers: tuple[str, ...], timeout_s: float) -> Client:
    return Client(reactor, servers, timeout_s=timeout_s)


class Ended:
    """How it went: a status, or the signal that ended it; perhaps what to become."""

    status = 0
    signal: int | None = None
    become: list[str] | None = None


async def main(reactor: Any, arguments: argparse.Namespace, ended: Ended) -> None:
    """Carry out what was typed in this process, under `twisted.internet.task.react`."""
    use_monotonic(reactor)
    try:
        context = make_context(
            reactor,
            arguments,
            sys.stdin.buffer,
            sys.stdout.buffer,
            sys.stderr.buffer,
            os.environ,
            os.getcwd(),
            sys.stdout.encoding,
        )
    except RaftdError as e:
        print(f"raftctl: {e}", file=sys.stderr)
        ended.status = status_of(e)
        return
    signals = Signals(context)
    task = Deferred.fromCoroutine(carry_out(context))
    # When the reactor has installed its own.
    reactor.callWhenRunning(signals.install, task)
    try:
        ended.status = await task
    except CancelledError:
        ended.signal = signals.number or signal.SIGTERM
    except Broken:
        ended.signal = signal.SIGPIPE
    context.output.end_progress()
    ended.become = context.become
