"""The latencies of the units, as their docstrings state them: what the model is made of.

The simulators may not import the generator, so each name says whose constant it is; ``tests/sim/test_cycle.py`` holds
them to the units' own. All are in cycles.
"""

from dataclasses import dataclass

from moevit.config import AcceleratorConfig

START_CYCLES = 4  #: Control: from the write of CONTROL to ``start``
FETCH_START = 4  #: Fetch: from ``start`` to the first request
FETCH_BEGIN = 5  #: Fetch: from the last data of BEGIN to the next request
PREFETCH_INSTRUCTIONS = 16  #: fetch.py
REQUEST_INSTRUCTIONS = 4  #: fetch.py
DISPATCH_OFFER = 10  #: Dispatch: from an accepted instruction to its offer
DISPATCH_CYCLES = 11  #: Dispatch: an instruction each
DISPATCH_DONE = 2  #: Dispatch: from ``all_retired`` to ``done``
ORDER_DEPTH = 32  #: retirement.py

BURST_BEATS = 16  #: axi_read.py
READ_REQUEST = 4  #: AxiReadPort: from a request to ``arvalid``
READ_DATA = 3  #: AxiReadPort: from ``rvalid`` to data
BURST_CYCLES = 2  #: AxiReadPort: a burst each
PORT_OUTSTANDING = 8  #: AxiReadPort's default
SHARED_OUTSTANDING = 16  #: ReadMux's default
PACE_CYCLES = 10  #: burst_pacer.py
LINGER_CYCLES = 16  #: burst_pacer.py
PORT_FIFO = 128  #: AxiReadPort's default, beats
FETCH_FIFO_BEATS = 32  #: accelerator.py
DMA_FIFO_BEATS = 128  #: accelerator.py

PART_QUEUE_DEPTH = 16  #: streamer.py
PART_CYCLES = 3  #: StreamRequester: per part, and one more per port
EMPTY_PART_CYCLES = 2  #: StreamRequester: a part of no words
DECIDE_LATENCY = 3  #: streamer.py

QUEUE_COUNT_LATENCY = 2  #: interfaces.py
ARRAY_QUEUE_DEPTH = 4  #: loader.py
START_LATENCY = 4  #: loader.py
QUEUE_START_LATENCY = 5  #: loader.py
FIRST_ENTRY_LATENCY = 4  #: queues.py
ENTRY_CYCLES = 2  #: queues.py
QUEUE_ROW_LATENCY = 6  #: queue_rows.py
COPY_LATENCY = 3  #: row_loader.py
KEEP_LATENCY = 2  #: keep_writer.py
KEEP_DEPTH = 32  #: keep_writer.py
MAX_TILES = 7  #: layernorm.py
STATISTICS_LATENCY = 28  #: layernorm.py
NORMALISE_LATENCY = 18  #: layernorm.py
NORM_QUEUE_LATENCY = 2  #: layernorm.py, QUEUE_LATENCY
ACTIVATION_READ_LATENCY = 2  #: interfaces.py
CONTEXT_LATENCY = 6  #: context_loader.py

MAC_START_LATENCY = 6  #: mac_array.py, START_LATENCY
JUMP_LATENCY = 3  #: mac_sequencer.py
GATE_CREDITS = 2  #: mac_sequencer.py
TAIL_DELAY = 2  #: mac_sequencer.py

POST_LATENCY = 34  #: post.py, LATENCY
KV_LATENCY = 36  #: post.py
ROUTE_LATENCY = 14  #: post.py
RETIRE_LATENCY = 1  #: post.py
RESIDUAL_LATENCY = 28  #: post.py, _READ
POST_BANKS = 2  #: post_banks.py
EXPONENTIAL_LATENCY = 5  #: exponential.py
READY_LATENCY = 15  #: route_scores.py
APPEND_LATENCY = 10  #: route_scores.py
ROUTE_START = 2  #: route.py, _START

RUN_QUEUE_DEPTH = 16  #: dma.py
MOVE_QUEUE_DEPTH = 8  #: dma.py
PAIR_QUEUE_DEPTH = 4  #: dma.py
DMA_IN_LATENCY = 11  #: Dma: to the first request, without loops
UNANSWERED = 3  #: dma.py
DMA_OUT_LATENCY = 7  #: Dma: to the first request
WRITE_FIFO = 32  #: AxiWritePort's default, beats
WRITE_DATA = 3  #: AxiWritePort: from a burst's last data to ``awvalid``

_MULTIPLY_LATENCY = 3  # arithmetic.py
_OPERAND_READ_LATENCY = 3  # interfaces.py


def tree(lanes: int) -> int:
    """arithmetic.tree_latency"""
    return (lanes - 1).bit_length()


@dataclass(frozen=True)
class Latencies:
    """Those that depend on the configuration."""

    row_delay: int  #: mac_array.row_delay
    sums: int  #: layernorm.sums_latency
    row_buffer: int  #: layernorm.row_buffer_words, words
    scale: int  #: context_loader.scale_latency
    cover_steps: int  #: context_loader.cover_steps, steps
    staged: int  #: post.staged_latency
    select: int  #: route_select.select_latency
    route_words: int  #: route_select.word_count, words

    @classmethod
    def of(cls, config: AcceleratorConfig) -> "Latencies":
        chain = min(config.depth, 8)  # dot_product.CHAIN
        groups = config.depth // chain
        dot = 3 + chain + (1 + tree(groups) if groups > 1 else 0) + 1
        lanes = min(config.columns, 64)
        longest = config.tile_depth // config.columns
        sums = _MULTIPLY_LATENCY + tree(config.columns) + 1
        norm = sums + STATISTICS_LATENCY + NORM_QUEUE_LATENCY + 1 + NORMALISE_LATENCY
        scale = tree(config.columns) + 1 + 16  # reciprocal.ROW_SCALE_LATENCY
        return cls(
            row_delay=_OPERAND_READ_LATENCY + dot + 1 + (1 if config.rows <= 8 else 2),
            sums=sums,
            row_buffer=1 << (longest + max(longest, norm + 8) - 1).bit_length(),
            scale=scale,
            cover_steps=max(scale - _OPERAND_READ_LATENCY - 3, 0),
            staged=ROUTE_LATENCY + 1 + tree(config.columns) + 3 + 2 + 1,
            select=4 + tree(lanes) + EXPONENTIAL_LATENCY,
            route_words=64 // lanes,
        )

    def pass_spacing(self, words: int) -> int:
        """route_select.pass_spacing"""
        return words + self.select - EXPONENTIAL_LATENCY - 1
