"""
Print the one line of shell in README.md that ends with the given words.

So that what is checked is what a reader is told, and not a copy of it.
"""

import re
import sys
from pathlib import Path


def readme_line(words: str) -> str:
    """The line, without its end; `SystemExit` unless there is exactly one."""
    readme = Path(__file__).parent.parent / "README.md"
    blocks = re.findall(r"^```sh\n(.*?)^```$", readme.read_text("utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.endswith(words)]
    if len(lines) != 1:
        sys.exit(f"README.md has {len(lines)} lines that end with {words!r}, not one")
    return lines[0]


if __name__ == "__main__":
    print(readme_line(sys.argv[1]))
