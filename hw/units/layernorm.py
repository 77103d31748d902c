"""LayerNorm of rows on their way to the A tile."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import PARAMETER_READ_LATENCY, MemoryReadSignature, TileWriteSignature
from moevit.hw.units import arithmetic
from moevit.hw.units.arithmetic import MULTIPLY_LATENCY
from moevit.hw.units.rsqrt import RSQRT_LATENCY, Rsqrt
from moevit.isa.formats import COUNT
from moevit.numerics import fixed, layernorm, rsqrt

VALUE_WIDTH = 16
MEAN_WIDTH = VALUE_WIDTH + layernorm.MEAN_FRACTION + 1
SCALE_WIDTH = fixed.MULT_WIDTH + 1
DOWN_WIDTH = 6
LOG2_WIDTH = 4  #: of log2 of a length
BETA_SHIFT_WIDTH = 5

_WIDE_MULTIPLY = MULTIPLY_LATENCY + 1  # several DSPs each: a register more
_SCALE_SHIFT = arithmetic.round_shift_latency(LOG2_WIDTH, saturated=False)
#: cycles from a row's sums to its mean, scale and shift
STATISTICS_LATENCY = _WIDE_MULTIPLY + 2 + RSQRT_LATENCY + MULTIPLY_LATENCY + _SCALE_SHIFT
_NORMAL_LATENCY = 2 + MULTIPLY_LATENCY + arithmetic.round_shift_latency(DOWN_WIDTH, saturated=True)
QUEUE_LATENCY = 2  #: from a row's statistics to the other side of the queue
MAX_TILES = 7  #: tiles that may be on their way
_AFFINE_LATENCY = MULTIPLY_LATENCY + arithmetic.shift_latency(BETA_SHIFT_WIDTH) + 2
#: cycles from a word's read from the row buffer to its tile write
NORMALISE_LATENCY = _NORMAL_LATENCY + _AFFINE_LATENCY


def sums_latency(config: AcceleratorConfig) -> int:
    """Cycles from the last word of a row to the row's sums."""
    return MULTIPLY_LATENCY + arithmetic.tree_latency(config.columns) + 1


def layernorm_latency(config: AcceleratorConfig) -> int:
    """Cycles from the last word of a row in to its first tile write."""
    return sums_latency(config) + STATISTICS_LATENCY + QUEUE_LATENCY + 1 + NORMALISE_LATENCY


def row_buffer_words(config: AcceleratorConfig) -> int:
    """Words for a longest row and for all that arrives until it is read again."""
    longest = config.tile_depth // config.columns
    return 1 << ceil_log2(longest + max(longest, layernorm_latency(config) + 8))


