"""The program of a mixture of experts: order, waits, streams, memory; and that it computes what the reference does."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compile_helpers import mixture_graph, pictures
from onnx_net import Net

from moevit.compiler import interpret
from moevit.compiler.driver import Compiled, compile_graphs, compile_model
from moevit.compiler.emit import Routing
from moevit.compiler.hazards import check_instructions
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.errors import AllocationError, HazardError
from moevit.isa import DmaIn, Instruction, Linear, Stream
from moevit.program import MEMORY_QUEUE
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate

FORMS = ("plain", "bare", "shared", "later", "narrow", "wide", "two")
TINY = CONFIGS["tiny"]


def compiled(
    config: AcceleratorConfig = TINY, *, form: str = "plain", routing: Routing | None = None, **moe: Any
) -> Compiled:
    graph = mixture_graph(form=form, **moe)
    return compile_graphs({"main": graph}, config, {"main": pictures(graph)}, routing=routing)


def outputs(program: Compiled, count: int = 6, seed: int = 7, **moe: Any) -> np.ndarray:
    """What comes out, each intermediate tensor compared with the reference on the way."""
    graph = mixture_graph(**moe)
    values = from_arrays({"image": graph.inputs[0].model_shape}, pictures(graph, count, seed))
    return simulate(program.program, values, check=True).outputs["head"]


def linears(program: Compiled) -> list[tuple[int, Linear]]:
    instructions = program.program.instructions(program.program.task())
    return [(n, i) for n, i in enumerate(instructions) if isinstance(i, Linear)]


def kinds(program: Compiled) -> list[str]:
    """Of the mixture's LINEARs, in order: gate, up 0, …"""
    out = []
    for _, i in linears(program):
        if i.route:
            out.append("gate")
        elif i.gather or i.scatter:
            out.append(f"{'up' if i.gather else 'down'} {i.queue}")
    return out


def test_experts_are_pipelined_by_one() -> None:
    order = ["gate", "up 0", "up 1", "down 0", "up 2", "down 1", "up 3", "down 2", "up 4", "down 3", "down 4"]
    assert kinds(compiled()) == order
    assert kinds(compiled(experts=1, top_k=1)) == ["gate", "up 0", "down 0"]


