"""The generator: the accelerator in Amaranth, as a function of an `AcceleratorConfig`.

Each unit is one component beside the NumPy function it equals (see `moevit.numerics`), and
`moevit.hw.verilog` turns the whole machine into Verilog. Nothing here knows of the compiler or of the
simulators.
"""
