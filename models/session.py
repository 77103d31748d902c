"""ONNX models in onnxruntime, opened with errors that name the file."""

from pathlib import Path
from typing import Any

from moevit.errors import ModelError


def open_session(model: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU with `threads` threads; ModelError if the file is missing or no ONNX."""
    import onnxruntime

    if not model.is_file():
        raise ModelError("no such file", where=str(model))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ModelError(f"onnxruntime cannot load it: {str(error).splitlines()[0]}", where=str(model)) from error
