"""Which nodes of a model the machine computes, and which the host does.

That is no property of a node: the machine adds a residual only behind a linear layer, and what is cut off in the middle
of an attention is no matrix. So all nodes begin as the machine's, the front end says of each of the machine's parts
what it cannot do, that moves to the host, and so on until every part can be done. Each round moves a node, so it ends.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from moevit.compiler import ir
from moevit.compiler.frontend import qdq
from moevit.compiler.frontend.form import LAYOUT
from moevit.compiler.frontend.load import lower
from moevit.compiler.fuse import fuse
from moevit.compiler.legalise import legalise
from moevit.compiler.partition.cut import Part, components, cut
from moevit.compiler.partition.flow import Flow, owner_names
from moevit.compiler.partition.macs import node_macs
from moevit.errors import UnsupportedNode, UnsupportedOpError
from moevit.pipeline import HostNode

_log = logging.getLogger(__name__)

#: What is less is the host's, since the way to the machine and back takes longer than to compute it: multiply-
#: accumulates altogether, as a part of the model's, and for each element that crosses.
WORTH_MACS = 1 << 15
WORTH_SHARE = 1 / 1000
WORTH_EACH = 8
_LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat", "Split", "Identity"}
#: what may stand between these, with a constant
_WITH_CONSTANT = {"Add", "Sub", "Mul", "Div"}
_SMALL = "none is needed: it is little work"
_ARRANGES = "it arranges what the host makes as the machine takes it"
_SHAPE_WAY_OUT = "move it behind the last operation of the accelerator, or before the first"


@dataclass(frozen=True)
class Split:
    """A model as parts in the order in which they run, and the graphs of the machine's, by part."""

    parts: tuple[Part, ...]
    graphs: dict[int, ir.Graph]
    host: dict[str, HostNode]  #: by name, in the model's order
    macs: dict[str, int]  #: of each node


def split(
    flow: Flow, refused: Iterable[UnsupportedNode] = (), formats: qdq.Stripped | None = None,
    beyond: Mapping[str, UnsupportedNode] | None = None,
) -> Split:  # fmt: skip
    """Split a model between host and machine.

    Parameters
    ----------
    flow : the model
    refused : what the front end says of nodes in the whole of it; these reasons are kept, but for those of how another
        node arranges things
    formats : those that the model states of its tensors
    beyond : nodes that the machine can do, but not with their values or its memories, by name

    Raises
    ------
    UnsupportedOpError : nothing is left for the machine; it holds every node that it refused
    ModelError : the front end cannot read a part
    """
    known = {node.name: node for node in refused if node.way_out != LAYOUT}
    splitter = _Splitter(flow, known | dict(beyond or {}), formats)
    for node in flow.nodes:
        for problem in (beyond[name] for name in owner_names(node) if beyond and name in beyond):
            splitter.move([node], problem.reason, problem.way_out)
    return splitter.run()


