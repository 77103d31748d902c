"""The DMA unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from moevit.config import AcceleratorConfig
from moevit.isa import DmaIn, DmaOut
from moevit.sim.cycle import units
from moevit.sim.cycle.front import FITS, Queue, Retirement
from moevit.sim.cycle.kernel import Kernel, Process, Step
from moevit.sim.cycle.memory import Dram

REACHED = 2  # Dma: from a retiring instruction to the start of one that has waited for it
BEATS = 2  # DmaCopyIn: from the read port's data to a move
WRITTEN = 6  # DmaCopyIn: from the last move to ``done``
WORD_OUT = 5  # DmaCopyOut: from the start to the first bus word that is handed to AxiWritePort
ANSWERED = 2  # AxiWritePort: from a response to ``done``


@dataclass(frozen=True)
class Copy:
    """A DMA instruction; ``index`` and ``wait`` as in :class:`moevit.sim.cycle.compute.Work`."""

    instruction: DmaIn | DmaOut
    index: int
    wait: int


class Dma:
    """One process; see :meth:`run`."""

    def __init__(
        self, kernel: Kernel, config: AcceleratorConfig, dram: Dram, queue: Queue, copies: Sequence[Copy],
        retirement: Retirement,
    ) -> None:  # fmt: skip
        self._kernel, self._config, self._dram, self._queue, self._copies = kernel, config, dram, queue, copies
        self._retirement = retirement
        self._raised = 0
        self._sent = 0  # when the last word of a DMA_OUT has left
        self._came: list[tuple[int, int]] = []  # of bursts: the last beat has left the FIFO, beats
        self.waits = {"busy": 0, "dependency": 0, "dram": 0}

    def run(self) -> Process:
        """Copies one after the other."""
        retired = self._retirement.retired
        idle = 0
        answered = [0]  # when the DMA_OUTs have been
        for number, copy in enumerate(self._copies):
            while len(self._queue.pushed) <= number:
                yield self._queue.pushed
            take = max(idle, self._queue.pushed[number] + 1)
            self._queue.popped.append(take)
            self._kernel.wake(self._queue.popped)
            instruction = copy.instruction
            into = isinstance(instruction, DmaIn)
            start = take + (units.DMA_IN_LATENCY - 3 if into else units.DMA_OUT_LATENCY - 2)
            if isinstance(instruction, DmaIn):
                start += sum(
                    (n - 1).bit_length() for n in (instruction.segments, instruction.count0, instruction.count1)
                )
            while len(retired) < copy.wait:
                yield retired
            if copy.wait and retired[copy.wait - 1] + REACHED > start:
                self.waits["dependency"] += retired[copy.wait - 1] + REACHED - start
                start = retired[copy.wait - 1] + REACHED
            first = 0 if into else len(answered) - units.UNANSWERED  # of those that it may not begin before
            start = max(start, answered[-1 if into else first] + 1) if first >= 0 else start
            yield start
            if isinstance(instruction, DmaIn):
                if start > self._dram.paced_until:
                    self._dram.paced_from = start
                self._dram.paced_until = inf
                done = yield from self._copy_in(instruction, start)
                idle = done + 1
                self._dram.paced_until = done + units.LINGER_CYCLES
            else:
                done = yield from self._copy_out(instruction, start)
                answered.append(done)
                idle = self._sent + 2
            self._retirement.finish(copy.index, done)

    def _copy_in(self, job: DmaIn, start: int) -> Step:
        beat = self._config.axi_bytes
        run_bytes = job.segments * job.segment_bytes
        pair = 2 * self._config.columns
        request = start + 2
        moved = start
        ended: list[int] = []  # runs whose last move is made
        came = self._came
        splitter = 0
        for outer in range(job.count0):
            for inner in range(job.count1):
                if len(ended) >= units.RUN_QUEUE_DEPTH:
                    request = max(request, ended[-units.RUN_QUEUE_DEPTH] + 1)
                request = max(request, splitter)
                offset = job.offset + outer * job.src_stride0 + inner * job.src_stride1
                dst = job.dst + outer * job.dst_stride0 + inner * job.dst_stride1
                address, low = offset // beat, offset % beat
                left = (run_bytes + low + beat - 1) // beat
                first = 0
                while left:
                    size = min(left, units.BURST_BEATS - address % units.BURST_BEATS)
                    if left == size:  # the splitter has passed it on when the burst before it has gone
                        splitter = max(request + 2, self._raised)
                    raised = max(self._raised + units.BURST_CYCLES, request + units.READ_REQUEST)
                    held = size
                    for end, beats in reversed(came):
                        held += beats
                        if held > units.DMA_FIFO_BEATS:
                            raised = max(raised, end + FITS)
                            break
                    yield raised
                    raised, begin, end_ = self._dram.read(self._dram.shared, raised, size)
                    there = int(end_) - 1 + units.READ_DATA + BEATS
                    first = first or int(begin) + units.READ_DATA + BEATS
                    came.append((there, size))
                    self._raised = raised
                    left -= size
                    address += size
                moves = self._moves(job, dst, beat, pair)
                begun = max(moved + 2, first)
                last = max(begun + moves - 1, there, moved + 1 + moves)
                self.waits["busy"] += moves
                self.waits["dram"] += max(0, last - moved - moves - 1)
                moved = last
                ended.append(moved)
                request += 2
        return moved + WRITTEN

    @staticmethod
    def _moves(job: DmaIn, dst: int, beat: int, pair: int) -> int:
        """Moves of a run: each ends at the end of its segment, of a pair of words, or after a bus word."""
        size = job.segment_bytes
        if pair <= beat:
            return sum(
                (d + size - 1) // pair - d // pair + 1
                for d in range(dst, dst + job.segments * job.dst_segment, job.dst_segment or 1)
            ) if job.segments > 1 else (dst + size - 1) // pair - dst // pair + 1
        moves = 0
        for segment in range(job.segments):
            at, left = (dst + segment * job.dst_segment) % pair, size
            if at:
                head = min(left, pair - at)
                moves += -(-head // beat)
                left -= head
            moves += left // pair * (pair // beat) + -(-(left % pair) // beat)
        return moves

    def _copy_out(self, job: DmaOut, start: int) -> Step:
        beat, word = self._config.axi_bytes, self._config.columns
        beats = -(-job.words * word // beat)
        each = max(1, word // beat)  # cycles of a word
        per_beat = max(1, beat // word)
        address = job.offset // beat
        packed, sent, left = start + WORD_OUT, 0, beats
        done = last = 0
        while left:
            size = min(left, units.BURST_BEATS - address % units.BURST_BEATS)
            sent += size
            last = packed + (sent * per_beat if per_beat > 1 else sent) - 1
            there = last + units.WRITE_DATA + 1
            yield there
            end = int(self._dram.write(there, size))
            last = max(last, end - units.WRITE_FIFO)
            done = end - 1 + self._dram.latency + ANSWERED
            left -= size
            address += size
        self._sent = last
        self.waits["busy"] += job.words * each
        self.waits["dram"] += max(0, last - start - job.words * each)
        return done
