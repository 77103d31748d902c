"""Reading an ONNX file: everything about it that can be wrong is found here, with a way to mend it."""

from os import PathLike
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper

from moevit.errors import ModelError

MIN_OPSET = 13
_DTYPES = ("float32", "uint8", "int8")


def read(path: str | PathLike[str]) -> onnx.ModelProto:
    """The model of a file, checked, its local functions inlined.

    Raises
    ------
    ModelError
        If the file is missing, truncated or not valid ONNX, lacks its external data, or has an operator set
        or an input that cannot be read.
    """
    where = str(path)
    if not Path(path).is_file():
        raise ModelError("there is no such file", where=where)
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise ModelError(
            "this is not ONNX, or it is truncated", where=where, mend="export it again"
        ) from error
    except (FileNotFoundError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"its external data cannot be read ({_line(error)})",
            where=where,
            mend="keep the data file beside the model, or export with the weights inside",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"it cannot be read ({_line(error)})", where=where) from error
    if not model.graph.node:
        raise ModelError(
            "this is not ONNX, or it is truncated: no nodes", where=where, mend="export it again"
        )
    _check_opset(model, where)
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"this is not valid ONNX: {_line(error)}", where=where, mend="export it again"
        ) from error
    return model


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """The versions of the operator sets, by domain."""
    return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}


def input_shape(entry: onnx.ValueInfoProto, where: str) -> tuple[tuple[int, ...], str]:
    """An input's shape with its batch set to 1, and its type; raises `ModelError`."""
    tensor = entry.type.tensor_type
    name = entry.name
    if not entry.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ModelError(f"input '{name}' has no shape", where=where, mend="export it with fixed extents")
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    text = "x".join(map(str, dims))
    if len(dims) < 2:
        raise ModelError(
            f"input '{name}' is {text or 'a scalar'}",
            where=where,
            mend="export it with a batch as its first extent",
        )
    if dims[0] != 1 and isinstance(dims[0], int):
        raise ModelError(
            f"input '{name}' is {text}, a batch of {dims[0]}",
            where=where,
            mend="export with batch 1 or a dynamic batch",
        )
    fixed = [d for d in dims[1:] if isinstance(d, int) and d > 0]
    if len(fixed) != len(dims) - 1:
        raise ModelError(
            f"input '{name}' is {text}: only the batch may be dynamic",
            where=where,
            mend="export with fixed extents, or set them with onnxruntime.tools.make_dynamic_shape_fixed",
        )
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except KeyError:
        dtype = "untyped"
    if dtype not in _DTYPES:
        raise ModelError(
            f"input '{name}' is {dtype}", where=where, mend=f"export it with {' or '.join(_DTYPES)}"
        )
    return (1, *fixed), dtype


def _check_opset(model: onnx.ModelProto, where: str) -> None:
    version, newest = opsets(model).get("", 0), onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= version <= newest:
        raise ModelError(
            f"operator set {version} is not among {MIN_OPSET} to {newest}",
            where=where,
            mend="export it with opset 17 to 20"
            + ("" if version < MIN_OPSET else ", or install a newer onnx"),
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
