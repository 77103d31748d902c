"""The board's end of the serial host link: takes frames, does what they say, answers."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit import frames
from moevit.boards.ulx3s.gateware.crc import Crc
from moevit.boards.ulx3s.gateware.memory import HOST_BITS, HostMemorySignature
from moevit.boards.ulx3s.gateware.uart import Receiver, Transmitter
from moevit.hw.interfaces import AxiLiteSignature
from moevit.registers import ADDRESS_WIDTH

HEADER_BYTES = frames.REQUEST_HEADER.size
ANSWER_BYTES = frames.ANSWER_HEADER.size
WORD_SELECT = exact_log2(frames.WORD_BYTES)
COUNT_WIDTH = frames.MAX_WORDS.bit_length()


class HostLink(wiring.Component):
    """Frames of :mod:`moevit.frames` on a serial line.

    Parameters
    ----------
    divisor : cycles of a bit
    info : the words of ``frames.Info``
    idle_bits : bit times without a byte after which a frame is given up

    Members
    -------
    rx : In(1), tx : Out(1)
        The line, idle when high.
    axil : Out(AxiLiteSignature), memory : Out(HostMemorySignature)
        What it reads and writes, a word at a time.
    active : Out(1)
        A frame is being received, done or answered.

    A write is done when all of its frame has come and its CRC is right. Between a request's last bit and its answer's
    first are some 15 cycles and those of the accesses.
    """

    def __init__(self, divisor: int, info: dict[frames.Info, int], idle_bits: int = frames.IDLE_BITS):
        self.divisor, self.idle_cycles = divisor, divisor * idle_bits
        self.info = [info[index] for index in frames.Info]
        super().__init__({
            "rx": In(1, init=1), "tx": Out(1, init=1), "axil": Out(AxiLiteSignature(ADDRESS_WIDTH)),
            "memory": Out(HostMemorySignature()), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = Receiver(self.divisor)
        m.submodules.transmitter = transmitter = Transmitter(self.divisor)
        m.submodules.crc = crc = Crc()
        # The payload of a write until its CRC has come, and of a read until it is whole.
        m.submodules.payload = payload = Memory(shape=HOST_BITS, depth=frames.MAX_WORDS, init=[])
        store, fetch = payload.write_port(), payload.read_port()
        m.d.comb += [receiver.line.eq(self.rx), self.tx.eq(transmitter.line)]

        header = Signal(8 * HEADER_BYTES)
        sequence, operation, count = (header.word_select(i, 8) for i in range(3))
        address = header[24:]
        write, space = operation[0], operation[1:3]
        index = Signal(range(frames.MAX_WORDS + 1))  # word of the payload
        place = Signal(WORD_SELECT + 1)  # byte of a word, of the header, or of the CRC
        word = Signal(HOST_BITS)
        status = Signal(8)
        quiet = Signal(range(self.idle_cycles + 1))  # cycles since a byte
        last_sequence, last_status, repeatable = Signal(8), Signal(8), Signal()
        last_word = index + 1 == count[:COUNT_WIDTH]

        m.d.sync += quiet.eq(quiet + 1)
        m.d.comb += [
            fetch.en.eq(1), fetch.addr.eq(index),
            store.addr.eq(index), store.data.eq(word),
            self.memory.addr.eq(address), self.memory.write.eq(write), self.memory.wdata.eq(word),
            self.axil.awaddr.eq(address), self.axil.araddr.eq(address), self.axil.wdata.eq(word),
            self.axil.wstrb.eq(0xF),
            crc.data.eq(receiver.data),
        ]

        with m.FSM() as machine:
            m.d.comb += self.active.eq(~machine.ongoing("HUNT"))
            with m.State("HUNT"):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [place.eq(0), index.eq(0), quiet.eq(0)]
                with m.If(receiver.valid & (receiver.data == frames.SYNC_REQUEST)):
                    m.next = "HEADER"
            with m.State("LOST"):  # what comes now cannot be told from a frame's inside
                with m.If(receiver.valid | receiver.broken):
                    m.d.sync += quiet.eq(0)
                with m.If(quiet == self.idle_cycles):
                    m.next = "HUNT"
            with m.State("HEADER"):
                with m.If(receiver.valid):
                    m.d.comb += crc.valid.eq(1)
                    m.d.sync += [header.eq(Cat(header[8:], receiver.data)), place.eq(place + 1)]
                    with m.If(place == HEADER_BYTES - 1):
                        m.d.sync += place.eq(0)
                        m.next = "CHECK HEADER"
                self._give_up(m, receiver, quiet)
            with m.State("CHECK HEADER"):
                with m.If((count == 0) | (count > frames.MAX_WORDS)):
                    m.next = "LOST"
                with m.Else():
                    m.next = "CRC"
                    with m.If(write):
                        m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                with m.If(receiver.valid):
                    m.d.comb += crc.valid.eq(1)
                    m.d.sync += [word.eq(Cat(word[8:], receiver.data)), place.eq(place + 1)]
                    with m.If(place == frames.WORD_BYTES - 1):
                        m.next = "STORE PAYLOAD"
                self._give_up(m, receiver, quiet)
            with m.State("STORE PAYLOAD"):
                m.d.comb += store.en.eq(1)
                m.d.sync += [place.eq(0), index.eq(index + 1)]
                m.next = "PAYLOAD"
                with m.If(last_word):
                    m.next = "CRC"
            with m.State("CRC"):
                with m.If(receiver.valid):
                    m.d.comb += crc.valid.eq(1)
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == frames.CRC_BYTES - 1):
                        m.next = "CHECK"
                self._give_up(m, receiver, quiet)
            with m.State("CHECK"):
                m.d.sync += [index.eq(0), place.eq(0), status.eq(frames.Status.OK)]
                known = (operation >> 3 == 0) & (space <= frames.Space.INFO)
                known &= ~((space == frames.Space.INFO) & write)
                with m.If(crc.value != 0):
                    m.next = "LOST"
                with m.Elif(write & repeatable & (sequence == last_sequence)):
                    m.d.sync += status.eq(last_status)
                    m.next = "ANSWER"
                with m.Elif(~known | address[:WORD_SELECT].any()):
                    m.d.sync += status.eq(frames.Status.FORMAT)
                    m.next = "DONE"
                with m.Else():
                    m.next = "FETCH"
            with m.State("FETCH"):  # the payload's memory has a latency of one
                m.next = "ACCESS"
            with m.State("ACCESS"):
                with m.If(write):
                    m.d.sync += word.eq(fetch.data)
                with m.Switch(space):
                    with m.Case(frames.Space.REGISTERS):
                        m.next = "REGISTER"
                    with m.Case(frames.Space.MEMORY):
                        m.next = "MEMORY"
                    with m.Default():
                        m.next = "INFO"
            self._register(m, write, word, status, address)
            with m.State("MEMORY"):
                m.d.comb += self.memory.valid.eq(1)
                with m.If(self.memory.ready):
                    m.next = "MEMORY ANSWER"
            with m.State("MEMORY ANSWER"):
                with m.If(self.memory.done):
                    m.d.sync += word.eq(self.memory.rdata)
                    with m.If(self.memory.error):
                        m.d.sync += status.eq(frames.Status.BUS)
                    m.next = "NEXT"
            with m.State("INFO"):
                with m.Switch(address[WORD_SELECT:]):
                    for number, value in enumerate(self.info):
                        with m.Case(number):
                            m.d.sync += word.eq(value)
                    with m.Default():
                        m.d.sync += status.eq(frames.Status.BUS)
                m.next = "NEXT"
            with m.State("NEXT"):
                m.d.comb += store.en.eq(~write)
                m.d.sync += [address.eq(address + frames.WORD_BYTES), index.eq(index + 1)]
                m.next = "FETCH"
                with m.If(last_word | (status != frames.Status.OK)):
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.sync += [last_sequence.eq(sequence), last_status.eq(status), repeatable.eq(1)]
                m.next = "ANSWER"
            self._answer(m, transmitter, crc, fetch, word, sequence, status, write, count, index, place, last_word)
        return m

    def _give_up(self, m, receiver, quiet):
        """Inside a frame: no byte for a while, or a broken one, ends it."""
        with m.If(receiver.valid):
            m.d.sync += quiet.eq(0)
        with m.Elif(receiver.broken):
            m.d.sync += quiet.eq(0)
            m.next = "LOST"
        with m.Elif(quiet == self.idle_cycles):
            m.next = "HUNT"

    def _register(self, m, write, word, status, address):
        """An access over AXI4-Lite."""
        axil = self.axil
        address_sent, data_sent = Signal(), Signal()
        with m.State("REGISTER"):
            m.d.comb += [
                axil.awvalid.eq(write & ~address_sent),
                axil.wvalid.eq(write & ~data_sent),
                axil.arvalid.eq(~write & ~address_sent),
            ]
            with m.If(address >> ADDRESS_WIDTH):
                m.d.comb += [axil.awvalid.eq(0), axil.wvalid.eq(0), axil.arvalid.eq(0)]
                m.d.sync += status.eq(frames.Status.BUS)
                m.next = "NEXT"
            with m.Else():
                now_address = Mux(write, axil.awready, axil.arready)
                m.d.sync += [
                    address_sent.eq(address_sent | now_address),
                    data_sent.eq(data_sent | axil.wready),
                ]
                with m.If((address_sent | now_address) & (data_sent | axil.wready | ~write)):
                    m.next = "REGISTER ANSWER"
        with m.State("REGISTER ANSWER"):
            m.d.comb += [axil.bready.eq(write), axil.rready.eq(~write)]
            m.d.sync += [address_sent.eq(0), data_sent.eq(0)]
            with m.If(Mux(write, axil.bvalid, axil.rvalid)):
                with m.If(~write):
                    m.d.sync += word.eq(axil.rdata)
                with m.If(Mux(write, axil.bresp, axil.rresp)[1]):
                    m.d.sync += status.eq(frames.Status.BUS)
                m.next = "NEXT"

    def _answer(self, m, transmitter, crc, fetch, word, sequence, status, write, count, index, place, last_word):
        """The answer, byte by byte."""
        out = transmitter.i_data
        sent = out.valid & out.ready
        words = Mux(write | (status != frames.Status.OK), 0, count)
        with m.State("ANSWER"):
            m.d.comb += [out.valid.eq(1), out.payload.eq(frames.SYNC_ANSWER), crc.start.eq(1)]
            m.d.sync += [index.eq(0), place.eq(0)]
            with m.If(sent):
                m.next = "ANSWER HEADER"
        with m.State("ANSWER HEADER"):
            m.d.comb += [
                out.valid.eq(1), out.payload.eq(Array([sequence, status, words])[place]),
                crc.valid.eq(sent), crc.data.eq(out.payload),
            ]
            with m.If(sent):
                m.d.sync += place.eq(place + 1)
                with m.If(place == ANSWER_BYTES - 1):
                    m.d.sync += place.eq(0)
                    m.next = "ANSWER CRC"
                    with m.If(words != 0):
                        m.next = "ANSWER LOAD"
        with m.State("ANSWER FETCH"):
            m.next = "ANSWER LOAD"
        with m.State("ANSWER LOAD"):  # a register between block RAM, which is slow, and the CRC
            m.d.sync += word.eq(fetch.data)
            m.next = "ANSWER WORDS"
        with m.State("ANSWER WORDS"):
            m.d.comb += [
                out.valid.eq(1), out.payload.eq(word[:8]),
                crc.valid.eq(sent), crc.data.eq(out.payload),
            ]
            with m.If(sent):
                m.d.sync += [place.eq(place + 1), word.eq(word >> 8)]
                with m.If(place == frames.WORD_BYTES - 1):
                    m.d.sync += [place.eq(0), index.eq(index + 1)]
                    m.next = "ANSWER FETCH"
                    with m.If(last_word):
                        m.next = "ANSWER CRC"
        with m.State("ANSWER CRC"):
            m.d.comb += [out.valid.eq(1), out.payload.eq(Mux(place == 0, crc.value[8:], crc.value[:8]))]
            with m.If(sent):
                m.d.sync += place.eq(place + 1)
                with m.If(place == frames.CRC_BYTES - 1):
                    m.next = "HUNT"
