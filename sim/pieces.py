"""Where the pieces of a tensor lie in a memory, and how to read them back out of it."""

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.config import AcceleratorConfig
from moevit.numerics.route import MAX_EXPERTS
from moevit.program import DTYPES, MEMORY_ACTIVATION, MEMORY_KEY, MEMORY_QUEUE, Piece, Tensor

QUEUE_WORD_BYTES = 2 * MAX_EXPERTS  #: the queues as a memory have a word for each token: its scores, little-endian


def word_bytes(tensor: Tensor, config: AcceleratorConfig) -> int:
    """Bytes of a word of the memory that the tensor lies in."""
    return memory_word_bytes(tensor.memory, config)


def memory_word_bytes(memory: str, config: AcceleratorConfig) -> int:
    """Bytes of a word of a memory; K and V lie in the operand memory."""
    sizes = {MEMORY_ACTIVATION: config.columns, MEMORY_QUEUE: QUEUE_WORD_BYTES}
    return sizes.get(memory, config.operand_word_bytes)


def extent(tensor: Tensor, piece: Piece, config: AcceleratorConfig) -> tuple[int, int]:
    """First word and end word that hold a piece."""
    row = piece.row % tensor.window if tensor.window else piece.row
    if tensor.memory == MEMORY_QUEUE:
        return tensor.addr + row, tensor.addr + row + piece.rows
    if tensor.memory == MEMORY_ACTIVATION:
        first = tensor.addr + row * tensor.stride
        words = layout.row_words(tensor.channels, config.columns, DTYPES[tensor.dtype][0])
        return first, first + (piece.rows - 1) * tensor.stride + words
    addresses = _operand_bytes(tensor, piece, config) // config.operand_word_bytes
    return int(addresses.min()), int(addresses.max()) + 1


def _operand_bytes(tensor: Tensor, piece: Piece, config: AcceleratorConfig) -> NDArray[np.int64]:
    token = np.arange(piece.row, piece.row + piece.rows)[:, None]
    channel = np.arange(tensor.channels)[None, :]
    where = layout.key_address if tensor.memory == MEMORY_KEY else layout.value_address
    return where(token, channel, tensor.addr, tensor.stride, config)


def extract(tensor: Tensor, piece: Piece, data: NDArray[np.uint8], config: AcceleratorConfig) -> NDArray:
    """The piece's values [B, rows, channels] from the bytes [B, (end - first) * word bytes] of its extent."""
    if tensor.memory == MEMORY_QUEUE:
        return queue_scores(data)[..., : tensor.channels]
    first, _ = extent(tensor, piece, config)
    bits, signed = DTYPES[tensor.dtype]
    if tensor.memory == MEMORY_ACTIVATION:
        row = layout.row_words(tensor.channels, config.columns, bits) * config.columns
        starts = np.arange(piece.rows) * tensor.stride * config.columns
        rows = data[:, starts[:, None] + np.arange(row)]
        return layout.unpack_rows(rows, tensor.channels, config.columns, bits, signed)
    index = _operand_bytes(tensor, piece, config) - first * config.operand_word_bytes
    return data[:, index].view(np.int8 if signed else np.uint8)


def queue_scores(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Scores [B, tokens, MAX_EXPERTS] from words of the queues as a memory [B, tokens * QUEUE_WORD_BYTES]."""
    return np.ascontiguousarray(data).view("<u2").reshape(len(data), -1, MAX_EXPERTS)
