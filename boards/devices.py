"""The devices and boards that are known, as data: what a device has, and which configuration a board is meant for."""

from dataclasses import dataclass

from moevit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device has of each resource.

    lut : LUTs of six inputs
    ff : registers
    dsp : DSP48E2
    bram36 : block RAMs of 36 kbit; half of one is a RAMB18E2
    uram : UltraRAMs of 288 kbit
    """

    part: str
    lut: int
    ff: int
    dsp: int
    bram36: int
    uram: int


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board: its device, and the configuration that is sized for it, if there is one."""

    name: str
    device: Device
    config: str | None


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board(
            name="zcu104",
            device=Device(part="XCZU7EV-2", lut=230_400, ff=460_800, dsp=1_728, bram36=312, uram=96),
            config="zcu104",
        ),
        Board(
            name="zcu102",
            device=Device(part="XCZU9EG-2", lut=274_080, ff=548_160, dsp=2_520, bram36=912, uram=0),
            config="zcu102",
        ),
        Board(
            name="kv260",
            device=Device(part="XCK26", lut=117_120, ff=234_240, dsp=1_248, bram36=144, uram=64),
            config="kv260",
        ),
    )
}

#: Boards of other devices, which have a flow of their own in ``boards/<name>``, and their configurations.
OTHER_BOARDS = {"ulx3s": "ulx3s"}


def get_board(name: str) -> Board:
    """A board by its name. Raises ConfigError naming those that exist."""
    if name not in BOARDS:
        raise ConfigError(f"no board named {name!r}", mend=f"choose one of {', '.join([*BOARDS, *OTHER_BOARDS])}")
    return BOARDS[name]
