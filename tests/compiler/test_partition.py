"""Which nodes go to the host: as few as possible, in as few parts as possible, each with a reason."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import partition_nets as nets
import pytest
from graph_answers import cosines
from onnx.numpy_helper import from_array, to_array
from onnx_net import Net

from moevit.compiler import ir
from moevit.compiler.driver import compile_model
from moevit.compiler.frontend.check import run_onnxruntime
from moevit.compiler.frontend.load import load
from moevit.compiler.frontend.model import read
from moevit.compiler.partition import Plan, plan
from moevit.compiler.partition.cut import cut
from moevit.compiler.partition.flow import flow_of
from moevit.compiler.partition.macs import node_macs
from moevit.config import CONFIGS
from moevit.errors import ModelError, UnsupportedOpError
from moevit.models.scenes import m3vit_path
from moevit.pipeline import HOST, MACHINE
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate

FIXTURES = Path(__file__).parents[1] / "fixtures"
Build = Callable[[Path], Path]

MACHINE_HOST_MACHINE = [MACHINE, HOST, MACHINE]
CASES: dict[str, tuple[Build, list[str], list[str]]] = {  # model, steps, operators on the host
    "sin": (partial(nets.middle, "Sin"), MACHINE_HOST_MACHINE, ["Sin"]),
    "mish": (partial(nets.middle, "Mish"), MACHINE_HOST_MACHINE, ["Mish"]),
    "l2": (partial(nets.middle, "LpNormalization", axis=-1, p=2), MACHINE_HOST_MACHINE, ["LpNormalization"]),
    "token softmax": (nets.token_softmax, MACHINE_HOST_MACHINE, ["Softmax", "Add"]),
    "activation": (nets.odd_activation, MACHINE_HOST_MACHINE, ["Mish"]),
    "before": (nets.before, [HOST, MACHINE], ["Conv"]),
    "after": (
        nets.after, [MACHINE, HOST],
        ["LayerNormalization", "Transpose", "Reshape", "ConvTranspose", "Resize", "Sigmoid", "ArgMax"],
    ),
    "shapes": (nets.shapes_from_shapes, MACHINE_HOST_MACHINE, ["Sin", "Reshape"]),
}  # fmt: skip


def kinds(made: Plan) -> list[str]:
    assert made.pipeline is not None
    return [step.kind for step in made.pipeline.steps]


@pytest.mark.parametrize("name", CASES)
def test_who_does_what(name: str, tmp_path: Path) -> None:
    build, steps, ops = CASES[name]
    made = plan("main", build(tmp_path / "m.onnx"))
    assert kinds(made) == steps
    nodes = [node for part, _ in made.hosts for node in part.nodes]
    assert [node.op for node in nodes] == ops
    assert all(node.reason and node.way_out for node in nodes)


def test_an_attention_that_is_none_goes_to_the_host_whole(tmp_path: Path) -> None:
    """Scores are no matrix, so that nothing can be cut off between q, k, v and the context."""
    made = plan("main", nets.cosine_attention(tmp_path / "m.onnx"))
    assert kinds(made) == MACHINE_HOST_MACHINE
    ops = [node.op for node in made.hosts[0][0].nodes]
    assert ops[:2] == ["LpNormalization"] * 2 and "Softmax" in ops and "LayerNormalization" not in ops
    after = made.graphs["main#2"]
    assert after.counts()["Attention"] == 2  # the second block's, and the mean over all tokens


def test_work_on_both_sides_is_all_there_is(tmp_path: Path) -> None:
    path = nets.after(tmp_path / "m.onnx")
    made = plan("main", path)
    flow = flow_of(read(path), str(path))
    total = sum(node_macs(flow, node) for node in flow.nodes)
    assert made.graphs["main"].macs() + made.hosts[0][0].macs == total
    assert made.hosts[0][0].macs == nets.WIDTH * 4 * 4 * 8 * 4 * 4  # of ConvTranspose


def test_a_matrix_of_which_parts_go_to_the_host_is_multiplied_once(tmp_path: Path) -> None:
    """Each of q, k and v takes its own columns of it."""
    path = nets.shared_projection(tmp_path / "m.onnx")
    made = plan("main", path)
    flow = flow_of(read(path), str(path))
    linears = [op for op in made.graphs["main#1"] if isinstance(op, ir.Linear)]
    assert [len(op.weight) for op in linears] == [nets.WIDTH] * 3
    before = sum(node_macs(flow, n) for n in flow.nodes if n.op_type == "Conv")
    assert made.graphs["main#1"].macs() == before + 3 * nets.TOKENS * nets.WIDTH**2


def host_nodes(made: Plan) -> dict[str, list[str]]:
    """What is said of the host's nodes, by operator."""
    out: dict[str, list[str]] = {}
    for part, _ in made.hosts:
        for node in part.nodes:
            out.setdefault(node.op, []).append(node.reason)
    return out


