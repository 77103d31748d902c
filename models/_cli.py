"""What the commands of this package share: user errors, progress, JSON files."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moevit.errors import InputError, MoevitError, ToolError

__all__ = [
    "TRAIN_EXTRA",
    "Progress",
    "add_data_argument",
    "main_wrapper",
    "merge_json",
    "require",
    "write_json",
]

#: How to get torch.
TRAIN_EXTRA = "pip install 'moevit[train]', or in a checkout: pip install -e '.[train]'"


class Progress:
    """One line on standard error that counts up; silent when standard error is no terminal.

    Parameters
    ----------
    label
        What is being counted.
    total
        Where the count ends.
    """

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._start = time.monotonic()
        self._shown = 0.0
        self._on = sys.stderr.isatty()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if not self._on or (now - self._shown < 0.2 and done < self._total):
            return
        self._shown = now
        left = (now - self._start) / max(done, 1) * (self._total - done)
        end = "\n" if done >= self._total else ""
        sys.stderr.write(f"\r{self._label}: {done}/{self._total} {note} ({left:.0f} s left)\033[K{end}")
        sys.stderr.flush()


def main_wrapper(run: Callable[[], int]) -> None:
    """Exit with the status of `run`; a user's mistake is one line on standard error and status 2."""
    try:
        status = run()
    except MoevitError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_status
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def require(module: str, mend: str) -> None:
    """Raise ToolError with `mend` as its way out if `module` cannot be imported."""
    try:
        __import__(module)
    except ImportError as error:
        raise ToolError(f"this command needs {module} ({error})", mend=mend) from error


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of Fashion-MNIST's IDX files, gzipped or not (Debian package dataset-fashion-mnist "
        "puts them in /usr/share/datasets/fashion-mnist)",
    )


def write_json(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(temporary, path)


def merge_json(path: Path, data: dict[str, Any]) -> None:
    """Add `data` to the JSON object in `path`, or begin one."""
    old: dict[str, Any] = {}
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"is not a JSON file ({error})", where=str(path)) from error
        if not isinstance(old, dict):
            raise InputError("must hold a JSON object", where=str(path))
    write_json(path, old | data)
