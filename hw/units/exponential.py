"""Powers of two of distances to a maximum, from one table: the terms of a gate's softmax."""

from amaranth import *
from amaranth.lib.memory import Memory

from moevit.hw.units.arithmetic import delay, shift_latency, shift_right
from moevit.numerics import route

TERM_WIDTH = route.TABLE_FRACTION + 1  #: bits of a term: 0 … 2**TABLE_FRACTION

_STEP = route.LOGIT_FRACTION - route.EXP_FRACTION  # bits of a distance that the table does not see
_DROP = _STEP + route.EXP_FRACTION
_DROP_WIDTH = 4  # shifts of 2**4 and above leave nothing of an entry

HALF_STEP = 1 << (_STEP - 1)  #: to be added to the maximum, which rounds the distance

EXPONENTIAL_LATENCY = 2 + shift_latency(_DROP_WIDTH) + 1


def exponential_table() -> Memory:
    """The ROM; give :func:`exponential` a read port of it."""
    return Memory(shape=TERM_WIDTH, depth=len(route.TABLE), init=route.TABLE.tolist())


def exponential(m: Module, maximum: Value, value: Value, keep: Value, port, *, name: str) -> Signal:
    """``numerics.route.exponential(maximum - value)``, or 0 without ``keep``; EXPONENTIAL_LATENCY cycles.

    ``maximum`` is unsigned, HALF_STEP has been added to it; ``value`` is unsigned and, when kept, not above it.
    """
    distance = delay(m, (maximum - value)[: len(maximum)], 1, name=f"{name}_distance")
    kept = delay(m, keep, 1, name=f"{name}_keep")
    m.d.comb += port.addr.eq(distance[_STEP:_DROP])
    drop = delay(m, distance[_DROP : _DROP + _DROP_WIDTH], 1, name=f"{name}_drop")
    some = kept & ~distance[_DROP + _DROP_WIDTH :].any()
    some = delay(m, some, 1 + shift_latency(_DROP_WIDTH), name=f"{name}_some")
    # one bit below the point for the rounding, as in arithmetic.round_shift
    entry = shift_right(m, Cat(C(0, 1), port.data), drop, name=name)
    return delay(m, Mux(some, (entry + 1) >> 1, 0)[:TERM_WIDTH], 1, name=f"{name}_term")
