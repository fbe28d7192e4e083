"""
What only those who look after a cluster need: members, leadership, leases, backups.

    admin = Admin(client)
    await admin.members()

Methods give Deferreds, and fail as those of `Client` do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseDone, ResponseFailed
from twisted.web.iweb import IResponse

from raftd.client.client import Client, deferred
from raftd.client.errors import Unreachable, error_of
from raftd.client.requester import Answer
from raftd.client.values import read_named
from raftd.errors import DidNotHappen, RaftdError

#: A server that sends nothing of a backup for so long is taken for gone.
SILENCE_S = 40.0

_BROKEN_OFF = (
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
    RequestTransmissionFailed,
    ResponseFailed,
)

_encode = msgspec.json.encode


class ClusterMember(msgspec.Struct, frozen=True):
    """A member: its name, its id in hexadecimal digits, and `voter` or `learner`."""

    name: str
    id: str
    role: str


class LeaseInfo(msgspec.Struct, frozen=True):
    """
    A lease.  `ttl_left_s` and the first of its `keys` are there if it was
    asked for alone; `more` says that these are not all of them.
    """

    id: str
    ttl_s: float
    ttl_left_s: float = 0.0
    keys: tuple[bytes, ...] = ()
    more: bool = False


class Admin:
    """The cluster of `client`, for those who look after it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._requester = client.requester

    # -- members -----------------------------------------------------------------

    @deferred
    async def members(self) -> list[ClusterMember]:
        """Who belongs to the cluster, as a server knows it."""
        return self._read_members(await self._requester.read("/members"))

    @deferred
    async def promote(self, name: str, *, force: bool = False) -> list[ClusterMember]:
        """Give a learner a vote; the members then.  `ChangeRefused`, as of all changes."""
        return await self._patch(name, {"role": "voter"}, force)

    @deferred
    async def demote(self, name: str, *, force: bool = False) -> list[ClusterMember]:
        """Take a voter's vote."""
        return await self._patch(name, {"role": "learner"}, force)

    @deferred
    async def rename(self, name: str, to: str, *, force: bool = False) -> list[ClusterMember]:
        """Give a member another name."""
        return await self._patch(name, {"name": to}, force)

    @deferred
    async def remove(self, name: str, *, force: bool = False) -> list[ClusterMember]:
        """Remove a member."""
        answer = await self._requester.write("DELETE", _member(name), _force(force), once=True)
        return self._read_members(answer)

    async def _patch(self, name: str, body: object, force: bool) -> list[ClusterMember]:
        answer = await self._requester.write(
            "PATCH", _member(name), _force(force), body=_encode(body), once=True
        )
        return self._read_members(answer)

    def _read_members(self, answer: Answer) -> list[ClusterMember]:
        return msgspec.convert(self._fields(answer)["members"], list[ClusterMember])

    @deferred
    async def transfer(self, to: str = "") -> str | None:
        """
        Let `to` lead, or whoever is best prepared: who leads then, None if the
        server that was asked does not know yet.  `TransferFailed`.
        """
        body = _encode({"to": to} if to else {})
        # Asked again, it would hand over once more, unless it is said to whom.
        answer = await self._requester.write("POST", "/leader", body=body, once=not to)
        leader = self._fields(answer)
        name: str | None = leader["leader"]
        return name

    # -- leases --------------------------------------------------------------------

    @deferred
    async def grant(self, ttl_s: float) -> LeaseInfo:
        """A new lease, which nobody keeps alive yet."""
        answer = await self._requester.write("POST", "/lease", body=_encode({"ttl": ttl_s}))
        return _lease(self._fields(answer))

    @deferred
    async def keep_alive(self, lease_id: str) -> LeaseInfo:
        """Begin a lease's time anew; `LeaseNotFound`."""
        answer = await self._requester.ask("POST", f"/lease/{lease_id}/keepalive")
        return _lease(self._fields(answer))

    @deferred
    async def revoke(self, lease_id: str) -> int:
        """End a lease: how many keys went with it.  `LeaseNotFound`."""
        answer = await self._requester.write("DELETE", f"/lease/{lease_id}")
        return int(self._fields(answer)["deleted"])

    @deferred
    async def leases(self) -> list[LeaseInfo]:
        """All leases."""
        fields = self._fields(await self._requester.read("/lease"))
        return list(map(_lease, fields["leases"]))

    @deferred
    async def show_lease(self, lease_id: str) -> LeaseInfo:
        """One lease, with the time that it has left and its keys; `LeaseNotFound`."""
        return _lease(self._fields(await self._requester.read(f"/lease/{lease_id}")))

    # -- backups ---------------------------------------------------------------------

    @deferred
    async def snapshot(
        self, begin: Callable[[int], None], write: Callable[[bytes], None]
    ) -> None:
        """
        The whole store as of one revision, in the format of backups.

        `begin` is called with the revision, then `write` with what comes.  If
        a server breaks off, another is asked, and `begin` is called again:
        what has come until then counts for nothing.  The checksum at the end
        is for the caller to compare.  What the callables raise ends it.
        """
        first = self._requester.server
        while True:
            server = self._requester.server
            try:
                await self._snapshot(server, begin, write)
                return
            except DidNotHappen as e:
                error: RaftdError = e
            except _BROKEN_OFF as e:
                error = Unreachable(f"{server} broke off, or cannot be reached: {e}")
            self._requester.avoid(server)
            if self._requester.server == first:
                raise error

    async def _snapshot(
        self, server: str, begin: Callable[[int], None], write: Callable[[bytes], None]
    ) -> None:
        response = await self._opened(server)
        if response.code != 200:
            pieces: list[bytes] = []
            await self._body(server, response, pieces.append)
            raise error_of(server, response.code, b"".join(pieces))
        revision = response.headers.getRawHeaders("Raftd-Revision", ["0"])[0]
        begin(int(revision))
        await self._body(server, response, write)

    def _opened(self, server: str) -> Deferred[IResponse]:
        """The answer's beginning; cancelled, it is `CancelledError`, whatever was under way."""

        def give_up(reason: Exception) -> None:
            if not opened.called:
                opened.errback(reason)
            asked.cancel()

        def came(result: Any) -> None:
            if timer.active():
                timer.cancel()
            if not opened.called:
                opened.callback(result)

        opened: Deferred[IResponse] = Deferred(lambda _: give_up(CancelledError()))
        asked = self._requester.open(server, "GET", "/snapshot", {})
        timer = self._client.reactor.callLater(
            SILENCE_S, give_up, Unreachable(f"{server} takes too long.")
        )
        asked.addBoth(came)
        return opened

    async def _body(
        self, server: str, response: IResponse, write: Callable[[bytes], None]
    ) -> None:
        body = _Body(self._client.reactor, server, write)
        response.deliverBody(body)
        await body.ended

    def _fields(self, answer: Answer) -> dict[str, Any]:
        if answer.status >= 400:
            raise answer.error()
        fields: dict[str, Any] = msgspec.json.decode(answer.body)
        return fields


