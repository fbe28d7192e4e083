"""What can be typed, whom to ask, and what it says of itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import raftd
from raftd import errors
from raftd.client import NotFound, PreconditionFailed, Unreachable
from raftd.ctl import statuses
from raftd.ctl.arguments import EPILOG, SHELLS, UsageError, make_parser, parse
from raftd.ctl.completion import script
from raftd.ctl.endpoints import Endpoints, find_endpoints
from raftd.ctl.reference import reference
from raftd.ctl.reference import statuses as statuses_table
from raftd.ctl.running import COMMANDS
from raftd.ctl.tree import tree_of
from raftd.test.processes import PATIENCE_S

PAGE = Path(raftd.__file__).parent.parent / "docs" / "raftctl.md"


class Arguments(SynchronousTestCase):
    def refused(self, *typed: str) -> str:
        with self.assertRaises(UsageError) as caught:
            parse(typed)
        said = str(caught.exception)
        self.assertTrue(said.endswith("."), said)
        self.assertNotIn("\n", said)
        return said

    def test_options_of_all_commands_stand_anywhere(self) -> None:
        for typed in (
            ("-e", "a:1", "-o", "json", "get", "k"),
            ("get", "-e", "a:1", "k", "-o", "json"),
            ("-o", "json", "get", "k", "--endpoints=a:1"),
        ):
            found = parse(typed)
            self.assertEqual((found.endpoints, found.output, found.key), ("a:1", "json", "k"))
            self.assertEqual(found.timeout, 10.0)
        self.assertEqual(parse(["lease", "list", "-o", "raw"]).output, "raw")

    def test_what_stands_behind_the_dashes(self) -> None:
        self.assertEqual(parse(["get", "--", "-k"]).key, "-k")
        found = parse(["lock", "l", "--ttl", "5", "--", "sh", "-c", "--", "--ttl"])
        self.assertEqual((found.name, found.ttl), ("l", 5.0))
        self.assertEqual(found.child, ["sh", "-c", "--", "--ttl"])
        self.assertIsNone(parse(["lock", "l"]).child)
        found = parse(["-o", "json", "--endpoints", "lock:1", "elect", "e", "v", "--", "x"])
        self.assertEqual((found.value, found.child), ("v", ["x"]))
        self.assertIn("raftctl lock l -- sh", self.refused("lock", "l", "sh"))
        self.refused("lock", "l", "--")
        self.refused("lock", "--", "sh")

    def test_wrong(self) -> None:
        for typed in (
            ("nothing",),
            ("get",),
            ("get", "a", "b"),
            ("get", "k", "--rev", "1"),
            ("get", "k", "--revision", "0"),
            ("get", "k", "--revision", "x"),
            ("get", "k", "--local", "--max-staleness-ms", "1"),
            ("put", "k", "v", "--ttl", "0"),
            ("put", "k", "v", "--ttl", "nan"),
            ("put", "k", "v", "--ttl", "inf"),
            ("put", "k", "v", "--ttl", "1", "--lease", "0123456789abcdef"),
            ("put", "k", "v", "--if-absent", "--if-revision", "3"),
            ("get", "k", "-o", "xml"),
            ("get", "k", "--timeout", "-1"),
            ("get", "k", "--timeout", "1801"),
            ("list", "--limit", "10001"),
            ("compact",),
            ("compact", "5", "--keep", "5"),
            ("lease",),
            ("completion", "sh"),
        ):
            self.refused(*typed)

    def test_it_says_how_to_type_what_begins_with_a_dash(self) -> None:
        self.assertIn("behind --", self.refused("put", "k", "-x"))
        self.assertEqual(parse(["put", "k", "--", "-x"]).value, "-x")
        self.assertEqual(parse(["put", "k", "-"]).value, "-")

    def test_every_command_is_there(self) -> None:
        root = tree_of(make_parser())
        self.assertEqual(
            [command.name for command in root.commands],
            ["get", "put", "del", "list", "watch", "txn", "lease", "lock", "elect", "member",
             "status", "leader", "compact", "snapshot", "restore", "completion"],
        )  # fmt: skip
        runs = set()
        for command in root.walk():
            if command.commands or not command.path:
                continue
            typed = [*command.path, *("x" if not p.choices else p.choices[0]
                     for p in command.positionals if not p.is_optional)]  # fmt: skip
            if command.path in (("compact",), ("lease", "grant")):
                typed = [*command.path, "5"]
            runs.add(parse(typed).run)
        self.assertEqual(runs, {*COMMANDS, ""})

    def test_help_says_what_it_is(self) -> None:
        for command in tree_of(make_parser()).walk():
            said = io.StringIO()
            with contextlib.redirect_stdout(said), self.assertRaises(SystemExit) as caught:
                parse([*command.path, "--help"])
            self.assertEqual(caught.exception.code, 0)
            self.assertTrue(said.getvalue().startswith("usage: raftctl"), command.path)
            for option in command.options:
                self.assertTrue(option.help, option)
                self.assertIn(option.flags[-1], said.getvalue())
            self.assertLessEqual(max(map(len, command.description.splitlines())), 79)


class WhomToAsk(SynchronousTestCase):
    def find(
        self, given: str | None = None, data_dir: str | None = None, **environ: str
    ) -> Endpoints:
        return find_endpoints(given, data_dir, environ, self.directory)

    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)

    def is_member(self) -> None:
        fields = {"name": "B:4002", "join_servers": ["a:4001", "b:4002"]}
        Path(self.directory, "identity.json").write_text(json.dumps(fields), encoding="utf-8")

    def test_in_order(self) -> None:
        self.assertEqual(self.find().servers, ("localhost:4001",))
        self.is_member()
        found = self.find()
        self.assertEqual(found.servers, ("b:4002", "a:4001"))
        self.assertIn("this directory", found.source)
        found = self.find(RAFTCTL_ENDPOINTS="c:1, D:2")
        self.assertEqual(
            (found.servers, found.source), (("c:1", "d:2"), "as RAFTCTL_ENDPOINTS says")
        )
        found = self.find(data_dir=self.directory, RAFTCTL_ENDPOINTS="c:1")
        self.assertEqual(found.servers, ("b:4002", "a:4001"))
        found = self.find("e:1", RAFTCTL_ENDPOINTS="c:1")
        self.assertEqual((found.servers, found.source), (("e:1",), "as --endpoints says"))

    def test_wrong(self) -> None:
        for given, data_dir, variable, said in (
            ("http://a:1", None, "", "http://"),
            ("a", None, "", "host:port"),
            (None, None, "a", "host:port"),
            ("a:1", self.directory, "", "one of them"),
            (None, self.directory, "", "not the data directory"),
        ):
            with self.assertRaises(statuses.Usage) as caught:
                self.find(given, data_dir, RAFTCTL_ENDPOINTS=variable)
            self.assertIn(said, str(caught.exception))

    def test_a_file_of_that_name_may_be_anybodys(self) -> None:
        for content in ("", "[]", "{}", '{"name": 5}', '{"name": "x"}'):
            Path(self.directory, "identity.json").write_text(content, encoding="utf-8")
            self.assertEqual(self.find().servers, ("localhost:4001",))
            with self.assertRaises(statuses.Usage):
                self.find(data_dir=self.directory)


class Statuses(SynchronousTestCase):
    def test_what_scripts_are_told(self) -> None:
        for error, status in (
            (PreconditionFailed("No.", 3), 1),
            (NotFound("No."), 1),
            (errors.LeaseNotFound("No."), 1),
            (errors.Compacted("No.", 3), 1),
            (errors.BadRequest("No."), 2),
            (errors.FutureRevision("No.", 3), 2),
            (errors.TooLarge("No."), 2),
            (Unreachable("No."), 3),
            (errors.NoLeader("No."), 3),
            (errors.NoQuorum("No."), 3),
            (errors.NoSpace("No."), 3),
            (errors.ChangeRefused("No."), 3),
            (errors.TransferFailed("No."), 3),
            (errors.OutcomeUnknown("Who knows."), 4),
            (statuses.LostHold("Gone."), 5),
        ):
            self.assertEqual(statuses.status_of(error), status, error)

    def test_nothing_unknown_is_taken_for_undone(self) -> None:
        for kind in vars(errors).values():
            if isinstance(kind, type) and issubclass(kind, errors.OutcomeUnknown):
                self.assertEqual(statuses.status_of(kind("Who knows.")), 4)


class Documents(SynchronousTestCase):
    skip = None if PAGE.exists() else "the pages are not installed"

    def test_the_reference_is_that_of_the_parser(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        self.assertIn(reference(), page, "python -m raftd.ctl.reference prints it")
        self.assertIn(statuses_table(), page)

    def test_help_has_all_statuses(self) -> None:
        for status in statuses.MEANINGS:
            self.assertRegex(EPILOG, rf"\b{status} \w")


#: What bash would offer: for each line on standard input, the words on it typed
#: so far, the last of them perhaps not whole.
_BASH = """
source "$1"
while read -r line; do
    eval "COMP_WORDS=($line)"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _raftctl
    echo "${COMPREPLY[*]}"
