"""A node as a program uses it: with Deferreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred

from raftd.core.membership import Change, Configuration
from raftd.core.messages import Command, MemberId, encode_command
from raftd.errors import NotRunning, RaftdError
from raftd.events import Observer
from raftd.interfaces import Done, NodeStatus
from raftd.node import Node

T = TypeVar("T")


class Handle:
    """
    What a program may ask of the node that it runs, once there is one.

    Every Deferred fires within the request timeout.  It fails with a
    `DidNotHappen` if nothing was changed, so that asking again is safe; with
    `OutcomeUnknown`, for what changes something, if nobody can say.  Until there
    is a node that is `NotRunning`, which `observe` and `status` raise.
    """

    def __init__(self, node: Node | None = None) -> None:
        self._node = node
        self._on_question: Callable[[bytes, Done[bytes]], None] | None = None

    @property
    def node(self) -> Node:
        """The node; `NotRunning` until it runs."""
        if self._node is None:
            raise NotRunning("The node is not running yet.")
        return self._node

    @property
    def on_question(self) -> Callable[[bytes, Done[bytes]], None] | None:
        """
        What this program says, when its node leads, to the questions of
        `ask_leader`; set it before the node runs.

        Called with the question and with `done`, which it calls once, now or
        later, with the answer or with a `RaftdError` (`NotLeader`: another
        leads by now, and is to be asked).  It must not raise.
        """
        return self._on_question

    @on_question.setter
    def on_question(self, answer: Callable[[bytes, Done[bytes]], None] | None) -> None:
        self._on_question = answer
        if self._node is not None:
            self._node.on_question = answer

    def propose(self, operation: bytes) -> Deferred[bytes]:
        """Replicate `operation` and apply it; what the state machine answered."""
        data = encode_command(Command(operation))
        return self._ask(lambda node, done: node.propose(data, done))

    def read(self) -> Deferred[None]:
        """
        Fires when the state machine of this very node has everything that was
        acknowledged anywhere before the call: what is read from it then, at
        once, is linearizable (thesis 6.4).
        """
        return self._ask(lambda node, done: node.read(done))

    def read_recent(self, max_staleness_s: float) -> Deferred[None]:
        """
        Likewise, but what was acknowledged in the last `max_staleness_s`
        seconds may be missing; often fires at once.  `TooStale` if this node's
        state is older than that, and cannot be confirmed.
        """
        return self._ask(lambda node, done: node.read_recent(max_staleness_s, done))

    def ask_leader(self, question: bytes) -> Deferred[bytes]:
        """
        What the leader's own program says to `question` (`on_question`),
        wherever it is; asked again while there is no leader, so a question
        must change nothing that may not be changed twice.
        """
        return self._ask(lambda node, done: node.ask_leader(question, done))

    def change_membership(
        self, changes: Sequence[Change], *, force: bool = False
    ) -> Deferred[Configuration]:
        """
        Make all `changes` together (thesis 4); the configuration that results.

        `ChangeRefused`, or a subclass that says why.  With `force` they are
        made even if too few of the voters that there would be answer now.
        """
        return maybeDeferred(lambda: self.node.change_membership(changes, force))

    def transfer(self, successor: MemberId | None = None) -> Deferred[None]:
        """Let another voter lead, by default the one best prepared (thesis 3.10)."""
        return maybeDeferred(lambda: self.node.transfer(successor))

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` with every `raftd.events.Event`; what is returned ends it."""
        return self.node.observe(observer)

    def status(self) -> NodeStatus:
        """What the node knows of itself and its cluster right now."""
        return self.node.status()

    def _ask(self, ask: Callable[[Node, Done[T]], None]) -> Deferred[T]:
        """A Deferred in the place of a `done`."""
        answered: Deferred[T] = Deferred()

        def done(outcome: T | RaftdError) -> None:
            if isinstance(outcome, RaftdError):
                answered.errback(outcome)
            else:
                answered.callback(outcome)

        try:
            node = self.node
        except NotRunning as e:
            return fail(e)
        ask(node, done)
        return answered
