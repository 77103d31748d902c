"""Run the README's commands as a reader would: every line of its `sh` blocks, up to the first failure.

Lines that call make or git are left out: those have a step of their own, or are behind us.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands(text: str) -> list[str]:
    """The command lines in the `sh` blocks, with continuation lines joined."""
    lines: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        lines += block.replace("\\\n", " ").splitlines()
    stripped = (line.partition(" #")[0].strip() for line in lines)
    return [line for line in stripped if line and not line.startswith(("#", "make", "git", "cd"))]


def main() -> int:
    """Run them all."""
    environment = os.environ | {"PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    if not found:
        print("README.md holds no commands in `sh` blocks", file=sys.stderr)
        return 1
    for line in found:
        print(f"$ {line}", flush=True)
        begun = time.monotonic()
        status = subprocess.run(line, shell=True, cwd=ROOT, env=environment, check=False).returncode
        print(f"  ({time.monotonic() - begun:.1f} s)", flush=True)
        if status != 0:
            print(f"README.md: `{line}` ended with status {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
