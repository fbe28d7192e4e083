"""The command line, `raftctl`: a program on `raftd.client` (`docs/raftctl.md`)."""
