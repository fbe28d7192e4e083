"""A request of a client to a process, and how it may end without an answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from raftd.errors import OutcomeUnknown
from raftd.kv.database import Database

if TYPE_CHECKING:
    from raftd.test.simulation.clients import Clients
    from raftd.test.simulation.hosts import Process

#: How long a client waits for an answer, in seconds.
PATIENCE_S = 4.0
#: How long a message takes between a client and a node.
DELAY_S = (0.0002, 0.003)

LOST = OutcomeUnknown("The connection was lost.")


class Attempt:
    """One request to one process; ends once, whatever happens to either."""

    def __init__(
        self,
        clients: Clients,
        process: Process,
        ask: Callable[[Database, Callable[[Any], None]], None],
        done: Callable[[Any], None],
    ) -> None:
        self._clients = clients
        self._process = process
        self._done: Callable[[Any], None] | None = done
        world = clients.simulation.world
        clients.attempts[self] = process
        self._timer = world.callLater(PATIENCE_S, self.end, LOST)
        world.callLater(
            clients.delay_s(), process.clock.enter, partial(self._arrive, ask), self
        )

    def _arrive(self, ask: Callable[[Database, Callable[[Any], None]], None]) -> None:
        database = self._process.service.database
        ask(database, self._answered)

    def _answered(self, outcome: Any) -> None:
        if not self._process.clock.is_dead:
            world = self._clients.simulation.world
            world.callLater(self._clients.delay_s(), self.end, outcome)

    def end(self, outcome: Any) -> None:
        """The client has an answer, or knows that there will be none."""
        done, self._done = self._done, None
        if done is not None:
            del self._clients.attempts[self]
            if self._timer.active():
                self._timer.cancel()
            done(outcome)
