"""
A proxy between nodes that share one loopback, with a rule for each direction.

Who calls is read from the first box of a connection, `Hello`, which has the
caller's name (`docs/peer-protocol.md`).  What a cut way holds back is not lost
but late, as TCP has it; a connection that is closed meanwhile takes it along.
What is not of the peers' protocol passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence

#: Of a connection, as much as is read at once.
CHUNK = 65_536
#: The first box must have come by then, in bytes.
MAX_HELLO = 8_192

Way = tuple[int, int]


class Proxies:
    """A thread with a listener before each node; `ports` are (front, back)."""

    def __init__(self, ports: Sequence[tuple[int, int]]) -> None:
        self._ports = ports
        self._numbers = {f"localhost:{front}".encode(): i for i, (front, _) in enumerate(ports)}
        self._cut: set[Way] = set()
        self._delays_s: dict[int, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._healed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        for number in range(len(ports)):
            asyncio.run_coroutine_threadsafe(self._listen(number), self._loop).result()

    def cut(self, ways: Iterable[Way]) -> None:
        """Let nothing pass these ways."""
        added = set(ways)
        self._loop.call_soon_threadsafe(self._cut.update, added)

    def delay(self, number: int, delay_s: float) -> None:
        """Whatever this node sends takes so long."""
        self._loop.call_soon_threadsafe(self._delays_s.__setitem__, number, delay_s)

    def heal(self) -> None:
        """Everything passes."""
        self._loop.call_soon_threadsafe(self._heal)

    def close(self) -> None:
        """No connection is left."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _heal(self) -> None:
        self._cut.clear()
        self._delays_s.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    async def _listen(self, number: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._carry(number, reader, writer)
            except (OSError, asyncio.CancelledError):
                # What is cancelled ends here, and nobody asks how.
                pass
            finally:
                self._tasks.discard(task)
                writer.close()

        await asyncio.start_server(serve, "127.0.0.1", self._ports[number][0])

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        hello = await _first_box(reader)
        caller = self._numbers.get(_value(hello, b"name"), -1)
        await self._pass(caller, number)
        back_reader, back_writer = await asyncio.open_connection(
            "127.0.0.1", self._ports[number][1]
        )
        try:
            back_writer.write(hello)
            ways = (
                asyncio.ensure_future(self._pump(reader, back_writer, caller, number)),
                asyncio.ensure_future(self._pump(back_reader, writer, number, caller)),
            )
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            back_writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        start: int,
        end: int,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._pass(start, end)
                writer.write(data)
                await writer.drain()
            await self._pass(start, end)

    async def _pass(self, start: int, end: int) -> None:
        """Wait until something may pass."""
        delay_s = self._delays_s.get(start, 0.0)
        if delay_s:
            await asyncio.sleep(delay_s)
        while (start, end) in self._cut:
            await self._healed.wait()


async def _first_box(reader: asyncio.StreamReader) -> bytes:
    """As much as came first: a whole box, if it is one."""
    data = await reader.read(CHUNK)
    while data[:1] == b"\0" and b"\0\0" not in data[-2:] and len(data) < MAX_HELLO:
        more = await reader.read(CHUNK)
        if not more:
            break
        data += more
    return data


def _value(box: bytes, wanted: bytes) -> bytes:
    """The value of a key of a box; empty if it has none, or is no box."""
    at, parts = 0, []
    while at + 2 <= len(box):
        size = int.from_bytes(box[at : at + 2], "big")
        if not size:
            break
        parts.append(box[at + 2 : at + 2 + size])
        at += 2 + size
    return dict(zip(parts[::2], parts[1::2], strict=False)).get(wanted, b"")
