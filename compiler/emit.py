"""Quantised stages to instructions: allocation, dependency waits, weight blocks and the order of streams."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from moevit import layout
from moevit.compiler.memory import ActivationAllocator, BlockStore
from moevit.compiler.quantise import Format, Quantised, QuantisedAttention, QuantisedLinear, head_padding
from moevit.compiler.stages import AttentionStage, EmbedStage, LinearStage, Stages
from moevit.config import STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.errors import AllocationError
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
from moevit.program import (
    DTYPES,
    MEMORY_ACTIVATION,
    MEMORY_KEY,
    MEMORY_VALUE,
    Input,
    Layer,
    Output,
    Piece,
    Task,
    Tensor,
)

PREFETCH = STREAM_QUEUE_DEPTH  #: STREAMs that run ahead of their LINEAR; more could block the fetch for ever


@dataclass
class _Place:
    """Where a tensor lives, and the retired count at which it is complete."""

    tensor: Tensor
    ready: int


@dataclass
class _Record:
    """A layer whose instructions are still numbered in issue order (``work``) and stream order."""

    layer: Layer
    work: list[int]
    streams: list[int]


class Emitter:
    """Builds one task.

    Parameters
    ----------
    name : the task's name
    stages, quantised : the model
    config : the machine
    blocks : the weight image, shared by all tasks
    """

    def __init__(
        self, name: str, stages: Stages, quantised: Quantised, config: AcceleratorConfig, blocks: BlockStore
    ) -> None:
        self.name, self.stages, self.quantised = name, stages, quantised
        self.config, self.blocks = config, blocks
        self.memory = ActivationAllocator(config.activation_words)
        self.work: list[Instruction] = []  # instructions that retire, in order
        self.streams: list[tuple[int, Stream]] = []  # (index in work of the reader, instruction)
        self.places: dict[str, _Place] = {}
        self.tensors: list[Tensor] = []
        self.pieces: dict[str, list[tuple[int, int, int]]] = {}  # tensor -> (row, rows, index in work)
        self.records: list[_Record] = []
        self.inputs = self._inputs()
        self.ring_words = config.operand_words - self._attention_words()
        if self.ring_words < 2:
            raise AllocationError(
                f"K and V need {self._attention_words()} of {config.operand_words} operand words",
                where=f"task {name!r}", mend="use a configuration with a larger operand_words",
            )  # fmt: skip

    def run(self) -> Task:
        """Emit everything and append the program to the image."""
        last_use = self._last_uses()
        for index, stage in enumerate(self.quantised.stages):
            if isinstance(stage, QuantisedAttention):
                self._attention(stage.stage, stage)
            elif isinstance(stage.stage, EmbedStage):
                self._embed(stage.stage, stage)
            else:
                self._dense(stage.stage, stage, last_use[stage.stage.residual or ""] == index)
            for tensor in [t for t, last in last_use.items() if last == index and t in self.places]:
                place = self.places.pop(tensor)
                if place.tensor.memory == MEMORY_ACTIVATION and not self._shares_memory(place.tensor):
                    self.memory.free(place.tensor.addr)
        outputs, output_bytes = self._outputs()
        return self._assemble(outputs, output_bytes)

    # -- what is needed how long, and how much -----------------------------------------------------------------

    def _inputs(self) -> dict[str, Input]:
        out: dict[str, Input] = {}
        offset = 0
        for entry in self.stages.graph.inputs:
            f = self.quantised.formats[entry.name]
            out[entry.name] = Input(entry.name, entry.model_shape, f.scale, f.zero_point, offset)
            offset += int(np.prod(entry.shape))
            offset += -offset % BLOCK_BYTES
        self.input_bytes = offset
        return out

    def _last_uses(self) -> dict[str, int]:
        end = len(self.quantised.stages)
        last = {"": -1}
        for index, q in enumerate(self.quantised.stages):
            s = q.stage
            reads = [s.x]
            if isinstance(s, LinearStage) and s.residual:
                reads.append(s.residual)
            if isinstance(s, AttentionStage):
                reads += [s.key, s.value]
            last |= dict.fromkeys(reads, index)
        return last | {o.tensor: end for o in self.stages.graph.outputs}

    def _shares_memory(self, tensor: Tensor) -> bool:
        """Whether a live tensor was made in place of this one."""
        return any(
            p.tensor.memory == MEMORY_ACTIVATION and p.tensor.addr == tensor.addr for p in self.places.values()
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

    # -- tensors -----------------------------------------------------------------------------------------------

    def _new(
        self, name: str, rows: int, channels: int, f: Format, *, addr: int | None = None,
        memory: str = MEMORY_ACTIVATION, stride: int | None = None,
    ) -> Tensor:  # fmt: skip
        if stride is None:
            stride = layout.row_words(channels, self.config.columns, DTYPES[f.dtype][0])
        if addr is None:
            addr = self.memory.take(rows * stride, f"tensor '{name}'")
        tensor = Tensor(name, rows, channels, f.dtype, f.scale, f.zero_point, memory, addr, stride, ())
        self.tensors.append(tensor)
        self.pieces[name] = []
        return tensor

    def _issue(self, instruction: Instruction) -> int:
        self.work.append(instruction)
        return len(self.work) - 1

    def _done(self, tensor: Tensor, row: int, rows: int, work: int) -> None:
        """``work`` completes some rows of a tensor."""
        self.pieces[tensor.name].append((row, rows, work))
        self.places[tensor.name] = _Place(tensor, work + 1)

    def _wait(self, *names: str | None) -> int:
        return max((self.places[n].ready for n in names if n is not None), default=0)

    # -- stages ------------------------------------------------------------------------------------------------

    def _embed(self, s: EmbedStage, q: QuantisedLinear) -> None:
        columns = self.config.columns
        (c, h, w), (ph, pw) = s.image, s.patch
        down, across = h // ph, w // pw
        size = c * ph * pw
        patches = self._new(f"{s.x}#patches", down * across, size, self.quantised.formats[s.x])
        row = patches.stride * columns
        base = self.quantised.base[s.output]
        whole = layout.ceil_div(base.shape[1], columns) * columns
        start = self._new(f"{s.output}#base", len(base), whole, q.output)
        data = layout.pack_rows(base, columns, 16).tobytes()
        offset = self.blocks.add(data)
        constant = self._issue(
            DmaIn(source=DmaSource.IMAGE, offset=offset, segment_bytes=len(data), dst=start.addr * columns)
        )
        self._done(start, 0, len(base), constant)
        self._record("constant", f"{s.name}#base", (), (start.name,), [constant], [], rows=len(base))
        copies = [
            self._issue(
                DmaIn(
                    source=DmaSource.INPUT, offset=self.inputs[s.x].offset + i * h * w,
                    count0=down, src_stride0=ph * w, dst_stride0=across * row,
                    count1=ph, src_stride1=w, dst_stride1=pw,
                    segments=across, segment_bytes=pw, dst_segment=row, dst=patches.addr * columns + i * ph * pw,
                )
            )
            for i in range(c)
        ]  # fmt: skip
        self._done(patches, 0, patches.rows, copies[-1])
        self._record("patches", f"{s.name}#patches", (s.x,), (patches.name,), copies, [], rows=patches.rows,
                     patch=(c, h, w, ph, pw))  # fmt: skip
        out = self._new(s.output, start.rows, whole, q.output, addr=start.addr)
        self._linear(q, s.name, patches, 0, out, s.first, patches.rows, start, (), s.macs, s.source)
        self.places.pop(patches.name)
        self.places.pop(start.name)
        self.memory.free(patches.addr)

    def _dense(self, s: LinearStage, q: QuantisedLinear, residual_dies: bool) -> None:
        c = self.config
        x = self.places[s.x].tensor
        residual = self.places[s.residual].tensor if s.residual else None
        if residual is not None and residual_dies and residual.addr != x.addr:
            out = self._new(s.output, s.rows, q.key_channels, q.output, addr=residual.addr)
        else:
            out = self._new(s.output, s.rows, q.key_channels, q.output)
        extra: tuple[Tensor, ...] = ()
        if s.heads:
            assert s.key is not None and s.value is not None
            key_words, _ = self._key_value_words(s)
            channels = q.value_channels - q.key_channels
            formats = self.quantised.formats
            extra = (
                self._new(s.key, s.rows, channels, formats[s.key], memory=MEMORY_KEY, addr=self.ring_words,
                          stride=channels // c.depth),
                self._new(s.value, s.rows, channels, formats[s.value], memory=MEMORY_VALUE,
                          addr=self.ring_words + key_words, stride=layout.ceil_div(s.rows, c.depth)),
            )  # fmt: skip
        self._linear(q, s.name, x, s.row, out, 0, s.rows, residual, extra, s.macs, s.source)

    def _linear(
        self, q: QuantisedLinear, name: str, x: Tensor, input_row: int, out: Tensor, output_row: int, rows: int,
        residual: Tensor | None, extra: tuple[Tensor, ...], macs: int, source: tuple[str, ...],
    ) -> None:  # fmt: skip
        c = self.config
        length = q.weight.shape[1]
        if length > c.tile_depth:
            raise AllocationError(
                f"layer '{name}' has rows of {length} elements; the A tile holds {c.tile_depth}",
                mend="use a configuration with a larger tile_depth",
            )
        bits, _ = DTYPES[out.dtype]
        wait = self._wait(x.name, residual.name if residual else None)
        tiles = layout.ceil_div(len(q.weight), c.columns)
        key_tile, value_tile = q.key_channels // c.columns, q.value_channels // c.columns
        fields = self._load_fields(q, length) | {
            "n_rows": rows, "src": x.addr + input_row * x.stride, "src_stride": x.stride,
            "dst_stride": out.stride, "activation": int(q.activation), "mult": q.second[0], "shift": q.second[1],
            "zero_point": q.second[2] if q.activation != Activation.NONE else 0,
            "out_type": int(OutputType[out.dtype.upper()]), "residual": int(residual is not None),
        }  # fmt: skip
        work, streams = [], []
        for first, end in self._column_chunks(name, tiles, length):
            at = min(first, key_tile) * (bits // 8)
            this = fields | {
                "tiles": end - first,
                "key_tile": min(max(key_tile - first, 0), end - first),
                "value_tile": min(max(value_tile - first, 0), end - first),
                "dst": out.addr + output_row * out.stride + at,
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
            index = self._issue(Linear(wait=wait, **this))
            work.append(index)
            streams.append(self._add_stream(q, first, end, index))
        for tensor in (out, *extra):
            self._done(tensor, output_row, rows, work[-1])
        inputs = (x.name,) if residual is None else (x.name, residual.name)
        self._record("linear", name, inputs, (out.name, *(t.name for t in extra)), work, streams, rows=rows,
                     input_row=input_row, output_row=output_row, macs=macs, source=source)  # fmt: skip

    def _load_fields(self, q: QuantisedLinear, length: int) -> dict[str, int]:
        fields = {"length": length, "signed": int(q.signed)}
        if q.norm is None:
            return fields | {"norm": int(NormMode.NONE)}
        fields["norm_shift"] = q.norm.shift
        if q.norm.row is None:
            return fields | {"norm": int(NormMode.AFFINE)}
        row = q.norm.row
        return fields | {
            "norm": int(NormMode.LAYERNORM), "inverse_mult": row.inverse_mult,
            "inverse_shift": row.inverse_shift, "epsilon": row.epsilon,
        }  # fmt: skip

    def _column_chunks(self, name: str, tiles: int, length: int) -> list[tuple[int, int]]:
        """Column tiles per LINEAR: all at once when their weights take at most half of the ring."""
        c = self.config
        steps = layout.ceil_div(length, c.depth)
        most = min(max(self.ring_words // 2 // steps, 1), c.post_words // 2)
        if steps > self.ring_words:
            raise AllocationError(
                f"one column tile of layer '{name}' is {steps} operand words; the ring has {self.ring_words}",
                mend="use a configuration with a larger operand_words",
            )
        count = layout.ceil_div(tiles, most)
        size = layout.ceil_div(tiles, count)
        return [(first, min(first + size, tiles)) for first in range(0, tiles, size)]

    def _add_stream(self, q: QuantisedLinear, first: int, end: int, reader: int) -> int:
        c = self.config
        channels = slice(first * c.columns, end * c.columns)

        def put(words: np.ndarray) -> int:
            return self.blocks.add(layout.stripe(words, c.weight_ports)) // BLOCK_BYTES

        weight = layout.pack_weights(q.weight[channels], c)
        post = layout.pack_post(q.bias[channels], q.mult[channels], q.shift[channels], c)
        fields = {"post_offset": put(post), "post_words": len(post), "weight_offset": put(weight),
                  "weight_words": len(weight)}  # fmt: skip
        if q.norm is not None:
            norm = layout.pack_norm(q.norm.gamma, q.norm.beta, c)
            fields |= {"norm_offset": put(norm), "norm_words": len(norm)}
        self.streams.append((reader, Stream(**fields)))
        return len(self.streams) - 1

    def _attention(self, s: AttentionStage, q: QuantisedAttention) -> None:
        query, key, value = (self.places[t].tensor for t in (s.x, s.key, s.value))
        if key.rows > self.config.tile_depth:
            raise AllocationError(
                f"layer '{s.name}' has {key.rows} keys; the A tile holds {self.config.tile_depth}",
                mend="use a configuration with a larger tile_depth",
            )
        out = self._new(s.output, query.rows, query.channels, q.output)
        index = self._issue(
            Attention(
                wait=self._wait(s.x, s.key, s.value), n_rows=query.rows, src=query.addr, src_stride=query.stride,
                n_keys=key.rows, heads=s.heads, head_dim=s.head_dim, key_base=key.addr, key_stride=key.stride,
                value_base=value.addr, value_stride=value.stride, score_mult=q.score[0], score_shift=q.score[1],
                out_mult=q.out[0], out_shift=q.out[1], dst=out.addr, dst_stride=out.stride,
            )
        )  # fmt: skip
        self._done(out, 0, out.rows, index)
        self._record("attention", s.name, (query.name, key.name, value.name), (out.name,), [index], [],
                     rows=out.rows, macs=s.macs, source=s.source)  # fmt: skip

    def _record(
        self, kind: str, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], work: list[int],
        streams: list[int], *, rows: int, input_row: int = 0, output_row: int = 0, patch: tuple[int, ...] = (),
        macs: int = 0, source: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        layer = Layer(name, kind, inputs, outputs, (), (), input_row, output_row, rows, patch, macs, source)
        self.records.append(_Record(layer, work, streams))

    def _outputs(self) -> tuple[tuple[Output, ...], int]:
        out, offset = [], 0
        columns = self.config.columns
        for o in self.stages.graph.outputs:
            t = self.places[o.tensor].tensor
            rows, channels = self.stages.graph.tensors[o.tensor]
            words = t.rows * t.stride
            self._issue(DmaOut(wait=self.places[o.tensor].ready, src=t.addr, words=words, offset=offset))
            order = () if o.order is None else tuple(int(i) for i in o.order)
            out.append(Output(o.name, o.model_shape, rows, channels, order, t.name, offset))
            offset += words * columns
            offset += -offset % BLOCK_BYTES
        return tuple(out), offset

    # -- the program -------------------------------------------------------------------------------------------

    def _assemble(self, outputs: tuple[Output, ...], output_bytes: int) -> Task:
        """Interleave streams and work, number everything, and append the program to the image.

        Stream i stands PREFETCH readers ahead of its own: the fetch unit can block on the stream queue only when
        every instruction that the streamer may be waiting for has already been dispatched.
        """
        order: list[tuple[str, int]] = [("stream", i) for i in range(min(PREFETCH, len(self.streams)))]
        following = len(order)
        readers = {reader: i for i, (reader, _) in enumerate(self.streams)}
        for index in range(len(self.work)):
            order.append(("work", index))
            if index in readers and following < len(self.streams):
                order.append(("stream", following))
                following += 1
        count = len(order) + 2
        begin = Begin(digest=self.config.digest, ring_words=self.ring_words, count=count)
        body = [self.streams[i][1] if kind == "stream" else self.work[i] for kind, i in order]
        number = {item: n for n, item in enumerate(order, start=1)}
        entry = self.blocks.add(encode_program([begin, *body, End()]), share=False)

        tensors = tuple(
            dataclasses.replace(
                t, pieces=tuple(Piece(row, rows, number["work", w]) for row, rows, w in self.pieces[t.name])
            )
            for t in self.tensors
        )
        layers = tuple(
            dataclasses.replace(
                r.layer,
                instructions=tuple(number["work", w] for w in r.work),
                streams=tuple(number["stream", s] for s in r.streams),
            )
            for r in self.records
        )
        return Task(
            self.name, entry, count, tuple(self.inputs.values()), outputs, self.input_bytes, output_bytes, tensors,
            layers,
        )  # fmt: skip
