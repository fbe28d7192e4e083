"""
The dialogue: the questions that turn a data directory into a running node.

It reads like the transcripts in the README.  What was given as an option is
not asked.  A wrong answer to a prompt is explained and asked again; a wrong
option ends the program, since nobody may be there to answer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, TextIO, TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from raftd.errors import BadAnswer, Fatal, RaftdError
from raftd.interfaces import ISetup, Stage
from raftd.names import split_names

T = TypeVar("T")

#: The longest answer, in bytes; what is longer is read to its end and refused.
MAX_ANSWER = 4_096

NAME_PROMPT = "Enter host:port> "
CHOICE_PROMPT = "Initialize or join? [ij] "
SERVER_PROMPT = "Server to join: "


class EndOfInput(RaftdError):
    """There is a question left and nobody to answer it."""


class OptionRefused(RaftdError):
    """What was given as an option cannot be done; empty if that has been said already."""


class Answers(msgspec.Struct, frozen=True):
    """The answers that were given as options; None and empty ones are asked for."""

    name: str | None = None
    initialize: bool = False
    join: tuple[str, ...] = ()


# -- reading -----------------------------------------------------------------


class Prompter(Protocol):
    """
    The protocol on standard input: lines, one for each question.

    Between the questions it does not read, so what is typed ahead waits for
    its question, and nothing is read once the last one is answered.

    Invariant: while no question is open, the transport is paused.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._asked: Deferred[bytes] | None = None
        #: The line that is arriving is too long, and is not kept.
        self._skipping = False
        self._ended = False

    def line(self) -> Deferred[bytes]:
        """
        The next line, without its end; the last may lack one.

        Fails with `EndOfInput`, or with `BadAnswer` for a line above
        `MAX_ANSWER` bytes, which is skipped.
        """
        self._asked = answered = Deferred[bytes]()
        self._read_on(True)
        self._answer()
        return answered

    def connectionMade(self) -> None:
        self._read_on(False)

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        self._answer()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = True
        self._answer()

    def _read_on(self, on: bool) -> None:
        if self.transport is not None and not self._ended:
            transport = cast(IPushProducer, self.transport)
            (transport.resumeProducing if on else transport.pauseProducing)()

    def _answer(self) -> None:
        """Answer the open question if there is a line, or no more to come."""
        asked = self._asked
        if asked is None:
            return
        end = self._buffer.find(b"\n")
        if end < 0 and not self._ended:
            if len(self._buffer) > MAX_ANSWER:
                self._skipping = True
                self._buffer.clear()
            return
        line = bytes(self._buffer[:end] if end >= 0 else self._buffer)
        del self._buffer[: len(line) + 1]
        skipped, self._skipping, self._asked = self._skipping, False, None
        self._read_on(False)
        if skipped or len(line) > MAX_ANSWER:
            asked.errback(BadAnswer(f"An answer has at most {MAX_ANSWER} bytes."))
        elif end < 0 and not line:
            asked.errback(EndOfInput("End of input: raftd was not started."))
        else:
            asked.callback(line)


def open_prompter(reactor: Any, stream: TextIO | None) -> Prompter:
    """
    A prompter on `stream`, which is None if it was closed from the start.

    The reactor wants descriptors that do not block, and that mode belongs to
    the open file, which a terminal shares with the shell: so the file is
    opened once more, for us alone, where the system lets us.
    """
    prompter = Prompter()
    try:
        descriptor = None if stream is None else _reopen(stream.fileno())
    except (OSError, ValueError):
        descriptor = None
    if descriptor is None:
        prompter.connectionLost()
    else:
        # All output goes through another way (`raftd.outlet`), which a stalled
        # terminal does not stop: this end is never written to.
        _, unused = os.pipe()
        StandardIO(prompter, descriptor, unused, reactor)  # type: ignore[call-arg]
    return prompter


def _reopen(descriptor: int) -> int:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        try:
            return os.open(f"/dev/fd/{descriptor}", os.O_RDONLY | os.O_NOCTTY)
        except OSError:
            pass  # somebody else's terminal, or a system without such names
    return os.dup(descriptor)


# -- asking ------------------------------------------------------------------


