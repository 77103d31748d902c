"""`moevit bench`: the standing workloads on the standing configurations."""

from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command
from moevit.errors import InputError

if TYPE_CHECKING:
    from moevit.bench.run import Work

EXAMPLES = """
\b
Examples:
  moevit bench
  moevit bench --only deit-ti,m3vit-tiny-seg
  moevit bench --only m3vit-scene-seg --config tiny --json
"""

HEAD = (
    f"{'workload':17} {'config':7} {'run on':6} {'cycles':>9} {'target':>13} {'stretch':>13} {'ms':>7} {'MAC use':>7} "
    f"{'target':>8} {'bound by':>17} {'issued':>9} {'DRAM MB':>7} {'experts':>7} {'exact':>5} {'s':>5}"
)
LEGEND = (
    "bound: multiplications or DRAM bytes, if nothing else took time; issued: steps of the array, with all padding; "
    "experts: those that had tokens, on average of all gates; s: seconds of simulation and check."
)


@json_command(name="bench", epilog=EXAMPLES)
@click.option("--only", metavar="A,B,...", help="Only these workloads.")
@click.option(
    "--config", "config_name", metavar="NAME|FILE.json", help="This machine, instead of each workload's own."
)
@click.option(
    "--backend", type=click.Choice(["rtl", "cycle", "both"]), default="rtl", show_default=True,
    help="rtl: the Verilog, cycle by cycle; cycle: the model of its timing.",
)
@click.option(
    "--check/--no-check", default=True, show_default=True,
    help="Compare every output and every intermediate tensor of rtl with the NumPy reference; the exit status is 1 if "
    "one differs.",
)  # fmt: skip
def command(
    output: Output, only: str | None, config_name: str | None, backend: str, check: bool
) -> dict[str, Any]:
    """Measure the standing workloads: exact cycles of one image, what bounds them, and what they are to reach.

    Networks without a file in the repository get seeded random weights and gates that use the experts as trained
    ones do. A target that is missed is shown and is no failure. The Verilog is built once per configuration.
    """
    from moevit.bench.run import run
    from moevit.bench.workloads import choose
    from moevit.config import get_config

    workloads = choose(only)
    config = None if config_name is None else get_config(config_name)
    works = []
    output.say(HEAD)
    for work in run(workloads, _backends(backend), config, check=check, progress=output.note):
        output.say(_line(work))
        if work.result.mismatch is not None:
            output.fail(f"{work.name} on {work.result.config}: {work.result.mismatch}")
        works.append(work.as_dict())
    output.say(LEGEND)
    return {"works": works}


def _backends(wanted: str) -> list[str]:
    """Those of the simulators that are asked for. Raises InputError for one that there is not."""
    from moevit.sim.simulate import BACKENDS

    names = ["rtl", "cycle"] if wanted == "both" else [wanted]
    for name in names:
        if name not in BACKENDS:
            raise InputError(f"there is no back-end {name!r}", where="--backend", mend="choose rtl")
    return names


def _line(work: "Work") -> str:
    """A row of the table."""
    result, bound, goal = work.result, work.bound, work.goal
    target = stretch = wanted = ""
    if goal is not None:
        target = f"{goal.cycles:,} {_mark(work.cycles <= goal.cycles)}"
        stretch = f"{goal.stretch:,} {_mark(work.cycles <= goal.stretch)}"
        wanted = f"{100 * goal.utilisation:.0f} % {_mark(work.utilisation >= goal.utilisation)}"
    used = [sum(n > 0 for n in tokens) for tokens in work.queues.values()]
    experts = f"{sum(used) / len(used):.1f}" if used else ""
    megabytes = sum(result.dram_bytes[what] for what in ("weights", "instructions", "activations")) / 1e6
    exact = {None: "", True: "yes", False: "no"}[result.bit_exact]
    limit = f"{bound.cycles:,} {bound.by}"
    return (
        f"{work.name:17} {result.config:7} {result.backend:6} {work.cycles:9,} {target:>13} {stretch:>13} "
        f"{work.latency_ms:7.3f} {100 * work.utilisation:5.1f} % {wanted:>8} {limit:>17} "
        f"{bound.issued:9,} {megabytes:7.2f} {experts:>7} {exact:>5} {result.wall_s:5.1f}"
    ).rstrip()


def _mark(reached: bool) -> str:
    return "yes" if reached else "no "
