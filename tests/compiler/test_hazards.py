"""The hazard checker: passes what the compiler emits, and catches each kind of fault put into it."""

import dataclasses

import pytest
from compile_helpers import ODD, SHIPPED, compiled

from moevit.compiler.hazards import check_instructions
from moevit.config import CONFIGS
from moevit.errors import HazardError
from moevit.isa import Attention, Begin, DmaIn, DmaOut, End, Instruction, Linear, Stream


def parts(config: str = "tiny"):
    program = compiled(ODD, config).program
    task = program.task()
    return program, task, program.instructions(task)


def check(program, task, instructions: list[Instruction]) -> None:
    begin = instructions[0]
    if isinstance(begin, Begin):
        instructions = [dataclasses.replace(begin, count=len(instructions)), *instructions[1:]]
    check_instructions(program.config, instructions, len(program.image), task.input_bytes, task.output_bytes)


@pytest.mark.parametrize("config", list(CONFIGS))
def test_compiled_programs_pass(config: str) -> None:
    check(*parts(config))
    program = compiled(SHIPPED / "fashion_vit.onnx", config).program
    check(program, program.task(), program.instructions(program.task()))


def test_every_wait_is_needed() -> None:
    """Any instruction whose wait is one less than the compiler's reads something too early."""
    program, task, instructions = parts()
    tested = 0
    for number, i in enumerate(instructions):
        if i.retires and i.wait > 0:  # type: ignore[attr-defined]
            broken = list(instructions)
            broken[number] = dataclasses.replace(i, wait=i.wait - 1)  # type: ignore[attr-defined, call-arg]
            with pytest.raises(HazardError, match=f"instruction {number} "):
                check(program, task, broken)
            tested += 1
    assert tested > 8


def test_each_wait_is_reachable() -> None:
    program, task, instructions = parts()
    number = next(n for n, i in enumerate(instructions) if isinstance(i, Linear))
    instructions[number] = dataclasses.replace(instructions[number], wait=500)
    with pytest.raises(HazardError, match="waits for 500"):
        check(program, task, instructions)


def swap(instructions, kind, **changes):
    number = next(n for n, i in enumerate(instructions) if isinstance(i, kind))
    instructions[number] = dataclasses.replace(instructions[number], **changes)


FAULTS = {
    "loads what nothing wrote": lambda i: swap(i, Linear, src=8000),
    "stores outside": lambda i: swap(i, Linear, dst=(1 << 18) - 2),
    "writes its own rows": lambda i: swap(i, Attention, dst=next(a.src for a in i if isinstance(a, Attention))),
    "reads unwritten keys": lambda i: swap(i, Attention, n_keys=60),
    "keys in the ring": lambda i: swap(i, Attention, key_base=0),
    "output outside": lambda i: swap(i, DmaOut, offset=1 << 20),
    "input outside": lambda i: swap(i, DmaIn, offset=1 << 30),
    "image outside": lambda i: swap(i, Stream, weight_offset=1 << 24),
    "no stream": lambda i: i.remove(next(s for s in i if isinstance(s, Stream))),
    "weights left over": lambda i: i.insert(1, next(s for s in i if isinstance(s, Stream))),
    "linear before its stream": lambda i: i.insert(1, i.pop(next(n for n, a in enumerate(i) if isinstance(a, Linear)))),
    "no end": lambda i: i.pop(),
    "end in the middle": lambda i: i.insert(5, End()),
    "no begin": lambda i: i.pop(0),
    "other configuration": lambda i: swap(i, Begin, digest=1),
    "ring too large": lambda i: swap(i, Begin, ring_words=1 << 16),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    program, task, instructions = parts()
    FAULTS[name](instructions)
    with pytest.raises(HazardError):
        check(program, task, instructions)


def test_dma_over_a_live_tensor_is_found() -> None:
    """A second DMA_IN that overwrites what LINEARs read must wait for them."""
    program, task, instructions = parts()
    copy = next(i for i in instructions if isinstance(i, DmaIn))
    instructions.insert(-1, copy)
    with pytest.raises(HazardError, match=r"overwrites|written by the other"):
        check(program, task, instructions)
    retired = sum(i.retires for i in instructions) - 1
    instructions[-2] = dataclasses.replace(copy, wait=retired)
    check(program, task, instructions)


def test_streams_too_far_ahead_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """All streams first: the fetch unit would wait for the queue, the streamer for ring room."""
    program = compiled(SHIPPED / "fashion_vit.onnx", "tiny").program
    task = program.task()
    instructions = program.instructions(task)
    streams = [i for i in instructions if isinstance(i, Stream)]
    rest = [i for i in instructions[1:] if not isinstance(i, Stream)]
    small_ring = dataclasses.replace(instructions[0], ring_words=1024)  # type: ignore[call-arg]
    check(program, task, [small_ring, *instructions[1:]])
    # The model has fewer STREAMs than the queue.
    monkeypatch.setattr("moevit.compiler.ring_hazards.STREAM_QUEUE_DEPTH", 8)
    with pytest.raises(HazardError, match="block for ever"):
        check(program, task, [small_ring, *streams, *rest])
