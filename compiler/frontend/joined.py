"""Operands that no single operation makes: channels from several tensors, and queries that are constants."""

import numpy as np

from moevit.compiler.frontend.form import Elements
from moevit.compiler.frontend.space import NO_ADDRESS, Affine, Const, Context, Projection, Space, Total, View


def joined_projections(space: Space, value: Projection, elements: Elements) -> View | None:
    """A projection of several tensors side by side, as the sum of one of each; None if it is not that.

    `elements` are those of its operand. Which tensor a column belongs to is read off the first row; if that is
    not so in all rows, none of the parts is a matrix, and lowering it says why.
    """
    first = elements.idx[0]
    if (first == NO_ADDRESS).any():
        return None
    owners = [space.owner(int(address)).start for address in first]
    starts = list(dict.fromkeys(owners))
    if len(starts) == 1 or any(owners != [space.owner(int(a)).start for a in row] for row in elements.idx[-1:]):
        return None
    total: View | None = None
    for start in starts:
        cols = np.flatnonzero(np.asarray(owners) == start)
        x = value.x.at(np.ascontiguousarray(value.x.idx[:, cols]))
        part = space.add(Projection(origin=value.origin, shape=value.shape, x=x, weight=value.weight[:, cols]))
        if total is not None:
            part = space.add(Total(origin=value.origin, shape=value.shape, a=total, b=part))
        total = part
    return total


def learnt_query(space: Space, value: Context) -> View | None:
    """The query of an attention that pools with one learnt query, as a projection whose weights are all zero.

    It reads the first row of what the keys are made of, so that the query is computed together with them.
    """
    query, keys = value.q.matrix(), _projection(space, value.k)
    owners = space.owners(query.idx)
    if query.shape[0] != 1 or keys is None or not owners or not all(isinstance(o, Const) for o in owners):
        return None
    constant = np.zeros(query.shape)
    for o in owners:
        assert isinstance(o, Const)
        mine = (query.idx >= o.start) & (query.idx < o.start + o.size)
        constant[mine] = o.array[query.idx[mine] - o.start]
    row = keys.x.at(keys.x.idx[:1])
    nothing = np.zeros((query.shape[1], row.shape[1]))
    zeros = space.add(Projection(origin=value.origin, shape=query.shape, x=row, weight=nothing))
    constant = query.mul * constant + query.add
    return space.add(Affine(origin=value.origin, shape=query.shape, base=zeros, mul=None, add=constant))


def _projection(space: Space, view: View) -> Projection | None:
    """The projection that keys come from, below the constants added to them."""
    value = space.single(view)
    while isinstance(value, Affine):
        value = space.single(value.base)
    return value if isinstance(value, Projection) else None
