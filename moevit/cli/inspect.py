"""`moevit inspect`: what a container holds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from moevit.cli import listing
from moevit.cli.groups import first_to_last
from moevit.cli.output import Output, json_command
from moevit.pipeline import HOST, Pipeline, host_parts, machine_tasks
from moevit.program import Input, Program, Task


@json_command(name="inspect")
@click.argument("container", type=click.Path(path_type=Path), metavar="FILE.moevit")
@click.option("--task", "task_name", metavar="NAME", help="Only this task; all without it.")
@click.option("--disassembly", is_flag=True, help="Print the instructions too.")
@click.option("--blocks", is_flag=True, help="Print what lies where in the weight image too.")
def command(
    output: Output, container: Path, task_name: str | None, disassembly: bool, blocks: bool
) -> dict[str, Any]:
    """Show what a container holds: layers, code, memory map, scales.

    Ideal cycles are those that the array needs if nothing ever makes it wait; `moevit simulate --backend rtl`
    counts the real ones. `live` says from which instruction to which a tensor's words are in use.
    """
    from moevit.container import load

    program = load(container)
    pipelines = [program.pipeline(name) for name in (program.names if task_name is None else (task_name,))]
    tasks = [task for pipeline in pipelines for task in machine_tasks(program, pipeline)]
    image = listing.image_blocks(program)
    _say_container(output, container, program, image)
    for pipeline in pipelines:
        _say_host(output, program, pipeline)
    for task in tasks:
        output.say()
        _say_task(output, program, task)
        if disassembly:
            output.say()
            output.say(f"Instructions of task {task.name}:")
            for line in listing.disassembly(program, task):
                output.say("  " + line)
    if blocks:
        output.say()
        output.say("Weight image:")
        rows = [(f"{b.offset:#x}", f"{b.bytes:,}", b.kind, ", ".join(b.users)) for b in image]
        _table(output, ("offset", "bytes", "kind", "used by"), rows, right=(0, 1))
    return _as_json(container, program, pipelines, tasks, image)


def _as_json(
    path: Path, program: Program, pipelines: Sequence[Pipeline], tasks: Sequence[Task],
    image: list[listing.ImageBlock],
) -> dict[str, Any]:  # fmt: skip
    return {
        "container": path,
        "bytes": path.stat().st_size,
        "config": program.config.to_dict(),
        "config_digest": f"{program.config.digest:016x}",
        "sources": [asdict(source) for source in program.sources],
        "image": {
            "bytes": len(program.image),
            "sha256": listing.image_digest(program),
            "shared_bytes": program.shared_bytes,
            "by_kind": _by_kind(program, image),
            "blocks": [asdict(block) for block in image],
        },
        "pipelines": [
            asdict(pipeline) | {"host_parts": [asdict(part) for part in host_parts(program, pipeline)]}
            for pipeline in pipelines
        ],
        "tasks": [
            {
                "name": task.name,
                "entry": task.entry,
                "instructions": task.instructions,
                "macs": task.macs,
                "ideal_cycles": sum(layer.ideal_cycles for layer in listing.layers(program, task)),
                "inputs": [asdict(x) for x in task.inputs],
                "outputs": [asdict(y) for y in task.outputs],
                "input_bytes": task.input_bytes,
                "output_bytes": task.output_bytes,
                "memory": asdict(listing.memory_use(program, task)),
                "layers": [asdict(layer) for layer in listing.layers(program, task)],
                "tensors": [asdict(tensor) for tensor in listing.tensors(program, task)],
                "disassembly": listing.disassembly(program, task),
            }
            for task in tasks
        ],
    }


def _by_kind(program: Program, image: list[listing.ImageBlock]) -> dict[str, int]:
    """Bytes of the image by what they are; what no layer names is padding."""
    kinds = {kind: sum(b.bytes for b in image if b.kind == kind) for kind in
             ("weights", "post", "norm", "constant", "program")}  # fmt: skip
    return kinds | {"padding": len(program.image) - sum(kinds.values())}


def _say_container(output: Output, path: Path, program: Program, image: list[listing.ImageBlock]) -> None:
    c = program.config
    output.say(f"{path}: {path.stat().st_size:,} bytes")
    output.say(
        f"  configuration  {c.name}, digest {c.digest:016x}: array {c.rows}×{c.columns}×{c.depth}, "
        f"{c.macs_per_cycle} MAC/cycle"
    )
    for source in program.sources:
        output.say(f"  task           {source.task}: {source.file}, SHA-256 {source.sha256[:16]}…")
    parts = ", ".join(f"{kind} {size:,}" for kind, size in _by_kind(program, image).items() if size)
    output.say(f"  image          {len(program.image):,} bytes: {parts}")
    if program.shared_bytes:
        output.say(f"                 {program.shared_bytes:,} bytes more if equal tensors were not shared")


def _say_task(output: Output, program: Program, task: Task) -> None:
    output.say(f"Task {task.name}: {task.instructions} instructions, entry {task.entry:#x}")
    for x in task.inputs:
        output.say(
            f"  input   {x.name} {list(x.shape)}: {_kind(x)} = round(x / {x.scale:.6g}) + {x.zero_point}, "
            f"at byte {x.offset} of {task.input_bytes}"
        )
    for y in task.outputs:
        output.say(
            f"  output  {y.name} {list(y.shape)}: from tensor {y.tensor}, "
            f"at byte {y.offset} of {task.output_bytes}"
        )
    _say_memory(output, program, task)
    output.say()
    _say_layers(output, program, task)
    output.say()
    _say_tensors(output, program, task)


def _kind(x: Input) -> str:
    """An input's type, and that of its rows if it is no image."""
    return f"{x.dtype} {x.rows}×{x.channels}" if x.channels else x.dtype


