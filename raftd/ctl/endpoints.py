"""Which servers to ask, and how that is known."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

from raftd.ctl.statuses import Usage
from raftd.errors import BadAnswer
from raftd.names import canonical_name, split_names

#: Where endpoints may be named, for all commands of a shell.
VARIABLE = "RAFTCTL_ENDPOINTS"
#: Whom to ask if nothing is said.
DEFAULT = "localhost:4001"
#: What tells a member's data directory, and the longest that it may be.
IDENTITY_NAME = "identity.json"
MAX_IDENTITY_BYTES = 1 << 20


class Endpoints(NamedTuple):
    """The servers to ask, each a `host:port`, and `source`: who has said so."""

    servers: tuple[str, ...]
    source: str


def find_endpoints(
    given: str | None, data_dir: str | None, environ: Mapping[str, str], cwd: str
) -> Endpoints:
    """
    `--endpoints`, or `--data-dir`, or the environment, or the member whose
    data directory this is, or the default.  `Usage` if what says so is wrong.
    """
    if given is not None and data_dir is not None:
        raise Usage("--endpoints and --data-dir both say whom to ask: give one of them.")
    try:
        if given is not None:
            return Endpoints(split_names(given), "as --endpoints says")
        if data_dir is not None:
            return Endpoints(_members(data_dir), f"as {data_dir} has it")
        if environ.get(VARIABLE, "").strip():
            return Endpoints(split_names(environ[VARIABLE]), f"as {VARIABLE} says")
    except BadAnswer as e:
        raise Usage(str(e)) from None
    if os.path.exists(os.path.join(cwd, IDENTITY_NAME)):
        try:
            return Endpoints(_members(cwd), "as this directory, a member's, has it")
        except (Usage, BadAnswer):
            pass  # a file of somebody else's may have that name
    return Endpoints((DEFAULT,), "which is the default")


def _members(data_dir: str) -> tuple[str, ...]:
    """The member whose directory it is, and those that it has joined through."""
    path = os.path.join(data_dir, IDENTITY_NAME)
    try:
        with open(path, "rb") as file:
            fields = json.loads(file.read(MAX_IDENTITY_BYTES))
        names = [fields["name"], *fields.get("join_servers", ())]
    except OSError as e:
        raise Usage(
            f"{data_dir} is not the data directory of a member: {e.strerror}."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Usage(f"{path} does not say which member it belongs to.") from None
    return tuple(dict.fromkeys(canonical_name(str(name)) for name in names))
