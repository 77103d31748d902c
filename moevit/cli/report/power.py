"""Which power is shown for which task: a board's sensor, else Vivado's report, else the estimate."""

from collections.abc import Sequence
from pathlib import Path

from moevit.energy.power import VIVADO, Power, read_power
from moevit.errors import InputError
from moevit.program import Program


def powers(program: Program, files: Sequence[Path]) -> dict[str, Power]:
    """By task: the power that replaces its estimate.

    Vivado's report stands for every task that no sensor's file is for.

    Parameters
    ----------
    program : whose machine and tasks the files have to be of
    files : as :func:`moevit.energy.power.read_power` takes them

    Raises
    ------
    InputError : a file is none, of another machine, of no task of the program, or the second of its kind
    """
    of_chip: Power | None = None
    of_tasks: dict[str, Power] = {}
    for path in files:
        power, where = read_power(path), f"--power {path}"
        if power.method == VIVADO:
            if of_chip is not None:
                raise InputError("a second report of Vivado", where=where, mend="give the one of this machine")
            _same_device(program, power, where)
            of_chip = power
        else:
            if power.task not in program.names:
                known = ", ".join(program.names)
                raise InputError(f"is of task {power.task!r}", where=where, mend=f"the container's are {known}")
            if power.task in of_tasks:
                raise InputError(f"a second run of task {power.task!r}", where=where, mend="give one for each task")
            if power.config_digest != f"{program.config.digest:016x}":
                raise InputError(
                    f"is of configuration {power.config_digest}, the container of {program.config.digest:016x}",
                    where=where, mend="run this container on the board",
                )  # fmt: skip
            of_tasks[power.task] = power
    everywhere = {} if of_chip is None else dict.fromkeys(program.names, of_chip)
    return everywhere | of_tasks


def _same_device(program: Program, power: Power, where: str) -> None:
    """Raises InputError if the report is of another part than the configuration is sized for."""
    part = program.config.device.partition("-")[0].lower()
    if part != "none" and power.device is not None and not power.device.lower().startswith(part):
        raise InputError(
            f"is of {power.device}, the configuration of {program.config.device}", where=where,
            mend="give the power report of this machine",
        )  # fmt: skip
