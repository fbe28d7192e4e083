"""One who writes by a session (thesis 6.3), which sends again by itself what was lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from raftd.errors import DidNotHappen, OutcomeUnknown, RaftdError
from raftd.kv.database import Database
from raftd.kv.operations import Put, encode_operation
from raftd.kv.results import PutResult, decode_result
from raftd.session_client import Session
from raftd.test.judge import calls
from raftd.test.simulation.asking import KEYS
from raftd.test.simulation.attempts import Attempt

if TYPE_CHECKING:
    from raftd.test.simulation.clients import Clients
    from raftd.test.simulation.hosts import Process

#: How long a session tries, in seconds; less than its client waits for it.
TRIED_FOR_S = 3.5
#: So many writes at most are made by one session.
MAX_WRITES = 12

Done = Callable[[Any], None]


class SessionHolder:
    """Opens a session, writes some values one after the other, and opens another."""

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients = clients
        self._number = number
        self._random = Random(f"session {clients.simulation.plan.seed}")
        self._left = 0

    def start(self) -> None:
        """Open a session, as long as anything is begun."""
        clients = self._clients
        if not clients.simulation.is_active:
            return
        process = clients.some_process()
        if process is None:
            self._later(self.start)
            return

        def ask(database: Database, done: Done) -> None:
            opening = Session.open(
                process.node,
                process.reactor,
                timeout_s=TRIED_FOR_S,
                jitter=self._random.random,
            )
            opening.addCallbacks(done, partial(_failed, done))

        Attempt(clients, process, ask, partial(self._opened, process))

    def _opened(self, process: Process, outcome: Any) -> None:
        if isinstance(outcome, RaftdError):
            self._later(self.start)
        else:
            self._clients.simulation.count("session")
            self._left = self._random.randint(1, MAX_WRITES)
            self._write(process, outcome)

    def _write(self, process: Process, session: Session) -> None:
        clients = self._clients
        if not clients.simulation.is_active:
            return
        clients.last_value += 1
        key, value = self._random.choice(KEYS), str(clients.last_value)
        operation = encode_operation(Put(key.encode(), value.encode()))
        clients.recorder.invoke(self._number, calls.Put(key, value))

        def ask(database: Database, done: Done) -> None:
            writing: Deferred[bytes] = session.propose(operation, TRIED_FOR_S)
            writing.addCallbacks(lambda data: done(decode_result(data)), partial(_failed, done))

        Attempt(clients, process, ask, partial(self._written, process, session))

    def _written(self, process: Process, session: Session, outcome: Any) -> None:
        recorder, simulation = self._clients.recorder, self._clients.simulation
        if isinstance(outcome, PutResult):
            result = calls.Result(created=outcome.created, revision=outcome.revision)
            recorder.ok(self._number, result)
            self._left -= 1
            if self._left:
                self._later(partial(self._write, process, session))
                return
        elif isinstance(outcome, DidNotHappen):
            recorder.fail(self._number, type(outcome).__name__)
        else:
            explained = isinstance(outcome, OutcomeUnknown)
            simulation.require(explained, f"a session was told {outcome!r}")
            recorder.unknown(self._number, type(outcome).__name__)
        self._later(self.start)

    def _later(self, act: Callable[[], None]) -> None:
        simulation = self._clients.simulation
        simulation.world.callLater(self._random.uniform(0.0, 4 * simulation.plan.think_s), act)


def _failed(done: Done, failure: Failure) -> None:
    done(failure.value)
