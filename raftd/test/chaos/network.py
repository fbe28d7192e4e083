"""The network between nodes, and what can be done to it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from raftd.test.chaos.proxy import Proxies
from raftd.test.processes import free_ports

#: A direction: from one node, by its number, to another.
Way = tuple[int, int]

_PORT = 4001
_PEER_PORT = 4002
#: An address of a network card that nobody has.
_NOWHERE = "02:00:00:00:ff:ff"


class Network(ABC):
    """
    Nodes are numbers from 0.  Clients reach every node, whatever is cut.

    `name` and `peer_name` are HOST:PORT, under which a node is known to the
    others; `client_name` is where clients find it.
    """

    kind = ""
    can_delay = False

    @abstractmethod
    def name(self, number: int) -> str: ...

    @abstractmethod
    def peer_name(self, number: int) -> str: ...

    @abstractmethod
    def client_name(self, number: int) -> str: ...

    def listen(self, number: int) -> str | None:
        """What a node binds, if not its name."""
        return None

    def prefix(self, number: int) -> Sequence[str]:
        """What a command of a node begins with."""
        return ()

    @abstractmethod
    def cut(self, ways: Iterable[Way]) -> None:
        """Let nothing pass these ways any more, silently."""

    def delay(self, number: int, delay_s: float) -> None:
        """Let everything that a node sends take so long."""
        raise NotImplementedError

    @abstractmethod
    def heal(self) -> None:
        """Everything passes again, and at once."""

    @abstractmethod
    def close(self) -> None: ...


class Namespaces(Network):
    """
    A network namespace for each node, on a bridge.

    A way is cut by giving its beginning a wrong hardware address of its end:
    packets leave, and nobody takes them.
    """

    kind = "network namespaces"

    def __init__(self, count: int) -> None:
        self._count = count
        self._holders: list[subprocess.Popen[bytes]] = []
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "chaos", "type", "bridge")
        _ip("addr", "add", "10.77.0.254/24", "dev", "chaos")
        _ip("link", "set", "chaos", "up")
        for number in range(count):
            self._add(number)
        self.can_delay = shutil.which("tc") is not None and self._has_netem()

    def _add(self, number: int) -> None:
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        holder.stdout.readline()
        link = f"node{number}"
        _ip(
            "link",
            "add",
            link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            f"{holder.pid}",
        )
        _ip("link", "set", link, "master", "chaos", "up")
        inside = self.prefix(number)
        _ip("addr", "add", f"{self._host(number)}/24", "dev", "eth0", prefix=inside)
        _ip("link", "set", "eth0", "up", prefix=inside)
        _ip("link", "set", "lo", "up", prefix=inside)

    def _host(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    def name(self, number: int) -> str:
        return f"{self._host(number)}:{_PORT}"

    client_name = name

    def peer_name(self, number: int) -> str:
        return f"{self._host(number)}:{_PEER_PORT}"

    def prefix(self, number: int) -> Sequence[str]:
        return ("nsenter", "-t", str(self._holders[number].pid), "-n")

    def cut(self, ways: Iterable[Way]) -> None:
        for start, end in ways:
            where = (self._host(end), "lladdr", _NOWHERE, "dev", "eth0", "nud", "permanent")
            _ip("neigh", "replace", *where, prefix=self.prefix(start))

    def _has_netem(self) -> bool:
        arguments = [*self.prefix(0), "tc", "qdisc", "add", "dev", "eth0", "root", "netem"]
        done = subprocess.run([*arguments, "delay", "0ms"], capture_output=True, check=False)
        return done.returncode == 0

    def delay(self, number: int, delay_s: float) -> None:
        command = [*self.prefix(number), "tc", "qdisc", "replace", "dev", "eth0", "root"]
        subprocess.run([*command, "netem", "delay", f"{delay_s * 1e3:.0f}ms"], check=True)

    def heal(self) -> None:
        for number in range(self._count):
            prefix = self.prefix(number)
            _ip("neigh", "flush", "dev", "eth0", "nud", "permanent", prefix=prefix)
            if self.can_delay:
                self.delay(number, 0.0)

    def close(self) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()
            if holder.stdout is not None:
                holder.stdout.close()


def _ip(*arguments: str, prefix: Sequence[str] = ()) -> None:
    subprocess.run([*prefix, "ip", *arguments], check=True, capture_output=True)


class Loopback(Network):
    """Everything on loopback; between nodes there is a proxy of our own."""

    kind = "a proxy on loopback"
    can_delay = True

    def __init__(self, count: int) -> None:
        ports = free_ports(2 * count)
        self._fronts, self._backs = ports[:count], ports[count:]
        self._proxies = Proxies(list(zip(self._fronts, self._backs, strict=True)))
        self._count = count

    def name(self, number: int) -> str:
        return f"localhost:{self._fronts[number]}"

    peer_name = name

    def client_name(self, number: int) -> str:
        return f"127.0.0.1:{self._backs[number]}"

    def listen(self, number: int) -> str | None:
        return self.client_name(number)

    def cut(self, ways: Iterable[Way]) -> None:
        self._proxies.cut(ways)

    def delay(self, number: int, delay_s: float) -> None:
        self._proxies.delay(number, delay_s)

    def heal(self) -> None:
        self._proxies.heal()

    def close(self) -> None:
        self._proxies.close()


def both_ways(ways: Iterable[Way]) -> list[Way]:
    """These ways, and back."""
    return [way for start, end in ways for way in ((start, end), (end, start))]


def between(some: Iterable[int], others: Iterable[int]) -> list[Way]:
    """All ways from some nodes to others."""
    return [way for way in itertools.product(some, others) if way[0] != way[1]]
