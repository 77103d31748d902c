"""The A tile: T rows of the array's left operand, double-buffered."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import TILE_READ_LATENCY, TileReadSignature, TileWriteSignature
from moevit.hw.units.arithmetic import delay


class ATile(wiring.Component):
    """Two buffers of T rows by ``tile_depth`` bytes; C bytes of a row are written, K bytes of every row read.

    The rows stand side by side in one memory with a write enable each. A buffer starts at a power of two, so
    that an address is the buffer number above the word number.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    write : In(TileWriteSignature)
    read : In(TileReadSignature)

    Latency: TILE_READ_LATENCY cycles from address to data; a word written in a cycle is seen by an address
    presented in the next.
    Throughput: one read and one write a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        assert TILE_READ_LATENCY == 2
        self._config = config
        super().__init__({"write": In(TileWriteSignature(config)), "read": In(TileReadSignature(config))})

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self._config
        rows, word_width, part_width = config.rows, config.columns * 8, config.depth * 8
        words = config.tile_depth // config.columns
        part_bits = exact_log2(config.columns // config.depth)

        m.submodules.memory = memory = Memory(
            shape=unsigned(rows * word_width), depth=(1 << len(self.write.word)) + words, init=[],
            attrs={"ram_style": "block"},
        )
        write = memory.write_port(granularity=word_width)
        read = memory.read_port()

        m.d.comb += [
            write.addr.eq(Cat(self.write.word, self.write.buffer)),
            write.data.eq(self.write.data.replicate(rows)),
            write.en.eq(Cat(self.write.valid & (self.write.row == row) for row in range(rows))),
            read.en.eq(1),
            read.addr.eq(Cat(self.read.step[part_bits:], self.read.buffer)),
        ]
        part = delay(m, self.read.step[:part_bits], 1, name="part")
        selected = Signal.like(self.read.data, reset_less=True)
        row_words = [read.data.word_select(row, word_width) for row in range(rows)]
        with m.Switch(part):
            for i in range(1 << part_bits):
                with m.Case(i):
                    m.d.sync += selected.eq(Cat(word.word_select(i, part_width) for word in row_words))
        m.d.comb += self.read.data.eq(selected)
        return m