def _say_host(output: Output, program: Program, pipeline: Pipeline) -> None:
    """The steps of a pipeline in which the host has a part, and its nodes."""
    parts = {part.name: part for part in host_parts(program, pipeline)}
    if not parts:
        return
    output.say()
    output.say(f"Steps of task {pipeline.name}:")
    for step in pipeline.steps:
        if step.kind == HOST:
            part = parts[step.name]
            output.say(f"  host     {part.name}: {part.macs:,} MACs, an ONNX model of {part.size:,} bytes")
            for value in part.inputs:
                output.say(f"             reads {value.name} {value.dtype} {list(value.shape)}")
            for value in part.outputs:
                output.say(f"             makes {value.name} {value.dtype} {list(value.shape)}")
        else:
            output.say(f"  machine  {step.name}: {program.task(step.name).macs:,} MACs")
    output.say()
    rows = [(n.name, n.op, n.reason, n.way_out) for part in parts.values() for n in part.nodes]
    _table(output, ("node on the host", "operator", "reason", "way out"), rows)


def _say_memory(output: Output, program: Program, task: Task) -> None:
    use = listing.memory_use(program, task)
    c = program.config
    used, there = use.activation_words
    output.say(
        f"  memory  activations {used:,} of {there:,} words "
        f"({used * c.columns:,} of {there * c.columns:,} bytes)"
    )
    used, there = use.key_value_words
    output.say(
        f"          operand memory: words 0 … {use.ring_words - 1:,} weight ring, then K and V, {used:,} of "
        f"{there:,} words"
    )
    used, there = use.queue_entries
    if used:
        output.say(f"          experts' queues {used:,} of {there:,} entries at most")
    output.say(f"          longest row {use.longest_row[0]:,} of {use.longest_row[1]:,} bytes")


def _say_layers(output: Output, program: Program, task: Task) -> None:
    entries = listing.grouped_layers(program, task)
    rows = [
        (
            e.name, e.role, e.shape, _count(e.macs), _count(e.weight_bytes), _count(e.ideal_cycles),
            "" if e.utilisation is None else f"{100 * e.utilisation:.0f} %", _span(e.instructions),
        )
        for e in entries
    ]  # fmt: skip
    macs, cycles = sum(e.macs for e in entries), sum(e.ideal_cycles for e in entries)
    share = f"{100 * macs / (cycles * program.config.macs_per_cycle):.0f} %" if cycles else ""
    streamed = sum(e.weight_bytes for e in entries)
    rows.append(("total", "", "", f"{macs:,}", f"{streamed:,}", f"{cycles:,}", share, ""))
    head = ("layer", "does", "shape", "MACs", "weight bytes", "ideal cycles", "MAC use", "instructions")
    _table(output, head, rows, right=(3, 4, 5, 6))


def _count(n: int) -> str:
    return f"{n:,}" if n else ""


def _span(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} … {numbers[-1]}"


def _say_tensors(output: Output, program: Program, task: Task) -> None:
    groups: dict[tuple[bool, str], list[listing.TensorEntry]] = {}
    for t in listing.tensors(program, task):
        groups.setdefault((bool(t.gate), t.gate or t.name), []).append(t)
    head = ("tensor", "shape", "type", "scale", "zero", "covers", "memory", "words", "live")
    _table(output, head, [_tensor_row(group) for group in groups.values()], right=(1, 3, 4))


def _tensor_row(group: Sequence[listing.TensorEntry]) -> tuple[str, ...]:
    """A line of the tensors table: of one tensor, or of the hidden rows of all experts of a gate."""
    t = group[0]
    low, high = min(x.real_low for x in group), max(x.real_high for x in group)
    scales, zeros = {f"{x.scale:.5g}" for x in group}, {str(x.zero_point) for x in group}
    first, last = min(x.first_word for x in group), max(x.last_word for x in group)
    return (
        first_to_last([x.name for x in group]), f"{t.shape[0]}×{t.shape[1]}", t.dtype,
        scales.pop() if len(scales) == 1 else "by expert", zeros.pop() if len(zeros) == 1 else "",
        f"{low:.4g} … {high:.4g}", t.memory, f"{first} … {last}",
        f"{min(x.written for x in group)} … {max(x.read for x in group)}",
    )  # fmt: skip


def _table(
    output: Output, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """Print aligned columns; those in ``right`` are flush right."""
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        output.say("  " + "  ".join(cells).rstrip())
