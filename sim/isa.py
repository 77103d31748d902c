"""The instruction-level simulator: executes the encoded program on byte-addressed memories, a batch at a time.

It is in order and untimed, so it says what a program means; that the pipelined machine may run it as it likes
is the hazard checker's business. Vectorised over the batch and over whole instructions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from moevit import layout
from moevit.config import AcceleratorConfig
from moevit.errors import SimulationError
from moevit.isa import Attention, DmaIn, DmaOut, Instruction, Linear, NormMode, OutputType, Stream
from moevit.isa.formats import BLOCK_BYTES, DmaSource
from moevit.numerics.fixed import requantise, saturate
from moevit.numerics.matmul import int_matmul
from moevit.numerics.post import OUTPUT_BITS, finish
from moevit.numerics.route import MAX_EXPERTS, RouteOrder, route
from moevit.sim.experts import entries, gates
from moevit.sim.reference import attend, normalise_rows

Bytes = NDArray[np.uint8]


@dataclass
class Memories:
    """What the machine holds for a batch of B images: arrays of bytes, and the experts' queues."""

    activation: Bytes  #: [B, activation words * C]
    operand: Bytes  #: [B, operand words * C * K]; only the K/V region is used
    output: Bytes  #: [B, output bytes]
    queue: NDArray[np.uint16]  #: [B, tokens, MAX_EXPERTS]: a token's score in each expert's queue, 0 if it is not in it
    #: by the number of each gate that has retired: how many entries each queue had then, [B, MAX_EXPERTS]
    lengths: dict[int, NDArray[np.int64]] = field(default_factory=dict)


Hook = Callable[[int, Memories], None]


