"""
What must hold after every event.

`Safety` knows what binds the nodes to one another (Raft paper, figure 3), the
core's own `Checker` what holds in each.  Here are added: what is committed is
durable on a quorum, for the disk's word is taken from the disk; equal results
and equal states at equal indexes; one effect for one idempotency key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from raftd.core.invariants import Checker
from raftd.core.membership import configurations_in
from raftd.core.messages import Entry, EntryKind, HardState, decode_command
from raftd.core.raft import Raft
from raftd.test.core_clusters import Safety
from raftd.test.cores import check
from raftd.test.simulation.states import number_of

if TYPE_CHECKING:
    from raftd.test.simulation.hosts import Host, Process
    from raftd.test.simulation.run import Simulation

#: The states of all nodes are compared at every index by a number, which is quick;
#: and at indexes that are multiples of this by the digest that ships, which is not.
DIGEST_EVERY = 32


class Effect(NamedTuple):
    """What a revision did to a key; a value of None: it is gone."""

    key: bytes
    value: bytes | None
    version: int


class Watched:
    """A host as `Safety` sees a node."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.id = host.id
        self.restores = 0
        #: Entries that were applied since the start, or since the last restore.
        self.applied: list[Entry] = []
        #: Reads are judged by what clients have seen.
        self.reads: list[tuple[int, int]] = []
        self.waiting_reads: dict[int, tuple[int, int]] = {}
        self.raft: Raft
        self.checker: Checker
        self.seen: tuple[int, ...] = ()
        self.applied_index = 0
        self.revision = 0

    @property
    def incarnation(self) -> int:
        return self._host.incarnation

    @property
    def disk(self) -> Any:
        return self._host.durable


class Invariants:
    """
    `effects` has what each revision changed, from the first node that made it;
    `checks` counts.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._watched: dict[int, Watched] = {}
        nodes: Any = self._watched
        self.safety = Safety(nodes)
        self.checks = 0
        self.effects: dict[int, list[Effect]] = {}
        #: By index: what the command came to, and the digest of the state.
        self._results: dict[int, bytes] = {}
        self._digests: dict[int, bytes] = {}
        #: By index: the state's number (`raftd.test.simulation.states`).
        self._numbers: dict[int, int] = {}
        #: Members that were removed by an entry that was applied anywhere.
        self._removed: set[int] = set()
        #: Idempotency keys, and commands of sessions, that have changed something.
        self._carried_out: set[bytes | tuple[int, int]] = set()

    @property
    def elections(self) -> int:
        return len(self.safety.leaders_of_terms)

    # -- processes come and go ---------------------------------------------------

    def host_added(self, host: Host) -> None:
        self._watched[host.id] = Watched(host)

    def started(self, process: Process) -> None:
        """A node is about to start: it is what its disk has."""
        watched = self._watched[process.host.id]
        watched.raft = raft = process.node._raft
        watched.checker = Checker(raft)
        watched.seen = ()
        watched.restores = 0
        self._begin_applying(process, watched)
        applier = process.node._applier
        applied = applier._on_applied

        def on_applied(entry: Entry, result: bytes) -> None:
            self._applied(process, watched, entry, result)
            applied(entry, result)

        applier._on_applied = on_applied

    def restored(self, process: Process) -> None:
        """A snapshot has taken the place of the state."""
        watched = self._watched[process.host.id]
        watched.restores += 1
        self._begin_applying(process, watched)

    def _begin_applying(self, process: Process, watched: Watched) -> None:
        watched.applied = []
        watched.applied_index = process.node._applier.applied_index
        watched.revision = process.store.revision
        self._check_number(process, watched.applied_index)
        self._check_state(process, watched.applied_index)

    def snapshot_begins(self, process: Process) -> None:
        """Whoever restores it must have this very state."""
        self._check_state(process, process.node._applier.applied_index)

    def removed(self, host: Host) -> None:
        """A host says that it was removed: that must be committed."""
        # Whoever has told it may be gone by now.
        committed = [w.raft.configuration_at(w.raft.commit_index) for w in self._started()]
        gone = self._removed.union(*(configuration.removed for configuration in committed))
        check(host.id in gone, f"{host.name} was told that it was removed")

    def _started(self) -> list[Watched]:
        """The last start of each host, that it runs or not."""
        return [w for w in self._watched.values() if hasattr(w, "raft")]

    # -- after every event -------------------------------------------------------

    def look(self, process: Process) -> None:
        """Something has happened in `process`."""
        watched = self._watched[process.host.id]
        raft = watched.raft
        log = raft.log
        seen = (
            raft.term,
            raft.commit_index,
            log.base_index,
            log.last_index,
            log.last_term,
            watched.applied_index,
            raft.leadership is None,
        )
        if seen == watched.seen:
            if raft.leadership is not None:
                watched.checker.check()  # what it knows of others may have changed
            return
        if watched.seen:
            check(raft.term >= watched.seen[0], "the term never goes back")
            check(raft.commit_index >= watched.seen[1], "the commit index never goes back")
        if raft.leadership is not None:
            elected = HardState(raft.term, raft.member_id)
            check(watched.disk.hard_state == elected, "a leader's own vote is durable")
        watched.seen = seen
        self.checks += 1
        self.safety.check(watched)  # type: ignore[arg-type]
        watched.checker.check()

    # -- applying ----------------------------------------------------------------

    def _applied(self, process: Process, watched: Watched, entry: Entry, result: bytes) -> None:
        index = entry.index
        check(index == watched.applied_index + 1, f"entry {index} is applied in its turn")
        watched.applied_index = index
        watched.applied.append(entry)
        for _, configuration in configurations_in([entry]):
            self._removed.update(configuration.removed)
        store = process.store
        before, watched.revision = watched.revision, store.revision
        known = self._results.get(index)
        if known is None:
            self._results[index] = result
            self._first_applied(entry, before, store)
        else:
            check(known == result, f"entry {index} comes to {known!r} and to {result!r}")
        self._check_number(process, index)
        if index % DIGEST_EVERY == 0:
            self._check_state(process, index)

    def _first_applied(self, entry: Entry, before: int, store: Any) -> None:
        for revision in range(before + 1, store.revision + 1):
            check(revision not in self.effects, f"revision {revision} is made twice")
            self.effects[revision] = [
                _effect(store.event(key, revision, False).record)
                for key in store.changed_keys(revision)
            ]
        if entry.kind == EntryKind.COMMAND:
            command = decode_command(entry.data)
            name = command.idempotency_key or (command.client_id, command.sequence)
            if name != (0, 0) and store.revision > before:
                check(name not in self._carried_out, "a request is carried out twice")
                self._carried_out.add(name)

    def _check_number(self, process: Process, index: int) -> None:
        """
        The state as of `index` is the same wherever it comes from, by its number,
        so that a difference is found that is gone at the next index.
        """
        if index:
            number = number_of(process.machine)
            known = self._numbers.setdefault(index, number)
            check(known == number, f"the states at index {index} differ")

    def _check_state(self, process: Process, index: int) -> None:
        """The same by its digest."""
        if index:
            digest = process.machine.digest()
            known = self._digests.setdefault(index, digest)
            check(known == digest, f"the states at index {index} differ")


def _effect(record: Any) -> Effect:
    return Effect(record.key, record.value if record.version else None, record.version)
