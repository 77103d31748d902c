"""Control: the AXI4-Lite registers, start, stop and soft reset, the interrupt and the counters."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import AxiLiteSignature, events_layout
from moevit.hw.units.fetch import ERROR_WIDTH
from moevit.hw.units.retirement import NUMBER_WIDTH
from moevit.isa import INSTRUCTION_BYTES
from moevit.registers import (
    ADDRESS_WIDTH,
    COUNTERS,
    DATA_WIDTH,
    IDENTITY,
    REGISTERS,
    VERSION,
    Access,
    ErrorCode,
    Status,
)

STALL_CYCLES = 1 << 14  #: without any progress, after which a program is given up
READ_GROUP = 8  #: registers behind one multiplexer
DRAIN_CYCLES = 4  #: from halt until the adapters' idle counts

OKAY = 0b00
SLVERR = 0b10

STAGES = tuple(dict.fromkeys(stage for stage, _, _ in COUNTERS))


def all_events_layout() -> data.StructLayout:
    """The events of every stage."""
    return data.StructLayout({stage: events_layout(stage) for stage in STAGES})


class AxiLiteSlave(wiring.Component):
    """Turns AXI4-Lite transfers into one write or read strobe each.

    Members
    -------
    axil : In(AxiLiteSignature)
        Address and data of a write may come in any order; responses wait for the master.
    write : Out(1), write_addr, write_data, write_strobe : Out
        In the cycle of ``write``, ``write_error`` is sampled.
    write_error : In(1)
    read_addr : Out
        Held from two cycles before the cycle in which ``read_data`` and ``read_error`` are sampled.
    read_data : In(32), read_error : In(1)

    Latency
    -------
    Write response 2 cycles after the later of address and data; read data 3 cycles after the address.

    Throughput
    ----------
    A write every 2 cycles and a read every 4, independently.
    """

    axil: In(AxiLiteSignature(ADDRESS_WIDTH))
    write: Out(1)
    write_addr: Out(ADDRESS_WIDTH)
    write_data: Out(DATA_WIDTH)
    write_strobe: Out(DATA_WIDTH // 8)
    write_error: In(1)
    read_addr: Out(ADDRESS_WIDTH)
    read_data: In(DATA_WIDTH)
    read_error: In(1)

    def elaborate(self, platform):
        m = Module()
        axil = self.axil
        have_addr, have_data = Signal(), Signal()
        m.d.comb += [
            axil.awready.eq(~have_addr),
            axil.wready.eq(~have_data),
            self.write.eq(have_addr & have_data & (~axil.bvalid | axil.bready)),
        ]
        with m.If(axil.bready):
            m.d.sync += axil.bvalid.eq(0)
        with m.If(self.write):
            m.d.sync += [
                have_addr.eq(0),
                have_data.eq(0),
                axil.bvalid.eq(1),
                axil.bresp.eq(Mux(self.write_error, SLVERR, OKAY)),
            ]
        with m.If(axil.awvalid & axil.awready):
            m.d.sync += [have_addr.eq(1), self.write_addr.eq(axil.awaddr)]
        with m.If(axil.wvalid & axil.wready):
            m.d.sync += [
                have_data.eq(1),
                self.write_data.eq(axil.wdata),
                self.write_strobe.eq(axil.wstrb),
            ]

        with m.FSM(name="read"):
            with m.State("IDLE"):
                m.d.comb += axil.arready.eq(1)
                m.d.sync += self.read_addr.eq(axil.araddr)
                with m.If(axil.arvalid):
                    m.next = "DECODE"
            with m.State("DECODE"):
                m.next = "SELECT"
            with m.State("SELECT"):
                m.d.sync += [
                    axil.rvalid.eq(1),
                    axil.rdata.eq(self.read_data),
                    axil.rresp.eq(Mux(self.read_error, SLVERR, OKAY)),
                ]
                m.next = "RESPOND"
            with m.State("RESPOND"):
                with m.If(axil.rready):
                    m.d.sync += axil.rvalid.eq(0)
                    m.next = "IDLE"
        return m


class Control(wiring.Component):
    """The registers of ``moevit.registers``, and the sequence start, run, stop.

    The core is held in reset except while a program runs, so every program starts from the same state. The
    addresses and sizes that a program works with are taken over at its start; the registers may then be
    written for the next one. Refused (SLVERR, without effect) are a value that is not aligned as its register
    demands, an address wider than the bus, a start while BUSY or ERROR or together with a soft reset, an
    access that the register does not allow, and an unknown offset.

    On a fault the AXI adapters are halted and the core is reset; when the outstanding transfers are complete
    BUSY falls, ERROR stays until a soft reset. A soft reset does the same at any time and then also clears
    the error, the done bit and the interrupt status. Addresses, sizes and the interrupt enable survive.

    Parameters
    ----------
    config : AcceleratorConfig
    stall_cycles : int
        So many cycles with idle adapters and no busy stage are the error STALLED.

    Members
    -------
    axil : In(AxiLiteSignature), irq : Out(1)
    start : Out(1)
        A pulse, some cycles after ``core_reset`` fell and the program's registers took their values.
    core_reset : Out(1)
    halt, clear : Out(1)
        To all AXI adapters.
    idle : In(1)
        All AXI adapters are.
    image_base, image_bytes, program, input_base, input_bytes, output_base, output_bytes : Out
        As they were at start.
    done : In(1), fault : In(1), fault_code, fault_number : In
        Levels or pulses.
    retired, oldest : In(24)
        Instructions retired; the number that STALLED is attributed to.
    events : In(all_events_layout())

    Latency
    -------
    ``START_CYCLES`` from the write of CONTROL to ``start``; 2 from ``fault`` to ``halt``.
    """

    START_CYCLES = 4

    def __init__(self, config: AcceleratorConfig, *, stall_cycles: int = STALL_CYCLES):
        self.config = config
        self.stall_cycles = stall_cycles
        super().__init__({
            "axil": In(AxiLiteSignature(ADDRESS_WIDTH)),
            "irq": Out(1),
            "start": Out(1),
            "core_reset": Out(1, init=1),
            "halt": Out(1),
            "clear": Out(1),
            "idle": In(1),
            "image_base": Out(config.axi_address_width),
            "image_bytes": Out(32),
            "program": Out(32),
            "input_base": Out(config.axi_address_width),
            "input_bytes": Out(32),
            "output_base": Out(config.axi_address_width),
            "output_bytes": Out(32),
            "done": In(1),
            "fault": In(1),
            "fault_code": In(ERROR_WIDTH),
            "fault_number": In(NUMBER_WIDTH),
            "retired": In(NUMBER_WIDTH),
            "oldest": In(NUMBER_WIDTH),
            "events": In(all_events_layout()),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.slave = slave = AxiLiteSlave()
        wiring.connect(m, wiring.flipped(self.axil), slave.axil)

        values = {r.name: Signal(DATA_WIDTH, name=r.name.lower()) for r in REGISTERS}
        m.d.comb += [
            values["IDENTITY"].eq(IDENTITY),
            values["VERSION"].eq(VERSION),
            values["DIGEST_LO"].eq(self.config.digest & 0xFFFF_FFFF),
            values["DIGEST_HI"].eq(self.config.digest >> 32),
        ]
        may_start = Signal()
        start, soft_reset, clear_interrupt = self._write(m, slave, values, may_start)
        self._read(m, slave, values)
        starting, running, busy = self._sequence(m, values, may_start, start, soft_reset, clear_interrupt)
        self._latch(m, values, starting)
        self._count(m, values, starting, running, busy)
        return m

    def _forbidden_bits(self):
        """Register name -> bits that a write may not set."""
        high = ~((1 << (self.config.axi_address_width - 32)) - 1) & 0xFFFF_FFFF
        bus = self.config.axi_bytes - 1
        return {
            "IMAGE_LO": INSTRUCTION_BYTES - 1,
            "PROGRAM": INSTRUCTION_BYTES - 1,
            "INPUT_LO": bus,
            "OUTPUT_LO": bus,
            "IMAGE_HI": high,
            "INPUT_HI": high,
            "OUTPUT_HI": high,
            "INTERRUPT_ENABLE": 0xFFFF_FFFC,
        }

    def _write(self, m, slave, values, may_start):
        """Register writes; returns the strobes start, soft reset and clear interrupt (2 bits)."""
        forbidden = self._forbidden_bits()
        strobe_bits = Cat(bit.replicate(8) for bit in slave.write_strobe)
        written = Signal(DATA_WIDTH)
        start, soft_reset, clear_interrupt = Signal(), Signal(), Signal(2)
        m.d.comb += [written.eq(slave.write_data & strobe_bits), slave.write_error.eq(1)]
        with m.Switch(slave.write_addr[2:]):
            for register in REGISTERS:
                if Access.WRITE.value not in register.access.value:
                    continue
                value = values[register.name]
                with m.Case(register.offset >> 2):
                    if register.name == "CONTROL":
                        refused = written[0] & (written[1] | ~may_start)
                        m.d.comb += [
                            slave.write_error.eq(refused),
                            start.eq(slave.write & written[0] & ~refused),
                            soft_reset.eq(slave.write & written[1] & ~refused),
                        ]
                    elif register.name == "INTERRUPT_STATUS":
                        m.d.comb += slave.write_error.eq(0)
                        m.d.comb += clear_interrupt.eq(Mux(slave.write, written[:2], 0))
                    else:
                        bad = (written & forbidden.get(register.name, 0)).any()
                        m.d.comb += slave.write_error.eq(bad)
                        with m.If(slave.write & ~bad):
                            m.d.sync += value.eq((value & ~strobe_bits) | written)
        return start, soft_reset, clear_interrupt

    def _read(self, m, slave, values):
        """Register reads: a multiplexer with a register behind it for each few words, all but one of which give zero.

        The counters lie wherever the units do that they count for, so most of the cycle goes to wires.
        """
        readable = [register for register in REGISTERS if register.access is not Access.WRITE]
        groups = {}
        for register in readable:
            groups.setdefault((register.offset >> 2) // READ_GROUP, []).append(register)
        words, known = [], []
        for index, group in groups.items():
            word, is_known = Signal(DATA_WIDTH, name=f"read_{index}"), Signal(name=f"read_known_{index}")
            m.d.sync += [is_known.eq(0), word.eq(0)]
            with m.Switch(slave.read_addr[2:]):
                for register in group:
                    with m.Case(register.offset >> 2):
                        m.d.sync += [is_known.eq(1), word.eq(values[register.name])]
            words.append(word)
            known.append(is_known)
        m.d.comb += [slave.read_data.eq(reduce(or_, words)), slave.read_error.eq(~Cat(known).any())]

    def _sequence(self, m, values, may_start, start, soft_reset, clear_interrupt):
        """The state machine; returns the strobe that starts a program, and whether it runs and is busy.

        The strobe comes from a register, one cycle after the write: it clears every counter and the adapters, and
        the decoding of an address before such a wide net is what would bound the clock.
        """
        done, error, interrupt = Signal(), Signal(), Signal(2)
        waited = Signal(range(max(DRAIN_CYCLES, self.START_CYCLES) + 1))
        starting, running, busy, draining = Signal(), Signal(), Signal(), Signal()
        raise_interrupt = Signal(2)
        stalled = self._watch(m, running)
        reset_wanted = Signal()  # a soft reset is under way

        m.d.sync += [
            interrupt.eq((interrupt & ~clear_interrupt) | raise_interrupt),
            starting.eq(start),  # may_start is in ``start``: only IDLE has it
        ]
        with m.If(starting):
            m.d.comb += self.clear.eq(1)
        with m.FSM(name="sequence"):
            with m.State("IDLE"):
                m.d.comb += may_start.eq(1)
                m.d.sync += waited.eq(0)
                with m.If(start):
                    m.d.sync += [done.eq(0), self.core_reset.eq(0)]
                    m.next = "START"
                with m.If(reset_wanted):
                    m.next = "DRAIN"
            with m.State("START"):
                m.d.comb += busy.eq(1)
                m.d.sync += waited.eq(waited + 1)
                with m.If(waited == self.START_CYCLES - 2):
                    m.d.sync += self.start.eq(1)
                    m.next = "RUN"
                with m.If(reset_wanted):
                    m.next = "DRAIN"
            with m.State("RUN"):
                m.d.comb += [busy.eq(1), running.eq(1)]
                m.d.sync += [self.start.eq(0), waited.eq(0)]
                with m.If(reset_wanted):
                    m.next = "DRAIN"
                with m.Elif(self.fault | stalled):
                    m.d.sync += [
                        error.eq(1),
                        values["ERROR"].eq(Mux(self.fault, self.fault_code, ErrorCode.STALLED)),
                        values["ERROR_INSTRUCTION"].eq(Mux(self.fault, self.fault_number, self.oldest)),
                    ]
                    m.next = "DRAIN"
                with m.Elif(self.done & self.idle):
                    m.d.sync += [done.eq(1), self.core_reset.eq(1)]
                    m.d.comb += raise_interrupt[0].eq(1)
                    m.next = "IDLE"
            with m.State("DRAIN"):
                m.d.comb += [busy.eq(1), draining.eq(1), self.halt.eq(1)]
                m.d.sync += [self.core_reset.eq(1), self.start.eq(0)]
                with m.If(waited != DRAIN_CYCLES):
                    m.d.sync += waited.eq(waited + 1)
                with m.Elif(self.idle):
                    with m.If(reset_wanted):
                        m.next = "CLEAR"
                    with m.Else():
                        m.d.comb += raise_interrupt[1].eq(1)
                        m.next = "ERROR"
            with m.State("ERROR"):
                m.d.comb += self.halt.eq(1)
                with m.If(reset_wanted):
                    m.next = "DRAIN"
            with m.State("CLEAR"):
                m.d.comb += [busy.eq(1), draining.eq(1), self.halt.eq(1), self.clear.eq(1)]
                m.d.sync += [
                    reset_wanted.eq(0),
                    done.eq(0),
                    error.eq(0),
                    interrupt.eq(0),
                    values["ERROR"].eq(0),
                    values["ERROR_INSTRUCTION"].eq(0),
                ]
                m.next = "IDLE"
        with m.If(soft_reset):
            m.d.sync += reset_wanted.eq(1)

        m.d.comb += [
            values["STATUS"].eq(
                Mux(busy, Status.BUSY, 0)
                | Mux(done, Status.DONE, 0)
                | Mux(error, Status.ERROR, 0)
                | Mux(draining, Status.DRAINING, 0)
            ),
            values["INTERRUPT_STATUS"].eq(interrupt),
        ]
        m.d.sync += self.irq.eq((interrupt & values["INTERRUPT_ENABLE"]).any())
        with m.If(starting):
            m.d.sync += values["RETIRED"].eq(0)
        with m.Elif(running):
            m.d.sync += values["RETIRED"].eq(self.retired)
        return starting, running, busy

    def _watch(self, m, running):
        """Whether nothing has moved for ``stall_cycles``."""
        quiet = Signal(range(self.stall_cycles + 1))
        stalled, moves = Signal(), Signal()
        working = [self.events[stage].busy for stage in STAGES]
        m.d.sync += moves.eq(Cat(*working, ~self.idle, ~running).any())
        m.d.sync += quiet.eq(Mux(moves, 0, quiet + 1))
        m.d.sync += stalled.eq(~moves & (quiet == self.stall_cycles - 1))
        return stalled & running

    def _latch(self, m, values, starting):
        for name in ("image", "input", "output"):
            base, size = getattr(self, f"{name}_base"), getattr(self, f"{name}_bytes")
            low, high = values[f"{name}_LO".upper()], values[f"{name}_HI".upper()]
            with m.If(starting):
                m.d.sync += [base.eq(Cat(low, high)), size.eq(values[f"{name}_BYTES".upper()])]
        with m.If(starting):
            m.d.sync += self.program.eq(values["PROGRAM"])

    def _count(self, m, values, starting, running, busy):
        events = Signal(all_events_layout())
        m.d.sync += events.eq(self.events)
        counting = [(f"COUNT_{stage}_{cause}".upper(), events[stage][cause] & running) for stage, cause, _ in COUNTERS]
        for name, counts in (*counting, ("CYCLES", busy)):
            value = values[name]
            with m.If(starting):  # the first cycle of START: one that is busy, and not yet one of a stage
                m.d.sync += value.eq(int(name == "CYCLES"))
            with m.Elif(counts):
                m.d.sync += value.eq(value + 1)