class Console:
    """
    Asks and says.

    `read_line` is asked for one line at a time; `say` and `warn` take text for
    standard output and standard error.  With `echo`, answers are written after
    their prompts, so that a dialogue from a pipe reads like one at a terminal.
    """

    def __init__(
        self,
        read_line: Callable[[], Deferred[bytes]],
        say: Callable[[str], object],
        warn: Callable[[str], object],
        echo: bool = False,
    ) -> None:
        self._read_line = read_line
        self._say = say
        self._warn = warn
        self._echo = echo
        self._within_line = False

    def say(self, text: str) -> None:
        """Write `text` as it is."""
        self._say(text)
        self._within_line = not text.endswith("\n")

    def explain(self, sentence: str) -> None:
        """Write `sentence` as one line of its own."""
        self.end_line()
        self.say(_one_line(sentence) + "\n")

    def complain(self, sentence: str) -> None:
        """Write `sentence` as one line of its own to standard error."""
        self.warn(_one_line(sentence) + "\n")

    def warn(self, text: str) -> None:
        """Write lines to standard error, as they are."""
        self.end_line()
        self._warn(text)

    def end_line(self) -> None:
        """Make sure that what follows begins a line."""
        if self._within_line:
            self.say("\n")

    async def ask(self, prompt: str) -> str:
        """The answer to `prompt`, stripped; it is asked until it is readable text."""
        while True:
            self.say(prompt)
            try:
                line = await self._read_line()
                return self._readable(line)
            except BadAnswer as e:
                self.explain(str(e))

    def _readable(self, line: bytes) -> str:
        text = line.decode("utf-8", "replace").strip()
        if self._echo:
            self.say("".join(c if c.isprintable() else "?" for c in text) + "\n")
        # At a terminal, the person has ended the line.
        self._within_line = False
        if "\N{REPLACEMENT CHARACTER}" in text:
            raise BadAnswer("That is not text in UTF-8.")
        if not text.isprintable():
            raise BadAnswer("That has control characters in it; please type it anew.")
        return text


# -- the dialogue ------------------------------------------------------------


class Dialogue:
    """
    One way through `setup`, with `answers` for what need not be asked.

    `stage_changed` is called whenever the directory may have come further.
    """

    def __init__(
        self,
        setup: ISetup,
        console: Console,
        answers: Answers,
        stage_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._setup = setup
        self._console = console
        self._answers = answers
        self._stage_changed = stage_changed

    async def run(self) -> None:
        """
        Go on until the node serves.

        `EndOfInput`, `OptionRefused` and `Fatal` end it; each is a sentence.
        """
        self._refuse_contradictions()
        await self._take_name()
        stage = self._setup.stage
        if stage is Stage.MEMBER:
            recovered = await self._setup.recover()
            self._console.say(
                f"Recovered {recovered.name}: "
                f"term {recovered.term}, {recovered.entries} log entries.\n"
            )
        elif stage is Stage.JOINING:
            await self._join(self._answers.join, recorded=True)
        elif stage is Stage.INITIALIZING or await self._wants_new_cluster():
            await self._setup.initialize()
            self._console.say("New raftd cluster created.\n")
        else:
            await self._join(self._answers.join, recorded=False)

    async def _take_name(self) -> None:
        if self._answers.name is not None:
            try:
                await self._setup.take_name(self._answers.name)
            except BadAnswer as e:
                raise OptionRefused(str(e)) from None
            return
        while True:
            name = await self._console.ask(NAME_PROMPT)
            try:
                await self._setup.take_name(name or self._setup.recorded_name)
            except BadAnswer as e:
                self._console.explain(str(e))
            else:
                return

    def _refuse_contradictions(self) -> None:
        """Options that would turn back what this directory has begun."""
        stage = self._setup.stage
        if stage is Stage.JOINING and self._answers.initialize:
            raise OptionRefused(
                f"This directory belongs to {self._setup.recorded_name}, which is joining "
                "a cluster; it cannot initialize another. Start it without --init."
            )
        if stage is Stage.INITIALIZING and self._answers.join:
            raise OptionRefused(
                f"This directory belongs to {self._setup.recorded_name}, which is creating "
                "a cluster of its own; it cannot join another. Start it without --join."
            )

    async def _wants_new_cluster(self) -> bool:
        if self._answers.initialize:
            return True
        if self._answers.join:
            return False
        while True:
            answer = (await self._console.ask(CHOICE_PROMPT)).lower()
            if answer in ("i", "j"):
                return answer == "i"
            self._console.explain("Please answer i for a new cluster, or j to join one.")

    async def _join(self, servers: Sequence[str], *, recorded: bool) -> None:
        """Join through `servers`; else those recorded, if there are; else those asked for."""
        by_option = bool(servers)
        if not servers and not recorded:
            servers = await self._ask_servers()
        while not await self._joined(servers):
            if by_option:
                raise OptionRefused("")
            servers = await self._ask_servers()

    async def _ask_servers(self) -> tuple[str, ...]:
        while True:
            answer = await self._console.ask(SERVER_PROMPT)
            try:
                return split_names(answer)
            except BadAnswer as e:
                self._console.explain(str(e))

    async def _joined(self, servers: Sequence[str]) -> bool:
        self._console.say("Joining cluster... ")
        try:
            await self._setup.join(servers)
        except Fatal:
            self._console.say("failed.\n")
            raise
        except RaftdError as e:
            self._console.say(f"failed: {_one_line(str(e))}\n")
            return False
        finally:
            self._stage_changed()
        self._console.say("joined.\n")
        return True


def _one_line(sentence: str) -> str:
    return " ".join(sentence.split())
