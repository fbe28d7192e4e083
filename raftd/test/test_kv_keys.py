"""What the store is made of: keys in order, and the order of changes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.kv import history as history_module
from raftd.kv import keys as keys_module
from raftd.kv.history import ChangedKeys, Draft, History, parts_of
from raftd.kv.keys import SortedKeys
from raftd.kv.results import KeyValue
from raftd.test.kvrig import make_small


class Keys(SynchronousTestCase):
    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["add", "remove", "range", "remove_range", "extend", "update"]),
                st.binary(min_size=1, max_size=2),
                st.binary(max_size=2),
            ),
            max_size=80,
        ),
        st.sampled_from([2, 3, 8]),
        st.sampled_from([1, 3, 100]),
    )
    def test_against_a_model(
        self, steps: list[tuple[str, bytes, bytes]], size: int, together: int
    ) -> None:
        self.patch(keys_module, "MAX_CHUNK_KEYS", size)
        self.patch(keys_module, "_TOGETHER", together)
        keys, model = SortedKeys(), list[bytes]()
        for what, key, other in steps:
            end = other or None
            inside = [k for k in model if k >= key and (end is None or k < end)]
            if what == "add" and key not in model:
                keys.add(key)
                model = sorted([*model, key])
            elif what == "remove" and model:
                present = model[int.from_bytes(key, "big") % len(model)]
                keys.remove(present)
                model.remove(present)
            elif what == "range":
                for limit in (1, 3, 100):
                    self.assertEqual(keys.range(key, end, limit), inside[:limit])
                    self.assertEqual(keys.last(key, end, limit), inside[::-1][:limit])
                self.assertEqual(keys.count(key, end), len(inside))
            elif what == "remove_range":
                keys.remove_range(key, end)
                model = [k for k in model if k not in inside]
            elif what == "extend":
                more = sorted({(model or [b""])[-1] + bytes([n]) for n in key + other})
                keys.extend(more)
                model += more
            elif what == "update":
                more = sorted({bytes([n]) + other for n in key + other} - set(model))
                keys.update(more)
                model = sorted(model + more)
            self.assertEqual(list(keys), model)
            self.assertEqual((keys.count(b"", None), bool(keys)), (len(model), bool(model)))
            self.assertTrue(all(0 < len(chunk) <= size for chunk in keys._chunks))
            self.assertEqual([chunk[-1] for chunk in keys._chunks], keys._lasts)

    def test_keys_that_come_in_order_fill_their_chunks(self) -> None:
        """So that they take little memory."""
        keys = SortedKeys()
        for n in range(10 * keys_module.MAX_CHUNK_KEYS):
            keys.add(b"%08d" % n)
        self.assertEqual(len(keys._chunks), 10)


def version(revision: int, n: int = 0) -> KeyValue:
    return KeyValue(b"%d.%d" % (revision, n), b"", revision, revision, 1)


def replaced(record: KeyValue) -> KeyValue | None:
    """What it is said to have replaced: every third was nothing before."""
    before = record.mod_revision - 1
    return KeyValue(record.key, b"", before, before, 1) if hash(record.key) % 3 else None


class TheOrderOfChanges(SynchronousTestCase):
    def setUp(self) -> None:
        make_small(self.patch)

    def history(self, forgotten: int, sizes: list[int]) -> History:
        history = History(forgotten)
        for size in sizes:
            draft = Draft()
            self.assertFalse(draft)
            for n in range(size):
                record = version(history.last + 1, n)
                draft.add(record, replaced(record))
            self.assertTrue(draft)
            history.append(draft.change(), draft.replaced())
        return history

    @settings(derandomize=True, max_examples=200, deadline=None)
    @given(
        st.integers(1, 9),
        st.lists(st.integers(1, 7), min_size=1, max_size=30),
        st.lists(st.integers(0, 30), max_size=5),
        st.integers(0, 30),
    )
    def test_against_a_model(
        self, forgotten: int, sizes: list[int], forget: list[int], walked: int
    ) -> None:
        history = self.history(forgotten, sizes)
        last = forgotten + len(sizes)
        self.assertEqual((history.forgotten, history.last), (forgotten, last))
        model = {
            forgotten + 1 + i: [version(forgotten + 1 + i, n) for n in range(size)]
            for i, size in enumerate(sizes)
        }
        after = min(forgotten + walked, last)
        walk = history.walk(after, last)
        expected = [r for revision in range(after + 1, last + 1) for r in model[revision]]
        oldest = forgotten
        for step in forget:
            target = min(oldest + step, last)
            taken = []
            while history.forgotten < target:
                oldest_replaced = list(history.oldest_replaced(target))
                changes, before = history.take(target)
                self.assertLessEqual(len(changes), 4)
                self.assertEqual(before[::-1], oldest_replaced)
                self.assertEqual(len(before), len(changes))
                taken += list(reversed(changes))
            flat = [r for change in taken for part in parts_of(change) for r in part]
            gone = range(oldest + 1, target + 1)
            self.assertEqual(flat, [r for revision in gone for r in model[revision]])
            oldest = target
            for revision in range(oldest + 1, last + 1):
                keys = [record.key for record in model[revision]]
                self.assertEqual(list(ChangedKeys(history.at(revision))), keys)
            for revision, records in model.items():
                for record in records:
                    self.assertEqual(
                        history.replaced_of(record.key, revision),
                        replaced(record) if revision > oldest else None,
                    )
        last += 1
        history.append(version(last), None)
        model[last] = [version(last)]
        self.assertEqual(list(ChangedKeys(history.at(last))), [version(last).key])
        # A walk is as of its call.
        self.assertEqual([record for records in walk for record in records], expected)

    def test_keys_of_a_revision_are_a_sequence(self) -> None:
        for size in (1, 2, 3, 4, 5):
            history = self.history(1, [size])
            keys = ChangedKeys(history.at(2))
            expected = [b"2.%d" % n for n in range(size)]
            self.assertEqual((len(keys), list(keys)), (size, expected))
            self.assertEqual([keys[-1], keys[0]], [expected[-1], expected[0]])
            self.assertEqual(keys[1:3], expected[1:3])
            self.assertEqual(list(reversed(keys)), expected[::-1])
            for wrong in (size, -size - 1):
                self.assertRaises(IndexError, keys.__getitem__, wrong)

    def test_one_key_needs_no_dictionary(self) -> None:
        """As of a revision that changed no other, however it came about."""
        for before in (None, version(1)):
            draft = Draft()
            draft.add(version(2), before)
            self.assertIs(draft.replaced(), before)
        draft = Draft()
        for n in range(2):
            draft.add(version(2, n), None)
        self.assertIsNone(draft.replaced())

    def test_full_chunks_and_parts_are_tuples(self) -> None:
        """They never change, and the garbage collector need not look at them."""
        history = self.history(1, [1, 5, 1, 1, 1, 1, 1, 1])
        self.assertEqual({type(chunk) for chunk in history._full}, {tuple})
        parts = history.at(3)
        assert isinstance(parts, tuple)
        self.assertEqual([type(part) for part in parts], [tuple] * 3)
        self.assertEqual(history_module.PART_RECORDS, 2)
