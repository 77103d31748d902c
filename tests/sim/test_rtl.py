"""The C++ harness and its DRAM model, on a stub with the machine's ports that does as each test wants."""

from pathlib import Path

import numpy as np
import pytest

from moevit.config import get_config
from moevit.errors import InputError, SimulationError, ToolError
from moevit.isa import Begin, DmaOut, End
from moevit.registers import COUNTER_BASE, ErrorCode, Status
from moevit.sim import pieces, verilate
from moevit.sim.dram import DramModel
from moevit.sim.rtl import OUTPUT_FILL, Watch, require_ok, run_raw

CONFIG = get_config("tiny")
BEAT = CONFIG.axi_bytes
COPY, HANG, WRITE_BEHIND, READ_BEHIND, READ_MUCH, DROP_VALID = range(6)


def stub_text() -> str:
    text = (Path(__file__).parent / "stub.v").read_text()
    return text.replace("DIGEST = 0", f"DIGEST = 64'h{CONFIG.digest:x}")


@pytest.fixture(scope="session")
def stub() -> Path:
    return verilate.build_verilog(stub_text(), CONFIG)


def run(stub, mode, *, inputs=None, image_bytes=4096, dram=None, **options):
    """Run the stub in a mode, which it takes from the entry."""
    if inputs is None:
        inputs = np.arange(2 * 7 * BEAT, dtype=np.uint8).reshape(2, -1)
    dram = dram or DramModel(bytes_per_cycle=32)
    return run_raw(
        CONFIG, bytes(image_bytes), 64 * mode, 0, inputs, inputs.shape[1], dram=dram, executable=stub, **options
    )


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("soft_reset", [False, True])
def test_copies(stub, seed, soft_reset):
    rng = np.random.default_rng(7)
    inputs = rng.integers(0, 256, (5, 40 * BEAT), np.uint8)
    watches = [
        Watch(39, "activation", 0, 80), Watch(2, "activation", 0, 8), Watch(2, "operand", 4095, 4096),
        Watch(1, "queue", 0, 2), Watch(39, "queue", 1, 9),
    ]  # fmt: skip
    result = run(
        stub, COPY, inputs=inputs, dram=DramModel(bytes_per_cycle=32, seed=seed), soft_reset=soft_reset,
        watches=watches, memories=True, workers=2,
    )  # fmt: skip
    assert all(image.ok for image in result.images)
    assert np.array_equal(result.outputs, inputs)
    # The snapshots come in the order of the watches and hold what was written by then.
    whole, early, operand, queues, cleared = result.snapshots
    assert np.array_equal(whole, inputs)
    assert np.array_equal(early[:, : 3 * BEAT], inputs[:, : 3 * BEAT])
    assert not early[:, 3 * BEAT :].any()
    # The masks select bytes: 0 and 31 of the operand word, 0 and 7 of activation pair 1000.
    second = ~inputs[:, BEAT : 2 * BEAT]
    assert np.array_equal(operand[:, [0, 31]], second[:, [0, 15]])
    assert not operand[:, 1:31].any()
    # A queue entry is a token's score with an expert; clear forgets those of earlier cycles.
    beats = inputs.reshape(5, 40, BEAT)
    scores = pieces.queue_scores(queues)
    assert np.array_equal(scores[:, [0, 1], [63, 62]], beats[:, :2, :2].copy().view("<u2")[..., 0])
    assert np.count_nonzero(scores) == np.count_nonzero(scores[:, [0, 1], [63, 62]])
    scores = pieces.queue_scores(cleared)
    assert not scores[:, 0].any()
    assert np.array_equal(scores[:, range(1, 8), range(61, 54, -1)], beats[:, 2:9, :2].copy().view("<u2")[..., 0])
    kept = result.activation[:, 2000 * BEAT : 2001 * BEAT]
    assert np.array_equal(kept[:, [0, 15]], ~beats[:, 3, [0, 15]])
    assert not kept[:, 1:15].any()
    pair = result.activation[:, 1000 * BEAT : 1001 * BEAT]
    assert np.array_equal(pair[:, [0, 7]], ~inputs[:, [0, 7]])
    assert not pair[:, 8:].any()
    assert np.array_equal(result.operand[:, 4095 * 32 :], operand)
    for image in result.images:
        assert len(image.retire_cycles) == image.retired == 40
        assert list(image.retire_cycles) == sorted(set(image.retire_cycles))
        assert image.cycles > image.retire_cycles[-1]
        assert image.dram_bytes == {"weights": 0, "instructions": 0, "activations": 2 * inputs.shape[1]}
        # The stub's counters read as their own offsets.
        flat = [n for causes in image.counters.values() for n in causes.values()]
        assert flat == [COUNTER_BASE + 4 * i for i in range(len(flat))]


def test_is_reproducible(stub):
    runs = [run(stub, COPY, dram=DramModel(bytes_per_cycle=32, seed=5)) for _ in range(2)]
    assert runs[0].images == runs[1].images
    assert runs[0].images != run(stub, COPY, dram=DramModel(bytes_per_cycle=32, seed=6)).images


def test_latency(stub):
    one = np.zeros((1, BEAT), np.uint8)
    cycles = {
        n: run(stub, COPY, inputs=one, dram=DramModel(bytes_per_cycle=32, latency_cycles=n)).images[0].cycles
        for n in (10, 50)
    }
    assert cycles[50] - cycles[10] == 2 * 40  # one read and one write


