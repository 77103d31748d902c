"""ONNX's tests of the operators that the front end claims: read as they say, or refused by name."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from fuzz.limit import time_limit
from fuzz.operators import Case, cases
from fuzz.verdict import check_refusal
from moevit.compiler.frontend import load
from moevit.compiler.interpret import outputs, run
from moevit.errors import MoevitError

SECONDS = 30
SAMPLE = 25  #: every so many cases in the default suite


def read(case: Case, folder: Path) -> str:
    """What becomes of a case: "agrees" or the error's class; raises AssertionError if that is not right."""
    path = folder / f"{case.name}.onnx"
    path.write_bytes(case.model.SerializeToString())
    with time_limit(SECONDS):
        try:
            graph = load(path)
        except MoevitError as error:
            check_refusal(error, path)
            return type(error).__name__
        got = outputs(graph, run(graph, {"features": case.feed}))["answer"]
    np.testing.assert_allclose(got.reshape(case.want.shape), case.want, rtol=1e-3, atol=1e-4, err_msg=case.name)
    return "agrees"


def judged(chosen: tuple[Case, ...], folder: Path) -> dict[str, Counter]:
    """What became of cases by operator; a failure names all that failed."""
    kinds: dict[str, Counter] = {}
    wrong = []
    for case in chosen:
        try:
            kinds.setdefault(case.op, Counter())[read(case, folder)] += 1
        except Exception as error:  # named below
            wrong.append(f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    assert not wrong, "\n".join(wrong)
    return kinds


def test_some(tmp_path: Path) -> None:
    assert judged(cases()[::SAMPLE], tmp_path)


@pytest.mark.slow
def test_all(tmp_path: Path) -> None:
    kinds = judged(cases(), tmp_path)
    print({op: dict(k) for op, k in kinds.items()})


def test_the_cases_are_what_onnx_says(tmp_path: Path) -> None:
    """The layers around a node do change nothing: ONNX's reference gives what the test wants."""
    from onnx.reference import ReferenceEvaluator

    for case in [c for c in cases() if c.op in ("Transpose", "Softmax", "LayerNormalization", "Slice")]:
        onnx.checker.check_model(case.model)
        (got,) = ReferenceEvaluator(case.model).run(None, {"features": case.feed})
        np.testing.assert_allclose(got, case.want, rtol=1e-3, atol=1e-4, err_msg=case.name)
