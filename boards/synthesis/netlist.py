"""Counts the cells of a mapped netlist, and the levels of logic between its registers.

A LUT is a level, and so is a carry chain, from its first block on; the wide multiplexers behind LUTs and the further
blocks of a chain lie in the same column of slices and count nothing. A read of LUT RAM is a level. Block RAMs,
UltraRAMs and DSPs end paths and begin them; DSPs without their registers are counted apart, for they are slow.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

_FLIP_FLOPS = {"FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "FDSE_1", "LDCE", "LDPE"}
_WIDE = {"MUXF7", "MUXF8", "MUXF9"}
_CARRY = {"CARRY4", "CARRY8"}
_HARD = {"DSP48E2", "RAMB18E2", "RAMB36E2", "URAM288"}
_FREE = {"$scopeinfo", "BUFG", "GND", "VCC", "IBUF", "OBUF"}
#: LUTs that a memory of LUTs takes (UG574, table 2-3; shift registers are one LUT).
LUT_MEMORIES = {
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8,
    "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1D": 8,
    "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM32X16DR8": 8, "RAM64X8SW": 8,
    "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip

REGISTERS = ""  #: where a path begins or ends that is no port: any register, memory or DSP


@dataclass(frozen=True)
class Resources:
    """What a unit takes. ``bram36`` counts a RAMB18E2 as a half; ``lut`` includes ``lut_memory``."""

    lut: int = 0
    lut_memory: int = 0
    ff: int = 0
    dsp: int = 0
    bram36: float = 0
    uram: int = 0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class LongestPath:
    """A longest path: levels, where it begins, where it ends."""

    levels: int
    start: str
    end: str


@dataclass
class Result:
    """What is known of a unit that has been mapped.

    resources : of the unit alone, without the units below it
    cells : how many there are of each type
    open_dsps : DSPs that lack the register behind the multiplier or the one at the output
    paths : the longest between each pair of ports; a port is "name" of the unit's own or "instance/name" of a unit
        below, and REGISTERS for what is inside
    deep : by number of levels, at how many inputs of registers the longest path, from registers or ports, has so many
    unmapped : cells of types that nobody has counted
    """

    resources: Resources
    cells: dict[str, int]
    open_dsps: int
    paths: dict[tuple[str, str], LongestPath]
    deep: dict[int, int]
    unmapped: dict[str, int] = field(default_factory=dict)


def read(module: dict[str, Any], children: set[str]) -> Result:
    """What a mapped module holds.

    Parameters
    ----------
    module : as it stands in what Yosys' ``write_json`` wrote
    children : names of the cells that are units of their own
    """
    return _Netlist(module, children).result()


class _Netlist:
    def __init__(self, module: dict[str, Any], children: set[str]):
        self._cells: dict[str, dict[str, Any]] = module["cells"]
        self._ports = module["ports"]
        self._children = {name for name in self._cells if name in children}
        self._names: dict[int, str] = {}
        for name, net in module["netnames"].items():
            for bit in net["bits"]:
                if isinstance(bit, int):
                    known = self._names.get(bit)
                    if known is None or _clumsiness(name) < _clumsiness(known):
                        self._names[bit] = name.removeprefix("\\")

    def result(self) -> Result:
        cells = Counter(c["type"] for n, c in self._cells.items() if n not in self._children)
        known = _FLIP_FLOPS | _WIDE | _CARRY | _HARD | _FREE | set(LUT_MEMORIES) | {"INV"}
        unmapped = {t: n for t, n in cells.items() if t not in known and not _is_lut(t)}
        luts = sum(n for t, n in cells.items() if _is_lut(t) or t == "INV")
        memory = sum(n * LUT_MEMORIES[t] for t, n in cells.items() if t in LUT_MEMORIES)
        resources = Resources(
            lut=luts + memory,
            lut_memory=memory,
            ff=sum(cells[t] for t in _FLIP_FLOPS),
            dsp=cells["DSP48E2"],
            bram36=cells["RAMB36E2"] + cells["RAMB18E2"] / 2,
            uram=cells["URAM288"],
        )
        open_dsps = sum(not _registered(c["parameters"]) for c in self._cells.values() if c["type"] == "DSP48E2")
        paths, deep = self._paths()
        return Result(resources, dict(sorted(cells.items())), open_dsps, paths, deep, unmapped)

    def _paths(self) -> tuple[dict[tuple[str, str], LongestPath], dict[int, int]]:
        """The longest paths, by a pass over the cells in topological order."""
        driver: dict[int, str] = {}
        arrivals: dict[int, dict[str, tuple[int, str]]] = {}  # by net: by origin, levels and the first net's name
        for name, port in self._ports.items():
            if port["direction"] == "input":
                for bit in port["bits"]:
                    arrivals[bit] = {name: (0, name)}
        gates = {}
        ends: list[tuple[str, str, list[Any]]] = []  # (port or REGISTERS, what it is called, nets)
        for name, cell in self._cells.items():
            inputs, outputs, sinks = self._pins(name, cell)
            ends += sinks
            if inputs is None:
                for origin, label, bits in outputs:
                    for bit in bits:
                        if isinstance(bit, int):
                            arrivals[bit] = {origin: (0, label or self._label(bit))}
            else:
                gates[name] = inputs
                for _, _, bits in outputs:
                    for bit in bits:
                        driver[bit] = name
        for gate in _ordered(gates, driver):
            arrival = self._through(self._cells[gate], gates[gate], arrivals)
            for bit in _outputs(self._cells[gate]):
                arrivals[bit] = arrival
        for name, port in self._ports.items():
            if port["direction"] == "output":
                ends.append((name, name, port["bits"]))
        paths: dict[tuple[str, str], LongestPath] = {}
        deep: Counter[int] = Counter()
        for target, label, bits in ends:
            worst = 0
            for bit in bits:
                for origin, (levels, start) in arrivals.get(bit, {}).items():
                    worst = max(worst, levels)
                    best = paths.get((origin, target))
                    if best is None or levels > best.levels:
                        paths[origin, target] = LongestPath(levels, start, label)
            if target == REGISTERS:
                deep[worst] += 1
        return paths, dict(sorted(deep.items()))

    def _through(
        self, cell: dict[str, Any], inputs: list[int], arrivals: dict[int, dict[str, tuple[int, str]]]
    ) -> dict[str, tuple[int, str]]:
        """When a gate's outputs arrive."""
        kind = cell["type"]
        chained = {bit for bit in cell["connections"].get("CI", []) if kind in _CARRY}
        out: dict[str, tuple[int, str]] = {}
        for bit in inputs:
            cost = 0 if kind in _WIDE or kind in _FREE or bit in chained else 1
            for origin, (levels, start) in arrivals.get(bit, {}).items():
                if origin not in out or levels + cost > out[origin][0]:
                    out[origin] = (levels + cost, start)
        return out

    def _pins(self, name: str, cell: dict[str, Any]) -> tuple[list[int] | None, list[Any], list[Any]]:
        """(nets it computes with, or None if paths begin at its outputs; outputs; ends of paths)."""
        kind, pins = cell["type"], cell["connections"]
        directions = cell["port_directions"]
        outputs = [p for p in pins if directions.get(p) == "output"]
        inputs = [p for p in pins if directions.get(p) == "input"]
        if name in self._children:
            return (
                None,
                [(f"{name}/{p}", f"{name}/{p}", pins[p]) for p in outputs],
                [(f"{name}/{p}", f"{name}/{p}", pins[p]) for p in inputs],
            )
        if kind in LUT_MEMORIES:
            address = [p for p in inputs if p.startswith(("A", "DPRA"))]
            nets = [bit for p in address for bit in pins[p] if isinstance(bit, int)]
            label = self._label(next(bit for p in outputs for bit in pins[p] if isinstance(bit, int)))
            sinks = [(REGISTERS, label, pins[p]) for p in inputs if p not in ("C", "CLK", "WCLK")]
            if nets and not kind.startswith("SRL"):
                return nets, [(REGISTERS, "", pins[p]) for p in outputs], sinks
            return None, [(REGISTERS, "", pins[p]) for p in outputs], sinks
        if kind in _FLIP_FLOPS:
            label = self._label(pins["Q"][0])
            return None, [(REGISTERS, label, pins["Q"])], [(REGISTERS, label, pins[p]) for p in inputs if p != "C"]
        if kind in _HARD or not (kind in _WIDE or kind in _CARRY or kind in _FREE or _is_lut(kind) or kind == "INV"):
            label = f"{_readable(name)} ({kind})"
            return (
                None,
                [(REGISTERS, label, pins[p]) for p in outputs],
                [(REGISTERS, label, pins[p]) for p in inputs if not p.startswith(("CLK", "CARRYCASC"))],
            )
        nets = [bit for p in inputs for bit in pins[p] if isinstance(bit, int)]
        return nets, [(REGISTERS, "", pins[p]) for p in outputs], []

    def _label(self, bit: Any) -> str:
        return self._names.get(bit, "?") if isinstance(bit, int) else "constant"


