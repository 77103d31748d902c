"""Models with parts on the host, end to end: compiled, saved, run on every back-end, compared with onnxruntime."""

import dataclasses
import hashlib
import json
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import partition_nets as nets
import pytest
from click.testing import CliRunner
from compile_helpers import SMALL, compiled

import moevit
from moevit import api, container
from moevit.cli import cli
from moevit.cli.evaluate import run_onnx
from moevit.errors import ContainerError, InputError
from moevit.pipeline import HOST, MACHINE
from moevit.program import Program
from moevit.sim import metrics
from moevit.sim.inputs import from_arrays

BUILD = {
    "sin": partial(nets.middle, "Sin"),
    "softmax": nets.token_softmax,
    "cosine": nets.cosine_attention,
    "mish": nets.odd_activation,
    "before": nets.before,
    "after": nets.after,
    "shapes": nets.shapes_from_shapes,
}


@cache
def folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="moevit-test-"))


@cache
def model(name: str) -> Path:
    return BUILD[name](folder() / f"{name}.onnx")


@cache
def program(name: str) -> api.Program:
    return moevit.compile(model(name), "tiny", nets.inputs(16))


@pytest.fixture(scope="module", autouse=True)
def _clean():
    yield
    import shutil

    shutil.rmtree(folder(), ignore_errors=True)


@pytest.mark.parametrize("backend", ["isa", "rtl"])
@pytest.mark.parametrize("name", BUILD)
def test_as_onnxruntime_computes_it(name: str, backend: str) -> None:
    mine = program(name)
    given = nets.inputs(3, seed=1)
    result = mine.run(given, backend=backend, check=True)
    assert result.bit_exact and result.checked_values > 3 * nets.TOKENS * nets.WIDTH
    pipeline = mine.pipeline()
    values = from_arrays({x.name: x.shape for x in pipeline.inputs}, given)
    want = run_onnx(model(name), pipeline, values, lambda n: None)
    assert result.outputs.keys() == want.keys()
    for y in pipeline.outputs:
        got = result.outputs[y.name]
        assert got.shape == want[y.name].shape and got.dtype == want[y.name].dtype
        if got.dtype.kind == "f":
            assert metrics.distance(got, want[y.name])["relative_rms_err"] < 0.06
        else:
            assert np.mean(got == want[y.name]) > 0.9


def test_what_is_measured_adds_up() -> None:
    mine = program("sin")
    result = mine.run(nets.inputs(2), backend="rtl")
    assert [(s.kind, s.name) for s in result.steps] == [
        (MACHINE, "main#1"), (HOST, "main@host1"), (MACHINE, "main#2")]  # fmt: skip
    assert result.cycles is not None and result.layers is not None and result.stages is not None
    on_machine = [s.cycles for s in result.steps if s.cycles is not None]
    assert len(on_machine) == 2 and sum(on_machine) == pytest.approx(sum(result.cycles) / 2)
    assert sum(layer.cycles for layer in result.layers) == pytest.approx(sum(on_machine))
    assert {layer.name.split(":")[0] for layer in result.layers} == {"main#1", "main#2"}
    for causes in result.stages.values():
        assert sum(causes.values()) == pytest.approx(sum(on_machine))
    assert result.macs == sum(task.macs for task in mine.tasks) == sum(s.macs for s in result.steps)
    assert result.host_ms == result.steps[1].host_ms and result.host_ms > 0
    answer = json.loads(json.dumps(result.as_dict()))
    assert answer["host_ms"] == result.host_ms and len(answer["steps"]) == 3


def test_a_model_for_the_machine_alone_has_one_step_and_no_host_time() -> None:
    plain = compiled(SMALL, "tiny").program
    assert plain.pipelines == () and plain.host_data == b""
    pipeline = plain.pipeline()
    assert [(s.kind, s.name) for s in pipeline.steps] == [(MACHINE, "main")]
    values = {x.name: np.zeros((1, *x.shape), np.float32) for x in pipeline.inputs}
    result = api.Program(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}).run(values)
    assert result.host_ms is None and [s.kind for s in result.steps] == [MACHINE]


def test_the_cycle_back_end_predicts_all_parts_without_inputs_too() -> None:
    mine = program("sin")
    rtl = mine.run(nets.inputs(1), backend="rtl")
    predicted = mine.run(nets.inputs(1), backend="cycle")
    assert rtl.cycles is not None and predicted.cycles is not None
    assert predicted.cycles[0] == pytest.approx(rtl.cycles[0], rel=0.03)
    from moevit.sim.simulate import simulate

    assert simulate(mine, None, backend="cycle").cycles == predicted.cycles