def constants_layout(config: AcceleratorConfig) -> data.StructLayout:
    """What the unit must know of an instruction."""
    return data.StructLayout(
        {
            "length": COUNT,
            "last_word": range(config.tile_depth // config.columns),  # words of a row, less one
            "affine": 1,  # only gamma and beta
            "signed": 1,
            "inverse_mult": fixed.MULT_WIDTH,
            "inverse_shift": fixed.SHIFT_WIDTH,
            "epsilon": layernorm.EPSILON_WIDTH,
            "output_shift": 5,
            "norm_base": range(config.norm_words),  # the row's first parameter word
        }
    )


def place_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Where a row goes, and whether it is the first or the last of its tile."""
    return data.StructLayout({"row": range(config.rows), "buffer": 1, "first_row": 1, "last_row": 1})


class LayerNormUnit(wiring.Component):
    """Normalises rows of int16; lanes are the C elements of a word.

    Words come in whenever they come and cannot be stalled. They are kept in a row buffer while the sums of
    their row are formed; the row's mean and scale follow from a pipeline and wait in a queue for their turn;
    then the row is read again, normalised and written. There are no bubbles: rows follow each other as fast
    as they came. Only the first row of a tile may have to wait longer, for a free A-tile buffer.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    constants : constants_layout; must not change from 3 cycles before the first word until the last write
    i_valid, i_data : In(1), In(2*8*C), a pair of words: the elements' low bytes, then their high bytes
    i_first, i_last : first and last word of a row
    i_place : place_layout
    norm : Out(MemoryReadSignature), gamma and beta
    freed : Out(1), a word has left the row buffer, which holds ``row_buffer_words``; the source counts, and
        has no more than MAX_TILES tiles on their way
    go : In(1), a buffer is free for a tile's first row
    begin : Out(1), a tile's first row has taken it
    hold : In(1), no word may leave the row buffer in this cycle; nothing is lost
    waiting : Out(1), nothing is read because a tile's first row waits for ``go``
    o_tile, filled : Out(TileWriteSignature), Out(1): with the last write of a tile

    Numerics: ``numerics.layernorm.layernorm``; with ``affine``, ``numerics.layernorm.affine`` of the row.
    Latency: ``layernorm_latency(config)`` cycles from a row's last word to its first write (tiny 56,
    zcu104 58), if nothing is before it and a buffer is free.
    Throughput: one word per cycle in and out, rows of one word included, less one out for each cycle of ``hold``.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "constants": In(constants_layout(config)),
                "i_valid": In(1),
                "i_data": In(2 * config.columns * 8),
                "i_first": In(1),
                "i_last": In(1),
                "i_place": In(place_layout(config)),
                "norm": Out(MemoryReadSignature(config.norm_words, 32 * config.columns)),
                "freed": Out(1),
                "go": In(1),
                "begin": Out(1),
                "hold": In(1),
                "waiting": Out(1),
                "o_tile": Out(TileWriteSignature(config)),
                "filled": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes = [
            Cat(self.i_data[8 * c : 8 * c + 8], self.i_data[8 * (config.columns + c) :][:8]).as_signed()
            for c in range(config.columns)
        ]
        total, squares = self._sums(m, lanes)
        mean, scale, down = self._statistics(m, total, squares)

        latency = sums_latency(config) + STATISTICS_LATENCY
        ready = arithmetic.delay(m, self.i_valid & self.i_last, latency, name="ready", reset=True)
        place = arithmetic.delay(m, self.i_place, latency, name="ready_place")
        row_layout = data.StructLayout(
            {
                "place": place_layout(config),
                "mean": signed(MEAN_WIDTH),
                "scale": SCALE_WIDTH,
                "down": DOWN_WIDTH,
            }
        )
        m.submodules.queue = queue = SyncFIFOBuffered(width=row_layout.size, depth=MAX_TILES * config.rows)
        entry = Signal(row_layout)
        m.d.comb += [entry.place.eq(place), queue.w_en.eq(ready), queue.w_data.eq(entry)]
        with m.If(self.constants.affine):  # (16 * x - 0) * 1 / 2**4 is x
            m.d.comb += [entry.mean.eq(0), entry.scale.eq(1), entry.down.eq(layernorm.MEAN_FRACTION)]
        with m.Else():
            m.d.comb += [entry.mean.eq(mean), entry.scale.eq(scale), entry.down.eq(down)]

        reading, word, row = self._second_pass(m, queue, row_layout)
        values = self._row_buffer(m, lanes, reading)
        normals = self._normalise(m, values, row.mean, row.scale, row.down)
        outputs = self._affine(m, normals, reading, word)

        write = Signal(
            data.StructLayout({"place": place.shape(), "word": self.o_tile.word.shape(), "last": 1})
        )
        m.d.comb += [
            write.place.eq(row.place),
            write.word.eq(word),
            write.last.eq(word == self.constants.last_word),
        ]
        write = arithmetic.delay(m, write, NORMALISE_LATENCY, name="write")
        valid = arithmetic.delay(m, reading, NORMALISE_LATENCY, name="write_valid", reset=True)
        m.d.comb += [
            self.freed.eq(reading),
            self.o_tile.valid.eq(valid),
            self.o_tile.buffer.eq(write.place.buffer),
            self.o_tile.row.eq(write.place.row),
            self.o_tile.word.eq(write.word),
            self.o_tile.data.eq(Cat(outputs)),
            self.filled.eq(valid & write.last & write.place.last_row),
        ]
        return m

    def _sums(self, m: Module, lanes):
        """Sum and sum of squares of a row, valid in the cycle ``sums_latency`` after its last word."""
        columns = self._config.columns
        tail = self.constants.length[: exact_log2(columns)]
        mask = Signal(columns)  # of a row's last word
        m.d.sync += mask.eq(Cat((tail == 0) | (c < tail) for c in range(columns)))
        masked = [Mux(self.i_last & ~mask[c], 0, lane).as_signed() for c, lane in enumerate(lanes)]
        products = [
            arithmetic.multiply(m, x, x, name=f"square_{c}")[: 2 * VALUE_WIDTH - 1]
            for c, x in enumerate(masked)
        ]
        inputs = [arithmetic.delay(m, x, 1, name=f"masked_{c}") for c, x in enumerate(masked)]
        depth = arithmetic.tree_latency(columns)
        word_total = arithmetic.delay(
            m, arithmetic.adder_tree(m, inputs, name="total"), MULTIPLY_LATENCY - 1, name="word_total"
        )
        word_squares = arithmetic.adder_tree(m, products, name="squares")

        valid = arithmetic.delay(m, self.i_valid, MULTIPLY_LATENCY + depth, name="sum_valid", reset=True)
        first = arithmetic.delay(m, self.i_first, MULTIPLY_LATENCY + depth, name="sum_first")
        total, squares = Signal(signed(COUNT + VALUE_WIDTH)), Signal(COUNT + 2 * VALUE_WIDTH - 2)
        with m.If(valid):
            m.d.sync += [
                total.eq(Mux(first, 0, total) + word_total),
                squares.eq(Mux(first, 0, squares) + word_squares),
            ]
        return total, squares

    def _statistics(self, m: Module, total, squares):
        """Mean, scale and shift of the row, STATISTICS_LATENCY cycles after its sums."""
        constants = self.constants
        log2_length, mean_shift = Signal(LOG2_WIDTH), Signal(fixed.SHIFT_WIDTH)
        for i in range(COUNT):
            with m.If(constants.length[i]):
                m.d.sync += log2_length.eq(i)
        below = constants.inverse_shift < layernorm.MEAN_FRACTION
        m.d.sync += mean_shift.eq(Mux(below, 0, constants.inverse_shift - layernorm.MEAN_FRACTION))

        product = arithmetic.multiply(m, total, constants.inverse_mult, name="mean_product")
        mean = arithmetic.round_shift(m, product, mean_shift, name="mean")[:MEAN_WIDTH].as_signed()
        spent = MULTIPLY_LATENCY + arithmetic.round_shift_latency(fixed.SHIFT_WIDTH, saturated=False)
        mean = arithmetic.delay(m, mean, STATISTICS_LATENCY - spent, name="mean")

        width = rsqrt.INPUT_WIDTH
        scaled = arithmetic.delay(
            m, arithmetic.multiply(m, squares, constants.length, name="scaled"), 1, name="scaled_4"
        )
        square = arithmetic.delay(m, arithmetic.multiply(m, total, total, name="square"), 1, name="square_4")
        difference = arithmetic.delay(m, (scaled - square)[:width], 1, name="difference")
        variance = arithmetic.delay(m, (difference + constants.epsilon)[:width], 1, name="variance")
        m.submodules.rsqrt = unit = Rsqrt()
        m.d.comb += unit.x.eq(variance)

        mantissa = arithmetic.multiply(m, unit.mantissa, constants.length, name="scale_product")
        scale = arithmetic.round_shift(m, mantissa, log2_length, name="scale")[:SCALE_WIDTH]
        excess = unit.shift - log2_length + (layernorm.MEAN_FRACTION - layernorm.NORMAL_FRACTION)
        excess = arithmetic.delay(m, excess, 1, name="excess")
        down = arithmetic.delay(
            m, Mux(excess < 0, 0, excess)[:DOWN_WIDTH], MULTIPLY_LATENCY + _SCALE_SHIFT - 1, name="down"
        )
        return mean, scale, down

    def _second_pass(self, m: Module, queue, row_layout):
        """Reads the words of one row of the queue after another; returns what belongs to each read."""
        active, reading = Signal(), Signal()
        word, row = Signal.like(self.constants.last_word), Signal(row_layout)
        head = data.View(row_layout, queue.r_data)
        allowed = ~head.place.first_row | self.go
        over = ~active | (reading & (word == self.constants.last_word))
        m.d.comb += [
            reading.eq(active & ~self.hold),
            queue.r_en.eq(over & allowed),
            self.begin.eq(over & queue.r_rdy & head.place.first_row & self.go),
            self.waiting.eq(~active & queue.r_rdy & ~allowed),
        ]
        with m.If(over):
            m.d.sync += [active.eq(queue.r_rdy & allowed), word.eq(0), row.eq(head)]
        with m.Elif(reading):
            m.d.sync += word.eq(word + 1)
        return reading, word, row

    def _row_buffer(self, m: Module, lanes, reading):
        """The words that wait; returns the lanes of the word read, 2 cycles after ``reading``."""
        depth = row_buffer_words(self._config)
        m.submodules.row_buffer = memory = Memory(shape=VALUE_WIDTH * len(lanes), depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        write_at, read_at = Signal(range(depth)), Signal(range(depth))
        m.d.sync += [write_at.eq(write_at + self.i_valid), read_at.eq(read_at + reading)]
        m.d.comb += [
            write.en.eq(self.i_valid),
            write.addr.eq(write_at),
            write.data.eq(Cat(lanes)),
            read.addr.eq(read_at),
        ]
        word = arithmetic.delay(m, read.data, 1, name="row_word")
        return [word.word_select(c, VALUE_WIDTH).as_signed() for c in range(len(lanes))]

    def _normalise(self, m: Module, values, mean, scale, down):
        """(x - mean) * scale, from 2 cycles after the read to _NORMAL_LATENCY cycles after it."""
        mean, scale = (
            arithmetic.delay(m, mean, 2, name="row_mean"),
            arithmetic.delay(m, scale, 2, name="row_scale"),
        )
        down = arithmetic.delay(m, down, 2 + MULTIPLY_LATENCY, name="row_down")
        normals = []
        for c, x in enumerate(values):
            distance = Cat(Const(0, layernorm.MEAN_FRACTION), x).as_signed() - mean
            product = arithmetic.multiply(m, distance, scale, name=f"normal_product_{c}")
            normals.append(arithmetic.round_shift(m, product, down, name=f"normal_{c}", bits=VALUE_WIDTH))
        return normals

    def _affine(self, m: Module, normals, reading, word):
        """gamma and beta, rounding and saturation.

        A shift by s - 7 cuts nothing off beta * 2**(s - 7), so that beta need not be shifted up:
        ``round_shift(p + (beta << (s - 7)), s) == ((p >> (s - 7)) + beta + 64) >> 7``.
        """
        constants, config = self.constants, self._config
        address = Signal(range(config.norm_words))  # of the word being read
        m.d.comb += address.eq(constants.norm_base)
        following = Signal(range(config.norm_words))
        with m.If(reading):
            m.d.sync += following.eq(Mux(address == config.norm_words - 1, 0, address + 1))
        with m.If(word != 0):
            m.d.comb += address.eq(following)
        m.d.comb += self.norm.addr.eq(
            arithmetic.delay(m, address, _NORMAL_LATENCY - PARAMETER_READ_LATENCY, name="norm_address")
        )

        fraction = layernorm.BETA_FRACTION
        shift = Signal(BETA_SHIFT_WIDTH)
        m.d.sync += shift.eq(Mux(constants.output_shift < fraction, 0, constants.output_shift - fraction))
        outputs = []
        for c, normal in enumerate(normals):
            lane = self.norm.data.word_select(c, layernorm.GAMMA_WIDTH + layernorm.BETA_WIDTH)
            gamma, beta = lane[: layernorm.GAMMA_WIDTH].as_signed(), lane[layernorm.GAMMA_WIDTH :].as_signed()
            product = arithmetic.multiply(m, normal, gamma, name=f"affine_product_{c}")
            shifted = arithmetic.shift_right(m, product, shift, name=f"affine_{c}")
            spent = MULTIPLY_LATENCY + arithmetic.shift_latency(BETA_SHIFT_WIDTH)
            beta = arithmetic.delay(m, beta, spent, name=f"beta_{c}")
            total = arithmetic.delay(
                m, (shifted + beta + (1 << (fraction - 1))) >> fraction, 1, name=f"affine_total_{c}"
            )
            clamped = Mux(
                constants.signed,
                arithmetic.saturate(total, 8).as_unsigned(),
                arithmetic.saturate(total, 8, signed=False),
            )
            outputs.append(arithmetic.delay(m, clamped[:8], 1, name=f"output_{c}"))
        return outputs
