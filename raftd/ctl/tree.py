"""
The parser, read as a tree: what completion and the reference page are made of.

The one place that looks inside `argparse`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple


class Option(NamedTuple):
    """
    `flags`, like `-o` and `--output`; `metavar` is empty if it takes no value;
    `choices` are what the value can be, if that is known.
    """

    flags: tuple[str, ...]
    metavar: str
    choices: tuple[str, ...]
    help: str
    is_global: bool


class Positional(NamedTuple):
    """What is no option: `is_optional`: it may be missing."""

    metavar: str
    choices: tuple[str, ...]
    help: str
    is_optional: bool


class Command(NamedTuple):
    """A command, `path` to it, what it takes, and its own commands."""

    path: tuple[str, ...]
    help: str
    description: str
    options: tuple[Option, ...]
    positionals: tuple[Positional, ...]
    commands: tuple[Command, ...]

    @property
    def name(self) -> str:
        return self.path[-1]

    def walk(self) -> Iterator[Command]:
        """It, and all commands below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


#: The flags that all commands have.
_GLOBAL = frozenset(("-e", "--endpoints", "--data-dir", "-o", "--output", "--timeout"))


def tree_of(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = (), help: str = ""
) -> Command:
    """A parser and those below it."""
    options, positionals, commands = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            commands = [
                tree_of(below, (*path, name), helps.get(name) or "")
                for name, below in action.choices.items()
            ]
        elif action.option_strings:
            options.append(_option(action))
        else:
            positionals.append(_positional(action))
    return Command(
        path,
        help,
        parser.description or "",
        tuple(options),
        tuple(positionals),
        tuple(commands),
    )


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(map(str, action.choices or ()))


def _option(action: argparse.Action) -> Option:
    takes_value = action.nargs != 0
    metavar: Any = action.metavar or "|".join(_choices(action)) or action.dest.upper()
    return Option(
        tuple(action.option_strings),
        str(metavar) if takes_value else "",
        _choices(action),
        action.help or "",
        not _GLOBAL.isdisjoint(action.option_strings),
    )


def _positional(action: argparse.Action) -> Positional:
    metavar: Any = action.metavar or "|".join(_choices(action)) or action.dest.upper()
    return Positional(
        str(metavar), _choices(action), action.help or "", action.nargs in ("?", "*")
    )


#: What stands for a file or a directory in a usage line.
PATHS = ("FILE", "DIR")
