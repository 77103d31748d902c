"""The whole ULX3S design under Verilator, through its serial line with the driver: as generated, and as synthesised."""

import dataclasses
import random
from collections.abc import Iterator

import pytest
from differential.random_program import RandomProgram, random_program

from moevit.boards.ulx3s import flow
from moevit.boards.ulx3s.design import Design
from moevit.boards.ulx3s.gateware.board import generate
from moevit.boards.ulx3s.simulation import model
from moevit.driver import Device
from moevit.driver.serial import SerialLink
from moevit.errors import DeviceError, MachineError
from moevit.frames import WORD_BYTES
from moevit.isa import INSTRUCTION_BYTES, Begin, encode_program
from moevit.program import Program, Task
from moevit.registers import OFFSETS, ErrorCode
from moevit.sim.isa import IsaSimulator
from moevit.sim.rtl import OUTPUT_FILL

DESIGN = Design()
ANSWER_S = 60.0  # the simulation runs at a thousandth of the board's speed, or less
SEED, LENGTH = 93, 6  # a small program with a gate, experts, attention and LayerNorm all the same


def open_link(verilog: str) -> tuple[SerialLink, model.SimulatedPort]:
    port = model.SimulatedPort(model.build(verilog, print), DESIGN.divisor)
    return SerialLink(port, name="simulated ULX3S", answer_timeout_s=ANSWER_S), port


def container(program: RandomProgram) -> Program:
    """The program as one that a driver loads."""
    task = Task(
        name="main", entry=program.entry, instructions=len(program.instructions), inputs=(), outputs=(),
        input_bytes=program.inputs.shape[1], output_bytes=program.output_bytes, tensors=(), layers=(),
    )  # fmt: skip
    return Program(config=program.config, tasks=(task,), sources=(), image=program.image)


def expected(program: RandomProgram) -> bytes:
    """What the instruction-level simulator writes."""
    simulator = IsaSimulator(program.config, program.image, program.instructions, program.output_bytes)
    state = simulator.memories(1)
    state.output[:] = OUTPUT_FILL
    return simulator.run(program.inputs, memories=state).output[0].tobytes()


def check(device: Device, program: RandomProgram) -> None:
    """Run a program twice on the board and compare the bytes that it writes out."""
    device.load(container(program))
    want = expected(program)
    assert len(set(want)) > 8, "a program that says something"
    assert device._output is not None
    for _ in range(2):
        device._output.write(bytes([OUTPUT_FILL]) * program.output_bytes)
        run = device.run(program.inputs[0].tobytes(), timeout_s=ANSWER_S)
        assert run.output == want
        assert run.retired == sum(i.retires for i in program.instructions)


@pytest.fixture(scope="module")
def opened() -> Iterator[Device]:
    """The design as it was generated."""
    link, _ = open_link(generate(DESIGN))
    with Device(link, DESIGN.config) as device:
        yield device


@pytest.fixture
def device(opened: Device) -> Iterator[Device]:
    opened.reset()
    yield opened
    opened.unload()


@pytest.mark.parametrize("seed", [SEED, 92, 231, 235])
def test_programs(device: Device, seed: int) -> None:
    check(device, random_program(DESIGN.config, seed, LENGTH))


@pytest.mark.slow
def test_netlist() -> None:
    """The netlist that is placed and routed: synthesis has changed nothing."""
    netlist = model.plain_netlist(flow.synthesise(DESIGN, print), print)
    for cell in ("DP16KD", "MULT18X18D", "EHXPLLL"):
        assert f" {cell} " in netlist, "cells, not what they were made of"
    link, _ = open_link(netlist)
    with Device(link, DESIGN.config) as device:
        check(device, random_program(DESIGN.config, SEED, LENGTH))
        device.unload()


def test_memory(device: Device) -> None:
    """Any bytes at any place; what is beside them stays."""
    link = device.link
    assert isinstance(link, SerialLink)
    assert link.clock_hz == DESIGN.clock_mhz * 1e6
    buffer = link.allocate(1001)
    rng = random.Random(0)
    data = bytearray(rng.randbytes(1001))
    buffer.write(bytes(data))
    for size in (1, 2, 3, 5, 8, 257):
        offset = rng.randrange(1001 - size)
        part = rng.randbytes(size)
        data[offset : offset + size] = part
        buffer.write(part, offset)
        assert buffer.read(size + 2, offset - 1) == data[offset - 1 : offset + size + 1]
    assert buffer.read(1001) == data
    for action in (lambda: buffer.read(2, 1000), lambda: buffer.write(b"12", -1)):
        with pytest.raises(DeviceError, match="of a buffer of 1001"):
            action()
    buffer.free()
    with pytest.raises(DeviceError, match="no room for a buffer"):
        link.allocate(DESIGN.memory_bytes + 1)
    assert link.read_memory(DESIGN.memory_bytes - WORD_BYTES, WORD_BYTES)
    with pytest.raises(DeviceError, match="refuses to read memory at 0x40000: BUS"):
        link.read_memory(DESIGN.memory_bytes, WORD_BYTES)
    with pytest.raises(DeviceError, match="refuses to write registers at 0x0: BUS"):
        link.write(OFFSETS["IDENTITY"], 1)


def test_an_error_and_what_comes_after_it(device: Device) -> None:
    good = random_program(DESIGN.config, SEED, LENGTH)
    begin = good.instructions[0]
    assert isinstance(begin, Begin)
    image = bytearray(good.image)
    wrong = dataclasses.replace(begin, digest=begin.digest ^ 1)
    image[good.entry : good.entry + INSTRUCTION_BYTES] = encode_program([wrong])
    device.load(dataclasses.replace(container(good), image=bytes(image)))
    with pytest.raises(MachineError, match="WRONG_CONFIGURATION at instruction 0"):
        device.run(good.inputs[0].tobytes(), timeout_s=ANSWER_S)
    assert device.read("ERROR") == ErrorCode.WRONG_CONFIGURATION
    device.reset()
    check(device, good)
