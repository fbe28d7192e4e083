"""The processes of the nodes, and what can be done to them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from raftd.test.chaos.systems import System
from raftd.test.processes import environment

#: What an orderly stop may take, and an end after a failed flush, in seconds.
STOP_S = 30.0
#: What a node has said last until it has joined.
JOINING = b"Joining cluster... "
#: How long strace may take to let go.
DETACH_S = 10.0

#: What puts a file on disk.
FLUSHES = "fdatasync,fsync,sync_file_range,pwritev2"


class Node:
    """One node: a directory, and perhaps a process."""

    def __init__(
        self, number: int, system: System, root: Path, clock: Clock | None, tree: Path | None
    ) -> None:
        """`tree` has the package that it runs, if not this one."""
        self.number = number
        self._tree = tree
        self._system = system
        self._root = root / f"node{number}"
        self._root.mkdir()
        self._life = 0
        self.clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._tracer: subprocess.Popen[bytes] | None = None
        #: What is wrong with its monotonic clock, a factor.
        self.rate = 1.0
        #: It has created the cluster, so it is the one that must not join.
        self.is_first = number == 0

    @property
    def directory(self) -> Path:
        """Where it keeps its data; another one each time that it is a new member."""
        return self._root / f"data{self._life}"

    @property
    def log(self) -> Path:
        return self._root / "log"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_joining(self) -> bool:
        """Whether it is still on its way into a cluster, and may be broken off there."""
        with self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(0, end - len(JOINING)))
            return log.read() == JOINING

    @property
    def exit_status(self) -> int | None:
        """None while it runs, or was never started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.is_running:
            return
        self.directory.mkdir(exist_ok=True)
        command = self._system.command(self.number, self.directory, self.is_first)
        extra = {} if self.clock is None else self.clock.environment(self.number, self.rate)
        if self._tree is not None:
            extra["PYTHONPATH"] = str(self._tree)
        with self.log.open("ab") as log:
            log.write(f"-- {time.strftime('%T')} {' '.join(command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [*self._system.network.prefix(self.number), *command],
                cwd=self._root,
                env=environment(**extra),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """As if its machine had lost power, but for what the kernel has of its files."""
        self.release()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> int:
        """End it in order; its status, -9 if it had to be killed."""
        self._signal(signal.SIGTERM)
        return self.await_end(STOP_S)

    def await_end(self, timeout_s: float) -> int:
        """Its status when it has ended by itself; -9 if it was killed for not doing so."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        self.kill()
        return -signal.SIGKILL

    def become_new(self) -> None:
        """Forget everything: what starts next is another member."""
        assert not self.is_running
        self._life += 1
        self.is_first = False

    # -- the disk ------------------------------------------------------------------

    def trace(self, injection: str) -> None:
        """Let flushes fail, or take long: an injection as strace has it."""
        assert self._process is not None
        self._tracer = subprocess.Popen(
            [
                *("strace", "-f", "-p", str(self._process.pid), "-o", str(self._trace)),
                *("-e", f"trace={FLUSHES}", "-e", f"inject={FLUSHES}:{injection}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def _trace(self) -> Path:
        return self._root / "strace"

    def injected(self) -> bool:
        """Whether anything was done to a flush since `trace`."""
        with suppress(FileNotFoundError):
            return b"(INJECTED)" in self._trace.read_bytes()
        return False

    def release(self) -> None:
        """Its disk is well again."""
        tracer, self._tracer = self._tracer, None
        if tracer is None:
            return
        tracer.send_signal(signal.SIGINT)
        try:
            tracer.wait(DETACH_S)
        except subprocess.TimeoutExpired:
            tracer.kill()
            tracer.wait()
        with suppress(FileNotFoundError):
            self._trace.unlink()

    def _signal(self, number: int) -> None:
        if self.is_running:
            assert self._process is not None
            self._process.send_signal(number)


class Clock:
    """Wall clocks of nodes that step and run at rates of their own: libfaketime."""

    _PLACES = (
        "/usr/lib/*/faketime/libfaketimeMT.so.1",
        "/usr/lib*/faketime/libfaketimeMT.so.1",
        "/usr/local/lib/faketime/libfaketimeMT.so.1",
    )

    def __init__(self, library: Path, root: Path) -> None:
        self._library = library
        self._root = root

    @classmethod
    def find(cls, given: Path | None) -> Path | None:
        """Where the library is; None if it is nowhere."""
        if given is not None:
            return given if given.exists() else None
        found = [p for place in cls._PLACES for p in Path("/").glob(place.removeprefix("/"))]
        return found[0] if found else None

    def environment(self, number: int, rate: float) -> dict[str, str]:
        """For a node: a wall clock that follows `set`, or all clocks at a rate."""
        self.set(number, 0.0)
        common = {"LD_PRELOAD": str(self._library), "FAKETIME_CACHE_DURATION": "1"}
        if rate != 1.0:
            return {**common, "FAKETIME": f"+0 x{rate}"}
        return {
            **common,
            "FAKETIME_TIMESTAMP_FILE": str(self._file(number)),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, number: int, offset_s: float) -> None:
        """Let the wall clock of a node be so far from the true one, at once."""
        file = self._file(number)
        temporary = file.with_suffix(".new")
        temporary.write_text(f"{offset_s:+.0f}\n", encoding="ascii")
        os.replace(temporary, file)

    def _file(self, number: int) -> Path:
        return self._root / f"clock{number}"


def can_trace(root: Path) -> bool:
    """Whether strace is here, and may do to a process that runs what it must."""
    if shutil.which("strace") is None:
        return False
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    file = root / "strace-probe"
    tracer = subprocess.Popen(
        [
            *("strace", "-f", "-p", str(child.pid), "-o", str(file)),
            *("-e", f"trace={FLUSHES}", "-e", f"inject={FLUSHES}:error=EIO"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # One that may not ends at once; one that may stays.
        tracer.wait(0.5)
    except subprocess.TimeoutExpired:
        return True
    finally:
        for process in (tracer, child):
            process.kill()
            process.wait()
        file.unlink(missing_ok=True)
    return False


def end_all(nodes: Sequence[Node]) -> None:
    """Nothing is left running."""
    for node in nodes:
        with suppress(OSError):
            node.kill()
