"""moevit: from an ONNX vision transformer to bit-exact RTL.

`moevit.compile` turns ONNX models into a `Program`, `moevit.load` reads one back, and `Program.run` executes
it on one of the simulators. Names are imported when first used, so `import moevit` is quick and needs no
tool.
"""

import importlib
import importlib.metadata
from typing import Any

# Where each public name lies.
_PUBLIC = {
    "AcceleratorConfig": "moevit.config",
    "MoevitError": "moevit.errors",
    "Program": "moevit.api",
    "compile": "moevit.api",
    "load": "moevit.api",
}

__version__: str

__all__ = ["AcceleratorConfig", "MoevitError", "Program", "__version__", "compile", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("moevit")
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'moevit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, "__version__"})
