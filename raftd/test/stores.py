"""For tests: a cluster in memory whose nodes have stores, with all that runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftd.errors import RaftdError
from raftd.idempotency import Idempotency
from raftd.kv.database import Database
from raftd.kv.interfaces import LINEARIZABLE
from raftd.kv.operations import Operation, Put
from raftd.kv.results import KeyValue, is_temporary
from raftd.kv.store import Store
from raftd.replica import ReplicaOptions
from raftd.store_service import StoreOptions, StoreService
from raftd.test.drivers import Answer
from raftd.testing import Cluster


class StoreMachine(Idempotency):
    """The state machine of one start of a node; its service comes when the node runs."""

    def __init__(self) -> None:
        self.store = Store()
        super().__init__(self.store, is_temporary)


class StoreCluster(Cluster[StoreMachine]):
    """`databases` has those of the nodes that run."""

    def __init__(self, size: int, *, seed: int = 0, **options: Any) -> None:
        self.store_options: dict[str, Any] = options.pop("store", {})
        self.services: dict[str, StoreService] = {}
        super().__init__(size, StoreMachine, seed=seed, options=ReplicaOptions(**options))

    def _start(self, name: str) -> Any:
        node = super()._start(name)
        options = StoreOptions(
            election_timeout_ms=self.options.election_timeout_ms, **self.store_options
        )
        service = self.services[name] = StoreService(self.clock, options)
        service.machine = self.machines[name]
        service.store = self.machines[name].store
        service.run(node)
        return node

    def _dies(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.services.pop(name).stop()
        super()._dies(name, *args, **kwargs)

    def stop(self, name: str) -> None:
        service = self.services.pop(name)
        super().stop(name)
        service.stop()

    def database(self, name: str) -> Database:
        return self.services[name].database

    # -- asking, and letting time pass until there is an answer ---------------

    def ask(self, question: Callable[[Any], None]) -> Answer[Any]:
        """Ask; the answer may come later."""
        answer: Answer[Any] = Answer()
        question(answer)
        return answer

    def got(self, question: Callable[[Any], None], timeout_s: float = 30.0) -> Any:
        """The answer; its error is raised."""
        answer = self.ask(question)
        self.advance_until(lambda: answer.given, timeout_s)
        if isinstance(answer.outcome, RaftdError):
            raise answer.outcome
        return answer.outcome

    def change(self, name: str, operation: Operation, retry: bytes = b"") -> Any:
        return self.got(lambda done: self.database(name).change(operation, done, retry))

    def put(self, name: str, key: bytes, value: bytes = b"", lease: int = 0) -> Any:
        return self.change(name, Put(key, value, lease))

    def get(self, name: str, key: bytes, max_staleness_s: float = LINEARIZABLE) -> Any:
        found: KeyValue | None = self.got(
            lambda done: self.database(name).get(key, max_staleness_s, done)
        )
        return None if found is None else found.value
