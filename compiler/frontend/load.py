"""From an ONNX file to a verified graph."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import onnx

from moevit.compiler.frontend import qdq
from moevit.compiler.frontend.check import check_against_onnxruntime
from moevit.compiler.frontend.given import with_formats
from moevit.compiler.frontend.lower import Lowering
from moevit.compiler.frontend.model import read
from moevit.compiler.frontend.rows import choose_rows_early, remove_dead
from moevit.compiler.frontend.space import Opaque, View
from moevit.compiler.frontend.trace import Tracer
from moevit.compiler.frontend.turn import turn_rms_norms
from moevit.compiler.ir import Graph, Op, Output
from moevit.compiler.verify import run_passes
from moevit.errors import ModelError, UnsupportedNode, UnsupportedOpError


def load(
    path: str | PathLike[str], *, check: bool = True, shapes: Mapping[str, Sequence[int]] | None = None
) -> Graph:
    """Read an ONNX model as a graph of the accelerator's operations.

    Parameters
    ----------
    path : path
        The file; float32, batch 1 or dynamic, all other extents fixed, there or by `shapes`.
    check : bool
        Compare the graph with onnxruntime on random inputs.
    shapes : mapping, optional
        Shapes of inputs, the batch with them, for a model with other dynamic extents.

    Returns
    -------
    Graph

    Raises
    ------
    ModelError
        If the file is missing, not valid ONNX, or of a form that cannot be read; or if the check fails.
    UnsupportedOpError
        If nodes that an output depends on cannot be mapped; it holds all of them.
    """
    model = qdq.strip(read(path, shapes))
    graph = lower(model.model, str(path), formats=model)
    if check:
        check_against_onnxruntime(path, graph, model=model.model if model.quantised else None)
    return graph


def lower(
    model: onnx.ModelProto, where: str, inner: Mapping[str, tuple[int, ...]] | None = None,
    formats: qdq.Stripped | None = None,
) -> Graph:  # fmt: skip
    """As :func:`load`, for a model that :func:`~moevit.compiler.frontend.model.read` has read, without the check.

    `inner` has the whole shapes of inputs that are tensors from inside a larger model. `formats` are those that the
    model states of its tensors, which it has no nodes for any more.
    """
    try:
        with _deep_recursion(), np.errstate(all="ignore"):
            graph = _build(Tracer(model, where, inner), where, formats)
    except RecursionError as error:
        raise ModelError("its nodes are nested too deeply", where=where) from error
    except MemoryError as error:
        raise ModelError("its tensors are too large", where=where) from error
    return run_passes(
        graph,
        {
            "remove_dead": remove_dead,
            "turn_rms_norms": turn_rms_norms,
            "choose_rows_early": choose_rows_early,
            "remove_dead again": remove_dead,
        },
    )


def _build(tracer: Tracer, where: str, formats: qdq.Stripped | None) -> Graph:
    lowering = Lowering(tracer.space)
    outputs: list[Output | None] = []
    for name, value in tracer.outputs.items():
        if isinstance(value, View):
            outputs.append(lowering.output(name, value))
        elif value is None:
            _note_unknown(lowering, tracer.unknown, name)
        else:
            raise ModelError(
                f"output '{name}' is constant ({np.asarray(value).size} values)",
                where=where,
                mend="remove this output",
            )
    problems = tuple(lowering.problems.values())
    if problems:
        raise UnsupportedOpError(problems, where=where)
    _check_finite(lowering.ops, where)
    ops, inputs = lowering.ops, lowering.inputs
    if formats is not None and formats.given:
        views = ((tracer.view(name), given) for name, given in formats.given.items())
        ops, inputs = with_formats(lowering, [(view, given) for view, given in views if view is not None])
    return Graph(
        name=Path(where).stem,
        inputs=tuple(inputs[s.name] for s in tracer.sources if s.name in inputs),
        outputs=tuple(o for o in outputs if o is not None),
        ops=tuple(ops),
        integer_weights=formats is not None and formats.weights,
    )


def _check_finite(ops: Iterable[Op], where: str) -> None:
    """Constants that are each finite may overflow where they are folded into one another."""
    for op in ops:
        for name, array in op.constants().items():
            if not np.isfinite(array).all():
                raise ModelError(
                    f"the {name} of '{', '.join(op.source)}' holds NaN, infinity, or what float32 cannot",
                    where=where,
                    mend="train or export again",
                )


def _note_unknown(lowering: Lowering, unknown: list[Opaque], output: str) -> None:
    """Nodes that cannot be mapped and hide what comes after them."""
    for value in unknown:
        name = value.origin.name
        lowering.problems[name] = UnsupportedNode(
            name=name, op=value.origin.op, reason=value.reason, way_out=value.way_out
        )
        for operand in value.operands:
            lowering.visit(operand)
    if not unknown:
        lowering.problems[output] = UnsupportedNode(
            name=output,
            op="Output",
            reason="no node of the model computes it",
            way_out="export the model again",
        )


@contextmanager
def _deep_recursion(limit: int = 20_000) -> Iterator[None]:
    """Lowering recurses along the longest path of the model, some ten calls per operation."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, limit))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
