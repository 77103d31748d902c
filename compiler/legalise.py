"""Bring a graph into the form that the pipeline computes, by linear layers that change nothing.

The pipeline adds a residual to, or applies an activation to, what a linear layer has just computed, and only there;
and what an attention leaves in memory has 8 bits, where a norm or an addition reads 16. Wherever a graph has such an
operation without the linear layer, it gets one whose matrix is the identity.
"""

from dataclasses import replace

import numpy as np

from moevit.compiler.frontend.rows import remove_dead
from moevit.compiler.ir import Activation, Add, Attention, Graph, Identity, LayerNorm, Linear, MoE, Op, Output, Rows


def legalise(graph: Graph) -> Graph:
    """The same function, with every addition, activation and attention where a stage can take it."""
    graph = _outputs_of_rows(graph)
    graph = _widen_attention(graph)
    return _give_linears(graph)


def _outputs_of_rows(graph: Graph) -> Graph:
    """Outputs that are some tokens of a tensor are taken out of all of it."""

    def whole(output: Output) -> Output:
        rows = graph.producer(output.tensor)
        if not isinstance(rows, Rows):
            return output
        size = int(np.prod(graph.tensors[rows.output]))
        order = np.arange(size) if output.order is None else output.order
        start = rows.start * graph.tensors[rows.x][1]
        return whole(replace(output, tensor=rows.x, order=order + start))

    return remove_dead(replace(graph, outputs=tuple(whole(o) for o in graph.outputs)))


def _widen_attention(graph: Graph) -> Graph:
    """What an attention gives to others than linear layers goes through the array once more, to 16 bits."""
    names: dict[str, str] = {}
    ops: list[Op] = []
    for op in graph:
        ops.append(op.renamed({k: v for k, v in names.items() if k != op.output}))
        if isinstance(op, Attention) and not _narrow_only(graph, op.output):
            ops.append(_identity(graph, op.output))
            names[op.output] = ops[-1].output
    outputs = tuple(replace(o, tensor=names.get(o.tensor, o.tensor)) for o in graph.outputs)
    return replace(graph, ops=tuple(ops), outputs=outputs)


def _narrow_only(graph: Graph, tensor: str) -> bool:
    """Whether all that reads a tensor takes it in 8 bits."""
    if any(o.tensor == tensor for o in graph.outputs):
        return False
    return all(
        isinstance(r, Linear | MoE) or (isinstance(r, Rows) and _narrow_only(graph, r.output))
        for r in graph.consumers(tensor)
    )


def _give_linears(graph: Graph) -> Graph:
    """Additions and activations that follow no linear layer of their own get one."""
    place = {op.output: i for i, op in enumerate(graph.ops)}
    outputs = {o.tensor for o in graph.outputs}

    def feeds(tensor: str, op: Op, kinds: tuple[type[Op], ...]) -> bool:
        """Whether an operation of some kind makes a tensor for `op` alone."""
        alone = graph.consumers(tensor) == (op,) and tensor not in outputs
        return alone and isinstance(graph.producer(tensor), kinds)

    def adds(op: Add, made: str, residual: str) -> bool:
        """Whether what makes one operand can add the other, which is in memory by then."""
        early = place.get(residual, -1) < place.get(made, -1)
        return early and not isinstance(graph.producer(residual), Rows) and feeds(made, op, (Linear, MoE))

    ops: list[Op] = []
    for op in graph:
        if isinstance(op, Activation) and not feeds(op.x, op, (Linear,)):
            ops.append(_identity(graph, op.x, op.name))
            ops.append(replace(op, x=ops[-1].output))
        elif isinstance(op, Add) and not adds(op, op.a, op.b) and not adds(op, op.b, op.a):
            made, residual = sorted(op.inputs, key=lambda t: _loss(graph, t))
            ops.append(_identity(graph, made, op.name))
            if isinstance(graph.producer(residual), Rows):  # a residual is read from its first row on
                ops.insert(-1, _identity(graph, residual, f"{op.name}.residual"))
                residual = ops[-2].output
            ops.append(replace(op, a=residual, b=ops[-1].output))
        else:
            ops.append(op)
    return graph.replaced(ops)


def _loss(graph: Graph, tensor: str) -> int:
    """How much of a tensor is lost in the array, which takes 8 bits: least of a norm, as it always is."""
    kinds = (LayerNorm, Attention, Activation, Rows)
    return next((i for i, kind in enumerate(kinds) if isinstance(graph.producer(tensor), kind)), len(kinds))


def _identity(graph: Graph, tensor: str, reader: str = "") -> Identity:
    """A linear layer that copies a tensor for a reader, or for all."""
    width = graph.tensors[tensor][1]
    name = f"{tensor}#{reader or 'wide'}"
    return Identity(
        name=name, x=tensor, output=name, weight=np.eye(width, dtype=np.float32), bias=np.zeros(width, np.float32)
    )
