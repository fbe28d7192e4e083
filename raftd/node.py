"""
The driver of a node: clock, storage, peers and state machine around a core.

All inputs of one reactor turn are gathered, and `_turn` then runs once: it
proposes or forwards what clients have asked for, takes the core's `Ready`,
and sets going everything in it: one batch to the disk, the same batch to the
peers, what is committed to the state machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

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
    NOBODY,
    Entry,
    Member,
    MemberId,
    Response,
)
from raftd.core.messages import Request as RPCRequest
from raftd.core.quorum import has_quorum
from raftd.core.raft import Raft, Random, Role
from raftd.core.ready import Outgoing, Ready
from raftd.core.settings import Settings
from raftd.core.snapshot import SnapshotMetadata
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
    Committed,
    Event,
    LeaderChanged,
    MembershipChanged,
    Observer,
    SnapshotRestored,
    SnapshotTaken,
    TermChanged,
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
    MemberStatus,
    NodeStatus,
)
from raftd.moving import MovingPeer
from raftd.routing import RETRY_DELAY_S, Router
from raftd.snapshotting import DEFAULT_THRESHOLD_BYTES, Snapshotter

#: How long a member that was removed goes on, and the others stay connected to
#: it, for the answers that it owes.
FAREWELL_S = 0.5

#: Requests of other members that may wait for their answers.  Those that wait
#: for a disk that hangs or is full are asked again and again meanwhile.
MAX_ANSWERS_OWED = 1024

#: How often it is tried, while the disk is full, whether there is room again.
SPACE_RETRY_S = 2.0


class _Seen:
    """What the observers have been told."""

    def __init__(self, term: int) -> None:
        self.term = term
        self.leader_id = NOBODY
        self.applied_index = 0
        self.configuration_index = 0


T = TypeVar("T")


@implementer(INode, INodeRPC)
class Node:
    """
    A running member.

    Invariant: `_peers` has the other members of `_configuration`, and nobody else.
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
        self._storage = storage
        self._transport = transport
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
        self._peers: dict[MemberId, IPeer] = {}
        #: Former members that may owe answers, and when they are let go.
        self._departing: dict[MemberId, tuple[IPeer, IDelayedCall]] = {}
        self._configuration = Configuration()
        self._running = False

        self._soon = soon or (lambda act: clock.callLater(0, act))
        self._turn_is_due = False
        self._timer: IDelayedCall | None = None
        #: What it was armed for; its own time is a little later, for the clock
        #: has gone on meanwhile.
        self._timer_due = math.inf
        #: The end of a member that was removed.
        self._farewell: IDelayedCall | None = None
        #: While the disk is full: when storage looks for room again.
        self._space_timer: IDelayedCall | None = None
        self._has_space = True

        self._observers: list[Observer] = []
        self._seen = _Seen(self._raft.term)
        self._applier = Applier(clock, state_machine, snapshots.latest, self._entry_applied)
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
            on_taken=lambda metadata: self._tell(SnapshotTaken(metadata)),
            on_restored=self._restored,
        )
        self._router = Router(
            clock,
            self._raft,
            wake=self._wake,
            defect=self._defect,
            when_applied=self._applier.when_applied,
            answer=self._answer,
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
            why_not=self._why_not,
            wake=self._wake,
        )

    # -- life ----------------------------------------------------------------

    def start(self) -> None:
        """Begin: storage must have been opened, and peers may now call."""
        self._running = True
        self._storage.start(self._persisted, self.fail, self._space_changed)
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
        peers = [*self._peers.values(), *(peer for peer, _ in self._departing.values())]
        self._peers, self._departing = {}, {}
        await gatherResults(
            [
                self._snapshotter.stop(),
                self._storage.close(),
                *(peer.close() for peer in peers),
            ],
            consumeErrors=True,
        )

    def fail(self, reason: Fatal) -> None:
        """Stop at once, and say why: to go on would put data at risk."""
        if self._running:
            self._log.critical("{reason}", reason=str(reason))
            self._halt()
            self._on_fatal(reason)

    def _halt(self) -> None:
        self._running = False
        farewells = [timer for _, timer in self._departing.values()]
        timers = (self._timer, self._farewell, self._space_timer)
        for call in (*timers, *farewells):
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
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def _tell(self, event: Event) -> None:
        for observer in list(self._observers):
            if self._running:  # else one of them has stopped this node
                observer(event)

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
        except Fatal as e:
            self.fail(e)
        except Exception:
            failure = Failure()
            self._log.failure("A defect stops this node", failure)
            self.fail(InvariantViolated(f"A defect stops this node: {failure.value!r}"))

    def _do_turn(self, now: float) -> None:
        raft = self._raft
        if now >= raft.next_deadline:
            raft.tick(now)
        if raft.configuration is not self._configuration:
            self._follow_configuration()
        self._look_at_leader()
        self._router.hand_over(self._leader_peer(now), now)
        if not self._running:
            return  # who was just given an answer has stopped this node
        ready = raft.ready(now)
        self._carry_out(ready)
        if self._applier.run():
            self._wake()
        self._look_at_applied()
        self._snapshotter.take_if_due()
        self._router.expire(now, self._why_not)
        if self._running:
            self._arm(now)
            self._write(ready)

    def _write(self, ready: Ready) -> None:
        """
        Hand the write to storage; at the end of a turn, for there is one interpreter,
        and the log's thread would only wait for it, or take it from this one.
        """
        write, ready.write = ready.write, None
        if write is not None:
            self._storage.write(
                write.number, write.hard_state, write.entries, write.base, write.commit_index
            )

    def _carry_out(self, ready: Ready) -> None:
        for outgoing in ready.messages:
            self._dispatch(outgoing)
        if ready.restore is not None:
            # The log begins anew with it, which storage must know before it is
            # compacted: at once, if that is how fast the snapshot is restored.
            self._write(ready)
            self._snapshotter.restore(ready.restore)
        self._applier.add(ready.committed)
        for context, read_index in ready.reads:
            self._router.read_index_known(context, read_index)
        for context in ready.lost_reads:
            self._router.read_index_known(context, None)
        for member_id in ready.lack_snapshot:
            self._snapshotter.send(member_id, self._peers.get(member_id))
        for piece in ready.pieces:
            self._snapshotter.keep(piece)

    def _entry_applied(self, entry: Entry, result: bytes) -> None:
        self._raft.applied(entry.index)
        self._router.applied(entry, result)
        self._snapshotter.applied(entry)

    def _restored(self, metadata: SnapshotMetadata) -> None:
        self._raft.applied(metadata.last_included_index)
        self._router.restored(metadata.last_included_index)
        self._tell(SnapshotRestored(metadata))

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

    def _persisted(self, number: int) -> None:
        if self._running:
            try:
                self._raft.persisted(number, self._clock.seconds())
            except Exception:
                self._defect(Failure())
            if self._raft.wants_turn:
                self._wake()

    def _space_changed(self, is_left: bool) -> None:
        """Storage has no room for more commands, or has room again."""
        if not self._running:
            return
        if is_left:
            self._log.info("There is room on the disk again: writes are taken.")
        else:
            self._log.error("The disk is full: no writes are taken until there is room again.")
            self._look_for_space()
        self._raft.space_changed(is_left, self._clock.seconds())
        self._has_space = is_left
        self._wake()

    def _look_for_space(self) -> None:
        if self._space_timer is None:  # else it was full a moment ago as well
            self._space_timer = self._clock.callLater(SPACE_RETRY_S, self._space_due)

    def _space_due(self) -> None:
        self._space_timer = None
        if not self._has_space:
            self._look_for_space()
            self._storage.look_for_space()

    # -- members and the leader ----------------------------------------------

    def _follow_configuration(self) -> None:
        """Have a peer for each other member, and for nobody else."""
        self._configuration = self._raft.configuration
        others = self._configuration.members()
        others.pop(self.member.id, None)
        for member_id in self._peers.keys() - others.keys():
            timer = self._clock.callLater(FAREWELL_S, self._let_go, member_id)
            self._departing[member_id] = self._peers.pop(member_id), timer
        for member in sorted(others.values()):
            if member.id in self._departing:  # its removal was taken back
                self._peers[member.id], timer = self._departing.pop(member.id)
                timer.cancel()
            former = self._peers.get(member.id)
            if former is None:
                self._peers[member.id] = self._transport.peer(member)
            elif former.member != member:
                peer = self._transport.peer(member)
                self._peers[member.id] = MovingPeer(
                    former, peer, self._clock, self._request_timeout_s
                )

    def _let_go(self, member_id: MemberId) -> None:
        """Disconnect from a former member, unless it still leads."""
        peer, _ = self._departing.pop(member_id)
        if member_id == self._raft.leader_id:
            timer = self._clock.callLater(FAREWELL_S, self._let_go, member_id)
            self._departing[member_id] = peer, timer
        else:
            peer.close()

    def _look_at_leader(self) -> None:
        raft, seen = self._raft, self._seen
        if raft.term != seen.term:
            seen.term = raft.term
            self._tell(TermChanged(raft.term))
        if raft.leader_id != seen.leader_id:
            seen.leader_id = raft.leader_id
            self._leader_changed()

    def _look_at_applied(self) -> None:
        """Tell what was applied in this turn; each turn, so it must cost little."""
        raft, seen = self._raft, self._seen
        if raft.applied_index == seen.applied_index:
            return
        seen.applied_index = raft.applied_index
        if self._observers:
            self._tell(Committed(raft.applied_index))
        if seen.configuration_index < raft.configuration_index <= raft.applied_index:
            seen.configuration_index = raft.configuration_index
            self._membership_changed(raft.configuration)

    def _membership_changed(self, configuration: Configuration) -> None:
        """A configuration is committed, and applied here."""
        names = ", ".join(sorted(m.name for m in configuration.members().values()))
        self._log.info("The members are {names}.", names=names)
        self._tell(MembershipChanged(self._seen.configuration_index, configuration))
        if self.member.id in configuration.removed and self._farewell is None:
            # Not at once: whoever has asked for it through this node is to be told.
            reason = Removed(f"{self.member.name} was removed from the cluster.")
            self._farewell = self._clock.callLater(FAREWELL_S, self.fail, reason)

    def _leader_changed(self) -> None:
        self._router.leader_changed()
        leader = self._leader_member()
        if leader is not None:
            self._log.info(
                "Term {term}: the leader is {name}.", term=self._raft.term, name=leader.name
            )
        elif self._raft.leader_id == NOBODY:
            self._log.info("Term {term}: no leader.", term=self._raft.term)
        self._tell(LeaderChanged(self._raft.term, leader))

    def _leader_member(self) -> Member | None:
        if self._raft.leader_id == self.member.id:
            return self.member
        return self._configuration.members().get(self._raft.leader_id)

    def _leader_peer(self, now: float) -> IPeer | None:
        """The leader, if it is another member and can be asked now."""
        peer = self._peers.get(self._raft.leader_id)
        if self._raft.leader_id in self._departing:
            peer, _ = self._departing[self._raft.leader_id]
        if peer is None or now < self._router.retry_at:
            return None
        if not peer.connected:
            self._router.retry_at = now + RETRY_DELAY_S
            return None
        return peer

    def _why_not(self) -> RaftdError:
        """Why a request that is still queued could not be carried out."""
        reached = {m for m, peer in self._peers.items() if peer.connected} | {self.member.id}
        voters = self._configuration.voter_ids()
        leader = self._leader_member()
        if not voters:
            return NoLeader(f"No leader has reached {self.member.name} yet. Try again.")
        if not has_quorum(self._configuration.majorities(), reached):
            return NoQuorum(
                f"{self.member.name} reaches {len(voters & reached)} of {len(voters)} voters, "
                "which is not enough to decide anything; nothing was changed. Try again."
            )
        if leader is None:
            return NoLeader("There is no leader at the moment; nothing was changed. Try again.")
        if leader.id == self.member.id:
            return NoQuorum(
                f"{leader.name} leads, and could not confirm this with the other voters in "
                "time; nothing was changed. Try again."
            )
        return NoLeader(
            f"The leader, {leader.name}, could not be asked in time; nothing was changed. "
            "Try again."
        )

    # -- what peers ask for (INodeRPC) ---------------------------------------

    def _dispatch(self, outgoing: Outgoing) -> None:
        """Send a request to a peer, or the answer to one of its own."""
        message = outgoing.message
        if outgoing.request_id is not None:
            answer = self._answers.pop(outgoing.request_id, None)
            if answer is not None:
                answer.callback(message)  # type: ignore[arg-type]
            return
        peer = self._peers.get(outgoing.to)
        if peer is None:
            self._raft.unreachable(outgoing.to)
            return
        sent = peer.send(message)  # type: ignore[arg-type]
        sent.addCallbacks(
            partial(self._peer_answered, outgoing.to), partial(self._peer_lost, outgoing.to)
        )
        sent.addErrback(self._defect)

    def _peer_answered(self, member_id: MemberId, response: Response) -> None:
        if self._running:
            self._raft.receive_response(member_id, response, self._clock.seconds())
            if self._raft.wants_turn:
                self._wake()

    def _peer_lost(self, member_id: MemberId, failure: Failure) -> None:
        failure.trap(RaftdError)
        if not self._running:
            return
        if failure.check(NoSpace):
            self._raft.lacks_space(member_id, self._clock.seconds())
        else:
            self._raft.unreachable(member_id)
        self._wake()

    def _defect(self, failure: Failure) -> None:
        """An error that nothing above has expected."""
        value = failure.value
        if not isinstance(value, Fatal):
            self._log.failure("A defect stops this node", failure)
            value = InvariantViolated(f"A defect stops this node: {value!r}")
        self.fail(value)

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
        raft, now = self._raft, self._clock.seconds()
        return NodeStatus(
            member=self.member,
            cluster_id=self.cluster_id,
            role=self._role(),
            term=raft.term,
            leader=self._leader_member(),
            first_index=raft.log.first_index,
            last_index=raft.log.last_index,
            commit_index=raft.commit_index,
            applied_index=raft.applied_index,
            snapshot_index=self._snapshotter.latest_index,
            uptime_seconds=now - self._started_at,
            members=tuple(
                self._member_status(member, now)
                for member in sorted(
                    raft.configuration.members().values(), key=lambda member: member.name
                )
            ),
        )

    def _role(self) -> str:
        if self._raft.role is Role.PRE_CANDIDATE:
            return "candidate"
        if self._raft.role is Role.FOLLOWER and not self._raft.configuration.is_voter(
            self.member.id
        ):
            return "learner"
        return str(self._raft.role.value)

    def _member_status(self, member: Member, now: float) -> MemberStatus:
        raft = self._raft
        role = "voter" if raft.configuration.is_voter(member.id) else "learner"
        if raft.leadership is None:
            return MemberStatus(member, role)
        progress = raft.leadership.progress.get(member.id)
        if progress is None:
            last = raft.log.last_index
            return MemberStatus(member, role, raft.log.persisted_index, last + 1, 0)
        contact_ms = int((now - progress.last_contact) * 1000)
        return MemberStatus(member, role, progress.match_index, progress.next_index, contact_ms)
