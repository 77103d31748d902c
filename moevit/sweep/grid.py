"""Which machines a sweep looks at: axes, and all their combinations."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moevit.config import AcceleratorConfig
from moevit.errors import ConfigError, InputError
from moevit.sim.dram import DramModel

DRAM_GBPS = "dram_gbps"  #: an axis that is no field of the configuration: the memory's rate, in 10⁹ bytes a second
PRECISION = "precision"  #: an axis that is no field either: all machines have the one that the generator has
PRECISIONS = {"int8": "int8", "8": "int8"}  #: by what it may be called
_NO_PRECISION = (
    "int8 is what the generator has: 8-bit weights and activations, 32-bit sums, 16-bit residuals "
    "(docs/performance.md says what 4-bit weights would save and cost)"
)
DEFAULT = ("rows=4,8,16", "columns=16,32,64", "depth=4,8,16")
_NO_FIELDS = (DRAM_GBPS, PRECISION)
_FIELDS = {field.name: field.type for field in dataclasses.fields(AcceleratorConfig) if field.name != "name"}
Scalar = int | float | bool | str


@dataclass(frozen=True)
class Point:
    """One machine with its memory.

    changes : values of the axes
    config : the machine; None if there is no such one
    dram : its memory; None likewise
    refused : why there is no such machine
    """

    changes: Mapping[str, Scalar]
    config: AcceleratorConfig | None
    dram: DramModel | None
    refused: str = ""


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[Scalar, ...]]:
    """Axes from ``name=value,value,…``. Raises InputError for a name or a value that is none."""
    axes: dict[str, tuple[Scalar, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals or not values.strip():
            raise InputError("is no axis", where=f"--grid {text}", mend="write NAME=VALUE,VALUE,…")
        if name not in _FIELDS and name not in _NO_FIELDS:
            known = ", ".join((*_FIELDS, *_NO_FIELDS))
            raise InputError(f"there is no axis {name!r}", where=f"--grid {text}", mend=f"choose from {known}")
        if name in axes:
            raise InputError(f"axis {name!r} is given twice", where=f"--grid {text}", mend="join its values")
        axes[name] = tuple(dict.fromkeys(_value(name, value.strip(), text) for value in values.split(",")))
    return axes


def _value(name: str, text: str, where: str) -> Scalar:
    if name == PRECISION:
        if text not in PRECISIONS:
            raise InputError(f"there is no machine of precision {text!r}", where=f"--grid {where}", mend=_NO_PRECISION)
        return PRECISIONS[text]
    kind: Any = float if name == DRAM_GBPS else _FIELDS[name]
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        value: Scalar = kind(text)
    except (KeyError, ValueError):
        raise InputError(f"{text!r} is no {kind.__name__}", where=f"--grid {where}") from None
    if name == DRAM_GBPS and not float(value) > 0:
        raise InputError("must be positive", where=f"--grid {where}")
    return value


def points(base: AcceleratorConfig, axes: Mapping[str, Sequence[Scalar]]) -> Iterator[Point]:
    """All combinations, in the order of the axes; those that are no machine say why."""
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        fields = {name: value for name, value in changes.items() if name not in _NO_FIELDS}
        try:
            config = dataclasses.replace(base, **{"name": "point", **fields})  # type: ignore[arg-type]
        except ConfigError as error:
            yield Point(changes, None, None, error.what.removeprefix("configuration 'point': "))
            continue
        yield Point(changes, config, _dram(config, changes.get(DRAM_GBPS)))


def _dram(config: AcceleratorConfig, gbps: Scalar | None) -> DramModel:
    """The memory of a point; a rate in seconds is worth more bytes a cycle to a slower machine."""
    if gbps is None:
        return DramModel.default(config)
    return DramModel.default(config, float(gbps) * 1000 / config.clock_mhz)
