"""Watches of the client: each revision once, in order, and nothing left behind."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed

from raftd.client import Changes, Unreachable, Watch
from raftd.client import events as events_module
from raftd.client.events import EventParser, ServerSentEvent
from raftd.client.requester import ATTEMPT_TIMEOUT_S, MAX_PAUSE_S
from raftd.client.watching import CHECK_S, MAX_WAITING, SILENCE_S
from raftd.errors import BadRequest, Compacted, Stopped
from raftd.test.clientrig import ClientCase, FakeResponse

STREAM = "text/event-stream"
PROBE = f"/db/%00?max_staleness_ms={CHECK_S * 1000:.0f}"


def event(revision: int, *keys: str) -> bytes:
    """A revision that has put these keys."""
    puts = [
        {"type": "put", "key": key, "value": "v", "create_revision": 2,
         "mod_revision": revision, "version": 1}
        for key in keys or ("k",)
    ]  # fmt: skip
    data = json.dumps({"revision": revision, "events": puts})
    return f"id: {revision}\ndata: {data}\n\n".encode()


class ParserTests(SynchronousTestCase):
    def fed(self, *pieces: bytes) -> list[ServerSentEvent]:
        parser = EventParser()
        return [event for piece in pieces for event in parser.feed(piece)]

    def test_fields(self) -> None:
        stream = (
            b": a comment\n\nid: 7\n\nid: 8\ndata: a\ndata:b\ndata:  c\nretry: 5\n\n"
            b"event: compacted\ndata: {}\n\ndata\n\n"
        )
        expected = [
            ("7", "", b""),
            ("8", "", b"a\nb\n c"),
            ("", "compacted", b"{}"),
            ("", "", b""),
        ]
        self.assertEqual(self.fed(stream), expected)

    @settings(derandomize=True, max_examples=200, deadline=None)
    @given(st.data())
    def test_it_does_not_matter_where_it_is_cut(self, data: st.DataObject) -> None:
        stream = b"".join(event(r, "a", "b") for r in range(2, 6)) + b":\n\nid: 9\n\nid: 1"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        whole = self.fed(stream)
        self.assertEqual(self.fed(*pieces), whole)
        self.assertEqual([e.id for e in whole], ["2", "3", "4", "5", "9"])

    def test_one_that_is_too_long(self) -> None:
        self.patch(events_module, "MAX_EVENT_BYTES", 1000)
        for pieces in ((b"data: " + b"x" * 2000,), (b"data: x\n" * 1001,), (b"x" * 500,) * 3):
            self.assertRaises(ValueError, self.fed, *pieces)
        self.assertEqual(len(self.fed(*[b"data: " + b"x" * 900 + b"\n\n"] * 50)), 50)


class WatchCase(ClientCase):
    def watch(self, revision: int = 0) -> Watch:
        return self.client.watch("k", revision=revision)

    def stream(self, count: int, last_id: int = 1) -> FakeResponse:
        """Begin to answer the request of this number, as servers do."""
        response = self.last(count).begin(200, Content_Type=STREAM)
        response.data(b"id: %d\n\n" % last_id)
        return response

    def take(self, watch: Watch) -> Deferred[Changes]:
        return Deferred.fromCoroutine(watch.__anext__())

    def taken(self, watch: Watch) -> int:
        return self.successResultOf(self.take(watch)).revision

    def cut(self, response: FakeResponse) -> None:
        response.end(ResponseFailed([Failure(ConnectionLost())]))

    def assertOver(self, watch: Watch) -> None:
        self.failureResultOf(self.take(watch), StopAsyncIteration)
        self.assertQuiet()


class ResumeTests(WatchCase):
    def test_what_comes(self) -> None:
        watch = self.watch(revision=5)
        asked = self.last(1)
        self.assertEqual(asked.target, "/db/k?watch&revision=5")
        self.assertEqual(asked.header("Accept"), STREAM)
        started, first = watch.started(), self.take(watch)
        response = self.stream(1, 4)
        self.assertEqual(self.successResultOf(started), 4)
        self.assertNoResult(first)
        response.data(event(5) + event(7, "k", "l"))
        changes = self.successResultOf(first)
        self.assertEqual((changes.revision, len(changes.events)), (5, 1))
        (change,) = changes.events
        self.assertEqual((change.key, change.value, change.is_delete), (b"k", b"v", False))
        self.assertEqual(len(self.successResultOf(self.take(watch)).events), 2)
        watch.close()
        self.assertTrue(response.transport.is_lost)
        self.assertOver(watch)

    def test_54_it_goes_on_behind_what_was_complete(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        response.data(event(2) + event(3) + event(4)[:-1])
        self.cut(response)
        self.advance(MAX_PAUSE_S)
        asked = self.last(2)
        self.assertEqual((asked.server, asked.header("Last-Event-ID")), ("b:2", "3"))
        self.assertEqual(asked.target, "/db/k?watch")
        self.stream(2, 3).data(event(4))
        self.assertEqual([self.taken(watch) for _ in range(3)], [2, 3, 4])
        watch.close()
        self.assertOver(watch)

    def test_54_what_comes_twice_is_told_once(self) -> None:
        watch = self.watch()
        self.stream(1).data(event(2) + event(3) + event(2) + event(3) + event(4))
        self.assertEqual([self.taken(watch) for _ in range(3)], [2, 3, 4])
        reading = self.take(watch)
        self.assertNoResult(reading)
        watch.close()
        self.failureResultOf(reading, StopAsyncIteration)

    def test_before_there_was_anything_the_revision_is_asked_for_again(self) -> None:
        watch = self.watch(revision=5)
        self.last(1).fail(ConnectionRefusedError())
        self.advance(MAX_PAUSE_S)
        self.assertEqual(self.last(2).target, "/db/k?watch&revision=5")
        watch.close()
        self.assertOver(watch)

    def test_an_id_without_changes_is_where_it_goes_on(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        response.data(b"id: 90\n\n")
        response.data(b'id: 95\nevent: cut_off\ndata: {"resume_revision":96}\n\n')
        response.end()
        self.advance(MAX_PAUSE_S)
        self.assertEqual(self.last(2).header("Last-Event-ID"), "90")
        watch.close()

    def test_a_large_revision_in_lines(self) -> None:
        watch = self.watch()
        whole = event(2, "a", "b").decode().splitlines()[1].removeprefix("data: ")
        half = whole.index(", {") + 1
        self.stream(1).data(
            f"data: {whole[:half]}\n:\ndata: {whole[half:]}\nid: 2\n\n".encode()
        )
        self.assertEqual(len(self.successResultOf(self.take(watch)).events), 2)
        watch.close()


class RetryTests(WatchCase):
    def test_it_does_not_spin(self) -> None:
        """Whatever goes wrong: also if servers accept, and hang up at once."""

        def refuse(count: int) -> None:
            self.agent.asked[count].fail(ConnectionRefusedError())

        def unavailable(count: int) -> None:
            self.agent.asked[count].refuse(503, "stopped")

        def hang_up(count: int) -> None:
            response = self.agent.asked[count].begin(200, Content_Type=STREAM)
            response.data(b"id: %d\n\n" % (count + 1))
            response.end()

        def no_stream(count: int) -> None:
            self.agent.asked[count].answer(200, b"<html>", Content_Type="text/html")

        for fail in (refuse, unavailable, hang_up, no_stream):
            self.setUp()
            watch = self.watch()
            done = 0
            while self.clock.seconds() < 3600:
                while done < len(self.agent.asked):
                    fail(done)
                    done += 1
                self.clock.advance(0.01)
            # For an hour, about once a second, and still alive.
            self.assertTrue(3500 < done < 3700, f"{fail.__name__}: {done}")
            watch.close()
            self.assertOver(watch)

    def test_after_progress_it_is_back_soon(self) -> None:
        watch = self.watch()
        for count in range(1, 30):
            self.assertEqual(len(self.agent.asked), count)
            response = self.stream(count, count)
            response.data(event(count + 1))
            self.cut(response)
            self.advance(0.05)
        self.assertEqual([self.taken(watch) for _ in range(29)], list(range(2, 31)))
        watch.close()

    def test_a_server_that_does_not_begin(self) -> None:
        watch = self.watch()
        self.advance(ATTEMPT_TIMEOUT_S)
        self.assertTrue(self.last(1).was_cancelled)
        self.advance(MAX_PAUSE_S)
        self.assertEqual(self.last(2).server, "b:2")
        watch.close()
        self.assertOver(watch)

    def test_a_refusal_whose_body_never_ends(self) -> None:
        watch = self.watch()
        response = self.last(1).begin(503)
        self.advance(ATTEMPT_TIMEOUT_S)
        self.assertTrue(response.transport.is_lost)
        self.advance(MAX_PAUSE_S)
        self.last(2)
        watch.close()
        self.assertOver(watch)

    def test_a_server_that_has_gone_silent(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        for second in range(1, 301):
            self.advance(1.0)
            if second % 15 == 0:
                response.data(b":\n\n")
            self.answer_probes(404)
        self.assertFalse(response.transport.is_lost)
        begun = self.clock.seconds()
        while not response.transport.is_lost:
            self.answer_probes(404)
            self.advance(1.0)
        self.assertEqual(self.clock.seconds() - begun, SILENCE_S)
        watch.close()
        self.assertOver(watch)

    def answer_probes(self, status: int) -> None:
        for asked in self.agent.asked[1:]:
            if not asked.response.called:
                self.assertEqual((asked.server, asked.target), ("a:1", PROBE))
                asked.refuse(status, "not_found")

    def test_a_server_that_is_cut_off_from_the_others(self) -> None:
        """It gives signs of life, and has nothing to tell."""
        watch = self.watch()
        response = self.stream(1)
        self.advance(CHECK_S)
        response.data(event(2))
        self.advance(CHECK_S)
        self.answer_probes(404)
        self.assertFalse(response.transport.is_lost)
        self.advance(CHECK_S)
        self.answer_probes(503)
        self.assertTrue(response.transport.is_lost)
        self.advance(MAX_PAUSE_S)
        self.assertEqual(self.agent.asked[-1].server, "b:2")
        self.assertEqual(self.agent.asked[-1].header("Last-Event-ID"), "2")
        watch.close()
        self.taken(watch)
        self.assertOver(watch)


class EndTests(WatchCase):
    def test_what_no_server_would_stream(self) -> None:
        for status, code, more, kind in (
            (400, "bad_request", {}, BadRequest),
            (410, "compacted", {"compacted_revision": 7}, Compacted),
        ):
            self.setUp()
            watch = self.watch(revision=2)
            started, reading = watch.started(), self.take(watch)
            self.last(1).refuse(status, code, **more)
            self.failureResultOf(started, kind)
            self.failureResultOf(reading, kind)
            self.failureResultOf(self.take(watch), kind)
            self.failureResultOf(watch.started(), kind)
            self.assertQuiet()

    def test_compacted_comes_behind_what_had_come(self) -> None:
        """Also if all of it had come before it was read."""
        data = event(2) + b'event: compacted\ndata: {"compacted_revision":9}\n\n'
        for early in (True, False):
            self.setUp()
            watch = self.watch()
            response = self.last(1)
            if early:
                body = FakeResponse(response, 200, {"Content-Type": STREAM})
                body.data(data)
                response.response.callback(body)
            else:
                self.stream(1).data(data)
            self.assertEqual(self.taken(watch), 2)
            error = self.failureResultOf(self.take(watch), Compacted).value
            self.assertEqual(error.revision, 9)
            self.assertQuiet()

    def test_what_raftd_does_not_send(self) -> None:
        for data in (
            b"id: 2\ndata: <html>\n\n",
            b"id: 2\ndata: []\n\n",
            b'id: 2\ndata: {"revision": 2}\n\n',
            b"event: compacted\ndata: {}\n\n",
        ):
            self.setUp()
            watch = self.watch()
            response = self.stream(1)
            response.data(data + event(3))
            self.failureResultOf(self.take(watch), Unreachable)
            self.assertTrue(response.transport.is_lost)
            self.assertQuiet()

    def test_closed_at_any_moment(self) -> None:
        def connecting(watch: Watch) -> None:
            """It was asked, and that is all."""

        def pausing(watch: Watch) -> None:
            self.last(1).fail(ConnectionRefusedError())

        def refused(watch: Watch) -> None:
            self.last(1).begin(503)

        def streaming(watch: Watch) -> None:
            self.stream(1)

        def probing(watch: Watch) -> None:
            self.stream(1)
            self.advance(2 * CHECK_S)

        for reach in (connecting, pausing, refused, streaming, probing):
            for by_client in (False, True):
                self.setUp()
                watch = self.watch()
                reach(watch)
                reading = self.take(watch)
                if by_client:
                    self.successResultOf(self.client.close())
                else:
                    watch.close()
                self.failureResultOf(reading, StopAsyncIteration)
                self.assertOver(watch)
                self.assertEqual(self.client.requester.users, {})

    def test_closed_before_it_began(self) -> None:
        watch = self.watch()
        started = watch.started()
        watch.close()
        self.failureResultOf(started, Stopped)

    def test_as_a_context_manager(self) -> None:
        async def use() -> int:
            async with self.watch() as watch:
                async for changes in watch:
                    return changes.revision
            return 0

        used = Deferred.fromCoroutine(use())
        response = self.stream(1)
        response.data(event(2))
        self.assertEqual(self.successResultOf(used), 2)
        self.assertTrue(response.transport.is_lost)
        self.assertQuiet()


class ReaderTests(WatchCase):
    def test_55_one_who_does_not_read_holds_the_server_back(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        revision = 1
        while not response.transport.is_paused and revision <= 2 * MAX_WAITING:
            revision += 1
            response.data(event(revision))
        self.assertEqual(revision, MAX_WAITING + 1)
        self.advance(10 * SILENCE_S)
        self.assertFalse(response.transport.is_lost)
        for expected in range(2, MAX_WAITING + 2):
            self.assertEqual(self.taken(watch), expected)
            is_half = expected - 1 > MAX_WAITING // 2
            self.assertEqual(response.transport.is_paused, not is_half)
        watch.close()
        self.assertOver(watch)

    def test_55_it_counts_bytes_too(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        key = "k" * (1 << 20)
        for revision in range(2, 18):
            self.assertFalse(response.transport.is_paused)
            response.data(event(revision, key))
        self.assertTrue(response.transport.is_paused)
        watch.close()

    def test_55_cut_off_it_comes_back_only_when_there_is_room(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        response.data(b"".join(event(r) for r in range(2, MAX_WAITING + 50)))
        self.cut(response)
        self.advance(100.0)
        self.last(1)
        for expected in range(2, MAX_WAITING):
            self.assertEqual(self.taken(watch), expected)
        self.assertEqual(self.last(2).header("Last-Event-ID"), str(MAX_WAITING + 49))
        self.stream(2, MAX_WAITING + 49)
        watch.close()

    def test_one_reads_at_a_time(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        first = self.take(watch)
        self.failureResultOf(self.take(watch), RuntimeError)
        response.data(event(2))
        self.assertEqual(self.successResultOf(first).revision, 2)
        watch.close()

    def test_who_was_cancelled_has_taken_nothing(self) -> None:
        watch = self.watch()
        response = self.stream(1)
        first = self.take(watch)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        response.data(event(2) + event(3))
        self.assertEqual([self.taken(watch) for _ in range(2)], [2, 3])
        started: Deferred[Any] = watch.started()
        self.assertEqual(self.successResultOf(started), 3)
        watch.close()
