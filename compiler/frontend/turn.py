"""RMS normalisation as layer normalisation, by turning the residual stream into a space where all means are zero.

The machine's normalisation subtracts a token's mean, which RMS normalisation does not. But rotations change no root
mean square (SliceGPT, arXiv 2401.15024, uses that to shrink models), and with one channel more there is a rotation to
vectors whose channels add up to nothing: for `R` of shape `(d + 1, d)` with orthonormal columns, each of which adds up
to zero, `x @ R.T` has mean 0 and the squares of `x`. So for a token of d channels

    rms(x) @ R.T = layer_norm(x @ R.T) * sqrt(d / (d + 1)),    with eps * d / (d + 1) in place of eps,

exactly. All that makes such a stream gets `R` into its matrix, all that reads it `R.T`: a pass over the weights, at the
price of one more channel.
"""

from dataclasses import replace

import numpy as np

from moevit.compiler.ir import (
    Add,
    Array,
    Assemble,
    Graph,
    Identity,
    LayerNorm,
    Linear,
    MoE,
    Op,
    PatchEmbed,
    RmsNorm,
    Rows,
)
from moevit.errors import UnsupportedNode, UnsupportedOpError

_REASON = "the machine's normalisation subtracts the mean, which RMS normalisation does not; "
_WAY_OUT = "let the host do it, or train with layer normalisation"


def rotation(channels: int) -> Array:
    """`R` `(channels + 1, channels)`: the reflection that takes the last axis to the diagonal, without the last axis.

    Of all such matrices it is close to the identity: it takes a little of the mean off every channel and puts it into
    the last, so that channels stay what they are, with the ranges that they have.
    """
    n = channels + 1
    axis = np.full(n, -(n**-0.5))
    axis[-1] += 1
    return (np.eye(n) - 2 / (axis @ axis) * np.outer(axis, axis))[:, :-1].astype(np.float32)


def turn_rms_norms(graph: Graph) -> Graph:
    """The same function without `RmsNorm`.

    Raises
    ------
    UnsupportedOpError
        Naming each whose stream comes from outside or leaves as it is: no matrix could turn it there.
    """
    norms = [op for op in graph if isinstance(op, RmsNorm)]
    if not norms:
        return graph
    ends = {i.name for i in graph.inputs} | {o.tensor for o in graph.outputs}
    streams = {op: _stream(graph, op.x) for op in norms}
    refused = [_refusal(graph, op, sorted(s & ends)) for op, s in streams.items() if s & ends or graph.integer_weights]
    if refused:
        raise UnsupportedOpError(refused, where=graph.name)
    return _Turning(graph, set().union(*streams.values())).run()


def _refusal(graph: Graph, op: RmsNorm, ends: list[str]) -> UnsupportedNode:
    if graph.integer_weights:
        why = "a quantised model's weights are kept, so that they cannot make the mean zero"
    else:
        why = f"'{ends[0]}' is read or written as it is, so that no weights can make its mean zero"
    name = ", ".join(op.source) or op.name
    return UnsupportedNode(name=name, op=type(op).__name__, reason=_REASON + why, way_out=_WAY_OUT)


def _stream(graph: Graph, tensor: str) -> set[str]:
    """The tensors that are turned if one is: all that are added to it, or are tokens of it."""
    out: set[str] = set()
    pending = [tensor]
    while pending:
        t = pending.pop()
        if t in out:
            continue
        out.add(t)
        for op in (graph.producer(t), *graph.consumers(t)):
            if isinstance(op, Add | Rows | Assemble):
                pending += [*op.inputs, op.output]
    return out


