"""The accelerator's configuration: one frozen object that every other part is derived from."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from moevit.errors import ConfigError

STREAM_QUEUE_DEPTH = 32  #: STREAM instructions that wait in the streamer's queue
BROUGHT_QUEUE_DEPTH = 32  #: predicated STREAMs that are settled and whose LINEAR the loader has not come to
COMPUTE_QUEUE_DEPTH = 4  #: LINEAR and ATTENTION instructions that wait for the loader
DMA_QUEUE_DEPTH = 4  #: DMA instructions that wait for the DMA unit


def _is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Every size that the generator, the compiler and the simulators share.

    Parameters
    ----------
    name : what reports call it; not part of the digest
    rows : T, tokens that the array computes at once (power of two)
    columns : C, output channels or keys at once, also POST's lanes (power of two, multiple of ``rows``)
    depth : K, products added per output and cycle (power of two, divides ``columns``)
    operand_words : operand memory (weight ring and K/V region), words of ``columns * depth`` bytes
    activation_words : activation memory, words of ``columns`` bytes (even)
    tile_depth : longest row the A tile holds, bytes
    post_words : ring of POST parameters, words of 8 bytes per column
    norm_words : ring of LayerNorm parameters, words of 4 bytes per column
    queue_entries : tokens that all experts' queues hold together: tokens times experts per token (power of two)
    weight_ports : AXI read ports that weights are striped over (there is one more port for everything else)
    axi_data_width : bits of an AXI data bus
    axi_address_width : bits of an AXI address
    packed_macs : two int8 products per multiplier (a device with 27-bit multipliers)
    clock_mhz : the clock that latencies are reported at
    device : the part it is meant for, or "none"

    Raises
    ------
    ConfigError : a value is out of range or two do not fit together; the message names both
    """

    name: str
    rows: int
    columns: int
    depth: int
    operand_words: int
    activation_words: int
    tile_depth: int
    post_words: int
    norm_words: int
    queue_entries: int
    weight_ports: int = 1
    axi_data_width: int = 128
    axi_address_width: int = 40
    packed_macs: bool = False
    clock_mhz: float = 100.0
    device: str = "none"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value <= 0):
                self._fail(field.name, "must be a positive integer")
        for name in ("rows", "columns", "depth", "queue_entries", "weight_ports", "axi_data_width"):
            if not _is_power_of_two(getattr(self, name)):
                self._fail(name, "must be a power of two")
        if not 2 <= self.rows <= 64:
            self._fail("rows", "must be 2 … 64")
        if self.columns % self.rows:
            self._fail("columns", f"must be a multiple of rows ({self.rows})")
        if self.depth < 2 or self.columns % self.depth:
            self._fail("depth", f"must be at least 2 and divide columns ({self.columns})")
        if not 32 <= self.axi_data_width <= 512:
            self._fail("axi_data_width", "must be 32 … 512 bits")
        if self.columns * 4 % (self.weight_ports * self.axi_bytes):
            self._fail("weight_ports", "4 * columns bytes must be a multiple of weight_ports bus words")
        if self.operand_word_bytes % (self.weight_ports * self.axi_bytes):
            self._fail("weight_ports", "columns * depth bytes must be a multiple of weight_ports bus words")
        if self.activation_words % 2:
            self._fail("activation_words", "must be even")
        for name, limit in (("operand_words", 1 << 16), ("activation_words", 1 << 18), ("tile_depth", 8192),
                            ("post_words", 1 << 12), ("norm_words", 1 << 12), ("queue_entries", 1 << 15)):
            if getattr(self, name) > limit:
                self._fail(name, f"must be at most {limit}")
        if self.tile_depth % self.columns:
            self._fail("tile_depth", f"must be a multiple of columns ({self.columns})")
        if not 32 <= self.axi_address_width <= 64:
            self._fail("axi_address_width", "must be 32 … 64")
        if not self.clock_mhz > 0:
            self._fail("clock_mhz", "must be positive")

    def _fail(self, name: str, why: str) -> None:
        raise ConfigError(f"configuration {self.name!r}: {name} = {getattr(self, name)!r} {why}")

    @property
    def macs_per_cycle(self) -> int:
        return self.rows * self.columns * self.depth

    @property
    def axi_bytes(self) -> int:
        """Bytes of one AXI beat."""
        return self.axi_data_width // 8

    @property
    def operand_word_bytes(self) -> int:
        return self.columns * self.depth

    @property
    def post_word_bytes(self) -> int:
        return self.columns * 8

    @property
    def norm_word_bytes(self) -> int:
        return self.columns * 4

    @property
    def key_groups(self) -> int:
        """Operand words that one output word of K spreads over (C/K)."""
        return self.columns // self.depth

    @property
    def max_key_tiles(self) -> int:
        """Key tiles of C keys that the probability buffer holds: a whole A tile of probabilities."""
        return self.tile_depth // self.columns

    @property
    def digest(self) -> int:
        """64 bits that identify the hardware: of every field but ``name``, ``clock_mhz`` and ``device``."""
        fields = {k: v for k, v in self.to_dict().items() if k not in ("name", "clock_mhz", "device")}
        return int.from_bytes(hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()[:8], "little")

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> "AcceleratorConfig":
        """Inverse of :meth:`to_dict`; unknown, missing or ill-typed fields raise ConfigError."""
        if not isinstance(values, dict):
            raise ConfigError("a configuration must be a JSON object")
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        missing = sorted(n for n, f in known.items() if f.default is dataclasses.MISSING and n not in values)
        if unknown or missing:
            raise ConfigError(f"configuration: unknown fields {unknown}, missing fields {missing}")
        for name, value in values.items():
            wanted = known[name].type
            ok = (int, float) if wanted is float else wanted
            if not isinstance(value, ok) or (isinstance(value, bool) and wanted is not bool):  # type: ignore[arg-type]
                raise ConfigError(f"configuration: {name} must be {wanted.__name__}, not {value!r}")  # type: ignore[union-attr]
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> "AcceleratorConfig":
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read configuration {path}: {error}") from error


