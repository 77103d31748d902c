"""Activation memory as the tests' background process, with a ready that comes and goes."""

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import ACTIVATION_READ_LATENCY, PARAMETER_READ_LATENCY


class ActivationModel:
    """Words of C bytes, filled by the test; ``process`` answers a reader.

    ``reads`` counts the accepted reads; ``data`` is anything while ``data_valid`` is low.
    """

    def __init__(self, config: AcceleratorConfig, *, stall: float = 0.0, seed: int = 0):
        self.columns = config.columns
        rng = np.random.default_rng(seed)
        self.words = rng.integers(0, 256, (config.activation_words, self.columns)).astype(np.uint8)
        self.stall, self.seed, self.reads = stall, seed, 0

    def put8(self, address: int, row: NDArray[Any]) -> None:
        """Store an 8-bit row; the rest of its last word stays random."""
        words = -(-len(row) // self.columns)
        self.words[address : address + words].reshape(-1)[: len(row)] = np.asarray(row).astype(np.uint8)

    def put16(self, address: int, row: NDArray[Any]) -> None:
        """Store an int16 row at an even address: low bytes and high bytes in turn."""
        assert address % 2 == 0
        for i in range(0, len(row), self.columns):
            part = np.asarray(row[i : i + self.columns]).astype("<u2")
            word = address + 2 * (i // self.columns)
            self.words[word, : len(part)], self.words[word + 1, : len(part)] = part & 255, part >> 8

    def process(self, act: Any) -> Any:
        async def serve(ctx: Any) -> None:
            rng = random.Random(self.seed)
            queue: list[int | None] = [None] * (ACTIVATION_READ_LATENCY - 1)
            ctx.set(act.ready, 1)
            while True:
                *_, valid, was_ready, pair = await ctx.tick().sample(act.valid, act.ready, act.pair)
                queue.append(pair if valid and was_ready else None)
                self.reads += bool(valid and was_ready)
                answer = queue.pop(0)
                words = (
                    rng.randbytes(2 * self.columns)
                    if answer is None
                    else self.words[2 * answer : 2 * answer + 2].tobytes()
                )
                ctx.set(act.data, int.from_bytes(words, "little"))
                ctx.set(act.data_valid, answer is not None)
                ctx.set(act.ready, rng.random() >= self.stall)

        return serve


def parameter_memory(norm: Any, words: list[int]) -> Any:
    """A process that answers a ``MemoryReadSignature`` from ``words``, which may change."""

    async def serve(ctx: Any) -> None:
        queue = [0] * (PARAMETER_READ_LATENCY - 1)
        while True:
            *_, address = await ctx.tick().sample(norm.addr)
            queue.append(address)
            ctx.set(norm.data, words[queue.pop(0)])

    return serve
