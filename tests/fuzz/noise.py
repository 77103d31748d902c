"""How much accuracy integers cost a model, measured without moevit: what its own error is held against.

onnxruntime runs the model with every operand of every matrix product rounded to 8 bits, activations with one scale
a tensor and constants with one a channel. It does so with several roundings, since of a model that decides between
close things one of them may be lucky. The accelerator rounds more, its tables and results, for which `FACTOR` and
`result_step` allow. Nothing is allowed for a residual stream that 16 bits do not hold: the compiler refuses such a
model.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

FACTOR = 2.5
STRETCHES = (1.0, 1.13, 1.3)  #: of the scales, for several roundings
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "MoE"})

Feeds = dict[str, NDArray]
Steps = dict[str, float]  #: what tensors are rounded to multiples of


@dataclass(frozen=True)
class Answers:
    """What onnxruntime computes in float, `(B, *shape)` by output, and how far integers may be from it."""

    outputs: dict[str, NDArray[np.float32]]
    bounds: dict[str, float]


def answers(model: onnx.ModelProto, feeds: Feeds) -> Answers:
    """Run a model in float, and rounded, on inputs `(B, *shape)`.

    Raises
    ------
    Exception
        Whatever onnxruntime raises.
    """
    outputs = [o.name for o in model.graph.output]
    operands = _operands(model)
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in set(operands) - set(outputs))
    values = _run(probed, feeds)
    floats = {n: values[n] for n in outputs}
    bounds = {n: result_step(v) for n, v in floats.items()}
    for stretch in STRETCHES:
        narrow = {n: stretch * _peak(values[n]) / 127 for n in operands}
        steps = {n: step for n, step in narrow.items() if step > 0}
        rounded = _run(_with_rounding(model, steps), feeds)
        for n, v in floats.items():
            bounds[n] = max(bounds[n], FACTOR * relative_error(rounded[n], v) + result_step(v))
    return Answers(floats, bounds)


def relative_error(got: NDArray, want: NDArray) -> float:
    """The root mean square of the difference, relative to that of what is wanted."""
    difference = np.asarray(got, np.float64) - want
    return float(np.linalg.norm(difference) / max(np.linalg.norm(np.asarray(want, np.float64)), 1e-30))


def result_step(want: NDArray) -> float:
    """The relative error of a result that is itself 8 bits: one step, 1/127 of its peak."""
    peak, rms = float(np.max(np.abs(want), initial=0)), float(np.sqrt(np.mean(np.square(want, dtype=np.float64))))
    return peak / 127 / max(rms, 1e-30)


def _peak(values: NDArray) -> float:
    if values.dtype != np.float32:
        return 0.0
    return float(np.max(np.abs(values), initial=0))


def _operands(model: onnx.ModelProto) -> list[str]:
    """The computed operands of all products, each once."""
    constant = {i.name for i in model.graph.initializer} | {
        o for n in model.graph.node if n.op_type == "Constant" for o in n.output
    }
    used = [x for n in model.graph.node if n.op_type in PRODUCTS for x in n.input if x and x not in constant]
    return list(dict.fromkeys(used))


def _with_rounding(model: onnx.ModelProto, steps: Steps) -> onnx.ModelProto:
    """The model with tensors rounded to multiples of a step, and 8-bit constants in its products."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    rounded: dict[tuple[str, int], str] = {}
    inputs = {i.name for i in graph.input}
    nodes = [n for name in steps if name in inputs for n in _rounding(graph, name, steps[name])]
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            if name in steps and node.op_type in PRODUCTS:
                copy.input[i] = f"{name}/rounded"
            elif node.op_type in PRODUCTS and name in arrays and arrays[name].ndim > 1:
                key = name, _channels(node)
                if key not in rounded:
                    rounded[key] = f"{name}/rounded{len(rounded)}"
                    graph.initializer.append(numpy_helper.from_array(_rounded(arrays[name], key[1]), rounded[key]))
                copy.input[i] = rounded[key]
        nodes.append(copy)
        nodes += [n for name in node.output if name in steps for n in _rounding(graph, name, steps[name])]
    del graph.node[:]
    graph.node.extend(nodes)
    out.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return out


def _rounding(graph: onnx.GraphProto, name: str, step: float) -> list[onnx.NodeProto]:
    """Nodes that make `<name>/rounded`; onnxruntime's own operators are there at every opset."""
    scale, zero = f"{name}/step", f"{name}/zero"
    values = {scale: np.float32(step), zero: np.int8(0)}
    graph.initializer.extend(numpy_helper.from_array(value, n) for n, value in values.items())
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}/q"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", [f"{name}/q", scale, zero], [f"{name}/rounded"], domain="com.microsoft"),
    ]


def _channels(node: onnx.NodeProto) -> int:
    """The axis of a product's constant along which its outputs lie."""
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return {"Conv": 0, "ConvTranspose": 1, "MoE": -2}.get(node.op_type, -2 if turned else -1)


def _rounded(array: NDArray, axis: int) -> NDArray:
    if array.dtype != np.float32:
        return array
    others = tuple(a for a in range(array.ndim) if a != axis % array.ndim)
    scale = np.maximum(np.max(np.abs(array), axis=others, keepdims=True), 1e-30) / 127
    return (np.round(array / scale) * scale).astype(np.float32)


def _run(model: onnx.ModelProto, feeds: Feeds) -> dict[str, NDArray]:
    """Outputs by name, image by image as the models have a batch of one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    wanted = [i.name for i in session.get_inputs()]
    count = len(next(iter(feeds.values())))
    rows = [session.run(names, {n: feeds[n][i : i + 1] for n in wanted}) for i in range(count)]
    return {name: np.stack([np.asarray(r[k]) for r in rows]) for k, name in enumerate(names)}
