"""The AXI4-Lite register map, the status and error codes, and the performance counters."""

import enum
from dataclasses import dataclass

DATA_WIDTH = 32
IDENTITY = 0x4D4F4556  #: reads as "MOEV" with the most significant byte first
VERSION = 0x0003_0000  #: major << 16 | minor of this map


class Status(enum.IntFlag):
    """Bits of the STATUS register."""

    BUSY = 1
    DONE = 2
    ERROR = 4
    DRAINING = 8  #: an error or a soft reset is waiting for outstanding AXI transfers


class ErrorCode(enum.IntEnum):
    """Why the machine stopped (ERROR register)."""

    NONE = 0
    BUS_FETCH = 1  #: AXI error response to an instruction fetch
    BUS_STREAM = 2  #: … to a weight read
    BUS_DMA_READ = 3  #: … to a DMA_IN read
    BUS_DMA_WRITE = 4  #: … to a DMA_OUT write
    ILLEGAL_INSTRUCTION = 5  #: unknown opcode, a field outside its range, or no BEGIN where one must be
    WRONG_CONFIGURATION = 6  #: BEGIN names another configuration digest or instruction set version
    INPUT_RANGE = 7  #: DMA_IN reads outside the input buffer
    OUTPUT_RANGE = 8  #: DMA_OUT writes outside the output buffer
    IMAGE_RANGE = 9  #: an address outside the program and weight image
    ACTIVATION_RANGE = 10  #: an address outside the activation memory
    OPERAND_RANGE = 11  #: a K/V access outside the K/V region
    STALLED = 12  #: nothing moves any more: an instruction waits for what no other one brings
    QUEUE_RANGE = 13  #: the queues are full, or one holds more entries than an instruction allows


class Access(enum.StrEnum):
    READ = "r"
    WRITE = "w"
    READ_WRITE = "rw"


@dataclass(frozen=True)
class Register:
    """One 32-bit register at byte ``offset``."""

    name: str
    offset: int
    access: Access
    doc: str


#: (stage, cause, meaning). In each cycle at most one cause of a stage counts. ``busy`` is useful work, the rest is why
#: a stage waits; in what none counts it had nothing to do.
COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("stream", "busy", "takes data from its ports"),
    ("stream", "memory", "waits while K or V is written"),
    ("stream", "ring", "waits for room in a ring"),
    ("stream", "dram", "waits for read data"),
    ("stream", "queue", "waits to know whether a queue is empty, or to tell the loader"),
    ("stream", "start", "works out what to read, or writes the last of it"),
    ("stream", "fetch", "has no instruction: dispatch waits for one, or checks one"),
    ("stream", "order", "has no instruction: a full queue keeps dispatch from handing one on"),
    ("load", "busy", "reads or writes a word of a row"),
    ("load", "memory", "waits for the activation memory"),
    ("load", "tile", "waits for a free A-tile buffer"),
    ("load", "scores", "waits for the scores of a row tile"),
    ("load", "norm", "waits for LayerNorm parameters"),
    ("load", "dependency", "waits for the retired count"),
    ("load", "queue", "waits for a queue's entries, or to know whether an empty queue's words were streamed"),
    ("load", "pipeline", "has its rows on their way from reading to writing"),
    ("load", "start", "takes an instruction, works out what to do, or ends it"),
    ("load", "array", "has an instruction that the array's queue has no room for"),
    ("load", "fetch", "has no instruction: dispatch waits for one, or checks one"),
    ("load", "order", "has no instruction: a full queue keeps dispatch from handing one on"),
    ("mac", "busy", "the array takes a step"),
    ("mac", "tile", "waits for an A tile"),
    ("mac", "ring", "waits for a weight word"),
    ("mac", "drain", "waits for the previous tile to drain"),
    ("mac", "post", "waits for POST to finish an earlier instruction, or an earlier row tile of a gate"),
    ("mac", "start", "works out the passes of an instruction"),
    ("mac", "load", "has no instruction: the loader holds its next one back, or is at work for others"),
    ("mac", "fetch", "has no instruction, nor has the loader: dispatch waits for one, or checks one"),
    ("mac", "order", "has no instruction, nor has the loader: a full queue keeps dispatch from handing one on"),
    ("post", "busy", "takes a row of accumulators"),
    ("post", "rows", "waits for the rows of an instruction"),
    ("post", "pipeline", "has all rows of its instructions, of which the last are on their way"),
    ("dma", "busy", "moves data"),
    ("dma", "dependency", "waits for the retired count"),
    ("dma", "dram", "waits for the bus"),
    ("dma", "memory", "waits for the activation memory"),
    ("dma", "start", "works out what to move, and whether it may"),
    ("dma", "pipeline", "has its data on their way"),
    ("dma", "fetch", "has no instruction: dispatch waits for one, or checks one"),
    ("dma", "order", "has no instruction: a full queue keeps dispatch from handing one on"),
)

