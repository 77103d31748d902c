"""How much work a node of a model is."""

from math import prod

import onnx
from onnx import helper

from moevit.compiler.partition.flow import Flow


def node_macs(flow: Flow, node: onnx.NodeProto) -> int:
    """Multiply-accumulates of a node for one image; those of operators that are not ONNX's own, roughly."""
    if node.domain not in ("", "ai.onnx"):
        first = next((n for n in node.input if n), None)
        made = next(o for o in node.output if o)
        return prod(flow.shape(made)) * (max(flow.shape(first)[-1:], default=1) if first else 1)
    if node.op_type in ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"):
        shape = flow.shape(node.input[0])
        across = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(flow.shape(node.output[0])) * (shape[0] if across else shape[-1])
    if node.op_type in ("Conv", "ConvInteger"):
        return prod(flow.shape(node.output[0])) * prod(flow.shape(node.input[1])[1:])
    if node.op_type == "ConvTranspose":
        return prod(flow.shape(node.input[0])) * prod(flow.shape(node.input[1])[1:])
    if node.op_type == "Einsum":
        return _einsum_macs(flow, node)
    if node.op_type == "Attention":
        return 2 * prod(flow.shape(node.output[0])) * flow.shape(node.input[1])[-2]
    if node.op_type in ("LSTM", "GRU", "RNN"):
        steps = prod(flow.shape(node.input[0])[:2])
        return steps * sum(prod(flow.shape(n)) for n in node.input[1:3])
    return 0


def _einsum_macs(flow: Flow, node: onnx.NodeProto) -> int:
    equation = next(helper.get_attribute_value(a).decode() for a in node.attribute if a.name == "equation")
    extents: dict[str, int] = {}
    for term, name in zip(equation.replace(" ", "").split("->")[0].split(","), node.input, strict=True):
        if "..." not in term:
            extents |= dict(zip(term, flow.shape(name), strict=True))
    return prod(extents.values())
