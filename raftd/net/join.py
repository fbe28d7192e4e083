"""
Joining: the one conversation of a node that is not a member yet.
"""

from __future__ import annotations

from typing import NoReturn

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

from raftd.core.membership import Configuration
from raftd.core.messages import NOBODY, Member
from raftd.errors import (
    JoinFailed,
    PeerUnreachable,
    ProtocolViolation,
)
from raftd.net.boxes import BoxConnection
from raftd.net.commands import BULK, HelloResponse, JoinRequest, JoinResponse
from raftd.net.handshake import LocalIdentity, check_answer, hello_to
from raftd.net.peers import GRACE_S, Connector, explain_connect_failure

#: How long the other end may take to show that it is there, and again to show
#: what it is.
FIRST_ANSWER_TIMEOUT_S = 5.0


class JoinAnswer(msgspec.Struct, frozen=True):
    """The cluster, a configuration that has the joiner, and the member that answered."""

    cluster_id: int
    configuration: Configuration
    server: Member


def request_join(
    clock: IReactorTime,
    server_endpoint: IStreamClientEndpoint,
    server_name: str,
    member: Member,
    cluster_id: int,
    timeout_s: float,
) -> Deferred[JoinAnswer]:
    """
    Ask the node at `server_endpoint` to let `member` into its cluster as a learner.

    `cluster_id` is 0 on the first try and the one learned before on a later
    one; asking again with the same `member` is harmless.

    Fails with a `RaftdError` whose sentence can be shown: `JoinFailed` when
    nothing there talks as a node does, or nothing in time; otherwise what the
    node itself answered, as `NameTaken`, `NoLeader`, `NotReady` or
    `WrongCluster`.
    """
    attempt = _Joining(clock, server_name, member, cluster_id)
    joining = Deferred.fromCoroutine(attempt.run(server_endpoint, timeout_s))

    def too_late(_: object, _timeout_s: float) -> NoReturn:
        raise JoinFailed(f"{server_name} {attempt.missing} within {timeout_s:.0f} s.")

    return joining.addTimeout(timeout_s + GRACE_S, clock, too_late)


class _Joining:
    """One try."""

    def __init__(
        self, clock: IReactorTime, server_name: str, member: Member, cluster_id: int
    ) -> None:
        self._clock = clock
        self._server = Member(NOBODY, server_name)
        self._member = member
        self._identity = LocalIdentity(member, cluster_id)
        self._deadline = 0.0
        #: What the server has not done yet, for the sentence that says so.
        self.missing = "could not be reached"

    async def run(self, endpoint: IStreamClientEndpoint, timeout_s: float) -> JoinAnswer:
        self._deadline = self._clock.seconds() + timeout_s
        name = self._server.name
        connection = await self._connect(endpoint)
        try:
            hello = await self._greet(connection)
            return await self._join(connection, hello)
        except CancelledError:
            raise JoinFailed(f"{name} did not answer within {timeout_s:.0f} s.") from None
        finally:
            connection.drop("the join is over")

    async def _connect(self, endpoint: IStreamClientEndpoint) -> BoxConnection:
        name = self._server.name
        attempt = endpoint.connect(Connector(self._clock, name, lambda _: None, lambda _: None))
        timer = self._clock.callLater(FIRST_ANSWER_TIMEOUT_S, attempt.cancel)
        try:
            connection = await attempt
        except Exception as e:
            raise JoinFailed(explain_connect_failure(e, name)) from None
        finally:
            if timer.active():
                timer.cancel()
        assert isinstance(connection, BoxConnection)
        return connection

    async def _greet(self, connection: BoxConnection) -> HelloResponse:
        name = self._server.name
        hello = hello_to(self._member, self._identity, BULK, self._server)
        try:
            answer: HelloResponse = await connection.ask(hello, FIRST_ANSWER_TIMEOUT_S)
            check_answer(self._identity, self._server, answer)
        except (PeerUnreachable, ProtocolViolation):
            raise JoinFailed(
                f"what listens at {name} does not answer as a raftd node does "
                f"({connection.closed_because or 'its answer makes no sense'})."
            ) from None
        return answer

    async def _join(self, connection: BoxConnection, hello: HelloResponse) -> JoinAnswer:
        left_s = self._left_s()
        request = JoinRequest(self._member.id, self._member.name, int(left_s * 1000))
        try:
            answer: JoinResponse = await connection.ask(request, left_s + GRACE_S)
        except PeerUnreachable as e:
            raise JoinFailed(f"{e} It may be tried again.") from None
        server = Member(hello.member_id, hello.name)
        return JoinAnswer(answer.cluster_id, answer.configuration, server)

    def _left_s(self) -> float:
        return max(0.0, self._deadline - self._clock.seconds())
