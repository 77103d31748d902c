"""How fast a program could be: what its multiplications and its DRAM traffic take if nothing else takes any time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moevit.config import AcceleratorConfig
from moevit.isa import Attention, DmaIn, Instruction, Linear
from moevit.isa.formats import DmaSource
from moevit.layout import ceil_div
from moevit.program import Task
from moevit.steps import attention_steps, linear_steps

Queues = Mapping[int, Sequence[int]]  #: by a gate's program number: tokens of each expert


@dataclass(frozen=True)
class Bound:
    """Cycles that an image takes at least, each counted as if all else were free.

    compute : the model's multiply-accumulates, with every multiplier busy
    issued : steps of the array as the program issues them: row tiles of T, column tiles of C, K products at a time,
        the last of each padded
    dram : bytes that have to move, at the DRAM's rate for all ports together
    weight_ports : weights, at a bus word per port and cycle
    dma_port : reads or writes of the port for everything else, whichever are more
    """

    compute: int
    issued: int
    dram: int
    weight_ports: int
    dma_port: int

    @property
    def transfer(self) -> int:
        """The DRAM bound: of the memory or of a port."""
        return max(self.dram, self.weight_ports, self.dma_port)

    @property
    def cycles(self) -> int:
        """The larger of the compute bound and the DRAM bound."""
        return max(self.compute, self.transfer)

    @property
    def by(self) -> str:
        """Which of them it is."""
        return "compute" if self.compute >= self.transfer else "dram"

    def as_dict(self) -> dict[str, Any]:
        return {
            "cycles": self.cycles, "by": self.by, "compute": self.compute, "issued": self.issued,
            "dram": self.dram, "weight_ports": self.weight_ports, "dma_port": self.dma_port,
        }  # fmt: skip


def bound(
    config: AcceleratorConfig,
    task: Task,
    instructions: Sequence[Instruction],
    queues: Queues,
    dram_bytes: Mapping[str, int],
    bytes_per_cycle: float,
) -> Bound:
    """The bound of one image.

    Parameters
    ----------
    config, task, instructions : the program
    queues : where its tokens went
    dram_bytes : what the run moved, as a result's; what was fetched for experts without tokens did not have to be
    bytes_per_cycle : of the DRAM
    """
    weights = dram_bytes["weights"] - dram_bytes["speculative"]
    constants = sum(
        i.moved_bytes
        for i in instructions
        if isinstance(i, DmaIn) and i.source == DmaSource.IMAGE
    )
    read = constants + dram_bytes["instructions"] + dram_bytes["activations"] - task.output_bytes
    total = weights + dram_bytes["instructions"] + dram_bytes["activations"]
    return Bound(
        compute=ceil_div(task.macs, config.macs_per_cycle),
        issued=issued_steps(config, instructions, queues),
        dram=math.ceil(total / bytes_per_cycle),
        weight_ports=ceil_div(weights - constants, config.weight_ports * config.axi_bytes),
        dma_port=ceil_div(max(read, task.output_bytes), config.axi_bytes),
    )


def issued_steps(config: AcceleratorConfig, instructions: Sequence[Instruction], queues: Queues) -> int:
    """Steps that the array takes for an image; a LINEAR of an empty queue takes one."""
    steps, gate = 0, -1
    for number, i in enumerate(instructions):
        if isinstance(i, Linear):
            gate = number if i.route else gate
            rows = queues[gate][i.queue] if i.gather or i.scatter else i.n_rows
            steps += linear_steps(config, i, rows) if rows else 1
        elif isinstance(i, Attention):
            steps += attention_steps(config, i)
    return steps
