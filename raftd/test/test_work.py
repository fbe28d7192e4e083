"""
The work of a request stays within its limits (`raftd/test/work/limits.py`).

It is counted, not timed, so that nothing depends on what else the machine does.
"""

from __future__ import annotations

import posixpath
import select
import socket
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from raftd import bursts
from raftd.bursts import BurstConnection, BurstServer
from raftd.core.messages import Request, Response
from raftd.core.raft import Raft
from raftd.kv.database import Database
from raftd.kv.operations import Put
from raftd.net.peers import Peer
from raftd.node import Node
from raftd.test.work.counting import Tally
from raftd.test.work.limits import LIMITS, MARGINS
from raftd.test.work.members import Disk
from raftd.test.work.report import excesses, limit_of, source, table
from raftd.test.work.scenarios import MEANINGS, SCENARIOS, Work, measure
from raftd.test.work.wires import Boxes, Epoll, Wire
from raftd.web.routes import Routes

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


class WorkTests(SynchronousTestCase):
    """What ships, against the limits."""

    def check(self, word: str) -> None:
        scenarios = [scenario for scenario in SCENARIOS if scenario.name.startswith(word)]
        above = [
            sentence
            for scenario in scenarios
            for sentence in excesses(scenario, measure(scenario)).values()
        ]
        self.assertTrue(scenarios)
        self.assertEqual(above, [], "\n" + "\n".join(above))

    def test_a_write_on_the_leader(self) -> None:
        self.check("write, ")

    def test_a_write_through_a_follower(self) -> None:
        self.check("write through a follower, ")

    def test_a_linearizable_read(self) -> None:
        self.check("linearizable read")

    def test_a_local_read(self) -> None:
        self.check("local read, ")

    def test_every_scenario_has_its_limits(self) -> None:
        self.assertEqual([*LIMITS], [*BY_NAME])
        self.assertEqual([*MARGINS], [*Work._fields])
        self.assertEqual([*MEANINGS], [*Work._fields])

    def test_it_is_the_same_every_time(self) -> None:
        """All but memory, where Python keeps what it likes."""
        scenario = BY_NAME["write through a follower, 64 clients"]
        first, second = (measure(scenario)._replace(blocks_kept=0) for _ in range(2))
        self.assertEqual(first, second)

    def test_what_must_be(self) -> None:
        """Counts that are known without counting; of the durable ones none may be less."""
        alone, together = (measure(BY_NAME[f"write, {n}"]) for n in ("1 client", "64 clients"))
        # Of three members, each for itself.
        self.assertEqual(alone.flushes, 3)
        self.assertEqual(together.flushes, 3 / 64)
        # The request arrives and is sent on; is taken over there, and flushed, and
        # confirmed; is applied, and answered.
        self.assertGreaterEqual(alone.hops, 4)
        self.assertEqual(alone.hops, together.hops)
        # A request and an answer of each of two followers.
        self.assertGreaterEqual(alone.messages, 4)
        # Each member has each value, and each follower was sent it.
        self.assertGreater(together.disk_bytes, 3 * 256)
        self.assertGreater(together.wire_bytes, 2 * 256)
        read = measure(BY_NAME["local read, 64 clients"])
        self.assertEqual((read.messages, read.flushes, read.disk_bytes), (0, 0, 0))
        # It arrives; it is read, and the answer is sent.
        self.assertEqual((read.receives, read.sends, read.hops), (1, 1, 2))
        # One epoll tells the reactor that there is something, another tells of whom.
        self.assertEqual((read.events, read.polls, read.turns), (1 / 64, 2 / 64, 1 / 64))


def busy(size: int) -> None:
    """A library that is called for nothing, and calls two functions for each of `size`."""
    posixpath.join("", *["part"] * size)


