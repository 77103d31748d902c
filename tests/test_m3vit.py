"""The M³ViT models: gates, experts, configurations, training and export; and the shipped two-task model."""

import gzip
import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest

from moevit.errors import InputError, ModelError
from moevit.models import m3vit_evaluate, scenes

if TYPE_CHECKING:
    from moevit.models.m3vit import M3ViT, M3ViTConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of 60 training and 20 test images, which a brightness per class tells apart."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 60), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 30, (count, 28, 28)) + 40 + 18 * labels[:, None, None]
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return tmp_path


def run(path: Path | bytes, images: np.ndarray, outputs: list[str] | None = None) -> list[np.ndarray]:
    source = path if isinstance(path, bytes) else str(path)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"image": images})


# The commands as a user types them


@pytest.mark.parametrize("name", ["m3vit_train", "m3vit_export", "m3vit_evaluate", "scenes"])
def test_help_needs_no_torch(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c",
         f"import sys; sys.modules['torch'] = None; import moevit.models.{name} as m; m.main(['--help'])"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"python -m moevit.models.{name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seg.onnx", "depth.onnx", "--threads", "-1"], "--threads must be at least 0, not -1"),
        (["seg.onnx", "depth.onnx", "--seed", "-1"], "--seed must be at least 0, not -1"),
        (["seg.onnx", "depth.onnx", "--count", "0"], "number of scenes must be at least 1, not 0"),
        (["no_such.onnx", "depth.onnx", "--count", "1"], "no such file"),
    ],
)
def test_evaluate_refuses(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises((InputError, ModelError), match=message):
        m3vit_evaluate.main([*arguments, "--data", str(folder)])


def tiny_graph(path: Path, channels: int, *, batch: str | int = "batch", side: int = 64) -> Path:
    """A model whose channel c is the image times c, and minus the image for the last one."""
    scale = np.arange(channels, dtype=np.float32)
    scale[-1] = -1
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "scale"], ["out"])],
        "tiny",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, 1, side, side])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [batch, channels, side, side])],
        [onnx.numpy_helper.from_array(scale.reshape(1, channels, 1, 1), "scale")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("batch", ["batch", 8])
def test_evaluate_measures(
    folder: Path, capsys: pytest.CaptureFixture[str], batch: str | int, tmp_path: Path
) -> None:
    seg = tiny_graph(tmp_path / "seg.onnx", 11, batch=batch)
    depth = tiny_graph(tmp_path / "depth.onnx", 1, batch=batch)
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"seed": 1}')
    data = scenes.compose(scenes.items(folder, "test"), 11, 3)
    subset = tmp_path / "subset.npz"
    scenes.save_scenes(scenes.compose(scenes.items(folder, "train"), 5, 3), subset)
    arguments = [
        str(seg),
        str(depth),
        "--data",
        str(folder),
        "--count",
        "11",
        "--seed",
        "3",
        "--threads",
        "1",
    ]
    assert m3vit_evaluate.main([*arguments, "--subset", str(subset), "--metrics", str(metrics)]) == 0
    printed = capsys.readouterr().out
    assert "on 11 test scenes" in printed
    assert "on 5 scenes of" in printed
    figures = json.loads(metrics.read_text())
    assert figures["seed"] == 1
    assert (figures["onnx_scenes"], figures["subset_scenes"]) == (11, 5)
    predicted = np.where(data.images[:, 0] > 0, 9, 0)
    assert figures["onnx_miou"] == scenes.mean_iou(scenes.confusion(predicted, data.seg))
    want = scenes.rmse(data.images[:, 0] / np.float32(-255), data.depth)
    assert figures["onnx_depth_rmse_m"] == pytest.approx(want, rel=1e-6)
    assert m3vit_evaluate.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["onnx_miou"] == figures["onnx_miou"]


def test_evaluate_refuses_other_models(tmp_path: Path) -> None:
    images = np.zeros((2, 1, 64, 64), np.uint8)
    with pytest.raises(ModelError, match=r"\[batch, 1, 64, 64\], not image"):
        m3vit_evaluate.predict(tiny_graph(tmp_path / "a.onnx", 1, side=32), images, 1, threads=1)
    with pytest.raises(ModelError, match=r"must be \[batch, 11, 64, 64\], not \[2, 1, 64, 64\]"):
        m3vit_evaluate.predict(tiny_graph(tmp_path / "b.onnx", 1), images, 11, threads=1)
    (tmp_path / "c.onnx").write_text("no model")
    with pytest.raises(ModelError, match="cannot load"):
        m3vit_evaluate.predict(tmp_path / "c.onnx", images, 1, threads=1)


