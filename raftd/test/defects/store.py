"""Defects of the store's rules, which are no pitfalls: `also` says who must catch them."""

from __future__ import annotations

from raftd.test.defects.defect import NO_PITFALL, Defect

STORE, VERSIONS, EXECUTION = "kv/store.py", "kv/versions.py", "kv/execution.py"
RANGES, TRANSACTIONS = "kv/ranges.py", "kv/transactions.py"


def _rule(name: str, breaks: str, module: str, old: str, new: str, *also: str) -> Defect:
    return Defect(NO_PITFALL, name, breaks, module, old, new, also=also)


_REVISIONS = (
    _rule(
        "revision-for-nothing",
        "A delete that finds nothing makes a revision.",
        EXECUTION,
        "changes = changes or bool(",
        "changes = True or bool(",
        "test_what_changes_nothing_keeps_the_revision",
    ),
    _rule(
        "revision-for-a-lease-without-keys",
        "Revoking a lease without keys makes a revision.",
        EXECUTION,
        'bool(leases.keys(id, b"", 1))',
        "1",
        "test_revoking_one_without_keys_makes_no_revision",
    ),
    _rule(
        "created-by-every-put",
        "A key that is replaced passes for created.",
        VERSIONS,
        "old.create_revision, revision, old.version + 1",
        "revision, revision, old.version + 1",
        "test_replacing_keeps_the_create_revision_and_counts_the_version",
    ),
    _rule(
        "deleted-key-goes-on",
        "A key that was deleted and put again does not begin anew.",
        VERSIONS,
        "KeyValue(key, value, revision, revision, 1, lease)",
        "KeyValue(key, value, revision, revision, 1 + (key in self._older[shard]), lease)",
        "test_a_key_put_after_its_delete_begins_anew",
    ),
    _rule(
        "tombstone-with-a-past",
        "A tombstone has a revision that created it.",
        "kv/records.py",
        'KeyValue(key, b"", 0, revision, 0)',
        'KeyValue(key, b"", revision, revision, 0)',
        "test_a_delete_leaves_a_tombstone_with_only_the_mod_revision",
    ),
    _rule(
        "readers-are-told-too-early",
        "Readers are told of a change before its revision is there to be read.",
        STORE,
        "            self.revision = execution.revision\n            self._changed()\n",
        "            self._changed()\n            self.revision = execution.revision\n",
        "test_readers_are_told_of_complete_changes_only",
    ),
    _rule(
        "empty-key",
        "An empty key can be put.",
        STORE,
        "        if not key:\n            return REFUSALS",
        "        if key is None:\n            return REFUSALS",
        "test_an_empty_key_is_an_error",
    ),
    _rule(
        "keeping-what-is-not-there",
        "The value of a key that is not there can be kept.",
        EXECUTION,
        "(put.keep_value or put.keep_lease)",
        "(put.keep_value and put.keep_lease)",
        "test_keeping_needs_an_existing_key",
    ),
    _rule(
        "digest-of-counts",
        "The digest tells how much there is, and not what.",
        "kv/snapshots.py",
        'sha256.update(b"".join(map(_encode, rows)))',
        "sha256.update(_encode(len(rows)))",
        "test_digests_tell_states_apart",
    ),
    _rule(
        "difference-goes-unnoticed",
        "Members with different states are said to agree.",
        "kv/checker.py",
        "            if own == leaders:\n",
        "            if own or leaders:\n",
        "test_difference",
    ),
)

