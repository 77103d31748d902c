"""POST's last stages: zero point, residual and saturation to the output type."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.units.arithmetic import delay
from moevit.hw.units.requantise import SCALED_WIDTH
from moevit.isa.formats import OutputType
from moevit.numerics.fixed import ZERO_POINT_WIDTH

RESIDUAL_LEAD = 1  #: cycles by which zero point and residual come before the scaled values
LATENCY = 2  #: from the scaled values


class PostOutput(wiring.Component):
    """Adds the zero point and, if asked, the residual to a row; saturates it to its output type.

    Parameters
    ----------
    config : the accelerator's configuration; one lane per column

    Members
    -------
    zero_point : In(8), unsigned; RESIDUAL_LEAD cycles ahead, as are the next two
    use_residual : In(1)
    pair : In, a pair of words of activation memory: the low and the high bytes of the residual
    scaled : In(signed SCALED_WIDTH each lane)
    out_type : In(2), an ``isa.formats.OutputType``; a cycle after ``scaled``
    result : Out(16 bits each lane); 8-bit results are in the low bytes, whose upper bytes mean nothing

    Numerics: ``numerics.fixed.saturate(scaled + zero_point + residual, ...)``.
    Latency: ``LATENCY`` cycles from ``scaled``. Throughput: one row a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        lanes = config.columns
        super().__init__(
            {
                "zero_point": In(ZERO_POINT_WIDTH),
                "use_residual": In(1),
                "pair": In(2 * lanes * 8),
                "scaled": In(data.ArrayLayout(signed(SCALED_WIDTH), lanes)),
                "out_type": In(2),
                "result": Out(data.ArrayLayout(16, lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.columns
        is_wide, is_unsigned = self.out_type == OutputType.INT16, self.out_type == OutputType.UINT8
        for i in range(lanes):
            residual = Cat(self.pair.word_select(i, 8), self.pair.word_select(lanes + i, 8)).as_signed()
            offset = delay(m, self.zero_point + Mux(self.use_residual, residual, 0), 1, name=f"offset_{i}")
            total = delay(m, self.scaled[i] + offset, 1, name=f"total_{i}")
            negative = total[-1]
            upper = Mux(is_wide, C(0, 7), total[8:15] ^ negative.replicate(7))
            fits = ~(upper.any() | (total[15:] ^ negative.replicate(len(total) - 15)).any())
            fits &= is_wide | Mux(is_unsigned, ~negative, total[7] == negative)
            limit = Mux(
                is_unsigned,
                (~negative).replicate(16),
                Cat(
                    (~negative).replicate(7),
                    Mux(is_wide, ~negative, negative),
                    (~negative).replicate(7),
                    negative,
                ),
            )
            m.d.sync += self.result[i].eq(Mux(fits, total[:16], limit))
        return m
