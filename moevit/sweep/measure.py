"""One point of a sweep: compile the model for the machine, and let the timing model run it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moevit.boards.devices import BOARDS
from moevit.boards.resources import estimate as estimate_resources
from moevit.compiler.driver import Prepared, finish
from moevit.energy.activity import activity
from moevit.energy.estimate import estimate
from moevit.errors import MoevitError
from moevit.isa import Linear
from moevit.sim.cycle.machine import even_lengths
from moevit.sim.simulate import simulate
from moevit.sweep.grid import Point

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Subject:
    """What runs on every machine: a model that has been prepared, and the task of it that is timed.

    digest : of the model's file and the task
    """

    prepared: Prepared
    task: str
    digest: str

    def key(self, point: Point) -> str:
        """What a result is known by: model, machine and memory."""
        text = json.dumps(
            {
                "model": self.digest, "changes": dict(point.changes),
                "config": point.config and point.config.to_dict(), "dram": point.dram and point.dram.as_dict(),
            },
            sort_keys=True,
        )  # fmt: skip
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def measure(subject: Subject, point: Point) -> Row:
    """A row of the result.

    ``status`` is ``ok``, ``no machine`` (the combination of values is none), or ``too small`` (the model does not fit);
    ``reason`` says what is in the way. Queues of experts are taken to be equally long.
    """
    row: Row = {"key": subject.key(point), "changes": dict(point.changes)}
    if point.config is None or point.dram is None:
        return row | {"status": "no machine", "reason": point.refused}
    config = point.config
    try:
        program = finish(subject.prepared, config, prove=False).program
        result = simulate(program, None, subject.task, backend="cycle", dram=point.dram)
    except MoevitError as error:
        return row | {"status": "too small", "reason": str(error)}
    assert result.cycles is not None and result.latency_ms is not None
    instructions = program.instructions(program.task(subject.task))
    queues = {number: counts[0].tolist() for number, counts in even_lengths(instructions).items()}
    gates = [number for number, i in enumerate(instructions) if isinstance(i, Linear) and i.route]
    counted = activity(
        config, [(instructions, {number: queues[number] for number in gates})], macs=result.macs,
        cycles=result.cycles[0], dram_bytes=result.dram_bytes,
    )  # fmt: skip
    taken = estimate_resources(config)
    energy = estimate(counted, clock_mhz=config.clock_mhz, luts=taken.lut)
    moved = counted.dram_bytes
    return row | {
        "status": "ok",
        "reason": "",
        "cycles": result.cycles[0],
        "latency_ms": result.latency_ms,
        "mac_utilisation": result.mac_utilisation,
        "macs_per_cycle": config.macs_per_cycle,
        "dram_bytes": moved,
        "dram_gbps": moved / result.latency_ms / 1e6,
        "millijoules": {name: 1000 * value for name, value in energy.total.as_dict().items()},
        "resources": asdict(taken),
        "fits": [name for name, board in BOARDS.items() if _fits(point, board.device.uram > 0, name)],
    }


def _fits(point: Point, has_uram: bool, board: str) -> bool:
    assert point.config is not None
    return not estimate_resources(point.config, uram=has_uram).excess(BOARDS[board].device)


def pareto(rows: list[Row], of: str) -> list[Row]:
    """Rows that no other beats in latency without more of something; ``of`` is a path such as ``resources.dsp``."""
    best: list[Row] = []
    for row in sorted((r for r in rows if r["status"] == "ok"), key=lambda r: (r["latency_ms"], lookup(r, of))):
        if not best or lookup(row, of) < lookup(best[-1], of):
            best.append(row)
    return best


def lookup(row: Mapping[str, Any], path: str) -> float:
    """A value inside of a row."""
    value: Any = row
    for name in path.split("."):
        value = value[name]
    return float(value)
