"""
The store on one node, put together: the state machine, and what runs beside it.

    service = StoreService(reactor)
    replica = Replica(reactor, "data", service.machine, on_running=service.run)

`service.database` is there as soon as the node runs.
"""

from __future__ import annotations

import msgspec
from twisted.internet.interfaces import IReactorTime

from raftd.errors import BadAnswer, NotRunning, RaftdError
from raftd.idempotency import Idempotency
from raftd.kv.backup import restore_backup
from raftd.kv.checker import INTERVAL_S, Checker
from raftd.kv.compactor import Compactor
from raftd.kv.database import Database
from raftd.kv.lease_keeper import LeaseKeeper
from raftd.kv.operations import SetQuota
from raftd.kv.results import Result, is_temporary
from raftd.kv.store import Store
from raftd.kv.sweeper import Sweeper
from raftd.kv.tenure import Tenure
from raftd.kv.watches import WatchHub
from raftd.node import Node


class StoreOptions(msgspec.Struct, frozen=True):
    """
    What the leader does for the store; the same for all members, by convention.

    `election_timeout_ms` is that of the node.  `keep_revisions` and `keep_s` as
    of a `Compactor`, 0 for any number and of any age.  `quota_bytes` as of
    `SetQuota`; None leaves what is there.  `check_interval_s` as of a `Checker`.
    """

    election_timeout_ms: int = 600
    keep_revisions: int = 0
    keep_s: float = 0.0
    quota_bytes: int | None = None
    check_interval_s: float = INTERVAL_S


class StoreService:
    """
    One node's store.

    Invariant: the duties of a leader are begun only while a tenure lasts.
    """

    def __init__(self, clock: IReactorTime, options: StoreOptions | None = None) -> None:
        self._clock = clock
        self._options = options or StoreOptions()
        self.store = Store()
        self._sweeper = Sweeper(clock)
        self.store.on_discard = self._sweeper.take
        #: The state machine for the node.
        self.machine = Idempotency(self.store, is_temporary)
        self._running: _Running | None = None

    @property
    def database(self) -> Database:
        """The database; `NotRunning` until the node runs."""
        if self._running is None:
            raise NotRunning("The node is not running yet.")
        return self._running.database

    def restore(self, path: str, ahead: int = 0) -> None:
        """
        Before it runs: take over the backup in the file `path`; `ahead` as of
        `Store.restore`.  Blocks.  `BadAnswer` if that is none.
        """
        try:
            with open(path, "rb") as file:
                restore_backup(file, path, self.store.restore(ahead))
        except OSError as e:
            raise BadAnswer(f"{path} could not be read: {e.strerror}.") from None

    def run(self, node: Node) -> None:
        """`node`, which has `machine`, begins to run; called once."""
        self._running = _Running(self._clock, self._options, node, self.machine, self.store)

    def stop(self) -> None:
        """The node stops: no timer is left."""
        if self._running is not None:
            self._running.stop()
        self.store.on_discard = None
        self._sweeper.stop()


class _Running:
    """What runs beside a node."""

    def __init__(
        self,
        clock: IReactorTime,
        options: StoreOptions,
        node: Node,
        machine: Idempotency,
        store: Store,
    ) -> None:
        self._store = store
        self._quota_bytes = options.quota_bytes
        self._hub = WatchHub(store, clock)
        self.database = Database(
            clock,
            node,
            machine,
            store,
            self._hub,
            options.election_timeout_ms,
            digest=lambda: self._checker.status,
        )
        self._keeper = LeaseKeeper(clock, node, store)
        self._checker = Checker(clock, store, self.database.change, options.check_interval_s)
        self._compactor = Compactor(
            clock, self.database, options.keep_revisions, options.keep_s
        )
        self._tenure = Tenure(clock, node, self._begin, self._end)
        node.on_question = self._keeper.answer
        self._forget_node = node.observe(self._tenure.observe)

    def _begin(self) -> None:
        self._keeper.begin()
        self._checker.begin()
        self._compactor.begin()
        quota_bytes = self._quota_bytes
        if quota_bytes is not None and quota_bytes != self._store.quota_bytes:
            self.database.change(SetQuota(quota_bytes), _ignore)

    def _end(self) -> None:
        self._keeper.end()
        self._checker.end()
        self._compactor.end()

    def stop(self) -> None:
        self._forget_node()
        self._tenure.stop()
        self._checker.stop()
        self.database.stop()
        self._hub.close()


def _ignore(outcome: Result | RaftdError) -> None:
    """If the quota could not be set now, the next leader does it."""
