"""The Verilog around the machine that IP integrator takes in: complete AXI interfaces, and a reset that is active low.

Every port says by an attribute which signal of which interface it is (UG994, inferring interfaces of an RTL module).
IP integrator expects all five channels of an AXI4 interface, so those of a weight port that write are here, tied off.
"""

from dataclasses import dataclass

from moevit.boards.vivado import TOP
from moevit.config import AcceleratorConfig
from moevit.hw.verilog import TOP as MACHINE
from moevit.hw.verilog import port_list

REGISTERS = "s_axil"
DMA = "m_axi_dma"  #: the master that has all channels
WRITE_CHANNELS = ("aw", "w", "b")
READY_OF_RESPONSES = "bready"  #: of a tied channel, what is driven with 1


@dataclass(frozen=True)
class Port:
    """A port of the wrapper; ``tied`` if the machine does not have it."""

    bus: str
    signal: str
    direction: str
    width: int
    tied: bool = False

    @property
    def name(self) -> str:
        return f"{self.bus}_{self.signal}"

    def declaration(self) -> str:
        """As Verilog has it in the list of ports."""
        bits = f" [{self.width - 1}:0]" if self.width > 1 else ""
        attribute = f"xilinx.com:interface:aximm:1.0 {self.bus} {self.signal.upper()}"
        return f'  (* X_INTERFACE_INFO = "{attribute}" *)\n  {self.direction}{bits} {self.name}'


def masters(config: AcceleratorConfig) -> list[str]:
    """The AXI4 masters, in the machine's order."""
    return [DMA, *(f"m_axi_w{i}" for i in range(config.weight_ports))]


def bus_ports(config: AcceleratorConfig) -> list[Port]:
    """All ports but clock, reset and interrupt."""
    busses: dict[str, list[Port]] = {bus: [] for bus in (REGISTERS, *masters(config))}
    for name, direction, width in port_list(config):
        bus, _, signal = name.rpartition("_")
        if bus in busses:
            busses[bus].append(Port(bus, signal, direction, width))
    writes = [p for p in busses[DMA] if p.signal.startswith(WRITE_CHANNELS)]
    for bus, ports in busses.items():
        if bus not in (REGISTERS, DMA):
            ports += [Port(bus, p.signal, p.direction, p.width, tied=True) for p in writes]
    return [port for ports in busses.values() for port in ports]


def wrapper(config: AcceleratorConfig) -> str:
    """The Verilog of the module ``moevit_axi``."""
    ports = bus_ports(config)
    busses = ":".join([REGISTERS, *masters(config)])
    ties = [p for p in ports if p.tied and p.direction == "output"]
    unused = [p.name for p in ports if p.tied and p.direction == "input"]
    return "\n".join([
        f"// The machine of configuration {config.name}, digest {config.digest:016x}, for IP integrator. Generated.",
        f"module {TOP} (",
        '  (* X_INTERFACE_INFO = "xilinx.com:signal:clock:1.0 aclk CLK" *)',
        f'  (* X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF {busses}, ASSOCIATED_RESET aresetn" *)',
        "  input aclk,",
        '  (* X_INTERFACE_INFO = "xilinx.com:signal:reset:1.0 aresetn RST" *)',
        '  (* X_INTERFACE_PARAMETER = "POLARITY ACTIVE_LOW" *)',
        "  input aresetn,",
        '  (* X_INTERFACE_INFO = "xilinx.com:signal:interrupt:1.0 irq INTERRUPT" *)',
        '  (* X_INTERFACE_PARAMETER = "SENSITIVITY LEVEL_HIGH" *)',
        "  output irq,",
        ",\n".join(port.declaration() for port in ports),
        ");",
        *(f"  assign {p.name} = {p.width}'d{int(p.signal == READY_OF_RESPONSES)};" for p in ties),
        f"  wire unused = &{{{', '.join(unused)}}};",  # says so to a linter
        "  reg rst = 1'b1;",
        "  always @(posedge aclk) rst <= ~aresetn;",
        f"  {MACHINE} machine (",
        "    .clk(aclk),",
        "    .rst(rst),",
        "    .irq(irq),",
        ",\n".join(f"    .{p.name}({p.name})" for p in ports if not p.tied),
        "  );",
        "endmodule",
        "",
    ])  # fmt: skip
