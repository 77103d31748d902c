"""Proof, from the encoded program alone, that the pipelined machine gives the in-order result.

The machine overlaps instructions: loads of a later instruction run before an earlier one has retired. What keeps
order by itself (docs/microarchitecture.md):

- LINEAR and ATTENTION are loaded, computed and written in program order, so a later one never overwrites what an
  earlier one still has to load, add or multiply with;
- DMA instructions run one after the other, beside them.

Everything else must be ordered by ``wait``: a read (of rows, residual, K or V, or by DMA) after the write that
feeds it, and any write against reads or writes of the *other* engine. An instruction must not write what it loads
itself. The checker also proves that rings and queues cannot lock up, and that every address is inside its memory.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.config import STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.errors import HazardError
from moevit.isa import (
    Attention,
    Begin,
    DmaIn,
    DmaOut,
    End,
    Instruction,
    Linear,
    NormMode,
    OutputType,
    Retiring,
    Stream,
)
from moevit.isa.formats import BLOCK_BYTES, DmaSource
from moevit.program import Program, Task

Words = NDArray[np.int64]  # word numbers of a memory, in any order
_NONE = np.zeros(0, np.int64)

COMPUTE, DMA = 0, 1


@dataclass(frozen=True)
class Accesses:
    """Words that an instruction touches, by memory."""

    engine: int
    load: Words  #: activation words it loads
    residual: Words  #: activation words POST adds
    store: Words  #: activation words it writes
    operand_load: Words  #: K/V words the array reads
    operand_store: Words  #: K/V words POST writes


def check_program(program: Program, task: Task) -> None:
    """Check one task. Raises HazardError naming the instruction and what it conflicts with."""
    check_instructions(
        program.config, program.instructions(task), len(program.image), task.input_bytes, task.output_bytes
    )


def check_instructions(
    config: AcceleratorConfig,
    instructions: list[Instruction],
    image_bytes: int,
    input_bytes: int,
    output_bytes: int,
) -> None:
    """As :func:`check_program`, for a bare program."""
    begin = instructions[0]
    if not isinstance(begin, Begin) or not isinstance(instructions[-1], End):
        raise HazardError("a program starts with BEGIN and ends with END")
    if begin.count != len(instructions):
        raise HazardError(f"BEGIN says {begin.count} instructions; there are {len(instructions)}")
    if begin.digest != config.digest:
        raise HazardError("BEGIN names another configuration")
    if begin.ring_words > config.operand_words:
        raise HazardError(f"a ring of {begin.ring_words} words does not fit the operand memory")
    _Order(config, begin.ring_words).check(instructions, image_bytes, input_bytes, output_bytes)
    _Rings(config, begin.ring_words).check(instructions)


class _Order:
    """Reads after writes and writes after accesses, by the retired count."""

    def __init__(self, config: AcceleratorConfig, ring_words: int) -> None:
        self.config, self.ring_words = config, ring_words
        # per word: retired count at which its last writer is done, and the last reader of each engine
        self.written = np.zeros(config.activation_words, np.int64)
        self.writer_engine = np.full(config.activation_words, -1)
        self.read = np.zeros((2, config.activation_words), np.int64)
        self.operand_written = np.zeros(config.operand_words, np.int64)

    def check(
        self, instructions: list[Instruction], image_bytes: int, input_bytes: int, output_bytes: int
    ) -> None:
        retired = 0
        for number, instruction in enumerate(instructions):
            where = f"instruction {number} ({instruction.mnemonic()})"
            if isinstance(instruction, Begin | End) != (number in (0, len(instructions) - 1)):
                raise HazardError("BEGIN or END in the middle", where=where)
            if isinstance(instruction, Stream):
                self._inside_image(instruction, image_bytes, where)
            if not isinstance(instruction, Retiring):
                continue
            self._inside_buffers(instruction, image_bytes, input_bytes, output_bytes, where)
            wait = instruction.wait
            if wait > retired:
                raise HazardError(f"waits for {wait} instructions; {retired} stand before it", where=where)
            self._ordered(self._accesses(instruction, where), wait, retired + 1, where)
            retired += 1

    def _ordered(self, a: Accesses, wait: int, done: int, where: str) -> None:
        for what, words in (("loads", a.load), ("adds", a.residual)):
            self._require_written(self.written, words, wait, f"{what} activation", where)
        self._require_written(self.operand_written, a.operand_load, wait, "reads operand", where)
        if np.intersect1d(a.load, a.store).size:
            raise HazardError("writes activation words that it loads itself", where=where)
        if np.intersect1d(a.operand_load, a.operand_store).size:
            raise HazardError("writes operand words that it reads itself", where=where)
        other = 1 - a.engine
        late = a.store[self.read[other, a.store] > wait]
        if late.size:
            raise HazardError(
                f"overwrites activation word {late[0]} before its reader, retired as number "
                f"{self.read[other, late[0]]}, is done", where=where, mend=f"it waits for {wait}",
            )  # fmt: skip
        clash = a.store[(self.writer_engine[a.store] == other) & (self.written[a.store] > wait)]
        if clash.size:
            raise HazardError(f"activation word {clash[0]} may still be written by the other engine", where=where)
        self.written[a.store] = done
        self.writer_engine[a.store] = a.engine
        self.operand_written[a.operand_store] = done
        for words in (a.load, a.residual):
            self.read[a.engine, words] = done

    @staticmethod
    def _require_written(written: Words, words: Words, wait: int, what: str, where: str) -> None:
        if not words.size:
            return
        never = words[written[words] == 0]
        if never.size:
            raise HazardError(f"{what} word {never[0]}, which nothing has written", where=where)
        early = words[written[words] > wait]
        if early.size:
            raise HazardError(
                f"{what} word {early[0]}, written by the instruction that retires as number {written[early[0]]}",
                where=where, mend=f"it waits for {wait} only",
            )  # fmt: skip

    # -- what each instruction touches --------------------------------------------------------------------------

    def _accesses(self, instruction: Instruction, where: str) -> Accesses:
        if isinstance(instruction, Linear):
            a = self._linear(instruction)
        elif isinstance(instruction, Attention):
            a = self._attention(instruction)
        elif isinstance(instruction, DmaIn):
            a = Accesses(DMA, _NONE, _NONE, self._dma_words(instruction), _NONE, _NONE)
        else:
            assert isinstance(instruction, DmaOut)
            a = Accesses(DMA, instruction.src + np.arange(instruction.words), _NONE, _NONE, _NONE, _NONE)
        for words in (a.load, a.residual, a.store):
            self._bounded(words, 0, self.config.activation_words, "activation", where)
        for words in (a.operand_load, a.operand_store):
            self._bounded(words, self.ring_words, self.config.operand_words, "K/V", where)
        return a

    @staticmethod
    def _bounded(words: Words, low: int, high: int, what: str, where: str) -> None:
        if words.size and (words.min() < low or words.max() >= high):
            raise HazardError(f"{what} words {words.min()} … {words.max()} leave {low} … {high - 1}", where=where)

    @staticmethod
    def _rows(addr: int, stride: int, rows: int, words: int) -> Words:
        return np.unique(addr + np.arange(rows)[:, None] * stride + np.arange(words))

    def _linear(self, n: Linear) -> Accesses:
        c = self.config
        in_bits = 8 if n.norm == NormMode.NONE else 16
        wide = 2 if n.out_type == OutputType.INT16 else 1
        token = np.arange(n.token, n.token + n.n_rows)[:, None]
        size = c.operand_word_bytes
        keys = layout.key_address(
            token, np.arange((n.value_tile - n.key_tile) * c.columns), n.key_base, n.key_stride, c
        )
        values = layout.value_address(
            token, np.arange((n.tiles - n.value_tile) * c.columns), n.value_base, n.value_stride, c
        )
        return Accesses(
            COMPUTE,
            self._rows(n.src, n.src_stride, n.n_rows, layout.row_words(n.length, c.columns, in_bits)),
            self._rows(n.res, n.dst_stride, n.n_rows, 2 * n.key_tile) if n.residual else _NONE,
            self._rows(n.dst, n.dst_stride, n.n_rows, wide * n.key_tile),
            _NONE,
            np.unique(np.concatenate([keys.ravel() // size, values.ravel() // size])),
        )

    def _attention(self, a: Attention) -> Accesses:
        c = self.config
        tiles = layout.ceil_div(a.head_dim, c.columns)
        row = a.heads * tiles
        head = np.arange(a.heads)[:, None, None]
        key = (
            a.key_base
            + np.arange(layout.ceil_div(a.n_keys, c.columns))[:, None] * a.key_stride
            + head * tiles * c.key_groups
            + np.arange(layout.ceil_div(a.head_dim, c.depth))
        )
        value = (
            a.value_base
            + (head * tiles + np.arange(tiles)[:, None]) * a.value_stride
            + np.arange(layout.ceil_div(a.n_keys, c.depth))
        )
        return Accesses(
            COMPUTE,
            self._rows(a.src, a.src_stride, a.n_rows, row),
            _NONE,
            self._rows(a.dst, a.dst_stride, a.n_rows, row),
            np.unique(np.concatenate([key.ravel(), value.ravel()])),
            _NONE,
        )

    def _dma_words(self, d: DmaIn) -> Words:
        start = d.dst + (
            np.arange(d.count0)[:, None, None] * d.dst_stride0
            + np.arange(d.count1)[:, None] * d.dst_stride1
            + np.arange(d.segments) * d.dst_segment
        )
        columns = self.config.columns
        most = layout.ceil_div(d.segment_bytes, columns) + 1
        words = start.reshape(-1, 1) // columns + np.arange(most)
        last = (start.reshape(-1, 1) + d.segment_bytes - 1) // columns
        return np.unique(np.minimum(words, last))

    # -- bounds of buffers in DRAM ------------------------------------------------------------------------------

    def _inside_image(self, s: Stream, image_bytes: int, where: str) -> None:
        c = self.config
        for offset, words, size in (
            (s.norm_offset, s.norm_words, c.norm_word_bytes),
            (s.post_offset, s.post_words, c.post_word_bytes),
            (s.weight_offset, s.weight_words, c.operand_word_bytes),
        ):
            if offset * BLOCK_BYTES + words * size > image_bytes:
                raise HazardError("reads past the end of the image", where=where)

    @staticmethod
    def _inside_buffers(
        i: Instruction, image_bytes: int, input_bytes: int, output_bytes: int, where: str
    ) -> None:
        if isinstance(i, DmaIn):
            extent = (i.count0 - 1) * i.src_stride0 + (i.count1 - 1) * i.src_stride1 + i.segments * i.segment_bytes
            limit = image_bytes if i.source == DmaSource.IMAGE else input_bytes
            if i.offset + extent > limit:
                raise HazardError(f"reads up to byte {i.offset + extent} of a buffer of {limit}", where=where)
        if isinstance(i, DmaOut) and i.offset >= output_bytes:
            raise HazardError(f"writes at byte {i.offset} of a buffer of {output_bytes}", where=where)


class _Rings:
    """Words of the three rings, and that fetch, streamer and LINEARs cannot wait for each other in a circle."""

    def __init__(self, config: AcceleratorConfig, ring_words: int) -> None:
        self.config = config
        self.size = {"norm": config.norm_words, "post": config.post_words, "weight": ring_words}

    def _needs(self, n: Linear) -> dict[str, int]:
        c = self.config
        norm = layout.ceil_div(n.length, c.columns) if n.norm != NormMode.NONE else 0
        return {"norm": norm, "post": n.tiles, "weight": n.tiles * layout.ceil_div(n.length, c.depth)}

    def check(self, instructions: list[Instruction]) -> None:
        streamed = dict.fromkeys(self.size, 0)
        released = dict.fromkeys(self.size, 0)
        freed_at: list[tuple[int, dict[str, int]]] = []  # per LINEAR: its number, words freed once it is done
        blocks: list[tuple[int, dict[str, int]]] = []  # per STREAM: its number, words streamed with it
        for number, i in enumerate(instructions):
            where = f"instruction {number} ({i.mnemonic()})"
            if isinstance(i, Stream):
                for ring in self.size:
                    streamed[ring] += getattr(i, f"{ring}_words")
                blocks.append((number, dict(streamed)))
            elif isinstance(i, Linear):
                for ring, words in self._needs(i).items():
                    if words > self.size[ring]:
                        raise HazardError(f"needs {words} {ring} words; its ring has {self.size[ring]}", where=where)
                    if released[ring] + words > streamed[ring]:
                        raise HazardError(f"needs {ring} words that no STREAM before it brings", where=where)
                    released[ring] += words if i.release else 0
                freed_at.append((number, dict(released)))
        for ring in self.size:
            if released[ring] != streamed[ring]:
                raise HazardError(f"{streamed[ring] - released[ring]} {ring} words are never released")
        self._progress(blocks, freed_at)

    def _progress(self, blocks: list[tuple[int, dict[str, int]]], freed: list[tuple[int, dict[str, int]]]) -> None:
        """When the fetch unit waits at STREAM m for a place in the queue, the streamer is at block
        m - STREAM_QUEUE_DEPTH at the latest; the LINEARs that must end before that block fits have to stand
        before STREAM m, or nothing moves again."""
        for m in range(STREAM_QUEUE_DEPTH, len(blocks)):
            number, _ = blocks[m]
            _, words = blocks[m - STREAM_QUEUE_DEPTH]
            for ring, size in self.size.items():
                excess = words[ring] - size
                last = next((n for n, done in freed if done[ring] >= excess), None)
                if excess > 0 and (last is None or last > number):
                    raise HazardError(
                        f"may block for ever: the {ring} ring has room for the stream in progress only after "
                        f"instruction {last}",
                        where=f"instruction {number} (STREAM)", mend="stream later",
                    )  # fmt: skip


