"""`moevit compile`: what it prints and writes, and that bad input leaves nothing behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from compile_helpers import wide_residual
from onnx import numpy_helper

from moevit import container
from moevit.cli import cli
from moevit.config import CONFIGS
from moevit.isa import Stream
from moevit.models import fashion_vit_path
from moevit.models.scenes import m3vit_path

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = FIXTURES / "dynamo20_unbind_sdpa.onnx"
DATA = MODEL.with_suffix(".npz")
OTHER = FIXTURES / "dynamo20_hf.onnx"

KEYS = {
    "config", "tasks", "instructions", "weight_bytes", "shared_bytes", "task_bytes", "peak_activation_bytes",
    "accelerated_macs", "host_macs", "host_nodes", "calibration_accuracy", "wall_s",
}  # fmt: skip


def moevit(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["compile", *map(str, arguments)])


def compile_to(target: Path, *models: object, calib: object = DATA, config: object = "tiny") -> Result:
    return moevit(*models, "--config", config, "--calib", calib, "-o", target, "--json")


def refused(result: Result, *said: str) -> dict:
    """The error of a run that must have ended with status 2 and one line that says all this."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    for text in said:
        assert text in result.stderr
    error = json.loads(result.stdout)["error"]
    assert isinstance(error, dict)
    return error


