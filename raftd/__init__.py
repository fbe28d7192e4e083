"""Raft consensus for Twisted, and a replicated key-value server on top of it."""

from raftd._version import __version__ as _version

__version__ = _version.short()
__all__ = ["__version__"]
