"""A workload's graph as an ONNX file, in the forms in which torch exports such models (models/README.md)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from moevit.compiler import ir

OPSET, IR_VERSION = 20, 9


def to_onnx(graph: ir.Graph) -> onnx.ModelProto:
    """The model: inputs and outputs as the graph has them, with a batch of one.

    Raises
    ------
    TypeError : the graph has an operation that :func:`moevit.bench.vit.build` does not make
    """
    writer = _Writer(graph)
    for op in graph.ops:
        writer.add(op)
    return writer.model()


class _Writer:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        for output in self.graph.outputs:  # named by the graph, not by its last operation
            self.node("Identity", [output.tensor], output.name)
        graph = helper.make_graph(
            self.nodes, self.graph.name,
            [helper.make_tensor_value_info(i.name, TensorProto.FLOAT, [1, *i.model_shape]) for i in self.graph.inputs],
            [helper.make_tensor_value_info(o.name, TensorProto.FLOAT, [1, *o.model_shape]) for o in self.graph.outputs],
            self.constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model

    # -- nodes ---------------------------------------------------------------------------------------------------

    def node(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node named like its first output, which is returned."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, value: ArrayLike, dtype: type = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def ints(self, name: str, *values: int) -> str:
        return self.constant(name, values, np.int64)

    def reshape(self, x: str, name: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.ints(f"{name}.shape", *shape)], name)

    def product(self, x: str, name: str, weight: ArrayLike, bias: ArrayLike, output: str) -> str:
        """``x`` times ``weight`` plus ``bias``."""
        y = self.node("MatMul", [x, self.constant(f"{name}.weight", weight)], f"{name}.product")
        return self.node("Add", [y, self.constant(f"{name}.bias", bias)], output)

    # -- operations ----------------------------------------------------------------------------------------------

    def add(self, op: ir.Op) -> None:
        """Write one operation; tensors are [1, tokens, channels]."""
        n, out = op.name, op.output
        match op:
            case ir.PatchEmbed():
                self.patches(op)
            case ir.Assemble():
                placed = self.node("Add", [op.x, self.constant(f"{n}.pos", op.pos[None])], f"{n}.placed")
                self.node("Concat", [self.constant(f"{n}.prefix", op.prefix[None]), placed], out, axis=1)
            case ir.LayerNorm():
                scale = [self.constant(f"{n}.gamma", op.gamma), self.constant(f"{n}.beta", op.beta)]
                self.node("LayerNormalization", [op.x, *scale], out, axis=-1, epsilon=op.eps)
            case ir.Linear():
                self.product(op.x, n, op.weight.T, op.bias, out)
            case ir.Activation(kind="gelu"):
                self.node("Gelu", [op.x], out)
            case ir.Add():
                self.node("Add", [op.a, op.b], out)
            case ir.Rows():
                bounds = [self.ints(f"{n}.{what}", v) for what, v in
                          (("start", op.start), ("end", op.start + op.count), ("axis", 1))]  # fmt: skip
                self.node("Slice", [op.x, *bounds], out)
            case ir.Attention():
                self.attention(op)
            case ir.MoE(order="softmax_topk", threshold=0.0, activation="gelu"):
                self.experts(op)
            case _:
                raise TypeError(f"{type(op).__name__} {n} is none of a workload's operations")

    def patches(self, op: ir.PatchEmbed) -> None:
        """A convolution whose steps are its size."""
        (image,) = (i for i in self.graph.inputs if i.name == op.x)
        weight = op.weight.reshape(-1, image.shape[0], *op.patch)
        down, across = op.grid(image.shape)
        operands = [op.x, self.constant(f"{op.name}.weight", weight), self.constant(f"{op.name}.bias", op.bias)]
        x = self.node("Conv", operands, f"{op.name}.conv", strides=op.patch, kernel_shape=op.patch)
        x = self.reshape(x, f"{op.name}.flat", 1, len(weight), down * across)
        self.node("Transpose", [x], op.output, perm=[0, 2, 1])

    def attention(self, op: ir.Attention) -> None:
        """Heads as an axis, as torch's scaled_dot_product_attention is exported."""
        n, width = op.name, op.heads * op.head_dim
        heads = {}
        for part, x, perm in (("q", op.q, [0, 2, 1, 3]), ("k", op.k, [0, 2, 3, 1]), ("v", op.v, [0, 2, 1, 3])):
            x = self.reshape(x, f"{n}.{part}.split", 1, -1, op.heads, op.head_dim)
            heads[part] = self.node("Transpose", [x], f"{n}.{part}", perm=perm)
        scores = self.node("MatMul", [heads["q"], heads["k"]], f"{n}.scores")
        scores = self.node("Mul", [scores, self.constant(f"{n}.scale", op.scale)], f"{n}.scaled")
        weights = self.node("Softmax", [scores], f"{n}.softmax", axis=-1)
        x = self.node("MatMul", [weights, heads["v"]], f"{n}.context")
        x = self.node("Transpose", [x], f"{n}.joined", perm=[0, 2, 1, 3])
        self.nodes.append(
            helper.make_node("Reshape", [x, self.ints(f"{n}.shape", 1, -1, width)], [op.output], name=n)
        )

    def experts(self, op: ir.MoE) -> None:
        """Every expert for every token, weighted by what the top-k leaves of the scores."""
        n = op.name
        experts = len(op.up_weight)
        tokens = self.graph.tensors[op.x][0]
        logits = self.product(op.x, f"{n}.gate", op.gate_weight.T, op.gate_bias, f"{n}.logits")
        scores = self.node("Softmax", [logits], f"{n}.scores", axis=-1)
        self.node("TopK", [scores, self.ints(f"{n}.k", op.top_k)], f"{n}.best", f"{n}.chosen", axis=-1)
        zeros = self.constant(f"{n}.zeros", np.zeros((1, tokens, experts)))
        gate = self.node("ScatterElements", [zeros, f"{n}.chosen", f"{n}.best"], f"{n}.routed", axis=-1)
        gate = self.node("Transpose", [gate], f"{n}.by_expert", perm=[0, 2, 1])
        gate = self.node("Unsqueeze", [gate, self.ints(f"{n}.last", -1)], f"{n}.weights")
        x = self.node("Unsqueeze", [op.x, self.ints(f"{n}.first", 1)], f"{n}.tokens")
        up = op.up_weight.transpose(0, 2, 1), op.up_bias[:, None]
        down = op.down_weight.transpose(0, 2, 1), op.down_bias[:, None]
        x = self.product(x, f"{n}.up", *up, f"{n}.hidden")
        x = self.node("Gelu", [x], f"{n}.gelu")
        x = self.product(x, f"{n}.down", *down, f"{n}.each")
        x = self.node("Mul", [x, gate], f"{n}.weighted")
        self.node("ReduceSum", [x, self.ints(f"{n}.axis", 1)], op.output, keepdims=0)
