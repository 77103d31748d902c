"""The activation memory: two banks of C-byte words, shared by POST, the loader and the DMA unit."""

import operator
from collections.abc import Iterable
from functools import reduce

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import ACTIVATION_READ_LATENCY, ActivationReadSignature, ActivationWriteSignature
from moevit.hw.units import arithmetic

READERS = ("post", "load", "dma")  #: in order of priority
WRITERS = ("post", "load", "dma")
ULTRA_LANES = 9  #: byte lanes that an UltraRAM has
ULTRA_PAIRS = 16384  #: banks as deep as this have some lanes in UltraRAM


def _any_of(values: Iterable[Value]) -> Value:
    return reduce(operator.or_, values)


def _not_below(value: Value, limit: int) -> Value:
    """``value >= limit``, without a carry chain where ``limit`` is a power of two."""
    return value >= limit if limit & (limit - 1) else value[exact_log2(limit) :].any()


def bank_parts(config: AcceleratorConfig) -> list[tuple[int, str]]:
    """The memories that make up a bank: byte lanes and ``ram_style`` of each.

    A deep bank would need block RAM for little else to have any. The operand memory leaves a few UltraRAMs, and four
    of them hold nine lanes of 16384 words, which are 36 block RAMs.
    """
    if config.activation_words // 2 < ULTRA_PAIRS or config.columns <= ULTRA_LANES:
        return [(config.columns, "")]
    return [(ULTRA_LANES, "ultra"), (config.columns - ULTRA_LANES, "block")]


class ActivationMemory(wiring.Component):
    """Words of C bytes in an even and an odd bank; one pair is read and one is written per cycle.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    read_post, read_load, read_dma : readers, first come first in priority; never ready and valid together
    write_post, write_load, write_dma : writers, in the same order
    fault : one-cycle pulse, the cycle after a pair outside the memory was accepted. Its write does not
        happen; its read returns anything

    Latency: a read accepted in a cycle has its data ACTIVATION_READ_LATENCY cycles later; it sees every write
    accepted in an earlier cycle, and not one of the same cycle. Throughput: one read and one write per cycle.
    A reader or writer is refused only in cycles in which one before it is valid.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {f"read_{name}": In(ActivationReadSignature(config)) for name in READERS}
            | {f"write_{name}": In(ActivationWriteSignature(config)) for name in WRITERS}
            | {"fault": Out(1)}
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        pairs = config.activation_words // 2
        assert ACTIVATION_READ_LATENCY == 2  # the memory's register and one behind it

        readers = [getattr(self, f"read_{n}") for n in READERS]
        writers = [getattr(self, f"write_{n}") for n in WRITERS]
        read_valid, read_pair, read_accepted = self._arbitrate(m, readers)
        _, write_pair, write_accepted = self._arbitrate(m, writers)
        write_data, write_mask = Signal.like(writers[0].data), Signal.like(writers[0].mask)
        for writer in reversed(writers):
            with m.If(writer.valid):
                m.d.comb += write_data.eq(writer.data)

        # Each client's pair is judged beside the arbitration, not behind it.
        accepted = Cat(read_accepted, write_accepted)
        outside = Cat(_not_below(client.pair, pairs) for client in (*readers, *writers))
        m.d.sync += self.fault.eq((accepted & outside).any())
        written = Signal(len(writers))
        m.d.comb += [
            written.eq((accepted & ~outside)[len(readers) :]),
            write_mask.eq(_any_of(
                Mux(one, writer.mask, 0) for one, writer in zip(written, writers, strict=True)
            )),
        ]

        read_data = Signal(2 * config.columns * 8)
        lane = 0
        for bank in ("even", "odd"):
            for part, (lanes, style) in enumerate(bank_parts(config)):
                attrs = {"ram_style": style} if style else {}
                memory = Memory(shape=lanes * 8, depth=pairs, init=[], attrs=attrs)
                m.submodules[f"{bank}_{part}"] = memory
                read, write = memory.read_port(), memory.write_port(granularity=8)
                mask, bits = write_mask[lane : lane + lanes], slice(lane * 8, (lane + lanes) * 8)
                m.d.comb += [
                    read.addr.eq(read_pair),
                    read.en.eq(read_valid),
                    write.addr.eq(write_pair),
                    write.data.eq(write_data[bits]),
                    write.en.eq(mask),
                    read_data[bits].eq(arithmetic.delay(m, read.data, 1, name=f"{bank}_{part}_data")),
                ]
                lane += lanes
        for name, accepted in zip(READERS, read_accepted, strict=True):
            reader = getattr(self, f"read_{name}")
            m.d.comb += [
                reader.data.eq(read_data),
                reader.data_valid.eq(
                    arithmetic.delay(
                        m, accepted, ACTIVATION_READ_LATENCY, name=f"{name}_accepted", reset=True
                    )
                ),
            ]
        return m

    @staticmethod
    def _arbitrate(m: Module, clients):
        """Give ``ready`` to the first valid client; returns (any valid, its pair, accepted per client)."""
        valid, pair, accepted = C(0, 1), clients[-1].pair, []
        for client in clients:
            m.d.comb += client.ready.eq(~valid)
            accepted.append(client.valid & ~valid)
            valid = valid | client.valid
        for client in reversed(clients[:-1]):
            pair = Mux(client.valid, client.pair, pair)
        return valid, pair, accepted
