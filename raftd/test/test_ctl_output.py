"""What `raftctl` prints: nothing that a terminal obeys, nothing that two things could mean."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.ctl.output import JSON, RAW, TABLE, Cell, Output, cut, escaped, shown, size
from raftd.test.ctlrig import Stream


def output(
    format: str | None = None,
    *,
    terminal: bool = False,
    environ: dict[str, str] | None = None,
    encoding: str = "utf-8",
) -> tuple[Output, Stream, Stream]:
    out, err = Stream(terminal), Stream(terminal)
    made = Output(out, err, format=format, environ=environ or {}, encoding=encoding)
    return made, out, err


_ESCAPE = re.compile(r"\\(?:([\\nrt])|x(..)|u(....)|U(.{8}))|(.)")
_PLAIN = {"\\": b"\\", "n": b"\n", "r": b"\r", "t": b"\t"}


def unescaped(text: str) -> bytes:
    """What `escaped` has made this of."""
    data = b""
    for plain, byte, short, long, itself in _ESCAPE.findall(text):
        if plain:
            data += _PLAIN[plain]
        elif byte:
            data += bytes([int(byte, 16)])
        else:
            data += (itself or chr(int(short or long, 16))).encode("utf-8")
    return data


class Escapes(SynchronousTestCase):
    @given(st.binary(max_size=60))
    def test_bytes_can_be_told_again(self, data: bytes) -> None:
        text = escaped(data)
        self.assertTrue(text.isprintable())
        self.assertEqual(unescaped(text), data)

    @given(st.text(max_size=60))
    def test_text_can_be_told_again(self, text: str) -> None:
        self.assertEqual(unescaped(escaped(text.encode("utf-8"))), text.encode("utf-8"))

    def test_examples(self) -> None:
        for data, text in (
            (b"plain text", "plain text"),
            ("grün, 日本".encode(), "grün, 日本"),
            (b"a\tb\nc\rd\\", "a\\tb\\nc\\rd\\\\"),
            (b"\x1b[31m\x00\x7f", "\\x1b[31m\\x00\\x7f"),
            (b"\xff\x80", "\\xff\\x80"),
            ("\u202e\u200b\ue000\x85".encode(), "\\u202e\\u200b\\ue000\\u0085"),
            ("\U000e0001".encode(), "\\U000e0001"),
        ):
            self.assertEqual(escaped(data), text)

    @given(st.text(max_size=60))
    def test_over_several_lines_it_is_as_harmless(self, text: str) -> None:
        seen = shown(text.encode("utf-8", "surrogatepass"))
        self.assertTrue(seen.replace("\n", "").replace("\t", "").isprintable(), seen)

    def test_cut(self) -> None:
        self.assertEqual(cut("abcdef", 6), "abcdef")
        self.assertEqual(cut("abcdefg", 6), "abcde…")
        self.assertEqual(cut("日本語日本語", 6), "日本…")
        self.assertEqual(cut("e\u0301e\u0301e\u0301", 3), "e\u0301e\u0301e\u0301")

    def test_amounts(self) -> None:
        self.assertEqual([size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)],
                         ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 TiB"])  # fmt: skip


class Tables(SynchronousTestCase):
    ROWS = (("a", 1, Cell("leader", "green")), ("bbb", 200, Cell("x\n")))

    def test_in_a_pipe(self) -> None:
        made, out, _ = output(environ={"TERM": "xterm"})
        made.rows(("name", "count", "role"), self.ROWS)
        self.assertEqual(out.text(), "a\t1\tleader\nbbb\t200\tx\n\n")
        made, out, _ = output(TABLE)
        made.rows(("name", "count", "role"), self.ROWS)
        self.assertEqual(
            out.text().splitlines()[:2], ["NAME  COUNT  ROLE", "a         1  leader"]
        )
        made, out, _ = output(RAW)
        made.rows(("name", "count", "role"), self.ROWS)
        self.assertEqual(out.text(), "a\nbbb\n")

    def test_on_a_terminal(self) -> None:
        made, out, _ = output(terminal=True)
        made.rows(("name", "count", "role"), self.ROWS[:1])
        self.assertIn("\x1b[1mNAME\x1b[0m", out.text())
        self.assertIn("\x1b[32mleader\x1b[0m", out.text())
        for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            made, out, _ = output(terminal=True, environ=environ)
            made.rows(("name", "count"), [("a", 1)])
            self.assertEqual(
                out.text(),
                "╭──────┬───────╮\n│ NAME │ COUNT │\n├──────┼───────┤\n"
                "│ a    │     1 │\n╰──────┴───────╯\n",
            )
        made, out, _ = output(terminal=True, environ={"NO_COLOR": "1"}, encoding="ascii")
        made.rows(("name",), [("ä",)])
        self.assertEqual(out.text(), "+------+\n| NAME |\n+------+\n| \\xe4    |\n+------+\n")

    def test_it_is_no_wider_than_the_terminal(self) -> None:
        made, out, _ = output(terminal=True, environ={"NO_COLOR": "1"})
        made.rows(("key", "value", "n"), [("k" * 30, "v" * 300, 123456)])
        lines = out.text().splitlines()
        self.assertEqual({len(line) for line in lines}, {80})
        self.assertIn("k" * 30, lines[3])
        self.assertIn("v…", lines[3])
        self.assertIn("123456", lines[3])

    def test_nothing(self) -> None:
        made, out, _ = output(TABLE)
        made.rows(("name", "count"), [])
        self.assertEqual(out.text(), "NAME  COUNT\n")
        made, out, _ = output()
        made.rows(("name", "count"), [])
        self.assertEqual(out.text(), "")


class Lines(SynchronousTestCase):
    def test_one_document(self) -> None:
        made, out, _ = output(JSON)
        made.result({"key": "ä", "n": 1}, "raw", [("n", 1)])
        self.assertEqual(out.text(), '{"key":"ä","n":1}\n')

    def test_complaints_are_one_line(self) -> None:
        made, out, err = output(environ={})
        made.complain("It is\nbad\x1b[2J.")
        self.assertEqual(err.text(), "raftctl: It is\\nbad\\x1b[2J.\n")
        self.assertEqual(out.text(), "")
        made, _, err = output(terminal=True)
        made.complain("Bad.")
        self.assertEqual(err.text(), "\x1b[31mraftctl:\x1b[0m Bad.\n")

    def test_progress_is_for_those_who_look(self) -> None:
        made, _, err = output()
        made.progress("10 %")
        made.end_progress()
        self.assertEqual(err.text(), "")
        made, _, err = output(terminal=True)
        made.progress("10 %")
        made.progress("20 %")
        made.complain("It broke.")
        self.assertTrue(err.text().startswith("\r10 %\x1b[K\r20 %\x1b[K\r\x1b[K"))
        made.end_progress()
        self.assertTrue(err.text().endswith("It broke.\n"))
