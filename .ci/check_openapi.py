"""
The interface as `/openapi.json` describes it, against a live node.

schemathesis makes requests of the document, sound and unsound ones, and holds
every answer against it: no status that is not documented, no 500, no answer
that is not of its schema.  The node must come through it without a word of an
error in its log.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

CI = Path(__file__).parent.resolve()
TREE = CI.parent

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
#: Random requests of each operation; those at the bounds of the schemas come beside them.
EXAMPLES = 15
SEED = "1"

#: A node that does not serve by then never will.
START_S = 30
#: And a run that is not over is stuck.
RUN_S = 300


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        name = f"localhost:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as work:
        log = Path(work) / "log"
        data = Path(work) / "data"
        data.mkdir()
        with log.open("wb") as out:
            command = [sys.executable, "-m", "twisted", "raftd", "--init", "--name", name]
            node = subprocess.Popen([*command, "--data-dir", str(data)], cwd=TREE, stdout=out)
        try:
            wait_for(f"http://{name}/status", node)
            ok = conforms(f"http://{name}/openapi.json", work)
            alive = node.poll() is None
        finally:
            node.terminate()
            status = node.wait(START_S)
        said = log.read_text(encoding="utf-8", errors="replace")
    if not alive or status or "Traceback" in said or '"name": "critical"' in said:
        print(said[-20_000:])
        sys.exit(f"the node did not come through it (exit status {status})")
    if not ok:
        sys.exit("the server does not do what /openapi.json says")


def wait_for(url: str, node: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and node.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit("the node does not serve")


def conforms(url: str, work: str) -> bool:
    """Run schemathesis; HEAD and OPTIONS are held against GET by the unit tests."""
    result = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            url,
            *("--checks", ",".join(CHECKS)),
            *("--phases", "coverage,fuzzing"),
            *("--max-examples", str(EXAMPLES)),
            *("--seed", SEED),
            *("--exclude-method", "HEAD", "--exclude-method", "OPTIONS"),
            *("--request-timeout", "10"),
            *("--generation-database", "none"),
            *("--warnings", "off"),
            "--no-color",
        ],
        # It leaves files where it runs.
        cwd=work,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(CI)},
        timeout=RUN_S,
        check=False,
    )
    return result.returncode == 0


if __name__ == "__main__":
    main()
