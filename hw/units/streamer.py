"""The weight streamer: STREAM instructions become read requests, and what comes back becomes ring words."""

from typing import Any

from amaranth import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from moevit.config import BROUGHT_QUEUE_DEPTH, STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.errors import ConfigError
from moevit.hw.interfaces import (
    QUEUE_COUNT_LATENCY,
    REQUEST_BEATS_WIDTH,
    RING_COUNT_WIDTH,
    InstructionStream,
    MemoryWriteSignature,
    OperandWriteSignature,
    events_layout,
    instruction_layout,
    marks_layout,
    read_data_signature,
    request_signature,
)
from moevit.hw.units.arithmetic import delay
from moevit.hw.units.events import raise_first
from moevit.isa import INSTRUCTION_WIDTH, Stream
from moevit.isa.fields import OPCODE_WIDTH
from moevit.isa.formats import BLOCK_BYTES, QUEUE

PART_QUEUE_DEPTH = 16  #: parts that have been requested and wait for their data
DECIDE_LATENCY = 1 + QUEUE_COUNT_LATENCY  #: from a predicated STREAM to the first cycle that may settle it
WORDS_WIDTH = 17


class Part(enum.Enum, shape=2):
    """The parts of a block, in the order in which they are streamed."""

    NORM = 0
    POST = 1
    WEIGHTS = 2


CAUSES_LAYOUT = data.StructLayout({"busy": 1, "memory": 1, "ring": 1, "dram": 1})
PART_LAYOUT = data.StructLayout({"kind": Part, "words": WORDS_WIDTH})


