"""The version of raftd; written by `python -m incremental.update raftd`."""

from incremental import Version

__version__ = Version("raftd", 26, 11, 0)
__all__ = ["__version__"]
