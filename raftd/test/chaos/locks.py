"""
Locks with fencing tokens, by the recipes of `raftd.client`, in a process of their own.

`python -m raftd.test.chaos.locks SEED HOST:PORT...` prints a line of JSON for
whatever happens, in order, until its input ends.  `judge` reads them: one
holds at a time, each as long as it says that it certainly does; tokens only
grow; and what is put under `held.is_mine` never goes back.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Collection, Iterable
from random import Random
from typing import Any, Literal

import msgspec
from twisted.internet import task
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater

from raftd.client import Client
from raftd.client.recipes import Lock
from raftd.client.recipes.locks import Held
from raftd.client.transactions import get, put
from raftd.client.values import Page
from raftd.clock import use_monotonic
from raftd.errors import RaftdError

CONTENDERS = 3
TTL_S = 3.0
#: How long a lock is held, and then not asked for, in seconds: at most so long.
HOLD_S = 0.5
LOCK = "chaos-lock/one"
FENCED = "chaos-lock-fenced"


class Event(msgspec.Struct, frozen=True):
    """
    `who` holds from now on; may not any more; or has put its token.

    `before` is the token that it replaced.
    """

    kind: Literal["held", "ended", "put"]
    who: int
    token: int
    at_s: float
    before: int = 0


class Contender:
    """One who wants the lock again and again."""

    def __init__(self, reactor: Any, client: Client, who: int, seed: str) -> None:
        self._reactor = reactor
        self._client = client
        self._who = who
        self._random = Random(f"{seed}/lock/{who}")
        self._holding: int | None = None

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                held = await Lock(self._client, LOCK, ttl_s=TTL_S).acquire()
            except RaftdError:
                await self._sleep(self._random.uniform(0.1, HOLD_S))
                continue
            if held is not None:
                await self._hold(held)
            await self._sleep(self._random.uniform(0, HOLD_S))

    async def _hold(self, held: Held) -> None:
        if held.is_held:
            self._holding = held.token
            self._say("held", held.token)
            held.lost().addCallback(lambda _: self._ended(held.token))
        try:
            for _ in range(self._random.randrange(4)):
                await self._put(held)
                await self._sleep(self._random.uniform(0, HOLD_S / 3))
        except RaftdError:
            pass
        self._ended(held.token)
        with contextlib.suppress(RaftdError):
            await held.release()

    async def _put(self, held: Held) -> None:
        """Only the holder can; so nobody with a smaller token can come later."""
        outcome = await self._client.transact(
            [held.is_mine], [get(FENCED), put(FENCED, str(held.token))]
        )
        if outcome.succeeded:
            page = outcome.results[0]
            assert isinstance(page, Page)
            before = int(page.kvs[0].value) if page.kvs else 0
            self._say("put", held.token, before)

    def _ended(self, token: int) -> None:
        if self._holding == token:
            self._holding = None
            self._say("ended", token)

    def _say(self, kind: Any, token: int, before: int = 0) -> None:
        event = Event(kind, self._who, token, time.monotonic(), before)
        sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
        sys.stdout.buffer.flush()

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._reactor, seconds, lambda: None)


async def contend(reactor: Any, seed: str, names: list[str]) -> None:
    """All of them, until the input ends."""
    use_monotonic(reactor)
    over: Deferred[None] = Deferred()

    def await_end() -> None:
        sys.stdin.buffer.read()
        reactor.callFromThread(over.callback, None)

    threading.Thread(target=await_end, daemon=True).start()
    client = Client(reactor, names)
    running = [
        Deferred.fromCoroutine(Contender(reactor, client, who, seed).run())
        for who in range(CONTENDERS)
    ]
    await DeferredList([over, *running], fireOnOneCallback=True, fireOnOneErrback=True)
    for each in running:
        each.addErrback(lambda _: None)
        each.cancel()


class Verdict(msgspec.Struct, frozen=True):
    """How often the lock was held, how often something was put; and what was wrong."""

    held: int
    puts: int
    wrong: list[str]


def judge(
    events: Iterable[Event], clocks_differed: Collection[tuple[float, float]] = ()
) -> Verdict:
    """
    Whether one held at a time, tokens only grew, and nothing that was put was lost.

    `clocks_differed`: from when to when, in seconds, a node's clocks ran at
    another rate.  If it leads then, it may end a lease before its owner knows.
    The owner believes in a lease for one `TTL_S` at most from the last time that
    it was told, which was by such a node at the latest when that ended; what
    such a node has recorded of what is left of leases is for those that nobody
    has kept alive since.  So whoever comes to hold the lock up to one `TTL_S`
    behind may find another who still does, and be told of it out of turn.
    Before, and from then on, nobody may, nor may those still hold who have lost
    it; and what transactions have guarded is judged at any time.
    """
    held = puts = greatest = greatest_put = 0
    #: Tokens of those who hold.
    holders: set[int] = set()
    wrong: list[str] = []
    for event in events:
        if event.kind == "put":
            puts += 1
            if event.before > event.token:
                wrong.append(f"token {event.token} was put after {event.before}")
            if event.before < greatest_put <= event.token:
                wrong.append(f"token {event.token} found {event.before}, not {greatest_put}")
            greatest_put = max(greatest_put, event.token)
        elif event.kind == "ended":
            holders.discard(event.token)
        else:
            held += 1
            if not any(a <= event.at_s <= b + TTL_S for a, b in clocks_differed):
                wrong += [
                    f"{event.token} holds, and {token} still does" for token in sorted(holders)
                ]
                if event.token <= greatest:
                    wrong.append(f"token {event.token} came after {greatest}")
            greatest = max(greatest, event.token)
            holders.add(event.token)
    return Verdict(held, puts, wrong)


def read(data: bytes) -> list[Event]:
    """What was printed; a line that was cut off is left out."""
    lines = data.split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Event) for line in lines]


if __name__ == "__main__":
    task.react(
        lambda reactor: Deferred.fromCoroutine(contend(reactor, sys.argv[1], sys.argv[2:]))
    )
