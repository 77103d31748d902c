"""Instruction fetch: reads a program ahead of its execution, and checks that it is for this hardware."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import instruction_layout, read_data_signature, request_signature
from moevit.hw.units.retirement import NUMBER_WIDTH
from moevit.isa import INSTRUCTION_BYTES, INSTRUCTION_WIDTH, ISA_VERSION, Begin
from moevit.isa.fields import OPCODE_WIDTH
from moevit.isa.formats import MAGIC
from moevit.registers import ErrorCode

PREFETCH_INSTRUCTIONS = 16  #: that are read ahead
REQUEST_INSTRUCTIONS = 4  #: that one read request asks for

BYTE_BITS = exact_log2(INSTRUCTION_BYTES)
ERROR_WIDTH = max(ErrorCode).bit_length()


class Fetched(data.Struct):
    """An instruction and where it stands in its program."""

    word: INSTRUCTION_WIDTH
    number: NUMBER_WIDTH  #: BEGIN is 0
    last: 1  #: the last one that BEGIN counts, so END


class Fetch(wiring.Component):
    """Reads a program from its BEGIN to its END and hands out its instructions.

    BEGIN is checked here (magic, version, digest, ring size, length) and not handed on. Nothing past the
    program's ``count`` or past the image is ever read.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        A pulse, once after each reset; the registers below must be stable from then on.
    image_base, image_bytes, program : In
        Address (a multiple of 64) and size of the image, and the offset of BEGIN in it.
    o_request, i_data
        The read port.
    o_instr : Out(stream of Fetched)
        The instructions after BEGIN.
    ring_words : Out(17)
        From BEGIN; stable before the first instruction comes out.
    fetched : Out(24)
        Instructions read so far, BEGIN included.
    fault : Out(1), fault_code : Out(ErrorCode)
        The program cannot be run, and nothing more is read: IMAGE_RANGE, ILLEGAL_INSTRUCTION or
        WRONG_CONFIGURATION. Stays until reset.

    Latency
    -------
    4 cycles from start to the first request; 5 from BEGIN's last data to the next request.

    Throughput
    ----------
    One instruction per ``64 / axi_bytes + 1`` cycles.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "start": In(1),
            "image_base": In(config.axi_address_width),
            "image_bytes": In(32),
            "program": In(32),
            "o_request": Out(request_signature(config)),
            "i_data": In(read_data_signature(config)),
            "o_instr": Out(stream.Signature(Fetched)),
            "ring_words": Out(range(config.operand_words + 1)),
            "fetched": Out(NUMBER_WIDTH),
            "fault": Out(1),
            "fault_code": Out(ERROR_WIDTH),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        beats = INSTRUCTION_BYTES // self.config.axi_bytes
        m.submodules.fifo = fifo = SyncFIFOBuffered(
            width=self.config.axi_data_width, depth=PREFETCH_INSTRUCTIONS * beats
        )
        m.d.comb += [
            fifo.w_data.eq(self.i_data.payload.data),
            fifo.w_en.eq(self.i_data.valid),
            self.i_data.ready.eq(fifo.w_rdy),
        ]

        word, full, taken = self._assemble(m, fifo, beats)
        count = Signal(NUMBER_WIDTH)
        is_begin = Signal(init=1)  # the next instruction is BEGIN
        forward = Signal()
        m.d.comb += [
            self.o_instr.valid.eq(full & ~is_begin & forward),
            self.o_instr.payload.word.eq(word),
            self.o_instr.payload.number.eq(self.fetched - 1),
            self.o_instr.payload.last.eq(self.fetched == count),
        ]
        unrequested, ask = self._request(m, beats, taken)

        # The end of the program in the image; all of this settles long before it is looked at.
        outside = Signal()
        program_end = Signal(34)
        m.d.sync += [
            program_end.eq(self.program + (Mux(is_begin, 1, count) << BYTE_BITS)),
            outside.eq(
                (program_end > self.image_bytes) | self.program[:BYTE_BITS].any() | self.image_base[:BYTE_BITS].any()
            ),
        ]
        begin = instruction_layout(Begin)(word)
        checks = self._check_begin(m, word, begin)

        def fail(code):
            m.d.sync += [self.fault.eq(1), self.fault_code.eq(code)]
            m.next = "FAULT"

        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.next = "CHECK_PROGRAM"
            with m.State("CHECK_PROGRAM"):
                with m.If(outside):
                    fail(ErrorCode.IMAGE_RANGE)
                with m.Else():
                    m.d.sync += unrequested.eq(1)
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += ask.eq(1)
                with m.If(full):
                    m.next = "CHECK_BEGIN"
            with m.State("CHECK_BEGIN"):
                m.d.sync += [
                    count.eq(begin.count),
                    is_begin.eq(0),
                    self.ring_words.eq(begin.ring_words),
                ]
                m.next = "BEGIN_CHECKED"
            with m.State("BEGIN_CHECKED"):
                m.d.comb += taken.eq(1)
                m.next = "SETTLE_COUNT"
                for wrong, code in checks:  # the last that holds decides
                    with m.If(wrong):
                        fail(code)
            with m.State("SETTLE_COUNT"):
                m.next = "CHECK_COUNT"
            with m.State("CHECK_COUNT"):
                with m.If(outside):
                    fail(ErrorCode.IMAGE_RANGE)
                with m.Else():
                    m.d.sync += unrequested.eq(count - 1)
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [ask.eq(1), forward.eq(1), taken.eq(self.o_instr.valid & self.o_instr.ready)]
            with m.State("FAULT"):
                pass
        return m

    def _assemble(self, m, fifo, beats):
        """Collects beats into an instruction: its word, whether it is complete, a strobe that takes it."""
        width = self.config.axi_data_width
        word = Signal(INSTRUCTION_WIDTH)
        have = Signal(range(beats + 1))
        full, taken = Signal(), Signal()
        m.d.comb += [full.eq(have == beats), fifo.r_en.eq(~full)]
        with m.If(fifo.r_en & fifo.r_rdy):
            m.d.sync += [word.eq(Cat(word, fifo.r_data)[width:]), have.eq(have + 1)]
            with m.If(have == beats - 1):
                m.d.sync += self.fetched.eq(self.fetched + 1)
        with m.If(taken):
            m.d.sync += have.eq(0)
        return word, full, taken

    def _request(self, m, beats, taken):
        """Requests ``unrequested`` instructions in order while ``ask``, a few at a time, given room."""
        unrequested = Signal(NUMBER_WIDTH)
        ask = Signal()
        room = Signal(range(PREFETCH_INSTRUCTIONS + 1), init=PREFETCH_INSTRUCTIONS)
        chunk = Signal(range(REQUEST_INSTRUCTIONS + 1))
        offset = Signal(NUMBER_WIDTH)  # instructions requested
        request = self.o_request
        issue = Signal()
        many = unrequested >= REQUEST_INSTRUCTIONS
        m.d.comb += [
            chunk.eq(Mux(many, REQUEST_INSTRUCTIONS, unrequested[: len(chunk)])),
            issue.eq(ask & ~request.valid & (unrequested != 0) & (room >= chunk)),
        ]
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        base = Signal(self.config.axi_address_width)
        m.d.sync += base.eq(self.image_base + self.program)
        with m.If(issue):
            m.d.sync += [
                request.valid.eq(1),
                request.payload.addr.eq(base + (offset << BYTE_BITS)),
                request.payload.beats.eq(chunk << exact_log2(beats)),
                unrequested.eq(unrequested - chunk),
                offset.eq(offset + chunk),
            ]
        m.d.sync += room.eq(room + taken - Mux(issue, chunk, 0))
        return unrequested, ask

    def _check_begin(self, m, word, begin):
        """Registered verdicts on a BEGIN word, the most important one last."""
        unknown, version, digest, malformed = Signal(), Signal(), Signal(), Signal()
        end = Begin.fields()[-1].offset + Begin.fields()[-1].width
        m.d.sync += [
            unknown.eq((word[:OPCODE_WIDTH] != Begin.opcode) | (begin.magic != MAGIC)),
            version.eq(begin.version != ISA_VERSION),
            digest.eq(begin.digest != self.config.digest),
            malformed.eq(
                (begin.ring_words == 0)
                | (begin.ring_words > self.config.operand_words)
                | (begin.count < 2)
                | word[end:].any()
            ),
        ]
        return (
            (malformed, ErrorCode.ILLEGAL_INSTRUCTION),
            (digest | version, ErrorCode.WRONG_CONFIGURATION),
            (unknown, ErrorCode.ILLEGAL_INSTRUCTION),
        )
