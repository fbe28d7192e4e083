"""
Completion for shells, generated from the parser.

Static: no shell waits for a cluster because somebody pressed the tab key.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from raftd.ctl.tree import PATHS, Command, Option


def script(shell: str, root: Command) -> str:
    """What `shell` is to source."""
    return _SCRIPTS[shell](root)


def _words(command: Command) -> tuple[list[str], list[str], bool]:
    """What can follow a command: flags, words, and whether a file can."""
    flags = [flag for option in command.options for flag in option.flags]
    words = [below.name for below in command.commands]
    words += [choice for positional in command.positionals for choice in positional.choices]
    files = any(positional.metavar in PATHS for positional in command.positionals)
    return flags, words, files


def _options(root: Command) -> dict[str, Option]:
    """All options by flag; one that is there several times has the same kind of value."""
    return {flag: o for c in root.walk() for o in c.options for flag in o.flags}


def _paths(root: Command) -> list[str]:
    return [" ".join(command.path) for command in root.walk() if command.path]


# -- bash and zsh ------------------------------------------------------------------


def _find_command(root: Command, words: str, first: int, before: str) -> Iterator[str]:
    """Lines that find which command is typed, in a shell whose arrays begin at `first`."""
    taking = "|".join(flag for flag, option in _options(root).items() if option.metavar)
    paths = "|".join(shlex.quote(path) for path in _paths(root))
    yield f"    for ((i = {first + 1}; i < {before}; i++)); do"
    yield f"        word=${{{words}[i]}}"
    yield "        case $word in"
    yield "            --) behind=1; break ;;"
    yield f"            {taking}) ((i++)) ;;"
    yield "            -*) ;;"
    longer = "${at:+$at }$word"
    yield f'            *) case "{longer}" in {paths}) at="{longer}" ;; esac ;;'
    yield "        esac"
    yield "    done"


def _bash(root: Command) -> str:
    lines = [
        "# Completion of raftctl for bash; source it.",
        "_raftctl() {",
        '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
        '    local i word at="" behind="" flags="" words="" files=""',
        "    COMPREPLY=()",
        *_find_command(root, "COMP_WORDS", 0, "COMP_CWORD"),
        "    if [[ -n $behind ]]; then",
        '        COMPREPLY=($(compgen -A command -A file -- "$cur" | sort -u))',
        "        return",
        "    fi",
        "    case $prev in",
    ]
    for flag, option in _options(root).items():
        if option.choices:
            words = " ".join(option.choices)
            lines.append(
                f'        {flag}) COMPREPLY=($(compgen -W "{words}" -- "$cur")); return ;;'
            )
        elif option.metavar in PATHS:
            lines.append(f'        {flag}) COMPREPLY=($(compgen -A file -- "$cur")); return ;;')
        elif option.metavar:
            lines.append(f"        {flag}) return ;;")
    lines += ["    esac", "    case $at in"]
    for command in root.walk():
        flags, words_of, files = _words(command)
        lines.append(
            f"        {shlex.quote(' '.join(command.path))}) "
            f'flags="{" ".join(flags)}" words="{" ".join(words_of)}"'
            f"{' files=1' if files else ''} ;;"
        )
    lines += [
        "    esac",
        "    if [[ $cur == -* ]]; then",
        '        COMPREPLY=($(compgen -W "$flags" -- "$cur"))',
        "    elif [[ -n $files ]]; then",
        '        COMPREPLY=($(compgen -A file -- "$cur"))',
        "    else",
        '        COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "    fi",
        "}",
        "complete -o filenames -F _raftctl raftctl",
    ]
    return "\n".join(lines) + "\n"


def _zsh(root: Command) -> str:
    lines = [
        "#compdef raftctl",
        "# Completion of raftctl for zsh; source it after compinit, or put it on the fpath.",
        "_raftctl() {",
        '    local i word at="" behind=""',
        "    local -a flags cmds",
        *_find_command(root, "words", 1, "CURRENT"),
        "    if [[ -n $behind ]]; then",
        "        _command_names -e; _files",
        "        return",
        "    fi",
        "    case ${words[CURRENT-1]} in",
    ]
    for flag, option in _options(root).items():
        if option.choices:
            lines.append(f"        {flag}) compadd -- {' '.join(option.choices)}; return ;;")
        elif option.metavar in PATHS:
            lines.append(f"        {flag}) _files; return ;;")
        elif option.metavar:
            lines.append(f"        {flag}) return ;;")
    lines += ["    esac", "    case $at in"]
    for command in root.walk():
        lines.append(f"        {shlex.quote(' '.join(command.path))})")
        for option in command.options:
            described = [_zsh_word(flag, option.help) for flag in option.flags]
            lines.append(f"            flags+=({' '.join(described)})")
        for below in command.commands:
            lines.append(f"            cmds+=({_zsh_word(below.name, below.help)})")
        _, words, files = _words(command)
        chosen = [word for word in words if word not in {c.name for c in command.commands}]
        if chosen:
            lines.append(f"            cmds+=({' '.join(chosen)})")
        if files:
            lines.append("            [[ $PREFIX == -* ]] || { _files; return }")
        lines.append("            ;;")
    lines += [
        "    esac",
        "    if [[ $PREFIX == -* ]]; then",
        "        _describe -o option flags",
        "    else",
        "        _describe command cmds",
        "    fi",
        "}",
        "compdef _raftctl raftctl",
    ]
    return "\n".join(lines) + "\n"


def _zsh_word(word: str, help: str) -> str:
    return shlex.quote(f"{word}:{help}")


# -- fish --------------------------------------------------------------------------


def _fish(root: Command) -> str:
    taking = " ".join(flag for flag, option in _options(root).items() if option.metavar)
    paths = " ".join(map(_fish_word, _paths(root)))
    lines = [
        "# Completion of raftctl for fish; source it.",
        "function __raftctl_at",
        "    set -l at",
        "    set -l skip 0",
        "    for word in (commandline -opc)[2..-1]",
        "        if test $skip = 1",
        "            set skip 0",
        "        else if test $word = --",
        "            break",
        f"        else if contains -- $word {taking}",
        "            set skip 1",
        "        else if string match -qv -- '-*' $word",
        f"            contains -- (string join ' ' $at $word) {paths}",
        "            and set -a at $word",
        "        end",
        "    end",
        '    test "$at" = "$argv"',
        "end",
        "complete -c raftctl -f",
    ]
    for command in root.walk():
        at = " ".join(command.path)
        head = f"complete -c raftctl -n {_fish_word(f'__raftctl_at {at}'.rstrip())}"
        for option in command.options:
            lines.append(f"{head} {_fish_option(option)}")
        for below in command.commands:
            lines.append(f"{head} -a {below.name} -d {_fish_word(below.help)}")
        for positional in command.positionals:
            if positional.choices:
                lines.append(f"{head} -a {_fish_word(' '.join(positional.choices))}")
            elif positional.metavar in PATHS:
                lines.append(f"{head} -F")
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    parts = []
    for flag in option.flags:
        parts.append(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}")
    if option.choices:
        parts.append(f"-x -a {_fish_word(' '.join(option.choices))}")
    elif option.metavar in PATHS:
        parts.append("-r -F")
    elif option.metavar:
        parts.append("-x")
    parts.append(f"-d {_fish_word(option.help)}")
    return " ".join(parts)


def _fish_word(text: str) -> str:
    """In single quotes, of which fish escapes two characters only."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
