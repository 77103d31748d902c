"""A small program with a mixture of experts, put together by hand, and what it must compute, token by token.

Rows of pixels, embedded as int16; a gate that normalises and keeps them; each expert's two layers; the result is
the embedded rows with the experts' answers added. With ``chunks`` the tokens are routed and go to the experts in so
many parts, with queues that are cleared in between.
"""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.compiler.hazards import _Order, check_program
from moevit.config import STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.isa import Begin, DmaIn, DmaOut, End, Instruction, Linear, NormMode, OutputType, Stream, encode_program
from moevit.isa.formats import BLOCK_BYTES
from moevit.numerics import layernorm
from moevit.numerics.activation import Activation
from moevit.numerics.fixed import quantise_scale, requantise, saturate
from moevit.numerics.post import finish
from moevit.numerics.route import RouteOrder, apply_score, route
from moevit.program import MEMORY_QUEUE, Input, Layer, Output, Piece, Program, Task, Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes of the mixture, and how its program is written."""

    tokens: int = 11
    width: int = 20
    hidden: int = 13
    experts: int = 5
    top_k: int = 2
    order: RouteOrder = RouteOrder.TOPK_SOFTMAX
    threshold: int = 0
    chunks: int = 1
    speculative: bool = False
    columns: int = 1  #: LINEARs that share the columns of an expert's second layer
    seed: int = 0


@dataclass
class _Weights:
    """A linear layer's integers."""

    weight: NDArray[np.int64]
    bias: NDArray[np.int64]
    mult: NDArray[np.int64]
    shift: NDArray[np.int64]

    def mid(self, x: NDArray) -> NDArray[np.int64]:
        return requantise(x.astype(np.int64) @ self.weight.T, self.bias, self.mult, self.shift)


