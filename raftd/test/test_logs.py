"""The log: held back, let go in order, never in the reactor's way."""

from __future__ import annotations

import json
import os
import threading
import warnings

from twisted.logger import (
    LogLevel,
    globalLogBeginner,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.python.log import LogPublisher as LegacyLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from raftd import logs
from raftd.logs import HeldLog, LogFileWriter
from raftd.outlet import Outlet, stream_writer


def event(text: str, level: object = LogLevel.info) -> dict[str, object]:
    return {"log_format": text, "log_level": level, "log_time": 0.0, "log_namespace": "t"}


class Place:
    """Where a log goes: it has room for so many lines."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.text = ""

    def put(self, text: str) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.text += text
        return True


class HeldLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = HeldLog(textFileLogObserver, max_held=3)
        self.place = Place()

    def messages(self) -> list[str]:
        return [line.split("] ", 1)[1] for line in self.place.text.splitlines()]

    def test_what_was_held_comes_first(self) -> None:
        self.log(event("one"))
        self.log(event("two"))
        self.assertFalse(self.log.released)
        self.log.release(self.place.put)
        self.log(event("three"))
        self.assertEqual(self.messages(), ["one", "two", "three"])
        self.assertTrue(self.log.released)

    def test_what_twisted_says_of_ports_is_left_out(self) -> None:
        self.log.release(self.place.put)
        logger = LegacyLogPublisher(
            publishPublisher=self.log, logBeginner=globalLogBeginner, warningsModule=warnings
        )
        logger.msg("PortFactory starting on 4001")
        logger.msg("(TCP Port 4001 Closed)")
        logger.msg("Something is starting on 4001")
        self.log(event("PortFactory starting on 4001"))
        self.assertEqual(
            self.messages(),
            ["Something is starting on 4001", "PortFactory starting on 4001"],
        )

    def test_what_is_held_is_bounded_and_the_rest_is_counted(self) -> None:
        for number in range(8):
            self.log(event(str(number)))
        self.log.release(self.place.put)
        self.log(event("after"))
        self.assertEqual(self.messages()[:3], ["0", "1", "2"])
        self.assertTrue(self.messages()[3].startswith("5 lines of the log were dropped"))
        self.assertEqual(self.messages()[4:], ["after"])

    def test_a_place_without_room_costs_lines_that_are_counted(self) -> None:
        self.log.release(self.place.put)
        self.place.room = 1
        for text in ("kept", "lost", "lost", "lost"):
            self.log(event(text))
        self.place.room = 2
        self.log(event("again"))
        self.log.flush()
        self.assertEqual(len(self.messages()), 3)
        self.assertTrue(self.messages()[1].startswith("3 lines"))
        self.assertEqual(self.messages()[2], "again")

    def test_the_last_lines_that_were_dropped_are_told_at_the_end(self) -> None:
        self.log.release(self.place.put)
        self.place.room = 0
        self.log(event("lost"))
        self.place.room = 1
        self.log.flush()
        self.assertTrue(self.messages()[0].startswith("1 lines"))

    def test_the_note_is_in_the_format_of_the_log(self) -> None:
        log = HeldLog(jsonFileLogObserver, max_held=1)
        log(event("kept"))
        log(event("lost"))
        log.release(self.place.put)
        log.flush()
        records = self.place.text.split("\x1e")[1:]  # RFC 7464
        formats = [json.loads(record)["log_format"] for record in records]
        self.assertEqual(formats[0], "kept")
        self.assertIn("dropped", formats[1])

    def test_held_errors_can_be_had(self) -> None:
        self.log(event("fine"))
        self.log(event("broken", LogLevel.error))
        self.log(event("lost", LogLevel.critical))
        self.assertNotIn("fine", self.log.severe())
        self.assertIn("broken\n", self.log.severe())
        self.assertIn("lost\n", self.log.severe())


class OutletTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.outlet = Outlet(max_pending=2)
        self.written: list[str] = []
        self.stuck = threading.Event()
        self.go_on = threading.Event()
        self.addCleanup(self.go_on.set)

    def slow(self, text: str) -> None:
        self.assertIsNot(threading.current_thread(), threading.main_thread())
        self.stuck.set()
        self.go_on.wait(30)
        self.written.append(text)

    def test_text_is_written_in_order(self) -> None:
        self.outlet.put(self.written.append, "one")
        self.outlet.put(self.written.append, "two")
        self.assertTrue(self.outlet.close(30))
        self.assertEqual(self.written, ["one", "two"])
        self.assertFalse(self.outlet.put(self.written.append, "late"))

    def test_53_a_stuck_place_stops_nobody(self) -> None:
        self.assertTrue(self.outlet.put(self.slow, "stuck"))
        self.assertTrue(self.stuck.wait(30))
        kept = [self.outlet.put(self.slow, str(n)) for n in range(4)]
        self.assertEqual(kept, [True, True, False, False])
        self.assertFalse(self.outlet.close(0.01))
        self.go_on.set()
        self.assertTrue(self.outlet.close(30))
        self.assertEqual(self.written, ["stuck", "0", "1"])

    def test_what_cannot_be_written_is_lost_and_the_rest_is_not(self) -> None:
        def broken(text: str) -> None:
            raise BrokenPipeError

        self.outlet.put(broken, "lost")
        self.outlet.put(self.written.append, "kept")
        self.assertTrue(self.outlet.close(30))
        self.assertEqual(self.written, ["kept"])

    def test_closing_without_use_starts_nothing(self) -> None:
        self.assertTrue(self.outlet.close(0))


class StreamWriterTests(SynchronousTestCase):
    def test_a_full_nonblocking_pipe_is_waited_for(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        text = "x" * 1_000_000
        with os.fdopen(writer, "w") as stream, os.fdopen(reader) as source:
            outlet = Outlet()
            outlet.put(stream_writer(stream), text)
            self.assertEqual(source.read(len(text)), text)
            self.assertTrue(outlet.close(30))

    def test_what_the_terminal_cannot_show_is_escaped(self) -> None:
        reader, writer = os.pipe()
        with os.fdopen(writer, "w", encoding="ascii") as stream:
            stream_writer(stream)("h\N{LATIN SMALL LETTER E WITH ACUTE}\n")
        with os.fdopen(reader) as source:
            self.assertEqual(source.read(), "h\\xe9\n")

    def test_a_stream_that_is_closed_from_the_start(self) -> None:
        self.assertIsNone(stream_writer(None)("nobody sees it"))


class LogFileWriterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.complaints: list[str] = []

    def test_nothing_is_created_before_the_first_line(self) -> None:
        path = self.mktemp()
        write = LogFileWriter(path, self.complaints.append)
        self.assertFalse(os.path.exists(path))
        write("one\n")
        LogFileWriter(path, self.complaints.append)("two\n")
        with open(path) as file:
            self.assertEqual(file.read(), "one\ntwo\n")

    def test_the_file_is_rotated_and_old_ones_are_removed(self) -> None:
        self.patch(logs, "ROTATE_LENGTH", 10)
        directory = self.mktemp()
        os.mkdir(directory)
        write = LogFileWriter(os.path.join(directory, "log"), self.complaints.append)
        for number in range(20):
            write(f"{number:010}\n")
        files = sorted(os.listdir(directory))
        self.assertEqual(files[0], "log")
        self.assertLessEqual(len(files), logs.MAX_ROTATED_FILES + 2)
        self.assertEqual(self.complaints, [])

    def test_a_file_that_cannot_be_written_is_said_once(self) -> None:
        write = LogFileWriter("/dev/null/log", self.complaints.append)
        write("one\n")
        write("two\n")
        self.assertEqual(len(self.complaints), 1)
        self.assertIn("/dev/null", self.complaints[0])
