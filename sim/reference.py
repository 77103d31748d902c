"""The NumPy reference: the quantised graph over whole tensors, with no notion of tiles or addresses."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.isa import Attention, DmaIn, Instruction, Linear, NormMode, Stream
from moevit.isa.formats import BLOCK_BYTES
from moevit.numerics import layernorm, softmax
from moevit.numerics.fixed import requantise, saturate
from moevit.numerics.matmul import int_matmul
from moevit.numerics.post import finish
from moevit.numerics.route import RouteOrder, route
from moevit.order import indices
from moevit.program import DTYPES, Layer, Program, Task
from moevit.sim.experts import entries

Tensors = dict[str, NDArray]
Quantised = dict[str, NDArray]
Instructions = list[Instruction]


def run_reference(program: Program, task: Task, inputs: Quantised) -> Tensors:
    """Every tensor of the task, each [B, rows, channels] int64, for quantised inputs [B, ...]."""
    instructions = program.instructions(task)
    tensors: Tensors = {}
    for layer in task.layers:
        _LAYERS[layer.kind](program, task, layer, instructions, inputs, tensors)
    return tensors


def _patches(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    c, h, w, ph, pw = layer.patch
    whole = inputs[layer.inputs[0]].reshape(-1, c, h, w)[:, :, : h // ph * ph, : w // pw * pw]
    image = whole.reshape(-1, c, h // ph, ph, w // pw, pw)
    rows = image.transpose(0, 2, 4, 1, 3, 5).reshape(len(image), (h // ph) * (w // pw), c * ph * pw)
    padding = task.tensor(layer.outputs[0]).channels - rows.shape[-1]
    tensors[layer.outputs[0]] = np.pad(rows, ((0, 0), (0, 0), (0, padding))).astype(np.int64)


def _rows(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    rows = inputs[layer.inputs[0]].astype(np.int64)
    padding = task.tensor(layer.outputs[0]).channels - rows.shape[-1]
    tensors[layer.outputs[0]] = np.pad(rows, ((0, 0), (0, 0), (0, padding)))


def _constant(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    t = task.tensor(layer.outputs[0])
    bits, signed = DTYPES[t.dtype]
    copies = [instructions[i] for i in layer.instructions]
    parts = [np.frombuffer(program.image, np.uint8, c.segment_bytes, c.offset) for c in copies if isinstance(c, DmaIn)]
    data = np.concatenate(parts).reshape(t.rows, -1)
    values = layout.unpack_rows(data, t.channels, program.config.columns, bits, signed).astype(np.int64)
    batch = len(next(iter(inputs.values())))
    tensors[t.name] = np.broadcast_to(values, (batch, *values.shape))


def _part(program: Program, offset: int, words: int, size: int) -> NDArray[np.uint8]:
    data = memoryview(program.image)[offset * BLOCK_BYTES :]
    return layout.unstripe(data, words, size, program.config.weight_ports)


def _linear(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    x = tensors[layer.inputs[0]][:, layer.input_row : layer.input_row + layer.rows]
    last = layer.output_row + layer.rows
    residual = tensors[layer.inputs[1]] if len(layer.inputs) > 1 else None
    rows = None if residual is None else residual[:, layer.output_row : last]
    columns: list[tuple[NDArray, ...]] = []  # per instruction: its columns of each output
    for i, s in zip(layer.instructions, layer.streams, strict=True):
        done = sum(part[0].shape[-1] for part in columns)
        linear, stream = instructions[i], instructions[s]
        assert isinstance(linear, Linear) and isinstance(stream, Stream)
        columns.append(_columns(program, linear, stream, x, rows, done))
    parts = [np.concatenate(part, axis=-1) for part in zip(*columns, strict=True)]
    for name, part in zip(layer.outputs, parts[len(layer.outputs) == 2 :], strict=False):  # two are K and V
        # Rows that the layer does not write keep what the residual in place has there.
        _put(task, tensors, name, layer.output_row, part, residual)


def _put(task: Task, tensors: Tensors, name: str, row: int, part: NDArray, before: NDArray | None = None) -> None:
    """Give a tensor rows from ``row`` on; the others stay, or are those of ``before``, or 0."""
    t = task.tensor(name)
    if part.shape[1] == t.rows:
        tensors[name] = part
        return
    if name not in tensors:
        tensors[name] = np.zeros((len(part), t.rows, t.channels), np.int64) if before is None else before.copy()
    tensors[name][:, row : row + part.shape[1]] = part


def _columns(
    program: Program, linear: Linear, stream: Stream, x: NDArray, residual: NDArray | None, first: int
) -> tuple[NDArray, NDArray, NDArray]:
    """What one LINEAR writes of each output (rows, K, V); its rows start at channel ``first`` of the residual."""
    columns = program.config.columns
    mid = _mid(program, linear, stream, _loaded(program, linear, stream, x))
    key, value = linear.key_tile * columns, linear.value_tile * columns
    added = None if residual is None else residual[..., first : first + key]
    return finish(mid[..., :key], linear, added), saturate(mid[..., key:value], 8), saturate(mid[..., value:], 8)


def _loaded(program: Program, linear: Linear, stream: Stream, x: NDArray) -> NDArray:
    """What the loader makes of rows."""
    x = x[..., : linear.length]
    if linear.norm == NormMode.NONE:
        return x
    words = _part(program, stream.norm_offset, stream.norm_words, program.config.norm_word_bytes)
    return normalise_rows(x, linear, *layout.unpack_norm(words, linear.length))


def _mid(program: Program, linear: Linear, stream: Stream, x: NDArray) -> NDArray[np.int64]:
    """The product of loaded rows, after POST's first stage."""
    config = program.config
    words = _part(program, stream.weight_offset, stream.weight_words, config.operand_word_bytes)
    weight = layout.unpack_weights(words, linear.tiles, linear.length, config)
    post = _part(program, stream.post_offset, stream.post_words, config.post_word_bytes)
    return requantise(int_matmul(x, weight.T), *layout.unpack_post(post))


