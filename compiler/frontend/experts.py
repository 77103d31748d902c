"""From a traced mixture of experts to `ir.MoE`: which matrices its gate and its experts are."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.form import Form, Rejected
from moevit.compiler.frontend.gate import FORM
from moevit.compiler.frontend.mixture import Experts
from moevit.compiler.frontend.space import Active, Addresses, Floats, Origin, Projection, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.lower import Lowering

_EXPERT = "an expert is a linear layer, an activation and a linear layer, of all tokens"


@dataclass(frozen=True, eq=False)
class Layer:
    """`x @ weight.T + bias` of the tensor named `x`."""

    x: str
    weight: Floats
    bias: Floats


@dataclass(frozen=True, eq=False)
class Expert:
    """Its two layers; `down` reads what the activation makes of `up`."""

    up: Layer
    active: Active
    down_weight: Floats
    down_bias: Floats


class ExpertReader:
    """Reads the matrices of one mixture; what it notes in `origins` is now part of the operation."""

    def __init__(self, lowering: "Lowering"):
        self._lowering = lowering
        self._forms: dict[Any, Form] = {}
        self.origins: list[Origin] = []

    def gate(self, logits: View) -> Layer:
        """The linear layer that makes the gate's logits; raises `Rejected`."""
        form = self._form(logits)
        if not isinstance(form.value, Projection) or not form.is_whole:
            raise Rejected(f"its gate reads '{form.value.origin.name}', which is no linear layer", FORM)
        return self._layer(form.value, form)

    def expert(self, output: View) -> Expert:
        """The layers of an expert, from its output; raises `Rejected`."""
        down = self._form(output)
        if not isinstance(down.value, Projection) or not down.is_whole:
            raise Rejected(f"the output of an expert, '{down.value.origin.name}', is no linear layer's", _EXPERT)
        weight = down.value.weight[down.cols] * down.mul[:, None]
        hidden = self._form(down.value.x)
        self.origins.append(down.value.origin)
        if not isinstance(hidden.value, Active) or not hidden.is_whole:
            raise Rejected(f"the second layer of an expert, '{down.value.origin.name}', reads no activation", _EXPERT)
        active = hidden.value
        base = active.base.matrix()
        up = self._form(base if hidden.same_columns else base.at(base.idx[:, hidden.cols]))
        self.origins.append(active.origin)
        if not isinstance(up.value, Projection) or not up.is_whole:
            raise Rejected(f"the activation of an expert, '{active.origin.name}', reads no linear layer", _EXPERT)
        return Expert(
            up=self._layer(up.value, up),
            active=active,
            down_weight=weight * hidden.mul,
            down_bias=down.add + weight @ hidden.add,
        )

    def _layer(self, value: Projection, form: Form) -> Layer:
        self.origins.append(value.origin)
        weight = value.weight[form.cols] * form.mul[:, None]
        # Absorbing changes the form, which the other experts read too.
        return Layer(*self._lowering.absorb(replace(self._form(value.x)), weight, form.add))

    def _form(self, view: View) -> Form:
        """A view as a form; that of all tokens is asked for by every expert."""
        view = view.matrix()
        key = None if view.index is not None else (view.start, view.shape, view.mul, view.add)
        if key is None or key not in self._forms:
            form = self._lowering.form(view)
            self.origins += form.folded
            if key is None:
                return form
            self._forms[key] = form
        return self._forms[key]


def lower_experts(
    lowering: "Lowering", value: Experts, cols: Addresses, mul: Floats, add: Floats, origin: Origin
) -> dict[str, Any]:
    """The fields of an `ir.MoE` for `value[:, cols] * mul + add`, and its `actives`; raises `Rejected`."""
    gate, reader = value.gate, ExpertReader(lowering)
    router = reader.gate(gate.choice.logits)
    experts = [reader.expert(output) for output in value.outputs]
    _need_equal((e.active.kind for e in experts), "the activations of experts differ")
    _need_equal((len(e.up.weight) for e in experts), "the hidden widths of experts differ")
    _need_equal((e.up.x for e in experts), "the experts read different tensors")
    _need_equal((router.x, experts[0].up.x), "the gate and the experts read different tensors")
    down_bias = np.stack([e.down_bias[cols] * mul for e in experts])
    if np.any(add != 0):
        # Only scores that add up to one give every token the whole of a constant that all experts add.
        if gate.order != "topk_softmax" or gate.threshold:
            raise Rejected("a constant is added to the sum of the experts", "add it elsewhere", origin)
        down_bias = down_bias + add
    arrays = {
        "gate_weight": router.weight,
        "gate_bias": router.bias,
        "up_weight": np.stack([e.up.weight for e in experts]),
        "up_bias": np.stack([e.up.bias for e in experts]),
        "down_weight": np.stack([e.down_weight[cols] * mul[:, None] for e in experts]),
        "down_bias": down_bias,
    }
    fields: dict[str, Any] = {k: np.ascontiguousarray(a, dtype=np.float32) for k, a in arrays.items()}
    return fields | {
        "x": router.x,
        "order": gate.order,
        "top_k": gate.choice.top_k,
        "threshold": gate.threshold,
        "activation": experts[0].active.kind,
        "actives": tuple(e.active for e in experts),
        "source": origin.joined(gate.origin, *reader.origins).names,
    }


def _need_equal(things: Iterable[Any], what: str) -> None:
    values = list(dict.fromkeys(things))
    if len(values) > 1:
        raise Rejected(f"{what} ({', '.join(map(str, values[:3]))})", FORM)
