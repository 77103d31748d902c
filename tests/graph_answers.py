"""What a compiled graph answers, beside what its float interpreter does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.compiler import ir
from moevit.compiler.driver import Compiled, compile_graphs
from moevit.compiler.interpret import outputs, run
from moevit.config import CONFIGS
from moevit.sim.inputs import from_arrays
from moevit.sim.result import Result
from moevit.sim.simulate import simulate


def normal_inputs(graph: ir.Graph, count: int, seed: int = 3) -> dict[str, NDArray[np.float32]]:
    """Random inputs of a graph, `(count, *model_shape)` by name."""
    rng = np.random.default_rng(seed)
    return {i.name: rng.normal(size=(count, *i.model_shape)).astype(np.float32) for i in graph.inputs}


def simulated(
    compiled: Compiled, graph: ir.Graph, inputs: Mapping[str, NDArray[np.float32]], **how: Any
) -> Result:
    """A task's run, every tensor compared with the reference."""
    shapes = {i.name: i.model_shape for i in graph.inputs}
    return simulate(compiled.program, from_arrays(shapes, dict(inputs)), check=True, **how)


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of each image's values, `(B, ...)`."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def cosine(graph: ir.Graph, *, config: str = "tiny", count: int = 16) -> tuple[float, Compiled]:
    """The median cosine between integer and float outputs over random inputs; isa and reference agree.

    The median, as single images of normal noise lie beyond the clipped ranges, which says nothing about the graph.
    """
    data = normal_inputs(graph, 16 + count)
    compiled = compile_graphs({"main": graph}, CONFIGS[config], {"main": data})
    tested = {k: v[:count] for k, v in data.items()}
    got = simulated(compiled, graph, tested).outputs
    want = outputs(graph, run(graph, tested))
    return min(float(np.median(cosines(got[name], want[name]))) for name in want), compiled
