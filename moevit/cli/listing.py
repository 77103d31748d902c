"""What a program holds, as plain values: what `moevit inspect` prints and the demo draws.

Everything here comes from a `Program` alone; nothing is executed.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from moevit import layout
from moevit.config import AcceleratorConfig
from moevit.isa import (
    INSTRUCTION_BYTES,
    Attention,
    Begin,
    DmaIn,
    DmaOut,
    Instruction,
    Linear,
    NormMode,
    Stream,
)
from moevit.isa.disassemble import disassemble
from moevit.isa.formats import BLOCK_BYTES, DmaSource
from moevit.numerics.activation import Activation
from moevit.program import DTYPES, MEMORY_ACTIVATION, Layer, Piece, Program, Task, Tensor
from moevit.sim.pieces import extent


def ideal_cycles(instruction: Instruction, config: AcceleratorConfig) -> int:
    """Cycles that the array spends on an instruction when nothing makes it wait.

    A tile takes a cycle per step, but no fewer cycles than its rows need to drain, nor than POST needs to
    write a tile of K. Zero for everything that the array has no part in.
    """
    c = config
    if isinstance(instruction, Linear):
        steps = layout.ceil_div(instruction.length, c.depth)
        return instruction.tiles * sum(max(steps, drain) for drain in _drains(instruction.n_rows, c))
    if isinstance(instruction, Attention):
        a = instruction
        scores, context = layout.ceil_div(a.head_dim, c.depth), layout.ceil_div(a.n_keys, c.depth)
        key_tiles, value_tiles = layout.ceil_div(a.n_keys, c.columns), layout.ceil_div(a.head_dim, c.columns)
        return a.heads * sum(
            key_tiles * max(scores, drain) + value_tiles * max(context, drain)
            for drain in _drains(a.n_rows, c)
        )
    return 0


def _drains(n_rows: int, config: AcceleratorConfig) -> Iterator[int]:
    """The fewest cycles between the ends of two tiles, for each row tile."""
    for first in range(0, n_rows, config.rows):
        yield max(min(config.rows, n_rows - first), config.key_groups)


def role(layer: Layer, instructions: list[Instruction]) -> str:
    """What a layer does, in a word or three: ``norm + q, k, v``, ``attention``, ``linear + gelu``."""
    if layer.kind in ("patches", "constant"):
        return {"patches": "patches in", "constant": "constant in"}[layer.kind]
    if layer.kind == "attention":
        return "attention"
    first = instructions[layer.instructions[0]]
    assert isinstance(first, Linear)
    parts = ["norm"] if first.norm == NormMode.LAYERNORM else []
    kinds = {"route": "gate", "gather": "expert", "scatter": "expert"}
    parts.append("q, k, v" if len(layer.outputs) == 3 else kinds.get(layer.kind, "linear"))
    if first.activation != Activation.NONE:
        parts.append(Activation(first.activation).name.lower())
    if first.residual:
        parts.append("add")
    return " + ".join(parts)


@dataclass(frozen=True)
class LayerEntry:
    """A row of the layers table.

    shape : of the input rows and the output rows
    weight_bytes : what its STREAMs bring, parameters included
    ideal_cycles : of the array, see :func:`ideal_cycles`; of an expert, when all have equally many tokens
    utilisation : the model's multiply-accumulates over what the array could do in the ideal cycles
    """

    name: str
    kind: str
    role: str
    shape: str
    macs: int
    weight_bytes: int
    ideal_cycles: int
    utilisation: float | None
    instructions: tuple[int, ...]
    source: tuple[str, ...]


def layers(program: Program, task: Task) -> list[LayerEntry]:
    """The layers table, in the order of execution."""
    instructions = program.instructions(task)
    gates = {layer.outputs[0]: instructions[layer.instructions[0]] for layer in task.layers if layer.kind == "route"}
    out = []
    for layer in task.layers:
        works = [instructions[i] for i in layer.instructions]
        if layer.kind in ("gather", "scatter"):
            works = [_evenly_used(work, gates[layer.inputs[1]]) for work in works]
        cycles = sum(ideal_cycles(work, program.config) for work in works)
        out.append(
            LayerEntry(
                name=layer.name,
                kind=layer.kind,
                role=role(layer, instructions),
                shape=_shape(task, layer, instructions),
                macs=layer.macs,
                weight_bytes=sum(_stream_bytes(instructions[s], program.config) for s in layer.streams),
                ideal_cycles=cycles,
                utilisation=layer.macs / (cycles * program.config.macs_per_cycle) if cycles else None,
                instructions=layer.instructions,
                source=tuple(dict.fromkeys(layer.source)),
            )
        )
    return out


def _evenly_used(expert: Instruction, gate: Instruction) -> Instruction:
    """An expert's instruction with as many rows as its queue has if all experts have equally many tokens."""
    assert isinstance(expert, Linear) and isinstance(gate, Linear)
    return dataclasses.replace(expert, n_rows=layout.ceil_div(expert.n_rows * gate.top_k, gate.experts))


