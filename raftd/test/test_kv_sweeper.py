"""A state that was replaced goes bit by bit, and not before nobody reads it."""

from __future__ import annotations

from sys import getrefcount

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Command
from raftd.kv.operations import (
    Compact,
    DeleteRange,
    GrantLease,
    Operation,
    Put,
    encode_operation,
)
from raftd.kv.store import Store
from raftd.kv.sweeper import PAUSE_S, SLICE_S, Sweeper
from raftd.store_service import StoreService

KEYS = 3000


class Slow:
    """To let go of it takes a third of a slice."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __del__(self) -> None:
        self._clock.rightNow += SLICE_S / 3 + 1e-9


class SweeperTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.sweeper = Sweeper(self.clock)

    def test_a_slice_at_a_time(self) -> None:
        self.sweeper.take([Slow(self.clock) for _ in range(10)])
        left = []
        while self.clock.getDelayedCalls():
            left.append(len(self.sweeper._containers))
            self.clock.advance(PAUSE_S)
        self.assertEqual(left, [10, 7, 4, 1])

    def test_parts_of_one_that_is_large_have_their_own_turns(self) -> None:
        """As those of a revision that changed many keys, in a chunk of revisions."""
        parts = tuple((Slow(self.clock),) for _ in range(5))
        shards = tuple({b"key": Slow(self.clock)} for _ in range(5))
        self.sweeper.take([(None, parts), [shards]])
        del parts, shards
        slices = 0
        while self.clock.getDelayedCalls():
            self.clock.advance(PAUSE_S)
            slices += 1
        self.assertEqual(slices, 4)

    def test_more_comes_meanwhile(self) -> None:
        for _ in range(2):
            self.sweeper.take([Slow(self.clock) for _ in range(4)])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.pump([PAUSE_S] * 4)
        self.assertEqual(self.sweeper._containers, [])

    def test_stop(self) -> None:
        self.sweeper.take([{}])
        self.sweeper.stop()
        self.sweeper.take([{}])
        self.assertEqual(self.sweeper._containers, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DiscardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.service = StoreService(self.clock)
        self.store = self.service.store
        self.index = 0

    def apply(self, operation: Operation) -> None:
        self.index += 1
        result = self.store.apply(self.index, 0, Command(encode_operation(operation)))
        if not isinstance(result, bytes):
            for _ in result:
                pass

    def fill(self) -> None:
        """Keys, old versions, deleted keys, keys of a lease."""
        self.apply(GrantLease(7, 60_000))
        for n in range(KEYS):
            self.apply(Put(b"%d" % (n % 2000), b"v", 7 * (n % 2)))
        self.apply(DeleteRange(b"1", b"2"))
        self.apply(Compact(self.store.revision - KEYS // 2))

    def replace(self) -> None:
        """By a state that is nearly empty."""
        other = Store()
        other.apply(1, 0, Command(encode_operation(Put(b"k", b"v"))))
        restore = self.store.restore()
        for data in other.snapshot():
            restore.write(data)
        restore.finish()

    def sweep(self) -> int:
        """In how many slices."""
        slices = 0
        while self.clock.getDelayedCalls():
            slices += 1
            self.clock.advance(PAUSE_S)
        return slices

    def test_53_nothing_goes_at_once_and_all_of_it_in_the_end(self) -> None:
        self.fill()
        record = self.store.get(b"7")
        assert record is not None
        before = getrefcount(record)
        self.replace()
        self.assertEqual(getrefcount(record), before)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.sweep()
        alone = object()
        self.assertEqual(getrefcount(record), getrefcount(alone))
        self.assertEqual(self.store.get(b"7"), None)

    def test_whoever_reads_the_old_state_reads_it_to_its_end(self) -> None:
        self.fill()
        digest, walk = self.store.digest(), self.store.digest_walk()
        next(walk)
        self.replace()
        self.assertEqual(self.sweep(), 0)
        try:
            while True:
                next(walk)
        except StopIteration as end:
            self.assertEqual(end.value, digest)
        del walk
        self.assertGreater(self.sweep(), 0)

    def test_a_service_that_stops(self) -> None:
        self.fill()
        self.replace()
        self.service.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.fill()
        self.replace()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_store_by_itself(self) -> None:
        self.store = Store()
        self.fill()
        record = self.store.get(b"7")
        self.replace()
        alone = object()
        self.assertEqual(getrefcount(record), getrefcount(alone))
