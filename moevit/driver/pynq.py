"""The link to a machine on a Zynq board with PYNQ: its registers by MMIO, contiguous buffers, and its interrupt.

It runs on the board itself. Beside the bitstream lies ``moevit.json``, which `moevit build` has written: what the board
and the machine are. PYNQ is asked for what its documentation promises: ``Overlay``, ``MMIO``, ``allocate``,
``Interrupt`` and ``Clocks``.
"""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from moevit.config import AcceleratorConfig
from moevit.driver.link import ALIGNMENT, Buffer, Link
from moevit.driver.power import find_sensors, read_watts
from moevit.errors import (
    ConfigError,
    ContainerError,
    DeviceError,
    DevicePermissionError,
    InputError,
    ToolError,
    WrongBitstreamError,
    WrongBoardError,
)
from moevit.registers import OFFSETS

DESCRIPTION = "moevit.json"  #: beside the bitstream
MODEL = Path("/proc/device-tree/model")  #: what Linux calls the board
CLOCK_TOLERANCE = 0.001  #: by which the clock may be faster than what the design was timed for
NAME = "pynq"


class PynqBuffer(Buffer):
    """Contiguous memory from ``pynq.allocate``, which the HP ports do not see through the processor's caches."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.address, self.size = int(array.device_address), array.nbytes
        if self.address % ALIGNMENT:
            raise DeviceError(f"a buffer lies at 0x{self.address:x}, no multiple of {ALIGNMENT}", where=NAME)

    def write(self, data: bytes, offset: int = 0) -> None:
        """See the base class."""
        self._array[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self._array.flush()

    def read(self, size: int, offset: int = 0) -> bytes:
        """See the base class."""
        self._array.invalidate()
        return bytes(self._array[offset : offset + size])

    def free(self) -> None:
        """See the base class."""
        if self._array is not None:
            self._array.freebuffer()
            self._array = None


class PynqLink(Link):
    """A bitstream on the board that this runs on; it is loaded first.

    Parameters
    ----------
    bitstream : the ``.bit`` file, with its ``.hwh`` and ``moevit.json`` beside it
    config : of the container that is to run, to tell before anything is loaded that it is another machine's
    any_board : load it although Linux calls the board something else

    Raises
    ------
    ToolError : PYNQ is not installed
    InputError : a file is missing
    WrongBoardError : the bitstream was made for another board
    ContainerError : the container was compiled for another machine
    DevicePermissionError : the user may not do this
    WrongBitstreamError : the description beside the bitstream is none, or the design holds no machine
    DeviceError : the bitstream cannot be loaded, or the clock is too fast
    """

    def __init__(self, bitstream: Path, config: AcceleratorConfig | None = None, *, any_board: bool = False) -> None:
        self.name = NAME
        self.description = _description(bitstream)
        self.config = AcceleratorConfig.from_dict(self.description["config"])
        if not any_board:
            _require_board(self.description)
        if config is not None and config.digest != self.config.digest:
            raise ContainerError(
                f"it was compiled for configuration '{config.name}' (digest {config.digest:016x}), but {bitstream} "
                f"holds '{self.config.name}' (digest {self.config.digest:016x})",
                mend="compile the model for that configuration, or choose the other bitstream",
            )
        if os.geteuid() != 0:
            raise DevicePermissionError("only root may load bitstreams", where=NAME, mend="use sudo -E")
        self._pynq = _import()
        # PYNQ's interrupts live in the event loop that is current when they are made.
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        try:
            self._open(bitstream)
        except BaseException:
            self.close()
            raise
        self._sensors = find_sensors(self.description["sensors"])

    def _open(self, bitstream: Path) -> None:
        registers, pin = self.description["registers"], self.description["interrupt"]
        try:
            overlay = self._pynq.Overlay(str(bitstream))
            self._registers = self._pynq.MMIO(registers["address"], registers["size"])
        except PermissionError as error:
            raise DevicePermissionError(str(error), where=NAME, mend="use sudo -E") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise DeviceError(f"the bitstream cannot be loaded: {error}", where=str(bitstream)) from error
        if pin not in overlay.interrupt_pins:
            raise WrongBitstreamError(
                f"the design has no interrupt {pin!r}", where=str(bitstream.with_suffix(".hwh")),
                mend="take bitstream and .hwh from one build",
            )  # fmt: skip
        self._interrupt = self._pynq.Interrupt(pin)
        clock, wanted = float(self._pynq.Clocks.fclk0_mhz), self.config.clock_mhz
        if clock > wanted * (1 + CLOCK_TOLERANCE):
            raise DeviceError(
                f"the fabric clock has {clock:g} MHz, and the design was timed for {wanted:g} MHz", where=NAME,
                mend="set pynq.Clocks.fclk0_mhz, or load the bitstream again",
            )  # fmt: skip

    def read(self, offset: int) -> int:
        """See the base class."""
        return int(self._registers.read(offset))

    def write(self, offset: int, value: int) -> None:
        """See the base class."""
        self._registers.write(offset, int(value))

    def allocate(self, size: int) -> Buffer:
        """See the base class."""
        try:
            return PynqBuffer(self._pynq.allocate((size,), dtype=np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise DeviceError(
                f"no contiguous memory for {size:,} bytes: {error}", where=NAME,
                mend="free other buffers, or give the kernel more with cma=512M on its command line",
            ) from error  # fmt: skip

    def wait(self, timeout_s: float) -> bool:
        """See the base class. A wakeup that is left over from a wait that was given up does not count."""
        limit = time.monotonic() + timeout_s
        while not self.read(OFFSETS["INTERRUPT_STATUS"]):
            left = limit - time.monotonic()
            if left <= 0:
                return False
            try:
                self._loop.run_until_complete(asyncio.wait_for(self._interrupt.wait(), left))
            except TimeoutError:
                return False
        return True

    def power_w(self) -> float | None:
        """See the base class; of what, the description says."""
        return read_watts(self._sensors)

    def close(self) -> None:
        """See the base class. The bitstream stays loaded."""
        if not self._loop.is_closed():
            asyncio.set_event_loop(None)
            self._loop.close()


def _import() -> Any:
    try:
        import pynq
    except ImportError as error:
        raise ToolError(
            "PYNQ is not installed", where=NAME,
            mend="run this on the board, in PYNQ's own environment; see docs/boards",
        ) from error  # fmt: skip
    return pynq


def _description(bitstream: Path) -> dict[str, Any]:
    """What lies beside a bitstream."""
    for file in (bitstream, bitstream.with_suffix(".hwh"), bitstream.with_name(DESCRIPTION)):
        if not file.is_file():
            raise InputError("no such file", where=str(file), mend="copy the .bit, .hwh and moevit.json of one build")
    path = bitstream.with_name(DESCRIPTION)
    try:
        values = json.loads(path.read_text())
        config = AcceleratorConfig.from_dict(values["config"])
        registers = values["registers"]
        whole = all(isinstance(registers[key], int) for key in ("address", "size"))
        whole &= all(isinstance(values[key], list) for key in ("models", "sensors"))
        whole &= isinstance(values["interrupt"], str) and values["config_digest"] == f"{config.digest:016x}"
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise WrongBitstreamError("not what `moevit build` writes", where=str(path), mend="build it again") from error
    if not whole:
        raise WrongBitstreamError("of another version of moevit, or damaged", where=str(path), mend="build it again")
    assert isinstance(values, dict)
    return values


def _require_board(description: dict[str, Any]) -> None:
    """Raise WrongBoardError unless Linux calls this board what the bitstream was made for."""
    try:
        model = MODEL.read_text().rstrip("\0\n")
    except OSError:
        model = ""
    if not model.startswith(tuple(description["models"])):
        here = f"this is a '{model}'" if model else f"this is no Zynq board ({MODEL} cannot be read)"
        raise WrongBoardError(
            f"the bitstream is for {description['board']} ({' or '.join(description['models'])}), and {here}",
            where=NAME,
            mend="take the bitstream of this board, or add --any-board if Linux calls it something else",
        )  # fmt: skip
