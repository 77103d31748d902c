"""When each instruction passes each unit, and what the stages do meanwhile, from what the rtl harness records.

What is written is the Trace Event Format, which https://ui.perfetto.dev and chrome://tracing open. A microsecond is
a cycle there: the format has no smaller unit that all viewers show.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.isa import Attention, DmaIn, DmaOut, Instruction, Linear, Stream
from moevit.program import Layer, Program, Task
from moevit.registers import COUNTERS
from moevit.sim.rtl import RECORD_CAUSES, RECORD_RING, RECORD_TILE_LOADS
from moevit.trace import Mark

#: tracks from above: what each is called, by the name of its unit
TRACKS = {
    "retire": "retirement: cycles that each instruction adds",
    "dispatch": "dispatch: until its queue takes it",
    "stream": "streamer: words written",
    "load": "loader",
    "mac": "array: steps",
    "post": "POST: rows",
    "dma": "DMA",
}
WAITS = "waits"  #: inside of a loader's or DMA's slice: until its first access
ENDS = "ends"  #: of the retirement track: after the last instruction
LAYER_OUTPUT = "output"  #: what belongs to no layer, such as DMA_OUT


@dataclass(frozen=True)
class Span:
    """Cycles ``start`` … ``end - 1`` in which a unit works on an instruction."""

    unit: str
    number: int  #: of the instruction in the program
    start: int
    end: int
    first: int | None = None  #: cycle of the first access, where the unit may have to wait for it


def spans(instructions: Sequence[Instruction], records: NDArray) -> Iterator[Span]:
    """What each unit did with each instruction; a skipped STREAM is not among it."""

    def marks(mark: Mark) -> list[int]:
        return records["cycle"][records["kind"] == mark].tolist()

    def numbers(*kinds: type[Instruction]) -> list[int]:
        return [n for n, i in enumerate(instructions) if isinstance(i, kinds)]

    last = len(instructions) - 1  # BEGIN and END go to no unit
    sent = zip(range(1, last), marks(Mark.FETCH), marks(Mark.DISPATCH), strict=False)
    yield from (Span("dispatch", n, start, end + 1) for n, start, end in sent)
    yield from _streamed(instructions, numbers(Stream), marks)

    compute = numbers(Linear, Attention)
    first_reads = marks(Mark.LOAD_FIRST)
    for n, start, end in zip(compute, marks(Mark.LOAD_TAKE), marks(Mark.LOAD_LAST), strict=True):
        # Of an empty queue nothing is read.
        first = first_reads.pop(0) if first_reads and first_reads[0] <= end else None
        yield Span("load", n, start, end + 1, first)
    for unit, begins, ends in (("mac", Mark.MAC_FIRST, Mark.MAC_LAST), ("post", Mark.POST_FIRST, Mark.POST_LAST)):
        yield from (Span(unit, n, a, b + 1) for n, a, b in zip(compute, marks(begins), marks(ends), strict=True))
    takes, done = marks(Mark.DMA_TAKE), [end + 1 for end in marks(Mark.DMA_DONE)]
    # The next one may begin while the bus still answers.
    done = [min(end, after) for end, after in zip(done, [*takes[1:], *done[-1:]], strict=True)]
    copies = zip(numbers(DmaIn, DmaOut), takes, marks(Mark.DMA_FIRST), done, strict=True)
    yield from (Span("dma", n, start, end, first) for n, start, first, end in copies)

    retiring = [n for n, i in enumerate(instructions) if i.retires]
    between = zip(retiring, pairwise([0, *marks(Mark.RETIRE)]), strict=True)
    yield from (Span("retire", n, start, end) for n, (start, end) in between)


def _streamed(instructions: Sequence[Instruction], streams: list[int], marks: Any) -> Iterator[Span]:
    """From the first to the last word of each STREAM."""
    taken, skipped, words = marks(Mark.STREAM_TAKE), marks(Mark.STREAM_SKIP), marks(Mark.STREAM_WORD)
    # One is skipped before the next is taken.
    of_skips = set(np.searchsorted(taken, skipped, side="right") - 1)
    brought = [n for k, n in enumerate(streams) if k not in of_skips]
    sizes = [i.norm_words + i.post_words + i.weight_words for n in brought if isinstance(i := instructions[n], Stream)]
    for n, (first, end) in zip(brought, pairwise(accumulate(sizes, initial=0)), strict=True):
        if end > first:
            yield Span("stream", n, words[first], words[end - 1] + 1)


def causes(records: NDArray, retirements: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the stages did between two retirements.

    Returns cycles [retirements + 1, counters and one idle per stage], the last row of what came after the last
    retirement; and of those in which the array waited for a tile, what the loader did, likewise.
    """
    size = len(COUNTERS) + len(dict.fromkeys(stage for stage, _, _ in COUNTERS))
    out = []
    edges = records["cycle"][records["kind"] == Mark.RETIRE]
    for base in (RECORD_CAUSES, RECORD_TILE_LOADS):
        mine = records[(records["kind"] >= base) & (records["kind"] < base + size)]
        table = np.zeros((retirements + 1, size), np.int64)
        # Those of a retirement are recorded in its cycle.
        table[np.searchsorted(edges, mine["cycle"]), mine["kind"] - base] = mine["value"]
        out.append(table)
    return out[0], out[1]


