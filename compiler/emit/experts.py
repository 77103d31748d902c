"""A mixture of experts: its gate, then all experts one after the other, each on the tokens of its queue.

The experts' two matrices are pipelined by one: up(0), up(1), down(0), up(2), down(1), … So the wait of down(e) for
the hidden rows of up(e) is covered by up(e + 1), and two buffers of hidden rows are enough. Where there is room for one
only, down(e) follows up(e). An expert may also go slice by slice of its hidden channels (``groups``): up(e.0), up(e.1),
down(e.0), …
"""

from dataclasses import dataclass

from moevit import layout
from moevit.compiler.emit.draft import Draft
from moevit.compiler.emit.groups import plan_experts, slices_of
from moevit.compiler.quantise import Format, QuantisedLinear, QuantisedMoe
from moevit.errors import AllocationError
from moevit.isa import Linear, OutputType
from moevit.numerics.route import SCORE_FRACTION
from moevit.program import MEMORY_QUEUE, Tensor


@dataclass(frozen=True)
class Routing:
    """How mixtures of experts are computed; the results are the same, but for roundings where memory is scarce.

    Parameters
    ----------
    speculate : an expert's weights are fetched before the gate has decided whether it has tokens
    rows : tokens that are routed before the experts run, at most; None for as many as the memories hold, better all
    """

    speculate: bool = True
    rows: int | None = None


def emit_experts(draft: Draft, q: QuantisedMoe, routing: Routing) -> None:
    """Add the instructions, tensors and layers of a mixture of experts; its input and residual are in place."""
    _Experts(draft, q, routing).run()


