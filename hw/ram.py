"""Large memories in generated Verilog, as modules that every synthesiser maps to block RAM or UltraRAM.

Amaranth writes out each initial word of a memory, which takes minutes and megabytes for the operand memory; a
memory that starts as zeros and is written before it is read needs none. Amaranth asks its platform for
memories, so the units stay plain :class:`amaranth.lib.memory.Memory` and simulate as such.
"""

from amaranth.hdl import ClockSignal, Instance, Module, Value
from amaranth.lib.memory import Memory

SMALLEST_BITS = 4096  #: smaller memories stay as Amaranth writes them


class RamPlatform:
    """A platform that only knows how to make memories. After conversion, ``modules`` is Verilog to append."""

    def __init__(self) -> None:
        self._modules: dict[str, str] = {}

    @property
    def modules(self) -> str:
        return "\n".join(self._modules[name] for name in sorted(self._modules))

    def get_memory(self, memory: Memory) -> Module:
        """Called by Amaranth for each memory of the design."""
        if not self._takes(memory):
            return _plain(memory)
        (write,) = memory.write_ports
        width = len(Value.cast(write.data))
        lanes = len(write.en)
        style = str(memory.attrs.get("ram_style", ""))
        name = f"moevit_ram_{memory.data.depth}x{width}_{lanes}w_{len(memory.read_ports)}r{style and '_' + style}"
        if name not in self._modules:
            self._modules[name] = _verilog(name, memory.data.depth, width, lanes, len(memory.read_ports), style)
        m = Module()
        ports = {"i_clk": ClockSignal(write.domain), "i_wa": write.addr, "i_we": write.en}
        ports["i_wd"] = Value.cast(write.data)
        for i, read in enumerate(memory.read_ports):
            ports |= {f"i_ra{i}": read.addr, f"i_re{i}": read.en, f"o_rd{i}": Value.cast(read.data)}
        m.submodules.ram = Instance(name, **ports)
        return m

    @staticmethod
    def _takes(memory: Memory) -> bool:
        return (
            len(memory.write_ports) == 1
            and memory.data.depth * len(Value.cast(memory.write_ports[0].data)) >= SMALLEST_BITS
            and all(r.domain == memory.write_ports[0].domain and not r.transparent_for for r in memory.read_ports)
            and all(word is None or word == 0 for word in memory.data.init)
        )


def _plain(memory: Memory) -> Module:
    """What Amaranth makes of a memory without a platform."""
    return memory.elaborate(None)


def _verilog(name: str, depth: int, width: int, lanes: int, reads: int, style: str) -> str:
    address = max((depth - 1).bit_length(), 1)
    ports = ["input clk", f"input [{address - 1}:0] wa", f"input [{lanes - 1}:0] we", f"input [{width - 1}:0] wd"]
    for i in range(reads):
        ports += [f"input [{address - 1}:0] ra{i}", f"input re{i}", f"output reg [{width - 1}:0] rd{i}"]
    lane = width // lanes
    attribute = f'(* ram_style = "{style}" *) ' if style else ""
    lines = [
        f"module {name}(",
        "  " + ",\n  ".join(ports),
        ");",
        f"  {attribute}reg [{width - 1}:0] mem [0:{depth - 1}];",
        "  integer i;",
        "  always @(posedge clk) begin",
        f"    for (i = 0; i < {lanes}; i = i + 1)",
        f"      if (we[i]) mem[wa][i * {lane} +: {lane}] <= wd[i * {lane} +: {lane}];",
        *(f"    if (re{i}) rd{i} <= mem[ra{i}];" for i in range(reads)),
        "  end",
        "endmodule",
        "",
    ]
    return "\n".join(lines)
