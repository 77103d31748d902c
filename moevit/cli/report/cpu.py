"""onnxruntime on this machine's CPU: the float model and one with int8 weights, timed in the same run."""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.errors import ModelError
from moevit.host import as_it_takes

SECONDS = 3.0  #: that each model is run for, at least
WARM_UP = 2
RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class CpuRun:
    """A model on the CPU, one image at a time.

    precision : ``float32``, or ``int8`` for onnxruntime's dynamic quantisation
    latency_ms, spread_ms : median, and the 10th and the 90th percentile, of ``runs``
    joules : of one image, from the CPU's energy counters; None where they cannot be read
    """

    processor: str
    threads: int
    precision: str
    runs: int
    latency_ms: float
    spread_ms: tuple[float, float]
    joules: float | None
    version: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"method": "measured"}


def measure(model: Path, feeds: Mapping[str, NDArray], threads: int) -> tuple[list[CpuRun], str | None]:
    """Time a model in float and in int8 on one image; says why where there is no int8.

    Parameters
    ----------
    model : ONNX file
    feeds : inputs of one image, [1, ...], by name
    threads : that onnxruntime may use

    Raises
    ------
    ModelError : onnxruntime cannot run it
    """
    with tempfile.TemporaryDirectory(prefix="moevit-report-") as folder:
        quantised = Path(folder) / "int8.onnx"
        runs = [_time(model, feeds, threads, "float32")]
        missing = _quantise(model, quantised)
        if missing is None:
            runs.append(_time(quantised, feeds, threads, "int8"))
    return runs, missing


def _quantise(model: Path, target: Path) -> str | None:
    """Write the model with int8 weights; what onnxruntime's tool said if it cannot."""
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends preprocessing on the root logger
    try:
        quantize_dynamic(model, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    except Exception as error:  # whatever its passes raise: the figure is then not claimed
        return f"onnxruntime cannot quantise it: {' '.join(str(error).split())[:200]}"
    finally:
        logging.disable(before)
    return None


def _time(model: Path, feeds: Mapping[str, NDArray], threads: int, precision: str) -> CpuRun:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        taken = as_it_takes(session, feeds)
        for _ in range(WARM_UP):
            session.run(None, taken)
        times, joules = _repeat(lambda: session.run(None, taken))
    except Exception as error:  # onnxruntime's own exceptions share no base class
        text = " ".join(str(error).split())[:200]
        raise ModelError(f"onnxruntime cannot run it ({precision}): {text}", where=str(model)) from error
    low, high = (float(q) for q in np.quantile(times, (0.1, 0.9)))
    return CpuRun(
        processor(), threads, precision, len(times), statistics.median(times), (low, high), joules,
        onnxruntime.__version__,
    )  # fmt: skip


def _repeat(run: Callable[[], object]) -> tuple[list[float], float | None]:
    """Milliseconds of each run, and joules per run."""
    times: list[float] = []
    counters = rapl_counters(RAPL)
    before = _energy(counters)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or not times:
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    after = _energy(counters)
    used = [b - a for a, b in zip(before, after, strict=True)] if len(before) == len(after) else []
    if not used or min(used) <= 0:  # unreadable, or wrapped around
        return times, None
    return times, sum(used) / len(times)


def rapl_counters(root: Path) -> list[Path]:
    """Energy counters of the CPU packages (Linux: Documentation/power/powercap/powercap.rst).

    A package's zone has zones in it, and a machine may have one of all (``psys``): adding those would count twice.
    """
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            package = (zone / "name").read_text().startswith("package")
        except OSError:
            continue
        if package:
            found.append(zone / "energy_uj")
    return found


def _energy(counters: Sequence[Path]) -> list[float]:
    """Joules of each counter; nothing where one cannot be read, which takes root on most machines."""
    try:
        return [int(path.read_text()) / 1e6 for path in counters]
    except (OSError, ValueError):
        return []


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
