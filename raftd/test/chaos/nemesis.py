"""The nemesis: faults one after another, now and then two at once, as a seed has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random

from raftd.test.chaos.cluster import Cluster
from raftd.test.chaos.faults import FAULTS, MIXED

#: How long a fault lasts, and how long there is peace after it, in seconds.
HOLD_S = (0.5, 4.0)
REST_S = (0.3, 2.0)

#: How often a second fault comes on top of one that bears it.
SHARE_MIXED = 0.3


class Nemesis:
    """Every kind once before any comes again; order, times and aims are the seed's."""

    def __init__(
        self,
        cluster: Cluster,
        kinds: list[str],
        seed: int,
        stopping: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._random = Random(seed)
        self._bag: list[str] = []
        self._stopping = stopping
        self._say = say

    def run(self, until_s: float) -> None:
        """Faults until then; all is well again when it returns, if it can be."""
        while time.monotonic() < until_s and not self._stopping.is_set():
            self._strike()
            self._stopping.wait(self._random.uniform(*REST_S))

    def _strike(self) -> None:
        """One fault, or two, from beginning to end."""
        random, cluster = self._random, self._cluster
        # Drawn before anything depends on what nodes do, so that the plan is the seed's.
        kinds, hold_s = self._next(), random.uniform(*HOLD_S)
        aims = Random(random.random())
        start_s = time.monotonic()
        has_quorum = len(kinds) == 1
        for kind in kinds:
            self._say(f"{kind}")
            lets_work = FAULTS[kind](cluster, aims)
            if lets_work is None:
                self._say(f"{kind}: it could not be done")
                continue
            has_quorum &= lets_work
            cluster.tally.fault(kind)
        self._stopping.wait(hold_s)
        cluster.heal()
        healed_s = time.monotonic()
        self._say("healed")
        cluster.recover()
        end_s = time.monotonic()
        cluster.tally.window(start_s if has_quorum else healed_s, end_s)

    def _next(self) -> list[str]:
        if not self._bag:
            self._bag = self._random.sample(self._kinds, len(self._kinds))
        first = self._bag.pop()
        others = [kind for kind in MIXED if kind in self._kinds and kind != first]
        if first in MIXED and others and self._random.random() < SHARE_MIXED:
            return [first, self._random.choice(others)]
        return [first]
