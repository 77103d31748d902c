"""Programs that no model gives, written by hand: placement in the image, order of streams, smallest waits."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.compiler.hazards import check_instructions
from moevit.config import STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.isa import Begin, End, Instruction, Stream, encode_program
from moevit.isa.formats import BLOCK_BYTES
from moevit.sim.dram import DramModel
from moevit.sim.isa import IsaSimulator
from moevit.sim.rtl import ImageRun, require_ok, run_raw

COMPUTE, DMA = 0, 1


@dataclass
class Region:
    """A piece of the activation memory, and who touched it last: what a `wait` is worked out from.

    Only accesses of the other engine need one when writing: each engine works in order.
    """

    addr: int
    written: int = 0
    writer: int = COMPUTE
    read: dict[int, int] = field(default_factory=lambda: {COMPUTE: 0, DMA: 0})

    def before_write(self, engine: int) -> int:
        """The retired count to wait for before overwriting it."""
        return max(self.read[1 - engine], self.written if self.writer != engine else 0)


@dataclass(frozen=True)
class Measured:
    """A run of a raw program on the RTL.

    outputs, activation : the output buffer and the activation memory at the end, bytes
    parameter_bytes : of what its STREAMs bring, parameters of POST and of the loader
    same : whether the instruction-level simulator left the same bytes in both
    """

    run: ImageRun
    outputs: NDArray[np.uint8]
    activation: NDArray[np.uint8]
    parameter_bytes: int
    same: bool

    @property
    def data_bytes(self) -> int:
        """Bytes that the run moved, all but instructions."""
        return self.run.dram_bytes["weights"] + self.run.dram_bytes["activations"]


class RawProgram:
    """A program under construction. Its image begins with another, whose blocks it may use.

    Parameters
    ----------
    config : the machine
    image : the image that it continues
    ring_words : the weight ring; the rest of the operand memory is the K/V region
    """

    def __init__(self, config: AcceleratorConfig, image: bytes, ring_words: int) -> None:
        self.config, self.image, self.ring_words = config, bytearray(image), ring_words
        self._work: list[Instruction] = []
        self._streams: list[tuple[int, Stream]] = []  # number in work of the LINEAR that reads it

    def block(self, data: bytes) -> int:
        """Put data into the image; returns its byte offset."""
        self.image.extend(bytes(-len(self.image) % BLOCK_BYTES))
        self.image.extend(data)
        return len(self.image) - len(data)

    def weights(self, weight: NDArray, mult: int, shift: int, gamma: NDArray | None = None) -> Stream:
        """A STREAM of weights [outputs, length] with one scale for all outputs, and factors of the loader's affine
        mode if there are any; it may be used many times."""
        c, n = self.config, len(weight)

        def put(words: NDArray[np.uint8]) -> int:
            return self.block(layout.stripe(words, c.weight_ports)) // BLOCK_BYTES

        words = layout.pack_weights(weight, c)
        post = layout.pack_post(np.zeros(n), np.full(n, mult), np.full(n, shift), c)
        fields = {"post_offset": put(post), "post_words": len(post), "weight_offset": put(words),
                  "weight_words": len(words)}  # fmt: skip
        if gamma is not None:
            norm = layout.pack_norm(gamma, np.zeros_like(gamma), c)
            fields |= {"norm_offset": put(norm), "norm_words": len(norm)}
        return Stream(**fields)

    def add(self, instruction: Instruction, stream: Stream | None = None) -> int:
        """Append an instruction that retires, and the STREAM for it; returns the retired count once it is done."""
        if stream is not None:
            self._streams.append((len(self._work), stream))
        self._work.append(instruction)
        return len(self._work)

    def instructions(self) -> list[Instruction]:
        """The whole program; each STREAM stands as far ahead of its reader as the streamer's queue allows."""
        readers = {reader for reader, _ in self._streams}
        body: list[Instruction] = [s for _, s in self._streams[:STREAM_QUEUE_DEPTH]]
        following = len(body)
        for number, instruction in enumerate(self._work):
            body.append(instruction)
            if number in readers and following < len(self._streams):
                body.append(self._streams[following][1])
                following += 1
        begin = Begin(digest=self.config.digest, ring_words=self.ring_words, count=len(body) + 2)
        return [begin, *body, End()]

    def run(self, inputs: NDArray[np.uint8], output_bytes: int) -> Measured:
        """Check it for hazards, run it on the RTL and on the instruction-level simulator.

        Parameters
        ----------
        inputs : the input buffer, [1, bytes]
        output_bytes : size of the output buffer

        Raises
        ------
        HazardError, SimulationError : the program is wrong (a mistake in its maker)
        """
        program = self.instructions()
        entry = self.block(encode_program(program))
        image = bytes(self.image)
        check_instructions(self.config, program, len(image), inputs.shape[1], output_bytes)
        want = IsaSimulator(self.config, image, program, output_bytes).run(inputs)
        raw = run_raw(
            self.config, image, entry, len(program), inputs, output_bytes, memories=True,
            dram=DramModel.default(self.config), output_fill=0,
        )  # fmt: skip
        (run,) = raw.images
        require_ok(run, program, where="rtl")
        assert raw.activation is not None
        same = np.array_equal(raw.outputs, want.output) and np.array_equal(raw.activation, want.activation)
        return Measured(run, raw.outputs[0], raw.activation[0], self._parameter_bytes(), same)

    def _parameter_bytes(self) -> int:
        c = self.config
        return sum(s.post_words * c.post_word_bytes + s.norm_words * c.norm_word_bytes for _, s in self._streams)
