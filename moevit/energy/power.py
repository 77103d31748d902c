"""Watts that somebody else found, Vivado or a board's sensor, in place of the estimate."""

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moevit.energy.constants import DRAM
from moevit.energy.estimate import Energy, Part, Range
from moevit.errors import InputError

VIVADO, MEASURED = "vivado", "measured"
_MEND = "give the text that Vivado's report_power wrote, or what `moevit run --json` printed on a board"


@dataclass(frozen=True)
class Power:
    """Watts with where they come from.

    method : ``vivado`` for its power report, ``measured`` for a board's sensor
    watts : of the chip, for Vivado's report; of what the board's sensors stand for, where they measured
    dynamic_watts, static_watts, confidence : that Vivado's report states
    device : the part of Vivado's report; None of a sensor
    task : that ran while the sensor was read; None of Vivado's report, which knows no task
    config_digest, latency_ms : of that run
    source : the file, with the tool's version or the link's name
    """

    method: str
    watts: float
    source: str
    dynamic_watts: float | None = None
    static_watts: float | None = None
    confidence: str | None = None
    device: str | None = None
    task: str | None = None
    config_digest: str | None = None
    latency_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_power(path: Path) -> Power:
    """Power from a file.

    Parameters
    ----------
    path : text of Vivado's ``report_power``, or the JSON of ``moevit run --json``

    Raises
    ------
    InputError : it is neither, or states no power
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(error.strerror or str(error), where=f"--power {path}") from error
    except UnicodeDecodeError as error:
        raise InputError("is no text", where=f"--power {path}", mend=_MEND) from error
    return _of_run(path, text) if text.lstrip().startswith("{") else _of_vivado(path, text)


def _of_vivado(path: Path, text: str) -> Power:
    """Figures of the summary, and what its head says of tool and part."""
    cells = {
        key.strip(): value.strip()
        for key, value in re.findall(r"^\|([^|\n]+)\|([^|\n]+)\|\s*$", text, flags=re.MULTILINE)
    }
    head = {
        key.strip(): value.strip() for key, value in re.findall(r"^\|([^|:\n]+):([^|\n]*)$", text, flags=re.MULTILINE)
    }
    watts = _watts(cells.get("Total On-Chip Power (W)", ""))
    if watts is None:
        raise InputError("states no Total On-Chip Power (W)", where=f"--power {path}", mend=_MEND)
    tool = " ".join(head.get("Tool Version", "Vivado").split()[:2])
    return Power(
        VIVADO, watts, f"{path.name}, {tool}", _watts(cells.get("Dynamic (W)", "")),
        _watts(cells.get("Device Static (W)", "")), cells.get("Confidence Level"), head.get("Device"),
    )  # fmt: skip


def _watts(text: str) -> float | None:
    """A positive number; Vivado marks some with an asterisk."""
    try:
        value = float(text.rstrip("*"))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _of_run(path: Path, text: str) -> Power:
    where = f"--power {path}"
    try:
        run = json.loads(text)
        names = {name: str(run[name]) for name in ("device", "task", "config_digest")}
        watts, latency = run["power_w"], float(run["latency_ms"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("is no result of `moevit run --json`", where=where, mend=_MEND) from error
    if watts is None:
        raise InputError(
            f"has no power: {names['device']} has no sensor that was read", where=where,
            mend="run it on a board with one",
        )  # fmt: skip
    if not isinstance(watts, int | float) or not math.isfinite(watts) or watts <= 0 or not latency > 0:
        raise InputError(f"states {watts!r} W and {latency!r} ms", where=where, mend=_MEND)
    return Power(
        MEASURED, float(watts), f"{path.name}, sensors of {names['device']}", task=names["task"],
        config_digest=names["config_digest"], latency_ms=latency,
    )  # fmt: skip


def replaced(estimate: Energy, power: Power) -> Energy:
    """The energy of an inference by another's watts.

    Vivado's are of the chip: the memory chips' part of the estimate is added, with its range. A sensor's are of the
    board while the inferences ran, for as long as one took there.
    """
    if power.method == VIVADO:
        chip = Part("chip, by Vivado", estimate.seconds, None, _exactly(power.watts * estimate.seconds))
        memory = next(part for part in estimate.parts if part.constant is DRAM)
        return replace(estimate, method=VIVADO, parts=(chip, memory), system=None)
    assert power.latency_ms is not None
    seconds = power.latency_ms / 1000
    board = Part("board, by its sensor", seconds, None, _exactly(power.watts * seconds))
    return Energy(MEASURED, seconds, (board,), None)


def _exactly(joules: float) -> Range:
    return Range(joules, joules, joules)
