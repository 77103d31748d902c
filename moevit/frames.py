"""The frames of a serial host link: what a driver sends, and what the gateware of a board takes and answers.

A request and its answer, least significant byte first, 32-bit words:

    request:  SYNC_REQUEST  sequence operation count address(4)  [count words, of a write]  crc(2)
    answer:   SYNC_ANSWER   sequence status    count             [count words, of a read]   crc(2)

The CRC is CRC-16/CCITT (polynomial 0x1021, from 0xFFFF) of all between the first byte and itself, most significant byte
first. A frame with a wrong CRC, a count that is not 1 … MAX_WORDS or a broken byte gets no answer and does nothing; the
board then waits until the line has been idle for a while before it looks for a frame again, and the driver sends the
request once more. A write that arrives a second time in a row with one sequence number is answered and not done, so
that a lost answer to a start bit starts nothing twice.
"""

import binascii
import enum
import struct
from dataclasses import dataclass

PROTOCOL = 0x0001_0000  #: major << 16 | minor; the first word of Space.INFO
SYNC_REQUEST = 0xA5
SYNC_ANSWER = 0x5A
MAX_WORDS = 64  #: of one frame
WORD_BYTES = 4
CRC_POLYNOMIAL = 0x1021
CRC_START = 0xFFFF
CRC_BYTES = 2
REQUEST_HEADER = struct.Struct("<BBBI")  #: sequence, operation, count, address
ANSWER_HEADER = struct.Struct("<BBB")  #: sequence, status, count
IDLE_BITS = 20_000  #: bit times without a byte after which a board gives up a frame: 10 ms at 2 Mbaud


class Space(enum.IntEnum):
    """What an address is in: bits 2:1 of the operation."""

    REGISTERS = 0  #: the machine's register map
    MEMORY = 1  #: the memory that its masters see
    INFO = 2  #: read only: the words of :class:`Info`


class Status(enum.IntEnum):
    """What became of a request."""

    OK = 0
    FORMAT = 1  #: an unknown operation, or an address that is not a multiple of WORD_BYTES
    BUS = 2  #: the machine or the memory refused an access; those before it in the frame are done


class Info(enum.IntEnum):
    """Words of Space.INFO, by their index."""

    PROTOCOL = 0
    MEMORY_BYTES = 1
    CLOCK_HZ = 2  #: of the machine


@dataclass(frozen=True)
class Answer:
    """A board's answer to a request."""

    sequence: int
    status: Status
    words: tuple[int, ...]


def crc(data: bytes) -> int:
    """CRC-16/CCITT of ``data``."""
    return binascii.crc_hqx(data, CRC_START)


def operation(space: Space, write: bool) -> int:
    """The operation byte."""
    return space << 1 | write


def request(sequence: int, space: Space, address: int, words: int | tuple[int, ...]) -> bytes:
    """A frame that reads ``words`` words, or writes these. Raises ValueError for more than a frame holds."""
    data = () if isinstance(words, int) else words
    count = words if isinstance(words, int) else len(words)
    if not 1 <= count <= MAX_WORDS:
        raise ValueError(f"a frame has 1 … {MAX_WORDS} words, not {count}")
    body = REQUEST_HEADER.pack(sequence, operation(space, bool(data)), count, address)
    body += struct.pack(f"<{len(data)}I", *data)
    return bytes([SYNC_REQUEST]) + body + crc(body).to_bytes(CRC_BYTES, "big")


def answer_bytes(head: bytes) -> int:
    """How long an answer is that begins with these 1 + ANSWER_HEADER.size bytes."""
    return 1 + ANSWER_HEADER.size + head[-1] * WORD_BYTES + CRC_BYTES


def parse_answer(frame: bytes) -> Answer | None:
    """A whole answer, or None if it is damaged."""
    body, check = frame[1:-CRC_BYTES], frame[-CRC_BYTES:]
    if len(body) < ANSWER_HEADER.size or frame[0] != SYNC_ANSWER or crc(body) != int.from_bytes(check, "big"):
        return None
    sequence, status, count = ANSWER_HEADER.unpack_from(body)
    if status not in set(Status) or len(body) != ANSWER_HEADER.size + count * WORD_BYTES:
        return None
    return Answer(sequence, Status(status), struct.unpack_from(f"<{count}I", body, ANSWER_HEADER.size))
