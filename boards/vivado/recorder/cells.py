"""The blocks of a design: which parameters they take, and which pins, interfaces and addresses these give them.

From PG201 (Zynq UltraScale+ MPSoC), PG164 (Processor System Reset) and PG247 (SmartConnect); for a module of one's own,
from the attributes in its Verilog (UG994).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from moevit.boards.vivado.recorder.commands import refuse

CLOCK, RESET, INTERRUPT, DATA = "clock", "reset", "interrupt", "data"
PLL_MHZ = 1499.985  #: 90 / 2 times the boards' 33.333 MHz: what fabric clocks are divided from


@dataclass(frozen=True)
class Pin:
    """A pin: its direction ("in", "out"), its kind, and of a reset whether it is active low."""

    direction: str
    kind: str
    active_low: bool = False


@dataclass(frozen=True)
class Interface:
    """An AXI interface: "master" or "slave", the pin of its clock, and its sizes where they are known."""

    mode: str
    clock: str
    data_width: int = 0
    address_width: int = 0


@dataclass(frozen=True)
class Segment:
    """What a slave offers: where it may lie at the earliest, and how much at most (0: anywhere, any size)."""

    offset: int = 0
    size: int = 0


@dataclass
class Cell:
    """A block with the values of its parameters."""

    name: str
    kind: str
    values: dict[str, str] = field(default_factory=dict)
    memory: int = 0  #: bytes of the board's DRAM, of a processing system with a preset
    source: str = ""  #: of a module, its Verilog

    def set(self, name: str, value: str) -> None:
        """Set a parameter. Raises VivadoError for one that there is not, or a value that it does not take."""
        for pattern, values in PARAMETERS[self.kind].items():
            if re.fullmatch(pattern, name):
                if values is None:
                    refuse(f"[BD 41-1276] {self.name}: {name} is read-only")
                if not re.fullmatch(values, value):
                    refuse(f"[IP_Flow 19-3461] {self.name}: {name} cannot be '{value}'")
                self.values[name] = value
                return
        refuse(f"[Common 17-54] {self.name} ({self.kind}) has no property '{name}'")

    def get(self, name: str) -> str:
        """A parameter's value."""
        if not any(re.fullmatch(pattern, name) for pattern in PARAMETERS[self.kind]):
            refuse(f"[Common 17-54] {self.name} ({self.kind}) has no property '{name}'")
        if match := re.fullmatch(r"CONFIG\.PSU__CRL_APB__PL(\d)_REF_CTRL__ACT_FREQMHZ", name):
            wanted = float(self.values.get(f"CONFIG.PSU__CRL_APB__PL{match[1]}_REF_CTRL__FREQMHZ", "100"))
            divisor = next(n for n in range(1, 64 * 64) if PLL_MHZ / n <= wanted)
            return f"{PLL_MHZ / divisor:.6f}"
        return self.values.get(name, "")

    def on(self, name: str) -> bool:
        """Whether a parameter is 1."""
        return self.values.get(f"CONFIG.{name}", "0") == "1"

    def number(self, name: str, default: int) -> int:
        """A parameter as a number."""
        return int(self.values.get(f"CONFIG.{name}", default))

    def pins(self) -> dict[str, Pin]:
        return _PINS[self.kind](self)

    def interfaces(self) -> dict[str, Interface]:
        return _INTERFACES[self.kind](self)

    def segments(self) -> dict[str, Segment]:
        """By their path below the cell, of slaves."""
        return _SEGMENTS[self.kind](self)

    def spaces(self) -> dict[str, str]:
        """By their path below the cell: the master interface, or "" for all."""
        if self.kind == PS:
            return {"Data": ""}
        return {n: n for n, i in self.interfaces().items() if i.mode == "master" and self.kind == MODULE}


PS, PROC_RESET, SMARTCONNECT = (f"xilinx.com:ip:{n}" for n in ("zynq_ultra_ps_e", "proc_sys_reset", "smartconnect"))
MODULE = "module"

