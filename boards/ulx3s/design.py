"""What there is to choose about the ULX3S' design, beside the machine's configuration."""

from dataclasses import dataclass

from moevit import frames
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.errors import ConfigError

MEMORY_BYTES = 256 << 10
BAUD = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Design:
    """The design on the board.

    Parameters
    ----------
    config : the machine; its ``clock_mhz`` is that of the whole design
    memory_bytes : on-chip memory that stands in for DRAM
    baud : of the serial line

    Raises
    ------
    ConfigError : the configuration does not suit the board
    """

    config: AcceleratorConfig = CONFIGS["ulx3s"]
    memory_bytes: int = MEMORY_BYTES
    baud: int = BAUD

    def __post_init__(self) -> None:
        config = self.config
        if config.packed_macs:
            raise ConfigError(
                "a multiplier of the ECP5 holds one product", where=config.name, mend="set packed_macs to false"
            )
        if config.weight_ports != 1:
            raise ConfigError(
                "the board's memory has one port for weights", where=config.name, mend="set weight_ports to 1"
            )
        if abs(self.divisor * self.baud / (config.clock_mhz * 1e6) - 1) > 0.01 or self.divisor < 4:
            raise ConfigError(
                f"{config.clock_mhz:g} MHz is no multiple of {self.baud} baud", where=config.name,
                mend="choose a clock_mhz that is a multiple of 2, and 8 at least",
            )

    @property
    def clock_mhz(self) -> float:
        return self.config.clock_mhz

    @property
    def divisor(self) -> int:
        """Cycles of a bit on the serial line."""
        return round(self.config.clock_mhz * 1e6 / self.baud)

    @property
    def info(self) -> dict[frames.Info, int]:
        """What the host link says about the design."""
        return {
            frames.Info.PROTOCOL: frames.PROTOCOL,
            frames.Info.MEMORY_BYTES: self.memory_bytes,
            frames.Info.CLOCK_HZ: round(self.clock_mhz * 1e6),
        }