def word_beats(config: AcceleratorConfig) -> dict[Any, int]:
    """Bus words that each port brings for one ring word. Raises ConfigError when a request could not count them."""
    lot = config.weight_ports * config.axi_bytes
    words = {
        Part.NORM: config.norm_word_bytes,
        Part.POST: config.post_word_bytes,
        Part.WEIGHTS: config.operand_word_bytes,
    }
    beats = {part: size // lot for part, size in words.items()}
    if max(beats.values()) << WORDS_WIDTH > 1 << REQUEST_BEATS_WIDTH:
        raise ConfigError(
            f"configuration {config.name!r}: a word of {max(beats.values())} beats is too long: "
            f"axi_data_width ({config.axi_data_width}) is too small for columns ({config.columns}) and depth "
            f"({config.depth})"
        )
    return beats


class StreamRequester(wiring.Component):
    """Requests the slices of each part from the ports, ahead of the data.

    Members: those of Streamer of the same names, and
    o_part : Out(stream of PART_LAYOUT), each part before its requests; at last, one that is a fault
    o_brought : Out(stream of 1), as Streamer's, not buffered
    busy : Out(1), an instruction is queued
    undecided : Out(1), it waits to know whether a queue is empty, or to tell
    begin, skip : Out(1), the next one is begun; it is skipped

    Throughput: 3 + P cycles per part, 2 for one of no words; DECIDE_LATENCY before the first part of a predicated
    STREAM, 1 + DECIDE_LATENCY for one that is skipped.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.beats = word_beats(config)
        super().__init__({
            "i_instr": In(InstructionStream),
            "image_base": In(config.axi_address_width),
            "image_bytes": In(32),
            "o_request": Out(request_signature(config)).array(config.weight_ports),
            "o_part": Out(stream.Signature(PART_LAYOUT)),
            "retired": In(16),
            "queue": Out(QUEUE),
            "queue_filled": In(1),
            "o_brought": Out(stream.Signature(1)),
            "fault": Out(1),
            "busy": Out(1),
            "undecided": Out(1),
            "begin": Out(1),
            "skip": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        ports = config.weight_ports
        used = max(f.offset + f.width for f in Stream.fields())
        # The last place of the queue is a register: what is read out of so many others goes no further in its cycle.
        m.submodules.queue = queue = SyncFIFO(width=used - OPCODE_WIDTH, depth=STREAM_QUEUE_DEPTH - 1)
        next_instr, held, take = Signal(used - OPCODE_WIDTH), Signal(), Signal()
        m.d.comb += [
            queue.w_data.eq(self.i_instr.payload[OPCODE_WIDTH:used]),
            queue.w_en.eq(self.i_instr.valid),
            self.i_instr.ready.eq(queue.w_rdy),
            queue.r_en.eq(~held | take),
        ]
        with m.If(queue.r_en):
            m.d.sync += [next_instr.eq(queue.r_data), held.eq(queue.r_rdy)]
        instr = data.View(
            instruction_layout(Stream), Cat(C(0, OPCODE_WIDTH), next_instr, C(0, INSTRUCTION_WIDTH - used))
        )

        part = Signal(PART_LAYOUT)
        block = Signal(32)  # offset of the part, in blocks
        start = Signal(32 + exact_log2(BLOCK_BYTES))
        addr = Signal(config.axi_address_width)
        beats = Signal(REQUEST_BEATS_WIDTH)  # of each port
        end = Signal(len(start) + 1)
        port = Signal(range(max(2, ports)))
        done = Signal()  # with this part
        byte_bits = exact_log2(config.axi_bytes)
        m.d.comb += start.eq(block << exact_log2(BLOCK_BYTES))
        for request in self.o_request:
            m.d.comb += [request.payload.addr.eq(addr), request.payload.beats.eq(beats)]
        m.d.comb += self.o_part.payload.eq(part)

        # Whether the queue is complete is taken from no later than the question, so that the answer counts all.
        ahead, asked = Signal(16), Signal(range(DECIDE_LATENCY))
        m.d.sync += [ahead.eq(self.retired - instr.wait), self.queue.eq(instr.queue)]
        complete = delay(m, ~ahead[-1], QUEUE_COUNT_LATENCY, name="complete")

        with m.FSM(name="requests"):
            with m.State("SELECT"):
                with m.Switch(part.kind):
                    with m.Case(Part.NORM):
                        m.d.sync += [block.eq(instr.norm_offset), part.words.eq(instr.norm_words)]
                    with m.Case(Part.POST):
                        m.d.sync += [block.eq(instr.post_offset), part.words.eq(instr.post_words)]
                    with m.Default():
                        m.d.sync += [block.eq(instr.weight_offset), part.words.eq(instr.weight_words)]
                m.d.comb += self.begin.eq(held & (part.kind == Part.NORM))
                with m.If(held):
                    m.next = "SIZE"
                with m.If(held & instr.predicated & (part.kind == Part.NORM)):
                    m.next = "DECIDE"
            with m.State("DECIDE"):
                with m.If(asked != DECIDE_LATENCY - 1):
                    m.d.sync += asked.eq(asked + 1)
                with m.Else():
                    m.d.comb += [
                        self.o_brought.valid.eq(complete | instr.speculative),
                        self.o_brought.payload.eq(~complete | self.queue_filled),
                        self.undecided.eq(~(self.o_brought.valid & self.o_brought.ready)),
                    ]
                    with m.If(self.o_brought.valid & self.o_brought.ready):
                        m.d.sync += asked.eq(0)
                        m.d.comb += self.skip.eq(~self.o_brought.payload)
                        m.next = "SIZE"
                        with m.If(self.skip):
                            m.next = "SELECT"
            with m.State("SIZE"):
                total = Signal(WORDS_WIDTH + exact_log2(max(self.beats.values()) * ports) + byte_bits)
                for kind, count in self.beats.items():
                    with m.If(part.kind == kind):
                        m.d.sync += beats.eq(part.words << exact_log2(count))
                        m.d.comb += total.eq(part.words << (exact_log2(count * ports) + byte_bits))
                m.d.sync += [addr.eq(self.image_base + start), end.eq(start + total)]
                with m.If(part.words == 0):
                    m.d.comb += done.eq(1)
                    m.next = "SELECT"
                with m.Else():
                    m.next = "CHECK"
            with m.State("CHECK"):
                # A part that is faulty goes on as well: what takes it does not wait for the comparison, and no data
                # will come for it.
                m.d.comb += self.o_part.valid.eq(1)
                with m.If(self.o_part.ready):
                    m.next = "REQUEST"
                with m.If(end > self.image_bytes):
                    m.next = "FAULT"
            with m.State("REQUEST"):
                for i, request in enumerate(self.o_request):
                    with m.If(port == i):
                        m.d.comb += request.valid.eq(1)
                        with m.If(request.ready):
                            m.d.sync += [addr.eq(addr + (beats << byte_bits)), port.eq((i + 1) % ports)]
                            if i == ports - 1:
                                m.d.comb += done.eq(1)
                                m.next = "SELECT"
            with m.State("FAULT"):
                m.d.comb += self.fault.eq(1)

        with m.If(done):
            m.d.sync += part.kind.eq(Mux(part.kind == Part.WEIGHTS, Part.NORM, part.kind.as_value() + 1))
        m.d.comb += take.eq(self.skip | done & (part.kind == Part.WEIGHTS))
        m.d.comb += self.busy.eq(queue.r_rdy | held)
        return m


class StreamAssembler(wiring.Component):
    """Puts the ports' slices together to words and writes them to the rings.

    All ports are taken from in the same cycles. A word is gathered in a shift register per port (beat 0 ends
    up lowest whatever the number of beats) and goes on to an output register when its ring has room.

    Members: those of Streamer of the same names, and
    i_part : In(stream of PART_LAYOUT)

    causes : Out(CAUSES_LAYOUT), what holds of the events of these names
    wrote : Out(1), a word is written

    Latency: 2 cycles from the last beat to the write. Throughput: one beat of each port per cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.beats = word_beats(config)
        self.most_beats = max(self.beats.values())
        super().__init__({
            "i_part": In(stream.Signature(PART_LAYOUT)),
            "i_data": In(read_data_signature(config)).array(config.weight_ports),
            **ring_members(config),
            "busy": Out(1),
            "causes": Out(CAUSES_LAYOUT),
            "wrote": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        slices = data.ArrayLayout(
            data.ArrayLayout(self.config.axi_data_width, self.most_beats), self.config.weight_ports
        )
        gathered = Signal(slices)
        full = Signal()  # a word is complete in ``gathered``
        full_kind = Signal(Part)
        move = Signal()  # it goes to the output register
        self._gather(m, gathered, full, full_kind, move)
        self._rings(m, gathered, full, full_kind, move)
        return m

    def _gather(self, m, gathered, full, full_kind, move):
        valid = Signal()
        part = Signal(PART_LAYOUT)
        beat, last_beat = Signal(range(max(2, self.most_beats))), Signal(range(max(2, self.most_beats)))
        take, finish = Signal(), Signal()
        arrived = Signal()
        m.d.comb += [
            arrived.eq(Cat(port.valid for port in self.i_data).all()),
            take.eq(valid & arrived & (~full | move)),
            finish.eq(take & (beat == last_beat)),
            self.i_part.ready.eq(~valid | (finish & (part.words == 1))),
            self.busy.eq(valid | full | self.i_part.valid),
        ]
        with m.If(move):
            m.d.sync += full.eq(0)
        with m.If(take):
            m.d.sync += beat.eq(beat + 1)
            for port, beats in zip(self.i_data, gathered, strict=True):
                m.d.sync += beats.eq(Cat(beats.as_value()[self.config.axi_data_width:], port.payload.data))
        with m.If(finish):
            m.d.sync += [full.eq(1), full_kind.eq(part.kind), beat.eq(0), part.words.eq(part.words - 1)]
        for port in self.i_data:
            m.d.comb += port.ready.eq(take)
        with m.If(self.i_part.ready):
            m.d.sync += [valid.eq(self.i_part.valid), part.eq(self.i_part.payload)]
            for kind, count in self.beats.items():
                with m.If(self.i_part.payload.kind == kind):
                    m.d.sync += last_beat.eq(count - 1)
        m.d.comb += [self.causes.busy.eq(take), self.causes.dram.eq(valid & ~arrived)]

    def _rings(self, m, gathered, full, full_kind, move):
        config = self.config
        word = Signal.like(gathered)
        room = Signal(len(Part))
        free = ~self.operand.valid
        if self.beats[Part.WEIGHTS] == 1:  # else there is a cycle to spare and no path from ready is needed
            free = free | self.operand.ready
        m.d.comb += move.eq(full & room.bit_select(full_kind, 1) & free)
        with m.If(move):
            m.d.sync += word.eq(gathered)
        with m.If(self.operand.ready):
            m.d.sync += self.operand.valid.eq(0)
        m.d.sync += [self.post.en.eq(0), self.norm.en.eq(0)]

        written = Signal(len(Part))
        m.d.comb += written.eq(Cat(self.norm.en, self.post.en, self.operand.valid & self.operand.ready))
        rings = [
            (Part.NORM, self.norm, self.norm.en, C(config.norm_words), self.norm_head, self.norm_tail),
            (Part.POST, self.post, self.post.en, C(config.post_words), self.post_head, self.post_tail),
            (Part.WEIGHTS, self.operand, self.operand.valid, self.ring_words, self.ring_head, self.ring_tail),
        ]
        for kind, memory, enable, size, head, tail in rings:
            name = kind.name.lower()
            taken = Signal(RING_COUNT_WIDTH, name=f"{name}_taken")  # words that have a place in the ring
            limit = Signal(RING_COUNT_WIDTH, name=f"{name}_limit")  # what that may reach; only ever rises
            # As of the cycle before: there was room, for one more than a word that took its place then too.
            had_room, had_more, had_taken = (
                Signal(name=f"{name}_{state}") for state in ("had_room", "had_more", "had_taken")
            )
            pointer = Signal.like(memory.addr, name=f"{name}_pointer")
            last = Signal(WORDS_WIDTH, name=f"{name}_last")
            m.d.sync += [limit.eq(tail + size), last.eq(size - 1)]
            m.d.sync += [
                had_room.eq(taken != limit),
                had_more.eq((taken + 1)[:RING_COUNT_WIDTH] != limit),
                had_taken.eq(0),
            ]
            m.d.comb += room[kind.value].eq(Mux(had_taken, had_more, had_room))
            with m.If(move & (full_kind == kind)):
                m.d.sync += [
                    enable.eq(1),
                    had_taken.eq(1),
                    memory.addr.eq(pointer),
                    pointer.eq(Mux(pointer == last, 0, pointer + 1)),
                    taken.eq(taken + 1),
                ]
            with m.If(written[kind.value]):
                m.d.sync += head.eq(head + 1)
            skipped = self.most_beats - self.beats[kind]
            m.d.comb += memory.data.eq(
                Cat(beats[i] for beats in word for i in range(skipped, self.most_beats))
            )
        m.d.comb += [
            self.operand.mask.eq(~0),
            self.wrote.eq(written.any()),
            self.causes.memory.eq(self.operand.valid & ~self.operand.ready),
            self.causes.ring.eq(full & ~room.bit_select(full_kind, 1)),
        ]


def ring_members(config: AcceleratorConfig) -> dict[str, object]:
    """The members by which words reach the three rings."""
    return {
        "ring_words": In(WORDS_WIDTH),
        "operand": Out(OperandWriteSignature(config)),
        "post": Out(MemoryWriteSignature(config.post_words, 8 * config.post_word_bytes)),
        "norm": Out(MemoryWriteSignature(config.norm_words, 8 * config.norm_word_bytes)),
        **{f"{ring}_head": Out(RING_COUNT_WIDTH) for ring in ("ring", "post", "norm")},
        **{f"{ring}_tail": In(RING_COUNT_WIDTH) for ring in ("ring", "post", "norm")},
    }


class Streamer(wiring.Component):
    """Executes STREAM instructions: LayerNorm parameters, POST parameters and weights, in this order.

    Requests run ahead of the data by as much as the ports' FIFOs hold; ring room is needed only to write. A
    predicated STREAM keeps those behind it waiting until the retired count has reached its ``wait``, unless it
    is speculative, and also while BROUGHT_QUEUE_DEPTH bits of earlier ones have not been taken.
    Word w of a part is the concatenation of word w of each port's slice, port 0 lowest.

    Parameters
    ----------
    config : the accelerator's; P is its ``weight_ports``

    Members
    -------
    i_instr : In(InstructionStream), STREAM only; a queue of STREAM_QUEUE_DEPTH is inside
    image_base, image_bytes : In, the weight image; constant while busy
    ring_words : In(17), length of the weight ring; may change only before the first word after a reset
    o_request : Out(request_signature).array(P), to P AxiReadPorts
    i_data : In(read_data_signature).array(P), from them
    operand : Out(OperandWriteSignature), whole words at 0 … ring_words - 1 in turn
    post : Out(MemoryWriteSignature(post_words, 64 * columns))
    norm : Out(MemoryWriteSignature(norm_words, 32 * columns))
    ring_head, post_head, norm_head : Out(RING_COUNT_WIDTH), words written since reset; counts a word from the
        cycle after its write on
    ring_tail, post_tail, norm_tail : In(RING_COUNT_WIDTH), words freed since reset
    retired : In(16), instructions retired: a queue is complete when a STREAM's ``wait`` is reached
    queue : Out(QUEUE), queue_filled : In(1), whether the queue of QUEUE_COUNT_LATENCY cycles ago is not empty
    o_brought : Out(stream of 1), for each predicated STREAM, in order: whether it brings its words. There as soon
        as that is settled; the words come later
    fault : Out(1), a part ends beyond ``image_bytes``; nothing of it was requested. Until reset
    busy : Out(1), something is queued or on its way
    events : Out(events_layout("stream")), a cycle late; without ``fetch`` and ``order``
    marks : Out(marks_layout("stream"))

    Latency: 5 cycles from an instruction to its first request, 2 more for each empty part before; 2 cycles
    from the last beat of a word to its write. A predicated STREAM takes DECIDE_LATENCY more; its bit is there
    DECIDE_LATENCY + 2 cycles after the retired count that it has waited for.
    Throughput: one beat of every port per cycle: a part of W words takes W * word bytes / (P * bus bytes). A
    skipped STREAM takes 1 + DECIDE_LATENCY cycles.

    Raises
    ------
    ConfigError : a ring word is not a whole number of bus words of all ports, or is too many
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.beats = word_beats(config)
        super().__init__({
            "i_instr": In(InstructionStream),
            "image_base": In(config.axi_address_width),
            "image_bytes": In(32),
            "o_request": Out(request_signature(config)).array(config.weight_ports),
            "i_data": In(read_data_signature(config)).array(config.weight_ports),
            **ring_members(config),
            "retired": In(16),
            "queue": Out(QUEUE),
            "queue_filled": In(1),
            "o_brought": Out(stream.Signature(1)),
            "fault": Out(1),
            "busy": Out(1),
            "events": Out(events_layout("stream")),
            "marks": Out(marks_layout("stream")),
        })

    def cycles(self, norm_words: int = 0, post_words: int = 0, weight_words: int = 0) -> int:
        """Cycles that a block occupies the ports for."""
        words = {Part.NORM: norm_words, Part.POST: post_words, Part.WEIGHTS: weight_words}
        return sum(count * self.beats[part] for part, count in words.items())

    def elaborate(self, platform):
        m = Module()
        m.submodules.requester = requester = StreamRequester(self.config)
        m.submodules.assembler = assembler = StreamAssembler(self.config)
        m.submodules.parts = parts = SyncFIFO(width=PART_LAYOUT.size, depth=PART_QUEUE_DEPTH)
        m.submodules.brought = brought = SyncFIFOBuffered(width=1, depth=BROUGHT_QUEUE_DEPTH)
        connect(m, flipped(self.i_instr), requester.i_instr)
        m.d.comb += [
            requester.retired.eq(self.retired),
            self.queue.eq(requester.queue),
            requester.queue_filled.eq(self.queue_filled),
            brought.w_data.eq(requester.o_brought.payload),
            brought.w_en.eq(requester.o_brought.valid),
            requester.o_brought.ready.eq(brought.w_rdy),
            self.o_brought.payload.eq(brought.r_data),
            self.o_brought.valid.eq(brought.r_rdy),
            brought.r_en.eq(self.o_brought.ready),
        ]
        m.d.comb += [
            requester.image_base.eq(self.image_base),
            requester.image_bytes.eq(self.image_bytes),
            parts.w_data.eq(requester.o_part.payload),
            parts.w_en.eq(requester.o_part.valid),
            requester.o_part.ready.eq(parts.w_rdy),
            assembler.i_part.payload.eq(parts.r_data),
            assembler.i_part.valid.eq(parts.r_rdy),
            parts.r_en.eq(assembler.i_part.ready),
        ]
        for i in range(self.config.weight_ports):
            connect(m, requester.o_request[i], flipped(self.o_request[i]))
            connect(m, flipped(self.i_data[i]), assembler.i_data[i])
        for name in ("operand", "post", "norm"):
            connect(m, getattr(assembler, name), flipped(getattr(self, name)))
        m.d.comb += assembler.ring_words.eq(self.ring_words)
        for ring in ("ring", "post", "norm"):
            m.d.comb += [
                getattr(self, f"{ring}_head").eq(getattr(assembler, f"{ring}_head")),
                getattr(assembler, f"{ring}_tail").eq(getattr(self, f"{ring}_tail")),
            ]
        m.d.comb += [
            self.fault.eq(requester.fault),
            self.busy.eq(requester.busy | assembler.busy | self.operand.valid | self.post.en | self.norm.en),
            self.marks.take.eq(requester.begin),
            self.marks.skip.eq(requester.skip),
            self.marks.word.eq(assembler.wrote),
        ]
        causes = assembler.causes
        raise_first(m, self.events, {
            "busy": causes.busy, "memory": causes.memory, "ring": causes.ring, "dram": causes.dram,
            "queue": requester.undecided, "start": self.busy,
        })  # fmt: skip
        return m
