"""Large outputs leave through a window of two chunks of rows while the next rows are computed."""

import numpy as np
import pytest

from moevit.compiler import ir
from moevit.compiler.driver import Compiled, compile_graphs
from moevit.compiler.emit import outputs
from moevit.compiler.emit.outputs import in_blocks
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.errors import AllocationError
from moevit.isa import DmaOut, Linear, Stream
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate

TINY = CONFIGS["tiny"]


def graph(channels: int, *, side: int = 24, reader: bool = False) -> ir.Graph:
    """An image of side² pixels in patches of 4×4, one linear decoder to ``channels`` values a patch."""
    rng = np.random.default_rng(3)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    tokens = (side // 4) ** 2
    embed = ir.PatchEmbed(
        name="embed", output="x", x="image", weight=array(24, 16), bias=array(24), patch=(4, 4)
    )
    head = ir.Linear(name="head", output="y", x="x", weight=array(channels, 24), bias=array(channels))
    ops: tuple[ir.Op, ...] = (embed, head)
    outputs = [ir.Output(name="out", tensor="y", model_shape=(tokens, channels))]
    if reader:
        ops = (*ops, ir.Linear(name="more", output="z", x="y", weight=array(8, channels), bias=array(8)))
        outputs.append(ir.Output(name="more", tensor="z", model_shape=(tokens, 8)))
    image = ir.Input(name="image", shape=(1, side, side), model_shape=(1, side, side))
    return ir.Graph(name="decoder", inputs=(image,), outputs=tuple(outputs), ops=ops)


def build(g: ir.Graph, config: AcceleratorConfig = TINY) -> Compiled:
    images = np.random.default_rng(4).random((4, *g.inputs[0].shape)).astype(np.float32)
    return compile_graphs({"main": g}, config, {"main": {"image": images}})


def check(program: Compiled, g: ir.Graph, backend: str = "isa") -> None:
    images = np.random.default_rng(5).random((3, *g.inputs[0].shape)).astype(np.float32)
    result = simulate(
        program.program, from_arrays({"image": g.inputs[0].model_shape}, {"image": images}), backend=backend, check=True
    )
    assert result.bit_exact


def decoder(program: Compiled) -> list[Linear]:
    """The decoder's LINEARs: more columns than the embedding's."""
    instructions = program.program.instructions(program.program.task())
    return [i for i in instructions if isinstance(i, Linear) and i.tiles > 3]


def copies(program: Compiled) -> int:
    return sum(isinstance(i, DmaOut) for i in program.program.instructions(program.program.task()))


def test_a_large_output_is_copied_in_chunks() -> None:
    g = graph(2048)  # 36 tokens of 4 KB
    program = build(g)
    assert copies(program) > 4
    window = program.program.task().tensor("y").window
    assert 0 < window < 36
    check(program, g)


def test_an_output_larger_than_the_memory() -> None:
    """147 KB of output go through a memory of 64 KB."""
    config = AcceleratorConfig.from_dict(TINY.to_dict() | {"activation_words": 8192})
    g = graph(2048)
    program = build(g, config)
    assert program.program.task().tensor("y").rows * 4096 > config.activation_words * config.columns
    check(program, g)


def streamed(program: Compiled) -> int:
    """Weight bytes that the decoder's STREAMs bring."""
    streams = [i for i in program.program.instructions(program.program.task()) if isinstance(i, Stream)]
    return sum(i.weight_words for i in streams[1:]) * TINY.operand_word_bytes


def test_weights_that_do_not_fit_half_of_the_ring_come_block_by_block() -> None:
    """Each once, as the rows of a block of columns lie behind each other in the output buffer."""
    config = AcceleratorConfig.from_dict(TINY.to_dict() | {"operand_words": 1024})
    g = graph(2048)
    program = build(g, config)
    assert streamed(program) == 2048 * 24
    assert not all(i.release for i in decoder(program))
    tensor = program.program.task().tensor("y")
    assert tensor.rows == 36 * 2048 // tensor.channels > 36
    check(program, g)


def test_columns_that_are_not_whole_tiles_do_not_go_block_by_block() -> None:
    config = AcceleratorConfig.from_dict(TINY.to_dict() | {"operand_words": 1024})
    g = graph(2041)
    program = build(g, config)
    assert all(i.release for i in decoder(program))
    assert len(decoder(program)) > copies(program)
    check(program, g)


@pytest.mark.parametrize(("channels", "blocks"), [(8, 2), (6, 3)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_an_order_in_blocks(channels: int, blocks: int, shuffled: bool) -> None:
    rows, rng = 5, np.random.default_rng(0)
    values = rng.random((rows, channels))
    order = rng.permutation(rows * channels) if shuffled else None
    cut = np.concatenate(np.split(values, blocks, axis=1))
    got = cut.reshape(-1)[in_blocks(order, rows, channels, blocks)]
    np.testing.assert_array_equal(got, values.reshape(-1) if order is None else values.reshape(-1)[order])


def test_the_same_weights_serve_all_chunks() -> None:
    program = build(graph(2048))
    *chunks, last = decoder(program)
    assert not any(i.release for i in chunks)
    assert last.release


@pytest.mark.parametrize("channels", [3, 64])
def test_a_small_output_stays_whole(channels: int) -> None:
    program = build(graph(channels))
    assert copies(program) == 1
    assert program.program.task().tensor("y").window == 0


def test_an_output_that_is_read_stays_whole() -> None:
    g = graph(1000, reader=True)
    program = build(g)
    assert program.program.task().tensor("y").window == 0
    check(program, g)


def test_no_room_for_a_chunk_is_said() -> None:
    config = AcceleratorConfig.from_dict(TINY.to_dict() | {"activation_words": 256})
    with pytest.raises(AllocationError, match="activation memory"):
        build(graph(2048), config)


@pytest.mark.parametrize("chunk_bytes", [1 << 9, 1 << 12])
def test_chunks_on_rtl(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(outputs, "CHUNK_BYTES", chunk_bytes)
    g = graph(200)
    program = build(g)
    assert copies(program) > 1
    check(program, g, "rtl")
