"""Lines of a table for people: a mixture of experts has many layers and tensors, of which they want the sum."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moevit.program import Layer, Task

EXPERTS = "experts"  #: kind of a group of gather and scatter layers


@dataclass(frozen=True)
class Group:
    """Layers that share a line: one by itself, the row chunks of one or of a gate, or all of a mixture's experts."""

    name: str
    kind: str
    layers: "tuple[Layer, ...]"
    experts: int = 0  #: how many experts the layers are of


def group_layers(task: "Task") -> list[Group]:
    """All layers of a task, in the order of each group's first."""
    members: dict[tuple[str, str], list[Layer]] = {}
    for layer in task.layers:
        if layer.kind in ("route", "linear", "attention"):  # chunks of rows have a layer each
            key = layer.kind, layer.outputs[0]
        elif layer.kind in ("gather", "scatter"):
            key = EXPERTS, layer.inputs[1]
        else:
            key = layer.kind, layer.name
        members.setdefault(key, []).append(layer)
    return [_group(task, kind, layers) for (kind, _), layers in members.items()]


def _group(task: "Task", kind: str, layers: "list[Layer]") -> Group:
    if kind != EXPERTS:
        return Group(first_to_last(layer.name for layer in layers), kind, tuple(layers))
    numbers = sorted({task.tensor(layer.outputs[0]).expert for layer in layers if layer.kind == "gather"})
    mixture = layers[0].name.partition(".experts.")[0]
    name = f"{mixture}.experts {first_to_last(map(str, numbers))}"
    return Group(name, kind, tuple(layers), len(numbers))


def first_to_last(names: Iterable[str]) -> str:
    """``a.0 … 7`` of ``a.0``, …, ``a.7``: the last without what both begin with."""
    first, *rest = names
    if not rest:
        return first
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, rest[-1], strict=False)))
    return f"{first} … {rest[-1][len(first[:same].rstrip('0123456789')):]}"
