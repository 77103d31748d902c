"""Words of the three rings of a program; and that fetch, streamer and LINEARs never wait for each other in a circle."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import zip_longest

from moevit import layout
from moevit.compiler.queue_hazards import of_queue
from moevit.config import BROUGHT_QUEUE_DEPTH, STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.errors import HazardError
from moevit.isa import Instruction, Linear, NormMode, Stream


class Rings:
    """Words of the three rings, and that fetch, streamer and LINEARs cannot wait for each other in a circle."""

    def __init__(self, config: AcceleratorConfig, ring_words: int) -> None:
        self.config = config
        self.size = {"norm": config.norm_words, "post": config.post_words, "weight": ring_words}

    def _needs(self, n: Linear) -> dict[str, int]:
        c = self.config
        norm = layout.ceil_div(n.length, c.columns) if n.norm != NormMode.NONE else 0
        return {"norm": norm, "post": n.tiles, "weight": n.tiles * layout.ceil_div(n.length, c.depth)}

    def check(self, instructions: list[Instruction]) -> None:
        """Check a program. Raises HazardError naming the instruction that takes what is not there, or may block."""
        streamed = dict.fromkeys(self.size, 0)
        released = dict.fromkeys(self.size, 0)
        freed_at: list[tuple[int, dict[str, int]]] = []  # per LINEAR: its number, words freed once it is done
        blocks: list[_Block] = []
        readers: list[_Reader] = []
        gate = retired = 0  # retired count of the last gate, and before the instruction
        for number, i in enumerate(instructions):
            where = f"instruction {number} ({i.mnemonic()})"
            if isinstance(i, Stream):
                first = dict(streamed)
                for ring in self.size:
                    streamed[ring] += getattr(i, f"{ring}_words")
                blocks.append(_Block(number, i, first, dict(streamed)))
            elif isinstance(i, Linear):
                needs = self._needs(i)
                for ring, words in needs.items():
                    if words > self.size[ring]:
                        raise HazardError(f"needs {words} {ring} words; its ring has {self.size[ring]}", where=where)
                    if released[ring] + words > streamed[ring]:
                        raise HazardError(f"needs {ring} words that no STREAM before it brings", where=where)
                end = {ring: released[ring] + words for ring, words in needs.items()}
                readers.append(_Reader(number, of_queue(i), i.queue, dict(released), end, gate, retired))
                if i.release:
                    released = end
                freed_at.append((number, dict(released)))
            if isinstance(i, Linear) and i.route:
                gate = retired + 1
            retired += i.retires
        for ring in self.size:
            if released[ring] != streamed[ring]:
                raise HazardError(f"{streamed[ring] - released[ring]} {ring} words are never released")
        self._predicated(blocks, readers)
        self._progress(blocks, freed_at)
        self._decided(blocks, readers, [n for n, i in enumerate(instructions) if i.retires])

    def _predicated(self, blocks: list["_Block"], readers: list["_Reader"]) -> None:
        """The predicated STREAMs are those of the LINEARs over queues, one by one; nobody else takes their words."""
        predicated = [b for b in blocks if b.stream.predicated]
        for block, reader in zip_longest(predicated, [r for r in readers if r.of_queue]):
            if block is None:
                raise HazardError("has no predicated STREAM", where=f"instruction {reader.number} (LINEAR)")
            where, stream = f"instruction {block.number} (STREAM)", block.stream
            if reader is None:
                raise HazardError("is predicated, and there is no LINEAR over a queue for it", where=where)
            same = all((block.first[r], block.end[r]) == (reader.first[r], reader.end[r]) for r in ("post", "weight"))
            if stream.queue != reader.queue or stream.norm_words or not same:
                raise HazardError(f"does not bring what instruction {reader.number} takes for its queue", where=where)
            if not reader.gate <= stream.wait <= reader.retired:
                raise HazardError(
                    f"waits for {stream.wait} instructions; its queue is complete after {reader.gate}, and "
                    f"{reader.retired} stand before its LINEAR", where=where,
                )  # fmt: skip
        for ring in self.size:
            # Ranges of words of a ring, both in their order.
            following = [(b.first[ring], b.end[ring], b.number) for b in predicated if b.end[ring] > b.first[ring]]
            at = 0
            for reader in readers:
                while at < len(following) and following[at][1] <= reader.first[ring]:
                    at += 1
                if at < len(following) and not reader.of_queue and reader.end[ring] > following[at][0]:
                    raise HazardError(
                        f"takes {ring} words of a predicated STREAM, instruction {following[at][2]}",
                        where=f"instruction {reader.number} (LINEAR)",
                    )  # fmt: skip

    def _progress(self, blocks: list["_Block"], freed: list[tuple[int, dict[str, int]]]) -> None:
        """When the fetch unit waits at STREAM m for a place in the queue, the streamer is at block
        m - STREAM_QUEUE_DEPTH at the latest; the LINEARs that must end before that block fits have to stand
        before STREAM m, or nothing moves again. Blocks that an empty queue leaves out only make room."""
        for ring, size in self.size.items():
            released = [done[ring] for _, done in freed]  # grows with every LINEAR
            for m in range(STREAM_QUEUE_DEPTH, len(blocks)):
                number, excess = blocks[m].number, blocks[m - STREAM_QUEUE_DEPTH].end[ring] - size
                at = bisect_left(released, excess)
                last = freed[at][0] if at < len(freed) else None
                if excess > 0 and (last is None or last > number):
                    raise HazardError(
                        f"may block for ever: the {ring} ring has room for the stream in progress only after "
                        f"instruction {last}",
                        where=f"instruction {number} (STREAM)", mend="stream later",
                    )  # fmt: skip

    @staticmethod
    def _decided(blocks: list["_Block"], readers: list["_Reader"], retiring: list[int]) -> None:
        """In the same way, what a predicated STREAM waits for must stand before the STREAM at which fetch then waits:
        its gate, unless it is speculative, and the LINEAR that takes the bit of the BROUGHT_QUEUE_DEPTH-th predicated
        STREAM before it. What these need was streamed before, since LINEARs take their words in order."""
        queued = [r.number for r in readers if r.of_queue]
        count = 0  # predicated STREAMs before the block
        for m, block in enumerate(blocks):
            if not block.stream.predicated:
                continue
            needs = []
            if not block.stream.speculative and block.stream.wait:
                needs.append(retiring[block.stream.wait - 1])
            if count >= BROUGHT_QUEUE_DEPTH:
                needs.append(queued[count - BROUGHT_QUEUE_DEPTH])
            count += 1
            fetch = m + STREAM_QUEUE_DEPTH
            if fetch < len(blocks) and needs and max(needs) > blocks[fetch].number:
                raise HazardError(
                    f"may block for ever: the predicated STREAM in progress, instruction {block.number}, goes on only "
                    f"after instruction {max(needs)}",
                    where=f"instruction {blocks[fetch].number} (STREAM)", mend="stream later",
                )  # fmt: skip


@dataclass(frozen=True)
class _Block:
    """A STREAM with the words of each ring that are streamed before it and with it."""

    number: int
    stream: Stream
    first: dict[str, int]
    end: dict[str, int]


@dataclass(frozen=True)
class _Reader:
    """A LINEAR with the words of each ring that it takes, numbered as the STREAMs bring them."""

    number: int
    of_queue: bool
    queue: int
    first: dict[str, int]
    end: dict[str, int]
    gate: int  #: retired count at which the last gate before it is done
    retired: int  #: instructions before it that retire
