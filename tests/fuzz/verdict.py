"""What may become of a model: it is refused with an error that helps, or compiled and right."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import moevit
from fuzz.noise import Answers, Feeds, answers, relative_error
from moevit.errors import (
    AccuracyError,
    AllocationError,
    ConfigError,
    InputError,
    ModelError,
    MoevitError,
    UnsupportedOpError,
)

REFUSALS = (ModelError, UnsupportedOpError, AllocationError, AccuracyError, InputError, ConfigError)
LONGEST = 20_000  #: characters of a message
OVERFLOW = 1e30  #: values beyond which float32 cannot be trusted


@dataclass(frozen=True)
class Verdict:
    """What became of one model; `errors` by output are set where it was compiled, `refused` where it was not; of a
    model that was refused for its accuracy both are, as it was compiled all the same."""

    refused: MoevitError | None
    errors: dict[str, float]
    bounds: dict[str, float]

    @property
    def kind(self) -> str:
        """For counting: "agrees", or the error's class."""
        return "agrees" if self.refused is None else type(self.refused).__name__


def judge(path: Path, feeds: Feeds, *, config: str = "tiny", trusted: bool = False) -> Verdict:
    """Compile a model, calibrated on the inputs that it then runs on, run what was written of it, and compare.

    The container is left beside the model.

    `trusted` says that the file is a sane model that onnxruntime runs, so that no refusal may blame it.

    Raises
    ------
    AssertionError
        If it was refused badly, if the back-ends differ, or if the result is not onnxruntime's.
    Exception
        Whatever else moevit lets through; that is a bug.
    """
    refused: MoevitError | None = None
    try:
        try:
            program = moevit.compile(path, config, feeds)
        except AccuracyError as error:
            check_refusal(error, path, trusted=trusted)
            refused = error
            program = moevit.compile(path, config, feeds, accept_accuracy=True)
        written = path.with_suffix(".moevit")
        program.save(written)
        result = moevit.load(written).run(feeds, check=True)
    except MoevitError as error:
        check_refusal(error, path, trusted=trusted)
        return Verdict(error, {}, {})
    assert result.bit_exact
    model = onnx.load(path)
    expected = expect(model, feeds)
    assert expected is not None, "compiled, though onnxruntime cannot run it"
    assert list(result.outputs) == list(expected.outputs)
    errors = {}
    for name, want in expected.outputs.items():
        assert np.isfinite(want).all(), f"compiled, though output {name!r} is not finite"
        got = result.outputs[name]
        assert got.size == want.size, f"output {name!r} is {got.shape}, not {want.shape}"
        errors[name] = relative_error(got.reshape(want.shape), want)
    if refused is not None:
        bounds = expected.bounds
        assert program.host_parts or any(error > bounds[name] for name, error in errors.items()), (
            f"refused, though 8 bits allow what it is off by: {refused}"
        )
        return Verdict(refused, errors, bounds)
    for name, error in errors.items():
        assert error <= expected.bounds[name], (
            f"output {name!r} is off by {error:.3g} of its size; 8 bits allow {expected.bounds[name]:.3g}"
        )
    return Verdict(None, errors, expected.bounds)


def expect(model: onnx.ModelProto, feeds: Feeds) -> Answers | None:
    """onnxruntime's answers; None where it has none."""
    try:
        return answers(model, feeds)
    except Exception:  # its exceptions have no common base
        return None


def check_refusal(error: MoevitError, path: Path, *, trusted: bool = False) -> None:
    """An error must say what, where and how to mend it, in one line, and name nodes that there are."""
    text = str(error)
    assert isinstance(error, REFUSALS), f"{type(error).__name__}: {text}"
    assert text.isprintable() and len(text) <= LONGEST, repr(text[:500])
    assert "Traceback" not in text and "mistake of moevit" not in text, text
    if isinstance(error, UnsupportedOpError):
        names = _names(path)
        for node in error.nodes:
            assert node.op and node.reason and node.way_out, node
            for name in (node.name, *node.name.split(", ")):
                if name.partition("#")[0] in names:
                    break
            else:
                raise AssertionError(f"no node {node.name!r}")
    elif trusted:
        raise AssertionError(f"a sane model was refused: {text}")


def _names(path: Path) -> set[str]:
    """The names by which the nodes and outputs of a file may be called."""
    model = onnx.load(path)
    names = {o.name for o in model.graph.output} | {i.name for i in model.graph.input}
    graphs = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            names |= {node.name.partition("#")[0], node.op_type, *node.output}
            graphs += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return names
