"""
Clients: what they ask, and what they remember of it for the judge.

A client has one request under way.  When a write with an idempotency key has
been lost it is sent again under the same key, to whatever node, as a program
does; without one its outcome stays unknown.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from raftd.errors import DidNotHappen, OutcomeUnknown, RaftdError
from raftd.idempotency import retry_of
from raftd.kv.operations import Compact
from raftd.test.cores import check
from raftd.test.judge.history import Line, Recorder
from raftd.test.simulation.asking import Asked, draw
from raftd.test.simulation.attempts import DELAY_S, LOST, Attempt
from raftd.test.simulation.leasing import LeaseHolder
from raftd.test.simulation.sessions import SessionHolder
from raftd.test.simulation.watching import Watcher

if TYPE_CHECKING:
    from raftd.test.simulation.hosts import Process
    from raftd.test.simulation.run import Simulation

#: How often a write with an idempotency key is sent, and how soon again, in seconds.
MAX_ATTEMPTS = 5
RETRY_S = 0.2
WATCHERS = 2
#: How often the past of the store is compacted, and what is left of it, in revisions.
COMPACT_EVERY_S = 0.7
KEPT_REVISIONS = 15


class Clients:
    """
    All of them, and the history that they make: `lines`.

    `judged` counts the operations whose outcome is known.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        plan = simulation.plan
        self.random = Random(f"clients {plan.seed}")
        self.lines: list[Line] = []
        self.recorder = Recorder(simulation.world.seconds, self.lines.append)
        self.attempts: dict[Attempt, Process] = {}
        self.last_value = 0
        #: No revision that was acknowledged is above it.
        self.revision = 0
        #: Nobody asked for more to be compacted.
        self.compacted = 0
        self.known = self.unknown = self.refused = 0
        self._clients = [Client(self, number) for number in range(plan.clients)]
        first = plan.clients
        self.watchers = [Watcher(self, first + number) for number in range(WATCHERS)]
        self._holder = LeaseHolder(self)
        self._session_holder = SessionHolder(self, first + WATCHERS)

    def start(self) -> None:
        world = self.simulation.world
        starts = [client.start for client in self._clients]
        starts += [watcher.start for watcher in self.watchers]
        starts += [self._holder.start, self._session_holder.start]
        for start in starts:
            world.callLater(self.random.uniform(0.0, 0.5), start)
        world.callLater(COMPACT_EVERY_S, self._compact)

    def delay_s(self) -> float:
        return self.random.uniform(*DELAY_S)

    def lost(self, process: Process) -> None:
        """The connections to a process are reset."""
        for attempt, where in list(self.attempts.items()):
            if where is process:
                self.simulation.world.callLater(self.delay_s(), attempt.end, LOST)
        for watcher in self.watchers:
            watcher.lost(process)

    def some_process(self) -> Process | None:
        """Any that runs; clients do not know which of them is any good."""
        running = self.simulation.processes()
        return self.random.choice(running) if running else None

    def _compact(self) -> None:
        simulation, process = self.simulation, self.some_process()
        if not simulation.is_active:
            return
        simulation.world.callLater(COMPACT_EVERY_S, self._compact)
        revision = self.revision - KEPT_REVISIONS
        if process is not None and revision > 0:
            self.compacted = max(self.compacted, revision)
            Attempt(
                self,
                process,
                lambda database, done: database.change(Compact(revision), done),
                lambda outcome: simulation.count("compaction", not _failed(outcome)),
            )


class Client:
    """One that reads and writes."""

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients = clients
        self._number = number
        self._random = Random(f"client {clients.simulation.plan.seed} {number}")
        self._process: Process | None = None
        self._operations = 0
        self._attempts = 0
        self._retry = b""
        #: An attempt of this operation may have been carried out.
        self._may_have_happened = False
        self._floor = 0
        self._asked: Asked

    def start(self) -> None:
        """Begin the next operation, as long as there are any."""
        clients = self._clients
        if not clients.simulation.is_active:
            return
        if not clients.simulation.processes():
            self._rest()
            return
        self._operations += 1
        clients.last_value += 1
        self._asked = draw(self._random, clients.last_value)
        self._attempts, self._may_have_happened = 0, False
        self._retry = b""
        if not self._asked.is_read and self._random.random() < 0.5:
            name = f"{self._number}.{self._operations}".encode()
            self._retry = retry_of(name, "POST", b"/", name)
        self._floor = clients.revision
        clients.recorder.invoke(self._number, self._asked.call)
        self._attempt()

    def _rest(self) -> None:
        clients = self._clients
        think_s = self._random.uniform(0.0, 2 * clients.simulation.plan.think_s)
        clients.simulation.world.callLater(think_s, self.start)

    def _attempt(self) -> None:
        self._attempts += 1
        process = self._process
        if process is None or process.clock.is_dead or self._random.random() < 0.1:
            process = self._process = self._clients.some_process()
        if process is None:
            self._ended(DidNotHappen("Nobody is there."))
            return
        ask = partial(self._asked.ask, retry=self._retry)
        Attempt(self._clients, process, ask, self._ended)

    def _ended(self, outcome: Any) -> None:
        clients, simulation = self._clients, self._clients.simulation
        if not _failed(outcome):
            self._succeeded(outcome)
            return
        known = isinstance(outcome, DidNotHappen)
        simulation.require(
            known or isinstance(outcome, OutcomeUnknown), f"a client was told {outcome!r}"
        )
        self._process = None
        self._may_have_happened |= not known
        if self._retry and self._attempts < MAX_ATTEMPTS and simulation.is_active:
            simulation.count("retry")
            simulation.world.callLater(self._random.uniform(0, RETRY_S), self._attempt)
        elif self._may_have_happened and not self._asked.is_read:
            clients.unknown += 1
            clients.recorder.unknown(self._number, type(outcome).__name__)
            self._rest()
        else:
            clients.refused += 1
            clients.recorder.fail(self._number, type(outcome).__name__)
            self._rest()

    def _succeeded(self, outcome: Any) -> None:
        clients = self._clients
        clients.known += 1
        revision = getattr(outcome, "revision", None)
        if revision is not None:
            floor = self._floor + self._asked.must_change
            text = f"{self._asked.call} was answered as of {revision}, after {self._floor}"
            check(revision >= floor, text)
            clients.revision = max(clients.revision, revision)
        clients.recorder.ok(self._number, self._asked.result(outcome))
        self._rest()


def _failed(outcome: Any) -> bool:
    return isinstance(outcome, RaftdError)
