"""Dispatch: checks instructions and hands each to the unit that executes it, in program order."""

import operator
from collections.abc import Iterable
from functools import reduce

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import COMPUTE_QUEUE_DEPTH, AcceleratorConfig
from moevit.hw.interfaces import InstructionStream, instruction_layout
from moevit.hw.units.fetch import ERROR_WIDTH, Fetched
from moevit.hw.units.retirement import NUMBER_WIDTH, Dispatched, Unit
from moevit.isa import (
    FORMATS,
    INSTRUCTION_WIDTH,
    Attention,
    Begin,
    DmaIn,
    DmaOut,
    End,
    Instruction,
    Linear,
    NormMode,
    OutputType,
    Stream,
)
from moevit.isa.fields import OPCODE_WIDTH
from moevit.numerics.activation import Activation
from moevit.numerics.route import MAX_EXPERTS, MAX_TOP_K, RouteOrder
from moevit.registers import ErrorCode

DESTINATION_LAYOUT = data.StructLayout({"stream": 1, "dma": 1, "compute": 1})
CHECK_CYCLES = 8  #: from an instruction word to the verdict on it


def _any(conditions: Iterable[Value]) -> Value:
    return reduce(operator.or_, conditions, C(0))


def _ceil_div(value: Value, divisor: int) -> Value:
    """``ceil(value / divisor)`` for a power of two."""
    return (value + divisor - 1) >> exact_log2(divisor)