class FailingTests(SynchronousTestCase):
    """Each count can fail: with a defect that adds to it, it is above its limit."""

    def noticed(self, name: str, *counts: str) -> None:
        scenario = BY_NAME[name]
        above = excesses(scenario, measure(scenario))
        for count in counts:
            self.assertIn(count, above)
            sentence = above[count]
            for word in (name, MEANINGS[count], "the limit is", "raftd/test/work/limits.py"):
                self.assertIn(word, sentence)

    def test_more_calls_for_a_request(self) -> None:
        handle = Routes.handle

        def handle_busily(self: Routes, request: Any) -> None:
            busy(20)
            handle(self, request)

        self.patch(Routes, "handle", handle_busily)
        self.noticed("write, 64 clients", "calls_asked")
        self.noticed("local read, 64 clients", "calls_asked")

    def test_more_calls_for_a_message(self) -> None:
        receive = Node.receive

        def receive_busily(self: Node, *arguments: Any) -> Deferred[Response]:
            busy(100)
            return receive(self, *arguments)

        self.patch(Node, "receive", receive_busily)
        self.noticed("write, 1 client", "calls_others")

    def test_a_message_a_turn_later(self) -> None:
        send = Peer.send

        def send_later(self: Peer, request: Request) -> Deferred[Response]:
            sent: Deferred[Response] = Deferred()
            self.settings.clock.callLater(0, lambda: send(self, request).chainDeferred(sent))
            return sent

        self.patch(Peer, "send", send_later)
        # The leader has that turn anyway, for its own flush: only the way is longer.
        self.noticed("write, 1 client", "hops")
        self.noticed("write, 64 clients", "hops")

    def test_a_turn_more_before_an_answer(self) -> None:
        make, handle = Routes.__init__, Routes.handle

        def make_with_clock(self: Any, version: str, clock: Any) -> None:
            make(self, version, clock)
            self.clock = clock

        def handle_later(self: Any, request: Any) -> None:
            self.clock.callLater(0, handle, self, request)

        self.patch(Routes, "__init__", make_with_clock)
        self.patch(Routes, "handle", handle_later)
        self.noticed("write, 64 clients", "turns", "hops")
        self.noticed("local read, 64 clients", "turns", "hops")

    def test_answers_in_two_pieces(self) -> None:
        write = BurstConnection.write

        def write_twice(self: BurstConnection, data: bytes) -> None:
            write(self, data[:100])
            self.send()
            write(self, data[100:])

        self.patch(BurstConnection, "write", write_twice)
        self.noticed("write, 64 clients", "sends")
        self.noticed("local read, 64 clients", "sends")

    def test_requests_in_two_pieces(self) -> None:
        self.patch(BurstServer, "bufferSize", 200)
        self.noticed("write, 64 clients", "receives")

    def test_asking_the_kernel_first(self) -> None:
        """What `raftd.bursts` is there to save, and so is what the next two put in."""
        self.patch(BurstConnection, "write", FileDescriptor.write)
        self.patch(BurstConnection, "startWriting", BurstConnection._ask)
        self.noticed("write, 1 client", "registrations")
        self.noticed("write, 64 clients", "registrations", "events")
        self.noticed("local read, 64 clients", "registrations", "events")

    def test_reading_each_connection_by_itself(self) -> None:
        """The reactor reads, and not the burst."""
        self.patch(BurstConnection, "_is_plain", False)
        self.noticed("write, 64 clients", "events")
        self.noticed("local read, 64 clients", "events", "calls_asked")

    def test_polling_for_each_connection(self) -> None:
        """A burst that reads from one, and comes again for the next."""
        self.patch(bursts, "MAX_READ_AT_ONCE", 1)
        self.noticed("write, 64 clients", "polls", "events")
        self.noticed("local read, 64 clients", "polls", "events")

    def test_an_answer_that_changes_nothing(self) -> None:
        """The node wakes up for it nevertheless, as for that of the last of the members."""
        self.patch(Raft, "wants_turn", True)
        self.noticed("write, 1 client", "calls_asked")

    def test_a_message_twice(self) -> None:
        send = Peer.send

        def send_twice(self: Peer, request: Request) -> Deferred[Response]:
            send(self, request).addErrback(lambda _: None)
            return send(self, request)

        self.patch(Peer, "send", send_twice)
        self.noticed("write, 1 client", "messages", "wire_bytes", "calls_others")
        self.noticed("write, 64 clients", "messages", "wire_bytes")
        self.noticed("linearizable read, 64 clients", "messages")

    def test_a_flush_more(self) -> None:
        write_and_flush = Disk.write_and_flush

        def flush_twice(self: Disk, fd: int, data: bytes, offset: int) -> None:
            write_and_flush(self, fd, data, offset)
            self.flush(fd)

        self.patch(Disk, "write_and_flush", flush_twice)
        for clients in ("1 client", "16 clients", "64 clients"):
            self.noticed(f"write, {clients}", "flushes")

    def test_entries_that_are_longer(self) -> None:
        change = Database.change

        def change_more(self: Database, operation: Any, *arguments: Any) -> None:
            assert isinstance(operation, Put)
            change(self, Put(operation.key, operation.value + bytes(40)), *arguments)

        self.patch(Database, "change", change_more)
        self.noticed("write, 64 clients", "disk_bytes", "wire_bytes")

    def test_what_is_kept(self) -> None:
        handle, kept = Routes.handle, []

        def handle_and_keep(self: Routes, request: Any) -> None:
            kept.append([request.path + b"?", [request.path]])
            handle(self, request)

        self.patch(Routes, "handle", handle_and_keep)
        self.noticed("write, 64 clients", "blocks_kept")
        self.noticed("local read, 64 clients", "blocks_kept")


