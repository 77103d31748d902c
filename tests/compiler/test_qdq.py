"""Models that are quantised already: their scales and integers are the machine's."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import zoo
from compile_helpers import FIXTURES, SHIPPED, float_inputs
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_net import Net
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from moevit.compiler import ir
from moevit.compiler.driver import Compiled, compile_model, prepare
from moevit.compiler.frontend import qdq
from moevit.compiler.frontend.check import run_onnxruntime
from moevit.compiler.frontend.load import load
from moevit.compiler.ptq.grid import steps_of
from moevit.compiler.quantise import Format, Quantised, QuantisedLinear
from moevit.config import CONFIGS
from moevit.errors import UnsupportedOpError
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate

CONFIG = CONFIGS["tiny"]
VARIANTS = {
    "int8": {},
    "uint8": {"activation_type": QuantType.QUInt8},
    "per_channel": {"activation_type": QuantType.QInt8, "per_channel": True},
    "unsigned_weights": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "symmetric": {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},
}


class Reader(CalibrationDataReader):
    """Calibration inputs [B, ...], one at a time."""

    def __init__(self, **inputs: NDArray) -> None:
        count = len(next(iter(inputs.values())))
        self.rows = iter([{k: v[i : i + 1] for k, v in inputs.items()} for i in range(count)])

    def get_next(self) -> dict[str, NDArray] | None:
        return next(self.rows, None)


def quantise_file(path: Path, folder: Path, inputs: dict[str, NDArray], variant: str) -> Path:
    """A float model quantised by onnxruntime."""
    prepared, out = folder / "prepared.onnx", folder / f"{variant}.onnx"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, out, Reader(**inputs), **VARIANTS[variant])
    return out


def compile_file(path: Path, inputs: dict[str, NDArray], **options: bool) -> Compiled:
    return compile_model({"main": path}, CONFIG, lambda task, shapes: inputs, **options)


def cosine(compiled: Compiled, path: Path, inputs: dict[str, NDArray]) -> float:
    """The least cosine over outputs, mean over images, between the machine and onnxruntime on the same file.

    On two of the images every tensor is compared with the reference too, bit by bit.
    """
    shapes = {k: v.shape[1:] for k, v in inputs.items()}
    got = simulate(compiled.program, from_arrays(shapes, inputs)).outputs
    simulate(compiled.program, from_arrays(shapes, {k: v[:2] for k, v in inputs.items()}), check=True)
    worst = 1.0
    for name, want in run_onnxruntime(path, inputs).items():
        worst = min(worst, mean_cosine(got[name], want))
    return worst


def mean_cosine(got: NDArray, want: NDArray) -> float:
    """Over images."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (got, want))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def integers(path: Path, inputs: dict[str, NDArray]) -> tuple[Quantised, ir.Graph]:
    """What the machine computes with, and the graph."""
    graph = load(path)
    return prepare({"main": graph}, {"main": inputs}).quantised("main", CONFIG), graph


