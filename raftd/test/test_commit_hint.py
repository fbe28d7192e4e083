"""
What a node knew to be committed outlives it: each write to its log says so,
and a restart applies so much before it has heard of anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.log import Log
from raftd.core.membership import Configuration, encode_configuration
from raftd.core.messages import (
    AppendEntries,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    InstallSnapshot,
    Member,
)
from raftd.core.raft import Raft
from raftd.core.ready import Outgoing
from raftd.core.settings import Settings
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import InvariantViolated
from raftd.replica import ReplicaOptions
from raftd.statemachine import SimpleStateMachine
from raftd.testing import Cluster

ME, OTHER, THIRD = (Member(i, f"n{i}") for i in (1, 2, 3))
THREE = Configuration(voters=(ME, OTHER, THIRD))
ALONE = Configuration(voters=(ME,))


def log_of(configuration: Configuration, *terms: int) -> list[Entry]:
    """A configuration at index 1, and commands behind it, one for each of the other terms."""
    first = Entry(1, terms[0], EntryKind.CONFIGURATION, 0, encode_configuration(configuration))
    rest = enumerate(terms[1:], 2)
    return [first, *(Entry(i, term, EntryKind.COMMAND, 0, b"%d" % i) for i, term in rest)]


def restarted(
    entries: Sequence[Entry],
    commit_index: int,
    *,
    term: int = 3,
    snapshot: SnapshotMetadata | None = None,
    base: tuple[int, int] = (0, 0),
) -> Raft:
    log = Log(entries, *base)
    return Raft(
        ME.id,
        Settings(),
        Random(1),
        0.0,
        hard_state=HardState(term),
        log=log,
        snapshot=snapshot,
        commit_index=commit_index,
    )


def snapshot_at(index: int, term: int) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, THREE, 0)


class RestartTests(SynchronousTestCase):
    """A core that begins with what storage has recovered."""

    def committed(self, raft: Raft) -> list[int]:
        """What the next turn has to apply; once."""
        handed_out = [entry.index for entry in raft.ready(0.0).committed]
        self.assertEqual(raft.ready(0.0).committed, [])
        return handed_out

    def test_27_so_much_is_applied_at_once(self) -> None:
        raft = restarted(log_of(THREE, 1, 2, 2, 3, 3), 3)
        self.assertEqual((raft.commit_index, raft.applied_index), (3, 0))
        self.assertEqual(self.committed(raft), [1, 2, 3])

    def test_27_nothing_is_said_of_the_rest(self) -> None:
        raft = restarted(log_of(THREE, 1, 2, 2), 0)
        self.assertEqual(raft.commit_index, 0)
        self.assertEqual(self.committed(raft), [])

    def test_51_a_log_that_has_lost_its_end(self) -> None:
        """
        No crash leaves it: what says how far the log is committed is written
        with all of these entries or after them.  With its vote, 4 could be
        replaced, which others were told is committed.
        """
        for snapshot in (None, snapshot_at(2, 2)):
            with self.assertRaises(InvariantViolated) as caught:
                restarted(log_of(THREE, 1, 2, 2), 4, snapshot=snapshot)
            self.assertIn("up to entry 4", str(caught.exception))
            self.assertIn("ends with entry 3: its end was lost", str(caught.exception))
        restarted(log_of(THREE, 1, 2, 2), 3)

    def test_51_a_snapshot_of_another_history(self) -> None:
        """What is committed has one term; the log must not be dropped for a snapshot's sake."""
        entries = log_of(THREE, 1, 2, 2, 3)
        for commit_index, base, last, term in (
            (3, (0, 0), 3, 3),  # known to be committed, in another term
            (4, (0, 0), 3, 3),
            (3, (0, 0), 2, 1),
            (0, (3, 2), 3, 3),  # compacted, so committed, in another term
            (6, (0, 0), 5, 3),  # the log does not even lead up to it
        ):
            with self.assertRaises(InvariantViolated) as caught:
                restarted(
                    entries[base[0] :],
                    commit_index,
                    snapshot=snapshot_at(last, term),
                    base=base,
                )
            sentence = f"does not hold entry {last} of term {term}"
            self.assertIn(sentence, str(caught.exception))
        # What is not known to be committed gives way to it.
        raft = restarted(entries, 2, snapshot=snapshot_at(3, 3))
        self.assertEqual((raft.log.base_index, raft.log.last_index), (3, 3))
        raft = restarted(entries, 2, snapshot=snapshot_at(7, 3))
        self.assertEqual((raft.log.base_index, raft.log.last_index), (7, 7))

    def test_27_behind_a_snapshot(self) -> None:
        """What the state machine was restored from is not applied again."""
        entries = log_of(THREE, 1, 2, 2, 3, 3)
        raft = restarted(entries[1:], 4, snapshot=snapshot_at(3, 2), base=(1, 1))
        self.assertEqual((raft.commit_index, raft.applied_index), (4, 3))
        self.assertEqual(self.committed(raft), [4])

    def test_27_a_snapshot_knows_more(self) -> None:
        raft = restarted(log_of(THREE, 1, 2, 2, 3, 3), 2, snapshot=snapshot_at(4, 3))
        self.assertEqual((raft.commit_index, raft.applied_index), (4, 4))
        self.assertEqual(self.committed(raft), [])

    def test_41_a_snapshot_that_the_log_does_not_lead_up_to(self) -> None:
        """The log begins anew behind it, and what was known of it says nothing more."""
        raft = restarted(log_of(THREE, 1, 2, 2), 3, snapshot=snapshot_at(9, 3))
        self.assertEqual((raft.commit_index, raft.applied_index), (9, 9))
        self.assertEqual(self.committed(raft), [])

    def test_18_none_of_it_is_replaced(self) -> None:
        """A leader that wants to is no leader of this cluster; behind it, one may."""
        raft = restarted(log_of(THREE, 1, 2, 2, 2), 3)
        new = Entry(4, 4, EntryKind.COMMAND, 0, b"")
        raft.receive_request(OTHER.id, AppendEntries(4, 3, 2, 3, (new,)), 1, 0.0)
        self.assertEqual(raft.log.term_at(4), 4)
        new = Entry(3, 5, EntryKind.COMMAND, 0, b"")
        with self.assertRaises(InvariantViolated) as caught:
            raft.receive_request(OTHER.id, AppendEntries(5, 2, 2, 3, (new,)), 2, 0.0)
        self.assertIn("everything up to 3 is committed", str(caught.exception))

    def test_44_a_snapshot_of_it_is_not_taken_in(self) -> None:
        raft = restarted(log_of(THREE, 1, 2, 2, 2), 3)
        piece = InstallSnapshot(3, 3, 2, 0, b"", False)
        raft.receive_request(OTHER.id, piece, 1, 0.0)
        ready = raft.ready(0.0)
        self.assertEqual(ready.pieces, [])
        [answer] = ready.messages
        self.assertEqual((answer.to, answer.request_id), (OTHER.id, 1))


