"""Random programs give the same bytes in every memory on the instruction-level simulator and on the RTL."""

import numpy as np
import pytest

from differential.random_program import RandomProgram, random_program
from moevit.config import CONFIGS
from moevit.isa.disassemble import disassemble
from moevit.program import MEMORY_QUEUE
from moevit.registers import Status
from moevit.sim.dram import DramModel
from moevit.sim.experts import gates
from moevit.sim.isa import IsaSimulator, Memories
from moevit.sim.pieces import queue_scores
from moevit.sim.rtl import OUTPUT_FILL, RawRun, Watch, run_raw

DEFAULT_SEEDS = 24
SLOW_SEEDS = 300  # spread over the configurations

# tiny, wide and square differ in T against K, C against K and the number of weight ports
SMALL_CONFIGS = ("tiny", "wide", "square")


def memory(seed: int) -> DramModel:
    """Fast and slow memories, with and without random stalls of every channel."""
    rng = np.random.default_rng([seed, 1])
    return DramModel(
        bytes_per_cycle=float(rng.choice([4.0, 16.0, 64.0])),
        latency_cycles=int(rng.integers(1, 90)),
        seed=int(rng.integers(1, 1 << 30)) if rng.random() < 0.5 else None,
    )


def run_both(program: RandomProgram, dram: DramModel) -> tuple[RawRun, Memories, list[np.ndarray]]:
    """The RTL's run, with the queues as each gate retires; and memories and such queues of the other simulator."""
    simulator = IsaSimulator(program.config, program.image, program.instructions, program.output_bytes)
    state = simulator.memories(1)
    state.output[:] = OUTPUT_FILL
    retiring = [n for n, i in enumerate(program.instructions) if i.retires]
    tokens = state.queue.shape[1]
    watches = [Watch(retiring.index(gate), MEMORY_QUEUE, 0, tokens) for gate in gates(program.instructions)]
    queues: list[np.ndarray] = []

    def keep(number: int, memories: Memories) -> None:
        if number in memories.lengths:
            queues.append(memories.queue.copy())

    state = simulator.run(program.inputs, after=keep, memories=state)
    rtl = run_raw(
        program.config, program.image, program.entry, len(program.instructions), program.inputs,
        program.output_bytes, watches=watches, memories=True, dram=dram,
    )  # fmt: skip
    return rtl, state, queues


def differs(got: np.ndarray, want: np.ndarray, what: str, program: RandomProgram) -> str:
    """A message with the first difference and the program, for a person to start from."""
    size = min(got.size, want.size)
    at = int(np.flatnonzero(got[:size] != want[:size])[0])
    columns = program.config.columns
    return f"{what} byte {at} (word {at // columns}): RTL {got[at]}, isa {want[at]}\n{listing(program)}"


def listing(program: RandomProgram) -> str:
    return "\n".join(f"{n:3} {disassemble(i)}" for n, i in enumerate(program.instructions))


def check(config: str, seed: int, length: int = 10) -> None:
    program = random_program(CONFIGS[config], seed, length)
    rtl, state, queues = run_both(program, memory(seed))
    assert len(rtl.images) == 1
    run = rtl.images[0]
    assert not run.hung, f"hung; retired {run.retired}, counters {run.counters}"
    assert not run.violations
    assert run.status == Status.DONE, f"error {run.error} at instruction {run.error_instruction}"
    assert run.retired == sum(i.retires for i in program.instructions)
    assert rtl.activation is not None
    assert rtl.operand is not None
    for (gate, linear), data, scores in zip(gates(program.instructions).items(), rtl.snapshots, queues, strict=True):
        # The next gate may have appended behind these tokens before this one has retired, in its turn.
        end = linear.token + linear.n_rows
        got = queue_scores(data)
        wrong = np.argwhere(got[:, :end] != scores[:, :end])
        if wrong.size:
            at = tuple(wrong[0])
            where = f"instruction {gate}, token {at[1]}, expert {at[2]}"
            pytest.fail(f"{where}: RTL {got[at]}, isa {scores[at]}\n{listing(program)}")
    for got, want, what in (
        (rtl.activation[0], state.activation[0], "activation"),
        (rtl.operand[0], state.operand[0], "operand"),
        (rtl.outputs[0], state.output[0], "output"),
    ):
        if not np.array_equal(got[: want.size], want):
            pytest.fail(differs(got, want, what, program))


@pytest.mark.parametrize("seed", range(DEFAULT_SEEDS))
def test_random_program(seed: int) -> None:
    check("tiny", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1000 + SLOW_SEEDS))
def test_many_random_programs(seed: int) -> None:
    check(SMALL_CONFIGS[seed % len(SMALL_CONFIGS)], seed, length=16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2012))
def test_random_program_on_zcu104(seed: int) -> None:
    check("zcu104", seed)