#: Named configurations. ``tiny`` is what tests and the demo use; ``zcu104``, ``zcu102``, ``kv260`` and ``ulx3s`` are
#: sized for the devices of these boards (docs/resources.md, docs/boards/ulx3s.md).
CONFIGS: dict[str, AcceleratorConfig] = {
    config.name: config
    for config in (
        AcceleratorConfig(
            name="tiny", rows=4, columns=8, depth=4, operand_words=4096, activation_words=16384,
            tile_depth=1024, post_words=512, norm_words=256, queue_entries=512, clock_mhz=100.0,
        ),
        AcceleratorConfig(
            name="zcu104", rows=8, columns=32, depth=8, operand_words=12288, activation_words=32768,
            tile_depth=4096, post_words=512, norm_words=256, queue_entries=4096, weight_ports=4, packed_macs=True,
            clock_mhz=300.0,
            device="XCZU7EV-2",
        ),
        AcceleratorConfig(
            name="zcu102", rows=8, columns=32, depth=8, operand_words=6144, activation_words=32768,
            tile_depth=4096, post_words=512, norm_words=256, queue_entries=4096, weight_ports=4, packed_macs=True,
            clock_mhz=300.0,
            device="XCZU9EG-2",
        ),
        AcceleratorConfig(
            name="kv260", rows=8, columns=16, depth=8, operand_words=12288, activation_words=32768,
            tile_depth=4096, post_words=512, norm_words=256, queue_entries=4096, weight_ports=4, packed_macs=True,
            clock_mhz=300.0,
            device="XCK26",
        ),
        AcceleratorConfig(
            name="square", rows=8, columns=8, depth=8, operand_words=2048, activation_words=16384,
            tile_depth=1024, post_words=512, norm_words=256, queue_entries=512, clock_mhz=100.0,
        ),
        AcceleratorConfig(
            name="wide", rows=2, columns=16, depth=4, operand_words=2048, activation_words=8192,
            tile_depth=1024, post_words=512, norm_words=256, queue_entries=256, weight_ports=2, clock_mhz=100.0,
        ),
        AcceleratorConfig(
            name="ulx3s", rows=4, columns=4, depth=4, operand_words=2048, activation_words=8192,
            tile_depth=512, post_words=256, norm_words=128, queue_entries=128, axi_data_width=64,
            axi_address_width=32, clock_mhz=50.0, device="LFE5U-85F-6BG381C",
        ),
    )
}


def get_config(name_or_file: str) -> AcceleratorConfig:
    """A named configuration, or the one in a JSON file. Raises ConfigError naming what exists."""
    if name_or_file in CONFIGS:
        return CONFIGS[name_or_file]
    path = Path(name_or_file)
    if path.suffix == ".json" or path.exists():
        return AcceleratorConfig.from_file(path)
    raise ConfigError(
        f"no configuration named {name_or_file!r}", mend=f"choose one of {', '.join(CONFIGS)}, or give a .json file"
    )