def by_stage(row: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """A row of :func:`causes` with names; what is zero is left out."""
    stages: dict[str, dict[str, int]] = {}
    for (stage, cause, _), cycles in zip(COUNTERS, row.tolist(), strict=False):
        stages.setdefault(stage, {})[cause] = cycles
    for causes_of, idle in zip(stages.values(), row[len(COUNTERS) :].tolist(), strict=True):
        causes_of["idle"] = idle
    return {stage: {cause: n for cause, n in of.items() if n} for stage, of in stages.items()}


def layer_causes(program: Program, task: Task, records: NDArray) -> list[dict[str, Any]]:
    """For each layer, as ``result.layer_cycles`` shares them out: the cycles it adds and what the stages did in them.

    ``tile_load`` is what the loader did while the array waited for an A tile.
    """
    retiring = [n for n, i in enumerate(program.instructions(task)) if i.retires]
    table, tile_loads = causes(records, len(retiring))
    rows: dict[int | None, int] = {n: i for i, n in enumerate(retiring)}
    layers: list[tuple[str, str, list[int]]] = [
        (x.name, x.kind, [rows.pop(n) for n in x.instructions if n in rows]) for x in task.layers
    ]
    layers.append((LAYER_OUTPUT, LAYER_OUTPUT, [*rows.values(), len(retiring)]))
    out = []
    for name, kind, mine in layers:
        stages = by_stage(table[mine].sum(axis=0))
        loads = by_stage(tile_loads[mine].sum(axis=0)).get("load", {})
        cycles = sum(stages["mac"].values())
        out.append({"name": name, "kind": kind, "cycles": cycles, "stages": stages, "tile_load": loads})
    return out


def trace_events(program: Program, task: Task, records: NDArray, cycles: int) -> dict[str, Any]:
    """The JSON object of a run: slices by unit, the ring's fill, and the layers' causes in ``otherData``."""
    instructions = program.instructions(task)
    labels = _labels(task, instructions)
    events: list[dict[str, Any]] = [_meta("process_name", 0, f"{task.name} on {program.config.name}; 1 us is 1 cycle")]
    tracks = {unit: tid for tid, unit in enumerate(TRACKS, 1)}
    for unit, tid in tracks.items():
        events += [_meta("thread_name", tid, TRACKS[unit]), _meta("thread_sort_index", tid, tid)]
    end = 0
    for span in spans(instructions, records):
        instruction = instructions[span.number]
        slice_ = {"ph": "X", "pid": 1, "tid": tracks[span.unit], "ts": span.start}
        fields = {field.name: dict(field.values).get(value, value) for field, value in instruction.items()}
        events.append(
            slice_ | {"name": labels[span.number], "cat": span.unit, "dur": span.end - span.start,
                      "args": {"number": span.number} | fields}
        )  # fmt: skip
        if span.first is not None and span.first > span.start:
            events.append(slice_ | {"name": WAITS, "cat": WAITS, "dur": span.first - span.start})
        end = span.end if span.unit == "retire" else end
    events.append(
        {"ph": "X", "pid": 1, "tid": tracks["retire"], "ts": end, "dur": cycles - end, "name": ENDS, "cat": "retire"}
    )
    for record in records[records["kind"] == RECORD_RING].tolist():
        at, _, words = record
        events.append({"ph": "C", "pid": 1, "ts": at, "name": "weight ring", "args": {"words": words}})
    about = {
        "config": program.config.name, "config_digest": f"{program.config.digest:016x}", "task": task.name,
        "cycles": cycles, "unit": "1 us is 1 cycle", "layers": layer_causes(program, task, records),
    }  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}


def write(path: Path, program: Program, task: Task, records: NDArray, cycles: int) -> None:
    """Write the run of ``cycles`` cycles that was recorded."""
    path.write_text(json.dumps(trace_events(program, task, records, cycles), separators=(",", ":")))


def _meta(name: str, tid: int, value: str | int) -> dict[str, Any]:
    key = "sort_index" if name == "thread_sort_index" else "name"
    return {"ph": "M", "pid": 1, "tid": tid, "name": name, "args": {key: value}}


def _labels(task: Task, instructions: Sequence[Instruction]) -> list[str]:
    """Layer and mnemonic of each instruction."""
    layers: dict[int, Layer] = {}
    for layer in task.layers:
        layers |= dict.fromkeys((*layer.streams, *layer.instructions), layer)
    return [
        f"{layers[n].name} {i.mnemonic()}" if n in layers else i.mnemonic() for n, i in enumerate(instructions)
    ]
