"""The comparison finds every difference, and names the first one in program order."""

import numpy as np
import pytest
from compile_helpers import ODD, compiled, float_inputs, quantised_inputs

from moevit.errors import MismatchError
from moevit.isa.disassemble import disassemble
from moevit.sim.check import Collector, Place, check_bytes, check_outputs, check_values
from moevit.sim.inputs import pack
from moevit.sim.isa import IsaSimulator
from moevit.sim.reference import run_reference

PLACE = Place("isa", 10)


@pytest.fixture(scope="module")
def case():
    program = compiled(ODD, "tiny").program
    task = program.task()
    quantised = quantised_inputs(task, {k: v[:3] for k, v in float_inputs(ODD).items()})
    collector = Collector(task, program.config)
    simulator = IsaSimulator(program.config, program.image, program.instructions(task), task.output_bytes)
    memories = simulator.run(pack(program.config, task, quantised), after=collector)
    return program, task, collector.values, memories.output, run_reference(program, task, quantised)


def test_everything_is_compared(case):
    program, task, got, output, want = case
    assert got.keys() == {(t.name, p) for t in task.tensors for p in t.pieces}
    assert {t.memory for t in task.tensors} == {"activation", "key", "value"}
    elements = sum(3 * p.rows * t.channels for t in task.tensors for p in t.pieces)
    assert check_values(program, task, got, want, PLACE) == elements
    assert check_outputs(program, task, output, want, PLACE) == sum(3 * y.rows * y.channels for y in task.outputs)
    # Every row that a layer writes is in a piece.
    for layer in task.layers:
        for name in layer.outputs:
            rows = {r for p in task.tensor(name).pieces for r in range(p.row, p.row + p.rows)}
            first = layer.output_row if name == layer.outputs[0] else 0
            assert rows >= set(range(first, first + layer.rows))


def test_any_changed_value_is_found(case):
    program, task, got, _, want = case
    rng = np.random.default_rng(1)
    keys = sorted(got, key=lambda key: (key[1].instruction, key[0]))
    for key in keys:
        name, piece = key
        changed = dict(got) | {key: got[key].copy()}
        index = tuple(int(rng.integers(n)) for n in changed[key].shape)
        changed[key][index] ^= 1
        with pytest.raises(MismatchError) as caught:
            check_values(program, task, changed, want, PLACE)
        error = caught.value
        assert error.tensor == name
        assert error.index == (piece.row + index[1], index[2])
        assert error.got == changed[key][index]
        assert error.want == got[key][index]
        instruction = program.instructions(task)[piece.instruction]
        assert error.instruction == f"{piece.instruction} ({disassemble(instruction)})"
        assert error.where == f"isa, image {10 + index[0]}"


def test_the_first_in_program_order_is_named(case):
    program, task, got, _, want = case
    keys = sorted(got, key=lambda key: key[1].instruction)
    early, late = keys[2], keys[-1]
    changed = dict(got) | {key: got[key] ^ 1 for key in (late, early)}
    with pytest.raises(MismatchError) as caught:
        check_values(program, task, changed, want, PLACE)
    assert caught.value.tensor == early[0]
    assert caught.value.where == "isa, image 10"


def test_changed_output_is_found(case):
    program, task, _, output, want = case
    changed = output.copy()
    changed[2, task.outputs[0].offset] ^= 0x80
    with pytest.raises(MismatchError, match=r"isa, image 12: .*output buffer"):
        check_outputs(program, task, changed, want, PLACE)


def test_bytes():
    want = np.zeros((2, 64), np.uint8)
    check_bytes("memory", want, want, 8, str)
    got = want.copy()
    got[1, 19] = 7
    with pytest.raises(MismatchError, match=r"^1: tensor 'memory'\[2, 3\]: got 7, want 0"):
        check_bytes("memory", got, want, 8, str)
