"""onnxruntime on the float model, for what only a run of it can tell."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from moevit.errors import ModelError


def session_of(model: onnx.ModelProto, where: str, *, optimise: bool = True) -> onnxruntime.InferenceSession:
    """onnxruntime for a model; raises `ModelError`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise _cannot_run(error, where) from error


def run(
    session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Mapping[str, NDArray], where: str
) -> list[NDArray]:
    """Some outputs of a session for one image; raises `ModelError`."""
    try:
        return [np.asarray(a) for a in session.run(list(names), dict(feeds))]
    except Exception as error:
        raise _cannot_run(error, where) from error


def _cannot_run(error: Exception, where: str) -> ModelError:
    text = " ".join(str(error).split())[:300]
    return ModelError(f"onnxruntime cannot run it ({text})", where=where, mend="export it again")
