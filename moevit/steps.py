"""Steps that the array takes for an instruction: T rows, C columns, K products at a time, the last of each padded."""

from typing import TypeVar

from moevit.config import AcceleratorConfig
from moevit.isa import Attention, Linear
from moevit.layout import ceil_div

Count = TypeVar("Count", int, float)


def linear_steps(config: AcceleratorConfig, instruction: Linear, rows: Count) -> Count:
    """Steps of a LINEAR of so many rows; of a queue's, that many may be an average."""
    return -(-rows // config.rows) * instruction.tiles * ceil_div(instruction.length, config.depth)


def attention_steps(config: AcceleratorConfig, instruction: Attention) -> int:
    """Steps of the scores and of the context of all heads."""
    c, i = config, instruction
    scores = ceil_div(i.n_keys, c.columns) * ceil_div(i.head_dim, c.depth)
    context = ceil_div(i.head_dim, c.columns) * ceil_div(i.n_keys, c.depth)
    return i.heads * ceil_div(i.n_rows, c.rows) * (scores + context)
