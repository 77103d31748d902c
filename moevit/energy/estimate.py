"""From events to joules, as a range."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moevit.energy.activity import Activity
from moevit.energy.constants import (
    BLOCK_MEMORY,
    DRAM,
    LANE,
    LEAKAGE,
    LOGIC,
    MAC,
    SMALL_MEMORY,
    SYSTEM,
    Constant,
)


@dataclass(frozen=True)
class Range:
    """A figure between two others."""

    low: float
    typical: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.typical + other.typical, self.high + other.high)

    def scaled(self, factor: float) -> "Range":
        """Each of the three, times ``factor``."""
        return Range(self.low * factor, self.typical * factor, self.high * factor)

    def as_dict(self) -> dict[str, float]:
        return {"low": self.low, "typical": self.typical, "high": self.high}


@dataclass(frozen=True)
class Part:
    """One term of the sum: ``count`` events or seconds times a constant.

    constant : None where the watts are not ours
    energy : joules
    """

    name: str
    count: float
    constant: Constant | None
    energy: Range


@dataclass(frozen=True)
class Energy:
    """What one inference takes.

    method : ``estimated``, or whose watts replace the estimate: ``vivado`` or ``measured``
    seconds : that it takes
    parts : in the programmable logic and the DRAM, without the processor system
    system : of the processor system and the idle DRAM in that time; None where the parts have it too
    """

    method: str
    seconds: float
    parts: tuple[Part, ...]
    system: Part | None

    @property
    def accelerator(self) -> Range | None:
        """Joules of the accelerator with its DRAM traffic; None where they are not told from the rest."""
        return None if self.system is None else _sum(self.parts)

    @property
    def total(self) -> Range:
        """Joules with the processor system, which is what a board's supply would show."""
        return _sum(self.all_parts)

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The processor system too."""
        return self.parts if self.system is None else (*self.parts, self.system)

    @property
    def watts(self) -> Range:
        """Average power while it runs, the processor system included."""
        return self.total.scaled(1 / self.seconds)

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "seconds": self.seconds,
            "parts": [
                {
                    "name": p.name,
                    "count": p.count,
                    "constant": None if p.constant is None else p.constant.name,
                    "joules": p.energy.as_dict(),
                }
                for p in self.all_parts
            ],
            "accelerator_joules": None if self.accelerator is None else self.accelerator.as_dict(),
            "total_joules": self.total.as_dict(),
            "watts": self.watts.as_dict(),
        }


def estimate(activity: Activity, *, clock_mhz: float, luts: float) -> Energy:
    """The energy of an inference.

    Parameters
    ----------
    activity : its events
    clock_mhz : the accelerator's clock
    luts : LUTs of six inputs that the machine takes; each stands for itself, its registers and its part of the
        clock network
    """
    seconds = activity.cycles / (clock_mhz * 1e6)
    pico = 1e-12
    parts = (
        _part("multiply-accumulates", activity.issued_macs, MAC, pico),
        _part("POST and LayerNorm", activity.post_elements + activity.norm_elements, LANE, pico),
        _part("A tiles", activity.tile_bytes, SMALL_MEMORY, pico),
        _part("operand memory", activity.operand_bytes, BLOCK_MEMORY, pico),
        _part("activation memory", activity.activation_bytes, BLOCK_MEMORY, pico),
        _part("DRAM", activity.dram_bytes, DRAM, pico),
        _part("logic and clock", luts * activity.cycles, LOGIC, pico),
        _part("leakage", seconds, LEAKAGE, 1.0),
    )
    return Energy("estimated", seconds, parts, _part("processor system", seconds, SYSTEM, 1.0))


def _part(name: str, count: float, constant: Constant, unit: float) -> Part:
    low, typical, high = (count * value * unit for value in (constant.low, constant.typical, constant.high))
    return Part(name, count, constant, Range(low, typical, high))


def _sum(parts: Sequence[Part]) -> Range:
    return sum((part.energy for part in parts), Range(0, 0, 0))
