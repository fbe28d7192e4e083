"""One run: a cluster, its clients, the nemesis, and the judges at the end."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from raftd.test.chaos import locks
from raftd.test.chaos.clients import PAUSE_AFTER_FAILURE_S, Client, keys_of
from raftd.test.chaos.cluster import READY_S, SERVICE_S, Cluster
from raftd.test.chaos.etcd_system import EtcdSystem
from raftd.test.chaos.faults import FAULTS, impossible
from raftd.test.chaos.nemesis import Nemesis
from raftd.test.chaos.network import Loopback, Namespaces, Network
from raftd.test.chaos.nodes import Clock
from raftd.test.chaos.raftd_system import RaftdSystem
from raftd.test.chaos.rounds import Round
from raftd.test.chaos.systems import System
from raftd.test.chaos.tally import Tally, percentile
from raftd.test.chaos.watchers import Watcher, await_all
from raftd.test.judge import BadHistory, calls, judge
from raftd.test.judge.files import read_history
from raftd.test.processes import PYTHON, environment

SYSTEMS: dict[str, type[System]] = {"raftd": RaftdSystem, "etcd": EtcdSystem}

#: How long a round is, in seconds.
ROUND_S = 20.0
#: What the last key of a round, and the watches up to it, may take behind its
#: end: the longest fault, and all that may come after it.
CLOSE_S = READY_S + SERVICE_S + 60.0

WATCHERS = 2
#: Numbers of processes in a history, beside those of clients.
FIRST_WATCHER = 1_000
CLOSER = 900
AUDITOR = 901


class Plan(msgspec.Struct, frozen=True):
    """What a run is asked for."""

    system: str
    nodes: int
    seconds: float
    seed: int
    clients: int
    directory: Path
    has_namespaces: bool
    faketime: Path | None = None
    only: tuple[str, ...] = ()
    #: The package that the nodes run, if not this one.
    tree: Path | None = None
    is_verbose: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """What came of it."""

    operations: int
    faults: dict[str, int]
    skipped: dict[str, str]
    linearizable: int
    histories: int
    share_unknown: float
    without_service_s: list[float]
    held: int
    violations: list[str]

    @property
    def is_good(self) -> bool:
        return not self.violations and self.linearizable == self.histories > 0

    def __str__(self) -> str:
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        p50, p99 = (percentile(self.without_service_s, percent) for percent in (50, 99))
        return (
            f"operations {self.operations}, faults ({faults}), "
            f"linearizable {self.linearizable}/{self.histories}, "
            f"share unknown {self.share_unknown:.2%}, locks held {self.held}, "
            f"time without service p50 {p50:.2f} s p99 {p99:.2f} s, "
            f"violations {len(self.violations)}"
        )


class Run:
    """Its parts, and who is waited for."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._began_s = time.monotonic()
        self._tally = Tally()
        self._are_faults_over = threading.Event()
        #: For clients.
        self._stopping = threading.Event()
        #: For watchers, which go on when clients have ended.
        self._abandoned = threading.Event()
        self._rounds: list[Round] = []
        self._threads: list[threading.Thread] = []
        self._locker: subprocess.Popen[bytes] | None = None

    def run(self) -> Outcome:
        """From the first process to the verdict; nothing is left running."""
        plan = self._plan
        network: Network = (Namespaces if plan.has_namespaces else Loopback)(plan.nodes)
        try:
            system = SYSTEMS[plan.system](network, plan.nodes)
            library = Clock.find(plan.faketime) if plan.system == "raftd" else None
            clock = None if library is None else Clock(library, plan.directory)
            cluster = Cluster(system, network, plan.directory, self._tally, clock, plan.tree)
            try:
                self._attack(cluster)
            finally:
                self._are_faults_over.set()
                self._stopping.set()
                self._abandoned.set()
                if self._locker is not None:
                    self._locker.kill()
                    self._locker.wait()
                cluster.close()
        finally:
            network.close()
        return self._judge()

    def _attack(self, cluster: Cluster) -> None:
        """Everything at once, for as long as was asked for; then peace, and a look around."""
        plan, tally = self._plan, self._tally
        tally.skipped = impossible(cluster)
        self._note(f"{plan.nodes} nodes of {plan.system} in {cluster.network.kind}")
        for kind, why in sorted(tally.skipped.items()):
            self._note(f"without {kind}: {why}")
        cluster.start()
        self._note("started")
        if cluster.system.has_recipes:
            self._start_locks(cluster)
        until_s = time.monotonic() + plan.seconds
        self._begin_round(cluster)
        self._spawn(partial(self._turn_rounds, cluster), "rounds")
        seed = f"{plan.seed}-{os.getpid()}-{time.time_ns()}"
        for process in range(plan.clients):
            client = Client(process, seed, cluster.system, cluster.names, tally, self._stopping)
            self._spawn(partial(client.run, self._current), f"client {process}")
        kinds = [
            k for k in FAULTS if k not in tally.skipped and (not plan.only or k in plan.only)
        ]
        Nemesis(cluster, kinds, plan.seed, self._stopping, self._verbose).run(until_s)
        self._are_faults_over.set()
        self._note("the faults are over")
        for thread in self._threads:
            thread.join(CLOSE_S)
            if thread.is_alive():
                tally.violation(f"{thread.name} did not come to an end")
        self._stop_locks()
        audit(self._rounds, self._client(AUDITOR, "audit", cluster), tally)
        cluster.check_agreement()

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- rounds ------------------------------------------------------------------------

    def _current(self) -> Round:
        return self._rounds[-1]

    def _begin_round(self, cluster: Cluster) -> None:
        number = len(self._rounds)
        round_ = Round(number, self._plan.directory / f"history{number}.jsonl")
        watchers = [
            Watcher(n, round_, cluster.system, cluster.names, self._tally, self._abandoned)
            for n in range(FIRST_WATCHER, FIRST_WATCHER + WATCHERS)
        ]
        for watcher in watchers:
            threading.Thread(target=watcher.run, daemon=True).start()
        self._watchers = watchers
        self._rounds.append(round_)

    def _turn_rounds(self, cluster: Cluster) -> None:
        """A new round now and then; the old one is closed beside it."""
        is_over = False
        while not is_over:
            is_over = self._are_faults_over.wait(ROUND_S)
            old, watchers = self._rounds[-1], self._watchers
            if is_over:
                self._stopping.set()
            else:
                self._begin_round(cluster)
            self._spawn(
                partial(self._close_round, cluster, old, watchers), f"round {old.number}"
            )

    def _close_round(
        self, cluster: Cluster, round_: Round, watchers: Sequence[Watcher]
    ) -> None:
        """Put its last key, and let the watches come to it."""
        round_.wait_empty(CLOSE_S)
        closer = self._client(CLOSER, f"close-{round_.number}", cluster)
        give_up_at = time.monotonic() + CLOSE_S
        while not closer.put_last(round_):
            if time.monotonic() > give_up_at or self._abandoned.wait(0.2):
                self._tally.violation(f"the last key of round {round_.number} was never put")
                return
        if not await_all(watchers, CLOSE_S):
            self._tally.violation(f"a watch of round {round_.number} never came to its end")

    def _client(self, process: int, name: str, cluster: Cluster) -> Client:
        """One that goes on when the others have ended."""
        return Client(
            process,
            f"{name}-{self._plan.seed}-{time.time_ns()}",
            cluster.system,
            cluster.names,
            self._tally,
            self._abandoned,
        )

    # -- locks -------------------------------------------------------------------------

    @property
    def _lock_file(self) -> Path:
        return self._plan.directory / "locks.jsonl"

    def _start_locks(self, cluster: Cluster) -> None:
        with (
            self._lock_file.open("wb") as out,
            (self._plan.directory / "locks.log").open("wb") as log,
        ):
            self._locker = subprocess.Popen(
                [
                    *(PYTHON, "-m", "raftd.test.chaos.locks", str(self._plan.seed)),
                    *cluster.names,
                ],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                env=environment(),
            )

    def _stop_locks(self) -> None:
        if self._locker is None:
            return
        if self._locker.poll() is not None:
            self._tally.violation("the users of the lock ended before their time")
        self._locker.kill()
        self._locker.wait()

    # -- the end -------------------------------------------------------------------------

    def _judge(self) -> Outcome:
        """Each history by itself, and the locks."""
        tally, good = self._tally, 0
        self._note(f"{tally.operations} operations are judged")
        for round_ in self._rounds:
            try:
                judgement = judge(read_history(round_.path))
            except BadHistory as e:
                tally.violation(f"{round_.path.name}: {e}")
                continue
            good += judgement.is_good
            if not judgement.is_good:
                lines = "\n  ".join(judgement.reasons)
                tally.violation(f"{round_.path.name}: {judgement.verdict.value}\n  {lines}")
        return Outcome(
            operations=tally.operations,
            faults=dict(tally.faults),
            skipped=tally.skipped,
            linearizable=good,
            histories=len(self._rounds),
            share_unknown=tally.share_unknown,
            without_service_s=tally.without_service_s(),
            held=self._judge_locks(),
            violations=tally.violations,
        )

    def _judge_locks(self) -> int:
        if self._locker is None:
            return 0
        events = locks.read(self._lock_file.read_bytes())
        verdict = locks.judge(events, self._tally.clocks_differed)
        for text in verdict.wrong:
            self._tally.violation(f"locks: {text}")
        if not verdict.held:
            self._tally.violation("nobody ever held the lock")
        return verdict.held

    def _note(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began_s:7.2f} s  {text}")

    def _verbose(self, text: str) -> None:
        with (self._plan.directory / "faults.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic() - self._began_s:7.2f} s  {text}\n")
        if self._plan.is_verbose:
            self._note(text)


def audit(rounds: Iterable[Round], reader: Client, tally: Tally) -> None:
    """
    Read all keys of all rounds once more, into their histories, which end with that.

    What was there when a round was over may have been lost since.
    """
    for round_ in rounds:
        give_up_at = time.monotonic() + SERVICE_S
        for key in keys_of(round_):
            while reader.ask(round_, calls.Get(key)) is None:
                if time.monotonic() > give_up_at:
                    tally.violation(f"{key} could not be read in the end")
                    break
                time.sleep(PAUSE_AFTER_FAILURE_S)
        round_.close()
