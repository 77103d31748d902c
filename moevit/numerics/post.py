"""The end of POST: activation, second stage, residual, saturation, of requantised ``mid`` values."""

import numpy as np
from numpy.typing import NDArray

from moevit.isa.formats import Linear, OutputType
from moevit.numerics.activation import Activation, activate
from moevit.numerics.fixed import rescale, saturate
from moevit.numerics.route import apply_score

OUTPUT_BITS = {OutputType.INT8: (8, True), OutputType.UINT8: (8, False), OutputType.INT16: (16, True)}


def finish(
    mid: NDArray, linear: Linear, residual: NDArray | None, score: NDArray | None = None
) -> NDArray[np.int64]:
    """What LINEAR writes for ``mid`` [..., N, channels], with the constants of the instruction.

    ``residual`` is int16 of the same shape, or None; ``score`` [..., N, 1] is that of the rows of ``scatter``, which
    have no activation.
    """
    y = mid
    if score is not None:
        y = apply_score(y, score)
    elif linear.activation != Activation.NONE:
        y = rescale(activate(y, Activation(linear.activation)), linear.mult, linear.shift, linear.zero_point)
    if residual is not None:
        y = y + residual
    return saturate(y, *OUTPUT_BITS[OutputType(linear.out_type)])
