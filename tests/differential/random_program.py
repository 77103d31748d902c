"""Seeded random programs that are free of hazards by construction, with the smallest waits that are.

They are not models: shapes, constants and the order of instructions are drawn to reach corners (rows and
channels that are no multiple of the array, ring wrap-around, held weights, in-place residuals, saturation), and
every ``wait`` is as early as the hazard rules allow, so that a machine that orders too little shows it.
"""

import dataclasses
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from differential.random_mixture import Mixture
from moevit import layout
from moevit.compiler.hazards import _Order, check_instructions
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
    Stream,
    encode_program,
)
from moevit.isa.formats import BLOCK_BYTES, DmaSource
from moevit.numerics.activation import Activation
from moevit.numerics.fixed import quantise_scale

MAX_TOKENS = 13
MAX_CHANNELS = 40


@dataclass(frozen=True)
class RandomProgram:
    """A program with its image and one input buffer; ``instructions`` are those in the image."""

    config: AcceleratorConfig
    image: bytes
    entry: int
    instructions: list[Instruction]
    inputs: np.ndarray  #: [1, input bytes] uint8
    output_bytes: int


@dataclass(frozen=True)
class _Rows:
    """A tensor in the activation memory."""

    addr: int
    stride: int
    rows: int
    channels: int
    bits: int
    signed: bool


