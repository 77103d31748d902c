"""Reordered attention: K and V stay in the operand memory and scores in the pipeline, against streaming them again
for each tile of queries, and against writing the scores out.

All ways run on the RTL, as programs of their own with the Q, K and V of the model's first attention layer. The plain
ways are made of LINEARs, for which K and V are weights.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.ablate.raw import COMPUTE, DMA, Measured, RawProgram, Region
from moevit.ablate.result import Figure, How, NotApplicableError, Technique, Way
from moevit.ablate.subject import Subject
from moevit.isa import Attention, Begin, DmaIn, DmaOut, Linear, NormMode, OutputType, Stream
from moevit.isa.formats import BLOCK_BYTES
from moevit.numerics.fixed import MAX_SHIFT, requantise, saturate
from moevit.numerics.matmul import int_matmul
from moevit.program import DTYPES, Layer, Tensor

KEY = "attention"
TITLE = "Reordered attention"

NOTES = (
    "In the plain ways the softmax between the two products is left out, and nothing is charged for bringing K and V "
    "to DRAM as weights: both favour the plain ways.",
    "Scores that stay on chip have 8 bits in the plain ways, as probabilities would have.",
    "Tiles overlap in all ways: the scores of later tiles are computed before the context of one.",
    "DRAM bytes are those of data. A LINEAR takes parameters of POST with its weights; 'K, V and scores' leaves them "
    "out, the cycles do not. Instructions, of which the plain ways have many, are in none.",
)


def run(subject: Subject) -> Technique:
    """Measure all ways on the first attention layer."""
    bench = _Bench.of(subject)
    base = bench.program().run(bench.inputs, BLOCK_BYTES)  # what comes before attention, alone
    t = subject.config.rows
    ways, checks, notes = [], {}, list(NOTES)
    plain = [
        ("stream_tiles", f"K and V streamed for every {t} queries", t, 0),
        ("stream_rows", "K and V streamed for every query", 1, 0),
        ("scores_out_8", "scores written out and read back, 8 bits", 0, 8),
        ("scores_out_16", "scores written out and read back, 16 bits", 0, 16),
    ]
    subject.progress("attention: as the machine does it")
    ours = bench.ours()
    ways.append(bench.way("ours", "K and V on chip, scores in the pipeline", ours, base, t, ours=True))
    checks["ours: RTL and instruction-level simulator leave the same bytes"] = ours.same
    checks["ours: the context is the model's"] = bench.is_context(ours)
    for key, label, rows, bits in plain:
        subject.progress(f"attention: {label}")
        try:
            units = bench.units(rows, bits)
        except NotApplicableError as reason:
            notes.append(f"Left out, {label}: {reason}.")
            continue
        got = bench.plain(units, bits)
        if bits and units[0].rows < bench.attention.n_rows:
            label += f", by {units[0].rows}"
            notes.append(f"{label}: K and V come again for every {units[0].rows} queries; more scores do not fit.")
        ways.append(bench.way(key, label, got, base, max(unit.rows for unit in units)))
        checks[f"{key}: RTL and instruction-level simulator leave the same bytes"] = got.same
        if bits:
            checks[f"{key}: the scores are the model's"] = bench.are_scores(got, units, bits)
    a = bench.attention
    return Technique(
        KEY, TITLE, f"{bench.layer.name}: {a.heads} heads of {a.head_dim}, {a.n_rows} queries, {a.n_keys} keys",
        tuple(ways), notes=tuple(notes), checks=checks,
    )  # fmt: skip


@dataclass(frozen=True)
class _Unit:
    """Queries ``first`` … ``first + rows - 1`` of a head."""

    head: int
    first: int
    rows: int


@dataclass
class _Bench:
    """The attention layer, with what its programs have in common.

    producers : the layers that make Q, K and V
    x : their input
    start, done : activation words that are free, and retired count when Q, K and V are there
    """

    subject: Subject
    layer: Layer
    attention: Attention
    producers: list[Layer]
    x: list[Tensor]

    @classmethod
    def of(cls, subject: Subject) -> "_Bench":
        instructions, task = subject.instructions, subject.task
        layer = next((layer for layer in task.layers if layer.kind == "attention"), None)
        if layer is None:
            raise NotApplicableError("the model has no attention")
        attention = instructions[layer.instructions[0]]
        assert isinstance(attention, Attention)
        producers = [p for p in task.layers if set(p.outputs) & set(layer.inputs)]
        if any(p.kind != "linear" or len(p.inputs) > 1 for p in producers):
            raise NotApplicableError("Q, K and V of the first attention layer are made by other than linear layers")
        names = dict.fromkeys(p.inputs[0] for p in producers)
        return cls(subject, layer, attention, producers, [task.tensor(name) for name in names])

    # -- what the programs begin with ---------------------------------------------------------------------------

    @property
    def inputs(self) -> NDArray[np.uint8]:
        """The input buffer [1, bytes]: the rows that the layer before attention reads."""
        return np.concatenate([self._rows(t) for t in self.x])[None]

    def _rows(self, t: Tensor) -> NDArray[np.uint8]:
        values = self.subject.first_tensors[t.name][0]
        return layout.pack_rows(values, self.subject.config.columns, DTYPES[t.dtype][0]).reshape(-1)

    def program(self) -> RawProgram:
        """Rows in, and Q, K and V made of them, by the model's own instructions."""
        config, instructions = self.subject.config, self.subject.instructions
        begin = instructions[0]
        assert isinstance(begin, Begin)
        p = RawProgram(config, self.subject.program.image, begin.ring_words)
        offset = ready = 0
        for t in self.x:
            size = layout.row_words(t.channels, config.columns, DTYPES[t.dtype][0]) * config.columns
            copy = DmaIn(offset=offset, count1=t.rows, src_stride1=size, dst_stride1=t.stride * config.columns,
                         segment_bytes=size, dst=t.addr * config.columns)  # fmt: skip
            ready = p.add(copy)
            offset += t.rows * size
        for producer in self.producers:
            for number, stream in zip(producer.instructions, producer.streams, strict=True):
                linear, weights = instructions[number], instructions[stream]
                assert isinstance(linear, Linear) and isinstance(weights, Stream)
                p.add(dataclasses.replace(linear, wait=ready, keep=0), weights)
        return p

    @property
    def prologue(self) -> int:
        """Instructions that retire before attention begins."""
        return len(self.x) + sum(len(p.instructions) for p in self.producers)

    # -- the ways -----------------------------------------------------------------------------------------------

    def ours(self) -> Measured:
        """One ATTENTION."""
        p = self.program()
        p.add(dataclasses.replace(self.attention, wait=self.prologue))
        return p.run(self.inputs, BLOCK_BYTES)

    def units(self, rows: int, bits: int) -> list[_Unit]:
        """Pieces of ``rows`` queries; 0: as many as the activation memory has room for in ``bits`` bits."""
        a, config = self.attention, self.subject.config
        buffers = self._buffers(bits)
        room = (config.activation_words - self._free()) // (buffers * self._stride(bits))
        rows = rows or (a.n_rows if room >= a.n_rows else room // config.rows * config.rows)
        if not 0 < rows <= room:
            raise NotApplicableError(f"{buffers} buffers of {rows or config.rows} rows of scores do not fit")
        return [
            _Unit(head, first, min(rows, a.n_rows - first))
            for head in range(a.heads)
            for first in range(0, a.n_rows, rows)
        ]

    @staticmethod
    def _buffers(bits: int) -> int:
        """Tiles of scores in flight: more hide the way through the pipeline; what is written out fills it anyway."""
        return 2 if bits else 3

    def _stride(self, bits: int) -> int:
        return layout.row_words(self.attention.n_keys, self.subject.config.columns, bits or 8)

    def _free(self) -> int:
        """First activation word behind all that the layer uses, even."""
        task = self.subject.task
        used = [*self.x, task.tensor(self.layer.inputs[0]), task.tensor(self.layer.outputs[0])]
        end = max(t.addr + t.rows * t.stride for t in used)
        return end + end % 2

    def plain(self, units: list[_Unit], bits: int) -> Measured:
        """Two LINEARs per unit, K and V streamed for each; with ``bits``, scores go to DRAM and come back."""
        config, stride = self.subject.config, self._stride(bits)
        buffers = self._buffers(bits)
        most = max(unit.rows for unit in units)
        regions = [Region(self._free() + i * most * stride) for i in range(buffers)]
        p = self.program()
        ready = self.prologue
        keys, values = self._weights(p, bits)
        sizes = [unit.rows * stride * config.columns for unit in units]
        offsets = np.cumsum([0, *(size + -size % BLOCK_BYTES for size in sizes)]).tolist()
        start = self.inputs.shape[1]
        start += -start % BLOCK_BYTES

        def scores(u: int) -> None:
            r = regions[u % buffers]
            r.written = p.add(self._scores(units[u], r, bits, max(ready, r.before_write(COMPUTE))),
                              keys[units[u].head])  # fmt: skip
            r.writer = COMPUTE
            if bits:
                r.read[DMA] = p.add(DmaOut(wait=r.written, src=r.addr, words=units[u].rows * stride, offset=offsets[u]))
                back = DmaIn(wait=r.before_write(DMA), offset=start + offsets[u], segment_bytes=sizes[u],
                             dst=r.addr * config.columns)  # fmt: skip
                r.written, r.writer = p.add(back), DMA

        def context(u: int) -> None:
            r = regions[u % buffers]
            r.read[COMPUTE] = p.add(self._context(units[u], r, bits, r.written), values[units[u].head])

        for u in range(len(units) + buffers - 1):
            if u < len(units):
                scores(u)
            if u >= buffers - 1:
                context(u - buffers + 1)
        # What the machine reads back is what it has written; the output buffer is no source of DMA_IN.
        inputs = np.zeros((1, start + (offsets[-1] if bits else 0)), np.uint8)
        inputs[:, : self.inputs.shape[1]] = self.inputs
        if bits:
            for u, unit in enumerate(units):
                inputs[0, start + offsets[u] :][: sizes[u]] = self._score_bytes(unit, bits)
        return p.run(inputs, max(offsets[-1], BLOCK_BYTES))

    def _weights(self, p: RawProgram, bits: int) -> tuple[list[Stream], list[Stream]]:
        """K and V of each head as weights."""
        a = self.attention
        gamma = np.ones(a.n_keys, np.int64) if bits == 16 else None
        keys = [p.weights(self._head(1, head), *self._score_scale(bits)) for head in range(a.heads)]
        values = [p.weights(self._head(2, head).T, 1 << 15, 20, gamma) for head in range(a.heads)]
        return keys, values

    def _score_scale(self, bits: int) -> tuple[int, int]:
        """16-bit scores are those of ATTENTION, 8-bit ones their upper half."""
        a = self.attention
        return a.score_mult, a.score_shift if bits == 16 else min(a.score_shift + 8, MAX_SHIFT)

    def _head(self, which: int, head: int) -> NDArray:
        """Q, K or V (0, 1, 2) of a head: [rows, head_dim] int8."""
        a, columns = self.attention, self.subject.config.columns
        first = head * layout.ceil_div(a.head_dim, columns) * columns
        values = self.subject.first_tensors[self.layer.inputs[which]][0]
        rows = values[self.layer.input_row :][: a.n_rows] if which == 0 else values[: a.n_keys]
        return rows[:, first : first + a.head_dim]

    def _scores(self, unit: _Unit, r: Region, bits: int, wait: int) -> Linear:
        a, columns = self.attention, self.subject.config.columns
        tiles = layout.ceil_div(a.n_keys, columns)
        head = unit.head * layout.ceil_div(a.head_dim, columns)
        return Linear(
            wait=wait, n_rows=unit.rows, src=a.src + unit.first * a.src_stride + head, src_stride=a.src_stride,
            length=a.head_dim, tiles=tiles, key_tile=tiles, value_tile=tiles, dst=r.addr,
            dst_stride=self._stride(bits), out_type=int(OutputType.INT16 if bits == 16 else OutputType.INT8),
        )  # fmt: skip

    def _context(self, unit: _Unit, r: Region, bits: int, wait: int) -> Linear:
        a, columns = self.attention, self.subject.config.columns
        tiles = layout.ceil_div(a.head_dim, columns)
        affine = {"norm": int(NormMode.AFFINE), "norm_shift": 8} if bits == 16 else {}
        return Linear(
            wait=wait, n_rows=unit.rows, src=r.addr, src_stride=self._stride(bits), length=a.n_keys, tiles=tiles,
            key_tile=tiles, value_tile=tiles, dst=a.dst + unit.first * a.dst_stride + unit.head * tiles,
            dst_stride=a.dst_stride, **affine,
        )  # fmt: skip

    # -- what must be equal -------------------------------------------------------------------------------------

    def _score_bytes(self, unit: _Unit, bits: int) -> NDArray[np.uint8]:
        """The scores of a unit as they lie in memory."""
        q = self._head(0, unit.head)[unit.first :][: unit.rows]
        acc = int_matmul(q, self._head(1, unit.head).T, 128)
        mult, shift = self._score_scale(bits)
        return layout.pack_rows(
            saturate(requantise(acc, 0, mult, shift), bits), self.subject.config.columns, bits
        ).reshape(-1)

    def are_scores(self, got: Measured, units: list[_Unit], bits: int) -> bool:
        """Whether the machine wrote the model's scores to DRAM."""
        offset = 0
        for unit in units:
            want = self._score_bytes(unit, bits)
            if not np.array_equal(got.outputs[offset:][: want.size], want):
                return False
            offset += want.size + -want.size % BLOCK_BYTES
        return True

    def is_context(self, got: Measured) -> bool:
        """Whether the machine's context is the reference's."""
        a, columns = self.attention, self.subject.config.columns
        t = self.subject.task.tensor(self.layer.outputs[0])
        words = got.activation.reshape(-1, columns)
        index = a.dst + np.arange(a.n_rows)[:, None] * a.dst_stride + np.arange(t.channels // columns)
        want = self.subject.first_tensors[t.name][0][self.layer.output_row :][: a.n_rows]
        return np.array_equal(words[index].reshape(a.n_rows, -1).view(np.int8), want)

    # -- what is said about it ----------------------------------------------------------------------------------

    def way(
        self, key: str, label: str, got: Measured, base: Measured, rows: int, ours: bool = False
    ) -> Way:
        """The figures of a run, less what came before attention."""
        retired = got.run.retire_cycles
        moved = got.data_bytes - base.data_bytes
        parameters = got.parameter_bytes - base.parameter_bytes
        figures = {
            "cycles": Figure(retired[-1] - retired[self.prologue - 1], "cycles", How.RTL),
            "dram_bytes": Figure(moved, "bytes", How.RTL),
            "data_bytes": Figure(moved - parameters, "bytes", How.COMPUTED),
            "operand_bytes": Figure(self._operand_bytes(rows), "bytes", How.COMPUTED),
            "instructions": Figure(len(retired) - self.prologue, "instructions", How.RTL),
        }
        return Way(key, label, figures, ours)

    def _operand_bytes(self, rows: int) -> int:
        """What the array reads of K and V from the operand memory, ``rows`` queries at a time."""
        a, c = self.attention, self.subject.config
        steps = layout.ceil_div(a.n_keys, c.columns) * layout.ceil_div(a.head_dim, c.depth)
        steps += layout.ceil_div(a.head_dim, c.columns) * layout.ceil_div(a.n_keys, c.depth)
        return a.heads * layout.ceil_div(a.n_rows, min(rows, c.rows)) * steps * c.operand_word_bytes
