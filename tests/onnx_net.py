"""Small ONNX models written node by node, for tests of the front end."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moevit.compiler import ir
from moevit.compiler.frontend import load


class Net:
    """A model being written: each call adds a node and returns the name of its output."""

    def __init__(self, *shape: int | str, opset: int = 18, dtype: int = TensorProto.FLOAT):
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", dtype, shape)
        self.opset = opset

    def const(self, value: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def random(self, *shape: int) -> str:
        return self.const(self.rng.standard_normal(shape) * 0.5)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names[0]

    def split(self, x: str, axis: int, n: int) -> list[str]:
        first = self.op("Split", x, outputs=n, axis=axis, num_outputs=n)
        return [first[:-1] + str(i) for i in range(n)]

    def linear(self, x: str, inputs: int, outputs: int, bias: bool = True) -> str:
        y = self.op("MatMul", x, self.random(inputs, outputs))
        return self.op("Add", y, self.random(outputs)) if bias else y

    def save(self, path: Path, *outputs: str) -> Path:
        domains = {"": self.opset, "other": 1, "com.microsoft": 1}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        graph = helper.make_graph(self.nodes, "net", [self.input], [], self.constants)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
        known = {entry.name: entry for entry in inferred if entry.type.tensor_type.HasField("shape")}
        unknown = [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["?"]) for o in outputs]
        model.graph.output.extend(known.get(u.name, u) for u in unknown)
        onnx.save(model, path)
        return path

    def load(self, path: Path, *outputs: str) -> ir.Graph:
        return load(self.save(path / "net.onnx", *outputs))


def ops(graph: ir.Graph) -> list[str]:
    return [type(op).__name__ for op in graph]
