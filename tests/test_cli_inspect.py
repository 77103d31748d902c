"""`moevit inspect`, against what the program itself says."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from compile_helpers import ODD, SHIPPED, SMALL, compiled, float_inputs, mixture_graph, pictures

from moevit import container
from moevit.cli import cli, listing
from moevit.compiler.driver import compile_graphs, compile_model
from moevit.compiler.emit import Routing
from moevit.config import CONFIGS
from moevit.isa import Attention, Linear
from moevit.isa.disassemble import assemble
from moevit.program import MEMORY_ACTIVATION

MODEL = SHIPPED / "fashion_vit.onnx"
MIXTURE = SHIPPED.with_name("m3vit") / "depth.onnx"


def moevit(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    path = tmp_path / "shipped.moevit"
    container.save(compiled(MODEL, "tiny").program, path)
    return path


@pytest.fixture
def two_tasks(tmp_path: Path) -> Path:
    """Two equal tasks, whose weights are stored once."""
    program = compile_model(
        {"left": SMALL, "right": SMALL}, CONFIGS["tiny"], lambda task, shapes: float_inputs(SMALL)
    ).program
    path = tmp_path / "two.moevit"
    container.save(program, path)
    return path


@pytest.mark.parametrize("config", ["tiny", "zcu104", "wide"])
@pytest.mark.parametrize("model", [MODEL, ODD])
def test_the_listing_agrees_with_the_program(model: Path, config: str) -> None:
    program = compiled(model, config).program
    (task,) = program.tasks
    layers = listing.layers(program, task)
    assert [layer.name for layer in layers] == [layer.name for layer in task.layers]
    assert sum(layer.macs for layer in layers) == task.macs
    for layer in layers:
        assert (layer.macs == 0) == (layer.ideal_cycles == 0)
        assert layer.utilisation is None or 0 < layer.utilisation <= 1
    tensors = {t.name: t for t in listing.tensors(program, task)}
    assert set(tensors) == {t.name for t in task.tensors}
    for entry in tensors.values():
        c = program.config
        depth = c.activation_words if entry.memory == MEMORY_ACTIVATION else c.operand_words
        assert 0 <= entry.first_word <= entry.last_word < depth
        assert 0 < entry.written < entry.read < task.instructions
        assert entry.real_low <= 0 < entry.real_high


@pytest.mark.parametrize("config", ["tiny", "zcu104"])
def test_words_in_use_at_one_time_overlap_only_where_a_tensor_replaces_its_residual(config: str) -> None:
    program = compiled(ODD, config).program
    (task,) = program.tasks
    tensors = [t for t in listing.tensors(program, task) if t.memory == MEMORY_ACTIVATION]
    inputs = {name: layer.inputs for layer in task.layers for name in layer.outputs}
    for a in tensors:
        for b in tensors:
            apart = a.last_word < b.first_word or b.last_word < a.first_word
            if a.written < b.written < a.read and not apart:
                assert a.name in inputs[b.name], (a, b)


def test_a_mixture_of_experts_counts_tokens_that_are_spread_evenly() -> None:
    images = np.load(MIXTURE.with_name("calib_scenes.npz"))["images"][:4].astype(np.float32) / 255
    program = compile_model({"depth": MIXTURE}, CONFIGS["tiny"], lambda task, shapes: {"image": images}).program
    layers = listing.layers(program, program.tasks[0])
    (gate, up, *_, down) = (layer for layer in layers if ".experts." in layer.name or layer.kind == "route")
    assert (gate.role, gate.shape) == ("norm + gate", "64×96 → 64×8")
    assert (up.role, down.role) == ("expert + gelu", "expert + add")
    assert up.ideal_cycles == down.ideal_cycles == 4 * 12 * 24  # row tiles of 64 tokens to 2 of 8, column tiles, steps
    assert up.utilisation == down.utilisation == 1


def test_image_blocks_do_not_overlap_and_leave_only_padding() -> None:
    program = compiled(ODD, "zcu104").program
    blocks = listing.image_blocks(program)
    at = 0
    for block in blocks:
        assert at <= block.offset < at + 64
        at = block.offset + block.bytes
        assert block.users
    assert len(program.image) - at < 64


def test_ideal_cycles_count_steps_and_drains() -> None:
    config = CONFIGS["tiny"]  # 4 x 8 x 4
    linear = Linear(
        n_rows=10, src=0, src_stride=2, length=9, tiles=5, dst=0, dst_stride=2, key_tile=5, value_tile=5
    )
    assert listing.ideal_cycles(linear, config) == 5 * (4 + 4 + 3)  # 3 steps; four rows drain in 4 cycles
    attention = Attention(
        n_rows=5, src=0, src_stride=2, n_keys=20, heads=2, head_dim=12, key_base=0, key_stride=1,
        value_base=0, value_stride=1, score_mult=1, score_shift=0, out_mult=1, out_shift=0, dst=0,
        dst_stride=2,
    )  # fmt: skip
    scores, context = 3 * (4 + 3), 2 * (5 + 5)
    assert listing.ideal_cycles(attention, config) == 2 * (scores + context)


def test_json_holds_everything(shipped: Path) -> None:
    result = moevit(shipped, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    program = container.load(shipped)
    assert answer["bytes"] == shipped.stat().st_size
    assert answer["config"]["name"] == "tiny"
    assert answer["sources"][0]["file"] == MODEL.name
    assert sum(answer["image"]["by_kind"].values()) == answer["image"]["bytes"] == len(program.image)
    (task,) = answer["tasks"]
    assert task["macs"] == program.tasks[0].macs
    assert task["ideal_cycles"] == sum(layer["ideal_cycles"] for layer in task["layers"])
    assert len(task["disassembly"]) == task["instructions"]
    code = [line.partition("  ; ")[0].split(maxsplit=1)[1] for line in task["disassembly"]]
    assert [assemble(line) for line in code] == program.instructions(program.tasks[0])
    memory = task["memory"]
    assert memory["key_value_words"][0] == memory["key_value_words"][1]


def test_the_report_has_layers_tensors_and_memory(shipped: Path) -> None:
    result = moevit(shipped)
    assert result.exit_code == 0
    program = container.load(shipped)
    for name in ("tiny", MODEL.name, "weight ring", "ideal cycles", "live", "attention"):
        assert name in result.stdout
    for layer in program.tasks[0].layers:
        assert layer.name.partition("#")[0] in result.stdout  # chunks of rows share a line
    assert "LINEAR" not in result.stdout
    assert "Weight image" not in result.stdout


def test_the_disassembly_and_the_blocks_on_request(shipped: Path) -> None:
    lines = moevit(shipped, "--disassembly", "--blocks").stdout.splitlines()
    program = container.load(shipped)
    linears = [i for i in program.instructions(program.tasks[0]) if isinstance(i, Linear)]
    assert sum(" LINEAR wait=" in line for line in lines) == len(linears) > 17
    assert any("END" in line for line in lines)
    assert any("Weight image" in line for line in lines)


def test_tasks_are_shown_one_by_one_and_shared_blocks_once(two_tasks: Path) -> None:
    answer = json.loads(moevit(two_tasks, "--json").stdout)
    assert [task["name"] for task in answer["tasks"]] == ["left", "right"]
    shared = [b for b in answer["image"]["blocks"] if len(b["users"]) > 1]
    assert sum(b["bytes"] for b in shared) == answer["image"]["shared_bytes"] > 0
    one = json.loads(moevit(two_tasks, "--json", "--task", "right").stdout)
    assert [task["name"] for task in one["tasks"]] == ["right"]
    wrong = moevit(two_tasks, "--task", "middle")
    assert wrong.exit_code == 2
    assert "left, right" in wrong.stderr


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "altered", "folder"])
def test_what_is_no_container_is_refused(damage: str, shipped: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.moevit"
    data = bytearray(shipped.read_bytes())
    if damage == "text":
        path.write_text("hello")
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "altered":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "folder":
        path.mkdir()
    result = moevit(path, "--json")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "bad.moevit" in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "ContainerError"


@pytest.fixture
def mixtures(tmp_path: Path) -> Path:
    """Two mixtures of five experts, computed in groups of ten tokens."""
    graph = mixture_graph(form="two")
    program = compile_graphs(
        {"main": graph}, CONFIGS["tiny"], {"main": pictures(graph)}, routing=Routing(rows=10)
    ).program
    path = tmp_path / "mixtures.moevit"
    container.save(program, path)
    np.savez(tmp_path / "images.npz", **pictures(graph, 3))  # type: ignore[arg-type]
    return path


def test_a_mixture_of_experts_is_two_lines(mixtures: Path) -> None:
    lines = moevit(mixtures).stdout.splitlines()
    for name in ("moe0.gate@0 … 20 ", "moe0.experts 0 … 4 ", "moe1.gate@0 … 20 ", "moe1.experts 0 … 4 "):
        assert sum(line.startswith(f"  {name}") for line in lines) == 1, name
    (gate,) = (line for line in lines if "moe0.gate@" in line)
    assert "norm + gate" in gate
    (experts,) = (line for line in lines if "moe1.experts" in line)
    assert "experts + gelu + add" in experts and "25 tokens → 24 → 24" in experts
    assert sum("#hidden" in line for line in lines) == 2
    assert any("#scores" in line and "queue " in line and "0 … 9" in line for line in lines)
    assert any("experts' queues 20 of 512 entries" in line for line in lines)


def test_json_keeps_every_expert(mixtures: Path) -> None:
    (task,) = json.loads(moevit(mixtures, "--json").stdout)["tasks"]
    program = container.load(mixtures)
    layers = {layer["name"]: layer for layer in task["layers"]}
    assert list(layers) == [layer.name for layer in program.tasks[0].layers]
    assert sum(layer["kind"] == "gather" for layer in task["layers"]) == 2 * 3 * 5
    grouped = listing.grouped_layers(program, program.tasks[0])
    for figure in ("macs", "weight_bytes", "ideal_cycles"):
        assert sum(getattr(e, figure) for e in grouped) == sum(layer[figure] for layer in task["layers"])
    assert sorted(n for e in grouped for n in e.instructions) == sorted(
        n for layer in task["layers"] for n in layer["instructions"]
    )
    scores = next(t for t in task["tensors"] if t["name"] == "moe0.out#scores")
    assert (scores["memory"], scores["bytes"]) == ("queue", 25 * 2 * 4)
    assert task["memory"]["queue_entries"] == [20, 512]
    hidden = next(t for t in task["tensors"] if t["name"] == "moe1.out#hidden.3@10")
    assert (hidden["gate"], hidden["expert"]) == ("moe1.out#scores", 3)


def test_simulate_says_which_experts_have_tokens(mixtures: Path) -> None:
    result = CliRunner().invoke(
        cli, ["simulate", str(mixtures), "--inputs", str(mixtures.with_name("images.npz")), "--check"]
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum("gate@0 … 20" in line and " of 5 (" in line for line in lines) == 2
    assert any("of experts with tokens" in line for line in lines)
