"""What tensors inside a model are for given inputs: for calibration, and to check the parts of a partition."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from moevit.compiler.partition.flow import Flow
from moevit.compiler.partition.probe import run, session_of


class Observer:
    """The float model with tensors from inside it as outputs.

    Parameters
    ----------
    flow : the model
    names : the tensors
    """

    def __init__(self, flow: Flow, names: Sequence[str]) -> None:
        self.flow, self.names = flow, tuple(names)
        model = onnx.ModelProto()
        model.CopyFrom(flow.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
        self._session = session_of(model, flow.where) if names else None

    def __call__(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The tensors [B, *shape] for inputs [B, ...] of the model, image by image."""
        flow = self.flow
        if self._session is None:
            return {}
        rows = []
        for i in range(len(next(iter(inputs.values())))):
            feeds = {n: inputs[n][i].reshape(flow.shape(n)).astype(flow.values[n].dtype) for n in flow.inputs}
            rows.append(run(self._session, self.names, feeds, flow.where))
        return {name: np.stack([row[n] for row in rows]) for n, name in enumerate(self.names)}
