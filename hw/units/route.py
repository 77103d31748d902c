"""A gate: rows of logits to entries of the experts' queues."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import COLUMN_WIDTH, ROW_TILE_WIDTH, QueueAppendSignature
from moevit.hw.units.route_scores import APPEND_LATENCY, READY_LATENCY, RouteScores, RouteTile
from moevit.hw.units.route_select import RouteSelect, Step, pass_spacing, select_latency, word_count
from moevit.isa.formats import COUNT, EXPERTS, TOP_K
from moevit.numerics.fixed import MID_WIDTH
from moevit.numerics.route import SCORE_WIDTH, RouteOrder

_START = 2  # cycles from a row tile's last row to its first step

_MIN_PASSES = 2  # the second forms the sum


def tile_cycles(config: AcceleratorConfig, tiles: int, rows: int, top_k: int) -> int:
    """Cycles that the passes over a row tile take: between the ``freed`` of row tiles that wait."""
    spacing = max(rows * tiles, pass_spacing(config, tiles))
    return (max(top_k, _MIN_PASSES) - 1) * spacing + rows * tiles


def freed_latency(config: AcceleratorConfig, tiles: int, rows: int, top_k: int) -> int:
    """Cycles from the last row of a row tile to its ``freed``, when nothing is left of the one before."""
    return _START + tile_cycles(config, tiles, rows, top_k)


def done_latency(config: AcceleratorConfig, tiles: int, rows: int, top_k: int) -> int:
    """Cycles from the last row of a row tile to its last append, when nothing is left of the one before."""
    first_row = freed_latency(config, tiles, rows, top_k) - (rows - 1) * tiles - 1
    slots = max(rows * top_k, (rows - 1) * tiles + top_k)  # the rows' slots wait for rows, or for slots
    return first_row + select_latency(config) + READY_LATENCY + slots - 1 + APPEND_LATENCY


class Route(wiring.Component):
    """Selects each token's experts, scores them and appends the token to their queues.

    Logits of a row tile are kept and passed over once for each of the k, and at least twice. Two row tiles
    are kept: one is passed over while the next comes in; the appends of the one before may still be under
    way.

    Parameters
    ----------
    config : the accelerator's configuration; one lane per column, up to MAX_EXPERTS

    Members
    -------
    valid, row, row_tile, column, last_column, last_row, last, bank : In, a row of logits, as ``TileMeta`` says
    mid : In(signed MID_WIDTH each lane)
    order, top_k, experts, threshold, token, clear : In, of its instruction; columns from ``experts`` on do not
        count
    o_append : Out(QueueAppendSignature()), tokens in order, each one's experts in the order of selection; those
        with a score of 0 or below the threshold are left out. ``clear`` comes before an instruction's first
        append, even if there is none.
    freed : Out(1), pulse: the logits of the oldest row tile are no longer needed. At most two row tiles may be on
        their way here or not freed.
    done : Out(2), one bit per bank, a pulse beside the last append of an instruction, or where it would be
    busy : Out(1), a row tile has come and is not in the queues

    Numerics: ``numerics.route.route``. Latency: ``freed_latency`` and ``done_latency`` (config, column tiles,
    rows, k). Throughput: one row a cycle in; a row tile in ``tile_cycles``, and two in no less than one's way
    from the first step to the last slot.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "row": In(range(config.rows)),
                "row_tile": In(ROW_TILE_WIDTH),
                "column": In(COLUMN_WIDTH),
                "last_column": In(1),
                "last_row": In(1),
                "last": In(1),
                "bank": In(1),
                "mid": In(data.ArrayLayout(signed(MID_WIDTH), config.columns)),
                "order": In(RouteOrder),
                "top_k": In(TOP_K),
                "experts": In(EXPERTS),
                "threshold": In(SCORE_WIDTH),
                "token": In(COUNT),
                "clear": In(1),
                "o_append": Out(QueueAppendSignature()),
                "freed": Out(1),
                "done": Out(2),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.select = select = RouteSelect(self.config)
        m.submodules.scores = scores = RouteScores(self.config)
        connect(m, scores.o_append, flipped(self.o_append))
        m.d.comb += [
            scores.valid.eq(select.valid),
            scores.step.eq(select.o_step),
            scores.expert.eq(select.expert),
            scores.term.eq(select.term),
            scores.total.eq(select.total),
            self.done.eq(scores.done),
        ]
        arrived, come = self._arrive(m, select)
        self._passes(m, arrived, come, select, scores)
        return m

    def _arrive(self, m, select) -> tuple[data.View, Signal]:
        """Keeps the rows; returns what is known of the row tiles in both buffers, and a pulse for each."""
        config = self.config
        fill, come = Signal(), Signal()
        arrived = Signal(data.ArrayLayout(RouteTile, 2), reset_less=True)
        words = word_count(config)
        m.d.comb += [
            come.eq(self.valid & self.last_column & self.last_row),
            select.write.eq(self.valid & (self.column < words)),
            select.write_buffer.eq(fill),
            select.write_row.eq(self.row),
            select.write_column.eq(self.column),
            select.mid.eq(self.mid),
        ]
        tile = Signal(RouteTile)
        m.d.comb += [
            tile.rows.eq(self.row),
            tile.columns.eq(Mux(self.column < words, self.column, words - 1)),
            tile.token.eq(self.token + Cat(C(0, (config.rows - 1).bit_length()), self.row_tile)),
            tile.clear.eq(self.clear & (self.row_tile == 0)),
        ]
        same = ("experts", "top_k", "order", "threshold", "last", "bank")
        m.d.comb += [getattr(tile, name).eq(getattr(self, name)) for name in same]
        with m.If(come):
            m.d.sync += fill.eq(~fill)
            for buffer in range(2):
                with m.If(fill == buffer):
                    m.d.sync += Value.cast(arrived[buffer]).eq(tile)
        return arrived, come

    def _passes(self, m, arrived, come, select, scores) -> None:
        """The loops over passes, rows and words of the oldest row tile."""
        config = self.config
        waiting = Signal(range(3))  # row tiles that have come, and are not passed over yet
        pending = Signal(range(3))  # row tiles that are, and are not all appended
        load, valid, next_buffer = Signal(), Signal(), Signal()
        m.d.sync += [waiting.eq(waiting + come - load), pending.eq(pending + load - scores.tile_done)]
        tiles = Signal(data.ArrayLayout(RouteTile, 2), reset_less=True)
        tile, buffer = Signal(RouteTile, reset_less=True), Signal()
        number, row, column = Signal(TOP_K), Signal(6), Signal(6)
        last_column, last_row, last_pass = Signal(), Signal(), Signal()
        cooling = Signal(range(pass_spacing(config, word_count(config)) + 1))
        issue, row_done, pass_done, done = Signal(), Signal(), Signal(), Signal()
        at_start = (row == 0) & (column == 0)
        m.d.comb += [
            last_column.eq(column == tile.columns),
            last_row.eq(row == tile.rows),
            last_pass.eq((number != 0) & (number + 1 >= tile.top_k)),
            issue.eq(valid & ~(at_start & cooling.any())),
            row_done.eq(issue & last_column),
            pass_done.eq(row_done & last_row),
            done.eq(pass_done & last_pass),
            load.eq(waiting.any() & ~pending[1] & (~valid | done)),
        ]
        m.d.sync += self.freed.eq(done)
        with m.If(issue):
            m.d.sync += column.eq(Mux(last_column, 0, column + 1))
        with m.If(row_done):
            m.d.sync += row.eq(Mux(last_row, 0, row + 1))
        with m.If(pass_done):
            m.d.sync += number.eq(number + 1)
        with m.If(issue & at_start):
            m.d.sync += cooling.eq(tile.columns + (pass_spacing(config, 1) - 1))
        with m.Elif(cooling.any()):
            m.d.sync += cooling.eq(cooling - 1)
        oldest = RouteTile(Mux(next_buffer, Value.cast(arrived[1]), Value.cast(arrived[0])))
        with m.If(load):
            m.d.sync += [valid.eq(1), tile.eq(oldest), buffer.eq(next_buffer), next_buffer.eq(~next_buffer)]
            m.d.sync += [number.eq(0), cooling.eq(0)]
            for i in range(2):
                with m.If(next_buffer == i):
                    m.d.sync += Value.cast(tiles[i]).eq(oldest)
        with m.Elif(done):
            m.d.sync += valid.eq(0)

        step = Signal(Step)
        m.d.comb += [
            step.buffer.eq(buffer),
            step.row.eq(row),
            step.column.eq(column),
            step.first_column.eq(column == 0),
            step.last_column.eq(last_column),
            step.number.eq(number),
            step.first_pass.eq(number == 0),
            step.second_pass.eq(number == 1),
            step.last_pass.eq(last_pass),
            step.counts.eq(number < tile.top_k),
            select.step_valid.eq(issue),
            select.step.eq(step),
            select.experts.eq(tile.experts),
            scores.tiles.eq(tiles),
        ]
        # The last slot's append is that much later than tile_done.
        ending = Signal(range(APPEND_LATENCY + 1))
        with m.If(scores.tile_done):
            m.d.sync += ending.eq(APPEND_LATENCY)
        with m.Elif(ending.any()):
            m.d.sync += ending.eq(ending - 1)
        m.d.comb += self.busy.eq(waiting.any() | pending.any() | ending.any())
