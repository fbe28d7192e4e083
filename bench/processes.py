"""Child processes of a benchmark: ports, ends, and what they take of the processor."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: No outgoing connection of the system has one of these by chance.
PORTS = range(20_000, 30_000)

STOP_TIMEOUT_S = 20.0

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A system could not be started or measured; its message says why."""


def free_ports(count: int) -> list[int]:
    """
    So many ports of loopback on which nobody listens.

    Sought from a place of this process's own: a node that was killed must find
    its ports free again, whatever else is measured meanwhile.
    """
    found: list[int] = []
    begin = os.getpid() * 97 % len(PORTS)
    for port in (*PORTS[begin:], *PORTS[:begin]):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
            if len(found) == count:
                return found
    raise Failed(f"No {count} ports are free from {PORTS.start} to {PORTS.stop}.")


def until(test: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until `test` holds; `Failed` if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not test():
        if time.monotonic() > deadline:
            raise Failed(f"Not after {timeout_s:.0f} s: {what}.")
        time.sleep(0.02)


class Child:
    """A process, its output in a file that is shown if it ends on its own."""

    def __init__(
        self,
        command: Sequence[str],
        directory: str,
        environment: Mapping[str, str],
        answers: bool = False,
    ) -> None:
        """`answers`: it takes commands and answers them, as `probed_server.py` does."""
        self._output = os.path.join(directory, "output.log")
        with open(self._output, "ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE if answers else subprocess.DEVNULL,
                stdout=subprocess.PIPE if answers else output,
                stderr=output,
            )
        if answers:
            self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """A line of JSON for a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.check()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def check(self) -> None:
        """`Failed` if it has ended."""
        if self.process.poll() is not None:
            with open(self._output, errors="replace") as output:
                raise Failed(f"{self.process.args!r} has ended: {output.read()[-2000:]}")

    def cpu_s(self) -> float:
        return cpu_s(self.process.pid)

    def rss_bytes(self) -> int:
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


def cpu_s(pid: int) -> float:
    """What all threads of a process have taken so far, in user and kernel."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
