"""The `raftctl` command: from what was typed to an exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from raftd.ctl.arguments import UsageError, make_parser, parse

_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Carry out what was typed, and exit."""
    try:
        _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        _die_of(signal.SIGINT)
    except BrokenPipeError:
        _die_of(signal.SIGPIPE)


def _main(typed: Sequence[str]) -> NoReturn:
    parser = make_parser()
    try:
        arguments = parse(typed, parser)
    except UsageError as e:
        print(f"raftctl: {e} See {e.command} --help.", file=sys.stderr)
        sys.exit(_USAGE)
    if arguments.version:
        from raftd._version import __version__

        print(f"raftctl {__version__.public()}")
        sys.exit(0)
    if arguments.command is None:
        print("raftctl: A command is missing. See raftctl --help.", file=sys.stderr)
        sys.exit(_USAGE)
    if arguments.command == "completion":
        from raftd.ctl.completion import script
        from raftd.ctl.tree import tree_of

        print(script(arguments.shell, tree_of(parser)), end="", flush=True)
        sys.exit(0)

    # Here, not above: what does not ask a cluster need not wait for Twisted.
    from twisted.internet.task import react

    from raftd.ctl import running

    ended = running.Ended()
    try:
        react(running.main, (arguments, ended))
    except SystemExit as e:
        if e.code:
            from raftd.ctl.statuses import DEFECT

            sys.exit(DEFECT)  # the log on standard error has said how
    if ended.signal is not None:
        _die_of(ended.signal)
    if ended.become is not None:
        sys.stdout.flush()
        os.execv(ended.become[0], ended.become)
    sys.exit(ended.status)


def _die_of(number: int) -> NoReturn:
    """End as one whom a signal has ended, which a shell wants to know."""
    # What is left in the buffers has nobody to go to.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
