"""What is compiled can be written, read back and run, whatever the outputs are and however often the image is read."""

from pathlib import Path

import numpy as np
import onnxruntime
import partition_nets as nets

import moevit


def check(path: Path, folder: Path) -> None:
    """Compile, write, read and run; outputs as onnxruntime's."""
    feeds = nets.inputs(4)
    moevit.compile(path, "tiny", feeds).save(folder / "net.moevit")
    result = moevit.load(folder / "net.moevit").run(feeds, check=True)
    assert result.bit_exact
    session = onnxruntime.InferenceSession(path)
    for output in session.get_outputs():
        want = np.concatenate([session.run([output.name], {"x": x[None]})[0] for x in feeds["x"]])
        got = result.outputs[output.name].reshape(want.shape)
        assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want), output.name


def test_the_first_token_and_all_tokens(tmp_path: Path) -> None:
    """As transformers' models give them: `pooler_output` and `last_hidden_state`."""
    net = nets.Vit()
    tokens = net.norm(net.block(net.embed()))
    first = net.op("Gather", tokens, net.const(0, np.int64), axis=1)
    check(net.save(tmp_path / "net.onnx", first, tokens), tmp_path)


def test_two_patch_embeddings_of_one_image(tmp_path: Path) -> None:
    net = nets.Vit()
    fine, coarse = net.embed(), net.embed()
    check(net.save(tmp_path / "net.onnx", net.dense(fine, nets.WIDTH, 8), net.dense(coarse, nets.WIDTH, 8)), tmp_path)
