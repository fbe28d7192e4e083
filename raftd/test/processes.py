"""What tests need to start the real thing in processes of its own."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import pairwise
from random import SystemRandom
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

import raftd

#: How long a process of ours may take for what it does at once; only a broken
#: one takes so long.
PATIENCE_S = 60.0

#: Ports for tests: from, and up to but not including.
PORTS = (10_000, 32_000)
_random = SystemRandom()

PYTHON = sys.executable

REQUEST_TIMEOUT_MS = 2_000
#: Of a load, unless a test says otherwise.
WRITERS = 8
#: How many writes to wait for, unless a test says otherwise.
WRITES_PER_PHASE = 200


def environment(**more: str) -> dict[str, str]:
    """The environment of a child that runs the same code, installed or not."""
    tree = os.path.dirname(os.path.dirname(os.path.abspath(raftd.__file__)))
    path = os.pathsep.join(p for p in (tree, os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path, **more}


def free_ports(count: int) -> list[int]:
    """
    Different ports that nobody uses, on either loopback.

    They are below those that systems give to outgoing connections: one of
    those would be in use again before a server is started on it.
    """
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = _random.randrange(*PORTS)
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


class NodeProcess:
    """One node, in a process and a directory of its own."""

    def __init__(self, directory: str, port: int) -> None:
        self.port = port
        self.name = f"localhost:{port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        os.mkdir(directory)

    def start(self, *options: str) -> None:
        """Start it; it may be started again with the same options, or with none."""
        out = open(os.path.join(self._directory, "out"), "ab")  # noqa: SIM115
        with out:
            self._process = subprocess.Popen(
                [
                    *(PYTHON, "-m", "twisted", "raftd", "--name", self.name),
                    *("--request-timeout-ms", str(REQUEST_TIMEOUT_MS)),
                    *options,
                ],
                cwd=self._directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: int) -> None:
        """Send a signal; if it kills, wait for the end."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Stop it in order; its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
        return self.await_end()

    def await_end(self) -> int:
        """Wait until it has ended by itself; its exit status."""
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever it is doing, and if it is stopped by a signal: let it be over."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)

    def move(self, port: int) -> None:
        """Have another name from the next start on."""
        self.port = port
        self.name = f"localhost:{port}"

    def output(self) -> str:
        """What it has printed since the directory was made."""
        with open(os.path.join(self._directory, "out"), encoding="utf-8") as file:
            return file.read()

    def await_output(self, text: str) -> None:
        """Wait until it has printed `text`."""
        wait_until(lambda: text in self.output(), f"{self.name} prints {text}")

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One HTTP request on a connection of its own: its status, and the body."""
        connection = http.client.HTTPConnection("localhost", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """`/status`; empty while there is no answer."""
        try:
            code, body = self.request("GET", "/status")
        except (OSError, http.client.HTTPException):
            return {}
        status: dict[str, Any] = msgspec.json.decode(body) if code == 200 else {}
        return status


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Look until `condition` is true; nothing else tells what another process does."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {PATIENCE_S} s: {what}")
        time.sleep(0.02)


class Load:
    """Writers of unique keys, through all nodes by turns; it knows what was acknowledged."""

    def __init__(
        self, nodes: list[NodeProcess], writers: int = WRITERS, prefix: str = "w"
    ) -> None:
        """`prefix` tells its keys from those of another."""
        self._prefix = prefix
        #: Through whom to write; may be changed at any time.
        self.nodes = nodes
        #: When writes were acknowledged.
        self._times: list[float] = []
        self._stopping = threading.Event()
        self.acknowledged: list[str] = []
        #: Answers by status; 0 is a connection that broke.
        self.answers: dict[int, int] = {}
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._write, args=(i,), daemon=True) for i in range(writers)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, writer: int) -> None:
        serial = 0
        while not self._stopping.is_set():
            serial += 1
            key = f"{self._prefix}{writer}-{serial}"
            nodes = self.nodes
            node = nodes[(writer + serial) % len(nodes)]
            try:
                code, _ = node.request("PUT", f"/db/{key}", key.encode())
            except (OSError, http.client.HTTPException):
                code = 0
            with self._lock:
                self.answers[code] = self.answers.get(code, 0) + 1
                if code == 201:
                    self.acknowledged.append(key)
                    self._times.append(time.monotonic())

    def longest_gap_s(self, since: float) -> float:
        """The longest time without an acknowledged write, from then on."""
        with self._lock:
            return max(b - a for a, b in pairwise([since, *self._times]) if b > since)

    def await_more(self, count: int = WRITES_PER_PHASE) -> None:
        """Wait until `count` more writes are acknowledged."""
        goal = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= goal, f"{count} more writes")

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)


class ClusterProcessCase(SynchronousTestCase):
    def start_cluster(self, size: int, *options: str) -> list[NodeProcess]:
        root = self.mktemp()
        os.makedirs(root)
        nodes: list[NodeProcess] = []
        for i, port in enumerate(free_ports(size)):
            node = NodeProcess(os.path.join(root, str(i)), port)
            self.addCleanup(node.end)
            node.start(*options, *(("--join", nodes[-1].name) if nodes else ("--init",)))
            node.await_output("joined." if nodes else "created.")
            nodes.append(node)
        return nodes

    def add_node(self, through: NodeProcess, *options: str) -> NodeProcess:
        """One more node, that joins."""
        (port,) = free_ports(1)
        node = NodeProcess(self.mktemp(), port)
        self.addCleanup(node.end)
        node.start(*options, "--join", through.name)
        node.await_output("joined.")
        return node

    def leader_of(self, nodes: list[NodeProcess]) -> NodeProcess:
        """Which of `nodes` they all follow, once they do."""
        names: set[Any] = set()

        def agreed() -> bool:
            names.clear()
            names.update(node.status().get("leader") for node in nodes)
            return len(names) == 1 and names <= {node.name for node in nodes}

        wait_until(agreed, "one leader")
        return next(node for node in nodes if node.name in names)

    def assert_all_there(self, nodes: list[NodeProcess], acknowledged: list[str]) -> None:
        """Every acknowledged write, at every node: linearizably, and in its own state."""
        for node in nodes:
            code, _ = node.request("GET", f"/db/{acknowledged[-1]}")
            self.assertEqual(code, 200)
            connection = http.client.HTTPConnection("localhost", node.port, timeout=PATIENCE_S)
            missing = []
            for key in acknowledged:
                connection.request("GET", f"/db/{key}?consistency=local")
                response = connection.getresponse()
                if (response.status, response.read()) != (200, key.encode()):
                    missing.append(key)
            connection.close()
            self.assertEqual(missing, [], node.name)
