"""The exhaustive search of small worlds, some steps far (`raftd.test.small_worlds`)."""

from __future__ import annotations

from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.leader import Leadership
from raftd.core.raft import Raft
from raftd.test.small_worlds.search import Search
from raftd.test.small_worlds.starts import STARTS
from raftd.test.small_worlds.worlds import Limits

#: Steps from each start.  The command goes further.
DEPTH = 8
#: Worlds that there are at least within that depth.
LEAST_STATES = 100_000


def counts_old_entries(raft: Raft, leadership: Leadership) -> None:
    """Commits whatever a quorum has, of whichever term (pitfall 13)."""
    raft._commit(leadership.commit_candidate())


class SmallWorldsTests(SynchronousTestCase):
    def test_no_order_of_a_few_steps_breaks_a_rule(self) -> None:
        states = 0
        for start in STARTS:
            result = Search(start).run(DEPTH)
            self.assertIsNone(result.violation, result)
            self.assertEqual(result.depth, DEPTH)
            states += result.states
        self.assertGreater(states, LEAST_STATES)

    def test_it_makes_no_difference_which_node_is_which(self) -> None:
        """With cores that have ids of their own there are as many worlds as symmetry says."""
        folded, whole = Search().run(7), Search(symmetric=False).run(7)
        self.assertLess(4 * folded.states, whole.states)
        self.assertEqual(folded.labelled, whole.states)
        # Here each node has a past of its own, and none can stand for another.
        folded, whole = Search("rivals").run(4), Search("rivals", symmetric=False).run(4)
        self.assertEqual(folded.states, whole.states)

    def test_a_world_that_ends(self) -> None:
        """Without proposals, crashes and a second term, there is an end to it."""
        limits = Limits(terms=1, proposals=0, crashes=0, misses=0, step_downs=0)
        result = Search(limits=limits).run(20)
        self.assertFalse(result.exhausted)
        limits = limits._replace(terms=0)
        result = Search(limits=limits).run(20)
        self.assertTrue(result.exhausted)
        self.assertEqual((result.states, result.violation), (1, None))


class BrokenCoreTests(SynchronousTestCase):
    """Defects are found, by the shortest way."""

    def test_17_acknowledged_before_it_is_durable(self) -> None:
        with mock.patch.object(Raft, "_write_holding", lambda raft, index: 0):
            result = Search().run(DEPTH)
        assert result.violation is not None
        self.assertEqual(
            result.violation.rule, "AssertionError: what is acknowledged is durable"
        )
        self.assertEqual(len(result.violation.trace), result.depth)
        self.assertIn("AppendEntries(", result.violation.trace[-1])
        self.assertTrue(result.violation.trace[-1].endswith(": broken"))
        self.assertIn("stands for election", result.violation.trace[0])

    def test_13_an_entry_of_an_earlier_term_is_counted(self) -> None:
        with mock.patch.object(Raft, "_advance_commit", counts_old_entries):
            result = Search("an heir").run(DEPTH)
        assert result.violation is not None
        self.assertIn("of its own term", result.violation.rule)
        trace = result.violation.trace
        self.assertEqual(len(trace), len(STARTS["an heir"]) + result.depth)
