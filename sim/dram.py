"""The DRAM that the rtl back-end puts behind the machine's AXI ports."""

from dataclasses import asdict, dataclass

from moevit.config import AcceleratorConfig
from moevit.errors import InputError

BYTES_PER_CYCLE = 42.7  #: 12.8 GB/s at 300 MHz: three quarters of DDR4-2133 of 64 bits
LATENCY_CYCLES = 60


@dataclass(frozen=True, kw_only=True)
class DramModel:
    """One memory shared by all ports.

    Parameters
    ----------
    bytes_per_cycle : average over all ports together, reads and writes
    latency_cycles : from an accepted read address to its first beat, and from the last beat of a write to its response
    outstanding_bursts : bursts that a port accepts before it has answered the first
    seed : of random stalls on every channel and random extra latency; None for none

    Raises
    ------
    InputError : a value is out of range
    """

    bytes_per_cycle: float
    latency_cycles: int = LATENCY_CYCLES
    outstanding_bursts: int = 16
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("bytes_per_cycle", 0.01, 1 << 12),
            ("latency_cycles", 1, 1 << 16),
            ("outstanding_bursts", 1, 1 << 10),
            ("seed", 1, (1 << 32) - 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} must be {low} … {high}, not {value}", where="DRAM model")

    @classmethod
    def default(cls, config: AcceleratorConfig, bytes_per_cycle: float = BYTES_PER_CYCLE) -> "DramModel":
        """12.8 GB/s at 300 MHz, or one bus word per port and cycle where the ports carry less."""
        ports = (config.weight_ports + 1) * config.axi_bytes
        return cls(bytes_per_cycle=min(bytes_per_cycle, ports))

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)

    def __str__(self) -> str:
        stalls = "" if self.seed is None else f", random stalls of seed {self.seed}"
        return f"{self.bytes_per_cycle:g} bytes/cycle, latency {self.latency_cycles} cycles{stalls}"
