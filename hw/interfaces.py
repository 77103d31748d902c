"""The seams between the units: signatures, payloads and memory latencies, each defined once."""

from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.isa import INSTRUCTION_WIDTH, Instruction
from moevit.isa.formats import ADDRESS, COUNT, QUEUE
from moevit.numerics import fixed, route, softmax
from moevit.registers import COUNTERS
from moevit.trace import Mark

ACTIVATION_READ_LATENCY = 2  #: cycles from an accepted request to its data
OPERAND_READ_LATENCY = 3
TILE_READ_LATENCY = 2
PARAMETER_READ_LATENCY = 2
QUEUE_COUNT_LATENCY = 2

PAIR_WIDTH = ADDRESS - 1  #: bits of an activation memory address in pairs of words
ACC_WIDTH = 32
ROW_TILE_WIDTH = 13
COLUMN_WIDTH = 10
HEAD_WIDTH = 7
SLOT_WIDTH = 3  #: A tiles whose queue entries POST keeps: more than can be between the loader and POST's first stage
REQUEST_BEATS_WIDTH = 24  #: the longest part of a STREAM: 2**17 words of up to 128 beats
RING_COUNT_WIDTH = 18  #: free-running word counters of the rings, compared modulo 2**18


def instruction_layout(kind: type[Instruction]) -> data.FlexibleLayout:
    """The fields of an instruction as a view of its 512-bit word."""
    return data.FlexibleLayout(
        INSTRUCTION_WIDTH, {f.name: data.Field(f.width, f.offset) for f in kind.fields()}
    )


InstructionStream = stream.Signature(INSTRUCTION_WIDTH)


class Phase(enum.Enum, shape=2):
    """What a tile of accumulators holds."""

    LINEAR = 0
    SCORES = 1
    CONTEXT = 2
    SKIP = 3  #: nothing: one row stands for an instruction of an empty queue


class TileMeta(data.Struct):
    """What POST must know of an output tile; constant over its rows."""

    phase: Phase
    row_tile: ROW_TILE_WIDTH  #: index of the tile of T rows (of this head, in attention)
    column: COLUMN_WIDTH  #: column tile: output channels, keys or channels of the head
    head: HEAD_WIDTH
    unit: 1  #: parity of the attention unit u = head * row tiles + row_tile
    slot: SLOT_WIDTH  #: number of the A tile since reset, modulo 2**SLOT_WIDTH
    last_column: 1  #: last column tile of this row tile and phase
    last: 1  #: last tile of the instruction
    bank: 1  #: which of POST's two instruction registers; toggles with each instruction


class RowSignature(wiring.Signature):
    """One row of accumulators a cycle, from the array to POST; cannot be stalled."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1),
            "meta": Out(TileMeta),
            "row": Out(range(config.rows)),  # row in the tile
            "last_row": Out(1),  # last valid row of the tile
            "acc": Out(data.ArrayLayout(32, config.columns)),  # int32 bit patterns
        })


class ActivationReadSignature(wiring.Signature):
    """Reads two neighbouring words (a pair). Accepted when valid & ready; ``data`` comes with ``data_valid``
    ACTIVATION_READ_LATENCY cycles later, even word in the low half."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1), "ready": In(1), "pair": Out(PAIR_WIDTH),
            "data": In(2 * config.columns * 8), "data_valid": In(1),
        })


class ActivationWriteSignature(wiring.Signature):
    """Writes the bytes of a pair that ``mask`` selects, when valid & ready."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1), "ready": In(1), "pair": Out(PAIR_WIDTH),
            "data": Out(2 * config.columns * 8), "mask": Out(2 * config.columns),
        })


class OperandWriteSignature(wiring.Signature):
    """Writes the bytes of an operand word that ``mask`` selects, when valid & ready."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1), "ready": In(1), "addr": Out(range(config.operand_words)),
            "data": Out(config.operand_word_bytes * 8), "mask": Out(config.operand_word_bytes),
        })


class MemoryWriteSignature(wiring.Signature):
    """Whole-word write without back-pressure."""

    def __init__(self, depth: int, width: int):
        super().__init__({"en": Out(1), "addr": Out(range(depth)), "data": Out(width)})


class MemoryReadSignature(wiring.Signature):
    """Address in a cycle, data a fixed latency later, from the reader's point of view."""

    def __init__(self, depth: int, width: int):
        super().__init__({"addr": Out(range(depth)), "data": In(width)})


class TileWriteSignature(wiring.Signature):
    """Writes C bytes of one row of an A-tile buffer; cannot be stalled."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1), "buffer": Out(1), "row": Out(range(config.rows)),
            "word": Out(range(config.tile_depth // config.columns)), "data": Out(config.columns * 8),
        })


class TileReadSignature(wiring.Signature):
    """Reads K bytes of all T rows (row-major, row 0 lowest), TILE_READ_LATENCY cycles after the address."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "buffer": Out(1), "step": Out(range(config.tile_depth // config.depth)),
            "data": In(config.rows * config.depth * 8),
        })


