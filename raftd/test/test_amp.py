"""It is AMP: Twisted's own implementation talks to both sides."""

from __future__ import annotations

import msgspec
from twisted.internet.defer import fail, succeed
from twisted.protocols import amp
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    PreVote,
)
from raftd.errors import IncompatibleVersion, NotLeader
from raftd.net import commands
from raftd.net.boxes import BoxConnection
from raftd.test.amprig import HELLO
from raftd.test.peernet import ALICE, BOB, Pair, entries, reactor_time


class InteropTests(SynchronousTestCase):
    """It is AMP: Twisted's own implementation talks to it, both ways."""

    def link(self, client: object, server: object, pair: Pair) -> IOPump:
        pump: IOPump = connect(
            server,
            FakeTransport(server, isServer=True),
            client,
            FakeTransport(client, isServer=False),
            clock=pair.clock,
        )
        return pump

    def test_a_client_of_twisted(self) -> None:
        pair = Pair(connect=False)
        pair.node.answer = lambda: succeed(AppendEntriesResponse(5, True, 13))
        client = amp.AMP()
        pump = self.link(client, pair.factory.buildProtocol(None), pair)
        greeted = client.callRemote(commands.Hello, **msgspec.structs.asdict(HELLO))
        pump.flush()
        self.assertEqual(self.successResultOf(greeted)["name"], BOB.name)
        message = AppendEntries(5, 10, 4, 9, entries(3, 65_536))
        fields = {f: getattr(message, f) for f in message.__struct_fields__}
        answer = client.callRemote(commands.AppendEntries, **fields)
        pump.flush()
        self.assertEqual(self.successResultOf(answer)["match_index"], 13)
        self.assertEqual(pair.node.asked, [("receive", ALICE.id, message)])
        pair.node.answer = lambda: fail(NotLeader("Ask another."))
        answer = client.callRemote(commands.Heartbeat, term=1, leader_commit=1, round=1)
        # Twisted calls an error unhandled that has no errback when it arrives.
        refused = answer.addErrback(lambda failure: failure.value)
        pump.flush()
        error = self.successResultOf(refused)
        self.assertEqual((type(error), str(error)), (NotLeader, "Ask another."))

    def test_a_server_of_twisted(self) -> None:
        class Server(amp.AMP):
            @commands.Heartbeat.responder
            def heartbeat(self, term: int, leader_commit: int, round: int) -> dict[str, int]:
                if round == 0:
                    raise NotLeader("Not me.")
                return {"term": term, "round": round}

        pair = Pair(connect=False)
        client = BoxConnection(
            reactor_time(pair.clock), "twisted", lambda _: None, lambda _: None
        )
        pump = self.link(client, Server(), pair)
        answer = client.ask(Heartbeat(4, 5, 6), 1.0)
        refused = client.ask(Heartbeat(4, 5, 0), 1.0)
        unknown = client.ask(PreVote(1, 1, 1), 1.0)
        pump.flush()
        self.assertEqual(self.successResultOf(answer), HeartbeatResponse(4, 6))
        self.assertEqual(str(self.failureResultOf(refused, NotLeader).value), "Not me.")
        self.failureResultOf(unknown, IncompatibleVersion)
