"""Where the pieces of a tensor lie in a memory, and how to read them back out of it."""

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.config import AcceleratorConfig
from moevit.program import DTYPES, MEMORY_ACTIVATION, MEMORY_KEY, Piece, Tensor


def word_bytes(tensor: Tensor, config: AcceleratorConfig) -> int:
    """Bytes of a word of the memory that the tensor lies in."""
    return config.columns if tensor.memory == MEMORY_ACTIVATION else config.operand_word_bytes


def extent(tensor: Tensor, piece: Piece, config: AcceleratorConfig) -> tuple[int, int]:
    """First word and end word that hold a piece."""
    if tensor.memory == MEMORY_ACTIVATION:
        first = tensor.addr + piece.row * tensor.stride
        row = layout.row_words(tensor.channels, config.columns, DTYPES[tensor.dtype][0])
        return first, first + (piece.rows - 1) * tensor.stride + row
    addresses = _operand_bytes(tensor, piece, config) // config.operand_word_bytes
    return int(addresses.min()), int(addresses.max()) + 1


def _operand_bytes(tensor: Tensor, piece: Piece, config: AcceleratorConfig) -> NDArray[np.int64]:
    token = np.arange(piece.row, piece.row + piece.rows)[:, None]
    channel = np.arange(tensor.channels)[None, :]
    where = layout.key_address if tensor.memory == MEMORY_KEY else layout.value_address
    return where(token, channel, tensor.addr, tensor.stride, config)


def extract(tensor: Tensor, piece: Piece, data: NDArray[np.uint8], config: AcceleratorConfig) -> NDArray:
    """The piece's values [B, rows, channels] from the bytes [B, (end - first) * word bytes] of its extent."""
    first, _ = extent(tensor, piece, config)
    bits, signed = DTYPES[tensor.dtype]
    if tensor.memory == MEMORY_ACTIVATION:
        row = layout.row_words(tensor.channels, config.columns, bits) * config.columns
        starts = np.arange(piece.rows) * tensor.stride * config.columns
        rows = data[:, starts[:, None] + np.arange(row)]
        return layout.unpack_rows(rows, tensor.channels, config.columns, bits, signed)
    index = _operand_bytes(tensor, piece, config) - first * config.operand_word_bytes
    return data[:, index].view(np.int8 if signed else np.uint8)
