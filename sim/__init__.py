"""The simulators that run a program container and agree with each other byte for byte.

`isa` executes instructions in NumPy; `rtl` runs the generated Verilog, built by Verilator, behind a C++
harness with a DRAM model; `cycle` predicts how long that takes, from the latencies that the units state. They import
the generator only through `moevit.hw.verilog`.
"""