def test_of_windows_only_the_attention_is_the_host_s(tmp_path: Path) -> None:
    """Layers do not mind the order of the tokens, so that they do them where they are."""
    made = plan("main", nets.windows(tmp_path / "m.onnx"))
    image, square = 3 * nets.IMAGE**2 * nets.WIDTH, nets.TOKENS * nets.WIDTH**2
    assert made.graphs["main#1"].macs() == image + 3 * square
    assert made.graphs["main#2"].macs() == 8 * square
    assert sum(part.macs for part, _ in made.hosts) == 2 * nets.TOKENS * 4 * nets.WIDTH  # four keys for each query
    assert any("attends within groups of tokens" in reason for reason in host_nodes(made)["MatMul"])


@pytest.mark.parametrize(
    ("build", "op", "reason"),
    [(nets.rotary, "Mul", "differ between tokens, as rotary positions"),
     (nets.head_norms, "LayerNormalization", "normalises groups of 16 channels, as of heads")],
)  # fmt: skip
def test_what_is_said_of_attention_s_variants(build: Build, op: str, reason: str, tmp_path: Path) -> None:
    nodes = host_nodes(plan("main", build(tmp_path / "m.onnx")))
    assert nodes[op] and all(reason in given for given in nodes[op])


def test_what_only_arranges_what_the_host_makes_goes_to_it(tmp_path: Path) -> None:
    """And not the norm and the residual behind it, nor with a reason that blames the model."""
    nodes = host_nodes(plan("main", nets.stem(tmp_path / "m.onnx")))
    assert set(nodes) == {"Conv", "Reshape", "Transpose", "Concat", "Add"}
    for op in ("Reshape", "Transpose", "Concat", "Add"):
        assert nodes[op] == ["it arranges what the host makes as the machine takes it"]


def test_a_model_for_the_machine_alone_is_not_cut() -> None:
    made = plan("main", FIXTURES / "dynamo20_odd37.onnx")
    assert made.pipeline is None and not made.hosts and list(made.graphs) == ["main"]


def test_strict_refuses_what_is_not(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        plan("main", nets.middle("Sin", tmp_path / "m.onnx"), strict=True)
    assert [node.op for node in caught.value.nodes] == ["Sin"]


def test_nothing_for_the_machine_is_an_error_with_all_nodes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOpError, match=r"nothing that is left is worth") as caught:
        plan("main", nets.nothing(tmp_path / "m.onnx"))
    assert {node.op for node in caught.value.nodes} == {"MaxPool", "Sigmoid"}
    assert "the accelerator has no MaxPool" in str(caught.value)


def test_little_work_stays_on_the_host(tmp_path: Path) -> None:
    """A linear layer with few multiply-accumulates for the values that would travel is not worth the way."""
    net = Net(1, 500, 4)
    y = net.op("Sin", net.linear(net.op("Sin", net.linear("x", 4, 64)), 64, 4))
    with pytest.raises(UnsupportedOpError):
        plan("main", net.save(tmp_path / "m.onnx", net.linear(y, 4, 4)))


