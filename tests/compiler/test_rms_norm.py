"""RMS normalisation as layer normalisation of a turned stream. `load` itself compares each model with onnxruntime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import partition_nets as nets
import pytest
from onnx_net import ops

import moevit
from moevit.compiler.frontend import load
from moevit.compiler.frontend.turn import rotation
from moevit.compiler.partition import plan
from moevit.errors import UnsupportedOpError

EPS = 1e-6


class RmsVit(nets.Vit):
    """A vision transformer with RMS normalisation, spelled in one of several ways."""

    def __init__(self, form: str = "power") -> None:
        super().__init__()
        self.opset = 23 if form == "node" else 18
        self.form = form

    def norm(self, x: str) -> str:
        gamma = self.const(1 + self.rng.normal(size=nets.WIDTH) / 4)
        if self.form == "node":
            return self.op("RMSNormalization", x, gamma, epsilon=EPS, axis=-1)
        square = self.op("Mul", x, x) if self.form == "product" else self.op("Pow", x, self.const(2))
        mean = self.op("Add", self.op("ReduceMean", square, self.ints(-1)), self.const(EPS))
        root = self.op("Sqrt", mean)
        if self.form == "quotient":
            return self.op("Mul", self.op("Div", x, root), gamma)
        return self.op("Mul", gamma, self.op("Mul", x, self.op("Reciprocal", root)))


def pre(n: RmsVit) -> str:
    return n.block(n.block(n.embed()))


def sandwich(n: RmsVit) -> str:
    """What is added is normalised too, so that a norm's result becomes a part of the stream."""
    x = n.embed()
    x = n.op("Add", x, n.norm(n.attention(n.norm(x))))
    return n.op("Add", x, n.norm(n.mlp(n.norm(x))))


def post(n: RmsVit) -> str:
    x = n.embed()
    x = n.norm(n.op("Add", x, n.attention(x)))
    return n.norm(n.op("Add", x, n.mlp(x)))


def without_a_layer(n: RmsVit) -> str:
    """An activation, and an attention without a projection after it, are added to the stream."""
    x = n.embed()
    normed = n.norm(x)
    q, k, v = (n.heads(n.dense(normed, nets.WIDTH, nets.WIDTH)) for _ in range(3))
    scores = n.op("Mul", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2])), n.const(0.25))
    y = n.op("Transpose", n.op("MatMul", n.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = n.op("Add", x, n.op("Reshape", y, n.ints(1, nets.TOKENS, nets.WIDTH)))
    return n.op("Add", y, n.op("Relu", x))


def beside_a_layer_norm(n: RmsVit) -> str:
    """A layer normalisation reads the same stream."""
    x = n.block(n.embed())
    return n.op("Add", x, n.mlp(nets.Vit.norm(n, x)))


BODIES: list[Callable[[RmsVit], str]] = [pre, sandwich, post, without_a_layer, beside_a_layer_norm]


@pytest.mark.parametrize("form", ["node", "power", "product", "quotient"])
def test_every_spelling_is_the_machine_s(form: str, tmp_path: Path) -> None:
    net = RmsVit(form)
    graph = load(net.save(tmp_path / "m.onnx", net.head(pre(net))))
    assert "RmsNorm" not in ops(graph) and ops(graph).count("LayerNorm") == 5
    assert "Identity" not in ops(graph)


@pytest.mark.parametrize("body", BODIES)
def test_it_is_the_model_in_integers_too(body: Callable[[RmsVit], str], tmp_path: Path) -> None:
    net = RmsVit()
    path = net.save(tmp_path / "m.onnx", net.head(body(net)))
    feeds = nets.inputs(6)
    program = moevit.compile(path, "tiny", feeds, strict=True)
    (got,) = program.run(feeds, check=True).outputs.values()
    session = onnxruntime.InferenceSession(path)
    want = np.concatenate([session.run(None, {"x": x[None]})[0] for x in feeds["x"]])
    assert np.sum(got * want) / np.linalg.norm(got) / np.linalg.norm(want) > 0.999


def test_an_output_behind_the_norm_is_turned_back(tmp_path: Path) -> None:
    net = RmsVit()
    graph = load(net.save(tmp_path / "m.onnx", net.norm(pre(net))))
    assert graph.tensors[graph.outputs[0].tensor] == (nets.TOKENS, nets.WIDTH)


def test_a_stream_that_is_an_output_stays_as_it_is(tmp_path: Path) -> None:
    """No matrix stands between it and the host; only the norms that read it are the host's."""
    net = RmsVit("node")
    x = pre(net)
    path = net.save(tmp_path / "m.onnx", x, net.head(x))
    with pytest.raises(UnsupportedOpError, match="no weights can make its mean zero") as caught:
        load(path)
    assert {node.op for node in caught.value.nodes} == {"RmsNorm"}
    made = plan("main", path)
    assert "RMSNormalization" in {n.op for part, _ in made.hosts for n in part.nodes}


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 192])
def test_the_rotation(channels: int) -> None:
    r = rotation(channels).astype(np.float64)
    assert r.shape == (channels + 1, channels)
    np.testing.assert_allclose(r.T @ r, np.eye(channels), atol=1e-6)
    np.testing.assert_allclose(r.sum(axis=0), 0, atol=1e-6)