# The shipped model


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {w.name: onnx.numpy_helper.to_array(w) for w in proto.graph.initializer}


def test_shipped_files_are_small_and_whole() -> None:
    for task in ("seg", "depth"):
        assert scenes.m3vit_path(f"{task}.onnx").stat().st_size <= 4_000_000
    test, calibration = (scenes.load_scenes(scenes.m3vit_path(f"{n}_scenes.npz")) for n in ("test", "calib"))
    assert scenes.m3vit_path("test_scenes.npz").stat().st_size <= 1 << 20
    assert len(test) >= 200
    assert len(calibration) >= 100
    assert set(np.unique(test.seg)) == set(range(11))
    of_test = {image.tobytes() for image in test.images}
    assert len(of_test) == len(test)
    assert not of_test & {image.tobytes() for image in calibration.images}
    log = scenes.m3vit_path("train_log.csv").read_text().splitlines()
    assert len(log) == 1 + json.loads(scenes.m3vit_path("metrics.json").read_text())["epochs"]
    with pytest.raises(FileNotFoundError, match=r"no file 'x'; it has: .*depth\.onnx"):
        scenes.m3vit_path("x")


@pytest.mark.parametrize(("task", "channels"), [("seg", 11), ("depth", 1)])
def test_shipped_model_interface(task: str, channels: int) -> None:
    proto = onnx.load(scenes.m3vit_path(f"{task}.onnx"), load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 20}
    (image,), (output,) = proto.graph.input, proto.graph.output
    for value, name, shape in (
        (image, "image", ["batch", 1, 64, 64]),
        (output, task, ["batch", channels, 64, 64]),
    ):
        assert value.name == name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == shape
    assert all(w.data_location == onnx.TensorProto.DEFAULT for w in proto.graph.initializer)
    count = [node.op_type for node in proto.graph.node].count
    assert (count("TopK"), count("ScatterElements"), count("LayerNormalization"), count("Gelu")) == (
        3,
        3,
        13,
        6,
    )


def test_shipped_model_is_as_good_as_it_states() -> None:
    metrics = json.loads(scenes.m3vit_path("metrics.json").read_text())
    subset = scenes.load_scenes(scenes.m3vit_path("test_scenes.npz"))
    assert metrics["subset_scenes"] == len(subset)
    miou = m3vit_evaluate.seg_miou(scenes.m3vit_path("seg.onnx"), subset, threads=1)
    rmse = m3vit_evaluate.depth_rmse(scenes.m3vit_path("depth.onnx"), subset, threads=1)
    assert miou == pytest.approx(metrics["subset_miou"], abs=2e-4)  # a few pixels differ between processors
    assert rmse == pytest.approx(metrics["subset_depth_rmse_m"], rel=1e-4)
    assert metrics["onnx_scenes"] >= 1000
    assert metrics["onnx_miou"] == pytest.approx(metrics["torch_miou"], abs=2e-4)
    assert metrics["onnx_depth_rmse_m"] == pytest.approx(metrics["torch_depth_rmse_m"], rel=1e-3)
    assert abs(metrics["subset_miou"] - metrics["onnx_miou"]) <= 0.04
    assert metrics["onnx_miou"] >= 0.48
    assert metrics["onnx_depth_rmse_m"] <= 0.32


def test_shipped_tasks_share_their_tensors() -> None:
    """All but the three gates and the decoder are the same bytes in both files."""
    seg, depth = (arrays(onnx.load(scenes.m3vit_path(f"{task}.onnx"))) for task in ("seg", "depth"))
    other = {(a.dtype.str, a.shape, a.tobytes()) for a in depth.values()}
    weights = [a for a in seg.values() if a.dtype == np.float32 and a.size > 1]
    own = [a for a in weights if (a.dtype.str, a.shape, a.tobytes()) not in other]
    assert sorted(a.shape for a in own) == [(96, 8)] * 3 + [(96, 704), (704,)]
    assert sum(a.nbytes for a in weights) - sum(a.nbytes for a in own) > 0.9 * sum(a.nbytes for a in weights)


