"""The program container: one file, no code in it, every size and offset checked before use.

Layout (little-endian): 8 bytes magic, u32 header bytes, u64 image bytes, u64 host bytes, 32 bytes SHA-256 of all that
follows: the header (JSON, deflated), the image, the host's ONNX models. A file that is truncated, longer, altered or
inconsistent is refused.
"""

import hashlib
import json
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from moevit.config import AcceleratorConfig
from moevit.errors import ConfigError, ContainerError, EncodingError
from moevit.isa import INSTRUCTION_BYTES, Begin, DmaIn, Instruction, Linear, Stream
from moevit.isa.formats import BLOCK_BYTES, COUNT
from moevit.layout import row_words
from moevit.numerics.route import MAX_EXPERTS
from moevit.pipeline import HostPart, Pipeline
from moevit.pipeline_check import check_pipelines
from moevit.program import (
    DTYPES,
    MEMORY_ACTIVATION,
    MEMORY_KEY,
    MEMORY_QUEUE,
    MEMORY_VALUE,
    Input,
    Layer,
    Program,
    Source,
    Task,
    Tensor,
)
from moevit.schema import from_json, to_json

MAGIC = b"MOEVIT\x00\x03"
_PREFIX = struct.Struct("<8sIQQ32s")
MAX_HEADER_BYTES = 64 << 20  #: before compression
MAX_IMAGE_BYTES = 4 << 30
MAX_HOST_BYTES = 4 << 30
MAX_BUFFER_BYTES = 1 << 30
MAX_ELEMENTS = 1 << 28  #: of one tensor
MAX_TOKENS = 1 << COUNT  #: in the experts' queues


@dataclass(frozen=True)
class _Header:
    tasks: tuple[Task, ...]
    sources: tuple[Source, ...]
    shared_bytes: int
    pipelines: tuple[Pipeline, ...]
    host_parts: tuple[HostPart, ...]


def dumps(program: Program) -> bytes:
    """The container's bytes; the same program gives the same bytes."""
    header = {"config": program.config.to_dict()} | to_json(
        _Header(program.tasks, program.sources, program.shared_bytes, program.pipelines, program.host_parts)
    )
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    packed = zlib.compress(text, 9)
    body = packed + program.image + program.host_data
    prefix = _PREFIX.pack(
        MAGIC, len(packed), len(program.image), len(program.host_data), hashlib.sha256(body).digest()
    )
    return prefix + body


def save(program: Program, path: Path) -> None:
    """Write a container atomically: the file is there whole, or as it was before."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ContainerError(f"cannot write: {error.strerror}", where=str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(dumps(program))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: Path) -> Program:
    """Read and check a container. Raises ContainerError that names the file and what is wrong with it."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _PREFIX.size + MAX_HEADER_BYTES + MAX_IMAGE_BYTES + MAX_HOST_BYTES:
            raise ContainerError(f"{size} bytes are more than any container has")
        return loads(path.read_bytes())
    except OSError as error:
        raise ContainerError(f"cannot read: {error.strerror}", where=str(path)) from error
    except ContainerError as error:
        where = str(path) if error.where is None else f"{path}: {error.where}"
        raise ContainerError(error.what, where=where, mend=error.mend or "compile it again") from error


def loads(data: bytes) -> Program:
    """Inverse of :func:`dumps`."""
    if len(data) < _PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise ContainerError("not a moevit container of this version")
    _, header_bytes, image_bytes, host_bytes, digest = _PREFIX.unpack_from(data)
    if header_bytes > MAX_HEADER_BYTES or _PREFIX.size + header_bytes + image_bytes + host_bytes != len(data):
        raise ContainerError("truncated, or longer than its header says")
    body = memoryview(data)[_PREFIX.size :]
    if hashlib.sha256(body).digest() != digest:
        raise ContainerError("damaged: the checksum does not fit")
    try:
        fields = json.loads(_inflate(bytes(body[:header_bytes])))
    except (ValueError, RecursionError, zlib.error) as error:
        raise ContainerError("the header is not JSON") from error
    if not isinstance(fields, dict) or "config" not in fields:
        raise ContainerError("the header holds no configuration")
    try:
        config = AcceleratorConfig.from_dict(fields.pop("config"))
    except ConfigError as error:
        raise ContainerError(error.what, where="config") from error
    header = from_json(_Header, fields, "header")
    image, host_data = bytes(body[header_bytes:][:image_bytes]), bytes(body[header_bytes + image_bytes :])
    program = Program(
        config, header.tasks, header.sources, image, header.shared_bytes, header.pipelines, header.host_parts,
        host_data,
    )  # fmt: skip
    validate(program)
    return program


