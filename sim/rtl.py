"""The rtl back-end: runs programs on the verilated machine behind the C++ harness of ``sim/rtl/``."""

import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.errors import SimulationError
from moevit.isa import Instruction
from moevit.isa.disassemble import disassemble
from moevit.program import MEMORY_ACTIVATION, MEMORY_QUEUE, Piece, Program, Task, Tensor
from moevit.registers import COUNTERS, ErrorCode, Status
from moevit.sim import pieces, verilate
from moevit.sim.dram import DramModel
from moevit.sim.experts import ExpertBlocks, Lengths, gates

Bytes = NDArray[np.uint8]
Progress = Callable[[int], None]

WATCHDOG_CYCLES = 200_000  #: without a transfer, a write of POST or a retiring instruction: the machine hangs
OUTPUT_FILL = 0xA5  #: what the output buffer holds before a run, so that bytes nobody writes show
OPERAND = "operand"
#: what the harness says of a run: at which cycle, what (a ``trace.Mark`` or one of the next ones), and how much of it
RECORD = np.dtype([("cycle", "<u8"), ("kind", "<u4"), ("value", "<u4")])
RECORD_RING = 64  #: words in the weight ring
RECORD_CAUSES = 128  #: + counter: its cycles since the retirement before; a stage's idle ones are behind the counters
RECORD_TILE_LOADS = 256  #: + counter of the loader, or its idle: of those, in which the array waited for a tile


@dataclass(frozen=True)
class Watch:
    """Words ``first`` … ``end - 1`` of a memory, to be copied when the ``retired``-th instruction (from 0) retires."""

    retired: int
    #: "activation", "operand" or "queue"; of the second only what POST writes, K and V, is seen, and the third is what
    #: ``pieces`` makes of the experts' queues
    memory: str
    first: int
    end: int


