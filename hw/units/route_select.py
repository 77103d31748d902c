"""The gate's lanes: a row's largest logit after those selected before, and the sum of all its exponentials."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.units.arithmetic import adder_tree, delay, maximum_tree, tree_latency
from moevit.hw.units.exponential import (
    EXPONENTIAL_LATENCY,
    HALF_STEP,
    TERM_WIDTH,
    exponential,
    exponential_table,
)
from moevit.isa.formats import EXPERTS, QUEUE
from moevit.numerics.fixed import MID_WIDTH
from moevit.numerics.reciprocal import INPUT_WIDTH
from moevit.numerics.route import MAX_EXPERTS, MAX_TOP_K

TOTAL_WIDTH = INPUT_WIDTH  #: bits of a sum of terms: MAX_EXPERTS * 2**TABLE_FRACTION fits


def lane_count(config: AcceleratorConfig) -> int:
    """Logits in a word: those of a column tile that can be experts."""
    return min(config.columns, MAX_EXPERTS)


def word_count(config: AcceleratorConfig) -> int:
    """Words that a row of logits may have."""
    return MAX_EXPERTS // lane_count(config)


def _largest_latency(config: AcceleratorConfig) -> int:
    """Cycles from a row's last step to its largest entry: address, memory, eligible, tree, words of a row."""
    return 4 + tree_latency(lane_count(config))


def select_latency(config: AcceleratorConfig) -> int:
    """Cycles from a row's last step to what comes of it."""
    return _largest_latency(config) + EXPONENTIAL_LATENCY


def pass_spacing(config: AcceleratorConfig, words: int) -> int:
    """Fewest cycles from a pass over rows of that many words to the next over them."""
    return words + _largest_latency(config) - 1


class Step(data.Struct):
    """A word of logits in a pass over a row tile."""

    buffer: 1
    row: 6
    column: 6  #: which word of the row
    first_column: 1
    last_column: 1
    number: range(MAX_TOP_K)  #: of the pass
    first_pass: 1
    second_pass: 1  #: forms the sum of all terms
    last_pass: 1
    counts: 1  #: what is selected is one of the k


