"""How a unit says what it does in each cycle."""

from types import SimpleNamespace

from amaranth import *


def causes(*names: str) -> SimpleNamespace:
    """A signal for each cause that a unit itself can tell; several may hold in a cycle.

    (A view of all events would have fields that nobody drives, which Verilog makes blocks of that never run.)
    """
    return SimpleNamespace(**{name: Signal(name=f"waits_{name}") for name in names})


def raise_first(m: Module, events, causes: dict[str, Value]) -> None:
    """Set, in the next cycle, the first of the causes that hold in this one, and no other."""
    earlier: Value = C(0)
    for cause, holds in causes.items():
        m.d.sync += events[cause].eq(holds & ~earlier)
        earlier = earlier | holds