def _shape(task: Task, layer: Layer, instructions: list[Instruction]) -> str:
    first = instructions[layer.instructions[0]]
    if isinstance(first, Linear):
        outputs = layer.outputs[:1] if layer.kind == "route" else layer.outputs
        channels = sum(task.tensor(name).channels for name in outputs)
        return f"{layer.rows}×{first.length} → {layer.rows}×{channels}"
    if isinstance(first, Attention):
        return f"{first.heads} heads of {first.head_dim}, {first.n_rows}×{first.n_keys}"
    t = task.tensor(layer.outputs[0])
    if layer.kind == "patches":
        return f"{'×'.join(map(str, layer.patch[:3]))} → {t.rows}×{t.channels}"
    return f"{t.rows}×{t.channels}"


def _stream_bytes(instruction: Instruction, config: AcceleratorConfig) -> int:
    assert isinstance(instruction, Stream)
    return (
        instruction.norm_words * config.norm_word_bytes
        + instruction.post_words * config.post_word_bytes
        + instruction.weight_words * config.operand_word_bytes
    )


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies, when, and what its integers mean.

    first_word, last_word : of its memory, both inclusive
    written, read : numbers of the first instruction that writes it and the last that needs it
    real_low, real_high : real values that its integers cover
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    scale: float
    zero_point: int
    real_low: float
    real_high: float
    memory: str
    first_word: int
    last_word: int
    bytes: int
    written: int
    read: int


def tensors(program: Program, task: Task) -> list[TensorEntry]:
    """All tensors, in the order they are first written."""
    instructions = program.instructions(task)
    last_use: dict[str, int] = {}
    for layer in task.layers:
        for name in layer.inputs:
            last_use[name] = max(last_use.get(name, 0), *layer.instructions)
    copies = [(n, i) for n, i in enumerate(instructions) if isinstance(i, DmaOut)]
    for output in task.outputs:
        for number, copy in copies:
            if copy.offset == output.offset:
                last_use[output.tensor] = max(last_use.get(output.tensor, 0), number)
    out = [_tensor_entry(t, program.config, last_use) for t in task.tensors if t.pieces]
    return sorted(out, key=lambda t: (t.written, t.name))


def _tensor_entry(t: Tensor, config: AcceleratorConfig, last_use: dict[str, int]) -> TensorEntry:
    first, end = extent(t, Piece(0, t.rows, 0), config)
    word = config.columns if t.memory == MEMORY_ACTIVATION else config.operand_word_bytes
    written = min(p.instruction for p in t.pieces)
    bits, signed = DTYPES[t.dtype]
    lowest = -(1 << (bits - 1)) if signed else 0
    low, high = ((q - t.zero_point) * t.scale for q in (lowest, lowest + (1 << bits) - 1))
    return TensorEntry(
        t.name, (t.rows, t.channels), t.dtype, t.scale, t.zero_point, low, high, t.memory, first, end - 1,
        (end - first) * word, written, max(last_use.get(t.name, written), written),
    )  # fmt: skip


