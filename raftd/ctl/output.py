"""
What is printed: for people at a terminal, for pipes, and for programs.

Without `-o`, a terminal gets tables, and a pipe lines whose fields are
separated by tabs.  Keys and values are escaped in both, so that a line stays a
line and no value can command the terminal.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

#: Of the formats that can be asked for.
TABLE, JSON, RAW = "table", "json", "raw"
FORMATS = (TABLE, JSON, RAW)

#: The width of a terminal that does not say.
WIDTH = 80
#: The narrowest a column of text is cut to.
MIN_COLUMN = 8

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ROUND = "╭─┬╮│├┼┤╰┴╯"
_ASCII = "+-++|+++++" + "+"


class Cell(NamedTuple):
    """What stands in one place of a table; `style` is one of `_STYLES`, or empty."""

    text: str
    style: str = ""


Row = Sequence["str | int | bytes | Cell"]


def escaped(data: bytes) -> str:
    """
    Bytes as one line of text, from which they can be told again.

    What cannot be seen, and a backslash, is written as in Python's strings;
    bytes that are no UTF-8 are `\\xNN`.
    """
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how `surrogateescape` keeps a byte
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def shown(data: bytes) -> str:
    """As `escaped`, but over as many lines as it has, with its tabs."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    return "\n".join("".join(c if c in "\t\\" else _escaped(c) for c in line) for line in lines)


