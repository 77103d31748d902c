"""Where tensors and weight blocks go."""

from dataclasses import dataclass, field

from moevit.errors import AllocationError
from moevit.isa.formats import BLOCK_BYTES


@dataclass
class BlockStore:
    """The weight image under construction. Identical blocks are stored once."""

    data: bytearray = field(default_factory=bytearray)
    shared: int = 0  #: bytes that were already there when they were asked for
    _known: dict[bytes, int] = field(default_factory=dict)

    def add(self, block: bytes, *, share: bool = True) -> int:
        """Byte offset of ``block``, a multiple of BLOCK_BYTES."""
        if share and block in self._known:
            self.shared += len(block)
            return self._known[block]
        self.data.extend(bytes(-len(self.data) % BLOCK_BYTES))
        offset = len(self.data)
        self.data.extend(block)
        if share:
            self._known[block] = offset
        return offset


class ActivationAllocator:
    """First fit over the words of the activation memory; everything starts at an even word."""

    def __init__(self, words: int) -> None:
        self.words = words
        self.peak = 0
        self.freed = False  #: whether any range was given back, so that one that is free may have been used
        self._used: list[tuple[int, int]] = []  # (first, end), sorted

    @property
    def in_use(self) -> int:
        """Words that are taken."""
        return sum(end - first for first, end in self._used)

    def take(self, words: int, what: str) -> int:
        """First word of a free range. Raises AllocationError saying how much is missing."""
        words += words % 2
        at = self._place(words)
        if at is None:
            raise AllocationError(
                f"{what} needs {words} words of activation memory; {self.in_use} of {self.words} are in use",
                mend=f"use a configuration with a larger activation_words ({self.in_use + words} or more), or fewer "
                "tokens",
            )
        self._take(at, words)
        self.peak = max(self.peak, at + words)
        return at

    def copy(self) -> "ActivationAllocator":
        """One with the same ranges, to try things on."""
        out = ActivationAllocator(self.words)
        out._used = list(self._used)
        return out

    def fits(self, *sizes: int) -> bool:
        """Whether ranges of so many words could be taken, one after the other."""
        trial = self.copy()
        for words in sizes:
            at = trial._place(words + words % 2)
            if at is None:
                return False
            trial._take(at, words + words % 2)
        return True

    def _place(self, words: int) -> int | None:
        """Where the first free range of so many words begins."""
        at = 0
        for first, end in self._used:
            if first - at >= words:
                break
            at = end
        return at if at + words <= self.words else None

    def _take(self, at: int, words: int) -> None:
        self._used.append((at, at + words))
        self._used.sort()

    def room(self) -> int:
        """Words of the largest free range."""
        edges = [0, *(n for used in self._used for n in used), self.words]
        return max(end - first for first, end in zip(edges[::2], edges[1::2], strict=True))

    def free(self, first: int) -> None:
        """Give back the range that starts at ``first``."""
        self._used = [r for r in self._used if r[0] != first]
        self.freed = True
