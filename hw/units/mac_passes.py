"""From instructions to passes: what the array computes from one A-tile buffer each, in order."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import (
    HEAD_WIDTH,
    RING_COUNT_WIDTH,
    ROW_TILE_WIDTH,
    InstructionStream,
    Phase,
    instruction_layout,
)
from moevit.isa import Attention, Linear
from moevit.isa.fields import OPCODE_WIDTH
from moevit.isa.formats import COUNT, OPERAND, TILES
from moevit.numerics.route import RouteOrder


class Extent(data.Struct):
    """How many of something a loop runs over, in the form that needs no arithmetic to find the last one."""

    one: 1  #: there is just one
    minus_2: COUNT  #: otherwise their number - 2


class Loops(data.Struct):
    """The loops of a pass over column tiles and steps, and the operand words they read (not LINEAR's)."""

    tiles: Extent
    steps: Extent
    base: OPERAND  #: first word of the first tile
    stride: COUNT  #: words from a tile to the next


class Job(data.Struct):
    """What an instruction asks for, with all its constants computed."""

    linear: 1
    skip: 1  #: a LINEAR without rows
    gate: 1
    release: 1
    signed: 1  #: of LINEAR
    bank: 1
    last_rows: 6  #: valid rows of the last row tile - 1
    last_row_tile: ROW_TILE_WIDTH
    last_head: HEAD_WIDTH
    first: Loops  #: of LINEAR, or of the scores
    second: Loops  #: of P.V
    first_head_stride: OPERAND  #: words from a head to the next
    second_head_stride: OPERAND
    words: RING_COUNT_WIDTH  #: that LINEAR's weights take in the ring


class Pass(data.Struct):
    """Everything computed from one A-tile buffer, or nothing from none (SKIP)."""

    phase: Phase
    gate: 1
    row_tile: ROW_TILE_WIDTH
    head: HEAD_WIDTH
    unit: 1
    bank: 1
    last: 1  #: of the instruction
    rows: 6  #: valid rows - 1
    signed: 1
    release: 1  #: each step frees its weight word, and SKIP all of them
    words: RING_COUNT_WIDTH  #: that SKIP frees
    loops: Loops


class InstructionSetup(wiring.Component):
    """Passes instructions on to POST and computes their constants, ahead of their use.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_instr, o_instr : In and Out(InstructionStream); an instruction is taken when POST takes it
    o_job : Out(stream.Signature(Job))
    blocked : Out(1), an instruction is there and POST does not take it
    busy : Out(1), one is being taken or its constants are on their way

    Latency: 3 cycles. Throughput: an instruction every 4 cycles.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__({
            "i_instr": In(InstructionStream), "o_instr": Out(InstructionStream),
            "o_job": Out(stream.Signature(Job)), "blocked": Out(1), "busy": Out(1),
        })

    def elaborate(self, platform) -> Module:
        m = Module()
        config, job = self._config, self.o_job.payload
        linear = data.View(instruction_layout(Linear), self.i_instr.payload)
        attention = data.View(instruction_layout(Attention), self.i_instr.payload)

        # Cycle 1: the fields, with counts less 1.
        taken, counted, ready = Signal(), Signal(), Signal()
        idle = Signal()
        take = Signal()
        m.d.comb += [
            idle.eq(~(taken | counted | ready)),
            self.o_instr.payload.eq(self.i_instr.payload),
            self.o_instr.valid.eq(self.i_instr.valid & idle),
            self.i_instr.ready.eq(self.o_instr.ready & idle),
            self.blocked.eq(self.o_instr.valid & ~self.o_instr.ready),
            take.eq(self.i_instr.valid & self.i_instr.ready),
            self.busy.eq(take | ~idle),
        ]
        is_linear = self.i_instr.payload[:OPCODE_WIDTH] == Linear.opcode
        no_rows = linear.n_rows == 0  # only where the loader has found an empty queue
        rows = Signal(COUNT)
        length = Signal(COUNT)  # LINEAR's row, or a head's channels
        keys = Signal(COUNT)
        tiles = Signal(TILES)
        fields = Signal(Job)
        bank = Signal()
        m.d.sync += taken.eq(take)
        with m.If(take):
            m.d.sync += [
                bank.eq(~bank),
                rows.eq(Mux(is_linear, linear.n_rows, attention.n_rows) - 1),
                length.eq(Mux(is_linear, linear.length, attention.head_dim) - 1),
                keys.eq(attention.n_keys - 1),
                tiles.eq(linear.tiles - 1),
                fields.linear.eq(is_linear),
                fields.skip.eq(is_linear & no_rows),
                fields.gate.eq(is_linear & (linear.route != RouteOrder.NONE)),
                fields.release.eq(linear.release),
                fields.signed.eq(linear.signed),
                fields.bank.eq(bank),
                fields.last_head.eq(Mux(is_linear, 0, attention.heads - 1)),
                fields.first.base.eq(attention.key_base),
                fields.first.stride.eq(attention.key_stride),
                fields.second.base.eq(attention.value_base),
                fields.second.stride.eq(attention.value_stride),
            ]

        # Cycle 2: in units of T, C and K.
        t, c, k = exact_log2(config.rows), exact_log2(config.columns), exact_log2(config.depth)
        head_tiles = Signal(COUNT)
        factors = Signal(COUNT), Signal(COUNT)  # of the weights or of a head's share of V, in words
        counts = Signal(Job)
        tiles_out = Mux(fields.linear, tiles, keys[c:])
        m.d.comb += head_tiles.eq(length[c:] + 1)
        m.d.sync += [
            counted.eq(taken),
            counts.eq(fields),
            counts.last_rows.eq(Mux(fields.skip, 0, rows[:t])),
            counts.last_row_tile.eq(Mux(fields.skip, 0, rows[t:])),
            _extent(counts.first.tiles, Mux(fields.skip, 0, tiles_out)),
            _extent(counts.first.steps, Mux(fields.skip, 0, length[k:])),
            _extent(counts.second.tiles, length[c:]),
            _extent(counts.second.steps, keys[k:]),
            counts.first_head_stride.eq(head_tiles << (c - k)),
            factors[0].eq(Mux(fields.linear, length[k:] + 1, head_tiles)),
            factors[1].eq(Mux(fields.linear, tiles + 1, fields.second.stride)),
        ]

        # Cycle 3: the only product, once per instruction.
        product = factors[0] * factors[1]
        with m.If(counted):
            m.d.sync += [job.eq(counts), job.second_head_stride.eq(product), job.words.eq(product)]
        m.d.sync += ready.eq(counted | ready & ~self.o_job.ready)
        m.d.comb += self.o_job.valid.eq(ready)
        return m


def _extent(extent, count_minus_1) -> list:
    return [extent.one.eq(count_minus_1 == 0), extent.minus_2.eq(count_minus_1 - 1)]


class PassGenerator(wiring.Component):
    """Lists the passes of an instruction in the order in which the array computes them.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_job : In(stream.Signature(Job))
    o_pass : Out(stream.Signature(Pass))

    Throughput: a pass a cycle, also from an instruction to the next.
    """

    i_job: In(stream.Signature(Job))
    o_pass: Out(stream.Signature(Pass))

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__()

    def elaborate(self, platform) -> Module:
        m = Module()
        valid, job = Signal(), Signal(Job)
        take, start = Signal(), Signal()
        m.d.comb += take.eq(self.o_pass.valid & self.o_pass.ready)

        first = self._walk(m, "first", start, job, job.first_head_stride, self.i_job.payload.first.base)
        second = self._walk(m, "second", start, job, job.second_head_stride, self.i_job.payload.second.base)

        # LINEAR has first passes only; ATTENTION: first, first, second, first, second, ..., second, second.
        in_second = Signal()
        ahead = Signal()  # one unit's first pass is ahead of its second
        exhausted = Signal()  # no first pass is left
        m.d.comb += [first["take"].eq(take & ~in_second), second["take"].eq(take & in_second)]
        with m.If(take):
            m.d.sync += [
                ahead.eq(1),
                exhausted.eq(exhausted | ~in_second & first["last"]),
                in_second.eq(
                    ~job.linear & Mux(in_second, exhausted, ahead | first["last"])
                ),
            ]

        out = self.o_pass.payload
        last = Signal()
        row_tile = Mux(in_second, second["row_tile"], first["row_tile"])
        linear = Mux(job.skip, Phase.SKIP, Phase.LINEAR)
        m.d.comb += [
            last.eq(Mux(in_second, second["last"], job.linear & first["last"])),
            self.o_pass.valid.eq(valid),
            out.phase.eq(Mux(job.linear, linear, Mux(in_second, Phase.CONTEXT, Phase.SCORES))),
            out.gate.eq(job.gate),
            out.row_tile.eq(row_tile),
            out.head.eq(Mux(in_second, second["head"], first["head"])),
            out.unit.eq(~job.linear & Mux(in_second, second["unit"], first["unit"])),
            out.bank.eq(job.bank),
            out.last.eq(last),
            out.rows.eq(Mux(row_tile == job.last_row_tile, job.last_rows, self._config.rows - 1)),
            out.signed.eq(Mux(job.linear, job.signed, ~in_second)),
            out.release.eq(job.linear & job.release & first["last"]),
            out.words.eq(job.words),
            out.loops.eq(Mux(in_second, job.second, job.first)),
            out.loops.base.eq(Mux(in_second, second["base"], first["base"])),
        ]

        m.d.comb += [
            self.i_job.ready.eq(~valid | take & last),
            start.eq(self.i_job.valid & self.i_job.ready),
        ]
        with m.If(start):
            m.d.sync += [
                job.eq(self.i_job.payload), valid.eq(1), in_second.eq(0), ahead.eq(0), exhausted.eq(0),
            ]
        with m.Elif(take & last):
            m.d.sync += valid.eq(0)
        return m

    def _walk(self, m: Module, name: str, start, job, head_stride, first_base) -> dict:
        """Counts through the row tiles of the heads; moves on when ``take``."""
        take = Signal(name=f"{name}_take")
        row_tile = Signal(ROW_TILE_WIDTH, name=f"{name}_row_tile")
        head = Signal(HEAD_WIDTH, name=f"{name}_head")
        unit, base = Signal(name=f"{name}_unit"), Signal(OPERAND, name=f"{name}_base")
        last_row_tile = row_tile == job.last_row_tile
        with m.If(take):
            m.d.sync += [row_tile.eq(row_tile + 1), unit.eq(~unit)]
            with m.If(last_row_tile):
                m.d.sync += [row_tile.eq(0), head.eq(head + 1), base.eq(base + head_stride)]
        with m.If(start):
            m.d.sync += [row_tile.eq(0), head.eq(0), unit.eq(0), base.eq(first_base)]
        return {
            "take": take, "row_tile": row_tile, "head": head, "unit": unit, "base": base,
            "last": last_row_tile & (head == job.last_head),
        }
