"""`moevit build`: what a machine takes on a board's device, by open synthesis."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command
from moevit.errors import ConfigError

if TYPE_CHECKING:
    from moevit.boards.synthesis.flow import Synthesised

FILES = {"json": "resources.json", "text": "resources.txt"}

EXAMPLES = """
\b
Examples:
  moevit build zcu104 --synth -o build/zcu104
  moevit build kv260 --synth --config mine.json -o build/kv260 --json
"""


@json_command(name="build", epilog=EXAMPLES)
@click.argument("board_name", metavar="BOARD")
@click.option(
    "--synth", is_flag=True,
    help="Synthesise with Yosys and report LUTs, registers, DSPs, memories and levels of logic.",
)
@click.option("--config", "config_name", metavar="NAME|FILE.json", help="The machine, if not the board's own.")
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help=f"Where {' and '.join(FILES.values())} go; made if it does not exist.",
)
def command(output: Output, board_name: str, synth: bool, config_name: str | None, folder: Path) -> dict[str, Any]:
    """Report what a machine takes on a board's device.

    With --synth, Yosys maps the generated Verilog to the device's cells, unit by unit, and the units are added up. That
    takes some minutes the first time; what has been mapped is kept. It is an estimate: nothing is placed or routed. The
    exit status is 1 if the device is too small. Projects for the vendor's tools will come later.
    """
    started = time.perf_counter()
    from moevit.boards.devices import get_board

    board = get_board(board_name)
    if not synth:
        raise click.UsageError("board builds come later; for now there is --synth, which reports resources")
    name = config_name or board.config
    if name is None:
        raise ConfigError(f"no configuration is sized for {board.name}", mend="choose one with --config")

    from moevit.boards.synthesis.flow import require_pyosys, synthesise
    from moevit.boards.synthesis.report import exceeded, lines, report
    from moevit.config import get_config

    config = get_config(name)
    version = require_pyosys()
    folder.mkdir(parents=True, exist_ok=True)

    from moevit.hw.verilog import TOP, generate

    output.note(f"generating {config.name} …")
    verilog = generate(config)

    def announce(unit: "Synthesised", done: int, of: int) -> None:
        took = f"{unit.seconds:.0f} s" if unit.seconds else "kept"
        output.note(f"[{done:{len(str(of))}}/{of}] {unit.unit.name}: {took}")

    units = synthesise(verilog, TOP, announce)
    values = {"board": board.name, "config": config.name, "config_digest": f"{config.digest:016x}"}
    values |= {"pyosys": version} | report(units, board.device)
    text = lines(values)
    for line in text:
        output.say(line)
    (folder / FILES["json"]).write_text(json.dumps(values, indent=2) + "\n")
    (folder / FILES["text"]).write_text("\n".join(text) + "\n")
    for what in exceeded(values):
        output.fail(f"{board.device.part} is too small: {what}")
    files = {what: folder / file for what, file in FILES.items()}
    return values | {"files": files, "wall_s": time.perf_counter() - started}
