"""Loader, array and POST: LINEAR and ATTENTION, row tile by row tile.

What they wait for of each other lies before in the order of the program, so one process follows all three.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moevit.config import AcceleratorConfig
from moevit.isa import Attention, Linear, NormMode
from moevit.sim.cycle import units
from moevit.sim.cycle.activation import ActivationMemory
from moevit.sim.cycle.front import Queue, Retirement
from moevit.sim.cycle.kernel import Kernel, Process, Step
from moevit.sim.cycle.route import Route
from moevit.sim.cycle.stream import MOVE_TO_HEAD, Streamer

FIFO = 2  # cycles through the array's queue (SyncFIFOBuffered)
SETUP = units.MAC_START_LATENCY - 3  # InstructionSetup: from an instruction to its job
DEPENDENCY = units.START_LATENCY - 2  # Loader: from an instruction to the first cycle that may find its wait over
WORD_TO_STEP = MOVE_TO_HEAD + 2  # and two cycles in WeightRing
WORD_TO_NORM = MOVE_TO_HEAD + 1  # and one in Loader
FREED = 2  # from a pass's last step to the loader's count of free buffers
WORD_TO_JUMP = MOVE_TO_HEAD + 3  # WeightRing: ``present``


@dataclass(frozen=True)
class Work:
    """A LINEAR or ATTENTION with what is not in its fields.

    index : which of the instructions that retire it is
    wait : its field without the wrap
    rows : of a LINEAR of a queue: the queue's entries
    """

    instruction: Linear | Attention
    index: int
    wait: int
    rows: int


class Compute:
    """One process; see :meth:`run`."""

    def __init__(
        self, kernel: Kernel, config: AcceleratorConfig, queue: Queue, works: Sequence[Work], retirement: Retirement,
        streamer: Streamer, memory: ActivationMemory,
    ) -> None:  # fmt: skip
        self._kernel, self._config, self._queue, self._works = kernel, config, queue, works
        self._retirement, self._streamer, self._memory = retirement, streamer, memory
        self._latencies = units.Latencies.of(config)
        self._route = Route(config, self._latencies)
        # loader
        self._idle = 0  # it may take an instruction
        self._buffers: list[int] = [0, 0]  # by A tile: a buffer is free for it
        self._norm_tail = 0
        # array
        self._setup: list[int] = []  # an instruction is taken from the array's queue
        self._setup_idle = 0
        self._last_load = 0  # the last pass of the instruction before has begun
        self._issued = 0  # the last step before
        self._drained = 0  # no column tile's last step may be issued before
        self._tail = 0  # weight words freed
        # POST
        self._retired: list[int] = []
        self._pending_brought = 0
        self.waits = {
            "load": {"busy": 0, "dependency": 0, "tile": 0, "norm": 0, "scores": 0, "queue": 0},
            "mac": {"busy": 0, "tile": 0, "ring": 0, "drain": 0, "post": 0},
            "post": {"busy": 0},
        }

    def run(self) -> Process:
        """Loads, computes and retires one instruction after the other."""
        retired = self._retirement.retired
        queue, waits = self._queue, self.waits
        for number, work in enumerate(self._works):
            while len(queue.pushed) <= number:
                yield queue.pushed
            take = max(self._idle, queue.pushed[number] + 1)
            if number >= units.ARRAY_QUEUE_DEPTH:
                take = max(take, self._setup[number - units.ARRAY_QUEUE_DEPTH] + 1)
            queue.popped.append(take)
            self._kernel.wake(queue.popped)
            while len(retired) < work.wait:
                yield retired
            ready = take + DEPENDENCY
            if work.wait:
                waits["load"]["dependency"] += max(0, retired[work.wait - 1] + 1 - ready)
                ready = max(ready, retired[work.wait - 1] + 1)
            yield ready
            instruction = work.instruction
            if isinstance(instruction, Attention):
                self._start(number, take)
                done = self._attention(instruction, ready + 1)
            elif instruction.gather or instruction.scatter:
                done = yield from self._queued(number, instruction, work.rows, ready)
            else:
                start = ready + 1
                if instruction.norm != NormMode.NONE:
                    start = yield from self._norm(instruction, start)
                self._start(number, take)
                done = yield from self._linear(instruction, instruction.n_rows, start, 0)
            done += units.RETIRE_LATENCY
            if self._retired:
                done = max(done, self._retired[-1] + 1)
            self._retired.append(done)
            if isinstance(instruction, Linear) and instruction.release:
                self._streamer.post.freed += [done] * instruction.tiles
                self._kernel.wake(self._streamer.post.freed)
            self._retirement.finish(work.index, done)

    # -- the loader -----------------------------------------------------------------------------------------------

    def _read(self, start: int, count: int) -> int:
        """The cycle of the last of ``count`` reads in cycles that POST leaves, which reads residuals first."""
        reads = self._memory.reads
        last = reads.post.last(start, count)
        reads.load.add(start, 1, 1, last + 1)
        return last

    def _keep(self, second: int, size: int) -> int:
        """The cycle in which the last of so many kept words is written, in cycles that POST leaves.

        ``second`` is the cycle after they have left the row buffer.
        """
        writes = self._memory.writes
        first = second + units.NORMALISE_LATENCY + 1 + units.KEEP_LATENCY - (size - 1)
        last = writes.post.last(first, size)
        writes.load.add(first, 1, 1, last + 1)
        return last

    def _norm(self, linear: Linear, start: int) -> Step:
        """Waits for LayerNorm parameters; the cycle in which tiles may start."""
        norm = self._streamer.norm
        last = self._norm_tail + -(-linear.length // self._config.columns) - 1
        while len(norm.written) <= last:
            yield norm.written
        there = norm.written[last] + WORD_TO_NORM
        self.waits["load"]["norm"] += max(0, there - start)
        return max(start, there) + 1

    def _queued(self, number: int, linear: Linear, rows: int, ready: int) -> Step:
        """A LINEAR of a queue, from the retired count it waits for."""
        streamer = self._streamer
        bit = self._pending_brought
        self._pending_brought += 1
        asked = ready + units.QUEUE_START_LATENCY - DEPENDENCY
        if rows:
            # Its bit is 1 and is taken whenever it comes.
            streamer.brought_taken.append(asked)
            self._kernel.wake(streamer.brought_taken)
            self._start(number, asked + 1)
            entries = asked + units.FIRST_ENTRY_LATENCY + units.QUEUE_ROW_LATENCY + 1
            return (yield from self._linear(linear, rows, asked + 2, entries))
        while len(streamer.brought) <= bit:
            yield streamer.brought
        taken = max(asked + 1, streamer.brought[bit])
        self.waits["load"]["queue"] += taken - asked - 1
        streamer.brought_taken.append(taken)
        self._kernel.wake(streamer.brought_taken)
        self._start(number, taken + 1)
        self._idle = taken + 2
        return (yield from self._skip(linear, streamer.brings[bit]))

    def _skip(self, linear: Linear, release: bool) -> Step:
        """A LINEAR of an empty queue: one step, which may free weights unread."""
        words = linear.tiles * -(-linear.length // self._config.depth)
        weights = self._streamer.weights
        issue = self._load + 1
        if release:
            last = self._tail + words - 1
            while len(weights.written) <= last:
                yield weights.written
            issue = max(issue + units.JUMP_LATENCY, weights.written[last] + WORD_TO_JUMP)
            self.waits["mac"]["ring"] += issue - self._load - 1
            weights.freed += [issue] * words
            self._tail += words
            self._kernel.wake(weights.freed)
            # The parameters are freed like any instruction's, when it retires.
        issue = max(issue, self._drained)
        self._issued = issue
        self._drained = issue + max(1, self._config.key_groups)
        self._last_load = self._load
        self.waits["mac"]["busy"] += 1
        self.waits["post"]["busy"] += 1
        return issue + 1 + self._latencies.row_delay + units.POST_LATENCY

    # -- the array ------------------------------------------------------------------------------------------------

    def _start(self, number: int, sent: int) -> None:
        """An instruction goes on to the array's queue in cycle ``sent``; ``_load`` is when its first pass begins."""
        take = max(sent + FIFO, self._setup_idle)
        if number >= units.POST_BANKS:
            bank = self._retired[number - units.POST_BANKS] + 1
            self.waits["mac"]["post"] += max(0, bank - max(take, self._issued))
            take = max(take, bank)
        self._setup.append(take)
        accepted = max(take + SETUP, self._last_load)
        self._setup_idle = accepted + 1
        self._load = max(accepted + 1, self._issued)

    def _linear(self, linear: Linear, rows: int, start: int, entries: int) -> Step:
        """All row tiles, from the cycle in which the first may start to be loaded; the cycle of the last write.

        ``entries`` is the cycle in which the first row of a queue may be read.
        """
        config, latencies, waits, mac = self._config, self._latencies, self.waits, self.waits["mac"]
        full, buffers = config.rows, self._buffers
        words, steps, tiles = -(-linear.length // config.columns), -(-linear.length // config.depth), linear.tiles
        wide = linear.norm != NormMode.NONE
        key_groups = config.key_groups
        weights = self._streamer.weights
        written, freed = weights.written, weights.freed
        chunk = max(1, min(steps, self._streamer.weights.size // 2))
        statistics = units.ACTIVATION_READ_LATENCY + latencies.sums + units.STATISTICS_LATENCY
        statistics += units.NORM_QUEUE_LATENCY
        count = -(-rows // full)
        reading, second = start, 0
        fills: list[int] = []
        left: list[tuple[int, int]] = []  # by tile: words before it and it, the cycle after its second reading
        tail, total = self._tail, tiles * steps
        spacing = max(full, key_groups)
        residual = 1 + latencies.row_delay + units.RESIDUAL_LATENCY if linear.residual else 0
        reads, residuals, results = self._memory.reads.load, self._memory.reads.post, self._memory.writes.post
        write = 1 + latencies.row_delay + units.POST_LATENCY
        stored = 0 if linear.route else min(tiles, linear.key_tile)  # column tiles of what goes to this memory
        load, drained, issued = self._load, self._drained, self._issued
        done = 0
        for tile in range(count):
            n = full if tile < count - 1 else rows - full * (count - 1)
            size = n * words
            buffer = buffers[-2]
            # The tile is filled.
            if wide:
                if tile >= units.MAX_TILES:
                    reading = max(reading, fills[tile - units.MAX_TILES] + 1)
                read = self._read(reading + 1, size)
                before = tile * full * words + size - latencies.row_buffer
                if before > 0:
                    at = before // (full * words)
                    room = left[at][1] - (left[at][0] - before) + 2
                    if room > read:  # the last of them, as those of that tile leave
                        some = min(size, before - at * full * words)
                        reads.those[-1] = (reading + 1, 1, 1, read + 1 - some)
                        reads.add(room + 1 - some, 1, 1, room + 1)
                        read = room
                begin = max(reading + words + statistics, second)
                if buffer > begin:
                    waits["load"]["tile"] += buffer - begin
                    begin = buffer
                second = max(begin + size, read + statistics + words)
                left.append((tile * full * words + size, second))
                filled = second + units.NORMALISE_LATENCY + 1
                if linear.keep:
                    kept = self._keep(second, size)
                    if size > units.KEEP_DEPTH:  # no word may enter while so many are to be written
                        second = max(second, kept - units.KEEP_DEPTH + 1)
                    filled = kept + 1
                reading = read + 1
            else:
                if buffer > reading:
                    waits["load"]["tile"] += buffer - reading
                    reading = buffer
                read = self._read(reading + 1, size)
                if entries:
                    last = entries + units.ENTRY_CYCLES * (tile * full + n - 1) + words - 1
                    each = max(words, units.ENTRY_CYCLES)
                    read = max(read, reading + n * each, last)
                    reads.those[-1] = (read + 1 - n * each, words, each, read + 1)
                reading = read + 1
                filled = read + units.COPY_LATENCY
            fills.append(filled)
            waits["load"]["busy"] += (2 if wide else 1) * size
            # The array works on it.
            first = load + 1
            if filled + 1 > first:
                mac["tile"] += filled + 1 - first
                first = filled + 1
            spacing = n if n > key_groups else key_groups
            release = linear.release and tile == count - 1
            if linear.route and len(self._route.freed) >= units.GATE_CREDITS:
                credit = self._route.freed[-units.GATE_CREDITS] + 1
                if credit > first:
                    mac["post"] += credit - first
                    first = credit
            last_word = tail + total - 1
            if len(written) > last_word and written[last_word] + WORD_TO_STEP <= first:
                period = steps if steps > spacing else spacing
                end = first + steps - 1
                if end < drained:
                    mac["drain"] += drained - end
                    end = drained
                last = end + (tiles - 1) * period
                mac["drain"] += (tiles - 1) * (period - steps)
                if residual:
                    residuals.add(end + residual, n, period, last + residual + n)
                if stored:
                    results.add(end + write, n, period, end + (stored - 1) * period + write + n)
                if release:
                    if period == steps:
                        freed.extend(range(end - steps + 1, last + 1))
                    else:
                        for i in range(tiles):
                            freed.extend(range(end - steps + 1 + i * period, end + 1 + i * period))
            else:
                step, word, last = first, tail, drained
                for column in range(tiles):
                    rest = steps
                    while rest:
                        part = chunk if chunk < rest else rest
                        rest -= part
                        word += part
                        while len(written) < word:
                            if release:
                                self._kernel.wake(freed)
                            yield written
                        end = step + part - 1
                        there = written[word - 1] + WORD_TO_STEP
                        late = there > end
                        if late:
                            mac["ring"] += there - end
                            end = there
                        if not rest and end < drained:
                            mac["drain"] += drained - end
                            end = drained
                        if release:
                            if late:
                                freed.extend(
                                    [max(step + i, written[word - part + i] + WORD_TO_STEP) for i in range(part)]
                                )
                            else:
                                freed.extend(range(step, step + part))
                        step = end + 1
                    drained = end + spacing
                    if residual:
                        residuals.add(end + residual, n, n, end + residual + n)
                    if column < stored:
                        results.add(end + write, n, n, end + write + n)
                last = end
            if release:
                self._tail = tail + total
                self._kernel.wake(freed)
            drained = last + spacing
            issued = last
            if tile < count - 1:
                load = last
            buffers.append(last + FREED)
            rows_out = last + 1 + latencies.row_delay + n - 1
            if linear.route:
                done = self._route.tile(linear, n, rows_out + units.ROUTE_LATENCY)
        mac["busy"] += count * total
        waits["post"]["busy"] += rows * tiles
        self._last_load, self._drained, self._issued = load, drained, issued
        self._idle = fills[-1] + 2
        if wide:
            if linear.release:
                norm = self._streamer.norm
                norm.freed += [fills[-1] + 1] * words
                self._norm_tail += words
                self._kernel.wake(norm.freed)
        if linear.route:
            return done
        if linear.key_tile < tiles:
            columns = (n - 1) // config.depth + 1 if linear.value_tile < tiles else key_groups
            return rows_out + units.KV_LATENCY + columns - 1
        return rows_out + units.POST_LATENCY

    def _attention(self, attention: Attention, start: int) -> int:
        """All units, from the cycle in which the first may start to be loaded; the cycle of the last write."""
        config, latencies, waits = self._config, self._latencies, self.waits
        columns, depth, full, key_groups = config.columns, config.depth, config.rows, config.key_groups
        words, key_tiles = -(-attention.head_dim // columns), -(-attention.n_keys // columns)
        query_steps, key_steps = -(-attention.head_dim // depth), -(-attention.n_keys // depth)
        count = -(-attention.n_rows // full)
        units_ = count * attention.heads
        last_rows = attention.n_rows - full * (count - 1)
        short = 0 if attention.n_keys > latencies.cover_steps * depth else latencies.scale
        buffers, mac = self._buffers, waits["mac"]
        results, write = self._memory.writes.post, 1 + latencies.row_delay + units.POST_LATENCY
        load, drained, issued = self._load, self._drained, self._issued
        scores: list[int] = []
        context = 0  # units of P
        rows_idle = context_idle = reading = start
        first = load + 1
        last = filled = 0
        while context < units_:
            query = len(scores) < units_ and len(scores) < context + 2
            n = full if (len(scores) if query else context) % count < count - 1 else last_rows
            buffer = buffers[-2]
            if query:
                begin = max(reading, context_idle)
                if buffer > begin:
                    waits["load"]["tile"] += buffer - begin
                    begin = buffer
                read = self._read(begin + 1, n * words)
                reading = read + 1
                filled = read + units.COPY_LATENCY
                rows_idle = filled + 1
                steps, tiles, size = query_steps, key_tiles, n * words
            else:
                begin = max(rows_idle, context_idle)
                ready = scores[context] + 1
                if buffer > begin:
                    waits["load"]["tile"] += buffer - begin
                    begin = buffer
                if ready > begin:
                    waits["load"]["scores"] += ready - begin
                    begin = ready
                filled = begin + n * key_tiles + units.CONTEXT_LATENCY + short
                context_idle = filled + 1
                steps, tiles, size = key_steps, words, n * key_tiles
            waits["load"]["busy"] += size
            first = load + 1
            if filled + 1 > first:
                mac["tile"] += filled + 1 - first
                first = filled + 1
            spacing = n if n > key_groups else key_groups
            period = steps if steps > spacing else spacing
            end = first + steps - 1
            if end < drained:
                mac["drain"] += drained - end
                end = drained
            last = end + (tiles - 1) * period
            mac["drain"] += (tiles - 1) * (period - steps)
            drained = last + spacing
            buffers.append(last + FREED)
            issued = last
            row = last + 1 + latencies.row_delay + n - 1
            if query:
                scores.append(row + latencies.staged)
            else:
                results.add(end + write, n, period, last + write + n)
                context += 1
            if context < units_:
                load = last
        mac["busy"] += units_ * (key_tiles * query_steps + words * key_steps)
        waits["post"]["busy"] += attention.heads * attention.n_rows * (key_tiles + words)
        self._last_load, self._drained, self._issued = load, drained, issued
        self._idle = filled + 2 + (0 if short else latencies.scale)
        return row + units.POST_LATENCY
