"""Several requesters on one AXI4 read port."""

from collections.abc import Sequence

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from moevit.config import AcceleratorConfig
from moevit.errors import ConfigError
from moevit.hw.interfaces import AxiReadSignature, read_data_signature, request_signature
from moevit.hw.units.axi_read import AxiReadBus, check_port, connect_channels


class ReadMux(wiring.Component):
    """An AXI4 read port that several requesters share, burst by burst in turn.

    Each has a data FIFO of its own, in which room is reserved before a burst is raised. So data never waits
    on the bus and nobody is blocked by what another does not consume.

    Parameters
    ----------
    config : the accelerator's
    clients : how many requesters
    outstanding : bursts on the bus at once, of all together
    fifo_depth : each one's data FIFO in beats, or one number for all

    Members
    -------
    i_request : In(request_signature).array(clients)
    o_data : Out(read_data_signature).array(clients), in order for each
    error : Out(clients), one sticky bit each
    axi, halt, idle, clear : as for AxiReadPort; an error of one stops all

    Latency, Throughput: as for AxiReadPort; a burst every cycle when two or more have some.

    Raises
    ------
    ConfigError : a number is out of range
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        clients: int,
        *,
        outstanding: int = 16,
        fifo_depth: int | Sequence[int] = 128,
    ):
        self.config = config
        self.clients = clients
        self.outstanding = outstanding
        self.fifo_depths = [fifo_depth] * clients if isinstance(fifo_depth, int) else list(fifo_depth)
        if clients < 1:
            raise ConfigError(f"clients must be at least 1, not {clients!r}")
        if len(self.fifo_depths) != clients:
            raise ConfigError(f"fifo_depth must name {clients} depths, not {fifo_depth!r}")
        check_port(outstanding, min(self.fifo_depths))
        super().__init__({
            "i_request": In(request_signature(config)).array(clients),
            "o_data": Out(read_data_signature(config)).array(clients),
            "axi": Out(AxiReadSignature(config)),
            "halt": In(1),
            "idle": Out(1),
            "error": Out(clients),
            "clear": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.bus = bus = AxiReadBus(self.config, self.clients, self.outstanding)
        connect_channels(m, bus, self.i_request, self.o_data, self.fifo_depths)
        connect(m, bus.axi, flipped(self.axi))
        m.d.comb += [bus.halt.eq(self.halt), self.idle.eq(bus.idle), self.error.eq(bus.error)]
        return ResetInserter(self.clear & self.idle)(m)
