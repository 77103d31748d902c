"""Inputs in every accepted form, and a clear error for every other."""

import numpy as np
import pytest
from PIL import Image

from moevit.config import CONFIGS
from moevit.errors import InputError
from moevit.program import Input, Task
from moevit.sim.inputs import from_arrays, pack, quantise, read_inputs

SHAPES = {"image": (1, 4, 6)}
COLOUR = {"image": (3, 4, 6)}
PIXELS = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 1, 4, 6)


def save(path, **arrays):
    np.savez(path, **arrays)
    return [path]


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 1, 4, 6), (2, 4, 6, 1)])
def test_pixels(tmp_path, key, shape):
    inputs = read_inputs(SHAPES, save(tmp_path / "x.npz", **{key: PIXELS.reshape(shape)}))
    floats = inputs.floats()["image"]
    assert len(inputs) == 2
    assert floats.dtype == np.float32
    assert np.array_equal(floats, PIXELS.astype(np.float32) / np.float32(255))


def test_channels_last(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), np.uint8)
    floats = read_inputs(COLOUR, save(tmp_path / "x.npz", images=pixels)).floats()["image"]
    assert np.array_equal(floats, pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_not_scaled(tmp_path, kind):
    values = np.linspace(-1, 1, PIXELS.size).reshape(PIXELS.shape).astype(kind)
    inputs = read_inputs(SHAPES, save(tmp_path / "x.npz", image=values))
    assert np.array_equal(inputs.floats()["image"], values.astype(np.float32))
    assert np.array_equal(inputs.floats(1, 2)["image"], values[1:].astype(np.float32))


def test_files_are_joined_and_other_arrays_kept(tmp_path):
    first = save(tmp_path / "a.npz", images=PIXELS, labels=np.array([3, 4]), about=np.array(1))
    second = save(tmp_path / "b.npz", images=PIXELS[:1], labels=np.array([5]), more=np.zeros(1))
    inputs = read_inputs(SHAPES, first + second)
    assert len(inputs) == 3
    assert inputs.extra.keys() == {"labels"}
    assert inputs.extra["labels"].tolist() == [3, 4, 5]
    assert len(read_inputs(SHAPES, [tmp_path])) == 3
    limited = inputs.limited(2)
    assert len(limited) == 2
    assert limited.extra["labels"].tolist() == [3, 4]


def test_several_inputs():
    shapes = {"a": (2,), "b": (3, 3)}
    values = {"a": np.zeros((4, 2), np.float32), "b": np.ones((4, 3, 3), np.float32)}
    assert from_arrays(shapes, values).floats().keys() == {"a", "b"}
    with pytest.raises(InputError, match="no array 'b'"):
        from_arrays(shapes, {"a": values["a"]})
    with pytest.raises(InputError, match="different numbers"):
        from_arrays(shapes, {"a": values["a"][:3], "b": values["b"]})


def test_pictures(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.stack([grey, grey, grey + 1], -1)).save(tmp_path / "b.png")
    assert np.array_equal(read_inputs(SHAPES, [tmp_path / "a.png"]).arrays["image"][0, 0], grey)
    colour = read_inputs(COLOUR, [tmp_path]).arrays["image"]
    assert colour.shape == (2, 3, 4, 6)
    assert np.array_equal(colour[1], [grey, grey, grey + 1])
    with pytest.raises(InputError, match=r"a\.png: is 6 x 4, the model takes 8 x 5"):
        read_inputs({"image": (1, 5, 8)}, [tmp_path / "a.png"])
    with pytest.raises(InputError, match="a picture is no input"):
        read_inputs({"tokens": (7,)}, [tmp_path / "a.png"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": PIXELS}, r"no array 'image', but 'other' uint8 \[2, 1, 4, 6\]; give a .npz with 'image' float32"),
        ({"image": np.zeros((2, 1, 4, 5), np.float32)}, r"shape \[2, 1, 4, 5\], not \[N, 1, 4, 6\]"),
        ({"image": np.zeros((1, 4, 6), np.float32)}, r"not \[N, 1, 4, 6\]"),
        ({"image": np.zeros((2, 1, 4, 6), np.int64)}, "type int64; give float32"),
        ({"image": np.zeros((2, 1, 4, 6), "U1")}, "type <U1"),
        ({"image": np.array([None])}, "plain arrays, or damaged"),
        ({"image": PIXELS[:0]}, "holds no input"),
        ({}, "but nothing"),
    ],
)
def test_wrong_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_inputs(SHAPES, [tmp_path / "x.npz"])
    assert "x.npz" in str(caught.value)


def test_values_that_are_not_finite():
    inputs = from_arrays(SHAPES, {"image": np.full((1, 1, 4, 6), np.nan, np.float32)})
    with pytest.raises(InputError, match="not finite"):
        inputs.floats()


def test_wrong_files(tmp_path):
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "short.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "whole.npz", images=PIXELS)
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    for name, message in (
        ("text.npz", "not a .npz file"),
        ("short.npz", "not a .npz file"),
        ("cut.npz", "not a .npz file"),
        ("bad.png", "not a picture"),
        ("notes.txt", "no .npz file and no picture"),
        ("empty", "the folder holds no"),
        ("missing.npz", "cannot read: No such file"),
        ("missing.png", "no such file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_inputs(SHAPES, [tmp_path / name])
        assert name in str(caught.value)
    with pytest.raises(InputError, match="no input given"):
        read_inputs(SHAPES, [])


def test_quantise_and_pack():
    entries = (Input("a", (2,), 0.5, 10, 0), Input("b", (1, 3), 1 / 255, 0, 64))
    task = Task("t", 0, 2, entries, (), 128, 0, (), ())
    values = {"a": np.array([[-100, 0.74]], np.float32), "b": np.array([[[0, 1, 7 / 255]]], np.float32)}
    quantised = quantise(task, values)
    assert quantised["a"].tolist() == [[0, 11]]
    assert quantised["b"].tolist() == [[[0, 255, 7]]]
    buffer = pack(CONFIGS["tiny"], task, quantised)
    assert buffer.shape == (1, 128)
    assert np.flatnonzero(buffer).tolist() == [1, 65, 66]
