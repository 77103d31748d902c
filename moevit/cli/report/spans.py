"""The timeline of a report: when each unit works on which kind of layer, from what the rtl back-end recorded."""

import json
from pathlib import Path
from typing import Any

from moevit.cli.groups import group_layers
from moevit.program import Task

UNITS = ("dma", "stream", "load", "mac", "post")
RESOLUTION = 1200  #: what is closer than this part of the run is drawn as one


def read_spans(trace: Path, task: Task, cycles: float) -> list[dict[str, Any]]:
    """Slices of a trace (see :mod:`moevit.sim.timeline`) as spans with unit, kind of layer, start and end cycle."""
    kinds = {
        number: group.kind
        for group in group_layers(task)
        for layer in group.layers
        for number in (*layer.streams, *layer.instructions)
    }
    events = json.loads(trace.read_text())["traceEvents"]
    out: list[dict[str, Any]] = []
    for unit in UNITS:
        mine = [e for e in events if e.get("cat") == unit]
        mine.sort(key=lambda e: e["ts"])
        last: dict[str, dict[str, Any]] = {}
        for event in mine:
            kind = kinds.get(event["args"]["number"], "output")
            start, end = event["ts"], event["ts"] + event["dur"]
            before = last.get(kind)
            if before is not None and start - before["end"] < cycles / RESOLUTION:
                before["end"] = max(before["end"], end)
                continue
            last[kind] = {"unit": unit, "kind": kind, "start": start, "end": end}
            out.append(last[kind])
    return out
