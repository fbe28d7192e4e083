"""
What people buy a cluster for, on real processes: nodes are killed under a
write load, and every acknowledged write is there afterwards, at every node.
"""

from __future__ import annotations

import signal

from raftd.test.processes import ClusterProcessCase, Load


class SurvivalTests(ClusterProcessCase):
    def test_five_nodes_survive_two_killed_under_load(self) -> None:
        nodes = self.start_cluster(5)
        load = Load(nodes)
        self.addCleanup(load.stop)
        load.await_more()
        killed = [self.leader_of(nodes)]
        killed.append(next(node for node in nodes if node not in killed))
        for node in killed:
            node.signal(signal.SIGKILL)
            load.await_more()
        for node in killed:
            node.start()
        load.await_more()
        load.stop()
        self.leader_of(nodes)
        self.assert_all_there(nodes, load.acknowledged)
        # Nothing but these is ever said.
        self.assertLessEqual(load.answers.keys(), {0, 201, 503, 504})

    def test_three_nodes_killed_at_once_come_back_with_the_same_data(self) -> None:
        nodes = self.start_cluster(3)
        load = Load(nodes)
        self.addCleanup(load.stop)
        load.await_more()
        for node in nodes:
            node.signal(signal.SIGKILL)
        load.stop()
        for node in nodes:
            node.start()
        self.leader_of(nodes)
        self.assert_all_there(nodes, load.acknowledged)
        self.assertEqual({node.stop() for node in nodes}, {0})
