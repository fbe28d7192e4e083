"""
Raft consensus for Twisted, and a replicated key-value server on top of it.

What a program needs of it is here, by name; `docs/library.md` leads through
it.  For tests there is `raftd.testing`.  A name is looked for when it is first
asked for: `import raftd` by itself costs nothing and imports no Twisted, and
nothing here ever installs a reactor.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raftd._version import __version__ as _version

if TYPE_CHECKING:
    from raftd.clock import use_monotonic as use_monotonic
    from raftd.collector import keep_pauses_short as keep_pauses_short
    from raftd.core.membership import AddLearner as AddLearner
    from raftd.core.membership import Change as Change
    from raftd.core.membership import Configuration as Configuration
    from raftd.core.membership import Demote as Demote
    from raftd.core.membership import Promote as Promote
    from raftd.core.membership import Remove as Remove
    from raftd.core.membership import Rename as Rename
    from raftd.core.messages import Command as Command
    from raftd.core.messages import Member as Member
    from raftd.errors import BadAnswer as BadAnswer
    from raftd.errors import ChangeRefused as ChangeRefused
    from raftd.errors import DidNotHappen as DidNotHappen
    from raftd.errors import Fatal as Fatal
    from raftd.errors import JoinFailed as JoinFailed
    from raftd.errors import NoLeader as NoLeader
    from raftd.errors import NoQuorum as NoQuorum
    from raftd.errors import NotLeader as NotLeader
    from raftd.errors import NotRunning as NotRunning
    from raftd.errors import OutcomeUnknown as OutcomeUnknown
    from raftd.errors import Overloaded as Overloaded
    from raftd.errors import RaftdError as RaftdError
    from raftd.errors import Removed as Removed
    from raftd.errors import SessionClosed as SessionClosed
    from raftd.errors import SessionExpired as SessionExpired
    from raftd.errors import Stopped as Stopped
    from raftd.errors import TooStale as TooStale
    from raftd.errors import TransferFailed as TransferFailed
    from raftd.events import Committed as Committed
    from raftd.events import Event as Event
    from raftd.events import LeaderChanged as LeaderChanged
    from raftd.events import MembershipChanged as MembershipChanged
    from raftd.events import Observer as Observer
    from raftd.events import SnapshotRestored as SnapshotRestored
    from raftd.events import SnapshotTaken as SnapshotTaken
    from raftd.events import TermChanged as TermChanged
    from raftd.handle import Handle as Handle
    from raftd.interfaces import IRestore as IRestore
    from raftd.interfaces import IStateMachine as IStateMachine
    from raftd.interfaces import MemberStatus as MemberStatus
    from raftd.interfaces import NodeStatus as NodeStatus
    from raftd.net.port import PortFactory as PortFactory
    from raftd.replica import Replica as Replica
    from raftd.replica import ReplicaOptions as ReplicaOptions
    from raftd.session_client import Session as Session
    from raftd.statemachine import SimpleStateMachine as SimpleStateMachine

#: Where the names above are when they are asked for.
_NAMES = {
    "clock": "use_monotonic",
    "collector": "keep_pauses_short",
    "core.membership": "AddLearner Change Configuration Demote Promote Remove Rename",
    "core.messages": "Command Member",
    "errors": (
        "BadAnswer ChangeRefused DidNotHappen Fatal JoinFailed NoLeader NoQuorum NotLeader "
        "NotRunning OutcomeUnknown Overloaded RaftdError Removed SessionClosed "
        "SessionExpired Stopped TooStale TransferFailed"
    ),
    "events": (
        "Committed Event LeaderChanged MembershipChanged Observer SnapshotRestored "
        "SnapshotTaken TermChanged"
    ),
    "handle": "Handle",
    "interfaces": "IRestore IStateMachine MemberStatus NodeStatus",
    "net.port": "PortFactory",
    "replica": "Replica ReplicaOptions",
    "session_client": "Session",
    "statemachine": "SimpleStateMachine",
}
_PLACES = {name: place for place, names in _NAMES.items() for name in names.split()}

__version__ = _version.short()
__all__ = ["__version__", *sorted(_PLACES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """A name of `__all__` that is asked for the first time (PEP 562)."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{place}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
