"""What the store knows of a key."""

from __future__ import annotations

import msgspec

#: The revision of a store that nothing was ever written to.
FIRST_REVISION = 1


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    A key as it is now.

    `create_revision` is that of the put that brought it into being,
    `mod_revision` that of the last put, and `version` counts the puts since it
    came into being.  `create_revision <= mod_revision <= Store.revision`.

    Snapshots hold records: fields may be added at the end, with a default, and
    never moved (`docs/store-snapshot.md`).
    """

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0
