"""The model of a recipe, node by node as exporters write it."""

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from fuzz.recipe import Recipe

PATCH = 4


def build(recipe: Recipe) -> onnx.ModelProto:
    """Write the model; weights are random."""
    return _Encoder(recipe).model()


class _Encoder:
    def __init__(self, r: Recipe) -> None:
        self.r = r
        self.rng = np.random.default_rng(r.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def model(self) -> onnx.ModelProto:
        r = self.r
        shape = [1, r.channels, PATCH * r.height, PATCH * r.width]
        x = self.embed("image")
        for _ in range(r.blocks):
            x = self.block(x)
        y = self.head(x)
        graph = helper.make_graph(
            self.nodes, "encoder", [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, self.output_shape())], self.initializers,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", r.opset)], ir_version=8)

    def output_shape(self) -> list[int]:
        r = self.r
        return {
            "class": [1, 7], "mean": [1, 7], "tokens": [1, r.tokens, 7], "features": [1, r.tokens, r.dim],
            "map": [1, 5, r.height, r.width],
        }[r.end]  # fmt: skip

    # -- the writer --------------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Add a node; returns its output, or the first of several, whose names end in a number."""
        self.count += 1
        names = [f"t{self.count}" if outputs == 1 else f"t{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{self.count}", **attributes))
        return names[0]

    def const(self, value: ArrayLike, dtype: type = np.float32) -> str:
        """A constant, stored in the recipe's way."""
        self.count += 1
        name, tensor = f"c{self.count}", numpy_helper.from_array(np.asarray(value, dtype), f"c{self.count}")
        if self.r.constants == "nodes":
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"Constant_{self.count}", value=tensor))
            return name
        self.initializers.append(tensor)
        return self.op("Identity", name) if self.r.constants == "identity" else name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def random(self, *shape: int, scale: float = 1.0) -> str:
        return self.const(self.rng.standard_normal(shape) * scale)

    def reduce_mean(self, x: str, axis: int, keep: bool) -> str:
        """Its axes were an attribute before opset 18."""
        if self.r.opset < 18:
            return self.op("ReduceMean", x, axes=[axis], keepdims=int(keep))
        return self.op("ReduceMean", x, self.ints(axis), keepdims=int(keep))

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.ints(*shape))

    def slice(self, x: str, axis: int, first: int, end: int) -> str:
        return self.op("Slice", x, self.ints(first), self.ints(end), self.ints(axis))

    # -- layers ------------------------------------------------------------------------------------------------

    def linear(self, x: str, inputs: int, outputs: int, tokens: int = 0) -> str:
        """`(1, tokens, inputs)` to `(1, tokens, outputs)`; as Gemm on `(tokens, inputs)` where tokens are given."""
        weight = self.rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
        bias = self.random(outputs, scale=0.3) if self.r.bias else ""
        if self.r.linear == "gemm" and tokens:
            flat = self.reshape(x, -1, inputs)
            y = self.op("Gemm", flat, self.const(weight.T), *([bias] if bias else []), transB=1)
            return self.reshape(y, 1, tokens, outputs)
        matrix = self.const(weight)
        if self.r.linear == "transposed":
            matrix = self.op("Transpose", self.const(weight.T), perm=[1, 0])
        y = self.op("MatMul", x, matrix)
        return self.op("Add", y, bias) if bias else y

    def norm(self, x: str) -> str:
        """LayerNorm as one node, or spelled with Pow or with Mul; or RMS normalisation."""
        dim, form, eps = self.r.dim, self.r.norm_form, self.r.eps
        if form.startswith("rms"):
            return self.rms_norm(x)
        gamma, beta = self.const(1 + 0.2 * self.rng.standard_normal(dim)), self.random(dim, scale=0.2)
        if form == "node":
            return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=eps)
        centred = self.op("Sub", x, self.reduce_mean(x, -1, True))
        square = self.op("Pow", centred, self.const(2.0)) if form == "pow" else self.op("Mul", centred, centred)
        variance = self.op("Add", self.reduce_mean(square, -1, True), self.const(eps))
        if form == "pow":
            normal = self.op("Div", centred, self.op("Sqrt", variance))
        else:
            normal = self.op("Mul", centred, self.op("Reciprocal", self.op("Sqrt", variance)))
        return self.op("Add", self.op("Mul", normal, gamma), beta)

    def rms_norm(self, x: str) -> str:
        gamma = self.const(1 + 0.2 * self.rng.standard_normal(self.r.dim))
        if self.r.norm_form == "rms_node":
            return self.op("RMSNormalization", x, gamma, axis=-1, epsilon=self.r.eps)
        square = self.op("Add", self.reduce_mean(self.op("Mul", x, x), -1, True), self.const(self.r.eps))
        return self.op("Mul", self.op("Div", x, self.op("Sqrt", square)), gamma)

    def activation(self, x: str) -> str:
        kind = self.r.activation
        if kind == "relu":
            return self.op("Relu", x)
        if kind == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if self.r.activation_form == "node":
            return self.op("Gelu", x, approximate="none" if kind == "gelu" else "tanh")
        if kind == "gelu":
            erf = self.op("Erf", self.op("Div", x, self.const(np.sqrt(2))))
            return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.const(1.0))), self.const(0.5))
        cubic = self.op("Mul", self.op("Pow", x, self.const(3.0)), self.const(0.044715))
        inner = self.op("Tanh", self.op("Mul", self.op("Add", x, cubic), self.const(np.sqrt(2 / np.pi))))
        return self.op("Mul", self.op("Mul", x, self.const(0.5)), self.op("Add", inner, self.const(1.0)))

    # -- parts -------------------------------------------------------------------------------------------------

    def embed(self, image: str) -> str:
        """Patches projected, by Conv, by Reshape and Transpose, or by SpaceToDepth; class token and positions."""
        r = self.r
        count, size = r.height * r.width, r.channels * PATCH**2
        if r.embed == "conv":
            weight = self.random(r.dim, r.channels, PATCH, PATCH, scale=2 / np.sqrt(size))
            x = self.op("Conv", image, weight, self.random(r.dim, scale=0.2), strides=[PATCH] * 2)
            x = self.op("Transpose", self.reshape(x, 1, r.dim, count), perm=[0, 2, 1])
        else:
            if r.embed == "reshape":
                cut = self.reshape(image, 1, r.channels, r.height, PATCH, r.width, PATCH)
                x = self.op("Transpose", cut, perm=[0, 2, 4, 3, 5, 1])
            else:
                x = self.op("Transpose", self.op("SpaceToDepth", image, blocksize=PATCH), perm=[0, 2, 3, 1])
            x = self.linear(self.reshape(x, 1, count, size), size, r.dim, count)
        if r.class_token:
            x = self.op("Concat", self.random(1, 1, r.dim), x, axis=1)
        return self.op("Add", x, self.random(1, r.tokens, r.dim, scale=0.5)) if r.position else x

    def block(self, x: str) -> str:
        if self.r.norm == "pre":
            x = self.residual(x, self.attention(self.norm(x)))
            return self.residual(x, self.mlp(self.norm(x)))
        x = self.norm(self.residual(x, self.attention(x)))
        return self.norm(self.residual(x, self.mlp(x)))

    def residual(self, x: str, y: str) -> str:
        if self.r.layer_scale:
            y = self.op("Mul", y, self.random(self.r.dim, scale=0.6))
        return self.op("Add", x, y)

    def attention(self, x: str) -> str:
        r = self.r
        inner = r.heads * r.head_dim
        q, k, v = self.heads_of(x, inner)  # (1, heads, tokens, head_dim)
        scale = r.head_dim**-0.5
        if r.foreign == "rotary":
            q, k = (self.op("Mul", t, self.random(r.tokens, r.head_dim)) for t in (q, k))
        if r.foreign == "windows":
            q, k, v = (self.windows(t, r.tokens // 2) for t in (q, k, v))
        if r.attention == "node":
            y = self.op("Attention", q, k, v)
        else:
            y = self.weighted(q, k, v, scale)
        if r.foreign == "windows":
            y = self.windows(y, 1)
        y = self.reshape(self.op("Transpose", y, perm=[0, 2, 1, 3]), 1, r.tokens, inner)
        return self.linear(y, inner, r.dim, r.tokens)

    def windows(self, x: str, count: int) -> str:
        """Every second token a window of its own, among the heads, `(1, heads * count, -1, head_dim)`, or back."""
        r = self.r
        if r.tokens % 2:
            return x
        if count == 1:
            x = self.reshape(x, 1, r.heads, r.tokens // 2, 2, r.head_dim)
            return self.reshape(self.op("Transpose", x, perm=[0, 1, 3, 2, 4]), 1, r.heads, r.tokens, r.head_dim)
        x = self.op("Transpose", self.reshape(x, 1, r.heads, 2, count, r.head_dim), perm=[0, 1, 3, 2, 4])
        return self.reshape(x, 1, r.heads * count, 2, r.head_dim)

    def weighted(self, q: str, k: str, v: str, scale: float) -> str:
        """`softmax(q @ k.T * scale + mask) @ v`, with the scale where the recipe wants it."""
        form = self.r.attention
        if form == "scale_query":
            q = self.op("Mul", q, self.const(scale))
        if form == "both":
            q, k = (self.op("Mul", t, self.const(scale**0.5)) for t in (q, k))
        if form == "einsum":
            scores = self.op("Einsum", q, k, equation="bhid,bhjd->bhij")
        else:
            scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        if form in ("scale_after", "einsum"):
            scores = self.op("Mul", scores, self.const(scale))
        if form == "divide":
            scores = self.op("Div", scores, self.const(1 / scale))
        if self.r.mask != "none" and self.r.foreign != "windows":
            scores = self.op("Add", scores, self.mask())
        if self.r.foreign == "bias":
            scores = self.op("Add", scores, self.random(1, self.r.heads, self.r.tokens, self.r.tokens))
        p = self.op("Softmax", scores, axis=-1)
        return self.op("Einsum", p, v, equation="bhij,bhjd->bhid") if form == "einsum" else self.op("MatMul", p, v)

    def mask(self) -> str:
        """Of zeros, or one that hides the last token from all."""
        mask = np.zeros((1, 1, 1, self.r.tokens))
        if self.r.mask == "keys":
            mask[..., -1] = -1e4
        return self.const(mask)

    def heads_of(self, x: str, inner: int) -> list[str]:
        """q, k and v from one matrix or three."""
        r = self.r
        if r.qkv == "separate":
            parts = [self.linear(x, r.dim, inner, r.tokens) for _ in range(3)]
        else:
            whole = self.linear(x, r.dim, 3 * inner, r.tokens)
            if r.qkv == "unbind":
                shaped = self.reshape(whole, 1, r.tokens, 3, r.heads, r.head_dim)
                turned = self.op("Transpose", shaped, perm=[2, 0, 3, 1, 4])
                return [self.op("Gather", turned, self.const(i, np.int64), axis=0) for i in range(3)]
            if r.qkv == "split":
                first = self.op("Split", whole, self.ints(inner, inner, inner), outputs=3, axis=-1)
                parts = [first[:-1] + str(i) for i in range(3)]
            else:
                parts = [self.slice(whole, 2, i * inner, (i + 1) * inner) for i in range(3)]
        shaped = [self.reshape(p, 1, r.tokens, r.heads, r.head_dim) for p in parts]
        return [self.op("Transpose", s, perm=[0, 2, 1, 3]) for s in shaped]

    def mlp(self, x: str) -> str:
        r = self.r
        if r.experts:
            return self.mixture(x)
        hidden = self.activation(self.linear(x, r.dim, r.hidden, r.tokens))
        if r.foreign == "gate":
            hidden = self.op("Mul", hidden, self.linear(x, r.dim, r.hidden, r.tokens))
        return self.linear(hidden, r.hidden, r.dim, r.tokens)

    def mixture(self, x: str) -> str:
        """Every expert computed for every token, and weighted with its score, which is 0 unless it was chosen."""
        r = self.r
        weight = self.const(self.rng.standard_normal((r.dim, r.experts)) * 1.5)
        scores = self.op("Softmax", self.op("MatMul", x, weight), axis=-1)
        best = self.op("TopK", scores, self.ints(r.top_k), outputs=2, axis=-1)
        zeros = self.const(np.zeros((1, r.tokens, r.experts)))
        sparse = self.op("ScatterElements", zeros, f"{best[:-1]}1", best, axis=-1)
        total = ""
        for expert in range(r.experts):
            hidden = self.activation(self.linear(x, r.dim, r.hidden, r.tokens))
            y = self.linear(hidden, r.hidden, r.dim, r.tokens)
            y = self.op("Mul", y, self.slice(sparse, 2, expert, expert + 1))
            total = self.op("Add", total, y) if total else y
        return total

    def head(self, x: str) -> str:
        """Class scores of the class token or of the mean, of every token, as a map, or the features themselves."""
        r = self.r
        if r.end == "features":
            return self.norm(x)
        if r.end == "map":
            first = self.slice(x, 1, int(r.class_token), r.tokens)
            y = self.linear(self.norm(first), r.dim, 5)
            return self.reshape(self.op("Transpose", y, perm=[0, 2, 1]), 1, 5, r.height, r.width)
        x = self.norm(x)
        if r.end == "class":
            return self.linear(self.op("Gather", x, self.const(0, np.int64), axis=1), r.dim, 7)
        if r.end == "mean":
            return self.linear(self.reduce_mean(x, 1, False), r.dim, 7)
        return self.linear(x, r.dim, 7, r.tokens)
