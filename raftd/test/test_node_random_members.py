"""
Whole nodes under random faults while their members are removed, moved and replaced.

As in `test_node_random`, but members go for good: who is left in the end is
whoever the last committed configuration names.
"""

from __future__ import annotations

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import AddLearner, Change, Demote, Promote, Remove, Rename
from raftd.errors import DidNotHappen, OutcomeUnknown, Removed
from raftd.interfaces import IPeer
from raftd.memory_network import MemoryPeer
from raftd.moving import MovingPeer
from raftd.node import Node
from raftd.test.test_node_random import History

SEEDS = 30
#: Of all that befalls a cluster, how much is a change of these kinds.
CHANGE_SHARE = 0.4
#: There are never more nodes than these, those included that are gone.
MAX_NODES = 9
#: In peace: until there is a leader, until all that waits has run into its
#: time, and how long there must be no election after that.
HEALING_S = 8.0
QUIET_S = 3.0


class MembersHistory(History):
    """One run in which members come and go."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._number = 0
        self._remaining: list[str] = []
        self.removed = 0

    def _befall(self) -> None:
        if self.cluster.nodes and self.random.random() < CHANGE_SHARE:
            self._change_members()
        else:
            super()._befall()

    def _change_members(self) -> None:
        cluster, random = self.cluster, self.random
        asked = cluster[random.choice(sorted(cluster.nodes))]
        members = sorted(cluster.members.values())
        kind = random.random()
        changes: list[Change] = []
        if kind < 0.3:
            changes.append(Remove(random.choice(members).id))
        elif kind < 0.5:
            self._number += 1
            changes.append(Rename(random.choice(members).id, f"moved{self._number}"))
        else:
            for member in random.sample(members, min(len(members), random.choice((2, 3)))):
                make = random.choice((Remove, Demote, Promote, Promote))
                changes.append(make(member.id))
            if len(members) < MAX_NODES and random.random() < 0.7:
                name = f"n{len(members) + 1}"
                cluster.start_joiner(name)
                self._watch(name)
                changes.append(AddLearner(cluster.members[name]))
        changed = asked.change_membership(changes, force=random.random() < 0.1)
        changed.addCallbacks(self._count_change, _explained)

    def _break_connections(self) -> None:
        for node in self.cluster.nodes.values():
            for peer in node._peers.members.values():
                _break_bulk(peer)

    def _end(self) -> None:
        cluster = self.cluster
        cluster.network.loss = 0.0
        cluster.heal()
        self._break_connections()
        for name in self._failing & cluster.nodes.keys():
            self._crash(name)
        for name in cluster.members:
            if name not in cluster.nodes:
                self._restart(name)  # who was removed is told so again, and ends
        for name in cluster.nodes:
            self._set_disk(name, 0.001)
            cluster.snapshots[name].delay_seconds = 0.001
        # Changes that are under way are made or given up by then.
        cluster.advance(2 * HEALING_S)
        final = max(cluster.nodes.values(), key=_commit_index).configuration
        assert not final.is_joint, "a joint configuration is not left"
        ids = final.members().keys()
        for name, node in list(cluster.nodes.items()):
            if node.member.id not in ids:
                is_removed = node.member.id in final.removed
                # Who has never heard of anybody waits to be let in, and is told then.
                assert not (is_removed and node._peers.members), (
                    f"{name} was removed and is not told"
                )
                self._crash(name)
        remaining = self._remaining = sorted(cluster.nodes)
        assert len(remaining) == len(ids), f"{remaining} run, and {final} is committed"
        leader = cluster.await_leader(remaining)
        term = cluster.nodes[leader].status().term
        cluster.advance(QUIET_S)
        for name in remaining:
            assert cluster.nodes[name].status().term == term, "an election for nothing"
        cluster.await_agreement()

    def check(self) -> None:
        machines = self.cluster.machines
        whole = machines[self._remaining[0]].operations
        for name in sorted(machines.keys() - set(self._remaining)):
            known = machines.pop(name).operations
            assert known == whole[: len(known)], f"{name} went with something else"
        for name, reason in list(self.cluster.fatal.items()):
            if isinstance(reason, Removed):
                assert name not in self._remaining, f"{name} is a member: {reason}"
                self.removed += 1
                del self.cluster.fatal[name]
        super().check()


def _commit_index(node: Node) -> int:
    return node.status().commit_index


def _break_bulk(peer: IPeer) -> None:
    if isinstance(peer, MovingPeer):
        _break_bulk(peer._new)
        if peer._former is not None:
            _break_bulk(peer._former)
    else:
        assert isinstance(peer, MemoryPeer)
        peer.bulk._break("the test has cut the cable")


def _explained(failure: Failure) -> None:
    failure.trap(DidNotHappen, OutcomeUnknown)


class RandomMembersTests(SynchronousTestCase):
    def test_36_37_histories(self) -> None:
        changed = removed = 0
        for seed in range(SEEDS):
            history = MembersHistory(seed)
            try:
                history.run()
                history.check()
            except AssertionError as e:
                raise AssertionError(f"seed {seed}: {e}") from e
            self.assertEqual(self.flushLoggedErrors(), [], f"seed {seed}")
            changed += history.changed
            removed += history.removed
        self.assertGreater(changed, SEEDS)
        self.assertGreater(removed, SEEDS / 2)
