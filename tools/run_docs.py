#!/usr/bin/env python
"""Run the shell commands of documentation pages as they are printed, from the repository's root.

A block with a placeholder (`<...>`, `...`, or a word in capitals such as CONFIG) is passed over,
and so are lines that wait for somebody (`--serve`).
"""

import re
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PLACEHOLDER = re.compile(r"<[^>]+>|\.\.\.|(?<![\w$/.=-])[A-Z]{3,}(?![\w=])|/data/")
_WAITS = "--serve"


def shell_blocks(page: Path) -> Iterator[str]:
    """Yield the blocks of a page that can be run."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
        lines = [line for line in block.splitlines() if _WAITS not in line]
        if lines and not _PLACEHOLDER.search("\n".join(lines)):
            yield "\n".join(lines)


def main() -> int:
    """Run every page given; return 1 if a block of one fails."""
    parser = ArgumentParser(prog="run_docs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, help="pages, or folders of pages")
    failed = 0
    for path in parser.parse_args().pages:
        for page in sorted(path.rglob("*.md")) if path.is_dir() else [path]:
            for block in shell_blocks(page):
                print(f"==> {page}\n{block}", flush=True)
                start = time.monotonic()
                shell = ["bash", "-euo", "pipefail", "-c", block]
                done = subprocess.run(shell, cwd=ROOT, check=False)
                print(f"==> {time.monotonic() - start:.0f} s, exit {done.returncode}", flush=True)
                failed |= done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
