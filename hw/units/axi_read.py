"""AXI4 read adapters: requests of any length become aligned bursts that have room reserved for their data."""

from collections.abc import Sequence

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.errors import ConfigError
from moevit.hw.interfaces import AxiReadSignature, read_data_signature, request_signature

BURST_BEATS = 16  #: longest burst
BURST_INCR = 0b01
CACHE_MODIFIABLE_BUFFERABLE = 0b0011


def burst_signature(config: AcceleratorConfig) -> stream.Signature:
    """One burst: ``length`` is the number of beats less one, ``last`` marks the last burst of a request."""
    return stream.Signature(
        data.StructLayout({"addr": config.axi_address_width, "length": exact_log2(BURST_BEATS), "last": 1})
    )


def beat_signature(config: AcceleratorConfig) -> stream.Signature:
    """Data of a burst on its way to a FIFO that has room for it."""
    return stream.Signature(read_data_signature(config).members["payload"].shape, always_ready=True)


def check_port(outstanding: int, fifo_depth: int) -> None:
    """Raise ConfigError unless a port can be made of these."""
    if outstanding < 1:
        raise ConfigError(f"outstanding must be at least 1, not {outstanding!r}")
    if fifo_depth < BURST_BEATS:
        raise ConfigError(f"fifo_depth must be at least a burst ({BURST_BEATS} beats), not {fifo_depth!r}")