def constants(path: Path) -> dict[str, NDArray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def calibration() -> dict[str, NDArray[np.float32]]:
    return {"image": float_inputs(SHIPPED / "fashion_vit.onnx")["image"][:16]}


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory, calibration: dict[str, NDArray]) -> dict[str, Path]:
    """The shipped model, quantised in each of some ways."""
    folder = tmp_path_factory.mktemp("qdq")
    return {v: quantise_file(SHIPPED / "fashion_vit.onnx", folder, calibration, v) for v in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantize_static(variant: str, fashion: dict[str, Path], calibration: dict[str, NDArray]) -> None:
    images = {"image": np.load(SHIPPED / "test_images.npz")["images"][:64, None].astype(np.float32) / 255}
    compiled = compile_file(fashion[variant], calibration, strict=True)
    got = cosine(compiled, fashion[variant], images)
    print(f"{variant}: {got:.5f}")
    assert got > 0.998


@pytest.mark.parametrize("variant", ["uint8", "int8", "per_channel", "symmetric"])
def test_weights_keep_their_integers(variant: str, fashion: dict[str, Path], calibration: dict[str, NDArray]) -> None:
    quantised, _ = integers(fashion[variant], calibration)
    stored = constants(fashion[variant])
    scales = {k.removesuffix("_quantized"): k for k in stored if k.endswith("_quantized") and stored[k].ndim == 2}
    linear = [q for q in quantised.stages if isinstance(q, QuantisedLinear)]
    matrices = [q for q in linear if q.activation or (q.norm is None and q.stage.name.startswith("MatMul"))]
    assert len(matrices) >= 8
    found = 0
    for q in matrices:
        for name in scales.values():
            given = stored[name].T
            if given.shape[1] != q.weight.shape[1] or len(given) != len(q.weight):
                continue
            # A row all of whose magnitudes have a common divisor, and one of zeros, may have other integers.
            found += bool((q.weight == given).all(axis=1).mean() > 0.99)
    assert found == len(matrices)


@pytest.mark.parametrize("variant", ["uint8", "int8"])
def test_activations_keep_their_formats(
    variant: str, fashion: dict[str, Path], calibration: dict[str, NDArray]
) -> None:
    """Also when it is compiled with calibration data that reach much further."""
    far = {"image": calibration["image"] * 3}
    stored = constants(fashion[variant])
    low = -128 if variant == "int8" else 0

    def format_of(tensor: str) -> tuple[float, int]:
        return float(stored[f"{tensor}_scale"]), int(stored[f"{tensor}_zero_point"]) - low

    for inputs in (calibration, far):
        quantised, graph = integers(fashion[variant], inputs)
        image = quantised.formats["image"]
        assert (image.scale, image.zero_point) == pytest.approx(format_of("image"))
        hidden = [op.output for op in graph if isinstance(op, ir.Activation)]
        norms = [op.output for op in graph if isinstance(op, ir.LayerNorm)]
        assert len(hidden) == 4 and len(norms) == 9
        for tensor in hidden:
            f = quantised.formats[tensor]
            assert f.dtype == "uint8" and (f.scale, f.zero_point) == pytest.approx(format_of(tensor), rel=1e-6)
        for q in quantised.stages:
            if isinstance(q, QuantisedLinear) and q.norm is not None and q.stage.norm_output in hidden + norms:
                assert not q.signed or format_of(q.stage.norm_output)[1] in (127, 128)
        for op in graph:
            if isinstance(op, ir.Attention):  # int8 without zero point, over a range that covers the model's
                for tensor in (op.q, op.k, op.v, op.output):
                    given, f = graph.producer(tensor).given, quantised.formats[tensor]
                    reach = max(given.zero_point - given.low, given.high - given.zero_point)
                    assert f == Format("int8", pytest.approx(given.scale * (1 if reach <= 128 else reach / 127)))


@pytest.mark.parametrize("place", ["end", "middle"])
def test_a_quantised_model_that_is_split(
    place: str, fashion: dict[str, Path], calibration: dict[str, NDArray], tmp_path: Path
) -> None:
    """What the machine does of it has the model's formats still."""
    model = onnx.load(fashion["int8"])
    nodes = model.graph.node
    if place == "end":
        nodes.append(helper.make_node("Softmax", ["logits"], ["chances"], name="chances"))
        model.graph.output[0].name = "chances"
    else:
        gelu = [n for n in nodes if n.op_type == "Gelu"][1]
        gelu.op_type = "Softplus"
        del gelu.attribute[:]
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    compiled = compile_file(path, calibration)
    assert compiled.host_nodes["main"]
    assert compiled.prepared is not None
    stored = constants(path)
    scales = {np.float32(v) for k, v in stored.items() if k.endswith("_scale") and v.ndim == 0}
    hidden = 0
    for name, stages in compiled.prepared.stages.items():
        quantised = compiled.prepared.quantised(name, CONFIG)
        for q in quantised.stages:
            if isinstance(q, QuantisedLinear) and q.activation:
                assert np.float32(q.output.scale) in scales
                hidden += 1
        assert stages.graph.integer_weights
    assert hidden == (4 if place == "end" else 3)
    assert cosine(compiled, path, {"image": calibration["image"][:8]}) > 0.998


def test_weights_with_a_zero_point(tmp_path: Path) -> None:
    """Rows that lie within 127 steps of it keep theirs, the others are quantised again, each with its own scale."""
    net = Net(1, 12, 16)
    q = net.rng.integers(0, 158, (24, 16)).astype(np.uint8)
    q[:, :2] = 31, 157
    q[:12, 2] = 240
    w = net.op("DequantizeLinear", net.const(q, np.uint8), net.const(0.01), net.const(30, np.uint8))
    y = net.op("MatMul", quantiser(net, "x", 0.03, 128, np.uint8), net.op("Transpose", w, perm=[1, 0]))
    inputs = {"x": net.rng.normal(size=(4, 12, 16)).astype(np.float32)}
    path = net.save(tmp_path / "net.onnx", y)
    (stage,) = integers(path, inputs)[0].stages
    assert isinstance(stage, QuantisedLinear)
    assert np.array_equal(stage.weight[12:24], q[12:].astype(int) - 30)
    again = np.round((q[:12].astype(int) - 30) * (127 / 210))
    assert np.abs(stage.weight[:12] - again).max() <= 1 and (stage.weight[:12, 2] == 127).all()
    assert cosine(compile_file(path, inputs, strict=True), path, inputs) > 0.999


def test_a_mixture_of_experts_has_the_formats_of_its_hidden_values(tmp_path: Path) -> None:
    folder = SHIPPED.parent / "m3vit"
    images = np.load(folder / "calib_scenes.npz")["images"][:8].astype(np.float32) / 255
    path = quantise_file(folder / "depth.onnx", tmp_path, {"image": images}, "int8")
    graph = load(path)
    mixtures = [op for op in graph if isinstance(op, ir.MoE)]
    stored = constants(path)
    scales = {float(v) for k, v in stored.items() if k.endswith("_scale") and v.ndim == 0}
    assert mixtures
    for op in mixtures:
        assert len(op.given_hidden) == op.experts
        assert all(g is not None and np.float32(g.scale) in scales for g in op.given_hidden)
    test = {"image": np.load(folder / "test_scenes.npz")["images"][:8].astype(np.float32) / 255}
    assert cosine(compile_file(path, {"image": images}, strict=True), path, test) > 0.998


@pytest.mark.slow
def test_a_model_beside_which_onnxruntime_is_not_its_own_equal(tmp_path: Path) -> None:
    """M³ViT's segmentation rounds its residual stream to 8 bits, and then each token's experts hang on last bits.

    The machine stays at the float model, and as near to onnxruntime as that is; onnxruntime without its fusions is not
    as near to itself as the other models are to the machine (docs/numerics.md).
    """
    folder = SHIPPED.parent / "m3vit"
    images, test = (np.load(folder / f"{f}_scenes.npz")["images"].astype(np.float32) / 255 for f in ("calib", "test"))
    inputs = {"image": test[:64]}
    path = quantise_file(folder / "seg.onnx", tmp_path, {"image": images[:32]}, "int8")
    compiled = compile_file(path, {"image": images[:32]}, strict=True)
    machine, exact = (cosine(compiled, file, inputs) for file in (path, folder / "seg.onnx"))
    (fused,) = run_onnxruntime(path, inputs).values()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    literal = onnxruntime.InferenceSession(path, options)
    plain = np.stack([literal.run(None, {"image": image[None]})[0] for image in inputs["image"]])
    (float_,) = run_onnxruntime(folder / "seg.onnx", inputs).values()
    own, lost = mean_cosine(plain, fused), mean_cosine(float_, fused)
    print(f"machine {machine:.5f}, its float model {exact:.5f}; onnxruntime, own {own:.5f}, float model {lost:.5f}")
    assert exact > 0.999 and machine > lost - 0.001
    assert own < 0.998  # else the machine's is to be, too


@pytest.mark.torch
@pytest.mark.parametrize("variant", ["int8", "per_channel"])
def test_a_whole_deit(variant: str, tmp_path: Path) -> None:
    """Its 197 keys have 1.3 steps of a probability each, of which 1 is left: see compiler/ptq/mass.py."""
    path = zoo.export(zoo.FULL["DeiT-Ti"], tmp_path / "deit.onnx", dynamo=True, opset=18, size=224)
    rng = np.random.default_rng(1)
    images, test = ({"image": rng.random((n, 3, 224, 224), dtype=np.float32)} for n in (8, 4))
    path = quantise_file(path, tmp_path, images, variant)
    compiled = compile_model({"main": path}, CONFIGS["zcu104"], lambda task, shapes: images, strict=True)
    got = cosine(compiled, path, test)
    print(f"{variant}: {got:.5f}")
    assert got > 0.998


# Exports of other tools, as they write them; fixtures/quantised/make_quantised.py says with which versions.


@pytest.mark.parametrize("tool", ["torchao", "brevitas"])
def test_exports_of_other_tools(tool: str) -> None:
    path = FIXTURES / "quantised" / f"{tool}.onnx"
    inputs = dict(np.load(FIXTURES / "quantised" / "images.npz"))
    quantised, graph = integers(path, inputs)
    nodes = onnx.load(path).graph.node
    assert {n.op_type for n in nodes} >= {"QuantizeLinear", "DequantizeLinear"}
    assert any(n.op_type == "Clip" for n in nodes) == (tool == "brevitas")
    scales = {np.float32(v) for k, v in constants(path).items() if v.dtype == np.float32 and v.size == 1}
    stated = [i.given for i in graph.inputs] + [op.given for op in graph if op.given is not None]
    assert len(stated) >= 5 and all(g is not None for g in stated)
    assert {np.float32(g.scale) for g in stated if g is not None} <= scales
    for q in quantised.stages:
        if isinstance(q, QuantisedLinear):  # every row is the model's
            assert (steps_of(q.stage.weight) > 0).all()
    hidden = next(op.output for op in graph if isinstance(op, ir.Activation))
    assert np.float32(quantised.formats[hidden].scale) in scales
    got = cosine(compile_file(path, inputs, strict=True), path, inputs)
    print(f"{tool}: {got:.5f}")
    assert got > 0.998


# Their forms, as small as can be.


def quantiser(net: Net, x: str, scale: float, zero: int, dtype: type, clip: tuple[int, int] | None = None) -> str:
    """QuantizeLinear, Clip if wanted, DequantizeLinear."""
    s, z = net.const(scale), net.const(zero, dtype)
    q = net.op("QuantizeLinear", x, s, z)
    if clip is not None:
        q = net.op("Clip", q, *(net.const(c, dtype) for c in clip))
    return net.op("DequantizeLinear", q, s, z)


def form_net(form: str, tmp_path: Path) -> Path:
    """Two layers with an activation between, as Brevitas (QCDQ) or torchao (pt2e) export them."""
    net = Net(1, 12, 16, opset=18)
    rng = np.random.default_rng(5)
    first, second = (rng.integers(-127, 128, s).astype(np.int8) for s in ((24, 16), (10, 24)))
    for q in (first, second):
        q[:, 0], q[:, 1] = -128 if form == "torchao" else 127, 1
    scales = [rng.uniform(0.002, 0.004, n).astype(np.float32) for n in (24, 10)]

    def linear(x: str, q: NDArray[np.int8], scale: NDArray[np.float32]) -> str:
        bias = net.const(rng.normal(size=len(q)) * 0.1)
        zero = net.const(np.zeros(len(q)), np.int8)
        if form == "brevitas":  # a Gemm of a matrix; the weights are clipped too
            w = net.op("Clip", net.const(q, np.int8), net.const(-127, np.int8), net.const(127, np.int8))
            w = net.op("DequantizeLinear", w, net.const(scale), zero, axis=0)
            flat = net.op("Reshape", x, net.ints(-1, q.shape[1]))
            y = net.op("Gemm", flat, w, bias, transB=1)
            return net.op("Reshape", y, net.ints(1, 12, len(q)))
        w = net.op("DequantizeLinear", net.const(q, np.int8), net.const(scale), zero, axis=0)
        return net.op("Add", net.op("MatMul", x, net.op("Transpose", w, perm=[1, 0])), bias)

    clip, zero, dtype = ((-127, 127), 0, np.int8) if form == "brevitas" else (None, 120, np.uint8)
    x = quantiser(net, "x", 0.03, zero, dtype, clip)
    x = net.op("Relu", linear(x, first, scales[0]))
    hidden = quantiser(net, x, 0.02, 0, np.uint8, (0, 255) if form == "brevitas" else None)
    y = linear(hidden, second, scales[1])
    return net.save(tmp_path / f"{form}.onnx", y)


@pytest.mark.parametrize("form", ["brevitas", "torchao"])
def test_forms_of_other_tools(form: str, tmp_path: Path) -> None:
    path = form_net(form, tmp_path)
    rng = np.random.default_rng(3)
    inputs = {"x": rng.normal(size=(8, 12, 16)).astype(np.float32)}
    quantised, _ = integers(path, inputs)
    first, second = quantised.stages
    assert isinstance(first, QuantisedLinear) and isinstance(second, QuantisedLinear)
    stored = [t for t in constants(path).values() if t.dtype == np.int8 and t.ndim == 2]
    assert np.array_equal(first.weight[:24], stored[0]) and np.array_equal(second.weight[:10], stored[1])
    assert first.output == Format("uint8", pytest.approx(0.02), 0)
    assert quantised.formats["x"] == Format("uint8", pytest.approx(0.03), 127 if form == "brevitas" else 120)
    assert cosine(compile_file(path, inputs, strict=True), path, inputs) > 0.999


def test_a_relu_that_quantize_static_left_out_is_there(tmp_path: Path) -> None:
    net = Net(1, 12, 16)
    y = net.linear(net.op("Relu", net.linear("x", 16, 24)), 24, 10)
    float_path = net.save(tmp_path / "net.onnx", y)
    inputs = {"x": np.random.default_rng(0).normal(size=(16, 12, 16)).astype(np.float32)}
    path = quantise_file(float_path, tmp_path, inputs, "uint8")
    assert not any(n.op_type == "Relu" for n in onnx.load(path).graph.node)
    assert [type(op).__name__ for op in load(path)] == ["Linear", "Activation", "Linear"]
    assert cosine(compile_file(path, inputs, strict=True), path, inputs) > 0.998


def test_a_model_that_is_not_quantised_is_left_as_it_is() -> None:
    model = onnx.load(SHIPPED / "fashion_vit.onnx")
    assert qdq.strip(model).model is model and not qdq.strip(model).quantised


@pytest.mark.parametrize("form", ["per_channel", "few_bits", "computed"])
def test_other_quantisers_are_named(form: str, tmp_path: Path) -> None:
    net = Net(1, 12, 16)
    x = net.op("Relu", net.linear("x", 16, 24))
    if form == "per_channel":
        s, z = net.const(np.full(24, 0.02)), net.const(np.zeros(24), np.uint8)
        x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, s, z, axis=2), s, z, axis=2)
    elif form == "few_bits":
        x = quantiser(net, x, 0.2, 0, np.int8, (-8, 7))
    else:
        net.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], ["q", "s", "z"], name="dynamic"))
        x = net.op("DequantizeLinear", "q", "s", "z")
    path = net.save(tmp_path / "net.onnx", net.linear(x, 24, 10))
    inputs = {"x": np.random.default_rng(0).normal(size=(4, 12, 16)).astype(np.float32)}
    with pytest.raises(UnsupportedOpError, match="quantise") as error:
        compile_file(path, inputs, strict=True)
    assert any("Quantize" in n.op for n in error.value.nodes)


