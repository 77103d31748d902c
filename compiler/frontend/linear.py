"""Products with constant matrices: MatMul, Gemm, Conv over and into whole patches, batch normalisation."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.attention import product
from moevit.compiler.frontend.functions import with_constant
from moevit.compiler.frontend.layout import as_view
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.pointwise import with_view
from moevit.compiler.frontend.space import Floats, Projection, View
from moevit.errors import ModelError

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer


def project(tracer: "Tracer", node: Node, x: View, weight: Floats) -> View:
    """`x @ weight.T` for x `(rows, in)` and weight `(out, in)`."""
    if x.shape[1] != weight.shape[1]:
        raise ModelError(
            f"node '{node.name}' ({node.op}) has {x.shape[1]} channels and a matrix for {weight.shape[1]}",
            mend="export the model again",
        )
    x, rows = tracer.space.in_order(x) or (x, None)
    shape = (x.shape[0], weight.shape[0])
    out = tracer.space.add(Projection(origin=node.origin, shape=shape, x=x, weight=weight))
    return out if rows is None else out.at(out.idx[rows])


def matmul_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """MatMul of a computed tensor with a constant matrix, on either side, or with another."""
    a, b = inputs
    if isinstance(a, View) and isinstance(b, View):
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise Unmapped("a product with a vector", "export it as a product of matrices")
        return [product(tracer, node, a, b)]
    if isinstance(a, View):
        if len(a.shape) > 1 and prod(np.shape(b)[:-2]) > 1:
            return [stacked(tracer, node, a, np.asarray(b, np.float64))]
        weight = _matrix(b)
        if len(a.shape) == 1:
            a = a.reshape(1, -1)
        out = project(tracer, node, a.matrix(), weight.T)
        columns = () if np.ndim(b) == 1 else (weight.shape[1],)
        lead = inputs[0].shape[:-1]
        extra = (1,) * max(0, np.ndim(b) - len(inputs[0].shape))
        return [out.reshape(*extra, *lead, *columns)]
    if prod(np.shape(a)[:-2]) > 1 and prod(b.shape[:-2]) == prod(np.shape(a)[:-2]):  # queries that are learnt
        return [product(tracer, node, as_view(tracer, node, a), b)]
    weight = _matrix(a) if np.ndim(a) != 1 else np.asarray(a, np.float64)[None]
    x = b.reshape(-1, 1) if len(b.shape) == 1 else b
    axes = (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)
    turned = x.transpose(*axes)
    out = (
        project(tracer, node, turned.matrix(), weight)
        .reshape(*turned.shape[:-1], len(weight))
        .transpose(*axes)
    )
    return [
        out.reshape(
            *x.shape[:-2], *([] if np.ndim(a) == 1 else [len(weight)]), *b.shape[-1:][: len(b.shape) - 1]
        )
    ]


def stacked(tracer: "Tracer", node: Node, a: View, b: Floats) -> View:
    """`a @ b` for b `(..., in, out)` that is another matrix along one axis: a product for each, side by side."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    extents = (1,) * (len(lead) - b.ndim + 2) + b.shape[:-2]
    axes = [i for i, n in enumerate(extents) if n != 1]
    if len(axes) != 1:
        raise Unmapped(
            "a different constant matrix for each part of its input", "use one matrix for all tokens"
        )
    (axis,) = axes
    own = axis - len(lead) + len(a.shape) - 2  # the same axis of a, where it has it
    if own < 0 or a.shape[own] == 1:
        rows = [(a if own < 0 else a.take(own, 0)).matrix()] * lead[axis]
    else:
        rows = [tracer.space.cut(a, own, i).matrix() for i in range(lead[axis])]
    weights = b.reshape(lead[axis], *b.shape[-2:])
    parts = [project(tracer, node, x, w.T) for x, w in zip(rows, weights, strict=True)]
    whole = View((lead[axis], *lead[:axis], *lead[axis + 1 :], a.shape[-2], b.shape[-1]), parts[0].start)
    return whole.transpose(*range(1, axis + 1), 0, *range(axis + 1, len(whole.shape)))


def _matrix(array: Any) -> Floats:
    weight = np.asarray(array, dtype=np.float64)
    if weight.ndim == 1:
        return weight[:, None]
    if weight.ndim > 2 and any(n != 1 for n in weight.shape[:-2]):
        raise Unmapped(
            "a different constant matrix for each part of its input", "use one matrix for all tokens"
        )
    return weight.reshape(weight.shape[-2:])


