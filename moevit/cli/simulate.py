"""`moevit simulate`: run a container on one of the simulators."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.groups import group_layers
from moevit.cli.output import Output, json_command
from moevit.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moevit.program import Task
    from moevit.sim.result import Result

SHOWN_IMAGES = 20  #: of which the command prints the outputs
SHOWN_CLASSES = 1024  #: values of an output that may be classes; more are a picture

EXAMPLES = """
\b
Examples:
  moevit simulate vit.moevit --inputs images.npz
  moevit simulate vit.moevit --inputs images.npz --backend rtl --check --limit 8
  moevit simulate vit.moevit --inputs cat.png dog.png --outputs logits.npz
  moevit simulate vit.moevit --backend cycle
  moevit simulate vit.moevit --inputs cat.png --backend rtl --trace wave.fst
  moevit simulate vit.moevit --inputs cat.png --backend rtl --timeline timeline.json
"""


@json_command(name="simulate", epilog=EXAMPLES)
@click.argument("container", type=click.Path(path_type=Path), metavar="FILE.moevit")
@click.argument("more_inputs", nargs=-1, type=click.Path(path_type=Path), metavar="[INPUT...]")
@click.option(
    "--inputs", multiple=True, type=click.Path(path_type=Path), metavar="FILE.npz|IMAGE|DIR",
    help="Arrays [N, ...] by input name, float, or uint8 for pixels; or pictures. More may follow. The cycle back-end "
    "does without, and then takes a gate's tokens to go to all experts alike.",
)
@click.option("--task", metavar="NAME", help="The task to run; the first without it.")
@click.option(
    "--backend", type=click.Choice(["isa", "rtl", "cycle"]), default="isa", show_default=True,
    help="isa: instructions in NumPy, untimed; rtl: the Verilog, cycle by cycle; cycle: isa, and a prediction of the "
    "cycles that rtl would take.",
)
@click.option(
    "--check", is_flag=True,
    help="Compare every output and every intermediate tensor with the NumPy reference; the exit status is 1 "
    "if one differs. Not of the cycle back-end.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N inputs.")
@click.option("--outputs", type=click.Path(path_type=Path), metavar="OUT.npz", help="Write the outputs, float32.")
@click.option(
    "--trace", type=click.Path(path_type=Path), metavar="FILE.fst", help="Write the rtl back-end's waveform."
)
@click.option(
    "--timeline", type=click.Path(path_type=Path), metavar="FILE.json",
    help="Write when each unit of the rtl back-end works on each instruction of the first input, for "
    "https://ui.perfetto.dev; 1 us there is 1 cycle.",
)
@click.option("--dram-bytes-per-cycle", type=float, metavar="X", help="DRAM bandwidth of rtl and cycle.")
@click.option("--dram-latency", type=int, metavar="CYCLES", help="DRAM latency of rtl and cycle.")
@click.option(
    "--seed", type=int, metavar="N", help="Stall every bus channel of the rtl back-end at random, from this seed."
)
def command(
    output: Output,
    container: Path,
    more_inputs: tuple[Path, ...],
    inputs: tuple[Path, ...],
    task: str | None,
    backend: str,
    check: bool,
    limit: int | None,
    outputs: Path | None,
    trace: Path | None,
    timeline: Path | None,
    dram_bytes_per_cycle: float | None,
    dram_latency: int | None,
    seed: int | None,
) -> dict[str, Any]:
    """Run a container on one of the simulators.

    Prints what came out, and on the rtl and cycle back-ends how many cycles each layer added and what each stage of
    the pipeline waited for. The Verilog is built once per configuration, which takes a minute or two.
    """
    import dataclasses

    from moevit.container import load
    from moevit.pipeline import machine_tasks
    from moevit.sim import verilate
    from moevit.sim.dram import DramModel
    from moevit.sim.inputs import read_inputs
    from moevit.sim.simulate import simulate

    program = load(container)
    chosen = program.pipeline(task)
    files = [*inputs, *more_inputs]
    if not files and backend != "cycle":
        raise InputError("Missing option '--inputs'", where=f"--backend {backend}", mend="name a file of inputs")
    values = read_inputs({x.name: x.shape for x in chosen.inputs}, files).limited(limit) if files else None
    for path, option in ((outputs, "--outputs"), (trace, "--trace"), (timeline, "--timeline")):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError("its folder does not exist", where=f"{option} {path}")
    changes: dict[str, Any] = {"bytes_per_cycle": dram_bytes_per_cycle, "latency_cycles": dram_latency, "seed": seed}
    given = {name: value for name, value in changes.items() if value is not None}
    if given and backend == "isa":
        raise InputError(f"the isa back-end has no DRAM: {', '.join(given)}", mend="add --backend rtl")
    dram = dataclasses.replace(DramModel.default(program.config), **given) if backend != "isa" else None
    if backend == "rtl":
        verilate.build(program.config, trace_waves=trace is not None, announce=output.note)
    with output.progress(f"simulating ({backend})", 1 if values is None else len(values)) as advance:
        result = simulate(
            program, values, chosen.name, backend=backend, check=check, dram=dram, trace=trace, timeline=timeline,
            progress=advance, raise_mismatch=False,
        )  # fmt: skip
    if outputs is not None:
        write_npz(outputs, result.outputs)
    _say(output, result, machine_tasks(program, chosen))
    if result.mismatch is not None:
        output.fail(str(result.mismatch))
    return result.as_dict() | {"outputs": outputs, "trace": trace, "timeline": timeline}


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name into a .npz file, atomically."""
    import numpy as np

    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _say(output: Output, result: "Result", tasks: "Sequence[Task]") -> None:
    """The report for a person."""
    images = "1 image" if result.images == 1 else f"{result.images} images"
    output.say(f"Task {result.task} on {result.config}, {result.backend}: {images} in {result.wall_s:.1f} s")
    say_outputs(output, result.outputs)
    if result.cycles is not None:
        _say_cycles(output, result, tasks)
    _say_experts(output, result, tasks)
    _say_host(output, result)
    moved = ", ".join(f"{result.dram_bytes[what]:,} of {what}" for what in ("weights", "instructions", "activations"))
    output.say(f"DRAM bytes per image: {moved}")
    if result.experts:
        needed, wasted = result.dram_bytes["experts"], result.dram_bytes["speculative"]
        output.say(f"  of the weights: {needed:,} of experts with tokens, {wasted:,} fetched for experts without")
    if result.bit_exact:
        output.say(f"Bit-exact: {result.checked_values:,} values of outputs and intermediate tensors compared.")


