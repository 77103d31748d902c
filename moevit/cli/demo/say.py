"""What the demo prints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moevit.cli.demo.measure import Accuracy, Storage, Usage, every_expert_macs
from moevit.cli.demo.picture import stage_shares
from moevit.cli.demo.report import Report, Run, TaskReport
from moevit.cli.output import Output
from moevit.program import Program

if TYPE_CHECKING:
    from moevit.sim.result import Result


def model(output: Output, program: Program, held: Storage) -> None:
    """What was compiled, and what both tasks share of it."""
    c = program.config
    output.say(f"M³ViT, one network for two tasks on scenes of Fashion-MNIST items, compiled for {c.name}:")
    output.say(f"  array {c.rows}×{c.columns}×{c.depth}, {c.macs_per_cycle} MAC/cycle")
    for task in program.tasks:
        output.say(
            f"  {task.name:6} {task.instructions} instructions for {task.macs / 1e6:.2f} M multiply-accumulates; "
            f"all experts for every token would be {every_expert_macs(program, task) / 1e6:.2f} M"
        )
    output.say(
        f"  one container of {_size(held.container)} for both; two would take {_size(held.container + held.shared)}: "
        f"{_size(held.shared)} are stored once,"
    )
    output.say(f"  of these the experts' {_size(held.expert)}. The tasks have gates and a decoder of their own.")
    output.say()


def accuracy(output: Output, found: Sequence[tuple[Accuracy, "Result"]]) -> None:
    """Each task's figure in float and in integers."""
    scenes = found[0][0].scenes
    seconds = sum(isa.wall_s for _, isa in found)
    output.say(f"isa, all {scenes} scenes of both tasks in {seconds:.1f} s:")
    output.say(f"  {'task':7}{'':12}{'onnxruntime, float':>20}{'isa, int8':>12}")
    for a, _ in found:
        output.say(f"  {a.task:7}{a.figure:12}{a.in_float:20.4f}{a.int8:12.4f}")
    output.say()


def experts(output: Output, tasks: Sequence[tuple[str, list[Usage], "Result"]], held: Storage) -> None:
    """Who goes where, and what that reads."""
    uses = [(name, use) for name, usage, _ in tasks for use in usage]
    if not uses:
        return
    count = max(use.experts for _, use in uses)
    output.say(
        f"Tokens of each expert, average of the scenes; a token goes to {uses[0][1].top_k} of {count} experts:"
    )
    output.say(f"  {'task':7}{'block':>5}   {''.join(f'{e:6}' for e in range(count))}    in a scene   in use")
    for name, use in uses:
        span = f"{min(s[0] for s in use.spread):.0f} … {max(s[-1] for s in use.spread):.0f}"
        output.say(f"  {name:7}{use.block:5}   {''.join(f'{n:6.1f}' for n in use.tokens)}{span:>14}{use.used:9.2f}")
    read = ", ".join(f"{100 * isa.dram_bytes['experts'] / held.expert:.1f} % for {name}" for name, _, isa in tasks)
    output.say(f"  Experts without tokens are not read; of the experts' {_size(held.expert)} a scene takes {read}.")
    output.say()


def runs(output: Output, made: Sequence[Run], tasks: Sequence[TaskReport]) -> None:
    """The machine's runs, in their order."""
    first = tasks[0].rtl
    output.say(f"rtl, {len(made)} runs of the Verilog, each from reset, the tasks in turns, DRAM with {first.dram}:")
    output.say(f"  {'scene':>5}  {'task':7}{'cycles':>9}{f'ms at {first.clock_mhz:g} MHz':>16}")
    for run in made:
        output.say(f"  {run.scene:5}  {run.task:7}{run.cycles:9,}{run.milliseconds:16.3f}")
    for task in tasks:
        r = task.rtl
        output.say(
            f"  {task.task.name}: {r.latency_ms:.3f} ms on average; the multipliers do useful work in "
            f"{100 * (r.mac_utilisation or 0):.1f} % of the cycles (mac_utilisation)."
        )
    values = sum(task.rtl.checked_values for task in tasks)
    output.say(
        f"  Bit-exact: rtl, isa and reference agree in all {values:,} compared values "
        "of outputs and intermediate tensors."
    )
    output.say()


def parts(output: Output, report: Report) -> None:
    """Cycles by part of the network, both tasks side by side."""
    tasks = report.tasks
    output.say(
        "Cycles by block and part. They overlap: this is what each adds. Ideal: the array never waits, with the"
    )
    output.say("tokens that the experts had.")
    output.say("  " + f"{'':16}" + "".join(f"{name:>12}{'share':>8}{'ideal':>10}" for name in tasks))
    rows: dict[str, dict[str, str]] = {}
    for name, task in tasks.items():
        total = sum(p.cycles for p in task.parts)
        for p in task.parts:
            ideal = f"{p.ideal:,.0f}" if p.ideal else ""
            share = f"{100 * p.cycles / total:.1f} %"
            rows.setdefault(p.part.name, {})[name] = f"{p.cycles:12,.0f}{share:>8}{ideal:>10}"
    for part, cells in rows.items():
        output.say(f"  {part:16}" + "".join(cells.get(name, " " * 30) for name in tasks))
    sums = [(sum(p.cycles for p in t.parts), sum(p.ideal for p in t.parts)) for t in tasks.values()]
    output.say(f"  {'total':16}" + "".join(f"{cycles:12,.0f}{'':8}{ideal:10,.0f}" for cycles, ideal in sums))
    output.say()


def stages(output: Output, report: Report) -> None:
    """What each stage of the pipeline does, both tasks together."""
    output.say("Where each stage's cycles go, both tasks together:")
    for stage, causes in stage_shares(list(report.tasks.values())):
        shares = [f"{name} {100 * share:.1f} %" for name, share in causes.items()]
        output.say(f"  {stage:8}{', '.join(shares)}")
    output.say()


def _size(number: float) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"