class _Turning:
    def __init__(self, graph: Graph, turned: set[str]) -> None:
        self.graph, self.turned = graph, turned
        self.outputs = {o.tensor for o in graph.outputs}
        self.normed: dict[str, RmsNorm] = {}  # tensors that hold what a norm gives, turned, without gamma and beta
        self.plain: dict[str, str] = {}  # tensors turned back, by tensor
        self.ops: list[Op] = []

    def run(self) -> Graph:
        for op in self.graph:
            if isinstance(op, RmsNorm):
                self._norm(op)
            elif isinstance(op, Rows) and op.x in self.normed:
                self.normed[op.output] = self.normed[op.x]
                self.ops.append(op)
            elif isinstance(op, Add | Rows | Assemble) and op.output in self.turned:
                self.ops.append(self._turn(op))
            elif isinstance(op, Linear | MoE):
                self.ops.append(self._turn(self._reading(op)))
            else:
                self._other(op)
        return self.graph.replaced(self.ops)

    def _matrix(self, tensor: str) -> Array:
        return rotation(self.graph.tensors[tensor][1])

    def _turn(self, op: Op) -> Op:
        """An operation that makes a turned tensor."""
        if op.output not in self.turned:
            return op
        r = self._matrix(op.output)
        op = replace(op, given=None)
        if isinstance(op, Linear | PatchEmbed):
            return replace(op, weight=r @ op.weight, bias=r @ op.bias)
        if isinstance(op, MoE):
            return replace(op, down_weight=r @ op.down_weight, down_bias=op.down_bias @ r.T)
        if isinstance(op, Assemble):
            return replace(op, prefix=op.prefix @ r.T, pos=op.pos @ r.T)
        return op

    def _reading(self, op: Linear | MoE) -> Linear | MoE:
        """An operation whose matrices turn back what it reads."""
        norm = self.normed.get(op.x)
        if norm is None and op.x not in self.turned:
            return op
        r = self._matrix(op.x if norm is None else norm.x)

        def read(weight: Array, bias: Array) -> tuple[Array, Array]:
            if norm is None:
                return weight @ r.T, bias
            scaled: Array = weight * norm.gamma
            return scaled @ r.T, bias + weight @ norm.beta

        if isinstance(op, Linear):
            weight, bias = read(op.weight, op.bias)
            return replace(op, weight=weight, bias=bias)
        gate, up = read(op.gate_weight, op.gate_bias), read(op.up_weight, op.up_bias)
        return replace(op, gate_weight=gate[0], gate_bias=gate[1], up_weight=up[0], up_bias=up[1])

    def _norm(self, op: RmsNorm) -> None:
        channels = len(op.gamma)
        share = channels / (channels + 1)
        folded = op.output not in self.turned and self._weighed_only(op.output)
        output = op.output if folded else f"{op.output}#turned"
        self.normed[output] = op
        self.ops.append(
            LayerNorm(
                name=output, output=output, source=op.source, x=op.x, eps=op.eps * share,
                gamma=np.full(channels + 1, share**0.5, np.float32), beta=np.zeros(channels + 1, np.float32),
            )
        )  # fmt: skip
        if not folded:
            self.ops.append(self._turn(self._reading(_identity(output, op.output, channels, op.source))))

    def _weighed_only(self, tensor: str) -> bool:
        """Whether all that reads a tensor has weights that can turn it back."""
        readers = self.graph.consumers(tensor)
        return tensor not in self.outputs and all(
            isinstance(r, Linear | MoE) or (isinstance(r, Rows) and self._weighed_only(r.output)) for r in readers
        )

    def _other(self, op: Op) -> None:
        """An operation without weights for what it reads: it gets it turned back, and may be turned afterwards."""
        op = op.renamed({t: self._turned_back(t) for t in op.inputs if t in self.turned})
        if op.output in self.turned and not isinstance(op, PatchEmbed):
            channels, output = self.graph.tensors[op.output][1], op.output
            before = self.plain[output] = f"{output}#plain"
            self.ops.append(replace(op, name=before, output=before))
            op = _identity(before, output, channels, op.source)
        self.ops.append(self._turn(op))

    def _turned_back(self, tensor: str) -> str:
        if tensor not in self.plain:
            self.plain[tensor] = f"{tensor}#plain"
            channels = self.graph.tensors[tensor][1]
            self.ops.append(self._reading(_identity(tensor, self.plain[tensor], channels)))
        return self.plain[tensor]


def _identity(x: str, output: str, channels: int, source: tuple[str, ...] = ()) -> Identity:
    """A layer that changes nothing until it is turned."""
    weight, bias = np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32)
    return Identity(name=output, output=output, source=source, x=x, weight=weight, bias=bias)
