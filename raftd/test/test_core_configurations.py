"""Configurations: what a change makes of them, what is refused, how they are encoded."""

from __future__ import annotations

import itertools
import random

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import (
    MAX_MEMBERS,
    MAX_REMOVED,
    AddLearner,
    Change,
    Configuration,
    ConfigurationHistory,
    Demote,
    Promote,
    Remove,
    Rename,
    configurations_in,
    decode_configuration,
    encode_configuration,
)
from raftd.core.messages import Entry, EntryKind, Member
from raftd.core.quorum import has_quorum
from raftd.errors import ChangeInProgress, ChangeRefused, NameTaken, ProtocolViolation
from raftd.test.cores import THREE, configuration, log_of, member


class Configurations(SynchronousTestCase):
    def test_roles(self) -> None:
        joint = configuration([1, 2], learners=[3], outgoing=[2, 3, 4])
        self.assertEqual(joint.voter_ids(), {1, 2, 3, 4})
        self.assertEqual(sorted(joint.members()), [1, 2, 3, 4])
        self.assertEqual(joint.majorities(), (frozenset([1, 2]), frozenset([2, 3, 4])))
        self.assertEqual([joint.is_voter(i) for i in range(6)], [False] + [True] * 4 + [False])
        self.assertEqual(Configuration().majorities(), (frozenset(),))

    def test_adding_a_learner(self) -> None:
        self.assertEqual(THREE.changed([AddLearner(member(4))]), configuration([1, 2, 3], [4]))
        for known in (THREE, configuration([1, 2, 3], [4])):
            for member_id in known.members():
                self.assertEqual(known.changed([AddLearner(member(member_id))]), known)

    def test_a_name_belongs_to_one_identity(self) -> None:
        with self.assertRaises(NameTaken) as caught:
            THREE.changed([AddLearner(Member(9, member(2).name))])
        self.assertIn(member(2).name, str(caught.exception))
        with self.assertRaises(ChangeRefused):
            THREE.changed([AddLearner(Member(2, "elsewhere:1"))])
        with self.assertRaises(NameTaken):
            THREE.changed([Rename(3, member(2).name)])

    def test_a_learner_that_gave_up_makes_way_for_its_name(self) -> None:
        before = configuration([1, 2, 3], learners=[4])
        returned = Member(9, member(4).name)
        after = before.changed([AddLearner(returned)])
        self.assertEqual((after.learners, after.removed), ((returned,), (4,)))

    def test_members_are_bounded(self) -> None:
        full = configuration(range(1, 61), learners=range(61, MAX_MEMBERS + 1))
        with self.assertRaises(ChangeRefused):
            full.changed([AddLearner(member(MAX_MEMBERS + 1))])
        self.assertEqual(full.changed([AddLearner(member(1))]), full)

    def test_promoting(self) -> None:
        before = configuration([2, 3], learners=[1, 4])
        self.assertEqual(before.changed([Promote(1)]), configuration([1, 2, 3], learners=[4]))
        self.assertEqual(THREE.changed([Promote(2)]), THREE)
        with self.assertRaises(ChangeRefused):
            THREE.changed([Promote(9)])

    def test_demoting(self) -> None:
        after = THREE.changed([Demote(2)])
        self.assertEqual(after, configuration([1, 3], learners=[2]))
        self.assertEqual(after.changed([Demote(2)]), after)
        with self.assertRaises(ChangeRefused):
            THREE.changed([Demote(9)])

    def test_removing(self) -> None:
        after = configuration([1, 2, 3], learners=[4]).changed([Remove(4), Remove(2)])
        self.assertEqual(after, configuration([1, 3], removed=[4, 2]))
        self.assertEqual(after.changed([Remove(2)]), after)
        for wrong in (Remove(9), AddLearner(member(2)), Promote(2), Rename(2, "x:1")):
            with self.assertRaises(ChangeRefused):
                after.changed([wrong])

    def test_removed_members_that_are_remembered_are_bounded(self) -> None:
        gone = tuple(range(100, 100 + MAX_REMOVED))
        after = configuration([1, 2, 3], removed=gone).changed([Remove(2)])
        self.assertEqual(after.removed, (*gone[1:], 2))
        joint = configuration([1, 2, 3, 4, 5], removed=gone).changed([Remove(2), Remove(3)])
        self.assertEqual(joint.left().removed, (*gone[2:], 2, 3))

    def test_renaming(self) -> None:
        after = configuration([1, 2], learners=[3]).changed(
            [Rename(2, "a:1"), Rename(3, "b:1")]
        )
        self.assertEqual(after.voters, (member(1), Member(2, "a:1")))
        self.assertEqual((after.outgoing_voters, after.learners), ((), (Member(3, "b:1"),)))
        self.assertEqual(after.changed([Rename(2, "a:1")]), after)
        with self.assertRaises(ChangeRefused):
            THREE.changed([Rename(9, "a:1")])

    def test_what_needs_a_joint_configuration(self) -> None:
        base = configuration([1, 2, 3], learners=[4, 5])
        cases: tuple[tuple[list[Change], bool], ...] = (
            ([Promote(4)], False),
            ([Remove(1)], False),
            ([Demote(1), Rename(2, "x:1"), Remove(5), AddLearner(member(6))], False),
            ([Promote(4), Remove(1)], True),
            ([Promote(4), Promote(5)], True),
            ([Demote(1), Demote(2)], True),
            ([Promote(4), Demote(4)], False),
        )
        for changes, is_joint in cases:
            changed = base.changed(changes)
            self.assertIs(changed.is_joint, is_joint, changes)
            if is_joint:
                self.assertEqual(changed.outgoing_voters, base.voters)

    def test_one_change_after_the_other_and_one_voter_at_least(self) -> None:
        with self.assertRaises(ChangeInProgress):
            configuration([1], outgoing=[2]).changed([AddLearner(member(9))])
        for changes in ([Remove(1)], [Demote(1)]):
            with self.assertRaises(ChangeRefused):
                configuration([1], learners=[2]).changed(changes)

    def test_who_leaves_has_a_vote_until_the_joint_configuration_is_left(self) -> None:
        # Were it called removed before, it would be turned away while it is needed.
        joint = configuration([1, 2, 3], learners=[4, 5]).changed(
            [Promote(4), Remove(3), Demote(2), Remove(5)]
        )
        self.assertEqual(
            joint, configuration([1, 4], outgoing=[1, 2, 3], learners=[2], removed=[5])
        )
        self.assertEqual(joint.left(), configuration([1, 4], learners=[2], removed=[5, 3]))
        self.assertFalse(joint.left().is_joint)

    def test_any_majority_before_a_change_meets_any_after(self) -> None:
        """Of two configurations that follow one another in the log (thesis 4.1, 4.3)."""
        everyone = range(1, 7)
        for seed in range(60):
            rng = random.Random(seed)
            size = rng.randint(1, 6)
            before = configuration(everyone[:size], learners=everyone[size:])
            changes = [
                rng.choice((Promote, Demote, Remove))(m)
                for m in rng.sample(everyone, rng.randint(1, 4))
            ]
            try:
                changed = before.changed(changes)
            except ChangeRefused:
                continue
            steps = [before, changed, changed.left()]
            for one, next_one in itertools.pairwise(steps):
                for n in range(len(everyone) + 1):
                    for quorum in itertools.combinations(everyone, n):
                        rest = set(everyone) - set(quorum)
                        if has_quorum(one.majorities(), quorum):
                            self.assertFalse(has_quorum(next_one.majorities(), rest))

    def test_encoding(self) -> None:
        joint = configuration([1, 2], learners=[3], outgoing=[2, 4])
        self.assertEqual(decode_configuration(encode_configuration(joint)), joint)
        no_text = b"\x94\x91\x92\x01\xa1\xeb\x90\x90\x90"
        for garbage in (b"", b"\xc1", b"\x91\x01", b"\x93\x91\x01\x90\x90", no_text):
            with self.assertRaises(ProtocolViolation):
                decode_configuration(garbage)

    def test_history(self) -> None:
        one, two, three = (configuration([i]) for i in (1, 2, 3))
        history = ConfigurationHistory(one, 4)
        self.assertEqual((history.latest, history.latest_index), (one, 4))
        history.append([(7, two), (9, three)])
        self.assertEqual((history.latest, history.latest_index), (three, 9))
        history.truncate(10)
        self.assertEqual(history.latest_index, 9)
        history.truncate(9)
        self.assertEqual((history.latest, history.latest_index), (two, 7))
        history.truncate(1)
        self.assertEqual((history.latest, history.latest_index), (one, 4))

    def test_history_of_a_compacted_log(self) -> None:
        one, two, three = (configuration([i]) for i in (1, 2, 3))
        for compacted, first_known in ((5, 4), (7, 7), (8, 7), (9, 9), (12, 9)):
            history = ConfigurationHistory(one, 4)
            history.append([(7, two), (9, three)])
            history.compact(compacted)
            for index in range(max(compacted, first_known), 14):
                expected = one if index < 7 else two if index < 9 else three
                self.assertIs(history.at(index), expected, (compacted, index))
            self.assertEqual((history.latest, history.latest_index), (three, 9))

    def test_who_may_be_needed_as_a_leader(self) -> None:
        history = ConfigurationHistory(configuration([1]), 0)
        history.append([(3, configuration([2])), (5, configuration([3], learners=[1]))])
        for member_id, commit_index, needed in (
            (1, 0, False),
            (2, 0, True),
            (2, 4, True),
            (2, 5, False),
            (3, 0, True),
            (3, 5, True),
        ):
            found = history.gives_vote(member_id, commit_index)
            self.assertIs(found, needed, (member_id, commit_index))
        self.assertFalse(ConfigurationHistory(Configuration(), 0).gives_vote(1, 0))

    def test_configurations_in_entries(self) -> None:
        change = Entry(2, 1, EntryKind.CONFIGURATION, 0, encode_configuration(THREE))
        self.assertEqual(configurations_in([*log_of([1]), change]), [(2, THREE)])
