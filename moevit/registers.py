"""The AXI4-Lite register map, the status and error codes, and the performance counters."""

import enum
from dataclasses import dataclass

DATA_WIDTH = 32
IDENTITY = 0x4D4F4556  #: reads as "MOEV" with the most significant byte first
VERSION = 0x0002_0000  #: major << 16 | minor of this map


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


#: One event per cycle each: (stage, cause, meaning). ``busy`` is useful work; the rest is why a stage waits.
COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("stream", "busy", "a word was written to a ring"),
    ("stream", "ring", "data or a request waits for room in a ring"),
    ("stream", "dram", "waits for read data"),
    ("stream", "queue", "waits to know whether a queue is empty"),
    ("load", "busy", "reads or writes a row"),
    ("load", "dependency", "waits for the retired count"),
    ("load", "tile", "waits for a free A-tile buffer"),
    ("load", "norm", "waits for LayerNorm parameters"),
    ("load", "scores", "waits for the scores of a row tile"),
    ("load", "queue", "waits to know whether an empty queue's words were streamed"),
    ("mac", "busy", "the array takes a step"),
    ("mac", "tile", "waits for an A tile"),
    ("mac", "ring", "waits for a weight word"),
    ("mac", "drain", "waits for the previous tile to drain"),
    ("mac", "post", "waits for POST to finish an earlier instruction, or an earlier row tile of a gate"),
    ("post", "busy", "takes a row of accumulators"),
    ("dma", "busy", "moves data"),
    ("dma", "dependency", "waits for the retired count"),
    ("dma", "dram", "waits for the bus"),
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
