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

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.accesses import Accesses, Words, accesses, empty, first_of
from moevit.compiler.queue_hazards import Queues, of_queue
from moevit.compiler.ring_hazards import Rings
from moevit.config import AcceleratorConfig
from moevit.errors import HazardError
from moevit.isa import Begin, DmaIn, DmaOut, End, Instruction, Linear, NormMode, Retiring, Stream
from moevit.isa.formats import BLOCK_BYTES, DmaSource
from moevit.program import Program, Task


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
    Rings(config, begin.ring_words).check(instructions)


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
        self.in_load = np.zeros(config.activation_words, np.bool_)  # scratch
        self.in_operand_load = np.zeros(config.operand_words, np.bool_)
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

    def accesses(self, instruction: Instruction, where: str) -> Accesses:
        """The words that the next instruction touches, which all lie inside their memories."""
        return accesses(instruction, self.config, self.ring_words, self.queues, where)

    def smallest_wait(self, a: Accesses) -> int:
        """The least ``wait`` that is enough for the next instruction, but for a queue that it may need."""
        counts = [self.written[a.load], self.written[a.residual], self.operand_written[a.operand_load],
                  self.written[a.keep], self.added[a.keep]]  # fmt: skip
        other = 1 - a.engine
        for words in (a.store, a.keep):
            foreign = self.writer_engine[words] == other
            counts += [self.read[other, words], self.written[words] * foreign]
        return max(int(c.max(initial=0)) for c in counts)

    def _ordered(self, a: Accesses, wait: int, done: int, where: str) -> None:
        for what, words in (("loads", a.load), ("adds", a.residual)):
            self._require_written(self.written, words, wait, f"{what} activation", where)
        self._require_written(self.operand_written, a.operand_load, wait, "reads operand", where)
        for words, mark in ((a.load, a.load_mark), (a.residual, a.store_mark)):
            marks = self.mark[words]
            word = first_of(words, (marks != 0) & (marks != mark))
            if word is not None:
                raise HazardError(f"reads activation word {word}, which holds rows of a queue", where=where)
        for words in (a.store, a.keep):
            if self._overlap(a.load, words, self.in_load):
                raise HazardError("writes activation words that it loads itself", where=where)
            self._overwrites(words, a.engine, wait, where)
        if self._overlap(a.operand_load, a.operand_store, self.in_operand_load):
            raise HazardError("writes operand words that it reads itself", where=where)
        word = first_of(a.keep, np.maximum(self.written[a.keep], self.added[a.keep]) > wait)
        if word is not None:
            raise HazardError(f"keeps activation word {word}, which POST may still add or write", where=where)
        for words, mark in ((a.keep, 0), (a.store, a.store_mark)):
            self.written[words] = done
            self.writer_engine[words] = a.engine
            self.mark[words] = mark
        self.operand_written[a.operand_store] = done
        for words in (a.load, a.residual):
            self.read[a.engine, words] = done
        self.added[a.residual] = done

    def _overwrites(self, words: Words, engine: int, wait: int, where: str) -> None:
        """Nothing that the other engine still reads or writes is overwritten."""
        other = 1 - engine
        word = first_of(words, self.read[other, words] > wait)
        if word is not None:
            raise HazardError(
                f"overwrites activation word {word} before its reader, retired as number {self.read[other, word]}, "
                "is done", where=where, mend=f"it waits for {wait}",
            )  # fmt: skip
        word = first_of(words, (self.writer_engine[words] == other) & (self.written[words] > wait))
        if word is not None:
            raise HazardError(f"activation word {word} may still be written by the other engine", where=where)

    @staticmethod
    def _overlap(a: Words, b: Words, scratch: NDArray[np.bool_]) -> bool:
        """Whether two sets of words have one in common; ``scratch`` is False for each word, before and after."""
        if empty(a) or empty(b):
            return False
        if isinstance(a, slice) and isinstance(b, slice):
            return max(a.start, b.start) < min(a.stop, b.stop)
        scratch[a] = True
        found = bool(scratch[b].any())
        scratch[a] = False
        return found

    @staticmethod
    def _require_written(written: NDArray[np.int64], words: Words, wait: int, what: str, where: str) -> None:
        counts = written[words]
        word = first_of(words, counts == 0)
        if word is not None:
            raise HazardError(f"{what} word {word}, which nothing has written", where=where)
        word = first_of(words, counts > wait)
        if word is not None:
            raise HazardError(
                f"{what} word {word}, written by the instruction that retires as number {written[word]}",
                where=where, mend=f"it waits for {wait} only",
            )  # fmt: skip

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
