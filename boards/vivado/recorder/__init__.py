"""Executes a script for Vivado in a real Tcl interpreter, with stand-ins for Vivado's commands.

Tcl itself is the interpreter of Python's tkinter. `commands` knows which switches and arguments each command takes,
`cells` which parameters, pins and interfaces the blocks have, `design` what a valid block design is, and `vivado` joins
them. It is no Vivado: it finds what is spelt or wired wrong, not what Vivado would refuse for reasons of its own.
"""

from moevit.boards.vivado.recorder.vivado import Outcome, Vivado, record

__all__ = ["Outcome", "Vivado", "record"]
