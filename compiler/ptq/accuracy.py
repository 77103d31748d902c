"""What integers cost a model on a few calibration inputs, and the refusal of programs that compute something else.

Formats come from ranges, so a model whose values they cannot hold (a residual stream that spans more than 16 bits, or
layers of outliers beside which all else is below one step) quantises without a word. Only running it shows that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit.compiler import interpret
from moevit.compiler.ir import Graph
from moevit.compiler.ptq.emulate import Emulator
from moevit.compiler.quantise import Quantised
from moevit.compiler.stages import Stages
from moevit.config import AcceleratorConfig
from moevit.errors import AccuracyError

INPUTS = 4  #: calibration inputs that are compared
LEAST_COSINE = 0.9  #: what quantises has above 0.99, what the formats do not hold below 0.6: see docs/numerics.md
LARGEST_ERROR = 0.5  #: relative; noise of this size has a cosine of 0.9, but it sees a wrong scale too

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """An output in integers beside the float model's, over all elements of all inputs that were compared.

    ``relative_rms_err`` is the root of the mean square difference over that of the float model's.
    """

    cosine: float
    relative_rms_err: float

    @classmethod
    def of(cls, got: NDArray, want: NDArray) -> "Accuracy":
        """Of two arrays of equal shape."""
        a, b = (np.asarray(x, np.float64).ravel() for x in (got, want))
        error, norm_a, norm_b = (float(np.linalg.norm(x)) for x in (a - b, a, b))
        if error == 0:
            return cls(cosine=1.0, relative_rms_err=0.0)
        if norm_a == 0 or norm_b == 0:
            return cls(cosine=0.0, relative_rms_err=error / norm_b if norm_b else error)
        return cls(cosine=float(a / norm_a @ (b / norm_b)), relative_rms_err=error / norm_b)

    @property
    def acceptable(self) -> bool:
        """Whether this is the same function with some noise."""
        return self.cosine >= LEAST_COSINE and self.relative_rms_err <= LARGEST_ERROR


def chosen(inputs: Arrays, count: int = INPUTS) -> dict[str, NDArray]:
    """At most so many of inputs [B, ...], spread evenly over them."""
    there = min(len(v) for v in inputs.values())
    rows = np.unique(np.linspace(0, there - 1, min(count, there)).round().astype(int))
    return {name: v[rows] for name, v in inputs.items()}


def accuracy(
    graph: Graph, stages: Stages, quantised: Quantised, config: AcceleratorConfig, inputs: Arrays
) -> dict[str, Accuracy]:
    """Each output of a program beside the float graph's.

    Parameters
    ----------
    graph : the model as it was read, before any pass
    stages, quantised : what it has become
    config : the machine
    inputs : calibration inputs [B, ...], of which some are taken
    """
    some = chosen(inputs)
    want = dict(_float_outputs(graph, some))
    got = Emulator(stages, quantised, config).outputs(some)
    return {o.name: Accuracy.of(got[o.name], want[o.name]) for o in graph.outputs}


def _float_outputs(graph: Graph, inputs: Arrays) -> Iterator[tuple[str, NDArray]]:
    """The outputs of the float graph, of which no more is held than is still to be read."""
    for tensor, values, _ in interpret.steps(graph, inputs):
        for output in graph.outputs:
            if output.tensor == tensor:
                yield output.name, output.arrange(values)


def need_acceptable(found: Mapping[str, Mapping[str, Accuracy]]) -> None:
    """Raise AccuracyError that names every output, by task, whose program computes something else."""
    wrong = [
        f"output '{name}' of task '{task}' has a cosine of {a.cosine:.3g} and a relative RMS error of "
        f"{a.relative_rms_err:.3g}"
        for task, outputs in found.items()
        for name, a in outputs.items()
        if not a.acceptable
    ]
    if wrong:
        raise AccuracyError(
            "; ".join(wrong) + f", beside the float model on calibration inputs; at least {LEAST_COSINE} and at most "
            f"{LARGEST_ERROR} are needed: the machine's integers do not hold the model's values",
            found=as_json(found),
            mend="see that the calibration data is like what the model will see, and prepared as it expects; "
            "--sensitivity FILE.json says which stage costs most; --accept-accuracy (accept_accuracy=True) compiles it "
            "all the same",
        )


def as_json(found: Mapping[str, Mapping[str, Accuracy]]) -> dict[str, dict[str, dict[str, float]]]:
    """By task, output and figure."""
    return {
        task: {
            name: {"cosine": round(a.cosine, 6), "relative_rms_err": float(f"{a.relative_rms_err:.6g}")}
            for name, a in outputs.items()
        }
        for task, outputs in found.items()
    }