@pytest.mark.parametrize(
    ("form", "rows"), [*itertools.product(FORMS, [None]), *itertools.product(FORMS[:-1], [1, 7])]
)
def test_every_wait_is_needed(form: str, rows: int | None) -> None:
    """Any wait that is one less reads too early, as the hazard checker says."""
    program = compiled(form=form, routing=Routing(rows=rows)).program
    task = program.task()
    instructions = program.instructions(task)

    def check(broken: list[Instruction]) -> None:
        check_instructions(program.config, broken, len(program.image), task.input_bytes, task.output_bytes)

    check(instructions)
    some = [
        n for n, i in enumerate(instructions) if isinstance(i, Linear) and (i.gather or i.scatter or i.route)
    ]
    for number in some[:: max(1, len(some) // 25)]:
        broken = list(instructions)
        broken[number] = dataclasses.replace(broken[number], wait=broken[number].wait - 1)  # type: ignore[attr-defined]
        with pytest.raises(HazardError, match=f"instruction {number} "):
            check(broken)


@pytest.mark.parametrize("speculate", [True, False])
def test_each_expert_has_a_stream_of_its_own(speculate: bool) -> None:
    program = compiled(routing=Routing(speculate))
    instructions = program.program.instructions(program.program.task())
    streams = [i for i in instructions if isinstance(i, Stream) and i.predicated]
    experts = [i for _, i in linears(program) if i.gather or i.scatter]
    assert [s.queue for s in streams] == [e.queue for e in experts]
    retiring = [i for i in instructions if i.retires]
    gate = next(n for n, i in enumerate(retiring) if isinstance(i, Linear) and i.route) + 1
    assert {s.wait for s in streams} == {gate}
    assert {s.speculative for s in streams} == {int(speculate)}


def test_expert_weights_lie_in_the_order_of_use() -> None:
    program = compiled()
    instructions = program.program.instructions(program.program.task())
    offsets = [i.weight_offset for i in instructions if isinstance(i, Stream)]
    assert offsets == sorted(offsets)


def test_two_hidden_buffers_are_taken_and_given_back() -> None:
    program = compiled(form="two").program
    task = program.task()
    hidden = [t for t in task.tensors if t.gate]
    assert len(hidden) == 10 and len({(t.gate, t.expert) for t in hidden}) == 10
    for gate in {t.gate for t in hidden}:
        assert task.tensor(gate).memory == MEMORY_QUEUE
        mine = [t.addr for t in hidden if t.gate == gate]
        assert len(set(mine)) == 2
        assert all(a != b for a, b in itertools.pairwise(mine))
    assert len({t.addr for t in hidden}) == 2  # the second mixture takes what the first gave back


def test_the_model_macs_are_split_over_the_layers() -> None:
    for rows in (None, 7):
        task = compiled(routing=Routing(rows=rows)).program.task()
        gates = sum(layer.macs for layer in task.layers if layer.kind == "route")
        experts = [layer.macs for layer in task.layers if layer.kind in ("gather", "scatter")]
        assert gates == 25 * 24 * 5
        assert sum(experts) == 25 * 2 * 20 * (24 + 24)
        assert max(experts) - experts[0] < len(experts)
        assert task.macs == mixture_graph().macs()


CASES: list[dict[str, Any]] = [
    *({"form": form} for form in FORMS),
    {"experts": 1, "top_k": 1}, {"experts": 64, "top_k": 4, "hidden": 5}, {"top_k": 5, "experts": 5} | {"top_k": 3},
    {"order": "topk_softmax"}, {"threshold": 0.4}, {"activation": "relu"}, {"activation": "silu"},
    {"width": 9, "hidden": 3}, {"image": 8}, {"image": 4},
]  # fmt: skip


@pytest.mark.parametrize("config", ["tiny", "zcu104", "wide", "square"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_mixtures_are_exact_and_near_the_float_model(case: dict[str, Any], config: str) -> None:
    graph = mixture_graph(**case)
    got = outputs(compiled(CONFIGS[config], **case), **case)
    values = pictures(graph, 6, 7)
    want = interpret.outputs(graph, interpret.run(graph, values))["head"]
    # A token whose best experts are nearly equal may go to another one, so the mean and not the largest error counts.
    assert np.abs(got - want).mean() < 0.05 * np.abs(want).mean() + 0.02


@pytest.mark.parametrize("form", ["plain", "narrow", "later"])
def test_tokens_in_groups_give_the_same(form: str) -> None:
    want = outputs(compiled(form=form), form=form)
    for rows in (1, 4, 7, 24, 25, 100):
        got = outputs(compiled(form=form, routing=Routing(speculate=rows % 2 == 0, rows=rows)), form=form)
        np.testing.assert_array_equal(got, want)


def test_small_memories_change_the_program_and_not_the_result() -> None:
    """Column chunks where the weights exceed half the ring, groups of tokens where the queues are small."""
    want = outputs(compiled())
    ring = dataclasses.replace(TINY, name="ring", operand_words=16)
    program = compiled(ring)
    assert kinds(program)[1:4] == ["up 0"] * 3
    np.testing.assert_array_equal(outputs(program), want)
    queues = dataclasses.replace(TINY, name="queues", queue_entries=16)
    program = compiled(queues)
    assert kinds(program).count("gate") == 4  # 8 tokens of two entries each
    np.testing.assert_array_equal(outputs(program), want)


@pytest.mark.parametrize(
    ("change", "moe", "said"),
    [
        ({"queue_entries": 1}, {}, "queue_entries"),
        ({"tile_depth": 16}, {"width": 16, "hidden": 17}, "tile_depth"),
        ({"operand_words": 6}, {"experts": 64, "width": 12, "hidden": 5}, "gate .*operand words, all at once"),
        ({"activation_words": 150}, {"hidden": 60}, "activation_words"),
    ],
)
def test_a_machine_that_is_too_small_is_named(change: dict[str, int], moe: dict[str, Any], said: str) -> None:
    with pytest.raises(AllocationError, match=said):
        compiled(dataclasses.replace(TINY, name="small", **change), **moe)  # type: ignore[arg-type]


def test_two_embeddings_of_an_image(tmp_path: Path) -> None:
    """The second one's copies wait until what lay in its memory has been read."""
    net = Net(1, 3, 16, 16)
    parts = []
    for _ in range(2):
        x = net.op("Conv", "x", net.random(24, 3, 4, 4), net.random(24), strides=[4, 4])
        x = net.op("Transpose", net.op("Reshape", x, net.ints(1, 24, 16)), perm=[0, 2, 1])
        x = net.linear(net.op("LayerNormalization", x, net.random(24), net.random(24)), 24, 8)
        parts.append(net.linear(net.op("Relu", x), 8, 8))
    path = net.save(tmp_path / "net.onnx", net.op("Add", *parts))
    data = {"x": np.random.default_rng(1).random((3, 3, 16, 16), dtype=np.float32)}
    program = compile_model({"main": path}, CONFIGS["tiny"], lambda task, shapes: data).program
    copies = [i for i in program.instructions(program.tasks[0]) if isinstance(i, DmaIn)]
    assert copies[0].wait == 0 < copies[-1].wait
    assert simulate(program, from_arrays({"x": (3, 16, 16)}, data), check=True).bit_exact