def _inflate(packed: bytes) -> bytes:
    """The header's text. Raises ValueError for one that is longer than any header, zlib.error for nonsense."""
    inflate = zlib.decompressobj()
    text = inflate.decompress(packed, MAX_HEADER_BYTES)
    if not inflate.eof or inflate.unused_data:
        raise ValueError("truncated, too long, or followed by something")
    return text


def _require(condition: bool, what: str, where: str) -> None:
    if not condition:
        raise ContainerError(what, where=where)


def validate(program: Program) -> None:
    """Check every offset, size and cross-reference; a container that passes cannot make a simulator read or
    write outside its buffers or allocate without bound."""
    _require(len(program.tasks) > 0, "no task", "tasks")
    names = [t.name for t in program.tasks]
    _require(len(set(names)) == len(names), "two tasks have one name", "tasks")
    for task in program.tasks:
        _validate_task(program, task)
    check_pipelines(program)


def _validate_task(program: Program, task: Task) -> None:
    where = f"task {task.name!r}"
    size = len(program.image)
    _require(task.entry >= 0 and task.entry % BLOCK_BYTES == 0, "entry is not aligned", where)
    _require(task.instructions >= 2 and task.entry + task.instructions * INSTRUCTION_BYTES <= size,
             "the program lies outside the image", where)
    for n in (task.input_bytes, task.output_bytes):
        _require(0 <= n <= MAX_BUFFER_BYTES, f"a buffer of {n} bytes", where)
    try:
        instructions = program.instructions(task)
    except EncodingError as error:
        raise ContainerError(str(error), where=where) from error
    begin = instructions[0]
    _require(isinstance(begin, Begin) and begin.digest == program.config.digest,
             "the program was compiled for another configuration", where)
    tensors = {t.name: t for t in task.tensors}
    _require(len(tensors) == len(task.tensors), "two tensors have one name", where)
    for t in task.tensors:
        here = f"{where}, tensor {t.name!r}"
        _require(t.dtype in DTYPES, f"unknown dtype {t.dtype!r}", here)
        memories = (MEMORY_ACTIVATION, MEMORY_KEY, MEMORY_VALUE, MEMORY_QUEUE)
        _require(t.memory in memories, f"unknown memory {t.memory!r}", here)
        _require(t.rows > 0 and t.channels > 0 and t.rows * t.channels <= MAX_ELEMENTS, "bad shape", here)
        _require(t.scale > 0, "scale is not positive", here)
        _require(t.addr >= 0 and t.stride >= 0, "negative address", here)
        _require(0 <= t.window <= t.rows, "bad window", here)
        _require(t.window == 0 or t.memory in (MEMORY_ACTIVATION, MEMORY_QUEUE), "a window of K or V", here)
        _validate_place(program, t, here)
        _validate_queue(tensors, t, here)
        for p in t.pieces:
            _require(p.row >= 0 and p.rows > 0 and p.row + p.rows <= t.rows, "a piece lies outside it", here)
            _require(t.window == 0 or p.row % t.window + p.rows <= t.window, "a piece leaves the window", here)
            _require(0 <= p.instruction < task.instructions and instructions[p.instruction].retires,
                     "a piece names no instruction that retires", here)
    for x in task.inputs:
        _validate_input(program, task, x, f"{where}, input {x.name!r}")
    for y in task.outputs:
        here = f"{where}, output {y.name!r}"
        _require(y.tensor in tensors, f"unknown tensor {y.tensor!r}", here)
        t = tensors[y.tensor]
        size = y.rows * y.channels
        _require(0 < y.rows <= t.rows and 0 < y.channels <= t.channels, "larger than its tensor", here)
        for walk in y.order:
            _require(len(walk.extents) == len(walk.strides) and all(e > 0 for e in walk.extents), "bad order", here)
            first, last = walk.bounds()
            _require(first >= 0 and last < size, "bad order", here)
        count = sum(_product(walk.extents) for walk in y.order) if y.order else size
        _require(_product(y.shape) == count, "bad shape", here)
        _require(t.memory == MEMORY_ACTIVATION, "not in the activation memory", here)
        extent = t.rows * t.stride * program.config.columns
        _require(y.offset >= 0 and y.offset + extent <= task.output_bytes, "outside the buffer", here)
    for layer in task.layers:
        _validate_layer(program, task, layer, instructions, tensors)


