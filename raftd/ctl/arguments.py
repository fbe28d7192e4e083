"""
What can be typed: the one description that parsing, `--help`, completion and
the reference page are made of.  It needs no Twisted, so that completion is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any, NoReturn

from raftd.ctl.output import FORMATS

#: How long a request may take in all, in seconds, if nothing else is said.
TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 240
#: How wide the text of `--help` is.
WIDTH = 79
#: The longest time that can be asked for, in seconds.
MAX_SECONDS = 1_000_000
#: How many keys `list` shows if nothing else is said, and how many one may ask for.
LIST_LIMIT = 1000
MAX_LIST_LIMIT = 10_000
#: The time to live of the lease beneath a lock or a candidate, in seconds.
LOCK_TTL_S = 10.0

DESCRIPTION = "Talks to a raftd cluster."
EPILOG = """\
Endpoints are taken from --endpoints, or from --data-dir, or from the
environment variable RAFTCTL_ENDPOINTS, or from the working directory if it is a
member's, or are localhost:4001.  `raftctl COMMAND --help` says more.

exit status: 0 done; 1 no (not found, condition failed, lock not free);
2 cannot be done as asked; 3 did not happen, try again; 4 outcome unknown;
5 lock, leadership or lease lost.
"""


class UsageError(Exception):
    """A sentence, and the command whose help says more."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


class Parser(argparse.ArgumentParser):
    """One that raises `UsageError`, and abbreviates nothing."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: -"):
            message += "; a key or a value that begins with - stands behind --"
        raise UsageError(f"{message.rstrip('.')}.", self.prog)


# -- types -----------------------------------------------------------------------


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return value

    return number


revision = _number(1, (1 << 63) - 1)


def seconds(text: str, most: int = MAX_SECONDS) -> float:
    """A length of time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds, above 0 and up to {most}"
        )
    return value


def timeout(text: str) -> float:
    """How long a request may take."""
    return seconds(text, MAX_TIMEOUT_S)


def seconds_or_none(text: str) -> float:
    """A length of time, perhaps 0."""
    return 0.0 if text in ("0", "0.0") else seconds(text)


# -- the whole ---------------------------------------------------------------------


def make_parser() -> Parser:
    """The parser of everything."""
    parser = Parser(prog="raftctl", description=DESCRIPTION, epilog=EPILOG)
    _global_options(parser, with_defaults=True)
    parser.add_argument(
        "--version", action="store_true", help="print the version, and nothing else"
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", parser_class=Parser
    )
    for add in (
        _keys,
        _watch,
        _txn,
        _leases,
        _holding,
        _members,
        _backups,
        _completion,
    ):
        add(commands)
    return parser


def _global_options(parser: argparse.ArgumentParser, with_defaults: bool) -> None:
    """Options that may stand before the command, and behind it."""

    def default(value: object) -> Any:
        return value if with_defaults else argparse.SUPPRESS

    options = parser.add_argument_group("options of all commands")
    options.add_argument(
        "-e",
        "--endpoints",
        metavar="HOST:PORT,...",
        default=default(None),
        help="members to ask, any of them",
    )
    options.add_argument(
        "--data-dir",
        metavar="DIR",
        default=default(None),
        help="ask the member whose data directory this is",
    )
    options.add_argument(
        "-o",
        "--output",
        choices=FORMATS,
        default=default(None),
        help="table; json, one document, or one a line; raw, only the value's bytes",
    )
    options.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=timeout,
        default=default(TIMEOUT_S),
        help=f"how long a request may take in all, with all tries; {TIMEOUT_S:g} if not given",
    )


def _command(commands: Any, name: str, run: str, help: str, more: str = "") -> Parser:
    """A command; `run` is the module and the function that carry it out."""
    text = f"{help[0].upper()}{help[1:]}.\n\n{more}".rstrip()
    parser: Parser = commands.add_parser(name, help=help, description=_wrapped(text))
    _global_options(parser, with_defaults=False)
    parser.set_defaults(run=run)
    return parser


