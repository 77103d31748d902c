"""ONNX's own tests of its operators, as models that the front end may be given.

Such a test is one node, its inputs and what it makes of them; most are of shapes that no image has. So each is put
between two linear layers that change nothing, with a batch of one: `features`, flat, goes through the first, is given
the shape of the operand, and what the node makes of it goes flat through the second. Other operands are constants.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from moevit.compiler.frontend.trace import HANDLERS

PASSED_ON = frozenset({"Identity", "Cast", "CastLike", "Dropout", "If", "Shape", "Size", "IsNaN", "IsInf"})
LARGEST = 4096  #: elements of an operand


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its input `(1, ...)`, and the output that ONNX says it has."""

    name: str
    op: str
    model: onnx.ModelProto
    feed: NDArray[np.float32]
    want: NDArray[np.float32]


@cache
def cases() -> tuple[Case, ...]:
    """All tests of a single node whose operator the front end claims, each between two linear layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of them divide by zero to see what comes
        from onnx.backend.test.case.node import collect_testcases

        found = [t for t in collect_testcases("") if t.model is not None and len(t.model.graph.node) == 1]
    return tuple(case for t in sorted(found, key=lambda t: t.name) for case in _wrapped(t))


def _wrapped(test: object) -> Iterator[Case]:
    node: onnx.NodeProto = test.model.graph.node[0]  # type: ignore[attr-defined]
    if node.op_type not in set(HANDLERS) | PASSED_ON or node.domain:
        return
    inputs, outputs = test.data_sets[0]  # type: ignore[attr-defined]
    entries = test.model.graph.input  # type: ignore[attr-defined]
    arrays = dict(zip([e.name for e in entries], inputs, strict=False))
    numbers = [a for a in [*arrays.values(), outputs[0]] if not isinstance(a, np.ndarray)]
    if numbers or not node.input or node.input[0] not in arrays:
        return
    x, want = arrays[node.input[0]], outputs[0]
    usable = all(a.dtype == np.float32 and 0 < a.size <= LARGEST and np.isfinite(a).all() for a in (x, want))
    if not usable or len(set(node.input) & set(arrays)) != len([n for n in node.input if n]):
        return
    name = test.name  # type: ignore[attr-defined]
    imports = list(test.model.opset_import)  # type: ignore[attr-defined]
    yield Case(name, node.op_type, _model(node, arrays, want, imports), x.reshape(1, 1, -1), want.reshape(1, 1, -1))


def _model(
    node: onnx.NodeProto, arrays: dict[str, NDArray], want: NDArray, imports: list[onnx.OperatorSetIdProto]
) -> onnx.ModelProto:
    """The node between two linear layers that change nothing."""
    first, *others = (n for n in node.input if n)
    x = arrays[first]
    constants = {n: arrays[n] for n in others if n != first} | {
        "to_operand": np.array(x.shape, np.int64), "to_rows": np.array([1, 1, -1], np.int64),
        "identity_before": np.eye(x.size, dtype=np.float32), "identity_after": np.eye(want.size, dtype=np.float32),
    }  # fmt: skip
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.name = "tested"
    nodes = [
        helper.make_node("MatMul", ["features", "identity_before"], ["before"], name="before"),
        helper.make_node("Reshape", ["before", "to_operand"], [first], name="operand"),
        inner,
        helper.make_node("Reshape", [node.output[0], "to_rows"], ["rows"], name="rows"),
        helper.make_node("MatMul", ["rows", "identity_after"], ["answer"], name="after"),
    ]
    graph = helper.make_graph(
        nodes, "case",
        [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [1, 1, x.size])],
        [helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, [1, 1, want.size])],
        [numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), n) for n, a in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=imports, ir_version=10)
