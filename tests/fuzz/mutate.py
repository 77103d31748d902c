"""Damage done to a good model: what exporters, optimisers, editors and bad discs make of files."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Rng = np.random.Generator
Change = Callable[[onnx.ModelProto, Rng], None]

ELEMENTWISE = ("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Erf", "Sqrt", "Abs", "Identity", "HardSwish", "Log")
SPECIAL_FLOATS = (np.nan, np.inf, -np.inf, 0.0, 1e-40, 1e30, -1e30, 3e38, 1e-12, 1.0, -1.0)
SPECIAL_INTS = (0, 1, -1, 2, 3, 7, -2, 100, 2**31 - 1, 2**31, 2**62, -(2**62), -(2**63))
OPSETS = (0, 1, 7, 10, 11, 12, 13, 14, 17, 20, 21, 23, 24, 99)
NAMES = ("", "x" * 300, "a\nb", "ünï/çode", "a;b: c", "image", "0", "\x00\x01")


def _pick(rng: Rng, things: list) -> object:
    return things[int(rng.integers(len(things)))]


def _node(model: onnx.ModelProto, rng: Rng) -> onnx.NodeProto:
    return model.graph.node[int(rng.integers(len(model.graph.node)))]


def _tensors(model: onnx.ModelProto) -> list[str]:
    return [o for n in model.graph.node for o in n.output if o]


def delete_node(model: onnx.ModelProto, rng: Rng) -> None:
    """Take a node out; what read it reads its first input."""
    index = int(rng.integers(len(model.graph.node)))
    node = model.graph.node[index]
    if not node.input or not node.output:
        return
    _reroute(model, node.output[0], node.input[0])
    del model.graph.node[index]


def drop_node(model: onnx.ModelProto, rng: Rng) -> None:
    """Take a node out and leave what read it dangling."""
    del model.graph.node[int(rng.integers(len(model.graph.node)))]


def insert_elementwise(model: onnx.ModelProto, rng: Rng) -> None:
    """Put an elementwise node behind a tensor."""
    _insert(model, rng, str(_pick(rng, list(ELEMENTWISE))))


def insert_other(model: onnx.ModelProto, rng: Rng) -> None:
    """Put a node behind a tensor that normalises, rearranges, casts or quantises it."""
    kind = str(_pick(rng, ["Softmax", "Transpose", "Cast", "Cumsum", "Identity", "ReduceMax", "Shape", "Flatten"]))
    attributes = {"Cast": {"to": int(rng.integers(0, 24))}, "Softmax": {"axis": int(rng.integers(-3, 3))}}.get(kind, {})
    _insert(model, rng, kind, **attributes)


def insert_arithmetic(model: onnx.ModelProto, rng: Rng) -> None:
    """Put arithmetic with a constant behind a tensor."""
    kind = str(_pick(rng, ["Add", "Mul", "Sub", "Div", "Pow", "Max", "Where"]))
    value = np.float32(_pick(rng, [0.0, 1.0, -1.0, 0.5, 2.0, 1e30, 1e-30, float("nan")]))
    name = f"fuzz_c{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    _insert(model, rng, kind, more=[name])


def swap_nodes(model: onnx.ModelProto, rng: Rng) -> None:
    """Exchange the places of two nodes in the file."""
    i, j = (int(v) for v in rng.integers(len(model.graph.node), size=2))
    a, b = onnx.NodeProto(), onnx.NodeProto()
    a.CopyFrom(model.graph.node[i])
    b.CopyFrom(model.graph.node[j])
    model.graph.node[i].CopyFrom(b)
    model.graph.node[j].CopyFrom(a)


def swap_inputs(model: onnx.ModelProto, rng: Rng) -> None:
    """Exchange two inputs of a node."""
    node = _node(model, rng)
    if len(node.input) > 1:
        i, j = (int(v) for v in rng.choice(len(node.input), 2, replace=False))
        node.input[i], node.input[j] = node.input[j], node.input[i]


def change_operator(model: onnx.ModelProto, rng: Rng) -> None:
    """Make a node another operator, its operands unchanged."""
    node = _node(model, rng)
    twins = {
        "Add": "Mul", "Mul": "Add", "Sub": "Add", "Div": "Sub", "MatMul": "Gemm", "Gemm": "MatMul",
        "Softmax": "LogSoftmax", "LayerNormalization": "RMSNormalization", "Erf": "Tanh", "Transpose": "Flatten",
        "Relu": "LeakyRelu", "ReduceMean": "ReduceSum", "TopK": "Unique", "Reshape": "Expand",
    }  # fmt: skip
    node.op_type = twins.get(node.op_type, str(_pick(rng, ["NoSuchOperator", *ELEMENTWISE])))


def change_domain(model: onnx.ModelProto, rng: Rng) -> None:
    """Give a node to another operator set."""
    _node(model, rng).domain = str(_pick(rng, ["com.microsoft", "ai.onnx.ml", "nowhere", "pkg.onnxscript"]))


def change_attribute(model: onnx.ModelProto, rng: Rng) -> None:
    """Give an attribute another value, type or name, or take it away."""
    nodes = [n for n in model.graph.node if n.attribute and n.op_type != "Constant"]
    if not nodes:
        return
    node = _pick(rng, nodes)
    assert isinstance(node, onnx.NodeProto)
    index = int(rng.integers(len(node.attribute)))
    a = node.attribute[index]
    what = rng.random()
    if what < 0.2:
        del node.attribute[index]
    elif what < 0.3:
        a.name = str(_pick(rng, ["axis", "perm", "nothing", "axes", ""]))
    elif what < 0.4:
        name = a.name
        a.CopyFrom(helper.make_attribute(name, _pick(rng, [1, 1.5, "text", [1, 2], [0.5]])))
    elif a.type == onnx.AttributeProto.INT:
        a.i = int(_pick(rng, [a.i + 1, a.i - 1, -a.i, *SPECIAL_INTS]))  # type: ignore[call-overload]
    elif a.type == onnx.AttributeProto.FLOAT:
        a.f = float(_pick(rng, [a.f * 2, -a.f, *SPECIAL_FLOATS]))  # type: ignore[arg-type]
    elif a.type == onnx.AttributeProto.INTS and a.ints:
        a.ints[int(rng.integers(len(a.ints)))] = int(_pick(rng, list(SPECIAL_INTS)))  # type: ignore[call-overload]
    elif a.type == onnx.AttributeProto.STRING:
        a.s = bytes(_pick(rng, [b"", b"none", b"tanh", b"\xff\xfe", b"SAME_UPPER"]))  # type: ignore[arg-type]


def change_values(model: onnx.ModelProto, rng: Rng) -> None:
    """Put special values into a constant: one of them, or all."""
    found = _constant(model, rng)
    if found is None:
        return
    tensor, array = found
    if array.dtype.kind == "f":
        value: object = _pick(rng, list(SPECIAL_FLOATS))
    else:
        value = _pick(rng, list(SPECIAL_INTS))
    array = array.copy()
    with np.errstate(all="ignore"):
        new = np.asarray(value).astype(array.dtype) if array.dtype.kind == "f" else np.int64(value).astype(array.dtype)  # type: ignore[call-overload]
        if array.size and rng.random() < 0.5:
            array.reshape(-1)[int(rng.integers(array.size))] = new
        else:
            array[...] = new
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def scale_values(model: onnx.ModelProto, rng: Rng) -> None:
    """Make a constant much larger or smaller."""
    found = _constant(model, rng)
    if found is not None and found[1].dtype.kind == "f":
        tensor, array = found
        factor = array.dtype.type(10.0 ** rng.integers(-12, 13))
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(array * factor, tensor.name))


def change_type(model: onnx.ModelProto, rng: Rng) -> None:
    """Store a constant in another type."""
    found = _constant(model, rng)
    if found is not None:
        tensor, array = found
        dtype = str(_pick(rng, ["float16", "float64", "int64", "int32", "uint8", "bool", "complex64"]))
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(np.nan_to_num(array).astype(dtype), tensor.name))


def change_shape(model: onnx.ModelProto, rng: Rng) -> None:
    """Transpose, flatten, cut or reshape a constant."""
    found = _constant(model, rng)
    if found is None:
        return
    tensor, array = found
    what = int(rng.integers(5))
    changed = [array.T, array.reshape(-1), array[:-1] if array.ndim else array, array[None], array[..., None]][what]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed).reshape(changed.shape), tensor.name))


def lie_about_shape(model: onnx.ModelProto, rng: Rng) -> None:
    """Let a constant's extents not fit its data."""
    if model.graph.initializer:
        tensor = _pick(rng, list(model.graph.initializer))
        assert isinstance(tensor, TensorProto)
        what = rng.random()
        if what < 0.3 or not tensor.dims:
            tensor.dims.append(int(_pick(rng, [2, 0, -1, 2**40])))  # type: ignore[call-overload]
        elif what < 0.6:
            tensor.dims[0] = int(_pick(rng, [0, -1, tensor.dims[0] + 1, 2**40]))  # type: ignore[call-overload]
        elif what < 0.8:
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
        else:
            tensor.data_type = int(rng.integers(0, 30))


