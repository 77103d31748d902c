"""The whole design: machine, memory and host link, and around them the board's pins and clock."""

from amaranth import *
from amaranth.back import verilog
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from moevit.boards.ulx3s.design import Design
from moevit.boards.ulx3s.gateware.clock import Clock
from moevit.boards.ulx3s.gateware.link import HostLink
from moevit.boards.ulx3s.gateware.memory import BlockMemory
from moevit.hw.accelerator import Accelerator
from moevit.hw.interfaces import AxiReadSignature, AxiWriteSignature
from moevit.hw.ram import RamPlatform

TOP = "ulx3s"
LEDS = 8


class System(wiring.Component):
    """Machine, memory and host link: all that is in the machine's clock domain.

    Parameters
    ----------
    design : sizes and clock

    Members
    -------
    rx : In(1), tx : Out(1)
        The serial line.
    leds : Out(8)
        0 blinks while there is a clock, 1: the host link is at work, 2: the interrupt line.
    """

    def __init__(self, design: Design):
        self.design = design
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "leds": Out(LEDS)})

    def elaborate(self, platform):
        m = Module()
        design, config = self.design, self.design.config
        m.submodules.machine = machine = Accelerator(config)
        m.submodules.memory = memory = BlockMemory(config, design.memory_bytes, 1 + config.weight_ports)
        m.submodules.link = link = HostLink(design.divisor, design.info)
        connect(m, link.axil, machine.s_axil)
        connect(m, link.memory, memory.host)
        _connect_channels(m, AxiReadSignature(config), machine.m_axi_dma, memory.read[0])
        _connect_channels(m, AxiWriteSignature(config), machine.m_axi_dma, memory.write)
        for port in range(config.weight_ports):
            connect(m, machine.m_axi_w[port], memory.read[1 + port])

        seconds = Signal(range(round(design.clock_mhz * 1e6)))
        m.d.sync += seconds.eq(seconds + 1)
        m.d.comb += [
            link.rx.eq(self.rx),
            self.tx.eq(link.tx),
            self.leds.eq(Cat(seconds[-1], link.active, machine.irq)),
        ]
        return m


class Board(wiring.Component):
    """The system between the board's pins.

    Members
    -------
    clk_25mhz, ftdi_txd : In(1), ftdi_rxd : Out(1), fire1 : In(1), led : Out(8), wifi_gpio0 : Out(1)
        Named as in the board's schematic: the USB bridge receives on ``ftdi_rxd``. The button FIRE1 is a reset; the
        ESP32 stays as it is while ``wifi_gpio0`` is high.
    """

    def __init__(self, design: Design):
        self.design = design
        super().__init__({
            "clk_25mhz": In(1), "ftdi_txd": In(1, init=1), "ftdi_rxd": Out(1, init=1), "fire1": In(1),
            "led": Out(LEDS), "wifi_gpio0": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.clock = clock = Clock(self.design.clock_mhz)
        m.submodules.system = system = System(self.design)
        m.d.comb += [
            clock.oscillator.eq(self.clk_25mhz),
            clock.reset.eq(self.fire1),
            system.rx.eq(self.ftdi_txd),
            self.ftdi_rxd.eq(system.tx),
            self.led.eq(system.leds),
            self.wifi_gpio0.eq(1),
        ]
        return m


def generate(design: Design) -> str:
    """Verilog of the whole design, with the top module ``ulx3s``. The same design gives the same text."""
    board = Board(design)
    platform = RamPlatform()
    ports = [(str(path[0]), signal, None) for path, _, signal in board.signature.flatten(board)]
    text = verilog.convert(board, name=TOP, platform=platform, ports=ports, emit_src=False)
    return f"{text}\n{platform.modules}"


def _connect_channels(m, signature, outer, inner):
    """Connect the members of ``signature``, which are some of the outer interface's."""
    for name, member in signature.members.items():
        if member.flow == Out:
            m.d.comb += getattr(inner, name).eq(getattr(outer, name))
        else:
            m.d.comb += getattr(outer, name).eq(getattr(inner, name))
