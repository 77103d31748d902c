"""The whole machine: control and bus adapters around the core, and the core's units wired to each other."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import (
    RING_COUNT_WIDTH,
    ActivationWriteSignature,
    AxiLiteSignature,
    AxiReadSignature,
    AxiWriteSignature,
    OperandWriteSignature,
    QueueAppendSignature,
    QueueEntry,
    read_data_signature,
    request_signature,
    write_data_signature,
)
from moevit.hw.units.a_tile import ATile
from moevit.hw.units.activation_memory import ActivationMemory
from moevit.hw.units.axi_read import AxiReadPort
from moevit.hw.units.axi_write import AxiWritePort
from moevit.hw.units.burst_pacer import BurstPacer
from moevit.hw.units.control import STALL_CYCLES, Control, all_events_layout
from moevit.hw.units.dispatch import Dispatch
from moevit.hw.units.dma import Dma
from moevit.hw.units.fetch import ERROR_WIDTH, Fetch
from moevit.hw.units.loader import Loader
from moevit.hw.units.mac_array import MacArray
from moevit.hw.units.operand_memory import OperandMemory
from moevit.hw.units.parameter_memory import ParameterMemory
from moevit.hw.units.post import Post
from moevit.hw.units.queues import Queues
from moevit.hw.units.read_mux import ReadMux
from moevit.hw.units.retirement import NUMBER_WIDTH, Retirement
from moevit.hw.units.streamer import Streamer
from moevit.registers import ADDRESS_WIDTH, ErrorCode
from moevit.trace import Mark

FETCH, DMA = range(2)  #: clients of the shared read port
FETCH_FIFO_BEATS = 32
DMA_FIFO_BEATS = 128


def dma_axi_signature(config: AcceleratorConfig) -> wiring.Signature:
    """The port that fetches instructions and copies in and out: read and write channels."""
    return wiring.Signature({**AxiReadSignature(config).members, **AxiWriteSignature(config).members})


def trace_members(config: AcceleratorConfig) -> dict[str, wiring.Member]:
    """What a simulator watches.

    To see every intermediate tensor: retirement, writes, and entries of queues. To see where time goes: the marks of
    ``trace.Mark``, the events, and the weight words in their ring.
    """
    activation, operand = ActivationWriteSignature(config).members, OperandWriteSignature(config).members
    members = {"trace_retire": Out(1), "trace_marks": Out(len(Mark)), "trace_ring": Out(RING_COUNT_WIDTH)}
    members |= {"trace_events": Out(all_events_layout().size)}
    for source, names, shapes in (
        ("act", ("valid", "pair", "mask", "data"), activation),
        ("load", ("valid", "pair", "mask", "data"), activation),
        ("dma", ("valid", "pair", "mask", "data"), activation),
        ("kv", ("valid", "addr", "mask", "data"), operand),
    ):
        members |= {f"trace_{source}_{name}": Out(shapes[name].shape) for name in names}
    append = QueueAppendSignature().members
    members |= {f"trace_queue_{name}": Out(append[name].shape) for name in ("clear", "valid", "expert")}
    members |= {f"trace_queue_{name}": Out(QueueEntry.as_shape()[name].shape) for name in ("token", "score")}
    return members


class Core(wiring.Component):
    """Everything that a reset between two programs clears: all units but control and the bus adapters.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start, image_base … output_bytes : In
        As Control gives them.
    o_request, i_data : arrays of 2
        To the shared read port: fetch, DMA.
    o_weight_request, i_weight_data : arrays of ``weight_ports``
    o_write, o_write_data, write_done
        To the write port.
    bus_fetch, bus_dma_read, bus_dma_write : In(1), bus_stream : In(weight_ports)
        Error flags of the ports.
    weight_hold : Out(weight_ports)
        Weight ports that may raise no burst in this cycle.
    done, retired, oldest, events : Out
        As Control takes them.
    fault, fault_code, fault_number : Out
        The first fault: its error code, and the instruction it is attributed to (see ``_faults``). 1 cycle
        after the unit or port has flagged it.
    trace_* : Out
        See ``trace_members``.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        address, ports = config.axi_address_width, config.weight_ports
        super().__init__(
            {
                "start": In(1),
                "image_base": In(address),
                "image_bytes": In(32),
                "program": In(32),
                "input_base": In(address),
                "input_bytes": In(32),
                "output_base": In(address),
                "output_bytes": In(32),
                "o_request": Out(request_signature(config)).array(2),
                "i_data": In(read_data_signature(config)).array(2),
                "o_weight_request": Out(request_signature(config)).array(ports),
                "i_weight_data": In(read_data_signature(config)).array(ports),
                "o_write": Out(request_signature(config)),
                "o_write_data": Out(write_data_signature(config)),
                "write_done": In(1),
                "bus_fetch": In(1),
                "bus_stream": In(ports),
                "bus_dma_read": In(1),
                "bus_dma_write": In(1),
                "weight_hold": Out(ports),
                "done": Out(1),
                "retired": Out(NUMBER_WIDTH),
                "oldest": Out(NUMBER_WIDTH),
                "events": Out(all_events_layout()),
                "fault": Out(1),
                "fault_code": Out(ERROR_WIDTH),
                "fault_number": Out(NUMBER_WIDTH),
                **trace_members(config),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.fetch = self.fetch = Fetch(config)
        m.submodules.dispatch = self.dispatch = Dispatch(config)
        m.submodules.retirement = self.retirement = Retirement(config)
        m.submodules.dma = self.dma = Dma(config)
        m.submodules.streamer = self.streamer = Streamer(config)
        m.submodules.pacer = self.pacer = BurstPacer(config)
        m.submodules.loader = self.loader = Loader(config)
        m.submodules.a_tile = self.a_tile = ATile(config)
        m.submodules.mac_array = self.mac_array = MacArray(config)
        m.submodules.post = self.post = Post(config)
        m.submodules.queues = self.queues = Queues(config)
        m.submodules.activation_memory = self.activation_memory = ActivationMemory(config)
        m.submodules.operand_memory = self.operand_memory = OperandMemory(config)
        m.submodules.post_memory = self.post_memory = ParameterMemory(config.post_words, 8 * config.post_word_bytes)
        m.submodules.norm_memory = self.norm_memory = ParameterMemory(config.norm_words, 8 * config.norm_word_bytes)
        self._program(m)
        self._copies(m)
        self._compute(m)
        self._experts(m)
        self._weights(m)
        self._events(m)
        self._faults(m)
        self._trace(m)
        return m

    def _program(self, m):
        """Instructions, their order and their end."""
        fetch, dispatch, retirement = self.fetch, self.dispatch, self.retirement
        connect(m, fetch.o_request, flipped(self.o_request[FETCH]))
        connect(m, flipped(self.i_data[FETCH]), fetch.i_data)
        connect(m, fetch.o_instr, dispatch.i_instr)
        connect(m, dispatch.o_stream, self.streamer.i_instr)
        connect(m, dispatch.o_dma, self.dma.i_instr)
        connect(m, dispatch.o_compute, self.loader.i_instr)
        connect(m, dispatch.o_order, retirement.i_order)
        m.d.comb += [
            fetch.start.eq(self.start),
            fetch.image_base.eq(self.image_base),
            fetch.image_bytes.eq(self.image_bytes),
            fetch.program.eq(self.program),
            dispatch.ring_words.eq(fetch.ring_words),
            dispatch.all_retired.eq(retirement.empty),
            dispatch.streamer_busy.eq(self.streamer.busy),
            retirement.compute_done.eq(self.post.retire),
            retirement.dma_done.eq(self.dma.done),
            self.done.eq(dispatch.done),
            self.retired.eq(retirement.retired_total),
            self.oldest.eq(retirement.oldest),
        ]

    def _events(self, m):
        """What the stages do in each cycle, and why one that has no instruction has none."""
        events, dispatch = self.events, self.dispatch
        started, fetch, order = Signal(), Signal(), Signal()
        with m.If(self.start):
            m.d.sync += started.eq(1)
        m.d.sync += [fetch.eq(started & ~dispatch.blocked & ~dispatch.ended), order.eq(dispatch.blocked)]
        nothing = {}
        for stage, unit in (
            ("stream", self.streamer),
            ("load", self.loader),
            ("mac", self.mac_array),
            ("post", self.post),
            ("dma", self.dma),
        ):
            m.d.comb += events[stage].eq(unit.events)
            nothing[stage] = ~unit.events.as_value().any()
        nothing_to_load = nothing["load"]
        m.d.comb += events.mac.load.eq(nothing["mac"] & ~nothing_to_load)
        nothing["mac"] &= nothing_to_load
        for stage in ("stream", "load", "mac", "dma"):
            m.d.comb += [
                events[stage].fetch.eq(nothing[stage] & fetch),
                events[stage].order.eq(nothing[stage] & order),
            ]

    def _copies(self, m):
        """DMA_IN and DMA_OUT."""
        dma = self.dma
        connect(m, dma.o_request, flipped(self.o_request[DMA]))
        connect(m, flipped(self.i_data[DMA]), dma.i_data)
        connect(m, dma.o_write, flipped(self.o_write))
        connect(m, dma.o_write_data, flipped(self.o_write_data))
        connect(m, dma.act_read, self.activation_memory.read_dma)
        connect(m, dma.act_write, self.activation_memory.write_dma)
        m.d.comb += [dma.retired.eq(self.retirement.retired), dma.write_done.eq(self.write_done)]
        for buffer in ("image", "input", "output"):
            m.d.comb += [
                getattr(dma, f"{buffer}_base").eq(getattr(self, f"{buffer}_base")),
                getattr(dma, f"{buffer}_bytes").eq(getattr(self, f"{buffer}_bytes")),
            ]

    def _compute(self, m):
        """Load, multiply, post."""
        loader, array, post = self.loader, self.mac_array, self.post
        connect(m, loader.o_instr, array.i_instr)
        connect(m, array.o_instr, post.i_instr)
        connect(m, loader.act, self.activation_memory.read_load)
        connect(m, loader.norm, self.norm_memory.read)
        connect(m, loader.o_tile, self.a_tile.write)
        connect(m, array.tile, self.a_tile.read)
        connect(m, array.operand, self.operand_memory.read)
        connect(m, array.o_rows, post.i_rows)
        connect(m, post.parameters, self.post_memory.read)
        connect(m, post.act_read, self.activation_memory.read_post)
        connect(m, post.act_write, self.activation_memory.write_post)
        connect(m, post.kv, self.operand_memory.kv)
        connect(m, post.o_staged, loader.i_staged)
        connect(m, loader.o_scale, post.i_scale)
        m.d.comb += [
            loader.retired.eq(self.retirement.retired),
            array.tile_filled.eq(loader.tile_filled),
            loader.tile_freed.eq(array.tile_freed),
        ]

    def _experts(self, m):
        """The queues: from the gate in POST to the loader, and through it to POST's scatter; and to the streamer."""
        queues, loader, post, streamer = self.queues, self.loader, self.post, self.streamer
        connect(m, post.o_append, queues.append)
        connect(m, loader.queue, queues.read)
        connect(m, loader.o_entry, post.i_entry)
        connect(m, loader.act_write, self.activation_memory.write_load)
        connect(m, streamer.o_brought, loader.i_brought)
        m.d.comb += [
            self.mac_array.route_freed.eq(post.route_freed),
            streamer.retired.eq(self.retirement.retired),
            queues.filled_queue.eq(streamer.queue),
            streamer.queue_filled.eq(queues.filled),
        ]

    def _weights(self, m):
        """The streamer and its three rings."""
        streamer = self.streamer
        for port in range(self.config.weight_ports):
            connect(m, streamer.o_request[port], flipped(self.o_weight_request[port]))
            connect(m, flipped(self.i_weight_data[port]), streamer.i_data[port])
        connect(m, streamer.operand, self.operand_memory.stream)
        connect(m, streamer.post, self.post_memory.write)
        connect(m, streamer.norm, self.norm_memory.write)
        m.d.comb += [
            streamer.image_base.eq(self.image_base),
            streamer.image_bytes.eq(self.image_bytes),
            self.pacer.reading.eq(self.dma.reading),
            self.weight_hold.eq(self.pacer.hold),
            streamer.ring_tail.eq(self.mac_array.ring_tail),
            streamer.post_tail.eq(self.post.post_tail),
            streamer.norm_tail.eq(self.loader.norm_tail),
            self.mac_array.ring_head.eq(streamer.ring_head),
            self.loader.norm_head.eq(streamer.norm_head),
        ]
        for unit in (streamer, self.mac_array, self.operand_memory):
            m.d.comb += unit.ring_words.eq(self.fetch.ring_words)

    def _faults(self, m):
        """The fault that is reported, and whose it is.

        Fetch's are BEGIN's (0) and dispatch's those of the instruction it holds. A DMA fault belongs to the
        oldest instruction that the DMA unit has not finished, one of POST and of full queues to the oldest
        unfinished LINEAR or ATTENTION, one of a loader's read or kept row, and of a queue that is too long, to the
        instruction that the loader has taken last. STREAM is executed far ahead: its faults, and fetch's bus
        errors, name the number of instructions fetched.
        """
        fetched, retirement = self.fetch.fetched, self.retirement
        dma, compute = retirement.oldest_dma, retirement.oldest_compute
        sources = (
            (self.bus_fetch, ErrorCode.BUS_FETCH, fetched),
            (self.bus_stream.any(), ErrorCode.BUS_STREAM, fetched),
            (self.bus_dma_read, ErrorCode.BUS_DMA_READ, dma),
            (self.bus_dma_write, ErrorCode.BUS_DMA_WRITE, dma),
            (self.fetch.fault, self.fetch.fault_code, C(0)),
            (self.dispatch.fault, self.dispatch.fault_code, self.dispatch.number),
            (self.dma.faults.input_range, ErrorCode.INPUT_RANGE, dma),
            (self.dma.faults.output_range, ErrorCode.OUTPUT_RANGE, dma),
            (self.dma.faults.image_range, ErrorCode.IMAGE_RANGE, dma),
            (self.dma.faults.activation_range, ErrorCode.ACTIVATION_RANGE, dma),
            (self.streamer.fault, ErrorCode.IMAGE_RANGE, fetched),
            (self.post.fault_activation, ErrorCode.ACTIVATION_RANGE, compute),
            (self.post.fault_operand, ErrorCode.OPERAND_RANGE, compute),
            (self.operand_memory.fault, ErrorCode.OPERAND_RANGE, compute),
            (self.activation_memory.fault, ErrorCode.ACTIVATION_RANGE, self.dispatch.compute_number),
            (self.queues.fault, ErrorCode.QUEUE_RANGE, compute),
            (self.loader.fault_queue, ErrorCode.QUEUE_RANGE, self.dispatch.compute_number),
        )
        with m.If(~self.fault):
            for flag, code, number in reversed(sources):
                with m.If(flag):
                    m.d.sync += [
                        self.fault.eq(1),
                        self.fault_code.eq(code),
                        self.fault_number.eq(number),
                    ]

    def _trace(self, m):
        m.d.comb += [
            self.trace_retire.eq(self.retirement.retire),
            self.trace_events.eq(self.events),
            self.trace_ring.eq(self.streamer.ring_head - self.mac_array.ring_tail),
        ]
        units = {
            "STREAM": self.streamer, "LOAD": self.loader, "MAC": self.mac_array, "POST": self.post, "DMA": self.dma,
        }  # fmt: skip
        for mark in Mark:
            unit, _, name = mark.name.partition("_")
            bit = self.trace_marks[mark]
            if unit in units:
                m.d.comb += bit.eq(units[unit].marks[name.lower()])
        m.d.comb += [
            self.trace_marks[Mark.FETCH].eq(self.dispatch.i_instr.valid & self.dispatch.i_instr.ready),
            self.trace_marks[Mark.DISPATCH].eq(self.dispatch.sent),
            self.trace_marks[Mark.RETIRE].eq(self.retirement.retire),
        ]
        for source, port, address in (
            ("act", self.post.act_write, "pair"),
            ("load", self.loader.act_write, "pair"),
            ("dma", self.dma.act_write, "pair"),
            ("kv", self.post.kv, "addr"),
        ):
            m.d.comb += [getattr(self, f"trace_{source}_valid").eq(port.valid & port.ready)]
            for name in (address, "mask", "data"):
                m.d.comb += getattr(self, f"trace_{source}_{name}").eq(getattr(port, name))
        append = self.post.o_append
        m.d.comb += [
            self.trace_queue_clear.eq(append.clear),
            self.trace_queue_valid.eq(append.valid),
            self.trace_queue_expert.eq(append.expert),
            self.trace_queue_token.eq(append.entry.token),
            self.trace_queue_score.eq(append.entry.score),
        ]


def accelerator_members(config: AcceleratorConfig, trace: bool = False) -> dict[str, wiring.Member]:
    """The ports of the machine but ``clk`` and ``rst``."""
    return {
        "s_axil": In(AxiLiteSignature(ADDRESS_WIDTH)),
        "m_axi_dma": Out(dma_axi_signature(config)),
        "m_axi_w": Out(AxiReadSignature(config)).array(config.weight_ports),
        "irq": Out(1),
        **(trace_members(config) if trace else {}),
    }


class Accelerator(wiring.Component):
    """The machine.

    Parameters
    ----------
    config : AcceleratorConfig
    trace : bool
        With the ``trace_*`` outputs of :func:`trace_members`, for a simulator.
    stall_cycles : int
        See Control.

    Members
    -------
    s_axil : In(AxiLiteSignature)
        Registers (``moevit.registers``).
    m_axi_dma : Out
        AXI4 read and write: instructions, DMA_IN, DMA_OUT.
    m_axi_w : Out(AxiReadSignature).array(weight_ports)
        AXI4 read: weights.
    irq : Out(1)
        Level.
    """

    def __init__(self, config: AcceleratorConfig, trace: bool = False, *, stall_cycles: int = STALL_CYCLES):
        self.config = config
        self.trace = trace
        self.stall_cycles = stall_cycles
        super().__init__(accelerator_members(config, trace))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        core = Core(config)
        m.submodules.control = control = Control(config, stall_cycles=self.stall_cycles)
        # A reset of thousands of registers all over the device: its net has a cycle of its own. The core leaves it
        # one cycle after the adapters' errors of an earlier program are cleared, and before ``start``.
        core_reset = Signal(init=1)
        m.d.sync += core_reset.eq(control.core_reset)
        m.submodules.core = ResetInserter(core_reset)(core)
        m.submodules.read = read = ReadMux(config, 2, fifo_depth=(FETCH_FIFO_BEATS, DMA_FIFO_BEATS))
        m.submodules.write = write = AxiWritePort(config)
        weights = [AxiReadPort(config) for _ in range(config.weight_ports)]
        for index, port in enumerate(weights):
            m.submodules[f"weights{index}"] = port

        connect(m, flipped(self.s_axil), control.axil)
        for client in (FETCH, DMA):
            connect(m, core.o_request[client], read.i_request[client])
            connect(m, read.o_data[client], core.i_data[client])
        connect(m, core.o_write, write.i_request)
        connect(m, core.o_write_data, write.i_data)
        for index, port in enumerate(weights):
            connect(m, core.o_weight_request[index], port.i_request)
            connect(m, port.o_data, core.i_weight_data[index])
            connect(m, port.axi, flipped(self.m_axi_w[index]))
            m.d.comb += port.hold.eq(core.weight_hold[index])
        _connect_channels(m, read.axi, self.m_axi_dma)
        _connect_channels(m, write.axi, self.m_axi_dma)
        m.d.comb += [
            core.write_done.eq(write.done),
            core.bus_fetch.eq(read.error[FETCH]),
            core.bus_dma_read.eq(read.error[DMA]),
            core.bus_dma_write.eq(write.error),
            core.bus_stream.eq(Cat(port.error for port in weights)),
        ]
        self._control(m, control, core, [read, write, *weights])
        if self.trace:
            m.d.comb += [getattr(self, name).eq(getattr(core, name)) for name in trace_members(config)]
        return m

    def _control(self, m, control, core, adapters):
        idle = Signal()
        m.d.sync += idle.eq(Cat(adapter.idle for adapter in adapters).all())
        for adapter in adapters:
            m.d.comb += [adapter.halt.eq(control.halt), adapter.clear.eq(control.clear)]
        for name in (
            "start",
            "program",
            *(f"{b}_{n}" for b in ("image", "input", "output") for n in ("base", "bytes")),
        ):
            m.d.comb += getattr(core, name).eq(getattr(control, name))
        for name in ("done", "fault", "fault_code", "fault_number", "retired", "oldest", "events"):
            m.d.comb += getattr(control, name).eq(getattr(core, name))
        m.d.comb += [control.idle.eq(idle), self.irq.eq(control.irq)]


def _connect_channels(m, port, outer):
    """Connect an adapter's channels to those of the same names of a port that has others too."""
    for name, member in port.signature.members.items():
        inner, outside = getattr(port, name), getattr(outer, name)
        m.d.comb += outside.eq(inner) if member.flow is Out else inner.eq(outside)
