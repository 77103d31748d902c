"""The shipped model, the data reader and the commands of models/."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from moevit.errors import InputError, ModelError
from moevit.models import FASHION_VIT, fashion_vit_path
from moevit.models import evaluate as evaluate_command
from moevit.models import subset as subset_command
from moevit.models.fashion_mnist import CLASSES, ImageSet, load, read_idx
from moevit.models.subset import draw, load_subset, save_subset

FIXTURES = Path(__file__).parent / "fixtures"
GOOD = sorted(path.stem for path in FIXTURES.glob("*.onnx") if not path.stem.startswith("bad_"))


def idx(array: np.ndarray, element_type: int = 8) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, element_type, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of 300 training and 100 test images, which a brightness per class tells apart."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 300), ("t10k", 100)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 30, (count, 28, 28)) + 20 * labels[:, None, None]
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"moevit.models.{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


# The data reader


def test_reads_gzipped_and_plain_files(folder: Path) -> None:
    test = load(folder, "test")
    assert test.images.dtype == np.uint8
    assert test.images.shape == (100, 28, 28)
    assert test.labels.dtype == np.int64
    assert test.labels.tolist() == [i % 10 for i in range(100)]
    assert test.images[7].min() >= 140
    assert len(load(folder, "train")) == 300


def test_missing_folder_and_files_say_how_to_get_the_data(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder.*dataset-fashion-mnist"):
        load(tmp_path / "nowhere", "test")
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"neither train-labels-idx1-ubyte\.gz nor.*dataset-fashion-mnist"):
        load(folder, "train")
    assert len(load(folder, "test")) == 100


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(ValueError, match="'train' or 'test', not 'val'"):
        load(folder, "val")


IMAGES = idx(np.zeros((3, 28, 28)))


@pytest.mark.parametrize(
    ("data", "dims", "message"),
    [
        (b"", 3, "not an IDX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), 3, "not an IDX file"),
        (IMAGES[:10], 3, "not an IDX file"),
        (IMAGES[:-1], 3, "3x28x28 = 2352 bytes of data, but it holds 2351"),
        (IMAGES + b"\0", 3, "holds 2353"),
        (IMAGES, 1, "must have 1 dimension, not 3"),
        (idx(np.zeros((3, 28, 28)), element_type=0x0D), 3, "must be 0x08"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), 3, "but it holds 0"),
    ],
)
def test_damaged_idx(tmp_path: Path, data: bytes, dims: int, message: str) -> None:
    for name, content in (("file", data), ("file.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read_idx(tmp_path / name, dims)
        assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("damage", ["not_gzip", "cut", "flipped"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    data = bytearray(gzip.compress(idx(np.random.default_rng(1).integers(0, 256, (3, 28, 28)))))
    if damage == "not_gzip":
        data = bytearray(IMAGES)
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 0xFF
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(path, 3)


def test_gzip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(80 << 20)))
    with pytest.raises(InputError, match="more than 64 MiB"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 28, 28)), np.zeros(4), "3 images, but .* has 4 labels"),
        (np.zeros((3, 27, 28)), np.zeros(3), "28x28, not 27x28"),
        (np.zeros((0, 28, 28)), np.zeros(0), "holds no image"),
        (np.zeros((3, 28, 28)), np.full(3, 10), "0 to 9, not 10"),
    ],
)
def test_images_and_labels_must_fit(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(InputError, match=message):
        load(tmp_path, "test")


# Subsets


def test_subset_is_even_mixed_and_seeded(folder: Path) -> None:
    train = load(folder, "train")
    subset = draw(train, 53, seed=5)
    counts = np.bincount(subset.labels, minlength=10)
    assert counts.tolist() == [6, 6, 6, 5, 5, 5, 5, 5, 5, 5]
    assert len(set(subset.labels[:10].tolist())) > 1
    assert len({image.tobytes() for image in subset.images}) == 53
    again, other = draw(train, 53, seed=5), draw(train, 53, seed=6)
    assert np.array_equal(subset.images, again.images)
    assert not np.array_equal(subset.images, other.images)


@pytest.mark.parametrize(("count", "message"), [(0, "at least 1"), (1000, "100 images of class 0")])
def test_subset_count(folder: Path, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(load(folder, "train"), count, seed=0)


def test_subset_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "some.npz"
    assert subset_command.main(["--data", str(folder), "-o", str(out), "--count", "20"]) == 0
    assert "20 test images" in capsys.readouterr().out
    subset = load_subset(out)
    assert sorted(np.bincount(subset.labels)) == [2] * 10
    first = out.read_bytes()
    subset_command.main(["--data", str(folder), "-o", str(out), "--count", "20"])
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 28, 28), np.uint8)}, "labels"),
        ({"images": np.zeros((2, 28, 28), np.float32), "labels": np.zeros(2, np.int64)}, "uint8"),
        ({"images": np.zeros((2, 28, 28), np.uint8), "labels": np.zeros(3, np.int64)}, "int64"),
        ({"images": np.array([None]), "labels": np.zeros(1, np.int64)}, "npz file"),
    ],
)
def test_bad_subset_file(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_subset(tmp_path / "x.npz")


def test_subset_file_missing_or_no_npz(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_subset(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"no zip file")
    with pytest.raises(InputError, match="not an npz file"):
        load_subset(tmp_path / "x.npz")


# The shipped model


def test_shipped_files_are_small_and_whole() -> None:
    assert fashion_vit_path().stat().st_size <= 3 << 20
    assert fashion_vit_path("test_images.npz").stat().st_size <= 1 << 20
    assert fashion_vit_path("checkpoint.pt").stat().st_size <= 1 << 20
    test, calibration = (load_subset(fashion_vit_path(f"{name}_images.npz")) for name in ("test", "calib"))
    assert np.bincount(test.labels).tolist() == [50] * 10
    assert len(calibration) >= 200
    of_test = {image.tobytes() for image in test.images}
    assert not of_test & {image.tobytes() for image in calibration.images}
    with pytest.raises(FileNotFoundError, match=r"no file 'x'; it has: .*fashion_vit\.onnx"):
        fashion_vit_path("x")


def test_shipped_model_interface() -> None:
    proto = onnx.load(fashion_vit_path(), load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 20
    (image,), (logits,) = proto.graph.input, proto.graph.output
    for value, name, shape in ((image, "image", ["batch", 1, 28, 28]), (logits, "logits", ["batch", 10])):
        assert value.name == name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == shape
    assert all(w.data_location == onnx.TensorProto.DEFAULT for w in proto.graph.initializer)


def test_shipped_model_has_the_accuracy_it_states() -> None:
    metrics = json.loads(fashion_vit_path("metrics.json").read_text())
    subset = load_subset(fashion_vit_path("test_images.npz"))
    assert metrics["subset_images"] == len(subset)
    assert evaluate_command.top1(fashion_vit_path(), subset, threads=1) == metrics["subset_top1"]
    assert metrics["onnx_images"] == 10_000
    assert metrics["onnx_top1"] >= 0.85
    assert abs(metrics["onnx_top1"] - metrics["torch_top1"]) <= 0.0005
    # Three standard errors of a sample of this size.
    p = metrics["onnx_top1"]
    assert abs(metrics["subset_top1"] - p) <= 3 * (p * (1 - p) / len(subset)) ** 0.5


def test_evaluate_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = folder / "metrics.json"
    metrics.write_text('{"seed": 1, "onnx_top1": 7}')
    arguments = [str(fashion_vit_path()), "--data", str(folder), "--threads", "1", "--metrics", str(metrics)]
    subset = ["--subset", str(fashion_vit_path("test_images.npz"))]
    assert evaluate_command.main([*arguments, *subset, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["onnx_images"] == 100
    assert figures["subset_top1"] == json.loads(fashion_vit_path("metrics.json").read_text())["subset_top1"]
    assert json.loads(metrics.read_text()) == {"seed": 1, **figures}
    metrics.write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        evaluate_command.main(arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad_truncated", "cannot load"),
        ("bad_text", "cannot load"),
        ("missing", "no such file"),
        ("dynamo20_hf", r"\[batch, 1, 28, 28\], not pixel_values"),
    ],
)
def test_evaluate_refuses_other_models(name: str, message: str) -> None:
    images = ImageSet(images=np.zeros((1, 28, 28), np.uint8), labels=np.zeros(1, np.int64))
    with pytest.raises(ModelError, match=message):
        evaluate_command.top1(FIXTURES / f"{name}.onnx", images, threads=1)


def test_fixed_batch_is_padded(tmp_path: Path) -> None:
    proto = onnx.load(fashion_vit_path())
    subset = load_subset(fashion_vit_path("test_images.npz"))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "fixed.onnx")
    got = evaluate_command.logits(tmp_path / "fixed.onnx", subset.images[:11], threads=1)
    want = evaluate_command.logits(fashion_vit_path(), subset.images[:11], threads=1)
    np.testing.assert_allclose(got, want, atol=1e-4)


# The commands as a user types them


@pytest.mark.parametrize("name", ["train", "export", "evaluate", "subset"])
def test_help_needs_no_torch(name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m moevit.models.{name}" in done.stdout


def test_user_error_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = command("subset", "--data", tmp_path, "-o", tmp_path / "x.npz")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}: has neither t10k-images")


# The fixtures


def test_every_fixture_is_in_the_table() -> None:
    table = (FIXTURES / "README.md").read_text()
    for path in FIXTURES.glob("*.onnx"):
        assert f"| {path.stem} |" in table or f"| {path.name} |" in table
    assert len(GOOD) >= 20
    assert sum(path.stat().st_size for path in FIXTURES.iterdir() if path.is_file()) < 2.75e6


@pytest.mark.parametrize("name", GOOD)
def test_fixture_runs(name: str) -> None:
    path = FIXTURES / f"{name}.onnx"
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    with np.load(FIXTURES / f"{name}.npz") as file:
        assert file.files == [entry.name]
        inputs = file[entry.name]
    assert inputs.dtype == np.float32
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    assert len(inputs) >= 4
    step = entry.shape[0] if isinstance(entry.shape[0], int) else len(inputs)
    assert list(inputs.shape[1:]) == entry.shape[1:]
    for start in range(0, len(inputs), step):
        (logits,) = session.run(None, {entry.name: inputs[start : start + step]})
        assert logits.shape == (step, 10)
        assert np.isfinite(logits).all()
        assert 0.1 < np.abs(logits).max() < 30


# What needs torch


@pytest.mark.torch
@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 20), ("dynamo", 18), ("torchscript", 17)])
def test_export_round_trip(tmp_path: Path, exporter: str, opset: int) -> None:
    import torch

    from moevit.models.export import main as export_main
    from moevit.models.vit import load_checkpoint

    out = tmp_path / "model.onnx"
    checkpoint = fashion_vit_path("checkpoint.pt")
    assert export_main([str(checkpoint), "-o", str(out), "--exporter", exporter, "--opset", str(opset)]) == 0
    images = load_subset(fashion_vit_path("test_images.npz")).images[:32]
    with torch.inference_mode():
        want = load_checkpoint(str(checkpoint))(torch.from_numpy(images.astype(np.float32)[:, None] / 255))
    np.testing.assert_allclose(evaluate_command.logits(out, images, threads=1), want.numpy(), atol=2e-4)
    assert b"stack_trace" not in out.read_bytes()


@pytest.mark.torch
def test_shipped_model_is_the_shipped_checkpoint() -> None:
    import torch

    from moevit.models.vit import load_checkpoint

    images = load_subset(fashion_vit_path("test_images.npz")).images
    with torch.inference_mode():
        model = load_checkpoint(str(fashion_vit_path("checkpoint.pt")))
        want = model(torch.from_numpy(images.astype(np.float32)[:, None] / 255)).numpy()
    np.testing.assert_allclose(
        evaluate_command.logits(fashion_vit_path(), images, threads=1), want, atol=2e-4
    )


@pytest.mark.torch
def test_export_of_an_opset_torch_cannot_write(tmp_path: Path) -> None:
    from moevit.models.export import export

    with pytest.raises(InputError, match="exporter must be one of dynamo, torchscript, not 'magic'"):
        export(fashion_vit_path("checkpoint.pt"), tmp_path / "x.onnx", exporter="magic")
    with pytest.raises(InputError, match="opset"):
        export(fashion_vit_path("checkpoint.pt"), tmp_path / "x.onnx", opset=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
def test_train_writes_the_same_for_the_same_seed(folder: Path) -> None:
    import torch

    from moevit.models.train import main as train_main
    from moevit.models.vit import load_checkpoint

    threads = torch.get_num_threads()
    states = []
    try:
        for run, seed in enumerate((3, 3, 4)):
            out = folder / f"run{run}"
            arguments = ["--data", folder, "-o", out, "--epochs", 2, "--batch", 50, "--threads", 1]
            arguments += ["--validation", 50, "--limit", 200, "--seed", seed]
            assert train_main([str(a) for a in arguments]) == 0
            states.append(load_checkpoint(str(out / "checkpoint.pt")).state_dict())
            metrics = json.loads((out / "metrics.json").read_text())
            assert metrics["seed"] == seed
            assert metrics["torch_images"] == 100
            assert len((out / "train_log.csv").read_text().splitlines()) == 3
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


@pytest.mark.torch
def test_bad_checkpoints(tmp_path: Path) -> None:
    import torch

    from moevit.models.vit import load_checkpoint

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ModelError, match="no such file"):
        load_checkpoint(str(path))
    whole = fashion_vit_path("checkpoint.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not a checkpoint"):
        load_checkpoint(str(path))
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="no format"):
        load_checkpoint(str(path))
    data = torch.load(fashion_vit_path("checkpoint.pt"), weights_only=True)
    for change in ({"dim": 32}, {"dim": 65}, {"colour": 1}):
        torch.save(data | {"config": data["config"] | change}, path)
        with pytest.raises(ModelError, match="do not fit together"):
            load_checkpoint(str(path))
    torch.save(Path, path)  # a global that is not on the list of the safe ones
    with pytest.raises(ModelError, match="not a checkpoint"):
        load_checkpoint(str(path))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be a positive integer, not 0"),
        ({"dim": 64.0}, r"dim must be a positive integer, not 64\.0"),
        ({"heads": 3}, "dim must be a multiple of heads 3, not 64"),
        ({"image_width": 30}, "image_width must be a multiple of patch_size 4, not 30"),
    ],
)
def test_configuration_is_validated(change: dict[str, int], message: str) -> None:
    from moevit.models.vit import ViTConfig

    with pytest.raises(ValueError, match=message):
        ViTConfig(**change)


@pytest.mark.torch
def test_shipped_configuration() -> None:
    from moevit.models.vit import FASHION

    assert (FASHION.patches, FASHION.tokens, FASHION.head_dim) == (49, 50, 32)
    assert len(CLASSES) == FASHION.classes
    assert FASHION_VIT.is_dir()


@pytest.mark.torch
def test_fixtures_are_what_the_script_writes(tmp_path: Path) -> None:
    """The same inputs and the same function as the committed files."""
    script = FIXTURES / "make_fixtures.py"
    for name in ("dynamo20_tanh_chunk", "script17_deit"):
        done = subprocess.run(
            [sys.executable, str(script), "-o", str(tmp_path), "--only", name], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{name}.npz").read_bytes() == (FIXTURES / f"{name}.npz").read_bytes()
        with np.load(tmp_path / f"{name}.npz") as file:
            inputs = dict(file)
        new, old = (
            onnxruntime.InferenceSession(str(path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
            for path in (tmp_path, FIXTURES)
        )
        np.testing.assert_allclose(new.run(None, inputs)[0], old.run(None, inputs)[0], atol=1e-4)


def test_save_subset_replaces_whole_files(tmp_path: Path) -> None:
    images = ImageSet(images=np.zeros((2, 28, 28), np.uint8), labels=np.arange(2))
    save_subset(images, tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