@pytest.mark.parametrize("task", ["seg", "depth"])
def test_shipped_gates_choose_two_of_eight(task: str) -> None:
    proto = onnx.load(scenes.m3vit_path(f"{task}.onnx"))
    softmaxes = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "Softmax"}
    names = []
    for node in proto.graph.node:
        if node.op_type == "TopK":
            names.append(softmaxes[node.input[0]])
        elif node.op_type == "ScatterElements":
            names.append(node.output[0])
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    images = scenes.load_scenes(scenes.m3vit_path("test_scenes.npz")).images[:64]
    got = run(proto.SerializeToString(), images.astype(np.float32) / 255, names)
    for logits, gate in zip(got[0::2], got[1::2], strict=True):
        assert gate.shape == (64, 64, 8)
        assert ((gate > 0).sum(-1) == 2).all()
        want = routed(logits.reshape(-1, 8), 2, "softmax_topk", 0.0).reshape(gate.shape)
        np.testing.assert_allclose(gate, want, atol=1e-6)
        assert ((gate > 0).sum((0, 1)) > 0).sum() >= 4  # more than one pair of experts is in use


def test_shipped_scenes_can_be_made_again() -> None:
    data = Path("/usr/share/datasets/fashion-mnist")
    if not data.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    for name, split in (("test", "test"), ("calib", "train")):
        have = scenes.load_scenes(scenes.m3vit_path(f"{name}_scenes.npz"))
        want = scenes.compose(scenes.items(data, split), len(have), scenes.TEST_SEED)
        for field in ("images", "seg", "depth"):
            assert np.array_equal(getattr(have, field), getattr(want, field))


# What needs torch: gates


def small(**change: object) -> "M3ViTConfig":
    """A configuration that takes no time, with a class token and three tasks."""
    from moevit.models.m3vit import M3ViTConfig

    fields: dict[str, object] = {
        "image_height": 16, "image_width": 24, "channels": 3, "patch_size": 8, "dim": 16, "depth": 3, "heads": 2,
        "hidden": 24, "moe_layers": (0, 2), "experts": 5, "expert_hidden": 12, "top_k": 2,
        "tasks": (("seg", 4), ("depth", 1), ("edge", 2)), "task_dim": 6,
    }  # fmt: skip
    return M3ViTConfig(**(fields | change))  # type: ignore[arg-type]


def random_small(**change: object) -> "M3ViT":
    import torch

    from moevit.models.m3vit import M3ViT

    torch.manual_seed(3)
    model = M3ViT(small(**change))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def routed(logits: np.ndarray, top_k: int, order: str, threshold: float) -> np.ndarray:
    """`route` in NumPy; of equal values the first are taken."""
    gate = np.zeros_like(logits)
    for token, row in enumerate(logits):
        best = np.argsort(-row, kind="stable")[:top_k]
        score = softmax(row)[best] if order == "softmax_topk" else softmax(row[best])
        gate[token, best] = np.where(score >= threshold, score, 0)
    return gate


@pytest.mark.torch
@pytest.mark.parametrize("order", ["softmax_topk", "topk_softmax"])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4])
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (5, 1), (8, 2), (16, 4), (6, 6)])
def test_route_against_numpy(order: str, threshold: float, experts: int, top_k: int) -> None:
    import torch

    from moevit.models.m3vit import route

    logits = np.random.default_rng(experts).normal(0, 2, (200, experts)).astype(np.float32)
    got = route(torch.from_numpy(logits), top_k=top_k, order=order, threshold=threshold).numpy()
    np.testing.assert_allclose(got, routed(logits, top_k, order, threshold), atol=1e-6)
    assert ((got > 0).sum(1) <= top_k).all()
    if order == "topk_softmax" and threshold == 0:
        np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)


