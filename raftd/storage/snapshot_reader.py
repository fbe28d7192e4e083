"""
Reading a snapshot: to send it, and to restore a state machine from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import (
    DirectoryDamaged,
    InvariantViolated,
    SnapshotDamaged,
    Stopped,
    StorageFailed,
)
from raftd.interfaces import IRestore, ISnapshotReader, IStateMachine
from raftd.storage.files import Files
from raftd.storage.frames import Damage
from raftd.storage.snapshot_files import Key, Scan, unusable
from raftd.storage.snapshot_format import BLOCK_BYTES
from raftd.storage.snapshot_thread import Reactor, SnapshotThread, ignore

T = TypeVar("T")

#: What may be asked for in one `read`.
MAX_READ_BYTES = 4 << 20

#: What is checked, or read to restore from it, in one job of the thread.
STEP_BYTES = 1 << 20

#: How long restoring may keep the reactor at a time.
RESTORE_SLICE_S = 0.003


@implementer(ISnapshotReader)
class SnapshotReader:
    """See `ISnapshotReader`; made by `SnapshotStore.open`."""

    def __init__(
        self,
        files: Files,
        path: str,
        key: Key,
        metadata: SnapshotMetadata,
        size: int,
        *,
        reactor: Reactor,
        thread: SnapshotThread,
        on_close: Callable[[SnapshotReader], None],
        on_damage: Callable[[SnapshotDamaged], None],
    ) -> None:
        self.metadata = metadata
        self.size = size
        self.key = key
        self._files = files
        self._path = path
        self._reactor = reactor
        self._thread = thread
        self._on_close = on_close
        self._on_damage = on_damage
        self._is_closed = False
        # Only the thread uses these.
        self._fd: int | None = None
        #: What has been checked of what is sent.
        self._scan: Scan | None = None

    def read(self, offset: int, size: int) -> Deferred[bytes]:
        if size > MAX_READ_BYTES:
            raise InvariantViolated(f"{size} bytes of a snapshot were asked for at once")
        return Deferred.fromCoroutine(self._read(offset, size))

    async def _read(self, offset: int, size: int) -> bytes:
        try:
            # Whoever begins again may have been sent what has changed since it was checked.
            data = await self._call(partial(self._checked, offset, size, not offset))
            while data is None:
                data = await self._call(partial(self._checked, offset, size, False))
        except SnapshotDamaged as e:
            self._on_damage(e)
            raise
        return data

    def restore(self, machine: IStateMachine) -> Deferred[None]:
        return Deferred.fromCoroutine(self._restore(machine))

    async def _restore(self, machine: IStateMachine) -> None:
        restore = machine.restore()
        scan = await self._call(lambda: Scan(self._files, self._descriptor(), self.key))
        reactor = self._reactor
        until = reactor.seconds() + RESTORE_SLICE_S
        while (blocks := await self._call(partial(scan.step, STEP_BYTES))) is not None:
            for block in blocks:
                give(restore, block, self._path)
                if reactor.seconds() >= until:
                    await self._pause()
                    until = reactor.seconds() + RESTORE_SLICE_S
        finish(restore, self._path)

    def _pause(self) -> Deferred[None]:
        """Let the reactor do something else."""
        done: Deferred[None] = Deferred()
        self._reactor.callLater(0, partial(done.callback, None))
        return done

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        ignore(self._thread.call(self._close))
        self._on_close(self)

    def _call(self, job: Callable[[], T]) -> Deferred[T]:
        if self._is_closed:
            return fail(Stopped("The snapshot is not being read any more."))
        return self._thread.call(partial(self._guarded, job))

    # -- the thread ----------------------------------------------------------

    def _checked(self, offset: int, size: int, begins: bool) -> bytes | None:
        """What is asked for if it is checked by now; else None, and a step is done."""
        try:
            if self._scan is None or begins:
                self._scan = Scan(self._files, self._descriptor(), self.key)
            scan, end = self._scan, min(offset + size, self.size)
            is_over = scan.checked < end and scan.step(STEP_BYTES) is None
            if scan.checked < end and not is_over:
                return None
            return self._files.read(self._descriptor(), size, offset)
        except Damage as e:
            raise SnapshotDamaged(
                f"{self._path} is damaged at offset {e.offset}: {e.reason}."
            ) from e
        except OSError as e:
            raise SnapshotDamaged(f"{self._path} could not be read: {e}.") from e

    def _guarded(self, job: Callable[[], T]) -> T:
        """Errors as a person can use them."""
        try:
            return job()
        except Damage as e:
            raise unusable(self._path, e) from e
        except OSError as e:
            raise StorageFailed(f"{self._path} could not be read: {e}.") from e

    def _descriptor(self) -> int:
        if self._fd is None:
            self._fd = self._files.open(self._path)
        return self._fd

    def _close(self) -> None:
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None


def give(restore: IRestore, block: bytes, path: str) -> None:
    """A block of state to the state machine, a bounded slice at a time."""
    try:
        for at in range(0, len(block), BLOCK_BYTES):
            restore.write(block[at : at + BLOCK_BYTES])
    except ValueError as e:
        raise _refused(path, e) from e


def finish(restore: IRestore, path: str) -> None:
    """All of the state has been given."""
    try:
        restore.finish()
    except ValueError as e:
        raise _refused(path, e) from e


def _refused(path: str, e: ValueError) -> DirectoryDamaged:
    """The bytes are those that were written, and the state machine cannot use them."""
    return DirectoryDamaged(
        f"The state in {path} cannot be restored: {e}. It was written for another state "
        "machine, or by a newer version of it; start the version that wrote it."
    )
