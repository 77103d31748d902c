"""Whole models on both back-ends, through the Python interface and the command line."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from compile_helpers import FIXTURES, ODD, SHIPPED, SMALL, compiled, float_inputs

import moevit
from moevit import container
from moevit.cli import cli
from moevit.errors import InputError, MismatchError, ToolError
from moevit.sim import metrics
from moevit.sim import simulate as simulate_module
from moevit.sim.dram import DramModel
from moevit.sim.reference import run_reference
from moevit.sim.result import program_dram_bytes
from moevit.sim.simulate import ISA_BATCH

WIDE_MODEL = FIXTURES / "script18_wide_nobias.onnx"
HEAD64 = FIXTURES / "dynamo20_head64.onnx"
IMAGES = SHIPPED / "test_images.npz"


def program_of(path, config) -> moevit.Program:
    plain = compiled(path, config).program
    return moevit.api.Program(plain.config, plain.tasks, plain.sources, plain.image, plain.shared_bytes)


def inputs_of(path, count):
    return {k: v[:count] for k, v in float_inputs(path).items()}


def run_cli(capfd, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    out, err = capfd.readouterr()
    return end.value.code, out, err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A container and inputs of the small fixture."""
    folder = tmp_path_factory.mktemp("container")
    container.save(compiled(SMALL, "tiny").program, folder / "small.moevit")
    np.savez(folder / "inputs.npz", **inputs_of(SMALL, 3))
    return folder


# -- isa -----------------------------------------------------------------------------------------------------


def test_isa_is_exact():
    result = program_of(ODD, "tiny").run(inputs_of(ODD, 4), check=True)
    assert result.bit_exact is True
    assert result.mismatch is None
    assert result.checked_values > 100_000
    assert result.cycles is result.stages is result.layers is result.mac_utilisation is result.latency_ms is None
    assert result.images == 4


def test_batches_do_not_matter():
    program = program_of(SMALL, "tiny")
    (entry,) = program.task().inputs
    values = np.random.default_rng(3).random((2 * ISA_BATCH + 5, *entry.shape), np.float32)
    whole = program.run({entry.name: values})
    for first in (0, ISA_BATCH - 1, 2 * ISA_BATCH + 4):
        one = program.run({entry.name: values[first : first + 1]})
        for name, output in one.outputs.items():
            assert np.array_equal(output[0], whole.outputs[name][first])
    limited = program.run({entry.name: values}, limit=3)
    assert limited.images == 3


