"""Run the commands of README.md and docs/ as a reader would: each line of their `sh` blocks, up to a failure.

Lines that call make, git, pip or pytest are left out: those have a step of their own, or are behind us. So is the
synthesis of a whole board, which takes many minutes: a test runs that command's flow on a small machine. A command
that stands in several pages runs once.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = ("#", "make", "git", "cd", "pytest", "python -m pytest", "source", "pip", "moevit build")


def commands(text: str) -> list[str]:
    """The command lines in the `sh` blocks, with continuation lines joined."""
    lines: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        lines += block.replace("\\\n", " ").splitlines()
    stripped = (line.partition(" #")[0].strip() for line in lines)
    return [" ".join(line.split()) for line in stripped if line and not line.startswith(ELSEWHERE)]


def main() -> int:
    """Run them all."""
    environment = os.environ | {"PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "boards" / "README.md"]
    found: dict[str, str] = {}  # command: the first page that has it
    for page in pages:
        name = str(page.relative_to(ROOT))
        of_page = commands(page.read_text(encoding="utf-8"))
        if not of_page and name == "README.md":
            print("README.md holds no commands in `sh` blocks", file=sys.stderr)
            return 1
        for line in of_page:
            found.setdefault(line, name)
    for line, name in found.items():
        print(f"$ {line}    ({name})", flush=True)
        begun = time.monotonic()
        status = subprocess.run(line, shell=True, cwd=ROOT, env=environment, check=False).returncode
        print(f"  ({time.monotonic() - begun:.1f} s)", flush=True)
        if status != 0:
            print(f"{name}: `{line}` ended with status {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
