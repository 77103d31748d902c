"""Proof, from the encoded program alone, that the pipelined machine gives the in-order result.

The machine overlaps instructions: loads of a later instruction run before an earlier one has retired. What keeps
order by itself (docs/microarchitecture.md):

- LINEAR and ATTENTION are loaded, computed and written in program order, so a later one never overwrites what an
  earlier one still has to load, add or multiply with;
- DMA instructions run one after the other, beside them.

Everything else must be ordered by ``wait``: a read (of rows, residual, K or V, or by DMA) after the write that
feeds it, and any write against reads or writes of the *other* engine; the rows that a LINEAR keeps are written by
the loader, so also against what POST still adds and writes. An instruction must not write what it loads itself.

A LINEAR over a queue counts as reading and writing the rows of all tokens that the queue may hold
(``queue_hazards``). Dense rows that it writes mean something to LINEARs over the same queue only, because nobody else
knows how many there are. It has a predicated STREAM of its own: the machine throws away the words of an empty
queue with the LINEAR, or does not stream them at all.

The checker also proves that rings and queues cannot lock up, and that every address is inside its memory.
"""

from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.compiler.queue_hazards import Queues, of_queue
from moevit.config import BROUGHT_QUEUE_DEPTH, STREAM_QUEUE_DEPTH, AcceleratorConfig
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
    keep: Words = field(default_factory=lambda: _NONE)  #: activation words the loader writes
    load_mark: int = 0  #: the queue (``Queues.mark``) whose rows it may load, besides ordinary ones
    store_mark: int = 0  #: … whose rows it may add, and writes


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
        self.added = np.zeros(config.activation_words, np.int64)  # by POST
        self.mark = np.zeros(config.activation_words, np.int64)  # the queue that its meaning depends on
        self.operand_written = np.zeros(config.operand_words, np.int64)
        self.queues = Queues(config)

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
            self.issue(instruction, retired + 1, where)
            retired += 1

    def issue(self, instruction: Retiring, done: int, where: str) -> None:
        """Check the next instruction, which retires as number ``done``."""
        if isinstance(instruction, Linear):
            if of_queue(instruction):
                self.queues.check_reader(instruction, where)
            if instruction.route:
                self.queues.check_gate(instruction, where)
            if instruction.keep and instruction.norm == NormMode.NONE:
                raise HazardError("keeps rows that are already in memory", where=where)
        self._ordered(self.accesses(instruction, where), instruction.wait, done, where)
        if isinstance(instruction, Linear) and instruction.route:
            self.queues.append(instruction, done, where)

    def _ordered(self, a: Accesses, wait: int, done: int, where: str) -> None:
        for what, words in (("loads", a.load), ("adds", a.residual)):
            self._require_written(self.written, words, wait, f"{what} activation", where)
        self._require_written(self.operand_written, a.operand_load, wait, "reads operand", where)
        for words, mark in ((a.load, a.load_mark), (a.residual, a.store_mark)):
            foreign = words[(self.mark[words] != 0) & (self.mark[words] != mark)]
            if foreign.size:
                raise HazardError(f"reads activation word {foreign[0]}, which holds rows of a queue", where=where)
        written = np.concatenate([a.store, a.keep])
        if np.intersect1d(a.load, written).size:
            raise HazardError("writes activation words that it loads itself", where=where)
        if np.intersect1d(a.operand_load, a.operand_store).size:
            raise HazardError("writes operand words that it reads itself", where=where)
        other = 1 - a.engine
        late = written[self.read[other, written] > wait]
        if late.size:
            raise HazardError(
                f"overwrites activation word {late[0]} before its reader, retired as number "
                f"{self.read[other, late[0]]}, is done", where=where, mend=f"it waits for {wait}",
            )  # fmt: skip
        clash = written[(self.writer_engine[written] == other) & (self.written[written] > wait)]
        if clash.size:
            raise HazardError(f"activation word {clash[0]} may still be written by the other engine", where=where)
        early = a.keep[np.maximum(self.written, self.added)[a.keep] > wait]
        if early.size:
            raise HazardError(f"keeps activation word {early[0]}, which POST may still add or write", where=where)
        self.written[written] = done
        self.writer_engine[written] = a.engine
        self.mark[written] = 0
        self.mark[a.store] = a.store_mark
        self.operand_written[a.operand_store] = done
        for words in (a.load, a.residual):
            self.read[a.engine, words] = done
        self.added[a.residual] = done

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

    def accesses(self, instruction: Instruction, where: str) -> Accesses:
        """The words that an instruction touches, which all lie inside their memories."""
        if isinstance(instruction, Linear):
            a = self._linear(instruction)
        elif isinstance(instruction, Attention):
            a = self._attention(instruction)
        elif isinstance(instruction, DmaIn):
            a = Accesses(DMA, _NONE, _NONE, self._dma_words(instruction), _NONE, _NONE)
        else:
            assert isinstance(instruction, DmaOut)
            a = Accesses(DMA, instruction.src + np.arange(instruction.words), _NONE, _NONE, _NONE, _NONE)
        for words in (a.load, a.residual, a.store, a.keep):
            self._bounded(words, 0, self.config.activation_words, "activation", where)
        for words in (a.operand_load, a.operand_store):
            self._bounded(words, self.ring_words, self.config.operand_words, "K/V", where)
        return a

    @staticmethod
    def _bounded(words: Words, low: int, high: int, what: str, where: str) -> None:
        if words.size and (words.min() < low or words.max() >= high):
            raise HazardError(f"{what} words {words.min()} … {words.max()} leave {low} … {high - 1}", where=where)

    @staticmethod
    def _rows(addr: int, stride: int, rows: int | Words, words: int) -> Words:
        """Words of so many rows, or of the rows of these numbers."""
        numbers = np.arange(rows) if isinstance(rows, int) else rows
        return np.unique(addr + numbers[:, None] * stride + np.arange(words))

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
        loaded = self.queues.tokens if n.gather else n.n_rows
        finished = self.queues.tokens if n.scatter else n.n_rows
        written = 0 if n.route else wide * n.key_tile
        mark = self.queues.mark(n) if of_queue(n) else 0
        kept = self._rows(n.keep_dst, n.keep_stride, n.n_rows, layout.ceil_div(n.length, c.columns))
        return Accesses(
            COMPUTE,
            self._rows(n.src, n.src_stride, loaded, layout.row_words(n.length, c.columns, in_bits)),
            self._rows(n.res, n.dst_stride, finished, 2 * n.key_tile) if n.residual else _NONE,
            self._rows(n.dst, n.dst_stride, finished, written),
            _NONE,
            np.unique(np.concatenate([keys.ravel() // size, values.ravel() // size])),
            kept if n.keep else _NONE,
            load_mark=0 if n.gather else mark,
            store_mark=0 if n.scatter else mark,
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
        blocks: list[_Block] = []
        readers: list[_Reader] = []
        gate = retired = 0  # retired count of the last gate, and before the instruction
        for number, i in enumerate(instructions):
            where = f"instruction {number} ({i.mnemonic()})"
            if isinstance(i, Stream):
                first = dict(streamed)
                for ring in self.size:
                    streamed[ring] += getattr(i, f"{ring}_words")
                blocks.append(_Block(number, i, first, dict(streamed)))
            elif isinstance(i, Linear):
                needs = self._needs(i)
                for ring, words in needs.items():
                    if words > self.size[ring]:
                        raise HazardError(f"needs {words} {ring} words; its ring has {self.size[ring]}", where=where)
                    if released[ring] + words > streamed[ring]:
                        raise HazardError(f"needs {ring} words that no STREAM before it brings", where=where)
                end = {ring: released[ring] + words for ring, words in needs.items()}
                readers.append(_Reader(number, of_queue(i), i.queue, dict(released), end, gate, retired))
                if i.release:
                    released = end
                freed_at.append((number, dict(released)))
            if isinstance(i, Linear) and i.route:
                gate = retired + 1
            retired += i.retires
        for ring in self.size:
            if released[ring] != streamed[ring]:
                raise HazardError(f"{streamed[ring] - released[ring]} {ring} words are never released")
        self._predicated(blocks, readers)
        self._progress(blocks, freed_at)
        self._decided(blocks, readers, [n for n, i in enumerate(instructions) if i.retires])

    def _predicated(self, blocks: list["_Block"], readers: list["_Reader"]) -> None:
        """The predicated STREAMs are those of the LINEARs over queues, one by one; nobody else takes their words."""
        predicated = [b for b in blocks if b.stream.predicated]
        for block, reader in zip_longest(predicated, [r for r in readers if r.of_queue]):
            if block is None:
                raise HazardError("has no predicated STREAM", where=f"instruction {reader.number} (LINEAR)")
            where, stream = f"instruction {block.number} (STREAM)", block.stream
            if reader is None:
                raise HazardError("is predicated, and there is no LINEAR over a queue for it", where=where)
            same = all((block.first[r], block.end[r]) == (reader.first[r], reader.end[r]) for r in ("post", "weight"))
            if stream.queue != reader.queue or stream.norm_words or not same:
                raise HazardError(f"does not bring what instruction {reader.number} takes for its queue", where=where)
            if not reader.gate <= stream.wait <= reader.retired:
                raise HazardError(
                    f"waits for {stream.wait} instructions; its queue is complete after {reader.gate}, and "
                    f"{reader.retired} stand before its LINEAR", where=where,
                )  # fmt: skip
        for ring in self.size:
            # Ranges of words of a ring, both in their order.
            following = [(b.first[ring], b.end[ring], b.number) for b in predicated if b.end[ring] > b.first[ring]]
            for reader in readers:
                while following and following[0][1] <= reader.first[ring]:
                    following.pop(0)
                if following and not reader.of_queue and reader.end[ring] > following[0][0]:
                    raise HazardError(
                        f"takes {ring} words of a predicated STREAM, instruction {following[0][2]}",
                        where=f"instruction {reader.number} (LINEAR)",
                    )  # fmt: skip

    def _progress(self, blocks: list["_Block"], freed: list[tuple[int, dict[str, int]]]) -> None:
        """When the fetch unit waits at STREAM m for a place in the queue, the streamer is at block
        m - STREAM_QUEUE_DEPTH at the latest; the LINEARs that must end before that block fits have to stand
        before STREAM m, or nothing moves again. Blocks that an empty queue leaves out only make room."""
        for m in range(STREAM_QUEUE_DEPTH, len(blocks)):
            number, words = blocks[m].number, blocks[m - STREAM_QUEUE_DEPTH].end
            for ring, size in self.size.items():
                excess = words[ring] - size
                last = next((n for n, done in freed if done[ring] >= excess), None)
                if excess > 0 and (last is None or last > number):
                    raise HazardError(
                        f"may block for ever: the {ring} ring has room for the stream in progress only after "
                        f"instruction {last}",
                        where=f"instruction {number} (STREAM)", mend="stream later",
                    )  # fmt: skip

    @staticmethod
    def _decided(blocks: list["_Block"], readers: list["_Reader"], retiring: list[int]) -> None:
        """In the same way, what a predicated STREAM waits for must stand before the STREAM at which fetch then waits:
        its gate, unless it is speculative, and the LINEAR that takes the bit of the BROUGHT_QUEUE_DEPTH-th predicated
        STREAM before it. What these need was streamed before, since LINEARs take their words in order."""
        queued = [r.number for r in readers if r.of_queue]
        count = 0  # predicated STREAMs before the block
        for m, block in enumerate(blocks):
            if not block.stream.predicated:
                continue
            needs = []
            if not block.stream.speculative and block.stream.wait:
                needs.append(retiring[block.stream.wait - 1])
            if count >= BROUGHT_QUEUE_DEPTH:
                needs.append(queued[count - BROUGHT_QUEUE_DEPTH])
            count += 1
            fetch = m + STREAM_QUEUE_DEPTH
            if fetch < len(blocks) and needs and max(needs) > blocks[fetch].number:
                raise HazardError(
                    f"may block for ever: the predicated STREAM in progress, instruction {block.number}, goes on only "
                    f"after instruction {max(needs)}",
                    where=f"instruction {blocks[fetch].number} (STREAM)", mend="stream later",
                )  # fmt: skip


@dataclass(frozen=True)
class _Block:
    """A STREAM with the words of each ring that are streamed before it and with it."""

    number: int
    stream: Stream
    first: dict[str, int]
    end: dict[str, int]


@dataclass(frozen=True)
class _Reader:
    """A LINEAR with the words of each ring that it takes, numbered as the STREAMs bring them."""

    number: int
    of_queue: bool
    queue: int
    first: dict[str, int]
    end: dict[str, int]
    gate: int  #: retired count at which the last gate before it is done
    retired: int  #: instructions before it that retire
