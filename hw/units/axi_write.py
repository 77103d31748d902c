"""AXI4 write adapter: store-and-forward bursts."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import AxiWriteSignature, request_signature, write_data_signature
from moevit.hw.units.axi_read import (
    BURST_BEATS,
    BURST_INCR,
    CACHE_MODIFIABLE_BUFFERABLE,
    BurstSplitter,
    check_port,
)


class AxiWritePort(wiring.Component):
    """An AXI4 write port: any number of bus words per request, several bursts outstanding.

    A burst is raised when all of its data is in the FIFO, so the bus never waits for the source, and a burst
    that was raised can always be completed, also after ``halt`` or a reset of the source.

    Parameters
    ----------
    config : the accelerator's
    outstanding : bursts on the bus at once
    fifo_depth : data FIFO in beats

    Members
    -------
    i_request : In(request_signature), bus-aligned address, at least one beat
    i_data : In(write_data_signature), the requests' bus words in order
    done : Out(1), a pulse when every burst of a request has been answered without an error
    axi : Out(AxiWriteSignature), INCR bursts as in AxiReadPort; registered outputs; bready is constant 1
    halt : In(1), no burst is raised any more; those that are get their data. Used again only after ``clear``
    idle : Out(1), no burst is outstanding
    error : Out(1), sticky until ``clear``: a response was SLVERR or DECERR. No burst is raised any more,
        ``done`` does not come
    clear : In(1), forgets requests, data and error; has effect only in a cycle with ``idle``

    Latency: 4 cycles from the request, 3 from a burst's last data, to awvalid. Throughput: one beat per
    cycle.

    Raises
    ------
    ConfigError : ``outstanding`` is less than 1 or ``fifo_depth`` less than a burst
    """

    def __init__(self, config: AcceleratorConfig, *, outstanding: int = 8, fifo_depth: int = 32):
        check_port(outstanding, fifo_depth)
        self.config = config
        self.outstanding = outstanding
        self.fifo_depth = fifo_depth
        super().__init__({
            "i_request": In(request_signature(config)),
            "i_data": In(write_data_signature(config)),
            "done": Out(1),
            "axi": Out(AxiWriteSignature(config)),
            "halt": In(1),
            "idle": Out(1),
            "error": Out(1),
            "clear": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.splitter = splitter = BurstSplitter(self.config)
        m.submodules.fifo = fifo = SyncFIFOBuffered(
            width=Shape.cast(self.i_data.payload.shape()).width, depth=self.fifo_depth
        )
        # Is it the last of its request? The oldest is in a register when its answer comes, which takes longer.
        m.submodules.order = order = SyncFIFOBuffered(width=1, depth=self.outstanding)
        m.submodules.lengths = lengths = SyncFIFO(width=exact_log2(BURST_BEATS), depth=self.outstanding)
        connect(m, flipped(self.i_request), splitter.i_request)
        m.d.comb += [
            fifo.w_data.eq(self.i_data.payload),
            fifo.w_en.eq(self.i_data.valid),
            self.i_data.ready.eq(fifo.w_rdy),
            self.idle.eq(order.level == 0),
        ]
        self._address(m, splitter.o_burst, fifo, order, lengths)
        self._data(m, fifo, lengths)
        self._response(m, order)
        return ResetInserter(self.clear & self.idle)(m)

    def _address(self, m, burst, fifo, order, lengths):
        axi = self.axi
        m.d.comb += [
            axi.awid.eq(0),
            axi.awsize.eq(exact_log2(self.config.axi_bytes)),
            axi.awburst.eq(BURST_INCR),
            axi.awcache.eq(CACHE_MODIFIABLE_BUFFERABLE),
            axi.awprot.eq(0),
        ]
        level = Signal(range(self.fifo_depth + 1))  # beats in the FIFO that belong to no raised burst
        complete = Signal()  # all of the next burst's data is there
        take = Signal()
        m.d.comb += [
            take.eq(
                complete & (~axi.awvalid | axi.awready) & order.w_rdy & lengths.w_rdy
                & ~self.halt & ~self.error
            ),
            burst.ready.eq(take),
            order.w_en.eq(take),
            order.w_data.eq(burst.payload.last),
            lengths.w_en.eq(take),
            lengths.w_data.eq(burst.payload.length),
        ]
        m.d.sync += [
            complete.eq(burst.valid & ~take & (burst.payload.length < level)),
            level.eq(level + (fifo.w_en & fifo.w_rdy) - Mux(take, burst.payload.length + 1, 0)),
        ]
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(take):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(burst.payload.addr),
                axi.awlen.eq(burst.payload.length),
            ]

    def _data(self, m, fifo, lengths):
        axi = self.axi
        word = self.i_data.payload.shape()(fifo.r_data)
        active, left = Signal(), Signal(exact_log2(BURST_BEATS))  # beats of this burst after the next
        take, last = Signal(), Signal()
        m.d.comb += [
            take.eq(active & fifo.r_rdy & (~axi.wvalid | axi.wready)),
            last.eq(left == 0),
            fifo.r_en.eq(take),
            lengths.r_en.eq(~active | (take & last)),
        ]
        with m.If(axi.wready):
            m.d.sync += axi.wvalid.eq(0)
        with m.If(take):
            m.d.sync += [
                axi.wvalid.eq(1),
                axi.wdata.eq(word.data),
                axi.wstrb.eq(word.strb),
                axi.wlast.eq(last),
                left.eq(left - 1),
            ]
        with m.If(lengths.r_en):
            m.d.sync += [active.eq(lengths.r_rdy), left.eq(lengths.r_data)]

    def _response(self, m, order):
        axi = self.axi
        answered, failed = Signal(), Signal()
        m.d.comb += [
            axi.bready.eq(1),
            order.r_en.eq(answered),
            self.done.eq(answered & order.r_data & ~failed & ~self.error),
        ]
        m.d.sync += [
            answered.eq(axi.bvalid),
            failed.eq(axi.bresp[1]),
            self.error.eq(self.error | (answered & failed)),
        ]
