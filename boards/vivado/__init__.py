"""The Vivado flow: a project in a folder, and the run of Vivado over it where that is installed.

`wrapper` writes the Verilog that the block design takes in, `script` the Tcl, `project` the folder; `recorder` executes
the Tcl without Vivado and checks it against what Vivado's commands take.
"""

VERSION = "2025.2"  #: of Vivado: the one that PYNQ 4.0's own overlays are built with
TOP = "moevit_axi"  #: the module that the block design takes in
