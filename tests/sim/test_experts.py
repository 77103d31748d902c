"""Mixtures of experts on the isa simulator and in the reference, held to a model that goes token by token."""

import dataclasses

import numpy as np
import pytest
from mixture_program import MixtureProgram, Shape

from moevit import container
from moevit.config import CONFIGS
from moevit.errors import MismatchError, SimulationError
from moevit.isa import Linear, Stream
from moevit.numerics.route import RouteOrder
from moevit.sim.check import Collector, Place, check_values
from moevit.sim.dram import DramModel
from moevit.sim.inputs import Inputs
from moevit.sim.isa import IsaSimulator
from moevit.sim.reference import run_reference
from moevit.sim.simulate import simulate

SHAPES = {
    "plain": Shape(),
    "softmax first": Shape(order=RouteOrder.SOFTMAX_TOPK, top_k=3, seed=1),
    "one expert": Shape(experts=1, top_k=1, seed=2),
    "many experts": Shape(experts=40, top_k=4, tokens=6, seed=3),
    "threshold": Shape(threshold=36_000, seed=4),
    "nobody": Shape(threshold=65_535, top_k=4, experts=9, seed=5),
    "two chunks": Shape(chunks=2, seed=6),
    "three chunks, columns apart": Shape(chunks=3, columns=2, seed=7, speculative=True),
    "one token": Shape(tokens=1, seed=8),
}


def pixels(shape: Shape, count: int = 4) -> np.ndarray:
    return np.random.default_rng(99).integers(0, 256, (count, shape.tokens, shape.width), np.uint8)


def inputs(shape: Shape, count: int = 4) -> Inputs:
    return Inputs({"image": pixels(shape, count)[:, None].astype(np.float32)}, {})


def run_isa(program, data, instructions=None):
    task = program.tasks[0]
    instructions = instructions or program.instructions(task)
    simulator = IsaSimulator(program.config, program.image, instructions, task.output_bytes)
    return simulator.run(data.reshape(len(data), -1))


@pytest.mark.parametrize("config", ["tiny", "wide"])
@pytest.mark.parametrize("name", SHAPES)
def test_is_exact(config: str, name: str) -> None:
    """Outputs, scores and queue lengths are the model's, and every tensor of the simulator is the reference's."""
    shape = SHAPES[name]
    mixture = MixtureProgram(CONFIGS[config], shape)
    result = simulate(mixture.program, inputs(shape), check=True)
    assert result.bit_exact
    lengths = np.zeros((4, shape.experts), np.int64)
    for image, data in enumerate(pixels(shape)):
        scores, want = mixture.expected(data)
        assert np.array_equal(result.outputs["result"][image], want)
        lengths[image] = (scores > 0).sum(axis=0)
    assert np.array_equal(sum(np.array(x) for x in result.experts.values()), lengths)
    assert result.as_dict()["experts"].keys() == {x.name for x in mixture.program.tasks[0].layers if x.kind == "route"}


@pytest.mark.parametrize("name", SHAPES)
def test_rtl_is_exact(name: str) -> None:
    """With the same experts for the same tokens; and it reads what these need, and no less."""
    shape = SHAPES[name]
    program = MixtureProgram(CONFIGS["tiny"], shape).program
    isa = simulate(program, inputs(shape))
    for seed in (None, 7):
        dram = DramModel(bytes_per_cycle=8, seed=seed)
        rtl = simulate(program, inputs(shape), backend="rtl", check=True, dram=dram)
        assert rtl.bit_exact
        assert rtl.experts == isa.experts
        assert rtl.dram_bytes["experts"] == isa.dram_bytes["experts"]
        spare = rtl.dram_bytes["speculative"]
        assert rtl.dram_bytes["weights"] == isa.dram_bytes["weights"] + spare
        assert spare == 0 or shape.speculative


def test_suspicion_costs_bytes_and_saves_cycles() -> None:
    """Weights that are there when the gate has decided; all experts have tokens here, so none are read in vain."""
    results = {}
    for speculative in (False, True):
        shape = Shape(experts=6, tokens=24, top_k=4, speculative=speculative, width=32, hidden=32)
        program = MixtureProgram(CONFIGS["tiny"], shape).program
        results[speculative] = simulate(program, inputs(shape, 2), backend="rtl")
    assert sum(results[True].cycles) < sum(results[False].cycles)
    assert results[True].dram_bytes == results[False].dram_bytes


