"""Run the commands of docs/gallery.md and renew its pictures: `make gallery`.

A picture's source stands in a comment below it. Pictures get a palette, which makes a plot a quarter of its size; the
octree's leaves flat colours as they are.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gallery.md"
COLOURS = 96


def commands(text: str) -> list[str]:
    """The command lines of the `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def pictures(text: str) -> list[tuple[Path, Path]]:
    """Where each picture comes from and goes to."""
    pairs = re.findall(r"^!\[[^]]*\]\(([^)]+)\)\n<!-- from (\S+) -->", text, flags=re.MULTILINE)
    return [(ROOT / source, PAGE.parent / target) for target, source in pairs]


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in commands(text):
        print(f"$ {line}", flush=True)
        subprocess.run(line, shell=True, cwd=ROOT, env=environment, check=True)
    for source, target in pictures(text):
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            small = image.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            small.save(target, optimize=True)
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
