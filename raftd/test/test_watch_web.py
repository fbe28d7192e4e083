"""Watching over HTTP: server-sent events and the long poll, from the store to the wire."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import NoLeader, Overloaded, RaftdError
from raftd.interfaces import IRequest
from raftd.kv import watches
from raftd.kv.interfaces import Event, IDatabase, IWatch, Selection
from raftd.kv.operations import EVERY_KEY
from raftd.kv.results import KeyValue
from raftd.kv.watches import WatchHub
from raftd.net import http1
from raftd.net.http1 import HTTPFactory
from raftd.test.contract import check
from raftd.test.test_watches import SlowClock
from raftd.test.watchrig import Past, Real, Write
from raftd.web import events, watch
from raftd.web.answers import failed_read
from raftd.web.parameters import percent_decoded
from raftd.web.spans import Span
from raftd.web.watch import Watching, is_wanted

EVERYTHING = Selection(b"\0", EVERY_KEY)

#: What a transport of Twisted's keeps before it asks for a pause.
BUFFER_BYTES = 64 * 1024


class Message(NamedTuple):
    """A dispatched event."""

    id: str
    kind: str
    data: str

    def json(self) -> Any:
        return json.loads(self.data)


class EventSource:
    """A client of server-sent events, by the letter of the HTML standard (9.2.6)."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.last_id = ""
        self.comments = 0
        self._id = ""
        self._kind = ""
        self._data: list[str] = []
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line.decode("utf-8"))

    def _line(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            self.last_id = self._id
            if self._data:
                self.messages.append(Message(self._id, self._kind, "\n".join(self._data)))
            self._data, self._kind = [], ""
        elif line.startswith(":"):
            self.comments += 1
        elif name == "id":
            self._id = value
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        else:
            raise AssertionError(f"an unknown field: {line}")


class Body:
    """An answer as it arrives: a head, and a body in chunks or of known length."""

    def __init__(self) -> None:
        self.status = 0
        self.fields: dict[str, str] = {}
        self.complete = False
        self._data = b""
        self._left = -1

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the body."""
        self._data += data
        if not self.status:
            head, separator, rest = self._data.partition(b"\r\n\r\n")
            if not separator:
                return b""
            first, *lines = head.decode("ascii").split("\r\n")
            self.status = int(first.split(" ")[1])
            self.fields = dict(line.split(": ", 1) for line in lines)
            self._data = rest
        if "Transfer-Encoding" not in self.fields:
            body, self._data = self._data, b""
            return body
        body = b""
        while self._data and not self.complete:
            if self._left < 0:
                size, separator, rest = self._data.partition(b"\r\n")
                if not separator:
                    break
                self._left = int(size, 16)
                self.complete = not self._left
                self._data = rest
            elif self._left:
                body += self._data[: self._left]
                taken = len(self._data[: self._left])
                self._data, self._left = self._data[taken:], self._left - taken
            elif len(self._data) >= 2:
                assert self._data[:2] == b"\r\n"
                self._data, self._left = self._data[2:], -1
            else:
                break
        return body


class Line(StringTransport):
    """A transport whose client takes what it likes, and has to be waited for."""

    protocol: Any
    aborted = False
    pending = b""
    most = 0
    paused = False

    def write(self, data: bytes) -> None:
        if self.disconnecting or self.aborted:
            return
        self.pending += data
        self.most = max(self.most, len(self.pending))
        if len(self.pending) > BUFFER_BYTES and not self.paused:
            self.paused = True
            self.protocol.pauseProducing()

    def read(self, size: int) -> bytes:
        data, self.pending = self.pending[:size], self.pending[size:]
        if self.paused and not self.pending:
            self.paused = False
            self.protocol.resumeProducing()
        return data

    def abortConnection(self) -> None:
        self.aborted = True
        self.pending = b""


class Client:
    """One connection with one request."""

    def __init__(self, factory: HTTPFactory, target: str, *headers: str, method: str) -> None:
        self.line = Line()
        self.protocol = factory.buildProtocol(None)
        self.line.protocol = self.protocol
        self.protocol.makeConnection(self.line)
        self.body = Body()
        self.source = EventSource()
        self.received = b""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "", ""]
        self.protocol.dataReceived("\r\n".join(lines).encode("ascii"))

    def read(self, size: int = 10**9) -> Client:
        """Take at most so many bytes of each of what is there, until nothing is."""
        while self.line.pending:
            data = self.body.feed(self.line.read(size))
            self.received += data
            if self.body.fields.get("Content-Type") == "text/event-stream":
                self.source.feed(data)
            if size < 10**9:
                break
        return self

    def take(self) -> bytes:
        """The body that has arrived since the last time."""
        self.read()
        received, self.received = self.received, b""
        return received

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def data(self) -> list[Any]:
        """What the changes were, and no other messages."""
        self.read()
        assert all(m.kind == "" for m in self.source.messages), self.source.messages
        return [m.json() for m in self.source.messages]


class Database:
    """What the web face needs of `IDatabase` for watches."""

    def __init__(self, hub: WatchHub) -> None:
        self.hub = hub
        self.gets: list[Callable[[KeyValue | RaftdError | None], None]] = []
        self.at_once = True

    def get(self, key: bytes, max_staleness_s: float, done: Any, revision: int = 0) -> None:
        assert key
        assert (max_staleness_s, revision) == (0, 0)
        if self.at_once:
            done(None)
        else:
            self.gets.append(done)

    def watch(
        self, selection: Selection, revision: int, on_ready: Callable[[], None]
    ) -> IWatch:
        return cast(IWatch, self.hub.watch(selection, revision, on_ready))


class WatchCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = SlowClock()
        self.store = self.make()
        self.hub = WatchHub(self.store.watched, self.clock)
        self.database = Database(self.hub)
        self.watching = Watching(self.clock)
        self.factory = HTTPFactory(self.handle, self.clock, lambda: 0)

    def make(self) -> Any:
        return Past()

    def handle(self, request: IRequest) -> None:
        assert is_wanted(request.query)
        key = percent_decoded(request.path.removeprefix(b"/db/"), "the key")
        try:
            self.watching.handle(
                request, cast(IDatabase, self.database), Span(key, b"") if key else None
            )
        except RaftdError as e:
            failed_read(request, e)

    def ask(self, target: str, *headers: str, method: str = "GET") -> Client:
        return Client(self.factory, target, *headers, method=method)

    def turn(self) -> None:
        """What is due now."""
        self.clock.pump([0, 0])

    def write(self, *writes: Write) -> int:
        revision: int = self.store.write(*writes)
        self.turn()
        return revision

    def seconds(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)

    def answer(self, client: Client) -> Any:
        """The JSON of an answer that is complete, checked against the document."""
        body = client.read().received
        fields = client.body.fields
        return json.loads(body) if fields.get("Content-Type") == "application/json" else None

    def assertDocumented(self, target: str, client: Client) -> None:
        fields = dict(client.body.fields)
        kind = fields.pop("Content-Type", "")
        known = ("Raftd-Revision", "Retry-After")
        check(
            "GET",
            target.encode(),
            client.body.status,
            kind,
            {name: value for name, value in fields.items() if name in known},
            client.received,
        )


class Streams(WatchCase):
    """The words on the wire."""

    def test_a_key(self) -> None:
        client = self.ask("/db/a?watch")
        self.assertEqual(client.take(), b"id: 1\n\n")
        self.assertEqual(client.body.status, 200)
        self.assertEqual(client.body.fields["Content-Type"], "text/event-stream")
        self.assertEqual(client.body.fields["Cache-Control"], "no-cache")
        self.write((b"a", b"1"))
        self.assertEqual(
            client.take(),
            b'id: 2\ndata: {"revision":2,"events":[{"type":"put","key":"a","value":"1",'
            b'"create_revision":2,"mod_revision":2,"version":1}]}\n\n',
        )
        self.write((b"b", b"1"))
        self.assertEqual(client.take(), b"")
        self.write((b"a", None))
        self.assertEqual(
            client.take(),
            b'id: 4\ndata: {"revision":4,"events":[{"type":"delete","key":"a",'
            b'"mod_revision":4}]}\n\n',
        )
        self.assertDocumented("/db/a?watch", client)

    def test_a_prefix_and_a_range_and_everything(self) -> None:
        clients = [
            self.ask(f"/db/?{query}")
            for query in (
                "prefix=b&watch",
                "watch&start=b&end=c",
                "watch=true&start=c",
                "watch",
            )
        ]
        self.write((b"a", b""), (b"b", b""), (b"bb", b""), (b"c", b""))
        keys = [[e["key"] for d in c.data() for e in d["events"]] for c in clients]
        self.assertEqual(keys, [["b", "bb"], ["b", "bb"], ["c"], ["a", "b", "bb", "c"]])

    def test_what_was_before(self) -> None:
        client = self.ask("/db/a?watch&prev")
        self.write((b"a", b"1"))
        self.write((b"a", b"2"))
        self.write((b"a", None))
        first, second, gone = (d["events"][0] for d in client.data())
        self.assertNotIn("previous", first)
        record = {"key": "a", "create_revision": 2}
        self.assertEqual(
            second["previous"], {**record, "value": "1", "mod_revision": 2, "version": 1}
        )
        self.assertEqual(
            gone["previous"], {**record, "value": "2", "mod_revision": 3, "version": 2}
        )

    def test_bytes_that_are_no_text(self) -> None:
        client = self.ask("/db/%ff?watch&prev")
        self.write((b"\xff", b"\xfe"))
        self.write((b"\xff", None))
        put, gone = (d["events"][0] for d in client.data())
        self.assertEqual((put["key_base64"], put["value_base64"]), ("/w==", "/g=="))
        self.assertEqual(gone["key_base64"], "/w==")
        self.assertEqual(gone["previous"]["value_base64"], "/g==")
        self.assertNotIn("key", gone)

    def test_line_breaks_in_values(self) -> None:
        """They are written as JSON has them, so that they end no line."""
        client = self.ask("/db/a?watch")
        value = "a\n\r\n\u2028data: x\n\n"
        self.write((b"a", value.encode()))
        (data,) = client.data()
        self.assertEqual(data["events"][0]["value"], value)

    def test_filters(self) -> None:
        puts, deletes = self.ask("/db/?watch&events=put"), self.ask("/db/?watch&events=delete")
        self.write((b"a", b"1"))
        self.write((b"a", None))
        self.assertEqual([d["revision"] for d in puts.data()], [2])
        self.assertEqual([d["revision"] for d in deletes.data()], [3])

    def test_a_revision_that_changes_much(self) -> None:
        """Several lines of data, one event; its id is the last line."""
        client = self.ask("/db/?watch")
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(300)))
        self.write((b"a", b"1"))
        raw = client.read().received
        lines = raw.split(b"\n")
        self.assertGreater(sum(line.startswith(b"data: ") for line in lines), 4)
        first, second = client.data()
        self.assertEqual([e["key"] for e in first["events"]], [str(n) for n in range(300)])
        self.assertEqual(first["revision"], 2)
        self.assertEqual(second["revision"], 3)
        self.assertLess(raw.rindex(b"data: ]}\n"), raw.index(b"id: 2\n"))

    def test_54_from_a_revision(self) -> None:
        for n in range(5):
            self.write((b"a", b"%d" % n))
        client = self.ask("/db/a?watch&revision=4")
        self.assertEqual([d["revision"] for d in client.data()], [4, 5, 6])
        future = self.ask("/db/a?watch&revision=8")
        self.write((b"a", b"x"))
        self.write((b"a", b"y"))
        self.assertEqual([d["revision"] for d in future.data()], [8])

    def test_54_resumed_by_last_event_id(self) -> None:
        for n in range(5):
            self.write((b"a", b"%d" % n))
        client = self.ask("/db/a?watch", "Last-Event-ID: 4")
        self.assertEqual([d["revision"] for d in client.data()], [5, 6])
        # The URL of an EventSource stays the same.
        client = self.ask("/db/a?watch&revision=3", "Last-Event-ID: 5")
        self.assertEqual([d["revision"] for d in client.data()], [6])
        # It has not come to where it was to begin.
        client = self.ask("/db/a?watch&revision=6", "Last-Event-ID: 3")
        self.assertEqual([d["revision"] for d in client.data()], [6])

    def test_54_nothing_is_lost_before_the_first_event(self) -> None:
        """A client that was cut off early knows where it began."""
        self.write((b"a", b"1"))
        client = self.ask("/db/a?watch").read()
        client.lose()
        self.write((b"a", b"2"))
        again = self.ask("/db/a?watch", f"Last-Event-ID: {client.source.last_id}")
        self.assertEqual([d["revision"] for d in again.data()], [3])

    def test_54_a_node_that_is_behind(self) -> None:
        """What the client has seen elsewhere does not come again."""
        client = self.ask("/db/a?watch", "Last-Event-ID: 4")
        for n in range(5):
            self.write((b"a", b"%d" % n))
        self.assertEqual([d["revision"] for d in client.data()], [5, 6])

    def test_54_from_now_on_is_linearizable(self) -> None:
        """It begins behind everything that was acknowledged before it was asked."""
        self.database.at_once = False
        client = self.ask("/db/a?watch")
        self.assertEqual(client.take(), b"")
        self.write((b"a", b"acknowledged elsewhere"))
        self.database.gets.pop()(None)
        self.assertEqual(client.take(), b"id: 2\n\n")
        self.write((b"a", b"2"))
        self.assertEqual([d["revision"] for d in client.data()], [3])
        # A client that goes on needs no leader.
        self.ask("/db/a?watch", "Last-Event-ID: 2")
        self.ask("/db/a?watch&revision=2")
        self.assertEqual(self.database.gets, [])

    def test_no_leader(self) -> None:
        self.database.at_once = False
        client = self.ask("/db/a?watch")
        self.database.gets.pop()(NoLeader("There is none."))
        self.assertEqual(self.answer(client)["error"], "no_leader")
        self.assertEqual(client.body.status, 503)
        self.assertDocumented("/db/a?watch", client)

    def test_54_gone_at_the_start(self) -> None:
        for _ in range(9):
            self.write((b"a", b"x"))
        self.store.compact(6)
        for request in (("/db/a?watch&revision=6",), ("/db/a?watch", "Last-Event-ID: 5")):
            client = self.ask(*request)
            answer = self.answer(client)
            self.assertEqual((client.body.status, answer["error"]), (410, "compacted"))
            self.assertEqual(answer["compacted_revision"], 6)
            self.assertDocumented(request[0], client)
        self.assertEqual(len(self.hub), 0)

    def test_what_makes_no_sense(self) -> None:
        for target in (
            "/db/a?watch&revision=x",
            "/db/a?watch&revision=0",
            "/db/a?watch&prefix=a",
            "/db/?watch&prefix=a&start=b",
            "/db/?watch&limit=3",
            "/db/a?watch&events=all",
            "/db/a?watch&wait=3",
            "/db/a?wait=3&revision=4",
            "/db/a?wait",
            "/db/a?wait=-1",
            f"/db/a?wait={2**63 - 1}",
            "/db/a?watch=false",
            "/db/a?watch=1",
            "/db/a?watch&watch",
            "/db/a?watch&timeout_ms=5",
            "/db/a?wait=3&timeout_ms=300001",
        ):
            client = self.ask(target)
            self.assertEqual(self.answer(client)["error"], "bad_request", target)
            self.assertEqual(client.body.status, 400, target)
            self.assertDocumented(target, client)
        for value in ("x", "-1", "1.5", "9" * 30, str(2**63 - 1)):
            client = self.ask("/db/a?watch", f"Last-Event-ID: {value}")
            self.assertEqual(self.answer(client)["error"], "bad_request", value)
        self.assertEqual((len(self.hub), self.database.gets), (0, []))

    def test_an_empty_last_event_id_says_nothing(self) -> None:
        self.assertEqual(self.ask("/db/a?watch", "Last-Event-ID:").take(), b"id: 1\n\n")

    def test_which_queries_are_meant(self) -> None:
        for query in (b"watch", b"watch=", b"prefix=a&watch", b"wait=3", b"a&wait=3&b"):
            self.assertTrue(is_wanted(query), query)
        for query in (b"", b"prefix=watch", b"watches", b"revision=3", b"prefix=wait=3"):
            self.assertFalse(is_wanted(query), query)

    def test_55_too_many(self) -> None:
        self.patch(watches, "MAX_WATCHES", 1)
        self.ask("/db/a?watch")
        for target in ("/db/a?watch", "/db/a?wait=1"):
            client = self.ask(target)
            self.assertEqual(self.answer(client)["error"], Overloaded.code)
            self.assertEqual(client.body.status, 503)

    def test_head(self) -> None:
        client = self.ask("/db/a?watch", method="HEAD").read()
        self.assertEqual((client.body.status, client.received), (200, b""))
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))

    def test_55_a_client_that_goes(self) -> None:
        client = self.ask("/db/a?watch")
        client.lose()
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))
        self.write((b"a", b"1"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_goes_before_it_begins(self) -> None:
        self.database.at_once = False
        client = self.ask("/db/a?watch")
        client.lose()
        self.database.gets.pop()(None)
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))


class Ends(WatchCase):
    def test_54_compacted(self) -> None:
        """A client that is behind is told, once it has taken what was written."""
        client = self.ask("/db/a?watch")
        for _ in range(100):
            self.write((b"a", b"x" * 5000))
        self.store.compact(self.store.revision)
        client.read()
        *changes, last = client.source.messages
        self.assertEqual([int(m.id) for m in changes], list(range(2, len(changes) + 2)))
        self.assertEqual((last.kind, last.json()), ("compacted", {"compacted_revision": 101}))
        self.assertTrue(client.body.complete)
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))
        again = self.ask("/db/a?watch", f"Last-Event-ID: {client.source.last_id}")
        self.assertEqual(self.answer(again)["compacted_revision"], 101)

    def test_54_compacted_within_a_revision(self) -> None:
        """Nothing can be said within an event: the connection breaks."""
        client = self.ask("/db/?watch")
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(300)))
        self.store.compact(2)
        client.read()
        self.assertTrue(client.line.aborted)
        self.assertEqual((client.source.messages, client.source.last_id), ([], "1"))
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))
        client.lose()

    def test_54_the_server_stops(self) -> None:
        """Clients are told where to go on."""
        client = self.ask("/db/a?watch")
        self.write((b"a", b"1"))
        self.write((b"b", b"1"))
        self.watching.stop()
        self.factory.stop()
        client.read()
        self.assertEqual(client.source.messages[-1], ("3", "cut_off", '{"resume_revision":4}'))
        self.assertEqual(client.source.last_id, "3")
        self.assertTrue(client.body.complete)
        self.assertTrue(client.line.disconnecting)
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))

    def test_54_the_server_stops_within_a_revision(self) -> None:
        client = self.ask("/db/?watch")
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(300)))
        self.factory.stop()
        self.assertTrue(client.line.aborted)
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))

    def test_55_a_client_that_takes_nothing_is_cut_off(self) -> None:
        """It finds where to go on, if ever it wakes up in time."""
        client = self.ask("/db/a?watch")
        for _ in range(100):
            self.write((b"a", b"x" * 5000))
        self.seconds(watch.STALL_S - 1)
        self.assertEqual(len(self.hub), 1)
        self.seconds(watch.KEEP_ALIVE_S + 1)
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))
        client.read()
        *changes, last = client.source.messages
        self.assertEqual(last.kind, "cut_off")
        self.assertEqual(last.json(), {"resume_revision": int(changes[-1].id) + 1})
        self.assertTrue(client.body.complete)

    def test_55_a_client_that_takes_nothing_for_ever(self) -> None:
        client = self.ask("/db/a?watch")
        for _ in range(100):
            self.write((b"a", b"x" * 5000))
        self.seconds(http1.SEND_TIMEOUT_S + 1)
        self.assertTrue(client.line.aborted)
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))

    def test_55_cut_off_within_a_revision(self) -> None:
        client = self.ask("/db/?watch")
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(300)))
        self.seconds(watch.STALL_S + watch.KEEP_ALIVE_S + 1)
        self.assertTrue(client.line.aborted)
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))

    def test_55_a_slow_client_is_not_cut_off(self) -> None:
        """It takes something now and then, and comes to the end."""
        client = self.ask("/db/a?watch")
        for _ in range(100):
            self.write((b"a", b"x" * 5000))
        rounds = 0
        while client.line.pending:
            self.seconds(watch.STALL_S - 2)
            # It takes what there is, whereupon there is more at once.
            client.read(len(client.line.pending))
            rounds += 1
        self.assertGreater(rounds, 5)
        self.assertEqual(len(client.data()), 100)

    def test_55_an_idle_client_that_stops_reading_has_its_time(self) -> None:
        client = self.ask("/db/a?watch")
        self.seconds(100)
        client.protocol.pauseProducing()
        self.seconds(watch.STALL_S - 1)
        self.assertEqual(len(self.hub), 1)
        self.seconds(watch.KEEP_ALIVE_S + 2)
        self.assertEqual(len(self.hub), 0)
        self.assertFalse(client.line.aborted)


class KeepAlive(WatchCase):
    def test_a_comment(self) -> None:
        client = self.ask("/db/a?watch")
        client.take()
        self.seconds(watch.KEEP_ALIVE_S - 1)
        self.assertEqual(client.take(), b"")
        self.seconds(2)
        self.assertEqual(client.take(), b":\n\n")
        self.seconds(watch.KEEP_ALIVE_S + 1)
        self.assertEqual(client.take(), b":\n\n")

    def test_54_progress(self) -> None:
        """So that what a client resumes from does not grow old and compacted."""
        client = self.ask("/db/a?watch")
        for n in range(5):
            self.write((b"b", b"%d" % n))
        self.seconds(watch.KEEP_ALIVE_S + 1)
        self.assertEqual(client.take(), b"id: 1\n\nid: 6\n\n")
        self.assertEqual((client.source.messages, client.source.last_id), ([], "6"))
        self.seconds(watch.KEEP_ALIVE_S + 1)
        self.assertEqual(client.take(), b":\n\n")
        self.store.compact(6)
        self.turn()
        again = self.ask("/db/a?watch", "Last-Event-ID: 6")
        self.write((b"a", b"1"))
        self.assertEqual([d["revision"] for d in again.data()], [7])

    def test_not_to_a_busy_stream(self) -> None:
        client = self.ask("/db/a?watch")
        for _ in range(5):
            self.seconds(watch.KEEP_ALIVE_S - 2)
            self.write((b"a", b"1"))
        client.read()
        self.assertEqual((client.source.comments, len(client.data())), (0, 5))

    def test_54_within_a_revision(self) -> None:
        """A comment there ends no event."""
        self.patch(watches, "MAX_SCANNED", 50)
        client = self.ask("/db/?prefix=a&watch")
        keys = [b"a1", b"a2", *(b"b%d" % n for n in range(300)), b"a3"]
        self.store.write(*((key, b"x") for key in keys))
        self.clock.turn()
        # Two were written, and the third has not been found yet.
        self.assertIn(b'"a2"', client.take())
        (stream,) = self.watching._streams
        stream.keep_alive(self.clock.seconds())
        self.assertEqual(client.take(), b":\n")
        self.turn()
        (data,) = client.data()
        self.assertEqual([e["key"] for e in data["events"]], ["a1", "a2", "a3"])

    def test_one_timer_for_all(self) -> None:
        clients = [self.ask("/db/a?watch") for _ in range(50)]
        # That of the connections, and that of the streams.
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        self.seconds(100)
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        for client in clients:
            self.assertEqual(client.read().source.comments, 6)
            client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_53_in_slices(self) -> None:
        clients = [self.ask("/db/a?watch") for _ in range(300)]
        for client in clients:
            client.read()
        self.clock.rightNow += watch.KEEP_ALIVE_S + 1
        self.clock.look_s = 0.000_1
        most = 0
        for _ in range(300):
            before = sum(bool(client.line.pending) for client in clients)
            self.clock.turn()
            now = sum(bool(client.line.pending) for client in clients)
            most = max(most, now - before)
            if now == 300:
                break
        self.assertEqual(now, 300)
        self.assertLess(most, 0.003 / 0.000_1 + 2)
        self.clock.look_s = 0.0


class Memory(WatchCase):
    def make(self) -> Any:
        return Real()

    def test_55_a_reader_that_never_reads_costs_bounded_memory(self) -> None:
        """A hundred thousand changes: whatever is kept for it is kept in the history."""
        self.patch(watch, "STALL_S", 10**9)
        clients = [self.ask("/db/?watch"), self.ask("/db/?watch"), self.ask("/db/a?watch")]
        tracemalloc.start()
        try:
            for n in range(100_000):
                self.store.write((b"a", b"%d" % n))
                if n % 100 == 0:
                    self.turn()
            self.turn()
            statistics = tracemalloc.take_snapshot().statistics("filename")
        finally:
            tracemalloc.stop()
        ours = (
            "kv/watches.py",
            "web/watch.py",
            "web/events.py",
            "net/http1.py",
            "net/streams.py",
            "test/test_watch_web.py",
        )
        size = sum(s.size for s in statistics if s.traceback[0].filename.endswith(ours))
        self.assertGreater(size, BUFFER_BYTES)
        self.assertLess(size, 2**21)
        for client in clients:
            self.assertLess(client.line.most, 2 * BUFFER_BYTES)
        # And they can still have all of it.
        client = clients[0]
        revisions = [int(m.id) for m in client.read().source.messages]
        self.assertEqual(revisions, list(range(2, 100_002)))

    def test_a_thousand_streams_of_a_key_cost_one_encoding(self) -> None:
        encoded: list[int] = []
        encode = events._encode

        def count(value: Any) -> bytes:
            encoded.append(len(value))
            return encode(value)

        self.patch(events, "_encode", count)
        clients = [self.ask("/db/a?watch") for _ in range(1000)]
        for n in range(3):
            self.write((b"a", b"%d" % n))
        self.assertEqual(encoded, [1, 1, 1])
        for client in clients:
            self.assertEqual([d["revision"] for d in client.data()], [2, 3, 4])

    def test_55_what_is_encoded_is_not_kept_for_ever(self) -> None:
        self.ask("/db/?watch").line.paused = False
        self.patch(events, "MAX_ENCODED", 10)
        for n in range(100):
            self.write((b"a", b"%d" % n))
        encoder = self.watching.encoder
        self.assertLessEqual(len(encoder._kept), 10)
        self.patch(events, "MAX_ENCODED_BYTES", 500)
        for n in range(100):
            self.write((b"a", b"%d" % n))
        self.assertLessEqual(encoder._kept_bytes, 500)
        self.assertEqual(encoder._kept_bytes, sum(len(e) for _, e in encoder._kept.values()))


class LongPolls(WatchCase):
    def test_what_is_there_already(self) -> None:
        for n in range(3):
            self.write((b"a", b"%d" % n))
        client = self.ask("/db/a?wait=2")
        value = self.answer(client)
        self.assertEqual((client.body.status, value["revision"]), (200, 3))
        self.assertEqual(
            value["events"],
            [
                {
                    "type": "put",
                    "key": "a",
                    "value": "1",
                    "create_revision": 2,
                    "mod_revision": 3,
                    "version": 2,
                }
            ],
        )
        self.assertDocumented("/db/a?wait=2", client)
        self.assertEqual((len(self.hub), self.watching._polls), (0, set()))

    def test_54_what_comes(self) -> None:
        client = self.ask("/db/?wait=1&prefix=a&prev")
        self.write((b"b", b"1"))
        self.assertEqual(client.take(), b"")
        self.write((b"a", b"1"), (b"ab", b"2"))
        value = self.answer(client)
        self.assertEqual(value["revision"], 3)
        self.assertEqual([e["key"] for e in value["events"]], ["a", "ab"])
        self.assertEqual((len(self.hub), len(self.clock.getDelayedCalls())), (0, 1))

    def test_54_nothing_comes_in_time(self) -> None:
        client = self.ask("/db/a?wait=1")
        self.write((b"b", b"1"))
        self.seconds(29)
        self.assertEqual(client.take(), b"")
        self.seconds(1)
        client.read()
        self.assertEqual(client.body.status, 204)
        self.assertEqual(client.body.fields["Raftd-Revision"], "2")
        self.assertDocumented("/db/a?wait=1", client)
        self.assertEqual((len(self.hub), self.watching._polls), (0, set()))

    def test_the_time_it_asks_for(self) -> None:
        client = self.ask("/db/a?wait=1&timeout_ms=0")
        self.clock.advance(0)
        self.assertEqual(client.read().body.status, 204)
        client = self.ask("/db/a?wait=1&timeout_ms=300000")
        self.seconds(299)
        self.assertEqual(client.read().body.status, 0)
        self.seconds(1)
        self.assertEqual(client.read().body.status, 204)

    def test_54_behind_a_revision_to_come(self) -> None:
        client = self.ask("/db/a?wait=5&timeout_ms=1000")
        self.seconds(1)
        self.assertEqual(client.read().body.fields["Raftd-Revision"], "5")

    def test_gone(self) -> None:
        for _ in range(9):
            self.write((b"a", b"x"))
        self.store.compact(6)
        client = self.ask("/db/a?wait=5")
        self.assertEqual(self.answer(client)["compacted_revision"], 6)
        self.assertEqual(client.body.status, 410)

    def test_54_gone_while_it_waits(self) -> None:
        """A snapshot takes the place of the history."""
        client = self.ask("/db/z?wait=1")
        other = self.make()
        for _ in range(9):
            other.write((b"a", b"x"))
        other.compact(6)
        self.store.restore(other)
        self.turn()
        self.assertEqual(self.answer(client)["compacted_revision"], 6)
        self.assertEqual((client.body.status, len(self.hub)), (410, 0))
        self.assertEqual(self.watching._polls, set())

    def test_a_revision_that_changes_much(self) -> None:
        """It is streamed, at the client's pace."""
        writes = [(b"%d" % n, b"x" * 1000) for n in range(1000)]
        client = self.ask("/db/?wait=1")
        self.write(*writes)
        self.assertLess(client.line.most, 3 * BUFFER_BYTES)
        value = self.answer(client)
        self.assertEqual([e["key"] for e in value["events"]], [k.decode() for k, _ in writes])
        self.assertEqual((client.body.status, len(self.hub)), (200, 0))
        self.assertTrue(client.body.complete)
        self.assertDocumented("/db/?wait=1", client)

    def test_54_a_revision_that_is_compacted_while_it_is_sent(self) -> None:
        client = self.ask("/db/?wait=1")
        self.write(*((b"%d" % n, b"x" * 1000) for n in range(300)))
        self.store.compact(2)
        client.read()
        self.assertTrue(client.line.aborted)
        self.assertFalse(client.body.complete)
        self.assertEqual(len(self.hub), 0)

    def test_54_the_server_stops(self) -> None:
        """Nobody waits for a poll that waits."""
        client = self.ask("/db/a?wait=1")
        self.write((b"b", b"1"))
        self.watching.stop()
        stopped = self.factory.stop()
        client.read()
        self.assertEqual(client.body.status, 204)
        self.assertEqual(client.body.fields["Raftd-Revision"], "2")
        client.lose()
        self.successResultOf(stopped)
        self.assertEqual((len(self.hub), self.clock.getDelayedCalls()), (0, []))

    def test_55_a_client_that_goes(self) -> None:
        """Its watch is over when its time is."""
        client = self.ask("/db/a?wait=1")
        client.lose()
        self.seconds(30)
        self.assertEqual((len(self.hub), self.watching._polls), (0, set()))

    def test_head(self) -> None:
        self.write((b"a", b"1"))
        client = self.ask("/db/a?wait=1", method="HEAD").read()
        self.assertEqual((client.body.status, client.received), (200, b""))


class Reconnecting(WatchCase):
    """
    Random changes and compactions; clients that read little, lose their
    connection after any byte, and resume by `Last-Event-ID`.
    """

    SELECTIONS = (
        ("/db/?watch", EVERYTHING),
        ("/db/k1?watch&prev", Selection(b"k1", previous=True)),
        ("/db/?prefix=k&watch&events=put", Selection(b"k", b"l", deletes=False)),
        ("/db/?start=k2&watch", Selection(b"k2", EVERY_KEY)),
    )

    def make(self) -> Any:
        return Real()

    def test_54_each_once_in_order_or_compacted(self) -> None:
        gone = complete = 0
        for seed in range(60):
            self.setUp()
            self.patch(watches, "PIECE_BYTES", 1 + seed * 13 % 2000)
            self.patch(watches, "MAX_SCANNED", 1 + seed % 50)
            try:
                ended = self.converse(random.Random(seed))
            except BaseException:
                print("seed", seed)
                raise
            gone += ended.count(True)
            complete += ended.count(False)
        self.assertGreater(gone, 10)
        self.assertGreater(complete, 100)

    def converse(self, rng: random.Random) -> list[bool]:
        model = Past()
        seen: list[dict[int, Any]] = [{} for _ in self.SELECTIONS]
        last = ["" for _ in self.SELECTIONS]
        gone = [False for _ in self.SELECTIONS]
        clients: list[Client | None] = [None for _ in self.SELECTIONS]

        def arrived(n: int) -> None:
            client = clients[n]
            assert client is not None
            for message in client.source.messages:
                if message.kind == "compacted":
                    gone[n] = True
                elif message.kind != "cut_off":
                    data = message.json()
                    assert int(message.id) == data["revision"]
                    assert data["revision"] > max(seen[n], default=1), "out of order"
                    seen[n][data["revision"]] = data["events"]
            client.source.messages.clear()
            if client.source.last_id:
                last[n] = client.source.last_id
            if client.body.status == 410:
                gone[n] = True

        for _ in range(150):
            act = rng.randrange(12)
            n = rng.randrange(len(self.SELECTIONS))
            client = clients[n]
            if act < 4:
                large = rng.random() < 0.1
                writes = [
                    (
                        b"k%d" % k,
                        None if rng.random() < 0.3 else b"x" * (9000 if large else 9),
                    )
                    for k in rng.sample(range(8), rng.choice((1, 1, 1, 2, 8)))
                ]
                model.write(*writes)
                self.store.write(*writes)
            elif act == 4 and rng.random() < 0.1 and self.store.revision > 10:
                low = self.store.compacted_revision + 1
                self.store.compact(rng.randrange(low, self.store.revision + 1))
            elif act == 5 and rng.random() < 0.3:
                # A snapshot of itself: the history as it came through one.
                other = self.make()
                other.restore(self.store)
                self.store.restore(other)
            elif act < 8 and client is not None:
                client.read(rng.choice((1, 10, 100, 10**5)))
                arrived(n)
            elif act == 8 and client is not None:
                client.read(rng.choice((1, 30, 1000)))
                arrived(n)
                client.lose()
                clients[n] = None
            elif act == 9 and client is None and not gone[n]:
                # Without an id it begins at the first revision, to miss nothing.
                header = f"Last-Event-ID: {last[n] or 1}"
                clients[n] = self.ask(self.SELECTIONS[n][0], header)
            elif act == 10:
                self.turn()
            elif act == 11:
                self.clock.advance(rng.choice((0, 1, 10)))
        for n, (target, selection) in enumerate(self.SELECTIONS):
            while not gone[n]:
                client = clients[n]
                if client is None or client.line.aborted or client.body.complete:
                    header = f"Last-Event-ID: {last[n] or 1}"
                    client = clients[n] = self.ask(target, header)
                self.turn()
                client.read()
                arrived(n)
                self.turn()
                if not client.line.pending and not client.line.aborted:
                    break
            client = clients[n]
            if client is not None:
                client.lose()
            expected = model.expected(selection, 2, model.revision)
            if gone[n]:
                top = max(seen[n], default=0)
                expected = {r: e for r, e in expected.items() if r <= top}
            self.assertEqual(list(seen[n]), list(expected))
            for revision, found in seen[n].items():
                self.assertEqual(found, [told(event) for event in expected[revision]])
        self.assertEqual((len(self.hub), len(self.watching._streams)), (0, 0))
        return gone


def told(event: Event) -> dict[str, Any]:
    """An event as JSON, made in another way."""

    def record(kv: KeyValue) -> dict[str, Any]:
        return {
            "key": kv.key.decode(),
            "value": kv.value.decode(),
            "create_revision": kv.create_revision,
            "mod_revision": kv.mod_revision,
            "version": kv.version,
        }

    value: dict[str, Any] = {"type": "put", **record(event.record)}
    if event.is_delete:
        key, revision = event.record.key.decode(), event.record.mod_revision
        value = {"type": "delete", "key": key, "mod_revision": revision}
    if event.previous is not None:
        value["previous"] = record(event.previous)
    return value