_BIT, _WIDTH = "[01]", "32|64|128"
#: by kind: pattern of a parameter's name, and pattern of its values, or None where it cannot be set
PARAMETERS: dict[str, dict[str, str | None]] = {
    PS: {
        r"CONFIG\.PSU__USE__M_AXI_GP[0-2]": _BIT,
        r"CONFIG\.PSU__USE__S_AXI_GP[0-6]": _BIT,
        r"CONFIG\.PSU__MAXIGP[0-2]__DATA_WIDTH": _WIDTH,
        r"CONFIG\.PSU__SAXIGP[0-6]__DATA_WIDTH": _WIDTH,
        r"CONFIG\.PSU__USE__IRQ[01]": _BIT,
        r"CONFIG\.PSU__FPGA_PL[0-3]_ENABLE": _BIT,
        r"CONFIG\.PSU__CRL_APB__PL[0-3]_REF_CTRL__FREQMHZ": r"\d+(\.\d+)?",
        r"CONFIG\.PSU__CRL_APB__PL[0-3]_REF_CTRL__ACT_FREQMHZ": None,
    },
    PROC_RESET: {
        r"CONFIG\.C_EXT_RST_WIDTH": r"\d+",
        r"CONFIG\.C_EXT_RESET_HIGH": _BIT,
        r"CONFIG\.C_NUM_PERP_ARESETN": r"\d+",
        r"CONFIG\.C_NUM_INTERCONNECT_ARESETN": r"\d+",
    },
    SMARTCONNECT: {
        r"CONFIG\.NUM_SI": r"[1-9]|1[0-6]",
        r"CONFIG\.NUM_MI": r"[1-9]|1[0-6]",
        r"CONFIG\.NUM_CLKS": r"[1-9]",
        r"CONFIG\.HAS_ARESETN": _BIT,
    },
    MODULE: {},
}


def _ps_pins(cell: Cell) -> dict[str, Pin]:
    pins = {f"pl_clk{i}": Pin("out", CLOCK) for i in range(4) if cell.on(f"PSU__FPGA_PL{i}_ENABLE")}
    if pins:
        pins["pl_resetn0"] = Pin("out", RESET, active_low=True)
    pins |= {f"pl_ps_irq{i}": Pin("in", INTERRUPT) for i in range(2) if cell.on(f"PSU__USE__IRQ{i}")}
    pins |= {i.clock: Pin("in", CLOCK) for i in _ps_interfaces(cell).values()}
    return pins


def _ps_interfaces(cell: Cell) -> dict[str, Interface]:
    names = {}
    for gp, port in enumerate(("HPM0_FPD", "HPM1_FPD", "HPM0_LPD")):
        if cell.on(f"PSU__USE__M_AXI_GP{gp}"):
            width = cell.number(f"PSU__MAXIGP{gp}__DATA_WIDTH", 128)
            names[f"M_AXI_{port}"] = Interface("master", f"maxi{port.lower()}_aclk", width, 40)
    for gp, port in enumerate(("HPC0_FPD", "HPC1_FPD", "HP0_FPD", "HP1_FPD", "HP2_FPD", "HP3_FPD")):
        if cell.on(f"PSU__USE__S_AXI_GP{gp}"):
            width = cell.number(f"PSU__SAXIGP{gp}__DATA_WIDTH", 128)
            names[f"S_AXI_{port}"] = Interface("slave", f"saxi{port.lower()}_aclk", width, 49)
    return names


def _ps_segments(cell: Cell) -> dict[str, Segment]:
    out = {}
    for gp, port in enumerate(("HPC0", "HPC1", "HP0", "HP1", "HP2", "HP3")):
        if cell.on(f"PSU__USE__S_AXI_GP{gp}"):
            low = min(cell.memory, 2 << 30)
            out[f"SAXIGP{gp}/{port}_DDR_LOW"] = Segment(0, low)
            if cell.memory > low:
                out[f"SAXIGP{gp}/{port}_DDR_HIGH"] = Segment(0x8_0000_0000, cell.memory - low)
            out[f"SAXIGP{gp}/{port}_QSPI"] = Segment(0xC000_0000, 512 << 20)
    return out


def _reset_pins(cell: Cell) -> dict[str, Pin]:
    pins = {"slowest_sync_clk": Pin("in", CLOCK), "ext_reset_in": Pin("in", RESET, active_low=True)}
    pins |= {"aux_reset_in": Pin("in", DATA), "mb_debug_sys_rst": Pin("in", DATA), "dcm_locked": Pin("in", DATA)}
    pins |= {name: Pin("out", RESET) for name in ("mb_reset", "bus_struct_reset", "peripheral_reset")}
    names = ("interconnect_aresetn", "peripheral_aresetn")
    return pins | {name: Pin("out", RESET, active_low=True) for name in names}