def test_compile_save_load_run(tmp_path):
    program = moevit.compile(SMALL, "tiny", inputs_of(SMALL, 8))
    program.save(tmp_path / "a.moevit")
    again = moevit.load(tmp_path / "a.moevit")
    assert again == program
    first, second = (p.run(inputs_of(SMALL, 2)).outputs for p in (program, again))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_compile_several_tasks():
    inputs = inputs_of(SMALL, 8)
    program = moevit.compile({"a": SMALL, "b": SMALL}, "tiny", {"a": inputs, "b": inputs})
    a, b = (program.run(inputs, task=name).outputs for name in ("a", "b"))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    with pytest.raises(InputError, match="task 'b'"):
        moevit.compile({"a": SMALL, "b": SMALL}, "tiny", {"a": inputs})
    with pytest.raises(InputError, match="no task 'c'; choose one of a, b"):
        program.run(inputs, task="c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "fpga"}, "no back-end 'fpga'; choose one of isa, rtl"),
        ({"limit": 0}, "at least 1"),
        ({"trace": "x.fst"}, "only the rtl back-end"),
        ({"dram": DramModel(bytes_per_cycle=1)}, "isa back-end has no DRAM"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        program_of(SMALL, "tiny").run(inputs_of(SMALL, 1), **options)


def test_rate():
    """The promise is 100 images/s; a loaded test machine gets some slack."""
    result = program_of(SHIPPED / "fashion_vit.onnx", "tiny").run(IMAGES, limit=256)
    assert result.images / result.wall_s > 40


# -- rtl -----------------------------------------------------------------------------------------------------


def hold_to_isa(path, config, count, *, seed=None):
    """Run a model on both back-ends, compare every tensor, and hold the figures to each other."""
    program = program_of(path, config)
    default = DramModel.default(program.config)
    dram = DramModel(bytes_per_cycle=default.bytes_per_cycle, seed=seed)
    result = program.run(inputs_of(path, count), backend="rtl", check=True, dram=dram)
    isa = program.run(inputs_of(path, count))
    assert result.bit_exact is True
    for name, output in isa.outputs.items():
        assert np.array_equal(result.outputs[name], output)
    assert len(result.cycles) == count
    if seed is None:
        assert len(set(result.cycles)) == 1  # nothing in the machine's timing depends on the data
    average = sum(result.cycles) / count
    assert sum(layer.cycles for layer in result.layers) == pytest.approx(average, abs=1e-3)
    for causes in result.stages.values():
        assert sum(causes.values()) == average
        assert causes["idle"] >= 0
    assert result.latency_ms == pytest.approx(average / program.config.clock_mhz / 1000)
    assert result.mac_utilisation == pytest.approx(result.macs / average / program.config.macs_per_cycle)
    assert result.stages["mac"]["busy"] >= result.macs / program.config.macs_per_cycle
    for what, size in program_dram_bytes(program, program.task()).items():
        assert size <= result.dram_bytes[what] <= size + 4096
    return result


@pytest.mark.parametrize("path", [SMALL, ODD, WIDE_MODEL], ids=lambda p: p.stem)
def test_rtl_is_exact(path):
    hold_to_isa(path, "tiny", 2)


def test_rtl_is_exact_with_random_stalls():
    hold_to_isa(SMALL, "tiny", 4, seed=1234)


def test_shipped_model_keeps_the_array_busy():
    result = hold_to_isa(SHIPPED / "fashion_vit.onnx", "tiny", 2)
    assert result.mac_utilisation >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zcu104", "square", "wide"])
@pytest.mark.parametrize("seed", [None, 99])
def test_rtl_is_exact_on_other_arrays(config, seed):
    for path in (SHIPPED / "fashion_vit.onnx", ODD, HEAD64, WIDE_MODEL):
        hold_to_isa(path, config, 8 if path.parent == SHIPPED else 3, seed=seed)


@pytest.mark.slow
def test_rtl_is_exact_on_every_fixture():
    for path in sorted(FIXTURES.glob("*.onnx")):
        if not path.name.startswith("bad"):
            hold_to_isa(path, "tiny", 2, seed=5)


def test_slow_dram_costs_cycles():
    program, inputs = program_of(SMALL, "tiny"), inputs_of(SMALL, 1)
    slow = program.run(inputs, backend="rtl", dram=DramModel(bytes_per_cycle=1, latency_cycles=300))
    fast = program.run(inputs, backend="rtl")
    assert slow.cycles[0] > 2 * fast.cycles[0]
    assert slow.stages["mac"]["ring"] > fast.stages["mac"]["ring"]
    assert all(np.array_equal(slow.outputs[name], output) for name, output in fast.outputs.items())


def test_missing_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolError, match="no-such-compiler"):
        program_of(SMALL, "tiny").run(inputs_of(SMALL, 1), backend="rtl")


# -- a reference that differs --------------------------------------------------------------------------------


@pytest.fixture
def wrong_reference(monkeypatch):
    """A reference that differs in one value of one tensor in the middle."""

    def wrong(program, task, inputs):
        tensors = run_reference(program, task, inputs)
        name = list(tensors)[len(tensors) // 2]
        tensors[name] = tensors[name].copy()
        tensors[name][0, 0, 0] += 1
        return tensors

    monkeypatch.setattr(simulate_module, "run_reference", wrong)


@pytest.mark.usefixtures("wrong_reference")
@pytest.mark.parametrize("backend", ["isa", "rtl"])
def test_mismatch_is_raised(backend):
    with pytest.raises(MismatchError, match=rf"{backend}, image 0: tensor '.*'\[0, 0\], written by instruction \d+ \("):
        program_of(SMALL, "tiny").run(inputs_of(SMALL, 2), backend=backend, check=True)


@pytest.mark.usefixtures("wrong_reference")
def test_mismatch_on_the_command_line(saved, capfd):
    code, out, err = run_cli(
        capfd, "simulate", saved / "small.moevit", "--inputs", saved / "inputs.npz", "--check", "--json"
    )
    assert code == 1
    assert "check failed" in err
    result = json.loads(out)
    assert result["bit_exact"] is False
    assert result["images"] == 3
    assert result["mismatch"]["index"] == [0, 0]


# -- command line --------------------------------------------------------------------------------------------

REQUIRED = {
    "backend", "config", "config_digest", "clock_mhz", "task", "images", "cycles", "latency_ms", "macs",
    "mac_utilisation", "stages", "dram_bytes", "bit_exact", "wall_s",
}  # fmt: skip


@pytest.mark.parametrize("backend", ["isa", "rtl"])
def test_simulate_json(saved, tmp_path, capfd, backend):
    code, out, _ = run_cli(
        capfd, "simulate", saved / "small.moevit", "--inputs", saved / "inputs.npz", "--backend", backend,
        "--check", "--limit", 2, "--outputs", tmp_path / "o.npz", "--json",
    )  # fmt: skip
    assert code == 0
    result = json.loads(out)
    assert result.keys() >= REQUIRED
    assert result["bit_exact"] is True
    assert result["images"] == 2
    assert (result["cycles"] is None) == (backend == "isa")
    assert result["dram_bytes"].keys() == {"weights", "instructions", "activations", "experts", "speculative"}
    assert result["experts"] == {}
    expected = program_of(SMALL, "tiny").run(saved / "inputs.npz", limit=2).outputs
    with np.load(tmp_path / "o.npz") as outputs:
        assert set(outputs.files) == set(expected)
        assert all(np.array_equal(outputs[name], expected[name]) for name in expected)


def test_simulate_for_people(saved, capfd):
    code, out, _ = run_cli(
        capfd, "simulate", saved / "small.moevit", "--inputs", saved / "inputs.npz", "--backend", "rtl", "--check"
    )
    assert code == 0
    for text in ("MAC utilisation", "DRAM: 32 bytes/cycle, latency 60 cycles", "Bit-exact", "image 2"):
        assert text in out


@pytest.mark.slow  # builds the model anew
def test_simulate_trace(saved, tmp_path, capfd):
    code, _, _ = run_cli(
        capfd, "simulate", saved / "small.moevit", "--inputs", saved / "inputs.npz", "--backend", "rtl",
        "--limit", 1, "--trace", tmp_path / "w.fst", "--json",
    )  # fmt: skip
    assert code == 0
    assert (tmp_path / "w.fst").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "{images}"], "not [N, "),
        (["--inputs", "missing.npz"], "missing.npz: cannot read"),
        (["--inputs", "{good}", "--task", "x"], "no task 'x'"),
        (["--inputs", "{good}", "--dram-latency", "5"], "the isa back-end has no DRAM"),
        (["--inputs", "{good}", "--backend", "rtl", "--dram-latency", "0"], "latency_cycles must be"),
        (["--inputs", "{good}", "--outputs", "/no/such/folder/o.npz"], "folder does not exist"),
        (["--inputs", "{good}", "--backend", "fpga"], "'fpga' is not one of 'isa', 'rtl', 'cycle'"),
        (["--inputs", "{good}", "--trace", "x.fst"], "only the rtl back-end"),
        ([], "Missing option '--inputs'"),
    ],
)
def test_user_errors(saved, capfd, arguments, message):
    known = {"{good}": saved / "inputs.npz", "{images}": IMAGES}
    code, out, err = run_cli(
        capfd, "simulate", saved / "small.moevit", *(known.get(a, a) for a in arguments), "--json"
    )
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert message in json.loads(out)["error"]["what"] + " " + str(json.loads(out)["error"]["where"]) + err


