"""
Deterministic simulation: a whole cluster, its clients, disks, network and
clocks, in one process, on one seed; on the code that ships.

`python -m raftd.test.simulation SEED COUNT`; `docs/verification.md` says more.
"""