def _validate_input(program: Program, task: Task, x: Input, here: str) -> None:
    size = _product(x.shape)
    _require(all(n > 0 for n in x.shape) and size <= MAX_ELEMENTS, "bad shape", here)
    _require(x.dtype in DTYPES, f"unknown dtype {x.dtype!r}", here)
    bits, signed = DTYPES[x.dtype]
    if x.channels:
        _require(x.rows > 0 and x.channels > 0 and x.rows * x.channels == size, "its rows do not fit its shape", here)
        size = x.rows * row_words(x.channels, program.config.columns, bits) * program.config.columns
    else:
        _require(x.rows == 0 and x.dtype == "uint8", "an image that is not uint8", here)
    _require(x.offset >= 0 and x.offset + size <= task.input_bytes, "outside the buffer", here)
    low = -(1 << (bits - 1)) if signed else 0
    _require(x.scale > 0 and low <= x.zero_point < low + (1 << bits), "bad scale or zero point", here)


def _validate_place(program: Program, t: Tensor, here: str) -> None:
    if t.memory == MEMORY_QUEUE:
        _require(t.addr + t.rows <= MAX_TOKENS and t.channels <= MAX_EXPERTS, "larger than the queues", here)
        _require(t.dtype == "uint16" and t.stride == 0, "not a gate's scores", here)
        return
    depth = program.config.activation_words if t.memory == MEMORY_ACTIVATION else program.config.operand_words
    _require(t.addr < depth and t.rows * max(t.stride, 1) <= 1 << 26, "outside its memory", here)
    _require(t.memory == MEMORY_ACTIVATION or DTYPES[t.dtype][0] == 8, f"{t.dtype} in the operand memory", here)


def _validate_queue(tensors: dict[str, Tensor], t: Tensor, here: str) -> None:
    """Rows of a queue say of which one."""
    if not t.gate:
        _require(t.expert == 0, "an expert without a gate", here)
        return
    gate = tensors.get(t.gate)
    if gate is None or gate.memory != MEMORY_QUEUE:
        raise ContainerError(f"no gate {t.gate!r}", where=here)
    _require(t.memory == MEMORY_ACTIVATION and 0 <= t.expert < gate.channels, "bad expert", here)


#: how many inputs a layer has, by its kind, and outputs if not one
_INPUTS = {"patches": (1,), "rows": (1,), "constant": (0,), "linear": (1, 2), "attention": (3,), "route": (1,),
           "gather": (2,), "scatter": (3,)}  # fmt: skip
_OUTPUTS = {"linear": (1, 2, 3), "route": (1, 2)}


