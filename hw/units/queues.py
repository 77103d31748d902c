"""The experts' queues: which tokens go to each of them, and with what score."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import QUEUE_COUNT_LATENCY, QueueAppendSignature, QueueEntry, QueueReadSignature
from moevit.hw.units.arithmetic import delay
from moevit.isa.formats import COUNT, QUEUE
from moevit.numerics.route import MAX_EXPERTS

FIRST_ENTRY_LATENCY = 4  #: cycles from ``start`` to the first entry
ENTRY_CYCLES = 2  #: cycles from an entry to the next, when they are taken as they come
FAULT_LATENCY = 2  #: cycles from an append to ``fault``


class Queues(wiring.Component):
    """One list of entries per expert, all in one memory.

    Entries take the memory's places one after the other, whatever their queue. Beside each is a link to the
    next one of its queue, which is written when that one comes. Where a queue begins and ends and how many
    it holds is read and written in the same stage, so an append may follow one to the same queue at once; what
    ``clear`` has to change is only which queues hold anything.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    append : In(QueueAppendSignature())
    read : In(QueueReadSignature()), the loader's; a queue must not change while it is walked. ``start`` ends the
        walk before it: from the next cycle on, ``entries`` belongs to the new one. After the last entry
        nothing comes. ``queue`` need not stay.
    filled_queue : In(QUEUE)
    filled : Out(1), the queue of QUEUE_COUNT_LATENCY cycles ago is not empty
    fault : Out(1), one-cycle pulse: no room for an entry, which is dropped: all ``queue_entries`` are in use, or
        the queue's count is at its end

    Latency: an append (or ``clear``) is in the count, in ``filled`` and in the list for whoever asks in a later
    cycle than its own; FIRST_ENTRY_LATENCY from ``start`` to its first entry, FAULT_LATENCY to ``fault``.
    Throughput: an append a cycle; an entry every ENTRY_CYCLES cycles, two of them ahead.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "append": In(QueueAppendSignature()),
                "read": In(QueueReadSignature()),
                "filled_queue": In(QUEUE),
                "filled": Out(1),
                "fault": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        places = self.config.queue_entries
        self._place = range(places)
        m.submodules.entries = self._entries = Memory(shape=QueueEntry, depth=places, init=[])
        m.submodules.links = self._links = Memory(shape=self._place, depth=places, init=[])
        for name, shape in (("first", self._place), ("last", self._place), ("count", COUNT)):
            memory = Memory(shape=shape, depth=MAX_EXPERTS, init=[], attrs={"ram_style": "distributed"})
            m.submodules[name] = memory
            setattr(self, f"_{name}", memory)
        filled = self._append(m)
        self._read(m, filled)
        return m

    def _append(self, m) -> Signal:
        """Returns which queues hold anything."""
        places, a = self.config.queue_entries, self.append
        clear = delay(m, a.clear, 1, name="clear", reset=True)
        valid = delay(m, a.valid, 1, name="valid", reset=True)
        expert = delay(m, a.expert, 1, name="expert")
        entry = delay(m, a.entry, 1, name="entry")

        filled = Signal(MAX_EXPERTS)
        used = Signal(range(places + 1))
        last, count = self._last.read_port(domain="comb"), self._count.read_port(domain="comb")
        kept, place, is_first, full, take = Signal.like(filled), Signal.like(used), Signal(), Signal(), Signal()
        m.d.comb += [
            last.addr.eq(expert),
            count.addr.eq(expert),
            kept.eq(Mux(clear, 0, filled)),
            place.eq(Mux(clear, 0, used)),
            is_first.eq(~kept.bit_select(expert, 1)),
            full.eq(~clear & (used == places)),
            take.eq(valid & ~full),
        ]
        if places >= 1 << COUNT:
            m.d.comb += take.eq(valid & ~full & (is_first | ~count.data.all()))
        m.d.sync += [
            filled.eq(kept | (take << expert)),
            used.eq(place + take),
            self.fault.eq(valid & ~take),
        ]
        place = place[: (places - 1).bit_length()]
        for memory, enable, addr, value in (
            (self._entries, take, place, entry),
            (self._links, take & ~is_first, last.data, place),
            (self._first, take & is_first, expert, place),
            (self._last, take, expert, place),
            (self._count, take, expert, Mux(is_first, 1, count.data + 1)),
        ):
            port = memory.write_port()
            m.d.comb += [port.en.eq(enable), port.addr.eq(addr), port.data.eq(value)]
        return filled

    def _read(self, m, filled) -> None:
        read = self.read
        assert QUEUE_COUNT_LATENCY == 2
        queue, asked = (delay(m, q, 1, name="queue") for q in (read.queue, self.filled_queue))
        start = delay(m, read.start, 1, name="start", reset=True)
        first, count = self._first.read_port(domain="comb"), self._count.read_port(domain="comb")
        holds = filled.bit_select(queue, 1)
        now = Mux(holds, count.data, 0)
        m.d.comb += [first.addr.eq(queue), count.addr.eq(queue)]
        m.d.sync += [read.count.eq(now), self.filled.eq(filled.bit_select(asked, 1))]

        # The walk: an address, a cycle later the entry there and the next address. What is read goes to a
        # register and one behind it, so at most two may be under way or not taken yet.
        entry, link = self._entries.read_port(), self._links.read_port()
        left, address = Signal(COUNT), Signal(self._place)
        known, reading = Signal(), Signal()  # the address is; it was read
        ahead = Signal(range(3))
        take, issue = Signal(), Signal()
        m.d.comb += [
            take.eq(read.entries.valid & read.entries.ready),
            issue.eq(known & ~ahead[1] & left.any()),
            entry.addr.eq(address),
            link.addr.eq(address),
        ]
        second, second_valid = Signal(QueueEntry), Signal()
        out = read.entries
        m.d.sync += [reading.eq(issue), ahead.eq(ahead + issue - take), left.eq(left - issue)]
        with m.If(issue):
            m.d.sync += known.eq(0)
        with m.If(reading):
            m.d.sync += [known.eq(1), address.eq(link.data)]
        with m.If(take | ~out.valid):
            m.d.sync += [
                out.valid.eq(second_valid | reading),
                out.payload.eq(Mux(second_valid, second.as_value(), entry.data.as_value())),
                second_valid.eq(second_valid & reading),
            ]
        with m.Elif(reading):
            m.d.sync += second_valid.eq(1)
        with m.If(reading):
            m.d.sync += second.eq(entry.data)
        with m.If(read.start):
            m.d.sync += known.eq(0)
        with m.If(start):
            m.d.sync += [known.eq(1), address.eq(first.data), left.eq(now)]
        with m.If(read.start | start):
            m.d.sync += [reading.eq(0), ahead.eq(0), out.valid.eq(0), second_valid.eq(0)]
