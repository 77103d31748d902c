"""Dataclasses to JSON and back, with every type checked: what a container's header is read with."""

import dataclasses
import types
import typing
from typing import Any, TypeVar

from moevit.errors import ContainerError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Dataclasses, tuples and plain values to what ``json.dumps`` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(kind: type[T], value: Any, where: str) -> T:
    """Inverse of :func:`to_json` for dataclass ``kind``; ContainerError says which entry is wrong."""
    return _read(kind, value, where)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise ContainerError("must be a list", where=where)
        arguments = typing.get_args(kind)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(arguments) != len(value):
            raise ContainerError(f"must have {len(arguments)} entries", where=where)
        return tuple(_read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is types.UnionType:  # only "X | None"
        inner = next(a for a in typing.get_args(kind) if a is not types.NoneType)
        return None if value is None else _read(inner, value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ContainerError("must be an object", where=where)
        hints = typing.get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        if set(value) != set(names):
            raise ContainerError(f"has entries {sorted(value)} in place of {sorted(names)}", where=where)
        return kind(**{n: _read(hints[n], value[n], f"{where}.{n}") for n in names})  # type: ignore[operator]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ContainerError(f"must be {kind.__name__}, not {value!r:.40}", where=where)
    return value
