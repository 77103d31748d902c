"""Make `build/linktree/moevit`: the packages where they will be once installed, as links to the files here.

A type checker or an import linter looks for `moevit.hw` in `moevit/hw`, but it lies in `hw` and only an
import hook of the editable install knows it. This tree shows them the installed form, with the line numbers
of the sources.
"""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "linktree"
SKIPPED = {"__pycache__"}


def link_package(source: Path, target: Path) -> None:
    """Mirror the folder `source` at `target`: real folders, links to the files."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            if entry.name not in SKIPPED:
                link_package(entry, target / entry.name)
        elif entry.suffix == ".py" or entry.name == "py.typed":
            (target / entry.name).symlink_to(os.path.relpath(entry, target))


def main() -> None:
    """Make the tree anew."""
    shutil.rmtree(TREE, ignore_errors=True)
    for folder in ("moevit", "hw", "sim", "compiler", "models", "boards"):
        link_package(ROOT / folder, TREE / "moevit" / ("" if folder == "moevit" else folder))


if __name__ == "__main__":
    main()
