"""The DMA unit."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from moevit.config import AcceleratorConfig
from moevit.isa import DmaIn, DmaOut
from moevit.sim.cycle import units
from moevit.sim.cycle.activation import ActivationMemory
from moevit.sim.cycle.front import FITS, Queue, Retirement
from moevit.sim.cycle.kernel import Kernel, Process, Step, Times
from moevit.sim.cycle.memory import Dram

REACHED = 2  # Dma: from a retiring instruction to the start of one that has waited for it
BEATS = 2  # DmaCopyIn: from the read port's data to a move
WRITE = 4  # DmaCopyIn: from a move to its write: a register, the queue, and two stages behind it
MOVES_AHEAD = units.MOVE_QUEUE_DEPTH + 2  # DmaCopyIn: moves in the queue and in those stages
WRITTEN = 2  # DmaCopyIn: from the last write to ``done``
PAIR = 3  # DmaCopyOut: from a pair's read to its first word's way out of the queue
OUT = 1  # DmaCopyOut: from there to AxiWritePort
ANSWERED = 2  # AxiWritePort: from a response to ``done``


@dataclass(frozen=True)
class Run:
    """A run of a DMA_IN whose data is on its way.

    Cycles: ``start`` of the instruction, ``first`` and ``last`` in which a move may take its first and last bus word.
    """

    start: int
    moves: int
    first: int
    last: int


@dataclass(frozen=True)
class Out:
    """How far a DMA_OUT is: the cycles of its last read and step, those in which the last pairs left their queue, steps
    made, and cycles that it has waited for the activation memory."""

    read: int
    step: int
    queue: deque[int]
    steps: int
    late: int = 0


@dataclass(frozen=True)
class Copy:
    """A DMA instruction; ``index`` and ``wait`` as in :class:`moevit.sim.cycle.compute.Work`."""

    instruction: DmaIn | DmaOut
    index: int
    wait: int


class Dma:
    """Two processes: instructions with what they ask of the memory, and the moves of DMA_INs."""

    def __init__(
        self, kernel: Kernel, config: AcceleratorConfig, dram: Dram, queue: Queue, copies: Sequence[Copy],
        retirement: Retirement, activation: ActivationMemory,
    ) -> None:  # fmt: skip
        self._kernel, self._config, self._dram, self._queue, self._copies = kernel, config, dram, queue, copies
        self._retirement, self._activation = retirement, activation
        self._raised = 0
        self._sent = 0  # when the last word of a DMA_OUT has left
        self._came: list[tuple[int, int]] = []  # of bursts: the last beat has left the FIFO, beats
        self._runs: list[Run] = []
        self._asked, self._moved, self._written = Times(), Times(), Times()  # by run: the last move, the last write
        self.waits = {"busy": 0, "dependency": 0, "dram": 0, "memory": 0}

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
        before = len(self._runs)
        moved, came = self._moved, self._came
        splitter = 0
        for outer in range(job.count0):
            for inner in range(job.count1):
                full = len(self._runs) - units.RUN_QUEUE_DEPTH
                if full >= before:
                    while len(moved) <= full:
                        yield moved
                    request = max(request, moved[full] + 1)
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
                self._runs.append(Run(start, self._moves(job, dst, beat, pair), first, there))
                self._asked.append(raised)
                self._kernel.wake(self._asked)
                request += 2
        while len(self._written) < len(self._runs):
            yield self._written
        return self._written[-1] + WRITTEN

    def moves(self) -> Process:
        """DmaCopyIn from its data on."""
        writes, waits = self._activation.writes, self.waits
        start, moved = -1, 0
        ahead = deque([0] * MOVES_AHEAD, maxlen=MOVES_AHEAD)  # the last writes
        while True:
            while len(self._asked) <= len(self._moved):
                yield self._asked
            run = self._runs[len(self._moved)]
            moved = moved if run.start == start else run.start
            start = run.start
            begun = max(moved + 2, run.first)
            last = max(begun + run.moves - 1, run.last, moved + 1 + run.moves)
            waits["busy"] += run.moves
            waits["dram"] += max(0, last - moved - run.moves - 1)
            known = -1
            writes.forget(ahead[-1])
            while known != writes.known():  # until all is known that can come before the last write
                known = writes.known()
                then, done = self._write(begun, last, run.moves, ahead)
                yield done[-1]
            waits["memory"] += then - last
            ahead, moved = done, then
            self._moved.append(moved)
            self._written.append(done[-1])
            self._kernel.wake(self._moved)
            self._kernel.wake(self._written)

    def _write(self, begun: int, last: int, moves: int, ahead: deque[int]) -> tuple[int, deque[int]]:
        """The cycle of the last move of a run, and the last writes, with those before it in ``ahead``.

        The moves are made from ``begun`` to ``last`` as their data comes, if they do not have to wait for writes.
        """
        ahead = ahead.copy()
        writes, wait = self._activation.writes, last - begun + 1 - moves
        free, claimed = writes.free, writes.next(begun)
        move = 0
        for number in range(moves):
            due = begun + number + wait * (number + 1) // moves
            move = max(due, move + 1, ahead[0] + 1)
            want = max(move + WRITE, ahead[-1] + 1)
            ahead.append(want if want < claimed else free(want))
        return move, ahead

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
        each = max(1, word // beat)  # steps, a cycle each, of a word
        per_beat = max(1, beat // word)  # and of a bus word
        address = job.offset // beat
        left = beats
        done = last = 0
        reads, waits = self._activation.reads, self.waits
        upper = job.src % 2 * each
        out = Out(start, start, deque([0] * units.PAIR_QUEUE_DEPTH, maxlen=units.PAIR_QUEUE_DEPTH), 0)
        while left:
            size = min(left, units.BURST_BEATS - address % units.BURST_BEATS)
            left -= size
            address += size
            steps = min(job.words * each, (beats - left) * per_beat)
            known = -1
            reads.forget(out.read)
            while known != reads.known():  # until all is known that can come before the last read
                known = reads.known()
                then = self._unpack(out, steps, upper, 2 * each, job.words * each)
                last = then.step - (then.steps - steps) + OUT
                yield last
            out = then
            there = last + units.WRITE_DATA + 1
            yield there
            end = int(self._dram.write(there, size))
            last = max(last, end - units.WRITE_FIFO)
            done = end - 1 + self._dram.latency + ANSWERED
        self._sent = last
        waits["busy"] += job.words * each
        waits["memory"] += out.late
        waits["dram"] += max(0, last - start - job.words * each - out.late)
        return done

    def _unpack(self, out: Out, until: int, upper: int, pair: int, total: int) -> Out:
        """Pairs are read and taken apart until so many steps are made, of ``total``.

        A pair takes ``pair`` steps, the first one ``upper`` less.
        """
        read, step, queue, steps, late = out.read, out.step, out.queue.copy(), out.steps, out.late
        free, claimed = self._activation.reads.free, self._activation.reads.next(read)
        while steps < until:
            want = max(read, queue[0]) + 1
            read = want if want < claimed else free(want)
            there = read + PAIR
            if there > step + 1:
                late += min(read - want, there - step - 1)
                step = there - 1
            size = min(pair if steps else pair - upper, total - steps)
            step += size
            steps += size
            queue.append(step)
        return Out(read, step, queue, steps, late)
