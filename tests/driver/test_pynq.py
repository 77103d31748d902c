"""The driver's PYNQ link, on a fake PYNQ in front of the simulated machine: the registers are the real ones."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from driver import shipped
from driver.fake_pynq import FakePynq

from moevit import container
from moevit.boards.vivado import project
from moevit.boards.zynq import get_zynq_board
from moevit.cli import cli
from moevit.config import CONFIGS
from moevit.driver import Device, pynq
from moevit.errors import (
    ContainerError,
    DeviceError,
    DevicePermissionError,
    DeviceTimeoutError,
    InputError,
    MoevitError,
    ToolError,
    WrongBitstreamError,
    WrongBoardError,
)

BOARD = get_zynq_board("zcu104")


@pytest.fixture
def bitstream(tmp_path: Path) -> Path:
    """What Vivado leaves of a build of `tiny`, as far as the driver looks at it."""
    project.write_project("", CONFIGS["tiny"], BOARD, tmp_path)
    for name in project.RESULTS:
        (tmp_path / name).write_text("")
    return tmp_path / "moevit.bit"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakePynq]:
    """PYNQ on a ZCU104 with root's rights and no sensors."""
    made = FakePynq(CONFIGS["tiny"], BOARD.register_base, 4096)
    monkeypatch.setitem(sys.modules, "pynq", made)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    model = tmp_path / "model"
    model.write_text("ZynqMP ZCU104 RevC\0")
    monkeypatch.setattr(pynq, "MODEL", model)
    monkeypatch.setattr(pynq, "find_sensors", lambda names: [])
    # Behind it is a simulation, which takes seconds where a board takes milliseconds, and more if others run beside it.
    monkeypatch.setattr(pynq.PynqLink, "timeout_s", 120.0)
    yield made
    made.link.close()


def opened(bitstream: Path, **options: Any) -> Device:
    link = pynq.PynqLink(bitstream, CONFIGS["tiny"], **options)
    return Device(link, link.config)


def check(device: Device, name: str) -> None:
    task = device.select(name)
    data = shipped.buffers(task, 1)
    output = np.frombuffer(device.run(data[0].tobytes()).output, np.uint8)
    assert np.array_equal(output, shipped.expected(task, data)[0])


def test_both_tasks_run_through_pynq(fake: FakePynq, bitstream: Path) -> None:
    with opened(bitstream) as device:
        device.load(shipped.program())
        check(device, "seg")
        check(device, "depth")
        check(device, "seg")
        assert fake.calls.count("Overlay") == 1
        assert fake.calls.count("allocate") == 3
        assert fake.calls.count("wait") >= 3  # by the interrupt, not by polling
        assert device.power_w() is None
    assert not fake.link._arena._taken  # all buffers were given back


