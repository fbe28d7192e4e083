"""
Frames: how the states of state machines are written down, slice by slice.

A state goes through files and connections that cut it as they like.  A frame
is four bytes, little-endian, that say how many follow, and so many bytes; a
slice is one frame or several.

There is no smaller bound on a frame than its length field, for the bytes were
checked, as a file, before they are believed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any

#: How long a slice should be, in bytes: one that is longer holds one thing only.
SLICE_BYTES = 64 * 1024

_length = Struct("<I")


def frame(content: bytes) -> bytes:
    """`content` as a frame; at most 2**32 - 1 bytes."""
    return _length.pack(len(content)) + content


class Unframer:
    """Frames, put together again from bytes that come cut anywhere."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self._buffer += data

    def take(self) -> bytes | None:
        """The content of the next frame, None until it is complete."""
        buffer = self._buffer
        if len(buffer) < _length.size:
            return None
        end = _length.size + _length.unpack_from(buffer)[0]
        if len(buffer) < end:
            return None
        content = bytes(memoryview(buffer)[_length.size : end])
        del buffer[:end]
        return content

    def take_rest(self) -> bytes:
        """Everything that was fed and not taken, which need not be a frame."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


class InTurn(Iterator[bytes]):
    """The slices of a part of a state, then those of the rest; closing ends both."""

    def __init__(self, first: Iterator[bytes], rest: Iterator[bytes]) -> None:
        self._first: Iterator[bytes] = first
        self._rest: Iterator[bytes] | None = rest

    def __next__(self) -> bytes:
        if self._rest is None:
            raise StopIteration
        for content in self._first:
            return content
        return next(self._rest)

    def close(self) -> None:
        """Give it up; nothing happens if it is at its end."""
        parts: tuple[Any, ...] = (self._first, self._rest)
        self._first, self._rest = iter(()), None
        for part in parts:
            close = getattr(part, "close", None)
            if close is not None:
                close()