def _smartconnect_interfaces(cell: Cell) -> dict[str, Interface]:
    slaves = {f"S{i:02}_AXI": Interface("slave", "aclk") for i in range(cell.number("NUM_SI", 2))}
    return slaves | {f"M{i:02}_AXI": Interface("master", "aclk") for i in range(cell.number("NUM_MI", 1))}


_DECLARED = re.compile(
    r'\(\* X_INTERFACE_INFO = "xilinx\.com:(interface|signal):(\w+):1\.0 (\w+) (\w+)" \*\)\s*'
    r'(?:\(\* X_INTERFACE_PARAMETER = "([^"]*)" \*\)\s*)?(input|output)(?: \[(\d+):0\])? (\w+)'
)
_SIGNALS = {"clock": CLOCK, "reset": RESET, "interrupt": INTERRUPT}
#: signals that an AXI interface of a module must have
_AXI = {f"{c}{s}" for c in ("AW", "AR") for s in ("ADDR", "VALID", "READY")} | {
    "WDATA", "WSTRB", "WVALID", "WREADY", "BRESP", "BVALID", "BREADY", "RDATA", "RRESP", "RVALID", "RREADY",
}  # fmt: skip
_AXI4 = {"ARLEN", "ARSIZE", "ARBURST", "AWLEN", "AWSIZE", "AWBURST", "WLAST", "RLAST"}  #: and one with bursts besides


def _module_pins(cell: Cell) -> dict[str, Pin]:
    pins = {}
    for scope, kind, _, _, parameters, direction, _, name in _DECLARED.findall(cell.source):
        if scope == "signal":
            pins[name] = Pin(direction.removesuffix("put"), _SIGNALS[kind], "ACTIVE_LOW" in parameters)
    return pins


def _module_interfaces(cell: Cell) -> dict[str, Interface]:
    signals: dict[str, dict[str, tuple[str, int]]] = {}
    clocks: dict[str, str] = {}
    for scope, kind, bus, signal, parameters, direction, high, name in _DECLARED.findall(cell.source):
        if scope == "interface":
            signals.setdefault(bus, {})[signal] = (direction, int(high or 0) + 1)
        elif kind == "clock" and (busses := re.search(r"ASSOCIATED_BUSIF ([\w:]+)", parameters)):
            clocks |= dict.fromkeys(busses[1].split(":"), name)
    out = {}
    for bus, found in signals.items():
        needed = _AXI | (_AXI4 if _AXI4 & set(found) else set())
        if missing := sorted(needed - set(found)):
            refuse(f"[BD 41-758] {cell.name}/{bus} lacks {', '.join(missing)}")
        if bus not in clocks:
            refuse(f"[BD 41-967] {cell.name}/{bus} is not associated with a clock")
        mode = "master" if found["ARADDR"][0] == "output" else "slave"
        out[bus] = Interface(mode, clocks[bus], found["RDATA"][1], found["ARADDR"][1])
    return out


def _module_segments(cell: Cell) -> dict[str, Segment]:
    return {
        f"{name}/reg0": Segment(0, 1 << interface.address_width)
        for name, interface in _module_interfaces(cell).items()
        if interface.mode == "slave"
    }


_PINS: dict[str, Callable[[Cell], dict[str, Pin]]] = {
    PS: _ps_pins,
    PROC_RESET: _reset_pins,
    SMARTCONNECT: lambda cell: {"aclk": Pin("in", CLOCK), "aresetn": Pin("in", RESET, active_low=True)},
    MODULE: _module_pins,
}
_INTERFACES: dict[str, Callable[[Cell], dict[str, Interface]]] = {
    PS: _ps_interfaces,
    PROC_RESET: lambda cell: {},
    SMARTCONNECT: _smartconnect_interfaces,
    MODULE: _module_interfaces,
}
_SEGMENTS: dict[str, Callable[[Cell], dict[str, Segment]]] = {
    PS: _ps_segments,
    PROC_RESET: lambda cell: {},
    SMARTCONNECT: lambda cell: {},
    MODULE: _module_segments,
}
