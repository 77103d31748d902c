"""Quantised stages to instructions: allocation, dependency waits, weight blocks and the order of streams."""

from moevit.compiler.emit.emitter import Emitter
from moevit.compiler.emit.experts import Routing

__all__ = ["Emitter", "Routing"]
