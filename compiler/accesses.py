"""The words of the machine's memories that an instruction touches, from its fields alone."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.compiler.queue_hazards import Queues, of_queue
from moevit.config import AcceleratorConfig
from moevit.errors import HazardError
from moevit.isa import Attention, DmaIn, DmaOut, Instruction, Linear, NormMode, OutputType

#: Word numbers of a memory: a range of them without step, or each, in any order, some perhaps several times.
Words = slice | NDArray[np.int64]
NONE = slice(0, 0)

COMPUTE, DMA = 0, 1


@dataclass(frozen=True)
class Accesses:
    """Words that an instruction touches, by memory."""

    engine: int
    load: Words = field(default_factory=lambda: NONE)  #: activation words it loads
    residual: Words = field(default_factory=lambda: NONE)  #: activation words POST adds
    store: Words = field(default_factory=lambda: NONE)  #: activation words it writes
    operand_load: Words = field(default_factory=lambda: NONE)  #: K/V words the array reads
    operand_store: Words = field(default_factory=lambda: NONE)  #: K/V words POST writes
    keep: Words = field(default_factory=lambda: NONE)  #: activation words the loader writes
    load_mark: int = 0  #: the queue (``Queues.mark``) whose rows it may load, besides ordinary ones
    store_mark: int = 0  #: … whose rows it may add, and writes


def accesses(
    instruction: Instruction, config: AcceleratorConfig, ring_words: int, queues: Queues, where: str
) -> Accesses:
    """The words that an instruction touches. Raises HazardError if they are not all inside their memories."""
    if isinstance(instruction, Linear):
        a = _linear(instruction, config, queues)
    elif isinstance(instruction, Attention):
        a = _attention(instruction, config)
    elif isinstance(instruction, DmaIn):
        a = Accesses(DMA, store=_dma_words(instruction, config))
    else:
        assert isinstance(instruction, DmaOut)
        a = Accesses(DMA, load=slice(instruction.src, instruction.src + instruction.words))
    for words in (a.load, a.residual, a.store, a.keep):
        _bounded(words, 0, config.activation_words, "activation", where)
    for words in (a.operand_load, a.operand_store):
        _bounded(words, ring_words, config.operand_words, "K/V", where)
    return a


def first_of(words: Words, condition: NDArray[np.bool_]) -> int | None:
    """The first word for which a condition holds, given for each of them in order; None if it does for none."""
    index = int(np.argmax(condition)) if condition.size else 0
    if not condition.size or not condition[index]:
        return None
    return words.start + index if isinstance(words, slice) else int(words[index])


def empty(words: Words) -> bool:
    """Whether there are none."""
    return words.start >= words.stop if isinstance(words, slice) else not words.size


def _bounded(words: Words, low: int, high: int, what: str, where: str) -> None:
    if empty(words):
        return
    first, last = (words.start, words.stop - 1) if isinstance(words, slice) else (words.min(), words.max())
    if first < low or last >= high:
        raise HazardError(f"{what} words {first} … {last} leave {low} … {high - 1}", where=where)


def _rows(addr: int, stride: int, rows: range | NDArray[np.int64], words: int) -> Words:
    """Words of the rows of these numbers."""
    if not len(rows) or not words:
        return NONE
    if isinstance(rows, range):
        if stride == words or len(rows) == 1:
            first = addr + rows.start * stride
            return slice(first, first + len(rows) * words)
        rows = np.arange(rows.start, rows.stop)
    return (addr + rows[:, None] * stride + np.arange(words)).reshape(-1)


def _tokens(queues: Queues) -> range | NDArray[np.int64]:
    """Those that the queues may hold; as a range if they follow each other."""
    t = queues.tokens
    if t.size and t[-1] - t[0] + 1 == t.size:
        return range(int(t[0]), int(t[-1]) + 1)
    return t


def _linear(n: Linear, config: AcceleratorConfig, queues: Queues) -> Accesses:
    wide = 2 if n.out_type == OutputType.INT16 else 1
    ordinary = range(n.n_rows)
    finished = _tokens(queues) if n.scatter else ordinary
    mark = queues.mark(n) if of_queue(n) else 0
    loads = layout.row_words(n.length, config.columns, 8 if n.norm == NormMode.NONE else 16)
    kept = layout.row_words(n.length, config.columns, 8)
    return Accesses(
        COMPUTE,
        load=_rows(n.src, n.src_stride, _tokens(queues) if n.gather else ordinary, loads),
        residual=_rows(n.res, n.dst_stride, finished, 2 * n.key_tile) if n.residual else NONE,
        store=NONE if n.route else _rows(n.dst, n.dst_stride, finished, wide * n.key_tile),
        operand_store=_key_value_words(n, config),
        keep=_rows(n.keep_dst, n.keep_stride, ordinary, kept) if n.keep else NONE,
        load_mark=0 if n.gather else mark,
        store_mark=0 if n.scatter else mark,
    )


def _key_value_words(n: Linear, config: AcceleratorConfig) -> Words:
    """Words of K and V that a LINEAR writes; a token and a channel in each word stand for all of them."""
    if n.key_tile == n.tiles:
        return NONE
    c, k = config.columns, config.depth
    channels = np.arange(0, (n.value_tile - n.key_tile) * c, k)
    tokens = np.arange(n.token // c * c, n.token + n.n_rows, c)[:, None]
    keys = layout.key_address(tokens, channels, n.key_base, n.key_stride, config)
    channels = np.arange(0, (n.tiles - n.value_tile) * c, c)
    tokens = np.arange(n.token // k * k, n.token + n.n_rows, k)[:, None]
    values = layout.value_address(tokens, channels, n.value_base, n.value_stride, config)
    return np.concatenate([keys.reshape(-1), values.reshape(-1)]) // config.operand_word_bytes


def _attention(a: Attention, config: AcceleratorConfig) -> Accesses:
    tiles = layout.ceil_div(a.head_dim, config.columns)
    row = a.heads * tiles
    head = np.arange(a.heads)[:, None, None]
    key = (
        a.key_base
        + np.arange(layout.ceil_div(a.n_keys, config.columns))[:, None] * a.key_stride
        + head * tiles * config.key_groups
        + np.arange(layout.ceil_div(a.head_dim, config.depth))
    )
    value = (
        a.value_base
        + (head * tiles + np.arange(tiles)[:, None]) * a.value_stride
        + np.arange(layout.ceil_div(a.n_keys, config.depth))
    )
    return Accesses(
        COMPUTE,
        load=_rows(a.src, a.src_stride, range(a.n_rows), row),
        store=_rows(a.dst, a.dst_stride, range(a.n_rows), row),
        operand_load=np.concatenate([key.reshape(-1), value.reshape(-1)]),
    )


def _dma_words(d: DmaIn, config: AcceleratorConfig) -> Words:
    columns = config.columns
    if d.count0 == d.count1 == d.segments == 1:
        return slice(d.dst // columns, (d.dst + d.segment_bytes - 1) // columns + 1)
    start = d.dst + (
        np.arange(d.count0)[:, None, None] * d.dst_stride0
        + np.arange(d.count1)[:, None] * d.dst_stride1
        + np.arange(d.segments) * d.dst_segment
    )
    most = layout.ceil_div(d.segment_bytes, columns) + 1
    words = start.reshape(-1, 1) // columns + np.arange(most)
    last = (start.reshape(-1, 1) + d.segment_bytes - 1) // columns
    return np.minimum(words, last).reshape(-1)