class _Experts:
    def __init__(self, draft: Draft, q: QuantisedMoe, routing: Routing) -> None:
        self.draft, self.q, self.routing = draft, q, routing
        self.s, self.op = q.stage, q.stage.moe
        s, op, config = self.s, self.op, draft.config
        self.x = draft.places[s.x].tensor
        kept = 0 if q.gate.norm is None else draft.words(op.gate_weight.shape[1], q.rows)
        self.plan = plan_experts(draft, q, self._rows_at_once(), kept)
        self.rows = self.plan.rows
        window = self.rows if self.rows < s.rows else 0
        residual = draft.places[s.residual]
        width = layout.ceil_div(op.down_weight.shape[1], config.columns) * config.columns
        self.out = draft.tensor(s.output, s.rows, width, q.output, addr=residual.tensor.addr)
        self.before = residual.tensor  # what the first expert adds to
        scores = Format("uint16", 2.0**-SCORE_FRACTION)
        self.scores = draft.tensor(
            f"{op.output}#scores", s.rows, op.experts, scores, memory=MEMORY_QUEUE, addr=0, stride=0, window=window
        )
        self.seen = self.x
        if kept:
            name = s.norm_output or f"{s.x}#kept"
            self.seen = draft.tensor(name, s.rows, op.gate_weight.shape[1], q.rows, window=window)
        size = self.rows * self.plan.words
        self.buffers = [draft.memory.take(size, f"hidden rows of '{s.name}'") for _ in range(self.plan.buffers)]
        self.downs = [slices_of(down, self.plan.slices, up.second[2]) for up, down in q.experts]
        self.down_chunks = draft.column_chunks(s.name, self.downs[0][0])
        self.ready = [residual.ready] * len(self.down_chunks)  # when the columns of each chunk are complete
        layers = 2 * op.experts * self.plan.slices * layout.ceil_div(s.rows, self.rows)
        each, rest = divmod(s.macs - s.rows * op.gate_weight.size, layers)
        self.macs = [each + rest] + [each] * (layers - 1)  # of the experts' layers, last first

    def _rows_at_once(self) -> int:
        """Tokens per gate: those that the queues hold in any case, in whole row tiles where that is less."""
        config, top_k = self.draft.config, self.op.top_k
        most = config.queue_entries // top_k
        if most == 0:
            raise AllocationError(
                f"a token of layer '{self.s.name}' goes to {top_k} experts; the queues hold {config.queue_entries}",
                mend="use a configuration with more queue_entries",
            )
        wanted = min(self.routing.rows or self.s.rows, self.s.rows)
        return wanted if wanted <= most else max(most // config.rows * config.rows, min(most, config.rows))

    def run(self) -> None:
        draft = self.draft
        parts = [_Part(e, j) for e in range(self.op.experts) for j in range(self.plan.slices)]
        for first in range(0, self.s.rows, self.rows):
            rows = min(self.rows, self.s.rows - first)
            decided = self._gate(first, rows)
            waiting: list[tuple[_Part, Tensor, int]] = []  # parts whose second half is to come
            last = 0
            for number, part in enumerate(parts):
                hidden = self._up(part, first, rows, decided, self.buffers[number % len(self.buffers)])
                waiting.append((part, *hidden))
                if len(waiting) == len(self.buffers):
                    last = self._down(first, rows, decided, *waiting.pop(0))
            for rest in waiting:
                last = self._down(first, rows, decided, *rest)
            draft.done(self.out, first, rows, last)
        if self.seen is not self.x:
            draft.memory.free(self.seen.addr)
        for addr in self.buffers:
            draft.memory.free(addr)

    def _name(self, name: str, first: int) -> str:
        """A name of its own for each group of tokens, if there are several."""
        return name if self.rows == self.s.rows else f"{name}@{first}"

    def _gate(self, first: int, rows: int) -> int:
        """Route some tokens. Returns the retired count at which their queues are complete."""
        draft, q, op, x = self.draft, self.q, self.op, self.x
        name = self._name(f"{self.s.name}.gate", first)
        tiles, words = draft.tiles(q.gate), layout.ceil_div(q.gate.weight.shape[1], draft.config.depth)
        if tiles * words > draft.ring_words:
            raise AllocationError(
                f"the gate '{name}' has {tiles * words} operand words, all at once; the ring has {draft.ring_words}",
                mend="use a configuration with a larger operand_words",
            )
        fields = draft.load_fields(q.gate, name) | {
            "n_rows": rows, "src": x.addr + first * x.stride, "src_stride": x.stride, "tiles": tiles,
            "key_tile": tiles, "value_tile": tiles, "dst": 0, "dst_stride": 0,
            "route": int(q.order), "experts": op.experts, "top_k": op.top_k, "threshold": q.threshold, "clear": 1,
        }  # fmt: skip
        outputs: tuple[str, ...] = (self.scores.name,)
        wait = draft.wait_rows(x, first, rows)
        if self.seen is not x:
            outputs = (self.scores.name, self.seen.name)
            fields |= {"keep": 1, "keep_dst": draft.row_word(self.seen, first), "keep_stride": self.seen.stride}
            wait = max(wait, draft.wait_words(draft.row_word(self.seen, first), rows * self.seen.stride))
        index = draft.issue(Linear(wait=wait, **fields))
        stream = draft.stream(q.gate, 0, tiles, index)
        for tensor in (self.scores, self.seen) if self.seen is not x else (self.scores,):
            draft.piece(tensor, first, rows, index)
        # The ONNX nodes are the gate's; repeated for every expert they would be most of a container's tables.
        draft.record("route", name, (x.name,), outputs, [index], [stream], rows=rows, input_row=first,
                     output_row=first, macs=rows * op.gate_weight.size, source=self.s.source)  # fmt: skip
        return index + 1

    def _expert(
        self, e: int, q: QuantisedLinear, chunk: tuple[int, int], decided: int, wait: int, fields: dict[str, int]
    ) -> tuple[int, int]:
        """One LINEAR of an expert and its STREAM."""
        first, end = chunk
        index = self.draft.issue(
            Linear(wait=wait, tiles=end - first, key_tile=end - first, value_tile=end - first, queue=e, **fields)
        )
        predicate = {"predicated": 1, "queue": e, "speculative": int(self.routing.speculate), "wait": decided}
        return index, self.draft.stream(q, first, end, index, **predicate)

    def _up(self, part: "_Part", first: int, rows: int, decided: int, buffer: int) -> tuple[Tensor, int]:
        """Tokens of a queue to hidden rows. Returns those and the retired count at which they are complete."""
        draft, q = self.draft, self.q.experts[part.expert][0]
        name = self._name(f"{self._of(part)}.up", first)
        start, stop = part.slice * self.plan.words, (part.slice + 1) * self.plan.words
        hidden = draft.tensor(
            self._name(f"{self.op.output}#hidden.{self._number(part)}", first), rows,
            q.key_channels // self.plan.slices, q.output, addr=buffer, stride=self.plan.words, gate=self.scores.name,
            expert=part.expert,
        )  # fmt: skip
        fields = draft.load_fields(q, name) | {
            "n_rows": rows, "src": draft.row_word(self.seen, first), "src_stride": self.seen.stride,
            "dst_stride": hidden.stride, "activation": int(q.activation), "mult": q.second[0], "shift": q.second[1],
            "zero_point": q.second[2], "out_type": int(OutputType[hidden.dtype.upper()]), "gather": 1,
        }  # fmt: skip
        parts = [
            self._expert(part.expert, q, chunk, decided, decided, fields | {"dst": hidden.addr + chunk[0] - start})
            for chunk in draft.column_chunks(name, q, start, stop)
        ]
        work = [index for index, _ in parts]
        draft.piece(hidden, 0, rows, work[-1])
        draft.record("gather", name, (self.seen.name, self.scores.name), (hidden.name,), work, [s for _, s in parts],
                     rows=rows, input_row=first, macs=self.macs.pop())  # fmt: skip
        return hidden, work[-1] + 1

    def _down(self, first: int, rows: int, decided: int, part: "_Part", hidden: Tensor, ready: int) -> int:
        """Hidden rows, times their scores, to the rows of their tokens. Returns the last instruction."""
        draft, q, out = self.draft, self.downs[part.expert][part.slice], self.out
        name = self._name(f"{self._of(part)}.down", first)
        fields = draft.load_fields(q, name) | {
            "n_rows": rows, "src": hidden.addr, "src_stride": hidden.stride, "dst_stride": out.stride,
            "out_type": int(OutputType.INT16), "residual": 1, "scatter": 1,
        }  # fmt: skip
        parts = []
        for column, chunk in enumerate(self.down_chunks):
            wait = max(ready, self.ready[column])
            at = draft.row_word(out, first) + 2 * chunk[0]
            parts.append(self._expert(part.expert, q, chunk, decided, wait, fields | {"dst": at, "res": at}))
            self.ready[column] = parts[-1][0] + 1
        work = [index for index, _ in parts]
        inputs = (hidden.name, self.scores.name, self.before.name)
        draft.record("scatter", name, inputs, (out.name,), work, [s for _, s in parts], rows=rows, input_row=first,
                     output_row=first, macs=self.macs.pop())  # fmt: skip
        self.before = out
        return work[-1]

    def _number(self, part: "_Part") -> str:
        return str(part.expert) if self.plan.slices == 1 else f"{part.expert}.{part.slice}"

    def _of(self, part: "_Part") -> str:
        return f"{self.s.name}.experts.{self._number(part)}"


@dataclass(frozen=True)
class _Part:
    """An expert's slice of hidden channels."""

    expert: int
    slice: int
