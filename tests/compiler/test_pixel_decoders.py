"""Decoders that make a patch of pixels of each token: transposed convolutions and pixel shuffles."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graph_answers import cosine
from onnx_net import Net, ops

from moevit.errors import UnsupportedOpError

DOWN, ACROSS, WIDTH = 3, 4, 8


def image(n: Net, x: str) -> str:
    """(1, tokens, width) to (1, width, down, across)."""
    return n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 1]), n.ints(1, WIDTH, DOWN, ACROSS))


def batch_norm(n: Net, x: str, channels: int) -> str:
    variance = n.const(np.linspace(0.5, 2, channels))
    return n.op("BatchNormalization", x, n.random(channels), n.random(channels), n.random(channels), variance)


def transposed(n: Net, x: str, out: int = 3, kernel: tuple[int, ...] = (2, 2), **changes: object) -> str:
    how = {"kernel_shape": kernel, "strides": kernel} | changes
    return n.op("ConvTranspose", x, n.random(WIDTH, out, *kernel), n.random(out), **how)


def shuffled(n: Net) -> str:
    y = n.op("Conv", image(n, "x"), n.random(12, WIDTH, 1, 1), n.random(12), kernel_shape=[1, 1])
    return n.op("DepthToSpace", y, blocksize=2, mode="CRD")


DECODERS: dict[str, tuple[Callable[[Net], str], list[str]]] = {
    "transposed": (lambda n: transposed(n, image(n, "x")), ["Linear"]),
    "oblong": (lambda n: transposed(n, image(n, "x"), kernel=(2, 3)), ["Linear"]),
    "one axis": (lambda n: transposed(n, n.op("Transpose", "x", perm=[0, 2, 1]), kernel=(4,)), ["Linear"]),
    "normed": (
        lambda n: n.op("Relu", batch_norm(n, transposed(n, image(n, "x")), 3)),
        ["Linear", "Activation"],
    ),
    "shuffled": (shuffled, ["Linear"]),
    "after a layer": (
        lambda n: transposed(n, n.op("Relu", image(n, n.linear("x", WIDTH, WIDTH)))),
        ["Linear", "Activation", "Linear"],
    ),
}


@pytest.mark.parametrize("form", DECODERS)
def test_a_patch_of_pixels_of_each_token(tmp_path: Path, form: str) -> None:
    n = Net(1, DOWN * ACROSS, WIDTH)
    build, kinds = DECODERS[form]
    graph = n.load(tmp_path, build(n))
    assert ops(graph) == kinds
    assert cosine(graph)[0] > 0.999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (1, 1)}, "its kernel is 2x2 but its stride 1x1"),
        ({"kernel": (4, 4), "strides": (2, 2), "pads": [1, 1, 1, 1]}, "its kernel is 4x4 but its stride 2x2"),
        ({"pads": [1, 1, 1, 1]}, "padded"),
        ({"output_padding": [1, 1]}, "padded"),
        ({"dilations": [2, 2]}, "dilated"),
    ],
)
def test_patches_that_overlap_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    n = Net(1, DOWN * ACROSS, WIDTH)
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        n.load(tmp_path, transposed(n, image(n, "x"), **changes))  # type: ignore[arg-type]
    assert [node.op for node in caught.value.nodes] == ["ConvTranspose"]
