"""Compiles workloads, runs them, and puts what was measured beside what is possible."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moevit.bench.bound import Bound, bound
from moevit.bench.workloads import Goal, Model, Workload
from moevit.compiler.driver import compile_graphs
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.program import Program
from moevit.sim import verilate
from moevit.sim.dram import DramModel
from moevit.sim.inputs import Inputs
from moevit.sim.result import Result
from moevit.sim.simulate import simulate

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """A workload that ran on a configuration: one image.

    goal : what it is to reach; None if there is nothing
    compile_s : of the whole model, with all its tasks; making it is included, building the simulation never
    """

    name: str
    result: Result
    bound: Bound
    goal: Goal | None
    compile_s: float

    @property
    def cycles(self) -> int:
        assert self.result.cycles is not None
        return self.result.cycles[0]

    @property
    def latency_ms(self) -> float:
        assert self.result.latency_ms is not None
        return self.result.latency_ms

    @property
    def utilisation(self) -> float:
        assert self.result.mac_utilisation is not None
        return self.result.mac_utilisation

    @property
    def queues(self) -> dict[str, list[int]]:
        """By gate: how many tokens went to each expert."""
        return {gate: images[0] for gate, images in self.result.experts.items()}

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        return self.cycles <= self.goal.cycles and self.utilisation >= self.goal.utilisation

    def as_dict(self) -> dict[str, Any]:
        """An entry of ``works``."""
        result, goal = self.result, self.goal
        used = [sum(n > 0 for n in tokens) for tokens in self.queues.values()]
        return {
            "name": self.name,
            "config": result.config,
            "backend": result.backend,
            "cycles": self.cycles,
            "latency_ms": self.latency_ms,
            "fps": 1000 / self.latency_ms,
            "macs": result.macs,
            "mac_utilisation": self.utilisation,
            "dram_bytes": result.dram_bytes,
            "bound_cycles": self.bound.as_dict(),
            "target": None
            if goal is None
            else {"cycles": goal.cycles, "stretch": goal.stretch, "mac_utilisation": goal.utilisation,
                  "reached": self.reached},
            "experts_used": used,
            "queues": self.queues,
            "stages": result.stages,
            "dram": None if result.dram is None else result.dram.as_dict(),
            "bit_exact": result.bit_exact,
            "mismatch": None if result.mismatch is None else result.mismatch.as_json(),
            "compile_s": round(self.compile_s, 3),
            "wall_s": round(result.wall_s, 3),
        }  # fmt: skip


def run(
    workloads: Sequence[Workload],
    backends: Sequence[str],
    config: AcceleratorConfig | None = None,
    *,
    check: bool = True,
    progress: Progress = lambda text: None,
) -> Iterator[Work]:
    """Run workloads one after the other.

    Parameters
    ----------
    workloads : what to run
    backends : those of the simulators that count cycles; each runs everything
    config : the machine; None for each workload's own
    check : compare every tensor with the reference, where the back-end has tensors; a difference is in the result
    progress : told what starts

    Raises
    ------
    AllocationError : a model does not fit a configuration
    """
    model: tuple[Callable[[], Model], Model, float] | None = None
    compiled: dict[str, tuple[Program, float]] = {}  # of that model, by configuration
    for workload in workloads:
        if model is None or model[0] is not workload.model:
            progress(f"{workload.name}: making the model")
            started = time.perf_counter()
            model = workload.model, workload.model(), 0.0
            model = *model[:2], time.perf_counter() - started
            compiled.clear()
        for machine in [config] if config is not None else [CONFIGS[name] for name in workload.configs]:
            if machine.name not in compiled:
                progress(f"{workload.name}: compiling for {machine.name}")
                compiled[machine.name] = _compile(model[1], machine)
            program, seconds = compiled[machine.name]
            if "rtl" in backends:
                verilate.build(machine, announce=progress)  # here, so that no run's time holds it
            for backend in backends:
                progress(f"{workload.name}: running on {machine.name}, {backend}")
                inputs = Inputs(dict(model[1].inputs), {})
                result = simulate(
                    program, inputs, workload.task, backend=backend, check=check and backend == "rtl", limit=1,
                    raise_mismatch=False,
                )  # fmt: skip
                limit = _bound(program, workload.task, result)
                yield Work(workload.name, result, limit, workload.goals.get(machine.name), model[2] + seconds)


def _compile(model: Model, config: AcceleratorConfig) -> tuple[Program, float]:
    started = time.perf_counter()
    program = compile_graphs(model.graphs, config, dict.fromkeys(model.graphs, model.calibration)).program
    return program, time.perf_counter() - started


def _bound(program: Program, name: str, result: Result) -> Bound:
    task = program.task(name)
    queues = {layer.instructions[0]: result.experts[layer.name][0] for layer in task.layers if layer.kind == "route"}
    rate = (result.dram or DramModel.default(program.config)).bytes_per_cycle
    return bound(program.config, task, program.instructions(task), queues, result.dram_bytes, rate)