def normalise_rows(x: NDArray, linear: Linear, gamma: NDArray, beta: NDArray) -> NDArray[np.int64]:
    """The loader's LayerNorm or affine of int16 rows [..., length] to 8 bits."""
    if linear.norm == NormMode.AFFINE:
        return layernorm.affine(x, gamma, beta, linear.norm_shift, bool(linear.signed))
    constants = layernorm.RowConstants(
        linear.length, linear.inverse_mult, linear.inverse_shift, linear.epsilon, linear.norm_shift
    )
    return layernorm.layernorm(x, gamma, beta, constants, bool(linear.signed))


def attend(q: NDArray, k: NDArray, v: NDArray, attention: Attention, lanes: int) -> NDArray[np.int64]:
    """One or more heads: q [..., N, d], k and v [..., n_keys, d] int8 to int8 [..., N, d]."""
    scores = requantise(
        int_matmul(q, np.swapaxes(k, -1, -2), 128), 0, attention.score_mult, attention.score_shift
    )
    p, row_sum = softmax.softmax(saturate(scores, softmax.SCORE_WIDTH), lanes)
    mult, shift = softmax.row_scale(row_sum, attention.out_mult, attention.out_shift)
    return saturate(requantise(int_matmul(p, v), 0, mult[..., None], shift[..., None]), 8)


