"""The cycle back-end beside the RTL: its constants, its totals, and what it says of itself."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from math import inf
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from compile_helpers import SHIPPED, compiled, float_inputs, quantised_inputs
from differential.random_program import random_program

from moevit import container
from moevit.bench.workloads import WORKLOADS
from moevit.cli import cli
from moevit.compiler.driver import Compiled, compile_graphs, compile_model
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.errors import InputError, SimulationError
from moevit.hw import accelerator, interfaces
from moevit.hw.units import (
    arithmetic,
    axi_read,
    axi_write,
    burst_pacer,
    context_loader,
    control,
    dma,
    exponential,
    keep_writer,
    layernorm,
    loader,
    mac_array,
    mac_sequencer,
    post,
    queue_rows,
    queues,
    read_mux,
    retirement,
    route,
    route_scores,
    route_select,
    row_loader,
    streamer,
)  # fmt: skip
from moevit.hw.units import fetch as fetch_unit
from moevit.isa import Begin, DmaIn, End, Linear
from moevit.program import Program
from moevit.sim.cycle import even_lengths, predict, units
from moevit.sim.cycle.activation import AccessPort, PostClaims
from moevit.sim.cycle.kernel import Kernel, Process, Times
from moevit.sim.cycle.memory import Dram
from moevit.sim.dram import DramModel
from moevit.sim.inputs import Inputs, pack
from moevit.sim.isa import IsaSimulator
from moevit.sim.rtl import run_raw
from moevit.sim.simulate import simulate

M3VIT = Path(__file__).parents[2] / "models" / "m3vit"
FASHION = SHIPPED / "fashion_vit.onnx"
TOLERANCE = 0.03  #: of the cycles of a whole run


@cache
def m3vit(config: str) -> Compiled:
    """The shipped model of two tasks."""
    return compile_model(
        {task: M3VIT / f"{task}.onnx" for task in ("seg", "depth")}, CONFIGS[config],
        lambda task, shapes: scenes(16),
    )  # fmt: skip


def scenes(count: int) -> dict[str, np.ndarray]:
    with np.load(M3VIT / "calib_scenes.npz") as data:
        return {"image": data["images"][:count].astype(np.float32) / 255}


def clothes() -> dict[str, np.ndarray]:
    return {name: values[:1] for name, values in float_inputs(FASHION).items()}


def check(got: Sequence[int], want: Sequence[int]) -> None:
    for predicted, measured in zip(got, want, strict=True):
        assert predicted == pytest.approx(measured, rel=TOLERANCE)


def both(program: Program, task: str, inputs: dict[str, np.ndarray]):
    """A task on the cycle and the rtl back-end, compared in total and in what the array does."""
    predicted, measured = (
        simulate(program, Inputs(inputs, {}), task, backend=backend) for backend in ("cycle", "rtl")
    )
    check(predicted.cycles or (), measured.cycles or ())
    assert predicted.experts == measured.experts
    assert all(np.array_equal(predicted.outputs[name], measured.outputs[name]) for name in measured.outputs)
    for stage, cause in (("mac", "busy"), ("post", "busy"), ("stream", "busy"), ("dma", "busy")):
        assert predicted.stages[stage][cause] == measured.stages[stage][cause], (stage, cause)
    return predicted, measured


# -- constants -----------------------------------------------------------------------------------------------


def test_constants_are_those_of_the_units() -> None:
    pairs = {
        "START_CYCLES": control.Control.START_CYCLES,
        "PREFETCH_INSTRUCTIONS": fetch_unit.PREFETCH_INSTRUCTIONS,
        "REQUEST_INSTRUCTIONS": fetch_unit.REQUEST_INSTRUCTIONS,
        "ORDER_DEPTH": retirement.ORDER_DEPTH,
        "BURST_BEATS": axi_read.BURST_BEATS,
        "PORT_OUTSTANDING": _default(axi_read.AxiReadPort, "outstanding"),
        "PACE_CYCLES": burst_pacer.PACE_CYCLES,
        "LINGER_CYCLES": burst_pacer.LINGER_CYCLES,
        "PORT_FIFO": _default(axi_read.AxiReadPort, "fifo_depth"),
        "SHARED_OUTSTANDING": _default(read_mux.ReadMux, "outstanding"),
        "FETCH_FIFO_BEATS": accelerator.FETCH_FIFO_BEATS,
        "DMA_FIFO_BEATS": accelerator.DMA_FIFO_BEATS,
        "PART_QUEUE_DEPTH": streamer.PART_QUEUE_DEPTH,
        "DECIDE_LATENCY": streamer.DECIDE_LATENCY,
        "QUEUE_COUNT_LATENCY": interfaces.QUEUE_COUNT_LATENCY,
        "ARRAY_QUEUE_DEPTH": loader.ARRAY_QUEUE_DEPTH,
        "START_LATENCY": loader.START_LATENCY,
        "QUEUE_START_LATENCY": loader.QUEUE_START_LATENCY,
        "FIRST_ENTRY_LATENCY": queues.FIRST_ENTRY_LATENCY,
        "ENTRY_CYCLES": queues.ENTRY_CYCLES,
        "QUEUE_ROW_LATENCY": queue_rows.QUEUE_ROW_LATENCY,
        "COPY_LATENCY": row_loader.COPY_LATENCY,
        "KEEP_LATENCY": keep_writer.KEEP_LATENCY,
        "KEEP_DEPTH": keep_writer.KEEP_DEPTH,
        "MAX_TILES": layernorm.MAX_TILES,
        "STATISTICS_LATENCY": layernorm.STATISTICS_LATENCY,
        "NORMALISE_LATENCY": layernorm.NORMALISE_LATENCY,
        "NORM_QUEUE_LATENCY": layernorm.QUEUE_LATENCY,
        "ACTIVATION_READ_LATENCY": interfaces.ACTIVATION_READ_LATENCY,
        "CONTEXT_LATENCY": context_loader.CONTEXT_LATENCY,
        "MAC_START_LATENCY": mac_array.MacArray.START_LATENCY,
        "JUMP_LATENCY": mac_sequencer.JUMP_LATENCY,
        "GATE_CREDITS": mac_sequencer.GATE_CREDITS,
        "TAIL_DELAY": mac_sequencer.TAIL_DELAY,
        "POST_LATENCY": post.LATENCY,
        "KV_LATENCY": post.KV_LATENCY,
        "ROUTE_LATENCY": post.ROUTE_LATENCY,
        "RETIRE_LATENCY": post.RETIRE_LATENCY,
        "RESIDUAL_LATENCY": post._READ,
        "EXPONENTIAL_LATENCY": exponential.EXPONENTIAL_LATENCY,
        "READY_LATENCY": route_scores.READY_LATENCY,
        "APPEND_LATENCY": route_scores.APPEND_LATENCY,
        "ROUTE_START": route._START,
        "RUN_QUEUE_DEPTH": dma.RUN_QUEUE_DEPTH,
        "MOVE_QUEUE_DEPTH": dma.MOVE_QUEUE_DEPTH,
        "PAIR_QUEUE_DEPTH": dma.PAIR_QUEUE_DEPTH,
        "UNANSWERED": dma.UNANSWERED,
        "WRITE_FIFO": _default(axi_write.AxiWritePort, "fifo_depth"),
    }
    assert {name: getattr(units, name) for name in pairs} == pairs


def _default(component: type, name: str) -> object:
    return component.__init__.__kwdefaults__[name]  # type: ignore[misc]


@pytest.mark.parametrize("name", CONFIGS)
def test_latencies_are_those_of_the_units(name: str) -> None:
    config = CONFIGS[name]
    for other in (config, dataclasses.replace(config, name="deep", rows=config.columns, depth=config.columns)):
        got = units.Latencies.of(other)
        assert got == units.Latencies(
            row_delay=mac_array.row_delay(other),
            sums=layernorm.sums_latency(other),
            row_buffer=layernorm.row_buffer_words(other),
            scale=context_loader.scale_latency(other),
            cover_steps=context_loader.cover_steps(other),
            staged=post.staged_latency(other),
            select=route_select.select_latency(other),
            route_words=route_select.word_count(other),
        )
        assert [got.pass_spacing(n) for n in (1, 3)] == [route_select.pass_spacing(other, n) for n in (1, 3)]
        assert units.tree(other.columns) == arithmetic.tree_latency(other.columns)


def test_a_gate_takes_what_its_unit_states() -> None:
    from moevit.sim.cycle.route import Route

    for config in CONFIGS.values():
        for rows, top_k in ((1, 1), (config.rows, 2), (config.rows, 4)):
            gate = Linear(n_rows=rows, src=0, src_stride=1, length=8, tiles=1, dst=0, dst_stride=1, key_tile=1,
                          value_tile=1, route=1, experts=4, top_k=top_k)  # fmt: skip
            model = Route(config, units.Latencies.of(config))
            assert model.tile(gate, rows, 100) == 100 + route.done_latency(config, 1, rows, top_k)
            assert model.freed == [100 + route.freed_latency(config, 1, rows, top_k)]


# -- beside the rtl ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["tiny", "wide", "square"])
def test_shipped_model(config: str) -> None:
    predicted, measured = both(compiled(FASHION, config).program, "main", clothes())
    assert predicted.cycles[0] == pytest.approx(measured.cycles[0], rel=0.002)


@pytest.mark.parametrize("task", ["seg", "depth"])
def test_shipped_mixture(task: str) -> None:
    both(m3vit("tiny").program, task, scenes(1))


def test_copies_wait_for_the_loader() -> None:
    """On ``square`` a pair of words is a bus word: a copy asks for the activation memory in every cycle, as the loader
    does. Segmentation's results leave while the rows of the next are loaded."""
    predicted, measured = both(m3vit("square").program, "seg", scenes(1))
    assert predicted.stages["dma"]["memory"] == pytest.approx(measured.stages["dma"]["memory"], rel=0.05)
    assert measured.stages["dma"]["memory"] > 0.05 * measured.cycles[0]


