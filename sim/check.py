"""Holds one computation to another: every piece of every tensor, in the order in which the program writes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.config import AcceleratorConfig
from moevit.errors import MismatchError
from moevit.isa import Instruction
from moevit.isa.disassemble import disassemble
from moevit.program import DTYPES, MEMORY_ACTIVATION, MEMORY_QUEUE, Output, Piece, Program, Task, Tensor
from moevit.sim import pieces
from moevit.sim.isa import Memories
from moevit.sim.reference import Tensors

Values = Mapping[tuple[str, Piece], NDArray]  #: by tensor and piece: [B, rows, channels]


@dataclass(frozen=True)
class Place:
    """What is compared: back-end and the number of the batch's first image, for messages."""

    backend: str
    first_image: int = 0

    def image(self, index: int) -> str:
        return f"{self.backend}, image {self.first_image + index}"


def check_values(program: Program, task: Task, got: Values, want: Tensors, place: Place) -> int:
    """Compare every piece of every tensor with the reference; returns how many elements were equal.

    Of rows of a queue only as many are compared as the queue has tokens.

    Raises
    ------
    MismatchError : the first difference in program order, of its first image
    """
    instructions = program.instructions(task)
    ordered = sorted(
        ((p.instruction, i, t, p) for i, t in enumerate(task.tensors) for p in t.pieces), key=lambda e: e[:2]
    )
    compared = 0
    for number, _, tensor, piece in ordered:
        mine, reference = got[tensor.name, piece], want[tensor.name][:, piece.row : piece.row + piece.rows]
        means = _meaning(task, tensor, piece, want)
        differs = mine != reference
        if means is not None:
            differs &= means
        if differs.any():
            image, row, channel = (int(n) for n in np.argwhere(differs)[0])
            raise MismatchError(
                tensor=tensor.name, index=(piece.row + row, channel), got=int(mine[image, row, channel]),
                want=int(reference[image, row, channel]), instruction=_named(instructions, number),
                where=place.image(image) + _entry(tensor, piece.row + row, channel),
            )  # fmt: skip
        compared += mine.size if means is None else int(means.sum()) * mine.shape[-1]
    return compared


def _meaning(task: Task, tensor: Tensor, piece: Piece, want: Tensors) -> NDArray[np.bool_] | None:
    """Which rows [B, rows, 1] of a piece mean something, when these depend on a queue."""
    if not tensor.gate:
        return None
    layer = next(x for x in task.layers if x.kind == "gather" and piece.instruction in x.instructions)
    scores = want[tensor.gate][:, layer.input_row : layer.input_row + layer.rows, tensor.expert]
    count = np.count_nonzero(scores, axis=1)
    return (np.arange(piece.row, piece.row + piece.rows) < count[:, None])[..., None]


def _entry(tensor: Tensor, row: int, channel: int) -> str:
    """What an element is of, where row and channel do not say it."""
    if tensor.memory == MEMORY_QUEUE:
        token = tensor.addr + (row % tensor.window if tensor.window else row)
        return f", token {token}, expert {channel}"
    return f", a row of expert {tensor.expert}" if tensor.gate else ""


def check_outputs(program: Program, task: Task, got: NDArray[np.uint8], want: Tensors, place: Place) -> int:
    """Compare every output in the output buffers [B, output bytes] with the reference, as :func:`check_values`."""
    compared = 0
    for output in task.outputs:
        mine = output_values(task, output, got, program.config)
        reference = want[output.tensor][:, : output.rows, : output.channels]
        if not np.array_equal(mine, reference):
            image, row, channel = (int(n) for n in np.argwhere(mine != reference)[0])
            raise MismatchError(
                tensor=f"{output.name} (output buffer)", index=(row, channel), got=int(mine[image, row, channel]),
                want=int(reference[image, row, channel]), where=place.image(image),
            )  # fmt: skip
        compared += mine.size
    return compared


def output_values(task: Task, output: Output, data: NDArray[np.uint8], config: AcceleratorConfig) -> NDArray:
    """An output's integers [B, rows, channels] from output buffers [B, output bytes]."""
    tensor = task.tensor(output.tensor)
    bits, signed = DTYPES[tensor.dtype]
    pitch = tensor.stride * config.columns
    row = layout.row_words(tensor.channels, config.columns, bits) * config.columns
    index = output.offset + np.arange(output.rows)[:, None] * pitch + np.arange(row)
    return layout.unpack_rows(data[:, index], output.channels, config.columns, bits, signed)


class Collector:
    """Keeps every piece of every tensor as the isa back-end writes it: the hook to run it with."""

    def __init__(self, task: Task, config: AcceleratorConfig) -> None:
        self.config = config
        self.values: dict[tuple[str, Piece], NDArray] = {}
        self._by_instruction: dict[int, list] = {}
        for tensor in task.tensors:
            for piece in tensor.pieces:
                self._by_instruction.setdefault(piece.instruction, []).append((tensor, piece))

    def __call__(self, number: int, memories: Memories) -> None:
        for tensor, piece in self._by_instruction.get(number, ()):
            first, end = pieces.extent(tensor, piece, self.config)
            size = pieces.word_bytes(tensor, self.config)
            data = _bytes(memories, tensor.memory)[:, first * size : end * size]
            self.values[tensor.name, piece] = pieces.extract(tensor, piece, data, self.config)


def _bytes(memories: Memories, memory: str) -> NDArray[np.uint8]:
    """A memory of the isa back-end, [B, bytes]."""
    if memory == MEMORY_QUEUE:
        return memories.queue.astype("<u2").view(np.uint8).reshape(len(memories.queue), -1)
    return memories.activation if memory == MEMORY_ACTIVATION else memories.operand


def check_bytes(
    name: str, got: NDArray[np.uint8], want: NDArray[np.uint8], word_bytes: int, where: Callable[[int], str]
) -> None:
    """Compare memories [B, bytes] as a whole, for programs of which no tensors are known.

    Raises
    ------
    MismatchError : the first difference, indexed by (word, byte); ``where(image)`` names the image
    """
    if not np.array_equal(got, want):
        image, at = (int(n) for n in np.argwhere(got != want)[0])
        raise MismatchError(
            tensor=name, index=divmod(at, word_bytes), got=int(got[image, at]), want=int(want[image, at]),
            where=where(image),
        )  # fmt: skip


def _named(instructions: Sequence[Instruction], number: int) -> str:
    return f"{number} ({disassemble(instructions[number])})"
