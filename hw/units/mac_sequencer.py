"""From passes to steps: the loops over column tiles and products, and what a step waits for."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import (
    COLUMN_WIDTH,
    RING_COUNT_WIDTH,
    SLOT_WIDTH,
    Phase,
    TileMeta,
    TileReadSignature,
    events_layout,
)
from moevit.hw.units.arithmetic import delay
from moevit.hw.units.mac_passes import Pass
from moevit.isa.formats import COUNT, OPERAND

GATE_CREDITS = 2  #: row tiles of logits that POST's gate holds
JUMP_LATENCY = 3  #: cycles from a new position in the ring to what is known about a jump from there
TAIL_DELAY = 2  #: cycles from a step's issue to its word's release, beyond the count's own register


class Step(data.Struct):
    """What the pipeline must know of a step besides its operands."""

    first: 1  #: of the tile
    last: 1  #: of the tile
    signed: 1
    rows: 6
    meta: TileMeta


class WeightRing(wiring.Component):
    """The array's side of the weight ring: where the next weight word is, and whether it has been written.

    Members
    -------
    take : In(1), the word is read (only when ``available``)
    free : In(1), beside ``take``: the word is freed too; no word before it is waiting to be read again
    rewind : In(1), beside ``take``: the next word is the tail again, unless ``free``
    jump : In(1), the next ``distance`` words are freed unread (only when ``present``, at the tail)
    distance : In(RING_COUNT_WIDTH), at most ``words``
    present : Out(1), that many words are there; ``distance`` and the last ``take`` or ``jump`` must have been
        JUMP_LATENCY cycles ago
    words : In(17), length of the ring
    head : In(RING_COUNT_WIDTH), words written
    tail : Out(RING_COUNT_WIDTH), words freed, TAIL_DELAY cycles late
    available : Out(1)
    addr : Out(OPERAND), of the next word

    Latency: a word is available 2 cycles after ``head`` has counted it.
    Throughput: a word a cycle.
    """

    take: In(1)
    free: In(1)
    rewind: In(1)
    jump: In(1)
    distance: In(RING_COUNT_WIDTH)
    present: Out(1)
    words: In(17)
    head: In(RING_COUNT_WIDTH)
    tail: Out(RING_COUNT_WIDTH)
    available: Out(1)
    addr: Out(OPERAND)

    def elaborate(self, platform) -> Module:
        m = Module()
        end = Signal(OPERAND)
        head = Signal(RING_COUNT_WIDTH)
        before_head = Signal(RING_COUNT_WIDTH, init=-1)
        m.d.sync += [end.eq(self.words - 1), head.eq(self.head), before_head.eq(self.head - 1)]

        count, tail, tail_addr = Signal(RING_COUNT_WIDTH), Signal(RING_COUNT_WIDTH), Signal(OPERAND)
        next_count, next_addr = Signal(RING_COUNT_WIDTH), Signal(OPERAND)
        m.d.comb += [
            next_count.eq(count + 1),
            next_addr.eq(Mux(self.addr == end, 0, self.addr + 1)),
            self.tail.eq(delay(m, tail, TAIL_DELAY, name="tail", reset=True)),
        ]
        m.d.sync += self.available.eq(head != count)
        with m.If(self.take):
            with m.If(self.rewind & ~self.free):
                m.d.sync += [count.eq(tail), self.addr.eq(tail_addr), self.available.eq(head != tail)]
            with m.Else():
                # before_head == count: the head is right behind the word that is taken now.
                m.d.sync += [
                    count.eq(next_count), self.addr.eq(next_addr), self.available.eq(before_head != count)
                ]
            with m.If(self.free):
                m.d.sync += [tail.eq(next_count), tail_addr.eq(next_addr)]

        # A jump has time: its target and whether all before it is there are known some cycles later.
        written = Signal(RING_COUNT_WIDTH)
        target_count, target, wrapped = Signal(RING_COUNT_WIDTH), Signal(OPERAND + 1), Signal(OPERAND + 2)
        target_addr = Signal(OPERAND)
        m.d.sync += [
            written.eq(head - count),
            self.present.eq(written >= self.distance),
            target_count.eq(count + self.distance),
            target.eq(self.addr + self.distance),
            wrapped.eq(target - self.words),
            target_addr.eq(Mux(wrapped[-1], target, wrapped)),
        ]
        with m.If(self.jump):
            m.d.sync += [count.eq(target_count), tail.eq(target_count), self.available.eq(0)]
            m.d.sync += [self.addr.eq(target_addr), tail_addr.eq(target_addr)]
        return m


class Sequencer(wiring.Component):
    """Issues the steps of passes, one a cycle, each when all it needs is there.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_pass : In(stream.Signature(Pass))
    tile_filled : In(1), a buffer of the A tile has been filled
    tile_freed : Out(1), the last read of a buffer is presented
    route_freed : In(1), POST's gate has worked off a row tile of logits; it holds GATE_CREDITS of them
    ring_words, ring_head, ring_tail : see WeightRing
    tile_buffer, tile_step, operand_addr : Out, the reads
    step : Out(Step), beside the reads
    valid : Out(1), there is a step
    events : Out(events_layout("mac")), of ``post`` only what waits for ``route_freed``

    Latency: 2 cycles from a pass to its first step; to SKIP's, JUMP_LATENCY more if it frees words, which are
    counted as ``ring``.
    Throughput: a step a cycle, without a gap between tiles, passes or instructions.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        reads = TileReadSignature(config).members
        super().__init__({
            "i_pass": In(stream.Signature(Pass)),
            "tile_filled": In(1), "tile_freed": Out(1), "route_freed": In(1),
            "ring_words": In(17), "ring_head": In(RING_COUNT_WIDTH), "ring_tail": Out(RING_COUNT_WIDTH),
            "tile_buffer": Out(1), "tile_step": Out(reads["step"].shape),
            "operand_addr": Out(range(config.operand_words)),
            "step": Out(Step), "valid": Out(1), "events": Out(events_layout("mac")),
        })

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.ring = ring = WeightRing()
        valid, job = Signal(), Signal(Pass)
        issue, load = Signal(), Signal()
        step, last_step = Signal(COUNT), Signal()
        column, last_column = Signal(COLUMN_WIDTH), Signal()
        tile_done, pass_done = Signal(), Signal()
        linear, skip, jump, opens_gate = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            tile_done.eq(issue & last_step),
            pass_done.eq(issue & last_step & last_column),
            load.eq(self.i_pass.valid & self.i_pass.ready),
            self.i_pass.ready.eq(~valid | pass_done),
        ]

        # The loops.
        addr, tile_addr, next_tile_addr = Signal(OPERAND), Signal(OPERAND), Signal(OPERAND)
        m.d.comb += next_tile_addr.eq(tile_addr + job.loops.stride)
        with m.If(issue):
            m.d.sync += [step.eq(step + 1), addr.eq(addr + 1), last_step.eq(step == job.loops.steps.minus_2)]
        with m.If(tile_done):
            m.d.sync += [
                step.eq(0), addr.eq(next_tile_addr), tile_addr.eq(next_tile_addr),
                last_step.eq(job.loops.steps.one),
                column.eq(column + 1), last_column.eq(column == job.loops.tiles.minus_2),
            ]
        incoming = self.i_pass.payload
        with m.If(load):
            m.d.sync += [
                valid.eq(1), job.eq(incoming),
                linear.eq(incoming.phase == Phase.LINEAR), skip.eq(incoming.phase == Phase.SKIP),
                jump.eq((incoming.phase == Phase.SKIP) & incoming.release), opens_gate.eq(incoming.gate),
                step.eq(0), addr.eq(incoming.loops.base), tile_addr.eq(incoming.loops.base),
                last_step.eq(incoming.loops.steps.one),
                column.eq(0), last_column.eq(incoming.loops.tiles.one),
            ]
        with m.Elif(pass_done):
            m.d.sync += valid.eq(0)

        # What a step waits for: an A tile, its weight words, room for a gate's logits, the accumulators' copy.
        filled, slot = Signal(range(3)), Signal(SLOT_WIDTH)
        tile_used = Signal()
        m.d.comb += tile_used.eq(pass_done & ~skip)
        m.d.sync += [filled.eq(filled + self.tile_filled - tile_used), slot.eq(slot + tile_used)]
        settled = Signal(JUMP_LATENCY)  # cycles that the ring has known a jump's distance
        m.d.sync += settled.eq(Mux(load, 0, Cat(C(1, 1), settled)))
        credits, routed = Signal(range(GATE_CREDITS + 1), init=GATE_CREDITS), Signal()
        m.d.comb += routed.eq(issue & opens_gate)
        m.d.sync += credits.eq(credits + self.route_freed - routed)
        with m.If(issue & ~load):  # a pass of one step ends in the cycle in which it takes its credit
            m.d.sync += opens_gate.eq(0)
        # A tile of K takes POST C/K cycles to write, however few its rows are.
        draining, spacing = Signal(len(job.rows)), Signal(len(job.rows))
        fewest = self._config.key_groups - 1
        with m.If(load):
            m.d.sync += spacing.eq(Mux(incoming.rows < fewest, fewest, incoming.rows))
        with m.If(tile_done):
            m.d.sync += draining.eq(spacing)
        with m.Elif(draining.any()):
            m.d.sync += draining.eq(draining - 1)
        waits = Signal(self.events.shape())
        no_tile, no_words, no_room, undrained = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            no_tile.eq(~skip & ~filled.any()),
            no_words.eq(linear & ~ring.available | jump & ~(settled[-1] & ring.present)),
            no_room.eq(opens_gate & ~credits.any()),
            undrained.eq(last_step & draining.any()),
            waits.tile.eq(valid & no_tile),
            waits.ring.eq(valid & ~no_tile & no_words),
            waits.post.eq(valid & ~no_tile & ~no_words & no_room),
            waits.drain.eq(valid & ~no_tile & ~no_words & ~no_room & undrained),
            issue.eq(valid & ~(no_tile | no_words | no_room | undrained)),
            waits.busy.eq(issue),
            ring.take.eq(issue & linear),
            ring.free.eq(job.release),
            ring.rewind.eq(last_step & last_column),
            ring.jump.eq(issue & jump),
            ring.distance.eq(job.words),
            ring.words.eq(self.ring_words),
            ring.head.eq(self.ring_head),
            self.ring_tail.eq(ring.tail),
        ]

        m.d.sync += [
            self.events.eq(waits),
            self.valid.eq(issue),
            self.tile_freed.eq(tile_used),
            self.tile_buffer.eq(slot[0]),
            self.tile_step.eq(step),
            self.operand_addr.eq(Mux(linear | skip, ring.addr, addr)),
            self.step.first.eq(step == 0),
            self.step.last.eq(last_step),
            self.step.signed.eq(job.signed),
            self.step.rows.eq(job.rows),
        ]
        meta = self.step.meta
        m.d.sync += [
            meta.phase.eq(job.phase),
            meta.row_tile.eq(job.row_tile),
            meta.column.eq(column),
            meta.head.eq(job.head),
            meta.unit.eq(job.unit),
            meta.slot.eq(slot),
            meta.last_column.eq(last_column),
            meta.last.eq(job.last & last_column),
            meta.bank.eq(job.bank),
        ]
        return m