def _attention(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    attention = instructions[layer.instructions[0]]
    assert isinstance(attention, Attention)
    lanes = program.config.columns
    q, k, v = (tensors[name] for name in layer.inputs)
    padded = layout.ceil_div(attention.head_dim, lanes) * lanes

    def heads(x: NDArray, d: int) -> NDArray:
        split = x[..., : attention.heads * padded].reshape(*x.shape[:2], attention.heads, padded)
        return split[..., :d].swapaxes(1, 2)

    q = q[:, layer.input_row : layer.input_row + layer.rows]
    k, v = k[:, : attention.n_keys], v[:, : attention.n_keys]
    d = attention.head_dim
    y = attend(heads(q, d), heads(k, d), heads(v, padded), attention, lanes)
    y = y.swapaxes(1, 2).reshape(len(q), layer.rows, attention.heads * padded)
    _put(task, tensors, layer.outputs[0], layer.output_row, y)


def _route(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    row = layer.input_row
    for i, s in zip(layer.instructions, layer.streams, strict=True):
        gate, stream = instructions[i], instructions[s]
        assert isinstance(gate, Linear) and isinstance(stream, Stream)
        x = _loaded(program, gate, stream, tensors[layer.inputs[0]][:, row : row + gate.n_rows])
        logits = _mid(program, gate, stream, x)[..., : gate.experts]
        scores = route(logits, gate.top_k, RouteOrder(gate.route), gate.threshold)
        for name, part in zip(layer.outputs, (scores, x), strict=False):
            _put(task, tensors, name, row, part)
        row += gate.n_rows


@dataclass(frozen=True)
class _Selection:
    """The entries of an expert's queue: image, place in the queue and row (of the tensors of all tokens) of each."""

    image: NDArray[np.int64]
    place: NDArray[np.int64]
    row: NDArray[np.int64]


def _selection(layer: Layer, linear: Linear, tensors: Tensors) -> _Selection:
    scores = tensors[layer.inputs[1]][:, layer.input_row : layer.input_row + layer.rows, linear.queue]
    image, place, token = entries(scores)
    return _Selection(image, place, layer.input_row + token)


def _gather(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    x = tensors[layer.inputs[0]]
    t = task.tensor(layer.outputs[0])
    columns = []
    for i, s in zip(layer.instructions, layer.streams, strict=True):
        linear, stream = instructions[i], instructions[s]
        assert isinstance(linear, Linear) and isinstance(stream, Stream)
        entry = _selection(layer, linear, tensors)
        rows = x[entry.image, entry.row]
        columns.append(finish(_mid(program, linear, stream, rows[..., : linear.length]), linear, None))
    hidden = np.zeros((len(x), t.rows, t.channels), np.int64)
    hidden[entry.image, entry.place] = np.concatenate(columns, axis=-1)
    tensors[t.name] = hidden


def _scatter(
    program: Program, task: Task, layer: Layer, instructions: Instructions, inputs: Quantised, tensors: Tensors
) -> None:
    hidden, scores, residual = (tensors[name] for name in layer.inputs)
    name = layer.outputs[0]
    if name not in tensors:
        tensors[name] = residual.copy()
    out = tensors[name]
    first = 0
    for i, s in zip(layer.instructions, layer.streams, strict=True):
        linear, stream = instructions[i], instructions[s]
        assert isinstance(linear, Linear) and isinstance(stream, Stream)
        entry = _selection(layer, linear, tensors)
        mid = _mid(program, linear, stream, hidden[entry.image, entry.place][..., : linear.length])
        channels = slice(first, first + mid.shape[-1])
        score = scores[entry.image, entry.row, linear.queue][:, None]
        added = out[entry.image, entry.row, channels]
        out[entry.image, entry.row, channels] = finish(mid, linear, added, score)
        first = channels.stop


_LAYERS = {"patches": _patches, "rows": _rows, "constant": _constant, "linear": _linear, "attention": _attention,
           "route": _route, "gather": _gather, "scatter": _scatter}  # fmt: skip


def decode_output(task: Task, name: str, values: NDArray) -> NDArray[np.float32]:
    """A model output as floats [B, *shape], from its tensor's integers [B, rows, channels]."""
    output = next(y for y in task.outputs if y.name == name)
    t = task.tensor(output.tensor)
    real = (values[:, : output.rows, : output.channels].astype(np.float32) - t.zero_point) * np.float32(t.scale)
    flat = real.reshape(len(values), -1)
    return (flat[:, indices(output.order)] if output.order else flat).reshape(len(values), *output.shape)