def run_random(config: str, seed: int, length: int = 10, dram: DramModel | None = None) -> None:
    p = random_program(CONFIGS[config], seed, length)
    dram = dram or DramModel.default(p.config)
    memories = IsaSimulator(p.config, p.image, p.instructions, p.output_bytes).run(p.inputs)
    rtl = run_raw(p.config, p.image, p.entry, len(p.instructions), p.inputs, p.output_bytes, dram=dram)
    lengths = {gate: counts[0].tolist() for gate, counts in memories.lengths.items()}
    got = predict(p.config, p.instructions, p.entry, dram, lengths)
    check([got.cycles], [rtl.images[0].cycles])
    assert len(got.retire_cycles) == len(rtl.images[0].retire_cycles)


@pytest.mark.parametrize("seed", range(100, 110))
def test_random_program(seed: int) -> None:
    run_random("tiny", seed)


def test_a_far_memory() -> None:
    run_random("wide", 600, 12, DramModel(bytes_per_cycle=64, latency_cycles=200))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_many_random_programs(seed: int) -> None:
    run_random(("tiny", "wide", "square", "zcu104")[seed % 4], seed, 10 + seed % 7)


@pytest.mark.slow
@pytest.mark.parametrize("bytes_per_cycle", [4, 16])
@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "zcu102"])  # zcu104 with a shorter ring
def test_a_slow_memory(config: str, bytes_per_cycle: float) -> None:
    program = compiled(FASHION, config).program
    task = program.tasks[0]
    inputs = pack(program.config, task, quantised_inputs(task, clothes()))
    dram = DramModel(bytes_per_cycle=bytes_per_cycle, latency_cycles=90)
    rtl = run_raw(program.config, program.image, task.entry, task.instructions, inputs, task.output_bytes, dram=dram)
    got = predict(program.config, program.instructions(task), task.entry, dram, {})
    check([got.cycles], [rtl.images[0].cycles])


