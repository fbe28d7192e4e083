"""
The work of one request, counted: calls, turns, messages, bytes, flushes.

A machine that is busy makes a benchmark slow, and makes no difference here: a
whole cluster runs in one process, and the same is counted every time.

- `wires`: sockets and epolls in memory, which count what is asked of them
- `members`: the members of the cluster, put together as `raftd.server` does it
- `counting`: what is counted
- `scenarios`: what is asked of them
- `limits`: what a request may cost, the only file with figures

`python -m raftd.test.work` prints all of it; `raftd.test.test_work` holds it
against the limits.
"""
