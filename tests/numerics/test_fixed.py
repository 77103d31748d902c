"""Rounding, saturation, requantisation and scale representation."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moevit.numerics.fixed import MAX_SHIFT, quantise_scale, requantise, rescale, round_shift, saturate


@given(st.integers(-(1 << 49), (1 << 49) - 1), st.integers(0, MAX_SHIFT))
def test_round_shift_is_floor_of_half_up(x: int, shift: int) -> None:
    exact = (Fraction(x, 1 << shift) + Fraction(1, 2)).__floor__() if shift else x
    assert int(round_shift(x, shift)) == exact


def test_round_shift_broadcasts_shifts() -> None:
    shifts = np.array([0, 1, 2, 63])
    assert round_shift(np.full(4, 6), shifts).tolist() == [6, 3, 2, 0]


@pytest.mark.parametrize(("signed", "low", "high"), [(True, -128, 127), (False, 0, 255)])
def test_saturate_clamps_and_never_wraps(signed: bool, low: int, high: int) -> None:
    x = np.array([-(1 << 62), low - 1, low, 0, high, high + 1, 1 << 62])
    assert saturate(x, 8, signed).tolist() == [low, low, low, 0, high, high, high]


@given(st.floats(2.0**-46, 2.0**15.99))
def test_scale_is_represented_to_16_bits(scale: float) -> None:
    mult, shift = quantise_scale(scale)
    assert 1 << 15 <= mult < 1 << 16
    assert abs(mult * 2.0**-shift / scale - 1) <= 2.0**-16


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e9, 1e-30])
def test_unrepresentable_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        quantise_scale(scale)


def test_requantise_error_is_half_a_step_and_the_scale() -> None:
    rng = np.random.default_rng(0)
    acc = rng.integers(-(1 << 24), 1 << 24, 20_000)
    bias = rng.integers(-(1 << 20), 1 << 20, 20_000)
    scale = 0.3 / (1 << 8)
    mult, shift = quantise_scale(scale)
    exact = (acc + bias) * scale
    error = np.abs(requantise(acc, bias, mult, shift) - exact)
    assert np.max(error - np.abs(exact) * 2.0**-16) <= 0.5


def test_requantise_saturates_at_extremes() -> None:
    top, bottom = (1 << 31) - 1, -(1 << 31)
    assert requantise(np.array([top, bottom]), np.array([top, bottom]), 65535, 0).tolist() == [524287, -524288]


def test_rescale_adds_the_zero_point_after_rounding() -> None:
    assert rescale(np.array([3]), 1 << 15, 16, 17).tolist() == [19]