class WriteTests(SynchronousTestCase):
    """What a core tells storage."""

    def test_27_a_write_says_what_is_committed(self) -> None:
        raft = restarted(log_of(THREE, 1, 2), 0)
        entries = log_of(THREE, 1, 2, 3, 3)[2:]
        raft.receive_request(OTHER.id, AppendEntries(3, 2, 2, 3, tuple(entries)), 1, 0.0)
        write = raft.ready(0.0).write
        assert write is not None
        self.assertEqual((write.entries, write.commit_index), (entries, 3))

    def test_27_nothing_is_written_for_its_sake(self) -> None:
        raft = restarted(log_of(THREE, 1, 2), 0)
        raft.receive_request(OTHER.id, Heartbeat(3, 2, 1), 1, 0.0)
        ready = raft.ready(0.0)
        self.assertEqual((raft.commit_index, ready.write), (2, None))
        self.assertEqual([e.index for e in ready.committed], [1, 2])
        # The next write for another reason has it.
        raft.receive_request(OTHER.id, Heartbeat(4, 2, 1), 2, 0.0)
        write = raft.ready(0.0).write
        assert write is not None
        self.assertEqual((write.hard_state, write.entries), (HardState(4), []))
        self.assertEqual(write.commit_index, 2)

    def test_27_a_leader_as_well(self) -> None:
        """Each write has what the one before it has committed."""
        raft = restarted(log_of(ALONE, 1), 0)
        found, messages = [], list[Outgoing]()
        for turn in range(4):
            raft.tick(0.0)
            if raft.leadership is not None:
                raft.propose([b"%d" % turn], 0.0)
            ready = raft.ready(0.0)
            messages += ready.messages
            assert ready.write is not None
            found.append(ready.write.commit_index)
            raft.persisted(ready.write.number, 0.0)
        self.assertEqual(messages, [])
        # The vote and the term come first, then one entry, or the first two, at a time.
        self.assertEqual(found, [0, 0, 3, 4])


