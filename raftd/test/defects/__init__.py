"""
Proof that the tests can fail: every pitfall, put into the code on purpose.

    python -m raftd.test.defects               # all of them, two at a time
    python -m raftd.test.defects 13 18 56      # those of these pitfalls

A defect is a piece of a module's source and what takes its place
(`defect.py`).  It is put into a copy of the package (`planting.py`), and the
tests that carry its number run against that copy in a process of their own
(`child.py`); nothing in production code knows of any of this.  A defect is
caught if one of these tests fails.  Where the random faults of
`test_core_random` are said to find it as well, they must.  What breaks a rule
and is no pitfall has the number 0, and names its tests.
"""