class IsaSimulator:
    """Prepared once per program; :meth:`run` takes a batch.

    Parameters
    ----------
    config, image : the machine and the program and weight image
    instructions : the decoded program, BEGIN first
    output_bytes : size of the output buffer

    Raises
    ------
    SimulationError : the program does what the machine answers with an error code
    """

    def __init__(
        self, config: AcceleratorConfig, image: bytes, instructions: list[Instruction], output_bytes: int
    ) -> None:
        self.config, self.image, self.output_bytes = config, image, output_bytes
        self.instructions = instructions
        self._gates = gates(instructions)
        self._steps: list[tuple[int, Callable[[Memories, Bytes], None]]] = []
        self._rings = {part: _Ring() for part in ("weight", "post", "norm")}
        self._tokens = 0  # in the queues, at most
        self._next_token = 0  # the first that is not in the queues, nor before one that is
        self._image = np.frombuffer(image, np.uint8)
        prepare = {Stream: self._stream, DmaIn: self._dma_in, DmaOut: self._dma_out, Linear: self._linear,
                   Attention: self._attention}  # fmt: skip
        for number, instruction in enumerate(instructions):
            handler = prepare.get(type(instruction))
            if handler is None:
                continue  # BEGIN, END
            try:
                step = handler(instruction)  # type: ignore[operator]
            except (IndexError, ValueError) as error:
                raise SimulationError(str(error), where=f"instruction {number}") from error
            if step is not None:
                self._steps.append((number, step))

    def memories(self, batch: int) -> Memories:
        """Cleared memories for ``batch`` images."""
        c = self.config
        return Memories(
            np.zeros((batch, c.activation_words * c.columns), np.uint8),
            np.zeros((batch, c.operand_words * c.operand_word_bytes), np.uint8),
            np.zeros((batch, self.output_bytes), np.uint8),
            np.zeros((batch, self._tokens, MAX_EXPERTS), np.uint16),
        )

    def run(self, inputs: Bytes, after: Hook | None = None, memories: Memories | None = None) -> Memories:
        """Execute for input buffers [B, input bytes]; ``after(number, memories)`` is called as each retires."""
        state = self.memories(len(inputs)) if memories is None else memories
        for number, step in self._steps:
            try:
                step(state, inputs)
            except IndexError as error:
                raise SimulationError(str(error), where=f"instruction {number}") from error
            if number in self._gates:
                state.lengths[number] = (state.queue != 0).sum(axis=1)
            if after is not None:
                after(number, state)
        return state

    def _part(self, offset: int, words: int, size: int) -> Bytes:
        start = offset * BLOCK_BYTES
        if start + words * size > len(self.image):
            raise IndexError("STREAM reads outside the image")
        return layout.unstripe(memoryview(self.image)[start:], words, size, self.config.weight_ports)

    def _stream(self, s: Stream) -> None:
        c = self.config
        self._rings["norm"].push(self._part(s.norm_offset, s.norm_words, c.norm_word_bytes))
        self._rings["post"].push(self._part(s.post_offset, s.post_words, c.post_word_bytes))
        self._rings["weight"].push(self._part(s.weight_offset, s.weight_words, c.operand_word_bytes))

    def _dma_in(self, d: DmaIn) -> Callable[[Memories, Bytes], None]:
        loops = (
            (d.count0, d.src_stride0, d.dst_stride0),
            (d.count1, d.src_stride1, d.dst_stride1),
            (d.segments, d.segment_bytes, d.dst_segment),
            (d.segment_bytes, 1, 1),
        )
        src, dst = np.array(d.offset), np.array(d.dst)
        for count, src_stride, dst_stride in loops:
            src = src[..., None] + np.arange(count) * src_stride
            dst = dst[..., None] + np.arange(count) * dst_stride
        src, dst = src.reshape(-1), dst.reshape(-1)
        if dst.max() >= self.config.activation_words * self.config.columns:
            raise IndexError("DMA_IN writes outside the activation memory")
        from_image = d.source == DmaSource.IMAGE
        if from_image and src.max() >= len(self.image):
            raise IndexError("DMA_IN reads outside the image")

        def step(state: Memories, inputs: Bytes) -> None:
            if not from_image and src.max() >= inputs.shape[1]:
                raise IndexError("DMA_IN reads outside the input buffer")
            state.activation[:, dst] = self._image[src] if from_image else inputs[:, src]

        return step

    def _dma_out(self, d: DmaOut) -> Callable[[Memories, Bytes], None]:
        columns = self.config.columns
        size = d.words * columns
        if d.offset + size > self.output_bytes:
            raise IndexError("DMA_OUT writes outside the output buffer")

        def step(state: Memories, inputs: Bytes) -> None:
            state.output[:, d.offset : d.offset + size] = state.activation[:, d.src * columns :][:, :size]

        return step

    def _rows(self, addr: int, stride: int, rows: int, words: int) -> Callable[[Memories], Bytes]:
        """Gives rows of the activation memory as a view [B, rows, words * C] of it."""
        c = self.config
        if addr + (rows - 1) * stride + words > c.activation_words:
            raise IndexError("a row lies outside the activation memory")
        first, pitch, size = addr * c.columns, stride * c.columns, words * c.columns

        def view(state: Memories) -> Bytes:
            memory = state.activation
            return as_strided(memory[:, first:], (len(memory), rows, size), (memory.strides[0], pitch, 1))

        return view

    def _linear(self, n: Linear) -> Callable[[Memories, Bytes], None]:
        product = _Product(n, self.config, self._rings)
        if n.gather or n.scatter:
            return self._expert(n, product)
        source = self._rows(n.src, n.src_stride, n.n_rows, product.row_words)
        kept = None
        if n.keep:
            if n.norm == NormMode.NONE:
                raise IndexError("LINEAR keeps rows that are already in memory")
            kept = self._rows(n.keep_dst, n.keep_stride, n.n_rows, layout.ceil_div(n.length, self.config.columns))
        finish_rows = self._gate(n) if n.route else self._write(n)

        def step(state: Memories, inputs: Bytes) -> None:
            x = product.load(source(state))
            if kept is not None:
                kept(state)[...] = layout.pack_rows(x, self.config.columns, 8)
            finish_rows(state, product.mid(x))

        return step

    def _write(self, n: Linear) -> Callable[[Memories, NDArray], None]:
        """POST of an ordinary LINEAR: rows and K and V from ``mid`` [B, n_rows, tiles * C]."""
        c = self.config
        key, value, end = (t * c.columns for t in (n.key_tile, n.value_tile, n.tiles))
        out_bits, _ = OUTPUT_BITS[OutputType(n.out_type)]
        words = n.key_tile * (out_bits // 8)
        target = self._rows(n.dst, n.dst_stride, n.n_rows, words) if key else None
        residual = self._rows(n.res, n.dst_stride, n.n_rows, 2 * n.key_tile) if n.residual and key else None
        token = np.arange(n.token, n.token + n.n_rows)[:, None]
        keys = layout.key_address(token, np.arange(value - key), n.key_base, n.key_stride, c)
        values = layout.value_address(token, np.arange(end - value), n.value_base, n.value_stride, c)
        self._check_operand(keys)
        self._check_operand(values)

        def write(state: Memories, mid: NDArray) -> None:
            if target is not None:
                added = None
                if residual is not None:
                    added = layout.unpack_rows(residual(state), key, c.columns, 16, True)
                y = finish(mid[..., :key], n, added)
                target(state)[...] = layout.pack_rows(y, c.columns, out_bits)
            if value > key:
                state.operand[:, keys] = saturate(mid[..., key:value], 8).astype(np.int8).view(np.uint8)
            if end > value:
                state.operand[:, values] = saturate(mid[..., value:], 8).astype(np.int8).view(np.uint8)

        return write

    def _gate(self, n: Linear) -> Callable[[Memories, NDArray], None]:
        """POST of a gate: tokens into the queues, from ``mid`` [B, n_rows, tiles * C]."""
        if not 1 <= n.experts <= min(MAX_EXPERTS, n.tiles * self.config.columns) or not 1 <= n.top_k <= n.experts:
            raise IndexError(f"a gate of {n.experts} experts, {n.top_k} per token, with {n.tiles} column tiles")
        # The queues are in the order of appending, the array here in that of the tokens.
        if n.token < self._next_token and not n.clear:
            raise IndexError(f"token {n.token} is appended behind token {self._next_token - 1}")
        self._next_token = n.token + n.n_rows
        self._tokens = max(self._tokens, self._next_token)
        rows = slice(n.token, n.token + n.n_rows)
        limit = self.config.queue_entries

        def append(state: Memories, mid: NDArray) -> None:
            if n.clear:
                state.queue[:] = 0
            state.queue[:, rows, : n.experts] = route(
                mid[..., : n.experts], n.top_k, RouteOrder(n.route), n.threshold
            )
            most = np.count_nonzero(state.queue, axis=(1, 2)).max(initial=0)
            if most > limit:
                raise IndexError(f"{most} tokens of all experts; the queues hold {limit}")

        return append

    def _expert(self, n: Linear, product: "_Product") -> Callable[[Memories, Bytes], None]:
        """A LINEAR over a queue: the rows of all images of the batch as one matrix."""
        c = self.config
        out_bits, _ = OUTPUT_BITS[OutputType(n.out_type)]
        words = n.key_tile * (out_bits // 8)
        if n.norm != NormMode.NONE or not n.key_tile == n.value_tile == n.tiles:
            raise IndexError("a LINEAR over a queue has neither LayerNorm nor K and V")

        def step(state: Memories, inputs: Bytes) -> None:
            image, place, token = entries(state.queue[:, :, n.queue])
            if not place.size:
                return
            if place.max() >= n.n_rows:
                raise IndexError(f"queue {n.queue} holds {place.max() + 1} tokens, more than {n.n_rows}")
            memory = state.activation.reshape(len(state.activation), -1, c.columns)

            def rows(addr: int, row: NDArray, stride: int, size: int) -> tuple[NDArray, NDArray]:
                return image[:, None], addr + row[:, None] * stride + np.arange(size)

            source = rows(n.src, token if n.gather else place, n.src_stride, product.row_words)
            row = token if n.scatter else place
            mid = product.mid(product.load(memory[source].reshape(len(image), -1)))
            added = score = None
            if n.residual:
                data = memory[rows(n.res, row, n.dst_stride, 2 * n.tiles)].reshape(len(image), -1)
                added = layout.unpack_rows(data, n.tiles * c.columns, c.columns, 16, True)
            if n.scatter:
                score = state.queue[image, token, n.queue][:, None]
            y = layout.pack_rows(finish(mid, n, added, score), c.columns, out_bits)
            memory[rows(n.dst, row, n.dst_stride, words)] = y.reshape(len(image), words, c.columns)

        return step

    def _check_operand(self, addresses: NDArray[np.int64]) -> None:
        if not addresses.size:
            return
        begin = self.instructions[0]
        words = addresses // self.config.operand_word_bytes
        if words.min() < begin.ring_words or words.max() >= self.config.operand_words:  # type: ignore[attr-defined]
            raise IndexError("a K or V row lies outside the K/V region")

    def _attention(self, a: Attention) -> Callable[[Memories, Bytes], None]:
        c = self.config
        tiles = layout.ceil_div(a.head_dim, c.columns)
        padded = tiles * c.columns
        source = self._rows(a.src, a.src_stride, a.n_rows, a.heads * tiles)
        target = self._rows(a.dst, a.dst_stride, a.n_rows, a.heads * tiles)
        token = np.arange(a.n_keys)[:, None]
        channel = np.arange(a.heads * padded)
        keys = layout.key_address(token, channel, a.key_base, a.key_stride, c)
        values = layout.value_address(token, channel, a.value_base, a.value_stride, c)
        lanes = layout.ceil_div(a.head_dim, c.depth) * c.depth  # whole steps; compilers zero Q's padding lanes
        keys = keys.reshape(a.n_keys, a.heads, padded)[..., :lanes]
        if max(keys.max(), values.max()) >= c.operand_words * c.operand_word_bytes:
            raise IndexError("a K or V row lies outside the operand memory")

        def step(state: Memories, inputs: Bytes) -> None:
            q = source(state).view(np.int8).reshape(-1, a.n_rows, a.heads, padded)
            k = state.operand[:, keys].view(np.int8)
            v = state.operand[:, values].view(np.int8).reshape(-1, a.n_keys, a.heads, padded)
            y = attend(q[..., :lanes].swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), a, c.columns)
            flat = y.swapaxes(1, 2).reshape(len(y), a.n_rows, -1)
            target(state)[...] = flat.astype(np.int8).view(np.uint8)

        return step


class _Product:
    """A LINEAR up to POST's first stage, with the words that it takes from the rings."""

    def __init__(self, n: Linear, config: AcceleratorConfig, rings: dict[str, "_Ring"]) -> None:
        self.linear, self.columns = n, config.columns
        release = bool(n.release)
        words = rings["weight"].take(n.tiles * layout.ceil_div(n.length, config.depth), release)
        self._weight = layout.unpack_weights(words, n.tiles, n.length, config).T.astype(np.float32)
        self._post = layout.unpack_post(rings["post"].take(n.tiles, release))
        self._norm = None
        if n.norm != NormMode.NONE:
            words = rings["norm"].take(layout.ceil_div(n.length, config.columns), release)
            self._norm = layout.unpack_norm(words, n.length)
        #: activation words of an input row
        self.row_words = layout.row_words(n.length, config.columns, 8 if self._norm is None else 16)

    def load(self, rows: Bytes) -> NDArray:
        """The array's operand [..., length] from input rows [..., row words * C]."""
        n = self.linear
        if self._norm is None:
            return layout.unpack_rows(rows, n.length, self.columns, 8, bool(n.signed))
        return normalise_rows(layout.unpack_rows(rows, n.length, self.columns, 16, True), n, *self._norm)

    def mid(self, x: NDArray) -> NDArray[np.int64]:
        return requantise(int_matmul(x, self._weight), *self._post)


class _Ring:
    """The words that a ring will hold over the whole program, with the tail that LINEAR reads from."""

    def __init__(self) -> None:
        self._words: list[Bytes] = []

    def push(self, words: Bytes) -> None:
        self._words.extend(words)

    def take(self, n: int, release: bool) -> Bytes:
        if n > len(self._words):
            raise IndexError(f"LINEAR needs {n} words of a ring in which {len(self._words)} are streamed before it")
        out = np.stack(self._words[:n])
        if release:
            del self._words[:n]
        return out
