"""What the links share: addresses for buffers, and the power that a board draws."""

import time
from pathlib import Path

import pytest

from moevit.driver.arena import Arena
from moevit.driver.power import PowerMeter, find_sensors, read_watts
from moevit.errors import DeviceError, DevicePermissionError


def test_addresses_are_aligned_apart_and_used_again() -> None:
    arena = Arena(0x1000, 0x400, "test")
    first, second, third = arena.take(1), arena.take(0x100), arena.take(0x41)
    assert (first, second, third) == (0x1000, 0x1040, 0x1140)
    arena.free(second)
    assert arena.take(0x80) == 0x1040
    assert arena.take(0x80) == 0x10C0
    assert arena.take(0x240) == 0x11C0
    with pytest.raises(DeviceError, match="no room for a buffer of 1 bytes: 1,024 bytes of memory, 1,024 of them"):
        arena.take(1)
    with pytest.raises(ValueError, match="not a multiple of 64"):
        Arena(0x20, 0x400, "test")


def sensor(root: Path, number: int, name: str, microwatts: str) -> Path:
    folder = root / f"hwmon{number}"
    folder.mkdir()
    (folder / "name").write_text(name + "\n")
    (folder / "power1_input").write_text(microwatts + "\n")
    return folder / "power1_input"


def test_sensors_are_found_by_name_and_added_up(tmp_path: Path) -> None:
    sensor(tmp_path, 0, "ina226-u79", "1500000")
    sensor(tmp_path, 1, "other", "9000000")
    last = sensor(tmp_path, 2, "ina226_u81", "250000")
    assert read_watts(find_sensors(["ina226_u81", "ina226_u79"], tmp_path)) == pytest.approx(1.75)
    assert find_sensors(["ina226_u79", "ina226_u99"], tmp_path) == []  # part of a sum means nothing
    assert find_sensors(["ina226_u79"], tmp_path / "nowhere") == []
    assert read_watts([]) is None
    last.write_text("much\n")
    with pytest.raises(DeviceError, match="cannot be read"):
        read_watts([last])


def test_a_sensor_that_may_not_be_read_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DevicePermissionError, match="may not be read; run it as root"):
        read_watts([tmp_path / "power1_input"])


def test_the_meter_averages_while_it_runs() -> None:
    readings = iter([2.0, *[4.0] * 1000])
    with PowerMeter(lambda: next(readings)) as meter:
        time.sleep(0.1)
    assert meter.watts is not None
    assert 2.0 < meter.watts < 4.0
    with PowerMeter(lambda: None) as nothing:
        pass
    assert nothing.watts is None
    readings = iter([1.0])

    def failing() -> float | None:
        value = next(readings, None)
        if value is None:
            raise DeviceError("gone")
        return value

    with pytest.raises(DeviceError, match="gone"), PowerMeter(failing):
        time.sleep(0.1)
