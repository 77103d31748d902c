"""On-chip memory that stands in for DRAM: AXI4 to the machine, 32-bit words to the host link."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import AxiReadSignature, AxiWriteSignature
from moevit.hw.units.axi_read import BURST_INCR

OKAY, DECERR = 0, 3
READ_LATENCY = 3  #: the command register, the memory, and a register behind it
READ_AHEAD = 16  #: beats of a read port that may be under way or waiting
HOST_BITS = 32


class HostMemorySignature(wiring.Signature):
    """One access of 32 bits at a time: taken when valid & ready; ``done`` comes some cycles later."""

    def __init__(self):
        super().__init__({
            "valid": Out(1), "ready": In(1), "write": Out(1), "addr": Out(32), "wdata": Out(HOST_BITS),
            "done": In(1), "error": In(1), "rdata": In(HOST_BITS),
        })


class BlockMemory(wiring.Component):
    """Block RAM from address 0 on, one access of a bus word a cycle, shared by everybody.

    Parameters
    ----------
    config : the machine's, whose bus it is
    size : bytes, a multiple of the bus word
    readers : AXI read ports, 1 or 2

    Members
    -------
    read : In(AxiReadSignature).array(readers)
    write : In(AxiWriteSignature)
    host : In(HostMemorySignature)

    The order of priority is host, write, then the readers in turn. A burst that is not INCR of whole, aligned bus words
    or that leaves the memory is answered with DECERR and does nothing; so is such an access of the host.

    Latency: 5 cycles from arvalid to rvalid. Throughput: one beat per cycle over all ports, one burst of a port after
    the other.
    """

    def __init__(self, config: AcceleratorConfig, size: int, readers: int):
        if size <= 0 or size % config.axi_bytes:
            raise ValueError(f"a memory of {size} bytes does not consist of words of {config.axi_bytes}")
        if not 1 <= readers <= 2:
            raise ValueError(f"one reader or two, not {readers}")
        self.config = config
        self.words = size // config.axi_bytes
        self.readers = readers
        super().__init__({
            "read": In(AxiReadSignature(config)).array(readers),
            "write": In(AxiWriteSignature(config)),
            "host": In(HostMemorySignature()),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        width, lanes = config.axi_data_width, config.axi_bytes
        m.submodules.memory = memory = Memory(shape=unsigned(width), depth=self.words, init=[])
        write_port, read_port = memory.write_port(granularity=8), memory.read_port()

        # Who comes next; everything about the access goes through one register.
        clients = self.readers + 2  # host, write, readers
        wants, takes = Signal(clients), Signal(clients)
        command = data.StructLayout({"address": range(self.words), "enable": lanes, "data": width})
        chosen, register = Signal(command), Signal(command)
        turn = Signal()  # the reader that came last
        host, write, *readers = range(clients)
        m.d.comb += [
            takes[host].eq(wants[host]),
            takes[write].eq(wants[write] & ~wants[host]),
        ]
        free = ~wants[host] & ~wants[write]
        for i, reader in enumerate(readers):
            other = Cat(wants[r] for r in readers if r != reader)
            m.d.comb += takes[reader].eq(free & wants[reader] & ~(other.any() & (turn == i)))
        m.d.sync += register.eq(chosen)
        m.d.comb += [
            read_port.addr.eq(register.address), write_port.addr.eq(register.address),
            write_port.en.eq(register.enable), write_port.data.eq(register.data),
            read_port.en.eq(~register.enable.any()),
        ]
        output = Signal(width)
        m.d.sync += output.eq(read_port.data)

        self._host(m, wants[host], takes[host], chosen, output)
        self._write(m, wants[write], takes[write], chosen)
        for i, reader in enumerate(readers):
            with m.If(takes[reader]):
                m.d.sync += turn.eq(i)
            self._read(m, i, wants[reader], takes[reader], chosen, output)
        return m

    def _refused(self, address, beats, burst, size):
        """Whether a burst may not be; ``beats`` is one less than it has."""
        log2 = exact_log2(self.config.axi_bytes)
        last = (address >> log2) + beats
        aligned = ~address[:log2].any() if log2 else C(1)
        return (last >= self.words) | ~aligned | (burst != BURST_INCR) | (size != log2)

    def _host(self, m, wants, takes, chosen, output):
        host = self.host
        lanes = self.config.axi_data_width // HOST_BITS
        select = exact_log2(HOST_BITS // 8)
        lane = host.addr[select : select + exact_log2(lanes)]
        word = host.addr[select + exact_log2(lanes) :]
        bad = (word >= self.words) | host.addr[:select].any()
        pipeline = Signal(READ_LATENCY)
        failed = Signal()
        busy = Signal()
        m.d.comb += [
            wants.eq(host.valid & ~busy), host.ready.eq(takes), host.done.eq(pipeline[-1]), host.error.eq(failed),
            host.rdata.eq(output.word_select(lane, HOST_BITS)),
        ]
        m.d.sync += pipeline.eq(Cat(takes, pipeline))
        with m.If(takes):
            m.d.sync += [failed.eq(bad), busy.eq(1)]
            m.d.comb += [
                chosen.address.eq(word),
                chosen.data.eq(host.wdata.replicate(lanes)),
                chosen.enable.eq(Mux(host.write & ~bad, ((1 << HOST_BITS // 8) - 1) << (lane << select), 0)),
            ]
        with m.If(host.done):
            m.d.sync += busy.eq(0)

    def _write(self, m, wants, takes, chosen):
        axi = self.write
        active, refused, address = Signal(), Signal(), Signal(range(self.words))
        m.d.comb += [
            axi.awready.eq(~active & ~axi.bvalid),
            axi.wready.eq(takes),
            wants.eq(active & axi.wvalid),
            axi.bresp.eq(Mux(refused, DECERR, OKAY)),
        ]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [
                active.eq(1),
                address.eq(axi.awaddr >> exact_log2(self.config.axi_bytes)),
                refused.eq(self._refused(axi.awaddr, axi.awlen, axi.awburst, axi.awsize)),
                axi.bid.eq(axi.awid),
            ]
        with m.If(takes):
            m.d.comb += [
                chosen.address.eq(address),
                chosen.data.eq(axi.wdata),
                chosen.enable.eq(Mux(refused, 0, axi.wstrb)),
            ]
            m.d.sync += address.eq(address + 1)
            with m.If(axi.wlast):
                m.d.sync += [active.eq(0), axi.bvalid.eq(1)]
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += axi.bvalid.eq(0)

    def _read(self, m, index, wants, takes, chosen, output):
        axi = self.read[index]
        active, refused, address = Signal(), Signal(), Signal(range(self.words))
        left = Signal(8)  # beats after the next
        room = Signal(range(READ_AHEAD + 1), init=READ_AHEAD)
        tag = data.StructLayout({"valid": 1, "last": 1, "refused": 1})
        tags = [Signal(tag, name=f"tag{index}_{i}") for i in range(READ_LATENCY)]
        beat = data.StructLayout({"data": len(output), "last": 1, "refused": 1})
        m.submodules[f"beats{index}"] = fifo = SyncFIFO(width=beat.size, depth=READ_AHEAD)
        m.d.comb += [axi.arready.eq(~active), wants.eq(active & room.any())]
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += [
                active.eq(1),
                address.eq(axi.araddr >> exact_log2(self.config.axi_bytes)),
                left.eq(axi.arlen),
                refused.eq(self._refused(axi.araddr, axi.arlen, axi.arburst, axi.arsize)),
            ]
        with m.If(takes):
            m.d.comb += chosen.address.eq(address)
            m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
            with m.If(left == 0):
                m.d.sync += active.eq(0)
        m.d.sync += [
            tags[0].valid.eq(takes),
            tags[0].last.eq(left == 0),
            tags[0].refused.eq(refused),
            *(after.eq(before) for before, after in pairwise(tags)),
        ]
        arrived, given = Signal(beat), data.View(beat, fifo.r_data)
        m.d.comb += [
            arrived.data.eq(output),
            arrived.last.eq(tags[-1].last),
            arrived.refused.eq(tags[-1].refused),
            fifo.w_en.eq(tags[-1].valid),
            fifo.w_data.eq(arrived),
            axi.rvalid.eq(fifo.r_rdy),
            axi.rdata.eq(given.data),
            axi.rlast.eq(given.last),
            axi.rresp.eq(Mux(given.refused, DECERR, OKAY)),
            fifo.r_en.eq(axi.rready),
        ]
        m.d.comb += axi.rid.eq(0)  # the machine's only one
        m.d.sync += room.eq(room - takes + (axi.rvalid & axi.rready))
