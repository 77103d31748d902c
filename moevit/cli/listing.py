"""What a program holds, as plain values: what `moevit inspect` prints and the demo draws.

Everything here comes from a `Program` alone; nothing is executed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from moevit import layout
from moevit.cli.groups import EXPERTS, Group, group_layers
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
from moevit.pipeline import machine_tasks
from moevit.program import (
    DTYPES,
    MEMORY_ACTIVATION,
    MEMORY_KEY,
    MEMORY_QUEUE,
    MEMORY_VALUE,
    Layer,
    Piece,
    Program,
    Task,
    Tensor,
)
from moevit.sim.pieces import extent, word_bytes

ENTRY_BYTES = 4  #: of a queue: token and score


def ideal_cycles(instruction: Instruction, config: AcceleratorConfig) -> int:
    """Cycles that the array spends on an instruction when nothing makes it wait.

    A tile takes a cycle per step, but no fewer cycles than its rows need to drain, nor than POST needs to
    write a tile of K. Zero for everything that the array has no part in. Of an expert, as many as if all tokens
    were its own.
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
    if layer.kind in ("patches", "rows", "constant"):
        return f"{layer.kind} in"
    if layer.kind == "attention":
        return "attention"
    first = instructions[layer.instructions[0]]
    assert isinstance(first, Linear)
    parts = ["norm"] if first.norm == NormMode.LAYERNORM else []
    kinds = {"route": "gate", "gather": "expert", "scatter": "expert"}
    made = {3: "q, k, v", 2: "k, v"}.get(len(layer.outputs), "linear")
    parts.append(kinds.get(layer.kind, made))
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
    tokens = _expert_tokens(task, instructions)
    return [_layer_entry(program, task, layer, instructions, tokens) for layer in task.layers]


def _layer_entry(
    program: Program, task: Task, layer: Layer, instructions: list[Instruction], tokens: dict[str, int]
) -> LayerEntry:
    config = program.config
    work = [instructions[i] for i in layer.instructions]
    if layer.kind in ("gather", "scatter"):
        mean = tokens[layer.inputs[1]]
        work = [replace(i, n_rows=min(mean, i.n_rows)) for i in work if isinstance(i, Linear)]
    cycles = sum(ideal_cycles(i, config) for i in work)
    return LayerEntry(
        name=layer.name,
        kind=layer.kind,
        role=role(layer, instructions),
        shape=_shape(task, layer, instructions),
        macs=layer.macs,
        weight_bytes=sum(stream_bytes(instructions[s], config) for s in layer.streams),
        ideal_cycles=cycles,
        utilisation=_utilisation(layer.macs, cycles, config),
        instructions=layer.instructions,
        source=tuple(dict.fromkeys(layer.source)),
    )


def _utilisation(macs: int, cycles: int, config: AcceleratorConfig) -> float | None:
    return macs / (cycles * config.macs_per_cycle) if cycles else None


def _expert_tokens(task: Task, instructions: list[Instruction]) -> dict[str, int]:
    """By the name of a gate's scores: tokens of an expert if all have equally many."""
    out: dict[str, int] = {}
    for layer in task.layers:
        if layer.kind == "route":
            gate = instructions[layer.instructions[0]]
            assert isinstance(gate, Linear)
            tokens = layout.ceil_div(layer.rows * gate.top_k, gate.experts)
            out[layer.outputs[0]] = max(out.get(layer.outputs[0], 0), tokens)
    return out


def grouped_layers(program: Program, task: Task) -> list[LayerEntry]:
    """The layers table for people: a line for all experts of a gate."""
    entries = {entry.name: entry for entry in layers(program, task)}
    return [
        _merged(program, task, group, [entries[layer.name] for layer in group.layers])
        for group in group_layers(task)
    ]


def _merged(program: Program, task: Task, group: Group, entries: list[LayerEntry]) -> LayerEntry:
    if len(entries) == 1:
        return entries[0]
    macs, cycles = sum(e.macs for e in entries), sum(e.ideal_cycles for e in entries)
    first, shape = entries[0], entries[0].shape
    doing = first.role
    if group.kind == EXPERTS:
        parts = [part for e in entries for part in e.role.replace("expert", "experts").split(" + ")]
        doing = " + ".join(dict.fromkeys(parts))
        scores = task.tensor(group.layers[0].inputs[1])
        first_hidden = task.tensor(group.layers[0].outputs[0])
        hidden = sum(  # of all slices of an expert
            task.tensor(layer.outputs[0]).channels for layer in group.layers
            if (layer.kind, layer.input_row) == ("gather", group.layers[0].input_row)
            and task.tensor(layer.outputs[0]).expert == first_hidden.expert
        )  # fmt: skip
        width = task.tensor(group.layers[-1].outputs[0]).channels
        shape = f"{scores.rows} tokens → {hidden} → {width}"
    return LayerEntry(
        name=group.name,
        kind=group.kind,
        role=doing,
        shape=shape,
        macs=macs,
        weight_bytes=sum(e.weight_bytes for e in entries),
        ideal_cycles=cycles,
        utilisation=_utilisation(macs, cycles, program.config),
        instructions=tuple(sorted(n for e in entries for n in e.instructions)),
        source=first.source,
    )


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


