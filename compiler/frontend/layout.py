"""Operators that only rearrange elements: the node itself is run on the addresses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import Affine, Const, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer

# The inputs that hold the elements; all others must be constant.
DATA_INPUTS: dict[str, tuple[int, ...] | None] = {
    "Reshape": (0,),
    "Transpose": (0,),
    "Split": (0,),
    "Slice": (0,),
    "Gather": (0,),
    "GatherND": (0,),
    "GatherElements": (0,),
    "Squeeze": (0,),
    "Unsqueeze": (0,),
    "Flatten": (0,),
    "Expand": (0,),
    "Tile": (0,),
    "DepthToSpace": (0,),
    "SpaceToDepth": (0,),
    "Concat": None,  # all of them
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}


def rearrange(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Run a rearranging node on the addresses of its operands.

    Constants among the operands get addresses of their own; operands with different scales are given values
    of their own first, since a view has one scale.
    """
    which = DATA_INPUTS[node.op]
    data = range(len(inputs)) if which is None else which
    for i, value in enumerate(inputs):
        if isinstance(value, View) and i not in data:
            raise Unmapped(
                f"its input '{node.proto.input[i]}' depends on the data",
                "shapes and indices must be constants: export with fixed shapes",
            )
    if node.attribute("reduction", "none") != "none":
        raise Unmapped("it combines elements that go to one place", "scatter without a reduction")
    if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"):
        view = inputs[0]
        probe = np.broadcast_to(np.int8(0), view.shape)
        return [view.reshape(*node.evaluate([probe, *inputs[1:]])[0].shape)]
    if node.op == "Where" and inputs[0].all() | ~inputs[0].any():
        chosen = inputs[1 if inputs[0].all() else 2]
        shape = np.broadcast_shapes(*(v.shape for v in inputs))
        return [as_view(tracer, node, chosen).broadcast(shape)]
    views = {i: as_view(tracer, node, inputs[i]) for i in data}
    first, *rest = [views[i] for i in data if isinstance(inputs[i], View)]
    joined_constant = len(rest) + 1 < len(views)
    if any((v.mul, v.add) != (first.mul, first.add) for v in rest) or (
        joined_constant and (first.mul, first.add) != (1, 0)
    ):
        views = {i: fix_scale(tracer, node, v) for i, v in views.items()}
        first = first.plain()
    results = node.evaluate([views[i].idx if i in views else value for i, value in enumerate(inputs)])
    return [first.at(r) for r in results]


def as_view(tracer: "Tracer", node: Node, value: Any) -> View:
    """A view of constants, or the view that it already is."""
    if isinstance(value, View):
        return value
    array = np.asarray(value, dtype=np.float64)
    return tracer.space.add(Const(origin=node.origin, shape=array.shape, array=array.reshape(-1)))


def fix_scale(tracer: "Tracer", node: Node, view: View) -> View:
    """The same elements with scale 1 and offset 0."""
    if (view.mul, view.add) == (1, 0):
        return view
    return tracer.space.add(Affine(origin=node.origin, shape=view.shape, base=view, mul=None, add=None))


def pad_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Pad: unchanged where nothing is added, else joined with constants."""
    view, *rest = inputs
    if any(isinstance(r, View) for r in rest) or not rest:
        raise Unmapped("its padding depends on the data", "export with fixed shapes")
    if not np.any(rest[0]):
        return [view]
    view = fix_scale(tracer, node, view)
    value = np.zeros(()) if len(rest) < 2 or rest[1] is None else np.asarray(rest[1], dtype=np.float64)
    address = np.asarray(as_view(tracer, node, value.reshape(())).start, dtype=np.int64)
    names = [*node.proto.input, "", ""][:2] + ["value"] + list(node.proto.input)[3:]
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(names)
    (result,) = Node(proto, node.name, node.opsets).evaluate([view.idx, rest[0], address, *rest[2:]])
    return [view.at(result)]
