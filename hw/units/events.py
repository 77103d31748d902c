"""How a unit says what it does in each cycle."""

from amaranth import *


def raise_first(m: Module, events, causes: dict[str, Value]) -> None:
    """Set, in the next cycle, the first of the causes that hold in this one, and no other."""
    earlier: Value = C(0)
    for cause, holds in causes.items():
        m.d.sync += events[cause].eq(holds & ~earlier)
        earlier = earlier | holds
