"""The constants of the energy model: one table, with the source and the range of each.

Energies of events in 45 nm CMOS are Horowitz's (*Computing's Energy Problem*, ISSCC 2014). They are brought to a
16 nm FPGA by two factors that are constants too: ``SCALING``, what the process gains, and a factor for what
programmable wiring costs. Kuon and Rose (*Measuring the Gap Between FPGAs and ASICs*, TCAD 2007) found a ratio of
about 14 in dynamic power for plain logic, and less where hard blocks do the work.
"""

from dataclasses import dataclass

SCALING = (16 / 45) * (0.85 / 0.9) ** 2
"""Energy of an event in 16 nm at 0.85 V relative to 45 nm at 0.9 V: capacitance goes with length, energy with V²."""


@dataclass(frozen=True)
class Constant:
    """A constant with its range.

    Parameters
    ----------
    name : str
        What the report calls it.
    unit : str
    low, typical, high : float
        The range that the truth is believed to lie in, and the value that is used.
    source : str
        Where it comes from, and what was done to it.
    """

    name: str
    unit: str
    low: float
    typical: float
    high: float
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.typical <= self.high:
            raise ValueError(f"{self.name}: {self.low}, {self.typical}, {self.high} are no range")


def _scaled(name: str, unit: str, at_45nm: float, gap: tuple[float, float, float], source: str) -> Constant:
    low, typical, high = (at_45nm * SCALING * factor for factor in gap)
    return Constant(name, unit, low, typical, high, source)


_HARD = (4.0, 7.0, 14.0)  # wiring around a hard multiplier
_MEMORY = (1.5, 3.0, 6.0)  # wiring around a hard memory

MAC = _scaled(
    "multiply-accumulate, int8", "pJ", 0.3, _HARD,
    "Horowitz: 8-bit multiplication 0.2 pJ, 32-bit addition 0.1 pJ; FPGA gap 4 to 14 (Kuon and Rose), 7 used",
)  # fmt: skip
LANE = _scaled(
    "element through POST or LayerNorm", "pJ", 3.5, _HARD,
    "Horowitz: a 32-bit multiplication 3.1 pJ and four additions 0.4 pJ; FPGA gap as above",
)  # fmt: skip
SMALL_MEMORY = _scaled(
    "byte of a memory of kilobytes (A tile)", "pJ/byte", 10 / 8, _MEMORY,
    "Horowitz: 64 bits of an 8 KB memory 10 pJ; FPGA gap 1.5 to 6 for a hard memory (assumed), 3 used",
)  # fmt: skip
BLOCK_MEMORY = _scaled(
    "byte of block RAM or UltraRAM", "pJ/byte", 20 / 8, _MEMORY,
    "Horowitz: 64 bits of a 32 KB memory 20 pJ; FPGA gap as above; an UltraRAM block has 36 KB, a block RAM 4.5 KB",
)  # fmt: skip
DRAM = Constant(
    "byte of DRAM, with interface", "pJ/byte", 100.0, 165.0, 325.0,
    "Horowitz: 1.3 to 2.6 nJ for 64 bits, the upper end kept; the low end is 12.5 pJ/bit, assumed for DDR4",
)  # fmt: skip
LOGIC = Constant(
    "LUT with its registers, a clock cycle", "pJ", 0.04, 0.10, 0.25,
    "From AMD's figure for a Kria K26 with one DPU B3136 at 300 MHz (7.9 W in all, 58 k LUT; Kria app documentation "
    "2022.1): less the system and leakage below, and its multiplications, 0.1 to 0.25 pJ; the low end is what "
    "Gubochkin et al. (2026) measured between an idle and a busy DPU",
)  # fmt: skip
LEAKAGE = Constant(
    "leakage of the programmable logic", "W", 0.4, 0.7, 1.5,
    "Assumed, for a mid-size 16 nm device between a cool and a hot chip; Vivado's report replaces it",
)  # fmt: skip
SYSTEM = Constant(
    "processor system and idle DRAM", "W", 1.8, 2.8, 3.8,
    "Gubochkin et al. (2026) measured 4.3 to 4.8 W of a whole K26 module while its DPU ran; the programmable logic "
    "is taken off",
)  # fmt: skip

CONSTANTS = (MAC, LANE, SMALL_MEMORY, BLOCK_MEMORY, DRAM, LOGIC, LEAKAGE, SYSTEM)
