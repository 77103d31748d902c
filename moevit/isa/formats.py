"""The instruction formats. Addresses of the activation memory are in words of C bytes; see ``docs/isa.md``."""

import enum
from dataclasses import dataclass

from moevit.isa.fields import Instruction, field
from moevit.numerics.activation import Activation
from moevit.numerics.fixed import MULT_WIDTH, SHIFT_WIDTH, ZERO_POINT_WIDTH
from moevit.numerics.layernorm import EPSILON_WIDTH
from moevit.numerics.route import MAX_EXPERTS, MAX_TOP_K, SCORE_WIDTH, RouteOrder

ISA_VERSION = 2
MAGIC = 0x56454F4D  # "MOEV", little-endian

ADDRESS = 18  # activation memory words
BYTE_ADDRESS = 24  # activation memory bytes
OPERAND = 16  # operand memory words
STRIDE = 10  # words per row
COUNT = 13  # rows, elements, keys
TILES = 10  # column tiles
BLOCK = 32  # weight image offset, in blocks of BLOCK_BYTES
QUEUE = 6  # number of an expert's queue
EXPERTS = 7  # experts of a gate
TOP_K = 3  # experts per token

assert 1 << QUEUE == MAX_EXPERTS and MAX_EXPERTS < 1 << EXPERTS and MAX_TOP_K < 1 << TOP_K

BLOCK_BYTES = 64  #: alignment of everything in a weight image


class NormMode(enum.IntEnum):
    """What the loader does to a row of LINEAR's input."""

    NONE = 0  #: 8-bit row, copied
    LAYERNORM = 1  #: int16 row, normalised, then gamma and beta
    AFFINE = 2  #: int16 row, only gamma and beta


class OutputType(enum.IntEnum):
    """What POST writes."""

    INT8 = 0
    UINT8 = 1
    INT16 = 2


class DmaSource(enum.IntEnum):
    """Which DRAM buffer DMA_IN reads."""

    INPUT = 0
    IMAGE = 1


@dataclass(frozen=True, kw_only=True)
class Retiring(Instruction):
    """Base of the instructions that load and write: they retire in program order, which ``wait`` counts."""

    retires = True
    wait: int = field(16, "instructions", "retired count that must be reached before the first load", default=0)


@dataclass(frozen=True, kw_only=True)
class Begin(Instruction):
    """First instruction of every program: says what the program was built for. Anything else stops with an error."""

    opcode = 1
    retires = False
    magic: int = field(32, "", "0x56454F4D, the letters MOEV", default=MAGIC)
    version: int = field(8, "", "instruction set version", default=ISA_VERSION)
    digest: int = field(64, "", "digest of the configuration the program was compiled for")
    ring_words: int = field(17, "operand words", "weight ring; the K/V region is the rest", minimum=1)
    count: int = field(24, "instructions", "length of the program, BEGIN and END included", minimum=2)


@dataclass(frozen=True, kw_only=True)
class End(Instruction):
    """Waits until everything has retired, then raises done."""

    opcode = 2
    retires = False


@dataclass(frozen=True, kw_only=True)
class Stream(Instruction):
    """Queues one block of weights: LayerNorm parameters, POST parameters and weights go to their rings, in this
    order, as soon as there is room. Each part is striped over the weight ports: port p reads the p-th of
    ``weight_ports`` equal slices, which follow each other from the part's offset.

    A predicated STREAM brings nothing when its queue is empty, which is known when the retired count reaches
    ``wait``. Until then it waits, or, speculative, brings its words anyway; the LINEAR of an empty queue then
    throws them away. Every predicated STREAM belongs to one LINEAR with that queue, in the same order."""

    opcode = 3
    retires = False
    norm_offset: int = field(BLOCK, "64 bytes", "LayerNorm parameters in the weight image", default=0)
    norm_words: int = field(12, "norm words", "gamma and beta: one word per C elements of a row", default=0)
    post_offset: int = field(BLOCK, "64 bytes", "POST parameters in the weight image", default=0)
    post_words: int = field(12, "post words", "bias, multiplier and shift: one word per column tile", default=0)
    weight_offset: int = field(BLOCK, "64 bytes", "weights in the weight image", default=0)
    weight_words: int = field(17, "operand words", "column tiles times steps", default=0)
    predicated: int = field(1, "", "only if the queue is not empty", default=0)
    queue: int = field(QUEUE, "", "that queue", default=0)
    speculative: int = field(1, "", "does not wait to know", default=0)
    wait: int = field(16, "instructions", "retired count at which the queue is complete", default=0)


