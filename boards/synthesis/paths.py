"""Joins the units' paths through their ports: the longest of the whole machine, wherever it crosses from unit to unit.

Ports count as a whole, not bit by bit, so what is found is an upper bound.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from moevit.boards.synthesis.netlist import REGISTERS, Result


@dataclass(frozen=True)
class Crossing:
    """A path from a register of one unit to one of another.

    levels : of logic on it
    start, end : the registers it lies between
    through : the ports it passes, in order
    """

    levels: int
    start: str
    end: str
    through: tuple[str, ...]


def crossings(results: Iterable[tuple[str, Result]]) -> list[Crossing]:
    """For each register end's port at which a path comes in: the longest such path, longest first.

    Parameters
    ----------
    results : path of each instance of a unit, "" for the top, and its result
    """
    begins: dict[str, tuple[int, str]] = {}
    ends: dict[str, tuple[int, str]] = {}
    into: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for path, result in results:
        for (origin, target), longest in result.paths.items():
            if origin == REGISTERS and target == REGISTERS:
                continue
            if origin == REGISTERS:
                begins[_place(path, target)] = (longest.levels, _inside(path, longest.start))
            elif target == REGISTERS:
                ends[_place(path, origin)] = (longest.levels, _inside(path, longest.end))
            else:
                into[_place(path, target)].append((_place(path, origin), longest.levels))
    arrivals: dict[str, tuple[int, str, tuple[str, ...]] | None] = {}

    def arrival(port: str) -> tuple[int, str, tuple[str, ...]] | None:
        if port in arrivals:
            return arrivals[port]  # None too: a loop of ports, which as a loop of bits does not exist
        arrivals[port] = None
        found: list[tuple[int, str, tuple[str, ...]]] = []
        if port in begins:
            levels, start = begins[port]
            found.append((levels, start, (port,)))
        for origin, levels in into[port]:
            before = arrival(origin)
            if before is not None:
                found.append((before[0] + levels, before[1], (*before[2], port)))
        arrivals[port] = max(found, key=lambda path: path[0], default=None)
        return arrivals[port]

    out = []
    for port, (levels, end) in ends.items():
        before = arrival(port)
        if before is not None:
            out.append(Crossing(before[0] + levels, before[1], end, before[2]))
    return sorted(out, key=lambda c: -c.levels)


def _place(path: str, port: str) -> str:
    """A port of a unit, or of a unit below it, as a place in the machine."""
    instance, _, name = port.rpartition("/")
    return "/".join([".".join(filter(None, (path, instance))), name])


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
