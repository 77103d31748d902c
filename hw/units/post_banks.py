"""The two instructions that POST may have rows of: their fields in POST's terms, and their retirement."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import RING_COUNT_WIDTH, InstructionStream, instruction_layout
from moevit.isa.fields import OPCODE_WIDTH
from moevit.isa.formats import (
    ADDRESS,
    COUNT,
    EXPERTS,
    OPERAND,
    STRIDE,
    TILES,
    TOP_K,
    Attention,
    Linear,
    OutputType,
)
from moevit.numerics.activation import Activation
from moevit.numerics.fixed import MULT_WIDTH, SHIFT_WIDTH, ZERO_POINT_WIDTH
from moevit.numerics.route import SCORE_FRACTION, SCORE_WIDTH, RouteOrder


class Settings(data.Struct):
    """An instruction as POST uses it; ATTENTION is brought to the terms of a LINEAR without an activation."""

    release: 1  # frees ``tiles`` post words (LINEAR only)
    tiles: TILES
    activation: 2
    mult: MULT_WIDTH  # 1 without an activation
    shift: SHIFT_WIDTH  # 0 without an activation, SCORE_FRACTION with ``scatter``
    zero_point: ZERO_POINT_WIDTH  # 0 without an activation
    residual: 1
    res: ADDRESS
    out_type: 2
    dst: ADDRESS
    dst_stride: STRIDE
    key_tile: TILES
    value_tile: TILES
    key_base: OPERAND
    key_stride: COUNT
    value_base: OPERAND
    value_stride: COUNT
    token: COUNT
    n_keys: COUNT
    head_words: 10  # words of a head's channels; 0 for LINEAR
    score_mult: MULT_WIDTH
    score_shift: SHIFT_WIDTH
    scatter: 1  # rows take their place and their multiplier from their queue entry
    gate: 1  # the next five are its
    route: RouteOrder
    experts: EXPERTS
    top_k: TOP_K
    threshold: SCORE_WIDTH
    clear: 1


class PostBanks(wiring.Component):
    """Holds two instructions and retires them in order.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    i_instr : In(InstructionStream); instructions go to banks 0, 1, 0, ... and wait while theirs is in use
    banks : Out(Settings[2])
    finished : In(2), one bit per bank: everything of its instruction has been written with this cycle
    retire : Out(1), high for one cycle per instruction, in order, from the cycle after it has finished on
    post_tail : Out(RING_COUNT_WIDTH), post words freed by retired instructions; changes the cycle after
        ``retire``
    busy : Out(1), a bank is in use

    Latency: an instruction is in its bank the cycle after it was taken; a bank is free again the cycle after
    ``retire``. Throughput: one instruction in, and one out, a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "i_instr": In(InstructionStream),
                "banks": Out(data.ArrayLayout(Settings, 2)),
                "finished": In(2),
                "retire": Out(1),
                "post_tail": Out(RING_COUNT_WIDTH),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        newest, oldest = Signal(), Signal()
        used, finished = Signal(2), Signal(2)
        decoded = self._decode(m)

        m.d.comb += self.i_instr.ready.eq(~used.bit_select(newest, 1))
        m.d.comb += [self.retire.eq(finished.bit_select(oldest, 1)), self.busy.eq(used.any())]
        m.d.sync += finished.eq(finished | self.finished)
        with m.If(self.i_instr.valid & self.i_instr.ready):
            m.d.sync += [used.bit_select(newest, 1).eq(1), newest.eq(~newest)]
            for i in range(2):
                with m.If(newest == i):
                    m.d.sync += Value.cast(self.banks[i]).eq(decoded)

        bank = Settings(Mux(oldest, Value.cast(self.banks[1]), Value.cast(self.banks[0])))
        with m.If(self.retire):
            m.d.sync += [
                used.bit_select(oldest, 1).eq(0),
                finished.bit_select(oldest, 1).eq(0),
                oldest.eq(~oldest),
                self.post_tail.eq(self.post_tail + Mux(bank.release, bank.tiles, 0)),
            ]
        return m

    def _decode(self, m) -> data.View:
        """The incoming instruction as ``Settings``."""
        out = Signal(Settings, name="decoded")
        linear = data.View(instruction_layout(Linear), self.i_instr.payload)
        attention = data.View(instruction_layout(Attention), self.i_instr.payload)
        log2 = self.config.columns.bit_length() - 1
        with m.If(self.i_instr.payload[:OPCODE_WIDTH] == Linear.opcode):
            plain = linear.activation == Activation.NONE
            same = (
                "release",
                "tiles",
                "activation",
                "residual",
                "res",
                "out_type",
                "dst",
                "dst_stride",
                "key_tile",
                "value_tile",
                "key_base",
                "key_stride",
                "value_base",
                "value_stride",
                "token",
                "scatter",
                "route",
                "experts",
                "top_k",
                "threshold",
                "clear",
            )
            m.d.comb += [getattr(out, name).eq(getattr(linear, name)) for name in same]
            m.d.comb += [
                out.gate.eq(linear.route != RouteOrder.NONE),
                out.mult.eq(Mux(plain, 1, linear.mult)),
                out.shift.eq(Mux(plain, Mux(linear.scatter, SCORE_FRACTION, 0), linear.shift)),
                out.zero_point.eq(Mux(plain, 0, linear.zero_point)),
            ]
        with m.Else():
            kept = ("dst", "dst_stride", "n_keys", "score_mult", "score_shift")
            m.d.comb += [getattr(out, name).eq(getattr(attention, name)) for name in kept]
            m.d.comb += [
                out.activation.eq(Activation.NONE),
                out.out_type.eq(OutputType.INT8),
                out.mult.eq(1),
                out.head_words.eq((attention.head_dim + (self.config.columns - 1)) >> log2),
            ]
        return out
