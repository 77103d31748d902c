"""What judges the fuzzers' cases: it must see what is wrong."""

from pathlib import Path
from time import sleep

import numpy as np
import onnx
import pytest
from compile_helpers import wide_residual
from onnx import numpy_helper

import moevit
from fuzz.limit import HangError, time_limit
from fuzz.noise import answers, relative_error
from fuzz.verdict import check_refusal, judge
from moevit.errors import HazardError, ModelError, UnsupportedNode, UnsupportedOpError

FIXTURES = Path(__file__).parents[1] / "fixtures"
PATH = FIXTURES / "dynamo18_chunk_manual.onnx"


def feeds() -> dict[str, np.ndarray]:
    with np.load(PATH.with_suffix(".npz")) as data:
        return {name: data[name].astype(np.float32) for name in data.files}


def logits() -> np.ndarray:
    """Of the integers."""
    return moevit.compile(PATH, "tiny", feeds()).run(feeds()).outputs["logits"]


def changed(name: str, factor: float) -> onnx.ModelProto:
    """The model with one of its constants multiplied."""
    model = onnx.load(PATH)
    (tensor,) = [i for i in model.graph.initializer if i.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return model


def test_the_integers_are_within_the_bound() -> None:
    expected = answers(onnx.load(PATH), feeds())
    error = relative_error(logits().reshape(expected.outputs["logits"].shape), expected.outputs["logits"])
    assert 0 < error < expected.bounds["logits"] < 0.2


@pytest.mark.parametrize(
    ("name", "factor"),
    [("norm.weight", 1.3), ("pos_embed", 0.0), ("blocks.0.attn.qkv.bias", -3.0), ("val_47", 0.0), ("head.bias", 4.0)],
)
def test_a_part_that_is_computed_wrongly_is_beyond_it(name: str, factor: float) -> None:
    expected = answers(changed(name, factor), feeds())
    error = relative_error(logits().reshape(expected.outputs["logits"].shape), expected.outputs["logits"])
    assert error > expected.bounds["logits"]


def test_a_refusal_must_name_nodes_that_there_are() -> None:
    node = UnsupportedNode(name="node_MatMul_44", op="MatMul", reason="so", way_out="otherwise")
    model = onnx.load(PATH)
    known = UnsupportedNode(name=model.graph.node[0].name, op="X", reason="so", way_out="otherwise")
    check_refusal(UnsupportedOpError([known]), PATH)
    with pytest.raises(AssertionError, match="no node"):
        check_refusal(UnsupportedOpError([known, UnsupportedNode(**{**vars(node), "name": "nobody"})]), PATH)


def test_a_compiler_that_blames_itself_is_found() -> None:
    with pytest.raises(AssertionError, match="HazardError"):
        check_refusal(HazardError("reads too early"), PATH)
    with pytest.raises(AssertionError, match="mistake of moevit"):
        check_refusal(ModelError("this is a mistake of moevit's front end"), PATH)
    with pytest.raises(AssertionError, match="a sane model"):
        check_refusal(ModelError("it is too good"), PATH, trusted=True)


def test_a_model_that_the_integers_do_not_hold_is_refused(tmp_path: Path) -> None:
    """Nothing is allowed for it: where it is compiled all the same it is beyond the bound."""
    path = wide_residual(PATH, tmp_path / "wide.onnx")
    verdict = judge(path, feeds())
    assert verdict.kind == "AccuracyError"
    assert verdict.errors["logits"] > 0.5 > verdict.bounds["logits"]
    with pytest.raises(AssertionError, match="a sane model was refused"):
        judge(path, feeds(), trusted=True)


def test_a_hang_is_found() -> None:
    with pytest.raises(HangError, match=r"0\.05 s"), time_limit(0.05):
        sleep(10)
