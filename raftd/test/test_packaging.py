"""What `twist` finds, and the scripts that check the rest (`.ci/`)."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import incremental
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import raftd
from raftd import tap
from raftd.test.processes import PATIENCE_S, PYTHON, environment

CHECKOUT = Path(raftd.__file__).parent.parent


class PluginTests(SynchronousTestCase):
    def test_twist_finds_one_raftd(self) -> None:
        (plugin,) = [p for p in getPlugins(IServiceMaker) if p.tapname == "raftd"]
        self.assertIs(plugin.options, tap.Options)
        self.assertIs(plugin.makeService, tap.makeService)

    def test_the_commands_explain_their_options(self) -> None:
        for command in (
            [PYTHON, "-m", "twisted", "raftd"],
            [PYTHON, "-c", "from raftd.tap import main; main()"],
        ):
            done = subprocess.run(
                [*command, "--help"],
                env=environment(),
                stdout=subprocess.PIPE,
                timeout=PATIENCE_S,
                check=True,
            )
            shown = done.stdout.decode()
            for option in re.findall(r"`(--[a-z-]+)", self.readme()):
                self.assertIn(option, shown)

    def readme(self) -> str:
        path = CHECKOUT / "README.md"
        if not path.exists():
            self.skipTest("raftd is installed without its README")
        return path.read_text(encoding="utf-8")

    def test_the_version_is_incrementals(self) -> None:
        version = importlib.import_module("raftd._version").__version__
        self.assertIsInstance(version, incremental.Version)
        self.assertEqual(raftd.__version__, version.short())


class CheckoutTests(SynchronousTestCase):
    def setUp(self) -> None:
        if not (CHECKOUT / ".ci").exists():
            self.skipTest("not a checkout")

    def script(self, name: str) -> ModuleType:
        """A module of `.ci/`."""
        spec = importlib.util.spec_from_file_location(name, CHECKOUT / ".ci" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_the_directory_of_plugins_is_no_package(self) -> None:
        """An `__init__.py` there would hide Twisted itself from `python -m twisted`."""
        self.assertEqual(list((CHECKOUT / "twisted").rglob("__init__.py")), [])
        plugins = [path.name for path in (CHECKOUT / "twisted").rglob("*.py")]
        self.assertEqual(plugins, ["raftd_plugin.py"])

    def test_the_readme_has_its_two_lines(self) -> None:
        readme_line = self.script("readme_line").readme_line
        self.assertIn("pip install", readme_line("twist raftd"))
        self.assertIn("pip install", readme_line("trial -j2 raftd"))
        self.assertRaises(SystemExit, readme_line, "no line ends like this")

    def test_the_figures_of_trial_are_read(self) -> None:
        figures = self.script("figures").figures
        for output, expected in {
            "Ran 3 tests in 1.0s\n\nPASSED (successes=3)\n": (3, 0, 0),
            "Ran 1 tests in 1.0s\n\nPASSED (skips=1, successes=2)\n": (2, 0, 1),
            "FAILED (skips=1, failures=1, errors=2, successes=3)\n": (3, 3, 1),
            "FAILED (unexpectedSuccesses=1, expectedFailures=4)\n": (4, 1, 0),
            "PASSED (successes=9)\nFAILED (failures=1, successes=8)\n": (8, 1, 0),
            "Ran 0 tests in 0.000s\n\nPASSED\n": (0, 0, 0),
            "Traceback (most recent call last):\n": (0, 0, 0),
        }.items():
            self.assertEqual(figures(output), expected)
