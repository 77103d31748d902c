"""The public Python interface: ``compile``, ``load`` and ``Program.run``.

>>> program = moevit.compile("vit.onnx", config="tiny", calibration="calib.npz")
>>> program.save("vit.moevit")
>>> result = program.run("images.npz", backend="isa")
>>> result.outputs["logits"].argmax(axis=1)
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moevit import container, program
from moevit.config import AcceleratorConfig, get_config
from moevit.errors import InputError

if TYPE_CHECKING:
    from moevit.sim.dram import DramModel
    from moevit.sim.inputs import Inputs
    from moevit.sim.result import Result

PathLike = str | Path
Data = PathLike | Sequence[PathLike] | Mapping[str, NDArray]
"""Inputs: one or more files (.npz, pictures, folders of them), or arrays [N, *shape] by input name."""


class Program(program.Program):
    """A compiled program: everything that a container holds, and ways to run it."""

    def save(self, path: PathLike) -> None:
        """Write a container. Raises ContainerError if that cannot be done."""
        container.save(self, Path(path))

    def run(
        self,
        inputs: Data,
        task: str | None = None,
        *,
        backend: str = "isa",
        check: bool = False,
        limit: int | None = None,
        trace: PathLike | None = None,
        dram: "DramModel | None" = None,
    ) -> "Result":
        """Run a task on a simulator.

        Parameters
        ----------
        inputs : files, or arrays by input name: float, or uint8 which is scaled by 1/255
        task : name of the task; the first when None
        backend : ``isa`` (NumPy, untimed), ``rtl`` (the Verilog, cycle by cycle), or ``cycle`` (isa, and a prediction
            of the cycles that rtl would take)
        check : compare every output and every intermediate tensor with the NumPy reference
        limit : the first so many inputs only
        trace : of ``rtl``: an FST file to write the waveform to
        dram : of ``rtl`` and ``cycle``: the memory model; the configuration's default when None

        Returns
        -------
        Result
            Outputs as float32 [N, *shape] by name (those of nodes on the host in their own type), and what was
            measured.

        Raises
        ------
        InputError : an input or a parameter does not fit
        SimulationError : the machine stopped with an error
        MismatchError : ``check`` found a difference
        ToolError : the rtl simulation cannot be built
        """
        from moevit.sim.simulate import simulate

        chosen = self.pipeline(task)
        values = _inputs({x.name: x.shape for x in chosen.inputs}, inputs)
        path = None if trace is None else Path(trace)
        return simulate(
            self, values, chosen.name, backend=backend, check=check, limit=limit, trace=path, dram=dram
        )


def load(path: PathLike) -> Program:
    """Read a container. Raises ContainerError that says what is wrong with it."""
    return _public(container.load(Path(path)))


def compile(
    models: PathLike | Mapping[str, PathLike],
    config: str | AcceleratorConfig,
    calibration: Data | Mapping[str, Data],
    *,
    speculate: bool = True,
    route_rows: int | None = None,
    strict: bool = False,
    accept_accuracy: bool = False,
) -> Program:
    """Compile one ONNX model, or several as the tasks of one program. What the machine cannot do is left to the host.

    Parameters
    ----------
    models : an ONNX file, or task names to ONNX files
    config : the machine: a named configuration, a JSON file, or an object
    calibration : inputs that fix the scales of the activations; with several models, by task name
    speculate : whether an expert's weights are fetched before it is known to have tokens
    route_rows : tokens that go through all experts at a time; all, or as many as the machine can, when None
    strict : refuse a model with a node that the machine cannot do
    accept_accuracy : compile also what computes something else than the model on its calibration data, since the
        machine's integers do not hold its values

    Raises
    ------
    ConfigError, ModelError, UnsupportedOpError, InputError, AllocationError : something does not fit
    AccuracyError : the program's answers are not the model's, and ``accept_accuracy`` is not set
    """
    from moevit.compiler.driver import compile_model

    several = isinstance(models, Mapping)
    tasks = {k: Path(v) for k, v in models.items()} if isinstance(models, Mapping) else {"main": Path(models)}
    machine = config if isinstance(config, AcceleratorConfig) else get_config(config)

    def data(task: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
        mine: Any = calibration
        if several and isinstance(calibration, Mapping):
            if task not in calibration:
                raise InputError("has no calibration data", where=f"task {task!r}")
            mine = calibration[task]
        return _inputs(shapes, mine).floats()

    compiled = compile_model(
        tasks, machine, data, speculate=speculate, route_rows=route_rows, strict=strict, accept_accuracy=accept_accuracy
    )
    return _public(compiled.program)


def _public(plain: program.Program) -> Program:
    return Program(**{f.name: getattr(plain, f.name) for f in fields(plain)})


def _inputs(shapes: Mapping[str, tuple[int, ...]], data: Data) -> "Inputs":
    from moevit.sim.inputs import from_arrays, read_inputs

    if isinstance(data, Mapping):
        return from_arrays(shapes, data)
    return read_inputs(shapes, [Path(data)] if isinstance(data, str | Path) else [Path(p) for p in data])