def change_input(model: onnx.ModelProto, rng: Rng) -> None:
    """Change the shape or the type of the model's input."""
    tensor = model.graph.input[0].type.tensor_type
    what = rng.random()
    dims = tensor.shape.dim
    if what < 0.2:
        tensor.elem_type = int(rng.integers(0, 30))
    elif what < 0.3:
        model.graph.input[0].type.Clear()
    elif what < 0.4:
        tensor.ClearField("shape")
    elif what < 0.5:
        del dims[int(rng.integers(len(dims)))]
    elif what < 0.6:
        dims.add().dim_value = int(rng.integers(0, 4))
    elif what < 0.7:
        dims[int(rng.integers(len(dims)))].dim_param = "n"
    else:
        dims[int(rng.integers(len(dims)))].dim_value = int(_pick(rng, [0, -1, 2, 5, 17, 64, 10**4, 2**40]))  # type: ignore[call-overload]


def change_outputs(model: onnx.ModelProto, rng: Rng) -> None:
    """Cut the model at another tensor, or give it more, fewer or repeated outputs."""
    outputs, what = model.graph.output, rng.random()
    inner = onnx.ValueInfoProto(name=str(_pick(rng, _tensors(model))))
    if what < 0.4:
        del outputs[:]
        outputs.append(inner)
    elif what < 0.7:
        outputs.append(inner)
    elif what < 0.8:
        del outputs[:]
    elif what < 0.9:
        outputs.append(onnx.ValueInfoProto(name=model.graph.input[0].name))
    else:
        outputs.append(onnx.ValueInfoProto(name=str(_pick(rng, [outputs[0].name, "nothing", *list(NAMES)]))))


