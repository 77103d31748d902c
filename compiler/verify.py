"""The rules a graph keeps, checked between passes, so that a wrong pass is named and not its victim."""

import numpy as np

from moevit.compiler.ir import Graph, Op, Pass, Shape, ShapeError


class GraphError(RuntimeError):
    """A pass made a graph that breaks a rule: a mistake in the compiler, not in the model."""


def _fail(stage: str, op: Op | None, message: str) -> None:
    place = "" if op is None else f" at {type(op).__name__} '{op.name}'"
    raise GraphError(f"after {stage}{place}: {message}")


def verify(graph: Graph, stage: str = "construction") -> Graph:
    """Return the graph if it keeps every rule.

    The rules: names of tensors and of operations are unique; every operand is defined before; shapes agree;
    constants are finite float32; every output exists; nothing is dead.

    Parameters
    ----------
    graph : Graph
    stage : str
        The pass that made it, for the message.

    Raises
    ------
    GraphError
        Naming the pass and the operation.
    """
    shapes: dict[str, Shape] = {}
    for entry in graph.inputs:
        if entry.name in shapes:
            _fail(stage, None, f"two inputs are named '{entry.name}'")
        if np.prod(entry.shape) != np.prod(entry.model_shape):
            _fail(
                stage,
                None,
                f"input '{entry.name}' is {entry.shape} here and {entry.model_shape} in the model",
            )
        shapes[entry.name] = entry.shape
    seen: set[str] = set()
    for op in graph.ops:
        if op.name in seen:
            _fail(stage, op, "another operation has its name")
        seen.add(op.name)
        for operand in op.inputs:
            if operand not in shapes:
                _fail(stage, op, f"reads '{operand}', which nothing before it defines")
        if op.output in shapes:
            _fail(stage, op, f"defines '{op.output}' a second time")
        for name, value in op.constants().items():
            if value.dtype != np.float32:
                _fail(stage, op, f"constant '{name}' is {value.dtype}, not float32")
            if not np.isfinite(value).all():
                _fail(stage, op, f"constant '{name}' is not finite")
        try:
            shapes[op.output] = op.infer(*(shapes[i] for i in op.inputs))
        except ShapeError as error:
            _fail(stage, op, str(error))
    _check_outputs(graph, stage, shapes)
    return graph


def _check_outputs(graph: Graph, stage: str, shapes: dict[str, Shape]) -> None:
    if not graph.outputs:
        _fail(stage, None, "the graph has no output")
    for output in graph.outputs:
        if output.tensor not in shapes:
            _fail(stage, None, f"output '{output.name}' is tensor '{output.tensor}', which nothing defines")
        have, want = int(np.prod(shapes[output.tensor])), int(np.prod(output.model_shape))
        if output.order is None and have != want:
            _fail(stage, None, f"output '{output.name}' has {want} values, its tensor {have}")
        if output.order is not None and (
            output.order.shape != (want,) or output.order.min() < 0 or output.order.max() >= have
        ):
            _fail(stage, None, f"output '{output.name}' has an order that does not fit its tensor")
    alive = {output.tensor for output in graph.outputs}
    for op in reversed(graph.ops):
        if op.output not in alive:
            _fail(stage, op, f"nothing uses its output '{op.output}'")
        alive.update(op.inputs)


def run_passes(graph: Graph, passes: dict[str, Pass]) -> Graph:
    """Apply named passes in order, verifying after each."""
    for name, function in passes.items():
        graph = verify(function(graph), name)
    return graph