_RANGES = (
    _rule(
        "every-key-is-an-end",
        "The end that means every key is taken for a key.",
        RANGES,
        "return None if range_end == EVERY_KEY else range_end",
        "return range_end",
        "test_the_end_0_is_all_keys_from_the_start_on",
    ),
    _rule(
        "more-is-never-said",
        "An answer that a limit has cut passes for complete.",
        RANGES,
        "                return found, True\n",
        "                return found, False\n",
        "test_more_says_that_the_limit_cut",
    ),
    _rule(
        "cut-and-then-sorted",
        "A range is cut before it is sorted.",
        RANGES,
        "sorted(best + records, key=field, reverse=query.descending)[:limit]",
        "sorted((best + records)[:limit], key=field, reverse=query.descending)",
        "test_filter_then_sort_then_limit",
    ),
    _rule(
        "count-of-what-is-given",
        "The count is of what the limit and the filter have left.",
        RANGES,
        "RangeResult(revision, count, more, found)",
        "RangeResult(revision, len(found), more, found)",
        "test_the_count_is_the_total_before_limit_and_filter",
    ),
    _rule(
        "answer-of-any-size",
        "A range is answered with all of it, however large.",
        RANGES,
        "        if size > self._left and not self._untouched:\n",
        "        if size < 0 and not self._untouched:\n",
        "test_an_answer_is_bounded",
    ),
    _rule(
        "future-passes-for-now",
        "A revision to come is answered with what there is.",
        STORE,
        "        if revision > self.revision:\n            raise",
        "        if revision < 0:\n            raise",
        "test_a_revision_above_the_current_is_an_error_of_its_own",
    ),
    _rule(
        "compacted-passes-for-readable",
        "A revision below the compacted one is answered with what is left of it.",
        STORE,
        "        if revision < self.compacted_revision:\n",
        "        if revision < 0:\n",
        "test_a_revision_below_the_compacted_is_an_error_of_its_own",
    ),
    _rule(
        "compacted-revision-is-refused",
        "The compacted revision itself cannot be read.",
        STORE,
        "        if revision < self.compacted_revision:\n",
        "        if revision <= self.compacted_revision:\n",
        "test_exactly_the_compacted_revision_is_served",
    ),
    _rule(
        "compacted-twice-over",
        "Compacting where it was done already is no error.",
        STORE,
        "        if revision <= self.compacted_revision:\n",
        "        if revision < self.compacted_revision:\n",
        "test_at_or_below_the_last_one_is_an_error",
    ),
    _rule(
        "future-is-compacted",
        "What is to come can be compacted.",
        STORE,
        "        if revision > self.revision:\n            return",
        "        if revision < 0:\n            return",
        "test_above_the_current_revision_is_an_error",
    ),
    _rule(
        "compacted-one-too-far",
        "A compaction takes what its revision shows.",
        VERSIONS,
        "history.take(revision)",
        "history.take(revision + 1)",
        "test_what_can_still_be_seen_stays",
    ),
    _rule(
        "tombstones-stay",
        "Tombstones are never let go of.",
        VERSIONS,
        "            if not record.version:\n",
        "            if record is None:\n",
        "test_what_can_still_be_seen_stays",
    ),
    _rule(
        "compactor-keeps-too-little",
        "Of the revisions to be kept the last one that is wanted goes.",
        "kv/compactor.py",
        "return database.revision - keep if",
        "return database.revision - keep + 1 if",
        "test_by_number",
    ),
    _rule(
        "compactor-does-not-look-at-age",
        "What is younger than is to be kept is compacted.",
        "kv/compactor.py",
        "return seen[0][1] if seen[0][0] <= now - self._keep_s else 0",
        "return seen[0][1]",
        "test_by_age",
    ),
)

