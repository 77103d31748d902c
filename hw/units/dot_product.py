"""The multipliers and accumulators of the array. The only place that knows of two products per multiplier."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import ACC_WIDTH
from moevit.hw.units.arithmetic import adder_tree, delay

A_WIDTH = 9  #: bits of a widened left operand; the value is int8's or uint8's
B_WIDTH = 8
CHAIN = 8  #: products added in one cascade
SUM_WIDTH = A_WIDTH + B_WIDTH - 1 + 3  #: bits of the sum of CHAIN products
SELECT = 8  #: rows that one stage of the row multiplexer chooses from


def sum_latency(config: AcceleratorConfig) -> int:
    """Cycles from the operands to the sums that are added to the accumulators."""
    groups = config.depth // min(config.depth, CHAIN)
    return 3 + min(config.depth, CHAIN) + (1 + exact_log2(groups) if groups > 1 else 0)


def dot_latency(config: AcceleratorConfig) -> int:
    """Cycles from the last step of a tile to DotProduct's ``done``."""
    return sum_latency(config) + 1


def row_latency(config: AcceleratorConfig) -> int:
    """Cycles from DotProduct's ``row`` to ``acc``."""
    return 1 if config.rows <= SELECT else 2


class DotProduct(wiring.Component):
    """T x C output-stationary int32 accumulators; each adds a sum of K products in a cycle.

    The K products of an output are added by cascades of at most eight multipliers, each adding its product to
    its neighbour's sum of a cycle ago (operand k is delayed by k cycles for that); several cascades are added
    by a tree. The operands have two registers or more before the multipliers, from which each row's A goes to
    all columns and each column's B to all rows.

    With ``packed_macs`` a multiplier forms a * (b1 * 2**19 + b0) for two neighbouring columns. To keep the
    second factor in 27 bits without an adder it is (b1, b0 + 128) side by side, and the cascade starts at
    -128 times the sum of its a. The cascade's sum is then exactly s1 * 2**19 + s0: the low 19 bits are s0
    as a signed number, and s1 is the rest plus the borrow, one if s0 is negative.

    When the last step of a tile has been added, the accumulators are copied to a second set of registers,
    from which ``row`` selects, while the next tile is computed.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    valid : In(1), a step; otherwise the accumulators keep their values
    first, last : In(1), first and last step of a tile
    a : In(ArrayLayout of [T][K] signed(9)), -255 ... 255 (eight products -256 * -128 would not fit)
    b : In(ArrayLayout of [C][K] signed(8))
    done : Out(1), a tile is complete; from the next cycle on ``row`` selects from it, up to and including the
        cycle of the next ``done``
    row : In(range(T))
    acc : Out(ArrayLayout(32, C)), the accumulators of that row, int32 bit patterns, wrapping at 32 bits

    Numerics: ``numerics.int_matmul`` modulo 2**32.
    Latency: ``dot_latency`` to ``done``, ``row_latency`` from ``row`` to ``acc``.
    Throughput: one step a cycle. Latency and interface are the same with and without packing.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self._chain = min(config.depth, CHAIN)
        self._groups = config.depth // self._chain
        super().__init__({
            "valid": In(1), "first": In(1), "last": In(1),
            "a": In(data.ArrayLayout(data.ArrayLayout(signed(A_WIDTH), config.depth), config.rows)),
            "b": In(data.ArrayLayout(data.ArrayLayout(signed(B_WIDTH), config.depth), config.columns)),
            "done": Out(1),
            "row": In(range(config.rows)),
            "acc": Out(data.ArrayLayout(ACC_WIDTH, config.columns)),
        })

    def elaborate(self, platform) -> Module:
        m = Module()
        rows, groups = range(self._config.rows), range(self._groups)
        lanes = self._factors(m)
        a = [self._skewed(m, self.a[row], f"a_{row}") for row in rows]
        b = [self._skewed(m, lane, f"b_{i}") for i, lane in enumerate(lanes)]

        sums = []
        for row in rows:
            starts = [self._start(m, row, group) for group in groups]
            row_sums = []
            for lane in range(len(lanes)):
                row_sums += self._sum(m, [
                    self._cascade(m, a[row], b[lane], group, starts[group], f"{row}_{lane}_{group}")
                    for group in groups
                ], f"{row}_{lane}")
            sums.append(row_sums)
        shadow = self._accumulate(m, sums)
        m.d.comb += self.acc.eq(self._select(m, shadow))
        return m

    def _factors(self, m: Module) -> list:
        """Per multiplier column, the K factors on the B side (unregistered)."""
        columns, depth = self._config.columns, range(self._config.depth)
        if not self._config.packed_macs:
            return [[self.b[column][k] for k in depth] for column in range(columns)]
        lanes = []
        for column in range(0, columns, 2):
            low = [self.b[column][k].as_unsigned() for k in depth]
            high = [self.b[column + 1][k].as_unsigned() for k in depth]
            lanes.append([
                Cat(low[k] ^ 0x80, C(0, SUM_WIDTH - B_WIDTH), high[k]).as_signed() for k in depth
            ])
        return lanes

    def _skewed(self, m: Module, operands, name: str) -> list:
        return [
            delay(m, operands[k], 2 + k % self._chain, name=f"{name}_{k}") for k in range(self._config.depth)
        ]

    def _start(self, m: Module, row: int, group: int):
        """What the cascades of a row start from: -128 times the sum of a, or nothing."""
        if not self._config.packed_macs:
            return None
        a = [delay(m, self.a[row][group * self._chain + k], 1, name=f"offset_{row}_{group}_{k}")
             for k in range(self._chain)]
        pairs = []
        for i in range(0, self._chain, 2):
            pair = Signal(signed(A_WIDTH + 1), name=f"pair_{row}_{group}_{i}", reset_less=True)
            m.d.sync += pair.eq(a[i] + a[i + 1])
            pairs.append(pair)
        offset = Signal(signed(A_WIDTH + 3 + B_WIDTH), name=f"start_{row}_{group}", reset_less=True)
        m.d.sync += offset.eq(-(_tree(pairs) << (B_WIDTH - 1)))
        return offset

    def _cascade(self, m: Module, a: list, b: list, group: int, start, name: str):
        total = start
        for k in range(group * self._chain, (group + 1) * self._chain):
            product = Signal(signed(A_WIDTH + len(b[k])), name=f"product_{name}_{k}", reset_less=True)
            partial = Signal(
                signed(2 * SUM_WIDTH if self._config.packed_macs else SUM_WIDTH),
                name=f"cascade_{name}_{k}", reset_less=True,
            )
            m.d.sync += [product.eq(a[k] * b[k]), partial.eq(product if total is None else total + product)]
            total = partial
        return total

    def _sum(self, m: Module, cascades: list, name: str) -> list:
        """The sums of one multiplier column, per output, as (sum, borrow) or (sum,) to be added."""
        terms: list
        if self._config.packed_macs:
            terms = [[(c[:SUM_WIDTH].as_signed(),) for c in cascades],
                     [(c[SUM_WIDTH:].as_signed(), c[SUM_WIDTH - 1]) for c in cascades]]
        else:
            terms = [[(c,) for c in cascades]]
        if self._groups == 1:
            return [output[0] for output in terms]
        sums = []
        for i, output in enumerate(terms):
            split = [delay(m, sum(term[1:], start=term[0]), 1, name=f"split_{name}_{i}_{group}")
                     for group, term in enumerate(output)]
            sums.append((adder_tree(m, split, name=f"sum_{name}_{i}"),))
        return sums

    def _accumulate(self, m: Module, sums: list) -> list:
        """Adds each row's sums to its accumulators; returns the copies of complete rows."""
        valid = delay(m, self.valid, sum_latency(self._config) - 1, name="valid", reset=True)
        first = delay(m, self.first, sum_latency(self._config) - 1, name="first")
        last = delay(m, self.valid & self.last, sum_latency(self._config), name="last", reset=True)
        m.d.sync += self.done.eq(last)

        shadow = []
        for row, row_sums in enumerate(sums):
            # Each row has its own copies of the controls, which the tools shall not merge.
            keep = {"keep": "true"}
            row_valid = Signal(name=f"valid_{row}", attrs=keep)
            row_first = Signal(name=f"first_{row}", attrs=keep, reset_less=True)
            row_done = Signal(name=f"done_{row}", attrs=keep)
            m.d.sync += [row_valid.eq(valid), row_first.eq(first), row_done.eq(last)]

            accs = [Signal(signed(ACC_WIDTH), name=f"acc_{row}_{c}", reset_less=True)
                    for c in range(self._config.columns)]
            complete = Signal(self.acc.as_value().shape(), name=f"complete_{row}", reset_less=True)
            with m.If(row_valid):
                for acc, term in zip(accs, row_sums, strict=True):
                    m.d.sync += acc.eq(sum(term, start=Mux(row_first, 0, acc)))
            with m.If(row_done):
                m.d.sync += complete.eq(Cat(accs))
            shadow.append(complete)
        return shadow

    def _select(self, m: Module, shadow: list):
        low_bits = min(len(self.row), exact_log2(SELECT))
        select, name = self.row[:low_bits], "row"
        rest = self.row[low_bits:]
        if len(rest):  # a wire of no bits is [-1:0] in Verilog
            rest = delay(m, rest, 1, name="row_high")
        for stage in range(row_latency(self._config)):
            outputs = []
            for i in range(0, len(shadow), 1 << len(select)):
                output = Signal.like(shadow[0], name=f"{name}_{stage}_{i}")
                with m.Switch(select):
                    for j in range(1 << len(select)):
                        with m.Case(j):
                            m.d.sync += output.eq(shadow[i + j])
                outputs.append(output)
            shadow, select = outputs, rest
        return shadow[0]


def _tree(values: list):
    """The sum of a power of two of values, added in a balanced tree."""
    while len(values) > 1:
        values = [x + y for x, y in zip(values[::2], values[1::2], strict=True)]
    return values[0]
