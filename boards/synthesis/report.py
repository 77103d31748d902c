"""What a synthesis says about a machine on a device, as plain values and as a table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moevit.boards.devices import Device
from moevit.boards.synthesis.flow import Synthesised
from moevit.boards.synthesis.netlist import REGISTERS, Resources
from moevit.boards.synthesis.paths import Crossing, crossings

GOAL = 6  #: levels of logic between registers that a clock of 300 MHz is meant to have room for
LIMITED = ("lut", "ff", "dsp", "bram36", "uram")  #: what a device has so and so many of


def report(units: Sequence[Synthesised], device: Device) -> dict[str, Any]:
    """Device, totals, percent, the units and their levels, and the longest paths from unit to unit."""
    total = sum((unit.resources for unit in units), Resources())
    across = crossings([(path, unit.result) for unit in units for path in unit.paths])
    have = asdict(device)
    return {
        "device": have,
        "totals": asdict(total),
        "percent": {name: _percent(getattr(total, name), have[name]) for name in LIMITED},
        "units": [_unit(unit) for unit in sorted(units, key=lambda u: u.paths[0])],
        "goal_levels": GOAL,
        "crossings": [_crossing(crossing) for crossing in across if crossing.levels > GOAL],
        "longest_crossing": _crossing(across[0]) if across else None,
    }


def exceeded(values: dict[str, Any]) -> list[str]:
    """What the device has too little of."""
    totals, device = values["totals"], values["device"]
    return [f"{name} {totals[name]:g} of {device[name]}" for name in LIMITED if totals[name] > device[name]]


def _percent(used: float, have: int) -> float | None:
    if have:
        return round(100 * used / have, 1)
    return None if used else 0.0


def _unit(unit: Synthesised) -> dict[str, Any]:
    result = unit.result
    inside = result.paths.get((REGISTERS, REGISTERS))
    return {
        "name": unit.unit.name,
        "instances": list(unit.paths),
        **asdict(result.resources),
        "levels": inside.levels if inside else 0,
        "start": inside.start if inside else None,
        "end": inside.end if inside else None,
        "deep_ends": sum(count for levels, count in result.deep.items() if levels > GOAL),
        "open_dsps": result.open_dsps,
        "cells": result.cells,
        "unmapped": result.unmapped,
        "seconds": round(unit.seconds, 1),
    }


def _crossing(crossing: Crossing) -> dict[str, Any]:
    return asdict(crossing)


def lines(values: dict[str, Any]) -> list[str]:
    """The report for people."""
    device = values["device"]
    head = f"{'unit':30} {'×':>2} {'LUT':>8} {'FF':>8} {'DSP':>6} {'BRAM36':>7} {'URAM':>5} {'levels':>6}"
    out = [head]
    for unit in values["units"]:
        counts = _counts(unit, len(unit["instances"]))
        out.append(f"{unit['name']:30} {len(unit['instances']):>2} {counts} {unit['levels']:>6}")
    out.append(f"{'total':33} {_counts(values['totals'], 1)}")
    out.append(f"{device['part']:33} {_counts(device, 1)}")
    shares = ["-" if values["percent"][n] is None else f"{values['percent'][n]:.0f} %" for n in LIMITED]
    out.append(f"{'used':33} {shares[0]:>8} {shares[1]:>8} {shares[2]:>6} {shares[3]:>7} {shares[4]:>5}")
    out += _deep(values)
    return out


def _counts(values: dict[str, Any], times: int) -> str:
    lut, ff, dsp, bram36, uram = (values[name] * times for name in LIMITED)
    return f"{lut:>8,} {ff:>8,} {dsp:>6,} {bram36:>7g} {uram:>5}"


def _deep(values: dict[str, Any]) -> list[str]:
    goal = values["goal_levels"]
    deep = [unit for unit in values["units"] if unit["levels"] > goal]
    out = [f"units with more than {goal} levels of logic between registers: {len(deep) or 'none'}"]
    out += [f"  {unit['levels']:>2} {unit['name']}: {unit['start']} → {unit['end']}" for unit in deep]
    across = values["crossings"]
    out.append(f"paths from unit to unit with more than {goal} levels, by where they end: {len(across) or 'none'}")
    out += [f"  {path['levels']:>2} {path['start']} → {path['end']}" for path in across]
    return out
