"""From traced values to the graph IR, beginning at the outputs.

An operation is made when something that is used reads it. Whatever lies between two operations has become an
array of addresses with scales and offsets; those are folded into weights, where that is exact, in the
operation that makes the tensor or in the one that reads it. What cannot be is noted, and lowering goes on
with a stand-in, so that one run names everything.
"""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from moevit.compiler import ir
from moevit.compiler.frontend import activation
from moevit.compiler.frontend.attention import attention, unmapped_softmax
from moevit.compiler.frontend.experts import lower_experts
from moevit.compiler.frontend.form import Elements, Form, Rejected, form_of
from moevit.compiler.frontend.gate import Above, Chosen, ChosenSum, Gate, unmapped_gate
from moevit.compiler.frontend.joined import joined_projections, learnt_query
from moevit.compiler.frontend.mixture import Experts, Mixture, unmapped_mixture
from moevit.compiler.frontend.norm import unmapped_mean
from moevit.compiler.frontend.patches import patches_of
from moevit.compiler.frontend.space import (
    NO_ADDRESS,
    Active,
    Addresses,
    Affine,
    Centred,
    Const,
    Context,
    Floats,
    Function,
    Mean,
    Norm,
    Opaque,
    Origin,
    Pointwise,
    Product,
    Projection,
    Softmax,
    Source,
    Space,
    Sum,
    Total,
    Value,
    View,
)
from moevit.errors import UnsupportedNode

_STAND_IN = "?"
_MEAN_HEAD = 64  # the largest head of an attention that stands for a mean
_FOLD = (
    "constants are folded into linear layers and layer normalisations only: move this one beside such a layer"
)


