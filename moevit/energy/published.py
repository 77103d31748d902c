"""Published accelerators for the same kind of model, with where each figure can be read.

Their authors count operations in different ways and draw the line around what they measure in different places, so
only what they state is here: milliseconds or frames a second, watts, and what of the device they take.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a paper's table.

    name, board, model, precision : as published
    workload : ours that it stands beside: the same network
    clock_mhz : of the accelerator; None where it is not stated
    dsp, lut, bram36 : that it takes; None where it is not stated
    latency_ms : a frame's, or the inverse of the frames a second where only those are stated
    watts : as published
    macs : of the network, for the energy model
    weight_bytes : that one frame reads from DRAM at least, for the energy model; 0 where weights stay on chip
    operand_bits : of weight and activation, on average: what a multiplication costs depends on it
    method : how the latency came about, as far as its paper says
    source : where it is printed
    """

    name: str
    board: str
    model: str
    precision: str
    workload: str
    clock_mhz: float | None
    dsp: int | None
    lut: int | None
    bram36: float | None
    latency_ms: float
    watts: float | None
    macs: float
    weight_bytes: float
    operand_bits: float
    method: str
    source: str

    @property
    def millijoules(self) -> float | None:
        """A frame's energy, from the published watts and latency."""
        return None if self.watts is None else self.watts * self.latency_ms

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"millijoules": self.millijoules}


_M3VIT, _M3VIT_S = 0.78e9, 3.1e9
_DEIT_TI, _DEIT_S, _DEIT_B = 1.26e9, 4.6e9, 17.6e9

PUBLISHED: tuple[Published, ...] = (
    Published(
        name="Edge-MoE", board="ZCU102", model="M³ViT-T", precision="W16A32", workload="m3vit-tiny", clock_mhz=300,
        dsp=None, lut=None, bram36=None, latency_ms=34.64, watts=14.54, macs=_M3VIT, weight_bytes=16e6 * 2,
        operand_bits=24, method="measured", source="arXiv 2305.18691, as in the tables of 2502.05602 and 2506.08496",
    ),
    Published(
        name="UbiMoE", board="ZCU102", model="M³ViT-T", precision="W16A32", workload="m3vit-tiny", clock_mhz=300,
        dsp=1850, lut=123_400, bram36=458, latency_ms=25.76, watts=11.50, macs=_M3VIT, weight_bytes=16e6 * 2,
        operand_bits=24, method="measured", source="arXiv 2502.05602, its table",
    ),
    Published(
        name="CoQMoE", board="ZCU102", model="M³ViT-T", precision="W8A8, attention 4 bit", workload="m3vit-tiny",
        clock_mhz=300, dsp=1754, lut=156_100, bram36=383, latency_ms=6.47, watts=9.83, macs=_M3VIT, weight_bytes=16e6,
        operand_bits=8, method="kernel only", source="arXiv 2506.08496, its table",
    ),
    Published(
        name="CoQMoE", board="U280", model="M³ViT-S", precision="INT8", workload="m3vit-small", clock_mhz=250, dsp=2635,
        lut=311_600, bram36=696, latency_ms=9.16, watts=33.7, macs=_M3VIT_S, weight_bytes=60e6, operand_bits=8,
        method="kernel only", source="arXiv 2506.08496, its table",
    ),
    Published(
        name="UbiMoE", board="ZCU102", model="ViT-T", precision="INT16", workload="deit-ti", clock_mhz=300, dsp=None,
        lut=None, bram36=None, latency_ms=8.20, watts=9.94, macs=_DEIT_TI, weight_bytes=5.7e6 * 2, operand_bits=16,
        method="measured", source="arXiv 2502.05602, its table",
    ),
    Published(
        name="Huang et al.", board="ZCU102", model="ViT-T", precision="INT8", workload="deit-ti", clock_mhz=300,
        dsp=1268, lut=144_500, bram36=648, latency_ms=1000 / 245.3, watts=29.6, macs=_DEIT_TI, weight_bytes=5.7e6,
        operand_bits=8, method="1 / frames a second", source="TCAS 2023, as in TATAA's table",
    ),
    Published(
        name="Huang et al.", board="ZCU102", model="ViT-S", precision="INT8", workload="deit-s", clock_mhz=300,
        dsp=1268, lut=144_500, bram36=648, latency_ms=1000 / 89.7, watts=29.6, macs=_DEIT_S, weight_bytes=22e6,
        operand_bits=8, method="1 / frames a second", source="TCAS 2023, as in TATAA's table",
    ),
    Published(
        name="Auto-ViT-Acc", board="ZCU102", model="DeiT-S", precision="mixed", workload="deit-s", clock_mhz=150,
        dsp=1552, lut=185_000, bram36=None, latency_ms=1000 / 99.7, watts=9.6, macs=_DEIT_S, weight_bytes=22e6 * 0.75,
        operand_bits=6, method="1 / frames a second", source="as in TATAA's table",
    ),
    Published(
        name="Auto-ViT-Acc", board="ZCU102", model="DeiT-B", precision="mixed", workload="deit-b", clock_mhz=150,
        dsp=1552, lut=185_000, bram36=None, latency_ms=1000 / 34.0, watts=9.6, macs=_DEIT_B, weight_bytes=86e6 * 0.75,
        operand_bits=6, method="1 / frames a second", source="as in TATAA's table",
    ),
    Published(
        name="HG-PIPE", board="VCK190", model="DeiT-Ti", precision="W3A3", workload="deit-ti", clock_mhz=425, dsp=312,
        lut=669_000, bram36=1006, latency_ms=1000 / 7118, watts=46.7, macs=_DEIT_TI, weight_bytes=0, operand_bits=3,
        method="1 / frames a second, many at a time", source="its repository's README",
    ),
)  # fmt: skip
