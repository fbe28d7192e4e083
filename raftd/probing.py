"""
A look at a server before joining it: is it there, is it raftd, has it a leader?

One HTTP request to `/status` tells these apart, which a failed handshake
could not, and so lets the failure be a sentence that helps.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec
import treq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

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


class _Unavailable(msgspec.Struct):
    """How a raftd server answers that has no cluster yet, or too much to do."""

    error: str
    message: str


async def probe(reactor: Any, server: str, endpoint: IStreamClientEndpoint) -> ServerStatus:
    """
    The status of `server`, which listens at `endpoint`.

    `JoinFailed` says what is there instead: nothing, something that is not
    raftd, a server without a cluster, or (`NoLeaderYet`) without a leader.
    """
    asked = Deferred.fromCoroutine(_get_status(reactor, server, endpoint))

    def too_late(_: object, _timeout_s: float) -> NoReturn:
        raise TimeoutError()

    try:
        code, body = await asked.addTimeout(PROBE_TIMEOUT_S, reactor, too_late)
    except ConnectionRefusedError:
        raise JoinFailed(f"nothing is listening at {server}.") from None
    except DNSLookupError:
        raise JoinFailed(f"the host of {server} is not known.") from None
    except TimeoutError:
        raise JoinFailed(f"{server} does not answer.") from None
    except CancelledError:
        raise
    except ConnectError as e:
        raise JoinFailed(f"{server} cannot be reached: {e.osError or e}.") from None
    except Exception:
        # Whatever it said, it was not HTTP.
        raise JoinFailed(_foreign(server)) from None
    return _read(server, code, body)


def _read(server: str, code: int, body: bytes) -> ServerStatus:
    try:
        if code == 503:
            reason = msgspec.json.decode(body, type=_Unavailable).error
            if reason == "not_ready":
                raise NoLeaderYet(f"{server} does not belong to a cluster yet.")
            if reason == "overloaded":
                raise JoinFailed(f"{server} is too busy to answer; try again.")
        status = msgspec.json.decode(body, type=ServerStatus)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise JoinFailed(_foreign(server)) from None
    if status.leader is None:
        raise NoLeaderYet(
            f"the cluster of {server} has no leader at the moment; "
            "are enough of its members running?"
        )
    return status


def _foreign(server: str) -> str:
    return f"what listens at {server} is not a raftd server."


async def _get_status(
    reactor: Any, server: str, endpoint: IStreamClientEndpoint
) -> tuple[int, bytes]:
    """The status code and the body of one GET; no redirect, no proxy."""
    agent = Agent.usingEndpointFactory(reactor, _Only(endpoint))
    # The address goes into the endpoint, since treq cannot read every one in a URL.
    response = await treq.get(
        "http://raftd/status",
        headers=Headers({"Host": [server]}),
        agent=agent,
        reactor=reactor,
        allow_redirects=False,
        unbuffered=True,
    )
    body = _Body()
    response.deliverBody(body)
    return response.code, await body.whole


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Only:
    """Leads everywhere to one endpoint, and says nothing of it to the log."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: object) -> IStreamClientEndpoint:
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        protocolFactory.noisy = False  # type: ignore[attr-defined]
        return self._endpoint.connect(protocolFactory)


class _Body(Protocol):
    """Collects a body, within its bound; whoever gives it up closes the connection."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._hang_up())
        self._data = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_STATUS_BYTES:
            self._data.clear()
            self.whole.cancel()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(bytes(self._data))
        else:
            self.whole.errback(reason)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
        self.whole.errback(ValueError("the body is too long, or took too long"))
