"""
The port of a name: which addresses it means, and listening on them.

A name is where other nodes and clients reach this one, so it is resolved as
they would resolve it, and listened on at every address of this machine that
comes out.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from raftd.bursts import Burst
from raftd.errors import BadAnswer
from raftd.names import split_name

#: Connections that the kernel keeps for the reactor to accept.
BACKLOG = 1024

_log = Logger()


def resolve(host: str) -> list[str]:
    """
    The addresses of `host`, each once.  Blocks on the resolver.

    `localhost` means both loopback addresses, whatever the machine's files
    say (RFC 6761, section 6.3).  `BadAnswer` if the host is not known.
    """
    if host.rstrip(".").lower() == "localhost":
        return ["127.0.0.1", "::1"]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise BadAnswer(f"The host {host} is not known: {reason}.") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine can reach `address`."""
    return ipaddress.ip_address(address).is_loopback


def check_exposure(name: str, addresses: Sequence[str], insecure: bool) -> None:
    """
    `BadAnswer` if others could reach these addresses and nobody has allowed it.

    A host that others resolve, and that this machine takes for itself alone,
    is worth a warning: nobody else will get through.
    """
    for address in map(ipaddress.ip_address, addresses):
        if address.is_multicast:
            raise BadAnswer(f"{address} is an address of many, not of this machine.")
    beyond = [a for a in addresses if not is_loopback(a)]
    if beyond and not insecure:
        raise BadAnswer(
            f"{name} can be reached from other machines (at {beyond[0]}), and nothing that "
            "raftd sends is encrypted or authenticated yet. Use a loopback name such as "
            "localhost, or start raftd with --insecure to accept that."
        )
    host, _ = split_name(name)
    if not beyond and not _is_loopback_name(host):
        _log.warn(
            "{host} leads to {addresses} only: no other machine can reach this node. "
            "The file /etc/hosts may say so.",
            host=host,
            addresses=", ".join(addresses),
        )


def _is_loopback_name(host: str) -> bool:
    try:
        return is_loopback(host)
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def listen(
    reactor: Any,
    addresses: Sequence[str],
    port: int,
    factory: IProtocolFactory,
    burst: Burst | None = None,
) -> list[IListeningPort]:
    """
    Listen on all `addresses` that this machine has; `reactor` is an `IReactorTCP`.

    The connections take part in `burst`, or, without one, in one of their own.
    `BadAnswer` if it has none of them, or if something listens there already.
    """
    ports: list[IListeningPort] = []
    burst = burst or Burst(reactor)
    for address in addresses:
        try:
            bound = reactor.listenTCP(port, factory, backlog=BACKLOG, interface=address)
        except CannotListenError as e:
            reason = getattr(e.socketError, "errno", None)
            if reason in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            close(ports)
            raise BadAnswer(_why_not(address, port, reason, e)) from None
        burst.accept(bound)
        ports.append(bound)
    if not ports:
        raise BadAnswer(
            f"This machine has no address {' or '.join(addresses)}. Give a name that leads to "
            "this machine, or where to listen with --listen."
        )
    where = " and ".join(_show(port.getHost()) for port in ports)
    _log.info("Listening on {where}.", where=where)
    return ports


def _show(address: Any) -> str:
    """An address and a port as they stand in a URL."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def _why_not(address: str, port: int, reason: int | None, error: CannotListenError) -> str:
    if reason == errno.EADDRINUSE:
        return f"Something is listening on port {port} of {address} already."
    if reason == errno.EACCES:
        return f"This user may not listen on port {port} of {address}."
    return f"Listening on port {port} of {address} failed: {error.socketError}."


def close(ports: Sequence[IListeningPort]) -> Deferred[list[object]]:
    """Stop listening; fires when that is done."""
    return gatherResults(
        [maybeDeferred(port.stopListening) for port in ports], consumeErrors=True
    )