def _validate_layer(
    program: Program, task: Task, layer: Layer, instructions: list[Instruction], tensors: dict[str, Tensor]
) -> None:
    here = f"task {task.name!r}, layer {layer.name!r}"
    _require(layer.kind in _INPUTS, f"unknown kind {layer.kind!r}", here)
    inputs = {x.name for x in task.inputs} if layer.kind in ("patches", "rows") else set(tensors)
    _require(set(layer.inputs) <= inputs and set(layer.outputs) <= set(tensors), "unknown tensor", here)
    _require(len(layer.outputs) in _OUTPUTS.get(layer.kind, (1,)), "wrong number of outputs", here)
    _require(len(layer.inputs) in _INPUTS[layer.kind], "wrong number of inputs", here)
    _require(len(layer.instructions) > 0 and all(0 <= i < len(instructions) for i in layer.instructions),
             "no such instruction", here)
    _require(layer.rows > 0 and layer.input_row >= 0 and layer.output_row >= 0, "bad rows", here)
    _require(layer.output_row + layer.rows <= tensors[layer.outputs[0]].rows, "rows outside its output", here)
    if layer.kind == "patches":
        _require(len(layer.patch) == 5 and all(n > 0 for n in layer.patch), "bad patch shape", here)
        _require(_product(layer.patch[:3]) <= MAX_ELEMENTS, "bad patch shape", here)
    if layer.kind == "rows":
        x, t = next(x for x in task.inputs if x.name == layer.inputs[0]), tensors[layer.outputs[0]]
        whole = -(-x.channels // program.config.columns) * program.config.columns
        _require((x.dtype, x.rows, whole) == (t.dtype, t.rows, t.channels), "is not its input", here)
    if layer.kind == "constant":
        copies = [instructions[i] for i in layer.instructions]
        inside = [isinstance(c, DmaIn) and c.offset + c.segment_bytes <= len(program.image) for c in copies]
        _require(all(inside), "lies outside the image", here)
    if layer.kind in ("linear", "route", "gather", "scatter"):
        _require(layer.kind == "scatter" or layer.input_row + layer.rows <= tensors[layer.inputs[0]].rows,
                 "rows outside its input", here)
        _require(len(layer.streams) == len(layer.instructions), "must have one stream per instruction", here)
        for s, i in zip(layer.streams, layer.instructions, strict=True):
            _require(0 <= s < len(instructions), "no such stream", here)
            stream, linear = instructions[s], instructions[i]
            if not (isinstance(stream, Stream) and isinstance(linear, Linear)):
                raise ContainerError("names the wrong instructions", where=here)
            _require_stream(program, stream, linear, here)
            if layer.kind != "linear":
                _validate_expert(layer, linear, tensors, here)


def _validate_expert(layer: Layer, linear: Linear, tensors: dict[str, Tensor], here: str) -> None:
    """A layer of a gate or an expert, and one of its instructions."""
    flags = (bool(linear.route), bool(linear.gather), bool(linear.scatter))
    kinds = (layer.kind == "route", layer.kind == "gather", layer.kind == "scatter")
    _require(flags == kinds, "names the wrong instructions", here)
    scores = tensors[layer.outputs[0] if layer.kind == "route" else layer.inputs[1]]
    _require(scores.memory == MEMORY_QUEUE, "its scores are not in queues", here)
    _require(layer.input_row + layer.rows <= scores.rows, "rows outside its scores", here)
    if layer.kind == "route":
        _require(1 <= linear.top_k <= linear.experts == scores.channels, "its scores are those of other experts", here)
    else:
        hidden = tensors[layer.outputs[0] if layer.kind == "gather" else layer.inputs[0]]
        _require(linear.queue < scores.channels, "no such expert", here)
        _require(layer.rows <= hidden.rows, "rows outside an expert's", here)


def _require_stream(program: Program, stream: Stream, linear: Linear, here: str) -> None:
    config, size = program.config, len(program.image)
    steps = -(-linear.length // config.depth)
    _require(stream.weight_words == linear.tiles * steps, "the stream's weights do not fit the instruction", here)
    _require(stream.post_words == linear.tiles, "the stream's parameters do not fit the instruction", here)
    words = -(-linear.length // config.columns) if linear.norm else 0
    _require(stream.norm_words == words, "the stream's LayerNorm parameters do not fit the instruction", here)
    for offset, count, word_bytes in (
        (stream.norm_offset, stream.norm_words, config.norm_word_bytes),
        (stream.post_offset, stream.post_words, config.post_word_bytes),
        (stream.weight_offset, stream.weight_words, config.operand_word_bytes),
    ):
        _require(offset * BLOCK_BYTES + count * word_bytes <= size, "weights lie outside the image", here)


def _product(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out
