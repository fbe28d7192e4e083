"""
A look at a server before joining it: is it there, is it raftd, has it a leader?

One HTTP request to `/status` tells these apart, which a failed handshake
could not, and so lets the failure be a sentence that helps.
"""

from __future__ import annotations

from typing import Any

import msgspec
import treq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.web.client import Agent

from raftd.errors import JoinFailed, NoLeaderYet

#: How long one probe may take.
PROBE_TIMEOUT_S = 3.0
#: No status of a raftd server is longer than this.
MAX_STATUS_BYTES = 1 << 20


class ServerStatus(msgspec.Struct):
    """What the probe needs of `/status`; it is raftd's if it has these."""

    name: str
    member_id: str
    cluster_id: str
    leader: str | None


class _NotReady(msgspec.Struct):
    """How a raftd server answers that has no cluster yet."""

    error: str
    message: str


async def probe(reactor: Any, server: str) -> ServerStatus:
    """
    The status of `server`.

    `JoinFailed` says what is there instead: nothing, something that is not
    raftd, a server without a cluster, or (`NoLeaderYet`) without a leader.
    """
    try:
        code, body = await _get(reactor, f"http://{server}/status")
    except ConnectionRefusedError:
        raise JoinFailed(f"nothing is listening at {server}.") from None
    except DNSLookupError:
        raise JoinFailed(f"the host of {server} is not known.") from None
    except (TimeoutError, CancelledError):
        raise JoinFailed(f"{server} does not answer.") from None
    except ConnectError as e:
        raise JoinFailed(f"{server} cannot be reached: {e.osError or e}.") from None
    except Exception:
        # Whatever it said, it was not HTTP.
        raise JoinFailed(_foreign(server)) from None
    return _read(server, code, body)


def _read(server: str, code: int, body: bytes) -> ServerStatus:
    try:
        if code == 503 and msgspec.json.decode(body, type=_NotReady).error == "not_ready":
            raise JoinFailed(f"{server} does not belong to a cluster yet.")
        status = msgspec.json.decode(body, type=ServerStatus)
    except msgspec.MsgspecError:
        raise JoinFailed(_foreign(server)) from None
    if status.leader is None:
        raise NoLeaderYet(
            f"the cluster of {server} has no leader at the moment; "
            "are enough of its members running?"
        )
    return status


def _foreign(server: str) -> str:
    return f"what listens at {server} is not a raftd server."


async def _get(reactor: Any, url: str) -> tuple[int, bytes]:
    """The status code and the body of one GET; no redirect, no proxy."""
    agent = Agent(reactor, connectTimeout=PROBE_TIMEOUT_S)
    response = await treq.get(
        url,
        agent=agent,
        reactor=reactor,
        timeout=PROBE_TIMEOUT_S,
        allow_redirects=False,
        unbuffered=True,
    )
    body = bytearray()

    def collect(data: bytes) -> None:
        if len(body) + len(data) > MAX_STATUS_BYTES:
            raise ValueError("the body is too long")
        body.extend(data)

    collected: Deferred[None] = treq.collect(response, collect)
    collected.addTimeout(PROBE_TIMEOUT_S, reactor)
    await collected
    return response.code, bytes(body)
