"""The nodes of a run together: started, mended, compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from raftd.test.chaos.network import Network
from raftd.test.chaos.nodes import Clock, Node, end_all
from raftd.test.chaos.raftd_system import RaftdSystem
from raftd.test.chaos.systems import System
from raftd.test.chaos.tally import Tally
from raftd.test.chaos.wire import Improper, Wire

#: How long a node may take to be a member that knows a leader, in seconds.
READY_S = 60.0
#: How long a cluster that is whole again may go without an acknowledged write.
SERVICE_S = 30.0
#: How long nodes that are all well may differ.
AGREE_S = 30.0
#: What a node that was removed may take to end, and one whose flush has failed.
END_S = 20.0

POLL_S = 0.05


class Cluster:
    """For one thread, the nemesis's."""

    def __init__(
        self,
        system: System,
        network: Network,
        root: Path,
        tally: Tally,
        clock: Clock | None,
        tree: Path | None,
    ) -> None:
        self.system = system
        self.network = network
        self.tally = tally
        self.root = root
        self.clock = clock
        self.nodes = [Node(n, system, root, clock, tree) for n in range(system.count)]
        self.names = [network.client_name(n) for n in range(system.count)]
        self.wire = Wire(self.names)
        #: Nodes whose flushes fail, and that must end for it.
        self.failing: list[Node] = []
        #: Since when clocks of a node run at another rate; None: they do not.
        self.clocks_differ_since_s: float | None = None

    def start(self) -> None:
        """All of them, as members that know a leader."""
        for node in self.nodes:
            node.start()
            if self.system.has_members:
                self._await_start([node])
        self._await_start(self.nodes)

    def close(self) -> None:
        end_all(self.nodes)
        self.wire.close()

    def leader(self) -> int | None:
        running = [node.number for node in self.nodes if node.is_running]
        return self.system.leader(self.wire, running)

    # -- mending -------------------------------------------------------------------

    def heal(self) -> None:
        """Undo every fault; what has ended is started again by `recover`."""
        self.network.heal()
        for node in self.nodes:
            node.go_on()
            if self.clock is not None:
                self.clock.set(node.number, 0.0)
            if node.rate != 1.0:
                node.kill()
                node.rate = 1.0
        since_s, self.clocks_differ_since_s = self.clocks_differ_since_s, None
        if since_s is not None:
            self.tally.clocks_differed.append((since_s, time.monotonic()))
        for node in self.failing:
            self._check_failed(node)
        self.failing.clear()
        for node in self.nodes:
            node.release()

    def _check_failed(self, node: Node) -> None:
        """A node that was told of a failed flush has stopped by itself, and said so."""
        if not node.injected():
            return
        self.tally.fault("flush failed")
        if node.await_end(END_S) in (0, -9):
            self.tally.violation(
                f"node {node.number} went on after a failed flush ({node.exit_status})"
            )

    def recover(self) -> bool:
        """
        Start whatever does not run; True once all are ready and a write was acknowledged.

        False, and a violation, if that takes too long.
        """
        healed_s = time.monotonic()
        for node in self.nodes:
            node.start()
        is_served = self._wait(lambda: self.tally.last_acknowledged_s() > healed_s, SERVICE_S)
        if not is_served:
            self.tally.violation(f"no write was acknowledged for {SERVICE_S} s after healing")
        is_ready = self._wait(lambda: self.mend() and self._all_ready(), READY_S)
        if not is_ready:
            waiting = [n.number for n in self.nodes if not self._is_ready(n)]
            self.tally.violation(f"nodes {waiting} were not ready {READY_S} s after healing")
        return is_served and is_ready

    def mend(self) -> bool:
        """Start again what has ended, and give a vote to who had one; always True."""
        system = self.system
        if isinstance(system, RaftdSystem):
            members = system.members(self.wire)
            for node in self.nodes:
                role = members.get(self.network.name(node.number))
                if members and role is None and not node.is_running:
                    node.become_new()
                elif role == "learner" and node.is_running:
                    system.set_role(self.wire, node.number, "voter")
        for node in self.nodes:
            node.start()
        return True

    def await_ready(self, node: Node) -> bool:
        """Whether it is ready in time."""
        return self._wait(lambda: self._is_ready(node), READY_S)

    def check_agreement(self) -> None:
        """All have the same, in the end."""
        found: list[object] = []

        def agree() -> bool:
            found[:] = [self.system.contents(self.wire, n) for n in range(self.system.count)]
            return found[0] is not None and all(each == found[0] for each in found)

        try:
            if not self._wait(agree, AGREE_S):
                self.tally.violation(f"the nodes differ {AGREE_S} s after the last write")
        except Improper as e:
            self.tally.violation(str(e))

    # -- waiting -------------------------------------------------------------------

    def _await_start(self, nodes: list[Node]) -> None:
        def ready() -> bool:
            for node in nodes:
                # A joiner that finds nobody yet ends, and is started again.
                node.start()
            return all(map(self._is_ready, nodes))

        if not self._wait(ready, READY_S):
            raise RuntimeError(f"the cluster did not start; see {nodes[-1].log}")

    def _is_ready(self, node: Node) -> bool:
        # A voter that has not recorded that it is one is not at its end yet: stopped
        # then, it says with its status that it was broken off.
        settled = node.is_running and not node.is_joining
        return settled and self.system.is_ready(self.wire, node.number)

    def _all_ready(self) -> bool:
        return all(map(self._is_ready, self.nodes))

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > give_up_at:
                return False
            with suppress(InterruptedError):
                time.sleep(POLL_S)
        return True
