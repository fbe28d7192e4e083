"""
A table, and the state of the machine that it wraps, on their way in.

The way out is `raftd.slices.InTurn`: frames of the table, an empty one at its
end, and then whatever the inner machine gave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec
from zope.interface import implementer

from raftd.interfaces import IRestore
from raftd.slices import Unframer


@implementer(IRestore)
class TableRestore(ABC):
    """
    See `IRestore`.  A subclass knows the table: its `_begin`, `_take`, `_check`
    raise `ValueError`, or msgspec's errors, for what makes no sense.
    """

    #: What the table is of, for sentences.
    what: str

    def __init__(self, inner: IRestore) -> None:
        self._inner = inner
        self._frames = Unframer()
        self._has_begun = False
        #: The table is complete: what follows is the inner machine's.
        self._is_complete = False
        #: Nothing more may be written: it was finished, or it failed.
        self._over = False

    @abstractmethod
    def _begin(self, head: bytes) -> None:
        """The content of the first frame."""

    @abstractmethod
    def _take(self, rows: bytes) -> None:
        """That of each further one."""

    @abstractmethod
    def _is_whole(self) -> bool:
        """Whether there is as much as the head has promised."""

    @abstractmethod
    def _become(self) -> None:
        """The table is the one, now that the inner state is."""

    def write(self, data: bytes) -> None:
        """See `IRestore.write`."""
        if self._over:
            raise ValueError(f"The state is over, or was none with {self.what}.")
        try:
            if not self._is_complete:
                data = self._write_table(data)
            if data:
                self._inner.write(data)
        except (msgspec.MsgspecError, RecursionError) as e:
            self._over = True
            raise ValueError(f"Not a table of {self.what}: {e}") from None
        except ValueError:
            self._over = True
            raise

    def _write_table(self, data: bytes) -> bytes:
        """Take what is the table's; what is not."""
        self._frames.feed(data)
        while (content := self._frames.take()) is not None:
            if not self._has_begun:
                self._begin(content)
                self._has_begun = True
            elif content:
                self._take(content)
            elif not self._is_whole():
                raise ValueError(f"The table of {self.what} is not complete.")
            else:
                self._is_complete = True
                return self._frames.take_rest()
        return b""

    def finish(self) -> None:
        """See `IRestore.finish`."""
        if self._over or not self._is_complete:
            raise ValueError(f"The table of {self.what} is not complete.")
        self._over = True
        self._inner.finish()
        self._become()
