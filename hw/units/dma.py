"""The DMA unit: DMA_IN scatters bytes of DRAM into activation memory, DMA_OUT fills the output buffer."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from moevit.config import DMA_QUEUE_DEPTH, AcceleratorConfig
from moevit.hw.interfaces import (
    PAIR_WIDTH,
    ActivationReadSignature,
    ActivationWriteSignature,
    InstructionStream,
    events_layout,
    instruction_layout,
    marks_layout,
    read_data_signature,
    request_signature,
    write_data_signature,
)
from moevit.hw.units.events import causes, raise_first
from moevit.isa import INSTRUCTION_WIDTH, DmaIn, DmaOut
from moevit.isa.formats import BYTE_ADDRESS, DmaSource

#: used bits of an instruction
JOB_WIDTH = max(f.offset + f.width for kind in (DmaIn, DmaOut) for f in kind.fields())
RUN_WIDTH = 25  #: bits of the bytes of a run; more than the activation memory can have
RUN_QUEUE_DEPTH = 16  #: runs that have been requested and wait for their data
PLAN_QUEUE_DEPTH = 4  #: moves that wait for their data
MOVE_QUEUE_DEPTH = 8  #: moves that wait for the activation memory
PAIR_QUEUE_DEPTH = 4  #: pairs read, or being read, for DMA_OUT
UNANSWERED = 3  #: DMA_OUTs that may wait for the answers to their writes

FAULTS_LAYOUT = data.StructLayout({
    "input_range": 1, "output_range": 1, "image_range": 1, "activation_range": 1,
})


def job_view(kind: type, job: Value) -> data.View:
    """The used bits of an instruction, with names."""
    return data.View(instruction_layout(kind), Cat(job, C(0, INSTRUCTION_WIDTH - JOB_WIDTH)))


def rotate_bytes(value: Value, amount: Value, unit_bytes: int) -> Value:
    """``value`` with its bytes moved up by ``amount`` units, cyclically."""
    for i in range(len(amount)):
        value = Mux(amount[i], value.rotate_left(8 * unit_bytes << i), value)
    return value


class DmaExtents(wiring.Component):
    """How far an instruction reaches in both memories, by shifting and adding.

    Members
    -------
    start : In(1), takes ``job``, which stays until ``done``
    job : In(JOB_WIDTH)
    is_out : In(1)
    done : Out(1), level until the next start
    run_bytes : Out(42), bytes of a run of DMA_IN
    dram_end : Out(42), bytes from the start of the DRAM buffer to the end of what is read or written
    activation_end : Out(42), bytes, likewise

    Latency: 1 cycle for DMA_OUT; for DMA_IN 4, and one for each bit of the three loops' last indices.
    """

    start: In(1)
    job: In(JOB_WIDTH)
    is_out: In(1)
    done: Out(1)
    run_bytes: Out(42)
    dram_end: Out(42)
    activation_end: Out(42)

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        word_bits = exact_log2(self.config.columns)
        into, out = job_view(DmaIn, self.job), job_view(DmaOut, self.job)
        times = Signal(12)
        dram_step, activation_step = Signal(42), Signal(42)
        running = Signal()

        def loop(count, dram, activation):
            m.d.sync += [times.eq(count - 1), dram_step.eq(dram), activation_step.eq(activation)]

        with m.If(times[0]):
            m.d.sync += [
                self.dram_end.eq(self.dram_end + dram_step),
                self.activation_end.eq(self.activation_end + activation_step),
            ]
        m.d.sync += [
            times.eq(times >> 1), dram_step.eq(dram_step << 1), activation_step.eq(activation_step << 1),
        ]
        m.d.comb += running.eq(times != 0)

        with m.FSM(name="extents"):
            with m.State("IDLE"):
                m.d.comb += self.done.eq(1)
                with m.If(self.start):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                with m.If(self.is_out):
                    m.d.sync += [
                        self.dram_end.eq(out.offset + (out.words << word_bits)),
                        self.activation_end.eq((out.src + out.words) << word_bits),
                    ]
                    m.next = "IDLE"
                with m.Else():
                    m.d.sync += [
                        self.dram_end.eq(into.segment_bytes),
                        self.activation_end.eq(into.dst + into.segment_bytes),
                    ]
                    loop(into.segments, into.segment_bytes, into.dst_segment)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(~running):
                    m.d.sync += [
                        self.run_bytes.eq(self.dram_end), self.dram_end.eq(self.dram_end + into.offset),
                    ]
                    loop(into.count0, into.src_stride0, into.dst_stride0)
                    m.next = "OUTER"
            with m.State("OUTER"):
                with m.If(~running):
                    loop(into.count1, into.src_stride1, into.dst_stride1)
                    m.next = "INNER"
            with m.State("INNER"):
                with m.If(~running):
                    m.next = "IDLE"
        return m


class DmaCopyIn(wiring.Component):
    """Executes a DMA_IN: requests run after run, and moves what comes to its places.

    Up to RUN_QUEUE_DEPTH runs are under way. One move a cycle: of up to a bus word of bytes, as far as the
    segment and the pair of activation words go, out of two neighbouring bus words. The moves are planned
    ahead.

    Members
    -------
    start : In(1); job : In(JOB_WIDTH), address : In, of the first run, and run_bytes : In stay while busy
    busy : Out(1), from the cycle after start until the last byte is written
    moving, starved : Out(1), a move was made; one was not because data is missing
    planned : Out(1), the next move is known
    o_request, i_data, act_write : as in Dma

    Throughput: a run takes a cycle, and one more for each move; at least two.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.byte_bits = exact_log2(config.axi_bytes)
        self.pair_bits = exact_log2(2 * config.columns)
        self.run_layout = data.StructLayout({"low": self.byte_bits, "dst": BYTE_ADDRESS})
        self.move_layout = data.StructLayout({
            "data": config.axi_data_width, "rotation": self.byte_bits, "dst": BYTE_ADDRESS,
            "bytes_less": self.byte_bits,
        })
        self.plan_layout = data.StructLayout({
            "position": self.byte_bits,  # of the first byte in the held bus word
            "bytes_less": self.byte_bits,
            "dst": BYTE_ADDRESS,
            "straddles": 1,  # its last byte lies in the next bus word
            "releases": 1,  # nothing more is needed of the held one
            "drops": 1,  # nor of the next one
        })
        super().__init__({
            "start": In(1),
            "job": In(JOB_WIDTH),
            "address": In(config.axi_address_width),
            "run_bytes": In(RUN_WIDTH),
            "busy": Out(1),
            "moving": Out(1),
            "starved": Out(1),
            "planned": Out(1),
            "o_request": Out(request_signature(config)),
            "i_data": In(read_data_signature(config)),
            "act_write": Out(ActivationWriteSignature(config)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.runs = runs = SyncFIFO(width=self.run_layout.size, depth=RUN_QUEUE_DEPTH)
        m.submodules.beats = beats = SyncFIFO(width=self.config.axi_data_width, depth=2)
        m.submodules.plans = plans = SyncFIFO(width=self.plan_layout.size, depth=PLAN_QUEUE_DEPTH)
        m.submodules.moves = moves = SyncFIFO(width=self.move_layout.size, depth=MOVE_QUEUE_DEPTH)
        m.d.comb += [
            beats.w_data.eq(self.i_data.payload.data),
            beats.w_en.eq(self.i_data.valid),
            self.i_data.ready.eq(beats.w_rdy),
        ]
        job = job_view(DmaIn, self.job)
        requesting, planning, merging, writing = Signal(), Signal(), Signal(), Signal()
        self._request(m, job, runs, requesting)
        self._plan(m, job, runs, plans, planning)
        self._move(m, plans, beats, moves, merging)
        self._write(m, moves, writing)
        m.d.comb += self.busy.eq(
            requesting | runs.r_rdy | planning | plans.r_rdy | merging | moves.r_rdy | writing
        )
        return m

    def _request(self, m, job, runs, requesting):
        src, row_src = Signal(self.config.axi_address_width), Signal(self.config.axi_address_width)
        dst, row_dst = Signal(BYTE_ADDRESS), Signal(BYTE_ADDRESS)
        left0, left1 = Signal(12), Signal(12)
        last = Signal()
        run = Signal(self.run_layout)
        request = self.o_request.payload
        m.d.comb += [runs.w_data.eq(run), runs.w_en.eq(self.o_request.valid & self.o_request.ready)]
        with m.FSM(name="request"):
            with m.State("IDLE"):
                m.d.sync += [
                    src.eq(self.address), row_src.eq(self.address), dst.eq(job.dst), row_dst.eq(job.dst),
                    left0.eq(job.count0 - 1), left1.eq(job.count1 - 1),
                ]
                with m.If(self.start):
                    m.next = "NEXT"
            with m.State("NEXT"):
                low = src[:self.byte_bits]
                m.d.comb += requesting.eq(1)
                m.d.sync += [
                    request.addr.eq(src[self.byte_bits:] << self.byte_bits),
                    request.beats.eq((self.run_bytes + low + self.config.axi_bytes - 1) >> self.byte_bits),
                    run.low.eq(low),
                    run.dst.eq(dst),
                    last.eq((left0 == 0) & (left1 == 0)),
                ]
                with m.If(left1 == 0):
                    next_src, next_dst = row_src + job.src_stride0, row_dst + job.dst_stride0
                    m.d.sync += [
                        src.eq(next_src), row_src.eq(next_src), dst.eq(next_dst), row_dst.eq(next_dst),
                        left0.eq(left0 - 1), left1.eq(job.count1 - 1),
                    ]
                with m.Else():
                    m.d.sync += [
                        src.eq(src + job.src_stride1), dst.eq(dst + job.dst_stride1), left1.eq(left1 - 1),
                    ]
                m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += [requesting.eq(1), self.o_request.valid.eq(runs.w_rdy)]
                with m.If(self.o_request.valid & self.o_request.ready):
                    with m.If(last):
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "NEXT"

    def _plan(self, m, job, runs, plans, planning):
        """Cut the runs into moves; independent of the data. A count or length "less" is less one here."""
        byte_bits, pair_bits = self.byte_bits, self.pair_bits
        run = data.View(self.run_layout, runs.r_data)
        active, first = Signal(), Signal()  # in a run, at its first move
        low = Signal(byte_bits)
        dst, next_dst = Signal(BYTE_ADDRESS), Signal(BYTE_ADDRESS)  # of the next byte, of the next segment
        left_less, segments_left = Signal(20), Signal(12)

        # To the end of the pair, but at most a bus word.
        to_pair_end_less = ~dst[:pair_bits]
        limit_less, bytes_less = Signal(byte_bits), Signal(byte_bits)
        segment_end, run_end, go = Signal(), Signal(), Signal()
        m.d.comb += [
            limit_less.eq(Mux(to_pair_end_less[byte_bits:].any(), ~0, to_pair_end_less)),
            segment_end.eq(~left_less[byte_bits:].any() & (left_less[:byte_bits] <= limit_less)),
            bytes_less.eq(Mux(segment_end, left_less, limit_less)),
            run_end.eq(segment_end & (segments_left == 0)),
            go.eq(active & (plans.level <= PLAN_QUEUE_DEPTH - 2)),
        ]
        with m.If(go):
            m.d.sync += [first.eq(0), dst.eq(dst + bytes_less + 1), left_less.eq(left_less - bytes_less - 1)]
            with m.If(segment_end):
                m.d.sync += [
                    dst.eq(next_dst), next_dst.eq(next_dst + job.dst_segment),
                    left_less.eq(job.segment_bytes - 1), segments_left.eq(segments_left - 1),
                ]
            with m.If(run_end):
                m.d.sync += active.eq(0)
        with m.If(~active):
            m.d.comb += runs.r_en.eq(1)
            m.d.sync += [
                active.eq(runs.r_rdy), first.eq(1), low.eq(run.low),
                dst.eq(run.dst), next_dst.eq(run.dst + job.dst_segment),
                left_less.eq(job.segment_bytes - 1), segments_left.eq(job.segments - 1),
            ]

        # A cycle later: where the bytes lie in the bus words.
        cut = Signal(data.StructLayout({
            "valid": 1, "first": 1, "low": byte_bits, "bytes_less": byte_bits, "dst": BYTE_ADDRESS,
            "run_end": 1,
        }))
        position = Signal(byte_bits)
        plan = Signal(self.plan_layout)
        last = Signal(byte_bits + 1)  # position of the last byte
        m.d.sync += [
            cut.valid.eq(go), cut.first.eq(first), cut.low.eq(low), cut.bytes_less.eq(bytes_less),
            cut.dst.eq(dst), cut.run_end.eq(run_end),
        ]
        m.d.comb += [
            plan.position.eq(Mux(cut.first, cut.low, position)),
            plan.bytes_less.eq(cut.bytes_less),
            plan.dst.eq(cut.dst),
            last.eq(plan.position + cut.bytes_less),
            plan.straddles.eq(last[byte_bits]),
            plan.releases.eq(last[byte_bits] | last[:byte_bits].all() | cut.run_end),
            plan.drops.eq(last[byte_bits] & cut.run_end),
            plans.w_data.eq(plan),
            plans.w_en.eq(cut.valid),
            planning.eq(active | cut.valid),
        ]
        with m.If(cut.valid):
            m.d.sync += position.eq(last + 1)

    def _move(self, m, plans, beats, moves, merging):
        """Take the bytes of each planned move out of the two bus words that they lie in."""
        plan = data.View(self.plan_layout, plans.r_data)
        held, held_valid = Signal(self.config.axi_data_width), Signal()  # the bus word before ``beats``' next
        there, take, advance = Signal(), Signal(), Signal()
        m.d.comb += [
            there.eq(held_valid & (~plan.straddles | beats.r_rdy)),
            take.eq(plans.r_rdy & there & (moves.level <= MOVE_QUEUE_DEPTH - 2)),
            advance.eq(~held_valid | (take & plan.releases)),
            plans.r_en.eq(take),
            beats.r_en.eq(advance),
            self.moving.eq(take),
            self.starved.eq(plans.r_rdy & ~there),
            self.planned.eq(plans.r_rdy),
        ]
        with m.If(advance):
            # At the end of a run what is left of its last bus word is dropped, whichever of the two that is.
            m.d.sync += [held.eq(beats.r_data), held_valid.eq(beats.r_rdy & ~(take & plan.drops))]

        move = Signal(self.move_layout)
        low_bits = min(self.byte_bits, self.pair_bits)
        m.d.sync += [
            merging.eq(take),
            move.data.eq(Cat(
                Mux(plan.position <= i, held.word_select(i, 8), beats.r_data.word_select(i, 8))
                for i in range(self.config.axi_bytes)
            )),
            move.rotation.eq(plan.dst[:low_bits] - plan.position),
            move.dst.eq(plan.dst),
            move.bytes_less.eq(plan.bytes_less),
        ]
        m.d.comb += [moves.w_data.eq(move), moves.w_en.eq(merging)]

    def _write(self, m, moves, writing):
        """Rotate the bytes to their places, in two stages, and write those of the move."""
        config, write = self.config, self.act_write
        half = self.byte_bits // 2
        move = data.View(self.move_layout, moves.r_data)
        turned = Signal(config.axi_data_width)
        turn = Signal(self.byte_bits - half)
        first, last = Signal(self.pair_bits), Signal(self.pair_bits)
        pair, valid = Signal(PAIR_WIDTH), Signal()
        step = Signal()
        m.d.comb += [
            step.eq(~write.valid | write.ready),
            moves.r_en.eq(step),
            writing.eq(valid | write.valid),
        ]
        with m.If(step):
            m.d.sync += [
                valid.eq(moves.r_rdy),
                turned.eq(rotate_bytes(move.data, move.rotation[:half], 1)),
                turn.eq(move.rotation[half:]),
                first.eq(move.dst),
                last.eq(move.dst[:self.pair_bits] + move.bytes_less),
                pair.eq(move.dst[self.pair_bits:]),
            ]
            placed = rotate_bytes(turned, turn, 1 << half)
            pair_bytes = 2 ** self.pair_bits
            m.d.sync += [
                write.valid.eq(valid),
                write.pair.eq(pair),
                write.data.eq(placed.replicate(max(1, pair_bytes // config.axi_bytes))),
                write.mask.eq(Cat((first <= i) & (last >= i) for i in range(pair_bytes))),
            ]


class DmaCopyOut(wiring.Component):
    """Executes a DMA_OUT: reads pairs of words, takes the words out of them and packs these into bus words.

    Members
    -------
    start : In(1); job : In(JOB_WIDTH) and address : In stay while busy
    moving : Out(1), a word or a bus word of one was packed
    sent : Out(1), from the cycle after start: nothing is left to be read or requested, the next one may start
    o_request, o_data, act_read : as ``o_write``, ``o_write_data``, ``act_read`` in Dma

    Throughput: a word per cycle, or its bus words when it has several.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "start": In(1),
            "job": In(JOB_WIDTH),
            "address": In(config.axi_address_width),
            "moving": Out(1),
            "sent": Out(1),
            "o_request": Out(request_signature(config)),
            "o_data": Out(write_data_signature(config)),
            "act_read": Out(ActivationReadSignature(config)),
        })

    def elaborate(self, platform):
        m = Module()
        word_width = 8 * self.config.columns
        job = job_view(DmaOut, self.job)
        m.submodules.pairs = pairs = SyncFIFO(width=2 * word_width, depth=PAIR_QUEUE_DEPTH)
        word, word_valid, word_last, word_take = Signal(word_width), Signal(), Signal(), Signal()
        self._request(m, job)
        self._read(m, job, pairs)
        self._unpack(m, job, pairs, word, word_valid, word_last, word_take)
        self._pack(m, word, word_valid, word_last, word_take)
        unsent = Signal()
        m.d.comb += self.sent.eq(~unsent & ~self.o_request.valid)
        with m.If(word_take & word_last):
            m.d.sync += unsent.eq(0)
        with m.If(self.start):
            m.d.sync += unsent.eq(1)
        return m

    def _request(self, m, job):
        byte_bits, word_bits = exact_log2(self.config.axi_bytes), exact_log2(self.config.columns)
        with m.If(self.o_request.ready):
            m.d.sync += self.o_request.valid.eq(0)
        with m.If(self.start):
            m.d.sync += [
                self.o_request.valid.eq(1),
                self.o_request.payload.addr.eq(self.address),
                self.o_request.payload.beats.eq(
                    ((job.words << word_bits) + self.config.axi_bytes - 1) >> byte_bits
                ),
            ]

    def _read(self, m, job, pairs):
        reading, left_less = Signal(), Signal(17)  # pairs to read, after the next
        free = Signal(range(PAIR_QUEUE_DEPTH + 1), init=PAIR_QUEUE_DEPTH)  # places not spoken for
        accepted = Signal()
        m.d.comb += [
            self.act_read.valid.eq(reading & (free != 0)),
            accepted.eq(self.act_read.valid & self.act_read.ready),
            pairs.w_data.eq(self.act_read.data),
            pairs.w_en.eq(self.act_read.data_valid),
        ]
        m.d.sync += free.eq(free - accepted + (pairs.r_rdy & pairs.r_en))
        with m.If(accepted):
            m.d.sync += [
                reading.eq(left_less != 0), left_less.eq(left_less - 1),
                self.act_read.pair.eq(self.act_read.pair + 1),
            ]
        with m.If(self.start):
            m.d.sync += [
                reading.eq(1), left_less.eq((job.src[0] + job.words - 1) >> 1),
                self.act_read.pair.eq(job.src >> 1),
            ]

    def _unpack(self, m, job, pairs, word, word_valid, word_last, word_take):
        upper = Signal()
        left = Signal(16)
        m.d.comb += [
            word.eq(pairs.r_data.word_select(upper, len(word))),
            word_valid.eq(pairs.r_rdy),
            pairs.r_en.eq(word_take & (upper | word_last)),
        ]
        with m.If(word_take):
            m.d.sync += [left.eq(left - 1), word_last.eq(left == 2), upper.eq(~upper)]
        with m.If(self.start):
            m.d.sync += [left.eq(job.words), word_last.eq(job.words == 1), upper.eq(job.src[0])]

    def _pack(self, m, word, word_valid, word_last, word_take):
        out = self.o_data
        width, word_bytes = self.config.axi_bytes, self.config.columns
        step = Signal()
        m.d.comb += [step.eq(word_valid & (~out.valid | out.ready)), self.moving.eq(step)]
        with m.If(out.ready):
            m.d.sync += out.valid.eq(0)
        if word_bytes >= width:
            piece = Signal(range(max(2, word_bytes // width)))
            m.d.comb += word_take.eq(step & (piece == word_bytes // width - 1))
            with m.If(step):
                m.d.sync += [
                    piece.eq(Mux(word_take, 0, piece + 1)),
                    out.valid.eq(1),
                    out.payload.data.eq(word.word_select(piece, 8 * width)),
                    out.payload.strb.eq(~0),
                ]
            return
        place = Signal(range(width // word_bytes))
        m.d.comb += word_take.eq(step)
        with m.If(step):
            complete = word_last | (place == width // word_bytes - 1)
            m.d.sync += [place.eq(Mux(complete, 0, place + 1)), out.valid.eq(complete)]
            for i in range(width // word_bytes):
                with m.If(place == i):
                    m.d.sync += [
                        out.payload.data.word_select(i, 8 * word_bytes).eq(word),
                        out.payload.strb.eq((1 << word_bytes * (i + 1)) - 1),
                    ]


class Dma(wiring.Component):
    """Executes DMA_IN and DMA_OUT, one after the other, in order.

    The bus answers the writes of a DMA_OUT while further ones are under way, UNANSWERED at most. A DMA_IN, and an
    instruction that cannot be executed, wait until all have been answered.
    An instruction's extents in both memories are computed while it may still have to wait; when one of them
    ends beyond its buffer or memory, nothing is transferred and the unit stops.

    Parameters
    ----------
    config : the accelerator's

    Members
    -------
    i_instr : In(InstructionStream), DMA_IN and DMA_OUT only; a queue of DMA_QUEUE_DEPTH is inside
    retired : In(16), the retired count that ``wait`` refers to
    input_base, input_bytes, image_base, image_bytes, output_base, output_bytes : In; constant while busy
    o_request : Out(request_signature), i_data : In(read_data_signature), a client of ReadMux
    act_read : Out(ActivationReadSignature)
    act_write : Out(ActivationWriteSignature)
    o_write : Out(request_signature), o_write_data : Out(write_data_signature), to AxiWritePort
    write_done : In(1), its ``done``
    done : Out(1), a pulse per instruction: every byte is written (of DMA_OUT: and its writes answered)
    reading : Out(1), a DMA_IN is under way that waits for no instruction; a cycle late
    faults : Out(FAULTS_LAYOUT), until reset. A DMA_OUT whose offset is not a multiple of the bus word is an
        output_range fault, a DMA_IN whose runs are longer than the activation memory can be an
        activation_range one
    busy : Out(1), an instruction is queued or under way
    events : Out(events_layout("dma")), a cycle late; without ``fetch`` and ``order``
    marks : Out(marks_layout("dma"))

    Latency: 11 cycles from a DMA_IN without loops to its first request, and one for each bit of the loops'
    last indices (segments - 1, count0 - 1, count1 - 1); 7 for a DMA_OUT.
    Throughput: DMA_IN moves up to a bus word per cycle (but not past the end of a segment or of a pair of
    activation words), and a run costs one cycle more; a request every two cycles. DMA_OUT: a word, or a bus
    word, per cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        address = config.axi_address_width
        super().__init__({
            "i_instr": In(InstructionStream),
            "retired": In(16),
            "input_base": In(address), "input_bytes": In(32),
            "image_base": In(address), "image_bytes": In(32),
            "output_base": In(address), "output_bytes": In(32),
            "o_request": Out(request_signature(config)),
            "i_data": In(read_data_signature(config)),
            "act_read": Out(ActivationReadSignature(config)),
            "act_write": Out(ActivationWriteSignature(config)),
            "o_write": Out(request_signature(config)),
            "o_write_data": Out(write_data_signature(config)),
            "write_done": In(1),
            "done": Out(1),
            "reading": Out(1),
            "faults": Out(FAULTS_LAYOUT),
            "busy": Out(1),
            "events": Out(events_layout("dma")),
            "marks": Out(marks_layout("dma")),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.queue = queue = SyncFIFO(width=JOB_WIDTH, depth=DMA_QUEUE_DEPTH)
        m.submodules.extents = extents = DmaExtents(config)
        m.submodules.copy_in = copy_in = DmaCopyIn(config)
        m.submodules.copy_out = copy_out = DmaCopyOut(config)
        connect(m, copy_in.o_request, flipped(self.o_request))
        connect(m, flipped(self.i_data), copy_in.i_data)
        connect(m, copy_in.act_write, flipped(self.act_write))
        connect(m, copy_out.o_request, flipped(self.o_write))
        connect(m, copy_out.o_data, flipped(self.o_write_data))
        connect(m, copy_out.act_read, flipped(self.act_read))

        job, is_out = Signal(JOB_WIDTH), Signal()
        address = Signal(config.axi_address_width)
        m.d.comb += [
            queue.w_data.eq(self.i_instr.payload[:JOB_WIDTH]),
            queue.w_en.eq(self.i_instr.valid),
            self.i_instr.ready.eq(queue.w_rdy),
            extents.job.eq(job), extents.is_out.eq(is_out),
            copy_in.job.eq(job), copy_in.address.eq(address), copy_in.run_bytes.eq(extents.run_bytes),
            copy_out.job.eq(job), copy_out.address.eq(address),
        ]
        check, wrong = Signal(), Signal(FAULTS_LAYOUT)
        self._check(m, extents, job, is_out, address, check, wrong)
        self._sequence(m, queue, extents, copy_in, copy_out, job, is_out, check, wrong)
        return m

    def _check(self, m, extents, job, is_out, address, check, wrong):
        """Where the first byte lies, and, at ``check``, what is out of range."""
        into, out = job_view(DmaIn, job), job_view(DmaOut, job)
        image = into.source == DmaSource.IMAGE.value
        base, size = Signal(self.config.axi_address_width), Signal(32)
        m.d.sync += [
            base.eq(Mux(is_out, self.output_base, Mux(image, self.image_base, self.input_base))),
            size.eq(Mux(is_out, self.output_bytes, Mux(image, self.image_bytes, self.input_bytes))),
            address.eq(base + Mux(is_out, out.offset, into.offset)),
        ]
        beyond = extents.dram_end > size
        unaligned = out.offset[:exact_log2(self.config.axi_bytes)].any()
        with m.If(check):
            m.d.sync += [
                wrong.input_range.eq(~is_out & ~image & beyond),
                wrong.image_range.eq(~is_out & image & beyond),
                wrong.output_range.eq(is_out & (beyond | unaligned)),
                wrong.activation_range.eq(
                    (extents.activation_end > self.config.activation_words * self.config.columns)
                    | (~is_out & extents.run_bytes[RUN_WIDTH:].any())
                ),
            ]

    def _sequence(self, m, queue, extents, copy_in, copy_out, job, is_out, check, wrong):
        reached = Signal()
        unanswered = Signal(range(UNANSWERED + 1))
        all_answered, go = Signal(), Signal()
        read_done = Signal()
        m.d.sync += unanswered.eq(unanswered + copy_out.start - self.write_done)
        m.d.comb += [
            all_answered.eq(unanswered == 0),
            go.eq(reached & Mux(is_out & ~wrong.as_value().any(), unanswered != UNANSWERED, all_answered)),
            self.done.eq(read_done | self.write_done),
        ]
        m.d.sync += reached.eq(~(self.retired - job_view(DmaIn, job).wait)[15])
        waits = causes("busy", "dependency", "dram", "memory", "pipeline", "start")  # in the order of rank
        writing, reading = self.act_write, self.act_read
        m.d.sync += self.reading.eq(0)
        m.d.comb += [self.busy.eq(1), waits.start.eq(1), self.marks.done.eq(self.done)]
        with m.FSM(name="dma"):
            with m.State("IDLE"):
                m.d.comb += [
                    queue.r_en.eq(1), self.busy.eq(queue.r_rdy | ~all_answered),
                    waits.start.eq(queue.r_rdy), waits.dram.eq(~all_answered & ~queue.r_rdy),
                ]
                m.d.comb += self.marks.take.eq(queue.r_rdy)
                m.d.sync += [job.eq(queue.r_data), is_out.eq(queue.r_data[:8] == DmaOut.opcode)]
                with m.If(queue.r_rdy):
                    m.next = "START"
            with m.State("START"):
                m.d.comb += extents.start.eq(1)
                m.next = "EXTENTS"
            with m.State("EXTENTS"):
                m.d.sync += self.reading.eq(reached & ~is_out)
                with m.If(extents.done):
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += check.eq(1)
                m.d.sync += self.reading.eq(reached & ~is_out)
                m.next = "WAIT"
            with m.State("WAIT"):
                m.d.comb += [waits.dependency.eq(~reached), waits.dram.eq(~go)]
                m.d.sync += self.reading.eq(reached & ~is_out)
                with m.If(go):
                    m.d.comb += self.marks.first.eq(1)
                    with m.If(wrong.as_value().any()):
                        m.next = "FAULT"
                    with m.Elif(is_out):
                        m.d.comb += copy_out.start.eq(1)
                        m.next = "OUT"
                    with m.Else():
                        m.d.comb += copy_in.start.eq(1)
                        m.next = "IN"
            with m.State("IN"):
                m.d.sync += self.reading.eq(1)
                m.d.comb += [
                    waits.busy.eq(copy_in.moving),
                    waits.dram.eq(copy_in.starved),
                    waits.memory.eq(copy_in.planned | (writing.valid & ~writing.ready)),
                    waits.pipeline.eq(1),
                ]
                with m.If(~copy_in.busy):
                    m.d.comb += read_done.eq(1)
                    m.next = "IDLE"
            with m.State("OUT"):
                # Neither moving: the write port is not ready.
                m.d.comb += [
                    waits.busy.eq(copy_out.moving),
                    waits.dram.eq(~reading.valid),
                    waits.memory.eq(reading.valid & ~reading.ready),
                    waits.pipeline.eq(1),
                ]
                with m.If(copy_out.sent):
                    m.next = "IDLE"
            with m.State("FAULT"):
                m.d.comb += self.faults.eq(wrong)
        raise_first(m, self.events, vars(waits))
