"""One task's stages to its program."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moevit import layout
from moevit.compiler.emit.bands import Band, bands, copy_constants, copy_pixels
from moevit.compiler.emit.draft import Draft
from moevit.compiler.emit.experts import Routing, emit_experts
from moevit.compiler.emit.rows import bring_rows, place_inputs
from moevit.compiler.memory import BlockStore
from moevit.compiler.quantise import (
    Quantised,
    QuantisedAttention,
    QuantisedLinear,
    QuantisedMoe,
    head_padding,
)
from moevit.compiler.stages import AttentionStage, EmbedStage, LinearStage, Stages, reads
from moevit.config import AcceleratorConfig
from moevit.errors import AllocationError
from moevit.isa import Attention, DmaOut, Linear, OutputType
from moevit.isa.formats import BLOCK_BYTES
from moevit.numerics.activation import Activation
from moevit.order import walks
from moevit.program import DTYPES, MEMORY_ACTIVATION, MEMORY_KEY, MEMORY_VALUE, Output, Task, Tensor

OUTPUT_CHUNKS = 8  #: that a large output of the model is computed and copied in
CHUNK_BYTES = 1 << 14  #: smaller ones would wait longer for the bus than it takes to copy them
MAX_DMA_WORDS = (1 << 16) - 1  #: of one DMA_OUT


@dataclass(frozen=True)
class _Work:
    """What a layer was emitted as: its last instruction that retires, and its streams."""

    last: int
    streams: list[int]


class Emitter:
    """Builds one task.

    Parameters
    ----------
    name : the task's name
    stages, quantised : the model
    config : the machine
    blocks : the weight image, shared by all tasks
    routing : how mixtures of experts are computed
    """

    def __init__(
        self, name: str, stages: Stages, quantised: Quantised, config: AcceleratorConfig, blocks: BlockStore,
        routing: Routing | None = None,
    ) -> None:  # fmt: skip
        self.name, self.stages, self.quantised, self.config = name, stages, quantised, config
        self.routing = routing or Routing()
        ring_words = config.operand_words - self._attention_words()
        if ring_words < 2:
            raise AllocationError(
                f"K and V need {self._attention_words()} of {config.operand_words} operand words",
                where=f"task {name!r}", mend="use a configuration with a larger operand_words",
            )  # fmt: skip
        self.draft = Draft(config, ring_words, blocks)
        self.inputs, self.input_bytes = place_inputs(stages.graph.inputs, quantised.formats, config)
        self.offsets: dict[str, int] = {}  # of tensors in the output buffer
        self.output_bytes = 0

    @property
    def peak(self) -> int:
        """Words of activation memory in use at most."""
        return self.draft.memory.peak

    def run(self) -> Task:
        """Emit everything and append the program to the image."""
        last_use = self._last_uses()
        bring_rows(self.draft, self.inputs.values())
        for index, stage in enumerate(self.quantised.stages):
            if isinstance(stage, QuantisedAttention):
                self._attention(stage.stage, stage)
            elif isinstance(stage, QuantisedMoe):
                emit_experts(self.draft, stage, self.routing)
            elif isinstance(stage.stage, EmbedStage):
                self._embed(stage.stage, stage)
            elif isinstance(stage.stage, LinearStage):
                self._dense(stage.stage, stage, last_use[stage.stage.residual or ""] == index)
            self._free(t for t, last in last_use.items() if last == index)
        outputs = self._outputs()
        entry, count, tensors, layers = self.draft.assemble()
        return Task(
            self.name, entry, count, tuple(self.inputs.values()), outputs, self.input_bytes, self.output_bytes, tensors,
            layers,
        )  # fmt: skip

    # -- what is needed how long, and how much -----------------------------------------------------------------

    def _last_uses(self) -> dict[str, int]:
        end = len(self.quantised.stages)
        last = {"": -1}
        for index, q in enumerate(self.quantised.stages):
            last |= dict.fromkeys(reads(q.stage), index)
        return last | {o.tensor: end for o in self.stages.graph.outputs}

    def _free(self, names: Iterable[str]) -> None:
        """Give back the memory of tensors that nothing reads any more."""
        places = self.draft.places
        for name in [n for n in names if n in places]:
            tensor = places.pop(name).tensor
            if tensor.memory == MEMORY_ACTIVATION and not self._shares_memory(tensor):
                self.draft.memory.free(tensor.addr)

    def _shares_memory(self, tensor: Tensor) -> bool:
        """Whether a live tensor was made in place of this one."""
        return any(
            p.tensor.memory == MEMORY_ACTIVATION and p.tensor.addr == tensor.addr
            for p in self.draft.places.values()
        )

    def _attention_words(self) -> int:
        most = 0
        for q in self.quantised.stages:
            if isinstance(q, QuantisedLinear) and isinstance(q.stage, LinearStage) and q.stage.heads:
                most = max(most, sum(self._key_value_words(q.stage)))
        return most

    def _key_value_words(self, s: LinearStage) -> tuple[int, int]:
        c = self.config
        channels = s.heads * head_padding(s.head_dim, c)
        key = layout.ceil_div(s.rows, c.columns) * (channels // c.depth)
        return key, (channels // c.columns) * layout.ceil_div(s.rows, c.depth)

    # -- stages ------------------------------------------------------------------------------------------------

    def _embed(self, s: EmbedStage, q: QuantisedLinear) -> None:
        """Pixels and constants of a band are copied while the array works on the band before."""
        draft, columns = self.draft, self.config.columns
        across = s.image[2] // s.patch[1]
        size = s.image[0] * s.patch[0] * s.patch[1]
        rows = s.image[1] // s.patch[0] * across
        patches = draft.tensor(f"{s.x}#patches", rows, size, self.quantised.formats[s.x])
        base = self.quantised.base[s.output]
        whole = layout.ceil_div(base.shape[1], columns) * columns
        start = draft.tensor(f"{s.output}#base", len(base), whole, q.output)
        out = draft.tensor(s.output, start.rows, whole, q.output, addr=start.addr)
        constants = draft.blocks.add(layout.pack_rows(base, columns, 16).tobytes())
        held = len(draft.column_chunks(s.name, q)) == 1
        parts = bands(s, self.config.rows) if held else [Band(0, rows // across)]
        last = parts[-1]
        pixels: list[list[int]] = []
        copied: list[int] = []
        streams: list[int] = []

        def copy(band: Band) -> None:
            pixels.append(copy_pixels(draft, s, band, self.inputs[s.x].offset, patches))
            row = s.first + band.first * across if band.first else 0
            copied.append(copy_constants(draft, constants, start, row, s.first + band.end * across))

        copy(parts[0])
        moved: list[int] = []  # by all copies of pixels, in the end
        draft.record("constant", f"{s.name}#base", (), (start.name,), copied, [], rows=len(base))
        draft.record("patches", f"{s.name}#patches", (s.x,), (patches.name,), moved, [], rows=rows,
                     patch=(*s.image, *s.patch))  # fmt: skip
        for number, band in enumerate(parts):
            moved.extend(pixels[number])
            if band is not last:
                copy(parts[number + 1])
            first, end = band.first * across, band.end * across
            draft.done(patches, first, end - first, pixels[number][-1])
            row = s.first + first if number else 0
            draft.done(start, row, s.first + end - row, copied[number])
            work = self._linear(
                q, s.name if len(parts) == 1 else f"{s.name}#{first}", patches, first, out, s.first + first,
                end - first, start, (), s.macs * end // rows - s.macs * first // rows, s.source,
                release=band is last, streams=streams,
            )  # fmt: skip
            streams = work.streams
        draft.places.pop(patches.name)
        draft.places.pop(start.name)
        draft.memory.free(patches.addr)

    def _dense(self, s: LinearStage, q: QuantisedLinear, residual_dies: bool) -> None:
        draft, c = self.draft, self.config
        x = draft.places[s.x].tensor
        residual = draft.places[s.residual].tensor if s.residual else None
        chunk = self._output_rows(s, q)
        if chunk:
            self._windowed(s, q, chunk)
            return
        if residual is not None and residual_dies and residual.addr != x.addr:
            out = draft.tensor(s.output, s.rows, q.key_channels, q.output, addr=residual.addr)
        else:
            out = draft.tensor(s.output, s.rows, q.key_channels, q.output)
        extra: tuple[Tensor, ...] = ()
        if s.heads:
            assert s.key is not None and s.value is not None
            key_words, _ = self._key_value_words(s)
            channels = q.value_channels - q.key_channels
            formats = self.quantised.formats
            extra = (
                draft.tensor(s.key, s.rows, channels, formats[s.key], memory=MEMORY_KEY, addr=draft.ring_words,
                             stride=channels // c.depth),
                draft.tensor(s.value, s.rows, channels, formats[s.value], memory=MEMORY_VALUE,
                             addr=draft.ring_words + key_words, stride=layout.ceil_div(s.rows, c.depth)),
            )  # fmt: skip
        self._linear(q, s.name, x, s.row, out, 0, s.rows, residual, extra, s.macs, s.source)

    def _output_rows(self, s: LinearStage, q: QuantisedLinear) -> int:
        """Rows that a layer leaves at a time when DMA_OUT copies them while it computes the next ones, else 0.

        That is so for an output of the model that nothing reads: it need not fit the activation memory, and its
        copy, which a bus may take longer for than the array for the layer, begins early.
        """
        read = any(s.output in reads(other.stage) for other in self.quantised.stages)
        if read or s.heads or s.residual or s.output not in {o.tensor for o in self.stages.graph.outputs}:
            return 0
        stride = layout.row_words(q.key_channels, self.config.columns, DTYPES[q.output.dtype][0])
        tile_bytes, bus = self.config.rows * stride * self.config.columns, self.config.axi_bytes
        tile = self.config.rows * (bus // math.gcd(bus, tile_bytes))  # whole bus words
        most = min(self.draft.memory.room() // 2, MAX_DMA_WORDS) // stride // tile
        wanted = max(s.rows // OUTPUT_CHUNKS, CHUNK_BYTES // (stride * self.config.columns))
        chunk = min(layout.ceil_div(wanted, tile), most) * tile
        return chunk if 0 < 2 * chunk <= s.rows else 0

    def _windowed(self, s: LinearStage, q: QuantisedLinear, chunk: int) -> None:
        """A layer whose rows go to the output buffer, ``chunk`` at a time, through a window of two such chunks."""
        draft = self.draft
        x = draft.places[s.x].tensor
        out = draft.tensor(s.output, s.rows, q.key_channels, q.output, window=2 * chunk)
        self._buffer(out)
        held = len(draft.column_chunks(s.name, q)) == 1  # one set of weights serves all chunks
        copies: list[int] = []
        streams: list[int] = []
        row_bytes = out.stride * self.config.columns
        for first in range(0, s.rows, chunk):
            rows = min(chunk, s.rows - first)
            last = first + rows == s.rows
            work = self._linear(
                q, f"{s.name}#{first}", x, s.row + first, out, first, rows, None, (),
                s.macs * (first + rows) // s.rows - s.macs * first // s.rows, s.source,
                after=copies[-2] + 1 if len(copies) > 1 else 0, release=last or not held, streams=streams,
            )  # fmt: skip
            streams = work.streams if held else []
            src = out.addr + first % out.window * out.stride
            offset = self.offsets[out.name] + first * row_bytes
            copies.append(draft.issue(DmaOut(wait=work.last + 1, src=src, words=rows * out.stride, offset=offset)))

    def _linear(
        self, q: QuantisedLinear, name: str, x: Tensor, input_row: int, out: Tensor, output_row: int, rows: int,
        residual: Tensor | None, extra: tuple[Tensor, ...], macs: int, source: tuple[str, ...],
        *, after: int = 0, release: bool = True, streams: list[int] | None = None,
    ) -> _Work:  # fmt: skip
        """A layer's rows, by a LINEAR for each chunk of its columns.

        ``after`` is a retired count to wait for besides the inputs'; ``streams``, if not empty, have brought the
        weights already, and ``release`` says whether they go now.
        """
        draft, c = self.draft, self.config
        bits, _ = DTYPES[out.dtype]
        wait = max(after, draft.wait(x.name, residual.name if residual else None))
        key_tile, value_tile = q.key_channels // c.columns, q.value_channels // c.columns
        fields = draft.load_fields(q, name) | {
            "n_rows": rows, "src": x.addr + input_row * x.stride, "src_stride": x.stride,
            "dst_stride": out.stride, "activation": int(q.activation), "mult": q.second[0], "shift": q.second[1],
            "zero_point": q.second[2] if q.activation != Activation.NONE else 0,
            "out_type": int(OutputType[out.dtype.upper()]), "residual": int(residual is not None),
        }  # fmt: skip
        work, brought = [], list(streams or ())
        row = output_row % out.window if out.window else output_row
        for first, end in draft.column_chunks(name, q):
            at = min(first, key_tile) * (bits // 8)
            this = fields | {
                "tiles": end - first,
                "key_tile": min(max(key_tile - first, 0), end - first),
                "value_tile": min(max(value_tile - first, 0), end - first),
                "dst": out.addr + row * out.stride + at,
                "release": int(release),
            }
            if residual is not None:
                assert residual.stride == out.stride
                this["res"] = residual.addr + output_row * residual.stride + at
            if extra:
                key, value = extra
                this |= {
                    "key_base": key.addr + max(first - key_tile, 0) * c.key_groups, "key_stride": key.stride,
                    "value_base": value.addr + max(first - value_tile, 0) * value.stride,
                    "value_stride": value.stride,
                }  # fmt: skip
            index = draft.issue(Linear(wait=wait, **this))
            work.append(index)
            if not streams:
                brought.append(draft.stream(q, first, end, index))
        for tensor in (out, *extra):
            draft.done(tensor, output_row, rows, work[-1])
        inputs = (x.name,) if residual is None else (x.name, residual.name)
        draft.record("linear", name, inputs, (out.name, *(t.name for t in extra)), work, brought, rows=rows,
                     input_row=input_row, output_row=output_row, macs=macs, source=source)  # fmt: skip
        return _Work(work[-1], brought)

    def _attention(self, s: AttentionStage, q: QuantisedAttention) -> None:
        draft = self.draft
        query, key, value = (draft.places[t].tensor for t in (s.x, s.key, s.value))
        if key.rows > self.config.tile_depth:
            raise AllocationError(
                f"layer '{s.name}' has {key.rows} keys; the A tile holds {self.config.tile_depth}",
                mend="use a configuration with a larger tile_depth",
            )
        out = draft.tensor(s.output, query.rows, query.channels, q.output)
        index = draft.issue(
            Attention(
                wait=draft.wait(s.x, s.key, s.value), n_rows=query.rows, src=query.addr, src_stride=query.stride,
                n_keys=key.rows, heads=s.heads, head_dim=s.head_dim, key_base=key.addr, key_stride=key.stride,
                value_base=value.addr, value_stride=value.stride, score_mult=q.score[0], score_shift=q.score[1],
                out_mult=q.out[0], out_shift=q.out[1], dst=out.addr, dst_stride=out.stride,
            )
        )  # fmt: skip
        draft.done(out, 0, out.rows, index)
        draft.record("attention", s.name, (query.name, key.name, value.name), (out.name,), [index], [],
                     rows=out.rows, macs=s.macs, source=s.source)  # fmt: skip

    def _outputs(self) -> tuple[Output, ...]:
        out = []
        for o in self.stages.graph.outputs:
            place = self.draft.places[o.tensor]
            t = place.tensor
            rows, channels = self.stages.graph.tensors[o.tensor]
            if o.tensor not in self.offsets:
                self._buffer(t)
                words = t.rows * t.stride
                self.draft.issue(DmaOut(wait=place.ready, src=t.addr, words=words, offset=self.offsets[o.tensor]))
            order = () if o.order is None else walks(o.order)
            out.append(Output(o.name, o.model_shape, rows, channels, order, t.name, self.offsets[o.tensor]))
        return tuple(out)

    def _buffer(self, t: Tensor) -> None:
        """Give a tensor its place in the output buffer."""
        self.offsets[t.name] = self.output_bytes
        self.output_bytes += t.rows * t.stride * self.config.columns
        self.output_bytes += -self.output_bytes % BLOCK_BYTES
