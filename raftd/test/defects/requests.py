"""Defects of how requests over HTTP are read."""

from __future__ import annotations

from raftd.test.defects.defect import NO_PITFALL, Defect

KNOWN, READER = "net/known_heads.py", "net/reader.py"

REQUESTS = (
    Defect(
        NO_PITFALL,
        "head-behind-any-first-line",
        "What a body says is taken for a head, and cuts other clients' bodies.",
        KNOWN,
        "        begin = len(method) + 1 + len(target)\n",
        "        begin = data.find(_VERSION)\n        target = data[len(method) + 1 : begin]\n",
        also=("test_body_that_is_a_head_is_not_known",),
    ),
    Defect(
        NO_PITFALL,
        "lines-of-a-head-are-not-counted",
        "A head ends where the parser had not ended it.",
        KNOWN,
        " == lines\n",
        " > 1\n",
        also=("test_only_whole_heads_are_known",),
    ),
    Defect(
        NO_PITFALL,
        "any-field-can-be-known",
        "A body in chunks is read as having the length of the one before it.",
        KNOWN,
        "            and _KNOWABLE.issuperset(special)\n",
        "",
        also=("test_as_if_nothing_were_known",),
    ),
    Defect(
        NO_PITFALL,
        "any-target-can-be-known",
        "A target that the parser refuses is taken.",
        KNOWN,
        " or not _is_plain(target)",
        "",
        also=("test_as_if_nothing_were_known", "test_a_target_that_is_too_long"),
    ),
    Defect(
        NO_PITFALL,
        "half-a-body",
        "A request is carried out with as much of its body as has come.",
        KNOWN,
        "end > len(data) or ",
        "",
        also=("test_one_that_has_not_come_as_a_whole",),
    ),
    Defect(
        NO_PITFALL,
        "known-and-too-large",
        "A body is as large as that of another target may be.",
        READER,
        "            if head.body_bytes > self._max_body_bytes_of(target):\n"
        "                break\n",
        "",
        also=("test_the_length_of_a_body_depends_on_the_target",),
    ),
)
