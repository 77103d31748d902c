"""Nodes of a model that is split anyway which turn out not to fit the machine when a program is made of them."""

from collections.abc import Sequence

import onnx

from moevit.compiler.partition.flow import owner_names
from moevit.errors import AllocationError, UnsupportedNode


def unfit(part: Sequence[onnx.NodeProto], error: AllocationError) -> dict[str, UnsupportedNode]:
    """The nodes of a part of the machine's that an error names, or else all of them, by name and with the reason."""
    named = [n for n in part if set(owner_names(n)) & set(error.nodes)]
    reason, way_out = f"it does not fit: {error.what}", error.mend or "use a larger configuration"
    return {
        n.name: UnsupportedNode(name=n.name, op=n.op_type, reason=reason, way_out=way_out) for n in named or part
    }
