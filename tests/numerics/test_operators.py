"""Each integer operator against its float function: the bounds that docs/numerics.md states."""

import numpy as np
import pytest

from moevit.numerics import layernorm, softmax
from moevit.numerics.activation import FRACTION, TABLES, Activation, activate
from moevit.numerics.matmul import int_matmul
from moevit.numerics.reciprocal import INPUT_WIDTH, leading_one, reciprocal
from moevit.numerics.rsqrt import INPUT_WIDTH as RSQRT_WIDTH
from moevit.numerics.rsqrt import rsqrt

erf = np.vectorize(__import__("math").erf, otypes=[float])


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_leading_one_is_bit_length() -> None:
    values = [1, 2, 3, 4, 255, 256, (1 << 57) - 1, 1 << 57]
    assert leading_one(np.array(values)).tolist() == [v.bit_length() - 1 for v in values]


def test_reciprocal_relative_error() -> None:
    x = np.concatenate([np.arange(1, 1 << 17), np.random.default_rng(0).integers(1, 1 << INPUT_WIDTH, 50_000)])
    mantissa, shift = reciprocal(x)
    assert mantissa.min() >= 1 << 15
    assert mantissa.max() < 1 << 16
    error = np.abs(mantissa * 2.0 ** -shift.astype(float) * x - 1)
    assert error.max() < 2.0**-13  # one Newton step from 64 seeds
    assert reciprocal(0)[0] == reciprocal(1)[0]


def test_rsqrt_relative_error() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.arange(1, 1 << 17), (2.0 ** rng.uniform(0, RSQRT_WIDTH - 1, 50_000)).astype(np.int64)])
    mantissa, shift = rsqrt(x)
    assert mantissa.min() >= 1 << 15
    assert mantissa.max() < 1 << 16
    error = np.abs(mantissa * 2.0 ** -shift.astype(float) * np.sqrt(x.astype(float)) - 1)
    assert error.max() < 2.0**-13  # one Newton step from 96 seeds


@pytest.mark.parametrize(
    ("kind", "function", "bound"), [(Activation.GELU, gelu, 7e-4), (Activation.SILU, silu, 1.5e-3)]
)
def test_activation_error(kind: Activation, function, bound: float) -> None:
    x = np.arange(-(1 << 15), 1 << 15)  # every input in [-16, 16)
    real = x / (1 << FRACTION)
    assert np.abs(activate(x, kind) / (1 << FRACTION) - function(real)).max() < bound


def test_activation_is_relu_far_out() -> None:
    x = np.array([-(1 << 19), -(1 << 16), 1 << 16, (1 << 19) - 1])
    for kind in (Activation.GELU, Activation.SILU, Activation.RELU):
        assert activate(x, kind).tolist() == np.maximum(x, 0).tolist()
    assert activate(x, Activation.NONE).tolist() == x.tolist()


def test_activation_tables_are_small() -> None:
    assert all(len(t.base) == 128 and t.base_width + t.slope_width <= 32 for t in TABLES.values())


@pytest.mark.parametrize("length", [8, 64, 72, 192, 384, 768])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layernorm_error(length: int, offset: float) -> None:
    rng = np.random.default_rng(length)
    scale = 0.004
    real = rng.normal(offset, 2.0, (64, length)) * rng.uniform(0.5, 2, (64, 1))
    x = np.clip(np.round(real / scale), -32768, 32767).astype(np.int64)
    gamma, beta = rng.normal(1, 0.3, length), rng.normal(0, 0.2, length)
    real = x * scale
    exact = (real - real.mean(-1, keepdims=True)) / np.sqrt(real.var(-1, keepdims=True) + 1e-6) * gamma + beta
    output_scale = np.abs(exact).max() / 127
    g, b, shift = layernorm.quantise_affine(gamma, beta, output_scale)
    constants = layernorm.RowConstants.of(length, 1e-6, scale, shift)
    error = np.abs(layernorm.layernorm(x, g, b, constants) - exact / output_scale)
    assert error.max() < 0.58  # output steps; 0.5 is the rounding to 8 bits itself


def test_layernorm_of_constant_rows_is_beta() -> None:
    constants = layernorm.RowConstants.of(16, 1e-6, 0.01, 12)
    x = np.array([[32767] * 16, [-32768] * 16, [0] * 16])
    beta = np.full(16, 3 << layernorm.BETA_FRACTION)
    assert (layernorm.layernorm(x, np.full(16, 1000), beta, constants) == 3).all()


@pytest.mark.parametrize(
    ("spread", "largest", "variation"), [(0.5, 3e-4, 0.005), (1, 2e-3, 0.01), (2, 0.03, 0.035), (3, 0.06, 0.06)]
)
def test_softmax_against_float(spread: float, largest: float, variation: float) -> None:
    """``spread``: standard deviation of the base-2 scores over 197 keys. 8-bit probabilities lose the tail
    below 2**-9 of the largest, which is what grows with the spread."""
    rng = np.random.default_rng(0)
    scores = np.clip(np.round(rng.normal(0, spread, (500, 197)) * 64), -32768, 32767).astype(np.int64)
    exact = np.exp2(scores / 64)
    exact /= exact.sum(-1, keepdims=True)
    p, total = softmax.softmax(scores, 32)
    assert (total == p.sum(-1)).all()
    error = np.abs(p / total[:, None] - exact)
    assert error.max() < largest
    assert error.sum(-1).mean() < variation


@pytest.mark.parametrize("lanes", [1, 4, 8, 32, 512])
def test_softmax_rows_always_sum_to_at_least_half(lanes: int) -> None:
    scores = np.sort(np.random.default_rng(1).integers(-32768, 32767, (50, 130)), axis=-1)  # worst: always growing
    p, total = softmax.softmax(scores, lanes)
    assert p.min() >= 0
    assert p.max() <= 255
    assert total.min() >= 128


def test_softmax_is_shift_invariant_by_whole_exponents() -> None:
    scores = np.random.default_rng(2).integers(-2000, 2000, (20, 40))
    assert (softmax.softmax(scores, 8)[0] == softmax.softmax(scores + 5 * 64, 8)[0]).all()


def test_row_scale_error() -> None:
    total = np.arange(128, 1 << 18)
    mult, shift = softmax.row_scale(total, 40_000, 17)
    exact = 40_000 * 2.0**-17 / total
    assert np.abs(mult * 2.0 ** -shift.astype(float) / exact - 1).max() < 2e-4


@pytest.mark.parametrize("k", [1, 517, 518, 4096])
def test_int_matmul_is_exact(k: int) -> None:
    rng = np.random.default_rng(k)
    a, b = rng.integers(0, 256, (5, k)), rng.integers(-128, 128, (k, 7))
    assert (int_matmul(a, b) == a @ b).all()
    extreme = int_matmul(np.full((1, k), 255), np.full((k, 1), -128))
    assert extreme.tolist() == [[-255 * 128 * k]]
