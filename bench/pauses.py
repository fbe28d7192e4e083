"""
How long a server of a large store keeps its reactor, in every kind of work.

    python bench/pauses.py [KEYS] [DIRECTORY]

Three members, and later a fourth, each a process on this machine; KEYS
(100,000 unless given) of 31 bytes with values of 64.  Prints, for each phase,
the longest turn of any member's reactor: `turn` by the clock, which has what
other processes and threads took from it, and `cpu`, what the turn itself did;
the longest garbage collection; the longest that a client's write took
meanwhile; and elections, of which there must be none.  Needs raftd installed,
or PYTHONPATH=.  A million keys take about four minutes, and 5 GB.
"""

from __future__ import annotations

import http.client
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

VALUE = "v" * 64
BATCH_KEYS = 128
CONNECTIONS = 32
MANY = 100_000
WATCHES = 1_000
PAUSE_BETWEEN_WRITES_S = 0.02


def key(n: int) -> str:
    # Spread over the whole store, as the keys of a real one come.
    return f"{n * 2654435761 % (1 << 32):010d}-{n:020d}"


class Member:
    """A process of `probed_server.py`."""

    def __init__(self, directory: str, port: int) -> None:
        self.port = port
        self.name = f"localhost:{port}"
        self._directory = directory
        os.mkdir(directory)
        self.serving_s = 0.0

    def start(self, *more: str) -> None:
        script = os.path.join(os.path.dirname(__file__), "probed_server.py")
        self._process = subprocess.Popen(
            [sys.executable, script, self._directory, self.name, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        began = time.perf_counter()
        self._answer()
        self.serving_s = time.perf_counter() - began

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def request(self, method: str, path: str, value: object = None) -> Any:
        connection = http.client.HTTPConnection("localhost", self.port, timeout=300)
        body = None if value is None else json.dumps(value)
        connection.request(method, path, body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {data[:200]!r}")
        return json.loads(data) if data else None


def request_bytes(method: str, path: str, body: str) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def send_all(port: int, requests: Iterator[bytes]) -> int:
    """Send them over some connections, each waiting for its answer; how many there were."""
    selector = selectors.DefaultSelector()
    done = 0

    def next_one(connection: socket.socket) -> None:
        request = next(requests, None)
        if request is None:
            selector.unregister(connection)
            connection.close()
        else:
            connection.sendall(request)

    for _ in range(CONNECTIONS):
        opened = socket.create_connection(("localhost", port))
        selector.register(opened, selectors.EVENT_READ, bytearray())
        next_one(opened)
    while selector.get_map():
        for ready, _ in selector.select():
            connection, buffer = ready.fileobj, ready.data
            assert isinstance(connection, socket.socket)
            buffer += connection.recv(1 << 16)
            if not is_complete(buffer):
                continue
            if not buffer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201", b"HTTP/1.1 204")):
                raise SystemExit(f"not done: {bytes(buffer[:300])!r}")
            buffer.clear()
            done += 1
            next_one(connection)
    return done


def is_complete(answer: bytearray) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = answer.lower().find(b"content-length:", 0, end)
    length = 0 if at < 0 else int(answer[at + 15 : answer.find(b"\r\n", at)])
    return len(answer) >= end + 4 + length


def batches(keys: int, prefix: str = "", lease: str = "") -> Iterator[bytes]:
    """Transactions that put so many keys."""
    more = {"lease": lease} if lease else {}
    for begin in range(0, keys, BATCH_KEYS):
        steps = [
            {"put": {"key": prefix + key(n), "value": VALUE, **more}}
            for n in range(begin, min(keys, begin + BATCH_KEYS))
        ]
        yield request_bytes("POST", "/txn", json.dumps({"then": steps}))


def puts(count: int, keys: int) -> Iterator[bytes]:
    for n in range(count):
        yield request_bytes("PUT", f"/db/{key(n * 7919 % keys)}", VALUE)


class Writer:
    """Somebody who writes now and then, and notes how long it took."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._longest_s = 0.0
        #: When the one that is under way began.
        self._began: float | None = None
        self.over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("localhost", self._port)
        while not self.over:
            began = self._began = time.perf_counter()
            connection.request("PUT", "/db/writer", "w")
            answer = connection.getresponse()
            answer.read()
            assert answer.status < 300, answer.status
            self._longest_s = max(self._longest_s, time.perf_counter() - began)
            self._began = None
            time.sleep(PAUSE_BETWEEN_WRITES_S)
        connection.close()

    def take_longest_s(self) -> float:
        """The longest since the last call, the one under way included."""
        longest_s, self._longest_s = self._longest_s, 0.0
        began = self._began
        return longest_s if began is None else max(longest_s, time.perf_counter() - began)

    def stop(self) -> None:
        self.over = True
        self._thread.join()


class Bench:
    def __init__(self, keys: int, directory: str) -> None:
        self.keys = keys
        ports = free_ports(4)
        self.members = [
            Member(os.path.join(directory, str(n)), port) for n, port in enumerate(ports)
        ]
        self.running: list[Member] = []
        self.term = 0

    @property
    def leader(self) -> Member:
        return self.members[0]

    def start(self) -> None:
        for member in self.members[:3]:
            member.start(*([self.leader.name] if self.running else []))
            self.running.append(member)
        reports = [member.ask("report") for member in self.running]
        self.empty_rss = reports[0]["rss"]
        self.term = reports[0]["term"]
        self.writer = Writer(self.leader.port)
        print(
            f"{'':34} {'took':>9} {'turn':>9} {'cpu':>9} {'collector':>9} {'write':>9} "
            "elections"
        )

    def stop(self) -> None:
        self.writer.stop()
        for member in self.running:
            member.stop()

    def phase(self, name: str, act: Callable[[], object]) -> float:
        for member in self.running:
            member.ask("report")
        self.writer.take_longest_s()
        began = time.perf_counter()
        act()
        took = time.perf_counter() - began
        # What followers do of it comes a moment later.
        self.await_all()
        reports = [member.ask("report") for member in self.running]
        worst = {
            name: max(report[name] for report in reports)
            for name in ("wall_ms", "cpu_ms", "collector_ms")
        }
        elections = max(report["term"] for report in reports) - self.term
        print(
            f"{name:34} {took:7.2f} s {worst['wall_ms']:6.1f} ms {worst['cpu_ms']:6.1f} ms "
            f"{worst['collector_ms']:6.1f} ms {self.writer.take_longest_s() * 1e3:6.0f} ms "
            f"{elections:5}",
            flush=True,
        )
        self.term += elections
        return took

    def await_all(self) -> None:
        """Until all members are where the leader is now."""
        index = self.leader.ask("index")["applied_index"]
        for member in self.running:
            while member.ask("index")["applied_index"] < index:
                time.sleep(0.02)

    def row(self, name: str, figure: str) -> None:
        print(f"{name:34} {figure}", flush=True)

    def memory(self, name: str) -> None:
        report = self.leader.ask("report")
        grown = report["rss"] - self.empty_rss
        self.row(name, f"{grown / report['keys']:.0f} bytes a key ({grown / 1e6:.0f} MB)")

    # -- the phases ------------------------------------------------------------

    def run(self) -> None:
        leader, port, keys = self.leader, self.leader.port, self.keys
        self.phase("loading, 128 keys a transaction", lambda: send_all(port, batches(keys)))
        self.memory("memory after that, log and all")
        self.phase(f"{MANY:,} writes, 32 at a time", lambda: send_all(port, puts(MANY, keys)))
        self.phase("listing 10,000 keys, 10 times", self.listing)
        self.phase("digest", lambda: leader.ask("digest"))
        self.phase("snapshot", lambda: leader.ask("snapshot"))
        self.memory("memory after that")
        self.phase("compaction of all revisions", self.compact)
        self.phase(f"{WATCHES:,} watches, 50 writes", self.watches)
        lease = leader.request("POST", "/lease", {"ttl": 3600})["id"]
        more = min(MANY, keys)
        self.phase(
            f"{more:,} keys of a lease",
            lambda: send_all(port, batches(more, "lease/", lease)),
        )
        self.phase("revoking it", lambda: leader.request("DELETE", f"/lease/{lease}"))
        self.phase(f"putting {more:,} keys", lambda: send_all(port, batches(more, "range/")))
        self.phase(
            "deleting that range", lambda: leader.request("DELETE", "/db/?prefix=range/")
        )
        self.phase("compaction of all that", self.compact)
        self.phase("snapshot", lambda: leader.ask("snapshot"))
        self.phase("a fourth member, by snapshot", self.join)
        self.restart()

    def compact(self) -> None:
        self.leader.request("POST", "/compact", {"keep": 1})
        revision = self.leader.request("GET", "/status")["compacted_revision"]
        for member in self.running:
            while member.ask("index")["compacted_revision"] < revision:
                time.sleep(0.02)

    def listing(self) -> None:
        for _ in range(10):
            listed = self.leader.request("GET", "/db/?prefix=&limit=10000")
            assert len(listed["kvs"]) == min(self.keys, 10_000), listed.keys()

    def watches(self) -> None:
        connections = []
        for _ in range(WATCHES):
            connection = socket.create_connection(("localhost", self.leader.port))
            connection.sendall(
                b"GET /db/?prefix=seen&watch HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            connections.append(connection)
        for connection in connections:
            connection.recv(1 << 16)
        for n in range(50):
            self.leader.request("PUT", f"/db/seen{n}", VALUE)
        for connection in connections:
            received = b""
            while b"seen49" not in received:
                received = received[-64:] + connection.recv(1 << 16)
            connection.close()

    def join(self) -> None:
        fourth = self.members[3]
        fourth.start(self.leader.name)
        self.running.append(fourth)

    def restart(self) -> None:
        fourth = self.running.pop()
        fourth.stop()
        began = time.perf_counter()
        fourth.start()
        self.running.append(fourth)
        self.await_all()
        self.row("restart to serving", f"{fourth.serving_s:.2f} s")
        self.row("and to having applied everything", f"{time.perf_counter() - began:.2f} s")
        report = fourth.ask("report")
        grown = report["rss"] - self.empty_rss
        self.row("memory then", f"{grown / report['keys']:.0f} bytes a key")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def main() -> None:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    directory = tempfile.mkdtemp(dir=sys.argv[2] if len(sys.argv) > 2 else ".")
    bench = Bench(keys, directory)
    try:
        bench.start()
        try:
            bench.run()
        finally:
            bench.stop()
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
