"""
The driver of a node: clock, storage, peers and state machine around a core.

All inputs of one reactor turn are gathered, and `_turn` then runs once: it
proposes or forwards what clients have asked for, takes the core's `Ready`,
and sets going everything in it: one batch to the disk, the same batch to the
peers, what is committed to the state machine.

Each of these has a module of its own: `disk`, `peering`, `applier` and
`snapshotting` below the core, `routing` and `changes` for what clients ask
for, `observing` and `status` for those who look on.  All of them know the
core, and none knows the node: they ask it for a turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.applier import Applier
from raftd.changes import Changes
from raftd.core.log import Log
from raftd.core.membership import Change, Configuration
from raftd.core.messages import (
    Member,
    MemberId,
    Response,
)
from raftd.core.messages import Request as RPCRequest
from raftd.core.raft import Raft, Random, Role
from raftd.core.ready import Ready
from raftd.core.settings import Settings
from raftd.core.snapshot import SnapshotMetadata
from raftd.disk import Disk
from raftd.errors import (
    BadRequest,
    Fatal,
    InvariantViolated,
    NoLeader,
    NoQuorum,
    NoSpace,
    NotLeader,
    Overloaded,
    ProtocolViolation,
    RaftdError,
    Removed,
    Stopped,
    TooStale,
)
from raftd.events import (
    Observer,
    SnapshotRestored,
    SnapshotTaken,
)
from raftd.interfaces import (
    Done,
    ILogStorage,
    INode,
    INodeRPC,
    IPeer,
    ISnapshotStore,
    IStateMachine,
    ITransport,
    NodeStatus,
)
from raftd.observing import Observers
from raftd.peering import Peers
from raftd.routing import RETRY_DELAY_S, Router
from raftd.snapshotting import DEFAULT_THRESHOLD_BYTES, Snapshotter
from raftd.status import node_status

#: How long a member that was removed goes on, and the others stay connected to
#: it, for the answers that it owes.
FAREWELL_S = 0.5

#: Requests of other members that may wait for their answers.  Those that wait
#: for a disk that hangs or is full are asked again and again meanwhile.
MAX_ANSWERS_OWED = 1024


@implementer(INode, INodeRPC)
class Node:
    """
    A running member.

    Invariant: while it runs, `_answers` has a Deferred for each request of
    another member that the core has taken on and not answered.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        member: Member,
        cluster_id: int,
        storage: ILogStorage,
        snapshots: ISnapshotStore,
        transport: ITransport,
        state_machine: IStateMachine,
        random: Random,
        settings: Settings,
        request_timeout_s: float,
        on_fatal: Callable[[Fatal], None],
        snapshot_threshold_bytes: int = DEFAULT_THRESHOLD_BYTES,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """
        A node with what `storage` and `snapshots` have recovered.

        `soon` calls something once all that has come in was read; by default,
        in the clock's next turn.

        `state_machine` has been restored from the newest snapshot, if there is
        one.  `on_fatal` is called once if the node must stop.
        """
        self._clock = clock
        self.member = member
        self.cluster_id = cluster_id
        self._request_timeout_s = request_timeout_s
        self._on_fatal = on_fatal
        self._started_at = clock.seconds()
        self._raft = Raft(
            member.id,
            settings,
            random,
            self._started_at,
            hard_state=storage.hard_state,
            log=Log(storage.entries, storage.base_index, storage.base_term),
            snapshot=snapshots.latest,
            commit_index=storage.commit_index,
        )
        self._running = False

        self._soon = soon or (lambda act: clock.callLater(0, act))
        self._turn_is_due = False
        self._timer: IDelayedCall | None = None
        #: What it was armed for; its own time is a little later, for the clock
        #: has gone on meanwhile.
        self._timer_due = math.inf
        #: The end of a member that was removed.
        self._farewell: IDelayedCall | None = None
        self._disk = Disk(clock, self._raft, storage, wake=self._wake, defect=self._defect)
        self._peers = Peers(
            clock,
            self._raft,
            transport,
            member,
            request_timeout_s,
            farewell_s=FAREWELL_S,
            wake=self._wake,
            defect=self._defect,
        )
        self._router = Router(
            clock,
            self._raft,
            wake=self._wake,
            defect=self._defect,
            # There is none yet: it is given the router's answers.
            when_applied=lambda index, act: self._applier.when_applied(index, act),  # noqa: PLW0108
            answer=self._answer,
        )
        self._applier = Applier(clock, state_machine, snapshots.latest, self._router.applied)
        self._snapshotter = Snapshotter(
            clock,
            self._raft,
            self._applier,
            state_machine,
            storage,
            snapshots,
            snapshot_threshold_bytes,
            random=random,
            wake=self._wake,
            defect=self._defect,
            on_taken=lambda metadata: self._observers.tell(SnapshotTaken(metadata)),
            on_restored=self._restored,
        )
        self._observers = Observers(
            self._raft,
            leader=self._peers.leader,
            on_leader_changed=self._router.leader_changed,
            on_members_changed=self._members_changed,
        )
        #: What the program of the leader says to the questions of `ask_leader`;
        #: `done` is called once, with `NotLeader` if it turns out not to lead.
        self.on_question: Callable[[bytes, Done[bytes]], None] | None = None
        self._last_request_id = 0
        self._answers: dict[int, Deferred[Response]] = {}
        self._changes = Changes(
            clock,
            self._raft,
            self._applier,
            leader_peer=self._leader_peer,
            why_not=self._peers.why_not,
            wake=self._wake,
        )

    # -- life ----------------------------------------------------------------

    def start(self) -> None:
        """Begin: storage must have been opened, and peers may now call."""
        self._running = True
        self._disk.start(self.fail)
        self._wake()

    def stop(self) -> Deferred[None]:
        """
        Hand leadership over, answer everything, flush, disconnect; fires when
        all of it is done.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        others = self._raft.configuration.voter_ids() - {self.member.id}
        if self._running and self._raft.role is Role.LEADER and others:
            try:
                await self._changes.hand_over(None)
            except RaftdError as e:
                self._log.info("Leadership is not handed over: {reason}", reason=str(e))
        self._halt()
        await gatherResults(
            [self._snapshotter.stop(), self._disk.close(), *self._peers.close()],
            consumeErrors=True,
        )

    def fail(self, reason: Fatal) -> None:
        """Stop at once, and say why: to go on would put data at risk."""
        if self._running:
            self._log.critical("{reason}", reason=str(reason))
            self._halt()
            self._on_fatal(reason)

    def _defect(self, failure: Failure) -> None:
        """An error that nothing above has expected."""
        value = failure.value
        if not isinstance(value, Fatal):
            self._log.failure("A defect stops this node", failure)
            value = InvariantViolated(f"A defect stops this node: {value!r}")
        self.fail(value)

    def _halt(self) -> None:
        self._running = False
        self._observers.stop()
        self._disk.stop()
        self._peers.stop()
        for call in (self._timer, self._farewell):
            if call is not None and call.active():
                call.cancel()
        self._router.stop()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.errback(Stopped("This node is stopping."))
        self._changes.stop()

    # -- what users ask for --------------------------------------------------

    def propose(self, data: bytes, done: Done[bytes]) -> None:
        """See `INode.propose`."""
        if self._running:
            self._router.write(data, done, self._request_timeout_s)
        else:
            done(Stopped("This node is not running."))

    def read(self, done: Done[None]) -> None:
        """See `INode.read`."""
        if self._running:
            self._router.read(done, self._request_timeout_s)
        else:
            done(Stopped("This node is not running."))

    def read_recent(self, max_staleness_s: float, done: Done[None]) -> None:
        """See `INode.read_recent`."""
        if self._clock.seconds() - self._router.fresh_at <= max_staleness_s:
            done(None)
            return

        def confirmed(outcome: RaftdError | None) -> None:
            if isinstance(outcome, NoLeader | NoQuorum):
                outcome = self._too_stale(max_staleness_s, outcome)
            done(outcome)

        self.read(confirmed)

    def _too_stale(self, max_staleness_s: float, reason: RaftdError) -> TooStale:
        age_s = self._clock.seconds() - self._router.fresh_at
        since = "not since it started" if age_s == math.inf else f"{age_s:.3f} s ago"
        return TooStale(
            f"What {self.member.name} has was last confirmed to be up to date {since}, and at "
            f"most {max_staleness_s:.3f} s was asked for. {reason}"
        )

    def ask_leader(self, question: bytes, done: Done[bytes]) -> None:
        """See `INode.ask_leader`."""
        if self._running:
            self._router.ask(question, done, self._request_timeout_s)
        else:
            done(Stopped("This node is not running."))

    def _answer(self, question: bytes, done: Done[bytes]) -> None:
        if self.on_question is None:
            done(BadRequest("The leader's program does not answer questions."))
        else:
            self.on_question(question, done)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell `observer` of every event from now on; call what this returns to end it."""
        return self._observers.add(observer)

    # -- the turn ------------------------------------------------------------

    def _wake(self) -> None:
        """Something has come in: run a turn once all that is there has been read."""
        if not self._turn_is_due and self._running:
            self._turn_is_due = True
            self._soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if not self._running:
            return
        try:
            self._do_turn(self._clock.seconds())
        except Exception:
            self._defect(Failure())

    def _do_turn(self, now: float) -> None:
        raft = self._raft
        if now >= raft.next_deadline:
            raft.tick(now)
        if raft.configuration is not self._peers.followed:
            self._peers.follow_configuration()
        self._observers.look_at_leader()
        self._router.hand_over(self._leader_peer(now), now)
        if not self._running:
            return  # who was just given an answer has stopped this node
        ready = raft.ready(now)
        self._carry_out(ready)
        if self._applier.run():
            self._wake()
        raft.applied(self._applier.applied_index)
        self._observers.look_at_applied()
        self._snapshotter.take_if_due()
        self._router.expire(now, self._peers.why_not)
        if self._running:
            self._arm(now)
            self._disk.write(ready)

    def _carry_out(self, ready: Ready) -> None:
        for outgoing in ready.messages:
            if outgoing.request_id is None:
                self._peers.send(outgoing)
            else:
                self._answer_peer(outgoing.request_id, outgoing.message)  # type: ignore[arg-type]
        if ready.restore is not None:
            # The log begins anew with it, which storage must know before it is
            # compacted: at once, if that is how fast the snapshot is restored.
            self._disk.write(ready)
            self._snapshotter.restore(ready.restore)
        self._applier.add(ready.committed)
        for context, read_index in ready.reads:
            self._router.read_index_known(context, read_index)
        for context in ready.lost_reads:
            self._router.read_index_known(context, None)
        for member_id in ready.lack_snapshot:
            self._snapshotter.send(member_id, self._peers.members.get(member_id))
        for piece in ready.pieces:
            self._snapshotter.keep(piece)

    def _restored(self, metadata: SnapshotMetadata) -> None:
        self._raft.applied(metadata.last_included_index)
        self._router.restored(metadata.last_included_index)
        self._observers.tell(SnapshotRestored(metadata))

    def _arm(self, now: float) -> None:
        """Keep one timer, for whatever is due next."""
        router = self._router
        due = min(self._raft.next_deadline, router.next_deadline)
        if router.retry_at > now and router.waits_for_leader:
            due = min(due, router.retry_at)
        if self._timer is not None:
            if self._timer_due <= due:
                return  # it will find out, and be armed again
            self._timer.cancel()
            self._timer = None
        if due < math.inf:
            self._timer_due = due
            self._timer = self._clock.callLater(max(0.0, due - now), self._due)

    def _due(self) -> None:
        self._timer = None
        self._wake()

    # -- members and the leader ----------------------------------------------

    def _members_changed(self, configuration: Configuration) -> None:
        """A configuration is committed, and applied here; the observers have been told."""
        if self.member.id in configuration.removed and self._farewell is None:
            # Not at once: whoever has asked for it through this node is to be told.
            reason = Removed(f"{self.member.name} was removed from the cluster.")
            self._farewell = self._clock.callLater(FAREWELL_S, self.fail, reason)

    def _leader_peer(self, now: float) -> IPeer | None:
        """The leader, if it is another member and can be asked now."""
        peers, leader_id = self._peers, self._raft.leader_id
        peer = peers.members.get(leader_id)
        if leader_id in peers.departing:
            peer = peers.departing[leader_id]
        if peer is None or now < self._router.retry_at:
            return None
        if not peer.connected:
            self._router.retry_at = now + RETRY_DELAY_S
            return None
        return peer

    # -- what peers ask for (INodeRPC) ---------------------------------------

    def receive(self, sender: MemberId, request: RPCRequest) -> Deferred[Response]:
        """See `INodeRPC.receive`."""
        if not self._running:
            return fail(Stopped("This node is not running."))
        if len(self._answers) >= MAX_ANSWERS_OWED:
            return fail(Overloaded("This node owes too many answers already. Try again."))
        self._last_request_id += 1
        request_id = self._last_request_id
        try:
            self._raft.receive_request(sender, request, request_id, self._clock.seconds())
        except ProtocolViolation as e:
            return fail(e)
        except NoSpace as e:
            self._wake()  # whoever sent it has been heard
            return fail(e)
        except Exception:
            self._defect(Failure())
            return fail(Stopped("This node is stopping."))
        answer = self._answers[request_id] = Deferred[Response]()
        self._wake()
        return answer

    def _answer_peer(self, request_id: int, response: Response) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            answer.callback(response)

    def forwarded(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        """See `INodeRPC.forwarded`."""
        if not self._running or self._raft.role is not Role.LEADER:
            return fail(NotLeader(f"{self.member.name} is not the leader."))
        timeout_s = min(timeout_ms / 1000, self._request_timeout_s)
        all_done: Deferred[list[bytes | RaftdError]] = Deferred()
        outcomes: list[bytes | RaftdError] = [b""] * len(commands)
        waiting = len(commands)

        def done(position: int, outcome: bytes | RaftdError) -> None:
            nonlocal waiting
            outcomes[position] = outcome
            waiting -= 1
            if not waiting:
                all_done.callback(outcomes)

        for position, data in enumerate(commands):
            self._router.write(data, partial(done, position), timeout_s, forwarded=True)
        if not commands:
            all_done.callback([])
        return all_done

    def forwarded_read(self, timeout_ms: int) -> Deferred[int]:
        """See `INodeRPC.forwarded_read`; the core answers or gives it up in time by itself."""
        if not self._running:
            return fail(Stopped("This node is not running."))
        answer: Deferred[int] = Deferred()

        def use(read_index: int | None) -> None:
            if read_index is None:
                answer.errback(NotLeader(f"{self.member.name} is not the leader."))
            else:
                answer.callback(read_index)

        self._router.ask_read_index(use)
        self._wake()
        return answer

    def forwarded_question(self, question: bytes, timeout_ms: int) -> Deferred[bytes]:
        """See `INodeRPC.forwarded_question`."""
        if not self._running or self._raft.role is not Role.LEADER:
            return fail(NotLeader(f"{self.member.name} is not the leader."))
        answer: Deferred[bytes] = Deferred()

        def done(outcome: bytes | RaftdError) -> None:
            if isinstance(outcome, bytes):
                answer.callback(outcome)
            else:
                answer.errback(outcome)

        timeout_s = min(timeout_ms / 1000, self._request_timeout_s)
        self._router.ask(question, done, timeout_s, forwarded=True)
        return answer

    # -- membership ----------------------------------------------------------

    def change_membership(
        self,
        changes: Sequence[Change],
        force: bool = False,
        timeout_ms: int | None = None,
        *,
        forwarded: bool = False,
    ) -> Deferred[Configuration]:
        """See `INodeRPC.change_membership`; without a time, the request timeout holds."""
        if not self._running:
            return fail(Stopped("This node is not running."))
        timeout_s = self._request_timeout_s if timeout_ms is None else timeout_ms / 1000
        return self._changes.membership(changes, force, timeout_s, forwarded)

    def transfer(
        self,
        successor: MemberId | None = None,
        timeout_ms: int | None = None,
        *,
        forwarded: bool = False,
    ) -> Deferred[None]:
        """See `INodeRPC.transfer`; without a time, the request timeout holds."""
        if not self._running:
            return fail(Stopped("This node is not running."))
        timeout_s = self._request_timeout_s if timeout_ms is None else timeout_ms / 1000
        return self._changes.transfer(successor, timeout_s, forwarded)

    # -- looking at it -------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force here, committed or not."""
        return self._raft.configuration

    @property
    def committed_configuration(self) -> Configuration:
        """The last configuration that this node knows to be committed."""
        return self._raft.configuration_at(self._raft.commit_index)

    @property
    def is_member(self) -> bool:
        """Whether this node is in the configuration in force here, committed or not."""
        return self.member.id in self._raft.configuration.members()

    @property
    def is_settled_voter(self) -> bool:
        """Whether this node has applied the configuration in force, and has a vote in it."""
        return (
            self._raft.configuration.is_voter(self.member.id)
            and self._raft.applied_index >= self._raft.configuration_index
        )

    @property
    def is_settled_learner(self) -> bool:
        """Whether this node is a member and has applied all that it knows to be committed."""
        raft = self._raft
        known = self.member.id in raft.configuration.members()
        return known and raft.configuration_index <= raft.applied_index == raft.commit_index

    def status(self) -> NodeStatus:
        """See `INode.status`."""
        now = self._clock.seconds()
        return node_status(
            self._raft,
            self.member,
            self.cluster_id,
            leader=self._peers.leader(),
            snapshot_index=self._snapshotter.latest_index,
            now=now,
            uptime_seconds=now - self._started_at,
        )
