"""Models whose activations do not fit at once: rows in chunks, tokens in groups, experts in slices, images in bands."""

import dataclasses
import functools

import numpy as np
import pytest

from moevit.bench.vit import Shape, build
from moevit.compiler.driver import Compiled, compile_graphs
from moevit.compiler.hazards import check_instructions
from moevit.config import CONFIGS
from moevit.errors import AllocationError, HazardError
from moevit.isa import Attention, DmaIn, Instruction, Linear
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate

TINY = CONFIGS["tiny"]
#: 65 tokens of width 24, whose residual takes 390 words of 8 bytes.
SMALL = Shape(
    image=(3, 32, 32), patch=4, dim=24, depth=2, heads=3, hidden=96, outputs=48, class_only=False, moe_layers=(1,),
    experts=4, expert_hidden=64, top_k=2,
)  # fmt: skip
#: 257 tokens of width 192: the residual alone takes three quarters of tiny's 128 KB.
LARGE = dataclasses.replace(SMALL, image=(3, 64, 64), dim=192, heads=6, hidden=384)


@functools.cache
def compiled(shape: Shape, activation_words: int = TINY.activation_words) -> Compiled:
    config = dataclasses.replace(TINY, activation_words=activation_words)
    graph = build("chunked", shape)
    return compile_graphs({"main": graph}, config, {"main": pictures(shape, 4)})


def pictures(shape: Shape, count: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(count).random((count, *shape.image), dtype=np.float32)}


def run(program: Compiled, shape: Shape, backend: str = "isa", count: int = 3) -> np.ndarray:
    """The result of some pictures, every tensor of which was compared with the reference's."""
    inputs = from_arrays({"image": shape.image}, pictures(shape, count))
    result = simulate(program.program, inputs, backend=backend, check=True)
    assert result.bit_exact
    return result.outputs["result"]


def windows(program: Compiled) -> dict[str, int]:
    """Tensors of which not all rows have a place at once, and how many have."""
    return {t.name: t.window for t in program.program.task().tensors if t.window}


def instructions(program: Compiled, kind: type[Instruction]) -> list:
    return [i for i in program.program.instructions(program.program.task()) if isinstance(i, kind)]


def test_what_fits_is_not_chunked() -> None:
    program = compiled(SMALL)
    assert not windows(program)
    assert len(instructions(program, Attention)) == SMALL.depth


@pytest.mark.parametrize("words", [900, 700, 560, 480])
def test_less_memory_gives_more_chunks_and_the_same_result(words: int) -> None:
    """Where experts are not cut into slices nothing is rounded elsewhere, so not a bit differs."""
    dense = dataclasses.replace(SMALL, moe_layers=())
    program = compiled(dense, words)
    assert program.peak_activation_bytes <= words * TINY.columns
    assert windows(program)
    np.testing.assert_array_equal(run(program, dense), run(compiled(dense), dense))


def test_every_part_is_chunked() -> None:
    program = compiled(SMALL, 480)
    attention, mlp = {"block0.q", "block0.attention"}, {"block0.gelu", "block1.norm2", "block1.mlp#scores"}
    assert attention | mlp | {"head"} <= set(windows(program))
    assert any(name.endswith("#patches") for name in windows(program))
    queries = [a.n_rows for a in instructions(program, Attention)]
    assert sum(queries) == SMALL.depth * SMALL.tokens
    assert all(rows % TINY.rows == 0 for rows in queries if rows != SMALL.tokens % queries[0])
    keys = [i for i in instructions(program, Linear) if i.key_tile == 0 and i.value_tile]
    assert [i.n_rows for i in keys] == [SMALL.tokens] * SMALL.depth


@pytest.mark.parametrize("words", [700, 560, 480, 440])
def test_experts_in_groups_and_slices(words: int) -> None:
    program = compiled(SMALL, words)
    gates = [i for i in instructions(program, Linear) if i.route]
    assert len(gates) > 1
    assert {g.token for g in gates} == {0}
    got, want = run(program, SMALL), run(compiled(SMALL), SMALL)
    # An expert's slices are rounded each for itself, and then a later row of 8 bits may be.
    assert np.abs(got - want).mean() < 0.02 * np.abs(want).mean()


def test_slices_of_experts_are_taken_where_they_save_weights() -> None:
    program = compiled(SMALL, 480)
    downs = [i for i in instructions(program, Linear) if i.scatter]
    assert {i.length for i in downs} < {SMALL.expert_hidden // n for n in (2, 4, 8)}
    task = program.program.task()
    assert task.macs == build("chunked", SMALL).macs()


def test_pixels_come_when_their_place_is_free() -> None:
    program = compiled(SMALL, 480)
    waits = [i.wait for i in instructions(program, DmaIn) if i.source == 0]
    assert waits[0] == 0
    assert waits[-1] > 0


def test_every_wait_of_a_chunked_program_is_needed() -> None:
    """One less reads or overwrites too early, as the hazard checker says; but later chunks' waits may have slack."""
    program = compiled(SMALL, 480).program
    task = program.task()
    listed = program.instructions(task)

    def check(broken: list[Instruction]) -> None:
        check_instructions(program.config, broken, len(program.image), task.input_bytes, task.output_bytes)

    check(listed)
    found, tried = 0, 0
    for number, i in enumerate(listed):
        if not i.retires or not i.wait:  # type: ignore[attr-defined]
            continue
        tried += 1
        broken = [*listed]
        broken[number] = dataclasses.replace(i, wait=0)  # type: ignore[call-arg]
        with pytest.raises(HazardError, match=f"instruction {number} "):
            check(broken)
        broken[number] = dataclasses.replace(i, wait=i.wait - 1)  # type: ignore[attr-defined, call-arg]
        try:
            check(broken)
        except HazardError:
            found += 1
    assert found > tried * 2 // 3 > 20


@pytest.mark.parametrize("words", [390, 400, 420])
def test_a_memory_that_takes_no_tile_of_rows_is_said(words: int) -> None:
    with pytest.raises(AllocationError, match=r"activation memory.*activation_words \(\d+ or more\)"):
        compiled(SMALL, words)


def test_a_model_too_large_for_tiny_on_isa() -> None:
    program = compiled(LARGE)
    assert {"block0.q", "block0.attention", "block0.gelu"} <= set(windows(program))
    run(program, LARGE, count=2)


@pytest.mark.slow
def test_a_model_too_large_for_tiny_on_rtl() -> None:
    run(compiled(LARGE), LARGE, "rtl", count=1)
