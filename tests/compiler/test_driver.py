"""Several tasks in one program: what they share, and the trained two-task model."""

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from compile_helpers import mixture_graph, pictures

from moevit import container
from moevit.cli.evaluate import run_onnx
from moevit.cli.listing import task_bytes
from moevit.compiler import ir
from moevit.compiler.calibrate import calibrate
from moevit.compiler.driver import Compiled, compile_graphs, compile_model
from moevit.compiler.joint import join_ranges
from moevit.config import CONFIGS
from moevit.models.scenes import m3vit_path
from moevit.sim import metrics
from moevit.sim.inputs import from_arrays, read_inputs
from moevit.sim.simulate import simulate

TASKS = ("seg", "depth")


def two_tasks() -> dict[str, ir.Graph]:
    """The same backbone with other gates, as `mixture_graph` makes it from another seed, and another head."""
    one, other = (mixture_graph(seed=seed, form="two") for seed in (0, 1))
    head = other.ops[-1]
    assert isinstance(head, ir.Linear)
    own = dataclasses.replace(head, weight=head.weight + 1)
    return {"one": one, "other": other.replaced([*other.ops[:-1], own])}


def test_tasks_share_all_but_gates_and_heads() -> None:
    graphs = two_tasks()
    data = {name: pictures(graph, seed=seed) for seed, (name, graph) in enumerate(graphs.items())}
    both = compile_graphs(graphs, CONFIGS["tiny"], data)
    alone = compile_graphs({"one": graphs["one"]}, CONFIGS["tiny"], {"one": data["one"]})
    gates = 2 * (64 + 6 * 8 * 4)  # post words and weights of a gate, 24 to 5 padded to 8
    head = 64 + 6 * 8 * 4
    balanced = 24 * 4  # gamma and beta of the head's norm, where they are balanced with its weights
    own = task_bytes(both.program)["other"]["own"]
    assert own in (gates + head, gates + head + balanced)
    assert 0 <= both.weight_bytes - alone.weight_bytes - own < 64  # blocks begin at multiples of 64 bytes
    for task in graphs:
        values = from_arrays({"image": (1, 20, 20)}, pictures(graphs[task], 4, 9))
        assert simulate(both.program, values, task, check=True).bit_exact


def test_corresponding_tensors_get_the_range_of_all_tasks() -> None:
    graphs = two_tasks()
    apart = {name: calibrate(g, pictures(g, seed=seed)) for seed, (name, g) in enumerate(graphs.items())}
    joint = join_ranges(graphs, apart)
    for tensor in ("image", "embed.out", "norm0.out", "moe1.out#hidden.3", "add1.out", "norm9.out"):
        assert joint["one"][tensor] == joint["other"][tensor]
        assert joint["one"][tensor].peak == max(apart[task][tensor].peak for task in graphs)
    assert joint["one"]["head.out"] == apart["one"]["head.out"] != joint["other"]["head.out"]


def test_tasks_that_compute_something_else_keep_their_ranges() -> None:
    graphs = {"one": mixture_graph(), "other": mixture_graph(activation="relu")}
    apart = {name: calibrate(g, pictures(g)) for name, g in graphs.items()}
    joint = join_ranges(graphs, apart)
    assert joint["one"]["norm0.out"] == joint["other"]["norm0.out"]
    for task in graphs:
        assert {t: r for t, r in joint[task].items() if t.startswith(("moe0", "add0"))} == {
            t: r for t, r in apart[task].items() if t.startswith(("moe0", "add0"))
        }


# -- the model that is shipped ----------------------------------------------------------------------------------------


@cache
def shipped(config: str, tasks: tuple[str, ...] = TASKS) -> Compiled:
    return compile_model(
        {task: m3vit_path(f"{task}.onnx") for task in tasks}, CONFIGS[config],
        lambda task, shapes: read_inputs(shapes, [m3vit_path("calib_scenes.npz")]).floats(),
    )  # fmt: skip


@pytest.mark.parametrize("config", ["tiny", "zcu104"])
@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_model_is_exact(task: str, config: str) -> None:
    program = shipped(config).program
    scenes = read_inputs({"image": (1, 64, 64)}, [m3vit_path("test_scenes.npz")]).limited(4)
    result = simulate(program, scenes, task, check=True)
    assert result.bit_exact
    assert len(result.experts) == 3
    for tokens in result.experts.values():
        assert np.asarray(tokens).shape == (4, 8)
        assert (np.sum(tokens, axis=1) == 2 * 64).all()


@pytest.mark.parametrize(("task", "figure", "most"), [("seg", "miou", 0.005), ("depth", "rmse", 0.02)])
def test_eight_bits_cost_little_accuracy(task: str, figure: str, most: float) -> None:
    """On 64 scenes; over 1,024 it is 0.02 points of mean IoU and 0.1 % of the RMSE."""
    scenes = read_inputs({"image": (1, 64, 64)}, [m3vit_path("test_scenes.npz")]).limited(64)
    chosen = shipped("tiny").program.task(task)
    floats = run_onnx(m3vit_path(f"{task}.onnx"), chosen, scenes, lambda n: None)[task]
    got = simulate(shipped("tiny").program, scenes, task).outputs[task]
    figures = metrics.against_target(got, floats, scenes.extra[task])
    want, have = figures[f"{figure}_float"], figures[f"{figure}_int8"]
    print(f"{task}: {figure} {want:.4f} in float, {have:.4f} in 8 bits")
    assert abs(have - want) < (most if task == "seg" else most * want)


@pytest.mark.parametrize("config", ["tiny", "zcu104"])
def test_two_tasks_take_little_more_than_one(config: str, tmp_path: Path) -> None:
    """The container of both is that of one and what only the other reads, but for tables: within 3 %."""
    both, one = tmp_path / "both.moevit", tmp_path / "one.moevit"
    container.save(shipped(config).program, both)
    container.save(shipped(config, ("seg",)).program, one)
    own = task_bytes(shipped(config).program)["depth"]["own"]
    assert own < 20_000
    assert both.stat().st_size < 1.03 * (one.stat().st_size + own)
