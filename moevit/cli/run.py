"""`moevit run`: run a container on a device."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command
from moevit.cli.simulate import say_outputs, write_npz
from moevit.errors import InputError

if TYPE_CHECKING:
    from moevit.config import AcceleratorConfig
    from moevit.driver import Link
    from moevit.program import Program
    from moevit.sim.on_device import DeviceResult

SERIAL = "serial:"  #: before the port
DEVICES = f"pynq, {SERIAL}PORT, rtl"

EXAMPLES = """
\b
Examples:
  moevit run vit.moevit --device rtl --inputs images.npz --limit 2 --check
  moevit run vit.moevit --device serial:/dev/ttyUSB0 --inputs images.npz
  sudo -E moevit run vit.moevit --device pynq --bitstream moevit.bit --inputs images.npz --check
"""


@json_command(name="run", epilog=EXAMPLES)
@click.argument("container", type=click.Path(path_type=Path), metavar="FILE.moevit")
@click.argument("more_inputs", nargs=-1, type=click.Path(path_type=Path), metavar="[INPUT...]")
@click.option(
    "--device", required=True, metavar="DEVICE",
    help="pynq: the Zynq board that this runs on; serial:PORT: a board on a serial line; rtl: the Verilog, simulated.",
)
@click.option(
    "--bitstream", type=click.Path(path_type=Path), metavar="FILE.bit",
    help="Of pynq: what `moevit build` made; its .hwh and moevit.json lie beside it.",
)
@click.option("--any-board", is_flag=True, help="Of pynq: load the bitstream whatever Linux calls the board.")
@click.option(
    "--inputs", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE.npz|IMAGE|DIR",
    help="Arrays [N, ...] by input name, float, or uint8 for pixels; or pictures. More may follow.",
)
@click.option("--task", metavar="NAME", help="The task to run; the first without it.")
@click.option(
    "--check", is_flag=True,
    help="Compare every output with the NumPy reference, byte for byte; the exit status is 1 if one differs.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N inputs.")
@click.option("--outputs", type=click.Path(path_type=Path), metavar="OUT.npz", help="Write the outputs, float32.")
def command(
    output: Output,
    container: Path,
    more_inputs: tuple[Path, ...],
    device: str,
    bitstream: Path | None,
    any_board: bool,
    inputs: tuple[Path, ...],
    task: str | None,
    check: bool,
    limit: int | None,
    outputs: Path | None,
) -> dict[str, Any]:
    """Run a container on a device: a board, or the simulated machine behind the same driver.

    Prints what came out, the machine's cycles, and the power that the board drew meanwhile where it has a sensor.
    """
    from moevit.container import load
    from moevit.driver import Device
    from moevit.sim.inputs import read_inputs
    from moevit.sim.on_device import run_on_device

    program = load(container)
    chosen = program.pipeline(task)
    values = read_inputs({x.name: x.shape for x in chosen.inputs}, [*inputs, *more_inputs]).limited(limit)
    if outputs is not None and not outputs.absolute().parent.is_dir():
        raise InputError("its folder does not exist", where=f"--outputs {outputs}")
    link, config = open_link(device, program, output, bitstream, any_board)
    with Device(link, config) as opened, output.progress(device, len(values)) as advance:
        result = run_on_device(
            opened, program, values, chosen.name, check=check, progress=advance, raise_mismatch=False
        )
    if outputs is not None:
        write_npz(outputs, result.outputs)
    _say(output, result)
    if result.mismatch is not None:
        output.fail(str(result.mismatch))
    return result.as_dict() | {"outputs": outputs}


def open_link(
    device: str, program: "Program", output: Output, bitstream: Path | None, any_board: bool
) -> "tuple[Link, AcceleratorConfig | None]":
    """The link that ``--device`` names, and the configuration that should be behind it, where that is known.

    Raises
    ------
    InputError : no such device, or an option is missing or another's
    DeviceError, ContainerError, ToolError : it cannot be opened
    """
    if device == "pynq":
        if bitstream is None:
            raise InputError("which bitstream to load is not known", where="--device pynq", mend="add --bitstream")
        from moevit.driver.pynq import PynqLink

        link = PynqLink(bitstream, program.config, any_board=any_board)
        return link, link.config
    if bitstream is not None or any_board:
        raise InputError("only pynq loads a bitstream", where=f"--device {device}", mend="leave --bitstream away")
    if device == "rtl":
        from moevit.sim.device import RtlLink

        return RtlLink(program.config, announce=output.note), None
    if device.startswith(SERIAL):
        from moevit.driver.serial import SerialLink

        return SerialLink(device.removeprefix(SERIAL)), None
    raise InputError(f"no device {device!r}", mend=f"choose one of {DEVICES}")


def _say(output: Output, result: "DeviceResult") -> None:
    """The report for a person."""
    images = "1 image" if result.images == 1 else f"{result.images} images"
    output.say(f"Task {result.task} on {result.device} ({result.config}): {images} in {result.wall_s:.1f} s")
    say_outputs(output, result.outputs)
    low, high = min(result.cycles), max(result.cycles)
    spread = f"{low:,}" if low == high else f"{low:,} … {high:,}"
    values = result.as_dict()
    output.say(
        f"Cycles: {spread}; {values['latency_ms']:.3f} ms at {result.clock_mhz:g} MHz, "
        f"{values['host_latency_ms']:.3f} ms as the host sees it"
    )
    for name, seconds in result.host_seconds.items():
        output.say(f"Host part {name}: {1000 * seconds:.3f} ms an image")
    if result.power_w is not None:
        output.say(f"Power of the board meanwhile: {result.power_w:.2f} W")
    if result.bit_exact:
        output.say(f"Bit-exact: {result.checked_values:,} values of outputs compared.")
