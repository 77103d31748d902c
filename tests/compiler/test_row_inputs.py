"""Inputs that are rows of tokens: 8-bit for a linear layer, int16 for a norm or a residual, alone or several."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from moevit.compiler import ir
from moevit.compiler.driver import compile_graphs
from moevit.compiler.interpret import outputs, run
from moevit.config import CONFIGS
from moevit.isa import DmaIn
from moevit.sim.inputs import from_arrays, pack, quantise
from moevit.sim.simulate import simulate

TOKENS, WIDTH = 13, 20


def linear(name: str, x: str, d_out: int = WIDTH, d_in: int = WIDTH) -> ir.Linear:
    rng = np.random.default_rng(list(name.encode()))
    weight, bias = (rng.normal(size=s).astype(np.float32) * 0.3 for s in ((d_out, d_in), (d_out,)))
    return ir.Linear(name=name, x=x, output=f"{name}.out", weight=weight, bias=bias)


def norm(name: str, x: str) -> ir.LayerNorm:
    return ir.LayerNorm(
        name=name, x=x, output=f"{name}.out", gamma=np.full(WIDTH, 1.5, np.float32), eps=1e-6,
        beta=np.full(WIDTH, 0.1, np.float32),
    )  # fmt: skip


def graph(form: str) -> ir.Graph:
    """``linear``: 8-bit rows. ``block``: a normed residual. ``two``: one is added to a layer of the other. ``tail``:
    some of the rows. ``attention``: q, k and v of rows."""
    names, last = ["a"], "head.out"
    if form == "linear":
        ops: list[ir.Op] = [linear("head", "a", 5)]
    elif form == "block":
        ops = [norm("norm", "a"), linear("up", "norm.out", 32)]
        ops += [ir.Activation(name="act", x="up.out", output="act.out", kind="gelu")]
        ops += [linear("down", "act.out", d_in=32), ir.Add(name="add", a="a", b="down.out", output="add.out")]
        ops += [linear("head", "add.out", 5)]
    elif form == "two":
        names = ["a", "b"]
        ops = [linear("inner", "a"), ir.Add(name="add", a="b", b="inner.out", output="add.out")]
        ops += [linear("head", "add.out", 5)]
    elif form == "tail":
        ops = [ir.Rows(name="rows", x="a", output="rows.out", start=3, count=4), linear("head", "rows.out", 5)]
    else:
        ops = [linear(name, "a") for name in "qkv"]
        ops += [ir.Attention(name="att", q="q.out", k="k.out", v="v.out", output="att.out", heads=2, head_dim=10,
                             scale=10**-0.5)]  # fmt: skip
        ops += [linear("proj", "att.out"), ir.Add(name="add", a="proj.out", b="a", output="add.out")]
        last = "add.out"
    shape = (TOKENS, WIDTH)
    inputs = tuple(ir.Input(name=n, shape=shape, model_shape=shape) for n in names)
    rows = 4 if form == "tail" else TOKENS
    out = ir.Output(name="y", tensor=last, model_shape=(rows, WIDTH if last == "add.out" else 5))
    return ir.Graph(name=form, ops=tuple(ops), inputs=inputs, outputs=(out,))


def values(g: ir.Graph, count: int, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {i.name: (rng.normal(size=(count, *i.shape)) * 2 + 0.5).astype(np.float32) for i in g.inputs}


FORMS = {"linear": "uint8", "block": "int16", "two": "uint8", "tail": "uint8", "attention": "int16"}


@pytest.mark.parametrize("backend", ["isa", "rtl"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_in(form: str, backend: str) -> None:
    g = graph(form)
    program = compile_graphs({"main": g}, CONFIGS["tiny"], {"main": values(g, 32, 1)}).program
    task = program.task()
    assert task.inputs[0].dtype == FORMS[form] and (task.inputs[0].rows, task.inputs[0].channels) == (TOKENS, WIDTH)
    given = values(g, 2, 2)
    inputs = from_arrays({x.name: x.shape for x in task.inputs}, given)
    result = simulate(program, inputs, backend=backend, check=True)
    want = outputs(g, run(g, given))["y"]
    error = np.sqrt(np.mean((result.outputs["y"] - want) ** 2) / np.mean(want**2))
    assert result.bit_exact and result.checked_values > TOKENS * WIDTH and error < 0.05


def test_the_second_of_two_is_the_residual() -> None:
    g = graph("two")
    program = compile_graphs({"main": g}, CONFIGS["tiny"], {"main": values(g, 8, 1)}).program
    assert [x.dtype for x in program.task().inputs] == ["uint8", "int16"]


def test_rows_lie_in_the_buffer_as_in_memory() -> None:
    """13 rows of 20 channels on 8 columns: 24 bytes of 8-bit rows; low and high bytes of int16 by column tile."""
    g = graph("two")
    program = compile_graphs({"main": g}, CONFIGS["tiny"], {"main": values(g, 8, 1)}).program
    task = program.task()
    quantised = quantise(task, values(g, 3, 4))
    buffers = pack(program.config, task, quantised)
    a, b = task.inputs
    rows = buffers[:, a.offset : a.offset + TOKENS * 24].reshape(3, TOKENS, 24)
    assert np.array_equal(rows[..., :WIDTH], quantised["a"]) and not rows[..., WIDTH:].any()
    planes = buffers[:, b.offset : b.offset + TOKENS * 48].reshape(3, TOKENS, 3, 2, 8).astype(np.int64)
    whole = (planes[..., 0, :] + 256 * planes[..., 1, :]).reshape(3, TOKENS, 24)[..., :WIDTH]
    assert np.array_equal(whole.astype(np.uint16).view(np.int16), quantised["b"])


def test_rows_beyond_one_copy_come_in_several() -> None:
    """2^20 bytes of a DMA_IN's segment are the limit."""
    shape = (6000, 200)
    g = ir.Graph(
        name="long", inputs=(ir.Input(name="a", shape=shape, model_shape=shape),), ops=(linear("head", "a", 3, 200),),
        outputs=(ir.Output(name="y", tensor="head.out", model_shape=(6000, 3)),),
    )  # fmt: skip
    rng = np.random.default_rng(3)
    data = {"a": rng.normal(size=(2, *shape)).astype(np.float32)}
    large = dataclasses.replace(CONFIGS["zcu104"], activation_words=1 << 16)
    program = compile_graphs({"main": g}, large, {"main": data}).program
    copies = [i for i in program.instructions(program.task()) if isinstance(i, DmaIn)]
    assert len(copies) == 2 and sum(c.segment_bytes for c in copies) == 6000 * 224
    assert simulate(program, from_arrays({"a": shape}, data), check=True, limit=1).bit_exact
