from twisted.application.service import ServiceMaker

raftd = ServiceMaker("raftd", "raftd.tap", "A replicated key-value server.", "raftd")
