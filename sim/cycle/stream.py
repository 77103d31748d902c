"""The weight streamer: when each word of the three rings is there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from moevit.config import BROUGHT_QUEUE_DEPTH, AcceleratorConfig
from moevit.isa import Stream
from moevit.isa.formats import BLOCK_BYTES
from moevit.sim.cycle import units
from moevit.sim.cycle.front import FITS, Queue
from moevit.sim.cycle.kernel import Kernel, Process, Times
from moevit.sim.cycle.memory import Dram

TAIL_TO_ROOM = 3  #: StreamAssembler: from the cycle that frees a word to the first in which its place is taken
MOVE_TO_HEAD = 2  #: from the cycle in which a word gets its place to the head's count of it
COMPLETE = 2 + units.QUEUE_COUNT_LATENCY  #: StreamRequester: from a retiring instruction to a queue that is complete


@dataclass
class Ring:
    """One of the rings.

    ``written`` has the cycle in which each word gets its place, ``freed`` the cycle that frees it. ``size`` is in
    words, ``beats`` are what a port brings of a word, ``room`` the cycles from ``freed`` to a place that can be taken.
    """

    size: int
    beats: int
    room: int
    written: Times = field(default_factory=Times)
    freed: Times = field(default_factory=Times)


@dataclass(frozen=True)
class Order:
    """What a STREAM has to know of the program around it.

    ``wait`` is its field without the wrap, ``filled`` whether its queue will hold anything.
    """

    instruction: Stream
    wait: int
    filled: bool


class Streamer:
    """Three processes: requests, bursts, words.

    Members
    -------
    norm, post, weights : the rings
    brought, brought_taken : when a predicated STREAM's bit is there for the loader, and when that takes it
    brings : those bits
    """

    def __init__(
        self, kernel: Kernel, config: AcceleratorConfig, dram: Dram, queue: Queue, orders: Sequence[Order],
        retired: Times, ring_words: int,
    ) -> None:  # fmt: skip
        self._kernel, self._config, self._dram, self._queue = kernel, config, dram, queue
        self._orders, self._retired = orders, retired
        lot = config.weight_ports * config.axi_bytes
        self.norm = Ring(config.norm_words, config.norm_word_bytes // lot, TAIL_TO_ROOM)
        self.post = Ring(config.post_words, config.post_word_bytes // lot, TAIL_TO_ROOM)
        self.weights = Ring(ring_words, config.operand_word_bytes // lot, TAIL_TO_ROOM + units.TAIL_DELAY)
        self.brought, self.brought_taken = Times(), Times()
        self.brings: list[bool] = []
        self._parts: list[tuple[Ring, int]] = []
        self._part_times, self._part_taken = Times(), Times()
        self._addresses: list[int] = []  # of parts, of the first port's slice, in beats
        self._accepted, self._split = Times(), Times()  # requests; when the splitters can take another
        self._bursts: list[tuple[float, float, int]] = []  # first and last cycle on the bus, beats
        self._came, self._popped = Times(), Times()  # bursts; words that have left the FIFOs
        self._popped_beats: list[int] = []
        self.waits = {"busy": 0, "ring": 0, "dram": 0, "queue": 0}

    def requests(self) -> Process:
        """StreamRequester."""
        ports = self._config.weight_ports
        select = 0
        for number, order in enumerate(self._orders):
            stream = order.instruction
            while len(self._queue.pushed) <= number:
                yield self._queue.pushed
            select = max(select, self._queue.pushed[number] + 2)  # the queue ends in a register
            if stream.predicated:
                settled = select + units.DECIDE_LATENCY
                if not stream.speculative:
                    while len(self._retired) < order.wait:
                        yield self._retired
                    if order.wait:
                        complete = self._retired[order.wait - 1] + COMPLETE
                        self.waits["queue"] += max(0, complete - settled)
                        settled = max(settled, complete)
                full = len(self.brought) - BROUGHT_QUEUE_DEPTH
                if full >= 0:
                    while len(self.brought_taken) <= full:
                        yield self.brought_taken
                    settled = max(settled, self.brought_taken[full] + 1)
                yield settled
                known = len(self._retired) >= order.wait and (
                    order.wait == 0 or self._retired[order.wait - 1] + COMPLETE <= settled
                )
                brings = order.filled or not known
                self.brings.append(brings)
                self.brought.append(settled + 2)
                self._kernel.wake(self.brought)
                if not brings:
                    self._queue.popped.append(settled)
                    self._kernel.wake(self._queue.popped)
                    select = settled + 1
                    continue
                select = settled  # SIZE follows, as it does a cycle after SELECT
            popped = select
            for ring, words, offset in (
                (self.norm, stream.norm_words, stream.norm_offset),
                (self.post, stream.post_words, stream.post_offset),
                (self.weights, stream.weight_words, stream.weight_offset),
            ):
                if words == 0:
                    popped = select + 1
                    select += units.EMPTY_PART_CYCLES
                    continue
                check = select + units.PART_CYCLES - 1
                full = len(self._parts) - units.PART_QUEUE_DEPTH
                if full >= 0:
                    while len(self._part_taken) <= full:
                        yield self._part_taken
                    check = max(check, self._part_taken[full] + 1)
                while len(self._split) < len(self._accepted):
                    yield self._split
                request = max(check + 1, self._split[-1] if self._split else 0) + ports - 1
                self._parts.append((ring, words))
                self._addresses.append(offset * BLOCK_BYTES // self._config.axi_bytes)
                self._accepted.append(request)
                self._kernel.wake(self._accepted)
                popped = request
                select = request + 1
            self._queue.popped.append(popped)
            self._kernel.wake(self._queue.popped)

    def bursts(self) -> Process:
        """The ports: ReadChannel, AxiReadBus and the memory. All ports do the same."""
        dram, popped, popped_beats = self._dram, self._popped, self._popped_beats
        raised, claimed, at = -units.BURST_CYCLES, 0, 0
        number = 0
        while True:
            while len(self._accepted) <= number:
                yield self._accepted
            ring, words = self._parts[number]
            left, address = words * ring.beats, self._addresses[number]
            while left:
                size = min(left, units.BURST_BEATS - address % units.BURST_BEATS)
                if left == size:  # the splitter has passed it on when the burst before it has gone
                    self._split.append(max(self._accepted[number] + 2, raised))
                    self._kernel.wake(self._split)
                raised = max(raised + units.BURST_CYCLES, self._accepted[number] + units.READ_REQUEST)
                claimed += size
                if claimed > units.PORT_FIFO:
                    wanted = claimed - units.PORT_FIFO
                    while not popped_beats or popped_beats[-1] < wanted:
                        yield popped
                    while popped_beats[at] < wanted:
                        at += 1
                    raised = max(raised, popped[at] + FITS)
                yield raised
                raised, start, end = dram.read(dram.weights, dram.turn(raised), size)
                self._bursts.append((start, end, size))
                self._came.append(int(end))
                self._kernel.wake(self._came)
                left -= size
                address += size
            number += 1

    def words(self) -> Process:
        """StreamAssembler."""
        came, bursts, popped, popped_beats = self._came, self._bursts, self._popped, self._popped_beats
        kernel, waits = self._kernel, self.waits
        moved = number = part = beats_popped = 0
        start, step, size, used = 0.0, 1.0, 0, 0
        while True:
            while len(self._accepted) <= part:
                yield self._accepted
            ring, words = self._parts[part]
            asked = self._accepted[part]
            part += 1
            self._part_taken.append(moved)
            kernel.wake(self._part_taken)
            beats, room, freed, written, places = ring.beats, ring.room, ring.freed, ring.written, ring.size
            pop, count, write = popped.append, popped_beats.append, written.append
            for word in range(len(written), len(written) + words):
                used += beats
                while used > size:
                    used -= size
                    if popped.waiting:
                        kernel.wake(popped)
                    if written.waiting:
                        kernel.wake(written)
                    while len(came) <= number:
                        yield came
                    start, end, size = bursts[number]
                    start += units.READ_DATA
                    step = (end + units.READ_DATA - start) / size
                    number += 1
                beats_popped += beats
                there = int(start + used * step) - 1
                last = moved + beats - 1
                if there > last:
                    waits["dram"] += max(0, there - max(last, asked))
                    last = there
                pop(last)
                count(beats_popped)
                moved = last + 1
                if word >= places:
                    if len(freed) <= word - places:
                        kernel.wake(popped)
                        kernel.wake(written)
                        while len(freed) <= word - places:
                            yield freed
                    free = freed[word - places] + room
                    if free > moved:
                        waits["ring"] += free - moved
                        moved = free
                write(moved)
            waits["busy"] += words * beats
            kernel.wake(popped)
            kernel.wake(written)
