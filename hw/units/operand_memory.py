"""The operand memory: the ring of streamed weights and the region of K and V."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import OPERAND_READ_LATENCY, MemoryReadSignature, OperandWriteSignature
from moevit.hw.units.arithmetic import delay


class OperandMemory(wiring.Component):
    """One memory of C x K byte words: one read and one write a cycle, with byte enables.

    Words below ``ring_words`` are the weight ring, which only ``stream`` may write; the others are the K/V
    region, which only ``kv`` may write. A write elsewhere is accepted, not done, and flagged.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    read : In(MemoryReadSignature(operand_words, 8 * operand_word_bytes)), from the array
    kv : In(OperandWriteSignature), always ready
    stream : In(OperandWriteSignature), ready whenever ``kv`` is not valid
    ring_words : In(17)
    fault : Out(1), high for one cycle two cycles after a write that was suppressed

    Latency: OPERAND_READ_LATENCY cycles from address to data; a write accepted in a cycle is seen by an
    address presented two cycles later or after that.
    Throughput: one read and one write a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__({
            "read": In(MemoryReadSignature(config.operand_words, 8 * config.operand_word_bytes)),
            "kv": In(OperandWriteSignature(config)),
            "stream": In(OperandWriteSignature(config)),
            "ring_words": In(17),
            "fault": Out(1),
        })

    def elaborate(self, platform) -> Module:
        m = Module()
        words, width = self._config.operand_words, 8 * self._config.operand_word_bytes

        m.submodules.memory = memory = Memory(
            shape=unsigned(width), depth=words, init=[], attrs={"ram_style": "ultra"}
        )
        write = memory.write_port(granularity=8)
        read = memory.read_port()

        # One register in front of the write port: arbitration and the range check end there.
        kv, stream = self.kv, self.stream
        m.d.comb += [kv.ready.eq(1), stream.ready.eq(~kv.valid)]
        kv_good = (kv.addr >= self.ring_words) & (kv.addr < words)
        stream_good = stream.addr < self.ring_words
        if 1 << len(stream.addr) > words:
            stream_good &= stream.addr < words
        good = Signal()
        valid = Signal()
        m.d.comb += [
            good.eq(Mux(kv.valid, kv_good, stream.valid & stream_good)),
            valid.eq(kv.valid | stream.valid),
        ]
        addr = Signal.like(write.addr, reset_less=True)
        payload = Signal(width, reset_less=True)
        mask = Signal.like(write.en)
        bad = Signal()
        m.d.sync += [
            addr.eq(Mux(kv.valid, kv.addr, stream.addr)),
            payload.eq(Mux(kv.valid, kv.data, stream.data)),
            mask.eq(Mux(good, Mux(kv.valid, kv.mask, stream.mask), 0)),
            bad.eq(valid & ~good),
            self.fault.eq(bad),
        ]
        m.d.comb += [write.addr.eq(addr), write.data.eq(payload), write.en.eq(mask)]

        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(self.read.addr),
            self.read.data.eq(delay(m, read.data, OPERAND_READ_LATENCY - 1, name="output")),
        ]
        return m