def test_an_operator_that_onnxruntime_does_not_have_is_refused_as_before(tmp_path: Path) -> None:
    net = nets.Vit()
    x = net.block(net.embed())
    net.nodes.append(onnx.helper.make_node("Odd", [x], ["odd"], name="odd", domain="other"))
    with pytest.raises(UnsupportedOpError, match=r"other\.Odd node 'odd'.*the host cannot do them: onnxruntime cannot"):
        plan("main", net.save(tmp_path / "m.onnx", net.head("odd")))


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniform", "Dropout"])
def test_noise_that_was_left_in_is_named(op: str, tmp_path: Path) -> None:
    """Two runs of it differ, which must not be taken for a mistake of the compiler's."""
    net = nets.Vit()
    x = net.block(net.embed())
    if op == "Dropout":
        y = net.op(op, x, net.const(0.5), net.const(True, bool))
    else:
        y = net.op("Add", x, net.op(op, x) if op == "RandomNormalLike" else net.op(op, shape=[1, 16, nets.WIDTH]))
    with pytest.raises(UnsupportedOpError, match="draws random numbers") as caught:
        plan("main", net.save(tmp_path / "m.onnx", net.head(y)))
    assert [node.op for node in caught.value.nodes] == [op]


def test_a_part_that_differs_from_the_model_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the front end makes of a part is held to what onnxruntime computes in the whole model."""
    import moevit.compiler.partition.split as split

    honest = split.lower

    def misread(*args: object) -> object:
        graph = honest(*args)  # type: ignore[arg-type]
        for op in graph.ops:
            for array in op.constants().values():
                array *= 1.01
        return graph

    monkeypatch.setattr(split, "lower", misread)
    with pytest.raises(ModelError, match="differs from onnxruntime's"):
        plan("main", nets.middle("Sin", tmp_path / "m.onnx"))


def test_static_nodes_are_computed_beforehand(tmp_path: Path) -> None:
    flow = flow_of(read(nets.shapes_from_shapes(tmp_path / "m.onnx")), "m")
    assert not {"Shape", "Gather", "Concat"} & {node.op_type for node in flow.nodes}
    (sin,) = (node for node in flow.nodes if node.op_type == "Sin")
    assert flow.shape(sin.input[0]) == (1, 2 * nets.TOKENS, nets.WIDTH // 2)


def test_shapes_that_come_from_data_are_not_static(tmp_path: Path) -> None:
    """How many values are positive is not known beforehand, nor what is computed from that number."""
    net = Net(1, 4, 8)
    places = net.op("NonZero", net.op("Relu", "x"))
    count = net.op("Cast", net.op("Gather", net.op("Shape", places), net.ints(1)), to=onnx.TensorProto.FLOAT)
    path = net.save(tmp_path / "m.onnx", net.op("Mul", "x", count))
    flow = flow_of(read(path), "m")
    assert {"NonZero", "Shape", "Gather", "Cast"} <= {node.op_type for node in flow.nodes}


def test_an_if_whose_branch_is_fixed_and_what_it_takes_from_outside(tmp_path: Path) -> None:
    """A graph inside a node reads tensors around it, which must be inputs of the part that it goes to."""
    net = nets.Vit()
    x = net.block(net.embed())
    inner = onnx.helper.make_node("Sin", [x], ["inside"], name="inner_sin")
    empty = onnx.helper.make_node("Cos", [x], ["other"], name="inner_cos")
    value = onnx.helper.make_tensor_value_info
    shape = (1, nets.TOKENS, nets.WIDTH)
    branches = [
        onnx.helper.make_graph([node], node.name, [], [value(node.output[0], 1, shape)]) for node in (inner, empty)
    ]
    positive = net.op("Greater", net.op("ReduceSum", "x", net.ints(0, 1, 2, 3), keepdims=0), net.const(0.0))
    y = net.op("If", positive, then_branch=branches[0], else_branch=branches[1])
    made = plan("main", net.save(tmp_path / "m.onnx", net.head(net.block(y))))
    assert "If" in [node.op for part, _ in made.hosts for node in part.nodes]
    part = next(part for part, _ in made.hosts if "If" in [node.op for node in part.nodes])
    assert x in [value.name for value in part.inputs]


def test_parts_run_by_turns_and_what_only_the_last_needs_is_late(tmp_path: Path) -> None:
    """The host's nodes are as late as they can be: a tensor that the first part could make does not wait there."""
    net = nets.Vit()
    mean = net.op("ReduceMean", "x", net.ints(1, 2, 3), keepdims=0)
    early = net.op("Sin", mean)
    x = net.op("Sin", net.block(net.embed()))
    y = net.head(net.block(x))
    path = net.save(tmp_path / "m.onnx", net.op("Tan", net.op("Add", y, early)))
    flow = flow_of(read(path), "m")
    host = {n.name: None for n in flow.nodes if n.op_type in ("Sin", "Tan") or {*n.input, *n.output} & {mean, early}}
    parts = cut(flow, host)
    assert [part.host for part in parts] == [False, True, False, True]
    assert {n.op_type for n in parts[-1].nodes} == {"ReduceMean", "Sin", "Add", "Tan"}
    assert set(parts[-1].inputs) == {"x", y}


