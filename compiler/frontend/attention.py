"""Matrix products of computed tensors: scores, softmax, and what they are together."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.gate import softmax_of_chosen
from moevit.compiler.frontend.layout import as_view
from moevit.compiler.frontend.mask import Keys, additive, products, seen_keys, unmasked, without
from moevit.compiler.frontend.mixture import product_with_scores
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import Context, Opaque, Origin, Product, Softmax, Space, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer


def product(tracer: "Tracer", node: Node, a: View, b: View) -> View:
    """`a @ b`: scores, or, after a softmax, attention."""
    if isinstance(tracer.space.single(a), Softmax):
        return context(tracer, node, a, b)
    mixed = product_with_scores(tracer, node, a, b)
    if mixed is not None:
        return mixed
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.broadcast(lead + a.shape[-2:]), b.broadcast(lead + b.shape[-2:])
    shape = (*lead, a.shape[-2], b.shape[-1])
    return tracer.space.add(Product(origin=node.origin, shape=shape, a=a, b=b))


def softmax_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Softmax over the last axis."""
    view: View = inputs[0]
    axis = int(node.attribute("axis", -1))
    if axis % len(view.shape) != len(view.shape) - 1:
        raise Unmapped("it is not over the last axis", "attention is a softmax over the keys, the last axis")
    chosen = softmax_of_chosen(tracer, node, view)
    if chosen is not None:
        return [chosen]
    return [tracer.space.add(Softmax(origin=node.origin, shape=view.shape, x=view))]


def context(tracer: "Tracer", node: Node, p: View, v: View) -> View:
    """`softmax(q @ k.T * scale) @ v` as `Context`, or `Unmapped` with what is wrong with it.

    For scores `(..., N, M)`, q becomes `(N, heads*d)`, k and v `(M, heads*d)`: all leading axes are heads.
    """
    softmax = tracer.space.single(p)
    assert isinstance(softmax, Softmax)
    scores, seen = _scores(tracer, softmax.x, v)
    multiplier = scores.mul
    found = tracer.space.whole(scores)
    swapped = False
    if found is None:
        owner = tracer.space.single(scores)
        flipped = scores.transpose(*range(len(scores.shape) - 2), -1, -2)
        if isinstance(owner, Product) and tracer.space.whole(flipped) is owner:
            found, swapped = owner, True
    if not isinstance(found, Product) or tracer.space.whole(p) is not softmax or p.add != 0:
        raise Unmapped(
            "its left operand is no attention probability", "softmax(q @ k.T * scale) @ v is supported"
        )
    a, b = found.a, found.b
    if swapped:
        axes = (*range(len(a.shape) - 2), len(a.shape) - 1, len(a.shape) - 2)
        a, b = b.transpose(*axes), a.transpose(*axes)
    heads = prod(a.shape[:-2])
    rows, size = a.shape[-2:]
    columns = b.shape[-1]
    if prod(v.shape[:-2]) not in (1, heads):
        raise Unmapped("scores and values have different heads", "each head needs its own values", (a, b, v))
    v = v.broadcast((*p.shape[:-2], *v.shape[-2:])) if prod(v.shape[:-2]) != heads else v
    if v.shape[-1] != size:
        raise Unmapped(
            f"heads of {size} in q and k but {v.shape[-1]} in v", "they must be equal", operands=(a, b, v)
        )
    q = a.reshape(heads, rows, size).transpose(1, 0, 2).reshape(rows, heads * size)
    k = b.reshape(heads, size, columns).transpose(2, 0, 1).reshape(columns, heads * size)
    values = v.reshape(heads, columns, size).transpose(1, 0, 2).reshape(columns, heads * size)
    k, values = without(seen, k, values)
    for operand in (q, k):
        if operand.add == 0:
            multiplier *= operand.mul
    q, k = (o.plain() if o.add == 0 else o for o in (q, k))
    origin = node.origin.joined(found.origin, softmax.origin)
    out = attention(tracer.space, origin, q, k, values, heads=heads, scale=multiplier, softmax=softmax)
    shaped = out.reshape(rows, heads, size).transpose(1, 0, 2).reshape(*p.shape[:-2], rows, size)
    return shaped.affine(mul=p.mul)


