"""Where the cycles go: every one has one cause in each stage, and each instruction passes the units in order."""

import json
from itertools import pairwise

import numpy as np
import pytest
from compile_helpers import ODD, SMALL, compiled, float_inputs
from mixture_program import MixtureProgram, Shape

from moevit import container
from moevit.cli import cli
from moevit.config import CONFIGS
from moevit.isa import DmaIn, DmaOut, Stream
from moevit.registers import COUNTERS
from moevit.sim import timeline
from moevit.sim.dram import DramModel
from moevit.sim.inputs import Inputs, pack, quantise
from moevit.sim.result import layer_cycles
from moevit.sim.rtl import RECORD, RtlSimulator

SLOW = DramModel(bytes_per_cycle=2, latency_cycles=200)


def fixture(path):
    program = compiled(path, "tiny").program
    return program, {k: v[:1] for k, v in float_inputs(path).items()}


def mixture():
    """Experts, of which some have no tokens."""
    shape = Shape(experts=40, top_k=4, tokens=6, seed=3)
    pixels = np.random.default_rng(99).integers(0, 256, (1, 1, shape.tokens, shape.width), np.uint8)
    return MixtureProgram(CONFIGS["tiny"], shape).program, {"image": pixels.astype(np.float32)}


PROGRAMS = {"small": lambda: fixture(SMALL), "odd": lambda: fixture(ODD), "experts": mixture}


def record(program, values, dram=None):
    """The program's task, and its run."""
    task = program.task(None)
    simulator = RtlSimulator(program, task, dram=dram, workers=1)
    return task, simulator.run(pack(program.config, task, quantise(task, Inputs(values, {}).floats())), timeline=True)


@pytest.fixture(scope="module", params=PROGRAMS)
def recorded(request):
    program, values = PROGRAMS[request.param]()
    return program, *record(program, values)


def slices(trace, phase="X"):
    return [e for e in trace["traceEvents"] if e["ph"] == phase]


@pytest.mark.parametrize("dram", [None, SLOW, DramModel(bytes_per_cycle=32, seed=7)], ids=["fast", "slow", "stalls"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_cycle_has_one_cause(name, dram):
    """The harness counts cycles without a cause itself, and would have reported two in one cycle."""
    _, run = record(*PROGRAMS[name](), dram)
    (image,) = run.images
    assert not image.violations
    for stage, causes in image.counters.items():
        assert sum(causes.values()) + image.idle[stage] == image.cycles, stage
    if dram is SLOW:
        assert image.counters["stream"]["dram"] > image.cycles / 4


def test_units_work_in_order(recorded):
    program, task, run = recorded
    instructions, (image,) = program.instructions(task), run.images
    found = {}
    for span in timeline.spans(instructions, run.timeline):
        assert 0 <= span.start < span.end <= image.cycles or span.unit == "retire"
        found.setdefault(span.unit, []).append(span)
    for spans in found.values():
        assert all(a.end <= b.start and a.number < b.number for a, b in pairwise(spans))
    by_number = {unit: {s.number: s for s in spans} for unit, spans in found.items()}
    retiring = [n for n, i in enumerate(instructions) if i.retires]
    assert [*by_number["retire"]] == retiring
    assert [s.end for s in found["retire"]] == list(image.retire_cycles)
    assert [*by_number["dispatch"]] == list(range(1, len(instructions) - 1))
    for n, sent in by_number["dispatch"].items():
        if isinstance(instructions[n], Stream):
            if n in by_number["stream"]:
                assert sent.end < by_number["stream"][n].start
            continue
        retired = by_number["retire"][n].end
        if isinstance(instructions[n], DmaIn | DmaOut):
            assert sent.end <= by_number["dma"][n].start <= by_number["dma"][n].first < retired
            continue
        load, mac, post = (by_number[unit][n] for unit in ("load", "mac", "post"))
        assert sent.end <= load.start < mac.start < post.start
        assert load.end <= mac.end or load.first is None  # the array needs the last tile
        assert mac.end < post.end <= retired
        assert load.first is None or load.start < load.first < load.end


def test_skipped_streams_are_left_out():
    program, values = mixture()
    task, run = record(program, values)
    instructions = program.instructions(task)
    streamed = {s.number for s in timeline.spans(instructions, run.timeline) if s.unit == "stream"}
    left_out = {n for n, i in enumerate(instructions) if isinstance(i, Stream)} - streamed
    assert left_out
    assert all(instructions[n].predicated for n in left_out)


def test_layers_share_out_the_causes(recorded):
    program, task, run = recorded
    (image,) = run.images
    layers = timeline.layer_causes(program, task, run.timeline)
    assert [(x["name"], x["cycles"]) for x in layers] == [
        (x.name, x.cycles) for x in layer_cycles(program, task, list(run.images))
    ]
    for stage, causes in image.counters.items():
        for cause, cycles in (causes | {"idle": image.idle[stage]}).items():
            assert sum(x["stages"][stage].get(cause, 0) for x in layers) == cycles, (stage, cause)
    waits = sum(sum(x["tile_load"].values()) for x in layers)
    assert waits == image.counters["mac"]["tile"]


def test_trace(recorded):
    program, task, run = recorded
    (image,) = run.images
    trace = json.loads(json.dumps(timeline.trace_events(program, task, run.timeline, image.cycles)))
    tracks = {e["tid"]: e["args"]["name"] for e in slices(trace, "M") if e["name"] == "thread_name"}
    assert list(tracks.values()) == list(timeline.TRACKS.values())
    for tid in tracks:
        # Within a track, a slice that begins inside of another ends there; a wait is inside of its instruction's.
        outer = 0
        for e in sorted((e for e in slices(trace) if e["tid"] == tid), key=lambda e: (e["ts"], -e["dur"])):
            if e["name"] == timeline.WAITS:
                assert e["ts"] + e["dur"] <= outer
                continue
            assert e["ts"] >= outer
            outer = e["ts"] + e["dur"]
        assert outer <= image.cycles
    retired = [e for e in slices(trace) if e["cat"] == "retire"]
    assert [e["ts"] + e["dur"] for e in retired[:-1]] == list(image.retire_cycles)
    assert retired[-1]["ts"] + retired[-1]["dur"] == image.cycles == trace["otherData"]["cycles"]
    fill = [e["args"]["words"] for e in slices(trace, "C")]
    assert 0 < max(fill) <= program.instructions(task)[0].ring_words


def test_records_of_nothing():
    table, _ = timeline.causes(np.zeros(0, RECORD), 3)
    assert table.shape == (4, len(COUNTERS) + 5)
    assert not table.any()


def test_command_line(tmp_path, capfd):
    program, values = fixture(SMALL)
    container.save(program, tmp_path / "small.moevit")
    np.savez(tmp_path / "inputs.npz", **values)

    def run(*options):
        arguments = ["simulate", tmp_path / "small.moevit", "--inputs", tmp_path / "inputs.npz", "--json", *options]
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        return end.value.code, *capfd.readouterr()

    code, out, _ = run("--backend", "rtl", "--timeline", tmp_path / "timeline.json")
    assert code == 0
    result = json.loads(out)
    assert result["timeline"] == str(tmp_path / "timeline.json")
    trace = json.loads((tmp_path / "timeline.json").read_text())
    assert [trace["otherData"]["cycles"]] == result["cycles"]
    for causes in result["stages"].values():
        assert sum(causes.values()) == result["cycles"][0]
    assert any(e.get("name", "").endswith(" LINEAR") for e in trace["traceEvents"])
    code, _, err = run("--timeline", tmp_path / "timeline.json")
    assert code == 2
    assert "only the rtl back-end" in err
