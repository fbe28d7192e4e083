"""A snapshot file that is damaged while its node runs: noticed when sent, and replaced."""

from __future__ import annotations

from typing import Any

from raftd.core.membership import AddLearner
from raftd.test.drivers import Journal
from raftd.test.test_node_snapshots import EARLY, SnapshotCase
from raftd.testing import Cluster


class DamagedCase(SnapshotCase):
    def file(self, cluster: Cluster[Any], name: str) -> bytearray:
        """The newest snapshot of a node, as it lies on its disk."""
        named = cluster.snapshots[name]._memory._named
        return named[max(path for path in named if path.endswith(".snapshot"))]

    def flip(self, cluster: Cluster[Any], name: str) -> None:
        file = self.file(cluster, name)
        file[len(file) // 2] ^= 4


class LeaderTests(DamagedCase):
    def test_learner_catches_up_with_an_idle_cluster_whose_leader_has_a_damaged_snapshot(
        self,
    ) -> None:
        cluster, leader, _ = self.led(3, Journal, **EARLY)
        self.write_many(cluster, leader, 150)
        cluster.await_agreement()
        self.flip(cluster, leader)
        cluster.start_joiner("n4")
        cluster.result(cluster[leader].change_membership([AddLearner(cluster.members["n4"])]))
        cluster.advance(60.0)
        self.assert_complete(cluster)