def gemm_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Gemm: `alpha * a @ b + beta * c`, either operand transposed."""
    a, b, c = (*inputs, None)[:3]
    if node.attribute("transA", 0):
        a = a.transpose(1, 0)
    if node.attribute("transB", 0):
        b = b.transpose(1, 0)
    (out,) = matmul_node(tracer, node, [a, b])
    out = out.affine(mul=float(node.attribute("alpha", 1.0)))
    beta = float(node.attribute("beta", 1.0))
    if c is None or beta == 0:
        return [out]
    if isinstance(c, View):
        return [with_view(tracer, node, "Add", out, c.affine(mul=beta))]
    return [with_constant(tracer, node, "Add", out, beta * np.asarray(c, np.float64), left=False)]


def conv_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Conv whose kernel is its stride: the image cut into patches, and a product with a matrix.

    `(1, C, H, W)` to `(1, D, gh, gw)`, or the same with one spatial axis.
    """
    x, weight, bias = (*inputs, None)[:3]
    if not isinstance(x, View) or isinstance(weight, View) or isinstance(bias, View):
        raise Unmapped("its weights depend on the data", "they must be constants")
    kernel = tuple(weight.shape[2:])
    ones = [1] * len(kernel)
    strides = tuple(node.attribute("strides", ones))
    way_out = "supported is a patch embedding: stride equal to the kernel, no padding, one group"
    if node.attribute("group", 1) != 1:
        raise Unmapped(f"a convolution in {node.attribute('group')} groups", way_out)
    if strides != kernel:
        raise Unmapped(f"its kernel is {_by(kernel)} but its stride {_by(strides)}", way_out)
    if any(d != 1 for d in node.attribute("dilations", ones)) and kernel != tuple(ones):
        raise Unmapped("a dilated convolution", way_out)
    same = node.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    if any(node.attribute("pads", [0])) or (
        same and any(n % k for n, k in zip(x.shape[2:], kernel, strict=True))
    ):
        raise Unmapped("a padded convolution", way_out + "; pad the images beforehand")
    grid = tuple(n // k for n, k in zip(x.shape[2:], kernel, strict=True))
    idx = x.idx[0][(slice(None), *(slice(0, g * k) for g, k in zip(grid, kernel, strict=True)))]
    split = idx.reshape(idx.shape[0], *(n for pair in zip(grid, kernel, strict=True) for n in pair))
    spatial = len(kernel)
    patches = split.transpose(*range(1, 2 * spatial, 2), 0, *range(2, 2 * spatial + 1, 2))
    columns = int(np.prod(weight.shape[1:]))
    rows = x.at(np.ascontiguousarray(patches).reshape(-1, columns))
    out = project(tracer, node, rows, np.asarray(weight, np.float64).reshape(len(weight), columns))
    if bias is not None:
        out = with_constant(tracer, node, "Add", out, np.asarray(bias, np.float64), left=False)
    return [
        out.reshape(*grid, len(weight)).transpose(spatial, *range(spatial)).reshape(1, len(weight), *grid)
    ]


def conv_transpose_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """ConvTranspose whose kernel is its stride: each pixel becomes a patch, by a product with a matrix.

    `(1, C, h, w)` to `(1, D, h * kh, w * kw)`, or the same with one spatial axis.
    """
    x, weight, bias = (*inputs, None)[:3]
    if not isinstance(x, View) or isinstance(weight, View) or isinstance(bias, View):
        raise Unmapped("its weights depend on the data", "they must be constants")
    kernel = tuple(weight.shape[2:])
    spatial, ones = len(kernel), [1] * len(kernel)
    strides = tuple(node.attribute("strides", ones))
    way_out = "supported are patches that do not overlap: stride equal to the kernel, no padding, one group"
    if node.attribute("group", 1) != 1:
        raise Unmapped(f"a transposed convolution in {node.attribute('group')} groups", way_out)
    if strides != kernel:
        raise Unmapped(f"its kernel is {_by(kernel)} but its stride {_by(strides)}", way_out)
    if any(d != 1 for d in node.attribute("dilations", ones)) and kernel != tuple(ones):
        raise Unmapped("a dilated transposed convolution", way_out)
    padded = any(node.attribute("pads", [0])) or any(node.attribute("output_padding", [0]))
    if padded or node.attribute("output_shape") is not None:
        raise Unmapped("a padded transposed convolution", way_out)
    channels, size = weight.shape[1], prod(kernel)
    grid = x.shape[2:]
    rows = x.reshape(x.shape[1], prod(grid)).transpose(1, 0)
    out = project(tracer, node, rows, np.asarray(weight, np.float64).reshape(len(weight), channels * size).T)
    if bias is not None:
        out = with_constant(tracer, node, "Add", out, np.repeat(np.asarray(bias, np.float64), size), left=False)
    axes = [a for i in range(spatial) for a in (i, spatial + 1 + i)]
    out = out.reshape(*grid, channels, *kernel).transpose(spatial, *axes)
    return [out.reshape(1, channels, *(g * k for g, k in zip(grid, kernel, strict=True)))]


def batch_norm_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View | None]:
    """BatchNormalization with fixed statistics: a scale and an offset for each channel, axis 1."""
    x, *constants = inputs
    if node.attribute("training_mode", 0) or any(isinstance(c, View) for c in constants):
        raise Unmapped("its statistics depend on the data", "export the model in evaluation mode")
    scale, bias, mean, variance = (np.asarray(c, np.float64) for c in constants)
    factor = scale / np.sqrt(variance + float(node.attribute("epsilon", 1e-5)))
    shape = (-1, *[1] * (len(x.shape) - 2))
    out = with_constant(tracer, node, "Mul", x, factor.reshape(shape), left=False)
    out = with_constant(tracer, node, "Add", out, (bias - mean * factor).reshape(shape), left=False)
    return [out, *[None] * (len(node.proto.output) - 1)]


def _by(extents: tuple[int, ...]) -> str:
    return "x".join(map(str, extents))