def test_the_command_on_a_board(
    fake: FakePynq, bitstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.moevit"
    container.save(shipped.program(), path)
    reading = tmp_path / "power1_input"
    reading.write_text("12500000\n")
    monkeypatch.setattr(pynq, "find_sensors", lambda names: [reading] if names == ["ina226_u183"] else [])
    arguments = ["run", str(path), "--device", "pynq", "--inputs", str(shipped.SCENES), "--limit", "1", "--check"]
    result = CliRunner().invoke(cli, [*arguments, "--bitstream", str(bitstream), "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["bit_exact"] is True
    assert values["power_w"] == pytest.approx(12.5)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "add --bitstream" in result.stderr


def edit(bitstream: Path, **changes: object) -> None:
    path = bitstream.with_name("moevit.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_board_is_refused_before_anything_is_loaded(
    fake: FakePynq, bitstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pynq.MODEL.write_text("ZynqMP ZCU102 Rev1.0\0")
    with pytest.raises(WrongBoardError, match=r"is for zcu104 .*, and this is a 'ZynqMP ZCU102 Rev1.0'"):
        opened(bitstream)
    monkeypatch.setattr(pynq, "MODEL", Path("/nowhere/model"))
    with pytest.raises(WrongBoardError, match="this is no Zynq board"):
        opened(bitstream)
    assert not fake.calls
    opened(bitstream, any_board=True).close()


def test_another_container_is_refused_before_anything_is_loaded(fake: FakePynq, bitstream: Path) -> None:
    with pytest.raises(ContainerError, match=r"compiled for configuration 'wide' .* holds 'tiny' "):
        pynq.PynqLink(bitstream, CONFIGS["wide"])
    assert not fake.calls


def test_another_bitstream_than_its_description_says(fake: FakePynq, bitstream: Path) -> None:
    wide = CONFIGS["wide"]
    edit(bitstream, config=wide.to_dict(), config_digest=f"{wide.digest:016x}")
    link = pynq.PynqLink(bitstream)
    with pytest.raises(WrongBitstreamError, match=r"should hold configuration 'wide' \(digest"):
        Device(link, link.config)


@pytest.mark.parametrize(
    "changes", [{"config_digest": "0" * 16}, {"config": {}}, {"registers": {}}, {"models": "all"}, {"interrupt": None}]
)
def test_a_description_that_is_none(fake: FakePynq, bitstream: Path, changes: dict) -> None:
    edit(bitstream, **changes)
    with pytest.raises(WrongBitstreamError, match=r"moevit\.json: .*; build it again"):
        opened(bitstream)


def test_files_that_are_missing_are_named(fake: FakePynq, bitstream: Path) -> None:
    bitstream.with_suffix(".hwh").unlink()
    with pytest.raises(InputError, match=r"moevit\.hwh: no such file; copy"):
        opened(bitstream)


def test_without_roots_rights(fake: FakePynq, bitstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DevicePermissionError, match="only root may load bitstreams"):
        opened(bitstream)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    fake.refused = PermissionError(13, "Permission denied", "/dev/mem")
    with pytest.raises(DevicePermissionError, match="/dev/mem"):
        opened(bitstream)


def test_without_pynq(fake: FakePynq, bitstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynq", None)
    with pytest.raises(ToolError, match="PYNQ is not installed; run this on the board"):
        opened(bitstream)


def too_fast(fake: FakePynq) -> None:
    fake.Clocks.fclk0_mhz = 150.0


def unconnected(fake: FakePynq) -> None:
    fake.pins = {}


def unloadable(fake: FakePynq) -> None:
    fake.refused = RuntimeError("Unable to parse metadata")


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        (too_fast, DeviceError, "has 150 MHz, and the design was timed for 100 MHz"),
        (unconnected, WrongBitstreamError, "has no interrupt 'moevit/irq'"),
        (unloadable, DeviceError, "cannot be loaded: Unable to parse metadata"),
    ],
)
def test_what_may_be_wrong_with_an_overlay(
    fake: FakePynq, bitstream: Path, trouble: Any, error: type[MoevitError], message: str
) -> None:
    trouble(fake)
    with pytest.raises(error, match=message):
        opened(bitstream)


def test_memory_runs_out(fake: FakePynq, bitstream: Path) -> None:
    fake.free = 1 << 10
    with opened(bitstream) as device, pytest.raises(DeviceError, match=r"no contiguous memory for .* cma="):
        device.load(shipped.program())


def test_an_interrupt_that_wakes_nobody(fake: FakePynq, bitstream: Path) -> None:
    with opened(bitstream) as device:
        device.load(shipped.program())
        fake.connected = False
        data = shipped.buffers(device.task, 1)[0].tobytes()
        with pytest.raises(DeviceTimeoutError, match="no interrupt in 30 s, and STATUS is DONE"):
            device.run(data, timeout_s=30)  # more than the simulation takes
        fake.connected = True
        check(device, "depth")


def test_a_buffer_that_is_not_flushed_would_be_noticed(
    fake: FakePynq, bitstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from driver.fake_pynq import FakeBuffer

    with opened(bitstream) as device:
        monkeypatch.setattr(FakeBuffer, "flush", lambda self: None)
        device.load(shipped.program())
        with pytest.raises(MoevitError):
            check(device, "seg")
        device.reset()