def rename(model: onnx.ModelProto, rng: Rng) -> None:
    """Give a tensor or a node another name, perhaps one that is taken."""
    name = str(_pick(rng, [*NAMES, *_tensors(model)]))
    if rng.random() < 0.5:
        _node(model, rng).name = name
    else:
        old = str(_pick(rng, _tensors(model)))
        for node in model.graph.node:
            for field in (node.input, node.output):
                for i, n in enumerate(field):
                    if n == old:
                        field[i] = name


def make_cycle(model: onnx.ModelProto, rng: Rng) -> None:
    """Let a node read a tensor that comes later, or its own."""
    i, j = sorted(int(v) for v in rng.integers(len(model.graph.node), size=2))
    early, late = model.graph.node[i], model.graph.node[j]
    if early.input and late.output:
        early.input[int(rng.integers(len(early.input)))] = late.output[0]


def reroute(model: onnx.ModelProto, rng: Rng) -> None:
    """Let a node read an earlier tensor in place of its own operand."""
    i, j = sorted(int(v) for v in rng.integers(len(model.graph.node), size=2))
    early, late = model.graph.node[i], model.graph.node[j]
    if late.input and early.output:
        late.input[int(rng.integers(len(late.input)))] = early.output[0]


def change_opset(model: onnx.ModelProto, rng: Rng) -> None:
    """Claim another version of the operator set, or several."""
    imports = model.opset_import
    version = int(_pick(rng, list(OPSETS)))  # type: ignore[call-overload]
    if rng.random() < 0.2:
        imports.append(helper.make_opsetid(str(_pick(rng, ["", "ai.onnx", "other"])), version))
    elif rng.random() < 0.1:
        del imports[:]
    else:
        imports[0].version = version


