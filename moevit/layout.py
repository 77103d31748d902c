"""How tensors lie in memory: the byte layouts that the compiler writes and the machine reads.

All functions are pairs (pack, unpack) over NumPy arrays of bytes; ``docs/microarchitecture.md`` gives the layouts
in words. T, C, K are the configuration's rows, columns and depth.
"""

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.numerics.fixed import BIAS_WIDTH

Bytes = NDArray[np.uint8]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def row_words(channels: int, columns: int, bits: int) -> int:
    """Activation memory words of a row of ``channels`` elements of 8 or 16 bits."""
    return ceil_div(channels, columns) * (bits // 8)


def pack_rows(values: NDArray, columns: int, bits: int) -> Bytes:
    """Rows [..., N, D] to activation memory bytes [..., N, row_words * C]; 16-bit rows are planar."""
    padding = -values.shape[-1] % columns
    v = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, padding)])
    if bits == 8:
        return np.ascontiguousarray(v.astype(np.int64) & 0xFF).astype(np.uint8)
    words = (v.astype(np.int64) & 0xFFFF).reshape(*v.shape[:-1], -1, 1, columns)
    planar = np.concatenate([words & 0xFF, words >> 8], axis=-2)
    return planar.reshape(*v.shape[:-1], -1).astype(np.uint8)


def unpack_rows(data: Bytes, channels: int, columns: int, bits: int, signed: bool) -> NDArray:
    """Inverse of :func:`pack_rows`: [..., N, row_words * C] to [..., N, channels] (uint8, int8 or int16)."""
    if bits == 8:
        return data[..., :channels].view(np.int8 if signed else np.uint8)
    planes = data.reshape(*data.shape[:-1], -1, 2, columns)
    low, high = planes[..., 0, :].astype(np.uint16), planes[..., 1, :].astype(np.uint16)
    values = (low | (high << 8)).view(np.int16)
    return values.reshape(*data.shape[:-1], -1)[..., :channels]


def pack_weights(weight: NDArray, config: AcceleratorConfig) -> Bytes:
    """Weights [tiles * C or fewer, length] int8 to operand words [tiles * steps, C * K]."""
    c, k = config.columns, config.depth
    out_features, length = weight.shape
    tiles, steps = ceil_div(out_features, c), ceil_div(length, k)
    padded = np.zeros((tiles * c, steps * k), np.int8)
    padded[:out_features, :length] = weight
    words = padded.reshape(tiles, c, steps, k).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(words).reshape(tiles * steps, c * k).view(np.uint8)


def unpack_weights(words: Bytes, tiles: int, length: int, config: AcceleratorConfig) -> NDArray[np.int8]:
    """Inverse of :func:`pack_weights`: [tiles * C, length]."""
    c, k = config.columns, config.depth
    steps = ceil_div(length, k)
    w = words.view(np.int8).reshape(tiles, steps, c, k).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(w.reshape(tiles * c, steps * k)[:, :length])


def pack_post(bias: NDArray, mult: NDArray, shift: NDArray, config: AcceleratorConfig) -> Bytes:
    """Per-channel POST parameters [tiles * C or fewer] to post words [tiles, 8 * C]. Padded channels get zeros."""
    padding = -len(bias) % config.columns
    b, m, s = (np.pad(np.asarray(a, np.int64), (0, padding)) for a in (bias, mult, shift))
    lane = (b & ((1 << BIAS_WIDTH) - 1)) | (m << 32) | (s << 48)
    return np.ascontiguousarray(lane.astype("<u8")).view(np.uint8).reshape(-1, config.post_word_bytes)


def unpack_post(words: Bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Inverse of :func:`pack_post`: (bias, mult, shift), each [tiles * C]."""
    lane = np.ascontiguousarray(words).reshape(-1).view("<u8")
    bias = (lane & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32).astype(np.int64)
    mult = ((lane >> np.uint64(32)) & np.uint64(0xFFFF)).astype(np.int64)
    return bias, mult, ((lane >> np.uint64(48)) & np.uint64(0x3F)).astype(np.int64)


def pack_norm(gamma: NDArray, beta: NDArray, config: AcceleratorConfig) -> Bytes:
    """LayerNorm parameters [D] to norm words [ceil(D / C), 4 * C]."""
    padding = -len(gamma) % config.columns
    pairs = np.stack([np.pad(gamma, (0, padding)), np.pad(beta, (0, padding))], axis=-1).astype("<i2")
    return np.ascontiguousarray(pairs).view(np.uint8).reshape(-1, config.norm_word_bytes)


def unpack_norm(words: Bytes, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inverse of :func:`pack_norm`: (gamma, beta), each [length]."""
    pairs = np.ascontiguousarray(words).reshape(-1).view("<i2").reshape(-1, 2).astype(np.int64)
    return pairs[:length, 0], pairs[:length, 1]


def stripe(words: Bytes, ports: int) -> bytes:
    """Words [n, bytes] as the weight image holds them: one slice of every word per port, slice after slice."""
    n, size = words.shape
    return np.ascontiguousarray(words.reshape(n, ports, size // ports).transpose(1, 0, 2)).tobytes()


def unstripe(data: bytes | memoryview, n: int, size: int, ports: int) -> Bytes:
    """Inverse of :func:`stripe`: [n, size]."""
    slices = np.frombuffer(data, np.uint8, n * size).reshape(ports, n, size // ports)
    return np.ascontiguousarray(slices.transpose(1, 0, 2)).reshape(n, size)


def key_address(
    token: NDArray, channel: NDArray, base: int, stride: int, config: AcceleratorConfig
) -> NDArray[np.int64]:
    """Byte address in the operand memory of K[token, channel] (channel counts from the K region's first)."""
    c, k = config.columns, config.depth
    word = base + (token // c) * stride + channel // k
    return word * config.operand_word_bytes + (token % c) * k + channel % k


def value_address(
    token: NDArray, channel: NDArray, base: int, stride: int, config: AcceleratorConfig
) -> NDArray[np.int64]:
    """Byte address in the operand memory of V[token, channel]."""
    c, k = config.columns, config.depth
    word = base + (channel // c) * stride + token // k
    return word * config.operand_word_bytes + (channel % c) * k + token % k
