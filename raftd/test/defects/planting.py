"""
Copies of the package that defects are put into, and processes that try them.

Tests that start processes of their own take them from where they come from
themselves, so the defect is in those as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

import raftd
from raftd.test.defects.child import NO_PATCH, Patch, Verdict
from raftd.test.defects.defect import Defect, lines_of, put_in

ROOT = Path(raftd.__file__).parent

#: The longest that the tests of one defect may take.  A test must fail, not hang.
PATIENCE_S = 180.0
#: The longest that all of them may take where there is no defect.
PATIENCE_WITH_ALL_S = 1800.0

_TEST = re.compile(r"^ +def (test((?:_\d\d)+)_[a-z]\w*)\(", re.MULTILINE)
_ANY_TEST = re.compile(r"^ +def (test_\w+)\(", re.MULTILINE)
#: What makes a test slow.
_PROCESSES = "raftd.test.processes"


class Catchers:
    """Which tests carry which number, as `MODULE:TEST`; those that are quick first."""

    def __init__(self) -> None:
        self._numbered: dict[int, list[str]] = {}
        self._named: dict[str, list[str]] = {}
        for path in sorted((ROOT / "test").glob("test_*.py"), key=_slowness):
            text = path.read_text(encoding="utf-8")
            module = f"raftd.test.{path.stem}"
            for name, numbers in _TEST.findall(text):
                for number in map(int, numbers.split("_")[1:]):
                    self._numbered.setdefault(number, []).append(f"{module}:{name}")
            for name in _ANY_TEST.findall(text):
                self._named.setdefault(name, []).append(f"{module}:{name}")

    def of_number(self, number: int) -> list[str]:
        return self._numbered.get(number, [])

    def of(self, defect: Defect) -> list[str]:
        """The tests that must catch it; `LookupError` if one that it names is not there."""
        also = [test for name in defect.also for test in self._named[name]]
        return list(dict.fromkeys((*self.of_number(defect.number), *also)))


def _slowness(path: Path) -> tuple[bool, bool, str]:
    text = path.read_text(encoding="utf-8")
    return _PROCESSES in text, not path.stem.startswith("test_pitfalls"), path.stem


class Garden:
    """A copy of raftd in a directory of its own, for one defect at a time."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="raftd-defects-")
        self._tree = Path(self._directory.name).resolve()
        # Compiled files are good in the copy too; `x.pyc.123` is one that another
        # process is writing, and has another name a moment later.
        ignore = shutil.ignore_patterns("_trial_temp*", "*.pyc.*")
        shutil.copytree(ROOT, self._tree / "raftd", ignore=ignore)
        plugin = Path("twisted", "plugins", "raftd_plugin.py")
        (self._tree / plugin).parent.mkdir(parents=True)
        shutil.copy(ROOT.parent / plugin, self._tree / plugin)
        self._work = self._tree / "work"
        self._work.mkdir()
        self._patch = NO_PATCH

    @property
    def tree(self) -> Path:
        """What holds the package, and the plugin that makes `twist` know it."""
        return self._tree

    def __enter__(self) -> Garden:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._directory.cleanup()

    @contextlib.contextmanager
    def planted(self, defect: Defect) -> Iterator[None]:
        """Put a defect in, and take it out again."""
        path = self._tree / "raftd" / defect.module
        source = path.read_text(encoding="utf-8")
        self._replace(path, put_in(defect, source))
        self._patch = Patch(str(path), *lines_of(defect, source))
        try:
            yield
        finally:
            self._patch = NO_PATCH
            self._replace(path, source)

    def _replace(self, path: Path, source: str) -> None:
        path.write_text(source, encoding="utf-8")
        # It is told from a newer source by a time in seconds and a length.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def run_tests(self, tests: Sequence[str], patience_s: float = PATIENCE_S) -> Verdict:
        return self._run(patience_s, "tests", *tests)

    def run_seeds(self, count: int) -> Verdict:
        return self._run(PATIENCE_S, "seeds", str(count))

    def run_simulation(self, count: int) -> Verdict:
        return self._run(PATIENCE_S, "simulation", str(count))

    def _run(self, patience_s: float, *arguments: str) -> Verdict:
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "raftd.test.defects.child"),
                msgspec.json.encode(self._patch).decode(),
                *arguments,
            ],
            cwd=self._work,
            env={**os.environ, "PYTHONPATH": str(self._tree)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        began = time.monotonic()
        try:
            output, _ = child.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            # With whatever processes its tests have started.
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return Verdict(0, why=f"no end after {time.monotonic() - began:.0f} s")
        try:
            return msgspec.json.decode(output.strip().splitlines()[-1], type=Verdict)
        except (IndexError, msgspec.MsgspecError):
            return Verdict(0, "", f"the tests could not be run: {output[-2000:]}", True)
