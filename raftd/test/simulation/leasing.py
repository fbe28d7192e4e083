"""One who holds leases: none may end before its time, whoever leads."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from raftd.errors import DidNotHappen, LeaseNotFound, RaftdError
from raftd.kv.database import Database
from raftd.kv.operations import Put, RevokeLease
from raftd.kv.results import LeaseResult
from raftd.test.simulation.attempts import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftd.test.simulation.clients import Clients

TTL_MS = 1_000
KEEP_ALIVE_S = 0.3
#: How often a lease is kept alive before it is revoked, or left alone.
MAX_KEEP_ALIVES = 10


class LeaseHolder:
    """Grants a lease, has a key with it, keeps it alive for a while, and begins again."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._random = Random(f"leases {clients.simulation.plan.seed}")
        self._id = 0
        self._left = 0
        #: Until when, of true time, the lease cannot have ended.
        self._safe_until = 0.0
        self._began = 0.0

    def start(self) -> None:
        self._id = self._random.randrange(1, 1 << 62)
        self._left = self._random.randrange(MAX_KEEP_ALIVES)
        self._ask(lambda database, done: database.grant(TTL_MS, done, self._id), self._granted)

    def _ask(
        self,
        ask: Callable[[Database, Callable[[Any], None]], None],
        done: Callable[[Any], None],
    ) -> None:
        simulation, process = self._clients.simulation, self._clients.some_process()
        if not simulation.is_active:
            return
        self._began = simulation.world.now
        if process is None:
            simulation.world.callLater(KEEP_ALIVE_S, done, DidNotHappen("Nobody is there."))
        else:
            Attempt(self._clients, process, ask, done)

    def _renewed(self, lease: LeaseResult) -> None:
        """It lasts for so long by the leader's clock, which may be the fastest there is."""
        fastest = self._clients.simulation.plan.fastest_rate
        self._safe_until = max(self._safe_until, self._began + lease.ttl_ms / 1000 / fastest)

    def _granted(self, outcome: Any) -> None:
        if isinstance(outcome, RaftdError):
            self._later(self.start)
            return
        self._safe_until = 0.0
        self._renewed(outcome)
        key = b"lease/%d" % self._id
        self._ask(
            lambda database, done: database.change(Put(key, b"", self._id), done), self._put
        )

    def _put(self, outcome: Any) -> None:
        self._check_there(outcome)
        self._later(self._keep_alive)

    def _keep_alive(self) -> None:
        self._left -= 1
        self._ask(lambda database, done: database.keep_alive(self._id, done), self._kept)

    def _kept(self, outcome: Any) -> None:
        self._check_there(outcome)
        if isinstance(outcome, LeaseResult):
            self._renewed(outcome)
        if isinstance(outcome, LeaseNotFound):
            self._clients.simulation.count("lease expired")
            self._later(self.start)
        elif self._left > 0:
            self._later(self._keep_alive)
        elif self._random.random() < 0.5:
            self._later(self.start)
        else:
            revoke = RevokeLease(self._id)
            self._ask(
                lambda database, done: database.change(revoke, done),
                lambda outcome: self._later(self.start),
            )

    def _check_there(self, outcome: Any) -> None:
        if isinstance(outcome, LeaseNotFound):
            simulation = self._clients.simulation
            early = simulation.world.now < self._safe_until
            simulation.require(not early, f"lease {self._id} has ended before its time")

    def _later(self, act: Callable[[], None]) -> None:
        if self._clients.simulation.is_active:
            self._clients.simulation.world.callLater(KEEP_ALIVE_S, act)
