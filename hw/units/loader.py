"""The loader: takes LINEAR and ATTENTION apart into A tiles and fills them."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import (
    HEAD_WIDTH,
    QUEUE_COUNT_LATENCY,
    RING_COUNT_WIDTH,
    ROW_TILE_WIDTH,
    SLOT_WIDTH,
    ActivationReadSignature,
    ActivationWriteSignature,
    InstructionStream,
    MemoryReadSignature,
    QueueReadSignature,
    RowEntrySignature,
    RowScaleSignature,
    StagedSignature,
    TileWriteSignature,
    events_layout,
    instruction_layout,
    marks_layout,
)
from moevit.hw.units.context_loader import ContextLoader, cover_steps
from moevit.hw.units.events import causes, raise_first
from moevit.hw.units.keep_writer import KeepWriter
from moevit.hw.units.probability_buffer import ProbabilityBuffer
from moevit.hw.units.queue_rows import QueueRows
from moevit.hw.units.row_loader import RowLoader
from moevit.isa.fields import INSTRUCTION_WIDTH, OPCODE_WIDTH
from moevit.isa.formats import ADDRESS, COUNT, STRIDE, Attention, Linear, NormMode

ARRAY_QUEUE_DEPTH = 4  #: instructions that wait for the array
START_LATENCY = 4  #: cycles from taking an instruction to its first read, when nothing has to be waited for
#: of a queue's instruction: cycles from taking it to the start of the queue's walk, and to the array's queue
QUEUE_START_LATENCY = 3 + QUEUE_COUNT_LATENCY
QUEUE_SEND_LATENCY = QUEUE_START_LATENCY + 1


class _Walk:
    """Which row tile of which head a kind of job has come to."""

    def __init__(self, m: Module, name: str, *, step: Value, last_tile: Value, last_head: Value):
        self.tile = Signal(ROW_TILE_WIDTH, name=f"{name}_tile")
        self.head = Signal(HEAD_WIDTH, name=f"{name}_head")
        self.unit = Signal(name=f"{name}_unit")  #: parity
        self.done = Signal(name=f"{name}_done")
        self.at_last_tile = Signal(name=f"{name}_at_last_tile")
        m.d.comb += self.at_last_tile.eq(self.tile == last_tile)
        with m.If(step):
            m.d.sync += [self.tile.eq(self.tile + 1), self.unit.eq(~self.unit)]
            with m.If(self.at_last_tile):
                m.d.sync += [
                    self.tile.eq(0),
                    self.head.eq(self.head + 1),
                    self.done.eq(self.head == last_head),
                ]

    def restart(self, done: Value | int):
        return [self.tile.eq(0), self.head.eq(0), self.unit.eq(0), self.done.eq(done)]


class Loader(wiring.Component):
    """Fills A tiles in compute order: rows of activation memory, copied or normalised, and probabilities.

    One instruction is loaded at a time. It goes on to the array as soon as it is taken; its first read waits
    for the retired count. A tile that is copied is started when a buffer is free. Rows that are normalised
    are read ahead, as far as the row buffer holds them, and their tile takes its buffer when its first row is
    ready to be normalised. Jobs of the two kinds of ATTENTION do not overlap.

    An instruction of a queue goes on to the array only when the retired count is reached, with the queue's
    count in place of ``n_rows``. For an empty queue nothing is loaded, and ``release`` is replaced by whether
    its STREAM has brought words. One bit of ``i_brought`` is taken for each: if the queue is not empty the bit
    is 1, so the loader goes on and takes it when it comes.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    i_instr : LINEAR and ATTENTION only, with fields in range; ``length``, ``n_keys`` and ``head_dim`` at most
        ``tile_depth``
    o_instr : the same instructions, to the array, from a FIFO of ARRAY_QUEUE_DEPTH
    retired : instructions retired
    act, norm : activation and norm memory
    act_write : kept rows, to the activation memory
    norm_head, norm_tail : norm words written to the ring, and freed
    queue : the queues' counts and entries
    i_brought : one bit for each predicated STREAM
    fault_queue : pulse: a queue holds more entries than its instruction allows. Nothing is taken any more
    i_staged : probabilities, from POST
    o_scale : rows' scales for P.V, to POST; each is there before the array can have its row ready
    o_entry : of rows that are scattered, at the tile's number since reset modulo 2**SLOT_WIDTH; no later than
        the row's first write
    o_tile : A-tile writes
    tile_filled : pulse with the last write of a buffer (if P.V is short: with its last row scale; with ``keep``:
        the cycle after the last of its rows' words is in the activation memory)
    tile_freed : pulse: the array has issued the last read of a buffer
    events : counters, a cycle late; without ``fetch`` and ``order``
    marks : for a simulator's trace

    Latency: from the cycle an instruction is taken, START_LATENCY cycles (one more with LayerNorm) to the
    first read; COPY_LATENCY (3) to the tile write of a copied word, ``norm_latency`` (tiny 59, zcu104 61)
    from a row's last read to its first write. From ``i_staged.last``, 8 cycles to the first write of P.
    Of a queue's instruction, QUEUE_START_LATENCY cycles to the start of the queue's walk and
    QUEUE_SEND_LATENCY to the array's FIFO (one more for an empty queue, if its bit is there); the first read
    comes QUEUE_ROW_LATENCY + 1 cycles after the first entry.
    Throughput, when buffers are free and nobody else reads: T * ceil(length/C) + 1 cycles per tile of LINEAR,
    copied or normalised (if normalised, at least (T * ceil(length/C) + 21) / 2, for two tiles have both
    buffers that long); in ATTENTION a tile of Q before one of P takes rows * ceil(head_dim/C) + 4 cycles, one
    of P rows * ceil(n_keys/C) + 7. Rows of a queue take no longer if they have two words or more and the
    entries come as fast; kept rows, while the memory takes a word a cycle. Between two instructions the
    pipelines run empty: 6 cycles from the last write to the next instruction's first read (one more than
    KEEP_LATENCY of them after the last kept word).
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "i_instr": In(InstructionStream),
                "o_instr": Out(InstructionStream),
                "retired": In(16),
                "act": Out(ActivationReadSignature(config)),
                "act_write": Out(ActivationWriteSignature(config)),
                "norm": Out(MemoryReadSignature(config.norm_words, 32 * config.columns)),
                "norm_head": In(RING_COUNT_WIDTH),
                "norm_tail": Out(RING_COUNT_WIDTH),
                "queue": Out(QueueReadSignature()),
                "i_brought": In(stream.Signature(1)),
                "fault_queue": Out(1),
                "i_staged": In(StagedSignature(config)),
                "o_scale": Out(RowScaleSignature(config)),
                "o_entry": Out(RowEntrySignature(config)),
                "o_tile": Out(TileWriteSignature(config)),
                "tile_filled": Out(1),
                "tile_freed": In(1),
                "events": Out(events_layout("load")),
                "marks": Out(marks_layout("load")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.rows = rows = RowLoader(config)
        m.submodules.context = context = ContextLoader(config)
        m.submodules.probabilities = probabilities = ProbabilityBuffer(config)
        m.submodules.keep = keep = KeepWriter(config)
        m.submodules.queue_rows = queue_rows = QueueRows()
        m.submodules.array_queue = array_queue = SyncFIFOBuffered(
            width=INSTRUCTION_WIDTH, depth=ARRAY_QUEUE_DEPTH
        )
        wiring.connect(m, wiring.flipped(self.act), rows.act)
        wiring.connect(m, wiring.flipped(self.norm), rows.norm)
        wiring.connect(m, wiring.flipped(self.i_staged), probabilities.i_staged)
        wiring.connect(m, wiring.flipped(self.o_scale), context.o_scale)
        wiring.connect(m, wiring.flipped(self.act_write), keep.act_write)
        wiring.connect(m, wiring.flipped(self.o_entry), rows.o_entry)
        wiring.connect(m, wiring.flipped(self.queue.entries), queue_rows.i_entries)
        wiring.connect(m, queue_rows.o_rows, rows.i_rows)
        wiring.connect(m, context.read, probabilities.read)

        word = Signal(INSTRUCTION_WIDTH)  # the instruction being loaded
        plan = self._plan(m, word)
        take, begin, run, finish, send = (Signal(name=n) for n in ("take", "begin", "run", "finish", "send"))
        incoming = data.View(instruction_layout(Linear), self.i_instr.payload)
        of_queue = self._is(Linear, self.i_instr.payload) & (incoming.gather | incoming.scatter)
        with m.If(take):
            m.d.sync += word.eq(self.i_instr.payload)
        m.d.comb += [
            array_queue.w_data.eq(Mux(send, word, self.i_instr.payload)),
            array_queue.w_en.eq(send | (take & ~of_queue)),
            array_queue.r_en.eq(self.o_instr.ready),
            self.o_instr.payload.eq(array_queue.r_data),
            self.o_instr.valid.eq(array_queue.r_rdy),
        ]
        norm_ready = self._norm_ring(m, plan, finish)
        done, no_buffer, no_scores = self._jobs(m, plan, begin, run)

        m.d.comb += [
            self.o_tile.valid.eq(rows.o_tile.valid | context.o_tile.valid),
            self.tile_filled.eq((rows.filled & ~plan.keep) | keep.filled | context.filled),
        ]
        for name in ("buffer", "row", "word", "data"):
            m.d.comb += getattr(self.o_tile, name).eq(
                Mux(context.o_tile.valid, getattr(context.o_tile, name), getattr(rows.o_tile, name))
            )

        waits = causes("tile", "queue", "scores", "norm", "dependency", "array", "start")
        m.d.comb += waits.start.eq(1)
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += [
                    self.i_instr.ready.eq(array_queue.w_rdy),
                    take.eq(self.i_instr.valid & array_queue.w_rdy),
                    waits.start.eq(take),
                    waits.array.eq(self.i_instr.valid & ~array_queue.w_rdy),
                ]
                with m.If(take):
                    m.next = "PLAN"
            with m.State("PLAN"):
                m.d.comb += begin.eq(1)
                m.next = "DEPENDENCY"
            with m.State("DEPENDENCY"):
                behind = (self.retired - plan.wait)[15]
                m.d.comb += waits.dependency.eq(behind)
                with m.If(~behind):
                    with m.If(plan.queued):
                        m.next = "COUNT"
                    with m.Elif(plan.wide):
                        m.next = "NORM"
                    with m.Else():
                        m.next = "JOBS"
            with m.State("NORM"):
                m.d.comb += waits.norm.eq(~norm_ready)
                with m.If(norm_ready):
                    m.next = "JOBS"
            with m.State("JOBS"):
                m.d.comb += [
                    run.eq(1),
                    waits.tile.eq(no_buffer | rows.waiting),
                    waits.scores.eq(no_scores),
                ]
                with m.If(done & ~rows.busy & context.idle & ~keep.busy):
                    m.d.comb += finish.eq(1)
                    m.next = "IDLE"
            ends_empty = self._queue_states(m, word, plan, send, waits)
        self._watch(m, take, finish | ends_empty, waits)
        return m

    def _watch(self, m: Module, take, ends, waits) -> None:
        """What is said of each cycle."""
        rows, context, keep = m.submodules.rows, m.submodules.context, m.submodules.keep
        refused = self.act.valid & ~self.act.ready | self.act_write.valid & ~self.act_write.ready
        raise_first(m, self.events, {
            "busy": rows.reads | self.o_tile.valid | self.act_write.valid & self.act_write.ready,
            "memory": refused,
            "tile": waits.tile,
            "queue": waits.queue | rows.seeks,
            "scores": waits.scores,
            "pipeline": rows.busy | ~context.idle | keep.busy,
            **{name: getattr(waits, name) for name in ("norm", "dependency", "array", "start")},
        })  # fmt: skip
        unread = Signal()  # nothing of the instruction has been
        with m.If(take | rows.reads):
            m.d.sync += unread.eq(take)
        m.d.comb += [self.marks.take.eq(take), self.marks.first.eq(unread & rows.reads), self.marks.last.eq(ends)]

    @staticmethod
    def _is(kind, word: Value) -> Value:
        return word[:OPCODE_WIDTH] == kind.opcode

    def _queue_states(self, m: Module, word: Signal, plan, send: Signal, waits) -> Signal:
        """From the retired count to the jobs of a queue's instruction, which goes on to the array here.

        Returns whether one of an empty queue has.
        """
        linear = data.View(instruction_layout(Linear), word)
        start = m.submodules.queue_rows.start
        count, over, empty = Signal(COUNT), Signal(), Signal()
        cycle = Signal(range(QUEUE_COUNT_LATENCY))
        owed = Signal(3)  # bits of ``i_brought`` of instructions that did not wait for theirs
        owe, repay, needed, sent_empty = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.queue.queue.eq(linear.queue),
            self.queue.start.eq(start),
            m.submodules.queue_rows.count.eq(count),
            self.i_brought.ready.eq(needed | (owed != 0)),
            repay.eq(self.i_brought.valid & (owed != 0)),
        ]
        m.d.sync += [owed.eq(owed + owe - repay), self.fault_queue.eq(0)]
        with m.State("COUNT"):
            m.d.sync += [
                cycle.eq(cycle + 1),
                count.eq(self.queue.count),
                over.eq(self.queue.count > linear.n_rows),
                empty.eq(self.queue.count == 0),
            ]
            with m.If(cycle == QUEUE_COUNT_LATENCY - 1):
                m.d.sync += cycle.eq(0)
                m.next = "QUEUE"
        with m.State("QUEUE"):
            with m.If(over):
                m.d.sync += self.fault_queue.eq(1)
                m.next = "STOPPED"
            with m.Elif(empty):
                m.next = "BROUGHT"
            with m.Elif(~owed.all()):
                m.d.comb += [start.eq(1), owe.eq(1)]
                m.d.sync += linear.n_rows.eq(count)
                m.next = "SEND"
            with m.Else():
                m.d.comb += waits.queue.eq(1)
        with m.State("SEND"):
            m.d.comb += send.eq(1)
            m.next = "JOBS"
        with m.State("BROUGHT"):
            m.d.comb += needed.eq(owed == 0)
            with m.If(needed & self.i_brought.valid):
                m.d.sync += [linear.n_rows.eq(0), linear.release.eq(self.i_brought.payload)]
                m.next = "SEND_EMPTY"
            with m.Else():
                m.d.comb += waits.queue.eq(1)
        with m.State("SEND_EMPTY"):
            m.d.comb += [send.eq(1), sent_empty.eq(1)]
            m.next = "IDLE"
        with m.State("STOPPED"):
            pass  # until the machine is reset
        return sent_empty

    def _plan(self, m: Module, word: Signal) -> data.View:
        """What the jobs need of the instruction, in registers, from the cycle after it is taken."""
        config = self._config
        linear = data.View(instruction_layout(Linear), word)
        attention = data.View(instruction_layout(Attention), word)
        row_bits, lane_bits = exact_log2(config.rows), exact_log2(config.columns)
        plan = Signal(
            data.StructLayout(
                {
                    "attention": 1,
                    "wide": 1,
                    "keep": 1,
                    "queued": 1,  # the rows are those of a queue
                    "release": 1,
                    "wait": 16,
                    "src": ADDRESS,
                    "stride": STRIDE,
                    "last_tile": ROW_TILE_WIDTH,  # of a head
                    "tail_row": range(config.rows),  # last row of the last tile
                    "last_head": HEAD_WIDTH,
                    "last_word": range(config.max_key_tiles),  # of a row that is copied or normalised
                    "last_key_tile": range(config.max_key_tiles),
                    "covered": 1,  # see ContextLoader
                }
            )
        )
        is_attention, is_linear = self._is(Attention, word), self._is(Linear, word)
        wide = is_linear & (linear.norm != NormMode.NONE)

        def either(of_attention: Value, of_linear: Value) -> Value:
            return Mux(is_attention, of_attention, of_linear)

        last_row = either(attention.n_rows, linear.n_rows) - 1
        m.d.sync += [
            plan.attention.eq(is_attention),
            plan.wide.eq(wide),
            plan.keep.eq(wide & linear.keep),
            plan.queued.eq(is_linear & (linear.gather | linear.scatter)),
            plan.release.eq(linear.release),
            plan.wait.eq(either(attention.wait, linear.wait)),
            plan.src.eq(either(attention.src, linear.src)),
            plan.stride.eq(either(attention.src_stride, linear.src_stride)),
            plan.last_tile.eq(last_row[row_bits:]),
            plan.tail_row.eq(last_row[:row_bits]),
            plan.last_head.eq(Mux(is_attention, attention.heads - 1, 0)),
            plan.last_word.eq((either(attention.head_dim, linear.length) - 1)[lane_bits:]),
            plan.last_key_tile.eq((attention.n_keys - 1)[lane_bits:]),
            plan.covered.eq(attention.n_keys > cover_steps(config) * config.depth),
        ]

        rows, context = m.submodules.rows, m.submodules.context
        keep, queue_rows = m.submodules.keep, m.submodules.queue_rows
        m.d.comb += [
            queue_rows.base.eq(plan.src),
            queue_rows.stride.eq(plan.stride),
            queue_rows.gather.eq(linear.gather),
            rows.listed.eq(plan.queued),
            rows.scatter.eq(linear.scatter),
            rows.hold.eq(plan.keep & keep.hold),
            keep.base.eq(linear.keep_dst),
            keep.stride.eq(linear.keep_stride),
            keep.entered.eq(plan.keep & rows.entered),
            keep.i_valid.eq(plan.keep & rows.o_tile.valid),
            keep.i_data.eq(rows.o_tile.data),
            keep.i_last.eq(rows.o_last),
            keep.i_filled.eq(rows.filled),
            rows.stride.eq(plan.stride),
            rows.wide.eq(plan.wide),
            rows.constants.length.eq(linear.length),
            rows.constants.last_word.eq(plan.last_word),
            rows.constants.affine.eq(linear.norm == NormMode.AFFINE),
            rows.constants.signed.eq(linear.signed),
            rows.constants.inverse_mult.eq(linear.inverse_mult),
            rows.constants.inverse_shift.eq(linear.inverse_shift),
            rows.constants.epsilon.eq(linear.epsilon),
            rows.constants.output_shift.eq(linear.norm_shift),
            context.last_tile.eq(plan.last_key_tile),
            context.mult.eq(attention.out_mult),
            context.shift.eq(attention.out_shift),
            context.covered.eq(plan.covered),
        ]
        return plan

    def _norm_ring(self, m: Module, plan, finish) -> Signal:
        """The ring's tail; returns whether the instruction's parameters have been written."""
        base = Signal(range(self._config.norm_words))  # where the tail is
        available = Signal(RING_COUNT_WIDTH)
        m.d.sync += available.eq(self.norm_head - self.norm_tail)
        m.d.comb += m.submodules.rows.constants.norm_base.eq(base)
        words = plan.last_word + 1
        with m.If(finish & plan.wide & plan.release):
            following = base + words
            wrapped = following - self._config.norm_words
            m.d.sync += [
                self.norm_tail.eq(self.norm_tail + words),
                base.eq(Mux(wrapped < 0, following, wrapped)),
            ]
        ready = Signal()
        m.d.comb += ready.eq(available > plan.last_word)
        return ready

    def _jobs(self, m: Module, plan, begin, run) -> tuple[Value, Value, Value]:
        """Starts one tile after another while ``run``, from row 0 after ``begin``.

        Returns (all have been started, one waits for a buffer, one waits for scores only).
        """
        rows, context, probabilities = m.submodules.rows, m.submodules.context, m.submodules.probabilities
        start_rows, start_context = Signal(), Signal()
        q = _Walk(m, "q", step=start_rows, last_tile=plan.last_tile, last_head=plan.last_head)
        p = _Walk(m, "p", step=start_context, last_tile=plan.last_tile, last_head=plan.last_head)

        # LINEAR: all rows; ATTENTION: Q(0), Q(1), P(0), Q(2), P(1), ...
        ahead = Signal(2)  # tiles of Q started whose tile of P is not
        next_p = Signal()
        m.d.comb += next_p.eq(plan.attention & (ahead[1] | q.done))
        free, slot = Signal(2, init=2), Signal(SLOT_WIDTH)
        # A tile that is normalised needs its buffer only when its first row is ready.
        scores = probabilities.complete.bit_select(p.unit, 1)
        can_start = run & ((free != 0) | plan.wide) & ~context.busy
        taken = Mux(plan.wide, rows.begin, start_rows | start_context)
        m.d.comb += [
            start_rows.eq(can_start & ~q.done & ~next_p & rows.ready),
            start_context.eq(can_start & ~p.done & next_p & ~rows.busy & scores),
            rows.go.eq(free != 0),
        ]
        m.d.sync += [
            ahead.eq(ahead + start_rows - start_context),
            free.eq(free + self.tile_freed - taken),
            slot.eq(slot + (start_rows | start_context)),
        ]

        head_base = Signal(ADDRESS)
        m.d.comb += m.submodules.keep.start.eq(begin)
        with m.If(begin):
            m.d.sync += [q.restart(0), p.restart(0), ahead.eq(0)]
        with m.If(run & start_rows & q.at_last_tile):
            m.d.sync += head_base.eq(head_base + plan.last_word + 1)
        with m.Elif(~run):
            m.d.sync += head_base.eq(plan.src)

        full_row = self._config.rows - 1
        m.d.comb += [
            rows.start.eq(start_rows),
            rows.last_row.eq(Mux(q.at_last_tile, plan.tail_row, full_row)),
            rows.slot.eq(slot),
            rows.load.eq(q.tile == 0),
            rows.base.eq(head_base),
            context.start.eq(start_context),
            context.unit.eq(p.unit),
            context.last_row.eq(Mux(p.at_last_tile, plan.tail_row, full_row)),
            context.buffer.eq(slot[0]),
            probabilities.take.eq(start_context),
            probabilities.take_unit.eq(p.unit),
        ]
        done = Signal()
        m.d.comb += done.eq(q.done & (p.done | ~plan.attention))
        return done, ~done & (free == 0) & ~plan.wide, ~done & (free != 0) & next_p & ~scores
