"""
Each way of installing raftd gives `twist raftd` and `raftd`, from anywhere.

A wheel, `pip install .` and `pip install -e .`, each in an environment of its
own; and a bare checkout, with `python -m twisted`.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TREE = Path(__file__).parent.parent.resolve()

#: What the tests and earlier installations have left there, which no build is to see.
LEFT_OVER = shutil.ignore_patterns("*.egg-info", "_trial_temp*", ".venv")

#: Printed by the installed package: where it is, and what must be with it.
LOOK = """
import raftd, raftd.test, importlib.resources, importlib.metadata
from twisted.plugin import getPlugins
from twisted.application.service import IServiceMaker
assert importlib.resources.files("raftd").joinpath("py.typed").is_file(), "no py.typed"
assert importlib.metadata.version("raftd") == raftd.__version__
names = [plugin.tapname for plugin in getPlugins(IServiceMaker)]
assert names.count("raftd") == 1, names
print(raftd.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout)
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout


def check_commands(python: Path, elsewhere: Path) -> Path:
    """That both commands are there and know their options; where raftd is."""
    scripts = python.parent
    assert "raftd" in run(scripts / "twist", "--help", cwd=elsewhere)
    for command in ((scripts / "twist", "raftd"), (scripts / "raftd",)):
        assert "--election-timeout-ms" in run(*command, "--help", cwd=elsewhere), command
    run(scripts / "raftd", "--version", cwd=elsewhere)
    assert "snapshot" in run(scripts / "raftctl", "--help", cwd=elsewhere)
    return Path(run(python, "-c", LOOK, cwd=elsewhere).strip())


def check_examples(python: Path, elsewhere: Path) -> None:
    """That the tests of the examples pass with what is installed, and nothing else."""
    examples = elsewhere / "examples"
    shutil.copytree(TREE / "examples", examples)
    tests = sorted(path.stem for path in examples.glob("test_*.py"))
    assert tests, "there are no tests of the examples"
    print(run(python, "-m", "twisted.trial", *tests, cwd=examples).splitlines()[-1])


def new_environment(directory: Path) -> Path:
    """The interpreter of a fresh environment."""
    venv.create(directory, with_pip=True)
    return directory / "bin" / "python"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary).resolve()
        elsewhere = work / "elsewhere"
        elsewhere.mkdir()
        # Each builds from a tree of its own: a build must not find another's files.
        trees = {}
        for way in ("wheel", "plain", "editable"):
            trees[way] = work / f"tree-{way}"
            shutil.copytree(TREE, trees[way], ignore=LEFT_OVER)

        python = new_environment(work / "wheel")
        pip = (python, "-m", "pip", "-q")
        run(*pip, "wheel", "--no-deps", "-w", work / "dist", trees["wheel"], cwd=elsewhere)
        (wheel,) = (work / "dist").glob("raftd-*.whl")
        run(*pip, "install", wheel, cwd=elsewhere)
        assert (work / "wheel") in check_commands(python, elsewhere).parents
        check_examples(python, elsewhere)
        print("wheel, and the examples with it: ok")

        # The dependencies are there now: the same environment does for the rest.
        run(*pip, "uninstall", "-y", "raftd", cwd=elsewhere)
        usage = run(python, "-m", "twisted", "raftd", "--help", cwd=TREE)
        assert "--election-timeout-ms" in usage
        print("bare checkout: ok")

        run(*pip, "install", ".", cwd=trees["plain"])
        assert (work / "wheel") in check_commands(python, elsewhere).parents
        print("pip install .: ok")

        run(*pip, "uninstall", "-y", "raftd", cwd=elsewhere)
        run(*pip, "install", "-e", ".", cwd=trees["editable"])
        assert trees["editable"] in check_commands(python, elsewhere).parents
        print("pip install -e .: ok")


if __name__ == "__main__":
    main()