def test_json_says_what_was_compiled(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "out.moevit"
    result = compile_to(target, MODEL)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer.keys() >= KEYS
    program = container.load(target)
    assert answer["config"] == "tiny"
    assert answer["tasks"] == [task.name for task in program.tasks] == ["main"]
    assert answer["instructions"] == len(program.instructions(program.tasks[0]))
    assert answer["accelerated_macs"] == program.tasks[0].macs > 0
    assert 0 < answer["weight_bytes"] < len(program.image)
    config = program.config
    assert 0 < answer["peak_activation_bytes"] <= config.activation_words * config.columns
    assert (answer["shared_bytes"], answer["host_macs"], answer["host_nodes"]) == (0, 0, [])
    assert answer["wall_s"] > 0
    assert list(target.parent.iterdir()) == [target]


def test_the_report_names_model_and_container(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    result = moevit(MODEL, "--config", "tiny", "--calib", DATA, "-o", target, "--strict")
    assert result.exit_code == 0, result.output
    assert MODEL.name in result.stdout
    assert str(target) in result.stdout
    assert result.stderr == ""


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.moevit", tmp_path / "b.moevit"
    for target in (first, second):
        assert compile_to(target, MODEL).exit_code == 0
    assert first.read_bytes() == second.read_bytes()


def test_equal_tasks_share_their_weights(tmp_path: Path) -> None:
    one, two = tmp_path / "one.moevit", tmp_path / "two.moevit"
    alone = json.loads(compile_to(one, MODEL).stdout)
    answer = json.loads(compile_to(two, f"left={MODEL}", f"right={MODEL}").stdout)
    assert answer["tasks"] == ["left", "right"]
    assert answer["weight_bytes"] == alone["weight_bytes"]
    assert answer["shared_bytes"] > 0.9 * alone["weight_bytes"]
    assert answer["instructions"] == 2 * alone["instructions"]


def test_two_tasks_with_experts(tmp_path: Path) -> None:
    """The trained model: each task's own bytes are said, and speculation is an option."""
    target = tmp_path / "out.moevit"
    models = [f"{task}={m3vit_path(f'{task}.onnx')}" for task in ("seg", "depth")]
    answer = json.loads(compile_to(target, *models, calib=m3vit_path("calib_scenes.npz")).stdout)
    assert answer["tasks"] == ["seg", "depth"]
    seg, depth = (answer["task_bytes"][task] for task in ("seg", "depth"))
    assert depth["own"] < seg["own"] < 0.1 * seg["weights"]
    assert seg["weights"] + depth["own"] <= answer["weight_bytes"] < seg["weights"] + depth["own"] + 4096
    assert speculative(target) == {1}
    calib = ["--calib", m3vit_path("calib_scenes.npz")]
    result = moevit(*models, "--config", "tiny", *calib, "-o", target, "--no-speculation")
    assert result.exit_code == 0, result.output
    assert f"bytes of one task only: seg {seg['own']:,}, depth {depth['own']:,}" in result.stdout
    assert speculative(target) == {0}


def speculative(path: Path) -> set[int]:
    """What the STREAMs of experts in a container say."""
    program = container.load(path)
    code = [i for task in program.tasks for i in program.instructions(task)]
    return {i.speculative for i in code if isinstance(i, Stream) and i.predicated}


def test_each_task_may_have_its_own_calibration(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    calib = ["--calib", f"first={DATA}", "--calib", f"second={OTHER.with_suffix('.npz')}"]
    result = moevit(f"first={MODEL}", f"second={OTHER}", "--config", "tiny", *calib, "-o", target)
    assert result.exit_code == 0, result.output
    sources = {s.task: s.file for s in container.load(target).sources}
    assert sources == {"first": MODEL.name, "second": OTHER.name}


def test_tasks_without_names_are_called_after_their_files(tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    shutil.copy(MODEL, again)
    result = compile_to(tmp_path / "out.moevit", MODEL, again)
    assert json.loads(result.stdout)["tasks"] == [MODEL.stem, "again"]


def test_a_file_may_have_an_equals_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(MODEL, tmp_path / "dim=32.onnx")
    monkeypatch.chdir(tmp_path)
    assert json.loads(compile_to(Path("out.moevit"), "dim=32.onnx").stdout)["tasks"] == ["main"]


def test_a_configuration_may_be_a_file(tmp_path: Path) -> None:
    values = CONFIGS["tiny"].to_dict() | {"name": "mine", "operand_words": 2048}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(values))
    target = tmp_path / "out.moevit"
    assert json.loads(compile_to(target, MODEL, config=file).stdout)["config"] == "mine"
    assert container.load(target).config.operand_words == 2048


def test_calibration_images_of_the_shipped_model(tmp_path: Path) -> None:
    """Pixels uint8 [N, 28, 28] under the name `images`, as the README has it."""
    target = tmp_path / "out.moevit"
    model, images = fashion_vit_path(), fashion_vit_path("calib_images.npz")
    assert compile_to(target, model, calib=images).exit_code == 0
    (entry,) = container.load(target).tasks[0].inputs
    assert (entry.scale, entry.zero_point) == (1 / 255, 0)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nothing.onnx", "no such file"),
        ("bad_truncated.onnx", "truncated"),
        ("bad_empty.onnx", "not ONNX"),
        ("bad_text.onnx", "not ONNX"),
        ("bad_external.onnx", "external data"),
        ("bad_nan.onnx", "NaN"),
        ("bad_cycle.onnx", "not valid ONNX"),
        ("bad_dangling.onnx", "not valid ONNX"),
        ("bad_weight_shape.onnx", "16 channels"),
    ],
)
def test_a_broken_model_is_refused(model: str, said: str, tmp_path: Path) -> None:
    refused(compile_to(tmp_path / "out.moevit", FIXTURES / model), model, said)
    assert list(tmp_path.iterdir()) == []


def test_strict_refuses_and_lists_all_unsupported_nodes(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    model = FIXTURES / "bad_conv3x3.onnx"
    result = moevit(model, "--config", "tiny", "--calib", DATA, "-o", target, "--json", "--strict")
    error = refused(result, "cannot be mapped", "/blocks.0/conv/Conv")
    assert error["type"] == "UnsupportedOpError"
    assert "/blocks.0/conv/Conv" in {node["name"] for node in error["nodes"]}
    for node in error["nodes"]:
        assert all(node[key] for key in ("name", "op", "reason", "way_out"))
        assert node["name"] in result.stderr
    assert not target.exists()


def test_nodes_for_the_host_are_listed(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    result = compile_to(target, FIXTURES / "bad_conv3x3.onnx")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["tasks"] == ["main"] and not answer["strict"]
    assert answer["accelerated_macs"] > 30_000 and answer["host_macs"] > 0
    nodes = {node["name"]: node for node in answer["host_nodes"]}
    assert len(nodes) == len(answer["host_nodes"])
    assert nodes["/blocks.0/conv/Conv"] == {
        "task": "main", "name": "/blocks.0/conv/Conv", "op": "Conv", "reason": nodes["/blocks.0/conv/Conv"]["reason"],
        "way_out": nodes["/blocks.0/conv/Conv"]["way_out"],
    }  # fmt: skip
    assert "/blocks.0/conv/Conv" in moevit(
        FIXTURES / "bad_conv3x3.onnx", "--config", "tiny", "--calib", DATA, "-o", target
    ).stdout


def test_a_model_that_the_integers_do_not_hold_is_refused(tmp_path: Path) -> None:
    model, target = wide_residual(MODEL, tmp_path / "wide.onnx"), tmp_path / "out" / "out.moevit"
    error = refused(compile_to(target, model), "'logits'", "'main'", "cosine", "calibration data", "--accept-accuracy")
    assert error["type"] == "AccuracyError"
    assert error["calibration_accuracy"]["main"]["logits"]["cosine"] < 0.9
    assert not target.parent.exists()


def test_an_activation_that_saturates_is_the_hosts_or_refused_with_its_task_and_nodes(tmp_path: Path) -> None:
    model, target = onnx.load(MODEL), tmp_path / "out.moevit"
    (node,) = [n for n in model.graph.node if n.name == "node_MatMul_71"]
    (weight,) = [i for i in model.graph.initializer if i.name == node.input[1]]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(3000), weight.name))
    onnx.save(model, tmp_path / "large.onnx")
    tasks = f"good={MODEL}", f"large={tmp_path / 'large.onnx'}"
    result = compile_to(target, *tasks, "--strict")
    error = refused(result, "task 'large'", "node_MatMul_71", "reaches", "the machine holds 256", "scale the weights")
    assert error["type"] == "BeyondRangeError" and not target.exists()
    result = compile_to(target, *tasks)
    assert result.exit_code == 0, result.output
    (node,) = json.loads(result.stdout)["host_nodes"]
    assert (node["task"], node["op"]) == ("large", "Gelu") and "the machine holds 256" in node["reason"]


def test_a_refused_model_still_has_its_sensitivity_written(tmp_path: Path) -> None:
    model, target, file = wide_residual(MODEL, tmp_path / "wide.onnx"), tmp_path / "out.moevit", tmp_path / "s.json"
    result = moevit(model, "--config", "tiny", "--calib", DATA, "-o", target, "--sensitivity", file, "--json")
    assert refused(result, "--sensitivity")["type"] == "AccuracyError"
    assert not target.exists()
    rows = json.loads(file.read_text())["main"]
    assert rows[0]["cosine"] < 0.9 < rows[-1]["cosine"]


def test_and_written_where_that_is_accepted(tmp_path: Path) -> None:
    model, target = wide_residual(MODEL, tmp_path / "wide.onnx"), tmp_path / "out.moevit"
    options = ["--config", "tiny", "--calib", DATA, "-o", target, "--accept-accuracy"]
    answer = json.loads(moevit(model, *options, "--json").stdout)
    found = answer["calibration_accuracy"]["main"]["logits"]
    assert found["cosine"] < 0.9 and found["relative_rms_err"] > 0.5
    assert container.load(target).names == ("main",)
    assert "not the model's answers, but accepted" in moevit(model, *options).stdout


def test_accuracy_on_calibration_inputs_is_said(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    found = json.loads(compile_to(target, f"a={MODEL}", f"b={MODEL}").stdout)["calibration_accuracy"]
    assert found.keys() == {"a", "b"} and found["a"] == found["b"]
    assert found["a"].keys() == {"logits"} and found["a"]["logits"].keys() == {"cosine", "relative_rms_err"}
    assert found["a"]["logits"]["cosine"] >= 0.99 and 0 < found["a"]["logits"]["relative_rms_err"] < 0.1
    text = moevit(MODEL, "--config", "tiny", "--calib", DATA, "-o", target).stdout
    assert f"output 'logits' on calibration inputs: cosine {found['a']['logits']['cosine']:.5f}" in text
    assert "--accept-accuracy" in moevit("--help").stdout


def test_sensitivity_is_printed_and_written(tmp_path: Path) -> None:
    target, file = tmp_path / "out.moevit", tmp_path / "new" / "sensitivity.json"
    arguments = (MODEL, "--config", "tiny", "--calib", DATA, "-o", target, "--sensitivity", file)
    result = moevit(*arguments)
    assert result.exit_code == 0, result.output
    (rows,) = json.loads(file.read_text()).values()
    assert [row["sqnr_db"] for row in rows] == sorted(row["sqnr_db"] for row in rows)
    assert all(10 < row["sqnr_db"] <= 120 and 10 < row["local_sqnr_db"] <= 120 for row in rows)
    assert all(0.9 < row["cosine"] <= 1 for row in rows)
    assert {row["kind"] for row in rows} == {"Embed", "Linear", "Attention"}
    program = container.load(target)
    assert {row["stage"] for row in rows} <= {layer.name for layer in program.tasks[0].layers} and len(rows) == 12
    lines = result.output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("task main:"))
    assert [line.split()[0] for line in lines[head + 2 : head + 5]] == [row["stage"] for row in rows[:3]]
    plain = compile_to(tmp_path / "plain.moevit", MODEL)
    assert plain.exit_code == 0
    assert (tmp_path / "plain.moevit").read_bytes() == target.read_bytes()


def test_sensitivity_overwrites_nothing_that_is_read(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    arguments = ("--config", "tiny", "--calib", DATA, "-o", target, "--json")
    for file, said in ((MODEL, "would overwrite"), (target, "is the container"), (tmp_path, "is a folder")):
        refused(moevit(MODEL, *arguments, "--sensitivity", file), "--sensitivity", said)
        assert not target.exists()


def test_an_existing_container_survives_a_failed_compile(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    target.write_bytes(b"precious")
    result = moevit(FIXTURES / "bad_lstm.onnx", "--config", "tiny", "--calib", DATA, "-o", target, "--strict")
    assert result.exit_code == 2 and "LSTM" in result.stderr
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_bad_calibration_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    good = np.zeros((2, 3, 16, 16), np.float32)
    refused(compile_to(target, MODEL, calib=tmp_path / "none.npz"), "none.npz", "no such file")
    refused(compile_to(target, MODEL, calib=npz(tmp_path / "a.npz", wrong=good)), "'wrong'", "[N, 3, 16, 16]")
    shape = npz(tmp_path / "b.npz", image=good[..., :15])
    refused(compile_to(target, MODEL, calib=shape), "b.npz", "[2, 3, 16, 15]", "[N, 3, 16, 16]")
    refused(compile_to(target, MODEL, calib=npz(tmp_path / "c.npz", image=good.astype(complex))), "complex")
    refused(compile_to(target, MODEL, calib=npz(tmp_path / "d.npz", image=good[:0])), "no input")
    refused(compile_to(target, MODEL, calib=npz(tmp_path / "e.npz", image=good + np.inf)), "not finite")
    truncated = tmp_path / "f.npz"
    truncated.write_bytes(DATA.read_bytes()[:1000])
    refused(compile_to(target, MODEL, calib=truncated), "f.npz", "damaged")
    np.save(tmp_path / "g.npy", good)
    (tmp_path / "g.npy").rename(tmp_path / "g.npz")
    refused(compile_to(target, MODEL, calib=tmp_path / "g.npz"), "g.npz", "damaged")
    damaged = bytearray(DATA.read_bytes())
    damaged[200:2000] = bytes(1800)
    (tmp_path / "h.npz").write_bytes(damaged)
    refused(compile_to(target, MODEL, calib=tmp_path / "h.npz"), "h.npz", "damaged")
    refused(compile_to(target, MODEL, calib=tmp_path / "empty"), "no such file")
    (tmp_path / "empty").mkdir()
    refused(compile_to(target, MODEL, calib=tmp_path / "empty"))
    assert not target.exists()


def test_bad_arguments_are_refused_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "out.moevit"
    refused(compile_to(target, MODEL, config="huge"), "huge", "tiny")
    refused(compile_to(target, MODEL, MODEL), "two tasks", "NAME=")
    refused(compile_to(tmp_path, MODEL), "is a folder")
    refused(compile_to(target, f"a={MODEL}", calib=f"b={DATA}"), "no task 'b'")
    refused(compile_to(DATA, MODEL), "overwrite")
    (tmp_path / "file").touch()
    refused(compile_to(tmp_path / "file" / "out.moevit", MODEL), "is no folder")
    two = [f"a={MODEL}", f"b={MODEL}", "--config", "tiny", "--calib", f"a={DATA}", "-o", target, "--json"]
    refused(moevit(*two), "'b' has no calibration")
    refused(moevit("--config", "tiny", "--calib", DATA, "-o", target, "--json"), "MODEL")
    refused(moevit(MODEL, "--calib", DATA, "-o", target, "--json"), "--config")
    refused(moevit(MODEL, "--config", "tiny", "-o", target, "--json"), "--calib")
    assert not target.exists()


def test_a_machine_that_is_too_small_is_named(tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    target = tmp_path / "out.moevit"
    for change in ({"activation_words": 64}, {"tile_depth": 32}, {"operand_words": 16}):
        file.write_text(json.dumps(CONFIGS["tiny"].to_dict() | {"name": "small"} | change))
        error = refused(compile_to(target, MODEL, config=file), "task 'main'", *change)
        assert error["type"] == "AllocationError"
        assert ("node 'node_conv2d" in error["where"]) != ("operand_words" in change)  # of all layers together
    assert not target.exists()


@pytest.mark.parametrize("text", ["x", "x=", "x=1x", "=1x3", "x=1x-3", "x=1x3.5", f"x={'9' * 40}"])
def test_a_shape_that_is_none(tmp_path: Path, text: str) -> None:
    result = moevit(MODEL, "--config", "tiny", "--calib", DATA, "-o", tmp_path / "o", "--shape", text, "--json")
    refused(result, "is no shape of an input", "NAME=1x3x224x224")
    assert not list(tmp_path.iterdir())


def test_a_shape_fixes_what_the_model_leaves_open(tmp_path: Path) -> None:
    proto = onnx.load(MODEL)
    (entry,) = [i for i in proto.graph.input if i.name not in {x.name for x in proto.graph.initializer}]
    fixed = [d.dim_value or 1 for d in entry.type.tensor_type.shape.dim]
    for axis in (2, 3):
        entry.type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "open.onnx")
    common = (tmp_path / "open.onnx", "--config", "tiny", "--calib", DATA, "-o", tmp_path / "o.moevit", "--json")
    refused(moevit(*common), "only the batch may be dynamic")
    right = moevit(*common, "--shape", f"{entry.name}={'x'.join(map(str, fixed))}")
    assert right.exit_code == 0, right.output
    plain = compile_to(tmp_path / "plain.moevit", MODEL)
    assert json.loads(right.stdout)["instructions"] == json.loads(plain.stdout)["instructions"]
    refused(moevit(*common, "--shape", "nothing=1x3x8x8"), "there is no input 'nothing'")