# Finding the integers.


def test_steps_of_rows_that_are_multiples() -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, (60, 200))
    q[:20] = q[:20] // 8 * 3  # rows that do not use all of the range, and whose divisor is not one
    q[20] = 0
    q[21] = np.where(q[21] > 0, 5, 0)
    scale = np.exp(rng.normal(size=60))
    weight = (q.astype(np.float32) * scale.astype(np.float32)[:, None]).astype(np.float32)
    steps = steps_of(weight)
    divisor = np.gcd.reduce(q, axis=1)
    for row in (*range(20), *range(22, 60)):
        assert steps[row] == pytest.approx(scale[row] * divisor[row], rel=1e-6)
    assert steps[20] == steps[21] == 0


def test_steps_of_rows_that_go_to_the_end_of_int8() -> None:
    q = np.array([[-128, 1, 127], [128, 1, -127]])
    assert steps_of(q * np.float32(0.03)) == pytest.approx([0.03, 0])


def test_steps_of_other_rows_are_none() -> None:
    rng = np.random.default_rng(1)
    assert not steps_of(rng.normal(size=(200, 64)).astype(np.float32)).any()
    wide = rng.integers(-255, 256, (50, 64)) * np.float32(0.01)
    wide[:, 0], wide[:, 1] = 2.55, 0.01
    assert not steps_of(wide.astype(np.float32)).any()
