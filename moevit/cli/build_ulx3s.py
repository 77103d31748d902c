"""`moevit build ulx3s`: the bitstream by open tools, or what Yosys makes of the design."""

from pathlib import Path
from typing import Any

from moevit.cli.output import Output
from moevit.config import AcceleratorConfig


def build(output: Output, config: AcceleratorConfig, folder: Path, *, synth: bool) -> dict[str, Any]:
    """Build a machine for the board, or only synthesise it.

    Raises
    ------
    ConfigError : the board cannot have this configuration
    ToolError : a tool is missing or failed
    """
    from moevit.boards.ulx3s import flow, report
    from moevit.boards.ulx3s.design import Design

    design = Design(config=config)
    if synth:
        values = flow.resources(design, folder, announce=output.note)
    else:
        values = flow.build(design, folder, announce=output.note)
        for what in report.missed(values):
            output.fail(f"{what}: no bitstream was written")
    for line in report.lines(values):
        output.say(line)
    for what in report.exceeded(values):
        output.fail(f"{config.device} is too small: {what}")
    return values | {"files": {name: folder / name for name in flow.written(folder)}}
