"""Block RAM for the rings of POST and LayerNorm parameters."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from moevit.errors import ConfigError
from moevit.hw.interfaces import MemoryReadSignature, MemoryWriteSignature


class ParameterMemory(wiring.Component):
    """A memory with one write port and one read port with an output register.

    A read of the word that is written in the same cycle gives the old word.

    Parameters
    ----------
    depth : words
    width : bits of a word

    Members
    -------
    write : In(MemoryWriteSignature)
    read : In(MemoryReadSignature)

    Latency: PARAMETER_READ_LATENCY (2) cycles from address to data; a word can be read in the cycle after its
    write. Throughput: a write and a read per cycle.

    Raises
    ------
    ConfigError : ``depth`` or ``width`` is not positive
    """

    def __init__(self, depth: int, width: int):
        for name, value in (("depth", depth), ("width", width)):
            if value <= 0:
                raise ConfigError(f"parameter memory: {name} must be positive, not {value!r}")
        self.depth = depth
        self.width = width
        super().__init__({
            "write": In(MemoryWriteSignature(depth, width)),
            "read": In(MemoryReadSignature(depth, width)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=self.width, depth=self.depth, init=[])
        write_port, read_port = memory.write_port(), memory.read_port()
        m.d.comb += [
            write_port.en.eq(self.write.en),
            write_port.addr.eq(self.write.addr),
            write_port.data.eq(self.write.data),
            read_port.addr.eq(self.read.addr),
        ]
        m.d.sync += self.read.data.eq(read_port.data)
        return m
