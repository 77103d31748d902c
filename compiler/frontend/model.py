"""Reading an ONNX file: everything about it that can be wrong is found here, with a way to mend it."""

from collections.abc import Mapping, Sequence
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from moevit.compiler.frontend.shapes import fix_shapes
from moevit.compiler.frontend.space import MAX_ELEMENTS
from moevit.errors import ModelError

MIN_OPSET = 11
_CONVERTED = 13  # operator sets before it have attributes where there are inputs since, and another Softmax
PIXEL_STEPS = 255
# Arrays of uint8 stand for 0 … 1 in steps of 1/255 wherever moevit is given inputs, so that a model that takes them as
# whole numbers has that factor in front.
_DTYPES = ("float32", "uint8")
_NUMBERS = "fiub"  # kinds of NumPy types
_SMALL_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int4", "uint4")


def read(path: str | PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None) -> onnx.ModelProto:
    """The model of a file, checked, its local functions inlined, its inputs of the given shapes.

    Raises
    ------
    ModelError
        If the file is missing, truncated or not valid ONNX, lacks its external data, or has an operator set
        or an input that cannot be read.
    InputError
        If an input cannot have the shape that is given for it.
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
    except (OSError, ValueError, MemoryError) as error:
        raise ModelError(f"it cannot be read ({_line(error)})", where=where) from error
    if not model.graph.node:
        raise ModelError(
            "this is not ONNX, or it is truncated: no nodes", where=where, mend="export it again"
        )
    _check_names(model.graph, where)
    if not model.graph.output:
        raise ModelError("it has no output", where=where, mend="export it again")
    _check_opset(model, where)
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        if opsets(model)[""] < _CONVERTED:
            model = onnx.version_converter.convert_version(model, _CONVERTED)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"this is not valid ONNX: {_line(error)}", where=where, mend="export it again"
        ) from error
    if shapes:
        fix_shapes(model, shapes, where)
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
    if prod(fixed) > MAX_ELEMENTS:
        raise ModelError(
            f"input '{name}' is {text}", where=where, mend=f"a tensor may have {MAX_ELEMENTS} elements"
        )
    return (1, *fixed), dtype


def constant(tensor: onnx.TensorProto, where: str) -> NDArray[Any]:
    """A stored tensor's values; raises `ModelError` if it is damaged or holds what no model computes with.

    Infinity stands in masks only, whose other values are 0.
    """
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # what a damaged tensor raises depends on the damage
        raise ModelError(
            f"constant '{tensor.name}' cannot be read ({_line(error)})", where=where, mend="export it again"
        ) from error
    if array.dtype.kind not in _NUMBERS and array.dtype.name not in _SMALL_FLOATS:
        raise ModelError(
            f"constant '{tensor.name}' is {array.dtype}", where=where, mend="a model's constants must be real numbers"
        )
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)) and not np.all((array == 0) | np.isneginf(array)):
        raise ModelError(
            f"constant '{tensor.name}' holds NaN or infinity", where=where, mend="train or export again"
        )
    return array


def _check_names(graph: onnx.GraphProto, where: str) -> None:
    """Names that are no UTF-8 come out of protobuf as bytes, or as an error that is about them."""
    try:
        names = [n for node in graph.node for n in (node.name, node.op_type, node.domain, *node.input, *node.output)]
        names += [entry.name for entries in (graph.input, graph.output, graph.initializer) for entry in entries]
        damaged = any(isinstance(n, bytes) for n in names)
    except UnicodeDecodeError:
        damaged = True
    if damaged:
        raise ModelError("this is not ONNX, or it is damaged: a name is not text", where=where, mend="export it again")


def _check_opset(model: onnx.ModelProto, where: str) -> None:
    version, newest = opsets(model).get("", 0), onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= version <= newest:
        raise ModelError(
            f"operator set {version} is not among {MIN_OPSET} to {newest}",
            where=where,
            mend=f"export it with opset 17 to {min(newest, 23)}"
            + ("" if version < MIN_OPSET else ", or install a newer onnx"),
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
