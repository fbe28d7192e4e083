"""
The server command: its options, and the service that `twist` runs.

This is the only module that sees the process: the global reactor, its clock,
signals, standard input and output, and the exit status.

`raftd` is `twist raftd --log-file raftd.log`, and nothing else (see `main`).
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NoReturn, Protocol, cast

import msgspec
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.logger import Logger, textFileLogObserver
from twisted.python import usage
from twisted.python.failure import Failure

from raftd import __version__
from raftd.clock import use_monotonic
from raftd.collector import keep_pauses_short
from raftd.console import Answers, Console, Dialogue, open_prompter
from raftd.core.settings import MIN_HEARTBEATS_PER_ELECTION_TIMEOUT
from raftd.errors import BadAnswer, Fatal, RaftdError
from raftd.interfaces import IServer, Stage
from raftd.logs import HeldLog, LogFileWriter, ObserverFactory
from raftd.names import is_address, split_name, split_names
from raftd.outlet import Outlet, stream_writer
from raftd.replica import ReplicaOptions
from raftd.store_service import StoreOptions

_log = Logger()

DEFAULTS = ReplicaOptions()
STORE_DEFAULTS = StoreOptions(keep_revisions=100_000, quota_bytes=2 << 30)

#: The most that a log may grow between two snapshots.
MAX_THRESHOLD_BYTES = 1 << 40

#: The most revisions, or seconds, that can be asked for.
MAX_REVISIONS = 1 << 53

#: The longest of any timeout that can be asked for.
MAX_TIMEOUT_MS = 3_600_000
#: The longest time that a client's request may wait.  A write that still waits
#: here must not be proposed when its idempotency key, with which it was sent to
#: another node and carried out, is forgotten (`raftd.idempotency.KEY_TTL_MS`).
MAX_REQUEST_TIMEOUT_MS = 240_000

#: How long an orderly stop may take before the process ends without it: what
#: was acknowledged is on disk already.
STOP_TIMEOUT_S = 10.0

#: How long the last lines may take to reach a slow terminal or disk.
FLUSH_TIMEOUT_S = 2.0

#: Between Python threads.  The default, 5 ms, would keep the disk's thread
#: waiting for a busy reactor many times longer than a flush takes.
SWITCH_INTERVAL_S = 0.0005

#: Where the `raftd` command logs, in the data directory.
LOG_FILE = "raftd.log"

_EXIT_USAGE = 64  # EX_USAGE of sysexits.h, as `twist` has it


# -- options -----------------------------------------------------------------


class Options(usage.Options):
    """What can be given on the command line; checked, and then in `answers`."""

    longdesc = (
        "Runs a member of a raftd cluster in the working directory. "
        "What is not given as an option is asked for; started again in the same "
        "directory with the same options, it goes on where it was."
    )

    optParameters = [  # noqa: RUF012
        ["data-dir", None, ".", "Where the member keeps its data: the directory it is."],
        ["name", None, None, "The member's name, HOST:PORT: where others reach it."],
        ["join", None, None, "Join the cluster of these members: HOST:PORT[,HOST:PORT...]."],
        ["listen", None, None, "ADDRESS:PORT to listen on, if not where the name leads."],
        ["log-file", None, None, "Write the log to this file, relative to the data directory."],
        [
            "heartbeat-interval-ms",
            None,
            DEFAULTS.heartbeat_interval_ms,
            "How often a leader makes itself heard.",
        ],
        [
            "election-timeout-ms",
            None,
            DEFAULTS.election_timeout_ms,
            "How long without a leader until an election: five heartbeats or more.",
        ],
        [
            "request-timeout-ms",
            None,
            DEFAULTS.request_timeout_ms,
            "How long a client's request may wait for a leader and a quorum.",
        ],
        [
            "snapshot-threshold-bytes",
            None,
            DEFAULTS.snapshot_threshold_bytes,
            "How much the log grows at most between two snapshots, unless the last is larger.",
        ],
        [
            "keep-revisions",
            None,
            STORE_DEFAULTS.keep_revisions,
            "How many revisions of the past stay readable; 0: all.",
        ],
        [
            "keep-history-s",
            None,
            0,
            "For how many seconds a revision of the past stays readable; 0: for any time.",
        ],
        [
            "quota-bytes",
            None,
            STORE_DEFAULTS.quota_bytes,
            "What the store may grow to, history included; 0: no bound.",
        ],
        ["restore", None, None, "With --init: begin with the backup in this file."],
        [
            "restore-ahead",
            None,
            0,
            "Move the revisions of the restored backup on by so many.",
        ],
    ]
    optFlags = [  # noqa: RUF012
        ["init", None, "Create a new cluster, of this member."],
        ["learner", None, "Join without a vote: a copy that counts for no quorum."],
        ["lease-reads", None, "Trust clocks to run alike, for reads without asking a quorum."],
        ["insecure", None, "Listen beyond loopback, though nothing is encrypted yet."],
    ]

    #: The answers to the prompts.
    answers: Answers
    #: What `twist` gives its log events to.
    log: HeldLog

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print(f"raftd {__version__}")
        sys.exit(0)

    def parseArgs(self, *args: str) -> None:
        if args:
            raise usage.UsageError(f"{args[0]!r} is not an option, and raftd takes no more.")

    def postOptions(self) -> None:
        self["data-dir"] = os.path.abspath(self["data-dir"])
        if self["restore"] is not None:
            self["restore"] = os.path.abspath(self["restore"])
        try:
            self._check_names()
        except BadAnswer as e:
            raise usage.UsageError(str(e)) from None
        for name, most in (
            ("heartbeat-interval-ms", MAX_TIMEOUT_MS),
            ("election-timeout-ms", MAX_TIMEOUT_MS),
            ("request-timeout-ms", MAX_REQUEST_TIMEOUT_MS),
        ):
            self[name] = _whole(name, self[name], most, "milliseconds")
        name = "snapshot-threshold-bytes"
        self[name] = _whole(name, self[name], MAX_THRESHOLD_BYTES, "bytes")
        for name, most, unit in (
            ("keep-revisions", MAX_REVISIONS, "revisions"),
            ("keep-history-s", MAX_REVISIONS, "seconds"),
            ("quota-bytes", MAX_THRESHOLD_BYTES, "bytes"),
            ("restore-ahead", MAX_REVISIONS, "revisions"),
        ):
            self[name] = _whole(name, self[name], most, unit, least=0)
        heartbeat, election = self["heartbeat-interval-ms"], self["election-timeout-ms"]
        if election < MIN_HEARTBEATS_PER_ELECTION_TIMEOUT * heartbeat:
            raise usage.UsageError(
                f"--election-timeout-ms {election} is below five heartbeats "
                f"(--heartbeat-interval-ms {heartbeat}): "
                "a healthy leader would be taken for dead."
            )
        self._hold_log()

    def _check_names(self) -> None:
        join: tuple[str, ...] = ()
        if self["name"] is not None:
            split_name(self["name"])
        if self["join"] is not None:
            if self["init"]:
                raise BadAnswer("--init creates a cluster and --join joins one: not both.")
            join = split_names(self["join"])
        if self["restore"] is not None and not self["init"]:
            raise BadAnswer("--restore is for a new cluster: it needs --init.")
        if self["listen"] is not None and not is_address(split_name(self["listen"])[0]):
            raise BadAnswer("--listen takes an address of this machine, like 0.0.0.0:4001.")
        self.answers = Answers(name=self["name"], initialize=bool(self["init"]), join=join)

    def _hold_log(self) -> None:
        """Put a log that can be held back in the place of the one that `twist` chose."""
        twist: dict[str, Any] = {} if self.parent is None else self.parent
        chosen: ObserverFactory = twist.get("fileLogObserverFactory", textFileLogObserver)
        self.log = HeldLog(chosen if self["log-file"] is None else textFileLogObserver)
        if "fileLogObserverFactory" in twist:
            twist["fileLogObserverFactory"] = lambda file: self.log


def _whole(name: str, given: str | int, most: int, unit: str, least: int = 1) -> int:
    try:
        value = int(given)
    except ValueError:
        value = -1
    if not least <= value <= most:
        raise usage.UsageError(
            f"--{name} takes {unit}, from {least} to {most}; {given!r} is not that."
        )
    return value


# -- the service ---------------------------------------------------------------


class LogTarget(msgspec.Struct, frozen=True):
    """
    Where the log goes once it is let go.

    `shares_terminal`: it would get between the lines of the dialogue, so it
    waits for its end; otherwise only until the directory has an identity,
    before which nothing may be left behind in it.
    """

    put: Callable[[str], bool]
    outlet: Outlet
    shares_terminal: bool


class Signals:
    """The first SIGINT or SIGTERM, and a quick way out for the second."""

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self) -> None:
        """
        Listen, in front of the reactor's own handlers, which stop it.

        One that is ignored stays so, as SIGINT is for what a shell script
        runs in the background.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:
                signal.signal(number, partial(self._received, handler))

    def _received(self, handler: Any, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            # Whoever asks twice means it; what was acknowledged is on disk.
            os._exit(128 + number)
        self.number = number
        if callable(handler):
            handler(number, frame)


class _Reactor(IReactorCore, IReactorTime):
    """What the service needs of a reactor."""


class MakeServer(Protocol):
    def __call__(self, on_fatal: Callable[[Fatal], None]) -> IServer: ...


class RaftdService(Service):
    """
    A server's life: directory, dialogue, service, end.

    The process ends with `exit(status)`: 0 if a node that served was stopped
    in order, 128 plus the number of the signal that broke off the dialogue, 1
    for anything else that went wrong, which has then been said on standard
    error.
    """

    def __init__(
        self,
        reactor: _Reactor,
        make_server: MakeServer,
        answers: Answers,
        console: Console,
        terminal: Outlet,
        log: HeldLog,
        target: LogTarget,
        signals: Signals,
        exit: Callable[[int], object],
    ) -> None:
        self._reactor = reactor
        self._server = make_server(self._fail)
        self._answers = answers
        self._console = console
        self._terminal = terminal
        self._log = log
        self._target = target
        self._signals = signals
        self._exit = exit
        self._dialogue: Deferred[None] | None = None
        self._serving = False
        self._failed = False

    # -- beginning

    def startService(self) -> None:
        """Lock the directory, at once; the rest when the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._server.open()
        except RaftdError as e:
            self._console.complain(str(e))
            self._terminal.close(FLUSH_TIMEOUT_S)
            sys.exit(1)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._end)
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        self._signals.install()
        _log.info("This is raftd {version}.", version=__version__)
        self._stage_changed()
        dialogue = Dialogue(self._server, self._console, self._answers, self._stage_changed)
        self._dialogue = Deferred.fromCoroutine(dialogue.run())
        self._dialogue.addCallbacks(self._settled, self._not_settled)

    def _settled(self, _: None) -> None:
        self._dialogue = None
        self._serving = True
        self._release_log()

    def _not_settled(self, reason: Failure) -> None:
        self._dialogue = None
        if not self.running:  # broken off by `stopService`
            self._console.end_line()
            return
        if not isinstance(reason.value, RaftdError):
            _log.failure("The dialogue failed", reason)
        self._fail(reason.value)

    # -- ending

    def _fail(self, reason: object) -> None:
        """Say why, once, and stop."""
        if not self._failed:
            self._failed = True
            if not isinstance(reason, RaftdError):
                self._console.complain(f"raftd stops: an unexpected {reason!r}")
            elif str(reason):
                self._console.complain(str(reason))
        with contextlib.suppress(ReactorNotRunning):
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Break off the dialogue if it goes on, and stop the server."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._dialogue is not None:
            self._dialogue.cancel()
        stopped = self._server.stop()
        stopped.addTimeout(STOP_TIMEOUT_S, self._reactor)
        return stopped.addErrback(self._not_stopped)

    def _not_stopped(self, reason: Failure) -> None:
        _log.failure("The server did not stop in order", reason)
        self._fail(reason.value)

    def _end(self) -> None:
        """The last lines, then the status: a reactor that was stopped has none of its own."""
        self._stage_changed()
        if not self._log.released and (severe := self._log.severe()):
            self._console.warn(severe)
        self._log.flush()
        self._target.outlet.close(FLUSH_TIMEOUT_S)
        self._terminal.close(FLUSH_TIMEOUT_S)
        self._exit(self._status())

    def _status(self) -> int:
        if self._failed:
            return 1
        if self._serving:
            return 0
        return 1 if self._signals.number is None else 128 + self._signals.number

    # -- the log

    def _stage_changed(self) -> None:
        if not self._target.shares_terminal and self._server.stage is not Stage.NEW:
            self._release_log()

    def _release_log(self) -> None:
        if not self._log.released:
            self._log.release(self._target.put)


# -- the wiring ------------------------------------------------------------------


def makeService(options: Options) -> IService:
    """The service that `twist raftd` runs in this process."""
    # Here, not above: `twist --reactor` must have had its say.
    from twisted.internet import reactor

    from raftd.server import Server, ServerOptions

    occupy_standard_descriptors()
    use_monotonic(reactor)
    keep_pauses_short(cast(_Reactor, reactor))
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    terminal = Outlet()
    say, warn = stream_writer(sys.stdout), stream_writer(sys.stderr)
    console = Console(
        open_prompter(reactor, sys.stdin).line,
        say=partial(terminal.put, say),
        warn=partial(terminal.put, warn),
        echo=sys.stdin is None or not sys.stdin.isatty(),
    )
    server_options = ServerOptions(
        data_dir=options["data-dir"],
        listen=options["listen"],
        insecure=bool(options["insecure"]),
        learner=bool(options["learner"]),
        restore=options["restore"],
        restore_ahead=options["restore-ahead"],
        store=StoreOptions(
            keep_revisions=options["keep-revisions"],
            keep_s=float(options["keep-history-s"]),
            quota_bytes=options["quota-bytes"],
        ),
        replica=ReplicaOptions(
            heartbeat_interval_ms=options["heartbeat-interval-ms"],
            election_timeout_ms=options["election-timeout-ms"],
            request_timeout_ms=options["request-timeout-ms"],
            snapshot_threshold_bytes=options["snapshot-threshold-bytes"],
            lease_reads=bool(options["lease-reads"]),
        ),
    )
    return RaftdService(
        cast(_Reactor, reactor),
        partial(Server, reactor, server_options),
        options.answers,
        console,
        terminal,
        options.log,
        _log_target(options, terminal, console),
        Signals(),
        os._exit,
    )


def _log_target(options: Options, terminal: Outlet, console: Console) -> LogTarget:
    if options["log-file"] is not None:
        path = os.path.join(options["data-dir"], options["log-file"])
        outlet = Outlet()
        writer = LogFileWriter(path, console.complain)
        return LogTarget(partial(outlet.put, writer), outlet, shares_terminal=False)
    # `twist` has chosen a file; `twistd` goes its own way.
    twist: dict[str, Any] = {} if options.parent is None else options.parent
    file = twist.get("logFile", sys.stdout)
    if file in (sys.stdout, sys.stderr):
        put = partial(terminal.put, stream_writer(file))
        return LogTarget(put, terminal, shares_terminal=True)
    outlet = Outlet()
    return LogTarget(partial(outlet.put, stream_writer(file)), outlet, shares_terminal=False)


def occupy_standard_descriptors() -> None:
    """
    Open `/dev/null` wherever standard input, output or error is closed.

    Otherwise the next file to be opened takes that number, and what some
    library prints to descriptor 2 ends up in the log of the cluster.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def main() -> None:
    """
    The `raftd` command.

    Its options are checked first, for an answer without `twist`'s usage text
    around it.  Then it runs what `python -m twisted` runs, the documented
    name for `twist`, so that there is one way only to start a server.
    """
    occupy_standard_descriptors()
    try:
        options = Options()  # type: ignore[no-untyped-call]
        options.parseOptions(sys.argv[1:])  # type: ignore[no-untyped-call]
    except usage.UsageError as e:
        print(f"raftd: {e}\nSee raftd --help.", file=sys.stderr)
        sys.exit(_EXIT_USAGE)
    sys.argv[1:1] = ["raftd", "--log-file", LOG_FILE]
    runpy.run_module("twisted", run_name="__main__", alter_sys=True)
