"""Good models with some damage: refused with one clear error, or compiled and right."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from fuzz.limit import time_limit
from fuzz.mutate import CHANGES, damage_bytes
from fuzz.verdict import Verdict, judge

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = sorted(p for p in FIXTURES.glob("*.onnx") if not p.name.startswith("bad_"))
SECONDS = 30
BYTES = 0.15  #: of the cases damage the file, and not the graph in it


def damaged(seed: int, path: Path) -> Path:
    """Write a damaged model; returns the model that it was."""
    rng = np.random.default_rng(seed)
    source = MODELS[int(rng.integers(len(MODELS)))]
    if rng.random() < BYTES:
        path.write_bytes(damage_bytes(source.read_bytes(), rng))
        return source
    model = onnx.load(source)
    for _ in range(int(rng.integers(1, 3))):
        CHANGES[int(rng.integers(len(CHANGES)))](model, rng)
    path.write_bytes(model.SerializeToString())
    return source


def case(seed: int, folder: Path) -> Verdict:
    """One case: damage, and judge."""
    path = folder / f"damaged{seed}.onnx"
    source = damaged(seed, path)
    with np.load(source.with_suffix(".npz")) as data:
        feeds = {name: data[name].astype(np.float32) for name in data.files}
    with time_limit(SECONDS):
        return judge(path, feeds)


@pytest.mark.parametrize("seed", range(16))
def test_damage(seed: int, tmp_path: Path) -> None:
    case(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1150))
def test_much_damage(seed: int, tmp_path: Path) -> None:
    case(seed, tmp_path)


def test_the_cases_reach_every_outcome(tmp_path: Path) -> None:
    """Damage that always broke the file would test nothing behind the reader."""
    kinds = Counter(case(seed, tmp_path).kind for seed in range(2000, 2016))
    assert {"agrees", "ModelError", "UnsupportedOpError"} <= set(kinds), kinds


def test_every_change_changes_a_model() -> None:
    """Each kind of damage does something to at least one model in a few tries."""
    original = onnx.load(MODELS[0])
    for change in CHANGES:
        model = onnx.ModelProto()
        for seed in range(20):
            model.CopyFrom(original)
            change(model, np.random.default_rng(seed))
            if model.SerializeToString() != original.SerializeToString():
                break
        else:
            raise AssertionError(f"{change.__name__} does nothing")