def width_of(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(_width(c) for c in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, with a sign that it goes on."""
    if width_of(text) <= width:
        return text
    kept, used = [], 0
    for character in text:
        used += _width(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


class Output:
    """
    Standard output and standard error of one command.

    `format` is one of `FORMATS`, None for what fits where it goes to.
    """

    def __init__(
        self,
        stdout: BinaryIO,
        stderr: BinaryIO,
        *,
        format: str | None = None,
        environ: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
    ) -> None:
        environ = os.environ if environ is None else environ
        self.format = format
        self._stdout = stdout
        self._stderr = stderr
        self._encoding = encoding
        self.is_terminal = stdout.isatty()
        #: Whether somebody looks at standard error: progress is for them only.
        self.shows_progress = stderr.isatty()
        self._colours = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self._unicode = encoding.lower().replace("-", "").startswith("utf")
        self._has_progress = False

    @property
    def is_table(self) -> bool:
        """Whether tables are what is wanted."""
        return self.format == TABLE or (self.format is None and self.is_terminal)

    # -- plain -------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """These bytes, soon."""
        self._stdout.write(data)

    def flush(self) -> None:
        """All that was written, now; blocks while nobody takes it."""
        self._stdout.flush()

    def line(self, text: str) -> None:
        """One line."""
        self.write(self._encoded(text) + b"\n")

    def json(self, value: object) -> None:
        """A document, or a line of many, of JSON."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        self.write(text.encode("utf-8") + b"\n")

    def say(self, text: str) -> None:
        """A sentence for people, on standard error."""
        self.end_progress()
        self._stderr.write(self._encoded(text) + b"\n")
        self._stderr.flush()

    def complain(self, text: str) -> None:
        """What went wrong, in a sentence."""
        head = "raftctl:"
        if self._colours and self._stderr.isatty():
            head = _styled(head, "red")
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
        self.say(f"{head} {text}")

    def _encoded(self, text: str) -> bytes:
        # A byte that was no text in an argument of ours goes out as it came in.
        try:
            return text.encode(self._encoding, "surrogateescape")
        except UnicodeEncodeError:
            return text.encode(self._encoding, "backslashreplace")

    # -- progress ------------------------------------------------------------------

    def progress(self, text: str) -> None:
        """Where things stand, in the place of what was said before; if anybody looks."""
        if self.shows_progress:
            self._has_progress = True
            self._stderr.write(b"\r" + self._encoded(text) + b"\x1b[K")
            self._stderr.flush()

    def end_progress(self) -> None:
        """Leave the line of progress behind, empty."""
        if self._has_progress:
            self._has_progress = False
            self._stderr.write(b"\r\x1b[K")
            self._stderr.flush()

    # -- one thing -------------------------------------------------------------------

    def result(
        self,
        value: object,
        raw: bytes | str | int,
        pairs: Sequence[tuple[str, str | int | bytes | Cell]],
        text: str | None = None,
    ) -> None:
        """
        What came of a command: `value` in JSON, `raw` if only that is wanted,
        `pairs` as a table, and otherwise `text`, which is `raw` if not given.
        """
        if self.format == JSON:
            self.json(value)
        elif self.format == TABLE:
            self._pairs(pairs)
        else:
            line = raw if self.format == RAW or text is None else text
            self.write((line if isinstance(line, bytes) else self._encoded(str(line))) + b"\n")

    def _pairs(self, pairs: Sequence[tuple[str, str | int | bytes | Cell]]) -> None:
        rows = [[Cell(name, "dim"), value] for name, value in pairs]
        self.table((), rows)

    def details(
        self,
        value: object,
        raw: bytes | str | int,
        pairs: Sequence[tuple[str, str | int | bytes | Cell]],
    ) -> None:
        """As `result`, of what has no one word: a table, or lines with tabs in a pipe."""
        if self.is_table:
            self._pairs(pairs)
        elif self.format is None:
            for pair in pairs:
                self.fields(pair)
        else:
            self.result(value, raw, pairs)

    # -- many things -------------------------------------------------------------------

    def rows(self, titles: Sequence[str], rows: Sequence[Row]) -> None:
        """
        A table; in a pipe, unless a table was asked for, lines with tabs.

        Of raw output, the first column.
        """
        if self.format == RAW:
            for row in rows:
                self.fields(row[:1])
        elif self.is_table:
            self.table(titles, rows)
        else:
            for row in rows:
                self.fields(row)

    def fields(self, row: Row) -> None:
        """One line, with tabs between its fields."""
        self.line("\t".join(_text(cell).text for cell in row))

    def table(self, titles: Sequence[str], rows: Sequence[Row]) -> None:
        """A table, with lines around it on a terminal."""
        cells = [[_text(cell) for cell in row] for row in rows]
        if titles:
            cells.insert(0, [Cell(title.upper(), "bold") for title in titles])
        if not cells:
            return
        columns = list(zip(*rows, strict=True)) or [()] * len(titles)
        numeric = [bool(c) and all(isinstance(v, int) or v == "" for v in c) for c in columns]
        widths = [max(width_of(row[i].text) for row in cells) for i in range(len(cells[0]))]
        if self.is_terminal:
            widths = _fitted(widths, self._width())
        lines = [self._row(row, widths, numeric) for row in cells]
        if self.is_terminal:
            self._boxed(lines, widths, bool(titles))
        else:
            for line in lines:
                self.line("  ".join(line).rstrip())

    def _row(
        self, row: Sequence[Cell], widths: Sequence[int], numeric: Sequence[bool]
    ) -> list[str]:
        placed = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            text = cut(cell.text, width)
            space = " " * (width - width_of(text))
            text = self.styled(text, cell.style)
            placed.append(space + text if right else text + space)
        return placed

    def _boxed(self, lines: Sequence[list[str]], widths: Sequence[int], titled: bool) -> None:
        box = _ROUND if self._unicode else _ASCII

        def rule(left: str, middle: str, right: str) -> str:
            return self.styled(
                left + middle.join(box[1] * (w + 2) for w in widths) + right, "dim"
            )

        bar = self.styled(box[4], "dim")
        drawn = [f"{bar} " + f" {bar} ".join(line) + f" {bar}" for line in lines]
        if titled:
            drawn.insert(1, rule(box[5], box[6], box[7]))
        for line in (rule(box[0], box[2], box[3]), *drawn, rule(box[8], box[9], box[10])):
            self.line(line)

    def styled(self, text: str, style: str) -> str:
        """`text` with a colour, where colours are wanted."""
        if style and self.is_terminal and self._colours:
            return _styled(text, style)
        return text

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stdout.fileno()).columns or WIDTH
        except (OSError, ValueError):
            return WIDTH


def _styled(text: str, style: str) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def _text(cell: Any) -> Cell:
    if isinstance(cell, Cell):
        return cell
    return Cell(escaped(cell) if isinstance(cell, bytes) else str(cell))


def _fitted(widths: list[int], width: int) -> list[int]:
    """The widest columns made narrower, one by one, until the table fits."""
    widths = list(widths)
    excess = sum(widths) + 3 * len(widths) + 1 - width
    while excess > 0:
        widest = max(range(len(widths)), key=lambda i: widths[i])
        others = [w for i, w in enumerate(widths) if i != widest]
        floor = max(MIN_COLUMN, *others) if others else MIN_COLUMN
        less = min(excess, max(widths[widest] - floor, 1))
        if widths[widest] - less < MIN_COLUMN:
            break
        widths[widest] -= less
        excess -= less
    return widths


def size(count: int) -> str:
    """A number of bytes, for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