@dataclass(frozen=True, kw_only=True)
class DmaIn(Retiring):
    """Copies bytes from DRAM to activation memory: two outer loops over runs that are contiguous in DRAM; a run
    is ``segments`` pieces of ``segment_bytes``, each contiguous in both memories."""

    opcode = 4
    source: int = field(1, "", "buffer to read", values=DmaSource, default=0)
    offset: int = field(32, "bytes", "start in that buffer")
    count0: int = field(12, "", "outer loop", minimum=1, default=1)
    count1: int = field(12, "", "inner loop", minimum=1, default=1)
    src_stride0: int = field(28, "bytes", "between outer runs in DRAM", default=0)
    src_stride1: int = field(28, "bytes", "between inner runs in DRAM", default=0)
    dst_stride0: int = field(BYTE_ADDRESS, "bytes", "between outer runs in activation memory", default=0)
    dst_stride1: int = field(BYTE_ADDRESS, "bytes", "between inner runs in activation memory", default=0)
    segments: int = field(12, "", "segments per run", minimum=1, default=1)
    segment_bytes: int = field(20, "bytes", "length of a segment", minimum=1)
    dst_segment: int = field(BYTE_ADDRESS, "bytes", "between segments in activation memory", default=0)
    dst: int = field(BYTE_ADDRESS, "bytes", "start in activation memory")

    @property
    def moved_bytes(self) -> int:
        """Bytes that it copies."""
        return self.count0 * self.count1 * self.segments * self.segment_bytes


@dataclass(frozen=True, kw_only=True)
class DmaOut(Retiring):
    """Copies whole words of activation memory to the output buffer."""

    opcode = 5
    src: int = field(ADDRESS, "words", "first word of activation memory")
    words: int = field(16, "words", "how many", minimum=1)
    offset: int = field(32, "bytes", "start in the output buffer, a multiple of the bus word")


