"""Boards with a Zynq UltraScale+: what a design for one needs to know of it. One module a board.

The names of the processing system's ports and parameters are those of PG201 (Zynq UltraScale+ MPSoC Processing System):
``S_AXI_HP0_FPD`` is enabled as S_AXI_GP2, ``S_AXI_HP1_FPD`` as S_AXI_GP3 and so on.
"""

from dataclasses import dataclass

from moevit.errors import ConfigError

HP_DATA_WIDTHS = (32, 64, 128)  #: that an HP port can have (PG201)
HP_PORTS = 4
MAX_PL_CLOCK_MHZ = 400.0  #: more than the processing system gives its fabric clocks


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A part of the DRAM as the HP ports see it: the segment ``HP<n>_<name>``."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class ZynqBoard:
    """A board as the Vivado flow and the driver need it.

    name : as in :mod:`moevit.boards.devices`, which has the device's resources
    title : its name in words
    part : with package, speed and temperature grade
    board_part : pattern of Vivado's board files, of which the latest is taken
    connections : value of the project's ``board_connections``: of a module, the carrier that it sits on
    memory : what the DRAM is
    hp_ports : numbers of the HP ports that the machine's masters are shared out to
    register_base : address of the registers, behind M_AXI_HPM0_FPD
    models : how the boards' Linux may begin its name of the board (``/proc/device-tree/model``)
    sensors : hwmon sensors whose sum is what ``power`` names
    power : what these measure
    free_license : whether Vivado's Standard Edition builds for the device (UG973)
    """

    name: str
    title: str
    part: str
    board_part: str
    connections: str = ""
    memory: tuple[Memory, ...]
    hp_ports: tuple[int, ...] = (0, 1, 2, 3)
    register_base: int = 0xA000_0000
    models: tuple[str, ...]
    sensors: tuple[str, ...]
    power: str
    free_license: bool


def get_zynq_board(name: str) -> ZynqBoard:
    """A board by its name. Raises ConfigError naming those that exist."""
    from moevit.boards.zynq import kv260, zcu102, zcu104

    boards = {board.name: board for board in (zcu104.BOARD, zcu102.BOARD, kv260.BOARD)}
    if name not in boards:
        raise ConfigError(f"no Vivado flow for a board named {name!r}", mend=f"choose one of {', '.join(boards)}")
    return boards[name]