class Journal(SimpleStateMachine):
    """Keeps every operation, in order."""

    def __init__(self) -> None:
        self.operations: list[bytes] = []

    def apply_command(self, operation: bytes) -> bytes:
        self.operations.append(operation)
        return operation

    def get_state(self) -> bytes:
        return b" ".join(self.operations)

    def set_state(self, state: bytes) -> None:
        self.operations = state.split()


class ClusterTests(SynchronousTestCase):
    """Whole nodes, restarted where there is no quorum."""

    def propose(self, cluster: Cluster[Journal], first: int, last: int) -> None:
        leader = cluster.await_leader()
        for i in range(first, last + 1):
            cluster.result(cluster[leader].propose(b"%d" % i))

    def test_27_a_restart_without_a_quorum(self) -> None:
        """Everything that was acknowledged is there, but what no later write has marked."""
        cluster = Cluster(3, Journal, seed=1)
        self.propose(cluster, 1, 20)
        for name in ("n1", "n2", "n3"):
            cluster.crash(name)
        expected = [b"%d" % i for i in range(1, 21)]
        for name in ("n1", "n2", "n3"):
            cluster.restart(name)
            cluster.advance(10)
            self.assertEqual(cluster.leaders(), [])
            found = cluster.machines[name].operations
            self.assertGreaterEqual(len(found), 18)
            self.assertEqual(found, expected[: len(found)])
            self.assertEqual(
                cluster.nodes[name].status().applied_index, cluster.logs[name].commit_index
            )
            cluster.crash(name)

    def test_27_and_again(self) -> None:
        """It is not forgotten by a restart that writes nothing, or a term and no more."""
        cluster = Cluster(3, Journal, seed=2)
        self.propose(cluster, 1, 5)
        for name in ("n2", "n3"):
            cluster.crash(name)
        seen = set()
        for _ in range(4):
            cluster.crash("n1")
            cluster.restart("n1")
            cluster.advance(5)
            seen.add(tuple(cluster.machines["n1"].operations))
        [operations] = seen
        self.assertGreaterEqual(len(operations), 3)
        cluster.restart("n2")
        cluster.await_leader()
        cluster.await_agreement()
        self.assertEqual(len(cluster.machines["n1"].operations), 5)

    def test_27_nothing_that_was_not_committed(self) -> None:
        """A leader without followers writes much, and knows none of it to be committed."""
        cluster = Cluster(3, Journal, seed=3)
        self.propose(cluster, 1, 5)
        cluster.await_agreement()
        leader = cluster.await_leader()
        others = [name for name in cluster.nodes if name != leader]
        cluster.partition([leader], others)
        for i in range(6, 12):
            cluster[leader].propose(b"lost %d" % i).addErrback(lambda _: None)
            cluster.advance(0.02)
        last_index = cluster.nodes[leader].status().last_index
        for name in ("n1", "n2", "n3"):
            cluster.crash(name)
        cluster.restart(leader)
        cluster.advance(5)
        self.assertGreaterEqual(cluster.nodes[leader].status().last_index, last_index)
        expected = [b"%d" % i for i in range(1, 6)]
        self.assertEqual(cluster.machines[leader].operations, expected)
        # The others decide without it what is in those places.
        cluster.crash(leader)
        cluster.heal()
        for name in others:
            cluster.restart(name)
        self.propose(cluster, 6, 9)
        cluster.restart(leader)
        cluster.await_leader()
        cluster.await_agreement()
        expected = [b"%d" % i for i in range(1, 10)]
        self.assertEqual(cluster.machines[leader].operations, expected)

    def test_27_with_snapshots(self) -> None:
        """What is behind the snapshot comes from the log."""
        options = ReplicaOptions(snapshot_threshold_bytes=200, snapshot_tail_entries=3)
        cluster = Cluster(3, Journal, seed=4, options=options)
        self.propose(cluster, 1, 60)
        cluster.await_agreement()
        for name in ("n1", "n2", "n3"):
            cluster.crash(name)
        cluster.restart("n2")
        cluster.advance(5)
        status = cluster.nodes["n2"].status()
        self.assertGreater(status.snapshot_index, 3)
        found = cluster.machines["n2"].operations
        self.assertGreaterEqual(len(found), 58)
        self.assertEqual(found, [b"%d" % i for i in range(1, len(found) + 1)])
