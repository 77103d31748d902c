"""What an array of addresses is as a matrix: which rows and columns of which value, scaled how."""

from dataclasses import dataclass

import numpy as np

from moevit.compiler.frontend.space import NO_ADDRESS, Addresses, Floats, Origin, Space, Value, View


class Rejected(Exception):
    """A value that cannot be lowered where it stands.

    `origin` is the node to blame; None for the one that reads it.
    """

    def __init__(self, reason: str, way_out: str, origin: Origin | None = None):
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out
        self.origin = origin


@dataclass(eq=False, kw_only=True)
class Elements:
    """A matrix of elements `mul * element(idx) + add`; where idx is `NO_ADDRESS`, it is `add`.

    `folded` are the values whose arithmetic is now in `mul` and `add`.
    """

    idx: Addresses
    mul: Floats
    add: Floats
    folded: list[Origin]

    @classmethod
    def of(cls, view: View) -> "Elements":
        """Of a view that is a matrix."""
        full = np.empty(view.shape)
        return cls(
            idx=view.idx.copy(), mul=np.full_like(full, view.mul), add=np.full_like(full, view.add), folded=[]
        )


@dataclass(eq=False, kw_only=True)
class Form:
    """A matrix that an operation can read.

    Its rows are `prefix`, then rows `start` to `start + count` of `value` with only the columns `cols`, in
    that order, times `mul`, plus `add` (one number per column), plus `pos` (one row per token), if given.
    """

    value: Value
    start: int
    count: int
    cols: Addresses
    mul: Floats
    add: Floats
    prefix: Floats
    pos: Floats | None
    folded: list[Origin]

    @property
    def is_whole(self) -> bool:
        """Whether it is all rows of the value, and nothing else than rows and columns of it."""
        return (
            not len(self.prefix) and self.pos is None and (self.start, self.count) == (0, self.value.shape[0])
        )

    @property
    def same_columns(self) -> bool:
        """Whether the columns are all of the value's, in order."""
        width = self.value.shape[1]
        return len(self.cols) == width and bool(np.array_equal(self.cols, np.arange(width)))


LAYOUT = "keep tokens as rows and channels as columns between linear layers"


def form_of(space: Space, elements: Elements) -> Form:
    """Read a matrix of elements as a `Form`; raises `Rejected` if it is none."""
    constant = elements.idx == NO_ADDRESS
    rows_constant = constant.all(axis=1)
    count = int(rows_constant.sum())
    if count == len(rows_constant):
        raise Rejected("its operand is constant", "fold it into the model's weights")
    if constant[~rows_constant].any():
        raise Rejected("its operand has constants among the channels of a token", "do not pad channels")
    if not rows_constant[:count].all():
        raise Rejected("its operand has constant tokens after computed ones", "put constant tokens first")
    idx, mul, add = elements.idx[count:], elements.mul[count:], elements.add[count:]
    owners = space.owners(idx)
    if len(owners) != 1:
        names = ", ".join(f"'{o.origin.name}'" for o in owners[:4])
        raise Rejected(f"its operand is joined from {len(owners)} computed tensors ({names})", LAYOUT)
    value = owners[0]
    if len(value.shape) != 2:
        raise Rejected(
            "it reads an image other than by patches", "begin with a patch embedding", value.origin
        )
    if not np.all(mul == mul[:1]):
        raise Rejected(
            "its operand is multiplied by constants that differ between tokens, as rotary positions are",
            "scale channels only, and add positions to the tokens",
        )
    rows, cols = np.divmod(idx - value.start, value.shape[1])
    if not (np.all(rows == rows[:, :1]) and np.all(cols == cols[:1])):
        raise Rejected(f"its operand has tokens and channels of '{value.origin.name}' rearranged", LAYOUT)
    first = int(rows[0, 0])
    if not np.array_equal(rows[:, 0], np.arange(first, first + len(rows))):
        raise Rejected(f"its operand has the tokens of '{value.origin.name}' in another order", LAYOUT)
    uniform = bool(np.all(add == add[:1])) and not count
    return Form(
        value=value,
        start=first,
        count=len(rows),
        cols=cols[0],
        mul=mul[0],
        add=add[0] if uniform else np.zeros(idx.shape[1]),
        prefix=elements.add[:count],
        pos=None if uniform else add,
        folded=elements.folded,
    )