@dataclass(frozen=True)
class ImageRun:
    """What one run of the program said.

    ``cycles`` counts from the cycle that accepts the start to the one that raises the interrupt;
    ``cycles_register`` is the machine's own count. ``retire_cycles`` has one entry per retired instruction.
    ``dram_bytes`` counts whole bus words by what they hold: of the weights, ``experts`` are those of predicated
    STREAMs whose queue was not empty, and ``speculative`` those that were read for an empty one (both only from
    RtlSimulator). ``region_bytes`` has what was read of each region that was asked for.
    """

    cycles: int
    cycles_register: int
    retire_cycles: tuple[int, ...]
    counters: dict[str, dict[str, int]]
    dram_bytes: dict[str, int]
    status: Status
    error: int
    error_instruction: int
    retired: int
    hung: bool
    violations: tuple[str, ...]
    region_bytes: tuple[int, ...] = ()
    #: by stage, cycles without a cause, which the harness has counted
    idle: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Done, and nothing was broken on the way."""
        return self.status == Status.DONE and not self.hung and not self.violations


@dataclass(frozen=True)
class RawRun:
    """Runs of B inputs; fewer where one hung or broke the bus protocol, which ends a run."""

    images: tuple[ImageRun, ...]
    outputs: Bytes  #: [B, output bytes]
    snapshots: tuple[Bytes, ...]  #: per watch: [B, (end - first) * word bytes]
    activation: Bytes | None  #: [B, activation words * C] at the end, zero where the run did not write
    operand: Bytes | None  #: [B, operand words * C * K], of K and V
    simulated_cycles: int
    wall_s: float
    timeline: NDArray | None = None  #: of the first input; of RECORD


def run_raw(
    config: AcceleratorConfig,
    image: bytes,
    entry: int,
    instructions: int,
    inputs: Bytes,
    output_bytes: int,
    *,
    others: Sequence[tuple[int, int]] = (),
    watches: Sequence[Watch] = (),
    regions: Sequence[tuple[int, int]] = (),
    memories: bool = False,
    dram: DramModel | None = None,
    trace: Path | None = None,
    timeline: bool = False,
    workers: int = 1,
    max_cycles: int | None = None,
    watchdog_cycles: int = WATCHDOG_CYCLES,
    output_fill: int = OUTPUT_FILL,
    soft_reset: bool = True,
    executable: Path | None = None,
    progress: Progress | None = None,
) -> RawRun:
    """Run a program that need not be well-formed; whatever happens is reported, not raised.

    Parameters
    ----------
    config, image : the machine, and its program and weight image
    entry, instructions : byte offset of BEGIN in the image, and the program's length
    inputs : [B, input bytes]; each is one run, from memories as the run before left them
    output_bytes : size of the output buffer
    others : entry and length of further tasks; the first input is for the first task, the second for the next,
        and so on round them, in one process. Watches belong to all of them
    watches : what to copy out of the memories when
    regions : first and end bytes of parts of the image, one after the other, of which to count what is read
    memories : whether to return what the memories hold at the end
    dram : the memory model; the configuration's default when None
    trace : an FST file to write the waveform to
    timeline : whether to record what the machine does when, for the first input
    workers : processes that the inputs are shared out to
    max_cycles, watchdog_cycles : when a run counts as hung
    output_fill : what every byte of the output buffer is before a run
    soft_reset : reset the machine between the inputs of a process; else only start it again
    executable : the simulation to use instead of the configuration's
    progress : called with 1 as each input is done

    Raises
    ------
    SimulationError : the simulation itself failed
    ToolError : it cannot be built
    """
    dram = dram or DramModel.default(config)
    program = executable or verilate.build(config, trace_waves=trace is not None)
    # The harness copies in the order of retirement; equal retirements keep their order.
    order = sorted(range(len(watches)), key=lambda i: watches[i].retired)
    lines: dict[str, object] = {
        "input_bytes": inputs.shape[1], "output_bytes": output_bytes,
        "output_fill": output_fill, "soft_reset": int(soft_reset), "watchdog": watchdog_cycles,
        "bytes_per_cycle": dram.bytes_per_cycle, "latency": dram.latency_cycles,
        "outstanding": dram.outstanding_bursts, "seed": dram.seed or 0,
    }  # fmt: skip
    if max_cycles is not None:
        lines["max_cycles"] = max_cycles
    if trace is not None:
        lines["trace"] = trace.absolute()
    text = "".join(f"{key} {value}\n" for key, value in lines.items())
    for task_entry, task_length in ((entry, instructions), *others):
        text += f"task {task_entry} {task_length}\n"
    for i in order:
        w = watches[i]
        text += f"watch {w.retired} {w.memory} {w.first} {w.end}\n"
    text += "".join(f"region {first} {end}\n" for first, end in regions)
    workers = 1 if trace is not None or others else max(1, min(workers, len(inputs)))
    edges = [len(inputs) * i // workers for i in range(workers + 1)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moevit-rtl-") as name:
        folder = Path(name)
        (folder / "image").write_bytes(image)

        def job(i: int) -> _JobResult:
            part = inputs[edges[i] : edges[i + 1]]
            return _run_job(program, folder, i, text, part, memories, timeline and i == 0, progress)

        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(job, range(workers)))
    complete = [run for result in results for run in result.images]
    snapshots = _split(results, watches, order, config)
    activation = operand = None
    if memories:
        size = config.activation_words * config.columns
        both = np.concatenate([result.memories.reshape(len(result.images), -1) for result in results])
        activation, operand = both[:, :size], both[:, size:]
    outputs = np.concatenate([result.outputs for result in results]).reshape(len(complete), output_bytes)
    total = sum(result.total_cycles for result in results)
    wall_s = time.monotonic() - started
    return RawRun(tuple(complete), outputs, snapshots, activation, operand, total, wall_s, results[0].timeline)


@dataclass(frozen=True)
class _JobResult:
    images: list[ImageRun]
    outputs: Bytes
    snapshots: list[Bytes]  # per image
    memories: Bytes
    total_cycles: int
    timeline: NDArray | None


def _run_job(
    program: Path, folder: Path, number: int, text: str, inputs: Bytes, memories: bool, timeline: bool,
    progress: Progress | None,
) -> _JobResult:  # fmt: skip
    """One process of the harness."""
    files = ("job", "inputs", "outputs", "snapshots", "memories", "timeline", "errors")
    paths = {k: folder / f"{number}.{k}" for k in files}
    paths["inputs"].write_bytes(np.ascontiguousarray(inputs).tobytes())
    wanted = {"memories": memories, "timeline": timeline}
    names = ["inputs", "outputs", "snapshots", *(name for name, want in wanted.items() if want)]
    text += f"image {folder / 'image'}\ncount {len(inputs)}\n" + "".join(f"{n} {paths[n]}\n" for n in names)
    paths["job"].write_text(text)
    answers = []
    with (
        open(paths["errors"], "w") as errors,
        subprocess.Popen(
            [program, paths["job"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                answers.append(json.loads(line))
                if progress is not None:
                    progress(1)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not answers:
        reason = " ".join(paths["errors"].read_text().split()) or f"exit status {process.returncode}"
        raise SimulationError(f"the simulation failed: {reason}", where="rtl")

    def read(name: str) -> Bytes:
        return np.fromfile(paths[name], np.uint8)

    edges = np.cumsum([0, *(a["snapshot_bytes"] for a in answers)])
    data = read("snapshots")
    snapshots = [data[a:b] for a, b in pairwise(edges)]
    empty = np.zeros(0, np.uint8)
    return _JobResult(
        [_image_run(a) for a in answers], read("outputs"), snapshots, read("memories") if memories else empty,
        answers[-1]["total_cycles"], np.fromfile(paths["timeline"], RECORD) if timeline else None,
    )  # fmt: skip


def _image_run(answer: dict) -> ImageRun:
    counters: dict[str, dict[str, int]] = {}
    for (stage, cause, _), value in zip(COUNTERS, answer["counters"], strict=True):
        counters.setdefault(stage, {})[cause] = value
    dram_bytes = {
        "weights": answer["read_image"],
        "instructions": answer["read_program"],
        "activations": answer["read_input"] + answer["read_output"] + answer["written"],
    }
    return ImageRun(
        cycles=answer["cycles"],
        cycles_register=answer["cycles_register"],
        retire_cycles=tuple(answer["retire_cycles"]),
        counters=counters,
        dram_bytes=dram_bytes,
        status=Status(answer["status"]),
        error=answer["error"],
        error_instruction=answer["error_instruction"],
        retired=answer["retired"],
        hung=answer["hung"],
        violations=tuple(answer["violations"]),
        region_bytes=tuple(answer["regions"]),
        idle=dict(zip(counters, answer["idle"], strict=True)),
    )


def _split(
    results: list[_JobResult], watches: Sequence[Watch], order: list[int], config: AcceleratorConfig
) -> tuple[Bytes, ...]:
    """The snapshots per watch, from each image's in the order of retirement.

    An image that stopped early lacks the last ones; its rows are zero from there.
    """
    per_image = [data for result in results for data in result.snapshots]
    sizes = [_watch_bytes(watches[i], config) for i in order]
    whole = np.zeros((len(per_image), sum(sizes)), np.uint8)
    for row, data in zip(whole, per_image, strict=True):
        row[: len(data)] = data
    parts = np.split(whole, np.cumsum(sizes)[:-1], axis=1) if order else []
    by_watch = dict(zip(order, parts, strict=True))
    return tuple(by_watch[i] for i in range(len(watches)))


def _watch_bytes(watch: Watch, config: AcceleratorConfig) -> int:
    return (watch.end - watch.first) * pieces.memory_word_bytes(watch.memory, config)


@dataclass(frozen=True)
class RtlRun:
    """Runs of B inputs that all ended well. ``values`` holds, for each piece of each tensor, [B, rows, channels]."""

    images: tuple[ImageRun, ...]
    outputs: Bytes  #: [B, output bytes]
    values: dict[tuple[str, Piece], NDArray]
    lengths: Lengths
    simulated_cycles: int
    wall_s: float
    timeline: NDArray | None = None  #: of the first input; of RECORD


class RtlSimulator:
    """A task of a program on the verilated machine, which is built here if the cache does not hold it.

    Parameters
    ----------
    program, task : what to run
    dram : the memory model; the configuration's default when None
    trace : an FST file to write the waveform to
    workers : processes that the inputs are shared out to; one per CPU when None

    Raises
    ------
    ToolError : the simulation cannot be built
    """

    def __init__(
        self,
        program: Program,
        task: Task,
        *,
        dram: DramModel | None = None,
        trace: Path | None = None,
        workers: int | None = None,
    ) -> None:
        self.program, self.task = program, task
        self.config = program.config
        self.dram = dram or DramModel.default(self.config)
        self.trace = trace
        self.workers = workers or len(os.sched_getaffinity(0))
        self.instructions = program.instructions(task)
        #: the program number of each instruction that retires, in order
        self.retiring = [n for n, i in enumerate(self.instructions) if i.retires]
        self._gates = gates(self.instructions)
        self._tokens = max((g.token + g.n_rows for g in self._gates.values()), default=0)
        self._experts = ExpertBlocks(self.config, self.instructions)
        self.executable = verilate.build(self.config, trace_waves=trace is not None)

    def run(
        self, inputs: Bytes, *, tensors: bool = False, timeline: bool = False, progress: Progress | None = None
    ) -> RtlRun:
        """Run inputs [B, input bytes]; with ``tensors``, keep every piece of every tensor as it is written.

        With ``timeline``, record what the machine does when for the first input.

        Raises
        ------
        SimulationError : the machine stopped with an error code, hung, or broke a bus protocol
        """
        wanted = [(t, p) for t in self.task.tensors for p in t.pieces] if tensors else []
        # The queues as each gate retires, to know which experts were needed.
        queues = [Watch(self.retiring.index(g), MEMORY_QUEUE, 0, self._tokens) for g in self._gates]
        raw = run_raw(
            self.config, self.program.image, self.task.entry, self.task.instructions, inputs, self.task.output_bytes,
            watches=[*queues, *(self._watch(t, p) for t, p in wanted)], regions=self._experts.regions, dram=self.dram,
            trace=self.trace, timeline=timeline, workers=self.workers, executable=self.executable, progress=progress,
        )  # fmt: skip
        for i, image in enumerate(raw.images):
            require_ok(image, self.instructions, where=f"rtl, image {i}")
        lengths = {
            gate: np.count_nonzero(pieces.queue_scores(data), axis=1)
            for gate, data in zip(self._gates, raw.snapshots, strict=False)
        }
        values = {
            (t.name, p): pieces.extract(t, p, data, self.config)
            for (t, p), data in zip(wanted, raw.snapshots[len(queues) :], strict=True)
        }
        return RtlRun(
            self._shared(raw.images, lengths), raw.outputs, values, lengths, raw.simulated_cycles, raw.wall_s,
            raw.timeline,
        )  # fmt: skip

    def _shared(self, images: Sequence[ImageRun], lengths: Lengths) -> tuple[ImageRun, ...]:
        """With the weight bytes shared out to what needed them."""
        needed = self._experts.needed(lengths)
        out = []
        for image, parts in zip(images, np.broadcast_to(needed, (len(images), needed.shape[1])), strict=True):
            spare = self._experts.speculative(np.array(image.region_bytes, np.int64), parts)
            split = {"experts": int(parts.sum()), "speculative": int(spare.sum())}
            out.append(dataclasses.replace(image, dram_bytes=image.dram_bytes | split))
        return tuple(out)

    def _watch(self, tensor: Tensor, piece: Piece) -> Watch:
        memory = tensor.memory if tensor.memory in (MEMORY_ACTIVATION, MEMORY_QUEUE) else OPERAND
        first, end = pieces.extent(tensor, piece, self.config)
        return Watch(self.retiring.index(piece.instruction), memory, first, end)


def require_ok(run: ImageRun, instructions: Sequence[Instruction], where: str) -> None:
    """Raise SimulationError, saying which instruction is concerned, unless a run ended well."""
    retiring = [n for n, i in enumerate(instructions) if i.retires]
    done = len(run.retire_cycles)

    def name(number: int) -> str:
        if not 0 <= number < len(instructions):
            return f"instruction {number}"
        return f"instruction {number} ({disassemble(instructions[number])})"

    if run.hung:
        following = f"the next to retire is {name(retiring[done])}" if done < len(retiring) else "all have retired"
        waits = {f"{s}.{c}": n for s, causes in run.counters.items() for c, n in causes.items() if n}
        raise SimulationError(
            f"no progress after {run.cycles} cycles: {done} of {len(retiring)} instructions have retired, "
            f"{following}; counters: {waits}", where=where,
        )  # fmt: skip
    if run.violations:
        raise SimulationError("; ".join(run.violations), where=where)
    if run.status != Status.DONE:
        known = {int(e): e.name for e in ErrorCode}
        code = known.get(run.error, f"error code {run.error}")
        raise SimulationError(f"the machine stopped with {code} at {name(run.error_instruction)}", where=where)
    if done != len(retiring):
        raise SimulationError(f"done, but {done} of {len(retiring)} instructions have retired", where=where)
