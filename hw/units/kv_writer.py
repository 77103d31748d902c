"""Rows of K and V, from POST's output order to the operand memory's layout."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import OperandWriteSignature

ADDRESS_WIDTH = 18
"""Bits of a tile's first address: one more than the operand memory can need, so that an address which is out
of range stays so while it counts up."""

LATENCY = 3  #: cycles from a tile's last row to its first write, when nothing is left of the tile ahead


def slot_count(config: AcceleratorConfig) -> int:
    """Tiles of T tokens that share a word of K (their lanes), which is at least as many as share one of V."""
    return config.columns // config.rows


class KvRowSignature(wiring.Signature):
    """A row of int8 for the K or V region; cannot be stalled. ``value``, ``slot``, ``address``, ``final`` and
    ``bank`` are constant over a tile."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__(
            {
                "valid": Out(1),
                "value": Out(1),  # V, else K
                "row": Out(range(config.rows)),
                "last_row": Out(1),
                "slot": Out(range(slot_count(config))),  # which T tokens of the word
                "address": Out(ADDRESS_WIDTH),  # of the tile's first word
                "final": Out(1),
                "bank": Out(1),  # last tile of the instruction, in that bank
                "data": Out(config.columns * 8),
            }
        )


class KvWriter(wiring.Component):
    """Collects the rows of a tile, then writes its words while the next tile comes in.

    A K tile is C/K words of T lanes each (T tokens of a group of K channels), a V tile max(1, rows / K) words
    of up to K products each (C channels of those tokens). Only bytes of rows that came are written.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    i_rows : In(KvRowSignature), the rows of a tile in consecutive cycles, row 0 first
    kv : Out(OperandWriteSignature), must always be granted
    busy : Out(1), a tile of which the last row is in is still to be written
    done : Out(2), one bit per bank, in the cycle of the last write of a ``final`` tile
    fault : Out(1), one-cycle pulse: a word outside the operand memory (not written), or a row came before the
        tile ahead had left its buffer (see Throughput), of which that row is then wrong

    Numerics: none. Latency: ``LATENCY`` cycles from a tile's last row to its first write, then a word a
    cycle; up to C/K cycles more while the tile ahead is written.
    Throughput: one row a cycle and one tile every ``key_groups`` (C/K) cycles, first row to first row. The
    array needs ``max(steps, rows)`` cycles for a tile, so a LINEAR with K or V tiles must have a length of
    more than C - K; the compiler sees to that (an input row is padded to C anyway).
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "i_rows": In(KvRowSignature(config)),
                "kv": Out(OperandWriteSignature(config)),
                "busy": Out(1),
                "done": Out(2),
                "fault": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, i = self.config, self.i_rows
        fill = [Signal(config.columns * 8, name=f"fill_{r}", reset_less=True) for r in range(config.rows)]
        for r, register in enumerate(fill):
            with m.If(i.valid & (i.row == r)):
                m.d.sync += register.eq(i.data)

        # After the last row, as soon as the tile ahead is written, the whole tile moves over. With tiles at
        # least C/K cycles apart, that is no later than the next one's first row.
        pending, load = Signal(), Signal()
        ends = i.valid & i.last_row
        m.d.sync += pending.eq(ends | (pending & ~load))
        tile = {
            n: Signal.like(getattr(i, n), name=n, reset_less=True)
            for n in ("value", "slot", "address", "final", "bank", "row")
        }
        with m.If(ends):
            m.d.sync += [register.eq(getattr(i, n)) for n, register in tile.items()]
        log2_depth = config.depth.bit_length() - 1
        left = Signal(range(max(config.key_groups, config.rows)), reset_less=True)
        words = Mux(tile["value"], tile["row"][log2_depth:], config.key_groups - 1)

        drain = Signal(data.ArrayLayout(data.ArrayLayout(8, config.columns), config.rows), reset_less=True)
        present = Signal(config.rows, reset_less=True)  # rows of the drain buffer that came
        held = {
            n: Signal.like(tile[n], name=f"held_{n}", reset_less=True)
            for n in ("value", "slot", "address", "final", "bank")
        }
        writing = Signal()
        last = writing & (left == 0)
        m.d.comb += load.eq(pending & (~writing | last))
        with m.If(load):
            m.d.sync += [held[n].eq(tile[n]) for n in held]
            m.d.sync += [
                writing.eq(1),
                left.eq(words),
                present.eq(Cat(tile["row"] >= r for r in range(config.rows))),
            ]
            m.d.sync += [Value.cast(drain[r]).eq(fill[r]) for r in range(config.rows)]
        with m.Elif(writing):
            m.d.sync += [writing.eq(left != 0), left.eq(left - 1), held["address"].eq(held["address"] + 1)]
            self._advance(m, drain, present, held["value"])

        outside = held["address"] >= config.operand_words
        m.d.sync += [
            self.kv.valid.eq(writing & ~outside),
            self.done.eq(Mux(last & held["final"], Cat(~held["bank"], held["bank"]), 0)),
            self.fault.eq((writing & outside) | (i.valid & pending & ~load)),
            self.kv.addr.eq(held["address"]),
        ]
        m.d.comb += self.busy.eq(pending | writing | self.kv.valid)
        self._word(m, drain, present, held)
        return m

    def _advance(self, m, drain, present, value) -> None:
        """Move the next word's bytes to where the first one's were: K columns of every row, or K rows."""
        rows, columns, depth = self.config.rows, self.config.columns, self.config.depth
        with m.If(value):
            m.d.sync += present.eq(present >> depth)
            m.d.sync += [Value.cast(drain[r]).eq(drain[r + depth]) for r in range(rows - depth)]
        with m.Else():
            m.d.sync += [
                drain[r][c].eq(drain[r][c + depth]) for r in range(rows) for c in range(columns - depth)
            ]

    def _word(self, m, drain, present, held) -> None:
        """The output word and its mask, registered."""
        rows, columns, depth = self.config.rows, self.config.columns, self.config.depth
        layout = data.ArrayLayout(data.ArrayLayout(8, depth), columns)  # [lane][product]
        key, value = Signal(layout), Signal(layout)
        key_mask, value_mask = [], []
        shared = max(depth // rows, 1)  # tiles in a word of V
        for lane in range(columns):
            mine = present[lane % rows] & (held["slot"] == lane // rows)
            for k in range(depth):
                m.d.comb += [key[lane][k].eq(drain[lane % rows][k]), value[lane][k].eq(drain[k % rows][lane])]
                key_mask.append(mine)
                value_mask.append(
                    present[k % rows]
                    & (held["slot"][: (shared - 1).bit_length()] == k // rows if shared > 1 else 1)
                )
        m.d.sync += [
            self.kv.data.eq(Mux(held["value"], Value.cast(value), Value.cast(key))),
            self.kv.mask.eq(Mux(held["value"], Cat(value_mask), Cat(key_mask))),
        ]
