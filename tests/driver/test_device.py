"""The driver on a live simulated machine: load, run, switch the task, fail, reset, run again."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import partition_nets as nets
import pytest
from click.testing import CliRunner
from driver import shipped

import moevit
from moevit import container
from moevit.cli import cli
from moevit.config import CONFIGS
from moevit.driver import Buffer, Device, Link
from moevit.driver import device as driver
from moevit.errors import (
    DeviceError,
    DeviceTimeoutError,
    InputError,
    MachineError,
    MismatchError,
    SimulationError,
    WrongBitstreamError,
)
from moevit.registers import IDENTITY, OFFSETS, VERSION, ErrorCode, Status
from moevit.sim.device import RtlBuffer, RtlLink
from moevit.sim.dram import DramModel
from moevit.sim.inputs import from_arrays
from moevit.sim.on_device import run_on_device


@pytest.fixture(scope="module")
def opened() -> Iterator[Device]:
    """One machine for all tests of this module: each leaves it as it is after a reset."""
    with Device(RtlLink(CONFIGS["tiny"]), CONFIGS["tiny"]) as device:
        device.load(shipped.program())
        yield device


@pytest.fixture
def device(opened: Device) -> Iterator[Device]:
    yield opened
    opened.reset()
    if not opened.holds(shipped.program()):
        opened.load(shipped.program())


def link_of(device: Device) -> RtlLink:
    assert isinstance(device.link, RtlLink)
    return device.link


def check(device: Device, name: str, scene: int = 0) -> driver.Run:
    """Run a task on a scene; every byte of the output buffer must be what the isa back-end writes."""
    task = device.select(name)
    data = shipped.buffers(task, scene + 1)[scene:]
    run = device.run(data[0].tobytes())
    assert np.array_equal(np.frombuffer(run.output, np.uint8), shipped.expected(task, data)[0])
    return run


def test_tasks_take_turns_and_a_bus_error_costs_a_reset(device: Device) -> None:
    link = link_of(device)
    run = check(device, "seg")
    assert run.cycles > 100_000
    assert run.retired == sum(i.retires for i in shipped.program().instructions(device.task))
    counters = device.counters()
    assert 0 < counters["mac"]["busy"] < run.cycles
    check(device, "depth", scene=1)

    assert device._image is not None
    link.fault(device._image.address, device.task.entry // 2)  # weights lie before the programs
    with pytest.raises(MachineError, match="BUS_STREAM at instruction") as caught:
        check(device, "depth")
    assert caught.value.code == ErrorCode.BUS_STREAM
    assert caught.value.as_json()["instruction"] == caught.value.instruction
    link.fault(0, 0)
    with pytest.raises(DeviceError, match="not ready: STATUS is ERROR; call reset"):
        check(device, "depth")
    device.reset()
    assert device.status == 0
    check(device, "depth")
    check(device, "seg", scene=1)


def test_a_write_that_fails_is_the_dma_units(device: Device) -> None:
    assert device._output is not None
    link_of(device).fault(device._output.address, 64)
    with pytest.raises(MachineError, match="BUS_DMA_WRITE"):
        check(device, "seg")
    link_of(device).fault(0, 0)
    device.reset()
    check(device, "seg")


def test_a_run_that_is_too_long_is_named_and_stopped(device: Device) -> None:
    task = device.select("seg")
    data = shipped.buffers(task, 1)[0].tobytes()
    with pytest.raises(DeviceTimeoutError, match=r"no interrupt in 0 s, and STATUS is BUSY; \d+ of \d+ instructions"):
        device.run(data, timeout_s=0)
    device.reset()
    check(device, "seg")


def test_another_container_is_refused_by_driver_and_machine(device: Device) -> None:
    other = dataclasses.replace(shipped.program(), config=CONFIGS["wide"])
    with pytest.raises(WrongBitstreamError, match=r"compiled for configuration 'wide' \(digest"):
        device.load(other)
    assert device.holds(shipped.program())  # what was loaded before stays
    own = device.digest
    # BEGIN names the configuration too: a byte of its digest, changed behind the driver's back.
    task = device.select("seg")
    assert device._image is not None
    begin = bytearray(device._image.read(64, task.entry))
    wanted = own.to_bytes(8, "little")
    at = bytes(begin).index(wanted)
    begin[at] ^= 1
    device._image.write(bytes(begin), task.entry)
    with pytest.raises(MachineError, match="WRONG_CONFIGURATION at instruction 0"):
        check(device, "seg")
    device.reset()
    device.load(shipped.program())
    check(device, "seg")


def test_what_does_not_fit_is_refused_before_anything_is_written(device: Device) -> None:
    with pytest.raises(InputError, match="no task 'sharpen'; choose one of seg, depth"):
        device.select("sharpen")
    with pytest.raises(InputError, match=r"has \d+ bytes, not 3"):
        device.run(b"123")
    with pytest.raises(DeviceError, match="no room for a buffer of 2,147,483,648 bytes"):
        device.link.allocate(1 << 31)
    with pytest.raises(SimulationError, match="outside its buffers"):
        link_of(device).request(b"W", 0x1000, 4, b"1234")
    with pytest.raises(SimulationError, match="a read of register 0x10 answers 2"):
        device.read("CONTROL")
    check(device, "seg")


def test_with_random_stalls_nothing_changes() -> None:
    dram = dataclasses.replace(DramModel.default(CONFIGS["tiny"]), seed=7)
    with Device(RtlLink(CONFIGS["tiny"], dram=dram)) as device:
        with pytest.raises(DeviceError, match=r"no container is loaded; call load\(\) first"):
            device.select("seg")
        device.load(shipped.program())
        check(device, "depth")


def test_a_simulation_that_dies_is_an_error_and_a_closed_link_too() -> None:
    link = RtlLink(CONFIGS["tiny"])
    device = Device(link)
    link._process.kill()
    with pytest.raises(SimulationError, match="the simulation failed: exit status -9"):
        device.reset()
    link.close()
    with pytest.raises(DeviceError, match="the link is closed"):
        device.reset()


class Registers(Link):
    """A link to something else: registers that read as they are told, and memory that is nowhere."""

    name = "test"

    def __init__(self, **values: int) -> None:
        digest = CONFIGS["tiny"].digest
        known = {"IDENTITY": IDENTITY, "VERSION": VERSION, "DIGEST_LO": digest & 0xFFFF_FFFF, "DIGEST_HI": digest >> 32}
        self.values = {OFFSETS[k]: v for k, v in (known | values).items()}
        self.closed = False
        self.address = 0x1000

    def read(self, offset: int) -> int:
        return self.values.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        pass

    def allocate(self, size: int) -> Buffer:
        return Nowhere(self.address, size)

    def wait(self, timeout_s: float) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Nowhere(Buffer):
    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size

    def write(self, data: bytes, offset: int = 0) -> None:
        pass

    def read(self, size: int, offset: int = 0) -> bytes:
        return bytes(size)

    def free(self) -> None:
        pass


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"IDENTITY": 0}, DeviceTimeoutError, "nothing answers: the IDENTITY register reads 0x00000000"),
        ({"IDENTITY": 0xFFFF_FFFF}, DeviceTimeoutError, "nothing answers"),
        ({"IDENTITY": 0x1234}, WrongBitstreamError, "no machine of moevit"),
        ({"VERSION": VERSION + (1 << 16)}, WrongBitstreamError, "has version 4.0 of the registers"),
        ({"DIGEST_LO": 5}, WrongBitstreamError, r"should hold configuration 'tiny' \(digest e64c824c278d3502\)"),
        ({"STATUS": Status.BUSY | Status.DRAINING}, DeviceTimeoutError, r"a reset did not end in .* BUSY\|DRAINING"),
    ],
)
def test_what_else_may_answer(
    values: dict[str, int], error: type[DeviceError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "RESET_TIMEOUT_S", 0.05)
    link = Registers(**values)
    with pytest.raises(error, match=message):
        Device(link, CONFIGS["tiny"])
    assert link.closed


def test_an_interrupt_that_never_comes_is_told_from_a_machine_that_hangs() -> None:
    link = Registers()
    device = Device(link)
    device.load(shipped.program())
    link.values[OFFSETS["STATUS"]] = Status.DONE
    with pytest.raises(DeviceTimeoutError, match=r"no interrupt in .* STATUS is DONE.*interrupt line is connected"):
        device.run(bytes(device.task.input_bytes))


def test_memory_that_the_machine_cannot_reach_is_refused() -> None:
    link = Registers()
    link.address = 1 << 40
    with pytest.raises(DeviceError, match="0x10000000000, which 40 address bits do not reach"):
        Device(link).load(shipped.program())


def test_outputs_are_held_to_the_reference(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    task = shipped.program().task("depth")
    result = run_on_device(device, shipped.program(), shipped.scenes(task, 1), "depth", check=True)
    assert result.bit_exact
    assert result.checked_values == sum(y.rows * y.channels for y in task.outputs)
    assert result.power_w is None

    def damaged(self: RtlBuffer, size: int, offset: int = 0) -> bytes:
        data = bytearray(read(self, size, offset))
        data[0] ^= 1
        return bytes(data)

    read = RtlBuffer.read
    monkeypatch.setattr(RtlBuffer, "read", damaged)
    with pytest.raises(MismatchError, match="output buffer"):
        run_on_device(device, shipped.program(), shipped.scenes(task, 1), "depth", check=True)
    result = run_on_device(
        device, shipped.program(), shipped.scenes(task, 1), "depth", check=True, raise_mismatch=False
    )
    assert result.bit_exact is False


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m3vit.moevit"
    container.save(shipped.program(), path)
    arguments = ["run", str(path), "--inputs", str(shipped.SCENES), "--limit", "1", "--task", "seg", "--check"]
    result = CliRunner().invoke(
        cli, [*arguments, "--device", "rtl", "--outputs", str(tmp_path / "out.npz"), "--json"]
    )
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["bit_exact"] is True
    assert values["device"] == "rtl"
    assert values["power_w"] is None
    assert len(np.load(tmp_path / "out.npz").files) == len(shipped.program().task("seg").outputs)
    result = CliRunner().invoke(cli, [*arguments, "--device", "abacus"])
    assert result.exit_code == 2
    assert "no device 'abacus'; choose one of pynq, serial:PORT, rtl" in result.stderr
    monkeypatch.setattr(RtlBuffer, "read", lambda self, size, offset=0: bytes(size))
    result = CliRunner().invoke(cli, [*arguments, "--device", "rtl"])
    assert result.exit_code == 1
    assert "output buffer" in result.stderr


def test_a_task_with_a_part_on_the_host(tmp_path: Path) -> None:
    """Two programs of the machine, and between them a node in onnxruntime: as the rtl back-end has it, bit by bit."""
    made = moevit.compile(nets.middle("Sin", tmp_path / "sin.onnx"), "tiny", nets.inputs(16))
    pipeline = made.pipeline()
    assert [step.kind for step in pipeline.steps] == ["machine", "host", "machine"]
    values = from_arrays({x.name: x.shape for x in pipeline.inputs}, nets.inputs(2, seed=1))
    with Device(RtlLink(CONFIGS["tiny"])) as device:
        result = run_on_device(device, made, values, check=True)
    want = made.run(nets.inputs(2, seed=1), backend="rtl")
    assert result.bit_exact and len(result.cycles) == 2 and len(result.counters) == 2
    assert list(result.host_seconds) == ["main@host1"]
    for name, output in want.outputs.items():
        assert np.array_equal(result.outputs[name], output)
