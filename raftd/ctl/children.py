"""Other people's commands, run by ours."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from raftd.errors import RaftdError

#: What a shell exits with if a command is not there, or cannot be run.
NOT_FOUND, NOT_RUNNABLE = 127, 126

_PR_SET_PDEATHSIG = 1


class CannotRun(RaftdError):
    """A command cannot be run; `status` is what a shell exits with then."""

    code = "cannot_run"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def exit_status(code: int) -> int:
    """What a shell makes of a return code: 128 and its number after a signal."""
    return code if code >= 0 else 128 - code


def has_terminal() -> bool:
    """Whether this process is what a terminal is talking to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


class Child:
    """
    A command that runs, with our standard streams; `stdin` replaces one.

    At a terminal it stays in the group that Ctrl-C and Ctrl-Z are for.
    Elsewhere it gets a process group of its own, so that what it has started
    is signalled with it.  On Linux it does not survive this process.
    """

    def __init__(
        self,
        reactor: Any,
        command: Sequence[str],
        environ: Mapping[bytes, bytes],
        stdin: bytes | None = None,
    ) -> None:
        self._reactor = reactor
        self._stdin = stdin
        self.has_group = not has_terminal()
        try:
            self._process = subprocess.Popen(
                list(command),
                env=environ,
                stdin=None if stdin is None else subprocess.PIPE,
                # Though there may be threads: it takes no lock, and imports nothing.
                preexec_fn=partial(  # noqa: PLW1509
                    _prepare, os.getpid(), self.has_group, _prctl()
                ),
            )
        except FileNotFoundError:
            raise CannotRun(f"There is no command {command[0]!r}.", NOT_FOUND) from None
        except (OSError, subprocess.SubprocessError, ValueError) as e:
            raise CannotRun(f"{command[0]!r} cannot be run: {e}.", NOT_RUNNABLE) from None

    def ended(self) -> Deferred[int]:
        """Fires with its return code, negative after a signal."""
        waiting: Deferred[int] = deferToThreadPool(
            self._reactor, self._reactor.getThreadPool(), self._wait
        )
        return waiting

    def _wait(self) -> int:
        if self._stdin is not None:
            self._process.communicate(self._stdin)
        return self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal, and to what it has started, if they have a group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.has_group:
                # Also when it is over itself, and has left others behind.
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.signal(signal.SIGKILL)


def _prctl() -> Callable[..., int] | None:
    """The function of that name, looked up before there is a child; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[..., int] = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return found


def _prepare(parent: int, own_group: bool, prctl: Callable[..., int] | None) -> None:
    """In the child, before it becomes the command."""
    if own_group:
        os.setpgid(0, 0)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before
            os._exit(NOT_RUNNABLE)


def environment_of(environ: Mapping[str, str]) -> dict[bytes, bytes]:
    """An environment as bytes, which others can be added to."""
    return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
