"""`moevit bench`: workloads that are what they claim, bounds that hold, and the standing targets."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moevit.bench import workloads
from moevit.bench.bound import bound, issued_steps
from moevit.bench.gates import balance
from moevit.bench.images import smooth_images
from moevit.bench.run import Work, run
from moevit.bench.vit import Shape, build
from moevit.bench.workloads import SHAPES, WORKLOADS, Goal, Workload, choose, random_model
from moevit.cli import bench as bench_cli
from moevit.cli import cli
from moevit.compiler import interpret, ir
from moevit.compiler.driver import compile_graphs
from moevit.compiler.verify import verify
from moevit.config import CONFIGS
from moevit.errors import InputError
from moevit.sim import verilate
from moevit.sim.simulate import BACKENDS

SMALL = Shape(
    image=(3, 32, 48), patch=8, dim=24, depth=2, heads=3, hidden=40, outputs=10, class_only=False, moe_layers=(1,),
    experts=6, expert_hidden=20, top_k=2,
)  # fmt: skip


def small() -> workloads.Model:
    """Two tasks: one with another last layer, so also with other gates."""
    return random_model(main=SMALL, other=dataclasses.replace(SMALL, outputs=3))


WORKLOAD = Workload("small", small, "main", ("tiny",), {"tiny": Goal(10, 5, 0.99)})
OTHER = Workload("small-other", small, "other", ("zcu104",), {})


# Pictures, graphs and gates


def test_images_are_smooth_and_the_same_for_the_same_seed() -> None:
    images = smooth_images((3, 64, 96), 2, 5)
    assert (images.dtype, images.shape) == (np.uint8, (2, 3, 64, 96))
    assert np.array_equal(images, smooth_images((3, 64, 96), 2, 5))
    assert not np.array_equal(images, smooth_images((3, 64, 96), 2, 6))
    values = images.astype(int)
    assert values.min(axis=(1, 2, 3)).tolist() == [0, 0]
    assert values.max(axis=(1, 2, 3)).tolist() == [255, 255]
    near = np.abs(np.diff(values, axis=3)).mean()
    far = np.abs(values[..., 48:] - values[..., :48]).mean()
    assert 5 * near < far


@pytest.mark.parametrize(
    ("name", "tokens", "macs"),
    [
        ("m3vit-tiny-seg", 129, 902_257_152),
        ("m3vit-tiny-depth", 129, 789_010_944),
        ("deit-ti", 197, 1_253_683_200),
        ("deit-s", 197, 4_598_882_304),
    ],
)
def test_graphs_are_the_published_ones(name: str, tokens: int, macs: int) -> None:
    shape = SHAPES[name]
    graph = build(name, shape)
    verify(graph, "build")
    assert graph.macs() == macs
    assert shape.tokens == graph.tensors["tokens"][0] == tokens
    assert graph.tensors["head"] == (1 if shape.class_only else tokens - 1, shape.outputs)


def test_tasks_share_all_but_gates_and_the_last_layer() -> None:
    model = small()
    one, other = (
        {f"{op.name}.{key}": value for op in graph for key, value in op.constants().items()}
        for graph in model.graphs.values()
    )
    differ = {name for name in one if not np.array_equal(one[name], other[name])}
    assert differ == {"block1.mlp.gate_weight", "block1.mlp.gate_bias", "head.weight", "head.bias"}


@pytest.mark.torch
@pytest.mark.parametrize("task", ["seg", "depth"])
def test_m3vit_tiny_is_what_is_exported(tmp_path: Path, task: str) -> None:
    from moevit.compiler.frontend.load import load
    from moevit.models.m3vit_export import export, random_model

    (path,) = export(random_model("tiny", 0), tmp_path, tasks=(task,))
    exported, built = load(path), build(task, SHAPES[f"m3vit-tiny-{task}"])

    def operations(graph: ir.Graph) -> list[object]:
        shapes = graph.tensors
        return [(type(op), [shapes[i] for i in op.inputs], shapes[op.output],
                 {k: v.shape for k, v in op.constants().items()}) for op in graph]  # fmt: skip

    assert operations(built) == operations(exported)
    assert built.macs() == exported.macs()


def shares(graph: ir.Graph, images: np.ndarray) -> tuple[np.ndarray, float]:
    """Of each gate and image, the part of the tokens that each expert has; and the mean of the best scores."""
    found, best = [], []

    def observe(op: ir.Op, what: str, values: np.ndarray) -> None:
        if what == "logits":
            assert isinstance(op, ir.MoE)
            chosen, scores = interpret.route(op, values)
            best.append(scores[:, 0].mean())
            each = chosen.reshape(len(images), -1)
            found.extend(np.bincount(row, minlength=op.experts) / len(row) for row in each)

    interpret.run(graph, {"image": images}, observe)
    return np.stack(found), float(np.mean(best))


def test_gates_use_all_experts_on_other_images() -> None:
    shape = dataclasses.replace(
        SHAPES["m3vit-tiny-seg"], dim=48, heads=1, hidden=64, expert_hidden=32, depth=6, moe_layers=(1, 3, 5), outputs=4
    )
    graph = build("gates", shape, 3)
    pictures, others = (smooth_images(shape.image, 16, seed) / np.float32(255) for seed in (1, 2))
    balanced = balance(graph, {"image": pictures}, 4)
    found, best = shares(balanced, others)
    assert 0.35 < best < 0.6  # a token's best expert does not take it all
    assert found.mean(axis=0).min() > 0.04
    assert found.mean(axis=0).max() < 0.10
    assert found.min() > 0  # no image leaves one out
    assert found.max() < 0.2
    assert found.std() > 0.01  # but they are not all the same
    plain, _ = shares(graph, others)
    assert np.median(plain.max(axis=1)) > 0.2  # what it is good for
    again = balance(graph, {"image": pictures}, 4)
    for one, other in zip(balanced, again, strict=True):
        assert all(np.array_equal(value, other.constants()[key]) for key, value in one.constants().items())


# Bounds


def test_bound_of_a_dense_model_by_hand() -> None:
    shape = Shape(image=(3, 32, 32), patch=8, dim=24, depth=1, heads=1, hidden=40, outputs=10)
    graph = build("dense", shape)
    images = {"image": smooth_images(shape.image, 2, 1) / np.float32(255)}
    config = CONFIGS["tiny"]  # 4 x 8 x 4
    program = compile_graphs({"main": graph}, config, {"main": images}).program
    task = program.tasks[0]
    instructions = program.instructions(task)
    embedding = 4 * 3 * (192 // 4)  # 16 patches
    projections = 5 * (9 + 3) * 6  # 17 tokens: Q, K and V, then the one behind attention
    attention = 5 * (3 * 6 + 3 * 5)
    mlp = 5 * (5 * 6 + 3 * 10)
    head = 2 * 6
    steps = embedding + projections + attention + mlp + head
    assert issued_steps(config, instructions, {}) == steps
    moved = {"weights": 64_000, "instructions": 640, "activations": 4_000, "experts": 0, "speculative": 2_000}
    limit = bound(config, task, instructions, {}, moved, 8.0)
    assert limit.compute == -(-graph.macs() // 128)
    assert limit.issued == steps
    assert limit.dram == (62_000 + 640 + 4_000) / 8
    assert limit.weight_ports < 62_000 // 16  # constants come through the other port
    assert (limit.by, limit.cycles) == ("dram", limit.dram)
    fast = bound(config, task, instructions, {}, dict.fromkeys(moved, 0) | {"activations": task.output_bytes}, 8.0)
    assert (fast.by, fast.cycles) == ("compute", fast.compute)


def check_work(work: Work) -> None:
    """What holds for every run."""
    assert work.result.bit_exact
    assert work.result.stages is not None
    limit = work.bound
    assert work.result.stages["mac"]["busy"] == limit.issued
    assert limit.compute <= limit.issued <= work.cycles
    assert limit.cycles == max(limit.compute, limit.dram, limit.weight_ports, limit.dma_port) <= work.cycles
    assert work.utilisation <= limit.compute / work.cycles
    answer = json.loads(json.dumps(work.as_dict()))
    peak = CONFIGS[answer["config"]].macs_per_cycle
    assert answer["mac_utilisation"] == pytest.approx(answer["macs"] / work.cycles / peak)
    assert answer["fps"] * answer["latency_ms"] == pytest.approx(1000)
    assert answer["bound_cycles"]["by"] in ("compute", "dram")


def test_small_workloads_on_the_rtl() -> None:
    said: list[str] = []
    verilate.build(CONFIGS["tiny"])  # which says so when it has to be done
    one, other = run([WORKLOAD, OTHER], ["rtl"], CONFIGS["tiny"], progress=said.append)
    for work in (one, other):
        check_work(work)
        (tokens,) = work.queues.values()
        assert sum(tokens) == 2 * SMALL.tokens
        assert work.as_dict()["experts_used"] == [sum(n > 0 for n in tokens)]
    assert one.result.macs - other.result.macs == SMALL.patches * SMALL.dim * 7
    assert one.reached is False
    assert other.reached is None
    assert [line.split(": ")[1].split()[0] for line in said] == ["making", "compiling", "running", "running"]
    assert dataclasses.replace(one, goal=Goal(one.cycles, 1, 0.0)).reached


# The command


def invoke(*arguments: str, check: int = 0) -> str:
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == check, result.output
    return result.stdout


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "WORKLOADS", {w.name: w for w in (WORKLOAD, OTHER)})
    works = json.loads(invoke("--json", "--only", "small", "--no-check"))["works"]
    assert [(w["name"], w["config"], w["backend"], w["bit_exact"]) for w in works] == [("small", "tiny", "rtl", None)]
    assert works[0]["target"] == {"cycles": 10, "stretch": 5, "mac_utilisation": 0.99, "reached": False}
    lines = invoke("--config", "tiny", "--only", "small-other,small", "--no-check").splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["small", "tiny", "rtl"], ["small-other", "tiny", "rtl"]]
    assert len(lines) == 4


def test_both_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "WORKLOADS", {"small": WORKLOAD})
    rtl, cycle = json.loads(invoke("--json", "--backend", "both"))["works"]
    assert (rtl["backend"], rtl["bit_exact"]) == ("rtl", True)
    assert (cycle["backend"], cycle["bit_exact"]) == ("cycle", None)  # it predicts cycles and computes no tensor
    assert cycle["queues"] == rtl["queues"]
    assert cycle["bound_cycles"]["issued"] == rtl["bound_cycles"]["issued"]
    assert 0.5 < cycle["cycles"] / rtl["cycles"] < 2  # how near it is has tests of its own


def test_the_table_marks_targets() -> None:
    (work,) = run([WORKLOAD], ["rtl"], check=False)
    missed = bench_cli._line(work)
    assert "10 no" in missed and "99 % no" in missed
    met = bench_cli._line(dataclasses.replace(work, goal=Goal(10**6, 5, 0.01)))
    assert "1,000,000 yes" in met and "1 % yes" in met and "5 no" in met
    assert not dataclasses.replace(work, goal=None).as_dict()["target"]


@pytest.mark.parametrize("only", ["nonsense", ",", "deit-ti,deit"])
def test_only_must_name_workloads(only: str) -> None:
    with pytest.raises(InputError, match="workload") as error:
        choose(only)
    assert "deit-ti" in str(error.value)


def test_choose_keeps_the_order() -> None:
    assert choose(None) == tuple(WORKLOADS.values())
    assert [w.name for w in choose("deit-s, deit-ti")] == ["deit-ti", "deit-s"]


def test_a_back_end_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moevit.sim.simulate.BACKENDS", tuple(b for b in BACKENDS if b != "cycle"))
    result = CliRunner().invoke(cli, ["bench", "--backend", "both"])
    assert result.exit_code == 2
    assert "'cycle'" in result.stderr


# The standing targets


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit-ti", "m3vit-tiny-depth", "m3vit-tiny-seg"])
def test_targets(name: str) -> None:
    (work,) = run(choose(name), ["rtl"])
    check_work(work)
    if name.startswith("m3vit"):
        assert work.as_dict()["experts_used"] == [16] * 6
    assert work.reached, f"{work.cycles:,} cycles, {work.utilisation:.3f} of the multipliers"