class Lowering:
    """Lowers the values of one model.

    Parameters
    ----------
    space : Space

    Members
    -------
    ops : list of ir.Op
        In order.
    inputs : dict of str to ir.Input
    problems : dict of str to UnsupportedNode
        By node, each once.
    sources : dict of str to Source
        What `inputs` were made from.
    shown : list
        Of tensors: name, value, columns, scale and offset by column, of what they show.
    hidden : dict of str to tuple of Active
        By mixture of experts, its experts' activations.
    softmaxes : dict of str to Softmax
        By attention, of which one it is, where nothing is added to what it gives.
    """

    def __init__(self, space: Space):
        self.space = space
        self.ops: list[ir.Op] = []
        self.inputs: dict[str, ir.Input] = {}
        self.problems: dict[str, UnsupportedNode] = {}
        self.sources: dict[str, Source] = {}
        self.shown: list[tuple[str, Value, Addresses, Floats, Floats]] = []
        self.hidden: dict[str, tuple[Active, ...]] = {}
        self.softmaxes: dict[str, Softmax] = {}
        self._made: dict[Any, str] = {}
        self._names: set[str] = set()
        self._visited: set[int] = set()
        self._blamed: set[str] = set()
        self._activations: dict[Function, activation.Found | None] = {}
        self._emitters: dict[type[Value], Callable[..., str]] = {
            Source: self._source,
            Projection: self._projection,
            Norm: self._norm,
            Context: self._context,
            Total: self._total,
            Active: self._active,
            Mean: self._mean,
            Experts: self._experts,
        }

    # Operands.

    def operand(self, view: View, reader: Origin, role: str = "") -> str:
        """The tensor that holds a matrix; a stand-in, and a problem noted, if there is none."""
        try:
            return self.matrix(view, role)
        except Rejected as rejected:
            self.note(rejected, reader)
            self.visit(view)
            return _STAND_IN

    def matrix(self, view: View, role: str = "") -> str:
        """The tensor that holds a view's matrix; raises `Rejected`."""
        return self.emit(self.form(view.matrix()), role)

    def note(self, rejected: Rejected, reader: Origin) -> None:
        """Remember why a node cannot be mapped."""
        origin = rejected.origin or reader
        if origin.name not in self.problems:
            self.problems[origin.name] = UnsupportedNode(
                name=origin.name, op=origin.op, reason=rejected.reason, way_out=rejected.way_out
            )

    def visit(self, view: View) -> None:
        """Lower whatever a view shows elements of, only to find its problems."""
        try:
            owners = self.space.owners(self.resolve(view.reshape(1, -1)).idx)
        except Rejected:
            return  # noted already
        for value in owners:
            if value.start not in self._visited and not isinstance(value, Source):
                self._visited.add(value.start)
                width = value.shape[-1] if value.shape else 1
                try:
                    self.value(value, np.arange(width), np.ones(width), np.zeros(width), [], "")
                except Rejected as rejected:
                    self.note(rejected, value.origin)

    # Elements.

    def form(self, view: View) -> Form:
        """A matrix as a form; raises `Rejected`."""
        return self._whole_form(view) or form_of(self.space, self.resolve(view))

    def _whole_form(self, view: View) -> Form | None:
        """The form of a matrix that is all of a value, scaled by columns at most, without making addresses.

        Most operands are, and for those of large models addresses would take gigabytes.
        """
        shape, width = view.shape, view.shape[1]
        mul, add = np.full(width, view.mul), np.full(width, view.add)
        folded: list[Origin] = []
        while view.index is None:
            value = self.space.whole(view)
            if isinstance(value, Affine):
                factor, offset = _by_column(value.mul, shape), _by_column(value.add, shape)
                if factor is None or offset is None:
                    return None
                view = value.base
                own_mul, own_add = np.full(width, view.mul), np.full(width, view.add)
                if value.mul is not None:
                    own_mul, own_add = own_mul * factor, own_add * factor
                if value.add is not None:
                    own_add = own_add + offset
            elif isinstance(value, Pointwise | Sum):
                view = self._computed(value)
                own_mul, own_add = np.asarray(view.mul), np.asarray(view.add)
            elif value is None or type(value) not in self._emitters or value.shape != shape:
                return None
            else:
                return Form(
                    value=value,
                    start=0,
                    count=shape[0],
                    cols=np.arange(width),
                    mul=mul,
                    add=add,
                    prefix=np.zeros((0, width)),
                    pos=None,
                    folded=folded,
                )
            folded.append(value.origin)
            add, mul = add + mul * own_add, mul * own_mul
        return None

    def resolve(self, view: View) -> Elements:
        """Follow elementwise arithmetic down to values that operations make; raises `Rejected`."""
        elements = Elements.of(view)
        while True:
            pending = [
                v for v in self.space.owners(elements.idx) if isinstance(v, Affine | Const | Pointwise | Sum)
            ]
            if not pending:
                self._need_mapped(self.space.owners(elements.idx))
                return elements
            for value in pending:
                self.settle(elements, value)

    def _need_mapped(self, owners: Iterable[Value]) -> None:
        """Note all values that no operation computes; raise `Rejected` if there is one."""
        last = None
        for value in owners:
            if type(value) not in self._emitters:
                last = self._unmapped(value)
                self.note(last, value.origin)
        if last is not None:
            raise last

    def settle(self, elements: Elements, value: Value) -> None:
        """Follow elements of one elementwise value to what it reads; raises `Rejected`."""
        idx = elements.idx
        chosen = (idx >= value.start) & (idx < value.start + value.size)
        places = idx[chosen] - value.start
        mul, add = elements.mul[chosen], elements.add[chosen]
        if isinstance(value, Const):
            elements.add[chosen] = add + mul * value.array[places]
            elements.mul[chosen] = 0
            idx[chosen] = NO_ADDRESS
            return
        elements.folded.append(value.origin)
        if isinstance(value, Affine):
            own_mul, own_add = np.full(len(places), value.base.mul), np.full(len(places), value.base.add)
            if value.mul is not None:
                factor = value.mul.reshape(-1)[places]
                own_mul, own_add = own_mul * factor, own_add * factor
            if value.add is not None:
                own_add = own_add + value.add.reshape(-1)[places]
            target = value.base.idx.reshape(-1)[places]
        else:
            assert isinstance(value, Pointwise | Sum)
            view = self._computed(value)
            own_mul, own_add = np.asarray(view.mul), np.asarray(view.add)
            target = view.idx.reshape(-1)[places]
        elements.add[chosen] = add + mul * own_add
        elements.mul[chosen] = mul * own_mul
        idx[chosen] = target

    def _computed(self, value: Pointwise | Sum) -> View:
        """A function or sum as a view of an activation, of its operand, or of a sum of matrices."""
        if value.found is None:
            if isinstance(value, Sum):
                value.found = self._total_of(value, value.a, value.b)
            else:
                value.found = self._identify(value)
        if isinstance(value.found, Rejected):
            self.note(value.found, value.origin)
            raise value.found
        return value.found

    def _identify(self, value: Pointwise) -> View | Rejected:
        if value.function not in self._activations:
            self._activations[value.function] = activation.identify(value.function)
        found = self._activations[value.function]
        if found is None and value.terms is not None:
            return self._total_of(value, *value.terms)
        if found is None:
            self.visit(value.base)
            return Rejected(
                "this elementwise function is none that the accelerator has",
                f"supported are {', '.join(ir.ACTIVATION_KINDS)}, residual additions and layer normalisation",
                value.origin,
            )
        if found.kind == "linear":
            return value.base.affine(mul=found.mul, add=found.add)
        (base,), back = self._arrange(value.base.affine(mul=found.scale))
        active = self.space.add(Active(origin=value.origin, shape=base.shape, base=base, kind=found.kind))
        return back(active).reshape(*value.shape).affine(mul=found.mul, add=found.add)

    def _total_of(self, value: Value, a: View, b: View) -> View:
        (first, second), back = self._arrange(a, b)
        total = self.space.add(Total(origin=value.origin, shape=first.shape, a=first, b=second))
        return back(total).reshape(*value.shape)

    def _arrange(self, *views: View) -> tuple[list[View], Callable[[View], View]]:
        """Operands of something elementwise as matrices that can be computed, and the way back.

        Where they are no matrices of tokens and channels as they stand, such as `(1, channels, h, w)`,
        they are put in the order of a value that they show all of.
        """
        as_they_are = [v.matrix() for v in views]
        for view in as_they_are:
            with suppress(Rejected):
                if self._whole_form(view) is not None:
                    return as_they_are, lambda out: out
        flat: list[Elements] = []
        for view in as_they_are:
            with suppress(Rejected):  # noted where it matters
                flat.append(self.resolve(view))
        for elements in flat:
            with suppress(Rejected):
                form_of(self.space, elements)
                return as_they_are, lambda out: out
        for elements in flat:
            idx = elements.idx.reshape(-1)
            owners = self.space.owners(idx)
            order = np.argsort(idx, kind="stable")
            if len(owners) != 1 or len(owners[0].shape) != 2 or owners[0].size != len(idx):
                continue
            if not np.array_equal(idx[order], owners[0].view.idx.reshape(-1)):
                continue
            moved = [v.at(v.idx.reshape(-1)[order].reshape(owners[0].shape)) for v in as_they_are]
            rank = np.argsort(order, kind="stable")
            return moved, partial(_ordered, rank)
        return as_they_are, lambda out: out

    # Operations.

    def emit(self, form: Form, role: str = "") -> str:
        """The tensor that holds a form."""
        x = self.value(form.value, form.cols, form.mul, form.add, form.folded, role)
        if (form.start, form.count) != (0, form.value.shape[0]):
            x = self._rows(form, x)
        if form.pos is None:
            return x
        origin = form.value.origin.joined(*form.folded)
        pos = form.pos.astype(np.float32)
        prefix = form.prefix.astype(np.float32)
        key = ("assemble", x, prefix.tobytes(), pos.tobytes())
        source = tuple(dict.fromkeys(n for o in form.folded for n in o.names)) or origin.names
        return self._make(
            key,
            ir.Assemble,
            "tokens",
            source=source,
            x=x,
            prefix=prefix,
            pos=pos,
            label=f"{origin.name}.tokens",
        )

    def _rows(self, form: Form, x: str) -> str:
        key = ("rows", x, form.start, form.count)
        label = f"{form.value.origin.name}.rows"
        return self._make(
            key,
            ir.Rows,
            label,
            source=form.value.origin.names,
            x=x,
            start=form.start,
            count=form.count,
            label=label,
        )

    def value(
        self, value: Value, cols: Addresses, mul: Floats, add: Floats, folded: Iterable[Origin], role: str
    ) -> str:
        """The tensor that holds `value[:, cols] * mul + add`."""
        key = (value.start, cols.tobytes(), mul.tobytes(), add.tobytes())
        if key not in self._made:
            emitter = self._emitters[type(value)]
            self._made[key] = emitter(value, cols, mul, add, value.origin.joined(*folded), role)
            self.shown.append((self._made[key], value, cols, mul, add))
        return self._made[key]

    def _unmapped(self, value: Value) -> Rejected:
        """Say what cannot be done, and look at what it reads."""
        if isinstance(value, Softmax | Product):
            value = unmapped_softmax(value)
        if isinstance(value, Centred):
            value = unmapped_mean(value)
        if isinstance(value, Above | Chosen | ChosenSum | Gate):
            value = unmapped_gate(value)
        if isinstance(value, Mixture):
            value = unmapped_mixture(value)
        assert isinstance(value, Opaque)
        if value.origin.name not in self._blamed:
            self._blamed.add(value.origin.name)
            for operand in value.operands:
                self.visit(operand)
        return Rejected(value.reason, value.way_out, value.origin)

    def _source(
        self, value: Source, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str
    ) -> str:
        if not _trivial(value, cols, mul, add):
            raise Rejected(
                "constant arithmetic on an input", "begin with a patch embedding or a linear layer", origin
            )
        return self._input(value, value.shape)

    def _input(self, value: Source, shape: tuple[int, ...]) -> str:
        known = self.inputs.get(value.name)
        if known is not None and known.shape != shape:
            raise Rejected(
                f"input '{value.name}' is used both as an image and as tokens",
                "give them as two inputs",
                value.origin,
            )
        self.inputs[value.name] = ir.Input(
            name=value.name, shape=shape, dtype=value.dtype, model_shape=value.model_shape
        )
        self._names.add(value.name)
        self.sources[value.name] = value
        return value.name

    def _projection(
        self, value: Projection, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str
    ) -> str:
        weight, bias = value.weight[cols] * mul[:, None], add
        role = role or ("" if len(cols) == value.shape[1] else "part")
        try:
            form = self._whole_form(value.x)
            if form is None:
                elements = self.resolve(value.x)
                owners = self.space.owners(elements.idx)
                if len(owners) == 1 and isinstance(owners[0], Source):
                    patched = self._patch_embed(value, owners[0], elements, weight, bias, origin, role)
                    if patched is not None:
                        return patched
                parts = joined_projections(self.space, value, elements)
                if parts is not None:
                    return self.matrix(self._scaled(_columns(parts, cols), mul, add, origin), role)
                form = form_of(self.space, elements)
            x, weight, bias = self.absorb(form, weight, bias)
        except Rejected as rejected:
            self.note(rejected, value.origin)
            self.visit(value.x)
            return _STAND_IN
        return self._make(
            None,
            ir.Linear,
            value.origin.name,
            role,
            source=origin.names,
            x=x,
            weight=_f32(weight),
            bias=_f32(bias),
        )

    def absorb(self, form: Form, weight: Floats, bias: Floats) -> tuple[str, Floats, Floats]:
        """A form as a tensor, its columns and scales folded into the weight and bias that are applied to it.

        Where the tensor's own operation has constants, the scales go there instead: a normalisation keeps its
        gamma and beta.
        """
        producer = form.value
        if isinstance(producer, Projection) or form.pos is not None:
            return self.emit(form), weight, bias
        width = producer.shape[1]
        if not form.same_columns:
            full = np.zeros((len(weight), width))
            np.add.at(full.T, form.cols, weight.T)
            scale, offset = np.ones(width), np.zeros(width)
            scale[form.cols], offset[form.cols] = form.mul, form.add
            if np.any(scale[form.cols] != form.mul) or np.any(offset[form.cols] != form.add):
                raise Rejected("its operand repeats channels that are scaled differently", _FOLD)
            form.cols, form.mul, form.add, weight = np.arange(width), scale, offset, full
        if not isinstance(producer, Norm):
            bias = bias + weight @ form.add
            weight = weight * form.mul
            form.mul, form.add = np.ones(width), np.zeros(width)
        return self.emit(form), weight, bias

    def _patch_embed(
        self,
        value: Projection,
        source: Source,
        elements: Elements,
        weight: Floats,
        bias: Floats,
        origin: Origin,
        role: str,
    ) -> str | None:
        """A projection of an image's patches; None if the input is tokens."""
        if len(source.shape) == 2:
            with suppress(Rejected):
                form_of(self.space, elements)
                return None
        found = patches_of(source, elements.idx)
        if not (np.all(elements.mul == elements.mul[:1]) and np.all(elements.add == elements.add[:1])):
            raise Rejected(
                "its patches are normalised differently", "normalise each channel of the image alike"
            )
        bias = bias + weight @ elements.add[0]
        ordered = np.zeros((len(weight), len(found.order)))
        ordered[:, found.order] = weight * elements.mul[0]
        x = self._input(source, found.image)
        return self._make(
            None,
            ir.PatchEmbed,
            value.origin.name,
            role,
            source=origin.joined(*elements.folded).names,
            x=x,
            weight=_f32(ordered),
            bias=_f32(bias),
            patch=found.patch,
        )

    def _norm(self, value: Norm, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str) -> str:
        if len(cols) != value.shape[1] or not np.array_equal(cols, np.arange(len(cols))):
            raise Rejected(
                f"channels of '{origin.name}' are rearranged",
                "reorder the channels of a linear layer instead",
            )
        owner = self.space.single(value.x)
        if owner is None or not owner.shape or isinstance(owner, Source | Opaque):
            tokens = value.shape[0]
        else:
            tokens = owner.size // owner.shape[-1]
        if value.shape[0] > tokens:
            raise Rejected(
                f"it normalises groups of {value.shape[1]} channels, as of heads, where the machine normalises tokens",
                "let the host do it, or train without normalising q and k by heads",
                value.origin,
            )
        x = self.operand(value.x, value.origin)
        return self._make(
            None,
            ir.LayerNorm if value.centred else ir.RmsNorm,
            origin.name,
            role,
            source=origin.names,
            x=x,
            gamma=_f32(mul),
            beta=_f32(add),
            eps=value.eps,
        )

    def _context(
        self, value: Context, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str
    ) -> str:
        if len(cols) != value.shape[1] or not np.array_equal(cols, np.arange(len(cols))):
            raise Rejected(
                f"channels of '{origin.name}' are rearranged",
                "reorder the channels of a linear layer instead",
            )
        owner = self.space.single(value.q)
        if owner is not None and owner.shape and value.head_dim < owner.shape[-1] < value.shape[1]:
            raise Rejected(
                "it attends within groups of tokens, as of windows, where the machine attends to all tokens",
                "let the host do it, or attend to all tokens",
                value.origin,
            )
        q = self.operand(learnt_query(self.space, value) or value.q, value.origin, "q")
        k = self.operand(value.k, value.origin, "k")
        # The probabilities of a row add up to one, so scaling the values scales the result.
        v = self.operand(self._scaled(value.v, mul, add, origin), value.origin, "v")
        k, v = self._own(k, (q,)), self._own(v, (q, k))
        tensor = self._make(
            None,
            ir.Attention,
            origin.name,
            role,
            source=origin.names,
            q=q,
            k=k,
            v=v,
            heads=value.heads,
            head_dim=value.head_dim,
            scale=float(value.scale),
        )
        if value.softmax is not None and not add.any():
            self.softmaxes[tensor] = value.softmax
        return tensor

    def _own(self, tensor: str, others: tuple[str, ...]) -> str:
        """A linear layer's output; another such layer's where it is among the others: q, k and v lie apart."""
        found = next((op for op in self.ops if op.output == tensor), None)
        if tensor not in others or not isinstance(found, ir.Linear):
            return tensor
        fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name not in ("name", "output")}
        return self._make(None, ir.Linear, found.name, **fields)

    def _total(
        self, value: Total, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str
    ) -> str:
        nothing = np.zeros_like(add)
        a, b = (_columns(v.matrix(), cols) for v in (value.a, value.b))
        # The offset goes to the operand that has a bias to put it in.
        at_b = isinstance(self.space.single(b), Projection | Norm | Affine)
        x = self.operand(self._scaled(a, mul, nothing if at_b else add, origin), value.origin)
        y = self.operand(self._scaled(b, mul, add if at_b else nothing, origin), value.origin)
        return self._make(None, ir.Add, origin.name, role, source=origin.names, a=x, b=y)

    def _active(
        self, value: Active, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str
    ) -> str:
        if not (np.all(mul == 1) and np.all(add == 0)):
            raise Rejected(f"the output of {value.kind} is scaled by constants", _FOLD, origin)
        x = self.operand(_columns(value.base, cols), value.origin)
        return self._make(None, ir.Activation, origin.name, role, source=origin.names, x=x, kind=value.kind)

    def _experts(
        self, value: Experts, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str
    ) -> str:
        try:
            fields = lower_experts(self, value, cols, mul, add, origin)
        except Rejected as rejected:
            self.note(rejected, value.origin)
            for view in (value.gate.choice.logits, *value.outputs):
                self.visit(view)
            return _STAND_IN
        actives = fields.pop("actives")
        tensor = self._make(None, ir.MoE, origin.name, role, **fields)
        self.hidden[tensor] = actives
        return tensor

    def _mean(self, value: Mean, cols: Addresses, mul: Floats, add: Floats, origin: Origin, role: str) -> str:
        """A mean over tokens: attention whose scores are all zero gives each token the same weight."""
        tokens = value.x.transpose(1, 0)
        channels = tokens.shape[1]
        try:
            form_of(self.space, self.resolve(tokens))
        except Rejected as rejected:
            if rejected.origin is not None:
                raise
            what = unmapped_mean(value)
            self.visit(value.x)
            raise Rejected(what.reason, what.way_out, value.origin) from rejected

        def projected(weight: Floats) -> View:
            return self.space.add(
                Projection(origin=value.origin, shape=tokens.shape, x=tokens, weight=weight)
            )

        nothing = np.zeros((channels, channels))
        heads = next(h for h in range(1, channels + 1) if channels % h == 0 and channels // h <= _MEAN_HEAD)
        operands = [projected(w) for w in (nothing, nothing, np.eye(channels))]
        out = attention(self.space, value.origin, *operands, heads=heads, scale=1.0)
        row = self._scaled(out.at(out.idx[:1, cols]), mul, add, origin)
        return self.matrix(row, role)

    def _scaled(self, view: View, mul: Floats, add: Floats, origin: Origin) -> View:
        if np.all(mul == 1) and np.all(add == 0):
            return view
        mul, add = (np.broadcast_to(a, view.shape) for a in (mul, add))
        return self.space.add(Affine(origin=origin, shape=view.shape, base=view, mul=mul, add=add))

    def _make(
        self, key: Any, op: type[ir.Op], name: str, role: str = "", /, *, label: str = "", **fields: Any
    ) -> str:
        """Append an operation, unless the same was made before, and return its output."""
        if key is not None and key in self._made:
            return self._made[key]
        stem = (label or name).lstrip("/").removeprefix("node_") or op.__name__
        stem = f"{stem}.{role}" if role else stem
        unique, count = stem, 1
        while unique in self._names:
            count += 1
            unique = f"{stem}.{count}"
        self._names.add(unique)
        self.ops.append(op(name=unique, output=unique, **fields))
        if key is not None:
            self._made[key] = unique
        return unique

    # Outputs.

    def output(self, name: str, view: View) -> ir.Output | None:
        """An output of the model; None, and problems noted, if it cannot be computed."""
        shape = view.shape[1:] if view.shape and view.shape[0] == 1 else view.shape
        try:
            try:
                return ir.Output(name=name, tensor=self.matrix(view), model_shape=shape)
            except Rejected as rejected:
                if rejected.origin is not None:
                    raise
                return self._rearranged(name, view, shape, rejected)
        except Rejected as rejected:
            self.note(rejected, Origin(name=name, op="Output"))
            self.visit(view)
            return None

    def _rearranged(self, name: str, view: View, shape: tuple[int, ...], rejected: Rejected) -> ir.Output:
        """An output whose elements are those of one tensor in another order."""
        flat = self.resolve(view.reshape(1, -1))
        owners = self.space.owners(flat.idx)
        if len(owners) != 1 or (flat.idx == NO_ADDRESS).any() or len(owners[0].shape) != 2:
            raise rejected
        value = owners[0]
        rows, cols = np.divmod((flat.idx - value.start).reshape(-1), value.shape[1])
        kept = np.unique(cols) if isinstance(value, Projection) else np.arange(value.shape[1])
        mul, add = np.ones(value.shape[1]), np.zeros(value.shape[1])
        mul[cols], add[cols] = flat.mul[0], flat.add[0]
        if not (np.array_equal(mul[cols], flat.mul[0]) and np.array_equal(add[cols], flat.add[0])):
            raise rejected
        tensor = self.value(value, kept, mul[kept], add[kept], flat.folded, "")
        order = rows * len(kept) + np.searchsorted(kept, cols)
        return ir.Output(name=name, tensor=tensor, model_shape=shape, order=order)


def _ordered(order: Addresses, view: View) -> View:
    return view.at(view.idx.reshape(-1)[order])


def _columns(matrix: View, cols: Addresses) -> View:
    """Some columns of a matrix, in some order."""
    if len(cols) == matrix.shape[1] and np.array_equal(cols, np.arange(len(cols))):
        return matrix
    return matrix.at(matrix.idx[:, cols])


def _by_column(array: Floats | None, shape: tuple[int, ...]) -> Floats | None:
    """An array's values by column, if all rows are equal; something for none."""
    if array is None:
        return np.zeros(0)
    matrix = array.reshape(shape)
    return matrix[0] if matrix.strides[0] == 0 or np.all(matrix == matrix[:1]) else None


def _trivial(value: Value, cols: Addresses, mul: Floats, add: Floats) -> bool:
    whole = len(cols) == value.shape[-1] and bool(np.array_equal(cols, np.arange(len(cols))))
    return whole and bool(np.all(mul == 1) and np.all(add == 0))


def _f32(array: Floats) -> ir.Array:
    return np.ascontiguousarray(array, dtype=np.float32)
