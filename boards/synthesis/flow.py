"""Synthesises a machine unit by unit, two or more at a time, and keeps each unit's result for the next time.

A unit's netlist is kept under the digest of its Verilog, of Yosys' version and of the passes, in the folder that the
simulator keeps its models in.
"""

import gzip
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from moevit import tools
from moevit.boards.synthesis import mapping, netlist
from moevit.boards.synthesis.hierarchy import Hierarchy, Unit
from moevit.boards.synthesis.netlist import Resources, Result
from moevit.errors import ToolError
from moevit.sim.verilate import cache_folder

_log = logging.getLogger(__name__)

INSTALL = "pip install 'moevit[test]'"


@dataclass(frozen=True)
class Synthesised:
    """A unit, what came out, where it is used, and how long it took (0 if it was kept)."""

    unit: Unit
    result: Result
    paths: tuple[str, ...]
    seconds: float

    @property
    def resources(self) -> Resources:
        """Of all its instances together."""
        total = Resources()
        for _ in self.paths:
            total += self.result.resources
        return total


def require_pyosys() -> str:
    """The version of pyosys. Raises ToolError if it is not installed."""
    version = tools.package_version("pyosys")
    if version is None:
        raise ToolError("pyosys was not found", mend=f"install it with `{INSTALL}` or `pip install pyosys`")
    return version


def synthesise(
    verilog: str, top: str, announce: Callable[[Synthesised, int, int], None], jobs: int | None = None,
    *, uram: bool = True,
) -> list[Synthesised]:  # fmt: skip
    """All units of a Verilog text, in the order of the hierarchy.

    Parameters
    ----------
    verilog, top : as :func:`moevit.hw.verilog.generate` writes it
    announce : told of each unit when it is done, how many are, and how many there are
    jobs : how many are synthesised at once; as many as there are processors unless given
    uram : whether the device has UltraRAM

    Raises
    ------
    ToolError : pyosys is missing, or failed on a unit
    """
    version = require_pyosys()
    units: dict[str, Unit] = {}
    paths: dict[str, list[str]] = {}
    for path, unit in Hierarchy(verilog).unit(top).instances():
        units.setdefault(unit.digest, unit)
        paths.setdefault(unit.digest, []).append(path)
    # The longest first: memories of many UltraRAMs, then by the amount of Verilog.
    longest_first = sorted(units, key=lambda key: ("ram_style" not in units[key].source, -len(units[key].source)))
    done: dict[str, Synthesised] = {}
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        futures = {pool.submit(_unit, units[key], version, uram): key for key in longest_first}
        try:
            for future in as_completed(futures):
                key = futures[future]
                result, seconds = future.result()
                done[key] = Synthesised(units[key], result, tuple(paths[key]), seconds)
                announce(done[key], len(done), len(units))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [done[key] for key in units]


def _unit(unit: Unit, version: str, uram: bool) -> tuple[Result, float]:
    """A unit's result, and the seconds that its netlist took."""
    passes = "\n".join([mapping.MULTIPLIER, *mapping.script(Path("in"), "unit", Path("map"), Path("out"), uram)])
    key = hashlib.sha256("\0".join([unit.digest, unit.top, version, passes]).encode()).hexdigest()[:24]
    kept = cache_folder() / "synthesis" / f"{key}.json.gz"
    seconds = 0.0
    if not kept.is_file():
        started = time.monotonic()
        kept.parent.mkdir(parents=True, exist_ok=True)
        _map(unit, kept, uram)
        seconds = time.monotonic() - started
    with gzip.open(kept, "rt") as file:
        module = json.load(file)["modules"][unit.top.removeprefix("\\")]
    return netlist.read(module, set(unit.children)), seconds


def _map(unit: Unit, target: Path, uram: bool) -> None:
    """Run Yosys in a process of its own, in a temporary folder, and keep the netlist."""
    with tempfile.TemporaryDirectory(prefix="moevit-synthesis-") as name:
        folder = Path(name)
        source, mapped = folder / "unit.v", folder / "netlist.json"
        source.write_text(unit.source)
        memories = "uram" if uram else "block"
        command = [sys.executable, "-m", mapping.__name__, source.name, unit.top, mapped.name, memories]
        run = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        if run.returncode != 0 or not mapped.is_file():
            log = cache_folder() / "failed-synthesis.log"
            log.write_text(run.stdout)
            raise ToolError(_reason(run.stdout), where=f"synthesis of {unit.name}", mend=f"the whole log: {log}")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with mapped.open("rb") as plain, gzip.open(temporary, "wb", compresslevel=1) as packed:
            shutil.copyfileobj(plain, packed)
        os.replace(temporary, target)


def _reason(log: str) -> str:
    """The line of Yosys' log that says why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR") or "Error" in line]
    return (telling or lines[-1:] or ["Yosys failed without a word"])[0][:300]
