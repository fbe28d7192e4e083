"""
The judge: whether what clients saw can have been one store, one change after another.

`docs/judge.md` says what it judges and how.  It knows nothing of raftd's code:
a model of the store, and histories.
"""

from raftd.test.judge.history import BadHistory, History, Recorder, history_of, to_file
from raftd.test.judge.linearizability import Judgement, judge
from raftd.test.judge.search import Verdict

__all__ = [
    "BadHistory",
    "History",
    "Judgement",
    "Recorder",
    "Verdict",
    "history_of",
    "judge",
    "to_file",
]
