"""What `moevit compile --sensitivity` prints and writes."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moevit.cli.output import Output, to_json

if TYPE_CHECKING:
    from moevit.compiler.ptq.sensitivity import Sensitivity

SHOWN = 10  #: stages of each task

Errors = Mapping[str, Sequence["Sensitivity"]]


def say_sensitivity(output: Output, errors: Errors) -> None:
    """The stages that cost most, of each task."""
    for task, rows in errors.items():
        output.say(f"task {task}: {min(SHOWN, len(rows))} of {len(rows)} stages, worst first, each alone in integers")
        width = max((len(row.stage) for row in rows[:SHOWN]), default=0)
        output.say(f"  {'stage':{width}}  {'kind':9}  {'own SQNR':>9}  {'output SQNR':>11}  {'cosine':>8}")
        for row in rows[:SHOWN]:
            figures = f"{row.local_sqnr_db:6.1f} dB  {row.sqnr_db:8.1f} dB  {row.cosine:8.6f}"
            output.say(f"  {row.stage:{width}}  {row.kind:9}  {figures}")


def write_sensitivity(path: Path, errors: Errors) -> None:
    """All stages of each task, worst first, as JSON; whole or not at all."""
    text = json.dumps({task: [to_json(asdict(row)) for row in rows] for task, rows in errors.items()}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
