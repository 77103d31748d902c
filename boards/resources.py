"""What a machine of any configuration would take, scaled from one that was synthesised.

For sweeps and energy estimates, where minutes of synthesis per configuration are too many. Each unit of `zcu104`
(docs/resources.md, open synthesis) grows with one size of the array; memories follow from words and bits. An estimate:
`moevit build --synth` maps the real Verilog.
"""

from dataclasses import asdict, dataclass

from moevit.boards.devices import Device
from moevit.config import AcceleratorConfig
from moevit.layout import ceil_div

# LUTs of zcu104's units by what they grow with, and what there is of that in zcu104.
_FIXED_LUT = 237 + 1525 + 862 + 3103 + 575 + 1866 + 1121 + 440 + 871 + 19 + 609 + 6998 + 426 + 185 + 690 + 493 + 309
_LANE_LUT = (14152 + 3193 + 7619 + 7905 + 5397 + 2269 + 6758 + 4004 + 520 + 949) / 32  # per column
_CELL_LUT = 18317 / (8 * 32)  # per accumulator: the sums of a K-deep cascade, and the shadow register
_BYTE_LUT = 5419 / (32 * 8)  # per byte of an operand word
_PORT_LUT = 796 / 4
_UNPACKED_LUT = 20  # per multiplier that stands alone: its share of an adder tree, 18 bits wide
_FIXED_FF = 32 + 2197 + 740 + 1933 + 909 + 1998 + 1641 + 406 + 1763 + 15 + 716 + 6185 + 231 + 108 + 4726 + 587 + 491
_LANE_FF = (12112 + 3427 + 4325 + 8512 + 6480 + 1664 + 4736 + 2707 + 514 + 521 + 1024 + 2048) / 32
_CELL_FF = 19055 / (8 * 32)
_BYTE_FF = 6418 / (32 * 8)
_PORT_FF = 1288 / 4
_UNPACKED_FF = 20
_FIXED_DSP = 15
_LANE_DSP = (108 + 32 + 64 + 32) / 32
_PORT_BRAM36 = 2
_BLOCK_SHAPES = ((512, 72), (1024, 36), (2048, 18), (4096, 9), (8192, 4), (16384, 2), (32768, 1))
_ULTRA_WORDS, _ULTRA_LANES = 4096, 9


@dataclass(frozen=True)
class Estimate:
    """Resources, in the units of :class:`moevit.boards.devices.Device`."""

    lut: int
    ff: int
    dsp: int
    bram36: float
    uram: int

    def excess(self, device: Device) -> list[str]:
        """What the device has too little of: ``name needed of there``."""
        have = asdict(device)
        return [f"{name} {needed:g} of {have[name]}" for name, needed in asdict(self).items() if needed > have[name]]


def estimate(config: AcceleratorConfig, *, uram: bool = True) -> Estimate:
    """What ``config`` would take on UltraScale+; ``uram`` says whether the device has UltraRAM."""
    c = config
    cells, word, products = c.rows * c.columns, c.operand_word_bytes, c.macs_per_cycle
    alone = 0 if c.packed_macs else products
    lut = _FIXED_LUT + _LANE_LUT * c.columns + _CELL_LUT * cells + _BYTE_LUT * word + _PORT_LUT * c.weight_ports
    ff = _FIXED_FF + _LANE_FF * c.columns + _CELL_FF * cells + _BYTE_FF * word + _PORT_FF * c.weight_ports
    dsp = (products // 2 if c.packed_macs else products) + _LANE_DSP * c.columns + _FIXED_DSP
    blocks, ultra = _memories(c, uram)
    return Estimate(
        round(lut + _UNPACKED_LUT * alone), round(ff + _UNPACKED_FF * alone), round(dsp), blocks, ultra
    )


def _memories(c: AcceleratorConfig, uram: bool) -> tuple[float, int]:
    """Block RAMs and UltraRAMs."""
    ultra = 0
    # A tile, the rings of POST and LayerNorm, probabilities, LayerNorm's rows, queues.
    blocks = _block_rams(2 * c.tile_depth // c.columns, 8 * c.columns * c.rows)
    blocks += _block_rams(c.post_words, 8 * c.post_word_bytes) + _block_rams(c.norm_words, 8 * c.norm_word_bytes)
    blocks += _block_rams(2 * c.rows * c.max_key_tiles, 8 * c.columns + 11)
    blocks += _block_rams(c.tile_depth // c.columns * 2, 16 * c.columns)
    blocks += _block_rams(c.queue_entries, 29) + _block_rams(c.queue_entries, 12)
    blocks += _PORT_BRAM36 * (c.weight_ports + 1)
    if uram:
        ultra += ceil_div(c.operand_word_bytes, _ULTRA_LANES) * ceil_div(c.operand_words, _ULTRA_WORDS)
    else:
        blocks += _block_rams(c.operand_words, 8 * c.operand_word_bytes)
    pairs, lanes = c.activation_words // 2, c.columns
    if uram and pairs >= 4 * _ULTRA_WORDS and lanes > _ULTRA_LANES:
        ultra += 2 * ceil_div(pairs, _ULTRA_WORDS)
        lanes -= _ULTRA_LANES
    blocks += 2 * lanes * _block_rams(pairs, 8)
    return blocks, ultra


def _block_rams(words: int, bits: int) -> float:
    """Block RAMs of 36 kbit for a memory, in the best of their shapes; half of one counts as a half."""
    return min(ceil_div(words, depth) * ceil_div(2 * bits, width) / 2 for depth, width in _BLOCK_SHAPES)
