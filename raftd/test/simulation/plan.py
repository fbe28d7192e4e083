"""
What a seed means: how large a cluster is and what it is like, and what befalls it.

The plan is drawn before anything runs, and each fault has randomness of its
own: leaving one out leaves the others as they were.  That is what shrinking
rests on.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import NamedTuple

from raftd.replica import ReplicaOptions

#: How long things go wrong, in seconds of true time.
FAULTY_S = (5.0, 10.0)
#: How many faults there are at most, of each second.
FAULTS_PER_S = 3.0

#: What befalls a cluster, and how often in comparison.
KINDS = {
    "kill": 2,
    "power loss": 2,
    "crash at operation": 6,
    "crash at message": 3,
    "power loss of all": 1,
    "stop": 1,
    "cut": 3,
    "one-way cut": 2,
    "chain": 1,
    "partial cut": 2,
    "loss": 2,
    "delay": 1,
    "duplication": 2,
    "flush error": 2,
    "snapshot error": 1,
    "full disk": 1,
    "slow disk": 2,
    "pause": 2,
    "suspension": 1,
    "transfer": 2,
    "add": 2,
    "promote": 2,
    "demote": 1,
    "remove": 1,
    "replace": 1,
    "reshape": 3,
    "rename": 1,
}
#: A bit of a file of one host.  Not among the others, and drawn apart from them: how many
#: there are changes nothing of what else befalls a cluster.
FLIP = "bit flip"
#: In so many of the runs bits flip, and then so often.
FLIP_SHARE = 0.3
FLIPS = (1, 5)


class Fault(NamedTuple):
    """Something that goes wrong: when, and what; whom it meets is drawn from `salt`."""

    number: int
    at: float
    kind: str
    salt: str


class Plan:
    """
    Everything about a run that is not a matter of chance in the run itself.

    `only`: of the faults, those with these numbers; None for all.
    """

    def __init__(self, seed: int, only: Collection[int] | None = None) -> None:
        self.seed = seed
        random = Random(f"plan {seed}")
        self.size = random.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7))
        self.segment_bytes = random.choice((4096, 8192, 32768))
        self.lease_reads = random.random() < 0.2
        # With leases no clock may be much faster than another (docs/reads.md).
        self._rate_spread = random.choice((0.0, 0.05, 0.08 if self.lease_reads else 0.4))
        self.creep_s = random.choice((0.0, 0.0, 0.000005, 0.0001))
        self.check_interval_s = random.choice((0.5, 2.0, 60.0))
        self.max_delay_s = random.choice((0.002, 0.002, 0.02, 0.05))
        self.loss = random.choice((0.0, 0.0, 0.0, 0.001, 0.01))
        self.duplication = random.choice((0.0, 0.0, 0.02, 0.2))
        self.options = ReplicaOptions(
            request_timeout_ms=3_000,
            snapshot_threshold_bytes=random.choice((500, 1_500, 4_000)),
            snapshot_tail_entries=random.choice((0, 3, 10)),
            lease_reads=self.lease_reads,
        )
        self.clients = random.choice((2, 3, 4))
        self.think_s = random.choice((0.02, 0.1))
        self.faulty_s = random.uniform(*FAULTY_S)
        faults = self._draw(random)
        faults += self._draw_flips(len(faults))
        self.faults = [fault for fault in faults if only is None or fault.number in only]

    def _draw(self, random: Random) -> list[Fault]:
        # Some runs have few kinds of faults, and those often.
        kinds = dict(KINDS)
        if random.random() < 0.5:
            for kind in random.sample(list(kinds), len(kinds) * 2 // 3):
                del kinds[kind]
        if self.lease_reads:
            # A clock that stands still breaks what leases assume.
            kinds.pop("suspension", None)
        count = int(self.faulty_s * random.uniform(0.3, FAULTS_PER_S))
        times = sorted(random.uniform(0.5, self.faulty_s) for _ in range(count))
        drawn = random.choices(list(kinds), list(kinds.values()), k=count)
        return [
            Fault(number, at, kind, f"fault {self.seed} {number}")
            for number, (at, kind) in enumerate(zip(times, drawn, strict=True))
        ]

    def _draw_flips(self, first: int) -> list[Fault]:
        random = Random(f"flips {self.seed}")
        count = random.randint(*FLIPS) if random.random() < FLIP_SHARE else 0
        return [
            Fault(
                number,
                random.uniform(0.5, self.faulty_s),
                FLIP,
                f"fault {self.seed} {number}",
            )
            for number in range(first, first + count)
        ]

    def rate(self, host_id: int, incarnation: int) -> float:
        """How fast the clock of a process runs."""
        random = Random(f"rate {self.seed} {host_id} {incarnation}")
        return 1.0 + random.uniform(-self._rate_spread, self._rate_spread)

    @property
    def slowest_rate(self) -> float:
        return 1.0 - self._rate_spread

    @property
    def fastest_rate(self) -> float:
        return 1.0 + self._rate_spread