class InstructionCheck(wiring.Component):
    """Says whether an instruction may be executed.

    Checked are: the opcode; every field's minimum and, for an enumeration, its values; bits outside the
    fields; that rows fit the A tile, parameters and held weights their rings, that 16-bit rows begin at even
    addresses, that attention reads only the K/V region, and that gates, experts and kept rows ask for what the
    units can do.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    word : In(512)
    ring_words : In
    illegal : Out(1)
        It is malformed, or would wait for something that cannot come.
    operand_range : Out(1)
        An ATTENTION that reads outside the K/V region.

    Latency
    -------
    ``CHECK_CYCLES``; pipelined.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "word": In(INSTRUCTION_WIDTH),
            "ring_words": In(range(config.operand_words + 1)),
            "illegal": Out(1),
            "operand_range": Out(1),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        opcode = self.word[:OPCODE_WIDTH]
        verdicts = []
        for kind in FORMATS:
            if kind is Begin:  # only ever the first instruction, which fetch keeps
                continue
            rules = {"field": self._fields(m, kind)}
            if kind is DmaOut:
                rules["bus"] = self._view(kind).offset[: exact_log2(self.config.axi_bytes)].any()
            if kind is Stream:
                rules["predicated"] = self._view(kind).predicated & self._view(kind).norm_words.any()
            if kind is Linear:
                rules |= self._linear(m) | self._experts()
            if kind is Attention:
                rules |= self._attention(m)
            is_kind = Signal(name=f"is_{kind.mnemonic().lower()}")
            m.d.sync += is_kind.eq(opcode == kind.opcode)
            bad = Signal(name=f"bad_{kind.mnemonic().lower()}")
            for name, rule in rules.items():
                broken = Signal(name=f"{kind.mnemonic().lower()}_{name}")
                m.d.sync += broken.eq(rule)
                rules[name] = broken
            m.d.sync += bad.eq(_any(rules.values()))
            verdicts.append((is_kind, bad))
        known = _any(is_kind for is_kind, _ in verdicts)
        m.d.sync += self.illegal.eq(~known | _any(is_kind & bad for is_kind, bad in verdicts))
        self._attention_addresses(m, opcode)
        return m

    def _view(self, kind: type[Instruction]):
        return instruction_layout(kind)(self.word)

    def _fields(self, m, kind):
        """Violations of what the format itself says, a cycle late: LINEAR has too many for one."""
        view = self._view(kind)
        end = OPCODE_WIDTH
        bad = []
        for field in kind.fields():
            value = view[field.name]
            if field.minimum:
                bad.append(value < field.minimum)
            if field.maximum < (1 << field.width) - 1:
                bad.append(value > field.maximum)
            end = field.offset + field.width
        bad.append(self.word[end:].any())
        violated = Signal(len(bad), name=f"{kind.mnemonic().lower()}_violated")
        m.d.sync += violated.eq(Cat(bad))
        return violated.any()

    def _linear(self, m):
        config = self.config
        linear = self._view(Linear)
        # Weights that are read more than once must all be in the ring at the same time; an expert's may also be
        # freed all at once.
        expert = linear.gather | linear.scatter
        steps, held = Signal(range(config.tile_depth // config.depth + 1)), Signal()
        tiles = Signal.like(linear.tiles)
        weights = Signal(len(steps) + len(tiles))
        weights_out = Signal.like(weights)
        m.d.sync += [
            steps.eq(_ceil_div(linear.length, config.depth)),
            tiles.eq(linear.tiles),
            held.eq((linear.n_rows > config.rows) | ~linear.release | expert),
            weights.eq(steps * tiles),
            weights_out.eq(weights),
        ]
        wide_in = linear.norm != NormMode.NONE
        wide_out = linear.residual | (linear.out_type == OutputType.INT16)
        return {
            "ring": held & (weights_out > self.ring_words),
            "length": linear.length > config.tile_depth,
            "norm_ring": wide_in & (_ceil_div(linear.length, config.columns) > config.norm_words),
            "post_ring": linear.tiles > config.post_words,
            "even_in": wide_in & (linear.src[0] | linear.src_stride[0]),
            "even_residual": linear.residual & linear.res[0],
            "even_out": wide_out & linear.dst_stride[0] | (linear.out_type == OutputType.INT16) & linear.dst[0],
            "tiles": (linear.key_tile > linear.value_tile) | (linear.value_tile > linear.tiles),
            "token": (linear.key_tile < linear.tiles) & linear.token[: exact_log2(config.rows)].any(),
        }

    def _experts(self):
        """What gates, experts and kept rows go with."""
        linear = self._view(Linear)
        expert = linear.gather | linear.scatter
        gate = linear.route != RouteOrder.NONE
        keys = linear.key_tile != linear.tiles
        active = linear.activation != Activation.NONE
        columns = _ceil_div(linear.experts, self.config.columns)
        return {
            "keep": linear.keep & ((linear.norm == NormMode.NONE) | expert),
            "expert": expert & ((linear.norm != NormMode.NONE) | ~linear.release | keys | gate),
            "scatter": linear.scatter & (~linear.residual | (linear.out_type != OutputType.INT16) | active),
            "gate": gate & (linear.residual | active | keys),
            "top_k": gate & ((linear.top_k == 0) | (linear.top_k > MAX_TOP_K) | (linear.top_k > linear.experts)),
            "experts": gate & ((linear.experts > MAX_EXPERTS) | (columns > linear.tiles)),
        }

    def _attention(self, m):
        attention = self._view(Attention)
        return {
            "keys": attention.n_keys > self.config.tile_depth,
            "head_dim": attention.head_dim > self.config.tile_depth,
        }

    def _attention_addresses(self, m, opcode):
        """The first and the last word of K and of V that are read lie in the region.

        Seven registers deep: tile counts, two for the heads' tiles, two for the products, sums, comparison.
        """
        config = self.config
        attention = self._view(Attention)

        def registered(value, name, depth=1):
            for i in range(depth):
                register = Signal(len(value), name=f"{name}_{i}")
                m.d.sync += register.eq(value)
                value = register
            return value

        head_tiles = registered(_ceil_div(attention.head_dim, config.columns), "head_tiles")
        channel_tiles = registered(head_tiles * attention.heads, "channel_tiles", 2)
        key_rows = registered(_ceil_div(attention.n_keys, config.columns) - 1, "key_rows")[:10]
        key_offset = registered(key_rows * attention.key_stride, "key_offset", 2)
        value_offset = registered((channel_tiles - 1)[:17] * attention.value_stride, "value_offset", 2)
        value_steps = registered(_ceil_div(attention.n_keys, config.depth), "value_steps")
        key_end = registered(
            attention.key_base + key_offset + (channel_tiles << exact_log2(config.key_groups)), "key_end"
        )
        value_end = registered(attention.value_base + value_offset + value_steps, "value_end")
        outside = registered(
            (attention.key_base < self.ring_words)
            | (attention.value_base < self.ring_words)
            | (key_end > config.operand_words)
            | (value_end > config.operand_words),
            "outside",
        )
        m.d.sync += self.operand_range.eq((opcode == Attention.opcode) & outside)


class Dispatch(wiring.Component):
    """Takes instructions in order, checks each and sends it to its unit's queue.

    An instruction whose queue is full keeps those behind it waiting. END is the last instruction and ends the
    program when everything has retired and nothing is left to stream.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_instr : In(stream of Fetched)
    ring_words : In
    o_stream, o_dma, o_compute : Out(InstructionStream)
        STREAM; DMA_IN and DMA_OUT; LINEAR and ATTENTION. The queue of ``o_compute`` (``COMPUTE_QUEUE_DEPTH``)
        is here, the others are in their units.
    o_order : Out(stream of Dispatched)
        To retirement, in the cycle in which the unit's queue takes it.
    all_retired, streamer_busy : In(1)
    done : Out(1)
        The program has ended. Stays until reset.
    fault : Out(1), fault_code : Out(ErrorCode)
        ILLEGAL_INSTRUCTION or OPERAND_RANGE: ``number`` cannot be executed. Nothing more is dispatched; stays
        until reset.
    blocked : Out(1)
        The instruction at hand waits for room in its unit's queue, or in retirement's.
    ended : Out(1)
        There are no more: END or a fault.
    sent : Out(1)
        The instruction at hand goes to its unit.
    number : Out(24)
        The instruction at hand, or the last one.
    compute_number : Out(24)
        The last instruction taken from ``o_compute``.

    Latency
    -------
    10 cycles from an accepted instruction to its offer to the unit's queue; ``o_compute`` shows it one later.
    ``done`` rises 2 cycles after ``all_retired``.

    Throughput
    ----------
    One instruction per 11 cycles.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "i_instr": In(stream.Signature(Fetched)),
            "ring_words": In(range(config.operand_words + 1)),
            "o_stream": Out(InstructionStream),
            "o_dma": Out(InstructionStream),
            "o_compute": Out(InstructionStream),
            "o_order": Out(stream.Signature(Dispatched)),
            "all_retired": In(1),
            "streamer_busy": In(1),
            "done": Out(1),
            "fault": Out(1),
            "fault_code": Out(ERROR_WIDTH),
            "blocked": Out(1),
            "ended": Out(1),
            "sent": Out(1),
            "number": Out(NUMBER_WIDTH),
            "compute_number": Out(NUMBER_WIDTH),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.check = check = InstructionCheck(self.config)
        m.submodules.queue = queue = SyncFIFO(width=INSTRUCTION_WIDTH + NUMBER_WIDTH, depth=COMPUTE_QUEUE_DEPTH)
        word, last = Signal(INSTRUCTION_WIDTH), Signal()
        opcode = word[:OPCODE_WIDTH]
        is_end = Signal()
        to = Signal(DESTINATION_LAYOUT)  # whom the instruction is offered to
        quiet = Signal()
        m.d.comb += [
            check.word.eq(word),
            check.ring_words.eq(self.ring_words),
            self.o_compute.valid.eq(queue.r_rdy),
            self.o_compute.payload.eq(queue.r_data[:INSTRUCTION_WIDTH]),
            queue.r_en.eq(self.o_compute.ready),
            queue.w_data.eq(Cat(word, self.number)),
            self.o_stream.payload.eq(word),
            self.o_dma.payload.eq(word),
            is_end.eq(opcode == End.opcode),
        ]
        with m.If(self.o_compute.valid & self.o_compute.ready):
            m.d.sync += self.compute_number.eq(queue.r_data[INSTRUCTION_WIDTH:])
        m.d.sync += quiet.eq(self.all_retired & ~self.streamer_busy)
        self._route(m, to, queue)

        waited = Signal(range(CHECK_CYCLES + 1))
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.i_instr.ready.eq(1)
                m.d.sync += waited.eq(0)
                with m.If(self.i_instr.valid):
                    m.d.sync += [
                        word.eq(self.i_instr.payload.word),
                        last.eq(self.i_instr.payload.last),
                        self.number.eq(self.i_instr.payload.number),
                    ]
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += waited.eq(waited + 1)
                with m.If(waited == CHECK_CYCLES):
                    with m.If(check.illegal | (is_end != last)):
                        m.d.sync += self.fault_code.eq(ErrorCode.ILLEGAL_INSTRUCTION)
                        m.next = "FAULT"
                    with m.Elif(check.operand_range):
                        m.d.sync += self.fault_code.eq(ErrorCode.OPERAND_RANGE)
                        m.next = "FAULT"
                    with m.Elif(is_end):
                        m.next = "END"
                    with m.Else():
                        m.d.sync += [
                            to.stream.eq(opcode == Stream.opcode),
                            to.dma.eq((opcode == DmaIn.opcode) | (opcode == DmaOut.opcode)),
                            to.compute.eq((opcode == Linear.opcode) | (opcode == Attention.opcode)),
                        ]
                        m.next = "ROUTE"
            with m.State("ROUTE"):
                with m.If(self.sent):
                    m.d.sync += to.eq(0)
                    m.next = "TAKE"
            with m.State("END"):
                m.d.comb += self.ended.eq(1)
                m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += self.ended.eq(1)
                with m.If(quiet):
                    m.d.sync += self.done.eq(1)
            with m.State("FAULT"):
                m.d.comb += self.ended.eq(1)
                m.d.sync += self.fault.eq(1)
        return m

    def _route(self, m, to, queue):
        """Offers the instruction to the unit that ``to`` names, and says when it goes."""
        has_room = Signal()
        m.d.comb += [
            has_room.eq((to.dma & self.o_dma.ready) | (to.compute & queue.w_rdy)),
            self.o_stream.valid.eq(to.stream),
            self.o_dma.valid.eq(to.dma & self.o_order.ready),
            queue.w_en.eq(to.compute & self.o_order.ready),
            self.o_order.valid.eq(has_room),
            self.o_order.payload.number.eq(self.number),
            self.o_order.payload.unit.eq(Mux(to.dma, Unit.DMA, Unit.COMPUTE)),
            self.sent.eq((to.stream & self.o_stream.ready) | (self.o_order.ready & has_room)),
            self.blocked.eq(to.as_value().any() & ~self.sent),
        ]
