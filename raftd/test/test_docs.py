"""
The pages about the library are true: all code on them is run.

The blocks of a page run one after the other in one namespace, with `await` at
the top level.  What follows a `print(...)` as a comment is what it must print.
A block that begins with `# NAME.py` is a program of its own.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import unittest
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.trial.unittest import SynchronousTestCase, TestCase

import raftd
from raftd import ReplicaOptions
from raftd.test.processes import PATIENCE_S, PYTHON, environment, free_ports
from raftd.testing_store import StoreCluster

DOCS = Path(raftd.__file__).parent.parent / "docs"
MISSING = None if DOCS.is_dir() else "the pages are not installed"

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINTS = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)
_PORT = re.compile(r"\b41\d\d\b")


class Page:
    """The code of a page, with ports that are free."""

    def __init__(self, name: str) -> None:
        self.text = (DOCS / name).read_text(encoding="utf-8")
        ports = sorted(set(_PORT.findall(self.text)))
        free = dict(zip(ports, map(str, free_ports(len(ports))), strict=True))
        blocks = [_PORT.sub(lambda m: free[m[0]], b) for b in _BLOCK.findall(self.text)]
        self.programs = {b[2 : b.index("\n")]: b for b in blocks if re.match(r"# \w+\.py\n", b)}
        self.blocks = [b for b in blocks if b not in self.programs.values()]
        #: What was printed, and what the page says.
        self.printed: list[str] = []
        self.expected = [e for b in self.blocks for e in _PRINTS.findall(b)]
        self.is_over = False
        self.namespace: dict[str, Any] = {"__name__": name, "print": self._print}

    def _print(self, *values: object) -> None:
        self.printed.append(" ".join(map(str, values)))

    async def run(self) -> None:
        for number, block in enumerate(self.blocks, 1):
            code = compile(
                block,
                f"{self.namespace['__name__']}, block {number}",
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            )
            ran = eval(code, self.namespace)
            if inspect.iscoroutine(ran):
                await ran
        self.is_over = True


class LibraryPageTests(TestCase):
    timeout = 120
    skip = MISSING

    def setUp(self) -> None:
        directory = self.mktemp()
        os.mkdir(directory)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(directory)
        self.page = Page("library.md")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop_all()))

    async def stop_all(self) -> None:
        """If a block failed: what the page would have stopped later."""
        values = self.page.namespace
        replicas = [*values.get("replicas", ()), values.get("shared")]
        if not self.page.is_over:
            stopping = [r.stop() for r in replicas if r is not None]
            await gatherResults([d.addErrback(lambda _: None) for d in stopping])

    async def test_everything_on_the_page(self) -> None:
        await self.page.run()
        self.assertEqual(self.page.printed, self.page.expected)
        self.assertGreater(len(self.page.expected), 10)

    def test_the_first_program(self) -> None:
        program = self.page.programs["first.py"]
        Path("first.py").write_text(program, encoding="utf-8")
        (port,) = free_ports(1)
        for count in (1, 2):
            done = subprocess.run(
                [PYTHON, "first.py", f"localhost:{port}"],
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            self.assertEqual(done.stdout, f"proposed: b'{count}'\nread: {count}\n", done.stderr)
            self.assertEqual(done.stderr, "")

    def test_options_are_those_that_there_are(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", self.page.text, re.MULTILINE)
        fields = msgspec.structs.fields(ReplicaOptions)
        self.assertEqual(rows, [(field.name, str(field.default)) for field in fields])


class ClientPageTests(SynchronousTestCase):
    """The pages about the client, against a cluster in memory."""

    skip = MISSING

    def run_page(self, name: str, **namespace: Any) -> Page:
        cluster = StoreCluster(3, seed=1)
        cluster.await_leader()
        page = Page(name)
        page.namespace.update(client=cluster.client(), cluster=cluster, **namespace)
        cluster.run(page.run(), 120)
        self.assertTrue(page.is_over)
        return page

    def test_client(self) -> None:
        page = self.run_page("client.md")
        printed = [line for line in page.printed if line in page.expected]
        self.assertEqual(printed, page.expected)
        loops = [line for line in page.printed if line not in page.expected]
        keys = ["users/ada", "users/ben", "users/cleo"]
        colours = ["red", "green"]
        self.assertEqual(
            loops,
            [f"b'{key}'" for key in keys] + [f"b'config/colour' b'{c}'" for c in colours],
        )

    def test_coordination(self) -> None:
        stored: list[tuple[bytes, int]] = []

        def store(data: bytes, token: int) -> Deferred[None]:
            stored.append((data, token))
            return succeed(None)

        page = self.run_page(
            "coordination.md", store=store, write_report=lambda: succeed("written")
        )
        self.assertEqual(page.printed, page.expected)
        ((_, token),) = stored
        protected = page.namespace["Protected"]()
        protected.store(b"", token)
        protected.store(b"", token + 1)
        self.assertRaises(PermissionError, protected.store, b"", token)

    def test_the_first_program(self) -> None:
        """With a client that knows a cluster in memory, and its clock for a reactor."""
        cluster = StoreCluster(1)
        cluster.await_leader()
        program = Page("client.md").programs["hello.py"].replace("task.react(main)", "")
        namespace: dict[str, Any] = {"__name__": "hello"}
        exec(compile(program, "hello.py", "exec"), namespace)
        printed: list[str] = []
        namespace["print"] = printed.append
        namespace["Client"] = lambda reactor, servers: cluster.client()
        cluster.run(namespace["main"](cluster.clock))
        self.assertEqual(printed, ["hello"])


class TestingPageTests(SynchronousTestCase):
    skip = MISSING

    def test_everything_on_the_page(self) -> None:
        page = Page("testing.md")
        self.successResultOf(Deferred.fromCoroutine(page.run()))
        functions = [v for k, v in page.namespace.items() if k.startswith("test_")]
        for function in functions:
            function()
        suite = unittest.TestSuite(
            unittest.defaultTestLoader.loadTestsFromTestCase(value)
            for value in page.namespace.values()
            if isinstance(value, type) and value.__module__ == "testing.md"
            if issubclass(value, SynchronousTestCase)
        )
        result = unittest.TestResult()
        suite.run(result)
        self.assertEqual((result.errors, result.failures), ([], []))
        self.assertEqual((len(functions), result.testsRun), (8, 1))
