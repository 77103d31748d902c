"""A block design: its cells and how they are connected, and what is wrong with it."""

from dataclasses import dataclass

from moevit.boards.vivado.recorder.cells import CLOCK, DATA, INTERRUPT, MODULE, PS, RESET, Cell, Interface, Pin, Segment
from moevit.boards.vivado.recorder.commands import refuse

NEEDED = (CLOCK, RESET, INTERRUPT)  #: kinds of inputs that must be connected


@dataclass(frozen=True)
class Assignment:
    """A segment as a master sees it."""

    space: str
    segment: str
    offset: int
    size: int


class BlockDesign:
    """Cells by name; nets as sets of pins; pairs of interfaces; addresses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cells: dict[str, Cell] = {}
        self.nets: list[set[str]] = []
        self.buses: dict[str, str] = {}  #: master interface: slave interface
        self.assignments: list[Assignment] = []

    # Objects ------------------------------------------------------------------------------------------------------

    def cell_of(self, path: str) -> tuple[Cell, str]:
        """The cell of ``cell/rest``, and the rest."""
        name, _, rest = path.lstrip("/").partition("/")
        if name not in self.cells:
            refuse(f"[BD 5-105] no cell '{name}', of '{path}'")
        return self.cells[name], rest

    def pin(self, path: str) -> Pin:
        cell, name = self.cell_of(path)
        if name not in cell.pins():
            refuse(f"[BD 5-106] {cell.name} ({cell.kind}) has no pin '{name}'")
        return cell.pins()[name]

    def interface(self, path: str) -> Interface:
        cell, name = self.cell_of(path)
        if name not in cell.interfaces():
            refuse(f"[BD 5-106] {cell.name} ({cell.kind}) has no interface '{name}'")
        return cell.interfaces()[name]

    def segment(self, path: str) -> Segment:
        cell, name = self.cell_of(path)
        if name not in cell.segments():
            refuse(f"[BD 5-106] {cell.name} has no address segment '{name}', but {', '.join(cell.segments())}")
        return cell.segments()[name]

    # Changes ------------------------------------------------------------------------------------------------------

    def connect(self, pins: list[str]) -> None:
        """Join pins, and the nets that they are on."""
        joined = set(pins)
        for net in [n for n in self.nets if n & joined]:
            joined |= net
            self.nets.remove(net)
        drivers = [p for p in sorted(joined) if self.pin(p).direction == "out"]
        if len(drivers) != 1:
            refuse(f"[BD 41-1732] a net of {', '.join(sorted(joined))} has {len(drivers)} drivers")
        driver = self.pin(drivers[0])
        for path in joined - set(drivers):
            pin = self.pin(path)
            if pin.kind != driver.kind and DATA not in (pin.kind, driver.kind):
                refuse(f"[BD 41-1731] {path} is of kind {pin.kind}, and {drivers[0]} of kind {driver.kind}")
            if pin.kind == RESET and pin.active_low != driver.active_low:
                refuse(f"[BD 41-1348] {path} and {drivers[0]} have different polarities")
        self.nets.append(joined)

    def connect_interfaces(self, one: str, other: str) -> None:
        """Join a master and a slave."""
        modes = {self.interface(path).mode: path for path in (one, other)}
        if set(modes) != {"master", "slave"}:
            refuse(f"[BD 41-171] {one} and {other} are both {next(iter(modes))}s")
        if modes["master"] in self.buses or modes["slave"] in self.buses.values():
            refuse(f"[BD 41-238] {one} or {other} is connected already")
        self.buses[modes["master"]] = modes["slave"]

    def assign(self, space: str, segment: str, offset: int, size: int) -> None:
        """Let a master see a segment."""
        self.space(space)
        known = self.segment(segment)
        if not self.reaches(space, segment):
            refuse(f"[BD 41-1051] {segment} is not connected to {space}")
        if size <= 0 or size & (size - 1) or offset % size:
            refuse(f"[BD 41-1356] {segment}: 0x{offset:x} is not aligned to a range of 0x{size:x}")
        if known.size and (size > known.size or (known.offset or offset) != offset):
            refuse(f"[BD 41-70] {segment}: 0x{size:x} bytes at 0x{offset:x} are outside the segment")
        for other in self.assignments:
            if other.space == space and offset < other.offset + other.size and other.offset < offset + size:
                refuse(f"[BD 41-71] {segment} overlaps {other.segment} in {space}")
        self.assignments.append(Assignment(space, segment, offset, size))

    def space(self, path: str) -> None:
        """See that there is such an address space."""
        cell, name = self.cell_of(path)
        if name not in cell.spaces():
            refuse(f"[BD 5-106] {cell.name} has no address space '{name}'")

    # Questions ----------------------------------------------------------------------------------------------------

    def driver(self, path: str) -> str | None:
        """The pin that drives a pin's net."""
        for net in self.nets:
            if path in net:
                return next(p for p in net if self.pin(p).direction == "out")
        return None

    def reaches(self, space: str, segment: str) -> bool:
        """Whether the interconnect leads from a master to the slave that has a segment."""
        cell, name = self.cell_of(space)
        masters = [n for n, interface in cell.interfaces().items() if interface.mode == "master"]
        starts = [f"{cell.name}/{n}" for n in masters if name in ("Data", n)]
        target, rest = self.cell_of(segment)
        if target.kind == MODULE:
            wanted = f"{target.name}/{rest.partition('/')[0]}"
        else:
            wanted = f"{target.name}/S_AXI_{rest.partition('/')[2].partition('_')[0]}_FPD"
        return any(wanted in self.slaves_of(start) for start in starts)

    def slaves_of(self, master: str) -> set[str]:
        """The slaves that a master interface leads to, through interconnects."""
        slave = self.buses.get(master)
        if slave is None:
            return set()
        cell, _ = self.cell_of(slave)
        if cell.kind in (MODULE, PS):
            return {slave}
        beyond = [f"{cell.name}/{n}" for n, i in cell.interfaces().items() if i.mode == "master"]
        return set().union(*(self.slaves_of(b) for b in beyond))

    def validate(self) -> None:
        """Refuse a design in which something is not connected, clocked or addressed."""
        for cell in self.cells.values():
            for name, pin in cell.pins().items():
                path = f"{cell.name}/{name}"
                if pin.direction == "in" and pin.kind in NEEDED and self.driver(path) is None:
                    refuse(f"[BD 41-758] {path} is not connected to a valid {pin.kind} source")
            for name in cell.interfaces():
                path = f"{cell.name}/{name}"
                if path not in self.buses and path not in self.buses.values():
                    refuse(f"[BD 41-759] {path} is not connected")
        for master, slave in self.buses.items():
            clocks = {self.driver(f"{self.cell_of(p)[0].name}/{self.interface(p).clock}") for p in (master, slave)}
            if len(clocks) != 1:
                refuse(f"[BD 41-237] {master} and {slave} have different clocks")
        for cell in self.cells.values():
            for space in cell.spaces():
                self._validate_space(f"{cell.name}/{space}")

    def _validate_space(self, space: str) -> None:
        """Refuse one that sees nothing, or not all of the memory that it is connected to."""
        mine = {a.segment for a in self.assignments if a.space == space}
        missing = [
            f"{cell.name}/{segment}"
            for cell in self.cells.values()
            for segment in cell.segments()
            if self.reaches(space, f"{cell.name}/{segment}") and ("DDR" in segment or cell.kind == MODULE)
        ]
        if not missing:
            refuse(f"[BD 41-1273] {space} leads nowhere")
        if left := sorted(set(missing) - mine):
            refuse(f"[BD 41-1356] {', '.join(left)} is not assigned in {space}")
