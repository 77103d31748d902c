"""Each error is one line that says what, where and how to mend it, and keeps the parts it was made of."""

import pytest

from moevit import errors


def test_all_errors_have_one_base():
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception) and name.endswith("Error"):
            assert issubclass(value, errors.MoevitError), name


def test_text_is_where_what_mend():
    error = errors.ConfigError("rows must be positive, not -1", where="my.json", mend="see `moevit configs`")
    assert str(error) == "my.json: rows must be positive, not -1; see `moevit configs`"
    assert str(errors.ConfigError("alone")) == "alone"


def test_unsupported_nodes_are_listed_all_at_once():
    nodes = [
        errors.UnsupportedNode(name="/a", op="Conv", reason="its stride differs", way_out="drop --strict"),
        errors.UnsupportedNode(name="/b", op="Loop", reason="control flow", way_out="export without it"),
    ]
    error = errors.UnsupportedOpError(nodes, where="m.onnx")
    assert error.nodes == tuple(nodes)
    assert str(error).startswith("m.onnx: 2 nodes cannot be mapped: Conv node '/a': its stride differs (drop")
    assert [node["name"] for node in error.as_json()["nodes"]] == ["/a", "/b"]
    with pytest.raises(ValueError, match="at least one node"):
        errors.UnsupportedOpError([])


def test_a_mismatch_names_instruction_tensor_index_and_values():
    error = errors.MismatchError(tensor="x", index=(1, 2), got=3, want=4, instruction=17, where="image 0")
    assert str(error) == "image 0: tensor 'x'[1, 2], written by instruction 17: got 3, want 4"
    assert error.exit_status == 1
