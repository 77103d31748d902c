"""What a board draws: Linux's hwmon sensors, and an average over the time that something runs."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from moevit.errors import DeviceError, DevicePermissionError

HWMON = Path("/sys/class/hwmon")
MICROWATTS = 1e6  #: hwmon's power*_input is in microwatts (Linux: Documentation/hwmon/sysfs-interface)
SAMPLE_S = 0.01


def find_sensors(names: Sequence[str], root: Path = HWMON) -> list[Path]:
    """The power readings of the sensors with these names, empty unless all of them are there.

    Linux calls a sensor by its device tree label, in which dashes and underscores stand for each other
    (``ina226-u79`` or ``ina226_u79``).
    """
    found: dict[str, Path] = {}
    for folder in sorted(root.glob("hwmon*")):
        try:
            name = (folder / "name").read_text().strip().replace("-", "_")
        except OSError:
            continue  # a sensor that goes away while it is looked at
        reading = folder / "power1_input"
        if name in names and reading.exists():
            found.setdefault(name, reading)
    return [found[name] for name in names] if set(names) <= set(found) else []


def read_watts(sensors: Sequence[Path]) -> float | None:
    """The sum of some sensors' readings in watts; None of no sensor.

    Raises
    ------
    DevicePermissionError : the user may not read one
    DeviceError : one cannot be read
    """
    if not sensors:
        return None
    total = 0.0
    for sensor in sensors:
        try:
            total += int(sensor.read_text()) / MICROWATTS
        except PermissionError as error:
            raise DevicePermissionError("may not be read", where=str(sensor), mend="run it as root") from error
        except (OSError, ValueError) as error:
            raise DeviceError(f"cannot be read: {error}", where=str(sensor)) from error
    return total


class PowerMeter:
    """Averages a reading, taken every SAMPLE_S in a thread, while its ``with`` block runs.

    Parameters
    ----------
    read : the reading in watts, or None where there is no sensor; then no thread is started
    """

    def __init__(self, read: Callable[[], float | None]) -> None:
        self._read = read
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: DeviceError | None = None

    @property
    def watts(self) -> float | None:
        """The average, or None where there is no sensor."""
        return sum(self._samples) / len(self._samples) if self._samples else None

    def __enter__(self) -> Self:
        if self._take():
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _take(self) -> bool:
        watts = self._read()
        if watts is not None:
            self._samples.append(watts)
        return watts is not None

    def _sample(self) -> None:
        try:
            while not self._stop.wait(SAMPLE_S) and self._take():
                pass
        except DeviceError as error:
            self._error = error