@pytest.mark.torch
def test_route_of_saturated_logits() -> None:
    import torch

    from moevit.models.m3vit import route

    logits = torch.tensor([[1e4, 0, -1e4], [-3e38, -3e38, 3e38]])
    for order in ("softmax_topk", "topk_softmax"):
        got = route(logits, top_k=2, order=order)
        assert got.tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="order must be one of softmax_topk, topk_softmax, not 'none'"):
        route(logits, top_k=2, order="none")


@pytest.mark.torch
def test_balance_loss() -> None:
    import torch

    from moevit.models.m3vit import balance_loss, route

    def cv2(x: np.ndarray) -> float:
        return x.var(ddof=1) / x.mean() ** 2

    rng = np.random.default_rng(2)
    clean = rng.normal(0, 1, (50, 6)).astype(np.float32)
    gate = route(torch.from_numpy(clean), top_k=2)
    got = balance_loss(gate, torch.from_numpy(clean), torch.from_numpy(clean), top_k=2, noise_std=0)
    want = cv2(gate.numpy().sum(0)) + cv2((gate.numpy() > 0).sum(0))
    assert got.item() == pytest.approx(want, rel=1e-5)

    # With noise the load is how often an expert would be chosen if its own noise were drawn anew.
    std = 0.5
    noisy = clean + std * rng.normal(0, 1, clean.shape).astype(np.float32)
    draws = rng.normal(0, std, (4000, *clean.shape))
    load = np.zeros(6)
    for expert in range(6):
        second = np.sort(np.delete(noisy, expert, 1), 1)[:, -2]
        load[expert] = (clean[:, expert] + draws[..., expert] > second).mean(0).sum()
    clean_t, noisy_t = torch.from_numpy(clean).requires_grad_(), torch.from_numpy(noisy)
    gate = route(noisy_t, top_k=2)
    loss = balance_loss(gate, clean_t, noisy_t, top_k=2, noise_std=std)
    assert loss.item() == pytest.approx(cv2(gate.numpy().sum(0)) + cv2(load), rel=0.02)
    loss.backward()
    assert clean_t.grad is not None
    assert clean_t.grad.abs().sum() > 0

    even = torch.eye(4).repeat(3, 1)
    assert balance_loss(even, even, even, top_k=1, noise_std=0).item() == 0
    one = torch.zeros(12, 4)
    one[:, 2] = 1
    assert balance_loss(one, one, one, top_k=1, noise_std=0).item() == pytest.approx(8)  # 4 + 4
    alone = torch.ones(7, 1)
    assert balance_loss(alone, alone, alone, top_k=1, noise_std=1).item() == 0


@pytest.mark.torch
def test_noise_only_in_training() -> None:
    import torch

    model = random_small()
    image = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(model(image, "seg"), model(image, "seg"))
        model.train()
        assert not torch.equal(model(image, "seg"), model(image, "seg"))
        assert model.balance.item() > 0
        model.config = replace(model.config, noise_std=0.0)
        assert torch.equal(model(image, "seg"), model(image, "seg"))


@pytest.mark.torch
def test_balance_reaches_the_gates() -> None:
    import torch

    for gate in ("task", "shared"):
        model = random_small(gate=gate).train()
        model(torch.rand(2, 3, 16, 24), "depth")
        model.balance.backward()
        for layer in (0, 2):
            linear = model.blocks[layer].gate.linear
            grads = [part.weight.grad is not None and part.weight.grad.abs().sum() > 0 for part in linear]
            assert grads == ([False, True, False] if gate == "task" else [True])


# Experts and tasks


