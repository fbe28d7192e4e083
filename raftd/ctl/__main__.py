"""`python -m raftd.ctl` is `raftctl`."""

from __future__ import annotations

from raftd.ctl.main import main

main()
