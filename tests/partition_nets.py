"""Vision transformers with something in them that the machine cannot do, for tests of the partition."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx_net import Net

TOKENS, WIDTH, HEADS, HIDDEN, IMAGE, PATCH = 16, 32, 2, 64, 16, 4


def inputs(count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random images by the name of the input."""
    return {"x": np.random.default_rng(seed).random((count, 3, IMAGE, IMAGE), dtype=np.float32)}


class Vit(Net):
    """Blocks of a vision transformer, node by node."""

    def __init__(self) -> None:
        super().__init__(1, 3, IMAGE, IMAGE)

    def small(self, *shape: int) -> str:
        """Weights that keep values near one."""
        return self.const(self.rng.standard_normal(shape) / np.sqrt(shape[0]))

    def dense(self, x: str, inner: int, outer: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.small(inner, outer)), self.const(self.rng.normal(size=outer)))

    def embed(self) -> str:
        weight = self.const(self.rng.normal(size=(WIDTH, 3, PATCH, PATCH)) / 7)
        y = self.op("Conv", "x", weight, kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
        y = self.op("Transpose", self.op("Reshape", y, self.ints(1, WIDTH, TOKENS)), perm=[0, 2, 1])
        return self.op("Add", y, self.const(self.rng.normal(size=(1, TOKENS, WIDTH))))

    def norm(self, x: str) -> str:
        return self.op(
            "LayerNormalization", x, self.const(np.ones(WIDTH)), self.const(np.zeros(WIDTH)), epsilon=1e-6
        )

    def heads(self, x: str) -> str:
        y = self.op("Reshape", x, self.ints(1, TOKENS, HEADS, WIDTH // HEADS))
        return self.op("Transpose", y, perm=[0, 2, 1, 3])

    def attention(self, x: str, *, l2: bool = False, softmax: bool = True) -> str:
        q, k, v = (self.heads(self.dense(x, WIDTH, WIDTH)) for _ in range(3))
        if l2:
            q, k = (self.op("LpNormalization", t, axis=-1, p=2) for t in (q, k))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Mul", scores, self.const(0.25))
        weights = self.op("Softmax", scores, axis=-1) if softmax else self.op("Sigmoid", scores)
        y = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.dense(self.op("Reshape", y, self.ints(1, TOKENS, WIDTH)), WIDTH, WIDTH)

    def mlp(self, x: str, activation: str = "Gelu") -> str:
        y = self.dense(x, WIDTH, HIDDEN)
        if activation == "Gelu":
            half, erf = self.op("Mul", y, self.const(0.5)), self.op("Erf", self.op("Mul", y, self.const(0.5**0.5)))
            y = self.op("Mul", half, self.op("Add", erf, self.const(1)))
        else:
            y = self.op(activation, y)
        return self.dense(y, HIDDEN, WIDTH)

    def block(self, x: str, **attention: bool) -> str:
        x = self.op("Add", x, self.attention(self.norm(x), **attention))
        return self.op("Add", x, self.mlp(self.norm(x)))

    def head(self, x: str) -> str:
        return self.dense(self.op("ReduceMean", self.norm(x), self.ints(1), keepdims=0), WIDTH, 10)


def middle(op: str, path: Path, **attributes: object) -> Path:
    """Two blocks with an operator between them."""
    net = Vit()
    x = net.op(op, net.block(net.embed()), **attributes)
    return net.save(path, net.head(net.block(x)))


def token_softmax(path: Path) -> Path:
    """Two blocks with a softmax over the channels of each token between them, which is added."""
    net = Vit()
    x = net.block(net.embed())
    x = net.op("Add", x, net.op("Softmax", x, axis=-1))
    return net.save(path, net.head(net.block(x)))


def cosine_attention(path: Path) -> Path:
    """q and k of the first block's attention normalised."""
    net = Vit()
    return net.save(path, net.head(net.block(net.block(net.embed(), l2=True))))


def shared_projection(path: Path) -> Path:
    """As cosine_attention, with q, k and v from one matrix, and each of the three shaped for its heads by itself."""
    net = Vit()
    x = net.embed()
    y = net.op("Reshape", net.dense(net.norm(x), WIDTH, 3 * WIDTH), net.ints(1, TOKENS, 3, HEADS, WIDTH // HEADS))
    y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", y, net.const(i, np.int64), axis=0) for i in range(3))
    q, k = (net.op("LpNormalization", t, axis=-1, p=2) for t in (q, k))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    x = net.op("Add", x, net.dense(net.op("Reshape", y, net.ints(1, TOKENS, WIDTH)), WIDTH, WIDTH))
    return net.save(path, net.head(net.block(x)))


def windows(path: Path) -> Path:
    """Attention within four windows of 2×2 tokens each, as Swin's."""
    net = Vit()
    x = net.embed()
    y = net.op("Reshape", net.norm(x), net.ints(1, 2, 2, 2, 2, WIDTH))
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), net.ints(4, 4, WIDTH))
    y = net.op("Reshape", net.dense(y, WIDTH, 3 * WIDTH), net.ints(4, 4, 3, HEADS, WIDTH // HEADS))
    y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", y, net.const(i, np.int64), axis=0) for i in range(3))
    scores = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), net.const(0.25))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = net.dense(net.op("Reshape", y, net.ints(4, 4, WIDTH)), WIDTH, 4 * WIDTH)  # enough work to be worth the way
    y = net.dense(y, 4 * WIDTH, WIDTH)
    y = net.op("Transpose", net.op("Reshape", y, net.ints(1, 2, 2, 2, 2, WIDTH)), perm=[0, 1, 3, 2, 4, 5])
    return net.save(path, net.head(net.block(net.op("Add", x, net.op("Reshape", y, net.ints(1, TOKENS, WIDTH))))))


def rotary(path: Path) -> Path:
    """Queries and keys turned by angles that depend on the token's place."""
    net = Vit()
    x = net.embed()
    normed = net.norm(x)
    q, k, v = (net.heads(net.dense(normed, WIDTH, WIDTH)) for _ in range(3))
    size = WIDTH // HEADS

    def turned(t: str) -> str:
        halves = net.split(t, 3, 2)
        other = net.op("Concat", net.op("Neg", halves[1]), halves[0], axis=3)
        return net.op("Add", net.op("Mul", t, net.small(TOKENS, size)), net.op("Mul", other, net.small(TOKENS, size)))

    scores = net.op("MatMul", turned(q), net.op("Transpose", turned(k), perm=[0, 1, 3, 2]))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    x = net.op("Add", x, net.dense(net.op("Reshape", y, net.ints(1, TOKENS, WIDTH)), WIDTH, WIDTH))
    return net.save(path, net.head(net.block(x)))


def head_norms(path: Path) -> Path:
    """Queries and keys normalised head by head."""
    net = Vit()
    x = net.embed()
    normed, size = net.norm(x), WIDTH // HEADS
    q, k, v = (net.heads(net.dense(normed, WIDTH, WIDTH)) for _ in range(3))
    one, zero = net.const(np.ones(size)), net.const(np.zeros(size))
    q, k = (net.op("LayerNormalization", t, one, zero, axis=-1) for t in (q, k))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    x = net.op("Add", x, net.dense(net.op("Reshape", y, net.ints(1, TOKENS, WIDTH)), WIDTH, WIDTH))
    return net.save(path, net.head(net.block(x)))


def stem(path: Path) -> Path:
    """A stem of convolutions that overlap, and a class token and positions behind it."""
    net = Vit()
    weight = net.const(net.rng.normal(size=(WIDTH, 3, 4, 4)) / 7)
    y = net.op("Conv", "x", weight, kernel_shape=[4, 4], strides=[4, 4], pads=[1, 1, 1, 1])
    y = net.op("Transpose", net.op("Reshape", y, net.ints(1, WIDTH, TOKENS)), perm=[0, 2, 1])
    y = net.op("Concat", net.const(net.rng.normal(size=(1, 1, WIDTH))), y, axis=1)
    x = net.op("Add", y, net.const(net.rng.normal(size=(1, TOKENS + 1, WIDTH))))
    q, k, v = (net.dense(t, WIDTH, WIDTH) for t in [net.norm(x)] * 3)
    shape = net.ints(1, TOKENS + 1, HEADS, -1)
    q, k, v = (net.op("Transpose", net.op("Reshape", t, shape), perm=[0, 2, 1, 3]) for t in (q, k, v))
    scores = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), net.const(0.25))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = net.dense(net.op("Reshape", y, net.ints(1, TOKENS + 1, WIDTH)), WIDTH, WIDTH)
    return net.save(path, net.head(net.op("Add", x, y)))


def odd_activation(path: Path) -> Path:
    """An MLP whose activation is Mish."""
    net = Vit()
    x = net.block(net.embed())
    x = net.op("Add", x, net.mlp(net.norm(x), "Mish"))
    return net.save(path, net.head(net.block(x)))


def before(path: Path) -> Path:
    """A convolution with padding before the patch embedding."""
    net = Vit()
    weight = net.const(net.rng.normal(size=(3, 3, 3, 3)) / 5)
    net_x = net.op("Conv", "x", weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    patches = net.const(net.rng.normal(size=(WIDTH, 3, PATCH, PATCH)) / 7)
    y = net.op("Conv", net_x, patches, kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
    y = net.op("Transpose", net.op("Reshape", y, net.ints(1, WIDTH, TOKENS)), perm=[0, 2, 1])
    return net.save(path, net.head(net.block(y)))


def after(path: Path) -> Path:
    """A pixel decoder and the index of the largest value."""
    net = Vit()
    x = net.norm(net.block(net.embed()))
    y = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1]), net.ints(1, WIDTH, 4, 4))
    weight = net.const(net.rng.normal(size=(WIDTH, 8, 4, 4)) / 10)
    y = net.op("ConvTranspose", y, weight, kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.op("Sigmoid", net.op("Resize", y, "", "", net.ints(1, 8, 16, 16), mode="linear"))
    return net.save(path, y, net.op("ArgMax", y, axis=1, keepdims=0))


def shapes_from_shapes(path: Path) -> Path:
    """Shapes that are computed from the shape of the input, on both sides of what the host does."""
    net = Vit()
    x = net.block(net.embed())
    batch = net.op("Gather", net.op("Shape", "x"), net.ints(0), axis=0)
    shape = net.op("Concat", batch, net.ints(TOKENS * 2), net.ints(WIDTH // 2), axis=0)
    y = net.op("Sin", net.op("Reshape", x, shape))
    back = net.op("Concat", net.op("Gather", net.op("Shape", x), net.ints(0, 1), axis=0), net.ints(WIDTH), axis=0)
    return net.save(path, net.head(net.block(net.op("Reshape", y, back))))


def nothing(path: Path) -> Path:
    """Nodes of which the machine can do none."""
    net = Vit()
    return net.save(path, net.op("Sigmoid", net.op("MaxPool", "x", kernel_shape=[2, 2])))


def wide(path: Path, width: int = 512) -> Path:
    """Two blocks, and between them two layers with many channels between them, which pass through sines."""
    net = Vit()
    x = net.op("Sin", net.block(net.embed()))
    y = net.op("Sin", net.dense(x, WIDTH, width))
    x = net.op("Add", x, net.op("Sin", net.dense(y, width, WIDTH)))
    return net.save(path, net.head(net.block(x)))


def large(path: Path, width: int = 512) -> Path:
    """As a pyramid begins: rows with many channels, until a layer reduces them in the middle of a part."""
    net = Vit()
    x = net.dense(net.block(net.embed()), WIDTH, width)
    x = net.op("Add", x, net.dense(net.op("Relu", net.dense(x, width, WIDTH)), WIDTH, width))
    x = net.block(net.dense(x, width, WIDTH))
    return net.save(path, net.head(net.block(net.op("Sin", x))))