def stream_bytes(instruction: Instruction, config: AcceleratorConfig) -> int:
    """What a STREAM brings: norm parameters, POST parameters and weights."""
    assert isinstance(instruction, Stream)
    return (
        instruction.norm_words * config.norm_word_bytes
        + instruction.post_words * config.post_word_bytes
        + instruction.weight_words * config.operand_word_bytes
    )


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies, when, and what its integers mean.

    first_word, last_word : of its memory, both inclusive; of the queues, which have no words, token numbers
    written, read : numbers of the first instruction that writes it and the last that needs it
    real_low, real_high : real values that its integers cover
    gate, expert : whose tokens its rows are, if they are an expert's
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
    gate: str
    expert: int


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
    out = [_tensor_entry(t, program.config, last_use, instructions) for t in task.tensors if t.pieces]
    return sorted(out, key=lambda t: (t.written, t.name))


def _tensor_entry(
    t: Tensor, config: AcceleratorConfig, last_use: dict[str, int], instructions: list[Instruction]
) -> TensorEntry:
    first, end = extent(t, Piece(0, t.window or t.rows, 0), config)
    size = (end - first) * word_bytes(t, config)
    if t.memory == MEMORY_QUEUE:
        gate = instructions[t.pieces[0].instruction]
        assert isinstance(gate, Linear)
        size = t.rows * gate.top_k * ENTRY_BYTES
    written = min(p.instruction for p in t.pieces)
    bits, signed = DTYPES[t.dtype]
    lowest = -(1 << (bits - 1)) if signed else 0
    low, high = ((q - t.zero_point) * t.scale for q in (lowest, lowest + (1 << bits) - 1))
    return TensorEntry(
        t.name, (t.rows, t.channels), t.dtype, t.scale, t.zero_point, low, high, t.memory, first, end - 1,
        size, written, max(last_use.get(t.name, written), written), t.gate, t.expert,
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


def task_bytes(program: Program) -> dict[str, dict[str, int]]:
    """By task as the user knows it: bytes of ``weights`` and constants that it reads, and of its ``own``, which no
    other task reads."""
    blocks = {}
    for pipeline in (program.pipeline(name) for name in program.names):
        alone = image_blocks(replace(program, tasks=tuple(machine_tasks(program, pipeline))))
        blocks[pipeline.name] = {(b.offset, b.bytes) for b in alone if b.kind != "program"}
    out = {}
    for name, mine in blocks.items():
        others = set().union(*(theirs for other, theirs in blocks.items() if other != name))
        out[name] = {"weights": sum(n for _, n in mine), "own": sum(n for _, n in mine - others)}
    return out


def _image_parts(i: Instruction, config: AcceleratorConfig) -> Iterable[tuple[int, int, str]]:
    if isinstance(i, Stream):
        yield i.norm_offset * BLOCK_BYTES, i.norm_words * config.norm_word_bytes, "norm"
        yield i.post_offset * BLOCK_BYTES, i.post_words * config.post_word_bytes, "post"
        yield i.weight_offset * BLOCK_BYTES, i.weight_words * config.operand_word_bytes, "weights"
    if isinstance(i, DmaIn) and i.source == DmaSource.IMAGE:
        yield i.offset, i.moved_bytes, "constant"


@dataclass(frozen=True)
class MemoryUse:
    """How much of each memory a task uses, in words: (used, there are)."""

    ring_words: int
    key_value_words: tuple[int, int]
    activation_words: tuple[int, int]
    longest_row: tuple[int, int]  #: bytes in the A tile
    queue_entries: tuple[int, int]  #: of all experts together


def memory_use(program: Program, task: Task) -> MemoryUse:
    """Peaks of a task."""
    c = program.config
    instructions = program.instructions(task)
    begin = instructions[0]
    assert isinstance(begin, Begin)
    entries = tensors(program, task)
    activation = max((t.last_word + 1 for t in entries if t.memory == MEMORY_ACTIVATION), default=0)
    operand = max(
        (t.last_word + 1 for t in entries if t.memory in (MEMORY_KEY, MEMORY_VALUE)), default=begin.ring_words
    )
    rows = [i.length for i in instructions if isinstance(i, Linear)]
    longest = max(rows + [i.n_keys for i in instructions if isinstance(i, Attention)], default=0)
    return MemoryUse(
        begin.ring_words,
        (operand - begin.ring_words, c.operand_words - begin.ring_words),
        (activation, c.activation_words),
        (longest, c.tile_depth),
        (max((i.n_rows * i.top_k for i in instructions if isinstance(i, Linear)), default=0), c.queue_entries),
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