class _Splitter:
    def __init__(self, flow: Flow, known: Mapping[str, UnsupportedNode], formats: qdq.Stripped | None) -> None:
        self.flow, self.known, self.formats = flow, known, formats
        self.host: dict[str, HostNode] = {}
        self._lowered: dict[object, ir.Graph] = {}  # by key of the part
        self.macs = {node.name: node_macs(flow, node) for node in flow.nodes}
        self.total = sum(self.macs.values())
        self._order = {node.name: i for i, node in enumerate(flow.nodes)}

    def run(self) -> Split:
        while True:
            parts = cut(self.flow, self.host)
            machine = [p for p in parts if not p.host]
            before = len(self.host)
            for part in machine:
                self._move_small(part)
            if len(self.host) == before:
                for part in machine:
                    self._lower(part)
            if len(self.host) == before:
                for part in machine:
                    self._move_last_norms(part)
            if len(self.host) == before:
                break
            _log.info("%d of %d nodes are the host's", len(self.host), len(self.flow.nodes))
        host = dict(sorted(self.host.items(), key=lambda entry: self._order[entry[0]]))
        if not machine:
            nodes = [UnsupportedNode(name=n.name, op=n.op, reason=n.reason, way_out=n.way_out) for n in host.values()]
            raise UnsupportedOpError(nodes, where=self.flow.where, mend="nothing is left for the accelerator")
        graphs = {i: self._lowered[p.key] for i, p in enumerate(parts) if not p.host}
        return Split(tuple(parts), graphs, host, self.macs)

    def move(self, nodes: Iterable[onnx.NodeProto], reason: str, way_out: str) -> None:
        """Give nodes to the host, unless they are already."""
        for node in nodes:
            op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
            known = self.known.get(node.name)
            why = (reason, way_out) if known is None else (known.reason, known.way_out)
            self.host.setdefault(node.name, HostNode(node.name, op, *why))

    def _move_small(self, part: Part) -> None:
        """What has too little work to start the machine for, or none: only shapes and single functions."""
        for nodes in components(self.flow, part):
            macs = sum(self.macs[n.name] for n in nodes)
            if macs < max(WORTH_MACS, WORTH_SHARE * self.total, WORTH_EACH * self._crossing(part, nodes)):
                work = f"only {macs:,} multiply-accumulates" if macs else "no linear layer"
                self.move(nodes, f"with the nodes around it there is {work} for the accelerator", _SMALL)

    def _crossing(self, part: Part, nodes: Sequence[onnx.NodeProto]) -> int:
        """Elements of a part's inputs and outputs that some of its nodes read and make."""
        ends = {t for n in nodes for t in self.flow.reads(n)} & set(part.inputs)
        ends |= {t for n in nodes for t in n.output} & set(part.outputs)
        return sum(self.flow.values[t].size for t in ends)

    def _lower(self, part: Part) -> None:
        if part.key in self._lowered:
            return
        flow = self.flow
        if self._move_odd_inputs(part):
            return
        inner = {n: flow.shape(n) for n in part.inputs if n not in flow.inputs}
        try:
            graph = lower(flow.part(part.nodes, part.outputs), flow.where, inner, self.formats)
        except UnsupportedOpError as error:
            self._blame(part, error.nodes, {})
            return
        if self._move_copies(part, graph) or self._move_leftovers(part, graph):
            return
        legal = legalise(graph)
        refused = _refused(legal)
        if refused:
            self._blame(part, refused, _first_refused(legal, {p.name for p in refused}))
        else:
            self._lowered[part.key] = graph

    def _move_odd_inputs(self, part: Part) -> bool:
        """Move the readers of tensors that the machine cannot be given."""
        moved = False
        for name in part.inputs:
            value = self.flow.values[name]
            if value.dtype != "float32" or not value.shape or value.size == 0:
                self.move(self._readers(part, name), f"it reads '{name}', which is {value.dtype}", _SHAPE_WAY_OUT)
                moved = True
        return moved

    def _move_copies(self, part: Part, graph: ir.Graph) -> bool:
        """Move what makes outputs that are inputs, or rows of them."""
        given = {i.name for i in graph.inputs}
        given |= {op.output for op in graph if isinstance(op, ir.Rows) and op.x in given}
        moved = False
        for output in graph.outputs:
            if output.tensor in given:
                self.move(self._makers(part, output.name), "it only copies", _SMALL)
                moved = True
        return moved

    def _move_leftovers(self, part: Part, graph: ir.Graph) -> bool:
        """Move what the machine could only do by a linear layer that changes nothing, where the host is next to it."""
        names = {p.name for p in _refused(graph)}
        given = {i.name for i in graph.inputs} - set(self.flow.inputs)
        owners = {name: node for node in part.nodes for name in owner_names(node)}
        before = len(self.host)
        for op in graph:
            made = {o.name for o in graph.outputs if o.tensor == op.output}
            last = bool(made) and not graph.consumers(op.output) and not made & set(self.flow.outputs)
            if (", ".join(op.source) or op.name) in names and (set(op.inputs) <= given or last):
                self.move([owners[s] for s in op.source if s in owners], "there is no linear layer with it", _SMALL)
        return len(self.host) > before

    def _move_last_norms(self, part: Part) -> None:
        """Norms that only the host reads: to the machine they are a linear layer, and cost precision."""
        graph = self._lowered[part.key]
        outputs = {o.tensor for o in graph.outputs if o.name not in self.flow.outputs}
        names = {name: node for node in part.nodes for name in owner_names(node)}
        for op in graph:
            if isinstance(op, ir.LayerNorm) and op.output in outputs and not graph.consumers(op.output):
                nodes = [names[s] for s in op.source if s in names]
                self.move(nodes, "only nodes of the host read this normalisation", _SMALL)

    def _arranges(self, node: onnx.NodeProto) -> bool:
        """Whether a node only rearranges one tensor, or adds or multiplies constants."""
        return node.op_type in _LAYOUT or (node.op_type in _WITH_CONSTANT and len(self.flow.reads(node)) == 1)

    def _layout_before(self, part: Part, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """The nodes of a part that a node depends on, if all of them only arrange; else None."""
        makers = {t: n for n in part.nodes for t in n.output}
        out: dict[str, onnx.NodeProto] = {}
        pending = [node]
        while pending:
            for t in self.flow.reads(pending.pop()):
                maker = makers.get(t)
                if maker is not None and maker.name not in out:
                    if not self._arranges(maker):
                        return None
                    out[maker.name] = maker
                    pending.append(maker)
        return list(out.values())

    def _for_the_machine(self, part: Part, node: onnx.NodeProto) -> bool:
        """Whether a node only arranges what the host makes."""
        before = self._layout_before(part, node)
        if before is None or not self._arranges(node):
            return False
        return not {t for n in (node, *before) for t in self.flow.reads(n)} & set(self.flow.inputs)

    def _first(
        self, part: Part, found: list[tuple[UnsupportedNode, onnx.NodeProto]]
    ) -> list[tuple[UnsupportedNode, onnx.NodeProto]]:
        """Problems without those of how what another one's node makes is arranged: the host may arrange it well."""
        blamed = {node.name for _, node in found}
        behind: set[str] = set()  # nodes that depend on these
        tensors: set[str] = set()
        for node in part.nodes:
            if tensors & set(self.flow.reads(node)):
                behind.add(node.name)
            if node.name in behind | blamed:
                tensors |= set(node.output)
        return [(p, node) for p, node in found if p.way_out != LAYOUT or node.name not in behind]

    def _readers(self, part: Part, name: str) -> list[onnx.NodeProto]:
        return [n for n in part.nodes if name in self.flow.reads(n)]

    def _makers(self, part: Part, name: str) -> list[onnx.NodeProto]:
        return [n for n in part.nodes if name in n.output]

    def _blame(
        self, part: Part, problems: Iterable[UnsupportedNode], sources: dict[str, tuple[str, ...]]
    ) -> None:
        """Move the nodes that problems are about; ``sources`` are those of a problem by its name, and where there are
        any, only these problems count."""
        owners = {name: node for node in part.nodes for name in owner_names(node)}
        before = len(self.host)
        problems = [p for p in problems if not sources or p.name in sources]
        found = []
        for p in problems:
            named = [owners[s] for s in sources.get(p.name, (p.name, *p.name.split(", "))) if s in owners]
            found += [(p, node) for node in named or self._readers(part, p.name) or self._makers(part, p.name)]
        found = self._first(part, found)
        # What only rearranges an input of the part may be all that is wrong, with other nodes too.
        before_it = [(p, self._layout_before(part, node) or []) for p, node in found]
        if any(nodes for _, nodes in before_it):
            moves = before_it
        else:
            moves = [(p, [node]) for p, node in found]
        for p, nodes in moves:
            for node in nodes:
                arranges = self._for_the_machine(part, node)
                self.move([node], *((_ARRANGES, _SMALL) if arranges else (p.reason, p.way_out)))
        if len(self.host) == before:
            first = problems[0]
            self.move(part.nodes, f"with others it cannot be mapped: {first}", first.way_out)


def _refused(graph: ir.Graph) -> list[UnsupportedNode]:
    """The operations of a graph that no stage covers."""
    try:
        fuse(graph)
    except UnsupportedOpError as error:
        return list(error.nodes)
    return []


def _first_refused(graph: ir.Graph, names: set[str]) -> dict[str, tuple[str, ...]]:
    """Of the operations that no stage covers, by the names that their problems have, those that depend on no other:
    the others may be refused on their account. With the nodes that they were made from."""
    out: dict[str, tuple[str, ...]] = {}
    behind: set[str] = set()  # tensors
    for op in graph:
        name = ", ".join(op.source) or op.name
        if set(op.inputs) & behind:
            behind.add(op.output)
        elif name in names:
            out[name] = op.source
            behind.add(op.output)
    return out
