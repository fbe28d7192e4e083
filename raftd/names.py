"""
Names of nodes: `host:port`, as people type them and as clients reach them.
"""

from __future__ import annotations

import ipaddress
import re

from raftd.errors import BadAnswer

#: The longest host name that DNS allows (RFC 1035, section 2.3.4).
MAX_HOST_LENGTH = 253

#: RFC 1123, section 2.1; an underscore is none of its characters, and others
#: could not connect to such a name.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*\.?")

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")


def split_name(name: str) -> tuple[str, int]:
    """
    The host and the port of a name; an IPv6 host is given without its brackets.

    `BadAnswer` if `name` is anything but `HOST:PORT`, `ADDRESS:PORT` or
    `[IPV6]:PORT`, with a port from 1 to 65535.
    """
    if "://" in name or "/" in name:
        raise BadAnswer(
            f"{_quote(name)} is more than host:port; please leave out http:// and any path."
        )
    host, colon, port = name.rpartition(":")
    if not colon or not host or not port:
        raise BadAnswer(f"{_quote(name)} is not of the form host:port, like localhost:4001.")
    if not (_PORT.fullmatch(port) and int(port) <= 65535):
        raise BadAnswer(f"{_quote(port)} is not a port: that is a number from 1 to 65535.")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not is_address(host) or ":" not in host:
            raise BadAnswer(f"{_quote(host)} is not an IPv6 address.")
    elif ":" in host:
        raise BadAnswer(
            f"{_quote(name)} is not of the form host:port; "
            "an IPv6 address needs brackets, like [::1]:4001."
        )
    elif len(host) > MAX_HOST_LENGTH or not _HOST.fullmatch(host) or _is_no_address(host):
        raise BadAnswer(f"{_quote(host)} is not the name or the address of a host.")
    return host.lower(), int(port)


def canonical_name(name: str) -> str:
    """The one spelling of a name: a host in lower case; errors as of `split_name`."""
    host, port = split_name(name)
    if is_address(host) and ipaddress.ip_address(host).is_unspecified:
        raise BadAnswer(
            f"{host} stands for all addresses of a machine; a name leads to one. "
            "Give such a name, and where to listen with --listen."
        )
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_no_address(host: str) -> bool:
    """Whether it looks like an IPv4 address, and is none."""
    return _DIGITS_AND_DOTS.fullmatch(host) is not None and not is_address(host)


def split_names(names: str) -> tuple[str, ...]:
    """The names in a list with commas, in their one spelling; `BadAnswer` if there is none."""
    found = tuple(name.strip() for name in names.split(",") if name.strip())
    if not found:
        raise BadAnswer("Please give the host:port of a member, like localhost:4001.")
    return tuple(map(canonical_name, found))


def is_address(host: str) -> bool:
    """Whether `host` is an IPv4 or IPv6 address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _quote(text: str) -> str:
    """`text` in quotes, cut to what fits a line of explanation."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
