"""Ours, this machine's CPU and the published accelerators, as rows of one table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moevit.energy.published import Published

Values = Mapping[str, Any]

#: what a method of METHODS is called beside a figure
METHOD_NAMES = {
    "rtl": "simulated (Verilog)", "cycle": "simulated (timing model)", "estimated": "estimated",
    "vivado": "Vivado's estimate", "measured": "measured", "published": "published",
}  # fmt: skip


def machine_rows(
    config: Values, digest: str, tasks: Mapping[str, Values], published: Sequence[Published]
) -> list[dict[str, Any]]:
    """Rows with latency and energy of a frame.

    ``mj`` holds (low, typical, high); all three are equal where the figure is no estimate of ours, and ``mj`` is None
    where no energy is known. ``mj_per_gmac`` is the same for 10⁹ multiply-accumulates. ``configuration`` and ``source``
    say what the figure was got with, and where it is printed.

    Parameters
    ----------
    config, digest : of our machine
    tasks : of the report, without its machines
    published : accelerators of others
    """
    rows = [row for name, task in tasks.items() for row in _of_task(config, digest, name, task)]
    rows += [_of_others(design) for design in published]
    for row in rows:
        mj = row["mj"]
        row["gmacs"] = row["macs"] / row["ms"] / 1e6
        row["mj_per_gmac"] = None if mj is None else [value * 1e9 / row["macs"] for value in mj]
    return rows


def _of_task(config: Values, digest: str, name: str, task: Values) -> Iterator[dict[str, Any]]:
    simulation, energy = task["simulation"], task["energy"]
    array = f"{config['rows']}×{config['columns']}×{config['depth']}"
    board = config["device"] if config["device"] != "none" else "no device"
    yield {
        "name": f"moevit {config['name']}", "network": name, "board": board, "precision": "W8A8",
        "clock_mhz": config["clock_mhz"], "configuration": f"{config['name']} {array}, {digest}",
        "macs": simulation["macs"], "ms": simulation["latency_ms"], "method": simulation["backend"],
        "counted": "start to interrupt, with the DRAM model",
        "mj": [1000 * energy["total_joules"][k] for k in ("low", "typical", "high")], "energy_method": energy["method"],
        "source": "this report",
    }  # fmt: skip
    for run in task["cpu"]:
        joules = run["joules"]
        quantised = ", MatMul and Gemm quantised dynamically" if run["precision"] == "int8" else ""
        yield {
            "name": f"onnxruntime {run['precision']}", "network": name, "board": run["processor"],
            "precision": run["precision"], "clock_mhz": None,
            "configuration": f"{run['threads']} threads, onnxruntime {run['version']}{quantised}",
            "macs": simulation["macs"], "ms": run["latency_ms"], "method": "measured",
            "counted": f"median of {run['runs']} runs", "mj": None if joules is None else [1000 * joules] * 3,
            "energy_method": None if joules is None else "measured", "source": "this report",
        }  # fmt: skip


def _of_others(design: Published) -> dict[str, Any]:
    mj = design.millijoules
    taken = ", ".join(
        f"{value:,g} {name}"
        for name, value in (("DSP", design.dsp), ("LUT", design.lut), ("BRAM36", design.bram36))
        if value is not None
    )
    return {
        "name": design.name, "network": design.model, "board": design.board, "precision": design.precision,
        "clock_mhz": design.clock_mhz, "configuration": taken or None, "macs": design.macs, "ms": design.latency_ms,
        "method": "published", "counted": design.method, "mj": None if mj is None else [mj] * 3,
        "energy_method": None if mj is None else "published", "source": design.source,
    }  # fmt: skip