def test_more_images_than_go_through_together(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = program("mish")
    whole = mine.run(nets.inputs(7))
    monkeypatch.setattr("moevit.sim.steps.CHUNK", 3)
    parts = mine.run(nets.inputs(7), check=True)
    (name,) = whole.outputs
    assert np.array_equal(whole.outputs[name], parts.outputs[name]) and parts.bit_exact
    assert parts.images == 7 and len(mine.run(nets.inputs(7), backend="cycle").cycles or ()) == 7


def test_the_same_inputs_give_the_same_bytes() -> None:
    first, second = (program("after").run(nets.inputs(2)).outputs for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_two_tasks_of_which_one_needs_the_host(tmp_path: Path) -> None:
    """Names, the order and the first task are those given; equal weights are stored once."""
    plain = nets.Vit()
    alone = plain.save(tmp_path / "alone.onnx", plain.head(plain.block(plain.embed())))
    both = moevit.compile({"b": alone, "a": model("sin")}, "tiny", {t: nets.inputs(8) for t in "ab"})
    assert both.names == ("b", "a") and [t.name for t in both.tasks] == ["b", "a#1", "a#2"]
    both.save(tmp_path / "both.moevit")
    again = moevit.load(tmp_path / "both.moevit")
    assert again == both
    assert again.run(nets.inputs(1)).task == "b"
    assert [s.kind for s in again.run(nets.inputs(1), "a").steps] == [MACHINE, HOST, MACHINE]
    with pytest.raises(InputError, match="no task 'c'; choose one of b, a"):
        again.run(nets.inputs(1), "c")


def test_a_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    mine = program("sin")
    mine.save(tmp_path / "a.moevit")
    assert moevit.load(tmp_path / "a.moevit") == mine
    assert container.dumps(moevit.compile(model("sin"), "tiny", nets.inputs(16))) == container.dumps(mine)


def test_values_that_are_not_finite_on_the_host(tmp_path: Path) -> None:
    """0 / 0 of an image that is all zero: an error that names image and tensor, not a wrong answer."""
    net = nets.Vit()
    x = net.op("Div", "x", net.op("ReduceMax", "x", net.ints(1, 2, 3), keepdims=1))
    weight = net.const(net.rng.normal(size=(nets.WIDTH, 3, 4, 4)) / 7)
    y = net.op("Conv", x, weight, kernel_shape=[4, 4], strides=[4, 4])
    y = net.op("Transpose", net.op("Reshape", y, net.ints(1, nets.WIDTH, nets.TOKENS)), perm=[0, 2, 1])
    path = net.save(tmp_path / "m.onnx", net.head(net.block(y)))
    mine = moevit.compile(path, "tiny", nets.inputs(4))
    given = nets.inputs(2)
    given["x"][1] = 0
    with pytest.raises(InputError, match=r"host part 'main@host1'.*not finite for image 1"):
        mine.run(given)


def _part(**changes: object):
    def change(p: Program) -> Program:
        return dataclasses.replace(p, host_parts=(dataclasses.replace(p.host_parts[0], **changes),))

    return change


def _value(**changes: object):
    def change(p: Program) -> Program:
        part = p.host_parts[0]
        return _part(inputs=(dataclasses.replace(part.inputs[0], **changes),))(p)

    return change


def _model(change):
    """With another ONNX model of the host's, and the checksum that fits it."""

    def changed(p: Program) -> Program:
        proto = onnx.load_model_from_string(p.host_data)
        data = (change(proto) or proto).SerializeToString()
        part = dataclasses.replace(p.host_parts[0], size=len(data), sha256=hashlib.sha256(data).hexdigest())
        return dataclasses.replace(p, host_parts=(part,), host_data=data)

    return changed


def _steps(change):
    def changed(p: Program) -> Program:
        pipeline = p.pipelines[0]
        return dataclasses.replace(p, pipelines=(dataclasses.replace(pipeline, steps=change(pipeline.steps)),))

    return changed


def _external(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer.add(name="secret", data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def _nested(proto: onnx.ModelProto) -> None:
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.append(onnx.helper.make_node("Constant", [], ["secret"], value=tensor))


def _broken(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Nonsense"


def _other_shape(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


HOSTILE = {
    "offset": _part(offset=1),
    "negative offset": _part(offset=-1),
    "size": _part(size=1 << 40),
    "checksum": _part(sha256="0" * 64),
    "dtype": _value(dtype="object"),
    "shape": _value(shape=(1, 1 << 40, 1)),
    "other shape": _value(shape=(1, nets.TOKENS, nets.WIDTH + 1)),
    "name": _value(name="nothing"),
    "input of the model": _model(_other_shape),
    "external data": _model(_external),
    "external data in a node": _model(_nested),
    "no model": lambda p: dataclasses.replace(
        _part(size=4, sha256=hashlib.sha256(b"\xff\xff\xff\xff").hexdigest())(p), host_data=b"\xff\xff\xff\xff"
    ),
    "steps in another order": _steps(lambda steps: steps[::-1]),
    "a step twice": _steps(lambda steps: (*steps, steps[0])),
    "a step missing": _steps(lambda steps: steps[:-1]),
    "an unknown step": _steps(lambda steps: (*steps[:-1], dataclasses.replace(steps[-1], name="x"))),
    "an unknown kind": _steps(lambda steps: (*steps[:-1], dataclasses.replace(steps[-1], kind="cloud"))),
    "no pipeline": lambda p: dataclasses.replace(p, pipelines=()),
    "two pipelines of one name": lambda p: dataclasses.replace(p, pipelines=p.pipelines * 2),
    "no output": lambda p: dataclasses.replace(p, pipelines=(dataclasses.replace(p.pipelines[0], outputs=()),)),
    "host data cut": lambda p: dataclasses.replace(p, host_data=p.host_data[:-1]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_containers_are_refused(name: str) -> None:
    plain = container.loads(container.dumps(program("sin")))
    with pytest.raises(ContainerError):
        container.loads(container.dumps(HOSTILE[name](plain)))


def test_a_model_that_onnxruntime_does_not_take() -> None:
    """Known when the session is made; until then a container with it can be looked at."""
    plain = container.loads(container.dumps(program("sin")))
    broken = api.Program(**vars(container.loads(container.dumps(_model(_broken)(plain)))))
    with pytest.raises(ContainerError, match=r"host part 'main@host1': onnxruntime does not take its model"):
        broken.run(nets.inputs(1))


def moevit_cli(*arguments: object) -> dict:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands(tmp_path: Path) -> None:
    data, out = tmp_path / "x.npz", tmp_path / "m.moevit"
    np.savez(data, **nets.inputs(8))  # type: ignore[arg-type]
    answer = moevit_cli("compile", model("after"), "--config", "tiny", "--calib", data, "-o", out)
    assert answer["tasks"] == ["main"] and answer["accelerated_macs"] == 172_032 and answer["host_macs"] == 65_536
    assert {"task", "name", "op", "reason", "way_out"} == set(answer["host_nodes"][0])
    refused = CliRunner().invoke(
        cli, ["compile", str(model("after")), "--config", "tiny", "--calib", str(data), "-o", str(out), "--strict"])
    assert refused.exit_code == 2 and "ConvTranspose" in refused.stderr
    shown = moevit_cli("inspect", out)
    (pipeline,) = shown["pipelines"]
    assert [step["kind"] for step in pipeline["steps"]] == ["machine", "host"]
    assert len(pipeline["host_parts"][0]["nodes"]) == len(answer["host_nodes"])
    text = CliRunner().invoke(cli, ["inspect", str(out)]).stdout
    assert "Steps of task main" in text and "ConvTranspose" in text
    ran = moevit_cli("simulate", out, "--inputs", data, "--check", "--outputs", tmp_path / "y.npz", "--limit", 2)
    assert ran["bit_exact"] and ran["host_ms"] > 0 and ran["task"] == "main"
    with np.load(tmp_path / "y.npz") as written:
        assert [written[name].shape[0] for name in written.files] == [2, 2]
    said = CliRunner().invoke(cli, ["simulate", str(out), "--inputs", str(data), "--backend", "cycle"]).stdout
    assert "measured on this CPU" in said and "Cycles that each layer adds" in said
    figures = moevit_cli("evaluate", out, "--onnx", model("after"), "--inputs", data)
    assert figures["images"] == 8 and figures["cosine"] > 0.99


def test_waveforms_and_timelines_of_several_parts_are_numbered(tmp_path: Path) -> None:
    from moevit.sim.simulate import simulate

    mine = program("sin")
    values = from_arrays({"x": (3, nets.IMAGE, nets.IMAGE)}, nets.inputs(1))
    simulate(mine, values, backend="rtl", timeline=tmp_path / "t.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.1.json", "t.2.json"]


def test_on_a_device(tmp_path: Path) -> None:
    """The driver runs both programs and the host's step between them: the same bytes as the simulator's."""
    data, out = tmp_path / "x.npz", tmp_path / "m.moevit"
    np.savez(data, **nets.inputs(2))  # type: ignore[arg-type]
    program("sin").save(out)
    answer = moevit_cli("run", out, "--device", "rtl", "--inputs", data, "--check", "--outputs", tmp_path / "y.npz")
    assert answer["bit_exact"] and answer["task"] == "main" and answer["images"] == 2
    assert list(answer["host_seconds"]) == ["main@host1"]
    want = program("sin").run(nets.inputs(2), backend="rtl")
    with np.load(tmp_path / "y.npz") as got:
        assert all(np.array_equal(got[name], values) for name, values in want.outputs.items())
    assert answer["checked_values"] == 2 * sum(y.rows * y.channels for t in program("sin").tasks for y in t.outputs)