@pytest.mark.parametrize("bytes_per_cycle", [4, 10.5, 16, 24, 32])
def test_bandwidth(stub, bytes_per_cycle):
    size = 1 << 16
    dram = DramModel(bytes_per_cycle=bytes_per_cycle)
    image = run(stub, READ_MUCH, image_bytes=size, dram=dram).images[0]
    assert image.dram_bytes == {"weights": 2 * size, "instructions": 0, "activations": 0}
    assert image.cycles == pytest.approx(2 * size / bytes_per_cycle, rel=0.03, abs=100)


def test_counts_what_is_read_of_regions(stub):
    """Each byte of the image is read once on each of two ports."""
    result = run(stub, READ_MUCH, image_bytes=8192, regions=[(0, 64), (64, 1024), (4096, 8192)])
    for image in result.images:
        assert image.region_bytes == (128, 1920, 8192)


def test_hang_is_reported(stub):
    result = run(stub, HANG, watchdog_cycles=5000)
    (image,) = result.images  # the second input was not tried
    assert image.hung
    assert not image.ok
    assert 5000 < image.cycles < 5500
    assert (result.outputs == OUTPUT_FILL).all()
    program = [Begin(digest=0, ring_words=1, count=3), DmaOut(src=3, words=1, offset=0), End()]
    with pytest.raises(SimulationError, match=r"0 of 1 instructions .* instruction 1 \(DMA_OUT src=3 words=1"):
        require_ok(image, program, where="rtl")


def test_limit_of_cycles(stub):
    assert run(stub, COPY, max_cycles=50).images[0].hung


def test_write_outside_the_output_buffer(stub):
    image = run(stub, WRITE_BEHIND).images[0]
    assert "outside the output buffer" in image.violations[0]
    with pytest.raises(SimulationError, match="outside the output buffer"):
        require_ok(image, [], where="rtl")


def test_read_outside_the_regions_is_an_error(stub):
    result = run(stub, READ_BEHIND)
    assert len(result.images) == 2  # an error does not end the run: the machine was reset
    for image in result.images:
        assert image.status == Status.ERROR
        assert image.error == ErrorCode.BUS_DMA_READ
        with pytest.raises(SimulationError, match="BUS_DMA_READ at instruction 0"):
            require_ok(image, [], where="rtl")


def test_protocol_is_checked(stub):
    dram = DramModel(bytes_per_cycle=32, seed=1)
    inputs = np.zeros((50, BEAT), np.uint8)
    images = run(stub, DROP_VALID, inputs=inputs, dram=dram, watchdog_cycles=1000).images
    assert any("ARVALID fell" in violation for image in images for violation in image.violations)


def test_waveform(tmp_path):
    executable = verilate.build_verilog(stub_text(), CONFIG, trace_waves=True)
    result = run(executable, COPY, trace=tmp_path / "wave.fst")
    assert all(image.ok for image in result.images)
    data = (tmp_path / "wave.fst").read_bytes()
    blocks = {}
    while data:  # type, length from there on, content
        kind, length = data[0], int.from_bytes(data[1:9], "big")
        blocks[kind], data = data[9 : 1 + length], data[1 + length :]
    header, changes, geometry, hierarchy = (blocks[kind] for kind in (0, 8, 3, 6))
    assert int.from_bytes(header[8:16], "big") > 10 * result.images[0].cycles  # the end time
    assert changes
    assert int.from_bytes(geometry[:8], "big") > 0
    names = lz4_decompressed(hierarchy[8:])
    assert len(names) == int.from_bytes(hierarchy[:8], "big")
    assert b"trace_retire" in names


def lz4_decompressed(block: bytes) -> bytes:
    """An LZ4 block's content: sequences of literals and matches."""
    out, at = bytearray(), 0

    def length(start: int) -> int:
        nonlocal at
        total = start
        while start == 15:
            byte, at = block[at], at + 1
            total += byte
            if byte < 255:
                break
        return total

    while True:
        token, at = block[at], at + 1
        count = length(token >> 4)
        out, at = out + block[at : at + count], at + count
        if at == len(block):
            return bytes(out)
        distance, at = int.from_bytes(block[at : at + 2], "little"), at + 2
        for _ in range(length(token & 15) + 4):
            out.append(out[-distance])


def test_failed_build_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEVIT_CACHE", str(tmp_path / "with space"))
    with pytest.raises(ToolError, match=r"(?i)error.*whole log"):
        verilate.build_verilog("module moevit(; endmodule", CONFIG)
    assert "rror" in (tmp_path / "with space" / "failed-build.log").read_text()
    assert not list((tmp_path / "with space" / "models").glob("[!.]*"))


def test_missing_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolError, match="no-such-compiler"):
        verilate.build(CONFIG)


@pytest.mark.parametrize(
    "values", [{"bytes_per_cycle": 0}, {"latency_cycles": 0}, {"outstanding_bursts": 0}, {"seed": 0}]
)
def test_dram_parameters_are_checked(values):
    with pytest.raises(InputError, match=next(iter(values))):
        DramModel(**({"bytes_per_cycle": 16} | values))