@pytest.mark.slow
def test_shipped_models_on_zcu104() -> None:
    both(compiled(FASHION, "zcu104").program, "main", clothes())
    for task in ("seg", "depth"):
        both(m3vit("zcu104").program, task, scenes(2))


@cache
def workload_program(model, config: AcceleratorConfig) -> tuple[Program, dict[str, np.ndarray]]:
    made = model()
    return compile_graphs(made.graphs, config, dict.fromkeys(made.graphs, made.calibration)).program, made.inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_on_zcu104(name: str) -> None:
    workload = WORKLOADS[name]
    if "zcu104" not in workload.configs:
        pytest.skip("not for zcu104")
    program, inputs = workload_program(workload.model, CONFIGS["zcu104"])
    both(program, workload.task, {k: v[:1] for k, v in inputs.items()})


# -- the back-end --------------------------------------------------------------------------------------------


def test_result() -> None:
    program = m3vit("tiny").program
    result = simulate(program, Inputs(scenes(3), {}), "seg", backend="cycle")
    assert result.images == len(result.cycles or ()) == 3
    assert len(set(result.cycles or ())) == 3  # their tokens go to other experts
    total = sum(result.cycles or ()) / 3
    assert sum(layer.cycles for layer in result.layers or ()) == pytest.approx(total)
    for stage, causes in (result.stages or {}).items():
        assert sum(causes.values()) == pytest.approx(total), stage
        assert causes["other"] >= 0, stage
    assert (result.bit_exact, result.checked_values, result.simulated_cycles) == (None, 0, None)
    assert result.dram == DramModel.default(program.config)
    assert result.experts.keys() and result.dram_bytes["speculative"] == 0


