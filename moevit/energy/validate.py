"""The energy model held against published boards: their activity modelled, their watts compared."""

from dataclasses import dataclass
from typing import Any

from moevit.energy.constants import DRAM, LEAKAGE, LOGIC, MAC, SYSTEM, Constant
from moevit.energy.estimate import Range
from moevit.energy.published import PUBLISHED, Published

INT8_BITS = 8


@dataclass(frozen=True)
class Check:
    """A published design beside what the model says of it.

    watts : the model's
    ratio : the model's typical value over the published one
    """

    design: Published
    watts: Range

    @property
    def ratio(self) -> float:
        assert self.design.watts is not None
        return self.watts.typical / self.design.watts

    @property
    def inside(self) -> bool:
        """Whether the published value lies in the model's range."""
        assert self.design.watts is not None
        return self.watts.low <= self.design.watts <= self.watts.high

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.design.name, "board": self.design.board, "model": self.design.model,
            "published_watts": self.design.watts, "estimated_watts": self.watts.as_dict(), "ratio": self.ratio,
            "inside": self.inside, "source": self.design.source,
        }  # fmt: skip


def power(design: Published) -> Range | None:
    """Watts of a published design by our constants; None where its clock or its LUTs are not stated.

    What it multiplies, what it reads from DRAM, and its logic at its clock; its memories' traffic is not known and
    left out. A multiplication's energy grows with the square of the operands' bits.
    """
    if design.clock_mhz is None or design.lut is None:
        return None
    clock, luts = design.clock_mhz, design.lut
    seconds = design.latency_ms / 1000
    rate = {
        MAC: design.macs / seconds * (design.operand_bits / INT8_BITS) ** 2 * 1e-12,
        DRAM: design.weight_bytes / seconds * 1e-12,
        LOGIC: luts * clock * 1e6 * 1e-12,
        LEAKAGE: 1.0,
        SYSTEM: 1.0,
    }

    def total(of: str) -> float:
        return sum(getattr(constant, of) * factor for constant, factor in rate.items())

    return Range(total("low"), total("typical"), total("high"))


def validate() -> list[Check]:
    """All published designs that say enough."""
    modelled = ((design, power(design)) for design in PUBLISHED if design.watts is not None)
    return [Check(design, watts) for design, watts in modelled if watts is not None]


__all__ = ["Check", "Constant", "power", "validate"]
