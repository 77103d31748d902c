"""The gate's scores: selected terms over their total, and what of that goes to the queues."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import QueueAppendSignature
from moevit.hw.units.arithmetic import MULTIPLY_LATENCY, delay, multiply, round_shift, round_shift_latency
from moevit.hw.units.exponential import TERM_WIDTH
from moevit.hw.units.reciprocal import RECIPROCAL_LATENCY, Reciprocal
from moevit.hw.units.route_select import TOTAL_WIDTH, Step
from moevit.isa.formats import COUNT, EXPERTS, QUEUE, TOP_K
from moevit.numerics.fixed import MULT_WIDTH
from moevit.numerics.route import MAX_TOP_K, SCORE_FRACTION, SCORE_WIDTH, RouteOrder

_PLACES_WIDTH = 5  # of a shift right that leaves SCORE_FRACTION bits: at most 20
_SCORE = 1 + MULTIPLY_LATENCY + round_shift_latency(_PLACES_WIDTH, saturated=True)

READY_LATENCY = 2 + RECIPROCAL_LATENCY + 1  #: cycles from a row's last pass to its first slot
APPEND_LATENCY = _SCORE + 1  #: cycles from a slot to its append


class RouteTile(data.Struct):
    """A row tile of a gate."""

    rows: 6  #: valid ones - 1
    columns: 6  #: words of a row - 1
    experts: EXPERTS
    top_k: TOP_K
    order: RouteOrder
    threshold: SCORE_WIDTH
    token: COUNT  #: of row 0
    clear: 1  #: empties the queues first
    last: 1  #: of the instruction
    bank: 1


class RouteScores(wiring.Component):
    """Brings the selected terms to scores and appends them, row by row, in the order of selection.

    Terms and reciprocals of two row tiles are kept, so that those of one are appended while those of the next
    come in.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    valid, step, expert, term, total : In, as RouteSelect gives them; the last pass is not the first
    tiles : In(RouteTile[2]), each constant from the first of its buffer's steps to ``tile_done``
    tile_done : Out(1), pulse: the older tile's last slot has been issued
    o_append : Out(QueueAppendSignature()); a slot is one of the k of a row, and appends unless its score is 0 or
        below the threshold
    done : Out(2), one bit per bank, beside an instruction's last slot in ``o_append``

    Numerics: ``numerics.route.route`` from the terms on. Latency: READY_LATENCY to a row's first slot if the
    rows before it are through, APPEND_LATENCY to its append. Throughput: a slot a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "step": In(Step),
                "expert": In(QUEUE),
                "term": In(TERM_WIDTH),
                "total": In(TOTAL_WIDTH),
                "tiles": In(data.ArrayLayout(RouteTile, 2)),
                "tile_done": Out(1),
                "o_append": Out(QueueAppendSignature()),
                "done": Out(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rows = self.config.rows
        style = {"ram_style": "distributed"}
        selected = data.StructLayout({"term": TERM_WIDTH, "expert": QUEUE})
        scale = data.StructLayout({"mantissa": MULT_WIDTH, "places": _PLACES_WIDTH})
        m.submodules.selected = selected = Memory(shape=selected, depth=2 * rows * MAX_TOP_K, init=[], attrs=style)
        m.submodules.scales = scales = Memory(shape=scale, depth=2 * rows, init=[], attrs=style)
        row = self.step.row[: (rows - 1).bit_length()]
        write = selected.write_port()
        m.d.comb += [
            write.en.eq(self.valid & self.step.counts),
            write.addr.eq(Cat(self.step.number, row, self.step.buffer)),
            write.data.term.eq(self.term),
            write.data.expert.eq(self.expert),
        ]
        ready = self._scales(m, scales, row)
        self._append(m, selected.read_port(), scales.read_port(), ready)
        return m

    def _scales(self, m, scales, row) -> Signal:
        """The reciprocal of each row's total; returns a pulse when the next row's is there."""
        rows = self.config.rows
        style = {"ram_style": "distributed"}
        m.submodules.kept = kept = Memory(shape=TOTAL_WIDTH, depth=rows, init=[], attrs=style)
        m.submodules.totals = totals = Memory(shape=TOTAL_WIDTH, depth=rows, init=[], attrs=style)
        sum_so_far, sum_new = kept.read_port(), kept.write_port()
        total, total_new = totals.read_port(), totals.write_port()

        # The sum of the selected terms, a cycle after each; the total of all is in its memory by then.
        valid, step = delay(m, self.valid, 1, name="valid_1", reset=True), delay(m, self.step, 1, name="step_1")
        row_1 = delay(m, row, 1, name="row_1")
        term = delay(m, Mux(self.step.counts, self.term, 0), 1, name="term_1")
        m.d.comb += [
            sum_so_far.addr.eq(row),
            sum_new.en.eq(valid),
            sum_new.addr.eq(row_1),
            sum_new.data.eq(Mux(step.first_pass, 0, sum_so_far.data) + term),
            total_new.en.eq(self.valid & self.step.second_pass),
            total_new.addr.eq(row),
            total_new.data.eq(self.total),
            total.addr.eq(row_1),
        ]
        selected = delay(m, sum_new.data, 1, name="selected_total")
        finished = delay(m, valid & step.last_pass, 1, name="finished", reset=True)
        order = delay(m, Mux(step.buffer, self.tiles[1].order, self.tiles[0].order), 1, name="order")
        m.submodules.reciprocal = reciprocal = Reciprocal()
        m.d.comb += reciprocal.x.eq(Mux(order == RouteOrder.SOFTMAX_TOPK, total.data, selected))

        scale, latency = scales.write_port(), RECIPROCAL_LATENCY
        ready = delay(m, finished, latency, name="ready", reset=True)
        m.d.comb += [
            scale.en.eq(ready),
            scale.addr.eq(delay(m, Cat(row_1, step.buffer), 1 + latency, name="scale_place")),
            scale.data.mantissa.eq(reciprocal.mantissa),
            scale.data.places.eq(reciprocal.shift - SCORE_FRACTION),
        ]
        return ready

    def _append(self, m, selected, scales, ready) -> None:
        rows = self.config.rows
        waiting = Signal(range(2 * rows + 1))  # rows of which all is known
        row, slot, buffer = Signal(range(rows)), Signal(TOP_K), Signal()
        tile = RouteTile(Mux(buffer, Value.cast(self.tiles[1]), Value.cast(self.tiles[0])))
        issue, row_done, last_row = Signal(), Signal(), Signal()
        m.d.comb += [
            issue.eq(waiting.any()),
            row_done.eq(issue & (slot + 1 >= tile.top_k)),
            last_row.eq(row == tile.rows),
            self.tile_done.eq(row_done & last_row),
            selected.addr.eq(Cat(slot[: (MAX_TOP_K - 1).bit_length()], row, buffer)),
            scales.addr.eq(Cat(row, buffer)),
        ]
        m.d.sync += waiting.eq(waiting + ready - row_done)
        with m.If(issue):
            m.d.sync += slot.eq(Mux(row_done, 0, slot + 1))
        with m.If(row_done):
            m.d.sync += [row.eq(Mux(last_row, 0, row + 1)), buffer.eq(buffer ^ last_row)]

        known = {
            "token": tile.token + row,
            "threshold": tile.threshold,
            "first": issue & tile.clear & (row == 0) & (slot == 0),
            "last": self.tile_done & tile.last,
            "bank": tile.bank,
        }
        known = {n: delay(m, v, _SCORE, name=n, reset=n in ("first", "last")) for n, v in known.items()}
        valid = delay(m, issue, _SCORE, name="slot_valid", reset=True)
        expert = delay(m, selected.data.expert, _SCORE - 1, name="slot_expert")

        product = multiply(m, selected.data.term, scales.data.mantissa, name="product")
        places = delay(m, scales.data.places, MULTIPLY_LATENCY, name="places")
        score = round_shift(m, product, places, name="score", bits=SCORE_WIDTH + 1)[:SCORE_WIDTH]  # not negative
        out = self.o_append
        m.d.sync += [
            out.clear.eq(known["first"]),
            out.valid.eq(valid & score.any() & (score >= known["threshold"])),
            out.expert.eq(expert),
            out.entry.token.eq(known["token"]),
            out.entry.score.eq(score),
            self.done.eq(Mux(known["last"], Cat(~known["bank"], known["bank"]), 0)),
        ]
