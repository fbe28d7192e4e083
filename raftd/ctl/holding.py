"""
`lock` and `elect`: something is held while a command runs, and not a moment longer.

The lease beneath says when it may be over.  `--grace` before that, if nobody
could keep it alive until then, the command is asked to end; when it may be
over, it is killed.  What it does in spite of that, from another machine for
instance, only what it works on can refuse, by the token.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall

from raftd.client import Lease
from raftd.client.recipes import Election, Held, Leader, Lock
from raftd.client.values import named
from raftd.ctl.children import Child, environment_of, exit_status
from raftd.ctl.context import Context
from raftd.ctl.output import JSON, RAW, escaped
from raftd.ctl.statuses import LOST, OK, Failed, LostHold, Refused, Usage
from raftd.errors import LeaseNotFound, RaftdError

#: Of the TTL: when a command is asked to end, at the latest and by default.
MAX_GRACE = 1 / 2
GRACE = 1 / 3


async def lock(context: Context) -> int:
    arguments = context.arguments
    name = os.fsencode(arguments.name)
    async with _Leased(context) as lease:
        wanted = Lock(context.client, name, lease=lease)
        return await _Hold(context, "lock", "LOCK", lease).run(wanted, b"")


async def elect(context: Context) -> int:
    arguments = context.arguments
    election = Election(context.client, os.fsencode(arguments.name))
    if arguments.value is None:
        if arguments.child is not None:
            raise Usage("Who wants to lead has a VALUE, which the others see.")
        return await _look(context, election)
    if arguments.observe:
        raise Usage("--observe is for those who do not want to lead: it has no VALUE.")
    value = os.fsencode(arguments.value)
    async with _Leased(context) as lease:
        wanted = election.campaign(value, lease=lease)
        return await _Hold(context, "leadership", "ELECTION", lease).run(wanted, value)


async def _look(context: Context, election: Election) -> int:
    """Who leads: now, or from now on."""
    if context.arguments.observe:
        async with election.observe() as observation:
            async for leader in observation:
                _print(context, leader)
                context.output.flush()
        return OK
    leader = await election.leader()
    if leader is None:
        raise Refused("Nobody leads.")
    _print(context, leader)
    return OK


def _print(context: Context, leader: Leader | None) -> None:
    output = context.output
    if output.format == JSON:
        output.json(
            {"leader": None}
            if leader is None
            else {"leader": {**named("value", leader.value), "token": leader.token}}
        )
    elif leader is None:
        if output.format != RAW:
            output.line(output.styled("nobody", "dim") if output.is_terminal else "")
    elif output.format == RAW:
        output.write(leader.value + b"\n")
    elif output.is_terminal:
        token = output.styled(f"(token {leader.token})", "dim")
        output.line(f"{escaped(leader.value)}  {token}")
    else:
        output.fields([leader.value, leader.token])


class _Leased:
    """A lease that ends with the block, or says that it will end by itself."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        context, arguments = self._context, self._context.arguments
        self._lease = await context.client.lease(arguments.ttl, delay_s=arguments.delay)
        return self._lease

    async def __aexit__(self, *reason: object) -> None:
        lease = self._lease
        assert lease is not None
        left_s = lease.remaining_s
        if not left_s:
            return  # what is over need not be revoked
        # What is held goes with it.  Later than its end there is no need to, either.
        letting_go = lease.revoke().addTimeout(left_s, self._context.reactor)
        try:
            await letting_go
        except (RaftdError, TimeoutError):
            self._context.output.complain(
                f"It could not be let go; it goes by itself within {lease.ttl_s:g} seconds."
            )


