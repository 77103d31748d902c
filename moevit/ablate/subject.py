"""What the techniques are tried on: a compiled model, its inputs, and the float model's answers."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.isa import Instruction, encode_program
from moevit.program import Program, Task
from moevit.sim.inputs import Inputs, pack, quantise
from moevit.sim.reference import Tensors, run_reference

Compile = Callable[..., Program]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    program : the model as it is compiled by default
    inputs : those that values are measured on; what is measured in cycles runs on the first
    floats : the float model's outputs for them, by name
    compile : compiles the model again, with keywords of `compile_model`
    progress : told what starts
    """

    program: Program
    inputs: Inputs
    floats: dict[str, NDArray]
    compile: Compile
    progress: Progress = lambda text: None

    @property
    def config(self) -> AcceleratorConfig:
        return self.program.config

    @property
    def task(self) -> Task:
        return self.program.tasks[0]

    @cached_property
    def instructions(self) -> list[Instruction]:
        return self.program.instructions(self.task)

    @property
    def first(self) -> Inputs:
        """The input that runs on the RTL."""
        return self.inputs.limited(1)

    def first_buffer(self) -> NDArray[np.uint8]:
        """That input as the machine reads it: [1, input bytes]."""
        return pack(self.program.config, self.task, quantise(self.task, self.first.floats()))

    @cached_property
    def first_tensors(self) -> Tensors:
        """The reference's tensors for that input."""
        return run_reference(self.program, self.task, quantise(self.task, self.first.floats()))


def patched(program: Program, task: Task, instructions: Sequence[Instruction]) -> Program:
    """The program with other instructions, as many, in place of a task's."""
    data = encode_program(list(instructions))
    image = bytearray(program.image)
    image[task.entry : task.entry + len(data)] = data
    return dataclasses.replace(program, image=bytes(image))