done
"""


class Completion(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = tree_of(make_parser())

    def file(self, shell: str) -> str:
        path: str = self.mktemp()
        Path(path).write_text(script(shell, self.root), encoding="utf-8")
        return path

    def checked(self, *command: str, input: str = "") -> str:
        done = subprocess.run(
            command,
            input=input,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        said: str = done.stdout
        return said

    def test_bash(self) -> None:
        if shutil.which("bash") is None:
            self.skipTest("there is no bash")
        cases = {
            "raftctl ''": [command.name for command in self.root.commands],
            "raftctl st": ["status"],
            "raftctl -e a:1 --output json le": ["lease", "leader"],
            "raftctl lease ''": ["grant", "revoke", "keepalive", "list", "show"],
            "raftctl lease -o raw k": ["keepalive"],
            "raftctl get --l": ["--local"],
            "raftctl get k --re": ["--revision"],
            "raftctl get k --revision ''": [],
            "raftctl get k -o ''": ["table", "json", "raw"],
            "raftctl watch k --only p": ["put"],
            "raftctl completion ''": list(SHELLS),
            "raftctl snapshot save --tim": ["--timeout"],
            "raftctl get get get --lo": ["--local"],
            "raftctl lock l -- ech": ["echo"],
        }
        said = self.checked(
            "bash", "--norc", "-c", _BASH, "bash", self.file("bash"),
            input="".join(f"{line}\n" for line in cases),
        )  # fmt: skip
        for (line, expected), offered in zip(cases.items(), said.splitlines(), strict=True):
            self.assertEqual(sorted(offered.split()), sorted(expected), line)

    def test_bash_completes_files(self) -> None:
        if shutil.which("bash") is None:
            self.skipTest("there is no bash")
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        Path(directory, "backup-1").touch()
        lines = [
            f"raftctl {what} {directory}/back"
            for what in ("snapshot status", "put k --file", "txn", "restore")
        ]
        said = self.checked(
            "bash", "--norc", "-c", _BASH, "bash", self.file("bash"),
            input="".join(f"{line}\n" for line in lines),
        )  # fmt: skip
        self.assertEqual(said.splitlines(), [f"{directory}/backup-1"] * len(lines))

    def test_zsh(self) -> None:
        if shutil.which("zsh") is None:
            self.skipTest("there is no zsh")
        self.checked("zsh", "-n", self.file("zsh"))
        self.checked("zsh", "-fc", "autoload -U compinit; compinit -D; source $1", "zsh",
                     self.file("zsh"))  # fmt: skip

    def test_fish(self) -> None:
        if shutil.which("fish") is None:
            self.skipTest("there is no fish")
        asked = "source $argv[1]; for line in $argv[2..]; complete -C $line; end"
        said = self.checked(
            "fish", "--no-config", "-c", asked, self.file("fish"),
            "raftctl lease k", "raftctl -o json st", "raftctl get k --loc",
        )  # fmt: skip
        self.assertEqual(
            [line.split("\t")[0] for line in said.splitlines()],
            ["keepalive", "status", "--local"],
        )

    def test_every_word_is_in_every_script(self) -> None:
        for shell in SHELLS:
            text = script(shell, self.root)
            for command in self.root.walk():
                for below in command.commands:
                    self.assertRegex(text, rf"\b{below.name}\b")
                for option in command.options:
                    self.assertIn(option.flags[-1].lstrip("-"), text)
