"""In-order retirement: counts finished instructions in program order, whatever order the units finish in."""

from amaranth import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from moevit.config import COMPUTE_QUEUE_DEPTH, DMA_QUEUE_DEPTH, AcceleratorConfig

#: Instructions between dispatch and retirement. More than the queues and the pipelines behind them hold, so
#: that dispatch rarely waits for an older instruction of the other unit.
ORDER_DEPTH = 4 * (COMPUTE_QUEUE_DEPTH + DMA_QUEUE_DEPTH)

NUMBER_WIDTH = 24  #: bits of an instruction's number in its program, as wide as BEGIN's count
RETIRED_WIDTH = 16  #: bits of the retired count that wait fields are compared with


class Unit(enum.Enum, shape=1):
    """Who executes an instruction that retires."""

    COMPUTE = 0
    DMA = 1


class Dispatched(data.Struct):
    """What retirement must know of an instruction."""

    unit: Unit
    number: NUMBER_WIDTH  #: in the program; BEGIN is 0


class Retirement(wiring.Component):
    """Counts retired instructions in program order, and remembers which ones are unfinished.

    Each unit finishes its own instructions in order, so one credit counter per unit and one FIFO of units are
    enough: the oldest instruction retires when its unit has a credit.

    Parameters
    ----------
    config : AcceleratorConfig
        Only for uniformity; nothing here depends on it.

    Members
    -------
    i_order : In(stream of Dispatched)
        Each retiring instruction as it is dispatched; not ready while ``ORDER_DEPTH`` are unretired.
    compute_done, dma_done : In(1)
        One pulse per instruction that the unit has finished.
    retire : Out(1)
        An instruction retires; ``retired`` counts it in the next cycle.
    retired : Out(16)
        Retired since reset, wraps: what ``wait`` fields are compared with.
    retired_total : Out(24)
        The same without the wrap.
    empty : Out(1)
        Everything that was dispatched has retired.
    oldest, oldest_compute, oldest_dma : Out(24)
        Number of the oldest instruction that has not retired, or is unfinished in that unit; where there is
        none, of the last one dispatched. An error is attributed to these.

    Latency
    -------
    ``retired`` rises one cycle after the pulse of the oldest instruction.

    Throughput
    ----------
    One dispatch and one retirement per cycle.
    """

    i_order: In(stream.Signature(Dispatched))
    compute_done: In(1)
    dma_done: In(1)
    retire: Out(1)
    retired: Out(RETIRED_WIDTH)
    retired_total: Out(NUMBER_WIDTH)
    empty: Out(1)
    oldest: Out(NUMBER_WIDTH)
    oldest_compute: Out(NUMBER_WIDTH)
    oldest_dma: Out(NUMBER_WIDTH)

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.order = order = SyncFIFO(width=Dispatched.as_shape().size, depth=ORDER_DEPTH)
        push = self.i_order.valid & self.i_order.ready
        newest = Signal(NUMBER_WIDTH)
        m.d.comb += [
            self.i_order.ready.eq(order.w_rdy),
            order.w_data.eq(self.i_order.payload),
            order.w_en.eq(self.i_order.valid),
            self.empty.eq(~order.r_rdy),
        ]
        with m.If(push):
            m.d.sync += newest.eq(self.i_order.payload.number)

        head = data.View(Dispatched, order.r_data)
        with m.If(order.r_rdy):
            m.d.comb += self.oldest.eq(head.number)
        with m.Else():
            m.d.comb += self.oldest.eq(newest)

        ready = []
        for unit, done, oldest in (
            (Unit.COMPUTE, self.compute_done, self.oldest_compute),
            (Unit.DMA, self.dma_done, self.oldest_dma),
        ):
            name = unit.name.lower()
            m.submodules[f"{name}_numbers"] = numbers = SyncFIFO(width=NUMBER_WIDTH, depth=ORDER_DEPTH)
            credit = Signal(range(ORDER_DEPTH + 1), name=f"{name}_credit")
            may_retire = Signal(name=f"{name}_may_retire")
            m.d.comb += [
                numbers.w_data.eq(self.i_order.payload.number),
                numbers.w_en.eq(push & (self.i_order.payload.unit == unit)),
                numbers.r_en.eq(done),
                oldest.eq(Mux(numbers.r_rdy, numbers.r_data, newest)),
                may_retire.eq(order.r_rdy & (head.unit == unit) & (done | (credit != 0))),
            ]
            m.d.sync += credit.eq(credit + done - may_retire)
            ready.append(may_retire)

        m.d.comb += [self.retire.eq(ready[0] | ready[1]), order.r_en.eq(self.retire)]
        m.d.sync += self.retired_total.eq(self.retired_total + self.retire)
        m.d.comb += self.retired.eq(self.retired_total)
        return m
