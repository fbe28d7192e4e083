"""The counter on three nodes in memory; run by `python -m twisted.trial test_counter`."""

from counter import Counter
from twisted.trial.unittest import SynchronousTestCase

from raftd.testing import Cluster


class CounterTests(SynchronousTestCase):
    def test_every_node_has_the_total_though_the_leader_dies(self):
        cluster = Cluster(3, Counter, seed=1)
        leader = cluster.await_leader()
        self.assertEqual(cluster.result(cluster["n2"].propose(b"\x05")), b"5")
        cluster.crash(leader)
        survivor = cluster.await_leader()
        self.assertEqual(cluster.result(cluster[survivor].propose(b"\xfe")), b"3")
        cluster.restart(leader)
        cluster.await_agreement()
        self.assertEqual([c.value for c in cluster.machines.values()], [3, 3, 3])

    def test_nonsense_stops_nobody(self):
        cluster = Cluster(1, Counter)
        cluster.await_leader()
        cluster.result(cluster["n1"].propose(b"longer than any number"))
        cluster.result(cluster["n1"].propose(b""))
        self.assertEqual(cluster.fatal, {})
