"""A program under construction: what all stages write to, and how it is put in order in the end."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from moevit import layout
from moevit.compiler.memory import ActivationAllocator, BlockStore
from moevit.compiler.quantise import Format, QuantisedLinear
from moevit.config import STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.errors import AllocationError
from moevit.isa import Begin, End, Instruction, NormMode, Retiring, Stream, encode_program
from moevit.isa.formats import BLOCK_BYTES
from moevit.program import DTYPES, MEMORY_ACTIVATION, Layer, Piece, Tensor

PREFETCH = STREAM_QUEUE_DEPTH  #: STREAMs that run ahead of their LINEAR; more could block the fetch for ever
MAX_WORK = (1 << 16) - 1  #: instructions that the retired count can tell apart


@dataclass
class Place:
    """Where a tensor lives, and the retired count at which it is complete."""

    tensor: Tensor
    ready: int


@dataclass
class _Record:
    """A layer whose instructions are still numbered in issue order (``work``) and stream order."""

    layer: Layer
    work: list[int]
    streams: list[int]


class Draft:
    """Instructions, tensors and layers of one task, in the order in which they are added.

    Parameters
    ----------
    config : the machine
    ring_words : of the operand memory, for weights
    blocks : the weight image, shared by all tasks
    """

    def __init__(self, config: AcceleratorConfig, ring_words: int, blocks: BlockStore) -> None:
        self.config, self.ring_words, self.blocks = config, ring_words, blocks
        self.memory = ActivationAllocator(config.activation_words)
        self.places: dict[str, Place] = {}
        self._work: list[Retiring] = []
        self._streams: list[tuple[int, Stream]] = []  # (index in work of the reader, instruction)
        # Column tiles of a matrix that are in the image; the matrix is held, so that no other one gets its id.
        self._blocks: dict[tuple[int, int, int], tuple[QuantisedLinear, Stream]] = {}
        self._tensors: list[Tensor] = []
        self._pieces: dict[str, list[tuple[int, int, int]]] = {}  # tensor -> (row, rows, index in work)
        self._records: list[_Record] = []

    # -- tensors -----------------------------------------------------------------------------------------------

    def words(self, channels: int, f: Format) -> int:
        """Words of a row of activation memory."""
        return layout.row_words(channels, self.config.columns, DTYPES[f.dtype][0])

    def tensor(
        self, name: str, rows: int, channels: int, f: Format, *, addr: int | None = None,
        memory: str = MEMORY_ACTIVATION, stride: int | None = None, gate: str = "", expert: int = 0, window: int = 0,
    ) -> Tensor:  # fmt: skip
        """A new tensor; in activation memory of its own when no address is given."""
        if stride is None:
            stride = self.words(channels, f)
        if addr is None:
            addr = self.memory.take((window or rows) * stride, f"tensor '{name}'")
        tensor = Tensor(
            name, rows, channels, f.dtype, f.scale, f.zero_point, memory, addr, stride, (), gate, expert, window
        )
        self._tensors.append(tensor)
        self._pieces[name] = []
        return tensor

    @staticmethod
    def row_word(tensor: Tensor, row: int) -> int:
        """Word at which a row begins, of a window if the tensor has one."""
        return tensor.addr + (row % tensor.window if tensor.window else row) * tensor.stride

    def piece(self, tensor: Tensor, row: int, rows: int, work: int) -> None:
        """``work`` completes some rows of a tensor."""
        self._pieces[tensor.name].append((row, rows, work))

    def done(self, tensor: Tensor, row: int, rows: int, work: int) -> None:
        """``work`` completes some rows of a tensor, which later stages may read from then on."""
        self.piece(tensor, row, rows, work)
        self.places[tensor.name] = Place(tensor, work + 1)

    def wait(self, *names: str | None) -> int:
        """The retired count at which all these tensors are complete."""
        return max((self.places[n].ready for n in names if n is not None), default=0)

    def wait_rows(self, tensor: Tensor, row: int, rows: int) -> int:
        """The retired count at which these rows of a tensor are complete."""
        pieces = self._pieces[tensor.name]
        return max((work + 1 for at, count, work in pieces if at < row + rows and row < at + count), default=0)

    def wait_words(self, addr: int, words: int) -> int:
        """The retired count at which no tensor is written any more that has had these words of activation memory."""
        wait = 0
        for tensor in (t for t in self._tensors if t.memory == MEMORY_ACTIVATION):
            for row, rows, work in self._pieces[tensor.name]:
                at, end = self.row_word(tensor, row), self.row_word(tensor, row + rows - 1) + tensor.stride
                if end <= at:  # around the end of a window
                    at, end = tensor.addr, tensor.addr + tensor.window * tensor.stride
                if at < addr + words and addr < end:
                    wait = max(wait, work + 1)
        return wait

    @property
    def vacant(self) -> int:
        """The retired count at which nothing uses free memory any more; 0 while none has been used."""
        return len(self._work) if self.memory.freed else 0

    # -- instructions ------------------------------------------------------------------------------------------

    def issue(self, instruction: Retiring) -> int:
        """Its number among those that retire; the count is one more when it has."""
        self._work.append(instruction)
        return len(self._work) - 1

    def stream(self, q: QuantisedLinear, first: int, end: int, reader: int, **fields: int) -> int:
        """Bring column tiles ``first`` … ``end - 1`` of a matrix to the instruction ``reader``, with more fields."""
        key = id(q), first, end
        if key not in self._blocks:
            self._blocks[key] = q, self._store(q, first, end)
        self._streams.append((reader, dataclasses.replace(self._blocks[key][1], **fields)))
        return len(self._streams) - 1

    def _store(self, q: QuantisedLinear, first: int, end: int) -> Stream:
        c = self.config
        channels = slice(first * c.columns, end * c.columns)

        def put(words: np.ndarray) -> int:
            return self.blocks.add(layout.stripe(words, c.weight_ports)) // BLOCK_BYTES

        weight = layout.pack_weights(q.weight[channels], c)
        post = layout.pack_post(q.bias[channels], q.mult[channels], q.shift[channels], c)
        fields = {"post_offset": put(post), "post_words": len(post), "weight_offset": put(weight),
                  "weight_words": len(weight)}  # fmt: skip
        if q.norm is not None:
            norm = layout.pack_norm(q.norm.gamma, q.norm.beta, c)
            fields |= {"norm_offset": put(norm), "norm_words": len(norm)}
        return Stream(**fields)

    def load_fields(self, q: QuantisedLinear, name: str) -> dict[str, int]:
        """Fields of a LINEAR that say what its loader does."""
        length = q.weight.shape[1]
        if length > self.config.tile_depth:
            raise AllocationError(
                f"layer '{name}' has rows of {length} elements; the A tile holds {self.config.tile_depth}",
                mend="use a configuration with a larger tile_depth",
            )
        fields = {"length": length, "signed": int(q.signed)}
        if q.norm is None:
            return fields | {"norm": int(NormMode.NONE)}
        fields["norm_shift"] = q.norm.shift
        if q.norm.row is None:
            return fields | {"norm": int(NormMode.AFFINE)}
        row = q.norm.row
        return fields | {
            "norm": int(NormMode.LAYERNORM), "inverse_mult": row.inverse_mult,
            "inverse_shift": row.inverse_shift, "epsilon": row.epsilon,
        }  # fmt: skip

    def tiles(self, q: QuantisedLinear) -> int:
        """Column tiles of a matrix."""
        return layout.ceil_div(len(q.weight), self.config.columns)

    def column_chunks(
        self, name: str, q: QuantisedLinear, start: int = 0, stop: int | None = None
    ) -> list[tuple[int, int]]:
        """Column tiles per LINEAR, of ``start`` … ``stop - 1``: all at once when they take at most half of the ring."""
        c = self.config
        tiles = (self.tiles(q) if stop is None else stop) - start
        steps = layout.ceil_div(q.weight.shape[1], c.depth)
        most = min(max(self.ring_words // 2 // steps, 1), c.post_words // 2)
        if steps > self.ring_words:
            raise AllocationError(
                f"one column tile of layer '{name}' is {steps} operand words; the ring has {self.ring_words}",
                mend="use a configuration with a larger operand_words",
            )
        count = layout.ceil_div(tiles, most)
        size = layout.ceil_div(tiles, count)
        return [(start + first, start + min(first + size, tiles)) for first in range(0, tiles, size)]

    def record(
        self, kind: str, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], work: list[int],
        streams: list[int], *, rows: int, input_row: int = 0, output_row: int = 0, patch: tuple[int, ...] = (),
        macs: int = 0, source: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """A layer is complete: what its instructions compute."""
        layer = Layer(name, kind, inputs, outputs, (), (), input_row, output_row, rows, patch, macs, source)
        self._records.append(_Record(layer, work, streams))

    # -- the program -------------------------------------------------------------------------------------------

    def assemble(self) -> tuple[int, int, tuple[Tensor, ...], tuple[Layer, ...]]:
        """Interleave streams and work, number everything, and append the program to the image.

        Stream i stands PREFETCH readers ahead of its own: the fetch unit can block on the stream queue only when
        every instruction that the streamer may be waiting for has already been dispatched. That holds for a stream
        that waits for a gate too: when it keeps the queue full, its reader, which stands behind the gate, has been
        dispatched.

        Returns the byte offset of BEGIN, the number of instructions, and the tensors and layers.
        """
        if len(self._work) > MAX_WORK:
            raise AllocationError(
                f"the program has {len(self._work)} instructions to count; the machine counts to {MAX_WORK}",
                mend="route more rows at a time, or use a configuration with larger operand_words",
            )
        order: list[tuple[str, int]] = [("stream", i) for i in range(min(PREFETCH, len(self._streams)))]
        following = len(order)
        readers = {reader for reader, _ in self._streams}
        for index in range(len(self._work)):
            order.append(("work", index))
            if index in readers and following < len(self._streams):
                order.append(("stream", following))
                following += 1
        count = len(order) + 2
        begin = Begin(digest=self.config.digest, ring_words=self.ring_words, count=count)
        body: list[Instruction] = [self._streams[i][1] if kind == "stream" else self._work[i] for kind, i in order]
        number = {item: n for n, item in enumerate(order, start=1)}
        entry = self.blocks.add(encode_program([begin, *body, End()]), share=False)
        tensors = tuple(
            dataclasses.replace(
                t, pieces=tuple(Piece(row, rows, number["work", w]) for row, rows, w in self._pieces[t.name])
            )
            for t in self._tensors
        )
        layers = tuple(
            dataclasses.replace(
                r.layer,
                instructions=tuple(number["work", w] for w in r.work),
                streams=tuple(number["stream", s] for s in r.streams),
            )
            for r in self._records
        )
        return entry, count, tensors, layers
