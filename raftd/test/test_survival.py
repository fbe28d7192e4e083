"""
What people buy a cluster for, on real processes: nodes are killed under a
write load, and every acknowledged write is there afterwards, at every node.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from raftd.test.processes import PATIENCE_S, PYTHON, environment, free_ports

WRITERS = 8
#: How many writes each phase waits for; a node is killed after some of them.
WRITES_PER_PHASE = 200
REQUEST_TIMEOUT_MS = 2_000


class NodeProcess:
    """One node, in a process and a directory of its own."""

    def __init__(self, directory: str, port: int) -> None:
        self.port = port
        self.name = f"localhost:{port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        os.mkdir(directory)

    def start(self, *options: str) -> None:
        """Start it; it takes the same options again and again."""
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
        return self._process.wait(PATIENCE_S)

    def await_output(self, text: str) -> None:
        """Wait until it has printed `text`."""

        def printed() -> bool:
            with open(os.path.join(self._directory, "out"), encoding="utf-8") as file:
                return text in file.read()

        wait_until(printed, f"{self.name} prints {text}")

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One HTTP request on a connection of its own."""
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

    def __init__(self, nodes: list[NodeProcess]) -> None:
        self._nodes = nodes
        self._stopping = threading.Event()
        self.acknowledged: list[str] = []
        #: Answers by status; 0 is a connection that broke.
        self.answers: dict[int, int] = {}
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._write, args=(i,), daemon=True) for i in range(WRITERS)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, writer: int) -> None:
        serial = 0
        while not self._stopping.is_set():
            serial += 1
            key = f"w{writer}-{serial}"
            node = self._nodes[(writer + serial) % len(self._nodes)]
            try:
                code, _ = node.request("PUT", f"/db/{key}", key.encode())
            except (OSError, http.client.HTTPException):
                code = 0
            with self._lock:
                self.answers[code] = self.answers.get(code, 0) + 1
                if code == 201:
                    self.acknowledged.append(key)

    def await_more(self, count: int = WRITES_PER_PHASE) -> None:
        """Wait until `count` more writes are acknowledged."""
        goal = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= goal, f"{count} more writes")

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)


class SurvivalTests(SynchronousTestCase):
    def start_cluster(self, size: int) -> list[NodeProcess]:
        root = self.mktemp()
        os.makedirs(root)
        nodes = [
            NodeProcess(os.path.join(root, str(i)), port)
            for i, port in enumerate(free_ports(size))
        ]
        for i, node in enumerate(nodes):
            self.addCleanup(node.stop)
            node.start(*(("--join", nodes[i - 1].name) if i else ("--init",)))
            milestone = "joined." if i else "created."
            node.await_output(milestone)
        return nodes

    def leader_of(self, nodes: list[NodeProcess]) -> NodeProcess:
        """The leader that all of `nodes` agree on, once they do."""
        names: set[Any] = set()

        def agreed() -> bool:
            names.clear()
            names.update(node.status().get("leader") for node in nodes)
            return len(names) == 1 and None not in names

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

    def test_five_nodes_survive_two_killed_under_load(self) -> None:
        nodes = self.start_cluster(5)
        load = Load(nodes)
        self.addCleanup(load.stop)
        load.await_more()
        killed = [self.leader_of(nodes)]
        killed.append(next(node for node in nodes if node not in killed))
        for node in killed:
            node.signal(signal.SIGKILL)
            load.await_more()
        for node in killed:
            node.start()
        load.await_more()
        load.stop()
        self.leader_of(nodes)
        self.assert_all_there(nodes, load.acknowledged)
        # Nothing but these is ever said.
        self.assertLessEqual(load.answers.keys(), {0, 201, 503, 504})

    def test_three_nodes_killed_at_once_come_back_with_the_same_data(self) -> None:
        nodes = self.start_cluster(3)
        load = Load(nodes)
        self.addCleanup(load.stop)
        load.await_more()
        for node in nodes:
            node.signal(signal.SIGKILL)
        load.stop()
        for node in nodes:
            node.start()
        self.leader_of(nodes)
        self.assert_all_there(nodes, load.acknowledged)
        self.assertEqual({node.stop() for node in nodes}, {0})