@dataclass
class ImageBlock:
    """A block of the weight image; equal blocks of several layers or tasks are one, with several users."""

    offset: int
    bytes: int
    kind: str  #: program, weights, post, norm or constant
    users: list[str] = field(default_factory=list)


def image_blocks(program: Program) -> list[ImageBlock]:
    """What lies where in the image, by offset; padding to BLOCK_BYTES is between the blocks."""
    blocks: dict[tuple[int, int, str], ImageBlock] = {}

    def put(offset: int, size: int, kind: str, user: str) -> None:
        if size:
            block = blocks.setdefault((offset, size, kind), ImageBlock(offset, size, kind))
            if user not in block.users:
                block.users.append(user)

    several = len(program.tasks) > 1
    for task in program.tasks:
        put(task.entry, task.instructions * INSTRUCTION_BYTES, "program", task.name)
        instructions = program.instructions(task)
        for layer in task.layers:
            user = f"{task.name}: {layer.name}" if several else layer.name
            for part in (*layer.streams, *layer.instructions):
                for offset, size, kind in _image_parts(instructions[part], program.config):
                    put(offset, size, kind, user)
    return sorted(blocks.values(), key=lambda b: b.offset)


def _image_parts(i: Instruction, config: AcceleratorConfig) -> Iterable[tuple[int, int, str]]:
    if isinstance(i, Stream):
        yield i.norm_offset * BLOCK_BYTES, i.norm_words * config.norm_word_bytes, "norm"
        yield i.post_offset * BLOCK_BYTES, i.post_words * config.post_word_bytes, "post"
        yield i.weight_offset * BLOCK_BYTES, i.weight_words * config.operand_word_bytes, "weights"
    if isinstance(i, DmaIn) and i.source == DmaSource.IMAGE:
        yield i.offset, i.count0 * i.count1 * i.segments * i.segment_bytes, "constant"


@dataclass(frozen=True)
class MemoryUse:
    """How much of each memory a task uses, in words: (used, there are)."""

    ring_words: int
    key_value_words: tuple[int, int]
    activation_words: tuple[int, int]
    longest_row: tuple[int, int]  #: bytes in the A tile


def memory_use(program: Program, task: Task) -> MemoryUse:
    """Peaks of a task."""
    c = program.config
    instructions = program.instructions(task)
    begin = instructions[0]
    assert isinstance(begin, Begin)
    entries = tensors(program, task)
    activation = max((t.last_word + 1 for t in entries if t.memory == MEMORY_ACTIVATION), default=0)
    operand = max(
        (t.last_word + 1 for t in entries if t.memory != MEMORY_ACTIVATION), default=begin.ring_words
    )
    rows = [i.length for i in instructions if isinstance(i, Linear)]
    longest = max(rows + [i.n_keys for i in instructions if isinstance(i, Attention)], default=0)
    return MemoryUse(
        begin.ring_words,
        (operand - begin.ring_words, c.operand_words - begin.ring_words),
        (activation, c.activation_words),
        (longest, c.tile_depth),
    )


def disassembly(program: Program, task: Task) -> list[str]:
    """One line per instruction, ``number  text  ; layer``."""
    instructions = program.instructions(task)
    comment: dict[int, str] = {}
    for layer in task.layers:
        comment |= dict.fromkeys((*layer.streams, *layer.instructions), layer.name)
    width = len(str(len(instructions) - 1))
    return [
        f"{n:{width}}  {disassemble(i)}" + (f"  ; {comment[n]}" if n in comment else "")
        for n, i in enumerate(instructions)
    ]


def image_digest(program: Program) -> str:
    """SHA-256 of the image."""
    return hashlib.sha256(program.image).hexdigest()
