"""All that one run of the demo found: what is printed, drawn and given as JSON."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moevit.cli.demo.measure import Accuracy, PartCycles, Storage, Usage
from moevit.program import Program, Task

if TYPE_CHECKING:
    from moevit.sim.result import Result


@dataclass(frozen=True)
class Run:
    """One scene of one task on the machine."""

    scene: int
    task: str
    cycles: int
    milliseconds: float


@dataclass(frozen=True)
class TaskReport:
    """One task: ``isa`` ran all scenes, ``rtl`` some of them.

    usage : of all scenes
    parts : of those on rtl
    truth, in_float, int8 : of the scenes on rtl, [n, 64, 64]: classes, or metres
    experts : of those, the first expert of each patch in the last layer that has experts, [n, 8, 8]
    """

    task: Task
    accuracy: Accuracy
    isa: "Result"
    rtl: "Result"
    usage: list[Usage]
    parts: list[PartCycles]
    truth: NDArray[np.generic]
    in_float: NDArray[np.generic]
    int8: NDArray[np.generic]
    experts: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:
        return {
            "accuracy": asdict(self.accuracy) | {"loss": self.accuracy.loss},
            "experts": [asdict(u) for u in self.usage],
            "parts": [
                {"part": p.part.name, "layers": p.part.layers, "cycles": p.cycles, "ideal": p.ideal} for p in self.parts
            ],
            "isa": self.isa.as_dict(),
            "rtl": self.rtl.as_dict(),
        }


@dataclass(frozen=True)
class Report:
    """Both tasks."""

    program: Program
    storage: Storage
    scenes: tuple[int, ...]  #: numbers of those that ran on rtl
    images: NDArray[np.uint8]  #: those, [n, 64, 64]
    runs: list[Run]  #: in the order in which they were made
    tasks: dict[str, TaskReport]