@pytest.mark.torch
def test_experts_sparse_and_dense_are_equal() -> None:
    import torch

    from moevit.models.m3vit import Experts, route

    torch.manual_seed(1)
    experts = Experts(small())
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
        x = torch.randn(3, 7, 16)
        for logits in (torch.randn(3, 7, 5), torch.tensor([9.0, 8, 0, 0, 0]).expand(3, 7, 5)):
            gate = route(logits, top_k=2)
            sparse = experts(x.reshape(-1, 16), gate.reshape(-1, 5)).reshape(x.shape)
            want = torch.zeros_like(x)
            for b in range(3):
                for n in range(7):
                    for e in range(5):
                        h = x[b, n] @ experts.weight1[e] + experts.bias1[e, 0]
                        y = torch.nn.functional.gelu(h) @ experts.weight2[e] + experts.bias2[e, 0]
                        want[b, n] += gate[b, n, e] * y
            torch.testing.assert_close(sparse, want, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(experts.dense(x, gate), want, atol=1e-5, rtol=1e-5)


@pytest.mark.torch
def test_decoder_puts_patches_where_they_belong() -> None:
    import torch

    model = random_small()
    config = model.config
    with torch.no_grad():
        decoder = model.decoders["edge"]
        decoder.weight.zero_()
        decoder.bias.copy_(torch.arange(128.0))  # [channel, row, column] of a patch
        got = model(torch.rand(1, 3, 16, 24), "edge")[0].numpy()
    assert got.shape == (2, 16, 24)
    patch = np.arange(128.0).reshape(2, 8, 8)
    assert np.array_equal(got, np.tile(patch, (1, 2, 3)))
    assert config.patches == 6
    assert config.tokens == 7


@pytest.mark.torch
def test_unknown_task() -> None:
    import torch

    from moevit.models.m3vit import TaskModel

    model = random_small()
    with pytest.raises(ValueError, match="task must be one of seg, depth, edge, not 'flow'"):
        model(torch.rand(1, 3, 16, 24), "flow")
    with pytest.raises(ValueError, match="task must be one of"):
        TaskModel(model, "flow")
    with pytest.raises(ValueError, match="form must be one of stacked, unrolled, not 'sparse'"):
        TaskModel(model, "seg", form="sparse")


# Configurations


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be a positive integer, not 0"),
        ({"dim": 16.0}, r"dim must be a positive integer, not 16\.0"),
        ({"experts": True}, "experts must be a positive integer, not True"),
        ({"heads": 3}, "dim must be a multiple of heads 3, not 16"),
        ({"image_width": 30}, "image_width must be a multiple of patch_size 8, not 30"),
        ({"top_k": 6}, "top_k must be at most experts 5, not 6"),
        ({"moe_layers": (1, 3)}, r"ascending and below depth 3, not \[1, 3\]"),
        ({"moe_layers": (1, 1)}, r"ascending and below depth 3, not \[1, 1\]"),
        ({"tasks": ()}, "different names"),
        ({"tasks": (("a", 1), ("a", 2))}, "different names"),
        ({"tasks": (("a/b", 1),)}, "identifiers"),
        ({"tasks": (("a", 0),)}, "channels of task a must be a positive integer, not 0"),
        ({"gate": "none"}, "gate must be one of task, shared, not 'none'"),
        ({"order": "none"}, "order must be one of"),
        ({"threshold": 1.0}, r"threshold must be at least 0 and below 1, not 1\.0"),
        ({"noise_std": -1.0}, r"noise_std must be finite and at least 0, not -1\.0"),
    ],
)
def test_configuration_is_validated(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**change)


@pytest.mark.torch
def test_every_configuration_has_its_shapes() -> None:
    import torch

    from moevit.models.m3vit import CONFIGS, M3ViT, TaskModel

    tokens = {
        "scene": 64, "tiny": 129, "small_nyud": 1201, "small_pascal": 1025, "base_nyud": 1201, "base_pascal": 1025,
    }  # fmt: skip
    assert {name: config.tokens for name, config in CONFIGS.items()} == tokens
    for config in CONFIGS.values():
        with torch.device("meta"):
            model = M3ViT(config)
            image = torch.zeros(1, config.channels, config.image_height, config.image_width)
            for task, channels in config.tasks:
                got = TaskModel(model, task)(image)
                assert got.shape == (1, channels, config.image_height, config.image_width)


@pytest.mark.torch
def test_tiny_has_the_published_parameters() -> None:
    import torch

    from moevit.models.m3vit import CONFIGS, TINY, M3ViT

    assert CONFIGS["tiny"] is TINY
    assert (TINY.head_dim, TINY.depth, TINY.moe_layers) == (64, 12, (1, 3, 5, 7, 9, 11))
    assert (TINY.experts, TINY.expert_hidden, TINY.top_k, TINY.hidden) == (16, 384, 2, 768)
    with torch.device("meta"):
        model = M3ViT(TINY)
    attention = 192 * 576 + 576 + 192 * 192 + 192
    dense = 192 * 768 + 768 + 768 * 192 + 192
    experts = 16 * (192 * 384 + 384 + 384 * 192 + 192)
    gates = 2 * 192 * 16
    embedding = 3 * 16 * 16 * 192 + 192 + 192 + 129 * 192
    decoders = 192 * 256 * 20 + 256 * 20
    want = embedding + 12 * (attention + 4 * 192) + 6 * dense + 6 * (experts + gates) + 2 * 192 + decoders
    assert sum(p.numel() for p in model.parameters()) == want == 18_972_224


