"""What a process does before it runs seeds; a worker process imports it by name."""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent, globalLogBeginner
from zope.interface import implementer


def keep_quiet() -> None:
    """What nodes log in simulated trouble is of no interest to the terminal."""
    globalLogBeginner.beginLoggingTo([_Silence()], redirectStandardIO=False)


@implementer(ILogObserver)
class _Silence:
    def __call__(self, event: LogEvent) -> None:
        pass
