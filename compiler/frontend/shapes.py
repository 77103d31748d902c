"""Fixed extents for a model that was exported with dynamic ones."""

from collections.abc import Mapping, Sequence

import onnx

from moevit.errors import InputError


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Give inputs fixed shapes, in place; extents of the same name get the same value everywhere.

    Parameters
    ----------
    model : onnx.ModelProto
    shapes : by input, all extents, the batch with them
    where : the file, for messages

    Raises
    ------
    InputError
        If there is no such input, or the model has another shape.
    """
    known = {i.name for i in model.graph.initializer}
    entries = {e.name: e for e in model.graph.input if e.name not in known}
    values: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in entries:
            raise InputError(
                f"there is no input '{name}' to give a shape", where=where, mend=f"its inputs are {', '.join(entries)}"
            )
        dims = entries[name].type.tensor_type.shape.dim
        stated = "x".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
        if len(dims) != len(shape) or any(n < 1 for n in shape):
            raise InputError(
                f"input '{name}' cannot be {_by(shape)}: in the model it is {stated}", where=where,
                mend="give every extent, the batch of 1 with them",
            )  # fmt: skip
        for dim, extent in zip(dims, shape, strict=True):
            before = dim.dim_value if dim.HasField("dim_value") else values.setdefault(dim.dim_param or "", extent)
            if before != extent and (dim.dim_param or dim.HasField("dim_value")):
                raise InputError(
                    f"input '{name}' cannot be {_by(shape)}: in the model it is {stated}", where=where,
                    mend="change only the extents that have a name there",
                )  # fmt: skip
            dim.dim_value = extent
    for entry in (*model.graph.input, *model.graph.output):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in values:
                dim.dim_value = values[dim.dim_param]
    del model.graph.value_info[:]  # what was inferred for any extents


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
