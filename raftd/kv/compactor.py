"""
Forgetting old revisions: by the number that is kept, and by age.

The leader decides and proposes `Compact`, so that all members forget alike.
The age of a revision is counted on the leader's own monotonic clock, from when
the leader has seen it: a new leader begins to count anew, and keeps longer
rather than shorter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from raftd.errors import Compacted, DidNotHappen, OutcomeUnknown, RaftdError
from raftd.interfaces import Done
from raftd.kv.operations import Compact, Operation
from raftd.kv.results import CompactResult, Result

#: How often the leader looks, in seconds.
INTERVAL_S = 10.0
#: How finely ages are told: what is to be kept for `keep_s` is kept longer by a
#: part in so many, or by `INTERVAL_S`.
MAX_SEEN = 1_000
#: A compaction by number waits until so much more than is to be kept is there,
#: as a part of it, so that it is worth its entry in the log.
SLACK = 0.1
#: What the revisions changed that are compacted with one entry, in keys, unless
#: a single one has changed more: some ten milliseconds, for which the entries
#: behind it wait.
PORTION_KEYS = 2_000
#: The same for what the leader compacts by itself: about a millisecond.
SMALL_PORTION_KEYS = 256
#: How long after one of these it proposes the next, in seconds: so they take
#: about a tenth of a core.  Some 24,000 keys a second.
PAUSE_S = 0.01
#: When it tries again after one that has come to nothing, in seconds.
RETRY_S = 1.0


def compact_in_portions(
    propose: Callable[[Compact, Done[Result], bytes], None],
    portion_end: Callable[[int], int],
    revision: int,
    done: Done[Result],
    retry: bytes,
) -> None:
    """
    Compact to `revision`, one portion after the other, so that no write waits
    for long.

    `portion_end` is the end of the portion behind a revision, 0 for the first.

    The first portion claims the idempotency key `retry`, before anything is
    lost: if that was used for something else, nothing is compacted.  The others
    need none, for to compact again what is compacted changes nothing; so a
    retry goes on where an earlier attempt has ended.
    """
    reached = 0
    has_begun = False

    def next_portion() -> None:
        nonlocal reached
        reached = min(portion_end(reached), revision)
        propose(Compact(reached), compacted, b"" if has_begun else retry)

    def compacted(outcome: Result | RaftdError) -> None:
        nonlocal reached, has_begun
        # If somebody has compacted that meanwhile, it is as was wanted; unless all
        # was compacted before, which the first is refused for, now and in any retry.
        is_behind = isinstance(outcome, Compacted) and (
            has_begun or outcome.revision < revision
        )
        if isinstance(outcome, RaftdError) and not is_behind:
            if has_begun and isinstance(outcome, DidNotHappen):
                outcome = OutcomeUnknown(
                    f"Only some of the revisions before {revision} were compacted."
                )
            done(outcome)
            return
        # Of an earlier attempt, perhaps, which went another way.
        if isinstance(outcome, CompactResult):
            reached = outcome.compacted_revision
        elif isinstance(outcome, Compacted):
            reached = outcome.revision
        has_begun = True
        if reached < revision:
            next_portion()
        else:
            done(CompactResult(reached))

    next_portion()


class Compactable(Protocol):
    """What a compactor needs of a `Database`."""

    @property
    def revision(self) -> int: ...
    @property
    def compacted_revision(self) -> int: ...
    def portion_end(self, max_keys: int, after: int = 0) -> int: ...
    def change(self, operation: Operation, done: Done[Result], retry: bytes = b"") -> None: ...


class Compactor:
    """
    While it is `begun`, keeps `keep_revisions` of them (0: any number), and those
    of the last `keep_s` seconds (0: of any age).

    With both, a revision is kept only as long as both permit.

    What goes is proposed in small portions, `PAUSE_S` apart.  If it is not done
    by the next look, more comes than goes, most often, and portions become twice
    as large; once they are `PORTION_KEYS`, there is no pause either.  If it is
    done they become half as large.

    Invariant: one portion is proposed, or `_next` is due, or nothing is left
    that is to go before the next look.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Compactable,
        keep_revisions: int,
        keep_s: float,
    ) -> None:
        self._clock = clock
        self._database = database
        self._keep_revisions = keep_revisions
        self._keep_s = keep_s
        #: (when, the store's revision then), oldest first, and none that is older
        #: than the newest which is old enough: `MAX_SEEN` of them, and two.
        self._seen: deque[tuple[float, int]] = deque()
        self._timer: IDelayedCall | None = None
        #: What is to be compacted to by the next look, and by how many keys at a time.
        self._target = 0
        self._portion_keys = SMALL_PORTION_KEYS
        self._is_proposing = False
        self._next: IDelayedCall | None = None
        self._proposed_at = 0.0

    def begin(self) -> None:
        """This node leads now."""
        if self._keep_revisions or self._keep_s:
            self._look()

    def end(self) -> None:
        """This node leads no longer."""
        self._seen.clear()
        self._target = 0
        self._portion_keys = SMALL_PORTION_KEYS
        for call in (self._timer, self._next):
            if call is not None:
                call.cancel()
        self._timer = self._next = None

    def _look(self) -> None:
        self._timer = self._clock.callLater(INTERVAL_S, self._look)
        if self._database.compacted_revision < self._target:
            self._portion_keys = min(2 * self._portion_keys, PORTION_KEYS)
        else:
            self._portion_keys = max(self._portion_keys // 2, SMALL_PORTION_KEYS)
        self._target = max(self._by_number(), self._by_age())
        if not self._is_proposing and self._next is None:
            self._propose()

    def _propose(self) -> None:
        self._next = None
        database = self._database
        if database.compacted_revision < self._target:
            self._is_proposing = True
            self._proposed_at = self._clock.seconds()
            end = min(database.portion_end(self._portion_keys), self._target)
            database.change(Compact(end), self._compacted)

    def _by_number(self) -> int:
        keep, database = self._keep_revisions, self._database
        if not keep:
            return 0
        kept = database.revision - database.compacted_revision
        return database.revision - keep if kept > keep * (1 + SLACK) else 0

    def _by_age(self) -> int:
        """The newest revision that was there `keep_s` ago, which stays readable."""
        if not self._keep_s:
            return 0
        now, seen = self._clock.seconds(), self._seen
        if not seen or now - seen[-1][0] >= self._keep_s / MAX_SEEN:
            seen.append((now, self._database.revision))
        while len(seen) > 1 and seen[1][0] <= now - self._keep_s:
            seen.popleft()
        return seen[0][1] if seen[0][0] <= now - self._keep_s else 0

    def _compacted(self, outcome: Result | RaftdError) -> None:
        self._is_proposing = False
        pause_s = PAUSE_S if self._portion_keys < PORTION_KEYS else 0.0
        if isinstance(outcome, RaftdError) and not isinstance(outcome, Compacted):
            pause_s = RETRY_S
            if not isinstance(outcome, DidNotHappen):
                self._log.info("A compaction went unanswered: {reason}", reason=str(outcome))
        if self._timer is not None and self._next is None:
            due = self._proposed_at + pause_s
            pause_s = max(0.0, due - self._clock.seconds())
            self._next = self._clock.callLater(pause_s, self._propose)
