"""Which activation a function is, found by evaluating it."""

from dataclasses import dataclass

import numpy as np

from moevit.compiler.frontend.functions import UNARY, gelu, gelu_tanh, sigmoid
from moevit.compiler.frontend.space import Function

# ReLU first: a GELU with a large scale looks like it.
KNOWN: dict[str, Function] = {
    "relu": UNARY["Relu"],
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
}
_GRID = np.linspace(-12, 12, 961)
_TOLERANCE = 5e-5  # gelu and gelu_tanh differ by 5e-4


@dataclass(frozen=True)
class Found:
    """A function written as `mul * kind(scale * x) + add`; kind "linear" is the identity."""

    kind: str
    scale: float
    mul: float
    add: float


def identify(function: Function) -> Found | None:
    """Write a function as a known activation, if it is one.

    Beyond the grid's ends an activation is linear or constant, so there two points fix `mul * scale`; the
    curvature at zero then fixes `scale`, and the whole grid is compared.
    """
    with np.errstate(all="ignore"):
        y = np.asarray(function(_GRID), dtype=np.float64)
        if y.shape != _GRID.shape or not np.isfinite(y).all():
            return None
        slope = float(y[-1] - y[0]) / 24
        offset = float(y[480])
        if _close(slope * _GRID + offset, y):
            return Found("linear", 1.0, slope, offset)
        far = np.array([-1e4, -2e4, 1e4, 2e4])
        ends = np.asarray(function(far), dtype=np.float64)
        left, right = float(ends[0] - ends[1]) / 1e4, float(ends[3] - ends[2]) / 1e4
        if not np.isfinite(ends).all() or (left * right != 0 and min(abs(left), abs(right)) > 1e-6):
            return None
        sign = 1.0 if abs(right) > abs(left) else -1.0
        total = right if sign > 0 else left
        if abs(total) < 1e-9:
            return None
        h = 1e-3
        below, zero, above = np.asarray(function(np.array([-h, 0, h])), dtype=np.float64)
        curvature = float(below + above - 2 * zero) / h**2
        for kind, known in KNOWN.items():
            near = known(np.array([-h, 0, h]))
            own = float(near[0] + near[2] - 2 * near[1]) / h**2
            scale = sign if kind == "relu" else curvature / (total * own)
            if abs(scale - round(scale)) < 1e-3 and round(scale):
                scale = float(round(scale))
            if not np.isfinite(scale) or scale * sign < 1e-6:
                continue
            mul = total / scale
            if _close(mul * known(scale * _GRID) + offset, y):
                return Found(kind, scale, mul, offset)
    return None


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.max(np.abs(a - b)) <= _TOLERANCE * max(1e-30, float(np.max(np.abs(b))) / 12))
