"""What LINEARs cost, near enough to choose between two ways of computing the same."""

from moevit import layout
from moevit.config import AcceleratorConfig

#: Bytes of weights that DRAM is taken to bring in a cycle; a wrong guess costs time and nothing else.
DRAM_BYTES = 42.7


def compute_cycles(rows: int, tiles: int, length: int, config: AcceleratorConfig) -> int:
    """Of the array, for ``rows`` rows of ``length`` elements and so many column tiles."""
    step = max(layout.ceil_div(length, config.depth), config.rows, config.key_groups)
    return layout.ceil_div(rows, config.rows) * tiles * step


def stream_cycles(tiles: int, length: int, config: AcceleratorConfig) -> float:
    """Of DRAM and weight ports, for the weights of so many column tiles."""
    words = tiles * layout.ceil_div(length, config.depth)
    size = words * config.operand_word_bytes + tiles * config.post_word_bytes
    return size / min(DRAM_BYTES, config.weight_ports * config.axi_bytes)


def turn_cycles(length: int, config: AcceleratorConfig) -> int:
    """Until the array goes on with an instruction that waits for the one before: its last row is written, and a row
    tile of ``length`` bytes a row is loaded."""
    return config.rows * (layout.ceil_div(length, config.columns) + 4) + 64
