"""Experts' queues over a batch, and what a run did with them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.isa import Instruction, Linear, Stream
from moevit.isa.formats import BLOCK_BYTES
from moevit.program import Program, Task

Indices = NDArray[np.int64]
Lengths = Mapping[int, Indices]  #: by a gate's program number: entries of each queue as it retires, [B, MAX_EXPERTS]


def entries(scores: NDArray) -> tuple[Indices, Indices, Indices]:
    """The entries of a queue from its scores [B, tokens]: image, place in the queue and token of each.

    Tokens are appended in their order, so that is the queue's.
    """
    image, token = np.nonzero(scores)
    first = np.searchsorted(image, image)
    return image, np.arange(len(image)) - first, token


def gates(instructions: Sequence[Instruction]) -> dict[int, Linear]:
    """The gates, by program number."""
    return {n: i for n, i in enumerate(instructions) if isinstance(i, Linear) and i.route}


def join_lengths(batches: Sequence[Lengths]) -> Lengths:
    """The lengths of several batches as one."""
    return {gate: np.concatenate([batch[gate] for batch in batches]) for gate in batches[0]}


def layer_queues(program: Program, task: Task, lengths: Lengths) -> dict[str, list[list[int]]]:
    """By route layer, for each image: how many tokens went to each expert."""
    instructions = program.instructions(task)
    out = {}
    for layer in task.layers:
        if layer.kind != "route":
            continue
        linears = [instructions[n] for n in layer.instructions]
        # A gate's queues are counted as they are last, before the next one empties them.
        ends = [n for n, after in zip(layer.instructions, [*linears[1:], None], strict=True)
                if after is None or after.clear]  # type: ignore[attr-defined]
        experts = linears[0].experts  # type: ignore[attr-defined]
        total = np.sum([lengths[n] for n in ends], axis=0)
        out[layer.name] = total[:, :experts].tolist()
    return out


def blocks(stream: Stream, config: AcceleratorConfig) -> list[tuple[int, int]]:
    """First and end byte in the image of what a STREAM reads."""
    parts = (
        (stream.norm_offset, stream.norm_words * config.norm_word_bytes),
        (stream.post_offset, stream.post_words * config.post_word_bytes),
        (stream.weight_offset, stream.weight_words * config.operand_word_bytes),
    )
    return [(offset * BLOCK_BYTES, offset * BLOCK_BYTES + size) for offset, size in parts if size]


class ExpertBlocks:
    """The image bytes of predicated STREAMs, and which of them a run needed.

    A block may be read by several STREAMs, predicated or not, so what was read of it is shared out: first to those
    that need it, and what is left was read on suspicion.
    """

    def __init__(self, config: AcceleratorConfig, instructions: Sequence[Instruction]) -> None:
        self._readers: dict[tuple[int, int], list[tuple[int, int]]] = {}  # block -> (gate, queue) of each
        self._always: dict[tuple[int, int], int] = {}  # block -> STREAMs that always read it
        predicated, queued, gate = [], [], -1
        for number, i in enumerate(instructions):
            if isinstance(i, Stream):
                if i.predicated:
                    predicated.append(i)
                else:
                    for block in blocks(i, config):
                        self._always[block] = self._always.get(block, 0) + 1
            elif isinstance(i, Linear) and i.route:
                gate = number
            elif isinstance(i, Linear) and (i.gather or i.scatter):
                queued.append((gate, i.queue))
        for stream, reader in zip(predicated, queued, strict=False):
            for block in blocks(stream, config):
                self._readers.setdefault(block, []).append(reader)
        self._readers = dict(sorted(self._readers.items()))

    @property
    def regions(self) -> list[tuple[int, int]]:
        """First and end byte of each block, one after the other."""
        return list(self._readers)

    def needed(self, lengths: Lengths) -> Indices:
        """Bytes that the experts that have tokens need, for each image: [B, regions]."""
        columns = [
            sum((lengths[gate][:, queue] > 0) * (end - first) for gate, queue in readers)
            for (first, end), readers in self._readers.items()
        ]
        return np.stack(columns, axis=1).astype(np.int64) if columns else np.zeros((1, 0), np.int64)

    def speculative(self, read: Indices, needed: Indices) -> Indices:
        """Of bytes read [B, regions], those that no expert needed: [B, regions]."""
        always = [self._always.get((first, end), 0) * (end - first) for first, end in self._readers]
        return np.maximum(read - needed - np.array(always, np.int64), 0)
