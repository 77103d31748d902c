"""Tasks of one container taking turns on one machine: each run is what it is on a machine that knows no other."""

from pathlib import Path

import numpy as np
import pytest

from moevit.compiler.driver import compile_model
from moevit.config import CONFIGS
from moevit.program import Program, Task
from moevit.sim.dram import DramModel
from moevit.sim.inputs import pack, quantise, read_inputs
from moevit.sim.isa import IsaSimulator
from moevit.sim.rtl import RawRun, run_raw

pytestmark = pytest.mark.slow  # real models, several runs of each

M3VIT = Path(__file__).resolve().parents[2] / "models" / "m3vit"
TURNS = 5  # seg, depth, seg, depth, seg


@pytest.fixture(scope="module", params=["tiny", "zcu104"])
def program(request: pytest.FixtureRequest) -> Program:
    images = np.load(M3VIT / "calib_scenes.npz")["images"][:16].astype(np.float32) / 255
    models = {name: M3VIT / f"{name}.onnx" for name in ("seg", "depth")}
    return compile_model(models, CONFIGS[request.param], lambda task, shapes: dict.fromkeys(shapes, images)).program


def scenes(program: Program, task: Task) -> np.ndarray:
    """Input buffers of the first scenes, one for each turn."""
    inputs = read_inputs({x.name: x.shape for x in task.inputs}, [M3VIT / "test_scenes.npz"]).limited(TURNS)
    return pack(program.config, task, quantise(task, inputs.floats(0, TURNS)))


def run(program: Program, tasks: list[Task], inputs: np.ndarray, **options: object) -> RawRun:
    (entry, length), *others = ((t.entry, t.instructions) for t in tasks)
    size = max(t.output_bytes for t in tasks)
    result = run_raw(program.config, program.image, entry, length, inputs, size, others=others, **options)
    assert len(result.images) == len(inputs)
    assert all(image.ok for image in result.images)
    return result


@pytest.mark.parametrize("soft_reset", [True, False], ids=["reset between", "only started again"])
def test_tasks_take_turns(program: Program, soft_reset: bool) -> None:
    seg, depth = program.tasks
    inputs = scenes(program, seg)
    assert np.array_equal(inputs, scenes(program, depth))
    both = run(program, [seg, depth], inputs, soft_reset=soft_reset)
    for turn in range(TURNS):
        task = program.tasks[turn % 2]
        fresh = run(program, [task], inputs[turn : turn + 1])
        mine, alone = both.images[turn], fresh.images[0]
        assert mine.dram_bytes == alone.dram_bytes  # not a weight byte that a fresh run would not load
        assert mine.retired == alone.retired
        got = both.outputs[turn, : task.output_bytes]
        assert np.array_equal(got, fresh.outputs[0, : task.output_bytes])
        isa = IsaSimulator(program.config, program.image, program.instructions(task), task.output_bytes)
        assert np.array_equal(got, isa.run(inputs[turn : turn + 1]).output[0])


def test_switching_costs_no_cycle(program: Program) -> None:
    """With a DRAM that answers at once: the phase of a bandwidth budget would differ by a few cycles."""
    seg, depth = program.tasks
    config = program.config
    bandwidth = float((config.weight_ports + 2) * config.axi_bytes)
    dram = DramModel(bytes_per_cycle=bandwidth, latency_cycles=8, outstanding_bursts=16)
    inputs = scenes(program, seg)[:3]
    both = run(program, [seg, depth], inputs, dram=dram)
    for turn, image in enumerate(both.images):
        alone = run(program, [program.tasks[turn % 2]], inputs[turn : turn + 1], dram=dram).images[0]
        assert image.cycles == alone.cycles