class _Hold:
    """One lock, or one leadership, from getting in line to letting go."""

    def __init__(self, context: Context, what: str, word: str, lease: Lease) -> None:
        """`what` is what people call it, `word` what it is in names of variables."""
        self._context = context
        self._what = what
        self._word = word
        self._lease = lease

    async def run(self, wanted: Any, value: bytes) -> int:
        """Get it, and run the command, or wait; the exit status."""
        held = await self._acquire(wanted, value)
        if self._context.arguments.child is None:
            return await self._until_told(held)
        return await self._run_command(held)

    async def _acquire(self, wanted: Any, value: bytes) -> Held:
        arguments, output = self._context.arguments, self._context.output
        wait_s = arguments.wait
        waiting: Deferred[Held | None] = wanted.acquire(wait=wait_s != 0, value=value)
        if wait_s:
            waiting.addTimeout(wait_s, self._context.reactor)
        if wait_s != 0:
            output.progress(f"Waiting for {arguments.name} ...")
        try:
            held = await waiting
        except TimeoutError:
            held = None
        except LeaseNotFound as e:
            raise Failed(f"The place in line was lost: {e}") from None
        finally:
            output.end_progress()
        if held is None:
            raise Refused(f"The {self._what} of {arguments.name} is somebody else's.")
        return held

    # -- without a command -------------------------------------------------------------

    async def _until_told(self, held: Held) -> int:
        """Hold it until a signal comes."""
        output = self._context.output
        token = held.token
        output.result(
            {"name": self._context.arguments.name, "token": token},
            token,
            [("name", self._context.arguments.name), ("token", str(token))],
        )
        output.flush()
        told: Deferred[bool] = Deferred()

        def tell(is_signal: bool) -> bool:
            if not told.called:
                told.callback(is_signal)
            return True

        self._context.on_signal = lambda number: tell(True)
        lost = held.lost()
        lost.addCallbacks(lambda _: tell(False), _cancelled)
        try:
            if await told:
                return OK
        finally:
            lost.cancel()
        raise LostHold(f"The {self._what} of {self._context.arguments.name} may be lost.")

    # -- with one ----------------------------------------------------------------------

    async def _run_command(self, held: Held) -> int:
        context = self._context
        name = os.fsencode(context.arguments.name)
        prefix = b"RAFTCTL_" + self._word.encode("ascii")
        child = Child(
            context.reactor,
            context.arguments.child,
            {
                **environment_of(context.environ),
                prefix + b"_NAME": name,
                prefix + b"_TOKEN": b"%d" % held.token,
                prefix + b"_KEY": held.key,
            },
        )
        context.on_signal = lambda number: _pass_on(child, number)
        guard = Guard(context.reactor, self._lease, child, self._grace_s())
        try:
            code = await child.ended()
        finally:
            guard.stop()
            child.kill()
            # One that was for the command may come to us after its end; letting go
            # takes no longer than a request may.
            context.on_signal = lambda number: True
        if guard.has_acted:
            context.output.complain(
                f"The {self._what} of {context.arguments.name} may be lost; "
                f"{context.arguments.child[0]} was ended."
            )
            return LOST
        return exit_status(code)

    def _grace_s(self) -> float:
        ttl_s = self._lease.ttl_s - self._lease.delay_s
        given: float | None = self._context.arguments.grace
        return min(ttl_s * GRACE if given is None else given, ttl_s * MAX_GRACE)


def _pass_on(child: Child, number: int) -> bool:
    """A signal for us is one for the command; we end when it has ended."""
    if number != signal.SIGINT or child.has_group:
        child.signal(number)  # else the terminal has sent it to both
    return True


def _cancelled(failure: Any) -> None:
    failure.trap(CancelledError)


class Guard:
    """
    Ends a command before what it needs is lost.

    SIGTERM goes out when `lease` has only `grace_s` left, SIGKILL when it may
    be over; `has_acted` says that one of them did.
    """

    def __init__(self, reactor: Any, lease: Lease, child: Child, grace_s: float) -> None:
        self.has_acted = False
        self._reactor = reactor
        self._lease = lease
        self._child = child
        self._grace_s = grace_s
        self._timer: IDelayedCall | None = None
        self._lost = lease.lost()
        self._lost.addCallbacks(self._is_lost, _cancelled)
        self._look()

    def _look(self) -> None:
        self._timer = None
        left_s = self._lease.remaining_s - self._grace_s
        if left_s > 0:
            self._timer = self._reactor.callLater(left_s, self._look)
        elif not self.has_acted:
            self.has_acted = True
            self._child.signal(signal.SIGTERM)
            # One that is stopped would not hear it.
            self._child.signal(signal.SIGCONT)

    def _is_lost(self, _: None) -> None:
        self.has_acted = True
        self._child.kill()

    def stop(self) -> None:
        """The command is over."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._lost.cancel()
