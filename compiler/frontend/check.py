"""Comparing the graph with onnxruntime on random inputs, so that a misread model is never silent."""

from collections.abc import Mapping
from os import PathLike

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data

from moevit.compiler.interpret import outputs, run
from moevit.compiler.ir import Graph, Input, MoE
from moevit.errors import ModelError

TOLERANCE = 1e-3
TRIES_WITH_EXPERTS = 3


def random_input(entry: Input, n: int, seed: int) -> NDArray[np.generic]:
    """`n` random inputs of the model's shape and type."""
    rng = np.random.default_rng(seed)
    shape = (n, *entry.model_shape)
    if entry.dtype == "float32":
        return rng.standard_normal(shape, dtype=np.float32)
    return rng.integers(0, 255, shape, np.uint8, endpoint=True)


def run_onnxruntime(
    path: str | PathLike[str], feeds: dict[str, NDArray[np.generic]], model: onnx.ModelProto | None = None
) -> dict[str, NDArray[np.generic]]:
    """The model's outputs, image by image, `(B, ...)` by name; `model` is computed in the place of the file's."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        source = str(path) if model is None else model.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        images = len(next(iter(feeds.values())))
        wanted = {i.name for i in session.get_inputs()}
        rows = [
            session.run(None, {k: v[i : i + 1] for k, v in feeds.items() if k in wanted})
            for i in range(images)
        ]
    except Exception as error:  # onnxruntime's own exceptions have no common base
        text = " ".join(str(error).split())[:300]
        mend = "export it again" if model is not None else way_out(path)
        raise ModelError(f"onnxruntime cannot run it ({text})", where=str(path), mend=mend) from error
    names = [o.name for o in session.get_outputs()]
    return {name: np.stack([np.asarray(r[i]) for r in rows]) for i, name in enumerate(names)}


def way_out(path: str | PathLike[str]) -> str:
    """What to do about a file that onnxruntime cannot run: of external data it reads no shapes, onnx does."""
    try:
        bare = onnx.load(path, load_external_data=False)
        if any(uses_external_data(t) for t in bare.graph.initializer):
            data = onnx.load(path).SerializeToString()
            onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            return f"save it with its weights inside: onnx.save(onnx.load({str(path)!r}), other_path)"
    except Exception:  # then it is not that: neither library's exceptions have a common base
        pass
    return "export it again"


def check_against_onnxruntime(
    path: str | PathLike[str], graph: Graph, n: int = 2, seed: int = 0, model: onnx.ModelProto | None = None
) -> float:
    """Run random inputs through the graph's interpreter and through onnxruntime.

    Parameters
    ----------
    path : path
        The ONNX file the graph was made from.
    graph : Graph
    n : int
        How many inputs.
    seed : int
    model : ModelProto, optional
        What to compare with, where that is not the file itself.

    Returns
    -------
    float
        The largest difference, relative to the largest value of its output.

    Raises
    ------
    ModelError
        If onnxruntime cannot run the model, if an output is not finite, or if the difference is beyond `TOLERANCE`.
    """
    # Where two experts' scores are almost equal, rounding decides which of them a token goes to, so that a
    # correct graph may differ. It does not do so for inputs one after another; a wrong graph does.
    tries = TRIES_WITH_EXPERTS if any(isinstance(op, MoE) for op in graph) else 1
    for attempt in range(tries):
        try:
            return _compare(path, graph, n, seed + attempt * len(graph.inputs), model)
        except DiffersError as error:
            if attempt + 1 == tries:
                raise ModelError(
                    str(error),
                    where=str(path),
                    mend="this is a mistake of moevit's front end, or the model is not float32: please report it",
                ) from error
    raise AssertionError("there is at least one try")


class DiffersError(Exception):
    """One comparison failed."""


def _compare(
    path: str | PathLike[str], graph: Graph, n: int, seed: int, model: onnx.ModelProto | None
) -> float:
    feeds = {entry.name: random_input(entry, n, seed + i) for i, entry in enumerate(graph.inputs)}
    return compare(graph, feeds, run_onnxruntime(path, feeds, model), str(path))


def compare(
    graph: Graph, feeds: Mapping[str, NDArray[np.generic]], want: Mapping[str, NDArray[np.generic]], where: str
) -> float:
    """The largest difference of a graph's outputs from those that it should have.

    Raises `DiffersError`, or `ModelError` if what it should have is not finite.
    """
    got = outputs(graph, run(graph, feeds))
    worst = 0.0
    for output in graph.outputs:
        a, b = got[output.name], want[output.name].reshape(got[output.name].shape)
        if not np.isfinite(b).all():
            raise ModelError(
                f"output '{output.name}' is not finite on random inputs, as onnxruntime computes it",
                where=where,
                mend="train or export again: its weights are damaged or do not fit float32",
            )
        error = float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(b))), 1e-30)
        if not error <= TOLERANCE:
            raise DiffersError(
                f"output '{output.name}' as moevit reads the model differs from onnxruntime's by "
                f"{error:.2g} of its largest value"
            )
        worst = max(worst, error)
    return worst
