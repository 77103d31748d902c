"""`moevit build`: a machine on a board, by the vendor's tools or open ones, or what it takes there by synthesis."""

import json
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command
from moevit.errors import ConfigError, ToolError, VendorToolMissingError

if TYPE_CHECKING:
    from moevit.boards.devices import Board
    from moevit.boards.synthesis.flow import Synthesised
    from moevit.config import AcceleratorConfig

FILES = {"json": "resources.json", "text": "resources.txt"}

EXAMPLES = """
\b
Examples:
  moevit build zcu104 -o build/zcu104
  moevit build ulx3s -o build/ulx3s
  moevit build zcu104 --synth -o build/zcu104
  moevit build kv260 --synth --config mine.json -o build/kv260 --json
"""


@json_command(name="build", epilog=EXAMPLES)
@click.argument("board_name", metavar="BOARD")
@click.option(
    "--synth", is_flag=True,
    help="Only synthesise with Yosys, and report LUTs, registers, multipliers and memories.",
)
@click.option("--config", "config_name", metavar="NAME|FILE.json", help="The machine, if not the board's own.")
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help=f"Where the project goes, or {' and '.join(FILES.values())}; made if it does not exist.",
)
def command(output: Output, board_name: str, synth: bool, config_name: str | None, folder: Path) -> dict[str, Any]:
    """Build a machine for a board.

    Writes a project for Vivado (Verilog, block design and flow as Tcl, constraints) and runs Vivado over it, up to
    bitstream, hardware platform and reports. Where Vivado is not installed, the Tcl is executed with stand-ins for
    Vivado's commands, and the exit status is 3: the project is complete, and the command that is printed runs it
    anywhere.

    With --synth, Yosys maps the generated Verilog to the device's cells, unit by unit, and the units are added up. That
    takes some minutes the first time; what has been mapped is kept. It is an estimate: nothing is placed or routed. The
    exit status is 1 if the device is too small.

    The bitstream for ulx3s comes from open tools alone (Yosys, nextpnr, ecppack), which `pip install 'moevit[ulx3s]'`
    brings. It takes some minutes the first time; the exit status is 1 if a clock is missed.
    """
    started = time.perf_counter()
    from moevit.boards.devices import OTHER_BOARDS, get_board

    if board_name in OTHER_BOARDS:
        from moevit.cli.build_ulx3s import build
        from moevit.config import get_config

        config = get_config(config_name or OTHER_BOARDS[board_name])
        return build(output, config, folder, synth=synth) | {"wall_s": time.perf_counter() - started}
    board = get_board(board_name)
    name = config_name or board.config
    if name is None:
        raise ConfigError(f"no configuration is sized for {board.name}", mend="choose one with --config")
    from moevit.config import get_config

    config = get_config(name)
    values = (_synthesise if synth else _build)(output, board, config, folder)
    return values | {"wall_s": time.perf_counter() - started}


def _generate(output: Output, board: "Board", config: "AcceleratorConfig") -> str:
    """The machine's Verilog. Memories that ask for UltraRAM ask for block RAM where the device has none."""
    from moevit.hw.verilog import generate

    output.note(f"generating {config.name} …")
    verilog = generate(config)
    return verilog if board.device.uram else verilog.replace('ram_style = "ultra"', 'ram_style = "block"')


def _build(output: Output, board: "Board", config: "AcceleratorConfig", folder: Path) -> dict[str, Any]:
    """The project, and Vivado's run over it."""
    from moevit.boards.vivado import VERSION, project
    from moevit.boards.vivado.script import script
    from moevit.boards.zynq import get_zynq_board

    zynq = get_zynq_board(board.name)
    script(config, zynq)  # whether the board can have it, before a minute is spent on the Verilog
    files = project.write_project(_generate(output, board, config), config, zynq, folder)
    output.say(f"Wrote the Vivado {VERSION} project of {config.name} for the {zynq.title}:")
    for file in files.values():
        output.say(f"  {file}")
    values: dict[str, Any] = {"board": board.name, "part": zynq.part, "config": config.name}
    values |= {"config_digest": f"{config.digest:016x}", "files": files}
    vivado = project.find_vivado()
    if vivado is None:
        calls = _check_script(files["script"]) if find_spec("_tkinter") else None
        if calls is None:
            output.say("Its Tcl was not checked: Python has no tkinter (on Debian: apt-get install python3-tk).")
        else:
            output.say(f"Executed its {calls} Vivado commands with stand-ins for Vivado: it has not run in Vivado.")
        raise VendorToolMissingError(
            "Vivado is not on PATH; the project is complete", where=str(folder),
            mend=f"run this where Vivado {VERSION} is: {' '.join(project.command(folder))}",
        )  # fmt: skip
    values["files"] = files | project.run_vivado(vivado, folder, output.note)
    output.say(f"Vivado's reports are in {folder / 'reports'}; the bitstream: {values['files']['bit']}")
    return values


def _check_script(path: Path) -> int:
    """Execute a copy of a project without Vivado. Returns the number of Vivado's commands.

    Raises
    ------
    ToolError : a command does not exist, or is not used as Vivado has it, or Python has no Tcl
    """
    from moevit.boards.vivado.recorder import record

    with tempfile.TemporaryDirectory(prefix="moevit-tcl-") as name:
        for file in path.parent.iterdir():
            if file.is_file():
                shutil.copy(file, name)
        outcome = record(Path(name) / path.name)
    if outcome.status != 0:
        raise ToolError("; ".join(outcome.messages[-1:]), where=str(path), mend="please report it: it is moevit's own")
    return len(outcome.calls)


def _synthesise(output: Output, board: "Board", config: "AcceleratorConfig", folder: Path) -> dict[str, Any]:
    """What a machine takes, by open synthesis."""
    from moevit.boards.synthesis.flow import require_pyosys, synthesise
    from moevit.boards.synthesis.report import exceeded, lines, report

    version = require_pyosys()
    folder.mkdir(parents=True, exist_ok=True)

    from moevit.hw.verilog import TOP

    verilog = _generate(output, board, config)

    def announce(unit: "Synthesised", done: int, of: int) -> None:
        took = f"{unit.seconds:.0f} s" if unit.seconds else "kept"
        output.note(f"[{done:{len(str(of))}}/{of}] {unit.unit.name}: {took}")

    units = synthesise(verilog, TOP, announce, uram=board.device.uram > 0)
    values = {"board": board.name, "config": config.name, "config_digest": f"{config.digest:016x}"}
    values |= {"pyosys": version} | report(units, board.device)
    text = lines(values)
    for line in text:
        output.say(line)
    (folder / FILES["json"]).write_text(json.dumps(values, indent=2) + "\n")
    (folder / FILES["text"]).write_text("\n".join(text) + "\n")
    for what in exceeded(values):
        output.fail(f"{board.device.part} is too small: {what}")
    return values | {"files": {what: folder / file for what, file in FILES.items()}}
