"""
Real processes, real faults, and the judge: `python -m raftd.test.chaos --help`.

The nodes are those that people run.  A nemesis kills, stops, parts and slows
them by a seed; clients ask them over HTTP and take down what they were told;
`raftd.test.judge` says whether that can have been.  The same nemesis and judge
can be pointed at etcd, to show that neither knows whom it has before it.
"""
