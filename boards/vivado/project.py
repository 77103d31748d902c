"""The folder with everything that Vivado needs, and the run of Vivado over it where that is installed."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moevit
from moevit.boards.vivado import TOP, VERSION
from moevit.boards.vivado.script import ports_of_masters, script
from moevit.boards.vivado.wrapper import wrapper
from moevit.boards.zynq import ZynqBoard
from moevit.config import AcceleratorConfig
from moevit.errors import ToolError
from moevit.registers import ADDRESS_WIDTH

DESCRIPTION = "moevit.json"  #: beside the bitstream, for the driver
RESULTS = ("moevit.bit", "moevit.hwh", "moevit.xsa")
LOG = "vivado.log"


def constraints(config: AcceleratorConfig) -> str:
    """The XDC file. The clock is the processing system's, whose IP brings its constraint; no pin is used."""
    return f"""\
# The bitstream says which configuration it holds, and is packed to load faster (UG908).
set_property BITSTREAM.CONFIG.USERID 0x{config.digest & 0xFFFF_FFFF:08X} [current_design]
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
"""


def description(config: AcceleratorConfig, board: ZynqBoard) -> dict[str, Any]:
    """What the driver must know of a bitstream: which board it is for, and which machine it holds."""
    return {
        "moevit": moevit.__version__,
        "vivado": VERSION,
        "board": board.name,
        "part": board.part,
        "models": list(board.models),
        "config": config.to_dict(),
        "config_digest": f"{config.digest:016x}",
        "registers": {"address": board.register_base, "size": 1 << ADDRESS_WIDTH},
        "interrupt": "moevit/irq",
        "clock_mhz": config.clock_mhz,
        "hp_ports": {f"HP{port}": names for port, names in ports_of_masters(config, board).items()},
        "sensors": list(board.sensors),
        "power": board.power,
    }


def write_project(verilog: str, config: AcceleratorConfig, board: ZynqBoard, folder: Path) -> dict[str, Path]:
    """Write the project's files; the folder is made if it does not exist.

    Parameters
    ----------
    verilog : the machine's, of the configuration

    Returns
    -------
    dict
        What each file is called, by what it is.

    Raises
    ------
    ConfigError : the board cannot have such a machine; then nothing is written
    """
    texts = {
        "script": ("build.tcl", script(config, board)),
        "machine": ("moevit.v", verilog),
        "wrapper": (f"{TOP}.v", wrapper(config)),
        "constraints": ("moevit.xdc", constraints(config)),
        "description": (DESCRIPTION, json.dumps(description(config, board), indent=2) + "\n"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)  # of an earlier configuration
    for name, text in texts.values():
        (folder / name).write_text(text)
    return {what: folder / name for what, (name, _) in texts.items()}


def command(folder: Path) -> list[str]:
    """What runs Vivado over a project."""
    log = ["-log", str(folder / LOG), "-nojournal"]
    return ["vivado", "-mode", "batch", "-notrace", *log, "-source", str(folder / "build.tcl")]


def find_vivado() -> str | None:
    """Vivado on PATH, or where its settings script says it lies."""
    installed = os.environ.get("XILINX_VIVADO")
    places = [None, str(Path(installed) / "bin")] if installed else [None]
    return next((found for place in places if (found := shutil.which("vivado", path=place))), None)


def run_vivado(vivado: str, folder: Path, announce: Callable[[str], None]) -> dict[str, Path]:
    """Run Vivado over a project, which takes an hour or more; returns the results' files.

    Raises
    ------
    ToolError : Vivado or the script stopped: its last error, and where the log is
    """
    words = command(folder.absolute())
    announce(f"running {' '.join(words)} …")
    status = subprocess.run([vivado, *words[1:]], cwd=folder, stdin=subprocess.DEVNULL, check=False).returncode
    log = folder / LOG
    missing = [name for name in RESULTS if not (folder / name).is_file()]
    if status != 0 or missing:
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = errors[-1] if errors else f"exit status {status}, without {', '.join(missing) or 'an error'}"
        raise ToolError(reason, where="vivado", mend=f"see {log}")
    return {Path(name).suffix[1:]: folder / name for name in RESULTS}
