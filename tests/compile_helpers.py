"""Compiled fixtures for tests, each made once per process."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from moevit.compiler import ir
from moevit.compiler.driver import Compiled, compile_model
from moevit.config import CONFIGS
from moevit.program import Task

FIXTURES = Path(__file__).parent / "fixtures"
SHIPPED = Path(__file__).parents[1] / "models" / "fashion_vit"
ODD = FIXTURES / "dynamo20_odd37.onnx"  # 37 tokens, dim 72, 3 heads of 24
SMALL = FIXTURES / "dynamo18_chunk_manual.onnx"


def float_inputs(path: Path) -> dict[str, NDArray[np.float32]]:
    """The calibration inputs of a fixture or of the shipped model, [B, ...]."""
    if path.parent == SHIPPED:
        images = np.load(SHIPPED / "calib_images.npz")["images"][:64]
        return {"image": images[:, None].astype(np.float32) / 255}
    with np.load(path.with_suffix(".npz")) as data:
        return {name: data[name].astype(np.float32) for name in data.files}


@cache
def compiled(path: Path, config: str) -> Compiled:
    """A fixture compiled for a named configuration."""
    return compile_model({"main": path}, CONFIGS[config], lambda task, shapes: float_inputs(path))


def wide_residual(path: Path, target: Path) -> Path:
    """A fixture whose position embedding lifts one token so far that 16 bits do not hold the others beside it.

    In float it works: each token is normalised by itself. That token is not the class token, which is answered from.
    """
    model = onnx.load(path)
    (position,) = [i for i in model.graph.initializer if i.name.endswith(("pos_embed", "position_embeddings"))]
    values = numpy_helper.to_array(position).copy()
    values[0, 3] *= 1e6
    position.CopyFrom(numpy_helper.from_array(values, position.name))
    onnx.save(model, target)
    return target


def quantised_inputs(task: Task, values: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.uint8]]:
    """Model inputs as the machine takes them."""
    return {
        i.name: np.clip(np.round(values[i.name] / i.scale) + i.zero_point, 0, 255)
        .astype(np.uint8)
        .reshape(-1, *i.shape)
        for i in task.inputs
    }


def mixture(
    name: str, x: str, output: str, rng: np.random.Generator, *, width: int = 24, out: int | None = None,
    experts: int = 5, hidden: int = 20, top_k: int = 2, order: str = "softmax_topk", threshold: float = 0.0,
    activation: str = "gelu",
) -> ir.MoE:  # fmt: skip
    """A mixture of experts with random weights; those that are not the gate's depend on its name only."""
    out = width if out is None else out
    body = np.random.default_rng(list(name.encode()))

    def normal(source: np.random.Generator, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (source.normal(size=shape) * scale).astype(np.float32)

    return ir.MoE(
        name=name, x=x, output=output, source=(f"/{name}/MatMul",), order=order, top_k=top_k, threshold=threshold,
        activation=activation, gate_weight=normal(rng, experts, width), gate_bias=normal(rng, experts, scale=0.1),
        up_weight=normal(body, experts, hidden, width, scale=0.3), up_bias=normal(body, experts, hidden, scale=0.2),
        down_weight=normal(body, experts, out, hidden, scale=0.3), down_bias=normal(body, experts, out, scale=0.2),
    )  # fmt: skip


def norm(name: str, x: str, width: int = 24) -> ir.LayerNorm:
    """A LayerNorm whose parameters depend on its name only."""
    rng = np.random.default_rng(list(name.encode()))
    gamma, beta = (rng.normal(size=width).astype(np.float32) * 0.2 for _ in range(2))
    return ir.LayerNorm(name=name, x=x, output=f"{name}.out", gamma=1 + gamma, beta=beta, eps=1e-6)


def mixture_graph(
    *, seed: int = 0, width: int = 24, form: str = "plain", image: int = 20, **moe: Any
) -> ir.Graph:
    """Patches of 4, then a mixture of experts, then a linear layer.

    ``form`` says how the mixture stands in the graph: ``plain`` (LayerNorm before, residual around), ``bare`` (only
    the mixture), ``shared`` (another layer reads the norm), ``later`` (the residual is read after it), ``narrow``
    (its input is 8-bit), ``two`` (one after the other), ``wide`` (its input is the residual stream itself).
    """
    rng = np.random.default_rng(seed)
    body = np.random.default_rng(99)

    def linear(name: str, x: str, d_out: int, d_in: int = width) -> ir.Linear:
        weight = body.normal(size=(d_out, d_in)).astype(np.float32) * 0.2
        bias = body.normal(size=d_out).astype(np.float32) * 0.2
        return ir.Linear(name=name, x=x, output=f"{name}.out", weight=weight, bias=bias)

    def layer(i: int, x: str) -> tuple[list[ir.Op], str]:
        before = norm(f"norm{i}", x, width)
        ops: list[ir.Op] = [before, mixture(f"moe{i}", before.output, f"moe{i}.out", rng, width=width, **moe)]
        return [*ops, ir.Add(name=f"add{i}", a=x, b=f"moe{i}.out", output=f"add{i}.out")], f"add{i}.out"

    tokens = (image // 4) ** 2
    weight = body.normal(size=(width, 16)).astype(np.float32)
    weight -= weight.mean(axis=1, keepdims=True)  # patches of noise become different tokens
    embed = ir.PatchEmbed(name="embed", x="image", output="embed.out", weight=weight, patch=(4, 4),
                          bias=np.zeros(width, np.float32))  # fmt: skip
    ops: list[ir.Op] = [embed]
    if form in ("plain", "shared", "later", "two"):
        layers, last = layer(0, "embed.out")
        ops += layers
        if form == "two":
            layers, last = layer(1, last)
            ops += layers
    elif form == "bare":
        ops += [norm("norm0", "embed.out", width)]
        ops += [mixture("moe0", "norm0.out", "moe0.out", rng, width=width, **moe)]
        last = "moe0.out"
    elif form == "narrow":
        ops += [norm("norm0", "embed.out", width), linear("narrow", "norm0.out", width)]
        ops += [mixture("moe0", "narrow.out", "moe0.out", rng, width=width, **moe)]
        ops += [ir.Add(name="add0", a="moe0.out", b="embed.out", output="add0.out")]
        last = "add0.out"
    elif form == "wide":
        ops += [mixture("moe0", "embed.out", "moe0.out", rng, width=width, **moe)]
        ops += [ir.Add(name="add0", a="moe0.out", b="embed.out", output="add0.out")]
        last = "add0.out"
    if form == "shared":
        side = linear("side", "norm0.out", width)
        ops += [side, ir.Add(name="add1", a=last, b=side.output, output="add1.out")]
        last = "add1.out"
    elif form == "later":
        ops += [norm("norm2", last, width), linear("side", "norm2.out", width)]
        ops += [ir.Add(name="add1", a="side.out", b="embed.out", output="add1.out")]
        last = "add1.out"
    ops += [norm("norm9", last, width), linear("head", "norm9.out", 6)]
    shape = (1, image, image)
    return ir.Graph(
        name="mixture", ops=tuple(ops), inputs=(ir.Input(name="image", shape=shape, model_shape=shape),),
        outputs=(ir.Output(name="head", tensor="head.out", model_shape=(tokens, 6)),),
    )  # fmt: skip


def pictures(graph: ir.Graph, count: int = 8, seed: int = 5) -> dict[str, NDArray[np.float32]]:
    """Random inputs of a graph: float32 [B, ...], in steps of 1/255."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (count, *graph.inputs[0].shape)) / 255
    return {graph.inputs[0].name: values.astype(np.float32)}
