"""The text of docs/energy.md: how energy is estimated, with every constant and how far off the model is."""

from collections.abc import Sequence

from moevit.energy.constants import CONSTANTS
from moevit.energy.published import PUBLISHED
from moevit.energy.validate import validate

GENERATED = "<!-- Written by `make docs`; change what it is made from, not this page. -->"

_INTRODUCTION = """\
# Energy

`moevit report` says what an inference costs in energy. Without a board that is an **estimate**: events that the
simulation counts, times the energy of an event, and power times time. Each constant has a range, and so has the
result.

```sh
moevit report build/m3vit.moevit --backend cycle -o build/report_cycle
```

Where Vivado's power report or a board's sensor is at hand, `--power FILE` puts it in the estimate's place, and the page
says which it shows and what the model would have said:

- `reports/power.txt` of a Vivado build ([boards/zynq.md](boards/zynq.md)): its total on-chip watts times the simulated
  latency. The memory chips are not in it, so their part of the estimate is added.
- What `moevit run --device pynq … --json` printed, one file for each task: the sensor's watts times the latency on the
  board. What the sensor covers is in the page of the board.

A report of another device, a run of another configuration, and a run without a sensor are refused. There was no Vivado
and no board to try it with: the form of the report is that of `report_power`'s text as others have published it.

## What is counted

| events | counted |
|---|---|
| multiplications | steps of the array, times T × C × K: padding is computed too |
| elements | accumulators through POST; elements that the loader normalises, probabilities included |
| bytes of the A tiles | rows written, and T × K bytes for each step |
| bytes of the operand memory | C × K bytes for each step, weights and K and V written |
| bytes of the activation memory | rows that the loader reads (twice for LayerNorm), rows of POST, copies |
| bytes of DRAM | weights, instructions, images and results, what was fetched on suspicion included |
| clock cycles | of the whole inference, for each LUT that the machine takes |

Tokens of experts are those of the simulated images. LUTs are scaled from the synthesis of `zcu104`
([resources.md](resources.md)). What toggles how often is not looked at: an event costs the same whatever its data.

## Constants
"""

_VALIDATION = """\
## How far off

The same constants on published designs, from the logic, clock, rate, precision and weights that they state; the traffic
of their on-chip memories is not known and left out. A multiplication's energy is taken to grow with the square of its
operands' bits.
"""

_OUTSIDE = """\
Two kinds are outside the range. The U280 is a data-centre card, whose memory stacks and shell take power that the model
has no term for. The 29.6 W of Huang et al. are three times what comparable designs on the same board state; what they
include is not known to us. The VCK190's device is of 7 nm, which the constants are not. The others are low by 10 to
35 %: read an estimate's typical value as good to a factor of 1.5, and its range as the statement.

## Published accelerators

What the report puts beside our figures, as printed in the sources. MACs are ours for the network that is named.
"""


_PUBLISHED = (
    "design", "board", "model", "precision", "MHz", "DSP", "LUT", "BRAM36", "ms", "latency is", "W", "source",
)  # fmt: skip


def energy_page() -> str:
    """The text of docs/energy.md."""
    constants = [(c.name, c.unit, f"{c.typical:.3g}", f"{c.low:.3g} … {c.high:.3g}", c.source) for c in CONSTANTS]
    checks = [
        (f"{c.design.name}, {c.design.model}", c.design.board, f"{c.design.watts:g}", f"{c.watts.typical:.1f}",
         f"{c.watts.low:.1f} … {c.watts.high:.1f}", f"{c.ratio:.2f}", "yes" if c.inside else "no")
        for c in validate()
    ]  # fmt: skip
    published = [
        (p.name, p.board, p.model, p.precision, _optional(p.clock_mhz), _optional(p.dsp), _optional(p.lut),
         _optional(p.bram36), f"{p.latency_ms:.4g}", p.method, _optional(p.watts), p.source)
        for p in PUBLISHED
    ]  # fmt: skip
    parts = [
        GENERATED,
        _INTRODUCTION.strip(),
        _table(("an event", "unit", "value", "range", "source"), constants),
        _VALIDATION.strip(),
        _table(("design", "board", "published W", "model W", "range", "model / published", "in range"), checks),
        _OUTSIDE.strip(),
        _table(_PUBLISHED, published),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _optional(value: float | None) -> str:
    return "–" if value is None else f"{value:,g}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
