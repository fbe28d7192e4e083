"""
What the nemesis does: each kind of fault by its name.

A fault begins here, and ends with `Cluster.heal` and `Cluster.recover`; those
of the second half are over when they return.  Each says whether a quorum can
work while it lasts; None if nothing was done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from random import Random

from raftd.test.chaos.cluster import END_S, Cluster
from raftd.test.chaos.network import between, both_ways
from raftd.test.chaos.nodes import Node, can_trace
from raftd.test.chaos.raftd_system import RaftdSystem

#: How far a wall clock may step, in seconds, either way.
MAX_STEP_S = 86_400
#: The rates at which a clock may run.
RATES = (0.8, 0.9, 1.1, 1.25)
#: What a slow flush takes, in microseconds, and a slow link, in seconds.
SLOW_FLUSHES_US = (20_000, 100_000, 300_000)
SLOW_LINKS_S = (0.02, 0.05, 0.15)

Fault = Callable[[Cluster, Random], bool | None]


def _target(cluster: Cluster, random: Random) -> Node:
    """The leader, half of the time; else anyone."""
    number = cluster.leader() if random.random() < 0.5 else None
    if number is None:
        number = random.randrange(cluster.system.count)
    return cluster.nodes[number]


def _rest(cluster: Cluster, node: Node) -> list[int]:
    return [other.number for other in cluster.nodes if other is not node]


# -- processes ---------------------------------------------------------------------


def kill(cluster: Cluster, random: Random) -> bool:
    """`kill -9` of one."""
    _target(cluster, random).kill()
    return True


def kill_all(cluster: Cluster, random: Random) -> bool:
    """`kill -9` of all, as near to at once as may be."""
    for node in random.sample(cluster.nodes, len(cluster.nodes)):
        node.kill()
    return False


def pause(cluster: Cluster, random: Random) -> bool:
    """SIGSTOP to one; it does not know that time has passed when it goes on."""
    _target(cluster, random).pause()
    return True


def pause_many(cluster: Cluster, random: Random) -> bool:
    """SIGSTOP to a majority."""
    count = len(cluster.nodes) // 2 + 1
    for node in random.sample(cluster.nodes, count):
        node.pause()
    return False


# -- the network ---------------------------------------------------------------------


def isolate_leader(cluster: Cluster, random: Random) -> bool:
    """No other node hears the leader, nor it them; clients reach it all the same."""
    number = cluster.leader()
    node = cluster.nodes[random.randrange(cluster.system.count) if number is None else number]
    cluster.network.cut(both_ways(between([node.number], _rest(cluster, node))))
    return True


def split(cluster: Cluster, random: Random) -> bool:
    """A majority and a minority."""
    numbers = random.sample(range(cluster.system.count), cluster.system.count)
    half = len(numbers) // 2
    cluster.network.cut(both_ways(between(numbers[:half], numbers[half:])))
    return True


def one_way(cluster: Cluster, random: Random) -> bool:
    """One is heard but does not hear, or hears but is not heard."""
    node = _target(cluster, random)
    ways = between([node.number], _rest(cluster, node))
    cluster.network.cut(ways if random.random() < 0.5 else [(b, a) for a, b in ways])
    return True


def partial(cluster: Cluster, random: Random) -> bool:
    """A chain: each reaches only its neighbours."""
    order = random.sample(range(cluster.system.count), cluster.system.count)
    ways = [(a, b) for i, a in enumerate(order) for j, b in enumerate(order) if j > i + 1]
    cluster.network.cut(both_ways(ways))
    return True


def slow_link(cluster: Cluster, random: Random) -> bool:
    """What one sends is late."""
    cluster.network.delay(_target(cluster, random).number, random.choice(SLOW_LINKS_S))
    return True


# -- clocks ----------------------------------------------------------------------------


def clock_step(cluster: Cluster, random: Random) -> bool:
    """Wall clocks of some nodes step, far and either way."""
    assert cluster.clock is not None
    for node in cluster.nodes:
        if random.random() < 0.7:
            cluster.clock.set(node.number, random.uniform(-MAX_STEP_S, MAX_STEP_S))
    return True


def clock_rate(cluster: Cluster, random: Random) -> bool:
    """All clocks of one node run at another rate, from a restart to the next one."""
    node = _target(cluster, random)
    cluster.clocks_differ_since_s = time.monotonic()
    node.kill()
    node.rate = random.choice(RATES)
    node.start()
    return True


# -- disks -------------------------------------------------------------------------------


def flush_error(cluster: Cluster, random: Random) -> bool | None:
    """Every flush of one fails from now on; it has to stop by itself."""
    node = _target(cluster, random)
    if not node.is_running:
        return None
    node.trace("error=EIO")
    cluster.failing.append(node)
    return True


def slow_flush(cluster: Cluster, random: Random) -> bool | None:
    """Every flush of one takes long."""
    node = _target(cluster, random)
    if not node.is_running:
        return None
    node.trace(f"delay_exit={random.choice(SLOW_FLUSHES_US)}")
    return True


# -- those that are over when they return ----------------------------------------------------


def rolling_restart(cluster: Cluster, random: Random) -> bool:
    """Each in turn is stopped in order, and started again."""
    for node in random.sample(cluster.nodes, len(cluster.nodes)):
        if not cluster.await_ready(node):
            break
        status = node.stop()
        if status not in cluster.system.stop_statuses:
            cluster.tally.violation(f"node {node.number} stopped with the status {status}")
        node.start()
        cluster.await_ready(node)
    return True


def transfer(cluster: Cluster, random: Random) -> bool | None:
    """Another one is asked to lead, some times."""
    done = [
        cluster.system.transfer(cluster.wire, random.randrange(cluster.system.count))
        for _ in range(random.randrange(1, 4))
    ]
    return True if any(done) else None


def demote(cluster: Cluster, random: Random) -> bool | None:
    """One loses its vote and gets it back."""
    system, node = cluster.system, _target(cluster, random)
    assert isinstance(system, RaftdSystem)
    status = system.set_role(cluster.wire, node.number, "learner")
    time.sleep(random.uniform(0.2, 1.5))
    # If this fails, `recover` does it.
    system.set_role(cluster.wire, node.number, "voter")
    return True if status == 200 else None


def replace(cluster: Cluster, random: Random) -> bool | None:
    """One is removed, which it is told and ends; and joins as a new member."""
    system, node = cluster.system, _target(cluster, random)
    assert isinstance(system, RaftdSystem)
    give_up_at = time.monotonic() + END_S
    while (status := system.remove(cluster.wire, node.number)) not in (200, 404):
        if status == 409 or time.monotonic() > give_up_at:
            return None
        time.sleep(0.2)
    if node.await_end(END_S) == -9:
        cluster.tally.violation(f"node {node.number} was removed and did not end")
    node.become_new()
    node.start()
    cluster.await_ready(node)
    return True


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "kill all": kill_all,
    "pause": pause,
    "pause many": pause_many,
    "isolate leader": isolate_leader,
    "split": split,
    "one way": one_way,
    "partial": partial,
    "slow link": slow_link,
    "clock step": clock_step,
    "clock rate": clock_rate,
    "flush error": flush_error,
    "slow flush": slow_flush,
    "rolling restart": rolling_restart,
    "transfer": transfer,
    "demote": demote,
    "replace": replace,
}

#: Those that may come on top of one that lasts, and bear one beneath them.
MIXED = ("kill", "pause", "isolate leader", "split", "one way", "partial", "clock step")


def impossible(cluster: Cluster) -> dict[str, str]:
    """Which faults cannot be done here, and why."""
    lacking = dict(cluster.system.lacks)
    if cluster.clock is None:
        for kind in ("clock step", "clock rate"):
            lacking.setdefault(kind, "libfaketime is not installed")
    if not cluster.network.can_delay:
        lacking["slow link"] = "the kernel has no netem"
    if shutil.which("strace") is None:
        why = "strace is not installed"
    elif not can_trace(cluster.root):
        why = "strace may not trace here"
    else:
        return lacking
    return {**lacking, "flush error": why, "slow flush": why}