@pytest.mark.parametrize("command", ["simulate", "evaluate", "verilog", "configs"])
def test_help_has_examples_and_imports_little(command):
    code = f"import sys; from moevit.cli import cli\ntry: cli.main(['{command}', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'numpy', 'onnx', 'amaranth', 'onnxruntime'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"moevit {command}" in result.stdout.partition("Examples:")[2]


def test_evaluate(saved, capfd):
    container_file = saved / "small.moevit"
    code, out, err = run_cli(
        capfd, "evaluate", container_file, "--onnx", SMALL, "--inputs", saved / "inputs.npz", "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["images"] == 3
    assert result["cosine"] > 0.95
    assert result["max_abs_err"] > 0
    assert "top1_int8" not in result


def test_evaluate_with_labels(tmp_path, capfd):
    container.save(compiled(SHIPPED / "fashion_vit.onnx", "tiny").program, tmp_path / "f.moevit")
    code, out, _ = run_cli(
        capfd, "evaluate", tmp_path / "f.moevit", "--onnx", SHIPPED / "fashion_vit.onnx", "--inputs", IMAGES, "--json"
    )
    assert code == 0
    result = json.loads(out)
    assert result["top1_float"] > 0.8
    assert abs(result["top1_int8"] - result["top1_float"]) <= 0.02
    assert result["top1_agreement"] > 0.95
    assert result["cosine"] > 0.99


def test_evaluate_refuses_another_model(saved, tmp_path, capfd):
    arguments = ("evaluate", saved / "small.moevit", "--inputs", saved / "inputs.npz", "--onnx")
    code, _, err = run_cli(capfd, *arguments, SHIPPED / "fashion_vit.onnx")
    assert code == 2
    assert "onnxruntime cannot run it" in err or "is not the model of task" in err
    assert "compiled from another" in err
    (tmp_path / "no.onnx").write_text("nothing")
    for name, message in (("no.onnx", "onnxruntime cannot load it"), ("gone.onnx", "no such file")):
        code, _, err = run_cli(capfd, *arguments, tmp_path / name)
        assert code == 2
        assert message in err


def test_evaluate_a_model_of_fixed_batch(saved, tmp_path, capfd):
    model = onnx.load(SMALL)
    fixed = (*model.graph.input, *model.graph.output)
    for value in fixed:
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "fixed.onnx")
    arguments = ("--inputs", saved / "inputs.npz", "--json")
    results = [
        json.loads(run_cli(capfd, "evaluate", saved / "small.moevit", "--onnx", m, *arguments)[1])
        for m in (SMALL, tmp_path / "fixed.onnx")
    ]
    assert results[0]["cosine"] == pytest.approx(results[1]["cosine"])