_TRANSACTIONS = (
    _rule(
        "value-of-a-missing-key",
        "A compare of the value of a missing key holds.",
        TRANSACTIONS,
        "        return False\n    else:\n        actual = 0\n",
        "        return True\n    else:\n        actual = 0\n",
        "test_of_a_missing_key_a_compare_of_its_value_is_false",
    ),
    _rule(
        "missing-key-is-not-zero",
        "A compare of a missing key never holds.",
        TRANSACTIONS,
        "        actual = 0\n",
        "        return False\n",
        "test_of_a_missing_key_the_others_compare_with_0",
    ),
    _rule(
        "one-key-is-enough",
        "A compare of a range holds if it holds for one of its keys.",
        TRANSACTIONS,
        "        if not all(_matches",
        "        if not any(_matches",
        "test_a_range_compare_must_hold_for_every_key",
    ),
    _rule(
        "empty-range-always-holds",
        "A compare of a range without keys holds.",
        TRANSACTIONS,
        "    if not view.keys(start, end, 1, False):\n        return _matches(compare, None)\n",
        "",
        "test_an_empty_range_compares_once_with_zeros",
    ),
    _rule(
        "last-compare-decides",
        "Of several compares the last one decides.",
        TRANSACTIONS,
        "            succeeded = False\n            break\n",
        "            succeeded = False\n            continue\n        succeeded = True\n",
        "test_all_must_hold",
    ),
    _rule(
        "always-the-first-list",
        "A transaction whose compares do not hold is carried out as if they did.",
        TRANSACTIONS,
        "transaction.success if succeeded else transaction.failure",
        "transaction.success if succeeded else transaction.success",
        "test_one_of_two_lists_is_carried_out",
    ),
    _rule(
        "range-inside-sees-the-state-before",
        "A range in a transaction does not see the writes before it.",
        EXECUTION,
        "step.revision if step.revision > 0 else self.revision",
        "step.revision if step.revision > 0 else self._revision_before",
        "test_ranges_inside_see_the_writes_before_them",
    ),
    _rule(
        "put-twice",
        "A transaction can put a key twice.",
        TRANSACTIONS,
        "            not all_of.puts.isdisjoint(one.puts)\n            or all_of",
        "            all_of",
        "test_put_twice",
    ),
    _rule(
        "put-and-then-deleted",
        "A transaction can delete a key that it has put.",
        TRANSACTIONS,
        "            or one.deletes_one_of(all_of.puts)\n",
        "",
        "test_put_and_deleted",
    ),
    _rule(
        "one-operation-too-many",
        "A transaction may have one operation more than is said.",
        TRANSACTIONS,
        "MAX_OPERATIONS = 128\n",
        "MAX_OPERATIONS = 129\n",
        "test_at_most_128_operations",
    ),
    _rule(
        "one-side-at-a-time",
        "However much a transaction has on the sides that do not come about, it is looked at.",
        TRANSACTIONS,
        " or _parts(transaction) > MAX_PARTS",
        "",
        "test_all_sides_are_bounded_together",
    ),
    _rule(
        "nested-ones-do-not-count",
        "The operations of nested transactions are not counted.",
        TRANSACTIONS,
        "len(steps) + sum(_operations(s) for",
        "len(steps) + sum(0 for",
        "test_nested_ones_included",
    ),
    _rule(
        "obstacle-on-the-way",
        "Whether a transaction can be carried out is found while it is.",
        STORE,
        "        refusal = execution.obstacle(simple_steps(chosen), self.quota_bytes)\n"
        "        if refusal is not None:\n",
        "        refusal = execution.obstacle(simple_steps(chosen), self.quota_bytes)\n"
        "        if refusal is not None:\n"
        "            execution.revision = self.revision + 1\n"
        "            yield from execution.carry_out(chosen)\n"
        "            self._commit(execution)\n",
        "test_what_is_refused_changes_nothing",
    ),
)

_QUOTA = (
    _rule(
        "quota-is-one-byte-short",
        "A store cannot grow to its quota.",
        STORE,
        "growth > self.quota_bytes:",
        "growth >= self.quota_bytes:",
        "test_it_is_reached_exactly",
    ),
    _rule(
        "quota-does-not-hold-for-puts",
        "A store grows beyond its quota.",
        STORE,
        "        if self.quota_bytes:\n",
        "        if self.quota_bytes < 0:\n",
        "test_it_is_reached_exactly",
    ),
    _rule(
        "quota-is-for-each-transaction",
        "Transactions do not count what is there.",
        EXECUTION,
        "0 < quota_bytes < self._versions.size_bytes + growth",
        "0 < quota_bytes < growth",
        "test_the_quota_is_for_the_whole",
    ),
    _rule(
        "full-store-refuses-deletes",
        "A store that has reached its quota takes no delete either.",
        EXECUTION,
        "if growth and 0 < quota_bytes < self._versions.size_bytes + growth",
        "if 0 < quota_bytes <= self._versions.size_bytes + growth + VERSION_OVERHEAD_BYTES",
        "test_a_full_store_serves_reads_and_deletes_and_opens_again",
    ),
    _rule(
        "compaction-frees-nothing",
        "What was compacted counts against the quota for ever.",
        VERSIONS,
        "            self.size_bytes -= size_of(previous)\n",
        "",
        "test_the_size_is_that_of_all_versions",
        "test_a_full_store_serves_reads_and_deletes_and_opens_again",
    ),
)

STORES = (*_REVISIONS, *_RANGES, *_TRANSACTIONS, *_QUOTA)