@pytest.mark.torch
def test_scene_suits_the_array() -> None:
    from moevit.models.m3vit import SCENE

    assert SCENE.head_dim == 32
    assert not any(n % 32 for n in (SCENE.dim, SCENE.hidden, SCENE.expert_hidden, SCENE.patch_size**2))
    assert dict(SCENE.tasks) == {"seg": len(scenes.CLASSES), "depth": 1}
    assert (SCENE.image_height, SCENE.image_width, SCENE.channels) == (scenes.SIDE, scenes.SIDE, 1)


# Checkpoints and export


@pytest.mark.torch
def test_checkpoint_round_trip_and_bad_ones(tmp_path: Path) -> None:
    import torch

    from moevit.models.m3vit import load_checkpoint, save_checkpoint

    model = random_small(gate="shared", threshold=0.25)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(model, str(path))
    again = load_checkpoint(str(path))
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    data = torch.load(path, weights_only=True)
    for change in ({"dim": 32}, {"dim": 17}, {"colour": 1}, {"tasks": None}):
        torch.save(data | {"config": data["config"] | change}, path)
        with pytest.raises(ModelError, match="do not fit together"):
            load_checkpoint(str(path))
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="no format"):
        load_checkpoint(str(path))
    torch.save(Path, path)  # a global that is not on the list of the safe ones
    with pytest.raises(ModelError, match="not a checkpoint"):
        load_checkpoint(str(path))
    with pytest.raises(ModelError, match="no such file"):
        load_checkpoint(str(tmp_path / "none.pt"))


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.torch
@pytest.mark.parametrize("form", ["stacked", "unrolled"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"gate": "shared"},
        {"order": "topk_softmax", "class_token": False},
        {"threshold": 0.25, "gate": "shared", "top_k": 4},
        {"order": "topk_softmax", "threshold": 0.3},
    ],
)
def test_export_equals_torch(tmp_path: Path, form: str, change: dict[str, object]) -> None:
    import torch

    from moevit.models.m3vit_export import export

    model = random_small(**change)
    tasks = dict(model.config.tasks)
    names = tuple(tasks) if not change else ("edge",)
    paths = export(model, tmp_path, form=form, tasks=() if not change else names)
    assert [path.name for path in paths] == [f"{name}.onnx" for name in names]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path, task in zip(paths, names, strict=True):
        channels = tasks[task]
        proto = onnx.load(path)
        assert {entry.domain for entry in proto.opset_import} == {""}
        assert b"stack_trace" not in path.read_bytes()
        (image,), (output,) = proto.graph.input, proto.graph.output
        for value, name, shape in (
            (image, "image", ["batch", 3, 16, 24]),
            (output, task, ["batch", channels, 16, 24]),
        ):
            assert value.name == name
            assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == shape
        count = ops(proto).count
        assert count("TopK") == count("ScatterElements") == 2
        assert count("LayerNormalization") == 2 * 3 + 1
        assert count("Gelu") == (3 if form == "stacked" else 1 + 2 * 5)
        assert count("Erf") == 0
        assert count("GreaterOrEqual") == (2 if model.config.threshold else 0)
        for batch in (1, 4):
            pixels = torch.rand(batch, 3, 16, 24)
            with torch.no_grad():
                want = model(pixels, task).numpy()
            np.testing.assert_allclose(run(path, pixels.numpy())[0], want, atol=2e-5, rtol=1e-4)


def block(proto: onnx.ModelProto) -> list[tuple[str, list[int]]]:
    """Operators from the first gate to the sum of its experts, each with its output's shape (batch is 0)."""
    graph = proto.graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    names = ops(proto)
    last = names.index("ReduceSum")
    first = max(i for i, name in enumerate(names[:last]) if name == "LayerNormalization") + 1
    nodes = graph.node[first : last + 1]
    return [(node.op_type, shapes[node.output[0]]) for node in nodes]


