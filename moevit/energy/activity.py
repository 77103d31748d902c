"""What happens in an inference, counted from the program and from where its tokens went."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from moevit.config import AcceleratorConfig
from moevit.isa import Attention, DmaIn, DmaOut, Instruction, Linear, NormMode, OutputType, Stream
from moevit.layout import ceil_div, row_words
from moevit.steps import attention_steps, linear_steps

Queues = Mapping[int, Sequence[float]]  #: by a gate's program number: tokens of each expert


@dataclass(frozen=True)
class Activity:
    """Events of one inference.

    macs : of the model, which is what is compared between machines
    issued_macs : multiplications of the array, those on padding included
    post_elements : accumulators that POST scales
    norm_elements : elements that the loader normalises
    tile_bytes : of the A tiles, written and read
    operand_bytes : of the operand memory: weights, K and V written, and what the array reads
    activation_bytes : of the activation memory, read and written
    dram_bytes : moved in all
    cycles : of the whole inference
    """

    macs: float
    issued_macs: float
    post_elements: float
    norm_elements: float
    tile_bytes: float
    operand_bytes: float
    activation_bytes: float
    dram_bytes: float
    cycles: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Counter:
    """Adds up instructions.

    Members
    -------
    steps : of the array
    rows_out : rows of C accumulators
    norm_elements : that the loader scales
    tile, operand, activation : bytes of the A tiles, the operand memory and the activation memory
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.steps = self.rows_out = self.norm_elements = 0.0
        self.tile = self.operand = self.activation = 0.0

    def program(self, instructions: Sequence[Instruction], queues: Queues) -> None:
        """All instructions of a program; what is streamed for experts is not known here."""
        gate = -1
        for number, i in enumerate(instructions):
            if isinstance(i, Linear):
                gate = number if i.route else gate
                self.linear(i, queues[gate][i.queue] if i.gather or i.scatter else i.n_rows)
            elif isinstance(i, Attention):
                self.attention(i)
            elif isinstance(i, DmaIn):
                self.activation += i.moved_bytes
            elif isinstance(i, DmaOut):
                self.activation += i.words * self.config.columns
            elif isinstance(i, Stream) and not i.predicated:
                self.operand += i.weight_words * self.config.operand_word_bytes

    def linear(self, i: Linear, rows: float) -> None:
        """A LINEAR of so many rows; an average for those of a queue."""
        c = self.config
        steps = linear_steps(c, i, rows)
        self.steps += steps
        self.rows_out += rows * i.tiles
        wide = i.norm != NormMode.NONE
        row_bytes = row_words(i.length, c.columns, 16 if wide else 8) * c.columns
        self.norm_elements += rows * i.length if wide else 0
        self.activation += rows * row_bytes * (2 if i.norm == NormMode.LAYERNORM else 1)  # statistics, then values
        self.tile += rows * i.length + steps * c.rows * c.depth
        self.operand += steps * c.operand_word_bytes
        written = min(i.key_tile, i.tiles) * c.columns  # what is not K or V goes to activation memory
        width = 2 if i.out_type == OutputType.INT16 else 1
        if not i.route:
            self.activation += rows * written * width * (2 if i.residual or i.scatter else 1)
            self.operand += rows * (i.tiles * c.columns - written)
        if i.keep:
            self.activation += rows * i.length

    def attention(self, i: Attention) -> None:
        """An ATTENTION."""
        c = self.config
        key_tiles, value_tiles = ceil_div(i.n_keys, c.columns), ceil_div(i.head_dim, c.columns)
        steps = attention_steps(c, i)
        self.steps += steps
        self.rows_out += i.heads * i.n_rows * (key_tiles + value_tiles)
        self.norm_elements += i.heads * i.n_rows * i.n_keys  # probabilities brought to their final maximum
        self.tile += i.heads * i.n_rows * (i.head_dim + i.n_keys) + steps * c.rows * c.depth
        self.operand += steps * c.operand_word_bytes
        self.activation += 2 * i.heads * i.n_rows * value_tiles * c.columns  # Q read, the context written


def activity(
    config: AcceleratorConfig,
    programs: Sequence[tuple[Sequence[Instruction], Queues]],
    *,
    macs: float,
    cycles: float,
    dram_bytes: Mapping[str, float],
) -> Activity:
    """Count the events of an inference.

    Parameters
    ----------
    config : the machine
    programs : what it runs: instructions, with the tokens of each expert by gate, averages where several inferences are
        meant
    macs, cycles, dram_bytes : of the inference, as a simulation's result has them
    """
    count = Counter(config)
    for instructions, queues in programs:
        count.program(instructions, queues)
    count.operand += dram_bytes.get("experts", 0) + dram_bytes.get("speculative", 0)
    return Activity(
        macs=macs,
        issued_macs=count.steps * config.macs_per_cycle,
        post_elements=count.rows_out * config.columns,
        norm_elements=count.norm_elements,
        tile_bytes=count.tile,
        operand_bytes=count.operand,
        activation_bytes=count.activation,
        dram_bytes=sum(dram_bytes[what] for what in ("weights", "instructions", "activations")),
        cycles=cycles,
    )
