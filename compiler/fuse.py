"""Graph to stages: which operations go through the pipeline together."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from moevit.compiler import ir
from moevit.compiler.stages import (
    AttentionStage,
    EmbedStage,
    LinearStage,
    MoeStage,
    Stage,
    Stages,
    copied,
    identity_linear,
    reads,
)
from moevit.errors import UnsupportedNode, UnsupportedOpError
from moevit.numerics.route import MAX_EXPERTS, MAX_TOP_K


def fuse(graph: ir.Graph) -> Stages:
    """Cover every operation of a verified graph with stages.

    Raises
    ------
    UnsupportedOpError
        Listing every operation that no stage covers.
    """
    return _Fuser(graph).run()


class _Fuser:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.outputs = {o.tensor for o in graph.outputs}
        self.stages: list[Stage] = []
        self.done: set[str] = set()  # names of operations that a stage covers
        self.problems: list[UnsupportedNode] = []
        self.qkv = self._find_qkv()

    def run(self) -> Stages:
        for op in self.graph:
            if op.name in self.done:
                continue
            if isinstance(op, ir.PatchEmbed):
                self._embed(op)
            elif isinstance(op, ir.Linear):
                self._linear(op)
            elif isinstance(op, ir.Attention):
                self._attention(op)
            elif isinstance(op, ir.MoE):
                self._moe(op)
            elif isinstance(op, ir.LayerNorm):
                self._norm(op)
            elif isinstance(op, ir.Rows) and op.output not in self.outputs:
                self.done.add(op.name)  # its readers take the rows they want
        for op in self.graph:
            if op.name not in self.done:
                self._refuse(op, "no stage of the pipeline takes it here")
        if self.problems:
            raise UnsupportedOpError(self.problems, where=self.graph.name)
        return Stages(self.graph, tuple(self._own_residuals()))

    def _refuse(self, op: ir.Op, reason: str, way_out: str = "keep it out of the exported graph") -> None:
        self.done.add(op.name)
        name = ", ".join(op.source) or op.name
        self.problems.append(UnsupportedNode(name=name, op=type(op).__name__, reason=reason, way_out=way_out))

    def _macs(self, ops: Iterable[ir.Op]) -> int:
        return sum(op.macs(*(self.graph.tensors[i] for i in op.inputs)) for op in ops)

    def _only_reader(self, tensor: str) -> ir.Op | None:
        readers = self.graph.consumers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def _emit(self, stage: Stage, ops: Iterable[ir.Op]) -> None:
        self.stages.append(stage)
        self.done.update(op.name for op in ops)

    def _embed(self, op: ir.PatchEmbed) -> None:
        ops: list[ir.Op] = [op]
        patches, channels = self.graph.tensors[op.output]
        base, first, output = np.zeros((patches, channels), np.float32), 0, op.output
        assemble = self._only_reader(op.output)
        if isinstance(assemble, ir.Assemble):
            ops.append(assemble)
            base = np.concatenate([assemble.prefix, assemble.pos])
            first, output = len(assemble.prefix), assemble.output
        c, h, w = self.graph.tensors[op.x]
        self._emit(
            EmbedStage(
                name=op.name, x=op.x, output=output, source=tuple(s for o in ops for s in o.source),
                macs=self._macs(ops), image=(c, h, w), patch=op.patch, weight=op.weight, bias=op.bias,
                base=base, first=first,
            ),
            ops,
        )  # fmt: skip

    def _origin(self, tensor: str) -> tuple[str, int, int, ir.LayerNorm | None, list[ir.Op]]:
        """What a linear layer really loads: (tensor, first row, rows, norm, operations passed over)."""
        row = 0
        norm: ir.LayerNorm | None = None
        ops: list[ir.Op] = []
        rows = self.graph.tensors[tensor][0]
        while True:
            op = self.graph.producer(tensor)
            if isinstance(op, ir.Rows):
                row += op.start
            elif isinstance(op, ir.LayerNorm) and norm is None and not self._kept(op):
                norm = op
            else:
                return tensor, row, rows, norm, ops
            ops.append(op)
            tensor = op.inputs[0]

    def _kept(self, norm: ir.LayerNorm) -> bool:
        """Whether a norm's result must be in memory: for a reader other than linear layers or one gate."""
        if isinstance(self._only_reader(norm.output), ir.MoE):
            return False

        def linear_only(tensor: str) -> bool:
            return tensor not in self.outputs and all(
                isinstance(r, ir.Linear) or (isinstance(r, ir.Rows) and linear_only(r.output))
                for r in self.graph.consumers(tensor)
            )
        return not linear_only(norm.output)

    def _norm(self, op: ir.LayerNorm) -> None:
        if self._kept(op):
            x, row, rows, _, _ = self._origin(op.x)
            self._emit(identity_linear(op, op.name, x, row, rows), [op])
        else:
            self.done.add(op.name)

    def _linear(self, op: ir.Linear) -> None:
        if op.name in self.qkv:
            return self._fused_qkv(self.qkv[op.name])
        x, row, rows, norm, passed = self._origin(op.x)
        ops: list[ir.Op] = [op]
        output, activation, residual = op.output, None, None
        reader = self._only_reader(output)
        if isinstance(reader, ir.Activation):
            activation, output = reader.kind, reader.output
            ops.append(reader)
        elif (add := self._residual(output)) is not None:
            ops.append(add)
            residual, output = _other(add, output), add.output
        self._emit(
            LinearStage(
                name=op.name, x=x, output=output, source=tuple(s for o in (*passed, *ops) for s in o.source),
                macs=self._macs(ops), row=row, rows=rows, weight=op.weight, bias=op.bias, norm=norm,
                norm_output=None if norm is None else norm.output, activation=activation, residual=residual,
            ),
            ops,
        )  # fmt: skip
        return None

    def _residual(self, tensor: str) -> ir.Add | None:
        """What adds a tensor that nothing else reads to one that there is already."""
        reader = self._only_reader(tensor)
        if not isinstance(reader, ir.Add):
            return None
        other = _other(reader, tensor)
        return reader if other != tensor and self._defined(other) else None

    def _moe(self, op: ir.MoE) -> None:
        x, row, rows, norm, passed = self._origin(op.x)
        reason, way_out = _beyond_the_gate(op)
        if (row, rows) != (0, self.graph.tensors[x][0]):
            reason, way_out = "it takes some of a tensor's tokens only", "give it all of them"
        if reason:
            self._refuse(op, reason, way_out)
            return
        ops: list[ir.Op] = [op]
        add = self._residual(op.output)
        if add is not None:
            ops.append(add)
        self._emit(
            MoeStage(
                name=op.name, x=x, output=op.output if add is None else add.output,
                source=tuple(s for o in (*passed, *ops) for s in o.source), macs=self._macs(ops), rows=rows,
                moe=op, residual="" if add is None else _other(add, op.output), norm=norm,
                norm_output=None if norm is None else norm.output,
            ),
            ops,
        )  # fmt: skip

    def _own_residuals(self) -> list[Stage]:
        """The stages, with each mixture of experts adding to rows that nobody else needs."""
        out: list[Stage] = []
        for index, stage in enumerate(self.stages):
            if isinstance(stage, MoeStage):
                later = {t for s in self.stages[index + 1 :] for t in reads(s)} | self.outputs
                if not stage.residual or stage.residual in later:
                    start = copied(stage.residual or None, f"{stage.moe.output}#start", stage)
                    out.append(start)
                    stage = replace(stage, residual=start.output)
            out.append(stage)
        return out

    def _defined(self, tensor: str) -> bool:
        """Whether a stage so far, or an input, has made a tensor."""
        return any(tensor == s.output for s in self.stages) or any(tensor == i.name for i in self.graph.inputs)

    def _find_qkv(self) -> dict[str, "_Triple"]:
        """Each linear layer that belongs to a triple read by one attention only, from rows of one tensor."""
        out: dict[str, _Triple] = {}
        for op in self.graph:
            if isinstance(op, ir.Attention) and isinstance(triple := self._triple(op), _Triple):
                out |= {p.name: triple for p in triple.linears}
        return out

    def _triple(self, op: ir.Attention) -> "_Triple | str":
        """The layers of an attention's q, k and v, or why they cannot be computed together."""
        linears = [p for t in op.inputs if isinstance(p := self.graph.producer(t), ir.Linear)]
        if len(linears) < 3 or any(self._only_reader(p.output) is not op for p in linears):
            return "its q, k and v are not linear layers that nothing else reads"
        (x, row, rows, norm, passed), *others = (self._origin(p.x) for p in linears)
        if any(o[0] != x or o[3] is not norm for o in others):
            return "its q, k and v are not linear layers of one tensor"
        (_, first, keys, _, _), (_, first_value, values, _, _) = others
        if (first, keys) != (first_value, values) or row < first:
            return "its queries begin before its keys"
        ops = tuple(dict.fromkeys((*passed, *(o for other in others for o in other[4]), *linears)))
        end = max(row + rows, first + keys)
        return _Triple(op, tuple(linears), ops, x, norm, first, end - first, row - first, rows, keys)

    def _fused_qkv(self, t: "_Triple") -> None:
        attention = t.attention
        self._emit(
            LinearStage(
                name=t.linears[0].name, x=t.x, output=attention.q, key=attention.k, value=attention.v,
                source=tuple(dict.fromkeys(s for o in t.ops for s in o.source)),
                macs=self._macs(t.linears), row=t.first, rows=t.rows,
                weight=np.concatenate([p.weight for p in t.linears]),
                bias=np.concatenate([p.bias for p in t.linears]), norm=t.norm,
                norm_output=None if t.norm is None else t.norm.output, heads=attention.heads,
                head_dim=attention.head_dim,
            ),
            t.linears,
        )  # fmt: skip

    def _attention(self, op: ir.Attention) -> None:
        triple = self._triple(op)
        if isinstance(triple, str):
            self._refuse(op, triple)
            return
        self._emit(
            AttentionStage(
                name=op.name, x=op.q, key=op.k, value=op.v, output=op.output, source=op.source,
                macs=self._macs([op]), heads=op.heads, head_dim=op.head_dim, scale=op.scale, mass=op.mass,
                row=triple.query, rows=triple.queries, keys=triple.keys,
            ),
            [op],
        )  # fmt: skip


@dataclass(frozen=True)
class _Triple:
    """The layers of an attention's q, k and v: rows ``first`` to ``first + rows`` of ``x``, all of which are computed.

    ``queries`` of them from ``query`` on are queries, the first ``keys`` are keys. ``ops`` are all operations covered.
    """

    attention: ir.Attention
    linears: tuple[ir.Linear, ...]
    ops: tuple[ir.Op, ...]
    x: str
    norm: ir.LayerNorm | None
    first: int
    rows: int
    query: int
    queries: int
    keys: int


def _other(add: ir.Add, tensor: str) -> str:
    """What is added to a tensor."""
    return add.b if add.a == tensor else add.a


def _beyond_the_gate(op: ir.MoE) -> tuple[str, str]:
    """Why the machine has no such gate, and a way out; empty when it has."""
    if op.experts > MAX_EXPERTS:
        return f"it has {op.experts} experts; the machine has {MAX_EXPERTS} queues", "use fewer experts"
    if op.top_k > MAX_TOP_K:
        return f"a token goes to {op.top_k} experts; the gate selects {MAX_TOP_K} at most", "use a smaller top-k"
    if op.threshold > 1:
        return f"no score reaches its threshold of {op.threshold:g}", "leave the experts out"
    return "", ""
