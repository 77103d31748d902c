"""POST's two scaling stages: accumulators to ``MID_WIDTH``-bit values, and those to output steps."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import ACC_WIDTH
from moevit.hw.units.arithmetic import MULTIPLY_LATENCY, delay, multiply, round_shift, round_shift_latency
from moevit.numerics import fixed

LATENCY = MULTIPLY_LATENCY + round_shift_latency(fixed.SHIFT_WIDTH, saturated=True)

SCALED_WIDTH = 18
"""Bits that the second stage keeps. Beyond 18 bits, a value saturates to the same 16-bit result whatever zero
point (unsigned 8 bits) and residual (int16) are added to it."""


class Requantise(wiring.Component):
    """First stage: one row of C lanes, each with its own bias, multiplier and shift.

    Parameters
    ----------
    config : the accelerator's configuration; one lane per column

    Members
    -------
    acc, bias : In(signed 32 each lane)
    mult, shift : In(16 and 6 bits each lane)
    mid : Out(signed MID_WIDTH each lane)

    Numerics: ``numerics.fixed.requantise``. Latency: ``LATENCY`` cycles. Throughput: one row a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        lanes = config.columns
        super().__init__(
            {
                "acc": In(data.ArrayLayout(signed(ACC_WIDTH), lanes)),
                "bias": In(data.ArrayLayout(signed(fixed.BIAS_WIDTH), lanes)),
                "mult": In(data.ArrayLayout(fixed.MULT_WIDTH, lanes)),
                "shift": In(data.ArrayLayout(fixed.SHIFT_WIDTH, lanes)),
                "mid": Out(data.ArrayLayout(signed(fixed.MID_WIDTH), lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for i in range(self.config.columns):
            product = multiply(m, self.acc[i] + self.bias[i], self.mult[i], name=f"product_{i}")
            shift = delay(m, self.shift[i], MULTIPLY_LATENCY, name=f"shift_{i}")
            m.d.comb += self.mid[i].eq(round_shift(m, product, shift, name=f"mid_{i}", bits=fixed.MID_WIDTH))
        return m


class Rescale(wiring.Component):
    """Second stage: one row of C lanes, with one multiplier and shift.

    A multiplier of 1 and a shift of 0 pass the value on; that is how rows without an activation take the same
    path. A row score of a mixture of experts is such a multiplier too.

    Parameters
    ----------
    config : the accelerator's configuration; one lane per column

    Members
    -------
    mid : In(signed MID_WIDTH each lane)
    mult, shift : In(16, 6), of all lanes
    scaled : Out(signed SCALED_WIDTH each lane)

    Numerics: ``numerics.fixed.rescale`` before its zero point, saturated to ``SCALED_WIDTH`` bits.
    Latency: ``LATENCY`` cycles. Throughput: one row a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        lanes = config.columns
        super().__init__(
            {
                "mid": In(data.ArrayLayout(signed(fixed.MID_WIDTH), lanes)),
                "mult": In(fixed.MULT_WIDTH),
                "shift": In(fixed.SHIFT_WIDTH),
                "scaled": Out(data.ArrayLayout(signed(SCALED_WIDTH), lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift = delay(m, self.shift, MULTIPLY_LATENCY, name="shift_delayed")
        for i in range(self.config.columns):
            product = multiply(m, self.mid[i], self.mult, name=f"product_{i}")
            m.d.comb += self.scaled[i].eq(
                round_shift(m, product, shift, name=f"scaled_{i}", bits=SCALED_WIDTH)
            )
        return m