def test_calibration_reads_the_model_itself(tmp_path: Path) -> None:
    """The second program's inputs are what the host really makes."""
    made = plan("main", nets.middle("Sin", tmp_path / "m.onnx"))
    given = nets.inputs(3)
    data = made.data(given)
    assert np.array_equal(data["main#1"]["x"], given["x"])
    (inner,) = data["main#2"].values()
    assert inner.shape == (3, nets.TOKENS, nets.WIDTH) and -1 <= inner.min() < -0.5 and 0.5 < inner.max() <= 1


def test_text_has_no_place_between_steps(tmp_path: Path) -> None:
    """A tensor that holds no numbers: the model is refused as if there were no host."""
    net = nets.Vit()
    y = net.op("Cast", net.op("Sin", net.head(net.block(net.embed()))), to=onnx.TensorProto.STRING)
    net.save(tmp_path / "m.onnx", net.op("Cast", y, to=onnx.TensorProto.FLOAT))
    with pytest.raises(UnsupportedOpError, match="Sin"):
        plan("main", tmp_path / "m.onnx")


def test_a_mixture_whose_values_the_machine_does_not_hold(tmp_path: Path) -> None:
    """That one is the host's, as a whole; the other two are not."""
    shipped = m3vit_path("depth.onnx")
    model = onnx.load(shipped)
    gate = next(op for op in load(shipped) if isinstance(op, ir.MoE)).gate_weight
    (weight,) = (t for t in model.graph.initializer if np.array_equal(to_array(t), gate.T))
    weight.CopyFrom(from_array(to_array(weight) * np.float32(200), weight.name))
    onnx.save(model, tmp_path / "m.onnx")
    scenes = np.load(shipped.parent / "calib_scenes.npz")["images"][:4].astype(np.float32) / 255
    compiled = compile_model({"main": tmp_path / "m.onnx"}, CONFIGS["tiny"], lambda task, shapes: {"image": scenes})
    nodes = compiled.host_nodes["main"]
    assert {"TopK", "Gelu", "MatMul"} <= {n.op for n in nodes} and sum(n.op == "TopK" for n in nodes) == 1
    assert any("its gate's logits reach" in n.reason for n in nodes)
    assert compiled.prepared is not None
    graphs = [s.graph for s in compiled.prepared.stages.values()]
    assert len(graphs) == 2 and sum(isinstance(op, ir.MoE) for g in graphs for op in g) == 2
    inputs = from_arrays({"image": scenes.shape[1:]}, {"image": scenes[:2]})
    (got,) = simulate(compiled.program, inputs, check=True).outputs.values()
    (want,) = run_onnxruntime(tmp_path / "m.onnx", {"image": scenes[:2]}).values()
    assert cosines(got, want).min() > 0.998
