"""What the comparison of a technique with the plain ways says."""

import enum
from dataclasses import dataclass, field
from typing import Any


class How(enum.StrEnum):
    """Where a figure comes from."""

    RTL = "rtl"  #: counted while the Verilog ran
    ISA = "isa"  #: from values that the instruction-level simulator computed, which are the machine's
    REFERENCE = "reference"  #: from values that NumPy computed on the model's own integer tensors
    FLOAT = "float"  #: from values that onnxruntime computed with the float model
    COMPUTED = "computed"  #: worked out; what is assumed is stated


@dataclass(frozen=True)
class Figure:
    """A number with its unit and origin."""

    value: float
    unit: str
    how: How

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "unit": self.unit, "how": str(self.how)}


@dataclass(frozen=True)
class Way:
    """One way of doing it; ``ours`` is the machine's."""

    key: str
    label: str
    figures: dict[str, Figure]
    ours: bool = False

    def as_dict(self) -> dict[str, Any]:
        figures = {name: figure.as_dict() for name, figure in self.figures.items()}
        return {"key": self.key, "label": self.label, "ours": self.ours, "figures": figures}


@dataclass(frozen=True)
class Technique:
    """The ways of one technique.

    subject : what they were tried on
    details : figures that belong to no way
    notes : what is assumed, and whom it favours
    checks : what had to be equal, and whether it was
    reason : why it is not applicable to this model, else empty
    """

    key: str
    title: str
    subject: str = ""
    ways: tuple[Way, ...] = ()
    details: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checks: dict[str, bool] = field(default_factory=dict)
    reason: str = ""

    @property
    def applicable(self) -> bool:
        return not self.reason

    def way(self, key: str) -> Way:
        return next(way for way in self.ways if way.key == key)

    def as_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "applicable": self.applicable,
            "reason": self.reason,
            "subject": self.subject,
            "ways": [way.as_dict() for way in self.ways],
            "details": {name: figure.as_dict() for name, figure in self.details.items()},
            "notes": list(self.notes),
            "checks": self.checks,
        }


class NotApplicableError(Exception):
    """The model has nothing that this technique is for, or it does not fit; the message says what."""