def test_without_inputs() -> None:
    result = simulate(m3vit("tiny").program, None, "seg", backend="cycle")
    assert (result.images, result.outputs) == (1, {})
    assert all(tokens == [[16] * 8] for tokens in result.experts.values())  # 64 tokens, 2 of 8 experts each
    slow = simulate(m3vit("tiny").program, None, "seg", backend="cycle", dram=DramModel(bytes_per_cycle=1))
    assert slow.cycles[0] > 2 * result.cycles[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": True}, "has no values to check"),
        ({"dram": DramModel(bytes_per_cycle=8, seed=3)}, "does not model random stalls"),
        ({"trace": Path("x.fst")}, "only the rtl back-end"),
        ({"backend": "isa"}, "no inputs given"),
        ({"backend": "rtl"}, "no inputs given"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(compiled(FASHION, "tiny").program, None, **({"backend": "cycle"} | options))


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "m3vit.moevit"
    container.save(m3vit("tiny").program, path)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(cli, ["simulate", str(path), *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.stdout

    guessed = json.loads(run("--backend", "cycle", "--json"))
    inputs = ["--inputs", M3VIT / "test_scenes.npz", "--limit", 2]
    result = json.loads(run("--backend", "cycle", "--task", "depth", "--dram-latency", 200, "--json", *inputs))
    assert guessed["images"] == 1 and result["images"] == 2
    assert result["backend"] == "cycle" and result["dram"]["latency_cycles"] == 200
    text = run("--backend", "cycle", *inputs)
    assert "MAC utilisation" in text and "image 1" in text and "other" in text
    refused = CliRunner().invoke(cli, ["simulate", str(path), "--backend", "cycle", "--check"])
    assert refused.exit_code == 2 and "has no values to check" in refused.stderr
    refused = CliRunner().invoke(cli, ["simulate", str(path)])
    assert refused.exit_code == 2 and "Missing option '--inputs'" in refused.stderr


def test_a_program_that_locks_up() -> None:
    config = CONFIGS["tiny"]
    copy = DmaIn(offset=0, segment_bytes=16, dst=0, wait=1)  # waits for itself
    program = [Begin(digest=config.digest, ring_words=64, count=3), copy, End()]
    with pytest.raises(SimulationError, match="0 of 1 instructions retire, then it locks up"):
        predict(config, program, 0, DramModel.default(config), {})


def test_even_lengths() -> None:
    gate = Linear(n_rows=10, src=0, src_stride=1, length=8, tiles=1, dst=0, dst_stride=1, key_tile=1, value_tile=1,
                  route=1, experts=6, top_k=2, clear=1)  # fmt: skip
    more = dataclasses.replace(gate, n_rows=3, top_k=4, clear=0, token=10)
    config = CONFIGS["tiny"]
    begin = Begin(digest=config.digest, ring_words=64, count=4)
    lengths = even_lengths([begin, gate, more, End()])
    assert lengths[1][0, :7].tolist() == [4, 4, 3, 3, 3, 3, 0]
    assert lengths[2][0, :7].tolist() == [6, 6, 5, 5, 5, 5, 0]


def test_a_wait_is_unwrapped() -> None:
    from moevit.sim.cycle.machine import _unwrapped

    assert [_unwrapped(w, 70_000) for w in (70_000 % 65536, 65535, 4465)] == [70_000, 65535, 70_001]
    assert [_unwrapped(w, 3) for w in (0, 3, 40)] == [0, 3, 40]  # a STREAM may stand before its gate


# -- its parts -----------------------------------------------------------------------------------------------


def test_kernel_runs_who_is_behind() -> None:
    said: list[tuple[str, int]] = []
    times = Times()

    def walker(name: str, step: int) -> Process:
        for time in range(0, 12, step):
            yield time
            said.append((name, time))

    def reader() -> Process:
        while len(times) < 2:
            yield times
        said.append(("reader", times[1]))

    def writer() -> Process:
        for time in (4, 7):
            yield time
            times.append(time)
            kernel.wake(times)

    kernel = Kernel()
    for process in (walker("a", 3), walker("b", 5), reader(), writer()):
        kernel.start(process)
    kernel.run()
    assert [time for _, time in said] == sorted(time for _, time in said)
    assert len(said) == 4 + 3 + 1


def test_memory_is_shared() -> None:
    config = CONFIGS["zcu104"]  # four weight ports and one other
    dram = Dram(config, DramModel(bytes_per_cycle=32, latency_cycles=10))
    assert dram.read(dram.shared, 0, 16) == (0, 10, 26)  # alone: a beat a cycle
    raised, start, end = dram.read(dram.weights, 100, 16)
    assert (raised, start, end) == (100, 110, 142)  # half a beat a cycle for each of four
    end = dram.write(110, 8)
    assert end == pytest.approx(110 + 8 * 5 / 2)  # two beats a cycle for five ports
    fast = Dram(config, DramModel(bytes_per_cycle=1024, latency_cycles=10))
    for port in (fast.weights, fast.shared):
        assert fast.read(port, 0, 16)[2] == 26


def test_a_slow_memory_gives_no_more_than_it_has() -> None:
    config = CONFIGS["zcu104"]
    dram = Dram(config, DramModel(bytes_per_cycle=4, latency_cycles=10))  # a quarter of a beat a cycle
    for _ in range(4):
        dram.read(dram.weights, 0, 16)
    assert dram.weights.free == 10 + 4 * 4 * 16 * 4
    _, start, end = dram.read(dram.shared, 90, 16)  # while those come: a fifth for each
    assert (start, end) == (100, pytest.approx(100 + 5 * 16 * 4))
    assert dram.weights.free == pytest.approx(10 + 4 * (4 * 16 + 4) * 4)
    assert dram.read(dram.weights, 200, 16)[2] == pytest.approx(10 + 4 * (5 * 16 + 4) * 4)


def test_ports_that_take_turns() -> None:
    """Four ports of 0.4 beats a cycle leave the rest to a copy, but no less than an equal share."""
    for bytes_per_cycle, rate in ((42.7, 1), (32, 0.4), (40, 0.9), (16, 0.2)):
        dram = Dram(CONFIGS["zcu104"], DramModel(bytes_per_cycle=bytes_per_cycle, latency_cycles=10))
        dram.paced_until = 10_000
        for _ in range(8):
            dram.read(dram.weights, 0, 16)
        _, start, end = dram.read(dram.shared, 0, 16)
        assert end - start == pytest.approx(16 / rate)


def test_a_port_has_so_many_bursts() -> None:
    dram = Dram(CONFIGS["tiny"], DramModel(bytes_per_cycle=32, latency_cycles=50, outstanding_bursts=2))
    raised = [dram.read(dram.weights, 0, 4)[0] for _ in range(3)]
    assert raised == [0, 0, 56]


def test_an_access_takes_what_is_left() -> None:
    port = AccessPort()
    port.post.add(10, 2, 5, 22)  # 10, 11, 15, 16, 20, 21
    port.post.add(30, 4, 4, 38)
    for start in range(8, 40):
        left = [c for c in range(start, 60) if not (c in (10, 11, 15, 16, 20, 21) or 30 <= c < 38)]
        assert [PostClaims.last(copy.deepcopy(port.post), start, n) for n in range(1, 20)] == left[:19]
    port.load.add(12, 1, 1, 15)
    assert [port.free(cycle) for cycle in (9, 10, 17, 20, 29, 31, 38)] == [9, 17, 17, 22, 29, 38, 38]
    assert (port.next(0), port.next(16), port.next(23), port.next(40)) == (10, 10, 30, inf)
    port.forget(22)
    assert (port.free(22), port.next(22)) == (22, 30)


def test_units_that_have_no_constant() -> None:
    """Latencies that only docstrings state."""
    for text, unit in (
        ("4 cycles from start to the first request; 5 from BEGIN's last data", fetch_unit.Fetch),
        ("4 cycles from request to arvalid, 3 from rvalid to data", axi_read.AxiReadPort),
        ("3 from a burst's last data, to awvalid", axi_write.AxiWritePort),
        ("11 cycles from a DMA_IN without loops to its first request", dma.Dma),
    ):
        assert text in (unit.__doc__ or ""), unit
