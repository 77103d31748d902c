"""The host's part of a pipeline: an ONNX model from a container, checked and run by onnxruntime.

One thread and one image after the other: the same bytes on the same machine then give the same bytes, and the time is
that of one core.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.errors import ContainerError, InputError
from moevit.pipeline import HostPart, Value


def check_model(part: HostPart, data: bytes) -> None:
    """Check that an ONNX model from a container is what its entry says, and reads no other file.

    Raises
    ------
    ContainerError : it is not ONNX, has other inputs or outputs, or names files
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    where = f"host part {part.name!r}"
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ContainerError("its model is not ONNX", where=where) from error
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(model.graph)) or model.functions:
        raise ContainerError("its model is not complete in itself", where=where)
    for what, entries, want in (
        ("inputs", model.graph.input, part.inputs), ("outputs", model.graph.output, part.outputs),
    ):  # fmt: skip
        if [_value(entry) for entry in entries] != list(want):
            raise ContainerError(f"its model has other {what}", where=where)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every constant of an ONNX graph and of the graphs in it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _value(entry: Any) -> Value | None:
    """A ValueInfoProto of a tensor of fixed shape; None for any other."""
    import onnx

    tensor = entry.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except KeyError:
        return None
    return Value(entry.name, dtype, tuple(d.dim_value for d in tensor.shape.dim))


class HostModel:
    """A host part, ready to run.

    Members
    -------
    seconds : list of float
        What each image has taken.

    Raises
    ------
    ContainerError : onnxruntime does not take the model
    """

    def __init__(self, part: HostPart, data: bytes) -> None:
        import onnxruntime

        self.part = part
        self.seconds: list[float] = []
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ContainerError(
                f"onnxruntime does not take its model ({_line(error)})", where=f"host part {part.name!r}"
            ) from error

    def run(self, values: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Its outputs [B, *shape] for inputs [B, ...], by name; shapes are those of the ONNX model.

        Raises
        ------
        InputError : onnxruntime stopped, or an output is not finite
        """
        inputs, names = self.part.inputs, [y.name for y in self.part.outputs]
        count = len(next(iter(values.values())))
        rows = []
        for i in range(count):
            feeds = {x.name: np.ascontiguousarray(values[x.name][i].reshape(x.shape), x.dtype) for x in inputs}
            started = time.perf_counter()
            try:
                row = self._session.run(names, feeds)
            except Exception as error:
                raise InputError(
                    f"onnxruntime stopped at image {i} ({_line(error)})", where=f"host part {self.part.name!r}"
                ) from error
            self.seconds.append(time.perf_counter() - started)
            rows.append([self._checked(y, value, i) for y, value in zip(self.part.outputs, row, strict=True)])
        return {name: np.stack([row[n] for row in rows]) for n, name in enumerate(names)}

    def _checked(self, output: Value, value: Any, image: int) -> NDArray:
        where = f"host part {self.part.name!r}, output {output.name!r}"
        array = np.asarray(value)
        if array.shape != output.shape or array.dtype.name != output.dtype:
            raise ContainerError(f"has shape {array.shape} and type {array.dtype}", where=where)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"is not finite for image {image}", where=where)
        return array


def as_it_takes(session: Any, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Float inputs in the types of an onnxruntime session: pixels, which stand for 0 … 1, whole numbers for uint8."""
    types = {entry.name: entry.type for entry in session.get_inputs()}
    return {
        n: np.rint(x * np.float32(255)).clip(0, 255).astype(np.uint8) if types.get(n) == "tensor(uint8)" else x
        for n, x in inputs.items()
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
