"""From a design to a bitstream: synthesise, place and route, pack. Each result is kept under its inputs' digest."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moevit.boards.ulx3s import report, toolchain
from moevit.boards.ulx3s.design import Design
from moevit.boards.ulx3s.gateware.board import TOP, generate
from moevit.boards.ulx3s.pins import constraints
from moevit.errors import ToolError
from moevit.sim.verilate import cache_folder

_log = logging.getLogger(__name__)

Announce = Callable[[str], None]

SEED = 1
#: the netlist as nextpnr reads it, and as Verilog of cells for the simulation of what was synthesised
NETLIST, CELLS = "netlist.json", "netlist.v"
COUNTS = "cells.json"
SYNTHESIS_LOG, ROUTE_LOG, PACK_LOG = "yosys.log", "nextpnr.log", "ecppack.log"
SOURCE, CONSTRAINTS, ROUTED, TIMING = f"{TOP}.v", f"{TOP}.lpf", f"{TOP}.config", "timing.json"
BITSTREAM, SVF = f"{TOP}.bit", f"{TOP}.svf"
REPORT = {"json": "report.json", "text": "report.txt"}
SECONDS = "seconds.json"

#: Memories may not say what they should be made of: the ECP5 has one kind of block RAM.
SYNTHESIS = (
    f"read_verilog {SOURCE}",
    "setattr -unset ram_style m:*",
    f"synth_ecp5 -top {TOP}",
    f"tee -q -o {COUNTS} stat -json",
    f"write_json {NETLIST}",
    f"write_verilog -noattr {CELLS}",
)
DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")
#: The placer that weighs wires by density. What the default one, HeAP, makes of this design cannot be routed: its wires
#: are a fifth longer, and some 10,000 places in the fabric stay wanted twice.
PLACER = ("--placer", "static")
ROUTER = ("--router", "router2")  #: the other one takes half an hour
PACK = ("--compress", "--svf", SVF, ROUTED, BITSTREAM)

_SPREADING = re.compile(r"iter=(\d*0) steplen=")  # every tenth of some 550
_ITERATION = re.compile(r"at iteration #(\d+)")
_ROUTER = re.compile(r"iter=(\d+) wires=\d+ overused=(\d+)")
_STAGE = re.compile(r"Info: (Packing|Promoting|Annotating|Creating|Running|Routing|Device utilisation)\b[^.:]*")


@dataclass(frozen=True)
class Synthesised:
    """A design's netlist; ``folder`` is in the cache and has NETLIST, CELLS, SOURCE and the log."""

    folder: Path
    digest: str
    seconds: float


def synthesise(design: Design, announce: Announce = _log.info) -> Synthesised:
    """The design's netlist of ECP5 cells, from the cache or by Yosys. Raises ToolError if that is missing or fails."""
    versions = toolchain.require(toolchain.YOSYS)
    announce(f"generating the Verilog of {design.config.name} …")
    verilog = generate(design)
    digest = _digest(verilog, versions[toolchain.YOSYS], *SYNTHESIS)

    def make(folder: Path) -> None:
        announce("yosys: mapping to the ECP5's cells …")
        (folder / SOURCE).write_text(verilog)
        toolchain.yosys(SYNTHESIS, folder, folder / SYNTHESIS_LOG)

    folder = _kept("synthesis-ecp5", digest, make, announce)
    return Synthesised(folder, digest, _seconds(folder))


