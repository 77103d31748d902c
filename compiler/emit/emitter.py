"""One task's stages to its program."""

from collections.abc import Iterable

from moevit import layout
from moevit.compiler.emit.bands import emit_embed
from moevit.compiler.emit.chains import emit_chain, find_chain, rows_at_once
from moevit.compiler.emit.draft import Draft
from moevit.compiler.emit.experts import Routing, emit_experts
from moevit.compiler.emit.linear import Rows, emit_attention, emit_linear
from moevit.compiler.emit.outputs import MAX_DMA_WORDS, emit_output, in_blocks, plan_output
from moevit.compiler.emit.rows import bring_rows, place_inputs
from moevit.compiler.memory import BlockStore
from moevit.compiler.quantise import Quantised, QuantisedAttention, QuantisedLinear, QuantisedMoe, head_padding
from moevit.compiler.stages import AttentionStage, EmbedStage, LinearStage, Stages, reads
from moevit.config import AcceleratorConfig
from moevit.errors import AllocationError
from moevit.isa import DmaOut
from moevit.isa.formats import BLOCK_BYTES
from moevit.order import walks
from moevit.program import MEMORY_ACTIVATION, MEMORY_KEY, MEMORY_VALUE, Output, Task, Tensor

SHOWN_NODES = 4  #: of a stage, in an error


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
        words, nodes = self._attention_words()
        ring_words = config.operand_words - words
        if ring_words < 2:
            raise AllocationError(
                f"K and V need {words} of {config.operand_words} operand words", where=f"task {name!r}", nodes=nodes,
                mend="use a configuration with a larger operand_words, or fewer tokens",
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
        self._bring_rows()
        index = 0
        while index < len(self.quantised.stages):
            try:
                done = self._chained(index, last_use)
                if not done:
                    self._whole(index, last_use)
                    done = 1
            except AllocationError as error:
                nodes = tuple(dict.fromkeys(self.quantised.stages[index].stage.source))
                raise AllocationError(
                    error.what, where=error.where or self._place(index), mend=error.mend, nodes=nodes
                ) from error
            self._free(t for t, last in last_use.items() if index <= last < index + done)
            index += done
        outputs = self._outputs()
        entry, count, tensors, layers = self.draft.assemble()
        return Task(
            self.name, entry, count, tuple(self.inputs.values()), outputs, self.input_bytes, self.output_bytes, tensors,
            layers,
        )  # fmt: skip

    def _bring_rows(self) -> None:
        """Bring inputs that are rows; where they have no place, what reads inputs needs it."""
        try:
            bring_rows(self.draft, self.inputs.values())
        except AllocationError as error:
            readers = [q.stage for q in self.quantised.stages if set(reads(q.stage)) & set(self.inputs)]
            nodes = tuple(dict.fromkeys(node for stage in readers for node in stage.source))
            where = f"task {self.name!r}"
            raise AllocationError(error.what, where=where, mend=error.mend, nodes=nodes) from error

    def _place(self, index: int) -> str:
        """Which stage that is: its task, and what it is made of in the model."""
        nodes = list(dict.fromkeys(self.quantised.stages[index].stage.source))
        more = f" and {len(nodes) - SHOWN_NODES} more" * (len(nodes) > SHOWN_NODES)
        return f"task {self.name!r}" + f", node '{', '.join(nodes[:SHOWN_NODES])}'{more}" * bool(nodes)

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

    def _attention_words(self) -> tuple[int, tuple[str, ...]]:
        """Of operand memory, that K and V take at most, and the nodes that make these."""
        most = 0
        nodes: tuple[str, ...] = ()
        for q in self.quantised.stages:
            if isinstance(q, QuantisedLinear) and isinstance(q.stage, LinearStage) and q.stage.heads:
                words = sum(self._key_value_words(q.stage))
                if words > most:
                    most, nodes = words, q.stage.source
        return most, nodes

    def _key_value_words(self, s: LinearStage) -> tuple[int, int]:
        c = self.config
        channels = s.heads * head_padding(s.head_dim, c)
        key = layout.ceil_div(s.rows, c.columns) * (channels // c.depth)
        return key, (channels // c.columns) * layout.ceil_div(s.rows, c.depth)

    # -- stages ------------------------------------------------------------------------------------------------

    def _whole(self, index: int, last_use: dict[str, int]) -> None:
        """A stage for all rows, after those before it."""
        stage = self.quantised.stages[index]
        if isinstance(stage, QuantisedAttention):
            self._attention(stage.stage, stage)
        elif isinstance(stage, QuantisedMoe):
            emit_experts(self.draft, stage, self.routing)
        elif isinstance(stage.stage, EmbedStage):
            emit_embed(self.draft, stage.stage, stage, self.quantised, self.inputs[stage.stage.x])
        elif isinstance(stage.stage, LinearStage):
            self._dense(stage.stage, stage, last_use[stage.stage.residual or ""] == index)

    def _dense(self, s: LinearStage, q: QuantisedLinear, residual_dies: bool) -> None:
        draft = self.draft
        x = draft.places[s.x].tensor
        if self._leaves_at_once(s):
            window = plan_output(draft, s, q, [o.order for o in self.stages.graph.outputs if o.tensor == s.output])
            if window is not None:
                self._buffer(emit_output(draft, s, q, window, self.output_bytes))
                return
        residual = draft.places[s.residual].tensor if s.residual else None
        out = self._out(s, q, residual if residual_dies else None)
        extra = self._key_value(s, q) if s.heads else ()
        emit_linear(
            draft, q, Rows(name=s.name, x=x, input_row=s.row, out=out, output_row=0, rows=s.rows, residual=residual,
                           extra=extra, macs=s.macs, source=s.source),
        )  # fmt: skip

    def _out(self, s: LinearStage, q: QuantisedLinear, place: Tensor | None) -> Tensor:
        """A layer's output, in the place of its residual if that is given and is not what it loads."""
        addr = None if place is None or place.addr == self.draft.places[s.x].tensor.addr else place.addr
        return self.draft.tensor(s.output, s.rows, q.key_channels, q.output, addr=addr)

    def _key_value(self, s: LinearStage, q: QuantisedLinear) -> tuple[Tensor, Tensor]:
        draft, c, formats = self.draft, self.config, self.quantised.formats
        assert s.key is not None and s.value is not None
        key_words, _ = self._key_value_words(s)
        channels = q.value_channels - q.key_channels
        return (
            draft.tensor(s.key, s.rows, channels, formats[s.key], memory=MEMORY_KEY, addr=draft.ring_words,
                         stride=channels // c.depth),
            draft.tensor(s.value, s.rows, channels, formats[s.value], memory=MEMORY_VALUE,
                         addr=draft.ring_words + key_words, stride=layout.ceil_div(s.rows, c.depth)),
        )  # fmt: skip

    def _chained(self, index: int, last_use: dict[str, int]) -> int:
        """Stages from ``index`` on in chunks of rows, if they have to be. Returns how many."""
        chain = find_chain(self.draft, self.quantised, index, frozenset(o.tensor for o in self.stages.graph.outputs))
        if chain is None:
            return 0
        final = chain.stages[-1]
        end = index + len(chain.stages)
        place = None
        if isinstance(final, QuantisedLinear) and isinstance(final.stage, LinearStage):
            residual = final.stage.residual
            place = self.draft.places[residual].tensor if residual and last_use[residual] == end - 1 else None
        words = 0 if place else chain.rows * self.draft.words(chain.channels, final.output)
        rows = rows_at_once(self.draft, chain, words)
        if rows == chain.rows:
            return 0
        out = self.draft.tensor(
            final.stage.output, chain.rows, chain.channels, final.output, addr=place.addr if place else None
        )
        first = chain.stages[0].stage
        assert isinstance(first, LinearStage) and isinstance(chain.stages[0], QuantisedLinear)
        emit_chain(self.draft, chain, rows, out, self._key_value(first, chain.stages[0]) if first.heads else ())
        return len(chain.stages)

    def _leaves_at_once(self, s: LinearStage) -> bool:
        """Whether a layer makes an output of the model that nothing reads, so that its rows may leave as they come."""
        read = any(s.output in reads(other.stage) for other in self.quantised.stages)
        return not (read or s.heads or s.residual) and s.output in {o.tensor for o in self.stages.graph.outputs}

    def _attention(self, s: AttentionStage, q: QuantisedAttention) -> None:
        channels = self.draft.places[s.x].tensor.channels
        emit_attention(self.draft, q, self.draft.tensor(s.output, s.rows, channels, q.output))

    def _outputs(self) -> tuple[Output, ...]:
        out = []
        for o in self.stages.graph.outputs:
            place = self.draft.places[o.tensor]
            t, (rows, channels) = place.tensor, self.stages.graph.tensors[o.tensor]
            if o.tensor not in self.offsets:
                self._buffer(t)
                self._copy_out(t, place.ready)
            order, blocks = o.order, t.rows // rows
            if blocks > 1:
                order, rows, channels = in_blocks(order, rows, channels, blocks), t.rows, t.channels
            parts = () if order is None else walks(order, rows * channels)
            out.append(Output(o.name, o.model_shape, rows, channels, parts, t.name, self.offsets[o.tensor]))
        return tuple(out)

    def _copy_out(self, t: Tensor, wait: int) -> None:
        words, size = t.rows * t.stride, self.config.columns
        step = MAX_DMA_WORDS // self.config.axi_bytes * self.config.axi_bytes  # so that each starts at a bus word
        for first in range(0, words, step):
            self.draft.issue(
                DmaOut(wait=wait, src=t.addr + first, words=min(step, words - first),
                       offset=self.offsets[t.name] + first * size)
            )  # fmt: skip

    def _buffer(self, t: Tensor) -> None:
        """Give a tensor its place in the output buffer."""
        self.offsets[t.name] = self.output_bytes
        self.output_bytes += t.rows * t.stride * self.config.columns
        self.output_bytes += -self.output_bytes % BLOCK_BYTES