@pytest.mark.torch
def test_the_documented_pattern_is_what_is_exported(tmp_path: Path) -> None:
    from moevit.models.m3vit_export import export

    experts = [
        ("Unsqueeze", [0, 1, 7, 16]),
        ("MatMul", [0, 5, 7, 12]),
        ("Add", [0, 5, 7, 12]),
        ("Gelu", [0, 5, 7, 12]),
        ("MatMul", [0, 5, 7, 16]),
        ("Add", [0, 5, 7, 16]),
        ("Transpose", [0, 5, 7]),
        ("Unsqueeze", [0, 5, 7, 1]),
        ("Mul", [0, 5, 7, 16]),
        ("ReduceSum", [0, 7, 16]),
    ]
    zeros = [("Shape", [3]), ("Expand", [0, 7, 5])]
    (path,) = export(random_small(), tmp_path, tasks=("depth",))
    first = [("MatMul", [0, 7, 5]), ("Softmax", [0, 7, 5]), ("TopK", [0, 7, 2])]
    assert block(onnx.load(path)) == [*first, *zeros, ("ScatterElements", [0, 7, 5]), *experts]
    model = random_small(gate="shared", order="topk_softmax", threshold=0.1)
    (path,) = export(model, tmp_path, tasks=("depth",))
    first = [("MatMul", [0, 7, 5]), ("Add", [0, 7, 5]), ("TopK", [0, 7, 2]), ("Softmax", [0, 7, 2])]
    prune = [("GreaterOrEqual", [0, 7, 2]), ("Where", [0, 7, 2])]
    assert block(onnx.load(path)) == [*first, *prune, *zeros, ("ScatterElements", [0, 7, 5]), *experts]


@pytest.mark.torch
def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from moevit.models.m3vit_export import main

    assert main(["--random", "scene", "-o", str(tmp_path), "--task", "depth", "--seed", "4"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'depth.onnx'}: ")
    first = (tmp_path / "depth.onnx").read_bytes()
    assert main(["--random", "scene", "-o", str(tmp_path), "--task", "depth", "--seed", "4"]) == 0
    assert (tmp_path / "depth.onnx").read_bytes() == first
    with pytest.raises(InputError, match=r"--random must be one of scene, tiny.*, not 'huge'"):
        main(["--random", "huge", "-o", str(tmp_path)])
    with pytest.raises(InputError, match="task must be one of seg, depth, not 'flow'"):
        main(["--random", "scene", "-o", str(tmp_path), "--task", "flow"])
    with pytest.raises(SystemExit):
        main(["-o", str(tmp_path)])


@pytest.mark.torch
def test_train_writes_the_same_for_the_same_seed(folder: Path) -> None:
    import torch

    from moevit.models.m3vit import load_checkpoint
    from moevit.models.m3vit_train import main

    threads = torch.get_num_threads()
    states = []
    try:
        for number, seed in enumerate((3, 3, 4)):
            out = folder / f"run{number}"
            arguments = ["--data", folder, "-o", out, "--epochs", 2, "--batch", 6, "--threads", 1]
            arguments += ["--scenes", 14, "--validation", 4, "--test", 5, "--seed", seed]
            assert main([str(a) for a in arguments]) == 0
            states.append(load_checkpoint(str(out / "checkpoint.pt")).state_dict())
            metrics = json.loads((out / "metrics.json").read_text())
            assert (metrics["seed"], metrics["torch_scenes"], metrics["scenes_per_epoch"]) == (seed, 5, 12)
            log = (out / "train_log.csv").read_text().splitlines()
            assert len(log) == 3
            assert log[0].startswith("epoch,learning_rate,seg_loss,depth_loss,balance_loss,")
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["embed.patch.weight"], states[2]["embed.patch.weight"])
    for arguments, message in (
        (["--batch", "2"], "batch must be at least 3, not 2"),
        (["--batch", "9", "--scenes", "8"], "at most the 8 scenes of an epoch, not 9"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
    ):
        with pytest.raises(InputError, match=message):
            main(["--data", str(folder), "-o", str(folder / "bad"), *arguments])