def _scores(tracer: "Tracer", x: View, v: View) -> tuple[View, Keys | None]:
    """The scores that a softmax reads, without their mask, and the keys that it leaves; raises `Unmapped`."""
    try:
        return unmasked(tracer.space, x)
    except Unmapped as error:
        read = tuple(view for p in products(tracer.space, x) for view in (p.a, p.b))
        raise Unmapped(error.reason, error.way_out, operands=(*(read or (x,)), v)) from error


def attention(
    space: Space, origin: Origin, q: View, k: View, v: View, *, heads: int, scale: float, softmax: Softmax | None = None
) -> View:
    """The value of an attention whose operands are in `(tokens, heads*head_dim)` form.

    The accelerator's scale is positive; any other is given to the queries.
    """
    if not scale > 0:
        q, scale = q.affine(0.0 if scale == 0 else -1.0), -scale or 1.0
    size = q.shape[1] // heads
    return space.add(
        Context(
            origin=origin, shape=q.shape, q=q, k=k, v=v, heads=heads, head_dim=size, scale=scale, softmax=softmax
        )
    )  # fmt: skip


def attention_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View | None]:
    """ONNX's own Attention (opset 23), without cache and soft cap."""
    q, k, v, mask, *others = (*inputs, None)[: max(len(inputs), 4)]
    if isinstance(q, np.ndarray):  # queries that are learnt
        q = as_view(tracer, node, q)
    if node.attribute("is_causal", 0):
        raise Unmapped("its queries see different keys (is_causal)", "export an encoder, without a causal mask")
    if (
        node.attribute("softcap", 0.0)
        or any(node.proto.output[1:])
        or any(o is not None for o in others)
        or not all(isinstance(x, View) for x in (q, k, v))
    ):
        raise Unmapped("caches, soft caps and constant operands are not supported", "export plain attention")
    if len(q.shape) == 4:
        heads, kv_heads = q.shape[1], k.shape[1]
        forms = [x.transpose(0, 2, 1, 3).reshape(x.shape[2], -1) for x in (q, k, v)]
    else:
        heads, kv_heads = int(node.attribute("q_num_heads")), int(node.attribute("kv_num_heads"))
        forms = [x.matrix() for x in (q, k, v)]
    size = forms[0].shape[1] // heads
    if forms[1].shape[1] != kv_heads * size or forms[2].shape[1] != kv_heads * size or heads % kv_heads:
        raise Unmapped("its heads have different sizes", "they must be equal in q, k and v")
    if kv_heads != heads:
        for i in (1, 2):
            x = forms[i].reshape(-1, kv_heads, size)
            forms[i] = x.at(np.repeat(x.idx, heads // kv_heads, axis=1)).reshape(x.shape[0], heads * size)
    if mask is not None:
        forms[1:] = without(seen_keys(additive(mask), forms[1].shape[0]), *forms[1:])
    out = attention(
        tracer.space, node.origin, *forms, heads=heads, scale=float(node.attribute("scale", size**-0.5))
    )
    if len(q.shape) == 4:
        out = out.reshape(q.shape[2], heads, size).transpose(1, 0, 2)
    return [out.reshape(*q.shape), *[None] * (len(node.proto.output) - 1)]


def unmapped_softmax(value: Softmax | Product) -> Opaque:
    """What to say of a softmax or product that is not part of an attention."""
    what = "a softmax" if isinstance(value, Softmax) else "a product of two computed matrices"
    return Opaque(
        origin=value.origin,
        shape=value.shape,
        reason=f"{what} outside attention is no operation of the accelerator",
        way_out="end the exported model before it, and let the host apply it",
        operands=(value.x,) if isinstance(value, Softmax) else (value.a, value.b),
    )
