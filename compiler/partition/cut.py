"""Cutting a model whose nodes are for the host or for the machine into a sequence of parts, as few as possible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from moevit.compiler.partition.flow import Flow


@dataclass(frozen=True, eq=False)
class Part:
    """Nodes that run together; ``inputs`` are made before them, ``outputs`` are read after them or are the model's."""

    host: bool
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def key(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """The same for parts of the same nodes and outputs."""
        return frozenset(n.name for n in self.nodes), self.outputs


def cut(flow: Flow, host: Mapping[str, object]) -> list[Part]:
    """The parts in the order in which they run, the host's and the machine's by turns.

    Parameters
    ----------
    flow : the model
    host : names of the nodes that are the host's

    A node is as early as it can be, which makes the fewest turns; the host's are then moved to as late as they can be,
    so that what only a later part needs does not cross the machine's.
    """
    level: dict[str, int] = {}  # even: the host's turn
    made: dict[str, str] = {}  # tensor -> node
    for node in flow.nodes:
        odd = int(node.name not in host)
        before = max((level[made[t]] for t in flow.reads(node) if t in made), default=0)
        level[node.name] = before + (before % 2 != odd)
        made |= dict.fromkeys(node.output, node.name)
    last = max(level.values())
    late: dict[str, int] = {}  # by tensor: the last turn in which it can be made by the host
    for node in reversed(flow.nodes):
        if node.name in host:
            latest = min((late[t] for t in node.output if t in late), default=last - last % 2)
            level[node.name] = max(level[node.name], latest)
        turn = level[node.name]
        for t in flow.reads(node):
            late[t] = min(late.get(t, last), turn - turn % 2)
    turns = sorted(set(level.values()))
    return _parts(flow, [[n for n in flow.nodes if level[n.name] == turn] for turn in turns], host)


def _parts(flow: Flow, groups: Sequence[Sequence[onnx.NodeProto]], host: Mapping[str, object]) -> list[Part]:
    out = []
    for i, nodes in enumerate(groups):
        made = {t for n in nodes for t in n.output}
        read = dict.fromkeys(t for n in nodes for t in flow.reads(n) if t not in made)
        later = {t for group in groups[i + 1 :] for n in group for t in flow.reads(n)} | set(flow.outputs)
        outputs = [t for n in nodes for t in n.output if t in later]
        out.append(Part(nodes[0].name in host, tuple(nodes), tuple(read), tuple(outputs)))
    return out


def components(flow: Flow, part: Part) -> list[list[onnx.NodeProto]]:
    """The nodes of a part in groups that share no tensor made in it."""
    group: dict[str, str] = {n.name: n.name for n in part.nodes}
    made = {t: n.name for n in part.nodes for t in n.output}

    def root(name: str) -> str:
        while group[name] != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    for node in part.nodes:
        for t in flow.reads(node):
            if t in made:
                group[root(node.name)] = root(made[t])
    out: dict[str, list[onnx.NodeProto]] = {}
    for node in part.nodes:
        out.setdefault(root(node.name), []).append(node)
    return list(out.values())
