"""Reads rows of activation memory into an A tile, copied or normalised."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import (
    ACTIVATION_READ_LATENCY,
    SLOT_WIDTH,
    ActivationReadSignature,
    MemoryReadSignature,
    RowEntrySignature,
    TileWriteSignature,
)
from moevit.hw.units import arithmetic
from moevit.hw.units.layernorm import (
    MAX_TILES,
    LayerNormUnit,
    constants_layout,
    layernorm_latency,
    place_layout,
    row_buffer_words,
)
from moevit.hw.units.queue_rows import QueueRow
from moevit.isa.formats import ADDRESS, STRIDE

COPY_LATENCY = ACTIVATION_READ_LATENCY + 1  #: cycles from an accepted read to its tile write


def norm_latency(config: AcceleratorConfig) -> int:
    """Cycles from the accepted read of a row's last word to the row's first tile write, when normalising."""
    return ACTIVATION_READ_LATENCY + layernorm_latency(config) + 1


class RowLoader(wiring.Component):
    """Fills one A-tile buffer after another with rows that follow each other at a stride, or are listed.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    start : In(1), begins a tile; only while ``ready``, and to be copied, only if its buffer is free
    last_row, slot : the tile's last row and its number, of which bit 0 is its buffer, taken with ``start``
    load, base : with ``start``: the first row is at ``base``, else where the previous tile's rows ended
    stride : words between rows; constant until the tile's last read
    listed : rows are where ``i_rows`` says, in place of that; constant while ``busy``
    i_rows : stream of QueueRow, taken the cycle after its row has begun
    scatter, o_entry : the rows' queue entries are given, each 1 cycle after its row's first word has been asked
        for; constant while ``busy``
    wide : rows are int16 and go through LayerNorm; constant while ``busy``
    constants : constants_layout of the LayerNormUnit; ``last_word`` and ``wide`` rows' other fields must be
        constant from 3 cycles before the first ``start`` until ``busy`` falls
    act, norm : activation and norm memory
    o_tile, filled : Out(TileWriteSignature), Out(1): with the last write of each tile
    go, begin : a buffer is free; a tile that is normalised has taken it, with its first write still to come
    o_last : with the last write of each row, if ``wide``
    hold, entered : what is normalised may not go on in this cycle; a word has, and cannot be held any more
    ready : the reads of the previous tile have all been accepted
    busy : tiles are started that are not filled
    reads, seeks : a word's read is accepted; the place of the next row is not known yet
    waiting : nothing is read or written because a tile that is normalised waits for ``go``

    Numerics: a copy, or ``numerics.layernorm.layernorm`` or ``affine``.
    Latency: the first read is one cycle after ``start``; see COPY_LATENCY and ``norm_latency``.
    Throughput: one word (or pair, if wide) per cycle, and one cycle between tiles; listed rows of one word take
    2 cycles each. While rows are normalised, the reads of the next tiles go on, of up to MAX_TILES and as far as
    the row buffer holds them.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "last_row": In(range(config.rows)),
                "slot": In(SLOT_WIDTH),
                "load": In(1),
                "base": In(ADDRESS),
                "stride": In(STRIDE),
                "listed": In(1),
                "i_rows": In(stream.Signature(QueueRow)),
                "scatter": In(1),
                "o_entry": Out(RowEntrySignature(config)),
                "wide": In(1),
                "constants": In(constants_layout(config)),
                "act": Out(ActivationReadSignature(config)),
                "norm": Out(MemoryReadSignature(config.norm_words, 32 * config.columns)),
                "o_tile": Out(TileWriteSignature(config)),
                "filled": Out(1),
                "o_last": Out(1),
                "hold": In(1),
                "entered": Out(1),
                "go": In(1),
                "begin": Out(1),
                "ready": Out(1),
                "busy": Out(1),
                "reads": Out(1),
                "seeks": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, act, constants = self._config, self.act, self.constants
        m.submodules.layernorm = unit = LayerNormUnit(config)
        wiring.connect(m, wiring.flipped(self.norm), unit.norm)
        m.d.comb += unit.constants.eq(constants)

        accepted = Signal()
        m.d.comb += accepted.eq(act.valid & act.ready)
        request = self._requests(m, accepted, unit.freed)
        answer = arithmetic.delay(m, request, ACTIVATION_READ_LATENCY, name="answer")
        m.d.comb += [
            unit.i_valid.eq(act.data_valid & self.wide),
            unit.i_data.eq(act.data),
            unit.i_first.eq(answer.first),
            unit.i_last.eq(answer.last),
            unit.i_place.eq(answer.place),
        ]

        # Copied and normalised rows are never on their way together: ``wide`` is constant while busy.
        copied = act.data_valid & ~self.wide
        half = act.data.word_select(answer.odd, config.columns * 8)
        m.d.sync += [
            self.o_tile.valid.eq(copied | unit.o_tile.valid),
            self.o_tile.buffer.eq(Mux(self.wide, unit.o_tile.buffer, answer.place.buffer)),
            self.o_tile.row.eq(Mux(self.wide, unit.o_tile.row, answer.place.row)),
            self.o_tile.word.eq(Mux(self.wide, unit.o_tile.word, answer.word)),
            self.o_tile.data.eq(Mux(self.wide, unit.o_tile.data, half)),
            self.filled.eq((copied & answer.last & answer.place.last_row) | unit.filled),
            self.o_last.eq(unit.o_tile.word == constants.last_word),
        ]

        m.d.comb += [
            unit.go.eq(self.go),
            unit.hold.eq(self.hold),
            self.entered.eq(unit.freed),
            self.begin.eq(unit.begin),
            self.reads.eq(accepted),
            self.waiting.eq(unit.waiting & ~arithmetic.delay(m, accepted, 1, name="accepted", reset=True)),
        ]
        return m

    def _requests(self, m: Module, accepted, freed):
        """Reads the tile's rows word by word; returns what belongs to the read asked for in this cycle."""
        config, act, constants = self._config, self.act, self.constants
        request = Signal(
            data.StructLayout(
                {
                    "place": place_layout(config),
                    "word": range(config.tile_depth // config.columns),
                    "first": 1,
                    "last": 1,
                    "odd": 1,
                }
            )
        )
        active, located = Signal(), Signal()  # a tile is being read, and where its row is is known
        last_row, row = Signal.like(self.last_row), Signal.like(self.last_row)
        slot, word = Signal(SLOT_WIDTH), Signal.like(request.word)
        row_address, address = Signal(ADDRESS), Signal(ADDRESS)

        # words that are asked for and have not left the row buffer
        depth = row_buffer_words(config)
        held = Signal(range(depth + 1))
        tiles = Signal(range(MAX_TILES + 1))
        m.d.sync += [
            held.eq(held + (accepted & self.wide) - freed),
            tiles.eq(tiles + self.start - self.filled),
        ]

        m.d.comb += [
            self.busy.eq(tiles != 0),
            self.seeks.eq(active & ~located),
            self.ready.eq(~active & (tiles != MAX_TILES)),
            act.valid.eq(active & located & (held != depth)),
            act.pair.eq(address[1:]),
            request.place.row.eq(row),
            request.place.buffer.eq(slot[0]),
            request.place.first_row.eq(row == 0),
            request.place.last_row.eq(row == last_row),
            request.word.eq(word),
            request.first.eq(word == 0),
            request.last.eq(word == constants.last_word),
            request.odd.eq(address[0]),
        ]
        next_row = row_address + self.stride
        with m.If(self.start):
            m.d.sync += [
                active.eq(1),
                row.eq(0),
                word.eq(0),
                last_row.eq(self.last_row),
                slot.eq(self.slot),
            ]
            with m.If(self.load):
                m.d.sync += [row_address.eq(self.base), address.eq(self.base)]
        with m.Elif(accepted):
            with m.If(request.last):
                m.d.sync += [row_address.eq(next_row), address.eq(next_row), word.eq(0), row.eq(row + 1)]
                with m.If(request.place.last_row):
                    m.d.sync += active.eq(0)
            with m.Else():
                m.d.sync += [address.eq(address + Mux(self.wide, 2, 1)), word.eq(word + 1)]

        following = accepted & request.last & ~request.place.last_row
        self._listed_row(m, self.start | following | (active & ~located), located, address, slot, row)
        return request

    def _listed_row(self, m: Module, begins, located, address, slot, row) -> None:
        """The address of a row that ``begins``, unless it is known, and its entry."""
        # A row leaves the stream a cycle late, so that the memory's ready does not reach into it.
        used = Signal()
        here = self.i_rows.valid & ~used
        m.d.sync += used.eq(self.listed & begins & here)
        m.d.comb += self.i_rows.ready.eq(used)
        with m.If(begins):
            m.d.sync += located.eq(~self.listed | here)
            with m.If(self.listed):
                m.d.sync += address.eq(self.i_rows.payload.address)
        m.d.sync += [
            self.o_entry.valid.eq(used & self.scatter),
            self.o_entry.slot.eq(slot),
            self.o_entry.row.eq(row),
            self.o_entry.entry.eq(self.i_rows.payload.entry),
        ]