def _wrapped(text: str) -> str:
    """Paragraphs that fit a terminal; what is indented stays as it is."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if p.startswith("  ") else fill(p, WIDTH) for p in paragraphs)


def _group(commands: Any, name: str, help: str) -> Any:
    """A command that has commands."""
    parser: Parser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + "."
    )
    _global_options(parser, with_defaults=False)
    return parser.add_subparsers(
        title="commands",
        dest="subcommand",
        metavar="COMMAND",
        parser_class=Parser,
        required=True,
    )


def _freshness(parser: Parser) -> None:
    reading = parser.add_mutually_exclusive_group()
    reading.add_argument(
        "--local", action="store_true", help="what the server that is asked has, however old"
    )
    reading.add_argument(
        "--max-staleness-ms",
        metavar="N",
        type=_number(1, 1 << 40),
        help="acknowledged writes may be missing, but none older than this",
    )


def _span(parser: Parser) -> None:
    parser.add_argument("--start", metavar="KEY", help="from this key on")
    parser.add_argument("--end", metavar="KEY", help="up to this key, without it")


# -- commands ------------------------------------------------------------------------


def _keys(commands: Any) -> None:
    get = _command(
        commands,
        "get",
        "keys.get",
        "print the value of a key",
        "The bytes of the value, and nothing else; on a terminal, unless -o raw is given,\n"
        "with a line's end, and with what could command the terminal escaped.\n"
        "-o table and -o json show all there is to a key.",
    )
    get.add_argument("key", metavar="KEY")
    get.add_argument("--revision", metavar="N", type=revision, default=0, help="as of the past")
    _freshness(get)

    put = _command(
        commands,
        "put",
        "keys.put",
        "set a key",
        "The value is VALUE; standard input, if that is -; or --file.",
    )
    put.add_argument("key", metavar="KEY")
    put.add_argument("value", metavar="VALUE", nargs="?")
    put.add_argument("--file", metavar="FILE", help="the value is what this file holds")
    lease = put.add_mutually_exclusive_group()
    lease.add_argument(
        "--ttl", metavar="SECONDS", type=seconds, help="delete the key after so long"
    )
    lease.add_argument("--lease", metavar="ID", help="delete the key when this lease ends")
    condition = put.add_mutually_exclusive_group()
    condition.add_argument(
        "--if-revision",
        metavar="N",
        type=revision,
        help="only if this revision was the last to change the key",
    )
    condition.add_argument(
        "--if-absent", action="store_true", help="only if there is no such key"
    )
    put.add_argument("--prev", action="store_true", help="show what was there before")

    delete = _command(
        commands,
        "del",
        "keys.delete",
        "delete a key, or all keys with a prefix in one revision",
        "The exit status is 1 if there is no such key; with --prefix it is 0, "
        "however many keys there were.",
    )
    delete.add_argument("key", metavar="KEY", nargs="?")
    delete.add_argument("--prefix", metavar="P", help="all keys that begin so; '' is all")
    delete.add_argument(
        "--if-revision",
        metavar="N",
        type=revision,
        help="only if this revision was the last to change the key",
    )
    delete.add_argument("--prev", action="store_true", help="show what was there before")

    listing = _command(
        commands,
        "list",
        "keys.list_keys",
        "list keys and values, as of one revision",
        f"The first {LIST_LIMIT:,} keys, unless --limit or --all says otherwise.  In a pipe,\n"
        "a line has the key and the value, with a tab between; -o json is one document,\n"
        "and with --all a line for each key; -o raw prints the values, each with a line's\n"
        "end.",
    )
    listing.add_argument("prefix", metavar="PREFIX", nargs="?")
    _span(listing)
    how_many = listing.add_mutually_exclusive_group()
    how_many.add_argument(
        "--limit", metavar="N", type=_number(1, MAX_LIST_LIMIT), help="so many at most"
    )
    how_many.add_argument("--all", action="store_true", help="all, page by page")
    what = listing.add_mutually_exclusive_group()
    what.add_argument("--keys-only", action="store_true", help="without the values")
    what.add_argument("--count", action="store_true", help="only how many there are")
    listing.add_argument("--reverse", action="store_true", help="the last ones first")
    listing.add_argument(
        "--revision", metavar="N", type=revision, default=0, help="as of the past"
    )
    _freshness(listing)


def _watch(commands: Any) -> None:
    watch = _command(
        commands,
        "watch",
        "watching.watch",
        "print what changes, until you stop it",
        "Each change once and in order, however often the connection breaks.  -o json is a\n"
        "line for each revision; -o raw the value of each put, with a line's end.\n\n"
        "--exec has the shell run COMMAND for each change, one after the other, with the\n"
        "value on standard input and RAFTCTL_REVISION, RAFTCTL_TYPE (put or delete),\n"
        "RAFTCTL_KEY and RAFTCTL_KEY_BASE64 in its environment.  If one fails, the watch\n"
        "ends with its exit status.",
    )
    watch.add_argument("key", metavar="KEY", nargs="?")
    watch.add_argument("--prefix", metavar="P", help="all keys that begin so; '' is all")
    _span(watch)
    watch.add_argument(
        "--revision", metavar="N", type=revision, default=0, help="begin with this revision"
    )
    watch.add_argument("--prev", action="store_true", help="also what was there before")
    watch.add_argument("--only", choices=("put", "delete"), help="leave the other kind out")
    watch.add_argument(
        "--count", metavar="N", type=_number(1, 1 << 40), help="end after N revisions"
    )
    watch.add_argument("--exec", metavar="COMMAND", help="run this for each change")


def _txn(commands: Any) -> None:
    txn = _command(
        commands,
        "txn",
        "txn.txn",
        "carry out a transaction: all or nothing, in one revision",
        "It is read from FILE, or from standard input, as JSON:\n\n"
        '  {"compare": [{"key": "a", "value": "1"}],\n'
        '   "then": [{"put": {"key": "a", "value": "2"}}],\n'
        '   "else": [{"get": {"key": "a"}}]}\n\n'
        "docs/http.md has all of it.  If the compares do not hold, else is carried out, and "
        "the exit status is 1.",
    )
    txn.add_argument("file", metavar="FILE", nargs="?", default="-")


def _leases(commands: Any) -> None:
    lease = _group(commands, "lease", "grant, keep alive and end leases")
    grant = _command(lease, "grant", "leases.grant", "make a lease, and print its id")
    grant.add_argument("ttl", metavar="SECONDS", type=seconds)
    revoke = _command(
        lease, "revoke", "leases.revoke", "end a lease, and delete the keys that it has"
    )
    revoke.add_argument("id", metavar="ID")
    keepalive = _command(
        lease,
        "keepalive",
        "leases.keep_alive",
        "keep a lease alive, until you stop it",
        "If the lease ends all the same, so does this, with exit status 5.",
    )
    keepalive.add_argument("id", metavar="ID")
    keepalive.add_argument("--once", action="store_true", help="begin its time anew, once")
    _command(lease, "list", "leases.list_leases", "list the leases")
    show = _command(
        lease, "show", "leases.show", "show the time that a lease has left, and its keys"
    )
    show.add_argument("id", metavar="ID")


def _holding(commands: Any) -> None:
    how = (
        "COMMAND runs while it is held, and raftctl exits as COMMAND does.  COMMAND never\n"
        "runs once the {what} may be lost: it is sent SIGTERM while there is still time\n"
        "(--grace), SIGKILL when there is none, and the exit status is then 5.  It has\n"
        "RAFTCTL_{NAME}_NAME, RAFTCTL_{NAME}_TOKEN and RAFTCTL_{NAME}_KEY in its environment;\n"
        "the token grows with every holder, so that what COMMAND works on can refuse a\n"
        "smaller one.  Without COMMAND, the token is printed, and it is held until you stop it."
        "\n\n"
        "What COMMAND has started is ended with it; at a terminal, COMMAND alone.  On Linux,\n"
        "COMMAND ends with raftctl, too, however that ends."
    )
    lock = _command(
        commands,
        "lock",
        "holding.lock",
        "run a command while holding a lock",
        how.format(what="lock", NAME="LOCK"),
    )
    lock.add_argument("name", metavar="NAME")
    elect = _command(
        commands,
        "elect",
        "holding.elect",
        "run a command while leading, or see who leads",
        "Without VALUE, the value and the token of who leads now; with --observe, each time\n"
        "that it changes.\n\n" + how.format(what="leadership", NAME="ELECTION"),
    )
    elect.add_argument("name", metavar="NAME")
    elect.add_argument("value", metavar="VALUE", nargs="?", help="what the others see")
    elect.add_argument(
        "--observe", action="store_true", help="print who leads, until you stop it"
    )
    for parser in (lock, elect):
        parser.add_argument(
            "--ttl",
            metavar="SECONDS",
            type=seconds,
            default=LOCK_TTL_S,
            help="how long a holder that cannot be reached may go on; "
            f"{LOCK_TTL_S:g} if not given",
        )
        parser.add_argument(
            "--delay",
            metavar="SECONDS",
            type=seconds_or_none,
            default=0.0,
            help="how much longer it stays taken when a holder is lost",
        )
        parser.add_argument(
            "--wait",
            metavar="SECONDS",
            type=seconds_or_none,
            help="how long to wait for it: 0, not at all; then the exit status is 1",
        )
        parser.add_argument(
            "--grace",
            metavar="SECONDS",
            type=seconds,
            help="how long before the end COMMAND is told; a third of the TTL",
        )
        parser.add_argument("child", metavar="COMMAND", nargs="*", help="behind --")


def _members(commands: Any) -> None:
    member = _group(commands, "member", "see and change who belongs to the cluster")
    _command(member, "list", "members.list_members", "list the members")
    add = _command(
        member,
        "add",
        "members.add",
        "print the command that adds a member",
        "A node is added by starting it: it joins by itself, and has a vote once it has all\n"
        "the data.  This prints what to type on its machine.",
    )
    add.add_argument("name", metavar="NAME", help="HOST:PORT, where others will reach it")
    add.add_argument("--learner", action="store_true", help="without a vote")
    for name, does in (
        ("promote", "give a learner a vote"),
        ("demote", "take a member's vote, and leave it a copy"),
        ("remove", "remove a member; its node is told so, and ends"),
    ):
        parser = _command(member, name, f"members.{name}", does)
        parser.add_argument("name", metavar="NAME")
        _force(parser)
    move = _command(
        member,
        "move",
        "members.move",
        "give a member another address",
        "Then start it again under that name, in its old directory.",
    )
    move.add_argument("name", metavar="NAME")
    move.add_argument("to", metavar="NEW")
    _force(move)

    _command(
        commands,
        "status",
        "members.status",
        "ask every member how it is",
        "The exit status is 1 if something is wrong: a member that does not answer, no\n"
        "leader, or a state that differs from the leader's.",
    )
    leader = _command(
        commands,
        "leader",
        "members.leader",
        "print who leads, or let another one",
        "The exit status is 1 if nobody does.",
    )
    leader.add_argument(
        "--to", metavar="NAME", help="let this member lead; '' is whoever is best prepared"
    )


def _force(parser: Parser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if too few of the living could then decide anything",
    )


def _backups(commands: Any) -> None:
    compact = _command(commands, "compact", "backups.compact", "forget the history of the keys")
    what = compact.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "revision", metavar="REVISION", nargs="?", type=revision, help="the oldest that stays"
    )
    what.add_argument("--keep", metavar="N", type=revision, help="the last N revisions stay")

    snapshot = _group(commands, "snapshot", "take and check backups")
    save = _command(
        snapshot,
        "save",
        "backups.save",
        "write a backup of the whole store, as of one revision",
        "FILE is there when it is whole, checked and on disk, and not before; - is standard\n"
        "output, and then only the exit status tells whether it is whole.",
    )
    save.add_argument("file", metavar="FILE")
    status = _command(snapshot, "status", "backups.file_status", "check a backup")
    status.add_argument("file", metavar="FILE")

    restore = _command(
        commands,
        "restore",
        "backups.restore",
        "begin a new cluster with a backup",
        "A running cluster is never set back: that would take back what it has acknowledged.\n"
        "FILE is checked, and the command that begins a new cluster with it is printed;\n"
        "with --start, this becomes that command.",
    )
    restore.add_argument("file", metavar="FILE")
    restore.add_argument(
        "--name", metavar="HOST:PORT", help="the first member's name (localhost:4001)"
    )
    restore.add_argument(
        "--to", metavar="DIR", help="its data directory, a new or an empty one"
    )
    restore.add_argument(
        "--ahead",
        metavar="N",
        type=revision,
        help="move its revisions on by so many, beyond those that clients have seen",
    )
    restore.add_argument("--start", action="store_true", help="start it, here and now")


SHELLS = ("bash", "zsh", "fish")


def _completion(commands: Any) -> None:
    completion = _command(
        commands,
        "completion",
        "",
        "print what lets a shell complete raftctl's commands and options",
        "  in ~/.bashrc:    source <(raftctl completion bash)\n"
        "  in ~/.zshrc:     source <(raftctl completion zsh)\n"
        "  in config.fish:  raftctl completion fish | source",
    )
    completion.add_argument("shell", choices=SHELLS)


# -- parsing -------------------------------------------------------------------------

#: Commands behind whose `--` another command follows.
WITH_CHILD = ("lock", "elect")


def parse(arguments: Sequence[str], parser: Parser | None = None) -> argparse.Namespace:
    """What was typed; `UsageError`, or `SystemExit` after `--help`."""
    parser = make_parser() if parser is None else parser
    arguments = list(arguments)
    child: list[str] | None = None
    if "--" in arguments and _command_in(arguments) in WITH_CHILD:
        place = arguments.index("--")
        arguments, child = arguments[:place], arguments[place + 1 :]
    # Intermixed: an option may stand between what is not one.
    found = parser.parse_args(arguments)
    if found.command in WITH_CHILD:
        if found.child:
            raise UsageError(
                f"What to run stands behind --: raftctl {found.command} "
                f"{found.name} -- {' '.join(found.child)}.",
                f"raftctl {found.command}",
            )
        if child == []:
            raise UsageError("No command follows the --.", f"raftctl {found.command}")
        found.child = child
    return found


def _command_in(arguments: Sequence[str]) -> str:
    """The command in what was typed; options before it may have values."""
    takes_value = {"-e", "--endpoints", "--data-dir", "-o", "--output", "--timeout"}
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in takes_value:
            skip = True
        elif not argument.startswith("-"):
            return argument
    return ""
