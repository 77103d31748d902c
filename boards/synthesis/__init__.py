"""Open synthesis of a generated machine for UltraScale+, unit by unit: resources, and logic between registers.

`hierarchy` cuts the Verilog into units, `mapping` runs Yosys on one of them (in a process of its own), `netlist` counts
cells and levels in what comes out, `paths` joins the units' paths, and `flow` does all that and keeps the results.
"""