class MixtureProgram:
    """The program of a shape (``program``), and its answer (:meth:`expected`)."""

    def __init__(self, config: AcceleratorConfig, shape: Shape) -> None:
        self.config, self.shape = config, shape
        self.rng = np.random.default_rng(shape.seed)
        self.width = layout.ceil_div(shape.width, config.columns) * config.columns
        self.hidden = layout.ceil_div(shape.hidden, config.columns) * config.columns
        self.embed = self._weights(self.width, shape.width, 30.0)
        self.gate = self._weights(shape.experts, shape.width, 100.0)
        self.first = [self._weights(self.hidden, shape.width, 150.0) for _ in range(shape.experts)]
        self.second = [self._weights(self.width, shape.hidden, 20.0) for _ in range(shape.experts)]
        self.gamma = self.rng.integers(1 << 12, 1 << 13, shape.width)
        self.beta = self.rng.integers(-(1 << 10), 1 << 10, shape.width)
        self.norm_shift = 19
        self._build()

    def _weights(self, outputs: int, inputs: int, gain: float) -> _Weights:
        weight = self.rng.integers(-127, 128, (outputs, inputs))
        pairs = [quantise_scale(gain * self.rng.uniform(0.5, 1) / 70 / np.sqrt(inputs)) for _ in range(outputs)]
        mult, shift = (np.array(x) for x in zip(*pairs, strict=True))
        return _Weights(weight, self.rng.integers(-2000, 2000, outputs), mult, shift)

    # -- what it must compute -----------------------------------------------------------------------------------

    def expected(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Scores [tokens, experts] and the result [tokens, width] for one image [tokens, width]."""
        s = self.shape
        x = saturate(self.embed.mid(pixels), 16)
        mult, shift = quantise_scale(1 / s.width)
        constants = layernorm.RowConstants(s.width, mult, shift, 1000, self.norm_shift)
        kept = layernorm.layernorm(x[:, : s.width], self.gamma, self.beta, constants, True)
        scores = route(self.gate.mid(kept), s.top_k, s.order, s.threshold)
        out = x.copy()
        for expert in range(s.experts):
            for token in range(s.tokens):
                if scores[token, expert]:
                    hidden = finish(self.first[expert].mid(kept[token]), self._first_linear(), None)
                    answer = self.second[expert].mid(hidden[: s.hidden])
                    out[token] = saturate(out[token] + apply_score(answer, scores[token, expert]), 16)
        return scores, out

    def _first_linear(self) -> Linear:
        mult, shift = quantise_scale(0.02)
        return Linear(
            n_rows=1, src=0, src_stride=0, length=self.shape.width, tiles=1, key_tile=1, value_tile=1, dst=0,
            dst_stride=0, activation=Activation.GELU, mult=mult, shift=shift, zero_point=20, out_type=OutputType.UINT8,
        )  # fmt: skip

    # -- the program --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        s, c = self.shape, self.config
        self.image = bytearray()
        self.work: list[Instruction] = []
        self.streams: dict[int, Stream] = {}  # by the index in work of its LINEAR
        self.layers: list[Layer] = []  # with indices in work
        self.tensors: list[Tensor] = []
        self.top = 0
        self.pieces: dict[str, list[tuple[int, int, int]]] = {}
        wide, narrow = 2 * self.width // c.columns, layout.ceil_div(s.width, c.columns)
        pixels = self._tensor("pixels", s.tokens, s.width, "uint8", narrow)
        x = self._tensor("x", s.tokens, self.width, "int16", wide)
        out = dataclasses.replace(x, name="out")
        kept = self._tensor("kept", s.tokens, s.width, "int8", narrow)
        scores = Tensor("scores", s.tokens, s.experts, "uint16", 2.0**-16, 0, MEMORY_QUEUE, 0, 0, ())
        self.tensors += [out, scores]
        self.work.append(
            DmaIn(offset=0, segments=s.tokens, segment_bytes=s.width, dst_segment=narrow * c.columns,
                  dst=pixels.addr * c.columns)
        )  # fmt: skip
        self._wrote("pixels", 0, s.tokens)
        self._layer("patches", "patches", ("image",), ("pixels",), [0], patch=(1, s.tokens, s.width, 1, s.width))
        self._linear(self.embed, src=pixels, n_rows=s.tokens, signed=0, out_type=OutputType.INT16, dst=x.addr,
                     dst_stride=x.stride)  # fmt: skip
        self._wrote("x", 0, s.tokens)
        self._layer("embed", "linear", ("pixels",), ("x",), [1])
        edges = [s.tokens * i // s.chunks for i in range(s.chunks + 1)]
        for first, end in pairwise(edges):
            self._mixture(x, kept, out, first, end - first)
        self._wrote("out", 0, s.tokens)
        self.work.append(DmaOut(src=x.addr, words=s.tokens * x.stride, offset=0))
        self._assemble(s.tokens * x.stride * c.columns)

    def _mixture(self, x: Tensor, kept: Tensor, out: Tensor, first: int, rows: int) -> None:
        s, c = self.shape, self.config
        mult, shift = quantise_scale(1 / s.width)
        gate = len(self.work)
        self._linear(
            self.gate, norm=(self.gamma, self.beta), src=x, row=first, n_rows=rows, length=s.width,
            inverse_mult=mult, inverse_shift=shift, epsilon=1000, norm_shift=self.norm_shift, dst=0, dst_stride=0,
            token=first, keep=1, keep_dst=kept.addr + first * kept.stride, keep_stride=kept.stride, route=s.order,
            experts=s.experts, top_k=s.top_k, threshold=s.threshold, clear=1,
        )  # fmt: skip
        self._wrote("scores", first, rows)
        self._wrote("kept", first, rows)
        rows_of = {"input_row": first, "output_row": first, "rows": rows}
        self._layer(f"gate{first}", "route", ("x",), ("scores", "kept"), [gate], **rows_of)
        for expert in range(s.experts):
            name = f"hidden{first}.{expert}"
            hidden = self._tensor(name, rows, self.hidden, "uint8", self.hidden // c.columns, gate="scores",
                                  expert=expert)  # fmt: skip
            self._linear(
                self.first[expert], src=kept, n_rows=rows, gather=1, queue=expert, dst=hidden.addr,
                dst_stride=hidden.stride,
                **{f: getattr(self._first_linear(), f)
                   for f in ("activation", "mult", "shift", "zero_point", "out_type")},
            )  # fmt: skip
            self._wrote(name, 0, rows)
            self._layer(f"first{first}.{expert}", "gather", ("kept", "scores"), (name,), [-1],
                        **(rows_of | {"output_row": 0}))  # fmt: skip
            parts = [self.width // c.columns * i // s.columns for i in range(s.columns + 1)]
            for begin, end in pairwise(parts):
                at = out.addr + 2 * begin
                self._linear(
                    self.second[expert], (begin, end), src=hidden, n_rows=rows, signed=0, scatter=1, queue=expert,
                    residual=1, res=at, dst=at, dst_stride=out.stride, out_type=OutputType.INT16,
                )  # fmt: skip
            last = len(self.work)
            self._layer(f"second{first}.{expert}", "scatter", (name, "scores", "x"), ("out",),
                        list(range(last - s.columns, last)), **rows_of)  # fmt: skip

    def _tensor(self, name: str, rows: int, channels: int, dtype: str, stride: int, **fields) -> Tensor:
        tensor = Tensor(name, rows, channels, dtype, 1.0, 0, "activation", self.top, stride, (), **fields)
        self.top += rows * stride + rows * stride % 2
        self.tensors.append(tensor)
        return tensor

    def _wrote(self, name: str, row: int, rows: int) -> None:
        self.pieces.setdefault(name, []).append((row, rows, len(self.work) - 1))

    def _layer(self, name: str, kind: str, inputs, outputs, work: list[int], **fields) -> None:
        numbers = [range(len(self.work))[i] for i in work]
        rows = {"input_row": 0, "output_row": 0, "rows": self.shape.tokens, "patch": ()} | fields
        self.layers.append(Layer(name, kind, inputs, outputs, tuple(numbers), (), macs=0, source=(), **rows))

    def _block(self, words: NDArray[np.uint8]) -> int:
        self.image.extend(bytes(-len(self.image) % BLOCK_BYTES))
        self.image.extend(layout.stripe(words, self.config.weight_ports))
        return (len(self.image) - words.size) // BLOCK_BYTES

    def _linear(self, w: _Weights, tiles: tuple[int, int] | None = None, *, src: Tensor, row: int = 0, norm=None,
                **fields) -> None:  # fmt: skip
        """A LINEAR of these weights, or of some column tiles of them, and its STREAM."""
        c = self.config
        first, end = tiles or (0, layout.ceil_div(len(w.weight), c.columns))
        channels = slice(first * c.columns, end * c.columns)
        words = layout.pack_weights(w.weight[channels], c)
        post = layout.pack_post(w.bias[channels], w.mult[channels], w.shift[channels], c)
        stream = {"weight_offset": self._block(words), "weight_words": len(words), "post_offset": self._block(post),
                  "post_words": len(post)}  # fmt: skip
        if norm:
            packed = layout.pack_norm(*norm, c)
            stream |= {"norm_offset": self._block(packed), "norm_words": len(packed)}
            fields["norm"] = NormMode.LAYERNORM
        n = end - first
        fields = {"length": w.weight.shape[1], "tiles": n, "key_tile": n, "value_tile": n} | fields
        self.streams[len(self.work)] = Stream(**stream)
        self.work.append(Linear(src=src.addr + row * src.stride, src_stride=src.stride, **fields))

    def _assemble(self, output_bytes: int) -> None:
        s, c = self.shape, self.config
        order = _Order(c, c.operand_words)
        for index, instruction in enumerate(self.work):
            wait = order.smallest_wait(order.accesses(instruction, ""))
            if isinstance(instruction, Linear) and (instruction.gather or instruction.scatter):
                wait = max(wait, order.queues.done)
                self.streams[index] = dataclasses.replace(
                    self.streams[index], predicated=1, queue=instruction.queue, wait=order.queues.done,
                    speculative=int(s.speculative),
                )  # fmt: skip
            self.work[index] = dataclasses.replace(instruction, wait=wait)  # type: ignore[call-arg]
            order.issue(self.work[index], index + 1, f"work {index}")  # type: ignore[arg-type]
        readers = sorted(self.streams)
        body: list[tuple[int, bool]] = [(r, True) for r in readers[:STREAM_QUEUE_DEPTH]]
        following = len(body)
        for index in range(len(self.work)):
            body.append((index, False))
            if index in self.streams and following < len(readers):
                body.append((readers[following], True))
                following += 1
        number = {item: n for n, item in enumerate(body, 1)}
        begin = Begin(digest=c.digest, ring_words=c.operand_words, count=len(body) + 2)
        program = [begin, *(self.streams[i] if stream else self.work[i] for i, stream in body), End()]
        entry = BLOCK_BYTES * layout.ceil_div(len(self.image), BLOCK_BYTES)
        image = bytes(self.image).ljust(entry, b"\0") + encode_program(program)
        tensors = tuple(
            dataclasses.replace(
                t, pieces=tuple(Piece(row, rows, number[w, False]) for row, rows, w in self.pieces[t.name])
            )
            for t in self.tensors
        )
        layers = tuple(
            dataclasses.replace(
                x, instructions=tuple(number[w, False] for w in x.instructions),
                streams=tuple(number[w, True] for w in x.instructions if w in self.streams),
            )
            for x in self.layers
        )  # fmt: skip
        size = s.tokens * s.width
        inputs = (Input("image", (1, s.tokens, s.width), 1.0, 0, 0),)
        outputs = (Output("result", (s.tokens, self.width), s.tokens, self.width, (), "out", 0),)
        task = Task("main", entry, len(program), inputs, outputs, size, output_bytes, tensors, layers)
        self.program = Program(c, (task,), (), image)
        check_program(self.program, task)
