"""Vision transformers that a grammar makes: compiled and right, or refused with the nodes that stand in the way."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.encoder import PATCH, build
from fuzz.limit import time_limit
from fuzz.recipe import Recipe, recipes
from fuzz.verdict import Verdict, judge
from moevit.compiler.partition import split

SECONDS = 30
FIXED = settings(
    derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


def case(recipe: Recipe) -> Verdict:
    """Make a model, and judge what becomes of it.

    Whatever work is left is the machine's: such small models would else go to the host where a node of them does.
    """
    model = build(recipe)
    onnx.checker.check_model(model)
    shape = (6, recipe.channels, PATCH * recipe.height, PATCH * recipe.width)
    feeds = {"image": np.random.default_rng(recipe.seed).random(shape, dtype=np.float32)}
    small = patch.multiple(split, WORTH_MACS=1, WORTH_SHARE=0, WORTH_EACH=0)
    with TemporaryDirectory() as folder, time_limit(SECONDS), small:
        path = Path(folder) / "encoder.onnx"
        onnx.save(model, path)
        return judge(path, feeds, trusted=True)


@settings(FIXED, max_examples=12)
@given(recipes())
def test_some_encoders(recipe: Recipe) -> None:
    case(recipe)


@pytest.mark.slow
def test_many_encoders() -> None:
    """And most of them are compiled: a grammar of what is refused would prove little."""
    kinds: Counter = Counter()

    @settings(FIXED, max_examples=200)
    @given(recipes())
    def run(recipe: Recipe) -> None:
        kinds[case(recipe).kind] += 1

    run()
    assert kinds["agrees"] > 0.8 * kinds.total(), kinds
