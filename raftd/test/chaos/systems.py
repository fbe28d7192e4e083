"""What is put to the test, as nemesis and clients see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from raftd.test.chaos.network import Network
from raftd.test.chaos.wire import Wire
from raftd.test.judge.calls import Call, Result
from raftd.test.judge.history import Change

#: A watch that is told nothing for so long goes elsewhere, in seconds; longer
#: than between two signs of life.
SILENCE_S = 16.0


class Seen(NamedTuple):
    """
    What a watch was given: `changes` of a revision, or how far it is.

    `is_compacted`: what comes up to this revision is gone.
    """

    revision: int
    changes: tuple[Change, ...] | None = None
    is_compacted: bool = False


class System(ABC):
    """A kind of server, and how one speaks to it.  Nodes are numbers from 0."""

    name = ""
    #: Faults that make no sense here, each with the reason.
    lacks: dict[str, str] = {}  # noqa: RUF012
    #: Whether its members come, go and change through HTTP.
    has_members = False
    #: Whether `raftd.client` and its recipes can be used.
    has_recipes = False
    #: What a stop in order must exit with.
    stop_statuses: frozenset[int] = frozenset({0})

    def __init__(self, network: Network, count: int) -> None:
        self.network = network
        self.count = count

    @abstractmethod
    def command(self, number: int, directory: Path, is_first: bool) -> Sequence[str]:
        """What starts a node; `is_first`: it creates the cluster."""

    @abstractmethod
    def is_ready(self, wire: Wire, number: int) -> bool:
        """Whether a node is a member that knows a leader."""

    @abstractmethod
    def leader(self, wire: Wire, numbers: Sequence[int]) -> int | None:
        """Who leads, as far as these tell."""

    @abstractmethod
    def transfer(self, wire: Wire, number: int) -> bool:
        """Ask for this node to lead; whether that was done."""

    @abstractmethod
    def perform(self, wire: Wire, number: int, call: Call, retry: str) -> Result:
        """
        Carry out a call through a node; `Refused`, `Uncertain`, `Improper`.

        With a `retry`, a text of its own, it may be sent again, if `can_retry`.
        """

    can_retry = False

    @abstractmethod
    def watch(self, wire: Wire, number: int, prefix: str, revision: int) -> Iterator[Seen]:
        """Changes from `revision` on, 0 for from now on, until the stream breaks."""

    @abstractmethod
    def contents(self, wire: Wire, number: int) -> object:
        """All that a node has by itself, and how far it is; to be compared."""