class StagedSignature(wiring.Signature):
    """One row of one key tile from POST's softmax to the probability buffer."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1), "unit": Out(1), "row": Out(range(config.rows)),
            "tile": Out(range(config.max_key_tiles)),
            "data": Out(config.columns * 8),  # uint8 probabilities
            "maximum": Out(softmax.MAX_WIDTH),  # running maximum they stand against (bit pattern)
            "last": Out(1),  # last row of the last key tile: the unit's scores are complete
        })


class RowScaleSignature(wiring.Signature):
    """Reciprocal row sums for P.V, from the context loader to POST."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1), "unit": Out(1), "row": Out(range(config.rows)),
            "mult": Out(fixed.MULT_WIDTH), "shift": Out(fixed.SHIFT_WIDTH),
        })


class QueueEntry(data.Struct):
    """A token in an expert's queue."""

    token: COUNT
    score: route.SCORE_WIDTH


class QueueAppendSignature(wiring.Signature):
    """From POST's gate to the queues; cannot be stalled. ``clear`` empties all queues, before an entry of the
    same cycle."""

    def __init__(self):
        super().__init__({"clear": Out(1), "valid": Out(1), "expert": Out(QUEUE), "entry": Out(QueueEntry)})


class QueueReadSignature(wiring.Signature):
    """One queue, from the loader's point of view. ``count`` belongs to the ``queue`` of QUEUE_COUNT_LATENCY cycles
    ago; after ``start``, ``entries`` gives the entries of ``queue``, which stays, from the first on."""

    def __init__(self):
        super().__init__({
            "queue": Out(QUEUE), "count": In(COUNT), "start": Out(1),
            "entries": In(stream.Signature(QueueEntry)),
        })


class RowEntrySignature(wiring.Signature):
    """The queue entry of a row of an A tile, from the loader to POST, before the tile can be filled."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "valid": Out(1), "slot": Out(SLOT_WIDTH), "row": Out(range(config.rows)), "entry": Out(QueueEntry),
        })


def events_layout(stage: str) -> data.StructLayout:
    """One bit per counter of a stage (see ``registers.COUNTERS``); at most one is high."""
    return data.StructLayout({cause: 1 for s, cause, _ in COUNTERS if s == stage})


def marks_layout(stage: str) -> data.StructLayout:
    """One bit per ``trace.Mark`` of a stage, in lower case and without the stage's name."""
    prefix = f"{stage.upper()}_"
    return data.StructLayout({x.name.removeprefix(prefix).lower(): 1 for x in Mark if x.name.startswith(prefix)})


class AxiReadSignature(wiring.Signature):
    """AXI4 read channels of a master: INCR bursts, one ID."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "arid": Out(1), "araddr": Out(config.axi_address_width), "arlen": Out(8), "arsize": Out(3),
            "arburst": Out(2), "arprot": Out(3), "arcache": Out(4), "arvalid": Out(1), "arready": In(1),
            "rid": In(1), "rdata": In(config.axi_data_width), "rresp": In(2), "rlast": In(1), "rvalid": In(1),
            "rready": Out(1),
        })


class AxiWriteSignature(wiring.Signature):
    """AXI4 write channels of a master: INCR bursts, one ID."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "awid": Out(1), "awaddr": Out(config.axi_address_width), "awlen": Out(8), "awsize": Out(3),
            "awburst": Out(2), "awprot": Out(3), "awcache": Out(4), "awvalid": Out(1), "awready": In(1),
            "wdata": Out(config.axi_data_width), "wstrb": Out(config.axi_bytes), "wlast": Out(1),
            "wvalid": Out(1), "wready": In(1),
            "bid": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
        })


class AxiLiteSignature(wiring.Signature):
    """AXI4-Lite, from the master's point of view (the control unit has it flipped)."""

    def __init__(self, address_width: int):
        super().__init__({
            "awaddr": Out(address_width), "awprot": Out(3), "awvalid": Out(1), "awready": In(1),
            "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
            "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            "araddr": Out(address_width), "arprot": Out(3), "arvalid": Out(1), "arready": In(1),
            "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
        })


def request_signature(config: AcceleratorConfig) -> stream.Signature:
    """Asks a read port for ``beats`` bus words from a bus-aligned address; data comes back in order."""
    return stream.Signature(data.StructLayout({"addr": config.axi_address_width, "beats": REQUEST_BEATS_WIDTH}))


def read_data_signature(config: AcceleratorConfig) -> stream.Signature:
    """Bus words of a read port, in order; ``last`` marks the last one of a request."""
    return stream.Signature(data.StructLayout({"data": config.axi_data_width, "last": 1}))


def write_data_signature(config: AcceleratorConfig) -> stream.Signature:
    """Bus words for a write port with their byte strobes."""
    return stream.Signature(data.StructLayout({"data": config.axi_data_width, "strb": config.axi_bytes}))
