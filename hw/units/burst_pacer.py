"""Bandwidth for copies: while a DMA_IN reads, the weight ports take turns."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig

#: From one port's turn to the next one's. With bursts of 16 beats the ports have 1.6 bus words a cycle in all, and a
#: DMA_IN one more: what a ZCU104's memory gives.
PACE_CYCLES = 10
LINGER_CYCLES = 16  #: without a DMA_IN until the ports are free again; another one may be on its way


class BurstPacer(wiring.Component):
    """Holds the weight ports to a burst each PACE_CYCLES, one port after the other, while a DMA_IN is under way.

    A memory that serves all ports alike would give each 1 / (P + 1) of its bandwidth. In the beginning of a
    program that is wrong: the first layer waits for pixels, and most of the weights that fill the ring in the
    meantime are needed later. The first layer's own are needed too, so the ports are slowed down and not stopped.
    That they do not raise their bursts at the same time matters as much as how many they raise: what all of them
    want at once is shared by all.

    Parameters
    ----------
    config : the accelerator's; P is its ``weight_ports``

    Members
    -------
    reading : In(1), a DMA_IN is under way
    hold : Out(P), to the ports; registered

    Latency: 1 cycle from ``reading`` to ``hold``; the first turn is port 0's, PACE_CYCLES later.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({"reading": In(1), "hold": Out(config.weight_ports)})

    def elaborate(self, platform):
        m = Module()
        ports = self.config.weight_ports
        linger = Signal(range(LINGER_CYCLES + 1))
        wait, port = Signal(range(PACE_CYCLES)), Signal(range(max(2, ports)))
        with m.If(self.reading):
            m.d.sync += linger.eq(LINGER_CYCLES)
        with m.Elif(linger != 0):
            m.d.sync += linger.eq(linger - 1)
        with m.If(self.reading | (linger != 0)):
            m.d.sync += [wait.eq(wait + 1), self.hold.eq(~0)]
            with m.If(wait == PACE_CYCLES - 1):
                m.d.sync += [wait.eq(0), port.eq(Mux(port == ports - 1, 0, port + 1)), self.hold.eq(~(1 << port))]
        with m.Else():
            m.d.sync += [wait.eq(0), port.eq(0), self.hold.eq(0)]
        return m
