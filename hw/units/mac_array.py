"""The array: from instructions to rows of accumulators."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import (
    OPERAND_READ_LATENCY,
    RING_COUNT_WIDTH,
    TILE_READ_LATENCY,
    InstructionStream,
    MemoryReadSignature,
    RowSignature,
    TileReadSignature,
    events_layout,
    marks_layout,
)
from moevit.hw.units.arithmetic import delay
from moevit.hw.units.dot_product import DotProduct, dot_latency, row_latency
from moevit.hw.units.mac_passes import InstructionSetup, PassGenerator
from moevit.hw.units.mac_sequencer import JUMP_LATENCY, Sequencer, Step


def row_delay(config: AcceleratorConfig) -> int:
    """Cycles from the one in which a tile's last operands are addressed to the one with its row 0."""
    return OPERAND_READ_LATENCY + dot_latency(config) + 1 + row_latency(config)


class MacArray(wiring.Component):
    """Computes LINEAR and ATTENTION on T x C accumulators, one step of K products each a cycle.

    Instructions are taken from ``i_instr`` when POST takes them from ``o_instr``, up to two ahead of the
    steps. A step is issued when its A tile has been filled, its weight word (LINEAR) written, and, if it is
    the last of its tile, when the accumulators of the previous tile will be drained by then; the first step of a
    row tile of a gate, when POST's gate has room for its logits. Behind that is a pipeline that never stops.

    A LINEAR with ``n_rows`` = 0 (of an empty queue; the loader puts that there) is one step that needs no A
    tile and gives one row, of phase SKIP, whose accumulators mean nothing. With ``release`` it waits until all
    its weights have been written, and frees them unread.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_instr : In(InstructionStream), LINEAR and ATTENTION, in order
    o_instr : Out(InstructionStream), the same, to POST
    tile_filled : In(1), pulse: the loader has filled the next A-tile buffer
    tile_freed : Out(1), pulse: the last read of the oldest buffer is presented to the A tile in this cycle
    route_freed : In(1), pulse: POST's gate has worked off a row tile; two more are free at reset
    tile : Out(TileReadSignature)
    operand : Out(MemoryReadSignature)
    ring_words : In(17), length of the weight ring; may change only while the ring is empty and both its
        pointers are 0 (after a reset)
    ring_head : In(RING_COUNT_WIDTH), weight words written; a word counted in a cycle is addressed three
        cycles later or after that
    ring_tail : Out(RING_COUNT_WIDTH), weight words freed; a word may be overwritten as soon as it is counted
    o_rows : Out(RowSignature)
    events : Out(events_layout("mac")), a cycle late; none while there is no instruction
    marks : Out(marks_layout("mac")), the first and the last step of an instruction

    Numerics: ``numerics.int_matmul`` of each tile, modulo 2**32.
    Latency: ``START_LATENCY`` cycles from an instruction to its first reads, then ``row_delay`` from a tile's
    last read to its row 0. With ``n_rows`` = 0 and ``release``, ``JUMP_LATENCY`` more.
    Throughput: a step a cycle; the last steps of two tiles are at least C/K cycles apart, and as many as the
    first has valid rows. LINEAR of R row tiles: R * tiles * max(steps, T) cycles. No cycle is lost between instructions
    when the next one is there 4 cycles before the last step of this one.

    Raises ValueError if the read latencies do not fit this pipeline.
    """

    START_LATENCY = 6
    JUMP_LATENCY = JUMP_LATENCY

    def __init__(self, config: AcceleratorConfig):
        if OPERAND_READ_LATENCY <= TILE_READ_LATENCY:
            raise ValueError(
                f"OPERAND_READ_LATENCY must be more than TILE_READ_LATENCY, not {OPERAND_READ_LATENCY}"
            )
        self._config = config
        super().__init__({
            "i_instr": In(InstructionStream), "o_instr": Out(InstructionStream),
            "tile_filled": In(1), "tile_freed": Out(1), "route_freed": In(1),
            "tile": Out(TileReadSignature(config)),
            "operand": Out(MemoryReadSignature(config.operand_words, 8 * config.operand_word_bytes)),
            "ring_words": In(17), "ring_head": In(RING_COUNT_WIDTH), "ring_tail": Out(RING_COUNT_WIDTH),
            "o_rows": Out(RowSignature(config)),
            "events": Out(events_layout("mac")),
            "marks": Out(marks_layout("mac")),
        })

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.setup = setup = InstructionSetup(self._config)
        m.submodules.passes = passes = PassGenerator(self._config)
        m.submodules.sequencer = sequencer = Sequencer(self._config)
        m.submodules.dot = dot = DotProduct(self._config)

        connect(m, flipped(self.i_instr), setup.i_instr)
        connect(m, setup.o_instr, flipped(self.o_instr))
        connect(m, setup.o_job, passes.i_job)
        connect(m, passes.o_pass, sequencer.i_pass)
        blocked, starting, steps = Signal(), Signal(), Signal()
        m.d.sync += [blocked.eq(setup.blocked), starting.eq(setup.busy | passes.o_pass.valid)]
        m.d.comb += [
            sequencer.tile_filled.eq(self.tile_filled),
            self.tile_freed.eq(sequencer.tile_freed),
            sequencer.route_freed.eq(self.route_freed),
            self.tile.buffer.eq(sequencer.tile_buffer),
            self.tile.step.eq(sequencer.tile_step),
            self.operand.addr.eq(sequencer.operand_addr),
            sequencer.ring_words.eq(self.ring_words),
            sequencer.ring_head.eq(self.ring_head),
            self.ring_tail.eq(sequencer.ring_tail),
            self.events.eq(sequencer.events),
            steps.eq(sequencer.events.as_value().any()),
            self.events.post.eq(sequencer.events.post | blocked & ~steps),
            self.events.start.eq(starting & ~blocked & ~steps),
        ]
        fresh, last = Signal(init=1), Signal()
        m.d.comb += [
            last.eq(sequencer.step.last & sequencer.step.meta.last),
            self.marks.first.eq(sequencer.valid & fresh),
            self.marks.last.eq(sequencer.valid & last),
        ]
        with m.If(sequencer.valid):
            m.d.sync += fresh.eq(last)
        self._multiply(m, sequencer, dot)
        self._drain(m, sequencer, dot)
        return m

    def _multiply(self, m: Module, sequencer: Sequencer, dot: DotProduct) -> None:
        """The operands, and the step they belong to, to the multipliers."""
        rows, depth = self._config.rows, self._config.depth
        step = sequencer.step
        signed_a = delay(m, step.signed, TILE_READ_LATENCY, name="signed")
        tile = data.View(data.ArrayLayout(data.ArrayLayout(8, depth), rows), self.tile.data)
        wide = Cat(Cat(tile[t][k], tile[t][k][7] & signed_a) for t in range(rows) for k in range(depth))
        m.d.comb += [
            dot.a.eq(delay(m, wide, OPERAND_READ_LATENCY - TILE_READ_LATENCY, name="wide")),
            dot.b.eq(self.operand.data),
            dot.valid.eq(delay(m, sequencer.valid, OPERAND_READ_LATENCY, name="valid", reset=True)),
            dot.first.eq(delay(m, step.first, OPERAND_READ_LATENCY, name="first")),
            dot.last.eq(delay(m, step.last, OPERAND_READ_LATENCY, name="last")),
        ]

    def _drain(self, m: Module, sequencer: Sequencer, dot: DotProduct) -> None:
        """Counts through the rows of a complete tile."""
        arriving = delay(m, sequencer.step, OPERAND_READ_LATENCY + dot_latency(self._config), name="step")
        latency = row_latency(self._config)
        valid, row, step = Signal(), Signal(range(self._config.rows)), Signal(Step)
        last_row = Signal()
        m.d.comb += last_row.eq(row == step.rows)
        with m.If(dot.done):
            m.d.sync += [valid.eq(1), row.eq(0), step.eq(arriving)]
        with m.Elif(valid):
            m.d.sync += [row.eq(row + 1), valid.eq(~last_row)]
        out = self.o_rows
        m.d.comb += [
            dot.row.eq(row),
            out.valid.eq(delay(m, valid, latency, name="row_valid", reset=True)),
            out.row.eq(delay(m, row, latency, name="row")),
            out.last_row.eq(delay(m, last_row, latency, name="last_row")),
            out.meta.eq(delay(m, step.meta, latency, name="meta")),
            out.acc.eq(dot.acc),
        ]
