"""What `import raftd` offers, and what it does not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import raftd
from raftd.test.processes import environment


def loaded_after(code: str) -> set[str]:
    """The modules that a new interpreter has after `code`."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


class ExportTests(SynchronousTestCase):
    def test_importing_raftd_imports_nothing_large(self) -> None:
        loaded = loaded_after("import raftd, raftd.errors")
        self.assertIn("raftd.errors", loaded)
        large = {"twisted", "msgspec", "treq", "zope", "httptools"}
        self.assertEqual(loaded & large, set())

    def test_nothing_in_the_library_installs_a_reactor(self) -> None:
        loaded = loaded_after(
            "from raftd import *\n"
            "import raftd.testing, raftd.server, raftd.console, raftd.rescue, raftd.logs"
        )
        self.assertTrue({"raftd.replica", "raftd.node", "twisted.internet.defer"} <= loaded)
        self.assertNotIn("twisted.internet.reactor", loaded)

    def test_the_cluster_in_memory_needs_no_test_framework(self) -> None:
        loaded = loaded_after("import raftd.testing")
        frameworks = {"twisted.trial.unittest", "pytest", "unittest"}
        self.assertEqual(loaded & frameworks, set())

    def test_every_name_is_there_and_is_its_own(self) -> None:
        for name in raftd.__all__:
            value = getattr(raftd, name)
            # Not `isinstance`: for Python 3.10, Callable[...] is one too.
            if issubclass(type(value), type):
                self.assertEqual(value.__name__, name)
                self.assertTrue(value.__doc__, name)
        self.assertIn("Replica", dir(raftd))

    def test_what_is_typed_is_what_is_offered(self) -> None:
        tree = ast.parse(Path(raftd.__file__).read_text(encoding="utf-8"))
        typed = [
            (f"{node.module}".removeprefix("raftd."), alias.name)
            for block in tree.body
            if isinstance(block, ast.If)
            for node in block.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        offered = [(place, name) for name, place in raftd._PLACES.items()]
        self.assertEqual(sorted(typed), sorted(offered))

    def test_other_names_are_not_there(self) -> None:
        with self.assertRaises(AttributeError) as caught:
            raftd.Store  # noqa: B018
        self.assertEqual(str(caught.exception), "module 'raftd' has no attribute 'Store'")
