"""POST's two scaling stages and its output stage, lane by lane, against ``numerics.fixed``."""

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.units import post_output, requantise
from moevit.isa.formats import OutputType
from moevit.numerics import fixed

CONFIG = CONFIGS["tiny"]
LANES = CONFIG.columns


def _rows(rng, count, bits):
    """Signed values of up to ``bits`` bits: random in size, and the ends of the range."""
    width = rng.integers(1, bits + 1, (count, LANES))
    values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (count, LANES)) >> (bits - width)
    values[0], values[1, ::2] = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return values


async def _pipe(ctx, count, latency, drive, sample):
    """One row a cycle through a pipeline; each is sampled exactly ``latency`` cycles after it was driven."""
    out = []
    for cycle in range(count + latency):
        if cycle < count:
            drive(cycle)
        if cycle >= latency:
            out.append(sample())
        await ctx.tick()
    return np.array(out)


def test_requantise():
    dut, rng, count = requantise.Requantise(CONFIG), np.random.default_rng(1), 400
    acc, bias = _rows(rng, count, 32), _rows(rng, count, 32)
    mult = rng.integers(0, 1 << 16, (count, LANES))
    shift = rng.integers(0, 64, (count, LANES))
    mult[:8] = (1 << 16) - 1
    shift[:8] = [0, 1, 28, 29, 30, 31, 32, 63]
    shift[100:] = rng.integers(10, 40, (count - 100, LANES))

    async def bench(ctx):
        def drive(i):
            for port, values in (("acc", acc), ("bias", bias), ("mult", mult), ("shift", shift)):
                ctx.set(getattr(dut, port), values[i].tolist())

        got = await _pipe(
            ctx, count, requantise.LATENCY, drive, lambda: [ctx.get(dut.mid[i]) for i in range(LANES)]
        )
        np.testing.assert_array_equal(got, fixed.requantise(acc, bias, mult, shift))

    run(dut, bench)


def test_rescale():
    dut, rng, count = requantise.Rescale(CONFIG), np.random.default_rng(2), 400
    mid = _rows(rng, count, fixed.MID_WIDTH)
    mult, shift = rng.integers(0, 1 << 16, count), rng.integers(0, 40, count)
    mult[:50], shift[:50] = 1, 0  # passes values on

    async def bench(ctx):
        def drive(i):
            ctx.set(dut.mid, mid[i].tolist())
            ctx.set(dut.mult, int(mult[i]))
            ctx.set(dut.shift, int(shift[i]))

        got = await _pipe(
            ctx, count, requantise.LATENCY, drive, lambda: [ctx.get(dut.scaled[i]) for i in range(LANES)]
        )
        exact = np.array([fixed.rescale(r, m, s, 0) for r, m, s in zip(mid, mult, shift, strict=True)])
        np.testing.assert_array_equal(got, fixed.saturate(exact, requantise.SCALED_WIDTH))

    run(dut, bench)


def test_scaled_width_is_enough():
    """Saturating to SCALED_WIDTH does not show in a result, whatever is added."""
    ends = np.array([-(1 << (requantise.SCALED_WIDTH - 1)), (1 << (requantise.SCALED_WIDTH - 1)) - 1])
    for added in (-(1 << 15), (1 << 15) - 1 + 255):
        for bits, signed in ((8, True), (8, False), (16, True)):
            limits = fixed.saturate([-(1 << 40), 1 << 40], bits, signed)
            np.testing.assert_array_equal(fixed.saturate(ends + added, bits, signed), limits)


@pytest.mark.parametrize("out_type", list(OutputType))
def test_output(out_type):
    dut, rng, count = post_output.PostOutput(CONFIG), np.random.default_rng(3), 400
    scaled, residual = _rows(rng, count, requantise.SCALED_WIDTH), _rows(rng, count, 16)
    scaled[2:20] = np.arange(-144, 144).reshape(18, 16)[:, :LANES]
    residual[2:10] = 0
    zero_point, use = rng.integers(0, 256, count), rng.integers(0, 2, count)
    zero_point[2:20] = 0
    bits, signed = (8, 8, 16)[out_type], out_type != OutputType.UINT8

    async def bench(ctx):
        ctx.set(dut.out_type, out_type)

        def drive(i):  # the residual comes RESIDUAL_LEAD ahead
            if i < count:
                pair = residual[i].astype(np.int16).view(np.uint8).reshape(LANES, 2).T.tobytes()
                ctx.set(dut.pair, int.from_bytes(pair, "little"))
                ctx.set(dut.use_residual, int(use[i]))
                ctx.set(dut.zero_point, int(zero_point[i]))
            if i >= post_output.RESIDUAL_LEAD:
                ctx.set(dut.scaled, scaled[i - post_output.RESIDUAL_LEAD].tolist())

        lead = post_output.RESIDUAL_LEAD
        got = await _pipe(
            ctx,
            count + lead,
            post_output.LATENCY,
            drive,
            lambda: [ctx.get(dut.result[i]) for i in range(LANES)],
        )
        want = fixed.saturate(scaled + zero_point[:, None] + residual * use[:, None], bits, signed)
        np.testing.assert_array_equal(got[lead:] & ((1 << bits) - 1), want & ((1 << bits) - 1))

    run(dut, bench)
