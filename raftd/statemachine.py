"""
A base for small state machines: three methods make one.

    class Counter(SimpleStateMachine):
        value = 0

        def apply_command(self, operation: bytes) -> bytes:
            self.value += int(operation)
            return b"%d" % self.value

        def get_state(self) -> bytes:
            return b"%d" % self.value

        def set_state(self, state: bytes) -> None:
            self.value = int(state)

A state that is large, or an operation that takes long, needs the whole of
`IStateMachine`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

import msgspec
from twisted.logger import Logger
from zope.interface import implementer

from raftd.core.messages import Command
from raftd.interfaces import IRestore, IStateMachine
from raftd.slices import SLICE_BYTES, Unframer, frame

#: A state up to this size, in bytes, is small: making and copying it does not
#: keep the reactor for longer than a few milliseconds.  A larger one works,
#: and is warned about each time, because heartbeats wait for it.
SMALL_STATE_BYTES = 1024 * 1024


class _Head(msgspec.Struct, tag="raftd.simple/1", array_like=True, frozen=True, gc=False):
    """The first frame of a snapshot; the state follows, in frames, `size` bytes in all."""

    size: int


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode


@implementer(IStateMachine)
class SimpleStateMachine(ABC):
    """
    A state machine with a small state (`SMALL_STATE_BYTES`) and quick operations.

    All three methods must be deterministic, as `IStateMachine` says: the same
    operations in the same order lead to the same results and the same bytes of
    state on every node, in every process.
    """

    _log = Logger()

    @abstractmethod
    def apply_command(self, operation: bytes) -> bytes:
        """
        Carry out a committed operation and return its result.

        It must not raise: a node that cannot apply what the cluster has
        committed stops.  An operation that cannot be carried out, or makes no
        sense, has a result that says so.
        """

    @abstractmethod
    def get_state(self) -> bytes:
        """
        The whole state.

        Equal states give equal bytes: sort what has no order of its own.
        """

    @abstractmethod
    def set_state(self, state: bytes) -> None:
        """
        Become what `get_state` has given, on this node or another.

        `ValueError` if it is no such state, and then nothing has changed.
        """

    # -- IStateMachine -------------------------------------------------------

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        """See `IStateMachine.apply`; override it to use the index or the leader's time."""
        return self.apply_command(command.operation)

    def snapshot(self) -> Iterator[bytes]:
        """See `IStateMachine.snapshot`."""
        # Not in the generator: it would run when the first slice is drawn.
        state = self.get_state()
        if len(state) > SMALL_STATE_BYTES:
            self._log.warn(
                "The state has {size} bytes, which is too many for a SimpleStateMachine: "
                "the node pauses for each snapshot. Implement IStateMachine instead.",
                size=len(state),
            )
        return _slices(state)

    def restore(self) -> IRestore:
        """See `IStateMachine.restore`."""
        return _SimpleRestore(self)

    def digest(self) -> bytes:
        """A SHA-256 of the state."""
        return hashlib.sha256(self.get_state()).digest()


def _slices(state: bytes) -> Iterator[bytes]:
    yield frame(_encode(_Head(len(state))))
    for start in range(0, len(state), SLICE_BYTES):
        yield frame(state[start : start + SLICE_BYTES])


@implementer(IRestore)
class _SimpleRestore:
    """The state of a `SimpleStateMachine` on its way in."""

    def __init__(self, machine: SimpleStateMachine) -> None:
        self._machine = machine
        self._frames = Unframer()
        self._size: int | None = None
        self._state = bytearray()
        self._over = False

    def write(self, data: bytes) -> None:
        """See `IRestore.write`."""
        self._frames.feed(data)
        while (content := self._frames.take()) is not None:
            if self._size is None:
                self._size = _size(content)
            elif len(self._state) + len(content) > self._size or not content:
                raise ValueError("There is more than the state.")
            else:
                self._state += content

    def finish(self) -> None:
        """See `IRestore.finish`."""
        over, self._over = self._over, True
        if (
            over
            or self._size is None
            or self._size != len(self._state)
            or self._frames.take_rest()
        ):
            raise ValueError("The state is not complete, or not its own length.")
        self._machine.set_state(bytes(self._state))


def _size(content: bytes) -> int:
    try:
        return _decode_head(content).size
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ValueError(f"Not the state of a SimpleStateMachine: {e}") from None
