"""
Frames: how the states of state machines are written down, slice by slice.

A state goes through files and connections that cut it as they like.  A frame
is four bytes, little-endian, that say how many follow, and so many bytes; a
slice is one frame or several.

There is no smaller bound on a frame than its length field, for the bytes were
checked, as a file, before they are believed here.
"""

from __future__ import annotations

from struct import Struct

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
