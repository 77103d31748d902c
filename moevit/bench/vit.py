"""Vision transformers of any shape as graphs, with seeded random weights; no torch, no ONNX file."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moevit.compiler import ir
from moevit.compiler.ir import Array


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of a pre-norm vision transformer with a class token.

    Parameters
    ----------
    image : channels, height, width
    patch : side of a patch
    dim, depth, heads : width of a token, blocks, attention heads of a block
    hidden : of the MLP in a block without experts
    outputs : of the last linear layer
    class_only : the last layer sees only the class token, as classifiers do; else all tokens but that one, as decoders
    moe_layers : blocks with experts, counted from 0
    experts, expert_hidden, top_k : of such a block
    """

    image: tuple[int, int, int]
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int
    outputs: int
    class_only: bool = True
    moe_layers: tuple[int, ...] = ()
    experts: int = 0
    expert_hidden: int = 0
    top_k: int = 2

    @property
    def patches(self) -> int:
        return (self.image[1] // self.patch) * (self.image[2] // self.patch)

    @property
    def tokens(self) -> int:
        return self.patches + 1


def build(name: str, shape: Shape, seed: int = 0) -> ir.Graph:
    """The graph that the front end makes of such a model's export.

    Weights depend on the seed and on what they are called, so two graphs of one shape share all but what differs in
    size. Gates are random here; see :mod:`moevit.bench.gates`.
    """
    ops = tuple(_ops(shape, seed))
    rows = 1 if shape.class_only else shape.patches
    return ir.Graph(
        name=name, ops=ops, inputs=(ir.Input(name="image", shape=shape.image, model_shape=shape.image),),
        outputs=(ir.Output(name="result", tensor=ops[-1].output, model_shape=(rows, shape.outputs)),),
    )  # fmt: skip


def _normal(seed: int, name: str, *size: int, scale: float) -> Array:
    """Normal random values that depend on the seed and the name."""
    rng = np.random.default_rng([seed, *name.encode()])
    return rng.normal(scale=scale, size=size).astype(np.float32)


def _linear(seed: int, name: str, x: str, outputs: int, inputs: int) -> ir.Linear:
    weight = _normal(seed, f"{name}.weight", outputs, inputs, scale=inputs**-0.5)
    bias = _normal(seed, f"{name}.bias", outputs, scale=0.1)
    return ir.Linear(name=name, x=x, output=name, weight=weight, bias=bias)


def _norm(seed: int, name: str, x: str, width: int) -> ir.LayerNorm:
    gamma = 1 + _normal(seed, f"{name}.gamma", width, scale=0.1)
    beta = _normal(seed, f"{name}.beta", width, scale=0.1)
    return ir.LayerNorm(name=name, x=x, output=name, gamma=gamma, beta=beta, eps=1e-6)


def _experts(seed: int, name: str, x: str, shape: Shape) -> ir.MoE:
    experts, hidden, dim = shape.experts, shape.expert_hidden, shape.dim
    return ir.MoE(
        name=name, x=x, output=name, order="softmax_topk", top_k=shape.top_k, threshold=0.0, activation="gelu",
        gate_weight=_normal(seed, f"{name}.gate", experts, dim, scale=dim**-0.5),
        gate_bias=np.zeros(experts, np.float32),
        up_weight=_normal(seed, f"{name}.up", experts, hidden, dim, scale=dim**-0.5),
        up_bias=_normal(seed, f"{name}.up.bias", experts, hidden, scale=0.1),
        down_weight=_normal(seed, f"{name}.down", experts, dim, hidden, scale=hidden**-0.5),
        down_bias=_normal(seed, f"{name}.down.bias", experts, dim, scale=0.1),
    )  # fmt: skip


def _ops(shape: Shape, seed: int) -> Iterator[ir.Op]:
    dim, (channels, _, _), p = shape.dim, shape.image, shape.patch
    inputs = channels * p * p
    yield ir.PatchEmbed(
        name="patches", x="image", output="patches", patch=(p, p),
        weight=_normal(seed, "patches.weight", dim, inputs, scale=2 * inputs**-0.5),
        bias=_normal(seed, "patches.bias", dim, scale=0.1),
    )  # fmt: skip
    x = "tokens"
    yield ir.Assemble(
        name=x, x="patches", output=x, prefix=_normal(seed, "class", 1, dim, scale=1.0),
        pos=_normal(seed, "position", shape.patches, dim, scale=1.0),
    )  # fmt: skip
    for layer in range(shape.depth):
        name = f"block{layer}"
        yield _norm(seed, f"{name}.norm1", x, dim)
        for part in "qkv":
            yield _linear(seed, f"{name}.{part}", f"{name}.norm1", dim, dim)
        head_dim = dim // shape.heads
        yield ir.Attention(
            name=f"{name}.attention", q=f"{name}.q", k=f"{name}.k", v=f"{name}.v", output=f"{name}.attention",
            heads=shape.heads, head_dim=head_dim, scale=head_dim**-0.5,
        )  # fmt: skip
        yield _linear(seed, f"{name}.proj", f"{name}.attention", dim, dim)
        yield ir.Add(name=f"{name}.add1", a=x, b=f"{name}.proj", output=f"{name}.add1")
        yield _norm(seed, f"{name}.norm2", f"{name}.add1", dim)
        if layer in shape.moe_layers:
            yield _experts(seed, f"{name}.mlp", f"{name}.norm2", shape)
        else:
            yield _linear(seed, f"{name}.up", f"{name}.norm2", shape.hidden, dim)
            yield ir.Activation(name=f"{name}.gelu", x=f"{name}.up", output=f"{name}.gelu", kind="gelu")
            yield _linear(seed, f"{name}.mlp", f"{name}.gelu", dim, shape.hidden)
        x = f"{name}.add2"
        yield ir.Add(name=x, a=f"{name}.add1", b=f"{name}.mlp", output=x)
    start, count = (0, 1) if shape.class_only else (1, shape.patches)
    yield ir.Rows(name="rows", x=x, output="rows", start=start, count=count)
    yield _norm(seed, "norm", "rows", dim)
    yield _linear(seed, "head", "norm", shape.outputs, dim)