class Generator:
    """Draws one program; everything random comes from ``seed``."""

    def __init__(self, config: AcceleratorConfig, seed: int, length: int = 10, mixtures: bool = True) -> None:
        self.config, self.length, self.mixtures = config, length, mixtures
        self.rng = np.random.default_rng(seed)
        self.image = bytearray()
        self.inputs = bytearray()
        self.work: list[Instruction] = []
        self.streams: dict[int, Stream] = {}  # index in work of the first reader -> STREAM
        self.queued: dict[int, int] = {}  # index in work of a LINEAR over a queue -> that queue
        self.rows: list[_Rows] = []
        self.recycled = 0  # times that memory has run short
        self.output_bytes = 0
        self.operand_top = config.operand_words
        self.ring_words = 0
        self.largest = 1  # most words that any LINEAR needs
        self.next_word = 0

    def draw(self) -> RandomProgram:
        self._input()
        if self.rng.random() < 0.7:
            self._input()
        while len(self.work) < self.length:
            if self.mixtures and self.rng.random() < 0.25:
                Mixture(self).draw()
            step = self.rng.choice([self._linear, self._attention, self._input], p=[0.7, 0.2, 0.1])
            step()
        for _ in range(int(self.rng.integers(1, 3))):
            self._output()
        return self._finish()

    # -- drawing ------------------------------------------------------------------------------------------------

    def _int(self, low: int, high: int) -> int:
        """Uniform, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def _place(self, rows: int, channels: int, bits: int, signed: bool) -> _Rows:
        """A tensor in new memory, sometimes with a gap, sometimes over an old one when memory runs short."""
        stride = layout.row_words(channels, self.config.columns, bits) + 2 * self._int(0, 1) * (bits // 8)
        words = rows * stride
        if self.next_word + words > self.config.activation_words:
            self.next_word = 0
            self.recycled += 1
            self.rows.clear()
            self._input()
        addr = self.next_word
        if bits == 8 and self.rng.random() < 0.5:
            addr += 1  # 8-bit rows may start at odd words
        self.next_word = addr + words + (addr + words) % 2
        return _Rows(addr, stride, rows, channels, bits, signed)

    def _block(self, data: bytes) -> int:
        self.image.extend(bytes(-len(self.image) % BLOCK_BYTES))
        offset = len(self.image)
        self.image.extend(data)
        return offset

    def _input(self) -> None:
        """DMA_IN of a random tensor: of the image in one piece, or of the input buffer in strided segments."""
        bits = int(self.rng.choice([8, 16]))
        rows, channels = self._int(1, MAX_TOKENS), self._int(1, MAX_CHANNELS)
        padded = layout.ceil_div(channels, self.config.columns) * self.config.columns
        t = self._place(rows, padded, bits, bool(self.rng.integers(2)) or bits == 16)
        row_bytes = layout.row_words(padded, self.config.columns, bits) * self.config.columns
        data = self.rng.integers(0, 256, (rows, row_bytes), dtype=np.uint8)
        stride = t.stride * self.config.columns
        dst = t.addr * self.config.columns
        if self.rng.random() < 0.5:
            offset = self._block(data.tobytes())
            copy = DmaIn(source=DmaSource.IMAGE, offset=offset, count1=rows, src_stride1=row_bytes,
                         dst_stride1=stride, segment_bytes=row_bytes, dst=dst)  # fmt: skip
        else:
            # each row is cut into segments, which lie interleaved in the input: segment-major
            pieces = [n for n in range(1, 9) if row_bytes % n == 0]
            segments = int(self.rng.choice(pieces))
            size = row_bytes // segments
            self.inputs.extend(self.rng.integers(0, 256, self._int(0, 37), dtype=np.uint8).tobytes())
            offset = len(self.inputs)
            self.inputs.extend(data.reshape(rows, segments, size).transpose(1, 0, 2).tobytes())
            copy = DmaIn(source=DmaSource.INPUT, offset=offset, count0=segments, src_stride0=rows * size,
                         dst_stride0=size, segments=rows, segment_bytes=size, dst_segment=stride, dst=dst)  # fmt: skip
        self.work.append(copy)
        self.rows.append(dataclasses.replace(t, channels=padded))

    def _output(self) -> None:
        t = self.rows[self._int(0, len(self.rows) - 1)]
        row = layout.row_words(t.channels, self.config.columns, t.bits)
        first = self._int(0, t.rows - 1)
        self.work.append(DmaOut(src=t.addr + first * t.stride, words=row, offset=self.output_bytes))
        self.output_bytes += row * self.config.columns
        self.output_bytes += -self.output_bytes % BLOCK_BYTES

    def _stream(self, length: int, tiles: int, norm: bool, copies: int = 0) -> None:
        """Random weights and parameters for the LINEAR that is appended next; so many channels equal others."""
        c = self.config
        weight = self.rng.integers(-128, 128, (tiles * c.columns, length))
        if self.rng.random() < 0.1:
            weight = self.rng.choice([-128, 127], weight.shape)
        channels = tiles * c.columns
        bias = self.rng.integers(-(1 << 14), 1 << 14, channels)
        if self.rng.random() < 0.1:
            bias = self.rng.choice([-(1 << 31), (1 << 31) - 1, 0], channels)
        gain = 100 / (40 * 70 * np.sqrt(length)) * 2.0 ** self.rng.uniform(-2, 6)
        pairs = [quantise_scale(gain * 2.0 ** self.rng.uniform(-1, 1)) for _ in range(channels)]
        mult, shift = np.array([m for m, _ in pairs]), np.array([s for _, s in pairs])
        for target in self.rng.integers(0, channels, copies):
            other = self._int(0, channels - 1)
            for values in (weight, bias, mult, shift):
                values[target] = values[other]
        post = layout.pack_post(bias, mult, shift, c)
        words = layout.pack_weights(weight, c)
        fields = {
            "post_offset": self._block(layout.stripe(post, c.weight_ports)) // BLOCK_BYTES,
            "post_words": len(post),
            "weight_offset": self._block(layout.stripe(words, c.weight_ports)) // BLOCK_BYTES,
            "weight_words": len(words),
        }
        if norm:
            gamma = self.rng.integers(-(1 << 13), 1 << 13, length)
            beta = self.rng.integers(-(1 << 13), 1 << 13, length)
            packed = layout.pack_norm(gamma, beta, c)
            fields |= {
                "norm_offset": self._block(layout.stripe(packed, c.weight_ports)) // BLOCK_BYTES,
                "norm_words": len(packed),
            }
        self.largest = max(self.largest, len(words))
        self.streams[len(self.work)] = Stream(**fields)

    def _load_fields(self, x: _Rows) -> dict[str, int]:
        length = self._int(1, x.channels)
        fields = {"src": x.addr, "src_stride": x.stride, "length": length}
        if x.bits == 8:
            return fields | {"norm": int(NormMode.NONE), "signed": int(x.signed)}
        mode = NormMode(int(self.rng.choice([NormMode.LAYERNORM, NormMode.AFFINE])))
        mult, shift = quantise_scale(1 / length)
        return fields | {
            "norm": int(mode), "signed": self._int(0, 1), "norm_shift": self._int(12, 24),
            "inverse_mult": mult, "inverse_shift": shift,
            "epsilon": int(self.rng.choice([0, 1, 1000, (1 << 48) - 1])),
        }  # fmt: skip

    def _linear(self) -> None:
        """One LINEAR, or two on the rows of one tensor that share held weights."""
        c = self.config
        x = self.rows[self._int(0, len(self.rows) - 1)]
        load = self._load_fields(x)
        tiles = self._int(1, 4)
        out_type = OutputType(self._int(0, 2))
        residuals = [r for r in self.rows if r.bits == 16 and r.channels >= tiles * c.columns and r is not x]
        residual = None
        if residuals and self.rng.random() < 0.5:
            residual, out_type = residuals[self._int(0, len(residuals) - 1)], OutputType.INT16
        bits = 16 if out_type == OutputType.INT16 else 8
        n_rows = self._int(1, x.rows if residual is None else min(x.rows, residual.rows))
        activation = Activation(int(self.rng.choice([0, 0, 1, 2, 3])))
        second = quantise_scale(2.0 ** self.rng.uniform(-6, 0))
        out = self._place(n_rows, tiles * c.columns, bits, out_type != OutputType.UINT8)
        if x not in self.rows or (residual is not None and residual not in self.rows):
            return  # memory was recycled
        fields = load | {
            "tiles": tiles, "key_tile": tiles, "value_tile": tiles, "out_type": int(out_type),
            "activation": int(activation), "mult": second[0], "shift": second[1],
            "zero_point": self._int(0, 255) if activation else 0, "dst": out.addr, "dst_stride": out.stride,
        }  # fmt: skip
        if residual is not None:
            in_place = self.rng.random() < 0.5
            out = dataclasses.replace(residual, channels=tiles * c.columns) if in_place else dataclasses.replace(
                out, stride=residual.stride
            )
            if not in_place:
                self.next_word = max(self.next_word, out.addr + n_rows * out.stride + 2)
                if self.next_word > c.activation_words:
                    return
            fields |= {"residual": 1, "res": residual.addr, "dst": out.addr, "dst_stride": out.stride}
        self._stream(load["length"], tiles, load["norm"] != NormMode.NONE)
        split = self._int(1, n_rows - 1) if n_rows > 1 and self.rng.random() < 0.3 else 0
        if split:  # two row chunks on the same weights
            self.work.append(Linear(n_rows=split, release=0, **fields))
            fields["src"] += split * x.stride
            fields["dst"] += split * out.stride
            if residual is not None:
                fields["res"] += split * out.stride
        self.work.append(Linear(n_rows=n_rows - split, **fields))
        made = dataclasses.replace(out, rows=n_rows, bits=bits, signed=out_type != OutputType.UINT8)
        self.rows = [r for r in self.rows if r.addr != made.addr] + [made]

    def _attention(self) -> None:
        """A LINEAR that fills Q, K and V, then ATTENTION over them, the rows of either possibly in two chunks."""
        c = self.config
        heads, tiles = self._int(1, 3), self._int(1, 2)
        head_dim = self._int((tiles - 1) * c.columns + 1, tiles * c.columns)
        x = self.rows[self._int(0, len(self.rows) - 1)]
        part = heads * tiles
        q = self._place(x.rows, part * c.columns, 8, True)
        out = self._place(x.rows, part * c.columns, 8, True)
        if x not in self.rows:
            return
        key_stride = part * c.key_groups
        value_stride = layout.ceil_div(x.rows, c.depth)
        key_words = layout.ceil_div(x.rows, c.columns) * key_stride
        used = key_words + part * value_stride
        if self.operand_top - used < c.operand_words // 2:
            self.operand_top = c.operand_words
        self.operand_top -= used
        base = {
            "key_base": self.operand_top, "key_stride": key_stride,
            "value_base": self.operand_top + key_words, "value_stride": value_stride,
        }  # fmt: skip
        load = self._load_fields(x)
        self._stream(load["length"], 3 * part, load["norm"] != NormMode.NONE)
        fields = load | base | {"tiles": 3 * part, "key_tile": part, "value_tile": 2 * part, "dst": q.addr,
                                "dst_stride": q.stride}  # fmt: skip
        tiles_of_rows = layout.ceil_div(x.rows, c.rows)
        split = c.rows * self._int(1, tiles_of_rows - 1) if tiles_of_rows > 1 and self.rng.random() < 0.3 else 0
        if split:
            self.work.append(Linear(n_rows=split, release=0, **fields))
            fields |= {"src": fields["src"] + split * x.stride, "dst": q.addr + split * q.stride, "token": split}
        self.work.append(Linear(n_rows=x.rows - split, **fields))
        score = quantise_scale(2.0 ** self.rng.uniform(-9, -2))
        value = quantise_scale(2.0 ** self.rng.uniform(-2, 2))
        self.work.append(
            Attention(
                n_rows=x.rows, src=q.addr, src_stride=q.stride, n_keys=self._int(1, x.rows), heads=heads,
                head_dim=head_dim, score_mult=score[0], score_shift=score[1], out_mult=value[0], out_shift=value[1],
                dst=out.addr, dst_stride=out.stride, **base,
            )
        )  # fmt: skip
        self.rows.append(out)

    # -- putting it together ------------------------------------------------------------------------------------

    def _finish(self) -> RandomProgram:
        top = self.config.operand_words // 2
        self.ring_words = self._int(self.largest, max(self.largest, min(4 * self.largest, top)))
        if self.mixtures and self.rng.random() < 0.3:
            self.ring_words = top
        work = self._with_waits()
        ahead = self._int(1, STREAM_QUEUE_DEPTH)
        program = self._interleaved(work, ahead)
        if self.mixtures and self.rng.random() < 0.5:
            # Far ahead fetch may block for ever, on a ring that is full or an instruction that it has not reached.
            with suppress(HazardError):
                program = self._interleaved(work, self._int(STREAM_QUEUE_DEPTH, 2 * STREAM_QUEUE_DEPTH))
        entry = self._block(encode_program(program))
        inputs, output_bytes = self._buffers()
        return RandomProgram(self.config, bytes(self.image), entry, program, inputs, output_bytes)

    def _buffers(self) -> tuple[np.ndarray, int]:
        inputs = np.frombuffer(bytes(self.inputs) or b"\0", np.uint8)[None]
        return inputs, max(self.output_bytes, BLOCK_BYTES)

    def _interleaved(self, work: list[Instruction], ahead: int) -> list[Instruction]:
        """The program with each STREAM so many readers ahead of its own; checked."""
        readers = sorted(self.streams)
        body: list[Instruction] = [self.streams[r] for r in readers[:ahead]]
        following = ahead
        for index, instruction in enumerate(work):
            body.append(instruction)
            if index in self.streams and following < len(readers):
                body.append(self.streams[readers[following]])
                following += 1
        begin = Begin(digest=self.config.digest, ring_words=self.ring_words, count=len(body) + 2)
        program = [begin, *body, End()]
        inputs, output_bytes = self._buffers()
        check_instructions(self.config, program, len(self.image), inputs.shape[1], output_bytes)
        return program

    def _with_waits(self) -> list[Instruction]:
        """The smallest wait of each instruction that the hazard rules allow, sometimes a later one."""
        suspicion = self.rng.choice([0, 0.5, 1]) if self.mixtures else 0
        order = _Order(self.config, self.ring_words)
        out: list[Instruction] = []
        for done, instruction in enumerate(self.work):
            wait = order.smallest_wait(order.accesses(instruction, ""))
            if done in self.queued:
                wait = max(wait, order.queues.done)
                self._predicate(done, order.queues.done, self.rng.random() < suspicion)
            if self.rng.random() < 0.1:
                wait = self._int(wait, done)
            out.append(dataclasses.replace(instruction, wait=wait))  # type: ignore[call-arg]
            order.issue(out[-1], done + 1, f"work {done}")
        return out

    def _predicate(self, index: int, gate: int, speculative: bool) -> None:
        """Make the STREAM of a LINEAR over a queue depend on it."""
        late = self.rng.random() < 0.1
        self.streams[index] = dataclasses.replace(
            self.streams[index], predicated=1, queue=self.queued[index], speculative=int(speculative),
            wait=self._int(gate, index) if late else gate,
        )  # fmt: skip


def random_program(config: AcceleratorConfig, seed: int, length: int = 10, mixtures: bool = True) -> RandomProgram:
    """The program of a seed; without ``mixtures`` it has no gates and no experts."""
    return Generator(config, seed, length, mixtures).draw()