def _outputs(cell: dict[str, Any]) -> Iterator[int]:
    for pin, bits in cell["connections"].items():
        if cell["port_directions"].get(pin) == "output":
            yield from bits


def _ordered(gates: dict[str, list[int]], driver: dict[int, str]) -> Iterator[str]:
    """Gates after all that drive them; those of a combinational loop are left out."""
    waits = dict.fromkeys(gates, 0)
    users: dict[str, list[str]] = defaultdict(list)
    for gate, inputs in gates.items():
        for bit in inputs:
            if bit in driver:
                waits[gate] += 1
                users[driver[bit]].append(gate)
    ready = [gate for gate, n in waits.items() if n == 0]
    while ready:
        gate = ready.pop()
        yield gate
        for user in users[gate]:
            waits[user] -= 1
            if waits[user] == 0:
                ready.append(user)


def _is_lut(kind: str) -> bool:
    return len(kind) == 4 and kind.startswith("LUT")


def _registered(parameters: dict[str, str]) -> bool:
    """Whether a DSP has registers behind the multiplier and at its output."""
    return all(_number(parameters[p]) > 0 for p in ("MREG", "PREG"))


def _number(value: str | int) -> int:
    return int(value, 2) if isinstance(value, str) else value


def _readable(name: str) -> str:
    """A cell's name without the numbers that passes give."""
    return name.split("$", 1)[0] or name[:60]


def _clumsiness(name: str) -> tuple[bool, int, str]:
    """Names that people gave come first, then short ones."""
    return "$" in name or name.startswith("_"), len(name), name
