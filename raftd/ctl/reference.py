"""
The reference of `docs/raftctl.md`, generated from the parser.

    python -m raftd.ctl.reference

prints it; a test holds the page against it.
"""

from __future__ import annotations

from raftd.ctl.arguments import make_parser
from raftd.ctl.statuses import MEANINGS
from raftd.ctl.tree import Command, Option, tree_of


def reference() -> str:
    """All commands and their options, as Markdown."""
    root = tree_of(make_parser())
    parts = ["Options of all commands:\n", _table([o for o in root.options if o.is_global])]
    for command in root.walk():
        if command.path and not command.commands:
            parts.append(_section(command))
    return "\n".join(parts)


def statuses() -> str:
    """The table of exit statuses, as Markdown."""
    rows = [f"| {status} | {meaning} |" for status, meaning in MEANINGS.items()]
    return "\n".join(["| status | meaning |", "| --- | --- |", *rows]) + "\n"


def usage_of(command: Command) -> str:
    """What a command takes, in a line; options of all commands are left out."""
    words = ["raftctl", *command.path]
    own = [o for o in command.options if not o.is_global and "--help" not in o.flags]
    for positional in command.positionals:
        if positional.metavar == "COMMAND":
            continue
        text = positional.metavar
        words.append(f"[{text}]" if positional.is_optional else text)
    if own:
        words.append("[options]")
    if any(positional.metavar == "COMMAND" for positional in command.positionals):
        words.append("[-- COMMAND ...]")
    return " ".join(words)


def _section(command: Command) -> str:
    own = [o for o in command.options if not o.is_global and "--help" not in o.flags]
    parts = [f"### `{usage_of(command)}`\n", _text(command.description)]
    if own:
        parts.append(_table(own))
    return "\n".join(parts)


def _text(description: str) -> str:
    """A description; what is indented in it is shown as it stands."""
    parts = []
    for paragraph in description.split("\n\n"):
        is_example = paragraph.startswith("  ")
        parts.append(f"```\n{paragraph}\n```\n" if is_example else f"{paragraph}\n")
    return "\n".join(parts)


def _table(options: list[Option]) -> str:
    rows = []
    for option in options:
        flags = ", ".join(option.flags) + (f" {option.metavar}" if option.metavar else "")
        cell = flags.replace("|", "\\|")
        rows.append(f"| `{cell}` | {option.help} |")
    return "\n".join(["| option | |", "| --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
