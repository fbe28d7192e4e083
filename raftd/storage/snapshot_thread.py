"""The thread of a store of snapshots, as the reactor sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed

from raftd.errors import Stopped
from raftd.storage.workers import Worker

T = TypeVar("T")


class Reactor(Protocol):
    """What a store needs of a reactor."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., object], /) -> object: ...

    def callFromThread(self, callable: Callable[..., object], /, *args: object) -> object: ...


class SnapshotThread:
    """Runs jobs one after the other on a thread that is started when it is first needed."""

    def __init__(self, reactor: Reactor, start_worker: Callable[[str], Worker]) -> None:
        self._reactor = reactor
        self._start_worker = start_worker
        self._worker: Worker | None = None
        self._closed = False

    def call(self, job: Callable[[], T]) -> Deferred[T]:
        """Fires with what `job` returns, or fails with what it raises."""
        if self._closed:
            return fail(Stopped("The snapshots are closed."))
        if self._worker is None:
            self._worker = self._start_worker("raftd snapshots")
        done: Deferred[T] = Deferred()

        def run() -> None:
            try:
                result = job()
            except BaseException as e:
                self._reactor.callFromThread(done.errback, e)
            else:
                self._reactor.callFromThread(done.callback, result)

        self._worker.do(run)
        return done

    def close(self) -> Deferred[None]:
        """No job is taken any more; fires when all have been done."""
        if self._worker is None:
            self._closed = True
            return succeed(None)
        done = self.call(lambda: None)
        self._closed = True
        self._worker.quit()
        return done


def ignore(deferred: Deferred[T]) -> None:
    """Nobody is interested in how it ends."""
    deferred.addErrback(lambda failure: None)