class RouteSelect(wiring.Component):
    """Two row tiles of logits, and passes over them.

    Entries of a row are ordered by falling logit and, of equal logits, by rising expert. That order is the one of
    a single number, the logit above the complement of the expert's, and no two entries have the same; so what
    pass j selects is the largest number below the one that pass j-1 selected, and nothing has to be marked
    as taken. The second pass also forms the sum of the terms of all experts, for then the largest is known.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    write, write_buffer, write_row, write_column : In, a row of a column tile; columns that no expert can have are
        not kept
    mid : In(signed MID_WIDTH each lane)
    step_valid, step, experts : In, words of rows in order, pass by pass; passes over the same rows start at least
        ``pass_spacing`` apart; a word is read in its cycle. Lanes from ``experts`` on do not count.
    valid, o_step : Out, one for each row and pass: its last step
    expert, term : Out(QUEUE), Out(TERM_WIDTH), what the pass selected; term 0 when nothing was left
    total : Out(TOTAL_WIDTH), with ``second_pass``, the sum of all terms

    Numerics: ``numerics.route.select`` and ``exponential``. Latency: ``select_latency(config)``.
    Throughput: a word a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "write": In(1),
                "write_buffer": In(1),
                "write_row": In(range(config.rows)),
                "write_column": In(range(word_count(config))),
                "mid": In(data.ArrayLayout(signed(MID_WIDTH), config.columns)),
                "step_valid": In(1),
                "step": In(Step),
                "experts": In(EXPERTS),
                "valid": Out(1),
                "o_step": Out(Step),
                "expert": Out(QUEUE),
                "term": Out(TERM_WIDTH),
                "total": Out(TOTAL_WIDTH),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, lanes = self.config, lane_count(self.config)
        self._valid, self._steps = [self.step_valid], [self.step]
        for i in range(select_latency(config)):
            self._valid.append(delay(m, self._valid[i], 1, name=f"valid_{i + 1}", reset=True))
            self._steps.append(delay(m, self._steps[i], 1, name=f"step_{i + 1}"))

        logits = self._logits(m)
        keep = self._keep(m)
        # What the row's last pass selected, and its largest logit: written by an earlier pass.
        rows = config.rows
        style = {"ram_style": "distributed"}
        key_width = MID_WIDTH + QUEUE
        m.submodules.selected = selected = Memory(shape=key_width, depth=rows, init=[], attrs=style)
        m.submodules.maxima = maxima = Memory(shape=MID_WIDTH + 1, depth=rows, init=[], attrs=style)
        bound, lane_maximum, maximum = selected.read_port(), maxima.read_port(), maxima.read_port()
        m.d.comb += [bound.addr.eq(self._steps[1].row), lane_maximum.addr.eq(self._steps[1].row)]

        # Lane i's entries as numbers; 0 when it has none that is left.
        column = self._steps[2].column
        keys = []
        for i in range(lanes):
            key = Cat(self._other(C(i, tree_latency(lanes)), column), logits[i], C(1, 1))
            left = keep[i] & (self._steps[2].first_pass | (key[:-1] < bound.data))
            keys.append(delay(m, Mux(left, key, 0), 1, name=f"key_{i}"))
        largest = maximum_tree(m, keys, name="largest")
        at = _largest_latency(config)
        best = Signal(key_width + 1, reset_less=True)
        new = (self._steps[at - 1].first_column | (largest > best)) & self._valid[at - 1]
        with m.If(new):
            m.d.sync += best.eq(largest)

        step, done = self._steps[at], Signal()
        logit = best[QUEUE:-1]
        m.d.comb += done.eq(self._valid[at] & step.last_column)
        for memory, enable, value in (
            (selected, done, best[:-1]),
            (maxima, done & step.first_pass, logit + HALF_STEP),
        ):
            port = memory.write_port()
            m.d.comb += [port.en.eq(enable), port.addr.eq(step.row), port.data.eq(value)]
        m.d.comb += maximum.addr.eq(self._steps[at - 1].row)

        m.submodules.table = table = exponential_table()
        # A first selection is the largest itself; without a carry, its distance rounds to 0 too.
        above = Mux(step.first_pass, logit | HALF_STEP, maximum.data)
        latency = EXPONENTIAL_LATENCY
        m.d.comb += [
            self.term.eq(exponential(m, above, logit, best[-1], table.read_port(), name="best")),
            self.expert.eq(delay(m, ~best[:QUEUE], latency, name="expert")),
            self.valid.eq(delay(m, done, latency, name="done", reset=True)),
            self.o_step.eq(self._steps[-1]),
        ]
        self._total(m, logits, keep, lane_maximum.data, table)
        return m

    def _other(self, lane, column) -> Value:
        """The complement of an expert's number, from its lane and column."""
        return ~Cat(lane, column)[:QUEUE]

    def _logits(self, m) -> list[Value]:
        """The step's word two cycles later, as unsigned numbers of the same order."""
        config, lanes = self.config, lane_count(self.config)
        words = word_count(config)
        layout = data.ArrayLayout(MID_WIDTH, lanes)
        depth = 2 * words * config.rows
        style = {"ram_style": "distributed"} if depth <= 64 else {}
        m.submodules.logits = memory = Memory(shape=layout, depth=depth, init=[], attrs=style)
        write, read = memory.write_port(), memory.read_port()
        columns = (words - 1).bit_length()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(Cat(self.write_column, self.write_row, self.write_buffer)),
            read.addr.eq(Cat(self.step.column[:columns], self.step.row[: len(self.write_row)], self.step.buffer)),
        ]
        for i in range(lanes):
            m.d.comb += write.data[i].eq(Cat(self.mid[i][:-1], ~self.mid[i][-1]))
        word = delay(m, read.data, 1, name="word")
        return [word[i] for i in range(lanes)]

    def _keep(self, m) -> list[Value]:
        """Which lanes of the step two cycles ago are experts."""
        lanes = lane_count(self.config)
        log2 = tree_latency(lanes)
        column, experts = self._steps[1].column, delay(m, self.experts, 1, name="experts")
        full, partial = column < experts[log2:], column == experts[log2:]
        keep = [full | partial & (experts[:log2] > i) for i in range(lanes)]
        return [delay(m, k, 1, name=f"keep_{i}") for i, k in enumerate(keep)]

    def _total(self, m, logits, keep, maximum, table) -> None:
        """The sum of the terms of a row's words."""
        terms = []
        for i, (logit, kept) in enumerate(zip(logits, keep, strict=True)):
            terms.append(exponential(m, maximum, logit, kept, table.read_port(), name=f"lane_{i}"))
        word = adder_tree(m, terms, name="sum")
        at = 2 + EXPONENTIAL_LATENCY + tree_latency(len(terms))
        total = Signal(TOTAL_WIDTH, reset_less=True)
        step = self._steps[at]
        with m.If(self._valid[at]):
            m.d.sync += total.eq(Mux(step.first_column, 0, total) + word)
        m.d.comb += self.total.eq(delay(m, total, select_latency(self.config) - at - 1, name="total"))