def say_outputs(output: Output, outputs: "Mapping[str, NDArray]") -> None:
    """What came out of the first images."""
    for name, values in outputs.items():
        flat = values.reshape(len(values), -1)
        for i, row in enumerate(flat[:SHOWN_IMAGES]):
            output.say(f"  {name}, image {i}: {_values(row)}")
        if len(flat) > SHOWN_IMAGES:
            output.say(f"  … and {len(flat) - SHOWN_IMAGES} more")


def _values(row: "NDArray") -> str:
    """An output of one image, in a few words."""
    if row.size == 1:
        return f"{row[0]:.6g}"
    if row.size > SHOWN_CLASSES:
        return f"{row.min():.4g} … {row.max():.4g}, mean {row.mean():.4g}"
    return f"largest at {row.argmax()}: {row.max():.4g}"


def _say_host(output: Output, result: "Result") -> None:
    """What the host did, measured on the CPU that this runs on, and the order of the steps."""
    if result.host_ms is None:
        return
    output.say(f"Host: {result.host_ms:.3f} ms of an image, measured on this CPU, one thread")
    for step in result.steps:
        if step.host_ms is not None:
            output.say(f"  {step.name:40} host       {step.host_ms:10.3f} ms, {step.macs:,} MACs")
        else:
            time = "" if step.cycles is None else f"{step.cycles:10,.0f} cycles, "
            output.say(f"  {step.name:40} machine    {time}{step.macs:,} MACs")


def _say_experts(output: Output, result: "Result", tasks: "Sequence[Task]") -> None:
    """How many experts each gate gave tokens, whatever groups of tokens it worked in."""
    import numpy as np

    gates: dict[str, NDArray] = {}  # tokens of each expert [images, experts]
    for layer in (layer for task in tasks for layer in task.layers):
        if layer.name in result.experts:
            tokens = np.asarray(result.experts[layer.name])
            gates[layer.outputs[0]] = gates.get(layer.outputs[0], 0) + tokens
    if gates:
        output.say("Experts that have tokens, of an image:")
    for group in (group for task in tasks for group in group_layers(task)):
        if group.kind == "route":
            tokens = gates[group.layers[0].outputs[0]]
            used = (tokens > 0).sum(axis=1)
            output.say(
                f"  {group.name:40} {used.mean():.1f} of {tokens.shape[1]} ({used.min()} … {used.max()}); "
                f"tokens of one: {tokens.max()} at most"
            )


def _say_cycles(output: Output, result: "Result", tasks: "Sequence[Task]") -> None:
    assert result.cycles is not None and result.layers is not None and result.stages is not None
    low, high = min(result.cycles), max(result.cycles)
    spread = f"{low:,}" if low == high else f"{low:,} … {high:,}"
    output.say(
        f"Cycles: {spread}; {result.latency_ms:.3f} ms at {result.clock_mhz:g} MHz; "
        f"MAC utilisation {100 * (result.mac_utilisation or 0):.1f} %; DRAM: {result.dram}"
    )
    output.say("Cycles that each layer adds:")
    cycles = {layer.name: layer.cycles for layer in result.layers}
    lines = []
    for task in tasks:
        before = f"{task.name}: " if len(tasks) > 1 else ""
        for g in group_layers(task):
            added = sum(cycles.pop(before + layer.name) for layer in g.layers)
            lines.append((before + g.name, g.kind, added))
    for name, kind, added in (*lines, *((name, "", rest) for name, rest in cycles.items())):
        output.say(f"  {name:40} {kind:10} {added:10,.0f}")
    output.say("Cycles of each stage by cause:")
    for stage, causes in result.stages.items():
        output.say(f"  {stage:8}" + ", ".join(f"{cause} {n:,.0f}" for cause, n in causes.items()))
