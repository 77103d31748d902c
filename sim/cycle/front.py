"""Fetch, dispatch and retirement."""

from collections.abc import Sequence

from moevit.config import COMPUTE_QUEUE_DEPTH, DMA_QUEUE_DEPTH, STREAM_QUEUE_DEPTH, AcceleratorConfig
from moevit.isa import Attention, DmaIn, DmaOut, Instruction, Linear, Stream
from moevit.isa.fields import INSTRUCTION_BYTES
from moevit.sim.cycle import units
from moevit.sim.cycle.kernel import Kernel, Process, Times
from moevit.sim.cycle.memory import Dram

FETCH_FIFO = 2  # cycles through Fetch's own SyncFIFOBuffered
ASSEMBLED = 1  # from a beat's way out of that to the word that it completes
FITS = 3  # ReadChannel: from room in its FIFO to a burst's arvalid


class Queue:
    """A FIFO between two units: the cycles in which its entries are pushed and popped.

    Parameters
    ----------
    depth : entries that it holds
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.pushed, self.popped = Times(), Times()


class Retirement:
    """``retired`` has the cycles in which instructions retire, in program order."""

    def __init__(self, kernel: Kernel, count: int) -> None:
        self._kernel = kernel
        self._done: list[int | None] = [None] * count
        self.retired = Times()

    def finish(self, index: int, time: int) -> None:
        """The unit of the ``index``-th instruction that retires has done it."""
        done, retired = self._done, self.retired
        done[index] = time
        if len(retired) != index:
            return
        while index < len(done) and (then := done[index]) is not None:
            retired.append(max(then, retired[-1] + 1) if retired else then)
            index += 1
        self._kernel.wake(retired)


class Front:
    """Brings instructions to the units' queues.

    Parameters
    ----------
    config, instructions : the machine and the program
    entry : offset of BEGIN in the image
    """

    def __init__(
        self, kernel: Kernel, config: AcceleratorConfig, dram: Dram, instructions: Sequence[Instruction], entry: int,
        retirement: Retirement,
    ) -> None:  # fmt: skip
        self._kernel, self._config, self._dram, self._instructions = kernel, config, dram, instructions
        self._entry, self._retired = entry, retirement.retired
        self.stream = Queue(STREAM_QUEUE_DEPTH)
        self.compute = Queue(COMPUTE_QUEUE_DEPTH)
        self.dma = Queue(DMA_QUEUE_DEPTH)
        self._fetched, self._taken = Times(), Times()  # an instruction is complete in Fetch; it goes to dispatch
        self.ended = 0  # the cycle after which END waits for nothing but retirement

    def fetch(self) -> Process:
        """Requests the program, a few instructions at a time."""
        beats = INSTRUCTION_BYTES // self._config.axi_bytes
        count = len(self._instructions)
        first, request = 0, units.START_CYCLES + units.FETCH_START
        address = self._entry // self._config.axi_bytes
        ends: list[int] = []  # of bursts: the last beat has left the channel's FIFO
        claims: list[int] = []
        while first < count:
            chunk = 1 if first == 0 else min(units.REQUEST_INSTRUCTIONS, count - first)
            needed = first + chunk - units.PREFETCH_INSTRUCTIONS
            while len(self._taken) < needed:
                yield self._taken
            if needed > 0:
                request = max(request, self._taken[needed - 1] + 2)
            raised = request + units.READ_REQUEST
            left, data = chunk * beats, 0
            starts: list[float] = []  # when each beat is there
            while left:
                size = min(left, units.BURST_BEATS - address % units.BURST_BEATS)
                held = size
                for left_at, claim in zip(reversed(ends), reversed(claims), strict=True):
                    held += claim
                    if held > units.FETCH_FIFO_BEATS:
                        raised = max(raised, left_at + FITS)
                        break
                yield raised
                raised, start, end = self._dram.read(self._dram.shared, raised, size)
                starts += [start + (i + 1) * (end - start) / size - 1 + units.READ_DATA for i in range(size)]
                data = int(starts[-1])
                ends.append(data)
                claims.append(size)
                left -= size
                address += size
                raised += units.BURST_CYCLES
            for i in range(chunk):
                self._fetched.append(int(starts[(i + 1) * beats - 1]) + FETCH_FIFO + ASSEMBLED)
            self._kernel.wake(self._fetched)
            request = request + 2 if first else self._fetched[0] + units.FETCH_BEGIN + 1
            first += chunk

    def dispatch(self) -> Process:
        """Hands out the instructions after BEGIN."""
        beats = INSTRUCTION_BYTES // self._config.axi_bytes
        while not self._fetched:
            yield self._fetched
        self._taken.append(self._fetched[0] + 2)
        self._kernel.wake(self._taken)
        free = 0
        retiring = 0
        for number, instruction in enumerate(self._instructions[1:], 1):
            while len(self._fetched) <= number:
                yield self._fetched
            take = max(free, self._fetched[number], self._taken[-1] + beats + 1)
            self._taken.append(take)
            self._kernel.wake(self._taken)
            offer = take + units.DISPATCH_OFFER
            queue = self._queue(instruction)
            if queue is None:
                self.ended = offer
                return
            if instruction.retires:
                before = retiring - units.ORDER_DEPTH
                if before >= 0:
                    while len(self._retired) <= before:
                        yield self._retired
                    offer = max(offer, self._retired[before] + 1)
                retiring += 1
            before = len(queue.pushed) - queue.depth
            if before >= 0:
                while len(queue.popped) <= before:
                    yield queue.popped
                offer = max(offer, queue.popped[before] + 1)
            queue.pushed.append(offer)
            self._kernel.wake(queue.pushed)
            free = offer + units.DISPATCH_CYCLES - units.DISPATCH_OFFER
            yield free

    def _queue(self, instruction: Instruction) -> Queue | None:
        if isinstance(instruction, Stream):
            return self.stream
        if isinstance(instruction, (DmaIn, DmaOut)):
            return self.dma
        return self.compute if isinstance(instruction, (Linear, Attention)) else None
