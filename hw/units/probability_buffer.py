"""Probabilities of two attention units, on their way from POST's softmax to the array."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import StagedSignature
from moevit.hw.units import arithmetic
from moevit.numerics import softmax

PROBABILITY_READ_LATENCY = 2


class ProbabilityReadSignature(wiring.Signature):
    """One row of one key tile, PROBABILITY_READ_LATENCY cycles after its address, as the reader sees it."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__(
            {
                "unit": Out(1),
                "row": Out(range(config.rows)),
                "tile": Out(range(config.max_key_tiles)),
                "data": In(config.columns * 8),
                "maximum": In(signed(softmax.MAX_WIDTH)),  # that the tile's probabilities stand against
                "final": In(signed(softmax.MAX_WIDTH)),  # of the whole row
            }
        )


class ProbabilityBuffer(wiring.Component):
    """Keeps C probabilities and their maximum per unit parity, row and key tile, and each row's last maximum.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    i_staged : rows of probabilities; key tiles of a row come in ascending order
    read : ProbabilityReadSignature
    complete : bit u is set from the row marked ``last`` of unit parity u until it is taken
    take, take_unit : clears ``complete`` of a unit; its rows stay readable until new ones are written

    Latency: PROBABILITY_READ_LATENCY from address to data; ``complete`` rises the cycle after the last row,
    and a read in that cycle sees all of the unit. Throughput: one row written and one read per cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "i_staged": In(StagedSignature(config)),
                "read": In(ProbabilityReadSignature(config)),
                "complete": Out(2),
                "take": In(1),
                "take_unit": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        staged, read = self.i_staged, self.read
        assert PROBABILITY_READ_LATENCY == 2
        width = softmax.MAX_WIDTH
        word_layout = data.StructLayout({"data": config.columns * 8, "maximum": signed(width)})
        row_bits = exact_log2(config.rows)

        # rows and units stand at powers of two, the tiles of a row in the low bits
        m.submodules.words = words = Memory(
            shape=word_layout, depth=2 * config.rows << len(staged.tile), init=[]
        )
        m.submodules.finals = finals = Memory(
            shape=signed(width), depth=2 << row_bits, init=[], attrs={"ram_style": "distributed"}
        )
        words_write, words_read = words.write_port(), words.read_port()
        finals_write, finals_read = finals.write_port(), finals.read_port()
        m.d.comb += [
            words_write.en.eq(staged.valid),
            words_write.addr.eq(Cat(staged.tile, staged.row, staged.unit)),
            words_write.data.data.eq(staged.data),
            words_write.data.maximum.eq(staged.maximum),
            finals_write.en.eq(staged.valid),  # the last key tile writes last
            finals_write.addr.eq(Cat(staged.row, staged.unit)),
            finals_write.data.eq(staged.maximum),
            words_read.addr.eq(Cat(read.tile, read.row, read.unit)),
            finals_read.addr.eq(Cat(read.row, read.unit)),
        ]
        word = arithmetic.delay(m, words_read.data, 1, name="word")
        m.d.comb += [
            read.data.eq(word.data),
            read.maximum.eq(word.maximum),
            read.final.eq(arithmetic.delay(m, finals_read.data, 1, name="final")),
        ]

        for unit in range(2):
            with m.If(staged.valid & staged.last & (staged.unit == unit)):
                m.d.sync += self.complete[unit].eq(1)
            with m.Elif(self.take & (self.take_unit == unit)):
                m.d.sync += self.complete[unit].eq(0)
        return m