def test_metrics():
    logits = np.array([[1.0, 2, 0], [3, 0, 1]], np.float32)
    assert metrics.distance(logits, logits) == {"cosine": 1.0, "max_abs_err": 0.0, "relative_rms_err": 0.0}
    assert metrics.distance(logits, -logits)["cosine"] == pytest.approx(-1)
    other = logits[::-1]
    top1 = metrics.classification(logits, other, np.array([1, 1]))
    assert top1 == {"top1_agreement": 0.0, "top1_float": 0.5, "top1_int8": 0.5}
    assert metrics.against_target(logits, other, logits.astype(np.float64))["rmse_int8"] == 0
    scores = np.zeros((1, 3, 2, 2), np.float32)
    scores[0, [0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]] = 1
    target = np.array([[[0, 1], [0, 255]]], np.uint8)  # the last pixel has no class
    # class 0: 1 of 2, class 1: 1 of 2
    assert metrics.against_target(scores, scores, target)["miou_int8"] == pytest.approx(0.5)
    assert metrics.against_target(scores, scores, np.zeros(3)) == {}
    metres = np.ones((2, 1, 3, 4), np.float32)
    assert metrics.against_target(metres, metres + 1, metres[:, 0]) == {"rmse_float": 1.0, "rmse_int8": 0.0}


def test_configs(capfd):
    code, out, _ = run_cli(capfd, "configs", "--json")
    assert code == 0
    found = {config["name"]: config for config in json.loads(out)["configs"]}
    assert found["tiny"]["macs_per_cycle"] == 4 * 8 * 4
    assert run_cli(capfd, "configs", "zcu104")[0] == 0
    code, _, err = run_cli(capfd, "configs", "huge")
    assert code == 2
    assert "tiny" in err


def test_verilog(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("moevit.hw.verilog.generate", lambda config, trace=False: "module moevit; endmodule\n")
    code, out, err = run_cli(capfd, "verilog", "--config", "wide", "-o", tmp_path / "out", "--json")
    assert code == 0, err
    files = json.loads(out)["files"]
    assert (tmp_path / "out" / "moevit.v").read_text().startswith("module moevit")
    assert "MOEVIT_CONTROL" in (tmp_path / "out" / "moevit_registers.h").read_text()
    layout = json.loads((tmp_path / "out" / "memory_map.json").read_text())
    assert [m["name"] for m in layout["masters"]] == ["m_axi_dma", "m_axi_w0", "m_axi_w1"]
    assert {r["name"] for r in layout["registers"]} >= {"CONTROL", "STATUS", "COUNT_MAC_BUSY"}
    config = moevit.AcceleratorConfig.from_file(tmp_path / "out" / "config.json")
    assert f"{config.digest:016x}" == json.loads(out)["config_digest"]
    assert set(files) == {"verilog", "registers", "memory_map", "config"}
