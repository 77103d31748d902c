"""Scenes of Fashion-MNIST items, and how answers about them are measured."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from moevit.errors import InputError
from moevit.models import scenes
from moevit.models.fashion_mnist import ImageSet


def blocks(count: int = 100) -> ImageSet:
    """Items that fill their 28x28 pixels, brighter than any background: class c has the value 120 + 10 c."""
    labels = np.arange(count) % 10
    images = np.broadcast_to((120 + 10 * labels).astype(np.uint8)[:, None, None], (count, 28, 28)).copy()
    return ImageSet(images=images, labels=labels)


def noise(count: int = 100) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(
        images=rng.integers(0, 256, (count, 28, 28)).astype(np.uint8), labels=np.arange(count) % 10
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of 40 training and 20 test images whose first pixel is their number."""
    for stem, count, value in (("train", 40, 150), ("t10k", 20, 200)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.full((count, 28, 28), value, np.uint8)
        images[:, 0, 0] = np.arange(count)
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def test_shapes_and_ranges() -> None:
    got = scenes.compose(noise(), 40, 3)
    assert len(got) == 40
    assert (got.images.dtype, got.images.shape) == (np.uint8, (40, 1, 64, 64))
    assert (got.seg.dtype, got.seg.shape) == (np.uint8, (40, 64, 64))
    assert (got.depth.dtype, got.depth.shape) == (np.float32, (40, 64, 64))
    assert set(np.unique(got.seg)) == set(range(11))
    metres = np.array((*scenes.DISTANCES, scenes.BACKGROUND_DISTANCE), np.float32)
    assert np.array_equal(np.unique(got.depth), np.sort(metres))
    assert np.array_equal(got.seg == 0, got.depth == scenes.BACKGROUND_DISTANCE)
    assert got.images[:, 0][got.seg == 0].max() <= 96
    assert got.images[:, 0][got.seg > 0].min() >= 24


def test_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    got = scenes.compose(noise(), 16, 7)
    for array in (got.images, got.seg, got.depth.astype("<f4")):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == "0e023831f4c410aaf38116c8091a300776645fca6a7c7df5e2d0f34d613cbe0d"


def test_seed_decides() -> None:
    source = noise()
    one, again, other, pair = (scenes.compose(source, 5, seed) for seed in (1, 1, 2, (1, 1)))
    assert np.array_equal(one.images, again.images)
    assert np.array_equal(one.depth, again.depth)
    assert not np.array_equal(one.images, other.images)
    assert not np.array_equal(one.images, pair.images)


def test_two_to_four_items_on_different_layers() -> None:
    got = scenes.compose(blocks(), 300, 5)
    seen = [len(np.unique(depth[depth < scenes.BACKGROUND_DISTANCE])) for depth in got.depth]
    assert set(seen) <= {1, 2, 3, 4}  # one that is nearer may hide another wholly
    assert np.mean(np.array(seen) >= 2) > 0.9
    assert 4 in seen


def test_nearer_items_are_larger_and_hide_what_is_behind() -> None:
    got = scenes.compose(blocks(), 300, 6)
    overlaps = 0
    for image, seg, depth in zip(got.images[:, 0], got.seg, got.depth, strict=True):
        boxes = []
        for distance in scenes.DISTANCES:
            rows, cols = np.nonzero(depth == np.float32(distance))
            if not len(rows):
                continue
            box = slice(rows.min(), rows.max() + 1), slice(cols.min(), cols.max() + 1)
            side = scenes.item_pixels(distance)
            assert max(box[0].stop - box[0].start, box[1].stop - box[1].start) <= side
            # One item, of one class, and its pixels are its class's value.
            (label,) = np.unique(seg[depth == np.float32(distance)])
            assert set(np.unique(image[depth == np.float32(distance)])) == {120 + 10 * (label - 1)}
            # Nothing farther is inside the square of the nearest item.
            if not boxes:
                assert (depth[box] == np.float32(distance)).all()
            boxes.append(box)
            overlaps += len(rows) < (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
    assert overlaps > 30


def test_item_sizes() -> None:
    assert [scenes.item_pixels(d) for d in scenes.DISTANCES] == [40, 32, 27, 23, 20]
    assert list(scenes.DISTANCES) == sorted(scenes.DISTANCES)
    assert max(scenes.DISTANCES) < scenes.BACKGROUND_DISTANCE


@pytest.mark.parametrize("side", [20, 27, 28, 40])
def test_resampling_is_bilinear(side: int) -> None:
    matrix = scenes._bilinear(side)
    assert matrix.shape == (side, 28)
    assert (matrix.sum(1) == 256).all()
    assert matrix.min() >= 0
    if side == 28:
        assert np.array_equal(matrix, 256 * np.eye(28))
    images = noise(3).images
    position = np.clip((np.arange(side) + 0.5) * 28 / side - 0.5, 0, 27)
    left = np.minimum(np.floor(position).astype(int), 26)
    part = position - left
    want = images.astype(float)
    want = want[:, left] * (1 - part)[:, None] + want[:, left + 1] * part[:, None]
    want = want[:, :, left] * (1 - part) + want[:, :, left + 1] * part
    assert np.abs(scenes._resample(images, side) - want).max() <= 2.5


def test_splits_share_no_item(folder: Path) -> None:
    train, validation, test = (scenes.items(folder, split) for split in ("train", "validation", "test"))
    assert train.images[:, 0, 0].tolist() == list(range(20))
    assert validation.images[:, 0, 0].tolist() == list(range(20, 40))
    assert len(test) == 20
    with pytest.raises(ValueError, match="train, validation, test, not 'val'"):
        scenes.items(folder, "val")


def test_count_is_positive() -> None:
    with pytest.raises(InputError, match="at least 1, not 0"):
        scenes.compose(blocks(), 0, 1)


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "some.npz"
    arguments = ["--data", str(folder), "-o", str(out), "--count", "6"]
    assert scenes.main(arguments) == 0
    assert "6 test scenes" in capsys.readouterr().out
    first = out.read_bytes()
    got = scenes.load_scenes(out)
    want = scenes.compose(scenes.items(folder, "test"), 6, scenes.TEST_SEED)
    for name in ("images", "seg", "depth"):
        assert np.array_equal(getattr(got, name), getattr(want, name))
    scenes.main(arguments)
    assert out.read_bytes() == first
    assert scenes.main([*arguments, "--split", "train"]) == 0
    assert out.read_bytes() != first
    assert not list(folder.glob("*.part"))
    with pytest.raises(InputError, match="--seed must be at least 0, not -1"):
        scenes.main([*arguments, "--seed", "-1"])


GOOD = {
    "images": np.zeros((2, 1, 64, 64), np.uint8),
    "seg": np.zeros((2, 64, 64), np.uint8),
    "depth": np.ones((2, 64, 64), np.float32),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": GOOD["images"][:, 0]}, r"images must be uint8 \[N, 1, 64, 64\], not uint8 \(2, 64, 64\)"),
        ({"images": GOOD["images"].astype(np.float32)}, "images must be uint8"),
        ({"images": GOOD["images"][:0]}, "images must be uint8"),
        ({"seg": GOOD["seg"][:1]}, r"seg must be uint8 \[2, 64, 64\], not uint8 \[1, 64, 64\]"),
        ({"seg": GOOD["seg"] + np.uint8(11)}, "classes must be 0 to 10, not 11"),
        ({"depth": GOOD["depth"].astype(np.float64)}, "depth must be float32"),
        ({"depth": np.array([None])}, "npz file"),
    ],
)
def test_bad_files(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **(GOOD | change))
    with pytest.raises(InputError, match=message) as caught:
        scenes.load_scenes(path)
    assert caught.value.where == str(path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(InputError, match="no such file"):
        scenes.load_scenes(path)
    path.write_bytes(b"no zip file")
    with pytest.raises(InputError, match="not an npz file"):
        scenes.load_scenes(path)
    np.savez(path, images=GOOD["images"])
    with pytest.raises(InputError, match="not an npz file"):
        scenes.load_scenes(path)


def test_mean_iou_against_sets() -> None:
    rng = np.random.default_rng(4)
    true, predicted = rng.integers(0, 11, (2, 3, 64, 64))
    ious = []
    for label in range(11):
        a, b = true == label, predicted == label
        ious.append((a & b).sum() / (a | b).sum())
    counts = sum(scenes.confusion(p, t) for p, t in zip(predicted, true, strict=True))
    assert scenes.mean_iou(counts) == pytest.approx(np.mean(ious))
    assert scenes.mean_iou(scenes.confusion(true, true)) == 1


def test_mean_iou_leaves_out_absent_classes() -> None:
    true = np.array([0, 0, 1, 1])
    assert scenes.mean_iou(scenes.confusion(np.array([0, 0, 1, 2]), true)) == pytest.approx((1 + 0.5 + 0) / 3)


def test_rmse() -> None:
    assert scenes.rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx(2**0.5)
    with pytest.raises(ValueError, match=r"shape \(2,\) of true, not \(3,\)"):
        scenes.rmse(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(2,\) of true, not \(3,\)"):
        scenes.confusion(np.zeros(3, int), np.zeros(2, int))
