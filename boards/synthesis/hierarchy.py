"""Cuts generated Verilog into units: modules that are synthesised together, with the modules below them stubbed."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

#: Modules whose instances are units, however small: the whole, and what a soft reset resets.
GROUPS = ("moevit", "moevit.core")
#: Elsewhere, an instance with this much Verilog or more, all below it included, is a unit of its own.
UNIT_BYTES = 100_000

_MODULE = re.compile(r"^(?:\(\*[^\n]*\*\)[ ]*\n)*module (\S+?)\s*\(.*?^endmodule", re.S | re.M)
_INSTANCE = re.compile(r"^  (\S+)\s+(?:#\([^;]*?\) )?(\S+)\s*\($", re.M)
_PORT = re.compile(r"^  (?:input|output)\b[^;]*;", re.M)
_HEADER = re.compile(r"^module [^;]*;", re.M)
_NUMBERED = re.compile(r"\\\$auto\$verilog_backend\.cc:\d+:dump_module\$\d+ ")


@dataclass(frozen=True)
class Unit:
    """Modules that are synthesised together.

    name : path of the first instance, from the top module's name on
    top : its top module's name
    source : Verilog of its modules, and stubs of the units below it
    children : by the name of an instance in it (its path, when the modules are flattened), the unit of that instance
    """

    name: str
    top: str
    source: str
    children: dict[str, "Unit"]

    @cached_property
    def digest(self) -> str:
        """Of the source, in which neither the unit's path nor the backend's numbers count."""
        text = _NUMBERED.sub("numbered ", self.source).replace(self.top, "unit")
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def instances(self) -> Iterator[tuple[str, "Unit"]]:
        """Each instance of a unit from this one down, with its path below this one."""
        yield "", self
        for name, child in self.children.items():
            for path, unit in child.instances():
                yield f"{name}.{path}".rstrip("."), unit


class Hierarchy:
    """The modules of a Verilog text, and who instantiates whom.

    Parameters
    ----------
    text : Verilog as :func:`moevit.hw.verilog.generate` writes it: one module after the other, one instance a line
    """

    def __init__(self, text: str):
        self.modules = {m[1]: m[0] for m in _MODULE.finditer(text)}
        self._instances = {
            name: [(m[2], m[1]) for m in _INSTANCE.finditer(body) if m[1] in self.modules]
            for name, body in self.modules.items()
        }
        self._size = cache(self._subtree_size)

    def instances(self, module: str) -> list[tuple[str, str]]:
        """(instance, module) of a module's instances."""
        return self._instances[module]

    def _subtree_size(self, module: str) -> int:
        return len(self.modules[module]) + sum(self._size(child) for _, child in self.instances(module))

    def unit(self, module: str, path: str | None = None) -> Unit:
        """The unit of a module, with all units below it."""
        path = path or _plain(module)
        inside: dict[str, None] = {module: None}
        stubs: dict[str, None] = {}
        children: dict[str, Unit] = {}

        def walk(parent: str, below: str) -> None:
            for instance, child in self.instances(parent):
                place = below + _plain(instance)
                if _plain(parent) in GROUPS or self._size(child) >= UNIT_BYTES:
                    children[place] = self.unit(child, f"{path}.{place}")
                    stubs[child] = None
                else:
                    inside[child] = None
                    walk(child, f"{place}.")

        walk(module, "")
        source = [self.modules[name] for name in inside] + [self._stub(name) for name in stubs]
        return Unit(path, module, "\n".join(source) + "\n", children)

    def _stub(self, module: str) -> str:
        body = self.modules[module]
        header = _HEADER.search(body)
        assert header is not None
        return "\n".join(["(* blackbox *)", header[0], *_PORT.findall(body), "endmodule"])


def _plain(name: str) -> str:
    """A Verilog name without its escape."""
    return name.removeprefix("\\")
