"""A compiled program: what a container holds and every simulator and driver runs.

The *program* of a task is its instructions, inside the image. Beside it stand the *tensors* (where each
intermediate result lies when, and with which scale) and the *layers* (what each instruction computes, over whole
tensors), from which the NumPy reference works without knowing any address.
"""

from dataclasses import dataclass, field
from typing import TypeVar

from moevit.config import AcceleratorConfig
from moevit.isa import INSTRUCTION_BYTES, Instruction, decode_program
from moevit.order import Walk
from moevit.pipeline import HostPart, Pipeline, only_step

MEMORY_ACTIVATION = "activation"
MEMORY_KEY = "key"
MEMORY_VALUE = "value"
MEMORY_QUEUE = "queue"

#: dtype -> (bits, signed)
DTYPES = {"int8": (8, True), "uint8": (8, False), "int16": (16, True), "uint16": (16, False)}


@dataclass(frozen=True)
class Piece:
    """Rows ``row`` … ``row + rows - 1`` of a tensor are written by instruction ``instruction`` (program number)."""

    row: int
    rows: int
    instruction: int


@dataclass(frozen=True)
class Tensor:
    """An intermediate tensor [rows, channels]; real value = (q - zero_point) * scale.

    ``addr`` and ``stride`` are in words: of the activation memory, or of the operand memory for K (``stride``
    between tiles of C keys) and V (between tiles of C channels). ``channels`` includes padding lanes.

    A tensor in ``queue`` memory holds a gate's scores [tokens, experts], ``uint16``: those in the experts' queues,
    0 where a token is in none; ``addr`` is its first row's token number and ``stride`` 0. A tensor with a ``gate``
    holds the rows of that gate's queue of ``expert``: as many as the queue has tokens; what is beyond means nothing.
    Of a tensor with a ``window`` only so many rows have a place at a time, row r at ``addr + r % window * stride``, or
    as token ``addr + r % window``.
    """

    name: str
    rows: int
    channels: int
    dtype: str
    scale: float
    zero_point: int
    memory: str
    addr: int
    stride: int
    pieces: tuple[Piece, ...]
    gate: str = ""
    expert: int = 0
    window: int = 0


@dataclass(frozen=True)
class Layer:
    """One operation of the quantised graph.

    kind : ``patches`` (image to rows), ``rows`` (an input that is rows), ``constant`` (from the image), ``linear``,
        ``attention``, ``route`` (a gate), ``gather`` (tokens of an expert's queue to dense rows) or ``scatter`` (those
        to their tokens' rows)
    inputs : tensor names; the second input of a linear layer is its residual. A gather layer has (rows, scores), a
        scatter layer (rows, scores, residual)
    outputs : tensor names; a linear layer that fills K and V has (q, k, v), or (k, v) where q is another layer's; a
        route layer has (scores) or (scores, normalised rows)
    instructions : program numbers of the instructions that compute it; a linear layer's each compute some of its
        column tiles, in order
    streams : for a linear layer, the STREAM that brings the weights of each of those
    input_row, output_row, rows : the rows that it reads and writes; a layer may be one of several that share the rows
    patch : (channels, height, width, patch height, patch width) of ``patches``, else empty
    macs : multiply-accumulates of the model (padding not counted)
    source : names of the ONNX nodes that it stands for
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    instructions: tuple[int, ...]
    streams: tuple[int, ...]
    input_row: int
    output_row: int
    rows: int
    patch: tuple[int, ...]
    macs: int
    source: tuple[str, ...]


@dataclass(frozen=True)
class Input:
    """A model input as the host writes it: q = round(x / scale) + zero_point, saturated to ``dtype``.

    An image is uint8 [shape], as it is. An input with ``channels`` is a matrix: its values as [rows, channels] of any
    of ``DTYPES``, row by row in the layout of the activation memory (:func:`moevit.layout.pack_rows`).
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    offset: int
    dtype: str = "uint8"
    rows: int = 0
    channels: int = 0


@dataclass(frozen=True)
class Output:
    """A model output: rows of ``tensor`` as DMA_OUT copies them to ``offset``, cut to [rows, channels].

    ``shape`` is the model's, without the batch; ``order`` says where each of its values lies in the flattened
    [rows, channels], and is empty when they are in the same order.
    """

    name: str
    shape: tuple[int, ...]
    rows: int
    channels: int
    order: tuple[Walk, ...]
    tensor: str
    offset: int


@dataclass(frozen=True)
class Task:
    """One program of a container."""

    name: str
    entry: int  #: byte offset of BEGIN in the image
    instructions: int
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    input_bytes: int
    output_bytes: int
    tensors: tuple[Tensor, ...]
    layers: tuple[Layer, ...]

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the model, per inference."""
        return sum(layer.macs for layer in self.layers)


@dataclass(frozen=True)
class Source:
    """The model file a task was compiled from."""

    task: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Program:
    """Everything a container holds.

    ``tasks`` are the programs of the machine. Where the host has a part in one, ``pipelines`` has the tasks as the
    user knows them, ``host_parts`` what the host does, and ``host_data`` the ONNX models of these, one behind the
    other; they are no part of ``image``, which is what the machine's memory holds. Without ``pipelines`` each task is
    one by itself.
    """

    config: AcceleratorConfig
    tasks: tuple[Task, ...]
    sources: tuple[Source, ...]
    image: bytes = field(repr=False)
    shared_bytes: int = 0
    pipelines: tuple[Pipeline, ...] = ()
    host_parts: tuple[HostPart, ...] = ()
    host_data: bytes = field(default=b"", repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks as the user knows them."""
        return tuple(p.name for p in self.pipelines) or tuple(t.name for t in self.tasks)

    def pipeline(self, name: str | None = None) -> Pipeline:
        """What to do for a task as the user knows it; the first when None. Raises InputError as :meth:`task`."""
        if not self.pipelines:
            return only_step(self.task(name))
        return _named(self.pipelines, name)

    def task(self, name: str | None = None) -> Task:
        """A task by name; the first when None. Raises InputError naming those there are."""
        return _named(self.tasks, name)

    def instructions(self, task: Task) -> list[Instruction]:
        """The decoded program of a task."""
        data = self.image[task.entry : task.entry + task.instructions * INSTRUCTION_BYTES]
        return list(decode_program(data))


T = TypeVar("T", Task, Pipeline)


def _named(entries: tuple[T, ...], name: str | None) -> T:
    from moevit.errors import InputError

    for entry in entries:
        if name in (None, entry.name):
            return entry
    raise InputError(f"no task {name!r}", mend=f"choose one of {', '.join(e.name for e in entries)}")
