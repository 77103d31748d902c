"""Pipelined arithmetic that the units share: delays, multipliers, rounding shifts, saturation, trees.

These are functions that add statements to a module, not components: every lane of a unit calls them, and a
submodule per lane would become a Verilog module per lane. Each adds a fixed number of cycles, which its
constant or ``..._latency`` function states. Data registers have no reset; what marks them valid has.
"""

from collections.abc import Sequence

from amaranth import *

MULTIPLY_LATENCY = 3


def delay(m: Module, value, cycles: int, *, name: str, reset: bool = False):
    """``value`` (any shape, views included) ``cycles`` cycles later. ``reset``: the registers start at 0."""
    for i in range(cycles):
        register = Signal(value.shape(), name=f"{name}_{i + 1}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value


def multiply(m: Module, a: Value, b: Value, *, name: str) -> Signal:
    """``a * b``, full width: registers before, in and after the multiplier. MULTIPLY_LATENCY cycles."""
    a1, b1 = delay(m, a, 1, name=f"{name}_a"), delay(m, b, 1, name=f"{name}_b")
    return delay(m, a1 * b1, 2, name=name)


def saturate(value: Value, bits: int, signed: bool = True) -> Value:
    """``numerics.fixed.saturate`` of a signed value: combinational, one comparison of the upper bits."""
    shape = value.shape()
    assert shape.signed, "saturate takes signed values"
    if signed:
        if shape.width <= bits:
            return value
        upper = value[bits - 1 :]
        fits = upper.all() | ~upper.any()
        clamped = Cat((~value[-1]).replicate(bits - 1), value[-1])
        return Mux(fits, value[:bits], clamped).as_signed()
    if shape.width <= bits:  # one bit of it is the sign
        return Mux(value[-1], 0, value.as_unsigned())
    return Mux(value[-1], 0, Mux(value[bits:].any(), (1 << bits) - 1, value[:bits]))


def shift_right(m: Module, value: Value, shift: Value, *, name: str, bits_per_stage: int = 2) -> Signal:
    """``value >> shift`` (arithmetic when signed), ``bits_per_stage`` bits of it a cycle, largest first."""
    shape = value.shape()
    for stage in range(shift_latency(len(shift), bits_per_stage)):
        low = max(len(shift) - bits_per_stage, 0)
        shifted = Signal(shape, name=f"{name}_shift_{stage}", reset_less=True)
        with m.Switch(shift[low:]):
            for amount in range(1 << (len(shift) - low)):
                with m.Case(amount):
                    m.d.sync += shifted.eq(value >> (amount << low))
        if low:
            shift = delay(m, shift[:low], 1, name=f"{name}_shift_{stage}_by")
        value = shifted
    return value


def shift_latency(shift_width: int, bits_per_stage: int = 2) -> int:
    return -(-shift_width // bits_per_stage)


def shift_left(
    m: Module, value: Value, shift: Value, width: int, *, name: str, bits_per_stage: int = 2
) -> Signal:
    """``(value << shift)`` cut to ``width`` bits, same signedness. ``shift_latency(len(shift))`` cycles."""
    shape = Shape(width, value.shape().signed)
    for stage in range(shift_latency(len(shift), bits_per_stage)):
        low = max(len(shift) - bits_per_stage, 0)
        shifted = Signal(shape, name=f"{name}_shift_{stage}", reset_less=True)
        with m.Switch(shift[low:]):
            for amount in range(1 << (len(shift) - low)):
                with m.Case(amount):
                    places = min(amount << low, width)
                    m.d.sync += shifted.eq(
                        Cat(C(0, places), value) if not shape.signed else Cat(C(0, places), value).as_signed()
                    )
        if low:
            shift = delay(m, shift[:low], 1, name=f"{name}_shift_{stage}_by")
        value = shifted
    return value


def round_shift(
    m: Module, value: Value, shift: Value, *, name: str, bits: int | None = None, bits_per_stage: int = 2
) -> Signal:
    """``numerics.fixed.round_shift``, then ``saturate`` to ``bits`` signed bits unless that is None.

    Half a step is added by keeping one bit below the point: ``((2 * value >> shift) + 1) >> 1``. With
    ``bits``, the shifted value is clamped before the addition, which is then narrow. ``round_shift_latency``
    cycles.
    """
    twice = Cat(C(0, 1), value)
    twice = twice.as_signed() if value.shape().signed else twice
    shifted = shift_right(m, twice, shift, name=name, bits_per_stage=bits_per_stage)
    if bits is None:
        return delay(m, (shifted + 1) >> 1, 1, name=f"{name}_rounded")
    if not value.shape().signed:
        shifted = Cat(shifted, C(0, 1)).as_signed()
    clamped = delay(m, saturate(shifted, bits + 1), 1, name=f"{name}_clamped")
    return delay(m, saturate((clamped + 1) >> 1, bits), 1, name=f"{name}_rounded")


def round_shift_latency(shift_width: int, *, saturated: bool, bits_per_stage: int = 2) -> int:
    return shift_latency(shift_width, bits_per_stage) + (2 if saturated else 1)


def adder_tree(m: Module, values: Sequence[Value], *, name: str) -> Value:
    """Sum of ``values``, one register after each level of two-input adders. ``tree_latency`` cycles."""
    return _tree(m, values, lambda a, b: a + b, name)


def maximum_tree(m: Module, values: Sequence[Value], *, name: str) -> Value:
    """Largest of ``values``, one register after each level of comparisons. ``tree_latency`` cycles."""
    return _tree(m, values, lambda a, b: Mux(a > b, a, b), name)


def tree_latency(count: int) -> int:
    return (count - 1).bit_length()


def _tree(m: Module, values: Sequence[Value], combine, name: str) -> Value:
    level, values = 0, list(values)
    while len(values) > 1:
        pairs = [
            combine(*values[i : i + 2]) if len(values[i : i + 2]) == 2 else values[i]
            for i in range(0, len(values), 2)
        ]
        values = [delay(m, v, 1, name=f"{name}_{level}_{i}") for i, v in enumerate(pairs)]
        level += 1
    return values[0]