class ReportTests(SynchronousTestCase):
    def test_a_limit_is_above_what_was_measured(self) -> None:
        for count in Work._fields:
            for value in (0.0, 3 / 64, 1.0, 99.99, 1234.5):
                self.assertGreaterEqual(limit_of(count, value), value)
        self.assertEqual(limit_of("flushes", 3.0), 3.09)
        self.assertEqual(limit_of("calls_asked", 1000.0), 1100)

    def test_limits_can_be_written_anew(self) -> None:
        # No more than its limits, of which one is nothing.
        work = Work(*(n / 10 for n in range(14)))._replace(registrations=0)
        measured = {"write, 1 client": work}
        written: dict[str, Any] = {}
        exec("from raftd.test.work.scenarios import Work\n" + source(measured), written)
        (work,) = written["LIMITS"].values()
        self.assertEqual(
            work,
            Work(*(limit_of(c, v) for c, v in measured["write, 1 client"]._asdict().items())),
        )
        lines = table(measured | {"unheard of": Work(*[1.0] * 14)})
        self.assertIn("unheard of", lines)
        self.assertIn(MEANINGS["flushes"], lines)
        self.assertNotIn("ABOVE", lines)
        self.assertIn("ABOVE", table({"write, 1 client": Work(*[1e6] * 14)}))

    def test_boxes_in_any_pieces(self) -> None:
        box = b"\x00\x04_ask\x00\x011\x00\x01d\x01\x00" + bytes(256) + b"\x00\x00"
        for size in (1, 2, 3, 100, 1000):
            boxes, stream = Boxes(), box * 5
            for at in range(0, len(stream), size):
                boxes.feed(stream[at : at + size])
            self.assertEqual(boxes.count, 5)


class WireTests(SynchronousTestCase):
    def steps(self, outer: Any, inner: Any, here: Any, there: Any, wait: Any) -> list[Any]:
        """An epoll within another, and what they tell of a socket."""
        names = {here.fileno(): "here", inner.fileno(): "inner"}
        told = []

        def look() -> None:
            wait()
            told.append([[(names[fd], e) for fd, e in p.poll(0, 9)] for p in (outer, inner)])

        inner.register(here.fileno(), select.EPOLLIN)
        outer.register(inner.fileno(), select.EPOLLIN)
        look()
        there.send(b"hello")
        look()
        look()
        here.recv(2)
        look()
        inner.modify(here.fileno(), select.EPOLLIN | select.EPOLLOUT)
        look()
        here.recv(9)
        look()
        inner.modify(here.fileno(), 0)
        look()
        inner.unregister(here.fileno())
        there.send(b"more")
        look()
        inner.register(here.fileno(), select.EPOLLIN)
        look()
        outer.unregister(inner.fileno())
        look()
        return told

    def test_epolls_are_as_those_of_the_kernel(self) -> None:
        here, there = socket.socketpair()
        outer, inner = select.epoll(), select.epoll()
        for item in (here, there, outer, inner):
            self.addCleanup(item.close)
        real = self.steps(outer, inner, here, there, lambda: None)
        wire, tally = Wire(), Tally()
        told = self.steps(Epoll(wire, tally), Epoll(wire, tally), *wire.pair(), wire.deliver)
        self.assertEqual(told, real)
        self.assertEqual((tally.polls, tally.registrations), (20, 7))

    def test_what_is_far_away_comes_later(self) -> None:
        wire = Wire()
        near, far = wire.pair()
        far.is_far = True
        near.send(b"question")
        far.send(b"answer")
        self.assertTrue(wire.deliver())
        self.assertEqual((near.unread, far.unread), (b"", b"question"))
        self.assertTrue(wire.deliver())
        self.assertEqual(near.unread, b"answer")
        self.assertFalse(wire.deliver())
