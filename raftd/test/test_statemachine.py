"""The base of small state machines, and the frames that states are written in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyClass, verifyObject

from raftd.core.messages import Command
from raftd.interfaces import IRestore, IStateMachine
from raftd.slices import SLICE_BYTES, Unframer, frame
from raftd.statemachine import SMALL_STATE_BYTES, SimpleStateMachine


class Counter(SimpleStateMachine):
    """The example of the module's docstring."""

    value = 0

    def apply_command(self, operation: bytes) -> bytes:
        self.value += int(operation)
        return b"%d" % self.value

    def get_state(self) -> bytes:
        return b"%d" % self.value

    def set_state(self, state: bytes) -> None:
        self.value = int(state)


class Blob(SimpleStateMachine):
    """The state is the last operation."""

    state = b""

    def apply_command(self, operation: bytes) -> bytes:
        self.state = operation
        return b""

    def get_state(self) -> bytes:
        return self.state

    def set_state(self, state: bytes) -> None:
        self.state = state


@implementer(ILogObserver)
class Observer:
    """The sizes of the states that were warned about."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.warn:
            self.sizes.append(event["size"])


def restore(machine: SimpleStateMachine, data: bytes, size: int = 1 << 30) -> None:
    restoring = machine.restore()
    for start in range(0, len(data), size):
        restoring.write(data[start : start + size])
    restoring.finish()


class Simple(SynchronousTestCase):
    def test_interfaces(self) -> None:
        self.assertTrue(verifyClass(IStateMachine, SimpleStateMachine))
        self.assertTrue(verifyObject(IStateMachine, Counter()))
        self.assertTrue(verifyObject(IRestore, Counter().restore()))

    def test_three_methods_make_a_state_machine(self) -> None:
        counter = Counter()
        self.assertEqual(counter.apply(1, 0, Command(b"5")), b"5")
        self.assertEqual(counter.apply(2, 0, Command(b"-7")), b"-2")
        other = Counter()
        self.assertNotEqual(other.digest(), counter.digest())
        restore(other, b"".join(counter.snapshot()))
        self.assertEqual((other.value, other.digest()), (-2, counter.digest()))

    def test_31_a_snapshot_is_of_the_moment_of_its_call(self) -> None:
        """Not of the moment when its first slice is drawn."""
        counter = Counter()
        snapshot = counter.snapshot()
        counter.apply(1, 0, Command(b"1"))
        other = Counter()
        other.value = 9
        restore(other, b"".join(snapshot))
        self.assertEqual(other.value, 0)

    @settings(derandomize=True, max_examples=50, deadline=None)
    @given(
        st.sampled_from([0, 1, SLICE_BYTES, SLICE_BYTES + 1, 5 * SLICE_BYTES]),
        st.integers(1, 100_000),
    )
    def test_states_of_any_length_in_pieces_of_any_length(self, length: int, size: int) -> None:
        blob, other = Blob(), Blob()
        blob.state = bytes(n % 251 for n in range(length))
        slices = list(blob.snapshot())
        self.assertLessEqual(max(map(len, slices)), SLICE_BYTES + 4)
        restore(other, b"".join(slices), max(size, length // 1000))
        self.assertEqual(other.state, blob.state)

    def test_43_what_is_cut_short_too_long_or_something_else_is_refused(self) -> None:
        for state in (b"", b"the state"):
            blob = Blob()
            blob.state = state
            data = b"".join(blob.snapshot())
            other = Blob()
            other.state = b"before"
            for bad in (
                *(data[:end] for end in range(len(data))),
                data + b"\0",
                data + frame(b""),
                data + frame(b"more"),
                b"\xff" * 9,
                frame(b"\x92\xa1x\x00"),
            ):
                self.assertRaises(ValueError, restore, other, bad)
                self.assertEqual(other.state, b"before")
            restoring = other.restore()
            restoring.write(data)
            self.assertEqual(other.state, b"before")
            restoring.finish()
            self.assertRaises(ValueError, restoring.finish)
            self.assertEqual(other.state, state)

    def test_a_refusal_of_set_state_is_passed_on(self) -> None:
        blob = Blob()
        blob.state = b"no number"
        self.assertRaises(ValueError, restore, Counter(), b"".join(blob.snapshot()))

    def test_a_large_state_is_warned_about(self) -> None:
        observer = Observer()
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        sizes = observer.sizes
        blob = Blob()
        blob.state = b"x" * SMALL_STATE_BYTES
        list(blob.snapshot())
        self.assertEqual(sizes, [])
        blob.state += b"x"
        data = b"".join(blob.snapshot())
        self.assertEqual(sizes, [SMALL_STATE_BYTES + 1])
        other = Blob()
        restore(other, data)
        self.assertEqual(other.state, blob.state)


class Frames(SynchronousTestCase):
    def test_the_format(self) -> None:
        self.assertEqual(frame(b"abc"), b"\3\0\0\0abc")
        self.assertEqual(frame(b""), b"\0\0\0\0")

    @settings(derandomize=True, max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=20), max_size=10), st.integers(1, 30))
    def test_frames_come_back_however_they_are_cut(
        self, contents: list[bytes], size: int
    ) -> None:
        data = b"".join(map(frame, contents)) + b"\7\0\0"
        frames, found = Unframer(), []
        for start in range(0, len(data), size):
            frames.feed(data[start : start + size])
            while (content := frames.take()) is not None:
                found.append(content)
        self.assertEqual(found, contents)
        self.assertEqual((frames.take_rest(), frames.take_rest()), (b"\7\0\0", b""))