class BurstSplitter(wiring.Component):
    """Splits requests at multiples of BURST_BEATS bus words.

    Such bursts never cross a 4 KB boundary: 16 beats of at most 64 bytes divide it.

    Members
    -------
    i_request : In(request_signature), bus-aligned address, at least one beat
    o_burst : Out(burst_signature), registered

    Latency: 2 cycles. Throughput: one burst per cycle inside a request, a cycle more per request.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "i_request": In(request_signature(config)),
            "o_burst": Out(burst_signature(config)),
        })

    def elaborate(self, platform):
        m = Module()
        byte_bits, burst_bits = exact_log2(self.config.axi_bytes), exact_log2(BURST_BEATS)
        request, burst = self.i_request.payload, self.o_burst.payload

        valid = Signal()
        word = Signal(self.config.axi_address_width - byte_bits)
        beats = Signal.like(request.beats)
        room = Signal(range(BURST_BEATS + 1))  # beats up to the next multiple of BURST_BEATS: all but at first
        fits = Signal()
        m.d.comb += [
            fits.eq(beats <= room),
            self.i_request.ready.eq(~valid),
        ]
        with m.If(self.o_burst.ready):
            m.d.sync += self.o_burst.valid.eq(0)
        with m.If(valid):
            with m.If(~self.o_burst.valid | self.o_burst.ready):
                m.d.sync += [
                    self.o_burst.valid.eq(1),
                    burst.addr.eq(word << byte_bits),
                    burst.length.eq(Mux(fits, beats[:burst_bits + 1], room) - 1),
                    burst.last.eq(fits),
                    word.eq(Cat(C(0, burst_bits), word[burst_bits:] + 1)),
                    beats.eq(beats - room),
                    room.eq(BURST_BEATS),
                    valid.eq(~fits),
                ]
        with m.Else():
            m.d.sync += [
                valid.eq(self.i_request.valid),
                word.eq(request.addr[byte_bits:]),
                room.eq(BURST_BEATS - request.addr[byte_bits : byte_bits + burst_bits]),
                beats.eq(request.beats),
            ]
        return m


class ReadChannel(wiring.Component):
    """One requester's side of a read port: its bursts, and the FIFO that their data goes to.

    A burst is offered when the FIFO has room for all of its data, counting what earlier bursts still bring,
    so the data can always be taken from the bus, whatever the requester does.

    Parameters
    ----------
    fifo_depth : data FIFO in beats, at least BURST_BEATS

    Members
    -------
    i_request : In(request_signature)
    o_burst : Out(burst_signature)
    i_beat : In(beat_signature), the bursts' data in order
    o_data : Out(read_data_signature)

    Latency: 3 cycles from request to burst, 2 from beat to data. Throughput: one beat per cycle; one burst
    every two cycles.
    """

    def __init__(self, config: AcceleratorConfig, fifo_depth: int):
        self.config = config
        self.fifo_depth = fifo_depth
        super().__init__({
            "i_request": In(request_signature(config)),
            "o_burst": Out(burst_signature(config)),
            "i_beat": In(beat_signature(config)),
            "o_data": Out(read_data_signature(config)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.splitter = splitter = BurstSplitter(self.config)
        m.submodules.fifo = fifo = SyncFIFOBuffered(
            width=Shape.cast(self.o_data.payload.shape()).width, depth=self.fifo_depth
        )
        connect(m, flipped(self.i_request), splitter.i_request)

        free = Signal(range(self.fifo_depth + 1), init=self.fifo_depth)  # beats that no burst has claimed
        fits = Signal()  # the splitter's burst does; room only grows until it goes
        burst = splitter.o_burst
        take = Signal()
        pop = Signal()
        m.d.comb += [
            self.o_burst.valid.eq(fits),
            self.o_burst.payload.eq(burst.payload),
            take.eq(fits & self.o_burst.ready),
            burst.ready.eq(take),
            pop.eq(self.o_data.valid & self.o_data.ready),
        ]
        m.d.sync += [
            fits.eq(burst.valid & ~take & (burst.payload.length < free)),
            free.eq(free + pop - Mux(take, burst.payload.length + 1, 0)),
        ]
        m.d.comb += [
            fifo.w_data.eq(self.i_beat.payload),
            fifo.w_en.eq(self.i_beat.valid),
            self.o_data.payload.eq(fifo.r_data),
            self.o_data.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o_data.ready),
        ]
        return m


class AxiReadBus(wiring.Component):
    """The bus side of a read port: raises the channels' bursts in turn and hands each the data of its own.

    Parameters
    ----------
    channels : how many
    outstanding : bursts on the bus at once

    Members
    -------
    i_burst : In(burst_signature).array(channels)
    o_beat : Out(beat_signature).array(channels)
    axi : Out(AxiReadSignature), registered outputs, rready constant 1
    hold : In(1), no burst is raised in this cycle
    halt : In(1), no burst is raised; data is dropped
    idle : Out(1), no burst is outstanding
    error : Out(channels), sticky

    Latency: 1 cycle from burst to arvalid, 1 from rvalid to beat. Throughput: one burst and one beat per
    cycle.
    """

    def __init__(self, config: AcceleratorConfig, channels: int, outstanding: int):
        self.config = config
        self.channels = channels
        self.outstanding = outstanding
        super().__init__({
            "i_burst": In(burst_signature(config)).array(channels),
            "o_beat": Out(beat_signature(config)).array(channels),
            "axi": Out(AxiReadSignature(config)),
            "hold": In(1),
            "halt": In(1),
            "idle": Out(1),
            "error": Out(channels),
        })

    def elaborate(self, platform):
        m = Module()
        owner = data.StructLayout({"channel": range(max(2, self.channels)), "last": 1})
        m.submodules.order = order = SyncFIFO(width=owner.size, depth=self.outstanding)
        self._address(m, order, owner)
        self._data(m, order, owner)
        m.d.comb += self.idle.eq(order.level == 0)
        return m

    def _address(self, m, order, owner):
        axi = self.axi
        m.d.comb += [
            axi.arid.eq(0),
            axi.arsize.eq(exact_log2(self.config.axi_bytes)),
            axi.arburst.eq(BURST_INCR),
            axi.arcache.eq(CACHE_MODIFIABLE_BUFFERABLE),
            axi.arprot.eq(0),
        ]
        # Round robin: the first that offers a burst after the channel that had the last one.
        valid = Cat(burst.valid for burst in self.i_burst)
        previous = Signal(range(max(2, self.channels)))
        chosen = Signal.like(previous)
        with m.Switch(previous):
            for p in range(self.channels):
                with m.Case(p):
                    for offset in range(self.channels, 0, -1):
                        candidate = (p + offset) % self.channels
                        with m.If(valid[candidate]):
                            m.d.comb += chosen.eq(candidate)

        raise_it = Signal()
        entry = Signal(owner)
        m.d.comb += raise_it.eq(
            valid.any() & (~axi.arvalid | axi.arready) & order.w_rdy & ~self.hold & ~self.halt & ~self.error.any()
        )
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        for i, burst in enumerate(self.i_burst):
            with m.If(raise_it & (chosen == i)):
                m.d.comb += [
                    burst.ready.eq(1),
                    entry.channel.eq(i),
                    entry.last.eq(burst.payload.last),
                ]
                m.d.sync += [
                    axi.arvalid.eq(1),
                    axi.araddr.eq(burst.payload.addr),
                    axi.arlen.eq(burst.payload.length),
                    previous.eq(i),
                ]
        m.d.comb += [order.w_en.eq(raise_it), order.w_data.eq(entry)]

    def _data(self, m, order, owner):
        axi = self.axi
        beat_valid, beat_last, beat_error = Signal(), Signal(), Signal()
        beat_data = Signal.like(axi.rdata)
        m.d.comb += axi.rready.eq(1)
        m.d.sync += [
            beat_valid.eq(axi.rvalid),
            beat_last.eq(axi.rlast),
            beat_error.eq(axi.rresp[1]),
            beat_data.eq(axi.rdata),
        ]
        to = data.View(owner, order.r_data)
        m.d.comb += order.r_en.eq(beat_valid & beat_last)
        for i, beat in enumerate(self.o_beat):
            mine = beat_valid & (to.channel == i)
            # Nothing follows an error: a hole in the data would go unnoticed.
            m.d.comb += [
                beat.valid.eq(mine & ~beat_error & ~self.error[i] & ~self.halt),
                beat.payload.data.eq(beat_data),
                beat.payload.last.eq(beat_last & to.last),
            ]
            with m.If(mine & beat_error):
                m.d.sync += self.error[i].eq(1)


def connect_channels(
    m: Module,
    bus: AxiReadBus,
    requests: Sequence[object],
    streams: Sequence[object],
    fifo_depths: Sequence[int],
) -> None:
    """Put a ReadChannel between each pair of request and data streams and the bus."""
    for i, depth in enumerate(fifo_depths):
        m.submodules[f"channel{i}"] = channel = ReadChannel(bus.config, depth)
        connect(m, flipped(requests[i]), channel.i_request)
        connect(m, channel.o_burst, bus.i_burst[i])
        connect(m, bus.o_beat[i], channel.i_beat)
        connect(m, channel.o_data, flipped(streams[i]))


class AxiReadPort(wiring.Component):
    """An AXI4 read port with one requester: any number of bus words per request, several bursts outstanding.

    Parameters
    ----------
    config : the accelerator's
    outstanding : bursts on the bus at once
    fifo_depth : data FIFO in beats; the port sustains one beat per cycle up to a memory latency of about
        ``fifo_depth - 16`` cycles, when ``outstanding`` bursts cover it too

    Members
    -------
    i_request : In(request_signature), bus-aligned address, at least one beat
    o_data : Out(read_data_signature), in order
    axi : Out(AxiReadSignature), INCR bursts of up to 16 beats that begin and end at multiples of 16 beats
        inside a request, so never cross a 4 KB boundary; registered outputs; rready is constant 1
    hold : In(1), no burst is raised in this cycle; all else goes on
    halt : In(1), no burst is raised any more, one that is stays until accepted; data that comes is dropped.
        The port is used again only after ``clear``
    idle : Out(1), no burst is outstanding
    error : Out(1), sticky until ``clear``: a beat came with SLVERR or DECERR. That beat and all later ones
        are dropped, and no burst is raised any more
    clear : In(1), forgets requests, data and error; has effect only in a cycle with ``idle``

    Latency: 4 cycles from request to arvalid, 3 from rvalid to data. Throughput: one beat per cycle, a burst
    every two cycles.

    Raises
    ------
    ConfigError : ``outstanding`` is less than 1 or ``fifo_depth`` less than a burst
    """

    def __init__(self, config: AcceleratorConfig, *, outstanding: int = 8, fifo_depth: int = 128):
        check_port(outstanding, fifo_depth)
        self.config = config
        self.outstanding = outstanding
        self.fifo_depth = fifo_depth
        super().__init__({
            "i_request": In(request_signature(config)),
            "o_data": Out(read_data_signature(config)),
            "axi": Out(AxiReadSignature(config)),
            "hold": In(1),
            "halt": In(1),
            "idle": Out(1),
            "error": Out(1),
            "clear": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.bus = bus = AxiReadBus(self.config, 1, self.outstanding)
        connect_channels(m, bus, [self.i_request], [self.o_data], [self.fifo_depth])
        connect(m, bus.axi, flipped(self.axi))
        m.d.comb += [
            bus.hold.eq(self.hold), bus.halt.eq(self.halt), self.idle.eq(bus.idle), self.error.eq(bus.error),
        ]
        return ResetInserter(self.clear & self.idle)(m)