def build(design: Design, target: Path, *, seed: int = SEED, announce: Announce = _log.info) -> dict[str, Any]:
    """Build a design and put what comes out into a folder.

    Parameters
    ----------
    design : what to build
    target : where BITSTREAM, SVF, the report, nextpnr's own report and the logs go; made if it does not exist
    seed : of the placement
    announce : told what is being done

    Returns
    -------
    The report (:mod:`moevit.boards.ulx3s.report`). If it says that a clock is missed, BITSTREAM and SVF are not written
    and those that were there are removed: a bitstream of another build would pass for this one's.

    Raises
    ------
    ToolError : a tool is missing or fails
    """
    versions = toolchain.require(toolchain.YOSYS, toolchain.NEXTPNR)
    synthesised = synthesise(design, announce)
    pins = constraints()
    route = (
        *DEVICE, *PLACER, *ROUTER, "--json", NETLIST, "--lpf", CONSTRAINTS, "--textcfg", ROUTED,
        "--report", TIMING, "--freq", f"{design.clock_mhz:g}", "--seed", str(seed), "--timing-allow-fail",
    )  # fmt: skip
    digest = _digest(synthesised.digest, pins, versions[toolchain.NEXTPNR], *route, *PACK)

    def make(folder: Path) -> None:
        (folder / CONSTRAINTS).write_text(pins)
        # A WebAssembly program sees no other folder of /tmp, where the cache may be.
        shutil.copy(synthesised.folder / NETLIST, folder)
        toolchain.nextpnr(route, folder, folder / ROUTE_LOG, _Follower(announce))
        (folder / NETLIST).unlink()
        announce("ecppack: packing the bitstream …")
        toolchain.ecppack(PACK, folder, folder / PACK_LOG)

    folder = _kept("bitstreams", digest, make, announce)
    seconds = {"yosys": synthesised.seconds, "nextpnr and ecppack": _seconds(folder)}
    about = {"tools": versions, "seed": seed, "digest": digest, "seconds": seconds}
    values = report.report(design, json.loads((folder / TIMING).read_text()), about)
    met = not report.missed(values)
    target.mkdir(parents=True, exist_ok=True)
    for name in (BITSTREAM, SVF):
        if met:
            _copy(folder / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    for source in (folder / CONSTRAINTS, folder / ROUTE_LOG, folder / TIMING, synthesised.folder / SYNTHESIS_LOG):
        _copy(source, target / source.name)
    _write_report(values, target)
    return values


def resources(design: Design, target: Path, *, announce: Announce = _log.info) -> dict[str, Any]:
    """Only synthesise a design, and report what it takes; parameters and errors as of :func:`build`."""
    versions = toolchain.require(toolchain.YOSYS)
    synthesised = synthesise(design, announce)
    counts = json.loads((synthesised.folder / COUNTS).read_text())["modules"][f"\\{TOP}"]["num_cells_by_type"]
    about = {"tools": versions, "digest": synthesised.digest, "seconds": {"yosys": synthesised.seconds}}
    values = report.report(design, {"utilization": report.packed(counts), "fmax": {}}, about)
    target.mkdir(parents=True, exist_ok=True)
    _copy(synthesised.folder / SYNTHESIS_LOG, target / SYNTHESIS_LOG)
    _write_report(values, target)
    return values


def written(target: Path) -> list[str]:
    """Names of what is in a target folder of this flow."""
    names = (BITSTREAM, SVF, *REPORT.values(), TIMING, CONSTRAINTS, ROUTE_LOG, SYNTHESIS_LOG)
    return [name for name in names if (target / name).is_file()]


def _write_report(values: dict[str, Any], target: Path) -> None:
    _write(target / REPORT["text"], "\n".join(report.lines(values)) + "\n")
    _write(target / REPORT["json"], json.dumps(values, indent=2) + "\n")


class _Follower:
    """Picks from nextpnr's lines those that say how far it is."""

    def __init__(self, announce: Announce) -> None:
        self.announce, self.said = announce, ""

    def __call__(self, line: str) -> None:
        if found := _SPREADING.search(line):
            text = f"placing, iteration {found[1]}"
        elif found := _ITERATION.search(line):
            text = f"refining the placement, iteration {found[1]}"
        elif found := _ROUTER.search(line):
            text = f"routing, iteration {found[1]}: {int(found[2]):,} wires overused"
        elif found := _STAGE.match(line):
            text = found[0].removeprefix("Info: ").strip()
            text = text[0].lower() + text[1:]
        else:
            return
        if text != self.said:
            self.said = text
            self.announce(f"nextpnr: {text} …")


def _kept(kind: str, digest: str, make: Callable[[Path], None], announce: Announce) -> Path:
    """The folder of a digest in the cache; made whole or not at all."""
    place = cache_folder() / kind / digest
    if place.is_dir():
        announce(f"{kind}: kept from an earlier build, {digest}")
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    temporary = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=place.parent))
    try:
        make(temporary)
        (temporary / SECONDS).write_text(json.dumps(time.monotonic() - started))
        if not place.is_dir():  # another process may have been faster
            os.replace(temporary, place)
    except ToolError as error:
        kept = [place.parent / f"failed-{log.name}" for log in temporary.glob("*.log")]
        for log in kept:
            shutil.copy(temporary / log.name.removeprefix("failed-"), log)
        logs = " and ".join(map(str, kept))
        raise ToolError(error.what, where=error.where, mend=f"the whole log: {logs}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _seconds(folder: Path) -> float:
    """How long it took to make a folder of the cache."""
    return float(json.loads((folder / SECONDS).read_text()))


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy(source, temporary)
    os.replace(temporary, target)


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, target)


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]
