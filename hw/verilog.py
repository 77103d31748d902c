"""The generator's output: Verilog and a C header of the registers. The only module that simulators import."""

from amaranth.back import verilog
from amaranth.hdl import Shape, Signal
from amaranth.lib.wiring import Out, Signature

from moevit.config import AcceleratorConfig
from moevit.hw.accelerator import Accelerator, accelerator_members
from moevit.hw.ram import RamPlatform
from moevit.registers import REGISTERS, ErrorCode, Status

TOP = "moevit"  #: name of the top module


def _port_name(path: tuple[str | int, ...]) -> str:
    """``m_axi_w0_araddr`` of ("m_axi_w", 0, "araddr")."""
    name = ""
    for part in path:
        name += str(part) if isinstance(part, int) or not name else f"_{part}"
    return name


def _ports(accelerator: Accelerator) -> list[tuple[str, Signal, None]]:
    """Names and signals of all ports but ``clk`` and ``rst``; what drives a port decides its direction."""
    return [(_port_name(path), signal, None) for path, _, signal in accelerator.signature.flatten(accelerator)]


def port_list(config: AcceleratorConfig) -> list[tuple[str, str, int]]:
    """Name, "input" or "output", and width of all ports but ``clk`` and ``rst``, in the order of the signature."""
    signature = Signature(accelerator_members(config))  # of no machine, which would have to be elaborated
    return [
        (_port_name(path), "output" if member.flow is Out else "input", Shape.cast(member.shape).width)
        for path, member, _ in signature.flatten(signature.create())
    ]


def generate(config: AcceleratorConfig, trace: bool = False) -> str:
    """Verilog of the whole machine, with the top module ``moevit``.

    The same configuration gives the same text. Ports are ``clk``, ``rst`` (synchronous, active high),
    AXI4-Lite ``s_axil_*``, AXI4 ``m_axi_dma_*`` and ``m_axi_w<n>_*``, and ``irq``.

    Parameters
    ----------
    config : the machine
    trace : whether it has the ``trace_*`` outputs by which a simulator sees every tensor
    """
    accelerator = Accelerator(config, trace=trace)
    platform = RamPlatform()
    top = verilog.convert(accelerator, name=TOP, platform=platform, ports=_ports(accelerator), emit_src=False)
    return f"{top}\n{platform.modules}"


def register_header() -> str:
    """The register map, status bits and error codes as a C header."""
    lines = [
        "/* Registers of a moevit accelerator: byte offsets from its base, each 32 bits wide. Generated. */",
        "#ifndef MOEVIT_REGISTERS_H",
        "#define MOEVIT_REGISTERS_H",
        "",
    ]
    width = max(len(r.name) for r in REGISTERS)
    for register in REGISTERS:
        name = f"{register.name:<{width}}"
        lines.append(f"#define MOEVIT_{name} 0x{register.offset:03X} /* {register.access}: {register.doc} */")
    for prefix, values in (("STATUS", Status), ("ERROR_CODE", ErrorCode)):
        lines.append("")
        lines += [f"#define MOEVIT_{prefix}_{value.name} {value.value}" for value in values]
    return "\n".join([*lines, "", "#endif", ""])
