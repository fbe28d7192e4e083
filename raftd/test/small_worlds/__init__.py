"""
Small worlds, searched exhaustively: a few steps of the real core in every order.

    python -m raftd.test.small_worlds            # every order of at most twelve steps
    python -m raftd.test.small_worlds 13 rivals  # of thirteen, from one of the starts

Three nodes, two terms, two proposals, a crash, one answer that is missed, one
leader that steps down.  A step is one message that
arrives, one that is lost and missed, one write that becomes durable, one
timeout, one proposal, or a crash and the restart from what is durable.  All
orders of these are tried, breadth first, so that what breaks a rule is found
by the shortest way to it, which is then printed.

Each node is a `raftd.test.cores.Node`: the core that ships, its disk, and the
checks of `raftd.core.invariants`.  A core is a value machine, so what it does
is a table from (its state, its input) to (its state, what it sends), and is
worked out once for each pair (`nodes.py`).  A world is the states of three
nodes and the messages between them (`worlds.py`); worlds that differ only in
which node is which are one (`search.py`).

What makes it small, and why no order is lost by it:

- Time stands still, and a deadline comes when the search says so.  No node
  counts on having heard from a leader lately.  That is more than any clocks
  can do, and safety must not rest on them.
- Every PreVote is granted, at once.  That is more elections than there are,
  and safety must not rest on PreVote.
- A message that is lost is one that never arrives, which needs no step.  The
  step is that its sender misses the answer, as `unreachable` tells it.
- Answers that their receiver has no use for any more, now or later, are gone.
"""