_HEAD: tuple[tuple[str, Access, str], ...] = (
    ("IDENTITY", Access.READ, "0x4D4F4556"),
    ("VERSION", Access.READ, "version of this map: major in bits 31:16, minor in bits 15:0"),
    ("DIGEST_LO", Access.READ, "configuration digest, bits 31:0"),
    ("DIGEST_HI", Access.READ, "configuration digest, bits 63:32"),
    (
        "CONTROL",
        Access.WRITE,
        "bit 0: start; bit 1: soft reset (waits for outstanding transfers, then clears all state)",
    ),
    ("STATUS", Access.READ, "bit 0: busy; bit 1: done; bit 2: error; bit 3: draining. A start clears done"),
    ("ERROR", Access.READ, "error code; see the table"),
    (
        "ERROR_INSTRUCTION",
        Access.READ,
        "number in the program (BEGIN is 0) of the instruction that failed, or the "
        "number fetched so far where one cannot be named",
    ),
    ("INTERRUPT_ENABLE", Access.READ_WRITE, "bit 0: raise the interrupt line on done; bit 1: on error"),
    ("INTERRUPT_STATUS", Access.READ_WRITE, "bit 0: done; bit 1: error; write 1 to clear"),
    ("IMAGE_LO", Access.READ_WRITE, "address of the program and weight image, bits 31:0, a multiple of 64"),
    ("IMAGE_HI", Access.READ_WRITE, "its upper bits"),
    ("IMAGE_BYTES", Access.READ_WRITE, "its size"),
    (
        "PROGRAM",
        Access.READ_WRITE,
        "offset in the image of the BEGIN to start at, a multiple of 64: the task",
    ),
    ("INPUT_LO", Access.READ_WRITE, "address of the input buffer, bits 31:0, a multiple of the bus word"),
    ("INPUT_HI", Access.READ_WRITE, "its upper bits"),
    ("INPUT_BYTES", Access.READ_WRITE, "its size"),
    ("OUTPUT_LO", Access.READ_WRITE, "address of the output buffer, bits 31:0, a multiple of the bus word"),
    ("OUTPUT_HI", Access.READ_WRITE, "its upper bits"),
    ("OUTPUT_BYTES", Access.READ_WRITE, "its size"),
    ("RETIRED", Access.READ, "instructions retired by the current or last program"),
    ("CYCLES", Access.READ, "cycles from start to done, or so far"),
)
COUNTER_BASE = 0x100


def _registers() -> tuple[Register, ...]:
    head = [Register(name, 4 * i, access, doc) for i, (name, access, doc) in enumerate(_HEAD)]
    tail = [
        Register(
            f"COUNT_{stage}_{cause}".upper(),
            COUNTER_BASE + 4 * i,
            Access.READ,
            f"cycles in which {stage}: {doc}",
        )
        for i, (stage, cause, doc) in enumerate(COUNTERS)
    ]
    return tuple(head + tail)


REGISTERS = _registers()
OFFSETS = {r.name: r.offset for r in REGISTERS}
ADDRESS_WIDTH = 12  #: bits of the AXI4-Lite address