def test_counts_the_bytes_of_experts() -> None:
    shape = Shape(experts=16, tokens=3)
    mixture = MixtureProgram(CONFIGS["tiny"], shape)
    result = simulate(mixture.program, inputs(shape))
    streams = [i for i in mixture.program.instructions(mixture.program.tasks[0]) if isinstance(i, Stream)]
    assert len({(i.weight_words, i.post_words) for i in streams if i.predicated}) == 2  # an expert is like another
    expert = sum(64 * i.post_words + 32 * i.weight_words for i in streams if i.predicated) // shape.experts
    used = np.count_nonzero(result.experts["gate0"], axis=1)
    assert 2 <= used.min() < shape.experts
    assert result.dram_bytes["experts"] == pytest.approx(used.mean() * expert, abs=1)
    assert result.dram_bytes["speculative"] == 0
    always = sum(64 * i.post_words + 32 * (i.weight_words + i.norm_words) for i in streams if not i.predicated)
    assert result.dram_bytes["weights"] == always + result.dram_bytes["experts"]


def test_any_changed_value_is_found() -> None:
    """In all that means something; rows of a queue beyond its tokens do not."""
    shape = Shape()
    mixture = MixtureProgram(CONFIGS["tiny"], shape)
    program, task = mixture.program, mixture.program.tasks[0]
    data = pixels(shape)
    collector = Collector(task, program.config)
    simulator = IsaSimulator(program.config, program.image, program.instructions(task), task.output_bytes)
    simulator.run(data.reshape(len(data), -1), after=collector)
    want = run_reference(program, task, {"image": data[:, None]})
    compared = check_values(program, task, collector.values, want, Place("isa"))
    ignored = 0
    for key in collector.values:
        tensor = task.tensor(key[0])
        for image in range(len(data)):
            for row in (0, key[1].rows - 1):
                changed = dict(collector.values) | {key: collector.values[key].copy()}
                changed[key][image, row, 0] ^= 1
                if tensor.gate and row >= np.count_nonzero(want["scores"][image, :, tensor.expert]):
                    assert check_values(program, task, changed, want, Place("isa")) == compared
                    ignored += 1
                    continue
                with pytest.raises(MismatchError) as caught:
                    check_values(program, task, changed, want, Place("isa"))
                assert caught.value.tensor == key[0]
                if key[0] == "scores":
                    assert caught.value.where == f"isa, image {image}, token {row}, expert 0"
                if tensor.gate:
                    assert caught.value.where == f"isa, image {image}, a row of expert {tensor.expert}"
    assert ignored > 10


def faulty(change) -> tuple[MixtureProgram, list]:
    mixture = MixtureProgram(CONFIGS["tiny"], Shape(chunks=2))
    instructions = mixture.program.instructions(mixture.program.tasks[0])
    for number, i in enumerate(instructions):
        if isinstance(i, Linear):
            instructions[number] = dataclasses.replace(i, **change(i))
    return mixture, instructions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {"n_rows": 1} if i.gather else {}, "more than 1"),
        (lambda i: {"top_k": 6} if i.route else {}, "a gate of 5 experts, 6 per token"),
        (lambda i: {"clear": 0, "token": 3} if i.route and i.token else {}, "token 3 is appended behind token 4"),
        (lambda i: {"src": 16383} if i.gather else {}, "instruction"),
    ],
)
def test_errors(change, message: str) -> None:
    mixture, instructions = faulty(change)
    with pytest.raises(SimulationError, match=message):
        run_isa(mixture.program, pixels(mixture.shape), instructions)


def test_full_queues() -> None:
    mixture = MixtureProgram(CONFIGS["tiny"], Shape())
    program = mixture.program
    small = dataclasses.replace(program.config, queue_entries=16)
    task = program.tasks[0]
    simulator = IsaSimulator(small, program.image, program.instructions(task), task.output_bytes)
    with pytest.raises(SimulationError, match="22 tokens of all experts; the queues hold 16"):
        simulator.run(pixels(mixture.shape).reshape(4, -1))


def test_container_keeps_it(tmp_path) -> None:
    program = MixtureProgram(CONFIGS["wide"], Shape(chunks=2, columns=2)).program
    container.save(program, tmp_path / "a.moevit")
    assert container.load(tmp_path / "a.moevit") == program
