"""Builds the design's simulation and talks to it as to a serial port."""

import hashlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from moevit import tools
from moevit.boards.ulx3s import toolchain
from moevit.boards.ulx3s.flow import CELLS, Synthesised
from moevit.boards.ulx3s.gateware.board import TOP
from moevit.errors import DeviceError, ToolError
from moevit.sim.verilate import cache_folder

_SOURCES = Path(__file__).parent
HARNESS, MODELS, TABLES = "harness.cpp", "cells.v", "luts.v"
MAX_CYCLES = 1 << 40
_VERILATOR = (
    "--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "-Wno-fatal",
    "-Wno-lint", "-Wno-style", "--output-split", "20000", "--top-module", TOP, "--prefix", f"V{TOP}",
)  # fmt: skip
_MAKE = ("OPT_FAST=-O1", "OPT_GLOBAL=-O1", "OPT_SLOW=-O0")


def plain_netlist(synthesised: Synthesised, announce: Callable[[str], None]) -> str:
    """What was synthesised, as Verilog of Yosys' own models of its cells.

    Each carry, register and small memory is replaced by what `cells_sim.v` of Yosys says about it, and each LUT by its
    table, so that a simulator need not call 70,000 modules. The larger cells are left to `cells.v`.
    """
    spec = find_spec("pyosys")
    assert spec is not None and spec.origin is not None
    linked = {
        CELLS: synthesised.folder / CELLS,
        TABLES: _SOURCES / TABLES,
        "ecp5": Path(spec.origin).parent / "share" / "ecp5",
    }
    script = (
        f"read_verilog {CELLS}",
        "read_verilog -Iecp5 -DNO_INCLUDES ecp5/cells_sim.v",
        "blackbox LUT4 LUT2",
        f"hierarchy -top {TOP}",
        "proc",
        "flatten",
        f"techmap -map {TABLES}",
        "opt_lut",
        "rename -hide w:*",  # a net has many long names
        "opt_expr",
        "opt_clean -purge",
        "write_verilog -noattr plain.v",
    )
    kept = synthesised.folder / f"plain-{_digest(*script, linked[TABLES].read_text())}.v"
    if not kept.is_file():
        announce("yosys: writing out the netlist's cells …")
        with tempfile.TemporaryDirectory(prefix="moevit-netlist-") as name:
            folder = Path(name)
            for link, target in linked.items():
                (folder / link).symlink_to(target)
            toolchain.yosys(script, folder, folder / "yosys.log")
            temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
            shutil.copy(folder / "plain.v", temporary)
            os.replace(temporary, kept)
    return kept.read_text()


def build(verilog: str, announce: Callable[[str], None]) -> Path:
    """The simulation of a Verilog text with the board's ports; from the cache, or built.

    Raises
    ------
    ToolError : Verilator, a C++ compiler or make is missing or failed
    """
    own = [(_SOURCES / name).read_text() for name in (HARNESS, MODELS)]
    versions = [f"{k} {v}" for k, v in sorted(tools.tool_versions().items())]
    tools.require_make()
    target = cache_folder() / "models" / f"{TOP}-{_digest(verilog, *own, *versions, *_VERILATOR, *_MAKE)}"
    if target.is_file():
        return target
    announce("verilator: building the simulation …")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="moevit-build-") as name:
        folder = Path(name)
        verilator = tools.find_verilator()
        root = folder / "verilator"
        root.symlink_to(tools.verilator_root(verilator))
        (folder / f"{TOP}.v").write_text(verilog)
        for source in (HARNESS, MODELS):
            shutil.copy(_SOURCES / source, folder)
        command = [str(verilator), *_VERILATOR, *tools.VERILATOR_FLAGS, "-j", str(len(os.sched_getaffinity(0)))]
        for option in (*_MAKE, f"CXX={tools.require_cxx()}", "LDLIBS=-pthread"):
            command += ["-MAKEFLAGS", f"'{option}'"]
        command += ["--Mdir", "build", "-o", "simulate", f"{TOP}.v", MODELS, f"../{HARNESS}"]
        run = subprocess.run(
            command, cwd=folder, env=tools.verilator_environment() | {"VERILATOR_ROOT": str(root)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        executable = folder / "build" / "simulate"
        if run.returncode != 0 or not executable.is_file():
            log = cache_folder() / "failed-build.log"
            log.write_text(run.stdout)
            telling = [line.strip() for line in run.stdout.splitlines() if "error" in line.lower()]
            reason = (telling or ["Verilator failed without a word"])[0][:300]
            raise ToolError(reason, where="building the board's simulation", mend=f"the whole log: {log}")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy(executable, temporary)
        os.replace(temporary, target)
    return target


class SimulatedPort:
    """A serial port with the simulated board at its other end, as ``moevit.driver.serial.Port``.

    Parameters
    ----------
    executable : what :func:`build` made
    divisor : cycles of a bit
    """

    def __init__(self, executable: Path, divisor: int) -> None:
        self.timeout: float | None = None
        self.cycles = 0  #: after close
        self._process = subprocess.Popen(
            [executable, str(divisor), str(MAX_CYCLES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def write(self, data: bytes) -> int:
        """Send bytes. Raises DeviceError if the simulation has ended."""
        assert self._process.stdin is not None
        try:
            at = 0
            while at < len(data):
                at += self._process.stdin.write(data[at:]) or 0
        except BrokenPipeError as error:
            raise DeviceError(self._reason(), where="the board's simulation") from error
        return len(data)

    def read(self, size: int = 1) -> bytes:
        """Up to ``size`` bytes, as many as come before the timeout. Raises DeviceError if the simulation has ended."""
        assert self._process.stdout is not None
        limit = None if self.timeout is None else time.monotonic() + self.timeout
        data = b""
        while len(data) < size:
            left = None if limit is None else max(0.0, limit - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                break
            part = self._process.stdout.read(size - len(data))
            if not part:
                raise DeviceError(self._reason(), where="the board's simulation")
            data += part
        return data

    def reset_input_buffer(self) -> None:
        """Forget what has come."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 0)[0]:
            if not self._process.stdout.read(4096):
                break

    def close(self) -> None:
        """End the simulation."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self.reset_input_buffer()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            assert self._process.stderr is not None and self._process.stdout is not None
            said = self._process.stderr.read().decode(errors="replace").split()
            self.cycles = int(said[-1]) if self._process.returncode == 0 and said else 0
            self._process.stdout.close()
            self._process.stderr.close()

    def _reason(self) -> str:
        assert self._process.stderr is not None
        said = " ".join(self._process.stderr.read().decode(errors="replace").split())
        return f"it has ended: {said or f'exit status {self._process.wait()}'}"


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]
