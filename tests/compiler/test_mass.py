"""What the probabilities of a quantised model add up to, and that its attention's results are as large as that says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_net import Net

from moevit.compiler import interpret, ir
from moevit.compiler.driver import compile_model, prepare
from moevit.compiler.frontend.check import run_onnxruntime
from moevit.compiler.frontend.load import load
from moevit.compiler.ptq.mass import rounded, with_masses
from moevit.config import CONFIGS
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate

TOKENS, WIDTH, HEADS = 120, 16, 2
SIZE = WIDTH // HEADS
GIVEN = ir.Given(scale=1 / 255, zero_point=-128, low=-128, high=127)


def block(folder: Path, *, quantised: bool = True, keys: int = TOKENS, factor: float = 1.0) -> Path:
    """An attention of even probabilities, of which most are 2 steps of 1/255 as a model's quantiser leaves them."""
    net = Net(1, TOKENS, WIDTH)

    def heads(x: str, *order: int) -> str:
        return net.op("Transpose", net.op("Reshape", x, net.ints(1, TOKENS, HEADS, SIZE)), perm=[0, *order])

    q, k, v = (net.linear("x", WIDTH, WIDTH) for _ in range(3))
    scores = net.op("MatMul", heads(q, 2, 1, 3), heads(k, 2, 3, 1))
    scores = net.op("Mul", scores, net.const(0.001 * SIZE**-0.5))
    if keys < TOKENS:
        scores = net.op("Add", scores, net.const(np.where(np.arange(TOKENS) < keys, 0, -np.inf)))
    p = net.op("Softmax", scores, axis=-1)
    if quantised:
        scale, zero = net.const(GIVEN.scale), net.const(GIVEN.zero_point, np.int8)
        p = net.op("DequantizeLinear", net.op("QuantizeLinear", p, scale, zero), scale, zero)
    if factor != 1:
        p = net.op("Mul", p, net.const(factor))
    context = net.op("Transpose", net.op("MatMul", p, heads(v, 2, 1, 3)), perm=[0, 2, 1, 3])
    context = net.op("Reshape", context, net.ints(1, TOKENS, WIDTH))
    return net.save(folder / "net.onnx", net.linear(context, WIDTH, WIDTH))


def data(images: int, seed: int = 3) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {"x": (rng.normal(size=(images, TOKENS, WIDTH)) + 2).astype(np.float32)}


def attention(graph: ir.Graph) -> ir.Attention:
    (found,) = (op for op in graph if isinstance(op, ir.Attention))
    return found


@pytest.mark.parametrize(("keys", "factor"), [(TOKENS, 1.0), (100, 1.0), (TOKENS, 1.5)])
def test_an_attention_of_a_quantised_model_has_its_mass(tmp_path: Path, keys: int, factor: float) -> None:
    path = block(tmp_path, keys=keys, factor=factor)
    graph = load(path)
    given = attention(graph).given_probabilities
    assert given is not None and (given.zero_point, given.low, given.high) == (-128, -128, 127)
    assert given.scale == pytest.approx(GIVEN.scale)
    mass = attention(with_masses(graph, data(4))).mass
    steps = 2 if keys == TOKENS else 3  # 1/120 is 2.1 of them, 1/100 is 2.6
    assert mass == pytest.approx(steps * keys / 255, abs=0.01)


@pytest.mark.parametrize("images", [1, 16])
def test_the_machine_multiplies_with_it(tmp_path: Path, images: int) -> None:
    """Beside onnxruntime on the same file, on other inputs: half the error at most, and every tensor bit by bit."""
    path, tested = block(tmp_path), data(4, seed=5)
    (want,) = run_onnxruntime(path, tested).values()

    def error(file: Path) -> float:
        compiled = compile_model({"main": file}, CONFIGS["tiny"], lambda task, shapes: data(images), strict=True)
        inputs = from_arrays({"x": (TOKENS, WIDTH)}, tested)
        simulate(compiled.program, inputs, check=True, limit=1)
        (got,) = simulate(compiled.program, inputs).outputs.values()
        return float(np.linalg.norm(got.reshape(want.shape) - want) / np.linalg.norm(want))

    with_mass = error(path)
    (tmp_path / "plain").mkdir()
    assert with_mass < 0.5 * error(block(tmp_path / "plain", quantised=False))


def test_the_float_graph_and_its_ranges_have_it_too(tmp_path: Path) -> None:
    graph, inputs = load(block(tmp_path)), data(4)
    prepared = prepare({"main": graph}, {"main": inputs})
    kept = prepared.graphs["main"]
    mass, context = attention(kept).mass, attention(kept).output
    assert mass == attention(prepared.stages["main"].graph).mass != 1
    before, after = (interpret.run(g, inputs)[context] for g in (graph, kept))
    assert np.allclose(after, mass * before, rtol=1e-5, atol=1e-6)
    assert prepared.ranges["main"][context].peak == pytest.approx(float(np.abs(after).max()), rel=1e-3)


def test_other_models_stay_as_they_are(tmp_path: Path) -> None:
    graph = load(block(tmp_path, quantised=False))
    assert with_masses(graph, data(4)) is graph and attention(graph).given_probabilities is None


def test_rounding_is_that_of_the_quantiser() -> None:
    p = np.array([0.0, 0.4, 0.5, 1.5, 2.5, 254.6, 300.0]) / 255  # halves go to the even one
    assert (rounded(p, GIVEN) * 255).round(6).tolist() == [0, 0, 0, 2, 2, 255, 255]


def test_probabilities_that_all_round_to_nothing(tmp_path: Path) -> None:
    """Then the model's attention gives nothing, and so does the machine's."""
    net = load(block(tmp_path))
    coarse = ir.Given(scale=0.1, zero_point=0, low=0, high=255)
    op = attention(net)
    graph = net.replaced(replace(o, given_probabilities=coarse) if o is op else o for o in net)
    prepared = prepare({"main": graph}, {"main": data(4)})
    assert attention(prepared.graphs["main"]).mass == 0
    assert not interpret.run(prepared.graphs["main"], data(2))[op.output].any()
    prepared.quantised("main", CONFIGS["tiny"])