class _Body(Protocol):
    """A long body, given to `write` piece by piece; `ended` says how that went."""

    def __init__(self, clock: Any, server: str, write: Callable[[bytes], None]) -> None:
        self._clock = clock
        self._server = server
        self._write = write
        self._error: BaseException | None = None
        self._timer: IDelayedCall = clock.callLater(SILENCE_S, self._silent)
        self.ended: Deferred[None] = Deferred(lambda _: self._hang_up(CancelledError()))

    def dataReceived(self, data: bytes) -> None:
        if self._error is not None:
            return
        self._timer.reset(SILENCE_S)
        try:
            self._write(data)
        except Exception as e:
            self._hang_up(e)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer.active():
            self._timer.cancel()
        if self.ended.called:
            return
        if self._error is not None:
            self.ended.errback(Failure(self._error))
        elif reason.check(ResponseDone):
            self.ended.callback(None)
        else:
            self.ended.errback(Failure(Unreachable(f"{self._server} broke off.")))

    def _silent(self) -> None:
        self._hang_up(Unreachable(f"{self._server} has stopped sending."))

    def _hang_up(self, error: BaseException) -> None:
        self._error = error
        if self.transport is not None:
            self.transport.loseConnection()


def _member(name: str) -> str:
    return f"/members/{quote(name, safe=':')}"


def _force(force: bool) -> list[tuple[str, str | bytes]]:
    return [("force", "true")] if force else []


def _lease(fields: dict[str, Any]) -> LeaseInfo:
    return LeaseInfo(
        fields["id"],
        fields["ttl"],
        fields.get("ttl_left", 0.0),
        tuple(read_named(key, "key") for key in fields.get("keys", ())),
        fields.get("more", False),
    )