@dataclass(frozen=True, kw_only=True)
class Linear(Retiring):
    """``POST(LOAD(x) @ W.T)`` for ``n_rows`` rows: every dense layer. For each tile of T rows, for each column
    tile, ``ceil(length / K)`` steps. Weights come from the ring in exactly that order; the first row tile waits
    for them word by word. Column tiles from ``key_tile`` go to the K region, from ``value_tile`` to the V region.

    With ``route`` it is a gate: its outputs are logits, which are not written; each row's token goes to the
    queues of its experts, with its score. With ``gather`` or ``scatter`` its rows are those of a queue: as
    many as that holds (``n_rows`` says how many it may hold at most), in the order of the tokens."""

    opcode = 6
    release: int = field(1, "", "free weights and parameters with the last row tile; else the next LINEAR reads "
                         "the same ones", default=1)
    n_rows: int = field(COUNT, "rows", "tokens", minimum=1)
    src: int = field(ADDRESS, "words", "first input row (even when 16-bit)")
    src_stride: int = field(STRIDE, "words", "between input rows (even when 16-bit)")
    length: int = field(COUNT, "elements", "input row: D_in", minimum=1)
    norm: int = field(2, "", "what the loader does", values=NormMode, default=0)
    signed: int = field(1, "", "the array's A operand is int8, else uint8", default=1)
    inverse_mult: int = field(MULT_WIDTH, "", "1/length, mantissa", default=0)
    inverse_shift: int = field(SHIFT_WIDTH, "bits", "1/length, shift", default=0)
    epsilon: int = field(EPSILON_WIDTH, "", "length**2 * epsilon in squared input steps", default=0)
    norm_shift: int = field(5, "bits", "right shift after gamma", default=7)
    tiles: int = field(TILES, "column tiles", "output channels / C, rounded up", minimum=1)
    activation: int = field(2, "", "between the two scaling stages", values=Activation, default=0)
    mult: int = field(MULT_WIDTH, "", "second stage, after an activation only", default=0)
    shift: int = field(SHIFT_WIDTH, "bits", "second stage", default=0)
    zero_point: int = field(ZERO_POINT_WIDTH, "", "added after the second stage", default=0)
    residual: int = field(1, "", "add the int16 row at res", default=0)
    res: int = field(ADDRESS, "words", "first residual row, with dst_stride", default=0)
    out_type: int = field(2, "", "what is written", values=OutputType, default=0)
    dst: int = field(ADDRESS, "words", "first output row (even when 16-bit)")
    dst_stride: int = field(STRIDE, "words", "between output rows (even when 16-bit)")
    key_tile: int = field(TILES, "column tiles", "first column tile of K; equal to tiles when there is none")
    value_tile: int = field(TILES, "column tiles", "first column tile of V; equal to tiles when there is none")
    key_base: int = field(OPERAND, "operand words", "K region", default=0)
    key_stride: int = field(COUNT, "operand words", "between tiles of C keys", default=0)
    value_base: int = field(OPERAND, "operand words", "V region", default=0)
    value_stride: int = field(COUNT, "operand words", "between tiles of C channels", default=0)
    token: int = field(COUNT, "rows", "token number of the first row: of K and V (a multiple of T), and in queues",
                       default=0)
    keep: int = field(1, "", "rows after ``norm`` are also written, 8-bit, at keep_dst", default=0)
    keep_dst: int = field(ADDRESS, "words", "first of those rows", default=0)
    keep_stride: int = field(STRIDE, "words", "between those rows", default=0)
    route: int = field(2, "", "it is a gate; what its scores are", values=RouteOrder, default=0)
    experts: int = field(EXPERTS, "", "of a gate: its columns that count, at most MAX_EXPERTS", default=0)
    top_k: int = field(TOP_K, "", "of a gate: experts per token, at most MAX_TOP_K", default=0)
    threshold: int = field(SCORE_WIDTH, "2**-16", "of a gate: lower scores are dropped, as are scores of 0", default=0)
    clear: int = field(1, "", "of a gate: empties all queues first", default=0)
    gather: int = field(1, "", "row i is read at src + src_stride * the queue's i-th token", default=0)
    scatter: int = field(1, "", "row i is multiplied by the queue's i-th score (2**-16) in the second stage and added "
                         "to and written at its i-th token's row; no activation, int16, res = dst", default=0)
    queue: int = field(QUEUE, "", "of gather and scatter", default=0)


@dataclass(frozen=True, kw_only=True)
class Attention(Retiring):
    """Softmax(Q.K^T).V of all heads. Query row tiles of all heads run as one sequence: scores of tile u+1 are
    computed while the probabilities of tile u are brought to their final maximum, then its P.V. A head's
    channels start at a multiple of C in Q, K, V and the output."""

    opcode = 7
    n_rows: int = field(COUNT, "rows", "queries", minimum=1)
    src: int = field(ADDRESS, "words", "first row of Q, int8")
    src_stride: int = field(STRIDE, "words", "between rows of Q")
    n_keys: int = field(COUNT, "rows", "keys", minimum=1)
    heads: int = field(7, "", "heads", minimum=1)
    head_dim: int = field(10, "elements", "channels of a head", minimum=1)
    key_base: int = field(OPERAND, "operand words", "K region")
    key_stride: int = field(COUNT, "operand words", "between tiles of C keys")
    value_base: int = field(OPERAND, "operand words", "V region")
    value_stride: int = field(COUNT, "operand words", "between tiles of C channels")
    score_mult: int = field(MULT_WIDTH, "", "scores to base-2 fixed point, mantissa")
    score_shift: int = field(SHIFT_WIDTH, "bits", "scores to base-2 fixed point, shift")
    out_mult: int = field(MULT_WIDTH, "", "P.V to int8, before the division by the row sum")
    out_shift: int = field(SHIFT_WIDTH, "bits", "P.V to int8")
    dst: int = field(ADDRESS, "words", "first output row, int8")
    dst_stride: int = field(STRIDE, "words", "between output rows")


FORMATS: tuple[type[Instruction], ...] = (Begin, End, Stream, DmaIn, DmaOut, Linear, Attention)