def hide_in_if(model: onnx.ModelProto, rng: Rng) -> None:
    """Put a node into both branches of an If, or only one, on a constant or on a computed condition."""
    index = int(rng.integers(len(model.graph.node)))
    node = onnx.NodeProto()
    node.CopyFrom(model.graph.node[index])
    if not node.output or node.op_type == "Constant":
        return
    outputs = [onnx.ValueInfoProto(name=f"{o}/then") for o in node.output]
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    del inner.output[:]
    inner.output.extend(o.name for o in outputs)
    branch = helper.make_graph([inner], "branch", [], outputs)
    model.graph.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), "fuzz_condition"))
    condition = "fuzz_condition" if rng.random() < 0.8 else str(node.input[0] if node.input else "fuzz_condition")
    branches = {"then_branch": branch, "else_branch": branch}
    made = helper.make_node("If", [condition], list(node.output), name="fuzz_if", **branches)
    model.graph.node[index].CopyFrom(made)


CHANGES: tuple[Change, ...] = (
    delete_node, drop_node, insert_elementwise, insert_other, insert_arithmetic, swap_nodes, swap_inputs,
    change_operator, change_domain, change_attribute, change_values, scale_values, change_type, change_shape,
    lie_about_shape, change_input, change_outputs, rename, make_cycle, reroute, change_opset, hide_in_if,
)  # fmt: skip


def damage_bytes(data: bytes, rng: Rng) -> bytes:
    """A file cut short, with bytes changed, zeroed, repeated or removed."""
    what, size = rng.random(), len(data)
    if what < 0.3:
        return data[: int(rng.integers(size))]
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(min(size, 3000)))
        if what < 0.7:
            changed[at] = int(rng.integers(256))
        elif what < 0.8:
            changed[at : at + 64] = bytes(min(64, size - at))
        elif what < 0.9:
            changed[at:at] = changed[at : at + int(rng.integers(1, 40))]
        else:
            del changed[at : at + int(rng.integers(1, 40))]
    return bytes(changed)


def _insert(model: onnx.ModelProto, rng: Rng, kind: str, more: list[str] | None = None, **attributes: object) -> None:
    index = int(rng.integers(len(model.graph.node)))
    outputs = list(model.graph.node[index].output)
    if not outputs or not outputs[0]:
        return
    name = f"fuzz_{kind}_{len(model.graph.node)}"
    _reroute(model, outputs[0], name, after=index)
    made = helper.make_node(kind, [outputs[0], *(more or [])], [name], name=name, **attributes)
    model.graph.node.insert(index + 1, made)


def _reroute(model: onnx.ModelProto, old: str, new: str, after: int = -1) -> None:
    """Let everything read another tensor; an output that has it is renamed."""
    for node in model.graph.node[after + 1 :]:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
    for output in model.graph.output:
        if output.name == old:
            output.name = new


def _constant(model: onnx.ModelProto, rng: Rng) -> tuple[TensorProto, np.ndarray] | None:
    tensors = [*model.graph.initializer]
    tensors += [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    if not tensors:
        return None
    tensor = _pick(rng, tensors)
    assert isinstance(tensor, TensorProto)
    try:
        return tensor, numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError):  # an earlier change has made it unreadable
        return None
